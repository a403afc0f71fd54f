"""Scatter, gallery, slide and curves in JupyterLab: what is chosen in one is chosen in the others, across slides."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from live import VIEWERS
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

#: Slide a grows red to the right and green downwards; b is its negative. Rows lie in the scatter as on the slide.
SETUP = """
import json, ipywidgets, numpy as np, pandas as pd
from pathkit.slide import open_slide
from pathkit.view import EmbeddingExplorer, Histogram, Patches, RocChart, SlideViewer, link
rows, cols = np.mgrid[0:600, 0:800]
pixels = np.stack([cols * 255 // 800, rows * 255 // 600, 0 * rows + 90], -1).astype(np.uint8)
slides = {"a": open_slide(pixels, mpp=1.0), "b": open_slide(255 - pixels, mpp=1.0)}
xs, ys = (v.ravel() for v in np.meshgrid(range(0, 800, 200), range(0, 600, 200)))
one = pd.DataFrame({"x_l0": xs, "y_l0": ys, "size_px": 200, "mpp": 1.0})
table = pd.concat([one.assign(slide_id=s) for s in "ab"], ignore_index=True)
table["label"], table["score"] = ["x", "y"] * 12, np.arange(24) / 24
"""
EXPLORER = """
view = EmbeddingExplorer(table, table[["x_l0", "y_l0"]], slides, colour="label")
view
"""
CURVES = """
here = table[table["slide_id"] == "a"]
viewer = SlideViewer(slides["a"], layers=[Patches(here)], height_px=380)
roc, bars = RocChart(table, label="label", score="score", positive="y"), Histogram(table, by="score", bins=4)
for chart in (roc, bars):
    link(viewer, chart)
ipywidgets.VBox([ipywidgets.HBox([roc.widget(), bars.widget()]), viewer.widget()])
"""
#: Where points of a figure are on the page; the figure is told by a word of its title, or of its axis.
PLACE = """([word, points]) => {
    const figures = Bokeh.documents.flatMap(d => d.roots()).filter(r => r.type === 'Figure' && !r.pathkit);
    const told = (f) => [f.title?.text, f.below[0]?.axis_label].join(' ').includes(word);
    const figure = figures.find(word ? told : (f) => !f.title?.text);
    const view = Bokeh.index.find_one(figure), box = view.canvas_view.el.getBoundingClientRect();
    return points.map(([x, y]) => [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)]);
}"""


def drag(page, corners):
    page.page.mouse.move(*corners[0])
    page.page.mouse.down()
    for corner in corners[1:]:
        page.page.mouse.move(*corner, steps=4)
    page.page.mouse.up()


def test_lasso_gallery_and_slide_choose_across_slides(notebook):
    page = notebook("explorer", SETUP, EXPLORER)
    page.page.wait_for_function("() => document.querySelectorAll('.bk-Figure').length > 1", timeout=60_000)
    page.page.wait_for_timeout(1000)
    around = [[-9, -9], [250, -9], [250, 250], [-9, 250], [-9, -9]]
    drag(page, page.page.evaluate(PLACE, ["patches", around]))
    page.until("print(view.selection.index.tolist())", "[0, 1, 4, 5, 12, 13, 16, 17]")
    page.until("print(view.gallery.rows.index.tolist())", "[0, 1, 4, 5, 12, 13, 16, 17]")
    page.page.wait_for_timeout(500)
    (x0, y0), (x1, y1) = page.page.evaluate(PLACE, ["", [[0.1, 0.1], [0.9, 0.8]]])  # row 0, of slide a
    clip = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
    shown = np.asarray(Image.open(io.BytesIO(page.page.screenshot(clip=clip))).convert("RGB")).astype(int)
    h, w = shown.shape[:2]
    assert shown[h // 2 :, :, 1].mean() > shown[: h // 2, :, 1].mean() + 15  # upright: green grows downwards
    assert shown[:, w // 2 :, 0].mean() > shown[:, : w // 2, 0].mean() + 15
    page.page.mouse.click(
        *page.page.evaluate(PLACE, ["", [[0.5, 1.4]]])[0]
    )  # of the second row, the first: 16
    page.ready(1)
    page.until("print(view.slide_id, view.gallery.selection.index.tolist())", "b [16]")
    page.python("view.viewer.select([17])")
    page.until("print(view.selection.index.tolist())", "[0, 1, 4, 5, 17]")  # those of slide a stay
    page.until("print(view._points.selected.indices)", "[0, 1, 4, 5, 17]")
    page.python("view.viewer.home()")
    page.sharp()
    page.tool("LassoSelectTool")
    drag(page, [page.screen(x, y) for x, y in ((30, 230), (590, 230), (590, 590), (30, 590), (30, 230))])
    page.until(
        "print(view.selection.index.tolist())", "[0, 1, 4, 5, 16, 17, 18, 20, 21, 22]"
    )  # of b: two rows, not the last
    page.until("print(view._points.selected.indices)", "[0, 1, 4, 5, 16, 17, 18, 20, 21, 22]")
    page.until("print(len(view.gallery.rows))", "10")
    marked = "r => r.data_source?.columns().join() == 'left,top,right,bottom' && r.data_source.get('left').length == 6"
    page.page.wait_for_function(f"() => {VIEWERS}.at(0).figure.renderers.some({marked})", timeout=8000)
    drag(
        page, page.page.evaluate(PLACE, ["patches", [[450, -9], [650, -9], [650, 90], [450, 90], [450, -9]]])
    )
    page.until("print(view.selection.index.tolist(), view.viewer.selection.index.tolist())", "[3, 15] [15]")


def test_a_threshold_and_a_bin_outline_their_patches(notebook):
    page = notebook("curves", SETUP, CURVES, viewers=1)
    points = json.loads(
        page.python("print(json.dumps(roc.points[['x', 'y', 'threshold']].iloc[18].tolist()))")
    )
    page.page.mouse.click(*page.page.evaluate(PLACE, ["ROC", [points[:2]]])[0])
    page.until(f"print(roc.threshold is not None and abs(roc.threshold - {points[2]}) < 0.1)", "True")
    page.until("print(viewer.selection.equals(here[here['score'] >= roc.threshold]))", "True")
    chosen = int(page.python("print(len(viewer.selection))"))
    assert 3 < chosen < 9
    page.page.wait_for_function(
        "() => Bokeh.documents.flatMap(d => [...d._all_models.values()])"
        f".some(m => m.data && m.columns?.().join() === 'left,top,right,bottom' && m.get('left').length === {chosen})",
        timeout=8000,
    )
    page.page.wait_for_timeout(300)
    page.page.mouse.click(
        *page.page.evaluate(PLACE, ["score", [[0.12, 3]]])[0]
    )  # the lowest quarter of the scores
    page.until("print(viewer.selection.index.tolist())", "[0, 1, 2, 3, 4, 5]")
    page.until("print(roc.selection.index[:6].tolist())", "[0, 1, 2, 3, 4, 5]")
