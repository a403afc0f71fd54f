"""Does what is learnt on synthetic fields hold on real tissue? A small U-Net, trained on synthetic nuclei only, is tested on
real images with outlined nuclei (`../shared/data/nuclei_instances`, Data Science Bowl 2018), beside a baseline without
learning (haematoxylin channel, Otsu's threshold, watershed). Prints object F1 at IoU 0.5 and Dice, pooled and by look.

The synthetic fields are stretched, bent and enlarged, their nuclei made paler, their pictures blurred, as no painter would;
of the weights an average over the last steps is kept. Of an image's maps, parts that together are convex are one nucleus, and
its outline is drawn where the stain is half as strong as inside.

Every other image, in the order of their names, is for development; the others are reported apart. How far the two were
kept apart is said in RESULTS.md. Nothing real is trained on."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from monai.networks.nets import BasicUNet
from scipy import ndimage
from skimage import color, feature, filters, io, measure, morphology, segmentation, transform
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from pathkit.models import keep_memory
from pathkit.objects import counts, instance_scores
from pathkit.segmentation import SCALES, separated, targets, trusted
from pathkit.synthetic.crowds import crowded_fields
from pathkit.synthetic.fields import Fields, nuclei_fields

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuclei_instances"
#: Width of nuclei that the network knows best.
WIDTH_PX = 20.0
FIELD_PX, CROP_PX, BATCH = 128, 96, 12
#: Crowds are painted larger than they are used, so that a warped one need not be mirrored at its edges.
CROWD_PX = 176
#: Of each field, how often it is used: once as painted, else warped.
COPIES = 3
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


def warped(
    image: np.ndarray, instances: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A field turned, enlarged or made smaller, often stretched along some direction, often bent."""
    larger = np.exp(rng.uniform(np.log(0.75), np.log(1.4)))
    stretch = min(np.exp(abs(rng.normal(0, 0.25))), 1.8) if rng.random() < 0.6 else 1.0
    along, turn = turned(rng.uniform(0, np.pi)), turned(rng.uniform(0, 2 * np.pi))
    back = along @ np.diag([stretch**-0.5, stretch**0.5]) @ along.T @ turn / larger
    places = np.indices((FIELD_PX, FIELD_PX))[::-1] - (FIELD_PX - 1) / 2
    source = np.tensordot(back, places, 1)
    if rng.random() < 0.5:
        wide = rng.uniform(8, 20)
        far = rng.uniform(0.5, 0.12 * wide + 1)
        bent = [cv2.GaussianBlur(rng.standard_normal(places.shape[1:]), (0, 0), wide) for _ in range(2)]
        source += [far * b / b.std() for b in bent]
    middle = (len(image) - 1) / 2
    free = max(0.0, middle - np.abs(source).max())
    x, y = (source + middle + rng.uniform(-free, free, (2, 1, 1))).astype(np.float32)
    if larger < 0.9:
        image = cv2.GaussianBlur(image, (0, 0), 0.5 / larger - 0.4)
    edge = cv2.BORDER_REFLECT_101
    return (
        cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=edge),
        cv2.remap(instances.astype(np.uint16), x, y, cv2.INTER_NEAREST, borderMode=edge),
    )


def turned(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def paler(image: np.ndarray, instances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some nuclei with less stain than they had."""
    n = int(instances.max()) + 1
    kept = np.where(rng.random(n) < rng.uniform(0.1, 0.6), rng.uniform(0.25, 0.9, n), 1).astype(np.float32)
    kept[0] = 1
    share = cv2.GaussianBlur(kept[instances], (0, 0), rng.uniform(0.7, 1.5))[..., None]
    taken = -np.log((image.astype(np.float32) + 2) / 258)
    ground = np.quantile(taken[::3, ::3].reshape(-1, 3), 0.1, axis=0)
    return np.clip(258 * np.exp(-ground - (taken - ground) * share) - 2, 0, 255).astype(np.uint8)


def multiplied(fields: Fields, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures and targets of each field and its warped copies."""
    images, wanted = [], []
    for whole, instances in zip(tqdm(fields.images, desc="warping"), fields.instances, strict=True):
        for copy in range(COPIES):
            if copy:
                image, ids = warped(whole, instances, rng)
                image = paler(image, ids, rng) if rng.random() < 0.5 else image
            else:
                top, left = rng.integers(0, len(whole) - FIELD_PX + 1, 2)
                cut = slice(top, top + FIELD_PX), slice(left, left + FIELD_PX)
                image, ids = whole[cut], instances[cut]
            ids = np.where(np.bincount(ids.ravel())[ids] < 12, 0, ids)
            images.append(image)
            wanted.append(targets(ids))
    return images, wanted


def photographed(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Other cameras: each channel its own gain, and now and then out of focus, enlarged from fewer pixels, or with noise."""
    gain = torch.from_numpy(rng.normal(1, 0.12, (len(x), 3, 1, 1))).to(x)
    x, chance = 255 - (255 - x) * gain, rng.random()
    if chance < 0.4:
        x = blurred(x, float(rng.uniform(0.4, 1.6)))
    elif chance < 0.55:
        fewer = functional.interpolate(
            x, size=int(CROP_PX * rng.uniform(0.45, 0.8)), mode="bilinear", antialias=True
        )
        x = functional.interpolate(fewer, size=CROP_PX, mode=str(rng.choice(["bilinear", "bicubic"])))
    if rng.random() < 0.35:
        noise = torch.randn_like(x)
        noise = 2.5 * blurred(noise, 0.8) if rng.random() < 0.5 else noise
        x = x + float(rng.uniform(1, 9)) * noise
    return x.clamp(0, 255)


def blurred(x: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = int(np.ceil(2.5 * sigma))
    bell = torch.exp(-(torch.arange(-reach, reach + 1).to(x) ** 2) / (2 * sigma**2))
    bell = (bell / bell.sum()).expand(x.shape[1], 1, 1, -1)
    x = functional.pad(x, (reach,) * 4, mode="reflect")
    return functional.conv2d(
        functional.conv2d(x, bell, groups=x.shape[1]), bell.transpose(2, 3), groups=x.shape[1]
    )


def contrasted(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Strength of the stain, and how much weaker than dark nuclei pale ones are."""
    strength = torch.from_numpy(rng.lognormal(0, 0.2, (len(x), 1, 1, 1))).to(x)
    if rng.random() < 0.7:
        power = torch.from_numpy(rng.lognormal(0, 0.25, (len(x), 1, 1, 1))).to(x)
        x = torch.where(x > 0, x.clamp_min(1e-4) ** power, x)
    return x * strength


def train(n: int, steps: int, seeds: list[int], device: str) -> list[nn.Module]:
    """Networks that differ in their first weights and in the order of the fields."""
    keep_memory()
    crowds = crowded_fields(n, size_px=CROWD_PX, seed=seeds[0])
    tissue = nuclei_fields(700, size_px=FIELD_PX, mpp=MPP, variety=1.0, seed=seeds[0])
    parts = [multiplied(f, np.random.default_rng([seeds[0], 7, k])) for k, f in enumerate((crowds, tissue))]
    images, truth = ([field for part in parts for field in part[k]] for k in (0, 1))
    pixels, wanted = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(truth))
    return [fitted(pixels, wanted, steps, seed, device) for seed in seeds]


def fitted(pixels: torch.Tensor, wanted: torch.Tensor, steps: int, seed: int, device: str) -> nn.Module:
    torch.manual_seed(seed)
    network = build(device)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.3)
    rng = np.random.default_rng(seed)
    network.train()
    for step in (bar := tqdm(range(steps), desc="training", mininterval=5)):
        x, y = crops(pixels, wanted, rng, device)
        x = contrasted(density(photographed(x, rng)), rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            out = network(x)
        loss = loss_of(out.float(), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return average.module.eval()


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
        functional.binary_cross_entropy_with_logits(out[:, 0], y[:, 0])
        + dice
        + 4 * functional.l1_loss(torch.sigmoid(out[:, 1]), y[:, 1])
        + 0.5 * functional.binary_cross_entropy_with_logits(out[:, 2], y[:, 2])
    )


@torch.no_grad()
def outputs(network: nn.Module, image: np.ndarray, scale: float, device: str) -> np.ndarray:
    """(3, H, W) uint8, probabilities times 255 at the image's own size, from a copy `scale` times as large."""
    height, width = image.shape[:2]
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().to(device)
    size = [max(32, int(np.ceil(n * scale / 32)) * 32) for n in (height, width)]
    x = density(functional.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False))
    total = torch.zeros((1, 3, *size), device=device)
    for turns in (0, 2):
        total += torch.rot90(torch.sigmoid(network(torch.rot90(x, turns, (2, 3)))), -turns, (2, 3))
    total = functional.interpolate(total / 2, (height, width), mode="bilinear", align_corners=False)
    return (255 * total[0]).round().byte().cpu().numpy()


def by_networks(maps: dict[float, np.ndarray], image: np.ndarray) -> np.ndarray:
    """Objects at the size at which the network agrees most with its own objects, these are convex, and much the same at the
    next smaller and the next larger size."""
    scales, found, trust = sorted(maps), [], []
    for k, scale in enumerate(scales):
        used = scales[max(0, k - 1) : k + 2]
        blend = np.average(
            [maps[s] for s in used], axis=0, weights=[2.0 if s == scale else 1.0 for s in used]
        )
        found.append(objects_of(np.rint(blend).astype(np.uint8), image, WIDTH_PX / scale))
        trust.append(trust_in(maps[scale], WIDTH_PX / scale))
    for k in range(len(scales)):
        beside = [j for j in (k - 1, k + 1) if 0 <= j < len(scales)]
        trust[k] += 0.4 * np.mean([agreement(found[k], found[j]) for j in beside])
    return found[int(np.argmax(trust))]


def trust_in(maps: np.ndarray, width_px: float) -> float:
    labels = separated(maps, width_px=width_px)[0]
    objects = measure.regionprops(labels)
    if not objects:
        return -np.inf
    convex = np.average([o.solidity for o in objects], weights=[o.area for o in objects])
    return trusted(maps, labels, width_px=width_px) + 0.5 * float(convex)


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """F1 of the objects of one as if the other were the truth."""
    return instance_scores(counts(other, one))["f1"] if one.any() and other.any() else 0.0


def objects_of(maps: np.ndarray, image: np.ndarray, width_px: float) -> np.ndarray:
    labels = separated(maps, width_px=width_px)[0]
    return outlined(image, joined(labels, maps, width_px), width_px) if labels.any() else labels


def joined(labels: np.ndarray, maps: np.ndarray, width_px: float) -> np.ndarray:
    """Parts of a nucleus that was cut across put together, the most convex first: together they fill 0.9 of their convex
    hull, have no more than four times the usual area, and the way from one to the other descends by less than 0.15."""
    depth = maps[1].astype(np.float32) / 255 - maps[2].astype(np.float32) / 510
    depth = ndimage.gaussian_filter(depth, width_px / 8)
    labels = labels.copy()
    while True:
        where, best = ndimage.find_objects(labels), (0.9, 0, 0)
        tops = np.concatenate([[0], ndimage.maximum(depth, labels, np.arange(1, len(where) + 1))])
        for (one, two), saddle in saddles(labels, depth).items():
            if min(tops[one], tops[two]) - saddle > 0.15:
                continue
            box = tuple(
                slice(min(a.start, b.start), max(a.stop, b.stop))
                for a, b in zip(where[one - 1], where[two - 1], strict=True)
            )
            both = np.isin(labels[box], (one, two))
            if both.sum() <= 4 * np.pi * width_px**2 / 4:
                filled = both.sum() / morphology.convex_hull_image(both).sum()
                best = max(best, (filled, one, two))
        if not best[1]:
            return labels
        labels[labels == best[2]] = best[1]
        labels = segmentation.relabel_sequential(labels)[0]


def saddles(labels: np.ndarray, depth: np.ndarray) -> dict[tuple[int, int], float]:
    """The highest passage between each two objects that touch."""
    highest: dict[tuple[int, int], float] = {}
    for k in (0, 1):
        (a, b), (u, v) = ((np.delete(x, -1, k), np.delete(x, 0, k)) for x in (labels, depth))
        touch = (a != b) & (a > 0) & (b > 0)
        for one, two, level in zip(a[touch], b[touch], np.minimum(u, v)[touch], strict=True):
            pair = (int(min(one, two)), int(max(one, two)))
            highest[pair] = max(highest.get(pair, -np.inf), float(level))
    return highest


def outlined(image: np.ndarray, labels: np.ndarray, width_px: float) -> np.ndarray:
    """Each nucleus out to where red light is taken away half as much as inside, seen from what surrounds it, at most a
    quarter of the usual width further than the network drew it; a twentieth of that width further in it is kept as it is."""
    taken = ndimage.gaussian_filter(-np.log((image[..., 0] + 4.0) / 259), width_px / WIDTH_PX)
    reached, drawn = segmentation.expand_labels(labels, 0.25 * width_px), np.zeros_like(labels)
    around = int(0.3 * width_px)
    for k, box in enumerate(ndimage.find_objects(reached), start=1):
        own = labels[box] == k
        wide = tuple(slice(max(0, s.start - around), s.stop + around) for s in box)
        outside = taken[wide][labels[wide] == 0]
        drawn[box][half_as_strong(taken[box], own, reached[box] == k, outside, width_px)] = k
    return drawn


def half_as_strong(
    taken: np.ndarray, own: np.ndarray, reached: np.ndarray, outside: np.ndarray, width_px: float
) -> np.ndarray:
    if len(outside) < 10:
        return own
    half = (np.median(outside) + np.median(taken[own])) / 2
    core = ndimage.binary_erosion(own, iterations=max(1, int(0.05 * width_px)))
    whole = ndimage.binary_opening(np.pad((reached & (taken > half)) | core, 2))[2:-2, 2:-2]
    parts, n = ndimage.label(whole)
    if n > 1:
        whole = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    whole = ndimage.binary_fill_holes(whole)
    return whole if whole.sum() >= 0.3 * own.sum() else own


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
    options.add_argument(
        "--networks", type=int, default=2, help="whose maps are averaged; the first is also tested alone"
    )
    options.add_argument("--development", action="store_true", help="test on the development half alone")
    options.add_argument("--pictures", type=Path, help="folder for pictures of the worst images")
    options.add_argument("--weights", type=Path, help="file to keep the network in, or to take it from")
    asked = options.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA.name}: the real images are absent; this benchmark cannot run.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    if asked.weights and asked.weights.exists():
        weights = torch.load(asked.weights, map_location=device)
        networks = [build(device).eval() for _ in weights]
        for network, state in zip(networks, weights, strict=True):
            network.load_state_dict(state)
    else:
        seeds = list(range(asked.seed, asked.seed + asked.networks))
        networks = train(asked.fields, asked.steps, seeds, device)
        if asked.weights:
            torch.save([network.state_dict() for network in networks], asked.weights)
    trained = time.perf_counter() - start
    rows = []
    for k, path in enumerate(tqdm(sorted((DATA / "images").glob("*.png")), desc="testing")):
        image, truth = io.imread(path)[..., :3], io.imread(DATA / "labels" / path.name).astype(int)
        truth = segmentation.relabel_sequential(truth)[0]
        half = "development" if k % 2 == 0 else "held out"
        if asked.development and half != "development":
            continue
        for name, found in methods(networks, image, device).items():
            facts = counts(truth, found)
            rows.append({"method": name, "half": half, "look": look_of(image), "image": path.name, **facts})
            if asked.pictures and name == "U-Net":
                save(asked.pictures, path.stem, image, truth, found, facts)
    table = pd.DataFrame(rows)
    print(
        f"trained on {asked.fields} + 700 synthetic fields, {asked.steps} steps each, {trained:.0f} s on {device}"
    )
    for what in ("half", "look"):
        print(summed(pd.concat([table.assign(**{what: "all"}), table]), what).to_string())


def methods(networks: list[nn.Module], image: np.ndarray, device: str) -> dict[str, np.ndarray]:
    """Objects of the baseline, of the first network, and of all networks together."""
    drawn = {scale: [outputs(n, image, scale, device) for n in networks] for scale in SCALES}
    found = {"baseline": by_threshold(image)}
    found["U-Net"] = by_networks({scale: maps[0] for scale, maps in drawn.items()}, image)
    if len(networks) > 1:
        both = {scale: np.rint(np.mean(maps, 0)).astype(np.uint8) for scale, maps in drawn.items()}
        found[f"{len(networks)} U-Nets"] = by_networks(both, image)
    return found


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
