"""Stain: what dyes a slide carries, how strongly, and how to make one slide look like another.

Decisions
---------
* Optical density is ``-log10((value + 1) / (white + 1))``: it adds up over stains (Beer-Lambert), and the 1 keeps black
  finite. Rows of a stain matrix are stains, as in scikit-image: haematoxylin, eosin[, DAB].
* Stains are fitted once a slide, on about 100,000 pixels of tissue, never a patch at a time: a patch without eosin has no
  eosin vector, and a fit of it would paint its nuclei pink.
* A fit (`StainFit`, `ReinhardFit`) describes one slide, and ``fit.to(other)`` gives the normaliser between two. In optical
  density it is one 3 x 3 product, done by look-up: each value of each channel adds a known amount to each output's
  logarithm, and a table gives the grey level of the sum.
* Reinhard's transform is no such sum. A normaliser that has changed as many pixels as there are colours writes down what
  becomes of each colour (64 MB), and looks pixels up from then on: the same grey levels, several times as fast.
* Normalisers and augmentations take (N, H, W, 3) uint8 arrays, or (N, 3, H, W) torch tensors on any device, where torch
  is there; it is imported when the first tensor comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from threading import Lock
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import numba
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pathkit.geometry import Raster
from pathkit.slide import Slide

__all__ = [
    "HED",
    "MACENKO",
    "METHODS",
    "REFERENCE",
    "HedJitter",
    "RandStainNA",
    "ReinhardFit",
    "ReinhardNormaliser",
    "StainFit",
    "StainNormaliser",
    "angle_deg",
    "combine",
    "distances",
    "fit",
    "from_optical_density",
    "macenko_stains",
    "optical_density",
    "remix",
    "separate",
    "tissue_pixels",
    "vahadane_stains",
    "white_point",
]

Floats: TypeAlias = NDArray[np.float64]
RGB: TypeAlias = NDArray[np.uint8]

METHODS = ("macenko", "vahadane", "reinhard")
#: A white point below this is no glass: tissue covers everything.
DARKEST_WHITE = 200
#: Pixels that a fit needs, and those that it samples.
LEAST_PIXELS, SAMPLE = 100, 100_000
#: Mean optical density from which on there is tissue; that of a channel up to which its camera can be trusted: less than a
#: tenth of the light passes beyond, and scanners that sharpen, clip or have a gamma bend the lines there.
OD_MIN, OD_MAX = 0.12, 1.0
#: Least angle between two stains of which both are there.
LEAST_ANGLE_DEG = 12.0
#: Concentrations are compared at this percentile.
STRENGTH_PERCENTILE = 99.0


def _unit(rows: ArrayLike) -> Floats:
    rows = np.asarray(rows, float)
    return cast(Floats, rows / np.linalg.norm(rows, axis=-1, keepdims=True))


#: Haematoxylin, eosin and diaminobenzidine [Ruifrok and Johnston, Anal Quant Cytol Histol 23:291-299, 2001], unit vectors.
HED: Floats = _unit([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
#: Haematoxylin and eosin of the reference slide of Macenko et al. (ISBI 2009), as published with their code.
MACENKO: Floats = _unit([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])


# Optical density -------------------------------------------------------------------------------------------------


def optical_density(rgb: NDArray[Any], *, white: ArrayLike = 255.0) -> NDArray[np.float32]:
    """Optical density, (..., 3) float32, of (..., 3) grey levels from 0 to 255.

    Parameters
    ----------
    rgb : (..., 3) array
    white : float or (3,)
        Grey level of empty glass, where the density is 0.
    """
    rgb = np.asarray(rgb)
    level = np.broadcast_to(np.asarray(white, float), (3,)) + 1
    if rgb.dtype == np.uint8:
        table = -np.log10(np.arange(1, 257)[:, None] / level).astype(np.float32)
        return np.stack([table[rgb[..., c], c] for c in range(3)], axis=-1)
    return cast(NDArray[np.float32], -np.log10((np.maximum(rgb, 0) + 1) / level).astype(np.float32))


def from_optical_density(density: ArrayLike, *, white: ArrayLike = 255.0) -> RGB:
    """Grey levels, (..., 3) uint8, of optical densities; the reverse of `optical_density`."""
    light = (np.asarray(white, float) + 1) * 10.0 ** -np.asarray(density, float) - 1
    return cast(RGB, np.clip(np.rint(light), 0, 255).astype(np.uint8))


def separate(rgb: NDArray[Any], stains: ArrayLike = HED, *, white: ArrayLike = 255.0) -> NDArray[np.float32]:
    """How much of each stain lies in each pixel: colour deconvolution [1]_.

    Parameters
    ----------
    rgb : (..., 3) array
    stains : (K, 3)
        2 or 3 rows. With two, the residual is dropped (least squares).
    white : float or (3,)

    Returns
    -------
    concentrations : (..., K) float32
        In optical density along each row. Noise makes some of them a little negative.

    Raises
    ------
    ValueError
        If the stains cannot be told apart.

    References
    ----------
    .. [1] Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", Anal Quant Cytol
       Histol 23:291-299, 2001.
    """
    unmix = np.linalg.pinv(_checked_stains(stains)).astype(np.float32)
    return optical_density(rgb, white=white) @ unmix


def combine(concentrations: ArrayLike, stains: ArrayLike = HED, *, white: ArrayLike = 255.0) -> RGB:
    """Grey levels, (..., 3) uint8, of concentrations (..., K) of stains (K, 3); the reverse of `separate`."""
    return from_optical_density(np.asarray(concentrations) @ _checked_stains(stains), white=white)


def white_point(rgb: RGB) -> Floats:
    """Colour of the empty glass: a high percentile of each channel, or 245 where tissue covers everything.

    Parameters
    ----------
    rgb : (..., 3) uint8

    Returns
    -------
    (3,) float64
    """
    brightest = np.percentile(rgb.reshape(-1, 3)[:: max(1, rgb.size // 3_000_000)], 99, axis=0)
    return cast(Floats, np.where(brightest.min() >= DARKEST_WHITE, brightest, 245.0))


def angle_deg(a: ArrayLike, b: ArrayLike) -> float:
    """Angle between two stain vectors, degrees."""
    a, b = _unit(a), _unit(b)
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))))


# Estimating stains -----------------------------------------------------------------------------------------------


def macenko_stains(
    rgb: RGB, *, white: ArrayLike | None = None, od_min: float = OD_MIN, percentile: float = 1.0
) -> Floats:
    """Estimate the haematoxylin and eosin vectors of a field [1]_.

    The densities of two stains lie in a plane, between the stains: it is the plane of the first two principal axes, and the
    stains are its extreme directions, but for a percentile of noise.

    Parameters
    ----------
    rgb : (..., 3) uint8
        A field with tissue, or its pixels; background is dropped by optical density.
    white : float or (3,), optional
        `white_point` of the field when not given.
    od_min : float
        Pixels with a lower mean optical density count as background.
    percentile : float
        Of the directions that are taken for noise, at either end.

    Returns
    -------
    stains : (2, 3) float64
        Unit optical-density vectors; row 0 is haematoxylin.

    Raises
    ------
    ValueError
        If fewer than 100 pixels are stained, or all of them by one stain.

    References
    ----------
    .. [1] Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009.
    """
    if not 0 <= percentile < 50:
        raise ValueError(f"macenko_stains: percentile is from 0 to below 50, got {percentile}.")
    density = _stained(rgb, white, od_min, "macenko_stains")
    # Through the origin, as the paper has it: its code subtracts the mean, and errs more on the synthetic slides.
    axes = np.linalg.eigh(density.T @ density)[1][:, :0:-1]
    plane = density @ axes
    # Directions are measured from their mean, so that they never wrap.
    middle = plane.mean(0)
    angle = np.arctan2(middle[0] * plane[:, 1] - middle[1] * plane[:, 0], plane @ middle)
    extremes = np.percentile(angle, [percentile, 100 - percentile]) + np.arctan2(middle[1], middle[0])
    found = np.column_stack([np.cos(extremes), np.sin(extremes)]) @ axes.T
    return _two_stains(found, "macenko_stains")


def vahadane_stains(
    rgb: RGB,
    *,
    white: ArrayLike | None = None,
    od_min: float = OD_MIN,
    sparsity: float = 0.01,
    n_iterations: int = 200,
) -> Floats:
    """Estimate the haematoxylin and eosin vectors by sparse, non-negative factors of the densities [1]_.

    Least ``|density - concentrations @ stains|^2 / 2 + sparsity * |concentrations|``, all of them non-negative, the stains
    unit vectors; concentrations and stains in turn, from Macenko's stains on.

    Parameters
    ----------
    rgb, white, od_min
        As `macenko_stains`.
    sparsity : float
        Optical density below which a stain is not worth having in a pixel.
    n_iterations : int
        At most; fewer when the stains stand still.

    Returns
    -------
    stains : (2, 3) float64
        Unit vectors; row 0 is haematoxylin.

    Raises
    ------
    ValueError
        As `macenko_stains`.

    References
    ----------
    .. [1] Vahadane et al., "Structure-preserving color normalization and sparse stain separation for histological images",
       IEEE TMI 35:1962-1971, 2016.
    """
    stains = np.maximum(macenko_stains(rgb, white=white, od_min=od_min), 1e-6)
    density = _stained(rgb, white, od_min, "vahadane_stains")
    density = density[:: max(1, len(density) // 25_000)]
    stains = _unit(stains)
    amount = np.zeros((len(density), 2))
    for _ in range(n_iterations):
        before = stains.copy()
        onto, between = density @ stains.T - sparsity, stains[0] @ stains[1]
        for _ in range(3):
            amount[:, 0] = np.maximum(onto[:, 0] - between * amount[:, 1], 0)
            amount[:, 1] = np.maximum(onto[:, 1] - between * amount[:, 0], 0)
        gram, target = amount.T @ amount, amount.T @ density
        for k in range(2):
            if gram[k, k] > 0:
                step = (target[k] - gram[k] @ stains) / gram[k, k]
                stains[k] = _unit(np.maximum(stains[k] + step, 1e-6))
        if np.abs(stains - before).max() < 1e-5:
            break
    return _two_stains(stains, "vahadane_stains")


def _stained(rgb: RGB, white: ArrayLike | None, od_min: float, who: str) -> Floats:
    """Optical densities of the stained pixels, (N, 3), at most `SAMPLE` of them."""
    rgb = np.asarray(rgb)
    if rgb.dtype != np.uint8 or rgb.shape[-1:] != (3,):
        raise ValueError(f"{who}: expected (..., 3) uint8 RGB, got {rgb.shape} {rgb.dtype}.")
    pixels = tissue_pixels(rgb.reshape(-1, 3), white=white, od_min=od_min)
    density = optical_density(pixels, white=white_point(rgb) if white is None else white).astype(float)
    trusted = density.max(1) < OD_MAX
    return cast(Floats, density[trusted] if trusted.sum() >= LEAST_PIXELS else density)


def tissue_pixels(
    rgb: RGB, *, white: ArrayLike | None = None, od_min: float = OD_MIN, n: int = SAMPLE
) -> RGB:
    """Stained pixels of a field, evenly spread over it: neither glass, nor black, nor ink.

    Parameters
    ----------
    rgb : (..., 3) uint8
    white, od_min
        As `macenko_stains`.
    n : int
        At most so many.

    Returns
    -------
    (N, 3) uint8

    Raises
    ------
    ValueError
        If there are fewer than 100; the message says what the field is instead.
    """
    pixels = np.asarray(rgb).reshape(-1, 3)
    pixels = pixels[:: max(1, len(pixels) // (10 * n))]
    density = optical_density(pixels, white=white_point(pixels) if white is None else white)
    mean = density.mean(1)
    dark = mean > od_min
    # Tissue absorbs green at least about as much as red; black absorbs all colours alike.
    ink = dark & (density[:, 0] > 1.35 * density[:, 1] + 0.05)
    black = dark & (density.min(1) > 0.6) & (np.ptp(density, axis=1) < 0.2 * density.max(1))
    kept = pixels[dark & ~ink & ~black]
    if len(kept) < LEAST_PIXELS:
        dominant = "black" if black.sum() > ink.sum() else "ink"
        what = f"mostly {dominant}" if dark.sum() >= LEAST_PIXELS else "blank"
        raise ValueError(
            f"stain: {len(kept)} stained pixels of {len(pixels)}, at least {LEAST_PIXELS} are needed; the field is {what}."
            " Choose a field with tissue, or lower od_min for a pale one."
        )
    return kept[:: max(1, len(kept) // n)][:n] if len(kept) > n else kept


def _two_stains(found: Floats, who: str) -> Floats:
    """Unit rows, haematoxylin (the one that takes more of the red) first."""
    found = _unit(np.maximum(found * np.sign(found.sum(1, keepdims=True)), 0))
    apart = angle_deg(*found)
    if apart < LEAST_ANGLE_DEG:
        raise ValueError(
            f"{who}: the two directions differ by {apart:.1f} degrees, so that the field holds one stain, not two. Fit the"
            " whole slide, or give the stains: StainFit(stain.HED[:2], strengths)."
        )
    return found[::-1] if found[0, 0] < found[1, 0] else found


def _checked_stains(stains: ArrayLike) -> Floats:
    rows = np.asarray(stains, float)
    if rows.ndim != 2 or rows.shape[1] != 3 or rows.shape[0] not in (2, 3) or not np.isfinite(rows).all():
        raise ValueError(
            f"stain: stains are 2 or 3 rows of 3 finite optical densities, got shape {rows.shape}."
        )
    size = np.linalg.norm(rows, axis=1)
    if (size == 0).any() or np.linalg.svd(rows / np.maximum(size, 1e-12)[:, None], compute_uv=False)[
        -1
    ] < 0.02:
        raise ValueError("stain: these stains cannot be told apart: they are zero, equal, or in one line.")
    return rows


# Fits and normalisers --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StainFit:
    """The stains of a slide.

    Attributes
    ----------
    stains : (2, 3)
        Unit vectors of optical density, haematoxylin first.
    strengths : (2,)
        Optical density that 99% of the stained pixels do not exceed, along each.
    white : (3,)
        Grey levels of empty glass.
    method : str
    n_pixels : int
        That it rests on; 0 where nothing was fitted.
    """

    stains: Floats
    strengths: Floats
    white: Floats = (255.0, 255.0, 255.0)  # type: ignore[assignment]
    method: str = "given"
    n_pixels: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stains", _unit(_checked_stains(self.stains)))
        object.__setattr__(self, "strengths", np.asarray(self.strengths, float))
        object.__setattr__(self, "white", np.broadcast_to(np.asarray(self.white, float), (3,)).copy())
        if self.stains.shape != (2, 3) or self.strengths.shape != (2,) or not (self.strengths > 0).all():
            raise ValueError(
                f"StainFit: 2 stains and 2 positive strengths, got {self.stains.shape} and {self.strengths}."
            )

    @property
    def apart_deg(self) -> float:
        """Angle between the two stains; far from the usual 20 to 40 degrees the fit deserves a look."""
        return angle_deg(*self.stains)

    def separate(self, rgb: NDArray[Any]) -> NDArray[np.float32]:
        """Concentrations (..., 2) with this slide's stains and white point."""
        return separate(rgb, self.stains, white=self.white)

    def to(self, target: StainFit, *, keep_residual: bool = False) -> StainNormaliser:
        """The normaliser that makes this slide look like another.

        Parameters
        ----------
        target : StainFit
            `REFERENCE` is Macenko's.
        keep_residual : bool
            Keep what is neither stain (pigment, DAB, ink) instead of dropping it.
        """
        scale = target.strengths / self.strengths
        source, goal = self.stains, target.stains
        if keep_residual:
            source, goal = (np.vstack([m, _unit(np.cross(*m))]) for m in (source, goal))
            scale = np.append(scale, 1.0)
        return StainNormaliser(np.linalg.pinv(source) @ (scale[:, None] * goal), self.white, target.white)


#: Macenko's reference slide: normalise to it where there is no better target.
REFERENCE = StainFit(MACENKO, np.array([1.9705, 1.0308]) / np.log(10), 239.0, "published")  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class StainNormaliser:
    """A colour transform that is linear in optical density: ``density @ mix``; made by ``fit.to(target)``, picklable.

    Attributes
    ----------
    mix : (3, 3)
    source_white, target_white : (3,)
    """

    mix: Floats
    source_white: Floats
    target_white: Floats

    def __call__(self, batch: Any, *, out: RGB | None = None) -> Any:
        """Transform pixels.

        Parameters
        ----------
        batch : (..., 3) uint8 array, or (N, 3, H, W) tensor
        out : array, optional
            Filled and returned; may be the batch itself.

        Returns
        -------
        uint8 array, or a tensor of the dtype that came, on its device.
        """
        if _is_tensor(batch):
            return _like(
                remix(batch, self.mix, white=self.source_white, target_white=self.target_white), batch
            )
        batch = _checked_batch(batch, type(self).__name__)
        out = np.empty_like(batch) if out is None else out
        if out.shape != batch.shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"{type(self).__name__}: out must be contiguous {batch.shape} uint8.")
        table = _tables(self.mix, self.source_white, self.target_white)
        _look_up(batch.reshape(-1), table, _powers(), out.reshape(-1))
        return out


#: Logarithms of grey levels are held as whole numbers of this step, in fields of 20 bits: an error of 0.2 grey levels.
_STEP, _FIELD = 1 / 4096, 1 << 18


def _tables(
    mix: Floats, source_white: ArrayLike, target_white: ArrayLike, shift: ArrayLike = 0.0
) -> NDArray[np.uint64]:
    """(3, 256): for each value of input channel c, what it adds to the densities of the three outputs, in one number."""
    density = -np.log10(np.arange(1, 257) / (np.broadcast_to(source_white, (3,))[:, None] + 1))
    parts = density[:, :, None] * np.asarray(mix)[:, None, :]
    parts[0] += np.asarray(shift, float) - np.log10(np.broadcast_to(target_white, (3,)) + 1.0)
    steps = np.rint(np.clip(parts, -10, 10) / _STEP).astype(np.int64) + _FIELD // 6
    return (steps[..., 0] | steps[..., 1] << 20 | steps[..., 2] << 40).astype(np.uint64)


@lru_cache(1)
def _powers() -> RGB:
    """Grey level of each sum of three parts."""
    exponent = (np.arange(_FIELD) - 3 * (_FIELD // 6)) * _STEP
    return cast(RGB, np.clip(np.rint(10.0 ** np.minimum(-exponent, 3) - 1), 0, 255).astype(np.uint8))


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _look_up(flat, table, power, out):
    red, green, blue = table[0], table[1], table[2]
    mask, one, two = np.uint64(0xFFFFF), np.uint64(20), np.uint64(40)
    for i in range(flat.size // 3):
        total = red[flat[3 * i]] + green[flat[3 * i + 1]] + blue[flat[3 * i + 2]]
        out[3 * i] = power[total & mask]
        out[3 * i + 1] = power[(total >> one) & mask]
        out[3 * i + 2] = power[total >> two]


def remix(x: Any, mix: Any, *, white: Any = 255.0, target_white: Any = None, shift: Any = None) -> Any:
    """The transform of `StainNormaliser` for tensors, on their device.

    Parameters
    ----------
    x : (N, 3, H, W) tensor
        Grey levels from 0 to 255, uint8 or float.
    mix : (3, 3) or (N, 3, 3)
        One for all, or one a patch: ``density @ mix``.
    white, target_white : float or (3,)
        Before and after; the same when only `white` is given.
    shift : (N, 3), optional
        Added to the density.

    Returns
    -------
    (N, 3, H, W) float tensor
        From 0 to 255, not rounded.
    """
    import torch

    def column(values: Any) -> Any:
        if (
            np.ndim(values) == 0
        ):  # a number stays one: to send it to a GPU would wait for all that is under way there
            return float(values) + 1
        return torch.as_tensor(np.asarray(values, np.float32), device=x.device).expand(3).view(1, 3, 1, 1) + 1

    mix = torch.as_tensor(mix, dtype=torch.float32, device=x.device).expand(len(x), 3, 3)
    # In place, and the density with its sign turned: on a CPU each further tensor of a batch's size is half a millisecond.
    light = x.float().add(1).div_(column(white)).log_()
    light = torch.einsum("nchw,nck->nkhw", light, mix)
    if shift is not None:
        shift = torch.as_tensor(shift, dtype=torch.float32, device=x.device)
        light = light - float(np.log(10)) * shift[:, :, None, None]
    after = column(white if target_white is None else target_white)
    return light.exp_().mul_(after).sub_(1).clamp_(0, 255)


@dataclass(frozen=True, eq=False)
class ReinhardFit:
    """Mean and spread of a slide's tissue in CIE L*a*b*.

    Attributes
    ----------
    mean, spread : (3,)
    n_pixels : int
    """

    mean: Floats
    spread: Floats
    n_pixels: int = 0
    method: str = "reinhard"

    def __post_init__(self) -> None:
        for name in ("mean", "spread"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), float))
        if not (self.spread > 1e-3).all():
            raise ValueError("ReinhardFit: the pixels are all of one colour. Choose a field with tissue.")

    def to(self, target: ReinhardFit) -> ReinhardNormaliser:
        """The normaliser that gives this slide the other's mean and spread [1]_.

        References
        ----------
        .. [1] Reinhard et al., "Color transfer between images", IEEE CG&A 21:34-41, 2001 (there in l-alpha-beta).
        """
        scale = target.spread / self.spread
        return ReinhardNormaliser(scale, target.mean - scale * self.mean)


@dataclass(frozen=True, eq=False)
class ReinhardNormaliser:
    """``lab * scale + shift`` in CIE L*a*b*; made by ``fit.to(target)``, picklable. Glass changes with the tissue."""

    scale: Floats
    shift: Floats

    def __call__(self, batch: Any, *, out: RGB | None = None) -> Any:
        """Transform pixels; arguments as `StainNormaliser`."""
        if _is_tensor(batch):
            import torch

            scale, shift = (
                torch.as_tensor(v, dtype=torch.float32, device=batch.device).view(1, 3, 1, 1)
                for v in (self.scale, self.shift)
            )
            return _like(_rgb_tensor(_lab_tensor(batch) * scale + shift), batch)
        batch = _checked_batch(batch, type(self).__name__)
        out = np.empty_like(batch) if out is None else out
        pixels, changed = batch.reshape(-1), out.reshape(-1)
        table = _COLOURS.of(self, pixels.size // 3)
        if table is None:
            self._compute(pixels, changed)
        else:
            _replace_colours(pixels, table, changed)
        return out

    def _compute(self, pixels: RGB, out: RGB) -> None:
        """Both flat."""
        # Of y, x - y and y - z, whose multiples L*, a* and b* are.
        offset = [(self.shift[0] + 16 - 16 * self.scale[0]) / 116, *(self.shift[1:] / (500, 200))]
        numbers = (self.scale.astype(np.float32), np.asarray(offset, np.float32))
        _transfer(pixels, *numbers, *_lab_tables(), out)  # type: ignore[call-arg]

    def _every_colour(self) -> NDArray[np.uint32]:
        """What becomes of each colour, (2**24,): red, green and blue are the lowest, middle and highest byte of both."""
        table = np.zeros((256, 1 << 16, 4), np.uint8)
        plane, out = np.zeros((1 << 16, 3), np.uint8), np.empty((1 << 16, 3), np.uint8)
        plane[:, 0], plane[:, 1] = np.arange(1 << 16) & 255, np.arange(1 << 16) >> 8
        for blue in range(256):
            plane[:, 2] = blue
            self._compute(plane.reshape(-1), out.reshape(-1))
            table[blue, :, :3] = out
        return table.reshape(-1).view(np.uint32)


class _Colours:
    """Tables of the normalisers at work. To fill one costs as much as to change so many pixels, which comes first.

    The latest few are kept while their normaliser lives; one that had to make room begins to count again.
    """

    def __init__(self, *, after: int, most: int):
        self.after, self.most, self.lock = after, most, Lock()
        self.seen: WeakKeyDictionary[ReinhardNormaliser, int] = WeakKeyDictionary()
        self.tables: WeakKeyDictionary[ReinhardNormaliser, NDArray[np.uint32]] = WeakKeyDictionary()

    def of(self, normaliser: ReinhardNormaliser, n_pixels: int) -> NDArray[np.uint32] | None:
        """The table for `n_pixels` more, None while it is not worth while."""
        with self.lock:
            if normaliser not in self.tables:
                self.seen[normaliser] = self.seen.get(normaliser, 0) + n_pixels
                if self.seen[normaliser] < self.after:
                    return None
                for oldest in list(self.tables)[: len(self.tables) + 1 - self.most]:
                    del self.tables[oldest]
                del self.seen[normaliser]
                self.tables[normaliser] = normaliser._every_colour()
            return self.tables[normaliser]


_COLOURS = _Colours(after=1 << 24, most=2)


def _replace_colours(flat: RGB, table: NDArray[np.uint32], out: RGB) -> None:
    """Four pixels at a time are three words; the last few are filled up to four."""
    whole = flat.size // 12 * 12
    _replace_words(flat[:whole].view(np.uint32), table, out[:whole].view(np.uint32))
    rest = np.zeros(12, np.uint8)
    rest[: flat.size - whole] = flat[whole:]
    _replace_words(rest.view(np.uint32), table, rest.view(np.uint32))
    out[whole:] = rest[: flat.size - whole]


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _replace_words(words, table, out):
    colour, one, two, three = np.uint32(0xFFFFFF), np.uint32(8), np.uint32(16), np.uint32(24)
    for i in range(words.size // 3):
        a, b, c = words[3 * i], words[3 * i + 1], words[3 * i + 2]
        p, q = table[a & colour], table[((a >> three) | (b << one)) & colour]
        r, s = table[((b >> two) | (c << two)) & colour], table[c >> one]
        out[3 * i] = p | (q << three)
        out[3 * i + 1] = (q >> one) | (r << two)
        out[3 * i + 2] = (r >> two) | (s << one)


def fit(
    source: Slide | RGB,
    *,
    method: str = "macenko",
    mask: Raster | None = None,
    mpp: float = 1.0,
    white: ArrayLike | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Fit the stains, or the colours, of a slide or of a field.

    Parameters
    ----------
    source : Slide, or (..., 3) uint8
        Of a slide about 100,000 pixels of tissue from 60 places are read.
    method : {"macenko", "vahadane", "reinhard"}
    mask : Raster, optional
        Where to look on a slide, such as its tissue mask; everything that is stained when not given.
    mpp : float
        Resolution at which a slide is read; its own where that is coarser or unknown.
    white : float or (3,), optional
        `white_point` when not given.
    seed : int
        Of the places.
    **options
        Of `macenko_stains` or `vahadane_stains`.

    Returns
    -------
    StainFit or ReinhardFit

    Raises
    ------
    ValueError
        If there is no such method, too little tissue, or only one stain.
    """
    if method not in METHODS:
        raise ValueError(f"stain.fit: no method {method!r}; there are {', '.join(METHODS)}.")
    if isinstance(source, Slide):
        pixels, glass = _sampled(source, mask, mpp, seed)
    else:
        pixels = glass = np.asarray(source)
    level = white_point(glass) if white is None else np.broadcast_to(np.asarray(white, float), (3,))
    pixels = tissue_pixels(pixels, white=level, od_min=options.get("od_min", OD_MIN))
    if method == "reinhard":
        lab = _lab(pixels)
        return ReinhardFit(lab.mean(0), lab.std(0), len(pixels))
    estimate = macenko_stains if method == "macenko" else vahadane_stains
    stains = estimate(pixels, white=level, **options)
    amounts = separate(pixels, stains, white=level)
    strengths = np.maximum(np.percentile(amounts, STRENGTH_PERCENTILE, axis=0), 1e-3)
    return StainFit(stains, strengths, level, method, len(pixels))


def _sampled(slide: Slide, mask: Raster | None, mpp: float, seed: int, n_places: int = 60) -> tuple[RGB, RGB]:
    """Pixels of some places with tissue, and a thumbnail for the glass."""
    thumbnail = slide.thumbnail(1024)
    own = slide.mpp_or_none
    scale = 1.0 if own is None else max(1.0, mpp / own)
    side_px = 64
    step = side_px * scale  # level-0 pixels
    xs, ys = (np.arange(0, max(1, n - step + 1), step) for n in slide.dimensions)
    x_l0, y_l0 = (axis.ravel() for axis in np.meshgrid(xs, ys))
    shrink = slide.dimensions[0] / thumbnail.shape[1]
    density = optical_density(thumbnail, white=white_point(thumbnail)).mean(2)
    if mask is not None:
        share = mask.mean_in(
            np.column_stack([x_l0, y_l0, *2 * [np.full(len(x_l0), step)]]) * slide.mpp, outside=0
        )
    else:
        rows, cols = (
            np.minimum(((v + step / 2) / shrink).astype(int), n - 1)
            for v, n in zip((y_l0, x_l0), density.shape, strict=True)
        )
        share = density[rows, cols] > 0.5 * OD_MIN
    places = np.flatnonzero(share > 0.4)
    if not len(places):
        raise ValueError(
            f"{slide.name}: no stained tissue to fit stains on. Look at the slide, or at the mask that was given."
        )
    places = np.random.default_rng(seed).permutation(places)[:n_places]
    size = (side_px, side_px)
    how: dict[str, Any] = {"level": 0} if own is None else {"mpp": own * scale}
    patches = [slide.read_region((x_l0[i], y_l0[i]), size, **how) for i in places]
    return np.stack(patches).reshape(-1, 3), thumbnail


def distances(fits: Mapping[str, StainFit]) -> pd.DataFrame:
    """How far slides or sites lie from each other.

    Parameters
    ----------
    fits : mapping of name to StainFit

    Returns
    -------
    DataFrame
        One row a pair: a, b, haematoxylin_deg, eosin_deg (angles), haematoxylin_ratio, eosin_ratio (strength of b over a).
    """
    rows = []
    for (a, one), (b, two) in combinations(fits.items(), 2):
        ratio = two.strengths / one.strengths
        rows.append((a, b, *(angle_deg(*pair) for pair in zip(one.stains, two.stains, strict=True)), *ratio))
    columns = ["a", "b", "haematoxylin_deg", "eosin_deg", "haematoxylin_ratio", "eosin_ratio"]
    return pd.DataFrame(rows, columns=columns)


# Augmentation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HedJitter:
    """Change the amount of each stain at random, a patch at a time [1]_.

    ``concentration * factor + offset``, factors from 1 - factor to 1 + factor, offsets from -offset to offset.

    Parameters
    ----------
    factor, offset : float
        0.05 is Tellez' light setting, 0.2 his strong one.
    stains : (3, 3)
        Rows along which it is done.

    References
    ----------
    .. [1] Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
       distilled stain-invariant convolutional networks", IEEE TMI 37 (2018).

    Examples
    --------
    >>> patches = np.full((2, 8, 8, 3), 120, np.uint8)
    >>> jitter = HedJitter(0.2, 0.02)
    >>> bool((jitter(patches, seed=1) == jitter(patches, seed=1)).all())
    True
    """

    factor: float = 0.2
    offset: float = 0.02
    stains: Floats = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not (0 <= self.factor < 1 and self.offset >= 0):
            raise ValueError(
                f"HedJitter: 0 <= factor < 1 and offset >= 0, got {self.factor} and {self.offset}."
            )
        stains = _checked_stains(HED if self.stains is None else self.stains)
        if len(stains) != 3:
            raise ValueError("HedJitter: stains are 3 rows; the third takes what the first two leave.")
        object.__setattr__(self, "stains", stains)

    def draw(self, n: int, *, seed: int | tuple[int, ...]) -> tuple[Floats, Floats]:
        """Matrices (n, 3, 3) and shifts (n, 3) in optical density, for `remix`."""
        rng = np.random.default_rng(seed)
        factors = rng.uniform(1 - self.factor, 1 + self.factor, (n, 3))
        shifts = rng.uniform(-self.offset, self.offset, (n, 3)) @ self.stains
        return np.linalg.inv(self.stains) @ (factors[:, :, None] * self.stains), shifts

    def __call__(self, batch: Any, *, seed: int | tuple[int, ...]) -> Any:
        """(N, H, W, 3) uint8, or an (N, 3, H, W) tensor: the same change of the same seed."""
        mixes, shifts = self.draw(len(batch), seed=seed)
        if _is_tensor(batch):
            return _like(remix(batch, mixes, shift=shifts), batch)
        batch = _checked_batch(batch, "HedJitter")
        out = np.empty_like(batch)
        for patch, mix, shift, goal in zip(batch, mixes, shifts, out, strict=True):
            _look_up(patch.reshape(-1), _tables(mix, 255.0, 255.0, shift), _powers(), goal.reshape(-1))
        return out


class RandStainNA:
    """Give each patch the colours of a slide that was never stained, drawn from those that were [1]_.

    Parameters
    ----------
    fits : sequence of ReinhardFit
        Of at least two slides. Means and spreads are drawn from normal distributions fitted to theirs.
    strength : float
        Of the deviations: 0 gives every patch the mean slide's colours.

    References
    ----------
    .. [1] Shen et al., "RandStainNA: learning stain-agnostic features from histology slides by bridging stain augmentation
       and normalization", MICCAI 2022. Here in CIE L*a*b* alone.
    """

    def __init__(self, fits: Any, *, strength: float = 1.0):
        fits = list(fits.values() if isinstance(fits, Mapping) else fits)
        if len(fits) < 2:
            raise ValueError(f"RandStainNA: at least two fitted slides to vary between, got {len(fits)}.")
        both = np.stack([np.concatenate([f.mean, f.spread]) for f in fits])
        self.centre, self.deviation = both.mean(0), strength * both.std(0, ddof=1)

    def draw(self, n: int, *, seed: int | tuple[int, ...]) -> tuple[Floats, Floats]:
        """Means and spreads, each (n, 3)."""
        drawn = self.centre + self.deviation * np.random.default_rng(seed).normal(size=(n, 6))
        return drawn[:, :3], np.maximum(drawn[:, 3:], 1.0)

    def __call__(self, batch: Any, *, seed: int | tuple[int, ...]) -> Any:
        """(N, H, W, 3) uint8, or an (N, 3, H, W) tensor."""
        means, spreads = self.draw(len(batch), seed=seed)
        if _is_tensor(batch):
            return _like(self._tensor(batch, means, spreads), batch)
        batch = _checked_batch(batch, "RandStainNA")
        out = np.empty_like(batch)
        for patch, mean, spread, goal in zip(batch, means, spreads, out, strict=True):
            lab = _lab(patch.reshape(-1, 3))
            tissue = lab[:, 0] < _GLASS
            lab = lab[tissue] if tissue.mean() > 0.05 else lab
            scale = spread / np.maximum(lab.std(0), 1.0)
            ReinhardNormaliser(scale, mean - scale * lab.mean(0))(patch, out=goal)
        return out

    def _tensor(self, batch: Any, means: Floats, spreads: Floats) -> Any:
        import torch

        lab = _lab_tensor(batch)
        mean, spread = (
            torch.as_tensor(v, dtype=torch.float32, device=lab.device)[:, :, None, None]
            for v in (means, spreads)
        )
        tissue = (lab[:, :1] < _GLASS).float()
        tissue = torch.where(tissue.mean((2, 3), keepdim=True) > 0.05, tissue, torch.ones_like(tissue))
        n = tissue.sum((2, 3), keepdim=True)
        centred = lab - (lab * tissue).sum((2, 3), keepdim=True) / n
        own = ((centred**2 * tissue).sum((2, 3), keepdim=True) / n).sqrt().clamp(min=1.0)
        return _rgb_tensor(centred / own * spread + mean)


# CIE L*a*b* ------------------------------------------------------------------------------------------------------

_XYZ: Floats = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_XYZ = _XYZ / np.array([[0.95047], [1.0], [1.08883]])  # relative to daylight (D65)
_KNEE = 6 / 29
#: Lightness of glass: fits are of tissue, and so is what RandStainNA measures in a patch.
_GLASS = 88.0
_STEPS = 1 << 16


def _lab(pixels: RGB) -> Floats:
    """(N, 3) L*, a*, b* of (N, 3) uint8 sRGB."""
    from skimage.color import rgb2lab

    return cast(Floats, rgb2lab(pixels[None])[0].astype(float))


@lru_cache(1)
def _lab_tables() -> tuple[NDArray[Any], ...]:
    """What a value of a channel adds to X, Y and Z, in one number; their cube-root scale; XYZ to light; light to sRGB."""
    value = np.arange(256) / 255
    light = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    parts = np.rint(16 * _STEPS * light[:, None] * _XYZ.T[:, None]).astype(np.uint64)  # channel, value, sum
    parts[0] += 8  # so that sixteenths are rounded when they are dropped
    t = np.arange(_STEPS + 4) / _STEPS
    root = np.where(t > _KNEE**3, np.cbrt(t), t / (3 * _KNEE**2) + 4 / 29).astype(np.float32)
    t = np.minimum(t[: _STEPS + 1], 1)
    back = np.where(t > 0.0031308, 1.055 * t ** (1 / 2.4) - 0.055, 12.92 * t)
    inverse = np.ascontiguousarray(_STEPS * np.linalg.inv(_XYZ), np.float32)
    packed = parts[..., 0] | parts[..., 1] << 21 | parts[..., 2] << 42
    return packed, root, inverse, np.rint(255 * back).astype(np.uint8)


# Without the liberties that would let a colour give something else at another place.
@numba.njit(cache=True, nogil=True, fastmath={"nnan", "ninf", "nsz"}, boundscheck=False)
def _transfer(flat, scale, shift, parts, root, rgb, back, out):
    top, zero, half = np.float32(back.size - 1), np.float32(0.0), np.float32(0.5)
    knee, slope = np.float32(6 / 29), np.float32(3 * (6 / 29) ** 2)
    foot = np.float32(4 / 29) * slope
    red, green, blue = parts[0], parts[1], parts[2]
    first, second, third, mask = np.uint64(4), np.uint64(25), np.uint64(46), np.uint64(0x1FFFF)
    for i in range(flat.size // 3):
        total = red[flat[3 * i]] + green[flat[3 * i + 1]] + blue[flat[3 * i + 2]]
        x, y, z = root[(total >> first) & mask], root[(total >> second) & mask], root[total >> third]
        # L* = 116 y - 16, a* = 500 (x - y), b* = 200 (y - z)
        a = scale[1] * (x - y) + shift[1]
        c = scale[2] * (y - z) + shift[2]
        y = scale[0] * y + shift[0]
        x, z = y + a, y - c
        x = x * x * x if x > knee else x * slope - foot
        y = y * y * y if y > knee else y * slope - foot
        z = z * z * z if z > knee else z * slope - foot
        for k in range(3):
            t = rgb[k, 0] * x + rgb[k, 1] * y + rgb[k, 2] * z + half
            out[3 * i + k] = back[np.int32(min(max(t, zero), top))]


def _lab_tensor(x: Any) -> Any:
    """(N, 3, H, W) L*, a*, b* of grey levels."""
    import torch

    value = x.float() / 255
    light = torch.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    matrix = torch.as_tensor(_XYZ, dtype=torch.float32, device=x.device)
    t = torch.einsum("kc,nchw->nkhw", matrix, light)
    f = torch.where(t > _KNEE**3, t.clamp(min=1e-8) ** (1 / 3), t / (3 * _KNEE**2) + 4 / 29)
    fx, fy, fz = f.unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], 1)


def _rgb_tensor(lab: Any) -> Any:
    """(N, 3, H, W) grey levels, float, of L*, a*, b*."""
    import torch

    lightness, a, b = lab.unbind(1)
    fy = (lightness + 16) / 116
    f = torch.stack([fy + a / 500, fy, fy - b / 200], 1)
    xyz = torch.where(f > _KNEE, f**3, (f - 4 / 29) * (3 * _KNEE**2))
    matrix = torch.as_tensor(np.linalg.inv(_XYZ), dtype=torch.float32, device=lab.device)
    t = torch.einsum("kc,nchw->nkhw", matrix, xyz).clamp(0, 1)
    return 255 * torch.where(t > 0.0031308, 1.055 * t.clamp(min=1e-8) ** (1 / 2.4) - 0.055, 12.92 * t)


# Batches ---------------------------------------------------------------------------------------------------------


def _is_tensor(batch: Any) -> bool:
    return type(batch).__module__.partition(".")[0] == "torch"


def _like(result: Any, batch: Any) -> Any:
    """A float tensor in the dtype of the one that came."""
    return result if batch.is_floating_point() else (result + 0.5).floor().to(batch.dtype)


def _checked_batch(batch: Any, who: str) -> RGB:
    batch = np.asarray(batch)
    if batch.dtype != np.uint8 or batch.shape[-1:] != (3,):
        raise ValueError(
            f"{who}: expected (N, H, W, 3) uint8, or an (N, 3, H, W) tensor; got {batch.shape} {batch.dtype}."
        )
    return np.ascontiguousarray(batch)
