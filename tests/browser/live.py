"""A notebook in a real JupyterLab, driven by a real browser: what the tests of the views have in common."""

from __future__ import annotations

import io
import json
import time
import urllib.request

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

#: A kernel that is there and idle. JupyterLab asks for one, and runs nothing, when cells are run before that.
KERNEL = """() => {
    const kernel = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === 'connected' && kernel?.status === 'idle';
}"""
RUN = """(code) => new Promise((done) => {
    let text = "";
    const future = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ code });
    future.onIOPub = (m) => {
        if (m.header.msg_type === "stream") text += m.content.text;
        if (m.header.msg_type === "error") text += m.content.evalue;
    };
    future.done.then(() => done(text));
})"""
#: The viewers of the page, in the order of their making.
VIEWERS = "Bokeh.documents.flatMap(d => d.roots()).filter(r => r.pathkit).map(r => r.pathkit)"


class Viewers:
    """The slide viewers of a page of the browser; without a number, the first."""

    def __init__(self, page):
        self.page = page

    def js(self, expression, viewer=0):
        return self.page.evaluate(f"() => {{ const v = {VIEWERS}.at({viewer}); return ({expression}); }}")

    def sharp(self, viewer=0, timeout=10_000):
        self.page.wait_for_timeout(60)
        self.page.wait_for_function(f"() => {VIEWERS}.at({viewer}).tiles[0].sharp", timeout=timeout)
        self.page.wait_for_timeout(100)

    def frame(self, viewer=0):
        """The figure's inner frame on the page: x, y, width, height in CSS pixels."""
        return self.js(
            "(() => { const b = v.plot.canvas_view.el.getBoundingClientRect(), f = v.frame;"
            " return [b.x + f.left, b.y + f.top, f.width, f.height]; })()",
            viewer,
        )

    def box(self, viewer=0):
        return self.js("[v.xr.start, v.yr.end, v.xr.end, v.yr.start]", viewer)

    def crop(self, viewer=0, size=(320, 200)):
        """Pixels around the middle of the frame, and the level-0 place of their corner."""
        x, y, width, height = self.frame(viewer)
        left, top = round(x + width / 2 - size[0] / 2), round(y + height / 2 - size[1] / 2)
        png = self.page.screenshot(clip={"x": left, "y": top, "width": size[0], "height": size[1]})
        x0, y0, x1, _ = self.box(viewer)
        scale = (x1 - x0) / width
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int), (
            x0 + (left - x) * scale,
            y0 + (top - y) * scale,
            scale,
        )

    def screen(self, x_l0, y_l0, viewer=0):
        """Where a place of the slide is on the page."""
        x, y, width, _ = self.frame(viewer)
        x0, y0, x1, _ = self.box(viewer)
        return x + (x_l0 - x0) * width / (x1 - x0), y + (y_l0 - y0) * width / (x1 - x0)

    def tool(self, kind, viewer=0):
        self.js(
            f"v.figure.toolbar.tools.forEach(t => {{ if (t.type === '{kind}') t.active = true; }})", viewer
        )
        self.page.wait_for_timeout(100)


class Page(Viewers):
    """A notebook that ran, and what its page did.

    Parameters
    ----------
    lab, browser : the fixtures
    name : str
        Of the notebook; its last picture is kept under it, beside the notebooks, to be looked at.
    *cells : str
    viewers : int
        Slide viewers to wait for.
    subshells : bool
        Without them a kernel hears nothing while a cell runs.
    app : str
        JupyterLab, or "notebooks" for Notebook 7.
    """

    def __init__(self, lab, browser, name, *cells, viewers=0, subshells=True, app="lab/tree"):
        self.folder, self.address, self.token = lab
        self.name = name
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        written = new_notebook(cells=[new_code_cell(c) for c in cells], metadata=kernel)
        nbformat.write(written, self.folder / f"{name}.ipynb")
        self.url = f"{self.address}{app}/{name}.ipynb?reset&token={self.token}"
        super().__init__(browser.new_page(viewport={"width": 1600, "height": 1500}))
        self.errors, self.hosts, self.tiles, self.sent = [], set(), [], 0
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", self._asked)
        self.page.on("websocket", lambda ws: ws.on("framesent", self._sent))
        self.page.goto(self.url)
        self.page.wait_for_selector(".jp-NotebookPanel", timeout=90_000)
        self.page.wait_for_function(KERNEL, timeout=90_000)
        if not subshells:
            self.subshells("disabled")
        self.errors.clear()  # Jupyter's own, before there is a view
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        self.ready(viewers)

    def subshells(self, how):
        """Choose where the kernel hears the browser: "perCommTarget" (JupyterLab's own choice) or "disabled"."""
        self.page.evaluate(
            "(how) => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.commsOverSubshells = how; }",
            how,
        )

    def close(self):
        """Keep a picture, stop the kernel, and check that the page was quiet and went nowhere else."""
        if not self.page.is_closed():
            self.page.screenshot(path=self.folder / f"{self.name}.png")
            self.page.close()
        self._stop_kernel()
        assert self.errors == []
        assert self.hosts == {"127.0.0.1"}

    def _stop_kernel(self):
        sessions = f"{self.address}api/sessions"
        allowed = {"Authorization": f"token {self.token}"}
        with urllib.request.urlopen(urllib.request.Request(sessions, headers=allowed), timeout=20) as answer:
            mine = [s["id"] for s in json.load(answer) if s["path"] == f"{self.name}.ipynb"]
        for session in mine:
            end = urllib.request.Request(f"{sessions}/{session}", headers=allowed, method="DELETE")
            urllib.request.urlopen(end, timeout=20).close()

    def _asked(self, request):
        if request.url.startswith("http"):
            self.hosts.add(request.url.split("/")[2].split(":")[0])
        if "/pathkit/tiles/" in request.url:
            self.tiles.append(request.url)

    def _sent(self, payload):
        self.sent += len(payload)

    def ready(self, viewers):
        self.page.wait_for_function(
            f"() => window.Bokeh && {VIEWERS}.length >= {viewers} && {VIEWERS}.every(v => v.tiles[0].sharp)",
            timeout=60_000,
        )
        self.page.wait_for_timeout(400)

    def python(self, code):
        return self.page.evaluate(RUN, code).strip()

    def until(self, code, expected, timeout=20):
        """Run `code` until it prints what is expected."""
        end = time.time() + timeout
        while (got := self.python(code)) != expected and time.time() < end:
            time.sleep(0.1)
        assert got == expected, f"{code}: {got}"
