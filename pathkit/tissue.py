"""Find the tissue on a slide: stained, not white, not pen, not the scanner's black.

The recipe, at a coarse resolution (8 µm per pixel):

1. *Optical density* against the slide's own white point, smoothed a little. It is what the stain adds, so that H&E and
   immunohistochemistry are treated alike.
2. A threshold by Otsu between a floor and a ceiling. Otsu alone splits a blank slide in two, and throws away the pale half
   of a slide that is covered by tissue; between the bounds it adapts to pale and to strong stains.
3. A little *colour* is asked for as well: shadows and dirt on the glass are grey, stains are not.
4. *Pen* is recognised by its colour: in tissue, green light is absorbed at least about as much as red (haematoxylin,
   eosin and DAB all do so), by blue and green ink far less; black ink and the scanner's black absorb all colours alike.
   Red ink absorbs no red light at all, and green and blue alike.
5. Holes smaller than a fat cell cluster are filled, specks are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pathkit.geometry import BoxMeans, Raster
from pathkit.slide import Slide, open_slide
from pathkit.stain import white_point

if TYPE_CHECKING:
    import geopandas

__all__ = ["pen_mask", "tissue_fraction", "tissue_mask", "tissue_polygons"]

#: Optical density (mean of the channels) between which the threshold is sought.
OD_FLOOR, OD_CEILING = 0.03, 0.05
#: Least difference between the channels' optical densities.
LEAST_COLOUR = 0.025
#: Smoothing before the threshold.
SMOOTHING_UM = 8.0
#: Taken away around ink, whose edge is pale.
PEN_MARGIN_UM = 10.0
#: Pixels whose densities, of which there are several of 4 bytes each, are held at once.
BAND_PIXELS = 2_000_000


def tissue_mask(
    source: Slide | NDArray[np.uint8],
    *,
    mpp: float = 8.0,
    source_mpp: float | None = None,
    min_area_um2: float = 20_000.0,
    max_hole_um2: float = 20_000.0,
    od_threshold: float | None = None,
    keep_pen: bool = False,
) -> Raster:
    """Mask of tissue.

    Parameters
    ----------
    source : Slide, or (H, W, 3) uint8 array
        An array needs `source_mpp`.
    mpp : float
        Microns per pixel of the mask. 8 keeps a strand of 20 µm; 32 is enough to count tissue.
    source_mpp : float, optional
        Microns per pixel of an array.
    min_area_um2, max_hole_um2 : float
        Smaller pieces are dropped, smaller holes filled. 20,000 µm² is a square of 0.14 mm.
    od_threshold : float, optional
        Optical density from which on a pixel is tissue; found between 0.03 and 0.05 when not given.
    keep_pen : bool
        Do not look for ink.

    Returns
    -------
    Raster
        bool; ``attrs`` holds the ``od_threshold`` and the ``white`` point that were used. Empty (all False) for a blank,
        a black, or an inked slide without tissue.

    Raises
    ------
    MissingMppError
        If the slide's resolution is unknown.
    """
    slide = source if isinstance(source, Slide) else open_slide(source, mpp=source_mpp)
    seen, white = _seen(slide, mpp)
    threshold = _threshold(seen.mean) if od_threshold is None else float(od_threshold)
    mask = seen.mean > threshold
    mask &= seen.coloured
    if not keep_pen:
        mask &= ~_grown(seen.ink, seen.ink_over_tissue, PEN_MARGIN_UM / mpp)
    del seen
    mask = _tidy(mask, min_area_um2 / mpp**2, max_hole_um2 / mpp**2)
    return Raster(mask, mpp, attrs={"od_threshold": round(threshold, 4), "white": [int(v) for v in white]})


def pen_mask(
    source: Slide | NDArray[np.uint8], *, mpp: float = 8.0, source_mpp: float | None = None
) -> Raster:
    """Mask of ink (blue, green, red, black) and of the scanner's black; arguments as in `tissue_mask`."""
    slide = source if isinstance(source, Slide) else open_slide(source, mpp=source_mpp)
    seen, _ = _seen(slide, mpp)
    return Raster(_grown(seen.ink, seen.ink_over_tissue, PEN_MARGIN_UM / mpp), mpp)


def tissue_polygons(mask: Raster, *, slide_mpp: float, min_area_um2: float = 0.0) -> geopandas.GeoDataFrame:
    """Outlines of a mask, holes kept, as annotations in level-0 pixels.

    Parameters
    ----------
    mask : Raster
        bool.
    slide_mpp : float
        Microns per level-0 pixel.
    min_area_um2 : float
        Smaller polygons are dropped.

    Returns
    -------
    GeoDataFrame
        Class ``"tissue"``, largest first.
    """
    import shapely
    from skimage.measure import find_contours

    from pathkit.annotations import annotation_frame
    from pathkit.annotations.rows import Row

    padded = np.pad(np.asarray(mask.values, float), 1)
    rings = [shapely.LineString(c[:, ::-1]) for c in find_contours(padded, 0.5) if len(c) > 3]
    areas = shapely.get_parts(shapely.build_area(shapely.GeometryCollection(rings))) if rings else []
    origin = np.asarray(mask.origin_um)

    def to_l0(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        # Contours run between pixel centres: index 0 of the padded array is the centre at -0.5 pixels.
        return (origin + (xy - 0.5) * mask.mpp) / slide_mpp

    outlines = [shapely.transform(area, to_l0) for area in areas]
    outlines = [o for o in outlines if o.area * slide_mpp**2 >= min_area_um2]
    outlines.sort(key=lambda o: -o.area)
    return annotation_frame([Row(o, "tissue", color="#0072b2") for o in outlines])


def tissue_fraction(
    mask: Raster | BoxMeans, patches: pd.DataFrame, *, slide_mpp: float
) -> NDArray[np.float64]:
    """Share of each patch that is tissue; what lies beyond the slide counts as none.

    Parameters
    ----------
    mask : Raster, or its `Raster.box_means` where many tables are to come
    patches : DataFrame
        x_l0, y_l0, size_px, mpp.
    slide_mpp : float

    Returns
    -------
    (N,) float64, from 0 to 1
    """
    side_um = patches["size_px"].to_numpy(float) * patches["mpp"].to_numpy(float)
    x_um, y_um = (patches[c].to_numpy(float) * slide_mpp for c in ("x_l0", "y_l0"))
    means = mask.box_means() if isinstance(mask, Raster) else mask
    # Summed areas leave a rounding error of 1e-12 above 1.
    return np.clip(means(np.column_stack([x_um, y_um, side_um, side_um]), outside=0), 0, 1)


# Steps -----------------------------------------------------------------------------------------------------------


def read_whole(slide: Slide, mpp: float) -> NDArray[np.uint8]:
    """The slide at `mpp`; `Slide.read_region` reads in bands, so that memory follows the result."""
    width, height = (int(np.ceil(n * slide.mpp / mpp - 1e-6)) for n in slide.dimensions)
    return slide.read_region((0, 0), (max(1, width), max(1, height)), mpp=mpp)


@dataclass
class _Seen:
    """What is kept of the densities of a slide, each (H, W): their mean, whether they differ, and what looks like ink."""

    mean: NDArray[np.float32]
    coloured: NDArray[np.bool_]
    ink: NDArray[np.bool_]
    ink_over_tissue: NDArray[np.bool_]


def _seen(slide: Slide, mpp: float) -> tuple[_Seen, NDArray[np.float64]]:
    """Densities of a slide, band by band, so that 8 bytes a pixel are held and not 60; and its white point."""
    rgb = read_whole(slide, mpp)
    white, sigma = white_point(rgb), SMOOTHING_UM / mpp
    (rows, cols), reach = rgb.shape[:2], int(np.ceil(4 * max(sigma, 0.3))) + 1
    seen = _Seen(np.empty((rows, cols), np.float32), *(np.empty((rows, cols), bool) for _ in range(3)))
    band = max(reach, BAND_PIXELS // cols)
    for top in range(0, rows, band):
        bottom, above = min(top + band, rows), min(top, reach)
        density = optical_density(rgb[top - above : bottom + reach], white, sigma)[above:][: bottom - top]
        red, green, blue, least, most = _channels(density)
        seen.mean[top:bottom] = (red + green + blue) / np.float32(3)
        seen.coloured[top:bottom] = most - least > LEAST_COLOUR
        seen.ink[top:bottom], seen.ink_over_tissue[top:bottom] = _like_ink(density)
    return seen, white


def optical_density(
    rgb: NDArray[np.uint8], white: NDArray[np.float64], sigma_px: float
) -> NDArray[np.float32]:
    import cv2

    table = [-np.log10(np.clip((np.arange(256) + 1) / (w + 1), 1 / 256, 1)).astype(np.float32) for w in white]
    density = np.stack([table[c][rgb[..., c]] for c in range(3)], axis=2)
    return np.asarray(cv2.GaussianBlur(density, (0, 0), max(sigma_px, 0.3)), np.float32)


def _threshold(density: NDArray[np.float32]) -> float:
    """Otsu's threshold of the densities, held between floor and ceiling."""
    from skimage.filters import threshold_otsu

    sample = np.clip(density, 0, 0.5)
    if np.ptp(sample) < 1e-3:
        return OD_CEILING
    return float(np.clip(0.5 * threshold_otsu(sample), OD_FLOOR, OD_CEILING))


def ink(density: NDArray[np.float32], margin_px: float) -> NDArray[np.bool_]:
    """Ink and black, with a margin for the pale edge of a stroke."""
    return _grown(*_like_ink(density), margin_px)


def _like_ink(density: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels of the colours of ink on glass and of black, and of ink over tissue."""
    red, green, blue, least, most = _channels(density)
    cool_ink = (red > 1.35 * green + 0.05) & (red > 0.15)
    red_ink = (green > 0.5) & (blue > 0.6 * green) & (red < 0.1 * green)
    black = (least > 0.6) & (most - least < 0.2 * most)
    # Over tissue the densities add. No mixture of haematoxylin and eosin absorbs so much blue beside green, none of
    # haematoxylin and DAB so much red beside it.
    much_blue = blue > 0.6 * green + 0.07
    dark_over_tissue = much_blue & (red > 0.8 * green) & (green > 0.25)
    red_over_tissue = much_blue & (blue < 0.95 * green) & (red < 0.65 * green) & (green > 0.4)
    blue_over_tissue = (red > 0.93 * green) & (red > 0.6 * green + 0.16)
    return cool_ink | red_ink | black, dark_over_tissue | red_over_tissue | blue_over_tissue


def _channels(density: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Red, green, blue, least and greatest, each (H, W); NumPy takes ten times as long over an axis of three."""
    import cv2

    channels = [np.asarray(c, np.float32) for c in cv2.split(density)]
    return *channels, np.minimum.reduce(channels), np.maximum.reduce(channels)


def _grown(
    on_glass: NDArray[np.bool_], over_tissue: NDArray[np.bool_], margin_px: float
) -> NDArray[np.bool_]:
    """Both without specks, and with a margin. Dust looks like ink over tissue, so that larger pieces are asked for there."""
    import cv2

    found = _drop_specks(on_glass, 16)
    found |= _drop_specks(over_tissue, 60)
    size = 2 * max(1, round(margin_px)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.dilate(found.view(np.uint8), kernel).view(bool)


def _tidy(mask: NDArray[np.bool_], min_px: float, hole_px: float) -> NDArray[np.bool_]:
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    closed = cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_CLOSE, kernel).view(bool)
    # A frame joins the gaps that reach the edge of the slide into one: they are no holes.
    framed = np.pad(~closed, 1, constant_values=True)
    gaps = _drop_specks(framed, hole_px, keep_corner=True)[1:-1, 1:-1]
    return _drop_specks(~gaps, min_px)


def _drop_specks(mask: NDArray[np.bool_], min_px: float, *, keep_corner: bool = False) -> NDArray[np.bool_]:
    """Without the 8-connected pieces of fewer than `min_px` pixels, but for the one at the top left corner if asked."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=8
    )
    keep: NDArray[Any] = stats[:, cv2.CC_STAT_AREA] >= min_px
    if keep_corner:
        keep[labels[0, 0]] = True
    keep[0] = False
    kept = np.empty(labels.shape, bool)
    for place, row in zip(kept, labels, strict=True):  # at once, an index of 8 bytes a pixel would be made
        keep.take(row, out=place)
    return kept
