"""The stain plane in JupyterLab: a dragged stain recolours the field."""

from __future__ import annotations

import pytest

CELL = """
import numpy as np
from pathkit import stain
from pathkit.view import StainPlane

amounts = np.kron(np.random.default_rng(0).uniform(0.0, 0.7, (20, 20, 2)), np.ones((10, 10, 1)))
field = stain.combine(amounts, stain.MACENKO, white=245)
plane = StainPlane(field, stain.fit(field, white=245), truth=stain.MACENKO)
plane
"""
#: The figure with the two handles, and their source.
PLANE = """
    const views = (v) => [v, ...(v.child_views ?? []).flatMap(views)];
    const handles = (v) => (v.model.renderers ?? []).map(r => r.data_source).find(s => s?.get_column?.('name'));
    const view = [...window.Bokeh.index].flatMap(views).find(handles);
"""
READY = f"() => {{ if (!window.Bokeh?.index) return false; {PLANE} return view !== undefined; }}"
#: Where the handles are on the page.
PLACES = f"""() => {{ {PLANE}
    const data = handles(view).data, frame = view.frame, box = view.canvas_view.el.getBoundingClientRect();
    return [0, 1].map(i => [box.x + frame.x_scale.compute(data.x[i]), box.y + frame.y_scale.compute(data.y[i])]);
}}"""
#: Sums of the four pictures' pixels.
PICTURES = """() => window.Bokeh.documents.flatMap(d => [...d._all_models.values()])
    .filter(m => m.data?.image?.length).map(m => [...m.data.image[0]].reduce((a, b) => (a + b) % 1e9, 0))"""


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_a_dragged_stain_recolours_the_field(notebook):
    page = notebook("plane", CELL).page
    line = page.locator(".widget-html-content", has_text="to the painted truth")
    line.wait_for(timeout=90_000)
    page.wait_for_function(READY, timeout=60_000)
    page.wait_for_timeout(1500)
    said, pictures = line.inner_text(), page.evaluate(PICTURES)
    assert len(pictures) == 4
    (hx, hy), (ex, ey) = page.evaluate(PLACES)
    page.mouse.move(ex, ey)
    page.mouse.down()
    page.mouse.move(ex + 40, ey + 60, steps=8)
    page.mouse.up()
    page.wait_for_function("(said) => !document.body.innerText.includes(said)", arg=said, timeout=30_000)
    page.wait_for_timeout(800)
    after = page.evaluate(PICTURES)
    assert sum(a == b for a, b in zip(pictures, after, strict=True)) == 1  # the field itself
    (hx2, hy2), (ex2, ey2) = page.evaluate(PLACES)
    assert (hx2, hy2) == pytest.approx((hx, hy), abs=1)
    assert (ex2, ey2) == pytest.approx((ex + 40, ey + 60), abs=3)
