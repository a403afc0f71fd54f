"""Paint: concentrations of haematoxylin and eosin for any region, in optical-density units.

What lies between nuclei follows from the tissue: fibres are noise drawn out along their direction, fat is cells with a
thin rim, blood is discs, the rest is fine grain. Nuclei are ellipses with a soft, darker rim and mottled chromatin; around
them lies cytoplasm. Borders between tissues are displaced by a few microns of noise, as the label map is coarse.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from pathkit.geometry import Box
from pathkit.synthetic.architecture import LABELS, MAP_UM, Architecture
from pathkit.synthetic.noise import smooth_noise, uniform
from pathkit.synthetic.objects import CLASSES, LOOKS, nucleus_array

__all__ = ["concentrations"]

#: Of each tissue: haematoxylin, eosin, share of eosin in fibres, share in grain.
_GROUND = np.array(
    [
        (0.000, 0.000, 0.0, 0.0),  # glass
        (0.000, 0.015, 0.0, 0.3),  # fat
        (0.020, 0.420, 0.7, 0.1),  # capsule
        (0.015, 0.060, 0.2, 0.5),  # sinus
        (0.060, 0.150, 0.1, 0.4),  # paracortex
        (0.070, 0.140, 0.1, 0.4),  # mantle
        (0.050, 0.170, 0.1, 0.4),  # germinal centre
        (0.050, 0.170, 0.2, 0.4),  # medulla
        (0.030, 0.400, 0.5, 0.1),  # vessel wall
        (0.000, 0.060, 0.0, 0.2),  # blood
        (0.020, 0.190, 0.1, 0.4),  # histiocytes
        (0.050, 0.200, 0.1, 0.4),  # tumour
        (0.020, 0.300, 0.7, 0.1),  # tumour stroma
    ]
)
_FAT, _BLOOD, _TUMOUR = (LABELS.index(name) for name in ("fat", "blood", "tumour"))
_TUMOUR_CELL = CLASSES.index("tumour")
_MARGIN_UM = 22.0


def concentrations(
    architecture: Architecture, location_um: tuple[float, float], size: tuple[int, int], *, mpp: float
) -> NDArray[np.float32]:
    """Stain concentrations of a region.

    Parameters
    ----------
    architecture : Architecture
    location_um : (x, y)
        Top left corner.
    size : (width, height)
        Pixels.
    mpp : float
        Microns per pixel, above 0.

    Returns
    -------
    (height, width, 2) float32
        Haematoxylin and eosin; times the unit stain vectors they are optical densities.

    Raises
    ------
    ValueError
        If `mpp` is not positive or `size` is empty.
    """
    width, height = size
    if not mpp > 0 or width < 1 or height < 1:
        raise ValueError(f"concentrations: mpp and size must be positive, got {mpp} and {size}.")
    x_um, y_um = location_um
    out = np.empty((height, width, 2), np.float32)
    _paint_ground(out, architecture.labels, architecture.angle, _GROUND, architecture.seed, x_um, y_um, mpp)
    around = Box(
        x_um - _MARGIN_UM, y_um - _MARGIN_UM, width * mpp + 2 * _MARGIN_UM, height * mpp + 2 * _MARGIN_UM
    )
    rows = nucleus_array(architecture, around)
    _paint_nuclei(out, rows[np.lexsort((rows[:, 0], rows[:, 1]))], LOOKS, architecture.seed, x_um, y_um, mpp)
    return out


@numba.njit(cache=True, nogil=True)
def _paint_ground(out, labels, angle, ground, seed, x_um, y_um, mpp):
    rows, cols = out.shape[:2]
    for r in range(rows):
        y = y_um + (r + 0.5) * mpp
        for c in range(cols):
            x = x_um + (c + 0.5) * mpp
            # Displace the lookup, so that borders are neither knives nor stairs.
            shift_x = 5.0 * smooth_noise(x / 14.0, y / 14.0, seed + 1) + 2.0 * smooth_noise(
                x / 4.0, y / 4.0, seed + 2
            )
            shift_y = 5.0 * smooth_noise(x / 14.0, y / 14.0, seed + 3) + 2.0 * smooth_noise(
                x / 4.0, y / 4.0, seed + 4
            )
            i = min(max(int((y + shift_y) / MAP_UM), 0), labels.shape[0] - 1)
            j = min(max(int((x + shift_x) / MAP_UM), 0), labels.shape[1] - 1)
            label = labels[i, j]
            if label == 0:
                out[r, c, 0] = 0.0
                out[r, c, 1] = 0.0
                continue
            haematoxylin, eosin = ground[label, 0], ground[label, 1]
            if label == _FAT:
                eosin += _fat_rim(x, y, seed)
            elif label == _BLOOD:
                eosin += _red_cell(x, y, seed)
            else:
                grain = smooth_noise(x / 2.2, y / 2.2, seed + 5) + 0.6 * smooth_noise(
                    x / 7.0, y / 7.0, seed + 6
                )
                along = np.cos(angle[i, j]) * x + np.sin(angle[i, j]) * y
                across = -np.sin(angle[i, j]) * x + np.cos(angle[i, j]) * y
                fibre = smooth_noise(along / 34.0, across / 3.2, seed + 7)
                eosin *= max(0.05, 1 + ground[label, 2] * fibre + ground[label, 3] * grain)
                if ground[label, 2] > 0.4 and fibre < -0.62:
                    eosin *= 0.25  # clefts between fibres
                if label == _TUMOUR and smooth_noise(x / 38.0, y / 38.0, seed + 8) > 0.72:
                    eosin *= 0.15  # lumens of poorly formed glands
                haematoxylin *= 1 + 0.5 * grain
            thickness = 1 + 0.12 * smooth_noise(x / 900.0, y / 900.0, seed + 9)
            out[r, c, 0] = max(0.0, haematoxylin * thickness)
            out[r, c, 1] = max(0.0, eosin * thickness)


@numba.njit(cache=True, nogil=True)
def _fat_rim(x, y, seed):
    """Eosin of the membrane between two fat cells of about 70 µm."""
    size = 70.0
    i0, j0 = int(np.floor(x / size)), int(np.floor(y / size))
    first, second = 1e9, 1e9
    for j in range(j0 - 1, j0 + 2):
        for i in range(i0 - 1, i0 + 2):
            dx = (i + uniform(i, j, seed + 31)) * size - x
            dy = (j + uniform(i, j, seed + 32)) * size - y
            distance = np.sqrt(dx * dx + dy * dy)
            if distance < first:
                first, second = distance, first
            elif distance < second:
                second = distance
    return 0.28 * np.exp(-(((second - first) / 3.0) ** 2))


@numba.njit(cache=True, nogil=True)
def _red_cell(x, y, seed):
    """Eosin of packed red cells of 7 µm."""
    size = 6.5
    i0, j0 = int(np.floor(x / size)), int(np.floor(y / size))
    eosin = 0.0
    for j in range(j0 - 1, j0 + 2):
        for i in range(i0 - 1, i0 + 2):
            if uniform(i, j, seed + 33) < 0.75:
                dx = (i + uniform(i, j, seed + 34)) * size - x
                dy = (j + uniform(i, j, seed + 35)) * size - y
                distance = np.sqrt(dx * dx + dy * dy) / 3.5
                if distance < 1:
                    eosin = max(eosin, 0.55 * (0.75 + 0.25 * distance))
    return eosin


@numba.njit(cache=True, nogil=True)
def _paint_nuclei(out, nuclei, looks, seed, x_um, y_um, mpp):
    rows, cols = out.shape[:2]
    for n in range(nuclei.shape[0]):
        cx, cy, long_um, short_um, turn, strength, kind, texture = nuclei[n]
        look = looks[int(kind)]
        reach = max(long_um, short_um * look[6]) + 1.5
        c0, c1 = int((cx - reach - x_um) / mpp), int((cx + reach - x_um) / mpp) + 2
        r0, r1 = int((cy - reach - y_um) / mpp), int((cy + reach - y_um) / mpp) + 2
        cos, sin = np.cos(turn), np.sin(turn)
        soft = max(0.6, 0.5 * mpp) / short_um
        own = seed + int(texture)
        for r in range(max(0, r0), min(rows, r1)):
            dy = y_um + (r + 0.5) * mpp - cy
            for c in range(max(0, c0), min(cols, c1)):
                dx = x_um + (c + 0.5) * mpp - cx
                u, v = (dx * cos + dy * sin) / long_um, (-dx * sin + dy * cos) / short_um
                distance = np.sqrt(u * u + v * v)
                if distance < look[6]:
                    cytoplasm = look[7] * min(1.0, (look[6] - distance) * 4)
                    out[r, c, 1] = max(out[r, c, 1], cytoplasm)
                wavy = 0.0
                if kind == _TUMOUR_CELL:  # irregular outlines
                    wavy = 0.16 * smooth_noise(3.0 * u + texture, 3.0 * v, seed + 41)
                inside = (1 + wavy - distance) / soft
                if inside <= -1:
                    continue
                cover = min(1.0, 0.5 + 0.5 * inside)
                mottle = smooth_noise(dx / 1.1 + texture, dy / 1.1, own + 42)
                rim = np.exp(-(((distance - 0.88) / 0.16) ** 2))
                chromatin = strength * (0.85 + 0.28 * mottle)
                if strength < 0.9:  # vesicular: pale within, dark rim
                    chromatin = strength * (0.68 + 0.35 * mottle + 0.55 * rim)
                if kind == _TUMOUR_CELL and (u - 0.2) ** 2 + (v + 0.15) ** 2 < 0.05:
                    chromatin = max(chromatin, 1.0)  # nucleolus
                out[r, c, 0] = max(out[r, c, 0], cover * chromatin)
                out[r, c, 1] *= 1 - 0.55 * cover
