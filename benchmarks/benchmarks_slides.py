"""Slides that benchmarks share: one painted field, repeated."""

from __future__ import annotations

import numpy as np
import pandas as pd

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
