"""The hot spot board without a browser."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pathkit.slide import open_slide
from pathkit.view import HotSpotBoard


@pytest.fixture
def board():
    rng = np.random.default_rng(0)
    slides = {n: open_slide(rng.integers(100, 255, (400, 600, 3)).astype(np.uint8), mpp=0.5) for n in "ab"}
    table = pd.DataFrame(
        {
            "slide_id": list("aaaabb"),
            "x_l0": [50, 150, 250, 350, 60, 70],
            "y_l0": [50, 60, 70, 80, 90, 300],
            "size_px": 32,
            "mpp": 0.5,
            "outcome": ["hit", "false alarm", "miss", "hit", "miss", "hit"],
            "score": [0.9, 0.8, 0.1, 0.7, 0.0, 0.6],
        }
    )
    spots = {"a": {"x_um": 100.0, "y_um": 40.0, "radius_um": 30.0, "n": 3, "per_mm2": 1000.0}}
    return HotSpotBoard(table, slides, spots)


def test_it_begins_with_the_slide_of_the_hot_spot_and_its_ring(board):
    assert board.slide_id == "a"
    ring = board.viewer["hot spot"].table.geometry.iloc[0]
    assert ring.centroid.x == pytest.approx(200)
    assert ring.area * 0.5**2 == pytest.approx(np.pi * 30**2, rel=0.01)
    assert board.gallery.rows["score"].tolist() == [0.9, 0.8, 0.7, 0.1]


def test_an_outcome_fills_the_gallery_and_a_picture_leads_to_its_place(board):
    rows = board.pick("miss")
    assert board.gallery.rows.index.tolist() == rows.index.tolist() == [2, 4]
    board.gallery.select([4])
    assert board.slide_id == "b"
    middle = board.viewer.view.box_l0
    assert middle.x + middle.width / 2 == pytest.approx(60 + 16)
    assert [layer.name for layer in board.viewer.layers] == ["patches"]


def test_it_gives_a_picture(board):
    assert board.snapshot().startswith(b"\x89PNG")


def test_impossible_tables(board):
    with pytest.raises(ValueError, match="no column 'outcome'"):
        HotSpotBoard(board.table.drop(columns="outcome"), board.slides, {})
    with pytest.raises(ValueError, match="'good' is none of"):
        HotSpotBoard(board.table.assign(outcome="good"), board.slides, {})
    with pytest.raises(ValueError, match="no patch of slide 'z'"):
        board.show_slide("z")
    with pytest.raises(ValueError, match="outcome is hit"):
        board.pick("perfect")
