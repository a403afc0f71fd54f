"""Real tissue: three classes of lung, by hand-made features, frozen ImageNet features and fine-tuning.

The patches are LC25000's (arXiv:1912.12142): augmented images, so that rows are split by the tile that they came from, never
by file, and intervals are bootstraps over those tiles. Their mpp is not stated; 1 is given so that a pixel stays a pixel.
Which epoch is kept is decided on tiles held out of the training part, and so was the recipe (network, size, rate): the
validation part is looked at once, at the end.

    python benchmarks/lung_patches.py ../shared/data/lung_patches
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathkit import encoders, inference, metrics, patches, splits, texture, training

GROUP = "source_tile_group"
Report = Callable[[str, np.ndarray, float], None]


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
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--encoder", default="efficientnet-lite0-mid-bilinear", help="that is fine-tuned")
    options.add_argument("--only", choices=["frozen", "fine-tuned"], help="one half of the rows alone")
    options.add_argument(
        "--checkpoint", type=Path, help="folder from which a fine-tuning that was stopped goes on"
    )
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
            f"{name:60s} {found.value:.3f} (95% CI {found.low:.3f} to {found.high:.3f})  {cpu:6.0f} s CPU",
            flush=True,
        )

    print(
        f"balanced accuracy on {len(val)} patches of {val[GROUP].nunique()} tiles, {len(train)} to train on"
    )
    if asked.only != "fine-tuned":
        frozen(pixels, train, val, asked.seed, report)
    if asked.only != "frozen":
        fine_tuned(pixels, train, slides, asked, report)


def frozen(
    pixels: dict[str, np.ndarray], train: pd.DataFrame, val: pd.DataFrame, seed: int, report: Report
) -> None:
    """Hand-made features, and features of networks that stay as they are."""
    start = time.process_time()
    described = {n: texture.texture_features(p, progress=False) for n, p in pixels.items()}
    for name, columns in (
        ("colour moments", described["train"].columns[:9]),
        ("colour and texture", described["train"].columns),
    ):
        forest = RandomForestClassifier(500, random_state=seed).fit(
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


def fine_tuned(
    pixels: dict[str, np.ndarray],
    train: pd.DataFrame,
    slides: pd.DataFrame,
    asked: argparse.Namespace,
    report: Report,
) -> None:
    """A linear probe whose network then learns as well, at the rates that `fit` takes for a pretrained one."""
    start = time.process_time()
    inner = splits.split_patients(
        train, by=GROUP, fractions={"train": 0.85, "val": 0.15}, stratify="label", seed=asked.seed
    )
    fitting = inner[inner["split"] == "train"]
    torch.manual_seed(asked.seed)
    model = training.fit_linear_probe(asked.encoder, fitting, slides=slides, seed=asked.seed, progress=False)

    def told(_: torch.nn.Module, row: dict[str, float]) -> None:
        print({k: round(v, 4) for k, v in row.items()}, flush=True)

    result = training.fit(
        model,
        fitting,
        inner[inner["split"] == "val"],
        slides=slides,
        epochs=asked.epochs,
        batch_size=32,
        seed=asked.seed,
        progress=False,
        checkpoint_dir=asked.checkpoint,
        on_epoch=told,
    )
    summed = 0.0
    for turns in range(4):
        turned = np.ascontiguousarray(np.rot90(pixels["val"], turns, (1, 2)))
        logits = inference.outputs_of(result.model, turned, batch_size=16, progress=False)
        summed = summed + softmax(logits, axis=1)
        if turns in (0, 3):
            name = f"{asked.encoder} fine-tuned" + (", mean of four turns" if turns else "")
            report(name, np.array(result.model.classes)[np.asarray(summed).argmax(1)], start)


if __name__ == "__main__":
    main()
