"""Architecture: which tissue lies where, as a label map in microns, before any cell is drawn.

`Canvas` holds what the organs share: smooth noise, distances, placing, and the step from a map to polygons. Each organ is a
module of its own (`lymph`, `colon`, `prostate`, `breast`) that returns an `Architecture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from pathkit.synthetic.tissues import CLASSES, LABELS, NINE_CLASSES, TISSUES

__all__ = ["DEPTH_UM", "Architecture", "Canvas", "label"]

#: Microns of one step of `Architecture.depth`.
DEPTH_UM = 0.5
Mask = NDArray[np.bool_]


def label(name: str) -> int:
    """The value of a tissue in the label map."""
    return LABELS.index(name)


def empty_regions() -> pd.DataFrame:
    """A table of regions without a row."""
    return pd.DataFrame({"class": [], "area_um2": [], "geometry": []})


@dataclass
class Architecture:
    """What a slide shows, before any cell is drawn.

    Attributes
    ----------
    seed : int
    labels : (H, W) uint8
        Values index `tissues.LABELS`; `map_um` microns per pixel.
    angle : (H, W) float32
        Direction of fibres, and in epithelium of its cells' height, radians.
    lesions : DataFrame
        lesion_id, category, length_um (greatest extent), area_um2, geometry (polygon in microns).
    depth : (H, W) int8
        Distance to the wall of the nearest gland in steps of `DEPTH_UM`: inside positive, outside negative.
    map_um : float
    organ : str
    glands : DataFrame
        gland_id, class (tissue of its epithelium), area_um2, lumen_um2, geometry (with the lumen).
    regions : DataFrame
        class, area_um2, geometry: what a pathologist would outline.
    grade : int
        1 to 3: of the tumour's nuclei.
    per_mm2 : mapping
        Rare cells added to tumour tissue: mitoses, their look-alikes, lymphocytes.
    markers : mapping
        Of each immunohistochemical marker what is expressed (see `markers`).
    frozen : bool
        A frozen section: holes of ice, swollen pale nuclei.
    facts : mapping
        What else is true of the slide.

    Raises
    ------
    ValueError
        If `map_um` is not positive, the grade is none, or a rare cell is unknown or its number negative.
    """

    seed: int
    labels: NDArray[np.uint8]
    angle: NDArray[np.float32]
    lesions: pd.DataFrame = field(repr=False)
    depth: NDArray[np.int8] | None = field(default=None, repr=False)
    map_um: float = 4.0
    organ: str = "lymph node"
    glands: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    regions: pd.DataFrame = field(default_factory=empty_regions, repr=False)
    grade: int = 2
    per_mm2: Mapping[str, float] = field(default_factory=dict)
    markers: Mapping[str, Any] = field(default_factory=dict)
    frozen: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.map_um > 0:
            raise ValueError(f"Architecture: map_um must be positive, got {self.map_um}.")
        if self.grade not in (1, 2, 3):
            raise ValueError(f"Architecture: grade is 1, 2 or 3, got {self.grade!r}.")
        for name, rate in self.per_mm2.items():
            if name not in CLASSES:
                raise ValueError(f"Architecture: no cell {name!r}; there are {', '.join(CLASSES)}.")
            if not rate >= 0:
                raise ValueError(f"Architecture: cells a mm² must not be negative, got {rate} of {name}.")
        if self.depth is None:
            self.depth = np.full(self.labels.shape, -127, np.int8)

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height of the slide."""
        height, width = self.labels.shape
        return width * self.map_um, height * self.map_um

    @property
    def category(self) -> str:
        """normal, or the category of the largest lesion."""
        if not len(self.lesions):
            return "normal"
        return str(self.lesions.loc[self.lesions["length_um"].idxmax(), "category"])

    def area_mm2(self, *tissues: str) -> float:
        """Area of some tissues together."""
        return float(np.isin(self.labels, [label(t) for t in tissues]).sum() * self.map_um**2 / 1e6)

    def nine_map(self) -> NDArray[np.uint8]:
        """(H, W): which of the nine classes of NCT-CRC a place belongs to, as index of `NINE_CLASSES`."""
        return np.array([NINE_CLASSES.index(t.nine) for t in TISSUES], np.uint8)[self.labels]


class Canvas:
    """A label map in the making.

    Parameters
    ----------
    seed : int or sequence of int
    size_um : (width, height)
    map_um : float
    """

    def __init__(self, seed: Any, size_um: tuple[float, float], map_um: float = 2.0):
        self.rng = np.random.default_rng(seed)
        self.map_um = map_um
        self.shape = (round(size_um[1] / map_um), round(size_um[0] / map_um))
        self.labels = np.zeros(self.shape, np.uint8)
        self.y_um = ((np.arange(self.shape[0], dtype=np.float32) + 0.5) * map_um)[:, None]
        self.x_um = ((np.arange(self.shape[1], dtype=np.float32) + 0.5) * map_um)[None, :]

    def smooth(self, scale_um: float) -> NDArray[np.float32]:
        """Gaussian noise of unit variance with features of `scale_um`."""
        coarse = tuple(max(4, int(np.ceil(n * self.map_um / scale_um * 2)) + 4) for n in self.shape)
        noise = cv2.resize(
            self.rng.standard_normal(coarse).astype(np.float32),
            self.shape[::-1],
            interpolation=cv2.INTER_CUBIC,
        )
        return (noise - noise.mean()) / noise.std()

    def wave(self, scale_um: float, along: int = 1) -> NDArray[np.float32]:
        """`smooth` of one coordinate: a wavy line, to be broadcast. `along` is the axis that it runs along."""
        n = self.shape[along]
        coarse = max(4, int(np.ceil(n * self.map_um / scale_um * 2)) + 4)
        line = cv2.resize(
            self.rng.standard_normal((1, coarse)).astype(np.float32), (n, 1), interpolation=cv2.INTER_CUBIC
        )[0]
        line = (line - line.mean()) / max(float(line.std()), 1e-6)
        return line[None, :] if along == 1 else line[:, None]

    def inside_um(self, mask: Mask) -> NDArray[np.float32]:
        """Distance of each place of a mask to its edge."""
        steps = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
        # Where nothing is outside the mask, cv2 gives the largest number there is.
        return np.minimum(steps, 1e6) * np.float32(self.map_um)

    def without_crumbs(self, mask: Mask, least_um2: float) -> Mask:
        """A mask without its pieces smaller than an area."""
        _n, pieces, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
        keep = facts[:, cv2.CC_STAT_AREA] * self.map_um**2 >= least_um2
        keep[0] = False
        return np.asarray(keep[pieces], bool)

    def window(
        self, x_um: float, y_um: float, reach_um: float
    ) -> tuple[tuple[slice, slice], NDArray[np.float32], NDArray[np.float32]]:
        """Slices around a place, with the distances in x and y from it."""
        r0 = max(0, int((y_um - reach_um) / self.map_um))
        c0 = max(0, int((x_um - reach_um) / self.map_um))
        rows = slice(r0, max(r0, int((y_um + reach_um) / self.map_um) + 1))
        cols = slice(c0, max(c0, int((x_um + reach_um) / self.map_um) + 1))
        return (rows, cols), self.x_um[:, cols] - x_um, self.y_um[rows] - y_um

    def blob(
        self, x_um: float, y_um: float, radius_um: float, *, stretch: float = 1.4, rough: float = 0.1
    ) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
        """Distance from a place over the radius of an uneven ellipse around it, in a window: below 1 is inside."""
        rng = self.rng
        where, dx, dy = self.window(x_um, y_um, radius_um * stretch * (1.2 + 2 * rough))
        tilt, long = rng.uniform(0, np.pi), np.sqrt(rng.uniform(1, stretch))
        u, v = dx * np.cos(tilt) + dy * np.sin(tilt), -dx * np.sin(tilt) + dy * np.cos(tilt)
        theta = np.arctan2(v, u)
        edge = np.float32(1.0) + sum(
            (rough * rng.normal() / np.sqrt(k)) * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
            for k in range(2, 6)
        )
        return where, (np.hypot(u / long, v * long) / (radius_um * np.maximum(edge, 0.3))).astype(np.float32)

    def scatter(self, allowed: Mask, spacing_um: float, most: int) -> NDArray[np.float64]:
        """(N, 2) x and y of places in a mask, none closer to another than the spacing."""
        rows, cols = np.nonzero(allowed)
        places: list[tuple[float, float]] = []
        if not len(rows):
            return np.zeros((0, 2))
        for i in self.rng.integers(len(rows), size=12 * most):
            x, y = (cols[i] + 0.5) * self.map_um, (rows[i] + 0.5) * self.map_um
            if all((x - a) ** 2 + (y - b) ** 2 > spacing_um**2 for a, b in places):
                places.append((float(x), float(y)))
                if len(places) == most:
                    break
        return np.array(places).reshape(-1, 2)

    def vessels(self, allowed: Mask, n: int, radius_um: tuple[float, float] = (10.0, 38.0)) -> None:
        """Vessels with their wall and blood."""
        for x, y in self.scatter(allowed, 3 * radius_um[1], n):
            radius = self.rng.uniform(*radius_um)
            where, distance = self.blob(x, y, radius + 8, rough=0.05)
            part = self.labels[where]
            inner = radius / (radius + 8)
            part[(distance < 1) & allowed[where]] = label("vessel wall")
            part[(distance < inner) & allowed[where]] = label("blood")

    def depth_of(self, glands: Mask) -> NDArray[np.int8]:
        """`Architecture.depth` of a mask of glands."""
        signed = self.inside_um(glands) - self.inside_um(~glands)
        signed = np.where(glands, signed - self.map_um / 2, signed + self.map_um / 2)
        return np.clip(np.rint(signed / DEPTH_UM), -127, 127).astype(np.int8)

    def angles(self, depth: NDArray[np.int8], free: NDArray[np.float32]) -> NDArray[np.float32]:
        """Across the wall in glands, along it just outside, and `free` elsewhere; outside, turning over about 100 µm.

        Directions without a sense are averaged as vectors of twice their angle: fibres that turned from one lattice place
        to the next (`paint`) would look woven.
        """
        smooth = cv2.GaussianBlur(depth.astype(np.float32), (0, 0), max(1.0, 5 / self.map_um))
        across = np.arctan2(cv2.Sobel(smooth, cv2.CV_32F, 0, 1), cv2.Sobel(smooth, cv2.CV_32F, 1, 0))
        outside = depth < 0
        near = outside & (depth > -25 / DEPTH_UM)
        twice = 2 * np.where(near, across + np.pi / 2, free)
        weight = np.where(outside, np.where(near, 3.0, 1.0), 1e-3)
        parts = [weight * f(twice) for f in (np.cos, np.sin)]
        cos, sin = (cv2.GaussianBlur(part.astype(np.float32), (0, 0), 50 / self.map_um) for part in parts)
        return np.where(outside, np.arctan2(sin, cos) / 2, across).astype(np.float32)

    def gland_table(self, glands: Mask, lumens: Mask, *, least_um2: float = 200.0) -> pd.DataFrame:
        """Connected glands with their lumen, the tissue of most of their wall, and their outline."""
        n, pieces = cv2.connectedComponents(glands.astype(np.uint8), connectivity=4)
        wall = glands & ~lumens
        counts = np.bincount(
            pieces[wall].astype(np.int64) * len(LABELS) + self.labels[wall], minlength=n * len(LABELS)
        ).reshape(n, len(LABELS))
        lumen = np.bincount(pieces[lumens & glands], minlength=n) * self.map_um**2
        rows = []
        for polygon in polygons(glands, self.map_um, holes=False):
            at = polygon.representative_point()
            number = pieces[int(at.y / self.map_um), int(at.x / self.map_um)]
            if polygon.area >= least_um2 and number and counts[number].any():
                rows.append((LABELS[int(counts[number].argmax())], polygon.area, lumen[number], polygon))
        table = pd.DataFrame(rows, columns=["class", "area_um2", "lumen_um2", "geometry"])
        table.insert(0, "gland_id", np.arange(len(table)))
        return table


def region_table(
    values: NDArray[np.uint8],
    names: tuple[str, ...],
    map_um: float,
    *,
    least_um: float = 24.0,
    skip: str = "",
) -> pd.DataFrame:
    """What a pathologist would outline: a map without details finer than `least_um`, as polygons by class."""
    shares = [
        cv2.GaussianBlur((values == k).astype(np.float32), (0, 0), least_um / 2 / map_um)
        for k in range(len(names))
    ]
    coarse = np.argmax(shares, axis=0)
    rows = [
        (name, polygon.area, polygon)
        for k, name in enumerate(names)
        if name != skip
        for polygon in polygons(coarse == k, map_um)
        if polygon.area > least_um**2
    ]
    return pd.DataFrame(rows, columns=["class", "area_um2", "geometry"])


def polygons(mask: Mask, map_um: float, *, holes: bool = True) -> list[shapely.Polygon]:
    """Outlines of the connected pieces, in microns."""
    fine = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return []
    # Of pixels twice as fine. cv2 runs through the middle of the edge pixels, so that half of one of them is lost all round,
    # and pieces that touch at a corner give a ring that touches itself: valid, it falls apart into areas and lines. The
    # half pixel given back makes it whole again.
    rings = [(c[:, 0] + 0.5) * map_um / 2 for c in contours]
    out: list[shapely.Polygon] = []
    for i, (_, _, _, parent) in enumerate(hierarchy[0]):
        if parent < 0 and len(rings[i]) > 3:
            inner = (
                [rings[k] for k, h in enumerate(hierarchy[0]) if h[3] == i and len(rings[k]) > 3]
                if holes
                else []
            )
            valid = shapely.make_valid(shapely.Polygon(rings[i], inner), method="structure")
            whole = shapely.buffer(valid, map_um / 4, join_style="mitre", cap_style="square")
            out += [p for p in shapely.get_parts(whole) if p.area > 0]
    return out


def extent_um(polygon: shapely.Polygon) -> float:
    """Greatest distance between two points."""
    hull = shapely.get_coordinates(polygon.convex_hull)
    return float(np.hypot(*(hull[:, None] - hull[None]).transpose(2, 0, 1)).max())


def lesion_table(outlines: list[shapely.Polygon], categories: list[str]) -> pd.DataFrame:
    """The `Architecture.lesions` of some outlines."""
    return pd.DataFrame(
        {
            "lesion_id": np.arange(len(outlines)),
            "category": categories,
            "length_um": [extent_um(p) for p in outlines],
            "area_um2": [p.area for p in outlines],
            "geometry": outlines,
        }
    )
