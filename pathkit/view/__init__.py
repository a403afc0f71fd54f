"""Views: interactive in a notebook, a picture where nothing can be interactive.

Views take arrays, tables and callables, never a model, and give what is selected back as rows of a table. When the
environment variable PATHKIT_STATIC is set (as when notebooks are executed for committing), a view stores a PNG of itself
instead of widgets, which a notebook opened later without its kernel could not show.

Names are loaded when they are first used: Jupyter Server imports this package for its tiles alone.
"""

import importlib
from typing import Any

_NAMES = {
    "SlideViewer": "viewer",
    "ThresholdExplorer": "threshold",
    "draw_outlines": "threshold",
    "is_static": "pane",
    "AnnotationDrill": "drill",
    "CoordinateLab": "coordinates",
    "Gallery": "gallery",
    "PatchLadder": "ladder",
    "SplitBoard": "splitboard",
    "GradingBoard": "grading",
    "InstanceBoard": "instances",
    "StainBoard": "ihc",
    "link": "link",
    "StainPlane": "stainplane",
    **dict.fromkeys(("FrocChart", "Histogram", "RocChart"), "charts"),
    "HotSpotBoard": "hotspot",
    **dict.fromkeys(
        ("CaseBoard", "EmbeddingExplorer", "ErrorAtlas", "TrainingMonitor", "compare", "tune"), "boards"
    ),
    **dict.fromkeys(
        ("Attention", "Detections", "Heatmap", "Mask", "Patches", "Points", "Polygons", "SecondSlide"),
        "layers",
    ),
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"pathkit.view.{_NAMES[name]}"), name)
        globals()[name] = value  # also takes the name back from a module that is called the same (link)
        return value
    raise AttributeError(f"module 'pathkit.view' has no attribute {name!r}")
