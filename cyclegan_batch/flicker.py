"""How much a translated video flickers, from its files: the measures behind ``evaluate``.

The files are read twice, with few frames in memory at a time. The first reading counts their
frames, and finds how strong the blur is that costs as much sharpness as the video has lost against
a per-frame translation (`temporal.consistency`); the second one measures.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from .errors import InputError
from .frames import Geometry, Pixels, Size
from .machine import cpu_threads, opencv_without_threads
from .media import Dropped
from .media.animations.structure import is_animation
from .media.formats import ANIMATION_SUFFIXES, IMAGE_FORMATS, PIPE, VIDEO_SUFFIXES
from .media.pattern import parse_pattern
from .media.video.plan import plan_video
from .media.video.source import VideoSource
from .options import TranslateOptions
from .remote import is_remote
from .temporal.consistency import (
    COARSE_SIGMA,
    Flicker,
    Seen,
    Tally,
    blurred,
    control_sigma,
    decibels,
    sharpness,
    square_error,
)
from .wording import counted, printable

Row: TypeAlias = Literal["source", "output", "per_frame", "control"]

Watch: TypeAlias = Callable[[str, int, "int | None"], None]
"""Called with what happens to frames (``read``, ``compared``), how many are done, and of how many,
where that is known."""

_SAMPLED = 24
_SAMPLED_BYTES = 64 * 2**20
"""How many frames are kept to find the strength of the blur, and of how many bytes at most."""
_MOST_THREADS = 6
"""As many frames wait at a time, too. The sums of a frame, four at most, are made one frame after
another, so more threads would find little to do."""


@dataclass(frozen=True)
class FlickerEvaluation:
    """How much a video flickers, beside its source and a per-frame translation of that."""

    frames: int
    size: Size
    """Height and width of the output, at which all is measured."""
    rows: Mapping[Row, Flicker]
    """``source`` and ``output``; with a per-frame translation also ``per_frame`` and ``control``,
    the per-frame translation blurred until it is as sharp as the output."""
    psnr: float | None
    """Of the output to the per-frame translation, in dB; None without one."""
    control_sigma: float | None
    """σ of that blur in pixels; None without a per-frame translation."""
    notes: tuple[str, ...]

    def ratio(self, row: Row) -> Flicker | None:
        """Return the measures of ``row`` over those of the per-frame translation, if there is one.

        A ratio to 0 is NaN.
        """
        plain = self.rows.get("per_frame")
        if plain is None:
            return None
        pairs = zip(asdict(self.rows[row]).values(), asdict(plain).values(), strict=True)
        return Flicker(*(value / other if other else math.nan for value, other in pairs))

    def lines(self) -> list[str]:
        """Return a table of the measures, and in sentences what they mean."""
        height, width = self.size
        rows = {_NAMES[name]: _measures(each) for name, each in self.rows.items()}
        if self.control_sigma is not None:
            rows[f"{_NAMES['control']}, σ = {self.control_sigma:.2f}"] = rows.pop(_NAMES["control"])
        for name in ("output", "control"):
            if name in self.rows and (ratio := self.ratio(name)) is not None:
                short = _NAMES[name].removeprefix("per-frame, ")
                shares = asdict(ratio).values()
                rows[f"{short} ÷ per-frame"] = [_number(share, 2) for share in shares]
        title = f"{counted(self.frames, 'frame')} of {width}×{height}"
        column = max(len(title), *map(len, rows))
        lines = [
            f"{name:<{column}}" + "".join(f"  {value:>14}" for value in values)
            for name, values in {title: _HEADS, **rows}.items()
        ]
        return [*lines, "", *_LEGEND, *self._verdict()]

    def _verdict(self) -> Iterator[str]:
        """Yield what the measures say about the output."""
        if self.psnr is not None:
            psnr = "no pixel differs" if math.isinf(self.psnr) else f"PSNR {self.psnr:.1f} dB"
            yield f"Output against per-frame: {psnr}."
            ours, blur = (self.ratio(name) for name in ("output", "control"))
            if ours and blur and math.isfinite(ours.coarse_error):
                yield (
                    f"Of the coarse flicker of per-frame, the output has {ours.coarse_error:.0%}; "
                    f"a blur that costs as much sharpness leaves {blur.coarse_error:.0%}."
                )


_NAMES: dict[Row, str] = {
    "source": "source",
    "output": "output",
    "per_frame": "per-frame",
    "control": "per-frame, blurred",
}
_HEADS = ("flicker", "coarse flicker", "pump", "sharpness")
_LEGEND = (
    "flicker: mean square change of a pixel along the source's motion, levels of 0..1, × 1000",
    f"coarse flicker: the same of frames that are blurred with σ = {COARSE_SIGMA:g} pixels",
    "pump: mean second difference of the mean colour, levels of 0..255",
    "sharpness: mean difference of neighbouring pixels, levels of 0..255",
)


def _measures(flicker: Flicker) -> list[str]:
    return [
        _number(flicker.error * 1000, 3),
        _number(flicker.coarse_error * 1000, 3),
        _number(flicker.pump, 2),
        _number(flicker.sharpness, 2),
    ]


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def as_json(evaluation: FlickerEvaluation) -> dict[str, object]:
    """Return an evaluation for JSON, where None stands for what is infinite or not known."""

    def plain(measures: Flicker | None) -> dict[str, float | None] | None:
        if measures is None:
            return None
        return {name: _finite(value) for name, value in asdict(measures).items()}

    return {
        "frames": evaluation.frames,
        "width": evaluation.size[1],
        "height": evaluation.size[0],
        "rows": {name: plain(each) for name, each in evaluation.rows.items()},
        "output_to_per_frame": plain(evaluation.ratio("output")),
        "control_to_per_frame": plain(
            evaluation.ratio("control") if "control" in evaluation.rows else None
        ),
        "psnr": _finite(evaluation.psnr),
        "control_sigma": evaluation.control_sigma,
        "notes": list(evaluation.notes),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def is_video(path: Path, *, by_name: bool = False) -> bool:
    """Return whether ``path`` is taken for a video, which need not exist.

    ``by_name``: only what nothing but a video is called. Else also an animated image, and a file
    with the name of no image.
    """
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES or path == PIPE or parse_pattern(path.name):
        return True
    if by_name or not path.exists() or path.is_dir():
        return False
    if suffix not in ANIMATION_SUFFIXES:
        return suffix not in IMAGE_FORMATS
    try:
        if not path.is_file():  # to open a pipe would wait for a writer
            return False
        return is_animation(path)
    except OSError:
        return False


def evaluate_flicker(
    output: Path,
    source: Path,
    per_frame: Path | None = None,
    *,
    frames: int | None = None,
    watch: Watch = lambda what, done, total: None,
) -> FlickerEvaluation:
    """Measure how much the video ``output``, made from ``source``, flickers.

    ``per_frame`` is the same translation without a filter. Frames belong together by their order;
    ``frames`` limits how many are taken. Each may be whatever `translate` reads as a video, but no
    pipe. The source is scaled to the output's size. Raises InputError for what cannot be read, for
    different numbers of frames, and for a per-frame translation of another size.
    """
    translated = [_Video(path, frames) for path in (output, per_frame) if path is not None]
    videos = [_Video(source, frames, translated[0]), *translated]
    if translated[-1].size != translated[0].size:
        raise InputError(
            f"{videos[2].name}: is {_size_text(videos[2].size)}, and {videos[1].name} is "
            f"{_size_text(videos[1].size)}; translate both at the same size"
        )
    with opencv_without_threads():
        count, psnr, sigma = _first_reading(videos, watch)
        found = _second_reading(videos, sigma, count, watch)
    names: tuple[Row, ...] = ("source", "output", "per_frame", "control")
    return FlickerEvaluation(
        frames=count,
        size=translated[0].size,
        rows=dict(zip(names, found, strict=False)),
        psnr=psnr,
        control_sigma=sigma,
        notes=tuple(note for video in videos for note in video.notes()),
    )


class _Video:
    """One of the videos: its frames, as often as they are asked for."""

    def __init__(self, path: Path, frames: int | None, like: _Video | None = None) -> None:
        """``like``: whose size the frames get. Raises InputError."""
        _refuse(path)
        # The time of a frame is not used. A pattern of images has none without a frame rate.
        options = TranslateOptions(fps="25")
        # Nothing is written; a pipe is the only output that needs no encoder.
        self._plan = plan_video(path, PIPE, options, pixel_type="uint8")
        self.name = printable(path)
        self._like = like
        self.size: Size = like.size if like is not None else self._plan.size
        self._most = frames
        expected = self._plan.frames_expected
        self.frames_expected = expected if expected is None or not frames else min(expected, frames)
        self._troubles: dict[str, None] = {}

    def frames(self) -> Generator[Pixels]:
        """Yield the frames, upright, uint8 ``(H, W, 3)``. Raises InputError.

        One that cannot be decoded is left out, also of the frames that were asked for: a
        translation of the same file does not have it, either.
        """
        frames = self._readable()
        try:
            yield from itertools.islice(frames, self._most)
        finally:
            frames.close()

    def _readable(self) -> Generator[Pixels]:
        source = VideoSource(self._plan)
        convert = source.converter()
        geometry = Geometry(self._plan.size, self.size, self.size)
        try:
            for item in source.read():
                frame = item if isinstance(item, Dropped) else convert(item)
                if isinstance(frame, Dropped):
                    self._troubles[str(frame.error)] = None
                else:
                    yield geometry.into_network(frame.pixels)
        finally:
            source.close()

    def notes(self) -> Iterator[str]:
        """Yield what was found out about the file, in sentences."""
        if self._like is not None and self.size != self._plan.size:
            yield (
                f"{self.name}: its frames are scaled from {_size_text(self._plan.size)} to "
                f"{_size_text(self.size)}, the size of {self._like.name}"
            )
        if trouble := self.trouble():
            count = len(self._troubles)
            yield trouble + (f" (the first of {count} such places)" if count > 1 else "")

    def trouble(self) -> str | None:
        """Return what is damaged first in what was read, in a sentence."""
        return next(iter(self._troubles), None)


def _refuse(path: Path) -> None:
    """Raise InputError for what is no video, or can be read once only."""
    if path != PIPE and (is_remote(path) or not path.exists()):
        return
    if path == PIPE or not (path.is_dir() or path.is_file()):
        raise InputError(
            f"{printable(path)}: is a pipe or a device, and a video is read twice to be measured; "
            "write it into a file first"
        )
    if path.is_dir() or not is_video(path):
        what = "a folder" if path.is_dir() else "an image"
        raise InputError(f"{printable(path)}: is {what}; give a video, as the results are one")


def _size_text(size: Size) -> str:
    return f"{size[1]}×{size[0]}"


def _together(videos: Sequence[_Video]) -> Iterator[tuple[Pixels, ...]]:
    """Yield the frames that belong together. Raises InputError for different numbers of frames."""
    readers = [video.frames() for video in videos]
    try:
        for number in itertools.count():
            frames = [next(reader, None) for reader in readers]
            come = [frame for frame in frames if frame is not None]
            if not come:
                return
            if len(come) < len(videos):
                has_more = dict(zip((f is not None for f in frames), videos, strict=True))
                longer, shorter = has_more[True], has_more[False]
                text = (
                    f"{shorter.name}: has {counted(number, 'frame')}, and {longer.name} has more; "
                    "frames are compared in their order, so give videos of the same frames"
                )
                if trouble := shorter.trouble():
                    raise InputError(f"{text}; what is missing may be damaged: {trouble}")
                raise InputError(f"{text}, or --frames {number} where they only end differently")
            yield tuple(come)
    finally:
        for reader in readers:
            reader.close()


def _first_reading(
    videos: Sequence[_Video], watch: Watch
) -> tuple[int, float | None, float | None]:
    """Return the number of frames, the PSNR of output and per-frame, and the σ of the control."""
    count, squares, kept = 0, 0.0, _Sample()
    sharp = [0.0, 0.0]
    for _, *translated in _together(videos):
        count += 1
        if len(translated) == 2:
            squares += square_error(*translated)
            kept.add(translated[1])
            for index, frame in enumerate(translated):
                sharp[index] += sharpness(frame)
        watch("read", count, videos[1].frames_expected)
    if len(videos) == 2:
        return count, None, None
    ratio = sharp[0] / sharp[1] if sharp[1] else 1.0
    return count, decibels(squares / count), control_sigma(kept.frames, ratio)


class _Sample:
    """Some of the frames that come, evenly spaced, however many there are."""

    def __init__(self) -> None:
        self.frames: list[Pixels] = []
        self._step, self._come = 1, 0

    def add(self, pixels: Pixels) -> None:
        """Take the next frame, and perhaps keep it."""
        if self._come % self._step == 0:
            self.frames.append(pixels)
            most = min(_SAMPLED, max(2, _SAMPLED_BYTES // pixels.nbytes))
            if len(self.frames) > most:
                self.frames, self._step = self.frames[::2], 2 * self._step
        self._come += 1


def _second_reading(
    videos: Sequence[_Video], sigma: float | None, count: int, watch: Watch
) -> list[Flicker]:
    """Return the measures of the videos, and of the control where there is one.

    Where pixels were in the frame before is found for several frames side by side.
    """
    tallies = [Tally() for _ in range(len(videos) + (sigma is not None))]
    threads = min(cpu_threads(), _MOST_THREADS)
    waiting: deque[tuple[list[Pixels], Future[Seen | None] | None]] = deque()
    done = 0
    pool = ThreadPoolExecutor(threads)

    def measure() -> None:
        nonlocal done
        rows, future = waiting.popleft()
        seen = future.result() if future is not None else None
        list(pool.map(lambda tally, pixels: tally.add(pixels, seen), tallies, rows))
        done += 1
        watch("compared", done, count)

    try:
        before: Pixels | None = None
        for source, *translated in _together(videos):
            rows = [source, *translated]
            if sigma is not None:
                rows.append(blurred(translated[1], sigma))
            future = pool.submit(Seen.between, source, before) if before is not None else None
            waiting.append((rows, future))
            before = source
            if len(waiting) > threads:
                measure()
        while waiting:
            measure()
    finally:
        # After Ctrl-C only what has begun is waited for, which is a part of a second.
        pool.shutdown(cancel_futures=True)
    return [tally.result() for tally in tallies]
