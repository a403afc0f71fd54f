"""Synthetic fields beside real ones, and how they compare in numbers: makes docs/contact-sheet.jpg.

Pictures: real fields (two slides, stain references, lung patches) above synthetic ones. Distributions, each measured on both
by the same blind method: hue of the optical density, size and density of nuclei (haematoxylin, Otsu's threshold, watershed)
and the spectrum of the optical density. Sizes need microns: they are compared on the slide whose file states its resolution.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import ndimage, stats
from skimage import color, feature, filters, io, measure, morphology, segmentation

from pathkit import synthetic
from pathkit.slide import open_slide
from pathkit.tissue import tissue_mask

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
SIZE, MPP = 400, 0.5
#: Lines of the distributions.
REAL, MADE = "#d55e00", "#0072b2"


def real_slides(n: int, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Fields of SIZE px at MPP on the tissue of the two slides."""
    out: dict[str, list[np.ndarray]] = {}
    for name, file, mpp in (
        ("CMU-1, 0.5 µm/px", "CMU-1-Small-Region.svs", None),
        ("TCGA frozen, 0.5 µm/px assumed", "TCGA-CR-7395-01A-01-TS1.svs", 0.5),
    ):
        slide = open_slide(DATA / "slides" / file, mpp=mpp)
        mask = tissue_mask(slide)
        step, fields = SIZE * MPP / slide.mpp, []
        while len(fields) < n:
            x, y = (rng.uniform(0, max(1, side - step)) for side in slide.dimensions)
            at = mask.sample(np.array([[(x + step / 2) * slide.mpp, (y + step / 2) * slide.mpp]]))
            if at[0]:
                fields.append(slide.read_region((int(x), int(y)), (SIZE, SIZE), mpp=max(MPP, slide.mpp)))
        out[name] = fields
    return out


def real_pictures() -> dict[str, list[np.ndarray]]:
    """Fields whose magnification is not stated."""
    out = {}
    for path in sorted((DATA / "stain_reference").iterdir()):
        if path.suffix in {".png", ".jpg"}:
            out[path.stem.split("_")[0] + " reference"] = [io.imread(path)[:SIZE, :SIZE, :3]]
    labels = pd.read_csv(DATA / "lung_patches" / "labels.csv")
    for label, rows in labels.groupby("label"):
        out[f"LC25000 {label}"] = [
            io.imread(DATA / "lung_patches" / p)[..., :3] for p in rows["path"].iloc[::80]
        ]
    return out


def made(n: int, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Fields of SIZE px at MPP on the cells of synthetic sections, of three laboratories in turn."""
    organs = {
        "lymph node with metastasis": synthetic.lymph_node(5, "macro"),
        "colon, mucosa": synthetic.colon(3, tumour=False, size_um=(1000.0, 1200.0)),
        "colon, adenocarcinoma": synthetic.colon(4, grade=2, size_um=(1500.0, 1400.0)),
        "prostate, 3+4": synthetic.prostate_core(
            4, {"pattern 3": 0.4, "pattern 4": 0.3}, size_um=(3000.0, 800.0)
        ),
        "breast, invasive": synthetic.breast(5, grade=3, size_um=(1400.0, 1200.0)),
        "breast, frozen": synthetic.breast(6, grade=2, frozen=True, size_um=(1400.0, 1200.0)),
    }
    out = {}
    for name, architecture in organs.items():
        cells = synthetic.nuclei(architecture)[["x_um", "y_um"]].to_numpy()
        out[name] = []
        for k in range(n):
            site = synthetic.SITES[("north", "east", "south")[k % 3]].at(MPP)
            x, y = cells[rng.integers(len(cells))] / MPP - SIZE / 2
            most = np.maximum(np.array(architecture.size_um) / MPP - SIZE, 0)
            at = (int(np.clip(x, 0, most[0])), int(np.clip(y, 0, most[1])))
            out[name].append(synthetic.scan(architecture, site, at, (SIZE, SIZE)))
    return out


def density(image: np.ndarray) -> np.ndarray:
    white = np.percentile(image.reshape(-1, 3), 99, axis=0).clip(200)
    return np.log10(np.maximum(white, 1) / np.maximum(image.astype(float), 1)).clip(0)


def nuclei_of(image: np.ndarray) -> np.ndarray:
    """Areas in px of what a plain method takes for nuclei."""
    stain = filters.gaussian(color.rgb2hed(image)[..., 0], 1)
    mask = stain > filters.threshold_otsu(stain)
    mask = ndimage.binary_fill_holes(morphology.remove_small_objects(mask, max_size=30))
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.0)
    summits = feature.peak_local_max(depth, min_distance=4, labels=mask.astype(int), exclude_border=False)
    markers = np.zeros(mask.shape, int)
    markers[tuple(summits.T)] = np.arange(1, len(summits) + 1)
    return np.array([r.area for r in measure.regionprops(segmentation.watershed(-depth, markers, mask=mask))])


def hues(images: list[np.ndarray]) -> np.ndarray:
    """Share of green in the optical density of stained pixels: haematoxylin below 0.45, eosin above 0.6."""
    od = np.concatenate([density(i)[::3, ::3].reshape(-1, 3) for i in images])
    od = od[od.sum(1) > 0.3]
    return od[:, 1] / od.sum(1)


def spectrum(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Cycles a micron, and the power of the optical density in rings of equal width on a logarithmic scale."""
    rows = []
    for image in images:
        grey = density(image).sum(2)
        window = np.outer(*[np.hanning(n) for n in grey.shape])
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2 / grey.size
        f = np.hypot(*np.meshgrid(*[np.fft.fftfreq(n, MPP) for n in grey.shape], indexing="ij"))
        edges = np.geomspace(0.01, 1.0, 25)
        total, _ = np.histogram(f, edges, weights=power)
        count, _ = np.histogram(f, edges)
        rows.append(total / np.maximum(count, 1))
    return np.sqrt(edges[1:] * edges[:-1]), np.median(rows, 0)


def compared(
    axes: Any,
    slides: dict[str, list[np.ndarray]],
    others: dict[str, list[np.ndarray]],
    fake: dict[str, list[np.ndarray]],
) -> pd.DataFrame:
    groups = [("real", REAL, slides), ("synthetic", MADE, fake)]
    facts: dict[str, dict[str, np.ndarray]] = {}
    for name, colour, sets in groups:
        for k, (label, images) in enumerate(sets.items()):
            style = {
                "color": colour,
                "alpha": 0.9 if name == "real" else 0.55,
                "lw": 1.6 if name == "real" else 0.9,
            }
            areas = [nuclei_of(i) * MPP**2 for i in images]
            per_mm2 = np.array([len(a) for a in areas]) / (SIZE * MPP / 1000) ** 2
            facts[label] = {
                "hue": hues(images),
                "area": np.concatenate(areas),
                "density": per_mm2,
                "spectrum": spectrum(images)[1],
            }
            axes[0].plot(*_curve(facts[label]["hue"], (0.2, 0.8)), **style, label=name if k == 0 else None)
            axes[1].plot(*_curve(np.sqrt(4 * facts[label]["area"] / np.pi), (2, 16)), **style)
            axes[2].loglog(*spectrum(images), **style)
            axes[3].scatter(
                per_mm2,
                np.full(len(images), k + (len(fake) + 0.5 if name == "real" else 0)),
                s=9,
                color=colour,
            )
    for k, images in enumerate(others.values()):
        axes[0].plot(
            *_curve(hues(images), (0.2, 0.8)),
            color="#555555",
            lw=0.8,
            ls=":",
            label="real, mpp not stated" if k == 0 else None,
        )
    axes[0].set(xlabel="green share of the optical density", yticks=[], title="Colour")
    axes[0].legend(fontsize=7, frameon=False)
    axes[1].set(xlabel="diameter found, µm", yticks=[], title="Nuclei: size")
    axes[2].set(xlabel="cycles a µm", title="Spectrum of the optical density")
    axes[3].set(xlabel="nuclei found a mm²", title="Nuclei: density", xlim=(0, None))
    axes[3].set_yticks(
        [*range(len(fake)), *(len(fake) + 0.5 + k for k in range(len(slides)))],
        [
            *(x.split(",")[0] + "," + x.split(",")[1][:9] if "," in x else x.split(" with")[0] for x in fake),
            *(x.split(",")[0].split(" ")[0] for x in slides),
        ],
        fontsize=6,
    )
    rows = []
    for label in fake:
        row: dict[str, Any] = {"synthetic": label}
        for slide in slides:
            a, b = facts[label], facts[slide]
            short = slide.split(",")[0].split(" ")[0]
            row[f"colour, {short}"] = stats.wasserstein_distance(a["hue"][::7], b["hue"][::7])
            row[f"log10 spectrum, {short}"] = float(np.abs(np.log10(a["spectrum"] / b["spectrum"])).mean())
        row["diameter µm, median"] = float(np.median(np.sqrt(4 * facts[label]["area"] / np.pi)))
        rows.append(row)
    for slide in slides:
        rows.append(
            {
                "synthetic": f"(real) {slide}",
                "diameter µm, median": float(np.median(np.sqrt(4 * facts[slide]["area"] / np.pi))),
            }
        )
    return pd.DataFrame(rows)


def _curve(values: np.ndarray, limits: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    counts, edges = np.histogram(values, np.linspace(*limits, 50), density=True)
    return (edges[1:] + edges[:-1]) / 2, ndimage.gaussian_filter1d(counts, 1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "contact-sheet.jpg")
    options.add_argument("--fields", type=int, default=9)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    if not DATA.is_dir():
        raise SystemExit("The real images are absent (../shared/data); the contact sheet cannot be made.")
    rng = np.random.default_rng(asked.seed)
    slides, others, fake = real_slides(asked.fields, rng), real_pictures(), made(asked.fields, rng)
    figure = plt.figure(figsize=(15, 11.6), dpi=100, layout="constrained")
    grid = figure.add_gridspec(4, 1, height_ratios=(1, 1, 1, 1.05))
    shown = [(f"real: {n}", v[0]) for n, v in (slides | others).items()][:7]
    first, second = list(fake.items()), list(fake.items())
    for row, panels in enumerate(
        (shown, [(f"synthetic: {n}", v[0]) for n, v in first], [(f"synthetic: {n}", v[1]) for n, v in second])
    ):
        axes = grid[row].subgridspec(1, len(panels)).subplots()
        for axis, (title, image) in zip(axes, panels, strict=True):
            axis.imshow(image)
            axis.set_title(title, fontsize=8)
            axis.set(xticks=[], yticks=[])
    table = compared(grid[3].subgridspec(1, 4).subplots(), slides, others, fake)
    figure.savefig(asked.out, pil_kwargs={"quality": 88})
    print(f"{asked.out.name}: {asked.out.stat().st_size / 1e6:.2f} MB")
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
