"""Compact bilinear pooling against the mathematics that it is written from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathkit.pooling import AveragePooling, CompactBilinear, bilinear, count_sketch


def maps(n=2, channels=6, side=3, seed=0):
    return torch.rand(
        n, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
    )


def test_a_count_sketch_by_hand():
    x = torch.tensor([[1.0, 2.0, 4.0]])
    sketch = count_sketch(x, torch.tensor([2, 0, 2]), torch.tensor([1.0, -1.0, -1.0]), 4)
    assert sketch.tolist() == [[-2.0, 0.0, -3.0, 0.0]]


def test_the_inner_product_of_sketches_is_that_of_the_vectors_on_average():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 12, generator=rng)
    found = []
    for _ in range(3000):
        places = torch.randint(0, 16, (12,), generator=rng)
        signs = torch.randint(0, 2, (12,), generator=rng) * 2.0 - 1
        found.append(float(count_sketch(x, places, signs, 16) @ count_sketch(y, places, signs, 16)))
    standard_error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - float(x @ y)) < 4 * standard_error


def test_the_fourier_product_is_the_count_sketch_of_the_outer_product():
    pool = CompactBilinear(6, 32, normalise=False, seed=3)
    x = maps(1, 6, 1)
    vector = x[0, :, 0, 0]
    (p1, p2), (s1, s2) = pool.places, pool.signs
    expected = torch.zeros(32)
    for i in range(6):
        for j in range(6):
            expected[(p1[i] + p2[j]) % 32] += s1[i] * s2[j] * vector[i] * vector[j]
    torch.testing.assert_close(pool(x)[0], expected, atol=1e-5, rtol=1e-5)


def test_the_inner_product_of_descriptions_is_the_bilinear_kernel_on_average():
    both = maps(2)
    exact = bilinear(both)
    kernel = float(exact[0] @ exact[1])
    x, y = both.flatten(2)
    assert kernel == pytest.approx(float(((x.T @ y) ** 2).mean()), rel=1e-5), "all pairs of places, squared"
    found = []
    for seed in range(600):
        a, b = CompactBilinear(6, 64, normalise=False, seed=seed)(both)
        found.append(float(a @ b))
    assert abs(np.mean(found) - kernel) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.std(found) / np.sqrt(len(found)) < 0.05 * kernel, "enough draws to tell"


def test_a_longer_sketch_errs_less():
    both = maps(2)
    exact = bilinear(both)
    kernel = float(exact[0] @ exact[1])

    def error(dim):
        pairs = [CompactBilinear(6, dim, normalise=False, seed=s)(both) for s in range(100)]
        return np.sqrt(np.mean([(float(a @ b) - kernel) ** 2 for a, b in pairs]))

    assert error(1024) < 0.5 * error(64)


@pytest.mark.parametrize("pool", [AveragePooling(6), CompactBilinear(6, 128, normalise=False), bilinear])
def test_pooling_does_not_know_where_anything_was(pool):
    x = maps(2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    moved = x.flatten(2)[:, :, order].unflatten(2, (3, 3))
    torch.testing.assert_close(pool(moved), pool(x), atol=1e-5, rtol=1e-5)


def test_it_tells_apart_what_the_average_cannot():
    """Two features that occur together or in turns: equal means, other co-occurrence."""
    together, in_turns = torch.zeros(2, 2, 1, 2)
    together[:, 0, 0] = 2.0
    in_turns[0, 0, 0], in_turns[1, 0, 1] = 2.0, 2.0
    x = torch.stack([together, in_turns])
    assert torch.equal(AveragePooling(2)(x)[0], AveragePooling(2)(x)[1])
    a, b = CompactBilinear(2, 64, seed=1)(x)
    assert float(a @ b) < 0.9


def test_descriptions_have_unit_length_and_learn():
    pool = CompactBilinear(6, 64)
    x = maps(3).requires_grad_()
    out = pool(x)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))
    out[:, :5].sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(pool(torch.zeros(1, 6, 3, 3))).all()
    with pytest.raises(ValueError, match="at least 1"):
        CompactBilinear(0, 8)
