"""Scoring: immunohistochemistry as pathologists report it, from a table with one row a cell.

Decisions
---------
* A cell is its nucleus and a ring around it. Nuclear markers (Ki-67, ER, PR) are the mean diaminobenzidine of the nucleus;
  membrane markers (HER2, PD-L1) are read in sectors of the ring: how many of them are stained (completeness), and how
  strongly (intensity).
* Levels 0 to 3 follow from optical densities by three cut-offs. They belong to a laboratory's stain: fit them to cells whose
  level readers gave (`fit_cuts`), of patients that are not scored after, or move the sliders of `view.StainBoard` and watch.
* A negative cell beside a positive one has some of its neighbour's brown in its ring: whether a membrane is its own is told
  by how many sectors are stained, not by the strongest.
* Scores are computed of levels, never of pixels, so that each rule can be read beside its guideline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from pathkit.objects import morphology, otsu_nuclei
from pathkit.stain import separate

__all__ = [
    "CUTS",
    "MEMBRANE_CUTS",
    "BlandAltman",
    "allred",
    "bland_altman",
    "cells",
    "cps",
    "fit_cuts",
    "h_score",
    "her2_score",
    "hot_spot",
    "icc",
    "levels",
    "positive_share",
    "tps",
]

#: Optical density of diaminobenzidine from which on a nucleus (its mean) is weakly, moderately and strongly stained, and
#: from which on a membrane (its stained sectors) is. A start for the eye; `fit_cuts` gives those of a laboratory.
CUTS = (0.15, 0.36, 0.57)
MEMBRANE_CUTS = (0.15, 0.40, 0.75)
SECTORS = 16
#: Least optical density of a nucleus, both dyes together.
LEAST_DARK = 0.1


def cells(
    rgb: NDArray[np.uint8],
    *,
    mpp: float,
    membrane: bool = False,
    labels: NDArray[np.integer] | None = None,
    ring_um: float = 4.0,
    cut: float = CUTS[0],
    slide_id: str = "slide",
    origin_um: tuple[float, float] = (0.0, 0.0),
) -> pd.DataFrame:
    """The cells of a field stained with haematoxylin and diaminobenzidine.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    mpp : float
    membrane : bool
        The marker stains membranes; nuclei are then found by haematoxylin alone, else by both dyes.
    labels : (H, W) int, optional
        Nuclei, instead of those of `objects.otsu_nuclei`.
    ring_um : float
        Width of the ring around the nucleus in which the membrane is looked for; it ends where a neighbour's begins.
    cut : float
        Optical density from which on a sector of the membrane is stained.

    Returns
    -------
    DataFrame
        As `objects.morphology` (``dab`` is the nucleus' mean), with a unique index, and ``membrane_dab`` (mean over the
        stained sectors, over all where none is) and ``completeness`` (0 to 1).
    """
    stain = separate(rgb)
    if labels is None:
        labels = _nuclei(rgb, stain, mpp, membrane)
    table = morphology(labels, rgb, mpp=mpp, slide_id=slide_id, origin_um=origin_um, stains=stain)
    strongest = _sectors(np.asarray(labels), stain[..., 2], table, mpp, ring_um, origin_um)
    stained = strongest >= cut
    n = stained.sum(1)
    table["completeness"] = n / SECTORS
    sums = np.where(n > 0, (strongest * stained).sum(1), strongest.sum(1))
    table["membrane_dab"] = sums / np.where(n > 0, n, SECTORS)
    return table


def _nuclei(
    rgb: NDArray[np.uint8], stain: NDArray[np.float32], mpp: float, membrane: bool
) -> NDArray[np.int64]:
    """Nuclei by haematoxylin, or by both dyes: the threshold then comes from what is not brown, or it would part strongly
    stained nuclei from all others."""
    from skimage.filters import threshold_otsu

    if membrane:
        return otsu_nuclei(rgb, mpp=mpp, density=stain[..., 0])
    dark = np.maximum(stain[..., 0], 0) + np.maximum(stain[..., 2], 0)
    pale = np.append(ndimage.gaussian_filter(dark, 0.4 / mpp)[stain[..., 2] < CUTS[0]], 0.0)
    threshold = max(LEAST_DARK, float(threshold_otsu(pale))) if np.ptp(pale) > 1e-6 else LEAST_DARK
    return otsu_nuclei(rgb, mpp=mpp, density=dark, threshold=threshold)


def _sectors(
    labels: NDArray[np.integer],
    dab: NDArray[np.float32],
    table: pd.DataFrame,
    mpp: float,
    ring_um: float,
    origin_um: tuple[float, float],
) -> NDArray[np.float64]:
    """(cells, SECTORS) strongest diaminobenzidine of each sector of the ring, a little smoothed against noise."""
    out = np.zeros((len(table), SECTORS))
    if not len(table):
        return out
    far, (r, c) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    owner = labels[r, c]
    at = np.flatnonzero((far <= ring_um / mpp) & (owner > 0))
    row = np.searchsorted(table["label"].to_numpy(), owner.ravel()[at])
    y, x = np.divmod(at, labels.shape[1])
    middle_x = (table["x_um"].to_numpy() - origin_um[0]) / mpp - 0.5
    middle_y = (table["y_um"].to_numpy() - origin_um[1]) / mpp - 0.5
    angle = np.arctan2(y - middle_y[row], x - middle_x[row])
    sector = np.floor((angle / (2 * np.pi) + 0.5) * SECTORS).astype(int) % SECTORS
    value = ndimage.uniform_filter(dab, 3).ravel()[at]
    np.maximum.at(out, (row, sector), value)
    return out


def levels(density: ArrayLike, cuts: Sequence[float] = CUTS) -> NDArray[np.int64]:
    """Levels 0 (negative) to 3 (strong) of optical densities.

    Raises
    ------
    ValueError
        If there are not three ascending cut-offs.
    """
    if len(cuts) != 3 or not cuts[0] < cuts[1] < cuts[2]:
        raise ValueError(f"levels: three ascending cut-offs (weak, moderate, strong), got {tuple(cuts)}.")
    return np.searchsorted(np.asarray(cuts, float), np.asarray(density, float), side="right")


def fit_cuts(value: ArrayLike, level: ArrayLike, *, n: int = 3) -> tuple[float, ...]:
    """The cut-offs by which cells come nearest to the levels that readers gave them.

    They have the least mean absolute difference between the level read and the level cut. Each is the best border between
    "below level k" and "k or more", and these borders ascend of themselves.

    Parameters
    ----------
    value : (N,) float
        Optical densities, or any other measurement that grows with the level (completeness).
    level : (N,) int
        0 to `n`, of the same cells.
    n : int
        Number of cut-offs; 1 parts negative from positive.

    Returns
    -------
    (n,) tuple of float
        Half way between two cells' values; a value at or above it has the level.

    Raises
    ------
    ValueError
        If lengths differ, a value is missing, a level is out of range, or a level has no cells.
    """
    values, read = np.asarray(value, float), np.asarray(level)
    if values.ndim != 1 or values.shape != read.shape or not np.isfinite(values).all():
        raise ValueError(
            f"fit_cuts: one finite value and one level a cell, got {values.shape} and {read.shape}."
        )
    lacking = sorted(set(range(n + 1)) - set(read.tolist()))
    if lacking or not np.isin(read, range(n + 1)).all():
        raise ValueError(
            f"fit_cuts: cells of each level 0 to {n}, got {sorted(set(read.tolist()))}. Take more patients, or a smaller n."
        )
    at, start = np.unique(np.sort(values), return_index=True)
    sorted_levels = read[np.argsort(values, kind="stable")]
    cuts = [_border(at, start, sorted_levels >= k) for k in range(1, n + 1)]
    for k in range(1, n):  # levels that cannot be told apart share a border; cut-offs must ascend
        cuts[k] = max(cuts[k], float(np.nextafter(cuts[k - 1], np.inf)))
    return tuple(cuts)


def _border(at: NDArray[np.float64], start: NDArray[np.int64], above: NDArray[np.bool_]) -> float:
    """The border with the fewest cells on the wrong side, `above` being in the order of the values `at`."""
    below_wrong = np.append(0, np.cumsum(above))  # positives among the first i
    above_wrong = (~above).sum() - np.append(0, np.cumsum(~above))
    wrong = (below_wrong + above_wrong)[np.append(start, len(above))]
    i = int(wrong.argmin())
    if i == len(at):
        return float(np.nextafter(at[-1], np.inf))
    return float(at[0] if i == 0 else (at[i - 1] + at[i]) / 2)


def _levels_of(level: ArrayLike, who: str) -> NDArray[np.int64]:
    values = np.asarray(level)
    if not values.size:
        raise ValueError(
            f"{who}: no cell to score. Is there tumour in the field, and was the filter too strict?"
        )
    if not np.isin(values, [0, 1, 2, 3]).all():
        raise ValueError(
            f"{who}: levels are 0, 1, 2 or 3. Of optical densities make them with levels(density, cuts)."
        )
    return values.astype(np.int64)


def positive_share(level: ArrayLike) -> float:
    """Share of cells above level 0, 0 to 1: the Ki-67 index when the cells are all tumour cells (Nielsen, JNCI 2021)."""
    return float((_levels_of(level, "positive_share") > 0).mean())


def hot_spot(
    table: pd.DataFrame, level: ArrayLike, *, radius_um: float = 125.0, least_cells: int = 100
) -> dict[str, float]:
    """The circle around a cell with the greatest share of positive cells.

    Parameters
    ----------
    table : DataFrame
        x_um, y_um.
    level : (N,) int
    radius_um : float
    least_cells : int
        Circles with fewer cells do not count: a share of few cells is extreme by chance.

    Returns
    -------
    dict
        x_um, y_um, share, n.

    Raises
    ------
    ValueError
        If no circle holds enough cells.
    """
    positive = _levels_of(level, "hot_spot") > 0
    xy = table[["x_um", "y_um"]].to_numpy(float)
    near = cKDTree(xy).query_ball_point(xy, radius_um)
    n = np.array([len(k) for k in near])
    if n.max() < least_cells:
        raise ValueError(
            f"hot_spot: no circle of {radius_um:g} µm holds {least_cells} cells; the fullest has {n.max()}. Take a larger"
            " radius_um."
        )
    share = np.array([positive[k].mean() for k in near])
    best = int(np.lexsort((n, np.where(n >= least_cells, share, -1)))[-1])
    return {
        "x_um": float(xy[best, 0]),
        "y_um": float(xy[best, 1]),
        "share": float(share[best]),
        "n": float(n[best]),
    }


def h_score(level: ArrayLike) -> float:
    """H-score, 0 to 300: the percentages of weak, moderate and strong cells, times 1, 2 and 3 (McCarty 1985)."""
    return float(100 * _levels_of(level, "h_score").mean())


def allred(level: ArrayLike) -> int:
    """Allred score, 0 or 2 to 8: share of positive cells (0 to 5) and their mean intensity (1 to 3).

    References
    ----------
    .. [1] Allred et al., "Prognostic and predictive factors in breast cancer by immunohistochemical analysis", Mod Pathol
       11:155, 1998.
    """
    values = _levels_of(level, "allred")
    positive = values[values > 0]
    if not len(positive):
        return 0
    share = len(positive) / len(values)
    proportion = 1 + int(np.searchsorted([1 / 100, 1 / 10, 1 / 3, 2 / 3], share, side="left"))
    return proportion + int(np.clip(np.floor(positive.mean() + 0.5), 1, 3))


def her2_score(
    intensity: ArrayLike, completeness: ArrayLike, *, complete: float = 0.8, least_share: float = 0.1
) -> int:
    """HER2 0 to 3+, by the share of tumour cells with each kind of membrane.

    3+: complete and strong in more than a tenth. 2+: complete and weak or moderate in more than a tenth, or complete and
    strong in up to a tenth. 1+: some membrane in more than a tenth. 0: less.

    Parameters
    ----------
    intensity : (N,) int
        Levels of the membrane.
    completeness : (N,) float
        Stained share of it.
    complete : float
        From which on a membrane counts as complete; readers allow for gaps.
    least_share : float
        "More than 10%" of the guideline.

    References
    ----------
    .. [1] Wolff et al., "HER2 testing in breast cancer: ASCO/CAP guideline focused update", JCO 36:2105, 2018.
    """
    level, whole = _levels_of(intensity, "her2_score"), np.asarray(completeness, float) >= complete
    if level.shape != whole.shape:
        raise ValueError(f"her2_score: one completeness a cell, got {whole.shape} for {level.shape}.")
    strong, any_whole = (whole & (level == 3)).mean(), (whole & (level > 0)).mean()
    if strong > least_share:
        return 3
    if any_whole > least_share or strong > 0.01:
        return 2
    return 1 if (level > 0).mean() > least_share else 0


def tps(tumour_level: ArrayLike) -> float:
    """PD-L1 tumour proportion score, 0 to 100: viable tumour cells with any membrane staining, in percent."""
    return 100 * float((_levels_of(tumour_level, "tps") > 0).mean())


def cps(tumour_level: ArrayLike, immune_level: ArrayLike) -> float:
    """PD-L1 combined positive score, 0 to 100: positive tumour and immune cells per 100 tumour cells, at most 100."""
    positive = int((_levels_of(tumour_level, "cps") > 0).sum())
    immune = np.asarray(immune_level)
    positive += int((_levels_of(immune, "cps") > 0).sum()) if immune.size else 0
    return float(min(100.0, 100 * positive / np.asarray(tumour_level).size))


# Agreement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlandAltman:
    """Agreement of two measurements: mean difference and the limits that hold 95% of the differences."""

    bias: float
    low: float
    high: float
    mean: NDArray[np.float64]
    difference: NDArray[np.float64]


def bland_altman(a: ArrayLike, b: ArrayLike) -> BlandAltman:
    """Differences a - b against their means (Bland and Altman, Lancet 1986).

    Raises
    ------
    ValueError
        If there are fewer than two pairs, or lengths differ.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(f"bland_altman: two or more pairs, got {first.shape} and {second.shape}.")
    difference = first - second
    bias, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1))
    return BlandAltman(bias, bias - spread, bias + spread, (first + second) / 2, difference)


def icc(ratings: ArrayLike) -> float:
    """Intraclass correlation ICC(2,1): absolute agreement of single measurements, raters at random.

    Parameters
    ----------
    ratings : (N, K) array
        Things in rows, raters in columns.

    Raises
    ------
    ValueError
        If there are fewer than two rows or columns, or a value is missing.

    References
    ----------
    .. [1] Shrout and Fleiss, "Intraclass correlations", Psychological Bulletin 86:420, 1979.
    """
    x = np.asarray(ratings, float)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise ValueError(
            f"icc: (things, raters), at least two of each and no value missing, got shape {x.shape}."
        )
    n, k = x.shape
    rows, cols, grand = x.mean(1), x.mean(0), x.mean()
    between = k * ((rows - grand) ** 2).sum() / (n - 1)
    raters = n * ((cols - grand) ** 2).sum() / (k - 1)
    rest = ((x - rows[:, None] - cols + grand) ** 2).sum() / ((n - 1) * (k - 1))
    total = between + (k - 1) * rest + k * (raters - rest) / n
    return float((between - rest) / total) if total else 1.0
