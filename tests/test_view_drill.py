"""The annotation drill and the split board: their numbers against shapely, by hand, and by what must follow from a move."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely

from pathkit.annotations import annotation_frame
from pathkit.annotations.rows import Row
from pathkit.slide import open_slide
from pathkit.view import AnnotationDrill, SplitBoard


def outlines(*shapes, name="tumour"):
    return annotation_frame([Row(s, name) for s in shapes])


@pytest.fixture
def drill():
    slide = open_slide(np.full((400, 600, 3), 230, np.uint8), mpp=1.0)
    xs, ys = np.meshgrid(range(0, 600, 50), range(0, 400, 50))
    patches = pd.DataFrame(
        {"slide_id": "s", "x_l0": xs.ravel(), "y_l0": ys.ravel(), "size_px": 50, "mpp": 1.0}
    )
    readers = {"A": outlines(shapely.box(100, 100, 320, 300)), "B": outlines()}
    made = AnnotationDrill(slide, outlines(shapely.box(100, 100, 300, 300)), patches=patches, readers=readers)
    yield made
    made.close()


def test_nothing_drawn_agrees_with_nothing(drill):
    assert drill.scores.loc["you", ["dice", "kappa", "patches"]].tolist() == [0, 0, 0]
    assert drill.scores.loc["you", "dice_you"] == 1
    assert drill.scores.loc["A", "dice"] == pytest.approx(2 * 40000 / (40000 + 44000))
    assert drill.scores.loc["B", "dice"] == 0


def test_dice_is_shapelys_after_every_stroke(drill):
    said = []
    drill.on_score(lambda scores: said.append(scores.loc["you", "dice"]))
    drawn = shapely.Polygon([(90, 120), (310, 95), (290, 280), (180, 330), (110, 300)])
    drill.drawn = outlines(drawn)
    truth = shapely.box(100, 100, 300, 300)
    expected = 2 * drawn.intersection(truth).area / (drawn.area + truth.area)
    assert drill.scores.loc["you", "dice"] == pytest.approx(expected, rel=1e-12)
    drill.drawn = outlines(truth)
    assert drill.scores.loc["you", ["dice", "kappa"]].tolist() == [1, 1]
    assert drill.scores.loc["A", "dice_you"] == drill.scores.loc["A", "dice"]
    drill.viewer.undo()
    assert said == pytest.approx([expected, 1, expected])


def test_the_browsers_strokes_count_as_well(drill):
    areas = {"xs": [[100, 300, 300, 100]], "ys": [[100, 100, 200, 200]], "class": ["tumour"]}
    nothing = drill.viewer._drawn
    drill.viewer._heard({"k": "drawn", "d": nothing | {"areas": areas}})
    assert drill.scores.loc["you", "dice"] == pytest.approx(2 / 3)
    assert drill.scores.loc["you", "patches"] == 8
    agreed, by_chance = 1 - 8 / 96, (16 * 8 + 80 * 88) / 96**2
    assert drill.scores.loc["you", "kappa"] == pytest.approx((agreed - by_chance) / (1 - by_chance))
    assert (drill._layer.table["label"] == "tumour").sum() == 8


def test_a_stricter_overlap_calls_fewer_patches(drill):
    drill.drawn = outlines(shapely.box(100, 100, 330, 330))
    counts = []
    for overlap in (0.1, 0.4, 0.7, 1.0):
        drill.min_overlap = overlap
        counts.append(drill.scores.loc["you", "patches"])
    assert counts == [25, 24, 16, 16]  # 5 x 5, without the corner, without the edges
    with pytest.raises(ValueError, match="min_overlap is a share"):
        drill.min_overlap = 0
    assert drill.min_overlap == 1.0


def test_the_drill_is_drawn_and_says_what_it_needs(drill):
    drill.drawn = outlines(shapely.box(100, 100, 330, 330))
    assert drill.snapshot()[:4] == b"\x89PNG"
    assert [layer.visible for layer in drill.viewer.layers] == [True, False, False]
    assert "of 96 patches are tumour" in drill.line
    with pytest.raises(ValueError, match="no outline of 'lesion'"):
        AnnotationDrill(drill.slide, drill.truth, patches=drill.patches, class_name="lesion")
    with pytest.raises(ValueError, match="no patch"):
        AnnotationDrill(drill.slide, drill.truth, patches=drill.patches[:0])
    with pytest.raises(ValueError, match="'you' is taken"):
        AnnotationDrill(drill.slide, drill.truth, patches=drill.patches, readers={"you": drill.truth})


# Split board -----------------------------------------------------------------------------------------------------


def cohort():
    rows = [
        {
            "slide_id": f"p{p}-{s}",
            "patient_id": f"p{p}",
            "site": "xy"[p % 2],
            "label": ["negative", "positive"][p // 2 % 2],
        }
        for p in range(8)
        for s in range(2)
    ]
    return pd.DataFrame(rows).assign(split=["train", "test"] * 8)


def remembered(train, test):
    """Knows the label of patients that it has seen, and of the others less than nothing."""
    seen = train.set_index("patient_id")["label"].to_dict()
    wrong = np.where(test["label"] == "positive", 0.4, 0.6)
    return [
        float(seen[p] == "positive") if p in seen else w
        for p, w in zip(test["patient_id"], wrong, strict=True)
    ]


def test_a_move_cures_a_leak_and_the_auc_falls():
    board = SplitBoard(cohort(), remembered)
    assert board.auc == 1
    assert len(board.leaking) == 8
    assert board.leaks.loc["patient_id", "leaked"] == 1
    board.move(["p0", "p1", "p2", "p3"], "test")
    assert board.leaking == ["p4", "p5", "p6", "p7"]
    state = board.history.iloc[-1]
    assert state["auc_leaking"] == 1
    assert state["auc_clean"] == 0
    assert 0 < state["auc"] < 1
    board.move(["p4", "p5", "p6", "p7"], "train")
    assert board.leaking == []
    assert board.leaks.loc["patient_id", "leaked"] == 0
    assert board.auc == 0
    board.move("p0-1", "train")
    assert board.leaking == ["p0"]
    assert board.history["leaking"].tolist() == [8, 4, 0, 1]
    assert "1 patient on both sides" in board.line


def test_the_board_is_drawn_and_says_what_it_needs():
    board = SplitBoard(cohort(), remembered)
    marks = board._marks()
    assert len(set(zip(marks["x"], marks["y"], strict=True))) == 16
    assert set(board._lines()["colour"]) == {"#d55e00"}
    assert board.snapshot()[:4] == b"\x89PNG"
    board.select(board.slides.index[:2])
    assert board.selection["split"].tolist() == ["train", "test"]
    with pytest.raises(ValueError, match="no slide or patient 'q'"):
        board.move("q", "test")
    with pytest.raises(ValueError, match="no part 'val'"):
        board.move("p0", "val")
    with pytest.raises(ValueError, match="would be empty"):
        board.move([f"p{i}" for i in range(8)], "train")
    with pytest.raises(ValueError, match="no column 'site'"):
        SplitBoard(cohort().drop(columns="site"), remembered)
    with pytest.raises(ValueError, match=r"is in 'val'"):
        SplitBoard(cohort().assign(split="val"), remembered)
