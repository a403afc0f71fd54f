"""The threshold view in JupyterLab: it draws, it follows the slider, it needs no network."""

from __future__ import annotations

import pytest

CELL = """
import numpy as np, pandas as pd, shapely
from pathkit.geometry import Raster
from pathkit.view import ThresholdExplorer

slides = pd.DataFrame({"slide_id": ["a", "b"], "label": ["tumour", "normal"], "score": [0.9, 0.4]})
picture = np.full((200, 300, 3), (240, 200, 225), np.uint8)
picture[:100] = (120, 70, 150)
places = {i: Raster(picture, 8.0) for i in "ab"}
heat = {i: Raster(np.linspace(0, 1, 15000).reshape(100, 150).astype(np.float32), 16.0) for i in "ab"}
found = pd.DataFrame({"slide_id": list("aab"), "x_um": [300.0, 1500, 500], "y_um": [300.0, 1000, 500]})
found["score"] = [0.9, 0.6, 0.4]
lesions = pd.DataFrame({"slide_id": ["a"], "lesion_id": ["a-0"], "geometry": [shapely.box(100, 100, 600, 600)]})
explorer = ThresholdExplorer(slides, places, heat, found, lesions)
explorer
"""


#: What is drawn, read from Bokeh's own models: the outcomes of each source that has them.
MARKS = """() => window.Bokeh.documents.flatMap(d => [...d._all_models.values()])
    .filter(m => m.data && m.data.outcome).map(m => [...m.data.outcome].join())"""


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_the_slider_drives_the_view(notebook):
    page = notebook("view", CELL).page
    line = page.locator(".widget-html-content", has_text="at threshold")
    line.wait_for(timeout=90_000)
    assert "a at threshold 0.50: 1 hits, 1 false alarms, 0 lesions missed" in line.inner_text()
    page.wait_for_function("() => window.Bokeh && window.Bokeh.documents.length > 0", timeout=60_000)
    page.wait_for_function(f"() => ({MARKS})().includes('hit,false alarm')", timeout=30_000)
    page.wait_for_timeout(1500)
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.focus()
    for _ in range(20):
        handle.press("ArrowRight")
    page.wait_for_function(f"() => ({MARKS})().includes('hit')", timeout=30_000)
    page.locator(".widget-html-content", has_text="a at threshold 0.70: 1 hits, 0 false alarms").wait_for(
        timeout=30_000
    )
    page.locator(".widget-dropdown select").first.select_option(label="b (normal)")
    page.wait_for_function(f"() => ({MARKS})().includes('')", timeout=30_000)
