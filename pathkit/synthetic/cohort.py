"""Cohorts: many patients' slides with all their truth, made in parallel, resumed where they stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from pathkit.annotations import annotation_frame, write_annotations
from pathkit.annotations.rows import Row
from pathkit.files import write_text
from pathkit.synthetic.architecture import Architecture, lymph_node
from pathkit.synthetic.objects import nuclei
from pathkit.synthetic.pyramid import write_pyramid
from pathkit.synthetic.scanner import SITES, Site, scan
from pathkit.tables import check_slides, read_table, write_table

__all__ = ["GENERATOR_VERSION", "lymph_node_cohort"]

#: Raised when the same seed gives other slides; part of the cache's key.
GENERATOR_VERSION = 1
#: Kinds of metastases that a node can have.
_KINDS = ("itc", "micro", "macro")
_BAND_PX = 512


def lymph_node_cohort(
    folder: str | os.PathLike[str],
    *,
    n_patients: int = 20,
    nodes_per_patient: int = 2,
    positive: float = 0.5,
    kinds: tuple[str, ...] = _KINDS,
    size_um: tuple[float, float] = (3200.0, 2600.0),
    sites: tuple[str, ...] = tuple(SITES),
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Make, or finish making, the slides of a cohort of patients with lymph nodes.

    Parameters
    ----------
    folder : path
        Where slides and truth go.
    n_patients, nodes_per_patient : int
    positive : float
        Share of patients with metastases, 0 to 1. Their first node is positive, each further one with chance 0.5.
    kinds : tuple of {"itc", "micro", "macro"}
        Kinds of metastases, dealt out in turn so that each occurs equally often.
    size_um : (width, height)
        Of each slide.
    sites : tuple of str
        Names of `SITES`, dealt out in turn over positive and negative patients alike.
    seed : int
    workers : int
        Processes.

    Returns
    -------
    DataFrame
        Slides: slide_id, patient_id, site, path, mpp, label ("normal" or "tumour"), category, annotations_path,
        objects_path, n_lesions, tumour_um2.

    Raises
    ------
    ValueError
        If a parameter is impossible, the folder holds another cohort, or the disk is too small.
    """
    parameters = {
        "generator": GENERATOR_VERSION,
        "n_patients": n_patients,
        "nodes_per_patient": nodes_per_patient,
        "positive": positive,
        "kinds": list(kinds),
        "size_um": [float(v) for v in size_um],
        "sites": list(sites),
        "seed": seed,
    }
    _check(parameters)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_manifest(folder, parameters)
    plan = _plan(parameters)
    todo = [spec for spec in plan if not (folder / f"{spec['slide_id']}.tif").exists()]
    _check_disk(folder, len(todo), size_um)
    _make_all(folder, todo, workers, progress)
    slides = pd.DataFrame([_described(folder, spec) for spec in plan])
    write_table(
        slides.drop(columns=["path", "annotations_path", "objects_path"]),
        folder / "slides.parquet",
        **parameters,
    )
    return check_slides(slides)


def _plan(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """What each slide is to be, before any is made."""
    rng = np.random.default_rng([parameters["seed"], 3])
    n, kinds, sites = parameters["n_patients"], parameters["kinds"], parameters["sites"]
    is_positive = np.arange(n) < round(n * parameters["positive"])
    order = rng.permutation(n)
    plan, dealt = [], 0
    for rank, patient in enumerate(order):
        for node in range(parameters["nodes_per_patient"]):
            category = "normal"
            if is_positive[rank] and (node == 0 or rng.random() < 0.5):
                category = kinds[dealt % len(kinds)]
                dealt += 1
            plan.append(
                {
                    "slide_id": f"P{patient:03d}-N{node + 1}",
                    "patient_id": f"P{patient:03d}",
                    "site": sites[rank % len(sites)],
                    "category": category,
                    "seed": int(rng.integers(1, 2**24)),
                    "size_um": parameters["size_um"],
                }
            )
    return sorted(plan, key=lambda spec: spec["slide_id"])


def _make_all(folder: Path, todo: list[dict[str, Any]], workers: int, progress: bool) -> None:
    bar = tqdm(total=len(todo), desc="making slides", unit="slide", disable=not progress or not todo)
    with bar:
        if workers <= 1 or len(todo) <= 1:
            for spec in todo:
                _make_slide(folder, spec)
                bar.update()
            return
        # Spawned, not forked: torch and OpenMP threads of a notebook do not survive a fork.
        context = multiprocessing.get_context("spawn")
        _warm_up(todo[0])
        with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context) as pool:
            futures = [pool.submit(_make_slide, folder, spec) for spec in todo]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _warm_up(spec: dict[str, Any]) -> None:
    """Compile once, here, so that the workers find the compiled code on disk instead of each compiling it."""
    scan(lymph_node(1, size_um=(400, 400)), SITES[spec["site"]], (0, 0), (16, 16))


def _architecture(spec: dict[str, Any]) -> Architecture:
    """The node of a slide; seeds in which a deposit finds no place are passed over."""
    for attempt in range(50):
        try:
            return lymph_node(spec["seed"] + attempt, spec["category"], size_um=tuple(spec["size_um"]))
        except RuntimeError:
            continue
    raise ValueError(f"{spec['slide_id']}: no node with category {spec['category']} in {spec['size_um']} µm.")


def _make_slide(folder: Path, spec: dict[str, Any]) -> None:
    """Truth first, the slide last: where the slide is, all is."""
    architecture, site = _architecture(spec), SITES[spec["site"]]
    slide_id = spec["slide_id"]
    outlines = [
        Row(_to_l0(row.geometry, site), "tumour", f"{row.category} {row.lesion_id}", "#d55e00")
        for row in architecture.lesions.itertuples()
    ]
    write_annotations(annotation_frame(outlines), folder / f"{slide_id}.geojson")
    write_table(
        nuclei(architecture, slide_id=slide_id), folder / f"{slide_id}.objects.parquet", synthetic=True
    )
    write_pyramid(_pixels(architecture, site), folder / f"{slide_id}.tif", mpp=site.mpp, quality=site.quality)


def _pixels(architecture: Architecture, site: Site) -> np.ndarray:
    width, height = (int(n / site.mpp) for n in architecture.size_um)
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND_PX):
        rows = min(_BAND_PX, height - top)
        out[top : top + rows] = scan(architecture, site, (0, top), (width, rows))
    return out


def _to_l0(geometry: Any, site: Site) -> Any:
    import shapely

    return shapely.transform(geometry, lambda xy: np.round(xy / site.mpp, 2))


def _described(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """The row of a slide, from what was written."""
    from pathkit.annotations import read_annotations

    site = SITES[spec["site"]]
    stem = folder / spec["slide_id"]
    outlines = read_annotations(f"{stem}.geojson")
    return {
        "slide_id": spec["slide_id"],
        "patient_id": spec["patient_id"],
        "site": spec["site"],
        "path": f"{stem}.tif",
        "mpp": site.mpp,
        "label": "normal" if spec["category"] == "normal" else "tumour",
        "category": spec["category"],
        "annotations_path": f"{stem}.geojson",
        "objects_path": f"{stem}.objects.parquet",
        "n_lesions": len(outlines),
        "tumour_um2": float(outlines.area.sum() * site.mpp**2),
    }


# Checks ----------------------------------------------------------------------------------------------------------


def _check(parameters: dict[str, Any]) -> None:
    if parameters["n_patients"] < 1 or parameters["nodes_per_patient"] < 1:
        raise ValueError("lymph_node_cohort: at least one patient and one node, both.")
    if not 0 <= parameters["positive"] <= 1:
        raise ValueError(f"lymph_node_cohort: positive is a share from 0 to 1, got {parameters['positive']}.")
    for name, known in (("kinds", _KINDS), ("sites", tuple(SITES))):
        unknown = [v for v in parameters[name] if v not in known]
        if unknown or not parameters[name]:
            raise ValueError(
                f"lymph_node_cohort: {name} are among {', '.join(known)}, got {parameters[name]}."
            )


def _check_manifest(folder: Path, parameters: dict[str, Any]) -> None:
    path = folder / "manifest.json"
    text = json.dumps(parameters, indent=1, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise ValueError(
            f"{folder}: holds a cohort made with other parameters (manifest.json). Choose another folder."
        )
    write_text(path, text)


def _check_disk(folder: Path, n_slides: int, size_um: tuple[float, float]) -> None:
    needed = n_slides * size_um[0] * size_um[1] * 0.6  # bytes: JPEG of stained tissue, and the tables
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder}: {n_slides} slides need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free."
        )


def slides_of(folder: Path) -> pd.DataFrame:
    """The slides table of a finished cohort, with its paths as they are now."""
    table = read_table(folder / "slides.parquet")
    for column, suffix in (
        ("path", ".tif"),
        ("annotations_path", ".geojson"),
        ("objects_path", ".objects.parquet"),
    ):
        table[column] = [str(folder / f"{slide_id}{suffix}") for slide_id in table["slide_id"]]
    return check_slides(table)
