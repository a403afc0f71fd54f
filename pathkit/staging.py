"""From deposits to the stage of a patient: the sizes and rules by which lymph nodes are counted.

A deposit is named by its greatest extent, a node by its largest deposit, a patient by all nodes. The limits are those of
the AJCC Cancer Staging Manual (8th edition, breast); the stages are the five of the CAMELYON17 challenge, which leaves out
what a slide cannot show (the number of cells of a small deposit, nodes beyond the axilla).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

__all__ = ["CATEGORIES", "STAGES", "deposit_category", "node_category", "patient_stage", "patient_stages"]

#: Of a deposit or a node, from nothing to the largest.
CATEGORIES = ("normal", "itc", "micro", "macro")
#: Of a patient, in their order.
STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")
#: Greatest extent of isolated tumour cells and of a micrometastasis, microns.
ITC_UM, MICRO_UM = 200.0, 2000.0


def deposit_category(length_um: ArrayLike) -> NDArray[np.str_]:
    """Name deposits by their greatest extent.

    Parameters
    ----------
    length_um : (N,) float
        Greatest extent of each, microns.

    Returns
    -------
    (N,) str
        ``itc`` up to 0.2 mm, ``micro`` up to 2 mm, ``macro`` above.

    Raises
    ------
    ValueError
        If a length is not above 0.

    References
    ----------
    .. [1] Amin et al. (editors), AJCC Cancer Staging Manual, 8th edition (2017): breast, regional lymph nodes.
    """
    length = np.atleast_1d(np.asarray(length_um, float))
    if not (length > 0).all():  # also NaN
        raise ValueError(f"deposit_category: lengths are microns above 0, got {length[~(length > 0)][0]:g}.")
    return np.array(CATEGORIES[1:])[np.digitize(length, [ITC_UM, MICRO_UM], right=True)]


def node_category(deposits: Iterable[str]) -> str:
    """The category of a node: that of its largest deposit, ``normal`` where there is none.

    Raises
    ------
    ValueError
        If a category is unknown.
    """
    return CATEGORIES[max((_rank(d) for d in deposits), default=0)]


def patient_stage(nodes: Iterable[str]) -> str:
    """The stage of a patient from the categories of all nodes examined.

    Parameters
    ----------
    nodes : iterable of str
        One of `CATEGORIES` for each node.

    Returns
    -------
    str
        ``pN0`` no tumour; ``pN0(i+)`` isolated cells only; ``pN1mi`` micrometastases, none larger; ``pN1`` metastases in
        one to three nodes and ``pN2`` in four to nine, at least one of them a macrometastasis.

    Raises
    ------
    ValueError
        If there is no node, a category is unknown, or more nodes hold metastases than the rules cover.

    References
    ----------
    .. [1] Bandi et al., "From detection of individual metastases to classification of lymph node status at the patient
       level: the CAMELYON17 challenge", IEEE TMI 38 (2019).
    """
    ranks = [_rank(n) for n in nodes]
    if not ranks:
        raise ValueError("patient_stage: no node. A stage needs at least one that was examined.")
    if max(ranks) < 3:
        return STAGES[max(ranks)]
    n_positive = sum(r >= 2 for r in ranks)
    if n_positive > 9:
        raise ValueError(
            f"patient_stage: {n_positive} nodes with metastases; the rules here end at nine (pN2)."
        )
    return "pN1" if n_positive <= 3 else "pN2"


def patient_stages(nodes: pd.DataFrame, *, category: str = "category") -> pd.Series:
    """The stage of each patient of a table of nodes (patient_id and a column of categories), indexed by patient_id."""
    stages = nodes.groupby("patient_id", observed=True)[category].agg(patient_stage)
    return stages.astype(pd.CategoricalDtype(list(STAGES), ordered=True)).rename("stage")


def _rank(category: str) -> int:
    if category not in CATEGORIES:
        raise ValueError(f"no category {category!r}; nodes and deposits are {', '.join(CATEGORIES)}.")
    return CATEGORIES.index(category)
