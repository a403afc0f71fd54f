"""How long each notebook takes and how much memory it holds, in a clean kernel on two cores; prints a Markdown table."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "notebooks"))

import execute

GOAL_S, GOAL_MB = 120, 2048


def main() -> None:
    print(f"| notebook | seconds (goal {GOAL_S}) | of the goal | peak MB (goal {GOAL_MB}) | of the goal |")
    print("|---|---|---|---|---|")
    for path in execute.series():
        run = execute.execute(path)
        print(
            f"| {path.stem} | {run.seconds:.0f} | {run.seconds / GOAL_S:.2f}"
            f" | {run.peak_mb:.0f} | {run.peak_mb / GOAL_MB:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
