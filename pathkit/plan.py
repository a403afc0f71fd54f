"""Plan: what a run over slides, or a training, will cost, before it is begun; and then the run itself.

A few hundred patches, spread over what is to be done, are read and put through the network on this machine; the rest is
multiplication. The plan is also what runs: it shows how far it is and how long it will still take, from the sample at first
and more and more from the run itself, and a plan made again over the same folder counts what is already done. A training is
tried by training a copy of the model on a few batches.
"""

from __future__ import annotations

import copy
import html
import inspect
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from tqdm.auto import tqdm

from pathkit.encoders import Encoder
from pathkit.engine import N_COMPARED, Engine
from pathkit.inference import HeatmapJob, TableJob, features_job, heatmap_jobs, readers
from pathkit.models import PatchClassifier
from pathkit.patches import SlideSource
from pathkit.slide import Slide
from pathkit.training import Fit, fit

__all__ = ["Plan", "TrainingPlan", "plan", "plan_training"]


def plan(
    slides: Slide | pd.DataFrame,
    model: PatchClassifier | Encoder,
    *,
    patches: pd.DataFrame | None = None,
    out: str | os.PathLike[str] | None = None,
    sample: int = 256,
    batch_size: int | None = None,
    engine: str = "auto",
    workers: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Plan:
    """What the heatmaps of slides, or the features of their patches, will cost on this machine.

    Parameters
    ----------
    slides : Slide or DataFrame
        One slide, or a slides table.
    model : PatchClassifier or Encoder
        A classifier makes heatmaps, an encoder features.
    patches : DataFrame, optional
        Of which features are wanted.
    out : path, optional
        Of one slide the ``.npz``, of a table the folder, of features the ``.npy``, as `inference.heatmap`,
        `inference.heatmaps` and `inference.extract_features` take it. What it holds already counts as done.
    sample : int
        Patches that are tried.
    batch_size, engine, workers
        As `inference.heatmap`.
    **options
        stain, and of heatmaps positive, min_tissue, stride_px, refine and, for one slide, mask: as `inference.heatmap`.

    Returns
    -------
    Plan
        Show it to see the cost; ``plan.run()`` gives the heatmaps or features.

    Raises
    ------
    ValueError
        If an encoder comes without `patches`, or a classifier with them.

    Examples
    --------
    >>> job = plan(slides, model, out="heatmaps")  # doctest: +SKIP
    >>> job.seconds_left / 60  # doctest: +SKIP
    >>> maps = job.run()  # doctest: +SKIP
    """
    if isinstance(model, Encoder) != (patches is not None):
        raise ValueError(
            "plan: an Encoder gives features of patches=..., a PatchClassifier heatmaps of whole slides (without them)."
        )
    jobs: dict[str, HeatmapJob | TableJob]
    if isinstance(model, Encoder):
        job = features_job(slides, patches, model, out=out, together=batch_size or 0, **options)
        jobs = {"features": job}
    elif isinstance(slides, Slide):
        jobs = {slides.name: HeatmapJob(slides, model, out=out, **options)}
    else:
        jobs = {**heatmap_jobs(slides, model, out=out, progress=progress, **options)}
    return Plan(jobs, sample=sample, batch_size=batch_size, engine=engine, workers=workers)


class Plan:
    """The cost of heatmaps or features, and the run; made by `plan`.

    Attributes
    ----------
    table : DataFrame
        slide_id, patches (at most, where maps are refined), left, read_mb (of the slide's file, about), one row a slide.
    n_patches, n_left : int
    reading, network : float
        Patches a second, each alone; NaN where nothing is left.
    engine : Engine or None
        What will run the network.
    memory_mb : float
        Of this process at its largest, about.
    seconds_left : float
        From now on.
    """

    def __init__(
        self,
        jobs: Mapping[str, HeatmapJob | TableJob],
        *,
        sample: int = 256,
        batch_size: int | None = None,
        engine: str = "auto",
        workers: int | None = None,
    ):
        if sample < 1:
            raise ValueError(f"plan: sample must be at least 1, got {sample}.")
        self._jobs = dict(jobs)
        self._options: dict[str, Any] = {"batch_size": batch_size, "engine": engine, "workers": workers}
        self._what = "features" if any(isinstance(j, TableJob) for j in self._jobs.values()) else "heatmaps"
        self.table = self._counted()
        self.n_patches, self.n_left = int(self.table["patches"].sum()), int(self.table["left"].sum())
        self._begun = self.n_left
        self._workers = readers() if workers is None else workers
        self.engine: Engine | None = None
        self.reading = self.network = float("nan")
        self._elapsed = 0.0
        if self.n_left:
            self._try_out(sample)
        arrays = max((job.result_bytes for job in self._jobs.values()), default=0)
        held = max((job.block_bytes for job in self._jobs.values()), default=0) * (self._workers + 1)
        self.memory_mb = (psutil.Process().memory_info().rss + arrays + held) / 2**20

    @property
    def seconds_left(self) -> float:
        """By the speed of the sample and of what has been run since, each counting by its patches."""
        if not self.n_left:
            return 0.0
        done = self._begun - self.n_left
        a_patch = 1 / self.network + 1 / self.reading / (os.cpu_count() or 1)
        return (self._tried * a_patch + self._elapsed) / (self._tried + done) * self.n_left

    def _counted(self) -> pd.DataFrame:
        rows = []
        for slide_id, job in self._jobs.items():
            for slide, n, left, area_um2 in job.by_slide():
                name = slide_id if isinstance(job, HeatmapJob) else slide.name
                rows.append((name, n, left, _stored_mb(slide, job.mpp, area_um2)))
        return pd.DataFrame(rows, columns=["slide_id", "patches", "left", "read_mb"])

    def run(self, *, progress: bool = True) -> Any:
        """The heatmaps by slide_id, or the features; what was stopped goes on where it was, as `inference.heatmap` does."""
        self.n_left = sum(job.n_left for job in self._jobs.values())
        with tqdm(
            total=self.n_patches, initial=self.n_patches - self.n_left, desc=self._what, disable=not progress
        ) as bar:
            bar.bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} patches{postfix}"
            began, before = time.perf_counter(), self._elapsed

            def tick(n: int) -> None:
                self.n_left -= n
                self._elapsed = before + time.perf_counter() - began
                bar.set_postfix_str(f"{_duration(self.seconds_left)} left", refresh=False)
                bar.update(n)

            results = {
                i: job.run(n_patches=self._begun, progress=tick, **self._options)
                for i, job in self._jobs.items()
            }
        self.table["left"] = self._counted()["left"]
        return results["features"] if self._what == "features" else results

    def _try_out(self, sample: int) -> None:
        """Read some blocks and put them through the network."""
        left = [(job, block) for job in self._jobs.values() for block in job.left]
        spread = np.random.default_rng(0).permutation(len(left))
        self._tried, read_s, network_s = 0, 0.0, 0.0
        for i in spread:
            job, block = left[i]
            start = time.perf_counter()
            pixels = job.read(block)
            read_s += time.perf_counter() - start
            if self.engine is None:
                options = {k: v for k, v in self._options.items() if k != "workers"}
                self.engine = job.open_engine(pixels[:N_COMPARED], self.n_left, **options)
                self.engine(pixels)  # what is compiled at the first call is not of the sample
            start = time.perf_counter()
            self.engine(pixels)
            network_s += time.perf_counter() - start
            self._tried += len(block)
            if self._tried >= sample:
                break
        self.reading, self.network = self._tried / read_s, self._tried / network_s

    # Shown -----------------------------------------------------------------------------------------------------

    def _lines(self) -> list[tuple[str, str]]:
        job = next(iter(self._jobs.values()), None)
        if job is None:
            return [("slides", "none")]
        done = self.n_patches - self.n_left
        finished = sum(j.finished for j in self._jobs.values())
        refined = isinstance(job, HeatmapJob) and job.refine is not None
        patches = (
            f"{'at most ' if refined else ''}{self.n_patches:,} of {job.size_px} px at {job.mpp:g} µm/px"
        )
        patches += f", every {job.stride_px} px" if isinstance(job, HeatmapJob) else ""
        finished_too = f", {finished:,} finished" if finished and self._what == "heatmaps" else ""
        lines = [("slides", f"{len(self.table):,}{finished_too}")]
        lines += [("patches", patches + (f"; {done:,} done" if done else ""))]
        if self.engine is not None:
            threads = f"{self._workers} thread{'s' if self._workers != 1 else ''}"
            lines += [
                (
                    "reading",
                    f"about {self.table['read_mb'].sum():,.0f} MB; {self.reading:,.0f} patches/s a thread, {threads}",
                ),
                (
                    "network",
                    f"{self.network:,.0f} patches/s by {self.engine.name}, batches of {self.engine.batch_size}",
                ),
                ("memory", f"about {self.memory_mb / 1024:.1f} GB"),
            ]
        return [
            *lines,
            ("time left", f"{_duration(self.seconds_left)} on this machine ({os.cpu_count()} cores)"),
        ]

    def __repr__(self) -> str:
        return _as_text(self._what.capitalize(), self._lines())

    def _repr_html_(self) -> str:
        return _as_table(self._what.capitalize(), self._lines())


# Training --------------------------------------------------------------------------------------------------------

#: Batches that a training is tried on, after as many to warm up.
TRIED_BATCHES = 3
#: Options of `training.fit` that change what a step costs.
_OF_A_STEP = ("label", "augment", "accelerator", "precision", "compile", "seed")


def plan_training(
    model: PatchClassifier,
    train: pd.DataFrame,
    val: pd.DataFrame,
    *,
    slides: Any,
    **options: Any,
) -> TrainingPlan:
    """What a training will cost on this machine; arguments and their defaults as `training.fit`.

    Returns
    -------
    TrainingPlan
        Show it to see the cost; ``plan.run()`` trains the model, which is untouched till then.
    """
    return TrainingPlan(model, train, val, slides, options)


class TrainingPlan:
    """The cost of a training, and the training; made by `plan_training`.

    Attributes
    ----------
    in_memory : bool
        Whether patches are read once; otherwise in each epoch.
    reading, network : float
        Patches read a second, and patches trained on a second.
    memory_mb : float
        Of this process at its largest, about.
    seconds : float
        Of the whole training, if it is not stopped before.
    """

    def __init__(
        self,
        model: PatchClassifier,
        train: pd.DataFrame,
        val: pd.DataFrame,
        slides: Any,
        options: dict[str, Any],
    ):
        self._call, self._options = (model, train, val), {"slides": slides, **options}
        self._epochs, self._batch = self._option("epochs"), self._option("batch_size")
        tried = train.sample(min(len(train), TRIED_BATCHES * self._batch), random_state=0)
        start = time.perf_counter()
        SlideSource(slides).read(tried)
        self.reading = len(tried) / (time.perf_counter() - start)
        self.network = self._tried(tried, self._batch)
        sizes = [len(table) * int(table["size_px"].iloc[0]) ** 2 * 3 for table in (train, val)]
        self.in_memory = max(sizes) <= self._option("budget_gb") * 1e9
        self.memory_mb = (psutil.Process().memory_info().rss + self.in_memory * sum(sizes)) / 2**20
        # A validation patch goes forward only, a third of the way of one that is learnt from.
        network_s = (len(train) + len(val) / 3) / self.network * self._epochs
        reads = (len(train) + len(val)) * (1 if self.in_memory else self._epochs)
        self.seconds = network_s / max(1, self._option("devices")) + reads / self.reading

    def _option(self, name: str) -> Any:
        """As given, or as `training.fit` has it by default."""
        return self._options.get(name, inspect.signature(fit).parameters[name].default)

    def _tried(self, patches: pd.DataFrame, batch_size: int) -> float:
        """Patches a second of the second epoch over a few, on a copy of the model."""
        model = copy.deepcopy(self._call[0])
        options = {k: v for k, v in self._options.items() if k in _OF_A_STEP}
        few = patches[: max(1, len(patches) // 8)]
        with torch.random.fork_rng():
            trial = fit(
                model,
                patches,
                few,
                slides=self._options["slides"],
                epochs=2,
                batch_size=min(batch_size, len(patches)),
                balanced=False,
                budget_gb=float("inf"),
                progress=False,
                **options,
            )
        done = max(1, len(patches) // batch_size) * min(batch_size, len(patches)) + len(few) / 3
        return done / float(trial.history["seconds"].iloc[1])

    def run(self, *, progress: bool = True) -> Fit:
        """Train."""
        return fit(*self._call, progress=progress, **self._options)

    def _lines(self) -> list[tuple[str, str]]:
        _, train, val = self._call
        once = "once, then kept in memory" if self.in_memory else "in each epoch"
        return [
            ("patches", f"{len(train):,} to learn from, {len(val):,} to validate on, {self._epochs} epochs"),
            ("reading", f"{self.reading:,.0f} patches/s, {once}"),
            ("network", f"{self.network:,.0f} patches/s, batches of {self._batch}"),
            ("memory", f"about {self.memory_mb / 1024:.1f} GB"),
            ("time", f"{_duration(self.seconds)} on this machine ({os.cpu_count()} cores)"),
        ]

    def __repr__(self) -> str:
        return _as_text("Training", self._lines())

    def _repr_html_(self) -> str:
        return _as_table("Training", self._lines())


# Steps -----------------------------------------------------------------------------------------------------------


def _as_text(title: str, lines: list[tuple[str, str]]) -> str:
    return "\n".join([title, *(f"  {name:<10}{text}" for name, text in lines)])


def _as_table(title: str, lines: list[tuple[str, str]]) -> str:
    cell = '<td style="text-align:left">'
    rows = "".join(
        f"<tr>{cell}<b>{html.escape(name)}</b></td>{cell}{html.escape(text)}</td></tr>"
        for name, text in lines
    )
    return f"<table><caption>{title}</caption>{rows}</table>"


def _stored_mb(slide: Slide, mpp: float, area_um2: float) -> float:
    """What an area of a slide takes in its file at some resolution, if all its pixels take the same."""
    if slide.path is None:
        return 0.0
    in_file = sum(lv.width * lv.height for lv in slide.levels)
    level = max((lv for lv in slide.levels if (lv.mpp or 0) <= mpp * 1.005), key=lambda lv: lv.index)
    needed = area_um2 / (level.mpp or mpp) ** 2
    return slide.path.stat().st_size / 1e6 * min(1.0, needed / in_file)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
