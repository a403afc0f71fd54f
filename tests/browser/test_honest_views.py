"""The annotation drill and the split board in JupyterLab: a stroke is scored, a move is felt."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
import tifffile

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

DRILL = """
import json, numpy as np, pandas as pd, shapely
from pathkit.annotations import annotation_frame
from pathkit.annotations.rows import Row
from pathkit.patches import patch_grid
from pathkit.geometry import Raster
from pathkit.slide import open_slide
from pathkit.view import AnnotationDrill
slide = open_slide("drill.tif")
truth = annotation_frame([Row(shapely.box(400, 300, 1000, 800), "tumour")])
reader = annotation_frame([Row(shapely.box(380, 300, 1000, 800), "tumour")])
mask = Raster(np.ones((120, 160), bool), 10 * slide.mpp)
grid = patch_grid(slide, size_px=100, mpp=slide.mpp, mask=mask)
drill = AnnotationDrill(slide, truth, patches=grid, readers={"A": reader}, height_px=420)
drill
"""
BOARD = """
import json, numpy as np, pandas as pd
from pathkit.view import SplitBoard
patient, label = np.repeat(np.arange(8), 2), np.array(["negative", "positive"])
slides = pd.DataFrame({"patient_id": [f"p{p}" for p in patient], "site": np.array(["x", "y"])[patient % 2]})
slides = slides.assign(label=label[patient // 2 % 2], split=["train", "test"] * 8)
slides["slide_id"] = [f"p{p}-{i % 2}" for i, p in enumerate(patient)]
def score(train, test):
    seen = train.set_index("patient_id")["label"].to_dict()
    wrong = np.where(test["label"] == "positive", -1.0, 2.0)
    return [float(seen[p] == "positive") if p in seen else w for p, w in zip(test["patient_id"], wrong)]
board = SplitBoard(slides, score)
board
"""


@pytest.fixture(scope="module")
def drill_path(lab):
    rows, cols = np.mgrid[0:1200, 0:1600]
    pixels = np.stack([230 - cols // 40, 200 - rows // 40, 225 + 0 * rows], -1).astype(np.uint8)
    pixels[300:800, 400:1000] = (150, 90, 160)
    options = {
        "resolution": (1e4, 1e4),
        "resolutionunit": "CENTIMETER",
        "tile": (256, 256),
        "photometric": "rgb",
    }
    tifffile.imwrite(lab[0] / "drill.tif", pixels, compression="deflate", **options)
    return lab[0] / "drill.tif"


def test_a_drawn_polygon_is_scored_at_once(notebook, drill_path):
    page = notebook("drill", DRILL, viewers=1)
    page.sharp()
    page.tool("PolyDrawTool")
    corners = [(420, 320), (1000, 300), (1020, 780), (500, 820)]
    for i, corner in enumerate(corners):
        page.page.mouse.move(*(round(v) for v in page.screen(*corner)), steps=3)
        page.page.wait_for_timeout(120)
        page.page.mouse.down()
        page.page.wait_for_timeout(750 if i in (0, 3) else 40)
        page.page.mouse.up()
        page.page.wait_for_timeout(500)
    page.until("print(len(drill.drawn))", "1")
    state = json.loads(
        page.python(
            "print(json.dumps([drill.drawn.geometry[0].wkt, drill.scores.loc['you', 'dice'],"
            " int(drill.scores.loc['you', 'patches']), drill.line]))"
        )
    )
    drawn, truth = shapely.from_wkt(state[0]), shapely.box(400, 300, 1000, 800)
    assert shapely.hausdorff_distance(drawn, shapely.Polygon(corners)) < 8
    assert state[1] == pytest.approx(2 * drawn.intersection(truth).area / (drawn.area + truth.area), rel=1e-9)
    assert state[1] > 0.9
    shown = page.page.locator(".widget-label", has_text=f"Dice {state[1]:.3f}")
    shown.wait_for(timeout=10_000)
    table = page.page.locator("table.dataframe", has_text="Dice, truth").inner_text()
    assert f"{state[1]:.3f}" in table
    marks = "v.figure.renderers.some(r => r.data_source?.columns().includes('side') && r.data_source.get('x').length == N)"
    page.page.wait_for_timeout(500)
    assert page.js(marks.replace("N", str(state[2])))
    page.python("drill.viewer.undo()")
    page.until("print(len(drill.drawn), drill.scores.loc['you', 'dice'])", "0 0.0")


#: The colours of the lines that join the slides of a patient.
LINES = (
    "Bokeh.documents.flatMap(d => [...d._all_models.values()]).filter(m => m.data?.xs && m.data.colour)"
    ".map(m => [...m.data.colour])"
)


def test_a_patient_is_moved_and_the_auc_follows(notebook):
    page = notebook("board", BOARD)
    line = page.page.locator(".widget-html-content", has_text="on both sides")
    line.wait_for(timeout=60_000)
    assert (
        "8 patients on both sides, 100% of the test slides. AUC of the test slides 1.00" in line.inner_text()
    )
    page.page.wait_for_function("() => window.Bokeh && Bokeh.documents.length > 0", timeout=60_000)
    page.page.wait_for_timeout(1500)
    orange = f"() => ({LINES})[0].filter(c => c == '#d55e00').length"
    assert page.page.evaluate(orange) == 8
    place = page.page.evaluate(
        "() => { const f = Bokeh.documents.flatMap(d => [...d._all_models.values()]).find(m => m.type == 'Figure' &&"
        " m.renderers.some(r => r.data_source?.data.patient)), v = Bokeh.index.find_one(f),"
        " b = v.canvas_view.el.getBoundingClientRect(), s = f.renderers.find(r => r.data_source?.data.patient).data_source,"
        " i = [...s.data.slide].indexOf('p2-1');"
        " return [b.x + v.frame.x_scale.compute(s.data.x[i]), b.y + v.frame.y_scale.compute(s.data.y[i])]; }"
    )
    page.page.mouse.click(*place)
    page.until("print(board.selection['slide_id'].tolist())", "['p2-1']")
    page.page.locator(".widget-button", has_text="Move to test").click()
    page.until("print(board.leaking, round(board.auc, 3))", "['p0', 'p1', 'p3', 'p4', 'p5', 'p6', 'p7'] 0.6")
    page.page.locator(".widget-html-content", has_text="7 patients on both sides").wait_for(timeout=10_000)
    page.page.wait_for_function(f"({orange})() == 7", timeout=10_000)
