"""Plan: what a run over slides will cost, before it is begun; and then the run itself.

A few hundred patches, spread over what is to be done, are read and put through the network on this machine; the rest is
multiplication. The plan is also what runs: it shows how far it is and how long it will still take, from the sample at first
and more and more from the run itself, and a plan made again over the same folder counts what is already done.
"""

from __future__ import annotations

import html
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import psutil
from tqdm.auto import tqdm

from pathkit.engine import N_COMPARED, Engine
from pathkit.geometry import Raster
from pathkit.inference import HeatmapJob, heatmap_jobs, readers
from pathkit.models import PatchClassifier
from pathkit.slide import Slide

__all__ = ["Plan", "plan"]


def plan(
    slides: Slide | pd.DataFrame,
    model: PatchClassifier,
    *,
    out: str | os.PathLike[str] | None = None,
    sample: int = 256,
    batch_size: int | None = None,
    engine: str = "auto",
    workers: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Plan:
    """What the heatmaps of slides will cost on this machine.

    Parameters
    ----------
    slides : Slide or DataFrame
        One slide, or a slides table.
    model : PatchClassifier
    out : path, optional
        Of one slide the ``.npz``, of a table the folder, as `inference.heatmap` and `inference.heatmaps` take it. What it
        holds already counts as done.
    sample : int
        Patches that are tried.
    batch_size, engine, workers
        As `inference.heatmap`.
    **options
        positive, min_tissue, stride_px and, for one slide, mask: as `inference.heatmap`.

    Returns
    -------
    Plan
        Show it to see the cost; ``plan.run()`` gives the heatmaps.

    Examples
    --------
    >>> job = plan(slides, model, out="heatmaps")  # doctest: +SKIP
    >>> job.seconds_left / 60  # doctest: +SKIP
    >>> maps = job.run()  # doctest: +SKIP
    """
    if isinstance(slides, Slide):
        jobs = {slides.name: HeatmapJob(slides, model, out=out, **options)}
    else:
        jobs = heatmap_jobs(slides, model, out=out, progress=progress, **options)
    return Plan(jobs, sample=sample, batch_size=batch_size, engine=engine, workers=workers)


class Plan:
    """The cost of heatmaps, and the run; made by `plan`.

    Attributes
    ----------
    table : DataFrame
        slide_id, patches, left, read_mb (of the slide's file, about), one row a slide.
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
        jobs: Mapping[str, HeatmapJob],
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
        rows = [(i, job.n_patches, job.n_left, _stored_mb(job)) for i, job in self._jobs.items()]
        self.table = pd.DataFrame(rows, columns=["slide_id", "patches", "left", "read_mb"])
        self.n_patches, self.n_left = int(self.table["patches"].sum()), int(self.table["left"].sum())
        self._begun = self.n_left
        self._workers = readers() if workers is None else workers
        self.engine: Engine | None = None
        self.reading = self.network = float("nan")
        self._elapsed = 0.0
        if self.n_left:
            self._try_out(sample)
        arrays = max((job.shape[0] * job.shape[1] * 24 for job in self._jobs.values()), default=0)
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

    def run(self, *, progress: bool = True) -> dict[str, Raster]:
        """The heatmaps by slide_id; one that was stopped goes on where it was, as `inference.heatmap` does."""
        self.n_left = sum(job.n_left for job in self._jobs.values())
        with tqdm(
            total=self.n_patches, initial=self.n_patches - self.n_left, desc="heatmaps", disable=not progress
        ) as bar:
            bar.bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} patches{postfix}"
            began, before = time.perf_counter(), self._elapsed

            def tick(n: int) -> None:
                self.n_left -= n
                self._elapsed = before + time.perf_counter() - began
                bar.set_postfix_str(f"{_duration(self.seconds_left)} left", refresh=False)
                bar.update(n)

            maps = {
                i: job.run(n_patches=self._begun, progress=tick, **self._options)
                for i, job in self._jobs.items()
            }
        self.table["left"] = [job.n_left for job in self._jobs.values()]
        return maps

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
        patches = f"{self.n_patches:,} of {job.size_px} px at {job.mpp:g} µm/px, every {job.stride_px} px"
        lines = [("slides", f"{len(self._jobs):,}" + (f", {finished:,} finished" if finished else ""))]
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
        return "\n".join(["Heatmaps", *(f"  {name:<10}{text}" for name, text in self._lines())])

    def _repr_html_(self) -> str:
        cell = '<td style="text-align:left">'
        rows = "".join(
            f"<tr>{cell}<b>{html.escape(name)}</b></td>{cell}{html.escape(text)}</td></tr>"
            for name, text in self._lines()
        )
        return f"<table><caption>Heatmaps</caption>{rows}</table>"


def _stored_mb(job: HeatmapJob) -> float:
    """What the patches that are left take in the slide's file, if all its pixels take the same."""
    if job.slide.path is None:
        return 0.0
    in_file = sum(lv.width * lv.height for lv in job.slide.levels)
    level = max((lv for lv in job.slide.levels if (lv.mpp or 0) <= job.mpp * 1.005), key=lambda lv: lv.index)
    needed = job.n_left * (job.cell_um / (level.mpp or job.mpp)) ** 2
    return job.slide.path.stat().st_size / 1e6 * min(1.0, needed / in_file)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
