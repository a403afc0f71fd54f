"""The stain plane: the colours of a field as points between two stains that can be dragged, and the field beside them.

A pixel's place is the share that red and that blue have in its optical density; green has the rest. Thickness cancels, so
that a stain is a point, a mixture of two lies on the line between them, and a dragged point is a vector with nothing lost.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pathkit import stain
from pathkit.view.gallery import Shown
from pathkit.view.pane import pane

__all__ = ["StainPlane", "plane_of", "vector_of"]

#: Pixels drawn as points.
N_POINTS = 2500
#: Colour-blind-safe colours of haematoxylin and eosin.
_INK = ("#0072b2", "#cc3377")
_NAMES = ("haematoxylin", "eosin")


def plane_of(density: ArrayLike) -> NDArray[np.float64]:
    """(..., 2) shares of red and blue in optical densities (..., 3)."""
    density = np.asarray(density, float)
    return cast(NDArray[np.float64], density[..., [0, 2]] / density.sum(-1, keepdims=True))


def vector_of(place: ArrayLike) -> NDArray[np.float64]:
    """(..., 3) unit optical-density vectors at places (..., 2) of the plane; shares below 0.005 are raised to it."""
    red, blue = np.moveaxis(np.asarray(place, float), -1, 0)
    rows = np.maximum(np.stack([red, 1 - red - blue, blue], axis=-1), 0.005)
    return cast(NDArray[np.float64], rows / np.linalg.norm(rows, axis=-1, keepdims=True))


class StainPlane(Shown):
    """Drag the two stains of a field; the field is separated and recoloured with them.

    Parameters
    ----------
    field : (H, W, 3) uint8
        What is shown, best 200 to 500 px wide.
    fit : StainFit
        Where the two stains begin; a fit of the field's slide.
    target : StainFit, optional
        What the field is recoloured to; Macenko's reference by default.
    truth : (2 or 3, 3), optional
        Vectors to measure the angles to; their lengths do not matter.

    Attributes
    ----------
    fit : StainFit
        The stains as they are now; the strengths are measured anew on the field with each move.

    Raises
    ------
    ValueError
        If the field is no picture, or holds no tissue.

    Examples
    --------
    >>> plane = StainPlane(field, stain.fit(slide), truth=painted)  # doctest: +SKIP
    >>> plane.set(eosin=(0.1, 0.9, 0.4)); plane.errors  # doctest: +SKIP
    """

    def __init__(
        self,
        field: NDArray[np.uint8],
        fit: stain.StainFit,
        *,
        target: stain.StainFit | None = None,
        truth: ArrayLike | None = None,
    ):
        field = np.asarray(field)
        if field.dtype != np.uint8 or field.ndim != 3 or field.shape[2] != 3:
            raise ValueError(f"StainPlane: field must be (H, W, 3) uint8, got {field.shape} {field.dtype}.")
        self.field, self.fit, self.target = field, fit, stain.REFERENCE if target is None else target
        self.truth = None if truth is None else np.asarray(truth, float)[:2]
        self._pixels = stain.tissue_pixels(field, white=fit.white, n=20_000)
        step = max(1, len(self._pixels) // N_POINTS)
        self._shown = self._pixels[::step][:N_POINTS]
        self._places = np.clip(plane_of(stain.optical_density(self._shown, white=fit.white)), 0, 0.7)
        self._start = fit

    # State -----------------------------------------------------------------------------------------------------

    def set(self, *, haematoxylin: ArrayLike | None = None, eosin: ArrayLike | None = None) -> None:
        """Move a stain, as if it had been dragged; vectors of 3.

        Raises
        ------
        ValueError
            If the two cannot be told apart afterwards.
        """
        rows = [
            old if new is None else np.asarray(new, float)
            for old, new in zip(self.fit.stains, (haematoxylin, eosin), strict=True)
        ]
        amounts = stain.separate(self._pixels, np.array(rows), white=self.fit.white)
        strengths = np.maximum(np.percentile(amounts, stain.STRENGTH_PERCENTILE, axis=0), 0.02)
        self.fit = stain.StainFit(np.array(rows), strengths, self.fit.white, "by hand", len(self._pixels))
        if self._widget is not None:
            self._refresh()

    def reset(self) -> None:
        """Back to the stains that were given."""
        self.fit = self._start
        if self._widget is not None:
            self._refresh()

    @property
    def errors(self) -> tuple[float, float]:
        """Angles to the truth, degrees: haematoxylin, eosin.

        Raises
        ------
        ValueError
            If no truth was given.
        """
        if self.truth is None:
            raise ValueError("StainPlane: no truth was given to measure angles to.")
        first, second = (stain.angle_deg(*rows) for rows in zip(self.fit.stains, self.truth, strict=True))
        return first, second

    @property
    def line(self) -> str:
        """What is seen, in a sentence."""
        apart = f"stains {self.fit.apart_deg:.0f}° apart"
        if self.truth is None:
            return apart
        return (
            f"to the painted truth: haematoxylin {self.errors[0]:.1f}°, eosin {self.errors[1]:.1f}°; {apart}"
        )

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """The field as it is, recoloured to the target, and each stain alone; (H, W, 3) uint8."""
        amounts = np.maximum(self.fit.separate(self.field), 0)
        alone = {
            f"{name} alone": stain.combine(
                amounts[..., k : k + 1] * self.fit.stains[k], np.eye(3), white=self.fit.white
            )
            for k, name in enumerate(_NAMES)
        }
        return {"the field": self.field, "recoloured": self.fit.to(self.target)(self.field), **alone}

    # Drawn -----------------------------------------------------------------------------------------------------

    def _marks(self) -> list[tuple[str, NDArray[np.float64], str]]:
        """What does not move: name, places, marker."""
        marks = [("target", plane_of(self.target.stains), "diamond")]
        if self.truth is not None:
            marks.append(("painted truth", plane_of(self.truth), "x"))
        return marks

    def _limits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        fixed = np.concatenate([places for _, places, _ in self._marks()] + [plane_of(self._start.stains)])
        cloud = np.percentile(self._places, [2, 98], axis=0)
        everything = np.concatenate([cloud, fixed])
        return everything.min(0) - 0.05, everything.max(0) + 0.05

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 5.6), layout="constrained")
        left, right = cast(Any, figure.subfigures(1, 2, width_ratios=(1, 1.05)))
        axes = left.subplots()
        axes.scatter(*self._places.T, c=self._shown / 255, s=7, linewidths=0)
        now = plane_of(self.fit.stains)
        axes.plot(*now.T, color="#444444", linewidth=1)
        for name, place, colour in zip(_NAMES, now, _INK, strict=True):
            axes.scatter(
                *place, s=140, color=colour, edgecolors="white", linewidths=1.5, zorder=4, label=name
            )
        for name, places, marker in self._marks():
            shape = {"diamond": "D", "x": "x"}[marker]
            axes.scatter(*places.T, marker=shape, s=55, color="black", linewidths=1.8, zorder=5, label=name)
        (x0, y0), (x1, y1) = self._limits()
        axes.set(xlim=(x0, x1), ylim=(y0, y1), xlabel="share of red in the optical density")
        axes.set(ylabel="share of blue in the optical density", title=self.line)
        axes.title.set_fontsize(10)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=4, fontsize=8, frameon=False)
        for axis, (name, picture) in zip(right.subplots(2, 2).flat, self.pictures().items(), strict=True):
            axis.imshow(picture)
            axis.set_title(name, fontsize=10)
            axis.set(xticks=[], yticks=[])
        return figure

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.layouts import gridplot, row
        from bokeh.models import ColumnDataSource, PointDrawTool, Range1d
        from bokeh.plotting import figure

        (x0, y0), (x1, y1) = self._limits()
        plot: Any = figure(
            width=430, height=540, tools="", toolbar_location=None,
            x_range=Range1d(start=x0, end=x1), y_range=Range1d(start=y0, end=y1),
            x_axis_label="share of red in the optical density", y_axis_label="share of blue in the optical density",
        )  # fmt: skip
        colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in self._shown]
        plot.scatter(*self._places.T, color=colours, size=3, line_color=None)
        for name, places, marker in self._marks():
            plot.scatter(*places.T, marker=marker, size=11, color="black", line_width=2, legend_label=name)
        self._handles = ColumnDataSource(self._handle_data())
        plot.line("x", "y", source=self._handles, color="#444444")
        dots = plot.scatter(
            "x", "y", source=self._handles, size=18, fill_color="colour", line_color="white", line_width=2,
            nonselection_fill_alpha=1.0, nonselection_line_alpha=1.0,
        )  # fmt: skip
        plot.text(
            "x", "y", "name", source=self._handles, x_offset=11, y_offset=-6, text_font_size="12px",
            nonselection_text_alpha=1.0,
        )  # fmt: skip
        plot.legend.location, plot.legend.label_text_font_size = "bottom_left", "11px"
        tool = PointDrawTool(renderers=[dots], add=False, drag=True)
        plot.add_tools(tool)
        plot.toolbar.active_tap = plot.toolbar.active_drag = tool
        self._handles.on_change("data", self._dragged)
        self._images: dict[str, Any] = {}
        shown = []
        height, width = self.field.shape[:2]
        for name in self.pictures():
            picture: Any = figure(
                width=270, height=round(250 * height / width) + 20, title=name, tools="", toolbar_location=None,
                x_range=Range1d(start=0, end=width), y_range=Range1d(start=height, end=0), min_border=2,
            )  # fmt: skip
            picture.axis.visible = picture.grid.visible = False
            self._images[name] = ColumnDataSource({"image": []})
            picture.image_rgba("image", x=0, y=0, dw=width, dh=height, source=self._images[name])
            shown.append(picture)
        self._line = ipywidgets.HTML()
        back = ipywidgets.Button(description="Start again", layout={"width": "110px"})
        back.on_click(lambda _: self.reset())
        help_line = ipywidgets.HTML(
            '<span style="color:#666;font-size:11px">Drag the two dots. The pictures follow when you let go.</span>'
        )
        self._widget = ipywidgets.VBox()
        self._refresh()
        board = pane(row(plot, gridplot([shown[:2], shown[2:]], toolbar_location=None)))
        self._widget.children = [ipywidgets.HBox([back, self._line]), board, help_line]
        return self._widget

    def _handle_data(self) -> dict[str, list[Any]]:
        x, y = plane_of(self.fit.stains).T.tolist()
        return {"x": x, "y": y, "colour": list(_INK), "name": list(_NAMES)}

    def _dragged(self, attr: str, old: Any, new: Any) -> None:
        places = np.column_stack([new["x"], new["y"]])
        if len(places) != 2 or np.abs(places - plane_of(self.fit.stains)).max() < 1e-6:
            return
        try:
            self.set(haematoxylin=vector_of(places[0]), eosin=vector_of(places[1]))
        except ValueError as error:
            self._line.value = f'<span style="color:#b00">{error}</span>'

    def _refresh(self) -> None:
        for name, picture in self.pictures().items():
            opaque = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
            self._images[name].data = {"image": [opaque.view(np.uint32)[..., 0]]}
        handles: Any = self._handles
        data = self._handle_data()
        if any(np.abs(np.subtract(handles.data[c], data[c])).max() > 1e-6 for c in "xy"):
            handles.data = data
        self._line.value = f"<b>{self.line}</b>"
