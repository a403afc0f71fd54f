"""Quality: each score finds its own artefact, and slides that cannot be read are refused with the reason."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pathkit.annotations import read_annotations, write_annotations
from pathkit.metrics import iou
from pathkit.quality import (
    FOCUS,
    RULES,
    SCORES,
    SPOILT,
    Rule,
    artefact_auc,
    artefact_shares,
    focus,
    judge,
    patch_quality,
    slide_quality,
)
from pathkit.slide import open_slide
from pathkit.synthetic import SITES, Artefact, lymph_node, scan
from pathkit.synthetic.artefacts import artefact_frame, artefact_mask
from pathkit.synthetic.tissues import LABELS
from pathkit.tissue import tissue_mask

SIZE_UM = (1000.0, 800.0)
NODE = lymph_node(5, size_um=SIZE_UM)
#: One of each, in a place of its own.
DIRT = (
    Artefact("fold", shapely.LineString([(250, 200), (420, 260)]).buffer(25), 1.2),
    Artefact("tear", shapely.LineString([(560, 230), (720, 300)]).buffer(20)),
    Artefact("out of focus", shapely.Point(330, 560).buffer(110), 4.0),
    Artefact("bubble", shapely.Point(650, 560).buffer(90)),
    Artefact("pen", shapely.LineString([(450, 60), (480, 740)]).buffer(40), 0.85, "blue"),
    Artefact("dust", shapely.MultiPoint([(250, 390), (290, 420), (340, 380)]).buffer(10), 0.85),
    Artefact("scratch", shapely.LineString([(520, 420), (800, 400)]).buffer(4), 0.8),
)


def scanned(*artefacts, site="north"):
    return scan(NODE, SITES[site], (0, 0), (1000, 800), artefacts=artefacts)


@pytest.fixture(scope="module")
def clean():
    return scanned()


def scores(pixels):
    return patch_quality(open_slide(pixels, mpp=1.0))


def same_places(before, after):
    keys = ["x_l0", "y_l0"]
    return before.merge(after, on=keys, suffixes=("_before", ""))


# Focus -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", FOCUS)
@given(x=st.integers(150, 700), y=st.integers(150, 500), step=st.floats(1.3, 2.5))
@settings(max_examples=12)
def test_more_blur_is_less_focus_by_every_measure(clean, measure, x, y, step):
    patch = clean[y : y + 128, x : x + 128]
    sigmas = [0.6, 0.6 * step, 0.6 * step**2]
    blurred = np.stack([patch, *(cv2.GaussianBlur(patch, (0, 0), s) for s in sigmas)])
    assert (np.diff(focus(blurred, measure=measure)) < 0).all()


@pytest.mark.parametrize("measure", FOCUS)
def test_turning_and_mirroring_do_not_change_focus(clean, measure):
    patch = clean[300:428, 300:428]
    turned = np.stack([patch, patch[::-1], patch[:, ::-1], patch.transpose(1, 0, 2), np.rot90(patch)])
    values = focus(turned, measure=measure)
    np.testing.assert_allclose(values, values[0], rtol=0.01)


def test_a_grey_filter_over_the_slide_does_not_change_focus(clean):
    patch = clean[300:428, 300:428].astype(float)
    darker = np.stack([patch, patch * 0.7]).round().astype(np.uint8)
    bright, dark = focus(darker)
    assert dark == pytest.approx(bright, rel=0.1)


def test_focus_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="no measure 'sobel'"):
        focus(np.zeros((1, 8, 8, 3), np.uint8), measure="sobel")
    with pytest.raises(ValueError, match=r"pixels\[None\]"):
        focus(np.zeros((8, 8, 3), np.uint8))


# Artefacts -------------------------------------------------------------------------------------------------------


def test_a_pen_stroke_over_tissue_raises_pen_and_nothing_else(clean):
    before = scores(clean)
    stroke = Artefact("pen", shapely.LineString([(450, 220), (480, 580)]).buffer(40), 0.85, "blue")
    both = same_places(before, scores(scanned(stroke)))
    under = both["pen"] > 0.3
    assert under.sum() >= 3
    assert (both["pen_before"] == 0).all()
    for score in ("fold", "bubble", "dust", "scratch", "tear"):
        newly = (both[score] > SPOILT[score]) & (both[f"{score}_before"] <= SPOILT[score])
        assert not newly.any(), score
    assert (both["blur"] - both["blur_before"]).max() < 1.5


@pytest.mark.parametrize("colour", ["blue", "green", "black", "red"])
def test_every_ink_is_found_on_glass_and_tissue(colour):
    stroke = shapely.LineString([(450, 60), (480, 740)]).buffer(40)
    table = scores(scanned(Artefact("pen", stroke, 0.85, colour)))
    under = artefact_shares(table, artefact_frame([Artefact("pen", stroke, 1.0, colour)], 1.0), slide_mpp=1.0)
    assert np.abs(table["pen"] - under["pen"]).max() < 0.25
    assert np.corrcoef(table["pen"], under["pen"])[0, 1] > 0.95


@pytest.mark.parametrize("artefact", DIRT, ids=lambda a: a.kind)
def test_each_artefact_raises_its_own_score_where_it_lies(clean, artefact):
    before, after = scores(clean), scores(scanned(artefact))
    both = same_places(before, after)
    shares = artefact_shares(both, artefact_frame([artefact], 1.0), slide_mpp=1.0)[artefact.kind]
    rise = both[SCORES[artefact.kind]] - both[f"{SCORES[artefact.kind]}_before"]
    hit, far = shares > shares.max() / 2, shares == 0
    assert rise[hit].mean() > 5 * max(rise[far].abs().mean(), 1e-4)


def test_scores_do_not_depend_on_the_grid_they_are_asked_for(clean):
    slide = open_slide(clean, mpp=1.0)
    table = patch_quality(slide)
    part = table.iloc[10:14][["slide_id", "x_l0", "y_l0", "size_px", "mpp", "tissue"]]
    columns = ["pen", "fold", "bubble", "dust", "scratch", "tear", "background", "stain", "focus"]
    np.testing.assert_allclose(patch_quality(slide, part)[columns], table.iloc[10:14][columns], atol=1e-9)


@pytest.fixture(scope="module")
def dirty():
    """A dirty and a clean slide of each of three laboratories: patches and what covers them."""
    tables, truths = [], []
    for site in ("north", "east", "west"):
        slide = open_slide(scanned(*DIRT, site=site), mpp=1.0)
        table = patch_quality(slide, slide_id=site)
        tables.append(table)
        truths.append(artefact_shares(table, artefact_frame(DIRT, 1.0), slide_mpp=1.0))
    return pd.concat(tables, ignore_index=True), pd.concat(truths, ignore_index=True)


#: What the data set lymph-nodes-artefacts gives (1.00, 1.00, 1.00, 0.83, 1.00, 0.97, 1.00 in this order) less 0.03 to 0.2: here
#: an artefact has a handful of patches, so that one of them is worth several hundredths. Bubbles (inside, they are only a
#: little blurred) and scratches (a line of few pixels) are the hard ones.
LEAST = {
    "out of focus": 0.9,
    "pen": 0.97,
    "fold": 0.8,
    "bubble": 0.7,
    "dust": 0.95,
    "scratch": 0.8,
    "tear": 0.85,
}


@pytest.mark.parametrize("kind", LEAST)
def test_artefacts_are_found_on_dirty_slides(dirty, kind):
    found = artefact_auc(*dirty).loc[kind]
    assert found["patches"] >= 3
    assert found["auc_clean"] > LEAST[kind]


def test_auc_of_scores_that_are_the_truth_is_one_and_of_noise_is_half():
    rng = np.random.default_rng(0)
    shares = pd.DataFrame(0.0, index=range(400), columns=list(SCORES))
    shares.loc[:99, "fold"] = 0.5
    patches = pd.DataFrame(rng.random((400, len(SCORES))), columns=list(SCORES.values()))
    assert artefact_auc(patches, shares).loc["fold", "auc_clean"] == pytest.approx(0.5, abs=0.1)
    assert np.isnan(artefact_auc(patches, shares).loc["pen", "auc_clean"])
    patches["fold"] = shares["fold"]
    assert artefact_auc(patches, shares).loc["fold", "auc_clean"] == 1


@pytest.fixture(scope="module")
def large_node():
    """A node as large as those of the data sets: of small ones the outline, 8 µm wide, is a tenth."""
    return lymph_node(6, size_um=(2600.0, 2100.0))


@pytest.mark.parametrize("site", ["north", "east", "south", "west", "island"])
@pytest.mark.parametrize("dirt", [(), DIRT], ids=["clean", "dirty"])
def test_the_tissue_mask_is_the_tissue_on_clean_and_dirty_slides(large_node, site, dirt):
    larger = [
        Artefact(a.kind, shapely.transform(a.geometry, lambda xy: xy * 2.6), a.strength, a.colour)
        for a in dirt
    ]
    pixels = scan(large_node, SITES[site].at(2.0), (0, 0), (1300, 1050), artefacts=larger)
    mask = tissue_mask(pixels, source_mpp=2.0).values
    rows, cols = (((np.arange(n) + 0.5) * 8 / large_node.map_um).astype(int) for n in mask.shape)
    rows, cols = rows.clip(0, large_node.labels.shape[0] - 1), cols.clip(0, large_node.labels.shape[1] - 1)
    labels = large_node.labels[np.ix_(rows, cols)]
    tissue = labels > 0
    for artefact in larger:
        if artefact.kind in ("pen", "tear"):
            tissue &= ~artefact_mask(artefact, (0, 0), mask.shape[::-1], 8.0)
    counted = labels != LABELS.index("fat")  # white cells with a thin rim: tissue or not, both are right
    assert iou(mask & counted, tissue & counted) > 0.95


# Slides ----------------------------------------------------------------------------------------------------------


def ink_only():
    pixels = np.full((800, 1000, 3), 243, np.uint8)
    cv2.line(pixels, (100, 100), (800, 600), (25, 60, 170), 60)
    return pixels


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((800, 1000, 3), 244, np.uint8), "empty glass"),
        (np.zeros((800, 1000, 3), np.uint8), "black"),
        (ink_only(), "ink and nothing else"),
    ],
    ids=["white", "black", "pen only"],
)
def test_slides_without_tissue_are_rejected_and_say_why(tmp_path, pixels, reason):
    path = tmp_path / "s.png"
    cv2.imwrite(str(path), pixels[..., ::-1])
    slides = pd.DataFrame({"slide_id": ["s"], "path": [str(path)], "mpp": [1.0]})
    judged, _ = slide_quality(slides, progress=False)
    assert judged["verdict"].item() == "reject"
    assert judged["reasons"].item().startswith("0.00 mm² of tissue: ")
    assert reason in judged["reasons"].item()


def test_a_clean_slide_is_accepted_a_dirty_one_is_not_and_a_blurred_one_is_scanned_again(tmp_path, clean):
    pixels = {"clean": clean, "dirty": scanned(*DIRT), "blurred": cv2.GaussianBlur(clean, (0, 0), 4.0)}
    for name, image in pixels.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), image[..., ::-1])
    slides = pd.DataFrame(
        {"slide_id": list(pixels), "path": [str(tmp_path / f"{n}.png") for n in pixels], "mpp": 1.0}
    )
    judged, patches = slide_quality(slides, progress=False)
    verdicts = judged.set_index("slide_id")[["verdict", "reasons"]]
    assert tuple(verdicts.loc["clean"]) == ("accept", "")
    assert verdicts.loc["dirty", "verdict"] != "accept"
    assert "ink on" in verdicts.loc["dirty", "reasons"]
    assert verdicts.loc["blurred", "verdict"] == "re-scan"
    assert "blurred as a whole" in verdicts.loc["blurred", "reasons"]
    assert set(patches["slide_id"]) == set(pixels)


def test_the_gravest_rule_decides_and_all_are_named():
    good = {"tissue_mm2": 3.0, "stain": 0.3, "sharpness": 0.4}
    row = pd.DataFrame([{r.column: good.get(r.column, 0.0) for r in RULES}])
    assert judge(row)["verdict"].item() == "accept"
    assert judge(row.assign(pen=0.5))["verdict"].item() == "re-scan"
    both = judge(row.assign(pen=0.5, fold=0.3)).iloc[0]
    assert both["verdict"] == "reject"
    assert both["reasons"] == "folds in 30% of the tissue; ink on 50% of the tissue: wipe the glass"
    assert (
        judge(row.assign(pen=0.5), rules=[Rule("pen", 0.6, "reject", "{:.0%}")])["verdict"].item() == "accept"
    )
    assert judge(row.assign(stain=np.nan))["verdict"].item() == "accept"
    with pytest.raises(ValueError, match="no column 'pen'"):
        judge(row.drop(columns="pen"))


def test_outlines_of_a_cohort_are_read_and_shares_are_areas(tmp_path):
    frame = artefact_frame([Artefact("dust", shapely.box(0, 0, 64, 128))], 1.0)
    write_annotations(frame, tmp_path / "a.geojson")
    patch = pd.DataFrame({"slide_id": ["s"], "x_l0": [0], "y_l0": [0], "size_px": [128], "mpp": [1.0]})
    shares = artefact_shares(patch, read_annotations(tmp_path / "a.geojson"), slide_mpp=1.0)
    assert shares["dust"].item() == pytest.approx(0.5)
    assert shares.drop(columns="dust").to_numpy().sum() == 0
    assert artefact_shares(patch, None, slide_mpp=1.0).to_numpy().sum() == 0


# Real tissue -----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_slides_are_not_refused(real_slide_path, no_mpp_slide_path):
    slides = pd.DataFrame(
        {"slide_id": ["a", "b"], "path": [real_slide_path, no_mpp_slide_path], "mpp": [None, 0.5]}
    )
    judged, patches = slide_quality(slides, progress=False)
    assert (judged["pen"] == 0).all()
    assert not judged["reasons"].str.contains("blurred as a whole").any()
    assert len(patches) > 50


@pytest.mark.real
def test_blur_of_a_real_slide_is_found(real_slide_path):
    with open_slide(real_slide_path) as slide:
        pixels = slide.read_region((0, 0), (1100, 1480), mpp=1.0)
    spoilt = pixels.copy()
    spoilt[500:1000, 200:700] = cv2.GaussianBlur(pixels, (0, 0), 3.0)[500:1000, 200:700]
    both = same_places(scores(pixels), scores(spoilt))
    inside = (both["x_l0"] >= 200) & (both["x_l0"] <= 572) & (both["y_l0"] >= 500) & (both["y_l0"] <= 872)
    assert inside.sum() >= 3
    assert (both["blur"] - both["blur_before"])[inside].median() > 2
    assert (both["blur"] - both["blur_before"])[~inside].median() < 0.2
