"""Splits: no patient on two sides, whatever the table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathkit.splits import LeakError, check_no_leak, hold_out_site, patient_folds, split_patients


def cohort(n_patients=20, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {
            "slide_id": f"{p}-{i}",
            "patient_id": f"p{p:02d}",
            "site": "xyz"[p % 3],
            "label": "tumour" if p % 4 == 0 else "normal",
        }
        for p in range(n_patients)
        for i in range(rng.integers(1, 5))
    ]
    return pd.DataFrame(rows)


@given(n=st.integers(3, 60), seed=st.integers(0, 1000))
def test_patients_stay_together_and_no_part_is_empty(n, seed):
    table = split_patients(cohort(n, seed), seed=seed)
    check_no_leak(table)
    assert set(table["split"]) == {"train", "val", "test"}


@given(seed=st.integers(0, 200), order=st.integers(0, 200))
def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows(seed, order):
    table = cohort()
    split = split_patients(table, stratify="label", seed=seed)
    shuffled = split_patients(table.sample(frac=1, random_state=order), stratify="label", seed=seed)
    pd.testing.assert_frame_equal(split, shuffled.sort_index())


def test_seeds_differ():
    splits = {tuple(split_patients(cohort(), seed=s)["split"]) for s in range(10)}
    assert len(splits) > 5


def test_strata_are_spread_in_proportion():
    table = split_patients(cohort(40), fractions={"train": 0.5, "test": 0.5}, stratify="label", seed=3)
    patients = table.drop_duplicates("patient_id")
    counts = patients.groupby(["split", "label"]).size().unstack()
    assert counts["tumour"].tolist() == [5, 5]
    assert counts["normal"].tolist() == [15, 15]


def test_a_patient_with_one_tumour_slide_counts_as_tumour():
    table = cohort(4).assign(label="normal")
    table.loc[table.index[table["patient_id"] == "p00"][:1], "label"] = "tumour"
    table.loc[table.index[table["patient_id"] == "p01"][:1], "label"] = "tumour"
    split = split_patients(table, fractions={"a": 0.5, "b": 0.5}, stratify="label")
    assert split.groupby("patient_id")["split"].first()[["p00", "p01"]].nunique() == 2


def test_a_leak_is_found_and_named():
    table = pd.DataFrame({"patient_id": ["a", "b", "b", "c"], "split": ["train", "train", "test", "test"]})
    with pytest.raises(
        LeakError, match=r"1 patient_id on more than one side, first 'b' in test and train.*split_patients"
    ):
        check_no_leak(table)
    check_no_leak(table.drop(index=2))


def test_one_file_under_two_ids_is_found():
    table = pd.DataFrame({"patient_id": ["a", "b"], "path": ["1.svs", "1.svs"], "split": ["train", "test"]})
    check_no_leak(table)
    with pytest.raises(LeakError, match=r"1 path.*1\.svs"):
        check_no_leak(table, by=["patient_id", "path"])


def test_a_site_is_held_out_whole():
    split = hold_out_site(cohort(), "y")
    assert set(split.loc[split["split"] == "test", "site"]) == {"y"}
    assert "y" not in set(split.loc[split["split"] == "train", "site"])
    with pytest.raises(ValueError, match="no site 'q'; the table has x, y, z"):
        hold_out_site(cohort(), "q")
    with pytest.raises(ValueError, match="only site"):
        hold_out_site(cohort().assign(site="x"), "x")


def test_a_site_with_one_class_is_warned_of():
    table = cohort().assign(label=lambda t: np.where(t["site"] == "x", "tumour", "normal"))
    with pytest.warns(UserWarning, match=r"one label only"):
        hold_out_site(table, "x")


@given(n=st.integers(2, 8))
def test_folds_divide_patients(n):
    table = patient_folds(cohort(), n)
    assert table.groupby("patient_id")["fold"].nunique().max() == 1
    sizes = table.drop_duplicates("patient_id")["fold"].value_counts()
    assert len(sizes) == n
    assert sizes.max() - sizes.min() <= 1


def test_what_cannot_be_split():
    with pytest.raises(ValueError, match="2 different patient_id cannot fill 3 parts"):
        split_patients(cohort(2))
    with pytest.raises(ValueError, match="sum to 1"):
        split_patients(cohort(), fractions={"train": 0.5, "test": 0.4})
    with pytest.raises(ValueError, match="no column 'patient'"):
        split_patients(cohort(), by="patient")
    with pytest.raises(ValueError, match="row 3"):
        split_patients(cohort().assign(patient_id=lambda t: t["patient_id"].where(t.index != 3)))
    with pytest.raises(ValueError, match="ask for 2 to 20"):
        patient_folds(cohort(), 21)
