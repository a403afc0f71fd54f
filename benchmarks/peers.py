"""Other readers of slides, run by a Python of their own: they bring their own torch, vips or old NumPy.

A benchmark starts ``PYTHON benchmarks/peers.py`` for each `--peers PYTHON` and sends it what to do, one JSON a line; what is
not installed there is not offered. A whole environment:

    python -m venv peers && peers/bin/pip install pyvips pyvips-binary tiffslide hs2p openslide-python openslide-bin
    python benchmarks/reading.py --peers peers/bin/python
    python benchmarks/end_to_end.py --peers peers/bin/python

tiatoolbox 2.1.3 needs torch and torchvision: install those, then `pip install --no-deps tiatoolbox torchstain` and what its
import asks for; `stain.py` and `end_to_end.py` take it.

Nothing of pathkit is imported here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Reading: every place of every batch into an array ---------------------------------------------------------------


def vips(path, batches, size, threads):
    import pyvips

    def read(some):
        region = pyvips.Region.new(pyvips.Image.new_from_file(path, page=0))
        for batch in some:
            for x, y in batch:
                np.frombuffer(region.fetch(x, y, size, size), np.uint8).reshape(size, size, 3)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, [batches[i::threads] for i in range(threads)]))
    return sum(map(len, batches))


def tiffslide_(path, batches, size, threads):
    import tiffslide

    slide = tiffslide.TiffSlide(path)

    def read(batch):
        for x, y in batch:
            slide.read_region((x, y), 0, (size, size), as_array=True)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, batches))
    return sum(map(len, batches))


# End to end: mask, grid, every patch as an array -----------------------------------------------------------------


def otsu(values, bins=256):
    """The threshold that parts values in two classes of least spread."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(np.cumsum(counts[::-1]), 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return centres[int(between.argmax())]


def by_hand(path, size, overlap, threads, read):
    """A mask by Otsu of a thumbnail, a grid, and `read(slide, path, size)` in a pool of threads: what everyone writes."""
    import openslide

    slide = openslide.OpenSlide(path)
    grey = np.asarray(slide.get_thumbnail((1024, 1024)).convert("L"), float) / 255
    mask = grey <= max(otsu(grey), 0.95)
    step, scale = size - overlap, grey.shape[1] / slide.dimensions[0]
    places = []
    for y in range(0, slide.dimensions[1], step):
        for x in range(0, slide.dimensions[0], step):
            r, c, side = int(y * scale), int(x * scale), max(1, int(size * scale))
            if mask[r : r + side, c : c + side].mean() >= 0.5:
                places.append((x, y))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read(slide, path, size), places))
    return len(places)


def with_openslide(slide, path, size):
    return lambda at: np.asarray(slide.read_region(at, 0, (size, size)).convert("RGB"))


def with_pyvips(slide, path, size):
    import pyvips

    regions, (width, height) = threading.local(), slide.dimensions

    def read(at):
        if not hasattr(regions, "it"):
            regions.it = pyvips.Region.new(pyvips.Image.new_from_file(path, page=0))
        w, h = min(size, width - at[0]), min(size, height - at[1])
        return np.frombuffer(regions.it.fetch(*at, w, h), np.uint8).reshape(h, w, 3)

    return read


def hs2p(backend):
    def run(path, size, overlap, threads, mpp):
        from hs2p import SegmentationConfig, SlideSpec, TilingConfig, tile_slide
        from hs2p.wsi.streaming.stream import iter_tile_arrays_from_result

        tiling = TilingConfig(
            requested_spacing_um=mpp,
            requested_tile_size_px=size,
            tolerance=0.05,
            overlap=overlap / size,
            backend=backend,
            mask_backend=backend,
        )
        result = tile_slide(
            SlideSpec(sample_id="slide", image_path=path),
            tiling=tiling,
            segmentation=SegmentationConfig(method="hsv", downsample=16),
            num_workers=threads,
        )
        return sum(1 for _ in iter_tile_arrays_from_result(result=result, num_workers=threads))

    return run


def tiatoolbox(path, size, overlap, threads, mpp):
    from tiatoolbox.tools.patchextraction import SlidingWindowPatchExtractor
    from tiatoolbox.wsicore.wsireader import OpenSlideWSIReader

    patches = SlidingWindowPatchExtractor(
        input_img=OpenSlideWSIReader(path),  # its own reader of TIFF finds no resolution in pathkit's slides
        input_mask="otsu",
        patch_size=(size, size),
        stride=(size - overlap, size - overlap),
        resolution=mpp,
        units="mpp",
        min_mask_ratio=0.5,
    )
    return sum(1 for patch in patches if patch.shape == (size, size, 3))


# Stain: seconds of a processor to normalise a patch ---------------------------------------------------------------


def normalised(make, transform):
    """`make()` gives a normaliser, fitted to the target image; each patch is fitted and changed, as they are used."""

    def run(patches, target):
        patches, target = np.load(patches), np.load(target)
        normaliser = make()
        normaliser.fit(target)
        seconds = []
        for _ in range(3):
            start = time.process_time()
            for patch in patches:
                transform(normaliser, patch)
            seconds.append(time.process_time() - start)
        return min(seconds) / len(patches)

    return run


def of_tiatoolbox(name):
    def make():
        from tiatoolbox.tools import stainnorm

        return getattr(stainnorm, name)()

    return normalised(make, lambda normaliser, patch: normaliser.transform(patch))


def of_torchstain():
    import torchstain

    return torchstain.normalizers.MacenkoNormalizer(backend="numpy")


STAIN = {
    "tiatoolbox macenko": (of_tiatoolbox("MacenkoNormalizer"), ["tiatoolbox"]),
    "tiatoolbox reinhard": (of_tiatoolbox("ReinhardNormalizer"), ["tiatoolbox"]),
    "tiatoolbox vahadane": (of_tiatoolbox("VahadaneNormalizer"), ["tiatoolbox"]),
    "torchstain macenko": (
        normalised(of_torchstain, lambda normaliser, patch: normaliser.normalize(patch, stains=False)),
        ["torchstain"],
    ),
}
READ = {"pyvips": (vips, ["pyvips"]), "tiffslide": (tiffslide_, ["tiffslide"])}
WHOLE = {
    "pyvips, a loop": (
        lambda path, size, overlap, threads, mpp: by_hand(path, size, overlap, threads, with_pyvips),
        ["pyvips", "openslide"],
    ),
    "hs2p with vips": (hs2p("vips"), ["hs2p", "pyvips"]),
    "hs2p with openslide": (hs2p("openslide"), ["hs2p", "openslide"]),
    "tiatoolbox": (tiatoolbox, ["tiatoolbox"]),
}
KINDS = {"read": READ, "whole": WHOLE, "stain": STAIN}
DISTRIBUTIONS = ("pyvips-binary", "tiffslide", "hs2p", "tiatoolbox", "torchstain", "openslide-bin")


# The two ends of the line ----------------------------------------------------------------------------------------


class Peer:
    """A Python that can do some of the above.

    Attributes
    ----------
    read, whole, stain : list of str
        What it offers.
    versions : dict
    """

    def __init__(self, python):
        command = [python, __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.read, self.whole, self.stain, self.versions = self._answer()

    def ask(self, kind, name, **options):
        """Do it once; "read" and "whole" give the number of patches, "stain" the seconds a patch takes."""
        self._process.stdin.write(json.dumps([kind, name, options]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's Python ended: run its benchmark alone to see why")
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise RuntimeError(answer["error"])
        return answer


def serve():
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer

    def say(what):
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    def offered(ways):
        return [n for n, (_, needs) in ways.items() if all(importlib.util.find_spec(m) for m in needs)]

    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    say([*map(offered, KINDS.values()), versions])
    for line in sys.stdin:
        kind, name, options = json.loads(line)
        try:
            say(KINDS[kind][name][0](**options))
        except Exception as error:
            say({"error": f"{name}: {type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve()
