"""Instances: truth and prediction of a field under a swipe, where they disagree, and a gallery of what went wrong.

The truth's outlines are painted into the slide on the left of the line, the prediction's into the one on its right; what
only one of them covers is a layer over both. Errors are rows of a table: missed, merged, split, poor outline, extra.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pathkit.geometry import Raster
from pathkit.objects import errors
from pathkit.slide import open_slide
from pathkit.view.gallery import Gallery, Rows
from pathkit.view.layers import Mask, Points, SecondSlide
from pathkit.view.picture import halves, paste
from pathkit.view.viewer import SlideViewer

__all__ = ["InstanceBoard"]

#: Colour-blind-safe, and none that vanishes in eosin.
KINDS = {
    "missed": "#000000",
    "merged": "#d55e00",
    "split": "#0072b2",
    "poor outline": "#e69f00",
    "extra": "#56b4e9",
}
TRUTH, FOUND = (0, 158, 115), (240, 228, 66)


class InstanceBoard(Rows):
    """Truth | prediction, their disagreement, and the errors as a gallery; a click on an error goes to its place.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    truth, found : (H, W) int
        Label maps.
    mpp : float
    height_px : int

    Attributes
    ----------
    table : DataFrame
        Of `objects.errors`, as patches.
    kind : str
        Of the errors shown; "all" to begin with.

    Raises
    ------
    ValueError
        If the sizes differ, or truth and prediction are the same and there is no error to browse.
    """

    def __init__(
        self,
        rgb: NDArray[np.uint8],
        truth: NDArray[Any],
        found: NDArray[Any],
        *,
        mpp: float,
        height_px: int = 420,
    ):
        if rgb.shape[:2] != np.shape(truth) or np.shape(truth) != np.shape(found):
            raise ValueError(
                f"InstanceBoard: picture and maps of one size, got {rgb.shape[:2]}, {np.shape(truth)} and {np.shape(found)}."
            )
        found_errors = errors(truth, found, mpp=mpp)
        if not len(found_errors):
            raise ValueError("InstanceBoard: every object has its partner: there is no error to browse.")
        side = int(2 * np.sqrt(found_errors["area_um2"].median()) / mpp) + 16
        super().__init__(
            found_errors.assign(
                slide_id="field",
                x_l0=(found_errors["x_um"] / mpp - side / 2).round().astype(int),
                y_l0=(found_errors["y_um"] / mpp - side / 2).round().astype(int),
                size_px=side,
                mpp=mpp,
            )
        )
        left, right = (
            open_slide(_outlined(rgb, m, colour), mpp=mpp) for m, colour in ((truth, TRUTH), (found, FOUND))
        )
        both = open_slide(_outlined(_outlined(rgb, truth, TRUTH), found, FOUND), mpp=mpp)
        differ = (np.asarray(truth) > 0) != (np.asarray(found) > 0)
        self.viewer = SlideViewer(
            left,
            layers=[
                SecondSlide(right, name="prediction"),
                Mask(Raster(differ, mpp), name="disagreement", colour="#d55e00", visible=False),
                Points(self.table, by="kind", colours=KINDS, name="errors", size_px=11),
            ],
            height_px=height_px,
        )
        self.viewer.compare("swipe")
        self.gallery = Gallery(self.table, {"field": both}, caption="kind", n_cols=6, n_rows=3)
        self._kind = "all"
        self.gallery.on_select(self._clicked)
        self.viewer.on_select(lambda rows: self.select(rows.index))

    @property
    def kind(self) -> str:
        """Kind of the errors in the gallery, or "all"."""
        return self._kind

    @kind.setter
    def kind(self, value: str) -> None:
        counts = self.counts
        if value != "all" and value not in counts:
            raise ValueError(
                f"InstanceBoard: no error of kind {value!r}; there are {', '.join(counts)} and all."
            )
        self._kind = value
        self.gallery.show(self.table if value == "all" else self.table[self.table["kind"] == value])

    @property
    def counts(self) -> dict[str, int]:
        """How many errors there are of each kind."""
        n = self.table["kind"].value_counts()
        return {str(k): int(n[k]) for k in KINDS if k in n}

    def go_to(self, row: pd.Series) -> None:
        """Show the place of an error."""
        self.viewer.go_to(row, mpp=float(row["mpp"]) / 2)

    def _clicked(self, rows: pd.DataFrame) -> None:
        if len(rows):
            self.go_to(rows.iloc[0])
            self.select(rows)

    def _selected(self) -> None:
        self.gallery.select(self.selection)
        self.viewer.select(self._chosen, layer="errors")

    def _line(self) -> str:
        return ", ".join(f"{n} {k}" for k, n in self.counts.items())

    def _drawn(self) -> Any:
        figure, left, right = halves((15, 6.2), (1, 1.1))
        paste(left, self.viewer.snapshot())
        left.axes[0].set_title("Left of the line: truth (green); right: prediction (yellow)", fontsize=10)
        above, below = right.subfigures(2, 1, height_ratios=(0.06, 1))
        above.suptitle(self._line(), fontsize=10)
        self.gallery.draw(below)
        return figure

    def _built(self) -> Any:
        import ipywidgets

        choices = [("all", "all"), *((f"{k} ({n})", k) for k, n in self.counts.items())]
        chosen = ipywidgets.Dropdown(options=choices, value=self._kind, description="Errors")
        mode = ipywidgets.Dropdown(options=["swipe", "blink", "fade"], description="Compare")
        chosen.observe(lambda change: setattr(self, "kind", change["new"]), "value")
        mode.observe(lambda change: self.viewer.compare(change["new"]), "value")
        note = ipywidgets.Label("truth green, prediction yellow")
        return ipywidgets.VBox(
            [ipywidgets.HBox([chosen, mode, note]), self.viewer.widget(), self.gallery.widget()]
        )


def _outlined(
    rgb: NDArray[np.uint8], labels: NDArray[Any], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """A copy of the picture with the objects' last pixels in a colour."""
    from skimage.segmentation import find_boundaries

    out = np.array(rgb[..., :3])
    out[find_boundaries(np.asarray(labels), mode="inner")] = colour
    return out
