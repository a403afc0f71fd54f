"""The stain plane without a browser."""

from __future__ import annotations

import numpy as np
import pytest

from pathkit import stain
from pathkit.view.stainplane import StainPlane, plane_of, vector_of


@pytest.fixture(scope="module")
def field():
    """Two stains in smooth, independent amounts."""
    rng = np.random.default_rng(0)
    amounts = np.kron(rng.uniform(0.0, 0.7, (20, 20, 2)), np.ones((6, 6, 1)))
    return stain.combine(amounts, stain.MACENKO, white=245)


@pytest.fixture
def plane(field):
    return StainPlane(field, stain.fit(field, white=245), truth=stain.MACENKO)


def test_places_and_vectors_are_each_others_inverse():
    assert np.allclose(vector_of(plane_of(stain.HED)), stain.HED)
    assert np.allclose(plane_of(7 * stain.HED), plane_of(stain.HED))


def test_mixtures_lie_between_their_stains():
    a, b, mixed = (plane_of(v) for v in (*stain.MACENKO, stain.MACENKO.sum(0)))
    assert np.cross(np.append(b - a, 0), np.append(mixed - a, 0))[2] == pytest.approx(0, abs=1e-12)


def test_moving_to_the_truth_brings_the_error_to_nothing(plane):
    assert max(plane.errors) < 5
    plane.set(haematoxylin=stain.MACENKO[0], eosin=stain.MACENKO[1])
    assert max(plane.errors) < 1e-3
    assert "haematoxylin 0.0°, eosin 0.0°" in plane.line


def test_a_moved_stain_recolours_the_field(plane):
    before = plane.pictures()
    plane.set(eosin=(0.5, 0.8, 0.2))
    after = plane.pictures()
    assert np.array_equal(before["the field"], after["the field"])
    for name in ("recoloured", "haematoxylin alone", "eosin alone"):
        assert np.abs(before[name].astype(int) - after[name]).mean() > 1
    plane.reset()
    assert np.array_equal(plane.pictures()["recoloured"], before["recoloured"])


def test_a_dragged_handle_moves_its_stain_alone(plane):
    plane.widget()
    kept = plane.fit.stains[0].copy()
    data = dict(plane._handles.data)
    plane._handles.data = {**data, "x": [data["x"][0], 0.25], "y": [data["y"][0], 0.3]}
    assert plane_of(plane.fit.stains[1]) == pytest.approx([0.25, 0.3])
    assert np.allclose(plane.fit.stains[0], kept)
    assert f"eosin {plane.errors[1]:.1f}" in plane._line.value


def test_it_gives_a_picture(plane):
    assert plane.snapshot().startswith(b"\x89PNG")


def test_impossible_fields(field, plane):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        StainPlane(field.astype(float), plane.fit)
    with pytest.raises(ValueError, match="the field is blank"):
        StainPlane(np.full((50, 50, 3), 245, np.uint8), plane.fit)
    with pytest.raises(ValueError, match="cannot be told apart"):
        plane.set(eosin=plane.fit.stains[0])
    with pytest.raises(ValueError, match="no truth"):
        _ = StainPlane(field, plane.fit).errors
