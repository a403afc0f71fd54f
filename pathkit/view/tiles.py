"""The tile pyramid of a slide: powers of two in the slide's own pixels, rendered as JPEG when asked for.

Level k is the slide shrunk by 2**k, whatever levels its file has; tile (x, y) of level k starts at level-0 pixel
``(x, y) * TILE_PX * 2**k``. Tiles at the right and lower edge are cut. One function renders them for Jupyter Server and
for the kernel, through `Slide.read_region`, so that a viewer shows what a model reads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import ceil, log2

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pathkit.slide import Slide, open_slide

__all__ = ["TILE_PX", "Pyramid", "TileCache", "jpeg"]

TILE_PX = 512
QUALITY = 85


class Pyramid:
    """Tiles of one slide.

    Parameters
    ----------
    slide : Slide
        Its mpp may be unknown.

    Attributes
    ----------
    dimensions : (int, int)
        Width and height in level-0 pixels.
    levels : int
        The last one fits into a single tile.

    Examples
    --------
    >>> pyramid = Pyramid(open_slide(np.full((700, 1500, 3), 255, np.uint8)))
    >>> pyramid.levels, pyramid.grid(0), pyramid.read(0, 2, 1).shape
    (3, (3, 2), (188, 476, 3))
    """

    def __init__(self, slide: Slide):
        # Opened as if a pixel were a micron: mpp is then the downsample, and needs not be known.
        source = slide._pixels if slide.path is None else slide.path
        assert source is not None
        self._slide = open_slide(source, mpp=1.0)
        self.dimensions = self._slide.dimensions
        self.levels = max(0, ceil(log2(max(self.dimensions) / TILE_PX))) + 1

    def grid(self, level: int) -> tuple[int, int]:
        """Tiles across and down."""
        across, down = (ceil(n / (TILE_PX << level)) for n in self.dimensions)
        return across, down

    def read(self, level: int, x: int, y: int) -> NDArray[np.uint8]:
        """Pixels of a tile, (up to TILE_PX, up to TILE_PX, 3).

        Raises
        ------
        LookupError
            If there is no such tile.
        """
        if not 0 <= level < self.levels or not all(
            0 <= i < n for i, n in zip((x, y), self.grid(level), strict=True)
        ):
            raise LookupError(f"no tile ({x}, {y}) at level {level}")
        scale = 1 << level
        width, height = (
            min(TILE_PX, ceil(n / scale) - i * TILE_PX) for n, i in zip(self.dimensions, (x, y), strict=True)
        )
        return self.crop((x * TILE_PX * scale, y * TILE_PX * scale), (width, height), scale)

    def crop(
        self, location: tuple[float, float], size: tuple[int, int], downsample: float
    ) -> NDArray[np.uint8]:
        """A region of `size` output pixels at any downsample from 1 on; as `Slide.read_region`, without mpp."""
        return self._slide.read_region(location, size, mpp=downsample)

    def render(self, level: int, x: int, y: int) -> bytes:
        """A tile as JPEG; raises as `read`."""
        return jpeg(self.read(level, x, y))

    def close(self) -> None:
        """Give the file handle back."""
        self._slide.close()


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 as JPEG."""
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=QUALITY))


class TileCache:
    """The tiles used last, up to a number of bytes; safe between threads."""

    def __init__(self, max_bytes: int = 64_000_000):
        self.max_bytes, self.bytes = max_bytes, 0
        self._tiles: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, render: Callable[[], bytes]) -> bytes:
        """The tile of `key`, made by `render` (outside the lock) where it is not kept."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        tile = render()
        with self._lock:
            self.bytes += len(tile) - len(self._tiles.pop(key, b""))
            self._tiles[key] = tile
            while self.bytes > self.max_bytes:
                self.bytes -= len(self._tiles.popitem(last=False)[1])
        return tile
