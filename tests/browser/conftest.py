"""A real JupyterLab and a real browser, once a session, on this machine alone."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from live import Page

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)


def chromium() -> str:
    """Path of Chromium, or a skip by name (a failure where browser tests are required)."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("PATHKIT_REQUIRE_BROWSER"):
            pytest.fail("browser tests are required (PATHKIT_REQUIRE_BROWSER) and Chromium is not installed")
        pytest.skip("Chromium is not installed: the views are not tested in a browser")
    return path


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A JupyterLab under a prefix, as behind JupyterHub: (folder, address, token)."""
    chromium()
    root = tmp_path_factory.mktemp("lab")
    folder = root / "notebooks"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, base = secrets.token_hex(16), "/user/x/"
    environment = os.environ | {
        f"JUPYTER_{n}_DIR": str(root / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")
    }
    environment.pop("PATHKIT_STATIC", None)
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
        f"--ServerApp.base_url={base}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
    ]
    command += [f"--{app}.expose_app_in_browser=True" for app in ("LabApp", "JupyterNotebookApp")]
    command += ["--ServerApp.port_retries=0"]
    log = (root / "log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}{base}"
    try:
        _wait_for(f"{address}api/status?token={token}", server, root / "log")
        yield folder, address, token
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield instance
        instance.close()


@pytest.fixture
def notebook(lab, browser):
    """Runs a notebook: ``notebook(name, *cells, viewers=0, subshells=True)`` gives its `live.Page`, closed at the end."""
    pages = []

    def run(name, *cells, **options):
        pages.append(Page(lab, browser, name, *cells, **options))
        return pages[-1]

    yield run
    for page in pages:
        page.close()
