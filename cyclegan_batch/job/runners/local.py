"""The pipeline in this process, whether it is the only worker or one of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..pipeline import run

if TYPE_CHECKING:
    from ...backends import Backend
    from ..plan import JobPlan
    from ..units import Counters, Observer, Unit


def run_here(
    plan: JobPlan,
    backend: Backend,
    units: Iterable[Unit | None],
    observer: Observer,
    counters: Counters,
    watch: Callable[[Counters], None] | None,
) -> None:
    """Do ``units`` with ``backend`` as ``plan`` requires; see `pipeline.run`."""
    run(
        units,
        backend,
        plan.schedule,
        geometry=plan.geometry,
        keep_size=plan.options.keep_size,
        reuse=plan.options.reuse,
        skip_errors=plan.options.on_error == "skip",
        max_failures=plan.options.max_failures,
        skip_existing=plan.options.skip_existing,
        counters=counters,
        observer=observer,
        watch=watch,
    )
