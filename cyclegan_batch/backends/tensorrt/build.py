"""Build engines, accept them by their parity, and keep them in the cache folder."""

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
from ...files import output_error, publish, temporary_path
from ...frames import as_pixel_type
from ...machine import cpu_threads
from ...models.engine_card import (
    Build,
    EngineCard,
    Machine,
    is_ours,
    key_error,
    not_private,
    read_card,
    sealed,
    unsealed,
    write_engine_file,
)
from ...models.model import INPUT, Model
from ...models.parity import LIMITS, OF_PRECISION, Parity, natural_frames, parity
from ...wording import Note, printable
from ..common import checked, says_out_of_memory
from ..onnxruntime import open_onnxruntime
from .context import Context, Cuda, Engine
from .library import created, import_tensorrt, logger, one_line, progress_monitor

Say = Callable[[str], None]


_SPOKEN = 10.0
"""Seconds between two lines about a build that goes on."""


_STOPPING = 3.0
"""Seconds that a build gets to hear that it is not wanted any more."""


def silent(sentence: str) -> None:
    """Say nothing."""


class Builder:
    """Builds engines for one GPU, accepts them, and keeps them in the cache folder."""

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
        """Build and open an engine, and accept it; return it, and as a file.

        Raises BackendError, ModelError.
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

    def opened(self, content: bytes, card: EngineCard) -> Engine:
        """Open an engine that is trusted. Raises BackendError."""
        trt, log = self._trt, logger(self._trt)
        self.cuda.use()
        log.clear()
        runtime = created(lambda: trt.Runtime(log), "tensorrt cannot start its runtime", log)
        if card.build.version_compatible:
            # Such an engine brings its own runtime along, which is code of the host.
            runtime.engine_host_code_allowed = True
        engine = created(
            lambda: runtime.deserialize_cuda_engine(content),
            f"tensorrt {trt.__version__} does not open {printable(card.path)}",
            log,
        )
        return Engine(engine, runtime, card)

    def _from_cache(self, path: Path, digest: str, build: Build) -> Engine | None:
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
            self.notes.append(Note(None, f"{error}; it was built anew"))
            return None

    def _inspected(self, made: Engine, name: str) -> str | None:
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
            text = "is fp16, but TensorRT's inspector shows no layer in half precision"
            self.notes.append(Note(name, text))
        return f"{half} of {len(layers)} with half precision"

    def measure(self, model: Model, made: Engine) -> Parity | None:
        """Return the engine's parity with its file on the CPU; None where nothing can run that.

        What the file itself is off was measured when it was exported; of a foreign one nothing is
        known, and that is noted. Raises ModelError where it misses the class of its precision.
        """
        card, profile = model.card, made.profile
        try:
            exact = open_onnxruntime(
                model, device="cpu", precision="auto", threads=cpu_threads(), contexts=1
            )
        except BackendUnavailableError:
            text = (
                "its engine was compared with nothing, as onnxruntime is not installed; "
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
        context = Context(self.cuda, made, card)
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
            text = (
                f"says of itself that it is {card.precision} "
                "and not how near to fp32; its engine was compared with the file only, whose own "
                "error does not show there: export it from its checkpoint to have it measured"
            )
            self.notes.append(Note(Path(card.path.name), text))
        return found


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

    ``name``: the file's, for messages. ``timing_cache``: what earlier builds measured; read and
    written. ``prepare`` is called in the thread that builds: the current device is a thread's own.
    ``stopped`` is asked whether it is still wanted, and ``say`` told how far it is, in the caller's
    thread. Raises BackendError, OutOfMemoryError; KeyboardInterrupt ends the build.
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
    builder = created(lambda: trt.Builder(log), f"{version} cannot start its builder", log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = created(lambda: builder.create_network(typed), f"{version} makes no network", log)
    parser = created(lambda: trt.OnnxParser(network, log), f"{version} makes no parser", log)
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        words = [f"{one_line(each.desc())} (node {each.node_name()!r})" for each in errors]
        raise BackendError(
            f"{version} does not read {name}: {'; '.join(words) or log.words()}; try --backend "
            "onnxruntime, or export the model again"
        )
    config = created(builder.create_builder_config, f"{version} makes no configuration", log)
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
    if not build.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    profile = created(builder.create_optimization_profile, f"{version} makes no profile", log)
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
