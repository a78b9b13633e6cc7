"""Comparisons: source and result of each video and image in one picture (``--compare``).

They are made when the outputs are whole, from the files as they are. So they cost the translation
nothing, and a job that was finished without them gets them without its network. Each is a file of
the job like its outputs: the journal tells of it, it is up to date while its output is the one that
it shows, and it is replaced, left or refused by the same rules.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .._version import __version__
from ..errors import InputError, OutputError, OutputInUseError
from ..files import LONGEST_NAME
from ..frames import Geometry, Pixels, Size
from ..media.formats import PIPE, Entry
from ..option_table import options_given
from ..options import ComparisonLayout, TranslateOptions
from ..remote import is_remote
from ..wording import Note, printable
from .fingerprint import Job
from .schedule import Schedule
from .standing import Standing, standing
from .units import AnySource, Counters, Failure, ImageUnit, without_frames

if TYPE_CHECKING:
    from ..backends import Backend
    from ..media.images.shards import ImageSource
    from ..media.video.comparison import ComparisonSink, ComparisonSource
    from ..media.video.plan import VideoPlan
    from ..models.card import ModelCard
    from .journal import Journal
    from .plan import JobPlan
    from .record import Record

SOURCE_LABEL, RESULT_LABEL = "source", "translated"
"""What stands on the frames; on those of the result the name of the model, where that is short."""

_ENCODING = (
    *("codec", "crf", "preset", "pix_fmt", "encoder_opt", "audio"),
    *("quality", "png_level"),
)
"""The options that a comparison depends on, besides its layout. All others its output depends on,
and it depends on its output."""

_COMPARED = frozenset({"video", "image", "pattern", "pipe"})
"""Kinds of inputs whose outputs are compared; a pipe is refused."""


@dataclass(frozen=True)
class ComparisonUnit:
    """The comparison of a video, in one piece."""

    plan: VideoPlan
    """Reads the source, and writes the comparison."""
    result: Path
    """The translation."""
    labels: tuple[str, str]
    temporal: ClassVar[float] = 0.0

    @property
    def name(self) -> str:
        """The comparison, as messages call it."""
        return printable(self.plan.output)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The comparison."""
        return (self.plan.output,)

    @property
    def frames(self) -> int | None:
        """How many frames are expected, or None where the source does not show it."""
        return self.plan.frames_expected

    def open_source(self, previous: AnySource | None = None) -> ComparisonSource:
        """Open source and translation. Raises InputError."""
        from ..media.video.comparison import ComparisonSource

        return ComparisonSource(self.plan, self.result, self.labels)

    def open_sink(self, source: AnySource) -> ComparisonSink:
        """Open the encoder. Raises InputError, OutputError."""
        from ..media.video.comparison import ComparisonSink

        return ComparisonSink(self.plan, self.result)


@dataclass(frozen=True)
class ImageComparisonUnit(ImageUnit):
    """The comparisons of up to 256 images. The outputs of its shard are these."""

    layout: ComparisonLayout
    labels: tuple[str, str]

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The comparisons."""
        return tuple(entry.output for entry in self.shard.entries)

    def open_source(self, previous: AnySource | None = None) -> ImageSource:
        """Return the reader of the images and of their translations."""
        from ..media.images.comparison import ComparisonSource

        results = {output: _compared(output) for output in self.outputs}
        return ComparisonSource(self.shard, results, self.layout, self.labels)

    def of_these(self, results: Collection[Path]) -> ImageComparisonUnit | None:
        """Return the unit with those images alone whose translation is one of ``results``."""
        entries = [each for each in self.shard.entries if _compared(each.output) in results]
        return replace(self, shard=replace(self.shard, entries=tuple(entries))) if entries else None


@dataclass(frozen=True)
class Comparisons:
    """What of the comparisons of a job is to be done, and where the others stand."""

    units: tuple[ComparisonUnit | ImageComparisonUnit, ...] = ()
    state: Standing = field(default_factory=Standing)
    failures: tuple[Failure, ...] = ()
    """Comparisons that cannot be made."""
    jobs: tuple[Job, ...] = ()
    """What all of them depend on; nothing where there are none."""

    @property
    def videos(self) -> list[VideoPlan]:
        """The plans of those that are videos."""
        return [unit.plan for unit in self.units if isinstance(unit, ComparisonUnit)]


def comparison_path(output: Path) -> Path:
    """Return where the comparison of an output lies: ``night.mp4`` → ``night.compare.mp4``."""
    return output.with_name(f"{output.stem}.compare{output.suffix}")


def _compared(comparison: Path) -> Path:
    """Return the output that a comparison shows, by its name."""
    stem = comparison.stem.removesuffix(".compare")
    return comparison.with_name(f"{stem}{comparison.suffix}")


def plan_comparisons(
    entries: Sequence[Entry],
    state: Standing,
    failed: Collection[str],
    *,
    root: Path | None,
    record: Record,
    model: Path,
    options: TranslateOptions,
    output_size: Callable[[Size], Size],
) -> Comparisons:
    """Decide which comparisons of a job are to be made, and how.

    ``state``: where the outputs stand. ``failed``: the names of inputs that cannot be translated.
    ``model``: the file as it was given. ``output_size`` maps the upright size (height, width) of a
    source to that of its output. An output that stays as it is (``-n``) gets no comparison.

    Raises OutputError for a comparison that exists and may not be touched, or that has no place,
    InputError where neither video nor image is among the inputs, and either for a comparison that
    cannot be made where the job has no other file.
    """
    if options.compare is None or options.preview:
        return Comparisons()
    from ..media.compared_frames import label_from

    kinds = {entry.kind for entry in entries} - {"other", "unread"}
    if kinds and not kinds & _COMPARED and options.shard is None:
        raise InputError(
            "--compare is for videos and images, and the inputs are tars; --preview N shows the "
            "first image of N of them, each above its result"
        )
    concerned = {entry.output for entry in state.rest} | set(state.finished)
    compared = [
        Entry(kind="comparison", source=entry.output, output=_checked_path(entry))
        for entry in entries
        if entry.kind in _COMPARED
        and entry.output in concerned
        and printable(entry.source) not in failed
    ]
    if not compared:
        return Comparisons()
    _refuse_taken(compared, entries)
    job = _job(options)
    renewed = {entry.output for entry in state.rest}
    standings = standing(compared, root, record, [job], options, renewed=renewed)
    originals = {entry.output: entry for entry in entries}
    labels = SOURCE_LABEL, label_from(_name_of_model(model), RESULT_LABEL)
    units: list[ComparisonUnit | ImageComparisonUnit] = []
    failures: list[Failure] = []
    images: list[Entry] = []
    for entry in standings.rest:
        original = originals[entry.source]
        if original.kind == "image":
            images.append(replace(original, output=entry.output))
            continue
        own = options
        if entry.output in standings.resumed:
            own = options.replacing
        try:
            plan = _plan(original.source, entry.output, own, output_size)
        except (InputError, OutputError) as error:
            if options.on_error == "fail" or len(entries) == 1:
                raise
            failures.append(Failure(printable(entry.output), without_frames(error)))
        else:
            units.append(ComparisonUnit(plan, entry.source, labels))
    if images:
        from ..media.images.shards import plan_images

        replaced = frozenset(standings.resumed)
        shards = plan_images(images, options, pixel_type="uint8", root=root, replaced=replaced)
        units += [ImageComparisonUnit(shard, options.compare, labels) for shard in shards]
    return Comparisons(tuple(units), standings, tuple(failures), (job,))


def make_comparisons(
    plan: JobPlan,
    journal: Journal | None,
    counters: Counters,
    watch: Callable[[Counters], None] | None,
) -> None:
    """Make the comparisons of all outputs that are whole, one after the other.

    What becomes of them is added to ``counters``. Raises the error that stops the run early.
    """
    from .pipeline import run

    whole = {*counters.written, *plan.finished}
    units = list(_of_whole(plan.comparisons, whole))
    if not units:
        return
    frames = [unit.frames for unit in units]
    drawing = Counters()
    drawing.expected = None if None in frames else sum(each or 0 for each in frames)
    counters.comparing = drawing

    def begun() -> Iterator[ComparisonUnit | ImageComparisonUnit]:
        for unit in units:
            if journal is not None:
                journal.began(unit)
            yield unit

    try:
        run(
            begun(),
            _Unchanged(plan.model.card),
            Schedule(
                batch_size=1,
                contexts=1,
                converters=plan.schedule.converters,
            ),
            geometry=lambda size: Geometry(size, size, size),
            reuse=False,
            skip_errors=plan.options.on_error == "skip",
            max_failures=plan.options.max_failures,
            skip_existing=plan.options.skip_existing,
            counters=drawing,
            observer=journal,
            watch=None if watch is None else lambda _: watch(counters),
        )
    finally:
        if plan.options.skip_existing:
            # Another run of this job is making them.
            mine = [x for x in drawing.failures if not isinstance(x.error, OutputInUseError)]
            drawing.left += len(drawing.failures) - len(mine)
            drawing.failures = mine
        counters.written += drawing.written
        counters.failures += drawing.failures
        counters.left += drawing.left
        counters.interrupted = counters.interrupted or drawing.interrupted


def _of_whole(
    units: Sequence[ComparisonUnit | ImageComparisonUnit], whole: Collection[Path]
) -> Iterator[ComparisonUnit | ImageComparisonUnit]:
    """Yield what of ``units`` compares outputs that are ``whole``."""
    for unit in units:
        if isinstance(unit, ComparisonUnit):
            if unit.result in whole:
                yield unit
        elif (part := unit.of_these(whole)) is not None:
            yield part


@dataclass
class _Unchanged:
    """The network of a pipeline that has none: it returns the frames as they are."""

    card: ModelCard
    name: str = "none"
    device: str = "cpu"
    precision: str = "fp32"
    notes: tuple[Note, ...] = ()

    def infer(self, frames: Pixels) -> Pixels:
        """Return ``frames``."""
        return frames

    def fork(self) -> Backend:
        """Return this one."""
        return self

    def cancel(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _plan(
    source: Path, target: Path, options: TranslateOptions, output_size: Callable[[Size], Size]
) -> VideoPlan:
    """Plan one comparison. Raises InputError, OutputError."""
    from ..media.video.comparison import plan_comparison

    try:
        return plan_comparison(source, target, options, output_size)
    except OutputError as error:
        raise OutputError(
            f"the comparison {printable(target)} cannot be made: {error}; --compare split has the "
            "size of the output, and without --compare there is only that"
        ) from error


def _job(options: TranslateOptions) -> Job:
    """Return what comparisons depend on besides the outputs that they show."""
    names = ("compare", *_ENCODING)
    given = [option.name for option in options_given(options) if option.name in names]
    values = {name: getattr(options, name) for name in given}
    return Job(kind="comparison", values={"version": __version__, **values})


def _name_of_model(model: Path) -> str:
    """Return the name of a model file without its extension, or that of a run's folder."""
    return model.name if model.is_dir() else model.stem


def _checked_path(entry: Entry) -> Path:
    """Return where a comparison lies. Raises OutputError where it has no place."""
    if PIPE in (entry.source, entry.output):
        raise OutputError(
            "-: --compare reads source and output once more when the output is whole, and a pipe "
            "is gone by then; name files, or leave out --compare"
        )
    path, name = comparison_path(entry.output), printable(entry.output)
    if entry.is_numbered:
        raise OutputError(
            f"{name}: numbered images have no comparison; name a video as OUTPUT, or leave out "
            "--compare"
        )
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OutputError(
            f"{name}: the name of its comparison, {printable(path.name)}, is too long for a file "
            "system; choose a shorter name, or leave out --compare"
        )
    return path


def _refuse_taken(compared: Sequence[Entry], entries: Sequence[Entry]) -> None:
    """Raise OutputError where a comparison would have the name of another file of the job."""
    from .inputs.refusals import Places, real_path

    places = Places()
    taken = {places.of(path): path for each in entries for path in (each.output, each.source)}
    links = (each.source for each in entries if not is_remote(each.source))
    taken |= {real_path(path): path for path in links if path.is_symlink()}
    for entry in compared:
        if other := taken.get(places.of(entry.output)):
            raise OutputError(
                f"{printable(entry.output)}: the comparison of {printable(entry.source)} would "
                f"replace {printable(other)}, a file of this job; choose another OUTPUT, or leave "
                "out --compare"
            )
