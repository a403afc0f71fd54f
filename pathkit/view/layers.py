"""Layers over a slide: what they check, how Bokeh and matplotlib draw them, and which rows lie where.

A layer is made from a table, a raster or outlines, and placed on a slide when a viewer takes it; that is when it is checked
against the slide. Inside, everything is level-0 pixels. Rasters are sent once, as bytes, and coloured in the browser, so
that threshold and opacity cost nothing; points are marks with a hover while few are in view, and a picture shaded by
datashader beyond.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from pathkit.geometry import Box, Raster
from pathkit.metrics import match_detections
from pathkit.slide import Slide
from pathkit.view.gallery import need
from pathkit.view.tiles import Pyramid

__all__ = [
    "PALETTE",
    "Attention",
    "Detections",
    "Heatmap",
    "Layer",
    "Mask",
    "Patches",
    "Points",
    "Polygons",
    "SecondSlide",
    "as_layer",
    "colours_of",
]

#: Okabe and Ito's colours, which colour-blind readers can tell apart; those that vanish in eosin come last.
PALETTE = ["#0072b2", "#009e73", "#e69f00", "#56b4e9", "#f0e442", "#d55e00", "#cc79a7", "#000000"]
#: What became of a detection.
COLOURS = {
    "hit": "#009e73",
    "false alarm": "#d55e00",
    "missed": "#000000",
    "truth": "#0072b2",
    "ignored": "#999999",
}
#: Rows drawn as marks with a hover; more are shaded.
MARKS = 1500
#: Corners of outlines sent at once.
CORNERS = 60_000
#: Longer side of a raster that is sent whole.
RASTER_PX = 1500
BINS = 64


def colours_of(classes: Iterable[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """A colour for each class: the one given, else the next of the palette."""
    return {n: (given or {}).get(n, PALETTE[i % len(PALETTE)]) for i, n in enumerate(classes)}


class Layer:
    """What is common: a name, visibility, opacity; see the classes below for what can be shown.

    Attributes
    ----------
    name : str
    visible : bool
    opacity : float
        0 to 1.
    table : DataFrame or None
        Rows that can be selected.
    """

    hover: list[tuple[str, str]] = []  # noqa: RUF012
    table: pd.DataFrame | None = None

    def __init__(self, name: str, *, visible: bool = True, opacity: float = 1.0):
        if not 0 <= opacity <= 1:
            raise ValueError(f"layer {name!r}: opacity is 0 to 1, got {opacity}.")
        self.name, self._visible, self._opacity = name, visible, opacity
        self.renderers: list[Any] = []
        self.panel: tuple[Any, Any] | None = None  # its check box and its slider, where it is shown

    @property
    def visible(self) -> bool:
        return self._visible

    @visible.setter
    def visible(self, value: bool) -> None:
        self._visible = bool(value)
        self.apply()

    @property
    def opacity(self) -> float:
        return self._opacity

    @opacity.setter
    def opacity(self, value: float) -> None:
        self._opacity = float(value)
        self.apply()

    def place(self, slide: Slide) -> None:
        """Check against a slide and take its frame; raises ValueError with the way out."""

    def build(self, plot: Any) -> list[Any]:
        """Renderers on a Bokeh figure."""
        return []

    def apply(self) -> None:
        """Bring the renderers to visibility and opacity."""
        for renderer in self.renderers:
            renderer.visible = self._visible
            if hasattr(renderer.glyph, "global_alpha"):
                renderer.glyph.global_alpha = self._opacity
            else:
                renderer.glyph.line_alpha = self._opacity
                if hasattr(renderer.glyph, "fill_alpha"):
                    renderer.glyph.fill_alpha = self._opacity * self.fill
        self._tell_panel()

    def _tell_panel(self) -> None:
        if self.panel is not None:
            self.panel[0].value, self.panel[1].value = self._visible, self._opacity

    fill = 1.0

    def refresh(self, view: Any) -> None:
        """Bring what depends on the view to it."""

    def draw(self, axes: Any, view: Any) -> None:
        """Draw on matplotlib axes in level-0 pixels."""

    def legend(self) -> list[tuple[str, str]]:
        """Names and colours."""
        return []

    def key_html(self) -> str:
        """The legend for the panel: one coloured square where the layer's name says the rest, else a list in a div."""
        entries = self.legend()
        squares = [f'<span style="color:{colour};font-size:14px">■</span>' for _, colour in entries]
        if [name for name, _ in entries] in ([], [self.name]):
            return "".join(squares)
        named = (
            f'<span style="white-space:nowrap">{square} {html.escape(name)}</span> '
            for square, (name, _) in zip(squares, entries, strict=True)
        )
        return f'<div style="line-height:1.4;font-size:11px;padding-left:22px">{"".join(named)}</div>'

    def controls(self) -> list[Any]:
        """Widgets of its own."""
        return []

    def inside(self, region: Any, *, tap: bool = False) -> NDArray[np.intp]:
        """Positions of the rows inside a polygon, or under a click."""
        return np.zeros(0, np.intp)

    def marks(self, rows: NDArray[np.intp], view: Any) -> NDArray[np.float64]:
        """Rectangles (left, top, right, bottom) that outline the rows in view."""
        return np.zeros((0, 4))

    def close(self) -> None:
        """Give back what the layer holds open."""


# Rasters ---------------------------------------------------------------------------------------------------------


class Heatmap(Layer):
    """Numbers over the slide, NaN where there are none.

    Parameters
    ----------
    values : Raster or (H, W) array
        An array needs `mpp`.
    mpp : float, optional
        Microns per pixel of an array.
    origin_um : (float, float)
        Where an array begins, in microns.
    colours : str
        A colour map of matplotlib.
    low, high : float, optional
        Ends of the colour map; 0 and 1 for values between them, else the least and the greatest.
    threshold : float, optional
        Lower values are not shown; the panel has a slider for it.

    Raises
    ------
    ValueError
        If there is no mpp, or no number; when placed, if it lies beside the slide or reaches beyond it.
    """

    def __init__(
        self,
        values: Raster | NDArray[Any],
        *,
        mpp: float | None = None,
        origin_um: tuple[float, float] = (0.0, 0.0),
        name: str = "heatmap",
        colours: str = "viridis",
        low: float | None = None,
        high: float | None = None,
        threshold: float | None = None,
        opacity: float = 0.5,
        visible: bool = True,
    ):
        super().__init__(name, visible=visible, opacity=opacity)
        if not isinstance(values, Raster):
            if mpp is None:
                raise ValueError(
                    f"layer {name!r}: an array has no place on a slide by itself. Pass mpp=... (microns per pixel of the"
                    " array), or a Raster."
                )
            values = Raster(np.asarray(values), mpp, origin_um)
        if values.values.ndim != 2 or not values.values.size:
            raise ValueError(f"layer {name!r}: expected (H, W) values, got shape {values.values.shape}.")
        self.raster = values
        finite = np.isfinite(values.values)
        if not finite.any():
            raise ValueError(
                f"layer {name!r}: no value is a number ({values.values.size} are NaN): nothing to show."
            )
        known = values.values[finite]
        unit = known.min() >= 0 and known.max() <= 1
        self.low = float((0 if unit else known.min()) if low is None else low)
        self.high = float((1 if unit else known.max()) if high is None else high)
        if self.high <= self.low:
            self.high = self.low + 1.0
        self.colours, self._threshold = colours, self.low if threshold is None else float(threshold)
        self._mapper: Any = None
        self._slider: Any = None

    @property
    def threshold(self) -> float:
        """The least value shown."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold = float(value)
        if self._mapper is not None:
            self._mapper.low, self._mapper.palette = self._cut()
        if self._slider is not None:
            self._slider.value = self._threshold

    def place(self, slide: Slide) -> None:
        extent, (width, height) = self.raster.extent_um, (n * slide.mpp for n in slide.dimensions)
        room = max(3 * self.raster.mpp, 0.05 * max(width, height))
        fits = (
            extent.x >= -room
            and extent.y >= -room
            and extent.x1 <= width + room
            and extent.y1 <= height + room
        )
        if not fits or extent.intersection(Box(0, 0, width, height)) is None:
            guess = width / self.raster.values.shape[1]
            raise ValueError(
                f"layer {self.name!r}: covers x {extent.x:.0f} to {extent.x1:.0f} and y {extent.y:.0f} to {extent.y1:.0f} µm,"
                f" but the slide {width:.0f} x {height:.0f} µm. Is mpp={self.raster.mpp:g} right, and is it of this slide?"
                f" (An array of this shape over the whole slide would have mpp={guess:.4g}.)"
            )
        self.slide, self.slide_mpp = slide, slide.mpp
        self._codes = self._coded()

    def show(self, values: Raster) -> None:
        """Show other values in the same colours: the next prediction, a mask with another threshold.

        Raises
        ------
        ValueError
            If they do not lie on the slide.
        """
        before, self.raster = self.raster, values
        try:
            self.place(self.slide)
        except ValueError:
            self.raster = before
            raise
        if self.renderers:
            self._source.data = self._part(self._box)  # type: ignore[assignment]

    def _coded(self) -> NDArray[np.uint8]:
        """0 where there is nothing, else 1 to 255."""
        values = self.raster.values.astype(np.float32)
        share = (np.nan_to_num(values) - self.low) / (self.high - self.low)
        codes = 1 + np.clip(np.floor(share * 255), 0, 254)
        return np.where(np.isfinite(values), codes, 0).astype(np.uint8)

    def _cut(self) -> tuple[float, list[str]]:
        """The least code shown, and the colours from there on."""
        share = (self._threshold - self.low) / (self.high - self.low)
        least = int(1 + np.clip(np.ceil(share * 255 - 1e-6), 0, 254))
        return least, self._palette()[least - 1 :]

    def _palette(self) -> list[str]:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        return [to_hex(colour) for colour in colormaps[self.colours](np.linspace(0, 1, 255))]

    def build(self, plot: Any) -> list[Any]:
        from bokeh.models import ColumnDataSource, LinearColorMapper

        least, palette = self._cut()
        self._mapper = LinearColorMapper(
            palette=palette, low=least, high=256, low_color=(0, 0, 0, 0), nan_color=(0, 0, 0, 0)
        )
        self._box = Box(0, 0, 1e12, 1e12)
        self._source = ColumnDataSource(self._part(self._box))
        at = {name: name for name in ("image", "x", "y", "dw", "dh")}
        return [plot.image(**at, source=self._source, color_mapper=self._mapper, level="underlay")]

    def _part(self, box: Box) -> dict[str, list[Any]]:
        """The pixels in a box, at most RASTER_PX a side, and where they lie."""
        rows, cols = self._codes.shape
        cell, (x, y) = self.raster.mpp / self.slide_mpp, np.divide(self.raster.origin_um, self.slide_mpp)
        c0, r0 = (
            int(np.clip((v - o) // cell, 0, n - 1))
            for v, o, n in zip((box.x, box.y), (x, y), (cols, rows), strict=True)
        )
        c1, r1 = (
            int(np.clip(np.ceil((v - o) / cell), 1, n))
            for v, o, n in zip((box.x1, box.y1), (x, y), (cols, rows), strict=True)
        )
        c1, r1 = max(c1, c0 + 1), max(r1, r0 + 1)
        step = int(np.ceil(max(c1 - c0, r1 - r0) / RASTER_PX))
        part = np.ascontiguousarray(self._codes[r0:r1:step, c0:c1:step])
        size = part.shape[1] * step * cell, part.shape[0] * step * cell
        return {"image": [part], "x": [x + c0 * cell], "y": [y + r0 * cell], "dw": [size[0]], "dh": [size[1]]}

    def refresh(self, view: Any) -> None:
        if self.renderers and max(self._codes.shape) > RASTER_PX:
            self._box = view.box_l0
            self._source.data = self._part(self._box)  # type: ignore[assignment]

    def draw(self, axes: Any, view: Any) -> None:
        part = self._part(view.box_l0)
        codes = part["image"][0].astype(float)
        codes[codes < self._cut()[0]] = np.nan
        x, y, width, height = (part[name][0] for name in ("x", "y", "dw", "dh"))
        values = self.low + (codes - 0.5) / 255 * (self.high - self.low)
        axes.imshow(
            values,
            extent=(x, x + width, y + height, y),
            vmin=self.low,
            vmax=self.high,
            cmap=self._colormap(),
            alpha=self.opacity,
            interpolation="nearest",
            zorder=2,
        )

    def _colormap(self) -> Any:
        from matplotlib.colors import ListedColormap

        return ListedColormap(self._palette())

    def key_html(self) -> str:
        return _gradient(self.low, self.high, self._palette()[::16])

    def legend(self) -> list[tuple[str, str]]:
        colours = self._palette()
        return [
            (_short(self.low), colours[0]),
            (_short((self.low + self.high) / 2), colours[127]),
            (_short(self.high), colours[-1]),
        ]

    def controls(self) -> list[Any]:
        import ipywidgets

        slider = ipywidgets.FloatSlider(
            self._threshold,
            min=self.low,
            max=self.high,
            step=(self.high - self.low) / 100,
            description="from",
            readout_format=".2g",
        )
        slider.style.description_width, slider.layout.width = "35px", "auto"
        slider.observe(lambda change: setattr(self, "threshold", change["new"]), "value")
        self._slider = slider
        return [slider]


class Mask(Heatmap):
    """A mask over the slide in one colour; arguments as of `Heatmap`.

    Parameters
    ----------
    values : Raster or (H, W) array of bool
    colour : str
        "#rrggbb".
    """

    def __init__(
        self,
        values: Raster | NDArray[np.bool_],
        *,
        mpp: float | None = None,
        origin_um: tuple[float, float] = (0.0, 0.0),
        name: str = "mask",
        colour: str = PALETTE[0],
        opacity: float = 0.35,
        visible: bool = True,
    ):
        self.colour = colour
        super().__init__(values, mpp=mpp, origin_um=origin_um, name=name, opacity=opacity, visible=visible)

    def _coded(self) -> NDArray[np.uint8]:
        return (np.asarray(self.raster.values) > 0).astype(np.uint8) * 255

    def _palette(self) -> list[str]:
        return [self.colour] * 255

    def legend(self) -> list[tuple[str, str]]:
        return [(self.name, self.colour)]

    key_html = Layer.key_html

    def controls(self) -> list[Any]:
        return []


class Attention(Heatmap):
    """A number for each patch, painted where the patches lie; overlapping patches give their mean.

    Parameters
    ----------
    patches : DataFrame
        x_l0, y_l0, size_px, mpp.
    weights : (N,) array
        In the patches' order.
    **options
        As of `Heatmap`.
    """

    def __init__(self, patches: pd.DataFrame, weights: Any, **options: Any):
        weights = np.asarray(weights, float).ravel()
        name = options.setdefault("name", "attention")
        _check_rows(patches, name, ("x_l0", "y_l0", "size_px", "mpp"))
        if len(weights) != len(patches):
            raise ValueError(f"layer {name!r}: {len(weights)} weights for {len(patches)} patches.")
        if not np.isfinite(weights).any():
            raise ValueError(f"layer {name!r}: no weight is a number.")
        self._patches, self._weights, self._options = patches, weights, {"colours": "inferno", **options}
        Layer.__init__(self, name, visible=options.get("visible", True), opacity=options.get("opacity", 0.5))

    def place(self, slide: Slide) -> None:
        xy = self._patches[["x_l0", "y_l0"]].to_numpy(float)
        side = float(self._patches["size_px"].iloc[0] * self._patches["mpp"].iloc[0] / slide.mpp)
        corner = xy.min(0)
        steps = np.diff(np.unique(np.round(xy - corner)))
        cell = max(float(np.gcd.reduce(steps.astype(np.int64))) if len(steps) else side, side / 8)
        cell = side / max(1, round(side / cell))  # whole cells a patch
        cols, rows = np.round((xy - corner) / cell).astype(int).T
        n = max(1, round(side / cell))
        total = np.zeros((rows.max() + n, cols.max() + n))
        count = np.zeros_like(total)
        known = np.isfinite(self._weights)
        for dr in range(n):
            for dc in range(n):
                np.add.at(total, (rows[known] + dr, cols[known] + dc), self._weights[known])
                np.add.at(count, (rows[known] + dr, cols[known] + dc), 1)
        with np.errstate(invalid="ignore"):
            values = np.where(count > 0, total / count, np.nan)
        low = self._options.get("low", min(0.0, float(np.nanmin(values))))
        high = self._options.get("high", float(np.nanmax(values)))
        super().__init__(
            Raster(values, cell * slide.mpp, tuple(corner * slide.mpp)),  # type: ignore[arg-type]
            **{**self._options, "low": low, "high": high, "name": self.name},
        )
        super().place(slide)


# Rows ------------------------------------------------------------------------------------------------------------


class Points(Layer):
    """Objects of a table: marks with a hover while few are in view, shaded by datashader beyond; up to 10^7.

    Parameters
    ----------
    table : DataFrame
        x_um, y_um (or x_l0, y_l0).
    by : str, optional
        The column that colours: classes, or numbers (viridis). ``"class"`` where there is one.
    colours : mapping, optional
        From class to "#rrggbb".
    size_px : float
        Of a mark, on the screen.

    Raises
    ------
    ValueError
        If the table is empty, lacks a column, or holds a place that is no number; when placed, if all lie off the slide.
    """

    what = "objects"
    most_marks = MARKS

    def __init__(
        self,
        table: pd.DataFrame,
        *,
        by: str | None = None,
        name: str | None = None,
        colours: Mapping[str, str] | None = None,
        size_px: float = 8.0,
        opacity: float = 0.9,
        visible: bool = True,
    ):
        super().__init__(name or self.what, visible=visible, opacity=opacity)
        um = "x_um" in table
        self._columns = ("x_um", "y_um") if um else ("x_l0", "y_l0")
        by = "class" if by is None and "class" in table else by
        _check_rows(table, self.name, (*self._columns, *([by] if by else [])))
        self.table, self.by, self.size_px, self._given = table, by, size_px, dict(colours or {})
        self.xy_l0 = table[list(self._columns)].to_numpy(np.float64)
        self._um = um
        self._colour_rows(self._given)

    def recolour(self, table: pd.DataFrame) -> None:
        """Colour the same rows by other values: the next labels, another score.

        Raises
        ------
        ValueError
            If the rows are not the same.
        """
        assert self.table is not None
        if not table.index.equals(self.table.index):
            raise ValueError(
                f"layer {self.name!r}: recolour takes the same {len(self.table)} rows, got {len(table)}."
            )
        self.table = table
        self._colour_rows(self._given)
        if hasattr(self, "_dimensions"):
            self._index(self._dimensions)

    def _colour_rows(self, given: dict[str, str]) -> None:
        assert self.table is not None
        column = pd.Series("", index=self.table.index) if self.by is None else self.table[self.by]
        self.numeric = (
            self.by is not None
            and pd.api.types.is_numeric_dtype(column)
            and not pd.api.types.is_bool_dtype(column)
        )
        if self.numeric:
            from matplotlib import colormaps

            values = column.to_numpy(float)
            if not np.isfinite(values).any():
                raise ValueError(f"layer {self.name!r}: no {self.by!r} is a number.")
            self.low, self.high = float(np.nanmin(values)), float(np.nanmax(values))
            share = np.nan_to_num((values - self.low) / max(self.high - self.low, 1e-12))
            self.codes = np.round(share * 31).astype(np.int8)  # 32 shades: as many as an eye tells apart
            self.palette = np.round(colormaps["viridis"](np.linspace(0, 1, 32))[:, :3] * 255)
            self.classes: list[str] = []
            return
        codes, names = pd.factorize(column.astype(str), sort=True)
        self.classes = [str(n) for n in names]
        if len(names) > 30:
            raise ValueError(
                f"layer {self.name!r}: {len(names)} classes in {self.by!r} are too many to colour. Pass by=... ."
            )
        hexes = colours_of(self.classes, given).values()
        self.codes, self.palette = codes.astype(np.int8), np.array([_rgb(h) for h in hexes], float)

    def place(self, slide: Slide) -> None:
        self.slide_mpp = slide.mpp if self._um or "size_px" in self.table else slide.mpp_or_none  # type: ignore[operator]
        if self._um:
            self.xy_l0, self._um = self.xy_l0 / slide.mpp, False
        on_slide = ((self.xy_l0 >= -1) & (self.xy_l0 <= np.array(slide.dimensions) + 1)).all(1)
        if not on_slide.any():
            raise ValueError(
                f"layer {self.name!r}: none of its {len(on_slide)} rows lies on the slide ({slide.dimensions[0]} x"
                f" {slide.dimensions[1]} px); the first is at {self.xy_l0[0].round()}. Is it of this slide, in"
                f" {'microns' if 'x_um' in self._columns else 'level-0 pixels'}?"
            )
        self._index(slide.dimensions)

    def _index(self, dimensions: tuple[int, int]) -> None:
        """Rows sorted by a coarse grid, so that a view touches its own rows alone."""
        self._dimensions = dimensions
        self._bin = np.array(dimensions) / BINS
        cols, rows = np.clip(self.xy_l0 / self._bin, 0, BINS - 1).astype(np.uint16).T
        cells = rows * np.uint16(BINS) + cols
        self._order = np.argsort(cells, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(cells[self._order], np.arange(BINS * BINS + 1))
        if len(self._order) > MARKS:
            names = self.classes or [str(i) for i in range(32)]
            codes = pd.Categorical.from_codes(self.codes[self._order], names)
            x, y = self.xy_l0[self._order].T.astype(np.float32)
            self._sorted = pd.DataFrame({"x": x, "y": y, "code": codes})
            threading.Thread(
                target=self._shaded, args=(self._sorted.iloc[:10], Box(0, 0, 9, 9), (9, 9)), daemon=True
            ).start()

    def _slices(self, box: Box) -> list[slice]:
        """Where in the sorted order the rows near a box stand."""
        c0, c1 = (int(np.clip(v / self._bin[0], 0, BINS - 1)) for v in (box.x, box.x1))
        r0, r1 = (int(np.clip(v / self._bin[1], 0, BINS - 1)) for v in (box.y, box.y1))
        if c1 - c0 == BINS - 1:
            return [slice(self._starts[r0 * BINS], self._starts[(r1 + 1) * BINS])]
        return [
            slice(self._starts[r * BINS + c0], self._starts[r * BINS + c1 + 1]) for r in range(r0, r1 + 1)
        ]

    def near(self, box: Box) -> NDArray[np.intp]:
        """Positions of the rows inside a box, in no order."""
        rows = np.concatenate([self._order[part] for part in self._slices(box)]).astype(np.intp)
        return rows[box.contains(self.xy_l0[rows])]

    def inside(self, region: Any, *, tap: bool = False) -> NDArray[np.intp]:
        if region.is_empty:
            return np.zeros(0, np.intp)
        rows = self.near(Box.from_bounds(*region.bounds))
        rows = rows[shapely.contains_xy(region, self.xy_l0[rows])]
        if tap and len(rows):
            away = np.hypot(*(self.xy_l0[rows] - [region.centroid.x, region.centroid.y]).T)
            rows = rows[[away.argmin()]]
        return np.sort(rows)

    def marks(self, rows: NDArray[np.intp], view: Any) -> NDArray[np.float64]:
        rows = rows[view.box_l0.contains(self.xy_l0[rows])][:3000]
        half = (self.size_px / 2 + 3) * view.l0_per_px
        return np.hstack([self.xy_l0[rows] - half, self.xy_l0[rows] + half])

    # Drawing

    def build(self, plot: Any) -> list[Any]:
        from bokeh.models import ColumnDataSource

        self._picture = ColumnDataSource({"url": [], "x": [], "y": [], "w": [], "h": []})
        self._marks = ColumnDataSource(self._rows_shown(np.zeros(0, np.intp)))
        shaded = plot.image_url(url="url", x="x", y="y", w="w", h="h", source=self._picture, level="glyph")
        self.hover = [(c, f"@{{{c}}}") for c in self._shown_columns()]
        return [shaded, self._mark(plot)]

    def _mark(self, plot: Any) -> Any:
        return plot.scatter(
            "x",
            "y",
            source=self._marks,
            size=self.size_px,
            fill_color="colour",
            line_color="white",
            line_width=0.8,
        )

    def _shown_columns(self) -> list[str]:
        assert self.table is not None
        return [str(c) for c in self.table.columns if c not in ("geometry", "x_l0", "y_l0")][:6]

    def _rows_shown(self, rows: NDArray[np.intp]) -> dict[str, Any]:
        assert self.table is not None
        hexes = np.array([f"#{int(r):02x}{int(g):02x}{int(b):02x}" for r, g, b in self.palette])
        data: dict[str, Any] = {
            "x": self.xy_l0[rows, 0],
            "y": self.xy_l0[rows, 1],
            "colour": hexes[self.codes[rows]],
        }
        for column in self._shown_columns():
            values = self.table[column].to_numpy()[rows]
            data[column] = values if values.dtype.kind in "fiu" else values.astype(str)
        return data

    def refresh(self, view: Any) -> None:
        if not self.renderers:
            return
        rows = self._few(view.box_l0)
        if rows is None:
            self._picture.data = self._shaded_view(view)  # type: ignore[assignment]
            rows = np.zeros(0, np.intp)
        elif len(self._picture.data["url"]):
            self._picture.data = {"url": [], "x": [], "y": [], "w": [], "h": []}
        if len(rows) or len(self._marks.data["x"]):
            self._marks.data = self._rows_shown(rows)  # type: ignore[assignment]

    def _few(self, box: Box) -> NDArray[np.intp] | None:
        """The rows in a box, or None where they are too many for marks."""
        if sum(part.stop - part.start for part in self._slices(box)) > 20 * self.most_marks:
            return None
        rows = self.near(box)
        return None if len(rows) > self.most_marks else rows

    def _shaded_view(self, view: Any) -> dict[str, list[Any]]:
        import cv2

        from pathkit.view.viewer import data_uri

        # 32 steps a channel, packed by runs: half the time and bytes, and on points no eye sees it.
        bgra = cv2.cvtColor(self._shaded_frame(view) & 0xF8, cv2.COLOR_RGBA2BGRA)
        fast = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
        _, png = cv2.imencode(".png", bgra, fast)
        box = view.box_l0
        return {
            "url": [data_uri(png.tobytes(), "png")],
            "x": [box.x],
            "y": [box.y],
            "w": [box.width],
            "h": [box.height],
        }

    def _shaded(self, frame: pd.DataFrame, box: Box, size: tuple[int, int]) -> NDArray[np.uint8]:
        """(H, W, 4): hue the mean of the classes under a pixel, opacity their number."""
        import cv2
        import datashader

        canvas = datashader.Canvas(*size, x_range=(box.x, box.x1), y_range=(box.y, box.y1))
        count = (
            canvas.points(frame, "x", "y", agg=datashader.by("code", datashader.count()))
            .to_numpy()
            .astype(np.float32)
        )
        used = np.flatnonzero(count.any((0, 1)))
        if len(used) == 0:
            return np.zeros((*size[::-1], 4), np.uint8)
        count = cv2.boxFilter(np.ascontiguousarray(count[..., used]), -1, (3, 3), normalize=False)
        count = count.reshape(*size[::-1], len(used))
        # One product gives the colours, summed, and the number of points.
        mixed = count @ np.column_stack([self.palette[used], np.ones(len(used))]).astype(np.float32)
        total = mixed[..., 3]
        rgba = np.empty(mixed.shape, np.uint8)
        rgba[..., :3] = mixed[..., :3] / np.maximum(total, 1e-6)[..., None]
        rgba[..., 3] = np.where(total > 0.5, 150 + 105 * np.log1p(total) / np.log1p(total.max()), 0)
        return rgba

    def draw(self, axes: Any, view: Any) -> None:
        rows = self._few(view.box_l0)
        if rows is None:
            shown = self._shaded_frame(view)
            axes.imshow(
                shown,
                extent=(view.box_l0.x, view.box_l0.x1, view.box_l0.y1, view.box_l0.y),
                alpha=self.opacity,
                zorder=3,
            )
            return
        self._draw_rows(axes, rows)

    def _shaded_frame(self, view: Any) -> NDArray[np.uint8]:
        parts = [self._sorted.iloc[part] for part in self._slices(view.box_l0)]
        frame = parts[0] if len(parts) == 1 else pd.concat(parts)
        return self._shaded(frame, view.box_l0, (view.width_px, view.height_px))

    def _draw_rows(self, axes: Any, rows: NDArray[np.intp]) -> None:
        colours = self.palette[self.codes[rows]] / 255
        axes.scatter(
            *self.xy_l0[rows].T,
            s=self.size_px**2 * 0.4,
            c=colours,
            edgecolors="white",
            linewidths=0.5,
            alpha=self.opacity,
            zorder=4,
        )

    def key_html(self) -> str:
        if not self.numeric:
            return super().key_html()
        return _gradient(
            self.low, self.high, [f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in self.palette[::2]]
        )

    def legend(self) -> list[tuple[str, str]]:
        hexes = [f"#{int(r):02x}{int(g):02x}{int(b):02x}" for r, g, b in self.palette]
        if self.numeric:
            return [(f"{self.low:.3g}", hexes[0]), (f"{self.high:.3g}", hexes[-1])]
        return [(n or self.name, h) for n, h in zip(self.classes, hexes, strict=True)]


class Patches(Points):
    """Patches of a table as squares of their size; more than 1,500 in view are shaded. Arguments as of `Points`.

    Parameters
    ----------
    table : DataFrame
        x_l0, y_l0, size_px, mpp.
    """

    what = "patches"

    def __init__(self, table: pd.DataFrame, **options: Any):
        _check_rows(table, options.get("name") or self.what, ("x_l0", "y_l0", "size_px", "mpp"))
        super().__init__(table, **options)
        self._columns = ("x_l0", "y_l0")
        self.corners_l0 = table[["x_l0", "y_l0"]].to_numpy(np.float64)
        self._um = False

    def place(self, slide: Slide) -> None:
        assert self.table is not None
        self.side_l0 = (self.table["size_px"] * self.table["mpp"]).to_numpy(float) / slide.mpp
        self.xy_l0 = self.corners_l0 + self.side_l0[:, None] / 2
        super().place(slide)

    def inside(self, region: Any, *, tap: bool = False) -> NDArray[np.intp]:
        if not tap:
            return super().inside(region)
        at = np.array([region.centroid.x, region.centroid.y])
        half = self.side_l0.max() / 2
        rows = self.near(Box(at[0] - half, at[1] - half, 2 * half, 2 * half))
        away = np.abs(self.xy_l0[rows] - at).max(1)
        rows = rows[away <= self.side_l0[rows] / 2]
        return rows[[np.abs(self.xy_l0[rows] - at).max(1).argmin()]] if len(rows) else rows

    def marks(self, rows: NDArray[np.intp], view: Any) -> NDArray[np.float64]:
        rows = rows[view.box_l0.contains(self.xy_l0[rows])][:3000]
        return np.hstack([self.corners_l0[rows], self.corners_l0[rows] + self.side_l0[rows, None]])

    fill = 0.08

    def _mark(self, plot: Any) -> Any:
        return plot.rect(
            "x",
            "y",
            width="side",
            height="side",
            source=self._marks,
            fill_color="colour",
            line_color="colour",
            line_width=1.5,
        )

    def _rows_shown(self, rows: NDArray[np.intp]) -> dict[str, Any]:
        return super()._rows_shown(rows) | {"side": self.side_l0[rows]}

    def _draw_rows(self, axes: Any, rows: NDArray[np.intp]) -> None:
        from matplotlib.collections import PolyCollection

        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        squares = self.corners_l0[rows, None] + corners * self.side_l0[rows, None, None]
        axes.add_collection(
            PolyCollection(
                squares,
                facecolors="none",
                edgecolors=self.palette[self.codes[rows]] / 255,
                linewidths=1.2,
                alpha=self.opacity,
                zorder=4,
            )
        )


class Detections(Points):
    """What a detector found, as hits and false alarms, with the lesions that it missed.

    Parameters
    ----------
    candidates : DataFrame
        slide_id, x_um, y_um, score, of one slide.
    lesions : DataFrame, optional
        slide_id, lesion_id, geometry in microns; without them the table must hold ``outcome``.
    **options
        As of `Points`.
    """

    what = "detections"

    def __init__(self, candidates: pd.DataFrame, lesions: pd.DataFrame | None = None, **options: Any):
        name = options.get("name") or self.what
        self._missed: pd.DataFrame | None = None
        if lesions is None:
            _check_rows(candidates, name, ("x_um", "y_um", "outcome"))
            table = candidates
        else:
            _check_rows(candidates, name, ("slide_id", "x_um", "y_um", "score"))
            here = lesions[lesions["slide_id"].isin(candidates["slide_id"])]
            table = match_detections(candidates, here)
            ignored = table["ignored"] if "ignored" in table else np.zeros(len(table), bool)
            outcome = np.where(table["lesion_id"].isna(), "false alarm", np.where(ignored, "ignored", "hit"))
            table = table.assign(outcome=outcome)
            missed = here[~here["lesion_id"].isin(table["lesion_id"])]
            if len(missed):
                spots = [g.representative_point() for g in missed["geometry"]]
                rows = pd.DataFrame(
                    {"x_um": [p.x for p in spots], "y_um": [p.y for p in spots], "outcome": "missed"}
                )
                rows["lesion_id"] = missed["lesion_id"].to_numpy()
                table = pd.concat([table, rows], ignore_index=True)
        super().__init__(table, by="outcome", colours=COLOURS, **{"size_px": 13.0, **options})


class Polygons(Layer):
    """Outlines of annotations in the colour of their class.

    Parameters
    ----------
    annotations : GeoDataFrame
        geometry in level-0 pixels, class; where present, color and name.
    colours : mapping, optional
        From class to "#rrggbb"; else the annotations' own, else a palette.
    fill : float
        Opacity of the inside, as a share of the layer's.

    Raises
    ------
    ValueError
        If there is no outline, one is empty or no number; when placed, if all lie off the slide.
    """

    def __init__(
        self,
        annotations: geopandas.GeoDataFrame,
        *,
        name: str = "annotations",
        colours: Mapping[str, str] | None = None,
        fill: float = 0.15,
        opacity: float = 1.0,
        visible: bool = True,
    ):
        super().__init__(name, visible=visible, opacity=opacity)
        _check_rows(annotations, name, ("geometry",))
        shapes = np.asarray(annotations["geometry"])
        bad = shapely.is_missing(shapes) | shapely.is_empty(shapes)
        finite = np.isfinite(shapely.bounds(shapes)).all(1)
        if bad.any() or not finite.all():
            row = int(np.argmax(bad | ~finite))
            raise ValueError(
                f"layer {name!r}: row {row} (index {annotations.index[row]!r}) has no outline, or a coordinate that is not a"
                " number. Drop it: annotations.drop(index=...)."
            )
        self.table, self.shapes, self.fill = annotations, shapes, fill
        names = (
            annotations["class"].astype(str)
            if "class" in annotations
            else pd.Series(name, index=annotations.index)
        )
        self.classes = sorted(set(names))
        own: dict[str, str] = {}
        if "color" in annotations:
            own = {str(n): c for n, c in zip(names, annotations["color"], strict=True) if isinstance(c, str)}
        self.colours = colours_of(self.classes, {**own, **(colours or {})})
        self.names = names.to_numpy()
        self.hover = [("class", "@class")] + (
            [("name", "@name")] if "name" in annotations and annotations["name"].notna().any() else []
        )

    def place(self, slide: Slide) -> None:
        width, height = slide.dimensions
        if not shapely.intersects(self.shapes, shapely.box(0, 0, width, height)).any():
            x0, y0, x1, y1 = shapely.total_bounds(self.shapes)
            raise ValueError(
                f"layer {self.name!r}: all {len(self.shapes)} outlines lie off the slide ({width} x {height} px): x {x0:.0f} to"
                f" {x1:.0f}, y {y0:.0f} to {y1:.0f}. Are they in level-0 pixels, and of this slide? QuPath's may need"
                ' read_annotations(..., relative_to="bounds").'
            )
        self._bounds = shapely.bounds(self.shapes)
        self._corners = shapely.get_num_coordinates(self.shapes)
        self._few = int(self._corners.sum()) <= CORNERS

    def build(self, plot: Any) -> list[Any]:
        from bokeh.models import ColumnDataSource

        self._source = ColumnDataSource(
            self._data(np.arange(len(self.shapes)) if self._few else np.zeros(0, int), 0)
        )
        return [
            plot.multi_polygons(
                "xs", "ys", source=self._source, line_color="colour", fill_color="colour", line_width=2
            )
        ]

    def _data(self, rows: NDArray[np.intp], tolerance: float) -> dict[str, list[Any]]:
        xs, ys, kept = [], [], []
        for row, shape in zip(
            rows,
            shapely.simplify(self.shapes[rows], tolerance) if tolerance else self.shapes[rows],
            strict=True,
        ):
            rings = _rings(shape)
            if rings:
                xs.append([[ring[:, 0].tolist() for ring in part] for part in rings])
                ys.append([[ring[:, 1].tolist() for ring in part] for part in rings])
                kept.append(row)
        assert self.table is not None
        data = {
            "xs": xs,
            "ys": ys,
            "class": [self.names[r] for r in kept],
            "colour": [self.colours[self.names[r]] for r in kept],
        }
        if "name" in self.table:
            data["name"] = [str(v or "") for v in self.table["name"].iloc[kept]]
        return data

    def _in_view(self, view: Any) -> NDArray[np.intp]:
        """Rows in view, largest first, as many as may be sent; those below a screen pixel are left out."""
        x0, y0, x1, y1 = self._bounds.T
        box = view.box_l0
        side = np.maximum(x1 - x0, y1 - y0)
        rows = np.flatnonzero(
            (x0 <= box.x1) & (x1 >= box.x) & (y0 <= box.y1) & (y1 >= box.y) & (side >= view.l0_per_px)
        )
        rows = rows[np.argsort(-side[rows], kind="stable")]
        return rows[: int(np.searchsorted(np.minimum(self._corners[rows], 200).cumsum(), CORNERS)) + 1]

    def refresh(self, view: Any) -> None:
        if self.renderers and not self._few:
            self._source.data = self._data(self._in_view(view), view.l0_per_px / 2)  # type: ignore[assignment]

    def draw(self, axes: Any, view: Any) -> None:
        from matplotlib.colors import to_rgba
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        for row in self._in_view(view):
            colour, alpha = self.colours[self.names[row]], self.opacity
            for part in _rings(shapely.normalize(self.shapes[row])):  # holes run the other way
                path = Path.make_compound_path(*map(Path, part))
                line = {"ec": to_rgba(colour, alpha), "lw": 1.6, "fc": to_rgba(colour, alpha * self.fill)}
                axes.add_patch(PathPatch(path, zorder=3, **line))

    def inside(self, region: Any, *, tap: bool = False) -> NDArray[np.intp]:
        if region.is_empty:
            return np.zeros(0, np.intp)
        if tap:
            rows = np.flatnonzero(shapely.intersects(self.shapes, region))
            return rows[[shapely.area(self.shapes[rows]).argmin()]] if len(rows) else rows
        return np.flatnonzero(shapely.within(shapely.point_on_surface(self.shapes), region))

    def marks(self, rows: NDArray[np.intp], view: Any) -> NDArray[np.float64]:
        return self._bounds[rows][:3000]

    def legend(self) -> list[tuple[str, str]]:
        return list(self.colours.items())


class SecondSlide(Layer):
    """Another slide in the same place: the same section in another stain, before and after, truth and prediction.

    Parameters
    ----------
    slide : Slide
        Laid over by microns where both slides know their mpp, else pixel by pixel.
    offset_um : (float, float)
        Where its corner lies, in microns from the first slide's.
    """

    def __init__(
        self,
        slide: Slide,
        *,
        name: str = "second slide",
        offset_um: tuple[float, float] = (0.0, 0.0),
        opacity: float = 1.0,
        visible: bool = True,
    ):
        super().__init__(name, visible=visible, opacity=opacity)
        self.slide, self.offset_um = slide, offset_um

    def place(self, slide: Slide) -> None:
        mpps = slide.mpp_or_none, self.slide.mpp_or_none
        if None in mpps and (any(self.offset_um) or slide.dimensions != self.slide.dimensions):
            raise ValueError(
                f"layer {self.name!r}: one slide has no mpp, and their sizes differ ({slide.dimensions} and"
                f" {self.slide.dimensions} px), so one cannot lie over the other. Open both with open_slide(path, mpp=...)."
            )
        self.scale = 1.0 if mpps[0] is None or mpps[1] is None else mpps[1] / mpps[0]
        self.offset_l0 = tuple(v / mpps[0] for v in self.offset_um) if mpps[0] else (0.0, 0.0)
        self.pyramid = Pyramid(self.slide)

    def apply(self) -> None:
        for renderer in self.renderers:  # Bokeh's tile renderer
            renderer.alpha = self._opacity if self._visible else 0
        self._tell_panel()

    def draw(self, axes: Any, view: Any) -> None:
        from pathkit.view.picture import pixels

        box = view.box_l0
        x, y = self.offset_l0
        here = Box(
            (box.x - x) / self.scale,
            (box.y - y) / self.scale,
            box.width / self.scale,
            box.height / self.scale,
        )
        shown = pixels(self.pyramid, here, view.width_px)
        half = box.x + box.width / 2
        axes.imshow(
            shown[:, shown.shape[1] // 2 :],
            extent=(half, box.x1, box.y1, box.y),
            alpha=self.opacity,
            zorder=1,
        )
        axes.axvline(half, color="black", linewidth=1.5, zorder=1.5)

    def close(self) -> None:
        self.pyramid.close()


def as_layer(thing: Any) -> Layer:
    """The layer that shows a thing.

    Raises
    ------
    TypeError
        If nothing can be made of it; the message lists what can.
    """
    if isinstance(thing, Layer):
        return thing
    if isinstance(thing, Slide):
        return SecondSlide(thing)
    if isinstance(thing, Raster):
        return Mask(thing) if thing.values.dtype == bool else Heatmap(thing)
    if isinstance(thing, geopandas.GeoDataFrame):
        return Polygons(thing)
    if isinstance(thing, pd.DataFrame):
        return Patches(thing) if {"x_l0", "size_px"} <= set(thing.columns) else Points(thing)
    hint = (
        " An array has no place on a slide by itself: Heatmap(array, mpp=...)."
        if isinstance(thing, np.ndarray)
        else ""
    )
    raise TypeError(
        f"layer: expected a Raster, GeoDataFrame, table of patches or objects, Slide or a layer of pathkit.view, got"
        f" {type(thing).__name__}.{hint}"
    )


def _check_rows(table: Any, name: str, columns: Sequence[str]) -> None:
    need(table, f"layer {name!r}", *columns)
    if not len(table):
        raise ValueError(
            f"layer {name!r}: the table is empty, there is nothing to show. Was the filter too strict?"
        )
    for column in columns:
        if column[:2] in ("x_", "y_") or column in ("size_px", "mpp"):
            bad = ~np.isfinite(pd.to_numeric(table[column], errors="coerce").to_numpy(float))
            if bad.any():
                row = int(bad.argmax())
                raise ValueError(
                    f"layer {name!r}: column {column!r}, row {row} (index {table.index[row]!r}) is not a number:"
                    f" {table[column].iloc[row]!r}. Drop such rows: table.dropna(subset=[{column!r}])."
                )


def _rings(shape: Any) -> list[list[NDArray[np.float64]]]:
    """Per part, its outline and its holes; lines count as outlines, points as small squares."""
    parts = []
    for part in shapely.get_parts(shape):
        if part.geom_type == "Polygon":
            parts.append([shapely.get_coordinates(r) for r in (part.exterior, *part.interiors)])
        elif part.geom_type == "Point":
            parts.append([shapely.get_coordinates(part.buffer(4, quad_segs=4))])
        else:
            parts.append([shapely.get_coordinates(part)])
    return parts


def _rgb(colour: str) -> tuple[int, int, int]:
    from matplotlib.colors import to_rgb

    red, green, blue = (round(255 * v) for v in to_rgb(colour))
    return red, green, blue


def _gradient(low: float, high: float, colours: Sequence[str]) -> str:
    """A colour bar with its ends, as HTML."""
    ends = "".join(f"<span>{_short(v)}</span>" for v in (low, high))
    return (
        '<div style="line-height:1.3;font-size:11px;padding:0 8px 0 22px">'
        f'<div style="height:8px;background:linear-gradient(90deg,{",".join(colours)})"></div>'
        f'<div style="display:flex;justify-content:space-between">{ends}</div></div>'
    )


def _short(value: float) -> str:
    """Three digits; what is nothing beside them is 0."""
    return "0" if abs(value) < 1e-6 else f"{value:.3g}"
