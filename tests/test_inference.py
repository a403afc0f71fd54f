"""Inference: a heatmap does not depend on how it is cut, and survives being stopped."""

from __future__ import annotations

import importlib.util
import multiprocessing
import time

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from pathkit import inference, stain
from pathkit.encoders import Encoder, load_encoder
from pathkit.geometry import Raster
from pathkit.inference import (
    candidates,
    extract_features,
    heatmap,
    lesions,
    outputs_of,
    predict_patches,
    slide_score,
)
from pathkit.models import PatchClassifier, patch_classifier
from pathkit.patches import PatchDataset, patch_grid
from pathkit.slide import SlideError, open_slide

PIXELS = np.random.default_rng(0).integers(0, 256, (400, 560, 3), dtype=np.uint8)
VARIED = (PIXELS * np.linspace(0.2, 1, 560)[None, :, None]).astype(np.uint8)
ALL = Raster(np.ones((25, 35), bool), 8.0)


class Brightness(Encoder):
    """The mean of a patch, from 0 to 1: a network whose answer can be worked out."""

    name, dim, size_px = "brightness", 1, 32

    def forward(self, x):
        return x.float().mean((1, 2, 3))[:, None] / 255


def bright_model(gain=8.0, size_px=32, mpp=0.5):
    model = PatchClassifier(Brightness(), ["dark", "bright"]).eval()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[0.0], [gain]]))
        model.head.bias.copy_(torch.tensor([0.0, -gain / 2]))
    model.mpp, model.size_px = mpp, size_px
    return model


@pytest.fixture
def slide():
    return open_slide(PIXELS, mpp=0.5)


def test_a_constant_model_gives_a_constant_map_on_tissue_and_nothing_elsewhere(slide):
    values = np.zeros((25, 35), bool)
    values[:, :12] = True
    heat = heatmap(slide, bright_model(gain=0.0), mask=Raster(values, 8.0), progress=False)
    known = np.isfinite(heat.values)
    np.testing.assert_allclose(heat.values[known], 0.5)
    assert known[:, :11].all()
    assert not known[:, 16:].any()
    assert heat.mpp == 8.0


def test_a_pixel_is_the_mean_of_the_patches_that_cover_it(slide):
    model = bright_model()
    heat = heatmap(slide, model, mask=ALL, min_tissue=1.0, stride_px=16, progress=False)
    r, c = 7, 11
    expected = []
    for dr in (0, 1):
        for dc in (0, 1):
            patch = slide.read_region(((c - dc) * 16, (r - dr) * 16), (32, 32), mpp=0.5)
            x = torch.from_numpy(patch.astype(np.uint8)).permute(2, 0, 1)[None]
            expected.append(torch.softmax(model(x), 1)[0, 1].item())
    assert heat.values[r, c] == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("block", [(1, 1), (3, 5), (100, 100)])
def test_the_blocks_read_do_not_change_the_map(slide, monkeypatch, block):
    usual = heatmap(slide, bright_model(), mask=ALL, progress=False)
    monkeypatch.setattr(inference, "BLOCK", block)
    np.testing.assert_allclose(
        heatmap(slide, bright_model(), mask=ALL, progress=False).values, usual.values, atol=1e-6
    )


class Counting(Brightness):
    """Stops, as a process that is killed, after so many batches."""

    def __init__(self, stop_after):
        super().__init__()
        self.left = stop_after

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("refine", [None, 0.0, 0.49])
@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_a_stopped_run_resumes_to_the_same_bytes(slide, tmp_path, monkeypatch, stop_after, refine):
    monkeypatch.setattr(inference, "BLOCK", (4, 8))
    monkeypatch.setattr(inference, "COMMIT_EVERY", 2)
    options = {"mask": ALL, "refine": refine, "progress": False}
    steady = bright_model()
    steady.encoder = Counting(1000)
    whole = heatmap(slide, steady, out=tmp_path / "whole.npz", **options)
    dying = bright_model()
    dying.encoder = Counting(stop_after)
    with pytest.raises(KeyboardInterrupt):
        heatmap(slide, dying, out=tmp_path / "cut.npz", **options)
    assert not (tmp_path / "cut.npz").exists()
    survivor = bright_model()
    survivor.encoder = Counting(1000)
    resumed = heatmap(slide, survivor, out=tmp_path / "cut.npz", **options)
    np.testing.assert_array_equal(resumed.values, whole.values)
    committed = stop_after // 2 * 2  # blocks are committed two by two
    assert steady.encoder.left == survivor.encoder.left - committed
    assert not (tmp_path / "cut.partial.npz").exists()


# Coarse to fine --------------------------------------------------------------------------------------------------

#: Dark, with a bright place.
SPOTTED = (PIXELS // 2).copy()
SPOTTED[150:230, 230:330] += 120


@pytest.mark.parametrize("stride_px", [16, 8, 32])
@pytest.mark.parametrize("inside", [slice(0, 35), slice(3, 18)])
def test_refined_everywhere_a_map_is_the_usual_one(slide, stride_px, inside):
    tissue = np.zeros((25, 35), bool)
    tissue[2:, inside] = True
    options = {"mask": Raster(tissue, 8.0), "stride_px": stride_px, "progress": False}
    usual = heatmap(slide, bright_model(), **options)
    refined = heatmap(slide, bright_model(), refine=0.0, **options)
    np.testing.assert_allclose(refined.values, usual.values, atol=1e-6)


def test_refined_nowhere_a_map_is_that_of_patches_side_by_side(slide):
    refined = heatmap(slide, bright_model(), mask=ALL, refine=1.1, stride_px=16, progress=False)
    coarse = heatmap(slide, bright_model(), mask=ALL, stride_px=32, progress=False)
    expected = coarse.values.repeat(2, 0).repeat(2, 1)[: len(refined.values), : refined.values.shape[1]]
    np.testing.assert_allclose(refined.values, expected, atol=1e-6)


def test_a_map_is_refined_around_what_is_found_and_tissue_is_left_out_nowhere():
    slide, model = open_slide(SPOTTED, mpp=0.5), bright_model()
    tissue = np.zeros((25, 35), bool)
    tissue[3:20, 5:31] = True
    options = {"mask": Raster(tissue, 8.0), "progress": False, "engine": "torch"}
    maps, counts = [], []
    for refine in (None, 0.3):
        model.encoder = Seen()
        maps.append(heatmap(slide, model, refine=refine, **options).values)
        counts.append(model.encoder.n)
    usual, refined = maps
    np.testing.assert_array_equal(np.isnan(refined), np.isnan(usual))
    coarse = heatmap(slide, model, refine=1.1, **options).values
    found = coarse >= 0.3
    assert 0 < found.sum() < 0.2 * np.isfinite(usual).sum()
    np.testing.assert_allclose(refined[found], usual[found], atol=1e-6)
    assert np.nanmax(np.abs(refined - usual)) > 0.001, "elsewhere it is the value of one patch"
    far = np.isfinite(usual) & ~cv2.dilate(found.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    np.testing.assert_array_equal(refined[far], coarse[far])
    assert counts[1] < 0.65 * counts[0]


def test_the_bar_of_a_refined_map_ends_where_it_said(slide):
    ticks = []
    job = inference.HeatmapJob(slide, bright_model(), mask=ALL, refine=0.5)
    said = job.n_left
    job.run(progress=ticks.append)
    assert (sum(ticks), job.n_left) == (said, 0)


class Seen(Brightness):
    """Counts patches."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += len(x)
        return super().forward(x)


class Slow(Brightness):
    """Takes its time, so that it can be killed at work."""

    def forward(self, x):
        time.sleep(0.004)
        return super().forward(x)


def slow_model():
    model = bright_model()
    model.encoder = Slow()
    return model


def slow_map(out, refine):
    torch.set_num_threads(1)  # a forked child has lost the threads of its parent
    heatmap(open_slide(PIXELS, mpp=0.5), slow_model(), mask=ALL, refine=refine, out=out, progress=False)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.parametrize("refine", [None, 0.49])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path, monkeypatch, refine):
    monkeypatch.setattr(inference, "BLOCK", (4, 8))
    monkeypatch.setattr(inference, "COMMIT_EVERY", 1)
    slow_map(tmp_path / "whole.npz", refine)
    rng, killed, out = np.random.default_rng(0), 0, tmp_path / "cut.npz"
    context = multiprocessing.get_context("fork")
    while not out.exists():
        child = context.Process(target=slow_map, args=(out, refine))
        child.start()
        child.join(rng.uniform(0.05, 0.3) if killed < 8 else 60)
        child.kill()  # SIGKILL: nothing is tidied up
        child.join()
        killed += child.exitcode != 0
    assert killed > 0
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    slow_map(out, refine)
    assert [p.name for p in tmp_path.glob("cut*npz")] == ["cut.npz"]


# The fast ways against the plain one -----------------------------------------------------------------------------


def plain_heatmap(slide, model, stride_px, **loading):
    """Every patch read on its own by a DataLoader, torch in float32, and the mean of the patches over each place."""
    size, mpp = model.size_px, model.mpp
    shape = [-(-n // stride_px) for n in slide.dimensions[::-1]]
    row, col = (v.ravel() for v in np.mgrid[-1 : shape[0], -1 : shape[1]])
    table = pd.DataFrame(
        {"slide_id": "s", "x_l0": col * stride_px, "y_l0": row * stride_px, "size_px": size, "mpp": mpp}
    )
    data = PatchDataset(table, {"s": slide}, label=None)
    loader = torch.utils.data.DataLoader(data, batch_size=50, collate_fn=list, **loading)
    total, count = np.zeros(shape), np.zeros(shape)
    with torch.no_grad():
        for items in loader:
            p = model(torch.stack([i["image"] for i in items])).softmax(1)[:, 1].numpy()
            for item, value in zip(items, p, strict=True):
                r, c = row[item["row"]], col[item["row"]]
                total[max(r, 0) : r + 2, max(c, 0) : c + 2] += value
                count[max(r, 0) : r + 2, max(c, 0) : c + 2] += 1
    return total / count


def small_network():
    torch.manual_seed(0)
    model = patch_classifier("small", classes=["a", "b"]).eval()
    model.mpp, model.size_px = 0.5, 32
    patches = VARIED[:384, :544].reshape(12, 32, 17, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    with torch.no_grad():  # batch norm learns what it will see, so that places differ
        model.train()
        for _ in range(20):
            model(torch.from_numpy(patches).permute(0, 3, 1, 2))
        model.head.weight.mul_(15)
    return model.eval()


@pytest.mark.parametrize(
    ("workers", "way"), [(0, None), (1, "fork"), (4, "fork"), pytest.param(1, "spawn", id="1-spawn")]
)
def test_the_fast_map_is_the_plain_map(workers, way):
    if way is not None and way not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {way} on this system")
    loading = {"num_workers": workers, "multiprocessing_context": way} if workers else {}
    slide = open_slide(VARIED, mpp=0.5)
    plain = plain_heatmap(slide, small_network(), 16, **loading)
    everywhere = Raster(np.ones((60, 80), bool), 8.0, origin_um=(-160.0, -160.0))
    for engine in ["torch", "auto", *(["openvino"] if importlib.util.find_spec("openvino") else [])]:
        fast = heatmap(slide, small_network(), mask=everywhere, min_tissue=0, engine=engine, progress=False)
        np.testing.assert_allclose(fast.values, plain, atol=1e-5 if engine == "torch" else 0.02)
    assert np.ptp(plain) > 0.2, "ten times the tolerance, or else nothing is shown"


@pytest.mark.parametrize("workers", [1, 4])
def test_threads_that_read_ahead_change_nothing(slide, monkeypatch, workers):
    monkeypatch.setattr(inference, "BLOCK", (3, 5))
    alone = heatmap(slide, bright_model(), mask=ALL, workers=0, progress=False)
    ahead = heatmap(slide, bright_model(), mask=ALL, workers=workers, progress=False)
    np.testing.assert_array_equal(ahead.values, alone.values)


def test_large_patches_make_small_blocks():
    assert inference._block_shape(64) == inference.BLOCK
    down, across = inference._block_shape(2048)
    assert 1 <= down * across * 2048**2 * 3 <= inference.BLOCK_BYTES


def test_another_mask_is_another_map(slide, tmp_path):
    out = tmp_path / "map.npz"
    heatmap(slide, bright_model(), mask=ALL, out=out, progress=False)
    less = np.ones((25, 35), bool)
    less[:, 20:] = False
    with pytest.raises(ValueError, match="holds a heatmap with mask"):
        heatmap(slide, bright_model(), mask=Raster(less, 8.0), out=out, progress=False)


def test_what_is_done_is_not_done_again_and_another_model_is_refused(slide, tmp_path):
    out = tmp_path / "map.npz"
    first = heatmap(slide, bright_model(), mask=ALL, out=out, progress=False)
    never = bright_model()
    never.encoder = Counting(0)
    np.testing.assert_array_equal(
        heatmap(slide, never, mask=ALL, out=out, progress=False).values, first.values
    )
    with pytest.raises(ValueError, match="holds a heatmap with model"):
        heatmap(slide, bright_model(gain=3.0), mask=ALL, out=out, progress=False)
    with pytest.raises(ValueError, match="stride_px = 16, asked for stride_px = 8"):
        heatmap(slide, bright_model(), mask=ALL, stride_px=8, out=out, progress=False)


def test_heatmaps_that_cannot_be(slide):
    with pytest.raises(SlideError, match=r"trained at 0\.25 µm/px, the slide's finest level has 0\.5"):
        heatmap(slide, bright_model(mpp=0.25), mask=ALL)
    with pytest.raises(ValueError, match="does not know its mpp"):
        heatmap(slide, bright_model(mpp=None), mask=ALL)
    with pytest.raises(ValueError, match="must divide the patch of 32 px, got 12"):
        heatmap(slide, bright_model(), mask=ALL, stride_px=12)
    with pytest.raises(ValueError, match="no class 'pink'"):
        heatmap(slide, bright_model(), mask=ALL, positive="pink")


def test_a_slide_without_tissue_is_all_unknown(slide):
    empty = Raster(np.zeros((25, 35), bool), 8.0)
    heat = heatmap(slide, bright_model(), mask=empty, progress=False)
    assert np.isnan(heat.values).all()
    assert slide_score(heat) == 0
    assert len(lesions(heat)) == 0


# Patches ---------------------------------------------------------------------------------------------------------


def test_predictions_follow_the_rows(slide):
    grid = patch_grid(slide, size_px=32, mpp=0.5, mask=ALL)
    predicted = predict_patches(bright_model(), grid, {slide.name: slide}, batch_size=7, progress=False)
    shuffled = grid.sample(frac=1, random_state=1)
    again = predict_patches(bright_model(), shuffled, {slide.name: slide}, batch_size=11, progress=False)
    pd.testing.assert_frame_equal(again.sort_index(), predicted, rtol=1e-5)
    brightness = slide.read_patches(grid).mean((1, 2, 3)) / 255
    np.testing.assert_allclose(predicted["p_bright"], 1 / (1 + np.exp(-8 * (brightness - 0.5))), atol=1e-5)
    assert ((predicted["p_bright"] > 0.5) == (predicted["predicted"] == "bright")).all()


def test_patches_of_another_resolution_are_predicted_with_a_warning_that_says_which(slide):
    patches = patch_grid(slide, size_px=32, mpp=1.0, mask=ALL)
    with pytest.warns(UserWarning, match=r"trained at 0\.5 µm/px, these patches have 1: .*mpp=0\.5"):
        predict_patches(bright_model(), patches, {slide.name: slide}, progress=False)
    with pytest.raises(ValueError, match="no patch to predict"):
        predict_patches(bright_model(), patches[:0], {slide.name: slide}, progress=False)


def test_outputs_of_pixels_are_those_of_the_network():
    pixels = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    model = bright_model()
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(outputs_of(model, pixels, batch_size=3, progress=False), expected, rtol=1e-5)


def test_features_are_those_of_the_encoder(slide):
    grid = patch_grid(slide, size_px=32, mpp=0.5, mask=ALL)[::-1].reset_index(drop=True)
    features = extract_features(slide, grid, load_encoder("colour"), batch_size=50, progress=False)
    direct = load_encoder("colour")(torch.from_numpy(slide.read_patches(grid)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features, direct, rtol=1e-4, atol=1e-5)
    assert extract_features(slide, grid[:0], load_encoder("colour")).shape == (0, 9)


def test_features_in_a_file_are_those_in_memory_and_a_stopped_run_goes_on(slide, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "COMMIT_EVERY", 2)
    grid = patch_grid(slide, size_px=32, mpp=0.5, mask=ALL)
    expected = extract_features(slide, grid, Counting(100), progress=False)
    path = tmp_path / "features" / "s.npy"
    with pytest.raises(KeyboardInterrupt):
        extract_features(slide, grid, Counting(5), out=path, progress=False)
    assert not path.exists()
    # Two blocks, of two batches each, were written and counted: they are not done again.
    survivor = Counting(100)
    assert inference.features_job(slide, grid, survivor, out=path).n_left == len(grid) - 128
    resumed = extract_features(slide, grid, survivor, out=path, progress=False)
    np.testing.assert_array_equal(resumed, expected)
    np.testing.assert_array_equal(np.load(path), expected)
    assert survivor.left == 100 - 4
    again = extract_features(slide, grid, Counting(0), out=path, progress=False)  # not run at all
    np.testing.assert_array_equal(again, expected)
    with pytest.raises(ValueError, match=r"s\.npy: holds features with patches"):
        extract_features(slide, grid[1:], Counting(100), out=path, progress=False)


class Colours(Encoder):
    """The mean of each channel."""

    name, dim, size_px = "colours", 3, 32

    def forward(self, x):
        return x.float().mean((2, 3))


def stained(strength, seed=0):
    """Haematoxylin and eosin in random amounts, `strength` times as much, above a strip of glass."""
    amounts = np.random.default_rng(seed).uniform(0.05, 0.45, (320, 320, 2)) * strength
    amounts[-32:] = 0
    return stain.combine(amounts, stain.HED[:2], white=245.0)


def test_a_slide_is_brought_to_the_stain_asked_for_whatever_way():
    pale, strong = (open_slide(stained(s), mpp=0.5) for s in (0.6, 1.2))
    target = stain.fit(strong)
    slides = {"pale": pale, "strong": strong}
    tables = [patch_grid(s, size_px=32, mpp=0.5, min_tissue=0, slide_id=i) for i, s in slides.items()]
    both = pd.concat(tables).sample(frac=1, random_state=0)  # slides of one batch in any order
    found = extract_features(slides, both, Colours(), stain=target, progress=False)
    for slide_id, slide in slides.items():
        rows = (both["slide_id"] == slide_id).to_numpy()
        pixels = stain.fit(slide).to(target)(slide.read_patches(both[rows]))
        np.testing.assert_allclose(found[rows], pixels.mean((1, 2)), atol=1e-3)
    means = [found[(both["slide_id"] == i).to_numpy()].mean() for i in slides]
    plain = [
        extract_features(s, t, Colours(), progress=False).mean()
        for s, t in zip((pale, strong), tables, strict=True)
    ]
    assert abs(means[0] - means[1]) < 5 < 20 < abs(plain[0] - plain[1])
    # A heatmap normalises regions, and a normaliser that is given is used as it is.
    model, mask = bright_model(), Raster(np.ones((20, 20), bool), 8.0)
    normalised = open_slide(stain.fit(pale).to(target)(stained(0.6)), mpp=0.5)
    expected = heatmap(normalised, model, mask=mask, progress=False)
    for way in (target, stain.fit(pale, mask=mask).to(target)):
        heat = heatmap(pale, model, mask=mask, stain=way, progress=False)
        np.testing.assert_allclose(heat.values[1:-1, 1:-1], expected.values[1:-1, 1:-1], atol=0.01)


def test_another_stain_is_another_map_and_a_slide_that_cannot_be_fitted_is_named(slide, tmp_path):
    model, path = bright_model(), tmp_path / "map.npz"
    pale = open_slide(stained(0.6), mpp=0.5)
    whole = Raster(np.ones((20, 20), bool), 8.0)
    heatmap(pale, model, mask=whole, stain=stain.REFERENCE, out=path, progress=False)
    with pytest.raises(ValueError, match="holds a heatmap with stain"):
        heatmap(pale, model, mask=whole, out=path, progress=False)
    blank = open_slide(np.full((320, 320, 3), 250, np.uint8), mpp=0.5)
    with pytest.raises(ValueError, match=r"array: its stain cannot be fitted.*normaliser"):
        heatmap(blank, model, mask=whole, stain=stain.REFERENCE, progress=False)


# Lesions ---------------------------------------------------------------------------------------------------------


def two_lesions():
    values = np.full((20, 30), 0.1, np.float32)
    values[2:6, 3:9] = 0.7
    values[4, 5] = 0.9
    values[12:14, 20:22] = 0.8
    values[0, 29] = np.nan
    return Raster(values, 16.0, origin_um=(100.0, 0.0), attrs={"slide": "s"})


def test_lesions_by_hand():
    found = lesions(two_lesions(), threshold=0.5)
    assert found["score"].tolist() == pytest.approx([0.9, 0.8])
    assert (found.loc[0, "x_um"], found.loc[0, "y_um"]) == (100 + 5.5 * 16, 4.5 * 16)
    assert found["area_um2"].tolist() == [24 * 256, 4 * 256]
    assert found["slide_id"].tolist() == ["s", "s"]
    assert len(lesions(two_lesions(), threshold=0.5, min_area_um2=2000)) == 1


def test_a_flat_summit_is_placed_in_the_middle_of_the_lesion():
    values = np.full((20, 30), 0.1, np.float32)
    values[5:12, 6:19] = 0.985
    values[5, 6] = 0.99  # higher by a hair, in a corner
    place = lesions(Raster(values, 1.0)).iloc[0]
    assert (place["x_um"], place["y_um"], place["score"]) == (12.5, 8.5, pytest.approx(0.99))
    values[5, 6], values[6, 6] = 1.0, 0.9  # a summit of its own: the place stays there
    place = lesions(Raster(np.where(values == np.float32(0.985), np.float32(0.97), values), 1.0)).iloc[0]
    assert (place["x_um"], place["y_um"]) == (6.5, 5.5)


@pytest.mark.parametrize("seed", range(5))
def test_a_looser_threshold_covers_more(seed):
    values = np.random.default_rng(seed).random((30, 30)).astype(np.float32)
    areas = [lesions(Raster(values, 8.0), threshold=t)["area_um2"].sum() for t in (0.2, 0.5, 0.8)]
    assert areas == sorted(areas, reverse=True)
    assert areas[1] == (values >= 0.5).sum() * 64


def test_slide_scores_by_hand():
    assert slide_score(two_lesions()) == pytest.approx(0.9)
    assert slide_score(two_lesions(), top=3) == pytest.approx((0.9 + 0.8 + 0.8) / 3)
    with pytest.raises(ValueError, match="at least 1"):
        slide_score(two_lesions(), top=0)


def test_candidates_name_their_slides():
    table = candidates({"a": two_lesions(), "b": two_lesions()}, threshold=0.75)
    assert table["slide_id"].tolist() == ["a", "a", "b", "b"]


def test_hard_examples_are_those_whose_own_class_is_least_likely():
    values = np.array([10, 60, 120, 180, 250], np.uint8)
    pixels = np.repeat(values, 32)[None, :, None].repeat(32, 0).repeat(3, 2)
    slide, whole = open_slide(pixels, mpp=0.5), Raster(np.ones((2, 10), bool), 8.0)
    table = patch_grid(slide, size_px=32, mpp=0.5, mask=whole).assign(label="dark")
    hard = inference.hard_examples(bright_model(), table, 2, slides={slide.name: slide}, progress=False)
    assert hard["x_l0"].tolist() == [128, 96]  # the brightest, brightest first
    assert (hard["p_label"] < 0.5).all()
    with pytest.raises(ValueError, match="at least 1"):
        inference.hard_examples(bright_model(), table, 0, slides={})


def test_map_features_of_a_map_worked_out_by_hand():
    values = np.full((4, 6), 0.1, np.float32)
    values[0, :3] = 0.95  # a place of three pixels
    values[3, 5] = 0.6  # and one of one, above 0.5 only
    values[2, 0] = np.nan
    found = inference.map_features({"a": Raster(values, 10.0), "b": Raster(np.full((2, 2), np.nan), 10.0)})
    a, b = found.loc["a"], found.loc["b"]
    assert a["top1"] == pytest.approx(0.95)
    assert a["share_0.5"] == pytest.approx(4 / 23)
    assert (a["places_0.5"], a["places_0.9"]) == (2, 1)
    assert a["largest_um2_0.9"] == 300
    assert a["longest_um_0.9"] == pytest.approx(np.hypot(3, 1) * 10)
    assert a["mean_0.5"] == pytest.approx(0.95)
    assert (b == 0).all()
