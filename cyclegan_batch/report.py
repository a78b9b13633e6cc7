"""What a run did, for people, for scripts and for whoever asks later how a file came to be."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .pipeline import Counters, Failure, Stage

Status = Literal["whole", "partial", "failed", "interrupted"]

EXIT_CODES: dict[Status, int] = {"whole": 0, "failed": 1, "partial": 3, "interrupted": 130}

_RECORDED = (
    "cyclegan-batch",
    "av",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
)


@dataclass(frozen=True)
class Report:
    """The outcome of one `translate`."""

    status: Status
    outputs: tuple[Path, ...]
    """Files that are whole under their final names."""
    failures: tuple[Failure, ...]
    """Everything that is missing, with its reason."""
    skipped: int
    """Outputs that existed and were left alone (``--skip-existing``)."""
    frames: int
    """Pictures translated and written."""
    seconds: float
    stages: dict[str, Stage]
    limiting_stage: str | None
    """The stage that was busy for the largest share of the time."""
    notes: tuple[str, ...]
    """What was said once."""
    record: dict[str, Any]
    """The plan, and every version and digest that the pixels depend on."""

    @property
    def exit_code(self) -> int:
        """0 whole, 1 failed, 3 partial, 130 interrupted."""
        return EXIT_CODES[self.status]

    @property
    def rate(self) -> float:
        """Frames per second of the whole run."""
        return self.frames / self.seconds if self.seconds else 0.0

    def to_json(self) -> str:
        """Return the report as JSON; bytes of names that are not UTF-8 are lone surrogates."""
        content = asdict(self) | {"exit_code": self.exit_code, "rate": self.rate}
        return json.dumps(content, default=str, indent=2)


def report_from_counters(
    counters: Counters, *, skipped: int, notes: tuple[str, ...], record: dict[str, Any]
) -> Report:
    """Sum up a run."""
    status: Status = "whole"
    if counters.interrupted:
        status = "interrupted"
    elif counters.failures or counters.pipe_closed:
        status = "partial" if counters.frames_done else "failed"
    return Report(
        status=status,
        outputs=tuple(counters.written),
        failures=tuple(counters.failures),
        skipped=skipped,
        frames=counters.frames_done,
        seconds=counters.seconds,
        stages=counters.stages,
        limiting_stage=counters.limiting_stage(),
        notes=notes,
        record=record,
    )


def versions() -> dict[str, str]:
    """Return the version of everything that pixels may depend on, by distribution name."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
