"""How fast synthetic slides are painted, beside JPEG-encoding the same pixels. One core; prints a ratio."""

from __future__ import annotations

import time

import imagecodecs
import numpy as np

from pathkit.synthetic import SITES, lymph_node, nuclei, scan

SIZE_PX = (3000, 2400)


def main() -> None:
    architecture, site = lymph_node(5, "micro"), SITES["north"]
    scan(architecture, site, (0, 0), (16, 16))  # compile
    start = time.perf_counter()
    pixels = scan(architecture, site, (0, 0), SIZE_PX)
    objects = nuclei(architecture)
    painted = time.perf_counter() - start
    start = time.perf_counter()
    for top in range(0, SIZE_PX[1] - 255, 256):
        for left in range(0, SIZE_PX[0] - 255, 256):
            tile = np.ascontiguousarray(pixels[top : top + 256, left : left + 256])
            imagecodecs.jpeg8_encode(tile, level=site.quality)
    encoded = time.perf_counter() - start
    megapixels = SIZE_PX[0] * SIZE_PX[1] / 1e6
    print(
        f"painted {megapixels / painted:.1f} Mpx/s with {len(objects)} nuclei; painting / JPEG = {painted / encoded:.1f}"
    )


if __name__ == "__main__":
    main()
