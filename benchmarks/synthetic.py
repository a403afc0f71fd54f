"""How fast synthetic slides are made with all their truth, beside JPEG-encoding the same pixels. Prints ratios.

Seconds are those that one core works, so that what else runs on the machine counts for little.

With ``--big N`` a mosaic of N x N px is written as a slide with its outlines and cells, and the most memory that the process
held is printed.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np

from pathkit import synthetic
from pathkit.geometry import Box

SIZE_PX = (3000, 2400)
ORGANS: dict[str, Callable[[], synthetic.Architecture]] = {
    "lymph node": lambda: synthetic.lymph_node(5, "micro"),
    "colon": lambda: synthetic.colon(5, size_um=(3000, 2400)),
    "breast": lambda: synthetic.breast(5, size_um=(3000, 2400)),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--big", type=int, metavar="N", help="write a slide of N x N px instead")
    options.add_argument("--mpp", type=float, default=0.5, help="of the big slide")
    asked = options.parse_args()
    cv2.setNumThreads(1)
    if asked.big:
        big(asked.big, asked.mpp)
        return
    print("| organ | mpp | stain | Mpx/s, all truth | architecture s | objects | painting / JPEG |")
    print("|---|---|---|---|---|---|---|")
    for name, make in ORGANS.items():
        start = time.process_time()
        architecture = make()
        drawn = time.process_time() - start
        for mpp in (1.0, 0.5, 0.25):
            for marker in (None, "HER2") if name == "breast" else (None,):
                row(name, architecture, mpp, marker, drawn)


def row(
    name: str, architecture: synthetic.Architecture, mpp: float, marker: str | None, drawn: float
) -> None:
    site = synthetic.SITES["north"].at(mpp)
    width, height = (min(n, int(s / mpp)) for n, s in zip(SIZE_PX, architecture.size_um, strict=True))
    synthetic.scan(architecture, site, (0, 0), (16, 16), marker=marker)  # compile
    synthetic.instances(architecture, (0, 0), (16, 16), mpp=mpp)
    x, y = (int((s / mpp - n) / 2) for s, n in zip(architecture.size_um, (width, height), strict=True))
    start = time.process_time()
    pixels = synthetic.scan(architecture, site, (x, y), (width, height), marker=marker)
    objects = synthetic.nuclei(architecture, Box(x * mpp, y * mpp, width * mpp, height * mpp), marker=marker)
    synthetic.instances(architecture, (x * mpp, y * mpp), (width, height), mpp=mpp)
    painted = time.process_time() - start
    start = time.process_time()
    for top in range(0, height - 255, 256):
        for left in range(0, width - 255, 256):
            tile = np.ascontiguousarray(pixels[top : top + 256, left : left + 256])
            imagecodecs.jpeg8_encode(tile, level=site.quality)
    encoded = time.process_time() - start
    speed = width * height / 1e6 / painted
    stain = marker or "H&E"
    print(
        f"| {name} | {mpp} | {stain} | {speed:.1f} | {drawn:.1f} | {len(objects)} | {painted / encoded:.1f} |"
    )


def big(side: int, mpp: float) -> None:
    """A slide that fits no memory, streamed to a file by one thread."""
    with tempfile.TemporaryDirectory() as folder:
        mosaic = synthetic.Mosaic((side, side), mpp=mpp, organ="colon", workers=1)
        start, wall = time.process_time(), time.perf_counter()
        path = synthetic.write_big_slide(Path(folder) / "big.tif", mosaic)
        worked, passed = time.process_time() - start, time.perf_counter() - wall
        bytes_ = {p.suffix: p.stat().st_size / 1e6 for p in sorted(Path(folder).iterdir())}
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{side:,} x {side:,} px at {mpp} um/px: {worked:.0f} s of a core ({passed:.0f} s passed), "
            f"{side**2 / 1e6 / worked:.2f} Mpx/s, at most {most:.2f} GB of memory"
        )
        print(path.name, ", ".join(f"{k} {v:.0f} MB" for k, v in bytes_.items()))


if __name__ == "__main__":
    main()
