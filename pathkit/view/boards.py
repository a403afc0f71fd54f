"""Boards: the viewer, the gallery and charts put together and linked, for one question each."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pathkit.geometry import Raster
from pathkit.patches import SlideSource
from pathkit.slide import Slide
from pathkit.view.gallery import Gallery, Rows, Shown, need
from pathkit.view.layers import PALETTE, Heatmap, Mask, Patches, Polygons, SecondSlide, colours_of
from pathkit.view.pane import pane
from pathkit.view.picture import halves, paste
from pathkit.view.viewer import SlideViewer

__all__ = ["CaseBoard", "EmbeddingExplorer", "ErrorAtlas", "TrainingMonitor", "Tuner", "compare", "tune"]

#: Points drawn one by one; of more rows so many are drawn at random, and the view says so.
MOST_POINTS = 20_000


class _OnSlides(Rows):
    """Rows of patches with a gallery and, below it, the slide of the row that was clicked."""

    def __init__(self, table: pd.DataFrame, slides: Any, gallery: Gallery, colour_by: str | None):
        super().__init__(table)
        self.slides, self.gallery, self.colour_by = SlideSource(slides), gallery, colour_by
        self.slide_id: str | None = None
        names = sorted(table[colour_by].astype(str).unique()) if colour_by else []
        self.palette = colours_of(names)  # the same on every slide
        gallery.on_select(self._clicked)

    def go_to(self, row: pd.Series) -> SlideViewer:
        """Show a row's slide at its place; gives the viewer."""
        if self.viewer is None or self.slide_id != row["slide_id"]:
            self.slide_id = str(row["slide_id"])
            here = self.table[self.table["slide_id"] == self.slide_id]
            layer = Patches(here, name="patches", by=self.colour_by, colours=self.palette)
            self._open(SlideViewer(self.slides[self.slide_id], layers=[layer], height_px=380))
            self._outline()
            self.viewer.on_select(lambda rows: self.select(self._with_other_slides(rows)))
        self.viewer.go_to(row, mpp=float(row["mpp"]))
        return self.viewer

    def _with_other_slides(self, rows: pd.DataFrame) -> pd.Index:
        elsewhere = self._chosen[(self.table.loc[self._chosen, "slide_id"] != self.slide_id).to_numpy()]
        return elsewhere.union(rows.index, sort=False)

    def _clicked(self, rows: pd.DataFrame) -> None:
        if len(rows):
            self.go_to(rows.iloc[0])

    def _selected(self) -> None:
        self.gallery.show(self.selection if len(self._chosen) else self.table)
        self._outline()

    def _outline(self) -> None:
        if self.viewer is not None:
            here = (self.table.loc[self._chosen, "slide_id"] == self.slide_id).to_numpy()
            self.viewer.select(self._chosen[here])


class EmbeddingExplorer(_OnSlides):
    """Patches as points of a plane: lasso points to see them in the gallery and on the slide, and the reverse.

    Parameters
    ----------
    table : DataFrame
        Patches, with a unique index.
    xy : (N, 2) array
        A place for each row, such as two principal components of its features.
    slides : DataFrame or mapping
    colour : str, optional
        Column of classes.

    Raises
    ------
    ValueError
        If `xy` does not fit the table, or holds what is no number.
    """

    def __init__(
        self, table: pd.DataFrame, xy: ArrayLike, slides: Any, *, colour: str | None = None, **options: Any
    ):
        places = np.asarray(xy, float)
        if places.shape != (len(table), 2) or not np.isfinite(places).all():
            raise ValueError(
                f"EmbeddingExplorer: xy must be ({len(table)}, 2) numbers, one row for each of the table, got"
                f" {places.shape}{'' if np.isfinite(places).all() else ' with NaN'}."
            )
        super().__init__(
            table, slides, Gallery(table, slides, **{"n_rows": 2, "caption": colour, **options}), colour
        )
        self.xy, self.colour = places, colour
        drawn = np.arange(len(table))
        if len(drawn) > MOST_POINTS:
            drawn = np.sort(np.random.default_rng(0).choice(drawn, MOST_POINTS, replace=False))
        self._drawn_rows = drawn

    def _colours(self, rows: NDArray[np.intp]) -> list[str]:
        names = self.table[self.colour].astype(str).iloc[rows] if self.colour else [""] * len(rows)
        return [self.palette.get(n, PALETTE[0]) for n in names]

    def _title(self) -> str:
        n, drawn = len(self.table), len(self._drawn_rows)
        return f"{n} patches" if n == drawn else f"{drawn} of {n} patches, at random"

    def _drawn(self) -> Any:
        figure, left, right = halves((14, 4.6), (1, 1.6))
        axes = left.subplots()
        chosen = self.table.index[self._drawn_rows].isin(self._chosen)
        for mask, alpha in ((~chosen, 0.25 if chosen.any() else 0.8), (chosen, 1.0)):
            rows = self._drawn_rows[mask]
            size = 30 if len(self._drawn_rows) < 500 else 8
            axes.scatter(*self.xy[rows].T, c=self._colours(rows), s=size, alpha=alpha, linewidths=0)
        for name, colour in self.palette.items():
            axes.scatter([], [], c=colour, label=name)
        if self.palette:
            axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4)
        axes.set(xticks=[], yticks=[], title=self._title())
        self.gallery.draw(right)
        return figure

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.models import ColumnDataSource
        from bokeh.plotting import figure

        rows = self._drawn_rows
        self._points = ColumnDataSource(
            {
                "x": self.xy[rows, 0],
                "y": self.xy[rows, 1],
                "colour": self._colours(rows),
                "name": self.table[self.colour].astype(str).iloc[rows].tolist()
                if self.colour
                else [""] * len(rows),
            }
        )
        plot: Any = figure(
            width=420, height=380, tools="pan,wheel_zoom,lasso_select,tap,reset", active_drag="lasso_select",
            title=self._title(),
        )  # fmt: skip
        plot.scatter(
            "x", "y", color="colour", size=5, source=self._points, nonselection_alpha=0.15,
            **({"legend_group": "name"} if self.colour else {}),
        )  # fmt: skip
        plot.axis.visible = plot.grid.visible = False
        plot.toolbar.logo = None
        if self.colour:  # below the points, not over them
            plot.add_layout(plot.legend[0], "below")
            plot.legend[0].update(
                orientation="horizontal",
                ncols=3,
                border_line_color=None,
                padding=2,
                label_text_font_size="11px",
            )
        self._points.selected.on_change(
            "indices", lambda attr, old, new: self.select(self.table.index[rows[sorted(new)]])
        )
        self._pane = ipywidgets.VBox()
        return ipywidgets.VBox([ipywidgets.HBox([pane(plot), self.gallery.widget()]), self._pane])

    def _selected(self) -> None:
        super()._selected()
        if self._widget is not None:
            at = np.flatnonzero(self.table.index[self._drawn_rows].isin(self._chosen)).tolist()
            if sorted(self._points.selected.indices) != at:
                self._points.selected.indices = at


class ErrorAtlas(_OnSlides):
    """The confusion matrix; a click on a cell fills the gallery, worst first, a click there goes to the place.

    Parameters
    ----------
    table : DataFrame
        Patches with their class, the predicted one, and optionally the loss.
    slides : DataFrame or mapping
    label, predicted : str
        Columns.
    loss : str, optional
        Column to sort by.

    Attributes
    ----------
    relabelled : DataFrame
        The table, with what `relabel` changed.

    Raises
    ------
    ValueError
        If a column is missing.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        slides: Any,
        *,
        label: str = "label",
        predicted: str = "predicted",
        loss: str | None = None,
    ):
        need(table, "ErrorAtlas", label, predicted, loss)
        whole = lambda name: str(name).replace(" ", "\u00a0")  # noqa: E731  lines break at the arrow
        gallery = Gallery(
            table, slides, by=loss, caption=lambda r: f"{whole(r[label])} → {whole(r[predicted])}"
        )
        super().__init__(table, slides, gallery, predicted)
        self.label, self.predicted = label, predicted
        self.classes = sorted(set(table[label].astype(str)) | set(table[predicted].astype(str)))
        self.relabelled = table.copy()

    @property
    def matrix(self) -> pd.DataFrame:
        """Counts; rows are the labels, columns the predictions."""
        counts = pd.crosstab(self.relabelled[self.label].astype(str), self.table[self.predicted].astype(str))
        return counts.reindex(index=self.classes, columns=self.classes, fill_value=0)

    def pick(self, label: str, predicted: str) -> pd.DataFrame:
        """Select the rows of one cell, and give them."""
        truth, found = (t.astype(str) for t in (self.relabelled[self.label], self.table[self.predicted]))
        self.select(((truth == label) & (found == predicted)).to_numpy())
        return self.selection

    def relabel(self, rows: Any, label: str) -> None:
        """Give rows another label, in `relabelled`: the table itself is not changed.

        Raises
        ------
        ValueError
            If there is no such class.
        """
        if label not in self.classes:
            raise ValueError(f"relabel: no class {label!r}; there are {', '.join(self.classes)}.")
        index = rows.index if isinstance(rows, pd.DataFrame) else rows
        self.relabelled.loc[index, self.label] = label
        if self._widget is not None:
            self._fill()

    def _drawn(self) -> Any:
        figure, left, right = halves((14, 5), (1, 1.7))
        axes, matrix = left.subplots(), self.matrix.to_numpy()
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (r, c), n in np.ndenumerate(matrix):
            axes.text(
                c, r, n, ha="center", va="center", color="white" if share[r, c] > 0.6 else "black", fontsize=8
            )
        ticks = range(len(self.classes))
        axes.set_xticks(ticks, self.classes, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(ticks, self.classes, fontsize=8)
        axes.set(xlabel="predicted", ylabel="label")
        self.gallery.draw(right)
        return figure

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.models import ColumnDataSource, FactorRange
        from bokeh.plotting import figure

        self._cells = ColumnDataSource({k: [] for k in ("label", "predicted", "n", "share", "ink")})
        plot: Any = figure(
            width=420, height=400, x_range=FactorRange(factors=self.classes),
            y_range=FactorRange(factors=self.classes[::-1]), tools="tap", toolbar_location=None,
            x_axis_label="predicted", y_axis_label="label",
        )  # fmt: skip
        plot.rect(
            "predicted", "label", 1, 1, source=self._cells, fill_color="#08519c", fill_alpha="share",
            line_color="white", selection_line_color="#e6b800", selection_line_width=4,
            nonselection_fill_alpha="share", nonselection_line_alpha=1,
        )  # fmt: skip
        plot.text(
            "predicted", "label", "n", text_color="ink", source=self._cells, text_align="center",
            text_baseline="middle", text_font_size="12px",
        )  # fmt: skip
        plot.xaxis.major_label_orientation = 0.7
        plot.grid.visible = False
        self._cells.selected.on_change("indices", self._cell_tapped)
        self._fill()
        names = ipywidgets.Dropdown(options=self.classes, description="Label as")
        button = ipywidgets.Button(description="Relabel chosen")
        button.on_click(lambda _: self.relabel(self.gallery.selection, names.value))
        self._pane = ipywidgets.VBox()
        beside = ipywidgets.VBox([self.gallery.widget(), ipywidgets.HBox([names, button])])
        return ipywidgets.VBox([ipywidgets.HBox([pane(plot), beside]), self._pane])

    def _fill(self) -> None:
        matrix = self.matrix
        share = matrix.to_numpy() / np.maximum(matrix.to_numpy().sum(1, keepdims=True), 1)
        long = matrix.stack()
        self._cells.data = {
            "label": long.index.get_level_values(0).tolist(),
            "predicted": long.index.get_level_values(1).tolist(),
            "n": long.tolist(),
            "share": share.ravel().tolist(),
            "ink": ["white" if s > 0.6 else "black" for s in share.ravel()],
        }

    def _cell_tapped(self, attr: str, old: list[int], new: list[int]) -> None:
        if new:
            self.pick(self._cells.data["label"][new[0]], self._cells.data["predicted"][new[0]])


class Tuner(Shown):
    """A function of a slide and some numbers, whose result is drawn over the slide while sliders move.

    Made by `tune`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        slide: Slide,
        sliders: Mapping[str, Any],
        score: Callable[[Any], str] | None,
    ):
        self.function, self.slide, self.score = function, slide, score
        self.sliders = {name: _limits(name, given) for name, given in sliders.items()}
        self.values: dict[str, float] = {name: value for name, (_, _, value) in self.sliders.items()}
        self.viewer = SlideViewer(slide)
        self.result: Any = None
        self._layer: Any = None
        self._redo()

    def set(self, **values: float) -> Any:
        """Set numbers, as if their sliders had been moved; gives the result.

        Raises
        ------
        ValueError
            If there is no such slider.
        """
        unknown = set(values) - set(self.values)
        if unknown:
            raise ValueError(f"tune: no slider {sorted(unknown)[0]!r}; there are {', '.join(self.values)}.")
        self.values.update(values)
        self._redo()
        return self.result

    @property
    def line(self) -> str:
        """What the score says of the result."""
        return "" if self.score is None else self.score(self.result)

    def _redo(self) -> None:
        self.result = self.function(self.slide, **self.values)
        shown = self.result
        if isinstance(shown, Raster) and self._layer is not None:
            self._layer.show(shown)
            return
        if self._layer is not None:
            self.viewer.remove(self._layer)
        if isinstance(shown, Raster):
            made = Mask(shown) if shown.values.dtype == bool else Heatmap(shown)
            self._layer = self.viewer.add(made)
        else:
            self._layer = self.viewer.add(Polygons(shown))

    def snapshot(self) -> bytes:
        """The slide with the result as a PNG."""
        return self.viewer.snapshot(width_px=600)

    def _built(self) -> Any:
        import ipywidgets

        line, controls = ipywidgets.Label(self.line), []
        for name, (low, high, value) in self.sliders.items():
            slider = ipywidgets.FloatSlider(
                value, min=low, max=high, step=(high - low) / 100, description=name, continuous_update=False,
                readout_format=".3g", style={"description_width": "initial"},
            )  # fmt: skip
            controls.append(slider)

            def moved(change: Any, name: str = name) -> None:
                try:
                    self.set(**{name: change["new"]})
                    line.value = self.line
                except ValueError as error:
                    line.value = str(error)

            slider.observe(moved, "value")
        return ipywidgets.VBox([ipywidgets.HBox([*controls, line]), self.viewer.widget()])


def tune(
    function: Callable[..., Any], slide: Slide, *, score: Callable[[Any], str] | None = None, **sliders: Any
) -> Tuner:
    """Drive any mask or filter live.

    Parameters
    ----------
    function : callable
        ``function(slide, **numbers)`` gives a Raster (of bool: a mask; of numbers: a heatmap) or a GeoDataFrame.
    slide : Slide
    score : callable, optional
        Of the result a line of text, such as its IoU with the truth.
    **sliders : (low, high) or (low, high, value)

    Returns
    -------
    Tuner
        ``values`` and ``result`` follow the sliders; ``set`` moves them from Python.

    Examples
    --------
    >>> tuner = tune(tissue_mask, slide, od_threshold=(0.01, 0.3), min_area_um2=(0, 1e5))  # doctest: +SKIP
    """
    return Tuner(function, slide, sliders, score)


def compare(first: Slide, second: Slide, *, mode: str = "swipe", layers: Sequence[Any] = ()) -> SlideViewer:
    """Two slides in one place: ``"swipe"``, ``"blink"`` or ``"fade"``."""
    viewer = SlideViewer(first, layers=[SecondSlide(second), *layers])
    viewer.compare(mode)
    return viewer


class TrainingMonitor(Shown):
    """The prediction on a slide, redrawn while training, beside the loss; pause, go on, stop, another learning rate.

    Parameters
    ----------
    slide : Slide
    predict : callable
        ``predict(model)`` gives a Raster of probabilities, such as ``lambda model: heatmap(slide, model)``.

    Attributes
    ----------
    history : DataFrame
        One row an epoch, as `training.fit` gives it.
    rate : float
        Factor on the learning rate from the next epoch on.

    Examples
    --------
    >>> monitor = TrainingMonitor(slide, lambda model: heatmap(slide, model))  # doctest: +SKIP
    >>> monitor.run(lambda: fit(model, train, val, slides=slides, on_epoch=monitor))  # doctest: +SKIP
    >>> monitor.result()  # waits  # doctest: +SKIP
    """

    def __init__(self, slide: Slide, predict: Callable[[Any], Raster]):
        self.slide, self.predict = slide, predict
        self.viewer = SlideViewer(slide, height_px=380)
        self.history = pd.DataFrame()
        self.rate = 1.0
        self._layer: Any = None
        self._go, self._stop = threading.Event(), False
        self._go.set()
        self._thread: threading.Thread | None = None
        self._outcome: list[Any] = []

    def __call__(self, model: Any, row: Mapping[str, float]) -> dict[str, Any]:
        """Give this to `training.fit` as ``on_epoch``: draws, waits while paused, and says how to go on."""
        self.history = pd.concat([self.history, pd.DataFrame([row])], ignore_index=True)
        heat = self.predict(model)
        if self.viewer is None:  # closed meanwhile
            return {"lr_factor": self.rate, "stop": True}
        if self._layer is None:
            self._layer = self.viewer.add(Heatmap(heat, name="prediction", low=0, high=1))
        else:
            self._layer.show(heat)
        self._redraw()
        self._go.wait()
        return {"lr_factor": self.rate, "stop": self._stop}

    def pause(self) -> None:
        """Wait after the present epoch."""
        self._go.clear()

    def resume(self) -> None:
        """Go on."""
        self._go.set()

    def stop(self) -> None:
        """End after the present epoch; the best state so far is the result."""
        self._stop = True
        self._go.set()

    def run(self, train: Callable[[], Any]) -> TrainingMonitor:
        """Train in the background, so that other cells can run meanwhile.

        Raises
        ------
        RuntimeError
            If a training runs already.
        """
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("TrainingMonitor: a training runs already; stop() it or wait for result().")
        self._stop, self._outcome = False, []

        def work() -> None:
            try:
                self._outcome.append(train())
            except BaseException as error:
                self._outcome.append(error)

        self._thread = threading.Thread(target=work, daemon=True, name="pathkit-training")
        self._thread.start()
        return self

    def result(self, timeout: float | None = None) -> Any:
        """What the training gave; waits for it, and raises what it raised.

        Raises
        ------
        TimeoutError
            If it is not done in time (seconds).
        """
        if self._thread is None:
            raise RuntimeError("TrainingMonitor: nothing runs; call run(...) first.")
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"TrainingMonitor: still training after {timeout:g} s; it goes on.")
        outcome = self._outcome[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def snapshot(self) -> bytes:
        """Loss and present prediction as a PNG."""
        return super().snapshot()

    def _drawn(self) -> Any:
        figure, left, right = halves((13, 4.4), (1, 1.8))
        axes = left.subplots()
        for name, colour in (("train_loss", "#0072b2"), ("val_loss", "#d55e00")):
            if name in self.history:
                axes.plot(
                    self.history["epoch"],
                    self.history[name],
                    "o-",
                    color=colour,
                    label=name.replace("_", " "),
                )
        axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
        axes.legend(frameon=False)
        paste(right, self.viewer.snapshot())
        return figure

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.models import ColumnDataSource
        from bokeh.plotting import figure

        self._curve = ColumnDataSource({"epoch": [], "train": [], "val": []})
        plot: Any = figure(
            width=330, height=350, tools="", toolbar_location=None, x_axis_label="epoch", y_axis_label="loss"
        )
        plot.xaxis.ticker.min_interval, plot.xaxis.ticker.num_minor_ticks = 1, 0
        for name, colour in (("train", "#0072b2"), ("val", "#d55e00")):
            plot.line("epoch", name, source=self._curve, color=colour, line_width=2, legend_label=name)
            plot.scatter("epoch", name, source=self._curve, color=colour, size=6)
        pause = ipywidgets.ToggleButton(description="Pause", layout={"width": "80px"})
        pause.observe(lambda c: self.pause() if c["new"] else self.resume(), "value")
        stop = ipywidgets.Button(description="Stop", layout={"width": "80px"})
        stop.on_click(lambda _: self.stop())
        rate = ipywidgets.FloatLogSlider(
            1.0, base=10, min=-2, max=1, step=0.1, description="rate x", readout_format=".2g"
        )
        rate.observe(lambda c: setattr(self, "rate", c["new"]), "value")
        controls = ipywidgets.HBox([pause, stop, rate])
        self._widget = ipywidgets.VBox()
        self._redraw()
        beside = ipywidgets.VBox([controls, pane(plot)])
        self._widget.children = [
            ipywidgets.HBox([beside, ipywidgets.Box([self.viewer.widget()], layout={"flex": "1"})])
        ]
        return self._widget

    def _redraw(self) -> None:
        if self._widget is not None and len(self.history):
            self._curve.data = {
                "epoch": self.history["epoch"].tolist(),
                "train": self.history["train_loss"].tolist(),
                "val": self.history["val_loss"].tolist(),
            }

    def close(self) -> None:
        """Stop, and close the viewer."""
        self.stop()
        super().close()


class CaseBoard(Shown):
    """Panes of one case in one layout: views, tables, figures, text.

    Parameters
    ----------
    panes : mapping
        Title to a view, a DataFrame, or text.
    columns : int
    title : str

    Raises
    ------
    ValueError
        If there is no pane, or one can be shown neither way.
    """

    def __init__(self, panes: Mapping[str, Any], *, columns: int = 2, title: str = ""):
        if not panes:
            raise ValueError("CaseBoard: no panes to show.")
        wrong = [
            n
            for n, p in panes.items()
            if not isinstance(p, (str, pd.DataFrame)) and not hasattr(p, "snapshot")
        ]
        if wrong:
            raise ValueError(f"CaseBoard: pane {wrong[0]!r} is neither a view, a DataFrame nor text.")
        self.panes, self.columns, self.title = dict(panes), columns, title

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        texts = [_text(content) for content in self.panes.values()]
        inches = [4.4 if text is None else 0.7 + 0.16 * len(text.splitlines()) for text in texts]
        heights = [max(inches[i : i + self.columns]) for i in range(0, len(inches), self.columns)]
        figure = Figure(figsize=(14, sum(heights) + 0.4), layout="constrained")
        figure.suptitle(self.title)
        parts = np.ravel(figure.subfigures(len(heights), self.columns, squeeze=False, height_ratios=heights))
        for i, (part, (name, content)) in enumerate(zip(parts, self.panes.items(), strict=False)):
            part.suptitle(name, fontsize=10)
            if texts[i] is None:
                paste(part, content.snapshot())
            else:
                top = 1 - 0.45 / heights[i // self.columns]
                part.text(0.02, top, texts[i], va="top", family="monospace", fontsize=8)
        return figure

    def _built(self) -> Any:
        import ipywidgets

        boxes = []
        for name, content in self.panes.items():
            if isinstance(content, pd.DataFrame):
                table = content.to_html(index=False, border=0, max_rows=30, float_format="{:.3g}".format)
                shown: Any = ipywidgets.HTML(
                    f'<div class="jp-RenderedHTMLCommon" style="overflow:auto;max-height:400px">{table}</div>'
                )
            elif isinstance(content, str):
                shown = ipywidgets.HTML(f'<p style="line-height:1.4">{content}</p>')
            else:
                shown = content.widget()
            boxes.append(
                ipywidgets.VBox([ipywidgets.HTML(f"<b>{name}</b>"), shown], layout={"min_width": "0"})
            )
        grid = ipywidgets.GridBox(
            boxes, layout={"grid_template_columns": f"repeat({self.columns}, 1fr)", "grid_gap": "12px"}
        )
        return ipywidgets.VBox([ipywidgets.HTML(f"<h3>{self.title}</h3>"), grid]) if self.title else grid


def _text(content: Any) -> str | None:
    """A pane of words or numbers as lines that fit half a picture; None for a view."""
    if isinstance(content, str):
        return "\n".join(part for line in content.splitlines() for part in textwrap.wrap(line, 95) or [""])
    if isinstance(content, pd.DataFrame):
        return content.to_string(
            index=False, max_rows=14, line_width=95, max_cols=10, float_format="{:.3g}".format
        )
    return None


def _limits(name: str, given: Any) -> tuple[float, float, float]:
    try:
        low, high, *rest = (float(v) for v in given)
    except (TypeError, ValueError):
        raise ValueError(f"tune: {name} needs (low, high) or (low, high, value), got {given!r}.") from None
    value = rest[0] if rest else (low + high) / 2
    if not low < high or not low <= value <= high:
        raise ValueError(f"tune: {name} needs low < high and a value between, got {given!r}.")
    return low, high, value
