"""Models: the ordinal last layer is the cumulative-link model, and is kept with the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pathkit.models import OrdinalHead, load_model, patch_classifier, save_model


def head(cuts, weights):
    layer = OrdinalHead(len(weights), len(cuts) + 1)
    steps = np.diff(cuts)
    with torch.no_grad():
        layer.first.fill_(cuts[0])
        layer.steps.copy_(torch.tensor(np.log(np.expm1(steps)), dtype=torch.float32))
        layer.score.weight.copy_(torch.tensor([weights]))
    return layer


def test_the_output_is_the_logarithm_of_differences_of_the_cumulative_probability():
    layer = head([-1.0, 0.5, 2.0], [1.0, -2.0])
    x = torch.tensor([[0.3, 0.1], [4.0, 1.0], [-3.0, 2.0]])
    score = x @ torch.tensor([1.0, -2.0])
    below = torch.sigmoid(torch.tensor([-1.0, 0.5, 2.0]) - score[:, None])
    zero, one = torch.zeros(3, 1), torch.ones(3, 1)
    expected = torch.diff(torch.cat([zero, below, one], 1), dim=1)
    torch.testing.assert_close(layer(x).exp(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.softmax(layer(x), 1), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.cuts, torch.tensor([-1.0, 0.5, 2.0]))


def test_far_scores_stay_finite_and_rise_class_by_class():
    layer = head([-1.0, 0.5, 2.0], [1.0])
    x = torch.linspace(-60, 60, 241)[:, None].requires_grad_()
    out = layer(x)
    assert torch.isfinite(out).all()
    assert (torch.diff(out.argmax(1)) >= 0).all()
    assert sorted(set(out.argmax(1).tolist())) == [0, 1, 2, 3]
    out.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_confusion_of_distant_classes_costs_more_than_one_of_neighbours():
    layer = head([-1.0, 0.0, 1.0], [1.0])
    out = -layer(torch.tensor([[-6.0]]))[0]  # surely the first class
    assert (torch.diff(out) > 0).all()


def test_it_fits_what_maximum_likelihood_fits():
    """Proportional odds fitted by SciPy on its own formula, and by cross-entropy on the layer."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    latent = x @ [1.5, -1.0] + rng.logistic(size=400)
    y = np.digitize(latent, [-1.0, 0.4, 1.5])

    def loss(p):
        cuts = np.concatenate([[-np.inf], np.cumsum(np.r_[p[2], np.exp(p[3:])]), [np.inf]])
        below = 1 / (1 + np.exp(-(cuts[None] - (x @ p[:2])[:, None])))
        return -np.log(np.take_along_axis(np.diff(below, axis=1), y[:, None], 1)).mean()

    best = minimize(loss, [0, 0, -1, 0, 0], method="BFGS")
    torch.manual_seed(0)
    layer = OrdinalHead(2, 4)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200)
    inputs, target = torch.tensor(x, dtype=torch.float32), torch.tensor(y)

    def closure():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(layer(inputs), target)
        value.backward()
        return value

    optimizer.step(closure)
    assert closure().item() == pytest.approx(best.fun, abs=1e-4)
    np.testing.assert_allclose(layer.score.weight.detach()[0], best.x[:2], atol=0.02)
    np.testing.assert_allclose(
        layer.cuts.detach(), np.cumsum(np.r_[best.x[2], np.exp(best.x[3:])]), atol=0.02
    )


def test_a_saved_ordinal_model_is_an_ordinal_model(tmp_path):
    model = patch_classifier("small", classes=["low", "middle", "high"], ordinal=True).eval()
    back = load_model(save_model(model, tmp_path / "m.pt"))
    assert isinstance(back.head, OrdinalHead)
    x = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    torch.testing.assert_close(back(x), model(x))
    with pytest.raises(ValueError, match="two or more"):
        OrdinalHead(4, 1)
