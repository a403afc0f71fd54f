"""The hot spot board in JupyterLab: an outcome fills the gallery."""

from __future__ import annotations

import pytest

CELL = """
import numpy as np, pandas as pd
from pathkit.slide import open_slide
from pathkit.view import HotSpotBoard

rng = np.random.default_rng(0)
slides = {"a": open_slide(rng.integers(100, 255, (400, 600, 3)).astype(np.uint8), mpp=0.5)}
table = pd.DataFrame({"slide_id": "a", "x_l0": [50, 150, 250, 350], "y_l0": [50, 60, 70, 80], "size_px": 32, "mpp": 0.5,
                      "outcome": ["hit", "false alarm", "miss", "hit"], "score": [0.9, 0.8, 0.1, 0.7]})
board = HotSpotBoard(table, slides, {"a": {"x_um": 100.0, "y_um": 40.0, "radius_um": 30.0, "n": 3, "per_mm2": 1061.0}})
board
"""
#: The gallery's captions, read from Bokeh's own models.
CAPTIONS = """() => [...new Set((window.Bokeh?.documents ?? []).flatMap(d => [...d._all_models.values()])
    .filter(m => m.data?.caption).map(m => [...m.data.caption].join()))]"""


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_an_outcome_fills_the_gallery(notebook):
    page = notebook("spot", CELL).page
    page.get_by_text("hot spot: 3 found, 1061 per mm²").wait_for(timeout=90_000)
    every = "hit 0.90,false alarm 0.80,hit 0.70,miss 0.10"
    page.wait_for_function(f"(text) => ({CAPTIONS})().includes(text)", arg=every, timeout=60_000)
    page.wait_for_timeout(1500)
    page.locator(".widget-toggle-button", has_text="false alarm").click()
    page.wait_for_function(f"(text) => ({CAPTIONS})().includes(text)", arg="false alarm 0.80", timeout=30_000)
    page.wait_for_timeout(800)
    assert every not in page.evaluate(CAPTIONS)
