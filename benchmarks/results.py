"""What a benchmark found, for the table at the end of `make bench`."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from pathlib import Path

#: Where `run.py` says that results are to be written; nothing is written without it.
PLACE = "PATHKIT_BENCH_RESULTS"


def peak_mb():
    """The most memory that this process has held.

    `getrusage` alone would give that of the process that started this one, where that was larger: Linux counts the moment
    between fork and exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def found(what, value, *, least=None, most=None, unit=""):
    """Note a number, and the goal that it is to reach: at least `least`, or at most `most`."""
    if PLACE in os.environ:
        row = {"what": what, "value": float(value), "least": least, "most": most, "unit": unit}
        with open(os.environ[PLACE], "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
