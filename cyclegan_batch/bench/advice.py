"""The conclusion: which way of running the network is the fastest, and the command for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..option_table import options_given
from ..options import TranslateOptions
from .runtimes import Row
from .stages import StageCost

FAITHFUL = ("exact", "half")
"""The classes of parity that the command may take by itself."""

_WORTH_IT = 1.03
"""By what factor another way must be faster than the one that is taken without options: less is
within the differences from run to run."""

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
    rest = sum(cost.cpu for name, cost in costs.items() if name != "network")
    return min(row.rate, most, threads / max(rest + row.cpu_seconds, 1e-9))


def choose(
    rows: Sequence[Row], default: Row | None, costs: Mapping[str, StageCost], threads: int
) -> Choice | None:
    """Return the fastest ways among ``rows``; None where none was measured.

    ``default``: the row of what `translate` takes without options. Another one must be clearly
    faster.
    """

    def rate(row: Row) -> float:
        return expected_rate(row, costs, threads)

    faithful = [row for row in rows if row.parity_class in FAITHFUL]
    if not faithful:
        return None
    best = max(faithful, key=rate)
    if default in faithful and rate(best) < _WORTH_IT * rate(default):
        best = default
    coarser = [row for row in rows if row.parity_class not in (*FAITHFUL, "none")]
    fastest = max(coarser, key=rate, default=None)
    if fastest is None or rate(fastest) < _WORTH_TELLING * rate(best):
        return Choice(best=best, reduced=None, gain=None)
    return Choice(best=best, reduced=fastest, gain=rate(fastest) / rate(best))


def best_of_each(
    rows: Iterable[Row], costs: Mapping[str, StageCost], threads: int
) -> dict[tuple[str, str, str], Row]:
    """Return the best row of each backend, device and precision."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = row.backend, row.device, row.precision
        if key not in best or expected_rate(row, costs, threads) > expected_rate(
            best[key], costs, threads
        ):
            best[key] = row
    return best


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
