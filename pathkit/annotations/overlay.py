"""From outlines to pixels and patches: label maps, and labels by overlap.

A pixel belongs to a polygon when its centre lies inside (even-odd rule, so that holes are holes); the label of a patch
follows from exact areas, not from pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from pathkit.geometry import Raster

if TYPE_CHECKING:
    import geopandas

    from pathkit.slide import Slide

__all__ = ["label_patches", "rasterize"]


def rasterize(
    annotations: geopandas.GeoDataFrame,
    *,
    mpp: float,
    slide: Slide | None = None,
    slide_mpp: float | None = None,
    dimensions: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
) -> Raster:
    """Paint polygons into a label map over the whole slide.

    Parameters
    ----------
    annotations : GeoDataFrame
        In level-0 pixels; points and lines are left out.
    mpp : float
        Microns per pixel of the label map.
    slide : Slide, optional
        Gives `slide_mpp` and `dimensions` (level-0 width and height), which can be given instead.
    classes : sequence of str, optional
        Classes to paint, in order; all, sorted, by default.

    Returns
    -------
    Raster
        uint8 or uint16: 0 where there is nothing, 1 for ``classes[0]``, and so on; later rows paint over earlier ones.
        ``attrs["classes"]`` lists the classes.
    """
    slide_mpp, dimensions = _slide_facts(slide, slide_mpp, dimensions)
    names = sorted(set(annotations["class"])) if classes is None else list(classes)
    scale = slide_mpp / mpp
    shape = tuple(int(np.ceil(n * scale - 1e-9)) for n in dimensions[::-1])
    values = np.zeros(shape, np.uint8 if len(names) < 256 else np.uint16)
    for class_name, geometry in zip(annotations["class"], annotations.geometry, strict=True):
        if class_name in names and geometry.geom_type in ("Polygon", "MultiPolygon"):
            _paint(values, geometry, scale, names.index(class_name) + 1)
    return Raster(values, mpp, attrs={"classes": names})


def _paint(values: NDArray[Any], geometry: Any, scale: float, label: int) -> None:
    """Set the pixels whose centre is inside, by the crossings of each row's centre line with the outline.

    Left of an odd number of crossings is inside; summing the crossings along a row gives that number for all its
    pixels, in time proportional to the outline's length plus the area of its bounding box.
    """
    rings = [
        ring for polygon in shapely.get_parts(geometry) for ring in (polygon.exterior, *polygon.interiors)
    ]
    starts, ends = [], []
    for ring in rings:
        xy = shapely.get_coordinates(ring) * scale - 0.5  # pixel centres at whole numbers
        starts.append(xy[:-1])
        ends.append(xy[1:])
    (x0, y0), (x1, y1) = np.concatenate(starts).T, np.concatenate(ends).T
    height, width = values.shape
    top = np.clip(np.ceil(np.minimum(y0, y1)), 0, height).astype(int)
    bottom = np.clip(np.ceil(np.maximum(y0, y1)), 0, height).astype(int)
    count = bottom - top
    if not count.any():
        return
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count) + top[edge]
    crossing = x0[edge] + (row - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    column = np.clip(np.ceil(crossing), 0, width).astype(int)
    row0, row1, column1 = int(row.min()), int(row.max()) + 1, int(column.max())
    column0 = int(column.min())
    crossings = np.zeros((row1 - row0, column1 - column0 + 1), np.int32)
    np.add.at(crossings, (row - row0, column - column0), 1)
    inside = crossings.cumsum(1)[:, :-1] % 2 == 1
    values[row0:row1, column0:column1][inside] = label


def label_patches(
    patches: pd.DataFrame,
    annotations: geopandas.GeoDataFrame,
    *,
    slide: Slide | None = None,
    slide_mpp: float | None = None,
    min_overlap: float = 0.5,
    background: str = "normal",
    classes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Label each patch by the class that covers most of it.

    Parameters
    ----------
    patches : DataFrame
        Patches of one slide: x_l0, y_l0, size_px, mpp.
    annotations : GeoDataFrame
        In level-0 pixels.
    slide, slide_mpp : Slide or float
        Microns per level-0 pixel, one of the two.
    min_overlap : float
        The least share of the patch, above 0 and up to 1; a patch with less is `background`.
    background : str
        Label of the others.
    classes : sequence of str, optional
        Classes that count; all, sorted, by default. Of two with the same share the first wins.

    Returns
    -------
    DataFrame
        A copy with ``label`` and ``overlap`` (the share of the class that covers most, 0 where none does).
    """
    if not 0 < min_overlap <= 1:
        raise ValueError(
            f"label_patches: min_overlap is a share of the patch, above 0 and at most 1, got {min_overlap}."
        )
    slide_mpp, _ = _slide_facts(slide, slide_mpp, (0, 0))
    names = sorted(set(annotations["class"])) if classes is None else list(classes)
    side_l0 = (patches["size_px"] * patches["mpp"] / slide_mpp).to_numpy(float)
    x, y = patches["x_l0"].to_numpy(float), patches["y_l0"].to_numpy(float)
    boxes = shapely.box(x, y, x + side_l0, y + side_l0)
    shares = np.zeros((len(patches), len(names)))
    for column, class_name in enumerate(names):
        outlines = annotations.geometry[(annotations["class"] == class_name).to_numpy()]
        shares[:, column] = _covered_area(boxes, outlines.to_numpy()) / side_l0**2
    out = patches.copy()
    if not names:
        return out.assign(label=background, overlap=0.0)
    best = shares.argmax(1)
    overlap = shares[np.arange(len(out)), best] if len(out) else np.zeros(0)
    labels = np.array(names, dtype=object)[best] if len(out) else np.zeros(0, object)
    return out.assign(label=np.where(overlap >= min_overlap - 1e-9, labels, background), overlap=overlap)


def _covered_area(boxes: NDArray[Any], outlines: NDArray[Any]) -> NDArray[np.float64]:
    """Area of each box that the union of the outlines covers; only boxes on an edge need to be cut."""
    area = np.zeros(len(boxes))
    polygons = [g for g in outlines if g.geom_type in ("Polygon", "MultiPolygon")]
    if not polygons or not len(boxes):
        return area
    # The union counts places that two outlines share once. Its parts are disjoint, so their areas add up.
    for part in shapely.get_parts(shapely.union_all(polygons)):
        shapely.prepare(part)
        touched = np.flatnonzero(shapely.intersects(part, boxes))
        inside = shapely.contains_properly(part, boxes[touched])
        area[touched[inside]] += shapely.area(boxes[touched[inside]])
        cut = touched[~inside]
        area[cut] += shapely.area(shapely.intersection(part, boxes[cut]))
    return area


def _slide_facts(
    slide: Slide | None, slide_mpp: float | None, dimensions: tuple[int, int] | None
) -> tuple[float, tuple[int, int]]:
    if slide is not None:
        slide_mpp = slide.mpp if slide_mpp is None else slide_mpp
        dimensions = dimensions or slide.dimensions
    if slide_mpp is None or dimensions is None:
        raise ValueError(
            "Pass slide=..., or slide_mpp=... (and dimensions=... for a label map): the outlines are in level-0 pixels."
        )
    return slide_mpp, dimensions
