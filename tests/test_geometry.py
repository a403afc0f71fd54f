"""Frames go there and back; rasters average by area."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pathkit.geometry import Box, Frames, Raster

numbers = st.floats(-1e6, 1e6, allow_nan=False)
sizes = st.floats(0, 1e6, allow_nan=False)
boxes = st.builds(Box, numbers, numbers, sizes, sizes)
mpps = st.floats(0.1, 10)
frame_names = st.sampled_from(["l0", "um", 0, 1, 2])


@given(box=boxes, mpp=mpps, source=frame_names, target=frame_names)
def test_there_and_back_is_the_same_box(box, mpp, source, target):
    frames = Frames(mpp, (1.0, 4.0, 16.00012))
    back = frames.convert(frames.convert(box, source, target), target, source)
    np.testing.assert_allclose(back.bounds, box.bounds, rtol=1e-12, atol=1e-6)


@given(mpp=mpps, a=frame_names, b=frame_names, c=frame_names)
def test_two_steps_equal_one(mpp, a, b, c):
    frames = Frames(mpp, (1.0, 4.0, 16.0))
    assert frames.factor(a, b) * frames.factor(b, c) == pytest.approx(frames.factor(a, c), rel=1e-12)


def test_points_boxes_and_polygons_move_together():
    frames = Frames(0.5, (1.0, 4.0))
    box_l1 = Box(10, 20, 30, 40)
    assert frames.convert(box_l1, 1, "um") == Box(20, 40, 60, 80)
    assert frames.convert(box_l1.polygon(), 1, "um").equals(Box(20, 40, 60, 80).polygon())
    np.testing.assert_array_equal(frames.convert([[10, 20], [40, 60]], 1, "um"), [[20, 40], [80, 120]])


def test_microns_without_mpp_say_the_way_out():
    with pytest.raises(ValueError, match=r"open_slide\(path, mpp="):
        Frames(None).convert([1, 2], "l0", "um")


@pytest.mark.parametrize("frame", ["level0", 2, -1])
def test_unknown_frame_is_named(frame):
    with pytest.raises(ValueError, match=f"unknown frame {frame!r}"):
        Frames(0.5, (1.0, 4.0)).convert([1, 2], frame, "l0")


@given(a=boxes, b=boxes)
def test_intersection_is_symmetric_and_agrees_with_shapely(a, b):
    common = a.intersection(b)
    assert common == b.intersection(a) or common.bounds == pytest.approx(b.intersection(a).bounds)
    expected = a.polygon().intersection(b.polygon())
    got = 0.0 if common is None else common.area
    assert got == pytest.approx(expected.area, rel=1e-6, abs=1e-3)


def test_box_refuses_negative_and_unfinite_sizes():
    with pytest.raises(ValueError, match="must not be negative"):
        Box(0, 0, -1, 2)
    with pytest.raises(ValueError, match="finite"):
        Box(0, float("nan"), 1, 2)


def test_box_contains_its_left_edge_and_not_its_right():
    assert Box(0, 0, 2, 2).contains([[0, 0], [2, 0], [1.9, 1.9], [-0.1, 1]]).tolist() == [
        True,
        False,
        True,
        False,
    ]


# Raster ----------------------------------------------------------------------------------------------------------


@given(
    x=st.floats(-3, 9),
    y=st.floats(-3, 9),
    w=st.floats(0.2, 8),
    h=st.floats(0.2, 8),
    seed=st.integers(0, 20),
)
def test_mean_in_a_box_equals_the_sum_over_polygon_overlaps(x, y, w, h, seed):
    values = np.random.default_rng(seed).random((3, 4))
    raster = Raster(values, mpp=1.5, origin_um=(0.5, -1.0))
    box = shapely.box(x, y, x + w, y + h)
    cells = [
        (
            shapely.box(0.5 + 1.5 * c, -1 + 1.5 * r, 2 + 1.5 * c, 0.5 + 1.5 * r).intersection(box).area,
            values[r, c],
        )
        for r in range(3)
        for c in range(4)
    ]
    total, area = sum(a * v for a, v in cells), sum(a for a, _ in cells)
    inside = raster.mean_in([(x, y, w, h)])[0]
    if area > 1e-6:
        assert inside == pytest.approx(total / area, abs=1e-6)
    assert raster.mean_in([(x, y, w, h)], outside=0)[0] == pytest.approx(total / (w * h), abs=1e-6)


def test_a_box_outside_has_no_mean_and_unknown_pixels_are_left_out():
    raster = Raster(np.array([[1.0, np.nan], [3.0, 5.0]]), mpp=1.0)
    assert np.isnan(raster.mean_in([(10, 10, 1, 1)])[0])
    assert np.isnan(raster.mean_in([(1, 0, 1, 1)])[0])
    assert raster.mean_in([(0, 0, 2, 2)])[0] == pytest.approx(3.0)
    assert raster.mean_in([(0, 0, 2, 2)], outside=1.0)[0] == pytest.approx(2.5)


def test_sample_reads_the_pixel_that_covers_the_point():
    raster = Raster(np.arange(6).reshape(2, 3), mpp=2.0, origin_um=(10, 20))
    np.testing.assert_array_equal(raster.sample([[10, 20], [13.9, 20], [15.9, 23.9]]), [0, 1, 5])
    outside = raster.sample([[9.9, 20], [12, 22]], outside=-1)
    np.testing.assert_array_equal(outside, [-1, 4])


def test_raster_round_trip_keeps_everything(tmp_path):
    raster = Raster(np.eye(3, dtype=bool), mpp=8.0, origin_um=(1.5, -2.0), attrs={"threshold": 0.06})
    back = Raster.load(raster.save(tmp_path / "mask.npz"))
    np.testing.assert_array_equal(back.values, raster.values)
    assert (back.mpp, back.origin_um, back.attrs) == (8.0, (1.5, -2.0), {"threshold": 0.06})
    assert back.values.dtype == bool
    assert [p.name for p in tmp_path.iterdir()] == ["mask.npz"]


def test_raster_refuses_what_is_no_raster(tmp_path):
    with pytest.raises(ValueError, match="mpp must be a positive"):
        Raster(np.zeros((2, 2)), mpp=0)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        Raster(np.zeros(4), mpp=1)
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match=r"other\.npz: not a raster"):
        Raster.load(tmp_path / "other.npz")


@given(st.integers(0, 50))
def test_sums_of_a_mask_and_of_the_same_numbers_agree(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((7, 9)) > 0.4
    boxes = np.column_stack([rng.uniform(-5, 20, (30, 2)), rng.uniform(0.1, 15, (30, 2))])
    whole, numbers = Raster(mask, 1.5, (0.5, -1.0)), Raster(mask.astype(float), 1.5, (0.5, -1.0))
    for outside in (None, 0, 1):
        expected = numbers.mean_in(boxes, outside=outside)
        np.testing.assert_allclose(whole.mean_in(boxes, outside=outside), expected, atol=1e-9)
        np.testing.assert_array_equal(
            whole.box_means()(boxes, outside=outside), whole.mean_in(boxes, outside=outside)
        )
