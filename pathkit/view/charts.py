"""Charts whose points are rows: a threshold chosen on a ROC or FROC curve, or bins of a histogram, selects rows, and back.

Each is a view of a table with `select` and `on_select`, so that `link` joins it to a slide, a gallery or another chart. A
threshold selects the rows with at least that score. What is selected elsewhere is marked: on a curve at the threshold at
which each row begins to be called, in a histogram as the part of each bar.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pathkit.metrics import auc, froc, roc_points
from pathkit.view.gallery import Rows, need
from pathkit.view.pane import pane

__all__ = ["FrocChart", "Histogram", "RocChart"]

CURVE, CHOSEN = "#0072b2", "#d55e00"
#: Points of a curve that can be clicked; of more, as many are taken evenly.
MOST_POINTS = 400


class _Curve(Rows):
    """A curve of thresholds over the scores of a table's rows."""

    labels = ("", "")
    x_range = (-0.02, 1.02)

    def __init__(self, table: pd.DataFrame, points: pd.DataFrame, score: str, title: str):
        super().__init__(table)
        self.points, self.score, self.title = points, score, title  # points: x, y, threshold, strictest first
        self._threshold: float | None = None

    @property
    def threshold(self) -> float | None:
        """Rows with at least this score are selected; None until one is chosen."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not np.isfinite(value):
            raise ValueError(f"threshold is a number, got {value}.")
        self._threshold = float(value)
        called = (self.table[self.score] >= value).to_numpy()
        if self._widget is not None:
            self._slider.value = self._threshold
        self.select(called)
        self._selected()  # the point of the threshold moves also where no row is gained or lost

    @property
    def operating_point(self) -> tuple[float, float] | None:
        """The curve's point of the present threshold."""
        return None if self._threshold is None else tuple(self._at([self._threshold])[0])

    @property
    def line(self) -> str:
        """The state in words."""
        chosen = f"{len(self._chosen)} of {len(self.table)} rows selected"
        point = self.operating_point
        if point is None:
            return chosen
        x, y = self.labels
        return f"{chosen}; at {self.score} ≥ {self._threshold:.3g}: {y} {point[1]:.2f}, {x} {point[0]:.2f}"

    def _at(self, thresholds: ArrayLike) -> NDArray[np.float64]:
        """Places on the curve, (N, 2)."""
        falling = self.points["threshold"].to_numpy(float)
        values = np.asarray(thresholds, float)
        at = np.searchsorted(-falling, -values, side="right") - 1  # the last that is not below
        return self.points[["x", "y"]].to_numpy(float)[np.maximum(at, 0)]

    def _marks(self) -> NDArray[np.float64]:
        """Where the selected rows are on the curve."""
        return np.unique(self._at(self.selection[self.score]), axis=0)

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 4.8), layout="constrained")
        axes = figure.subplots()
        axes.step(self.points["x"], self.points["y"], where="post", color=CURVE)
        axes.plot(*self._marks().T, "o", color=CHOSEN, markersize=4, alpha=0.6)
        if self.operating_point is not None:
            axes.plot(*self.operating_point, "o", color="black", markersize=10, fillstyle="none")
        x, y = self.labels
        axes.set(xlabel=x, ylabel=y, xlim=self.x_range, ylim=(0, 1.03))
        lines = [self.title, *self.line.split("; ")]
        axes.set_title("\n".join(lines), fontsize=9)
        return figure

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.models import ColumnDataSource, HoverTool, Range1d
        from bokeh.plotting import figure

        finite = self.points[np.isfinite(self.points["threshold"])]
        self._clickable = finite.iloc[
            np.unique(np.linspace(0, len(finite) - 1, MOST_POINTS).astype(int))
        ].reset_index(drop=True)
        self._curve = ColumnDataSource({c: self._clickable[c].to_numpy(float) for c in self._clickable})
        self._chosen_marks, self._point = (ColumnDataSource({"x": [], "y": []}) for _ in range(2))
        x, y = self.labels
        plot: Any = figure(
            width=380, height=340, tools="tap", toolbar_location=None, title=self.title, x_axis_label=x, y_axis_label=y,
            x_range=Range1d(start=self.x_range[0], end=self.x_range[1]), y_range=Range1d(start=0, end=1.03),
        )  # fmt: skip
        plot.step(self.points["x"], self.points["y"], mode="after", color=CURVE, line_width=2)
        plain = {f"nonselection_{part}": 0.25 for part in ("fill_alpha", "line_alpha")}
        dots = plot.scatter("x", "y", source=self._curve, size=7, color=CURVE, alpha=0.25, **plain)
        plot.scatter("x", "y", source=self._chosen_marks, size=5, color=CHOSEN, alpha=0.6)
        plot.scatter("x", "y", source=self._point, size=14, fill_color=None, line_color="black", line_width=2)
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[(f"{self.score} ≥", "@threshold{0.000}")]))
        plot.toolbar.tools[0].renderers = [dots]
        self._curve.selected.on_change("indices", self._tapped)
        low, high = self._clickable["threshold"].min(), self._clickable["threshold"].max()
        self._slider = ipywidgets.FloatSlider(
            high if self._threshold is None else self._threshold, min=low, max=max(high, low + 1e-9),
            step=max(high - low, 1e-9) / 200, description=self.score, readout_format=".3g", layout={"width": "380px"},
        )  # fmt: skip
        self._slider.observe(self._slid, "value")
        self._line = ipywidgets.HTML()
        self._widget = ipywidgets.VBox()
        self._selected()
        self._widget.children = [self._slider, pane(plot), self._line]
        return self._widget

    def _slid(self, change: Any) -> None:
        near = 0.51 * self._slider.step  # the page rounds what it is told to a step, and tells
        if self._threshold is None or abs(change["new"] - self._threshold) > near:
            self.threshold = change["new"]

    def _tapped(self, attr: str, old: list[int], new: list[int]) -> None:
        if new:
            self._curve.selected.indices = []  # so that the same point can be clicked again
            self.threshold = float(self._clickable["threshold"].iloc[new[0]])

    def _selected(self) -> None:
        if self._widget is not None:
            self._chosen_marks.data = dict(zip("xy", self._marks().T, strict=True))
            point = self.operating_point
            self._point.data = {"x": [], "y": []} if point is None else {"x": [point[0]], "y": [point[1]]}
            self._line.value = self.line


class RocChart(_Curve):
    """The ROC curve of a table's scores; a threshold on it selects the rows that are called positive.

    Parameters
    ----------
    table : DataFrame
        With a unique index: patches, objects or slides.
    label : str
        Column of the truth.
    score : str
        Column of scores.
    positive : optional
        The value of `label` that is to be found; True for a column of bool.

    Attributes
    ----------
    threshold : float or None
        Can be set; the rows with at least this score are then the selection.

    Raises
    ------
    ValueError
        If a column is missing, or only one class is there.

    Examples
    --------
    >>> roc = RocChart(patches, label="label", score="score", positive="tumour")  # doctest: +SKIP
    >>> link(viewer, roc)  # doctest: +SKIP
    """

    labels = ("1 - specificity", "sensitivity")

    def __init__(self, table: pd.DataFrame, *, label: str, score: str, positive: Any = True):
        need(table, "RocChart", label, score)
        truth = (table[label] == positive).to_numpy()
        points = roc_points(truth, table[score]).rename(columns={"fpr": "x", "tpr": "y"})
        super().__init__(table, points, score, f"ROC, AUC {auc(truth, table[score]):.3f}")


class FrocChart(_Curve):
    """The FROC curve of detections; a threshold on it selects the detections from it on.

    Parameters
    ----------
    detections, lesions : DataFrame
        As `metrics.froc`; the detections are the rows, and need a unique index.
    n_slides : int
        All slides that were searched.

    Attributes
    ----------
    threshold : float or None
        Can be set.

    Raises
    ------
    ValueError
        As `metrics.froc`.
    """

    labels = ("false alarms per slide", "sensitivity (lesions)")

    def __init__(self, detections: pd.DataFrame, lesions: pd.DataFrame, n_slides: int):
        need(detections, "FrocChart", "slide_id", "x_um", "y_um", "score")
        curve = froc(detections, lesions, n_slides)
        points = curve.points.rename(columns={"fp_per_slide": "x", "sensitivity": "y"})
        start = pd.DataFrame({"x": [0.0], "y": [0.0], "threshold": [np.inf]})
        points = pd.concat([start, points[["x", "y", "threshold"]]], ignore_index=True)
        self.x_range = (-0.02 * max(points["x"].max(), 1.0), 1.02 * max(points["x"].max(), 1.0))
        super().__init__(detections, points, "score", f"FROC, mean {curve.mean:.2f}")


class Histogram(Rows):
    """The histogram of a column; bins that are chosen select their rows.

    Parameters
    ----------
    table : DataFrame
        With a unique index.
    by : str
        A column of numbers; rows without a number are in no bin.
    bins : int

    Attributes
    ----------
    edges : (bins + 1,) array
    counts : (bins,) array

    Raises
    ------
    ValueError
        If the column is missing, or holds no number.
    """

    def __init__(self, table: pd.DataFrame, *, by: str, bins: int = 20):
        need(table, "Histogram", by)
        super().__init__(table)
        values = table[by].to_numpy(float)
        if not np.isfinite(values).any():
            raise ValueError(f"Histogram: column {by!r} holds no number.")
        self.by = by
        self.counts, self.edges = np.histogram(values[np.isfinite(values)], bins=bins)
        within = np.searchsorted(self.edges[1:-1], values, side="right")
        self._bin = np.where(np.isfinite(values), within, -1)  # -1: in none
        self._clearing = False

    def pick(self, bins: ArrayLike) -> pd.DataFrame:
        """Select the rows of some bins, and give them."""
        self.select(np.isin(self._bin, np.asarray(bins, int)))
        return self.selection

    @property
    def chosen_counts(self) -> NDArray[np.intp]:
        """Selected rows in each bin."""
        bins = self._bin[self.table.index.isin(self._chosen)]
        return np.bincount(bins[bins >= 0], minlength=len(self.counts))

    @property
    def line(self) -> str:
        """The state in words."""
        return f"{len(self._chosen)} of {len(self.table)} rows selected"

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.4, 4), layout="constrained")
        axes = figure.subplots()
        for counts, colour, label in (
            (self.counts, CURVE, "all"),
            (self.chosen_counts, CHOSEN, "selected"),
        ):
            axes.stairs(counts, self.edges, fill=True, color=colour, label=label)
        axes.legend(frameon=False)
        axes.set(xlabel=self.by, ylabel="rows")
        axes.set_title(self.line, fontsize=9)
        return figure

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.models import ColumnDataSource, Range1d
        from bokeh.plotting import figure

        left, right = self.edges[:-1], self.edges[1:]
        self._bars = ColumnDataSource({"left": left, "right": right, "top": self.counts})
        self._parts = ColumnDataSource({"left": left, "right": right, "top": self.chosen_counts})
        plot: Any = figure(
            width=380, height=280, tools="tap,xbox_select", active_drag="xbox_select", toolbar_location=None,
            x_axis_label=self.by, y_axis_label="rows", y_range=Range1d(start=0, end=1.05 * self.counts.max()),
        )  # fmt: skip
        bars = plot.quad(
            left="left", right="right", top="top", bottom=0, source=self._bars, color=CURVE, line_color="white",
            nonselection_fill_alpha=1, nonselection_line_alpha=1,
        )  # fmt: skip
        parts = plot.quad(
            left="left", right="right", top="top", bottom=0, source=self._parts, color=CHOSEN, line_color="white"
        )  # fmt: skip
        for tool in plot.toolbar.tools:
            tool.renderers = [bars]
        parts.level = "annotation"
        self._bars.selected.on_change("indices", self._tapped)
        self._line = ipywidgets.HTML()
        self._widget = ipywidgets.VBox()
        self._selected()
        self._widget.children = [pane(plot), self._line]
        return self._widget

    def _tapped(self, attr: str, old: list[int], new: list[int]) -> None:
        if not self._clearing:
            self.pick(sorted(new))

    def _selected(self) -> None:
        if self._widget is not None:
            picked = self.table.index[np.isin(self._bin, self._bars.selected.indices)]
            if not picked.equals(
                self._chosen
            ):  # the rows were chosen elsewhere; the bars can be clicked again
                self._clearing = True
                self._bars.selected.indices = []
                self._clearing = False
            self._parts.data = {**self._parts.data, "top": self.chosen_counts}
            self._line.value = f"{self.line}. Click a bar, or drag over several."
