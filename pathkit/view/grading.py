"""Grading board: the patterns on a core, the composition of all cores, and kappa that follows the cut-offs.

Two cut-offs lie between a composition and a grade: how much of a core must be tumour, and how much of the tumour a secondary
pattern must take. Both have a slider; grades, the bars' numbers and the agreement with every reader are computed anew at
each move, which takes milliseconds, since nothing is predicted again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pathkit.geometry import Raster
from pathkit.grading import GRADES, PATTERNS, grade
from pathkit.metrics import pairwise_kappa
from pathkit.patches import SlideSource
from pathkit.view.gallery import Rows, need
from pathkit.view.layers import Heatmap, Layer
from pathkit.view.pane import pane
from pathkit.view.picture import paste
from pathkit.view.viewer import SlideViewer

__all__ = ["GradingBoard", "PatternMap"]

#: Benign pale; the patterns from yellow to dark, so that they keep their order in grey too.
COLOURS = ("#9ecae1", "#f0e442", "#e07b00", "#7a0177")
#: Greatest value of each slider.
SLIDERS = {"least_tumour": 0.5, "least_secondary": 0.5}


class PatternMap(Heatmap):
    """The number of a pattern at each place, in the pattern's colour; arguments as of `Heatmap`."""

    def __init__(self, values: Raster, **options: Any):
        super().__init__(
            values, low=-0.5, high=len(PATTERNS) - 0.5, **{"name": "pattern", "opacity": 0.45, **options}
        )

    def _palette(self) -> list[str]:
        return [COLOURS[int((i + 0.5) * len(PATTERNS) / 255)] for i in range(255)]

    def legend(self) -> list[tuple[str, str]]:
        return list(zip(PATTERNS, COLOURS, strict=True))

    key_html = Layer.key_html

    def controls(self) -> list[Any]:
        return []


class GradingBoard(Rows):
    """Grade map, composition bars and agreement, linked by a core and two cut-offs.

    Parameters
    ----------
    cores : DataFrame
        slide_id, patient_id, the shares of `grading.PATTERNS`, and a column of ISUP grades for each of `readers`.
    maps : mapping
        slide_id to the Raster of `grading.pattern_map`.
    slides : DataFrame or mapping
        As `patches.PatchDataset`.
    readers : sequence of str
        Columns to agree with; the last is the reference by which the bars are sorted.
    least_tumour, least_secondary : float
        Cut-offs to begin with (see `grading.gleason_score`).

    Attributes
    ----------
    selection : DataFrame
        The row of the core that is shown, graded.

    Raises
    ------
    ValueError
        If a column or a map is missing, there is no reader, or fewer than two patients.

    Examples
    --------
    >>> board.set(least_tumour=0.05)  # doctest: +SKIP
    >>> board.kappa["consensus"]  # doctest: +SKIP
    Interval(value=0.94, ...)
    """

    def __init__(
        self,
        cores: pd.DataFrame,
        maps: Mapping[str, Raster],
        slides: Any,
        *,
        readers: Sequence[str],
        least_tumour: float = 0.05,
        least_secondary: float = 0.1,
    ):
        if not readers:
            raise ValueError("GradingBoard: no reader to agree with. Name their columns: readers=[...].")
        need(cores, "GradingBoard", "slide_id", "patient_id", *PATTERNS, *readers)
        absent = [i for i in cores["slide_id"] if i not in maps]
        if absent:
            raise ValueError(f"GradingBoard: no map for core {absent[0]!r}.")
        ranked = cores.assign(_tumour=1 - cores["benign"]).sort_values(
            [readers[-1], "_tumour"], kind="stable"
        )
        super().__init__(ranked.drop(columns="_tumour"))
        self.maps, self.slides, self.readers = maps, SlideSource(slides), list(readers)
        self.slides.check(cores["slide_id"])
        self.cut_offs = {"least_tumour": float(least_tumour), "least_secondary": float(least_secondary)}
        self._shown_id = ""
        self._grade()
        self.select(self.table.index[[-1]])

    # What is shown ---------------------------------------------------------------------------------------------

    def set(self, **cut_offs: float) -> dict[str, Any]:
        """Move cut-offs, as their sliders do; gives `kappa`.

        Raises
        ------
        ValueError
            If there is no such cut-off, or it is no share.
        """
        unknown = set(cut_offs) - set(self.cut_offs)
        if unknown:
            raise ValueError(
                f"GradingBoard: no cut-off {sorted(unknown)[0]!r}; there are {', '.join(self.cut_offs)}."
            )
        self.cut_offs.update({k: float(v) for k, v in cut_offs.items()})
        self._grade()
        self._refresh()
        return self.kappa

    def _grade(self) -> None:
        self.graded = grade(self.table, **self.cut_offs)
        found = pairwise_kappa(
            self.graded, ["isup"], against=self.readers, labels=GRADES, weights="quadratic", n=400
        )
        self.kappa = dict(zip(self.readers, found["kappa"], strict=False))

    @property
    def selection(self) -> pd.DataFrame:
        """The row of the core that is shown, with its gleason and isup at the present cut-offs."""
        return self.graded.loc[self._chosen]

    @property
    def slide_id(self) -> str:
        """The core that is shown; can be set."""
        return str(self.selection["slide_id"].iloc[0])

    @slide_id.setter
    def slide_id(self, value: str) -> None:
        if value not in set(self.table["slide_id"]):
            raise ValueError(f"GradingBoard: no core {value!r}.")
        self.select((self.table["slide_id"] == value).to_numpy())

    def select(self, rows: Any) -> None:
        super().select(rows)
        if len(self._chosen) > 1:  # one core is shown
            super().select(self._chosen[:1])

    @property
    def line(self) -> str:
        """The core and its grades in words."""
        row = self.selection.iloc[0]
        said = ", ".join(f"{r} {row[r]}" for r in self.readers)
        return f"{row['slide_id']}: {row['gleason']}, grade {row['isup']} (readers: {said})"

    def _agreement(self) -> str:
        return "; ".join(f"{name} {value}" for name, value in self.kappa.items())

    def _view(self) -> SlideViewer:
        name = self.slide_id
        if self.viewer is None or self._shown_id != name:
            self._open(SlideViewer(self.slides[name], layers=[PatternMap(self.maps[name])], height_px=300))
            self._shown_id = name
        return self.viewer

    # Pictures --------------------------------------------------------------------------------------------------

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 7.6), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        above, below = parts
        axes = above.subplots()
        paste(axes, self._view().snapshot(width_px=1200))
        axes.set_title(self.line, fontsize=11)
        axes, left = below.subplots(), np.zeros(len(self.table))
        for pattern, colour in zip(PATTERNS, COLOURS, strict=True):
            axes.bar(
                range(len(left)), self.table[pattern], bottom=left, color=colour, label=pattern, width=0.9
            )
            left += self.table[pattern].to_numpy(float)
        shown = int(np.flatnonzero(self.table.index == self._chosen[0])[0])
        axes.bar([shown], [1.0], fill=False, edgecolor="black", linewidth=2, width=0.96)
        for at, (ours, theirs) in enumerate(
            zip(self.graded["isup"], self.graded[self.readers[-1]], strict=True)
        ):
            axes.text(at, 1.02, ours, ha="center", fontsize=8, color="black" if ours == theirs else "#d55e00")
        axes.set_xticks(range(len(left)), self.graded[self.readers[-1]], fontsize=8)
        axes.set(ylim=(0, 1.09), xlim=(-0.6, len(left) - 0.4), ylabel="share of the core's patches")
        axes.set_xlabel(
            f"cores, by their grade from the {self.readers[-1]}; above each bar the model's grade (orange: another)"
        )
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        cuts = ", ".join(f"{k.replace('_', ' ')} {v:.0%}" for k, v in self.cut_offs.items())
        axes.set_title(f"At {cuts}: quadratic kappa with\n{self._agreement()}", fontsize=8, loc="left")
        return figure

    # Live ------------------------------------------------------------------------------------------------------

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.models import ColumnDataSource, FixedTicker, Range1d
        from bokeh.plotting import figure

        n = len(self.table)
        at = np.arange(n)
        edges = np.hstack([np.zeros((n, 1)), self.table[list(PATTERNS)].to_numpy(float).cumsum(1)])
        self._bars = ColumnDataSource({"x": at, **{f"e{k}": edges[:, k] for k in range(len(PATTERNS) + 1)}})
        # Filled before the pane, which shows the figure as it is when it is made.
        self._numbers, self._frame = ColumnDataSource(self._above()), ColumnDataSource({"x": self._place()})
        plot: Any = figure(
            width=900, height=240, tools="tap", toolbar_location=None, y_axis_label="share of patches",
            x_range=Range1d(start=-0.7, end=n - 0.3), y_range=Range1d(start=0, end=1.12),
            x_axis_label=f"cores, by their grade from the {self.readers[-1]}; above each bar the model's grade",
        )  # fmt: skip
        for k, (pattern, colour) in enumerate(zip(PATTERNS, COLOURS, strict=True)):
            plot.vbar(
                x="x", bottom=f"e{k}", top=f"e{k + 1}", width=0.9, color=colour, legend_label=pattern, source=self._bars,
                nonselection_alpha=1.0,
            )  # fmt: skip
        plot.rect(
            x="x",
            y=0.5,
            width=0.96,
            height=1,
            fill_alpha=0,
            line_color="black",
            line_width=3,
            source=self._frame,
        )
        plot.text(
            "x",
            1.01,
            "text",
            text_color="colour",
            source=self._numbers,
            text_align="center",
            text_font_size="11px",
        )
        plot.xaxis.ticker = FixedTicker(ticks=at.tolist())
        plot.xaxis.major_label_overrides = {
            int(i): str(g) for i, g in zip(at, self.table[self.readers[-1]], strict=True)
        }
        plot.grid.visible = False
        plot.add_layout(plot.legend[0], "right")
        self._bars.selected.on_change("indices", self._tapped)
        self._said, self._line = ipywidgets.HTML(), ipywidgets.Label()
        self._cores = ipywidgets.Dropdown(options=self.table["slide_id"].tolist(), description="Core")
        self._cores.observe(lambda change: setattr(self, "slide_id", change["new"]), "value")
        sliders = []
        for name, most in SLIDERS.items():
            slider = ipywidgets.FloatSlider(
                self.cut_offs[name], min=0, max=most, step=0.01, description=name.replace("_", " "),
                style={"description_width": "110px"},
            )  # fmt: skip
            slider.observe(lambda change, name=name: self.set(**{name: change["new"]}), "value")
            sliders.append(slider)
        self._pane = ipywidgets.VBox()
        self._widget = ipywidgets.VBox(
            [
                ipywidgets.HBox(sliders),
                self._said,
                pane(plot),
                ipywidgets.HBox([self._cores, self._line]),
                self._pane,
            ]
        )
        self._refresh()
        self._selected()
        return self._widget

    def _above(self) -> dict[str, list[Any]]:
        """The model's grade above each bar, in another colour where it is not the reference's."""
        ours, theirs = (self.graded[c].tolist() for c in ("isup", self.readers[-1]))
        colours = ["black" if a == b else "#d55e00" for a, b in zip(ours, theirs, strict=True)]
        return {"x": list(range(len(ours))), "text": [str(v) for v in ours], "colour": colours}

    def _place(self) -> list[int]:
        return np.flatnonzero(self.table.index == self._chosen[0]).tolist()

    def _tapped(self, attr: str, old: list[int], new: list[int]) -> None:
        if new:
            self.select(self.table.index[[new[0]]])

    def _refresh(self) -> None:
        if self._widget is None:
            return
        self._numbers.data = self._above()  # type: ignore[assignment]
        self._said.value = f"<b>Quadratic kappa</b> with {self._agreement()}"
        self._line.value = self.line

    def _selected(self) -> None:
        if self._widget is None:
            return
        self._frame.data = {"x": self._place()}  # type: ignore[assignment]
        self._cores.value = self.slide_id
        self._line.value = self.line
        self._pane.children = [self._view().widget()]
