"""Encoders: the right weights with the right normalisation, and no torchvision."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import skimage.data
import torch
from skimage.transform import resize

from pathkit.encoders import ENCODERS, ImageNetLite0Mid, load_encoder


@pytest.fixture(scope="module")
def imagenet():
    return load_encoder("efficientnet-lite0")


def test_imagenet_weights_know_a_cat_and_a_coffee(imagenet):
    # ImageNet classes 281 to 285 are cats, 967 espresso, 504 coffee mug; wrong normalisation loses them.
    for image, classes in [(skimage.data.chelsea(), range(281, 286)), (skimage.data.coffee(), (967, 504))]:
        side = min(image.shape[:2])
        top, left = ((n - side) // 2 for n in image.shape[:2])
        square = resize(image[top : top + side, left : left + side], (224, 224), anti_aliasing=True)
        x = torch.from_numpy((square * 255).astype(np.uint8)).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = imagenet.network._fc(imagenet(x))
        assert int(logits.argmax()) in classes


@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_is_described_row_by_row(name):
    encoder = load_encoder(name)
    x = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        features = encoder(x)
        order = torch.tensor([3, 1, 4, 0, 2])
        torch.testing.assert_close(encoder(x[order]), features[order], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder(x.float()), features)
        nhwc = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        torch.testing.assert_close(encoder(nhwc), features, rtol=1e-4, atol=1e-4)
    assert features.shape == (5, encoder.dim)
    assert not encoder.training


def test_untrained_weights_are_other_weights(imagenet):
    x = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert not torch.allclose(load_encoder("efficientnet-lite0", pretrained=False)(x), imagenet(x))


def test_colour_by_hand():
    x = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    x[:, :, :2] = 25
    features = load_encoder("colour")(x)[0].reshape(3, 3)
    dark = -np.log10(26 / 256)
    np.testing.assert_allclose(features[0], dark / 2, rtol=1e-5)
    np.testing.assert_allclose(features[1], torch.tensor([0, dark] * 8).std(), rtol=1e-5)
    np.testing.assert_allclose(features[2], 0, atol=1e-5)


def test_colour_knows_nothing_of_shape():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    shuffled = x.flatten(2)[:, :, torch.randperm(256)].reshape(x.shape)
    torch.testing.assert_close(
        load_encoder("colour")(shuffled), load_encoder("colour")(x), rtol=1e-4, atol=1e-4
    )


def test_unknown_encoders_are_named():
    with pytest.raises(ValueError, match="no encoder 'resnet'; there are efficientnet-lite0"):
        load_encoder("resnet")


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pathkit\[foundation\]"):
        load_encoder("timm:vit_tiny")


def test_timm_models_stand_behind_the_same_interface(monkeypatch):
    """A stand-in of the few names that pathkit uses of timm; its weights would come from a hub."""

    class Network(torch.nn.Module):
        num_features = 3

        def forward(self, x):
            return x.mean((2, 3))

    class Data:
        @staticmethod
        def resolve_model_data_config(network):
            return {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "input_size": (3, 96, 96)}

    class Timm:
        data = Data

        @staticmethod
        def create_model(name, pretrained, num_classes):
            assert (name, pretrained, num_classes) == ("tiny", False, 0)
            return Network()

    monkeypatch.setitem(sys.modules, "timm", Timm)
    encoder = load_encoder("timm:tiny", pretrained=False)
    assert (encoder.dim, encoder.size_px) == (3, 96)
    white = torch.full((1, 3, 96, 96), 255, dtype=torch.uint8)
    torch.testing.assert_close(encoder(white), torch.full((1, 3), 2.0))


def test_nothing_here_needs_torchvision():
    assert "torchvision" not in sys.modules


def test_half_way_features_are_those_that_the_whole_network_passes_on(imagenet):
    seen = []
    hook = imagenet.network._blocks[10].register_forward_hook(lambda *a: seen.append(a[2]))
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    average, bilinear = (load_encoder(f"efficientnet-lite0-mid{p}") for p in ("", "-bilinear"))
    with torch.no_grad():
        imagenet(x)
        hook.remove()
        torch.testing.assert_close(average.feature_maps(x), seen[0])
        torch.testing.assert_close(average(x), seen[0].mean((2, 3)))
        assert average.feature_maps(x).shape == (2, 112, 4, 4)
        assert bilinear(x).shape == (2, 2048)
    assert sum(p.numel() for p in average.parameters()) < 0.25 * sum(p.numel() for p in imagenet.parameters())
    with pytest.raises(ValueError, match="'average' or 'bilinear'"):
        ImageNetLite0Mid(pretrained=False, pooling="max")
