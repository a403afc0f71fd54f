"""Random numbers that depend on a place and a seed alone, and smooth noise made of them; compiled with numba."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["add_noise", "hashed", "nearest_two", "noise_rows", "smooth_noise", "uniform"]

_compiled = numba.njit(cache=True, inline="never", nogil=True)
#: Into the loops that call it, so that these work on several pixels at once.
_inlined = numba.njit(inline="always", nogil=True)


@_inlined
def hashed(x: int, y: int, seed: int) -> int:
    """A well-mixed 32-bit number of two whole coordinates and a seed (finaliser of MurmurHash3)."""
    h = (x * 374761393 + y * 668265263 + seed * 974634777) & 0xFFFFFFFF
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & 0xFFFFFFFF
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


@_inlined
def uniform(x: int, y: int, seed: int) -> float:
    """A number in [0, 1) of two whole coordinates and a seed."""
    return hashed(x, y, seed) / 4294967296.0


@_inlined
def _smooth_noise(x: float, y: float, seed: int) -> float:
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    u, v = x - x0, y - y0
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    top = (1 - u) * uniform(x0, y0, seed) + u * uniform(x0 + 1, y0, seed)
    bottom = (1 - u) * uniform(x0, y0 + 1, seed) + u * uniform(x0 + 1, y0 + 1, seed)
    return 2 * ((1 - v) * top + v * bottom) - 1


@_compiled
def smooth_noise(x: float, y: float, seed: int) -> float:
    """Value noise in [-1, 1] with features about 1 unit across."""
    return _smooth_noise(x, y, seed)


@_compiled
def add_noise(
    out: NDArray[np.float64],
    weight: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    seed: int,
) -> None:
    """Add `weight` times the `smooth_noise` at places anywhere; all (n,) float64. Faster than one by one."""
    for k in range(len(out)):
        out[k] += weight[k] * _smooth_noise(x[k], y[k], seed)


@_compiled
def noise_rows(
    out: NDArray[np.float64],
    left: int,
    right: int,
    x_um: float,
    y_um: float,
    row: int,
    mpp: float,
    scale: float,
    seed: int,
) -> None:
    """`smooth_noise` of a block of pixels, to the bit, several times faster: neighbours share the numbers at their corners.

    Parameters
    ----------
    out : (rows, cols) float64
        Rows from number `row` on of a region whose corner is at `x_um` and `y_um`; filled from column `left` to `right`.
    mpp, scale : float
        Microns per pixel, and of a unit of the noise.
    """
    n = right - left
    cell, u = np.empty(n, np.int64), np.empty(n, np.float64)
    for c in range(n):
        x = (x_um + (left + c + 0.5) * mpp) / scale
        cell[c] = int(np.floor(x))
        u[c] = x - cell[c]
        u[c] = u[c] * u[c] * (3 - 2 * u[c])
    first = cell[0]
    cell -= first
    n_cells, held = cell[-1] + 2, 0
    upper, lower = np.empty(n_cells, np.float64), np.empty(n_cells, np.float64)
    for r in range(len(out)):
        y = (y_um + (row + r + 0.5) * mpp) / scale
        y0 = int(np.floor(y))
        if r == 0 or y0 != held:
            held = y0
            for k in range(n_cells):
                upper[k], lower[k] = uniform(first + k, y0, seed), uniform(first + k, y0 + 1, seed)
        v = y - y0
        v = v * v * (3 - 2 * v)
        for c in range(n):
            k = cell[c]
            top = (1 - u[c]) * upper[k] + u[c] * upper[k + 1]
            bottom = (1 - u[c]) * lower[k] + u[c] * lower[k + 1]
            out[r, left + c] = 2 * ((1 - v) * top + v * bottom) - 1


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
