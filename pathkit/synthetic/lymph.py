"""A lymph node, with or without metastases.

It is built from the outside in: fat, capsule, subcapsular sinus, cortex with follicles (mantle and germinal centre),
paracortex, medulla with cords and sinuses, vessels, and fields of sinus histiocytes, which share their mean colour with a
metastasis and keep the task honest. Metastases start at the subcapsular sinus, where lymph arrives, with an uneven front
and strands of stroma. Sizes are working values of general histology, in microns; the categories are those of the TNM system.
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pathkit.synthetic.architecture import Architecture, extent_um, label, lesion_table, polygons
from pathkit.synthetic.tissues import LABELS

__all__ = ["CATEGORIES", "lymph_node"]

_L = {name: label(name) for name in LABELS}
MAP_UM = 4.0
#: What the largest deposit makes of a node, by its greatest extent in microns: from (not included) and to.
CATEGORIES = {"normal": (0.0, 0.0), "itc": (0.0, 200.0), "micro": (200.0, 2000.0), "macro": (2000.0, np.inf)}


def lymph_node(
    seed: int, category: str = "normal", *, size_um: tuple[float, float] = (3200.0, 2600.0)
) -> Architecture:
    """A lymph node with deposits of one category.

    Parameters
    ----------
    seed : int
    category : {"normal", "itc", "micro", "macro"}
        Of the largest deposit: isolated tumour cells (up to 0.2 mm), micrometastasis (up to 2 mm), macrometastasis.
    size_um : (width, height)
        Of the slide. A macrometastasis needs at least 2600 x 2000 microns.

    Returns
    -------
    Architecture

    Raises
    ------
    ValueError
        If the category is unknown, or the slide too small for it.
    """
    if category not in CATEGORIES:
        raise ValueError(f"lymph_node: no category {category!r}; there are {', '.join(CATEGORIES)}.")
    width, height = size_um
    if min(size_um) < 400 or (category == "macro" and (width < 2600 or height < 2000)):
        raise ValueError(
            f"lymph_node: {width:g} x {height:g} µm is too small for a node with category {category!r}."
        )
    rng = np.random.default_rng([seed, 1])
    shape = (round(height / MAP_UM), round(width / MAP_UM))
    node = _node_outline(rng, shape)
    depth_um = cv2.distanceTransform(node.astype(np.uint8), cv2.DIST_L2, 5) * MAP_UM
    labels = _compartments(rng, node, depth_um)
    lesion_mask = _deposits(rng, category, node, depth_um)
    _put_tumour(rng, labels, lesion_mask)
    angle = _fibre_angle(rng, depth_um, lesion_mask)
    return Architecture(seed, labels, angle, _lesion_table(lesion_mask), map_um=MAP_UM)


def _smooth(rng: np.random.Generator, shape: tuple[int, int], scale_um: float) -> NDArray[np.float32]:
    """Gaussian noise of unit variance with features of `scale_um`."""
    coarse = tuple(max(4, int(np.ceil(n * MAP_UM / scale_um * 2)) + 4) for n in shape)
    noise = cv2.resize(
        rng.standard_normal(coarse).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC
    )
    return (noise - noise.mean()) / noise.std()


def _node_outline(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A bean: an ellipse with uneven radius and a hilum."""
    rows, cols = np.indices(shape)
    y, x = (rows / shape[0] - 0.5) * 2, (cols / shape[1] - 0.5) * 2
    tilt = rng.uniform(-0.3, 0.3)
    u, v = x * np.cos(tilt) + y * np.sin(tilt), -x * np.sin(tilt) + y * np.cos(tilt)
    theta, radius = np.arctan2(v, u), np.hypot(u, v)
    limit = rng.uniform(0.74, 0.84) + sum(
        rng.normal(0, 0.045 / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in range(2, 9)
    )
    hilum = rng.uniform(-np.pi, np.pi)
    limit -= rng.uniform(0.08, 0.2) * np.exp(-((np.angle(np.exp(1j * (theta - hilum))) / 0.25) ** 2))
    return radius < limit


def _compartments(
    rng: np.random.Generator, node: NDArray[np.bool_], depth_um: NDArray[np.float32]
) -> NDArray[np.uint8]:
    shape = node.shape
    labels = np.zeros(shape, np.uint8)
    outside_um = cv2.distanceTransform((~node).astype(np.uint8), cv2.DIST_L2, 5) * MAP_UM
    labels[~node & (outside_um < 110 + 90 * _smooth(rng, shape, 350))] = _L["fat"]
    labels[node] = _L["paracortex"]
    largest = float(depth_um.max())
    medulla = node & (depth_um > 0.45 * largest + 60 * _smooth(rng, shape, 250))
    labels[medulla] = _L["medulla"]
    cords = np.abs(_smooth(rng, shape, 110)) < 0.17
    labels[medulla & cords] = _L["sinus"]
    _put_follicles(rng, labels, depth_um, largest)
    _put_histiocytes(rng, labels, depth_um)
    thickness_um = 18 + 6 * _smooth(rng, shape, 200)
    sinus_um = thickness_um + 20 + 8 * _smooth(rng, shape, 150)
    labels[node & (depth_um < sinus_um)] = _L["sinus"]
    labels[node & (depth_um < thickness_um)] = _L["capsule"]
    _put_vessels(rng, labels, depth_um)
    return labels


def _put_follicles(
    rng: np.random.Generator, labels: NDArray[np.uint8], depth_um: NDArray[np.float32], largest: float
) -> None:
    rows, cols = np.nonzero((depth_um > 120) & (depth_um < min(340.0, 0.6 * largest)))
    n = int(rng.integers(8, 18) * labels.size * MAP_UM**2 / 8e6) + 1
    wobble = 10 * _smooth(rng, labels.shape, 60)
    most = float(np.abs(wobble).max())
    taken: list[tuple[float, float, float]] = []
    for _ in range(4 * n):
        if len(taken) >= n or not len(rows):
            break
        i = rng.integers(len(rows))
        y, x, radius = rows[i] * MAP_UM, cols[i] * MAP_UM, rng.uniform(80, 190)
        if any(np.hypot(y - b, x - a) < 0.9 * (radius + r) for b, a, r in taken):
            continue
        taken.append((y, x, radius))
        distance = _distance_um(labels.shape, x, y, rng, radius + most) + wobble
        inside = (distance < radius) & (depth_um > 50)
        labels[inside] = _L["mantle"]
        if rng.random() < 0.65:
            labels[inside & (distance < radius * rng.uniform(0.5, 0.72))] = _L["germinal centre"]


def _distance_um(
    shape: tuple[int, int], x_um: float, y_um: float, rng: np.random.Generator, reach_um: float = 1e6
) -> NDArray[np.float64]:
    """Distance from a point in a frame stretched by up to 1.4 in a random direction: ellipses. Infinite beyond `reach_um`."""
    tilt, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.4)
    rows, cols = (
        slice(max(0, int((at - 1.4 * reach_um) / MAP_UM)), min(n, int((at + 1.4 * reach_um) / MAP_UM) + 2))
        for at, n in ((y_um, shape[0]), (x_um, shape[1]))
    )
    y = np.arange(rows.start, rows.stop)[:, None] * MAP_UM - y_um
    x = np.arange(cols.start, cols.stop) * MAP_UM - x_um
    u, v = x * np.cos(tilt) + y * np.sin(tilt), -x * np.sin(tilt) + y * np.cos(tilt)
    distance = np.full(shape, np.inf)
    distance[rows, cols] = np.hypot(u / stretch, v)
    return distance


def _put_histiocytes(
    rng: np.random.Generator, labels: NDArray[np.uint8], depth_um: NDArray[np.float32]
) -> None:
    """Fields of sinus histiocytosis, in most nodes."""
    rows, cols = np.nonzero(depth_um > 60)
    for _ in range(int(rng.integers(0, 6))):
        i = rng.integers(len(rows))
        distance = _distance_um(labels.shape, cols[i] * MAP_UM, rows[i] * MAP_UM, rng)
        inside = distance + 35 * _smooth(rng, labels.shape, 70) < rng.uniform(60, 240)
        labels[inside & (depth_um > 40)] = _L["histiocytes"]


def _put_vessels(rng: np.random.Generator, labels: NDArray[np.uint8], depth_um: NDArray[np.float32]) -> None:
    rows, cols = np.nonzero(depth_um > 80)
    for _ in range(int(rng.integers(8, 20))):
        i = rng.integers(len(rows))
        distance = _distance_um(labels.shape, cols[i] * MAP_UM, rows[i] * MAP_UM, rng, 48.0)
        radius = rng.uniform(10, 38)
        labels[distance < radius + rng.uniform(5, 10)] = _L["vessel wall"]
        labels[distance < radius] = _L["blood"]


def _deposits(
    rng: np.random.Generator, category: str, node: NDArray[np.bool_], depth_um: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Mask of tumour deposits; drawn again until the largest has the extent of its category."""
    mask = np.zeros(node.shape, bool)
    if category == "normal":
        return mask
    low, high = CATEGORIES[category]
    wanted = {"itc": (40, 180), "micro": (260, 1300), "macro": (2080, 2350)}[category]
    rows, cols = np.nonzero((depth_um > 24) & (depth_um < 60))
    n = int(rng.integers(1, 4)) if category != "macro" else 1
    for number in range(n):
        for _ in range(200):
            length = rng.uniform(*wanted) if number == 0 else rng.uniform(40, min(wanted[1], 700))
            i = rng.integers(len(rows))
            one = _one_deposit(rng, length, cols[i] * MAP_UM, rows[i] * MAP_UM, node)
            largest = _largest_extent_um(mask | one)
            if low < largest <= high and one.any():
                mask |= one
                break
    if not low < _largest_extent_um(mask) <= high:
        raise RuntimeError(f"no {category} deposit found a place in this node; another seed will do")
    return mask


def _one_deposit(
    rng: np.random.Generator, length_um: float, x_um: float, y_um: float, node: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """A lump at the capsule that grows inwards, its front uneven at several scales."""
    centre_y, centre_x = (np.mean(v) * MAP_UM for v in np.nonzero(node))
    towards = np.array([centre_x - x_um, centre_y - y_um]) / np.hypot(centre_x - x_um, centre_y - y_um)
    x_um, y_um = np.array([x_um, y_um]) + towards * length_um * rng.uniform(0.15, 0.4)
    distance = _distance_um(node.shape, x_um, y_um, rng) / (length_um / 2 / 1.15)
    rough = 0.16 * _smooth(rng, node.shape, max(16, length_um / 4)) + 16 / (length_um / 2.3) * _smooth(
        rng, node.shape, 40
    )
    inside = (distance + rough < 1) & node
    _, pieces = cv2.connectedComponents(inside.astype(np.uint8))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    keep = sizes * MAP_UM**2 > (
        300 if length_um < 200 else 2000
    )  # a few cells; no crumbs around a large deposit
    return keep[pieces]


def _put_tumour(rng: np.random.Generator, labels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
    """Nests of tumour between strands of stroma; small deposits have no stroma yet."""
    if not mask.any():
        return
    labels[mask] = _L["tumour"]
    depth_um = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) * MAP_UM
    strands = np.abs(_smooth(rng, mask.shape, 110)) < 0.24
    labels[mask & strands & (depth_um > 24)] = _L["tumour stroma"]


def _fibre_angle(
    rng: np.random.Generator, depth_um: NDArray[np.float32], lesions: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Fibres run along the capsule near it, and where they like elsewhere."""
    smooth = cv2.GaussianBlur(depth_um, (0, 0), 8)
    along = np.arctan2(cv2.Sobel(smooth, cv2.CV_32F, 0, 1), cv2.Sobel(smooth, cv2.CV_32F, 1, 0)) + np.pi / 2
    free = np.pi * _smooth(rng, depth_um.shape, 300)
    return np.where((depth_um < 60) & ~lesions, along, free).astype(np.float32)


def _largest_extent_um(mask: NDArray[np.bool_]) -> float:
    return max((extent_um(p) for p in polygons(mask, MAP_UM)), default=0.0)


def _lesion_table(mask: NDArray[np.bool_]) -> pd.DataFrame:
    outlines = sorted(polygons(mask, MAP_UM), key=lambda p: -p.area)
    lengths = [extent_um(p) for p in outlines]
    categories = [next(c for c, (low, high) in CATEGORIES.items() if low < n <= high) for n in lengths]
    return lesion_table(outlines, categories)
