"""Prostate: needle cores with benign glands and Gleason patterns 3, 4 and 5.

A core is a strip of fibromuscular stroma. Benign glands are large, folded and lined by tall cells; pattern 3 is small
single glands; pattern 4 fused and cribriform ones; pattern 5 sheets, cords and single cells, with or without necrosis (the
patterns as the consensus of the ISUP has them: Epstein et al., Am J Surg Pathol 40:244, 2016).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pathkit.grading import PATTERNS, isup_grade
from pathkit.synthetic.architecture import Architecture, Canvas, label, lesion_table, polygons, region_table

__all__ = ["PATTERNS", "isup_grade", "prostate_core"]

Mask = NDArray[np.bool_]


def prostate_core(
    seed: int,
    shares: Mapping[str, float] | None = None,
    *,
    size_um: tuple[float, float] = (4800.0, 1000.0),
    mitoses_per_mm2: float = 1.0,
    frozen: bool = False,
) -> Architecture:
    """A needle core.

    Parameters
    ----------
    seed : int
    shares : mapping, optional
        Share of the core's length for "pattern 3", "pattern 4" and "pattern 5"; the rest is benign.
    size_um : (width, height)
        At least 1000 x 500.

    Raises
    ------
    ValueError
        If a pattern is unknown, a share negative, their sum above 1, or the core too small.
    """
    shares = dict(shares or {})
    unknown = set(shares) - set(PATTERNS[1:])
    if unknown:
        raise ValueError(f"prostate_core: no {sorted(unknown)[0]!r}; there are {', '.join(PATTERNS[1:])}.")
    if min(shares.values(), default=0) < 0 or sum(shares.values()) > 1 + 1e-9:
        raise ValueError(f"prostate_core: shares must not be negative and sum to at most 1, got {shares}.")
    if size_um[0] < 1000 or size_um[1] < 500:
        raise ValueError(f"prostate_core: a core needs 1000 x 500 µm, got {size_um[0]:g} x {size_um[1]:g}.")
    canvas = Canvas([seed, 12], size_um)
    labels, rng = canvas.labels, canvas.rng
    middle = size_um[1] / 2 + 0.08 * size_um[1] * canvas.wave(2500)
    half = 0.34 * size_um[1] + 22 * canvas.wave(300) + 7 * canvas.wave(60)
    core = (np.abs(canvas.y_um - middle) < half) & (canvas.x_um > 80) & (canvas.x_um < size_um[0] - 80)
    labels[core] = label("fibromuscular stroma")
    canvas.vessels(core, 8, (6.0, 20.0))
    where = _territories(canvas, core, shares)
    glands, lumens = np.zeros(canvas.shape, bool), np.zeros(canvas.shape, bool)
    _benign(canvas, core & (where == 0), glands, lumens)
    _pattern_3(canvas, core & (where == 1), glands, lumens)
    _pattern_4(canvas, core & (where == 2), glands, lumens)
    _pattern_5(canvas, core & (where == 3))
    depth = canvas.depth_of(glands)
    free = np.pi / 2 * canvas.smooth(350)
    territory = np.where(core, where + 1, 0).astype(np.uint8)
    regions = region_table(territory, ("glass", *PATTERNS), canvas.map_um, least_um=40, skip="glass")
    outlines, kinds = [], []
    for value, name in enumerate(PATTERNS[1:], start=1):
        for polygon in polygons(core & (where == value), canvas.map_um):
            if polygon.area > 5000:
                outlines.append(polygon)
                kinds.append(name)
    area = {name: float((core & (where == k)).sum()) for k, name in enumerate(PATTERNS) if k}
    return Architecture(
        seed,
        labels,
        canvas.angles(depth, free.astype(np.float32)),
        lesion_table(outlines, kinds),
        depth=depth,
        map_um=canvas.map_um,
        organ="prostate",
        glands=canvas.gland_table(glands, lumens),
        regions=regions,
        grade=2,
        per_mm2={"metaphase": mitoses_per_mm2} if mitoses_per_mm2 else {},
        frozen=frozen,
        facts={
            "shares": {k: v / core.sum() for k, v in area.items()},
            "isup": isup_grade(area),
            "seeds": int(rng.integers(1 << 16)),
        },
    )


def _territories(canvas: Canvas, core: Mask, shares: Mapping[str, float]) -> NDArray[np.uint8]:
    """Which pattern a place belongs to: stretches of the core with wavy borders, in random order."""
    rng = canvas.rng
    parts = [(k, shares.get(name, 0.0)) for k, name in enumerate(PATTERNS) if k and shares.get(name, 0.0) > 0]
    rest = max(0.0, 1 - sum(v for _, v in parts))
    order = [parts[i] for i in rng.permutation(len(parts))]
    cut = rng.uniform(0, rest)
    order = [(0, cut), *order, (0, rest - cut)]
    position = canvas.x_um + 45 * canvas.smooth(220) + 12 * canvas.smooth(60)
    # Positions at which each stretch ends, by the area of the core and not by its length.
    ranks = np.sort(position[core])
    ends = np.cumsum([v for _, v in order])
    edges = [ranks[min(int(e * len(ranks)), len(ranks) - 1)] for e in ends[:-1]]
    return np.array([k for k, _ in order], np.uint8)[np.digitize(position, edges)]


def _lined(
    canvas: Canvas,
    allowed: Mask,
    glands: Mask,
    lumens: Mask,
    tissue: str,
    *,
    radius_um: tuple[float, float],
    wall_um: float,
    spacing: float,
    most: int,
    rough: float,
    folds: float = 0.0,
) -> None:
    """Separate glands: a wall of epithelium around a lumen."""
    rng, gap = canvas.rng, 6.0
    fine = canvas.smooth(34) if folds else None
    for x, y in canvas.scatter(allowed, spacing, most):
        radius = rng.uniform(*radius_um)
        where, distance = canvas.blob(x, y, radius, rough=rough)
        near = (distance < 1 + gap / radius) & glands[where]
        inside = (distance < 1) & allowed[where]
        if near.any() or inside.sum() * canvas.map_um**2 < 250:
            continue
        wall = wall_um + (folds * np.abs(fine[where]) if fine is not None else 0.0)
        inner = inside & (canvas.inside_um(np.pad(inside, 1))[1:-1, 1:-1] > wall)
        glands[where][inside] = True
        lumens[where][inner] = True
        canvas.labels[where][inside] = label(tissue)
        canvas.labels[where][inner] = label("lumen" if tissue == "benign gland" else "tumour lumen")


def _benign(canvas: Canvas, allowed: Mask, glands: Mask, lumens: Mask) -> None:
    most = int(allowed.sum() * canvas.map_um**2 / 30_000) + 1
    for radius, spacing in (((60.0, 120.0), 150.0), ((35.0, 60.0), 90.0)):
        _lined(
            canvas, allowed, glands, lumens, "benign gland", radius_um=radius, wall_um=16, spacing=spacing, most=most,
            rough=0.16, folds=14.0,
        )  # fmt: skip


def _pattern_3(canvas: Canvas, allowed: Mask, glands: Mask, lumens: Mask) -> None:
    most = int(allowed.sum() * canvas.map_um**2 / 3500) + 1
    for radius, spacing in (((22.0, 40.0), 60.0), ((15.0, 26.0), 40.0)):
        _lined(
            canvas, allowed, glands, lumens, "pattern 3", radius_um=radius, wall_um=12, spacing=spacing, most=most, rough=0.1
        )  # fmt: skip


def _pattern_4(canvas: Canvas, allowed: Mask, glands: Mask, lumens: Mask) -> None:
    """Fused glands: a winding mass with many small lumens punched out; cribriform where it is wide."""
    field = canvas.smooth(130) + 0.35 * canvas.smooth(45)
    mass = allowed & (field > -0.25) & (canvas.inside_um(allowed) > 8)
    mass = canvas.without_crumbs(mass, 1500)
    canvas.labels[mass] = label("pattern 4")
    glands |= mass
    holes = np.zeros(canvas.shape, bool)
    most = int(mass.sum() * canvas.map_um**2 / 1500) + 1
    for x, y in canvas.scatter(mass & (canvas.inside_um(mass) > 16), 34, most):
        where, distance = canvas.blob(x, y, canvas.rng.uniform(6, 13), rough=0.12)
        holes[where] |= distance < 1
    holes &= mass
    canvas.labels[holes] = label("tumour lumen")
    lumens |= holes


def _pattern_5(canvas: Canvas, allowed: Mask) -> None:
    """Sheets in places, cords and single cells elsewhere; necrosis in the middle of some sheets."""
    sheets = allowed & (canvas.smooth(260) > 0.1)
    cords = allowed & ~sheets & (np.abs(canvas.smooth(48)) < 0.22)
    single = allowed & ~sheets & ~cords & (canvas.smooth(16) > 1.35)
    canvas.labels[sheets | cords | single] = label("pattern 5")
    dead = (canvas.inside_um(sheets) > 90) & (canvas.smooth(120) > 0.8)
    canvas.labels[dead] = label("necrosis")
