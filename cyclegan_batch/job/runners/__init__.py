"""The runners: they let the pipeline do what the dispatcher hands out.

`local` runs it in this process. `processes` starts workers, each of which runs a pipeline of its
own (`worker`), and hears from them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import BackendError, InputError, OutputError
from ...options import TranslateOptions, gpu_numbers

if TYPE_CHECKING:
    from ...media.formats import Entry
    from ..plan import JobPlan


def check_workers(entries: Iterable[Entry], options: TranslateOptions) -> None:
    """Refuse worker processes where they cannot work. Raises InputError, OutputError, BackendError.

    Only the process that was started has the standard streams.
    """
    from ...media.formats import PIPE

    if options.gpus is None and (options.workers or 1) < 2:
        return
    flag = "--workers" if options.gpus is None else "--gpus"
    if sys.platform == "win32":
        raise BackendError(f"{flag} hands files to processes as Windows cannot; leave it out")
    for entry in entries:
        if entry.source == PIPE:
            raise InputError(
                f"standard input is read by one process, and {flag} asks for others; leave it out"
            )
        if entry.output == PIPE:
            raise OutputError(
                f"standard output is written by one process, and {flag} asks for others; leave it "
                "out"
            )


def worker_devices(plan: JobPlan) -> tuple[str, ...] | None:
    """Return the device of each worker process; None where this process does the work itself."""
    if plan.options.gpus is not None:
        return tuple(f"cuda:{number}" for number in gpu_numbers(plan.options.gpus))
    count = plan.schedule.workers
    return (plan.backend.device,) * count if count > 1 else None


def plan_of_worker(plan: JobPlan, device: str, count: int) -> JobPlan:
    """Return what one of ``count`` worker processes needs: its device and its share of the CPU.

    It gets its units one by one, so its plan is without them.
    """
    request, schedule = plan.backend.request, plan.schedule
    contexts = schedule.contexts
    if device == "cpu":
        contexts = max(1, contexts // count)
    request = replace(
        request, device=device, threads=max(1, request.threads // count), contexts=contexts
    )
    schedule = replace(
        schedule, contexts=contexts, converters=max(1, schedule.converters // count), workers=1
    )
    return replace(
        plan,
        backend=replace(plan.backend, device=device, request=request),
        schedule=schedule,
        inputs=(),
        entries=(),
        others=(),
        videos=(),
        shards=(),
        left=(),
        failures=(),
        everything=(),
        finished=(),
        damage=(),
        outdated={},
        redone=frozenset(),
        done={},
    )
