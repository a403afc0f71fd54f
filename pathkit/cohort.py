"""Run one thing on many slides, and lose nothing when one of them fails.

Each slide gets a row in ``<step>.csv`` with status ``ok`` or ``error`` and the reason; the file is rewritten whole after
every slide, so that an interrupted run resumes with the slides that are left. A row counts as done while the step's
parameters, written beside it, are the same.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from pathkit.files import write_text
from pathkit.geometry import Raster
from pathkit.slide import SlideError, open_slide

__all__ = ["find_slides", "run", "thumbnails"]

#: Suffixes taken from a folder. A file named directly is tried whatever its suffix.
SLIDE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm")
    + (".png", ".jpg", ".jpeg")
)


def find_slides(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files named, and slides in folders named, sorted within each folder.

    Raises
    ------
    SlideError
        If a folder holds no slide, or nothing is named.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file())
        if not inside:
            raise SlideError(
                f"{path}: no slides in this folder (looked for {', '.join(sorted(SLIDE_SUFFIXES))}). Name the files"
                " themselves if they end otherwise."
            )
        found.extend(inside)
    if not found:
        raise SlideError("No slide given. Name slide files, or folders of slides.")
    return found


def run(
    work: Callable[[Path], Mapping[str, Any]],
    slides: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str],
    step: str,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Apply `work` to each slide; one row a slide, an error row where it failed.

    Parameters
    ----------
    work : callable
        Takes the path of a slide and returns what belongs in its row (numbers, names of files written).
    slides : sequence of paths
        Two slides with one file name (``a/1.svs`` and ``b/1.svs``) are refused, since their outputs would collide.
    out : path
        Folder for ``<step>.csv`` and ``<step>.json``; made where it is missing.
    step : str
        Name of what is done, for example ``"tissue"``.
    parameters : mapping, optional
        What the result depends on. Rows made with other parameters are made again.
    force : bool
        Make every row again.

    Returns
    -------
    DataFrame
        Columns slide_id, path, status ("ok" or "error"), error, seconds, and what `work` returned.

    Raises
    ------
    SlideError
        If two slides share a name.
    Exception
        What `work` raised that is no fault of a slide (not ValueError, OSError or MemoryError): raised after the other
        slides are done, and kept in the row of its slide.
    """
    paths = [Path(p) for p in slides]
    _check_names(paths)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    table_path, parameters_path = folder / f"{step}.csv", folder / f"{step}.json"
    asked = json.dumps(dict(parameters or {}), sort_keys=True, default=str)
    same = parameters_path.exists() and parameters_path.read_text() == asked
    done = _rows_done(table_path) if same and not force else {}
    write_text(parameters_path, asked)
    rows, faults = dict(done), []
    with tqdm(paths, desc=step, unit="slide", disable=not progress) as bar:
        for path in bar:
            bar.set_postfix_str(path.name)
            row = done.get(path.stem)
            if row is None or row["path"] != str(path):
                row, fault = _row(work, path)
                faults += [fault] if fault else []
            rows[path.stem] = row
            write_text(table_path, pd.DataFrame(list(rows.values())).to_csv(index=False))
    if faults:
        raise faults[0]
    return pd.DataFrame([rows[p.stem] for p in paths])


def thumbnails(slides: pd.DataFrame, *, mpp: float = 8.0) -> dict[str, Raster]:
    """Every slide at low resolution, placed in microns: slide_id to a `Raster` of (H, W, 3) uint8."""
    found = {}
    for row in slides.to_dict("records"):
        with open_slide(row["path"], mpp=row.get("mpp")) as slide:
            size = tuple(math.ceil(n * slide.mpp / mpp) for n in slide.dimensions)
            found[row["slide_id"]] = Raster(slide.read_region((0, 0), (size[0], size[1]), mpp=mpp), mpp)
    return found


def _row(work: Callable[[Path], Mapping[str, Any]], path: Path) -> tuple[dict[str, Any], Exception | None]:
    """The slide's row, and the error where it is a fault of the code, which should be seen whole."""
    start, fault = time.perf_counter(), None
    row: dict[str, Any] = {"slide_id": path.stem, "path": str(path), "status": "ok", "error": ""}
    try:
        row.update(work(path))
    except (ValueError, OSError, MemoryError) as error:
        row.update(status="error", error=" ".join(str(error).split()) or type(error).__name__)
    except Exception as error:
        error.add_note(f"while working on {path.name}; the other slides were done")
        row.update(
            status="error", error=f"{path.name}: {type(error).__name__}: {' '.join(str(error).split())}"
        )
        fault = error
    row["seconds"] = round(time.perf_counter() - start, 3)
    return row, fault


def _rows_done(table_path: Path) -> dict[str, dict[str, Any]]:
    if not table_path.exists():
        return {}
    table = pd.read_csv(table_path, dtype={"slide_id": str, "path": str}, keep_default_na=False)
    return {str(row["slide_id"]): dict(row) for row in table.to_dict("records") if row["status"] == "ok"}  # type: ignore[arg-type]


def _check_names(paths: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other != path:
            raise SlideError(
                f"{other} and {path} share the name {path.stem!r}, so that their results would overwrite each other. Run"
                " them into two folders."
            )
