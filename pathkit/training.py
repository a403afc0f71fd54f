"""Training: a patch table in, a trained model and its history out.

The loop is Lightning's. Patches that fit in memory are read once; order and augmentation follow from the seed and the
epoch alone, so that a run that was interrupted and resumed ends with the same weights as one that was not. The weights
given back are those of the epoch with the least validation loss.

On a GPU nothing in a step waits for another: a thread makes the next batches in pinned memory, bytes are sent on a stream of
their own, and normalisation and augmentation are done there; losses are fetched when the epoch ends. On several devices
each takes its part of every batch, of the same order, and all decide on the same validation loss.

On a CPU whose cores other work shares, ``torch.set_num_threads(1)`` trains fastest: threads that must wait for each other wait
for the other work as well. OpenMP's settings (OMP_WAIT_POLICY, GOMP_SPINCOUNT) made that worse, not better.
"""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pathkit.engine import sent
from pathkit.models import PatchClassifier, cpu_computes_bf16, keep_memory, patch_classifier
from pathkit.patches import MEMORY_BUDGET_GB, SlideSource, encode_labels, read_all
from pathkit.stain import HED, remix

__all__ = ["Augment", "Fit", "class_weights", "fit", "fit_linear_probe"]


#: Peak learning rate of the last layer of a pretrained network, and what share of it its encoder's weights get.
FINE_TUNING_LR, ENCODER_SHARE = 3e-4, 0.1


@dataclass
class Fit:
    """What `fit` gives back.

    Attributes
    ----------
    model : PatchClassifier
        With the best weights, in evaluation mode.
    history : DataFrame
        One row an epoch: epoch, train_loss, val_loss, val_accuracy, lr, seconds.
    checkpoint : Path or None
        The last epoch's state, None when no folder was given.
    """

    model: PatchClassifier
    history: pd.DataFrame
    checkpoint: Path | None


class Augment(nn.Module):
    """What may change in a patch without changing its meaning: orientation, stain, light. On the batch, on its device.

    Stain is changed in optical density along haematoxylin and eosin [1]_.

    Parameters
    ----------
    stain : float
        Spread of the factors on each stain, 0 for none.
    light : float
        Spread of the factor on all channels.

    References
    ----------
    .. [1] Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
       distilled stain-invariant convolutional networks", IEEE TMI 37 (2018).
    """

    stains: Tensor
    unmix: Tensor

    def __init__(self, *, stain: float = 0.15, light: float = 0.03):
        super().__init__()
        self.stain, self.light = stain, light
        stains = torch.tensor(HED, dtype=torch.float32)
        self.register_buffer("stains", stains)
        self.register_buffer("unmix", torch.linalg.inv(stains))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 to the same shape in float, 0 to 255."""
        flips = torch.rand(2, len(x), device=x.device) < 0.5
        x = torch.where(flips[0].view(-1, 1, 1, 1), x.flip(3), x)
        x = torch.where(flips[1].view(-1, 1, 1, 1), x.flip(2), x)
        if bool(torch.rand(()) < 0.5):
            x = x.transpose(2, 3)
        x = x.float()
        if self.stain:
            factors = torch.exp(self.stain * torch.randn(len(x), 3, device=x.device))
            mix = self.unmix @ (factors[:, :, None] * self.stains)  # (N, 3, 3): unmix, scale, mix again
            x = remix(x, mix)
        if self.light:
            x = x * (1 + self.light * torch.randn(len(x), 1, 1, 1, device=x.device))
        return x.clamp(0, 255)


def class_weights(labels: np.ndarray, n_classes: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Weights that give every class the same total: n / (n_classes * count); (n_classes,) float32.

    `names` of the classes make the error below say which.

    Raises
    ------
    ValueError
        If a class has no example.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        number = int((counts == 0).argmax())
        which = f"class number {number}" if names is None else f"class {names[number]!r}"
        raise ValueError(f"{which} has no example to learn from. Add some, or leave it out.")
    return (len(labels) / (n_classes * counts)).astype(np.float32)


def fit(
    model: PatchClassifier,
    train: pd.DataFrame,
    val: pd.DataFrame,
    *,
    slides: Any,
    epochs: int = 8,
    batch_size: int = 64,
    lr: float | None = None,
    weight_decay: float = 1e-3,
    label: str = "label",
    balanced: bool = True,
    augment: Augment | bool | None = True,
    patience: int | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    on_epoch: Callable[[PatchClassifier, dict[str, float]], Any] | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: Any = "auto",
    precision: str = "auto",
    compile: bool | str = False,
    budget_gb: float = MEMORY_BUDGET_GB,
    num_workers: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> Fit:
    """Train a patch classifier.

    Parameters
    ----------
    model : PatchClassifier
        Trained in place; gets the mpp and size of the patches.
    train, val : DataFrame
        Labelled patches, of one size_px and mpp; their patients should differ (`splits.check_no_leak`).
    slides : DataFrame or mapping
        As `patches.PatchDataset`.
    epochs, batch_size, weight_decay
        AdamW with a one-cycle learning rate.
    lr : float, optional
        Its peak: by default 3e-3 for a network from scratch. A pretrained encoder is fine-tuned: its batch-norm statistics
        stay, 3e-4 is the default, and its weights go at a tenth of `lr`, the last layer's at `lr`. Begin with
        `fit_linear_probe`, so that a random last layer does not spoil the features [1]_.
    label : str
        Column with the class.
    balanced : bool
        Weigh the loss so that rare classes count as much as common ones.
    augment : Augment, or bool
        True for the defaults, False for none.
    patience : int, optional
        Stop after so many epochs without a lower validation loss.
    checkpoint_dir : path, optional
        Keep the state of every epoch there, and go on from it when the same call is made again.
    resume : bool
        False starts afresh.
    on_epoch : callable, optional
        Called with the model and the row of the history after each epoch, for a live view. It may give a mapping back:
        ``lr_factor`` multiplies the learning rate from then on, a true ``stop`` ends the training.
    accelerator : str
        "auto" takes a GPU where there is one.
    devices : int
        GPUs (or, on a CPU, processes) that share the work; -1 takes all. `batch_size` is that of each, so that `lr` may have
        to grow with their number.
    strategy : str or Strategy
        Lightning's way of sharing: "auto" is DDP, which runs a script once a device; in a notebook "ddp_notebook".
    precision : {"auto", "bf16", "fp32"}
        Of the convolutions; weights and losses stay in float32. "auto" takes bfloat16 on a GPU, and on a CPU that computes
        in it, where a step takes 0.7 of the time.
    compile : bool or str
        Train through ``torch.compile`` (or through its backend of this name): a minute before the first step, then up to a
        third less on a GPU. On a CPU it was no faster.
    budget_gb : float
        Patches up to this size are read into memory once; more are read from the slides in each epoch.
    num_workers : int
        Processes that read then. On two cores 0 is best.
    seed : int
        Order, augmentation and, with ``torch.manual_seed``, the start of the caller's model.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If a class has no example, tables differ in size or mpp, a label is unknown, or the folder holds the state of a
        run with other settings.

    References
    ----------
    .. [1] Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022.
    """
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f'fit: precision is "auto", "bf16" or "fp32", got {precision!r}.')
    on_cpu = accelerator == "cpu" or not torch.cuda.is_available()
    bf16 = precision == "bf16" or (precision == "auto" and (not on_cpu or cpu_computes_bf16()))
    size_px, mpp = _one_field_of_view(train, val)
    train_labels = encode_labels(train, label, model.classes)[1]
    val_labels = encode_labels(val, label, model.classes)[1]
    weights = class_weights(train_labels, len(model.classes), model.classes)
    model.mpp, model.size_px = mpp, size_px
    if lr is None:
        lr = FINE_TUNING_LR if model.encoder.pretrained else 3e-3
    if on_cpu:
        keep_memory()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loaders: list[Any] = [
        DataLoader(
            _batches(table, slides, labels, budget_gb, progress),  # type: ignore[arg-type]
            batch_size=None,
            sampler=_Order(len(table), batch_size, seed if shuffled else None),
            num_workers=num_workers,
        )
        for table, labels, shuffled in ((train, train_labels, True), (val, val_labels, False))
    ]
    if not on_cpu:
        loaders = [_Ahead(loader, cuda=True) for loader in loaders]
    task = _Classification(
        model,
        torch.from_numpy(weights) if balanced else torch.ones(len(weights)),
        Augment() if augment is True else augment or None,
        lr,
        weight_decay,
        seed,
        on_epoch,
        compile,
    )
    settings: dict[str, Any] = dict(
        epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, balanced=balanced, seed=seed
    )
    settings["precision"] = "bf16" if bf16 else "fp32"
    settings |= {} if devices == 1 else {"devices": devices}
    settings |= dict(
        n_train=len(train), n_val=len(val), mpp=mpp, size_px=size_px, classes=list(model.classes)
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(checkpoint_dir) if checkpoint_dir else Path(scratch)
        last = _state_to_resume(folder, settings, resume)
        best = ModelCheckpoint(folder, "best", monitor="val_loss", enable_version_counter=False)
        # Of every epoch; `save_last` would write it only where the loss was the least so far.
        every = ModelCheckpoint(folder, "last", enable_version_counter=False)
        callbacks: list[Callback] = [best, every]
        if progress:
            callbacks.append(_Bar(epochs * len(loaders[0])))
        if patience is not None:
            callbacks.append(EarlyStopping("val_loss", patience=patience))
        with _quiet():
            trainer = lightning.Trainer(
                max_epochs=epochs,
                accelerator=accelerator,
                devices=devices,
                strategy=strategy,
                use_distributed_sampler=False,  # `_Order` deals the rows out
                benchmark=not on_cpu,
                precision="bf16-mixed" if bf16 else "32-true",
                callbacks=callbacks,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                default_root_dir=folder,
            )
            trainer.fit(
                task,
                train_dataloaders=loaders[0],
                val_dataloaders=loaders[1],
                ckpt_path=last,
                weights_only=False,  # our own file: it holds the history as well
            )
        stored = torch.load(best.best_model_path, map_location="cpu", weights_only=False)
        task.load_state_dict(stored["state_dict"])
        # From the file, since the devices' processes may have ended with what they knew.
        history = torch.load(folder / "last.ckpt", map_location="cpu", weights_only=False)["history"]
        checkpoint = folder / "last.ckpt" if checkpoint_dir else None
        trainer.strategy.barrier()  # a folder of the first process may be gone after this
    return Fit(model.cpu().eval(), pd.DataFrame(history), checkpoint)


def fit_linear_probe(
    encoder: str,
    train: pd.DataFrame,
    *,
    slides: Any,
    label: str = "label",
    seed: int = 0,
    progress: bool = True,
) -> PatchClassifier:
    """Logistic regression on a frozen encoder's features, as a model like any other.

    Parameters
    ----------
    encoder : str
        ``"colour"`` gives the simplest baseline; see `encoders.load_encoder`.
    train : DataFrame
        Labelled patches.
    slides : DataFrame or mapping
    label : str
    seed : int

    Returns
    -------
    PatchClassifier
        In evaluation mode; the weights of the features' standardisation are folded into its last layer.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    size_px, mpp = _one_field_of_view(train)
    classes, labels = encode_labels(train, label, None)
    class_weights(labels, len(classes))
    model = patch_classifier(encoder, classes=classes).eval()
    model.norm = nn.Identity()
    assert isinstance(model.head, nn.Linear)
    pixels = read_all(train, slides, progress=progress)
    with torch.inference_mode():
        parts = [
            model.encoder(torch.from_numpy(p).permute(0, 3, 1, 2))
            for p in np.array_split(pixels, len(pixels) // 32 + 1)
        ]
    features = torch.cat(parts).numpy()
    scaler = StandardScaler().fit(features)
    regression = LogisticRegression(max_iter=2000, class_weight="balanced", random_state=seed)
    regression.fit(scaler.transform(features), labels)
    weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
    bias = bias - weight @ scaler.mean_
    if len(classes) == 2:  # one row for the second class; the first stays at 0
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))
    model.mpp, model.size_px = mpp, size_px
    return model


# The loop --------------------------------------------------------------------------------------------------------


class _Classification(lightning.LightningModule):
    """One optimiser, cross-entropy, and a row of history an epoch."""

    weights: Tensor

    def __init__(
        self,
        model: PatchClassifier,
        weights: Tensor,
        augment: nn.Module | None,
        lr: float,
        weight_decay: float,
        seed: int,
        on_epoch: Callable[[PatchClassifier, dict[str, float]], Any] | None,
        compile: bool | str = False,
    ):
        super().__init__()
        self.model = model
        how: dict[str, Any] = {"backend": compile} if isinstance(compile, str) else {}
        # In a list, so that its weights, which are the model's, do not count twice.
        self._trained = [torch.compile(model, **how) if compile else model]
        self.augment = augment
        self.register_buffer("weights", weights)
        self.lr, self.weight_decay, self.seed, self.on_epoch = lr, weight_decay, seed, on_epoch
        self.history: list[dict[str, float]] = []
        self._losses: list[tuple[Tensor, int]] = []
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._start, self._lr_factor = 0.0, 1.0

    def on_train_epoch_start(self) -> None:
        self._losses, self._start = [], time.perf_counter()
        if self.model.encoder.pretrained:
            # Few patches tell less of the features' spread than the many before.
            for layer in self.model.encoder.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        pixels, labels = batch
        # Augmentation, the same after a resume.
        torch.manual_seed(
            (self.seed * 1_000_003 + self.global_step) * self.trainer.world_size + self.global_rank
        )
        pixels = pixels if self.augment is None else self.augment(pixels)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(self._trained[0](pixels).float(), labels, weight=self.weights)
        self._losses.append((loss.detach(), len(labels)))  # a number would wait for the device
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        pixels, labels = batch
        self._seen.append((self.model(pixels).float(), labels))

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        losses = [(float(loss), n) for loss, n in self._losses]
        if self.trainer.world_size > 1:
            losses, logits, labels = self._of_all_devices(losses, logits, labels)
        self._seen = []
        loss = nn.functional.cross_entropy(logits, labels, weight=self.weights)
        row = {
            "epoch": self.current_epoch,
            "train_loss": float(np.average([v for v, _ in losses], weights=[n for _, n in losses])),
            "val_loss": float(loss),
            "val_accuracy": float((logits.argmax(1) == labels).float().mean()),
            "lr": float(self.trainer.optimizers[0].param_groups[0]["lr"]) * self._lr_factor,
            "seconds": time.perf_counter() - self._start,
        }
        self.history.append(row)
        self.log("val_loss", loss)
        if self.on_epoch is not None:
            was_training = self.model.training
            asked: Any = self.on_epoch(self.model, row) if self.global_rank == 0 else None
            self.model.train(was_training)
            asked = self.trainer.strategy.broadcast(asked)
            if isinstance(asked, Mapping):
                self._lr_factor = float(asked.get("lr_factor", 1.0))
                self.trainer.should_stop |= bool(asked.get("stop", False))

    @staticmethod
    def _of_all_devices(
        losses: list[Any], logits: Tensor, labels: Tensor
    ) -> tuple[list[Any], Tensor, Tensor]:
        """What each has seen, one after another, so that all see the same; parts may differ in length."""
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (losses, logits.cpu(), labels.cpu()))
        every, *seen = zip(*parts, strict=True)
        together = (torch.cat(tensors).to(logits.device) for tensors in seen)
        return list(itertools.chain(*every)), *together  # type: ignore[return-value]

    def configure_optimizers(self) -> Any:
        gentle = self.lr * (ENCODER_SHARE if self.model.encoder.pretrained else 1)
        of_encoder = list(self.model.encoder.parameters())
        known = {id(p) for p in of_encoder}
        groups = [([p for p in self.parameters() if id(p) not in known], self.lr), (of_encoder, gentle)]
        groups = [(weights, lr) for weights, lr in groups if weights]  # colour has none
        optimizer = torch.optim.AdamW(
            [{"params": weights, "lr": lr} for weights, lr in groups],
            weight_decay=self.weight_decay,
            fused=True,  # one pass a step instead of some for each weight
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [lr for _, lr in groups], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """One step, at the schedule's rate times what `on_epoch` asked for."""
        planned = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= self._lr_factor
        optimizer.step(closure=optimizer_closure)
        for group, lr in zip(optimizer.param_groups, planned, strict=True):
            group["lr"] = lr

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])


class _Order:
    """Batches of row numbers; shuffled by seed and epoch, or in order when seed is None.

    Of several devices each gets its own batch of every step: together they go through the same order as one would.
    """

    def __init__(self, n: int, batch_size: int, seed: int | None):
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        together = self.batch_size * _rank_of()[1]
        # The last batch of training is left out when it is no full one: batch norm dislikes a batch of one.
        return max(1, self.n // together) if self.seed is not None else -(-self.n // together)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = _rank_of()
        rows = np.arange(self.n)
        if self.seed is not None:
            rows = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        for i in range(len(self)):
            step = rows[i * self.batch_size * world : (i + 1) * self.batch_size * world]
            # Equal parts, since a device without a row would hold up the others; of few rows some serve twice.
            own = step[rank::world] if world > 1 else step
            yield (own if len(own) else step[:1]).tolist()


def _rank_of() -> tuple[int, int]:
    """Number of this device's process, and of all; known once Lightning has started them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class _Ahead:
    """The batches of a loader, made by a thread while the device works.

    Parameters
    ----------
    loader : DataLoader
    cuda : bool
        Make them in pinned memory, from where they are copied to the current GPU on a stream of their own. Otherwise they
        are what the loader gives.
    n : int
        Batches that wait.
    """

    def __init__(self, loader: DataLoader[Any], *, cuda: bool, n: int = 3):
        self._loader, self._cuda, self._n = loader, cuda, n
        self.sampler, self.batch_sampler = loader.sampler, None  # where Lightning looks for `set_epoch`

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        source, copies = iter(self._loader), torch.cuda.Stream() if self._cuda else None

        def make() -> list[Tensor] | None:
            batch = next(source, None)
            return batch if batch is None or copies is None else [t.pin_memory() for t in batch]

        with ThreadPoolExecutor(1) as thread:
            coming = deque(thread.submit(make) for _ in range(self._n))
            while (batch := coming.popleft().result()) is not None:
                coming.append(thread.submit(make))
                yield batch if copies is None else sent(batch, copies)


class _InMemory:
    """Batches cut from pixels that were read once."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self.pixels, self.labels = torch.from_numpy(pixels), torch.from_numpy(labels)

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.pixels[rows].permute(0, 3, 1, 2), self.labels[rows]


class _FromSlides:
    """Batches read from the slides when asked for."""

    def __init__(self, table: pd.DataFrame, slides: Any, labels: np.ndarray):
        self.table, self.source, self.labels = table, SlideSource(slides), torch.from_numpy(labels)
        self.source.check(table["slide_id"].unique())

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        pixels = self.source.read(self.table.iloc[rows])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), self.labels[rows]


def _batches(table: pd.DataFrame, slides: Any, labels: np.ndarray, budget_gb: float, progress: bool) -> Any:
    needed_gb = len(table) * int(table["size_px"].iloc[0]) ** 2 * 3 / 1e9
    if needed_gb > budget_gb:
        return _FromSlides(table, slides, labels)
    return _InMemory(read_all(table, slides, progress=progress, budget_gb=budget_gb), labels)


class _Bar(Callback):
    """One bar for the whole run, with its loss and the time that is left."""

    def __init__(self, total: int):
        self.total = total
        self.bar: Any = None

    def on_train_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self.bar = tqdm(total=self.total, initial=trainer.global_step, desc="training", unit="batch")

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.bar.update()
        if batch_idx % 10 == 0:
            self.bar.set_postfix(epoch=trainer.current_epoch, loss=f"{float(outputs['loss']):.3f}")

    def on_train_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: Any, task: Any, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()


class _quiet:
    """Lightning's notices about devices, workers and folders are not the learner's business."""

    def __enter__(self) -> None:
        self._loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric", "lightning")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings(
            "ignore", message=".*num_workers.*|.*Checkpoint directory.*|.*lr_scheduler.step.*"
        )

    def __exit__(self, *exception: Any) -> None:
        self._warnings.__exit__(*exception)
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)


def _state_to_resume(folder: Path, settings: dict[str, Any], resume: bool) -> Path | None:
    """The last state in a folder, if it is of a run with the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    written, last = folder / "settings.json", folder / "last.ckpt"
    text = json.dumps(settings, indent=1, sort_keys=True)
    if resume and last.exists() and written.exists():
        before = json.loads(written.read_text())
        now = json.loads(text)
        changed = [k for k in now if before.get(k) != now[k]]
        if changed:
            k = changed[0]
            raise ValueError(
                f"{folder}: holds a run with {k} = {before.get(k)}, now {k} = {now[k]}. Choose another checkpoint_dir, or"
                " pass resume=False to start afresh."
            )
        return last
    for stale in (last, folder / "best.ckpt"):
        stale.unlink(missing_ok=True)
    written.write_text(text)
    return None


def _one_field_of_view(*tables: pd.DataFrame) -> tuple[int, float]:
    sizes = sorted({int(s) for t in tables for s in t["size_px"].unique()})
    mpps = sorted({float(m) for t in tables for m in t["mpp"].unique()})
    if not all(len(t) for t in tables):
        raise ValueError("fit: a table is empty. Look at the splits and at min_tissue.")
    if len(sizes) > 1 or len(mpps) > 1:
        raise ValueError(
            f"fit: patches differ in size_px {sizes} or mpp {mpps}; a network sees one field of view."
        )
    return sizes[0], mpps[0]
