"""``bench``: what a model reaches on this machine, what limits it, and the command that reaches it.

    subject → stages → whole → runtimes (race, products) → whole again → advice

`measure` does it all and returns `findings.Findings`; each part is handed on as soon as it is
known. `text` draws them. `Budget` keeps the time: every step asks what is left before it begins.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from ..backends import default_contexts
from ..errors import BackendError, InputError, ModelError, OutputError
from ..job.calibration import Calibration, keep, kept
from ..job.plan import JobPlan
from ..machine import cpu_threads
from ..models.checkpoints.files import Selection, is_checkpoint
from ..models.model import Model, open_model
from ..opening import open_for_translation
from ..options import BackendName, TranslateOptions, TranslatePrecision
from ..wording import counted, grouped
from .advice import choose, command, expected_rate, option_words, way_of_each
from .budget import Budget
from .findings import Findings, Part
from .load import MOST
from .runtimes import Bench, LeftOut, Row
from .sample import MOST_IMAGES, Sample, sample_of
from .stages import Limit, limit_of, stages_alone
from .subject import subject_of
from .whole import Pipeline, Run
from .work import gflop

__all__ = ["Findings", "Part", "measure"]

_STAGES_UNTIL, _PIPELINE_UNTIL, _NETWORK_UNTIL = 0.22, 0.45, 0.83
"""The shares of the time after which these parts are to have ended."""

_OVERTIME = 1.25
"""How many times longer than planned a run of the pipeline may take before it is stopped."""

_STAGE_FRAMES_PER_SECOND = 25
"""Frames, for each second of the budget, after which the stages are known: so many that opening and
ending a video matters little, also where a frame takes 2 ms."""

_MOST_FRAMES = 6000
"""Frames of the longest run."""

_LEAST_SECONDS_OF_WORKERS = 8.0
"""Below this the start of two processes would be most of what is measured."""

_FRAMES_OF_TWO_UNITS = 520
"""Frames that make two shards of images, or two stretches of a video of 25 frames per second."""

_WORKERS_WORTH_IT = 1.05


def measure(
    model: Path,
    source: Path | None,
    options: TranslateOptions,
    *,
    seconds: float = 60.0,
    say: Callable[[str], None] = lambda sentence: None,
    watch: Callable[[str, float], None] = lambda step, left: None,
    tell: Callable[[Part, Findings], None] = lambda part, findings: None,
    clock: Callable[[], float] = time.monotonic,
) -> Findings:
    """Measure ``model`` on this machine, with the first frames of ``source``.

    ``source``: a video, an image or a folder of them; None for a computed clip. ``options``:
    those of the network limit what is compared. ``seconds``: how long it may take, the export of a
    checkpoint excluded. Where that is short, ways are left out, and named.

    ``say`` gets sentences, ``watch`` the step and the seconds left about ten times a second, and
    ``tell`` each part as soon as it is known. What is the fastest is kept for later plans
    (`job.calibration`). Temporary files are removed, however it ends.

    Raises what `translate` raises, and KeyboardInterrupt.
    """
    if options.device == "webgpu":
        raise BackendError("bench measures CPUs and NVIDIA GPUs; leave --device webgpu out")
    # A runtime that could not be stopped may still write into it.
    with tempfile.TemporaryDirectory(
        prefix="cyclegan-batch-bench-", ignore_cleanup_errors=True
    ) as name:
        job = _Job(model, source, options, Budget(seconds, clock=clock, watch=watch), Path(name))
        return job.measure(say, tell)


class _Job:
    """One call of `measure`."""

    def __init__(
        self,
        model: Path,
        source: Path | None,
        options: TranslateOptions,
        budget: Budget,
        folder: Path,
    ) -> None:
        self.path, self.source, self.options = model, source, options
        self.budget, self.folder = budget, folder
        self.threads = cpu_threads()
        self.is_calm = True

    def measure(
        self, say: Callable[[str], None], tell: Callable[[Part, Findings], None]
    ) -> Findings:
        budget = self.budget
        model, exported = self._open(say)
        sample = sample_of(self.source, model.card, self.options.size, self.folder / "names")
        pipeline = Pipeline(sample, self.path, self.folder, budget, say)
        budget.step = "planning"
        most = math.ceil(_STAGE_FRAMES_PER_SECOND * budget.seconds)
        # Each image is opened and ended by itself, and more of them take longer to plan.
        most = min(most, MOST_IMAGES) if sample.kind == "images" else most
        plan, backend = pipeline.prepare(most, self.options)
        with contextlib.closing(backend):
            for sentence in grouped(plan.notes):
                say(sentence)
            if not plan.sizes:
                raise InputError(
                    f"{sample.words}: none can be read; translate tells what is wrong with each: "
                    "give others, or leave INPUT out to measure with a computed clip"
                )
            findings = self._findings(plan, sample, exported)
            tell("subject", findings)
            budget.step = "each stage alone"

            def enough(frames: int) -> bool:
                return frames >= most or budget.until(_STAGES_UNTIL) <= 0

            findings.stages = budget.attend(
                lambda: stages_alone(plan, backend, enough=enough), cancel=backend.cancel
            )
        on_cpu = plan.backend.device == "cpu"
        findings.stage_workers = plan.schedule.stages
        limit = findings.limit = limit_of(
            findings.stages, plan.schedule, threads=self.threads, on_cpu=on_cpu
        )
        tell("stages", findings)
        budget.step = "the whole pipeline"
        findings.pipeline = self._run(
            pipeline, limit.rate, budget.until(_PIPELINE_UNTIL), findings, self.options
        )
        tell("pipeline", findings)
        self._network(plan, model, findings, say)
        tell("network", findings)
        self._conclude(pipeline, plan, sample, limit, findings, say)
        tell("workers", findings)
        findings.used_seconds = budget.used
        tell("advice", findings)
        return findings

    def _open(self, say: Callable[[str], None]) -> tuple[Model, float]:
        """Return the model, and the seconds that its export took."""
        exports: list[str] = []

        def heard(sentence: str) -> None:
            exports.append(sentence)
            say(sentence)

        self.budget.step = "opening the model"
        begin = self.budget.clock()
        model = self.budget.attend(lambda: open_for_translation(self.path, self.options, say=heard))
        took = self.budget.clock() - begin if exports else 0.0
        self.budget.exclude(took)
        return model, took

    def _findings(self, plan: JobPlan, sample: Sample, exported: float) -> Findings:
        # Of several sizes a plan looks up the largest one.
        networks = [plan.geometry(size).network for size in plan.sizes]
        self.size = max(networks, key=lambda size: size[0] * size[1])
        return Findings(
            subject=subject_of(
                plan.model.card,
                self.size,
                gflop(plan.model, self.size),
                plan.backend.device,
                sample.words,
                self.path,
            ),
            budget_seconds=self.budget.seconds,
            export_seconds=exported,
        )

    def _run(
        self,
        pipeline: Pipeline,
        limit: float,
        seconds: float,
        findings: Findings,
        options: TranslateOptions,
        what: str = "the whole pipeline",
    ) -> Run | None:
        """Run the pipeline for about ``seconds``; None where there is no time for a frame.

        ``limit``: its rate, in frames per second.
        """
        frames = int(min(_MOST_FRAMES, max(limit * seconds, self.threads)))
        if frames / limit > max(self.budget.left, 1.0):
            findings.not_measured.append(LeftOut(what, "a frame takes longer than what is left"))
            return None
        run = pipeline.run(frames, max(_OVERTIME * seconds, 1.0), options)
        return replace(run, share=run.rate / limit)

    def _network(
        self, plan: JobPlan, model: Model, findings: Findings, say: Callable[[str], None]
    ) -> None:
        """Measure the network alone, and find the row of what the plan takes by itself."""
        budget = self.budget
        checkpoint = None
        if is_checkpoint(self.path):
            with contextlib.suppress(ModelError, BackendError):
                checkpoint = open_model(self.path, selection=Selection.of(self.options))
        self.models = {"torch": checkpoint or model}
        exported = plan.model

        def step(words: str) -> None:
            budget.step = words

        bench = Bench(
            self.options,
            plan.backend.request.threads,
            lambda: budget.until(_NETWORK_UNTIL),
            tell=step,
        )
        findings.network = budget.attend(
            lambda: bench.measure(
                exported,
                checkpoint,
                self.size,
                findings.subject.gflop,
                first=plan.backend.name,
                contexts=plan.schedule.contexts,
            ),
            cancel=bench.cancel,
        )
        way = _way_of(plan)
        is_taken = self._taken_now(plan)
        taken = [row for row in findings.network.rows if _key(row) == way and is_taken(row)]
        findings.default = taken[0] if taken else None

    def _taken_now(self, plan: JobPlan) -> Callable[[Row], bool]:
        """Return whether a plan of now takes this batch size and these contexts for its backend."""

        def is_taken(row: Row) -> bool:
            if _key(row) == _way_of(plan):
                schedule = plan.schedule
                return (row.batch_size, row.contexts) == (schedule.batch_size, schedule.contexts)
            found = self._kept(row, plan) if self.options.threads is None else None
            if found is not None:
                return (row.batch_size, row.contexts) == (found.batch_size, found.contexts)
            on_cpu = row.device == "cpu"
            batch = plan.model.card.batch or (1 if on_cpu else plan.schedule.batch_size)
            contexts = default_contexts(row.device, plan.backend.request.threads)
            return (row.batch_size, row.contexts) == (batch, contexts)

        return is_taken

    def _kept(self, row: Row, plan: JobPlan) -> Calibration | None:
        """Return what an earlier measurement kept for the backend of ``row``."""
        card = self.models.get(row.backend, plan.model).card
        backend, device, precision = _key(row)
        cache_dir = self.options.cache_dir
        return kept(card, self.size, cache_dir, backend=backend, device=device, precision=precision)

    def _conclude(
        self,
        pipeline: Pipeline,
        plan: JobPlan,
        sample: Sample,
        limit: Limit,
        findings: Findings,
        say: Callable[[str], None],
    ) -> None:
        """Choose, keep what was chosen, run it, try two workers, and write the command."""
        assert findings.network is not None
        rows, costs = findings.network.rows, findings.stages
        others = findings.network.others or 0.0
        best = way_of_each(rows, self._taken_now(plan), costs, self.threads, is_calm=others <= MOST)
        choice = choose(best.values(), findings.default, costs, self.threads)
        options = self.options
        if choice is not None:
            findings.best = choice.best
            findings.reduced, findings.reduced_gain = choice.reduced, choice.gain
            if choice.reduced is not None:
                changed = _with_best(TranslateOptions(), choice.reduced, plan)
                findings.reduced_options = tuple(option_words(changed))
            options = _with_best(options, choice.best, plan)
        is_kept = self._keep(best.values(), plan, {}, others, say)
        if choice is not None and choice.best != findings.default:
            if not is_kept and choice.best.batch_size != plan.schedule.batch_size:
                options = replace(options, batch_size=choice.best.batch_size)
            self.budget.step = "the pipeline with the command"
            most = expected_rate(choice.best, costs, self.threads)
            findings.confirmed = self._run(
                pipeline, most, self.budget.left / 2, findings, options, self.budget.step
            )
            if _is_slower(findings.confirmed, findings.pipeline):
                # What was faster alone is not so in the pipeline.
                options, findings.confirmed = self.options, None
                findings.best = findings.default or choice.best
                if findings.default is not None:
                    best[_key(findings.default)] = findings.default
                    is_kept = self._keep(best.values(), plan, {}, others, say)
        workers = self._workers(pipeline, plan, sample, limit, findings, options)
        if max((run.others or 0.0 for run in findings.workers), default=0.0) > MOST:
            workers = 1  # one of the runs may have been disturbed more than the other
        elif findings.workers and findings.best is not None:
            is_kept = self._keep(best.values(), plan, {_key(findings.best): workers}, others, say)
        findings.kept = tuple(
            f"{row.name} (batch {row.batch_size}, {counted(row.contexts, 'context')})"
            for row in best.values()
            if is_kept
        )
        if not is_kept and workers > 1:
            options = replace(options, workers=workers)
        findings.command = tuple(self._command(plan, options))

    def _keep(
        self,
        rows: Iterable[Row],
        plan: JobPlan,
        workers: Mapping[tuple[str, str, str], int],
        others: float,
        say: Callable[[str], None],
    ) -> bool:
        """Keep the best ways for later plans; return whether that was possible.

        With ``--threads`` nothing is kept: a plan without it would have other threads. Nor where
        ``others``, the share of the CPU that other programs took, is large. A number of
        ``workers`` that was not measured this time stays as it was.
        """
        if self.options.threads is not None:
            return False
        if others > MOST and self.is_calm:
            self.is_calm = False  # it is said once
            say(
                f"what was found is not kept: other programs took {others:.0%} of the CPU "
                f"meanwhile, and more than {MOST:.0%} blur it; measure again when they have ended"
            )
        if others > MOST:
            return False
        for row in rows:
            card = self.models.get(row.backend, plan.model).card
            backend, device, precision = _key(row)
            cache_dir = self.options.cache_dir
            earlier = self._kept(row, plan)
            calibration = Calibration(
                backend=backend,
                device=device,
                precision=precision,
                batch_size=row.batch_size,
                contexts=row.contexts,
                workers=workers.get(_key(row), earlier.workers if earlier else 1),
                rate=row.rate,
            )
            try:
                keep(calibration, card, self.size, cache_dir)
            except OutputError as error:
                say(f"what was found is not kept: {error}")
                return False
        return True

    def _workers(
        self,
        pipeline: Pipeline,
        plan: JobPlan,
        sample: Sample,
        limit: Limit,
        findings: Findings,
        options: TranslateOptions,
    ) -> int:
        """Run the pipeline in two processes where that can pay; return the better number."""
        if self.threads < 2 or sys.platform == "win32" or plan.backend.device != "cpu":
            return 1
        network = findings.stages["network"].cpu
        if sample.kind != "images" and network > limit.cpu_seconds / 2:
            return 1  # the network has the CPU, in however many processes
        what = "two processes (--workers 2)"
        if sample.kind == "video" and (plan.frames or 0) < _FRAMES_OF_TWO_UNITS:
            findings.not_measured.append(LeftOut(what, "the video is too short to share"))
            return 1
        seconds = self.budget.left / 2 - 1
        if 2 * seconds < _LEAST_SECONDS_OF_WORKERS or limit.rate * seconds < _FRAMES_OF_TWO_UNITS:
            findings.not_measured.append(LeftOut(what, "no time was left"))
            return 1
        runs = []
        for count in (1, 2):
            self.budget.step = f"the whole pipeline, --workers {count}"
            changed = replace(options, workers=count)
            run = self._run(pipeline, limit.rate, seconds, findings, changed, what)
            if run is None:
                return 1
            runs.append(run)
        findings.workers = tuple(runs)
        return 2 if runs[1].rate > _WORKERS_WORTH_IT * runs[0].rate else 1

    def _command(self, plan: JobPlan, options: TranslateOptions) -> list[str]:
        """Return the words of the command to use."""
        entry = plan.entries[0]
        if self.source is None:
            names = "INPUT", "OUTPUT"
        elif self.source.is_dir():
            names = str(self.source), "OUTPUT"
        else:
            names = str(self.source), f"OUTPUT{entry.output.suffix}"
        return command(self.path, *names, options)


def _key(row: Row) -> tuple[str, str, str]:
    return row.backend, row.device, row.precision


def _way_of(plan: JobPlan) -> tuple[str, str, str]:
    return plan.backend.name, plan.backend.device, plan.backend.precision


def _with_best(options: TranslateOptions, best: Row, plan: JobPlan) -> TranslateOptions:
    """Return the options with which a plan runs the network as in ``best``.

    Batch and contexts are kept, and so taken without an option.
    """
    if best.backend != plan.backend.name:
        options = replace(options, backend=cast(BackendName, best.backend))
    if best.precision != plan.backend.precision:
        options = replace(options, precision=cast(TranslatePrecision, best.precision))
    return options


def _is_slower(run: Run | None, other: Run | None) -> bool:
    """Return whether ``run`` was measured and slower; what was not measured is not."""
    return run is not None and other is not None and run.rate < other.rate
