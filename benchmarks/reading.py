"""Reading patches: pathkit's direct tiles beside libjpeg-turbo alone, OpenSlide, pyvips and tiffslide.

The limit is libjpeg-turbo (imagecodecs) decoding each tile that a batch needs once, from memory, and nothing else. All ways
take turns, and the best of several turns counts, so that other work on the machine tells less; the table gives shares of the
limit on the same number of threads.

    python benchmarks/reading.py [--quick] [--peers PYTHON]

pyvips and tiffslide are run where this Python, or the one of `--peers` (see `peers.py`), has them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pandas as pd
import tifffile
from peers import Peer
from results import found

from pathkit.slide import open_slide
from pathkit.synthetic.mosaic import Mosaic
from pathkit.tiles import CACHE, TileCache

BATCH = 64
MPP = 0.25
#: Side of the tiles, and how their colours are stored.
KINDS = ((240, (2, 2)), (256, (2, 2)), (256, None), (512, (2, 2)))


def write(path, field, tile, subsampling):
    """One level of 10,240 x 8,192 px: painted tissue, repeated."""
    pixels = np.tile(field, (4, 5, 1))
    ycbcr = {"outcolorspace": "ycbcr"} if subsampling else {}
    tifffile.imwrite(
        path,
        pixels,
        tile=(tile, tile),
        photometric="ycbcr" if subsampling else "rgb",
        subsampling=subsampling,
        compression="jpeg",
        compressionargs={"level": 80} | ycbcr,
        resolution=(1e4 / MPP, 1e4 / MPP),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return path


def tables(size, order, n):
    """Batches of patches: row after row and unaligned, or at random places."""
    rng = np.random.default_rng(0)
    if order == "random":
        x, y = rng.integers(0, 10_240 - size, n), rng.integers(0, 8192 - size, n)
    else:
        xs, ys = np.arange(100, 10_240 - size, size), np.arange(60, 8192 - size, size)
        x, y = (v.ravel()[:n] for v in np.meshgrid(xs, ys))
    table = pd.DataFrame({"x_l0": x, "y_l0": y, "size_px": size, "mpp": MPP})
    return [table[i : i + BATCH] for i in range(0, len(table), BATCH)]


def limit(path, batches, size, order):
    """A function that decodes the tiles that the batches need: in rows each once, at random each once a batch."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        tile, across = page.tilewidth, -(-page.imagewidth // page.tilewidth)
        colour, tables_ = ("RGB" if page.photometric == 2 else "YCBCR"), page.jpegtables
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    data = path.read_bytes()
    needed, seen = [], set()
    for batch in batches:
        fresh = set()
        for x, y in zip(batch["x_l0"], batch["y_l0"], strict=True):
            for r in range(y // tile, (y + size - 1) // tile + 1):
                fresh |= {r * across + c for c in range(x // tile, (x + size - 1) // tile + 1)}
        needed += sorted(fresh - seen)
        seen = seen | fresh if order == "rows" else set()
    parts = [data[o : o + n] for o, n in (places[i] for i in needed)]

    # Memory that stays in the processor's cache, and begins where libjpeg-turbo writes fastest.
    cache = TileCache(0)
    spare = [cache.fresh((tile, tile, 3)) for _ in range(8)]

    def decode(some):
        out = spare.pop()
        for part in some:
            imagecodecs.jpeg8_decode(part, tables=tables_, colorspace=colour, outcolorspace="RGB", out=out)
        spare.append(out)

    def run(threads):
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, np.array_split(np.array(parts, object), 8 * threads)))

    return run


def direct(path, batches, size):
    slide = open_slide(path)
    out = np.empty((BATCH, size, size, 3), np.uint8)

    def run(threads):
        for batch in batches:
            slide.read_patches(batch, out=out[: len(batch)], threads=threads)

    return run


def plain(path, batches, size):
    """What everyone writes: read_region, to RGB, to numpy; one thread."""
    slide = openslide.OpenSlide(str(path))

    def run(threads):
        def read(batch):
            for x, y in zip(batch["x_l0"], batch["y_l0"], strict=True):
                np.asarray(slide.read_region((int(x), int(y)), 0, (size, size)).convert("RGB"))

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, batches))

    return run


def peers_way(peer, name):
    def make(path, batches, size):
        places = [b[["x_l0", "y_l0"]].to_numpy().tolist() for b in batches]
        options = {"path": str(path), "batches": places, "size": size}
        return lambda threads: peer.ask("read", name, threads=threads, **options)

    return make


def measure(ways, threads, repeats):
    """Least seconds of each way; the ways take turns."""
    seconds = {name: [] for name in ways}
    for run in ways.values():
        run(threads)
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run(threads)
            seconds[name].append(time.perf_counter() - start)
    return {name: min(s) for name, s in seconds.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one kind of tile")
    parser.add_argument("--peers", action="append", metavar="PYTHON", default=[])
    options = parser.parse_args()
    CACHE.max_bytes = 30_000_000  # less than the slide, so that nothing is left from the turn before
    quick = options.quick
    field = Mosaic((16_000, 12_800), mpp=MPP).read((6000, 6000), (2048, 2048))
    peers = {"openslide": plain}
    for peer in map(Peer, [sys.executable, *options.peers]):
        peers |= {name: peers_way(peer, name) for name in peer.read}
        print(*(f"{name} {version}" for name, version in peer.versions.items()), sep=", ")
    names = ["direct", *peers]
    print(
        "shares of the libjpeg-turbo limit, one thread / two threads; and direct against openslide on two threads"
    )
    print(
        f"{'tiles':16}{'patches':16}{'limit, patches/s':>20}"
        + "".join(f"{n:>14}" for n in names)
        + f"{'x openslide':>13}"
    )
    reached: dict[tuple[str, str], list[float]] = {}
    faster: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for tile, subsampling in KINDS[1:2] if quick else KINDS:
            path = write(Path(folder) / f"{tile}{subsampling}.tif", field, tile, subsampling)
            for size, order in ((256, "rows"), (256, "random"), (512, "rows"), (512, "random")):
                batches = tables(size, order, 256 if size == 256 else 128)
                ways = {"limit": limit(path, batches, size, order), "direct": direct(path, batches, size)}
                ways |= {name: make(path, batches, size) for name, make in peers.items()}
                one, two = (measure(ways, threads, 6 if quick else 4) for threads in (1, 2))
                n = sum(map(len, batches))
                kind = f"{tile} {'4:2:0' if subsampling else '4:4:4 RGB'}"
                speeds = " / ".join(f"{n / seconds['limit']:.0f}" for seconds in (one, two))
                shares = [f"{one['limit'] / one[w]:7.2f} /{two['limit'] / two[w]:5.2f}" for w in names]
                times = two["openslide"] / two["direct"]
                for name in names:
                    reached.setdefault((name, order), []).append(two["limit"] / two[name])
                faster += [times] if order == "rows" else []
                print(
                    f"{kind:16}{f'{size} {order}':16}{speeds:>20}{''.join(shares)}{times:>13.1f}",
                    flush=True,
                )
    for (name, order), shares in reached.items():
        goal = {"rows": 0.8, "random": 0.4}[order] if name == "direct" else None
        found(f"{name}, {order}: least share of libjpeg-turbo, 2 threads", min(shares), least=goal)
    found("direct, rows: times OpenSlide, at least", min(faster), least=4)


if __name__ == "__main__":
    main()
