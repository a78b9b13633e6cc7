"""The runners: they let the pipeline do what the dispatcher hands out.

`local` runs it in this process. Else there are workers, each of which runs a pipeline of its own
(`worker`), and `supervision` hands out and hears from them. A `transport` is what they are:
`processes` of this machine, or actors of a cluster (`ray_cluster`).
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
    from .transport import Transport


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


def workers_of(plan: JobPlan) -> Transport | None:
    """Return the workers that do the work of ``plan``; None where this process does it itself."""
    if plan.options.gpus is not None:
        devices = [f"cuda:{number}" for number in gpu_numbers(plan.options.gpus)]
    elif plan.schedule.workers > 1:
        devices = [plan.backend.device] * plan.schedule.workers
    else:
        return None
    from .processes import Processes

    return Processes(plan, devices)


def plan_of_worker(plan: JobPlan, device: str, *, share_of: int) -> JobPlan:
    """Return what one of ``share_of`` workers needs: its device and its share of the CPU.

    It gets its units one by one, so its plan is without them.
    """
    request, schedule = plan.backend.request, plan.schedule
    contexts = schedule.contexts
    if device == "cpu":
        contexts = max(1, contexts // share_of)
    request = replace(
        request, device=device, threads=max(1, request.threads // share_of), contexts=contexts
    )
    schedule = replace(
        schedule,
        contexts=contexts,
        converters=max(1, schedule.converters // share_of),
        workers=1,
    )
    return replace(
        plan,
        backend=replace(plan.backend, device=device, request=request),
        schedule=schedule,
        inputs=(),
        entries=(),
        others=(),
        videos=(),
        tars=(),
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
