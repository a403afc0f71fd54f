"""The boards of instances and of immunohistochemistry in JupyterLab: one interaction each, and what it changes."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

SETUP = """
import numpy as np, pandas as pd
from pathkit.scoring import positive_share
from pathkit.slide import open_slide
from pathkit.view import InstanceBoard, StainBoard

rng = np.random.default_rng(0)
"""
INSTANCES = """
rgb = rng.integers(180, 230, (240, 320, 3)).astype(np.uint8)
truth, found = np.zeros((2, 240, 320), int)
for k in range(6):
    truth[30:50, 20 + 50 * k : 40 + 50 * k] = k + 1
    found[30:50, 20 + 50 * k : 40 + 50 * k] = k + 1 if k > 1 else 0
truth[120:140, 20:40], truth[120:140, 40:60], found[120:140, 20:60] = 8, 9, 8
board = InstanceBoard(rgb, truth, found, mpp=0.5)
board
"""
STAIN = """
cells = {k: pd.DataFrame({"x_um": rng.uniform(0, 160, 60), "y_um": rng.uniform(0, 120, 60), "dab": rng.uniform(0, t, 60)})
         for k, t in (("a", 0.3), ("b", 0.9))}
slide = open_slide(np.full((240, 320, 3), 230, np.uint8), mpp=0.5)
board = StainBoard(slide, cells, {"a": 50, "b": 80}, lambda t: 100 * positive_share(t.level), shown="b", what="index")
board
"""
#: Captions of the gallery, and the colours of the cells, read from Bokeh's models.
CAPTIONS = """() => Bokeh.documents.flatMap(d => [...d._all_models.values()])
    .filter(m => m.data && m.data.caption && m.data.slide).map(m => [...m.data.caption].join()).join(";")"""
NEGATIVE = """() => Math.max(...Bokeh.documents.flatMap(d => [...d._all_models.values()])
    .filter(m => m.data && m.data.stain).map(m => [...m.data.stain].filter(s => s === "negative").length))"""


def test_a_kind_of_error_fills_the_gallery(notebook):
    page = notebook("instances", SETUP, INSTANCES, viewers=1)
    page.page.wait_for_function(f"() => ({CAPTIONS})().includes('missed')", timeout=60_000)
    page.page.locator(".widget-dropdown select").first.select_option(label="merged (2)")
    page.page.wait_for_function(f"() => ({CAPTIONS})() === 'merged,merged'", timeout=60_000)


def test_a_cut_off_recolours_the_cells(notebook):
    page = notebook("stain", SETUP, STAIN, viewers=1)
    page.page.wait_for_function(f"() => ({NEGATIVE})() > 0", timeout=60_000)
    before = page.page.evaluate(NEGATIVE)
    handle = page.page.locator(".widget-slider .noUi-handle").first
    handle.focus()
    for _ in range(10):
        handle.press("ArrowRight")
    page.page.wait_for_function(f"() => ({NEGATIVE})() > {before}", timeout=60_000)
