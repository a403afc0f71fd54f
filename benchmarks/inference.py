"""Whole-slide inference: pathkit beside the plain way and beside the network alone, and the memory of each.

The plain way is what everyone writes: OpenSlide's ``read_region``, PIL to a tensor, a DataLoader, torch in float32 with
default settings. Each way runs in a fresh process, since memory settings last as long as a process, and says how large it
became; the ways take turns. The slide is synthetic, the patches are 256 px, one to a place.

    python benchmarks/inference.py [--quick] [--patches 768] [--encoder efficientnet-lite0]

The slow ways get an eighth of the patches; `--quick` takes one turn instead of three.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from benchmarks_slides import repeated, tissue_slide
from results import found, peak_mb

SIZE, MPP = 256, 0.5
WAYS = ("plain", "network alone", "pathkit torch", "pathkit")
SLOW = ("plain", "pathkit torch")


def network(name):
    import torch

    from pathkit.models import patch_classifier

    torch.manual_seed(0)
    model = patch_classifier(name, classes=["normal", "tumour"]).eval()
    model.mpp, model.size_px = MPP, SIZE
    return model


def plain(path, model, table):
    import numpy as np
    import openslide
    import torch

    handle = openslide.OpenSlide(str(path))

    class Patches(torch.utils.data.Dataset):
        def __len__(self):
            return len(table)

        def __getitem__(self, i):
            at = int(table["x_l0"].iloc[i]), int(table["y_l0"].iloc[i])
            pixels = np.array(handle.read_region(at, 0, (SIZE, SIZE)).convert("RGB"))
            return torch.from_numpy(pixels).permute(2, 0, 1)

    def run():
        with torch.no_grad():
            return torch.cat(
                [model(x) for x in torch.utils.data.DataLoader(Patches(), batch_size=32)]
            ).softmax(1)

    return run


def one(way, path, name, n):
    """Seconds and peak memory of one way, in this process; the first turn warms up."""
    from pathkit.engine import open_engine
    from pathkit.inference import predict_patches
    from pathkit.slide import open_slide

    model = network(name)
    table = repeated(open_slide(path), n, size_px=SIZE, mpp=MPP)
    if way == "plain":
        run = plain(path, model, table)
    elif way == "network alone":
        pixels = open_slide(path).read_patches(table)
        engine = open_engine(model, pixels)
        run = lambda: engine(pixels)  # noqa: E731
    else:
        slide, kind = open_slide(path), "torch" if way == "pathkit torch" else "auto"
        run = lambda: predict_patches(model, table, {"slide": slide}, engine=kind, progress=False)  # noqa: E731
    run()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds / n * 1000, "mb": peak_mb()}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--patches", type=int, default=768)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        one(*options.one, options.encoder, options.patches)
        return
    runs = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        tissue_slide(path, mpp=MPP)
        for _ in range(1 if options.quick else 3):
            for way in WAYS:
                n = options.patches // 8 if way in SLOW else options.patches
                shared = ["--patches", str(n), "--encoder", options.encoder]
                command = [sys.executable, __file__, *shared, "--one", way, str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    best = {way: min(r["seconds"] for r in some) for way, some in runs.items()}
    print(
        f"{options.encoder}, {options.patches} patches of {SIZE} px; goals: 10 times the plain way, 0.9 of the network alone"
    )
    print("| way | s per 1000 patches | times the plain way | of the network alone | peak MB |")
    print("|---|---|---|---|---|")
    for way in WAYS:
        peak = max(r["mb"] for r in runs[way])
        print(
            f"| {way} | {best[way]:.2f} | {best['plain'] / best[way]:.1f}"
            f" | {best['network alone'] / best[way]:.2f} | {peak:.0f} |"
        )
    found("whole way: times the plain way", best["plain"] / best["pathkit"], least=10)
    found("whole way: share of the network alone", best["network alone"] / best["pathkit"], least=0.9)
    found("whole way: peak memory", max(r["mb"] for r in runs["pathkit"]), most=2048, unit="MB")


if __name__ == "__main__":
    main()
