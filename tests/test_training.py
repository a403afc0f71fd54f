"""Training: it learns what can be learnt and nothing else, and an interruption changes nothing."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pathkit import training
from pathkit.encoders import Encoder
from pathkit.models import PatchClassifier, load_model, model_digest, patch_classifier, save_model
from pathkit.slide import open_slide
from pathkit.training import Augment, class_weights, fit, fit_linear_probe

SIZE = 32


def striped_slide(seed=0, n=8):
    """Squares of 32 px, with stripes across in one half and along in the other: equal colours, other texture."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((n * SIZE, n * SIZE, 3), np.uint8)
    rows = []
    for i in range(n):
        for j in range(n):
            across = (i + j) % 2 == 0
            wave = 150 + 60 * np.sin(np.arange(SIZE) * 2 * np.pi / 8 + rng.uniform(0, 6))
            square = np.tile(wave, (SIZE, 1)) if across else np.tile(wave[:, None], (1, SIZE))
            square = square + rng.normal(0, 8, square.shape)
            pixels[i * SIZE : (i + 1) * SIZE, j * SIZE : (j + 1) * SIZE] = square.clip(0, 255)[..., None]
            rows.append(("s", j * SIZE, i * SIZE, SIZE, 0.5, "across" if across else "along"))
    table = pd.DataFrame(rows, columns=["slide_id", "x_l0", "y_l0", "size_px", "mpp", "label"])
    return {"s": open_slide(pixels, mpp=0.5)}, table


SLIDES, TABLE = striped_slide()
TRAIN, VAL = TABLE[:48], TABLE[48:]
PLAIN = {"slides": SLIDES, "batch_size": 8, "progress": False, "accelerator": "cpu", "augment": False}


def new_model(seed=0):
    torch.manual_seed(seed)
    return patch_classifier("small", classes=["across", "along"])


def test_it_learns_texture_and_colour_alone_does_not():
    result = fit(new_model(), TRAIN, VAL, epochs=5, lr=1e-2, **PLAIN)
    assert result.history["val_accuracy"].max() > 0.95
    assert (result.model.mpp, result.model.size_px) == (0.5, SIZE)
    assert not result.model.training
    colour = fit_linear_probe("colour", TRAIN, slides=SLIDES, progress=False)
    pixels = torch.from_numpy(SLIDES["s"].read_patches(VAL)).permute(0, 3, 1, 2)
    with torch.no_grad():
        guessed = np.array(colour.classes)[colour(pixels).argmax(1)]
    assert (guessed == VAL["label"]).mean() < 0.8


def test_shuffled_labels_are_not_learnt():
    shuffled = TRAIN.assign(label=np.random.default_rng(1).permutation(TRAIN["label"]))
    result = fit(new_model(), shuffled, VAL, epochs=5, lr=1e-2, **PLAIN)
    assert result.history["val_accuracy"].iloc[-1] < 0.85


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    first, again, other = (fit(new_model(), TRAIN, VAL, epochs=1, seed=s, **PLAIN).model for s in (3, 3, 4))
    assert model_digest(first) == model_digest(again)
    assert model_digest(first) != model_digest(other)


class Stop(Exception):
    """The lights go out."""


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path):
    options = {**PLAIN, "augment": True}
    whole = fit(new_model(), TRAIN, VAL, epochs=3, checkpoint_dir=tmp_path / "whole", **options)

    def stop(model, row):
        if row["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(new_model(), TRAIN, VAL, epochs=3, checkpoint_dir=tmp_path / "cut", on_epoch=stop, **options)
    again = []
    options["on_epoch"] = lambda model, row: again.append(row["epoch"])
    resumed = fit(new_model(9), TRAIN, VAL, epochs=3, checkpoint_dir=tmp_path / "cut", **options)
    assert again == [2]  # though the loss was least in the first epoch
    assert resumed.history["epoch"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(resumed.history["val_loss"], whole.history["val_loss"], rtol=1e-5)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_folder_of_another_run_is_not_resumed(tmp_path):
    fit(new_model(), TRAIN, VAL, epochs=1, checkpoint_dir=tmp_path, **PLAIN)
    with pytest.raises(ValueError, match=r"epochs = 1, now epochs = 2.*resume=False"):
        fit(new_model(), TRAIN, VAL, epochs=2, checkpoint_dir=tmp_path, **PLAIN)
    fresh = fit(new_model(), TRAIN, VAL, epochs=2, checkpoint_dir=tmp_path, resume=False, **PLAIN)
    assert len(fresh.history) == 2


def test_patches_that_do_not_fit_in_memory_are_read_from_the_slides():
    memory = fit(new_model(), TRAIN, VAL, epochs=1, **PLAIN)
    streamed = fit(new_model(), TRAIN, VAL, epochs=1, budget_gb=0, **PLAIN)
    assert model_digest(memory.model) == model_digest(streamed.model)


def test_the_best_weights_are_given_back():
    seen = {}

    def keep(model, row):
        seen[row["epoch"]] = (row["val_loss"], model_digest(model))

    result = fit(new_model(), TRAIN, VAL, epochs=4, lr=3e-2, on_epoch=keep, **PLAIN)
    assert model_digest(result.model) == min(seen.values())[1]
    assert result.checkpoint is None


def test_what_watches_a_training_can_still_its_learning_rate_and_stop_it():
    weights = []

    def still(model, row):
        weights.append([p.detach().clone() for p in model.parameters()])
        return {"lr_factor": 0.0, "stop": row["epoch"] == 2}

    result = fit(new_model(), TRAIN, VAL, epochs=6, on_epoch=still, **PLAIN)
    assert result.history["epoch"].tolist() == [0, 1, 2]
    assert result.history["lr"].tolist()[1:] == [0.0, 0.0]
    for first, second in zip(weights[0], weights[2], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


class Means(Encoder):
    """Means of squares of 4 x 4 pixels: no batch norm, so that a step does not depend on who shares the batch."""

    name, dim, size_px = "means", 3 * 64, SIZE

    def __init__(self):
        super().__init__()
        self.stretch = nn.Linear(self.dim, self.dim)

    def forward(self, x):
        return torch.tanh(self.stretch(nn.functional.avg_pool2d((x.float() - 128) / 64, 4).flatten(1)))


def means_model(seed=0):
    torch.manual_seed(seed)
    return PatchClassifier(Means(), ["across", "along"])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_two_devices_learn_what_one_does():
    options = {**PLAIN, "epochs": 2, "precision": "fp32", "balanced": False}
    one = fit(means_model(), TRAIN, VAL[:15], **options)
    halves = {**options, "batch_size": 4, "devices": 2, "strategy": "ddp_fork"}
    two = fit(means_model(), TRAIN, VAL[:15], **halves)
    for column in ("train_loss", "val_loss", "val_accuracy", "lr"):
        np.testing.assert_allclose(two.history[column], one.history[column], rtol=1e-4)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 7, 8, 15, 16, 23])
def test_devices_share_each_step_of_the_order_that_one_goes_through(monkeypatch, n):
    def orders(batch_size, world, seed):
        parts = []
        for rank in range(world):
            monkeypatch.setattr(training, "_rank_of", lambda rank=rank, world=world: (rank, world))
            parts.append(list(training._Order(n, batch_size, seed)))
        return parts

    for seed in (None, 5):
        (whole,), parts = orders(8, 1, seed), orders(4, 2, seed)
        assert len(parts[0]) == len(parts[1]) == len(whole)  # or one would wait for the other
        for step, first, second in zip(whole, *parts, strict=True):
            assert set(first) | set(second) == set(step)
            assert len(first) + len(second) == max(2, len(step))


def test_batches_made_ahead_are_the_loaders_and_so_are_its_errors():
    class Rows:
        def __getitem__(self, rows):
            if 20 in rows:
                raise OSError("tile 20 is damaged")
            return torch.tensor(rows), torch.tensor(rows) * 2

    for n in (0, 1, 5, 18):
        loader = DataLoader(Rows(), batch_size=None, sampler=training._Order(n, 4, None))
        ahead = training._Ahead(loader, cuda=False)
        assert ahead.sampler is loader.sampler
        assert len(ahead) == len(loader) == -(-n // 4)
        for _ in range(2):  # epochs
            for ours, theirs in zip(ahead, loader, strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b)
    damaged = DataLoader(Rows(), batch_size=None, sampler=training._Order(40, 4, None))
    with pytest.raises(OSError, match="tile 20 is damaged"):
        list(training._Ahead(damaged, cuda=False))


def test_a_pretrained_encoder_is_changed_gently():
    moved = {}
    for pretrained in (False, True):
        model = new_model()
        model.encoder.pretrained = pretrained
        before = {k: v.clone() for k, v in model.state_dict().items()}
        after = fit(model, TRAIN, VAL, epochs=1, lr=1e-3, **PLAIN).model.state_dict()
        largest = {k: float((after[k].float() - before[k].float()).abs().max()) for k in before}
        moved[pretrained] = {
            "statistics": max(v for k, v in largest.items() if "running" in k),
            "encoder": max(v for k, v in largest.items() if k.startswith("encoder") and "weight" in k),
            "head": max(v for k, v in largest.items() if k.startswith("head")),
        }
    assert moved[True]["statistics"] == 0 < moved[False]["statistics"]
    # A step of Adam is about as long as its rate, whatever the gradient.
    assert moved[True]["encoder"] < 0.3 * moved[False]["encoder"]
    assert moved[True]["head"] > 0.3 * moved[False]["head"]


def test_a_training_fed_ahead_is_the_same_training(monkeypatch):
    usual = fit(new_model(), TRAIN, VAL, epochs=3, **PLAIN)
    monkeypatch.setattr(
        training,
        "DataLoader",
        lambda *args, **options: training._Ahead(DataLoader(*args, **options), cuda=False),
    )
    ahead = fit(new_model(), TRAIN, VAL, epochs=3, **PLAIN)
    assert model_digest(ahead.model) == model_digest(usual.model)
    assert ahead.history["train_loss"].tolist() == usual.history["train_loss"].tolist()


def test_a_compiled_step_is_the_same_step():
    plain, compiled = (fit(new_model(), TRAIN, VAL, epochs=1, compile=c, **PLAIN) for c in (False, "eager"))
    assert model_digest(plain.model) == model_digest(compiled.model)
    assert list(plain.model.state_dict()) == list(compiled.model.state_dict())


def test_class_weights_by_hand():
    np.testing.assert_allclose(class_weights(np.array([0, 0, 0, 1]), 2), [4 / 6, 4 / 2])
    with pytest.raises(ValueError, match="class number 2 has no example"):
        class_weights(np.array([0, 1]), 3)


def test_what_cannot_be_trained():
    with pytest.raises(ValueError, match="class 'across' has no example"):
        fit(new_model(), TRAIN[TRAIN["label"] == "along"], VAL, **PLAIN)
    with pytest.raises(ValueError, match="one field of view"):
        fit(new_model(), TRAIN.assign(mpp=1.0), VAL, **PLAIN)
    with pytest.raises(ValueError, match="no column 'grade'"):
        fit(new_model(), TRAIN, VAL, label="grade", **PLAIN)
    with pytest.raises(ValueError, match="not among the classes"):
        fit(new_model(), TRAIN.replace("along", "askew"), VAL, **PLAIN)
    with pytest.raises(ValueError, match="a table is empty"):
        fit(new_model(), TRAIN[:0], VAL, **PLAIN)
    with pytest.raises(ValueError, match="two or more different classes"):
        PatchClassifier(new_model().encoder, ["one"])


# Augmentation and files ------------------------------------------------------------------------------------------


def test_augmentation_without_stain_and_light_only_turns():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    turned = Augment(stain=0, light=0)(x)
    assert not torch.equal(turned, x.float())
    torch.testing.assert_close(turned.flatten(2).sort(2).values, x.float().flatten(2).sort(2).values)


def test_stain_augmentation_leaves_white_white_and_changes_colour():
    torch.manual_seed(0)
    augment = Augment(stain=0.3, light=0)
    white = torch.full((4, 3, 4, 4), 255, dtype=torch.uint8)
    torch.testing.assert_close(augment(white), white.float(), atol=0.01, rtol=0)
    pink = torch.tensor([220, 140, 190], dtype=torch.uint8).view(1, 3, 1, 1).expand(4, 3, 4, 4)
    changed = augment(pink)
    assert (changed - pink).abs().mean() > 2
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_a_saved_model_is_the_same_model(tmp_path):
    model = new_model().eval()
    model.mpp, model.size_px = 1.0, 64
    back = load_model(save_model(model, tmp_path / "m.pt"))
    assert (back.classes, back.mpp, back.size_px) == (("across", "along"), 1.0, 64)
    assert model_digest(back) == model_digest(model)
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(back(x), model(x))


def test_files_that_are_no_model(tmp_path):
    (tmp_path / "text.pt").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.pt: not a model saved by pathkit"):
        load_model(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="no such model"):
        load_model(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match='precision is "auto", "bf16" or "fp32", got \'fp8\''):
        fit(new_model(), TRAIN, VAL, precision="fp8", **PLAIN)


def test_it_learns_as_well_in_bfloat16_as_in_float32():
    exact, short = (
        fit(new_model(), TRAIN, VAL, epochs=5, lr=1e-2, precision=p, **PLAIN) for p in ("fp32", "bf16")
    )
    assert min(r.history["val_accuracy"].max() for r in (exact, short)) > 0.95
    assert {p.dtype for p in short.model.parameters()} == {torch.float32}
    assert model_digest(exact.model) != model_digest(short.model)
