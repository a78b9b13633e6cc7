"""Write a video as numbered images, each a file of its own that gets its name when it is whole.

The converters encode the images and write them under temporary names; the writer publishes them
together (`images.lots`). A stretch leaves a list of its images in the job folder, as the stretch of
another video leaves a file there; the join compares the lists with what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import OutputError
from ...files import publish, size_of, temporary_path
from ...frames import Frame
from ...wording import Note, printable
from .. import Dropped, Written
from ..alpha import alpha_samples
from ..images.codec import Extras, encode_picture
from ..images.lots import Lot, Partial
from ..mux.joined_video import Stretch
from ..pattern import as_spans, numbered_files, parse_pattern
from .numbered import colour_chunks, format_of
from .plan import Timing, VideoPlan
from .sink import OutputHold, as_output_error, stretch_path, without_frames


@dataclass(frozen=True)
class _Image:
    """An image of an output."""

    number: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Encoded:
    """An image with the time of its frame."""

    image: _Image
    timing: Timing


class _Images:
    """The images of one unit, from their frames to their final names."""

    def __init__(self, plan: VideoPlan) -> None:
        self._plan = plan
        pattern = parse_pattern(plan.output.name)
        assert pattern is not None
        self._pattern = pattern
        self._format = format_of(plan.output)
        self._deep = plan.encoder.pix_fmt.endswith("be")
        self._chunks = colour_chunks(plan.colour, self._format)
        # What exists and is not to be replaced was refused when the output was locked.
        self._lot: Lot[_Encoded] = Lot(lambda path: True)
        self.whole: list[_Encoded] = []
        """The images that have their names, in order."""

    def encode(self, frame: Frame) -> Partial[_Encoded]:
        """Encode an image and write it under a temporary name. Raises OutputError."""
        plan, timing = self._plan, frame.tag
        assert isinstance(timing, Timing)
        number = plan.image_number(frame.index, timing)
        path = _path(plan, number)
        alpha = None
        if timing.alpha is not None:
            height, width = timing.alpha.values.shape[:2]
            bits = 8 if timing.alpha.bits == 8 else 16
            alpha = np.ascontiguousarray(alpha_samples(timing.alpha, (height, width), bits))
        try:
            data = encode_picture(
                frame.pixels,
                self._format,
                quality=plan.options.quality,
                png_level=plan.options.png_level,
                extras=Extras(
                    alpha=alpha if plan.encoder.alpha else None,
                    bits=16 if self._deep else 8,
                    colour_chunks=self._chunks,
                ),
            )
        except OutputError as error:
            raise OutputError(f"cannot write {printable(path)}: {error}") from error
        image = _Image(number, len(data), hashlib.sha256(data).hexdigest())
        return self._lot.write(path, data, _Encoded(image, timing))

    def add(self, item: Partial[_Encoded]) -> None:
        """Take the next image. Raises OutputError where it or one before it gets no name."""
        self._lot.add(item)
        if self._lot.is_due:
            self.publish()

    def publish(self) -> None:
        """Give the images that were added their names. Raises OutputError where one gets none."""
        errors = []
        for encoded, error in self._lot.publish():
            if error is None:
                self.whole.append(encoded)
            else:
                errors.append(error)
        # The unit is not done: the next run makes it again.
        if errors:
            raise errors[0]

    def discard(self) -> None:
        """Publish what was added, which is whole, and remove the rest."""
        with contextlib.suppress(OutputError):
            self.publish()
        self._lot.discard()


class NumberedSink:
    """Write a video in one piece as numbered images."""

    def __init__(self, plan: VideoPlan) -> None:
        self._plan = plan
        self._images = _Images(plan)
        self._hold = OutputHold(plan)
        self._has_begun = False
        self.written: list[Written] = []
        """All images as one, once the last is whole."""
        self.notes: tuple[Note, ...] = ()

    def converter(self) -> Callable[[Frame], Partial[_Encoded]]:
        """Return the encoder, which all workers share."""
        return self._images.encode

    def write(self, item: Partial[_Encoded]) -> None:
        """Take the next image. Raises OutputError, also where the output cannot be locked."""
        if not self._has_begun:
            self._hold.begin()
            self._has_begun = True
        self._images.add(item)

    def finish(self) -> Sequence[Dropped]:
        """Publish the rest; return what a change of the input spoiled.

        Raises OutputError and InputError.
        """
        self._images.publish()
        images = [each.image for each in self._images.whole]
        if not images:
            raise without_frames(self._plan)
        result, changed, self.notes = _whole(self._plan, images)
        self.written.append(result)
        self._hold.release()
        return changed

    def discard(self) -> None:
        """Remove what has no final name, and release the lock."""
        self._images.discard()
        self._hold.release()


class NumberedStretchSink:
    """Write one stretch of a video as numbered images, and a list of them."""

    def __init__(self, plan: VideoPlan, number: int, folder: Path) -> None:
        """Prepare the list ``number`` in ``folder``, which is made at the end."""
        self._plan = plan
        self._images = _Images(plan)
        self._path = stretch_path(plan, number, folder)
        self.written: list[Stretch] = []
        """The stretch, once it is whole: its list and the times; nothing without a frame."""
        self.notes: tuple[Note, ...] = ()

    def converter(self) -> Callable[[Frame], Partial[_Encoded]]:
        """Return the encoder, which all workers share."""
        return self._images.encode

    def write(self, item: Partial[_Encoded]) -> None:
        """Take the next image. Raises OutputError."""
        self._images.add(item)

    def finish(self) -> Sequence[Dropped]:
        """Publish the rest and write the list; return nothing. Raises OutputError."""
        self._images.publish()
        whole = self._images.whole
        if not whole:
            return ()
        rows = [[each.image.number, each.image.bytes, each.image.sha256] for each in whole]
        with as_output_error(self._plan):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = temporary_path(self._path)
            partial.write_text(json.dumps(rows, separators=(",", ":")))
        # What is there of an earlier run was found unusable.
        publish(partial, self._path, overwrite=True)
        times = tuple(each.timing.pts for each in whole)
        last = whole[-1].timing.duration
        self.written.append(Stretch(self._path, self._plan.stream.time_base, times, last))
        return ()

    def discard(self) -> None:
        """Publish what was taken, which is whole, and remove the rest."""
        self._images.discard()


class NumberedJoinSink:
    """Compare the lists of a video's stretches with the images that are there.

    It takes no frames and no lock.
    """

    def __init__(self, plan: VideoPlan, stretches: Sequence[Stretch]) -> None:
        """``stretches``: those that have frames, in their order."""
        self._plan, self._stretches = plan, stretches
        self.written: list[Written] = []
        """All images as one, once they are found whole."""
        self.notes: tuple[Note, ...] = ()

    def converter(self) -> Callable[[Frame], object]:
        """Raise AssertionError: there is nothing to convert."""
        raise AssertionError("a join has no frames")

    def write(self, item: object) -> None:
        """Raise AssertionError: there is nothing to write."""
        raise AssertionError("a join has no frames")

    def finish(self) -> Sequence[Dropped]:
        """Check the images; return what a change of the input spoiled. Raises OutputError."""
        images: list[_Image] = []
        for stretch in self._stretches:
            listed = _listed(self._plan, stretch.path)
            if listed is None:
                raise OutputError(
                    f"cannot write {printable(self._plan.output)}: some of its images were changed "
                    "or removed while the others were made; run the same command again"
                )
            images += listed
        if not images:
            raise without_frames(self._plan)
        result, changed, self.notes = _whole(self._plan, images)
        self.written.append(result)
        return changed

    def discard(self) -> None:
        """Do nothing: what is listed has its name."""


def is_stretch_whole(plan: VideoPlan, path: Path) -> bool:
    """Return whether the images of the list at ``path`` are there, with their sizes."""
    return _listed(plan, path) is not None


def _listed(plan: VideoPlan, path: Path) -> list[_Image] | None:
    """Return the images of a list; None where it is broken or one of them is not as it was.

    The list is read as data of unknown origin: the paths are those of the plan.
    """
    try:
        rows = json.loads(path.read_bytes())
        images = [_Image(int(number), int(length), str(digest)) for number, length, digest in rows]
    except (OSError, ValueError, TypeError):
        return None
    ascending = all(a.number < b.number for a, b in itertools.pairwise(images))
    is_there = all(size_of(_path(plan, each.number)) == each.bytes for each in images)
    return images if images and ascending and is_there else None


def _whole(
    plan: VideoPlan, images: Sequence[_Image]
) -> tuple[Written, Sequence[Dropped], tuple[Note, ...]]:
    """Return the output, what a change of the input spoiled, and notes."""
    error = plan.why_changed()
    numbers = [each.number for each in images]
    result = Written(
        path=plan.output,
        source=plan.path,
        identity=plan.identity,
        source_size=plan.size,
        size=plan.output_size,
        bytes=sum(each.bytes for each in images),
        sha256=hashlib.sha256("\n".join(each.sha256 for each in images).encode()).hexdigest(),
        numbers=as_spans(numbers),
    )
    changed = () if error is None else (Dropped(plan.name, error),)
    return result, changed, tuple(_notes_on_others(plan, set(numbers)))


def _notes_on_others(plan: VideoPlan, numbers: set[int]) -> Iterator[Note]:
    """Yield a note on images of the same pattern that are not of this job."""
    others = [path for number, path in numbered_files(plan.output).items() if number not in numbers]
    if others:
        first, last = printable(Path(others[0].name)), printable(Path(others[-1].name))
        span = first if len(others) == 1 else f"{first} … {last}, {len(others)} in all"
        yield Note(
            plan.output,
            f"images of the same pattern are there that this job did not write, and stay ({span}); "
            "remove them before the images are played together",
        )


def _path(plan: VideoPlan, number: int) -> Path:
    pattern = parse_pattern(plan.output.name)
    assert pattern is not None
    return plan.output.with_name(pattern.name(number))
