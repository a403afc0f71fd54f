"""End to end on one slide: tissue mask, grid, and every patch as an array; pathkit beside what others write and offer.

A loop is what everyone writes: a thumbnail, Otsu's threshold, a grid, one thread a core. Patches are 256 px, unaligned with
the tiles. Ways take turns, and the best of several counts.

    python benchmarks/end_to_end.py [--quick] [--peers PYTHON]

hs2p, tiatoolbox and pyvips are run where the Python of `--peers` (see `peers.py`) has them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmarks_slides import tissue_slide
from peers import Peer, by_hand, with_openslide
from results import found

from pathkit.patches import patch_grid
from pathkit.slide import open_slide
from pathkit.tiles import CACHE

SIZE, OVERLAP, MPP = 256, 16, 0.5
GOALS = {
    "openslide, a loop": 1,
    "pyvips, a loop": 1,
    "hs2p with vips": 1.5,
    "hs2p with openslide": 1.5,
    "tiatoolbox": 10,
}
THREADS = min(2, os.cpu_count() or 1)


def ours(path):
    with open_slide(path) as slide:
        table = patch_grid(slide, size_px=SIZE, mpp=MPP, overlap_px=OVERLAP)
        out = np.empty((64, SIZE, SIZE, 3), np.uint8)
        for at in range(0, len(table), 64):
            part = table[at : at + 64]
            slide.read_patches(part, out=out[: len(part)], threads=THREADS)
        return len(table)


def theirs(peer, name):
    options = {"size": SIZE, "overlap": OVERLAP, "threads": THREADS, "mpp": MPP}
    return lambda path: peer.ask("whole", name, path=str(path), **options)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="two turns, not four; a smaller slide")
    parser.add_argument("--peers", action="append", metavar="PYTHON", default=[])
    options = parser.parse_args()
    repeats = 2 if options.quick else 4
    CACHE.max_bytes = 30_000_000  # less than the slide, so that nothing is left from the turn before
    ways = {"pathkit": ours}
    ways["openslide, a loop"] = lambda path: by_hand(str(path), SIZE, OVERLAP, THREADS, with_openslide)
    for peer in map(Peer, [sys.executable, *options.peers]):
        ways |= {name: theirs(peer, name) for name in peer.whole}
        print(*(f"{name} {version}" for name, version in peer.versions.items()), sep=", ")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        side = {"across": 4, "down": 3} if options.quick else {"across": 8, "down": 6}
        path = tissue_slide(Path(folder) / "slide.tif", mpp=MPP, **side)
        for turn in range(repeats + 1):  # the first warms up
            for name, way in ways.items():
                start = time.perf_counter()
                n = way(path)
                if turn:
                    seconds[name].append((time.perf_counter() - start) / n * 1000)
    best = {name: min(s) for name, s in seconds.items()}
    print("| mask, grid and patches | s per 1000 patches | pathkit is faster by |")
    print("|---|---|---|")
    for name, s in best.items():
        print(f"| {name} | {s:.3f} | {s / best['pathkit']:.1f} |")
        if name != "pathkit":
            found(f"mask, grid, patches: times as fast as {name}", s / best["pathkit"], least=GOALS.get(name))


if __name__ == "__main__":
    main()
