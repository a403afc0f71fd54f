"""The slide viewer: one figure with the slide, layers over it, drawing and selection.

One Bokeh figure in an ipywidget. Tiles come from the Jupyter Server extension, which answers while the kernel is busy;
where there is none (a slide in memory, VS Code, Colab) the same viewer takes them from the kernel. The figure's frame is
level-0 pixels with y downwards, as everywhere in pathkit. What the browser says arrives through one small model (`up`),
what Python says through another (`down`); all other models are kept from answering back.
"""

from __future__ import annotations

import base64
import html
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from pathkit.annotations import annotation_frame, write_annotations
from pathkit.annotations.rows import Row
from pathkit.geometry import Box
from pathkit.slide import Slide, SlideError
from pathkit.view import registry
from pathkit.view.layers import Layer, SecondSlide, as_layer, colours_of
from pathkit.view.pane import JS, free, is_static, load_bokeh, pane
from pathkit.view.tiles import TILE_PX, Pyramid, TileCache, jpeg

__all__ = ["SlideViewer", "View"]

HOUSE = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'>"
    "<path fill='gray' d='M12 4 3 12h3v8h5v-5h2v5h5v-8h3z'/></svg>"
)
#: Icon and description of the buttons beside Bokeh's tools.
ACTIONS = [
    (
        f"data:image/svg+xml;utf8,{HOUSE}",
        "Whole slide (0; arrows move, + and - zoom, 1 to 4 show 5x to 40x, f fills the screen)",
    ),
    ("undo", "Undo the last drawing (Ctrl+Z)"),
]
_pool = ThreadPoolExecutor(2, "pathkit-view")


@dataclass(frozen=True)
class View:
    """What is seen: a rectangle in level-0 pixels, and its size on the screen."""

    box_l0: Box
    width_px: int
    height_px: int

    @property
    def l0_per_px(self) -> float:
        """Level-0 pixels per screen pixel."""
        return self.box_l0.width / self.width_px


class SlideViewer:
    """A slide with layers.

    Parameters
    ----------
    slide : Slide
        Without mpp it is shown in pixels; layers in microns then raise.
    layers : sequence
        Layers of `pathkit.view.layers`, or what they show: a Raster of bool (mask) or numbers (heatmap), a GeoDataFrame
        (polygons, level-0 pixels), a table of patches or objects, a Slide to compare with. Bottom first.
    classes : sequence of str
        Classes to draw with.
    height_px : int

    Attributes
    ----------
    layers : list of Layer
    selection : DataFrame
    drawn : GeoDataFrame

    Raises
    ------
    ValueError
        If a layer does not fit the slide; the message says which and why.

    Examples
    --------
    >>> viewer = SlideViewer(slide, layers=[tissue_mask(slide), heat, Polygons(outlines), patches])  # doctest: +SKIP
    >>> viewer.on_select(lambda rows: print(len(rows)))  # doctest: +SKIP
    """

    def __init__(
        self,
        slide: Slide,
        layers: Sequence[Any] = (),
        *,
        classes: Sequence[str] = ("tumour", "normal"),
        height_px: int = 560,
    ):
        if not classes:
            raise ValueError(
                'SlideViewer: classes is empty; give at least one to draw with, such as ("tumour",).'
            )
        self.slide, self.classes, self.height_px = slide, list(classes), height_px
        self.layers: list[Layer] = []
        self.pyramid = Pyramid(slide)
        width, height = slide.dimensions
        self.view = View(Box(0, 0, width, height), 900, max(1, round(900 * height / width)))
        self._lock = threading.RLock()
        self._live: _Live | None = None
        self._selected: tuple[Layer, NDArray[np.intp]] | None = None
        self._on_select: list[Callable[[pd.DataFrame], Any]] = []
        self._on_click: list[Callable[[float, float], Any]] = []
        self._on_draw: list[Callable[[geopandas.GeoDataFrame], Any]] = []
        self._drawn: dict[str, dict[str, list[Any]]] = _nothing_drawn()
        self._undo: list[dict[str, dict[str, list[Any]]]] = []
        self._groups: list[str] = []
        self._mode, self._moved = "fade", False
        for layer in layers:
            self.add(layer)

    # Layers ----------------------------------------------------------------------------------------------------

    def add(self, layer: Any) -> Layer:
        """Put a layer on top; takes what the constructor takes, and gives the layer.

        Raises
        ------
        ValueError
            If it does not fit the slide.
        """
        made = as_layer(layer)
        if self._live is not None and isinstance(made, SecondSlide):
            raise ValueError(
                "SlideViewer: give a second slide when the viewer is made: SlideViewer(slide, layers=[SecondSlide(b)])."
            )
        made.place(self.slide)
        names = [other.name for other in self.layers]
        if made.name in names:
            made.name = next(f"{made.name} {i}" for i in range(2, 999) if f"{made.name} {i}" not in names)
        with self._lock:
            self.layers.append(made)
            if self._live is not None:
                self._live.attach(made)
        return made

    def remove(self, layer: Layer) -> None:
        """Take a layer away."""
        with self._lock:
            self.layers.remove(layer)
            if self._selected is not None and self._selected[0] is layer:
                self._selected = None
            if self._live is not None:
                self._live.detach(layer)

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; there are {', '.join(repr(layer.name) for layer in self.layers)}")

    # Places ----------------------------------------------------------------------------------------------------

    def go_to(self, place: Any, mpp: float | None = None) -> None:
        """Move the view.

        Parameters
        ----------
        place : row of a table (x_l0, y_l0 [, size_px, mpp] or x_um, y_um), geometry in level-0 px, Box, or (x, y)
            Its middle becomes the middle of the view.
        mpp : float, optional
            Microns per screen pixel; unchanged when not given.
        """
        x, y = _middle(place, self.slide)
        scale = None if mpp is None else self.slide.mpp / mpp  # the page knows its own best
        l0_per_px = self.view.l0_per_px if scale is None else 1 / scale
        size = self.view.width_px * l0_per_px, self.view.height_px * l0_per_px
        self._seen(
            View(Box(x - size[0] / 2, y - size[1] / 2, *size), self.view.width_px, self.view.height_px)
        )
        self._say(k="go", x=x, y=y, scale=scale)

    def _here(self) -> dict[str, Any]:
        """The present view, to tell the browser."""
        box = self.view.box_l0
        middle = {"x": box.x + box.width / 2, "y": box.y + box.height / 2}
        return {"k": "go", **middle, "scale": 1 / self.view.l0_per_px}

    def home(self) -> None:
        """The whole slide."""
        self._seen(View(Box(0, 0, *self.slide.dimensions), self.view.width_px, self.view.height_px))
        self._moved = False
        self._say(k="home")

    def compare(self, mode: str = "swipe") -> None:
        """Show the second slide by ``"swipe"`` (right of a line), ``"blink"``, or ``"fade"`` (its opacity).

        Raises
        ------
        ValueError
            If there is no second slide among the layers, or no such mode.
        """
        if mode not in ("swipe", "blink", "fade"):
            raise ValueError(f"compare: mode is swipe, blink or fade, got {mode!r}.")
        if not any(isinstance(layer, SecondSlide) for layer in self.layers):
            raise ValueError("compare: no second slide. Add one: viewer.add(SecondSlide(other)).")
        self._mode = mode
        self._say(k="compare", mode=mode)

    # Selection -------------------------------------------------------------------------------------------------

    @property
    def selection(self) -> pd.DataFrame:
        """Selected rows of one layer's table, in its order; empty where nothing is selected."""
        if self._selected is None:
            tables = [layer.table for layer in self.layers if layer.table is not None]
            return tables[-1].iloc[:0] if tables else pd.DataFrame()
        layer, rows = self._selected
        assert layer.table is not None
        return layer.table.iloc[rows]

    def on_select(self, callback: Callable[[pd.DataFrame], Any]) -> None:
        """Call `callback` with `selection` whenever it changes."""
        self._on_select.append(callback)

    def on_click(self, callback: Callable[[float, float], Any]) -> None:
        """Call `callback` with x and y, in level-0 pixels, of every click on the slide."""
        self._on_click.append(callback)

    def select(self, rows: Any, *, layer: str | Layer | None = None) -> None:
        """Select rows of a layer's table.

        Parameters
        ----------
        rows : DataFrame, bool mask, or labels of the table's index
            A DataFrame selects the rows with its index.
        layer : str or Layer, optional
            The topmost with a table when not given.

        Raises
        ------
        ValueError
            If no layer has a table, or rows are not in it.
        """
        target = self._target(layer)
        self._choose(target, _positions(target.table, rows))

    def _target(self, layer: str | Layer | None) -> Layer:
        """A layer with rows, the topmost when not named."""
        if layer is not None:
            return self[layer] if isinstance(layer, str) else layer
        tables = [candidate for candidate in self.layers if candidate.table is not None]
        if not tables:
            raise ValueError(
                "select: no layer has rows to select. Add patches or objects: viewer.add(table)."
            )
        return tables[-1]

    def _choose(self, layer: Layer, rows: NDArray[np.intp]) -> None:
        rows = np.unique(rows)
        with self._lock:
            before = self._selected
            if before is not None and before[0] is layer and np.array_equal(before[1], rows):
                return
            self._selected = (layer, rows)
            if self._live is not None:
                self._live.mark_selection()
        for callback in self._on_select:
            callback(self.selection)

    def _choose_inside(self, region: Any, *, tap: bool = False) -> None:
        """Rows of the topmost visible layer with a table that has any inside a polygon; nothing where none has."""
        tables = [layer for layer in reversed(self.layers) if layer.table is not None and layer.visible]
        for layer in tables:
            rows = layer.inside(region, tap=tap)
            if len(rows):
                return self._choose(layer, rows)
        if tables:
            self._choose(tables[0], np.zeros(0, np.intp))
        return None

    # Drawing ---------------------------------------------------------------------------------------------------

    @property
    def drawn(self) -> geopandas.GeoDataFrame:
        """What was drawn, as annotations in level-0 pixels: class, name, color, geometry.

        Outlines that cross themselves are repaired; those without area are left out.
        """
        colours = colours_of(self.classes)
        shapes = [(s, c) for s, c in _shapes(self._drawn) if not s.is_empty]
        return annotation_frame([Row(shape, str(c), None, colours.get(str(c))) for shape, c in shapes])

    @drawn.setter
    def drawn(self, annotations: geopandas.GeoDataFrame) -> None:
        fresh = _nothing_drawn()
        for shape, name in zip(annotations.geometry, annotations["class"], strict=True):
            for part in shapely.get_parts(shape):
                if part.geom_type == "Point":
                    new = {"x": part.x, "y": part.y}
                    kind = "points"
                else:
                    ring = part.exterior if part.geom_type == "Polygon" else part
                    xs, ys = shapely.get_coordinates(ring).T
                    new, kind = {"xs": xs.tolist(), "ys": ys.tolist()}, "areas"
                for column, value in {**new, "class": str(name)}.items():
                    fresh[kind][column].append(value)
        self._redraw(fresh)

    def on_draw(self, callback: Callable[[geopandas.GeoDataFrame], Any]) -> None:
        """Call `callback` with `drawn` whenever something was drawn, edited or deleted."""
        self._on_draw.append(callback)

    def undo(self) -> None:
        """Take back the last drawing, edit or deletion."""
        if self._undo:
            last = self._undo.pop()
            self._drawn = last
            self._show_drawn()
            self._tell_drawn()

    def save_drawn(self, path: str | os.PathLike[str]) -> Path:
        """Write what was drawn as QuPath GeoJSON (or ASAP, for ``.xml``)."""
        return write_annotations(self.drawn, path, slide=self.slide)

    def _redraw(self, drawn: dict[str, dict[str, list[Any]]]) -> None:
        if drawn != self._drawn:
            self._undo = [*self._undo[-99:], self._drawn]
            self._drawn = drawn
            self._show_drawn()
            self._tell_drawn()

    def _tell_drawn(self) -> None:
        for callback in self._on_draw:
            callback(self.drawn)

    def _show_drawn(self) -> None:
        if self._live is not None:
            self._live.show_drawn()

    # The browser -----------------------------------------------------------------------------------------------

    def _say(self, **message: Any) -> None:
        if self._live is not None:
            self._live.say(message)

    def _heard(self, message: dict[str, Any]) -> None:
        """One message of the browser; in another thread than the cells' while one of these runs."""
        kind = message["k"]
        if kind == "view":
            x0, y0, x1, y1 = message["v"]
            self._seen(View(Box.from_bounds(x0, y0, x1, y1), max(1, message["w"]), max(1, message["h"])))
            self._moved = not message.get("a", False)  # as it began: whole at any size
        elif kind == "tap":
            for callback in self._on_click:
                callback(float(message["x"]), float(message["y"]))
            self._choose_inside(shapely.Point(message["x"], message["y"]).buffer(message["r"]), tap=True)
        elif kind == "lasso":
            self._choose_inside(_region(message["g"]))
        elif kind == "undo":
            self.undo()
        elif kind == "drawn":
            drawn = {name: {c: list(v) for c, v in columns.items()} for name, columns in message["d"].items()}
            if drawn != self._drawn:
                self._undo = [*self._undo[-99:], self._drawn]
                self._drawn = drawn
                self._tell_drawn()

    def _seen(self, view: View) -> None:
        with self._lock:
            self.view, self._moved = view, True
            if self._live is not None:
                self._live.refresh(view)

    # Pictures --------------------------------------------------------------------------------------------------

    def snapshot(self, *, box_l0: Box | None = None, width_px: int = 900) -> bytes:
        """The view (or a rectangle) with layers, scale bar and legend as a PNG, drawn without a browser."""
        from pathkit.view.picture import draw

        return draw(self, box_l0 or self.view.box_l0, width_px)

    def to_html(self, path: str | os.PathLike[str], *, max_mb: float = 8.0) -> Path:
        """Write the viewer as one file that opens without Python or network; layers have check boxes below.

        The slide is stored from its coarsest level on, down to the level that `max_mb` still holds. Up to 20,000 rows of a
        layer are marks, more a picture of the whole slide.
        """
        from pathkit.view.picture import write_html

        return write_html(self, Path(path), max_mb)

    # Widget ----------------------------------------------------------------------------------------------------

    def widget(self) -> Any:
        """The viewer as an ipywidget; one, however often it is asked for."""
        if self._live is None:
            load_bokeh()
            self._live = _Live(self)
        return self._live.box

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        if is_static():
            from pathkit.view.picture import small

            display(Image(small(self.snapshot())))
            return
        if self._live is not None:
            load_bokeh()
        display(self.widget())

    def close(self) -> None:
        """Give everything back: the server forgets the slide, widgets and file handles are closed."""
        if self._live is not None:
            self._live.close()
            self._live = None
        for layer in self.layers:
            layer.close()
        self.pyramid.close()

    def __enter__(self) -> SlideViewer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Figure:
    """The Bokeh models of a viewer."""

    def __init__(self, viewer: SlideViewer, slides: list[dict[str, Any]]):
        from bokeh.models import (
            BoxEditTool,
            CategoricalColorMapper,
            ColumnDataSource,
            CustomAction,
            CustomJS,
            FreehandDrawTool,
            LassoSelectTool,
            PanTool,
            PointDrawTool,
            PolyDrawTool,
            PolyEditTool,
            Range1d,
            WheelZoomTool,
            WMTSTileSource,
        )
        from bokeh.models.renderers import TileRenderer
        from bokeh.plotting import figure

        box = viewer.view.box_l0
        self.x_range, self.y_range = Range1d(start=box.x, end=box.x1), Range1d(start=box.y1, end=box.y)
        plot: Any = figure(
            x_range=self.x_range,
            y_range=self.y_range,
            height=viewer.height_px,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location="above",
            min_border=0,
            background_fill_color="#e6e6e6",
            outline_line_color="#999999",
        )
        self.plot = plot
        plot.toolbar.logo = None
        plot.title = None  # empty, it would take two thirds of the toolbar
        plot.axis.visible = plot.grid.visible = False
        self.bases = [
            TileRenderer(tile_source=WMTSTileSource(url=""), level="image", visible=False) for _ in slides
        ]
        plot.renderers.extend(self.bases)
        self.up, self.down = ColumnDataSource({"msg": [""]}), ColumnDataSource({"msg": [""]})

        # Selection and drawing
        colours = CategoricalColorMapper(
            factors=viewer.classes,
            palette=list(colours_of(viewer.classes).values()),
            nan_color="#000000",
        )
        self.sources = {name: ColumnDataSource(data) for name, data in viewer._drawn.items()}
        style = {
            "line_color": {"field": "class", "transform": colours},
            "line_width": 2.5,
        }
        fill = {"fill_color": {"field": "class", "transform": colours}, "fill_alpha": 0.12}
        areas: Any = plot.patches("xs", "ys", source=self.sources["areas"], **style, **fill)
        boxes = plot.rect("x", "y", "width", "height", source=self.sources["boxes"], **style, **fill)
        points = plot.scatter(
            "x", "y", size=13, marker="cross", source=self.sources["points"], **style, **fill
        )
        corners = plot.scatter([], [], size=8, fill_color="white", line_color="black")
        self.chosen = ColumnDataSource({"left": [], "right": [], "top": [], "bottom": []})
        outlines = [
            plot.quad(source=self.chosen, fill_color=None, line_color=colour, line_width=width)
            for width, colour in ((5, "#000000"), (2.5, "#ffe100"))  # seen on light and on dark tissue
        ]
        self.above = [areas, boxes, points, corners, *outlines]
        first = viewer.classes[0]
        self.draw_tools = [
            PolyDrawTool(renderers=[areas], empty_value=first, description="Draw a polygon"),
            FreehandDrawTool(renderers=[areas], empty_value=first, description="Draw freehand"),
            BoxEditTool(renderers=[boxes], empty_value=first, description="Draw a box"),
            PointDrawTool(renderers=[points], empty_value=first, description="Draw a point"),
        ]
        edit = PolyEditTool(renderers=[areas], vertex_renderer=corners, description="Edit corners")
        pan, wheel = PanTool(), WheelZoomTool()
        lasso = LassoSelectTool(renderers=[], continuous=False, description="Select by lasso")
        home, undo = (CustomAction(icon=icon, description=text) for icon, text in ACTIONS)
        plot.add_tools(home, pan, wheel, lasso, *self.draw_tools, edit, undo)
        plot.toolbar.active_drag, plot.toolbar.active_scroll, plot.toolbar.active_tap = pan, wheel, None

        spec = {
            "mpp": viewer.slide.mpp_or_none,
            "slides": slides,
            "thumbnail": data_uri(jpeg(viewer.slide.thumbnail(280)), "jpeg"),
        }
        args: dict[str, Any] = {
            "xr": self.x_range,
            "yr": self.y_range,
            "bases": self.bases,
            "up": self.up,
            "down": self.down,
            "drawn": self.sources,
            "spec": spec,
        }
        home.callback, undo.callback = (
            CustomJS(args={"figure": plot}, code=f"figure.pathkit.{call}") for call in ("home()", "undo()")
        )
        script = CustomJS(args=args, code=(JS / "viewer.js").read_text(), module=True)
        for attribute in ("inner_width", "inner_height"):
            plot.js_on_change(attribute, script)

    def add(self, layer: Layer, base: Any = None) -> None:
        """Draw a layer; `base` is the tile renderer of a second slide."""
        layer.renderers = [base] if base is not None else layer.build(self.plot)
        hovered = [r for r in layer.renderers if layer.hover and r in self.plot.renderers]
        if hovered:
            from bokeh.models import HoverTool

            tool = HoverTool(renderers=hovered[-1:], tooltips=layer.hover, visible=False)
            self.plot.add_tools(tool)
        layer.apply()
        # Above all layers by their order: Bokeh's levels above "glyph" are drawn beyond the frame too.
        self.plot.renderers = [r for r in self.plot.renderers if r not in self.above] + self.above
        self.quiet()

    def quiet(self) -> None:
        """Keep the browser from sending back what it was sent (100 KB a pan otherwise)."""
        for model in self.plot.references() - {self.up}:
            if model.syncable:
                model.syncable = False


class _Live:
    """The widgets of a viewer, and the messages between them and the browser."""

    def __init__(self, viewer: SlideViewer):
        import ipywidgets

        self.viewer, self.last, self.cache = viewer, -1, TileCache(16_000_000)
        self._saying = threading.Lock()  # tiles are sent by other threads
        self.slides: list[Any] = [(viewer.pyramid, 1.0, 0.0, 0.0)]
        self.slides += [
            (layer.pyramid, layer.scale, *layer.offset_l0)
            for layer in viewer.layers
            if isinstance(layer, SecondSlide)
        ]
        self.ids = [
            None if p._slide.path is None else registry.register(p._slide.path) for p, *_ in self.slides
        ]
        specs = [
            slide_spec(pyramid, id=i, k=k, x=x, y=y)
            for i, (pyramid, k, x, y) in zip(self.ids, self.slides, strict=True)
        ]
        self._finalizer = weakref.finalize(self, _unregister, list(self.ids))
        self.figure = Figure(viewer, specs)
        seconds = iter(self.figure.bases[1:])
        for layer in viewer.layers:
            self.figure.add(layer, next(seconds) if isinstance(layer, SecondSlide) else None)
        self.refresh(viewer.view)
        self.figure.quiet()
        self.figure.up.on_change("data", lambda attr, old, new: self._message(new["msg"][0]))
        self.pane = pane(self.figure.plot)
        self.pane.layout.width = "100%"
        self.panel = ipywidgets.VBox(layout={"width": "240px", "flex": "0 0 240px", "padding": "0 0 0 8px"})
        self.panel.layout.max_height, self.panel.layout.overflow = f"{viewer.height_px}px", "hidden auto"
        self.fill_panel()
        row = ipywidgets.HBox(
            [ipywidgets.Box([self.pane], layout={"flex": "1 1 420px", "min_width": "300px"}), self.panel],
            layout={"flex_flow": "row wrap"},  # in a narrow cell the panel goes below
        )
        self.error = ipywidgets.HTML()
        wide = {"width": "100%", "flex": "1 1 auto", "min_width": "0"}  # a part of a row as well as alone
        self.box = ipywidgets.VBox([row, self.error], layout=wide)
        free(self.box)

    # From and to the browser

    def _message(self, text: str) -> None:
        message = json.loads(text)
        if message["n"] == self.last:  # jupyter_bokeh calls twice
            return
        self.last = message["n"]
        try:
            if message["k"] == "tiles":
                _pool.submit(self._send_tiles, message["s"], message["t"])
            elif message["k"] == "hello":
                self.say({"k": "compare", "mode": self.viewer._mode})
                if self.viewer._moved:
                    self.say(self.viewer._here())
                for group in self.viewer._groups:
                    self.say({"k": "link", "group": group})
            else:
                self.viewer._heard(message)
                if message["k"] == "drawn":
                    self.keep_drawn()
            self.error.value = ""
        except Exception as error:  # the user sees it under the figure; the comm would swallow it
            self._report(error)
            raise

    def _report(self, error: Exception) -> None:
        self.error.value = (
            f'<span style="color:#b00">{type(error).__name__}: {html.escape(str(error))}</span>'
        )

    def say(self, message: dict[str, Any]) -> None:
        """Tell the browser."""
        with self._saying:
            self.figure.down.data = {"msg": [json.dumps({**message, "t0": time.monotonic()})]}

    def _send_tiles(self, number: int, keys: list[str]) -> None:
        pyramid = self.slides[number][0]
        for key in keys:
            level, x, y = map(int, key.split("/"))
            try:
                tile = self.cache.get((number, key), partial(pyramid.render, level, x, y))
            except (SlideError, LookupError, OSError) as error:
                self._report(error)
                self.say({"k": "tiles", "s": number, "t": {key: None}})
                continue
            self.say({"k": "tiles", "s": number, "t": {key: data_uri(tile, "jpeg")}})

    # State

    def refresh(self, view: View) -> None:
        """Bring layers that depend on the view to it; the ranges too, for a page that is loaded again."""
        box = view.box_l0
        pane = getattr(self, "pane", None)
        for span, start, end in ((self.figure.x_range, box.x, box.x1), (self.figure.y_range, box.y1, box.y)):
            span.set_from_json("start", start, setter=pane)
            span.set_from_json("end", end, setter=pane)
        for layer in self.viewer.layers:
            if layer.visible:
                layer.refresh(view)
        self.mark_selection()

    def mark_selection(self) -> None:
        """Outline the selected rows that are in view."""
        chosen = self.viewer._selected
        boxes = np.zeros((0, 4)) if chosen is None else chosen[0].marks(chosen[1], self.viewer.view)
        data = dict(zip(("left", "top", "right", "bottom"), boxes.T, strict=True))
        self.figure.chosen.data = data

    def show_drawn(self) -> None:
        """Send the drawings to the browser."""
        for name, source in self.figure.sources.items():
            source.data = {c: list(v) for c, v in self.viewer._drawn[name].items()}

    def keep_drawn(self) -> None:
        """Keep the browser's drawings in the models, without sending them back."""
        for name, source in self.figure.sources.items():
            source.set_from_json("data", self.viewer._drawn[name], setter=self.pane)

    def attach(self, layer: Layer) -> None:
        """Draw a layer that came later."""
        self.figure.add(layer)
        layer.refresh(self.viewer.view)
        self.fill_panel()

    def detach(self, layer: Layer) -> None:
        """Remove a layer from the figure."""
        plot = self.figure.plot
        plot.renderers = [r for r in plot.renderers if r not in layer.renderers]
        self.fill_panel()

    # Panel

    def fill_panel(self) -> None:
        """One row a layer, then the drawing tools."""
        import ipywidgets as w

        viewer = self.viewer
        rows: list[Any] = []
        for layer in reversed(viewer.layers):
            key = layer.key_html()
            one = not key.startswith("<div")  # a single colour stands before the name
            shown = w.Checkbox(
                layer.visible,
                description=f"{key if one else ''} {html.escape(layer.name)}",
                description_allow_html=True,
                indent=False,
                layout={"width": "auto", "flex": "1 1 auto"},
            )
            opacity = w.FloatSlider(
                layer.opacity, min=0, max=1, step=0.05, readout=False, layout={"width": "80px"}
            )
            opacity.tooltip = f"Opacity of {layer.name}"
            shown.observe(lambda c, at=layer: self._set(at, visible=c["new"]), "value")
            opacity.observe(lambda c, at=layer: self._set(at, opacity=c["new"]), "value")
            layer.panel = shown, opacity
            rows += [w.HBox([shown, opacity]), *layer.controls()]
            if not one:
                rows.append(w.HTML(key))
        if any(isinstance(layer, SecondSlide) for layer in viewer.layers):
            modes = w.ToggleButtons(
                options=["swipe", "blink", "fade"], value=viewer._mode, style={"button_width": "64px"}
            )
            modes.observe(lambda c: viewer.compare(c["new"]), "value")
            rows.append(modes)
        drawing = w.Dropdown(
            options=viewer.classes, description="Draw as", style={"description_width": "55px"}
        )
        drawing.layout.width = "auto"
        drawing.observe(lambda c: self._draw_as(c["new"]), "value")
        place = w.Text(placeholder="x, y in level-0 px", description="Go to", continuous_update=False)
        place.style.description_width, place.layout.width = "55px", "auto"
        place.observe(lambda c: self._go(c["new"]), "value")
        self.panel.children = [*rows, drawing, place]
        free(self.panel)

    def _set(self, layer: Layer, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(layer, name, value)
        if changes.get("visible"):
            layer.refresh(self.viewer.view)

    def _draw_as(self, name: str) -> None:
        for tool in self.figure.draw_tools:
            tool.empty_value = name

    def _go(self, text: str) -> None:
        try:
            x, y = (float(part) for part in text.replace(";", ",").split(","))
        except ValueError:
            self.error.value = "Go to: two numbers, such as 12000, 8500 (level-0 pixels)."
        else:
            self.viewer.go_to((x, y))

    def close(self) -> None:
        """Unregister, and close the widgets."""
        self._finalizer()
        for widget in (self.pane, self.panel, self.error, self.box):
            widget.close()


def _unregister(ids: list[str | None]) -> None:
    for slide_id in ids:
        if slide_id is not None:
            registry.unregister(slide_id)


def slide_spec(
    pyramid: Pyramid, *, id: str | None = None, k: float = 1.0, x: float = 0.0, y: float = 0.0
) -> dict[str, Any]:
    """What the browser must know of a slide: never its path."""
    return {
        "id": id,
        "size": list(pyramid.dimensions),
        "levels": pyramid.levels,
        "finest": 0,
        "tile": TILE_PX,
        "k": k,
        "x": x,
        "y": y,
        "embedded": None,
    }


def data_uri(content: bytes, kind: str) -> str:
    """An image as text."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# Steps -----------------------------------------------------------------------------------------------------------


def _nothing_drawn() -> dict[str, dict[str, list[Any]]]:
    return {
        "areas": {"xs": [], "ys": [], "class": []},
        "boxes": {"x": [], "y": [], "width": [], "height": [], "class": []},
        "points": {"x": [], "y": [], "class": []},
    }


def _shapes(drawn: dict[str, dict[str, list[Any]]]) -> list[tuple[Any, str]]:
    """Geometries and classes; what encloses no area is empty."""
    shapes: list[tuple[Any, str]] = []
    for xs, ys, name in zip(*(drawn["areas"][c] for c in ("xs", "ys", "class")), strict=True):
        xy = np.column_stack([xs, ys])
        polygon = shapely.Polygon(xy) if len(np.unique(xy, axis=0)) > 2 else shapely.Polygon()
        if not polygon.is_valid:
            parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(polygon)))
            polygon = shapely.union_all([p for p in parts if p.geom_type in ("Polygon", "MultiPolygon")])
        shapes.append((polygon if polygon.area > 0 else shapely.Polygon(), name))
    for x, y, width, height, name in zip(*drawn["boxes"].values(), strict=True):
        shapes.append((shapely.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), name))
    for x, y, name in zip(*drawn["points"].values(), strict=True):
        shapes.append((shapely.Point(x, y), name))
    return shapes


def _region(geometry: dict[str, Any]) -> Any:
    if geometry["type"] == "poly":
        polygon = (
            shapely.Polygon(np.column_stack([geometry["x"], geometry["y"]]))
            if len(geometry["x"]) > 2
            else shapely.Polygon()
        )
        return polygon if polygon.is_valid else polygon.buffer(0)
    return shapely.box(geometry["x0"], geometry["y0"], geometry["x1"], geometry["y1"])


def _middle(place: Any, slide: Slide) -> tuple[float, float]:
    if isinstance(place, Box):
        return place.x + place.width / 2, place.y + place.height / 2
    if isinstance(place, shapely.geometry.base.BaseGeometry):
        return place.centroid.x, place.centroid.y
    if isinstance(place, pd.DataFrame):
        if len(place) != 1:
            raise ValueError(f"go_to: one row, got {len(place)}. Pick one: table.iloc[0].")
        place = place.iloc[0]
    if isinstance(place, (pd.Series, dict)):
        if "x_l0" in place:
            half = (
                place["size_px"] * place["mpp"] / slide.mpp / 2
                if "size_px" in place and "mpp" in place
                else 0.0
            )
            return float(place["x_l0"]) + half, float(place["y_l0"]) + half
        if "x_um" in place:
            return float(place["x_um"]) / slide.mpp, float(place["y_um"]) / slide.mpp
        if "geometry" in place:
            return _middle(place["geometry"], slide)
        raise ValueError("go_to: the row has no place; it needs x_l0 and y_l0, x_um and y_um, or geometry.")
    x, y = (float(v) for v in place)
    if not np.isfinite([x, y]).all():
        raise ValueError(f"go_to: ({x}, {y}) is no place.")
    return x, y


def _positions(table: pd.DataFrame | None, rows: Any) -> NDArray[np.intp]:
    assert table is not None
    if isinstance(rows, pd.DataFrame):
        rows = rows.index
    values = np.asarray(rows)
    if values.dtype == bool:
        if len(values) != len(table):
            raise ValueError(f"select: a mask of {len(values)} for a table of {len(table)} rows.")
        return np.flatnonzero(values)
    if not table.index.is_unique:
        raise ValueError(
            "select: the table's index is not unique. Give the layer table.reset_index(drop=True)."
        )
    found = table.index.get_indexer(values) if len(values) else np.zeros(0, np.intp)
    if (found < 0).any():
        missing = values.tolist()[int(np.argmax(found < 0))]
        raise ValueError(f"select: no row {missing!r} in the layer's table of {len(table)} rows.")
    return np.asarray(found, np.intp)
