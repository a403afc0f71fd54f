"""Accuracy of trained networks by engine: does bfloat16 cost any? Patches of the synthetic lymph nodes, patients held out.

    python benchmarks/engine_accuracy.py [--per-class 1500] [--epochs 4]

A small network as in notebook 08 and a linear probe of EfficientNet-Lite0, both trained by torch, are run over patches of test
patients by each engine: balanced accuracy, area under the curve, the largest difference of a probability, and decisions
that another engine reverses.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score

from pathkit import datasets, engine, metrics, models, patches, splits, training

ENGINES = ("torch fp32", "openvino f32", "openvino bf16")


def tables(per_class, seed=0):
    """Slides, and labelled patches to learn from, to validate on and to test on."""
    slides = datasets.load("lymph-nodes")
    severity = slides["category"].map({"normal": 0, "itc": 1, "micro": 2, "macro": 3})
    fractions = {"train": 0.5, "val": 0.15, "test": 0.35}
    slides = splits.split_patients(
        slides.assign(severity=severity), fractions=fractions, stratify="severity", seed=seed
    )
    table = patches.patch_table(slides, size_px=64, mpp=1.04, overlap_px=24, min_overlap=0.25, progress=False)
    table = table[(table["label"] == "tumour") | (table["overlap"] == 0)]
    sizes = {"train": per_class, "val": per_class // 4, "test": per_class}
    drawn = {
        k: patches.sample_patches(table[table["split"] == k], n, by="label", seed=seed)
        for k, n in sizes.items()
    }
    return slides, drawn


def compared(model, pixels, truth):
    """One row an engine."""
    rows, plain = [], None
    for name in ENGINES:
        try:
            run = engine.open_engine(model, pixels[:32], engine=name)
        except engine.EngineError as error:
            print(f"{name}: {error}")
            continue
        logits = np.concatenate([run(pixels[s : s + 256]) for s in range(0, len(pixels), 256)])
        tumour = torch.from_numpy(logits).softmax(1)[:, 1].numpy()
        plain = tumour if plain is None else plain
        rows.append(
            {
                "engine": run.name,
                "balanced accuracy": balanced_accuracy_score(truth, tumour >= 0.5),
                "AUC": metrics.auc(truth, tumour),
                "largest difference": np.abs(tumour - plain).max(),
                "decisions reversed": int(((tumour >= 0.5) != (plain >= 0.5)).sum()),
            }
        )
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--per-class", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    print(
        f"pathkit refuses engines that differ by more than {engine.PROBABILITY_TOLERANCE:g} on 32 patches; here none is refused"
    )
    engine.PROBABILITY_TOLERANCE = 1.0
    slides, drawn = tables(options.per_class)
    torch.manual_seed(0)
    small = models.patch_classifier("small", classes=["normal", "tumour"])
    training.fit(
        small,
        drawn["train"],
        drawn["val"],
        slides=slides,
        epochs=options.epochs,
        precision="fp32",
        progress=False,
    )
    probe = training.fit_linear_probe("efficientnet-lite0", drawn["val"], slides=slides, progress=False)
    pixels = patches.read_all(drawn["test"], slides, progress=False)
    truth = (drawn["test"]["label"] == "tumour").to_numpy()
    print(f"{len(truth)} patches, {truth.sum()} with tumour, of patients held out (synthetic)")
    found = {
        "small": compared(small, pixels, truth),
        "EfficientNet-Lite0, probe": compared(probe, pixels, truth),
    }
    print(pd.concat(found, names=["network", ""]).reset_index(0).to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
