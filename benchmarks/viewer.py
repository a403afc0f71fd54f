"""The slide viewer in a browser, beside a raw fetch of the same tiles; shading of many points. Prints ratios and limits.

Needs Chromium; without it only the shading is measured.
"""

from __future__ import annotations

import json
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
viewer = SlideViewer(open_slide("slide.tif"), height_px=600)
viewer
"""
VIEWER = "Bokeh.documents.flatMap(d => d.roots()).find(r => r.pathkit).pathkit"
IDLE = """() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"""
#: Pan by 0.6 of the frame; the time until all tiles in view are painted, and their names.
PAN = f"""(step) => new Promise(done => {{
    const v = {VIEWER}, [x, y] = v.centre, start = performance.now(), old = new Set(v.tiles[0].tiles.keys());
    v.go(x + step * v.frame.width / v.scale, y);
    const look = () => v.tiles[0].sharp && performance.now() - start > 20 && !v.tiles[0].busy
        ? done([performance.now() - start, [...v.tiles[0].tiles.keys()].filter(k => !old.has(k)), v.tiles[0].url])
        : requestAnimationFrame(look);
    requestAnimationFrame(look);
}})"""
FETCH = """([url, keys]) => { const start = performance.now();
    return Promise.all(keys.map(k => fetch(`${url}/${k}.jpg?again`, {cache: "no-store"}).then(r => r.blob())
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
    view = View(Box(0, 0, 2048, 2048), 825, 573)
    rng = np.random.default_rng(0)
    print("| points | shaded, warm, ms | limit | ratio |\n|---|---|---|---|")
    for n in (10**6, 10**7):
        table = pd.DataFrame({"x_l0": rng.random(n) * 2048, "y_l0": rng.random(n) * 2048})
        table["class"] = pd.Categorical.from_codes(rng.integers(0, 4, n), list("abcd"))
        layer = Points(table)
        layer.place(slide)
        layer._shaded_view(view)
        took = []
        for _ in range(5):
            start = time.perf_counter()
            layer._shaded_view(view)
            took.append(1000 * (time.perf_counter() - start))
        print(
            f"| 10^{len(str(n)) - 1} | {(ms := statistics.median(took)):.0f} | {LIMITS[n]} | {ms / LIMITS[n]:.2f} |"
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
        server.wait(20)


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
    page.wait_for_function(f"() => window.Bokeh && {VIEWER}.tiles[0].sharp", timeout=90_000)
    page.evaluate(f"() => {VIEWER}.go(4000, 3000, 0.5)")
    page.wait_for_timeout(2000)
    took, raw, uploads, tiles = [], [], [], []
    for i in range(PANS):
        before = sent[0]
        ms, keys, base = page.evaluate(PAN, 0.6)
        page.wait_for_timeout(50 if i % 2 else 700)  # at once again, and after the ring was fetched
        page.wait_for_timeout(650 if i % 2 else 0)
        uploads.append(sent[0] - before)
        took.append(ms)
        tiles.append(len(keys))
    base = page.evaluate(f"() => {VIEWER}.tiles[0].url")
    for i in range(5):  # cold for the server: another level
        keys = [f"0/{4 * i + x}/{20 + y}" for x in range(3) for y in range(2)]
        raw.append(page.evaluate(FETCH, [base, keys]))
    page.evaluate(f"() => {VIEWER}.go(9000, 12000, 0.5)")
    page.wait_for_timeout(1500)
    far = [page.evaluate(PAN, step)[0] for step in (6, 5, -4, 7, -6, 3.3, -5.2, 6.1)]  # no ring helps here
    rows = {
        "pan of 0.6 frame to sharp, median ms": (statistics.median(took), LIMITS["pan_ms"]),
        "jump to tiles never seen to sharp, median ms": (statistics.median(far), LIMITS["pan_ms"]),
        "raw fetch and decode of 6 tiles, median ms": (statistics.median(raw), None),
        "sent up a pan, median bytes": (statistics.median(uploads), LIMITS["upload_bytes"]),
        "sent up a pan, most bytes": (max(uploads), LIMITS["upload_bytes"]),
    }
    print("\n| measured | value | limit | ratio |\n|---|---|---|---|")
    for name, (value, limit) in rows.items():
        print(f"| {name} | {value:.0f} | {limit or ''} | {'' if limit is None else f'{value / limit:.2f}'} |")
    print(
        f"\njump / raw fetch: {statistics.median(far) / statistics.median(raw):.2f}; new tiles a pan: {json.dumps(tiles)}"
    )


if __name__ == "__main__":
    main()
