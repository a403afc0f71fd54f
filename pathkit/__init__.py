"""pathkit: learn and explore machine learning for pathology on whole-slide images.

Names are loaded when they are first used (PEP 562), so that ``import pathkit`` costs neither torch, bokeh nor
openslide. ``pathkit.open_slide`` and its neighbours below are the everyday names; everything else is reached through
the module of the same noun, as in ``pathkit.stain.macenko_stains``.
"""

# No `from __future__ import annotations` here: that name would stand in the way of the module `pathkit.annotations`.

import importlib
from typing import Any

__version__ = "0.1.0"

#: Everyday names and the module that holds each.
_NAMES = {
    "open_slide": "slide",
    "Slide": "slide",
    "Box": "geometry",
    "Frames": "geometry",
    "Raster": "geometry",
    "read_annotations": "annotations",
    "write_annotations": "annotations",
    "label_patches": "annotations",
    "rasterize": "annotations",
    "tissue_mask": "tissue",
    "patch_grid": "patches",
    "slide_quality": "quality",
    "PatchDataset": "patches",
    "split_patients": "splits",
    "check_no_leak": "splits",
    "load_encoder": "encoders",
    "patch_classifier": "models",
    "fit": "training",
    "heatmap": "inference",
    "lesions": "inference",
    "extract_features": "inference",
}
_MODULES = (
    "agreement",
    "annotations",
    "cohort",
    "counting",
    "detection",
    "doctor",
    "datasets",
    "encoders",
    "engine",
    "geometry",
    "grading",
    "inference",
    "metrics",
    "models",
    "objects",
    "patches",
    "plan",
    "pooling",
    "quality",
    "scoring",
    "segmentation",
    "slide",
    "splits",
    "staging",
    "stain",
    "synthetic",
    "tables",
    "texture",
    "tissue",
    "training",
    "view",
)

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"pathkit.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"pathkit.{name}")
    raise AttributeError(f"module 'pathkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
