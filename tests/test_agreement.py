"""Agreement: by hand, by Fleiss' own table, by an independent search for the likeliest truth."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pathkit.agreement import consensus, outline_dice, pairwise, patch_ratings, staple
from pathkit.annotations import annotation_frame, rasterize
from pathkit.annotations.rows import Row
from pathkit.metrics import dice, kappa


def outlines(*boxes):
    return annotation_frame([Row(shapely.box(*b), "tumour") for b in boxes])


@given(shift=st.integers(0, 120), side=st.integers(10, 60))
def test_dice_of_outlines_by_hand_and_by_pixels(shift, side):
    a, b = outlines((0, 0, 60, 60)), outlines((shift, 0, shift + side, 60))
    shared = max(0, min(60, shift + side) - shift) * 60
    assert outline_dice(a, b) == pytest.approx(2 * shared / (3600 + 60 * side))
    masks = [rasterize(f, mpp=1.0, slide_mpp=1.0, dimensions=(200, 60)).values > 0 for f in (a, b)]
    assert outline_dice(a, b) == pytest.approx(dice(*masks))


def test_outlines_that_overlap_count_once_and_nothing_agrees_with_nothing():
    assert outline_dice(outlines((0, 0, 10, 10), (5, 0, 15, 10)), shapely.box(0, 0, 15, 10)) == 1
    assert outline_dice(outlines(), outlines()) == 1
    assert outline_dice(outlines((0, 0, 1, 1)), outlines()) == 0
    bow_tie = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert outline_dice(bow_tie, shapely.box(0, 0, 2, 2)) == pytest.approx(2 * 2 / (2 + 4))
    assert outline_dice(outlines((0, 0, 4, 4)), outlines((2, 0, 6, 4)), within=shapely.box(2, 0, 4, 4)) == 1


def test_pairs_of_readers():
    readings = {"a": outlines((0, 0, 10, 10)), "b": outlines((0, 0, 10, 5)), "c": outlines((0, 5, 10, 10))}
    table = pairwise(readings, outline_dice)
    assert table.loc["a", "b"] == table.loc["b", "a"] == pytest.approx(2 * 50 / 150)
    assert table.loc["b", "c"] == 0
    assert (np.diag(table) == 1).all()
    with pytest.raises(ValueError, match="needs two"):
        pairwise({"a": readings["a"]}, outline_dice)


def test_ratings_of_patches():
    patches = pd.DataFrame(
        {"slide_id": "s", "x_l0": [0, 10, 20], "y_l0": 0, "size_px": 10, "mpp": 0.5}, index=[7, 8, 9]
    )
    readings = {"a": outlines((0, 0, 16, 10)), "b": outlines((0, 0, 14, 10))}
    ratings = patch_ratings(patches, readings, slide_mpp=0.5)
    assert ratings["a"].tolist() == ["tumour", "tumour", "normal"]
    assert ratings["b"].tolist() == ["tumour", "normal", "normal"]
    assert ratings.index.tolist() == [7, 8, 9]
    assert kappa(ratings["a"], ratings["b"]) == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))


# Consensus -------------------------------------------------------------------------------------------------------


def simulated(n=3000, seed=0, rates=((0.95, 0.9), (0.8, 0.97), (0.7, 0.75))):
    """Readers with known sensitivity and specificity."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.3).astype(int)
    ratings = [
        np.where(truth == 1, rng.random(n) < sens, rng.random(n) > spec).astype(int) for sens, spec in rates
    ]
    return truth, np.stack(ratings, 1), rates


def test_the_readers_errors_are_found():
    _, ratings, rates = simulated()
    found = consensus(ratings)
    np.testing.assert_allclose(found.confusion[:, 1, 1], [s for s, _ in rates], atol=0.04)
    np.testing.assert_allclose(found.confusion[:, 0, 0], [s for _, s in rates], atol=0.04)
    np.testing.assert_allclose(found.confusion.sum(2), 1)
    assert found.prior[1] == pytest.approx(0.3, abs=0.03)


def test_one_good_reader_among_poor_ones_outweighs_the_vote():
    truth, ratings, _ = simulated(rates=[(0.97, 0.97), *[(0.65, 0.7)] * 4])
    vote = ratings.sum(1) >= 3
    assert (consensus(ratings).label == truth).mean() > (vote == truth).mean() + 0.05


def likelihood(ratings, prior, sens, spec):
    """Written out, one item and reader at a time."""
    total = 0.0
    for row in ratings:
        positive, negative = prior, 1 - prior
        for r, said in enumerate(row):
            positive *= sens[r] if said else 1 - sens[r]
            negative *= 1 - spec[r] if said else spec[r]
        total += np.log(positive + negative)
    return total


def test_no_other_errors_explain_the_ratings_better():
    _, ratings, _ = simulated(200, seed=3)
    found = consensus(ratings)
    best = (found.prior[1], found.confusion[:, 1, 1], found.confusion[:, 0, 0])
    value = likelihood(ratings, *best)
    for which, reader, step in itertools.product(range(3), range(3), (-0.02, 0.02)):
        other = [best[0], best[1].copy(), best[2].copy()]
        if which == 0:
            other[0] += step
        else:
            other[which][reader] = np.clip(other[which][reader] + step, 1e-6, 1 - 1e-6)
        assert likelihood(ratings, *other) <= value + 1e-6


def test_missing_ratings_names_and_the_order_of_items():
    ratings = pd.DataFrame({"a": ["x", "y", "y", None], "b": ["x", "y", "x", "y"], "c": ["x", "y", "y", "y"]})
    found = consensus(ratings)
    assert found.classes == ("x", "y")
    assert found.label.tolist() == ["x", "y", "y", "y"]
    turned = consensus(ratings.iloc[::-1])
    np.testing.assert_allclose(turned.probability[::-1], found.probability, atol=1e-6)


def test_staple_is_the_consensus_with_a_fixed_prior():
    truth, ratings, _ = simulated(2500)
    masks = [ratings[:, r].reshape(50, 50) for r in range(3)]
    found = staple(masks)
    share = ratings.mean()
    same = consensus(ratings, prior=[1 - share, share])
    np.testing.assert_allclose(found.probability.ravel(), same.probability[:, 1], atol=1e-6)
    np.testing.assert_allclose(found.sensitivity, same.confusion[:, 1, 1], atol=1e-6)
    assert dice(found.mask, truth.reshape(50, 50)) > max(dice(m, truth.reshape(50, 50)) for m in masks[1:])


def test_staple_agrees_with_simpleitk():
    """Sensitivity and specificity that SimpleITK 2 (STAPLEImageFilter) gives for the same masks."""
    rng = np.random.default_rng(1)
    truth = np.zeros((60, 60), bool)
    truth[15:45, 20:50] = True
    masks = [
        np.where(truth, rng.random(truth.shape) < sens, rng.random(truth.shape) > spec)
        for sens, spec in ((0.95, 0.97), (0.8, 0.99), (0.9, 0.9))
    ]
    found = staple(masks)
    np.testing.assert_allclose(found.sensitivity, [0.93910003, 0.80004164, 0.89718054], atol=1e-6)
    np.testing.assert_allclose(found.specificity, [0.97211542, 0.98887118, 0.89904203], atol=1e-6)


def test_what_cannot_be_agreed_on():
    with pytest.raises(ValueError, match="at least two columns"):
        consensus(pd.DataFrame({"a": [1, 0]}))
    with pytest.raises(ValueError, match="nobody rated row 1"):
        consensus(pd.DataFrame({"a": ["x", None], "b": ["x", None]}))
    with pytest.raises(ValueError, match="'z' is not among the classes x, y"):
        consensus(pd.DataFrame({"a": ["x", "z"], "b": ["x", "y"]}), classes=["x", "y"])
    with pytest.raises(ValueError, match="one shape"):
        staple([np.zeros((2, 2)), np.zeros((2, 3))])
    with pytest.raises(ValueError, match="nothing to agree on"):
        staple([np.zeros((2, 2)), np.zeros((2, 2))])
