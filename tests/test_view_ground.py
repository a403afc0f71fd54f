"""Coordinate lab and magnification ladder: every address is the same place, every rung has the same centre."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from pathkit.geometry import Box
from pathkit.slide import MissingMppError, SlideError, open_slide
from pathkit.view import CoordinateLab, PatchLadder
from pathkit.view.coordinates import TILE_PX, addresses


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Two levels; red says the column, green the row."""
    pixels = np.zeros((1200, 1600, 3), np.uint8)
    pixels[..., 0] = np.arange(1600) * 255 // 1600
    pixels[..., 1] = np.arange(1200)[:, None] * 255 // 1200
    path = tmp_path_factory.mktemp("slide") / "s.tif"
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 4):
            tiff.write(
                np.ascontiguousarray(pixels[::step, ::step]),
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(step > 1),
                resolution=(20_000 / step, 20_000 / step),
                resolutionunit="CENTIMETER",
            )
    return open_slide(path)


@pytest.fixture(scope="module")
def grid():
    xs, ys = np.meshgrid(range(0, 1600, 200), range(0, 1200, 200))
    return pd.DataFrame({"slide_id": "s", "x_l0": xs.ravel(), "y_l0": ys.ravel(), "size_px": 200, "mpp": 0.5})


def test_every_address_leads_back_to_the_same_place(slide):
    table = addresses(slide, 1234.0, 567.0)
    for level in slide.levels:
        x, y = table.loc[f"level {level.index}", ["x", "y"]]
        assert [x * level.downsample, y * level.downsample] == pytest.approx([1234, 567])
        column, row = table.loc[f"tile of level {level.index}", ["x", "y"]]
        assert 0 <= x - column * TILE_PX < TILE_PX
        assert 0 <= y - row * TILE_PX < TILE_PX
    assert list(table.loc["µm", ["x", "y"]]) == pytest.approx([617, 283.5])
    assert list(table.loc["mm", ["x", "y"]]) == pytest.approx([0.617, 0.2835], abs=1e-3)


def test_bounds_shift_what_is_counted_from_them(slide, monkeypatch):
    monkeypatch.setattr(slide, "bounds", Box(100, 50, 1400, 1100))
    assert list(addresses(slide, 1234.0, 567.0).loc["from bounds", ["x", "y"]]) == [1134, 517]


def test_without_mpp_there_are_no_microns_and_no_lab():
    nameless = open_slide(np.full((300, 400, 3), 200, np.uint8))
    assert not {"µm", "mm"} & set(addresses(nameless, 10, 10).index)
    with pytest.raises(MissingMppError):
        CoordinateLab(nameless)


def test_a_click_gives_the_address_and_moves_the_field_of_view(slide):
    lab = CoordinateLab(slide, size_px=100, mpp=1.0)
    lab.widget()
    lab.viewer._heard({"k": "tap", "x": 900.0, "y": 300.0, "r": 3.0})
    assert lab.place_l0 == (900, 300)
    assert lab.box_l0 == Box(800, 200, 200, 200)
    assert lab.spot._source.data["x"] == [900]
    assert "900.0" in lab._parts[0].value
    middle = lab.field()[50, 50].astype(float)
    assert middle[:2] == pytest.approx([900 * 255 / 1600, 300 * 255 / 1200], abs=2)
    lab.set_mpp(2.0)
    assert lab.box_l0 == Box(700, 100, 400, 400)
    lab.set_mpp(0.1)
    assert lab.mpp == slide.mpp, "no finer than the slide"
    with pytest.raises(ValueError, match="not on the slide"):
        lab.go_to(5000, 10)
    assert np.asarray(Image.open(io.BytesIO(lab.snapshot()))).std() > 10
    lab.close()


def test_the_rungs_of_a_ladder_share_their_centre_and_follow_the_selection(slide, grid):
    ladder = PatchLadder(slide, grid, (2.0, 0.5, 1.0))
    ladder.widget()
    ladder.viewer.select(grid.index[[20]])
    assert list(ladder.selection.index) == [20]
    before = ladder._parts[0].value
    row = grid.loc[20]
    for pixels in ladder.rungs():
        at = pixels[98:102, 98:102].mean((0, 1))
        assert at[0] == pytest.approx((row["x_l0"] + 100) * 255 / 1600, abs=2)
        assert at[1] == pytest.approx((row["y_l0"] + 100) * 255 / 1200, abs=2)
    ladder.select([9])
    assert list(ladder.viewer.selection.index) == [9]
    assert ladder._parts[0].value != before
    assert np.asarray(Image.open(io.BytesIO(ladder.snapshot()))).std() > 10
    with pytest.raises(SlideError, match="finer than the slide"):
        PatchLadder(slide, grid, (0.2, 1.0))
    with pytest.raises(ValueError, match="no rows"):
        PatchLadder(slide, grid.iloc[:0], (0.5,))
    ladder.close()


def test_the_tissue_of_the_truth_is_in_register_with_the_mask():
    from pathkit import datasets, synthetic
    from pathkit.metrics import iou
    from pathkit.tissue import tissue_mask

    row = datasets.load("lymph-nodes-tiny").iloc[0]
    mask, truth = tissue_mask(open_slide(row["path"])), synthetic.truth_of(row)
    known, solid = truth.tissue(), truth.tissue(fat=False)
    assert known.values.shape == mask.values.shape
    assert (known.values | ~solid.values).all()
    kept = known.values == solid.values
    values = [
        iou(np.roll(mask.values, s, (0, 1)) & kept, solid.values) for s in ((0, 0), (3, 0), (0, 3), (-3, -3))
    ]
    assert values[0] == max(values)


def test_a_picture_for_a_notebook_is_smaller_and_looks_the_same():
    from pathkit.view import SlideViewer
    from pathkit.view.picture import small

    noise = np.random.default_rng(0).normal(0, 25, (600, 800, 3))
    tissue = (np.array([190, 120, 180]) + noise).clip(0, 255).astype(np.uint8)
    whole = SlideViewer(open_slide(tissue, mpp=1.0)).snapshot()
    stored = small(whole)
    before, after = (
        np.asarray(Image.open(io.BytesIO(p)).convert("RGB")).astype(int) for p in (whole, stored)
    )
    assert before.shape == after.shape
    assert np.abs(before - after).mean() < 8
    assert len(stored) < 0.5 * len(whole)


def test_small_pictures_keep_the_colours_of_small_marks():
    from pathkit.view.picture import small

    rng = np.random.default_rng(0)
    pixels = (
        (rng.normal(0, 25, (300, 400, 3)) + [200, 120, 180]).clip(0, 255).astype(np.uint8)
    )  # tissue, more or less
    colours = np.array([[0, 114, 178], [0, 158, 115], [213, 94, 0], [230, 159, 0]])
    for i, colour in enumerate(colours):
        pixels[10:16, 20 * i : 20 * i + 6] = colour
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")
    kept = np.asarray(Image.open(io.BytesIO(small(stored.getvalue()))).convert("RGB")).astype(int)
    assert np.abs(kept[12, 2:82:20] - colours).max() < 24
    assert len(small(stored.getvalue())) < len(stored.getvalue()) / 2
