"""Objects: every cell of a region, as a table.

Space is divided into squares of 8.2 µm (14,900 a mm²), each of which may hold one cell, displaced within it and beyond;
whether it does, and of what class, follows from the tissue at the place and a hash of the square. Cells therefore crowd and
overlap as they do in sections, and a region's cells do not depend on what else was made. In lined glands they stand in a
row above the basement membrane; in fat they are flattened against the wall of a cell.
"""

from __future__ import annotations

from collections.abc import Mapping

import numba
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pathkit.geometry import Box
from pathkit.synthetic.architecture import DEPTH_UM, Architecture
from pathkit.synthetic.noise import nearest_two, smooth_noise, uniform
from pathkit.synthetic.tissues import (
    CLASSES,
    DENSITY_PER_MM2,
    FAT_CELL_UM,
    LABELS,
    MALIGNANT,
    band_table,
    look_table,
    mixture_table,
)

__all__ = ["FIELDS", "nuclei", "nucleus_array"]

CELL_UM = 8.2
_MOST_PER_MM2 = 1e6 / CELL_UM**2
#: Columns of the array of cells: half axes in microns, `texture` seeds what is drawn, `defocus` is in microns, `marker`
#: is the level of an immunohistochemical marker, 0 to 3.
FIELDS = (
    "x_um",
    "y_um",
    "long_um",
    "short_um",
    "angle",
    "haematoxylin",
    "class",
    "texture",
    "object_id",
    "defocus",
    "marker",
)
#: How far a cell may be moved into its row, or to the wall of its fat cell.
_REACH_UM = 48.0
_FAT = LABELS.index("fat")


def nucleus_array(
    architecture: Architecture,
    box_um: Box,
    *,
    density: Mapping[str, float] | None = None,
    marker: str | None = None,
) -> NDArray[np.float64]:
    """Cells whose centre lies in a box, (N, 11) with the columns of `FIELDS`; for painting.

    Parameters
    ----------
    architecture : Architecture
    box_um : Box
    density : mapping, optional
        Cells a mm² for some tissues, instead of `DENSITY_PER_MM2`.
    marker : str, optional
        The immunohistochemical marker whose levels fill the last column.

    Raises
    ------
    ValueError
        If a tissue is unknown, or a density is negative or more than the squares can hold.
    """
    from pathkit.synthetic.markers import levels

    asked = dict(density or {})
    unknown = set(asked) - set(LABELS)
    if unknown:
        raise ValueError(f"nuclei: no tissue {sorted(unknown)[0]!r}; there are {', '.join(LABELS)}.")
    wrong = [t for t, v in asked.items() if not 0 <= v <= _MOST_PER_MM2]
    if wrong:
        raise ValueError(
            f"nuclei: density of {wrong[0]} must be 0 to {_MOST_PER_MM2:.0f} a mm², got {asked[wrong[0]]}."
        )
    extra = sum(architecture.per_mm2.values())
    per_mm2 = {t: d + extra if t in MALIGNANT else d for t, d in DENSITY_PER_MM2.items()}
    chance = np.array([min({**per_mm2, **asked}[name], _MOST_PER_MM2) / _MOST_PER_MM2 for name in LABELS])
    rows = _place(
        architecture.labels,
        architecture.angle,
        architecture.depth,
        architecture.map_um,
        chance,
        mixture_table(architecture.per_mm2),
        look_table(architecture.grade, swelling=1.2 if architecture.frozen else 1.0),
        band_table(),
        architecture.seed,
        *box_um.bounds,
    )
    if marker is not None:
        rows[:, 10] = levels(architecture, rows, marker)
    return rows


def nuclei(
    architecture: Architecture,
    box_um: Box | None = None,
    *,
    slide_id: str = "slide",
    density: Mapping[str, float] | None = None,
    marker: str | None = None,
) -> pd.DataFrame:
    """The object table of a region, of the whole slide by default.

    Returns
    -------
    DataFrame
        slide_id, object_id, x_um, y_um, class, area_um2 (of the ellipse), long_um and short_um (half axes), angle
        (radians), tissue, and, with a marker, its level 0 to 3.
    """
    box_um = Box(0, 0, *architecture.size_um) if box_um is None else box_um
    rows = nucleus_array(architecture, box_um, density=density, marker=marker)
    table = pd.DataFrame(rows[:, :5], columns=list(FIELDS[:5]))
    table.insert(0, "slide_id", slide_id)
    table.insert(1, "object_id", rows[:, 8].astype(np.int64))
    table.insert(4, "class", np.array(CLASSES, dtype=object)[rows[:, 6].astype(int)])
    table.insert(5, "area_um2", np.pi * table["long_um"] * table["short_um"])
    r, c = (rows[:, k] // architecture.map_um for k in (1, 0))
    table["tissue"] = np.array(LABELS, dtype=object)[architecture.labels[r.astype(int), c.astype(int)]]
    if marker is not None:
        table["level"] = rows[:, 10].astype(np.int8)
    return table


def _place(labels, angle, depth, map_um, chance, mixture, looks, bands, seed, x0, y0, x1, y1):
    """`FIELDS` of the cells whose centre lies in the box: drawn in a wider one, moved apart, cut to it."""
    margin = int(_REACH_UM / CELL_UM) + 6
    i0, i1 = int(np.floor(x0 / CELL_UM)) - margin, int(np.ceil(x1 / CELL_UM)) + margin
    j0, j1 = int(np.floor(y0 / CELL_UM)) - margin, int(np.ceil(y1 / CELL_UM)) + margin
    cells = np.zeros((max(0, j1 - j0), max(0, i1 - i0), 11))
    there = _drawn(cells, labels, angle, depth, map_um, chance, mixture, looks, bands, seed, i0, j0)
    rows = _apart(cells, there, labels, map_um)
    kept = (rows[:, 0] >= x0) & (rows[:, 0] < x1) & (rows[:, 1] >= y0) & (rows[:, 1] < y1)
    return rows[kept]


@numba.njit(cache=True, nogil=True)
def _drawn(cells, labels, angle, depth, map_um, chance, mixture, looks, bands, seed, i0, j0):
    """One cell a square at most, into `cells`; returns which squares hold one."""
    there = np.zeros(cells.shape[:2], np.bool_)
    for b in range(cells.shape[0]):
        for a in range(cells.shape[1]):
            i, j, out = i0 + a, j0 + b, cells[b, a]
            x = (i + 0.5 + 1.1 * (uniform(i, j, seed + 11) - 0.5)) * CELL_UM
            y = (j + 0.5 + 1.1 * (uniform(i, j, seed + 12) - 0.5)) * CELL_UM
            r, c = int(np.floor(y / map_um)), int(np.floor(x / map_um))
            if r < 0 or c < 0 or r >= labels.shape[0] or c >= labels.shape[1]:
                continue
            label = labels[r, c]
            if uniform(i, j, seed + 13) >= chance[label]:
                continue
            if bands[label, 0] >= 0:
                here = depth[r, c] * DEPTH_UM
                if not bands[label, 0] <= here <= bands[label, 1]:
                    continue
                if bands[label, 2] >= 0:  # stands in a row: moved across the wall
                    wanted = bands[label, 2] + 1.6 * (uniform(i, j, seed + 22) - 0.5)
                    x += (wanted - here) * np.cos(angle[r, c])
                    y += (wanted - here) * np.sin(angle[r, c])
                    r, c = int(np.floor(y / map_um)), int(np.floor(x / map_um))
                    if (
                        r < 0
                        or c < 0
                        or r >= labels.shape[0]
                        or c >= labels.shape[1]
                        or labels[r, c] != label
                    ):
                        continue
            across = 0.0
            if (
                label == _FAT
            ):  # to the wall between the two nearest fat cells, which stands across the line between them
                ax, ay, bx, by = nearest_two(x, y, FAT_CELL_UM, seed + 31)
                gap = max(1e-6, np.sqrt((bx - ax) ** 2 + (by - ay) ** 2))
                step = 0.5 * (bx * bx + by * by - ax * ax - ay * ay) / gap - 1.2
                if step > _REACH_UM:
                    continue
                across = np.arctan2(by - ay, bx - ax)
                x += step * np.cos(across)
                y += step * np.sin(across)
                r, c = int(np.floor(y / map_um)), int(np.floor(x / map_um))
                if r < 0 or c < 0 or r >= labels.shape[0] or c >= labels.shape[1] or labels[r, c] != label:
                    continue
            pick, kind = uniform(i, j, seed + 14), 0
            while kind < mixture.shape[1] - 1 and pick >= mixture[label, kind]:
                kind += 1
            look = looks[kind]
            # A sum of three uniforms is near enough to a normal deviate, and bounded.
            normal = 2 * (uniform(i, j, seed + 15) + uniform(i, j, seed + 16) + uniform(i, j, seed + 17)) - 3
            radius = look[0] * min(2.0, max(0.55, 1 + look[1] * normal))
            ratio = look[2] + (look[3] - look[2]) * uniform(i, j, seed + 18)
            out[0], out[1] = x, y
            out[2], out[3] = radius * np.sqrt(ratio), radius / np.sqrt(ratio)
            out[4] = angle[r, c] + np.pi * look[8] * (uniform(i, j, seed + 19) - 0.5)
            if label == _FAT:
                out[4] = across + 0.5 * np.pi
            # Stains vary over tens of microns as well as from cell to cell.
            tone = 0.7 * uniform(i, j, seed + 20) + 0.15 * (1 + smooth_noise(x / 60.0, y / 60.0, seed + 23))
            out[5] = look[4] + (look[5] - look[4]) * tone
            out[6], out[7] = kind, float(int(uniform(i, j, seed + 21) * 1000))
            out[8] = float(j + 1024) * 1048576.0 + float(i + 1024)
            out[9] = 1.6 * max(0.0, uniform(i, j, seed + 24) - 0.85) / 0.15
            there[b, a] = True
    return there


@numba.njit(cache=True, nogil=True)
def _apart(cells, there, labels, map_um):
    """The cells as rows, each moved away from those that it overlaps, within its tissue."""
    rows = np.empty((there.sum(), 11))
    n = 0
    for b in range(there.shape[0]):
        for a in range(there.shape[1]):
            if not there[b, a]:
                continue
            one = cells[b, a]
            radius, push_x, push_y = np.sqrt(one[2] * one[3]), 0.0, 0.0
            for q in range(max(0, b - 2), min(there.shape[0], b + 3)):
                for p in range(max(0, a - 2), min(there.shape[1], a + 3)):
                    if not there[q, p] or (q == b and p == a):
                        continue
                    other = cells[q, p]
                    dx, dy = one[0] - other[0], one[1] - other[1]
                    distance = np.sqrt(dx * dx + dy * dy) + 1e-6
                    overlap = 0.95 * (radius + np.sqrt(other[2] * other[3])) - distance
                    if overlap > 0:
                        push_x += 0.5 * overlap * dx / distance
                        push_y += 0.5 * overlap * dy / distance
            push = np.sqrt(push_x * push_x + push_y * push_y)
            if push > 4.0:
                push_x, push_y = push_x * 4.0 / push, push_y * 4.0 / push
            rows[n] = one
            r, c = int(np.floor((one[1] + push_y) / map_um)), int(np.floor((one[0] + push_x) / map_um))
            was = labels[int(np.floor(one[1] / map_um)), int(np.floor(one[0] / map_um))]
            if 0 <= r < labels.shape[0] and 0 <= c < labels.shape[1] and labels[r, c] == was:
                rows[n, 0] += push_x
                rows[n, 1] += push_y
            n += 1
    return rows
