"""Probe the inputs and decide everything before the first frame.

A `JobPlan` names every input and output, the model and the backend that runs it, the sizes and the
schedule; ``--dry-run`` prints it (plan_text.py). What cannot work is refused here, before a file is
written.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, OutputError
from ..files import output_error
from ..frames import Geometry, Size
from ..option_table import options_given
from ..options import TranslateOptions
from ..remote import RemotePath, as_path, forget, is_remote
from ..wording import Note, printable
from .backend_choice import (
    BackendChoice,
    Workload,
    as_recorded,
    choose_backend,
    frame_bytes,
    geometry_from_options,
)
from .comparison import ComparisonUnit, ImageComparisonUnit, plan_comparisons
from .fingerprint import Choices, Job, job_of, kind_of_output
from .job_folder import FOLDER
from .record import DoneStretch
from .runners import check_workers
from .schedule import Schedule
from .standing import Standing, read_record, same_jobs, standing, stretches_done
from .units import (
    Failure,
    ImageUnit,
    TarUnit,
    Unit,
    VideoUnit,
    too_many_failures,
    without_frames,
)

if TYPE_CHECKING:
    from ..backends import Backend
    from ..media.formats import Entry
    from ..media.images.shards import ImageShard
    from ..media.tars.plan import TarPlan
    from ..media.video.plan import VideoPlan
    from ..models.model import Model, ModelCard
    from .inputs import InputTree

_SAMPLED_IMAGES = 32
"""Images whose headers are read for the plan: enough to know the sizes that occur."""

_SAMPLED_TARS = 8
"""Tars of which the first images are among these."""

_MOST_CAUSES = 20
"""Failures that are told one by one where no input can be translated: a list may name a million."""


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
    tars: tuple[TarPlan, ...]
    shards: tuple[ImageShard, ...]
    """The images in groups."""
    left: tuple[Path, ...]
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
    everything: tuple[Entry, ...] = ()
    """All inputs in order: `entries`, `others`, and those whose output is up to date or stays."""
    finished: tuple[Path, ...] = ()
    """Outputs that an earlier run of the same job has made and that need no work."""
    damage: tuple[Failure, ...] = ()
    """What is missing from these or damaged in them."""
    outdated: Mapping[Path, str] = field(default_factory=dict)
    """Outputs of earlier runs that are made again (``-y``), and what differs."""
    redone: frozenset[Path] = frozenset()
    """Outputs of earlier runs that exist and are made again: outdated, or begun and not whole."""
    scratch: int = 0
    """About how many bytes of videos that go to a store are in local scratch at once."""
    done: Mapping[Path, tuple[DoneStretch, ...]] = field(default_factory=dict)
    """Stretches that an earlier run has made, by the output that they belong to, ascending."""
    comparisons: tuple[ComparisonUnit | ImageComparisonUnit, ...] = ()
    """What is made of source and output when the outputs are whole (``--compare``)."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """The work in pieces, in the order in which they are done."""
        return (
            *map(VideoUnit, self.videos),
            *map(TarUnit, self.tars),
            *map(ImageUnit, self.shards),
        )

    def open_backend(self, say: Callable[[str], None] = lambda sentence: None) -> Backend:
        """Open the chosen backend; the caller closes it. Raises BackendError, ModelError.

        ``say`` receives a sentence before work that takes minutes.
        """
        return self.backend.request.open(self.model, say)

    def geometry(self, size: Size) -> Geometry:
        """Return how a frame of ``size`` (height, width) goes through the network."""
        return geometry_from_options(self.model.card, self.options)(size)

    @property
    def files(self) -> int:
        """How many files are to be written, a pipe included."""
        compared = sum(len(unit.outputs) for unit in self.comparisons)
        return len(self.entries) + len(self.others) + compared

    @property
    def skipped(self) -> int:
        """How many outputs exist and stay as they are (``--skip-existing``)."""
        return len(self.left)

    @property
    def shares(self) -> bool:
        """Whether other runs may work in the same output folder at the same time."""
        return self.options.skip_existing or self.options.part[1] > 1

    @property
    def frames(self) -> int | None:
        """Frames that are left to translate, or None where an input does not show its number."""
        counts = [unit.frames for unit in self.units]
        done = sum(each.frames for stretches in self.done.values() for each in stretches)
        return None if None in counts else max(0, sum(count or 0 for count in counts) - done)

    @property
    def largest(self) -> Size | None:
        """The known size (height, width) that takes most memory on its way through the network."""
        return max(self.sizes, key=self.frame_bytes, default=None)

    @property
    def memory(self) -> int | None:
        """Bytes of frames that are in memory at once, at most: frames in flight × one frame.

        With what the filter against flicker holds. None where no size is known beforehand.
        """
        if self.largest is None:
            return None
        frames = self.schedule.frames_in_flight * self.frame_bytes(self.largest)
        return frames + self.filter_bytes

    @property
    def filter_bytes(self) -> int:
        """About how many bytes the filter against flicker holds; 0 where there is none."""
        if not self.schedule.filters:
            return 0
        from ..temporal.flow_filter import filter_bytes

        return max(filter_bytes(self.geometry(video.size).network) for video in self.videos)

    def frame_bytes(self, size: Size) -> int:
        """Return the bytes of a frame of ``size`` (height, width) at its largest step."""
        return frame_bytes(self.geometry(size), self.model.card)


def plan_job(
    inputs: Sequence[Path],
    output: Path | str,
    *,
    model: Path,
    options: TranslateOptions,
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[JobPlan, Backend | None]:
    """Decide everything about translating ``inputs`` to ``output`` with the generator ``model``.

    The batch size and some notes depend on the open backend. It is returned beside the plan, and
    the caller closes it; None where earlier runs have left nothing to translate.

    An ``output`` that ends in a separator is a folder; a string keeps the separator, a Path does
    not. ``say`` receives a sentence before work that takes minutes: the export of a checkpoint, the
    building of an engine. Raises InputError, ModelError, BackendError, OutputError.
    """
    from ..opening import open_for_translation
    from .inputs import find_inputs
    from .space import check_space, scratch_bytes

    forget()  # what an earlier job in this process has listed
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
    _list_outputs(root, tree)
    folder = None if root is None or options.preview else root / FOLDER
    record = read_record(folder if options.resume else None, tree.entries, root)
    state = standing(tree.entries, root, record, (), options) if record.is_empty else None
    check_workers(tree.entries, options)
    generator = open_for_translation(model, options, say=say)
    kinds = dict.fromkeys(kind_of_output(entry) for entry in tree.entries)
    jobs = [job_of(kind, generator.card, options, None) for kind in kinds]
    same = same_jobs(record, jobs)
    if state is None:
        state = standing(tree.entries, root, record, jobs, options)
    if state.damage and options.on_error == "fail":
        raise state.damage[0].error
    work = [entry for entry in state.rest if entry.kind != "other"]
    videos, failures = _plan_videos(work, generator.card, options, state, len(tree.entries))
    images = [entry for entry in tree.entries if entry.kind == "image"]
    shards = _plan_shards(images, root, generator.card, options, state)
    tars = _plan_tars(work, generator.card, options, state)
    notes = [*generator.card.notes, *tree.notes]
    notes += [note for video in videos for note in video.notes]
    notes += [note for shard in shards for note in shard.notes]
    notes += _without_effect(options, [e for e in tree.entries if e.kind != "other"])
    notes += _fixed_size_notes(generator.card, options)
    if options.preview and options.temporal_strength:
        notes.append(Note("--temporal", "no effect on a preview, whose frames are single ones"))
    notes += _store_notes(root, folder, state)
    images = [entry for entry in work if entry.kind == "image"]
    tar_sizes, tar_notes = _first_sizes(tars)
    notes += tar_notes
    image_sizes = _some_sizes(images, options) + tar_sizes
    sizes = [video.size for video in videos] + image_sizes
    if len(failures) == len(tree.entries) > 0:
        causes = "\n".join(f"  {failure.cause}" for failure in failures[:_MOST_CAUSES])
        more = len(failures) - _MOST_CAUSES
        causes += f"\n  and {more} more" if more > 0 else ""
        raise InputError(f"none of the {len(failures)} inputs can be translated:\n{causes}")
    others = tuple(entry for entry in state.rest if entry.kind == "other")
    compared = plan_comparisons(
        tree.entries,
        state,
        {failure.name for failure in failures},
        root=root,
        record=record,
        model=model,
        options=options,
        output_size=_output_size(generator.card, options),
    )
    if compared.state.damage and options.on_error == "fail":
        raise compared.state.damage[0].error
    encoded = [*videos, *compared.videos]
    if not options.preview and (state.rest or compared.units):
        in_tars = [entry for entry in work if entry.kind == "tar"]
        notes += check_space(encoded, images, [*in_tars, *others])
    recorded = next((same[kind][-1] for kind in kinds if kind != "copy" and same[kind]), None)
    ids = {job.id for recorded_jobs in same.values() for job in recorded_jobs}
    done = stretches_done(videos, root, folder, record, ids)
    backend: Backend | None = None
    if recorded is not None and not (videos or shards or tars):
        choice, schedule = as_recorded(generator, recorded, options)
    else:
        pieces = sum(video.stretches - len(done.get(video.output, ())) for video in videos)
        shape = geometry_from_options(generator.card, options)
        workload = Workload(
            sizes=tuple(sizes),
            pieces=pieces + len(shards) + len(tars),
            row=_longest_row(videos, shards, tars, [shape(size).network for size in image_sizes]),
        )
        backend, choice, schedule = choose_backend(generator, options, workload, recorded, say)
        schedule = replace(
            schedule,
            encodes_video=any(not video.is_numbered for video in videos),
            filters=any(video.temporal for video in videos),
            kept=max((video.warm_up for video in videos), default=0),
        )
    choices = _choices(choice, schedule)
    plan = JobPlan(
        inputs=tuple(inputs),
        output=as_path(output),
        model=generator,
        options=options,
        backend=choice,
        schedule=schedule,
        entries=tuple(work),
        others=others,
        videos=tuple(videos),
        tars=tuple(tars),
        shards=tuple(shards),
        left=(*state.left, *compared.state.left),
        failures=(*failures, *compared.failures),
        notes=(
            *_size_notes(generator.card, options, sizes),
            *(backend.notes if backend is not None else ()),
            *notes,
        ),
        sizes=tuple(dict.fromkeys(sizes)),
        root=root,
        folder=folder,
        jobs=(
            *(job_of(kind, generator.card, options, choices) for kind in kinds),
            *compared.jobs,
        ),
        everything=tree.entries,
        finished=(*state.finished, *compared.state.finished),
        damage=(*state.damage, *compared.state.damage),
        outdated=state.outdated | compared.state.outdated,
        redone=frozenset(state.redone | compared.state.redone),
        scratch=scratch_bytes(encoded, schedule.workers),
        done=done,
        comparisons=compared.units,
    )
    return plan, backend


def _root(tree: InputTree) -> Path | None:
    """Return the folder of all outputs; None for a pipe, and for a part without an output."""
    from ..media.formats import PIPE

    if tree.root is not None or not tree.entries:
        return tree.root
    (entry,) = tree.entries
    return None if PIPE in (entry.source, entry.output) else entry.output.parent


def _list_outputs(root: Path | None, tree: InputTree) -> None:
    """Let a store tell once what is there of the outputs, so that none costs a request of its own.

    Raises OutputError.
    """
    if isinstance(root, RemotePath):
        try:
            # Beside a single output there may be anything.
            (root / FOLDER if tree.root is None else root).beneath()
        except OSError as error:
            raise output_error(root, error) from error


def _plan_videos(
    work: Sequence[Entry], card: ModelCard, options: TranslateOptions, state: Standing, total: int
) -> tuple[list[VideoPlan], list[Failure]]:
    """Plan all that is neither image, tar nor copied; return the plans and what cannot be planned.

    Raises the error of an input that cannot be planned where nothing else is to be done, and where
    the options ask for it.
    """
    from .inputs import why_unread

    videos: list[VideoPlan] = []
    failures: list[Failure] = []
    for entry in work:
        if entry.kind in ("image", "tar"):
            continue
        try:
            if entry.kind == "unread":
                raise InputError(why_unread(entry))
            own = options
            if entry.output in state.resumed:
                own = options.replacing
            videos.append(_plan_video(entry, card, own))
        except (InputError, OutputError) as error:
            if options.on_error == "fail" or total == 1:
                raise
            failures.append(Failure(printable(entry.source), error))
            most = options.max_failures
            if most is not None and len(failures) > most:
                raise type(error)(too_many_failures(len(failures), most, str(error))) from error
            without_frames(error)
    return videos, failures


def _choices(backend: BackendChoice, schedule: Schedule) -> Choices:
    return Choices(
        backend=backend.name,
        device=backend.device.partition(":")[0],
        precision=backend.precision,
        batch_size=schedule.batch_size,
        contexts=schedule.contexts,
    )


def _plan_video(entry: Entry, card: ModelCard, options: TranslateOptions) -> VideoPlan:
    """Plan one video. Raises InputError, OutputError."""
    from ..media.video.plan import plan_video

    strength, warm_up = options.temporal_strength, 0
    if strength:
        from ..temporal.flow_filter import frames_to_forget

        warm_up = frames_to_forget(strength)
    plan = plan_video(
        entry.source,
        entry.output,
        options,
        pixel_type=card.pixel_type,
        output_size=_output_size(card, options),
        temporal=strength,
        warm_up=warm_up,
    )
    if strength:
        from ..temporal.motion import LONGEST_SIDE

        height, width = geometry_from_options(card, options)(plan.size).network
        if max(height, width) > LONGEST_SIDE:
            raise InputError(
                f"{plan.name}: --temporal takes at most {LONGEST_SIDE} pixels a side, and "
                f"the network sees {width}×{height}; give a smaller --size, or leave out --temporal"
            )
    return plan


def _output_size(card: ModelCard, options: TranslateOptions) -> Callable[[Size], Size]:
    """Return the function from the size of a source to that of its output: (height, width)."""
    shape = geometry_from_options(card, options)
    return lambda size: shape(size).content if options.keep_size else size


def _plan_shards(
    images: Sequence[Entry],
    root: Path | None,
    card: ModelCard,
    options: TranslateOptions,
    state: Standing,
) -> tuple[ImageShard, ...]:
    """Return the images of the job in shards, without those that need no work."""
    rest = {entry.output for entry in state.rest if entry.kind == "image"}
    if not rest:
        return ()
    from ..media.images.shards import plan_images

    return plan_images(
        images,
        options,
        pixel_type=card.pixel_type,
        root=root,
        rest=rest,
        replaced=frozenset(state.resumed),
    )


def _plan_tars(
    work: Sequence[Entry], card: ModelCard, options: TranslateOptions, state: Standing
) -> list[TarPlan]:
    """Return how each tar is read and written."""
    entries = [entry for entry in work if entry.kind == "tar"]
    if not entries:
        return []
    from ..media.tars.plan import plan_tar

    return [
        plan_tar(entry, options, pixel_type=card.pixel_type, replaces=entry.output in state.resumed)
        for entry in entries
    ]


def _first_sizes(tars: Sequence[TarPlan]) -> tuple[list[Size], list[Note]]:
    """Return the sizes (height, width) of the first images of some tars, and notes on these."""
    if not tars:
        return [], []
    from ..media.tars.plan import first_sizes

    chosen = tars[:: -(-len(tars) // _SAMPLED_TARS)]
    sizes: list[Size] = []
    notes: list[Note] = []
    for tar in chosen:
        found, about = first_sizes(tar, max(1, _SAMPLED_IMAGES // len(chosen)))
        sizes += found
        notes += about
    return sizes, notes


def _some_sizes(images: Sequence[Entry], options: TranslateOptions) -> list[Size]:
    """Return the sizes (height, width) in the headers of some images, evenly spread."""
    if not images:
        return []
    from ..media.images.objects import displayed_sizes

    step = -(-len(images) // _SAMPLED_IMAGES)
    # An image that cannot be read is reported when it is translated.
    return displayed_sizes(images[::step], max_pixels=options.max_pixels)


def _longest_row(
    videos: Sequence[VideoPlan],
    shards: Sequence[ImageShard],
    tars: Sequence[TarPlan],
    sizes: Sequence[Size],
) -> int | None:
    """Return about how many frames follow each other at most in one unit and one size.

    ``sizes``: those at which the network sees some of the images, in their order. None where a
    video does not show its number of frames.
    """
    rows = []
    for video in videos:
        if video.frames_expected is None:
            return None
        rows.append(min(video.frames_expected, video.stretch_frames or video.frames_expected))
    if shards or tars:
        row = max((len(shard.entries) for shard in shards), default=0)
        if tars:
            from ..media.images.shards import SHARD

            row = SHARD
        changes = sum(one != other for one, other in itertools.pairwise(sizes))
        rows.append(min(row, len(sizes) // (changes + 1)) if changes else row)
    return max(1, *rows) if rows else None


def _check_times(options: TranslateOptions) -> None:
    """Refuse times that leave no frame between them. Raises InputError."""
    if options.to is not None and options.to <= (options.ss or 0.0):
        raise InputError(
            f"--to {options.to:g} s is not after the start, {options.ss or 0.0:g} s, so no frame "
            "lies between them; give a later --to (both count from the first frame)"
        )


def _without_effect(options: TranslateOptions, entries: Sequence[Entry]) -> list[Note]:
    """Return notes on options that were given and have no effect on any of ``entries``."""
    set_options = options_given(options)
    kinds = {entry.kind for entry in entries}
    if any(entry.is_numbered for entry in entries):
        kinds.add("image")
    present = {
        "video": bool(kinds - {"image", "tar", "unread"}),
        "image": bool(kinds & {"image", "tar"}),
        "pattern": "pattern" in kinds,
        "tar": "tar" in kinds,
        "animation": any(kind_of_output(entry) == "animation" for entry in entries),
    }
    names = {"video": "video", "image": "image", "pattern": "pattern of images", "tar": "tar"}
    notes = []
    for kind, what in names.items():
        useless = [
            each.flag
            for each in set_options
            if each.applies_to[:1] == (kind,) and not any(present[one] for one in each.applies_to)
        ]
        if kinds and useless:
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


def _store_notes(root: Path | None, folder: Path | None, state: Standing) -> list[Note]:
    """Return a note on what a store as the place of the outputs lacks."""
    if root is None or folder is None or not is_remote(root) or not state.rest:
        return []
    text = (
        "a store has no locks, so let no two runs write the same outputs at the same time; "
        "--shard gives each run outputs of its own"
    )
    return [Note(root, text)]


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
