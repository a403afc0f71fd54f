"""Fields: many small pictures with every nucleus outlined, to train on what a slide cannot show in one place.

Magnification, stain, light, sharpness and organ are drawn anew for each field, wider than laboratories differ: a network
that has seen all this need not adapt to the next laboratory (domain randomisation, Tobin et al., IROS 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from pathkit.geometry import Box
from pathkit.slide import open_slide
from pathkit.synthetic.architecture import Architecture
from pathkit.synthetic.breast import breast
from pathkit.synthetic.cohort import truth_of
from pathkit.synthetic.colon import colon
from pathkit.synthetic.lymph import lymph_node
from pathkit.synthetic.objects import nucleus_array
from pathkit.synthetic.paint import instances
from pathkit.synthetic.prostate import prostate_core
from pathkit.synthetic.scanner import Site, scan
from pathkit.synthetic.tissues import CLASSES

__all__ = [
    "Fields",
    "SlideFields",
    "nuclei_fields",
    "numbered",
    "random_site",
    "slide_fields",
    "smooth_field",
]

_ORGANS: dict[str, Callable[[int], Architecture]] = {
    "colon": lambda seed: colon(seed, grade=1 + seed % 3, size_um=(1200.0, 1300.0)),
    "normal colon": lambda seed: colon(seed, tumour=False, size_um=(1000.0, 1200.0)),
    "breast": lambda seed: breast(seed, grade=1 + seed % 3, size_um=(1200.0, 1000.0)),
    "prostate": lambda seed: prostate_core(
        seed, {"pattern 3": 0.3, "pattern 4": 0.3, "pattern 5": 0.2}, size_um=(1800.0, 800.0)
    ),
    "lymph node": lambda seed: lymph_node(seed, "normal", size_um=(1200.0, 1000.0)),
}


@dataclass
class Fields:
    """Pictures with their truth.

    Attributes
    ----------
    images : (N, H, W, 3) uint8
    instances : (N, H, W) int32
        1, 2, ... for each nucleus of a field, 0 between them.
    mpp : (N,) float64
    organ : list of str
    """

    images: NDArray[np.uint8]
    instances: NDArray[np.int32]
    mpp: NDArray[np.float64]
    organ: list[str]


@dataclass
class SlideFields:
    """Fields of the slides of a cohort, with their nuclei.

    Attributes
    ----------
    table : DataFrame
        slide_id, patient_id, x_l0, y_l0, size_px, mpp: the fields are patches.
    images : (N, H, W, 3) uint8
    instances : (N, H, W) int32
        1, 2, ... for each nucleus of a field.
    kinds : list of dict
        Of each field, from nucleus to class.
    """

    table: pd.DataFrame
    images: NDArray[np.uint8]
    instances: NDArray[np.int32]
    kinds: list[dict[int, str]]


def slide_fields(
    slides: pd.DataFrame,
    n: int,
    *,
    size_px: int = 192,
    mpp: float = 0.5,
    least_px: int = 12,
    seed: int = 0,
    progress: bool = True,
) -> SlideFields:
    """Fields read from a cohort's slides, at random cells, with the truth of each nucleus.

    Parameters
    ----------
    slides : DataFrame
        Of a cohort of `synthetic`, whose folder knows the truth.
    n : int
        Fields of each slide.
    size_px : int
    mpp : float
    least_px : int
        Pieces of a nucleus with fewer pixels are no instances.
    seed : int

    Raises
    ------
    ValueError
        If a number is not positive, or a slide is not of a synthetic cohort.
    """
    if n < 1 or size_px < 16 or not mpp > 0:
        raise ValueError(f"slide_fields: n, size_px and mpp must be positive, got {n}, {size_px} and {mpp}.")
    rows: list[dict[str, Any]] = []
    images, labels, kinds = [], [], []
    for order, (_, row) in enumerate(
        tqdm(slides.iterrows(), total=len(slides), desc="fields", unit="slide", disable=not progress)
    ):
        truth = truth_of(row)
        rng, memo = np.random.default_rng([seed, 33, order]), dict[str, Any]()
        names = object_classes(truth.architecture)
        with open_slide(row["path"]) as slide:
            for _ in range(n):
                x, y = _on_cells(rng, truth.architecture, size_px, mpp, memo)
                location = (x * mpp / slide.mpp, y * mpp / slide.mpp)
                images.append(slide.read_region(location, (size_px, size_px), mpp=mpp))
                ids = _nuclei_at(truth.architecture, (x, y), (size_px, size_px), mpp)
                own = numbered(ids, least_px)
                labels.append(own)
                kept, first = np.unique(own, return_index=True)
                kinds.append({int(k): names[int(ids.flat[i])] for k, i in zip(kept, first, strict=True) if k})
                rows.append(
                    {
                        "slide_id": row["slide_id"],
                        "patient_id": row["patient_id"],
                        "x_l0": round(location[0]),
                        "y_l0": round(location[1]),
                        "size_px": size_px,
                        "mpp": mpp,
                    }
                )
    return SlideFields(pd.DataFrame(rows), np.stack(images), np.stack(labels), kinds)


def object_classes(architecture: Architecture) -> dict[int, str]:
    """The class of every cell of a slide, by object_id."""
    cells = nucleus_array(architecture, Box(-30, -30, *(v + 60 for v in architecture.size_um)))
    return {int(i): CLASSES[int(k)] for k, i in cells[:, [6, 8]]}


def random_site(rng: np.random.Generator, mpp: float) -> Site:
    """A laboratory that does not exist: stains from pink to purple, light from grey to white, sharp or not; every other one
    uses haematoxylin alone, whose ground is as good as clear, in light of any tint."""
    alone = rng.random() < 0.5
    purple = 1.0 if alone else rng.random() ** 1.5
    haematoxylin = np.array([0.65, 0.70, 0.29]) + rng.normal(0, (0.09, 0.05, 0.09))
    pink = np.array([0.17, 0.91, 0.36]) + rng.normal(0, (0.07, 0.05, 0.10))
    eosin = (1 - 0.8 * purple) * pink + 0.8 * purple * haematoxylin
    white = np.clip(rng.uniform(190, 250) + rng.normal(0, 18 if alone else 10, 3), 150, 255)
    h, e = np.maximum(haematoxylin, 0.02), np.maximum(eosin, 0.02)
    return Site(
        name="random",
        haematoxylin=(float(h[0]), float(h[1]), float(h[2])),
        eosin=(float(e[0]), float(e[1]), float(e[2])),
        strength=(
            float(rng.uniform(0.6, 2.0)),
            float(rng.uniform(0.02, 0.4) if alone else rng.uniform(0.15, 1.3)),
            1.0,
        ),
        white=(float(white[0]), float(white[1]), float(white[2])),
        mpp=mpp,
        blur_um=float(rng.uniform(0.12, 0.5)),
        sharpen=float(rng.uniform(0, 1.5)),
        gamma=float(rng.uniform(0.85, 1.15)),
        noise=float(rng.uniform(0.5, 4.0)),
    )


def nuclei_fields(
    n: int,
    *,
    size_px: int = 256,
    mpp: tuple[float, float] = (0.12, 0.5),
    organs: Sequence[str] = tuple(_ORGANS),
    per_architecture: int = 12,
    least_px: int = 12,
    seed: int = 0,
    site: Site | None = None,
    variety: float = 0.0,
    progress: bool = True,
) -> Fields:
    """Fields with instances of nuclei.

    Parameters
    ----------
    n : int
    size_px : int
    mpp : (from, to)
        Drawn evenly on a logarithmic scale.
    organs : sequence of str
        colon, normal colon, breast, prostate, lymph node.
    per_architecture : int
        Fields from one architecture before another is made.
    least_px : int
        Pieces of a nucleus at the edge with fewer pixels are not instances.
    seed : int
    site : Site, optional
        One laboratory for all, instead of a random one for each.
    variety : float
        0: cells as on the slides. 1: sections bent in cutting, so that outlines are uneven; nuclei that differ in strength
        and chromatin; cells far out of focus, which are no instances; uneven light.

    Raises
    ------
    ValueError
        If a number is not positive or an organ unknown.
    """
    unknown = [o for o in organs if o not in _ORGANS]
    if unknown or not organs:
        raise ValueError(f"nuclei_fields: organs are among {', '.join(_ORGANS)}, got {list(organs)}.")
    if n < 1 or size_px < 16 or not 0 < mpp[0] <= mpp[1]:
        raise ValueError(f"nuclei_fields: n, size_px and mpp must be positive, got {n}, {size_px}, {mpp}.")
    images = np.empty((n, size_px, size_px, 3), np.uint8)
    labels = np.zeros((n, size_px, size_px), np.int32)
    scales, names = np.empty(n), []
    architecture: Any = None
    memo: dict[str, Any] = {}
    for k in tqdm(range(n), desc="painting fields", unit="field", disable=not progress):
        rng = np.random.default_rng([seed, 31, k])
        organ = organs[(k // per_architecture) % len(organs)]
        if k % per_architecture == 0:
            architecture = _ORGANS[organ](int(np.random.default_rng([seed, 32, k]).integers(1 << 20)))
        scales[k] = np.exp(rng.uniform(*np.log(mpp)))
        own = random_site(rng, scales[k]) if site is None else site.at(scales[k])
        location = _on_cells(rng, architecture, size_px, scales[k], memo)
        images[k], ids = _field(rng, architecture, own, location, size_px, variety)
        labels[k] = numbered(ids, least_px)
        names.append(organ)
    return Fields(images, labels, scales, names)


def _field(
    rng: np.random.Generator,
    architecture: Architecture,
    site: Site,
    location: tuple[int, int],
    size_px: int,
    variety: float,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Picture and instances of one place."""
    if not variety:
        size = (size_px, size_px)
        return scan(architecture, site, location, size), _nuclei_at(architecture, location, size, site.mpp)
    margin = 16
    wide, corner = size_px + 2 * margin, (location[0] - margin, location[1] - margin)
    image = scan(
        architecture,
        site,
        corner,
        (wide, wide),
        alter=lambda stain, at: _vary(rng, architecture, site.mpp, variety, stain, at),
    )
    ids = _nuclei_at(architecture, corner, (wide, wide), site.mpp)
    names, numbers = np.unique(ids, return_inverse=True)
    grid = np.indices((wide, wide))[::-1]
    bend = [
        smooth_field(rng, wide, s / site.mpp) * min(variety * a / site.mpp, margin / 4)
        for s, a in ((9, 0.9), (3, 0.3), (9, 0.9), (3, 0.3))
    ]
    x, y = ((grid[k] + bend[2 * k] + bend[2 * k + 1]).astype(np.float32) for k in (0, 1))
    curved = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    bent = cv2.remap(numbers.reshape(ids.shape).astype(np.float32), x, y, cv2.INTER_NEAREST)
    lit = curved * (1 + 0.12 * variety * rng.random() * smooth_field(rng, wide, wide / 2))[..., None]
    inner = (slice(margin, -margin),) * 2
    return np.clip(lit[inner], 0, 255).astype(np.uint8), names[bent[inner].astype(int)]


def _nuclei_at(
    architecture: Architecture, location: tuple[int, int], size: tuple[int, int], mpp: float
) -> NDArray[np.int64]:
    """(H, W) object_id of the nuclei, 0 elsewhere: red cells and pigment have none."""
    ids = instances(architecture, (location[0] * mpp, location[1] * mpp), size, mpp=mpp)
    reach = 15.0  # microns: the largest cell
    x, y, width, height = (v * mpp for v in (*location, *size))
    near = nucleus_array(architecture, Box(x - reach, y - reach, width + 2 * reach, height + 2 * reach))
    bare = near[np.isin(near[:, 6], [CLASSES.index(c) for c in ("red cell", "pigment")]), 8]
    return np.where(np.isin(ids, bare.astype(np.int64)), 0, ids)


def _vary(
    rng: np.random.Generator,
    architecture: Architecture,
    mpp: float,
    variety: float,
    stain: NDArray[np.float32],
    at: tuple[int, int],
) -> None:
    """Changes concentrations in place: each nucleus its own strength and chromatin, and cells out of focus."""
    height, width = stain.shape[:2]
    ids = _nuclei_at(architecture, at, (width, height), mpp)
    names, numbers = np.unique(ids, return_inverse=True)
    strength = rng.lognormal(0, rng.uniform(0.1, 0.55) * variety, len(names))
    coarse = rng.uniform(0.35, 1.1) / mpp
    chromatin = (
        1 + variety * rng.uniform(0, 0.4) * smooth_field(rng, max(height, width), coarse)[:height, :width]
    )
    nucleus = ids > 0
    stain[..., 0] *= np.where(nucleus, strength[numbers.reshape(ids.shape)] * np.maximum(chromatin, 0.1), 1)
    if rng.random() < 0.6 * variety:
        turned = np.rot90(np.where(nucleus, stain[..., 0], 0), 2)
        seldom = smooth_field(rng, max(height, width), 25 / mpp)[:height, :width] > rng.uniform(0.3, 1.2)
        ghosts = cv2.GaussianBlur(turned * seldom, (0, 0), rng.uniform(1.2, 4) / mpp)
        stain[..., 0] += np.where(nucleus, 0.3, 1) * rng.uniform(0.2, 0.7) * ghosts


def smooth_field(rng: np.random.Generator, size: int, scale: float) -> NDArray[np.float32]:
    """(size, size) noise of unit variance with features of `scale` pixels."""
    coarse = int(np.ceil(size / scale)) + 3
    noise = rng.standard_normal((coarse, coarse)).astype(np.float32)
    big = cv2.resize(noise, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    y, x = (int(rng.integers(big.shape[k] - size + 1)) for k in (0, 1))
    return np.asarray(big[y : y + size, x : x + size] * 1.3, np.float32)


def _on_cells(
    rng: np.random.Generator, architecture: Architecture, size_px: int, mpp: float, memo: dict[str, Any]
) -> tuple[int, int]:
    """A place around some cell, that lies inside the slide where it fits."""
    if "cells" not in memo or memo["of"] is not architecture:
        memo.update(
            of=architecture, cells=nucleus_array(architecture, Box(0, 0, *architecture.size_um))[:, :2]
        )
    cells = memo["cells"]
    centre = cells[rng.integers(len(cells))] / mpp
    most = np.maximum(np.array(architecture.size_um) / mpp - size_px, 0)
    x, y = np.clip(centre - size_px / 2, 0, most).astype(int)
    return int(x), int(y)


def numbered(ids: NDArray[Any], least_px: int) -> NDArray[np.int32]:
    """1, 2, ... for the nuclei of which enough is seen, 0 for the others."""
    values, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    kept = (values != 0) & (counts >= least_px)
    new = np.zeros(len(values), np.int32)
    new[kept] = np.arange(1, int(kept.sum()) + 1)
    return new[inverse].reshape(ids.shape)
