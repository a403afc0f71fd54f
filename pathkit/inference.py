"""Inference: from a model to numbers on patches, maps on slides, and lesions.

A heatmap's pixel is one stride wide; its value is the mean over the patches that cover it, so that overlapping patches
blend. Slides are read batch by batch in threads while the network works (`engine` says how it is run), and finished blocks
are written as they come: a run that was stopped goes on where it was, to the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn
from tqdm.auto import tqdm

from pathkit.encoders import Encoder
from pathkit.engine import N_COMPARED, Engine, EngineError, open_engine
from pathkit.files import check_same, write_text
from pathkit.geometry import Raster
from pathkit.models import PatchClassifier, model_digest
from pathkit.patches import SlideSource, encode_labels
from pathkit.slide import Slide, SlideError
from pathkit.stain import METHODS, ReinhardFit, ReinhardNormaliser, StainFit, StainNormaliser
from pathkit.stain import fit as fit_stain
from pathkit.tissue import tissue_mask

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
Normaliser: TypeAlias = StainNormaliser | ReinhardNormaliser
Stain: TypeAlias = StainFit | ReinhardFit | Normaliser
#: Grid places (down, across) that are read as one region and go through the network together.
BLOCK = (8, 16)
BLOCK_BYTES = 32_000_000
#: Patches read together where they lie in a table; on a GPU.
READ_TOGETHER, GPU_BATCH = 64, 256
#: Pixels of a place that are this near to its highest belong to its summit.
SUMMIT = 0.02
#: Blocks between two commits of a heatmap.
COMMIT_EVERY = 16


def predict_patches(
    model: PatchClassifier,
    patches: pd.DataFrame,
    slides: Any,
    *,
    stain: Stain | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Class probabilities of patches.

    Parameters
    ----------
    model : PatchClassifier
    patches : DataFrame
    slides : DataFrame or mapping
    stain, batch_size, engine, workers
        As `heatmap`.

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
    job = TableJob(
        model, patches, SlideSource(slides), len(model.classes), stain=stain, together=batch_size or 0
    )
    logits = job.run(batch_size=batch_size, engine=engine, workers=workers, progress=progress)
    probabilities = softmax(logits, axis=1)
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
    own = encode_labels(patches, label, model.classes)[1]
    predicted = predict_patches(model, patches, slides, progress=progress)
    columns = [f"p_{name}" for name in model.classes]
    p_label = predicted[columns].to_numpy()[np.arange(len(patches)), own]
    return patches.assign(p_label=p_label).nsmallest(n, "p_label")


def extract_features(
    slides: Any,
    patches: pd.DataFrame,
    encoder: Encoder,
    *,
    stain: Stain | None = None,
    out: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    workers: int | None = None,
    progress: bool | Callable[[int], Any] = True,
) -> NDArray[np.float32]:
    """Features of patches.

    Parameters
    ----------
    slides : Slide, DataFrame or mapping
        One slide, or the slides of the patches.
    patches : DataFrame
    encoder : Encoder
    stain, batch_size, engine, workers, progress
        As `heatmap`.
    out : path, optional
        ``.npy`` to write the features to as they come, where they would fill the memory; what they were made from stands in
        a ``.json`` beside it. An unfinished run leaves ``.partial.npy`` and goes on from there.

    Returns
    -------
    (N, D) float32, in the order of `patches`
        With `out`, mapped from the file, to be read only.

    Raises
    ------
    ValueError
        If `out` holds the features of other patches, of another encoder or of another stain.
    """
    job = features_job(slides, patches, encoder, stain=stain, out=out, together=batch_size or 0)
    return job.run(batch_size=batch_size, engine=engine, workers=workers, progress=progress)


def features_job(slides: Any, patches: pd.DataFrame, encoder: Encoder, **options: Any) -> TableJob:
    """What is to be done for `extract_features`; `options` as `TableJob`."""
    source = {i: slides for i in patches["slide_id"].unique()} if isinstance(slides, Slide) else slides
    return TableJob(encoder, patches, SlideSource(source), encoder.dim, **options)


def outputs_of(
    network: nn.Module,
    pixels: RGB,
    *,
    batch_size: int | None = None,
    engine: str = "auto",
    progress: bool = True,
) -> NDArray[np.float32]:
    """What a network says of pixels that are in memory: logits of a `PatchClassifier`, features of an `Encoder`.

    Parameters
    ----------
    pixels : (N, H, W, 3) uint8
    batch_size, engine
        As `heatmap`.

    Returns
    -------
    (N, ...) float32
    """
    used = open_engine(
        network, pixels[:N_COMPARED], engine=engine, n_patches=len(pixels), batch_size=batch_size
    )
    step = max(used.batch_size, READ_TOGETHER)
    batches = [pixels[s : s + step] for s in range(0, len(pixels), step)]
    reads = [_Read(len(b), partial(np.asarray, b)) for b in batches]
    return np.concatenate(list(_network_output(used, reads, "network", progress, 0)))


def heatmap(
    slide: Slide,
    model: PatchClassifier,
    *,
    positive: str | None = None,
    mask: Raster | None = None,
    min_tissue: float = 0.1,
    stride_px: int | None = None,
    refine: float | None = None,
    stain: Stain | None = None,
    out: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    workers: int | None = None,
    progress: bool | Callable[[int], Any] = True,
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
    refine : float, optional
        Coarse to fine: patches are laid side by side first, and with `stride_px` only over those of at least this probability
        (and where side by side would leave tissue out). Elsewhere a pixel is the value of one patch, or, next to one looked at
        closely, of those there are. With a low probability, such as 0.05, a slide without lesions costs about a quarter; a
        lesion that none of the patches side by side shows is not found.
    stain : StainFit, ReinhardFit, or normaliser, optional
        What the slide is to look like, such as ``stain.fit(training_slide)``: the slide is fitted once by the same method
        and brought there before the network sees it. A normaliser (``fit.to(target)``) is applied as it is.
    out : path, optional
        ``.npz`` to keep the result in. An unfinished run leaves ``.partial.npz`` beside it and goes on from there.
    batch_size : int, optional
        Of the network; measured when not given and worth it.
    engine : {"auto", "openvino", "torch"}
        What runs the network, see `engine.open_engine`; "torch" on a CPU is the plain way, to the last bit.
    workers : int, optional
        Threads that read ahead of the network; 0 reads in turn with it. By the number of cores when not given.
    progress : bool or callable
        A bar, or what is to be called with the number of patches done since the last call.

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
    job = HeatmapJob(
        slide,
        model,
        positive=positive,
        mask=mask,
        min_tissue=min_tissue,
        stride_px=stride_px,
        refine=refine,
        stain=stain,
        out=out,
    )
    return job.run(batch_size=batch_size, engine=engine, workers=workers, progress=progress)


def heatmaps(
    slides: pd.DataFrame,
    model: PatchClassifier,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, Raster]:
    """`heatmap` of every slide of a table, by slide_id; with `out` a folder, in which what is done is kept."""
    jobs = heatmap_jobs(slides, model, out=out, progress=progress, **_taken(options, HeatmapJob))
    total = sum(job.n_left for job in jobs.values())
    with Progress(total, "heatmaps", progress) as tick:
        return {i: job.run(n_patches=total, progress=tick, **options) for i, job in jobs.items()}


def heatmap_jobs(
    slides: pd.DataFrame,
    model: PatchClassifier,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, HeatmapJob]:
    """What is to be done for `heatmaps`, by slide_id; `options` as `HeatmapJob`."""
    source = SlideSource(slides)
    folder = None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with Progress(len(slides), "finding tissue", progress, unit="slide") as tick:
        jobs = {}
        for slide_id in slides["slide_id"]:
            path = None if folder is None else folder / f"{slide_id}.npz"
            jobs[slide_id] = HeatmapJob(source[slide_id], model, out=path, **options)
            tick(1)
    return jobs


class _Job:
    """Blocks of patches that are to go through a network, in an order; the store knows how many of them have."""

    network: nn.Module
    n_patches: int
    _blocks: list[NDArray[Any]]
    _store: Any  # a `_Store` or `_Rows`

    @property
    def left(self) -> list[NDArray[Any]]:
        """Blocks that are still to do: of places (row, col) of a map, of row numbers of a table."""
        return self._blocks[self._store.done :]

    @property
    def n_left(self) -> int:
        """Patches that are still to do."""
        return sum(map(len, self.left))

    def read(self, block: NDArray[Any]) -> RGB:
        """Patches of a block as the network sees them."""
        raise NotImplementedError

    def open_engine(
        self, sample: RGB, n_patches: int, batch_size: int | None = None, engine: str = "auto"
    ) -> Engine:
        """As asked; the one that began, with its batches, where a part is done and nothing was asked."""
        before = self._store.facts
        if self._store.done and engine == "auto" and "engine" in before:
            with contextlib.suppress(
                EngineError
            ):  # it is here no more: the rest differs within the tolerance
                size = batch_size or before["batch_size"]
                return open_engine(self.network, sample, engine=before["engine"], batch_size=size)
        return open_engine(self.network, sample, engine=engine, n_patches=n_patches, batch_size=batch_size)

    def _engine_for(self, n_patches: int | None, batch_size: int | None, engine: str) -> Engine:
        """The engine for what is left; the store keeps which one it is."""
        sample = self.read(self.left[0][:N_COMPARED])
        used = self.open_engine(sample, n_patches or self.n_patches, batch_size, engine)
        self._store.facts |= {"engine": used.name, "batch_size": used.batch_size}
        return used


class HeatmapJob(_Job):
    """A heatmap to be made: which patches, what of it is done; parameters as `heatmap`.

    Attributes
    ----------
    n_patches : int
        In all, at most where there is `refine`; 0 where the map is there.
    """

    _store: _Store

    def __init__(
        self,
        slide: Slide,
        model: PatchClassifier,
        *,
        positive: str | None = None,
        mask: Raster | None = None,
        min_tissue: float = 0.1,
        stride_px: int | None = None,
        refine: float | None = None,
        stain: Stain | None = None,
        out: str | os.PathLike[str] | None = None,
    ):
        size_px, mpp, self._column = _facts(model, positive)
        stride_px = size_px // 2 if stride_px is None else stride_px
        if stride_px < 1 or size_px % stride_px:
            raise ValueError(f"heatmap: stride_px must divide the patch of {size_px} px, got {stride_px}.")
        if mpp < slide.mpp * 0.995:
            raise SlideError(
                f"{slide.name}: the model was trained at {mpp:g} µm/px, the slide's finest level has {slide.mpp:.4g}. Train"
                " one at the slide's resolution."
            )
        self.slide, self.network, self.refine = slide, model, refine
        self.size_px, self.stride_px, self.mpp = size_px, stride_px, mpp
        self.cell_um = stride_px * mpp
        self.shape = tuple(int(np.ceil(n * slide.mpp / self.cell_um - 1e-6)) for n in slide.dimensions[::-1])
        settings = {
            "model": model_digest(model),
            "slide": slide.name,
            "dimensions": list(slide.dimensions),
            "class": model.classes[self._column],
            "stride_px": stride_px,
            "mpp": mpp,
            "mask": "tissue_mask" if mask is None else _raster_digest(mask),
            "min_tissue": min_tissue,
            "refine": refine,
            "stain": _stain_digest(stain),
        }
        self._block = _block_shape(size_px)
        self._store = _Store(out, settings, self.shape, {"block": list(self._block)})
        self.n_patches = 0
        self._blocks: list[NDArray[np.int32]] = []
        #: Of the first blocks; after these it is decided which patches of the others are worth it.
        self._n_coarse = 0
        self._normalise: Normaliser | None = None
        if self._store.finished is None:
            mask = tissue_mask(slide, mpp=max(8.0, slide.mpp)) if mask is None else mask
            every = self._covering(mask, min_tissue)
            first, later = (every, every[:0]) if refine is None else self._coarse_and_rest(every)
            self._blocks = self._in_blocks(first, 1 if refine is None else size_px // stride_px)
            self._n_coarse = len(self._blocks)
            self._blocks += self._in_blocks(later, 1)
            self._store.begin()
            self.n_patches = sum(map(len, self._blocks))
            if self.left:
                self._normalise = _normaliser(slide, stain, mask)

    @property
    def finished(self) -> bool:
        """Whether the map is there."""
        return self._store.finished is not None

    @property
    def block_bytes(self) -> int:
        """Pixels of the patches of one block."""
        return int(np.prod(self._block)) * self.size_px**2 * 3

    @property
    def result_bytes(self) -> int:
        """Of the sums that are held in memory."""
        return int(np.prod(self.shape)) * 24

    def by_slide(self) -> list[tuple[Slide, int, int, float]]:
        """The slide, its patches, those that are still to do, and the area of the slide that these cover, in µm²."""
        return [(self.slide, self.n_patches, self.n_left, self.n_left * self.cell_um**2)]

    def run(
        self,
        *,
        n_patches: int | None = None,
        batch_size: int | None = None,
        engine: str = "auto",
        workers: int | None = None,
        progress: bool | Callable[[int], Any] = True,
    ) -> Raster:
        """Make the heatmap, or what is left of it; `n_patches` is the size of the whole job that this one belongs to."""
        store = self._store
        if store.finished is not None:
            return store.finished
        todo = self.left
        if todo:
            used = self._engine_for(n_patches, batch_size, engine)
            n_coarse = max(0, self._n_coarse - store.done)
            with Progress(self.n_left, self.slide.name, progress) as tick:
                self._put_through(used, todo[:n_coarse], workers, tick)
                if self.refine is not None and todo[n_coarse:]:
                    if store.worth is None:
                        store.worth = store.mean() >= self.refine
                    self._put_through(used, todo[n_coarse:], workers, tick)
        return store.finish(Raster(store.mean(), self.cell_um, attrs=store.settings))

    def _put_through(
        self, used: Engine, todo: list[NDArray[np.int32]], workers: int | None, tick: Callable[[int], Any]
    ) -> None:
        """Blocks through the network and onto the map, patch by patch where it is known which are worth it."""
        store = self._store
        chosen = todo if store.worth is None else [self._worth_it(block) for block in todo]
        reads = [_Read(len(b), partial(self.read, b)) for b in chosen if len(b)]
        with contextlib.closing(_network_output(used, reads, self.slide.name, tick, workers)) as outputs:
            for block, some in zip(todo, chosen, strict=True):
                if len(some):
                    store.add(self._cells(some), softmax(next(outputs), axis=1)[:, self._column])
                else:
                    store.add([], np.zeros(0, np.float32))
                tick(len(block) - len(some))
                if store.done % COMMIT_EVERY == 0:
                    store.commit()
            next(outputs, None)  # it counts a batch when it is asked for the next

    def _worth_it(self, block: NDArray[np.int32]) -> NDArray[np.int32]:
        """Places of a block that cover a pixel that is worth it."""
        chosen = np.zeros(len(block), bool)
        for which, places in self._cells(block):
            chosen[which] |= cast(NDArray[np.bool_], self._store.worth)[places[:, 0], places[:, 1]]
        return block[chosen]

    def read(self, block: NDArray[np.int32]) -> RGB:
        """Patches of neighbouring grid places, cut from one region, since each pixel is shared by several of them."""
        (row0, col0), size = block.min(0), self.size_px
        shape = (block.max(0) - (row0, col0)) * self.stride_px + size
        step_l0 = self.cell_um / self.slide.mpp
        region = self.slide.read_region(
            (col0 * step_l0, row0 * step_l0), (int(shape[1]), int(shape[0])), mpp=self.mpp
        )
        if self._normalise is not None:  # before the patches are cut, since they overlap
            region = self._normalise(region, out=region)
        corners = (block - (row0, col0)) * self.stride_px
        return np.stack([region[y : y + size, x : x + size] for y, x in corners])

    def _covering(self, mask: Raster, min_tissue: float) -> NDArray[np.int32]:
        """Places (row, col) of patches with tissue, (N, 2), row after row.

        On the heatmap's own grid, from a patch that covers its first pixel last to one that covers its last first.
        """
        reach = self.size_px // self.stride_px - 1
        side_um = self.size_px * self.mpp
        down = self._block[0]
        means, found = mask.box_means(), [np.zeros((0, 2), np.int32)]
        for top in range(-reach, self.shape[0], down):
            grid = np.mgrid[top : min(top + down, self.shape[0]), -reach : self.shape[1]]
            places = grid.reshape(2, -1).T.astype(np.int32)
            x_um, y_um = (
                np.rint(places[:, i] * self.cell_um / self.slide.mpp) * self.slide.mpp for i in (1, 0)
            )
            sides = np.full(len(places), side_um)
            share = np.clip(means(np.column_stack([x_um, y_um, sides, sides]), outside=0), 0, 1)
            found.append(places[share >= max(min_tissue, 1e-9)])
        return np.concatenate(found)

    def _coarse_and_rest(self, places: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Patches side by side and those that these do not cover wholly; and the rest."""
        side = self.size_px // self.stride_px
        lattice = (places % side == 0).all(axis=1)
        kept = np.zeros([-(-n // side) for n in self.shape], bool)
        kept[tuple(places[lattice].T // side)] = True
        ends = np.array(kept.shape) - 1
        low, high = np.clip(places // side, 0, ends), np.clip((places + side - 1) // side, 0, ends)
        covered = np.ones(len(places), bool)
        for row, col in itertools.product((low[:, 0], high[:, 0]), (low[:, 1], high[:, 1])):
            covered &= kept[row, col]
        first = lattice | ~covered
        return places[first], places[~first]

    def _in_blocks(self, places: NDArray[np.int32], spacing: int) -> list[NDArray[np.int32]]:
        """Places in blocks of neighbours, row of blocks after row of blocks; most lie `spacing` apart."""
        if not len(places):
            return []
        down, across = self._block
        row, col = (places // (np.array(self._block) * spacing)).T
        order = np.lexsort((places[:, 1], places[:, 0], col, row))
        places, row, col = places[order], row[order], col[order]
        edges = np.flatnonzero((np.diff(row) != 0) | (np.diff(col) != 0)) + 1
        most = down * across
        return [b[i : i + most] for b in np.split(places, edges) for i in range(0, len(b), most)]

    def _cells(self, block: NDArray[np.int32]) -> list[tuple[Any, NDArray[np.int32]]]:
        """For each of the places that a patch covers: which patches have it on the map, and the places on the map."""
        side = self.size_px // self.stride_px
        moved = [block + np.array(d, np.int32) for d in np.ndindex(side, side)]
        inside = [np.all((m >= 0) & (m < self.shape), axis=1) for m in moved]
        return [(i, m[i]) for i, m in zip(inside, moved, strict=True)]


class TableJob(_Job):
    """A network's output for each row of a patch table, to be made.

    Parameters
    ----------
    network : Module
        Gives `dim` numbers a patch.
    patches : DataFrame
    source : SlideSource
    dim : int
    stain, out
        As `extract_features`.
    together : int
        Read at least so many patches at once, for engines that take more.

    Attributes
    ----------
    n_patches : int
    """

    _store: _Rows

    def __init__(
        self,
        network: nn.Module,
        patches: pd.DataFrame,
        source: SlideSource,
        dim: int,
        *,
        stain: Stain | None = None,
        out: str | os.PathLike[str] | None = None,
        together: int = 0,
    ):
        source.check(patches["slide_id"].unique())
        self.network, self.patches, self.source, self._stain = network, patches, source, stain
        self._normalisers: dict[str, Normaliser] = {}
        self.n_patches, self.size_px, self.mpp = len(patches), 0, float("nan")
        if len(patches):
            self.size_px, self.mpp = int(patches["size_px"].iloc[0]), float(patches["mpp"].iloc[0])
        # Slide by slide and row by row, so that tiles are decoded once; the results go to the table's places.
        order = np.lexsort((patches["x_l0"], patches["y_l0"], patches["slide_id"].astype(str)))
        step = max(together, GPU_BATCH if torch.cuda.is_available() else READ_TOGETHER)
        step = max(1, together, min(step, 2 * BLOCK_BYTES // (3 * max(1, self.size_px) ** 2)))
        self._blocks = [order[s : s + step] for s in range(0, len(order), step)]
        settings = {
            "network": f"{getattr(network, 'name', type(network).__name__)}, {model_digest(network)}",
            "patches": _table_digest(patches),
            "stain": _stain_digest(stain),
        }
        self._store = _Rows(out, settings, (len(patches), dim), {"block": step})

    @property
    def finished(self) -> bool:
        """Whether all is done."""
        return not self.left

    @property
    def block_bytes(self) -> int:
        """Pixels of the patches of one block."""
        return max(map(len, self._blocks), default=0) * self.size_px**2 * 3

    @property
    def result_bytes(self) -> int:
        """Of the numbers that are held in memory."""
        return 0 if self._store.path is not None else int(np.prod(self._store.values.shape)) * 4

    def by_slide(self) -> list[tuple[Slide, int, int, float]]:
        """As `HeatmapJob.by_slide`, of each slide."""
        ids = self.patches["slide_id"].astype(str).to_numpy()
        left = pd.Series(ids[np.concatenate([*self.left, np.zeros(0, np.intp)])]).value_counts()
        patch_um2 = (self.size_px * self.mpp) ** 2
        return [
            (self.source[i], n, int(left.get(i, 0)), float(left.get(i, 0)) * patch_um2)
            for i, n in pd.Series(ids).value_counts(sort=False).items()
        ]

    def run(
        self,
        *,
        n_patches: int | None = None,
        batch_size: int | None = None,
        engine: str = "auto",
        workers: int | None = None,
        progress: bool | Callable[[int], Any] = True,
    ) -> NDArray[np.float32]:
        """All rows, or what is left of them, in the order of the table; `n_patches` as `HeatmapJob.run`."""
        store, todo = self._store, self.left
        if todo:
            used = self._engine_for(n_patches, batch_size, engine)
            reads = [_Read(len(b), partial(self._pixels, b), partial(self._recolour, b)) for b in todo]
            outputs = _network_output(used, reads, "patches", progress, workers)
            for block, output in zip(todo, outputs, strict=True):
                store.add(block, output)
                if store.done % COMMIT_EVERY == 0:
                    store.commit()
        return store.finish()

    def read(self, block: NDArray[np.intp]) -> RGB:
        """Patches of some rows as the network sees them."""
        return cast(RGB, self._recolour(block, self._pixels(block)))

    def _pixels(self, block: NDArray[np.intp]) -> RGB:
        return self.source.read(self.patches.iloc[block])

    def _recolour(self, block: NDArray[np.intp], pixels: Any) -> Any:
        """Pixels, or a tensor of them on its device, in the colours asked for, slide by slide."""
        if self._stain is None:
            return pixels
        ids = self.patches["slide_id"].iloc[block].astype(str).to_numpy()
        edges = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1), len(ids)]
        for start, end in itertools.pairwise(edges):
            pixels[start:end] = self._normaliser(ids[start])(pixels[start:end])
        return pixels

    def _normaliser(self, slide_id: str) -> Normaliser:
        if slide_id not in self._normalisers:
            self._normalisers[slide_id] = cast(Normaliser, _normaliser(self.source[slide_id], self._stain))
        return self._normalisers[slide_id]


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
        slide_id, x_um, y_um (where it is highest; of pixels within 0.02 of that, the one nearest the middle), score (the
        highest value), mean_score, area_um2, length_um (greatest extent), highest score first.
    """
    from skimage.measure import label, regionprops

    values = np.nan_to_num(np.asarray(raster.values, float), nan=-np.inf)
    pieces = label(values >= threshold, connectivity=2)
    found = []
    for piece in regionprops(pieces):
        inside = values[piece.coords[:, 0], piece.coords[:, 1]]
        # Of the highest places the one nearest the middle: which pixel of a plateau is highest by a hair says nothing.
        highest = piece.coords[inside >= inside.max() - SUMMIT]
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


def _block_shape(size_px: int) -> tuple[int, int]:
    """`BLOCK`, halved until the patches of a block, of which a few are held at once, stay within `BLOCK_BYTES`."""
    down, across = BLOCK
    while down * across > 1 and down * across * size_px**2 * 3 > BLOCK_BYTES:
        down, across = (down, -(-across // 2)) if across >= down else (-(-down // 2), across)
    return down, across


def _raster_digest(raster: Raster) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(raster.values).tobytes())
    digest.update(repr((raster.values.shape, raster.mpp, tuple(raster.origin_um))).encode())
    return digest.hexdigest()[:16]


def _normaliser(slide: Slide, stain: Stain | None, mask: Raster | None = None) -> Normaliser | None:
    """What brings a slide to the colours asked for; the slide is fitted by the method of the target."""
    if not isinstance(stain, (StainFit, ReinhardFit)):
        return stain
    method = stain.method if stain.method in METHODS else "macenko"
    try:
        found = fit_stain(slide, method=method, mask=mask)
    except ValueError as error:
        raise ValueError(
            f"{slide.name}: its stain cannot be fitted: {error} Leave the slide out, or pass a normaliser as stain=..."
        ) from error
    return cast(Normaliser, found.to(stain))


def _stain_digest(stain: Stain | None) -> str | None:
    if stain is None:
        return None
    facts = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in sorted(vars(stain).items())}
    return hashlib.sha256(f"{type(stain).__name__} {facts}".encode()).hexdigest()[:16]


def _table_digest(patches: pd.DataFrame) -> str:
    rows = patches[["slide_id", "x_l0", "y_l0", "size_px", "mpp"]].astype({"slide_id": str})
    hashes = pd.util.hash_pandas_object(rows, index=False).to_numpy()
    return hashlib.sha256(hashes.tobytes()).hexdigest()[:16]


def _taken(options: dict[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Take out of `options` those that a function has a parameter for."""
    return {k: options.pop(k) for k in list(options) if k in inspect.signature(function).parameters}


@dataclass
class _Read:
    """Some patches to come: how many, what reads them, and what changes their colours, before or on the device."""

    n: int
    pixels: Callable[[], RGB]
    recolour: Callable[[Any], Any] | None = None


def _network_output(
    engine: Engine,
    reads: Sequence[_Read],
    what: str,
    progress: bool | Callable[[int], Any],
    workers: int | None,
) -> Generator[NDArray[np.float32]]:
    """The output of each batch; the next ones are read while the network works on this one."""
    workers = readers() if workers is None else workers
    pool = ThreadPoolExecutor(workers) if workers else None

    def ready(read: _Read) -> Callable[[], Any]:
        def work() -> Any:
            return engine.prepare(read.pixels(), read.recolour)

        return work if pool is None else pool.submit(work).result

    coming: deque[Callable[[], Any]] = deque()
    going: deque[Callable[[], NDArray[np.float32]]] = deque()
    left = iter(reads)
    try:
        with Progress(sum(read.n for read in reads), what, progress) as tick:
            coming.extend(ready(read) for read in itertools.islice(left, max(1, workers)))
            for done in reads:
                prepared = coming.popleft()()
                coming.extend(ready(read) for read in itertools.islice(left, 1))
                going.append(engine.start(prepared))
                if len(going) > engine.queues:  # a GPU works on this batch while the one before is fetched
                    yield going.popleft()()
                tick(done.n)
            for output in going:
                yield output()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def readers() -> int:
    """Threads that read: on two cores one, since the network wants both; where there are many, half of them."""
    return min(8, max(1, (os.cpu_count() or 2) // 2))


class Progress:
    """A bar, a callable, or nothing; used as a context that gives the function to call with what was done."""

    def __init__(self, total: int, what: str, progress: bool | Callable[[int], Any], *, unit: str = "patch"):
        self._bar = (
            None if callable(progress) else tqdm(total=total, desc=what, unit=unit, disable=not progress)
        )
        self._call = progress if callable(progress) else cast(Any, self._bar).update

    def __enter__(self) -> Callable[[int], Any]:
        return self._call

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


class _Store:
    """Where a heatmap is kept while it grows and when it is whole.

    A commit holds the sums, the number of blocks in them, and the `facts` (engine, batch size, shape of a block) with which
    the rest must be made to come to the same bytes.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        shape: tuple[int, ...],
        facts: dict[str, Any],
    ):
        self.settings, self.facts = settings, facts
        self.total, self.count, self.done = np.zeros(shape), np.zeros(shape, np.int32), 0
        #: Pixels that are looked at more closely; None until that is known.
        self.worth: NDArray[np.bool_] | None = None
        self.path = None if out is None else Path(out)
        self.finished: Raster | None = None
        if self.path is None:
            return
        self.partial, self.writing = (self.path.with_suffix(s) for s in (".partial.npz", ".writing.npz"))
        if self.path.exists():
            self.finished = Raster.load(self.path)
            check_same("a heatmap", self.path, self.finished.attrs, self.settings)
            self.tidy()

    def begin(self) -> None:
        """Take over what an earlier run has done."""
        if self.path is not None and self.partial.exists():
            with np.load(self.partial, allow_pickle=False) as stored:
                check_same("a heatmap", self.partial, json.loads(str(stored["settings"])), self.settings)
                facts = json.loads(str(stored["facts"]))
                if facts["block"] == self.facts["block"]:
                    self.total, self.count = stored["total"], stored["count"]
                    self.done, self.facts = int(stored["done"]), facts
                    self.worth = stored["worth"] if stored["worth"].size else None

    def mean(self) -> NDArray[np.float32]:
        """What is there so far, NaN where nothing is."""
        with np.errstate(invalid="ignore"):
            return np.where(self.count > 0, self.total / self.count, np.nan).astype(np.float32)

    def add(self, cells: list[tuple[Any, NDArray[np.int32]]], values: NDArray[np.float32]) -> None:
        for which, places in cells:
            np.add.at(self.total, (places[:, 0], places[:, 1]), values[which])
            np.add.at(self.count, (places[:, 0], places[:, 1]), 1)
        self.done += 1

    def commit(self) -> None:
        if self.path is None:
            return
        settings, facts = (np.array(json.dumps(v)) for v in (self.settings, self.facts))
        np.savez(
            self.writing,
            total=self.total,
            count=self.count,
            worth=np.zeros(0, bool) if self.worth is None else self.worth,
            done=self.done,
            settings=settings,
            facts=facts,
        )
        self.writing.replace(self.partial)

    def finish(self, raster: Raster) -> Raster:
        self.finished = raster
        if self.path is not None:
            raster.save(self.path)
            self.tidy()
        return raster

    def tidy(self) -> None:
        """Remove what a run that was killed has left."""
        for path in (self.partial, self.writing):
            path.unlink(missing_ok=True)


class _Rows:
    """Where the output of a table is kept while it grows and when it is whole: in memory, or in a file.

    As `_Store`; its note, a JSON beside the file, is written after the rows that it counts.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        shape: tuple[int, int],
        facts: dict[str, Any],
    ):
        self.settings, self.facts, self.done = settings, facts, 0
        self.path = None if out is None else Path(out)
        if self.path is None:
            self.values: NDArray[np.float32] = np.zeros(shape, np.float32)
            return
        self.partial, self.note = self.path.with_suffix(".partial.npy"), self.path.with_suffix(".json")
        before = self.path if self.path.exists() else self.partial
        stored = json.loads(self.note.read_text(encoding="utf-8")) if self.note.exists() else {}
        if before.exists() and (stored or before == self.path):
            check_same("features", before, stored.get("settings", {}), settings)
            if before == self.path or stored["facts"]["block"] == facts["block"]:
                self.done, self.facts = stored["done"], stored["facts"]
        if before != self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh: dict[str, Any] = {"mode": "w+", "dtype": np.float32, "shape": shape}
            self.values = np.lib.format.open_memmap(self.partial, **({"mode": "r+"} if self.done else fresh))

    def add(self, rows: NDArray[np.intp], values: NDArray[np.float32]) -> None:
        self.values[rows] = values
        self.done += 1

    def commit(self) -> None:
        if self.path is not None:
            cast(np.memmap, self.values).flush()
            self.values = np.lib.format.open_memmap(
                self.partial, mode="r+"
            )  # written pages would fill memory
            stored = {"settings": self.settings, "facts": self.facts, "done": self.done}
            write_text(self.note, json.dumps(stored))

    def finish(self) -> NDArray[np.float32]:
        if self.path is None:
            return self.values
        if not self.path.exists():
            self.commit()
            del self.values
            self.partial.replace(self.path)
        return cast(NDArray[np.float32], np.load(self.path, mmap_mode="r"))
