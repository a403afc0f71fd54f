"""Real tissue: three classes of lung, by hand-made features, frozen ImageNet features and fine-tuning.

The patches are LC25000's (arXiv:1912.12142): augmented images, so that rows are split by the tile that they came from, never
by file, and intervals are bootstraps over those tiles. Their mpp is not stated; 1 is given so that a pixel stays a pixel.
Which epoch is kept is decided on tiles held out of the training part: the validation part is looked at once, at the end.

    python benchmarks/lung_patches.py ../shared/data/lung_patches --epochs 4
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathkit import encoders, inference, metrics, patches, splits, texture, training

GROUP = "source_tile_group"


def lung_table(folder: Path, size_px: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Slides and patches: each image is a slide of one patch."""
    listed = pd.read_csv(folder / "labels.csv")
    slides = listed.assign(
        slide_id=[Path(p).stem for p in listed["path"]],
        path=[str(folder / p) for p in listed["path"]],
        mpp=1.0,
    )
    return slides, slides.assign(x_l0=0, y_l0=0, size_px=size_px, mpp=224 / size_px).drop(columns="path")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("folder", type=Path)
    options.add_argument("--size-px", type=int, default=224, help="side to which the images are reduced")
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--lr", type=float, default=3e-4)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--rows", type=int, help="of each class and part, for a trial")
    asked = options.parse_args()
    if not (asked.folder / "labels.csv").is_file():
        raise SystemExit(f"{asked.folder.name}: no labels.csv; this benchmark needs the real patches.")
    slides, table = lung_table(asked.folder, asked.size_px)
    splits.check_no_leak(table, by=GROUP)
    if asked.rows:
        table = patches.sample_patches(table, asked.rows, by=["split", "label"], seed=asked.seed)
    train, val = (table[table["split"] == part].reset_index(drop=True) for part in ("train", "val"))
    pixels = {n: patches.read_all(t, slides, progress=False) for n, t in (("train", train), ("val", val))}

    def report(name: str, predicted: np.ndarray, start: float) -> None:
        rows = val.assign(predicted=predicted)[[GROUP, "label", "predicted"]]
        found = metrics.bootstrap(
            lambda t: balanced_accuracy_score(t["label"], t["predicted"]), rows, by=GROUP, n=500
        )
        cpu = time.process_time() - start
        print(
            f"{name:44s} {found.value:.3f} (95% CI {found.low:.3f} to {found.high:.3f})  {cpu:6.0f} s CPU",
            flush=True,
        )

    print(
        f"balanced accuracy on {len(val)} patches of {val[GROUP].nunique()} tiles, {len(train)} to train on"
    )
    start = time.process_time()
    described = {n: texture.texture_features(p, progress=False) for n, p in pixels.items()}
    for name, columns in (
        ("colour moments", described["train"].columns[:9]),
        ("colour and texture", described["train"].columns),
    ):
        forest = RandomForestClassifier(500, random_state=asked.seed).fit(
            described["train"][columns], train["label"]
        )
        report(f"{name} ({len(columns)}), random forest", forest.predict(described["val"][columns]), start)
    for name in ("efficientnet-lite0-mid", "efficientnet-lite0-mid-bilinear", "efficientnet-lite0"):
        start, encoder = time.process_time(), encoders.load_encoder(name)
        features = {
            n: inference.outputs_of(encoder, p, batch_size=16, progress=False) for n, p in pixels.items()
        }
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        report(
            f"{name} frozen, linear probe",
            probe.fit(features["train"], train["label"]).predict(features["val"]),
            start,
        )
    start = time.process_time()
    inner = splits.split_patients(
        train, by=GROUP, fractions={"train": 0.85, "val": 0.15}, stratify="label", seed=asked.seed
    )
    fitting = inner[inner["split"] == "train"]
    torch.manual_seed(asked.seed)
    model = training.fit_linear_probe(
        "efficientnet-lite0", fitting, slides=slides, seed=asked.seed, progress=False
    )
    result = training.fit(
        model, fitting, inner[inner["split"] == "val"], slides=slides, epochs=asked.epochs, lr=asked.lr, batch_size=32,
        seed=asked.seed, progress=False, on_epoch=lambda m, row: print({k: round(v, 4) for k, v in row.items()}, flush=True),
    )  # fmt: skip
    logits = inference.outputs_of(result.model, pixels["val"], batch_size=16, progress=False)
    report("efficientnet-lite0 fine-tuned", np.array(result.model.classes)[logits.argmax(1)], start)


if __name__ == "__main__":
    main()
