"""The report of a run: a line for people, and JSON for scripts with the plan and all versions."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import CycleganBatchError, OutputError
from ..files import output_error, writing
from ..machine import installed_versions
from ..remote import is_remote
from ..wording import Note, clock, counted, grouped, printable
from .units import Counters, Failure, Stage

if TYPE_CHECKING:
    from .plan import JobPlan

Status = Literal["whole", "partial", "failed", "interrupted"]

EXIT_CODES: dict[Status, int] = {"whole": 0, "failed": 1, "partial": 3, "interrupted": 130}

_STATUS_WORDS = {
    "whole": "Done",
    "partial": "Partial",
    "failed": "Failed",
    "interrupted": "Interrupted",
}

_RECORDED_PACKAGES = (
    "cyclegan-batch",
    "av",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "tifffile",
    "imagecodecs",
    "isal",
    "pillow-heif",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-webgpu",
    "openvino",
    "torch",
    "triton",
    "safetensors",
    "onnxscript",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-cu13-bindings",
    "tensorrt-cu13-libs",
    "cuda-bindings",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)
"""Distributions whose versions a report records."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of one `translate`."""

    status: Status
    outputs: tuple[Path, ...]
    """Files that this run has written, whole under their final names."""
    up_to_date: tuple[Path, ...]
    """Files of earlier runs of the same job that needed no work."""
    failures: tuple[Failure, ...]
    """Everything that is missing or damaged, with its reason; in files of earlier runs, too."""
    planned: int
    """Files that were to be written, without those that were skipped or up to date, and without a
    pipe."""
    skipped: int
    """Outputs that existed and were not touched (``--skip-existing``)."""
    resumed: tuple[str, ...]
    """What of a video an earlier run had done: ``7 of 12 stretches of clip.mp4``."""
    frames: int
    """Frames translated and written by this run."""
    reused: int
    """Those of them that were not computed, since they repeat the frame before them."""
    expected_frames: int | None
    """Frames that were to be translated, or None where an input does not show its number."""
    seconds: float
    stages: dict[str, Stage]
    limiting_stage: str | None
    """The stage whose workers were busy for the largest share of the time."""
    pipe_closed: bool
    """The process that read standard output closed it before the end."""
    error: CycleganBatchError | None
    """The error that stopped the run early."""
    resumable: bool
    """Whether the same command does what is left: not so with ``--no-resume``."""
    notes: tuple[Note, ...]
    """The notes that were reported to the user."""
    record: dict[str, object]
    """The plan, and every version and digest that the pixels depend on."""
    comparisons: tuple[Path, ...] = ()
    """Those of ``outputs`` that show a source beside its output (``--compare``)."""

    @property
    def exit_code(self) -> int:
        """0 whole, 1 failed, 3 partial, 130 interrupted."""
        return EXIT_CODES[self.status]

    @property
    def rate(self) -> float:
        """Frames per second of the whole run."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def summary(self) -> str:
        """The outcome in one line: how much was done, what is missing and why, what to do next."""
        if self.error is not None:
            # Some of several inputs may be done: the line also has their number and the next step.
            progress = f"; {self._files}; {self._remedy}" if self.planned > 1 else ""
            return f"Error: {self.error}{progress}"
        if self.status == "failed" and self.planned <= 1 and len(self.failures) == 1:
            return f"Error: {self.failures[0].cause}"
        if self.up_to_date and not self.planned and not self.skipped:
            return f"{_STATUS_WORDS[self.status]}: {'; '.join(self._nothing_to_do)}"
        clauses = []
        # The frames of comparisons are none that were translated.
        if self.frames or self.expected_frames or not self.comparisons:
            parts = [self._frames]
            if self.reused:
                parts.append(f"{self.reused:,} repeated")
            if self.frames and self.limiting_stage:
                parts.append(f"{self.rate:.1f} frames/s, limited by {self.limiting_stage}")
            clauses.append(", ".join(parts))
        if self.comparisons:
            clauses.append(counted(len(self.comparisons), "comparison"))
        if self.resumed:
            more = len(self.resumed) - 1
            many = f" and of {counted(more, 'more video')}" if more else ""
            clauses.append(f"resumed: {self.resumed[0]}{many} were done")
        if self.up_to_date:
            be = "was" if len(self.up_to_date) == 1 else "were"
            clauses.append(f"{len(self.up_to_date):,} {be} up to date")
        if self.skipped:
            clauses.append(f"{self.skipped} existed already")
        if self.outputs or (self.planned and self.status != "whole"):
            clauses.append(self._files)
        if self.pipe_closed:
            clauses.append("the reader of standard output closed it before the end")
        clauses += self._failures
        if self.status != "whole" and not self.pipe_closed:
            clauses.append(self._remedy)
        return f"{_STATUS_WORDS[self.status]}: " + "; ".join(clauses)

    @property
    def _nothing_to_do(self) -> list[str]:
        one = len(self.up_to_date) == 1
        files = printable(self.up_to_date[0]) if one else f"{len(self.up_to_date):,} files"
        clauses = [f"nothing to do, {files} {'is' if one else 'are'} up to date", *self._failures]
        if self.failures:
            clauses.append("with a repaired input, -y writes it again")
        return clauses

    @property
    def _failures(self) -> list[str]:
        if not self.failures:
            return []
        count = len(self.failures)
        many = f"{count} failures, listed above, the first: " if count > 1 else "failed: "
        return [many + self.failures[0].cause]

    @property
    def _frames(self) -> str:
        frames = counted(self.frames, "frame")
        if self.status != "whole" and self.expected_frames is not None:
            frames = f"{self.frames} of {counted(self.expected_frames, 'frame')}"
        return f"{frames} in {clock(self.seconds)}"

    @property
    def _files(self) -> str:
        if self.status == "whole" or (len(self.outputs) == self.planned and not self.error):
            # A video and its comparison are named both.
            few = len(self.outputs) <= 1 + (len(self.comparisons) == 1)
            names = " and ".join(map(printable, self.outputs))
            return names if few else f"{len(self.outputs)} files"
        return f"{len(self.outputs) or 'none'} of {counted(self.planned, 'file')} written"

    @property
    def _remedy(self) -> str:
        missing = self.planned - len(self.outputs)
        if self.planned and not missing and self.failures:
            return "with a repaired input, -y writes it again"
        if self.planned <= 1 and not (self.planned and self.resumable):
            return "the same command does it again"
        without = "" if self.resumable else " without --no-resume"
        return f"the same command{without} does what is left"

    def to_json(self) -> str:
        """Return the report as JSON; bytes of names that are not UTF-8 are lone surrogates."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        content |= {
            "failures": [failure.description() for failure in self.failures],
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
            "error": None if self.error is None else str(self.error),
            "notes": grouped(self.notes),
            "exit_code": self.exit_code,
            "rate": self.rate,
        }
        return json.dumps(content, default=str, indent=2)


def report_from_counters(
    counters: Counters,
    *,
    planned: int,
    expected_frames: int | None,
    skipped: int,
    up_to_date: tuple[Path, ...] = (),
    damage: Sequence[Failure] = (),
    resumed: tuple[str, ...] = (),
    resumable: bool,
    notes: tuple[Note, ...],
    error: CycleganBatchError | None,
    record: dict[str, object],
    comparisons: tuple[Path, ...] = (),
) -> Report:
    """Return the report of a run; ``damage`` is in the files that were ``up_to_date``."""
    failures = [*damage, *counters.failures]
    status: Status = "whole"
    # An interrupt after the last file was written does not count, since nothing is missing.
    if counters.interrupted and not 0 < planned == len(counters.written):
        status = "interrupted"
    elif error is not None:
        status = "failed"
        # An error about an input is recorded already; with `--max-failures` the recorded one is its
        # cause.
        if not any(failure.error in (error, error.__cause__) for failure in failures):
            failures.append(Failure(counters.unit, error))
    elif counters.pipe_closed:
        status = "partial"
    elif failures:
        # A pipe counts neither as a written nor as a planned file: there the frames decide.
        to_pipe = not planned and counters.units_done and counters.frames_done
        any_whole = counters.written or to_pipe or skipped or up_to_date
        status = "partial" if any_whole else "failed"
    return Report(
        status=status,
        outputs=tuple(counters.written),
        up_to_date=up_to_date,
        resumed=resumed,
        failures=tuple(failures),
        planned=planned,
        skipped=skipped,
        frames=counters.frames_done,
        reused=counters.reused,
        expected_frames=expected_frames,
        seconds=counters.seconds,
        stages=counters.stages,
        limiting_stage=counters.limiting_stage(),
        pipe_closed=counters.pipe_closed,
        error=error,
        resumable=resumable,
        notes=notes,
        record=record,
        comparisons=comparisons,
    )


def versions() -> dict[str, str]:
    """Return the versions of all packages that pixels may depend on, by distribution name."""
    running = {"python": platform.python_version(), "machine": platform.machine()}
    return running | installed_versions(_RECORDED_PACKAGES)


def check_result_path(path: Path, plan: JobPlan, model: Path, *, what: str) -> None:
    """Refuse a file beside the outputs that cannot be written or would replace a file of the job.

    ``what`` is what it holds: ``report`` or ``manifest``. ``model`` is the file as the caller gave
    it; the plan's may be its export. Raises OutputError.
    """
    from .inputs.lists import is_list
    from .inputs.refusals import Places

    name = printable(path)
    if path.is_dir():
        raise OutputError(f"cannot write the {what} {name}: it is a folder; name a file in it")
    # A store has no folders, and tells what it denies when the file is put.
    if not is_remote(path) and not path.parent.is_dir():
        raise OutputError(
            f"cannot write the {what} {name}: its folder does not exist; create it first"
        )
    if not is_remote(path) and not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutputError(
            f"cannot write the {what} {name}: permission denied; choose a folder that you may "
            "write to"
        )
    places = Places()
    place = places.of(path)
    lists = (Path(str(each)[1:]) for each in plan.inputs if is_list(each))
    files = [model, plan.model.card.path, *lists]
    files += [file for each in plan.everything for file in (each.source, each.output)]
    files += [path for unit in plan.comparisons for path in unit.outputs]
    if any(places.of(file) == place or _is_same(file, path) for file in files):
        raise OutputError(
            f"cannot write the {what} {name}: it is a file of the job itself; choose another name"
        )


def _is_same(file: Path, path: Path) -> bool:
    """Return whether two names are links to one file."""
    return (
        not is_remote(path)
        and file.is_symlink()
        and os.path.realpath(file) == os.path.realpath(path)
    )


def write_report(report: Report, path: Path) -> None:
    """Write ``report`` as JSON, under its name only when it is whole. Raises OutputError."""
    text = report.to_json() + "\n"
    if path.exists() and not path.is_file():
        # A pipe or a device is written to as it is: it cannot be replaced by a temporary file.
        try:
            path.write_text(text)
        except OSError as error:
            raise output_error(path, error) from error
        return
    with writing(path, overwrite=True) as partial:
        partial.write_text(text)
