"""The schedule of a run that is given minutes instead of epochs (``--minutes``).

The first steps measure the rate. Then `fitted` chooses how many epochs there are: as many as the
time that is left allows, in the proportion of ``n_epochs`` to ``n_epochs_decay``, so that the
learning rate has gone down when the time is over. Where fewer than ten passes over the images fit
in, an epoch becomes shorter than a pass.

The machine may become slower or faster. At the end of every epoch at the full rate the number is
corrected. From the first epoch at a lower rate on it stays, since the rate of an epoch follows from
it, and `refitted` changes the steps of the epochs that are left, within an epoch too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from cyclegan_batch.wording import counted

from .batches import Sampler
from .cyclegan import State
from .distributed import Ranks
from .settings import Settings

_LEAST_EPOCHS = 10
"""Epochs of a run whose epochs are made shorter, each with its sheet and its rate."""

_FIRST_STEPS = 3
"""Steps that are not measured: memory is taken, and libraries choose their kernels."""

_FEWEST_STEPS = 5
_SHARE_OF_TIME = 0.04
_MOST_SHARE_OF_TIME = 0.25
"""A rate is known after so many steps that have taken the first share of the time; or after one
step, when the second share is over."""

_RECENT_SHARE_OF_TIME = 0.1
"""The rate is that of the last steps that have taken this share of the time."""

_FIT_STEPS = 5
"""Steps between two attempts to fit the schedule to the clock, at the beginning of a run."""

_FITS = 10
"""Corrections in an epoch at a falling rate."""

_WORTH_TELLING = 0.9
"""Epochs that become shorter than this share of what was told last are told."""

SHEETS = (1, 2, 5)
"""The minutes of a run after which a sheet of samples is drawn."""


@dataclass(frozen=True)
class Schedule:
    """How long a run is."""

    n_epochs: int
    n_epochs_decay: int
    batches: int
    """Of an epoch."""

    @property
    def epochs(self) -> int:
        """All epochs."""
        return self.n_epochs + self.n_epochs_decay


def fitted(
    *, epoch: int, position: int, batches: int, left: float, share: float, may_shorten: bool = False
) -> Schedule:
    """Return the schedule of a run that has ``left`` more steps in its time.

    The run is at batch ``position`` of ``epoch``, and an epoch has ``batches``; ``may_shorten``
    allows an epoch of fewer. ``share``: the part of the epochs that is at the full rate.
    """
    left = max(0.0, left)
    if may_shorten and (position + left) / batches < _LEAST_EPOCHS - epoch + 1:
        shorter = int((position + left) / _LEAST_EPOCHS)
        batches = min(batches, max(1, position + 1, shorter))
    more = round((position + left) / batches)
    # An epoch that has begun is ended.
    epochs = epoch - 1 + max(more, 1 if position else 0)
    full = min(epochs, max(epoch - 1, round(epochs * share)))
    return Schedule(full, epochs - full, batches)


def refitted(schedule: Schedule, *, epoch: int, position: int, left: float, whole: int) -> Schedule:
    """Return ``schedule`` with epochs of so many steps that ``left`` more are in all.

    The run is at batch ``position`` of ``epoch``; an epoch has no more than ``whole`` batches, a
    pass.
    """
    batches = round((position + left) / (schedule.epochs - epoch + 1))
    return replace(schedule, batches=min(whole, max(1, position + 1, batches)))


class Rate:
    """Measures the recent steps per second of this process, with all that it does between steps."""

    def __init__(self, seconds: float) -> None:
        """Begin to measure a run that has ``seconds`` in all."""
        self._seconds = seconds
        self._steps = -_FIRST_STEPS
        self._begin = time.monotonic()
        self._known: deque[tuple[int, float]] = deque()
        """The steps and the seconds when the rate was known, back to the last that are needed."""

    def step(self) -> None:
        """Count a step."""
        self._steps += 1
        if self._steps == 0:
            self._begin = time.monotonic()

    def known(self) -> float:
        """Return the rate; 0 while it is not known well enough."""
        if self._steps < 1:
            return 0.0
        spent = time.monotonic() - self._begin
        enough = self._steps >= _FEWEST_STEPS and spent >= _SHARE_OF_TIME * self._seconds
        if not enough and spent < _MOST_SHARE_OF_TIME * self._seconds:
            return 0.0
        since = spent - _RECENT_SHARE_OF_TIME * self._seconds
        while len(self._known) > 1 and self._known[1][1] <= since:
            self._known.popleft()
        steps, seconds = self._known[0] if self._known and self._known[0][1] <= since else (0, 0.0)
        if self._steps > steps:
            self._known.append((self._steps, spent))
        return (self._steps - steps) / max(spent - seconds, 1e-9)


class Clock:
    """Fits the schedule of a run to its minutes, and tells when a sheet is due."""

    def __init__(self, settings: Settings) -> None:
        self.minutes = settings.run.minutes
        self.waits = self.minutes > 0
        """Whether the number of epochs is not known yet."""
        self._share = settings.train.n_epochs / max(1, settings.epochs)
        self._schedule: Schedule | None = None
        self._fitted_to = 0.0
        """The minutes of ``_schedule``."""
        self._rate = Rate(60 * self.minutes)
        self._sheets = list(SHEETS)
        self._batches = 0
        """Of an epoch as it was before any that was made shorter or longer at a falling rate."""
        self._told = 0
        """The steps of an epoch that were told last."""

    def step(self) -> None:
        """Count a step of this process."""
        self._rate.step()

    def due(self, sampler: Sampler, steps: int) -> bool:
        """Return whether the schedule is to be fitted within an epoch, after ``steps`` of a run."""
        if self.waits:
            return steps % _FIT_STEPS == 0
        position = sampler.position
        return (
            self._falls(sampler)
            and position > 0
            and not position % max(1, sampler.batches // _FITS)
        )

    def fit(self, sampler: Sampler, seconds: float, ranks: Ranks) -> tuple[Schedule, str] | None:
        """Return the schedule that fits when the run has taken ``seconds``, and what to tell.

        None where it is the one that the run has, or the rate is not known yet. All processes call
        it, and the first one decides.
        """
        rate = self._rate.known() if ranks.first else 0.0
        if not ranks.any(rate > 0):
            return None
        place = sampler.state_dict()
        if self._schedule is not None and self._falls(sampler):
            left = (60 * self.minutes - seconds) * rate
            chosen = refitted(self._schedule, **place, left=left, whole=sampler.whole)
        else:
            chosen = self._fitted(place, sampler.batches, rate, seconds)
            self._batches = chosen.batches
        # The clocks of the processes differ.
        numbers = [chosen.n_epochs, chosen.n_epochs_decay, chosen.batches]
        chosen = Schedule(*ranks.greatest(numbers if ranks.first else [0, 0, 0]))
        if chosen == self._schedule:
            return None
        sentence = self._sentence(chosen, place)
        return self._decided(chosen), sentence

    def _falls(self, sampler: Sampler) -> bool:
        """Return whether the next batch is of an epoch at a lower rate."""
        falls = self._schedule is not None and sampler.epoch > self._schedule.n_epochs
        return falls and self.minutes > 0

    def _sentence(self, chosen: Schedule, place: Mapping[str, int]) -> str:
        """Return what to tell of a schedule that replaces the one before; empty for nothing."""
        before = self._told
        if self.waits:
            self._told = chosen.batches
            return (
                f"{counted(chosen.epochs, 'epoch')} of {counted(chosen.batches, 'step')} fit into "
                f"{self.minutes:g} min"
            )
        # Within an epoch and in the last one a step more or less says little.
        tells = not place["position"] and place["epoch"] < chosen.epochs
        if not tells or chosen.batches >= _WORTH_TELLING * before:
            return ""
        self._told = chosen.batches
        return (
            f"slower than before: the epochs that are left have {counted(chosen.batches, 'step')} "
            f"in place of {before}, so that the learning rate has gone down in time"
        )

    def sheet_due(self, seconds: float) -> int | None:
        """Return the minutes after which a sheet is due that is not drawn yet."""
        due = [minutes for minutes in self._sheets if seconds >= 60 * minutes]
        self._sheets = [minutes for minutes in self._sheets if minutes not in due]
        return due[-1] if due else None

    def state_dict(self) -> State:
        """Return the state."""
        schedule = asdict(self._schedule) if self._schedule else None
        return {
            "minutes": self._fitted_to,
            "share": self._share,
            "batches": self._batches,
            "schedule": schedule,
        }

    def restore(
        self, clock: State, state: State, batches: int
    ) -> tuple[Schedule | None, list[str]]:
        """Return the schedule that a run goes on with, None for that of its keys, and sentences.

        ``clock``: what `state_dict` returned; ``state``: the state of the run; ``batches``: of an
        epoch that is as long as a pass. Other minutes than those of the state are fitted at the
        rate that the run has had.
        """
        seconds, steps = state["seconds"], state["model"]["steps"]
        self._sheets = [minutes for minutes in self._sheets if 60 * minutes > seconds]
        before = clock["minutes"]
        if not self.minutes and not before:
            return None, []
        said = [f"{seconds / 60:.1f} of {self.minutes or before:g} min are over"]
        if clock["schedule"]:
            self._share, self._fitted_to = clock["share"], before
            self._schedule, self.waits = Schedule(**clock["schedule"]), False
            self._told = self._schedule.batches
            # States of before epochs were corrected at a falling rate have no such number.
            self._batches = clock.get("batches", self._told)
            batches = max(self._batches, state["sampler"]["position"] + 1)
        if self.minutes in (0.0, before) or not steps:
            return self._schedule, said
        rate = steps / max(seconds, 1e-9)
        chosen = self._decided(self._fitted(state["sampler"], batches, rate, seconds))
        self._batches = self._told = chosen.batches
        said.append(
            f"at {rate:.3g} steps per second, as until now, {counted(chosen.epochs, 'epoch')} "
            f"fit into {self.minutes:g} min"
        )
        return chosen, said

    def _fitted(
        self, place: Mapping[str, int], batches: int, rate: float, seconds: float
    ) -> Schedule:
        return fitted(
            epoch=place["epoch"],
            position=place["position"],
            batches=batches,
            left=(60 * self.minutes - seconds) * rate,
            share=self._share,
            may_shorten=self._schedule is None and place["epoch"] == 1,
        )

    def _decided(self, schedule: Schedule) -> Schedule:
        self._schedule, self._fitted_to, self.waits = schedule, self.minutes, False
        return schedule
