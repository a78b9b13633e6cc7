"""The real pipeline: a translation of the sample into a temporary folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..api import run_plan
from ..backends import Backend
from ..job.plan import JobPlan, plan_job
from ..job.report import Report
from ..job.units import Counters
from ..options import TranslateOptions
from .budget import Budget
from .load import Load
from .sample import Sample


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the pipeline."""

    backend: str
    device: str
    precision: str
    batch_size: int
    contexts: int
    workers: int
    """Processes that worked side by side."""
    frames: int
    seconds: float
    rate: float
    """Frames per second of the whole run, its start and its end included."""
    limiting_stage: str | None
    """The stage whose workers were busy for the largest share of the time."""
    others: float | None = None
    """The share of the CPU, 0 to 1, that other programs took meanwhile, where that is known."""
    share: float | None = None
    """``rate`` over the limit."""


class Pipeline:
    """Plans and runs translations of one sample with one model."""

    def __init__(
        self,
        sample: Sample,
        model: Path,
        folder: Path,
        budget: Budget,
        say: Callable[[str], None],
    ) -> None:
        self._sample, self._model = sample, model
        self._folder, self._budget, self._say = folder, budget, say
        self._number = 0
        self._end = float("inf")
        self._seen = 0, 0.0
        """Frames and seconds of the run, as they were last seen."""

    def prepare(self, frames: int, options: TranslateOptions) -> tuple[JobPlan, Backend]:
        """Plan a translation of at most ``frames`` frames; the caller closes the backend."""
        self._number += 1
        place = self._folder / str(self._number)
        out = place / "out"

        def prepared() -> tuple[JobPlan, Backend | None]:
            path, most = self._sample.inputs(frames, place / "in")
            # The repeated images of a sample would cost the network nothing.
            changed = replace(options, frames=most, reuse=False)
            return plan_job(
                [path], f"{out}{os.sep}", model=self._model, options=changed, say=self._say
            )

        plan, backend = self._budget.attend(prepared)
        assert backend is not None  # nothing in the new folder is up to date
        return plan, backend

    def run(self, frames: int, seconds: float, options: TranslateOptions) -> Run:
        """Translate at most ``frames`` frames, in at most ``seconds``.

        Where something else keeps the machine busy, the run is stopped early, and its rate is that
        of what was done. Raises what a translation raises, and KeyboardInterrupt.
        """
        plan, backend = self.prepare(frames, options)
        self._end = self._budget.clock() + seconds
        load = Load()
        report = self._carried_out(plan, backend)
        others = load.others()
        return Run(
            backend=plan.backend.name,
            device=plan.backend.device,
            precision=plan.backend.precision,
            batch_size=plan.schedule.batch_size,
            contexts=plan.schedule.contexts,
            workers=plan.schedule.workers,
            frames=self._seen[0],
            seconds=self._seen[1],
            rate=self._seen[0] / max(self._seen[1], 1e-9),
            limiting_stage=report.limiting_stage,
            others=others,
        )

    def _carried_out(self, plan: JobPlan, backend: Backend) -> Report:
        with contextlib.closing(backend):
            report = run_plan(plan, backend, watch=self._watch)
        if report.status == "interrupted":
            if not self._seen[0] or self._budget.clock() < self._end:
                raise KeyboardInterrupt
            return report
        self._seen = report.frames, report.seconds
        if report.status == "failed":
            raise report.failures[0].error
        return report

    def _watch(self, counters: Counters) -> None:
        self._budget.look()
        self._seen = counters.frames_done, counters.seconds
        if counters.frames_done and self._budget.clock() >= self._end:
            raise KeyboardInterrupt  # the pipeline stops, and reports what was done
