"""Counting: candidates for dividing cells, matching of points, hot spots and densities.

Distances are between centres, in microns. A detection hits when a cell that no better detection has taken lies within
7.5 µm of it, as in the MIDOG challenges: about the radius of a dividing cell. Counts are given per mm² of an area that is
stated; "per ten high-power fields" depends on the microscope.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pathkit import stain
from pathkit.slide import Slide

__all__ = [
    "F1_RADIUS_UM",
    "best_threshold",
    "counts_at",
    "f1",
    "haematoxylin_blobs",
    "hot_spot",
    "inside",
    "match_points",
    "precision_recall",
    "suppress",
    "tune",
]

F1_RADIUS_UM = 7.5


def haematoxylin_blobs(
    slide: Slide,
    fit: stain.StainFit,
    *,
    mpp: float = 0.5,
    least: float = 0.75,
    sigma_um: float = 0.8,
    apart_um: float = 5.0,
    slide_id: str | None = None,
) -> pd.DataFrame:
    """Places where haematoxylin is densest: what a threshold alone finds, and where a network should look.

    Parameters
    ----------
    slide : Slide
    fit : StainFit
        Of the slide (`stain.fit`).
    mpp : float
    least : float
        Smoothed haematoxylin relative to the slide's strength, at least.
    sigma_um : float
        Of the smoothing, less than a nucleus.
    apart_um : float
        Only the densest within this distance is kept.
    slide_id : str, optional

    Returns
    -------
    DataFrame
        slide_id, x_um, y_um, score (smoothed haematoxylin over strength), densest first.
    """
    import cv2

    mpp = max(mpp, slide.mpp)
    side, margin = 1024, int(np.ceil((4 * sigma_um + apart_um) / mpp))
    width, height = (int(n * slide.mpp / mpp) for n in slide.dimensions)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(apart_um / mpp) + 1,) * 2)
    found = [np.zeros((0, 3))]
    for y in range(0, height, side):
        for x in range(0, width, side):
            at = ((x - margin) * mpp / slide.mpp, (y - margin) * mpp / slide.mpp)
            pixels = slide.read_region(at, (side + 2 * margin,) * 2, mpp=mpp)
            amount = fit.separate(pixels)[..., 0] / np.float32(fit.strengths[0])
            smooth = cv2.GaussianBlur(amount, (0, 0), sigma_um / mpp)
            peak = (smooth >= cv2.dilate(smooth, kernel)) & (smooth > least)
            inner = slice(margin, margin + side)
            rows, cols = np.nonzero(peak[inner, inner])
            score = smooth[inner, inner][rows, cols]
            found.append(np.column_stack([(cols + x + 0.5) * mpp, (rows + y + 0.5) * mpp, score]))
    table = pd.DataFrame(np.concatenate(found), columns=["x_um", "y_um", "score"])
    table.insert(0, "slide_id", slide_id or slide.name)
    table = suppress(table, radius_um=apart_um)  # pixels of equal density, and both sides of a seam
    return table.sort_values("score", ascending=False, ignore_index=True)


def suppress(points: pd.DataFrame, *, radius_um: float = F1_RADIUS_UM) -> pd.DataFrame:
    """Of points of a slide that lie within a radius, the one with the highest score.

    Parameters
    ----------
    points : DataFrame
        slide_id, x_um, y_um, score.
    """
    kept = []
    for _, group in points.sort_values("score", ascending=False, kind="stable").groupby(
        "slide_id", sort=False
    ):
        neighbours = cKDTree(group[["x_um", "y_um"]]).query_ball_point(group[["x_um", "y_um"]], radius_um)
        alive = np.ones(len(group), bool)
        for i, near in enumerate(neighbours):
            if alive[i]:
                alive[[j for j in near if j > i]] = False
        kept.append(group[alive])
    return pd.concat(kept).sort_index() if kept else points


def match_points(
    detections: pd.DataFrame, truth: pd.DataFrame, *, radius_um: float = F1_RADIUS_UM
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pair detections with true points, the highest score first, each with the nearest that is free.

    Parameters
    ----------
    detections : DataFrame
        slide_id, x_um, y_um, score.
    truth : DataFrame
        slide_id, x_um, y_um.
    radius_um : float

    Returns
    -------
    detections, truth
        Copies with a column more: ``outcome`` ("hit" or "false alarm"); ``found_at``, the score of the detection that hit,
        or -inf.

    Raises
    ------
    ValueError
        If a column is missing, or the radius not positive.
    """
    for name, table, columns in (
        ("detections", detections, ("slide_id", "x_um", "y_um", "score")),
        ("truth", truth, ("slide_id", "x_um", "y_um")),
    ):
        missing = [c for c in columns if c not in table]
        if missing:
            raise ValueError(f"match_points: {name} has no column {missing[0]!r}.")
    if not radius_um > 0:
        raise ValueError(f"match_points: radius_um must be positive, got {radius_um}.")
    hit = np.zeros(len(detections), bool)
    found_at = np.full(len(truth), -np.inf)
    of_truth = truth.groupby("slide_id").indices
    for slide_id, rows in detections.groupby("slide_id").indices.items():
        if slide_id not in of_truth:
            continue
        there = of_truth[slide_id]
        tree = cKDTree(truth[["x_um", "y_um"]].to_numpy(float)[there])
        places, score = (detections[c].to_numpy(float)[rows] for c in (["x_um", "y_um"], "score"))
        for i in np.argsort(-score, kind="stable"):
            near = [j for j in tree.query_ball_point(places[i], radius_um) if found_at[there[j]] == -np.inf]
            if near:
                nearest = min(near, key=lambda j, at=places[i]: float(np.hypot(*(tree.data[j] - at))))  # type: ignore[misc]
                found_at[there[nearest]], hit[rows[i]] = score[i], True
    outcome = np.where(hit, "hit", "false alarm")
    return detections.assign(outcome=outcome), truth.assign(found_at=found_at)


def precision_recall(matched: pd.DataFrame, n_true: int) -> pd.DataFrame:
    """Precision, recall and F1 at each score, falling; columns threshold, precision, recall, f1.

    Parameters
    ----------
    matched : DataFrame
        Detections of `match_points`.
    n_true : int

    Raises
    ------
    ValueError
        If there is nothing to find.
    """
    if n_true < 1:
        raise ValueError("precision_recall: there is nothing to find (n_true = 0): no recall is defined.")
    ordered = matched.sort_values("score", ascending=False, kind="stable")
    hits = (ordered["outcome"] == "hit").cumsum().to_numpy()
    n = np.arange(1, len(ordered) + 1)
    curve = pd.DataFrame(
        {
            "threshold": ordered["score"].to_numpy(float),
            "precision": hits / n,
            "recall": hits / n_true,
            "f1": 2 * hits / (n + n_true),
        }
    )
    return curve.drop_duplicates("threshold", keep="last", ignore_index=True)


def best_threshold(matched: pd.DataFrame, n_true: int) -> float:
    """The score with the highest F1: choose it on patients that are not the ones you report."""
    curve = precision_recall(matched, n_true)
    if not len(curve):
        raise ValueError("best_threshold: no detections to choose from.")
    return float(curve.loc[curve["f1"].idxmax(), "threshold"])


def tune(
    detections: pd.DataFrame, truth: pd.DataFrame, *, apart_um: tuple[float, ...] = (7.5, 10.0, 12.5)
) -> dict[str, float]:
    """How far apart detections must lie, and the threshold, with the highest F1: on validation patients.

    The two plates of a telophase are two dark places, and one cell.

    Parameters
    ----------
    detections : DataFrame
        slide_id, x_um, y_um, score.
    truth : DataFrame
        slide_id, x_um, y_um.
    apart_um : tuple of float
        Tried, as the radius of `suppress`; of equally good ones the first is taken.

    Returns
    -------
    dict
        f1, apart_um, threshold.

    Raises
    ------
    ValueError
        If there is nothing to find, or nothing was detected.
    """
    tried = []
    for radius in apart_um:
        matched, _ = match_points(suppress(detections, radius_um=radius), truth)
        threshold = best_threshold(matched, len(truth))
        best = float(precision_recall(matched, len(truth))["f1"].max())
        tried.append({"f1": best, "apart_um": radius, "threshold": threshold})
    return max(tried, key=lambda each: each["f1"])


def counts_at(
    matched: pd.DataFrame, found: pd.DataFrame, threshold: float, slides: pd.DataFrame
) -> pd.DataFrame:
    """Hits, false alarms and misses of each slide at a threshold.

    Parameters
    ----------
    matched, found : DataFrame
        Of `match_points`.
    threshold : float
    slides : DataFrame
        slide_id, and patient_id where there is one; a slide without any detection or cell has zeros.

    Returns
    -------
    DataFrame
        slide_id and patient_id, hits, false_alarms, missed: what `f1` takes.
    """
    above, reached = matched[matched["score"] >= threshold], found["found_at"] >= threshold
    parts = {
        "hits": found.loc[reached, "slide_id"],
        "false_alarms": above.loc[above["outcome"] == "false alarm", "slide_id"],
        "missed": found.loc[~reached, "slide_id"],
    }
    table = slides[[c for c in ("slide_id", "patient_id") if c in slides]].reset_index(drop=True)
    counts = {k: table["slide_id"].map(v.value_counts()).fillna(0).astype(int) for k, v in parts.items()}
    return table.assign(**counts)


def f1(counts: pd.DataFrame) -> float:
    """F1 of a table with a row a slide or patient: hits, false_alarms, missed; NaN where nothing is there to be found."""
    hits, wrong, missed = (float(counts[c].sum()) for c in ("hits", "false_alarms", "missed"))
    total = 2 * hits + wrong + missed
    return 2 * hits / total if total else float("nan")


def hot_spot(points: pd.DataFrame, *, area_mm2: float = 2.0) -> dict[str, Any]:
    """The circle of a given area with the most points of one slide.

    Centres are tried on every point and on the middle of every two that fit into one circle: some best circle of any set
    is within the spacing of its points of one of them.

    Parameters
    ----------
    points : DataFrame
        x_um, y_um.
    area_mm2 : float

    Returns
    -------
    dict
        x_um, y_um, radius_um, n, per_mm2.

    Raises
    ------
    ValueError
        If there are no points, or the area is not positive.
    """
    if not len(points):
        raise ValueError("hot_spot: no points: there is no hottest place.")
    if not area_mm2 > 0:
        raise ValueError(f"hot_spot: area_mm2 must be positive, got {area_mm2}.")
    radius = float(np.sqrt(area_mm2 * 1e6 / np.pi))
    xy = points[["x_um", "y_um"]].to_numpy(float)
    tree = cKDTree(xy)
    pairs = tree.query_pairs(2 * radius, output_type="ndarray")
    if len(pairs) > 200_000:
        pairs = pairs[np.random.default_rng(0).choice(len(pairs), 200_000, replace=False)]
    centres = np.concatenate([xy, xy[pairs].mean(1)]) if len(pairs) else xy
    n = tree.query_ball_point(centres, radius + 1e-6, return_length=True)
    best = int(np.argmax(n))
    x, y = centres[best]
    return {
        "x_um": float(x),
        "y_um": float(y),
        "radius_um": radius,
        "n": int(n[best]),
        "per_mm2": n[best] / area_mm2,
    }


def inside(points: pd.DataFrame, spot: dict[str, Any]) -> NDArray[np.bool_]:
    """Which points lie in a hot spot."""
    away = np.hypot(points["x_um"] - spot["x_um"], points["y_um"] - spot["y_um"])
    return np.asarray(away <= spot["radius_um"] + 1e-6)
