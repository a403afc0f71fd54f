"""Data sets by name: prepared once, kept in the cache, given back as a slides table."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import platformdirs

__all__ = ["NAMES", "cache_dir", "is_ready", "load", "remove"]

#: Of each named cohort: the function of `synthetic` that makes it, and its parameters.
_COHORTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "lymph-nodes": (
        "lymph_node_cohort",
        {"n_patients": 30, "nodes_per_patient": 2, "positive": 0.6, "seed": 7},
    ),
    "lymph-nodes-tiny": (
        "lymph_node_cohort",
        {"n_patients": 6, "nodes_per_patient": 1, "kinds": ("micro",), "size_um": (1000.0, 800.0), "seed": 3},
    ),
    "lymph-nodes-artefacts": (
        "lymph_node_cohort",
        {"n_patients": 16, "nodes_per_patient": 1, "size_um": (2800.0, 2200.0), "artefacts": 0.75, "seed": 8},
    ),
    "colorectal": ("colorectal_cohort", {"n_patients": 40, "seed": 9}),
    "colorectal-confounded": ("colorectal_cohort", {"n_patients": 40, "confounded": 1.0, "seed": 9}),
    "leak-lab": ("leak_cohort", {"n_patients": 48, "seed": 12}),
    "prostate": ("prostate_cohort", {"n_patients": 24, "cores_per_patient": 2, "seed": 10}),
    "breast": ("breast_cohort", {"n_patients": 16, "mpp": 0.5, "size_um": (1200.0, 1000.0), "seed": 11}),
    "breast-mitoses": (
        "breast_cohort",
        {"n_patients": 18, "mpp": 0.5, "size_um": (1400.0, 1200.0), "mitoses": 5.0, "seed": 12},
    ),
    "breast-ki67": (
        "breast_cohort",
        {"n_patients": 16, "mpp": 0.5, "size_um": (1200.0, 1000.0), "marker": "Ki-67", "seed": 11},
    ),
    "breast-her2": (
        "breast_cohort",
        {"n_patients": 16, "mpp": 0.5, "size_um": (1200.0, 1000.0), "marker": "HER2", "seed": 11},
    ),
    "breast-er": (
        "breast_cohort",
        {"n_patients": 8, "mpp": 0.5, "size_um": (800.0, 800.0), "marker": "ER", "seed": 13},
    ),
    "breast-pdl1": (
        "breast_cohort",
        {"n_patients": 8, "mpp": 0.5, "size_um": (800.0, 800.0), "marker": "PD-L1", "seed": 13},
    ),
}
NAMES = tuple(_COHORTS)


def cache_dir() -> Path:
    """The folder of prepared data: PATHKIT_DATA where it is set, else the user's cache."""
    return Path(os.environ.get("PATHKIT_DATA") or platformdirs.user_cache_dir("pathkit"))


def load(name: str = "lymph-nodes", *, workers: int = 2, progress: bool = True) -> pd.DataFrame:
    """A data set's slides table; prepared at the first call, with a progress bar.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    workers : int
        Processes that prepare it.

    Returns
    -------
    DataFrame
        slide_id, patient_id, site, path, mpp, label, and what the set knows besides.

    Raises
    ------
    ValueError
        If there is no such set.
    """
    from pathkit.synthetic import cohort

    folder = _folder(name)
    if is_ready(name):
        return cohort.slides_of(folder)
    function, parameters = _COHORTS[name]
    made: pd.DataFrame = getattr(cohort, function)(folder, **parameters, workers=workers, progress=progress)
    return made


def is_ready(name: str) -> bool:
    """Whether the set is prepared whole."""
    return (_folder(name) / "slides.parquet").exists()


def remove(name: str) -> int:
    """Remove a set from the cache; returns the bytes freed."""
    folder = _folder(name)
    freed = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.exists() else 0
    shutil.rmtree(folder, ignore_errors=True)
    return freed


def _folder(name: str) -> Path:
    from pathkit.synthetic.cohort import GENERATOR_VERSION

    if name not in _COHORTS:
        raise ValueError(
            f"datasets: no set {name!r}; there are {', '.join(NAMES)}. For your own slides see data/README.md."
        )
    version = GENERATOR_VERSION[_COHORTS[name][0]]
    made_as = json.dumps([version, _COHORTS[name]], sort_keys=True)
    return cache_dir() / f"{name}-{hashlib.sha256(made_as.encode()).hexdigest()[:8]}"
