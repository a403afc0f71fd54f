"""Slides: the same pixels whatever the way they are read, and a clear word where they cannot be."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathkit.slide import MissingMppError, SlideError, open_slide

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (150, 200, 3), dtype=np.uint8)


def write_pyramid(path, pixels, *, mpp=0.5, factors=(1, 4), mpp_y=None, compression=None):
    """A tiled pyramidal TIFF that OpenSlide opens; lossless, so that pixels can be compared."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for factor in factors:
            rows, cols = (n // factor * factor for n in pixels.shape[:2])
            level = (
                pixels[:rows, :cols].reshape(rows // factor, factor, cols // factor, factor, 3).mean((1, 3))
            )
            tiff.write(
                level.round().astype(np.uint8),
                tile=(64, 64),
                photometric="rgb",
                compression=compression,
                subfiletype=0 if factor == 1 else 1,
                resolution=(1e4 / (mpp * factor), 1e4 / ((mpp_y or mpp) * factor)),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


@pytest.fixture(scope="module")
def pyramid_path(tmp_path_factory):
    pixels = RNG.integers(0, 256, (600, 800, 3), dtype=np.uint8)
    return write_pyramid(tmp_path_factory.mktemp("slides") / "pyramid.tif", pixels)


def region_mean(pixels, x, y, step, width, height):
    """Mean of each covered square, summed pixel by pixel: slow, obvious, and white beyond the edges."""
    out = np.zeros((height, width, 3))
    for r in range(height):
        for c in range(width):
            x0, y0 = x + c * step, y + r * step
            total = np.zeros(3)
            for i in range(int(np.floor(y0)), int(np.ceil(y0 + step))):
                for j in range(int(np.floor(x0)), int(np.ceil(x0 + step))):
                    area = (min(i + 1, y0 + step) - max(i, y0)) * (min(j + 1, x0 + step) - max(j, x0))
                    inside = 0 <= i < pixels.shape[0] and 0 <= j < pixels.shape[1]
                    total += area * (pixels[i, j] if inside else 255.0)
            out[r, c] = total / step**2
    return out


# Reading ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    x=st.one_of(st.integers(-4, 195), st.floats(-4, 195)),
    y=st.one_of(st.integers(-4, 145), st.floats(-4, 145)),
    step=st.one_of(st.sampled_from([1, 2, 3, 1.5]), st.floats(1, 4)),
)
def test_an_output_pixel_is_the_mean_of_the_square_it_covers(x, y, step):
    slide = open_slide(PIXELS, mpp=0.5)
    got = slide.read_region((x, y), (5, 3), mpp=0.5 * step)
    np.testing.assert_allclose(got, region_mean(PIXELS, x, y, step, 5, 3), atol=0.51)


@settings(deadline=None, max_examples=60)
@given(
    x=st.one_of(st.integers(-10, 150), st.floats(-10, 150)),
    y=st.one_of(st.integers(-10, 100), st.floats(-10, 100)),
    mpp=st.one_of(st.sampled_from([0.5, 1.0, 0.75, 1.25]), st.floats(0.5, 2)),
)
def test_four_quarters_equal_the_whole(x, y, mpp):
    slide = open_slide(PIXELS, mpp=0.5)
    whole = slide.read_region((x, y), (24, 16), mpp=mpp)
    dx, dy = 12 * mpp / 0.5, 8 * mpp / 0.5
    top = [slide.read_region((x + i * dx, y), (12, 8), mpp=mpp) for i in (0, 1)]
    bottom = [slide.read_region((x + i * dx, y + dy), (12, 8), mpp=mpp) for i in (0, 1)]
    np.testing.assert_array_equal(whole, np.vstack([np.hstack(top), np.hstack(bottom)]))


def test_bands_of_a_large_read_join_without_a_seam(monkeypatch):
    slide = open_slide(PIXELS, mpp=0.5)
    at_once = slide.read_region((3, 5), (60, 40), mpp=1.3)
    monkeypatch.setattr("pathkit.slide.BAND_PIXELS", 500)
    np.testing.assert_array_equal(slide.read_region((3, 5), (60, 40), mpp=1.3), at_once)


def test_level_0_equals_openslide_pixel_for_pixel(pyramid_path):
    slide, oracle = open_slide(pyramid_path), openslide.OpenSlide(str(pyramid_path))
    for location, size in [((0, 0), (800, 600)), ((37, 61), (130, 70)), ((700, 500), (100, 100))]:
        expected = np.asarray(oracle.read_region(location, 0, size))[..., :3]
        np.testing.assert_array_equal(slide.read_region(location, size), expected)
        np.testing.assert_array_equal(slide.read_region(location, size, mpp=0.5), expected)


def test_level_1_equals_openslide_and_lies_where_level_0_does(pyramid_path):
    slide, oracle = open_slide(pyramid_path), openslide.OpenSlide(str(pyramid_path))
    expected = np.asarray(oracle.read_region((40, 80), 1, (50, 30)))[..., :3]
    np.testing.assert_array_equal(slide.read_region((40, 80), (50, 30), level=1), expected)
    np.testing.assert_array_equal(slide.read_region((40, 80), (50, 30), mpp=2.0), expected)
    from_level_0 = open_slide(slide.read_region((0, 0), (800, 600)), mpp=0.5).read_region(
        (40, 80), (50, 30), mpp=2.0
    )
    np.testing.assert_allclose(expected.astype(int), from_level_0, atol=1)


def test_the_level_read_is_the_coarsest_that_is_fine_enough(pyramid_path):
    slide = open_slide(pyramid_path)
    assert [slide._level_for(mpp)[0] for mpp in (0.5, 1.0, 1.98, 1.995, 2.0, 8.0)] == [0, 0, 0, 1, 1, 1]


def test_beyond_the_edge_is_white(pyramid_path):
    slide = open_slide(pyramid_path)
    corner = slide.read_region((790, 590), (20, 20))
    assert (corner[10:] == 255).all()
    assert (corner[:, 10:] == 255).all()
    np.testing.assert_array_equal(corner[:10, :10], slide.read_region((790, 590), (10, 10)))


def test_read_patches_keeps_the_tables_order_and_fills_the_buffer(pyramid_path):
    slide = open_slide(pyramid_path)
    table = pd.DataFrame({"x_l0": [300, 0, 128, 0], "y_l0": [64, 400, 0, 0], "size_px": 32, "mpp": 1.0})
    out = np.zeros((4, 32, 32, 3), np.uint8)
    assert slide.read_patches(table, out=out) is out
    for row, patch in zip(table.itertuples(), out, strict=True):
        np.testing.assert_array_equal(patch, slide.read_region((row.x_l0, row.y_l0), (32, 32), mpp=1.0))
    np.testing.assert_array_equal(slide.read_patches(table, threads=1), out)


def test_read_patches_says_what_is_wrong_with_the_table():
    slide = open_slide(PIXELS, mpp=0.5)
    mixed = pd.DataFrame({"x_l0": [0, 0], "y_l0": [0, 0], "size_px": 8, "mpp": [0.5, 1.0]})
    with pytest.raises(ValueError, match="one mpp per call"):
        slide.read_patches(mixed)
    with pytest.raises(ValueError, match=r"out must be \(1, 8, 8, 3\)"):
        slide.read_patches(mixed[:1], out=np.zeros((2, 8, 8, 3), np.uint8))


def test_thumbnail_shows_the_whole_slide(pyramid_path):
    slide = open_slide(pyramid_path)
    thumbnail = slide.thumbnail(100)
    assert thumbnail.shape == (75, 100, 3)
    whole = slide.read_region((0, 0), (100, 75), mpp=4.0)
    assert np.abs(thumbnail.astype(int) - whole).mean() < 1


# Resolution ------------------------------------------------------------------------------------------------------


def test_mpp_and_its_provenance(pyramid_path):
    slide = open_slide(pyramid_path)
    assert slide.mpp == pytest.approx(0.5, rel=1e-5)
    assert slide.mpp_source == "openslide.mpp-x"
    assert [level.downsample for level in slide.levels] == [1, 4]
    assert slide.levels[1].mpp == pytest.approx(2.0, rel=1e-5)
    mine = open_slide(pyramid_path, mpp=0.25)
    assert (mine.mpp, mine.mpp_source) == (0.25, "user")


def test_a_missing_mpp_is_an_error_that_says_the_way_out(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "field.png", dpi=(72, 72))
    slide = open_slide(tmp_path / "field.png")
    assert (slide.mpp_or_none, slide.mpp_source) == (None, "none")
    np.testing.assert_array_equal(slide.read_region((0, 0), (200, 150)), PIXELS)
    with pytest.raises(MissingMppError, match=r"field\.png: no mpp.*open_slide\(path, mpp=\.\.\.\).*--mpp"):
        _ = slide.mpp
    with pytest.raises(MissingMppError):
        slide.read_region((0, 0), (10, 10), mpp=1.0)


def test_pixels_are_never_enlarged():
    with pytest.raises(SlideError, match=r"finest level has 0\.5"):
        open_slide(PIXELS, mpp=0.5).read_region((0, 0), (10, 10), mpp=0.25)


def test_pixels_that_are_not_square_are_refused(tmp_path):
    path = write_pyramid(tmp_path / "anisotropic.tif", PIXELS, mpp=0.25, mpp_y=0.5, factors=(1,))
    with pytest.raises(SlideError, match=r"not square.*0\.25 µm wide, 0\.5 µm high"):
        open_slide(path)
    assert open_slide(path, mpp=0.25).mpp == 0.25


def test_a_printers_resolution_is_no_microscopes(tmp_path):
    tifffile.imwrite(
        tmp_path / "print.tif", PIXELS, photometric="rgb", resolution=(72, 72), resolutionunit="INCH"
    )
    assert open_slide(tmp_path / "print.tif").mpp_source == "none"


def test_plain_tiff_takes_its_resolution_tags(tmp_path):
    options = {"photometric": "rgb", "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "plain.tif", PIXELS, **options)
    slide = open_slide(tmp_path / "plain.tif")
    assert slide.mpp == pytest.approx(0.5)
    assert slide.mpp_source == "TIFF resolution tags"
    np.testing.assert_array_equal(slide.read_region((0, 0), (200, 150)), PIXELS)


@pytest.mark.parametrize("mpp", [0, -1, float("nan")])
def test_an_impossible_mpp_is_refused(mpp):
    with pytest.raises(SlideError, match="positive number of microns"):
        open_slide(PIXELS, mpp=mpp)


def test_truncated_pyramids_keep_an_integer_downsample(tmp_path):
    path = write_pyramid(tmp_path / "odd.tif", RNG.integers(0, 256, (203, 405, 3), dtype=np.uint8))
    assert [level.downsample for level in open_slide(path).levels] == [1, 4]


# Sharing ---------------------------------------------------------------------------------------------------------


def _sum_of_region(slide):
    return int(slide.read_region((64, 64), (200, 200), mpp=1.0).sum())


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_a_slide_works_in_other_processes(pyramid_path, start):
    slide = open_slide(pyramid_path)
    expected = _sum_of_region(slide)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(start)) as pool:
        assert list(pool.map(_sum_of_region, [slide] * 4)) == [expected] * 4
    assert _sum_of_region(slide) == expected


def test_a_pickled_slide_is_the_same_slide(pyramid_path):
    slide = open_slide(pyramid_path, mpp=0.4)
    back = pickle.loads(pickle.dumps(slide))
    assert (back.mpp, back.mpp_source, back.levels, back.name) == (0.4, "user", slide.levels, "pyramid")
    assert _sum_of_region(back) == _sum_of_region(slide)
    array_slide = pickle.loads(pickle.dumps(open_slide(PIXELS, mpp=0.5)))
    np.testing.assert_array_equal(array_slide.read_region((0, 0), (200, 150)), PIXELS)


def test_many_threads_read_the_same_pixels(pyramid_path):
    slide = open_slide(pyramid_path)
    places = [(int(x), int(y)) for x, y in RNG.integers(0, 500, (64, 2))]
    alone = [slide.read_region(place, (50, 50)) for place in places]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda place: slide.read_region(place, (50, 50)), places))
    np.testing.assert_array_equal(alone, together)


def test_a_closed_slide_opens_again(pyramid_path):
    with open_slide(pyramid_path) as slide:
        expected = _sum_of_region(slide)
    assert _sum_of_region(slide) == expected


# Bad input -------------------------------------------------------------------------------------------------------


def test_what_is_no_slide_says_so_in_one_line(tmp_path, pyramid_path):
    (tmp_path / "empty.svs").touch()
    (tmp_path / "text.svs").write_text("not a slide")
    jpeg = tmp_path / "cut.jpg"
    Image.fromarray(PIXELS).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:3000])
    cut = tmp_path / "cut.tif"
    cut.write_bytes(pyramid_path.read_bytes()[:2000])
    for source, message in [
        (tmp_path / "absent.svs", "no such file"),
        (tmp_path, "a folder, not a slide"),
        (tmp_path / "empty.svs", "empty"),
        (tmp_path / "text.svs", "neither a slide format"),
        (jpeg, "damaged image"),
        (cut, "truncated"),
    ]:
        with pytest.raises(SlideError, match=message) as caught:
            open_slide(source)
        assert "\n" not in str(caught.value)


def test_a_slide_damaged_further_in_says_where(tmp_path):
    noise = RNG.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    path = write_pyramid(tmp_path / "damaged.tif", noise, factors=(1,), compression="jpeg")
    data = bytearray(path.read_bytes())
    data[20_000:60_000] = bytes(40_000)
    path.write_bytes(data)
    with pytest.raises(SlideError, match=r"damaged\.tif: damaged at level 0"):
        open_slide(path).read_region((0, 0), (512, 512))


@pytest.mark.parametrize("shape", [(10, 10), (10, 10, 4), (0, 10, 3)])
def test_arrays_must_be_rgb(shape):
    with pytest.raises(SlideError, match="uint8 RGB"):
        open_slide(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (2.5, 3)])
def test_a_size_that_is_no_size(size):
    with pytest.raises(ValueError, match="positive whole numbers"):
        open_slide(PIXELS).read_region((0, 0), size)


def test_a_level_that_is_not_there():
    with pytest.raises(ValueError, match="no level 3"):
        open_slide(PIXELS).read_region((0, 0), (5, 5), level=3)
    with pytest.raises(ValueError, match="not both"):
        open_slide(PIXELS, mpp=1).read_region((0, 0), (5, 5), level=0, mpp=1)


def test_transparency_shows_white(tmp_path):
    rgba = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    rgba[:10, :10, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    got = open_slide(tmp_path / "alpha.png").read_region((0, 0), (200, 150))
    assert (got[:10, :10] == 255).all()
    np.testing.assert_array_equal(got[10:], PIXELS[10:])


# Real slides -----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_real_aperio_slide(real_slide_path):
    slide, oracle = open_slide(real_slide_path), openslide.OpenSlide(str(real_slide_path))
    assert slide.dimensions == oracle.dimensions == (2220, 2967)
    assert slide.mpp == 0.499
    assert slide.magnification == 20
    assert set(slide.associated_images) == {"label", "macro", "thumbnail"}
    assert slide.associated_images["macro"].shape == (431, 1280, 3)
    expected = np.asarray(oracle.read_region((500, 700), 0, (300, 200)))[..., :3]
    np.testing.assert_array_equal(slide.read_region((500, 700), (300, 200)), expected)


@pytest.mark.real
def test_a_real_slide_without_mpp(no_mpp_slide_path):
    with pytest.raises(MissingMppError, match="TCGA-CR-7395"):
        _ = open_slide(no_mpp_slide_path).mpp
    slide = open_slide(no_mpp_slide_path, mpp=0.5)
    assert slide.levels[1].mpp == 1.0
    fine, coarse = (
        slide.read_region((1000, 1000), (64, 64), level=0),
        slide.read_region((1000, 1000), (32, 32), mpp=1.0),
    )
    halved = open_slide(fine, mpp=0.5).read_region((0, 0), (32, 32), mpp=1.0)
    assert np.abs(halved.astype(int) - coarse).mean() < 6


@pytest.mark.real
def test_broken_files_of_other_projects(real_data):
    for name in ["openslide_fixtures/unopenable.tiff", "pathml_small_dicom.dcm", "pathml_smalltif.tif"]:
        with pytest.raises(SlideError, match=name.split("/")[-1]):
            open_slide(real_data / "slides" / name)
    unreadable = open_slide(real_data / "slides" / "openslide_fixtures" / "unreadable.svs")
    with pytest.raises(SlideError, match="damaged at level 0"):
        unreadable.read_region((0, 0), unreadable.dimensions)
