"""A detector of two networks, on painted dots: it must tell dark squares from dark discs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pathkit import counting, detection
from pathkit.slide import open_slide


@pytest.fixture(scope="module")
def painted():
    """Three slides of crosses (cells) and discs (others) of equal darkness: slides, candidates, truth."""
    slides, rows = {}, []
    yy, xx = np.mgrid[-8:8, -8:8] + 0.5
    disc, cross = (
        np.hypot(xx, yy) < 5,
        (np.minimum(abs(xx), abs(yy)) < 2) & (np.maximum(abs(xx), abs(yy)) < 7),
    )
    for number, name in enumerate("abc"):
        rng = np.random.default_rng(number)
        pixels = rng.integers(215, 235, (512, 512, 3)).astype(np.uint8)
        for i, y in enumerate(range(20, 490, 32)):
            for j, x in enumerate(range(20, 490, 32)):
                is_cell = (i + 2 * j) % 5 == 0
                pixels[y - 8 : y + 8, x - 8 : x + 8][cross if is_cell else disc] = (90, 60, 140)
                rows.append((name, x * 0.5, y * 0.5, is_cell))
        slides[name] = open_slide(pixels, mpp=0.5)
    places = pd.DataFrame(rows, columns=["slide_id", "x_um", "y_um", "cell"])
    table = pd.DataFrame({"slide_id": list("abc"), "patient_id": list("abc"), "mpp": 0.5})
    return slides, table, places.drop(columns="cell"), places[places["cell"]].drop(columns="cell")


def test_candidates_are_labelled_by_distance(painted):
    _, table, _, truth = painted
    near = truth.iloc[:3].assign(x_um=lambda t: t["x_um"] + np.array([2.0, 9.0, 40.0]), score=1.0)
    patches = detection.candidate_patches(near, table, truth.iloc[:3], size_px=32)
    assert patches["label"].tolist()[:2] == ["mitosis", ""]
    middle = patches["x_l0"] * 0.5 + 32 * 0.5 / 2
    assert np.abs(middle - near["x_um"].to_numpy()).max() <= 0.25


def test_it_learns_what_tells_cells_from_others(painted):
    slides, table, places, truth = painted
    patches = detection.candidate_patches(places.assign(score=1.0), table, truth, size_px=32)
    parts = [patches[patches["slide_id"] == name] for name in "abc"]
    detector = detection.train_detector(
        parts[0], parts[1], slides=slides, epochs=(6, 6), n_negative=120, repeat=3, seed=1
    )
    scored = detector.score(parts[2], slides)
    here = truth[truth["slide_id"] == "c"]
    matched, _ = counting.match_points(scored, here)
    assert counting.precision_recall(matched, len(here))["f1"].max() > 0.9
    assert (detector.hard["label"] == "other").all()
    assert detector.hard["score"].is_monotonic_decreasing
    both = [detector.score(parts[2], slides, stage=s)["score"].to_numpy() for s in ("first", "second")]
    wanted = np.where(both[0] > detection.LEAST, both[1], 0)
    assert scored["score"].to_numpy() == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(ValueError, match="stage is first, second or both"):
        detector.score(parts[2], slides, stage="third")


def test_patients_without_a_cell_are_refused(painted):
    slides, table, places, truth = painted
    patches = detection.candidate_patches(places, table, truth, size_px=32)
    none = patches[patches["label"] == "other"]
    with pytest.raises(ValueError, match="val has no patch labelled 'mitosis'"):
        detection.train_detector(patches, none, slides=slides)
