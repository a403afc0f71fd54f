"""Slides that benchmarks share: one painted field, repeated."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pandas as pd
import tifffile

from pathkit import synthetic
from pathkit.synthetic import write_pyramid
from pathkit.synthetic.mosaic import Mosaic


def tissue_slide(path, *, mpp, across=4, down=3):
    """A pyramid of 2048 px fields without glass."""
    field = Mosaic((16_000, 12_800), mpp=mpp).read((6000, 6000), (2048, 2048))
    return write_pyramid(np.tile(field, (down, across, 1)), path, mpp=mpp)


def repeated(slide, n, *, size_px, mpp):
    """n places row after row, begun again where the slide ends."""
    xs, ys = (np.arange(0, side - size_px + 1, size_px) for side in slide.dimensions)
    x, y = (v.ravel() for v in np.meshgrid(xs, ys))
    return pd.DataFrame(
        {
            "slide_id": "slide",
            "x_l0": np.resize(x, n),
            "y_l0": np.resize(y, n),
            "size_px": size_px,
            "mpp": mpp,
        }
    )


def colon_everywhere(path, *, side, mpp, quality=80):
    """A pyramid full of colon: 5120 px are painted and their JPEG tiles repeated; 10 gigapixels take half a minute."""
    field_px, tile = 5120, 256
    n = -(-side // field_px)
    architecture = synthetic.colon(5, size_um=(field_px * mpp, field_px * mpp))
    field = synthetic.scan(architecture, synthetic.SITES["north"].at(mpp), (0, 0), (field_px, field_px))
    common = {"tile": (tile, tile), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        downsample = 1
        while n * len(field) >= 400:
            pixels_cm = 1e4 / (mpp * downsample)
            page = common | {"resolution": (pixels_cm, pixels_cm), "resolutionunit": "CENTIMETER"}
            page["subfiletype"] = int(downsample > 1)
            if len(field) % tile:  # a small level, whose repeats do not begin with a tile
                tiff.write(np.tile(field, (n, n, 1)), compressionargs={"level": quality}, **page)
            else:
                cut = field.reshape(len(field) // tile, tile, -1, tile, 3).swapaxes(1, 2)
                stored = [[imagecodecs.jpeg8_encode(t, quality) for t in row] for row in cut]
                tiff.write(
                    (t for _ in range(n) for row in stored for t in row * n),
                    shape=(n * len(field), n * len(field), 3),
                    dtype=np.uint8,
                    **page,
                )
            field = field.reshape(len(field) // 4, 4, -1, 4, 3).mean((1, 3)).round().astype(np.uint8)
            downsample *= 4
    return path
