"""Build TensorRT engines of contract files, keep them, and run them on an NVIDIA GPU.

Experimental: it has never run on a GPU. It parses and builds with the bindings of TensorRT 11.4,
every name that it uses exists in those of 10.16 and 11.4, and its control flow is tested on a
stand-in. So `auto` does not choose it; ``--backend tensorrt`` and ``-m X.engine`` do.

One path serves 10.16 to 11.x: strongly typed networks, in which the file alone says the precision.
TensorRT reports through a logger and returns None; here every None becomes an error with the
words that it reported in this thread, or of this execution context: several run side by side.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import BackendError, ModelError
from ...frames import Pixels
from ...machine import default_cache_dir
from ...models.engine_card import (
    Build,
    EngineCard,
    Machine,
    Profile,
    Shape,
    check_trust,
    is_ours,
    key_error,
    write_engine_file,
)
from ...models.model import Model, ModelCard, open_model
from ...wording import Note, printable
from ..common import checked, in_batches
from .build import Builder, Say, engine_from_graph, silent
from .context import Context, Cuda, Engine, shape_of, shape_words
from .library import import_tensorrt

_STEP = 512
"""An engine that must be built anew for larger frames takes sides up to the next multiple: so a
folder of many sizes needs few engines."""


class TensorRtBackend:
    """An execution context of an engine, with its own stream and its own buffers."""

    name = "tensorrt"

    def __init__(self, engines: _Engines) -> None:
        self.card, self.device = engines.card, f"cuda:{engines.cuda.index}"
        self.precision: str = "tf32" if engines.tf32 else engines.card.precision
        self.notes: tuple[Note, ...] = ()
        self._engines: _Engines | None = engines
        self._context: Context | None = None
        self._cancelled = threading.Event()

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`."""
        return in_batches(self._run, frames, self._opened().batch_for(frames.shape[0]))

    def fork(self) -> TensorRtBackend:
        """Return another context of the same engine."""
        return TensorRtBackend(self._opened())

    def cancel(self) -> None:
        """Let no further call begin; CUDA cannot cut off what runs, and that is one batch."""
        self._cancelled.set()

    def close(self) -> None:
        """Release the context; twice is fine."""
        self._engines = None
        if self._context is not None:
            self._context.close()
            self._context = None

    def _opened(self) -> _Engines:
        if self._engines is None:
            raise BackendError("tensorrt: this context is closed; open another")
        return self._engines

    def _run(self, frames: Pixels) -> Pixels:
        engines = self._opened()
        if self._cancelled.is_set():
            raise BackendError("tensorrt: cut off")
        engine = engines.covering(shape_of(frames), self._cancelled.is_set)
        # A thread has a current device of its own, and any thread may call.
        engines.cuda.use()
        if self._context is None or self._context.engine is not engine:
            if self._context is not None:
                self._context.close()
                self._context = None
            self._context = Context(engines.cuda, engine, self.card)
        try:
            out = self._context.infer(frames)
        except BackendError:
            # Nothing is known of a stream in which something failed, and memory is what may lack.
            self._context.close()
            self._context = None
            raise
        return checked(out, frames, self.card)


def open_tensorrt(
    model: Model,
    *,
    device: str = "auto",
    precision: str = "auto",
    shapes: Sequence[Shape] = (),
    cache_dir: Path | None = None,
    trust_engine: bool = False,
    say: Say = silent,
) -> TensorRtBackend:
    """Open ``model``, an engine or a contract file, on an NVIDIA GPU; see `open_backend`.

    ``shapes``: the frames (N, H, W) that will come, where that is known: the engine is built for
    them, or taken from ``cache_dir``; others are built for when they come. ``precision``: an FP32
    file is computed in TF32 unless this is fp32. ``trust_engine``: load an engine that this
    installation did not build. ``say`` is told of a build. Raises BackendUnavailableError,
    BackendError, ModelError.
    """
    if model.engine is not None:
        _check_tf32(model.engine, precision)
    trt, cuda = import_tensorrt(), Cuda(device)
    machine = cuda.machine(trt)
    builder = Builder(trt, cuda, machine, cache_dir or default_cache_dir(), say)
    engines = _open_file(model, builder, trust_engine) if model.engine else None
    if engines is None:
        source = model if model.engine is None else _onnx_beside(model.engine, machine)
        build = None if model.engine is None else model.engine.build
        engines = _Engines(source, builder, build, tf32=precision != "fp32")
        profile = build.profile if build else _profile_of(source.card, shapes)
        if profile is not None:
            engines.prepare(profile)
    opened = TensorRtBackend(engines)
    opened.notes = tuple(builder.notes)
    return opened


def _check_tf32(card: EngineCard, precision: str) -> None:
    """Refuse an engine whose FP32 is not multiplied as it was asked for. Raises BackendError."""
    built = "tf32" if card.build.tf32 else "fp32"
    if precision in ("fp32", "tf32") and precision != built:
        raise BackendError(
            f"{printable(card.path)}: was built to compute in {built} and {precision} was asked "
            "for; leave --precision out, or translate with the ONNX that it was built from"
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

    Returns the card, and what the user should be told. ``verify``: accept it only in the parity
    class of its precision, against the file on the CPU. What is at ``path`` is replaced. Raises
    BackendUnavailableError, BackendError, ModelError, OutputError.
    """
    trt, cuda = import_tensorrt(), Cuda(device)
    builder = Builder(trt, cuda, cuda.machine(trt), cache_dir or default_cache_dir(), say)
    made, content = builder.build(model, build, verify=verify)
    card = write_engine_file(replace(made.card, path=path), content)
    if card.seal is None:
        text = "cannot be sealed as built here, so loading it will take --trust-engine"
        builder.notes.append(Note(path, f"{text}: {key_error()}"))
    return card, tuple(builder.notes)


def check_tensorrt(device: str = "auto") -> None:
    """Refuse to begin where TensorRT or a GPU is missing. Raises BackendUnavailableError."""
    import_tensorrt()
    Cuda(device)


class _Engines:
    """The engine that several contexts share, and the next one where frames leave its profile."""

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
        """Return the one engine of a file: it takes what it takes."""
        engines = cls(model, builder, engine.card.build)
        engines._engine = engine
        return engines

    def batch_for(self, count: int) -> int | None:
        """Return how many frames a call takes where that is not ``count``."""
        if self.card.batch is not None:
            return self.card.batch
        fixed = self._engine if self._model.engine else None
        if fixed is None:
            return None
        low, high = fixed.profile.min[0], fixed.profile.max[0]
        return None if low <= count <= high else high if count > high else low

    def prepare(self, profile: Profile) -> None:
        """Build an engine for ``profile``, or take the cached one."""
        with self._lock:
            self._engine = self._make(profile)

    def covering(self, shape: Shape, stopped: Callable[[], bool]) -> Engine:
        """Return an engine that takes frames of ``shape``; ``stopped`` ends its building.

        Raises BackendError, ModelError.
        """
        with self._lock:
            if self._engine is not None and self._engine.profile.covers(shape):
                return self._engine
            if self._model.engine is not None:
                assert self._engine is not None
                raise BackendError(
                    f"tensorrt: {printable(self.card.path)} takes frames of "
                    f"{self._engine.profile} (N,H,W) and {shape_words(shape)} came; choose a "
                    "--size within, or build an engine with another --min-shape and --max-shape"
                )
            self._engine = self._make(self._widened(shape), stopped)
            return self._engine

    def _widened(self, shape: Shape) -> Profile:
        """Return the profile that takes ``shape``, too, and others on the way there."""
        least = self.card.batch or 1
        if self._engine is None:
            return Profile((least, *shape[1:]), shape, shape)
        sizes = self.card.sizes
        rounded = sizes.smallest_fit((-(-shape[1] // _STEP) * _STEP, -(-shape[2] // _STEP) * _STEP))
        smallest = sizes.smallest_fit((min(64, shape[1]), min(64, shape[2])))
        known = self._engine.profile
        wide = _holding(_holding(known, (shape[0], *rounded)), (least, *smallest))
        return replace(wide, opt=shape)

    def _make(self, profile: Profile, stopped: Callable[[], bool] = lambda: False) -> Engine:
        build = self._build or Build(profile, tf32=self.tf32)
        return self._builder.cached(self._model, replace(build, profile=profile), stopped)


def _profile_of(card: ModelCard, shapes: Sequence[Shape]) -> Profile | None:
    """Return the profile that takes all of ``shapes``, tuned for the first; None for none."""
    if card.sizes.fixed and card.batch:
        only = (card.batch, *card.sizes.fixed)
        return Profile(only, only, only)
    if not shapes:
        return None
    # A batch that does not fit into memory is halved: fewer frames are always taken.
    least = (card.batch or 1, *shapes[0][1:])
    profile = Profile(least, shapes[0], shapes[0])
    for shape in shapes[1:]:
        profile = _holding(profile, shape)
    return profile


def _holding(profile: Profile, shape: Shape) -> Profile:
    low = tuple(map(min, profile.min, shape))
    high = tuple(map(max, profile.max, shape))
    return replace(profile, min=(low[0], low[1], low[2]), max=(high[0], high[1], high[2]))


def _open_file(model: Model, builder: Builder, trust_engine: bool) -> _Engines | None:
    """Open an engine's file, or return None where it is for another machine. Raises ModelError."""
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
    opened = builder.opened(content, card)
    if not is_ours(card, content):
        # Whoever built it may have measured it: that is not our measurement.
        source = _source_beside(card)
        if source is None:
            text = (
                "is loaded on trust, and its pictures are compared with nothing; "
                f"put {printable(Path(card.model.path.name))} beside it"
            )
            builder.notes.append(Note(Path(card.path.name), text))
        else:
            builder.measure(source, opened)
    return _Engines.of_file(model, builder, opened)


def _source_beside(card: EngineCard) -> Model | None:
    """Return the ONNX that an engine was built from, where it lies beside it. Raises ModelError."""
    if not card.model.path.is_file():
        return None
    model = open_model(card.model.path, model_io=card.model.adopted)
    same = hashlib.sha256(model.graph).hexdigest() == card.onnx_sha256
    return model if same else None


def _onnx_beside(card: EngineCard, machine: Machine) -> Model:
    """Return what an engine for another machine is built from. Raises ModelError."""
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
