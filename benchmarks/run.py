"""Run the benchmarks one after another, each in a fresh process, and put what they found into one table.

    python benchmarks/run.py [--full] [--peers PYTHON] [SCRIPT ...]

By default the quick forms of those that compare speed and memory (4 minutes on two quiet cores). The exit status is 1
where a script fails, not where a goal is missed: a busy machine misses goals.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from results import PLACE

SCRIPTS = (
    "reading.py",
    "end_to_end.py",
    "stain.py",
    "inference.py",
    "memory.py",
    "gpu_inference.py",
    "gpu_training.py",
)
#: Which of them take `--quick`, and `--peers`.
QUICK = {"reading.py", "end_to_end.py", "inference.py", "memory.py"}
WITH_PEERS = {"reading.py", "end_to_end.py", "stain.py"}


@dataclass
class Run:
    """What became of a script."""

    name: str
    rows: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    peak_mb: float = 0.0
    error: str | None = None


def run(script, arguments=()):
    """Run one script, show what it prints, and return its `Run`; peak memory is that of its largest process."""
    script = Path(script)
    with tempfile.TemporaryDirectory() as folder:
        results, errors = Path(folder) / "results", Path(folder) / "errors"
        command = [sys.executable, __file__, "--launch", f"{folder}/peak", str(script), *arguments]
        start = time.perf_counter()
        with errors.open("w") as stderr:
            process = subprocess.run(
                command, stderr=stderr, env=os.environ | {PLACE: str(results)}, check=False
            )
        peak_mb = float(Path(folder, "peak").read_text())
        rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        error = None
        if process.returncode:
            said = errors.read_text().strip().splitlines() or [f"exit status {process.returncode}"]
            error = said[-1]
    return Run(script.name, rows, time.perf_counter() - start, peak_mb, error)


def launch(peak, *command):
    """Run a command, write the memory of its largest process, and end as it did.

    A process of its own, since a child counts what its parent held when it was started.
    """
    process = subprocess.Popen([sys.executable, *command])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    Path(peak).write_text(str(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)))
    sys.exit(process.returncode)


def table(runs):
    """One table of all, in Markdown."""
    lines = ["| benchmark | what | found | goal | met |", "|---|---|---|---|---|"]
    for one in runs:
        for row in one.rows:
            value, unit = row["value"], f" {row['unit']}".rstrip()
            goal, met = "", ""
            if row["least"] is not None:
                goal, met = f"at least {row['least']:,g}{unit}", value >= row["least"]
            elif row["most"] is not None:
                goal, met = f"at most {row['most']:,g}{unit}", value <= row["most"]
            said = {True: "yes", False: "**no**", "": ""}[met]
            lines.append(f"| {one.name} | {row['what']} | {_number(value)}{unit} | {goal} | {said} |")
        if one.error is not None:
            lines.append(f"| {one.name} | failed: {one.error[:200].replace('|', '/')} | | | **no** |")
        lines.append(f"| {one.name} | its largest process, {one.seconds:.0f} s | {one.peak_mb:,.0f} MB | | |")
    return "\n".join(lines)


def _number(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("scripts", nargs="*", help="names of scripts in this folder")
    parser.add_argument("--full", action="store_true", help="not the quick forms")
    parser.add_argument("--peers", action="append", metavar="PYTHON", default=[])
    options = parser.parse_args()
    runs = []
    for name in options.scripts or SCRIPTS:
        arguments = [] if options.full or name not in QUICK else ["--quick"]
        if name in WITH_PEERS:
            arguments += [a for python in options.peers for a in ("--peers", python)]
        print(f"\n== {' '.join([name, *arguments])}", flush=True)
        runs.append(run(Path(__file__).with_name(name), arguments))
    print(f"\n== All ({sum(one.seconds for one in runs) / 60:.1f} minutes)\n\n{table(runs)}")
    sys.exit(any(one.error for one in runs))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--launch"]:
        launch(*sys.argv[2:])
    main()
