"""Agreement: how far readers agree, and what they would say together.

Decisions
---------
* Dice of outlines is a ratio of exact areas (shapely), not of pixels: it does not depend on a resolution.
* Kappa is computed on the labels of patches, because outlines have no "agreed nothing" to correct chance with.
* The consensus is Dawid and Skene's: each reader has a confusion matrix, found together with the truth by expectation
  and maximisation. With two classes and a fixed prior this is STAPLE; items that were rated alike are counted, not
  repeated, so that a mask of a million pixels costs as much as its few patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import ArrayLike, NDArray

from pathkit.annotations import label_patches

__all__ = ["Consensus", "Staple", "consensus", "outline_dice", "pairwise", "patch_ratings", "staple"]

Readings = Mapping[str, Any]


# Comparing -------------------------------------------------------------------------------------------------------


def outline_dice(a: Any, b: Any, *, within: Any = None) -> float:
    """Dice coefficient of two sets of outlines, by area.

    Parameters
    ----------
    a, b : GeoDataFrame, GeoSeries, geometry, or a sequence of geometries
        In one frame. Outlines of one set that overlap count once; lines and points have no area.
    within : geometry, optional
        Compare only inside.

    Returns
    -------
    float
        2 |A and B| / (|A| + |B|); 1 where both are empty.
    """
    first, second = _union(a), _union(b)
    if within is not None:
        first, second = first.intersection(within), second.intersection(within)
    total = first.area + second.area
    return 1.0 if total == 0 else float(2 * first.intersection(second).area / total)


def pairwise(readings: Readings, measure: Callable[[Any, Any], float]) -> pd.DataFrame:
    """A measure of agreement between each two readers.

    Parameters
    ----------
    readings : mapping
        Name to whatever `measure` compares: outlines for `outline_dice`, labels for `metrics.kappa`.
    measure : callable
        Symmetric.

    Returns
    -------
    DataFrame
        Square, names in rows and columns; 1 on the diagonal.

    Raises
    ------
    ValueError
        If there are fewer than two readers.
    """
    names = list(readings)
    if len(names) < 2:
        raise ValueError(f"pairwise: {len(names)} reader; agreement needs two.")
    table = pd.DataFrame(1.0, index=names, columns=names)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            value = float(measure(readings[one], readings[other]))
            table.loc[one, other] = table.loc[other, one] = value
    return table


def patch_ratings(patches: pd.DataFrame, readings: Readings, **options: Any) -> pd.DataFrame:
    """The label that each reader's outlines give each patch.

    Parameters
    ----------
    patches : DataFrame
        Of one slide.
    readings : mapping
        Name to annotations (level-0 pixels).
    **options
        Of `annotations.label_patches`: slide or slide_mpp, min_overlap, background.

    Returns
    -------
    DataFrame
        One column a reader, one row a patch, with the index of `patches`.
    """
    return pd.DataFrame(
        {name: label_patches(patches, outlines, **options)["label"] for name, outlines in readings.items()},
        index=patches.index,
    )


# Consensus -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Consensus:
    """What readers would say together, and how far each can be relied on.

    Attributes
    ----------
    classes : tuple
        K classes.
    probability : (N, K) float64
        Of each class, for each item.
    prior : (K,) float64
        Share of each class.
    confusion : (R, K, K) float64
        Of each reader; row: the class in truth, column: what the reader says. Rows sum to 1.
    n_iterations : int
    """

    classes: tuple[Any, ...]
    probability: NDArray[np.float64]
    prior: NDArray[np.float64]
    confusion: NDArray[np.float64]
    n_iterations: int

    @property
    def label(self) -> NDArray[Any]:
        """The likeliest class of each item, (N,)."""
        return np.array(self.classes, dtype=object)[self.probability.argmax(1)]


def consensus(
    ratings: pd.DataFrame | ArrayLike,
    *,
    classes: Sequence[Any] | None = None,
    prior: ArrayLike | None = None,
    n_iterations: int = 1000,
    tolerance: float = 1e-9,
) -> Consensus:
    """The classes of items that several readers rated, by Dawid and Skene's method.

    Parameters
    ----------
    ratings : (N, R) DataFrame or array
        One row an item, one column a reader; None or NaN where a reader did not rate. A reader who rated twice may
        have two columns, and is then estimated as two.
    classes : sequence, optional
        The sorted ratings by default.
    prior : (K,), optional
        Shares of the classes, held fixed; estimated when not given.
    n_iterations : int
        At most so many.
    tolerance : float
        Stop when no probability changes by more.

    Returns
    -------
    Consensus

    Raises
    ------
    ValueError
        If there are fewer than two readers, an item without any rating, or a rating that is not among `classes`.

    References
    ----------
    .. [1] Dawid and Skene, "Maximum likelihood estimation of observer error-rates using the EM algorithm", Applied
       Statistics 28 (1979).
    """
    table = pd.DataFrame(ratings)
    if table.shape[1] < 2:
        raise ValueError(f"consensus: {table.shape[1]} reader; a consensus needs at least two columns.")
    given = pd.unique(table.to_numpy(object).ravel())
    names = tuple(sorted(v for v in given if not pd.isna(v)) if classes is None else classes)
    unknown = [v for v in given if not pd.isna(v) and v not in names]
    if unknown:
        raise ValueError(f"consensus: {unknown[0]!r} is not among the classes {', '.join(map(str, names))}.")
    codes = np.stack([pd.Index(names).get_indexer(table[c]) for c in table.columns], 1)
    empty = (codes < 0).all(1)
    if empty.any():
        raise ValueError(f"consensus: nobody rated row {int(empty.argmax())}. Drop items without ratings.")
    patterns, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    fixed = None if prior is None else np.asarray(prior, float)
    found = _em(patterns, counts, len(names), fixed, n_iterations, tolerance)
    return Consensus(names, found[0][inverse.ravel()], *found[1:])


@dataclass(frozen=True)
class Staple:
    """The mask that several readers' masks stand for.

    Attributes
    ----------
    probability : (H, W) float64
        That a pixel belongs.
    sensitivity, specificity : (R,) float64
        Of each reader against it.
    """

    probability: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    specificity: NDArray[np.float64]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels that belong more likely than not."""
        return self.probability > 0.5


def staple(masks: Sequence[ArrayLike], *, prior: float | None = None) -> Staple:
    """Simultaneous truth and performance level estimation of masks.

    Parameters
    ----------
    masks : sequence of (H, W) bool
        One a reader. What lies far from every outline should be cut away first: it makes all readers look specific.
    prior : float, optional
        Share of pixels that belong; the readers' mean by default.

    Returns
    -------
    Staple

    Raises
    ------
    ValueError
        If there are fewer than two masks, their shapes differ, or all are empty or full.

    References
    ----------
    .. [1] Warfield, Zou and Wells, "Simultaneous truth and performance level estimation (STAPLE)", IEEE TMI 23 (2004).
    """
    stack = [np.asarray(m).astype(bool) for m in masks]
    if len(stack) < 2 or len({m.shape for m in stack}) > 1:
        raise ValueError(f"staple: at least two masks of one shape, got {[m.shape for m in stack]}.")
    share = float(np.mean([m.mean() for m in stack])) if prior is None else prior
    if not 0 < share < 1:
        raise ValueError("staple: every mask is empty, or every mask is full: there is nothing to agree on.")
    bits = sum(m.astype(np.int64) << i for i, m in enumerate(stack))
    seen, inverse, counts = np.unique(bits, return_inverse=True, return_counts=True)
    patterns = (seen[:, None] >> np.arange(len(stack))) & 1
    probability, _, confusion, _ = _em(patterns, counts, 2, np.array([1 - share, share]), 1000, 1e-9)
    whole = probability[:, 1][inverse].reshape(stack[0].shape)
    return Staple(whole, confusion[:, 1, 1], confusion[:, 0, 0])


def _em(
    patterns: NDArray[Any],
    counts: NDArray[Any],
    n_classes: int,
    prior: Any,
    n_iterations: int,
    tolerance: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    """Probabilities of each pattern (P, K), prior, confusion (R, K, K) and iterations; from the share of votes on."""
    votes = (patterns[:, :, None] == np.arange(n_classes)).astype(float)  # (P, R, K)
    weight = counts / counts.sum()
    truth = votes.sum(1) / votes.sum((1, 2))[:, None]
    shares = prior
    step = 0
    while step < n_iterations:
        step += 1
        shares = weight @ truth if prior is None else prior
        confusion = np.einsum("p,pj,prl->rjl", weight, truth, votes)
        confusion /= np.maximum(confusion.sum(2, keepdims=True), 1e-300)
        with np.errstate(divide="ignore"):
            score = np.log(shares) + np.einsum("prl,rjl->pj", votes, np.maximum(np.log(confusion), -700))
        score -= score.max(1, keepdims=True)
        fresh = np.exp(score) / np.exp(score).sum(1, keepdims=True)
        moved, truth = float(np.abs(fresh - truth).max()), fresh
        if moved < tolerance:
            break
    return truth, shares, confusion, step


def _union(outlines: Any) -> Any:
    geometry = getattr(outlines, "geometry", outlines)
    shapes = [geometry] if isinstance(geometry, shapely.Geometry) else list(geometry)
    areas = [s for s in shapes if s.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all([s if s.is_valid else shapely.make_valid(s) for s in areas])
