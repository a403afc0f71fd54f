"""Scores against guidelines done by hand; cells painted with a known stain; agreement against published numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from pathkit.scoring import (
    allred,
    bland_altman,
    cells,
    cps,
    fit_cuts,
    h_score,
    her2_score,
    hot_spot,
    icc,
    levels,
    positive_share,
    tps,
)
from pathkit.stain import combine


def mixed(**shares: int) -> np.ndarray:
    """Levels by their percentages, n0=, n1=, ..."""
    return np.repeat([0, 1, 2, 3], [shares.get(f"n{k}", 0) for k in range(4)])


def test_h_score_is_the_weighted_sum_of_percentages():
    assert h_score(mixed(n0=40, n1=30, n2=20, n3=10)) == 30 + 40 + 30
    assert h_score(mixed(n3=5)) == 300
    assert positive_share(mixed(n0=40, n1=60)) == 0.6


@pytest.mark.parametrize(
    ("level", "score"),
    [
        (mixed(n0=1000), 0),
        (mixed(n0=995, n1=5), 1 + 1),
        (mixed(n0=990, n3=10), 1 + 3),  # exactly 1/100
        (mixed(n0=95, n2=5), 2 + 2),
        (mixed(n0=70, n2=30), 3 + 2),
        (mixed(n0=50, n1=25, n2=25), 4 + 2),  # mean 1.5 is rounded up
        (mixed(n0=10, n3=90), 5 + 3),
    ],
)
def test_allred_by_its_table(level, score):
    assert allred(level) == score


@pytest.mark.parametrize(
    ("strong", "whole", "some", "score"),
    [
        (11, 0, 0, 3),
        (10, 0, 0, 2),
        (0, 11, 0, 2),
        (0, 10, 0, 0),
        (0, 10, 1, 1),
        (0, 0, 11, 1),
        (0, 0, 10, 0),
        (0, 0, 0, 0),
    ],
)
def test_her2_by_the_guideline(strong, whole, some, score):
    level = np.repeat([3, 2, 1, 0], [strong, whole, some, 100 - strong - whole - some])
    completeness = np.repeat([1.0, 0.9, 0.4, 0.0], [strong, whole, some, 100 - strong - whole - some])
    assert her2_score(level, completeness) == score


def test_pdl1_scores_count_what_they_should():
    tumour, immune = mixed(n0=80, n1=20), mixed(n0=10, n2=50)
    assert tps(tumour) == 20
    assert cps(tumour, immune) == 70
    assert cps(tumour, mixed(n3=500)) == 100
    assert cps(tumour, []) == 20


def test_hot_spot_lies_where_the_positive_cells_are_and_ignores_small_crowds():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (3000, 2))
    table = pd.DataFrame(xy, columns=["x_um", "y_um"])
    level = (np.hypot(*(xy - 300).T) < 100).astype(int)
    found = hot_spot(table, level, radius_um=80, least_cells=20)
    assert np.hypot(found["x_um"] - 300, found["y_um"] - 300) < 60
    assert found["share"] > 0.9
    assert found["share"] >= positive_share(level)
    with pytest.raises(ValueError, match="larger radius_um"):
        hot_spot(table, level, radius_um=5, least_cells=500)


def painted(dab_nucleus: float, dab_membrane: float, part: float = 1.0) -> np.ndarray:
    """One cell: nucleus of 8 µm, membrane of 1 µm at 2 µm around it, `part` of the way round."""
    y, x = np.indices((80, 80)) - 40
    radius, angle = np.hypot(y, x), np.arctan2(y, x) / (2 * np.pi) + 0.5
    stain = np.zeros((80, 80, 3))
    stain[radius < 8, 0] = 0.5
    stain[radius < 8, 2] = dab_nucleus
    stain[(radius > 10.5) & (radius < 13.5) & (angle < part), 2] = dab_membrane
    return combine(stain)


def test_cells_give_back_the_painted_stain():
    nuclear = cells(painted(0.6, 0.0), mpp=0.5)
    assert len(nuclear) == 1
    # The outline takes the blurred rim along, and the mean over it is lower by that share.
    share = np.pi * 8**2 / 4 / nuclear["area_um2"].iloc[0]
    assert share > 0.8
    assert nuclear["dab"].iloc[0] == pytest.approx(0.6 * share, abs=0.05)
    for part in (0.0, 0.5, 1.0):
        row = cells(painted(0.0, 0.9, part), mpp=0.5, membrane=True).iloc[0]
        assert row["completeness"] == pytest.approx(part, abs=0.13)
        assert row["dab"] < 0.05
        if part:
            assert row["membrane_dab"] == pytest.approx(0.9, abs=0.12)
    empty = cells(np.full((40, 40, 3), 245, np.uint8), mpp=0.5, membrane=True)
    assert len(empty) == 0
    assert "completeness" in empty


def test_pale_and_brown_nuclei_are_found_alike():
    y, x = np.indices((120, 160))
    stain = np.zeros((120, 160, 3))
    stain[..., 0] = 0.05
    for k, c in enumerate((20, 55, 90, 125)):
        nucleus = np.hypot(y - 60, x - c) < 9
        stain[nucleus, 0], stain[nucleus, 2] = 0.4, (0.0, 0.3, 0.6, 1.0)[k]
    found = cells(combine(stain), mpp=0.5).sort_values("x_um")
    assert len(found) == 4
    assert (levels(found["dab"], (0.12, 0.36, 0.6)) == [0, 1, 2, 3]).all()


def test_fitted_cuts_part_what_can_be_parted():
    cuts = fit_cuts([0.1, 0.2, 0.3, 0.5, 0.6, 0.9], [0, 0, 1, 2, 2, 3])
    assert cuts == pytest.approx((0.25, 0.4, 0.75))
    assert levels([0.1, 0.2, 0.3, 0.5, 0.6, 0.9], cuts).tolist() == [0, 0, 1, 2, 2, 3]
    assert fit_cuts([0.0, 0.2, 0.4, 0.9], [0, 1, 0, 1], n=1) == pytest.approx(
        (0.1,)
    )  # the lower of two equal ones


@pytest.mark.parametrize("seed", range(6))
def test_no_other_cuts_come_nearer_to_the_levels_read(seed):
    rng = np.random.default_rng(seed)
    level = np.append(rng.integers(0, 4, 30), [0, 1, 2, 3])
    value = np.round(0.3 * level + rng.normal(0, 0.3, len(level)), 1)  # with many ties
    cuts = fit_cuts(value, level)
    borders = np.append(np.unique(value), value.max() + 1)
    least = min(
        np.abs(np.searchsorted(some, value, side="right") - level).mean()
        for some in itertools.combinations_with_replacement(borders, 3)
    )
    assert np.abs(levels(value, cuts) - level).mean() == pytest.approx(least)
    assert np.abs(levels(value * 2 + 1, fit_cuts(value * 2 + 1, level)) - level).mean() == pytest.approx(
        least
    )


def test_icc_is_that_of_shrout_and_fleiss():
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert icc(ratings) == pytest.approx(0.29, abs=0.005)  # their table 4
    assert icc([[1, 1], [2, 2], [5, 5]]) == 1
    assert icc([[1, 3], [2, 4], [5, 7]]) < 1  # a constant bias is disagreement


def test_bland_altman_by_hand():
    agreement = bland_altman([1, 2, 3], [0, 2, 1])  # differences 1, 0, 2
    assert agreement.bias == 1
    assert (agreement.low, agreement.high) == pytest.approx((1 - 1.96, 1 + 1.96))


def test_bad_input_names_the_way_out():
    with pytest.raises(ValueError, match="no cell to score"):
        h_score([])
    with pytest.raises(ValueError, match="levels are 0, 1, 2 or 3"):
        allred([0.2, 0.7])
    with pytest.raises(ValueError, match="three ascending"):
        levels([0.1], (0.3, 0.2, 0.5))
    with pytest.raises(ValueError, match="Take more patients"):
        fit_cuts([0.1, 0.2], [0, 2])
    with pytest.raises(ValueError, match="one finite value and one level"):
        fit_cuts([0.1, np.nan], [0, 1], n=1)
    with pytest.raises(ValueError, match="two or more pairs"):
        bland_altman([1], [2])
    assert levels([0.0, 0.2, 0.5, 0.9], (0.2, 0.5, 0.9)).tolist() == [0, 1, 2, 3]
