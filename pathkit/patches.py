"""Patches: a table of places, read when they are needed.

Nothing is cut out and saved: a patch is a row (slide_id, x_l0, y_l0, size_px, mpp), its pixels are read from the slide
when a network asks for them. Steps of a grid are whole level-0 pixels, rounded down, so that neighbours leave no gap;
patches at the right and lower edge may reach beyond the slide, where they read white.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from pathkit.annotations import label_patches, read_annotations
from pathkit.geometry import Raster
from pathkit.slide import Slide, SlideError, open_slide
from pathkit.tables import check_patches, read_table, write_table
from pathkit.tissue import tissue_fraction, tissue_mask

__all__ = [
    "PatchDataset",
    "concentric",
    "patch_boxes_um",
    "patch_grid",
    "patch_table",
    "random_patches",
    "read_all",
    "read_patches",
    "sample_patches",
    "write_patches",
]

Slides: TypeAlias = pd.DataFrame | Mapping[str, Any]
#: Pixels of patches that `read_all` keeps in memory unless told otherwise.
MEMORY_BUDGET_GB = 1.0
#: Places of a grid that are looked at together.
PLACES_TOGETHER = 500_000


# Tables ----------------------------------------------------------------------------------------------------------


def patch_grid(
    slide: Slide,
    *,
    size_px: int = 256,
    mpp: float = 0.5,
    overlap_px: int = 0,
    mask: Raster | None = None,
    min_tissue: float = 0.5,
    slide_id: str | None = None,
) -> pd.DataFrame:
    """A regular grid of patches over the tissue of a slide.

    Parameters
    ----------
    slide : Slide
    size_px : int
        Side of a patch in its own pixels.
    mpp : float
        Microns per pixel of a patch; the field of view is ``size_px * mpp`` microns.
    overlap_px : int
        Shared by neighbours, less than `size_px`.
    mask : Raster, optional
        Tissue mask; `tissue_mask` of the slide when not given.
    min_tissue : float
        Least share of tissue; 0 keeps the whole grid.
    slide_id : str, optional
        The slide's name by default.

    Returns
    -------
    DataFrame
        slide_id, x_l0, y_l0 (int, top left), size_px, mpp, tissue (share, 0 to 1), row after row. Empty, with a
        warning, where there is no tissue.

    Raises
    ------
    SlideError
        If `mpp` is finer than the slide's.
    ValueError
        If sizes make no grid.
    """
    _check_grid(slide, size_px, mpp, overlap_px, min_tissue)
    step_l0 = max(1, int((size_px - overlap_px) * mpp / slide.mpp + 1e-6))
    xs, ys = (np.arange(0, n, step_l0) for n in slide.dimensions)
    mask = tissue_mask(slide, mpp=max(8.0, slide.mpp)) if mask is None else mask
    means, parts = mask.box_means(), []
    for some in np.array_split(ys, -(-len(xs) * len(ys) // PLACES_TOGETHER)):
        x_l0, y_l0 = (axis.ravel() for axis in np.meshgrid(xs, some))
        table = _rows(slide_id or slide.name, x_l0, y_l0, size_px, mpp)
        table["tissue"] = tissue_fraction(means, table, slide_mpp=slide.mpp)
        parts.append(table[table["tissue"] >= min_tissue])
    kept = pd.concat(parts, ignore_index=True)
    if not len(kept):
        message = f"{slide.name}: no patch has {min_tissue:.0%} tissue or more. Look at the mask, or lower min_tissue."
        warnings.warn(message, stacklevel=2)
    return kept


def random_patches(
    slide: Slide,
    n: int,
    *,
    size_px: int = 256,
    mpp: float = 0.5,
    mask: Raster | None = None,
    min_tissue: float = 0.5,
    slide_id: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """`n` patches at random places, wholly on the slide and on tissue; columns as `patch_grid`.

    Raises
    ------
    ValueError
        If no place with enough tissue is found.
    """
    _check_grid(slide, size_px, mpp, 0, min_tissue)
    mask = tissue_mask(slide, mpp=max(8.0, slide.mpp)) if mask is None else mask
    side_l0 = int(np.ceil(size_px * mpp / slide.mpp))
    room = np.maximum(np.array(slide.dimensions) - side_l0, 0) + 1
    rng = np.random.default_rng(seed)
    found: list[pd.DataFrame] = []
    n_found = tries = 0
    while n_found < n:
        tries += 1
        if tries > 50 and not n_found:
            raise ValueError(
                f"{slide.name}: no place with {min_tissue:.0%} tissue for a patch of {size_px * mpp:g} µm. Lower min_tissue,"
                " or take smaller patches."
            )
        x_l0, y_l0 = rng.integers(0, room, (max(64, 4 * n), 2)).T
        table = _rows(slide_id or slide.name, x_l0, y_l0, size_px, mpp)
        table["tissue"] = tissue_fraction(mask, table, slide_mpp=slide.mpp)
        found.append(table[table["tissue"] >= min_tissue])
        n_found += len(found[-1])
    return pd.concat(found).head(n).reset_index(drop=True)


def patch_table(
    slides: pd.DataFrame,
    *,
    size_px: int = 256,
    mpp: float = 0.5,
    overlap_px: int = 0,
    min_tissue: float = 0.5,
    min_overlap: float = 0.5,
    background: str = "normal",
    progress: bool = True,
) -> pd.DataFrame:
    """The patches of a cohort: a grid over the tissue of each slide, labelled where the slide has annotations.

    Parameters
    ----------
    slides : DataFrame
        slide_id, path; where present mpp (for files that do not say it) and annotations_path.
    size_px, mpp, overlap_px, min_tissue
        As `patch_grid`.
    min_overlap, background
        As `annotations.label_patches`.

    Returns
    -------
    DataFrame
        Columns of `patch_grid`, and label and overlap where `slides` has annotations_path. Columns of `slides` that say
        whose slide it is (patient_id, site, split) come along.
    """
    tables = []
    for row in tqdm(slides.to_dict("records"), desc="patches", unit="slide", disable=not progress):
        with open_slide(row["path"], mpp=row.get("mpp")) as slide:
            table = patch_grid(
                slide,
                size_px=size_px,
                mpp=mpp,
                overlap_px=overlap_px,
                min_tissue=min_tissue,
                slide_id=row["slide_id"],
            )
            if "annotations_path" in row:
                outlines = read_annotations(row["annotations_path"], slide=slide)
                table = label_patches(
                    table, outlines, slide=slide, min_overlap=min_overlap, background=background
                )
        carried = {c: row[c] for c in ("patient_id", "site", "split") if c in row}
        tables.append(table.assign(**carried))
    return check_patches(pd.concat(tables, ignore_index=True))


def concentric(patches: pd.DataFrame, mpps: Sequence[float], *, slide_mpp: float) -> pd.DataFrame:
    """The same places at several resolutions: patches of equal pixels that share their centre.

    Parameters
    ----------
    patches : DataFrame
    mpps : sequence of float
        Resolutions, for example (0.5, 1.0, 2.0); each must be at least `slide_mpp`.
    slide_mpp : float

    Returns
    -------
    DataFrame
        ``len(mpps)`` rows for each row of `patches`, in its order; ``place`` numbers the centre. Columns tissue, label
        and overlap, which belong to the original field of view, are those of the original patch.
    """
    if min(mpps) < slide_mpp * 0.995:
        raise SlideError(
            f"concentric: {min(mpps):g} µm/px is finer than the slide's {slide_mpp:.4g}; ask for that or coarser."
        )
    side_um = (patches["size_px"] * patches["mpp"]).to_numpy(float)
    rings = []
    for mpp in mpps:
        shift_l0 = (side_um - patches["size_px"].to_numpy(float) * mpp) / 2 / slide_mpp
        ring = patches.assign(mpp=float(mpp), place=np.arange(len(patches)))
        ring["x_l0"] = np.rint(patches["x_l0"] + shift_l0).astype(np.int64)
        ring["y_l0"] = np.rint(patches["y_l0"] + shift_l0).astype(np.int64)
        rings.append(ring)
    return pd.concat(rings).sort_values(["place", "mpp"], kind="stable").reset_index(drop=True)


def sample_patches(
    patches: pd.DataFrame,
    n: int,
    *,
    by: str | Sequence[str] | None = None,
    replace: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """`n` patches at random, or up to `n` of each stratum.

    Parameters
    ----------
    patches : DataFrame
    n : int
        In all, or for each stratum.
    by : str or sequence of str, optional
        Strata, for example ``"label"`` or ``["slide_id", "label"]``. A stratum with fewer gives all it has.
    replace : bool
        Draw with replacement, so that every stratum gives exactly `n`.
    seed : int
        The draw does not depend on the order of the strata.

    Returns
    -------
    DataFrame
        In the order of `patches`.
    """
    if n < 1:
        raise ValueError(f"sample_patches: n must be at least 1, got {n}.")
    columns = [] if by is None else [by] if isinstance(by, str) else list(by)
    missing = [c for c in columns if c not in patches]
    if missing:
        raise ValueError(
            f"sample_patches: no column {missing[0]!r}; the table has {', '.join(map(str, patches.columns))}."
        )
    rng = np.random.default_rng(seed)
    groups = [np.arange(len(patches))]
    if columns:
        groups = [
            rows for _, rows in sorted(patches.groupby(columns, observed=True).indices.items(), key=str)
        ]
    drawn = [
        rng.choice(rows, n if replace else min(n, len(rows)), replace=replace) for rows in groups if len(rows)
    ]
    return patches.iloc[np.sort(np.concatenate(drawn))] if drawn else patches.iloc[:0]


def patch_boxes_um(patches: pd.DataFrame, *, slide_mpp: float) -> NDArray[np.float64]:
    """Footprints, (N, 4): x, y, width, height in microns."""
    side_um = (patches["size_px"] * patches["mpp"]).to_numpy(float)
    x_um, y_um = (patches[c].to_numpy(float) * slide_mpp for c in ("x_l0", "y_l0"))
    return np.column_stack([x_um, y_um, side_um, side_um])


def write_patches(patches: pd.DataFrame, path: str | os.PathLike[str], **metadata: Any) -> Path:
    """Check and write a patch table to parquet; `metadata` is kept with it (encoder, mask settings)."""
    return write_table(check_patches(patches), path, kind="patches", **metadata)


def read_patches(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read and check what `write_patches` wrote; metadata are in ``attrs``."""
    return check_patches(read_table(path))


# Pixels ----------------------------------------------------------------------------------------------------------


class PatchDataset:
    """Patches for a torch ``DataLoader``: uint8 pixels and labels, read when asked for.

    Slides are opened in each worker at its first read. An item depends on its row alone, so that batches are the same
    whatever the number of workers.

    Parameters
    ----------
    patches : DataFrame
        One size_px; slide_id must be in `slides`.
    slides : DataFrame or mapping
        Slides table (slide_id, path, optionally mpp), or slide_id to `Slide` or path.
    label : str or None
        Column with class names; None for unlabelled use.
    classes : sequence of str, optional
        Order of the classes; the sorted labels by default.
    transform : callable, optional
        Applied to the uint8 (N, 3, H, W) tensor of a batch.

    Notes
    -----
    Items are ``{"image": (3, H, W) uint8 tensor, "label": int, "row": int}``, without "label" when unlabelled.
    """

    def __init__(
        self,
        patches: pd.DataFrame,
        slides: Slides,
        *,
        label: str | None = "label",
        classes: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ):
        self.patches = check_patches(patches).reset_index(drop=True)
        sizes = self.patches["size_px"].unique()
        if len(sizes) > 1:
            raise ValueError(f"PatchDataset: one size_px, got {sizes.tolist()}. Make one data set a size.")
        self.slides = SlideSource(slides)
        self.slides.check(self.patches["slide_id"].unique())
        self.transform = transform
        self.classes: tuple[str, ...] = ()
        self.labels: NDArray[np.int64] | None = None
        if label is not None:
            self.classes, self.labels = encode_labels(self.patches, label, classes)

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        import torch

        rows = np.asarray(indices, dtype=int)
        pixels = torch.from_numpy(self.slides.read(self.patches.iloc[rows], threads=1)).permute(0, 3, 1, 2)
        if self.transform is not None:
            pixels = self.transform(pixels)
        items: list[dict[str, Any]] = [{"image": p, "row": int(i)} for p, i in zip(pixels, rows, strict=True)]
        if self.labels is not None:
            for item in items:
                item["label"] = int(self.labels[item["row"]])
        return items


def read_all(
    patches: pd.DataFrame, slides: Slides, *, progress: bool = True, budget_gb: float = MEMORY_BUDGET_GB
) -> NDArray[np.uint8]:
    """All patches in memory, for sets that fit.

    Parameters
    ----------
    patches, slides
        As `PatchDataset`.
    budget_gb : float
        Refuse more than this.

    Returns
    -------
    (N, H, W, 3) uint8, in the table's order

    Raises
    ------
    MemoryError
        If they do not fit the budget.
    """
    size = int(patches["size_px"].iloc[0]) if len(patches) else 0
    needed_gb = len(patches) * size * size * 3 / 1e9
    if needed_gb > budget_gb:
        raise MemoryError(
            f"{len(patches)} patches of {size} px need {needed_gb:.1f} GB, the budget is {budget_gb:g} GB. Read them by a"
            " DataLoader over PatchDataset, take fewer, or raise budget_gb."
        )
    out = np.empty((len(patches), size, size, 3), np.uint8)
    source = SlideSource(slides)
    source.check(patches["slide_id"].unique())
    groups = patches.groupby(["slide_id", "mpp"], observed=True, sort=False).indices
    with tqdm(total=len(patches), desc="reading", unit="patch", disable=not progress) as bar:
        for rows in groups.values():
            for part in np.array_split(rows, max(1, len(rows) // 512)):
                out[part] = source.read(patches.iloc[part])
                bar.update(len(part))
    return out


class SlideSource:
    """Slides by id, opened once in each process.

    Parameters
    ----------
    slides : DataFrame or mapping
        Slides table (slide_id, path, optionally mpp), or slide_id to `Slide` or path.
    """

    def __init__(self, slides: Slides):
        if isinstance(slides, pd.DataFrame):
            mpps = slides["mpp"] if "mpp" in slides else pd.Series(None, index=slides.index, dtype=object)
            entries: Iterable[tuple[str, Any]] = (
                (i, (p, None if pd.isna(m) else float(m)))
                for i, p, m in zip(slides["slide_id"], slides["path"], mpps, strict=True)
            )
            self._sources = dict(entries)
        else:
            self._sources = {i: s if isinstance(s, Slide) else (s, None) for i, s in slides.items()}
        self._open: dict[str, Slide] = {}

    def __getitem__(self, slide_id: str) -> Slide:
        if slide_id not in self._open:
            source = self._sources[slide_id]
            self._open[slide_id] = (
                source if isinstance(source, Slide) else open_slide(source[0], mpp=source[1])
            )
        return self._open[slide_id]

    def check(self, slide_ids: Iterable[str]) -> None:
        """Raise where a slide is missing, before hours have gone by."""
        missing = [i for i in slide_ids if i not in self._sources]
        if missing:
            raise ValueError(
                f"{len(missing)} slide_id of the patches are not among the slides, first {missing[0]!r}. Pass the table that"
                " the patches were made from."
            )

    def read(self, patches: pd.DataFrame, *, threads: int | None = None) -> NDArray[np.uint8]:
        """(N, H, W, 3) uint8 of patches of any slides, in their order."""
        ids = patches["slide_id"].to_numpy()
        columns = {c: patches[c].to_numpy() for c in ("x_l0", "y_l0", "size_px", "mpp")}
        size = int(columns["size_px"][0])
        out = np.empty((len(patches), size, size, 3), np.uint8)
        if (ids == ids[0]).all() and (columns["mpp"] == columns["mpp"][0]).all():
            return self[str(ids[0])].read_patches(columns, out=out, threads=threads)
        for (slide_id, _), rows in patches.groupby(
            ["slide_id", "mpp"], observed=True, sort=False
        ).indices.items():
            part = {c: values[rows] for c, values in columns.items()}
            out[rows] = self[str(slide_id)].read_patches(part, threads=threads)
        return out


def encode_labels(
    patches: pd.DataFrame, label: str, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Class names in order, and the index of each row's class.

    Raises
    ------
    ValueError
        If the column is missing, a label is missing, or a label is not among the classes.
    """
    if label not in patches:
        raise ValueError(
            f"no column {label!r} to learn from. Label the patches with label_patches(...), name the column with"
            " label=..., or pass label=None."
        )
    values = patches[label]
    if values.isna().any():
        raise ValueError(
            f"{label!r} is missing in row {int(values.isna().to_numpy().argmax())}. Drop such rows, or label them."
        )
    names = tuple(sorted(values.unique())) if classes is None else tuple(classes)
    codes = pd.Index(names).get_indexer(values)
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise ValueError(
            f"row {row} has the {label} {values.iloc[row]!r}, which is not among the classes {', '.join(names)}."
        )
    return names, codes.astype(np.int64)


def _rows(slide_id: str, x_l0: NDArray[Any], y_l0: NDArray[Any], size_px: int, mpp: float) -> pd.DataFrame:
    columns = {
        "x_l0": x_l0.astype(np.int64),
        "y_l0": y_l0.astype(np.int64),
        "size_px": int(size_px),
        "mpp": float(mpp),
    }
    return pd.DataFrame({"slide_id": pd.Series([slide_id] * len(x_l0), dtype="str"), **columns})


def _check_grid(slide: Slide, size_px: int, mpp: float, overlap_px: int, min_tissue: float) -> None:
    if mpp < slide.mpp * 0.995:
        raise SlideError(
            f"{slide.name}: patches of {mpp:g} µm/px asked for, its finest level has {slide.mpp:.4g}. pathkit does not"
            f" enlarge pixels: ask for mpp >= {slide.mpp:.4g}."
        )
    if int(size_px) != size_px or size_px < 1 or not 0 <= overlap_px < size_px:
        raise ValueError(
            f"size_px must be a positive whole number and overlap_px less than it, got {size_px} and {overlap_px}."
        )
    if not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue is a share from 0 to 1, got {min_tissue}.")
