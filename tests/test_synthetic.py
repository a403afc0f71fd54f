"""Synthetic slides: the truth is what is shown, and a place looks the same however it is made."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from pathkit import datasets, synthetic
from pathkit.annotations import read_annotations
from pathkit.geometry import Box
from pathkit.slide import open_slide
from pathkit.synthetic.lymph import CATEGORIES, MAP_UM
from pathkit.synthetic.scanner import slide_stains
from pathkit.synthetic.tissues import DENSITY_PER_MM2, LABELS
from pathkit.tables import check_objects, read_table

SIZE_UM = (1000.0, 800.0)
SITE = synthetic.SITES["north"]


@pytest.fixture(scope="module")
def node():
    return synthetic.lymph_node(5, "micro", size_um=SIZE_UM)


def region(location, size):
    """Pixels of a region of the node of seed 5; also called in other processes."""
    return synthetic.scan(synthetic.lymph_node(5, "micro", size_um=SIZE_UM), SITE, location, size)


# One place, one picture ------------------------------------------------------------------------------------------


def test_a_region_is_the_crop_of_the_whole(node):
    whole = synthetic.scan(node, SITE, (0, 0), (700, 600))
    for location, size in [((0, 0), (50, 40)), ((333, 217), (120, 90)), ((600, 500), (100, 100))]:
        (x, y), (w, h) = location, size
        np.testing.assert_array_equal(synthetic.scan(node, SITE, location, size), whole[y : y + h, x : x + w])


def test_another_process_makes_the_same_pixels(node):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(region, (300, 200), (80, 60)).result()
    np.testing.assert_array_equal(there, region((300, 200), (80, 60)))


def test_seeds_differ(node):
    other = synthetic.lymph_node(6, "micro", size_um=SIZE_UM)
    assert (other.labels != node.labels).mean() > 0.05


# Truth -----------------------------------------------------------------------------------------------------------


def test_deconvolution_with_the_true_vectors_recovers_the_concentrations(node):
    sharp = replace(SITE, blur_um=1e-3, sharpen=0.0, noise=0.0, gamma=1.0)
    pixels = synthetic.scan(node, sharp, (300, 300), (200, 200)).astype(float)
    density = -np.log10(np.maximum(pixels, 0.5) / np.array(sharp.white))
    truth = synthetic.concentrations(node, (300 * sharp.mpp, 300 * sharp.mpp), (200, 200), mpp=sharp.mpp)
    found = density @ np.linalg.pinv(slide_stains(sharp, node.seed)[:2])
    readable = pixels.min(2) > 25  # darker grey levels hold too few steps to tell stains apart
    assert readable.mean() > 0.5
    assert np.abs(found - truth[..., :2])[readable].max() < 0.06


def test_nuclei_of_a_region_are_those_of_the_whole(node):
    whole = synthetic.nuclei(node)
    box = Box(200, 150, 300, 250)
    part = synthetic.nuclei(node, box)
    inside = whole[box.contains(whole[["x_um", "y_um"]].to_numpy())]
    keys = ["x_um", "y_um"]
    np.testing.assert_array_equal(part.sort_values(keys)[keys], inside.sort_values(keys)[keys])
    check_objects(whole)


def test_densities_are_those_asked_for(node):
    counts = synthetic.nuclei(node)["tissue"].value_counts()
    for name in ("paracortex", "tumour", "medulla"):
        expected = DENSITY_PER_MM2[name] * node.area_mm2(name)
        if expected > 200:
            assert counts[name] == pytest.approx(expected, abs=5 * np.sqrt(expected))
    assert "glass" not in counts


def test_every_nucleus_is_dark_where_it_is_said_to_be(node):
    nuclei = synthetic.nuclei(node).query("`class` != 'red cell'")
    stain = synthetic.concentrations(node, (0, 0), (1000, 800), mpp=1.0)[..., 0]
    rows, cols = nuclei["y_um"].astype(int), nuclei["x_um"].astype(int)
    at_nuclei = stain[rows, cols]
    assert (at_nuclei > 0.2).mean() > 0.97
    assert np.median(at_nuclei) > 5 * np.median(stain[stain > 0])


@pytest.mark.parametrize("category", ["itc", "micro", "macro"])
def test_lesions_have_the_extent_of_their_category(category):
    size = (3200.0, 2600.0) if category == "macro" else (1600.0, 1200.0)
    node = synthetic.lymph_node(11, category, size_um=size)
    low, high = CATEGORIES[category]
    assert low < node.lesions["length_um"].max() <= high
    assert node.category == category
    tumour = np.isin(node.labels, [LABELS.index("tumour"), LABELS.index("tumour stroma")])
    assert node.lesions["area_um2"].sum() == pytest.approx(tumour.sum() * MAP_UM**2, rel=0.25)


def test_a_normal_node_has_no_tumour():
    node = synthetic.lymph_node(3, size_um=SIZE_UM)
    assert node.category == "normal"
    assert "tumour" not in set(synthetic.nuclei(node)["class"])


# Slides and cohorts ----------------------------------------------------------------------------------------------


def test_a_pyramid_opens_upright_in_colour_with_its_mpp(node, tmp_path, jpeg_error):
    pixels = synthetic.scan(node, SITE, (0, 0), (1000, 800))
    pixels[:100, :100] = (200, 30, 30)
    path = synthetic.write_pyramid(pixels, tmp_path / "s.tif", mpp=0.7, quality=90)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.7, rel=1e-4)
        assert [level.downsample for level in slide.levels] == [1]
        read = slide.read_region((0, 0), (1000, 800)).astype(int)
    assert np.abs(read - pixels).mean() < 1.25 * jpeg_error(pixels, 90)
    assert np.abs(read[20:80, 20:80] - (200, 30, 30)).max() < 12
    assert [p.name for p in tmp_path.iterdir()] == ["s.tif"]


def test_large_pyramids_have_levels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1100, 1500, 3), dtype=np.uint8)
    with open_slide(synthetic.write_pyramid(pixels, tmp_path / "s.tif", mpp=0.5)) as slide:
        assert [level.downsample for level in slide.levels] == [1, 4]


def test_levels_kept_in_a_file_while_they_are_made_are_the_same(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (1100, 4500, 3), dtype=np.uint8)
    first = synthetic.write_pyramid(pixels, tmp_path / "a.tif", mpp=0.5)
    monkeypatch.setattr("pathkit.synthetic.pyramid._IN_MEMORY", 0)
    second = synthetic.write_pyramid(pixels, tmp_path / "b.tif", mpp=0.5)
    assert len(open_slide(second).levels) == 3
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_a_slide_whose_pixels_fail_half_way_is_not_there(node, tmp_path):
    def read(location, size):
        if location[1] > 0:
            raise OSError("the scanner has stopped")
        return synthetic.scan(node, SITE, location, size)

    with pytest.raises(OSError, match="the scanner has stopped"):
        synthetic.write_pyramid(read, tmp_path / "s.tif", mpp=1.0, size=(700, 800))
    assert not list(tmp_path.iterdir())


def test_tiles_are_the_same_whatever_their_order_and_whoever_makes_them():
    places = [(x, y) for y in (200, 264, 328) for x in (300, 364, 428)]
    here = {place: region(place, (64, 64)) for place in places}
    shuffled = [places[k] for k in np.random.default_rng(0).permutation(len(places))]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = dict(zip(shuffled, pool.map(region, shuffled, [(64, 64)] * len(places)), strict=True))
    for place in places:
        np.testing.assert_array_equal(here[place], there[place])
    whole = region((300, 200), (192, 192))
    rows = [np.hstack([here[x, y] for x in (300, 364, 428)]) for y in (200, 264, 328)]
    np.testing.assert_array_equal(np.vstack(rows), whole)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    slides = synthetic.lymph_node_cohort(
        folder,
        n_patients=3,
        nodes_per_patient=1,
        kinds=("micro",),
        size_um=SIZE_UM,
        workers=1,
        progress=False,
    )
    return folder, slides


def test_a_cohort_is_in_tables_and_files(tiny):
    _, slides = tiny
    assert slides["patient_id"].nunique() == 3
    assert set(slides["site"]) == {"north", "east", "south"}
    assert slides["category"].value_counts().to_dict() == {"micro": 2, "normal": 1}
    for row in slides.itertuples():
        with open_slide(row.path) as slide:
            assert slide.mpp == pytest.approx(row.mpp, rel=1e-4)
            outlines = read_annotations(row.annotations_path, slide=slide)
        assert (len(outlines) > 0) == (row.label == "tumour")
        objects = check_objects(read_table(row.objects_path))
        assert ("tumour" in set(objects["class"])) == (row.label == "tumour")


def test_a_plain_script_makes_a_cohort_with_two_workers(tmp_path):
    script = tmp_path / "script.py"  # no `if __name__ == "__main__"`, as people write them
    script.write_text(
        "from pathkit.synthetic import lymph_node_cohort\n"
        "table = lymph_node_cohort('cohort', n_patients=2, nodes_per_patient=1, size_um=(500, 400), progress=False)\n"
        "print(len(table), 'made')\n"
    )
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.stdout == "2 made\n", result.stderr
    assert len(list((tmp_path / "cohort").glob("*.tif"))) == 2


def test_an_interrupted_cohort_resumes_to_the_same_bytes(tiny):
    folder, slides = tiny
    before = {p.name: p.read_bytes() for p in folder.glob("*.tif")}
    first = sorted(before)[0]
    (folder / first).unlink()
    (folder / f"{first}.partial").write_bytes(b"half")  # what an interruption leaves
    kept = (folder / sorted(before)[1]).stat().st_mtime_ns
    again = synthetic.lymph_node_cohort(
        folder,
        n_patients=3,
        nodes_per_patient=1,
        kinds=("micro",),
        size_um=SIZE_UM,
        workers=2,
        progress=False,
    )
    assert {p.name: p.read_bytes() for p in folder.glob("*.tif")} == before
    assert (folder / sorted(before)[1]).stat().st_mtime_ns == kept
    assert again.equals(slides)


def test_a_cohort_stopped_in_the_middle_of_a_slide_goes_on_there(tmp_path, monkeypatch):
    from pathkit.synthetic import cohort

    options = {
        "n_patients": 2, "nodes_per_patient": 1, "positive": 0, "size_um": (600.0, 600.0), "workers": 1, "progress": False,
    }  # fmt: skip
    whole = synthetic.lymph_node_cohort(tmp_path / "whole", **options)
    real, calls = cohort.scan, []

    def stopped(architecture, site, location, size, **how):
        calls.append(location)
        if len(calls) == 4:  # the second band of the second slide
            raise OSError("no space left")
        return real(architecture, site, location, size, **how)

    monkeypatch.setattr(cohort, "scan", stopped)
    with pytest.raises(OSError, match="no space left"):
        synthetic.lymph_node_cohort(tmp_path / "halves", **options)
    assert len(list((tmp_path / "halves").glob("*.tif*"))) == 1
    assert not (tmp_path / "halves" / "slides.parquet").exists()
    monkeypatch.setattr(cohort, "scan", real)
    again = synthetic.lymph_node_cohort(tmp_path / "halves", **options)
    for one, other in zip(whole["path"], again["path"], strict=True):
        with open(one, "rb") as a, open(other, "rb") as b:
            assert a.read() == b.read()


def test_another_cohort_does_not_overwrite_this_one(tiny):
    with pytest.raises(ValueError, match="made with other parameters"):
        synthetic.lymph_node_cohort(tiny[0], n_patients=4, progress=False)


def test_impossible_parameters(node, tmp_path):
    with pytest.raises(ValueError, match="no category 'mega'"):
        synthetic.lymph_node(1, "mega")
    with pytest.raises(ValueError, match="too small"):
        synthetic.lymph_node(1, "macro", size_um=(1000, 800))
    with pytest.raises(ValueError, match="density of tumour must be 0 to"):
        synthetic.nuclei(node, density={"tumour": -1})
    with pytest.raises(ValueError, match="no tissue 'bone'"):
        synthetic.nuclei(node, density={"bone": 1})
    with pytest.raises(ValueError, match="mpp and size must be positive"):
        synthetic.concentrations(node, (0, 0), (5, 5), mpp=0)
    with pytest.raises(ValueError, match="share from 0 to 1"):
        synthetic.lymph_node_cohort(tmp_path, positive=2)
    with pytest.raises(ValueError, match="sites are among"):
        synthetic.lymph_node_cohort(tmp_path, sites=("moon",))


def test_a_cohort_larger_than_the_disk_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(ValueError, match=r"2 slides need about 0\.0 GB, 0\.0 GB are free"):
        synthetic.lymph_node_cohort(tmp_path, n_patients=1, nodes_per_patient=2, progress=False)
    assert not list(tmp_path.glob("*.tif"))


# Data sets by name -----------------------------------------------------------------------------------------------


def test_a_named_set_is_prepared_once_and_can_be_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHKIT_DATA", str(tmp_path / "cache"))
    assert not datasets.is_ready("lymph-nodes-tiny")
    slides = datasets.load("lymph-nodes-tiny", workers=2, progress=False)
    assert datasets.is_ready("lymph-nodes-tiny")
    times = [p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.tif")]
    again = datasets.load("lymph-nodes-tiny", progress=False)
    assert times == [p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.tif")]
    assert again["path"].tolist() == slides["path"].tolist()
    assert datasets.remove("lymph-nodes-tiny") > 100_000
    assert not datasets.is_ready("lymph-nodes-tiny")
    with pytest.raises(ValueError, match="no set 'lungs'"):
        datasets.load("lungs")
