"""Threshold explorer: one slider, and what it does to the slide, to the lesions found and to the curves.

The slide with its heatmap and the outlines of the truth; candidates drawn as hits, false alarms and missed lesions; the
FROC and the ROC curve with the point of the present threshold, and the AUC of readers to compare with. All frames are
microns; the y axis of the slide is negative inside Bokeh, whose images grow upwards, and is labelled as it should be.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from pathkit.geometry import Raster
from pathkit.metrics import FrocCurve, auc, froc, match_detections, roc_points
from pathkit.view.pane import load_bokeh, pane

__all__ = ["ThresholdExplorer", "draw_outlines", "is_static"]

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {
    "hit": "#009e73",
    "false alarm": "#d55e00",
    "missed": "#000000",
    "truth": "#0072b2",
    "ignored": "#999999",
}


def is_static() -> bool:
    """Whether views should store pictures instead of widgets."""
    return bool(os.environ.get("PATHKIT_STATIC"))


class ThresholdExplorer:
    """Slide, heatmap, lesions and curves, linked by a threshold.

    Parameters
    ----------
    slides : DataFrame
        slide_id, label, score (of the slide), one row a slide searched.
    thumbnails : mapping
        slide_id to a `Raster` of (H, W, 3) uint8.
    heatmaps : mapping
        slide_id to a `Raster` of probabilities.
    candidates : DataFrame
        slide_id, x_um, y_um, score: all candidates down to the least threshold.
    lesions : DataFrame
        slide_id, lesion_id, geometry in microns, optionally ignore.
    positive : str
        The label of positive slides.
    references : DataFrame, optional
        Readers to compare with, in the legend of the ROC curve: name and auc.
    threshold : float
        To begin with.

    Attributes
    ----------
    threshold : float
    slide_id : str
        Both can be set; the view follows.

    Raises
    ------
    ValueError
        If a slide has no thumbnail or heatmap.
    """

    def __init__(
        self,
        slides: pd.DataFrame,
        thumbnails: Mapping[str, Raster],
        heatmaps: Mapping[str, Raster],
        candidates: pd.DataFrame,
        lesions: pd.DataFrame,
        *,
        positive: str = "tumour",
        references: pd.DataFrame | None = None,
        threshold: float = 0.5,
    ):
        missing = [i for i in slides["slide_id"] if i not in thumbnails or i not in heatmaps]
        if missing:
            raise ValueError(f"ThresholdExplorer: no thumbnail or heatmap for slide {missing[0]!r}.")
        self.slides, self.thumbnails, self.heatmaps = slides.reset_index(drop=True), thumbnails, heatmaps
        self.candidates = match_detections(candidates, lesions)
        self.lesions, self.positive = lesions, positive
        self.references = pd.DataFrame(columns=["name"]) if references is None else references
        self.froc: FrocCurve = froc(candidates, lesions, len(slides))
        self.roc = roc_points(slides["label"] == positive, slides["score"])
        self._threshold = float(threshold)
        positives = slides.loc[slides["label"] == positive, "slide_id"]
        self._slide_id = str(positives.iloc[0])
        self._callbacks: list[Callable[[pd.DataFrame], None]] = []
        self._live: _Live | None = None

    # What is shown ---------------------------------------------------------------------------------------------

    @property
    def threshold(self) -> float:
        """The present threshold."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"threshold is a probability from 0 to 1, got {value}.")
        self._threshold = float(value)
        self._changed()

    @property
    def slide_id(self) -> str:
        """The slide shown."""
        return self._slide_id

    @slide_id.setter
    def slide_id(self, value: str) -> None:
        if value not in set(self.slides["slide_id"]):
            raise ValueError(f"no slide {value!r}; there are {', '.join(self.slides['slide_id'])}.")
        self._slide_id = value
        self._changed()

    @property
    def selection(self) -> pd.DataFrame:
        """Candidates of this slide at or above the threshold, with ``outcome`` (hit, false alarm or ignored)."""
        rows = self.candidates
        rows = rows[(rows["slide_id"] == self._slide_id) & (rows["score"] >= self._threshold)]
        outcome = np.where(
            rows["lesion_id"].isna(), "false alarm", np.where(rows["ignored"], "ignored", "hit")
        )
        return rows.assign(outcome=outcome).reset_index(drop=True)

    @property
    def missed(self) -> pd.DataFrame:
        """Lesions of this slide that no candidate at or above the threshold hits."""
        here = self.lesions[self.lesions["slide_id"] == self._slide_id]
        if "ignore" in here:
            here = here[~here["ignore"].to_numpy(bool)]
        return here[~here["lesion_id"].isin(self.selection["lesion_id"])]

    @property
    def operating_point(self) -> dict[str, float]:
        """Over all slides at this threshold: lesion sensitivity, false alarms a slide, slide sensitivity and specificity."""
        points = self.froc.points[self.froc.points["threshold"] >= self._threshold].iloc[-1]
        called = self.slides["score"] >= self._threshold
        truth = self.slides["label"] == self.positive
        return {
            "lesion_sensitivity": float(points["sensitivity"]),
            "false_alarms_per_slide": float(points["fp_per_slide"]),
            "slide_sensitivity": float(called[truth].mean()),
            "slide_specificity": float((~called[~truth]).mean()),
        }

    def on_select(self, callback: Callable[[pd.DataFrame], None]) -> None:
        """Call `callback` with `selection` whenever slide or threshold change."""
        self._callbacks.append(callback)

    def summary(self) -> str:
        """One line on the present state."""
        outcomes = self.selection["outcome"].value_counts()
        point = self.operating_point
        return (
            f"{self._slide_id} at threshold {self._threshold:.2f}: {outcomes.get('hit', 0)} hits,"
            f" {outcomes.get('false alarm', 0)} false alarms, {len(self.missed)} lesions missed. All slides:"
            f" {point['lesion_sensitivity']:.0%} of lesions at {point['false_alarms_per_slide']:.2f} false alarms a slide;"
            f" {point['slide_sensitivity']:.0%} of positive slides called, {point['slide_specificity']:.0%} of normal ones"
            " left alone."
        )

    def _changed(self) -> None:
        if self._live is not None:
            self._live.update()
        for callback in self._callbacks:
            callback(self.selection)

    # A picture -------------------------------------------------------------------------------------------------

    def snapshot(self, *, dpi: int = 80) -> bytes:
        """The view as a PNG, drawn without a browser."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(14, 5.2), layout="constrained")
        grid = figure.add_gridspec(1, 3, width_ratios=[1.5, 1, 1])
        self._draw_slide(figure.add_subplot(grid[0]))
        self._draw_froc(figure.add_subplot(grid[1]))
        self._draw_roc(figure.add_subplot(grid[2]))
        figure.suptitle(self.summary(), fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=dpi)
        return buffer.getvalue()

    def _draw_slide(self, axes: Any) -> None:
        thumbnail, heat = self.thumbnails[self._slide_id], self.heatmaps[self._slide_id]
        axes.imshow(thumbnail.values, extent=_extent_mm(thumbnail))
        shown = np.ma.masked_invalid(heat.values)
        drawn = axes.imshow(shown, extent=_extent_mm(heat), cmap="viridis", vmin=0, vmax=1, alpha=0.45)
        axes.figure.colorbar(drawn, ax=axes, label="Predicted probability of tumour", shrink=0.75)
        draw_outlines(axes, self.lesions[self.lesions["slide_id"] == self._slide_id])
        axes.plot([], [], color=COLOURS["truth"], label="lesion (truth)")
        for outcome, rows in self.selection.groupby("outcome"):
            marker = {"color": COLOURS[str(outcome)], "marker": "o", "facecolors": "none", "linewidths": 2}
            axes.scatter(rows["x_um"] / 1000, rows["y_um"] / 1000, s=90, label=outcome, **marker)
        points = _middles(self.missed)
        if len(points):
            axes.scatter(*(points.T / 1000), s=90, marker="x", color=COLOURS["missed"], label="missed")
        axes.set(xlabel="mm", ylabel="mm", title=f"{self._slide_id}", aspect="equal")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, fontsize=8, frameon=False)

    def _draw_froc(self, axes: Any) -> None:
        points, point = self.froc.points, self.operating_point
        axes.step(points["fp_per_slide"], points["sensitivity"], where="post", color=COLOURS["truth"])
        axes.plot(
            point["false_alarms_per_slide"],
            point["lesion_sensitivity"],
            "o",
            color=COLOURS["false alarm"],
            markersize=9,
        )
        axes.set(
            xlabel="False alarms per slide", ylabel="Lesions found", title=f"FROC, mean {self.froc.mean:.2f}"
        )
        axes.set(ylim=(0, 1.03), xlim=(-0.1, 8))

    def _draw_roc(self, axes: Any) -> None:
        point = self.operating_point
        axes.plot(self.roc["fpr"], self.roc["tpr"], color=COLOURS["truth"])
        axes.plot(
            1 - point["slide_specificity"],
            point["slide_sensitivity"],
            "o",
            color=COLOURS["false alarm"],
            markersize=9,
        )
        for line in self._reference_lines():
            axes.plot([], [], " ", label=line)
        axes.legend(loc="lower right", fontsize=8, frameon=False, handlelength=0)
        axes.set(
            xlabel="1 - specificity (slides)",
            ylabel="Sensitivity (slides)",
            title="ROC",
            ylim=(0, 1.03),
            xlim=(-0.02, 1),
        )

    def _reference_lines(self) -> list[str]:
        value = auc(self.slides["label"] == self.positive, self.slides["score"])
        return [f"AUC here: {value:.3f}", *(f"{r.name}: {r.auc:.3f}" for r in self.references.itertuples())]

    # Live ------------------------------------------------------------------------------------------------------

    def widget(self) -> Any:
        """The view as an ipywidget; one, however often it is asked for."""
        if self._live is None:
            self._live = _Live(self)
        return self._live.box

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        if is_static():
            display(Image(self.snapshot()))
            return
        load_bokeh()
        display(self.widget())


class _Live:
    """The widgets of an explorer, and what keeps them up to date."""

    def __init__(self, explorer: ThresholdExplorer):
        import ipywidgets

        self.explorer = explorer
        options = [(f"{r.slide_id} ({r.label})", r.slide_id) for r in explorer.slides.itertuples()]
        self.slide = ipywidgets.Dropdown(options=options, value=explorer.slide_id, description="Slide")
        self.slider = ipywidgets.FloatSlider(
            explorer.threshold, min=0, max=1, step=0.01, description="Threshold", continuous_update=True
        )
        self.line = ipywidgets.HTML()
        self._build_figures()
        self.update()  # before the pane, which shows the figures as they are when it is made
        controls = ipywidgets.HBox([self.slide, self.slider])
        self.box = ipywidgets.VBox([controls, pane(self.layout), self.line])
        self.slide.observe(lambda change: setattr(explorer, "slide_id", change["new"]), "value")
        self.slider.observe(lambda change: setattr(explorer, "threshold", change["new"]), "value")

    def _build_figures(self) -> None:
        from bokeh.layouts import row
        from bokeh.models import ColumnDataSource, CustomJSTickFormatter, HoverTool, Range1d
        from bokeh.plotting import figure

        explorer = self.explorer
        self.image = ColumnDataSource({k: [] for k in ("image", "x", "y", "dw", "dh")})
        self.heat = ColumnDataSource({k: [] for k in ("image", "x", "y", "dw", "dh")})
        self.outlines = ColumnDataSource({"xs": [], "ys": []})
        self.marks = ColumnDataSource({"x": [], "y": [], "color": [], "outcome": [], "score": []})
        self.froc_point, self.roc_point = (ColumnDataSource({"x": [], "y": []}) for _ in range(2))
        tooltips = [("", "@outcome"), ("probability", "@score{0.00}")]
        slide = figure(
            width=470, height=390, match_aspect=True, tools="pan,wheel_zoom,reset", active_scroll="wheel_zoom"
        )
        slide.image_rgba("image", x="x", y="y", dw="dw", dh="dh", source=self.image)
        slide.image(
            "image",
            x="x",
            y="y",
            dw="dw",
            dh="dh",
            source=self.heat,
            palette="Viridis256",
            global_alpha=0.45,  # type: ignore[call-arg]
        )
        slide.multi_line("xs", "ys", source=self.outlines, color=COLOURS["truth"], line_width=2)
        marks = slide.scatter(
            "x", "y", source=self.marks, size=13, line_color="color", fill_color=None, line_width=3
        )
        slide.add_tools(HoverTool(renderers=[marks], tooltips=tooltips))
        slide.yaxis.formatter = CustomJSTickFormatter(code="return (-tick).toFixed(1)")
        slide.xaxis.axis_label = slide.yaxis.axis_label = "mm"
        slide.grid.visible = False
        points = explorer.froc.points
        free = figure(
            width=265,
            height=390,
            tools="",
            x_range=Range1d(start=-0.1, end=8),
            y_range=Range1d(start=0, end=1.03),
            title=f"FROC, mean {explorer.froc.mean:.2f}",
        )
        free.step(
            points["fp_per_slide"], points["sensitivity"], mode="after", color=COLOURS["truth"], line_width=2
        )
        free.scatter("x", "y", source=self.froc_point, size=12, color=COLOURS["false alarm"])
        free.xaxis.axis_label, free.yaxis.axis_label = "False alarms per slide", "Lesions found"
        roc = figure(
            width=265,
            height=390,
            tools="",
            x_range=Range1d(start=-0.02, end=1),
            y_range=Range1d(start=0, end=1.03),
            title="ROC of slides",
        )
        roc.line(explorer.roc["fpr"], explorer.roc["tpr"], color=COLOURS["truth"], line_width=2)
        roc.scatter("x", "y", source=self.roc_point, size=12, color=COLOURS["false alarm"])
        for place, text in enumerate(reversed(explorer._reference_lines())):
            roc.text([0.98], [0.03 + 0.06 * place], [text], text_align="right", text_font_size="8pt")
        roc.xaxis.axis_label, roc.yaxis.axis_label = "1 - specificity", "Sensitivity"
        self.layout = row(slide, free, roc)
        self._shown: str | None = None

    def update(self) -> None:
        """Bring every widget to the explorer's state."""
        explorer = self.explorer
        self.slide.value, self.slider.value = explorer.slide_id, explorer.threshold
        if self._shown != explorer.slide_id:
            self._show_slide()
        chosen, missed = explorer.selection, _middles(explorer.missed)
        outcome = [*chosen["outcome"], *["missed"] * len(missed)]
        self.marks.data = {
            "x": [*(chosen["x_um"] / 1000), *(missed[:, 0] / 1000)],
            "y": [*(-chosen["y_um"] / 1000), *(-missed[:, 1] / 1000)],
            "color": [COLOURS[o] for o in outcome],
            "outcome": outcome,
            "score": [*chosen["score"], *[float("nan")] * len(missed)],
        }
        point = explorer.operating_point
        self.froc_point.data = {"x": [point["false_alarms_per_slide"]], "y": [point["lesion_sensitivity"]]}
        self.roc_point.data = {"x": [1 - point["slide_specificity"]], "y": [point["slide_sensitivity"]]}
        self.line.value = explorer.summary()

    def _show_slide(self) -> None:
        explorer = self.explorer
        thumbnail, heat = explorer.thumbnails[explorer.slide_id], explorer.heatmaps[explorer.slide_id]
        rgba = np.dstack([thumbnail.values, np.full(thumbnail.values.shape[:2], 255, np.uint8)])
        packed = np.ascontiguousarray(rgba[::-1]).view(np.uint32)[..., 0]
        self.image.data = {"image": [packed], **_place(thumbnail)}
        self.heat.data = {"image": [np.asarray(heat.values[::-1], np.float32)], **_place(heat)}
        rings = [
            r / 1000 for r in _rings(explorer.lesions[explorer.lesions["slide_id"] == explorer.slide_id])
        ]
        self.outlines.data = {"xs": [r[:, 0] for r in rings], "ys": [-r[:, 1] for r in rings]}
        self._shown = explorer.slide_id


def _place(raster: Raster) -> dict[str, list[float]]:
    """Position of an image in Bokeh: lower left corner and size in mm, y negative."""
    box = raster.extent_um
    return {"x": [box.x / 1000], "y": [-box.y1 / 1000], "dw": [box.width / 1000], "dh": [box.height / 1000]}


def _extent_mm(raster: Raster) -> tuple[float, float, float, float]:
    box = raster.extent_um
    return box.x / 1000, box.x1 / 1000, box.y1 / 1000, box.y / 1000


def draw_outlines(
    axes: Any, lesions: pd.DataFrame, *, um_per_unit: float = 1000.0, color: str = "#0072b2"
) -> None:
    """Draw the outlines of lesions, holes too, on matplotlib axes.

    Parameters
    ----------
    axes : matplotlib Axes
    lesions : DataFrame
        With a column geometry, polygons in microns.
    um_per_unit : float
        Microns per unit of the axes; 1000 for axes in mm.
    color : str
    """
    for ring in _rings(lesions):
        axes.plot(*(ring.T / um_per_unit), color=color, linewidth=1.8)


def _rings(lesions: pd.DataFrame) -> list[NDArray[np.float64]]:
    return [
        shapely.get_coordinates(ring)
        for geometry in lesions["geometry"]
        for polygon in shapely.get_parts(geometry)
        for ring in (polygon.exterior, *polygon.interiors)
    ]


def _middles(lesions: pd.DataFrame) -> NDArray[np.float64]:
    """A point inside each lesion, (N, 2)."""
    points = [g.representative_point() for g in lesions["geometry"]]
    return np.array([(p.x, p.y) for p in points]).reshape(-1, 2)
