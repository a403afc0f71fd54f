"""Coordinate frames, rectangles and rasters: where things are on a slide.

Three frames meet on a slide, and all share one origin, the top left corner of level 0, with x to the right and y
downwards, so that going from one to another is a multiplication and nothing else:

``"l0"``
    level-0 pixels, the frame of annotations and of every ``location``;
``0, 1, 2, ...``
    pixels of that pyramid level, the frame of arrays read from it;
``"um"``
    microns, the frame of objects, heatmaps and of anything compared between slides.

A variable carries its frame or unit in its name (``x_l0``, ``box_um``). Pixel (row 0, column 0) covers the square
from 0 to 1 in its own frame; its centre is at 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from pathkit.files import replacing

__all__ = ["Box", "BoxMeans", "Frames", "Raster"]

Frame = str | int
T = TypeVar("T")


@dataclass(frozen=True)
class Box:
    """A rectangle, top left corner and size, in the frame that the variable's name states.

    Parameters
    ----------
    x, y : float
        Top left corner.
    width, height : float
        Size, not negative.

    Raises
    ------
    ValueError
        If a number is not finite, or a size is negative.
    """

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        if not all(np.isfinite((self.x, self.y, self.width, self.height))):
            raise ValueError(f"Box: all four numbers must be finite, got {self}.")
        if self.width < 0 or self.height < 0:
            raise ValueError(f"Box: width and height must not be negative, got {self.width} x {self.height}.")

    @classmethod
    def from_bounds(cls, x0: float, y0: float, x1: float, y1: float) -> Box:
        """The box between two corners, as in shapely's ``bounds``."""
        return cls(x0, y0, x1 - x0, y1 - y0)

    @property
    def x1(self) -> float:
        """Right edge."""
        return self.x + self.width

    @property
    def y1(self) -> float:
        """Bottom edge."""
        return self.y + self.height

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """``(x0, y0, x1, y1)``."""
        return self.x, self.y, self.x1, self.y1

    @property
    def area(self) -> float:
        """Area in the squared unit of the frame."""
        return self.width * self.height

    def polygon(self) -> Polygon:
        """The same rectangle as a shapely polygon."""
        return shapely.box(*self.bounds)

    def scaled(self, factor: float) -> Box:
        """All four numbers multiplied by `factor`: the same place in a frame that is `factor` times finer."""
        return Box(self.x * factor, self.y * factor, self.width * factor, self.height * factor)

    def moved(self, dx: float, dy: float) -> Box:
        """The box shifted by (`dx`, `dy`)."""
        return Box(self.x + dx, self.y + dy, self.width, self.height)

    def intersection(self, other: Box) -> Box | None:
        """The common part, or None where the two share no area."""
        x0, y0 = max(self.x, other.x), max(self.y, other.y)
        x1, y1 = min(self.x1, other.x1), min(self.y1, other.y1)
        if x1 <= x0 or y1 <= y0:
            return None
        return Box.from_bounds(x0, y0, x1, y1)

    def contains(self, xy: ArrayLike) -> NDArray[np.bool_]:
        """For points (..., 2), whether each lies inside (left and top edges belong to the box)."""
        points = np.asarray(xy, dtype=float)
        x, y = points[..., 0], points[..., 1]
        return (x >= self.x) & (x < self.x1) & (y >= self.y) & (y < self.y1)


@dataclass(frozen=True)
class Frames:
    """The frames of one slide, and the way between them.

    Parameters
    ----------
    mpp_l0 : float or None
        Microns per level-0 pixel. None leaves the micron frame undefined.
    downsamples : tuple of float
        Downsample of each level relative to level 0, finest first.

    Examples
    --------
    >>> frames = Frames(mpp_l0=0.25, downsamples=(1, 4))
    >>> frames.convert(Box(100, 200, 40, 80), "l0", "um")
    Box(x=25.0, y=50.0, width=10.0, height=20.0)
    >>> frames.convert([10, 20], 1, "l0")
    array([40., 80.])
    """

    mpp_l0: float | None
    downsamples: tuple[float, ...] = (1.0,)

    def factor(self, source: Frame, target: Frame) -> float:
        """The number that takes a coordinate in `source` to the same place in `target`.

        Raises
        ------
        ValueError
            If a frame is unknown, or microns are asked for while `mpp_l0` is None.
        """
        # One division only, so that going there and back stays within a rounding error.
        return self._l0_per_unit(source) / self._l0_per_unit(target)

    def convert(self, thing: Any, source: Frame, target: Frame) -> Any:
        """`thing` of frame `source`, expressed in frame `target`.

        Parameters
        ----------
        thing : Box, shapely geometry, or (..., 2) array-like of points
        source, target : "l0", "um", or int
            An int is a pyramid level.

        Returns
        -------
        Box, shapely geometry, or (..., 2) float64 array
            Of the kind that came in.
        """
        factor = self.factor(source, target)
        if isinstance(thing, Box):
            return thing.scaled(factor)
        if isinstance(thing, BaseGeometry):
            return shapely.transform(thing, lambda xy: xy * factor)
        return np.asarray(thing, dtype=float) * factor

    def _l0_per_unit(self, frame: Frame) -> float:
        if frame == "l0":
            return 1.0
        if frame == "um":
            if self.mpp_l0 is None:
                raise ValueError(
                    "Frames: microns are undefined while the slide's mpp is unknown. Give it: open_slide(path, mpp=...)."
                )
            return 1.0 / self.mpp_l0
        if isinstance(frame, (int, np.integer)) and 0 <= frame < len(self.downsamples):
            return float(self.downsamples[frame])
        raise ValueError(
            f'Frames: unknown frame {frame!r}. Use "l0", "um" or a level from 0 to {len(self.downsamples) - 1}.'
        )


@dataclass
class Raster:
    """An array laid over a slide: a tissue mask (bool), a heatmap (float, NaN where not computed), a label map (int).

    Parameters
    ----------
    values : (H, W) or (H, W, C) array
        ``values[r, c]`` covers the square from ``origin + (c, r) * mpp`` to ``origin + (c + 1, r + 1) * mpp``.
    mpp : float
        Microns per raster pixel.
    origin_um : (float, float)
        Where the top left corner of ``values[0, 0]`` lies, in microns from the level-0 corner.
    attrs : dict
        Anything worth keeping with it (thresholds used, model, class); JSON types only, saved with it.

    Raises
    ------
    ValueError
        If `values` is not two- or three-dimensional, or `mpp` is not positive.
    """

    values: NDArray[Any]
    mpp: float
    origin_um: tuple[float, float] = (0.0, 0.0)
    attrs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = np.asanyarray(self.values)
        if self.values.ndim not in (2, 3):
            raise ValueError(f"Raster: values must be (H, W) or (H, W, C), got shape {self.values.shape}.")
        if not (np.isfinite(self.mpp) and self.mpp > 0):
            raise ValueError(f"Raster: mpp must be a positive number of microns per pixel, got {self.mpp}.")

    @property
    def extent_um(self) -> Box:
        """The rectangle covered, in microns."""
        height, width = self.values.shape[:2]
        return Box(*self.origin_um, width * self.mpp, height * self.mpp)

    def sample(self, xy_um: ArrayLike, *, outside: float = np.nan) -> NDArray[Any]:
        """Values at points, nearest pixel.

        Parameters
        ----------
        xy_um : (N, 2) array-like
            Points in microns.
        outside : float
            Value for points outside the raster. Points that all lie inside keep the raster's dtype.

        Returns
        -------
        (N,) or (N, C) array
        """
        points = np.asarray(xy_um, dtype=float).reshape(-1, 2)
        cols, rows = np.floor((points - self.origin_um) / self.mpp).T
        height, width = self.values.shape[:2]
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        picked = self.values[np.where(inside, rows, 0).astype(int), np.where(inside, cols, 0).astype(int)]
        if inside.all():
            return picked
        picked = picked.astype(np.result_type(picked.dtype, np.float32))
        picked[~inside] = outside
        return picked

    def mean_in(self, boxes_um: ArrayLike, *, outside: float | None = None) -> NDArray[np.float64]:
        """Area-weighted mean inside each box, exact for fractional edges.

        Parameters
        ----------
        boxes_um : (N, 4) array-like
            Rows of x, y, width, height in microns.
        outside : float, optional
            Value supposed beyond the raster's edge and where it is NaN. None leaves those parts out of the mean.

        Returns
        -------
        (N,) float64
            NaN for a box without any known area.
        """
        return self.box_means()(boxes_um, outside=outside)

    def box_means(self) -> BoxMeans:
        """`mean_in` for many calls: the sums that it needs are made once, of the values as they are now."""
        return BoxMeans(self)

    def save(self, path: str | Path) -> Path:
        """Write to a compressed ``.npz``; `Raster.load` reads it back."""
        import json

        path = Path(path)
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                values=self.values,
                mpp=self.mpp,
                origin_um=np.asarray(self.origin_um, dtype=float),
                attrs=np.array(json.dumps(self.attrs)),
            )
        return path

    @classmethod
    def load(cls, path: str | Path) -> Raster:
        """Read what `save` wrote."""
        import json

        with np.load(path, allow_pickle=False) as stored:
            missing = {"values", "mpp", "origin_um"} - set(stored.files)
            if missing:
                raise ValueError(
                    f"{Path(path).name}: not a raster saved by pathkit, it lacks {', '.join(sorted(missing))}."
                )
            x, y = stored["origin_um"].tolist()
            attrs = json.loads(str(stored["attrs"])) if "attrs" in stored.files else {}
            return cls(stored["values"], float(stored["mpp"]), (x, y), attrs)


class BoxMeans:
    """Area-weighted means of a raster in boxes; made by `Raster.box_means`, called as `Raster.mean_in`.

    A mask's sums are whole numbers of 4 bytes a pixel, so that the mask of a very large slide does not fill the memory;
    other rasters take 16.
    """

    def __init__(self, raster: Raster):
        if raster.values.ndim != 2:
            raise ValueError(f"Raster.mean_in: needs a (H, W) raster, this one is {raster.values.shape}.")
        self._mpp, self._origin_um, values = raster.mpp, raster.origin_um, raster.values
        self._shape = values.shape
        self._known: NDArray[Any] | None = None
        if values.dtype == bool and values.size < 2**32:
            self._total = _summed(values, np.uint32)
            return
        values = values.astype(np.float64)
        known = np.isfinite(values)
        if not known.all():
            self._known = _summed(known, np.uint32 if known.size < 2**32 else np.float64)
        self._total = _summed(np.where(known, values, 0.0), np.float64)

    def __call__(self, boxes_um: ArrayLike, *, outside: float | None = None) -> NDArray[np.float64]:
        """As `Raster.mean_in`."""
        boxes = np.asarray(boxes_um, dtype=float).reshape(-1, 4)
        x0, y0 = ((boxes[:, :2] - self._origin_um) / self._mpp).T
        x1, y1 = ((boxes[:, :2] + boxes[:, 2:] - self._origin_um) / self._mpp).T
        total = _box_sums(self._total, x0, y0, x1, y1)
        if self._known is None:
            (rows, cols), edges = self._shape, (x0, y0, x1, y1)
            left, top, right, bottom = (
                np.clip(v, 0, n) for v, n in zip(edges, (cols, rows) * 2, strict=True)
            )
            area = (right - left) * (bottom - top)
        else:
            area = _box_sums(self._known, x0, y0, x1, y1)
        with np.errstate(invalid="ignore", divide="ignore"):
            if outside is None:
                return np.where(area > 1e-9, total / area, np.nan)
            whole = (x1 - x0) * (y1 - y0)
            return (total + outside * (whole - area)) / whole


def _summed(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Summed-area table, (H + 1, W + 1): the sum of all values above and to the left."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype)
    inner = table[1:, 1:]
    np.cumsum(values, axis=0, dtype=dtype, out=inner)
    for row in inner:
        np.cumsum(row, dtype=dtype, out=row)
    return table


def _box_sums(table: NDArray[Any], x0: Any, y0: Any, x1: Any, y1: Any) -> NDArray[np.float64]:
    """Integral of a piecewise constant image over boxes in pixels, through its summed-area table.

    The table interpolated bilinearly at a fractional corner is the exact integral up to that corner.
    """
    rows, cols = (n - 1 for n in table.shape)

    def up_to(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = np.clip(x, 0, cols), np.clip(y, 0, rows)
        c, r = np.minimum(x.astype(int), cols - 1), np.minimum(y.astype(int), rows - 1)
        u, v = x - c, y - r
        top = (1 - u) * table[r, c] + u * table[r, c + 1]
        bottom = (1 - u) * table[r + 1, c] + u * table[r + 1, c + 1]
        return (1 - v) * top + v * bottom

    return up_to(x1, y1) - up_to(x0, y1) - up_to(x1, y0) + up_to(x0, y0)
