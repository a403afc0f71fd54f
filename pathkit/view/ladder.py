"""Magnification ladder: the grid on the slide; a click shows that place at several resolutions, and its row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pathkit.patches import concentric
from pathkit.slide import Slide, SlideError
from pathkit.view.gallery import Rows
from pathkit.view.layers import PALETTE, Patches
from pathkit.view.picture import halves, paste, png
from pathkit.view.viewer import SlideViewer

__all__ = ["PatchLadder"]


class PatchLadder(Rows):
    """A patch table on its slide; the selected patch at several mpps, the same pixels a side, the same centre.

    Parameters
    ----------
    slide : Slide
    patches : DataFrame
        Of this slide: x_l0, y_l0, size_px, mpp.
    mpps : sequence of float
        The rungs, none finer than the slide's.
    by : str, optional
        Column that colours the grid.

    Attributes
    ----------
    selection : DataFrame
        The selected row, of the table.

    Raises
    ------
    ValueError
        If there is no patch, or a rung is finer than the slide.
    """

    def __init__(self, slide: Slide, patches: pd.DataFrame, mpps: Sequence[float], *, by: str | None = None):
        super().__init__(patches)
        if min(mpps) < slide.mpp * 0.995:
            raise SlideError(
                f"PatchLadder: a rung of {min(mpps):g} µm/px is finer than the slide's {slide.mpp:.4g}; leave it out."
            )
        self.slide, self.mpps = slide, tuple(sorted(mpps))
        self.viewer = SlideViewer(slide, layers=[Patches(patches, name="grid", by=by)], height_px=400)
        self.viewer.on_select(lambda rows: self.select(rows.iloc[:1]))
        self._parts: tuple[Any, Any] | None = None
        self.select(patches.index[[len(patches) // 2]])

    def rungs(self) -> NDArray[np.uint8]:
        """(rungs, size_px, size_px, 3): the selected place, finest first."""
        table = concentric(self.selection, self.mpps, slide_mpp=self.slide.mpp)
        return np.concatenate([self.slide.read_patches(table.iloc[[i]]) for i in range(len(table))])

    def _selected(self) -> None:
        if not len(self._chosen):
            return
        self.viewer.select(self._chosen)
        if self._parts is not None:
            self._parts[0].value, self._parts[1].value = self._picture(), self._row()

    def _row(self) -> str:
        return self.selection.T.to_html(border=0, header=False)

    def _draw_rungs(self, figure: Any) -> None:
        from matplotlib.patches import Rectangle

        size = int(self.selection["size_px"].iloc[0])
        axes = np.atleast_1d(figure.subplots(1, len(self.mpps)))
        for i, (axis, mpp, pixels) in enumerate(zip(axes, self.mpps, self.rungs(), strict=True)):
            axis.imshow(pixels)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{mpp:.2g} µm/px: {size * mpp:.0f} µm", fontsize=10)
            axis.spines[:].set(color=PALETTE[i], linewidth=3)
            for j, finer in enumerate(self.mpps[:i]):
                side = size * finer / mpp
                corner = (size - side) / 2 - 0.5
                axis.add_patch(Rectangle((corner, corner), side, side, fill=False, ec=PALETTE[j], lw=2))

    def _picture(self) -> bytes:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3 * len(self.mpps), 3.2), layout="constrained")
        self._draw_rungs(figure)
        return png(figure)

    def _drawn(self) -> Any:
        figure, left, right = halves((11.6, 4.5), (1, 1.55))
        paste(left, self.viewer.snapshot())
        above, below = right.subfigures(2, 1, height_ratios=(2.6, 1))
        self._draw_rungs(above)
        shown = self.selection.round(3).astype(str)
        axes = below.subplots()
        axes.axis("off")
        table = axes.table(
            shown.to_numpy(), colLabels=list(shown), loc="center", edges="horizontal", cellLoc="center"
        )
        table.auto_set_font_size(False)
        table.set_fontsize(9)
        table.auto_set_column_width(list(range(shown.shape[1])))
        table.scale(1, 1.5)
        return figure

    def _built(self) -> Any:
        import ipywidgets

        picture, row = ipywidgets.Image(value=self._picture(), format="png"), ipywidgets.HTML(self._row())
        self._parts = (picture, row)
        return ipywidgets.VBox([self.viewer.widget(), ipywidgets.HBox([picture, row])])
