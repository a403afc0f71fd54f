"""Pyramid: a tiled, JPEG-compressed TIFF with its levels and resolution, as OpenSlide opens it.

Levels are pages marked as reduced images (OpenSlide sees one level only when they are SubIFDs); the resolution stands in
centimetre tags, from which OpenSlide derives mpp; pixels are stored as RGB (declared YCbCr, the colours come out wrong).
Pixels may come from a function, band by band: a slide of any size is written in little memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from pathkit.files import replacing

__all__ = ["write_pyramid"]

TILE_PX = 256
#: Bands read at a time; a multiple of a tile and of every factor between levels.
_BAND_PX = 512
#: A level above this many bytes is kept in a file while it is made.
_IN_MEMORY = 300_000_000
Read = Callable[[tuple[int, int], tuple[int, int]], NDArray[np.uint8]]


def write_pyramid(
    pixels: NDArray[np.uint8] | Read,
    path: str | os.PathLike[str],
    *,
    mpp: float,
    size: tuple[int, int] | None = None,
    quality: int = 85,
    factor: int = 4,
    smallest_px: int = 256,
    progress: bool = False,
) -> Path:
    """Write pixels as a slide, whole or not at all.

    Parameters
    ----------
    pixels : (H, W, 3) uint8, or function
        ``read(location, size)`` gives the pixels of a region, (height, width, 3).
    path : path
        ``.tif``.
    mpp : float
        Microns per pixel of level 0.
    size : (width, height)
        Of the slide, where `pixels` is a function.
    quality : int
        JPEG, 1 to 100.
    factor : int
        Between levels.
    smallest_px : int
        No level's longer side is less.
    progress : bool
        Show a bar of the bands of level 0.

    Raises
    ------
    ValueError
        If `mpp` is not positive, or a function comes without `size`.
    """
    import tifffile

    if not mpp > 0:
        raise ValueError(f"write_pyramid: mpp must be positive, got {mpp}.")
    if callable(pixels):
        if size is None or min(size) < 1:
            raise ValueError(f"write_pyramid: a function needs the size of the slide, got {size}.")
        read = pixels
    else:
        size = (pixels.shape[1], pixels.shape[0])
        read = _reader(pixels)
    path = Path(path)
    downsample = 1
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=path.name + ".levels.") as scratch,
        replacing(path) as partial,
        tifffile.TiffWriter(partial, bigtiff=size[0] * size[1] * 3 > 2**31) as tiff,
    ):
        while True:
            width, height = size
            smaller = (width // factor, height // factor)
            last = max(smaller) < smallest_px or min(smaller) < 1
            below = (
                None if last else _buffer((smaller[1], smaller[0], 3), Path(scratch) / f"{downsample}.npy")
            )
            tiff.write(
                _tiles(read, size, below, factor, progress and downsample == 1),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=0 if downsample == 1 else 1,
                resolution=(1e4 / (mpp * downsample), 1e4 / (mpp * downsample)),
                resolutionunit="CENTIMETER",
                software="pathkit",
                metadata=None,
            )
            if below is None:
                break
            read, size, downsample = _reader(below), smaller, downsample * factor
    return path


def _reader(pixels: NDArray[np.uint8]) -> Read:
    def read(location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
        part = pixels[location[1] : location[1] + size[1], location[0] : location[0] + size[0]]
        if isinstance(pixels, np.memmap):
            part = np.array(part)
            _let_go(pixels)
        return part

    return read


def _buffer(shape: tuple[int, int, int], path: Path) -> NDArray[np.uint8]:
    if int(np.prod(shape)) < _IN_MEMORY:
        return np.empty(shape, np.uint8)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _let_go(pixels: NDArray[np.uint8]) -> None:
    """Have what stands in a file no longer count as memory of this process."""
    if isinstance(pixels, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        cast(mmap.mmap, pixels.base).madvise(mmap.MADV_DONTNEED)


def _tiles(
    read: Read, size: tuple[int, int], below: NDArray[np.uint8] | None, factor: int, progress: bool
) -> Iterator[NDArray[np.uint8]]:
    """The tiles of a level, row by row; what passes is reduced into the level below."""
    width, height = size
    for top in tqdm(range(0, height, _BAND_PX), desc="writing the slide", unit="band", disable=not progress):
        rows = min(_BAND_PX, height - top)
        band = np.ascontiguousarray(read((0, top), (width, rows)))
        if below is not None:
            _reduce(band, below, top // factor, factor)
            _let_go(below)
        for r in range(0, rows, TILE_PX):
            for c in range(0, width, TILE_PX):
                tile = band[r : r + TILE_PX, c : c + TILE_PX]
                if tile.shape[:2] != (TILE_PX, TILE_PX):
                    missing = [(0, TILE_PX - n) for n in tile.shape[:2]]
                    tile = np.pad(tile, [*missing, (0, 0)], mode="edge")
                yield np.ascontiguousarray(tile)


def _reduce(band: NDArray[np.uint8], below: NDArray[np.uint8], row: int, factor: int) -> None:
    rows, width = min(band.shape[0] // factor, below.shape[0] - row), below.shape[1]
    if rows > 0:
        whole = band[: rows * factor, : width * factor]
        below[row : row + rows] = cv2.resize(whole, (width, rows), interpolation=cv2.INTER_AREA)
