"""Numbers that say how good, each with an interval that says how sure.

Decisions
---------
* What scikit-learn has is scikit-learn's; here stand the checks around it, the metrics of pathology (FROC, kappa of
  grades, Dice), and intervals.
* Intervals are percentile bootstraps over *patients*: slides and patches of one patient are not independent, and an
  interval over patches would be several times too narrow.
* FROC follows CAMELYON16: a detection inside a lesion hits it, several hits of a lesion count once, detections in
  lesions that are to be ignored count neither way, everything else is a false positive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import shapely
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "FrocCurve",
    "Interval",
    "auc",
    "auc_within",
    "average_precision",
    "bootstrap",
    "bootstrap_difference",
    "dice",
    "fleiss_kappa",
    "froc",
    "froc_interval",
    "iou",
    "kappa",
    "match_detections",
    "pairwise_kappa",
    "predictive_values",
    "roc_points",
    "sensitivity_at",
    "spared",
]

#: False positives per slide at which CAMELYON16 reads the sensitivity.
FP_PER_SLIDE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

Metric = Callable[[pd.DataFrame], float]


# Scores against labels -------------------------------------------------------------------------------------------


def auc(y: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve.

    Parameters
    ----------
    y : (N,) bool or 0/1
        True for the positive class.
    score : (N,) float
        Higher means more likely positive.

    Raises
    ------
    ValueError
        If one of the classes is missing, lengths differ, or a score is not finite.
    """
    truth, scores = _binary(y, score, "auc")
    below, pairs = _pairs_in_order(truth, scores)
    if not pairs:
        raise ValueError(f"auc: all {len(truth)} rows have one class; the area needs both.")
    return below / pairs


def auc_within(y: ArrayLike, score: ArrayLike, group: ArrayLike) -> float:
    """Mean of the areas under the ROC curves within groups, weighed by their number of pairs.

    For scores of several models, as out of cross-validation: only scores of one model are compared. Groups with one class
    do not count.

    Raises
    ------
    ValueError
        If no group has both classes; else as `auc`.
    """
    truth, scores, groups = np.asarray(y), np.asarray(score, float), np.asarray(group)
    if not truth.shape == scores.shape == groups.shape or truth.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(
            f"auc_within: three columns of one length, scores finite, got {truth.shape}, {scores.shape}, {groups.shape}."
        )
    truth = truth.astype(bool)
    below = pairs = 0.0
    for name in pd.unique(groups):
        inside = groups == name
        below_here, pairs_here = _pairs_in_order(truth[inside], scores[inside])
        below, pairs = below + below_here, pairs + pairs_here
    if not pairs:
        raise ValueError(f"auc_within: none of {len(pd.unique(groups))} groups has both classes.")
    return float(below / pairs)


def _pairs_in_order(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[float, int]:
    """Pairs of a negative and a positive with the negative below (ties half, Mann and Whitney), and all pairs."""
    negatives = np.sort(scores[~truth])
    positives = scores[truth]
    lower, upper = (np.searchsorted(negatives, positives, side=side) for side in ("left", "right"))
    return float((lower + upper).sum() / 2), len(negatives) * len(positives)


def average_precision(y: ArrayLike, score: ArrayLike) -> float:
    """Area under the precision-recall curve (step-wise); depends on the prevalence. Arguments as in `auc`."""
    from sklearn.metrics import average_precision_score

    y, score = _binary(y, score, "average_precision")
    return float(average_precision_score(y, score))


def roc_points(y: ArrayLike, score: ArrayLike) -> pd.DataFrame:
    """The ROC curve: columns fpr, tpr, threshold (score >= threshold is called positive; the first is inf)."""
    from sklearn.metrics import roc_curve

    y, score = _binary(y, score, "roc_points")
    fpr, tpr, threshold = roc_curve(y, score, drop_intermediate=False)
    return pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": threshold})


def sensitivity_at(y: ArrayLike, score: ArrayLike, *, specificity: float) -> float:
    """The highest sensitivity of a threshold whose specificity is at least `specificity`."""
    points = roc_points(y, score)
    return float(points.loc[1 - points["fpr"] >= specificity - 1e-12, "tpr"].max())


def spared(y: ArrayLike, score: ArrayLike, *, sensitivity: float = 1.0) -> float:
    """The share of all cases that need not be read: those below the highest threshold that keeps a sensitivity.

    The threshold is taken from the same cases, so the share is too good for new ones: choose it on others and compare.
    Arguments as in `auc`.

    Parameters
    ----------
    sensitivity : float
        Share of the positives that must stay above the threshold, 0 to 1 (1: none may be lost).

    References
    ----------
    .. [1] Campanella et al., "Clinical-grade computational pathology using weakly supervised deep learning on whole slide
       images", Nature Medicine 25 (2019).
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"spared: sensitivity is a share above 0 and up to 1, got {sensitivity}.")
    truth, scores = _binary(y, score, "spared")
    positives = np.sort(scores[truth])
    n_lost = len(positives) - int(np.ceil(sensitivity * len(positives) - 1e-9))
    return float((scores < positives[n_lost]).mean())


def kappa(a: ArrayLike, b: ArrayLike, *, weights: str | None = None, labels: Sequence | None = None) -> float:
    """Cohen's kappa between two raters.

    Parameters
    ----------
    a, b : (N,)
        Ratings. For weighted kappa they must be numbers, or `labels` must give the order.
    weights : None, "linear" or "quadratic"
        None for classes without order; quadratic is usual for grades.
    labels : sequence, optional
        All classes in their order; classes that nobody used still set the distances.

    Raises
    ------
    ValueError
        If lengths differ, nothing is rated, or text is to be weighted without `labels`.

    References
    ----------
    .. [1] Cohen, "Weighted kappa", Psychological Bulletin 70 (1968).
    """
    from sklearn.metrics import cohen_kappa_score

    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"kappa: two ratings of the same things, got {first.shape} and {second.shape}.")
    if weights and labels is None and first.dtype.kind not in "biuf":
        raise ValueError("kappa: weights need an order. Give labels=[...] from lowest to highest.")
    if np.array_equal(first, second):
        return 1.0  # scikit-learn divides 0 by 0 when both used one class only
    return float(cohen_kappa_score(first, second, weights=weights, labels=labels))


def pairwise_kappa(
    table: pd.DataFrame,
    raters: Sequence[str],
    *,
    labels: Sequence,
    weights: str | None = "quadratic",
    against: Sequence[str] | None = None,
    by: str = "patient_id",
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Kappa between raters, each with its bootstrap interval over patients.

    The confusion of each patient is counted once; a resample adds up those of the patients drawn, so that all intervals
    together cost milliseconds. The same patients are drawn for every pair.

    Parameters
    ----------
    table : DataFrame
        One row a case: a column of ratings for each rater, and `by`.
    raters : sequence of str
    labels : sequence
        All ratings, lowest to highest.
    weights : None, "linear" or "quadratic"
        As of `kappa`.
    against : sequence of str, optional
        Compare each of `raters` with each of these; all pairs of `raters` when not given. A last row ``("mean", "mean")``
        is the mean of the pairs when there are several.

    Returns
    -------
    DataFrame
        first, second, and kappa (an `Interval`), one row a pair.

    Raises
    ------
    ValueError
        If a column is missing, a rating is not among `labels`, there are fewer than two patients, or kappa is undefined
        on more than half of the resamples.
    """
    from itertools import combinations, product

    pairs = list(combinations(raters, 2) if against is None else product(raters, against))
    columns = list(dict.fromkeys(c for pair in pairs for c in pair))
    missing = [c for c in (by, *columns) if c not in table]
    if missing:
        raise ValueError(
            f"pairwise_kappa: no column {missing[0]!r}; the table has {', '.join(map(str, table))}."
        )
    codes = {c: pd.Index(list(labels)).get_indexer(table[c]) for c in columns}
    for column, values in codes.items():
        if (values < 0).any():
            row = int((values < 0).argmax())
            raise ValueError(
                f"pairwise_kappa: column {column!r}, row {row} holds {table[column].iloc[row]}, which is not among"
                f" {', '.join(map(str, labels))}."
            )
    patient, patients = pd.factorize(table[by])
    if len(patients) < 2:
        raise ValueError(f"pairwise_kappa: {len(patients)} different {by}; an interval needs at least two.")
    k = len(labels)
    counts = np.zeros((len(pairs), len(patients), k, k))
    for counted, (a, b) in zip(counts, pairs, strict=True):
        np.add.at(counted, (patient, codes[a], codes[b]), 1)
    drawn = np.random.default_rng(seed).integers(0, len(patients), (n, len(patients)))
    times = np.stack([np.bincount(d, minlength=len(patients)) for d in drawn])
    disagreement = _disagreement(k, weights)
    whole = _kappas(counts.sum(1), disagreement)
    resampled = np.stack([_kappas(np.tensordot(times, c, 1), disagreement) for c in counts])  # (pairs, n)
    rows = [
        (a, b, _interval(float(v), r[np.isfinite(r)].tolist(), level, n))
        for (a, b), v, r in zip(pairs, whole, resampled, strict=True)
    ]
    if len(pairs) > 1:
        mean = resampled.mean(0)
        rows.append(
            ("mean", "mean", _interval(float(whole.mean()), mean[np.isfinite(mean)].tolist(), level, n))
        )
    return pd.DataFrame(rows, columns=["first", "second", "kappa"])


def _disagreement(k: int, weights: str | None) -> NDArray[np.float64]:
    if weights not in (None, "linear", "quadratic"):
        raise ValueError(f"kappa: weights are None, 'linear' or 'quadratic', got {weights!r}.")
    apart = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(float)
    return (apart > 0).astype(float) if weights is None else apart if weights == "linear" else apart**2


def _kappas(confusion: NDArray[np.float64], disagreement: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of each of (..., k, k) tables of counts; 1 where both used one class only."""
    rows, columns = confusion.sum(-1), confusion.sum(-2)
    expected = rows[..., :, None] * columns[..., None, :] / confusion.sum((-2, -1))[..., None, None]
    found, chance = ((t * disagreement).sum((-2, -1)) for t in (confusion, expected))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(found == 0, 1.0, 1 - found / chance)


def fleiss_kappa(ratings: ArrayLike) -> float:
    """Fleiss' kappa of several raters.

    Parameters
    ----------
    ratings : (N, R)
        One row an item, one column a rater; all items rated by all.

    Returns
    -------
    float
        1 where all agree on everything, 0 where they agree as by chance.

    Raises
    ------
    ValueError
        If there are fewer than two raters, no item, or a rating is missing.

    References
    ----------
    .. [1] Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76 (1971).
    """
    given = np.asarray(ratings)
    if given.ndim != 2 or given.shape[1] < 2 or not len(given):
        raise ValueError(f"fleiss_kappa: (items, raters) with at least two raters, got shape {given.shape}.")
    if pd.isna(given).any():
        row = int(pd.isna(given).any(1).argmax())
        raise ValueError(
            f"fleiss_kappa: a rating is missing in row {row}. Drop items that not all have rated."
        )
    codes = pd.factorize(given.ravel())[0].reshape(given.shape)
    counts = np.stack([(codes == k).sum(1) for k in range(codes.max() + 1)], 1)
    n = given.shape[1]
    agreed = (counts * (counts - 1)).sum() / (len(given) * n * (n - 1))
    by_chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return 1.0 if by_chance == 1 else float((agreed - by_chance) / (1 - by_chance))


def predictive_values(
    sensitivity: ArrayLike, specificity: ArrayLike, prevalence: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positive and negative predictive value where a test is used, by Bayes' rule.

    Parameters
    ----------
    sensitivity, specificity, prevalence : float or array
        Shares from 0 to 1; arrays must fit each other's shape.

    Returns
    -------
    ppv, npv : float64 arrays
        NaN where nothing is called positive, or negative.

    Raises
    ------
    ValueError
        If a share is not from 0 to 1.

    Examples
    --------
    >>> ppv, npv = predictive_values(0.95, 0.95, 0.01)
    >>> round(float(ppv), 3)
    0.161
    """
    named = {"sensitivity": sensitivity, "specificity": specificity, "prevalence": prevalence}
    shares = {name: np.asarray(value, float) for name, value in named.items()}
    for name, value in shares.items():
        if not ((value >= 0) & (value <= 1)).all():
            raise ValueError(f"predictive_values: {name} is a share from 0 to 1, got {value}.")
    sens, spec, prev = np.broadcast_arrays(*shares.values())
    hit, false = sens * prev, (1 - spec) * (1 - prev)
    right, missed = spec * (1 - prev), (1 - sens) * prev
    with np.errstate(invalid="ignore", divide="ignore"):
        return hit / (hit + false), right / (right + missed)


def dice(a: ArrayLike, b: ArrayLike) -> float:
    """Dice coefficient of two masks, 2 |A and B| / (|A| + |B|); 1 where both are empty.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    first, second = _masks(a, b, "dice")
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2.0 * int((first & second).sum()) / total


def iou(a: ArrayLike, b: ArrayLike) -> float:
    """Intersection over union of two masks; 1 where both are empty. Raises as `dice`."""
    first, second = _masks(a, b, "iou")
    union = int((first | second).sum())
    return 1.0 if union == 0 else int((first & second).sum()) / union


# Detections against lesions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrocCurve:
    """Sensitivity against false positives per slide.

    Attributes
    ----------
    points : DataFrame
        Columns threshold, fp_per_slide, sensitivity, from the strictest threshold on.
    at : dict
        Sensitivity at each of the asked false positives per slide.
    mean : float
        Mean of `at`, the CAMELYON16 score.
    """

    points: pd.DataFrame
    at: dict[float, float]
    mean: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", float(np.mean(list(self.at.values()))))


def match_detections(detections: pd.DataFrame, lesions: pd.DataFrame) -> pd.DataFrame:
    """Find the lesion that each detection lies in.

    Parameters
    ----------
    detections : DataFrame
        slide_id, x_um, y_um, score.
    lesions : DataFrame or GeoDataFrame
        slide_id, lesion_id (unique), geometry in microns; optionally ``ignore`` (bool).

    Returns
    -------
    DataFrame
        A copy of `detections` with ``lesion_id`` (None outside every lesion) and ``ignored`` (bool). A detection in
        two overlapping lesions belongs to the first that is not to be ignored.
    """
    out = detections.reset_index(drop=True).copy()
    out["lesion_id"] = pd.Series([None] * len(out), dtype=object)
    out["ignored"] = False
    ignore = lesions["ignore"].to_numpy(bool) if "ignore" in lesions else np.zeros(len(lesions), bool)
    ordered = lesions.assign(ignore=ignore).sort_values("ignore", kind="stable")
    groups = dict(list(ordered.groupby("slide_id", observed=True)))
    for slide_id, rows in out.groupby("slide_id", observed=True):
        if slide_id not in groups:
            continue
        there = groups[slide_id]
        points = shapely.points(rows["x_um"].to_numpy(float), rows["y_um"].to_numpy(float))
        point, lesion = shapely.STRtree(there["geometry"].to_numpy()).query(points, predicate="intersects")
        first = pd.Series(lesion).groupby(point).min()
        where = rows.index[first.index.to_numpy()]
        out.loc[where, "lesion_id"] = there["lesion_id"].to_numpy()[first.to_numpy()]
        out.loc[where, "ignored"] = there["ignore"].to_numpy()[first.to_numpy()]
    return out


def froc(
    detections: pd.DataFrame,
    lesions: pd.DataFrame,
    n_slides: int,
    *,
    fp_per_slide: Sequence[float] = FP_PER_SLIDE,
) -> FrocCurve:
    """Free-response ROC over all slides.

    Parameters
    ----------
    detections, lesions : DataFrame
        As in `match_detections`.
    n_slides : int
        All slides that were searched, those without detections and without lesions too.
    fp_per_slide : sequence of float
        Where the sensitivity is read. Between two points of the curve the lower one counts; beyond the last
        detection the sensitivity stays what it is.

    Returns
    -------
    FrocCurve

    Raises
    ------
    ValueError
        If there is no lesion to find, or fewer slides than the tables name.

    References
    ----------
    .. [1] Ehteshami Bejnordi et al., JAMA 318 (2017), supplement: evaluation of lesion detection in CAMELYON16.
    """
    slides = pd.unique(pd.concat([detections["slide_id"], lesions["slide_id"]]))
    if len(slides) > n_slides:
        raise ValueError(
            f"froc: the tables name {len(slides)} slides, n_slides says {n_slides}. Count all slides searched."
        )
    matched = match_detections(detections, lesions)
    to_find = _to_find(lesions)
    hits, false_positives = _hits_and_false_positives(matched)
    return _curve(hits, false_positives, len(to_find), n_slides, fp_per_slide)


def froc_interval(
    detections: pd.DataFrame,
    lesions: pd.DataFrame,
    slides: pd.DataFrame,
    *,
    fp_per_slide: Sequence[float] = FP_PER_SLIDE,
    by: str = "patient_id",
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean FROC sensitivity with a bootstrap interval over patients.

    Parameters
    ----------
    detections, lesions : DataFrame
        As in `match_detections`.
    slides : DataFrame
        slide_id and `by`, one row for every slide searched.

    Returns
    -------
    Interval
        A resample without any lesion counts as failed and is left out.
    """
    patient = slides.set_index("slide_id")[by]
    codes, patients = pd.factorize(patient)
    of_slide = dict(zip(patient.index, codes, strict=True))
    whole = froc(detections, lesions, len(slides), fp_per_slide=fp_per_slide)
    to_find = _to_find(lesions)
    lesions_of = np.bincount(to_find["slide_id"].map(of_slide), minlength=len(patients))
    slides_of = np.bincount(codes, minlength=len(patients))
    hits, false_positives = (
        (rows["score"].to_numpy(float), rows["slide_id"].map(of_slide).to_numpy(int))
        for rows in _hits_and_false_positives(match_detections(detections, lesions))
    )
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(n):
        times = np.bincount(rng.integers(0, len(patients), len(patients)), minlength=len(patients))
        n_lesions = int(times @ lesions_of)
        if n_lesions == 0:
            continue
        drawn, wrong = (
            np.repeat(scores, times[of_patient]) for scores, of_patient in (hits, false_positives)
        )
        _, false, sensitivity = _steps(drawn, wrong, n_lesions, int(times @ slides_of))
        values.append(float(_read_at(false, sensitivity, fp_per_slide).mean()))
    return _interval(whole.mean, values, level, n)


def _to_find(lesions: pd.DataFrame) -> pd.DataFrame:
    """The lesions that count: all but those to be ignored."""
    return lesions if "ignore" not in lesions else lesions[~lesions["ignore"].to_numpy(bool)]


def _hits_and_false_positives(matched: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The best detection of each lesion that was hit, and all detections outside lesions."""
    inside = matched["lesion_id"].notna()
    hits = matched[inside & ~matched["ignored"]]
    best = hits.loc[hits.groupby("lesion_id", observed=True)["score"].idxmax(), ["slide_id", "score"]]
    return best.reset_index(drop=True), matched.loc[~inside, ["slide_id", "score"]].reset_index(drop=True)


def _curve(
    hits: pd.DataFrame,
    false_positives: pd.DataFrame,
    n_lesions: int,
    n_slides: int,
    fp_per_slide: Sequence[float],
) -> FrocCurve:
    if n_lesions == 0:
        raise ValueError(
            "froc: no lesion to find. Sensitivity needs at least one (after those to be ignored)."
        )
    found, wrong = (rows["score"].to_numpy(float) for rows in (hits, false_positives))
    thresholds, false, sensitivity = _steps(found, wrong, n_lesions, n_slides)
    points = pd.DataFrame({"threshold": thresholds, "fp_per_slide": false, "sensitivity": sensitivity})
    at = _read_at(false, sensitivity, fp_per_slide)
    return FrocCurve(points, {float(k): float(v) for k, v in zip(fp_per_slide, at, strict=True)})


def _steps(
    hits: NDArray[np.float64], false_positives: NDArray[np.float64], n_lesions: int, n_slides: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Thresholds from infinity down, with the false positives a slide and the sensitivity at each."""
    hits, false_positives = np.sort(hits), np.sort(false_positives)
    thresholds = np.append(np.inf, np.unique(np.concatenate([hits, false_positives]))[::-1])
    found = len(hits) - np.searchsorted(hits, thresholds)
    false = len(false_positives) - np.searchsorted(false_positives, thresholds)
    return thresholds, false / n_slides, found / n_lesions


def _read_at(
    false: NDArray[np.float64], sensitivity: NDArray[np.float64], fp_per_slide: Sequence[float]
) -> NDArray[np.float64]:
    return sensitivity[np.searchsorted(false, np.asarray(fp_per_slide) + 1e-12, side="right") - 1]


# Intervals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A value and its bootstrap interval.

    Attributes
    ----------
    value, low, high : float
    level : float
        For example 0.95.
    n : int
        Resamples asked for.
    n_failed : int
        Resamples on which the metric is undefined (one class only); they are left out.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    n: int = 1000
    n_failed: int = 0

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.level:.0%} CI {self.low:.2f} to {self.high:.2f})"


def bootstrap(
    metric: Metric,
    table: pd.DataFrame,
    *,
    by: str = "patient_id",
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A metric with its percentile bootstrap interval, resampling patients.

    Parameters
    ----------
    metric : callable
        Takes rows of `table`, returns a number; a ValueError marks a resample on which it is undefined.
    table : DataFrame
        With the column `by`. All rows of a drawn patient come along, as often as the patient was drawn.
    by : str
        What is independent; patients unless you know better.
    n : int
        Resamples.
    level : float
    seed : int

    Returns
    -------
    Interval

    Raises
    ------
    ValueError
        If there are fewer than two patients, or the metric is undefined on more than half of the resamples.

    Examples
    --------
    >>> bootstrap(lambda rows: auc(rows.label == "tumour", rows.score), predictions)  # doctest: +SKIP
    Interval(value=0.96, low=0.91, high=0.99, ...)
    """
    value = float(metric(table))
    return _interval(value, _resampled(metric, table, by, n, seed), level, n)


def bootstrap_difference(
    metric: Callable[[pd.DataFrame, str], float],
    table: pd.DataFrame,
    better: str,
    baseline: str,
    *,
    by: str = "patient_id",
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The difference of a metric between two score columns on the same patients, with its interval.

    An interval that excludes 0 says that `better` is better on patients like these.

    Parameters
    ----------
    metric : callable
        Takes rows and the name of a score column.
    better, baseline : str
        Score columns of `table`.
    """

    def difference(rows: pd.DataFrame) -> float:
        return metric(rows, better) - metric(rows, baseline)

    return bootstrap(difference, table, by=by, n=n, level=level, seed=seed)


def _resampled(metric: Metric, table: pd.DataFrame, by: str, n: int, seed: int) -> list[float]:
    if by not in table:
        raise ValueError(
            f"bootstrap: no column {by!r} to resample; name the one of your patients with by=..."
        )
    groups = [np.asarray(rows) for rows in table.groupby(by, observed=True).indices.values()]
    if len(groups) < 2:
        raise ValueError(f"bootstrap: {len(groups)} different {by}; an interval needs at least two.")
    rng = np.random.default_rng(seed)
    values = []
    # Rows are drawn a thousand times: of pandas' own strings that, and each comparison, takes three times as long.
    strings = [name for name, kind in table.dtypes.items() if isinstance(kind, pd.StringDtype)]
    table = table.astype(dict.fromkeys(strings, object))
    for _ in range(n):
        drawn = rng.integers(0, len(groups), len(groups))
        try:
            value = float(metric(table.iloc[np.concatenate([groups[i] for i in drawn])]))
        except ValueError:
            continue
        if np.isfinite(value):
            values.append(value)
    return values


def _interval(value: float, values: list[float], level: float, n: int) -> Interval:
    if len(values) < n / 2:
        raise ValueError(
            f"bootstrap: the metric is undefined on {n - len(values)} of {n} resamples (often one class only). There are"
            " too few patients for an interval."
        )
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, n, n - len(values))


# Checks ----------------------------------------------------------------------------------------------------------


def _binary(y: ArrayLike, score: ArrayLike, name: str) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth, scores = np.asarray(y), np.asarray(score, dtype=float)
    if truth.shape != scores.shape or truth.ndim != 1:
        raise ValueError(
            f"{name}: y and score must be one-dimensional and equally long, got {truth.shape} and {scores.shape}."
        )
    if truth.dtype != bool and not np.isin(truth, (0, 1)).all():
        raise ValueError(
            f"{name}: y must be True/False or 0/1, got values like {truth[:3].tolist()}. Compare: y == 'tumour'."
        )
    truth = truth.astype(bool)
    if not np.isfinite(scores).all():
        raise ValueError(f"{name}: {int((~np.isfinite(scores)).sum())} scores are not finite.")
    if truth.all() or not truth.any():
        raise ValueError(f"{name}: all {len(truth)} are of one class; it needs both.")
    return truth, scores


def _masks(a: ArrayLike, b: ArrayLike, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = np.asarray(a).astype(bool), np.asarray(b).astype(bool)
    if first.shape != second.shape:
        raise ValueError(f"{name}: the masks differ in shape, {first.shape} and {second.shape}.")
    return first, second
