"""The hot spot board: hits, false alarms and misses as a gallery, beside the slide with its hot spot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import shapely

from pathkit.annotations import annotation_frame
from pathkit.annotations.rows import Row
from pathkit.view.boards import _OnSlides
from pathkit.view.gallery import Gallery, need
from pathkit.view.layers import Polygons
from pathkit.view.picture import halves, paste
from pathkit.view.viewer import SlideViewer

__all__ = ["HotSpotBoard"]

OUTCOMES = ("hit", "false alarm", "miss")


class HotSpotBoard(_OnSlides):
    """Pick an outcome to fill the gallery; click a picture to go to its place; the ring is the slide's hot spot.

    Parameters
    ----------
    table : DataFrame
        Patches with slide_id, score and outcome ("hit", "false alarm" or "miss"); index unique.
    slides : DataFrame or mapping
    spots : mapping of slide_id to hot spot
        As `counting.hot_spot` gives them; slides without one have no ring.
    slide_id : str, optional
        The slide shown first; the one with the most points in its spot by default.

    Attributes
    ----------
    viewer : SlideViewer
    selection : DataFrame

    Raises
    ------
    ValueError
        If the table has no outcome or score, or an outcome is none of the three.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        slides: Any,
        spots: Mapping[str, Mapping[str, Any]],
        *,
        slide_id: str | None = None,
    ):
        need(table, "HotSpotBoard", "outcome", "score")
        strange = sorted(set(table["outcome"]) - set(OUTCOMES))
        if strange:
            raise ValueError(f"HotSpotBoard: outcome {strange[0]!r} is none of {', '.join(OUTCOMES)}.")
        gallery = Gallery(
            table,
            slides,
            by="score",
            caption=lambda r: f"{r['outcome']} {r['score']:.2f}",
            n_cols=7,
            n_rows=3,
        )
        super().__init__(table, slides, gallery, "outcome")
        self.spots = dict(spots)
        first = slide_id or max(
            self.spots, key=lambda i: self.spots[i]["n"], default=str(table["slide_id"].iloc[0])
        )
        self.show_slide(first)

    def show_slide(self, slide_id: str) -> SlideViewer:
        """Show a slide whole, with its ring; the gallery shows what is on it.

        Raises
        ------
        ValueError
            If no patch is of this slide.
        """
        here = self.table[self.table["slide_id"] == slide_id]
        if not len(here):
            raise ValueError(f"HotSpotBoard: no patch of slide {slide_id!r}.")
        viewer = self.go_to(here.iloc[0])
        viewer.home()
        self.gallery.show(here)
        return viewer

    def go_to(self, row: pd.Series) -> SlideViewer:
        """Show a row's slide at its place; gives the viewer."""
        before = self.viewer
        viewer = super().go_to(row)
        spot = self.spots.get(str(row["slide_id"]))
        if viewer is not before and spot is not None:
            ring = shapely.Point(spot["x_um"], spot["y_um"]).buffer(spot["radius_um"], quad_segs=32)
            scale = 1 / viewer.slide.mpp
            ring = shapely.affinity.scale(ring, scale, scale, origin=(0, 0))
            viewer.add(
                Polygons(
                    annotation_frame([Row(ring, "hot spot", f"{spot['n']} found", "#000000")]),
                    name="hot spot",
                    fill=0.0,
                )
            )
        return viewer

    def pick(self, outcome: str, *, slide_id: str | None = None) -> pd.DataFrame:
        """Fill the gallery with an outcome, of one slide or of all; gives its rows, the highest score first.

        Raises
        ------
        ValueError
            If there is no such outcome.
        """
        if outcome not in OUTCOMES:
            raise ValueError(f"pick: outcome is {', '.join(OUTCOMES)}, got {outcome!r}.")
        rows = self.table[self.table["outcome"] == outcome]
        rows = rows if slide_id is None else rows[rows["slide_id"] == slide_id]
        self.gallery.show(rows)
        return rows.sort_values("score", ascending=False)

    def _drawn(self) -> Any:
        figure, left, right = halves((14, 5.2), (1, 1.35))
        assert self.viewer is not None
        paste(left, self.viewer.snapshot())
        self.gallery.draw(right)
        return figure

    def _built(self) -> Any:
        import ipywidgets

        names = sorted(self.table["slide_id"].astype(str).unique())
        slide = ipywidgets.Dropdown(options=names, value=self.slide_id, description="Slide")
        outcome = ipywidgets.ToggleButtons(options=["this slide", *OUTCOMES], style={"button_width": "110px"})
        count = ipywidgets.Label(self._count())

        def show(_: Any) -> None:
            if outcome.value == "this slide":
                self.show_slide(slide.value)
            else:
                self.pick(outcome.value)
            count.value = self._count()

        def other(_: Any) -> None:
            outcome.value = "this slide"
            show(_)

        slide.observe(other, "value")
        outcome.observe(show, "value")
        assert self.viewer is not None
        self._pane = ipywidgets.VBox([self.viewer.widget()])
        return ipywidgets.VBox([ipywidgets.HBox([slide, outcome, count]), self.gallery.widget(), self._pane])

    def _count(self) -> str:
        spot = self.spots.get(str(self.slide_id))
        if spot is None:
            return "no hot spot"
        return f"hot spot: {spot['n']} found, {spot['per_mm2']:.0f} per mm²"
