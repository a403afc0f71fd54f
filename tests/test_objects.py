"""Objects: metrics on cases done on paper and against independent implementations; parts of maps; morphology."""

from __future__ import annotations

import geopandas
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import measure

from pathkit.objects import (
    class_counts,
    climb,
    counts,
    errors,
    instance_scores,
    labels_of,
    match,
    mean_pq,
    morphology,
    otsu_nuclei,
    outlines,
    overlap,
    panoptic_quality,
)
from pathkit.slide import open_slide
from pathkit.stain import separate
from pathkit.tables import check_objects


def strip(*runs: tuple[int, int]) -> np.ndarray:
    """A map of one row: (label, length), ..."""
    return np.repeat([label for label, _ in runs], [n for _, n in runs])[None]


ONE = strip((1, 8), (0, 4))
TWO = strip((1, 4), (2, 4), (0, 4))
NONE = strip((0, 12))


def close(rows, **expected):
    got = instance_scores(rows)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, nan_ok=True), name


# On paper ----------------------------------------------------------------------------------------------------------


def test_merged_two_nuclei_found_as_one():
    # IoU is 4/8 with each: exactly 0.5 is no match. AJI takes the found one twice, AJI+ once.
    close(counts(TWO, ONE), dice=1, f1=0, pq=0, sq=np.nan, aji=8 / 16, aji_plus=4 / 12, object_dice=2 / 3)


def test_split_one_nucleus_found_as_two():
    found = strip((1, 5), (2, 3), (0, 4))
    truth_half, found_half = 10 / 13, 5 / 8 * 10 / 13 + 3 / 8 * 6 / 11
    close(
        counts(ONE, found),
        dice=1, f1=2 / 3, dq=2 / 3, sq=5 / 8, pq=5 / 12, aji=5 / 11, aji_plus=5 / 11,
        object_dice=(truth_half + found_half) / 2,
    )  # fmt: skip


def test_aji_takes_the_greatest_iou_not_the_greatest_overlap():
    # Of truth (10 px) the large found one holds 6, IoU 6/24; the small one 4, IoU 4/10: AJI takes the small one.
    truth = strip((0, 14), (1, 10))
    found = strip((1, 20), (2, 4))
    close(counts(truth, found), aji=4 / (10 + 20))


def test_empty_prediction_is_zero_and_empty_truth_too():
    for rows in (counts(TWO, NONE), counts(NONE, TWO)):
        close(rows, dice=0, f1=0, pq=0, aji=0, aji_plus=0, object_dice=0, sq=np.nan)


def test_nothing_to_find_and_nothing_found_is_no_number():
    assert all(np.isnan(v) for v in instance_scores(counts(NONE, NONE)).values())


def test_pooling_adds_images_and_leaves_empty_ones_without_weight():
    rows = pd.DataFrame([counts(ONE, ONE), counts(TWO, ONE), counts(NONE, NONE)])
    close(rows, f1=1 / (1 + 1.5), pq=1 / 2.5, dice=1, aji=(8 + 8) / (8 + 16))


def test_a_class_that_is_missing_is_left_out_and_one_only_predicted_is_zero():
    table = class_counts(TWO, TWO, {1: "a", 2: "b"}, {1: "a", 2: "c"}, ["a", "b", "c", "d"])
    scores = {r["class"]: instance_scores(r.drop("class").to_dict())["pq"] for _, r in table.iterrows()}
    assert scores["a"] == 1
    assert scores["b"] == scores["c"] == 0
    assert np.isnan(scores["d"])
    assert mean_pq(table) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="true object 2 has class None"):
        class_counts(TWO, TWO, {1: "a"}, {1: "a", 2: "a"}, ["a"])


def test_errors_name_their_kind():
    truth = strip((1, 4), (2, 4), (0, 2), (3, 9), (0, 2), (4, 5), (0, 2), (5, 10), (0, 8), (6, 6))
    found = strip((1, 8), (0, 2), (4, 4), (5, 5), (0, 9), (8, 4), (0, 9), (7, 3), (0, 2), (6, 6))
    table = errors(truth, found, mpp=2.0)
    kinds = {(r.kind, r.truth or r.found) for r in table.itertuples()}
    # 3 is split in 4 and 5 of its 9 pixels: the larger is a match (IoU 5/9), so it is none of the errors.
    assert kinds == {("merged", 1), ("merged", 2), ("missed", 4), ("poor outline", 5), ("extra", 7)}
    assert table.set_index("truth").loc[4, "x_um"] == pytest.approx(2 * (21 + 2.5))
    halves = errors(strip((1, 8)), strip((1, 4), (2, 4)))
    assert halves["kind"].tolist() == ["split"]
    assert len(errors(ONE, ONE)) == 0


# Independent implementations ---------------------------------------------------------------------------------------


def maps(seed: int, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Blobs, and the same with some lost, moved and merged."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(6, size - 6, (25, 2))
    y, x = np.indices((size, size))
    truth, found = np.zeros((2, size, size), int)
    for k, (r, c) in enumerate(centres, start=1):
        radius = rng.uniform(3, 7)
        truth[(y - r) ** 2 + (x - c) ** 2 < radius**2] = k
        if k % 5:
            shift = rng.normal(0, 1.5, 2)
            found[(y - r - shift[0]) ** 2 + (x - c - shift[1]) ** 2 < radius**2] = k - (k % 7 == 0)
    return truth, found


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_is_that_of_monai_and_torchmetrics(seed):
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_panoptic_quality
    from torchmetrics.detection import PanopticQuality

    truth, found = maps(seed)
    ours = panoptic_quality(truth, found)
    numbered = (np.unique(m, return_inverse=True)[1].reshape(m.shape) for m in (found, truth))
    relabelled = [torch.from_numpy(m) for m in numbered]
    assert ours == pytest.approx(float(compute_panoptic_quality(*relabelled, metric_name="pq")), abs=1e-5)
    metric = PanopticQuality(things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)
    found_map, truth_map = (torch.stack([(m > 0).long(), m.long()], -1)[None] for m in relabelled)
    of_nuclei = metric(found_map, truth_map)[0]
    scores = instance_scores(counts(truth, found))
    assert [scores[k] for k in ("pq", "sq", "dq")] == pytest.approx(of_nuclei.tolist(), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_aji_and_object_dice_are_those_of_a_plain_loop(seed):
    truth, found = maps(seed)
    both = union = 0
    used = set()
    for t in np.unique(truth)[1:]:
        a = truth == t
        ious = {f: (a & (found == f)).sum() / (a | (found == f)).sum() for f in np.unique(found)[1:]}
        f = max(ious, key=lambda k: ious[k])
        if ious[f] == 0:
            union += a.sum()
            continue
        both, union = both + (a & (found == f)).sum(), union + (a | (found == f)).sum()
        used.add(f)
    union += sum((found == f).sum() for f in np.unique(found)[1:] if f not in used)

    def half(first, second):
        total = 0.0
        for k in np.unique(first)[1:]:
            a = first == k
            inside = np.bincount(second[a], minlength=second.max() + 1)
            inside[0] = 0
            if inside.any():
                b = second == inside.argmax()
                total += a.sum() * 2 * (a & b).sum() / (a.sum() + b.sum())
        return total / (first > 0).sum()

    close(counts(truth, found), aji=both / union, object_dice=(half(truth, found) + half(found, truth)) / 2)


@given(st.integers(0, 30), st.floats(0, 0.49))
def test_matches_are_one_to_one_at_any_iou(seed, iou):
    truth, found = maps(seed, 48)
    pairs = match(overlap(truth, found), iou=iou)
    assert pairs["truth"].is_unique
    assert pairs["found"].is_unique
    assert (pairs["iou"] > iou).all()
    assert len(pairs) >= len(match(overlap(truth, found)))


def test_labels_need_not_be_consecutive_and_names_do_not_matter():
    truth, found = maps(0)
    other = np.where(truth > 0, truth.astype(np.int64) * 10**12 + 7, 0)
    assert counts(other, found) == counts(truth, found)


# Instances and what they look like -----------------------------------------------------------------------------------


def test_climb_parts_touching_discs_and_does_not_depend_on_the_window():
    y, x = np.indices((60, 90))
    depth = np.maximum(1 - np.hypot(y - 30, x - 30) / 14, 1 - np.hypot(y - 30, x - 54) / 14)
    labels, summits = climb(depth, depth > 0)
    assert summits.tolist() == [[30, 30], [30, 54]]
    assert set(np.unique(labels[:, :40])) == {0, 1}
    assert set(np.unique(labels[:, 45:])) == {0, 2}
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 5, (60, 90))  # many of equal height
    whole, tops = climb(rough, rough > 0)
    part, there = climb(rough[20:, 10:], rough[20:, 10:] > 0)
    inner = (slice(30, 45), slice(30, 70))
    ours = whole[inner]
    theirs = part[inner[0].start - 20 : inner[0].stop - 20, inner[1].start - 10 : inner[1].stop - 10]
    assert np.array_equal(ours > 0, theirs > 0)
    on = ours > 0
    assert np.array_equal(tops[ours[on] - 1], there[theirs[on] - 1] + (20, 10))


def test_summits_with_a_shallow_saddle_are_one():
    depth = np.array([[0, 4, 6, 5, 7, 3, 2, 8, 0]])
    labels, summits = climb(depth, depth > 0, reach_px=1)
    assert summits[:, 1].tolist() == [2, 4, 7]
    labels, summits = climb(
        depth, depth > 0, reach_px=1, least_drop=2
    )  # 6 to 7 by way of 5 descends by 1, 7 to 8 by 5
    assert summits[:, 1].tolist() == [4, 7]
    assert labels.tolist() == [[0, 1, 1, 1, 1, 1, 2, 2, 0]]


def test_morphology_is_that_of_scikit_image():
    truth, _ = maps(3)
    rgb = np.random.default_rng(0).integers(60, 250, (*truth.shape, 3)).astype(np.uint8)
    table = check_objects(morphology(truth, rgb, mpp=0.5, slide_id="a", origin_um=(100, 50)))
    wanted = [
        "label",
        "area",
        "centroid",
        "eccentricity",
        "axis_major_length",
        "intensity_mean",
        "orientation",
    ]
    facts = measure.regionprops_table(truth, separate(rgb), properties=wanted)
    assert table["label"].tolist() == facts["label"].tolist()
    for ours, theirs in (
        (table["area_um2"], facts["area"] / 4),
        (table["eccentricity"], facts["eccentricity"]),
        (table["major_um"], facts["axis_major_length"] / 2),
        (table["x_um"], 100 + (facts["centroid-1"] + 0.5) / 2),
        (table["y_um"], 50 + (facts["centroid-0"] + 0.5) / 2),
        (table["dab"], facts["intensity_mean-2"]),
    ):
        assert ours.to_numpy() == pytest.approx(theirs, rel=1e-4)
    # scikit-image measures from the row axis, here it is from the x axis upwards.
    turned = (np.degrees(facts["orientation"]) + 90 + 90) % 180 - 90
    away = np.abs((table["orientation"].to_numpy() - turned + 90) % 180 - 90)
    assert away[table["eccentricity"] > 0.4].max() < 0.1


def test_outlines_lie_where_the_objects_do_and_have_their_area():
    y, x = np.indices((60, 80))
    discs = np.select([np.hypot(y - r, x - c) < n for r, c, n in ((20, 20, 9), (40, 55, 12))], [3, 8])
    shapes = outlines(discs, scale=4.0, origin_l0=(40, 80), classes={3: "a", 8: "b"})
    assert isinstance(shapes, geopandas.GeoDataFrame)
    assert shapes["class"].tolist() == ["a", "b"]
    assert (shapes.area / 16).tolist() == pytest.approx([(discs == 3).sum(), (discs == 8).sum()], rel=0.02)
    slide = open_slide(np.zeros((400, 400, 3), np.uint8), mpp=0.25)
    again = labels_of(shapes, slide=slide, mpp=1.0)[20:80, 10:90]
    assert (again != np.select([discs == 3, discs == 8], [1, 2])).mean() < 0.005
    middles = np.column_stack([shapes.centroid.x, shapes.centroid.y])
    assert middles == pytest.approx(np.array([[20.5, 20.5], [55.5, 40.5]]) * 4 + (40, 80), abs=0.3)


def test_otsu_nuclei_finds_painted_discs_and_nothing_on_glass():
    rgb = np.full((80, 120, 3), 235, np.uint8)
    y, x = np.indices((80, 120))
    for c in (25, 48, 90):
        rgb[np.hypot(y - 40, x - c) < 11] = (90, 70, 150)
    found = otsu_nuclei(rgb, mpp=0.5)
    assert found.max() == 3
    assert otsu_nuclei(np.full((40, 40, 3), 240, np.uint8), mpp=0.5).max() == 0


def test_no_object_gives_an_empty_table_with_all_columns():
    empty = morphology(np.zeros((5, 5), int), np.zeros((5, 5, 3), np.uint8), mpp=1.0)
    assert len(empty) == 0
    assert "texture" in empty
    assert len(outlines(np.zeros((5, 5), int))) == 0


def test_bad_input_is_told_apart():
    with pytest.raises(ValueError, match=r"one size, got \(1, 12\) and \(1, 8\)"):
        overlap(ONE, strip((1, 8)))
    with pytest.raises(ValueError, match="make instances first"):
        overlap(ONE > 0, ONE)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        match(overlap(ONE, ONE), iou=1.0)
    with pytest.raises(ValueError, match="object 2 has no class"):
        morphology(TWO, mpp=1.0, classes={1: "a"})
    with pytest.raises(ValueError, match="mpp above 0"):
        morphology(TWO, mpp=0.0)
