"""How far a training is, in one line: images read, then epoch, step, rate, time left, losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cyclegan_batch.wording import clock

_BAR = 24
"""Columns of the bar."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    epoch: int
    epochs: int
    step: int
    steps: int
    """Of the whole run."""
    rate: float
    """Steps per second over the last fifty; 0 before the second step."""
    losses: Mapping[str, float]
    """The means of the last line of the log; empty before the first line."""
    before_first: int = 0
    """The steps of a warm-up that are left before the first epoch."""

    @property
    def seconds_left(self) -> float | None:
        """The time left at the present rate; None while there is no rate."""
        return (self.steps - self.step) / self.rate if self.rate else None


@dataclass(frozen=True)
class Reading:
    """How many images of a domain are read, before the first step."""

    domain: str
    """``A`` or ``B``."""
    read: int
    count: int


def line(progress: Progress | Reading, columns: int) -> str:
    """Return a bar and `sentence` in at most ``columns`` columns; without room, no bar."""
    words = sentence(progress)
    if len(words) + _BAR + 1 <= columns:
        if isinstance(progress, Reading):
            done, whole = progress.read, progress.count
        else:
            done, whole = progress.step, progress.steps
        full = _BAR * done // max(1, whole)
        return f"{'━' * full}{'─' * (_BAR - full)} {words}"
    return words[:columns]


def sentence(progress: Progress | Reading) -> str:
    """Return how far a training is, as text."""
    if isinstance(progress, Reading):
        return f"{progress.domain}: read {progress.read:,} of {progress.count:,} images"
    if progress.before_first:
        return f"warm-up: {progress.before_first} steps before the first epoch"
    parts = [
        f"epoch {progress.epoch}/{progress.epochs}",
        f"step {progress.step}/{progress.steps}",
    ]
    if progress.rate:
        parts.append(f"{progress.rate:.2f} it/s")
    if progress.seconds_left is not None:
        parts.append(f"{clock(progress.seconds_left)} left")
    if progress.losses:
        names = ("G_A", "G_B", "D_A", "D_B", "cycle_A", "cycle_B")
        parts.append(" ".join(f"{name} {progress.losses[name]:.2f}" for name in names))
    return ", ".join(parts)


def state(progress: Progress | Reading) -> dict[str, object]:
    """Return how far a training is, as values for JSON."""
    if isinstance(progress, Reading):
        return {"domain": progress.domain, "read": progress.read, "pictures": progress.count}
    left = progress.seconds_left
    return {
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "step": progress.step,
        "steps": progress.steps,
        "rate": round(progress.rate, 3),
        "warm_up_left": progress.before_first,
        "seconds_left": None if left is None else round(left, 1),
        "losses": dict(progress.losses),
    }
