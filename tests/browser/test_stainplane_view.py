"""The stain plane in JupyterLab: a dragged stain recolours the field."""

from __future__ import annotations

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

CELL = """
import numpy as np
from pathkit import stain
from pathkit.view import StainPlane

amounts = np.kron(np.random.default_rng(0).uniform(0.0, 0.7, (20, 20, 2)), np.ones((10, 10, 1)))
field = stain.combine(amounts, stain.MACENKO, white=245)
plane = StainPlane(field, stain.fit(field, white=245), truth=stain.MACENKO)
plane
"""
KERNEL_IDLE = """() => {
    const kernel = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === 'connected' && kernel?.status === 'idle';
}"""
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
def test_a_dragged_stain_recolours_the_field(lab, browser, tmp_path):
    folder, address, token = lab
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(CELL)], metadata=kernel), folder / "plane.ipynb")
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    errors, hosts = [], set()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: hosts.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
    page.goto(f"{address}lab/tree/plane.ipynb?reset&token={token}")
    page.wait_for_selector(".jp-NotebookPanel-toolbar", timeout=90_000)
    page.wait_for_function(KERNEL_IDLE, timeout=90_000)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    line = page.locator(".widget-html-content", has_text="to the painted truth")
    line.wait_for(timeout=90_000)
    page.wait_for_function(READY, timeout=60_000)
    page.wait_for_timeout(1500)
    said, pictures = line.inner_text(), page.evaluate(PICTURES)
    assert len(pictures) == 4
    page.screenshot(path=tmp_path / "before.png")
    (hx, hy), (ex, ey) = page.evaluate(PLACES)
    page.mouse.move(ex, ey)
    page.mouse.down()
    page.mouse.move(ex + 40, ey + 60, steps=8)
    page.mouse.up()
    page.wait_for_function("(said) => !document.body.innerText.includes(said)", arg=said, timeout=30_000)
    page.wait_for_timeout(800)
    page.screenshot(path=tmp_path / "after.png")
    after = page.evaluate(PICTURES)
    assert sum(a == b for a, b in zip(pictures, after, strict=True)) == 1  # the field itself
    (hx2, hy2), (ex2, ey2) = page.evaluate(PLACES)
    assert (hx2, hy2) == pytest.approx((hx, hy), abs=1)
    assert (ex2, ey2) == pytest.approx((ex + 40, ey + 60), abs=3)
    page.close()
    assert errors == []
    assert {host.split(":")[0] for host in hosts} == {"127.0.0.1"}
