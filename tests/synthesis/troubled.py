"""A plan whose backend is made up: it inverts, at the speed of its device, and kills on request.

Worker processes get it pickled, so it stands in a module of its own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from cyclegan_batch.api import plan_translation
from cyclegan_batch.frames import Pixels
from cyclegan_batch.job.plan import JobPlan

MARK = 77
"""A frame of this grey does what `TroubledPlan.at_mark` says."""


class MadeUpBackend:
    """Computes 255 − x."""

    name, precision = "made up", "fp32"
    notes = ()

    def __init__(self, plan: TroubledPlan) -> None:
        self.plan, self.card, self.device = plan, plan.model.card, plan.backend.device
        self.cancelled = threading.Event()

    def infer(self, frames: Pixels) -> Pixels:
        if (frames == MARK).all() and self.plan.at_mark is not None:
            self.plan.at_mark(self.plan.witness)
        self.cancelled.wait(self.plan.delays.get(self.device, 0.0))
        return np.uint8(255) - frames

    def fork(self) -> MadeUpBackend:
        return MadeUpBackend(self.plan)

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class TroubledPlan(JobPlan):
    """A plan with a `MadeUpBackend`."""

    at_mark: Callable[[Path], None] | None = None
    """Called with ``witness`` when a frame of the grey `MARK` is translated."""
    at_start: Callable[[Path], None] | None = None
    """Called with ``witness`` where a worker opens its backend."""
    witness: Path = Path()
    delays: Mapping[str, float] = field(default_factory=dict)
    """Seconds for a call of the network, by device."""

    def open_backend(self, say: Callable[[str], None] = lambda sentence: None) -> Any:
        if self.at_start is not None:
            self.at_start(self.witness)
        return MadeUpBackend(self)


def troubled(*arguments: Any, witness: Path = Path(), **options: Any) -> TroubledPlan:
    """Plan as `plan_translation` does; options of the class are taken out first."""
    own = {key: options.pop(key) for key in ("at_mark", "at_start", "delays") if key in options}
    plan = plan_translation(*arguments, **options)
    values = {each.name: getattr(plan, each.name) for each in fields(plan)}
    return TroubledPlan(**values, **own, witness=witness)


def kill(witness: Path) -> None:
    """Die as if the system had run out of memory."""
    os.kill(os.getpid(), 9)


def segfault(witness: Path) -> None:
    """Die as a codec does: at once, in the thread that does it.

    `os.kill` sends the signal to the process, whose main thread may take it up only after this
    thread has gone on and the unit has ended.
    """
    signal.raise_signal(signal.SIGSEGV)


def kill_once(witness: Path) -> None:
    """Die unless another process has died here before."""
    if not witness.exists():
        witness.touch()
        kill(witness)


def leave(witness: Path) -> None:
    """Die with a message and an exit status."""
    os.write(2, b"the driver says no\n")
    os._exit(7)


def raise_bug(witness: Path) -> None:
    """Raise what is no error of this package."""
    raise ZeroDivisionError("a bug of ours")


def wait_for_ever(witness: Path) -> None:
    """Tell that a process is here, and do nothing."""
    witness.with_name(f"{witness.name}-{os.getpid()}").touch()
    time.sleep(600)
