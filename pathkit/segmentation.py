"""Segmentation: networks that outline nuclei and glands, their training, and whole slides without seams.

Decisions
---------
* One network for all: a U-Net (MONAI's) whose maps are *object*, *depth* (distance to the object's edge over its greatest,
  which parts what touches, as in StarDist and HoVer-Net), *border* (the object's last pixel, as in DCAN) and one a class.
  Objects are the summits of depth less half the border.
* Normalisation is by batch in training and by constants later; brightness and strength of the stain are taken away once
  a field or slide. A pixel of a map therefore depends on its surroundings alone.
* A slide goes through the network in windows on one grid that overlap by more than the network sees; objects are parted
  in tiles that overlap by more than an object and belong to the tile that holds their summit. The objects are the same
  whatever the tiles, none twice and none lost. A wide slide is worked on in bands, one beside the other, so that memory
  does not grow with it; the few windows that two bands share go through the network twice.
* A model knows the mpp that it was trained at, and warns when it is used at another.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import segmentation
from torch import Tensor, nn
from tqdm.auto import tqdm

from pathkit.files import check_same, replacing, write_text
from pathkit.geometry import Raster
from pathkit.models import cpu_computes_bf16, keep_memory, model_digest
from pathkit.objects import climb, morphology
from pathkit.slide import Slide
from pathkit.tables import read_table, write_table
from pathkit.tissue import tissue_mask

__all__ = [
    "Found",
    "Segmenter",
    "best_scale",
    "class_map",
    "fit_segmenter",
    "load_segmenter",
    "object_maps",
    "save_segmenter",
    "segment",
    "segment_slide",
    "separated",
    "targets",
    "trusted",
]

#: Left, top, right, bottom in pixels.
Tile: TypeAlias = tuple[int, int, int, int]

#: Side of a window, and what is cut off at each of its edges: more than the network sees (a test measures it).
WINDOW_PX, MARGIN_PX = 640, 112
#: Greatest width of a band of a slide; its windows in use are held, about 0.2 GB.
BAND_PX = 16_384
#: Pixels of a slide that are counted together for its light.
LIGHT_PIXELS = 4_000_000
#: Sizes at which a picture of unknown resolution is tried.
SCALES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4)


class Segmenter(nn.Module):
    """A U-Net for objects and their classes.

    Parameters
    ----------
    classes : sequence of str
        None or more; with none the objects have no class.
    features : sequence of int
        Channels of the five stages, each at half the resolution of the one before, and of the last layer.

    Attributes
    ----------
    mpp : float or None
        Microns per pixel of the fields trained on.
    width_px : float or None
        Width of the usual object there.
    """

    def __init__(self, classes: Sequence[str] = (), *, features: Sequence[int] = (16, 16, 32, 48, 64, 16)):
        from monai.networks.nets import BasicUNet

        super().__init__()
        if len(set(classes)) != len(classes):
            raise ValueError(f"Segmenter: classes must differ, got {list(classes)}.")
        if len(features) != 6:
            raise ValueError(f"Segmenter: features of six stages, got {len(features)} ({list(features)}).")
        self.classes, self.features = tuple(classes), tuple(features)
        self.network = BasicUNet(2, 3, 3 + len(classes), features=self.features, norm="batch")
        self.mpp: float | None = None
        self.width_px: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) from `standardised`, sides multiples of 16, to (N, 3 + classes, H, W) logits."""
        return self.network(x)


def standardised(x: Tensor, light: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Mean of each channel and the overall spread taken away, so that light and strength of the stain do not matter.

    Parameters
    ----------
    x : (N, 3, H, W)
        0 to 255.
    light : (mean, spread), optional
        (1, 3, 1, 1) and (1, 1, 1, 1), of the whole slide; each field's own by default.
    """
    x = x.float()
    mean, spread = light if light is not None else _light(x)
    return (x - mean) / spread


def _light(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True).clamp_min(12.0)


def save_segmenter(model: Segmenter, path: str | os.PathLike[str]) -> Path:
    """Write weights, classes, mpp and width to one file, whole or not at all."""
    facts = {k: getattr(model, k) for k in ("classes", "features", "mpp", "width_px")}
    with replacing(Path(path)) as partial:
        torch.save({"pathkit segmenter": facts, "weights": model.state_dict()}, partial)
    return Path(path)


def load_segmenter(path: str | os.PathLike[str]) -> Segmenter:
    """Read what `save_segmenter` wrote; in evaluation mode.

    Raises
    ------
    ValueError
        If the file is absent, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such model.")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        facts = stored["pathkit segmenter"]
    except Exception as error:  # torch raises many kinds for files that are none of its own
        raise ValueError(
            f"{path.name}: not a segmenter saved by pathkit ({type(error).__name__}). Use save_segmenter."
        ) from error
    model = Segmenter(facts["classes"], features=facts["features"])
    model.load_state_dict(stored["weights"])
    model.mpp, model.width_px = facts["mpp"], facts["width_px"]
    return model.eval()


# Training --------------------------------------------------------------------------------------------------------


def targets(instances: NDArray[np.integer[Any]]) -> NDArray[np.float16]:
    """What the network is to say of one field.

    Parameters
    ----------
    instances : (H, W) int

    Returns
    -------
    (3, H, W) float16
        Object or not; distance to the object's edge over its greatest; whether the object ends at the pixel.
    """
    depth = np.zeros(instances.shape, np.float32)
    codes = np.unique(instances, return_inverse=True)[1].reshape(instances.shape)
    codes = codes if (instances == 0).any() else codes + 1
    for k, where in enumerate(ndimage.find_objects(codes), start=1):
        own = np.pad(codes[where] == k, 1)
        inside = ndimage.distance_transform_edt(own)[1:-1, 1:-1]
        depth[where] = np.maximum(depth[where], inside / inside.max())
    border = segmentation.find_boundaries(instances, mode="inner")
    return np.stack([instances > 0, depth, border]).astype(np.float16)


def class_map(
    instances: NDArray[np.integer[Any]], kinds: Mapping[int, str], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """(H, W) number of each pixel's class, 255 where there is no object.

    Raises
    ------
    ValueError
        If an object has no class, or an unknown one.
    """
    ids, codes = np.unique(instances, return_inverse=True)
    number = np.full(len(ids), 255, np.uint8)
    for place, k in enumerate(ids):
        if k == 0:
            continue
        name = kinds.get(int(k))
        if name not in classes:
            raise ValueError(
                f"class_map: object {k} has class {name!r}; the model knows {', '.join(classes)}."
            )
        number[place] = list(classes).index(str(name))
    return number[codes].reshape(instances.shape)


def fit_segmenter(
    model: Segmenter,
    images: NDArray[np.uint8],
    instances: NDArray[np.integer[Any]],
    *,
    mpp: float,
    classes: NDArray[np.uint8] | None = None,
    epochs: int = 10,
    batch_size: int = 16,
    crop_px: int = 128,
    lr: float = 4e-3,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train on fields with outlined objects.

    Parameters
    ----------
    model : Segmenter
        Trained in place; gets the mpp and the width of the objects. Seed torch before making it to repeat a run.
    images : (N, H, W, 3) uint8
    instances : (N, H, W) int
    mpp : float
        Of the fields; where they differ, what should be called usual.
    classes : (N, H, W) uint8, optional
        Of `class_map`, for a model with classes.
    epochs, batch_size, crop_px, lr
        Crops of `crop_px` (a multiple of 16) at random places, turned and mirrored, their colours varied. AdamW, one cycle.
    seed : int
        Order and augmentation.

    Returns
    -------
    DataFrame
        epoch, loss.

    Raises
    ------
    ValueError
        If shapes do not fit, no field holds an object, or a class has no example.
    """
    _check_fields(model, images, instances, classes, crop_px)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = _bf16(device)
    if device.type == "cpu":
        keep_memory()
    model.mpp, model.width_px = float(mpp), _usual_width(instances)
    wanted = torch.from_numpy(np.stack([targets(field) for field in instances]))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    kinds = None if classes is None else torch.from_numpy(classes)
    weights = None if classes is None else _class_weights(classes, len(model.classes)).to(device)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    steps = max(1, -(-len(images) // batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=epochs * steps, pct_start=0.2)
    rng, history = np.random.default_rng(seed), []
    with tqdm(total=epochs * steps, desc="training", unit="step", disable=not progress) as bar:
        for epoch in range(epochs):
            losses = []
            for rows in np.array_split(rng.permutation(len(images)), steps):
                x, y, k = _crops(pixels, wanted, kinds, rows, crop_px, rng, device)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    out = model(
                        standardised(_recoloured(x, rng)).contiguous(memory_format=torch.channels_last)
                    )
                loss = _loss(out.float(), y, k, weights)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
            history.append({"epoch": epoch, "loss": float(np.mean(losses))})
            bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")
    model.cpu().eval()
    return pd.DataFrame(history)


def _bf16(device: torch.device) -> bool:
    """Where it is faster; elsewhere it is only imitated."""
    return device.type == "cuda" or cpu_computes_bf16()


def _check_fields(
    model: Segmenter,
    images: NDArray[Any],
    instances: NDArray[Any],
    classes: NDArray[Any] | None,
    crop_px: int,
) -> None:
    if images.ndim != 4 or images.shape[:3] != instances.shape:
        raise ValueError(
            f"fit_segmenter: (N, H, W, 3) images and (N, H, W) instances, got {images.shape} and {instances.shape}."
        )
    if crop_px % 16 or crop_px > min(images.shape[1:3]):
        raise ValueError(
            f"fit_segmenter: crop_px is a multiple of 16 within the fields of {images.shape[1:3]} px, got {crop_px}."
        )
    if not instances.any():
        raise ValueError("fit_segmenter: no field holds an object: nothing to learn.")
    if (classes is None) != (not model.classes):
        raise ValueError(
            f"fit_segmenter: the model has {len(model.classes)} classes; give classes=... (of class_map) with a model that"
            " has classes, and only then."
        )
    if classes is not None:
        seen = np.bincount(classes.ravel(), minlength=256)[: len(model.classes)]
        if (seen == 0).any():
            raise ValueError(
                f"fit_segmenter: class {model.classes[int((seen == 0).argmax())]!r} has no example. Add fields that show it,"
                " or leave it out."
            )


def _class_weights(classes: NDArray[np.uint8], n: int) -> Tensor:
    """Square root of the inverse frequency, mean 1 over pixels."""
    share = np.bincount(classes.ravel(), minlength=256)[:n].astype(float)
    share /= share.sum()
    weight = share**-0.5
    return torch.tensor(weight / (weight * share).sum(), dtype=torch.float32)


def _crops(
    pixels: Tensor,
    wanted: Tensor,
    kinds: Tensor | None,
    rows: NDArray[np.intp],
    crop_px: int,
    rng: np.random.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same piece of each field of a batch, turned and mirrored alike."""
    top, left = (int(rng.integers(n - crop_px + 1)) for n in pixels.shape[2:])
    turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)

    def cut(t: Tensor) -> Tensor:
        part = t[torch.from_numpy(rows)][..., top : top + crop_px, left : left + crop_px].to(device)
        return torch.rot90(part.flip(-1) if mirrored else part, turns, (-2, -1))

    return cut(pixels).float(), cut(wanted).float(), None if kinds is None else cut(kinds).long()


def _recoloured(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each field's channels stretched a little, as light and stain of another day would."""
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(x), 3, 1, 1))).float().to(x.device)
    return 255 * (x / 255).clamp_min(1e-3) ** gain


def _loss(out: Tensor, wanted: Tensor, kinds: Tensor | None, weights: Tensor | None) -> Tensor:
    inside = torch.sigmoid(out[:, 0])
    both, total = (inside * wanted[:, 0]).sum(), inside.sum() + wanted[:, 0].sum()
    loss = (
        nn.functional.binary_cross_entropy_with_logits(out[:, 0], wanted[:, 0])
        + 1
        - (2 * both + 1) / (total + 1)
    )
    loss = loss + 4 * nn.functional.l1_loss(torch.sigmoid(out[:, 1]), wanted[:, 1])
    loss = loss + 0.5 * nn.functional.binary_cross_entropy_with_logits(out[:, 2], wanted[:, 2])
    if kinds is not None:
        loss = loss + 0.5 * nn.functional.cross_entropy(
            out[:, 3:], kinds.masked_fill(kinds == 255, -1), weights, ignore_index=-1
        )
    return loss


def _usual_width(instances: NDArray[np.integer[Any]]) -> float:
    """Width of a circle with the area of the objects that most of the stained area belongs to."""
    areas = [np.unique(field[field > 0], return_counts=True)[1] for field in instances]
    return _width(np.concatenate(areas)) or 1.0


def _width(areas: NDArray[np.integer[Any]]) -> float | None:
    areas = np.sort(areas[areas >= 12])
    if not len(areas):
        return None
    middle = areas[np.searchsorted(areas.cumsum(), areas.sum() / 2)]
    return float(2 * np.sqrt(middle / np.pi))


# Fields ----------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """Objects of a field.

    Attributes
    ----------
    labels : (H, W) int64
        1 to n.
    classes : dict
        From label to class, "object" for a model without classes.
    scores : dict
        From label to mean probability.
    """

    labels: NDArray[np.int64]
    classes: dict[int, str]
    scores: dict[int, float]


def object_maps(
    model: Segmenter, rgb: NDArray[np.uint8], *, light: tuple[Tensor, Tensor] | None = None, turns: int = 1
) -> NDArray[np.uint8]:
    """Maps of a field, (3 + classes, H, W) uint8: probabilities times 255, of object, depth, border and each class.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    light : (mean, spread), optional
        As `standardised`; the field's own by default.
    turns : int
        1, or 2 or 4: the mean over the field turned so often.
    """
    height, width = rgb.shape[:2]
    x = torch.from_numpy(np.ascontiguousarray(rgb[..., :3])).permute(2, 0, 1)[None].float()
    light = _light(x) if light is None else light
    out = np.zeros((3 + len(model.classes), height, width), np.uint8)
    core = WINDOW_PX - 2 * MARGIN_PX
    whole = max(height, width) <= WINDOW_PX
    step = max(height, width) if whole else core
    for r in range(0, height, step):
        for c in range(0, width, step):
            bottom, right = min(r + step, height), min(c + step, width)
            top, left = max(0, r - MARGIN_PX), max(0, c - MARGIN_PX)
            window = x[..., top : min(bottom + MARGIN_PX, height), left : min(right + MARGIN_PX, width)]
            maps = _window_maps(model, standardised(window, light), turns)[0]
            out[:, r:bottom, c:right] = maps[:, r - top : bottom - top, c - left : right - left]
    return out


@torch.inference_mode()
def _window_maps(model: Segmenter, x: Tensor, turns: int = 1) -> NDArray[np.uint8]:
    """(N, 3 + classes, H, W) of standardised windows of any size."""
    height, width = x.shape[2:]
    padded = nn.functional.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    device = next(model.parameters()).device
    total: Any = 0.0
    for k in range(0, 4, 4 // turns):
        turned = torch.rot90(padded, k, (2, 3)).to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=_bf16(device)):
            out = model(turned)
        out = out.float()
        parts = [torch.sigmoid(out[:, :3]), *([torch.softmax(out[:, 3:], 1)] if model.classes else [])]
        total = total + torch.rot90(torch.cat(parts, 1), -k, (2, 3))
    maps = (total / turns * 255).round().to(torch.uint8)[..., :height, :width]
    return maps.cpu().numpy()


def separated(
    maps: NDArray[np.uint8], *, width_px: float, threshold: float = 0.5, least_drop: float = 0.03
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Objects of the maps of a field.

    Parameters
    ----------
    maps : (3 or more, H, W) uint8
        Of `object_maps`.
    width_px : float
        Of the usual object: sets how far depth is smoothed, and what is too small.
    threshold : float
        Least probability of a pixel of an object.
    least_drop : float
        See `objects.climb`.

    Returns
    -------
    labels, summits
        As `objects.climb`, without objects smaller than a twelfth of the usual one.
    """
    mask = maps[0] >= round(255 * threshold)
    if not mask.any():  # most tiles of a slide
        return np.zeros(mask.shape, np.int64), np.zeros((0, 2), np.int64)
    depth = maps[1].astype(np.float32) / 255 - maps[2].astype(np.float32) / 510
    depth = ndimage.gaussian_filter(depth, width_px / 8)
    labels, summits = climb(depth, mask, reach_px=1, least_drop=least_drop)
    area = np.bincount(labels.ravel(), minlength=len(summits) + 1)[1:]
    kept = area >= np.pi * width_px**2 / 4 / 12
    new = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)])
    return new[labels], summits[kept]


def segment(
    model: Segmenter,
    rgb: NDArray[np.uint8],
    *,
    mpp: float | None,
    turns: int = 1,
    threshold: float = 0.5,
    least_drop: float = 0.03,
) -> Found:
    """Objects of a field.

    Parameters
    ----------
    model : Segmenter
        Trained.
    rgb : (H, W, 3) uint8
    mpp : float or None
        Of the field; a warning says when the model was trained at another. None where it is unknown: the field is tried
        at several sizes (`best_scale`).
    turns : int
        As `object_maps`.
    threshold, least_drop : float
        As `separated`.

    Raises
    ------
    ValueError
        If the model is untrained.
    """
    width = _trained(model)[1]
    if mpp is None:
        seen = {scale: _at_scale(model, rgb, scale, turns) for scale in SCALES}
        maps, there = best_scale(seen, width_px=width, threshold=threshold, least_drop=least_drop)
        return _found(model, maps, there, threshold, least_drop)
    _warn_of_mpp(model, mpp, "the field")
    return _found(model, object_maps(model, rgb, turns=turns), width, threshold, least_drop)


def _trained(model: Segmenter) -> tuple[float, float]:
    if model.mpp is None or model.width_px is None:
        raise ValueError("segmentation: the model is untrained. Train it with fit_segmenter, or load one.")
    return model.mpp, model.width_px


def _warn_of_mpp(model: Segmenter, mpp: float, what: str) -> None:
    assert model.mpp is not None
    if abs(np.log(mpp / model.mpp)) > np.log(1.1):
        warnings.warn(
            f"the model was trained at {model.mpp:g} µm/px, {what} has {mpp:.4g}: objects look {model.mpp / mpp:.2g} times as"
            " large as it knows. Resample, or train at this resolution.",
            stacklevel=3,
        )


def _found(
    model: Segmenter, maps: NDArray[np.uint8], width: float, threshold: float, least_drop: float
) -> Found:
    labels, summits = separated(maps, width_px=width, threshold=threshold, least_drop=least_drop)
    names, scores = _described(model.classes, maps, labels, len(summits))
    ids = range(1, len(summits) + 1)
    return Found(labels, dict(zip(ids, names, strict=True)), dict(zip(ids, scores.tolist(), strict=True)))


def _described(
    classes: Sequence[str], maps: NDArray[np.uint8], labels: NDArray[np.int64], n: int
) -> tuple[list[str], NDArray[np.float64]]:
    """Of each object the class with the greatest mean probability, and the mean probability of being an object."""
    at = labels > 0
    code = labels[at] - 1
    area = np.maximum(np.bincount(code, minlength=n), 1)
    means = [np.bincount(code, m[at], n) / area / 255 for m in maps]
    if not classes:
        return ["object"] * n, means[0]
    winner = np.argmax(np.stack(means[3:]), 0)
    return [classes[k] for k in winner], means[0]


def trusted(maps: NDArray[np.uint8], labels: NDArray[np.int64], *, width_px: float) -> float:
    """How far a network agrees with the objects that were made of its maps: at most 1, greatest at the scale that it knows.

    Parameters
    ----------
    maps : (3 or more, H, W) uint8
        Of `object_maps`.
    labels : (H, W) int64
        Of `separated`.
    width_px : float
        Of the usual object.

    Returns
    -------
    float
        1, less the mean difference between the depth that the network drew and that of each object's own shape, over all
        that is stained; less a fifth of the logarithm by which the objects' usual width is off. 0 without objects.
    """
    there = _width(np.bincount(labels.ravel())[1:])
    if there is None:
        return 0.0
    nucleus, depth, _ = targets(labels)
    stained = (nucleus > 0) | (maps[0] > 127)
    apart = np.abs(maps[1] / 255 - depth)[stained].mean()
    return float(1 - apart - 0.2 * abs(np.log(there / width_px)))


def best_scale(
    maps: Mapping[float, NDArray[np.uint8]],
    *,
    width_px: float,
    threshold: float = 0.5,
    least_drop: float = 0.03,
) -> tuple[NDArray[np.uint8], float]:
    """Which of several scales a network should have seen a field at, where nobody knows how large its objects are.

    Parameters
    ----------
    maps : mapping
        Scale (2: the network saw the field twice as large) to the maps (3 or more, H, W) that it then drew, uint8, brought to
        the field's own size.
    width_px : float
        Of the usual object that the network knows.
    threshold, least_drop : float
        As `separated`.

    Returns
    -------
    maps : (3 or more, H, W) uint8
        Of the scale whose objects are `trusted` most, blended with those of the next smaller and the next larger one, a
        quarter each: there the network sees the same objects a little differently, and errs differently.
    width_px : float
        Of the usual object at that scale.
    """
    scales = sorted(maps)
    trust = []
    for scale in scales:
        width = width_px / scale
        labels, _ = separated(maps[scale], width_px=width, threshold=threshold, least_drop=least_drop)
        trust.append(trusted(maps[scale], labels, width_px=width) if labels.any() else -np.inf)
    best = int(np.argmax(trust))
    used = [k for k in (best - 1, best, best + 1) if 0 <= k < len(scales)]
    weights = [2.0 if k == best else 1.0 for k in used]
    blend = np.average([maps[scales[k]] for k in used], axis=0, weights=weights)
    return np.rint(blend).astype(np.uint8), width_px / scales[best]


def _at_scale(model: Segmenter, rgb: NDArray[np.uint8], scale: float, turns: int) -> NDArray[np.uint8]:
    """Maps of a picture that the model saw at another size, at the picture's own."""
    import cv2

    height, width = rgb.shape[:2]
    size = max(16, round(width * scale)), max(16, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    maps = object_maps(model, np.asarray(cv2.resize(rgb, size, interpolation=how), np.uint8), turns=turns)
    return np.stack([cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in maps])


# Slides ----------------------------------------------------------------------------------------------------------


def segment_slide(
    slide: Slide,
    model: Segmenter,
    *,
    out: str | os.PathLike[str] | None = None,
    mask: Raster | None = None,
    tile_px: tuple[int, int] = (2048, 768),
    reach_um: float = 40.0,
    threshold: float = 0.5,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Objects of a whole slide.

    Parameters
    ----------
    slide : Slide
        Read at the model's mpp; a coarser slide at its own, with a warning.
    model : Segmenter
    out : path, optional
        ``.parquet`` for the table. Finished rows of tiles lie in ``<name>.parts`` until it is whole; a run that was
        stopped goes on from there.
    mask : Raster, optional
        Tissue; found when not given.
    tile_px : (width, height)
        In which objects are parted; changes memory and speed, not the objects.
    reach_um : float
        Tiles overlap by so much; at least twice the greatest object's width.
    threshold : float
        As `separated`.
    batch_size : int, optional
        Windows that go through the network together. By default 4 on a GPU and 1 on a CPU, where more of them take longer,
        each, and more memory.

    Returns
    -------
    DataFrame
        As `objects.morphology`, with score, and without label; in no particular order.

    Raises
    ------
    ValueError
        If the model is untrained, or `out` holds objects of another model or of other settings.
    """
    trained_mpp, width_px = _trained(model)
    mpp = max(trained_mpp, slide.mpp)
    _warn_of_mpp(model, mpp, f"slide {slide.name}")
    settings = {
        "model": model_digest(model), "slide": slide.name, "mpp": mpp, "tile_px": list(tile_px), "reach_um": reach_um,
        "threshold": threshold,
    }  # fmt: skip
    store = _Parts(out, settings)
    if store.finished is not None:
        return store.finished
    mask = tissue_mask(slide, mpp=max(8.0, slide.mpp)) if mask is None else mask
    size = tuple(int(np.ceil(n * slide.mpp / mpp - 1e-6)) for n in slide.dimensions)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_memory()
    model.to(device).eval()
    batch_size = batch_size or (1 if device.type == "cpu" else 4)
    strips = _Strips(slide, model, mask, mpp, (size[0], size[1]), batch_size)
    margin = int(np.ceil(reach_um / mpp))
    bands = _bands((size[0], size[1]), tile_px)
    for number, row in enumerate(tqdm(bands, desc=slide.name, unit="row", disable=not progress)):
        if store.has(number):
            continue
        strips.keep_to(row[0][0] - margin, row[-1][2] + margin)
        parts = []
        for left, top, right, bottom in row:
            around = strips.inside(left - margin, top - margin, right + margin, bottom + margin)
            tile = (left, top, right, bottom)
            parts.append(_tile_objects(model.classes, *around, tile, mpp, width_px, threshold))
        store.add(number, pd.concat(parts, ignore_index=True).assign(slide_id=slide.name))
    model.cpu()
    return store.finish()


def _bands(size: tuple[int, int], tile_px: tuple[int, int]) -> list[list[Tile]]:
    """Rows of tiles (left, top, right, bottom), from the top of a band to its foot, then those of the next band."""
    lefts = np.arange(0, size[0], tile_px[0])
    n = min(len(lefts), -(-size[0] // BAND_PX))
    return [
        [(x, y, min(x + tile_px[0], size[0]), min(y + tile_px[1], size[1])) for x in band.tolist()]
        for band in np.array_split(lefts, n)
        for y in range(0, size[1], tile_px[1])
    ]


def _tile_objects(
    classes: Sequence[str],
    maps: NDArray[np.uint8],
    rgb: NDArray[np.uint8],
    corner: tuple[int, int],
    tile: Tile,
    mpp: float,
    width_px: float,
    threshold: float,
) -> pd.DataFrame:
    """Objects whose summit lies in a tile; `corner` is the first column and row of the maps and the pixels around it."""
    left, top, right, bottom = tile
    labels, summits = separated(maps, width_px=width_px, threshold=threshold)
    row, col = summits[:, 0] + corner[1], summits[:, 1] + corner[0]
    own = (row >= top) & (row < bottom) & (col >= left) & (col < right)
    new = np.concatenate([[0], np.where(own, np.cumsum(own), 0)])
    labels, n = new[labels], int(own.sum())
    names, scores = _described(classes, maps, labels, n)
    table = morphology(
        labels,
        rgb,
        mpp=mpp,
        origin_um=(corner[0] * mpp, corner[1] * mpp),
        classes=dict(enumerate(names, start=1)),
    )
    return table.drop(columns="label").assign(score=scores)


class _Strips:
    """Maps and pixels of a band of a slide, one row of windows after another; only those in use are kept."""

    def __init__(
        self, slide: Slide, model: Segmenter, mask: Raster, mpp: float, size: tuple[int, int], batch_size: int
    ):
        self.slide, self.model, self.mask, self.mpp, self.size = slide, model, mask, mpp, size
        self.batch_size, self.core = batch_size, WINDOW_PX - 2 * MARGIN_PX
        self.light = _slide_light(slide, mask)
        self.columns = range(0)
        self.kept: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def keep_to(self, left: int, right: int) -> None:
        """The band from left to right; what is kept of another is dropped."""
        columns = range(max(0, left) // self.core, (min(right, self.size[0]) - 1) // self.core + 1)
        if columns != self.columns:
            self.columns, self.kept = columns, {}

    def inside(
        self, left: int, top: int, right: int, bottom: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[int, int]]:
        """Maps and pixels of a box within the band, and the column and row that they begin with."""
        left, top = max(0, left), max(0, top)
        right, bottom = min(self.size[0], right), min(self.size[1], bottom)
        needed = range(top // self.core, (bottom - 1) // self.core + 1)
        self.kept = {k: v for k, v in self.kept.items() if k in needed}
        for k in needed:
            if k not in self.kept:
                self.kept[k] = self._strip(k)
        x, y = self.columns[0] * self.core, needed[0] * self.core
        rows, cols = slice(top - y, bottom - y), slice(left - x, right - x)
        maps = np.concatenate([self.kept[k][0][..., cols] for k in needed], 1)[:, rows]
        return maps, np.concatenate([self.kept[k][1][:, cols] for k in needed])[rows], (left, top)

    def _strip(self, k: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        shape = self.core, len(self.columns) * self.core
        maps = np.zeros((3 + len(self.model.classes), *shape), np.uint8)
        rgb = np.full((*shape, 3), 255, np.uint8)
        todo = [c for c in self.columns if self._has_tissue(c, k)]
        inner = slice(MARGIN_PX, MARGIN_PX + self.core)
        for columns, windows in self._windows(todo, k):
            x = torch.from_numpy(windows).permute(0, 3, 1, 2)
            out = _window_maps(self.model, standardised(x, self.light))
            for c, window, m in zip(columns, windows, out, strict=True):
                left = (c - self.columns[0]) * self.core
                place = slice(left, left + self.core)
                maps[:, :, place], rgb[:, place] = m[:, inner, inner], window[inner, inner]
        return maps, rgb

    def _windows(self, columns: list[int], k: int) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        """Batches of windows; the next is read while the network works on this one."""
        batches = [columns[s : s + self.batch_size] for s in range(0, len(columns), self.batch_size)]
        with ThreadPoolExecutor(1) as reader:
            coming = [reader.submit(self._read, batch, k) for batch in batches[:1]]
            for i, batch in enumerate(batches):
                windows = coming.pop().result()
                coming += [reader.submit(self._read, b, k) for b in batches[i + 1 : i + 2]]
                yield batch, windows

    def _read(self, columns: list[int], k: int) -> NDArray[np.uint8]:
        scale = self.mpp / self.slide.mpp
        places = [((c * self.core - MARGIN_PX) * scale, (k * self.core - MARGIN_PX) * scale) for c in columns]
        size = (WINDOW_PX, WINDOW_PX)
        return np.stack([self.slide.read_region(place, size, mpp=self.mpp) for place in places])

    def _has_tissue(self, column: int, row: int) -> bool:
        """Whether the mask holds tissue in a window's core, or just outside."""
        step = self.core * self.mpp / self.mask.mpp
        x, y = (v / self.mask.mpp for v in self.mask.origin_um)
        r0, c0 = int(max(0, np.floor(row * step - y - 1))), int(max(0, np.floor(column * step - x - 1)))
        r1, c1 = (
            int(max(0, np.ceil((row + 1) * step - y + 1))),
            int(max(0, np.ceil((column + 1) * step - x + 1))),
        )
        return bool(np.asarray(self.mask.values)[r0:r1, c0:c1].any())


def _slide_light(slide: Slide, mask: Raster) -> tuple[Tensor, Tensor]:
    """Mean and spread of the tissue's pixels, of the whole slide where there is none; counted band by band."""
    mpp, (height, width) = max(4.0, slide.mpp), mask.values.shape
    rows, cols = (max(1, int(n * mask.mpp / mpp)) for n in (height, width))
    y, x = np.arange(rows) * height // rows, np.arange(cols) * width // cols
    tissue, every = (np.zeros((3, 256), np.int64) for _ in range(2))
    band = max(1, LIGHT_PIXELS // cols)
    for top in range(0, rows, band):
        place = mask.origin_um[0] / slide.mpp, (mask.origin_um[1] + top * mpp) / slide.mpp
        pixels = slide.read_region(place, (cols, min(band, rows - top)), mpp=mpp)
        inside = np.asarray(mask.values, bool)[np.ix_(y[top : top + band], x)]
        for counts, some in ((tissue, pixels[inside]), (every, pixels.reshape(-1, 3))):
            counts += np.stack([np.bincount(some[:, c], minlength=256) for c in range(3)])
    counts, level = (tissue if tissue.any() else every), np.arange(256)
    n = counts[0].sum()
    mean = counts @ level / n
    spread = np.sqrt((counts * (level - mean.mean()) ** 2).sum() / max(1, 3 * n - 1))
    return (
        torch.tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1),
        torch.tensor(spread, dtype=torch.float32).clamp_min(12.0).reshape(1, 1, 1, 1),
    )


class _Parts:
    """Where a slide's objects are kept while they grow and when they are whole."""

    def __init__(self, out: str | os.PathLike[str] | None, settings: dict[str, Any]):
        self.settings, self.tables = settings, dict[int, pd.DataFrame]()
        self.path = None if out is None else Path(out)
        self.finished: pd.DataFrame | None = None
        if self.path is None:
            return
        self.folder = self.path.with_suffix(".parts")
        if self.path.exists():
            self.finished = read_table(self.path)
            check_same("objects", self.path, self.finished.attrs, self.settings)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        note, order = self.folder / "settings.json", {**settings, "band_px": BAND_PX}
        if note.exists():
            check_same("objects", self.folder, json.loads(note.read_text(encoding="utf-8")), order)
        write_text(note, json.dumps(order))

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"

    def has(self, number: int) -> bool:
        """Whether a row of tiles is done."""
        return self.path is not None and self._part(number).exists()

    def add(self, number: int, table: pd.DataFrame) -> None:
        if self.path is None:
            self.tables[number] = table
        else:
            write_table(table, self._part(number))

    def finish(self) -> pd.DataFrame:
        parts = (
            [self.tables[k] for k in sorted(self.tables)]
            if self.path is None
            else [read_table(p) for p in sorted(self.folder.glob("*.parquet"))]
        )
        filled = [p for p in parts if len(p)] or parts[:1]
        table = pd.concat(filled, ignore_index=True)
        table.attrs = dict(self.settings)
        if self.path is not None:
            write_table(table, self.path)
            shutil.rmtree(self.folder)
        return table
