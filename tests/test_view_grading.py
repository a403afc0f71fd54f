"""The grading board: cut-offs move grades and kappa, a core moves the slide."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from pathkit.geometry import Raster
from pathkit.grading import PATTERNS, grade, pattern_map
from pathkit.slide import open_slide
from pathkit.view import GradingBoard
from pathkit.view.grading import COLOURS, PatternMap


@pytest.fixture
def cores():
    shares = [
        (1, 0, 0, 0),
        (0.95, 0.05, 0, 0),
        (0.5, 0.5, 0, 0),
        (0.5, 0.45, 0.05, 0),
        (0.2, 0, 0.8, 0),
        (0.2, 0, 0.5, 0.3),
    ]
    table = pd.DataFrame(shares, columns=PATTERNS, index=range(10, 16))
    table["slide_id"], table["patient_id"] = list("fedcba"), [0, 0, 1, 1, 2, 2]
    return table.assign(anna=[0, 0, 1, 2, 4, 5], consensus=[0, 1, 1, 1, 4, 5])


@pytest.fixture
def board(cores):
    slides = {
        i: open_slide(np.full((200, 300, 3), 40 * k, np.uint8), mpp=1.0) for k, i in enumerate("abcdef")
    }
    maps = {i: Raster(np.array([[0, 1, np.nan], [2, 3, 0]], np.float32), 100.0) for i in "abcdef"}
    made = GradingBoard(cores, maps, slides, readers=["anna", "consensus"])
    yield made
    made.close()


def test_a_moved_cut_off_moves_kappa_to_what_scikit_learn_says(board, cores):
    seen = set()
    for cut_offs in (
        {"least_tumour": 0.0},
        {"least_tumour": 0.1},
        {"least_secondary": 0.3},
        {"least_tumour": 0.5},
    ):
        kappa = board.set(**cut_offs)
        ours = grade(cores, **board.cut_offs)["isup"]
        for reader in ("anna", "consensus"):
            expected = cohen_kappa_score(ours, cores[reader], weights="quadratic", labels=range(6))
            assert kappa[reader].value == pytest.approx(expected)
        seen.add(kappa["consensus"].value)
    assert len(seen) > 2
    with pytest.raises(ValueError, match="no cut-off 'least'"):
        board.set(least=0.1)
    with pytest.raises(ValueError, match="share from 0 to 1"):
        board.set(least_tumour=3)


def test_the_widgets_follow_and_lead(board):
    board.widget()
    board.set(least_tumour=0.0, least_secondary=0.05)
    assert board._numbers.data["text"] == [str(g) for g in board.graded["isup"]]
    assert f"consensus {board.kappa['consensus']}" in board._said.value
    board._bars.selected.indices = [0]
    assert board.slide_id == "f"
    assert board._cores.value == "f"
    assert board.selection["isup"].tolist() == [0]
    board._cores.value = "a"
    assert board.slide_id == "a"
    assert "a: 4+5, grade 5" in board._line.value
    with pytest.raises(ValueError, match="no core 'z'"):
        board.slide_id = "z"
    assert np.asarray(Image.open(io.BytesIO(board.snapshot())).convert("RGB")).std() > 10


def test_boards_that_cannot_be(cores, board):
    with pytest.raises(ValueError, match="no map for core 'f'"):
        GradingBoard(cores, {}, board.slides._sources, readers=["anna"])
    with pytest.raises(ValueError, match="no column 'otto'"):
        GradingBoard(cores, board.maps, board.slides._sources, readers=["otto"])
    with pytest.raises(ValueError, match="no reader"):
        GradingBoard(cores, board.maps, board.slides._sources, readers=[])
    with pytest.raises(ValueError, match="1 different patient_id"):
        GradingBoard(cores.assign(patient_id=1), board.maps, board.slides._sources, readers=["anna"])


def test_each_pattern_has_its_colour():
    layer = PatternMap(Raster(np.arange(4, dtype=np.float32)[None], 10.0))
    layer.place(open_slide(np.zeros((10, 40, 3), np.uint8), mpp=1.0))
    palette = layer._palette()
    assert [palette[c - 1] for c in layer._codes[0]] == list(COLOURS)
    assert [name for name, _ in layer.legend()] == list(PATTERNS)


def test_the_legend_says_each_pattern_once(board, monkeypatch):
    from matplotlib.patches import Patch

    said, made = [], Patch.__init__

    def noted(self, *args, **options):
        said.append(options.get("label"))
        made(self, *args, **options)

    monkeypatch.setattr(Patch, "__init__", noted)
    board._view().snapshot(width_px=400)
    assert {"pattern 3", "pattern 4", "pattern 5", "pattern: benign"} <= set(said)
    assert not [s for s in said if s and s.startswith("pattern: pattern")]


def test_a_pattern_map_by_hand():
    """Two patches that overlap by half, at 2 µm/px on a slide of 1 µm/px: where both lie, the surer one decides."""
    table = pd.DataFrame({"slide_id": "s", "x_l0": [0, 64], "y_l0": [0, 0], "size_px": 64, "mpp": 2.0})
    table[[f"p_{p}" for p in PATTERNS]] = [[0.6, 0.4, 0, 0], [0, 0.1, 0.9, 0]]
    raster = pattern_map(table, slide_mpp=1.0)
    assert raster.mpp == 64
    np.testing.assert_array_equal(raster.values, [[0, 2, 2], [0, 2, 2]])
    with pytest.raises(ValueError, match="those of 2 slides"):
        pattern_map(table.assign(slide_id=["s", "t"]), slide_mpp=1.0)
