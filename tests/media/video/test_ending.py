"""Damage is found each time: FFmpeg's frame threads mark a concealed frame only by chance."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from av.codec.context import Flags

from cyclegan_batch.media import Dropped
from cyclegan_batch.media.video import ending
from cyclegan_batch.media.video.decoding import FrameReader
from cyclegan_batch.media.video.ending import Ending
from cyclegan_batch.media.video.source import VideoSource
from tests.media.identity import plan
from tests.synthesis.videos import moving, pes_starts

TIMES = 40
"""Readings; without a remedy about a quarter of them miss the damage."""


def cut_in_its_last_frame(folder: Path, options: dict[str, str] | None = None) -> Path:
    """MPEG-TS of 40 frames, the last of which (nothing refers to it) is there by half."""
    whole = moving(folder / "whole.ts", frames=40, options={"g": "12", **(options or {})})
    content = whole.read_bytes()
    last = pes_starts(content)[-1]
    source = folder / "cut.ts"
    source.write_bytes(content[: last + (len(content) - last) // 2 // 188 * 188])
    return source


def shortened(path: Path, whole: Path, number: int) -> Path:
    """Leave out the last five bytes of one packet."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for index, packet in enumerate(packets):
            copy = av.Packet(bytes(packet)[: -5 if index == number else None])
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
            copy.stream = stream
            output.mux(copy)
    return path


def concealed(source: Path) -> set[tuple[int, ...]]:
    """Return which frames are reported as damaged, in all readings."""
    planned = plan(source, source.with_name("out.mkv"))
    found = set()
    for _ in range(TIMES):
        reader = VideoSource(planned)
        dropped = [item for item in reader.read() if isinstance(item, Dropped)]
        reader.close()
        assert all("concealed" in str(each.error) for each in dropped)
        found.add(tuple(each.place.number for each in dropped if each.place))
    return found


@pytest.mark.behaviour(1, 22)
def test_a_transport_stream_that_is_cut_in_its_last_frame_is_found_each_time(tmp_path):
    # In presentation order it is the last but one.
    assert concealed(cut_in_its_last_frame(tmp_path)) == {(38,)}


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("number", [18, 21])
def test_damage_in_a_frame_to_which_nothing_refers_is_found_each_time(tmp_path, number):
    whole = moving(tmp_path / "whole.ts", frames=40, options={"g": "12", "coder": "1"})
    found = concealed(shortened(tmp_path / "in.ts", whole, number))
    assert len(found) == 1
    assert len(found.pop()) == 1


def ends_damaged(source: Path) -> bool:
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        stream.codec_context.flags |= Flags.output_corrupt
        last = Ending(stream)
        for packet in container.demux(stream):
            last.take(packet)
        return last.is_damaged()


@pytest.mark.behaviour(1, 22)
@pytest.mark.parametrize("most", [1024, 20, 3])
@pytest.mark.parametrize("group", ["1", "12", "18", "500"])
def test_one_thread_finds_it_also_where_a_group_of_pictures_is_too_long_to_be_kept(
    tmp_path, monkeypatch, most, group
):
    monkeypatch.setattr(ending, "_MOST_PACKETS", most)
    source = cut_in_its_last_frame(tmp_path, {"g": group, "x264-params": "scenecut=0"})
    assert ends_damaged(source)
    assert not ends_damaged(tmp_path / "whole.ts")


@pytest.mark.behaviour(1)
@pytest.mark.parametrize("begins", [0, 1 / 4, 3 / 4])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "20", "bf": "0"}),
        ("libx264", {"g": "20", "x264-params": "open-gop=1:bframes=3:b-pyramid=normal"}),
        ("libx264", {"g": "20", "x264-params": "intra-refresh=1"}),
        ("libx264", {"g": "20", "x264-params": "interlaced=1:bframes=3"}),
        ("libx265", {"x265-params": "log-level=none:keyint=20:min-keyint=20:open-gop=1"}),
        ("mpeg4", {"g": "20", "bf": "2"}),
        ("mpeg2video", {"g": "20", "bf": "2"}),
    ],
)
def test_the_end_of_a_whole_video_is_not_taken_for_damaged(
    tmp_path, monkeypatch, codec, options, begins
):
    """Also of a recording that begins between two key frames."""
    source = moving(tmp_path / "in.ts", frames=70, codec=codec, options=options)
    content = source.read_bytes()
    source.write_bytes(content[int(len(content) * begins) // 188 * 188 :])
    passes = []
    decode = FrameReader._decode

    def counted(self, *, careful):
        passes.append(careful)
        return decode(self, careful=careful)

    monkeypatch.setattr(FrameReader, "_decode", counted)
    reader = VideoSource(plan(source, tmp_path / "out.mkv"))
    items = list(reader.read())
    reader.close()
    assert not any(isinstance(item, Dropped) for item in items)
    assert passes == [False]


def test_only_the_last_groups_of_pictures_are_decoded_twice(tmp_path, monkeypatch):
    decoded = []
    take = ending._Check.take

    def counted(self, packet, **how):
        decoded.append(packet)
        take(self, packet, **how)

    monkeypatch.setattr(ending._Check, "take", counted)
    assert not ends_damaged(moving(tmp_path / "in.ts", frames=100, options={"g": "12"}))
    # From frame 84 on, which is the last key frame but one, and to the end of the file.
    assert len(decoded) == 100 - 84 + 1
