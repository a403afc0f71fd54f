"""Inference: from a model to numbers on patches, maps on slides, and lesions.

A heatmap's pixel is one stride wide; its value is the mean over the patches that cover it, so that overlapping patches
blend. Slides are read batch by batch in a thread while the network works, and finished blocks are written as they come: a
run that was stopped goes on where it was, to the same result.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from pathkit.encoders import Encoder
from pathkit.geometry import Raster
from pathkit.models import PatchClassifier, keep_memory, model_digest
from pathkit.patches import SlideSource, encode_labels
from pathkit.slide import Slide, SlideError
from pathkit.tissue import tissue_fraction, tissue_mask

__all__ = [
    "candidates",
    "extract_features",
    "hard_examples",
    "heatmap",
    "heatmaps",
    "lesions",
    "outputs_of",
    "predict_patches",
    "slide_score",
    "slide_scores",
]

RGB: TypeAlias = NDArray[np.uint8]
#: Grid places (down, across) that are read as one region and go through the network together.
BLOCK = (8, 16)
#: Blocks between two commits of a heatmap.
COMMIT_EVERY = 16


def predict_patches(
    model: PatchClassifier, patches: pd.DataFrame, slides: Any, *, batch_size: int = 64, progress: bool = True
) -> pd.DataFrame:
    """Class probabilities of patches.

    Returns
    -------
    DataFrame
        A copy of `patches` with ``p_<class>`` for each class and ``predicted``. A warning says where the patches have another
        mpp than those that the model was trained on.

    Raises
    ------
    ValueError
        If there is no patch, as of a slide without tissue.
    """
    if not len(patches):
        raise ValueError(
            "predict_patches: no patch to predict. Has the slide tissue? Look at its tissue_mask, or lower min_tissue."
        )
    others = sorted({float(m) for m in patches["mpp"]} - {model.mpp})
    if model.mpp is not None and any(abs(m / model.mpp - 1) > 0.05 for m in others):
        message = (
            f"the model was trained at {model.mpp:g} µm/px, these patches have {', '.join(f'{m:g}' for m in others)}: it sees"
            f" everything at another size. Make the patches with mpp={model.mpp:g}."
        )
        warnings.warn(message, stacklevel=2)
    logits = _over_batches(model, patches, SlideSource(slides), batch_size, "predicting", progress)
    probabilities = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    columns = {f"p_{name}": probabilities[:, i] for i, name in enumerate(model.classes)}
    return patches.assign(**columns, predicted=np.array(model.classes, dtype=object)[probabilities.argmax(1)])


def hard_examples(
    model: PatchClassifier,
    patches: pd.DataFrame,
    n: int,
    *,
    slides: Any,
    label: str = "label",
    progress: bool = True,
) -> pd.DataFrame:
    """The patches that a model is most wrong about, to be learnt from once more (hard-negative mining [1]_).

    Parameters
    ----------
    model : PatchClassifier
        Trained.
    patches : DataFrame
        Labelled patches of training patients, most of which the model has not seen: all of one class for hard negatives.
    n : int
        How many to give back; fewer where there are fewer.
    slides : DataFrame or mapping
    label : str
        Column with the class.

    Returns
    -------
    DataFrame
        Rows of `patches` with ``p_label``, the probability that the model gives their own class; lowest first.

    Raises
    ------
    ValueError
        If n is less than 1 or a label is unknown to the model.

    References
    ----------
    .. [1] Wang et al., "Deep learning for identifying metastatic breast cancer", arXiv:1606.05718 (2016).
    """
    if n < 1:
        raise ValueError(f"hard_examples: n must be at least 1, got {n}.")
    encode_labels(patches, label, model.classes)
    predicted = predict_patches(model, patches, slides, progress=progress)
    columns = [f"p_{name}" for name in model.classes]
    own = patches[label].map(dict(zip(model.classes, range(len(columns)), strict=True))).to_numpy(int)
    p_label = predicted[columns].to_numpy()[np.arange(len(patches)), own]
    return patches.assign(p_label=p_label).nsmallest(n, "p_label")


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


def outputs_of(
    network: nn.Module, pixels: RGB, *, batch_size: int = 64, progress: bool = True
) -> NDArray[np.float32]:
    """What a network says of pixels that are in memory: logits of a `PatchClassifier`, features of an `Encoder`.

    Parameters
    ----------
    pixels : (N, H, W, 3) uint8

    Returns
    -------
    (N, ...) float32
    """
    batches = [pixels[s : s + batch_size] for s in range(0, len(pixels), batch_size)]
    reads: list[tuple[int, Callable[[], RGB]]] = [(len(b), partial(np.asarray, b)) for b in batches]
    return np.concatenate(list(_network_output(network, reads, "network", progress)))


def heatmap(
    slide: Slide,
    model: PatchClassifier,
    *,
    positive: str | None = None,
    mask: Raster | None = None,
    min_tissue: float = 0.1,
    stride_px: int | None = None,
    out: str | os.PathLike[str] | None = None,
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
    blocks = _blocks(_covering(slide, shape, size_px, stride_px, mpp, mask, min_tissue))
    total, count, done = store.begin()
    reads = [(len(b), partial(_read_block, slide, b, size_px, stride_px, mpp)) for b in blocks[done:]]
    outputs = _network_output(model, reads, slide.name, progress)
    for number, (block, logits) in enumerate(zip(blocks[done:], outputs, strict=True), start=done + 1):
        probability = torch.softmax(torch.from_numpy(logits), dim=1).numpy()[:, column]
        for dr, dc in np.ndindex(size_px // stride_px, size_px // stride_px):
            r, c = block["row"].to_numpy() + dr, block["col"].to_numpy() + dc
            kept = (r >= 0) & (c >= 0) & (r < shape[0]) & (c < shape[1])
            np.add.at(total, (r[kept], c[kept]), probability[kept])
            np.add.at(count, (r[kept], c[kept]), 1)
        if number % COMMIT_EVERY == 0:
            store.commit(total, count, number)
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


def candidates(maps: Mapping[str, Raster], **options: Any) -> pd.DataFrame:
    """`lesions` of every heatmap of a cohort, in one table."""
    tables = [lesions(raster, slide_id=slide_id, **options) for slide_id, raster in maps.items()]
    return pd.concat(tables, ignore_index=True)


def slide_scores(slides: pd.DataFrame, maps: Mapping[str, Raster], *, top: int = 1) -> pd.DataFrame:
    """A copy of the slides table with ``score``, the `slide_score` of each slide's heatmap."""
    return slides.assign(score=[slide_score(maps[i], top=top) for i in slides["slide_id"]])


def map_features(maps: Mapping[str, Raster]) -> pd.DataFrame:
    """What a heatmap shows, in a few numbers for each slide, for a classifier of slides [1]_.

    Parameters
    ----------
    maps : mapping
        slide_id to heatmap (probabilities, NaN without tissue).

    Returns
    -------
    DataFrame
        Indexed by slide_id: ``top1``, ``top3``, ``top10`` (mean of the highest pixels); for the thresholds 0.5 and 0.9
        ``share`` (of the tissue), ``places`` (number), ``longest_um`` and ``largest_um2`` (of the places),
        ``mean`` (of the largest place). Zeros where there is nothing.

    References
    ----------
    .. [1] Wang et al., "Deep learning for identifying metastatic breast cancer", arXiv:1606.05718 (2016).
    """
    rows = []
    for slide_id, raster in maps.items():
        row: dict[str, Any] = {"slide_id": slide_id}
        row |= {f"top{n}": slide_score(raster, top=n) for n in (1, 3, 10)}
        n_known = max(1, int(np.isfinite(raster.values).sum()))
        for threshold in (0.5, 0.9):
            places = lesions(raster, threshold=threshold)
            row[f"share_{threshold}"] = float((raster.values >= threshold).sum()) / n_known
            row[f"places_{threshold}"] = len(places)
            row[f"longest_um_{threshold}"] = places["length_um"].max() if len(places) else 0.0
            row[f"largest_um2_{threshold}"] = places["area_um2"].max() if len(places) else 0.0
            largest = places.nlargest(1, "area_um2")["mean_score"]
            row[f"mean_{threshold}"] = float(largest.iloc[0]) if len(places) else 0.0
        rows.append(row)
    return pd.DataFrame(rows).set_index("slide_id")


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


def _blocks(patches: pd.DataFrame) -> list[pd.DataFrame]:
    """Patches in blocks of neighbours, row of blocks after row of blocks."""
    down, across = patches["row"] // BLOCK[0], patches["col"] // BLOCK[1]
    return [block for _, block in patches.groupby([down, across])]


def _over_batches(
    network: nn.Module, patches: pd.DataFrame, source: SlideSource, batch_size: int, what: str, progress: bool
) -> NDArray[np.float32]:
    source.check(patches["slide_id"].unique())
    # Slide by slide and row by row, so that tiles are decoded once; the results go back to the table's order.
    order = np.lexsort((patches["x_l0"], patches["y_l0"], patches["slide_id"].astype(str)))
    batches = [patches.iloc[order[s : s + batch_size]] for s in range(0, len(order), batch_size)]
    reads = [(len(b), partial(source.read, b)) for b in batches]
    output = np.concatenate(list(_network_output(network, reads, what, progress)))
    back = np.empty_like(output)
    back[order] = output
    return back


def _network_output(
    network: nn.Module, reads: Sequence[tuple[int, Callable[[], RGB]]], what: str, progress: bool
) -> Iterator[NDArray[np.float32]]:
    """The output of each batch; the next batch is read while the network works on this one.

    Parameters
    ----------
    reads : sequence of (number of patches, callable that reads them)
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_memory()
    network = network.to(device).eval()
    with (
        ThreadPoolExecutor(1) as reader,
        tqdm(total=sum(n for n, _ in reads), desc=what, unit="patch", disable=not progress) as bar,
    ):
        coming = [reader.submit(read) for _, read in reads[:1]]
        for i, (n, _) in enumerate(reads):
            pixels = coming.pop().result()
            coming += [reader.submit(read) for _, read in reads[i + 1 : i + 2]]
            with torch.inference_mode():
                batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
                output = network(batch).float().cpu().numpy()
            yield output
            bar.update(n)
    network.to("cpu")


def _read_block(slide: Slide, block: pd.DataFrame, size_px: int, stride_px: int, mpp: float) -> RGB:
    """Patches of neighbouring grid places, cut from one region, since each pixel is shared by several of them."""
    rows, cols = block["row"].to_numpy(), block["col"].to_numpy()
    row0, col0 = int(rows.min()), int(cols.min())
    size = (int(cols.max() - col0) * stride_px + size_px, int(rows.max() - row0) * stride_px + size_px)
    step_l0 = stride_px * mpp / slide.mpp
    region = slide.read_region((col0 * step_l0, row0 * step_l0), size, mpp=mpp)
    tops, lefts = (rows - row0) * stride_px, (cols - col0) * stride_px
    return np.stack([region[y : y + size_px, x : x + size_px] for y, x in zip(tops, lefts, strict=True)])


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
        """Sums, counts, and the number of blocks already in them."""
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
