"""Bokeh models in a notebook: nothing that Python says is lost, whoever says it and whenever the page is there to hear.

jupyter_bokeh sends each change as three messages and shows a model as it was when its widget was made. Two threads that
speak at once would mix their messages, after which the page understands none; what is said before the page has drawn is
thrown away; and a second view, or one after the page is loaded again, begins from what has long changed. A pane sends under
a lock, keeps what is said until the page is ready, and gives a late view the model as it is.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from pathlib import Path
from typing import Any

from pathkit.view import registry

__all__ = ["free", "is_static", "load_bokeh", "pane"]

JS = Path(__file__).parent / "js"
#: Changes kept for a page that is not there; of more, the whole model is sent when it comes.
MOST_KEPT = 200


def is_static() -> bool:
    """Whether views should store pictures instead of widgets."""
    return bool(os.environ.get("PATHKIT_STATIC"))


def pane(model: Any) -> Any:
    """A Bokeh layout as an ipywidget."""
    return _pane_class()(model)


@cache
def _pane_class() -> type[Any]:
    from bokeh.models import DataRange1d
    from jupyter_bokeh import BokehModel

    class Pane(BokehModel):
        def __init__(self, model: Any, **options: Any):
            self._lock = threading.RLock()
            self._kept: list[Any] = []
            self._ready = self._outdated = False
            self._automatic = [(r, r.start, r.end) for r in model.select({"type": DataRange1d})]
            super().__init__(model, **options)
            self._document.on_event("document_ready", lambda _: self._drawn())

        def _document_patched(self, event: Any) -> None:
            with self._lock:
                if event.setter is self:  # the page's own; only a second view does not know
                    self._outdated |= self._ready
                elif self._ready:
                    self._outdated = True
                    super()._document_patched(event)
                elif len(self._kept) < MOST_KEPT:
                    if getattr(event, "data", event) is None:  # Bokeh would send the data of then, not of now
                        event.data = dict(event.model.data)
                    self._kept.append(event)
                else:
                    self._outdated = True

        def _drawn(self) -> None:
            """A view was drawn, from the bundle."""
            with self._lock:
                if self._outdated:
                    self.render_bundle = self._renewed()
                    return
                self._ready = True
                for event in self._kept:
                    self._document_patched(event)
                self._kept = []

        def _renewed(self) -> Any:
            """The bundle of the model as it is now, with nothing left to say."""
            for span, start, end in self._automatic:  # what a page has set would hold the range there
                span.set_from_json("start", start, setter=self)
                span.set_from_json("end", end, setter=self)
            self._kept, self._ready, self._outdated = [], False, False
            return self._model_to_traits(self._model)

        def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
            """What a page that is loaded again asks for: the model as it is now."""
            if key is None and self._model.document is not None:
                with self._lock:
                    self._trait_values["render_bundle"] = self._renewed()
            return super().get_state(key, drop_defaults)

        def close(self) -> None:
            if self.comm is not None:  # again when it is collected
                super().close()

    return Pane


def free(*widgets: Any) -> None:
    """Let the page choose the thread in which Python hears widgets, and those inside them.

    ipykernel 7 answers where it was last asked: what the page says goes to the subshell that last spoke to it, which is lost
    once JupyterLab has closed that subshell, or waits for the running cell once a cell has spoken. Other kernels ignore this.
    """
    for widget in widgets:
        if getattr(widget, "comm", None) is not None:
            widget.comm._reply_subshell_for = lambda _data, chosen: chosen
        free(*getattr(widget, "children", ()))


def load_bokeh() -> None:
    """Load BokehJS into the page: from Jupyter Server where the extension runs, else from the notebook itself."""
    from IPython.core.getipython import get_ipython
    from IPython.display import Javascript, display

    shell: Any = get_ipython()  # type: ignore[no-untyped-call]
    kernel = getattr(shell, "kernel", None)
    if kernel is None or kernel.get_parent().get("header", {}).get("msg_type") != "execute_request":
        return  # no page, or a callback: its cell has loaded it
    if registry.available():
        import bokeh

        display(Javascript((JS / "load.js").read_text().replace("VERSION", bokeh.__version__)))
        return
    from bokeh.io import output_notebook
    from bokeh.resources import INLINE

    output_notebook(INLINE, hide_banner=True)
