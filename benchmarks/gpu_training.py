"""Training on a GPU: `training.fit` beside the same step on random pixels already on the device.

    python benchmarks/gpu_training.py [--patches 8192] [--encoder efficientnet-lite0] [--epochs 4]

The goal is 0.95. Says so and ends where there is no GPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from benchmarks_slides import repeated, tissue_slide
from results import found

from pathkit.models import patch_classifier
from pathkit.slide import open_slide
from pathkit.training import Augment, fit

SIZE, MPP, BATCH = 256, 0.5, 64


def alone(name, steps):
    """Seconds of the same steps, augmentation included, on pixels that lie on the device."""
    model = patch_classifier(name, classes=["a", "b"]).cuda().train().to(memory_format=torch.channels_last)
    augment, optimizer = Augment().cuda(), torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixels = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, device="cuda")
    labels = torch.randint(0, 2, (BATCH,), device="cuda")

    def step():
        x = augment(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            output = model(x)
        loss = torch.nn.functional.cross_entropy(output.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(10):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--patches", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    with tempfile.TemporaryDirectory() as folder:
        slide = open_slide(tissue_slide(Path(folder) / "slide.tif", mpp=MPP))
        table = repeated(slide, options.patches, size_px=SIZE, mpp=MPP)
        table["label"] = np.where(np.arange(len(table)) % 2, "a", "b")
        model = patch_classifier(options.encoder, classes=["a", "b"])
        result = fit(
            model,
            table,
            table[:BATCH],
            slides={"slide": slide},
            epochs=options.epochs,
            budget_gb=8,
            progress=False,
        )
    ours = float(result.history["seconds"].iloc[1:].median())  # the first epoch warms up
    steps = options.patches // BATCH
    ratio = alone(options.encoder, steps) / ours
    print(f"{options.patches / ours:.0f} patches/s, {ratio:.2f} of the step alone (goal 0.95)")
    print(f"on {torch.cuda.get_device_name()}; an epoch's seconds include its validation on {BATCH} patches")
    found("training: share of the step alone", ratio, least=0.95)


if __name__ == "__main__":
    main()
