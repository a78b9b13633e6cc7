"""Read a video and its translation in step, and write both as one video.

The plan of a comparison (`plan_comparison`) is that of the output, but for the size of the frames
and the name of the file: the same encoder with the same settings, the same sound, the same times.
Its frames are read from both files as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Generic, TypeVar

from ...errors import InputError
from ...frames import Frame, PixelType, Size
from ...options import TranslateOptions
from ...wording import Note, printable
from .. import Dropped
from ..compared_frames import MAKE_AGAIN, ComparedFrames, compared_size
from ..demux.timestamps import BROADCAST_FORMATS
from .colour import of_output
from .pixel_formats import bits_of
from .plan import Timing, VideoPlan, described, input_identity, plan_video
from .reading import Decoded
from .sink import VideoSink
from .source import VideoSource

Pair = tuple[Decoded, Decoded, float]
"""A frame of the source, that of the output, and when they are shown: seconds after the first."""


def plan_comparison(
    source: Path, target: Path, options: TranslateOptions, output_size: Callable[[Size], Size]
) -> VideoPlan:
    """Decide how the video at ``source`` is shown beside its translation, in the file ``target``.

    ``output_size`` maps the upright size (height, width) of the source to the translation's. The
    plan reads the source, and ``options.compare`` is the layout. Raises what `plan_video` raises.
    """
    layout = options.compare
    assert layout is not None
    # What the container cannot hold is told, or refused, for the output.
    plan = plan_video(
        source,
        target,
        replace(options, strict=False),
        pixel_type="uint8",
        output_size=lambda size: compared_size(layout, output_size(size)),
    )
    deep: PixelType = "float16" if bits_of(plan.encoder.pix_fmt) > 8 else "uint8"
    return replace(plan, pixel_type=deep, stretch_frames=None)


class ComparisonSource:
    """Pairs of frames of one time, drawn into one: of a video, and of its translation.

    What cannot be read of the source is missing from the translation, too, and was told there.
    """

    notes: tuple[Note, ...] = ()

    def __init__(self, plan: VideoPlan, output: Path, labels: tuple[str, str]) -> None:
        """``plan`` is that of `plan_comparison`, ``output`` the translation of its source.

        Raises InputError where one of the two cannot be opened.
        """
        layout = plan.options.compare
        assert layout is not None
        result = _plan_of_output(plan, output)
        self._name = printable(output)
        self._draw = ComparedFrames(layout, result.size, labels)
        self._times = _seconds(plan), _seconds(result)
        self._by_number = _tells_other_times(plan, result)
        self._source, self._result = VideoSource(plan), VideoSource(result)

    def read(self) -> Iterator[Pair | Dropped]:
        """Yield pairs in the order of their times, and `Dropped` for frames without a partner."""
        lost: list[Dropped] = []
        source = _Ahead(each for each in self._source.read() if isinstance(each, Decoded))
        result = _Ahead(_without(lost, self._result.read()))
        number, alone = 0, 0
        first: tuple[Fraction, Fraction] | None = None
        while source.now is not None and result.now is not None:
            if first is None:
                first = self._times[0](source.now), self._times[1](result.now)
            if not self._by_number:
                here = self._apart(first, source.now, result.now)
                if source.next and self._apart(first, source.next, result.now) < here:
                    source.step()
                    continue
                if result.next and self._apart(first, source.now, result.next) < here:
                    result.step()
                    alone += 1
                    continue
            seconds = float(self._times[0](source.now) - first[0])
            yield replace(source.now, index=number), result.now, seconds
            number += 1
            source.step()
            result.step()
        while result.now is not None:
            result.step()
            alone += 1
        if not number:
            raise InputError(
                f"{self._name}: no frame of it belongs to a frame of its source; {MAKE_AGAIN}"
            )
        yield from lost
        if alone:
            frames = "1 frame of it is" if alone == 1 else f"{alone} frames of it are"
            yield Dropped(
                self._name,
                InputError(
                    f"{self._name}: {frames} missing from the comparison, as the source has none "
                    f"of that time; {MAKE_AGAIN}"
                ),
            )

    def converter(self) -> Callable[[Pair], Frame | Dropped]:
        """Return a function from a pair to the frame that shows both, one for each worker."""
        source, result = self._source.converter(), self._result.converter()

        def convert(pair: Pair) -> Frame | Dropped:
            one, other = source(pair[0]), result(pair[1])
            if isinstance(one, Dropped) or isinstance(other, Dropped):
                return other if isinstance(other, Dropped) else one
            timing = one.tag
            assert isinstance(timing, Timing)
            pixels = self._draw(one.pixels, other.pixels, pair[2])
            # A picture of both is opaque.
            return Frame(one.index, pixels, replace(timing, alpha=None))

        return convert

    def close(self) -> None:
        """Close both files."""
        self._source.close()
        self._result.close()

    def _apart(
        self, first: tuple[Fraction, Fraction], source: Decoded, result: Decoded
    ) -> Fraction:
        """Return how far apart two frames are, in seconds, each counted from its first one."""
        one, other = self._times
        return abs((one(source) - first[0]) - (other(result) - first[1]))


class ComparisonSink(VideoSink):
    """Encode a comparison. What is damaged beside its frames was told of the output already."""

    def __init__(self, plan: VideoPlan, output: Path) -> None:
        """``output`` is the translation, whose state is written down with the comparison.

        Raises InputError where it cannot be read, OutputError.
        """
        self._subject = printable(output)
        # Of what this process has put into a store, its listing does not know the time.
        identity = input_identity(output, plan.options, asked=True)
        super().__init__(replace(plan, path=output, identity=identity))

    def finish(self) -> Sequence[Dropped]:
        """Write the rest, check and publish. Raises OutputError."""
        return [each for each in super().finish() if each.name == self._subject]


def _plan_of_output(plan: VideoPlan, output: Path) -> VideoPlan:
    """Return a plan that reads the translation of the video that ``plan`` reads.

    Raises InputError.
    """
    try:
        info = described(output, plan.options)
        stream = info.best_video(_translated_stream(plan))
    except InputError as error:
        text = f"{printable(output)}: cannot be compared ({error}); {MAKE_AGAIN}"
        raise InputError(text) from error
    if stream.size is None or stream.pix_fmt is None:
        raise InputError(f"{printable(output)}: cannot be decoded; {MAKE_AGAIN}")
    whole = replace(
        plan.options,
        ss=None,
        to=None,
        frames=None,
        fps=None,
        stream=None,
        deinterlace=False,
        deinterlace_rate=None,
    )
    return replace(
        plan,
        path=output,
        identity=None,
        info=info,
        stream=stream,
        colour=of_output(plan.colour, stream.pix_fmt),
        size=stream.displayed_size or stream.size,
        encoder=replace(plan.encoder, alpha=False),
        options=whole,
    )


def _tells_other_times(plan: VideoPlan, result: VideoPlan) -> bool:
    """Return whether the times in a translation may not be those of its source.

    AVI and y4m count frames and tell no times. A short time in a GIF is taken as a longer one, as
    browsers do, so that all that follows is later. In MPEG-TS a long gap is taken for a clock that
    jumps, but not in other sources. In Matroska frames of less than a millisecond move apart.
    """
    if plan.streams is None or plan.streams.format == "avi":
        return True
    if result.info.format in BROADCAST_FORMATS and plan.info.format not in BROADCAST_FORMATS:
        return True
    return result.stream.time_base * (plan.stream.average_rate or 0) > 1


def _translated_stream(plan: VideoPlan) -> int | None:
    """Return the index of the translated video in its file, where there are several."""
    if plan.streams is None:
        return None
    # Attachments of Matroska are no streams among the others.
    streams = [each for each in plan.streams.streams if each.action != "attach"]
    return next(number for number, each in enumerate(streams) if each.action == "video")


def _seconds(plan: VideoPlan) -> Callable[[Decoded], Fraction]:
    base = plan.stream.time_base
    return lambda item: item.timing.pts * base


_Item = TypeVar("_Item")


class _Ahead(Generic[_Item]):
    """An iterator that shows its item and the one behind it; None behind the last."""

    def __init__(self, items: Iterator[_Item]) -> None:
        self._items = items
        self.now = next(items, None)
        self.next = next(items, None)

    def step(self) -> None:
        self.now, self.next = self.next, next(self._items, None)


def _without(lost: list[Dropped], items: Iterator[Decoded | Dropped]) -> Iterator[Decoded]:
    """Yield the frames, and put everything else into ``lost``."""
    for each in items:
        if isinstance(each, Dropped):
            lost.append(each)
        else:
            yield each
