"""The slide viewer in a browser, beside a raw fetch of the same tiles; shading of many points. Prints ratios and limits.

Needs Chromium; without it only the shading is measured.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import tifffile
from nbformat.v4 import new_code_cell, new_notebook

from pathkit.geometry import Box
from pathkit.slide import open_slide
from pathkit.view import Points
from pathkit.view.viewer import View

SIZE = (20_480, 16_384)
PANS = 14
LIMITS = {"pan_ms": 150, "upload_bytes": 5000, 10**6: 100, 10**7: 500}
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
)
CELL = """
from pathkit.slide import open_slide
from pathkit.view import SlideViewer
display(SlideViewer(open_slide("slide.tif"), height_px=600), SlideViewer(open_slide("slide.tif"), height_px=300))
"""
VIEWERS = "Bokeh.documents.flatMap(d => d.roots()).filter(r => r.pathkit).map(r => r.pathkit)"
VIEWER = f"{VIEWERS}[0]"
IDLE = """() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"""
#: Pan by (dx, dy) frames; the time until all tiles in view are painted, and the names of those that came for it.
PAN = f"""([dx, dy]) => new Promise(done => {{
    const v = {VIEWER}, t = v.tiles[0], [x, y] = v.centre, start = performance.now(), old = new Set(t.tiles.keys());
    v.go(x + dx * v.frame.width / v.scale, y + dy * v.frame.height / v.scale);
    const look = () => t.sharp && performance.now() - start > 20 && !t.busy
        ? done([performance.now() - start, [...t.tiles.keys()].filter(k => !old.has(k))])
        : requestAnimationFrame(look);
    requestAnimationFrame(look);
}})"""
FETCH = """([url, keys]) => { const start = performance.now();
    return Promise.all(keys.map(k => fetch(`${url}/${k}.jpg`, {cache: "no-store"}).then(r => r.blob())
        .then(createImageBitmap))).then(() => performance.now() - start); }"""


def main() -> None:
    shading()
    if shutil.which("chromium"):
        with tempfile.TemporaryDirectory() as folder:
            browser(Path(folder))
    else:
        print("Chromium is not installed: pans not measured")


def shading() -> None:
    slide = open_slide(np.zeros((2048, 2048, 3), np.uint8), mpp=0.25)
    whole = View(Box(0, 0, 2048, 2048), 825, 573)
    rng = np.random.default_rng(0)
    print("| points | shaded, warm, ms | limit | ratio |\n|---|---|---|---|")
    for n in (10**6, 10**7):
        table = pd.DataFrame({"x_l0": rng.random(n) * 2048, "y_l0": rng.random(n) * 2048})
        table["class"] = pd.Categorical.from_codes(rng.integers(0, 4, n), list("abcd"))
        layer = Points(table)
        layer.place(slide)
        for where, view in (("whole slide", whole), ("a ninth", View(Box(700, 700, 683, 683), 825, 573))):
            layer._shaded_view(view)
            took = []
            for _ in range(9):
                start = time.perf_counter()
                layer._shaded_view(view)
                took.append(1000 * (time.perf_counter() - start))
            ms = statistics.median(took)
            print(
                f"| 10^{len(str(n)) - 1}, {where} in view | {ms:.0f} | {LIMITS[n]} | {ms / LIMITS[n]:.2f} |"
            )


def painted(path: Path) -> None:
    """A JPEG pyramid of noise and colour, about as hard to compress as tissue."""
    tile = np.random.default_rng(0).integers(120, 250, (1024, 1024, 3)).astype(np.uint8)
    tile = np.asarray(
        tile // 4 + np.roll(tile, 1, 0) // 4 + np.roll(tile, 1, 1) // 4 + np.roll(tile, 2, 0) // 4
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for ds in (1, 4, 16):
            level = np.tile(tile[::1], (SIZE[1] // ds // 1024 or 1, SIZE[0] // ds // 1024 or 1, 1))
            level = level[: SIZE[1] // ds, : SIZE[0] // ds]
            resolution = {"resolution": (1e4 / 0.25 / ds,) * 2, "resolutionunit": "CENTIMETER"}
            tiff.write(
                level,
                tile=(256, 256),
                compression="jpeg",
                photometric="rgb",
                subfiletype=int(ds > 1),
                **resolution,
            )


def browser(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    painted(folder / "slide.tif")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(CELL)], metadata=kernel), folder / "pan.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = os.environ | {
        f"JUPYTER_{n}_DIR": str(folder / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
    ]
    command += [
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=FLAGS.split()
            )
            pans(
                chromium.new_page(viewport={"width": 1400, "height": 1000}),
                f"http://127.0.0.1:{port}/lab/tree/pan.ipynb?reset&token={token}",
            )
            chromium.close()
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def pans(page: Any, url: str) -> None:
    sent = [0]
    page.on(
        "websocket",
        lambda ws: ws.on("framesent", lambda payload: sent.__setitem__(0, sent[0] + len(payload))),
    )
    page.goto(url)
    page.wait_for_selector(".jp-NotebookPanel-toolbar", timeout=90_000)
    page.wait_for_function(IDLE, timeout=90_000)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_function(
        f"() => window.Bokeh && {VIEWERS}.length > 1 && {VIEWER}.tiles[0].sharp", timeout=90_000
    )
    urls = page.evaluate(f"() => {VIEWERS}.map(v => v.tiles[0].url)")
    page.evaluate(f"() => {VIEWER}.go(2000, 1000, 1)")
    page.wait_for_timeout(2000)
    rest, uploads = [], []
    for _ in range(PANS):  # a user who looks between pans: the ring around the view is here
        before = sent[0]
        rest.append(page.evaluate(PAN, [0.6, 0])[0])
        page.wait_for_timeout(700)
        uploads.append(sent[0] - before)
    page.evaluate(f"() => {VIEWER}.go(2000, 4000, 1)")
    page.wait_for_timeout(1000)
    fresh = [page.evaluate(PAN, [0.6, 0.6]) for _ in range(PANS)]  # one after the other: no ring helps
    page.evaluate(f"() => {VIEWER}.go(15000, 2000, 1)")
    page.wait_for_timeout(1000)
    jumps = [page.evaluate(PAN, step) for step in 3 * [(0, 3), (3, 0), (0, 3), (-3, 0)]]
    fresh, jumps = ([p for p in pans if p[1]] for pans in (fresh, jumps))  # a few ask for no new tile
    if min(len(fresh), len(jumps)) < 10:
        sys.exit(f"only {len(fresh)} pans and {len(jumps)} jumps asked for new tiles: nothing was measured")
    # The same tiles of the same file under another id: no cache of the browser or of the server's tiles helps.
    raw, far = ([page.evaluate(FETCH, [urls[1], keys]) for _, keys in pans] for pans in (fresh, jumps))
    median = statistics.median
    rows = {
        "pan of 0.6 frame after a look, to sharp, median ms": (median(rest), LIMITS["pan_ms"]),
        "pan of 0.6 frame both ways, one after the other, to sharp, median ms": (
            median(ms for ms, _ in fresh),
            LIMITS["pan_ms"],
        ),
        "the same, longest ms": (max(ms for ms, _ in fresh), None),
        "raw fetch and decode of the same tiles, median ms": (median(raw), None),
        "jump to where no tile was seen, to sharp, median ms": (
            median(ms for ms, _ in jumps),
            LIMITS["pan_ms"],
        ),
        "raw fetch and decode of its tiles, median ms": (median(far), None),
        "sent up a pan, median bytes": (median(uploads), LIMITS["upload_bytes"]),
        "sent up a pan, most bytes": (max(uploads), LIMITS["upload_bytes"]),
    }
    print("\n| measured | value | limit | ratio |\n|---|---|---|---|")
    for name, (value, limit) in rows.items():
        print(f"| {name} | {value:.0f} | {limit or ''} | {'' if limit is None else f'{value / limit:.2f}'} |")
    count = [len(keys) for _, keys in fresh], [len(keys) for _, keys in jumps]
    ratio = median(ms for ms, _ in fresh) / median(raw), median(ms for ms, _ in jumps) / median(far)
    print(
        f"\npan / raw fetch {ratio[0]:.2f}, jump / raw fetch {ratio[1]:.2f}; new tiles a pan {count[0]}, a jump {count[1]}"
    )


if __name__ == "__main__":
    main()
