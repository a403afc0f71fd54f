"""Boards of instances and of immunohistochemistry: what they count, what follows what, and what they refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pathkit.scoring import CUTS, positive_share
from pathkit.slide import open_slide
from pathkit.view import InstanceBoard, StainBoard


def field() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One object missed, two merged, one right, one extra."""
    rgb = np.full((120, 160, 3), 220, np.uint8)
    truth, found = np.zeros((2, 120, 160), int)
    truth[10:30, 10:30] = 1
    truth[60:80, 10:30], truth[60:80, 30:50] = 2, 3
    truth[60:80, 100:120] = 4
    found[60:80, 10:50], found[60:80, 100:120], found[100:115, 130:150] = 1, 2, 3
    return rgb, truth, found


def test_errors_fill_the_gallery_by_kind_and_a_click_goes_to_the_place():
    board = InstanceBoard(*field(), mpp=0.5)
    assert board.counts == {"missed": 1, "merged": 2, "extra": 1}
    board.kind = "merged"
    assert board.gallery.rows["truth"].tolist() == [2, 3]
    board.gallery.select(board.gallery.rows.index[:1])
    assert board.selection["truth"].tolist() == [2]
    middle = board.viewer.view.box_l0
    assert (middle.x + middle.width / 2, middle.y + middle.height / 2) == pytest.approx((20, 70), abs=2)
    assert board.viewer.selection["truth"].tolist() == [2]
    assert board.snapshot()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="no error of kind 'split'; there are missed, merged, extra"):
        board.kind = "split"
    board.close()


def test_truth_is_left_of_the_line_and_prediction_right():
    rgb, truth, found = field()
    board = InstanceBoard(rgb, truth, found, mpp=0.5)
    left = board.viewer.slide.read_region((0, 0), (160, 120), level=0)
    right = board.viewer["prediction"].slide.read_region((0, 0), (160, 120), level=0)
    assert left[10, 20].tolist() == [0, 158, 115]
    assert right[10, 20].tolist() == [220, 220, 220]
    assert right[60, 40].tolist() == [240, 228, 66]
    board.close()


def test_a_field_without_errors_or_of_another_size_is_refused():
    rgb, truth, found = field()
    with pytest.raises(ValueError, match="no error to browse"):
        InstanceBoard(rgb, truth, truth, mpp=0.5)
    with pytest.raises(ValueError, match="one size"):
        InstanceBoard(rgb[:50], truth, found, mpp=0.5)


def tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    return {
        k: pd.DataFrame(
            {"x_um": rng.uniform(0, 100, 40), "y_um": rng.uniform(0, 80, 40), "dab": rng.uniform(0, top, 40)}
        )
        for k, top in (("a", 0.3), ("b", 1.0))
    }


def stain_board(**options) -> StainBoard:
    slide = open_slide(np.full((160, 200, 3), 230, np.uint8), mpp=0.5)
    return StainBoard(
        slide,
        tables(),
        {"a": 50.0, "b": 80.0},
        lambda t: 100 * positive_share(t["level"]),
        shown="b",
        **options,
    )


def test_a_higher_cut_off_leaves_fewer_cells_positive_on_the_slide_and_in_the_score():
    board = stain_board()
    before, negative = board.scores["score"], (board.layer.table["stain"] == "negative").sum()
    board.cuts = (0.3, 0.5, 0.8)
    assert (board.scores["score"] <= before).all()
    assert board.scores.loc["b", "score"] < before["b"]
    assert (board.layer.table["stain"] == "negative").sum() > negative
    share = (tables()["b"]["dab"] >= 0.3).mean()
    assert board.scores.loc["b", "score"] == pytest.approx(100 * share)
    assert "truth 80.0" in board.line
    assert board.snapshot()[:4] == b"\x89PNG"
    board.close()


def test_bad_cut_offs_and_missing_truth_are_refused():
    board = stain_board()
    with pytest.raises(ValueError, match="three ascending"):
        board.cuts = (0.5, 0.4, 0.8)
    assert board.cuts == CUTS
    with pytest.raises(ValueError, match="no column 'membrane_dab'"):
        stain_board(density="membrane_dab")
