"""Build TensorRT engines of contract files, keep them, and run them on an NVIDIA GPU.

Experimental: it has never run on a GPU. It parses and builds with the bindings of TensorRT 11.4,
every name that it uses exists in those of 10.16 and 11.4, and its control flow is tested on a
stand-in. So `auto` does not choose it; ``--backend tensorrt`` and ``-m X.engine`` do.

One path serves 10.16 to 11.x: strongly typed networks, in which the file alone says the precision.
TensorRT reports through a logger and returns None; here every None becomes an error with the
words that it reported in this thread, or of this execution context: several run side by side.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import importlib
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import (
    BackendError,
    BackendUnavailableError,
    ModelError,
    OutOfMemoryError,
    OutputError,
)
from ...files import output_error
from ...frames import Pixels, as_pixel_type
from ...machine import cpu_threads, default_cache_dir
from ...models.engine_card import (
    Build,
    EngineCard,
    Machine,
    Profile,
    Shape,
    check_trust,
    is_ours,
    key_error,
    not_private,
    read_card,
    sealed,
    unsealed,
    write_engine_file,
)
from ...models.model import INPUT, OUTPUT, Model, ModelCard, open_model
from ...models.parity import LIMITS, OF_PRECISION, Parity, natural_frames, parity
from ...wording import printable
from .. import checked, in_batches, says_out_of_memory

Say = Callable[[str], None]

_SPOKEN = 10.0
"""Seconds between two lines about a build that goes on."""

_STOPPING = 3.0
"""Seconds that a build gets to hear that it is not wanted any more."""

_KEPT_MESSAGES = 16
"""Errors of one call that are kept; the first say why."""

_STEP = 512
"""An engine that must be built anew for larger frames takes sides up to the next multiple: so a
folder of many sizes needs few engines."""


def _silent(sentence: str) -> None:
    """Say nothing."""


# The backend


class TensorRtBackend:
    """An execution context of an engine, with its own stream and its own buffers."""

    name = "tensorrt"

    def __init__(self, engines: _Engines) -> None:
        self.card, self.device = engines.card, f"cuda:{engines.cuda.index}"
        self.precision = "tf32" if engines.tf32 else engines.card.precision
        self.notes: tuple[str, ...] = ()
        self._engines: _Engines | None = engines
        self._context: _Context | None = None
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
        engine = engines.covering(_shape(frames), self._cancelled.is_set)
        # A thread has a current device of its own, and any thread may call.
        engines.cuda.use()
        if self._context is None or self._context.engine is not engine:
            if self._context is not None:
                self._context.close()
                self._context = None
            self._context = _Context(engines.cuda, engine, self.card)
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
    say: Say = _silent,
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
    trt, cuda = _import(), _Cuda(device)
    machine = cuda.machine(trt)
    builder = _Builder(trt, cuda, machine, cache_dir or default_cache_dir(), say)
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
    say: Say = _silent,
) -> tuple[EngineCard, tuple[str, ...]]:
    """Build an engine of a contract file and write it to ``path``, its card beside it.

    Returns the card, and what the user should be told. ``verify``: accept it only in the parity
    class of its precision, against the file on the CPU. What is at ``path`` is replaced. Raises
    BackendUnavailableError, BackendError, ModelError, OutputError.
    """
    trt, cuda = _import(), _Cuda(device)
    builder = _Builder(trt, cuda, cuda.machine(trt), cache_dir or default_cache_dir(), say)
    made, content = builder.build(model, build, verify=verify)
    card = write_engine_file(replace(made.card, path=path), content)
    if card.seal is None:
        builder.notes.append(
            f"{printable(path)}: cannot be sealed as built here, so loading it will take "
            f"--trust-engine: {key_error()}"
        )
    return card, tuple(builder.notes)


def check_tensorrt(device: str = "auto") -> None:
    """Refuse to begin where TensorRT or a GPU is missing. Raises BackendUnavailableError."""
    _import()
    _Cuda(device)


# Which engine


@dataclass(frozen=True, eq=False)
class _Engine:
    """An engine that is open."""

    engine: Any
    runtime: Any
    """Must outlive the engine."""
    card: EngineCard

    @property
    def profile(self) -> Profile:
        return self.card.build.profile


class _Engines:
    """The engine that several contexts share, and the next one where frames leave its profile."""

    def __init__(
        self, model: Model, builder: _Builder, build: Build | None, *, tf32: bool = False
    ) -> None:
        self.card, self.cuda = model.card, builder.cuda
        self.tf32 = (build.tf32 if build else tf32) and model.card.precision == "fp32"
        self._model, self._builder, self._build = model, builder, build
        self._lock = threading.Lock()
        self._engine: _Engine | None = None

    @classmethod
    def of_file(cls, model: Model, builder: _Builder, engine: _Engine) -> _Engines:
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

    def covering(self, shape: Shape, stopped: Callable[[], bool]) -> _Engine:
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
                    f"{self._engine.profile} (N,H,W) and {_words(shape)} came; choose a --size "
                    "within, or build an engine with another --min-shape and --max-shape"
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

    def _make(self, profile: Profile, stopped: Callable[[], bool] = lambda: False) -> _Engine:
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


def _open_file(model: Model, builder: _Builder, trust_engine: bool) -> _Engines | None:
    """Open an engine's file, or return None where it is for another machine. Raises ModelError."""
    card = model.engine
    assert card is not None
    misfits = card.misfits(builder.machine)
    if misfits:
        builder.notes.append(
            f"{printable(Path(card.path.name))}: {'; '.join(misfits)}; an engine for this machine "
            f"is used, from {printable(Path(card.model.path.name))}"
        )
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
            builder.notes.append(
                f"{printable(Path(card.path.name))}: is loaded on trust, and its pictures are "
                f"compared with nothing; put {printable(Path(card.model.path.name))} beside it"
            )
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


# Building


class _Builder:
    """Builds engines for one GPU, accepts them, and keeps them in the cache folder."""

    def __init__(
        self, trt: ModuleType, cuda: _Cuda, machine: Machine, cache_dir: Path, say: Say
    ) -> None:
        self.cuda, self.machine, self.cache_dir = cuda, machine, cache_dir
        self.notes: list[str] = []
        """What the user should be told once."""
        self._trt, self._say = trt, say

    def cached(
        self, model: Model, build: Build, stopped: Callable[[], bool] = lambda: False
    ) -> _Engine:
        """Return the engine of the cache, or build it. Raises BackendError, ModelError."""
        digest = hashlib.sha256(model.graph).hexdigest()
        wanted = hashlib.sha256(repr((digest, self.machine, build)).encode()).hexdigest()
        folder = self._folder()
        if folder is None:
            return self.build(model, build, stopped=stopped)[0]
        path = folder / f"{digest[:16]}-{wanted[:16]}.engine"
        found = self._from_cache(path, digest, build)
        if found is not None:
            return found
        made, content = self.build(model, build, stopped=stopped)
        try:
            written = write_engine_file(replace(made.card, path=path), content)
        except OutputError as error:
            self._will_build_again(str(error))
        else:
            if written.seal is None:
                self._will_build_again(str(key_error()))
        return made

    def _folder(self) -> Path | None:
        """Return the folder of the engines and timings; None where it is not only this user's."""
        folder = self.cache_dir / "engines"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            self._will_build_again(str(output_error(folder, error)))
            return None
        reason = not_private(folder)
        if reason is not None:
            self._will_build_again(reason)
            return None
        return folder

    def _will_build_again(self, reason: str) -> None:
        note = f"the engine cannot be kept, the next run builds it again: {reason}"
        if note not in self.notes:
            self.notes.append(note)

    def build(
        self,
        model: Model,
        build: Build,
        *,
        verify: bool = True,
        stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[_Engine, bytes]:
        """Build and open an engine, and accept it; return it, and as a file.

        Raises BackendError, ModelError.
        """
        from ..._version import __version__

        name = printable(Path(model.card.path.name))
        self._say(f"building an engine of {name} for {self.machine.gpu} ({build.profile}) …")
        folder = self._folder()
        timing = None if folder is None else folder / f"timing-{_timing_key(self.machine)}.cache"
        content = engine_from_graph(
            model.graph,
            build,
            name=name,
            timing_cache=timing,
            prepare=self.cuda.use,
            stopped=stopped,
            say=self._say,
        )
        card = EngineCard(
            path=model.card.path,
            model=model.card,
            engine_sha256=hashlib.sha256(content).hexdigest(),
            onnx_sha256=hashlib.sha256(model.graph).hexdigest(),
            machine=self.machine,
            build=build,
            tool_version=__version__,
        )
        made = self.opened(content, card)
        layers = self._inspected(made, name)
        found = self.measure(model, made) if verify else None
        measured = None if found is None else str(found)
        return replace(made, card=replace(card, layers=layers, parity=measured)), content

    def opened(self, content: bytes, card: EngineCard) -> _Engine:
        """Open an engine that is trusted. Raises BackendError."""
        trt, log = self._trt, _log(self._trt)
        self.cuda.use()
        log.clear()
        runtime = _made(lambda: trt.Runtime(log), "tensorrt cannot start its runtime", log)
        if card.build.version_compatible:
            # Such an engine brings its own runtime along, which is code of the host.
            runtime.engine_host_code_allowed = True
        engine = _made(
            lambda: runtime.deserialize_cuda_engine(content),
            f"tensorrt {trt.__version__} does not open {printable(card.path)}",
            log,
        )
        return _Engine(engine, runtime, card)

    def _from_cache(self, path: Path, digest: str, build: Build) -> _Engine | None:
        """Return the engine at ``path`` if it is ours, whole and the one that is wanted."""
        try:
            card, content = read_card(path), path.read_bytes()
        except (ModelError, OSError):
            return None
        fits = (card.onnx_sha256, card.machine, card.build) == (digest, self.machine, build)
        if not fits or not is_ours(card, content):
            return None
        try:
            return self.opened(content, card)
        except OutOfMemoryError:
            raise
        except BackendError as error:
            self.notes.append(f"{error}; it was built anew")
            return None

    def _inspected(self, made: _Engine, name: str) -> str | None:
        """Return how many layers compute in half precision, in words; note where none does."""
        inspector = made.engine.create_engine_inspector()
        if inspector is None:
            return None
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        try:
            layers = json.loads(text)["Layers"]
        except (ValueError, TypeError, KeyError):
            return None
        half = sum(bool(re.search(r"\b(FP16|Half)\b", json.dumps(layer))) for layer in layers)
        if made.card.model.precision == "fp16" and not half:
            self.notes.append(
                f"{name}: is fp16, but TensorRT's inspector shows no layer in half precision"
            )
        return f"{half} of {len(layers)} with half precision"

    def measure(self, model: Model, made: _Engine) -> Parity | None:
        """Return the engine's parity with its file on the CPU; None where nothing can run that.

        What the file itself is off was measured when it was exported; of a foreign one nothing is
        known, and that is noted. Raises ModelError where it misses the class of its precision.
        """
        from ..onnxruntime import open_onnxruntime

        card, profile = model.card, made.profile
        try:
            exact = open_onnxruntime(
                model, device="cpu", precision="auto", threads=cpu_threads(), contexts=1
            )
        except BackendUnavailableError:
            self.notes.append(
                f"{printable(Path(card.path.name))}: its engine was compared with nothing, as "
                'onnxruntime is not installed; pip install "cyclegan-batch[cpu]"'
            )
            return None
        side = card.trained_size or 256
        height, width = (
            min(max(side, low), high)
            for low, high in zip(profile.min[1:], profile.max[1:], strict=True)
        )
        count = min(profile.max[0], max(profile.min[0], 2))
        size = card.sizes.smallest_fit((height, width))
        frames = as_pixel_type(natural_frames(size, count), card.pixel_type)
        self.cuda.use()
        context = _Context(self.cuda, made, card)
        try:
            found = parity(checked(context.infer(frames), frames, card), exact.infer(frames))
        finally:
            context.close()
            exact.close()
        needed = OF_PRECISION["tf32" if made.card.build.tf32 else card.precision]
        if not found.reaches(needed):
            raise ModelError(
                f"{printable(card.path)}: its engine on {self.machine.gpu} is {found}, where "
                f"{needed} is expected ({LIMITS[needed]}); use --backend onnxruntime"
            )
        if card.precision in ("fp16", "int8") and card.parity is None:
            self.notes.append(
                f"{printable(Path(card.path.name))}: says of itself that it is {card.precision} "
                "and not how near to fp32; its engine was compared with the file only, whose own "
                "error does not show there: export it from its checkpoint to have it measured"
            )
        return found


def engine_from_graph(
    graph: bytes,
    build: Build,
    *,
    name: str,
    timing_cache: Path | None = None,
    prepare: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
    say: Say = _silent,
) -> bytes:
    """Build an engine of a contract graph and return it as bytes.

    ``name``: the file's, for messages. ``timing_cache``: what earlier builds measured; read and
    written. ``prepare`` is called in the thread that builds: the current device is a thread's own.
    ``stopped`` is asked whether it is still wanted, and ``say`` told how far it is, in the caller's
    thread. Raises BackendError, OutOfMemoryError; KeyboardInterrupt ends the build.
    """
    trt, log = _import(), _log(_import())
    monitor = _monitor(trt)
    outcome: list[bytes | BaseException] = []

    def work() -> None:
        try:
            prepare()
            outcome.append(_build(trt, log, monitor, graph, build, name, timing_cache))
        except BaseException as error:
            outcome.append(error)

    # In a thread of its own: the caller's stays free to hear Ctrl-C, and to say how far it is. A
    # thread that the interpreter forgets when it ends, or it would wait for it deaf to Ctrl-C.
    thread = threading.Thread(target=work, name="tensorrt build", daemon=True)
    thread.start()
    try:
        waited = 0.0
        while thread.is_alive():
            thread.join(0.2)
            waited += 0.2
            if stopped():
                raise BackendError("tensorrt: cut off")
            if waited >= _SPOKEN and thread.is_alive():
                waited = 0.0
                say(f"building an engine of {name}: {monitor.phase}")
    except BaseException:
        monitor.stop = True
        thread.join(_STOPPING)
        if thread.is_alive():
            # TensorRT ends its step first, and calls Python until then: not into one that is gone.
            atexit.register(thread.join)
        raise
    (found,) = outcome
    if isinstance(found, BaseException):
        raise found
    return found


def _build(
    trt: Any,
    log: Any,
    monitor: Any,
    graph: bytes,
    build: Build,
    name: str,
    timing_cache: Path | None,
) -> bytes:
    version = f"tensorrt {trt.__version__}"
    log.clear(of_tensorrts_threads=True)
    builder = _made(lambda: trt.Builder(log), f"{version} cannot start its builder", log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = _made(lambda: builder.create_network(typed), f"{version} makes no network", log)
    parser = _made(lambda: trt.OnnxParser(network, log), f"{version} makes no parser", log)
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        words = [f"{_told(each.desc())} (node {each.node_name()!r})" for each in errors]
        raise BackendError(
            f"{version} does not read {name}: {'; '.join(words) or log.words()}; try --backend "
            "onnxruntime, or export the model again"
        )
    config = _made(builder.create_builder_config, f"{version} makes no configuration", log)
    config.progress_monitor = monitor
    config.builder_optimization_level = build.builder_level
    # Without it the inspector knows the layers' names only.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if build.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, build.workspace << 20)
    if build.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if build.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if build.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if not build.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    profile = _made(builder.create_optimization_profile, f"{version} makes no profile", log)
    shapes = [(*shape, 3) for shape in (build.profile.min, build.profile.opt, build.profile.max)]
    try:
        profile.set_shape(INPUT, *shapes)
        accepted = config.add_optimization_profile(profile) >= 0
    except (ValueError, TypeError) as error:
        raise _refused(version, name, build, str(error)) from error
    if not accepted:
        raise _refused(version, name, build, log.words())
    known = _read_timing(timing_cache)
    timing = config.create_timing_cache(known)
    if timing is not None:
        config.set_timing_cache(timing, False)
    content = builder.build_serialized_network(network, config)
    if monitor.stop:
        raise BackendError("tensorrt: cut off")
    if content is None:
        if says_out_of_memory(RuntimeError(log.words())):
            raise OutOfMemoryError(
                f"{version}: no memory to build an engine of {name} for {build.profile}; pass a "
                "smaller --batch-size, --size or --workspace"
            )
        raise BackendError(
            f"{version} builds no engine of {name} for {build.profile}: {log.words()}; try "
            "--backend onnxruntime"
        )
    timing = config.get_timing_cache()
    if timing_cache is not None and timing is not None:
        _write_timing(timing_cache, bytes(timing.serialize()))
    return bytes(content)


def _refused(version: str, name: str, build: Build, words: str) -> BackendError:
    return BackendError(
        f"{version} does not take the shapes {build.profile} for {name}: {words}; choose others "
        "(--min-shape, --opt-shape, --max-shape, or --size)"
    )


def _made(make: Callable[[], Any], failed: str, log: Any) -> Any:
    """Return what ``make`` makes; None, or a failed constructor, becomes an error that says why."""
    try:
        made = make()
        cause: Exception | None = None
    # pybind11 says a constructor's null pointer so.
    except (TypeError, RuntimeError) as error:
        made, cause = None, error
    if made is not None:
        return made
    words = log.words() or str(cause or "no reason given")
    if says_out_of_memory(RuntimeError(words)):
        raise OutOfMemoryError(f"{failed}: no memory ({words}); close other programs") from cause
    raise BackendError(
        f"{failed}: {words}; see cyclegan-batch doctor, or pass --backend onnxruntime"
    ) from cause


def _read_timing(path: Path | None) -> bytes:
    """Return the timings at ``path``, none where they are damaged or another user's.

    TensorRT may abort on those, or worse.
    """
    if path is None:
        return b""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return unsealed(content) or b""


def _write_timing(path: Path, timings: bytes) -> None:
    from ...files import publish, temporary_path

    content = sealed(timings)
    # A cache: where it cannot be written, the next build measures again.
    with contextlib.suppress(OSError, OutputError):
        if content is None:
            return
        partial = temporary_path(path)
        try:
            partial.write_bytes(content)
            publish(partial, path, overwrite=True)
        finally:
            partial.unlink(missing_ok=True)


def _timing_key(machine: Machine) -> str:
    return hashlib.sha256(repr(machine).encode()).hexdigest()[:16]


# Running


class _Context:
    """An execution context: a stream, and buffers for frames of one shape at a time."""

    def __init__(self, cuda: _Cuda, engine: _Engine, card: ModelCard) -> None:
        self.engine = engine
        self._cuda, self._card = cuda, card
        self._shape: Shape | None = None
        self._buffers: list[Callable[[], None]] = []
        """How to release what is allocated."""
        self._stream: Any = None
        trt = _import()
        log = _log(trt)
        log.clear()
        # Its memory is ours, for the frames at hand: TensorRT's own would be for the largest that
        # the profile takes, and half a batch would need no less.
        self._context = _made(
            lambda: engine.engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            ),
            f"tensorrt makes no context of {printable(card.path)}",
            log,
        )
        # A field behind the context's: the context refers to it until it is gone.
        self._errors = _recorder(trt)
        self._context.error_recorder = self._errors
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``, whose shape the profile covers. Raises BackendError, ModelError."""
        shape, cuda = _shape(frames), self._cuda
        if shape != self._shape:
            self._prepare(shape, frames)
        self._host_in[:] = frames.reshape(-1).view(np.uint8)
        kind, size = cuda.runtime.cudaMemcpyKind, frames.nbytes
        cuda.call(
            "cudaMemcpyAsync", self._device_in, self._host_in.ctypes.data, size,
            kind.cudaMemcpyHostToDevice, self._stream,
        )  # fmt: skip
        self._errors.clear()
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failed(shape)
        cuda.call(
            "cudaMemcpyAsync", self._host_out.ctypes.data, self._device_out, size,
            kind.cudaMemcpyDeviceToHost, self._stream,
        )  # fmt: skip
        cuda.call("cudaStreamSynchronize", self._stream)
        # Copied: the next call writes into the same memory.
        return self._host_out.view(frames.dtype).reshape(frames.shape).copy()

    def close(self) -> None:
        """Release everything; twice is fine. What CUDA says to that is of no use any more."""
        with contextlib.suppress(BackendError):
            self._cuda.use()
        self._release()
        self._context = None
        if self._stream is not None:
            with contextlib.suppress(BackendError):
                self._cuda.call("cudaStreamDestroy", self._stream)
            self._stream = None

    def _prepare(self, shape: Shape, frames: Pixels) -> None:
        """Make room for frames of another shape. Raises OutOfMemoryError, BackendError."""
        self._release()
        context = self._context
        self._errors.clear()
        if not context.set_input_shape(INPUT, (*shape, 3)):
            raise self._failed(shape)
        out = tuple(context.get_tensor_shape(OUTPUT))
        if out != frames.shape:
            raise ModelError(
                f"{printable(self._card.path)}: gives {out} for {frames.shape} where a generator "
                "keeps the size; it cannot translate pictures"
            )
        work = int(context.update_device_memory_size_for_shapes())
        if work == 0 and self._errors.num_errors():
            raise self._failed(shape)
        try:
            # Zero is no size that CUDA gives memory for, and the context wants an address.
            context.set_device_memory(self._on_device(max(work, 1)), work)
            # It returns nothing.
            if self._errors.num_errors():
                raise self._failed(shape)
            self._device_in = self._on_device(frames.nbytes)
            self._device_out = self._on_device(frames.nbytes)
            self._host_in = self._on_host(frames.nbytes)
            self._host_out = self._on_host(frames.nbytes)
        except OutOfMemoryError as error:
            raise self._no_memory(shape) from error
        for name, address in ((INPUT, self._device_in), (OUTPUT, self._device_out)):
            if not context.set_tensor_address(name, address):
                raise self._failed(shape)
        self._shape = shape

    def _on_device(self, size: int) -> int:
        address = int(self._cuda.call("cudaMalloc", size))
        self._buffers.append(lambda: self._cuda.call("cudaFree", address))
        return address

    def _on_host(self, size: int) -> Pixels:
        """Return page-locked memory: only from there a copy goes on by itself."""
        address = int(self._cuda.call("cudaMallocHost", size))
        self._buffers.append(lambda: self._cuda.call("cudaFreeHost", address))
        memory: Pixels = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return memory

    def _release(self) -> None:
        self._shape = None
        while self._buffers:
            with contextlib.suppress(BackendError):
                self._buffers.pop()()

    def _failed(self, shape: Shape) -> BackendError:
        words = self._errors.words()
        if self._errors.out_of_memory():
            return self._no_memory(shape)
        return BackendError(
            f"tensorrt: {printable(self._card.path)} fails on frames of {_words(shape)} (N,H,W): "
            f"{words or 'no reason given'}; try --backend onnxruntime"
        )

    def _no_memory(self, shape: Shape) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"tensorrt: no memory on cuda:{self._cuda.index} for a batch of {_words(shape)} (N,H,W)"
        )


class _Cuda:
    """The CUDA runtime on one device; what it reports becomes our errors."""

    def __init__(self, device: str) -> None:
        if device == "cpu":
            raise BackendUnavailableError(
                "tensorrt was asked for cpu and runs on NVIDIA GPUs only; pass --backend auto, or "
                "--device cuda"
            )
        self.index = int(device.partition(":")[2] or 0)
        try:
            self.runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise BackendUnavailableError(
                f"tensorrt needs cuda-bindings, which cannot be loaded ({error}); pip install "
                '"cyclegan-batch[tensorrt]"'
            ) from error
        try:
            count = self.call("cudaGetDeviceCount")
        except BackendError as error:
            raise BackendUnavailableError(
                f"tensorrt finds no NVIDIA GPU that it can use: {error}; see cyclegan-batch "
                "doctor, or pass --backend auto"
            ) from error
        if self.index >= count:
            raise BackendUnavailableError(
                f"tensorrt was asked for cuda:{self.index} and this machine has {count} NVIDIA "
                "GPUs, the first of them cuda:0; pass another --device"
            )

    def use(self) -> None:
        """Make the device the current one of this thread."""
        self.call("cudaSetDevice", self.index)

    def machine(self, trt: Any) -> Machine:
        """Return what engines of this GPU are bound to."""
        found = self.call("cudaGetDeviceProperties", self.index)
        name = found.name.decode(errors="replace").rstrip("\0")
        return Machine(
            name,
            (int(found.major), int(found.minor)),
            str(trt.__version__),
            int(found.multiProcessorCount),
            round(int(found.totalGlobalMem) / 2**30),
        )

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime, return its result. Raises BackendError."""
        code, *found = getattr(self.runtime, name)(*arguments)
        if int(code) != 0:
            words = code.name
            with contextlib.suppress(Exception):
                words += f", {self.runtime.cudaGetErrorString(code)[1].decode()}"
            kind = OutOfMemoryError if says_out_of_memory(RuntimeError(words)) else BackendError
            raise kind(f"{name}: {words}")
        return found[0] if found else None


# TensorRT's own classes


def _import() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendUnavailableError(
            f'tensorrt cannot be loaded ({error}); pip install "cyclegan-batch[tensorrt]", see the '
            "README for where its library comes from"
        ) from error


@functools.cache
def _log(trt: Any) -> Any:
    """Return the logger of this process: TensorRT keeps the first that it is given.

    It keeps the errors of each thread that has called `clear` apart: nobody clears those of
    another. TensorRT's own threads, which only building has, call it too.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._of_this_thread = threading.local()
            self._of_tensorrts_threads: deque[str] = deque(maxlen=_KEPT_MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                getattr(self._of_this_thread, "errors", self._of_tensorrts_threads).append(message)

        def clear(self, *, of_tensorrts_threads: bool = False) -> None:
            self._of_this_thread.errors = deque(maxlen=_KEPT_MESSAGES)
            self._of_this_thread.takes_all = of_tensorrts_threads
            if of_tensorrts_threads:
                self._of_tensorrts_threads.clear()

        def words(self) -> str:
            """Return the errors since `clear`."""
            errors = list(self._of_this_thread.errors)
            if self._of_this_thread.takes_all:
                errors += self._of_tensorrts_threads
            return _in_one_line(errors)

    return Log()


def _recorder(trt: Any) -> Any:
    """Return what an execution context reports its errors to: to it instead of the logger."""
    return _recorder_class(trt)()


@functools.cache
def _recorder_class(trt: Any) -> Any:
    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self._errors: list[tuple[Any, str]] = []

        # What TensorRT calls; an exception in it would end the process.
        def report_error(self, code: Any, description: str) -> bool:
            if len(self._errors) < _KEPT_MESSAGES:
                self._errors.append((code, description))
            return False

        def num_errors(self) -> int:
            return len(self._errors)

        def get_error_code(self, index: int) -> Any:
            return self._errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self._errors[index][1]

        def has_overflowed(self) -> bool:
            return len(self._errors) == _KEPT_MESSAGES

        def clear(self) -> None:
            self._errors.clear()

        def words(self) -> str:
            """Return the errors since `clear`."""
            return _in_one_line(description for _, description in self._errors)

        def out_of_memory(self) -> bool:
            """Tell whether one of them is that."""
            return any(
                code == trt.ErrorCodeTRT.FAILED_ALLOCATION
                or says_out_of_memory(RuntimeError(description))
                for code, description in self._errors
            )

    return Recorder


def _in_one_line(errors: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(map(_told, errors)))


def _told(text: str) -> str:
    """Return a message of TensorRT in one line, without the places in its source."""
    text = re.sub(r"\[\S+::\S+\] |\(?[Ii]n \S+ at \S+ ?", "", text)
    return " ".join(text.split())[:300]


def _monitor(trt: Any) -> Any:
    """Return what TensorRT tells how far it is, and asks whether to go on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stop = False
            self.phase = "it begins"

        # Called from TensorRT's threads, where an exception would end the process: nothing here
        # can fail.
        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phase = name

        def step_complete(self, name: str, step: int) -> bool:
            self.phase = f"{name}, step {step + 1}"
            return not self.stop

        def phase_finish(self, name: str) -> None:
            pass  # its parent goes on and says so

    return Monitor()


def _shape(frames: Pixels) -> Shape:
    count, height, width = frames.shape[:3]
    return count, height, width


def _words(shape: Shape) -> str:
    return ",".join(map(str, shape))


__all__ = [
    "TensorRtBackend",
    "check_tensorrt",
    "engine_from_graph",
    "open_tensorrt",
    "write_engine",
]
