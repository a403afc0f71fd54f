"""Plans: the counts are exact, the time is of this machine, and what runs is what was planned."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
import torch

from pathkit import inference
from pathkit.geometry import Raster
from pathkit.inference import extract_features, heatmap, heatmaps
from pathkit.models import model_digest, patch_classifier
from pathkit.patches import patch_grid
from pathkit.plan import plan, plan_training
from pathkit.slide import open_slide
from pathkit.synthetic import write_pyramid
from pathkit.training import fit

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


def test_features_are_planned_run_and_gone_on_with(slide, tmp_path, monkeypatch):
    encoder, path = network().encoder, tmp_path / "features.npy"
    grid = patch_grid(slide, size_px=32, mpp=0.5, mask=ALL)
    job = plan(slide, encoder, patches=grid, sample=40, out=path)
    assert job.table[["slide_id", "patches", "left"]].to_numpy().tolist() == [["s", len(grid), len(grid)]]
    assert f"{len(grid)} of 32 px at 0.5 µm/px\n" in repr(job)
    commit = inference._Rows.commit

    def stopping(store):
        commit(store)
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(inference._Rows, "commit", stopping)
        with pytest.raises(Stop):
            job.run(progress=False)
    later = plan(slide, encoder, patches=grid, sample=40, out=path)
    assert later.n_left == later.table.loc[0, "left"] == len(grid) - 64
    features = later.run(progress=False)
    assert (later.n_left, later.table.loc[0, "left"]) == (0, 0)
    np.testing.assert_array_equal(features, extract_features(slide, grid, encoder, progress=False))
    with pytest.raises(ValueError, match=r"an Encoder gives features of patches=\.\.\."):
        plan(slide, encoder)


def test_a_training_is_planned_and_the_model_untouched_till_it_runs(slide):
    grid = patch_grid(slide, size_px=32, mpp=0.5, mask=ALL)
    grid["label"] = np.where(np.arange(len(grid)) % 2, "a", "b")
    train, val, model = grid[:160], grid[160:], network()
    before, state = model_digest(model), torch.random.get_rng_state()
    options = {"slides": {"s": slide}, "epochs": 2, "batch_size": 32, "accelerator": "cpu"}
    job = plan_training(model, train, val, **options)
    assert model_digest(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert min(job.reading, job.network, job.memory_mb) > 0
    assert job.in_memory
    expected = 2 * (160 + len(val) / 3) / job.network + len(grid) / job.reading
    assert job.seconds == pytest.approx(expected)
    for part in ("160 to learn from", "2 epochs", "once, then kept", "GB", "on this machine"):
        assert part in repr(job)
        assert part in job._repr_html_()
    trained = job.run(progress=False)
    again = fit(network(), train, val, progress=False, **options)
    assert model_digest(trained.model) == model_digest(again.model)
    streamed = plan_training(network(), train, val, budget_gb=0, **options)
    assert not streamed.in_memory
    assert streamed.memory_mb < job.memory_mb + 500
    assert "in each epoch" in repr(streamed)


def test_a_training_is_planned_with_the_defaults_of_the_training(slide, monkeypatch):
    grid = patch_grid(slide, size_px=32, mpp=0.5, mask=ALL)[:80]
    grid["label"] = np.where(np.arange(len(grid)) % 2, "a", "b")
    usual = {k: p.default for k, p in inspect.signature(fit).parameters.items()}
    job = plan_training(network(), grid[:60], grid[60:], slides={"s": slide}, accelerator="cpu")
    assert f"{usual['epochs']} epochs" in repr(job)
    assert f"batches of {usual['batch_size']}" in repr(job)

    def changed(*call, epochs=3, batch_size=16, budget_gb=0.0, devices=1, **options):
        return fit(*call, epochs=epochs, batch_size=batch_size, **options)

    monkeypatch.setattr("pathkit.plan.fit", changed)
    job = plan_training(network(), grid[:60], grid[60:], slides={"s": slide}, accelerator="cpu")
    for part in ("3 epochs", "batches of 16", "in each epoch"):
        assert part in repr(job)


def test_a_plan_without_a_sample_is_none(slide):
    with pytest.raises(ValueError, match="sample must be at least 1, got 0"):
        plan(slide, network(), mask=ALL, sample=0)
