"""Inference on a GPU: from slide to prediction, beside the same network on random pixels already on the device.

    python benchmarks/gpu_inference.py [--patches 20000] [--encoder efficientnet-lite0]

The goal is 0.95: reading, copying and fetching must hide behind the network. Says so and ends where there is no GPU.
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

from pathkit.engine import open_engine
from pathkit.inference import predict_patches
from pathkit.models import patch_classifier
from pathkit.slide import open_slide

SIZE, MPP = 256, 0.5


def alone(engine, n, batch):
    """Seconds for n patches of random pixels that lie on the device."""
    pixels = torch.randint(0, 256, (batch, SIZE, SIZE, 3), dtype=torch.uint8, device="cuda")
    engine.start((pixels, None))()
    start = time.perf_counter()
    waiting = [engine.start((pixels, None)) for _ in range(n // batch)]
    waiting[-1]()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--patches", type=int, default=20_000)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    model = patch_classifier(options.encoder, classes=["normal", "tumour"])
    model.mpp, model.size_px = MPP, SIZE
    with tempfile.TemporaryDirectory() as folder:
        slide = open_slide(tissue_slide(Path(folder) / "slide.tif", mpp=MPP))
        table = repeated(slide, options.patches, size_px=SIZE, mpp=MPP)
        engine = open_engine(model, slide.read_patches(table[:64]))
        predict_patches(model, table[:1024], {"slide": slide}, progress=False)
        ratios = []
        for _ in range(3):
            start = time.perf_counter()
            predict_patches(model, table, {"slide": slide}, progress=False)
            ours = time.perf_counter() - start
            ratios.append(alone(engine, len(table), engine.batch_size) / ours)
            print(
                f"{len(table) / ours:.0f} patches/s, {ratios[-1]:.2f} of the network alone ({engine.name})",
                flush=True,
            )
    print(f"median {np.median(ratios):.2f} (goal 0.95) on {torch.cuda.get_device_name()}")
    found("from slide to prediction: share of the network alone", np.median(ratios), least=0.95)


if __name__ == "__main__":
    main()
