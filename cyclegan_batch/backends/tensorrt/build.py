"""Build engines, check their parity with their ONNX, and keep them in the cache folder."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ..._version import __version__
from ...errors import (
    BackendError,
    BackendUnavailableError,
    ModelError,
    OutOfMemoryError,
    OutputError,
)
from ...files import output_error, writing
from ...frames import as_pixel_type
from ...machine import cpu_threads
from ...models.engine_card import (
    Build,
    EngineCard,
    Machine,
    is_ours,
    read_card,
    write_engine_file,
)
from ...models.model import INPUT, Model
from ...models.parity import LIMITS, REQUIRED_CLASS, Parity, natural_frames, parity
from ...models.seal import key_error, not_private, sealed, unsealed
from ...wording import Note, printable
from ..common import checked, is_out_of_memory
from ..cuda import Cuda
from ..onnxruntime import open_onnxruntime
from .context import Context, Engine
from .library import (
    Logger,
    ProgressMonitor,
    created,
    import_tensorrt,
    logger,
    one_line,
    progress_monitor,
)

Say = Callable[[str], None]

_REPORT_INTERVAL = 10.0
"""Seconds between two reports of a build's progress."""

_STOP_TIMEOUT = 3.0
"""Seconds to wait for a build to stop that is no longer needed."""


def silent(sentence: str) -> None:
    """Report nothing."""


class Builder:
    """Builds engines for one GPU, checks their parity, and keeps them in the cache folder."""

    def __init__(
        self, trt: ModuleType, cuda: Cuda, machine: Machine, cache_dir: Path, say: Say
    ) -> None:
        self.cuda, self.machine, self.cache_dir = cuda, machine, cache_dir
        self.notes: list[Note] = []
        """What the user should be told once."""
        self._trt, self._say = trt, say

    def cached(
        self, model: Model, build: Build, stopped: Callable[[], bool] = lambda: False
    ) -> Engine:
        """Return an engine from the cache, or build it. Raises BackendError, ModelError."""
        digest = model.graph_sha256
        key = hashlib.sha256(repr((digest, self.machine, build)).encode()).hexdigest()
        folder = self._folder()
        if folder is None:
            return self.build(model, build, stopped=stopped)[0]
        path = folder / f"{digest[:16]}-{key[:16]}.engine"
        cached = self._from_cache(path, digest, build)
        if cached is not None:
            return cached
        engine, content = self.build(model, build, stopped=stopped)
        try:
            card = write_engine_file(replace(engine.card, path=path), content)
        except OutputError as error:
            self._note_not_kept(str(error))
        else:
            if card.seal is None:
                self._note_not_kept(str(key_error()))
        return engine

    def _folder(self) -> Path | None:
        """Return the folder of engines and timings; None where other users may write to it."""
        folder = self.cache_dir / "engines"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            self._note_not_kept(str(output_error(folder, error)))
            return None
        reason = not_private(folder)
        if reason is not None:
            self._note_not_kept(reason)
            return None
        return folder

    def _note_not_kept(self, reason: str) -> None:
        note = Note(None, f"the engine cannot be kept, the next run builds it again: {reason}")
        if note not in self.notes:
            self.notes.append(note)

    def build(
        self,
        model: Model,
        build: Build,
        *,
        verify: bool = True,
        stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[Engine, bytes]:
        """Build an engine, load it and check its parity; return it, and the content of its file.

        ``stopped`` is polled; the build ends where it returns True. Raises BackendError,
        ModelError.
        """
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
            onnx_sha256=model.graph_sha256,
            machine=self.machine,
            build=build,
            tool_version=__version__,
        )
        engine = self.load(content, card)
        layers = self._count_half_layers(engine, name)
        measured = self.measure(model, engine) if verify else None
        words = None if measured is None else str(measured)
        return replace(engine, card=replace(card, layers=layers, parity=words)), content

    def load(self, content: bytes, card: EngineCard) -> Engine:
        """Load an engine. It must be trusted, as it can run any code. Raises BackendError."""
        trt, log = self._trt, logger(self._trt)
        self.cuda.use()
        log.clear()
        runtime = created(lambda: trt.Runtime(log), "tensorrt cannot start its runtime", log)
        if card.build.version_compatible:
            # Such an engine contains a runtime of its own, code that runs on the CPU.
            runtime.engine_host_code_allowed = True
        engine = created(
            lambda: runtime.deserialize_cuda_engine(content),
            f"tensorrt {trt.__version__} does not open {printable(card.path)}",
            log,
        )
        return Engine(engine, runtime, card)

    def _from_cache(self, path: Path, digest: str, build: Build) -> Engine | None:
        """Return the engine at ``path`` if this user built it for this graph, machine and build.

        None where it is missing, damaged or another one.
        """
        try:
            card, content = read_card(path), path.read_bytes()
        except (ModelError, OSError):
            return None
        fits = (card.onnx_sha256, card.machine, card.build) == (digest, self.machine, build)
        if not fits or not is_ours(card, content):
            return None
        try:
            return self.load(content, card)
        except OutOfMemoryError:
            raise
        except BackendError as error:
            self.notes.append(Note(None, f"{error}; it was built anew"))
            return None

    def _count_half_layers(self, engine: Engine, name: str) -> str | None:
        """Return how many layers use half precision, in words; note it where an fp16 file has none.

        None where TensorRT's inspector reports no layers.
        """
        inspector = engine.engine.create_engine_inspector()
        if inspector is None:
            return None
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        try:
            layers = json.loads(text)["Layers"]
        except (ValueError, TypeError, KeyError):
            return None
        half = sum(bool(re.search(r"\b(FP16|Half)\b", json.dumps(layer))) for layer in layers)
        if engine.card.model.precision == "fp16" and not half:
            text = "is fp16, but TensorRT's inspector shows no layer in half precision"
            self.notes.append(Note(name, text))
        return f"{half} of {len(layers)} with half precision"

    def measure(self, model: Model, engine: Engine) -> Parity | None:
        """Return the engine's parity with its ONNX on the CPU; None without onnxruntime.

        How close the ONNX itself is to fp32 does not show here. The export measured that; for an
        fp16 or int8 file of other origin it is unknown, and a note says so. Raises ModelError where
        the engine misses the class of its precision.
        """
        card, profile = model.card, engine.profile
        try:
            exact = open_onnxruntime(model, threads=cpu_threads(), contexts=1)
        except BackendUnavailableError:
            text = (
                "its engine was not compared with it, as onnxruntime is not installed; "
                'pip install "cyclegan-batch[cpu]"'
            )
            self.notes.append(Note(Path(card.path.name), text))
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
        context = Context(self.cuda, engine, card)
        try:
            # The context records its work in the second call and replays it in the third, which
            # is how it translates.
            for _ in range(3):
                translated = context.infer(frames)
            measured = parity(checked(translated, frames, card), exact.infer(frames))
        finally:
            context.close()
            exact.close()
        required = REQUIRED_CLASS["tf32" if engine.card.build.tf32 else card.precision]
        if not measured.reaches(required):
            raise ModelError(
                f"{printable(card.path)}: its engine on {self.machine.gpu} is {measured}, where "
                f"{required} is expected ({LIMITS[required]}); use --backend onnxruntime"
            )
        if card.precision in ("fp16", "int8") and card.parity is None:
            text = (
                f"is {card.precision}, and its card holds no parity with fp32; its engine was "
                "compared with this file only, which does not show the file's own error: export it "
                "from its checkpoint to have that measured"
            )
            self.notes.append(Note(Path(card.path.name), text))
        return measured


def engine_from_graph(
    graph: bytes,
    build: Build,
    *,
    name: str,
    timing_cache: Path | None = None,
    prepare: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
    say: Say = silent,
) -> bytes:
    """Build an engine of a contract graph and return it as bytes.

    ``name``: the file's, for messages. ``timing_cache``: a file with the kernel timings of earlier
    builds, which is read and written. ``prepare`` is called in the thread that builds, to set the
    current CUDA device there: each thread has its own. ``stopped`` and ``say`` are called in the
    caller's thread: the build ends where ``stopped`` returns True, and ``say`` receives its
    progress. Raises BackendError, OutOfMemoryError; KeyboardInterrupt ends the build.
    """
    trt, log = import_tensorrt(), logger(import_tensorrt())
    monitor = progress_monitor(trt)
    outcome: list[bytes | BaseException] = []

    def work() -> None:
        try:
            prepare()
            outcome.append(_build(trt, log, monitor, graph, build, name, timing_cache))
        except BaseException as error:
            outcome.append(error)

    # The build has a thread of its own, so that the caller's thread can receive Ctrl-C and report
    # progress. It is a daemon thread: for any other the interpreter would wait at its exit and
    # ignore Ctrl-C meanwhile.
    thread = threading.Thread(target=work, name="tensorrt build", daemon=True)
    thread.start()
    try:
        waited = 0.0
        while thread.is_alive():
            thread.join(0.2)
            waited += 0.2
            if stopped():
                raise BackendError("tensorrt: cancelled")
            if waited >= _REPORT_INTERVAL and thread.is_alive():
                waited = 0.0
                say(f"building an engine of {name}: {monitor.phase}")
    except BaseException:
        monitor.stop = True
        thread.join(_STOP_TIMEOUT)
        if thread.is_alive():
            # TensorRT finishes its current step first, and calls the monitor until then. Without an
            # interpreter such a call would abort the process, so the exit waits.
            atexit.register(thread.join)
        raise
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


def _build(
    trt: ModuleType,
    log: Logger,
    monitor: ProgressMonitor,
    graph: bytes,
    build: Build,
    name: str,
    timing_cache: Path | None,
) -> bytes:
    version = f"tensorrt {trt.__version__}"
    log.clear(include_tensorrts_threads=True)
    builder = created(lambda: trt.Builder(log), f"{version} cannot start its builder", log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    cannot = f"{version} cannot create a"
    network = created(lambda: builder.create_network(typed), f"{cannot} network", log)
    parser = created(lambda: trt.OnnxParser(network, log), f"{cannot} parser", log)
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"{one_line(each.desc())} (node {each.node_name()!r})" for each in errors]
        raise BackendError(
            f"{version} does not read {name}: {'; '.join(reasons) or log.words()}; try --backend "
            "onnxruntime, or export the model again"
        )
    config = _configuration(trt, log, builder, build, name)
    config.progress_monitor = monitor
    timing = config.create_timing_cache(_read_timings(timing_cache))
    if timing is not None:
        config.set_timing_cache(timing, False)
    content = builder.build_serialized_network(network, config)
    del parser  # not earlier: the network refers to weights in the parser's memory
    if monitor.stop:
        raise BackendError("tensorrt: cancelled")
    if content is None:
        if is_out_of_memory(RuntimeError(log.words())):
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
        _write_timings(timing_cache, bytes(timing.serialize()))
    return bytes(content)


def _configuration(trt: ModuleType, log: Logger, builder: Any, build: Build, name: str) -> Any:
    """Return the builder's configuration for ``build``, its optimization profile included."""
    version = f"tensorrt {trt.__version__}"
    cannot = f"{version} cannot create a"
    config = created(builder.create_builder_config, f"{cannot} configuration", log)
    config.builder_optimization_level = build.builder_level
    # Without this setting the engine's inspector reports only the names of its layers.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if build.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, build.workspace << 20)
    if build.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if build.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if not build.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    profile = created(builder.create_optimization_profile, f"{cannot} profile", log)
    shapes = [(*shape, 3) for shape in (build.profile.min, build.profile.opt, build.profile.max)]
    try:
        profile.set_shape(INPUT, *shapes)
        accepted = config.add_optimization_profile(profile) >= 0
    except (ValueError, TypeError) as error:
        raise _refused_shapes(version, name, build, str(error)) from error
    if not accepted:
        raise _refused_shapes(version, name, build, log.words())
    return config


def _refused_shapes(version: str, name: str, build: Build, reason: str) -> BackendError:
    return BackendError(
        f"{version} does not take the shapes {build.profile} for {name}: {reason}; choose others "
        "(--min-shape, --opt-shape, --max-shape, or --size)"
    )


def _read_timings(path: Path | None) -> bytes:
    """Return the timings at ``path``; none where they are damaged or another user wrote them.

    Such timings may make TensorRT abort, or worse.
    """
    if path is None:
        return b""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return unsealed(content) or b""


def _write_timings(path: Path, timings: bytes) -> None:
    content = sealed(timings)
    if content is None:
        return
    # Where the timings cannot be kept, the next build measures again.
    with contextlib.suppress(OSError, OutputError), writing(path, overwrite=True) as partial:
        partial.write_bytes(content)


def _timing_key(machine: Machine) -> str:
    return hashlib.sha256(repr(machine).encode()).hexdigest()[:16]
