"""Scanner: from concentrations to the pixels of a laboratory and its scanner.

Optical densities add: ``rgb = white * 10 ** -(concentrations @ stains)`` (Beer-Lambert). Then come the optics (a Gaussian
point spread), the camera (gamma, noise) and, when the slide is written, JPEG. A site fixes all of these; within a site the
strength of both stains varies from slide to slide, as days of staining do.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from pathkit.synthetic.architecture import Architecture
from pathkit.synthetic.noise import hashed
from pathkit.synthetic.paint import concentrations

__all__ = ["SITES", "Site", "scan", "slide_stains"]

_MARGIN_PX = 4


@dataclass(frozen=True)
class Site:
    """A laboratory and its scanner.

    Attributes
    ----------
    name : str
    haematoxylin, eosin : tuple of float
        Optical density of R, G, B at concentration 1; unit vectors times the site's strength.
    white : tuple of float
        Grey levels of empty glass.
    mpp : float
        Of the scans.
    blur_um : float
        Sigma of the point spread.
    gamma, noise : float
        Of the camera; noise in grey levels.
    quality : int
        JPEG.
    """

    name: str
    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    white: tuple[float, float, float]
    mpp: float
    blur_um: float
    gamma: float
    noise: float
    quality: int

    @property
    def stains(self) -> NDArray[np.float64]:
        """(2, 3): rows haematoxylin and eosin."""
        return np.array([self.haematoxylin, self.eosin])


def _vector(direction: tuple[float, float, float], strength: float) -> tuple[float, float, float]:
    unit = np.asarray(direction) / np.linalg.norm(direction)
    r, g, b = unit * strength
    return float(r), float(g), float(b)


#: Three sites that differ as laboratories do: a few degrees of colour, strength, light, sharpness.
SITES = {
    site.name: site
    for site in (
        Site(
            "north",
            _vector((0.63, 0.71, 0.32), 1.00),
            _vector((0.10, 0.96, 0.26), 1.00),
            (243, 242, 244),
            1.00,
            0.45,
            1.00,
            1.6,
            85,
        ),
        Site(
            "east",
            _vector((0.58, 0.74, 0.35), 0.85),
            _vector((0.16, 0.90, 0.40), 1.25),
            (246, 243, 240),
            0.96,
            0.55,
            0.95,
            2.0,
            80,
        ),
        Site(
            "south",
            _vector((0.68, 0.67, 0.29), 1.15),
            _vector((0.06, 0.98, 0.19), 0.80),
            (238, 240, 244),
            1.04,
            0.40,
            1.06,
            1.4,
            88,
        ),
    )
}


def slide_stains(site: Site, seed: int) -> NDArray[np.float64]:
    """(2, 3) optical densities at concentration 1 for one slide: the site's, with the day's strength."""
    rng = np.random.default_rng([seed, 2])
    return site.stains * rng.lognormal(0, (0.10, 0.14))[:, None]


def scan(
    architecture: Architecture, site: Site, location_px: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Pixels of a region as the site's scanner gives them, before JPEG.

    Parameters
    ----------
    architecture : Architecture
    site : Site
    location_px : (x, y)
        Top left corner, level-0 pixels at ``site.mpp``.
    size : (width, height)

    Returns
    -------
    (height, width, 3) uint8
        The same pixels whatever region they are part of.
    """
    x, y = (v - _MARGIN_PX for v in location_px)
    width, height = (n + 2 * _MARGIN_PX for n in size)
    stain = concentrations(architecture, (x * site.mpp, y * site.mpp), (width, height), mpp=site.mpp)
    light = _transmitted(stain, slide_stains(site, architecture.seed))
    kernel = cv2.getGaussianKernel(2 * _MARGIN_PX + 1, max(site.blur_um / site.mpp, 0.1), cv2.CV_32F)
    blurred = cv2.sepFilter2D(light, -1, kernel, kernel)[_MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX]
    white = np.array(site.white, np.float32)
    return _exposed(
        np.ascontiguousarray(blurred), white, site.gamma, site.noise, architecture.seed, *location_px
    )


@numba.njit(cache=True, nogil=True, fastmath=True)
def _transmitted(stain, vectors):
    """Share of the light that passes, (H, W, 3) float32."""
    rows, cols = stain.shape[:2]
    out = np.empty((rows, cols, 3), np.float32)
    natural = vectors * np.log(10.0)
    for r in range(rows):
        for c in range(cols):
            haematoxylin, eosin = stain[r, c, 0], stain[r, c, 1]
            for k in range(3):
                out[r, c, k] = np.exp(-(haematoxylin * natural[0, k] + eosin * natural[1, k]))
    return out


@numba.njit(cache=True, nogil=True)
def _exposed(light, white, gamma, noise, seed, x0, y0):
    """Grey levels with the camera's gamma and noise; the noise of a pixel depends on its place alone."""
    rows, cols = light.shape[:2]
    out = np.empty((rows, cols, 3), np.uint8)
    for r in range(rows):
        for c in range(cols):
            bits = hashed(x0 + c, y0 + r, seed + 51)
            for k in range(3):
                # Three bytes of the hash sum to something near normal with variance 3 / 12.
                deviate = (
                    ((bits >> (8 * k)) & 255) / 255.0 + ((bits >> (8 * ((k + 1) % 4))) & 255) / 255.0 - 1.0
                )
                value = white[k] * light[r, c, k] ** gamma + 2.45 * noise * deviate
                out[r, c, k] = min(255, max(0, int(value + 0.5)))
    return out
