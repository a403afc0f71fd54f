"""Stains: densities, fits against the painted truth, normalisers, augmentation."""

from __future__ import annotations

import pickle
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2hed, rgb2lab

from pathkit import open_slide, stain
from pathkit.synthetic import SITES, breast, lymph_node, scan, slide_stains

ARCHITECTURES = {"breast": breast(5, size_um=(800, 800)), "lymph node": lymph_node(5, size_um=(800, 800))}


def painted(organ, site_name):
    """A field of a synthetic slide, and the stains that it was painted with."""
    architecture = ARCHITECTURES[organ]
    site = SITES[site_name].at(0.5) if organ == "breast" else SITES[site_name]
    size = (1000, 1000) if organ == "breast" else (int(800 / site.mpp),) * 2
    return scan(architecture, site, (0, 0), size), slide_stains(site, architecture.seed)


@pytest.fixture(scope="module")
def fields():
    return {key: painted(*key) for key in product(ARCHITECTURES, SITES)}


@pytest.fixture(scope="module")
def pair(fields):
    return fields["breast", "north"][0], fields["breast", "island"][0]


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 40, 3), np.uint8)


# Optical density


def test_density_there_and_back_loses_nothing():
    levels = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=-1)
    for white in (255, (243, 240, 250)):
        density = stain.optical_density(levels, white=white)
        assert np.array_equal(stain.from_optical_density(density, white=white), levels)
        assert np.allclose(density, stain.optical_density(levels.astype(float), white=white))


def test_separation_is_that_of_scikit_image(pair):
    ours = stain.separate(pair[0], [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    # Theirs is in units of the density of 1e-6, without the 1 that keeps black finite, and never negative.
    theirs = rgb2hed(pair[0]) * -np.log10(1e-6)
    kept = pair[0].min(-1) > 60
    assert np.abs(np.maximum(ours, 0) - theirs)[kept].max() < 0.02
    assert np.corrcoef(np.maximum(ours, 0)[kept][:, 0], theirs[kept][:, 0])[0, 1] > 0.9999


@pytest.mark.parametrize("rows", [2, 3])
def test_combining_what_was_separated_gives_the_pixels(rows):
    rng = np.random.default_rng(1)
    amounts = rng.uniform(0.05, 0.35, (50, 50, rows))
    pixels = stain.combine(amounts, stain.HED[:rows], white=245)
    assert np.abs(stain.separate(pixels, stain.HED[:rows], white=245) - amounts).max() < 0.02


def test_angles_by_hand():
    assert stain.angle_deg([1, 0, 0], [0, 2, 0]) == pytest.approx(90)
    assert stain.angle_deg([1, 1, 0], [3, 0, 0]) == pytest.approx(45)


# Fits


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_painted_stains_are_recovered_within_five_degrees(fields, method):
    for key, (pixels, truth) in fields.items():
        found = stain.fit(pixels, method=method)
        errors = [stain.angle_deg(*rows) for rows in zip(found.stains, truth, strict=False)]
        assert max(errors) < 5, (key, errors)


def test_strengths_follow_the_painted_strengths():
    """One tissue, one scanner, two days of staining."""
    architecture, site = ARCHITECTURES["breast"], SITES["north"].at(0.5)
    days = [slide_stains(site, day) for day in (1, 4)]
    scans = [scan(architecture, site, (400, 400), (800, 800), stain_seed=day) for day in (1, 4)]
    painted_ratio = np.linalg.norm(days[1][:2], axis=1) / np.linalg.norm(days[0][:2], axis=1)
    found = [stain.fit(pixels).strengths for pixels in scans]
    assert abs(painted_ratio - 1).max() > 0.1
    assert found[1] / found[0] == pytest.approx(painted_ratio, rel=0.04)


def test_a_slide_gives_the_stains_of_its_pixels(pair):
    slide = open_slide(pair[0], mpp=0.5)
    whole, sampled = stain.fit(pair[0]), stain.fit(slide, mpp=0.5)
    assert max(stain.angle_deg(*rows) for rows in zip(whole.stains, sampled.stains, strict=True)) < 2
    assert sampled.n_pixels <= stain.SAMPLE
    assert np.array_equal(stain.fit(slide, seed=3).stains, stain.fit(slide, seed=3).stains)


def test_a_slide_without_mpp_is_fitted_at_its_own_resolution(pair):
    assert stain.fit(open_slide(pair[0])).n_pixels > 1000


def test_half_the_light_changes_strengths_not_directions(pair):
    """A thicker section: densities grow, their directions stay."""
    thick = stain.from_optical_density(1.3 * stain.optical_density(pair[0], white=243), white=243)
    a, b = stain.fit(pair[0], white=243), stain.fit(thick, white=243)
    assert max(stain.angle_deg(*rows) for rows in zip(a.stains, b.stains, strict=True)) < 1.5
    assert b.strengths / a.strengths == pytest.approx([1.3, 1.3], rel=0.06)


def test_macenko_agrees_with_torchstain(pair):
    torchstain = pytest.importorskip(
        "torchstain", reason="torchstain is not installed: no peer to compare with"
    )
    peer = torchstain.normalizers.MacenkoNormalizer(backend="numpy")
    peer.fit(pair[0], Io=int(stain.white_point(pair[0]).mean()))
    ours = stain.fit(pair[0])
    assert max(stain.angle_deg(*rows) for rows in zip(ours.stains, peer.HERef.T, strict=True)) < 3


@pytest.mark.real
@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_real_reference_fields_have_the_published_stains(real_data, method):
    for path in sorted((real_data / "stain_reference").glob("*.[jp][pn]g")):
        found = stain.fit(np.asarray(Image.open(path).convert("RGB")), method=method)
        errors = [stain.angle_deg(*rows) for rows in zip(found.stains, stain.MACENKO, strict=True)]
        assert max(errors) < 8, (path.name, errors)


def test_fields_that_are_no_tissue_are_refused():
    white, black = np.full((50, 50, 3), 246, np.uint8), np.zeros((50, 50, 3), np.uint8)
    ink = np.full((50, 50, 3), (40, 90, 200), np.uint8)
    for method in stain.METHODS:
        with pytest.raises(ValueError, match="the field is blank"):
            stain.fit(white, method=method)
        with pytest.raises(ValueError, match="mostly black"):
            stain.fit(black, method=method)
        with pytest.raises(ValueError, match="mostly ink"):
            stain.fit(ink, method=method)
    with pytest.raises(ValueError, match="no stained tissue"):
        stain.fit(open_slide(np.repeat(np.repeat(white, 4, 0), 4, 1), mpp=1.0))


@pytest.mark.parametrize("row", [0, 1])
def test_a_field_of_one_stain_is_refused(row):
    amounts = np.random.default_rng(0).uniform(0.3, 0.9, (100, 100, 1)) * np.eye(2)[row]
    pixels = stain.combine(amounts, stain.MACENKO, white=245)
    for method in ("macenko", "vahadane"):
        with pytest.raises(ValueError, match="one stain, not two"):
            stain.fit(pixels, method=method)


def test_impossible_arguments():
    field = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(ValueError, match="no method 'magic'"):
        stain.fit(field, method="magic")
    with pytest.raises(ValueError, match="cannot be told apart"):
        stain.separate(field, [[1, 0, 0], [2, 0, 0]])
    with pytest.raises(ValueError, match="2 or 3 rows"):
        stain.separate(field, [1, 0, 0])
    with pytest.raises(ValueError, match="uint8"):
        stain.macenko_stains(field.astype(float))
    with pytest.raises(ValueError, match="positive strengths"):
        stain.StainFit(stain.MACENKO, [1, 0])
    with pytest.raises(ValueError, match="uint8"):
        stain.StainFit(stain.MACENKO, [1, 1]).to(stain.REFERENCE)(field.astype(float))
    with pytest.raises(ValueError, match="0 <= factor < 1"):
        stain.HedJitter(2.0)
    with pytest.raises(ValueError, match="at least two"):
        stain.RandStainNA([])


# Normalisers


@pytest.mark.parametrize("keep_residual", [False, True])
def test_the_tables_give_what_the_formula_gives(noise, keep_residual):
    source, target = (
        stain.StainFit(stain.MACENKO, [1.2, 0.6], 243),
        stain.StainFit(stain.HED[:2], [0.9, 0.7], 250),
    )
    normaliser = source.to(target, keep_residual=keep_residual)
    density = stain.optical_density(noise.astype(float), white=243) @ normaliser.mix
    light = 251 * 10.0**-density - 1
    ours = normaliser(noise)
    assert np.abs(ours - np.clip(light, 0, 255)).max() < 0.8  # rounding is 0.5
    assert np.array_equal(pickle.loads(pickle.dumps(normaliser))(noise), ours)


def test_normalising_a_slide_to_itself_changes_hardly_anything(pair):
    own = stain.fit(pair[0])
    assert np.abs(own.to(own, keep_residual=True)(pair[0]).astype(int) - pair[0]).max() <= 1
    colours = stain.fit(pair[0], method="reinhard")
    assert np.abs(colours.to(colours)(pair[0]).astype(int) - pair[0]).max() <= 1


@pytest.mark.parametrize("method", stain.METHODS)
def test_a_normalised_slide_has_the_colours_of_its_target(pair, method):
    source, target = (stain.fit(field, method=method) for field in pair)
    changed = source.to(target)(pair[0])
    if method == "reinhard":
        again = stain.fit(changed, method=method, white=stain.white_point(pair[0]))
        assert again.mean == pytest.approx(target.mean, abs=2.5)
        return
    again = stain.fit(changed, method=method, white=target.white)
    errors = [stain.angle_deg(*rows) for rows in zip(again.stains, target.stains, strict=True)]
    assert max(errors) < 4
    assert again.strengths == pytest.approx(target.strengths, rel=0.1)


def test_concentrations_survive_normalisation(pair):
    """Only what is painted on changes, not where."""
    source, target = (stain.fit(field) for field in pair)
    before, after = source.separate(pair[0]), target.separate(source.to(target)(pair[0]))
    inside = pair[0].min(-1) > 70
    for k in range(2):
        assert np.corrcoef(before[inside][:, k], after[inside][:, k])[0, 1] > 0.97


def test_tensors_and_arrays_are_changed_alike(noise, pair):
    torch = pytest.importorskip("torch")
    fits = [stain.fit(field, method="reinhard") for field in pair]
    changes = [
        stain.fit(pair[0]).to(stain.fit(pair[1])),
        fits[0].to(fits[1]),
        lambda batch: stain.HedJitter(0.3, 0.05)(batch, seed=4),
        lambda batch: stain.RandStainNA(fits)(batch, seed=4),
    ]
    tensor = torch.from_numpy(noise).permute(0, 3, 1, 2)
    for change in changes:
        array, ours = change(noise), change(tensor)
        assert ours.dtype == torch.uint8
        assert np.abs(ours.permute(0, 2, 3, 1).numpy().astype(int) - array).max() <= 1
        assert change(tensor.float()).is_floating_point()


def beside_scikit_image(normaliser, pixels):
    """Differences in grey levels from the same transform in double precision, not rounded."""
    from skimage.color import lab2rgb

    exact = 255 * lab2rgb(rgb2lab(pixels) * normaliser.scale + normaliser.shift)
    return np.abs(normaliser(pixels) - exact)


def test_reinhard_is_that_of_scikit_image(noise, pair):
    """Rounding alone makes 0.5 at most and 0.25 on average."""
    source, target = (stain.fit(field, method="reinhard") for field in pair)
    for pixels in (pair[0], noise):
        apart = beside_scikit_image(source.to(target), pixels)
        assert apart.max() <= 1
        assert apart.mean() < 0.26


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_reinhard_of_glass_of_black_and_of_one_stain(scale):
    amounts = np.linspace(0, 2, 200)[:, None]
    ramps = [stain.combine(amounts * row, stain.HED[:2], white=250) for row in np.eye(2)]
    greys = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=-1)
    normaliser = stain.ReinhardFit([60, 20, -10], [10, 10, 10]).to(
        stain.ReinhardFit([65, 15, -5], [10 * scale] * 3)
    )
    for pixels in (greys, *ramps):
        assert beside_scikit_image(normaliser, pixels).max() <= 1


@pytest.mark.real
def test_reinhard_of_real_tissue(real_data):
    path = sorted((real_data / "stain_reference").glob("*.[jp][pn]g"))[0]
    field = np.asarray(Image.open(path).convert("RGB"))[:400, :400]
    normaliser = stain.fit(field, method="reinhard").to(stain.ReinhardFit([65, 15, -5], [12, 9, 6]))
    apart = beside_scikit_image(normaliser, field)
    assert apart.max() <= 1
    assert apart.mean() < 0.27


@pytest.fixture
def early(monkeypatch):
    """Tables of every colour are made from a hundred pixels on, and two are kept."""
    monkeypatch.setattr(stain, "_COLOURS", stain._Colours(after=100, most=2))
    return stain._COLOURS


def test_the_table_of_every_colour_gives_what_arithmetic_gives(early):
    normaliser = stain.ReinhardNormaliser(np.array([1.2, 0.8, 1.5]), np.array([-9.0, 4.0, 2.0]))
    pixels = np.random.default_rng(3).integers(0, 256, (301, 211, 3), np.uint8)
    wanted = np.empty_like(pixels)
    normaliser._compute(pixels.reshape(-1), wanted.reshape(-1))
    assert np.array_equal(normaliser(pixels), wanted)
    assert normaliser in early.tables
    buffer = np.concatenate([[0], pixels.ravel()]).astype(np.uint8)[1:].reshape(pixels.shape)
    for n in range(9):  # neither whole words nor where words begin
        assert np.array_equal(normaliser(buffer.reshape(-1, 3)[:n]), wanted.reshape(-1, 3)[:n])
    assert normaliser(buffer, out=buffer) is buffer
    assert np.array_equal(buffer, wanted)


def test_tables_of_colours_are_few_and_go_with_their_normaliser(early):
    made = [stain.ReinhardNormaliser(np.ones(3), np.full(3, float(k))) for k in range(3)]
    few, many = np.zeros((60, 3), np.uint8), np.zeros((100, 3), np.uint8)
    made[0](few)
    assert not early.tables
    made[0](few)
    assert list(early.tables) == made[:1]
    for normaliser in made[1:]:
        normaliser(many)
    assert list(early.tables) == made[1:]
    made[0](few)  # counts again
    assert list(early.tables) == made[1:]
    assert len(pickle.dumps(made[1])) < 2000
    del made[1], normaliser
    assert list(early.tables) == made[1:]


def test_a_batch_can_be_changed_in_place(noise):
    normaliser = stain.REFERENCE.to(stain.StainFit(stain.HED[:2], [1, 1]))
    wanted, buffer = normaliser(noise), noise.copy()
    assert normaliser(buffer, out=buffer) is buffer
    assert np.array_equal(buffer, wanted)
    with pytest.raises(ValueError, match="contiguous"):
        normaliser(noise, out=buffer[:1])


# Augmentation and distances


def test_jitter_follows_its_seed_and_its_strength(noise):
    strong = stain.HedJitter(0.3, 0.05)
    assert np.array_equal(strong(noise, seed=1), strong(noise, seed=1))
    assert not np.array_equal(strong(noise, seed=1), strong(noise, seed=2))
    assert np.abs(stain.HedJitter(0.0, 0.0)(noise, seed=1).astype(int) - noise).max() <= 1
    assert not np.array_equal(strong(noise, seed=1)[0], strong(noise[[1, 0, 2, 3]], seed=1)[1])


def test_jitter_scales_each_stain_by_its_factor():
    jitter = stain.HedJitter(0.3, 0.0)
    amounts = np.random.default_rng(2).uniform(0.1, 0.3, (1, 20, 20, 3))
    pixels = stain.combine(amounts, stain.HED)
    mix = jitter.draw(1, seed=9)[0][0]
    factors = np.diag(stain.HED @ mix @ np.linalg.inv(stain.HED))
    after = stain.separate(jitter(pixels, seed=9), stain.HED)
    assert np.abs(after - amounts * factors).max() < 0.03


def test_randstainna_gives_the_tissue_the_colours_that_it_draws(pair):
    fits = [stain.fit(field, method="reinhard") for field in pair]
    field = pair[0][None, 200:500, 200:500]
    tissue = rgb2lab(field[0])[..., 0] < 88
    changed = rgb2lab(stain.RandStainNA(fits, strength=0.0)(field, seed=0)[0])[tissue]
    assert changed.mean(0) == pytest.approx((fits[0].mean + fits[1].mean) / 2, abs=2)
    assert changed.std(0) == pytest.approx((fits[0].spread + fits[1].spread) / 2, rel=0.15)


def test_distances_between_slides_by_hand():
    fits = {
        "a": stain.StainFit([[1, 0, 0], [0, 1, 0]], [1.0, 0.5]),
        "b": stain.StainFit([[1, 1, 0], [0, 1, 0]], [2.0, 0.25]),
    }
    (row,) = stain.distances(fits).to_dict("records")
    assert row["haematoxylin_deg"] == pytest.approx(45)
    assert row["eosin_deg"] == pytest.approx(0)
    assert (row["haematoxylin_ratio"], row["eosin_ratio"]) == pytest.approx((2.0, 0.5))


def test_importing_it_costs_no_torch():
    code = "import sys, pathkit.stain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
