"""Tiles: the JPEG tiles of a TIFF pyramid, decoded without a detour.

OpenSlide spends more time around a JPEG tile than in it. Here a tile is found by its offset (tifffile), read by one
``pread``, decoded by libjpeg-turbo with the level's tables (imagecodecs) and kept in a cache that all slides and threads
of the process share. `slide.Slide` uses this where a level is stored so, after comparing a few tiles with OpenSlide, and
OpenSlide everywhere else.

A tile can also be decoded at 1/2, 1/4 or 1/8 by leaving out its higher frequencies. That is nearly the mean of each 2x2,
4x4 or 8x8 square; a level may use it only where the difference, measured on the same few tiles, is within `DCT_TOLERANCE`.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["CACHE", "JpegLevel", "JpegTiles", "TileCache", "TileError"]

RGB = NDArray[np.uint8]

#: Decoded tiles kept in a process: two rows of tiles of a slide 80,000 px wide.
CACHE_BYTES = 128_000_000
#: Memory is asked for in pieces of this size, which the system makes of large pages.
SLAB_BYTES = 16_000_000
#: Where rows begin at multiples of 32 bytes, libjpeg-turbo writes past the processor's cache, which takes a quarter longer and
#: leaves the pixels far away for who copies them; tiles begin 16 bytes after one.
ROW_BYTES, ROW_START = 32, 16
#: Fractions of the side at which libjpeg decodes, and what cv2 calls them (with RGB order).
_REDUCED = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}
#: Grey levels by which a reduced tile may differ from the mean of its squares: on average, and in 99.9% of the values.
DCT_TOLERANCE = (2.0, 12.0)
#: Grey levels between two decoders of one JPEG.
DECODER_TOLERANCE = 2
#: Says that the three components are R, G, B and not Y, Cb, Cr; spliced in where the TIFF says so and the JPEG does not.
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


class TileError(ValueError):
    """A tile that cannot be read or decoded.

    Attributes
    ----------
    box : (x, y, width, height)
        Of the tile, in pixels of its level; zeros where it is not known.
    """

    box: tuple[int, int, int, int] = (0, 0, 0, 0)


class _Entry:
    __slots__ = ("making", "tile", "users")

    def __init__(self) -> None:
        self.making = threading.Lock()
        self.tile: RGB | None = None
        self.users = 0


class TileCache:
    """Least recently used tiles, up to a number of bytes; a tile that two threads want at once is made once.

    The memory of a dropped tile is filled again, which spares the page faults of a fresh array; so a tile may be looked at
    only within `use`.

    Parameters
    ----------
    max_bytes : int
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.forget()

    def forget(self) -> None:
        """Drop everything, locks included: for a forked child, whose parent's threads are gone."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._spare: list[RGB] = []
        self._slabs: dict[tuple[int, ...], list[RGB]] = {}
        self.bytes = 0

    def use(self, key: Hashable, make: Callable[[RGB | None], RGB], look: Callable[[RGB], Any]) -> None:
        """Call ``look(tile)`` with the tile of this key.

        Parameters
        ----------
        key : hashable
        make : callable
            ``make(spare)`` gives the tile where it is not kept, in the array `spare` if that is one and has its shape.
        look : callable
            Must neither change the tile nor keep it.
        """
        spare = None
        with self._lock:
            entry = self._kept.get(key)
            fresh = entry is None
            if entry is None:
                entry = self._kept[key] = _Entry()
                entry.making.acquire()
                spare = self._spare.pop() if self._spare else None
            else:
                self._kept.move_to_end(key)
            entry.users += 1
        try:
            if fresh:
                try:
                    entry.tile = make(spare)
                finally:
                    entry.making.release()
            elif entry.tile is None:
                with entry.making:
                    pass
            look(make(None) if entry.tile is None else entry.tile)
        finally:
            with self._lock:
                entry.users -= 1
                if fresh and self._kept.get(key) is entry:
                    if entry.tile is None:
                        del self._kept[key]
                    else:
                        self.bytes += entry.tile.nbytes
                        self._make_room()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def fresh(self, shape: tuple[int, ...]) -> RGB:
        """Memory for a tile, not yet written."""
        size = int(np.prod(shape))
        step = -(-size // ROW_BYTES) * ROW_BYTES
        with self._lock:
            left = self._slabs.setdefault(shape, [])
            if not left:
                n = max(1, SLAB_BYTES // step)
                slab = np.empty(n * step + ROW_BYTES, np.uint8)
                first = (ROW_START - slab.ctypes.data) % ROW_BYTES
                places = range(first, first + n * step, step)
                left += [slab[place : place + size].reshape(shape) for place in places]
            return left.pop()

    def drop(self, source: int) -> None:
        """Forget the tiles whose key starts with `source` and that nobody is looking at."""
        with self._lock:
            for key in [k for k, e in self._kept.items() if cast(Any, k)[0] == source and not e.users]:
                self.bytes -= cast(RGB, self._kept.pop(key).tile).nbytes

    def _make_room(self) -> None:
        while self.bytes > self.max_bytes:
            oldest = next((k for k, e in self._kept.items() if not e.users), None)
            if oldest is None:
                return
            tile = cast(RGB, self._kept.pop(oldest).tile)
            self.bytes -= tile.nbytes
            if len(self._spare) < 4:
                self._spare.append(tile)


#: Shared by all slides of this process.
CACHE = TileCache(CACHE_BYTES)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CACHE.forget)


@dataclass(frozen=True)
class JpegLevel:
    """Where the tiles of one level are, and how they are to be decoded.

    Attributes
    ----------
    size : (width, height)
        Of the level.
    tile : (width, height)
    across : int
        Tiles in a row.
    offsets, counts : (T,) int64
        Place and length of each tile's bytes in the file; length 0 where the scanner stored none.
    tables : bytes or None
        JPEG tables that all tiles share.
    colour : {"RGB", "YCBCR"}
        What the three components are.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    across: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tables: bytes | None
    colour: str

    def place(self, index: int) -> tuple[int, int]:
        """Top left pixel (x, y) of a tile."""
        return index % self.across * self.tile[0], index // self.across * self.tile[1]


class JpegTiles:
    """The JPEG-tiled levels of an open TIFF. Safe to share between threads; not between processes.

    Parameters
    ----------
    path : Path
    sizes : sequence of (width, height)
        Of the levels; a page of another size is no level.

    Attributes
    ----------
    levels : dict of int to JpegLevel
        Empty where no level is stored as JPEG tiles, or the file is no TIFF.
    """

    _numbers = itertools.count()

    def __init__(self, path: Path, sizes: Sequence[tuple[int, int]]):
        self.levels = _jpeg_levels(path, sizes)
        self._number = next(self._numbers)
        self._file = path.open("rb", buffering=0) if self.levels else None
        self._seek_lock = threading.Lock()

    def close(self) -> None:
        """Give back the file and the tiles that are kept."""
        if self._file is not None:
            self._file.close()
        CACHE.drop(self._number)

    def read(
        self,
        level: int,
        x: int,
        y: int,
        out: RGB,
        *,
        factor: int = 1,
        missing: Callable[[int, int, int, int, int], RGB],
    ) -> None:
        """Copy a rectangle that lies within the level into `out`.

        Parameters
        ----------
        level : int
        x, y : int
            Top left corner in pixels of the level divided by `factor`.
        out : (H, W, 3) uint8
            Filled.
        factor : {1, 2, 4, 8}
            Decode at this fraction of the side; must divide the tile.
        missing : callable
            ``missing(level, x, y, width, height)`` gives the pixels of a tile that the file does not hold.

        Raises
        ------
        TileError
            If a tile is cut short or cannot be decoded.
        """
        stored = self.levels[level]
        wide, high = stored.tile[0] // factor, stored.tile[1] // factor
        rows, cols = out.shape[:2]
        for r in range(y // high, (y + rows - 1) // high + 1):
            y0, y1 = max(y, r * high), min(y + rows, (r + 1) * high)
            for c in range(x // wide, (x + cols - 1) // wide + 1):
                x0, x1 = max(x, c * wide), min(x + cols, (c + 1) * wide)
                inside = np.s_[y0 - r * high : y1 - r * high, x0 - c * wide : x1 - c * wide]
                target = out[y0 - y : y1 - y, x0 - x : x1 - x]
                index = r * stored.across + c
                CACHE.use(
                    (self._number, level, factor, index),
                    partial(self._make, level, index, factor, missing),
                    partial(_copy_part, inside, target),
                )

    def read_patches(
        self,
        level: int,
        x: NDArray[np.int64],
        y: NDArray[np.int64],
        out: RGB,
        *,
        factor: int = 1,
        missing: Callable[[int, int, int, int, int], RGB],
        spread: Callable[[Callable[[Any], None], Sequence[Any]], None],
    ) -> None:
        """`read` of many rectangles of one size, tile by tile.

        A tile is decoded, or found, once, by one thread, and copied to all that need it while it lies in the processor's
        cache; one that is a rectangle by itself is decoded where it belongs. Rectangle by rectangle, unaligned ones would
        ask for each tile four times, and threads wait for each other.

        Parameters
        ----------
        x, y : (N,) int64
        out : (N, H, W, 3) uint8
            C-contiguous.
        spread : callable
            ``spread(work, tiles)`` calls ``work(tile)`` for each, in threads or not.

        Raises
        ------
        TileError
            As `read`; its ``box`` is the (x, y, width, height) of the tile in pixels of the level.
        """
        from pathkit.pieces import copy_pieces, lay_out

        stored = self.levels[level]
        wide, high = stored.tile[0] // factor, stored.tile[1] // factor
        height, width = out.shape[1:3]
        # Of a patch that is a tile by itself.
        whole = [0, high, 0, wide] * 2 if (height, width) == (high, wide) and factor == 1 else None

        def work(pieces: NDArray[np.int64]) -> None:
            index, patch, *piece = pieces[0].tolist()
            key = (self._number, level, factor, index)
            try:
                if len(pieces) == 1 and piece == whole and stored.counts[index] and key not in CACHE:
                    tile = self.decode(level, index, 1, out[patch])
                    if not np.may_share_memory(tile, out[patch]):
                        out[patch] = tile
                else:
                    CACHE.use(
                        key,
                        partial(self._make, level, index, factor, missing),
                        lambda tile: copy_pieces(pieces, tile, out),
                    )
            except TileError as error:
                error.box = (*stored.place(index), *stored.tile)
                raise

        spread(work, lay_out(x, y, (height, width), (wide, high), stored.across))

    def _make(
        self,
        level: int,
        index: int,
        factor: int,
        missing: Callable[[int, int, int, int, int], RGB],
        spare: RGB | None,
    ) -> RGB:
        stored = self.levels[level]
        if stored.counts[index]:
            shape = (stored.tile[1], stored.tile[0], 3)
            if factor == 1 and (spare is None or spare.shape != shape):
                spare = CACHE.fresh(shape)
            return self.decode(level, index, factor, spare)
        pixels = missing(level, *stored.place(index), *stored.tile)
        return pixels if factor == 1 else _area(pixels, factor)

    def decode(self, level: int, index: int, factor: int = 1, spare: RGB | None = None) -> RGB:
        """Decode one stored tile, (H, W, 3) uint8; into `spare` if that is of its shape.

        Raises
        ------
        TileError
            If its bytes are no tile.
        """
        import imagecodecs

        stored = self.levels[level]
        data = self._bytes(int(stored.offsets[index]), int(stored.counts[index]))
        shape = (stored.tile[1] // factor, stored.tile[0] // factor, 3)
        out = spare if spare is not None and spare.shape == shape else None
        pixels: Any
        try:
            if factor == 1:
                pixels = imagecodecs.jpeg8_decode(
                    data, tables=stored.tables, colorspace=stored.colour, outcolorspace="RGB", out=out
                )
            else:
                pixels = cv2.imdecode(np.frombuffer(_whole_jpeg(data, stored), np.uint8), _REDUCED[factor])
        except Exception as error:  # each decoder has kinds of its own; all mean that these bytes are no tile
            raise TileError(f"tile {index} cannot be decoded ({error})") from error
        if pixels is None or pixels.shape != shape:
            raise TileError(
                f"tile {index} decodes to {None if pixels is None else pixels.shape}, expected {shape}"
            )
        return pixels

    def telling(self, level: int) -> dict[int, RGB]:
        """Up to three tiles to compare with other readings: the richest, the median and the first of those that decode."""
        counts = self.levels[level].counts
        stored = np.flatnonzero(counts)
        order = stored[np.argsort(-counts[stored], kind="stable")]
        tiles: dict[int, RGB] = {}
        for candidates in (order[:4], order[len(order) // 2 :][:4], stored[:4]):
            for index in map(int, candidates):
                try:
                    tiles[index] = self.decode(level, index)
                except TileError:  # whoever reads it will be told
                    continue
                break
        return tiles

    def good_factors(self, level: int) -> tuple[int, ...]:
        """Of 8, 4, 2, the fractions whose tiles stay within `DCT_TOLERANCE` of the means of their squares."""
        stored, tiles = self.levels[level], self.telling(level)
        good = []
        for factor in (8, 4, 2):
            if stored.tile[0] % factor or stored.tile[1] % factor or not tiles:
                continue
            differences = np.abs(
                [
                    self.decode(level, i, factor) - _area(tile, factor).astype(np.int16)
                    for i, tile in tiles.items()
                ]
            )
            mean, most = differences.mean(), np.percentile(differences, 99.9)
            if mean <= DCT_TOLERANCE[0] and most <= DCT_TOLERANCE[1]:
                good.append(factor)
        return tuple(good)

    def _bytes(self, offset: int, count: int) -> bytes:
        assert self._file is not None
        if hasattr(os, "pread"):
            data = os.pread(self._file.fileno(), count, offset)
        else:
            with self._seek_lock:
                self._file.seek(offset)
                data = self._file.read(count)
        if len(data) < count:
            raise TileError(f"the file ends within a tile, {count - len(data)} bytes short")
        return data


def _copy_part(inside: tuple[slice, slice], target: RGB, tile: RGB) -> None:
    target[:] = tile[inside]


def _area(pixels: RGB, factor: int) -> RGB:
    size = (pixels.shape[1] // factor, pixels.shape[0] // factor)
    return cast(RGB, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _whole_jpeg(data: bytes, stored: JpegLevel) -> bytes:
    """A tile with its level's tables and colours, as a JPEG that stands alone."""
    head = b"\xff\xd8" if stored.tables is None else stored.tables[:-2]  # without the end-of-image marker
    return head + (_ADOBE_RGB if stored.colour == "RGB" else b"") + data[2:]


def _jpeg_levels(path: Path, sizes: Sequence[tuple[int, int]]) -> dict[int, JpegLevel]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            found: list[Any] = list(tiff.pages)
            pages = {(p.imagewidth, p.imagelength): p for p in reversed(found) if _is_jpeg_tiled(p)}
            return {i: _jpeg_level(pages[size]) for i, size in enumerate(sizes) if size in pages}
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError):
        # No TIFF, or one that tifffile does not understand: OpenSlide reads it.
        return {}


def _is_jpeg_tiled(page: Any) -> bool:
    return bool(
        page.is_tiled
        and page.compression == 7
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == 1
        and page.photometric in (2, 6)
        and page.imagedepth == 1
    )


def _jpeg_level(page: Any) -> JpegLevel:
    width, height = page.imagewidth, page.imagelength
    across, down = -(-width // page.tilewidth), -(-height // page.tilelength)
    offsets, counts = (np.asarray(v, np.int64) for v in (page.dataoffsets, page.databytecounts))
    if len(offsets) != across * down or len(counts) != len(offsets):
        raise ValueError("as many tiles as the level needs are not there")
    return JpegLevel(
        (width, height),
        (page.tilewidth, page.tilelength),
        across,
        offsets,
        counts,
        page.jpegtables,
        "RGB" if page.photometric == 2 else "YCBCR",
    )
