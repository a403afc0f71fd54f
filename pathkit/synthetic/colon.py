"""Colon: the wall in its layers, and a carcinoma that grows through them.

From the lumen outwards: mucosa with crypts cut lengthwise and across, muscularis mucosae, submucosa, muscularis propria in
two layers whose fibres cross, fat. A carcinoma starts at the surface and grows downwards with an uneven front; its glands
are the places above a threshold of smooth noise, which makes them branch, fuse and vary as they do. Microsatellite
instability shows as it is known to: mucus, poor differentiation, lymphocytes within and around the tumour (Jenkins et al.,
Gastroenterology 133:48, 2007). Sizes are working values of general histology, in microns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from pathkit.synthetic.architecture import Architecture, Canvas, label, lesion_table, polygons, region_table
from pathkit.synthetic.tissues import NINE_CLASSES

__all__ = ["colon"]

Mask = NDArray[np.bool_]


def colon(
    seed: int,
    *,
    tumour: bool = True,
    grade: int = 2,
    stage: int = 3,
    msi: bool = False,
    lymphocytes_per_mm2: float = 150.0,
    mucus: float | None = None,
    mitoses_per_mm2: float = 10.0,
    size_um: tuple[float, float] = (3000.0, 2400.0),
    frozen: bool = False,
) -> Architecture:
    """A section through the wall of the colon.

    Parameters
    ----------
    seed : int
    tumour : bool
        With a carcinoma.
    grade : int
        1 well to 3 poorly differentiated: glands give way to sheets.
    stage : int
        1 submucosa, 2 muscularis propria, 3 fat: how deep it grows (pT).
    msi : bool
        With the morphology of microsatellite instability: grade 3, mucus, lymphocytes in the tumour and around it.
    lymphocytes_per_mm2 : float
        Within the tumour's epithelium, above those of every tumour.
    mucus : float, optional
        Share of the tumour that is pools of mucus, 0 to 0.8; 0.03, or 0.25 with `msi`, by default.
    mitoses_per_mm2 : float
    size_um : (width, height)
        At least 800 x 1200.
    frozen : bool

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    if grade not in (1, 2, 3) or stage not in (1, 2, 3):
        raise ValueError(f"colon: grade and stage are 1, 2 or 3, got {grade!r} and {stage!r}.")
    if size_um[0] < 800 or size_um[1] < 1200:
        raise ValueError(f"colon: the wall needs 800 x 1200 µm, got {size_um[0]:g} x {size_um[1]:g}.")
    mucus = (0.25 if msi else 0.03) if mucus is None else mucus
    if not 0 <= mucus <= 0.8 or lymphocytes_per_mm2 < 0 or mitoses_per_mm2 < 0:
        raise ValueError("colon: mucus is a share from 0 to 0.8; cells a mm² must not be negative.")
    grade = 3 if msi else grade
    canvas = Canvas([seed, 11], size_um)
    surface = 220 + 35 * canvas.wave(500)
    below = canvas.y_um - surface
    side = 60 + 18 * canvas.wave(300, along=0)
    tissue = (below > 0) & (canvas.x_um > side) & (canvas.x_um < size_um[0] - side[::-1])
    tissue &= canvas.y_um < size_um[1] - 60 - 25 * canvas.wave(400)
    glands, lumens = _wall(canvas, below, tissue)
    region = np.zeros(canvas.shape, bool)
    if tumour:
        region = _carcinoma(canvas, tissue, glands, lumens, surface, grade, stage, msi, mucus)
    depth = canvas.depth_of(glands)
    muscle = np.where(below > 0.75 * size_um[1], np.float32(1.4), np.float32(0.1))
    free = np.where(
        np.isin(canvas.labels, [label("smooth muscle")]) & ~region,
        muscle + 0.25 * canvas.smooth(400),
        np.pi * canvas.smooth(280),
    )
    outlines = polygons(region, canvas.map_um)
    outlines = [p for p in outlines if p.area > 20_000]
    rates: dict[str, Any] = {"lymphocyte": lymphocytes_per_mm2 + (700.0 if msi else 0.0)}
    if mitoses_per_mm2:
        rates |= {
            "prophase": 0.25 * mitoses_per_mm2,
            "metaphase": 0.4 * mitoses_per_mm2,
            "anaphase": 0.15 * mitoses_per_mm2,
            "telophase": 0.15 * mitoses_per_mm2,
            "atypical mitosis": 0.05 * mitoses_per_mm2,
        }
    return Architecture(
        seed,
        canvas.labels,
        canvas.angles(depth, free.astype(np.float32)),
        lesion_table(outlines, ["carcinoma"] * len(outlines)),
        depth=depth,
        map_um=canvas.map_um,
        organ="colon",
        glands=canvas.gland_table(glands, lumens),
        regions=_regions(canvas.labels, canvas.map_um),
        grade=grade,
        per_mm2=rates,
        frozen=frozen,
        facts={"msi": msi, "stage": stage, "grade": grade, "mucus": mucus},
    )


def _regions(labels: NDArray[np.uint8], map_um: float) -> Any:
    from pathkit.synthetic.tissues import TISSUES

    nine = np.array([NINE_CLASSES.index(t.nine) for t in TISSUES], np.uint8)[labels]
    return region_table(nine, NINE_CLASSES, map_um, skip="background")


def _wall(canvas: Canvas, below: NDArray[np.float32], tissue: Mask) -> tuple[Mask, Mask]:
    """The layers with their crypts; returns the masks of glands (with lumen) and of lumens."""
    labels, rng = canvas.labels, canvas.rng
    mucosa = 430 + 40 * canvas.wave(350)
    muscularis = mucosa + 38 + 8 * canvas.wave(120)
    height = float(canvas.shape[0] * canvas.map_um)
    submucosa = muscularis + 0.20 * height + 35 * canvas.wave(500)
    propria = submucosa + 0.34 * height + 22 * canvas.wave(600)
    labels[tissue] = label("fat")
    labels[tissue & (below < propria)] = label("smooth muscle")
    between = np.abs(below - (submucosa + propria) / 2) < 10 + 6 * canvas.smooth(150)
    labels[tissue & between & (below < propria)] = label("submucosa")
    labels[tissue & (below < submucosa)] = label("submucosa")
    labels[tissue & (below < submucosa) & (canvas.smooth(220) > 1.35)] = label("fat")
    labels[tissue & (below < muscularis)] = label("smooth muscle")
    labels[tissue & (below < mucosa)] = label("lamina propria")
    in_submucosa = tissue & (below > muscularis + 40) & (below < submucosa - 40)
    canvas.vessels(in_submucosa, int(rng.integers(8, 16)), (12.0, 55.0))
    canvas.vessels(tissue & (below > 60) & (below < mucosa - 40), 10, (6.0, 12.0))
    for x, y in canvas.scatter(tissue & (np.abs(below - mucosa) < 40), 600, int(rng.integers(1, 4))):
        where, distance = canvas.blob(x, y, rng.uniform(70, 150))
        labels[where][(distance < 1) & tissue[where]] = label("lymphoid aggregate")
    glands, lumens = _crypts(canvas, below, mucosa, tissue)
    surface = tissue & (below < 24 + 4 * canvas.smooth(40))
    labels[surface] = label("crypt epithelium")
    glands |= surface
    return glands, lumens


def _crypts(canvas: Canvas, below: Any, mucosa: Any, tissue: Mask) -> tuple[Mask, Mask]:
    """Crypts side by side; where the section runs askew they are rings."""
    spacing, rng = 92.0, canvas.rng
    lean = 0.18 * canvas.smooth(500)
    along = canvas.x_um + lean * below + 7 * canvas.smooth(120)
    number = np.floor(along / spacing).astype(int)
    kinds = np.arange(number.min(), number.max() + 1)
    half = rng.uniform(27, 36, len(kinds))[number - kinds[0]]
    bottom = np.clip(mucosa - rng.uniform(14, 90, len(kinds))[number - kinds[0]], 100, None)
    shift = rng.uniform(-7, 7, len(kinds))[number - kinds[0]]
    across = along - (number + 0.5) * spacing - shift
    lengthwise = np.hypot(across, np.maximum(0, below - (bottom - half))) - half
    lengthwise = np.where(below < 8, 99.0, lengthwise)
    pitch = 84.0
    row = np.floor(below / pitch)
    ring_x = np.mod(along + (row % 2) * spacing / 2, spacing) - spacing / 2
    ring = np.hypot(ring_x * 1.05, np.mod(below, pitch) - pitch / 2 + 6 * canvas.smooth(90)) - (
        32 + 3 * canvas.smooth(150)
    )
    ring = np.where((below > mucosa - 60) | (row < 1), 99.0, ring)
    askew = canvas.smooth(700) > 0.55
    distance = np.where(askew, ring, lengthwise) + 1.5 * canvas.smooth(30)
    glands = tissue & (distance < 0) & (below < mucosa - 8)
    inner = -distance > 24 + 2 * canvas.smooth(60)
    lumens = glands & inner
    labels = canvas.labels
    labels[glands] = label("crypt epithelium")
    labels[lumens] = label("lumen")
    return glands, lumens


def _carcinoma(
    canvas: Canvas,
    tissue: Mask,
    glands: Mask,
    lumens: Mask,
    surface: Any,
    grade: int,
    stage: int,
    msi: bool,
    mucus: float,
) -> Mask:
    """Replace part of the wall by tumour; returns its mask. `glands` and `lumens` are changed in place."""
    rng, labels = canvas.rng, canvas.labels
    height, width = (n * canvas.map_um for n in canvas.shape)
    x = width * rng.uniform(0.42, 0.58)
    reach = {1: 0.30, 2: 0.52, 3: 0.72}[stage] * height
    half = width * rng.uniform(0.26, 0.36)
    u, v = (canvas.x_um - x) / half, (canvas.y_um - surface - 0.15 * reach) / (0.85 * reach)
    rough = 0.10 * canvas.smooth(260) + 0.05 * canvas.smooth(80) + 0.025 * canvas.smooth(30)
    region = (u**2 + np.where(v < 0, 1.2 * v, v) ** 2 + rough < 1) & tissue
    # Buds that have left the front.
    front = (u**2 + v**2 + rough < 1.18) & ~region & tissue & (v > 0)
    region |= front & (canvas.smooth(60) > 1.5)
    glands &= ~region
    lumens &= ~region
    labels[region] = label("cancer stroma")
    texture = canvas.smooth(150) + 0.45 * canvas.smooth(60) + 0.18 * canvas.smooth(24)
    texture /= texture.std()
    epithelium = canvas.without_crumbs(region & (texture > {1: 0.10, 2: 0.0, 3: -0.15}[grade]), 900)
    wall = canvas.inside_um(epithelium)
    opened = canvas.smooth(55)
    thick = {1: 26.0, 2: 28.0, 3: 30.0}[grade] + 4 * canvas.smooth(90)
    hollow = epithelium & (wall > thick) & (opened > {1: -1.2, 2: -0.6, 3: 1.1}[grade])
    # Further lumens within thick epithelium: cribriform places.
    hollow |= epithelium & (wall > 18) & (opened > {1: 1.3, 2: 1.35, 3: 2.4}[grade])
    solid = epithelium & (canvas.smooth(300) > {1: 2.5, 2: 1.2, 3: -0.4}[grade])
    labels[epithelium] = label("tumour glands")
    labels[solid] = label("solid tumour")
    labels[hollow] = label("tumour lumen")
    dirty = hollow & (canvas.smooth(120) > 0.7)
    labels[dirty] = label("necrosis")
    dead = region & (canvas.smooth(380) > 1.75) & (canvas.inside_um(region) > 60)
    labels[dead] = label("necrosis")
    if mucus:
        field = canvas.smooth(260) + 0.25 * canvas.smooth(70)
        pools = region & (field > np.quantile(field[region], 1 - mucus))
        floating = epithelium & (canvas.smooth(80) > 1.0)
        labels[pools & ~floating] = label("mucus")
    glands |= region & np.isin(labels, [label("tumour glands"), label("tumour lumen")])
    lumens |= region & (labels == label("tumour lumen"))
    canvas.vessels(region & (labels == label("cancer stroma")), 12, (5.0, 14.0))
    edge = canvas.inside_um(~region)
    n = int(rng.integers(7, 13)) if msi else int(rng.integers(2, 6))
    for ax, ay in canvas.scatter(tissue & ~region & (edge > 40) & (edge < 160) & ~glands, 240, n):
        where, distance = canvas.blob(ax, ay, rng.uniform(50, 130))
        free = (distance < 1) & tissue[where] & ~glands[where] & ~region[where]
        labels[where][free] = label("lymphoid aggregate")
    return region


def tumour_polygon(architecture: Architecture) -> shapely.Geometry:
    """The whole outline of the tumour."""
    return shapely.union_all(architecture.lesions["geometry"].to_list())
