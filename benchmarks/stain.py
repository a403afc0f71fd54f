"""Stain normalisation: patches a second on one thread, as shares of a memory copy and against torchstain where it is there.

    python benchmarks/stain.py

Ratios are of processor time in one run, the least of several repetitions, so that a busy machine hardly changes them.
"""

from __future__ import annotations

import time

import numpy as np
from results import found

from pathkit import stain
from pathkit.synthetic import SITES, breast, scan

N, SIDE = 64, 256


def seconds(work, repetitions: int = 25) -> float:
    """Processor time, the least of several."""
    spent = []
    for _ in range(repetitions):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def main() -> None:
    architecture = breast(5, size_um=(800, 800))
    fields = [
        scan(architecture, SITES[name].at(0.5), (200, 200), (1024, 1024)) for name in ("north", "island")
    ]
    tiles = fields[0].reshape(4, SIDE, 4, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    batch = np.ascontiguousarray(np.concatenate([tiles] * (N // len(tiles))))
    out = np.empty_like(batch)
    works = {"memory copy": lambda: np.copyto(out, batch)}
    for method in stain.METHODS:
        source, target = (stain.fit(field, method=method) for field in fields)
        normaliser = source.to(target)
        works[f"{method}, fitted once a slide"] = lambda normaliser=normaliser: normaliser(batch, out=out)
    jitter = stain.HedJitter()
    works["HED jitter"] = lambda: jitter(batch, seed=1)
    copy = None
    for name, work in works.items():
        work()
        speed = N / seconds(work)
        copy = copy or speed
        if "fitted" in name:
            found(f"normalised by {name}, one thread", speed, least=9000, unit="patches/s")
        print(f"{name:32s} {speed:9.0f} patches/s   {speed / copy:6.3f} of a copy")
    print(f"{'fit of a slide, macenko':32s} {1000 * seconds(lambda: stain.fit(fields[0]), 3):9.0f} ms")
    peer(fields, batch, out)


def peer(fields, batch, out) -> None:
    """Torchstain's Macenko, which fits each patch."""
    try:
        import torchstain
    except ImportError:
        print("torchstain is not installed: not compared")
        return
    theirs = torchstain.normalizers.MacenkoNormalizer(backend="numpy")
    theirs.fit(fields[1])
    ours = stain.fit(fields[0]).to(stain.fit(fields[1]))
    few = batch[:8]
    slow = seconds(lambda: [theirs.normalize(patch, stains=False) for patch in few], 3) / len(few)
    fast = seconds(lambda: ours(batch, out=out)) / len(batch)
    print(f"torchstain {1 / slow:.0f} patches/s; ours is {slow / fast:.0f} times as fast")


if __name__ == "__main__":
    main()
