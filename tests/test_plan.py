"""Plans: the counts are exact, the time is of this machine, and what runs is what was planned."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pathkit import inference
from pathkit.geometry import Raster
from pathkit.inference import heatmap, heatmaps
from pathkit.models import patch_classifier
from pathkit.plan import plan
from pathkit.slide import open_slide
from pathkit.synthetic import write_pyramid

ALL = Raster(np.ones((25, 35), bool), 8.0)


def network():
    torch.manual_seed(0)
    model = patch_classifier("small", classes=["a", "b"]).eval()
    model.mpp, model.size_px = 0.5, 32
    return model


@pytest.fixture
def slide(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 560, 3), dtype=np.uint8)
    return open_slide(write_pyramid(pixels, tmp_path / "s.tif", mpp=0.5))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(inference, "BLOCK", (4, 8))
    monkeypatch.setattr(inference, "COMMIT_EVERY", 1)


def test_a_plan_counts_and_runs_what_it_counted(slide, tmp_path):
    job = plan(slide, network(), mask=ALL, sample=40, out=tmp_path / "map.npz")
    # Places from one before the first to the last, in half-patch steps over 400 x 560 px; those that touch the slide.
    assert job.n_patches == job.n_left == 26 * 36
    assert job.reading > 0
    assert job.network > 0
    assert job.seconds_left > 0
    size_mb = slide.path.stat().st_size / 1e6
    assert 0.5 * size_mb < job.table.loc[0, "read_mb"] <= size_mb
    maps = job.run(progress=False)
    assert (job.n_left, job.seconds_left) == (0, 0)
    alone = heatmap(slide, network(), mask=ALL, progress=False)
    np.testing.assert_allclose(maps["s"].values, alone.values, atol=0.02)
    again = plan(slide, network(), mask=ALL, out=tmp_path / "map.npz")
    assert again.n_left == 0
    assert "1 finished" in repr(again)


def test_a_plan_says_what_it_costs(slide):
    job = plan(slide, network(), mask=ALL, sample=1)
    text, page = repr(job), job._repr_html_()
    for part in ("936 of 32 px at 0.5 µm/px, every 16 px", "about", "patches/s", "GB", "on this machine"):
        assert part in text
        assert part in page


class Stop(Exception):
    """The lights go out."""


def test_a_plan_goes_on_where_it_was_stopped(slide, tmp_path, monkeypatch):
    out = tmp_path / "map.npz"
    job = plan(slide, network(), mask=ALL, sample=1, out=out)
    commit, commits = inference._Store.commit, []

    def stopping(store):
        commit(store)
        commits.append(store.done)
        if len(commits) == 3:
            raise Stop

    monkeypatch.setattr(inference._Store, "commit", stopping)
    with pytest.raises(Stop):
        job.run(progress=False)
    later = plan(slide, network(), mask=ALL, sample=1, out=out)
    assert 0 < later.n_left < later.n_patches == job.n_patches
    assert "done" in repr(later)
    resumed = later.run(progress=False)["s"]
    np.testing.assert_array_equal(resumed.values, heatmap(slide, network(), mask=ALL, progress=False).values)


def test_a_cohort_is_planned_slide_by_slide(slide, tmp_path):
    table = pd.DataFrame({"slide_id": ["s"], "path": [slide.path]})
    job = plan(table, network(), sample=1, out=tmp_path / "maps", progress=False)
    expected = heatmaps(table, network(), progress=False)
    np.testing.assert_array_equal(job.run(progress=False)["s"].values, expected["s"].values)
    assert (tmp_path / "maps" / "s.npz").exists()


def test_a_plan_without_a_sample_is_none(slide):
    with pytest.raises(ValueError, match="sample must be at least 1, got 0"):
        plan(slide, network(), mask=ALL, sample=0)
