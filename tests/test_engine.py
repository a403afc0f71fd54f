"""Engines: as fast as they like, but what they say is what torch says in float32."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from pathkit import engine as engines
from pathkit import stain
from pathkit.encoders import Encoder, load_encoder
from pathkit.engine import EngineError, open_engine
from pathkit.models import PatchClassifier, keep_memory, patch_classifier

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino absent: pip install 'pathkit[openvino]'"
)
PATCHES = np.random.default_rng(0).integers(0, 256, (41, 32, 32, 3), dtype=np.uint8)


def network(seed=0):
    torch.manual_seed(seed)
    return patch_classifier("small", classes=["a", "b"]).eval()


def plain(model, pixels=PATCHES):
    with torch.no_grad():
        return model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()


@needs_openvino
def test_openvino_says_what_torch_says():
    model = network()
    run = open_engine(model, PATCHES, engine="openvino")
    assert run.name.startswith("openvino")
    softmax = [torch.from_numpy(v).softmax(1).numpy() for v in (run(PATCHES), plain(model))]
    np.testing.assert_allclose(softmax[0], softmax[1], atol=engines.PROBABILITY_TOLERANCE)
    exact = open_engine(model, PATCHES, engine="openvino f32")
    np.testing.assert_allclose(exact(PATCHES), plain(model), atol=1e-4)


@needs_openvino
@pytest.mark.parametrize("n", [1, 3, 8, 9, 33, 41])
def test_a_patch_has_one_answer_in_whatever_batch(n):
    run = open_engine(network(), PATCHES, engine="openvino", batch_size=8)
    np.testing.assert_array_equal(run(PATCHES[:n]), run(PATCHES)[:n])


@needs_openvino
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_work_that_was_begun_together_is_kept_apart(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = open_engine(network(), PATCHES, engine="openvino", batch_size=4)
        alone = run(PATCHES)
        parts = [slice(0, 5), slice(5, 6), slice(6, 29), slice(29, 41)]
        waits = [run.start(run.prepare(PATCHES[part].copy())) for part in parts]
        # In whatever order they are asked for, and although each of them needs the same few requests again.
        for k in (2, 0, 3, 1):
            np.testing.assert_array_equal(waits[k](), alone[parts[k]])
        assert run.at_once == min(threads, engines.MOST_STREAMS)
    finally:
        torch.set_num_threads(before)


@needs_openvino
def test_features_agree():
    encoder = load_encoder("colour")
    run = open_engine(encoder, PATCHES, engine="openvino")
    np.testing.assert_allclose(run(PATCHES), plain(encoder), rtol=0.05, atol=0.02)


class Noisy(Encoder):
    """Exported it cannot be the same: it looks at whether it is being traced."""

    name, dim, size_px = "noisy", 2, 32

    def forward(self, x):
        shift = 5.0 if torch.jit.is_tracing() else 0.0
        return torch.stack(
            [x.float().mean((1, 2, 3)) / 255 + shift, x.float().amax((1, 2, 3)) / 255 - shift], 1
        )


def noisy():
    model = PatchClassifier(Noisy(), ["a", "b"]).eval()
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(2))
    return model


@needs_openvino
def test_an_engine_that_differs_is_refused():
    with pytest.raises(
        EngineError, match=r"differs from torch float32 by 0\.\d+, allowed are 0\.02.*engine='torch'"
    ):
        open_engine(noisy(), PATCHES, engine="openvino")
    model = noisy()
    with pytest.warns(UserWarning, match="plain torch, which is slower, since openvino"):
        run = open_engine(model, PATCHES)
    assert run.name == "torch fp32"
    assert "differs" in run.refused[0]
    np.testing.assert_array_equal(run(PATCHES), plain(model))


class Untraceable(Encoder):
    """Python decides: a trace would see one case only."""

    name, dim, size_px = "untraceable", 2, 32

    def forward(self, x):
        if torch.jit.is_tracing():
            raise TypeError("cannot be traced")
        return x.float().mean((2, 3))[:, :2]


def test_what_cannot_be_exported_runs_on_torch():
    model = Untraceable()
    with pytest.warns(UserWarning, match="plain torch"):
        run = open_engine(model, PATCHES)
    np.testing.assert_allclose(run(PATCHES), plain(model), rtol=1e-6)


@needs_openvino
def test_what_openvino_has_no_conversion_of_is_said_in_one_short_line():
    """Compact bilinear pooling multiplies in the frequency domain; both precisions fail alike."""
    encoder = load_encoder("efficientnet-lite0-mid-bilinear")
    with pytest.warns(UserWarning, match="plain torch.* no conversion of .*aten::") as told:
        run = open_engine(encoder, PATCHES[:4])
    (message,) = [str(w.message) for w in told]
    assert "\n" not in message
    assert len(message) < 200
    assert message.count("no conversion") == 1
    assert run.name == "torch fp32"
    assert all("no conversion of" in line for line in run.refused)


def test_without_openvino_everything_runs(monkeypatch):
    def absent():
        raise ImportError("No module named 'openvino'")

    monkeypatch.setattr(engines, "_core", absent)
    model = network()
    with pytest.warns(UserWarning, match="No module named 'openvino'"):
        run = open_engine(model, PATCHES)
    np.testing.assert_allclose(run(PATCHES), plain(model), atol=1e-5)
    with pytest.raises(EngineError, match=r"No module named .openvino.*engine=.torch"):
        open_engine(network(), PATCHES, engine="openvino")


def test_small_jobs_are_left_to_torch_and_new_weights_are_seen():
    model = network()
    assert open_engine(model, PATCHES, n_patches=100).name == "torch fp32"
    with torch.no_grad():
        model.head.bias += torch.tensor([1.0, 0.0])
    np.testing.assert_allclose(open_engine(model, PATCHES, n_patches=100)(PATCHES), plain(model), atol=1e-5)


@needs_openvino
def test_an_export_is_made_once_and_again_when_a_weight_changes():
    model = network()
    first = open_engine(model, PATCHES)
    assert open_engine(model, PATCHES) is first
    with torch.no_grad():
        model.head.bias += torch.tensor([1.0, 0.0])
    second = open_engine(model, PATCHES)
    assert second is not first
    np.testing.assert_allclose(second(PATCHES), plain(model), atol=0.05)


def test_an_engine_outlives_the_name_of_its_network_and_no_longer():
    run = open_engine(network(), PATCHES, engine="torch fp32")
    np.testing.assert_allclose(run(PATCHES[:2]), plain(network(), PATCHES[:2]), atol=1e-5)
    model = network()
    gone = weakref.ref(model)
    open_engine(model, PATCHES, engine="torch fp32")
    del model
    gc.collect()
    assert gone() is None


def test_a_network_can_be_trained_after_it_was_run():
    model = network()
    open_engine(model, PATCHES, engine="torch fp32")(PATCHES)
    loss = model(torch.from_numpy(PATCHES).permute(0, 3, 1, 2)).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_fastest_batch_is_taken():
    class Clocked(engines.Engine):
        name = "clocked"

        def start(self, prepared):
            engines.time.now += 1.0 + (10.0 if len(prepared) == 64 else 0.0)
            return lambda: prepared

    class Time:
        now = 0.0

        def perf_counter(self):
            return self.now

    kept, engines.time = engines.time, Time()
    try:
        assert engines._fastest_batch(Clocked(), PATCHES) == 32
    finally:
        engines.time = kept


def test_unknown_engines_are_named():
    with pytest.raises(ValueError, match="no engine 'tpu'; there are auto, openvino, torch"):
        open_engine(nn.Identity(), PATCHES, engine="tpu")


def test_kept_memory_can_be_given_back():
    if not keep_memory():
        pytest.skip("no glibc: nothing to keep")
    assert engines.release_memory() in (True, False)


def _answer(queue):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = open_engine(network(), PATCHES)
        queue.put((run.name, run(PATCHES)))


@needs_openvino
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_other_processes_answer_the_same(way):
    """A forked child has lost OpenVINO's threads: it must not wait for them, but fall back."""
    if way not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {way} on this system")
    here = open_engine(network(), PATCHES)(PATCHES)
    context = multiprocessing.get_context(way)
    queue = context.Queue()
    child = context.Process(target=_answer, args=(queue,))
    child.start()
    name, there = queue.get(timeout=120)
    child.join(30)
    assert name.startswith("torch" if way == "fork" else "openvino")
    np.testing.assert_allclose(there, here, atol=0.02)


def test_colours_changed_on_the_device_are_those_changed_before():
    """As on a GPU, where a normaliser gets the tensor that has arrived; on the CPU it gets the array that was read."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0, 0.5, (40, 32, 32, 2))
    pixels = stain.combine(amounts, stain.HED[:2], white=240.0)
    normaliser = stain.fit(pixels).to(stain.REFERENCE)
    engine = engines._TorchEngine(patch_classifier("colour", classes=["a", "b"]).eval())
    before = engine.start(engine.prepare(pixels, normaliser))()
    np.testing.assert_allclose(before, engine(normaliser(pixels)), rtol=1e-6)
    there = engine.start((torch.from_numpy(pixels), normaliser))()
    np.testing.assert_allclose(there, before, atol=0.02 * np.abs(before).max())
    assert np.abs(engine(pixels) - before).max() > 0.1 * np.abs(before).max()
