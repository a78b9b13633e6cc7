"""Probe the inputs and decide everything before the first frame.

A `JobPlan` names every input and output, the model and the backend that runs it, the sizes and the
schedule; ``--dry-run`` prints it (plan_text.py). What cannot work is refused here, before a file is
written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, OutputError
from ..frames import BatchShape, Geometry, Size
from ..frames import geometry as frame_geometry
from ..option_table import options_given
from ..options import TranslateOptions
from ..wording import Note, printable
from .fingerprint import Choices, Job, job_of, kind_of_output
from .journal import FOLDER
from .units import (
    LOT_BYTES,
    Failure,
    ImageUnit,
    Schedule,
    Unit,
    VideoUnit,
    lot_of,
    too_many_failures,
    without_frames,
)

if TYPE_CHECKING:
    from ..backends import Backend
    from ..media.formats import Entry
    from ..media.images.shards import ImageShard
    from ..media.video.plan import VideoPlan
    from ..models.model import Model, ModelCard
    from .inputs import InputTree
    from .record import DoneStretch

_MOST_CONVERTERS = 8
"""With more workers a conversion no longer limits: one does about 150 frames/s at 1280×720."""

_GPU_BATCH = 4
"""Frames per call on a GPU, where neither the user nor the model sets it."""

_SAMPLED_IMAGES = 32
"""Images whose headers are read for the plan: enough to know the sizes that occur."""


_MOST_CAUSES = 20
"""Failures that are told one by one where no input can be translated: a list may name a million."""


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


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """Everything that was decided about a job, as a value: it can be pickled and run elsewhere.

    Nothing in it is open. A job that reads standard input must run where it was planned.
    """

    inputs: tuple[Path, ...]
    output: Path
    model: Model
    options: TranslateOptions
    backend: BackendChoice
    schedule: Schedule
    entries: tuple[Entry, ...]
    """Every input that is translated, with its output."""
    others: tuple[Entry, ...]
    """Files that are copied along (``--copy-others``)."""
    videos: tuple[VideoPlan, ...]
    """How each video is read and written; a pipe and a pattern of images are videos, too."""
    shards: tuple[ImageShard, ...]
    """The images in groups."""
    skipped: int
    """Outputs that exist and stay as they are (``--skip-existing``)."""
    failures: tuple[Failure, ...]
    """Inputs that could not be planned and are left out (``--on-error skip``)."""
    notes: tuple[Note, ...]
    """Notes that are reported before the first frame."""
    sizes: tuple[Size, ...]
    """Every (height, width) that is known beforehand: those of all videos and of some images."""
    root: Path | None
    """The folder of all outputs: OUTPUT, or that of OUTPUT where it is one file; None for a
    pipe."""
    folder: Path | None
    """The job folder, with the journal and the stretches that are not joined yet; None where
    nothing is recorded: for a pipe and a preview. It exists once a run has begun."""
    jobs: tuple[Job, ...]
    """What the pixels depend on, one for each kind of output."""
    finished: tuple[Path, ...] = ()
    """Outputs that an earlier run of the same job has made and that need no work."""
    done: Mapping[Path, tuple[DoneStretch, ...]] = field(default_factory=dict)
    """Stretches that an earlier run has made, by the output that they belong to, ascending."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """The work in pieces, in the order in which they are done."""
        return (*map(VideoUnit, self.videos), *map(ImageUnit, self.shards))

    def open_backend(self, say: Callable[[str], None] = lambda sentence: None) -> Backend:
        """Open the chosen backend; the caller closes it. Raises BackendError, ModelError.

        ``say`` receives a sentence before work that takes minutes.
        """
        return self.backend.request.open(self.model, say)

    def geometry(self, size: Size) -> Geometry:
        """Return how a frame of ``size`` (height, width) goes through the network."""
        return geometry_from_options(self.model.card, self.options)(size)

    @property
    def frames(self) -> int | None:
        """Frames expected in all, or None where an input does not show its number."""
        counts = [unit.frames for unit in self.units]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def largest(self) -> Size | None:
        """The known size (height, width) that takes most memory on its way through the network."""
        return max(self.sizes, key=self.frame_bytes, default=None)

    @property
    def memory(self) -> int | None:
        """Bytes of frames that are in memory at once, at most: frames in flight × one frame.

        None where no size is known beforehand.
        """
        if self.largest is None:
            return None
        return self.schedule.frames_in_flight * self.frame_bytes(self.largest)

    def frame_bytes(self, size: Size) -> int:
        """Return the bytes of a frame of ``size`` (height, width) at its largest step."""
        return frame_bytes(self.geometry(size), self.model.card)


def frame_bytes(shape: Geometry, card: ModelCard) -> int:
    """Return the bytes of a frame at its largest step through the network."""
    samples = max(h * w for h, w in (shape.source, shape.content, shape.network)) * 3
    return samples * (1 if card.pixel_type == "uint8" else 2)


def plan_job(
    inputs: Sequence[Path],
    output: Path | str,
    *,
    model: Path,
    options: TranslateOptions,
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[JobPlan, Backend]:
    """Decide everything about translating ``inputs`` to ``output`` with the generator ``model``.

    The batch size and some notes depend on the open backend. It is returned beside the plan, and
    the caller closes it.

    An ``output`` that ends in a separator is a folder; a string keeps the separator, a Path does
    not. ``say`` receives a sentence before work that takes minutes: the export of a checkpoint, the
    building of an engine. Raises InputError, ModelError, BackendError, OutputError.
    """
    from ..opening import open_for_translation
    from .inputs import find_inputs, why_unread
    from .space import check_space

    # Cheap checks come first: a typing error need not wait until a model is loaded.
    _check_times(options)
    tree = find_inputs(
        inputs,
        output,
        copy_others=options.copy_others,
        format=options.format,
        container=options.container,
        part=options.part,
    )
    root = _root(tree)
    tree, skipped = _without_existing(tree, options)
    generator = open_for_translation(model, options, say=say)
    notes = [*generator.card.notes, *tree.notes]
    work = [entry for entry in tree.entries if entry.kind != "other"]
    videos: list[VideoPlan] = []
    failures: list[Failure] = []
    for entry in work:
        if entry.kind == "image":
            continue
        try:
            if entry.kind == "unread":
                raise InputError(why_unread(entry))
            videos.append(_plan_video(entry, generator.card, options))
        except (InputError, OutputError) as error:
            if options.on_error == "fail" or len(tree.entries) + skipped == 1:
                raise
            failures.append(Failure(printable(entry.source), error))
            most = options.max_failures
            if most is not None and len(failures) > most:
                raise type(error)(too_many_failures(len(failures), most, str(error))) from error
            without_frames(error)
    images = [entry for entry in work if entry.kind == "image"]
    shards = _plan_shards(images, generator.card, options)
    notes += [note for video in videos for note in video.notes]
    notes += [note for shard in shards for note in shard.notes]
    notes += _without_effect(options, {entry.kind for entry in work})
    notes += _fixed_size_notes(generator.card, options)
    sizes = [video.size for video in videos] + _some_sizes(images, options)
    if len(failures) == len(tree.entries) > 0 and not skipped:
        causes = "\n".join(f"  {failure.cause}" for failure in failures[:_MOST_CAUSES])
        more = len(failures) - _MOST_CAUSES
        causes += f"\n  and {more} more" if more > 0 else ""
        raise InputError(f"none of the {len(failures)} inputs can be translated:\n{causes}")
    others = tuple(entry for entry in tree.entries if entry.kind == "other")
    if not options.preview:
        notes += check_space(videos, images, others)
    backend, choice, schedule = _choose_backend(generator, options, sizes, say)
    plan = JobPlan(
        inputs=tuple(inputs),
        output=Path(output),
        model=generator,
        options=options,
        backend=choice,
        schedule=schedule,
        entries=tuple(work),
        others=others,
        videos=tuple(videos),
        shards=tuple(shards),
        skipped=skipped,
        failures=tuple(failures),
        notes=(*_size_notes(generator.card, options, sizes), *backend.notes, *notes),
        sizes=tuple(dict.fromkeys(sizes)),
        root=root,
        folder=None if root is None or options.preview else root / FOLDER,
        jobs=tuple(
            job_of(kind, generator.card, options, _choices(choice, schedule))
            for kind in dict.fromkeys(kind_of_output(entry.kind) for entry in tree.entries)
        ),
    )
    return plan, backend


def _root(tree: InputTree) -> Path | None:
    """Return the folder of all outputs; None for a pipe, and for a part without an output."""
    from ..media.formats import PIPE

    if tree.root is not None or not tree.entries:
        return tree.root
    (entry,) = tree.entries
    return None if entry.output == PIPE else entry.output.parent


def _choices(backend: BackendChoice, schedule: Schedule) -> Choices:
    return Choices(
        backend=backend.name,
        device=backend.device.partition(":")[0],
        precision=backend.precision,
        batch_size=schedule.batch_size,
        contexts=schedule.contexts,
    )


def geometry_from_options(card: ModelCard, options: TranslateOptions) -> partial[Geometry]:
    """Return the function from a frame's size to its way through the network."""
    return partial(frame_geometry, requirements=card.sizes, size=options.size, fit=options.fit)


def _without_existing(tree: InputTree, options: TranslateOptions) -> tuple[InputTree, int]:
    """Return ``tree`` without the outputs that exist (``--skip-existing``), and their number.

    A preview writes none of the outputs. Raises OutputError where one exists and neither
    ``--skip-existing`` nor ``--overwrite`` is given.
    """
    from ..media.formats import PIPE

    if options.overwrite or options.preview:
        return tree, 0
    existing = [
        entry for entry in tree.entries if entry.output != PIPE and os.path.lexists(entry.output)
    ]
    if existing and not options.skip_existing:
        first = existing[0].output
        among = f" and {len(existing) - 1} more: exist" if len(existing) > 1 else ": exists"
        raise OutputError(
            f"{printable(first)}{among} already; -y overwrites, -n does only the rest"
        )
    skipped = set(existing)
    rest = tuple(entry for entry in tree.entries if entry not in skipped)
    return replace(tree, entries=rest), len(existing)


def _plan_video(entry: Entry, card: ModelCard, options: TranslateOptions) -> VideoPlan:
    """Plan one video. Raises InputError, OutputError."""
    from ..media.video.plan import plan_video

    shape = geometry_from_options(card, options)

    def output_size(size: Size) -> Size:
        return shape(size).content if options.keep_size else size

    return plan_video(
        entry.source, entry.output, options, pixel_type=card.pixel_type, output_size=output_size
    )


def _plan_shards(
    images: Sequence[Entry], card: ModelCard, options: TranslateOptions
) -> tuple[ImageShard, ...]:
    if not images:
        return ()
    from ..media.images.shards import plan_images

    return plan_images(images, options, pixel_type=card.pixel_type)


def _some_sizes(images: Sequence[Entry], options: TranslateOptions) -> list[Size]:
    """Return the sizes (height, width) in the headers of some images, evenly spread."""
    if not images:
        return []
    from ..media.images.headers import read_header

    sizes = []
    step = -(-len(images) // _SAMPLED_IMAGES)
    for entry in images[::step]:
        # An image that cannot be read is reported when it is translated.
        with contextlib.suppress(InputError, OSError), entry.source.open("rb") as file:
            header = read_header(file, printable(entry.source), max_pixels=options.max_pixels)
            sizes.append(header.displayed_size)
    return sizes


def _check_times(options: TranslateOptions) -> None:
    """Refuse times that leave no frame between them. Raises InputError."""
    if options.to is not None and options.to <= (options.ss or 0.0):
        raise InputError(
            f"--to {options.to:g} s is not after the start, {options.ss or 0.0:g} s, so no frame "
            "lies between them; give a later --to (both count from the first frame)"
        )


def _without_effect(options: TranslateOptions, kinds: set[str]) -> list[Note]:
    """Return notes on options that were given and have no effect on inputs of these kinds."""
    set_options = options_given(options)
    notes = []
    for what, kind, present in (
        ("video", "video", bool(kinds - {"image", "unread"})),
        ("image", "image", "image" in kinds),
        ("pattern of images", "pattern", "pattern" in kinds),
    ):
        useless = [each.flag for each in set_options if each.applies_to == (kind,)]
        if kinds and useless and not present:
            text = f"no effect, as no {what} is among the inputs"
            notes.append(Note(", ".join(useless), text))
    return notes


def _fixed_size_notes(card: ModelCard, options: TranslateOptions) -> list[Note]:
    """Return a note on a ``--size`` that is not the only size that the model takes."""
    fixed = card.sizes.fixed
    if fixed is None or options.size in ("native", fixed, min(fixed)):
        return []
    text = f"no effect, as {printable(card.path.name)} takes {fixed[1]}×{fixed[0]} only"
    return [Note("--size", text)]


def _choose_backend(
    model: Model, options: TranslateOptions, sizes: Sequence[Size], say: Callable[[str], None]
) -> tuple[Backend, BackendChoice, Schedule]:
    """Open the backend for ``options``, and set the workers and the batch size of the run."""
    from ..backends import default_contexts
    from ..machine import cpu_threads

    cores = cpu_threads()
    threads = options.threads or cores
    contexts = default_contexts("cpu", threads)
    shape = geometry_from_options(model.card, options)
    gpu_batch = options.batch_size or model.card.batch or _GPU_BATCH
    networks = dict.fromkeys(shape(size).network for size in sizes)
    request = BackendRequest(
        backend=options.backend,
        device=options.device,
        precision=options.precision,
        threads=threads,
        contexts=contexts,
        shapes=tuple((gpu_batch, *network) for network in networks),
        cache_dir=options.cache_dir,
        trust_engine=options.trust_engine,
    )
    backend = request.open(model, say)
    choice = BackendChoice(
        name=backend.name,
        device=backend.device,
        precision=backend.precision,
        request=replace(request, backend=backend.name, device=backend.device),
    )
    if backend.device != "cpu":
        contexts = default_contexts(backend.device, threads)
    # On a CPU the frames of a batch are computed one after the other: a batch only costs memory.
    batch_size = options.batch_size or (1 if backend.device == "cpu" else _GPU_BATCH)
    if model.card.batch is not None:
        batch_size = options.batch_size or model.card.batch
    largest = max((frame_bytes(shape(size), model.card) for size in sizes), default=LOT_BYTES)
    schedule = Schedule(
        batch_size=batch_size,
        contexts=contexts,
        converters=min(cores, _MOST_CONVERTERS),
        lot=lot_of(largest) if batch_size == 1 else 1,
    )
    return backend, choice, schedule


def _size_notes(card: ModelCard, options: TranslateOptions, sizes: Sequence[Size]) -> list[Note]:
    """Return a note on the sizes that the network receives, and the one it was trained at."""
    if not sizes:
        return []
    shape = geometry_from_options(card, options)
    words = list(dict.fromkeys(_size_words(shape(size)) for size in sizes))
    trained = f"trained at {card.trained_size}, " if card.trained_size else ""
    more = f" and {len(words) - 3} other sizes" if len(words) > 3 else ""
    return [Note(Path(card.path.name), f"{trained}its input is {', '.join(words[:3])}{more}")]


def _size_words(shape: Geometry) -> str:
    """Return the network's size in words, with the steps from the frame's size where it differs."""
    source, content, network = (f"{w}×{h}" for h, w in (shape.source, shape.content, shape.network))
    if shape.content == shape.source:
        return network
    return f"{source} resized to {content}" + (f" in {network}" if content != network else "")
