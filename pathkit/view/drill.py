"""Annotation drill: draw on the slide, and see at once how you compare with the truth and with other readers.

Dice compares outlines by their exact areas; kappa compares the labels that the outlines give to patches. The truth and the
readers are layers of the viewer, hidden until their boxes are ticked, so that you can draw first and look afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from pathkit.agreement import outline_dice
from pathkit.annotations import label_patches
from pathkit.geometry import Box
from pathkit.metrics import kappa
from pathkit.slide import Slide
from pathkit.view.gallery import Shown
from pathkit.view.layers import PALETTE, Patches, Polygons
from pathkit.view.picture import paste
from pathkit.view.viewer import SlideViewer

__all__ = ["AnnotationDrill"]

YOU = "you"
_BACKGROUND = "normal"
_CALLED = "#e69f00"


class _Labels(Patches):
    """The patches that your outlines call; the others would only cover the tissue."""

    def near(self, box: Box) -> NDArray[np.intp]:
        rows = super().near(box)
        assert self.table is not None
        return rows[(self.table["label"] != _BACKGROUND).to_numpy()[rows]]

    def legend(self) -> list[tuple[str, str]]:
        return [entry for entry in super().legend() if entry[0] != _BACKGROUND]


class AnnotationDrill(Shown):
    """A slide to draw on, with Dice and kappa against truth and readers after every stroke.

    Parameters
    ----------
    slide : Slide
    truth : GeoDataFrame
        Outlines in level-0 pixels.
    patches : DataFrame
        Patches of this slide, whose labels are compared; with a unique index.
    readers : mapping, optional
        Name to the outlines of a reader.
    class_name : str
        What is to be outlined; other classes of `truth` are left out.
    min_overlap : float
        Share of a patch that must be covered for it to count.
    height_px : int

    Attributes
    ----------
    drawn : GeoDataFrame
        What you drew. Can be set.
    min_overlap : float
        Can be set.
    scores : DataFrame
        One row for you and each reader: dice and kappa against the truth, dice_you and kappa_you against you, patches called.
    labels : DataFrame
        The patches, with the label of the truth, of you and of each reader as columns.

    Raises
    ------
    ValueError
        If the truth has no outline of the class, there is no patch, or a reader has a name that is taken.
    """

    def __init__(
        self,
        slide: Slide,
        truth: geopandas.GeoDataFrame,
        *,
        patches: pd.DataFrame,
        readers: Mapping[str, geopandas.GeoDataFrame] | None = None,
        class_name: str = "tumour",
        min_overlap: float = 0.5,
        height_px: int = 480,
    ):
        self.class_name, self.slide = class_name, slide
        self.truth = truth[truth["class"] == class_name]
        if not len(self.truth):
            raise ValueError(
                f"AnnotationDrill: the truth has no outline of {class_name!r}, only {sorted(set(truth['class']))}."
            )
        if not len(patches):
            raise ValueError("AnnotationDrill: no patch to label. Lay a grid: patch_grid(slide, ...).")
        self.readers = {n: r[r["class"] == class_name] for n, r in (readers or {}).items()}
        taken = {YOU, "truth"} & set(self.readers)
        if taken:
            raise ValueError(f"AnnotationDrill: the name {taken.pop()!r} is taken; rename that reader.")
        self.patches, self._min_overlap = patches, float(min_overlap)
        self._callbacks: list[Callable[[pd.DataFrame], Any]] = []
        self._label()
        self._layer = _Labels(self._called(), by="label", name="your labels", colours={class_name: _CALLED})
        layers = [self._layer, Polygons(self.truth, name="truth", colours={class_name: "#000000"}, fill=0)]
        for i, (name, outlines) in enumerate(self.readers.items()):
            if len(outlines):
                colour = {class_name: PALETTE[1 + i % 6]}
                layers.append(Polygons(outlines, name=name, colours=colour, fill=0))
        for layer in layers[1:]:
            layer.visible = False
        self.viewer = SlideViewer(slide, layers=layers, classes=(class_name,), height_px=height_px)
        self.viewer.on_draw(lambda _: self._redo())
        self._score()

    @property
    def drawn(self) -> geopandas.GeoDataFrame:
        return self.viewer.drawn

    @drawn.setter
    def drawn(self, annotations: geopandas.GeoDataFrame) -> None:
        self.viewer.drawn = annotations

    @property
    def min_overlap(self) -> float:
        return self._min_overlap

    @min_overlap.setter
    def min_overlap(self, value: float) -> None:
        before, self._min_overlap = self._min_overlap, float(value)
        try:
            self._label()
        except ValueError:
            self._min_overlap = before
            raise
        self._redo()

    def on_score(self, callback: Callable[[pd.DataFrame], Any]) -> None:
        """Call `callback` with `scores` whenever they change."""
        self._callbacks.append(callback)

    @property
    def line(self) -> str:
        """The state in words."""
        you, n = self.scores.loc[YOU], len(self.labels)
        counts = (self.labels == self.class_name).sum()
        return (
            f"Dice {you['dice']:.3f}, kappa {you['kappa']:.3f} against the truth; {counts[YOU]} of {n} patches are"
            f" {self.class_name} by your outlines, {counts['truth']} by the truth, at an overlap of {self.min_overlap:.2f}"
        )

    # Scores ----------------------------------------------------------------------------------------------------

    def _label_by(self, outlines: geopandas.GeoDataFrame) -> pd.Series:
        areas = outlines[outlines.geometry.geom_type.isin(("Polygon", "MultiPolygon"))]
        labelled = label_patches(
            self.patches,
            areas,
            slide_mpp=self.slide.mpp,
            min_overlap=self._min_overlap,
            classes=[self.class_name],
        )
        return labelled["label"]

    def _label(self) -> None:
        """What is labelled without you."""
        self._others = pd.DataFrame(
            {"truth": self._label_by(self.truth), **{n: self._label_by(r) for n, r in self.readers.items()}}
        )

    def _called(self) -> pd.DataFrame:
        labels = self._label_by(self.drawn) if self.viewer is not None else _BACKGROUND
        return self.patches.assign(label=labels)

    def _redo(self) -> None:
        self._score()
        self._layer.recolour(self.labels_on_patches)
        self._layer.refresh(self.viewer.view)
        if self._widget is not None:
            self._show()
        for callback in self._callbacks:
            callback(self.scores)

    def _score(self) -> None:
        self.labels_on_patches = self._called()
        mine = self.labels_on_patches["label"]
        self.labels = self._others.assign(**{YOU: mine})[["truth", YOU, *self.readers]]
        rows = {}
        for name in (YOU, *self.readers):
            outlines = self.drawn if name == YOU else self.readers[name]
            rows[name] = {
                "dice": outline_dice(outlines, self.truth),
                "kappa": kappa(self.labels[name], self.labels["truth"]),
                "dice_you": outline_dice(outlines, self.drawn),
                "kappa_you": kappa(self.labels[name], self.labels[YOU]),
                "patches": int((self.labels[name] == self.class_name).sum()),
            }
        self.scores = pd.DataFrame(rows).T.astype({"patches": int})

    # Shown -----------------------------------------------------------------------------------------------------

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        box = self._field()
        high = 6.0
        figure = Figure(figsize=(high * box.width / box.height + 4.6, high + 0.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(high * box.width / box.height, 4.2))
        truth = next(layer for layer in self.viewer.layers if layer.name == "truth")
        shown, truth.visible = truth.visible, True  # on paper there is no box to tick
        paste(left, self.viewer.snapshot(box_l0=box, width_px=640))
        truth.visible = shown
        at = np.arange(len(self.scores))[::-1]
        right.hlines(at, 0, 1, color="#eeeeee", zorder=0)
        right.plot(self.scores["dice"], at, "o", color="#0072b2", markersize=9, label="Dice of outlines")
        right.plot(
            self.scores["kappa"],
            at,
            "D",
            color="#d55e00",
            markersize=8,
            label="kappa of patch labels",
            fillstyle="none",
        )
        right.set_yticks(
            at,
            [
                f"{n}\n{r.patches} patches"
                for n, r in zip(self.scores.index, self.scores.itertuples(), strict=True)
            ],
        )
        right.set(xlim=(min(0.0, float(self.scores["kappa"].min())) - 0.02, 1.02), ylim=(-0.6, len(at) - 0.4))
        right.set(xlabel="Agreement with the truth")
        right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)
        figure.suptitle(self.line, fontsize=9)
        return figure

    def _field(self) -> Box:
        """The slide, or what of it the outlines need."""
        shapes = [*self.truth.geometry, *self.drawn.geometry]
        x0, y0, x1, y1 = shapely.total_bounds(shapes)
        room = 0.2 * max(x1 - x0, y1 - y0)
        whole = Box(0, 0, *self.slide.dimensions)
        return Box.from_bounds(x0 - room, y0 - room, x1 + room, y1 + room).intersection(whole) or whole

    def _built(self) -> Any:
        import ipywidgets

        overlap = ipywidgets.FloatSlider(
            self.min_overlap, min=0.05, max=1, step=0.05, description="Overlap", continuous_update=False
        )
        overlap.observe(lambda c: setattr(self, "min_overlap", c["new"]), "value")
        self._line, self._table = ipywidgets.Label(), ipywidgets.HTML()
        self._show()
        return ipywidgets.VBox([ipywidgets.HBox([overlap, self._line]), self.viewer.widget(), self._table])

    def _show(self) -> None:
        self._line.value = self.line
        names = {
            "dice": "Dice, truth", "kappa": "kappa, truth", "dice_you": "Dice, you", "kappa_you": "kappa, you",
            "patches": "patches",
        }  # fmt: skip
        self._table.value = self.scores.rename(columns=names).to_html(float_format="{:.3f}".format)
