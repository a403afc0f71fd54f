"""Tables: a bad cell is named, a file comes back as it went."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pathkit.tables import (
    TableError,
    check_objects,
    check_patches,
    check_predictions,
    check_slides,
    read_table,
    write_table,
)

SLIDES = pd.DataFrame(
    {
        "slide_id": ["a", "b"],
        "patient_id": ["p", "p"],
        "site": ["x", "x"],
        "path": ["a.svs", "b.svs"],
        "mpp": [0.5, 0.25],
        "label": ["normal", "tumour"],
    }
)
PATCHES = pd.DataFrame(
    {"slide_id": ["a"], "x_l0": [0], "y_l0": [-5], "size_px": [64], "mpp": [1.0], "tissue": [0.7]}
)
OBJECTS = pd.DataFrame(
    {"slide_id": ["a"], "x_um": [1.0], "y_um": [2.0], "class": ["tumour"], "area_um2": [50.0]}
)


def test_good_tables_pass_through():
    assert check_slides(SLIDES) is SLIDES
    assert check_patches(PATCHES) is PATCHES
    assert check_objects(OBJECTS) is OBJECTS
    check_predictions(pd.DataFrame({"slide_id": ["a"], "score": [0.3]}))
    check_slides(SLIDES[["slide_id", "patient_id", "path"]])


@pytest.mark.parametrize(
    ("check", "table", "column", "value", "message"),
    [
        (check_slides, SLIDES, "mpp", -1.0, "microns per pixel.*got -1.0"),
        (check_slides, SLIDES, "mpp", 353.0, "microns per pixel.*got 353.0"),
        (check_slides, SLIDES, "slide_id", "b", "'b' stands there a second time"),
        (check_slides, SLIDES, "patient_id", None, "a name that is not empty"),
        (check_slides, SLIDES, "path", " ", "a path that is not empty"),
        (check_slides, SLIDES, "label", None, "a label that is not missing"),
        (check_patches, PATCHES, "x_l0", 0.5, "whole number of level-0 pixels"),
        (check_patches, PATCHES, "size_px", 0, "at least 1"),
        (check_patches, PATCHES, "tissue", 50.0, "fraction from 0 to 1"),
        (check_objects, OBJECTS, "area_um2", 0.0, "area above 0"),
        (check_objects, OBJECTS, "x_um", np.nan, "number of microns"),
    ],
)
def test_a_bad_value_is_named_with_its_row(check, table, column, value, message):
    bad = table.astype({column: object})
    bad.loc[0, column] = value
    with pytest.raises(TableError, match=f"column {column!r}, row [01].*{message}"):
        check(bad)


def test_a_missing_column_says_what_there_is():
    with pytest.raises(TableError, match=r"slides: no column 'path'.*slide_id, patient_id"):
        check_slides(SLIDES.drop(columns="path"))


def test_a_file_comes_back_as_it_went(tmp_path):
    table = SLIDES.assign(grade=pd.Categorical(["2", "1"], ["1", "2"]), n=np.array([1, 2], np.int16))
    table.attrs["note"] = "kept"
    back = read_table(write_table(table, tmp_path / "new" / "t.parquet", mpp=0.5, encoder="e"))
    pd.testing.assert_frame_equal(back, table)
    assert {k: back.attrs[k] for k in ("note", "mpp", "encoder")} == {
        "note": "kept",
        "mpp": 0.5,
        "encoder": "e",
    }
    assert set(back.attrs["versions"]) == {"pathkit", "numpy", "pandas"}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t.parquet"]


def test_files_of_others_and_no_files(tmp_path):
    SLIDES.to_parquet(tmp_path / "other.parquet")
    assert read_table(tmp_path / "other.parquet").attrs == {}
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(TableError, match=r"text\.parquet: not a parquet table"):
        read_table(tmp_path / "text.parquet")
    with pytest.raises(TableError, match="no such table"):
        read_table(tmp_path / "absent.parquet")
    with pytest.raises(TableError, match="metadata must be"):
        write_table(SLIDES, tmp_path / "t.parquet", made_by=object())
