"""Points: candidates, matching by hand and against the optimal assignment, hot spots."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pathkit import counting, stain
from pathkit.slide import open_slide


def points(xy, score=None, slide_id="a"):
    xy = np.asarray(xy, float).reshape(-1, 2)
    table = pd.DataFrame({"slide_id": slide_id, "x_um": xy[:, 0], "y_um": xy[:, 1]})
    return table if score is None else table.assign(score=score)


def test_matching_by_hand():
    found = points([(0, 0), (3, 0), (50, 0), (100, 0)], [0.5, 0.9, 0.8, 0.7])
    matched, truth = counting.match_points(found, points([(1, 0), (56, 0), (200, 0)]))
    assert matched["outcome"].tolist() == ["false alarm", "hit", "hit", "false alarm"]
    assert truth["found_at"].tolist() == [0.9, 0.8, -np.inf]
    curve = counting.precision_recall(matched, 3)
    assert curve["precision"].tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert curve["recall"].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert counting.best_threshold(matched, 3) == 0.8
    assert curve["f1"].max() == pytest.approx(0.8)


def test_slides_are_matched_apart():
    matched, truth = counting.match_points(points([(0, 0)], [1.0], "b"), points([(0, 0)]))
    assert matched["outcome"].tolist() == ["false alarm"]
    assert truth["found_at"].tolist() == [-np.inf]


@given(st.integers(0, 10_000))
def test_points_that_are_far_apart_are_matched_as_the_optimal_assignment_does(seed):
    """True cells stand 40 µm apart, so that no detection has a choice: greedy and optimal must agree."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(-1, 2) * 40.0
    truth = points(grid[rng.random(16) < 0.7])
    found = grid[rng.random(16) < 0.7] + rng.normal(0, 4, (1, 2))
    found = points(found, rng.random(len(found)))
    matched, _ = counting.match_points(found, truth)
    away = np.hypot(
        *(found[["x_um", "y_um"]].to_numpy()[:, None] - truth[["x_um", "y_um"]].to_numpy()).transpose(2, 0, 1)
    )
    pairs = linear_sum_assignment(-(away <= 7.5).astype(float))
    assert (matched["outcome"] == "hit").sum() == (away[pairs] <= 7.5).sum()


def test_a_wider_radius_never_finds_less():
    rng = np.random.default_rng(1)
    found, truth = points(rng.uniform(0, 300, (60, 2)), rng.random(60)), points(rng.uniform(0, 300, (40, 2)))
    hits = [
        (counting.match_points(found, truth, radius_um=r)[0]["outcome"] == "hit").sum()
        for r in (2, 5, 10, 20)
    ]
    assert hits == sorted(hits)


def test_suppression_keeps_the_best_of_each_group():
    kept = counting.suppress(points([(0, 0), (4, 0), (8, 0), (100, 0)], [0.5, 0.9, 0.6, 0.1]))
    assert kept["score"].tolist() == [0.9, 0.1]
    assert len(counting.suppress(kept)) == 2


def test_f1_by_hand():
    counts = pd.DataFrame({"hits": [3, 0], "false_alarms": [1, 0], "missed": [0, 2]})
    assert counting.f1(counts) == pytest.approx(2 * 3 / (6 + 1 + 2))
    assert np.isnan(counting.f1(counts * 0))


def test_the_hot_spot_holds_the_cluster():
    rng = np.random.default_rng(3)
    cluster = points(rng.normal((700, 400), 40, (30, 2)))
    everything = pd.concat([cluster, points(rng.uniform(0, 2000, (20, 2)))], ignore_index=True)
    spot = counting.hot_spot(everything, area_mm2=0.1)
    assert spot["radius_um"] == pytest.approx(np.sqrt(0.1e6 / np.pi))
    assert np.hypot(spot["x_um"] - 700, spot["y_um"] - 400) < 120
    assert counting.inside(everything, spot).sum() == spot["n"]
    assert spot["per_mm2"] == pytest.approx(spot["n"] / 0.1)
    assert spot["n"] >= 28
    # No grid of centres finds more than a few beyond it.
    centres = np.stack(np.meshgrid(np.arange(0, 2000, 20), np.arange(0, 2000, 20)), -1).reshape(-1, 2)
    away = np.hypot(*(centres[:, None] - everything[["x_um", "y_um"]].to_numpy()).transpose(2, 0, 1))
    assert spot["n"] >= (away <= spot["radius_um"]).sum(1).max() - 1


def test_moving_all_points_moves_the_hot_spot():
    rng = np.random.default_rng(4)
    here = points(rng.uniform(0, 800, (40, 2)))
    there = here.assign(x_um=here["x_um"] + 1000)
    a, b = (counting.hot_spot(t, area_mm2=0.2) for t in (here, there))
    assert (b["x_um"] - a["x_um"], b["y_um"] - a["y_um"], b["n"]) == pytest.approx((1000, 0, a["n"]))


def test_blobs_are_where_haematoxylin_was_painted():
    places = np.array([(40, 50), (120, 60), (70, 140), (160, 160)])
    amounts = np.full((400, 400, 2), (0.05, 0.2))
    yy, xx = np.mgrid[:400, :400] * 0.5 + 0.25
    for x, y in places:
        amounts[..., 0] += 0.9 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * 2.5**2))
    slide = open_slide(stain.combine(amounts, stain.MACENKO, white=245), mpp=0.5)
    fit = stain.StainFit(stain.MACENKO, [0.9, 0.4], 245)
    found = counting.haematoxylin_blobs(slide, fit, least=0.5)
    matched, truth = counting.match_points(found, points(places, slide_id=slide.name), radius_um=1.5)
    assert (matched["outcome"] == "hit").all()
    assert np.isfinite(truth["found_at"]).all()
    assert len(counting.haematoxylin_blobs(slide, fit, least=2.0)) == 0


def test_impossible_requests():
    with pytest.raises(ValueError, match="no column 'score'"):
        counting.match_points(points([(0, 0)]), points([(0, 0)]))
    with pytest.raises(ValueError, match="radius_um must be positive"):
        counting.match_points(points([(0, 0)], [1]), points([(0, 0)]), radius_um=0)
    with pytest.raises(ValueError, match="nothing to find"):
        counting.precision_recall(points([], []).assign(outcome=[]), 0)
    with pytest.raises(ValueError, match="no points"):
        counting.hot_spot(points([]))
    with pytest.raises(ValueError, match="area_mm2 must be positive"):
        counting.hot_spot(points([(0, 0)]), area_mm2=0)


def test_two_plates_of_a_cell_are_one_where_detections_must_lie_further_apart():
    plates = points([(-5, 0), (5, 0), (100, 0), (200, 0)], [0.9, 0.8, 0.7, 0.1])
    cells = points([(0, 0), (100, 0)])
    assert counting.tune(plates, cells) == {"f1": 1.0, "apart_um": 10.0, "threshold": 0.7}
    assert counting.tune(plates, cells, apart_um=(7.5,)) == {
        "f1": pytest.approx(0.8),
        "apart_um": 7.5,
        "threshold": 0.7,
    }
    with pytest.raises(ValueError, match="nothing to find"):
        counting.tune(plates, cells.iloc[:0])


def test_counts_at_a_threshold_by_hand():
    found = pd.concat([points([(0, 0), (50, 0), (80, 0)], [0.9, 0.4, 0.8]), points([(0, 0)], [0.9], "b")])
    cells = pd.concat([points([(1, 0), (51, 0)]), points([(300, 0)], slide_id="c")])
    matched, reached = counting.match_points(found.reset_index(drop=True), cells.reset_index(drop=True))
    slides = pd.DataFrame({"slide_id": list("abcd"), "patient_id": list("1123")})
    counts = counting.counts_at(matched, reached, 0.5, slides)
    assert counts["patient_id"].tolist() == list("1123")
    assert counts[["hits", "false_alarms", "missed"]].to_numpy().tolist() == [
        [1, 1, 1],
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 0],
    ]
    assert counting.f1(counts) == pytest.approx(2 / 6)
