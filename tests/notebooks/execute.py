"""Execute the series of notebooks in clean kernels, measured, and store their outputs.

``make notebooks`` runs this file. A notebook is executed when its cells, the package or the tested versions changed
since its outputs were stored (``--force``: in any case). Viewers store a picture instead of a live widget, which a
notebook opened later without its kernel could not show. The kernel is held to two cores, as on a Binder machine, and
the measured time and memory are written into the notebook's header.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[2]
CORES = 2
WIDGET = "application/vnd.jupyter.widget-view+json"
#: The line of the first cell that carries what was measured.
RUN_TIME = re.compile(r"^\*\*Run time:\*\*.*$", re.MULTILINE)


@dataclass
class Run:
    """An executed notebook and what it took."""

    notebook: Any
    seconds: float
    peak_mb: float


def series() -> list[Path]:
    """The notebooks in their order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def execute(path: Path, *, timeout: int = 900) -> Run:
    """Run all cells in a clean kernel on two cores.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises that is not tagged ``raises-exception``.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        shutdown_kernel="immediate",  # a kernel takes seconds to give back what it held, which is no part of the run
        resources={"metadata": {"path": str(path.parent)}},
    )
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    with (
        two_cores(),
        tqdm(total=len(cells), desc=path.stem, unit="cell") as bar,
        _PeakMemory(client) as memory,
    ):
        client.on_cell_executed = lambda cell, cell_index, execute_reply: bar.update(cell.cell_type == "code")
        start = time.perf_counter()
        client.execute(env=os.environ | {"PATHKIT_STATIC": "1", "OMP_NUM_THREADS": str(CORES)})
        seconds = time.perf_counter() - start
    return Run(notebook, seconds, memory.peak_mb)


@contextmanager
def two_cores() -> Iterator[None]:
    """Hold this process, and the kernels it starts, to two cores where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:CORES]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _PeakMemory(threading.Thread):
    """Samples the memory of the kernel and its children: what each holds alone, so that sharing counts once.

    That takes long to count (40 ms at 1.5 GB, while the kernel's own memory calls wait), so that it is done only when what
    they hold in all, which is at hand, has grown by 1%.
    """

    def __init__(self, client: NotebookClient):
        super().__init__(daemon=True)
        self._client, self._stop_sampling, self.peak_mb = client, threading.Event(), 0.0

    def __enter__(self) -> _PeakMemory:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_sampling.set()
        self.join()

    def run(self) -> None:
        most = 0.0
        while not self._stop_sampling.wait(0.25):
            provisioner = getattr(self._client.km, "provisioner", None)
            pid = getattr(provisioner, "pid", None)
            if pid is not None and (held := _memory_mb(pid, alone=False)) > 1.01 * most:
                most = held
                self.peak_mb = max(self.peak_mb, _memory_mb(pid))


def _memory_mb(pid: int, *, alone: bool = True) -> float:
    total = 0
    try:
        kernel = psutil.Process(pid)
        for process in [kernel, *kernel.children(recursive=True)]:
            total += process.memory_full_info().uss if alone else process.memory_info().rss
    except psutil.Error:  # it ended while being looked at
        return 0.0
    return total / 2**20


# Storing ---------------------------------------------------------------------------------------------------------


def cells_digest(notebook: Any) -> str:
    """Changes when a code cell does; outputs are from these cells when it equals the stored one."""
    sources = "\0".join(c.source for c in notebook.cells if c.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def package_digest() -> str:
    """Changes when the package or the tested versions do."""
    digest = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
    for path in sorted((ROOT / "pathkit").rglob("*")):
        if path.suffix in {".py", ".js", ".css"}:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def store(run: Run, path: Path) -> None:
    """Write the notebook with its outputs, its measured header, and no trace of this machine."""
    notebook = run.notebook
    took = f"{run.seconds:.0f} s on two CPU cores, at most {run.peak_mb / 1024:.1f} GB of memory"
    measured = f"**Run time:** {took} (measured)"
    head = notebook.cells[0]
    if not RUN_TIME.search(head.source):
        raise SystemExit(f"{path.name}: its first cell needs a line that starts with **Run time:**")
    head.source = RUN_TIME.sub(measured, head.source)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
            for output in cell.outputs:
                shorten(output)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata.pathkit = {"cells": cells_digest(notebook), "package": package_digest()}
    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    partial.replace(path)
    readme = ROOT / "README.md"
    readme.write_text(with_run_time(readme.read_text(), path.name, run))


def shorten(output: Any) -> None:
    """Of an error keep the message alone: the way to it runs through folders of this machine."""
    if output.output_type == "error":
        output.traceback = output.traceback[-1:]


def with_run_time(table: str, name: str, run: Run) -> str:
    """The README with the measured time and memory in the last column of a notebook's row."""
    row = re.compile(rf"^(\|.*\(notebooks/{re.escape(name)}\).*\|)[^|\n]*\|$", re.MULTILINE)
    return row.sub(rf"\g<1> {run.seconds:.0f} s, {run.peak_mb / 1024:.1f} GB |", table)


def is_current(path: Path) -> bool:
    """Whether the stored outputs are of these cells, this package and these versions."""
    notebook = nbformat.read(path, as_version=4)
    wanted = {"cells": cells_digest(notebook), "package": package_digest()}
    return dict(notebook.metadata.get("pathkit", {})) == wanted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks to execute (default: the series)")
    parser.add_argument("--force", action="store_true", help="execute also what did not change")
    options = parser.parse_args()
    for path in options.notebooks or series():
        if not options.force and is_current(path):
            print(f"{path.name}: unchanged since its outputs were stored")
            continue
        run = execute(path)
        store(run, path)
        size_mb = path.stat().st_size / 1e6
        print(f"{path.name}: {run.seconds:.0f} s, {run.peak_mb:.0f} MB of memory, {size_mb:.2f} MB on disk")
    return 0


if __name__ == "__main__":
    sys.exit(main())
