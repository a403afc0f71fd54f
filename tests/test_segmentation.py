"""Segmentation: what the network sees, learning on painted discs, and slides without seams."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from pathkit import segmentation
from pathkit.geometry import Raster
from pathkit.objects import counts, instance_scores
from pathkit.segmentation import (
    MARGIN_PX,
    Segmenter,
    best_scale,
    class_map,
    fit_segmenter,
    load_segmenter,
    save_segmenter,
    segment,
    segment_slide,
    separated,
    targets,
    trusted,
)
from pathkit.slide import open_slide
from pathkit.tables import check_objects

SMALL = (4, 4, 4, 4, 4, 4)


def discs(seed: int, size: int = 96, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A picture of blue and red discs on pink, some touching, and their instances; blue are even."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size, size))
    instances = np.zeros((size, size), np.int32)
    rgb = np.full((size, size, 3), (235, 190, 215), float)
    for k in range(1, n + 1):
        r, c = rng.uniform(4, size - 4, 2)
        inside = np.hypot(y - r, x - c) < rng.uniform(6, 8)
        if (instances[inside] > 0).mean() > 0.1:
            continue
        instances[inside] = k
        rgb[inside] = (70, 60, 150) if k % 2 == 0 else (150, 50, 80)
    return np.clip(rgb + rng.normal(0, 6, rgb.shape), 0, 255).astype(np.uint8), instances


@pytest.fixture(scope="module")
def learnt() -> Segmenter:
    images, instances = (np.stack(v) for v in zip(*(discs(k) for k in range(24)), strict=True))
    kinds = [{int(k): "blue" if k % 2 == 0 else "red" for k in np.unique(i) if k} for i in instances]
    classes = np.stack([class_map(i, k, ("blue", "red")) for i, k in zip(instances, kinds, strict=True)])
    torch.manual_seed(0)
    model = Segmenter(("blue", "red"), features=(8, 8, 8, 8, 8, 8))
    history = fit_segmenter(
        model,
        images,
        instances,
        mpp=0.5,
        classes=classes,
        epochs=16,
        batch_size=8,
        crop_px=64,
        lr=1e-2,
        progress=False,
    )
    assert history["loss"].iloc[-1] < 0.6 * history["loss"].iloc[0]
    return model


def test_the_margin_is_more_than_the_network_sees():
    model = Segmenter(features=SMALL).eval()
    x = torch.randn(1, 3, 320, 320, requires_grad=True)
    out = model(x)
    for place in range(152, 168, 3):
        seen = torch.autograd.grad(out[0, :, place, place].sum(), x, retain_graph=True)[0].abs().sum((0, 1))
        where = torch.nonzero(seen)
        assert (where - place).abs().max() <= MARGIN_PX


def test_targets_of_a_disc_rise_to_its_middle():
    _, instances = discs(3)
    inside, depth, border = targets(instances).astype(float)
    assert np.array_equal(inside > 0, instances > 0)
    assert ((depth > 0) == (instances > 0)).all()
    for k in np.unique(instances)[1:]:
        assert depth[instances == k].max() == pytest.approx(1, abs=1e-3)
    assert border[instances == 0].max() == 0


def three_discs() -> tuple[np.ndarray, np.ndarray]:
    """Discs of radius 10, two of which nearly touch, and the maps of a network that knows them."""
    true = np.zeros((60, 90), np.int64)
    rows, cols = np.mgrid[:60, :90]
    for k, (r, c) in enumerate(((20, 20), (20, 41), (40, 70)), start=1):
        true[np.hypot(rows - r, cols - c) < 10] = k
    return true, np.round(targets(true).astype(float) * 255).astype(np.uint8)


def test_objects_that_the_maps_mean_are_trusted_more_than_merged_cut_or_missing_ones():
    true, maps = three_discs()
    width = 2 * np.sqrt((true == 1).sum() / np.pi)
    best = trusted(maps, true, width_px=width)
    assert best > 0.99
    merged = np.where(true == 2, 1, true)
    cut = np.where((true == 3) & (np.arange(60)[:, None] > 40), 4, true)
    missing = np.where(true == 3, 0, true)
    for labels in (merged, cut, missing):
        assert trusted(maps, labels, width_px=width) < best - 0.05
    assert trusted(maps, true, width_px=2 * width) == pytest.approx(best - 0.2 * np.log(2))
    assert trusted(maps, np.zeros_like(true), width_px=width) == 0


def test_the_best_scale_is_the_one_whose_maps_mean_objects_of_the_known_width():
    _, meant = three_discs()
    blurred = np.stack([ndimage.gaussian_filter(m.astype(float), 6) for m in meant]).astype(np.uint8)
    nothing = np.zeros_like(meant)
    maps, width = best_scale({2.0: blurred, 1.0: meant, 0.5: nothing}, width_px=20)
    assert width == 20
    np.testing.assert_array_equal(maps, np.rint(blurred / 4 + meant / 2 + nothing / 4))
    maps, width = best_scale({2.0: blurred, 4.0: meant}, width_px=80)  # at the end there is one neighbour
    assert width == 20
    np.testing.assert_array_equal(maps, np.rint(blurred / 3 + meant / 1.5))
    assert not best_scale({1.0: nothing, 2.0: nothing}, width_px=20)[0].any()


def test_learns_discs_and_their_class(learnt):
    rows, right, total = [], 0, 0
    for seed in range(100, 104):
        rgb, instances = discs(seed)
        found = segment(learnt, rgb, mpp=0.5)
        rows.append(counts(instances, found.labels))
        for k, name in found.classes.items():
            under = np.bincount(instances[found.labels == k]).argmax()
            right, total = right + (under > 0 and name == ("blue" if under % 2 == 0 else "red")), total + 1
    assert instance_scores(pd.DataFrame(rows))["pq"] > 0.5
    assert right / total > 0.8


def test_the_more_a_summit_must_stand_out_the_fewer_there_are_on_the_same_pixels(learnt):
    rgb, _ = discs(101)
    found = [segment(learnt, rgb, mpp=0.5, least_drop=drop).labels for drop in (0.0, 0.03, 0.3, 0.9)]
    numbers = [labels.max() for labels in found]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] < numbers[0]
    assert ((found[-1] > 0) >= (found[1] > 0)).all()


def test_saved_and_loaded_gives_the_same(learnt, tmp_path):
    other = load_segmenter(save_segmenter(learnt, tmp_path / "model.pt"))
    rgb, _ = discs(7)
    assert np.array_equal(segment(other, rgb, mpp=0.5).labels, segment(learnt, rgb, mpp=0.5).labels)
    assert (other.mpp, other.width_px, other.classes) == (learnt.mpp, learnt.width_px, learnt.classes)
    (tmp_path / "text.pt").write_text("no model")
    with pytest.raises(ValueError, match="not a segmenter"):
        load_segmenter(tmp_path / "text.pt")


def test_another_mpp_is_said_and_an_unknown_one_found(learnt):
    rgb, instances = discs(8)
    with pytest.warns(UserWarning, match=r"trained at 0\.5 µm/px, the field has 0\.25"):
        segment(learnt, rgb, mpp=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = segment(learnt, rgb, mpp=0.5)
    unknown = segment(learnt, np.kron(rgb, np.ones((2, 2, 1), np.uint8)), mpp=None)
    assert unknown.labels.shape == (192, 192)
    assert len(unknown.classes) == pytest.approx(len(known.classes), abs=4)
    assert instances.max() > 0


class Painter(torch.nn.Module):
    """Stands for a trained network: an object is where it is dark, deep where it is dark around."""

    def forward(self, x):
        dark = -x.mean(1, keepdim=True)
        deep = torch.nn.functional.avg_pool2d(dark, 9, 1, 4, count_include_pad=False)
        return torch.cat([6 * dark - 3, 2 * deep, torch.full_like(dark, -9)], 1)


@pytest.fixture(scope="module")
def painter() -> Segmenter:
    model = Segmenter(features=SMALL)
    model.network = Painter()
    model.anchor = torch.nn.Parameter(torch.zeros(1))
    model.mpp, model.width_px = 0.5, 14.0
    return model.eval()


@pytest.fixture(scope="module")
def slide():
    rgb, instances = discs(1, size=960, n=900)
    return open_slide(rgb, mpp=0.5), instances


def sorted_table(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["y_um", "x_um"], kind="stable").reset_index(drop=True)


def test_the_same_nuclei_whatever_the_tiling(painter, slide, monkeypatch):
    picture, instances = slide
    mask = Raster(np.ones((60, 60), bool), 8.0)
    whole = sorted_table(segment_slide(picture, painter, mask=mask, tile_px=(960, 960), progress=False))
    for tile in ((200, 130), (333, 960), (960, 77)):
        tiled = sorted_table(segment_slide(picture, painter, mask=mask, tile_px=tile, progress=False))
        pd.testing.assert_frame_equal(whole, tiled, check_exact=False, rtol=1e-6)
    check_objects(whole)
    found = len(np.unique(instances)) - 1
    assert 0.6 * found < len(whole) < 1.4 * found
    monkeypatch.setattr(segmentation, "WINDOW_PX", 512)  # other windows for the network too
    windows = sorted_table(segment_slide(picture, painter, mask=mask, tile_px=(500, 300), progress=False))
    pd.testing.assert_frame_equal(whole, windows, check_exact=False, rtol=1e-6)


@pytest.mark.parametrize("tile", [(200, 130), (150, 960), (960, 300)])
def test_the_same_nuclei_whatever_the_bands(painter, slide, monkeypatch, tile):
    options = {"mask": Raster(np.ones((60, 60), bool), 8.0), "tile_px": tile, "progress": False}
    whole = sorted_table(segment_slide(slide[0], painter, **options))
    for band in (150, 500):
        monkeypatch.setattr(segmentation, "BAND_PX", band)
        banded = sorted_table(segment_slide(slide[0], painter, **options))
        pd.testing.assert_frame_equal(whole, banded, check_exact=False, rtol=1e-6)


def test_what_is_held_of_a_slide_does_not_grow_with_its_width(painter, monkeypatch):
    """A law in bytes: strips of a slide eight times as wide hold as much as those of one band."""
    monkeypatch.setattr(segmentation, "BAND_PX", 1000)
    most = []
    strip = segmentation._Strips._strip

    def counted(self, k):
        made = strip(self, k)
        most[-1] = max(most[-1], sum(a.nbytes for a in (*made, *(b for v in self.kept.values() for b in v))))
        return made

    monkeypatch.setattr(segmentation._Strips, "_strip", counted)
    for width in (1000, 8000):
        most.append(0)
        glass = open_slide(np.full((1500, width, 3), 244, np.uint8), mpp=0.5)
        mask = Raster(np.zeros((94, width // 16), bool), 8.0)
        segment_slide(glass, painter, mask=mask, tile_px=(500, 400), progress=False)
    assert most[1] <= 1.5 * most[0]


def test_a_stopped_run_goes_on_to_the_same_table(painter, slide, tmp_path, monkeypatch):
    picture, _ = slide
    mask, out = Raster(np.ones((60, 60), bool), 8.0), tmp_path / "objects.parquet"
    options = {"mask": mask, "tile_px": (400, 250), "progress": False}
    whole = segment_slide(picture, painter, **options)
    add = segmentation._Parts.add

    def stops(self, number, table):
        if number == 2:
            raise KeyboardInterrupt
        add(self, number, table)

    with monkeypatch.context() as broken:
        broken.setattr(segmentation._Parts, "add", stops)
        with pytest.raises(KeyboardInterrupt):
            segment_slide(picture, painter, out=out, **options)
    assert not out.exists()
    again = segment_slide(picture, painter, out=out, **options)
    pd.testing.assert_frame_equal(sorted_table(whole), sorted_table(again), check_exact=False, rtol=1e-6)
    assert not out.with_suffix(".parts").exists()
    assert len(segment_slide(picture, painter, out=out, **options)) == len(whole)
    with pytest.raises(ValueError, match="tile_px"):
        segment_slide(picture, painter, out=out, mask=mask, tile_px=(300, 250), progress=False)


def test_a_slide_without_tissue_gives_an_empty_table_with_all_columns(painter):
    glass = open_slide(np.full((300, 400, 3), 244, np.uint8), mpp=0.5)
    table = segment_slide(glass, painter, mask=Raster(np.zeros((19, 25), bool), 8.0), progress=False)
    assert len(table) == 0
    check_objects(table)


def test_bad_input_names_the_way_out(painter):
    images, instances = (v[None] for v in discs(0))
    with pytest.raises(ValueError, match="untrained"):
        segment(Segmenter(features=SMALL), images[0], mpp=0.5)
    with pytest.raises(ValueError, match="nothing to learn"):
        fit_segmenter(Segmenter(features=SMALL), images, np.zeros_like(instances), mpp=0.5, crop_px=64)
    with pytest.raises(ValueError, match="multiple of 16"):
        fit_segmenter(Segmenter(features=SMALL), images, instances, mpp=0.5, crop_px=60)
    two = Segmenter(("a", "b"), features=SMALL)
    with pytest.raises(ValueError, match="give classes="):
        fit_segmenter(two, images, instances, mpp=0.5, crop_px=64)
    with pytest.raises(ValueError, match="class 'b' has no example"):
        fit_segmenter(
            two,
            images,
            instances,
            mpp=0.5,
            crop_px=64,
            classes=np.where(instances > 0, 0, 255).astype(np.uint8),
        )
    with pytest.raises(ValueError, match="object 1 has class None"):
        class_map(np.array([[0, 1]]), {}, ("a",))
    assert separated(np.zeros((3, 32, 32), np.uint8), width_px=10)[0].max() == 0


@pytest.mark.parametrize("tissue", [0.4, 0.0])
def test_the_light_of_a_slide_is_that_of_its_tissues_pixels_however_it_is_counted(monkeypatch, tissue):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 420, 3), dtype=np.uint8)
    mask = Raster(rng.random((150, 210)) < tissue, 8.0)
    chosen = pixels[np.kron(mask.values, np.ones((2, 2), bool))] if tissue else pixels.reshape(-1, 3)
    for at_once in (10**9, 5_000):
        monkeypatch.setattr(segmentation, "LIGHT_PIXELS", at_once)
        mean, spread = segmentation._slide_light(open_slide(pixels, mpp=4.0), mask)
        np.testing.assert_allclose(mean.flatten(), chosen.mean(0), rtol=1e-6)
        assert float(spread) == pytest.approx(chosen.std(ddof=1), rel=1e-6)
