"""Open a slide, whatever it is, and read any rectangle of it at any resolution.

Decisions
---------
* A read is addressed by its top left corner in level-0 pixels, its size in output pixels and its resolution in microns
  per pixel (mpp). Magnification is for people: it appears in `Slide.magnification` and nowhere else.
* One resampling for everything, an area average (box filter): an output pixel is the mean of the square that it covers
  on the slide. Its value therefore depends on that square alone, and a region read in parts equals the region read at
  once. The pixels averaged come from the coarsest level that is no coarser than what was asked for.
* mpp comes from the caller, else from the vendor's metadata, else from TIFF resolution tags, and `Slide.mpp_source`
  says which. It is never guessed from a magnification: objectives of one name differ by 15% between scanners.
* Levels stored as JPEG tiles are decoded by `tiles`, without OpenSlide, once a few tiles have been found equal; the pixels
  are the same within a decoder's rounding. Means over 2, 4 or 8 pixels are then taken by the JPEG decoder where its answer
  is close enough. ``open_slide(path, direct=False)`` reads everything by OpenSlide.
* A `Slide` holds no open handle when it is pickled or forked; each process opens its own at the first read. Within a
  process one handle serves all threads, since OpenSlide locks what it must.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from math import ceil, floor
from pathlib import Path
from typing import Any, Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from pathkit.geometry import Box, Frames
from pathkit.tiles import DECODER_TOLERANCE, JpegTiles, TileError

__all__ = ["Level", "MissingMppError", "Slide", "SlideError", "open_slide"]

RGB = NDArray[np.uint8]
Spread = Callable[[Callable[[Any], None], Sequence[Any]], None]

#: Microns per pixel that a microscope's scanner can have; a printer's 72 dpi (353 µm) lies outside.
PLAUSIBLE_MPP = (0.02, 50.0)
#: A level counts as fine enough when it is at most this much coarser than asked (0.2501 serves 0.25).
LEVEL_TOLERANCE = 1.005
#: Source pixels held at once by one read; larger regions are read in bands of rows.
BAND_PIXELS = 8_000_000
#: Plain images are decoded whole, so they are bounded (RGB bytes = 3 x this).
MAX_IMAGE_PIXELS = 500_000_000


class SlideError(ValueError):
    """A slide that cannot be opened or read; the message says why and what to do."""


class MissingMppError(SlideError):
    """Microns are needed and the slide does not carry its resolution."""


@dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    Attributes
    ----------
    index : int
        0 is the finest.
    width, height : int
        Pixels.
    downsample : float
        Relative to level 0, at least 1.
    mpp : float or None
        Microns per pixel of this level.
    """

    index: int
    width: int
    height: int
    downsample: float
    mpp: float | None


class PatchRows(Protocol):
    """Rows of a patch table: a DataFrame, or a mapping of column to array, which is quicker to look into."""

    def __getitem__(self, column: str, /) -> Any: ...


def open_slide(
    source: str | os.PathLike[str] | NDArray[np.uint8], *, mpp: float | None = None, direct: bool = True
) -> Slide:
    """Open a whole-slide image, a plain image, or an array.

    Parameters
    ----------
    source : path or (H, W, 3) uint8 array
        Any format of OpenSlide (SVS, NDPI, MRXS, SCN, BIF, VSI, DICOM, pyramidal TIFF, ...), a PNG, JPEG or TIFF
        image, or pixels in memory.
    mpp : float, optional
        Microns per level-0 pixel. Overrides what the file says; needed where it says nothing.
    direct : bool
        Decode JPEG tiles directly where that gives the pixels that OpenSlide gives, several times as fast.

    Returns
    -------
    Slide

    Raises
    ------
    SlideError
        If `source` does not exist, is empty, is damaged, or is nothing that can be read as a slide; or if its pixels
        are not square (mpp in x and y differ by more than 1%).

    Examples
    --------
    >>> slide = open_slide(np.full((512, 1024, 3), 255, np.uint8), mpp=0.5)
    >>> slide.dimensions, slide.mpp, slide.mpp_source
    ((1024, 512), 0.5, 'user')
    >>> slide.read_region((0, 0), (256, 128), mpp=2.0).shape
    (128, 256, 3)
    """
    if mpp is not None and not (np.isfinite(mpp) and mpp > 0):
        raise SlideError(f"open_slide: mpp must be a positive number of microns per pixel, got {mpp}.")
    if isinstance(source, np.ndarray):
        return Slide(_checked_pixels(source, "array"), mpp)
    return Slide(Path(source), mpp, direct=direct)


class Slide:
    """A slide that is open for reading; made by `open_slide`.

    Safe to share between threads, to pickle, and to use in forked or spawned processes. Also a context manager.

    Attributes
    ----------
    name : str
        File name without its suffix; ``"array"`` for pixels in memory.
    path : Path or None
    """

    def __init__(self, source: Path | RGB, mpp: float | None, *, direct: bool = True):
        self.path = source if isinstance(source, Path) else None
        self.name = source.stem if isinstance(source, Path) else "array"
        self._pixels = None if isinstance(source, Path) else source
        self._user_mpp = None if mpp is None else float(mpp)
        self._direct = direct
        self._lock = threading.Lock()
        self._reader: _Reader | None = None
        self._pid = -1
        reader = self._open()
        self._describe(reader)

    def _describe(self, reader: _Reader) -> None:
        """Keep what does not need the handle, so that a pickled slide answers without opening."""
        self.dimensions: tuple[int, int] = reader.level_dimensions[0]
        self.properties: Mapping[str, str] = reader.properties
        self._mpp, self.mpp_source = _resolve_mpp(self.name, self._user_mpp, reader)
        downsamples = tuple(_true_downsample(self.dimensions, size) for size in reader.level_dimensions)
        self.frames = Frames(self._mpp, downsamples)
        self.levels = tuple(
            Level(i, *size, ds, None if self._mpp is None else self._mpp * ds)
            for i, (size, ds) in enumerate(zip(reader.level_dimensions, downsamples, strict=True))
        )
        self.bounds: Box = reader.bounds
        self.magnification: float | None = reader.magnification

    # The handle ------------------------------------------------------------------------------------------------

    def _open(self) -> _Reader:
        """This process's reader; opened at first use, and again after a fork, a pickle or `close`."""
        with self._lock:
            if self._reader is None or self._pid != os.getpid():
                self._reader = (
                    _array_reader(self._pixels)
                    if self._pixels is not None
                    else _file_reader(self.path, self._direct)
                )
                self._pid = os.getpid()
            return self._reader

    def close(self) -> None:
        """Give the file handle back. A later read opens it again."""
        with self._lock:
            if self._reader is not None and self._pid == os.getpid():
                self._reader.close()
            self._reader = None

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"], state["_reader"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._reader = None

    def __repr__(self) -> str:
        width, height = self.dimensions
        mpp = "mpp unknown" if self._mpp is None else f"{self._mpp:.4g} µm/px ({self.mpp_source})"
        return f"<Slide {self.name}: {width} x {height} px, {len(self.levels)} levels, {mpp}>"

    # What it is ------------------------------------------------------------------------------------------------

    @property
    def mpp(self) -> float:
        """Microns per level-0 pixel.

        Raises
        ------
        MissingMppError
            If neither the file nor the caller gave it.
        """
        if self._mpp is None:
            label = self.path.name if self.path else self.name
            hint = "" if self.magnification is None else f" (the file says {self.magnification:g}x)"
            raise MissingMppError(
                f"{label}: no mpp in its metadata. Pass open_slide(path, mpp=...), or --mpp on the command line, if the"
                f" scanner's record gives it; pathkit does not guess it from the magnification{hint}."
            )
        return self._mpp

    @property
    def mpp_or_none(self) -> float | None:
        """Microns per level-0 pixel, or None where unknown."""
        return self._mpp

    @property
    def associated_images(self) -> Mapping[str, RGB]:
        """Label, macro and thumbnail images that the scanner stored, each (H, W, 3) uint8; read when asked for."""
        return _LazyImages(self)

    # Reading ---------------------------------------------------------------------------------------------------

    def read_region(
        self,
        location: tuple[float, float],
        size: tuple[int, int],
        *,
        mpp: float | None = None,
        level: int | None = None,
    ) -> RGB:
        """Read a rectangle.

        Parameters
        ----------
        location : (x, y)
            Top left corner in level-0 pixels. Fractions are honoured, negative numbers and places beyond the slide
            read as white.
        size : (width, height)
            Size of the result, in output pixels.
        mpp : float, optional
            Resolution of the result. The slide's own mpp must be known, and must not be coarser.
        level : int, optional
            Read the pixels of this level instead, 0 unless `mpp` is given.

        Returns
        -------
        (height, width, 3) uint8 array
            RGB. Pixel (r, c) is the mean of the square of side mpp that starts at ``location + (c, r) * mpp``.

        Raises
        ------
        MissingMppError
            If `mpp` is given and the slide's is unknown.
        SlideError
            If `mpp` is finer than the slide's (that would invent detail), or the file is damaged at this place.
        ValueError
            If `size` is not positive, or both `mpp` and `level` are given.
        """
        width, height = _checked_size(size)
        if mpp is not None and level is not None:
            raise ValueError("read_region: give mpp or level, not both.")
        if mpp is None:
            index = self._checked_level(0 if level is None else level)
            step = 1.0
        else:
            index, step = self._level_for(mpp)
        x_lv, y_lv = (float(v) / self.levels[index].downsample for v in location)
        out = np.empty((height, width, 3), np.uint8)
        _fill(self._open(), index, x_lv, y_lv, step, out)
        return out

    def read_patches(self, patches: PatchRows, *, out: RGB | None = None, threads: int | None = None) -> RGB:
        """Read the patches of a table, in its order.

        Parameters
        ----------
        patches : DataFrame, or mapping of column to array
            Columns x_l0, y_l0, size_px, mpp; one size_px and one mpp.
        out : (N, size_px, size_px, 3) uint8 array, optional
            Filled in place and returned, so that one buffer serves all batches.
        threads : int, optional
            Readers at once; the number of cores (4 at most) by default. Decoders work outside Python's lock.

        Returns
        -------
        (N, size_px, size_px, 3) uint8 array
        """
        x_l0, y_l0 = _column(patches, "x_l0"), _column(patches, "y_l0")
        size_px = int(_only_value(patches, "size_px"))
        mpp = float(_only_value(patches, "mpp"))
        shape = (len(x_l0), size_px, size_px, 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8:
            raise ValueError(f"read_patches: out must be {shape} uint8, got {out.shape} {out.dtype}.")
        batch = out
        index, step = self._level_for(mpp)
        reader, level = self._open(), self.levels[index]
        x_lv, y_lv = x_l0.astype(float) / level.downsample, y_l0.astype(float) / level.downsample
        threads = min(threads or min(4, os.cpu_count() or 1), len(batch))
        spread = partial(_spread, threads)
        factor, at_once = _read_at_once(reader, level, x_lv, y_lv, step, size_px)
        if at_once.any():
            x, y = (np.rint(v[at_once]).astype(np.int64) // factor for v in (x_lv, y_lv))
            in_place = at_once.all() and batch.flags.c_contiguous
            pixels = batch if in_place else np.empty((len(x), *shape[1:]), np.uint8)
            reader.read_patches(index, x, y, pixels, factor, spread)
            if not in_place:
                batch[at_once] = pixels
            if at_once.all():
                return batch
        # Row of tiles after row of tiles, so that neighbours find their tiles in the cache.
        order = np.lexsort((x_lv, y_lv // reader.row_px(index)))
        rest = order[~at_once[order]]
        rest = _read_resampled(reader, level, x_lv, y_lv, step, batch, rest, spread)

        def read(rows: NDArray[np.intp]) -> None:
            for row in rows:
                _fill(reader, index, x_lv[row], y_lv[row], step, batch[row])

        spread(read, _by_eight(rest))
        return batch

    def thumbnail(self, max_size_px: int = 1024) -> RGB:
        """The whole slide, its longer side at most `max_size_px`; (H, W, 3) uint8. Needs no mpp."""
        width, height = self.dimensions
        scale = max(1.0, max(width, height) / max_size_px)
        index = max(lv.index for lv in self.levels if lv.downsample <= scale * LEVEL_TOLERANCE)
        level = self.levels[index]
        pixels = self.read_region((0, 0), (level.width, level.height), level=index)
        size = (max(1, round(width / scale)), max(1, round(height / scale)))
        return pixels if pixels.shape[1::-1] == size else _shrunk(pixels, size)

    def _checked_level(self, level: int) -> int:
        if not 0 <= level < len(self.levels):
            raise ValueError(f"{self.name}: no level {level}; it has levels 0 to {len(self.levels) - 1}.")
        return level

    def _level_for(self, mpp: float) -> tuple[int, float]:
        """The level to read for a resolution, and the side of an output pixel in pixels of that level."""
        scale = mpp / self.mpp
        fine_enough = [lv for lv in self.levels if lv.downsample <= scale * LEVEL_TOLERANCE]
        if not fine_enough:
            raise SlideError(
                f"{self.name}: asked for {mpp:g} µm/px, but its finest level has {self.mpp:.4g}. pathkit does not enlarge"
                f" pixels: ask for mpp >= {self.mpp:.4g}."
            )
        best = max(fine_enough, key=lambda lv: lv.downsample)
        return best.index, scale / best.downsample


# Area average ----------------------------------------------------------------------------------------------------


def _read_at_once(
    reader: _Reader, level: Level, x_lv: NDArray[Any], y_lv: NDArray[Any], step: float, size_px: int
) -> tuple[int, NDArray[np.bool_]]:
    """The factor at which patches can be taken from the tiles as they are, and which of them: those at whole places."""
    step, nowhere = _snapped(step), np.zeros(len(x_lv), bool)
    if step != int(step) or not reader.has_tiles(level.index):
        return 1, nowhere
    factor = int(step)
    if factor > 1 and factor not in reader.factors(level.index):
        return 1, nowhere
    at_once = ~nowhere
    for place, length in ((x_lv, level.width), (y_lv, level.height)):
        whole = np.rint(place)
        at_once &= (np.abs(place - whole) < 1e-6) & (whole % factor == 0)
        at_once &= (whole >= 0) & (whole // factor + size_px <= length // factor)
    return factor, at_once


def _read_resampled(
    reader: _Reader,
    level: Level,
    x_lv: NDArray[Any],
    y_lv: NDArray[Any],
    step: float,
    batch: RGB,
    rows: NDArray[np.intp],
    spread: Spread,
) -> NDArray[np.intp]:
    """Fill those of the patches that are means of squares at any place: what they cover is copied tile by tile, then averaged.

    Returns the rows that are left: at whole places (for which decoders have a shortcut), over the edge, or too large. What it
    fills has the same pixels as by `_fill`.
    """
    step, (height, width) = _snapped(step), batch.shape[1:3]
    if not reader.has_tiles(level.index) or height * width * step * step > BAND_PIXELS:
        return rows
    starts, firsts, ends = [], [], []
    for place, length in ((x_lv[rows], width), (y_lv[rows], height)):
        starts.append(_all_snapped(place))
        firsts.append(np.floor(starts[-1]).astype(np.int64))
        ends.append(np.ceil(_all_snapped(starts[-1] + length * step)).astype(np.int64))
    sides = [int((end - first).max(initial=1)) for first, end in zip(firsts, ends, strict=True)]
    fit = np.full(len(rows), True)
    for first, side, length in zip(firsts, sides, (level.width, level.height), strict=True):
        fit &= (first >= 0) & (first + side <= length)
    if step == int(step):
        fit &= (starts[0] != firsts[0]) | (starts[1] != firsts[1])
    chosen = np.flatnonzero(fit)
    at_most = max(1, BAND_PIXELS // (sides[0] * sides[1]))
    for k in range(0, len(chosen), at_most):
        some = chosen[k : k + at_most]
        pixels = np.empty((len(some), sides[1], sides[0], 3), np.uint8)
        reader.read_patches(level.index, firsts[0][some], firsts[1][some], pixels, 1, spread)
        places = np.column_stack([v[some] for v in (*starts, *firsts, *ends)]).tolist()

        def average(numbers: NDArray[np.intp], some=some, pixels=pixels, places=places) -> None:
            from pathkit.resample import area_mean

            for i in numbers.tolist():
                x, y, x0, y0, x1, y1 = places[i]
                source = pixels[i, : int(y1 - y0), : int(x1 - x0)]
                area_mean(source, x - x0, y - y0, step, batch[rows[some[i]]])

        spread(average, _by_eight(np.arange(len(some))))
    return rows[~fit]


def _by_eight(rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Parts that are worth handing to a thread."""
    return np.array_split(rows, -(-len(rows) // 8)) if len(rows) else []


#: Threads that read beside the caller's, by their number; made once, since to start them takes longer than to read a patch.
_POOLS: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOLS.clear)


def _spread(threads: int, work: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Call `work` for each item; whichever of the threads is free takes the next.

    They begin at both ends, since neighbouring tiles share patches, and two processors would write to the same lines of memory.
    """
    left = deque(items)

    def some(take: Callable[[], Any]) -> None:
        while True:
            try:
                item = take()
            except IndexError:  # another thread may take the last one at any moment
                return
            work(item)

    helpers = min(threads, len(left)) - 1
    if helpers < 1:
        some(left.popleft)
        return
    if helpers not in _POOLS:
        _POOLS[helpers] = ThreadPoolExecutor(helpers, thread_name_prefix="pathkit-read")
    others = [_POOLS[helpers].submit(some, (left.pop, left.popleft)[i % 2]) for i in range(helpers)]
    try:
        some(left.popleft)
    finally:
        left.clear()  # after an error nobody begins another
        wait(others)
    for other in others:
        other.result()


def _fill(reader: _Reader, level: int, x_lv: float, y_lv: float, step: float, out: RGB) -> None:
    """Fill `out` with means of squares, in bands of rows that bound the source pixels held at once."""
    x_lv, y_lv, step = (_snapped(v) for v in (x_lv, y_lv, step))
    if step == 1 and x_lv == int(x_lv) and y_lv == int(y_lv):
        reader.read(level, int(x_lv), int(y_lv), out)
        return
    height, width = out.shape[:2]
    rows_per_band = max(1, int(BAND_PIXELS / (max(1.0, width * step) * step)))
    for top in range(0, height, rows_per_band):
        _read_area_mean(reader, level, x_lv, y_lv + top * step, step, out[top : top + rows_per_band])


def _read_area_mean(reader: _Reader, level: int, x_lv: float, y_lv: float, step: float, out: RGB) -> None:
    """Mean of each `step` x `step` square of a level, from (x_lv, y_lv) on; see the module's docstring."""
    height, width = out.shape[:2]
    x_lv, y_lv = _snapped(x_lv), _snapped(y_lv)
    x0, y0 = floor(x_lv), floor(y_lv)
    x1, y1 = ceil(_snapped(x_lv + width * step)), ceil(_snapped(y_lv + height * step))
    whole = x_lv == x0 and y_lv == y0 and step == int(step)
    if whole:
        factor = next((f for f in reader.factors(level) if step % f == x0 % f == y0 % f == 0), 1)
        if factor > 1:
            _read_reduced(reader, level, x0, y0, int(step), factor, out)
            return
    pixels = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    reader.read(level, x0, y0, pixels)
    if whole:
        out[:] = _shrunk(pixels, (width, height))
    else:
        from pathkit.resample import area_mean

        area_mean(pixels, x_lv - x0, y_lv - y0, step, out)


def _read_reduced(reader: _Reader, level: int, x: int, y: int, step: int, factor: int, out: RGB) -> None:
    """Means of whole squares, of which the decoder takes those of `factor` x `factor` pixels.

    Squares that the level's right or lower edge cuts are not the decoder's; they are averaged with the white beyond.
    """
    height, width = out.shape[:2]
    rest = step // factor
    pixels = out if rest == 1 else np.empty((height * rest, width * rest, 3), np.uint8)
    reader.read(level, x // factor, y // factor, pixels, factor)
    if rest > 1:
        out[:] = _shrunk(pixels, (width, height))
    (last_x, cut_x), (last_y, cut_y) = (divmod(n, factor) for n in reader.level_dimensions[level])
    for axis, last, cut, start, n_out in (
        (1, last_x, cut_x, x // factor, width),
        (0, last_y, cut_y, y // factor, height),
    ):
        at = (last - start) // rest
        if not cut or not 0 <= at < n_out:
            continue
        strip = out[:, at : at + 1] if axis == 1 else out[at : at + 1]
        corner = (x + at * step, y) if axis == 1 else (x, y + at * step)
        source = np.empty((strip.shape[0] * step, strip.shape[1] * step, 3), np.uint8)
        reader.read(level, *corner, source)
        strip[:] = _shrunk(source, (strip.shape[1], strip.shape[0]))


def _shrunk(pixels: RGB, size: tuple[int, int]) -> RGB:
    """Area average to (width, height), by whole factors or to the nearest size."""
    return cast(RGB, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _snapped(value: float) -> float:
    """`value`, or the integer that it misses by a rounding error."""
    nearest = round(value)
    return float(nearest) if abs(value - nearest) < 1e-6 else value


def _all_snapped(values: NDArray[Any]) -> NDArray[Any]:
    """`_snapped` of each."""
    nearest = np.rint(values)
    return np.where(np.abs(values - nearest) < 1e-6, nearest, values)


def _true_downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """The factor between two levels: the integer that explains both sizes, else the mean of the two ratios.

    Scanners halve and drop or add a last column; the ratio of the sizes would then shift a far corner by a pixel.
    """
    ratio = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = round(ratio)
    explains = whole >= 1 and all(abs(f / whole - s) < 1 for f, s in zip(full, size, strict=True))
    return float(whole) if explains else ratio


# Readers: where pixels come from ---------------------------------------------------------------------------------


class _Reader(ABC):
    """Level pixels of one open source; integer places in, RGB out, white beyond the edges."""

    level_dimensions: tuple[tuple[int, int], ...]
    properties: Mapping[str, str]
    bounds: Box
    magnification: float | None = None

    @abstractmethod
    def read(self, level: int, x: int, y: int, out: RGB, factor: int = 1) -> None:
        """Fill `out` with the pixels from (x, y) on, of the level reduced by `factor` (one of `factors`)."""

    def factors(self, level: int) -> tuple[int, ...]:
        """Whole factors, largest first, by which this level can be read reduced."""
        return ()

    def has_tiles(self, level: int) -> bool:
        """Whether `read_patches` may be called."""
        return False

    def read_patches(
        self, level: int, x: NDArray[np.int64], y: NDArray[np.int64], out: RGB, factor: int, spread: Spread
    ) -> None:
        """`read` of many places within the level, tile by tile."""
        raise NotImplementedError

    def row_px(self, level: int) -> int:
        """Height of what is decoded together."""
        return 1

    @abstractmethod
    def stored_mpp(self) -> tuple[float | None, float | None, str]:
        """mpp in x and y, and where it stands; (None, None, "none") where it does not."""

    def associated(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        return None


#: What was found of a file and level, by what changes with the file: slides are opened many times in a session.
_TESTED: dict[tuple[int, ...], tuple[bool, tuple[int, ...]]] = {}


class _OpenSlideReader(_Reader):
    def __init__(self, path: Path, direct: bool):
        import openslide

        self._name = path.name
        self._handle = openslide.OpenSlide(str(path))
        self.level_dimensions = self._handle.level_dimensions
        self.properties = dict(self._handle.properties)
        self._downsamples = self._handle.level_downsamples
        background = self.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self._background = np.array([int(background[i : i + 2], 16) for i in (0, 2, 4)], np.uint16)
        self.bounds = self._stored_bounds()
        power = self.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
        self.magnification = float(power) if power else None
        self._tiles = JpegTiles(path, self.level_dimensions if direct else ())
        stored = path.stat()
        self._file = (stored.st_dev, stored.st_ino, stored.st_size, stored.st_mtime_ns)
        self._lock = threading.Lock()

    def _stored_bounds(self) -> Box:
        keys = [f"openslide.bounds-{k}" for k in ("x", "y", "width", "height")]
        if all(k in self.properties for k in keys):
            return Box(*(float(self.properties[k]) for k in keys))
        return Box(0, 0, *self.level_dimensions[0])

    def stored_mpp(self) -> tuple[float | None, float | None, str]:
        x, y = (self.properties.get(f"openslide.mpp-{axis}") for axis in "xy")
        if x is None or y is None:
            return None, None, "none"
        return float(x), float(y), "openslide.mpp-x"

    def read(self, level: int, x: int, y: int, out: RGB, factor: int = 1) -> None:
        height, width = out.shape[:2]
        if not self._is_direct(level):
            out[:] = self._read_openslide(level, x, y, width, height)
            return
        level_width, level_height = (ceil(n / factor) for n in self.level_dimensions[level])
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, level_width), min(y + height, level_height)
        if (x0, y0, x1, y1) != (x, y, x + width, y + height):
            out[:] = self._background
        if x0 >= x1 or y0 >= y1:
            return
        try:
            self._tiles.read(
                level,
                x0,
                y0,
                out[y0 - y : y1 - y, x0 - x : x1 - x],
                factor=factor,
                missing=self._read_openslide,
            )
        except TileError as error:
            raise self._damaged(
                level, x * factor, y * factor, width * factor, height * factor, error
            ) from error

    def factors(self, level: int) -> tuple[int, ...]:
        return self._tested(level)[1]

    def has_tiles(self, level: int) -> bool:
        return self._is_direct(level)

    def read_patches(
        self, level: int, x: NDArray[np.int64], y: NDArray[np.int64], out: RGB, factor: int, spread: Spread
    ) -> None:
        try:
            self._tiles.read_patches(
                level, x, y, out, factor=factor, missing=self._read_openslide, spread=spread
            )
        except TileError as error:
            raise self._damaged(level, *error.box, error) from error

    def row_px(self, level: int) -> int:
        return self._tiles.levels[level].tile[1] if level in self._tiles.levels else 256

    def _is_direct(self, level: int) -> bool:
        """Whether this level's tiles are decoded here; found at its first read."""
        return self._tested(level)[0]

    def _tested(self, level: int) -> tuple[bool, tuple[int, ...]]:
        """Whether a level's tiles are decoded here, and the factors by which they can be reduced."""
        if level not in self._tiles.levels:
            return False, ()
        key = (*self._file, level)
        if key not in _TESTED:
            with self._lock:
                if key not in _TESTED:
                    same = self._equals_openslide(level)
                    _TESTED[key] = (same, self._tiles.good_factors(level) if same else ())
        return _TESTED[key]

    def _equals_openslide(self, level: int) -> bool:
        """Whether the telling tiles of a level are what OpenSlide reads there."""
        stored, downsample = self._tiles.levels[level], self._downsamples[level]
        compared = 0
        for index, tile in self._tiles.telling(level).items():
            x, y = stored.place(index)
            width, height = (min(t, n - p) for t, n, p in zip(stored.tile, stored.size, (x, y), strict=True))
            try:
                theirs = self._read_openslide(level, x, y, width, height)
            except SlideError:
                return False
            difference = np.abs(tile[:height, :width].astype(np.int16) - theirs)
            # Between level-0 pixels OpenSlide interpolates, so that its tile is a little smoother than what is stored.
            shifted = any(abs(round(v * downsample) / downsample - v) > 1e-3 for v in (x, y))
            if difference.mean() > 3 if shifted else difference.max() > DECODER_TOLERANCE:
                return False
            compared += 1
        return compared > 0

    def _read_openslide(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        import openslide

        # OpenSlide divides by its own downsample, so multiply by that one and not by ours.
        location = round(x * self._downsamples[level]), round(y * self._downsamples[level])
        try:
            rgba = np.asarray(self._handle.read_region(location, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise self._damaged(level, x, y, width, height, error) from error
        rgb = rgba[..., :3]
        alpha = rgba[..., 3:].astype(np.uint16)
        if (alpha < 255).any():
            rgb = ((rgb * alpha + self._background * (255 - alpha) + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(rgb)

    def _damaged(self, level: int, x: int, y: int, width: int, height: int, error: Exception) -> SlideError:
        return SlideError(
            f"{self._name}: damaged at level {level}, x {x}, y {y} ({width} x {height} px): {error}. The file may be"
            " truncated: compare its size with the original and copy it again."
        )

    def associated(self) -> Mapping[str, Any]:
        return self._handle.associated_images

    def close(self) -> None:
        self._tiles.close()
        self._handle.close()


class _ImageReader(_Reader):
    """Pixels in memory, one level."""

    def __init__(
        self, pixels: RGB, properties: Mapping[str, str], mpp_xy: tuple[float | None, float | None, str]
    ):
        self._pixels = pixels
        height, width = pixels.shape[:2]
        self.level_dimensions = ((width, height),)
        self.properties = properties
        self.bounds = Box(0, 0, width, height)
        self._mpp_xy = mpp_xy

    def stored_mpp(self) -> tuple[float | None, float | None, str]:
        return self._mpp_xy

    def read(self, level: int, x: int, y: int, out: RGB, factor: int = 1) -> None:
        height, width = out.shape[:2]
        rows, cols = self._pixels.shape[:2]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, cols), min(y + height, rows)
        if (x0, y0, x1, y1) != (x, y, x + width, y + height):
            out[:] = 255
        if x0 < x1 and y0 < y1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._pixels[y0:y1, x0:x1]


def _array_reader(pixels: RGB) -> _Reader:
    return _ImageReader(pixels, {}, (None, None, "none"))


def _file_reader(path: Path | None, direct: bool) -> _Reader:
    """Open a file with OpenSlide where it knows the format, else as a plain image."""
    import openslide

    assert path is not None
    _check_file(path)
    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
    except openslide.OpenSlideError:
        vendor = None
    if vendor is not None:
        try:
            return _OpenSlideReader(path, direct)
        except openslide.OpenSlideError as error:
            plain = _plain_image_or_none(path)
            if plain is not None:
                return plain
            raise SlideError(
                f"{path.name}: looks like a slide ({vendor}), but OpenSlide cannot open it: {error}. The file may be"
                " truncated or of a variant that OpenSlide lacks; copy it again, or convert it to a pyramidal TIFF."
            ) from error
    plain = _plain_image_or_none(path)
    if plain is None:
        raise SlideError(
            f"{path.name}: neither a slide format of OpenSlide nor a readable PNG, JPEG or TIFF image."
        )
    return plain


def _check_file(path: Path) -> None:
    if not path.exists():
        raise SlideError(f"{path}: no such file.")
    if path.is_dir():
        raise SlideError(
            f"{path}: a folder, not a slide. Give a file of it: for DICOM any file of the series,"
            " for MIRAX the .mrxs file beside the folder."
        )
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise SlideError(f"{path.name}: empty (0 bytes). The copy or the download did not finish.")
    except OSError as error:
        raise SlideError(f"{path}: cannot be read: {error.strerror}. Check the permissions.") from error


def _plain_image_or_none(path: Path) -> _Reader | None:
    """The file as one image in memory; None where it is no image at all.

    Raises
    ------
    SlideError
        If it is an image, but too large to decode whole, truncated, or not 8-bit.
    """
    from PIL import Image, UnidentifiedImageError

    with path.open("rb") as file:
        if file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff_reader(path)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit and message, below
    try:
        with Image.open(path) as image:
            _check_pixel_count(path.name, *image.size)
            pixels = np.asarray(_flattened(image))
    except UnidentifiedImageError:
        return None
    except OSError as error:
        raise SlideError(f"{path.name}: a damaged image: {error}. Copy it again.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return _ImageReader(_checked_pixels(pixels, path.name), {}, (None, None, "none"))


def _flattened(image: Any) -> Any:
    """A PIL image as RGB, transparent parts on white."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _tiff_reader(path: Path) -> _Reader:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            _check_pixel_count(path.name, page.imagewidth, page.imagelength)
            pixels = page.asarray()
            mpp_xy = _tiff_mpp(page)
    except SlideError:
        raise
    except (
        Exception
    ) as error:  # tifffile and its codecs raise many kinds; all mean that this file cannot be decoded
        raise SlideError(
            f"{path.name}: a TIFF that cannot be decoded: {error}. It may be truncated."
        ) from error
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] not in (3, 4):
        pixels = np.moveaxis(pixels, 0, 2)  # planar
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return _ImageReader(_checked_pixels(pixels[..., :3], path.name), {}, mpp_xy)


def _tiff_mpp(page: Any) -> tuple[float | None, float | None, str]:
    """mpp from TIFF resolution tags; an absolute unit (inch, centimetre) is required."""
    um_per_unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    values = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if um_per_unit is None or any(v is None or v[0] == 0 or v[1] == 0 for v in values):
        return None, None, "none"
    x, y = (um_per_unit * v[1] / v[0] for v in values)
    return x, y, "TIFF resolution tags"


class _LazyImages(Mapping[str, RGB]):
    """Associated images by name, decoded when looked up."""

    def __init__(self, slide: Slide):
        self._slide = slide

    def __getitem__(self, name: str) -> RGB:
        return np.asarray(_flattened(self._slide._open().associated()[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._slide._open().associated())

    def __len__(self) -> int:
        return len(self._slide._open().associated())


# Checks ----------------------------------------------------------------------------------------------------------


def _resolve_mpp(name: str, user: float | None, reader: _Reader) -> tuple[float | None, str]:
    """mpp and its provenance: the caller, else the file if what it says is possible."""
    if user is not None:
        return user, "user"
    x, y, source = reader.stored_mpp()
    if x is None or y is None or not all(PLAUSIBLE_MPP[0] <= v <= PLAUSIBLE_MPP[1] for v in (x, y)):
        return None, "none"
    if abs(x / y - 1) > 0.01:
        raise SlideError(
            f"{name}: its pixels are not square ({source}: {x:.4g} µm wide, {y:.4g} µm high). Resample it to square"
            " pixels first, or pass mpp=... if the metadata are wrong."
        )
    return (x + y) / 2, source


def _checked_pixels(pixels: NDArray[Any], name: str) -> RGB:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
        raise SlideError(
            f"{name}: expected (H, W, 3) uint8 RGB, got {pixels.shape} {pixels.dtype}. Convert it first, for example with"
            " skimage.util.img_as_ubyte."
        )
    return np.ascontiguousarray(pixels)


def _check_pixel_count(name: str, width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise SlideError(
            f"{name}: {width} x {height} px in one plain image, which must be decoded whole (limit"
            f" {MAX_IMAGE_PIXELS // 1_000_000} Mpx). Convert it to a pyramidal tiled TIFF, for example with libvips."
        )


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if int(width) != width or int(height) != height or width < 1 or height < 1:
        raise ValueError(f"read_region: size must be two positive whole numbers (width, height), got {size}.")
    return int(width), int(height)


def _column(patches: PatchRows, column: str) -> NDArray[Any]:
    values = patches[column]
    # NumPy would first look for attributes that a column of pandas is slow to say it has not.
    return values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)


def _only_value(patches: PatchRows, column: str) -> Any:
    values = _column(patches, column)
    if not len(values) or (values != values[0]).any():
        raise ValueError(
            f"read_patches: one {column} per call, got {np.unique(values).tolist()[:5] or 'an empty table'}. Read each group of"
            f" patches.groupby({column!r}) on its own."
        )
    return values[0]
