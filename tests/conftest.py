"""Fixtures shared by all tests: built, tiny, and made once per session."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# The same examples on every run and no deadline: a slow machine is not a fault.
settings.register_profile("pathkit", deadline=None, derandomize=True)
settings.load_profile("pathkit")

ROOT = Path(__file__).resolve().parent.parent
#: Public slides, patches and annotations that other people made; never part of the project.
REAL_DATA = Path(os.environ.get("PATHKIT_REAL_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides and annotations, or a skip that says what is missing."""
    if not REAL_DATA.is_dir():
        pytest.skip(
            f"real data absent: no folder {REAL_DATA.name} beside the project (set PATHKIT_REAL_DATA)"
        )
    return REAL_DATA


@pytest.fixture(scope="session")
def real_slide_path(real_data: Path) -> Path:
    """A real Aperio slide with its mpp (0.499 µm)."""
    return real_data / "slides" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="session")
def no_mpp_slide_path(real_data: Path) -> Path:
    """A real Aperio slide whose metadata carry neither mpp nor magnification."""
    return real_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"


@pytest.fixture(scope="session")
def jpeg_error():
    """Mean difference that JPEG of a quality makes to some pixels (Pillow, chroma at half resolution): a yardstick."""

    def measured(pixels, quality: int) -> float:
        stored = io.BytesIO()
        Image.fromarray(np.asarray(pixels, np.uint8)).save(stored, "JPEG", quality=quality, subsampling=2)
        return float(np.abs(np.asarray(Image.open(stored)).astype(int) - pixels).mean())

    return measured
