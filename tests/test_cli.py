"""The command line: results on good slides, one clear line on bad ones."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pathkit import cli
from pathkit.annotations import read_annotations
from pathkit.geometry import Raster
from pathkit.patches import read_patches


def noisy_tissue(size=(1200, 900), seed=0):
    """A pink, purple-speckled square on white: enough to be tissue."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), 245, np.uint8)
    inside = np.array([225, 150, 195]) + rng.normal(0, 14, (600, 800, 3))
    nuclei = rng.random((150, 200)).repeat(4, 0).repeat(4, 1) > 0.8
    inside[nuclei] = np.array([110, 70, 150]) + rng.normal(0, 10, (int(nuclei.sum()), 3))
    pixels[150:750, 200:1000] = inside.clip(0, 255)
    return pixels


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "field.png"
    Image.fromarray(noisy_tissue()).save(path)
    return path


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def test_tissue_writes_mask_polygons_and_picture(slide_path, tmp_path, capsys):
    assert run("tissue", slide_path, "--mpp", 0.5, "--out", tmp_path) == 0
    mask = Raster.load(tmp_path / "field.tissue.npz")
    area_um2 = mask.values.sum() * mask.mpp**2
    assert area_um2 == pytest.approx(800 * 600 * 0.25, rel=0.1)
    polygons = read_annotations(tmp_path / "field.tissue.geojson")
    assert polygons.area.sum() == pytest.approx(800 * 600, rel=0.1)
    with Image.open(tmp_path / "field.tissue.png") as picture:
        assert picture.width > 300
    assert "1 of 1 slides done" in capsys.readouterr().out


def test_a_slide_smaller_than_a_pixel_of_the_mask(tmp_path, capsys):
    Image.fromarray(noisy_tissue()[300:310, 400:410]).save(tmp_path / "tiny.png")
    assert run("tissue", tmp_path / "tiny.png", "--mpp", 0.5, "--out", tmp_path) == 0
    assert Raster.load(tmp_path / "tiny.tissue.npz").values.shape == (1, 1)
    assert "1 of 1 slides done" in capsys.readouterr().out


def test_patches_lie_on_the_tissue(slide_path, tmp_path):
    arguments = ["--mpp", 0.5, "--size-px", 64, "--patch-mpp", 1.0, "--out", tmp_path]
    assert run("patches", slide_path, *arguments) == 0
    table = read_patches(tmp_path / "field.patches.parquet")
    assert len(table) >= 20
    wide = table["x_l0"].clip(200, 1000), (table["x_l0"] + 128).clip(200, 1000)
    high = table["y_l0"].clip(150, 750), (table["y_l0"] + 128).clip(150, 750)
    on_tissue = (wide[1] - wide[0]) * (high[1] - high[0]) / 128**2
    assert (on_tissue > 0.4).all()  # half of each, but for the mask's coarse pixels


def test_features_are_one_row_a_patch_and_clusters_are_drawn(slide_path, tmp_path):
    arguments = ["--mpp", 0.5, "--size-px", 64, "--patch-mpp", 1.0, "--clusters", 2, "--out", tmp_path]
    assert run("features", slide_path, *arguments) == 0
    features = np.load(tmp_path / "field.features.npy")
    table = read_patches(tmp_path / "field.patches.parquet")
    assert features.shape == (len(table), 1280)
    assert np.isfinite(features).all()
    assert set(table["cluster"]) == {0, 1}
    assert (tmp_path / "field.clusters.png").stat().st_size > 10_000


def test_features_in_the_stain_of_another_slide(slide_path, tmp_path):
    redder = tmp_path / "redder.png"
    Image.fromarray((noisy_tissue(seed=1) * [1.0, 0.8, 0.9]).astype(np.uint8)).save(redder)
    grid = ["--mpp", 0.5, "--size-px", 128, "--encoder", "colour", "--clusters", 0]
    for name, more in (("plain", []), ("own", ["--stain", slide_path]), ("other", ["--stain", redder])):
        assert run("features", slide_path, *grid, *more, "--out", tmp_path / name) == 0
    plain, own, other = (
        np.load(tmp_path / name / "field.features.npy") for name in ("plain", "own", "other")
    )
    # Mean optical densities: to its own stain hardly anything changes, to the other one green light is lost.
    assert np.abs(own - plain)[:, :3].mean() < 0.02 < 0.04 < (other - plain)[:, 1].mean()


def test_heatmap_of_a_saved_model(slide_path, tmp_path):
    from pathkit.models import patch_classifier, save_model

    model = patch_classifier("small", classes=["normal", "tumour"])
    model.mpp, model.size_px = 1.0, 64
    save_model(model, tmp_path / "model.pt")
    assert run("heatmap", slide_path, "--mpp", 0.5, "--model", tmp_path / "model.pt", "--out", tmp_path) == 0
    heat = Raster.load(tmp_path / "field.heatmap.npz")
    known = heat.values[np.isfinite(heat.values)]
    assert known.size > 0
    assert ((known >= 0) & (known <= 1)).all()
    assert (tmp_path / "field.heatmap.png").exists()
    assert (tmp_path / "field.lesions.csv").exists()
    closer = ("--refine", 0.9, "--out", tmp_path / "closer")
    assert run("heatmap", slide_path, "--mpp", 0.5, "--model", tmp_path / "model.pt", *closer) == 0
    refined = Raster.load(tmp_path / "closer" / "field.heatmap.npz")
    assert refined.attrs["refine"] == 0.9
    np.testing.assert_array_equal(np.isnan(refined.values), np.isnan(heat.values))


def test_a_folder_with_a_bad_slide_gives_a_row_each_and_status_1(slide_path, tmp_path, capsys):
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "good.png").write_bytes(slide_path.read_bytes())
    (folder / "bad.svs").write_text("not a slide")
    assert run("tissue", folder, "--mpp", 0.5, "--out", tmp_path / "out") == 1
    table = pd.read_csv(tmp_path / "out" / "tissue.csv", keep_default_na=False).set_index("slide_id")
    assert table["status"].to_dict() == {"good": "ok", "bad": "error"}
    assert "neither a slide format" in table.loc["bad", "error"]
    assert "bad.svs: neither a slide format" in capsys.readouterr().err
    assert (tmp_path / "out" / "good.tissue.npz").exists()


def bad_inputs(folder, slide_path):
    (folder / "empty.svs").touch()
    (folder / "text.svs").write_text("not a slide")
    (folder / "folder").mkdir()
    truncated = folder / "truncated.png"
    truncated.write_bytes(slide_path.read_bytes()[:4000])
    return {
        folder / "absent.svs": "no such file",
        folder / "empty.svs": "empty",
        folder / "text.svs": "neither a slide format",
        folder / "folder": "no slides in this folder",
        truncated: "damaged image",
        slide_path: "no mpp in its metadata",
    }


@pytest.mark.parametrize("command", ["tissue", "patches", "features"])
def test_bad_input_is_one_line_and_status_1(command, slide_path, tmp_path, capsys):
    for path, message in bad_inputs(tmp_path, slide_path).items():
        assert run(command, path, "--out", tmp_path / "out") == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pathkit")]
        assert len(lines) == 1, lines
        assert message in lines[0]


def test_a_real_process_shows_no_traceback(tmp_path):
    (tmp_path / "text.svs").write_text("not a slide")
    command = [
        sys.executable,
        "-m",
        "pathkit",
        "tissue",
        str(tmp_path / "text.svs"),
        "--out",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "text.svs: neither a slide format" in result.stderr


def test_no_model_and_no_command(slide_path, tmp_path, capsys):
    assert run("heatmap", slide_path, "--mpp", 0.5, "--model", tmp_path / "absent.pt", "--out", tmp_path) == 1
    assert "absent.pt" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        run()
    assert usage.value.code == 2


@pytest.mark.real
def test_the_real_slides(real_slide_path, no_mpp_slide_path, tmp_path, capsys):
    assert run("tissue", real_slide_path, "--out", tmp_path) == 0
    assert run("patches", real_slide_path, "--out", tmp_path) == 0
    assert len(read_patches(tmp_path / f"{real_slide_path.stem}.patches.parquet")) > 20
    capsys.readouterr()
    assert run("tissue", no_mpp_slide_path, "--out", tmp_path) == 1
    assert "--mpp" in capsys.readouterr().err
    assert run("tissue", no_mpp_slide_path, "--mpp", 0.5, "--out", tmp_path) == 0
    assert (tmp_path / f"{no_mpp_slide_path.stem}.tissue.geojson").exists()


@pytest.mark.real
def test_broken_files_of_other_projects(real_data, tmp_path, capsys):
    fixtures = real_data / "slides" / "openslide_fixtures"
    assert run("tissue", fixtures / "unopenable.tiff", fixtures / "unreadable.svs", "--out", tmp_path) == 1
    table = pd.read_csv(tmp_path / "tissue.csv")
    assert table["status"].tolist() == ["error", "error"]
    assert "damaged" in table["error"][1]
