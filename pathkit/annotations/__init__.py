"""Annotations: outlines with a class, whoever drew them, in one frame.

Every reader gives a GeoDataFrame in *level-0 pixels* with the columns ``class``, ``name``, ``color`` ("#rrggbb" or None)
and ``geometry``; ``attrs["frame"]`` says ``"l0"``. QuPath measures from the corner of a slide's *bounds* when the scanner
recorded them (MIRAX, Hamamatsu, Leica), other programs from the corner of level 0: an outline that looks shifted needs
``relative_to="bounds"``. Files that pathkit wrote say which, and are read accordingly.

One module a format: `qupath` (GeoJSON), `asap` (XML), `regions` (ImageScope and HALO, which share a layout); `overlay`
turns outlines into label maps and patch labels.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pandas as pd
import shapely

from pathkit.annotations import asap, qupath, regions
from pathkit.annotations.overlay import label_patches, rasterize
from pathkit.annotations.rows import UNCLASSIFIED, AnnotationError, Row
from pathkit.files import write_text

if TYPE_CHECKING:
    from pathkit.slide import Slide

__all__ = [
    "UNCLASSIFIED",
    "AnnotationError",
    "annotation_frame",
    "label_patches",
    "lesion_table",
    "rasterize",
    "read_annotations",
    "write_annotations",
]

FORMATS = {"qupath": qupath, "asap": asap, "imagescope": regions, "halo": regions}
WRITABLE = {"qupath": qupath, "asap": asap}
_FRAMES = ("l0", "bounds")


def read_annotations(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    slide: Slide | None = None,
    relative_to: str | None = None,
) -> geopandas.GeoDataFrame:
    """Read outlines from QuPath GeoJSON, ASAP XML, Aperio ImageScope XML or HALO annotations.

    Parameters
    ----------
    path : path
        ``.geojson``, ``.json`` (also ``.gz``), ``.xml`` or ``.annotations``.
    format : {"qupath", "asap", "imagescope", "halo"}, optional
        Found from the content when not given.
    slide : Slide, optional
        Needed for ``relative_to="bounds"``; also checks that the outlines lie on the slide.
    relative_to : {"l0", "bounds"}, optional
        The corner that the file measures from; what the file says, else ``"l0"``.

    Returns
    -------
    GeoDataFrame
        Columns class, name, color, geometry in level-0 pixels, in the order of the file. Self-crossing polygons are
        repaired, with a warning.

    Raises
    ------
    AnnotationError
        If the file is damaged or of no known kind, or an object has impossible coordinates.
    """
    path = Path(path)
    content = _content(path)
    kind = format or _detected(path.name, content)
    if kind not in FORMATS:
        raise AnnotationError(f"{path.name}: no format {kind!r}; there are {', '.join(FORMATS)}.")
    rows, stored_frame = FORMATS[kind].read(path.name, content)
    frame = annotation_frame(_repaired(path.name, rows))
    relative_to = relative_to or stored_frame or "l0"
    frame["geometry"] = _moved(frame.geometry, relative_to, slide, +1, path.name)
    if slide is not None:
        _warn_of_outsiders(frame, slide, path.name, relative_to)
    return frame


def write_annotations(
    annotations: geopandas.GeoDataFrame,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    slide: Slide | None = None,
    relative_to: str = "l0",
) -> Path:
    """Write outlines so that they can be opened in QuPath or ASAP, and read back exactly.

    Parameters
    ----------
    annotations : GeoDataFrame
        In level-0 pixels, as `read_annotations` gives it.
    path : path
    format : {"qupath", "asap"}, optional
        By default ASAP for ``.xml``, QuPath otherwise.
    slide : Slide, optional
        Needed for ``relative_to="bounds"``.
    relative_to : {"l0", "bounds"}
        The corner to measure from; ``"bounds"`` is what QuPath expects on slides with bounds.

    Raises
    ------
    AnnotationError
        If the format cannot hold a geometry (ASAP has no lines).
    """
    path = Path(path)
    kind = format or ("asap" if path.suffix.lower() == ".xml" else "qupath")
    if kind not in WRITABLE:
        raise AnnotationError(f"{path.name}: pathkit writes {' and '.join(WRITABLE)}, not {kind!r}.")
    geometry = _moved(annotations.geometry, relative_to, slide, -1, path.name)
    rows = [
        Row(
            shape,
            _or_none(row.get("class")) or UNCLASSIFIED,
            _or_none(row.get("name")),
            _or_none(row.get("color")),
        )
        for shape, row in zip(geometry, annotations.drop(columns="geometry").to_dict("records"), strict=True)
    ]
    text = WRITABLE[kind].write(rows, relative_to)
    write_text(path, text)
    return path


def annotation_frame(rows: list[Row]) -> geopandas.GeoDataFrame:
    """Rows as a GeoDataFrame with the columns and the frame of all annotations; also for no rows at all."""
    data = {
        "class": np.array([r.class_name for r in rows], dtype=object),
        "name": np.array([r.name for r in rows], dtype=object),
        "color": np.array([r.color for r in rows], dtype=object),
    }
    frame = geopandas.GeoDataFrame(data, geometry=[r.geometry for r in rows])
    for column in data:  # plain objects, so that a missing name stays None whatever pandas makes of text
        frame[column] = frame[column].astype(object).where(frame[column].notna(), None)
    frame.attrs["frame"] = "l0"
    return frame


def lesion_table(slides: Any, *, ignore: str | None = None) -> geopandas.GeoDataFrame:
    """The annotated lesions of a cohort in microns, as FROC takes them.

    Parameters
    ----------
    slides : DataFrame
        slide_id, mpp, annotations_path.
    ignore : str, optional
        Lesions whose name begins so are marked to be ignored (isolated tumour cells in CAMELYON16).

    Returns
    -------
    GeoDataFrame
        slide_id, lesion_id (unique), name, ignore, geometry in microns.
    """
    rows = []
    for slide in slides.to_dict("records"):
        outlines = read_annotations(slide["annotations_path"])
        in_microns = outlines.geometry.scale(slide["mpp"], slide["mpp"], origin=(0, 0))
        for number, (name, geometry) in enumerate(zip(outlines["name"], in_microns, strict=True)):
            ignored = ignore is not None and str(name).startswith(ignore)
            rows.append((slide["slide_id"], f"{slide['slide_id']}-{number}", name, ignored, geometry))
    columns = ["slide_id", "lesion_id", "name", "ignore", "geometry"]
    return geopandas.GeoDataFrame(pd.DataFrame(rows, columns=columns), geometry="geometry")


# Steps -----------------------------------------------------------------------------------------------------------


def _content(path: Path) -> bytes:
    import gzip

    if not path.is_file():
        raise AnnotationError(f"{path}: no such file.")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise AnnotationError(f"{path.name}: a damaged gzip file: {error}.") from error
    if not content.strip():
        raise AnnotationError(f"{path.name}: empty.")
    return content


def _detected(name: str, content: bytes) -> str:
    """The format, from what the file holds; suffixes are shared by several."""
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] in (b"{", b"["):
        return "qupath"
    if start[:1] == b"<":
        if b"<ASAP_Annotations" in content[:4000]:
            return "asap"
        if b"<Annotations" in content[:4000]:
            return regions.which(content)
    raise AnnotationError(
        f"{name}: neither QuPath GeoJSON nor XML of ASAP, ImageScope or HALO. Export it from its program as GeoJSON."
    )


def _repaired(name: str, rows: list[Row]) -> list[Row]:
    """Rows with finite, valid geometries; what had to be mended is said once."""
    mended, out = [], []
    for number, row in enumerate(rows):
        shape = row.geometry
        if shape.is_empty:
            raise AnnotationError(
                f"{name}: object {number} ({row.class_name}) has no coordinates. Delete it, or redraw it."
            )
        if not np.isfinite(shapely.get_coordinates(shape)).all():
            raise AnnotationError(
                f"{name}: object {number} ({row.class_name}) has a coordinate that is not a number."
            )
        if not shape.is_valid:
            shape = _areas_of(shapely.make_valid(shape))
            if shape.is_empty:
                raise AnnotationError(
                    f"{name}: object {number} ({row.class_name}) encloses no area. Delete it, or redraw it."
                )
            mended.append(number)
        out.append(row.with_geometry(shape))
    if mended:
        message = f"{name}: {len(mended)} polygons crossed themselves and were repaired, first object {mended[0]}. Check them."
        warnings.warn(message, stacklevel=3)
    return out


def _areas_of(shape: Any) -> Any:
    """Only the polygons of what make_valid gives; lines and points left over from a repair are dropped."""
    parts = [p for p in shapely.get_parts(shape) if p.geom_type == "Polygon"]
    nested = [p for g in shapely.get_parts(shape) if g.geom_type == "MultiPolygon" for p in g.geoms]
    polygons = parts + nested
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


def _moved(geometry: Any, relative_to: str, slide: Slide | None, sign: int, name: str) -> Any:
    """Geometries taken from a frame to level 0 (sign +1) or back (-1)."""
    if relative_to not in _FRAMES:
        raise AnnotationError(f"{name}: relative_to is one of {_FRAMES}, got {relative_to!r}.")
    if relative_to == "l0":
        return geometry
    if slide is None:
        raise AnnotationError(
            f"{name}: it measures from the slide's bounds; pass slide=... so that they are known."
        )
    return geometry.translate(sign * slide.bounds.x, sign * slide.bounds.y)


def _warn_of_outsiders(frame: geopandas.GeoDataFrame, slide: Slide, name: str, relative_to: str) -> None:
    width, height = slide.dimensions
    outside = ~frame.geometry.intersects(shapely.box(0, 0, width, height)).to_numpy()
    if not outside.any():
        return
    hint = "Is it the annotation of another slide, or measured at another level?"
    if relative_to == "l0" and (slide.bounds.x or slide.bounds.y):
        hint = 'This slide has bounds: if QuPath wrote the file, read it with relative_to="bounds".'
    message = f"{name}: {int(outside.sum())} of {len(frame)} objects lie outside the slide ({width} x {height} px). {hint}"
    warnings.warn(message, stacklevel=3)


def _or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
