"""Jupyter Server extension: tiles of the slides that a kernel shows, and BokehJS, from the page's own origin.

It needs no second port, works under a prefix, and answers while the kernel is busy. Every request passes Jupyter's
authentication and authorisation. A URL holds an opaque id and three numbers, never a path; see `pathkit.view.registry`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from pathkit.slide import SlideError, open_slide
from pathkit.view.registry import FOLDER, Registered, make_folder, registered
from pathkit.view.tiles import Pyramid, TileCache

__all__: list[str] = []

#: Requests waiting for a thread; beyond, the browser is told to come back.
MAX_WAITING = 1500
#: Slides held open at once.
MAX_OPEN = 8
_BOKEH = ("bokeh.min.js", "bokeh-widgets.min.js", "bokeh-tables.min.js")


class Tiles:
    """What the handlers share: the registry's folder, open pyramids, the cache and the threads."""

    def __init__(self, folder: Path):
        self.folder, self.cache, self.waiting = folder, TileCache(), 0
        self.pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "pathkit-tiles")
        self._open: dict[str, tuple[Registered, Pyramid]] = {}

    async def tile(self, slide_id: str, level: int, x: int, y: int) -> bytes:
        """A tile as JPEG; HTTP errors for what is not there."""
        slide = registered(self.folder, slide_id)
        if slide is None:
            if slide_id in self._open:
                self._open.pop(slide_id)[1].close()
            raise web.HTTPError(404)
        if self.waiting >= MAX_WAITING:
            raise web.HTTPError(503, reason="Too many tiles asked for at once")
        self.waiting += 1
        try:
            return await asyncio.wrap_future(self.pool.submit(self._render, slide_id, slide, level, x, y))
        except LookupError:
            raise web.HTTPError(404) from None
        except (SlideError, OSError):  # their messages hold the path
            raise web.HTTPError(500, reason="The slide cannot be read here") from None
        finally:
            self.waiting -= 1

    def _render(self, slide_id: str, slide: Registered, level: int, x: int, y: int) -> bytes:
        return self.cache.get(
            (slide_id, level, x, y), lambda: self._pyramid(slide_id, slide).render(level, x, y)
        )

    def _pyramid(self, slide_id: str, slide: Registered) -> Pyramid:
        if slide_id not in self._open:
            while len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open)), None)  # closed when its last reader lets go
            self._open[slide_id] = (slide, Pyramid(open_slide(slide.path)))
        return self._open[slide_id][1]

    def close(self) -> None:
        """Stop, and forget all registrations."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)


class _Handler(APIHandler):
    """Refuses with 403 and no redirection where there is no valid token."""

    auth_resource = "contents"

    def answer(self, body: bytes, kind: str) -> None:
        # An id is never used for a second slide, so the browser needs not ask again.
        self.set_header("Cache-Control", "private, max-age=86400, immutable")
        self.finish(body, set_content_type=kind)


class TileHandler(_Handler):
    """GET pathkit/tiles/<id>/<level>/<x>/<y>.jpg"""

    def initialize(self, tiles: Tiles) -> None:
        self.tiles = tiles

    @web.authenticated
    @authorized
    async def get(self, slide_id: str, level: str, x: str, y: str) -> None:
        self.answer(await self.tiles.tile(slide_id, int(level), int(x), int(y)), "image/jpeg")


class BokehHandler(_Handler):
    """GET pathkit/bokeh/<version>/<file>: the BokehJS that belongs to the installed Bokeh."""

    @web.authenticated
    @authorized
    async def get(self, version: str, name: str) -> None:
        import bokeh
        from bokeh.util.paths import bokehjs_path

        if version != bokeh.__version__ or name not in _BOKEH:
            raise web.HTTPError(404)
        self.answer((bokehjs_path() / "js" / name).read_bytes(), "text/javascript")


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "pathkit.view.server"}]


def _load_jupyter_server_extension(app: Any) -> None:
    tiles = Tiles(make_folder(app.runtime_dir))
    os.environ[FOLDER] = str(tiles.folder)  # kernels inherit it
    atexit.register(tiles.close)
    base = app.web_app.settings["base_url"]
    # Eight digits at most: no number in a URL is worth parsing beyond that.
    tile = url_path_join(base, r"pathkit/tiles/([A-Za-z0-9_-]{1,64})/(\d{1,2})/(\d{1,8})/(\d{1,8})\.jpg")
    script = url_path_join(base, r"pathkit/bokeh/([0-9a-z.]{1,20})/([a-z.-]{1,40})")
    app.web_app.add_handlers(".*$", [(tile, TileHandler, {"tiles": tiles}), (script, BokehHandler)])
    app.web_app.settings["pathkit_tiles"] = tiles
