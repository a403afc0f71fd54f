"""Breast: lobules, ducts, carcinoma in situ and invasive carcinoma, with what its cells express.

Stroma is dense collagen with fat; benign lobules are clusters of small glands; carcinoma in situ fills ducts, cribriform or
solid with a dead centre, inside an intact wall; invasive carcinoma lies in nests and single files in its own stroma.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathkit.synthetic.architecture import Architecture, Canvas, label, lesion_table, polygons, region_table
from pathkit.synthetic.markers import MARKERS
from pathkit.synthetic.prostate import _lined

__all__ = ["breast"]

Mask = NDArray[np.bool_]
_KINDS = ("benign", "in situ", "invasive")


def breast(
    seed: int,
    kind: str = "invasive",
    *,
    grade: int = 2,
    markers: Mapping[str, Any] | None = None,
    mitoses_per_mm2: float | None = None,
    look_alikes_per_mm2: float = 20.0,
    lymphocytes_per_mm2: float = 100.0,
    size_um: tuple[float, float] = (2400.0, 1800.0),
    frozen: bool = False,
) -> Architecture:
    """A section of breast.

    Parameters
    ----------
    seed : int
    kind : {"benign", "in situ", "invasive"}
        Invasive slides hold in situ and benign tissue too, as they do.
    grade : int
        1 to 3: nuclear size and variation, and tubules.
    markers : mapping, optional
        What the tumour expresses: {"Ki-67": share, "ER": share, "PR": share, "HER2": 0 to 3, "PD-L1": (tumour, immune)}.
    mitoses_per_mm2 : float, optional
        2, 6 and 16 for grades 1 to 3 by default.
    look_alikes_per_mm2 : float
        Pyknotic and apoptotic cells and pigment.
    size_um : (width, height)
        At least 800 x 800.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    if kind not in _KINDS:
        raise ValueError(f"breast: no kind {kind!r}; there are {', '.join(_KINDS)}.")
    if grade not in (1, 2, 3):
        raise ValueError(f"breast: grade is 1, 2 or 3, got {grade!r}.")
    unknown = set(markers or {}) - set(MARKERS)
    if unknown:
        raise ValueError(f"breast: no marker {sorted(unknown)[0]!r}; there are {', '.join(MARKERS)}.")
    if min(size_um) < 800:
        raise ValueError(f"breast: at least 800 x 800 µm, got {size_um[0]:g} x {size_um[1]:g}.")
    mitoses = {1: 2.0, 2: 6.0, 3: 16.0}[grade] if mitoses_per_mm2 is None else mitoses_per_mm2
    canvas = Canvas([seed, 13], size_um)
    labels, rng = canvas.labels, canvas.rng
    edge = 70 + 25 * canvas.smooth(300)
    inner = np.minimum(
        np.minimum(canvas.x_um, size_um[0] - canvas.x_um), np.minimum(canvas.y_um, size_um[1] - canvas.y_um)
    )
    tissue = inner > edge
    labels[tissue] = label("breast stroma")
    fat = tissue & (canvas.smooth(600) + 0.2 * canvas.smooth(120) > 0.75)
    labels[fat] = label("fat")
    invasive = np.zeros(canvas.shape, bool)
    if kind == "invasive":
        x, y = (n * rng.uniform(0.4, 0.6) for n in size_um)
        where, distance = canvas.blob(x, y, 0.36 * min(size_um), stretch=1.6, rough=0.1)
        rough = 0.12 * canvas.smooth(160)[where] + 0.07 * canvas.smooth(50)[where]
        invasive[where] = distance + rough < 1
        invasive &= tissue
        labels[invasive] = label("cancer stroma")
    glands, lumens = np.zeros(canvas.shape, bool), np.zeros(canvas.shape, bool)
    in_situ = np.zeros(canvas.shape, bool)
    if kind != "benign":
        near = tissue & ~invasive & (canvas.inside_um(tissue) > 120)
        _in_situ(canvas, near, in_situ, int(rng.integers(2, 5)), grade)
    free = tissue & ~invasive & (canvas.inside_um(~in_situ) > 30) & ~fat
    for x, y in canvas.scatter(free & (canvas.inside_um(free) > 60), 420, int(rng.integers(3, 7))):
        where, distance = canvas.blob(x, y, rng.uniform(110, 200))
        lobule = np.zeros(canvas.shape, bool)
        lobule[where] = (distance < 1) & free[where]
        _lined(
            canvas, lobule, glands, lumens, "benign gland", radius_um=(20.0, 31.0), wall_um=16, spacing=46, most=40, rough=0.08
        )  # fmt: skip
    _lined(
        canvas, free, glands, lumens, "benign gland", radius_um=(30.0, 70.0), wall_um=18, spacing=400, most=5, rough=0.15,
        folds=8.0,
    )  # fmt: skip
    canvas.vessels(tissue & ~in_situ & ~glands, 14, (6.0, 28.0))
    _invade(canvas, invasive, glands, lumens, grade)
    tumour_glands = in_situ | glands
    depth = canvas.depth_of(tumour_glands)
    rates = {"lymphocyte": lymphocytes_per_mm2} | _rates(mitoses, look_alikes_per_mm2)
    outlines, kinds = [], []
    for mask, name in ((invasive, "invasive"), (in_situ, "in situ")):
        for polygon in polygons(mask, canvas.map_um, holes=False):
            if polygon.area > 4000:
                outlines.append(polygon)
                kinds.append(name)
    what = np.where(fat, 2, tissue.astype(np.uint8)).astype(np.uint8)
    what[glands & ~invasive] = 3
    what[in_situ] = 4
    what[invasive] = 5
    regions = region_table(
        what,
        ("glass", "stroma", "fat", "benign epithelium", "in situ", "invasive"),
        canvas.map_um,
        skip="glass",
    )
    return Architecture(
        seed,
        labels,
        canvas.angles(depth, (0.6 * np.pi * canvas.smooth(450)).astype(np.float32)),
        lesion_table(outlines, kinds),
        depth=depth,
        map_um=canvas.map_um,
        organ="breast",
        glands=canvas.gland_table(glands, lumens),
        regions=regions,
        grade=grade,
        per_mm2=rates,
        markers=dict(markers or {}),
        frozen=frozen,
        facts={"kind": kind, "grade": grade, "mitoses_per_mm2": mitoses},
    )


def _rates(mitoses: float, look_alikes: float) -> dict[str, float]:
    """Dividing cells by phase, and what is mistaken for them."""
    if mitoses < 0 or look_alikes < 0:
        raise ValueError("breast: cells a mm² must not be negative.")
    phases = {
        "prophase": 0.25,
        "metaphase": 0.4,
        "anaphase": 0.15,
        "telophase": 0.13,
        "atypical mitosis": 0.07,
    }
    like = {"pyknotic": 0.5, "apoptotic": 0.35, "pigment": 0.15}
    out = {k: v * mitoses for k, v in phases.items()} | {k: v * look_alikes for k, v in like.items()}
    return {k: v for k, v in out.items() if v > 0}


def _in_situ(canvas: Canvas, allowed: Mask, in_situ: Mask, n: int, grade: int) -> None:
    """Ducts filled with tumour, their wall intact."""
    for x, y in canvas.scatter(allowed, 380, n):
        radius = canvas.rng.uniform(100, 210)
        where, distance = canvas.blob(x, y, radius, rough=0.05)
        inside = (distance < 1) & allowed[where]
        ring = (distance < 1 + 14 / radius) & allowed[where] & ~inside
        part = canvas.labels[where]
        part[ring] = label("capsule")
        part[inside] = label("in situ tumour")
        in_situ[where] |= inside
        if grade == 3 or canvas.rng.random() < 0.4:
            dead = (distance < canvas.rng.uniform(0.35, 0.6)) & inside
            part[dead] = label("necrosis")
        else:
            canvas.labels[where] = part
            for hx, hy in canvas.scatter(_within(canvas, where, (distance < 0.8) & inside), 52, 14):
                hole, d = canvas.blob(hx, hy, canvas.rng.uniform(9, 20), rough=0.06)
                canvas.labels[hole][(d < 1) & in_situ[hole]] = label("tumour lumen")


def _within(canvas: Canvas, where: tuple[slice, slice], part: Mask) -> Mask:
    out = np.zeros(canvas.shape, bool)
    out[where] = part
    return out


def _invade(canvas: Canvas, invasive: Mask, glands: Mask, lumens: Mask, grade: int) -> None:
    """Nests and tubules by grade, and single files between them."""
    if not invasive.any():
        return
    field = canvas.smooth(85) + 0.4 * canvas.smooth(36)
    nests = invasive & (field > {1: 0.55, 2: 0.35, 3: 0.05}[grade])
    nests = canvas.without_crumbs(nests, 500)
    files = invasive & ~nests & (np.abs(canvas.smooth(70)) < 0.06) & (canvas.smooth(200) > 0)
    canvas.labels[nests | files] = label("solid tumour")
    inside = canvas.inside_um(nests)
    tubules = (
        nests & (inside > 14 + 3 * canvas.smooth(60)) & (canvas.smooth(60) > {1: -0.8, 2: 0.5, 3: 1.9}[grade])
    )
    canvas.labels[tubules] = label("tumour lumen")
    glands |= nests
    lumens |= tubules
    dead = nests & (canvas.inside_um(nests) > 70) & (canvas.smooth(150) > 1.5)
    canvas.labels[dead] = label("necrosis")
