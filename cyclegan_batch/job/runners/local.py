"""One worker: the pipeline in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..pipeline import run

if TYPE_CHECKING:
    from ...backends import Backend
    from ..dispatch import Dispatcher
    from ..plan import JobPlan
    from ..units import Counters


def run_here(
    plan: JobPlan,
    backend: Backend,
    dispatcher: Dispatcher,
    counters: Counters,
    watch: Callable[[Counters], None] | None,
) -> None:
    """Do the work of ``plan`` with ``backend``; see `pipeline.run`."""
    run(
        dispatcher.units(),
        backend,
        plan.schedule,
        geometry=plan.geometry,
        keep_size=plan.options.keep_size,
        skip_errors=plan.options.on_error == "skip",
        max_failures=plan.options.max_failures,
        skip_existing=plan.options.skip_existing,
        counters=counters,
        observer=dispatcher,
        watch=watch,
    )
