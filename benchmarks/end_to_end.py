"""End to end on one slide: tissue mask, grid, and every patch as an array; pathkit beside OpenSlide and pyvips.

The peers are what everyone writes around them: a thumbnail, Otsu's threshold, a grid, a loop (one thread a core). Patches are
256 px, unaligned with the tiles. Ways take turns; ratios are of the medians. tiatoolbox, PathML and hs2p bring their own
torch or vips and belong into an environment of their own: they are not run here.

    python benchmarks/end_to_end.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
from benchmarks_slides import tissue_slide
from skimage.color import rgb2gray
from skimage.filters import threshold_otsu

from pathkit.patches import patch_grid
from pathkit.slide import open_slide
from pathkit.tiles import CACHE

SIZE, MPP = 256, 0.5
THREADS = min(2, os.cpu_count() or 1)


def ours(path):
    with open_slide(path) as slide:
        table = patch_grid(slide, size_px=SIZE, mpp=MPP, overlap_px=16)
        out = np.empty((64, SIZE, SIZE, 3), np.uint8)
        for at in range(0, len(table), 64):
            part = table[at : at + 64]
            slide.read_patches(part, out=out[: len(part)], threads=THREADS)
        return len(table)


def by_hand(path, read):
    """A mask by Otsu of a thumbnail, the same grid, and `read(x, y)` in a pool of threads."""
    slide = openslide.OpenSlide(str(path))
    thumbnail = rgb2gray(np.asarray(slide.get_thumbnail((1024, 1024)).convert("RGB")))
    mask = thumbnail <= max(threshold_otsu(thumbnail), 0.95)
    step, scale = SIZE - 16, thumbnail.shape[1] / slide.dimensions[0]
    places = []
    for y in range(0, slide.dimensions[1], step):
        for x in range(0, slide.dimensions[0], step):
            r, c = int(y * scale), int(x * scale)
            side = max(1, int(SIZE * scale))
            if mask[r : r + side, c : c + side].mean() >= 0.5:
                places.append((x, y))
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read(slide, path), places))
    return len(places)


def with_openslide(slide, path):
    return lambda at: np.asarray(slide.read_region(at, 0, (SIZE, SIZE)).convert("RGB"))


def with_pyvips(slide, path):
    import threading

    import pyvips

    regions, (width, height) = threading.local(), slide.dimensions

    def read(at):
        if not hasattr(regions, "it"):
            regions.it = pyvips.Region.new(pyvips.Image.new_from_file(str(path), page=0))
        w, h = min(SIZE, width - at[0]), min(SIZE, height - at[1])
        return np.frombuffer(regions.it.fetch(*at, w, h), np.uint8).reshape(h, w, 3)

    return read


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    CACHE.max_bytes = 50_000_000  # less than the slide, so that nothing is left from the turn before
    ways = {"pathkit": ours, "openslide, a loop": lambda path: by_hand(path, with_openslide)}
    if importlib.util.find_spec("pyvips"):
        ways["pyvips, a loop"] = lambda path: by_hand(path, with_pyvips)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        path = tissue_slide(Path(folder) / "slide.tif", mpp=MPP)
        for turn in range(repeats + 1):  # the first warms up
            for name, way in ways.items():
                start = time.perf_counter()
                n = way(path)
                if turn:
                    seconds[name].append((time.perf_counter() - start) / n * 1000)
    best = {name: float(np.median(s)) for name, s in seconds.items()}
    print("| mask, grid and patches | s per 1000 patches | pathkit is faster by |")
    print("|---|---|---|")
    for name, s in best.items():
        print(f"| {name} | {s:.3f} | {s / best['pathkit']:.1f} |")


if __name__ == "__main__":
    main()
