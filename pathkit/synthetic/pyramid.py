"""Pyramid: a tiled, JPEG-compressed TIFF with its levels and resolution, as OpenSlide opens it.

Levels are pages marked as reduced images (OpenSlide sees one level only when they are SubIFDs); the resolution stands in
centimetre tags, from which OpenSlide derives mpp; pixels are stored as RGB (declared YCbCr, the colours come out wrong).
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pathkit.files import replacing

__all__ = ["write_pyramid"]

TILE_PX = 256


def write_pyramid(
    pixels: NDArray[np.uint8],
    path: str | os.PathLike[str],
    *,
    mpp: float,
    quality: int = 85,
    factor: int = 4,
    smallest_px: int = 256,
) -> Path:
    """Write pixels as a slide, whole or not at all.

    Parameters
    ----------
    pixels : (H, W, 3) uint8
    path : path
        ``.tif``.
    mpp : float
        Microns per pixel of level 0.
    quality : int
        JPEG, 1 to 100.
    factor : int
        Between levels.
    smallest_px : int
        No level's longer side is less.

    Raises
    ------
    ValueError
        If `mpp` is not positive.
    """
    import tifffile

    if not mpp > 0:
        raise ValueError(f"write_pyramid: mpp must be positive, got {mpp}.")
    path = Path(path)
    level, downsample = pixels, 1
    with replacing(path) as partial, tifffile.TiffWriter(partial, bigtiff=pixels.nbytes > 2**31) as tiff:
        while True:
            tiff.write(
                level,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=0 if downsample == 1 else 1,
                resolution=(1e4 / (mpp * downsample), 1e4 / (mpp * downsample)),
                resolutionunit="CENTIMETER",
                software="pathkit",
                metadata=None,
            )
            height, width = (n // factor for n in level.shape[:2])
            if max(height, width) < smallest_px:
                break
            cropped = level[: height * factor, : width * factor]
            level = np.asarray(cv2.resize(cropped, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            downsample *= factor
    return path
