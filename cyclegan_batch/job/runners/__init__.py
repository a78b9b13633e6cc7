"""The runners: they let the pipeline do what the dispatcher hands out.

`local` runs it in this process. Else there are workers, each of which runs a pipeline of its own
(`worker`), and `supervision` hands out and hears from them. A `transport` is what they are:
`processes` of this machine, or actors of a cluster (`ray_cluster`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import BackendError, InputError, OutputError, missing_extra
from ...options import TranslateOptions, gpu_numbers

if TYPE_CHECKING:
    from ...media.formats import Entry
    from ..plan import JobPlan
    from .transport import Transport


@dataclass(frozen=True)
class Share:
    """What one of several workers has of its machine."""

    device: str
    threads: int
    """CPU threads for the network, of all contexts together."""
    contexts: int
    converters: int


def check_workers(entries: Iterable[Entry], options: TranslateOptions) -> None:
    """Refuse worker processes where they cannot work. Raises InputError, OutputError, BackendError.

    Only the process that was started has the standard streams.
    """
    from ...media.formats import PIPE

    if options.runner == "ray":
        flag = "--runner ray"
        spec = importlib.util.find_spec("ray")
        # A folder of this name, such as /tmp/ray, is found as well, but has no file.
        if spec is None or spec.origin is None:
            error = ModuleNotFoundError(name="ray")
            raise missing_extra("ray", error, doing="work on a Ray cluster")
    elif options.gpus is None and (options.workers or 1) < 2:
        return
    else:
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
    if plan.options.runner == "ray":
        from .ray_cluster import Actors

        return Actors(plan)
    if plan.options.gpus is not None:
        devices = [f"cuda:{number}" for number in gpu_numbers(plan.options.gpus)]
    elif plan.schedule.workers > 1:
        devices = [plan.backend.device] * plan.schedule.workers
    else:
        return None
    from .processes import Processes

    return Processes(plan, devices)


def plan_of_worker(plan: JobPlan, share: Share) -> JobPlan:
    """Return what a worker needs to work with its share of a machine.

    It gets its units one by one, so its plan is without them.
    """
    request = replace(
        plan.backend.request, device=share.device, threads=share.threads, contexts=share.contexts
    )
    schedule = replace(
        plan.schedule, contexts=share.contexts, converters=share.converters, workers=1
    )
    return replace(
        plan,
        backend=replace(plan.backend, device=share.device, request=request),
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


def import_path() -> str:
    """Return where this process finds its modules, as ``PYTHONPATH`` of another one."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
