"""Coordinate lab: click a slide and read the address of that pixel in every frame; see a field of view to scale.

One place has many addresses: level-0 pixels, pixels of each level, microns, millimetres, the tile that stores it, and, where a
scanner saved a margin around the tissue, pixels from the corner of those bounds. All are made from the level-0 place by
`pathkit.geometry.Frames`; none is measured twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pathkit.geometry import Box
from pathkit.slide import Slide
from pathkit.view.gallery import Shown
from pathkit.view.layers import Layer
from pathkit.view.picture import paste, png
from pathkit.view.viewer import SlideViewer

__all__ = ["CoordinateLab", "Spot", "addresses"]

TILE_PX = 256
_COLOUR = "#d55e00"


def addresses(slide: Slide, x_l0: float, y_l0: float) -> pd.DataFrame:
    """A place in every frame of its slide.

    Parameters
    ----------
    slide : Slide
    x_l0, y_l0 : float
        Level-0 pixels.

    Returns
    -------
    DataFrame
        Index: frame ("level 0", "level 1", ..., "µm", "mm", "from bounds", "tile of level 0", ...). x, y (of tiles: column and
        row, tiles of 256 px), what (one unit's size, and where in its tile the place lies). Without mpp there are no µm and mm.
    """
    rows: dict[str, tuple[float, float, str]] = {}
    for level in slide.levels:
        x, y = slide.frames.convert([x_l0, y_l0], "l0", level.index)
        size = "" if level.mpp is None else f", {level.mpp:.4g} µm each"
        rows[f"level {level.index}"] = (x, y, f"pixels, 1 in {level.downsample:.4g}{size}")
    if slide.mpp_or_none is not None:
        x, y = slide.frames.convert([x_l0, y_l0], "l0", "um")
        rows["µm"] = (x, y, f"mpp from {slide.mpp_source}")
        rows["mm"] = (x / 1000, y / 1000, "on the glass")
    bounds = slide.bounds
    rows["from bounds"] = (
        x_l0 - bounds.x,
        y_l0 - bounds.y,
        f"level-0 pixels; bounds begin at {bounds.x:g}, {bounds.y:g}",
    )
    for level in slide.levels:
        xy = np.array(rows[f"level {level.index}"][:2])
        column, row = xy // TILE_PX
        inside = (xy - xy // TILE_PX * TILE_PX).astype(int)
        rows[f"tile of level {level.index}"] = (
            column,
            row,
            f"column and row; pixel {inside[0]}, {inside[1]} in it",
        )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["x", "y", "what"]).rename_axis("frame")
    return table.round({"x": 3, "y": 3})


class Spot(Layer):
    """A cross and a rectangle around it, in level-0 pixels, that can be moved.

    Parameters
    ----------
    name : str
    colour : str
        "#rrggbb".
    """

    def __init__(self, name: str = "field of view", *, colour: str = _COLOUR):
        super().__init__(name)
        self.colour, self.box = colour, Box(0, 0, 0, 0)
        self._source: Any = None

    def move(self, box_l0: Box) -> None:
        """Put the rectangle elsewhere."""
        self.box = box_l0
        if self._source is not None:
            self._source.data = self._data()

    def _data(self) -> dict[str, Any]:
        b = self.box
        middle = [b.x + b.width / 2], [b.y + b.height / 2]
        return {"x": middle[0], "y": middle[1], "w": [b.width], "h": [b.height]}

    def build(self, plot: Any) -> list[Any]:
        from bokeh.models import ColumnDataSource

        self._source = ColumnDataSource(self._data())
        look = {"line_color": self.colour, "line_width": 3, "level": "overlay"}
        return [
            plot.rect("x", "y", width="w", height="h", source=self._source, fill_color=None, **look),
            plot.scatter("x", "y", size=16, marker="cross", source=self._source, **look),
        ]

    def draw(self, axes: Any, view: Any) -> None:
        from matplotlib.patches import Rectangle

        b = self.box
        axes.add_patch(Rectangle((b.x, b.y), b.width, b.height, fill=False, ec=self.colour, lw=2.5, zorder=7))
        axes.plot(b.x + b.width / 2, b.y + b.height / 2, "+", color=self.colour, ms=13, mew=2.5, zorder=7)

    def legend(self) -> list[tuple[str, str]]:
        return [(self.name, self.colour)]


class CoordinateLab(Shown):
    """The slide, the pyramid to scale, and the address of the place that was clicked.

    Parameters
    ----------
    slide : Slide
        With its mpp.
    size_px : int
        Side of the field of view, in pixels of `mpp`.
    mpp : float, optional
        Of the field of view; twice the slide's when not given.

    Attributes
    ----------
    place_l0 : (float, float)
    address : DataFrame
        As `addresses`.

    Raises
    ------
    MissingMppError
        If the slide's resolution is unknown.

    Examples
    --------
    >>> lab = CoordinateLab(slide)  # doctest: +SKIP
    >>> lab.go_to(1200, 800).loc["µm"]  # doctest: +SKIP
    """

    def __init__(self, slide: Slide, *, size_px: int = 256, mpp: float | None = None):
        self.slide, self.size_px = slide, size_px
        self.mpp = 2 * slide.mpp if mpp is None else float(mpp)
        self.spot = Spot()
        self.viewer = SlideViewer(slide, layers=[self.spot], height_px=420)
        self.viewer.on_click(self.go_to)
        self._parts: tuple[Any, Any] | None = None
        self.go_to(slide.dimensions[0] / 2, slide.dimensions[1] / 2)

    def go_to(self, x_l0: float, y_l0: float) -> pd.DataFrame:
        """Choose a place, as a click does; gives its `address`.

        Raises
        ------
        ValueError
            If it does not lie on the slide.
        """
        width, height = self.slide.dimensions
        if not (0 <= x_l0 < width and 0 <= y_l0 < height):
            raise ValueError(
                f"CoordinateLab: ({x_l0:g}, {y_l0:g}) is not on the slide of {width} x {height} level-0 pixels."
            )
        self.place_l0 = float(x_l0), float(y_l0)
        self.address = addresses(self.slide, x_l0, y_l0)
        self._update()
        return self.address

    def set_mpp(self, mpp: float) -> NDArray[np.uint8]:
        """Change the resolution of the field of view, not finer than the slide's; gives its pixels."""
        self.mpp = max(float(mpp), self.slide.mpp)
        self._update()
        return self.field()

    @property
    def box_l0(self) -> Box:
        """The field of view."""
        side = self.size_px * self.mpp / self.slide.mpp
        return Box(self.place_l0[0] - side / 2, self.place_l0[1] - side / 2, side, side)

    def field(self) -> NDArray[np.uint8]:
        """(size_px, size_px, 3): pixels of the field of view."""
        box = self.box_l0
        return self.slide.read_region((box.x, box.y), (self.size_px, self.size_px), mpp=self.mpp)

    def _update(self) -> None:
        self.spot.move(self.box_l0)
        if self._parts is not None:
            self._parts[0].value, self._parts[1].value = self._table(), self._picture()

    def _table(self) -> str:
        return self.address.to_html(border=0, justify="left")

    def _draw_pyramid(self, axes: Any) -> None:
        """Levels as rectangles of their pixels, to scale, with the field of view and the level that serves it."""
        from matplotlib.patches import Rectangle

        serving = max((lv for lv in self.slide.levels if lv.downsample * self.slide.mpp <= self.mpp * 1.005),
                      key=lambda lv: lv.downsample)  # fmt: skip
        left, gap = 0.0, 0.06 * self.slide.dimensions[0]
        for level in self.slide.levels:
            used = level.index == serving.index
            axes.add_patch(Rectangle((left, 0), level.width, level.height, fc="#e8eef4" if used else "#f6f6f6",
                                     ec="#0072b2" if used else "#999999", lw=2 if used else 1))  # fmt: skip
            box = self.box_l0.scaled(1 / level.downsample)
            axes.add_patch(
                Rectangle((left + box.x, box.y), box.width, box.height, fill=False, ec=_COLOUR, lw=1.5)
            )
            label = f"level {level.index}\n{level.width} x {level.height} px\n{level.mpp:.3g} µm/px"
            axes.text(left, -0.03 * self.slide.dimensions[1], label, va="bottom", fontsize=8)
            left += max(level.width, 0.3 * self.slide.dimensions[0]) + gap
        height = self.slide.dimensions[1]
        axes.set(xlim=(-gap / 2, left), ylim=(1.02 * height, -0.32 * height), aspect="equal")
        axes.axis("off")
        axes.set_title(f"read from level {serving.index}", fontsize=9, color="#0072b2")

    def _draw_field(self, axes: Any) -> None:
        axes.imshow(self.field())
        side = self.size_px * self.mpp
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{self.size_px} px at {self.mpp:.3g} µm/px: {side:.0f} µm wide", fontsize=9)
        for spine in axes.spines.values():
            spine.set(color=_COLOUR, linewidth=2)

    def _picture(self) -> bytes:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.6, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2.1, 1))
        self._draw_pyramid(left)
        self._draw_field(right)
        return png(figure)

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 5.5), layout="constrained")
        axes = figure.subplot_mosaic([["slide", "table"], ["slide", "below"]], width_ratios=(1, 1.15))
        paste(axes["slide"], self.viewer.snapshot())
        paste(axes["below"], self._picture())
        axes["table"].axis("off")
        cells = [[i, f"{r.x:,.6g}", f"{r.y:,.6g}", r.what] for i, r in self.address.iterrows()]
        table = axes["table"].table(cells, colLabels=["frame", "x", "y", ""], loc="center", cellLoc="left",
                                    colWidths=(0.2, 0.14, 0.14, 0.52), edges="horizontal")  # fmt: skip
        table.auto_set_font_size(False)
        table.set_fontsize(8.5)
        table.scale(1, 1.25)
        return figure

    def _built(self) -> Any:
        import ipywidgets

        table, picture = ipywidgets.HTML(self._table()), ipywidgets.Image(value=self._picture(), format="png")
        self._parts = (table, picture)
        start = self.slide.mpp
        slider = ipywidgets.FloatLogSlider(self.mpp, base=2, min=np.log2(start), max=np.log2(start) + 5, step=0.25,
                                           description="µm/px", readout_format=".2f")  # fmt: skip
        slider.observe(lambda change: self.set_mpp(change["new"]), "value")
        below = ipywidgets.HBox([table, ipywidgets.VBox([slider, picture])])
        return ipywidgets.VBox([self.viewer.widget(), below])
