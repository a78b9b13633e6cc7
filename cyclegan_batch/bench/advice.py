"""The conclusion: which way of running the network is the fastest, and the command for it."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..option_table import options_given
from ..options import TranslateOptions
from .race import Lap
from .runtimes import Row
from .stages import StageCost

FAITHFUL = ("exact", "half")
"""The classes of parity that the command may take by itself."""

_WORTH_IT = 1.03
"""By what factor another way must be faster than the one that is taken without options: less is
within the differences from run to run."""

_LEAST_ROUNDS = 3
"""With fewer rounds a way that differs from another in nothing but batch and contexts is not taken:
a program that ran in one of them would decide."""

_WORTH_IT_ONCE = 1.2
"""By what factor a way must be faster that was measured in fewer rounds."""

_ROUNDS_TO_LOSE_ONE = 7
"""In so many rounds a faster way may be the slower one once; in fewer, never."""

_WORTH_TELLING = 1.05
"""The same for a way of coarser parity, which is only told."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The fastest ways."""

    best: Row
    """Of the classes exact and half."""
    reduced: Row | None
    """A way of coarser parity that is faster; None where there is none."""
    gain: float | None
    """How many times faster that one is than the best, in the whole pipeline, as expected."""


def expected_rate(
    row: Row, costs: Mapping[str, StageCost], threads: int, most: float = float("inf")
) -> float:
    """Return the rate of a pipeline whose network runs as in ``row``.

    It is not faster than the network alone, than ``most``, the slowest of the other stages, nor
    than the threads allow for the CPU seconds of all stages together.
    """
    return min(row.rate, most, threads / max(_rest(costs) + row.cpu_seconds, 1e-9))


def _rest(costs: Mapping[str, StageCost]) -> float:
    """Return the CPU seconds per frame of all stages but the network."""
    return sum(cost.cpu for name, cost in costs.items() if name != "network")


def is_faster(row: Row, other: Row, costs: Mapping[str, StageCost], threads: int) -> bool:
    """Return whether a pipeline with ``row`` is faster than one with ``other``, beyond the noise.

    The rounds are compared one by one, as both ways ran in each of them shortly after one another.
    The median of the ratios must be above `_WORTH_IT`, and almost every ratio above 1.
    """
    rest = _rest(costs)

    def rate(lap: Lap) -> float:
        of_threads = threads / max(rest + lap.cpu_seconds / lap.frames, 1e-9)
        return min(lap.frames / lap.seconds, of_threads)

    ratios = [rate(a) / rate(b) for a, b in zip(row.laps, other.laps, strict=False)]
    if not ratios:
        return False
    needed = _WORTH_IT if len(ratios) >= _LEAST_ROUNDS else _WORTH_IT_ONCE
    lost = sum(ratio <= 1 for ratio in ratios)
    return statistics.median(ratios) >= needed and lost <= len(ratios) // _ROUNDS_TO_LOSE_ONE


def choose(
    rows: Iterable[Row], default: Row | None, costs: Mapping[str, StageCost], threads: int
) -> Choice | None:
    """Return the fastest ways among ``rows``; None where none was measured.

    ``rows``: the way of each runtime and precision. ``default``: the row of what `translate` takes
    without options. Another one must be clearly faster.
    """

    def rate(row: Row) -> float:
        return expected_rate(row, costs, threads)

    ways = list(rows)
    faithful = [row for row in ways if row.parity_class in FAITHFUL]
    if not faithful:
        return None
    if default in faithful:
        faster = [row for row in faithful if is_faster(row, default, costs, threads)]
        best = max(faster, key=rate, default=default)
    else:
        best = max(faithful, key=rate)
    coarser = [row for row in ways if row.parity_class not in (*FAITHFUL, "none")]
    fastest = max(coarser, key=rate, default=None)
    if fastest is None or rate(fastest) < _WORTH_TELLING * rate(best):
        return Choice(best=best, reduced=None, gain=None)
    return Choice(best=best, reduced=fastest, gain=rate(fastest) / rate(best))


def way_of_each(
    rows: Iterable[Row],
    is_taken: Callable[[Row], bool],
    costs: Mapping[str, StageCost],
    threads: int,
    *,
    is_calm: bool,
) -> dict[tuple[str, str, str], Row]:
    """Return the row of each backend, device and precision that a plan is to take.

    ``is_taken`` tells those that plans take now. Another one must be clearly faster, in several
    rounds, and is taken only where the machine was calm: so a disturbed measurement changes
    nothing. A backend of which the row that is taken now was not measured is left out.
    """
    rows = list(rows)
    found = {(row.backend, row.device, row.precision): row for row in rows if is_taken(row)}
    for key, now in list(found.items()):
        faster = [
            row
            for row in rows
            if (row.backend, row.device, row.precision) == key
            and len(row.laps) >= _LEAST_ROUNDS
            and is_faster(row, now, costs, threads)
        ]
        if is_calm and faster:
            found[key] = max(faster, key=lambda row: expected_rate(row, costs, threads))
    return found


def command(
    model: Path,
    source: str,
    target: str,
    options: TranslateOptions,
) -> list[str]:
    """Return the words of a translation with those options that differ from their defaults."""
    # A name that begins like an option.
    source = f"./{source}" if source.startswith("-") else source
    return ["cyclegan-batch", "translate", source, target, "-m", str(model), *option_words(options)]


def option_words(options: TranslateOptions) -> list[str]:
    """Return those options as words that differ from their defaults."""
    words: list[str] = []
    for option in options_given(options):
        value = getattr(options, option.name)
        if value is True:
            words.append(option.flag)
        elif isinstance(value, tuple):
            words += [option.flag, f"{value[1]}x{value[0]}"]
        else:
            words += [option.flag, str(value)]
    return words


def quoted(words: Iterable[str]) -> str:
    """Return words as a line for a POSIX shell; INPUT and OUTPUT are placeholders."""
    return shlex.join(words)
