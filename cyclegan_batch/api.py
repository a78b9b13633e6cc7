"""The Python interface, which the command line uses, too.

>>> from cyclegan_batch import open_generator, translate
>>> translate(["clip.mp4"], "out.mp4", model="horse2zebra.onnx", crf=20)
>>> generator = open_generator("horse2zebra.onnx")
>>> zebras = generator(horses)                       # (N, H, W, 3) in and out
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .backends import Backend
from .errors import CycleganBatchError, InputError, OutputError, OutputExistsError
from .file_identity import FileIdentity, identity_of
from .files import PathLike
from .job.comparison import make_comparisons
from .job.dispatch import Dispatcher
from .job.journal import Journal, is_unrecorded_part, remove_joined_stretches
from .job.plan import JobPlan, plan_job
from .job.plan_text import plan_description
from .job.report import Report, report_from_counters, versions
from .job.runners import workers_of
from .job.runners.local import run_here
from .job.units import Counters, Failure, is_hopeless
from .media.formats import Entry
from .options import TranslateOptions
from .remote import as_path, is_remote
from .wording import grouped, printable


def translate(
    inputs: PathLike | Iterable[PathLike], output: PathLike, *, model: PathLike, **options: Any
) -> Report:
    """Translate videos, images and folders of them through the generator ``model``.

    ``options`` are the fields of `TranslateOptions`, which are named as on the command line. As
    there, a checkpoint is exported once and its export kept (``cache_dir``); ``backend="torch"``
    runs the checkpoint itself. Nothing is printed.

    The report lists what is damaged or missing (``failures``). Raises CycleganBatchError where
    nothing at all could be written, and with ``on_error="fail"`` at the first damage.
    """
    plan, backend = prepare_translation(inputs, output, model=model, **options)
    report = run_plan(plan, backend)
    if report.status == "failed":
        error = report.failures[0].error
        if len(report.failures) == 1:
            raise error
        raise type(error)(
            f"nothing was written: {len(report.failures)} failures, the first: {error}"
        )
    return report


def plan_translation(
    inputs: PathLike | Iterable[PathLike],
    output: PathLike,
    *,
    model: PathLike,
    say: Callable[[str], None] = lambda sentence: None,
    **options: Any,
) -> JobPlan:
    """Decide everything that `translate` would do, and write nothing.

    ``say`` receives a sentence before work that takes minutes: an export, the building of an
    engine. The plan is a value: it can be pickled, and run by `run_plan` in another process.
    """
    plan, backend = prepare_translation(inputs, output, model=model, say=say, **options)
    if backend is not None:
        backend.close()
    return plan


def prepare_translation(
    inputs: PathLike | Iterable[PathLike],
    output: PathLike,
    *,
    model: PathLike,
    say: Callable[[str], None] = lambda sentence: None,
    **options: Any,
) -> tuple[JobPlan, Backend | None]:
    """Plan as `plan_translation` does, and return the plan with its open backend.

    `run_plan` takes both and closes the backend; a caller that does not run the plan closes it. The
    backend is None where earlier runs have left nothing to translate.
    """
    if options.get("cache_dir") is not None:
        options["cache_dir"] = Path(options["cache_dir"])
    unknown = set(options) - {item.name for item in fields(TranslateOptions)}
    if unknown:
        raise TypeError(f"translate() got an unexpected option: {', '.join(sorted(unknown))}")
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    return plan_job(
        [as_path(item) for item in inputs],
        output if isinstance(output, Path) else os.fspath(output),
        model=as_path(model),
        options=TranslateOptions(**options),
        say=say,
    )


def run_plan(
    plan: JobPlan,
    backend: Backend | None = None,
    *,
    counters: Counters | None = None,
    watch: Callable[[Counters], None] | None = None,
) -> Report:
    """Carry out a plan and report; ``watch`` is called with the state about ten times a second.

    ``backend``: the one from `prepare_translation`, or None to open the plan's; it is closed at the
    end. Raises the error that stops the run early; `report_run` then reports from ``counters`` how
    far the run came.
    """
    counters = counters or Counters()
    counters.failures += plan.failures
    _take_over(plan, counters)
    try:
        with contextlib.ExitStack() as stack:
            if backend is not None:
                stack.callback(backend.close)
            journal = None
            has_work = plan.units or plan.others or plan.comparisons
            if plan.folder is not None and (has_work or is_unrecorded_part(plan)):
                journal = stack.enter_context(Journal(plan))
            else:
                remove_joined_stretches(plan)
            if plan.units:
                _do_units(plan, backend, journal, counters, watch)
            if not counters.interrupted:
                _copy_others(plan, journal, counters)
            if plan.comparisons and not counters.interrupted:
                counters.ended = time.monotonic()
                make_comparisons(plan, journal, counters, watch)
    except KeyboardInterrupt:  # outside of the work on units, which handles its own
        counters.interrupted = True
    return report_run(plan, counters)


def _do_units(
    plan: JobPlan,
    backend: Backend | None,
    journal: Journal | None,
    counters: Counters,
    watch: Callable[[Counters], None] | None,
) -> None:
    """Do all units, here or in worker processes. Raises the error that stops the run early."""
    with contextlib.closing(Dispatcher(plan, journal)) as dispatcher:
        workers = workers_of(plan)
        if workers is not None:
            from .job.runners.supervision import run_with_workers

            if backend is not None:
                backend.close()  # each worker opens its own
            run_with_workers(plan, workers, dispatcher, counters, watch)
        elif backend is not None:
            run_here(plan, backend, dispatcher.units(), dispatcher, counters, watch)
        else:
            with contextlib.closing(plan.open_backend()) as opened:
                counters.started = time.monotonic()
                run_here(plan, opened, dispatcher.units(), dispatcher, counters, watch)


def _take_over(plan: JobPlan, counters: Counters) -> None:
    """Take over what is known of the stretches that an earlier run has done."""
    for stretches in plan.done.values():
        for each in stretches:
            counters.notes += each.notes
            for dropped in each.dropped:
                counters.record(dropped.name, dropped.error, dropped.place)


def report_run(
    plan: JobPlan, counters: Counters, *, error: CycleganBatchError | None = None
) -> Report:
    """Return the report of a run of ``plan``; ``error`` is what stopped it early, if anything."""
    from .media.formats import PIPE

    written = set(counters.written)
    card = asdict(plan.model.card) | {"notes": grouped(plan.model.card.notes)}
    return report_from_counters(
        counters,
        planned=plan.files - sum(entry.output == PIPE for entry in plan.entries) - counters.left,
        expected_frames=plan.frames,
        skipped=plan.skipped + counters.left,
        up_to_date=plan.finished,
        damage=plan.damage,
        resumed=tuple(
            f"{len(plan.done[video.output])} of {video.stretches} stretches of {video.name}"
            for video in plan.videos
            if video.output in plan.done
        ),
        resumable=plan.options.resume,
        notes=tuple(dict.fromkeys([*plan.notes, *counters.notes])),
        error=error,
        record=plan_description(plan) | {"card": card, "versions": versions()},
        comparisons=tuple(
            path for unit in plan.comparisons for path in unit.outputs if path in written
        ),
    )


def _copy_others(plan: JobPlan, journal: Journal | None, counters: Counters) -> None:
    from .job.inputs import copy_file
    from .media.ahead import ahead

    def copy(entry: Entry) -> tuple[FileIdentity, int, str] | InputError | OutputError:
        overwrite = plan.options.overwrite or entry.output in plan.redone
        try:
            return _identity(entry, plan), *copy_file(entry, overwrite=overwrite)
        except (InputError, OutputError) as error:
            return error

    if journal is not None:
        journal.begin_copies(plan.others)
    if any(each.status is not None or is_remote(each.output) for each in plan.others):
        copies = ahead(copy, plan.others)
    else:
        copies = ((entry, copy(entry)) for entry in plan.others)
    with contextlib.closing(copies):
        for entry, copied in copies:
            if not isinstance(copied, CycleganBatchError):
                counters.written.append(entry.output)
                if journal is not None:
                    journal.copied(entry, *copied)
            elif plan.options.skip_existing and isinstance(copied, OutputExistsError):
                counters.left += 1
            else:
                counters.failures.append(Failure(printable(entry.source), copied))
                if plan.options.on_error == "fail" or is_hopeless(copied):
                    raise copied


def _identity(entry: Entry, plan: JobPlan) -> FileIdentity:
    """Return the identity of a file that is to be copied. Raises InputError."""
    if entry.status is not None and not plan.options.hash_inputs:
        return entry.status
    try:
        return identity_of([entry.source], hashed=plan.options.hash_inputs)
    except OSError as error:
        name = printable(entry.source)
        raise InputError(
            f"{name}: cannot be read: {error.strerror or error}; check the name, the permissions "
            "and the disk"
        ) from error
