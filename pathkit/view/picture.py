"""Pictures of a viewer that need no browser, and the page that needs no Python."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathkit.files import write_text
from pathkit.geometry import Box
from pathkit.view.tiles import Pyramid

if TYPE_CHECKING:
    from pathkit.view.viewer import SlideViewer

__all__ = ["draw", "halves", "paste", "pixels", "png", "small", "write_html"]

#: Of a page without Python: width of what is drawn for the whole slide, and rows drawn as marks.
PAGE_PX, PAGE_MARKS = 3000, 20_000


def pixels(pyramid: Pyramid, box_l0: Box, width_px: int) -> NDArray[np.uint8]:
    """A rectangle of the slide, (H, W, 3), `width_px` wide where the slide has as many pixels, else as it is."""
    downsample = max(1.0, box_l0.width / width_px)
    size = max(1, round(box_l0.width / downsample)), max(1, round(box_l0.height / downsample))
    return pyramid.crop((box_l0.x, box_l0.y), size, downsample)


def png(figure: Any, dpi: int = 80) -> bytes:
    """A figure of matplotlib as a PNG."""
    stored = io.BytesIO()
    figure.savefig(stored, dpi=dpi)
    return stored.getvalue()


def halves(size: tuple[float, float], widths: tuple[float, float]) -> tuple[Any, Any, Any]:
    """A figure of matplotlib of a size in inches, and its left and right part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=widths)
    return figure, *parts


def paste(part: Any, picture: bytes) -> None:
    """Show a PNG on axes of matplotlib, or on a part of a figure, without a frame."""
    from matplotlib.image import imread

    axes = part if hasattr(part, "imshow") else part.subplots()
    axes.imshow(imread(io.BytesIO(picture)))
    axes.set_axis_off()


def small(picture: bytes) -> bytes:
    """A PNG in 256 colours: a third of the bytes, for notebooks that are committed with their pictures.

    By octree: a median cut gives its colours to the tissue, and marks and legends, small and saturated, end up grey.
    """
    from PIL import Image

    stored = io.BytesIO()
    colours = Image.open(io.BytesIO(picture)).convert("RGB")
    colours = colours.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours.save(stored, "PNG", optimize=True)
    return stored.getvalue()


def draw(viewer: SlideViewer, box_l0: Box, width_px: int) -> bytes:
    """The PNG of `SlideViewer.snapshot`."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    from pathkit.view.viewer import View

    height_px = max(1, round(width_px * box_l0.height / box_l0.width))
    view = View(box_l0, width_px, height_px)
    shown = [layer for layer in viewer.layers if layer.visible]
    entries = [
        (n if n.startswith(layer.name) else f"{layer.name}: {n}", c)  # not "pattern: pattern 3"
        for layer in shown
        for n, c in layer.legend()
    ]
    columns = max(1, width_px // 190)
    foot_px = 24 * -(-len(entries) // columns) + (10 if entries else 0)
    figure = Figure(figsize=(width_px / 100, (height_px + foot_px) / 100), dpi=100)
    axes = figure.add_axes((0, foot_px / (height_px + foot_px), 1, height_px / (height_px + foot_px)))
    extent = (box_l0.x, box_l0.x1, box_l0.y1, box_l0.y)
    axes.imshow(pixels(viewer.pyramid, box_l0, width_px), extent=extent, zorder=0)
    for layer in shown:
        layer.draw(axes, view)
    if viewer._selected is not None:
        for left, top, right, bottom in viewer._selected[0].marks(viewer._selected[1], view):
            for width, colour in ((4, "black"), (2, "#ffe100")):
                axes.add_patch(
                    Rectangle(
                        (left, top), right - left, bottom - top, fill=False, ec=colour, lw=width, zorder=6
                    )
                )
    for shape, colour in zip(viewer.drawn.geometry, viewer.drawn["color"], strict=True):
        xy = np.asarray(
            (shape.exterior if shape.geom_type == "Polygon" else shape.buffer(0)).coords
            if shape.geom_type == "Polygon"
            else shape.envelope.coords
        )
        axes.plot(*xy.T, color=colour, linewidth=2, marker="+" if len(xy) == 1 else None, zorder=5)
    _scale_bar(axes, viewer, view)
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="auto")
    axes.axis("off")
    if entries:
        handles = [Patch(color=colour, label=name) for name, colour in entries]
        figure.legend(
            handles=handles, loc="lower left", ncols=columns, fontsize=8, frameon=False, handlelength=1
        )
    return png(figure, dpi=100)


def _scale_bar(axes: Any, viewer: SlideViewer, view: Any) -> None:
    mpp = viewer.slide.mpp_or_none
    goal = 0.15 * view.box_l0.width * (mpp or 1)
    ten = 10 ** np.floor(np.log10(goal))
    length = max(n * ten for n in (1, 2, 5) if n * ten <= goal)
    text = (
        f"{length:g} px" if mpp is None else f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    )
    from matplotlib import patheffects

    halo = [patheffects.withStroke(linewidth=5, foreground="white")]
    x, y = view.box_l0.x + 0.02 * view.box_l0.width, view.box_l0.y1 - 12 * view.l0_per_px
    axes.plot([x, x + length / (mpp or 1)], [y, y], color="black", linewidth=2.5, path_effects=halo, zorder=8)
    axes.text(x, y - 6 * view.l0_per_px, text, va="bottom", fontsize=10, path_effects=halo, zorder=8)


def write_html(viewer: SlideViewer, path: Path, max_mb: float) -> Path:
    """The page of `SlideViewer.to_html`."""
    from bokeh.embed import file_html
    from bokeh.models import HoverTool, PanTool, WheelZoomTool
    from bokeh.resources import INLINE

    from pathkit.view.layers import SecondSlide
    from pathkit.view.tiles import jpeg
    from pathkit.view.viewer import Figure, View, data_uri, slide_spec

    layers = [copy.copy(layer) for layer in viewer.layers]
    seconds = [layer for layer in layers if isinstance(layer, SecondSlide)]
    specs = [slide_spec(viewer.pyramid)]
    specs += [slide_spec(s.pyramid, k=s.scale, x=s.offset_l0[0], y=s.offset_l0[1]) for s in seconds]
    budget = max_mb * 1e6 / len(specs)
    for spec, pyramid in zip(specs, [viewer.pyramid, *(s.pyramid for s in seconds)], strict=True):
        _embed(spec, pyramid, budget, jpeg, data_uri)
    figure = Figure(viewer, specs)
    bases = iter(figure.bases[1:])
    whole = Box(0, 0, *viewer.slide.dimensions)
    view = View(whole, PAGE_PX, max(1, round(PAGE_PX * whole.height / whole.width)))
    for layer in layers:
        layer.panel, layer.most_marks = None, PAGE_MARKS  # type: ignore[attr-defined]
        figure.add(layer, next(bases) if isinstance(layer, SecondSlide) else None)
        layer.refresh(view)  # all of it: nobody can send more when the view moves
    kept = [t for t in figure.plot.toolbar.tools if isinstance(t, (PanTool, WheelZoomTool, HoverTool))]
    figure.plot.toolbar.tools = [figure.plot.toolbar.tools[0], *kept]
    figure.plot.height = 700
    page = file_html([figure.plot, *map(_switch, reversed(layers))], INLINE, title=viewer.slide.name)
    write_text(path, page)
    return path


def _switch(layer: Any) -> Any:
    """A check box that shows a layer in a page, with its legend."""
    from bokeh.layouts import row
    from bokeh.models import CustomJS
    from bokeh.models.widgets import Checkbox, Div

    box = Checkbox(label=layer.name, active=layer.visible, width=160)
    shown = "for (const r of renderers) r.visible = cb_obj.active"
    if not hasattr(layer.renderers[0], "glyph"):  # Bokeh's tile renderer
        shown = "for (const r of renderers) r.alpha = cb_obj.active ? 1 : 0"
    box.js_on_change("active", CustomJS(args={"renderers": layer.renderers}, code=shown))
    return row(box, Div(text=layer.key_html(), width=600))


def _embed(spec: dict[str, Any], pyramid: Pyramid, budget: float, jpeg: Any, data_uri: Any) -> None:
    """Put whole levels into the spec, coarsest first, while they fit."""
    spec["embedded"], used = {}, 0
    for level in reversed(range(pyramid.levels)):
        across, down = pyramid.grid(level)
        if spec["embedded"] and used + 4 * used > budget and across * down > 4:
            break
        tiles = {}
        for y in range(down):
            for x in range(across):
                tiles[f"{level}/{x}/{y}"] = data_uri(pyramid.render(level, x, y), "jpeg")
        size = sum(map(len, tiles.values()))
        if spec["embedded"] and used + size > budget:
            break
        spec["embedded"] |= tiles
        spec["finest"], used = level, used + size
