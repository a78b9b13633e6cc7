"""Choose the backend of a job and its schedule: the batch size, and how much works side by side.

What is ``auto`` becomes what it was in an earlier run of the same job, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..errors import BackendError, OutputError
from ..frames import BatchShape, Geometry, Size
from ..frames import geometry as frame_geometry
from ..machine import cpu_threads
from ..options import BackendName, TranslateOptions, gpu_numbers
from .fingerprint import Job
from .units import LOT_BYTES, Schedule, lot_of

if TYPE_CHECKING:
    from ..backends import Backend
    from ..models.model import Model, ModelCard

_MOST_CONVERTERS = 8
"""With more workers a conversion no longer limits: one does about 150 frames/s at 1280×720."""

_GPU_BATCH = 4
"""Frames per call on a GPU, where neither the user nor the model sets it."""

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


def choose_backend(
    model: Model,
    options: TranslateOptions,
    sizes: Sequence[Size],
    recorded: Job | None,
    say: Callable[[str], None],
) -> tuple[Backend, BackendChoice, Schedule]:
    """Open the backend for ``options``, and set the workers and the batch size of the run.

    What is ``auto`` there becomes what it was in the ``recorded`` job.
    """
    from ..backends import default_contexts

    asked = options if recorded is None else _with_recorded(options, recorded)
    request = _backend_request(model.card, asked, sizes)
    try:
        backend = request.open(model, say)
    except BackendError as error:
        if asked is options:
            raise
        raise type(error)(
            f"{error}; what is there was begun with {asked.backend} on {asked.device}: go on where "
            "that runs, or begin anew with --no-resume -y"
        ) from error
    choice = BackendChoice(
        name=backend.name,
        device=backend.device,
        precision=backend.precision,
        request=replace(request, backend=backend.name, device=backend.device),
    )
    contexts = request.contexts
    if backend.device != "cpu":
        contexts = default_contexts(backend.device, request.threads)
    if recorded is not None and 0 < recorded.contexts <= _MOST_CONTEXTS and not options.threads:
        contexts = recorded.contexts
    # On a CPU the frames of a batch are computed one after the other: a batch only costs memory.
    batch_size = asked.batch_size or (1 if backend.device == "cpu" else _GPU_BATCH)
    if model.card.batch is not None:
        batch_size = asked.batch_size or model.card.batch
    if recorded is not None and recorded.values.get("precision") != backend.precision:
        backend.close()
        raise OutputError(
            f"the outputs were begun in {recorded.values.get('precision')}, and {backend.name} "
            f"computes in {backend.precision} here; begin anew with --no-resume -y"
        )
    shape = geometry_from_options(model.card, options)
    largest = max((frame_bytes(shape(size), model.card) for size in sizes), default=LOT_BYTES)
    return backend, choice, _schedule(batch_size, contexts, largest)


def as_recorded(recorded: Job, options: TranslateOptions) -> tuple[BackendChoice, Schedule]:
    """Return the backend and the schedule of a job of which nothing is left to do."""
    asked = _with_recorded(options, recorded)
    choice = BackendChoice(
        name=asked.backend,
        device=asked.device,
        precision=str(recorded.values["precision"]),
        request=_backend_request(None, asked, ()),
    )
    contexts = min(max(1, recorded.contexts), _MOST_CONTEXTS)
    return choice, _schedule(asked.batch_size or 1, contexts)


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


def _schedule(batch_size: int, contexts: int, largest: int = LOT_BYTES) -> Schedule:
    return Schedule(
        batch_size=batch_size,
        contexts=contexts,
        converters=min(cpu_threads(), _MOST_CONVERTERS),
        lot=lot_of(largest) if batch_size == 1 else 1,
    )


def _backend_request(
    card: ModelCard | None, options: TranslateOptions, sizes: Sequence[Size]
) -> BackendRequest:
    """Return what opens the backend of ``options``; without a card, for no frames."""
    threads = options.threads or cpu_threads()
    networks: dict[Size, None] = {}
    gpu_batch = options.batch_size or _GPU_BATCH
    contexts = 1
    if card is not None:
        from ..backends import default_contexts

        contexts = default_contexts("cpu", threads)
        gpu_batch = options.batch_size or card.batch or _GPU_BATCH
        shape = geometry_from_options(card, options)
        networks = dict.fromkeys(shape(size).network for size in sizes)
    return BackendRequest(
        backend=options.backend,
        device=options.device if options.gpus is None else f"cuda:{gpu_numbers(options.gpus)[0]}",
        precision=options.precision,
        threads=threads,
        contexts=contexts,
        shapes=tuple((gpu_batch, *network) for network in networks),
        cache_dir=options.cache_dir,
        trust_engine=options.trust_engine,
    )


def geometry_from_options(card: ModelCard, options: TranslateOptions) -> partial[Geometry]:
    """Return the function from a frame's size to its way through the network."""
    return partial(frame_geometry, requirements=card.sizes, size=options.size, fit=options.fit)


def frame_bytes(shape: Geometry, card: ModelCard) -> int:
    """Return the bytes of a frame at its largest step through the network."""
    samples = max(h * w for h, w in (shape.source, shape.content, shape.network)) * 3
    return samples * (1 if card.pixel_type == "uint8" else 2)
