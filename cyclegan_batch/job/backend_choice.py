"""Choose the backend of a job and its schedule: the batch size, and how much works side by side.

What is ``auto`` becomes what it was in an earlier run of the same job, else what ``bench`` measured
for this model and size on this machine (`calibration`), else a default. The backend and the
precision are never taken from a measurement: they follow from the file and from what is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..errors import BackendError, OutputError
from ..frames import BatchShape, Geometry, Size
from ..frames import geometry as frame_geometry
from ..machine import cpu_threads
from ..options import BackendName, TranslateOptions, gpu_numbers
from .calibration import kept
from .fingerprint import Job
from .schedule import LOT_BYTES, Schedule, lot_of

if TYPE_CHECKING:
    from ..backends import Backend, ExpectedBackend
    from ..models.model import Model, ModelCard

MOST_CONVERTERS = 8
"""With more workers a conversion no longer limits: one does about 150 frames/s at 1280×720."""

_GPU_BATCH_PIXELS = 1 << 21
"""Pixels in a batch on a GPU, unless it is set or measured. An estimate: at 256×256 a convolution
of 32 frames fills the multiprocessors of an H100, and at 1920×1080 one of a single frame does."""

_MOST_GPU_BATCH = 32
"""A unit has about 250 frames, and its last batch is filled up: with this many frames in a batch
6 % of what is computed is in vain on average."""

_USUAL_SIZE = (720, 1280)
"""The height and width that are assumed where no input shows its own."""

_MOST_CONTEXTS = 16
"""The most instances of the network that are taken from a journal."""


@dataclass(frozen=True, kw_only=True)
class BackendRequest:
    """What `backends.open_backend` is called with."""

    backend: str
    device: str
    precision: str
    threads: int
    """CPU threads for the network, of all contexts together."""
    contexts: int
    shapes: tuple[BatchShape, ...]
    """The batches (N, H, W) that an engine is built for."""
    cache_dir: Path | None
    trust_engine: bool

    def open(self, model: Model, say: Callable[[str], None]) -> Backend:
        """Open the backend; the caller closes it. Raises BackendError, ModelError."""
        from ..backends import open_backend

        return open_backend(
            model,
            backend=self.backend,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            contexts=self.contexts,
            shapes=self.shapes,
            cache_dir=self.cache_dir,
            trust_engine=self.trust_engine,
            say=say,
        )


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """The backend that a plan chose, and how it is opened again."""

    name: str
    device: str
    precision: str
    """The one in which it computes; one of `backends.PRECISIONS`."""
    request: BackendRequest
    """Opens the same backend on the same device, where the first request may have had ``auto``."""
    measured: tuple[str, ...] = ()
    """Which of ``batch_size``, ``contexts`` and ``workers`` of the schedule ``bench`` measured."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a job has to translate, as far as it is known beforehand."""

    sizes: tuple[Size, ...]
    """Heights and widths of the frames."""
    pieces: int
    """Units that can be done at the same time."""
    row: int | None
    """About how many frames follow each other at most in one unit and one size, so that they can
    share a batch; None where the inputs do not show it."""


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """How many frames a call takes, and how many contexts and processes work side by side."""

    batch_size: int
    engine_batch: int
    """The largest batch that an engine is built for. The build takes minutes, and the engine is
    kept: so this does not depend on how many frames the job has."""
    contexts: int
    workers: int
    measured: tuple[str, ...]
    """The names of those that are from a measurement."""


@dataclass(frozen=True)
class _Chooser:
    """What the numbers of a job depend on, besides its backend."""

    model: Model
    options: TranslateOptions
    """With each ``auto`` of the backend as it was in the recorded job."""
    networks: tuple[Size, ...]
    """The sizes that the network sees, as far as they are known."""
    recorded: Job | None
    work: Workload
    is_batch_open: bool
    """Whether neither the user nor the model sets the batch size."""

    @property
    def threads(self) -> int:
        return self.options.threads or cpu_threads()

    def numbers(self, expected: ExpectedBackend | None) -> _Numbers:
        """Return the numbers for a backend; without one, those that need no measurement."""
        from ..backends import default_contexts

        options, found = self.options, None
        device = "cpu" if expected is None else expected.device
        if expected is not None and self.networks:
            # A batch that was measured at one size would need more memory at a larger one.
            found = kept(
                self.model.card,
                max(self.networks, key=_area),
                options.cache_dir,
                backend=expected.name,
                device=expected.device,
                precision=expected.precision,
            )
        measured = []
        usual = self._default_batch(device) if found is None else found.batch_size
        batch_size = options.batch_size or self.model.card.batch
        if batch_size is None:
            # A batch is filled up where no more frames can share it.
            batch_size = min(usual, self.work.row or usual)
            measured += ["batch_size"] * (found is not None and batch_size == usual)
        contexts = default_contexts(device, self.threads)
        # A number of contexts is right for the number of threads that it was chosen for.
        if options.threads is None:
            if self.recorded is not None and 0 < self.recorded.contexts <= _MOST_CONTEXTS:
                contexts = self.recorded.contexts
            elif found is not None:
                contexts = found.contexts
                measured.append("contexts")
        workers = options.workers or 1
        if options.gpus is not None:
            workers = len(gpu_numbers(options.gpus))
        elif found is not None and self._may_take_workers():
            workers = max(1, min(found.workers, self.work.pieces))
            measured += ["workers"] * (workers == found.workers)
        return _Numbers(
            batch_size=batch_size,
            engine_batch=max(batch_size, usual) if self.is_batch_open else batch_size,
            contexts=contexts,
            workers=workers,
            measured=tuple(measured),
        )

    def _may_take_workers(self) -> bool:
        """Return whether a job that leaves the number of workers open may have several."""
        options = self.options
        return (options.workers, options.threads, options.preview) == (None, None, None) and (
            sys.platform != "win32" and options.runner == "local"
        )

    def _default_batch(self, device: str) -> int:
        # On a CPU the frames of a batch are computed one after the other: a batch only costs
        # memory. WebGPU limits the size of a tensor, often to 2 GiB and less.
        if device in ("cpu", "webgpu"):
            return 1
        most = _MOST_GPU_BATCH
        if self.model.engine is not None:
            most = min(most, self.model.engine.build.profile.max[0])
        pixels = _area(max(self.networks, key=_area, default=_USUAL_SIZE))
        return max(1, min(most, _GPU_BATCH_PIXELS // pixels))

    def request(self, numbers: _Numbers, device: str) -> BackendRequest:
        """Return what opens the backend on ``device`` for these numbers."""
        from ..backends import default_contexts

        # On a GPU the contexts are no concern of the opening. Where it ends on the CPU after all,
        # these are the right ones.
        contexts = default_contexts("cpu", self.threads)
        return BackendRequest(
            backend=self.options.backend,
            device=_device(self.options),
            precision=self.options.precision,
            threads=self.threads,
            contexts=numbers.contexts if device == "cpu" else contexts,
            shapes=tuple((numbers.engine_batch, *network) for network in self.networks),
            cache_dir=self.options.cache_dir,
            trust_engine=self.options.trust_engine,
        )


def choose_backend(
    model: Model,
    options: TranslateOptions,
    work: Workload,
    recorded: Job | None,
    say: Callable[[str], None],
) -> tuple[Backend, BackendChoice, Schedule]:
    """Open the backend for ``options``, and decide the schedule of the run.

    What is ``auto`` becomes what it was in the ``recorded`` job. ``say`` receives a sentence before
    work that takes minutes. Raises BackendError, ModelError, OutputError.
    """
    from ..backends import ExpectedBackend, expected_backend

    asked = options if recorded is None else _with_recorded(options, recorded)
    shape = geometry_from_options(model.card, options)
    networks = tuple(dict.fromkeys(shape(size).network for size in work.sizes))
    is_open = options.batch_size is None and model.card.batch is None
    chooser = _Chooser(model, asked, networks, recorded, work, is_open)
    try:
        # Some runtimes must know the contexts, or the batch, when they open a model. So the numbers
        # are chosen for the backend that will be opened as far as can be told.
        expected = expected_backend(
            model, backend=asked.backend, device=_device(asked), precision=asked.precision
        )
        numbers = chooser.numbers(expected)
        request = chooser.request(numbers, "cpu" if expected is None else expected.device)
        backend = request.open(model, say)
        opened = ExpectedBackend(backend.name, backend.device, backend.precision)
        if opened != expected:
            # An installed runtime does not work, or computes in another precision.
            numbers = chooser.numbers(opened)
            again = chooser.request(numbers, opened.device)
            if again.contexts != request.contexts:
                backend.close()
                backend, request = again.open(model, say), again
    except BackendError as error:
        if asked is options:
            raise
        raise type(error)(
            f"{error}; what is there was begun with {asked.backend} on {asked.device}: go on where "
            "that runs, or begin anew with --no-resume -y"
        ) from error
    if recorded is not None and recorded.values.get("precision") != backend.precision:
        backend.close()
        raise OutputError(
            f"the outputs were begun in {recorded.values.get('precision')}, and {backend.name} "
            f"computes in {backend.precision} here; begin anew with --no-resume -y"
        )
    choice = BackendChoice(
        name=backend.name,
        device=backend.device,
        precision=backend.precision,
        request=replace(request, backend=backend.name, device=backend.device),
        measured=numbers.measured,
    )
    largest = max((frame_bytes(shape(size), model.card) for size in work.sizes), default=LOT_BYTES)
    return backend, choice, _schedule(numbers, largest)


def as_recorded(
    model: Model, recorded: Job, options: TranslateOptions
) -> tuple[BackendChoice, Schedule]:
    """Return the backend and the schedule of a job of which nothing is left to do."""
    asked = _with_recorded(options, recorded)
    nothing = Workload(sizes=(), pieces=0, row=None)
    chooser = _Chooser(model, asked, (), recorded, nothing, is_batch_open=False)
    numbers = replace(chooser.numbers(None), workers=1)
    choice = BackendChoice(
        name=asked.backend,
        device=asked.device,
        precision=str(recorded.values["precision"]),
        request=chooser.request(numbers, "cpu"),
    )
    return choice, _schedule(numbers)


def _with_recorded(options: TranslateOptions, recorded: Job) -> TranslateOptions:
    """Return ``options`` with each ``auto`` of the backend as it was in the recorded job."""
    backend, device, batch_size = options.backend, options.device, options.batch_size
    return replace(
        options,
        backend=cast(BackendName, recorded.values["backend"]) if backend == "auto" else backend,
        # --gpus names the devices itself, and contradicts another.
        device=str(recorded.values["device"]) if device == "auto" and not options.gpus else device,
        batch_size=batch_size or cast(int, recorded.values["batch_size"]),
    )


def _device(options: TranslateOptions) -> str:
    """Return the device of the first process."""
    return options.device if options.gpus is None else f"cuda:{gpu_numbers(options.gpus)[0]}"


def _schedule(numbers: _Numbers, largest: int = LOT_BYTES) -> Schedule:
    return Schedule(
        batch_size=numbers.batch_size,
        contexts=numbers.contexts,
        converters=min(cpu_threads(), MOST_CONVERTERS),
        lot=lot_of(largest) if numbers.batch_size == 1 else 1,
        workers=numbers.workers,
    )


def geometry_from_options(card: ModelCard, options: TranslateOptions) -> partial[Geometry]:
    """Return the function from a frame's size to its way through the network."""
    return partial(frame_geometry, requirements=card.sizes, size=options.size, fit=options.fit)


def frame_bytes(shape: Geometry, card: ModelCard) -> int:
    """Return the bytes of a frame at its largest step through the network."""
    samples = max(h * w for h, w in (shape.source, shape.content, shape.network)) * 3
    return samples * (1 if card.pixel_type == "uint8" else 2)


def _area(size: Size) -> int:
    return size[0] * size[1]
