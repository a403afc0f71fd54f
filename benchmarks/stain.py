"""Stain normalisation: patches a second on one thread, as shares of a memory copy and against tiatoolbox and torchstain.

    python benchmarks/stain.py [--peers PYTHON]

Those two fit every patch; they are run where this Python, or the one of `--peers` (see `peers.py`), has them.

Ratios are of processor time in one run, the least of several repetitions, so that a busy machine hardly changes them.
Reinhard's normaliser computes its first 16.8 million pixels and looks the others up, the faster the fewer colours there are.
Both are timed, and real slides too, where ``../shared/data/slides`` is there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from peers import Peer
from results import found

from pathkit import stain
from pathkit.slide import open_slide
from pathkit.synthetic import SITES, breast, scan

SLIDES = Path(__file__).resolve().parents[2] / "shared" / "data" / "slides"
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", action="append", metavar="PYTHON", default=[])
    options = parser.parse_args()
    architecture = breast(5, size_um=(800, 800))
    fields = [
        scan(architecture, SITES[name].at(0.5), (200, 200), (1024, 1024)) for name in ("north", "island")
    ]
    batch = np.ascontiguousarray(np.concatenate([patches(fields[0])] * (N // 16)))
    out = np.empty_like(batch)
    works = {"memory copy": lambda: np.copyto(out, batch)}
    for method in stain.METHODS:
        source, target = (stain.fit(field, method=method) for field in fields)
        normaliser = source.to(target)
        works[f"{method}, fitted once a slide"] = lambda normaliser=normaliser: normaliser(batch, out=out)
    jitter = stain.HedJitter()
    works["HED jitter"] = lambda: jitter(batch, seed=1)
    copy, ours = None, {}
    for name, work in works.items():
        work()
        speed = N / seconds(work)
        copy = copy or speed
        if "fitted" in name:
            ours[name.partition(",")[0]] = speed
            found(f"normalised by {name}, one thread", speed, least=9000, unit="patches/s")
        print(f"{name:32s} {speed:9.0f} patches/s   {speed / copy:6.3f} of a copy")
    print(f"{'fit of a slide, macenko':32s} {1000 * seconds(lambda: stain.fit(fields[0]), 3):9.0f} ms")
    computed_and_looked_up(
        {"this field": fields[0], **real_fields()}, stain.fit(fields[1], method="reinhard")
    )
    theirs(ours, batch[:8], fields[1], options.peers)


def patches(field):
    """As many as fit into a field, (N, SIDE, SIDE, 3)."""
    rows, cols = (n // SIDE for n in field.shape[:2])
    whole = field[: rows * SIDE, : cols * SIDE].reshape(rows, SIDE, cols, SIDE, 3)
    return np.ascontiguousarray(whole.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3))


def real_fields():
    """The middle of each real slide, at most 2,048 px square."""
    fields = {}
    for name in ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"):
        if not (SLIDES / name).exists():
            print(f"{name} is absent: not timed")
            continue
        with open_slide(SLIDES / name) as slide:
            size = tuple(min(2048, n * 2 // 3) for n in slide.dimensions)
            place = tuple(n // 3 for n in slide.dimensions)
            fields[name.partition(".")[0]] = slide.read_region(place, size, level=0)
    return fields


def computed_and_looked_up(fields, target) -> None:
    """Reinhard's two ways, and what the table costs."""
    for name, field in fields.items():
        batch = patches(field)
        flat, out = batch.reshape(-1), np.empty(batch.size, np.uint8)
        normaliser = stain.fit(field, method="reinhard").to(target)
        first = len(batch) / seconds(lambda: normaliser._compute(flat, out), 5)  # noqa: B023
        start = time.process_time()
        table = normaliser._every_colour()
        spent = time.process_time() - start
        later = len(batch) / seconds(lambda: stain._replace_colours(flat, table, out), 15)  # noqa: B023
        colours = len(np.unique(batch.reshape(-1, 3) @ np.array([1, 256, 65536])))
        print(
            f"reinhard, {name}: {len(batch)} patches of {colours} colours, computed {first:.0f} patches/s,"
            f" table in {1000 * spent:.0f} ms, looked up {later:.0f} patches/s"
        )


def theirs(ours, batch, target, pythons) -> None:
    """What others make of the same patches."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = {"patches": batch, "target": target}
        for name, array in arrays.items():
            np.save(Path(folder) / f"{name}.npy", array)
        for peer in map(Peer, [sys.executable, *pythons]):
            for name in peer.stain:
                files = {kind: str(Path(folder) / f"{kind}.npy") for kind in arrays}
                speed = 1 / peer.ask("stain", name, **files)
                package, method = name.split()
                ratio = ours[method] / speed
                print(
                    f"{name} {peer.versions[package]}: {speed:.0f} patches/s; ours is {ratio:.0f} times as fast"
                )
                found(f"{method}, times {package}", ratio, least=40)
            peer.close()


if __name__ == "__main__":
    main()
