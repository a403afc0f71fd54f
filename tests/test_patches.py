"""Patches: grids leave no gap, tables go there and back, data sets give the same batches however they are read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from pathkit.annotations import annotation_frame, write_annotations
from pathkit.annotations.rows import Row
from pathkit.geometry import Box, Raster
from pathkit.patches import (
    PatchDataset,
    concentric,
    patch_boxes_um,
    patch_grid,
    patch_table,
    random_patches,
    read_all,
    read_patches,
    sample_patches,
    write_patches,
)
from pathkit.slide import SlideError, open_slide
from pathkit.tables import TableError

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (300, 400, 3), dtype=np.uint8)


@pytest.fixture
def slide():
    return open_slide(PIXELS, mpp=0.5)


def all_tissue(slide, mpp=8.0):
    width, height = slide.dimensions
    shape = (int(np.ceil(height * slide.mpp / mpp)), int(np.ceil(width * slide.mpp / mpp)))
    return Raster(np.ones(shape, bool), mpp)


# Grids -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    size_px=st.integers(8, 64),
    mpp=st.floats(0.5, 2.0),
    overlap=st.floats(0, 0.8),
    seed=st.integers(0, 50),
)
def test_a_grid_covers_every_tissue_pixel(size_px, mpp, overlap, seed):
    slide = open_slide(PIXELS, mpp=0.5)
    values = np.random.default_rng(seed).random((19, 25)) > 0.9
    values[0, 0] = True
    grid = patch_grid(
        slide,
        size_px=size_px,
        mpp=mpp,
        overlap_px=int(overlap * size_px),
        mask=Raster(values, 8.0),
        min_tissue=1e-12,
    )
    covered = np.zeros((300, 400), bool)
    side = size_px * mpp / 0.5 + 1e-6
    for row in grid.itertuples():
        covered[row.y_l0 : int(row.y_l0 + side), row.x_l0 : int(row.x_l0 + side)] = True
    tissue = values.repeat(16, 0).repeat(16, 1)[:300, :400]
    assert covered[tissue].all()


def test_a_grid_is_regular_and_row_after_row(slide):
    grid = patch_grid(slide, size_px=50, mpp=1.0, overlap_px=10, mask=all_tissue(slide), min_tissue=0)
    assert sorted(grid["x_l0"].unique()) == [0, 80, 160, 240, 320]
    assert sorted(grid["y_l0"].unique()) == [0, 80, 160, 240]
    assert grid.equals(grid.sort_values(["y_l0", "x_l0"], ignore_index=True))
    assert grid.dtypes[["x_l0", "y_l0"]].tolist() == [np.int64, np.int64]


def test_more_tissue_asked_for_gives_a_subset(slide):
    mask = Raster(RNG.random((19, 25)) > 0.5, 8.0)
    loose, strict = (patch_grid(slide, size_px=32, mpp=0.5, mask=mask, min_tissue=t) for t in (0.3, 0.6))
    keys = ["x_l0", "y_l0"]
    assert len(strict) < len(loose)
    assert len(strict.merge(loose, on=keys)) == len(strict)


def test_no_tissue_is_an_empty_table_with_a_warning():
    blank = open_slide(np.full((300, 400, 3), 244, np.uint8), mpp=0.5)
    with pytest.warns(UserWarning, match="no patch has 50% tissue"):
        grid = patch_grid(blank, size_px=32, mpp=1.0)
    assert len(grid) == 0
    assert grid["x_l0"].dtype == np.int64
    assert list(grid.columns) == ["slide_id", "x_l0", "y_l0", "size_px", "mpp", "tissue"]


def test_grids_that_cannot_be(slide):
    with pytest.raises(SlideError, match=r"finest level has 0\.5"):
        patch_grid(slide, mpp=0.25)
    with pytest.raises(ValueError, match="overlap_px less than it"):
        patch_grid(slide, size_px=32, overlap_px=32)
    with pytest.raises(ValueError, match="share from 0 to 1"):
        patch_grid(slide, min_tissue=50)


def test_random_patches_lie_on_slide_and_tissue(slide):
    values = np.zeros((19, 25), bool)
    values[:, :12] = True
    found = random_patches(slide, 40, size_px=32, mpp=0.5, mask=Raster(values, 8.0), min_tissue=0.5, seed=1)
    assert len(found) == 40
    assert (found["tissue"] >= 0.5).all()
    assert found["x_l0"].between(0, 400 - 32).all()
    assert found["y_l0"].between(0, 300 - 32).all()
    again = random_patches(slide, 40, size_px=32, mpp=0.5, mask=Raster(values, 8.0), min_tissue=0.5, seed=1)
    pd.testing.assert_frame_equal(found, again)
    with pytest.raises(ValueError, match="no place with 50% tissue"):
        random_patches(slide, 4, size_px=32, mask=Raster(np.zeros((19, 25), bool), 8.0))


def test_concentric_patches_share_their_centre(slide):
    grid = patch_grid(slide, size_px=32, mpp=0.5, mask=all_tissue(slide))
    rings = concentric(grid, [0.5, 1.0, 4.0], slide_mpp=0.5)
    assert len(rings) == 3 * len(grid)
    boxes = patch_boxes_um(rings, slide_mpp=0.5)
    centres = pd.DataFrame(boxes[:, :2] + boxes[:, 2:] / 2).groupby(rings["place"])
    assert (centres.max() - centres.min()).to_numpy().max() <= 0.5
    pd.testing.assert_series_equal(rings[rings["mpp"] == 0.5]["x_l0"].reset_index(drop=True), grid["x_l0"])
    with pytest.raises(SlideError, match="finer than the slide"):
        concentric(grid, [0.25], slide_mpp=0.5)


# Samples ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(slide):
    grid = patch_grid(slide, size_px=32, mpp=0.5, mask=all_tissue(slide), min_tissue=0)
    return grid.assign(label=np.where(np.arange(len(grid)) < 5, "tumour", "normal"))


def test_samples_are_rows_of_the_table_and_follow_the_seed(labelled):
    sample = sample_patches(labelled, 20, seed=4)
    assert len(sample.merge(labelled)) == 20
    pd.testing.assert_frame_equal(sample, sample_patches(labelled, 20, seed=4))
    assert not sample.index.equals(sample_patches(labelled, 20, seed=5).index)


def test_strata_give_up_to_n_each(labelled):
    assert sample_patches(labelled, 8, by="label")["label"].value_counts().to_dict() == {
        "normal": 8,
        "tumour": 5,
    }
    with_return = sample_patches(labelled, 8, by=["slide_id", "label"], replace=True)
    assert with_return["label"].value_counts().to_dict() == {"normal": 8, "tumour": 8}
    with pytest.raises(ValueError, match="no column 'grade'"):
        sample_patches(labelled, 8, by="grade")


def test_tables_keep_their_metadata(labelled, tmp_path):
    path = write_patches(labelled, tmp_path / "p.parquet", encoder="e")
    back = read_patches(path)
    pd.testing.assert_frame_equal(back, labelled)
    assert back.attrs["encoder"] == "e"
    with pytest.raises(TableError, match="'x_l0'"):
        write_patches(labelled.drop(columns="x_l0"), tmp_path / "q.parquet")


def test_the_patches_of_a_cohort_are_labelled(tmp_path):
    pixels = np.full((300, 400, 3), 243, np.uint8)
    pixels[:, :200] = RNG.integers([120, 60, 130], [230, 140, 210], (300, 200, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    outline = annotation_frame([Row(Box(0, 0, 200, 128).polygon(), "tumour")])
    write_annotations(outline, tmp_path / "a.geojson")
    slides = pd.DataFrame(
        {
            "slide_id": ["one", "two"],
            "patient_id": ["p", "q"],
            "path": str(tmp_path / "a.png"),
            "mpp": 2.0,
            "annotations_path": str(tmp_path / "a.geojson"),
        }
    )
    table = patch_table(slides, size_px=32, mpp=4.0, progress=False)
    assert table.groupby("slide_id")["patient_id"].unique().map(list).to_dict() == {
        "one": ["p"],
        "two": ["q"],
    }
    assert (table["x_l0"] < 200).all()
    assert ((table["label"] == "tumour") == (table["y_l0"] < 128)).all()


# Pixels ----------------------------------------------------------------------------------------------------------


def png_slides(tmp_path):
    for name, seed in [("a", 0), ("b", 1)]:
        pixels = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return pd.DataFrame(
        {"slide_id": ["a", "b"], "path": [str(tmp_path / f"{n}.png") for n in "ab"], "mpp": 0.5}
    )


def table_of_two(tmp_path):
    slides = png_slides(tmp_path)
    x, y = np.random.default_rng(2).integers(0, 100, (2, 13))
    patches = pd.DataFrame(
        {"slide_id": list("ab" * 6) + ["a"], "x_l0": x, "y_l0": y, "size_px": 24, "mpp": 0.5}
    )
    return slides, patches.assign(label=["n", "t", "t"] * 4 + ["n"])


@pytest.mark.parametrize(("workers", "start"), [(0, None), (1, "fork"), (2, "fork"), (2, "spawn")])
def test_batches_are_the_same_whatever_the_workers(tmp_path, workers, start):
    slides, patches = table_of_two(tmp_path)
    data = PatchDataset(patches, slides)
    loader = DataLoader(data, batch_size=5, num_workers=workers, multiprocessing_context=start)
    batches = list(loader)
    images = torch.cat([b["image"] for b in batches]).permute(0, 2, 3, 1).numpy()
    expected = np.stack(
        [
            open_slide(tmp_path / f"{r.slide_id}.png", mpp=0.5).read_region((r.x_l0, r.y_l0), (24, 24))
            for r in patches.itertuples()
        ]
    )
    np.testing.assert_array_equal(images, expected)
    assert torch.cat([b["label"] for b in batches]).tolist() == [0, 1, 1] * 4 + [0]
    assert torch.cat([b["row"] for b in batches]).tolist() == list(range(13))


def test_one_item_is_uint8_chw_and_unlabelled_use_has_no_label(tmp_path):
    slides, patches = table_of_two(tmp_path)
    item = PatchDataset(patches.drop(columns="label"), slides, label=None)[3]
    assert item["image"].dtype == torch.uint8
    assert item["image"].shape == (3, 24, 24)
    assert "label" not in item


def test_read_all_is_in_the_tables_order(tmp_path):
    slides, patches = table_of_two(tmp_path)
    pixels = read_all(patches, slides, progress=False)
    data = PatchDataset(patches, slides)
    np.testing.assert_array_equal(
        pixels, np.stack([data[i]["image"].permute(1, 2, 0).numpy() for i in range(13)])
    )
    with pytest.raises(MemoryError, match=r"budget is 1e-06 GB.*DataLoader"):
        read_all(patches, slides, budget_gb=1e-6)


def test_what_a_data_set_needs(tmp_path):
    slides, patches = table_of_two(tmp_path)
    with pytest.raises(ValueError, match="first 'b'"):
        PatchDataset(patches, slides[:1])
    with pytest.raises(ValueError, match="no column 'grade' to learn from"):
        PatchDataset(patches, slides, label="grade")
    with pytest.raises(ValueError, match="row 1 has the label 't'"):
        PatchDataset(patches, slides, classes=["n"])
    with pytest.raises(ValueError, match="missing in row 2"):
        PatchDataset(patches.assign(label=["n", "t", None] * 4 + ["n"]), slides)
    with pytest.raises(ValueError, match="one size_px"):
        PatchDataset(patches.assign(size_px=[24, 32] * 6 + [24]), slides)


@pytest.mark.real
def test_a_real_slide(real_slide_path):
    slide = open_slide(real_slide_path)
    grid = patch_grid(slide, size_px=224, mpp=0.5)
    pixels = read_all(grid, {slide.name: slide}, progress=False)
    assert len(grid) > 40
    assert pixels.mean(axis=(1, 2, 3)).max() < 235
