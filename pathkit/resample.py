"""Resample: the mean of each square of pixels that an output pixel covers, for squares of any size and place.

Apart from `slide` because numba takes half a second to import, and reads at whole factors do without it.
"""

from __future__ import annotations

from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["area_mean"]


def area_mean(pixels: NDArray[np.uint8], x: float, y: float, step: float, out: NDArray[np.uint8]) -> None:
    """Fill `out` with the means of squares of side `step`.

    Parameters
    ----------
    pixels : (H, W, 3) uint8
        Must contain all squares.
    x, y : float
        Top left corner of the first square in `pixels`.
    step : float
        At least 1.
    out : (h, w, 3) uint8
        Pixel (r, c) becomes the mean over the square that starts at ``(x + c * step, y + r * step)``.
    """
    rows = _intervals(y, step, out.shape[0], pixels.shape[0])
    cols = _intervals(x, step, out.shape[1], pixels.shape[1])
    _weighted(np.ascontiguousarray(pixels).reshape(len(pixels), -1), *rows, *cols, out)


@lru_cache(256)  # patches of a grid ask for the same again and again
def _intervals(
    start: float, step: float, n_out: int, n_in: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """First pixel of each interval, and the weights of the pixels from there on, (n_out, K)."""
    edges = start + step * np.arange(n_out + 1)
    first = np.floor(edges[:-1]).astype(np.int64)
    columns = first[:, None] + np.arange(int((np.ceil(edges[1:]) - first).max()))
    overlap = np.minimum(columns + 1, edges[1:, None]) - np.maximum(columns, edges[:-1, None])
    weights = np.where(columns < n_in, np.maximum(overlap, 0), 0).astype(np.float32)
    weights /= weights.sum(1, keepdims=True)
    for shared in (first, weights):
        shared.flags.writeable = False
    return first, weights


@numba.njit(cache=True, nogil=True)
def _weighted(pixels, row0, row_weights, col0, col_weights, out):
    n_values = pixels.shape[1]
    column_sums = np.empty(n_values, np.float32)
    for r in range(out.shape[0]):
        column_sums[:] = 0
        for k in range(row_weights.shape[1]):
            w = row_weights[r, k]
            if w > 0:
                source = pixels[row0[r] + k]
                for i in range(n_values):
                    column_sums[i] += w * np.float32(source[i])
        for c in range(out.shape[1]):
            red = green = blue = np.float32(0)
            for k in range(col_weights.shape[1]):
                w = col_weights[c, k]
                if w > 0:
                    i = 3 * (col0[c] + k)
                    red += w * column_sums[i]
                    green += w * column_sums[i + 1]
                    blue += w * column_sums[i + 2]
            # Halves occur often (two pixels averaged). The nudge rounds them up whatever the last bits of the sum, so
            # that the same square gives the same value in every region that contains it.
            out[r, c, 0] = min(255, int(red + np.float32(0.501)))
            out[r, c, 1] = min(255, int(green + np.float32(0.501)))
            out[r, c, 2] = min(255, int(blue + np.float32(0.501)))
