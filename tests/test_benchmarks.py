"""The runner of the benchmarks, on stand-in scripts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def runner(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmarks_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks_run", module)
    spec.loader.exec_module(module)
    return module


def script(folder, name, text):
    path = folder / name
    path.write_text(f"import sys\nsys.path.insert(0, {str(FOLDER)!r})\nfrom results import found\n{text}")
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is asked of POSIX")
def test_what_scripts_find_comes_into_one_table(runner, tmp_path, capfd):
    good = script(
        tmp_path,
        "good.py",
        "held = b'x' * 200_000_000\n"
        "print('seen', *sys.argv[1:])\n"
        "found('share of the limit', 0.875, least=0.8)\n"
        "found('memory', 3000, most=2048, unit='MB')\n"
        "found('patches', 12, unit='a second')\n",
    )
    bad = script(tmp_path, "bad.py", "found('before', 1)\nraise ValueError('no | slide')\n")
    runs = [runner.run(good, ["--quick"]), runner.run(bad)]
    assert "seen --quick" in capfd.readouterr().out
    assert 200 < runs[0].peak_mb < 400  # of the script, not of this process
    assert runs[0].error is None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in runner.table(runs).splitlines()]
    assert {len(row) for row in rows} == {5}
    assert rows[2:5] == [
        ["good.py", "share of the limit", "0.875", "at least 0.8", "yes"],
        ["good.py", "memory", "3,000 MB", "at most 2,048 MB", "**no**"],
        ["good.py", "patches", "12 a second", "", ""],
    ]
    assert rows[6:8] == [
        ["bad.py", "before", "1", "", ""],
        ["bad.py", "failed: ValueError: no / slide", "", "", "**no**"],
    ]


def test_every_script_that_make_bench_runs_is_there(runner):
    assert all((FOLDER / name).is_file() for name in runner.SCRIPTS)
    assert set(runner.SCRIPTS) >= runner.QUICK | runner.WITH_PEERS
    for name in runner.SCRIPTS:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert ("--quick" in text) == (name in runner.QUICK)
        assert ('"--peers"' in text) == (name in runner.WITH_PEERS)
        assert "from results import found" in text
