"""Links: two viewers that follow each other, and rows that are selected in two places."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pandas as pd

from pathkit.view.gallery import Rows
from pathkit.view.layers import Layer
from pathkit.view.pane import pane
from pathkit.view.viewer import SlideViewer

__all__ = ["link"]


def link(viewer: SlideViewer, other: Any, *, layer: str | Layer | None = None) -> Any:
    """Link a viewer to something else.

    Parameters
    ----------
    viewer : SlideViewer
    other : SlideViewer
        The two follow each other (by microns where both know their mpp) and show each other's pointer; in the browser
        alone, so also while the kernel is busy.
    other : Bokeh figure, table or source; HoloViews element
        Its row i is row i of the layer's table: what is selected there is selected here, and back.
    other : DataFrame
        Shown as a table, linked; its columns are what is shown of the layer's rows.
    other : Gallery, RocChart, FrocChart, Histogram, or anything with ``select`` and ``on_select``
        Gets the selected rows and gives them, by the index of the layer's table; it may have rows of other slides,
        which stay selected there.
    other : callable
        Gets the selected rows.
    layer : str or Layer, optional
        The layer whose rows are linked; the topmost with a table when not given.

    Returns
    -------
    widget or None
        To show, for charts and tables.

    Raises
    ------
    ValueError
        If the numbers of rows differ, or nothing in `other` can be linked.
    """
    if isinstance(other, SlideViewer):
        group = secrets.token_hex(8)
        for one in (viewer, other):
            one._groups.append(group)
            one._say(k="link", group=group)
        return None
    target = viewer._target(layer)
    if isinstance(other, pd.DataFrame):
        other = _table(other)
    elif type(other).__module__.startswith("holoviews"):
        import holoviews

        other = holoviews.render(other, backend="bokeh")
    if type(other).__module__.startswith("bokeh"):
        return _link_source(viewer, target, other)
    if hasattr(other, "on_select") and hasattr(other, "select"):
        _link_rows(viewer, target, other)
        return None
    if callable(other):
        viewer.on_select(other)
        return None
    raise ValueError(
        f"link: cannot link a {type(other).__name__}. It takes a SlideViewer, a Bokeh or HoloViews chart, a DataFrame, a"
        " function, or an object with select and on_select."
    )


def _link_rows(viewer: SlideViewer, layer: Layer, other: Any) -> None:
    assert layer.table is not None
    here = layer.table.index

    def to_slide(rows: pd.DataFrame) -> None:
        viewer.select(rows.index[rows.index.isin(here)], layer=layer)

    def from_slide(rows: pd.DataFrame) -> None:
        chosen = viewer._selected
        if chosen is None or chosen[0] is not layer:
            rows = rows.iloc[:0]
        if isinstance(other, Rows):
            kept = other.selection.index
            other.select(kept[~kept.isin(here)].append(rows.index))
        else:
            other.select(rows)

    other.on_select(to_slide)
    viewer.on_select(from_slide)


def _table(frame: pd.DataFrame) -> Any:
    from bokeh.models import ColumnDataSource
    from bokeh.models.widgets import DataTable, TableColumn

    shown = frame.drop(columns="geometry", errors="ignore")
    columns = [TableColumn(field=str(c), title=str(c)) for c in shown.columns]
    source = ColumnDataSource({str(c): shown[c].to_numpy() for c in shown.columns})
    return DataTable(source=source, columns=columns, height=260, sizing_mode="stretch_width", selectable=True)


def _link_source(viewer: SlideViewer, layer: Layer, model: Any) -> Any:
    from bokeh.models import ColumnDataSource, LayoutDOM

    assert layer.table is not None
    rows = len(layer.table)
    found = [m for m in model.references() if isinstance(m, ColumnDataSource)]
    sources = [s for s in found if s.data and {len(v) for v in s.data.values()} == {rows}]
    if not sources:
        sizes = sorted({len(next(iter(s.data.values()))) for s in found if s.data})
        raise ValueError(
            f"link: layer {layer.name!r} has {rows} rows, the chart's sources {sizes or 'none'}. One row for each, please."
        )
    source = sources[0]

    def from_chart(attr: str, old: list[int], new: list[int]) -> None:
        viewer._choose(layer, np.asarray(sorted(new), np.intp))

    def from_slide(selected: pd.DataFrame) -> None:
        chosen = viewer._selected
        indices = [int(i) for i in chosen[1]] if chosen is not None and chosen[0] is layer else []
        if sorted(source.selected.indices) != indices:
            source.selected.indices = indices

    source.selected.on_change("indices", from_chart)
    viewer.on_select(from_slide)
    return pane(model) if isinstance(model, LayoutDOM) else None
