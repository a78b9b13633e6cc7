"""How much of the CPU other programs take while something is measured."""

from __future__ import annotations

import os
from pathlib import Path

MOST = 0.2
"""The share of the CPU that other programs may take in a measurement that decides what is kept."""


class Load:
    """Looks at the CPU time of all programs, from now on."""

    def __init__(self) -> None:
        self._begin = _cpu_times()

    def others(self) -> float | None:
        """Return the share of the CPU, 0 to 1, that other programs took since the beginning.

        None where the system does not tell it. The CPU is that of the whole machine, also where
        this process may use a part of it.
        """
        end = _cpu_times()
        if self._begin is None or end is None:
            return None
        busy, own, whole = (b - a for a, b in zip(self._begin, end, strict=True))
        return min(1.0, max(0.0, busy - own) / whole) if whole > 0 else None


def _cpu_times() -> tuple[float, float, float] | None:
    """Return the CPU seconds of all programs, those of this one, and those there were.

    None where the system does not tell them.
    """
    try:
        fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
        ticks = [int(each) for each in fields]
        second = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    idle = sum(ticks[3:5])
    # The last two, guests, are in the first two already.
    whole = sum(ticks[:8])
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return (whole - idle) / second, own, whole / second
