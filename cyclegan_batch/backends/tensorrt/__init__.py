"""Build TensorRT engines of contract files, keep them, and run them on an NVIDIA GPU.

Experimental: this backend has never run on a GPU. With the bindings of TensorRT 11.4 it parses and
builds, every name that it uses exists in those of 10.16 and 11.4, and its control flow is tested on
a stand-in. So `auto` does not choose it; ``--backend tensorrt`` and ``-m X.engine`` do.

The same code serves 10.16 to 11.x: it builds strongly typed networks, whose precision is that of
the types in the file. Where TensorRT fails, it returns None and writes the reason to a logger, or
to the error recorder of an execution context. The package turns each None into an exception with
that reason, and keeps the reasons of threads and contexts apart, since several run at a time.

This module chooses the engine for a model; build.py builds engines and keeps them, context.py runs
them, library.py imports TensorRT's bindings.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import BackendError, BackendUnavailableError, ModelError
from ...frames import BatchShape, Pixels
from ...machine import default_cache_dir
from ...models.engine_card import (
    Build,
    EngineCard,
    Machine,
    Profile,
    check_trust,
    is_ours,
    write_engine_file,
)
from ...models.model import Model, ModelCard, open_model
from ...models.seal import key_error
from ...wording import Note, printable
from ..common import checked, in_batches
from ..cuda import Cuda
from .build import Builder, Say, engine_from_graph, silent
from .context import Context, Engine, machine_of, shape_of, shape_words
from .library import import_tensorrt

_STEP = 512
"""Where frames are larger than the engine's profile, the next engine takes sides up to the next
multiple of this, so that a folder of many sizes needs few engines."""


class TensorRtBackend:
    """An execution context of an engine, with its own stream and its own buffers."""

    name = "tensorrt"

    def __init__(self, engines: _Engines, *, graph: bool = True) -> None:
        self.card, self.device = engines.card, f"cuda:{engines.cuda.index}"
        self.precision: str = "tf32" if engines.tf32 else engines.card.precision
        self.notes: tuple[Note, ...] = ()
        self._engines: _Engines | None = engines
        self._graph = graph
        self._context: Context | None = None
        self._cancelled = threading.Event()

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`."""
        return in_batches(self._run, frames, self._open_engines().batch_for(frames.shape[0]))

    def fork(self) -> TensorRtBackend:
        """Return another context of the same engine."""
        return TensorRtBackend(self._open_engines(), graph=self._graph)

    def cancel(self) -> None:
        """Let later calls fail. CUDA cannot stop the running batch, so it ends first."""
        self._cancelled.set()

    def close(self) -> None:
        """Release the context. A second call does nothing."""
        self._engines = None
        if self._context is not None:
            self._context.close()
            self._context = None

    def _open_engines(self) -> _Engines:
        if self._engines is None:
            raise BackendError("tensorrt: this context is closed; open another")
        return self._engines

    def _run(self, frames: Pixels) -> Pixels:
        engines = self._open_engines()
        if self._cancelled.is_set():
            raise BackendError("tensorrt: cancelled")
        engine = engines.engine_for(shape_of(frames), self._cancelled.is_set)
        # CUDA's current device is a setting of each thread, and any thread may call.
        engines.cuda.use()
        if self._context is None or self._context.engine is not engine:
            if self._context is not None:
                self._context.close()
                self._context = None
            self._context = Context(engines.cuda, engine, self.card, graph=self._graph)
        try:
            out = self._context.infer(frames)
        except BackendError:
            # The state of the stream is unknown after a failure, and its memory may be needed.
            self._context.close()
            self._context = None
            raise
        return checked(out, frames, self.card)


def open_tensorrt(
    model: Model,
    *,
    device: str = "auto",
    precision: str = "auto",
    shapes: Sequence[BatchShape] = (),
    cache_dir: Path | None = None,
    trust_engine: bool = False,
    graph: bool = True,
    say: Say = silent,
) -> TensorRtBackend:
    """Open ``model``, an engine or a contract file, on an NVIDIA GPU; see `open_backend`.

    ``shapes``: the frames (N, H, W) to be translated, where known: an engine for them is built now,
    or taken from ``cache_dir``. For other frames one is built when they come. ``precision``: an
    FP32 file is computed in TF32 unless this is fp32. ``trust_engine``: load an engine that this
    installation did not build. ``graph``: replay the work of a batch as a CUDA graph; benchmarks
    compare both. ``say`` receives the progress of a build. Raises
    BackendUnavailableError, BackendError, ModelError.
    """
    if model.engine is not None:
        _check_tf32(model.engine, precision)
    trt, cuda = import_tensorrt(), _cuda(device)
    machine = machine_of(cuda, trt)
    builder = Builder(trt, cuda, machine, cache_dir or default_cache_dir(), say)
    engines = _open_file(model, builder, trust_engine) if model.engine else None
    if engines is None:
        source = model if model.engine is None else _onnx_beside(model.engine, machine)
        build = None if model.engine is None else model.engine.build
        engines = _Engines(source, builder, build, tf32=precision != "fp32")
        profile = build.profile if build else _profile_of(source.card, shapes)
        if profile is not None:
            engines.prepare(profile)
    backend = TensorRtBackend(engines, graph=graph)
    backend.notes = tuple(builder.notes)
    return backend


def _check_tf32(card: EngineCard, precision: str) -> None:
    """Refuse an engine that multiplies FP32 otherwise than ``precision``. Raises BackendError."""
    arithmetic = "tf32" if card.build.tf32 else "fp32"
    if precision in ("fp32", "tf32") and precision != arithmetic:
        raise BackendError(
            f"{printable(card.path)}: was built to compute in {arithmetic} and {precision} was "
            "asked for; leave --precision out, or translate with the ONNX that it was built from"
        )


def write_engine(
    model: Model,
    path: Path,
    build: Build,
    *,
    device: str = "auto",
    cache_dir: Path | None = None,
    verify: bool = True,
    say: Say = silent,
) -> tuple[EngineCard, tuple[Note, ...]]:
    """Build an engine of a contract file and write it to ``path``, its card beside it.

    Returns the card and notes for the user. ``verify``: accept the engine only if its parity with
    the contract file on the CPU reaches the class of its precision. A file at ``path`` is replaced.
    Raises BackendUnavailableError, BackendError, ModelError, OutputError.
    """
    trt, cuda = import_tensorrt(), _cuda(device)
    builder = Builder(trt, cuda, machine_of(cuda, trt), cache_dir or default_cache_dir(), say)
    engine, content = builder.build(model, build, verify=verify)
    card = write_engine_file(replace(engine.card, path=path), content)
    if card.seal is None:
        text = "cannot be sealed as built here, so loading it will take --trust-engine"
        builder.notes.append(Note(path, f"{text}: {key_error()}"))
    return card, tuple(builder.notes)


def check_tensorrt(device: str = "auto") -> None:
    """Raise BackendUnavailableError where TensorRT or a GPU is missing."""
    import_tensorrt()
    _cuda(device)


def _cuda(device: str) -> Cuda:
    if device == "cpu":
        raise BackendUnavailableError(
            "tensorrt was asked for cpu and runs on NVIDIA GPUs only; pass --backend auto, or "
            "--device cuda"
        )
    return Cuda(device, "tensorrt")


class _Engines:
    """The engine that several contexts share, replaced where frames are outside its profile.

    An engine takes only the shapes of its optimization profile: a smallest and a largest one, and
    one in between for which TensorRT chose the fastest kernels.
    """

    def __init__(
        self, model: Model, builder: Builder, build: Build | None, *, tf32: bool = False
    ) -> None:
        self.card, self.cuda = model.card, builder.cuda
        self.tf32 = (build.tf32 if build else tf32) and model.card.precision == "fp32"
        self._model, self._builder, self._build = model, builder, build
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    @classmethod
    def of_file(cls, model: Model, builder: Builder, engine: Engine) -> _Engines:
        """Return the engine of a file, which is never replaced."""
        engines = cls(model, builder, engine.card.build)
        engines._engine = engine
        return engines

    def batch_for(self, count: int) -> int | None:
        """Return the batch size to run ``count`` frames with; None for all at once."""
        if self.card.batch is not None:
            return self.card.batch
        of_file = self._engine if self._model.engine else None
        if of_file is None:
            return None
        low, high = of_file.profile.min[0], of_file.profile.max[0]
        return None if low <= count <= high else min(max(count, low), high)

    def prepare(self, profile: Profile) -> None:
        """Take an engine for ``profile`` from the cache, or build it."""
        with self._lock:
            self._engine = self._cached(profile)

    def engine_for(self, shape: BatchShape, stopped: Callable[[], bool]) -> Engine:
        """Return an engine that takes frames of ``shape``; build it where there is none.

        A build ends where ``stopped`` returns True. Raises BackendError, ModelError.
        """
        with self._lock:
            if self._engine is not None and self._engine.profile.covers(shape):
                return self._engine
            if self._model.engine is not None:
                assert self._engine is not None
                raise BackendError(
                    f"tensorrt: {printable(self.card.path)} takes frames of "
                    f"{self._engine.profile} (N,H,W) and was given {shape_words(shape)}; choose a "
                    "--size within, or build an engine with another --min-shape and --max-shape"
                )
            self._engine = self._cached(self._widened(shape), stopped)
            return self._engine

    def _widened(self, shape: BatchShape) -> Profile:
        """Return the current profile, widened so that it takes ``shape`` and similar shapes.

        Its largest sides are rounded up to `_STEP`, its smallest are at most 64. Without a current
        engine it takes ``shape`` and smaller batches only.
        """
        least = self.card.batch or 1
        if self._engine is None:
            return Profile((least, *shape[1:]), shape, shape)
        sizes = self.card.sizes
        rounded = sizes.smallest_fit((-(-shape[1] // _STEP) * _STEP, -(-shape[2] // _STEP) * _STEP))
        smallest = sizes.smallest_fit((min(64, shape[1]), min(64, shape[2])))
        profile = _including(self._engine.profile, (shape[0], *rounded))
        return replace(_including(profile, (least, *smallest)), opt=shape)

    def _cached(self, profile: Profile, stopped: Callable[[], bool] = lambda: False) -> Engine:
        build = self._build or Build(profile, tf32=self.tf32)
        return self._builder.cached(self._model, replace(build, profile=profile), stopped)


def _profile_of(card: ModelCard, shapes: Sequence[BatchShape]) -> Profile | None:
    """Return the profile that takes all of ``shapes``, tuned for the first; None for none."""
    if card.sizes.fixed and card.batch:
        only = (card.batch, *card.sizes.fixed)
        return Profile(only, only, only)
    if not shapes:
        return None
    # A batch that does not fit into memory is halved, so the profile includes all smaller batches.
    least = (card.batch or 1, *shapes[0][1:])
    profile = Profile(least, shapes[0], shapes[0])
    for shape in shapes[1:]:
        profile = _including(profile, shape)
    return profile


def _including(profile: Profile, shape: BatchShape) -> Profile:
    """Return ``profile``, widened as far as ``shape`` requires."""
    low = tuple(map(min, profile.min, shape))
    high = tuple(map(max, profile.max, shape))
    return replace(profile, min=(low[0], low[1], low[2]), max=(high[0], high[1], high[2]))


def _open_file(model: Model, builder: Builder, trust_engine: bool) -> _Engines | None:
    """Load the engine of a file; None where it is for another machine. Raises ModelError."""
    card = model.engine
    assert card is not None
    misfits = card.misfits(builder.machine)
    if misfits:
        text = (
            f"{'; '.join(misfits)}; an engine for this machine is used, "
            f"from {printable(Path(card.model.path.name))}"
        )
        builder.notes.append(Note(Path(card.path.name), text))
        return None
    try:
        content = card.path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{printable(card.path)}: cannot be read: {error.strerror}; check the file"
        ) from error
    check_trust(card, content, trusted=trust_engine)
    engine = builder.load(content, card)
    if not is_ours(card, content):
        # The parity on its card is another user's claim: measure the engine here.
        source = _source_beside(card)
        if source is None:
            text = (
                "is loaded on trust, without a comparison of its images; "
                f"put {printable(Path(card.model.path.name))} beside it"
            )
            builder.notes.append(Note(Path(card.path.name), text))
        else:
            builder.measure(source, engine)
    return _Engines.of_file(model, builder, engine)


def _source_beside(card: EngineCard) -> Model | None:
    """Return the ONNX that an engine was built from, where it lies beside it. Raises ModelError."""
    if not card.model.path.is_file():
        return None
    model = open_model(card.model.path, model_io=card.model.adopted)
    return model if model.graph_sha256 == card.onnx_sha256 else None


def _onnx_beside(card: EngineCard, machine: Machine) -> Model:
    """Return the ONNX from which to rebuild another machine's engine. Raises ModelError."""
    source = _source_beside(card)
    if source is None:
        raise ModelError(
            f"{printable(card.path)}: {'; '.join(card.misfits(machine))}; build it on this machine "
            "with cyclegan-batch export, or put the ONNX that it was built from beside it "
            f"({printable(Path(card.model.path.name))}, SHA-256 {card.onnx_sha256[:12]}…)"
        )
    return source


__all__ = [
    "TensorRtBackend",
    "check_tensorrt",
    "engine_from_graph",
    "open_tensorrt",
    "write_engine",
]
