"""A video that is encoded in stretches is, once joined, the frames of its stretches and no others.

`why_in_one_piece` answers None for an encoder only if it is tried here: the stretches of each are
joined, and what is decoded of the file is compared with what is decoded of every stretch alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.machine import own_scheduling
from cyclegan_batch.media.alpha import Alpha, decoder
from cyclegan_batch.media.demux.demuxing import demux, open_container
from cyclegan_batch.media.mux.assemble import assemble
from cyclegan_batch.media.mux.containers import CONTAINERS
from cyclegan_batch.media.mux.joined_video import Stretch
from cyclegan_batch.media.video import encoder as encoder_module
from cyclegan_batch.media.video.colour import FromRGB
from cyclegan_batch.media.video.encoder import add_encoder, why_in_one_piece
from cyclegan_batch.media.video.plan import VideoPlan, plan_video
from cyclegan_batch.options import TranslateOptions

_SPLIT = (7, 1, 5)
"""Frames of each stretch: more than the delay of any encoder, and fewer."""
_GAPS = (40, 40, 120, 40, 80, 40, 160, 40, 40, 80, 40, 120, 40)
"""Milliseconds from each frame to the next: a variable rate."""
_SIZES = {"dnxhd": (128, 256), "dvvideo": (576, 720)}
_FAST = {
    "libx264": "veryfast",
    "libx264rgb": "veryfast",
    "libx265": "ultrafast",
    "libsvtav1": "12",
}
_NEEDED = {
    "dnxhd": {"profile": "dnxhr_sq"},
    "libvpx": {"cpu-used": "8"},
    "libvpx-vp9": {"cpu-used": "8"},
    "mjpeg": {"strict": "unofficial"},
    "ljpeg": {"strict": "unofficial"},
}
_SUFFIXES = {"qtrle": ".mov", "utvideo": ".avi"}
"""Containers other than MKV, which does not take these codecs."""


@dataclass(frozen=True)
class _Case:
    """One way to encode."""

    codec: str
    options: tuple[tuple[str, str], ...] = ()
    pix_fmt: str | None = None
    interlaced: bool = False
    alpha: bool = False
    suffix: str = ".mkv"

    def __str__(self) -> str:
        words = [self.codec, *(f"{key}={value}" for key, value in self.options), self.pix_fmt]
        marks = ["interlaced"] * self.interlaced + ["alpha"] * self.alpha
        return " ".join(filter(None, [*words, *marks, self.suffix]))


_PLAIN = [
    _Case(codec, suffix=_SUFFIXES.get(codec, ".mkv")) for codec in sorted(encoder_module._JOINABLE)
]
_OTHERS = [
    _Case("libx264", (("x264-params", "open-gop=1:keyint=4:bframes=2"),)),
    _Case("libx264", (("x264-params", "intra-refresh=1:keyint=5"),)),
    _Case("libx264", (("qp", "0"),), "yuv444p"),
    _Case("libx264", (), "yuv420p10le"),
    _Case("libx264", interlaced=True),
    _Case("libx265", (("x265-params", "open-gop=1:keyint=4:bframes=2"),)),
    _Case("libx265", (("x265-params", "lossless=1"),), "yuv420p10le"),
    _Case("libsvtav1", (("svtav1-params", "keyint=4:film-grain=8"),)),
    _Case("libvpx-vp9", (("lossless", "1"), ("cpu-used", "8"))),
    _Case("libvpx-vp9", alpha=True, suffix=".webm"),
    _Case("libvpx", alpha=True, suffix=".webm"),
    _Case("mpeg4", (("bf", "2"),), suffix=".mp4"),
    _Case("mpeg4", (("bf", "2"),), suffix=".avi"),
    _Case("mpeg2video", (("bf", "2"),), suffix=".ts"),
    _Case("mpeg2video", (("bf", "2"),), interlaced=True),
    _Case("mpeg1video", (("bf", "2"),)),
    _Case("prores_ks", (("profile", "4444"),), alpha=True, suffix=".mov"),
    _Case("prores_ks", interlaced=True, suffix=".mov"),
    _Case("ffv1", (("level", "3"), ("g", "3"), ("context", "1")), alpha=True),
    _Case("ffv1", interlaced=True),
    _Case("ffvhuff", (("context", "1"),)),
    _Case("qtrle", alpha=True, suffix=".mov"),
    _Case("png", alpha=True),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.mark.behaviour(1, 2, 19, 28)
@pytest.mark.parametrize("case", [*_PLAIN, *_OTHERS], ids=str)
def test_the_stretches_of_a_joinable_encoder_join_without_a_seam(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch, case: _Case
) -> None:
    plan = _plan(case, sources, tmp_path / f"out{case.suffix}")
    assert why_in_one_piece(plan.encoder) is None
    assert (plan.encoder.alpha, plan.encoder.fields is not None) == (case.alpha, case.interlaced)
    stretches = _stretches(plan, tmp_path)
    _check_join(plan, stretches)

    # Neither another run nor another machine writes other bits.
    before = _packets(stretches[0].path)
    monkeypatch.setattr(encoder_module, "cpu_threads", lambda: 16)
    first = next(_parts(plan))
    _encode(_plan(case, sources, plan.output), first, stretches[0].path)
    assert _packets(stretches[0].path) == before


@pytest.mark.slow
@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize("case", [*_PLAIN, *_OTHERS], ids=str)
def test_stretches_join_in_every_container_that_takes_them(
    tmp_path: Path, sources: Path, case: _Case
) -> None:
    joined = 0
    for suffix, rate in itertools.product(CONTAINERS, ("constant", "variable")):
        output = tmp_path / f"{rate}{suffix}"
        try:
            plan = _plan(case, sources, output, variable=rate == "variable")
        except OutputError:
            continue
        if (plan.encoder.fields is not None) != case.interlaced or plan.encoder.alpha < case.alpha:
            continue
        _check_join(plan, _stretches(plan, tmp_path))
        joined += 1
    assert joined


@pytest.mark.parametrize(
    ("codec", "options", "cause"),
    [
        ("libx264", {"b": "2M"}, "b=2M"),
        ("libx264", {"crf": "20", "maxrate": "2M", "bufsize": "4M"}, "maxrate=2M"),
        ("libx264", {"x264-params": "ref=2:vbv_maxrate=900:vbv-bufsize=900"}, "vbv-maxrate=900"),
        ("libx264", {"x264-params": "bitrate=900"}, "bitrate=900"),
        ("libx264", {"nal-hrd": "vbr", "maxrate": "1M", "bufsize": "1M"}, "nal-hrd=vbr"),
        ("libx264", {"x264-params": "zones=0,5,q=20"}, "zones=0,5,q=20"),
        ("libx265", {"x265-params": "bitrate=900"}, "bitrate=900"),
        ("libx265", {"x265-params": "vbv-maxrate=900:vbv-bufsize=900:hrd=1"}, "vbv-maxrate=900"),
        ("libsvtav1", {"svtav1-params": "rc=1:tbr=500"}, "rc=1"),
        ("libsvtav1", {"b": "1M"}, "b=1M"),
        ("libvpx-vp9", {"crf": "30", "b": "1M"}, "b=1M"),
        ("libvpx", {"b": "1M"}, "b=1M"),
        ("libvpx", {"crf": "8"}, "bit rate"),
        ("mpeg4", {"b": "1M"}, "b=1M"),
        ("mpeg2video", {"global_quality": "300"}, "bit rate"),
    ],
)
def test_a_rate_that_spans_frames_makes_the_video_one_piece(
    tmp_path: Path, sources: Path, codec: str, options: dict[str, str], cause: str
) -> None:
    plan = _plan(_Case(codec, tuple(options.items())), sources, tmp_path / "out.mkv")
    assert why_in_one_piece(plan.encoder) == (
        f"{codec}'s {cause} spans the whole video, so it is encoded in one piece: "
        "a killed run begins it anew"
    )


@pytest.mark.parametrize("codec", ["gif", "h261", "h263p", "snow", "amv", "speedhq"])
def test_an_encoder_that_was_not_shown_to_join_makes_the_video_one_piece(
    tmp_path: Path, sources: Path, codec: str
) -> None:
    size = (144, 176) if codec == "h261" else (64, 96)
    suffix = ".mov" if codec == "gif" else ".mkv"
    plan = _plan(_Case(codec), sources, tmp_path / f"out{suffix}", size=size)
    reason = why_in_one_piece(plan.encoder)
    assert reason is not None
    assert reason.startswith(f"parts of it that {codec} encodes one by one are not known to join, ")


def test_y4m_is_one_piece(tmp_path: Path, sources: Path) -> None:
    plan = _plan(_Case("libx264"), sources, tmp_path / "out.y4m")
    assert why_in_one_piece(plan.encoder)


# How it is done


def _picture(number: int, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[: size[0], : size[1]]
    planes = [x * 2 + number * 9, y * 2 + number * 5, x + y + number * 13]
    picture = (np.stack(planes, -1) % 256).astype(np.uint8)
    picture[:, 4 * number % size[1] :][:, :6] = 255
    return picture


def _source(folder: Path, size: tuple[int, int], *, variable: bool, case: _Case) -> Path:
    """Return a video of one frame per gap, or at 25 frames per second, with MKV's ticks of 1 ms."""
    name = f"{size[1]}-{variable}-{case.alpha}-{case.interlaced}.mkv"
    path = folder / name
    if not path.exists():
        with av.open(str(path), "w") as output:
            stream: Any = output.add_stream("libx264" if case.interlaced else "ffv1", rate=25)
            stream.height, stream.width = size
            stream.pix_fmt = "yuva420p" if case.alpha else "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            if case.interlaced:
                stream.options = {"x264-params": "tff=1"}
            for number, time in enumerate(_times(variable)):
                frame = av.VideoFrame.from_ndarray(_picture(number, size))
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path


def _times(variable: bool) -> list[int]:
    gaps = _GAPS if variable else (40,) * len(_GAPS)
    return list(itertools.accumulate(gaps[:-1], initial=0))


def _plan(
    case: _Case,
    sources: Path,
    output: Path,
    *,
    variable: bool | None = None,
    size: tuple[int, int] | None = None,
) -> VideoPlan:
    if variable is None:
        variable = output.suffix != ".avi"
    size = size or _SIZES.get(case.codec, (64, 96))
    source = _source(sources, size, variable=variable, case=case)
    options = TranslateOptions(
        codec=case.codec,
        preset=_FAST.get(case.codec),
        pix_fmt=case.pix_fmt,
        encoder_opt=_NEEDED.get(case.codec, {}) | dict(case.options),
    )
    return plan_video(source, output, options, pixel_type="uint8")


def _parts(plan: VideoPlan) -> Iterator[list[tuple[int, int]]]:
    """Yield number and time of the frames of each stretch."""
    with open_container(plan.path) as container:
        times = sorted(packet.pts for packet in container.demux(video=0) if packet.size)
    frames = iter(enumerate(times))
    # Large frames make a slow test.
    for count in (2, 1, 1) if plan.size[0] > 500 else _SPLIT:
        yield list(itertools.islice(frames, count))


def _stretches(plan: VideoPlan, folder: Path) -> list[Stretch]:
    stretches = []
    for number, part in enumerate(_parts(plan)):
        path = folder / f".{number}.partial"
        _encode(plan, part, path)
        times = tuple(time for _, time in part)
        stretches.append(Stretch(path, plan.stream.time_base, times, 40))
    return stretches


def _encode(plan: VideoPlan, frames: list[tuple[int, int]], path: Path) -> None:
    """Encode one stretch as the sink of a video does."""
    encoder, size = plan.encoder, plan.output_size
    from_rgb = FromRGB(plan.colour, encoder.pix_fmt, encoder.fields)
    options = {}
    if encoder.format in ("mp4", "mov"):
        options["movie_timescale"] = str(encoder.time_base.denominator)
    first = frames[0][1]
    with (
        own_scheduling(),
        av.open(str(path), "w", format=encoder.format, container_options=options) as output,
    ):
        stream = add_encoder(output, encoder, plan.colour, size, plan.sample_aspect_ratio)
        for position, (number, time) in enumerate(frames):
            alpha = None
            if encoder.alpha:
                alpha = Alpha(np.full(size, 17 * number % 256, np.uint8), 8)
            frame = from_rgb(
                _picture(number, size), interlaced=encoder.fields is not None, alpha=alpha
            )
            frame.pts = position if encoder.counts_frames else time - first
            frame.time_base = encoder.time_base
            output.mux(stream.encode(frame))
        last = stream.encode(None)
        if len(frames) <= 2 and last[:1] and last[0].pts == 0:
            # x265 does not know its delay yet.
            for position, packet in enumerate(last):
                packet.dts = position - len(last)
        output.mux(last)


def _check_join(plan: VideoPlan, stretches: list[Stretch]) -> None:
    """Assert that the joined file holds the frames of all stretches, at their times."""
    assert plan.streams is not None
    assemble(stretches, plan.streams, plan.output)
    joined = _decoded(plan.output, plan)
    alone = [_decoded(stretch.path, plan) for stretch in stretches]
    if alone[0][0].format.name != joined[0].format.name:
        # The container decides: ProRes 4444 has 10 bits in MKV and 12 in MOV.
        alone = [_decoded(_alone(stretch, plan), plan) for stretch in stretches]
    assert [len(frames) for frames in alone] == [len(stretch.times) for stretch in stretches]
    expected = list(itertools.chain.from_iterable(alone))
    assert len(joined) == len(expected)
    assert [_pixels(frame) for frame in joined] == [_pixels(frame) for frame in expected]
    if plan.encoder.fields is not None:
        assert all(frame.interlaced_frame for frame in joined)
    if plan.output.suffix == ".avi":
        # AVI counts frames in decoding order.
        return
    times = [time for stretch in stretches for time in stretch.times]
    start = joined[0].time
    for frame, time in zip(joined, times, strict=True):
        assert frame.time - start == pytest.approx(time / 1000, abs=0.0011)


def _alone(stretch: Stretch, plan: VideoPlan) -> Path:
    """Return the stretch in the container of the output."""
    output = stretch.path.with_suffix(plan.output.suffix)
    assert plan.streams is not None
    assemble([stretch], plan.streams, output)
    return output


def _packets(path: Path) -> list[bytes]:
    with open_container(path) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def _decoded(path: Path, plan: VideoPlan) -> list[av.VideoFrame]:
    with open_container(path) as container:
        stream = container.streams.video[0]
        decode = decoder(stream, alpha=plan.encoder.alpha)
        frames = [frame for packet in demux(container, [stream]) for frame in decode(packet)]
    assert not plan.encoder.alpha or all("a" in frame.format.name for frame in frames)
    return frames


def _pixels(frame: av.VideoFrame) -> list[bytes]:
    """Return the planes without the padding of their rows."""
    return [
        np.frombuffer(plane, np.uint8)
        .reshape(plane.height, plane.line_size)[:, : plane.width]
        .tobytes()
        for plane in frame.planes
    ]
