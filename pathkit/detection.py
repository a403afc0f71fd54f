"""Detection of rare cells: candidates, a first network, its mistakes, and a second one that learns from them.

Candidates come from a cheap rule that misses little (`counting.haematoxylin_blobs`). A first network learns from the cells
and as many others at random; what it takes for a cell on the training slides, and is none, are the *hard negatives* from
which the second learns [1]_. The two form a cascade: what the first finds hopeless scores nothing, the rest is judged by the
second alone, which knows the look-alikes.

References
----------
.. [1] Ciresan et al., "Mitosis detection in breast cancer histology images with deep neural networks", MICCAI 2013.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree

from pathkit.counting import F1_RADIUS_UM
from pathkit.inference import predict_patches
from pathkit.models import PatchClassifier, patch_classifier
from pathkit.patches import SlideSource
from pathkit.training import Augment, fit

__all__ = ["Detector", "candidate_patches", "train_detector"]

_CLASSES = ["other", "mitosis"]
#: A candidate to which the first network gives less is not looked at twice.
LEAST = 0.02


def candidate_patches(
    candidates: pd.DataFrame,
    slides: pd.DataFrame,
    truth: pd.DataFrame | None = None,
    *,
    size_px: int = 48,
    mpp: float = 0.5,
    radius_um: float = F1_RADIUS_UM,
) -> pd.DataFrame:
    """Patches around candidates, labelled by the true cells.

    Parameters
    ----------
    candidates : DataFrame
        slide_id, x_um, y_um.
    slides : DataFrame
        slide_id, mpp, and patient_id and site where there are any.
    truth : DataFrame, optional
        slide_id, x_um, y_um of the cells to find.
    size_px, mpp
        Of the patches.
    radius_um : float
        A candidate within it is a cell; up to twice as far it is neither (label "").

    Returns
    -------
    DataFrame
        A patch a candidate, in order: x_l0, y_l0, size_px, mpp, label and what the candidates have.
    """
    keep = [c for c in ("slide_id", "patient_id", "site") if c in slides]
    table = candidates.merge(slides[keep], on="slide_id", how="left", validate="many_to_one")
    scale = table["slide_id"].map(slides.set_index("slide_id")["mpp"]).to_numpy(float)
    half = size_px * mpp / 2
    for axis in "xy":
        table[f"{axis}_l0"] = np.rint((table[f"{axis}_um"] - half) / scale).astype(int)
    table["size_px"], table["mpp"] = size_px, mpp
    if truth is None:
        return table
    away = np.full(len(table), np.inf)
    of_truth = truth.groupby("slide_id").indices
    for slide_id, rows in table.groupby("slide_id").indices.items():
        if slide_id in of_truth:
            tree = cKDTree(truth[["x_um", "y_um"]].to_numpy(float)[of_truth[slide_id]])
            away[rows] = tree.query(table[["x_um", "y_um"]].to_numpy(float)[rows])[0]
    table["label"] = np.select([away <= radius_um, away <= 2 * radius_um], ["mitosis", ""], "other")
    return table


@dataclass
class Detector:
    """Two networks in a cascade, as `train_detector` made them.

    Attributes
    ----------
    first, second : PatchClassifier
    hard : DataFrame
        Patches that the first took for cells and that were none, worst first.
    """

    first: PatchClassifier
    second: PatchClassifier
    hard: pd.DataFrame

    def score(self, patches: pd.DataFrame, slides: Any, *, stage: str = "both") -> pd.DataFrame:
        """The patches with their score, from 0 to 1.

        Parameters
        ----------
        patches : DataFrame
            Of `candidate_patches`.
        slides : DataFrame or mapping
        stage : {"first", "second", "both"}
            With "both", what the first finds hopeless is not shown to the second and scores 0.
        """
        if stage not in ("first", "second", "both"):
            raise ValueError(f"score: stage is first, second or both, got {stage!r}.")
        if stage != "both":
            return patches.assign(score=_probability(getattr(self, stage), patches, slides))
        first = _probability(self.first, patches, slides)
        looked, score = first > LEAST, np.zeros(len(patches))
        if looked.any():
            score[looked] = _probability(self.second, patches[looked], slides)
        return patches.assign(score=score)


def train_detector(
    train: pd.DataFrame,
    val: pd.DataFrame,
    *,
    slides: Any,
    encoder: str = "cell",
    epochs: tuple[int, int] = (3, 6),
    n_negative: int = 2000,
    repeat: int = 8,
    shift_um: float = 2.0,
    augment: Augment | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Detector:
    """Train the first network, find its mistakes, train the second on them.

    Parameters
    ----------
    train, val : DataFrame
        Labelled patches of `candidate_patches`; their patients should differ.
    slides : DataFrame or mapping
    encoder : str
        See `models.patch_classifier`.
    epochs : (first, second)
    n_negative : int
        Others at random for the first network; the second learns from as many hard ones and half as many at random.
    repeat : int
        How often each cell is shown an epoch, shifted, turned and stained differently.
    shift_um : float
        How far the middle of a patch may lie from its candidate, along each axis.
    augment : Augment, optional
        Moderate stain jitter by default: how dark chromatin is, is part of what makes a mitosis.
    seed : int
    progress : bool

    Returns
    -------
    Detector

    Raises
    ------
    ValueError
        If training or validation has no cell, or nothing else.
    """
    for name, table in (("train", train), ("val", val)):
        for label in _CLASSES:
            if not (table["label"] == label).any():
                raise ValueError(
                    f"train_detector: {name} has no patch labelled {label!r}. Give it more patients."
                )
    (cells, others), quick = _parted(train), _parted(val)
    quick = (quick[0], _some(quick[1], 400, seed))
    augment = Augment(stain=0.12) if augment is None else augment
    how: dict[str, Any] = {"slides": slides, "augment": augment, "balanced": False, "progress": progress}

    def trained(negatives: pd.DataFrame, n_epochs: int, offset: int) -> PatchClassifier:
        torch.manual_seed(seed + offset)
        shown = _shifted(pd.concat([*[cells] * repeat, negatives]), slides, shift_um, seed + offset)
        network = patch_classifier(encoder, classes=_CLASSES)
        return fit(network, shown, pd.concat(quick), epochs=n_epochs, seed=seed, **how).model

    first = trained(_some(others, n_negative, seed), epochs[0], 0)
    searched = others.assign(score=_probability(first, others, slides))
    hard = searched.sort_values("score", ascending=False).head(n_negative)
    easy = _some(others.drop(hard.index), n_negative // 2, seed + 2)
    second = trained(pd.concat([hard, easy]), epochs[1], 1)
    return Detector(first, second, hard)


def _parted(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return table[table["label"] == "mitosis"], table[table["label"] == "other"]


def _shifted(patches: pd.DataFrame, slides: Any, shift_um: float, seed: int) -> pd.DataFrame:
    """The patches, each moved at random: a candidate is rarely the middle of its cell."""
    source, rng = SlideSource(slides), np.random.default_rng([seed, 31])
    scale = patches["slide_id"].map({i: source[i].mpp for i in patches["slide_id"].unique()})
    moved = patches.reset_index(drop=True)
    for axis in ("x_l0", "y_l0"):
        by = rng.uniform(-shift_um, shift_um, len(moved)) / scale.to_numpy(float)
        moved[axis] += np.rint(by).astype(int)
    return moved


def _some(table: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    return table if len(table) <= n else table.sample(n, random_state=seed)


def _probability(network: PatchClassifier, patches: pd.DataFrame, slides: Any) -> np.ndarray:
    found = predict_patches(network, patches, slides, progress=False)
    return found["p_mitosis"].to_numpy(float)
