"""Nuclei of a whole slide (objects a second, peak memory, seams), and nuclei of real images before and after fine-tuning.

    python benchmarks/nuclei.py slide --side 20000     # a synthetic slide, a part of it in three tilings
    python benchmarks/nuclei.py real                   # ../shared/data/nuclei_instances, half of it for fine-tuning

The network is trained on synthetic fields first; ``--weights`` keeps it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from skimage import io
from skimage.transform import resize

from pathkit.metrics import bootstrap
from pathkit.objects import counts, instance_scores, otsu_nuclei
from pathkit.segmentation import (
    Segmenter,
    fit_segmenter,
    load_segmenter,
    save_segmenter,
    segment,
    segment_slide,
)
from pathkit.slide import Slide, open_slide
from pathkit.synthetic import Mosaic, crowded_fields, nuclei_fields, write_big_slide
from pathkit.tissue import tissue_mask

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuclei_instances"
TRAINED_MPP = 0.5


def trained(fields: int, epochs: int, weights: Path | None, *, of_slides: bool) -> Segmenter:
    """A segmenter of nuclei that saw synthetic fields only: as on the slides, or of every kind."""
    if weights and weights.exists():
        return load_segmenter(weights)
    if of_slides:
        kinds = [nuclei_fields(fields, size_px=192, mpp=(TRAINED_MPP, TRAINED_MPP))]
    else:
        kinds = [
            crowded_fields(2 * fields, size_px=192),
            nuclei_fields(fields, size_px=192, mpp=(0.2, 0.5), variety=1.0),
        ]
    images, instances = (
        np.concatenate([getattr(k, name) for k in kinds]) for name in ("images", "instances")
    )
    torch.manual_seed(0)
    model = Segmenter()
    start = time.process_time()
    fit_segmenter(model, images, instances, mpp=TRAINED_MPP, epochs=epochs, batch_size=16)
    print(f"{len(images)} synthetic fields, {epochs} epochs, {time.process_time() - start:.0f} s CPU")
    if weights:
        save_segmenter(model, weights)
    return model


def whole_slide(model: Segmenter, side: int, path: Path | None, out: Path | None, seam_px: int) -> None:
    """Segments a slide; then a part of it in two more tilings, whose tables must be the same."""
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            mosaic = Mosaic((side, side), mpp=TRAINED_MPP, seed=1)
            path = write_big_slide(Path(folder) / "big.tif", mosaic, objects=False)
        with open_slide(path) as slide:
            width, height = slide.dimensions
            print(f"{width} x {height} px at {slide.mpp:g} µm/px", flush=True)
            if side:
                measured(slide, model, out=out)
            mask = tissue_mask(slide, mpp=8.0)
            part = np.zeros_like(mask.values)
            first, last = (round(v * slide.mpp / mask.mpp) for v in (0.3 * width, 0.3 * width + seam_px))
            part[first:last, first:last] = mask.values[first:last, first:last]
            part = replace(mask, values=part)
            tables = [
                measured(slide, model, mask=part, tile_px=tile)
                for tile in ((2048, 768), (1400, 1100), (700, 500))
            ]
    keys = [
        set(zip(t["x_um"].round(3), t["y_um"].round(3), t["area_um2"].round(3), strict=True)) for t in tables
    ]
    print(
        f"nuclei of {seam_px} x {seam_px} px by tiling: {[len(k) for k in keys]}, the same: {len(set.intersection(*keys))}"
    )


def measured(slide: Slide, model: Segmenter, **options: Any) -> pd.DataFrame:
    wall, cpu = time.perf_counter(), time.process_time()
    table = segment_slide(slide, model, progress=False, **options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"tiles {options.get('tile_px', 'default')}: {len(table)} nuclei, {wall:.0f} s wall, {cpu:.0f} s CPU,"
        f" {len(table) / cpu:.0f} nuclei a second of CPU, peak {peak:.0f} MB",
        flush=True,
    )
    return table


def real_fields() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and label maps, in the order of their names."""
    if not DATA.is_dir():
        raise SystemExit(f"{DATA.name}: the real images are absent; this benchmark cannot run.")
    paths = sorted((DATA / "images").glob("*.png"))
    return [(io.imread(p)[..., :3], io.imread(DATA / "labels" / p.name).astype(np.int64)) for p in paths]


def report(name: str, pairs: list[tuple[np.ndarray, np.ndarray]], outline) -> None:
    rows = pd.DataFrame([counts(truth, outline(rgb)) for rgb, truth in pairs])
    rows["patient_id"] = np.arange(len(rows))  # patients are not known: an image stands for one
    scores = {k: round(v, 3) for k, v in instance_scores(rows).items()}
    print(f"{name}: {scores}; PQ {bootstrap(lambda r: instance_scores(r)['pq'], rows)}")


def on_real(model: Segmenter, epochs: int) -> None:
    """Synthetic only, and after fine-tuning on every other image; both on the rest."""
    pairs = real_fields()
    train, test = pairs[::2], pairs[1::2]
    print(f"{len(test)} real images to test on, of {len(pairs)}")
    report("Otsu and watershed", test, lambda rgb: otsu_nuclei(rgb, mpp=TRAINED_MPP))
    report("synthetic only", test, lambda rgb: segment(model, rgb, mpp=None, turns=2).labels)
    known = model.width_px or 1.0
    images, labels = [], []
    for rgb, truth in train:  # at the scale at which the nuclei have the width that the model knows
        areas = np.bincount(truth.ravel())[1:]
        areas = np.sort(areas[areas > 0])
        width = 2 * np.sqrt(areas[np.searchsorted(areas.cumsum(), areas.sum() / 2)] / np.pi)
        shape = [max(160, round(n * known / width)) for n in truth.shape]
        big = resize(rgb, shape, preserve_range=True, anti_aliasing=True).astype(np.uint8)
        small = resize(truth, shape, order=0, preserve_range=True, anti_aliasing=False).astype(np.int64)
        for _ in range(4):
            r, c = (int(np.random.default_rng(len(images)).integers(n - 160 + 1)) for n in shape)
            images.append(big[r : r + 160, c : c + 160])
            labels.append(small[r : r + 160, c : c + 160])
    fit_segmenter(
        model, np.stack(images), np.stack(labels), mpp=TRAINED_MPP, epochs=epochs, batch_size=16, lr=1e-3
    )
    report("fine-tuned on half", test, lambda rgb: segment(model, rgb, mpp=None, turns=2).labels)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("what", choices=["slide", "real"])
    options.add_argument("--side", type=int, default=20000, help="0: only the part for the seams")
    options.add_argument("--slide", type=Path, help="a slide that was made before, instead of a new one")
    options.add_argument("--out", type=Path, help="table of the whole slide's nuclei; a stopped run goes on")
    options.add_argument("--seam-px", type=int, default=4000)
    options.add_argument("--fields", type=int, default=300)
    options.add_argument("--epochs", type=int, default=12)
    options.add_argument("--weights", type=Path)
    asked = options.parse_args()
    model = trained(asked.fields, asked.epochs, asked.weights, of_slides=asked.what == "slide")
    if asked.what == "slide":
        whole_slide(model, asked.side, asked.slide, asked.out, asked.seam_px)
    else:
        on_real(model, asked.epochs)


if __name__ == "__main__":
    main()
