"""Pooling: from a map of features to one description of the whole patch, without regard to place.

Average pooling keeps how strong each feature is. Bilinear pooling [1]_ keeps which features occur *together*: it sums the
outer product of the feature vector with itself over all places, C * C numbers. Compact bilinear pooling [2]_ approximates
it in a few thousand: the outer product is never formed, its count sketch is computed instead. Two facts make that work.

* A count sketch [3]_ sends each of C coordinates to one of D places with a random sign. Over the draws of places and signs
  the inner product of two sketches is on average that of the vectors.
* The count sketch of an outer product is the circular convolution of two count sketches [4]_, which the Fourier transform
  turns into a product.

So the inner product of two pooled descriptions is on average the sum over all pairs of places of the squared inner product
of their features: a comparison of textures, whatever their arrangement.

References
----------
.. [1] Lin, RoyChowdhury and Maji, "Bilinear CNN models for fine-grained visual recognition", ICCV 2015.
.. [2] Gao, Beijbom, Zhang and Darrell, "Compact bilinear pooling", CVPR 2016.
.. [3] Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", ICALP 2002.
.. [4] Pham and Pagh, "Fast and scalable polynomial kernels via explicit feature maps", KDD 2013.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AveragePooling", "CompactBilinear", "bilinear", "count_sketch"]


def count_sketch(x: Tensor, places: Tensor, signs: Tensor, dim: int) -> Tensor:
    """Sketch of vectors: ``out[..., places[c]] += signs[c] * x[..., c]``.

    Parameters
    ----------
    x : (..., C) float
    places : (C,) int
        From 0 to dim - 1.
    signs : (C,) float
        Each 1 or -1.
    dim : int

    Returns
    -------
    (..., dim) float
    """
    out = x.new_zeros((*x.shape[:-1], dim))
    return out.index_add_(-1, places, x * signs)


def bilinear(maps: Tensor) -> Tensor:
    """Full bilinear pooling: (N, C, H, W) to (N, C * C), the mean over places of the outer product."""
    x = maps.flatten(2)
    return torch.einsum("ncp,ndp->ncd", x, x).flatten(1) / x.shape[2]


class AveragePooling(nn.Module):
    """(N, C, H, W) to (N, C): the mean over places."""

    def __init__(self, n_in: int):
        super().__init__()
        self.dim = n_in

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


class CompactBilinear(nn.Module):
    """Compact bilinear pooling by tensor sketch: (N, C, H, W) to (N, dim).

    Parameters
    ----------
    n_in : int
        Channels C.
    dim : int
        Length of the description; the error of an inner product falls as its square root.
    normalise : bool
        Signed square root and unit length, as is usual before a classifier; they tame features that dominate.
    seed : int
        Of places and signs, which are kept with the weights.

    Raises
    ------
    ValueError
        If a size is less than 1.
    """

    places: Tensor
    signs: Tensor

    def __init__(self, n_in: int, dim: int = 2048, *, normalise: bool = True, seed: int = 0):
        super().__init__()
        if n_in < 1 or dim < 1:
            raise ValueError(f"CompactBilinear: n_in and dim must be at least 1, got {n_in} and {dim}.")
        self.dim, self.normalise = dim, normalise
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("places", torch.randint(0, dim, (2, n_in), generator=draw))
        self.register_buffer("signs", torch.randint(0, 2, (2, n_in), generator=draw) * 2.0 - 1.0)

    def forward(self, maps: Tensor) -> Tensor:
        x = maps.flatten(2).transpose(1, 2).float()  # (N, places, C)
        first, second = (
            torch.fft.rfft(count_sketch(x, p, s, self.dim))
            for p, s in zip(self.places, self.signs, strict=True)
        )
        # The transform is linear: the mean over places is taken before it is undone, once for each patch.
        pooled = torch.fft.irfft((first * second).mean(1), n=self.dim)
        if not self.normalise:
            return pooled
        rooted = pooled.sign() * (pooled.abs() + 1e-12).sqrt()
        return nn.functional.normalize(rooted)
