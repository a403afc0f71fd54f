"""How fast synthetic slides are made with all their truth, beside JPEG-encoding the same pixels. One core; prints ratios."""

from __future__ import annotations

import time
from collections.abc import Callable

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
    print("| organ | mpp | stain | Mpx/s, all truth | architecture s | objects | painting / JPEG |")
    print("|---|---|---|---|---|---|---|")
    for name, make in ORGANS.items():
        start = time.perf_counter()
        architecture = make()
        drawn = time.perf_counter() - start
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
    start = time.perf_counter()
    pixels = synthetic.scan(architecture, site, (x, y), (width, height), marker=marker)
    objects = synthetic.nuclei(architecture, Box(x * mpp, y * mpp, width * mpp, height * mpp), marker=marker)
    synthetic.instances(architecture, (x * mpp, y * mpp), (width, height), mpp=mpp)
    painted = time.perf_counter() - start
    start = time.perf_counter()
    for top in range(0, height - 255, 256):
        for left in range(0, width - 255, 256):
            tile = np.ascontiguousarray(pixels[top : top + 256, left : left + 256])
            imagecodecs.jpeg8_encode(tile, level=site.quality)
    encoded = time.perf_counter() - start
    speed = width * height / 1e6 / painted
    stain = marker or "H&E"
    print(
        f"| {name} | {mpp} | {stain} | {speed:.1f} | {drawn:.1f} | {len(objects)} | {painted / encoded:.1f} |"
    )


if __name__ == "__main__":
    main()
