"""Peak memory on a very large slide: mask, features and heatmap, each in a fresh process; the goal is 2 GB.

The slide is written in bands: glass with a strip of painted tissue, so that its file stays small and the network has little
to do, while every array that grows with the slide is as large as it gets.

    python benchmarks/memory.py [--side 100000]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from pathkit.synthetic import write_pyramid
from pathkit.synthetic.mosaic import Mosaic

MPP, GOAL_MB = 0.25, 2048
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


def do(work, path):
    from pathkit.engine import open_engine  # noqa: F401  what "start" imports, all others do
    from pathkit.inference import extract_features, heatmap
    from pathkit.models import patch_classifier
    from pathkit.patches import patch_grid
    from pathkit.slide import open_slide
    from pathkit.tissue import tissue_mask

    warnings.simplefilter("ignore")
    slide = open_slide(path)
    model = patch_classifier("small", classes=["normal", "tumour"]).eval()
    model.mpp, model.size_px = 1.0, 64
    if work == "mask":
        tissue_mask(slide, mpp=8.0)
    elif work == "features":
        extract_features(slide, patch_grid(slide, size_px=64, mpp=1.0), model.encoder, progress=False)
    elif work == "heatmap":
        heatmap(slide, model, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--do", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        do(*options.do)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "slide.tif", options.side)
        print(f"slide of {options.side:,} x {options.side:,} px, {path.stat().st_size / 1e6:.0f} MB")
        print(f"| work | peak MB (goal {GOAL_MB}) | s |")
        print("|---|---|---|")
        for work in WORKS:
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, "--do", work, str(path)],
                capture_output=True,
                text=True,
                check=True,
            )
            print(
                f"| {work} | {float(done.stdout.split()[-1]):.0f} | {time.perf_counter() - start:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
