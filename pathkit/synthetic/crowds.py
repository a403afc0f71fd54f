"""Crowds: pictures of nuclei without tissue, in any disorder, to learn where one nucleus ends and the next begins.

Tissue has rules, and a network learns them; another laboratory's smear, another organ's palisade or a section cut too thick
breaks them. Here nothing is kept but what nuclei always are: smooth, mostly convex bodies that take up stain, each by its own
measure, that touch, and lie over and under one another. Size, shape, order, crowding, strength, chromatin, rim, sharpness and
what lies between are drawn anew for each picture, wider than life (domain randomisation, Tobin et al., IROS 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from pathkit.synthetic.fields import Fields, numbered, random_site, smooth_field
from pathkit.synthetic.scanner import expose

__all__ = ["crowded_fields"]

#: A nucleus of the usual width has so many microns: only tells the pictures' mpp.
_WIDTH_UM = 8.0
_MARGIN_PX = 24


@dataclass
class _Look:
    """What the nuclei of one picture have in common."""

    width: float  # of the usual nucleus, pixels
    spread: float  # of sizes, logarithmic
    aspect: float
    along: float  # direction in which they lie
    disorder: float
    bumps: float
    pointed: float  # how much more pointed a nucleus is the longer it is
    strength: float  # spread, logarithmic
    pale: float  # share of nuclei that are much paler
    hidden: float  # how far what lies above hides what lies below; 0: densities add
    edge: float  # sigma, pixels
    rim: float
    open: float  # how much paler inside
    chromatin: float
    grain: float  # pixels
    nucleoli: float


def crowded_fields(
    n: int,
    *,
    size_px: int = 128,
    width_px: tuple[float, float] = (13.0, 32.0),
    least_px: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Fields:
    """Pictures of nuclei in crowds, with every nucleus outlined.

    Parameters
    ----------
    n : int
    size_px : int
    width_px : (from, to)
        Of the usual nucleus of a picture; drawn evenly on a logarithmic scale.
    least_px : int
        Nuclei of which fewer pixels are seen are no instances.
    seed : int

    Returns
    -------
    Fields
        Organ is "crowd"; mpp is that at which the usual nucleus has 8 µm.

    Raises
    ------
    ValueError
        If a number is not positive.
    """
    if n < 1 or size_px < 16 or not 2 <= width_px[0] <= width_px[1]:
        raise ValueError(
            f"crowded_fields: n and size_px must be positive and widths at least 2 px, got {n}, {size_px}, {width_px}."
        )
    images = np.empty((n, size_px, size_px, 3), np.uint8)
    labels = np.zeros((n, size_px, size_px), np.int32)
    mpp = np.empty(n)
    inner = (slice(_MARGIN_PX, -_MARGIN_PX),) * 2
    for k in tqdm(range(n), desc="painting crowds", unit="field", disable=not progress):
        rng = np.random.default_rng([seed, 34, k])
        look = _look(rng, float(np.exp(rng.uniform(*np.log(width_px)))))
        density, ids = _crowd(rng, look, size_px + 2 * _MARGIN_PX)
        images[k] = _pictured(rng, look, density)[inner]
        labels[k] = numbered(ids[inner], least_px)
        mpp[k] = _WIDTH_UM / look.width
    return Fields(images, labels, mpp, ["crowd"] * n)


def _look(rng: np.random.Generator, width: float) -> _Look:
    return _Look(
        width=width,
        spread=rng.uniform(0.05, 0.35),
        aspect=rng.uniform(2, 4) if rng.random() < 0.3 else 1 + rng.gamma(1.5, 0.25),
        along=rng.uniform(0, np.pi),
        disorder=rng.choice([0.2, 0.5, 3.0]),
        pointed=rng.uniform(0, 0.25),
        bumps=rng.uniform(0.0, 0.09),
        strength=rng.uniform(0.05, 0.5),
        pale=rng.uniform(0, 0.7) * (rng.random() < 0.5),
        hidden=rng.uniform(0, 1),
        edge=rng.uniform(0.03, 0.14) * width,
        rim=rng.uniform(0, 0.6) * (rng.random() < 0.6),
        open=rng.uniform(0, 0.5) * (rng.random() < 0.5),
        chromatin=0.4 * rng.random() ** 2,
        grain=rng.uniform(0.06, 0.25) * width,
        nucleoli=rng.uniform(0, 3) * (rng.random() < 0.4),
    )


def _crowd(rng: np.random.Generator, look: _Look, size: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Density of the nuclei, about 1, and which nucleus lies uppermost."""
    density, ids = np.zeros((size, size), np.float32), np.zeros((size, size), np.int32)
    for k, (x, y, radius) in enumerate(_places(rng, look, size), start=1):
        aspect = max(1.0, 1 + (look.aspect - 1) * rng.lognormal(0, 0.35))
        angle = look.along + look.disorder * rng.standard_normal()
        body, where = _body(rng, look, (x, y), radius, aspect, angle, size)
        if not body.size:
            continue
        cover = _cover(body, radius, look.edge)
        pale = rng.uniform(0.3, 0.7) if rng.random() < look.pale else 1.0
        own = pale * rng.lognormal(0, look.strength) * _inside(rng, look, body, radius)
        density[where] = density[where] * (1 - look.hidden * cover) + cover * own
        ids[where] = np.where(body < 1, k, ids[where])
    return density, ids


def _places(rng: np.random.Generator, look: _Look, size: int) -> list[tuple[float, float, float]]:
    """Centre and radius of the nuclei: scattered, or grown on one another into clumps, none on top of another."""
    share = np.exp(rng.uniform(np.log(0.03), np.log(0.8)))  # of the area, that is stained
    clumped, near = rng.choice([0.0, 0.5, 0.9]), rng.uniform(0.62, 1.0)
    placed: list[tuple[float, float, float]] = []
    area = 0.0
    for _ in range(2500):
        if area > share * size**2:
            break
        radius = look.width / 2 * rng.lognormal(0, look.spread)
        if placed and rng.random() < clumped:
            x0, y0, r0 = placed[rng.integers(len(placed))]
            turn = rng.uniform(0, 2 * np.pi)
            reach = (radius + r0) * rng.uniform(near, 1.1)
            x, y = x0 + reach * np.cos(turn), y0 + reach * np.sin(turn)
        else:
            x, y = rng.uniform(0, size, 2)
        if not (0 <= x < size and 0 <= y < size) or _crowded(placed, look, x, y, radius, near):
            continue
        placed.append((float(x), float(y), float(radius)))
        area += np.pi * radius**2
    return placed


def _crowded(
    placed: list[tuple[float, float, float]], look: _Look, x: float, y: float, radius: float, near: float
) -> bool:
    """Whether some nucleus lies nearer than nuclei may, measured along the direction in which they lie."""
    if not placed:
        return False
    others = np.array(placed)
    dx, dy = others[:, 0] - x, others[:, 1] - y
    if look.disorder < 1:  # long bodies side by side are narrower one way
        c, s, stretch = np.cos(look.along), np.sin(look.along), np.sqrt(look.aspect)
        dx, dy = (c * dx + s * dy) / stretch, (c * dy - s * dx) * stretch
    return bool((np.hypot(dx, dy) < near * (others[:, 2] + radius)).any())


def _body(
    rng: np.random.Generator,
    look: _Look,
    centre: tuple[float, float],
    radius: float,
    aspect: float,
    angle: float,
    size: int,
) -> tuple[NDArray[np.float32], tuple[slice, slice]]:
    """Of the pixels near a nucleus, the distance from its centre over that of its outline, and where they are."""
    half = radius * np.sqrt(aspect) * 1.5 + 4 * look.edge
    (x, y), none = centre, (slice(0, 0), slice(0, 0))
    c0, c1 = max(0, int(x - half)), min(size, int(x + half) + 1)
    r0, r1 = max(0, int(y - half)), min(size, int(y + half) + 1)
    if c0 >= c1 or r0 >= r1:
        return np.empty((0, 0), np.float32), none
    dy, dx = np.mgrid[r0:r1, c0:c1].astype(np.float32)
    dx, dy = dx - x, dy - y
    c, s, stretch = np.cos(angle), np.sin(angle), np.sqrt(aspect)
    u, v = (c * dx + s * dy) / stretch, (c * dy - s * dx) * stretch
    power = max(1.45, 2 - look.pointed * (aspect - 1))  # 2 is an ellipse
    v = v + rng.normal(0, 0.12) * u**2 / radius  # bent like a bean
    turn = np.arctan2(v, u)
    outline = np.ones_like(turn)
    for wave in (2, 3, 4, 5):
        outline += look.bumps * rng.standard_normal() * 2 / wave * np.cos(wave * turn + rng.uniform(0, 6.3))
    return (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power) / (radius * np.maximum(outline, 0.4)), (
        slice(r0, r1),
        slice(c0, c1),
    )


def _cover(body: NDArray[np.float32], radius: float, edge: float) -> NDArray[np.float32]:
    """How much of a pixel the nucleus covers, soft at its edge."""
    return 1 / (1 + np.exp(np.clip((body - 1) * radius / (0.6 * edge), -30, 30)))


def _inside(
    rng: np.random.Generator, look: _Look, body: NDArray[np.float32], radius: float
) -> NDArray[np.float32]:
    """Chromatin: paler inside, a rim, grains, nucleoli."""
    side = max(body.shape)
    grains = smooth_field(rng, side, max(1.2, look.grain))[: body.shape[0], : body.shape[1]]
    own = 1 - look.open * np.clip(1.2 - body, 0, 1) + look.rim * np.exp(-(((body - 0.92) / 0.12) ** 2))
    own = own * (1 + look.chromatin * grains)
    for _ in range(rng.poisson(look.nucleoli)):
        r, c = (rng.uniform(0.3, 0.7) * n for n in body.shape)
        y, x = np.ogrid[: body.shape[0], : body.shape[1]]
        wide = radius * rng.uniform(0.12, 0.28)
        own = own + rng.uniform(0.2, 0.8) * np.exp(-((x - c) ** 2 + (y - r) ** 2) / wide**2)
    return np.maximum(own, 0.08).astype(np.float32)


def _pictured(rng: np.random.Generator, look: _Look, density: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Between the nuclei cytoplasm, fibres, dirt and nuclei far out of focus; then a laboratory's colours and a camera."""
    size = len(density)
    stain = np.zeros((size, size, 3), np.float32)
    stain[..., 0] = density
    if rng.random() < 0.2:  # out of focus: stained, and no nucleus
        ghosts = cv2.GaussianBlur(np.rot90(density, 2), (0, 0), look.width * rng.uniform(0.3, 0.6))
        seldom = np.clip(smooth_field(rng, size, 3 * look.width) - rng.uniform(0, 1.2), 0, 1)
        stain[..., 0] += rng.uniform(0.2, 0.7) * ghosts * seldom
    body = cv2.GaussianBlur(density, (0, 0), look.width * rng.uniform(0.3, 0.9))
    fibres = _fibres(rng, size, look.width)
    ground = rng.uniform(0, 0.25) * body + 0.06 * rng.random() * (rng.random() < 0.4) * np.maximum(fibres, 0)
    free = 1 / (1 + 2 * density)
    stain[..., 0] += ground * free * rng.uniform(0.3, 1)
    stain[..., 1] = (1.5 * ground + rng.uniform(0, 0.3)) * (0.4 + 0.6 * free)
    site = random_site(rng, 0.25)
    stain[..., 0] *= rng.uniform(0.35, 0.8)
    lit = expose(stain, site, blur_px=look.edge * rng.uniform(0.2, 0.7), seed=int(rng.integers(1 << 20)))
    shade = 1 + 0.08 * rng.random() * smooth_field(rng, size, size / 2)
    return np.clip(lit * shade[..., None], 0, 255).astype(np.uint8)


def _fibres(rng: np.random.Generator, size: int, width: float) -> NDArray[np.float32]:
    """Noise drawn out along one direction."""
    coarse = smooth_field(rng, 2 * size, width * rng.uniform(0.15, 0.5))
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(0, 180), 1.0)
    turn = turn * np.array([rng.uniform(0.15, 1), 1, 1])
    return np.asarray(
        cv2.warpAffine(
            coarse,
            turn,
            (size, size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
    )
