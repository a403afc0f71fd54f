"""Pieces: which part of which tile belongs where in which patch, and copying it there.

Compiled with numba: of a patch of 256 px, threads of plain Python wait for each other's bookkeeping longer than for memory.
Apart from `tiles` because numba takes half a second to import, and who reads one region does without it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["copy_pieces", "lay_out"]


def lay_out(
    x: NDArray[np.int64], y: NDArray[np.int64], size: tuple[int, int], tile: tuple[int, int], across: int
) -> list[NDArray[np.int64]]:
    """What is to be copied to patches, tile after tile.

    Parameters
    ----------
    x, y : (N,) int64
        Top left corners of the patches, not negative.
    size : (height, width)
        Of a patch.
    tile : (width, height)
    across : int
        Tiles in a row of the level.

    Returns
    -------
    list of (P, 10) int64
        One array a tile, each row a piece: number of the tile, number of the patch; rows (from, to) and columns (from, to) of
        the patch, then those of the tile.
    """
    table = _laid_out(x, y, *size, *tile, across)
    table = table[np.argsort(table[:, 0], kind="stable")]
    ends = np.flatnonzero(np.diff(table[:, 0])) + 1
    return [table[a:b] for a, b in zip([0, *ends.tolist()], [*ends.tolist(), len(table)], strict=True)]


def copy_pieces(pieces: NDArray[np.int64], tile: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Copy the pieces of one tile, outside Python's lock.

    Parameters
    ----------
    pieces : (P, 10) int64
        Of `lay_out`.
    tile : (H, W, 3) uint8
    out : (N, h, w, 3) uint8
        The patches. C-contiguous: `ValueError` otherwise.
    """
    if not out.flags.c_contiguous:
        raise ValueError("copy_pieces: the patches must lie in memory one after another (C-contiguous).")
    tile = np.ascontiguousarray(tile)
    _copy(pieces, tile.reshape(-1), tile.shape[1], out.reshape(-1), *out.shape[1:3])


@numba.njit(cache=True, nogil=True)
def _laid_out(x, y, height, width, wide, high, across):
    n = 0
    for i in range(len(x)):
        down = (y[i] + height - 1) // high - y[i] // high + 1
        n += down * ((x[i] + width - 1) // wide - x[i] // wide + 1)
    table = np.empty((n, 10), np.int64)
    k = 0
    for i in range(len(x)):
        left, top = x[i], y[i]
        for r in range(top // high, (top + height - 1) // high + 1):
            row0, row1 = max(top, r * high), min(top + height, (r + 1) * high)
            for c in range(left // wide, (left + width - 1) // wide + 1):
                col0, col1 = max(left, c * wide), min(left + width, (c + 1) * wide)
                table[k, 0], table[k, 1] = r * across + c, i
                table[k, 2], table[k, 3], table[k, 4], table[k, 5] = (
                    row0 - top,
                    row1 - top,
                    col0 - left,
                    col1 - left,
                )
                table[k, 6], table[k, 7] = row0 - r * high, row1 - r * high
                table[k, 8], table[k, 9] = col0 - c * wide, col1 - c * wide
                k += 1
    return table


def _bytes_copied(typing, target, at, source, start, n):
    """``target[at : at + n] = source[start : start + n]``, of which numba's own loop takes twice as long."""

    def generate(context, builder, signature, arguments):
        target, at, source, start, n = arguments
        to, of = (
            builder.gep(context.make_array(kind)(context, builder, array).data, [offset])
            for kind, array, offset in ((signature.args[0], target, at), (signature.args[2], source, start))
        )
        cgutils.raw_memcpy(builder, to, of, n, 1)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), generate


_copy_bytes: Any = intrinsic(_bytes_copied)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _copy(pieces, tile, tile_width, out, height, width):
    for k in range(len(pieces)):
        i, top, bottom, left, right = pieces[k, 1], pieces[k, 2], pieces[k, 3], pieces[k, 4], pieces[k, 5]
        row, col = pieces[k, 6], pieces[k, 8]
        n = 3 * (right - left)
        to, start = 3 * ((i * height + top) * width + left), 3 * (row * tile_width + col)
        for _ in range(bottom - top):
            _copy_bytes(out, to, tile, start, n)
            to += 3 * width
            start += 3 * tile_width
