"""The slide viewer in JupyterLab: upright and in register, linked, drawn on, and never waiting for the kernel."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pandas as pd
import pytest
import tifffile
from live import KERNEL, RUN, VIEWERS, Page, Viewers
from PIL import Image

from pathkit.slide import open_slide
from pathkit.view import Patches, SlideViewer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
MPP = 0.5

SETUP = """
import json, os, time
import ipywidgets, numpy as np, pandas as pd, shapely
from bokeh.plotting import figure
from IPython.display import display
from pathkit.slide import open_slide
from pathkit.view import Patches, SlideViewer, link, registry
"""
LINKED = """
slide = open_slide("slide.tif")
xs, ys = np.meshgrid(range(0, 6144, 512), range(0, 4608, 512))
patches = pd.DataFrame({"slide_id": "s", "x_l0": xs.ravel(), "y_l0": ys.ravel(), "size_px": 512, "mpp": slide.mpp})
a = SlideViewer(slide, layers=[Patches(patches, opacity=0.0)], height_px=420)
b = SlideViewer(slide, height_px=420)
chart = figure(width=300, height=300, tools="box_select", active_drag="box_select")
chart.scatter(np.arange(len(patches)), np.arange(len(patches)), size=9)
link(a, b)
scatter = link(a, chart)
display(ipywidgets.VBox([ipywidgets.HBox([w], layout={"width": "1000px"}) for w in (a.widget(), b.widget(), scatter)]))
"""


@pytest.fixture(scope="module")
def slide_path(lab):
    """A pyramid without any symmetry: smooth colours, with blocks of noise that show a shift of a pixel."""
    rows, cols = np.mgrid[0:4608, 0:6144].astype(np.float32)
    noise = np.random.default_rng(0).integers(0, 70, (4608 // 8, 6144 // 8)).repeat(8, 0).repeat(8, 1)
    pixels = np.stack([cols / 6144 * 180 + noise, rows / 4608 * 180 + noise, 90 + noise], -1).astype(np.uint8)
    path = lab[0] / "slide.tif"
    with tifffile.TiffWriter(path) as tiff:
        for ds in (1, 4):
            level = pixels.reshape(4608 // ds, ds, 6144 // ds, ds, 3).mean((1, 3)).round().astype(np.uint8)
            options = {"resolution": (1e4 / MPP / ds, 1e4 / MPP / ds), "resolutionunit": "CENTIMETER"}
            tiff.write(
                level,
                tile=(256, 256),
                compression="deflate",
                photometric="rgb",
                subfiletype=int(ds > 1),
                **options,
            )
    return path


@pytest.fixture(scope="module")
def linked(lab, browser, slide_path):
    """Two linked viewers and a linked chart."""
    page = Page(lab, browser, "linked", SETUP, LINKED, viewers=2)
    yield page
    page.close()


def difference(pixels, truth):
    """Mean absolute difference of the means of 4 x 4 pixels, which resampling does not change."""
    step = pixels.astype(float) - truth
    height, width = (n // 4 * 4 for n in step.shape[:2])
    return float(np.abs(step[:height, :width].reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3))).mean())


@pytest.mark.parametrize("downsample", [1, 2, 5])
def test_the_canvas_is_the_slide_upright_and_in_register(linked, slide_path, downsample):
    linked.python(f"a.go_to((2803, 1907), mpp={MPP * downsample})")
    linked.sharp()
    linked.page.wait_for_timeout(200)
    pixels, (x, y, scale) = linked.crop()
    assert scale == pytest.approx(downsample, rel=1e-3)
    truth = open_slide(slide_path).read_region((x, y), (320, 200), mpp=MPP * scale)
    as_is = difference(pixels, truth)
    assert as_is < 0.4 * min(difference(pixels, truth[::-1]), difference(pixels, truth[:, ::-1]))
    steps = [(dx, dy) for dx in range(-3, 4) for dy in range(-3, 4)]
    inner = truth[3:-3, 3:-3]
    best = min(steps, key=lambda s: difference(pixels[3 + s[1] : 197 + s[1], 3 + s[0] : 317 + s[0]], inner))
    assert max(map(abs, best)) <= (0 if downsample == 1 else 1)


def test_linked_viewers_follow_and_little_goes_up(linked):
    linked.python(f"a.go_to((3000, 2200), mpp={MPP * 2})")
    linked.sharp()
    linked.page.wait_for_timeout(400)
    x, y, width, height = linked.frame()
    before, sent, asked = linked.box(), linked.sent, len(linked.tiles)
    linked.page.mouse.move(x + width / 2, y + height / 2)
    linked.page.mouse.down()
    linked.page.mouse.move(x + width / 2 - 200, y + height / 2 - 60, steps=6)
    linked.page.mouse.up()
    linked.sharp()
    linked.page.wait_for_timeout(500)
    after = linked.box()
    assert after[0] - before[0] == pytest.approx(400, abs=4)
    assert after[1] - before[1] == pytest.approx(120, abs=4)
    assert linked.box(1)[:2] == pytest.approx(after[:2], abs=1)
    assert linked.sent - sent < 5000
    assert len(linked.tiles) > asked
    seen = linked.python("print(round(a.view.box_l0.x), round(b.view.box_l0.x))").split()
    assert [int(v) for v in seen] == pytest.approx([after[0]] * 2, abs=2)


def test_wheel_keyboard_and_home(linked):
    linked.python(f"a.go_to((3000, 2200), mpp={MPP * 2})")
    linked.sharp()
    x, y, width, height = linked.frame()
    before = linked.box()
    linked.page.mouse.move(x + width / 4, y + height / 4)
    linked.page.mouse.wheel(0, -300)
    linked.page.wait_for_timeout(300)
    zoomed = linked.box()
    assert zoomed[2] - zoomed[0] < before[2] - before[0]
    at = [b[0] + (b[2] - b[0]) / 4 for b in (before, zoomed)]  # what is under the pointer stays there
    assert at[0] == pytest.approx(at[1], abs=8)
    linked.page.mouse.click(x + width / 2, y + height / 2)
    for key, moves in (
        ("ArrowRight", lambda b, a: a[0] > b[0]),
        ("ArrowDown", lambda b, a: a[1] > b[1]),
        ("+", lambda b, a: a[2] - a[0] < b[2] - b[0]),
    ):
        before = linked.box()
        linked.page.keyboard.press(key)
        linked.page.wait_for_timeout(150)
        assert moves(before, linked.box()), key
    linked.page.keyboard.press("3")
    linked.page.wait_for_timeout(150)
    assert linked.js("v.readout.textContent").startswith("20×")
    assert linked.js("v.scale") == pytest.approx(20 * MPP / 10)
    linked.page.keyboard.press("0")
    linked.page.keyboard.press("0")  # restarts the kernel where JupyterLab sees it
    linked.page.wait_for_timeout(300)
    home = linked.box()
    assert home[0] <= 0
    assert home[1] <= 0
    assert home[2] >= 6144
    assert home[3] >= 4608
    assert linked.page.locator(".jp-Dialog").count() == 0


@pytest.mark.parametrize("subshells", ["perCommTarget", "disabled"])
def test_tiles_arrive_while_a_cell_runs(linked, subshells):
    linked.subshells(subshells)
    linked.python(f"a.go_to((1500, 1200), mpp={MPP * 2})")
    linked.sharp()
    linked.page.evaluate(
        "(run) => { window.asleep = true; eval(run)('time.sleep(6)').then(() => { window.asleep = false; }); }",
        RUN,
    )
    linked.page.wait_for_timeout(300)
    x, y, width, height = linked.frame()
    start = time.time()
    linked.page.mouse.move(x + width / 2, y + height / 2)
    linked.page.mouse.wheel(0, -600)
    linked.page.wait_for_timeout(100)
    linked.sharp()
    pixels, (x0, y0, scale) = linked.crop()
    assert time.time() - start < 5.5
    assert linked.page.evaluate("() => window.asleep")
    assert np.ptp(pixels) > 30
    linked.page.wait_for_function("() => !window.asleep", timeout=20_000)
    assert scale < 1.9 and np.isfinite([x0, y0]).all()  # noqa: PT018


def test_python_hears_the_page_whichever_thread_spoke_last(linked):
    """ipykernel would send what the page says to the thread that spoke last: a busy one, or one that is gone."""
    linked.subshells("perCommTarget")
    linked.python(f"a.go_to((1500, 1200), mpp={MPP * 2})")
    linked.sharp()
    linked.page.evaluate(
        "([run, code]) => { eval(run)(code).then((text) => { window.heard = text.trim(); }); }",
        [
            RUN,
            "a.go_to((2000, 1500)); seen = []\n"
            "for _ in range(50): time.sleep(0.05); seen.append(round(a.view.box_l0.x))\n"
            "print(seen[0] - seen[-1])",
        ],
    )
    linked.page.wait_for_timeout(700)
    linked.js("v.go(v.centre[0] - 300, v.centre[1])")  # while the cell runs that has just spoken
    linked.page.wait_for_function("() => window.heard !== undefined", timeout=20_000)
    assert linked.page.evaluate("() => window.heard") == "300"
    linked.subshells("disabled")  # the subshell that has answered is closed
    linked.page.wait_for_timeout(500)
    x = round(linked.box()[0])
    linked.js("v.go(v.centre[0] + 200, v.centre[1])")
    linked.until(f"print(abs(a.view.box_l0.x - {x + 200}) < 2)", "True")
    linked.subshells("perCommTarget")


def test_a_lasso_selects_patches_and_chart_and_back(linked):
    linked.python("a.home(); a.select([])")
    linked.sharp()
    linked.page.wait_for_timeout(500)
    linked.tool("LassoSelectTool")
    corners = [(100, 100), (1100, 100), (1100, 1100), (100, 1100), (100, 100)]
    linked.page.mouse.move(*linked.screen(*corners[0]))
    linked.page.mouse.down()
    for corner in corners[1:]:
        linked.page.mouse.move(*linked.screen(*corner), steps=4)
    linked.page.mouse.up()
    linked.until(
        "print(sorted(zip(a.selection['x_l0'].tolist(), a.selection['y_l0'].tolist())))",
        "[(0, 0), (0, 512), (512, 0), (512, 512)]",
    )
    chosen = json.loads(linked.python("print(a.selection.index.tolist())"))
    linked.page.wait_for_function(
        "(n) => Bokeh.documents.flatMap(d => [...d._all_models.values()])"
        ".some(m => m.type === 'Selection' && m.indices.length === n)",
        arg=len(chosen),
        timeout=5000,
    )
    linked.page.locator(".bk-Figure").last.scroll_into_view_if_needed()
    linked.page.wait_for_timeout(200)
    chart = linked.page.evaluate(
        "() => { const f = Bokeh.documents.flatMap(d => d.roots()).find(r => r.type === 'Figure' && !r.pathkit);"
        " const v = Bokeh.index.find_one(f), b = v.canvas_view.el.getBoundingClientRect(), s = (x, y) =>"
        " [b.x + v.frame.x_scale.compute(x), b.y + v.frame.y_scale.compute(y)];"
        " return [s(19.5, 19.5), s(23.5, 23.5)]; }"
    )
    linked.page.mouse.move(*chart[0])
    linked.page.mouse.down()
    linked.page.mouse.move(*chart[1], steps=5)
    linked.page.mouse.up()
    linked.until("print(a.selection.index.tolist())", "[20, 21, 22, 23]")
    linked.page.wait_for_timeout(300)
    assert linked.js(
        "v.figure.renderers.some(r => r.data_source?.columns().includes('left') && r.data_source.get('left').length === 4)"
    )
    linked.tool("PanTool")


def test_a_drawn_polygon_comes_back_to_a_pixel(linked):
    linked.page.evaluate(f"() => {VIEWERS}.at(0).plot.el.scrollIntoView({{block: 'nearest'}})")
    linked.python(f"a.go_to((3000, 2200), mpp={MPP})")
    linked.sharp()
    linked.page.wait_for_timeout(300)
    linked.tool("PolyDrawTool")
    assert "Click corner by corner" in linked.js("v.line.textContent")
    corners = [(2850, 2100), (3150, 2100), (3150, 2300), (2850, 2300)]
    shown = []
    for i, corner in enumerate(corners):
        x, y = (round(v) for v in linked.screen(*corner))
        x0, y0, width, _ = linked.frame()
        box = linked.box()
        scale = (box[2] - box[0]) / width
        shown.append((box[0] + (x - x0) * scale, box[1] + (y - y0) * scale))
        linked.page.mouse.move(x, y, steps=3)
        linked.page.mouse.click(x, y, click_count=1 if i < 3 else 2, delay=20)
        if i == 1:
            linked.page.wait_for_timeout(500)  # the first two corners quickly, one after the other
            assert linked.python("print(len(a.drawn))") == "0"  # not before it is finished
    linked.until("print(len(a.drawn), a.drawn['class'].tolist())", "1 ['tumour']")
    linked.page.wait_for_timeout(300)
    got = np.array(
        json.loads(linked.python("print(json.dumps(shapely.get_coordinates(a.drawn.geometry[0]).tolist()))"))
    )
    for corner in shown:
        assert np.hypot(*(got - corner).T).min() < 1
    area = float(linked.python("print(a.drawn.area.iloc[0])"))
    assert area == pytest.approx(300 * 200, rel=0.02)
    again = "from pathkit import read_annotations; print(read_annotations(a.save_drawn('d.geojson')).area.iloc[0])"
    assert float(linked.python(again)) == pytest.approx(area, rel=1e-6)
    assert len(got) == 5  # four corners, and the first again
    linked.page.keyboard.press("Control+z")  # one step
    linked.until("print(len(a.drawn))", "0")
    linked.page.mouse.click(*linked.screen(2900, 2150))
    linked.page.mouse.move(*linked.screen(2950, 2190))
    linked.page.keyboard.press("Control+z")  # what is being drawn
    linked.page.wait_for_timeout(400)
    assert linked.js("v.drawn.areas.get('xs').length") == 0
    for corner in ((2900, 2150), (2950, 2150), (2950, 2190)):
        linked.page.mouse.click(*linked.screen(*corner))
        linked.page.wait_for_timeout(400)
    linked.page.mouse.move(*linked.screen(2800, 2000))
    linked.page.keyboard.press("Enter")
    linked.until("print(len(a.drawn), 900 < a.drawn.area.sum() < 1100)", "1 True")
    linked.page.keyboard.press("Control+z")
    linked.until("print(len(a.drawn))", "0")
    linked.tool("PanTool")


def test_box_point_freehand_edit_delete_and_undo(linked):
    mouse, keyboard = linked.page.mouse, linked.page.keyboard
    linked.python(f"a.drawn = a.drawn.iloc[:0]; a.go_to((3000, 2200), mpp={MPP})")
    linked.sharp()

    def at(x, y):
        mouse.move(*linked.screen(x, y), steps=3)
        linked.page.wait_for_timeout(150)

    def drag(*corners):
        at(*corners[0])
        mouse.down()
        for corner in corners[1:]:
            at(*corner)
        mouse.up()
        linked.page.wait_for_timeout(300)

    linked.tool("BoxEditTool")
    assert "Drag from corner to corner" in linked.js("v.line.textContent")
    drag((2900, 2150), (2960, 2180), (3000, 2200))
    linked.until("print(a.drawn.geom_type.tolist())", "['Polygon']")
    bounds = json.loads(linked.python("print(a.drawn.total_bounds.tolist())"))
    assert bounds == pytest.approx([2900, 2150, 3000, 2200], abs=1.5)
    drag((2950, 2175), (2955, 2180), (2970, 2185))  # moved
    linked.until("print(a.drawn.total_bounds.round(-1).tolist())", "[2920.0, 2160.0, 3020.0, 2210.0]")
    linked.tool("PointDrawTool")
    at(3050, 2100)
    mouse.click(*linked.screen(3050, 2100))
    linked.until("print(a.drawn.geom_type.tolist())", "['Polygon', 'Point']")
    linked.tool("FreehandDrawTool")
    drag((3100, 2250), (3200, 2250), (3200, 2320), (3100, 2320), (3100, 2255))
    linked.until("print(len(a.drawn))", "3")
    area = float(linked.python("print(a.drawn.area.max())"))
    assert area == pytest.approx(100 * 70, rel=0.1)
    linked.tool("PolyEditTool")
    mouse.click(*linked.screen(3150, 2285))
    linked.page.wait_for_timeout(400)
    drag((3200, 2320), (3220, 2340), (3240, 2360))
    end = time.time() + 5
    while (grown := float(linked.python("print(a.drawn.area.max())"))) <= area and time.time() < end:
        time.sleep(0.1)
    assert grown > area + 500
    linked.tool("PointDrawTool")
    mouse.click(*linked.screen(3050, 2100))
    linked.page.wait_for_timeout(200)
    keyboard.press("Backspace")
    linked.until("print('Point' in a.drawn.geom_type.tolist())", "False")
    keyboard.press("Control+z")
    linked.until("print('Point' in a.drawn.geom_type.tolist())", "True")
    linked.python("a.drawn = a.drawn.iloc[:0]")
    linked.tool("PanTool")


def test_minimap_cross_hair_jump_full_screen_and_home(linked):
    linked.python(f"a.go_to((3000, 2200), mpp={MPP})")
    linked.sharp()
    middle = "v.centre.map(Math.round)"
    x, y, width, height = linked.js(
        "(() => { const b = v.map.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    linked.page.mouse.click(x + width / 4, y + height / 4)
    linked.page.wait_for_timeout(200)
    assert linked.js(middle) == pytest.approx(
        [6144 / 4, 4608 / 4], abs=60
    )  # a pixel of the map is 44 of the slide
    linked.page.mouse.move(*linked.screen(1500, 1200), steps=3)
    linked.page.wait_for_timeout(200)
    assert "x 1,500, y 1,200 px" in linked.js("v.readout.textContent")
    assert "750, 600 µm" in linked.js("v.readout.textContent")
    lines = linked.js(
        "[v.lines.x.hidden, parseFloat(v.lines.x.style.left), v.frame.left + (1500 - v.xr.start) * v.scale]",
        1,
    )
    assert lines[0] is False
    assert lines[1] == pytest.approx(lines[2], abs=1)
    linked.page.get_by_placeholder("x, y in level-0 px").first.fill("4000, 1000")
    linked.page.keyboard.press("Enter")
    linked.page.wait_for_function(
        f"() => {VIEWERS}.at(0).centre.map(Math.round).join() == '4000,1000'", timeout=8000
    )
    linked.page.locator(".pk-full").first.click()
    linked.page.wait_for_function(f"() => document.fullscreenElement && {VIEWERS}.at(0).frame.height > 1000")
    assert linked.js(middle) == pytest.approx([4000, 1000], abs=2)
    linked.page.wait_for_timeout(300)
    linked.page.keyboard.press("f")
    linked.page.wait_for_function(f"() => !document.fullscreenElement && {VIEWERS}.at(0).frame.height < 500")
    linked.js(
        "v.figure.toolbar.tools.find(t => t.description?.startsWith('Whole slide')).callback.execute(v.figure)"
    )
    linked.page.wait_for_timeout(300)
    assert linked.box()[2] >= 6144


def test_a_pinch_follows_the_fingers(linked):
    """By two fingers on the screen, and on a trackpad, which the browser tells as a wheel with ctrl."""
    linked.python(f"a.go_to((3000, 2000), mpp={MPP * 4}); a.select([3])")
    linked.sharp()
    touch = linked.page.context.new_cdp_session(linked.page)
    x, y = linked.screen(3100, 1900)  # away from the middle
    before = linked.js("v.scale")
    for kind, spread, shift in (("Start", 20, 0), ("Move", 45, 15), ("Move", 80, 30), ("End", 0, 0)):
        points = [{"x": x + shift + side * spread, "y": y, "id": i} for i, side in enumerate((-1, 1))]
        touch.send(
            "Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points if spread else []}
        )
        linked.page.wait_for_timeout(80)
    assert linked.js("v.scale") == pytest.approx(4 * before, rel=0.02)
    assert linked.screen(3100, 1900) == pytest.approx((x + 30, y), abs=2)  # it moved with the hand
    linked.page.mouse.move(x, y)
    held = linked.js(f"[v.xr.start + ({x} - {linked.frame()[0]}) / v.scale, v.scale]")
    linked.page.keyboard.down("Control")
    for _ in range(4):
        linked.page.mouse.wheel(0, np.log(2) * 100 / 4)
    linked.page.keyboard.up("Control")
    linked.page.wait_for_timeout(200)
    after = linked.js(f"[v.xr.start + ({x} - {linked.frame()[0]}) / v.scale, v.scale]")
    assert after == pytest.approx([held[0], held[1] / 2], rel=0.01)
    assert linked.page.evaluate("() => window.visualViewport.scale") == 1
    assert linked.python("print(a.selection.index.tolist())") == "[3]"  # no click, no pan besides
    linked.sharp()
    linked.page.mouse.down()
    linked.page.mouse.move(x + 100, y, steps=4)
    linked.page.mouse.up()
    linked.page.wait_for_timeout(200)
    assert linked.box()[0] == pytest.approx(after[0] - (x + 100 - linked.frame()[0]) / after[1], abs=3)


def test_a_page_that_is_loaded_again_shows_where_it_was(linked):
    linked.python(f"a.go_to((4200, 900), mpp={MPP * 2})")
    linked.sharp()
    linked.page.wait_for_timeout(300)
    before = linked.box()
    linked.page.keyboard.press("Escape")
    linked.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    linked.page.wait_for_timeout(1000)
    linked.page.goto(linked.url.replace("reset&", ""))
    linked.page.wait_for_function(KERNEL, timeout=60_000)
    linked.ready(2)
    assert linked.box()[:2] == pytest.approx(before[:2], abs=3)
    assert linked.python("print(len(patches))") == "108"


def test_tiles_by_the_kernel_where_there_is_no_extension(notebook, slide_path):
    cell = "os.environ.pop(registry.FOLDER)\nslide = open_slide('slide.tif')\na = SlideViewer(slide, height_px=420)\na"
    page = notebook("fallback", SETUP, cell, viewers=1, subshells=False)
    assert page.js("v.tiles[0].source") == "kernel"
    assert "Tiles by the kernel" in page.js("v.line.textContent")
    page.python(f"a.go_to((2803, 1907), mpp={MPP})")
    page.sharp()
    pixels, (x, y, scale) = page.crop()
    truth = open_slide(slide_path).read_region((x, y), (320, 200), mpp=MPP * scale)
    assert difference(pixels, truth) < 0.4 * difference(pixels, truth[::-1])
    assert page.tiles == []
    page.page.evaluate("(run) => { eval(run)('time.sleep(6)'); }", RUN)
    page.js("v.go(500, 400, 1)")
    line = f"() => {VIEWERS}.at(0).line.textContent.startsWith('{{}}')"
    page.page.wait_for_function(line.format("No tile for 3 s: the kernel is busy"), timeout=8000)
    page.page.wait_for_function(line.format("Tiles by the kernel"), timeout=20_000)  # its cell has ended
    page.sharp()
    page.js(
        "(() => { const t = v.tiles[0], answer = t.answer;"
        " t.answer = (key) => { t.lost = key; t.answer = answer; }; })()"
    )
    page.js("v.go(5000, 4000, 1)")
    page.page.wait_for_function(line.format("No tile for 3 s"), timeout=8000)
    page.sharp(timeout=20_000)  # what was lost is asked for again
    assert page.js("Boolean(v.tiles[0].lost)")
    assert page.js("v.line.textContent") == "Tiles by the kernel"


TWO_SLIDES = """
from pathkit.view import compare
slide = open_slide("slide.tif")
other = open_slide(255 - slide.read_region((0, 0), (3072, 2304), mpp=2 * slide.mpp), mpp=2 * slide.mpp)
a = compare(slide, other)
a.add(Patches(pd.DataFrame({"x_l0": [2560], "y_l0": [2048], "size_px": 512, "mpp": slide.mpp, "slide_id": "s"})))
display(a)
a.select([0])
a.go_to((3000, 2200), mpp=slide.mpp)
"""


def test_two_slides_by_swipe_and_blink_and_what_was_said_before_the_page_was_there(notebook, slide_path):
    """The second slide is in memory: its tiles come from the kernel, those of the first from the server."""
    page = notebook("two", SETUP, TWO_SLIDES, viewers=1)
    page.page.wait_for_function(f"() => {VIEWERS}.at(0).scale == 1", timeout=20_000)
    page.page.wait_for_timeout(100)
    page.page.wait_for_function(f"() => {VIEWERS}.at(0).tiles.every(t => t.sharp)", timeout=20_000)
    assert page.js("v.centre.map(Math.round)") == [3000, 2200]
    assert page.js(
        "v.figure.renderers.some(r => r.data_source?.columns().includes('left') && r.data_source.get('left').length)"
    )
    page.page.wait_for_timeout(300)
    slide = open_slide(slide_path)

    def shown():
        """Which slide each half of the crop shows, by how far it is from either; the second is the first's negative."""
        pixels, (x, y, scale) = page.crop()
        truth = slide.read_region((x, y), (320, 200), mpp=MPP * scale).astype(int)
        names = []
        for part in (slice(0, 150), slice(170, 320)):
            first, second = (difference(pixels[:, part], t[:, part]) for t in (truth, 255 - truth))
            names.append("first" if first < 0.2 * second else "second" if second < 0.2 * first else "neither")
        return names

    assert shown() == ["first", "second"]
    x, y, width, height = page.frame()
    page.page.mouse.move(x + width / 2, y + height / 3)
    page.page.mouse.down()
    page.page.mouse.move(x + 40, y + height / 3, steps=4)
    page.page.mouse.up()
    page.page.wait_for_timeout(400)
    assert shown() == ["second", "second"]
    page.python("a.compare('blink')")
    page.page.wait_for_timeout(300)
    seen = set()
    for _ in range(12):
        seen.add(page.js("v.tiles[1].hidden"))
        page.page.wait_for_timeout(200)
    assert seen == {True, False}


def test_training_is_watched_and_steered_while_cells_run(notebook, slide_path):
    cell = """
from pathkit.geometry import Raster
from pathkit.view import TrainingMonitor
slide = open_slide("slide.tif")
monitor = TrainingMonitor(slide, lambda level: Raster(np.full((48, 64), level, np.float32), 48.0))
said = []
def train():
    for epoch in range(200):
        said.append(monitor(epoch % 2, {"epoch": epoch, "train_loss": 1 / (epoch + 1), "val_loss": 1.0}))
        if said[-1]["stop"]:
            return "stopped"
        time.sleep(0.3)
display(monitor)
_ = monitor.run(train)
"""
    page = notebook("training", SETUP, cell, viewers=1)
    page.page.wait_for_function(
        "() => Bokeh.documents.flatMap(d => [...d._all_models.values()])"
        ".some(m => m.data && m.columns?.().includes('epoch') && m.get('epoch').length > 2)",
        timeout=20_000,
    )
    assert page.python("print(2 + 2)") == "4"  # a cell runs meanwhile
    page.page.get_by_role("button", name="Pause").click()
    page.page.wait_for_timeout(1500)
    page.python("n = len(monitor.history); monitor.rate = 0.1; time.sleep(1)")
    assert page.python("print(len(monitor.history) - n, said[-1]['lr_factor'])") == "0 1.0"
    page.page.get_by_role("button", name="Pause").click()
    page.until("print(len(monitor.history) > n and said[-1]['lr_factor'] == 0.1)", "True")
    shades = set()
    for _ in range(14):
        pixels, _ = page.crop()
        shades.add(bool(pixels[..., 1].mean() > pixels[..., 2].mean()))  # yellow, or violet
        page.page.wait_for_timeout(150)
    assert shades == {True, False}  # the map is drawn anew
    page.page.get_by_role("button", name="Stop").click()
    assert page.python("print(monitor.result(20))") == "stopped"


def test_notebook_7(notebook, slide_path):
    pytest.importorskip("notebook")
    code = (
        "a, b = (SlideViewer(s, height_px=400) for s in (open_slide('slide.tif'),"
        " open_slide(np.full((4000, 3000, 3), 150, np.uint8))))\ndisplay(a, b)"
    )
    page = notebook("classic", SETUP, code, viewers=2, app="notebooks")
    assert page.js("v.tiles[0].source") == "server"
    assert page.tiles != []
    page.python(f"a.go_to((2803, 1907), mpp={MPP})")
    page.sharp()
    pixels, (x, y, _) = page.crop()
    truth = open_slide(slide_path).read_region((x, y), (320, 200), mpp=MPP)
    assert difference(pixels, truth) < 0.4 * difference(pixels, truth[::-1])

    x0, y0, x1, y1 = page.box(1)  # a slide taller than the frame is seen whole
    assert x0 <= 0 <= 3000 <= x1
    assert y0 <= 0 <= 4000 <= y1
    assert y1 - y0 < 4100
    for scale in (0.3, 0.73, 1.27):  # tiles of one grey leave no seam at any scale
        page.js(f"v.go(1536, 2048, {scale})", 1)  # the middle is a corner of four tiles
        page.sharp(1)
        grey, _ = page.crop(1)
        assert np.ptp(grey) <= 1


OVERLAYS = """
import geopandas
from pathkit.view import Mask, Points, Polygons
slide = open_slide(np.full((2000, 3000, 3), 255, np.uint8), mpp=0.5)
cells = np.zeros((20, 30), bool)
cells[9:11, 12:16] = True  # 100 level-0 pixels each
square = geopandas.GeoDataFrame({"class": ["a"]}, geometry=[shapely.box(1300, 1200, 1500, 1300)])
xs, ys = np.meshgrid(np.linspace(1600, 1700, 60), np.linspace(900, 960, 60))
one = pd.DataFrame({"x_l0": [1750.0], "y_l0": [1200.0]})
many = pd.DataFrame({"x_l0": xs.ravel(), "y_l0": ys.ravel()})
colour = lambda table, name: Points(table.assign(**{"class": "a"}), colours={"a": name}, name=name, size_px=12, opacity=1.0)
a = SlideViewer(slide, height_px=600, layers=[
    Mask(cells, mpp=50.0, colour="#ff0000", opacity=1.0), Polygons(square, colours={"a": "#0000ff"}, fill=0.0),
    colour(one, "#00ff00"), colour(many, "#ff00ff")])
a
"""


@pytest.mark.parametrize("scale", [0.4, 0.73, 1.0])
def test_overlays_are_within_a_pixel_of_their_place(overlays, scale):
    overlays.js(f"v.go(1500, 1100, {scale})")
    overlays.sharp()
    overlays.page.wait_for_timeout(700)  # the picture of the many comes from Python
    x, y, width, height = overlays.frame()
    # The browser puts the canvas on whole pixels of the screen.
    clip = {"x": int(x + 0.5), "y": int(y + 0.5), "width": int(width), "height": int(height)}
    seen = np.asarray(Image.open(io.BytesIO(overlays.page.screenshot(clip=clip))).convert("RGB")).astype(int)
    places = {  # colour: the box that it fills, in level-0 pixels
        (255, 0, 0): (1200, 900, 1600, 1100),
        (0, 0, 255): (1300, 1200, 1500, 1300),
        (0, 255, 0): (1750, 1200, 1750, 1200),
        (248, 0, 248): (1600, 900, 1700, 960),
    }
    for colour, box in places.items():
        near = 120 if colour[2] == 248 else 25  # fewer points are paler
        rows, cols = np.nonzero(np.abs(seen - colour).max(2) < near)
        middle = (cols.min() + cols.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
        want = overlays.screen((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        assert middle == pytest.approx((want[0] - x, want[1] - y), abs=1.01), colour
        if colour == (255, 0, 0):  # its edges too
            assert np.ptp(cols) + 1 == pytest.approx(400 * scale, abs=1.5)
            assert np.ptp(rows) + 1 == pytest.approx(200 * scale, abs=1.5)


@pytest.fixture(scope="module")
def overlays(lab, browser):
    page = Page(lab, browser, "overlays", SETUP, OVERLAYS, viewers=1)
    yield page
    page.close()


def test_a_refused_slide_comes_from_the_kernel(notebook, slide_path):
    cell = "a = SlideViewer(open_slide('slide.tif'))\nw = a.widget()\nregistry.unregister(a._live.ids[0])\na"
    page = notebook("refused", SETUP, cell, viewers=1)
    assert page.js("v.tiles[0].source") == "kernel"
    assert page.tiles != []  # it was asked first
    page.python("a.close()")


def test_a_page_without_python_has_all_rows_and_asks_nobody(browser, slide_path, tmp_path):
    xs, ys = np.meshgrid(range(0, 6144, 512), range(0, 4608, 512))
    rows = pd.DataFrame({"x_l0": xs.ravel(), "y_l0": ys.ravel(), "size_px": 512, "mpp": MPP, "slide_id": "s"})
    slide = open_slide(slide_path)
    with SlideViewer(slide, layers=[Patches(rows, opacity=0.0)]) as viewer:
        viewer.go_to((3000, 2200), mpp=MPP)  # a few patches are in view
        file = viewer.to_html(tmp_path / "page.html", max_mb=30)
    page, asked = browser.new_page(), []
    page.on("request", lambda r: asked.append(r.url.split(":")[0]))
    page.goto(file.as_uri())
    page.wait_for_function(f"() => window.Bokeh && {VIEWERS}[0]?.tiles[0].sharp", timeout=30_000)
    live = Viewers(page)
    pixels, (x, y, scale) = live.crop()
    truth = slide.read_region((x, y), (320, 200), mpp=MPP * scale)
    assert difference(pixels, truth) < 0.4 * difference(pixels, truth[::-1])
    squares = "v.figure.renderers.find(r => r.data_source?.columns().includes('side'))"
    assert live.js(f"{squares}.data_source.get('x').length") == 108
    page.locator("input[type=checkbox]").uncheck()
    page.wait_for_function(f"() => {{ const v = {VIEWERS}[0]; return !{squares}.visible; }}", timeout=5000)
    live.js("v.home()")
    live.sharp()
    page.close()
    assert set(asked) <= {"file", "data", "blob"}
