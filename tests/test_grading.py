"""Grading: the rules by hand, and what cannot be graded."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathkit.grading import (
    PATTERNS,
    composition,
    consensus,
    fit_cut_offs,
    gleason_score,
    grade,
    isup_grade,
)


@pytest.mark.parametrize(
    ("shares", "score", "group"),
    [
        ((1, 0, 0, 0), None, 0),
        ((0.4, 0.6, 0, 0), (3, 3), 1),
        ((0.4, 0.4, 0.2, 0), (3, 4), 2),
        ((0.4, 0.2, 0.4, 0), (4, 3), 3),
        ((0, 0.3, 0.3, 0), (4, 3), 3),  # the higher of two equals is the primary
        ((0.2, 0, 0.8, 0), (4, 4), 4),
        ((0.2, 0.6, 0, 0.2), (3, 5), 4),
        ((0.2, 0.2, 0, 0.6), (5, 3), 4),
        ((0.2, 0, 0.6, 0.2), (4, 5), 5),
        ((0.2, 0, 0.2, 0.6), (5, 4), 5),
        ((0, 0, 0, 1), (5, 5), 5),
        ((0, 0.60, 0.35, 0.05), (3, 5), 4),  # the highest of the others that takes 5%
        ((0, 0.60, 0.36, 0.04), (3, 4), 2),  # 4% do not
        ((0, 0.97, 0.03, 0), (3, 3), 1),
    ],
)
def test_the_rules_by_hand(shares, score, group):
    given_ = dict(zip(PATTERNS, shares, strict=True))
    assert gleason_score(given_) == score
    assert isup_grade(given_) == group
    table = grade(pd.DataFrame([given_], index=["core"]).assign(patient_id="a"))
    assert table["isup"].tolist() == [group]
    assert table["gleason"].tolist() == ["benign" if score is None else f"{score[0]}+{score[1]}"]
    assert table["patient_id"].tolist() == ["a"]


def test_cut_offs():
    shares = {"benign": 0.9, "pattern 3": 0.07, "pattern 4": 0.03}
    assert isup_grade(shares) == 2
    assert isup_grade(shares, least_tumour=0.1) == 2
    assert isup_grade(shares, least_tumour=0.11) == 0
    assert isup_grade(shares, least_secondary=0.31) == 1
    assert isup_grade({"pattern 4": 0.5, "pattern 5": 0.0}, least_secondary=0) == 4


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(0.01, 100), st.floats(0, 0.5))
def test_a_grade_depends_on_proportions_alone_and_looser_cut_offs_never_hide_tumour(parts, factor, least):
    shares = dict(zip(PATTERNS, parts, strict=True))
    if 0 < sum(parts) < 1e-6:
        return
    scaled = {k: v * factor for k, v in shares.items()}
    if all(v == 0 or v > 1e-6 for v in parts):
        a, b = gleason_score(shares, least_secondary=0.333), gleason_score(scaled, least_secondary=0.333)
        ranked = sorted(parts[1:])
        if ranked[2] - ranked[1] > 1e-9 and all(abs(p - 0.333 * sum(parts[1:])) > 1e-9 for p in parts[1:]):
            assert a == b
    if isup_grade(shares, least_tumour=least) > 0:
        assert isup_grade(shares, least_tumour=0) > 0


def test_composition_by_hand_and_what_is_missing():
    table = pd.DataFrame(
        {
            "slide_id": list("aaaab"),
            "predicted": ["benign", "benign", "pattern 3", "pattern 4", "pattern 5"],
            "p_benign": [0.9, 0.7, 0.1, 0.1, 0.0],
            "p_pattern 3": [0.1, 0.2, 0.8, 0.1, 0.0],
            "p_pattern 4": [0.0, 0.1, 0.1, 0.8, 0.0],
            "p_pattern 5": [0.0, 0.0, 0.0, 0.0, 1.0],
        }
    )
    counted = composition(table, slides=["a", "b"])
    assert counted.loc["a", list(PATTERNS)].tolist() == [0.5, 0.25, 0.25, 0.0]
    assert counted.loc["b", list(PATTERNS)].tolist() == [0, 0, 0, 1]
    assert counted["patches"].tolist() == [4, 1]
    soft = composition(table, soft=True)
    np.testing.assert_allclose(soft.loc["a", list(PATTERNS)].astype(float), [0.45, 0.3, 0.25, 0.0])
    assert grade(counted)["gleason"].tolist() == ["4+3", "5+5"]
    with pytest.raises(ValueError, match=r"1 slides have no patch, first 'c': no tissue"):
        composition(table, slides=["a", "b", "c"])
    with pytest.raises(ValueError, match="'stroma' is none of benign"):
        composition(table.assign(predicted="stroma"))
    with pytest.raises(ValueError, match="no column 'p_benign'"):
        composition(table.drop(columns="p_benign"), soft=True)


def test_the_consensus_is_the_median():
    assert consensus([[1, 2, 5], [0, 0, 4], [3, 3, 3]]).tolist() == [2, 0, 3]
    assert consensus([[2, 5]]).tolist() == [2]
    with pytest.raises(ValueError, match="no reader"):
        consensus(np.zeros((2, 0)))


def test_what_cannot_be_graded():
    with pytest.raises(ValueError, match=r"no pattern .'pattern 6'"):
        isup_grade({"pattern 6": 1.0})
    with pytest.raises(ValueError, match="negative or no number"):
        isup_grade({"pattern 3": -0.1})
    with pytest.raises(ValueError, match="negative or no number"):
        isup_grade({"pattern 3": float("nan")})
    with pytest.raises(ValueError, match="least_secondary is a share"):
        isup_grade({"pattern 3": 1.0}, least_secondary=5)
    with pytest.raises(ValueError, match="no pattern"):
        grade(pd.DataFrame({"slide_id": ["a"]}))


def test_fitted_cut_offs_undo_a_known_share_of_mistakes():
    """Up to 8% of each core is called pattern 5 by mistake, and every tumour takes 40%: the cut-offs lie between."""
    rng = np.random.default_rng(0)
    grades = np.tile(np.arange(6), 8)
    tumour = {0: (0, 0, 0), 1: (1, 0, 0), 2: (0.7, 0.3, 0), 3: (0.3, 0.7, 0), 4: (0, 1, 0), 5: (0, 0.6, 0.4)}
    mistakes = rng.uniform(0, 0.08, len(grades))
    shares = np.array([tumour[g] for g in grades]) * 0.4
    shares[:, 2] += mistakes
    table = pd.DataFrame(np.column_stack([1 - shares.sum(1), shares]), columns=list(PATTERNS))
    cut_offs = fit_cut_offs(table, grades)
    assert 0.08 <= cut_offs["least_tumour"] < 0.4
    assert 0.16 <= cut_offs["least_secondary"] <= 0.34
    assert grade(table, **cut_offs)["isup"].tolist() == grades.tolist()
    assert grade(table)["isup"].tolist() != grades.tolist()
    with pytest.raises(ValueError, match="one grade from 0 to 5 for each of 48"):
        fit_cut_offs(table, grades[:3])
    with pytest.raises(ValueError, match="from 0 to 5"):
        fit_cut_offs(table, grades + 1)
