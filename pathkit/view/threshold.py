"""Threshold explorer: one slider, and what it does to the slide, to the lesions found and to the curves.

The slide in a viewer, with its heatmap from the threshold on and the outlines of the truth; candidates drawn as hits, false
alarms and missed lesions; the FROC and the ROC curve with the point of the present threshold, and the AUC of readers to
compare with. The picture is made of the thumbnails, in microns; the viewer has the whole slide where its path is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from pathkit.geometry import Raster
from pathkit.metrics import FrocCurve, auc, froc, match_detections, roc_points
from pathkit.patches import SlideSource
from pathkit.slide import open_slide
from pathkit.view.gallery import Shown
from pathkit.view.layers import COLOURS, Heatmap, Layer, Polygons
from pathkit.view.pane import pane
from pathkit.view.viewer import SlideViewer

__all__ = ["ThresholdExplorer", "draw_outlines"]


class _Outcomes(Layer):
    """Candidates from the threshold on as hits and false alarms, and the lesions that are missed."""

    hover = [("", "@outcome"), ("probability", "@score{0.00}")]  # noqa: RUF012

    def __init__(self, marks: dict[str, list[Any]]):
        super().__init__("candidates")
        self.marks_l0 = marks

    def build(self, plot: Any) -> list[Any]:
        from bokeh.models import ColumnDataSource

        self.source = ColumnDataSource(self.marks_l0)
        style: Any = {"size": 13, "line_color": "color", "fill_color": None, "line_width": 3}
        return [plot.scatter("x", "y", source=self.source, marker="marker", **style)]

    def show(self, marks: dict[str, list[Any]]) -> None:
        """Show other marks."""
        self.marks_l0 = marks
        if self.renderers:
            self.source.data = marks  # type: ignore[assignment]

    def legend(self) -> list[tuple[str, str]]:
        return [(name, COLOURS[name]) for name in ("hit", "false alarm", "missed")]


class ThresholdExplorer(Shown):
    """Slide, heatmap, lesions and curves, linked by a threshold.

    Parameters
    ----------
    slides : DataFrame
        slide_id, label, score (of the slide), one row a slide searched; with ``path`` (and mpp) the slide itself is
        shown, else its thumbnail.
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
        self._files = SlideSource(slides) if "path" in slides else None

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
        self._update()
        for callback in self._callbacks:
            callback(self.selection)

    # A picture -------------------------------------------------------------------------------------------------

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(14, 5.2), layout="constrained")
        grid = figure.add_gridspec(1, 3, width_ratios=[1.5, 1, 1])
        self._draw_slide(figure.add_subplot(grid[0]))
        self._draw_froc(figure.add_subplot(grid[1]))
        self._draw_roc(figure.add_subplot(grid[2]))
        figure.suptitle(self.summary(), fontsize=9)
        return figure

    def _draw_slide(self, axes: Any) -> None:
        thumbnail, heat = self.thumbnails[self._slide_id], self.heatmaps[self._slide_id]
        axes.imshow(thumbnail.values, extent=_extent_mm(thumbnail))
        shown = np.ma.masked_where(~(heat.values >= self._threshold), heat.values)  # NaN too
        drawn = axes.imshow(shown, extent=_extent_mm(heat), cmap="viridis", vmin=0, vmax=1, alpha=0.45)
        axes.figure.colorbar(drawn, ax=axes, label="Probability, from the threshold on", shrink=0.75)
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

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.models import ColumnDataSource

        options = [(f"{r.slide_id} ({r.label})", r.slide_id) for r in self.slides.itertuples()]
        self._slide = ipywidgets.Dropdown(options=options, value=self.slide_id, description="Slide")
        self._slider = ipywidgets.FloatSlider(
            self.threshold, min=0, max=1, step=0.01, description="Threshold"
        )
        self._slide.observe(lambda change: setattr(self, "slide_id", change["new"]), "value")
        self._slider.observe(lambda change: setattr(self, "threshold", change["new"]), "value")
        self._line = ipywidgets.HTML(layout={"width": "98%"})
        self._pane = ipywidgets.VBox(layout={"flex": "1 1 auto", "min_width": "0"})
        self._points = [ColumnDataSource(place) for place in self._places()]
        curves = ipywidgets.VBox([pane(plot) for plot in self._curves()], layout={"flex": "0 0 260px"})
        self._widget = ipywidgets.VBox(
            [
                ipywidgets.HBox([self._slide, self._slider]),
                ipywidgets.HBox([self._pane, curves]),
                self._line,
            ]
        )
        self._update()
        return self._widget

    def _curves(self) -> list[Any]:
        """The FROC and the ROC curve with their points, as Bokeh figures."""
        from bokeh.models import Range1d
        from bokeh.plotting import figure

        free, roc = self.froc.points, self.roc
        titles = f"FROC, mean {self.froc.mean:.2f}", "ROC of slides"
        labels = ("False alarms per slide", "Lesions found"), ("1 - specificity", "Sensitivity")
        plots: list[Any] = []
        for title, label, end in zip(titles, labels, (8, 1), strict=True):
            ranges: Any = {
                "x_range": Range1d(start=-0.02 * end, end=1.02 * end),
                "y_range": Range1d(start=0, end=1.05),
            }
            plot = figure(width=260, height=235, tools="", toolbar_location=None, title=title, **ranges)
            plot.xaxis.axis_label, plot.yaxis.axis_label = label
            plots.append(plot)
        style: Any = {"color": COLOURS["truth"], "line_width": 2}
        plots[0].step(free["fp_per_slide"], free["sensitivity"], mode="after", **style)
        plots[1].line(roc["fpr"], roc["tpr"], **style)
        for plot, point in zip(plots, self._points, strict=True):
            plot.scatter("x", "y", source=point, size=12, color=COLOURS["false alarm"])
        for place, text in enumerate(reversed(self._reference_lines())):
            plots[1].text([0.98], [0.03 + 0.09 * place], [text], text_align="right", text_font_size="8pt")
        return plots

    def _update(self) -> None:
        """Bring every widget to the present state."""
        if self._widget is None:
            return
        self._slide.value, self._slider.value = self.slide_id, self.threshold
        if self.viewer is None or self._shown != self.slide_id:
            self._show()
        elif self._heat is not None:
            self._heat.threshold = self.threshold
        self._marks.show(self._outcomes(self.viewer.slide.mpp))
        for source, place in zip(self._points, self._places(), strict=True):
            source.data = place  # type: ignore[assignment]
        self._line.value = self.summary()

    def _places(self) -> list[dict[str, list[float]]]:
        """The present threshold on the FROC and on the ROC curve."""
        point = self.operating_point
        return [
            {"x": [point["false_alarms_per_slide"]], "y": [point["lesion_sensitivity"]]},
            {"x": [1 - point["slide_specificity"]], "y": [point["slide_sensitivity"]]},
        ]

    def _show(self) -> None:
        """Show the present slide."""
        heat, here = self.heatmaps[self.slide_id], self.lesions[self.lesions["slide_id"] == self.slide_id]
        if self._files is not None:
            slide = self._files[self.slide_id]
        else:
            thumbnail = self.thumbnails[self.slide_id]
            slide = open_slide(np.ascontiguousarray(thumbnail.values), mpp=thumbnail.mpp)
        viewer, self._shown, self._heat = SlideViewer(slide, height_px=440), self.slide_id, None
        if np.isfinite(heat.values).any():
            self._heat = Heatmap(
                heat, name="probability", low=0, high=1, threshold=self.threshold, opacity=0.45
            )
            viewer.add(self._heat)
        if len(here):
            outlines = shapely.transform(np.asarray(here["geometry"]), lambda xy: xy / slide.mpp)
            truth = geopandas.GeoDataFrame({"class": "lesion"}, index=range(len(here)), geometry=outlines)
            viewer.add(Polygons(truth, name="truth", colours={"lesion": COLOURS["truth"]}, fill=0))
        self._marks = _Outcomes(self._outcomes(slide.mpp))
        viewer.add(self._marks)
        self._open(viewer)

    def _outcomes(self, mpp: float) -> dict[str, list[Any]]:
        """The marks on the slide, in its level-0 pixels."""
        chosen, missed = self.selection, _middles(self.missed)
        xy = np.vstack([chosen[["x_um", "y_um"]].to_numpy(float), missed]) / mpp
        outcome = [*chosen["outcome"], *["missed"] * len(missed)]
        score = [*chosen["score"], *[float("nan")] * len(missed)]
        places = {"x": xy[:, 0].tolist(), "y": xy[:, 1].tolist()}
        marker = ["x" if o == "missed" else "circle" for o in outcome]
        looks = {"color": [COLOURS[o] for o in outcome], "marker": marker}
        return places | looks | {"outcome": outcome, "score": score}


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
