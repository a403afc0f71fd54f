"""Scanner: from concentrations to the pixels of a laboratory and its scanner.

Optical densities add: ``rgb = white * 10 ** -(concentrations @ stains)`` (Beer-Lambert). Then come the optics (a Gaussian
point spread), the camera (gamma, noise) and, when the slide is written, JPEG. A site fixes all of these; within a site the
strength of the stains varies from slide to slide, as days of staining do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from pathkit.synthetic.architecture import Architecture
from pathkit.synthetic.artefacts import Artefact, margin_px, on_light, on_section
from pathkit.synthetic.noise import hashed
from pathkit.synthetic.paint import concentrations

__all__ = ["SITES", "Site", "expose", "scan", "slide_stains"]

_MARGIN_PX = 8
#: Steps of the table of the camera's gamma, and the light below which it is too coarse.
_CURVE, _DARK = 4096, 0.02


@dataclass(frozen=True, kw_only=True)
class Site:
    """A laboratory and its scanner.

    Attributes
    ----------
    name : str
    haematoxylin, eosin, dab : tuple of float
        Direction of the optical density of R, G, B; made unit vectors.
    strength : (haematoxylin, eosin, dab)
        Optical density at concentration 1.
    thickness_um : float
        Of the section; 4 is the rule, and all stains grow with it.
    white : tuple of float
        Grey levels of empty glass.
    mpp : float
        Of the scans.
    blur_um : float
        Sigma of the point spread.
    sharpen : float
        How far the scanner's software enhances edges; 0: not at all.
    gamma, noise : float
        Of the camera; noise in grey levels.
    quality : int
        JPEG.

    Raises
    ------
    ValueError
        If `mpp`, the thickness, the blur or a stain is not positive, or `sharpen` negative.
    """

    name: str
    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    dab: tuple[float, float, float] = (0.268, 0.570, 0.776)
    strength: tuple[float, float, float] = (1.0, 1.0, 1.0)
    thickness_um: float = 4.0
    white: tuple[float, float, float] = (243.0, 242.0, 244.0)
    mpp: float = 1.0
    blur_um: float = 0.45
    sharpen: float = 0.7
    gamma: float = 1.0
    noise: float = 1.6
    quality: int = 85

    def __post_init__(self) -> None:
        for name in ("mpp", "blur_um", "thickness_um", "gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Site {self.name}: {name} must be positive, got {getattr(self, name)}.")
        if not self.sharpen >= 0:
            raise ValueError(f"Site {self.name}: sharpen must not be negative, got {self.sharpen}.")
        for name in ("haematoxylin", "eosin", "dab", "white"):
            if not np.linalg.norm(getattr(self, name)) > 0:
                raise ValueError(f"Site {self.name}: {name} must not be zero.")

    @property
    def stains(self) -> NDArray[np.float64]:
        """(3, 3): rows haematoxylin, eosin, diaminobenzidine; optical density at concentration 1."""
        rows = np.array([self.haematoxylin, self.eosin, self.dab], float)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows * (np.array(self.strength) * self.thickness_um / 4.0)[:, None]

    def at(self, mpp: float) -> Site:
        """The same site with its scanner at another magnification; the optics sharpen with it."""
        return replace(self, mpp=mpp, blur_um=self.blur_um * min(1.0, (mpp / self.mpp) ** 0.5))


#: Five sites that differ as laboratories do: a few degrees of colour, strength, light, sharpness.
SITES = {
    site.name: site
    for site in (
        Site(name="north", haematoxylin=(0.63, 0.70, 0.33), eosin=(0.18, 0.89, 0.41)),
        Site(
            name="east",
            haematoxylin=(0.60, 0.72, 0.34),
            eosin=(0.22, 0.86, 0.45),
            strength=(0.85, 1.25, 0.9),
            white=(246, 243, 240),
            mpp=0.96,
            blur_um=0.55,
            sharpen=0.4,
            gamma=0.95,
            noise=2.0,
            quality=80,
        ),
        Site(
            name="south",
            haematoxylin=(0.68, 0.67, 0.29),
            eosin=(0.12, 0.93, 0.34),
            strength=(1.15, 0.80, 1.1),
            white=(238, 240, 244),
            mpp=1.04,
            blur_um=0.40,
            sharpen=1.0,
            gamma=1.06,
            noise=1.4,
            quality=88,
        ),
        Site(
            name="west",
            haematoxylin=(0.55, 0.77, 0.31),
            eosin=(0.25, 0.86, 0.44),
            dab=(0.30, 0.58, 0.75),
            strength=(1.0, 1.1, 1.2),
            thickness_um=3.2,
            white=(249, 247, 245),
            mpp=0.98,
            blur_um=0.36,
            sharpen=0.8,
            gamma=0.92,
            noise=1.2,
            quality=90,
        ),
        Site(
            name="island",
            haematoxylin=(0.72, 0.63, 0.28),
            eosin=(0.14, 0.95, 0.27),
            dab=(0.25, 0.55, 0.80),
            strength=(0.75, 1.0, 0.8),
            thickness_um=5.0,
            white=(235, 234, 230),
            mpp=1.02,
            blur_um=0.62,
            sharpen=0.0,
            gamma=1.08,
            noise=2.6,
            quality=72,
        ),
    )
}


def slide_stains(site: Site, seed: int) -> NDArray[np.float64]:
    """(3, 3) optical densities at concentration 1 for one slide: the site's, with the day's strength."""
    rng = np.random.default_rng([seed, 2])
    return site.stains * rng.lognormal(0, (0.10, 0.14, 0.12))[:, None]


def scan(
    architecture: Architecture,
    site: Site,
    location_px: tuple[int, int],
    size: tuple[int, int],
    *,
    marker: str | None = None,
    artefacts: Sequence[Artefact] = (),
    stain_seed: int | None = None,
    alter: Callable[[NDArray[np.float32], tuple[int, int]], None] | None = None,
) -> NDArray[np.uint8]:
    """Pixels of a region as the site's scanner gives them, before JPEG.

    Parameters
    ----------
    architecture : Architecture
    site : Site
    location_px : (x, y)
        Top left corner, level-0 pixels at ``site.mpp``.
    size : (width, height)
    marker : str, optional
        Immunohistochemistry instead of haematoxylin and eosin (see `markers.MARKERS`).
    artefacts : sequence of Artefact
    stain_seed : int, optional
        Of the day's strength of the stains; the architecture's by default.
    alter : callable, optional
        Given the concentrations (H, W, 3), wider than the region, and the pixel of their top left corner, to change in place.

    Returns
    -------
    (height, width, 3) uint8
        The same pixels whatever region they are part of.
    """
    near = [a for a in artefacts if _touches(a, location_px, size, site.mpp)]
    margin = _MARGIN_PX + margin_px(near, site.mpp)
    x, y = (v - margin for v in location_px)
    width, height = (n + 2 * margin for n in size)
    stain = concentrations(
        architecture, (x * site.mpp, y * site.mpp), (width, height), mpp=site.mpp, marker=marker
    )
    if alter is not None:
        alter(stain, (x, y))
    on_section(stain, near, (x, y), site.mpp)
    light = _transmitted(stain, slide_stains(site, architecture.seed if stain_seed is None else stain_seed))
    on_light(light, near, (x, y), site.mpp)
    sigma = max((site.blur_um + (0.2 if architecture.frozen else 0.0)) / site.mpp, 0.1)
    blurred = _focused(light, sigma, site.sharpen)[margin:-margin, margin:-margin]
    white = np.array(site.white, np.float32)
    return _exposed(
        np.ascontiguousarray(blurred), white, site.gamma, site.noise, architecture.seed, *location_px
    )


def expose(stain: NDArray[np.float32], site: Site, *, blur_px: float, seed: int = 0) -> NDArray[np.uint8]:
    """Concentrations (H, W, 3) as a site shows them, with a point spread of their own: for what is no region of a slide."""
    seen = _focused(_transmitted(stain, slide_stains(site, seed)), max(blur_px, 0.1), site.sharpen)
    return _exposed(seen, np.array(site.white, np.float32), site.gamma, site.noise, seed, 0, 0)


def _focused(light: NDArray[np.float32], sigma: float, sharpen: float) -> NDArray[np.float32]:
    """Blurred; what is lost by one more pixel of blur is given back `sharpen` times."""
    seen = _blurred(light, sigma)
    if not sharpen:
        return seen
    return np.maximum((1 + sharpen) * seen - sharpen * _blurred(light, np.hypot(sigma, 1.0)), 0)


def _blurred(light: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    kernel = cv2.getGaussianKernel(2 * _MARGIN_PX + 1, sigma, cv2.CV_32F)
    return np.asarray(cv2.sepFilter2D(light, -1, kernel, kernel))


def _touches(artefact: Artefact, location_px: tuple[int, int], size: tuple[int, int], mpp: float) -> bool:
    x0, y0, x1, y1 = np.array(artefact.geometry.bounds) / mpp
    reach = 3 * margin_px([artefact], mpp) + 16
    x, y = location_px
    return bool(x0 - reach < x + size[0] and x1 + reach > x and y0 - reach < y + size[1] and y1 + reach > y)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _transmitted(stain, vectors):
    """Share of the light that passes, (H, W, 3) float32."""
    rows, cols = stain.shape[:2]
    out = np.empty((rows, cols, 3), np.float32)
    natural = vectors * np.log(10.0)
    for r in range(rows):
        for c in range(cols):
            a, b, d = stain[r, c, 0], stain[r, c, 1], stain[r, c, 2]
            if a == 0 and b == 0 and d == 0:
                out[r, c] = 1.0
                continue
            for k in range(3):
                out[r, c, k] = np.exp(-(a * natural[0, k] + b * natural[1, k] + d * natural[2, k]))
    return out


@numba.njit(cache=True, nogil=True)
def _exposed(light, white, gamma, noise, seed, x0, y0):
    """Grey levels with the camera's gamma and noise; the noise of a pixel depends on its place alone.

    The power is looked up in a table, and computed where the error of that could decide between two grey levels.
    """
    rows, cols = light.shape[:2]
    out = np.empty((rows, cols, 3), np.uint8)
    curve = (np.arange(_CURVE + 3) / _CURVE) ** gamma  # light may pass 1 by a rounding
    bend = abs(gamma * (gamma - 1)) * max(_DARK ** (gamma - 2), 1.0)
    doubt = 2 * white.max() * bend / (8 * _CURVE**2) + 1e-6
    for r in range(rows):
        for c in range(cols):
            bits = hashed(x0 + c, y0 + r, seed + 51)
            for k in range(3):
                # Bytes of the hash sum to something near normal with variance 2 / 12.
                deviate = (
                    ((bits >> (8 * k)) & 255) / 255.0 + ((bits >> (8 * ((k + 1) % 4))) & 255) / 255.0 - 1.0
                )
                here, sure, value = light[r, c, k], False, 0.0
                if _DARK < here < 1 + 1 / _CURVE:
                    i = int(here * _CURVE)
                    power = curve[i] + (here * _CURVE - i) * (curve[i + 1] - curve[i])
                    value = white[k] * power + 2.45 * noise * deviate
                    sure = abs(value - np.floor(value) - 0.5) > doubt
                if not sure:
                    value = white[k] * here**gamma + 2.45 * noise * deviate
                out[r, c, k] = min(255, max(0, int(value + 0.5)))
    return out
