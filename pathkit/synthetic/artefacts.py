"""Artefacts: what goes wrong with a section, its glass and its scan, each with its outline as truth.

Folds and tears happen to the tissue, before the light; pen, bubbles, dust and scratches lie on the glass; focus is lost in
the scanner. Outlines are polygons in microns, so that an artefact does not depend on the region that is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

from pathkit.synthetic.architecture import Architecture

__all__ = ["KINDS", "Artefact", "artefact_mask", "random_artefacts"]

#: In the order in which they are applied.
KINDS = ("fold", "tear", "out of focus", "bubble", "pen", "dust", "scratch")
_PEN = {
    "blue": (0.16, 0.26, 0.62),
    "green": (0.15, 0.48, 0.30),
    "black": (0.10, 0.10, 0.12),
    "red": (0.70, 0.14, 0.18),
}


@dataclass(frozen=True)
class Artefact:
    """One artefact.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    geometry : Polygon or MultiPolygon
        In microns.
    strength : float
        Fold: times the thickness that is added. Out of focus: sigma of the blur in microns. Others: 0 to 1.
    colour : str
        Of pen.
    """

    kind: str
    geometry: shapely.Geometry
    strength: float = 1.0
    colour: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Artefact: no kind {self.kind!r}; there are {', '.join(KINDS)}.")
        if not self.strength > 0 or self.geometry.is_empty:
            raise ValueError(f"Artefact: {self.kind} needs a strength above 0 and an area.")
        if self.kind == "pen" and self.colour not in _PEN:
            raise ValueError(f"Artefact: pen is {', '.join(_PEN)}, not {self.colour!r}.")


def random_artefacts(
    architecture: Architecture, kinds: Sequence[str] = KINDS, *, seed: int = 0
) -> list[Artefact]:
    """One artefact of each kind, on the tissue where that is where it happens.

    Raises
    ------
    ValueError
        If a kind is unknown.
    """
    unknown = [k for k in kinds if k not in KINDS]
    if unknown:
        raise ValueError(f"random_artefacts: no kind {unknown[0]!r}; there are {', '.join(KINDS)}.")
    rng = np.random.default_rng([architecture.seed, seed, 5])
    rows, cols = np.nonzero(architecture.labels)
    frame = shapely.box(0, 0, *architecture.size_um)
    out = []
    for kind in [k for k in KINDS if k in kinds]:
        while True:
            i = rng.integers(len(rows)) if len(rows) else 0
            at = (
                np.array([cols[i], rows[i]]) * architecture.map_um
                if len(rows)
                else rng.random(2) * architecture.size_um
            )
            geometry, strength, colour = _drawn(rng, kind, at, architecture.size_um)
            geometry = geometry.intersection(frame)
            if not geometry.is_empty:
                break
        out.append(Artefact(kind, geometry, strength, colour))
    return out


def _drawn(
    rng: np.random.Generator, kind: str, at: NDArray[np.float64], size_um: tuple[float, float]
) -> tuple[shapely.Geometry, float, str]:
    scale = min(size_um)
    if kind == "fold":
        line = _stroke(rng, at, scale * rng.uniform(0.3, 0.6), bend=0.12)
        return line.buffer(rng.uniform(14, 40)), rng.uniform(0.8, 1.4), ""
    if kind == "tear":
        line = _stroke(rng, at, scale * rng.uniform(0.15, 0.4), bend=0.2)
        wedges = [shapely.Point(p).buffer(rng.uniform(8, 34)) for p in line.coords]
        return shapely.union_all([line.buffer(9), *wedges]), 1.0, ""
    if kind == "out of focus":
        return _spot(rng, at, scale * rng.uniform(0.12, 0.25)), rng.uniform(3.0, 6.0), ""
    if kind == "bubble":
        return _spot(rng, at, scale * rng.uniform(0.08, 0.18), rough=0.03), 1.0, ""
    if kind == "pen":
        line = _stroke(rng, at, scale * rng.uniform(0.4, 0.8), bend=0.3)
        return line.buffer(rng.uniform(60, 130)), rng.uniform(0.75, 1.0), str(rng.choice(list(_PEN)))
    if kind == "dust":
        specks = [
            _spot(rng, at + rng.normal(0, 0.12 * scale, 2), rng.uniform(4, 14), rough=0.25) for _ in range(9)
        ]
        fibre = _stroke(rng, at, rng.uniform(80, 220), bend=0.5).buffer(3.0)
        return shapely.union_all([*specks, fibre]), rng.uniform(0.7, 0.95), ""
    scratches = [
        _stroke(rng, at + rng.normal(0, 30, 2), scale * 0.5, bend=0.02).buffer(rng.uniform(2, 5))
        for _ in range(2)
    ]
    return shapely.union_all(scratches), rng.uniform(0.5, 0.85), ""


def _stroke(
    rng: np.random.Generator, at: NDArray[np.float64], length: float, *, bend: float
) -> shapely.LineString:
    turn, t = rng.uniform(0, np.pi), np.linspace(-0.5, 0.5, 25)
    side = bend * length * (0.5 * np.sin(np.pi * 2 * (t + rng.random())) + rng.normal(0, 0.5) * t**2)
    x, y = t * length, side
    return shapely.LineString(
        np.stack(
            [at[0] + x * np.cos(turn) - y * np.sin(turn), at[1] + x * np.sin(turn) + y * np.cos(turn)], 1
        )
    )


def _spot(
    rng: np.random.Generator, at: NDArray[np.float64], radius: float, rough: float = 0.12
) -> shapely.Polygon:
    theta = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    edge = radius * (
        1 + sum(rng.normal(0, rough / k) * np.cos(k * theta + rng.uniform(0, 6.3)) for k in range(1, 5))
    )
    edge = np.maximum(edge, 0.3 * radius)
    return shapely.Polygon(np.stack([at[0] + edge * np.cos(theta), at[1] + edge * np.sin(theta)], 1)).buffer(
        0
    )


def artefact_frame(artefacts: Sequence[Artefact], mpp: float) -> geopandas.GeoDataFrame:
    """Artefacts as annotations in level-0 pixels."""
    from pathkit.annotations import annotation_frame
    from pathkit.annotations.rows import Row

    return annotation_frame(
        [
            Row(
                shapely.transform(a.geometry, lambda xy: np.round(xy / mpp, 2)),
                a.kind,
                f"{a.kind} {i}",
                "#cc79a7",
            )
            for i, a in enumerate(artefacts)
        ]
    )


def artefact_mask(
    artefact: Artefact, location_px: tuple[int, int], size: tuple[int, int], mpp: float
) -> NDArray[np.bool_]:
    """(height, width): where an artefact lies in a region, level-0 pixels."""
    out = np.zeros((size[1], size[0]), np.uint8)
    steps = 16  # cv2 takes sixteenths of a pixel
    for polygon in shapely.get_parts(artefact.geometry):
        rings = [polygon.exterior, *polygon.interiors]
        points = [
            np.rint((shapely.get_coordinates(r) / mpp - location_px - 0.5) * steps).astype(np.int32)
            for r in rings
        ]
        own = np.zeros_like(out)
        cv2.fillPoly(own, points, 1, shift=4)
        out |= own
    return out.astype(bool)


def margin_px(artefacts: Sequence[Artefact], mpp: float) -> int:
    """How far beyond a region must be known to blur it."""
    blurs = [a.strength for a in artefacts if a.kind == "out of focus"]
    soft = 8.0 if artefacts else 0.0
    return int(np.ceil((3 * max(blurs, default=0.0) + soft) / mpp)) + 2 if artefacts else 0


def on_section(
    stain: NDArray[np.float32], artefacts: Sequence[Artefact], location_px: tuple[int, int], mpp: float
) -> None:
    """Folds and tears, in place on concentrations."""
    size = (stain.shape[1], stain.shape[0])
    for a in artefacts:
        if a.kind not in ("fold", "tear"):
            continue
        soft = _soft(artefact_mask(a, location_px, size, mpp), 1.5, mpp)
        if soft is None:
            continue
        if a.kind == "tear":
            stain *= (1 - soft)[..., None]
        else:  # the tissue lies on itself, shifted
            stain *= (1 + a.strength * soft)[..., None]


def on_light(
    light: NDArray[np.float32], artefacts: Sequence[Artefact], location_px: tuple[int, int], mpp: float
) -> None:
    """What lies on the glass and lost focus, in place on the light that passes (0 to 1)."""
    size = (light.shape[1], light.shape[0])
    for a in sorted(artefacts, key=lambda a: KINDS.index(a.kind)):
        if a.kind in ("fold", "tear"):
            continue
        mask = artefact_mask(a, location_px, size, mpp)
        edge = {"out of focus": 8.0, "pen": 4.0}.get(a.kind, 1.0)
        soft = _soft(mask, edge, mpp)
        if soft is None:
            continue
        cover = soft[..., None]
        if a.kind == "out of focus":
            light += cover * (_blurred(light, a.strength / mpp) - light)
        elif a.kind == "bubble":
            inner = _soft(artefact_mask(_shrunk(a, 6.0), location_px, size, mpp), 2.5, mpp)
            ring = soft - (0.0 if inner is None else inner)
            light += cover * 0.6 * (_blurred(light, 2.0 / mpp) - light)
            light *= 1 - 0.55 * np.clip(ring, 0, 1)[..., None]
        elif a.kind == "pen":
            ink = np.array(_PEN[a.colour], np.float32)
            light *= 1 - a.strength * cover * (1 - ink)
        elif a.kind == "dust":
            light *= 1 - a.strength * cover * np.array([0.85, 0.9, 0.95], np.float32)
        else:  # a scratch scatters light: pale on tissue, grey on glass
            light += cover * a.strength * (0.82 - light)


def _soft(mask: NDArray[np.bool_], edge_um: float, mpp: float) -> NDArray[np.float32] | None:
    """A mask with soft edges; None where there is nothing of it."""
    if not mask.any():
        return None
    return _blurred(mask.astype(np.float32), edge_um / 2 / mpp)


def _blurred(values: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    size = 2 * int(np.ceil(3 * sigma_px)) + 1
    kernel = cv2.getGaussianKernel(size, max(sigma_px, 0.1), cv2.CV_32F)
    return np.asarray(cv2.sepFilter2D(values, -1, kernel, kernel), np.float32)


def _shrunk(artefact: Artefact, by_um: float) -> Artefact:
    inner = artefact.geometry.buffer(-by_um)
    return artefact if inner.is_empty else Artefact(artefact.kind, inner, artefact.strength, artefact.colour)
