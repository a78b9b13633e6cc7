"""The Python face; the command line is a thin layer over it.

>>> from cyclegan_batch import open_generator, translate
>>> translate(["clip.mp4"], "out.mp4", model="horse2zebra.onnx", crf=20)
>>> generator = open_generator("horse2zebra.onnx")
>>> zebras = generator(horses)                       # (N, H, W, 3) in and out
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np

from .backends import Backend, open_backend
from .errors import InputError, OutputError, OutputExistsError
from .files import printable
from .frames import Pixels, as_pixel_type, geometry, to_uint8
from .job.pipeline import Counters, Failure, is_hopeless, run
from .job.plan import JobPlan, Opener, plan_job
from .job.report import Report, report_from_counters, versions
from .models.model import ModelCard, open_model
from .options import TranslateOptions

PathLike: TypeAlias = str | os.PathLike[str]


def translate(
    inputs: PathLike | Iterable[PathLike], output: PathLike, *, model: PathLike, **options: Any
) -> Report:
    """Translate videos, images and folders of them through the generator ``model``.

    ``options`` are the fields of `TranslateOptions`, by the words of the command line. A checkpoint
    is run by torch as it is, where the command line exports it first; for more speed give the file
    that `cyclegan_export.export_onnx` writes. Nothing is printed.

    What is damaged or missing is listed in the report (``failures``). Raises CycleganBatchError
    where nothing at all could be written, and with ``on_error="fail"`` at the first damage.
    """
    plan = plan_translation(inputs, output, model=model, **options)
    counters = Counters()
    report = run_plan(plan, counters=counters)
    error = counters.first_error
    if report.status == "failed" and error is not None:
        if len(report.failures) == 1:
            raise error
        raise type(error)(
            f"nothing was written: {len(report.failures)} failures, the first: {error}"
        )
    return report


def plan_translation(
    inputs: PathLike | Iterable[PathLike],
    output: PathLike,
    *,
    model: PathLike,
    opener: Opener | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    **options: Any,
) -> JobPlan:
    """Decide everything that `translate` would do, and write nothing.

    ``opener`` opens the model, None as `translate` does; ``say`` is told of what takes minutes.
    """
    if options.get("cache_dir") is not None:
        options["cache_dir"] = Path(options["cache_dir"])
    unknown = set(options) - {item.name for item in fields(TranslateOptions)}
    if unknown:
        raise TypeError(f"translate() got an unexpected option: {', '.join(sorted(unknown))}")
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    return plan_job(
        [Path(item) for item in inputs],
        os.fspath(output),
        model=Path(model),
        options=TranslateOptions(**options),
        opener=opener,
        say=say,
    )


def run_plan(
    plan: JobPlan,
    *,
    counters: Counters | None = None,
    watch: Callable[[Counters], None] | None = None,
) -> Report:
    """Carry out a plan; ``watch`` is called about ten times a second with the state of the run.

    Raises what ends the run before its end; ``counters`` then tell how far it came (`report_run`).
    """
    counters = counters or Counters()
    counters.failures += plan.failures
    try:
        run(
            plan.units,
            plan.backend,
            plan.schedule,
            geometry=plan.geometry,
            keep_size=plan.options.keep_size,
            skip_errors=plan.options.on_error == "skip",
            max_failures=plan.options.max_failures,
            skip_existing=plan.options.skip_existing,
            counters=counters,
            watch=watch,
        )
        if not counters.interrupted:
            _copy_others(plan, counters)
    except KeyboardInterrupt:  # while files were copied along
        counters.interrupted = True
    finally:
        plan.backend.close()
    return report_run(plan, counters)


def report_run(plan: JobPlan, counters: Counters, *, error: Exception | None = None) -> Report:
    """Sum up a run of ``plan`` that came as far as ``counters`` say, and ended with ``error``."""
    from .job.inputs import PIPE

    return report_from_counters(
        counters,
        planned=sum(entry.output != PIPE for entry in plan.entries)
        + len(plan.others)
        - counters.left,
        expected_frames=plan.frames,
        skipped=plan.skipped + counters.left,
        overwrite=plan.options.overwrite,
        notes=tuple(dict.fromkeys([*plan.notes, *counters.notes])),
        error=None if error is None else str(error),
        record=plan.describe() | {"card": asdict(plan.model.card), "versions": versions()},
    )


def _copy_others(plan: JobPlan, counters: Counters) -> None:
    from .job.inputs import copy_file

    for entry in plan.others:
        try:
            copy_file(entry, overwrite=plan.options.overwrite)
        except (InputError, OutputError) as error:
            if plan.options.skip_existing and isinstance(error, OutputExistsError):
                counters.left += 1
                continue
            counters.failures.append(Failure(printable(entry.source), str(error)))
            if plan.options.on_error == "fail" or is_hopeless(error):
                raise
        else:
            counters.written.append(entry.output)


class Generator:
    """A generator as a function on arrays; a context manager, not thread-safe."""

    def __init__(
        self,
        backend: Backend,
        *,
        size: Literal["native"] | int | tuple[int, int] = "native",
        fit: Literal["pad", "stretch"] | None = None,
    ) -> None:
        self._backend = backend
        self._size, self._fit = size, fit

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        return self._backend.card

    def __call__(self, frames: Pixels) -> Pixels:
        """Translate RGB ``frames``, ``(N, H, W, 3)``, uint8 in 0..255 or floating point in [0, 1].

        The result has the shape of ``frames``, at any H and W, and their dtype (floating point goes
        through 8 bits where the model takes uint8). Raises ValueError for another shape.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ValueError(f"frames must be (N, H, W, 3) and not empty, got {frames.shape = }")
        kind = frames.dtype
        if kind != np.uint8 and kind.kind != "f":
            raise ValueError(f"frames must be uint8 or floating point in [0, 1], got {kind = }")
        if self.card.pixel_type == "uint8":
            into = frames if kind == np.uint8 else to_uint8(frames)
        else:
            into = as_pixel_type(frames, "float16") if kind == np.uint8 else frames
            into = into.astype(np.float16, copy=False)
        height, width = frames.shape[1:3]
        shape = geometry((height, width), self.card.sizes, size=self._size, fit=self._fit)
        rows = self._backend.infer(np.stack([shape.into_network(frame) for frame in into]))
        out = np.stack([shape.out_of_network(row) for row in rows])
        if kind == np.uint8:
            return to_uint8(out)
        return (out / np.float32(255)).astype(kind) if out.dtype == np.uint8 else out.astype(kind)

    def close(self) -> None:
        """Release the model; twice is fine."""
        self._backend.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_generator(
    model: PathLike,
    *,
    direction: Literal["AtoB", "BtoA"] | None = None,
    model_io: str | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    trust_engine: bool = False,
    cache_dir: PathLike | None = None,
    size: Literal["native"] | int | tuple[int, int] = "native",
    fit: Literal["pad", "stretch"] | None = None,
) -> Generator:
    """Open the generator at ``model`` for use on arrays; torch runs a checkpoint as it is.

    Raises ModelError, BackendError.
    """
    opened = open_backend(
        open_model(Path(model), model_io=model_io, direction=direction),
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        trust_engine=trust_engine,
        cache_dir=None if cache_dir is None else Path(cache_dir),
    )
    return Generator(opened, size=size, fit=fit)
