"""Models: what is trained, with what must be known to use it.

A `PatchClassifier` carries its classes, and the mpp and size of the patches that it was trained on, through saving and
loading: a heatmap can then be made of any slide without a second file of settings.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pathkit.encoders import Colour, Encoder, load_encoder
from pathkit.files import replacing

__all__ = [
    "CellCNN",
    "OrdinalHead",
    "PatchClassifier",
    "SmallCNN",
    "cpu_computes_bf16",
    "keep_memory",
    "load_model",
    "model_digest",
    "patch_classifier",
    "save_model",
]


class _FromScratch(Encoder):
    """Convolutions of 3 x 3 with (inputs, outputs, stride) as `plan` says; mean and maximum are pooled side by side: a few
    tumour cells at the edge of a patch change the maximum, not the mean."""

    plan: tuple[tuple[int, int, int], ...]
    dropout = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*[_layer(*each) for each in self.plan])
        self.drop = nn.Dropout(self.dropout)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stages((x.float() - 180.0) / 60.0)
        return self.drop(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1))


class SmallCNN(_FromScratch):
    """Four convolutional stages for patches of 48 to 128 pixels; 0.14 million parameters, trained from scratch.

    The first stage is narrow and has one layer: where there are most pixels, a layer costs most. So has the last, of which a
    second made it slower and, on patches of lymph nodes, no better.
    """

    name, dim, size_px = "small", 256, 96
    plan = ((3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2))


class CellCNN(_FromScratch):
    """For patches of one cell, 32 to 64 pixels; 0.2 million parameters, trained from scratch.

    The first layer keeps every pixel: at 0.5 µm each, a chromosome plate is four of them wide.
    """

    name, dim, size_px = "cell", 192, 48
    plan = ((3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 96, 2), (96, 96, 1))
    dropout = 0.2


def _layer(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


#: Networks that are trained from scratch, by name.
_FROM_SCRATCH: dict[str, type[Encoder]] = {net.name: net for net in (SmallCNN, CellCNN)}


class OrdinalHead(nn.Module):
    """The cumulative-link (proportional odds) model: one score on a line, cut into classes that have an order.

    ``P(class <= k) = sigmoid(cut_k - score)`` with rising cuts [1]_. The output is the logarithm of each class's probability,
    so that cross-entropy on it is the model's likelihood, softmax gives the probabilities, and all that trains or uses a
    `PatchClassifier` works unchanged. A nominal layer fits one direction a class and may confuse any two; here a confusion of
    distant classes costs the likelihood much more than one of neighbours.

    Parameters
    ----------
    n_in : int
    n_classes : int
        In order, at least 2.

    References
    ----------
    .. [1] McCullagh, "Regression models for ordinal data", Journal of the Royal Statistical Society B 42 (1980).
    """

    def __init__(self, n_in: int, n_classes: int):
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"OrdinalHead: an order needs two or more classes, got {n_classes}.")
        self.score = nn.Linear(n_in, 1, bias=False)
        # Cuts start 3 apart, so that a class in the middle can have more than half of the probability from the first step on.
        self.first = nn.Parameter(torch.tensor([3.0 * (1 - n_classes / 2)]))
        self.steps = nn.Parameter(torch.full((n_classes - 2,), 2.9489))  # softplus of it is 3

    @property
    def cuts(self) -> Tensor:
        """(n_classes - 1,) rising."""
        return torch.cat([self.first, self.first + nn.functional.softplus(self.steps).cumsum(0)])

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) to (N, C) logarithms of probabilities."""
        below = self.cuts - self.score(x)  # (N, C - 1): the log odds of lying below each cut
        upper = nn.functional.logsigmoid(below)
        lower = nn.functional.logsigmoid(-below)
        # log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(a - b)), stable for all a < b
        gap = torch.log(-torch.expm1(below[:, :-1] - below[:, 1:]))
        middle = upper[:, 1:] + lower[:, :-1] + gap
        return torch.cat([upper[:, :1], middle, lower[:, -1:]], dim=1)


class PatchClassifier(nn.Module):
    """An encoder and a last layer: uint8 patches in, one logit a class out.

    Parameters
    ----------
    encoder : Encoder
    classes : sequence of str
    ordinal : bool
        The classes have an order, lowest first: the last layer is an `OrdinalHead`, not a linear one.

    Attributes
    ----------
    classes : tuple of str
    mpp : float or None
        Microns per pixel of the patches trained on; None before training.
    size_px : int or None
        Their side.
    """

    head: nn.Module

    def __init__(self, encoder: Encoder, classes: Sequence[str], *, ordinal: bool = False):
        super().__init__()
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise ValueError(f"PatchClassifier: needs two or more different classes, got {list(classes)}.")
        self.encoder = encoder
        self.norm = (
            nn.BatchNorm1d(encoder.dim, affine=False) if isinstance(encoder, Colour) else nn.Identity()
        )
        make = OrdinalHead if ordinal else nn.Linear
        self.head = make(encoder.dim, len(classes))
        self.classes = tuple(classes)
        self.mpp: float | None = None
        self.size_px: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 or float from 0 to 255, to (N, C) logits."""
        return self.head(self.norm(self.encoder(x)))


def patch_classifier(
    name: str = "small", *, classes: Sequence[str], pretrained: bool = True, ordinal: bool = False
) -> PatchClassifier:
    """A classifier of patches, to be trained by `training.fit`.

    Parameters
    ----------
    name : str
        ``"small"`` or ``"cell"`` (from scratch), or an encoder's name (see `encoders.load_encoder`).
    classes : sequence of str
    pretrained : bool
        Start from the encoder's weights.
    ordinal : bool
        The classes have an order, lowest first (see `OrdinalHead`).
    """
    scratch = _FROM_SCRATCH.get(name)
    encoder = load_encoder(name, pretrained=pretrained) if scratch is None else scratch()
    return PatchClassifier(encoder, classes, ordinal=ordinal)


def save_model(model: PatchClassifier, path: str | os.PathLike[str]) -> Path:
    """Write weights, classes, mpp and size to one file, whole or not at all."""
    path = Path(path)
    facts = {
        "encoder": model.encoder.name,
        "classes": list(model.classes),
        "mpp": model.mpp,
        "size_px": model.size_px,
        "ordinal": isinstance(model.head, OrdinalHead),
    }
    with replacing(path) as partial:
        torch.save({"pathkit": facts, "weights": model.state_dict()}, partial)
    return path


def load_model(path: str | os.PathLike[str]) -> PatchClassifier:
    """Read what `save_model` wrote; in evaluation mode.

    Raises
    ------
    ValueError
        If the file is absent, or no model of pathkit.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such model.")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        facts, weights = stored["pathkit"], stored["weights"]
    except Exception as error:  # torch raises many kinds for files that are none of its own
        raise ValueError(
            f"{path.name}: not a model saved by pathkit ({type(error).__name__}). Use models.save_model."
        ) from error
    model = patch_classifier(
        facts["encoder"], classes=facts["classes"], pretrained=False, ordinal=facts.get("ordinal", False)
    )
    model.load_state_dict(weights)
    model.mpp, model.size_px = facts["mpp"], facts["size_px"]
    return model.eval()


def model_digest(model: nn.Module) -> str:
    """Changes when a weight does; names the model that a result was made with."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        # In the order of the indices, however the memory is laid out.
        digest.update(value.detach().cpu().reshape(-1).clone().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def cpu_computes_bf16() -> bool:
    """Whether the processor has instructions for bfloat16; where it only imitates them, float32 is faster."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known and known())


def keep_memory() -> bool:
    """Let this process keep freed memory instead of giving it back after every layer (Linux with glibc only).

    By default glibc returns every large block to the system, and a network on the CPU spends more time in page faults
    than in arithmetic. Training and inference on the CPU call this once; the price is that the process stays as large as
    it once was.

    Returns
    -------
    bool
        Whether the setting was made.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(arena_max, 2)  # each further arena would keep memory of its own
        return bool(libc.mallopt(mmap_max, 0)) and bool(libc.mallopt(trim_threshold, 2**28))
    except (OSError, AttributeError):  # another C library
        return False
