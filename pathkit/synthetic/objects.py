"""Objects: every nucleus of a region, as a table.

Space is divided into cells of 8.2 µm (14,900 a mm²), each of which may hold one nucleus, displaced within it and beyond;
whether it does, and of what kind, follows from the tissue at the place and a hash of the cell. Nuclei therefore crowd and
overlap as they do in sections, and a region's nuclei do not depend on what else was made.
"""

from __future__ import annotations

from collections.abc import Mapping

import numba
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pathkit.geometry import Box
from pathkit.synthetic.architecture import LABELS, MAP_UM, Architecture
from pathkit.synthetic.noise import uniform

__all__ = ["CLASSES", "DENSITY_PER_MM2", "nuclei", "nucleus_array"]

CELL_UM = 8.2
_MOST_PER_MM2 = 1e6 / CELL_UM**2
CLASSES = (
    "lymphocyte",
    "germinal centre cell",
    "histiocyte",
    "plasma cell",
    "fibroblast",
    "endothelial",
    "tumour",
)
#: Nuclei a mm² of each tissue.
DENSITY_PER_MM2 = {
    "glass": 0,
    "fat": 250,
    "capsule": 1300,
    "sinus": 3200,
    "paracortex": 11500,
    "mantle": 13500,
    "germinal centre": 6200,
    "medulla": 9000,
    "vessel wall": 3500,
    "blood": 350,
    "histiocytes": 3800,
    "tumour": 4200,
    "tumour stroma": 2200,
}
#: Which classes a tissue holds, and their shares.
MIXTURE = {
    "fat": {"fibroblast": 1.0},
    "capsule": {"fibroblast": 0.95, "lymphocyte": 0.05},
    "sinus": {"lymphocyte": 0.55, "histiocyte": 0.45},
    "paracortex": {"lymphocyte": 0.93, "histiocyte": 0.04, "endothelial": 0.03},
    "mantle": {"lymphocyte": 1.0},
    "germinal centre": {"germinal centre cell": 0.85, "lymphocyte": 0.1, "histiocyte": 0.05},
    "medulla": {"lymphocyte": 0.55, "plasma cell": 0.35, "histiocyte": 0.1},
    "vessel wall": {"endothelial": 1.0},
    "blood": {"lymphocyte": 1.0},
    "histiocytes": {"histiocyte": 0.85, "lymphocyte": 0.15},
    "tumour": {"tumour": 0.93, "lymphocyte": 0.07},
    "tumour stroma": {"fibroblast": 0.6, "lymphocyte": 0.4},
}
#: Of each class: mean radius (µm), its spread (share), long to short axis from and to, haematoxylin from and to,
#: radius of the cytoplasm relative to the nucleus, eosin of the cytoplasm.
LOOKS = np.array(
    [
        (3.5, 0.10, 1.0, 1.25, 0.75, 1.05, 1.15, 0.05),
        (4.9, 0.18, 1.0, 1.5, 0.45, 0.75, 1.35, 0.12),
        (4.4, 0.14, 1.1, 1.7, 0.38, 0.65, 2.10, 0.30),
        (3.8, 0.08, 1.0, 1.2, 0.70, 1.00, 1.90, 0.30),
        (3.0, 0.20, 3.0, 5.5, 0.60, 1.00, 1.05, 0.05),
        (2.9, 0.15, 2.2, 4.0, 0.70, 1.00, 1.10, 0.08),
        (5.6, 0.22, 1.0, 1.6, 0.38, 0.80, 1.80, 0.30),
    ]
)
#: Columns of the array of nuclei.
FIELDS = ("x_um", "y_um", "long_um", "short_um", "angle", "haematoxylin", "class", "texture")


def _mixture_table() -> NDArray[np.float64]:
    """(labels, classes): cumulative shares."""
    table = np.zeros((len(LABELS), len(CLASSES)))
    for tissue, shares in MIXTURE.items():
        for name, share in shares.items():
            table[LABELS.index(tissue), CLASSES.index(name)] = share
    return table.cumsum(1)


def nucleus_array(
    architecture: Architecture, box_um: Box, *, density: Mapping[str, float] | None = None
) -> NDArray[np.float64]:
    """Nuclei whose centre lies in a box, (N, 8) with the columns of `FIELDS`; for painting.

    Parameters
    ----------
    architecture : Architecture
    box_um : Box
    density : mapping, optional
        Nuclei a mm² for some tissues, instead of `DENSITY_PER_MM2`.

    Raises
    ------
    ValueError
        If a tissue is unknown, or a density is negative or more than cells can hold.
    """
    asked = dict(density or {})
    unknown = set(asked) - set(LABELS)
    if unknown:
        raise ValueError(f"nuclei: no tissue {sorted(unknown)[0]!r}; there are {', '.join(LABELS)}.")
    wrong = [t for t, v in asked.items() if not 0 <= v <= _MOST_PER_MM2]
    if wrong:
        raise ValueError(
            f"nuclei: density of {wrong[0]} must be 0 to {_MOST_PER_MM2:.0f} a mm², got {asked[wrong[0]]}."
        )
    chance = np.array([{**DENSITY_PER_MM2, **asked}[name] / _MOST_PER_MM2 for name in LABELS])
    return _place(
        architecture.labels,
        architecture.angle,
        chance,
        _mixture_table(),
        LOOKS,
        architecture.seed,
        *box_um.bounds,
    )


def nuclei(
    architecture: Architecture,
    box_um: Box | None = None,
    *,
    slide_id: str = "slide",
    density: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """The object table of a region, of the whole slide by default.

    Returns
    -------
    DataFrame
        slide_id, x_um, y_um, class, area_um2, long_um and short_um (half axes), angle (radians).
    """
    box_um = Box(0, 0, *architecture.size_um) if box_um is None else box_um
    rows = nucleus_array(architecture, box_um, density=density)
    table = pd.DataFrame(rows[:, :5], columns=list(FIELDS[:5]))
    table.insert(0, "slide_id", slide_id)
    table.insert(3, "class", np.array(CLASSES, dtype=object)[rows[:, 6].astype(int)])
    table.insert(4, "area_um2", np.pi * table["long_um"] * table["short_um"])
    return table


@numba.njit(cache=True, nogil=True)
def _place(labels, angle, chance, mixture, looks, seed, x0, y0, x1, y1):
    """One nucleus a cell at most; `FIELDS` of those whose centre lies in the box."""
    i0, i1 = int(np.floor(x0 / CELL_UM)) - 1, int(np.ceil(x1 / CELL_UM)) + 1
    j0, j1 = int(np.floor(y0 / CELL_UM)) - 1, int(np.ceil(y1 / CELL_UM)) + 1
    out = np.empty((max(0, (i1 - i0) * (j1 - j0)), 8))
    n = 0
    for j in range(j0, j1):
        for i in range(i0, i1):
            x = (i + 0.5 + 1.1 * (uniform(i, j, seed + 11) - 0.5)) * CELL_UM
            y = (j + 0.5 + 1.1 * (uniform(i, j, seed + 12) - 0.5)) * CELL_UM
            if not (x0 <= x < x1 and y0 <= y < y1):
                continue
            r, c = int(y / MAP_UM), int(x / MAP_UM)
            if r < 0 or c < 0 or r >= labels.shape[0] or c >= labels.shape[1]:
                continue
            label = labels[r, c]
            if uniform(i, j, seed + 13) >= chance[label]:
                continue
            pick, kind = uniform(i, j, seed + 14), 0
            while kind < mixture.shape[1] - 1 and pick >= mixture[label, kind]:
                kind += 1
            look = looks[kind]
            # A sum of three uniforms is near enough to a normal deviate, and bounded.
            normal = 2 * (uniform(i, j, seed + 15) + uniform(i, j, seed + 16) + uniform(i, j, seed + 17)) - 3
            radius = look[0] * (1 + look[1] * 1.7 * normal)
            ratio = look[2] + (look[3] - look[2]) * uniform(i, j, seed + 18)
            turn = np.pi * uniform(i, j, seed + 19)
            if ratio > 2:  # spindle cells lie along the fibres
                turn = angle[r, c] + 0.4 * (uniform(i, j, seed + 19) - 0.5)
            out[n, 0], out[n, 1] = x, y
            out[n, 2], out[n, 3] = radius * np.sqrt(ratio), radius / np.sqrt(ratio)
            out[n, 4] = turn
            out[n, 5] = look[4] + (look[5] - look[4]) * uniform(i, j, seed + 20)
            out[n, 6], out[n, 7] = kind, float(int(uniform(i, j, seed + 21) * 1000))
            n += 1
    return out[:n]
