"""Markers: which cells an immunohistochemical stain marks, and how strongly.

Levels are 0 (negative) to 3 (strong), as pathologists score them: nuclear for Ki-67, ER and PR, of the membrane for HER2
and PD-L1. What a slide expresses stands in `Architecture.markers`; the level of a cell follows from that, its place (hot
spots of a few hundred microns) and its own number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np
from numpy.typing import NDArray

from pathkit.synthetic.noise import smooth_noise, uniform
from pathkit.synthetic.tissues import CLASSES, LABELS, MALIGNANT, MITOSES

if TYPE_CHECKING:
    from pathkit.synthetic.architecture import Architecture

__all__ = ["MARKERS", "Marker", "levels"]


@dataclass(frozen=True)
class Marker:
    """An immunohistochemical stain.

    Attributes
    ----------
    name : str
    membrane : bool
        Stains the membrane, else the nucleus.
    immune : bool
        Also stains immune cells.
    """

    name: str
    membrane: bool = False
    immune: bool = False


MARKERS = {
    m.name: m
    for m in (
        Marker("Ki-67"),
        Marker("ER"),
        Marker("PR"),
        Marker("HER2", membrane=True),
        Marker("PD-L1", membrane=True, immune=True),
    )
}
#: Optical density of diaminobenzidine at each level.
DAB = np.array([0.0, 0.28, 0.60, 1.05])
_TUMOUR = np.isin(CLASSES, ["tumour", *MITOSES])
_IMMUNE = np.isin(CLASSES, ["lymphocyte", "histiocyte", "plasma cell"])


def check_marker(name: str) -> Marker:
    """The marker of a name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in MARKERS:
        raise ValueError(f"markers: no marker {name!r}; there are {', '.join(MARKERS)}.")
    return MARKERS[name]


def levels(architecture: Architecture, rows: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """The level of each cell, (N,) from 0 to 3.

    `Architecture.markers` may hold, under the marker's name, the score of HER2 (0 to 3), or the share of tumour cells that
    are positive (0 to 1), or (share of tumour cells, share of immune cells) for PD-L1. Not named: 0.

    Raises
    ------
    ValueError
        If there is no such marker, or what is expressed is out of range.
    """
    marker = check_marker(name)
    value = architecture.markers.get(name, 0)
    tumour, immune = value if isinstance(value, tuple) else (value, 0.0)
    limit = 3 if name == "HER2" else 1
    if not (0 <= tumour <= limit and 0 <= immune <= 1):
        raise ValueError(f"markers: {name} must be 0 to {limit}, got {value}.")
    kind = rows[:, 6].astype(int)
    own, local = _numbers(rows, architecture.seed)
    if name == "HER2":
        # Most membranes carry the slide's score, some one more or less.
        out = np.where(_TUMOUR[kind], np.clip(tumour + (own > 0.9) - (own < 0.12) * (tumour < 3), 0, 3), 0)
        return out * (tumour > 0)
    share = np.where(_TUMOUR[kind], tumour, immune * (_IMMUNE[kind] & marker.immune))
    # Hot spots that keep the mean: their field is centred over the slide's tumour.
    spread = 0.6 * np.minimum(share, 1 - share)
    positive = own < share + spread * (local - _mean_in_tumour(architecture))
    strength = 1 + np.floor(3 * (own * 7919 % 1.0) ** (0.5 if tumour > 0.5 else 1.0))
    return np.where(positive, np.clip(strength, 1, 3), 0)


def _mean_in_tumour(architecture: Architecture) -> float:
    """Mean of the field of hot spots over the malignant tissue of a slide."""
    step = max(1, round(24 / architecture.map_um))
    malignant = [LABELS.index(t) for t in MALIGNANT]
    r, c = np.nonzero(np.isin(architecture.labels[::step, ::step], malignant))
    if not len(r):
        return 0.0
    at = np.stack([(c * step + 0.5) * architecture.map_um, (r * step + 0.5) * architecture.map_um], 1)
    return float(_field(at, architecture.seed).mean())


@numba.njit(cache=True, nogil=True)
def _field(at, seed):
    out = np.empty(len(at))
    for n in range(len(at)):
        out[n] = smooth_noise(at[n, 0] / 350.0, at[n, 1] / 350.0, seed + 72)
    return out


@numba.njit(cache=True, nogil=True)
def _numbers(rows, seed):
    """Of each cell: its own number in [0, 1), and that of its surroundings in [-1, 1]."""
    own, local = np.empty(len(rows)), _field(rows, seed)
    for n in range(len(rows)):
        number = int(rows[n, 8])
        own[n] = uniform(number & 1048575, number >> 20, seed + 71)
    return own, local
