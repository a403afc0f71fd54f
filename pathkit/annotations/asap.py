"""ASAP XML (CAMELYON): Polygon, Rectangle, Spline, Dot and PointSet; the group is the class.

A spline is read as the polygon through its points. ASAP knows neither holes nor parts: a polygon with holes is written
as several annotations that carry ``Pathkit...`` attributes, which ASAP ignores and `read` joins again; in ASAP itself the
holes show as outlines of the group ``hole``.
"""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import quoteattr

import shapely

from pathkit.annotations.rows import UNCLASSIFIED, AnnotationError, Row, parsed_xml

__all__ = ["read", "write"]

_AREAS = {"Polygon", "Rectangle", "Spline"}
_POINTS = {"Dot", "PointSet"}
_DEFAULT_COLOR = "#F4FA58"
_NO_GROUP = "None"


def read(name: str, content: bytes) -> tuple[list[Row], str | None]:
    """Rows, and the frame that the file names."""
    root = parsed_xml(name, content)
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(f"{name}: expected <ASAP_Annotations>, got <{root.tag}>.")
    group_colors = {g.get("Name"): g.get("Color") for g in root.iter("Group")}
    rows: list[Row] = []
    joined: dict[str, list[tuple[int, str, Any]]] = {}
    places: dict[str, int] = {}
    for number, element in enumerate(root.iter("Annotation")):
        kind = element.get("Type", "Polygon")
        points = _points(name, number, element)
        feature = element.get("PathkitFeature")
        if feature is not None:
            part = int(element.get("PathkitPart", "0"))
            joined.setdefault(feature, []).append((part, element.get("PathkitRole", ""), points))
            if feature in places:
                continue
            places[feature] = len(rows)
        rows.append(_row(name, number, kind, points, element, group_colors))
    for feature, parts in joined.items():
        rows[places[feature]] = rows[places[feature]].with_geometry(_joined(parts))
    return rows, root.get("PathkitFrame")


def _points(name: str, number: int, element: Any) -> list[tuple[float, float]]:
    try:
        coordinates = sorted(element.iter("Coordinate"), key=lambda c: int(float(c.get("Order", "0"))))
        return [(float(c.get("X")), float(c.get("Y"))) for c in coordinates]
    except (TypeError, ValueError) as error:
        raise AnnotationError(
            f"{name}: object {number} has a coordinate that is not a number ({error})."
        ) from error


def _row(
    name: str,
    number: int,
    kind: str,
    points: list[tuple[float, float]],
    element: Any,
    group_colors: dict[str, str],
) -> Row:
    if kind in _AREAS:
        if len(points) < 3:
            raise AnnotationError(
                f"{name}: object {number} ({kind}) has {len(points)} points; an area needs three."
            )
        geometry = shapely.Polygon(points)
    elif kind in _POINTS:
        geometry = (
            shapely.Point(points[0]) if kind == "Dot" and len(points) == 1 else shapely.MultiPoint(points)
        )
    else:
        raise AnnotationError(f"{name}: object {number} is of the unknown type {kind!r}.")
    group = element.get("PartOfGroup", _NO_GROUP)
    class_name = UNCLASSIFIED if group in (_NO_GROUP, "") else group
    color = None if element.get("PathkitNoColor") else element.get("Color") or group_colors.get(group)
    return Row(geometry, class_name, element.get("Name") or None, color and color.lower())


def _joined(parts: list[tuple[int, str, Any]]) -> Any:
    shells = {part: points for part, role, points in parts if role == "shell"}
    holes: dict[int, list[Any]] = {part: [] for part in shells}
    for part, role, points in parts:
        if role == "hole":
            holes[part].append(points)
    polygons = [shapely.Polygon(shells[part], holes[part]) for part in sorted(shells)]
    multi = any(role == "multi" for _, role, _ in parts)
    return shapely.MultiPolygon(polygons) if multi or len(polygons) > 1 else polygons[0]


def write(rows: list[Row], frame: str) -> str:
    """The text of a file that ASAP opens."""
    lines = [
        '<?xml version="1.0"?>',
        f"<ASAP_Annotations PathkitFrame={quoteattr(frame)}>",
        "\t<Annotations>",
    ]
    for number, row in enumerate(rows):
        lines += _annotation_lines(number, row)
    lines += ["\t</Annotations>", "\t<AnnotationGroups>"]
    colors = {row.class_name: row.color for row in rows if row.class_name != UNCLASSIFIED}
    for group, color in sorted(colors.items()):
        shown = quoteattr(color or _DEFAULT_COLOR)
        lines.append(
            f'\t\t<Group Name={quoteattr(group)} PartOfGroup="None" Color={shown}><Attributes /></Group>'
        )
    return "\n".join([*lines, "\t</AnnotationGroups>", "</ASAP_Annotations>"]) + "\n"


def _annotation_lines(number: int, row: Row) -> list[str]:
    geometry = row.geometry
    if geometry.geom_type == "Point":
        return _element(row, "Dot", geometry.coords)
    if geometry.geom_type == "MultiPoint":
        return _element(row, "PointSet", [p.coords[0] for p in geometry.geoms])
    if geometry.geom_type not in ("Polygon", "MultiPolygon"):
        raise AnnotationError(
            f"object {number}: ASAP has no {geometry.geom_type}. Write QuPath GeoJSON instead."
        )
    polygons = [geometry] if geometry.geom_type == "Polygon" else list(geometry.geoms)
    if geometry.geom_type == "Polygon" and not geometry.interiors:
        return _element(row, "Polygon", geometry.exterior.coords[:-1])
    lines = []
    for part, polygon in enumerate(polygons):
        tag = f' PathkitFeature="{number}" PathkitPart="{part}"'
        lines += _element(row, "Polygon", polygon.exterior.coords[:-1], tag + ' PathkitRole="shell"')
        for ring in polygon.interiors:
            lines += _element(row, "Polygon", ring.coords[:-1], tag + ' PathkitRole="hole"', group="hole")
    if geometry.geom_type == "MultiPolygon" and len(polygons) == 1:
        lines += _element(row, "PointSet", [], f' PathkitFeature="{number}" PathkitRole="multi"')
    return lines


def _element(row: Row, kind: str, points: Any, extra: str = "", group: str | None = None) -> list[str]:
    group = group or (_NO_GROUP if row.class_name == UNCLASSIFIED else row.class_name)
    color = f"Color={quoteattr(row.color or _DEFAULT_COLOR)}" + ("" if row.color else ' PathkitNoColor="1"')
    head = f'\t\t<Annotation Name={quoteattr(row.name or "")} Type="{kind}" PartOfGroup={quoteattr(group)} {color}{extra}>'
    coordinates = [
        f'\t\t\t\t<Coordinate Order="{i}" X="{x!r}" Y="{y!r}" />' for i, (x, y) in enumerate(points)
    ]
    return [head, "\t\t\t<Coordinates>", *coordinates, "\t\t\t</Coordinates>", "\t\t</Annotation>"]
