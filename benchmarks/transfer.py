"""Does what is learnt on synthetic fields hold on real tissue? A small U-Net, trained on synthetic nuclei only, is tested on
real images with outlined nuclei (`../shared/data/nuclei_instances`, Data Science Bowl 2018), beside a baseline without
learning (haematoxylin channel, Otsu's threshold, watershed). Prints object F1 at IoU 0.5 and Dice, pooled and by look.

Every other image, in the order of their names, is for development: simulator and recipe were chosen on those alone. The
others are reported apart. Nothing real is trained on."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.networks.nets import BasicUNet
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage import color, feature, filters, io, morphology, segmentation, transform
from torch import nn
from tqdm.auto import tqdm

from pathkit.synthetic.fields import nuclei_fields

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuclei_instances"
#: Width of nuclei that the network knows best, and the sizes at which a picture of unknown magnification is tried.
WIDTH_PX = 20.0
SCALES = (0.3, 0.42, 0.6, 0.85, 1.2)
FIELD_PX, CROP_PX = 128, 96
MPP = (0.22, 0.55)


def targets(instances: np.ndarray) -> np.ndarray:
    """(3, H, W): nucleus, distance to its edge over its greatest, and where it borders another or the ground."""
    depth = np.zeros(instances.shape, np.float32)
    for k, where in enumerate(ndimage.find_objects(instances), start=1):
        if where is None:
            continue
        own = np.pad(instances[where] == k, 1)
        inside = ndimage.distance_transform_edt(own)[1:-1, 1:-1]
        depth[where] = np.maximum(depth[where], inside / max(inside.max(), 1))
    border = segmentation.find_boundaries(instances, mode="inner")
    return np.stack([(instances > 0).astype(np.float32), depth, border.astype(np.float32)])


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Each image from its own lightest tone, in units of its spread: light and strength of the stain do not matter."""
    some = images[..., ::3, ::3].flatten(2)
    light = torch.quantile(some, 0.9, dim=2)[..., None, None]
    spread = images.std((1, 2, 3), keepdim=True).clamp_min(18.0)
    return (images - light) / spread


def build(device: str) -> nn.Module:
    """A U-Net at half the resolution, four pixels to a place: a quarter of the cost."""
    network = BasicUNet(2, 12, 12, features=(16, 24, 40, 64, 96, 16))
    return nn.Sequential(nn.PixelUnshuffle(2), network, nn.PixelShuffle(2)).to(device)


def jittered(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Other cameras: each channel its own gain, and now and then a blur or noise."""
    gain = torch.from_numpy(rng.normal(1, 0.12, (len(x), 3, 1, 1))).to(x)
    x = 255 - (255 - x) * gain
    if rng.random() < 0.3:
        x = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
    if rng.random() < 0.3:
        x = x + float(rng.uniform(1, 8)) * torch.randn_like(x)
    return x.clamp(0, 255)


def train(n: int, steps: int, seed: int, device: str) -> nn.Module:
    torch.manual_seed(seed)
    fields = nuclei_fields(n, size_px=FIELD_PX, mpp=MPP, variety=1.0, seed=seed)
    wanted = torch.from_numpy(np.stack([targets(x) for x in tqdm(fields.instances, desc="targets")])).half()
    pixels = torch.from_numpy(fields.images).permute(0, 3, 1, 2)
    network = build(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    batch = 8
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    bar = tqdm(range(steps), desc="training")
    network.train()
    for _ in bar:
        rows = rng.integers(n, size=batch)
        top, left = rng.integers(0, FIELD_PX - CROP_PX + 1, 2)
        part = (rows, slice(None), slice(top, top + CROP_PX), slice(left, left + CROP_PX))
        x, y = pixels[part].to(device).float(), wanted[part].to(device).float()
        if rng.random() < 0.5:
            x, y = x.flip(3), y.flip(3)
        turns = int(rng.integers(4))
        x, y = torch.rot90(x, turns, (2, 3)), torch.rot90(y, turns, (2, 3))
        out = network(scaled(jittered(x, rng)))
        share = torch.sigmoid(out[:, 0])
        dice = 1 - (2 * (share * y[:, 0]).sum() + 1) / (share.sum() + y[:, 0].sum() + 1)
        loss = (
            nn.functional.binary_cross_entropy_with_logits(out[:, 0], y[:, 0])
            + dice
            + 2 * nn.functional.smooth_l1_loss(torch.sigmoid(out[:, 1]), y[:, 1])
            + 0.5 * nn.functional.binary_cross_entropy_with_logits(out[:, 2], y[:, 2])
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return network.eval()


@torch.no_grad()
def outputs(network: nn.Module, image: np.ndarray, scale: float, device: str) -> np.ndarray:
    """(3, H, W) probabilities at the image's own size, from a copy `scale` times as large."""
    height, width = image.shape[:2]
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().to(device)
    size = [max(32, int(np.ceil(n * scale / 32)) * 32) for n in (height, width)]
    x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    total = torch.zeros((1, 3, *size), device=device)
    for turns in (0, 2):
        total += torch.rot90(torch.sigmoid(network(scaled(torch.rot90(x, turns, (2, 3))))), -turns, (2, 3))
    total = nn.functional.interpolate(total / 2, (height, width), mode="bilinear", align_corners=False)
    return total[0].cpu().numpy()


def separated(maps: np.ndarray, width_px: float) -> np.ndarray:
    """Instances: a watershed from the summits of the distance map, within the nuclei."""
    nucleus, depth = maps[0], ndimage.gaussian_filter(maps[1] - 0.5 * maps[2], width_px / 10)
    mask = morphology.remove_small_objects(nucleus > 0.5, max_size=int(0.08 * width_px**2))
    mask = ndimage.binary_fill_holes(mask)
    summits = morphology.h_maxima(np.where(mask, np.maximum(depth + 0.5, 0), 0), 0.08)
    markers, _ = ndimage.label(summits, np.ones((3, 3)))
    return segmentation.watershed(-depth, markers, mask=mask)


def trusted(maps: np.ndarray, found: np.ndarray) -> float:
    """How far the network agrees with the objects that were made of its answer, 0 to 1: the distance map that it drew
    against that of each object's own shape, over all stained area."""
    if not found.any():
        return 0.0
    nucleus, depth, _ = targets(found)
    stained = (nucleus > 0) | (maps[0] > 0.5)
    return float(1 - np.abs(maps[1] - depth)[stained].mean())


def by_network(network: nn.Module, image: np.ndarray, device: str) -> np.ndarray:
    """The picture at several sizes; kept is the one at which the network agrees best with its own objects."""
    best, most = np.zeros(image.shape[:2], int), 0.0
    for scale in SCALES:
        maps = outputs(network, image, scale, device)
        found = separated(maps, WIDTH_PX / scale)
        trust = trusted(maps, found)
        if trust > most:
            best, most = found, trust
    return best


def by_threshold(image: np.ndarray) -> np.ndarray:
    stain = filters.gaussian(color.rgb2hed(image)[..., 0], 1)
    mask = morphology.remove_small_objects(stain > filters.threshold_otsu(stain), max_size=30)
    mask = ndimage.binary_fill_holes(mask)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.5)
    places = feature.peak_local_max(depth, min_distance=7, labels=mask.astype(int), exclude_border=False)
    markers = np.zeros(mask.shape, int)
    markers[tuple(places.T)] = np.arange(1, len(places) + 1)
    return segmentation.watershed(-depth, markers, mask=mask)


def counted(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """True positives at IoU 0.5 (matched one to one), how many there are of each, and the pixels for Dice."""
    n, m = int(truth.max()), int(found.max())
    table = np.zeros((n + 1, m + 1), np.int64)
    np.add.at(table, (truth.ravel(), found.ravel()), 1)
    both = table[1:, 1:]
    union = table[1:].sum(1)[:, None] + table[:, 1:].sum(0)[None] - both
    iou = both / np.maximum(union, 1)
    rows, cols = linear_sum_assignment(-iou)
    hits = int((iou[rows, cols] > 0.5).sum())
    return {
        "hits": hits,
        "truth": int((table[1:].sum(1) > 0).sum()),
        "found": int((table[:, 1:].sum(0) > 0).sum()),
        "both": float(both.sum()),
        "pixels": float((truth > 0).sum() + (found > 0).sum()),
    }


def look_of(image: np.ndarray) -> str:
    """Pink, purple or on a pale ground: by the median colour and how much of the picture is pale."""
    r, g, b = np.median(image.reshape(-1, 3), 0)
    if min(r, g, b) > 185:
        return "pale ground"
    return "purple" if b > r + 12 else "pink"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--fields", type=int, default=400)
    options.add_argument("--steps", type=int, default=800)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--development", action="store_true", help="test on the development half alone")
    options.add_argument("--pictures", type=Path, help="folder for pictures of the worst images")
    options.add_argument("--weights", type=Path, help="file to keep the network in, or to take it from")
    asked = options.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA.name}: the real images are absent; this benchmark cannot run.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    if asked.weights and asked.weights.exists():
        network = build(device).eval()
        network.load_state_dict(torch.load(asked.weights, map_location=device))
    else:
        network = train(asked.fields, asked.steps, asked.seed, device)
        if asked.weights:
            torch.save(network.state_dict(), asked.weights)
    trained = time.perf_counter() - start
    rows = []
    for k, path in enumerate(tqdm(sorted((DATA / "images").glob("*.png")), desc="testing")):
        image, truth = io.imread(path)[..., :3], io.imread(DATA / "labels" / path.name).astype(int)
        truth = segmentation.relabel_sequential(truth)[0]
        half = "development" if k % 2 == 0 else "held out"
        if asked.development and half != "development":
            continue
        for name, found in (("U-Net", by_network(network, image, device)), ("baseline", by_threshold(image))):
            facts = counted(truth, segmentation.relabel_sequential(found)[0])
            rows.append({"method": name, "half": half, "look": look_of(image), "image": path.name, **facts})
            if asked.pictures and name == "U-Net":
                save(asked.pictures, path.stem, image, truth, found, facts)
    table = pd.DataFrame(rows)
    print(f"trained on {asked.fields} synthetic fields, {asked.steps} steps, {trained:.0f} s on {device}")
    for what in ("half", "look"):
        print(summed(pd.concat([table.assign(**{what: "all"}), table]), what).to_string())


def summed(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Scores pooled over all objects and pixels of each method and group."""
    sums = table.groupby(["method", what])[["hits", "truth", "found", "both", "pixels"]].sum()
    sums["images"] = table.groupby(["method", what]).size()
    sums["F1 at IoU 0.5"] = 2 * sums["hits"] / (sums["truth"] + sums["found"])
    sums["Dice"] = 2 * sums["both"] / sums["pixels"]
    return sums[["images", "truth", "found", "F1 at IoU 0.5", "Dice"]].round(3)


def save(
    folder: Path, name: str, image: np.ndarray, truth: np.ndarray, found: np.ndarray, facts: dict[str, float]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shown = segmentation.mark_boundaries(
        transform.rescale(image, 2, channel_axis=2), np.kron(truth, np.ones((2, 2), int)), (0, 1, 0)
    )
    shown = segmentation.mark_boundaries(shown, np.kron(found, np.ones((2, 2), int)), (1, 1, 0))
    f1 = 2 * facts["hits"] / max(1, facts["truth"] + facts["found"])
    io.imsave(folder / f"{f1:.2f}_{name}.png", (255 * shown).astype(np.uint8), check_contrast=False)


if __name__ == "__main__":
    main()
