"""Inference: from a model to numbers on patches, maps on slides, and lesions.

A heatmap's pixel is one stride wide; its value is the mean over the patches that cover it, so that overlapping patches
blend. Slides are read batch by batch in a thread while the network works, and finished blocks are written as they come: a
run that was stopped goes on where it was, to the same result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from pathkit.encoders import Encoder
from pathkit.geometry import Raster
from pathkit.models import PatchClassifier, keep_memory, model_digest
from pathkit.patches import SlideSource
from pathkit.slide import Slide, SlideError
from pathkit.tissue import tissue_fraction, tissue_mask

__all__ = ["extract_features", "heatmap", "heatmaps", "lesions", "predict_patches", "slide_score"]

#: Batches between two commits of a heatmap.
COMMIT_EVERY = 32


def predict_patches(
    model: PatchClassifier, patches: pd.DataFrame, slides: Any, *, batch_size: int = 64, progress: bool = True
) -> pd.DataFrame:
    """Class probabilities of patches.

    Returns
    -------
    DataFrame
        A copy of `patches` with ``p_<class>`` for each class and ``predicted``.
    """
    logits = _over_batches(model, patches, SlideSource(slides), batch_size, "predicting", progress)
    probabilities = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    columns = {f"p_{name}": probabilities[:, i] for i, name in enumerate(model.classes)}
    return patches.assign(**columns, predicted=np.array(model.classes, dtype=object)[probabilities.argmax(1)])


def extract_features(
    slides: Any, patches: pd.DataFrame, encoder: Encoder, *, batch_size: int = 64, progress: bool = True
) -> NDArray[np.float32]:
    """Features of patches.

    Parameters
    ----------
    slides : Slide, DataFrame or mapping
        One slide, or the slides of the patches.
    patches : DataFrame
    encoder : Encoder

    Returns
    -------
    (N, D) float32, in the order of `patches`
    """
    source = {i: slides for i in patches["slide_id"].unique()} if isinstance(slides, Slide) else slides
    if not len(patches):
        return np.zeros((0, encoder.dim), np.float32)
    return _over_batches(encoder, patches, SlideSource(source), batch_size, "features", progress)


def heatmap(
    slide: Slide,
    model: PatchClassifier,
    *,
    positive: str | None = None,
    mask: Raster | None = None,
    min_tissue: float = 0.1,
    stride_px: int | None = None,
    out: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Raster:
    """Probability of a class over a slide.

    Parameters
    ----------
    slide : Slide
    model : PatchClassifier
        Trained, so that its mpp and size_px are known.
    positive : str, optional
        The class; the last of two by default.
    mask : Raster, optional
        Tissue; found when not given.
    min_tissue : float
        Patches with less are left out, and are NaN where no other covers them.
    stride_px : int, optional
        Between patches, in their pixels; must divide the patch. Half a patch by default.
    out : path, optional
        ``.npz`` to keep the result in. An unfinished run leaves ``.partial.npz`` beside it and goes on from there.
    batch_size : int

    Returns
    -------
    Raster
        float32, NaN where there is no tissue; its mpp is ``stride_px * model.mpp``.

    Raises
    ------
    SlideError
        If the slide is coarser than the patches that the model was trained on.
    ValueError
        If the model is untrained, the class unknown, the stride does not divide the patch, or `out` holds the map of
        another model or of other settings.
    """
    size_px, mpp, column = _facts(model, positive)
    stride_px = size_px // 2 if stride_px is None else stride_px
    if stride_px < 1 or size_px % stride_px:
        raise ValueError(f"heatmap: stride_px must divide the patch of {size_px} px, got {stride_px}.")
    if mpp < slide.mpp * 0.995:
        raise SlideError(
            f"{slide.name}: the model was trained at {mpp:g} µm/px, the slide's finest level has {slide.mpp:.4g}. Train one"
            " at the slide's resolution."
        )
    cell_um = stride_px * mpp
    shape = tuple(int(np.ceil(n * slide.mpp / cell_um - 1e-6)) for n in slide.dimensions[::-1])
    settings = {
        "model": model_digest(model),
        "slide": slide.name,
        "dimensions": list(slide.dimensions),
        "class": model.classes[column],
        "stride_px": stride_px,
        "mpp": mpp,
        "min_tissue": min_tissue,
    }
    store = _Store(out, settings, shape)
    if store.finished is not None:
        return store.finished
    mask = tissue_mask(slide, mpp=max(8.0, slide.mpp)) if mask is None else mask
    patches = _covering(slide, shape, size_px, stride_px, mpp, mask, min_tissue)
    total, count, done = store.begin()
    rows, cols = (patches[c].to_numpy() for c in ("row", "col"))
    span = range(size_px // stride_px)
    rest = patches.iloc[done:]
    source = SlideSource({str(i): slide for i in patches["slide_id"].unique()})
    batches = _network_output(model, rest, source, batch_size, slide.name, progress)
    for number, (start, logits) in enumerate(batches, start=1):
        probability = torch.softmax(torch.from_numpy(logits), dim=1).numpy()[:, column]
        here = slice(done + start, done + start + len(logits))
        for dr in span:
            for dc in span:
                r, c = rows[here] + dr, cols[here] + dc
                kept = (r >= 0) & (c >= 0) & (r < shape[0]) & (c < shape[1])
                np.add.at(total, (r[kept], c[kept]), probability[kept])
                np.add.at(count, (r[kept], c[kept]), 1)
        if number % COMMIT_EVERY == 0:
            store.commit(total, count, here.stop)
    with np.errstate(invalid="ignore"):
        values = np.where(count > 0, total / count, np.nan).astype(np.float32)
    return store.finish(Raster(values, cell_um, attrs=settings))


def heatmaps(
    slides: pd.DataFrame, model: PatchClassifier, *, out: str | os.PathLike[str] | None = None, **options: Any
) -> dict[str, Raster]:
    """`heatmap` of every slide of a table, by slide_id; with `out` a folder, in which what is done is kept."""
    source = SlideSource(slides)
    folder = None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    maps = {}
    for slide_id in tqdm(
        slides["slide_id"], desc="heatmaps", unit="slide", disable=not options.get("progress", True)
    ):
        path = None if folder is None else folder / f"{slide_id}.npz"
        maps[slide_id] = heatmap(source[slide_id], model, out=path, **{**options, "progress": False})
    return maps


def lesions(
    raster: Raster,
    *,
    threshold: float = 0.5,
    min_area_um2: float = 0.0,
    slide_id: str | None = None,
) -> pd.DataFrame:
    """Lesion candidates: connected places of a heatmap at or above a threshold.

    Parameters
    ----------
    raster : Raster
    threshold : float
    min_area_um2 : float
        Smaller ones are dropped.
    slide_id : str, optional
        Put into the table; the slide named in ``raster.attrs`` by default.

    Returns
    -------
    DataFrame
        slide_id, x_um, y_um (where it is highest), score (the highest value), mean_score, area_um2, length_um (greatest
        extent), highest score first.
    """
    from skimage.measure import label, regionprops

    values = np.nan_to_num(np.asarray(raster.values, float), nan=-np.inf)
    pieces = label(values >= threshold, connectivity=2)
    found = []
    for piece in regionprops(pieces):
        inside = values[piece.coords[:, 0], piece.coords[:, 1]]
        # Of several highest places the one nearest the middle, so that a plateau is hit in its centre.
        highest = piece.coords[inside >= inside.max() - 1e-6]
        place = highest[np.argmin(((highest - piece.coords.mean(0)) ** 2).sum(1))]
        extent = np.ptp(piece.coords, axis=0) + 1
        found.append(
            {
                "x_um": raster.origin_um[0] + (place[1] + 0.5) * raster.mpp,
                "y_um": raster.origin_um[1] + (place[0] + 0.5) * raster.mpp,
                "score": float(inside.max()),
                "mean_score": float(inside.mean()),
                "area_um2": len(piece.coords) * raster.mpp**2,
                "length_um": float(np.hypot(*extent)) * raster.mpp,
            }
        )
    columns = ["x_um", "y_um", "score", "mean_score", "area_um2", "length_um"]
    table = pd.DataFrame(found, columns=columns, dtype=float)
    table.insert(
        0, "slide_id", pd.Series([slide_id or raster.attrs.get("slide", "slide")] * len(table), dtype="str")
    )
    table = table[table["area_um2"] >= min_area_um2]
    return table.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)


def slide_score(raster: Raster, *, top: int = 1) -> float:
    """The mean of the `top` highest pixels of a heatmap; 0 where there is no tissue.

    Raises
    ------
    ValueError
        If `top` is less than 1.
    """
    if top < 1:
        raise ValueError(f"slide_score: top must be at least 1, got {top}.")
    known = raster.values[np.isfinite(raster.values)]
    return float(np.sort(known)[-top:].mean()) if len(known) else 0.0


# Steps -----------------------------------------------------------------------------------------------------------


def _facts(model: PatchClassifier, positive: str | None) -> tuple[int, float, int]:
    if model.mpp is None or model.size_px is None:
        raise ValueError(
            "heatmap: the model does not know its mpp and size_px. Train it with training.fit, or set both."
        )
    if positive is None:
        if len(model.classes) != 2:
            raise ValueError(
                f"heatmap: of which class? Pass positive=..., one of {', '.join(model.classes)}."
            )
        positive = model.classes[1]
    if positive not in model.classes:
        raise ValueError(f"heatmap: no class {positive!r}; the model knows {', '.join(model.classes)}.")
    return model.size_px, model.mpp, model.classes.index(positive)


def _covering(
    slide: Slide,
    shape: tuple[int, ...],
    size_px: int,
    stride_px: int,
    mpp: float,
    mask: Raster,
    min_tissue: float,
) -> pd.DataFrame:
    """Patches on the heatmap's own grid, from one that covers its first pixel last to one that covers its last first."""
    reach = size_px // stride_px - 1
    row, col = (a.ravel() for a in np.mgrid[-reach : shape[0], -reach : shape[1]])
    step_l0 = stride_px * mpp / slide.mpp
    table = pd.DataFrame(
        {
            "slide_id": slide.name,
            "x_l0": np.rint(col * step_l0).astype(np.int64),
            "y_l0": np.rint(row * step_l0).astype(np.int64),
            "size_px": size_px,
            "mpp": mpp,
            "row": row,
            "col": col,
        }
    )
    share = tissue_fraction(mask, table, slide_mpp=slide.mpp)
    return table[share >= max(min_tissue, 1e-9)].reset_index(drop=True)


def _over_batches(
    network: nn.Module, patches: pd.DataFrame, source: SlideSource, batch_size: int, what: str, progress: bool
) -> NDArray[np.float32]:
    source.check(patches["slide_id"].unique())
    # Slide by slide and row by row, so that tiles are decoded once; the results go back to the table's order.
    order = np.lexsort((patches["x_l0"], patches["y_l0"], patches["slide_id"].astype(str)))
    parts = [o for _, o in _network_output(network, patches.iloc[order], source, batch_size, what, progress)]
    output = np.concatenate(parts)
    back = np.empty_like(output)
    back[order] = output
    return back


def _network_output(
    network: nn.Module, patches: pd.DataFrame, source: SlideSource, batch_size: int, what: str, progress: bool
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, output) of each batch; the next batch is read while the network works on this one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_memory()
    network = network.to(device).eval()
    starts = range(0, len(patches), batch_size)
    with (
        ThreadPoolExecutor(1) as reader,
        tqdm(total=len(patches), desc=what, unit="patch", disable=not progress) as bar,
        torch.inference_mode(),
    ):
        coming = [reader.submit(source.read, patches.iloc[s : s + batch_size]) for s in starts[:1]]
        for i, start in enumerate(starts):
            pixels = coming.pop().result()
            if i + 1 < len(starts):
                following = starts[i + 1]
                coming.append(reader.submit(source.read, patches.iloc[following : following + batch_size]))
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
            yield start, network(batch).float().cpu().numpy()
            bar.update(len(pixels))
    network.to("cpu")


class _Store:
    """Where a heatmap is kept while it grows and when it is whole."""

    def __init__(self, out: str | os.PathLike[str] | None, settings: dict[str, Any], shape: tuple[int, ...]):
        self.settings, self.shape = settings, shape
        self.path = None if out is None else Path(out)
        self.finished: Raster | None = None
        if self.path is None:
            return
        self.partial = self.path.with_suffix(".partial.npz")
        if self.path.exists():
            self.finished = Raster.load(self.path)
            self._same(self.finished.attrs, self.path)

    def begin(self) -> tuple[NDArray[np.float64], NDArray[np.int32], int]:
        """Sums, counts, and the number of patches already in them."""
        if self.path is not None and self.partial.exists():
            with np.load(self.partial, allow_pickle=False) as stored:
                self._same(json.loads(str(stored["settings"])), self.partial)
                return stored["total"], stored["count"], int(stored["done"])
        return np.zeros(self.shape), np.zeros(self.shape, np.int32), 0

    def commit(self, total: NDArray[np.float64], count: NDArray[np.int32], done: int) -> None:
        if self.path is None:
            return
        writing = self.path.with_suffix(".writing.npz")
        np.savez(writing, total=total, count=count, done=done, settings=np.array(json.dumps(self.settings)))
        writing.replace(self.partial)

    def finish(self, raster: Raster) -> Raster:
        if self.path is not None:
            raster.save(self.path)
            self.partial.unlink(missing_ok=True)
        return raster

    def _same(self, before: dict[str, Any], path: Path) -> None:
        changed = [k for k, v in self.settings.items() if before.get(k) != v]
        if changed:
            k = changed[0]
            raise ValueError(
                f"{path.name}: holds a heatmap with {k} = {before.get(k)}, asked for {k} = {self.settings[k]}. Remove it, or"
                " give another out=..."
            )
