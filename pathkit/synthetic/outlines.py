"""Outlines of every nucleus of a region, as annotations: what a perfect annotator would draw."""

from __future__ import annotations

import cv2
import geopandas
import numpy as np
import shapely

from pathkit.annotations import annotation_frame
from pathkit.annotations.rows import Row
from pathkit.geometry import Box
from pathkit.synthetic.cohort import Truth
from pathkit.synthetic.objects import nucleus_array
from pathkit.synthetic.paint import instances
from pathkit.synthetic.tissues import CLASSES

__all__ = ["nucleus_outlines"]

_TILE_UM, _MARGIN_UM = 256.0, 24.0
_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442", "#d55e00", "#999999", "#000000")


def nucleus_outlines(truth: Truth, box_um: Box | None = None, *, mpp: float = 0.25) -> geopandas.GeoDataFrame:
    """Polygons of the nuclei whose centre lies in a region; `annotations.write_annotations` writes them for QuPath.

    Parameters
    ----------
    truth : Truth
        Of `truth_of`.
    box_um : Box, optional
        The whole slide by default: then mind that a square millimetre can hold 10,000 nuclei.
    mpp : float
        Of the instance map that is outlined; an outline is true to one of its pixels.

    Returns
    -------
    GeoDataFrame
        class, name (object_id of the object table), color, geometry in level-0 pixels of the truth's site. Where nuclei
        overlap each keeps its own part; of a nucleus in two parts the larger is kept.

    Raises
    ------
    ValueError
        If `mpp` is not positive.
    """
    if not mpp > 0:
        raise ValueError(f"nucleus_outlines: mpp must be positive, got {mpp}.")
    architecture = truth.architecture
    whole = Box(0, 0, *architecture.size_um)
    region = whole if box_um is None else whole.intersection(box_um)
    rows: list[Row] = []
    if region is not None:
        for y in np.arange(region.y, region.y1, _TILE_UM):
            for x in np.arange(region.x, region.x1, _TILE_UM):
                rows += _in_tile(
                    truth,
                    Box.from_bounds(x, y, min(x + _TILE_UM, region.x1), min(y + _TILE_UM, region.y1)),
                    mpp,
                )
    return annotation_frame(rows)


def _in_tile(truth: Truth, box: Box, mpp: float) -> list[Row]:
    """Rows of the nuclei whose centre lies in the box, from an instance map that reaches beyond it."""
    cells = nucleus_array(truth.architecture, box)
    cells = cells[~np.isin(cells[:, 6], [CLASSES.index(c) for c in ("red cell", "pigment")])]
    if not len(cells):
        return []
    x0, y0 = box.x - _MARGIN_UM, box.y - _MARGIN_UM
    size = tuple(int(np.ceil((n + 2 * _MARGIN_UM) / mpp)) for n in (box.width, box.height))
    ids = instances(truth.architecture, (x0, y0), (size[0], size[1]), mpp=mpp)
    out = []
    for cell in cells:
        reach = 1.5 * max(cell[2], cell[3]) + 2
        c0, c1 = (int(max(0, (cell[0] + s * reach - x0) / mpp)) for s in (-1, 1))
        r0, r1 = (int(max(0, (cell[1] + s * reach - y0) / mpp)) for s in (-1, 1))
        part = (ids[r0:r1, c0:c1] == int(cell[8])).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        contours = [c for c in contours if len(c) > 2]
        if not contours:
            continue
        ring = max(contours, key=cv2.contourArea)[:, 0]
        at_um = (ring + 0.5) * (mpp / 2) + (x0 + c0 * mpp, y0 + r0 * mpp)
        kind = int(cell[6])
        outline = shapely.make_valid(shapely.Polygon(np.round(at_um / truth.site.mpp, 2)))
        # What is made valid may be a collection of a multipolygon and lines: parts of parts.
        outline = max(
            (p for p in shapely.get_parts(shapely.get_parts(outline)) if p.geom_type == "Polygon"),
            key=lambda p: p.area,
            default=None,
        )
        if outline is not None:
            out.append(Row(outline, CLASSES[kind], str(int(cell[8])), _COLOURS[kind % len(_COLOURS)]))
    return out
