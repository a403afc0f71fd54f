"""QuPath GeoJSON: a FeatureCollection, a bare list of features, or one feature.

The class is ``properties.classification`` (an object with a name, or the name alone), its colour a list or, in older
versions, a signed integer. Coordinates are written as they are, so that reading them back gives the same numbers. The
frame stands in the foreign member ``pathkit`` of the collection, which QuPath ignores.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import shapely
from shapely.geometry import mapping, shape

from pathkit.annotations.rows import UNCLASSIFIED, AnnotationError, Row

__all__ = ["read", "write"]

_GEOMETRIES = {
    "Point",
    "MultiPoint",
    "LineString",
    "MultiLineString",
    "Polygon",
    "MultiPolygon",
    "GeometryCollection",
}
#: Fixed, so that the same outlines give the same file.
_NAMESPACE = uuid.UUID("6e1c6a4e-3f0c-4a3c-9b57-0d8a8d2f5c11")


def read(name: str, content: bytes) -> tuple[list[Row], str | None]:
    """Rows, and the frame that the file names."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f"{name}: not valid JSON ({error}). It may be truncated: export it again."
        ) from error
    features = _features(name, data)
    stored = data.get("pathkit") if isinstance(data, dict) else None
    frame = stored.get("frame") if isinstance(stored, dict) else None
    return [_row(name, number, feature) for number, feature in enumerate(features)], frame


def _features(name: str, data: Any) -> list[Any]:
    if isinstance(data, list):
        return data
    if (
        isinstance(data, dict)
        and data.get("type") == "FeatureCollection"
        and isinstance(data.get("features"), list)
    ):
        return data["features"]
    if isinstance(data, dict) and data.get("type") == "Feature":
        return [data]
    keys = ", ".join(map(str, list(data)[:5])) if isinstance(data, dict) else type(data).__name__
    raise AnnotationError(
        f"{name}: JSON, but not GeoJSON of QuPath (it holds {keys}). Expected a FeatureCollection, a Feature or a list of"
        " features: in QuPath, File > Export objects as GeoJSON."
    )


def _row(name: str, number: int, feature: Any) -> Row:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise AnnotationError(f"{name}: object {number} is not a GeoJSON Feature.")
    geometry = feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in _GEOMETRIES:
        raise AnnotationError(
            f"{name}: object {number} has a geometry of type {kind!r}, not one of GeoJSON's."
        )
    try:
        outline = shapely.force_2d(shape(geometry))
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        shapely.errors.ShapelyError,
    ) as error:
        message = f"{name}: object {number} ({kind}) has coordinates that make no {kind}: {error}."
        raise AnnotationError(message) from error
    properties = feature.get("properties") or {}
    classification = properties.get("classification")
    if not isinstance(classification, dict):
        classification = {"name": classification}
    class_name = classification.get("name") or "/".join(classification.get("names") or []) or UNCLASSIFIED
    color = _color(classification) or _color(properties)
    label = properties.get("name")
    return Row(outline, str(class_name), None if label in (None, "") else str(label), color)


def _color(holder: dict[str, Any]) -> str | None:
    listed, packed = holder.get("color"), holder.get("colorRGB")
    if isinstance(listed, list) and len(listed) >= 3:
        return "#" + "".join(f"{int(v) & 255:02x}" for v in listed[:3])
    if isinstance(packed, int):
        return f"#{packed & 0xFFFFFF:06x}"
    return None


def write(rows: list[Row], frame: str) -> str:
    """The text of a FeatureCollection that QuPath opens."""
    features = [_feature(number, row) for number, row in enumerate(rows)]
    return json.dumps({"type": "FeatureCollection", "pathkit": {"frame": frame}, "features": features}) + "\n"


def _feature(number: int, row: Row) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation"}
    color = None if row.color is None else [int(row.color[i : i + 2], 16) for i in (1, 3, 5)]
    if row.class_name != UNCLASSIFIED:
        properties["classification"] = {"name": row.class_name} | ({"color": color} if color else {})
    elif color:
        properties["color"] = color
    if row.name is not None:
        properties["name"] = row.name
    identity = str(uuid.uuid5(_NAMESPACE, f"{number} {row.geometry.wkb_hex}"))
    return {"type": "Feature", "id": identity, "geometry": mapping(row.geometry), "properties": properties}
