"""The grading board in JupyterLab: a moved cut-off moves kappa to what scikit-learn says of the same grades."""

from __future__ import annotations

import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from pathkit.grading import PATTERNS, grade

SHARES = [
    (0.94, 0.06, 0, 0),
    (1, 0, 0, 0),
    (0.5, 0.5, 0, 0),
    (0.5, 0.45, 0.05, 0),
    (0.2, 0, 0.8, 0),
    (0.2, 0, 0.5, 0.3),
]
CONSENSUS = [0, 0, 1, 1, 4, 5]
CELL = f"""
import numpy as np, pandas as pd
from pathkit.geometry import Raster
from pathkit.grading import PATTERNS
from pathkit.slide import open_slide
from pathkit.view import GradingBoard

cores = pd.DataFrame({SHARES}, columns=PATTERNS)
cores["slide_id"], cores["patient_id"], cores["consensus"] = list("abcdef"), [0, 0, 1, 1, 2, 2], {CONSENSUS}
pixels = np.random.default_rng(0).integers(150, 255, (300, 900, 3), dtype=np.uint8)
slides = {{i: open_slide(pixels, mpp=1.0) for i in "abcdef"}}
maps = {{i: Raster(np.arange(27, dtype=np.float32).reshape(3, 9) % 4, 100.0) for i in "abcdef"}}
board = GradingBoard(cores, maps, slides, readers=["consensus"], least_tumour=0.05, least_secondary=0.1)
board
"""
#: The model's grades above the bars, from Bokeh's own models.
GRADES = """() => window.Bokeh.documents.flatMap(d => [...d._all_models.values()])
    .filter(m => m.data && m.data.text && m.data.colour).map(m => [...m.data.text].join(''))"""


def expected(**cut_offs):
    """Grades in the board's order, and kappa as scikit-learn has it."""
    cores = pd.DataFrame(SHARES, columns=list(PATTERNS)).assign(consensus=CONSENSUS)
    grades = grade(cores, **cut_offs)["isup"]
    order = cores.assign(t=1 - cores["benign"]).sort_values(["consensus", "t"], kind="stable").index
    kappa = cohen_kappa_score(grades, CONSENSUS, weights="quadratic", labels=list(range(6)))
    return "".join(map(str, grades[order])), f"consensus {kappa:.2f}"


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_a_moved_cut_off_moves_grades_and_kappa(notebook):
    page = notebook("grading", CELL).page
    before, after = (
        expected(least_tumour=0.05, least_secondary=0.1),
        expected(least_tumour=0.10, least_secondary=0.1),
    )
    assert before != after
    said = page.locator(".widget-html-content", has_text="Quadratic kappa")
    said.wait_for(timeout=90_000)
    assert before[1] in said.inner_text()
    page.wait_for_function("() => window.Bokeh && window.Bokeh.documents.length > 1", timeout=60_000)
    page.wait_for_function(f"() => ({GRADES})().includes('{before[0]}')", timeout=30_000)
    page.wait_for_timeout(1500)
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.focus()
    for _ in range(5):
        handle.press("ArrowRight")
    page.locator(".widget-html-content", has_text=after[1]).wait_for(timeout=30_000)
    page.wait_for_function(f"() => ({GRADES})().includes('{after[0]}')", timeout=30_000)
