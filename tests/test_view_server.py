"""Tiles: what they show, who may have them, and for how long."""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import secrets
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pathkit.slide import open_slide
from pathkit.view import registry
from pathkit.view.tiles import TILE_PX, Pyramid, TileCache, jpeg

ROOT = Path(__file__).resolve().parent.parent
MPP = 0.5
#: A kernel in small: registers a slide, prints its id, and lives until its input ends.
KERNEL = "import sys; from pathkit.view import registry; print(registry.register(sys.argv[1]), flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def pixels():
    rows, cols = np.mgrid[0:1500, 0:2300]
    return np.stack([cols % 256, rows % 256, (rows + cols) // 16 % 256], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("secret-place") / "patient-17.tif"
    resolution = {"resolution": (1e4 / MPP,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="deflate", photometric="rgb", **resolution)
    return path


class Server:
    def __init__(self, folder: Path):
        self.token, self.base = secrets.token_hex(16), "/user/x/"
        self.environment = os.environ | {
            f"JUPYTER_{n}_DIR": str(folder / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")
        }
        command = [
            sys.executable,
            "-m",
            "jupyter_server",
            "--allow-root",
            "--no-browser",
            "--ip=127.0.0.1",
            "--port=0",
        ]
        command += [f"--ServerApp.base_url={self.base}", f"--IdentityProvider.token={self.token}"]
        command += [
            f"--ServerApp.root_dir={folder}",
            "--ServerApp.jpserver_extensions={'pathkit.view.server': True}",
        ]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.runtime = folder / "runtime"
        for _ in range(120):
            found = list(self.runtime.glob("jpserver-*.json"))
            if found and list(self.runtime.glob("pathkit-*")):
                self.url = json.loads(found[0].read_text())["url"]
                if self.get("api/status")[0] == 200:
                    break
            time.sleep(0.25)
        else:
            pytest.fail(f"Jupyter Server did not start:\n{self.log.read_text()[-2000:]}")
        self.folder = next(self.runtime.glob("pathkit-*"))

    def get(self, path, *, token=True):
        """Status, headers, body."""
        headers = {"Authorization": f"token {self.token}"} if token else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, headers=headers), timeout=60
            ) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()
        except OSError:
            return 0, {}, b""

    def kernel(self, path):
        """A process as the server would start it, and the id of the slide that it registered."""
        environment = self.environment | {registry.FOLDER: str(self.folder)}
        process = subprocess.Popen(
            [sys.executable, "-c", KERNEL, str(path)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return process, process.stdout.readline().strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.process.terminate()
    running.process.wait(20)
    assert not running.folder.exists()  # registrations end with the server


@pytest.fixture(scope="module")
def shown(server, slide_path):
    process, slide_id = server.kernel(slide_path)
    yield slide_id
    process.stdin.close()
    process.wait(10)


# Pyramid


@pytest.mark.parametrize("level", [0, 1, 2])
def test_tiles_are_the_slide(pixels, level):
    slide = open_slide(pixels, mpp=MPP)
    pyramid, scale = Pyramid(slide), 2**level
    size = tuple(-(-n // scale) for n in slide.dimensions)
    whole = slide.read_region((0, 0), size, mpp=MPP * scale)
    across, down = pyramid.grid(level)
    rows = [np.hstack([pyramid.read(level, x, y) for x in range(across)]) for y in range(down)]
    np.testing.assert_array_equal(np.vstack(rows), whole)


def test_the_pyramid_needs_no_mpp_and_ends_in_one_tile(pixels):
    pyramid = Pyramid(open_slide(pixels))
    assert pyramid.grid(pyramid.levels - 1) == (1, 1)
    assert max(pyramid.grid(pyramid.levels - 2)) > 1
    tile = np.asarray(Image.open(io.BytesIO(pyramid.render(0, 0, 0))))
    assert tile.shape == (TILE_PX, TILE_PX, 3)
    for outside in [(0, 5, 0), (0, 0, 3), (3, 1, 0), (9, 0, 0), (-1, 0, 0), (0, -1, 0)]:
        with pytest.raises(LookupError, match="no tile"):
            pyramid.read(*outside)


def test_the_cache_is_bounded_and_keeps_what_was_used_last():
    cache, made = TileCache(max_bytes=1000), []

    def tile(key):
        return cache.get(key, lambda: made.append(key) or b"x" * 300)

    for key in "abcad":
        tile(key)
        assert cache.bytes <= 1000
    assert made == list("abcd")
    tile("a")
    assert made == list("abcd")
    tile("b")  # was dropped for d
    assert made == list("abcdb")


# Registry


def test_a_registration_is_private_and_ends(tmp_path, monkeypatch, slide_path):
    monkeypatch.delenv(registry.FOLDER, raising=False)
    assert registry.register(slide_path) is None
    folder = registry.make_folder(tmp_path)
    monkeypatch.setenv(registry.FOLDER, str(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    slide_id = registry.register(slide_path)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert registry.registered(folder, slide_id).path == str(slide_path)
    file.chmod(0o644)  # somebody else could have read or written it
    assert registry.registered(folder, slide_id) is None
    file.chmod(0o600)
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "started": record["started"] - 1}))  # the pid was used again
    assert registry.registered(folder, slide_id) is None
    assert not file.exists()
    slide_id = registry.register(slide_path)
    registry.unregister(slide_id)
    assert registry.registered(folder, slide_id) is None
    monkeypatch.setenv("PATHKIT_TILES", "kernel")
    assert registry.register(slide_path) is None


# Server


def test_a_tile_over_http_is_the_slide(server, shown, pixels):
    status, headers, body = server.get(f"pathkit/tiles/{shown}/1/2/1.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert "private" in headers["Cache-Control"]
    assert "max-age" in headers["Cache-Control"]
    assert body == jpeg(Pyramid(open_slide(pixels)).read(1, 2, 1))


@pytest.mark.parametrize(
    "path",
    ["pathkit/tiles/{id}/0/0/0.jpg", "pathkit/tiles/unknown/0/0/0.jpg", "pathkit/bokeh/{v}/bokeh.min.js"],
)
def test_nothing_without_a_token(server, shown, path):
    import bokeh

    status, _, body = server.get(path.format(id=shown, v=bokeh.__version__), token=False)
    assert status == 403
    assert b"\xff\xd8" not in body


@pytest.mark.parametrize(
    "path",
    [
        "{other}/0/0/0.jpg",
        "{id}/0/99999999/0.jpg",
        "{id}/0/0/999999999999999999999.jpg",
        "{id}/99/0/0.jpg",
        "{id}/-1/0/0.jpg",
        "{id}/0/0/0.png",
        "../{id}/0/0/0.jpg",
        "..%2F..%2F{name}/0/0/0.jpg",
        "{path}/0/0/0.jpg",
        "{quoted}/0/0/0.jpg",
        "{id}%00/0/0/0.jpg",
    ],
)
def test_what_is_not_there_is_404(server, shown, slide_path, path):
    names = {"id": shown, "other": secrets.token_urlsafe(16), "name": slide_path.name, "path": slide_path}
    url = path.format(quoted=str(slide_path).replace("/", "%2F"), **names)
    status, _, body = server.get(f"pathkit/tiles/{url}")
    assert status == 404
    assert slide_path.name.encode() not in body or slide_path.name in url  # at most what was asked comes back
    assert b"secret-place" not in body or "secret-place" in url


def test_bokehjs_of_this_version_and_no_other_file(server):
    import bokeh

    status, headers, body = server.get(f"pathkit/bokeh/{bokeh.__version__}/bokeh.min.js")
    assert (status, headers["Content-Type"]) == (200, "text/javascript")
    assert bokeh.__version__.encode() in body
    for path in (
        f"{bokeh.__version__}/bokeh.js",
        "0.1/bokeh.min.js",
        f"{bokeh.__version__}/../../__init__.py",
    ):
        assert server.get(f"pathkit/bokeh/{path}")[0] == 404


def test_a_thousand_requests_at_once(server, shown):
    levels = [(0, x, y) for x in range(5) for y in range(3)] + [(1, x, y) for x in range(3) for y in range(2)]
    wanted = [levels[i % len(levels)] for i in range(1000)]
    import psutil

    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(
            pool.map(lambda t: server.get(f"pathkit/tiles/{shown}/{t[0]}/{t[1]}/{t[2]}.jpg"), wanted)
        )
    assert {status for status, _, _ in answers} == {200}
    first = {t: body for t, (_, _, body) in zip(wanted, answers, strict=True)}
    assert all(first[t] == body for t, (_, _, body) in zip(wanted, answers, strict=True))
    assert process.memory_info().rss - before < 300e6


def test_a_slide_is_gone_with_its_viewer_and_with_its_kernel(server, slide_path):
    process, slide_id = server.kernel(slide_path)
    tile = f"pathkit/tiles/{slide_id}/0/0/0.jpg"
    assert server.get(tile)[0] == 200
    process.kill()
    process.wait(10)
    assert server.get(tile)[0] == 404
    assert not (server.folder / f"{slide_id}.json").exists()
    process, slide_id = server.kernel(slide_path)
    tile = f"pathkit/tiles/{slide_id}/0/0/0.jpg"
    assert server.get(tile)[0] == 200
    (server.folder / f"{slide_id}.json").unlink()  # what unregister does
    assert server.get(tile)[0] == 404
    process.stdin.close()
    process.wait(10)


def test_a_damaged_slide_is_an_error_that_names_no_path(server, tmp_path, slide_path):
    broken = tmp_path / "patient-18.tif"
    broken.write_bytes(slide_path.read_bytes()[:5000])
    process, slide_id = server.kernel(broken)
    status, _, body = server.get(f"pathkit/tiles/{slide_id}/0/0/0.jpg")
    assert status == 500
    assert b"patient-18" not in body
    process.stdin.close()
    process.wait(10)


def test_a_wheel_places_the_file_that_enables_the_extension(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pathkit", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    probe = subprocess.run([sys.executable, "-c", "import setuptools"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("setuptools is not installed here: no wheel is built")
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True
    )
    wheel = tmp_path / result.stdout.split()[-1]
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith("jupyter_server_config.d/pathkit.json")]
        assert len(names) == 1
        assert ".data/data/etc/jupyter/" in names[0]
        enabled = json.loads(archive.read(names[0]))["ServerApp"]["jpserver_extensions"]
        assert enabled == {"pathkit.view.server": True}
        assert {"pathkit/view/js/viewer.js", "pathkit/view/js/load.js"} <= set(archive.namelist())
