"""Coordinate lab, magnification ladder, tuner and case board in JupyterLab: one interaction each, and what it changes."""

from __future__ import annotations

import json

import pytest
from live import VIEWERS
from test_viewer import SETUP

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

MAKE = """
import tifffile
from pathkit import tissue_mask
from pathkit.view import CaseBoard, CoordinateLab, PatchLadder, tune
rows, cols = np.mgrid[0:1200, 0:1600]
noise = np.random.default_rng(0).integers(0, 40, (1200, 1600))
disc = (rows - 600) ** 2 + (cols - 800) ** 2 < 480 ** 2
pixels = np.where(disc[..., None], np.stack([150 + noise, 80 + noise, 150 + noise], -1), 243).astype(np.uint8)
tifffile.imwrite("ground.tif", pixels, tile=(256, 256), compression="deflate", photometric="rgb",
                 resolution=(20000, 20000), resolutionunit="CENTIMETER")
slide = open_slide("ground.tif")
xs, ys = np.meshgrid(range(400, 1200, 200), range(200, 1000, 200))
grid = pd.DataFrame({"slide_id": "s", "x_l0": xs.ravel(), "y_l0": ys.ravel(), "size_px": 200, "mpp": slide.mpp})
"""


def page_with(notebook, name, code):
    return notebook(name, SETUP + MAKE, code, viewers=1)


def click(page, x_l0, y_l0):
    page.page.evaluate(f"() => {VIEWERS}.at(0).plot.el.scrollIntoView({{block: 'center'}})")
    page.page.wait_for_timeout(300)
    page.page.mouse.click(*page.screen(x_l0, y_l0))


def test_a_click_gives_the_address_of_that_pixel(notebook):
    page = page_with(notebook, "coordinates", "board = CoordinateLab(slide, size_px=100, mpp=1.0)\nboard")
    click(page, 700, 500)
    for _ in range(60):
        x, y = json.loads(page.python("print(json.dumps(board.place_l0))"))
        if (x, y) != (800, 600):
            break
        page.page.wait_for_timeout(100)
    assert (x, y) == pytest.approx((700, 500), abs=3)
    table = page.page.locator("table.dataframe").first
    page.page.wait_for_function(
        "(t) => [...document.querySelectorAll('table.dataframe')].some(e => e.innerText.includes(t))",
        arg=f"{round(x * 0.5, 3):g}",
        timeout=8000,
    )
    assert "tile of level 0" in table.inner_text()


def test_a_clicked_patch_is_shown_at_all_rungs_with_its_row(notebook):
    page = page_with(notebook, "ladder", "board = PatchLadder(slide, grid, (0.5, 1.0, 2.0))\nboard")
    picture = "() => [...document.querySelectorAll('img')].map(i => i.src).filter(s => s.startsWith('blob:')).join()"
    before = page.page.evaluate(picture)
    click(page, 500, 300)
    page.until("print(board.selection['x_l0'].item(), board.selection['y_l0'].item())", "400 200")
    page.page.wait_for_function(f"(b) => ({picture})() !== b", arg=before, timeout=8000)


def test_a_slider_drives_the_mask(notebook):
    code = (
        "board = tune(tissue_mask, slide, od_threshold=(0.01, 0.6, 0.05), score=lambda m: f'{m.values.mean():.4f} tissue')\n"
        "board"
    )
    page = page_with(notebook, "tuner", code)
    before = float(page.python("print(board.result.values.mean())"))
    assert before == pytest.approx(3.14159 * 480**2 / (1200 * 1600), abs=0.02)
    handle = page.page.locator(".widget-slider .noUi-handle").first
    handle.focus()
    for _ in range(90):
        handle.press("ArrowRight")
    page.until("print(board.result.values.any())", "False", timeout=20)
    page.page.locator(".widget-label", has_text="0.0000 tissue").wait_for(timeout=8000)


def test_the_case_board_shows_its_panes_and_its_slide_moves(notebook):
    code = (
        "viewer = SlideViewer(slide, height_px=300)\n"
        "board = CaseBoard({'slide': viewer, 'numbers': grid.head(3), 'words': 'A synthetic case.'}, title='The case')\nboard"
    )
    page = page_with(notebook, "case", code)
    for words in ("The case", "A synthetic case."):
        page.page.get_by_text(words, exact=False).first.wait_for(timeout=8000)
    page.python("viewer.go_to((800, 600), mpp=0.5)")
    page.page.wait_for_timeout(500)
    x0, y0, x1, y1 = page.box()
    assert [(x0 + x1) / 2, (y0 + y1) / 2] == pytest.approx([800, 600], abs=2)
