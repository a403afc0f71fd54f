"""Every notebook executes afresh, within its memory, and is stored as it was executed."""

from __future__ import annotations

import nbformat
import pytest
from execute import Run, cells_digest, execute, series, with_run_time

NOTEBOOKS = series()
LIMIT_MB = 2048
LIMIT_BYTES = 1_500_000


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def tags(cell):
    return cell.metadata.get("tags", [])


@pytest.mark.notebook
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_from_top_to_bottom_within_its_memory(path):
    run = execute(path)
    print(f"{path.stem}: {run.seconds:.0f} s, {run.peak_mb:.0f} MB")
    assert 50 < run.peak_mb < LIMIT_MB


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_stored_outputs_are_those_of_its_cells(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["pathkit"]["cells"] == cells_digest(notebook), "run `make notebooks` and commit"
    counts = [c.execution_count for c in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [(o, tags(c)) for c in code_cells(notebook) for o in c.outputs]
    assert not [o for o, t in outputs if o.output_type == "error" and "raises-exception" not in t]
    assert any("image/png" in o.get("data", {}) for o, _ in outputs)
    assert all(len(o.traceback) == 1 for o, _ in outputs if o.output_type == "error")  # no folder of a machine
    assert path.stat().st_size < LIMIT_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_has_the_shape_of_the_series(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert sum("parameters" in tags(c) for c in cells) == 1
    parameters = next(c for c in cells if "parameters" in tags(c))
    assert 'dataset = "synthetic"' in parameters.source
    assert "seed =" in parameters.source
    for heading in [
        "You will learn",
        "**Time**",
        "**Needs**",
        "**Run time:**",
        "## Limits",
        "## Summary",
        "## Where next",
    ]:
        assert heading in prose, heading
    assert max(len(c.source.splitlines()) for c in cells) <= 14
    solutions = [c for c in cells if "solution" in tags(c)]
    assert all(c.metadata.get("jupyter", {}).get("source_hidden") for c in solutions)
    assert all("assert" in c.source for c in solutions)


def test_the_readme_gets_the_measured_time_in_the_row_of_the_notebook_alone():
    before = "| [a](notebooks/01_a.ipynb) | x | 9 s, 1.0 GB |\n| [b](notebooks/02_b.ipynb) | y | in its header |\n"
    after = with_run_time(before, "02_b.ipynb", Run(None, 61.6, 1536))
    assert after == before.replace("in its header", "62 s, 1.5 GB")
