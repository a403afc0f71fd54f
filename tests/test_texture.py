"""Texture: invariant to what it should not see, sensitive to what it should."""

from __future__ import annotations

import numpy as np
import pytest

from pathkit.texture import shuffle_tiles, texture_features


@pytest.fixture(scope="module")
def patches():
    rng = np.random.default_rng(0)
    noise = rng.integers(60, 230, (2, 32, 32, 3), dtype=np.uint8)
    wave = (150 + 60 * np.sin(np.arange(32) * 2 * np.pi / 8)).astype(np.uint8)
    stripes = np.repeat(np.tile(wave, (32, 1))[None, ..., None], 3, axis=3)
    return np.concatenate([noise, stripes])


def test_a_patch_turned_or_mirrored_is_the_same_texture(patches):
    plain = texture_features(patches, progress=False)
    for other in (np.rot90(patches, axes=(1, 2)), patches[:, ::-1], patches[:, :, ::-1]):
        turned = texture_features(np.ascontiguousarray(other), progress=False)
        np.testing.assert_allclose(turned, plain, atol=0.012)


def test_histograms_are_shares_and_every_number_is_finite(patches):
    table = texture_features(
        np.concatenate([patches, np.full((1, 32, 32, 3), 255, np.uint8)]), progress=False
    )
    for radius in ("8x1", "16x3"):
        np.testing.assert_allclose(table.filter(like=radius).sum(axis=1), 1, rtol=1e-5)
    assert np.isfinite(table.to_numpy()).all()
    assert table.columns.is_unique
    even = table.iloc[-1]
    assert even["contrast 1 px"] == 0
    assert even["homogeneity 3 px"] == 1
    assert even["R spread"] == 0


def test_contrast_by_hand():
    """A checkerboard of two levels: every straight neighbour differs, no diagonal one does."""
    board = np.indices((16, 16)).sum(0) % 2
    density = board * 0.6 * 2.4 / 2.4
    pixels = np.rint(256 * 10**-density - 1).astype(np.uint8)
    table = texture_features(np.repeat(pixels[None, ..., None], 3, axis=3), progress=False)
    grey = np.unique(np.rint(-np.log10((pixels.astype(float) + 1) / 256) * (255 / 2.4)))
    step = np.diff(np.minimum(grey // 8, 15))[0]
    assert step > 3
    assert table["contrast 1 px"].iloc[0] == pytest.approx(step**2 / 2)


def test_equal_colours_in_another_order_have_equal_moments_and_another_texture(patches):
    mixed = patches[2:].copy().reshape(-1, 3)
    mixed = np.random.default_rng(1).permutation(mixed).reshape(1, 32, 32, 3)
    a, b = texture_features(np.concatenate([patches[2:], mixed]), progress=False).to_numpy()
    np.testing.assert_allclose(a[:9], b[:9], atol=1e-5)
    assert np.abs(a[9:] - b[9:]).max() > 0.2


def test_shuffled_tiles_are_the_same_tiles(patches):
    shuffled = shuffle_tiles(patches, 8, seed=1)
    assert not np.array_equal(shuffled, patches)

    def tiles(p):
        return sorted(t.tobytes() for t in p.reshape(4, 8, 4, 8, 3).swapaxes(1, 2).reshape(16, 8, 8, 3))

    for before, after in zip(patches, shuffled, strict=True):
        assert tiles(before) == tiles(after)
    order = [
        np.argsort([t.tobytes() for t in p.reshape(4, 8, 4, 8, 3).swapaxes(1, 2).reshape(16, 8, 8, 3)])
        for p in shuffled[:2]
    ]
    assert not np.array_equal(order[0], order[1]), "each patch in its own way"
    np.testing.assert_array_equal(shuffle_tiles(patches, 32), patches)
    np.testing.assert_array_equal(shuffle_tiles(patches, 8, seed=1), shuffled)


def test_what_has_no_texture_is_refused(patches):
    with pytest.raises(ValueError, match=r"\(N, H, W, 3\) uint8"):
        texture_features(patches[0])
    with pytest.raises(ValueError, match="uint8"):
        texture_features(patches / 255)
    with pytest.raises(ValueError, match="does not divide"):
        shuffle_tiles(patches, 7)
    assert len(texture_features(patches[:0], progress=False)) == 0
