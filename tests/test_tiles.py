"""Tiles: decoded directly, the pixels are those of OpenSlide; where they cannot be, OpenSlide reads or an error says where."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from pathkit.slide import SlideError, _OpenSlideReader, open_slide
from pathkit.tiles import CACHE, DCT_TOLERANCE, DECODER_TOLERANCE, JpegTiles, TileCache

RNG = np.random.default_rng(3)


def stained(rows, cols, seed=0):
    """Smooth blobs of two colours on white, with grain: compresses like tissue."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.normal(size=(rows, cols, 2)).astype(np.float32), (0, 0), 5) * 12
    density = np.clip(blobs, 0, 1.2) @ np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)
    grain = rng.normal(0, 1.0, (rows, cols, 3))
    return np.clip(245 * 10**-density + grain, 0, 255).astype(np.uint8)


def write_jpeg_pyramid(
    path, pixels, *, tile=256, factors=(1, 4), photometric="rgb", subsampling=None, quality=85
):
    compression = {"level": quality} | ({"outcolorspace": "ycbcr"} if photometric == "ycbcr" else {})
    with tifffile.TiffWriter(path) as tiff:
        for factor in factors:
            size = (pixels.shape[1] // factor, pixels.shape[0] // factor)
            tiff.write(
                cv2.resize(pixels, size, interpolation=cv2.INTER_AREA),
                tile=(tile, tile),
                photometric=photometric,
                subsampling=subsampling,
                compression="jpeg",
                compressionargs=compression,
                subfiletype=0 if factor == 1 else 1,
                resolution=(2e4 / factor, 2e4 / factor),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


@pytest.fixture(scope="module")
def jpeg_path(tmp_path_factory):
    """1037 x 805 px: no side is a multiple of a tile, of a DCT block, or of the factor between levels."""
    return write_jpeg_pyramid(tmp_path_factory.mktemp("jpeg") / "jpeg.tif", stained(805, 1037))


@pytest.fixture(scope="module")
def even_path(tmp_path_factory):
    """1040 x 808 px: OpenSlide, too, finds level 1 reduced by exactly 4."""
    return write_jpeg_pyramid(tmp_path_factory.mktemp("jpeg") / "even.tif", stained(808, 1040))


def is_direct(slide, level=0):
    return slide._open()._is_direct(level)


def differences(a, b):
    return np.abs(a.astype(int) - b)


# The same pixels -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    x=st.integers(-300, 1300), y=st.integers(-300, 1100), level=st.integers(0, 1), size=st.integers(1, 400)
)
def test_any_rectangle_is_what_openslide_reads(jpeg_path, even_path, x, y, level, size):
    path = even_path if level else jpeg_path
    fast, plain = open_slide(path), open_slide(path, direct=False)
    if level:
        x, y = (4 * (v // 4) for v in (x, y))  # OpenSlide interpolates between the pixels of level 1
    a, b = (s.read_region((x, y), (size, size // 2 + 1), level=level) for s in (fast, plain))
    assert is_direct(fast, level)
    assert not is_direct(plain, level)
    assert differences(a, b).max() <= DECODER_TOLERANCE


@pytest.mark.parametrize("tile", [240, 256, 512])
@pytest.mark.parametrize(
    ("photometric", "subsampling"), [("rgb", None), ("ycbcr", (1, 1)), ("ycbcr", (2, 2))]
)
def test_tile_sizes_and_colours_that_scanners_write(tmp_path, tile, photometric, subsampling):
    path = tmp_path / "slide.tif"
    write_jpeg_pyramid(path, stained(700, 900), tile=tile, photometric=photometric, subsampling=subsampling)
    fast, plain = open_slide(path), open_slide(path, direct=False)
    a, b = (s.read_region((-10, 33), (930, 700)) for s in (fast, plain))
    assert is_direct(fast)
    assert differences(a, b).max() <= DECODER_TOLERANCE


@settings(max_examples=40)
@given(x=st.floats(0, 700), y=st.floats(0, 500), step=st.floats(1.01, 3.9))
def test_resampled_reads_agree_with_the_plain_path(even_path, x, y, step):
    fast, plain = open_slide(even_path), open_slide(even_path, direct=False)
    a, b = (s.read_region((x, y), (90, 70), mpp=0.5 * step) for s in (fast, plain))
    assert step in (2, 3) or differences(a, b).max() <= DECODER_TOLERANCE


@pytest.fixture(scope="module")
def one_level_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("jpeg") / "one_level.tif"
    return write_jpeg_pyramid(path, stained(805, 1037), factors=(1,))


@pytest.mark.parametrize("step", [2, 4, 8, 16, 6])
@pytest.mark.parametrize("corner", [(0, 0), (-48, 96), (960, 720), (5, 3)])
def test_the_decoders_means_are_within_the_stated_tolerance_to_the_edges(one_level_path, step, corner):
    fast, plain = open_slide(one_level_path), open_slide(one_level_path, direct=False)
    a, b = (s.read_region(corner, (40, 40), mpp=fast.mpp * step) for s in (fast, plain))
    assert fast._open().factors(0) == (8, 4, 2)
    assert differences(a, b).mean() <= DCT_TOLERANCE[0]
    assert differences(a, b).max() <= 2 * DCT_TOLERANCE[1]
    if corner == (5, 3):  # squares that are not the decoder's
        assert differences(a, b).max() <= DECODER_TOLERANCE


@settings(max_examples=40)
@given(x=st.integers(-40, 1000), y=st.integers(-40, 780), step=st.sampled_from([2, 3, 4, 8, 12]))
def test_four_quarters_equal_the_whole_also_by_the_decoder(one_level_path, x, y, step):
    slide = open_slide(one_level_path)
    mpp = slide.mpp * step
    whole = slide.read_region((x, y), (24, 16), mpp=mpp)
    parts = [
        [slide.read_region((x + 12 * step * i, y + 8 * step * j), (12, 8), mpp=mpp) for i in (0, 1)]
        for j in (0, 1)
    ]
    np.testing.assert_array_equal(whole, np.vstack([np.hstack(row) for row in parts]))


def test_sharp_noise_is_left_to_the_documented_mean(tmp_path):
    noise = RNG.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    slide = open_slide(write_jpeg_pyramid(tmp_path / "noise.tif", noise, factors=(1,)))
    assert is_direct(slide)
    assert 2 not in slide._open().factors(0)
    plain = open_slide(tmp_path / "noise.tif", direct=False)
    a, b = (s.read_region((0, 0), (256, 256), mpp=2 * s.mpp) for s in (slide, plain))
    assert differences(a, b).max() <= DECODER_TOLERANCE


def test_a_level_whose_downsample_is_no_whole_number(tmp_path):
    pixels = stained(900, 1100)
    path = tmp_path / "odd.tif"
    with tifffile.TiffWriter(path) as tiff:
        for size in ((1100, 900), (271, 222)):
            tiff.write(
                cv2.resize(pixels, size, interpolation=cv2.INTER_AREA),
                tile=(128, 128),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(size[0] < 1100),
                metadata=None,
            )
    fast, plain = open_slide(path), open_slide(path, direct=False)
    assert is_direct(fast, 1)
    a, b = (s.read_region((0, 0), (271, 222), level=1) for s in (fast, plain))
    assert differences(a, b).max() <= DECODER_TOLERANCE


def test_batches_are_the_same_by_any_number_of_threads(jpeg_path):
    table = pd.DataFrame({"x_l0": RNG.integers(-50, 1000, 90), "y_l0": RNG.integers(-50, 800, 90)})
    for mpp in (0.5, 0.5 * 1.002, 1.0, 2.0):
        patches = table.assign(size_px=64, mpp=mpp)
        slide = open_slide(jpeg_path)
        expected = np.stack(
            [slide.read_region(xy, (64, 64), mpp=mpp) for xy in table.itertuples(index=False, name=None)]
        )
        for threads in (1, 2, 4):
            np.testing.assert_array_equal(slide.read_patches(patches, threads=threads), expected)


@pytest.mark.parametrize("step", [1, 1.04, 2, 2.5, 4, 8, 13.7, 16])
@pytest.mark.parametrize("band", [8_000_000, 3000])
def test_batches_are_the_regions_also_by_the_decoders_means_and_at_the_edges(
    one_level_path, step, band, monkeypatch
):
    monkeypatch.setattr("pathkit.slide.BAND_PIXELS", band)
    slide = open_slide(one_level_path)
    width, height = slide.dimensions
    size, end = 24, int(np.ceil(24 * step))
    x = [
        *RNG.integers(-20, width, 20),
        *(8 * RNG.integers(0, width // 8, 20)),
        0,
        width - end,
        width // 8 * 8 - end,
    ]
    y = [
        *RNG.integers(-20, height, 20),
        *(8 * RNG.integers(0, height // 8, 20)),
        0,
        height - end,
        height // 8 * 8 - end,
    ]
    patches = pd.DataFrame({"x_l0": x, "y_l0": y, "size_px": size, "mpp": slide.mpp * step})
    expected = [slide.read_region(xy, (size, size), mpp=slide.mpp * step) for xy in zip(x, y, strict=True)]
    for threads in (1, 3):
        CACHE.forget()
        np.testing.assert_array_equal(slide.read_patches(patches, threads=threads), expected)
        turned = np.zeros((len(x), size, 3, size), np.uint8).transpose(0, 1, 3, 2)  # not contiguous
        np.testing.assert_array_equal(slide.read_patches(patches, out=turned, threads=threads), expected)
    np.testing.assert_array_equal(slide.read_patches(patches[-1:]), expected[-1:])


def test_patches_that_are_tiles_are_decoded_where_they_belong(jpeg_path):
    slide = open_slide(jpeg_path)
    wide, high = slide._open()._tiles.levels[0].tile
    assert wide == high
    x, y = (v.ravel() for v in np.meshgrid(np.arange(0, 1100, wide), np.arange(0, 900, high)))
    patches = pd.DataFrame({"x_l0": x, "y_l0": y, "size_px": wide, "mpp": slide.mpp})
    expected = [slide.read_region(xy, (wide, high), mpp=slide.mpp) for xy in zip(x, y, strict=True)]
    for kept in (True, False):
        if not kept:
            CACHE.forget()
        out = np.zeros((len(x), high, wide, 3), np.uint8)
        assert slide.read_patches(patches, out=out, threads=2) is out
        np.testing.assert_array_equal(out, expected)
        twice = slide.read_patches(pd.concat([patches[:3]] * 2))  # one tile, two patches
        np.testing.assert_array_equal(twice, expected[:3] * 2)


def test_a_tile_that_many_patches_need_is_decoded_once(one_level_path, monkeypatch):
    slide = open_slide(one_level_path)
    slide.read_region((0, 0), (8, 8))
    decoded, decode = [], JpegTiles.decode
    monkeypatch.setattr(
        JpegTiles,
        "decode",
        lambda self, level, index, *rest: decoded.append(index) or decode(self, level, index, *rest),
    )
    monkeypatch.setattr(CACHE, "max_bytes", 1)  # nothing is kept
    x, y = (v.ravel() for v in np.meshgrid(np.arange(10, 500, 40), np.arange(10, 400, 40)))
    slide.read_patches(pd.DataFrame({"x_l0": x, "y_l0": y, "size_px": 40, "mpp": slide.mpp}), threads=2)
    assert len(decoded) == len(set(decoded)) > 4


# What is not JPEG tiles, or not whole -----------------------------------------------------------------------------


def test_other_compressions_go_through_openslide(tmp_path):
    path = tmp_path / "deflate.tif"
    tifffile.imwrite(path, stained(300, 300), tile=(128, 128), photometric="rgb", compression="deflate")
    slide = open_slide(path)
    assert not is_direct(slide)
    np.testing.assert_array_equal(slide.read_region((0, 0), (300, 300)), tifffile.imread(path))


def test_a_decoder_that_disagrees_is_not_used(jpeg_path, monkeypatch, tmp_path):
    jpeg_path = shutil.copy(jpeg_path, tmp_path)  # a file that has not been tested yet
    monkeypatch.setattr("pathkit.tiles._is_jpeg_tiled", lambda page: True)
    real = __import__("imagecodecs").jpeg8_decode
    monkeypatch.setattr("imagecodecs.jpeg8_decode", lambda *a, **k: 255 - real(*a, **k))
    slide = open_slide(jpeg_path)
    assert not is_direct(slide)
    plain = open_slide(jpeg_path, direct=False)
    np.testing.assert_array_equal(
        slide.read_region((9, 9), (300, 300)), plain.read_region((9, 9), (300, 300))
    )


def test_a_file_is_compared_once_and_again_when_it_has_changed(jpeg_path, monkeypatch, tmp_path):
    path = shutil.copy(jpeg_path, tmp_path)
    compared = []
    real = _OpenSlideReader._equals_openslide
    monkeypatch.setattr(
        _OpenSlideReader, "_equals_openslide", lambda self, level: compared.append(level) or real(self, level)
    )
    assert is_direct(open_slide(path))
    assert is_direct(open_slide(path))
    assert compared == [0]
    shutil.copy(jpeg_path, path)
    assert is_direct(open_slide(path))
    assert compared == [0, 0]


def overwrite_tag(path, tag, index, value):
    """Change one entry of a page's array tag in place."""
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[0].tags[tag]
        place, size = entry.valueoffset, entry.valuebytecount // entry.count
    data = bytearray(path.read_bytes())
    data[place + index * size : place + (index + 1) * size] = int(value).to_bytes(size, "little")
    path.write_bytes(data)


def test_a_tile_that_the_scanner_left_out_is_what_openslide_shows(tmp_path):
    path = write_jpeg_pyramid(tmp_path / "gap.tif", stained(805, 1037), factors=(1,))
    overwrite_tag(path, "TileByteCounts", 6, 0)
    fast, plain = open_slide(path), open_slide(path, direct=False)
    assert is_direct(fast)
    try:
        expected = plain.read_region((200, 200), (500, 400))
    except SlideError:
        with pytest.raises(SlideError, match=r"gap\.tif: damaged at level 0"):
            fast.read_region((200, 200), (500, 400))
    else:
        assert differences(fast.read_region((200, 200), (500, 400)), expected).max() <= DECODER_TOLERANCE


@pytest.mark.parametrize("damage", ["zeros", "cut", "swapped"])
def test_a_damaged_tile_is_named_and_the_others_are_read(tmp_path, damage):
    path = write_jpeg_pyramid(tmp_path / "damaged.tif", stained(805, 1037))
    whole = open_slide(path, direct=False).read_region((0, 0), (256, 256))
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[13], tiff.pages[0].databytecounts[13]
    data = bytearray(path.read_bytes())
    if damage == "zeros":
        data[offset : offset + count] = bytes(count)
        path.write_bytes(data)
    elif damage == "cut":
        overwrite_tag(path, "TileOffsets", 13, len(data) - 10)
    else:
        other = cv2.imencode(".jpg", stained(64, 64))[1].tobytes()
        data[offset : offset + len(other)] = other
        path.write_bytes(data)
    slide = open_slide(path)
    assert differences(slide.read_region((0, 0), (256, 256)), whole).max() <= DECODER_TOLERANCE
    with pytest.raises(SlideError, match=r"damaged\.tif: damaged at level 0, x 800, y 600 \(50 x 50 px\)"):
        slide.read_region((800, 600), (50, 50))
    batch = pd.DataFrame({"x_l0": [0, 800], "y_l0": [0, 600], "size_px": 50, "mpp": slide.mpp})
    with pytest.raises(SlideError, match=r"damaged\.tif: damaged at level 0, x \d+, y \d+ \(\d+ x \d+ px\)"):
        slide.read_patches(batch, threads=2)
    np.testing.assert_array_equal(slide.read_patches(batch[:1])[0], slide.read_region((0, 0), (50, 50)))
    assert differences(slide.read_region((0, 0), (256, 256)), whole).max() <= DECODER_TOLERANCE


# Sharing ---------------------------------------------------------------------------------------------------------


def _sum(slide):
    return int(slide.read_region((100, 100), (500, 400)).sum())


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_direct_reads_in_other_processes_and_after_pickling(jpeg_path, start):
    slide = open_slide(jpeg_path)
    expected = _sum(slide)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(start)) as pool:
        assert list(pool.map(_sum, [slide] * 4)) == [expected] * 4
    back = pickle.loads(pickle.dumps(slide))
    assert _sum(back) == expected
    assert is_direct(back)
    slide.close()
    assert _sum(slide) == expected


def test_many_threads_read_one_handle(jpeg_path):
    slide = open_slide(jpeg_path)
    places = [(int(x), int(y)) for x, y in RNG.integers(0, 700, (64, 2))]
    alone = [slide.read_region(place, (90, 90)) for place in places]
    CACHE.forget()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda place: slide.read_region(place, (90, 90)), places))
    np.testing.assert_array_equal(alone, together)


def cached(cache, key, make):
    """A copy of what the cache shows."""
    seen = []
    cache.use(key, make, lambda tile: seen.append(tile.copy()))
    return seen[0]


def test_the_cache_is_bounded_and_makes_a_tile_once():
    cache = TileCache(10 * 300)
    made = []

    def tile(key):
        def make(spare):
            made.append(key)
            out = np.empty((10, 10, 3), np.uint8) if spare is None else spare
            out[:] = key[1]
            return out

        return cached(cache, key, make)

    for n in range(50):
        assert (tile((0, n)) == n).all()
        assert cache.bytes <= cache.max_bytes
    assert (tile((0, 45)) == 45).all()
    assert made.count((0, 45)) == 1
    assert (tile((0, 0)) == 0).all()
    assert made.count((0, 0)) == 2
    cache.drop(0)
    assert cache.bytes == 0
    barrier = threading.Barrier(4)

    def at_once(_):
        barrier.wait()
        return tile((1, 7))

    with ThreadPoolExecutor(4) as pool:
        assert all((t == 7).all() for t in pool.map(at_once, range(4)))
    assert made.count((1, 7)) == 1


def test_a_tile_that_is_looked_at_is_not_overwritten():
    cache = TileCache(2 * 300)

    def make(value, spare):
        out = np.empty((10, 10, 3), np.uint8) if spare is None else spare
        out[:] = value
        return out

    def look(tile):
        for n in range(20):
            cached(cache, ("other", n), partial(make, n + 100))
        assert (tile == 7).all()

    cache.use(("one", 0), partial(make, 7), look)


def test_a_tile_that_fails_is_tried_again():
    cache = TileCache(1000)

    def fail(spare):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cached(cache, "a", fail)
    assert cached(cache, "a", lambda spare: np.zeros((1, 1, 3), np.uint8)).shape == (1, 1, 3)


# Real slides -----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_real_aperio_slide_reads_the_same(real_slide_path):
    fast, plain = open_slide(real_slide_path), open_slide(real_slide_path, direct=False)
    assert is_direct(fast)
    for corner, size, step in [
        ((0, 0), (480, 480), 1),
        ((333, 1111), (500, 300), 1),
        ((2000, 2800), (400, 300), 1),
    ]:
        a, b = (s.read_region(corner, size, mpp=fast.mpp * step) for s in (fast, plain))
        assert differences(a, b).max() <= DECODER_TOLERANCE
    for step in (2, 4, 8):
        a, b = (s.read_region((80, 160), (120, 160), mpp=fast.mpp * step) for s in (fast, plain))
        assert differences(a, b).mean() <= DCT_TOLERANCE[0]
    a, b = (s.read_region((77, 99), (200, 160), mpp=0.5) for s in (fast, plain))
    np.testing.assert_array_equal(a, b)


@pytest.mark.real
def test_a_real_jpeg_2000_slide_goes_through_openslide(no_mpp_slide_path):
    slide = open_slide(no_mpp_slide_path, mpp=0.5)
    assert not is_direct(slide)
    plain = open_slide(no_mpp_slide_path, mpp=0.5, direct=False)
    np.testing.assert_array_equal(
        slide.read_region((900, 900), (100, 100)), plain.read_region((900, 900), (100, 100))
    )


def test_memory_for_tiles_is_handed_out_once(monkeypatch):
    monkeypatch.setattr("pathkit.tiles.SLAB_BYTES", 3 * 300)
    cache = TileCache(10 * 300)
    tiles = [cache.fresh((10, 10, 3)) for _ in range(7)] + [cache.fresh((40, 10, 3))]
    for n, tile in enumerate(tiles):
        tile[:] = n
    assert [(t == n).all() for n, t in enumerate(tiles)] == [True] * 8


@pytest.mark.parametrize("shape", [(256, 256, 3), (240, 240, 3), (7, 5, 3)])
def test_memory_for_tiles_begins_where_the_decoder_writes_through_the_cache(shape):
    cache = TileCache(10_000_000)
    tiles = [cache.fresh(shape) for _ in range(40)]
    assert {tile.ctypes.data % 32 for tile in tiles} == {16}
    assert all(tile.flags.c_contiguous and tile.shape == shape for tile in tiles)
