"""Metrics: they agree with other implementations and with cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pathkit.metrics import (
    Interval,
    auc,
    auc_within,
    average_precision,
    bootstrap,
    bootstrap_difference,
    dice,
    fleiss_kappa,
    froc,
    froc_interval,
    iou,
    kappa,
    match_detections,
    pairwise_kappa,
    predictive_values,
    roc_points,
    sensitivity_at,
    spared,
)


def scored(n=200, seed=0, effect=1.0):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.4
    return pd.DataFrame({"patient_id": np.arange(n) // 4, "y": y, "score": rng.normal(effect * y)})


@given(seed=st.integers(0, 500))
def test_auc_is_the_share_of_pairs_in_order(seed):
    table = scored(40, seed)
    positive, negative = table.score[table.y].to_numpy(), table.score[~table.y].to_numpy()
    if not len(positive) or not len(negative):
        return
    pairs = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert auc(table.y, table.score) == pytest.approx(pairs)
    assert auc(table.y, np.exp(table.score)) == pytest.approx(pairs)
    assert auc(~table.y, -table.score) == pytest.approx(pairs)


def test_average_precision_by_hand():
    # Ranked: hit, miss, hit. Precision 1 at recall 1/2, 2/3 at recall 1.
    assert average_precision([1, 0, 1], [0.9, 0.8, 0.7]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_roc_points_and_sensitivity_by_hand():
    points = roc_points([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])
    assert points["tpr"].tolist() == [0, 0.5, 0.5, 1, 1]
    assert points["fpr"].tolist() == [0, 0, 0.5, 0.5, 1]
    assert sensitivity_at([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], specificity=0.5) == 1
    assert sensitivity_at([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], specificity=1) == 0.5


def test_kappa_by_hand_and_with_an_order():
    # Agreement 6/8 observed, 1/2 expected.
    a, b = [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0, 0]
    assert kappa(a, b) == pytest.approx(0.5)
    near, far = [0, 1, 2, 3, 3], [0, 1, 2, 3, 0]
    truth = [0, 1, 2, 3, 2]
    assert kappa(truth, near, weights="quadratic") > kappa(truth, far, weights="quadratic")
    text = kappa(
        ["low", "mid", "high"], ["low", "high", "high"], weights="linear", labels=["low", "mid", "high"]
    )
    assert text == pytest.approx(kappa([0, 1, 2], [0, 2, 2], weights="linear"))
    assert kappa([2, 2], [2, 2]) == 1
    with pytest.raises(ValueError, match="labels="):
        kappa(["a", "b"], ["a", "a"], weights="linear")


def readings(n=40, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, n)
    table = pd.DataFrame({"patient_id": np.arange(n) // 2})
    for reader, noise in (("a", 0.4), ("b", 0.8), ("c", 2.0)):
        table[reader] = np.clip(np.rint(truth + rng.normal(0, noise, n)), 0, 5).astype(int)
    return table


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_pairwise_kappa_is_that_of_scikit_learn_and_its_interval_that_of_the_bootstrap(weights):
    from sklearn.metrics import cohen_kappa_score

    table, labels = readings(), list(range(6))
    pairs = pairwise_kappa(table, ["a", "b", "c"], labels=labels, weights=weights, n=300)
    assert [tuple(p) for p in pairs[["first", "second"]].to_numpy()] == [
        ("a", "b"), ("a", "c"), ("b", "c"), ("mean", "mean")
    ]  # fmt: skip
    for first, second, found in pairs[:3].itertuples(index=False):
        expected = cohen_kappa_score(table[first], table[second], weights=weights, labels=labels)
        assert found.value == pytest.approx(expected)
        slow = bootstrap(
            lambda t, a=first, b=second: kappa(t[a], t[b], weights=weights, labels=labels), table, n=300
        )
        assert (found.low, found.high) == pytest.approx((slow.low, slow.high))
    assert pairs["kappa"].iloc[3].value == pytest.approx(np.mean([k.value for k in pairs["kappa"][:3]]))
    model = pairwise_kappa(table, ["a"], against=["b", "c"], labels=labels, weights=weights, n=50)
    assert model["second"].tolist() == ["b", "c", "mean"]


def test_pairwise_kappa_says_what_it_cannot_compare():
    table, labels = readings(), list(range(6))
    with pytest.raises(ValueError, match="no column 'd'"):
        pairwise_kappa(table, ["a", "d"], labels=labels)
    with pytest.raises(ValueError, match="column 'a', row 0 holds 9"):
        pairwise_kappa(table.assign(a=9), ["a", "b"], labels=labels)
    with pytest.raises(ValueError, match="1 different patient_id"):
        pairwise_kappa(table.assign(patient_id="one"), ["a", "b"], labels=labels)
    with pytest.raises(ValueError, match="weights are None"):
        pairwise_kappa(table, ["a", "b"], labels=labels, weights="cubic")
    agreed = pairwise_kappa(table.assign(a=3, b=3), ["a", "b"], labels=labels)["kappa"].iloc[0]
    assert (agreed.value, agreed.low) == (1.0, 1.0)


@given(seed=st.integers(0, 300))
def test_dice_and_iou_belong_together(seed):
    a, b = np.random.default_rng(seed).random((2, 8, 8)) > 0.6
    overlap = iou(a, b)
    assert dice(a, b) == pytest.approx(2 * overlap / (1 + overlap))
    assert dice(a, a) == 1
    assert dice(a, b) == dice(b, a)


#: Fleiss (1971), ten subjects and fourteen raters: how many chose each of five classes; his kappa is 0.210.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_fleiss_kappa_by_a_known_table_and_of_two():
    ratings = np.array([np.repeat(np.arange(5), row) for row in FLEISS])
    assert fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(ratings.astype(str)) == fleiss_kappa(ratings)
    assert fleiss_kappa([["a", "a"], ["b", "b"]]) == 1
    assert fleiss_kappa([["a", "b"], ["b", "a"]]) == pytest.approx(-1)
    assert fleiss_kappa([[1, 1, 1]]) == 1
    with pytest.raises(ValueError, match="at least two raters"):
        fleiss_kappa([[1], [2]])
    with pytest.raises(ValueError, match="missing in row 1"):
        fleiss_kappa([["a", "b"], ["a", None]])


def test_predictive_values_by_counting_people():
    ppv, npv = predictive_values(0.9, 0.8, [0.5, 0.01])
    assert ppv == pytest.approx([450 / (450 + 100), 9 / (9 + 198)])
    assert npv == pytest.approx([400 / (400 + 50), 792 / (792 + 1)])
    assert predictive_values(1.0, 1.0, 0.001)[0] == 1
    assert np.isnan(predictive_values(0.0, 1.0, 0.5)[0])
    with pytest.raises(ValueError, match="prevalence is a share"):
        predictive_values(0.9, 0.9, 2)


def test_auc_within_groups_ignores_what_differs_between_them():
    y = np.array([0, 1, 0, 1, 1, 1])
    score = np.array([0.1, 0.2, 10.1, 10.2, 99, 98])
    assert auc_within(y, score, list("aabbcc")) == 1
    assert auc(y[:4], score[:4]) == 0.75
    assert auc_within(y, score, ["a"] * 6) == auc(y, score)
    with pytest.raises(ValueError, match="one length"):
        auc_within(y, score, list("aab"))
    with pytest.raises(ValueError, match="none of 2 groups"):
        auc_within([1, 1, 0, 0], [1, 2, 3, 4], list("aabb"))


def test_dice_of_nothing_and_of_other_shapes():
    assert dice(np.zeros(4), np.zeros(4)) == iou(np.zeros(4), np.zeros(4)) == 1
    with pytest.raises(ValueError, match="differ in shape"):
        dice(np.zeros(4), np.zeros(5))


@pytest.mark.parametrize(
    ("y", "score", "message"),
    [
        ([1, 1], [0.1, 0.2], "of one class"),
        ([1, 0], [0.1], "equally long"),
        ([1, 0], [0.1, np.nan], "not finite"),
        ([1, 2], [0.1, 0.2], "True/False or 0/1"),
    ],
)
def test_scores_that_cannot_be(y, score, message):
    with pytest.raises(ValueError, match=message):
        auc(y, score)


# FROC ------------------------------------------------------------------------------------------------------------


def lesions_at(*rows, ignore=None):
    table = pd.DataFrame(rows, columns=["slide_id", "lesion_id", "x", "y"])
    table["geometry"] = [shapely.box(x, y, x + 10, y + 10) for x, y in zip(table.x, table.y, strict=True)]
    return table if ignore is None else table.assign(ignore=ignore)


def detections_at(*rows):
    return pd.DataFrame(rows, columns=["slide_id", "x_um", "y_um", "score"])


def test_froc_by_hand():
    lesions = lesions_at(("a", "a0", 0, 0), ("a", "a1", 100, 0), ("b", "b0", 0, 0))
    found = detections_at(
        ("a", 5, 5, 0.9),
        ("a", 6, 6, 0.8),
        ("a", 50, 50, 0.7),
        ("b", 5, 5, 0.6),
        ("c", 5, 5, 0.5),
        ("a", 105, 5, 0.4),
    )
    curve = froc(found, lesions, n_slides=4, fp_per_slide=(0, 0.25, 0.5, 8))
    # Two hits of a0 count once; false alarms at 0.7 (slide a) and 0.5 (slide c), over four slides.
    assert curve.at == {0: pytest.approx(1 / 3), 0.25: pytest.approx(2 / 3), 0.5: 1.0, 8: 1.0}
    assert curve.mean == pytest.approx((1 / 3 + 2 / 3 + 1 + 1) / 4)


def test_detections_in_ignored_lesions_count_neither_way():
    lesions = lesions_at(("a", "a0", 0, 0), ("a", "a1", 100, 0), ignore=[False, True])
    found = detections_at(("a", 105, 5, 0.9), ("a", 5, 5, 0.8))
    matched = match_detections(found, lesions)
    assert matched["lesion_id"].tolist() == ["a1", "a0"]
    assert matched["ignored"].tolist() == [True, False]
    curve = froc(found, lesions, n_slides=1)
    assert curve.at[0.25] == 1.0
    assert curve.points["fp_per_slide"].max() == 0


def random_case(seed):
    rng = np.random.default_rng(seed)
    n_slides = 6
    lesions = lesions_at(*[(f"s{i % n_slides}", f"l{i}", 30 * i, 0) for i in range(8)])
    rows = []
    for _ in range(40):
        slide = f"s{rng.integers(n_slides)}"
        own = lesions[lesions.slide_id == slide]
        if len(own) and rng.random() < 0.5:
            lesion = own.iloc[rng.integers(len(own))]
            rows.append((slide, lesion.x + 5, 5, rng.random()))
        else:
            rows.append((slide, rng.uniform(0, 300), 500, rng.random()))
    return detections_at(*rows), lesions, n_slides


@pytest.mark.parametrize("seed", range(5))
def test_froc_agrees_with_monai(seed):
    from monai.metrics.froc import compute_froc_curve_data, compute_froc_score

    found, lesions, n_slides = random_case(seed)
    matched = match_detections(found, lesions)
    inside = matched["lesion_id"].notna()
    best = matched[inside].groupby("lesion_id")["score"].max()
    fps, sensitivity = compute_froc_curve_data(
        fp_probs=matched.loc[~inside, "score"].to_numpy(),
        tp_probs=np.array([best.get(i, 0.0) for i in lesions.lesion_id]),
        num_targets=len(lesions),
        num_images=n_slides,
    )
    ours = froc(found, lesions, n_slides)
    # MONAI interpolates between points of the curve; ours reads the step below, so it may be lower, never higher.
    theirs = compute_froc_score(fps, sensitivity, (0.25, 0.5, 1, 2, 4, 8))
    assert ours.mean <= theirs + 1e-9
    on_curve = pd.DataFrame({"fp": np.round(fps, 9), "s": sensitivity}).groupby("fp")["s"].max()
    mine = ours.points.assign(fp=ours.points.fp_per_slide.round(9)).groupby("fp")["sensitivity"].max()
    both = on_curve.index.intersection(mine.index)
    assert len(both) > 5
    np.testing.assert_allclose(mine[both], on_curve[both], atol=1e-9)


def test_froc_says_what_is_missing():
    found, lesions, _ = random_case(0)
    with pytest.raises(ValueError, match="no lesion to find"):
        froc(found, lesions[:0], 6)
    with pytest.raises(ValueError, match="name 6 slides, n_slides says 2"):
        froc(found, lesions, 2)


def test_froc_interval_holds_the_value_and_needs_no_detection():
    found, lesions, n = random_case(1)
    slides = pd.DataFrame({"slide_id": [f"s{i}" for i in range(n)], "patient_id": [0, 0, 1, 1, 2, 3]})
    interval = froc_interval(found, lesions, slides, n=300)
    assert interval.value == froc(found, lesions, n).mean
    assert interval.low <= interval.value <= interval.high
    assert interval.low < interval.high
    nothing = froc_interval(found[:0], lesions, slides, n=50)
    assert (nothing.value, nothing.high) == (0, 0)


def test_patients_that_are_alike_leave_froc_in_no_doubt():
    found, lesions, _ = random_case(2)
    found, lesions = (
        pd.concat([f.assign(slide_id=f["slide_id"] + f"-{k}") for k in range(4)], ignore_index=True)
        for f in (found, lesions)
    )
    lesions["lesion_id"] = [f"l{i}" for i in range(len(lesions))]
    slides = pd.DataFrame({"slide_id": [f"s{i}-{k}" for k in range(4) for i in range(6)]})
    slides["patient_id"] = slides["slide_id"].str[-1]
    interval = froc_interval(found, lesions, slides, n=50)
    assert interval.low == interval.high == pytest.approx(interval.value)
    assert 0 < interval.value < 1


# Intervals -------------------------------------------------------------------------------------------------------


def mean_score(rows):
    return rows["score"].mean()


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        table = pd.DataFrame({"patient_id": np.arange(40), "score": rng.normal(0.3, 1, 40)})
        interval = bootstrap(mean_score, table, n=200, level=0.9, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.80 <= covered / 120 <= 0.96


def test_patients_and_not_patches_are_resampled():
    rng = np.random.default_rng(0)
    of_patient = rng.normal(size=20)
    table = pd.DataFrame({"patient_id": np.repeat(np.arange(20), 50), "score": np.repeat(of_patient, 50)})
    by_patient = bootstrap(mean_score, table, n=400)
    by_patch = bootstrap(mean_score, table.assign(row=range(1000)), by="row", n=400)
    assert by_patient.high - by_patient.low > 4 * (by_patch.high - by_patch.low)


def test_the_interval_follows_the_seed_and_agrees_with_scipy():
    from scipy.stats import bootstrap as scipy_bootstrap

    table = scored(400).assign(patient_id=range(400))
    ours = bootstrap(mean_score, table, n=2000, seed=1)
    assert ours == bootstrap(mean_score, table, n=2000, seed=1)
    theirs = scipy_bootstrap(
        (table.score,), np.mean, n_resamples=2000, method="percentile", rng=2
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_a_real_gain_excludes_zero_and_no_gain_does_not():
    table = scored(400, effect=2.0)
    table["noise"] = np.random.default_rng(1).normal(size=400)
    table["same"] = table["score"] + 1e-9 * table["noise"]

    def metric(rows, column):
        return auc(rows.y, rows[column])

    assert bootstrap_difference(metric, table, "score", "noise", n=200).low > 0.2
    same = bootstrap_difference(metric, table, "score", "same", n=200)
    assert same.low <= 0 <= same.high


def test_undefined_resamples_are_counted_and_too_many_are_refused():
    table = pd.DataFrame({"patient_id": range(8), "y": [1, 0, 0, 0, 0, 0, 0, 0], "score": np.arange(8.0)})
    interval = bootstrap(lambda rows: auc(rows.y, rows.score), table, n=300)
    assert 50 < interval.n_failed < 150  # (7/8)^8 of resamples miss the only positive
    with pytest.raises(ValueError, match="undefined on"):
        bootstrap(lambda rows: float("nan"), table, n=20)
    with pytest.raises(ValueError, match="at least two"):
        bootstrap(mean_score, table.assign(patient_id=1))
    with pytest.raises(ValueError, match="no column 'case'"):
        bootstrap(mean_score, table, by="case")


def test_an_interval_reads_well():
    assert str(Interval(0.934, 0.881, 0.969)) == "0.93 (95% CI 0.88 to 0.97)"


def test_spared_are_those_below_the_lowest_positive_that_must_be_kept():
    y, score = [0, 0, 1, 0, 1, 1, 1, 1], [0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7]
    assert spared(y, score) == 2 / 8
    assert (
        spared(y, score, sensitivity=0.8) == 4 / 8
    )  # one positive of five may be lost, and one negative goes with it
    assert spared([1, 0], [0.1, 0.9]) == 0
    with pytest.raises(ValueError, match="share above 0"):
        spared(y, score, sensitivity=95)
