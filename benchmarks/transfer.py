"""Does what is learnt on synthetic fields hold on real tissue? A small U-Net, trained on synthetic nuclei only, is tested on
real images with outlined nuclei (`../shared/data/nuclei_instances`, Data Science Bowl 2018), beside a baseline without
learning (haematoxylin channel, Otsu's threshold, watershed). Prints object F1 at IoU 0.5 and Dice, pooled and by look.

Every other image, in the order of their names, is for development; the others are reported apart. How far the two were
kept apart is said in RESULTS.md. Nothing real is trained on."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.networks.nets import BasicUNet
from scipy import ndimage
from skimage import color, feature, filters, io, morphology, segmentation, transform
from torch import nn
from tqdm.auto import tqdm

from pathkit.models import keep_memory
from pathkit.objects import counts, instance_scores
from pathkit.segmentation import SCALES, best_scale, separated, targets
from pathkit.synthetic.crowds import crowded_fields
from pathkit.synthetic.fields import nuclei_fields

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuclei_instances"
#: Width of nuclei that the network knows best.
WIDTH_PX = 20.0
FIELD_PX, CROP_PX, BATCH = 128, 96, 12
MPP = (0.25, 0.5)


def density(images: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) from (N, 3, H, W) of 0 to 255: how much red light is taken away, which haematoxylin does and eosin hardly,
    from the ground up and in units of its spread. Light, tint, eosin and strength of the stain are thereby gone."""
    taken = -torch.log((images[:, :1] + 4) / 259)
    ground = torch.quantile(taken[..., ::3, ::3].flatten(2), 0.1, dim=2)[..., None, None]
    return (taken - ground) / taken.std((1, 2, 3), keepdim=True).clamp_min(0.08)


def build(device: str) -> nn.Module:
    """A U-Net at half the resolution, four pixels to a place: a quarter of the cost."""
    network = BasicUNet(2, 4, 12, features=(16, 24, 40, 64, 96, 16), norm="batch")
    whole = nn.Sequential(nn.PixelUnshuffle(2), network, nn.PixelShuffle(2))
    return whole.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


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
    keep_memory()
    crowds = crowded_fields(n, size_px=FIELD_PX, seed=seed)
    tissue = nuclei_fields(700, size_px=FIELD_PX, mpp=MPP, variety=1.0, seed=seed)
    truth = np.concatenate([crowds.instances, tissue.instances])
    wanted = torch.from_numpy(np.stack([targets(x) for x in tqdm(truth, desc="targets")]))
    pixels = torch.from_numpy(np.concatenate([crowds.images, tissue.images])).permute(0, 3, 1, 2)
    network = build(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.3)
    rng = np.random.default_rng(seed)
    network.train()
    for step in (bar := tqdm(range(steps), desc="training", mininterval=5)):
        x, y = crops(pixels, wanted, rng, device)
        strength = torch.from_numpy(rng.lognormal(0, 0.2, (len(x), 1, 1, 1))).to(x)
        x = (density(jittered(x, rng)) * strength).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            out = network(x)
        loss = loss_of(out.float(), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return network.eval()


def crops(
    pixels: torch.Tensor, wanted: torch.Tensor, rng: np.random.Generator, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same piece of some fields and of what is wanted of them, turned and mirrored alike."""
    rows = torch.from_numpy(rng.integers(len(pixels), size=BATCH))
    top, left = rng.integers(0, FIELD_PX - CROP_PX + 1, 2)
    turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
    cut = [
        t[rows, :, top : top + CROP_PX, left : left + CROP_PX].to(device).float() for t in (pixels, wanted)
    ]
    x, y = (torch.rot90(t.flip(3) if mirrored else t, turns, (2, 3)) for t in cut)
    return x, y


def loss_of(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    share = torch.sigmoid(out[:, 0])
    dice = 1 - (2 * (share * y[:, 0]).sum() + 1) / (share.sum() + y[:, 0].sum() + 1)
    return (
        nn.functional.binary_cross_entropy_with_logits(out[:, 0], y[:, 0])
        + dice
        + 4 * nn.functional.l1_loss(torch.sigmoid(out[:, 1]), y[:, 1])
        + 0.5 * nn.functional.binary_cross_entropy_with_logits(out[:, 2], y[:, 2])
    )


@torch.no_grad()
def outputs(network: nn.Module, image: np.ndarray, scale: float, device: str) -> np.ndarray:
    """(3, H, W) uint8, probabilities times 255 at the image's own size, from a copy `scale` times as large."""
    height, width = image.shape[:2]
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().to(device)
    size = [max(32, int(np.ceil(n * scale / 32)) * 32) for n in (height, width)]
    x = density(nn.functional.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False))
    total = torch.zeros((1, 3, *size), device=device)
    for turns in (0, 2):
        total += torch.rot90(torch.sigmoid(network(torch.rot90(x, turns, (2, 3)))), -turns, (2, 3))
    total = nn.functional.interpolate(total / 2, (height, width), mode="bilinear", align_corners=False)
    return (255 * total[0]).round().byte().cpu().numpy()


def by_network(network: nn.Module, image: np.ndarray, device: str) -> np.ndarray:
    """At the size at which the network trusts its objects most."""
    maps = {scale: outputs(network, image, scale, device) for scale in SCALES}
    best, width_px = best_scale(maps, width_px=WIDTH_PX)
    return separated(best, width_px=width_px)[0]


def by_threshold(image: np.ndarray) -> np.ndarray:
    stain = filters.gaussian(color.rgb2hed(image)[..., 0], 1)
    mask = morphology.remove_small_objects(stain > filters.threshold_otsu(stain), max_size=30)
    mask = ndimage.binary_fill_holes(mask)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.5)
    places = feature.peak_local_max(depth, min_distance=7, labels=mask.astype(int), exclude_border=False)
    markers = np.zeros(mask.shape, int)
    markers[tuple(places.T)] = np.arange(1, len(places) + 1)
    return segmentation.watershed(-depth, markers, mask=mask)


def look_of(image: np.ndarray) -> str:
    """Pink, purple or on a pale ground: by the median colour and how much of the picture is pale."""
    r, g, b = np.median(image.reshape(-1, 3), 0)
    if min(r, g, b) > 185:
        return "pale ground"
    return "purple" if b > r + 12 else "pink"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--fields", type=int, default=1400, help="crowds; besides, 700 of tissue")
    options.add_argument("--steps", type=int, default=3000)
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
            facts = counts(truth, found)
            rows.append({"method": name, "half": half, "look": look_of(image), "image": path.name, **facts})
            if asked.pictures and name == "U-Net":
                save(asked.pictures, path.stem, image, truth, found, facts)
    table = pd.DataFrame(rows)
    print(
        f"trained on {asked.fields} + 700 synthetic fields, {asked.steps} steps, {trained:.0f} s on {device}"
    )
    for what in ("half", "look"):
        print(summed(pd.concat([table.assign(**{what: "all"}), table]), what).to_string())


def summed(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Scores pooled over all objects and pixels of each method and group."""
    scores = {}
    for key, rows in table.groupby(["method", what]):
        score = instance_scores(rows)
        truth, found = rows["tp"].sum() + rows["fn"].sum(), rows["tp"].sum() + rows["fp"].sum()
        facts = {"images": len(rows), "truth": truth, "found": found}
        scores[key] = {**facts, "F1 at IoU 0.5": score["f1"], "Dice": score["dice"]}
    return pd.DataFrame(scores).T.round(3)


def save(
    folder: Path, name: str, image: np.ndarray, truth: np.ndarray, found: np.ndarray, facts: dict[str, float]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shown = segmentation.mark_boundaries(
        transform.rescale(image, 2, channel_axis=2), np.kron(truth, np.ones((2, 2), int)), (0, 1, 0)
    )
    shown = segmentation.mark_boundaries(shown, np.kron(found, np.ones((2, 2), int)), (1, 1, 0))
    f1 = instance_scores(facts)["f1"]
    io.imsave(folder / f"{f1:.2f}_{name}.png", (255 * shown).astype(np.uint8), check_contrast=False)


if __name__ == "__main__":
    main()
