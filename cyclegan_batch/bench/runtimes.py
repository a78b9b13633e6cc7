"""The network alone: every runtime, precision, batch and number of contexts that runs here."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backends import Backend, default_contexts, open_backend
from ..errors import BackendError, CycleganBatchError
from ..frames import Pixels, Size, as_pixel_type
from ..models.model import Model, widest_tensor
from ..models.parity import Parity, natural_frames, parity
from ..options import FilePrecision, TranslateOptions
from ..wording import counted, first_line, printable
from . import products
from .load import Load
from .race import Contestant, Lap, race

_PACKAGE = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "torch": "torch",
}

_CONTEXTS = (1, 2, 4)
_BATCHES_ON_CPU, _BATCHES_ON_GPU = (1, 2, 4), (1, 4, 8, 16, 32)

_TO_OPEN = 0.55
"""The share of the time in which ways are opened; in the rest they run."""

_PARITY_FRAMES = 4
"""Frames that parity is measured on: those of `backends.common.parity_of`."""

_LONG_CALL = 0.5
"""Seconds. Where a frame takes longer, parity is measured on one."""

_MEMORY_SHARE = 0.5
"""Of the memory that is free, how much all ways together may take."""

_TENSORS_AT_ONCE = 4
"""Tensors of the largest size that a network has in memory at the same time, about."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The network alone, run in one way."""

    backend: str
    device: str
    precision: str
    """The one in which it computes."""
    batch_size: int
    """Frames per call."""
    contexts: int
    """Instances that work side by side."""
    rate: float
    """Frames per second, the median of the rounds."""
    cpu_seconds: float
    """CPU seconds per frame."""
    laps: tuple[Lap, ...]
    """What was done in each round; the rounds of all ways alternate."""
    parity: Parity | None
    """To fp32 of the same file, on computed frames of the trained size; None for that itself."""
    gflops: float | None = None
    """Billions of operations per second, by the definition of the network's products."""
    share: float | None = None
    """``gflops`` over what plain matrix products reach on this device in this precision."""

    @property
    def name(self) -> str:
        """Runtime and precision, with the device where that is a GPU."""
        return " ".join([self.backend, self.precision, *([self.device] * (self.device != "cpu"))])

    @property
    def parity_class(self) -> str:
        """The class of parity; that of the reference is ``exact``."""
        return "exact" if self.parity is None else self.parity.cls


@dataclass(frozen=True)
class LeftOut:
    """What was not measured, and why."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network alone in every way."""

    rows: tuple[Row, ...]
    """In the order in which they were opened."""
    products: dict[str, float]
    """Billions of operations per second that plain matrix products reach, by precision."""
    cannot_run: tuple[LeftOut, ...]
    not_measured: tuple[LeftOut, ...]
    """Ways that run, but for which there was no time or no memory."""
    others: float | None = None
    """The share of the CPU, 0 to 1, that other programs took meanwhile, where that is known."""


@dataclass(frozen=True)
class _Group:
    """A runtime in one precision."""

    backend: str
    device: str
    precision: str
    """As it is asked for: ``auto`` is the file's own."""
    model: Model

    @property
    def words(self) -> str:
        precision = self.model.card.precision if self.precision == "auto" else self.precision
        return f"{self.backend} {precision}"


class Bench:
    """Opens the ways, lets them run, and closes them."""

    def __init__(
        self,
        options: TranslateOptions,
        threads: int,
        left: Callable[[], float],
        *,
        tell: Callable[[str], None] = lambda step: None,
        say: Callable[[str], None] = lambda sentence: None,
        opener: Callable[..., Backend] = open_backend,
    ) -> None:
        """``left`` returns the seconds left, ``tell`` gets each step, ``say`` sentences."""
        self._options, self._threads, self._left = options, threads, left
        self._tell, self._say, self._open = tell, say, opener
        self._until_open = (1 - _TO_OPEN) * left()
        """Ways are opened while more seconds than these are left."""
        self._backends: list[Backend] = []
        self._stopped = threading.Event()
        self._bytes = 0.0
        self._longest_opening = 0.0
        self._frame_seconds = 0.0
        """Of the slowest way so far."""
        self._cannot_run: list[LeftOut] = []
        self._not_measured: list[LeftOut] = []

    def cancel(self) -> None:
        """Stop what runs, from another thread."""
        self._stopped.set()
        for backend in list(self._backends):
            backend.cancel()

    def measure(
        self,
        model: Model,
        checkpoint: Model | None,
        size: Size,
        gflop: float | None,
        *,
        first: str | None = None,
        contexts: int | None = None,
    ) -> Network:
        """Measure ``model`` on frames of ``size`` in the network, in every way that runs here.

        ``checkpoint``: what ``model`` was exported from, which torch runs itself. ``first`` and
        ``contexts``: the backend that is measured in any case, and how many; None for the default.
        With ``--threads`` no other number of contexts is measured, as a plan would not take it.
        """
        try:
            return self._measure(model, checkpoint, size, gflop, first, contexts)
        finally:
            for backend in self._backends:
                backend.close()

    def _measure(
        self,
        model: Model,
        checkpoint: Model | None,
        size: Size,
        gflop: float | None,
        first_backend: str | None,
        contexts: int | None,
    ) -> Network:
        groups, cannot_run = groups_of(model, checkpoint, self._options)
        self._cannot_run += cannot_run
        groups.sort(key=lambda group: group.backend != first_backend)
        on_cpu = not self._options.device.startswith("cuda")
        if contexts is None:
            contexts = default_contexts("cpu" if on_cpu else self._options.device, self._threads)
        frame_bytes = widest_tensor(model) * size[0] * size[1] * 4 * _TENSORS_AT_ONCE
        ways: list[_Way] = []
        reference = self._reference(model, groups)
        # Loading torch takes seconds, and it is seldom the fastest: it comes last.
        late = [group for group in groups[1:] if group.backend == "torch"]
        for group in (each for each in groups if each not in late):
            way = self._way(group, size, model.card.batch or 1, contexts, frame_bytes)
            if way is None:
                continue
            reference = self._compare(way, reference)
            ways.append(way)
        ceilings = self._ceilings(ways, contexts)
        for first in list(ways):
            ways += self._larger_batches(first, frame_bytes)
        for first in [way for way in ways if way.contexts == contexts]:
            if first.batch_size != (model.card.batch or 1):
                continue
            for count in _counts_of_contexts(self._threads if on_cpu else 2):
                if count == contexts or self._options.threads is not None:
                    continue
                way = self._way(first.group, size, first.batch_size, count, frame_bytes)
                if way is not None:
                    way.parity = first.parity
                    ways.append(way)
        for group in late:
            way = self._way(group, size, model.card.batch or 1, contexts, frame_bytes)
            if way is not None:
                reference = self._compare(way, reference)
                ways.append(way)
        contestants = [way.contestant for way in (*ways[:1], *ceilings, *ways[1:])]

        def announce(number: int, who: Contestant) -> None:
            self._check()
            runner = who.runner
            assert isinstance(runner, _Way)
            self._tell(f"network alone, round {number}: {runner.words}")

        load = Load()
        race(contestants, self._left, announce=announce)
        others = load.others()
        self._not_measured += [
            LeftOut(way.words, "no time was left") for way in ways if not way.contestant.laps
        ]
        reached: dict[str, float] = {}
        for way in ceilings:
            rate = way.contestant.rate * products.GFLOP
            if rate:
                reached[way.precision] = max(rate, reached.get(way.precision, 0.0))
        return Network(
            rows=tuple(_row(way, gflop, reached) for way in ways if way.contestant.laps),
            products=reached,
            cannot_run=tuple(self._cannot_run),
            not_measured=tuple(self._not_measured),
            others=others,
        )

    def _check(self) -> None:
        if self._stopped.is_set():
            raise BackendError("the measurement was stopped")

    def _way(
        self,
        group: _Group,
        size: Size,
        batch_size: int,
        contexts: int,
        frame_bytes: float,
        *,
        is_ceiling: bool = False,
    ) -> _Way | None:
        """Open a way and let it run once; None where it does not run or nothing is left for it."""
        self._check()
        words = f"{group.words}, batch {batch_size}, {counted(contexts, 'context')}"
        # The products are short, and without them no share can be told.
        until = self._until_open / 2 if is_ceiling else self._until_open
        opening = self._longest_opening
        if group.precision not in ("auto", "fp32"):
            # A runtime then measures the parity itself, in both precisions.
            opening += 2 * _PARITY_FRAMES * self._frame_seconds
        if self._left() - opening < until and self._backends:
            self._not_measured.append(LeftOut(words, "no time was left"))
            return None
        needed = frame_bytes * batch_size * contexts
        if self._bytes + needed > _MEMORY_SHARE * _free_memory() and self._backends:
            self._not_measured.append(LeftOut(words, "memory is short"))
            return None
        self._tell(f"opening {group.words}, {counted(contexts, 'context')}")
        begin = time.monotonic()
        try:
            backend = self._open(
                group.model,
                backend=group.backend,
                device=group.device,
                precision=group.precision,
                threads=self._threads,
                contexts=contexts,
                shapes=[(batch_size, *size)],
                cache_dir=self._options.cache_dir,
                trust_engine=self._options.trust_engine,
                say=self._say,
            )
            self._backends.append(backend)
            backends = [backend]
            for _ in range(contexts - 1):
                backends.append(backend.fork())
                self._backends.append(backends[-1])
            way = _Way(group, backends, batch_size, _frames(group.model, size, batch_size))
            way.warm()
        except CycleganBatchError as error:
            self._check()
            self._cannot_run.append(LeftOut(group.words, short_reason(error, group.model)))
            return None
        self._bytes += needed
        self._longest_opening = max(self._longest_opening, time.monotonic() - begin)
        if not is_ceiling:
            seconds = way.contestant.call_seconds / batch_size
            self._frame_seconds = max(self._frame_seconds, seconds)
        return way

    def _reference(self, model: Model, groups: Sequence[_Group]) -> Pixels | None:
        """Translate in fp32 on the CPU what parity is measured on.

        None where the first of ``groups`` does that itself, and where nothing can.
        """
        if not groups or (groups[0].device == "cpu" and groups[0].precision in ("auto", "fp32")):
            return None
        self._tell("opening the reference in fp32")
        try:
            backend = self._open(
                model,
                device="cpu",
                precision="auto",
                threads=self._threads,
                cache_dir=self._options.cache_dir,
            )
        except CycleganBatchError:
            return None
        self._backends.append(backend)
        return _translated(backend, _PARITY_FRAMES)

    def _compare(self, way: _Way, reference: Pixels | None) -> Pixels:
        """Measure the parity of a way to the reference, and return the reference."""
        self._tell(f"parity of {way.group.words}")
        count = _PARITY_FRAMES if way.contestant.call_seconds < _LONG_CALL else 1
        out = _translated(way.backends[0], count)
        if reference is None:
            return out
        common = min(len(out), len(reference))
        way.parity = parity(out[:common], reference[:common])
        return reference

    def _larger_batches(self, first: _Way, frame_bytes: float) -> list[_Way]:
        """Return the same contexts with larger batches, where the file and the runtime take them.

        torch computes the frames of a batch one by one on a CPU.
        """
        on_cpu = first.device == "cpu"
        if first.backends[0].card.batch is not None or (on_cpu and first.backend == "torch"):
            return []
        ways = []
        for size in (_BATCHES_ON_CPU if on_cpu else _BATCHES_ON_GPU)[1:]:
            self._check()
            shape = first.frames.shape[1:3]
            way = _Way(first.group, first.backends, size, _frames(first.group.model, shape, size))
            way.parity = first.parity
            needed = frame_bytes * size * first.contexts
            # Its first call takes about as long as so many of the first way's.
            if self._left() - size * first.contestant.call_seconds < self._until_open:
                self._not_measured.append(LeftOut(way.words, "no time was left"))
                continue
            if self._bytes + needed > _MEMORY_SHARE * _free_memory():
                self._not_measured.append(LeftOut(way.words, "memory is short"))
                continue
            try:
                way.warm()
            except CycleganBatchError as error:
                self._check()
                self._cannot_run.append(LeftOut(way.words, short_reason(error, way.group.model)))
                continue
            self._bytes += needed
            ways.append(way)
        return ways

    def _ceilings(self, ways: Sequence[_Way], contexts: int) -> list[_Way]:
        """Open plain matrix products in the runtimes and precisions of ``ways``."""
        opened: list[_Way] = []
        known: set[tuple[str, str]] = set()
        for way in ways:
            precision = way.precision
            # torch opens no ONNX; its network is compared with the products of the other runtimes.
            if (way.backend, precision) in known or way.backend in ("torch", "tensorrt"):
                continue
            known.add((way.backend, precision))
            kinds: dict[str, FilePrecision] = {"fp16": "fp16", "int8": "int8"}
            group = _Group(
                way.backend,
                way.device,
                way.group.precision,
                products.product_model(kinds.get(precision, "fp32")),
            )
            size = (products.SIDE, products.SIDE)
            batch = products.BATCH_ON_CPU if way.device == "cpu" else products.BATCH_ON_GPU
            rest = len(self._not_measured), len(self._cannot_run)
            ceiling = self._way(group, size, batch, contexts, 0, is_ceiling=True)
            # What is missing of these is told by shares that are missing.
            del self._not_measured[rest[0] :], self._cannot_run[rest[1] :]
            if ceiling is not None and ceiling.precision == precision:
                ceiling.words = f"matrix products in {precision}, {way.backend}"
                opened.append(ceiling)
        return opened


class _Way:
    """Open contexts and a batch of frames: the runner of a contestant."""

    def __init__(
        self, group: _Group, backends: list[Backend], batch_size: int, frames: Pixels
    ) -> None:
        self.group, self.backends, self.batch_size = group, backends, batch_size
        self.frames, self.contexts = frames, len(backends)
        first = backends[0]
        self.backend, self.device, self.precision = first.name, first.device, first.precision
        self.parity: Parity | None = None
        """To the reference; None for that itself."""
        contexts = counted(self.contexts, "context")
        self.words = f"{first.name} {first.precision}, batch {batch_size}, {contexts}"
        self.contestant = Contestant(self, (first.name, first.device, first.precision), 1.0)

    def warm(self) -> None:
        """Run once, in which a runtime prepares for the shape, and once to see how long it takes.

        A call that takes long is not repeated.
        """
        begin = time.perf_counter()
        self.run(1)
        took = time.perf_counter() - begin
        if took < _LONG_CALL:
            took = self.run(1).seconds
        self.contestant.call_seconds = max(took, 1e-6)

    def run(self, calls: int) -> Lap:
        """Do ``calls`` calls on each context, all contexts at the same time."""
        errors: list[BaseException] = []

        def work(backend: Backend) -> None:
            try:
                for _ in range(calls):
                    backend.infer(self.frames)
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=work, args=(each,), daemon=True) for each in self.backends
        ]
        cpu, begin = time.process_time(), time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        if errors:
            raise errors[0]
        return Lap(calls * self.batch_size * self.contexts, max(seconds, 1e-9), cpu)


def groups_of(
    model: Model, checkpoint: Model | None, options: TranslateOptions
) -> tuple[list[_Group], list[LeftOut]]:
    """Return the runtimes and precisions to measure, and what cannot run here.

    What the options name, they limit. ``auto`` measures the CPU, as `open_backend` takes no GPU.
    """
    device = "cpu" if options.device == "auto" else options.device
    on_cpu = device == "cpu"
    groups: list[_Group] = []
    cannot_run: list[LeftOut] = []
    file_precision = model.card.precision

    def precisions(backend: str) -> list[str]:
        if options.precision != "auto":
            return [options.precision]
        if backend == "openvino" and file_precision == "fp32":
            return ["auto", "bf16"]
        if backend == "torch":
            return ["auto", "bf16"] if on_cpu else ["auto", "fp16", "bf16"]
        return ["auto"]

    for backend, package in _PACKAGE.items():
        if options.backend not in ("auto", backend):
            continue
        why = _why_not(backend, package, model, checkpoint, options)
        if why is not None:
            cannot_run.append(LeftOut(backend, why))
            continue
        runs = checkpoint or model if backend == "torch" else model
        groups += [_Group(backend, device, each, runs) for each in precisions(backend)]
    if file_precision == "fp32" and options.precision == "auto" and on_cpu:
        cannot_run.append(
            LeftOut("int8", "the file is in fp32; export --precision int8 writes one")
        )
    return groups, cannot_run


def _why_not(
    backend: str,
    package: str,
    model: Model,
    checkpoint: Model | None,
    options: TranslateOptions,
) -> str | None:
    """Return in few words why a runtime cannot run here, or None."""
    on_cpu = not options.device.startswith("cuda")
    if importlib.util.find_spec(package) is None:
        return "not installed"
    if model.engine is not None and backend != "tensorrt":
        return "runs no engine"
    if backend == "torch" and checkpoint is None:
        if model.card.precision == "int8":
            return "runs no int8"
        if on_cpu and options.backend == "auto":
            return "for checkpoints, or with --backend torch"
    if backend == "tensorrt" and on_cpu:
        return "needs an NVIDIA GPU (--device cuda)"
    if backend == "tensorrt" and options.backend != "tensorrt" and model.engine is None:
        return "builds an engine, which takes minutes (--backend tensorrt)"
    if backend == "openvino" and not on_cpu:
        return "runs on the CPU only"
    if not model.graph and model.engine is None and backend != "torch":
        return "runs ONNX, and this is a checkpoint"
    return None


def short_reason(error: BaseException, model: Model) -> str:
    """Return what an error says, without the name of the model and without what to do."""
    name = printable(model.card.path)
    text = first_line(error, 1000).removeprefix(f"{name}: ").partition(";")[0]
    return text if len(text) <= 90 else text[:89] + "…"


def _counts_of_contexts(threads: int) -> list[int]:
    return [count for count in _CONTEXTS if count <= threads]


def _translated(backend: Backend, count: int) -> Pixels:
    """Translate the frames that parity is measured on, one at a time, to take little memory."""
    card = backend.card
    side, batch = card.trained_size or 256, card.batch or 1
    frames = natural_frames(card.sizes.smallest_fit((side, side)), count)
    frames = as_pixel_type(frames, card.pixel_type)
    return np.concatenate([backend.infer(frames[at : at + batch]) for at in range(0, count, batch)])


def _frames(model: Model, size: Size, count: int) -> Pixels:
    """Return frames of ``size`` in the model's pixel type, repeated from small natural ones."""
    (picture,) = natural_frames((128, 128), 1)
    turns = -(-size[0] // 128), -(-size[1] // 128), 1
    frame = np.tile(picture, turns)[: size[0], : size[1]]
    return np.ascontiguousarray(
        as_pixel_type(np.repeat(frame[np.newaxis], count, axis=0), model.card.pixel_type)
    )


def _row(way: _Way, gflop: float | None, reached: dict[str, float]) -> Row:
    rate = way.contestant.rate
    gflops = None if gflop is None else gflop * rate
    most = reached.get(way.precision)
    return Row(
        backend=way.backend,
        device=way.device,
        precision=way.precision,
        batch_size=way.batch_size,
        contexts=way.contexts,
        rate=rate,
        cpu_seconds=way.contestant.cpu_seconds,
        laps=tuple(way.contestant.laps),
        parity=way.parity,
        gflops=gflops,
        share=gflops / most if gflops and most else None,
    )


def _free_memory() -> float:
    """Return the bytes of memory that are free; infinite where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float("inf")
