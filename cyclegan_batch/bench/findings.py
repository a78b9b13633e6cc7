"""What ``bench`` found, in values; ``--json`` prints them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Literal

from .._version import __version__
from .runtimes import LeftOut, Network, Row
from .stages import Limit, StageCost
from .subject import Subject
from .whole import Run

Part = Literal["subject", "stages", "pipeline", "network", "workers", "advice"]
"""The parts in their order."""


@dataclass(kw_only=True)
class Findings:
    """Everything that was found so far; a part that is not known yet is None or empty."""

    subject: Subject
    budget_seconds: float
    """What the measurement may take."""
    used_seconds: float = 0.0
    """What it took, without the export."""
    export_seconds: float = 0.0
    """What exporting the checkpoint took, which does not count."""
    stages: dict[str, StageCost] = field(default_factory=dict)
    stage_workers: dict[str, int] = field(default_factory=dict)
    limit: Limit | None = None
    default: Row | None = None
    """The row of what `translate` takes without options."""
    pipeline: Run | None = None
    """The real pipeline, as `translate` runs it without options."""
    network: Network | None = None
    workers: tuple[Run, ...] = ()
    """The same pipeline in one process and in several."""
    best: Row | None = None
    """The fastest way of the network whose parity is exact or half."""
    confirmed: Run | None = None
    """The pipeline with the command, where that is not the run above."""
    reduced: Row | None = None
    """A way of coarser parity that would be faster."""
    reduced_options: tuple[str, ...] = ()
    """The words that the command needs for it besides."""
    reduced_gain: float | None = None
    """How many times faster the pipeline is expected to be with it."""
    kept: tuple[str, ...] = ()
    """What is kept for later plans, in words."""
    command: tuple[str, ...] = ()
    """The words of the command to use."""
    not_measured: list[LeftOut] = field(default_factory=list)
    """What there was no time for, beside the ways of the network."""

    def to_json(self) -> dict[str, object]:
        """Return the findings as values for JSON. A number that is infinite or NaN is null."""
        network = self.network
        content = {
            "version": __version__,
            "seconds": {
                "budget": self.budget_seconds,
                "used": self.used_seconds,
                "export": self.export_seconds,
            },
            "subject": asdict(self.subject),
            "stages": {
                name: {
                    "cpu_seconds": cost.cpu,
                    "seconds": cost.wall,
                    "workers": self.stage_workers.get(name, 1),
                }
                for name, cost in self.stages.items()
            },
            "limit": None if self.limit is None else asdict(self.limit),
            "pipeline": None if self.pipeline is None else asdict(self.pipeline),
            "network": [self._row(row) for row in network.rows] if network else [],
            "network_others": network.others if network else None,
            "products_gflops": network.products if network else {},
            "cannot_run": [asdict(each) for each in network.cannot_run] if network else [],
            "not_measured": [
                asdict(each)
                for each in (*(network.not_measured if network else ()), *self.not_measured)
            ],
            "workers": [asdict(run) for run in self.workers],
            "confirmed": None if self.confirmed is None else asdict(self.confirmed),
            "reduced": None
            if self.reduced is None
            else self._row(self.reduced)
            | {"gain": self.reduced_gain, "options": list(self.reduced_options)},
            "kept": list(self.kept),
            "command": list(self.command),
        }
        finite = _finite(content)
        assert isinstance(finite, dict)
        return finite

    def _row(self, row: Row) -> dict[str, object]:
        """Return a row of the network as values.

        ``parity`` is null for the reference; ``default`` marks what `translate` takes without
        options, ``best`` what the command takes.
        """
        return asdict(row) | {
            "parity_class": row.parity_class,
            "default": row == self.default,
            "best": row == self.best,
        }


def _finite(value: object) -> object:
    """Return ``value`` with None in place of every number that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
