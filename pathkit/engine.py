"""Engine: how a trained network is run, as fast as this machine can without changing what it says.

Decisions
---------
* On a CPU the network is exported once to OpenVINO, in bfloat16 where the processor has it; plain torch is the fallback and
  the oracle. On a GPU it is torch in bfloat16. Pixels go in as they are read, (N, H, W, 3) uint8; all else happens inside.
* Nothing is taken on trust: an engine is used only after its outputs have been compared, on patches of the slide at hand,
  with those of torch in float32. One that differs by more than `PROBABILITY_TOLERANCE` (of a classifier) or
  `FEATURE_TOLERANCE` (of anything else) is refused and the next is tried; `Engine.refused` says which and why.
* Export and comparison take half a second or more, so that "auto" leaves jobs of fewer than `WORTH_PIXELS` to torch. The
  choice follows from the size of the job alone: the same call gives the same numbers.
* The batch size is measured where the job is long enough to repay it.
* Plain torch on a CPU spends much of its time in page faults: see `models.keep_memory`.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import os
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pathkit.models import PatchClassifier, keep_memory, model_digest

__all__ = ["Engine", "EngineError", "open_engine", "release_memory"]

RGB: TypeAlias = NDArray[np.uint8]
Output: TypeAlias = NDArray[np.float32]
Recolour: TypeAlias = Callable[[Any], Any]

#: Greatest difference of a probability from that of torch in float32.
PROBABILITY_TOLERANCE = 0.02
#: Root mean square difference of features, as a share of their root mean square; bfloat16 makes 0.03 to 0.05 in a deep
#: network, and the cosine with the exact features stays above 0.995. ``engine="openvino f32"`` has a difference of 2e-6.
FEATURE_TOLERANCE = 0.06
#: Pixels of all patches of a job from which on an export pays; 1,000 patches of 128 px.
WORTH_PIXELS = 1_000 * 128 * 128
#: Pixels from which on batch sizes are tried out, which takes one to five seconds for a few per cent: 25,000 patches of 256 px.
WORTH_TUNING_PIXELS = 100 * WORTH_PIXELS
BATCH_SIZES = (8, 16, 32, 64)
#: Batches that OpenVINO works on at the same time, at most; each holds memory of its own.
MOST_STREAMS = 4
#: Patches on which engines are compared.
N_COMPARED = 32
NAMES = ("auto", "openvino", "torch")


class EngineError(RuntimeError):
    """An engine that was asked for cannot run this network, or runs it to another result."""


class Engine(ABC):
    """A network that is ready to run; made by `open_engine`.

    Attributes
    ----------
    name : str
        For example ``"openvino bf16"``.
    batch_size : int
        Patches that it takes at once; more are cut into batches.
    difference : float
        From torch in float32, on the patches compared; 0 for that itself.
    refused : tuple of str
        Engines that were tried before, and why they are not used.
    """

    name: str
    #: Whether `start` only queues the work, so that the next batch may be started before the output is asked for.
    queues: bool = False
    #: Batches that it works on at the same time.
    at_once: int = 1
    batch_size: int = 32
    difference: float = 0.0
    refused: tuple[str, ...] = ()

    def __call__(self, pixels: RGB) -> Output:
        """(N, H, W, 3) uint8 to float32, one row a patch."""
        return self.start(self.prepare(pixels))()

    def prepare(self, pixels: RGB, recolour: Recolour | None = None) -> Any:
        """What `start` takes; may be called in the thread that reads.

        Parameters
        ----------
        pixels : (N, H, W, 3) uint8
        recolour : callable, optional
            Changes their colours, in place or not, such as a stain normaliser; on the device where that is not the CPU.
        """
        return pixels if recolour is None else recolour(pixels)

    @abstractmethod
    def start(self, prepared: Any) -> Callable[[], Output]:
        """Begin, and return the function that waits for the output."""

    def __repr__(self) -> str:
        return f"<Engine {self.name}, batches of {self.batch_size}, differs by {self.difference:.2g}>"


def open_engine(
    network: nn.Module,
    sample: RGB,
    *,
    engine: str = "auto",
    n_patches: int | None = None,
    batch_size: int | None = None,
) -> Engine:
    """The fastest engine that agrees with torch in float32.

    Parameters
    ----------
    network : Module
        Takes (N, 3, H, W) uint8 or float from 0 to 255, and gives one row a patch. Put into evaluation mode.
    sample : (N, H, W, 3) uint8
        Patches such as those to come, for the comparison and the choice of a batch size.
    engine : {"auto", "openvino", "torch"}, or the name of an engine
        "torch fp32" is the plain way, and needs no comparison; "openvino" raises where it cannot be used.
    n_patches : int, optional
        Size of the job; "auto" leaves small ones to torch. None stands for a large one.
    batch_size : int, optional
        Measured, or 32, when not given.

    Returns
    -------
    Engine
        An export is made once, and again when a weight has changed.

    Raises
    ------
    ValueError
        If `engine` is no engine.
    EngineError
        If "openvino" was asked for and is absent, cannot export the network, or disagrees.
    """
    if engine.split(" ")[0] not in NAMES:
        raise ValueError(f"no engine {engine!r}; there are {', '.join(NAMES)}.")
    network.eval()
    if next(network.parameters(), torch.empty(0)).device.type == "cpu":
        keep_memory()
    pixels_to_come = float("inf") if n_patches is None else n_patches * sample.shape[1] * sample.shape[2]
    small = engine == "auto" and pixels_to_come < WORTH_PIXELS
    key = (model_digest(network), sample.shape[1:], engine, small, torch.get_num_threads())
    known = _OPENED.get(network)
    if known is not None and known[0] == key:
        # What runs the network itself is not kept, since it would keep the network alive: it is made again.
        found = _TorchEngine(network) if known[1] is None else known[1]
        found.refused, found.batch_size = known[2], known[3]
    else:
        plain = small and not torch.cuda.is_available()
        found = _TorchEngine(network) if plain else _chosen(network, sample, engine)
        if batch_size is None and pixels_to_come >= WORTH_TUNING_PIXELS:
            found.batch_size = _fastest_batch(found, sample)
        kept = None if found.name == "torch fp32" else found
        _OPENED[network] = (key, kept, found.refused, found.batch_size)
    if batch_size is not None:
        found.batch_size = batch_size
    return found


def release_memory() -> bool:
    """Give back what `models.keep_memory` kept and nobody uses (Linux with glibc only); returns whether any was."""
    try:
        return bool(ctypes.CDLL("libc.so.6").malloc_trim(0))
    except (OSError, AttributeError):  # another C library
        return False


# The choice ------------------------------------------------------------------------------------------------------

#: Network to (key, engine, refused, batch size), while the network lives.
_OPENED: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Engine | None, tuple[str, ...], int]] = (
    weakref.WeakKeyDictionary()
)
#: Whether a parent process has run OpenVINO: its threads are gone in a forked child, which would wait for them for ever.
_THREADS = {"started": False, "lost": False}


def _after_fork() -> None:
    # Its pool of threads is the parent's as well: a child that waited for it would wait for ever.
    torch.set_num_threads(1)
    if _THREADS["started"]:
        _THREADS["lost"] = True
        # Taking OpenVINO's objects down would wait for the same threads: the child keeps them until it ends.
        kept = [known[1] for known in _OPENED.values()], _core()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        gc.freeze()  # and those that nobody holds any more, but that have not been collected yet
    _OPENED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _chosen(network: nn.Module, sample: RGB, asked: str) -> Engine:
    """The first candidate that agrees."""
    sample = sample[:N_COMPARED]
    refused: dict[str, str] = {}
    candidates = _candidates(network, sample, asked)
    expected = _TorchEngine(network)(sample) if candidates else None
    for name, make in candidates:
        try:
            engine = make()
            difference = _difference(network, engine, sample, expected)
        except Exception as error:  # an export fails in as many ways as there are layers
            refused[name] = _reason(error)
            continue
        allowed = PROBABILITY_TOLERANCE if isinstance(network, PatchClassifier) else FEATURE_TOLERANCE
        if difference <= allowed:
            engine.difference, engine.refused = difference, _lines(refused)
            return engine
        refused[name] = f"differs from torch float32 by {difference:.3g}, allowed are {allowed:g}"
    if asked.startswith("openvino"):
        raise EngineError(
            f"OpenVINO does not run this network: {'; '.join(_lines(refused))}. Use engine='torch'."
        )
    fallback = _TorchEngine(network)
    fallback.refused = _lines(refused)
    if refused:
        message = f"inference runs on plain torch, which is slower, since {_once_each(refused)}."
        warnings.warn(message, stacklevel=4)
    return fallback


def _reason(error: Exception) -> str:
    """Of a failure, in one line; OpenVINO's page on what it cannot convert ends with the names of it."""
    lines = str(error).split("\n")
    failed = [line.partition("failed for:")[2].strip() for line in lines if "failed for:" in line]
    if failed:
        return f"no conversion of {failed[-1]}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _lines(refused: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {reason}" for name, reason in refused.items())


def _once_each(refused: dict[str, str]) -> str:
    """Candidates that were refused for one reason stand before it together."""
    names: dict[str, list[str]] = {}
    for name, reason in refused.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{' and '.join(n)}: {reason}" for reason, n in names.items())


def _candidates(network: nn.Module, sample: RGB, asked: str) -> list[tuple[str, Callable[[], Engine]]]:
    """Fastest first; those that were asked for."""
    every: dict[str, Callable[[], Engine]] = {}
    if torch.cuda.is_available():
        every["torch bf16 on the GPU"] = partial(_TorchEngine, network, "cuda", torch.bfloat16)
        every["torch fp32 on the GPU"] = partial(_TorchEngine, network, "cuda")
    if asked.startswith("openvino") or not every:
        for precision in _openvino_precisions():
            every[f"openvino {precision}"] = partial(_OpenVinoEngine, network, sample.shape[1:], precision)
    return [(name, make) for name, make in every.items() if asked == "auto" or name.startswith(asked)]


def _openvino_precisions() -> tuple[str, ...]:
    """bf16 where the processor computes in it; both fail, and say why, where OpenVINO is absent."""
    try:
        _check_threads()
        fast = "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (ImportError, EngineError):
        fast = False
    return ("bf16", "f32") if fast else ("f32",)


def _difference(network: nn.Module, engine: Engine, sample: RGB, expected: Output | None) -> float:
    """The greatest over a whole batch and over a remainder, since they may be different programs."""
    assert expected is not None
    found = []
    for n in {len(sample), min(len(sample), 3)}:
        ours, theirs = (torch.from_numpy(v.astype(np.float64)) for v in (engine(sample[:n]), expected[:n]))
        if ours.shape != theirs.shape:
            raise EngineError(f"gives {tuple(ours.shape)}, torch {tuple(theirs.shape)}")
        if isinstance(network, PatchClassifier):
            found.append((ours.softmax(1) - theirs.softmax(1)).abs().max())
        else:
            found.append(
                (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt().clamp(min=1e-9)
            )
    worst = float(torch.stack(found).max())
    return worst if np.isfinite(worst) else float("inf")


def _fastest_batch(engine: Engine, sample: RGB) -> int:
    """The batch size with most patches a second; a larger one must be at least 3% better."""
    best, best_rate = engine.batch_size, 0.0
    for size in BATCH_SIZES:
        engine.batch_size = size
        batch = np.resize(sample, (size * engine.at_once, *sample.shape[1:]))
        seconds = []
        for _ in range(3):  # the first warms up
            start = time.perf_counter()
            engine(batch)
            seconds.append(time.perf_counter() - start)
        rate = len(batch) / min(seconds[1:])
        if rate > 1.03 * best_rate:
            best, best_rate = size, rate
    return best


# Torch -----------------------------------------------------------------------------------------------------------


class _TorchEngine(Engine):
    """Torch; on a GPU a copy of the network, so that the caller's stays where it is."""

    def __init__(self, network: nn.Module, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.name = f"torch {'fp32' if dtype == torch.float32 else 'bf16'}" + (
            " on the GPU" if device != "cpu" else ""
        )
        self._device, self._dtype = torch.device(device), dtype
        here = device == "cpu"
        with torch.no_grad():  # tensors made in inference mode could not be trained on later
            network = network.cpu() if here else copy.deepcopy(network).to(self._device)
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = network
        self._copies = None if here else torch.cuda.Stream(self._device)
        self.batch_size = 32 if here else 256
        self.queues = not here

    def prepare(self, pixels: RGB, recolour: Recolour | None = None) -> Any:
        """A tensor; on its way to a GPU in memory from which it is copied while the network works."""
        if self._device.type == "cpu":
            return torch.from_numpy(pixels if recolour is None else recolour(pixels)), None
        return torch.from_numpy(pixels).pin_memory(), recolour

    def start(self, prepared: tuple[Tensor, Recolour | None]) -> Callable[[], Output]:
        pixels, recolour = prepared
        with torch.inference_mode():
            # Bytes cross to the device at once, (N, H, W, 3); from there on all is done there.
            batch = (pixels if self._copies is None else sent([pixels], self._copies)[0]).permute(0, 3, 1, 2)
            batch = batch if recolour is None else recolour(batch)
            with self._precision():
                outputs = [self._network(part).float() for part in batch.split(self.batch_size)]
            output = torch.cat(outputs)
        if self._device.type == "cpu":
            return output.numpy
        landed = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
        landed.copy_(output, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def wait() -> Output:
            done.synchronize()
            return landed.numpy()

        return wait

    def _precision(self) -> Any:
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)


def sent(batch: Sequence[Tensor], copies: torch.cuda.Stream) -> list[Tensor]:
    """Tensors on the GPU; they are copied while it computes what was asked before, and waited for there, not here."""
    with torch.cuda.stream(copies):
        there = [t.cuda(non_blocking=True) for t in batch]
    now = torch.cuda.current_stream()
    now.wait_stream(copies)
    for tensor in there:
        tensor.record_stream(now)
    return there


# OpenVINO --------------------------------------------------------------------------------------------------------


class _OpenVinoEngine(Engine):
    """A network exported once and compiled for a batch and for a quarter of it, which serves what is left over.

    Each thread works on a batch of its own: where several share one, a small network makes them wait for each other at every
    layer.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], precision: str):
        self.name = f"openvino {precision}"
        self._precision, self._shape = precision, shape
        self._exported = _exported(network, shape)
        self._slots: dict[int, deque[_Slot]] = {}
        self.at_once, self.queues = min(MOST_STREAMS, torch.get_num_threads()), True

    def start(self, prepared: RGB) -> Callable[[], Output]:
        _check_threads()
        small = max(1, self.batch_size // 4)
        used: list[tuple[_Slot, _Going]] = []
        at = 0
        while at < len(prepared):
            size = self.batch_size if len(prepared) - at > 3 * small else small
            batch = prepared[at : at + size]
            n = len(batch)
            if n < size:
                batch = np.concatenate([batch, np.zeros((size - n, *self._shape), np.uint8)])
            slot = self._slot(size)
            used.append((slot, slot.start(np.ascontiguousarray(batch), n)))
            at += size

        def wait() -> Output:
            for slot, going in used:
                if going.output is None:
                    slot.finish()
            return np.concatenate([cast(Output, going.output) for _, going in used])

        return wait

    def _slot(self, size: int) -> _Slot:
        """The one that was started first."""
        if size not in self._slots:
            model = self._exported.clone()
            model.reshape([size, *self._shape])
            options = {
                "INFERENCE_PRECISION_HINT": self._precision,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": self.at_once,
                "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
            }
            compiled = _core().compile_model(model, "CPU", options)
            self._slots[size] = deque(_Slot(compiled.create_infer_request()) for _ in range(self.at_once))
        self._slots[size].rotate(-1)
        return self._slots[size][-1]


@dataclass
class _Going:
    """A batch under way: its pixels, which must live as long, how many of them count, and in the end the output."""

    pixels: RGB
    n: int
    output: Output | None = None


class _Slot:
    """A request of OpenVINO, whose memory the next batch fills again."""

    def __init__(self, request: Any):
        self._request, self._going = request, cast(_Going | None, None)

    def start(self, pixels: RGB, n: int) -> _Going:
        """Begin a batch; the one before is finished first."""
        self.finish()
        self._request.start_async([pixels], share_inputs=True)
        self._going = _Going(pixels, n)
        return self._going

    def finish(self) -> None:
        """Wait for the batch under way, if there is one, and take its output."""
        going, self._going = self._going, None
        if going is not None:
            self._request.wait()
            going.output = np.array(self._request.get_output_tensor(0).data[: going.n], np.float32)


class _FromPixels(nn.Module):
    """A network that takes pixels in the order in which they are read."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels.permute(0, 3, 1, 2)).float()


@cache
def _core() -> Any:
    import openvino

    _THREADS["started"] = True
    return openvino.Core()


def _check_threads() -> None:
    if _THREADS["lost"]:
        raise EngineError(
            "this process was forked from one in which OpenVINO had run, and its threads are gone. Start processes by"
            " multiprocessing's 'spawn'"
        )


def _exported(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """The network for OpenVINO, for patches of one shape and batches of any size.

    By its frontend itself: `openvino.convert_model` does the same in six times the time, and tries to report each call to its
    maker.
    """
    _check_threads()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.zeros((2, *shape), dtype=torch.uint8)
        traced = torch.jit.trace(_FromPixels(copy.deepcopy(network)).eval(), example, check_trace=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=example)  # must live until all is converted
        model = frontend.convert(frontend.load(decoder))
        model.reshape([-1, *shape])
        return model
