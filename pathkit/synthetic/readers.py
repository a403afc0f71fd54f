"""Readers: simulated people who outline, grade and count, with their bias, their noise and what they miss.

Truth is known here; what people write down is not the truth. A reader draws a little outside or inside, wavers, overlooks
small things, takes look-alikes for the real thing, and grades a little high or low. Everything follows from the reader's
seed and the object itself, so that the same reader reads the same slide the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import geopandas
import numpy as np
import pandas as pd
import shapely

from pathkit.synthetic.tissues import MITOSES

__all__ = ["READERS", "Reader"]


@dataclass(frozen=True)
class Reader:
    """One annotator.

    Attributes
    ----------
    name : str
    bias_um : float
        How far outside the edge the outline runs; negative: inside.
    wobble_um : float
        Standard deviation of the outline about that.
    overlooked_um : float
        Extent of an object that is missed half the time; 0: none is missed.
    sensitivity, mistaken : float
        Share of mitoses marked, and of look-alikes marked too.
    grade_bias, grade_noise : float
        In steps of the scale.
    seed : int

    Raises
    ------
    ValueError
        If a share is not from 0 to 1 or a spread is negative.
    """

    name: str
    bias_um: float = 0.0
    wobble_um: float = 6.0
    overlooked_um: float = 0.0
    sensitivity: float = 0.85
    mistaken: float = 0.1
    grade_bias: float = 0.0
    grade_noise: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.sensitivity <= 1 and 0 <= self.mistaken <= 1):
            raise ValueError(f"Reader {self.name}: sensitivity and mistaken are shares from 0 to 1.")
        if min(self.wobble_um, self.overlooked_um, self.grade_noise) < 0:
            raise ValueError(f"Reader {self.name}: spreads and sizes must not be negative.")

    def outline(self, annotations: geopandas.GeoDataFrame, *, mpp: float) -> geopandas.GeoDataFrame:
        """What the reader draws where the truth is `annotations` (level-0 pixels); missed objects have no row.

        Raises
        ------
        ValueError
            If `mpp` is not positive.
        """
        if not mpp > 0:
            raise ValueError(f"Reader.outline: mpp must be positive, got {mpp}.")
        drawn, kept = [], []
        for row, geometry in enumerate(annotations.geometry):
            rng = np.random.default_rng([self.seed, 21, *_key(geometry)])
            x0, y0, x1, y1 = geometry.bounds
            extent = float(np.hypot(x1 - x0, y1 - y0)) * mpp
            # A missed share that falls from one half at `overlooked_um` to nothing well above it.
            if self.overlooked_um and rng.random() < 0.5 ** ((extent / self.overlooked_um) ** 2):
                continue
            shape = _wavering(geometry.buffer(self.bias_um / mpp), self.wobble_um / mpp, 60 / mpp, rng)
            if not shape.is_empty:
                drawn.append(shape)
                kept.append(row)
        out = annotations.iloc[kept].copy()
        out["geometry"] = drawn
        return out.assign(reader=self.name)

    def grade(self, truth: Sequence[int], scale: Sequence[int]) -> np.ndarray:
        """The reader's grade of each case, one of `scale` (in order).

        Raises
        ------
        ValueError
            If a case is not on the scale.
        """
        steps = {value: i for i, value in enumerate(scale)}
        unknown = [v for v in truth if v not in steps]
        if unknown:
            raise ValueError(f"Reader.grade: {unknown[0]!r} is not on the scale {list(scale)}.")
        rng = np.random.default_rng([self.seed, 22])
        at = (
            np.array([steps[v] for v in truth])
            + self.grade_bias
            + rng.normal(0, self.grade_noise, len(truth))
        )
        return np.asarray(scale)[np.clip(np.rint(at), 0, len(scale) - 1).astype(int)]

    def count(
        self,
        objects: pd.DataFrame,
        *,
        of: Sequence[str] = MITOSES,
        like: Sequence[str] = ("pyknotic", "apoptotic"),
    ) -> pd.DataFrame:
        """The rows of an object table that the reader marks as `of`: most of them, and some that are `like` them.

        Raises
        ------
        ValueError
            If the table has no class or object_id.
        """
        missing = [c for c in ("class", "object_id") if c not in objects]
        if missing:
            raise ValueError(f"Reader.count: the object table has no column {missing[0]!r}.")
        chance = np.where(
            objects["class"].isin(of),
            self.sensitivity,
            np.where(objects["class"].isin(like), self.mistaken, 0),
        )
        numbers = objects["object_id"].to_numpy(np.int64)
        own = np.array(
            [
                np.random.default_rng([self.seed, 23, int(n)]).random() if c else 1.0
                for n, c in zip(numbers, chance, strict=True)
            ]
        )
        return objects[own < chance].assign(reader=self.name)


#: Three who differ as colleagues do.
READERS = (
    Reader(
        "reader A",
        bias_um=3,
        wobble_um=5,
        overlooked_um=40,
        sensitivity=0.9,
        mistaken=0.12,
        grade_bias=0.15,
        seed=1,
    ),
    Reader(
        "reader B",
        bias_um=-4,
        wobble_um=8,
        overlooked_um=90,
        sensitivity=0.75,
        mistaken=0.04,
        grade_bias=-0.25,
        seed=2,
    ),
    Reader(
        "reader C",
        bias_um=12,
        wobble_um=14,
        overlooked_um=60,
        sensitivity=0.85,
        mistaken=0.25,
        grade_noise=0.6,
        seed=3,
    ),
)


def _key(geometry: shapely.Geometry) -> tuple[int, ...]:
    return tuple(int(abs(v) * 16) for v in (geometry.centroid.x, geometry.centroid.y, geometry.area))


def _wavering(
    geometry: shapely.Geometry, sd: float, period: float, rng: np.random.Generator
) -> shapely.Geometry:
    """A geometry whose outline is displaced across itself by smooth noise of a standard deviation and a period."""
    if sd <= 0 or geometry.is_empty:
        return geometry
    parts = []
    for polygon in shapely.get_parts(geometry):
        rings = [_waver(ring, sd, period, rng) for ring in (polygon.exterior, *polygon.interiors)]
        parts.append(shapely.Polygon(rings[0], rings[1:]).buffer(0))
    return shapely.union_all(parts)


def _waver(ring: shapely.LinearRing, sd: float, period: float, rng: np.random.Generator) -> np.ndarray:
    n = max(24, int(ring.length / period * 8))
    at = np.linspace(0, 1, n, endpoint=False)
    points = shapely.get_coordinates(shapely.line_interpolate_point(ring, at, normalized=True))
    ahead = np.roll(points, -1, 0) - np.roll(points, 1, 0)
    normal = (
        np.stack([ahead[:, 1], -ahead[:, 0]], 1) / np.maximum(np.linalg.norm(ahead, axis=1), 1e-9)[:, None]
    )
    waves = np.arange(1, max(2, int(ring.length / period)) + 1)
    offset = sum(rng.normal() * np.cos(2 * np.pi * (k * at + rng.random())) for k in waves)
    offset = offset * sd * np.sqrt(2 / len(waves))
    return points + normal * offset[:, None]
