"""Gallery: patches of a table as pictures, sorted, a page at a time; and what the views of tables have in common."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pathkit.patches import SlideSource
from pathkit.view.pane import free, is_static, load_bokeh, pane

__all__ = ["Gallery", "Rows", "Shown", "need"]


def need(table: pd.DataFrame, who: str, *columns: str | None) -> None:
    """Raise ValueError where a table lacks one of the columns; None among them is passed over."""
    missing = [c for c in columns if c is not None and c not in table]
    if missing:
        raise ValueError(f"{who}: no column {missing[0]!r}; the table has {', '.join(map(str, table))}.")


class Shown:
    """What can be shown in a notebook: a widget where there is a browser, a picture where there is none."""

    _widget: Any = None
    viewer: Any = None  # the slide that is shown, where there is one
    _pane: Any = None  # the widget that holds it, where slides take turns

    def _open(self, viewer: Any) -> None:
        """Show a viewer instead of the present one."""
        Shown.close(self)
        self.viewer = viewer
        if self._pane is not None:
            self._pane.children = [viewer.widget()]

    def close(self) -> None:
        """Close the slide that is shown."""
        if self.viewer is not None:
            self.viewer.close()
            self.viewer = None

    def snapshot(self) -> bytes:
        """The view as a PNG, drawn without a browser."""
        from pathkit.view.picture import png

        return png(self._drawn())

    def _drawn(self) -> Any:
        raise NotImplementedError

    def _built(self) -> Any:
        raise NotImplementedError

    def widget(self) -> Any:
        """The view as an ipywidget; one, however often it is asked for."""
        if self._widget is None:
            load_bokeh()
            self._widget = self._built()
            free(self._widget)
        return self._widget

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        from pathkit.view.picture import small

        display(Image(small(self.snapshot())) if is_static() else self.widget())


class Rows(Shown):
    """A view whose rows can be selected. `select` and `on_select` are what `link` needs.

    Parameters
    ----------
    table : DataFrame
        With a unique index.

    Raises
    ------
    ValueError
        If the table is empty, or its index not unique.
    """

    def __init__(self, table: pd.DataFrame):
        who = type(self).__name__
        if not len(table):
            raise ValueError(f"{who}: the table has no rows: nothing to show.")
        if not table.index.is_unique:
            raise ValueError(f"{who}: the table's index is not unique. Give table.reset_index(drop=True).")
        self.table = table
        self._chosen = table.index[:0]
        self._callbacks: list[Callable[[pd.DataFrame], Any]] = []

    @property
    def selection(self) -> pd.DataFrame:
        """The selected rows."""
        return self.table.loc[self._chosen]

    def on_select(self, callback: Callable[[pd.DataFrame], Any]) -> None:
        """Call `callback` with `selection` whenever it changes."""
        self._callbacks.append(callback)

    def select(self, rows: Any) -> None:
        """Select rows: a DataFrame with index labels of the table, a bool mask, or index labels. Others are left out."""
        if isinstance(rows, pd.DataFrame):
            rows = rows.index
        values = np.asarray(rows)
        if values.dtype == bool:
            if len(values) != len(self.table):
                raise ValueError(f"select: a mask of {len(values)} for a table of {len(self.table)} rows.")
            wanted = self.table.index[values]
        else:
            wanted = self.table.index[self.table.index.isin(values)]
        if not wanted.equals(self._chosen):
            self._chosen = wanted
            self._selected()
            for callback in self._callbacks:
                callback(self.selection)

    def _selected(self) -> None:
        """Show what is selected."""


class Gallery(Rows):
    """Patches as pictures; only the page that is seen is read.

    Parameters
    ----------
    table : DataFrame
        Patches: slide_id, x_l0, y_l0, size_px, mpp.
    slides : DataFrame or mapping
        As `patches.PatchDataset`.
    by : str, optional
        Column to sort by, the greatest first.
    ascending : bool
        The least first.
    caption : callable or str, optional
        A row's caption, or the column that it is.
    n_cols, n_rows : int
        Of a page.

    Attributes
    ----------
    page : int
        From 0.
    rows : DataFrame
        What is in the gallery: the table, or what `show` was given.

    Raises
    ------
    ValueError
        If a column is missing, or a slide.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        slides: Any,
        *,
        by: str | None = None,
        ascending: bool = False,
        caption: Callable[[pd.Series], str] | str | None = None,
        n_cols: int = 6,
        n_rows: int = 3,
    ):
        super().__init__(table)
        named = caption if isinstance(caption, str) else None
        need(table, "Gallery", "slide_id", "x_l0", "y_l0", "size_px", "mpp", by, named)
        self.slides = slides if isinstance(slides, SlideSource) else SlideSource(slides)
        self.slides.check(table["slide_id"].unique())
        self.by, self.ascending, self.n_cols, self.n_rows = by, ascending, n_cols, n_rows
        self.caption = (lambda row: f"{row[caption]}") if isinstance(caption, str) else caption or self._usual
        self.rows = self._sorted(table)
        self.page = 0

    def show(self, rows: pd.DataFrame) -> None:
        """Show only some rows of the table, sorted, from the first page."""
        self.rows, self.page = self._sorted(rows), 0
        self._refresh()

    def turn(self, page: int) -> None:
        """Go to a page."""
        last = max(0, (len(self.rows) - 1) // (self.n_cols * self.n_rows))
        self.page = min(max(page, 0), last)
        self._refresh()

    @property
    def shown(self) -> pd.DataFrame:
        """The rows of the page."""
        n = self.n_cols * self.n_rows
        return self.rows.iloc[self.page * n : (self.page + 1) * n]

    def pixels(self) -> list[NDArray[np.uint8]]:
        """The page's patches, each (H, W, 3)."""
        out: dict[Any, NDArray[np.uint8]] = {}
        for _, rows in self.shown.groupby("size_px", sort=False):
            out |= dict(zip(rows.index, self.slides.read(rows), strict=True))
        return [out[i] for i in self.shown.index]

    def _sorted(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows if self.by is None else rows.sort_values(self.by, ascending=self.ascending, kind="stable")

    def _usual(self, row: pd.Series) -> str:
        value = "" if self.by is None else row[self.by]
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    @cached_property
    def _lines(self) -> int:
        """Lines of the longest caption: 1 or 2, one height for all pages."""
        return 1 + any("\n" in self._wrapped(self.caption(row)) for _, row in self.table.head(200).iterrows())

    def _wrapped(self, caption: str) -> str:
        """A caption in at most two lines of a picture's width."""
        return "\n".join(textwrap.wrap(caption, 18, max_lines=2, placeholder="…"))

    def _heading(self) -> str:
        n = self.n_cols * self.n_rows
        order = f", by {self.by}" if self.by else ""
        return f"{_patches(len(self.rows))}{order}, page {self.page + 1} of {max(1, -(-len(self.rows) // n))}"

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(
            figsize=(1.45 * self.n_cols, (1.5 + 0.15 * self._lines) * self.n_rows + 0.3), layout="constrained"
        )
        self.draw(figure)
        return figure

    def draw(self, figure: Any) -> None:
        """Draw the page on a figure of matplotlib, or on a part of one."""
        figure.suptitle(self._heading(), fontsize=9, x=0.01, ha="left")
        axes = figure.subplots(self.n_rows, self.n_cols, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        chosen = set(self._chosen)
        for axis, patch, (name, row) in zip(axes.flat, self.pixels(), self.shown.iterrows(), strict=False):
            axis.set_axis_on()
            axis.imshow(patch)
            axis.set_title(self._wrapped(self.caption(row)), fontsize=8)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(
                color="#e6b800" if name in chosen else "#cccccc", linewidth=3 if name in chosen else 1
            )

    def _built(self) -> Any:
        import ipywidgets
        from bokeh.models import ColumnDataSource, HoverTool, Range1d
        from bokeh.plotting import figure

        height = 104 + 14 * self._lines
        self._picture = 92 / height  # of a row's height; the captions take the rest
        plot: Any = figure(
            width=104 * self.n_cols,
            height=height * self.n_rows,
            x_range=Range1d(start=0, end=self.n_cols),
            y_range=Range1d(start=self.n_rows, end=0),
            tools="tap,box_select",
            toolbar_location=None,
            min_border=0,
            outline_line_color=None,
        )
        plot.axis.visible = plot.grid.visible = False
        self._images = ColumnDataSource({k: [] for k in ("image", "x", "y")})
        self._frames = ColumnDataSource({k: [] for k in ("x", "y", "caption", "slide")})
        plot.image_rgba(
            "image", x="x", y="y", dw=0.92, dh=self._picture, source=self._images
        )  # upright: y runs down
        frames = plot.rect(
            "x",
            "y",
            0.94,
            self._picture + 0.04,
            source=self._frames,
            fill_alpha=0,
            line_color="#cccccc",
            selection_line_color="#e6b800",
            selection_line_width=4,
            nonselection_line_alpha=1.0,
        )
        self._captions = ColumnDataSource({k: [] for k in ("x", "y", "caption")})
        plot.text(
            "x",
            "y",
            "caption",
            source=self._captions,
            text_align="center",
            text_baseline="top",
            text_font_size="11px",
        )
        for tool in plot.toolbar.tools:
            tool.renderers = [frames]  # the pictures would fade
        plot.add_tools(HoverTool(renderers=[frames], tooltips=[("slide", "@slide"), ("", "@caption")]))
        self._frames.selected.on_change("indices", self._tapped)
        self._line = ipywidgets.Label()
        back, forth = (ipywidgets.Button(description=d, layout={"width": "44px"}) for d in ("◀", "▶"))
        back.on_click(lambda _: self.turn(self.page - 1))
        forth.on_click(lambda _: self.turn(self.page + 1))
        self._widget = ipywidgets.VBox()  # so that the refresh below fills the sources
        self._refresh()
        self._widget.children = [ipywidgets.HBox([back, forth, self._line]), pane(plot)]
        return self._widget

    def _tapped(self, attr: str, old: list[int], new: list[int]) -> None:
        self.select(self.shown.index[sorted(i for i in new if i < len(self.shown))])

    def _refresh(self) -> None:
        if self._widget is None:
            return
        columns, rows = np.arange(len(self.shown)) % self.n_cols, np.arange(len(self.shown)) // self.n_cols
        images = [
            np.dstack([p, np.full(p.shape[:2], 255, np.uint8)]).view(np.uint32)[..., 0] for p in self.pixels()
        ]
        self._images.data = {"image": images, "x": columns + 0.04, "y": rows + 0.05}
        captions = [self.caption(row) for _, row in self.shown.iterrows()]
        short = [self._wrapped(c) for c in captions]  # whole when pointed at
        names = self.shown["slide_id"].astype(str).tolist()
        self._captions.data = {"x": columns + 0.5, "y": rows + 0.08 + self._picture, "caption": short}
        middle = rows + 0.05 + self._picture / 2
        self._frames.data = {"x": columns + 0.5, "y": middle, "caption": captions, "slide": names}
        self._line.value = self._heading()
        self._selected()

    def _selected(self) -> None:
        if self._widget is not None:
            at = np.flatnonzero(self.shown.index.isin(self._chosen)).tolist()
            if sorted(self._frames.selected.indices) != at:
                self._frames.selected.indices = at


def _patches(n: int) -> str:
    return "1 patch" if n == 1 else f"{n} patches"
