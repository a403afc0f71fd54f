"""The laboratory: organs, cells, stains, artefacts, readers, cohorts; what is drawn is what the truth says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely
from skimage.measure import label as pieces
from skimage.measure import regionprops

from pathkit import synthetic
from pathkit.annotations import read_annotations, write_annotations
from pathkit.geometry import Box
from pathkit.slide import open_slide
from pathkit.synthetic import fields as fields_module
from pathkit.synthetic.artefacts import KINDS
from pathkit.synthetic.noise import add_noise, noise_rows, smooth_noise
from pathkit.synthetic.paint import _UNEVEN, _outline, _plain
from pathkit.synthetic.scanner import _exposed
from pathkit.synthetic.tissues import CELLS, DENSITY_PER_MM2, LABELS, TISSUES
from pathkit.tables import read_table

SITE = synthetic.SITES["north"].at(0.5)


@pytest.fixture(scope="module")
def organs():
    return {
        "colon": synthetic.colon(3, size_um=(1500.0, 1400.0)),
        "unstable": synthetic.colon(3, msi=True, size_um=(1500.0, 1400.0)),
        "healthy": synthetic.colon(3, tumour=False, size_um=(1000.0, 1200.0)),
        "prostate": synthetic.prostate_core(
            4, {"pattern 3": 0.3, "pattern 4": 0.25, "pattern 5": 0.2}, size_um=(3000.0, 800.0)
        ),
        "breast": synthetic.breast(
            5,
            grade=3,
            markers={"Ki-67": 0.3, "HER2": 2, "PD-L1": (0.4, 0.2), "ER": 0.9},
            size_um=(1200.0, 1000.0),
        ),
        "frozen": synthetic.breast(5, "benign", frozen=True, size_um=(900.0, 900.0)),
    }


NAMES = ["colon", "unstable", "healthy", "prostate", "breast", "frozen"]


@pytest.fixture(scope="module")
def spoilt(organs):
    return synthetic.random_artefacts(organs["colon"], seed=2)


# What is faster gives the same --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "mpp"), [(0.9, 1.04), (14.0, 0.25), (900.0, 0.5)])
def test_noise_of_a_block_is_the_noise_of_each_pixel(scale, mpp):
    block = np.full((40, 60), 7.0)
    noise_rows(block, 5, 57, -30.3, 12.7, 100, mpp, scale, 11)
    for r in range(40):
        for c in range(5, 57):
            x, y = -30.3 + (c + 0.5) * mpp, 12.7 + (100 + r + 0.5) * mpp
            assert block[r, c] == smooth_noise(x / scale, y / scale, 11)
    assert (block[:, [0, 4, 57, 59]] == 7).all()


def test_noise_is_added_as_it_is_made_one_by_one():
    x, y, weight = np.random.default_rng(2).uniform(-500, 500, (3, 200))
    out = np.ones(200)
    add_noise(out, weight, x, y, 5)
    assert out.tolist() == [1 + w * smooth_noise(a, b, 5) for w, a, b in zip(weight, x, y, strict=True)]


@pytest.mark.parametrize("gamma", [0.5, 0.92, 1.0, 1.08, 2.2])
def test_the_camera_gives_the_grey_levels_of_its_formula(gamma):
    light = np.random.default_rng(3).uniform(0, 1.001, (150, 200, 3)).astype(np.float32)
    light[:2], light[2:4] = 1, 0
    white = np.array([243, 241, 238], np.float32)
    wanted = np.clip(np.floor(white * light.astype(float) ** gamma + 0.5), 0, 255)
    assert np.array_equal(_exposed(light, white, gamma, 0.0, 1, 0, 0), wanted)


def test_no_outline_reaches_beyond_where_cells_are_looked_for():
    rng = np.random.default_rng(4)
    for shape in {int(cell.shape) for cell in CELLS if _plain(cell.shape)}:
        for u, v, ragged, texture in rng.uniform((-3, -3, 0, 0), (3, 3, 0.3, 1000), (400, 4)):
            distance = _outline(u, v, shape, ragged, texture, 9)
            assert distance >= np.hypot(u, v) - _UNEVEN * ragged - 1e-12


# One place, one picture ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_region_is_the_crop_of_the_whole_with_artefacts_and_markers(organs, name):
    organ = organs[name]
    artefacts = synthetic.random_artefacts(organ, seed=1)
    for marker in (None, "HER2"):
        whole = synthetic.scan(organ, SITE, (400, 500), (700, 500), marker=marker, artefacts=artefacts)
        part = synthetic.scan(organ, SITE, (633, 717), (150, 120), marker=marker, artefacts=artefacts)
        crop = whole[217:337, 233:383].astype(int)
        # Blurring sums in another order: a grey level at most.
        assert np.abs(part - crop).max() <= 1
        assert (part != crop).mean() < 0.001


def test_the_same_seed_gives_the_same_organ_and_another_does_not():
    one, again, other = (synthetic.breast(seed, size_um=(800.0, 800.0)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.labels, again.labels)
    np.testing.assert_array_equal(one.angle, again.angle)
    assert (one.labels != other.labels).mean() > 0.1


def test_outlines_of_a_mask_cover_it_however_its_pieces_touch():
    """Pieces that touch at corners alone make rings that touch themselves; none of them may be lost."""
    from pathkit.synthetic.architecture import polygons

    diagonal = np.kron(np.eye(6, dtype=bool), np.ones((4, 4), bool))
    ring = np.pad(np.ones((10, 10), bool), 2)
    ring[4:8, 4:8] = False
    ring[2, 2] = ring[3, 3] = False  # the hole reaches the ground by corners
    noise = np.random.default_rng(0).random((60, 60)) > 0.45
    for mask in (diagonal, ring, noise):
        shapes = polygons(mask, 2.0)
        assert all(p.is_valid and p.geom_type == "Polygon" for p in shapes)
        rows, cols = np.nonzero(mask)
        held = shapely.union_all(shapes)
        at = shapely.points((cols + 0.5) * 2.0, (rows + 0.5) * 2.0)
        assert shapely.intersects(held, at).all()


def test_regions_are_as_large_as_the_tissues_they_outline(organs):
    for name in ("colon", "unstable", "healthy"):
        organ = organs[name]
        shares = np.bincount(organ.nine_map().ravel(), minlength=9) * organ.map_um**2
        outlined = organ.regions.groupby("class")["area_um2"].sum()
        for kind, area in zip(synthetic.NINE_CLASSES, shares, strict=True):
            if area > 1e5 and kind != "background":
                assert outlined[kind] == pytest.approx(area, rel=0.25), (name, kind)


# Cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_object_table_counts_what_the_label_map_shows(organs, name):
    organ = organs[name]
    box = Box(300, 400, 300, 250)
    shown = synthetic.instances(organ, (box.x, box.y), (1200, 1000), mpp=0.25)
    table = synthetic.nuclei(organ, box)
    inner = Box(box.x + 20, box.y + 20, box.width - 40, box.height - 40)
    known = set(table.loc[inner.contains(table[["x_um", "y_um"]].to_numpy()), "object_id"])
    seen = {r.label: r for r in regionprops(pieces_of(shown))}
    ids = np.unique(shown)
    around = set(
        synthetic.nuclei(organ, Box(box.x - 40, box.y - 40, box.width + 80, box.height + 80))["object_id"]
    )
    assert set(ids.tolist()) - {0} <= around, "a nucleus is shown that no table knows"
    assert len(known - set(ids.tolist())) <= 0.005 * len(known), "a nucleus of the table is not shown"
    assert len(known) > 50
    assert seen


def pieces_of(ids):
    return pieces(ids > 0)


def test_the_shown_area_is_that_of_the_table_where_nothing_overlaps(organs):
    organ = organs["healthy"]
    table = synthetic.nuclei(organ, Box(200, 900, 500, 150)).set_index("object_id")
    shown = synthetic.instances(organ, (200, 900), (2000, 600), mpp=0.25)
    ids, counts = np.unique(shown[shown > 0], return_counts=True)
    inside = Box(215, 915, 470, 120).contains(table[["x_um", "y_um"]].to_numpy())
    both = [i for i in table.index[inside] if i in set(ids)]
    areas = dict(zip(ids, counts * 0.25**2, strict=True))
    ratio = np.array([areas[i] / table.loc[i, "area_um2"] for i in both])
    assert np.median(ratio) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("name", ["colon", "prostate", "breast"])
def test_densities_are_those_asked_for_in_tissues_without_a_row(organs, name):
    organ = organs[name]
    table = synthetic.nuclei(organ)
    extra = sum(organ.per_mm2.values())
    checked = 0
    for tissue in TISSUES:
        area = organ.area_mm2(tissue.name)
        if tissue.band_um is not None or not tissue.per_mm2:
            continue
        malignant = tissue.name in synthetic.tissues.MALIGNANT
        expected = (DENSITY_PER_MM2[tissue.name] + extra * malignant) * area
        if expected > 300:
            assert (table["tissue"] == tissue.name).sum() == pytest.approx(
                expected, abs=6 * np.sqrt(expected)
            )
            checked += 1
    assert checked >= 2


def test_rare_cells_come_at_their_rate():
    organ = synthetic.breast(
        7, grade=3, mitoses_per_mm2=150, look_alikes_per_mm2=100, size_um=(2000.0, 1600.0)
    )
    table = synthetic.nuclei(organ)
    area = organ.area_mm2(*synthetic.tissues.MALIGNANT)
    mitoses = table["class"].isin(synthetic.MITOSES).sum()
    assert mitoses == pytest.approx(150 * area, abs=5 * np.sqrt(150 * area))
    assert set(synthetic.MITOSES) <= set(table["class"])
    assert {"pyknotic", "apoptotic", "pigment"} <= set(table["class"])


def test_tumour_nuclei_grow_and_vary_with_the_grade():
    tables = [synthetic.nuclei(synthetic.breast(7, grade=g, size_um=(1200.0, 1000.0))) for g in (1, 2, 3)]
    areas = [t.loc[t["class"] == "tumour", "area_um2"] for t in tables]
    assert areas[0].mean() < areas[1].mean() < areas[2].mean()
    variation = [a.std() / a.mean() for a in areas]
    assert variation[0] < variation[1] < variation[2]
    assert variation[0] > 0.2
    assert variation[2] < 0.9


def test_epithelial_nuclei_stand_above_the_wall_and_across_it(organs):
    organ = organs["healthy"]
    table = synthetic.nuclei(organ)
    cells = table[(table["class"] == "epithelial") & (table["tissue"] == "crypt epithelium")]
    assert len(cells) > 300
    r, c = (cells[k].to_numpy() / organ.map_um for k in ("y_um", "x_um"))
    height = organ.depth[r.astype(int), c.astype(int)] * 0.5
    assert np.percentile(height, 5) > 1
    assert np.percentile(height, 90) < 12
    across = organ.angle[r.astype(int), c.astype(int)]
    assert np.abs(np.sin(cells["angle"] - across)).mean() < 0.2


def test_glands_have_a_lumen_inside_their_wall(organs):
    for name, least in (("colon", 15), ("healthy", 8), ("prostate", 40)):
        glands = organs[name].glands
        assert len(glands) >= least
        assert (glands["lumen_um2"] <= glands["area_um2"] + 1).all()
        assert (glands["lumen_um2"] > 0).mean() > 0.3
        assert shapely.is_valid(glands["geometry"].to_numpy()).all()


# Organs ----------------------------------------------------------------------------------------------------------


def test_colon_with_a_tumour_holds_all_nine_classes(organs):
    seen = set()
    for seed in (3, 5, 8):
        organ = synthetic.colon(seed, size_um=(2200.0, 2000.0), mucus=0.15)
        shares = np.bincount(organ.nine_map().ravel(), minlength=9) / organ.labels.size
        seen |= {name for name, share in zip(synthetic.NINE_CLASSES, shares, strict=True) if share > 0.003}
        assert set(organ.regions["class"]) <= set(synthetic.NINE_CLASSES)
    assert seen == set(synthetic.NINE_CLASSES)


def test_microsatellite_instability_shows_as_it_is_known_to(organs):
    stable, unstable = organs["colon"], organs["unstable"]
    assert unstable.area_mm2("mucus") > 2 * stable.area_mm2("mucus")
    assert unstable.grade == 3
    glandular = [o.area_mm2("tumour lumen") / o.lesions["area_um2"].sum() * 1e6 for o in (stable, unstable)]
    assert glandular[1] < glandular[0]
    within = []
    for organ in (stable, unstable):
        table = synthetic.nuclei(organ)
        tumour = table[table["tissue"].isin(synthetic.tissues.MALIGNANT)]
        within.append((tumour["class"] == "lymphocyte").mean())
    assert within[1] > 1.5 * within[0]


@pytest.mark.parametrize(
    ("shares", "group"),
    [
        ({}, 0),
        ({"pattern 3": 1}, 1),
        ({"pattern 3": 0.7, "pattern 4": 0.3}, 2),
        ({"pattern 3": 0.3, "pattern 4": 0.7}, 3),
        ({"pattern 4": 1}, 4),
        ({"pattern 3": 0.6, "pattern 5": 0.4}, 4),
        ({"pattern 4": 0.6, "pattern 5": 0.4}, 5),
        ({"pattern 3": 0.97, "pattern 4": 0.03}, 1),
    ],
)
def test_isup_grade_groups(shares, group):
    assert synthetic.isup_grade(shares) == group


def test_a_core_has_the_shares_asked_for(organs):
    shares = organs["prostate"].facts["shares"]
    assert shares["pattern 3"] == pytest.approx(0.3, abs=0.03)
    assert shares["pattern 4"] == pytest.approx(0.25, abs=0.03)
    assert shares["pattern 5"] == pytest.approx(0.2, abs=0.03)
    assert organs["prostate"].facts["isup"] == 5 or organs["prostate"].facts["isup"] == 4


# Stains ----------------------------------------------------------------------------------------------------------


def test_marked_nuclei_are_brown_and_their_share_is_the_one_asked_for(organs):
    organ = organs["breast"]
    table = synthetic.nuclei(organ, marker="Ki-67")
    tumour = table[table["class"] == "tumour"]
    assert (tumour["level"] > 0).mean() == pytest.approx(0.3, abs=0.06)
    assert (table.loc[table["class"] == "fibroblast", "level"] == 0).all()
    stain = synthetic.concentrations(organ, (0, 0), (2400, 2000), mpp=0.5, marker="Ki-67")
    rows, cols = (tumour[c].to_numpy() / 0.5 for c in ("y_um", "x_um"))
    brown = stain[rows.astype(int), cols.astype(int), 2]
    medians = [np.median(brown[tumour["level"] == level]) for level in range(4)]
    assert medians == sorted(medians)
    assert medians[1] > 3 * max(medians[0], 0.01)


def test_membranes_are_darker_and_more_complete_with_the_score():
    dab = []
    for score in range(4):
        organ = synthetic.breast(5, grade=2, markers={"HER2": score}, size_um=(900.0, 900.0))
        stain = synthetic.concentrations(organ, (300, 300), (600, 600), mpp=0.5, marker="HER2")
        dab.append((stain[..., 2] > 0.15).mean())
    assert dab[0] < 0.002
    assert dab[0] < dab[1] < dab[2] < dab[3]


def test_sites_differ_in_colour_and_strength():
    stains = {name: site.stains for name, site in synthetic.SITES.items()}
    assert len(stains) >= 5
    names = list(stains)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            unit = [s[:2] / np.linalg.norm(s[:2], axis=1, keepdims=True) for s in (stains[a], stains[b])]
            degrees = np.degrees(np.arccos(np.clip((unit[0] * unit[1]).sum(1), -1, 1)))
            assert degrees.max() > 3, (a, b)


def test_macenko_recovers_the_painted_vectors(organs):
    """Macenko's steps (2009), written out here: the plane of the optical densities and its extreme angles."""
    for name in ("colon", "breast"):
        for site in synthetic.SITES.values():
            pixels = synthetic.scan(organs[name], site.at(0.5), (800, 800), (900, 700)).reshape(-1, 3)
            density = -np.log10(np.maximum(pixels.astype(float), 1) / np.array(site.white))
            density = density[np.linalg.norm(density, axis=1) > 0.2]
            _, vectors = np.linalg.eigh(np.cov(density.T))
            plane = vectors[:, [2, 1]] * np.where(vectors[:, [2, 1]].sum(0) < 0, -1, 1)
            angle = np.arctan2(*(density @ plane).T[::-1])
            ends = [plane @ (np.cos(a), np.sin(a)) for a in np.percentile(angle, [1, 99])]
            truth = site.stains[:2] / np.linalg.norm(site.stains[:2], axis=1, keepdims=True)
            errors = [min(_degrees(t, e) for e in ends) for t in truth]
            assert max(errors) < 5, (name, site.name, errors)


def _degrees(a, b):
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


def test_a_frozen_section_has_holes_and_swollen_nuclei(organs):
    thawed = synthetic.breast(5, "benign", size_um=(900.0, 900.0))
    sizes = [np.median(synthetic.nuclei(o)["area_um2"]) for o in (thawed, organs["frozen"])]
    assert sizes[1] == pytest.approx(1.44 * sizes[0], rel=0.02)
    pale = [
        (synthetic.concentrations(o, (200, 200), (800, 800), mpp=0.5)[..., 1] < 0.05).mean()
        for o in (thawed, organs["frozen"])
    ]
    assert pale[1] > pale[0] + 0.02


# Artefacts -------------------------------------------------------------------------------------------------------


def test_artefacts_change_the_picture_where_their_mask_says(organs, spoilt):
    organ = organs["colon"]
    assert {a.kind for a in spoilt} == set(KINDS)
    site = synthetic.SITES["north"]
    size = (1500, 1400)
    clean = synthetic.scan(organ, site, (0, 0), size).astype(int)
    for artefact in spoilt:
        dirty = synthetic.scan(organ, site, (0, 0), size, artefacts=[artefact]).astype(int)
        changed = np.abs(dirty - clean).max(2) > 6
        mask = synthetic.artefact_mask(artefact, (0, 0), size, site.mpp)
        assert mask.any(), artefact.kind
        assert changed[mask].mean() > 0.2, artefact.kind
        far = ~synthetic.artefact_mask(
            synthetic.Artefact(
                artefact.kind, artefact.geometry.buffer(25), artefact.strength, artefact.colour
            ),
            (0, 0),
            size,
            1.0,
        )
        assert changed[far].mean() < 0.001, artefact.kind


def test_lost_focus_takes_away_detail_and_folds_add_stain(organs, spoilt):
    organ, site = organs["colon"], synthetic.SITES["north"]
    by_kind = {a.kind: a for a in spoilt}
    clean = synthetic.scan(organ, site, (0, 0), (1500, 1400)).astype(float)
    for kind, sign in (("out of focus", -1), ("fold", 1)):
        mask = synthetic.artefact_mask(by_kind[kind], (0, 0), (1500, 1400), site.mpp)
        dirty = synthetic.scan(organ, site, (0, 0), (1500, 1400), artefacts=[by_kind[kind]]).astype(float)
        if sign < 0:
            detail = [np.abs(np.diff(x[..., 1], axis=1))[mask[:, 1:]].mean() for x in (clean, dirty)]
            assert detail[1] < 0.5 * detail[0]
        else:
            assert dirty[mask].mean() < clean[mask].mean() - 8


# Readers ---------------------------------------------------------------------------------------------------------


def test_readers_draw_with_their_bias_and_miss_what_is_small():
    from pathkit.annotations import annotation_frame
    from pathkit.annotations.rows import Row

    large = [Row(shapely.Point(2000 * i, 0).buffer(400), "tumour") for i in range(6)]
    small = [Row(shapely.Point(2000 * i, 3000).buffer(12), "tumour") for i in range(40)]
    truth = annotation_frame([*large, *small])
    wide = synthetic.Reader("wide", bias_um=20, wobble_um=4).outline(truth, mpp=1.0)
    assert len(wide) == 46
    assert wide.area.iloc[:6].mean() == pytest.approx(np.pi * 420**2, rel=0.03)
    careless = synthetic.Reader("careless", overlooked_um=60, wobble_um=2)
    drawn = careless.outline(truth, mpp=1.0)
    assert (drawn.area > 1e5).sum() == 6
    assert (drawn.area < 1e5).sum() < 30
    again = careless.outline(truth, mpp=1.0)
    assert drawn.geometry.geom_equals(again.geometry).all()


def test_readers_grade_and_count_with_noise(organs):
    truth = np.tile([0, 1, 2, 3], 200)
    exact = synthetic.Reader("exact", grade_noise=0).grade(truth, [0, 1, 2, 3])
    np.testing.assert_array_equal(exact, truth)
    high = synthetic.Reader("high", grade_bias=0.6, grade_noise=0.3).grade(truth, [0, 1, 2, 3])
    assert high.mean() > truth.mean() + 0.2
    organ = synthetic.breast(
        7, grade=3, mitoses_per_mm2=200, look_alikes_per_mm2=200, size_um=(1600.0, 1200.0)
    )
    table = synthetic.nuclei(organ)
    marked = synthetic.Reader("r", sensitivity=0.7, mistaken=0.2).count(table)
    mitoses = table["class"].isin(synthetic.MITOSES)
    assert marked["class"].isin(synthetic.MITOSES).sum() == pytest.approx(0.7 * mitoses.sum(), rel=0.25)
    assert 0 < marked["class"].isin(["pyknotic", "apoptotic"]).sum() < mitoses.sum()
    with pytest.raises(ValueError, match="not on the scale"):
        synthetic.READERS[0].grade([7], [0, 1])


# Cohorts ---------------------------------------------------------------------------------------------------------


def test_survival_follows_the_stated_features(tmp_path, monkeypatch):
    """Without making a slide: the plan alone."""
    from pathkit.synthetic import cohort

    plans = []
    monkeypatch.setattr(cohort, "_made", lambda folder, parameters, plan, *rest: plans.append(plan))
    synthetic.colorectal_cohort(tmp_path, n_patients=400, seed=1)
    rows = [spec["columns"] | {"site": spec["site"]} for spec in plans[0]]
    times, risk, death = (np.array([r[k] for r in rows]) for k in ("months", "log_hazard", "death"))
    assert concordance(times, risk, death) > 0.65
    assert 0.3 < death.mean() < 0.95
    assert max(times) <= 60
    sites = np.array([r["site"] for r in rows])
    msi = np.array([r["label"] == "msi" for r in rows])
    assert np.ptp([msi[sites == s].mean() for s in set(sites)]) < 0.15
    synthetic.colorectal_cohort(tmp_path, n_patients=100, seed=1, confounded=1.0)
    assert {s["site"] for s in plans[1] if s["columns"]["label"] == "msi"} == {"north"}
    assert "north" not in {s["site"] for s in plans[1] if s["columns"]["label"] == "mss"}


def concordance(times, risk, death):
    """Harrell's C: of the pairs whose order is known, the share in which who dies first was at more risk."""
    first = death[:, None] & (times[:, None] < times[None])
    ahead = (risk[:, None] > risk[None]) + 0.5 * (risk[:, None] == risk[None])
    return ahead[first].mean()


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts")
    options = {"workers": 1, "progress": False}
    return {
        "colorectal": synthetic.colorectal_cohort(
            folder / "colorectal", n_patients=2, msi=0.5, size_um=(900.0, 1200.0), artefacts=1.0, **options
        ),
        "prostate": synthetic.prostate_cohort(
            folder / "prostate",
            n_patients=2,
            cores_per_patient=1,
            positive=0.5,
            size_um=(1200.0, 600.0),
            **options,
        ),
        "breast": synthetic.breast_cohort(
            folder / "breast", n_patients=1, marker="HER2", mpp=0.5, size_um=(800.0, 800.0), **options
        ),
    }


@pytest.mark.parametrize("name", ["colorectal", "prostate", "breast"])
def test_truth_is_in_the_files_and_can_be_built_again(cohorts, name, jpeg_error):
    slides = cohorts[name]
    row = slides.iloc[0]
    truth = synthetic.truth_of(row)
    with open_slide(row["path"]) as slide:
        assert slide.mpp == pytest.approx(truth.site.mpp, rel=1e-4)
        size = (300, 200)
        stored = slide.read_region((200, 250), size).astype(int)
        outlines = read_annotations(row["annotations_path"], slide=slide)
    painted = synthetic.scan(
        truth.architecture, truth.site, (200, 250), size, marker=truth.marker, artefacts=truth.artefacts
    ).astype(int)
    most = 1.25 * jpeg_error(painted, truth.site.quality)
    assert np.abs(stored - painted).mean() < most, "JPEG and no more"
    assert set(outlines["class"]) == set(truth.architecture.regions["class"])
    objects = read_table(row["objects_path"])
    assert len(objects) == row["n_objects"]
    assert len(read_annotations(row["glands_path"])) == len(truth.architecture.glands)
    if name == "colorectal":
        assert len(read_annotations(row["artefacts_path"])) == len(truth.artefacts) > 0
        assert {"stage", "months", "death", "age", "til_per_mm2"} <= set(slides.columns)
    if name == "prostate":
        assert set(slides["label"]) == {"0", str(slides["isup"].max())}
    if name == "breast":
        assert "level" in objects


def test_unknown_slides_and_folders_have_no_truth(cohorts, tmp_path):
    with pytest.raises(ValueError, match="no slide 'X'"):
        synthetic.truth_of("X", cohorts["breast"]["path"].iloc[0].rsplit("/", 1)[0])
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        synthetic.truth_of("X", tmp_path)


def test_bad_parameters_are_refused_with_the_way_out(tmp_path):
    wrong = synthetic.breast(1, markers={"ER": 2}, size_um=(800, 800))
    for call, message in [
        (lambda: synthetic.colon(1, grade=4), "grade and stage are 1, 2 or 3"),
        (lambda: synthetic.colon(1, lymphocytes_per_mm2=-1), "must not be negative"),
        (lambda: synthetic.colon(1, size_um=(10, 10)), "needs 800 x 1200"),
        (lambda: synthetic.prostate_core(1, {"pattern 2": 1}), "no 'pattern 2'"),
        (lambda: synthetic.prostate_core(1, {"pattern 3": 1.5}), "sum to at most 1"),
        (lambda: synthetic.breast(1, "huge"), "no kind 'huge'"),
        (lambda: synthetic.breast(1, markers={"CD3": 1}), "no marker 'CD3'"),
        (lambda: synthetic.nuclei(wrong, marker="ER"), "ER must be 0 to 1"),
        (lambda: synthetic.SITES["north"].at(0), "mpp must be positive"),
        (lambda: synthetic.Artefact("coffee", shapely.box(0, 0, 1, 1)), "no kind 'coffee'"),
        (lambda: synthetic.Reader("r", sensitivity=2), "shares from 0 to 1"),
        (lambda: synthetic.nuclei_fields(0), "must be positive"),
        (lambda: synthetic.crowded_fields(0), "must be positive"),
        (lambda: synthetic.crowded_fields(1, width_px=(1, 20)), "widths at least 2 px"),
        (lambda: synthetic.nuclei_fields(1, organs=("liver",)), "organs are among"),
        (lambda: synthetic.colorectal_cohort(tmp_path, msi=2), "share from 0 to 1"),
        (lambda: synthetic.prostate_cohort(tmp_path, mpp=0), "mpp must be positive"),
        (lambda: synthetic.breast_cohort(tmp_path, marker="CD3"), "marker are among"),
        (lambda: synthetic.Mosaic((200_000, 10)), "sides 1 to 100,000"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    assert not list(tmp_path.iterdir())


# Fields and big slides -------------------------------------------------------------------------------------------


def test_fields_show_numbered_nuclei_that_are_dark():
    fields = synthetic.nuclei_fields(10, size_px=128, seed=3, per_architecture=2, progress=False)
    again = synthetic.nuclei_fields(10, size_px=128, seed=3, per_architecture=2, progress=False)
    np.testing.assert_array_equal(fields.images, again.images)
    assert len(set(fields.organ)) == 5
    contrast = []
    for image, numbers in zip(fields.images, fields.instances, strict=True):
        assert set(np.unique(numbers)) == set(range(numbers.max() + 1))
        if numbers.any() and not (numbers > 0).all():
            contrast.append(image[numbers == 0].mean() - image[numbers > 0].mean())
    assert np.mean(contrast) > 15
    assert np.mean(np.array(contrast) > 0) > 0.85


def test_crowds_have_the_asked_size_their_truth_in_register_and_touching_nuclei():
    crowds = synthetic.crowded_fields(24, size_px=128, width_px=(20, 20), seed=1, progress=False)
    again = synthetic.crowded_fields(24, size_px=128, width_px=(20, 20), seed=1, progress=False)
    np.testing.assert_array_equal(crowds.images, again.images)
    np.testing.assert_array_equal(crowds.instances, again.instances)
    widths, touching, darker = [], 0, []
    for image, numbers in zip(crowds.images.astype(float), crowds.instances, strict=True):
        assert set(np.unique(numbers)) == set(range(numbers.max() + 1))
        inside = numbers[24:-24, 24:-24]
        areas = np.bincount(numbers.ravel())[np.unique(inside[inside > 0])]
        widths += list(2 * np.sqrt(areas / np.pi))
        right = (numbers[:, 1:] != numbers[:, :-1]) & (numbers[:, 1:] > 0) & (numbers[:, :-1] > 0)
        touching += bool(right.any())
        if 0.05 < (numbers > 0).mean() < 0.95:
            shifted = np.roll(numbers, 13, (0, 1))
            darker.append([image[n == 0].mean() - image[n > 0].mean() for n in (numbers, shifted)])
    assert 15 < np.median(widths) < 24  # what lies under others is seen in part
    assert touching > 12
    aligned, shifted = np.mean(darker, 0)
    assert aligned > 15
    assert shifted < 0.6 * aligned
    np.testing.assert_allclose(crowds.mpp, 8 / 20)


def test_varied_fields_keep_their_truth_in_register_and_leave_out_what_has_no_nucleus():
    fields = synthetic.nuclei_fields(
        12, size_px=160, mpp=(0.25, 0.4), seed=4, per_architecture=3, variety=1.0, progress=False
    )
    plain = synthetic.nuclei_fields(
        12, size_px=160, mpp=(0.25, 0.4), seed=4, per_architecture=3, progress=False
    )
    assert (fields.images != plain.images).any()
    step = []
    for image, numbers in zip(fields.images.astype(float).mean(3), fields.instances, strict=True):
        if 0.02 < (numbers > 0).mean() < 0.9:
            aligned = image[numbers == 0].mean() - image[numbers > 0].mean()
            shifted = np.roll(numbers, 25, (0, 1))
            step.append((aligned, image[shifted == 0].mean() - image[shifted > 0].mean()))
    aligned, shifted = np.mean(step, 0)
    assert aligned > 15
    assert shifted < aligned / 2
    # A vessel full of blood: red cells are no nuclei.
    architecture = synthetic.breast(3, size_um=(1200.0, 1000.0))
    cells = synthetic.nuclei(architecture)
    red = cells[cells["class"] == "red cell"].iloc[0]
    ids = fields_module._nuclei_at(
        architecture, (int(red.x_um / 0.25) - 40, int(red.y_um / 0.25) - 40), (80, 80), 0.25
    )
    classes = cells.set_index("object_id")["class"]
    assert not set(classes[[i for i in np.unique(ids) if i]]) & {"red cell", "pigment"}


def test_outlines_of_nuclei_are_those_of_the_instance_map_and_of_the_object_table(tmp_path):
    site = synthetic.SITES["north"].at(0.5)
    truth = synthetic.Truth(synthetic.breast(3, size_um=(1200.0, 1000.0)), site, None, ())
    box = Box(450, 400, 300, 280)  # more than one tile each way
    frame = synthetic.nucleus_outlines(truth, box, mpp=0.25)
    table = synthetic.nuclei(truth.architecture, box)
    table = table[~table["class"].isin(["red cell", "pigment"])]
    ids = synthetic.instances(truth.architecture, (430, 380), (1360, 1280), mpp=0.25)
    seen = table[table["object_id"].isin(np.unique(ids))]
    assert list(frame["name"].astype(int).sort_values()) == sorted(seen["object_id"])
    assert (
        frame.set_index("name")["class"].loc[seen["object_id"].astype(str)].to_numpy() == seen["class"]
    ).all()
    of_map = pd.Series(np.bincount(np.unique(ids, return_inverse=True)[1].ravel()), np.unique(ids)) * 0.25**2
    areas = frame.set_index(frame["name"].astype(int)).area * site.mpp**2
    # The ring runs through the middle of half pixels, so that an outline lacks a quarter of a pixel all round.
    ratio = areas / of_map[areas.index]
    assert 0.85 < ratio.median() <= 1.0
    back = read_annotations(write_annotations(frame, tmp_path / "nuclei.geojson"))
    assert back.geometry.geom_equals_exact(frame.geometry, 0.01).all()


def test_a_nucleus_whose_ring_touches_itself_keeps_its_outline(tmp_path):
    """Made valid, such a ring is a collection of areas and lines; every nucleus of the map must still be there."""
    site = synthetic.SITES["north"].at(0.5)
    for seed in (3, 8):
        truth = synthetic.Truth(synthetic.breast(seed, grade=3, size_um=(1200.0, 1000.0)), site, None, ())
        box = Box(500, 400, 250, 200)
        frame = synthetic.nucleus_outlines(truth, box, mpp=0.5)
        table = synthetic.nuclei(truth.architecture, box)
        table = table[~table["class"].isin(["red cell", "pigment"])]
        ids = synthetic.instances(truth.architecture, (476, 376), (596, 496), mpp=0.5)
        assert set(frame["name"].astype(int)) == set(table["object_id"]) & set(np.unique(ids).tolist())


def test_a_mosaic_is_the_same_read_whole_or_in_parts_and_is_written_as_one_slide(tmp_path):
    def mosaic(workers):
        return synthetic.Mosaic(
            (2100, 1500), mpp=1.0, organ="breast", piece_um=(1000.0, 900.0), seed=4, workers=workers
        )

    one, other = mosaic(1), mosaic(2)
    whole = one.read((0, 0), one.size_px)
    part = other.read((900, 800), (250, 200))
    assert np.abs(whole[800:1000, 900:1150].astype(int) - part).max() <= 1
    path = synthetic.write_big_slide(tmp_path / "big.tif", mosaic(2), progress=False)
    with open_slide(path) as slide:
        assert slide.dimensions == (2100, 1500)
        assert slide.mpp == pytest.approx(1.0)
        assert [level.downsample for level in slide.levels] == pytest.approx([1, 4], rel=0.01)
        stored = slide.read_region((900, 800), (250, 200)).astype(int)
        level = slide.read_region((0, 0), (500, 350), mpp=4.0).astype(float)
    assert np.abs(stored - part).mean() < 6
    coarse = whole[:1400, :2000].reshape(350, 4, 500, 4, 3).mean((1, 3))
    # JPEG blurs this level's dense texture, but every shift by a pixel fits far worse.
    apart = {
        (a, b): np.abs(level - np.roll(coarse, (a, b), (0, 1)))[1:-1, 1:-1].mean()
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
    }
    assert apart.pop((0, 0)) < 0.6 * min(apart.values())
    objects = read_table(tmp_path / "big.objects.parquet")
    assert objects["object_id"].is_unique
    assert (objects["x_um"] < 2100).all()
    assert objects["x_um"].max() > 2000
    assert objects["y_um"].max() > 1400
    outlines = read_annotations(tmp_path / "big.geojson")
    assert outlines.total_bounds[2] <= 2100
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob("*.levels.*"))


def test_labels_have_names(organs):
    for organ in organs.values():
        assert organ.labels.max() < len(LABELS)
        assert "tumour" not in organ.area_mm2.__doc__ or organ.area_mm2("glass") > 0


def test_a_cohort_can_have_more_mitoses_and_stays_what_it_was_without(tmp_path):
    from pathkit.synthetic import MITOSES, breast_cohort
    from pathkit.tables import read_table

    how = dict(n_patients=2, size_um=(800.0, 800.0), mpp=4.0, seed=12, workers=1, progress=False)
    counts = []
    for name, factor in (("usual", 1.0), ("many", 20.0)):
        slides = breast_cohort(tmp_path / name, mitoses=factor, **how)
        objects = [read_table(p) for p in slides["objects_path"]]
        counts.append(sum(int(t["class"].isin(MITOSES).sum()) for t in objects))
    assert counts[1] > 5 * max(counts[0], 1)
    assert "mitoses" not in (tmp_path / "usual" / "manifest.json").read_text().replace("mitoses_per_mm2", "")
    with pytest.raises(ValueError, match="mitoses is a factor"):
        breast_cohort(tmp_path / "none", mitoses=-1.0, **how)


def test_nuclei_of_fat_lie_against_the_wall_of_a_cell():
    from pathkit.synthetic.noise import nearest_two
    from pathkit.synthetic.tissues import FAT_CELL_UM

    node = synthetic.lymph_node(5, size_um=(1600.0, 1300.0))
    table = synthetic.nuclei(node)
    fat = table[table["tissue"] == "fat"]
    assert len(fat) > 10
    for x, y in zip(fat["x_um"], fat["y_um"], strict=True):
        ax, ay, bx, by = nearest_two(x, y, FAT_CELL_UM, node.seed + 31)
        to_wall = (np.hypot(bx, by) - np.hypot(ax, ay)) / 2
        assert to_wall < 6  # 1.2 µm, but where neighbours push it


def test_fibres_outside_glands_turn_slowly():
    architecture = synthetic.breast(4, size_um=(800.0, 800.0))
    stroma = architecture.depth < 0
    step = int(20 / architecture.map_um)
    both = stroma[:, step:] & stroma[:, :-step]
    turn = (architecture.angle[:, step:] - architecture.angle[:, :-step])[both]
    turn = np.abs((turn + np.pi / 2) % np.pi - np.pi / 2)  # a direction has no sense
    assert np.quantile(turn, 0.9) < np.deg2rad(35)
