"""Detection of rare cells: candidates, a first network, its mistakes, and a second one that learns from them.

Candidates come from a cheap rule that misses little (`counting.haematoxylin_blobs`). A first network learns from the cells
and as many others at random; what it takes for a cell on the training slides, and is none, are the *hard negatives* from
which the second learns [1]_. A candidate's score is the mean of the two: they err in different places.

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
    """Two networks, as `train_detector` made them; a candidate's score is the mean of theirs.

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
            With "both", what the first finds hopeless is not shown to the second and scores half of the first's.
        """
        if stage not in ("first", "second", "both"):
            raise ValueError(f"score: stage is first, second or both, got {stage!r}.")
        if stage != "both":
            return patches.assign(score=_probability(getattr(self, stage), patches, slides))
        score = _probability(self.first, patches, slides) / 2
        looked = score > LEAST / 2  # most candidates need no second look
        if looked.any():
            score[looked] += _probability(self.second, patches[looked], slides) / 2
        return patches.assign(score=score)


def train_detector(
    train: pd.DataFrame,
    val: pd.DataFrame,
    *,
    slides: Any,
    encoder: str = "small",
    epochs: tuple[int, int] = (4, 8),
    n_negative: int = 2000,
    repeat: int = 5,
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
    epochs : (first, second)
    n_negative : int
        Others for each network; of the second half are hard ones.
    repeat : int
        How often each cell is shown an epoch, turned and stained differently.
    augment : Augment, optional
        Strong stain jitter by default.
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
    cells, others = train[train["label"] == "mitosis"], train[train["label"] == "other"]
    quick = val[val["label"] != ""]
    quick = pd.concat(
        [quick[quick["label"] == "mitosis"], _some(quick[quick["label"] == "other"], 400, seed)]
    )
    shown = pd.concat([cells] * repeat)
    how: dict[str, Any] = {"slides": slides, "lr": 3e-3, "seed": seed, "progress": progress}
    how["augment"] = Augment(stain=0.25) if augment is None else augment

    def trained(negatives: pd.DataFrame, n_epochs: int, offset: int) -> PatchClassifier:
        torch.manual_seed(seed + offset)
        table = pd.concat([shown, negatives], ignore_index=True)
        return fit(patch_classifier(encoder, classes=_CLASSES), table, quick, epochs=n_epochs, **how).model

    first = trained(_some(others, n_negative, seed), epochs[0], 0)
    searched = _some(others, 3 * n_negative, seed + 1)
    searched = searched.assign(score=_probability(first, searched, slides))
    hard = searched.sort_values("score", ascending=False).head(n_negative // 2)
    easy = _some(others.drop(hard.index), n_negative - len(hard), seed + 2)
    second = trained(pd.concat([hard, easy]), epochs[1], 1)
    return Detector(first, second, hard)


def _some(table: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    return table if len(table) <= n else table.sample(n, random_state=seed)


def _probability(network: PatchClassifier, patches: pd.DataFrame, slides: Any) -> np.ndarray:
    found = predict_patches(network, patches, slides, progress=False)
    return found["p_mitosis"].to_numpy(float)
