"""Pieces of tiles: together they are the patch, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathkit.pieces import copy_pieces, lay_out

sides = st.integers(1, 9)


@given(tile=st.tuples(sides, sides), size=st.tuples(sides, sides), seed=st.integers(0, 999))
def test_pieces_copied_tile_by_tile_are_the_patches(tile, size, seed):
    rng = np.random.default_rng(seed)
    wide, high = tile
    down, across = 4, 5
    level = rng.integers(0, 256, (down * high, across * wide, 3), np.uint8)
    height, width = (min(n, whole) for n, whole in zip(size, level.shape[:2], strict=True))
    x, y = rng.integers(0, across * wide - width + 1, 7), rng.integers(0, down * high - height + 1, 7)
    out = np.zeros((7, height, width, 3), np.uint8)
    pieces = lay_out(x, y, (height, width), tile, across)
    numbers = [int(p[0, 0]) for p in pieces]
    assert numbers == sorted(set(numbers)), "a tile comes once"
    for of_tile in pieces:
        r, c = divmod(int(of_tile[0, 0]), across)
        copy_pieces(of_tile, level[r * high : (r + 1) * high, c * wide : (c + 1) * wide], out)
    expected = [level[b : b + height, a : a + width] for a, b in zip(x, y, strict=True)]
    np.testing.assert_array_equal(out, expected)
    covered = sum(((p[:, 3] - p[:, 2]) * (p[:, 5] - p[:, 4])).sum() for p in pieces)
    assert covered == 7 * height * width, "no pixel comes twice"


def test_patches_that_do_not_lie_in_a_row_are_refused():
    pieces = lay_out(np.zeros(1, np.int64), np.zeros(1, np.int64), (4, 4), (4, 4), 1)[0]
    with pytest.raises(ValueError, match="C-contiguous"):
        copy_pieces(
            pieces,
            np.zeros((4, 4, 3), np.uint8),
            np.zeros((4, 4, 3, 1), np.uint8).transpose(3, 0, 1, 2)[:, ::-1],
        )
