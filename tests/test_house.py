"""The house is in order: versions agree everywhere, and importing pathkit is cheap."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: What conda-forge calls by another name.
CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch"}


def normal(requirement: str) -> str:
    """The distribution's normalised name (PEP 503)."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        normal(n): v for n, v in (line.split("==") for line in lines if line and not line.startswith("#"))
    }


def conda_pins(path: Path) -> dict[str, str]:
    pins = {}
    for entry in yaml.safe_load(path.read_text())["dependencies"]:
        for requirement in entry["pip"] if isinstance(entry, dict) else [entry]:
            name, _, version = re.sub("=+", "=", requirement).partition("=")
            if name not in ("python", "pip"):
                pins[CONDA_NAMES.get(normal(name), normal(name))] = version
    return pins


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_conda_and_binder_have_the_tested_versions_of_everything_needed(path):
    tested = constraints()
    needed = {normal(r) for r in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["lab"]}
    assert conda_pins(ROOT / path) == {name: tested[name] for name in needed}


def test_every_dependency_has_a_tested_version_within_its_bound():
    tested = constraints()
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (r for group in groups for r in group):
        bound = requirement.split(">=")[1]
        version = tested[normal(requirement)]
        assert [int(n) for n in re.findall(r"\d+", version)] >= [int(n) for n in re.findall(r"\d+", bound)], (
            requirement
        )


def test_importing_pathkit_costs_no_heavy_library():
    code = "import sys, pathkit; print(*sorted({'torch', 'bokeh', 'openslide', 'pandas', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_the_first_import_of_a_module_gives_the_module():
    code = "import pathkit; print(*[n for n in pathkit._MODULES if vars(pathkit).get(n) is not None])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""  # nothing of that name stands in the way of the lazy import


def test_every_public_name_can_be_had():
    import pathkit

    for name in pathkit.__all__:
        assert getattr(pathkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tissue_msk'"):
        _ = pathkit.tissue_msk


def test_the_readme_lists_every_notebook():
    readme = (ROOT / "README.md").read_text()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert notebook.name in readme, f"{notebook.name} is missing from the README's table"


def test_no_file_names_a_machine_or_a_registry():
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    pattern = re.compile(
        r"/(?:root|home|Users)/[A-Za-z0-9_.-]+|(?:index-url|find-links|registry)[ =:]+[a-z]+://"
    )
    for name in filter(None, files.split("\0")):
        path = ROOT / name
        if path.suffix in {".png", ".jpg"} or not path.is_file() or name == "tests/test_house.py":
            continue
        found = pattern.search(path.read_text(errors="ignore"))
        assert found is None, f"{name}: {found.group()}"
