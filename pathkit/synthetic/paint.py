"""Paint: concentrations of the stains for any region, in optical-density units, and the cells' instances.

What lies between nuclei follows from the tissue: fibres are noise drawn out along their direction, fat is cells with a
thin rim, the rest is fine grain. Nuclei have an uneven outline, a soft, darker rim and mottled chromatin; around them lies
cytoplasm. Borders between tissues are displaced by noise, as the label map is coarse.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from pathkit.geometry import Box
from pathkit.synthetic.architecture import DEPTH_UM, Architecture, label
from pathkit.synthetic.markers import DAB, check_marker
from pathkit.synthetic.noise import add_noise, nearest_two, noise_rows, smooth_noise, uniform
from pathkit.synthetic.objects import nucleus_array
from pathkit.synthetic.tissues import (
    CLUMPED,
    DEBRIS,
    ELLIPSE,
    EMPTY,
    FAR_PLATES,
    FAT,
    FAT_CELL_UM,
    FRAGMENTS,
    GOBLET,
    GRANULES,
    MUCUS,
    PLATE,
    RED_DISC,
    SMOOTH,
    THREE_ARMS,
    TWO_PLATES,
    ground_table,
    look_table,
)

__all__ = ["STAINS", "concentrations", "instances"]

#: The last axis of what `concentrations` returns.
STAINS = ("haematoxylin", "eosin", "dab")
_MARGIN_UM = 30.0
_CLEFT = (label("cancer stroma"), label("tumour stroma"))
#: Rows of a region whose noise is laid down together: it stays in the processor's cache.
_STRIP = 16
#: Size of a unit in microns, and what is added to the seed, of the noises by which borders are displaced ...
_WARP = ((14.0, 1), (4.0, 2), (14.0, 3), (4.0, 4))
#: ... and of those of the ground: two of grain, crimp of fibres and fibrils, roughness, neighbourhoods, thickness.
_GROUND = ((2.2, 5), (7.0, 6), (17.0, 25), (17.0, 95), (0.9, 63), (70.0, 26), (900.0, 9))
#: The most by which noise draws an outline out, as a multiple of its raggedness.
_UNEVEN = 1.36
#: Distance of the places at which the direction of fibres is taken, microns.
_TURN_UM = 48.0


def concentrations(
    architecture: Architecture,
    location_um: tuple[float, float],
    size: tuple[int, int],
    *,
    mpp: float,
    marker: str | None = None,
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
    marker : str, optional
        Haematoxylin and diaminobenzidine for this marker (see `markers.MARKERS`); without it haematoxylin and eosin.

    Returns
    -------
    (height, width, 3) float32
        The `STAINS`; times the unit stain vectors they are optical densities.

    Raises
    ------
    ValueError
        If `mpp` is not positive, `size` is empty, or the marker unknown.
    """
    x_um, y_um = _checked(location_um, size, mpp)
    if marker is not None:
        check_marker(marker)
    out = np.zeros((size[1], size[0], 3), np.float32)
    _paint_ground(
        out,
        architecture.labels,
        architecture.angle,
        architecture.depth,
        architecture.map_um,
        ground_table(),
        architecture.frozen,
        architecture.seed,
        x_um,
        y_um,
        mpp,
    )
    if marker is not None:  # a pale counterstain; what binds the antibody unspecifically is a blush
        out[..., 2] = 0.10 * out[..., 1] + 0.02 * (out[..., 1] > 0.02)
        out[..., 0] = 0.45 * out[..., 0] + 0.10 * out[..., 1]
        out[..., 1] = 0
    rows = _cells_around(architecture, x_um, y_um, size, mpp, marker)
    swelling = 1.2 if architecture.frozen else 1.0
    looks = look_table(architecture.grade, swelling=swelling)
    membrane = marker is not None and check_marker(marker).membrane
    mode = 0 if marker is None else (2 if membrane else 1)
    _paint_cells(out, rows, looks, mode, DAB, architecture.seed, x_um, y_um, mpp)
    if membrane:
        _paint_membranes(out, rows, looks, DAB, architecture.seed, x_um, y_um, mpp)
    return out


def instances(
    architecture: Architecture, location_um: tuple[float, float], size: tuple[int, int], *, mpp: float
) -> NDArray[np.int64]:
    """Which cell each pixel of a region belongs to.

    Where cells overlap a pixel is the one's whose centre is nearer, measured in its own half axes.

    Returns
    -------
    (height, width) int64
        object_id of the object table, 0 where there is no nucleus or red cell.

    Raises
    ------
    ValueError
        As `concentrations`.
    """
    x_um, y_um = _checked(location_um, size, mpp)
    rows = _cells_around(architecture, x_um, y_um, size, mpp, None)
    looks = look_table(architecture.grade, swelling=1.2 if architecture.frozen else 1.0)
    return _label_cells((size[1], size[0]), rows, looks, architecture.seed, x_um, y_um, mpp)


def _checked(location_um: tuple[float, float], size: tuple[int, int], mpp: float) -> tuple[float, float]:
    width, height = size
    if not mpp > 0 or width < 1 or height < 1:
        raise ValueError(f"paint: mpp and size must be positive, got {mpp} and {size}.")
    return float(location_um[0]), float(location_um[1])


def _cells_around(
    architecture: Architecture,
    x_um: float,
    y_um: float,
    size: tuple[int, int],
    mpp: float,
    marker: str | None,
) -> NDArray[np.float64]:
    """Cells that can reach into the region, in an order that does not depend on it."""
    around = Box(
        x_um - _MARGIN_UM, y_um - _MARGIN_UM, size[0] * mpp + 2 * _MARGIN_UM, size[1] * mpp + 2 * _MARGIN_UM
    )
    rows = nucleus_array(architecture, around, marker=marker)
    return rows[np.argsort(rows[:, 8])]


@numba.njit(cache=True, nogil=True)
def _paint_ground(out, labels, angle, depth, map_um, ground, frozen, seed, x_um, y_um, mpp):
    rows, cols = out.shape[:2]
    turns = _turns(angle, map_um, x_um, y_um, cols, rows, mpp)
    place = np.empty((_STRIP, cols, 2), np.int64)
    warp = np.empty((len(_WARP), _STRIP, cols), np.float64)
    noise = np.empty((len(_GROUND), _STRIP, cols), np.float64)
    fibres = np.empty((_STRIP, cols), np.float64)
    for top in range(0, rows, _STRIP):
        height = min(_STRIP, rows - top)
        left, right = _find_places(place[:height], warp, labels, map_um, seed, x_um, y_um, mpp, top)
        if left == right:
            continue
        for k in range(len(_GROUND)):
            scale, add = _GROUND[k]
            noise_rows(noise[k, :height], left, right, x_um, y_um, top, mpp, scale, seed + add)
        _lay_fibres(
            fibres, place, noise, labels, ground, turns, seed, x_um, y_um, mpp, top, height, left, right
        )
        for r in range(height):
            y = y_um + (top + r + 0.5) * mpp
            for c in range(left, right):
                i, j = place[r, c, 0], place[r, c, 1]
                label = labels[i, j]
                if label == 0:
                    continue
                x = x_um + (c + 0.5) * mpp
                haematoxylin, eosin, look = ground[label, 0], ground[label, 1], int(ground[label, 6])
                wall_um = depth[i, j] * DEPTH_UM
                if look == FAT:
                    eosin += _fat_rim(x, y, seed)
                elif look == EMPTY:  # secretion here and there
                    eosin += (
                        0.09
                        * max(0.0, smooth_noise(x / 22.0, y / 22.0, seed + 10) - 0.25)
                        * (1 + 0.8 * smooth_noise(x / 2.5, y / 2.5, seed + 5))
                    )
                else:
                    grain = noise[0, r, c] + 0.6 * noise[1, r, c]
                    fibre = fibres[r, c]
                    eosin *= max(0.05, 1 + ground[label, 2] * fibre + ground[label, 3] * grain)
                    eosin *= 1 + 0.3 * noise[4, r, c]
                    eosin *= 1 + 0.16 * noise[5, r, c]  # whole neighbourhoods are denser or looser
                    if ground[label, 2] > 0.4 and fibre < -0.62:
                        eosin *= 0.25  # clefts between fibres
                    if look == DEBRIS:
                        dust = smooth_noise(x / 1.5, y / 1.5, seed + 27)
                        haematoxylin += 0.45 * max(0.0, dust - 0.62) / 0.38
                        eosin *= 0.75 + 0.5 * max(0.0, smooth_noise(x / 9.0, y / 9.0, seed + 28))
                    elif look == MUCUS:
                        haematoxylin *= 0.6 + 0.6 * max(0.0, fibre)
                    elif look == GOBLET and wall_um > 9:
                        inside = _vacuole(x, y, seed)
                        eosin *= 1 - 0.8 * inside
                        haematoxylin += 0.06 * inside
                    if (
                        label in _CLEFT
                        and -5.0 < wall_um < 0
                        and smooth_noise(x / 45.0, y / 45.0, seed + 29) > 0.25
                    ):
                        eosin *= 0.08  # the tissue has shrunk away from the gland
                    if label == 11 and smooth_noise(x / 38.0, y / 38.0, seed + 8) > 0.72:
                        eosin *= 0.15  # lumens of poorly formed glands
                    haematoxylin *= 1 + 0.5 * grain
                if frozen:
                    ice = smooth_noise(x / 16.0, y / 16.0, seed + 61) + 0.6 * smooth_noise(
                        x / 6.0, y / 6.0, seed + 62
                    )
                    if ice > 0.72:
                        eosin *= 0.12
                        haematoxylin *= 0.3
                thickness = 1 + 0.12 * noise[6, r, c]
                out[top + r, c, 0] = max(0.0, haematoxylin * thickness)
                out[top + r, c, 1] = max(0.0, eosin * thickness)


@numba.njit(cache=True, nogil=True)
def _find_places(place, warp, labels, map_um, seed, x_um, y_um, mpp, top):
    """Row and column of the map for each pixel of a strip, and the columns from and to which it shows tissue.

    The lookup is displaced by noise, so that borders are neither knives nor stairs.
    """
    height, cols = place.shape[:2]
    coarse, fine = 1.25 * map_um, 0.5 * map_um
    for k in range(len(_WARP)):
        scale, add = _WARP[k]
        noise_rows(warp[k, :height], 0, cols, x_um, y_um, top, mpp, scale, seed + add)
    left, right = cols, 0
    for r in range(height):
        y = y_um + (top + r + 0.5) * mpp
        for c in range(cols):
            x = x_um + (c + 0.5) * mpp
            shift_x = coarse * warp[0, r, c] + fine * warp[1, r, c]
            shift_y = coarse * warp[2, r, c] + fine * warp[3, r, c]
            i, j = _place_in_map(labels, (y + shift_y) / map_um, (x + shift_x) / map_um)
            place[r, c, 0], place[r, c, 1] = i, j
            if labels[i, j]:
                left, right = min(left, c), max(right, c + 1)
    return min(left, right), right


@numba.njit(cache=True, nogil=True)
def _place_in_map(labels, row, col):
    """Row and column of the map whose label holds most of the four around a place, so that borders run smoothly."""
    rows, cols = labels.shape
    r0, c0 = int(np.floor(row - 0.5)), int(np.floor(col - 0.5))
    fr, fc = row - 0.5 - r0, col - 0.5 - c0
    top, bottom = min(max(r0, 0), rows - 1), min(max(r0 + 1, 0), rows - 1)
    left, right = min(max(c0, 0), cols - 1), min(max(c0 + 1, 0), cols - 1)
    near_r, near_c = (bottom if fr > 0.5 else top), (right if fc > 0.5 else left)
    a, b, c, d = labels[top, left], labels[top, right], labels[bottom, left], labels[bottom, right]
    if a == b == c == d:
        return near_r, near_c
    wa, wb, wc, wd = (1 - fr) * (1 - fc), (1 - fr) * fc, fr * (1 - fc), fr * fc
    best, at_r, at_c = -1.0, near_r, near_c
    for own, r, c_, weight in (
        (a, top, left, wa),
        (b, top, right, wb),
        (c, bottom, left, wc),
        (d, bottom, right, wd),
    ):
        total = wa * (a == own) + wb * (b == own) + wc * (c == own) + wd * (d == own)
        total += 1e-6 * weight  # of the places with this label the nearest
        if total > best:
            best, at_r, at_c = total, r, c_
    return at_r, at_c


@numba.njit(cache=True, nogil=True)
def _turns(angle, map_um, x_um, y_um, cols, rows, mpp):
    """(J, I, 2) cosine and sine of the fibres' direction at the lattice around a region, and its first column and row."""
    i0, j0 = int(np.floor((x_um + 0.5 * mpp) / _TURN_UM)), int(np.floor((y_um + 0.5 * mpp) / _TURN_UM))
    i1, j1 = int(np.floor((x_um + cols * mpp) / _TURN_UM)), int(np.floor((y_um + rows * mpp) / _TURN_UM))
    turns = np.empty((j1 - j0 + 2, i1 - i0 + 2, 2), np.float64)
    for j in range(turns.shape[0]):
        for i in range(turns.shape[1]):
            r = min(max(int((j0 + j) * _TURN_UM / map_um), 0), angle.shape[0] - 1)
            c = min(max(int((i0 + i) * _TURN_UM / map_um), 0), angle.shape[1] - 1)
            turns[j, i, 0], turns[j, i, 1] = np.cos(angle[r, c]), np.sin(angle[r, c])
    return turns, i0, j0


@numba.njit(cache=True, nogil=True)
def _lay_fibres(out, place, noise, labels, ground, turns, seed, x_um, y_um, mpp, top, height, left, right):
    """Fibres and, where there are many, the fibrils within them, for the columns `left` to `right` of a strip."""
    n = right - left
    many, length_um, width_um = np.empty(n), np.empty(n), np.empty(n)
    fibrils = np.empty(n)
    for r in range(height):
        y = y_um + (top + r + 0.5) * mpp
        for c in range(n):
            label = labels[place[r, left + c, 0], place[r, left + c, 1]]
            many[c], length_um[c], width_um[c] = ground[label, 2], ground[label, 4], ground[label, 5]
        most, fibres = many.max(), out[r, left:right]
        if most > 0:
            _fibres(fibres, noise[2, r, left:right], length_um, width_um, turns, x_um, y, left, mpp, seed + 7)
        if most > 0.4:
            length_um *= 0.5
            width_um *= 0.3
            _fibres(
                fibrils, noise[3, r, left:right], length_um, width_um, turns, x_um, y, left, mpp, seed + 77
            )
        for c in range(n):
            if many[c] <= 0:
                fibres[c] = 0.0
            elif many[c] > 0.4:
                fibres[c] += 0.32 * fibrils[c]


@numba.njit(cache=True, nogil=True)
def _fibres(out, crimp, length_um, width_um, turns, x_um, y, col, mpp, seed):
    """Noise drawn out along the fibres, [-1, 1] or a little more, for a row of pixels that begins with `col`.

    Directions are taken at a lattice and the noises blended: turned by an angle that changes from place to place,
    coordinates far from the origin would be torn.
    """
    n, (table, i0, j0) = len(out), turns
    square, weight, along, across = np.zeros(n), np.empty(n), np.empty(n), np.empty(n)
    x, u, left = np.empty(n), np.empty(n), np.empty(n, np.int64)
    for c in range(n):
        x[c] = x_um + (col + c + 0.5) * mpp
        left[c] = int(np.floor(x[c] / _TURN_UM))
        u[c] = x[c] / _TURN_UM - left[c]
        u[c] = u[c] * u[c] * (3 - 2 * u[c])
        out[c] = 0
    top = int(np.floor(y / _TURN_UM))
    v = y / _TURN_UM - top
    v = v * v * (3 - 2 * v)
    cos, sin = np.empty(n), np.empty(n)
    for j in range(2):
        for i in range(2):
            for c in range(n):
                at_j, at_i = top - j0 + j, left[c] - i0 + i
                cos[c], sin[c] = table[at_j, at_i, 0], table[at_j, at_i, 1]
            for c in range(n):
                share = (u[c] if i else 1 - u[c]) * (v if j else 1 - v)
                weight[c] = share if share >= 0.02 else 0.0
                square[c] += weight[c] * weight[c]
                along[c] = (cos[c] * x[c] + sin[c] * y) / length_um[c]
                across[c] = (-sin[c] * x[c] + cos[c] * y + 0.9 * width_um[c] * crimp[c]) / width_um[c]
            add_noise(out, weight, along, across, seed)
    for c in range(n):
        out[c] /= np.sqrt(square[c])


@numba.njit(cache=True, nogil=True)
def _fat_rim(x, y, seed):
    """Eosin of the membrane between two fat cells of about 70 µm."""
    ax, ay, bx, by = nearest_two(x, y, FAT_CELL_UM, seed + 31)
    first, second = np.sqrt(ax * ax + ay * ay), np.sqrt(bx * bx + by * by)
    return 0.28 * np.exp(-(((second - first) / 3.0) ** 2))


@numba.njit(cache=True, nogil=True)
def _vacuole(x, y, seed):
    """How far inside a goblet cell's drop of mucin of about 11 µm a place lies, 0 to 1."""
    size = 13.0
    i0, j0 = int(np.floor(x / size)), int(np.floor(y / size))
    inside = 0.0
    for j in range(j0 - 1, j0 + 2):
        for i in range(i0 - 1, i0 + 2):
            if uniform(i, j, seed + 33) < 0.75:
                dx = (i + 0.2 + 0.6 * uniform(i, j, seed + 34)) * size - x
                dy = (j + 0.2 + 0.6 * uniform(i, j, seed + 35)) * size - y
                radius = 4.2 + 1.8 * uniform(i, j, seed + 36)
                inside = max(inside, min(1.0, max(0.0, (radius - np.sqrt(dx * dx + dy * dy)) / 1.2)))
    return inside


@numba.njit(cache=True, nogil=True)
def _plain(shape):
    """Whether an outline is an ellipse but for its unevenness."""
    return shape in (ELLIPSE, SMOOTH, CLUMPED, RED_DISC, GRANULES)


@numba.njit(cache=True, nogil=True)
def _outline(u, v, shape, ragged, texture, seed):
    """Distance from the centre in half axes: 1 on the outline of the nucleus. `u` and `v` are in half axes too."""
    distance = np.sqrt(u * u + v * v)
    if shape == TWO_PLATES:
        w = (abs(v) - 0.66) / 0.30
        distance = np.sqrt(u * u + w * w)
    elif shape == FAR_PLATES:
        w = (abs(v) - 0.78) / 0.20
        distance = np.sqrt(u * u + w * w) if abs(u) < 1.2 else np.sqrt(u * u + w * w) * 1.1
    elif shape == PLATE:
        distance = max(abs(u), (u * u + v * v) ** 0.5) if abs(u) > 0.8 else max(abs(v), abs(u))
    elif shape == THREE_ARMS:
        distance /= 0.42 + 0.58 * max(0.0, np.cos(3 * np.arctan2(v, u))) + 1e-6
    elif shape == FRAGMENTS:
        distance = 9.0
        for k in range(4):
            a = texture * 0.37 + 1.7 * k
            reach, size = 0.25 + 0.14 * k, 0.46 - 0.08 * k
            du, dv = u - reach * np.cos(a), v - reach * np.sin(a)
            distance = min(distance, np.sqrt(du * du + dv * dv) / size)
    if ragged > 0:
        scale = 1.7 if shape == ELLIPSE else 4.0
        distance -= ragged * (
            smooth_noise(scale * u + texture, scale * v, seed + 41)
            + 0.35 * smooth_noise(3.1 * scale * u, 3.1 * scale * v + texture, seed + 43)
        )
    return distance


@numba.njit(cache=True, nogil=True)
def _window(cx, cy, reach, x_um, y_um, mpp, rows, cols):
    c0, c1 = int((cx - reach - x_um) / mpp), int((cx + reach - x_um) / mpp) + 2
    r0, r1 = int((cy - reach - y_um) / mpp), int((cy + reach - y_um) / mpp) + 2
    return max(0, r0), min(rows, r1), max(0, c0), min(cols, c1)


@numba.njit(cache=True, nogil=True)
def _paint_cells(out, cells, looks, mode, dab, seed, x_um, y_um, mpp):
    """`mode` 0: haematoxylin and eosin; 1: the marker in the nuclei; 2: the counterstain alone."""
    counterstain = 1.0 if mode == 0 else 0.34
    for n in range(cells.shape[0]):
        cx, cy, long_um, short_um, turn, strength, kind, texture, _, defocus, level = cells[n]
        look = looks[int(kind)]
        shape, body = int(look[11]), look[6]
        reach = (
            1.25 * max(long_um, short_um, min(long_um, short_um * body) if body > 1 else 0.0, short_um * body)
            + 2.0
        )
        r0, r1, c0, c1 = _window(cx, cy, reach, x_um, y_um, mpp, out.shape[0], out.shape[1])
        cos, sin = np.cos(turn), np.sin(turn)
        soft = max(0.5 + defocus, 0.5 * mpp) / short_um
        own = seed + int(texture)
        open_chromatin = shape == ELLIPSE and strength < 0.92
        nucleolus = look[10] * 1000 > (texture * 7) % 1000
        brown = dab[int(level)] * (0.85 + 0.3 * (texture % 7) / 7)
        edge = body * short_um if shape in (ELLIPSE, SMOOTH) else body * max(3.0, short_um)
        plain, uneven = _plain(shape), _UNEVEN * look[9]
        for r in range(r0, r1):
            dy = y_um + (r + 0.5) * mpp - cy
            for c in range(c0, c1):
                dx = x_um + (c + 0.5) * mpp - cx
                a, b = dx * cos + dy * sin, -dx * sin + dy * cos
                u, v = a / long_um, b / short_um
                if plain:
                    least = np.sqrt(u * u + v * v) - uneven
                    round_um = least * short_um if shape == ELLIPSE else np.sqrt(a * a + b * b)
                    if least >= 1 + soft and (mode != 0 or round_um >= edge):
                        continue  # neither nucleus nor cytoplasm, whatever the outline
                distance = _outline(u, v, shape, look[9], texture, seed)
                if shape == RED_DISC:
                    if distance < 1:
                        if mode == 0:
                            out[r, c, 1] = max(out[r, c, 1], 0.52 * (0.72 + 0.28 * distance))
                        else:
                            out[r, c, 0] = max(out[r, c, 0], 0.06)
                    continue
                if shape == GRANULES:
                    if distance < 1 and smooth_noise(dx / 0.9 + texture, dy / 0.9, seed + 44) > 0.1:
                        out[r, c, 2] = max(out[r, c, 2], 0.9)
                    continue
                # Cytoplasm reaches as far all round, whatever the shape of the nucleus.
                around = np.sqrt(a * a + b * b) if shape != ELLIPSE else distance * short_um
                if around < edge and mode == 0:
                    cytoplasm = look[7] * min(1.0, (edge - around) * 0.7)
                    if shape in (ELLIPSE, SMOOTH, FRAGMENTS):
                        out[r, c, 1] = max(
                            out[r, c, 1], cytoplasm * (0.9 + 0.3 * smooth_noise(dx / 1.1, dy / 1.1, own))
                        )
                    else:  # dividing cells are pale around their chromosomes
                        out[r, c, 1] += min(1.0, edge - around) * (cytoplasm - out[r, c, 1])
                        out[r, c, 0] *= 0.45
                inside = (1 - distance) / soft
                if inside <= -1:
                    continue
                cover = min(1.0, 0.5 + 0.5 * inside)
                mottle = smooth_noise(dx / 1.1 + texture, dy / 1.1, own + 42) + 0.5 * smooth_noise(
                    dx / 0.55, dy / 0.55 + texture, own + 46
                )
                if shape == SMOOTH:
                    chromatin = strength
                elif shape == CLUMPED:
                    chromatin = strength * (0.72 + 0.5 * mottle)
                elif open_chromatin:  # vesicular: pale within, dark rim
                    rim = np.exp(-(((distance - 0.88) / 0.14) ** 2))
                    chromatin = strength * (0.70 + 0.36 * mottle + 0.50 * rim)
                else:
                    chromatin = strength * (0.86 + 0.24 * mottle)
                if nucleolus and (u - 0.2) ** 2 + (v + 0.15) ** 2 < 0.045:
                    chromatin = max(chromatin, 1.0)
                dark = cover * max(0.05, chromatin) * (1 - 0.25 * defocus / 1.6) * counterstain
                # Nuclei above each other absorb more than one, less than both: the section cuts them.
                low, high = min(out[r, c, 0], dark), max(out[r, c, 0], dark)
                out[r, c, 0] = high + 0.25 * low * (low > 0.25 * counterstain)
                out[r, c, 1] *= 1 - 0.85 * cover
                if mode == 1 and level > 0:
                    out[r, c, 2] = max(out[r, c, 2], cover * brown * (0.8 + 0.3 * mottle))


@numba.njit(cache=True, nogil=True)
def _paint_membranes(out, cells, looks, dab, seed, x_um, y_um, mpp):
    """The marker where a cell ends: at its own edge, or half way to its neighbour. Broken where expression is weak."""
    rows, cols = out.shape[:2]
    first, second = np.full((rows, cols), 1e9, np.float32), np.full((rows, cols), 1e9, np.float32)
    owner = np.full((rows, cols), -1, np.int32)
    for n in range(cells.shape[0]):
        cx, cy, long_um, short_um, turn = cells[n, 0], cells[n, 1], cells[n, 2], cells[n, 3], cells[n, 4]
        look, texture = looks[int(cells[n, 6])], cells[n, 7]
        if int(look[11]) == RED_DISC or int(look[11]) == GRANULES:
            continue
        edge = max(look[6] * 0.85 * short_um, short_um + 1.0)
        r0, r1, c0, c1 = _window(cx, cy, 1.6 * edge * long_um / short_um + 2, x_um, y_um, mpp, rows, cols)
        cos, sin = np.cos(turn), np.sin(turn)
        for r in range(r0, r1):
            dy = y_um + (r + 0.5) * mpp - cy
            for c in range(c0, c1):
                dx = x_um + (c + 0.5) * mpp - cx
                u, v = (dx * cos + dy * sin) / long_um, (-dx * sin + dy * cos) / short_um
                # Microns beyond the edge of the cell; negative within.
                beyond = (
                    np.sqrt(u * u + v * v) - 0.06 * smooth_noise(1.7 * u + texture, 1.7 * v, seed + 47)
                ) * short_um - edge
                if beyond < first[r, c]:
                    second[r, c] = first[r, c]
                    first[r, c] = beyond
                    owner[r, c] = n
                elif beyond < second[r, c]:
                    second[r, c] = beyond
    for r in range(rows):
        for c in range(cols):
            n = owner[r, c]
            if n < 0 or cells[n, 10] <= 0:
                continue
            level, texture = cells[n, 10], cells[n, 7]
            away = (
                min(abs(first[r, c]), 0.5 * (second[r, c] - first[r, c])) if first[r, c] < 0 else first[r, c]
            )
            ring = np.exp(-((away / (0.45 + 0.12 * level)) ** 2))
            if ring < 0.02:
                continue
            dx, dy = x_um + (c + 0.5) * mpp - cells[n, 0], y_um + (r + 0.5) * mpp - cells[n, 1]
            reach = np.sqrt(dx * dx + dy * dy) + 1e-6
            gap = smooth_noise(1.6 * dx / reach + texture, 1.6 * dy / reach, seed + 45)
            limit = 2.0 if level >= 3 else (0.45 if level >= 2 else -0.05)
            if gap < limit:
                strength = dab[int(level)] * (0.85 + 0.3 * (texture % 7) / 7)
                out[r, c, 2] = max(out[r, c, 2], ring * strength)


@numba.njit(cache=True, nogil=True)
def _label_cells(size, cells, looks, seed, x_um, y_um, mpp):
    out = np.zeros(size, np.int64)
    nearest = np.full(size, 1.0, np.float32)
    for n in range(cells.shape[0]):
        cx, cy, long_um, short_um, turn = cells[n, 0], cells[n, 1], cells[n, 2], cells[n, 3], cells[n, 4]
        look, texture = looks[int(cells[n, 6])], cells[n, 7]
        shape = int(look[11])
        reach = 1.3 * max(long_um, short_um) + mpp
        r0, r1, c0, c1 = _window(cx, cy, reach, x_um, y_um, mpp, size[0], size[1])
        cos, sin = np.cos(turn), np.sin(turn)
        for r in range(r0, r1):
            dy = y_um + (r + 0.5) * mpp - cy
            for c in range(c0, c1):
                dx = x_um + (c + 0.5) * mpp - cx
                distance = _outline(
                    (dx * cos + dy * sin) / long_um,
                    (-dx * sin + dy * cos) / short_um,
                    shape,
                    look[9],
                    texture,
                    seed,
                )
                if distance < nearest[r, c]:
                    nearest[r, c] = distance
                    out[r, c] = int(cells[n, 8])
    return out
