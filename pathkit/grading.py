"""Grading: from the patterns of a prostate biopsy to its Gleason score and ISUP grade group, and to the agreement of readers.

The rules are those for needle biopsies [1]_ [2]_. The *primary* pattern is the one that takes most of the tumour. The
*secondary* is the highest of the others that takes at least a least share of it, 5% here; without one the primary counts
twice. The *Gleason score* is their sum, and the *grade group* follows: 1 for scores up to 6, 2 for 3 + 4, 3 for 4 + 3, 4
for 8, 5 for 9 and 10. A core without tumour has grade 0. (In practice any amount of a *higher* pattern counts on a needle
biopsy; a least share keeps a few mistaken patches from grading a core: `least_secondary` is yours to set.)

A model calls patches, so that its composition of a core is never exactly pure. `least_tumour` says how much of a core must
be called tumour before it counts as ill.

References
----------
.. [1] Epstein et al., "The 2014 International Society of Urological Pathology (ISUP) consensus conference on Gleason grading
   of prostatic carcinoma", American Journal of Surgical Pathology 40:244 (2016).
.. [2] Epstein et al., "The 2005 International Society of Urological Pathology (ISUP) consensus conference on Gleason
   grading of prostatic carcinoma", American Journal of Surgical Pathology 29:1228 (2005).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pathkit.geometry import Raster
from pathkit.metrics import kappa

__all__ = [
    "GRADES",
    "PATTERNS",
    "composition",
    "consensus",
    "fit_cut_offs",
    "gleason_score",
    "grade",
    "isup_grade",
    "pattern_map",
]

#: What a patch of a core can be, in their order.
PATTERNS = ("benign", "pattern 3", "pattern 4", "pattern 5")
#: ISUP grade groups; 0: no tumour.
GRADES = (0, 1, 2, 3, 4, 5)
#: Grade group of (primary, secondary).
_GROUPS = {(3, 3): 1, (3, 4): 2, (4, 3): 3, (4, 4): 4, (3, 5): 4, (5, 3): 4, (4, 5): 5, (5, 4): 5, (5, 5): 5}


def gleason_score(
    shares: Mapping[str, float], *, least_tumour: float = 0.0, least_secondary: float = 0.05
) -> tuple[int, int] | None:
    """Primary and secondary pattern of a core.

    Parameters
    ----------
    shares : mapping
        Share of the core, or area, of each of `PATTERNS`; what is missing counts as 0.
    least_tumour : float
        Least share of tumour in all that is given; below it, and without any, there is none.
    least_secondary : float
        Least share of the tumour that a secondary pattern takes.

    Returns
    -------
    (primary, secondary) or None
        None without tumour. Of two patterns with equal shares the higher is the primary.

    Raises
    ------
    ValueError
        If a share is negative or no number, a pattern unknown, or a least share not from 0 to 1.
    """
    table = pd.DataFrame([dict.fromkeys(PATTERNS, 0.0) | {k: float(v) for k, v in shares.items()}])
    primary, secondary = _patterns(table, least_tumour, least_secondary)
    return None if primary[0] == 0 else (int(primary[0]), int(secondary[0]))


def isup_grade(
    shares: Mapping[str, float], *, least_tumour: float = 0.0, least_secondary: float = 0.05
) -> int:
    """ISUP grade group of a core, 0 (no tumour) to 5; arguments as of `gleason_score`."""
    score = gleason_score(shares, least_tumour=least_tumour, least_secondary=least_secondary)
    return 0 if score is None else _GROUPS[score]


def grade(
    compositions: pd.DataFrame, *, least_tumour: float = 0.0, least_secondary: float = 0.05
) -> pd.DataFrame:
    """Grade many cores at once.

    Parameters
    ----------
    compositions : DataFrame
        Columns among `PATTERNS`; others are carried along. One row a core.
    least_tumour, least_secondary : float
        As of `gleason_score`.

    Returns
    -------
    DataFrame
        A copy with ``gleason`` ("3+4", or "benign") and ``isup`` (int).
    """
    given = compositions[[c for c in PATTERNS if c in compositions]]
    primary, secondary = _patterns(given, least_tumour, least_secondary)
    pairs = list(zip(primary.tolist(), secondary.tolist(), strict=True))
    text = [f"{a}+{b}" if a else "benign" for a, b in pairs]
    return compositions.assign(gleason=text, isup=np.array([_GROUPS.get(p, 0) for p in pairs], int))


def fit_cut_offs(compositions: pd.DataFrame, reference: ArrayLike) -> dict[str, float]:
    """The cut-offs of `grade` whose grades agree best with a reference, by quadratic kappa.

    To be fitted on other patients than those that are graded with it.

    Parameters
    ----------
    compositions : DataFrame
        As `grade` takes them, one row a core.
    reference : (N,) int
        ISUP grades of the same cores.

    Returns
    -------
    dict
        least_tumour and least_secondary: of all pairs that agree best, the one nearest to their middle, so that the choice
        does not stand at an edge.

    Raises
    ------
    ValueError
        If the lengths differ or a grade is none of `GRADES`.
    """
    wanted = np.asarray(reference)
    if wanted.shape != (len(compositions),) or not np.isin(wanted, GRADES).all():
        raise ValueError(
            f"fit_cut_offs: one grade from 0 to 5 for each of {len(compositions)} cores, got {wanted.shape} with"
            f" {sorted(set(wanted.ravel().tolist()))[:8]}."
        )
    pairs = [(a, b) for a in np.arange(0.01, 0.31, 0.02) for b in np.arange(0.02, 0.41, 0.02)]
    reached = np.array(
        [
            kappa(
                grade(compositions, least_tumour=a, least_secondary=b)["isup"],
                wanted,
                weights="quadratic",
                labels=GRADES,
            )
            for a, b in pairs
        ]
    )
    best = np.array(pairs)[reached >= np.nanmax(reached) - 1e-9]
    tumour, secondary = best[((best - best.mean(0)) ** 2).sum(1).argmin()]
    return {"least_tumour": round(float(tumour), 2), "least_secondary": round(float(secondary), 2)}


def composition(
    predictions: pd.DataFrame,
    *,
    slides: Sequence[str] | None = None,
    soft: bool = False,
    by: str = "slide_id",
) -> pd.DataFrame:
    """Shares of the patterns among the patches of each core.

    Parameters
    ----------
    predictions : DataFrame
        `by`, and ``predicted`` (or, when `soft`, ``p_<pattern>``), as `inference.predict_patches` gives them.
    slides : sequence of str, optional
        All that should be there; one without a patch is an error, not a benign core.
    soft : bool
        Add up probabilities instead of counting decisions.

    Returns
    -------
    DataFrame
        Index `by`; a column for each of `PATTERNS`, rows sum to 1; ``patches``, their number.

    Raises
    ------
    ValueError
        If a slide has no patch, a column is missing, or a patch is called what is no pattern.
    """
    wanted = [f"p_{p}" for p in PATTERNS] if soft else ["predicted"]
    missing = [c for c in (by, *wanted) if c not in predictions]
    if missing:
        raise ValueError(
            f"composition: no column {missing[0]!r}; the table has {', '.join(map(str, predictions))}."
        )
    without = sorted(set(slides) - set(predictions[by])) if slides is not None else []
    if without:
        raise ValueError(
            f"composition: {len(without)} slides have no patch, first {without[0]!r}: no tissue was found. Look at it before"
            " it is called benign."
        )
    if soft:
        shares = predictions.groupby(by, observed=True)[wanted].mean().set_axis(list(PATTERNS), axis=1)
    else:
        unknown = sorted(set(predictions["predicted"]) - set(PATTERNS))
        if unknown:
            raise ValueError(f"composition: {unknown[0]!r} is none of {', '.join(PATTERNS)}.")
        counts = pd.crosstab(predictions[by], predictions["predicted"]).reindex(
            columns=list(PATTERNS), fill_value=0
        )
        shares = counts.div(counts.sum(axis=1), axis=0)
        shares.columns.name = None
    return shares.assign(patches=predictions.groupby(by, observed=True).size())


def pattern_map(predictions: pd.DataFrame, *, slide_mpp: float) -> Raster:
    """Which pattern stands where on a slide: at each place the greatest mean probability of the patches that cover it.

    Parameters
    ----------
    predictions : DataFrame
        Patches of one slide on a regular grid, with ``p_<pattern>``.
    slide_mpp : float

    Returns
    -------
    Raster
        float32, the number of the pattern in `PATTERNS`, NaN where no patch lies. A pixel is one step of the grid.

    Raises
    ------
    ValueError
        If there is no patch, or patches of several slides.
    """
    if predictions["slide_id"].nunique() != 1:
        raise ValueError(
            f"pattern_map: patches of one slide, got those of {predictions['slide_id'].nunique()} slides."
        )
    x, y = (predictions[c].to_numpy(np.int64) for c in ("x_l0", "y_l0"))
    side = round(float(predictions["size_px"].iloc[0] * predictions["mpp"].iloc[0]) / slide_mpp)
    gaps = np.concatenate([np.diff(np.unique(v)) for v in (x, y)])
    step = int(gaps.min()) if len(gaps) else side
    column, row = x // step, y // step
    cover = max(1, round(side / step))
    shape = int(row.max()) + cover, int(column.max()) + cover
    total = np.zeros((*shape, len(PATTERNS)))
    shares = predictions[[f"p_{p}" for p in PATTERNS]].to_numpy(float)
    for dr, dc in np.ndindex(cover, cover):
        np.add.at(total, (row + dr, column + dc), shares)
    values = np.where(total.sum(2) > 0, total.argmax(2), np.nan).astype(np.float32)
    return Raster(values, step * slide_mpp, attrs={"patterns": list(PATTERNS)})


def consensus(grades: ArrayLike) -> NDArray[np.int64]:
    """The median of several readers' grades; of an even number the lower of the middle two.

    Parameters
    ----------
    grades : (N, readers) int

    Returns
    -------
    (N,) int64
    """
    readings = np.sort(np.asarray(grades, np.int64), axis=1)
    if readings.shape[1] == 0:
        raise ValueError("consensus: no reader.")
    return readings[:, (readings.shape[1] - 1) // 2]


def _patterns(
    table: pd.DataFrame, least_tumour: float, least_secondary: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Primary and secondary of each row, 0 without tumour."""
    unknown = [c for c in table if c not in PATTERNS]
    if unknown or not len(table.columns):
        raise ValueError(f"grading: no pattern {unknown[:1]}; there are {', '.join(PATTERNS)}.")
    for name, value in (("least_tumour", least_tumour), ("least_secondary", least_secondary)):
        if not 0 <= value <= 1:
            raise ValueError(f"grading: {name} is a share from 0 to 1, got {value}.")
    shares = table.reindex(columns=list(PATTERNS), fill_value=0.0).to_numpy(float)
    if not (shares >= 0).all():
        row = int((~(shares >= 0)).any(1).argmax())
        raise ValueError(
            f"grading: row {row} (index {table.index[row]!r}) has a share that is negative or no number."
        )
    tumour, whole = shares[:, 1:], shares.sum(1)
    total = tumour.sum(1)
    ill = (total > 0) & (total >= least_tumour * whole)
    of_tumour = tumour / np.where(total > 0, total, 1)[:, None]
    primary = 2 - of_tumour[:, ::-1].argmax(1)  # from the highest, so that the higher wins a tie
    others = np.where(
        np.arange(3) == primary[:, None], -1, np.where(of_tumour >= least_secondary, np.arange(3), -1)
    )
    others[of_tumour == 0] = -1
    highest = others.max(1)
    secondary = np.where(highest >= 0, highest, primary)
    return np.where(ill, primary + 3, 0), np.where(ill, secondary + 3, 0)
