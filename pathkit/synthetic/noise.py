"""Random numbers that depend on a place and a seed alone, and smooth noise made of them; compiled with numba."""

from __future__ import annotations

import numba
import numpy as np

__all__ = ["hashed", "nearest_two", "smooth_noise", "uniform"]

_compiled = numba.njit(cache=True, inline="never", nogil=True)


@_compiled
def hashed(x: int, y: int, seed: int) -> int:
    """A well-mixed 32-bit number of two whole coordinates and a seed (finaliser of MurmurHash3)."""
    h = (x * 374761393 + y * 668265263 + seed * 974634777) & 0xFFFFFFFF
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & 0xFFFFFFFF
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


@_compiled
def uniform(x: int, y: int, seed: int) -> float:
    """A number in [0, 1) of two whole coordinates and a seed."""
    return hashed(x, y, seed) / 4294967296.0


@_compiled
def smooth_noise(x: float, y: float, seed: int) -> float:
    """Value noise in [-1, 1] with features about 1 unit across."""
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    u, v = x - x0, y - y0
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    top = (1 - u) * uniform(x0, y0, seed) + u * uniform(x0 + 1, y0, seed)
    bottom = (1 - u) * uniform(x0, y0 + 1, seed) + u * uniform(x0 + 1, y0 + 1, seed)
    return 2 * ((1 - v) * top + v * bottom) - 1


@_compiled
def nearest_two(x: float, y: float, size: float, seed: int) -> tuple[float, float, float, float]:
    """Vectors to the nearest and the second nearest of points scattered one to a square of `size` (Worley noise)."""
    i0, j0 = int(np.floor(x / size)), int(np.floor(y / size))
    first, second, ax, ay, bx, by = 1e18, 1e18, 0.0, 0.0, 0.0, 0.0
    for j in range(j0 - 1, j0 + 2):
        for i in range(i0 - 1, i0 + 2):
            dx = (i + uniform(i, j, seed)) * size - x
            dy = (j + uniform(i, j, seed + 1)) * size - y
            square = dx * dx + dy * dy
            if square < first:
                first, second, ax, ay, bx, by = square, first, dx, dy, ax, ay
            elif square < second:
                second, bx, by = square, dx, dy
    return ax, ay, bx, by
