"""Peak memory on a very large slide: mask, features and heatmap, each in a fresh process; the goal is 2 GB.

The slide is written in bands: glass with a strip of painted tissue, so that its file stays small and the network has little
to do, while every array that grows with the slide is as large as it gets. With ``--tissue`` it is covered with sections of
colon. Or it is one that you have.

    python benchmarks/memory.py [--quick] [--side 100000] [--tissue] [--slide PATH] [--patches N]

`--patches` limits the features to so many; the whole table of places is made all the same. They go to a file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from benchmarks_slides import colon_everywhere
from results import found, peak_mb

from pathkit.slide import open_slide
from pathkit.synthetic import write_pyramid
from pathkit.synthetic.mosaic import Mosaic

MPP, GOAL_MB = 0.5, 2048
WORKS = ("start", "mask", "features", "heatmap")


def write(path, side):
    field = Mosaic((16_000, 12_800), mpp=MPP).read((6000, 6000), (1024, 1024))

    def read(location, size):
        band = np.full((size[1], size[0], 3), 244, np.uint8)
        for x in range(location[0] - location[0] % 1024, location[0] + size[0], 1024):
            if (side // 4) // 1024 <= x // 1024 < (side // 4) // 1024 + 3:
                rows = (np.arange(size[1]) + location[1]) % 1024
                left = x - location[0]
                band[:, left : left + 1024] = field[rows][:, : band.shape[1] - left]
        return band

    return write_pyramid(read, path, mpp=MPP, size=(side, side), quality=80)


def do(work, path, n_patches):
    from pathkit.engine import open_engine  # noqa: F401  what "start" imports, all others do
    from pathkit.inference import extract_features, heatmap
    from pathkit.models import patch_classifier
    from pathkit.patches import patch_grid
    from pathkit.tissue import tissue_mask

    warnings.simplefilter("ignore")
    slide = open_slide(path)
    model = patch_classifier("small", classes=["normal", "tumour"]).eval()
    model.mpp, model.size_px = 1.0, 64
    if work == "mask":
        tissue_mask(slide, mpp=8.0)
    elif work == "features":
        grid = patch_grid(slide, size_px=64, mpp=1.0)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "features.npy"
            extract_features(slide, grid[:n_patches], model.encoder, out=file, progress=False)
        work = f"features of {min(n_patches or len(grid), len(grid)):,} of {len(grid):,} patches"
    elif work == "heatmap":
        heat = heatmap(slide, model, progress=False)
        work = f"heatmap of {heat.values.shape[1]:,} x {heat.values.shape[0]:,} px"
    print(work)
    print(peak_mb())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a side of 20,000 px")
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--tissue", action="store_true", help="sections of colon all over the slide")
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--patches", type=int)
    parser.add_argument("--do", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        do(*options.do, options.patches)
        return
    with tempfile.TemporaryDirectory() as folder:
        side = 20_000 if options.quick else options.side
        new = Path(folder) / "slide.tif"
        path = options.slide or (
            colon_everywhere(new, side=side, mpp=MPP) if options.tissue else write(new, side)
        )
        width, height = open_slide(path).dimensions
        print(f"slide of {width:,} x {height:,} px, {path.stat().st_size / 1e6:.0f} MB")
        print(f"| work | peak MB (goal {GOAL_MB}) | s |")
        print("|---|---|---|")
        for work in WORKS:
            start = time.perf_counter()
            command = [sys.executable, __file__, "--do", work, str(path)]
            command += ["--patches", str(options.patches)] if options.patches else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            said, peak_mb = done.stdout.splitlines()[-2:]
            print(f"| {said} | {float(peak_mb):.0f} | {time.perf_counter() - start:.0f} |", flush=True)
            found(f"slide of {width:,} px, peak memory: {said}", float(peak_mb), most=GOAL_MB, unit="MB")


if __name__ == "__main__":
    main()
