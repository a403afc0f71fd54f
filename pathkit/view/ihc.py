"""Immunohistochemistry: cut-offs as sliders that recolour the cells on the slide and move every slide's score.

Levels are made anew from the cells' optical densities at each move; nothing is segmented again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pathkit.scoring import CUTS, bland_altman, levels
from pathkit.slide import Slide
from pathkit.view.gallery import Shown
from pathkit.view.layers import Points
from pathkit.view.pane import pane
from pathkit.view.picture import paste
from pathkit.view.viewer import SlideViewer

__all__ = ["StainBoard"]

NAMES = ("negative", "weak", "moderate", "strong")
COLOURS = {"negative": "#0072b2", "weak": "#f0e442", "moderate": "#e69f00", "strong": "#d55e00"}


class StainBoard(Shown):
    """Cells of a slide coloured by level, three cut-offs, and the scores of all slides against their truth.

    Parameters
    ----------
    slide : Slide
    cells : mapping
        slide_id to a table of cells (x_um, y_um, and `density`) of every slide; that of `shown` is drawn on `slide`.
    truth : mapping
        slide_id to the true score.
    score : callable
        ``score(table)`` of a table with the column ``level`` gives a number.
    shown : str
    density : str
        Column of optical densities: "dab" or "membrane_dab".
    what : str
        Name of the score, for the axes.
    cuts : (weak, moderate, strong)

    Attributes
    ----------
    cuts : tuple
        Can be set; the view follows.
    scores : DataFrame
        truth and score of each slide at these cut-offs.

    Raises
    ------
    ValueError
        If a slide has no truth, a column is missing, or the cut-offs do not ascend.
    """

    def __init__(
        self,
        slide: Slide,
        cells: Mapping[str, pd.DataFrame],
        truth: Mapping[str, float],
        score: Callable[[pd.DataFrame], float],
        *,
        shown: str,
        density: str = "dab",
        what: str = "score",
        cuts: tuple[float, float, float] = CUTS,
        height_px: int = 420,
    ):
        missing = [k for k in cells if k not in truth]
        if missing or shown not in cells:
            raise ValueError(f"StainBoard: no truth or no cells for slide {(missing or [shown])[0]!r}.")
        if density not in cells[shown]:
            raise ValueError(f"StainBoard: no column {density!r}; the cells have {', '.join(cells[shown])}.")
        self.cells, self.truth, self.score, self.shown = dict(cells), dict(truth), score, shown
        self.density, self.what, self._cuts = density, what, tuple(cuts)
        self.scores = self._scored()
        self.layer = Points(self._named(), by="stain", colours=COLOURS, name="cells", size_px=9)
        self.viewer = SlideViewer(slide, layers=[self.layer], height_px=height_px)

    @property
    def cuts(self) -> tuple[float, ...]:
        """Optical densities from which on a cell is weak, moderate, strong."""
        return self._cuts

    @cuts.setter
    def cuts(self, values: tuple[float, ...]) -> None:
        levels([], values)  # checks them
        self._cuts = tuple(values)
        self.scores = self._scored()
        self.layer.recolour(self._named())
        self.layer.refresh(self.viewer.view)
        if self._widget is not None:
            self._fill()

    def _levels(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(level=levels(table[self.density], self._cuts))

    def _named(self) -> pd.DataFrame:
        table = self._levels(self.cells[self.shown])
        return table.assign(stain=np.array(NAMES, object)[table["level"]])[
            ["x_um", "y_um", "stain", self.density]
        ].reset_index(drop=True)

    def _scored(self) -> pd.DataFrame:
        rows = {k: (self.truth[k], self.score(self._levels(t))) for k, t in self.cells.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["truth", "score"])

    @property
    def line(self) -> str:
        """The score of the slide that is shown, and the agreement over all."""
        agreement = bland_altman(self.scores["score"], self.scores["truth"])
        row = self.scores.loc[self.shown]
        return (
            f"{self.shown}: {self.what} {row['score']:.1f}, truth {row['truth']:.1f}. All slides: bias"
            f" {agreement.bias:+.1f}, 95% of differences from {agreement.low:+.1f} to {agreement.high:+.1f}."
        )

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(15, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        paste(left, self.viewer.snapshot())
        left.set_title("cut-offs " + ", ".join(f"{c:.2f}" for c in self._cuts), fontsize=10)
        top = self._top()
        right.plot([0, top], [0, top], color="#999999", linewidth=1)
        right.scatter(self.scores["truth"], self.scores["score"], color="#0072b2", zorder=3)
        row = self.scores.loc[self.shown]
        right.scatter(row["truth"], row["score"], color="#d55e00", zorder=4, label=self.shown)
        right.legend(frameon=False, loc="upper left")
        right.set(xlabel=f"{self.what}, truth", ylabel=f"{self.what}, measured", aspect="equal")
        figure.suptitle(self.line, fontsize=10)
        return figure

    def _top(self) -> float:
        return 1.05 * max(float(self.scores.to_numpy(float).max()), 1.0)

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.models import ColumnDataSource, Range1d
        from bokeh.plotting import figure

        self._points = ColumnDataSource({k: [] for k in ("truth", "score", "slide", "colour")})
        top = self._top()
        plot: Any = figure(
            width=340, height=340, tools="hover", toolbar_location=None, tooltips=[("", "@slide"), ("", "@score{0.0}")],
            x_range=Range1d(start=-0.03 * top, end=1.3 * top), y_range=Range1d(start=-0.03 * top, end=1.3 * top),
            x_axis_label=f"{self.what}, truth", y_axis_label=f"{self.what}, measured",
        )  # fmt: skip
        plot.line([0, 2 * top], [0, 2 * top], color="#999999")
        plot.scatter("truth", "score", color="colour", size=9, source=self._points)
        self._text = ipywidgets.Label()
        self._sliders = [
            ipywidgets.FloatSlider(c, min=0.02, max=1.2, step=0.01, description=n, continuous_update=False)
            for n, c in zip(NAMES[1:], self._cuts, strict=True)
        ]
        for slider in self._sliders:
            slider.observe(self._moved, "value")
        self._widget = ipywidgets.VBox()
        self._fill()
        self._widget.children = [
            ipywidgets.HBox(self._sliders),
            self._text,
            ipywidgets.HBox([ipywidgets.Box([self.viewer.widget()], layout={"width": "65%"}), pane(plot)]),
        ]
        return self._widget

    def _moved(self, change: Any) -> None:
        try:
            self.cuts = tuple(s.value for s in self._sliders)
        except ValueError as error:
            self._text.value = str(error)

    def _fill(self) -> None:
        self._points.data = {
            "truth": self.scores["truth"].to_numpy(float),
            "score": self.scores["score"].to_numpy(float),
            "slide": list(self.scores.index),
            "colour": ["#d55e00" if k == self.shown else "#0072b2" for k in self.scores.index],
        }
        self._text.value = self.line
