"""Texture: patches described by hand-made numbers, and patches whose tiles are shuffled.

Tissue is, to a first approximation, a texture: what repeats in a patch matters, not where. Three old descriptions are here,
each in optical density, where stain adds up: moments of colour, local binary patterns (which small patterns occur, however
they are turned [1]_) and the grey-level co-occurrence matrix (which densities are neighbours [2]_), as in the texture
analysis of colorectal cancer [3]_. scikit-image does the work. None of them knows where in the patch anything was, which
`shuffle_tiles` makes visible: a description of texture hardly notices that the tiles of a patch changed places.

References
----------
.. [1] Ojala, Pietikäinen and Mäenpää, "Multiresolution gray-scale and rotation invariant texture classification with local
   binary patterns", IEEE TPAMI 24 (2002).
.. [2] Haralick, Shanmugam and Dinstein, "Textural features for image classification", IEEE Trans. SMC 3 (1973).
.. [3] Kather et al., "Multi-class texture analysis in colorectal cancer histology", Scientific Reports 6 (2016).
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

__all__ = ["shuffle_tiles", "texture_features"]

#: Neighbours and radius of the local binary patterns.
LBP = ((8, 1), (16, 3))
#: Grey levels, distances in pixels and properties of the co-occurrence matrix.
LEVELS, DISTANCES = 16, (1, 3)
PROPERTIES = ("contrast", "homogeneity", "energy", "correlation")


def texture_features(pixels: NDArray[np.uint8], *, progress: bool = True) -> pd.DataFrame:
    """Colour moments, local binary patterns and co-occurrence properties of patches.

    Parameters
    ----------
    pixels : (N, H, W, 3) uint8
        At least 8 pixels a side.

    Returns
    -------
    DataFrame
        N rows of float32. Columns: mean, spread and skew of each colour channel's optical density; the histogram of the
        patterns at each radius (sums to 1); each property at each distance, averaged over four directions.

    Raises
    ------
    ValueError
        If the pixels are of another shape or kind.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8 or min(pixels.shape[1:3]) < 8:
        raise ValueError(
            f"texture_features: pixels must be (N, H, W, 3) uint8 of at least 8 px, got {pixels.shape} {pixels.dtype}."
        )
    density = -np.log10((pixels.astype(np.float32) + 1) / 256)
    grey = np.rint(density.mean(3) * (255 / 2.4)).astype(np.uint8)  # 2.4 is the density of black
    rows = [
        _patterns(g) + _neighbours(g) for g in tqdm(grey, desc="texture", unit="patch", disable=not progress)
    ]
    columns = [f"lbp {n}x{r} {k}" for n, r in LBP for k in range(n + 2)]
    columns += [f"{name} {d} px" for name in PROPERTIES for d in DISTANCES]
    moments = pd.DataFrame(
        _moments(density), columns=[f"{c} {m}" for m in ("mean", "spread", "skew") for c in "RGB"]
    )
    texture = pd.DataFrame(np.array(rows, np.float32).reshape(len(pixels), len(columns)), columns=columns)
    return pd.concat([moments, texture], axis=1)


def shuffle_tiles(pixels: NDArray[np.uint8], tile_px: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Patches whose square tiles have changed places at random, each patch in its own way.

    Parameters
    ----------
    pixels : (N, H, W, 3) uint8
    tile_px : int
        Side of a tile; must divide both sides of the patch. With the whole side nothing changes.
    seed : int

    Raises
    ------
    ValueError
        If the tile does not divide the patch.
    """
    n, height, width, channels = pixels.shape
    if tile_px < 1 or height % tile_px or width % tile_px:
        raise ValueError(
            f"shuffle_tiles: a tile of {tile_px} px does not divide a patch of {width} x {height} px."
        )
    down, across = height // tile_px, width // tile_px
    tiles = pixels.reshape(n, down, tile_px, across, tile_px, channels).swapaxes(2, 3)
    tiles = tiles.reshape(n, down * across, tile_px, tile_px, channels)
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(down * across), (n, 1)), axis=1)
    tiles = tiles[np.arange(n)[:, None], order].reshape(n, down, across, tile_px, tile_px, channels)
    return np.ascontiguousarray(tiles.swapaxes(2, 3).reshape(pixels.shape))


def _moments(density: NDArray[np.float32]) -> NDArray[np.float32]:
    mean, spread = density.mean((1, 2)), density.std((1, 2))
    skew = ((density - mean[:, None, None]) ** 3).mean((1, 2)) / (spread**3 + 1e-6)
    return np.concatenate([mean, spread, skew], axis=1)


def _patterns(grey: NDArray[np.uint8]) -> list[float]:
    from skimage.feature import local_binary_pattern

    out: list[float] = []
    for neighbours, radius in LBP:
        codes = local_binary_pattern(grey, neighbours, radius, method="uniform")
        codes = codes[radius:-radius, radius:-radius].astype(int)  # whose neighbours all lie in the patch
        out += (np.bincount(codes.ravel(), minlength=neighbours + 2) / codes.size).tolist()
    return out


def _neighbours(grey: NDArray[np.uint8]) -> list[float]:
    from skimage.feature import graycomatrix, graycoprops

    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    levels = np.minimum(
        grey // (256 // LEVELS // 2), LEVELS - 1
    )  # the upper half of the scale is rare in tissue
    matrix = graycomatrix(levels, DISTANCES, angles, levels=LEVELS, symmetric=True, normed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # correlation of an even patch
        return [float(v) for name in PROPERTIES for v in graycoprops(matrix, name).mean(1)]
