"""Tissue: found on every stain, not found on glass, ink or black."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from pathkit.annotations import rasterize
from pathkit.geometry import Raster
from pathkit.metrics import iou
from pathkit.slide import MissingMppError, open_slide
from pathkit.tissue import pen_mask, tissue_fraction, tissue_mask, tissue_polygons

HE = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
DAB = ((0.65, 0.70, 0.29), (0.27, 0.57, 0.78))
MPP = 4.0


def glass(shape=(300, 400), level=243, seed=0):
    """Empty glass with the noise of a camera."""
    noise = np.random.default_rng(seed).normal(0, 1.5, (*shape, 3))
    return (np.array([level, level - 1, level + 1]) + noise).clip(0, 255).astype(np.uint8)


def painted(mask, stains=HE, strength=1.0, seed=0):
    """Tissue painted in optical density where `mask` is True: dots of the first stain in a haze of the second."""
    rng = np.random.default_rng(seed)
    dots = cv2.GaussianBlur((rng.random(mask.shape) > 0.7).astype(float), (0, 0), 1.0)
    haze = 0.25 + 0.1 * cv2.GaussianBlur(rng.standard_normal(mask.shape), (0, 0), 4.0)
    density = (
        strength
        * mask[..., None]
        * (dots[..., None] * stains[0] * np.array(0.6) + haze[..., None] * stains[1])
    )
    return (glass(mask.shape, seed=seed) * 10**-density).clip(0, 255).astype(np.uint8)


def disc(shape=(300, 400), centre=(150, 200), radius=100):
    rows, cols = np.indices(shape)
    return (rows - centre[0]) ** 2 + (cols - centre[1]) ** 2 < radius**2


def mask_of(pixels, **options):
    return tissue_mask(pixels, source_mpp=MPP, mpp=MPP, **options).values


@pytest.mark.parametrize("stains", [HE, DAB], ids=["H&E", "haematoxylin and DAB"])
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.8])
def test_tissue_of_any_stain_and_strength_is_found(stains, strength):
    truth = disc()
    assert iou(mask_of(painted(truth, stains, strength)), truth) > 0.95


@pytest.mark.parametrize("level", [255, 243, 215])
def test_glass_holds_no_tissue(level):
    assert not mask_of(glass(level=level)).any()


def test_a_shaded_glass_holds_no_tissue():
    shade = np.linspace(1.0, 0.8, 400)[None, :, None]
    assert not mask_of((glass() * shade).astype(np.uint8)).any()


@pytest.mark.parametrize("value", [0, 12])
def test_black_holds_no_tissue(value):
    assert not mask_of(np.full((300, 400, 3), value, np.uint8)).any()


def test_a_slide_covered_by_tissue_is_all_tissue():
    assert mask_of(painted(np.ones((300, 400), bool))).mean() > 0.99


INK = {"blue": (25, 60, 170), "green": (20, 130, 70), "red": (225, 25, 45), "black": (25, 25, 28)}


@pytest.mark.parametrize("ink", INK)
def test_ink_is_no_tissue(ink):
    pixels = glass()
    cv2.line(pixels, (30, 30), (370, 260), INK[ink], 14)
    assert not mask_of(pixels).any()


@pytest.mark.parametrize("ink", INK)
def test_ink_beside_tissue_costs_no_tissue(ink):
    truth = disc()
    pixels = painted(truth)
    cv2.line(pixels, (330, 20), (390, 280), INK[ink], 10)
    assert iou(mask_of(pixels), truth) > 0.95


def test_specks_are_dropped_and_small_holes_filled():
    truth = disc()
    with_speck = truth | disc(centre=(20, 20), radius=6)
    with_hole = with_speck & ~disc(radius=6)
    assert iou(mask_of(painted(with_hole)), truth) > 0.95
    kept = mask_of(painted(with_hole), min_area_um2=100, max_hole_um2=100)
    assert kept[20, 20]
    assert not kept[150, 200]


@given(low=st.floats(0.02, 0.3), high=st.floats(0.02, 0.3))
@settings(deadline=None, max_examples=15)
def test_a_looser_threshold_gives_a_superset(low, high):
    low, high = sorted([low, high])
    pixels = painted(disc(), strength=0.6)
    options = {"min_area_um2": 0, "max_hole_um2": 0}
    loose, strict = (mask_of(pixels, od_threshold=t, **options) for t in (low, high))
    assert (loose | ~strict).all()


def test_the_threshold_used_is_kept():
    mask = tissue_mask(painted(disc()), source_mpp=MPP, mpp=8.0)
    assert 0.03 <= mask.attrs["od_threshold"] <= 0.05
    assert np.abs(np.array(mask.attrs["white"]) - 245).max() < 8
    assert mask.mpp == 8.0
    assert mask.values.shape == (150, 200)


def test_the_glands_of_a_real_immunohistochemistry_field_are_tissue():
    pixels = skimage.data.immunohistochemistry()
    mask = tissue_mask(pixels, source_mpp=0.5, mpp=4, min_area_um2=500).values
    brown = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    glands = brown[..., 0] - brown[..., 2] > 40
    assert glands.mean() > 0.3
    assert mask[glands].mean() > 0.98


def test_a_slide_without_mpp_says_so():
    with pytest.raises(MissingMppError):
        tissue_mask(glass())


# Polygons and fractions ------------------------------------------------------------------------------------------


def test_polygons_cover_what_the_mask_covers_and_keep_its_holes():
    values = (disc() & ~disc(radius=40)) | disc(centre=(40, 40), radius=20) | disc(radius=15)
    mask = Raster(values, mpp=8.0)
    outlines = tissue_polygons(mask, slide_mpp=0.5)
    assert len(outlines) == 3
    assert [len(g.interiors) for g in outlines.geometry] == [1, 0, 0]
    assert outlines.geometry.area.is_monotonic_decreasing
    back = rasterize(outlines, mpp=8.0, slide_mpp=0.5, dimensions=(400 * 16, 300 * 16))
    assert iou(back.values == 1, values) > 0.99
    assert len(tissue_polygons(mask, slide_mpp=0.5, min_area_um2=60_000)) == 2


def test_no_tissue_has_no_polygons():
    outlines = tissue_polygons(Raster(np.zeros((20, 20), bool), 8.0), slide_mpp=0.5)
    assert len(outlines) == 0
    assert "class" in outlines


def test_fractions_are_shares_of_the_whole_patch():
    values = np.zeros((10, 10), bool)
    values[:, :5] = True
    patches = pd.DataFrame({"x_l0": [0, 60, 140, 5], "y_l0": [0, 0, 0, 145], "size_px": 20, "mpp": 1.0})
    shares = tissue_fraction(Raster(values, 8.0), patches, slide_mpp=0.5)
    np.testing.assert_allclose(shares, [1, 0.5, 0, 7.5 / 20])


# Real slides -----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_slides(real_slide_path, no_mpp_slide_path):
    aperio = tissue_mask(open_slide(real_slide_path))
    assert 0.35 < aperio.values.mean() < 0.45
    frozen = tissue_mask(open_slide(no_mpp_slide_path, mpp=0.5))
    assert 0.6 < frozen.values.mean() < 0.7
    assert len(tissue_polygons(frozen, slide_mpp=0.5)) <= 3


@pytest.mark.real
@pytest.mark.parametrize("ink", INK)
def test_ink_drawn_on_a_real_slide(real_slide_path, ink):
    pixels = open_slide(real_slide_path).read_region((0, 0), (277, 371), mpp=4.0)
    clean = tissue_mask(pixels, source_mpp=4.0, mpp=4.0).values
    cv2.line(pixels, (20, 220), (22, 350), INK[ink], 8)
    inked = tissue_mask(pixels, source_mpp=4.0, mpp=4.0).values
    assert iou(inked, clean) > 0.95


@pytest.mark.parametrize("ink", [None, (0.9, 0.25, 0.1)])
def test_a_mask_found_in_bands_is_the_mask_found_at_once(monkeypatch, ink):
    pixels = painted(disc() | disc(centre=(60, 330), radius=40))
    if ink is not None:
        pixels[140:170, 20:380] = (pixels[140:170, 20:380] * 10 ** -np.array(ink)).astype(np.uint8)
    at_once, pen = mask_of(pixels), pen_mask(pixels, source_mpp=MPP, mpp=MPP).values
    assert pen.any() == (ink is not None)
    monkeypatch.setattr("pathkit.tissue.BAND_PIXELS", 1)  # as low as smoothing allows
    np.testing.assert_array_equal(mask_of(pixels), at_once)
    np.testing.assert_array_equal(pen_mask(pixels, source_mpp=MPP, mpp=MPP).values, pen)
