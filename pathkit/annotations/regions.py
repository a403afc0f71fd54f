"""Aperio ImageScope XML and HALO annotations: layers of regions, both in level-0 pixels.

The layer gives the class and the colour (an integer, blue in the high byte). A region with ``NegativeROA="1"`` is a hole
in the polygons of its layer. Types: ImageScope 0 polygon, 1 rectangle, 2 ellipse, others lines (rulers, arrows); HALO by
name. Rectangles and ellipses are given by two corners, ellipses become polygons of 128 points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely

from pathkit.annotations.rows import UNCLASSIFIED, AnnotationError, Row, hex_of_bgr, parsed_xml

__all__ = ["read", "which"]

_IMAGESCOPE_TYPES = {"0": "Polygon", "1": "Rectangle", "2": "Ellipse"}
_ELLIPSE_POINTS = 128


def which(content: bytes) -> str:
    """ "halo" or "imagescope": HALO shortens Vertex to V."""
    return "halo" if b"<V " in content else "imagescope"


def read(name: str, content: bytes) -> tuple[list[Row], str | None]:
    """Rows; the frame is always level 0."""
    root = parsed_xml(name, content)
    if root.tag != "Annotations":
        raise AnnotationError(f"{name}: expected <Annotations>, got <{root.tag}>.")
    rows: list[Row] = []
    for layer in root.iter("Annotation"):
        rows += _layer(name, len(rows), layer)
    return rows, None


def _layer(name: str, first: int, layer: Any) -> list[Row]:
    class_name = layer.get("Name") or UNCLASSIFIED
    color = hex_of_bgr(layer.get("LineColor"))
    rows, holes = [], []
    for number, region in enumerate(layer.iter("Region"), start=first):
        geometry = _geometry(name, number, region)
        if region.get("NegativeROA") == "1" and geometry.geom_type == "Polygon":
            holes.append(geometry)
        else:
            rows.append(Row(geometry, class_name, region.get("Text") or None, color))
    return [row.with_geometry(_without(row.geometry, holes)) for row in rows]


def _without(geometry: Any, holes: list[Any]) -> Any:
    """The polygon less the holes that reach into it; one that covers it all, or a bow tie, leaves it as it is."""
    if geometry.geom_type != "Polygon" or not geometry.is_valid:
        return geometry
    for hole in holes:
        hole = hole if hole.is_valid else shapely.make_valid(hole)
        if geometry.intersects(hole) and not hole.covers(geometry):
            geometry = geometry.difference(hole)
    return geometry


def _geometry(name: str, number: int, region: Any) -> Any:
    kind = region.get("Type", "Polygon")
    kind = _IMAGESCOPE_TYPES.get(kind, kind)
    try:
        points = [(float(v.get("X")), float(v.get("Y"))) for v in [*region.iter("Vertex"), *region.iter("V")]]
    except (TypeError, ValueError) as error:
        raise AnnotationError(
            f"{name}: object {number} has a coordinate that is not a number ({error})."
        ) from error
    if not points:
        raise AnnotationError(f"{name}: object {number} ({kind}) has no points.")
    if kind == "Rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return shapely.box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    if kind == "Ellipse" and len(points) == 2:
        return _ellipse(*points)
    if kind in ("Polygon", "Rectangle", "Ellipse"):
        if len(points) < 3:
            raise AnnotationError(
                f"{name}: object {number} ({kind}) has {len(points)} points; an area needs three."
            )
        return shapely.Polygon(points)
    return shapely.Point(points[0]) if len(points) == 1 else shapely.LineString(points)


def _ellipse(corner: tuple[float, float], opposite: tuple[float, float]) -> Any:
    """The ellipse inscribed in the rectangle between two corners."""
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    centre, radius = np.add(corner, opposite) / 2, np.abs(np.subtract(corner, opposite)) / 2
    return shapely.Polygon(centre + radius * np.column_stack([np.cos(angle), np.sin(angle)]))
