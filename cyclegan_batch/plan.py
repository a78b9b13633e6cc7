"""Probe and decide everything before the first frame.

A `JobPlan` names every input and output, the model and the backend that runs it, the sizes and the
schedule; ``--dry-run`` prints it. What cannot work is refused here, before a file is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, OutputError
from .files import printable
from .frames import Geometry, Size
from .frames import geometry as frame_geometry
from .options import TranslateOptions
from .pipeline import Failure, Schedule, Unit

if TYPE_CHECKING:
    from .backends import Backend
    from .inputs import Entry, InputTree
    from .model import Model, ModelCard

_MOST_CONVERTERS = 8
"""Beyond this a conversion no longer limits: one worker does about 150 frames/s at 1280×720."""


@dataclass(frozen=True)
class JobPlan:
    """Everything that was decided about a job."""

    inputs: tuple[Path, ...]
    output: Path
    model: Model
    options: TranslateOptions
    backend: Backend
    """Open and checked; the caller closes it."""
    schedule: Schedule
    entries: tuple[Entry, ...]
    """What is translated: every input with its output."""
    units: tuple[Unit, ...]
    """The same as pieces of work, in the order in which they are done."""
    others: tuple[Entry, ...]
    """Files that are copied along (``--copy-others``)."""
    skipped: int
    """Outputs that exist and stay as they are (``--skip-existing``)."""
    failures: tuple[Failure, ...]
    """Inputs that could not even be planned, where the plan goes on without them."""
    notes: tuple[str, ...]
    """What the user is told once, before the first frame."""
    skip_errors: bool
    largest: Size | None
    """Height and width of the largest picture that is known beforehand."""

    def geometry(self, size: Size) -> Geometry:
        """Return how a picture of ``size`` (height, width) goes through the network."""
        return geometry_from_options(self.model.card, self.options)(size)

    @property
    def frames(self) -> int | None:
        """Pictures expected in all, or None where an input does not tell."""
        counts = [unit.frames for unit in self.units]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def memory(self) -> int | None:
        """Bytes of pictures that are in memory at once, at most: frames in flight × one frame."""
        if self.largest is None:
            return None
        shape = self.geometry(self.largest)
        samples = max(h * w for h, w in (shape.source, shape.content, shape.network)) * 3
        depth = 1 if self.model.card.pixel_type == "uint8" else 2
        return self.schedule.frames_in_flight * samples * depth

    def describe(self) -> dict[str, Any]:
        """Return the plan in words and numbers, as ``--dry-run`` and the report show it."""
        card = self.model.card
        options = asdict(self.options)
        defaults = asdict(TranslateOptions())
        return {
            "inputs": [str(path) for path in self.inputs],
            "output": str(self.output),
            "model": {"path": str(card.path), "sha256": card.digest},
            "backend": self.backend.name,
            "device": self.backend.device,
            "precision": self.backend.precision,
            "batch_size": self.schedule.batch_size,
            "contexts": self.schedule.contexts,
            "converters": self.schedule.converters,
            "units": len(self.units),
            "frames": self.frames,
            "copied": len(self.others),
            "skipped": self.skipped,
            "frames_in_flight": self.schedule.frames_in_flight,
            "memory_bytes": self.memory,
            "options": {key: value for key, value in options.items() if value != defaults[key]},
        }


def plan_job(
    inputs: Sequence[Path], output: Path | str, *, model: Path, options: TranslateOptions
) -> JobPlan:
    """Decide everything about translating ``inputs`` to ``output`` with the generator ``model``.

    An ``output`` that ends in a separator is a folder; a Path keeps no such end, a string does.
    Raises InputError, ModelError, BackendError, OutputError.
    """
    from .inputs import find_inputs
    from .model import open_model

    # Cheap refusals first: a typing error should not wait for a model to load.
    tree = find_inputs(inputs, output, copy_others=options.copy_others, format=options.format)
    generator = open_model(model, model_io=options.model_io)
    notes = [*generator.card.notes, *tree.notes]
    tree, skipped = _without_existing(tree, options)
    work = [entry for entry in tree.entries if entry.kind != "other"]
    skip_errors = options.on_error == "skip" or (
        options.on_error is None and len(work) + skipped > 1
    )

    units: list[Unit] = []
    failures: list[Failure] = []
    sizes: list[Size] = []
    for entry in work:
        if entry.kind == "image":
            continue
        try:
            planned = _video_unit(entry, generator.card, options)
        except (InputError, OutputError) as error:
            if not skip_errors:
                raise
            failures.append(Failure(printable(entry.source), str(error)))
        else:
            units.append(planned.unit)
            notes += planned.notes
            sizes += [planned.size]
    images = [entry for entry in work if entry.kind == "image"]
    if images:
        from .media.images import ImageSink, ImageSource, plan_images

        for shard in plan_images(images, options, pixel_type=generator.card.pixel_type):
            source, sink = partial(ImageSource, shard), partial(ImageSink, shard)
            units.append(Unit(shard.name, source, sink, frames=len(shard.entries)))
            notes += shard.notes
    if work and not units and failures:
        raise InputError(
            "\n".join(
                ["none of the inputs can be translated:", *(failure.cause for failure in failures)]
            )
        )
    backend, schedule = _open_backend(generator, options)
    return JobPlan(
        inputs=tuple(inputs),
        output=Path(output),
        model=generator,
        options=options,
        backend=backend,
        schedule=schedule,
        entries=tuple(work),
        units=tuple(units),
        others=tuple(entry for entry in tree.entries if entry.kind == "other"),
        skipped=skipped,
        failures=tuple(failures),
        notes=tuple(
            dict.fromkeys([*_sight(generator.card, options, sizes), *backend.notes, *notes])
        ),
        skip_errors=skip_errors,
        largest=max(sizes, key=lambda size: size[0] * size[1], default=None),
    )


def geometry_from_options(card: ModelCard, options: TranslateOptions) -> partial[Geometry]:
    """Return the function from a picture's size to its way through the network."""
    return partial(frame_geometry, requirements=card.sizes, size=options.size, fit=options.fit)


@dataclass(frozen=True)
class _Planned:
    """A unit, and what was found out about it."""

    unit: Unit
    size: Size
    notes: tuple[str, ...]


def _without_existing(tree: InputTree, options: TranslateOptions) -> tuple[InputTree, int]:
    """Apply ``--overwrite`` and ``--skip-existing``; a preview writes none of the outputs.

    Raises OutputError where something exists and neither is given.
    """
    from .inputs import PIPE

    if options.overwrite or options.preview:
        return tree, 0
    existing = [
        entry for entry in tree.entries if entry.output != PIPE and os.path.lexists(entry.output)
    ]
    if existing and not options.skip_existing:
        first = existing[0].output
        among = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise OutputError(
            f"{first}{among}: exists already, and nothing is overwritten unasked; "
            "-y overwrites, -n leaves what exists and does the rest"
        )
    left = set(existing)
    kept = tuple(entry for entry in tree.entries if entry not in left)
    return replace(tree, entries=kept), len(existing)


def _video_unit(entry: Entry, card: ModelCard, options: TranslateOptions) -> _Planned:
    """Plan one video as one unit (a pipe and a pattern of images are videos too)."""
    from .media.video import VideoSink, VideoSource, plan_video

    shape = geometry_from_options(card, options)

    def output_size(size: Size) -> Size:
        return shape(size).content if options.keep_size else size

    plan = plan_video(
        entry.source,
        entry.output,
        options,
        pixel_type=card.pixel_type,
        output_size=output_size,
    )
    unit = Unit(
        plan.name, partial(VideoSource, plan), partial(VideoSink, plan), frames=plan.frames_expected
    )
    return _Planned(unit, plan.size, plan.notes)


def _open_backend(model: Model, options: TranslateOptions) -> tuple[Backend, Schedule]:
    """Open the backend that the options ask for, and lay out the run around it."""
    from .backends import cpu_threads, default_contexts, open_backend

    cores = cpu_threads()
    threads = options.threads or cores
    contexts = default_contexts("cpu", threads)
    backend = open_backend(
        model,
        backend=options.backend,
        device=options.device,
        precision=options.precision,
        threads=threads,
        contexts=contexts,
    )
    if backend.device != "cpu":
        contexts = default_contexts(backend.device, threads)
    # On a CPU a batch gains nothing (its frames are computed one after the other) and costs memory.
    batch_size = options.batch_size or (1 if backend.device == "cpu" else 4)
    if model.card.batch is not None:
        batch_size = options.batch_size or model.card.batch
    return backend, Schedule(
        batch_size=batch_size, contexts=contexts, converters=min(cores, _MOST_CONVERTERS)
    )


def _sight(card: ModelCard, options: TranslateOptions, sizes: Sequence[Size]) -> list[str]:
    """Say what the network sees against what it was trained on."""
    if not sizes:
        return []
    shape = geometry_from_options(card, options)
    seen = list(dict.fromkeys(_way(shape(size)) for size in sizes))
    trained = f"trained at {card.trained_size}, " if card.trained_size else ""
    more = f" and {len(seen) - 3} other sizes" if len(seen) > 3 else ""
    return [f"{printable(Path(card.path.name))}: {trained}sees {', '.join(seen[:3])}{more}"]


def _way(shape: Geometry) -> str:
    """Return the network's size in words, and how a picture comes to it where that shows."""
    source, content, network = (f"{w}×{h}" for h, w in (shape.source, shape.content, shape.network))
    if shape.content == shape.source:
        return network
    return f"{source} resized to {content}" + (f" in {network}" if content != network else "")
