"""Split board: who learns and who is tested, a mark a slide; move one and see leaks and AUC follow.

Patients stand side by side, grouped by site. A line joins the slides of a patient; it is orange where it crosses from one
part to the other, which is a leak. The model is fitted again after every move, by a callable that the caller gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pathkit.metrics import auc
from pathkit.splits import leak_report
from pathkit.view.gallery import Rows, need
from pathkit.view.pane import pane

__all__ = ["SplitBoard"]

_LEAK, _CLEAN = "#d55e00", "#999999"
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")


class SplitBoard(Rows):
    """Slides in their parts, with what leaks between them and what the test says.

    Parameters
    ----------
    slides : DataFrame
        slide_id, patient_id, site, the column `label`, and split, one row a slide, with a unique index.
    score : callable
        Takes the rows to learn from and the rows to test, gives a score for each of the latter.
    label, positive : str
        Column, and its positive class.
    parts : (str, str)
        Training and test.

    Attributes
    ----------
    slides : DataFrame
        With the present split.
    leaks : DataFrame
        Of `splits.leak_report`.
    auc : float
        Of the test slides; NaN where one class is missing.
    history : DataFrame
        One row a state: moved, leaking (patients), auc, auc_leaking and auc_clean (test slides of patients who are, and who
        are not, in training too).

    Raises
    ------
    ValueError
        If a column is missing, a slide is in neither part, or one part is empty.
    """

    def __init__(
        self,
        slides: pd.DataFrame,
        score: Callable[[pd.DataFrame, pd.DataFrame], ArrayLike],
        *,
        label: str = "label",
        positive: str = "positive",
        parts: Sequence[str] = ("train", "test"),
    ):
        need(slides, "SplitBoard", "slide_id", "patient_id", "site", label, "split")
        wrong = slides[~slides["split"].isin(parts)]
        if len(wrong):
            raise ValueError(
                f"SplitBoard: {wrong['slide_id'].iloc[0]!r} is in {wrong['split'].iloc[0]!r}, not in {' or '.join(parts)}."
            )
        ordered = slides.sort_values(["site", "patient_id", "slide_id"], kind="stable")
        super().__init__(ordered)
        self.slides, self.score, self.label, self.positive = ordered.copy(), score, label, positive
        self.parts = tuple(parts)
        self.history = pd.DataFrame()
        self._test("start")

    @property
    def selection(self) -> pd.DataFrame:
        """The selected slides, with their present split."""
        return self.slides.loc[self._chosen]

    def move(self, names: str | Sequence[str], to: str) -> pd.DataFrame:
        """Move slides, or all slides of patients; gives `leaks`.

        Parameters
        ----------
        names : str or sequence of str
            slide_id or patient_id.
        to : str
            One of the parts.

        Raises
        ------
        ValueError
            If there is no such slide or patient, no such part, or a part would be left empty.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        if to not in self.parts:
            raise ValueError(f"SplitBoard: no part {to!r}; there are {' and '.join(self.parts)}.")
        for name in wanted:
            if not (self.slides[["slide_id", "patient_id"]] == name).any(axis=None):
                raise ValueError(f"SplitBoard: no slide or patient {name!r}.")
        rows = self.slides[["slide_id", "patient_id"]].isin(wanted).any(axis=1)
        split = self.slides["split"].mask(rows, to)
        if split.nunique() < 2:
            raise ValueError(f"SplitBoard: with {', '.join(wanted)} in {to} the other part would be empty.")
        self.slides["split"] = split
        self._test(f"{', '.join(wanted)} to {to}")
        self._refresh()
        return self.leaks

    @property
    def leaking(self) -> list[str]:
        """Patients with slides in both parts."""
        several = self.slides.groupby("patient_id")["split"].nunique()
        return [str(p) for p in several.index[several > 1]]

    @property
    def line(self) -> str:
        """The state in words."""
        now = self.history.iloc[-1]
        parts = [f"AUC of the test slides {self.auc:.2f}"]
        for name in ("leaking", "clean"):
            value = now[f"auc_{name}"]
            if np.isfinite(value):
                parts.append(
                    f"{value:.2f} for those of {'patients also in training' if name == 'leaking' else 'new patients'}"
                )
        n, share = len(self.leaking), self.leaks.loc["patient_id", "leaked"]
        patients = f"{n} patient{'' if n == 1 else 's'} on both sides, {share:.0%} of the test slides"
        return f"{patients}. {'; '.join(parts)}."

    def _test(self, moved: str) -> None:
        train, test = (self.slides[self.slides["split"] == part] for part in self.parts)
        self.leaks = leak_report(self.slides, train=self.parts[0], test=self.parts[1])
        scored = test.assign(score=np.asarray(self.score(train, test), float))
        known = scored["patient_id"].isin(train["patient_id"])
        self.auc = self._auc(scored)
        state = {
            "moved": moved,
            "leaking": len(self.leaking),
            "auc": self.auc,
            "auc_leaking": self._auc(scored[known]),
            "auc_clean": self._auc(scored[~known]),
        }
        self.history = pd.concat([self.history, pd.DataFrame([state])], ignore_index=True)

    def _auc(self, rows: pd.DataFrame) -> float:
        positive = rows[self.label] == self.positive
        return auc(positive, rows["score"]) if 0 < positive.sum() < len(rows) else float("nan")

    # Shown -----------------------------------------------------------------------------------------------------

    def _marks(self) -> dict[str, list[Any]]:
        """A mark a slide: patients from left to right, a gap between sites; slides of a patient beside each other."""
        slides = self.slides
        patients = slides.drop_duplicates("patient_id")
        gap = (patients["site"] != patients["site"].shift()).cumsum() - 1
        place = dict(zip(patients["patient_id"], np.arange(len(patients)) + 2.0 * gap, strict=True))
        number = slides.groupby("patient_id").cumcount().to_numpy()
        x = slides["patient_id"].map(place).to_numpy(float) + 0.3 * (number - 0.5)
        classes = sorted(slides[self.label].astype(str).unique())
        palette = dict(zip(classes, _COLOURS * len(classes), strict=False))
        return {
            "x": x.tolist(),
            "y": [float(self.parts[::-1].index(s)) for s in slides["split"]],
            "colour": [palette[str(v)] for v in slides[self.label]],
            "label": slides[self.label].astype(str).tolist(),
            "slide": slides["slide_id"].astype(str).tolist(),
            "patient": slides["patient_id"].astype(str).tolist(),
            "site": slides["site"].astype(str).tolist(),
        }

    def _lines(self) -> dict[str, list[Any]]:
        marks = pd.DataFrame(self._marks())
        groups = [rows for _, rows in marks.groupby("patient", sort=False)]
        colours = [_LEAK if rows["y"].nunique() > 1 else _CLEAN for rows in groups]
        return {
            "xs": [r["x"].tolist() for r in groups],
            "ys": [r["y"].tolist() for r in groups],
            "colour": colours,
        }

    def _bars(self) -> dict[str, list[Any]]:
        now = self.history.iloc[-1]
        values = [now["auc_leaking"], now["auc"], now["auc_clean"]]
        return {
            "name": ["patients also in training", "all test slides", "new patients"],
            "auc": [v if np.isfinite(v) else 0.0 for v in values],
            "text": [f"{v:.2f}" if np.isfinite(v) else "none" for v in values],
            "colour": [_LEAK, "#555555", "#0072b2"],
            "ink": ["white" if np.isfinite(v) and v > 0.15 else "black" for v in values],
        }

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(14, 4.4), layout="constrained")
        board, bars, trail = figure.subplots(1, 3, width_ratios=(3, 1, 1))
        marks, lines = pd.DataFrame(self._marks()), self._lines()
        for xs, ys, colour in zip(lines["xs"], lines["ys"], lines["colour"], strict=True):
            board.plot(xs, ys, color=colour, linewidth=2, zorder=1)
        for name, rows in marks.groupby("label"):
            board.scatter(
                rows["x"], rows["y"], c=rows["colour"], s=30, label=name, edgecolors="white", zorder=2
            )
        for site, rows in marks.groupby("site"):
            board.text(rows["x"].mean(), 1.22, site, ha="center")
        board.plot([], [], color=_LEAK, linewidth=2, label="patient on both sides")
        board.set_yticks([1, 0], self.parts)
        board.set(ylim=(-0.35, 1.4), xticks=[], xlabel="patients, a mark a slide")
        board.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False, fontsize=9)
        shown = self._bars()
        at = np.arange(3)[::-1]
        bars.barh(at, shown["auc"], color=shown["colour"], height=0.5)
        for y, name, value, text in zip(at, shown["name"], shown["auc"], shown["text"], strict=True):
            bars.text(0.02, y + 0.32, name, fontsize=9)
            bars.text(value - 0.02 if value > 0.15 else 0.03, y, text, va="center", ha="right" if value > 0.15 else "left",
                      color="white" if value > 0.15 else "black")  # fmt: skip
        bars.axvline(0.5, color="black", linestyle=":", linewidth=1)
        bars.set(xlim=(0, 1), yticks=[], xlabel="AUC (dotted: by chance)", ylim=(-0.4, 2.6))
        trail.plot(
            self.history["leaking"], self.history["auc"], "o-", color="#555555", markersize=4, linewidth=1
        )
        trail.plot(
            self.history["leaking"].iloc[-1:], self.history["auc"].iloc[-1:], "o", color=_LEAK, markersize=9
        )
        trail.axhline(0.5, color="black", linestyle=":", linewidth=1)
        trail.set(
            xlim=(-1, self.history["leaking"].max() + 1),
            ylim=(0, 1.03),
            xlabel="patients on both sides",
            ylabel="AUC of the test slides",
        )
        figure.suptitle(self.line, fontsize=10)
        return figure

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.layouts import row
        from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Range1d, VSpan
        from bokeh.plotting import figure

        self._mark_source = ColumnDataSource(self._marks())
        self._line_source = ColumnDataSource(self._lines())
        self._bar_source = ColumnDataSource(self._bars())
        self._trail_source = ColumnDataSource({"x": [], "y": []})
        board: Any = figure(
            width=640, height=300, tools="tap,box_select", toolbar_location=None,
            y_range=Range1d(start=-0.4, end=1.45), x_axis_label="patients, a mark a slide",
        )  # fmt: skip
        board.multi_line(
            "xs",
            "ys",
            line_color="colour",
            line_width=2.5,
            nonselection_line_alpha=1,
            source=self._line_source,
        )
        marks = board.scatter(
            "x", "y", size=11, fill_color="colour", line_color="white", source=self._mark_source,
            selection_line_color="black", selection_line_width=3, nonselection_fill_alpha=1, legend_group="label",
        )  # fmt: skip
        board.add_tools(HoverTool(renderers=[marks], tooltips=[("slide", "@slide"), ("", "@label, @site")]))
        board.legend.orientation = "horizontal"
        board.add_layout(board.legend[0], "below")
        board.yaxis.ticker = [0, 1]
        board.yaxis.major_label_overrides = {1: self.parts[0], 0: self.parts[1]}
        board.xaxis.ticker, board.grid.visible = [], False
        sites = pd.DataFrame(self._marks()).groupby("site")["x"].mean()
        board.text(sites.to_list(), [1.18] * len(sites), [str(s) for s in sites.index], text_align="center")
        names = self._bars()["name"][::-1]
        bars: Any = figure(
            width=300, height=270, y_range=FactorRange(factors=names), x_range=Range1d(start=0, end=1), tools="",
            toolbar_location=None,
            x_axis_label="AUC (dotted: by chance)",
        )  # fmt: skip
        bars.hbar("name", right="auc", height=0.5, color="colour", source=self._bar_source)
        bars.text(0.03, "name", "text", source=self._bar_source, text_baseline="middle", text_color="ink")
        bars.add_glyph(ColumnDataSource({"x": [0.5]}), VSpan(x="x", line_dash="dotted"))
        trail: Any = figure(
            width=230, height=270, y_range=Range1d(start=0, end=1.03), tools="", toolbar_location=None,
            x_axis_label="patients on both sides", y_axis_label="AUC of the test slides",
        )  # fmt: skip
        trail.line("x", "y", source=self._trail_source, color="#555555")
        trail.scatter("x", "y", source=self._trail_source, color="#555555", size=6)
        self._mark_source.selected.on_change("indices", self._tapped)
        self._line = ipywidgets.HTML()
        self._whole = ipywidgets.Checkbox(
            True, description="whole patient", indent=False, layout={"width": "130px"}
        )
        self._patient = ipywidgets.Dropdown(
            options=list(dict.fromkeys(self.slides["patient_id"].astype(str))), description="Patient"
        )
        self._patient.observe(lambda c: self.select(self._of_patient(c["new"])), "value")
        buttons = []
        for part in self.parts:
            button = ipywidgets.Button(description=f"Move to {part}")
            button.on_click(lambda _, part=part: self._pressed(part))
            buttons.append(button)
        self._widget = ipywidgets.VBox()
        self._refresh()
        self._widget.children = [
            ipywidgets.HBox([self._patient, self._whole, *buttons]),
            pane(row(board, bars, trail)),
            self._line,
        ]
        return self._widget

    def _of_patient(self, patient: str) -> Any:
        return self.slides.index[self.slides["patient_id"].astype(str) == patient]

    def _tapped(self, attr: str, old: list[int], new: list[int]) -> None:
        self.select(self.slides.index[sorted(new)])

    def _pressed(self, part: str) -> None:
        chosen = (
            self.selection if len(self._chosen) else self.slides.loc[self._of_patient(self._patient.value)]
        )
        names = chosen["patient_id" if self._whole.value else "slide_id"].astype(str).unique().tolist()
        try:
            self.move(names, part)
        except ValueError as error:
            self._line.value = f'<span style="color:#b00">{error}</span>'

    def _selected(self) -> None:
        if self._widget is not None:
            at = np.flatnonzero(self.slides.index.isin(self._chosen)).tolist()
            if sorted(self._mark_source.selected.indices) != at:
                self._mark_source.selected.indices = at

    def _refresh(self) -> None:
        if self._widget is None:
            return
        self._mark_source.data, self._line_source.data = self._marks(), self._lines()  # type: ignore[assignment]
        self._bar_source.data = self._bars()  # type: ignore[assignment]
        self._trail_source.data = {"x": self.history["leaking"].tolist(), "y": self.history["auc"].tolist()}
        self._line.value = self.line
