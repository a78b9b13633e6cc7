"""The description of media files, and the files that are refused before they can do harm."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.errors import InputError
from cyclegan_batch.media.demux.demuxing import demux, open_container
from cyclegan_batch.media.demux.description import describe
from cyclegan_batch.media.demux.probe import probe
from cyclegan_batch.media.demux.stream_info import colour_names
from tests.media.demux.openings import Openings
from tests.needs import need
from tests.synthesis import pictures, streams

ORIENTATIONS = [(degrees, mirrored) for degrees in (0, 90, 180, 270) for mirrored in (False, True)]


def test_an_mp4_is_described_with_all_its_streams(tmp_path: Path) -> None:
    info = probe(streams.mp4(tmp_path / "a.mp4"))

    assert info.format.startswith("mov,mp4")
    assert info.duration == 2
    assert [s.codec for s in info.streams] == [
        "h264", "aac", "aac", "mov_text", "bin_data", "png",
    ]  # fmt: skip
    assert [s.metadata.get("language") for s in info.streams[1:4]] == ["eng", "deu", "fra"]
    assert [c["metadata"]["title"] for c in info.chapters] == ["Dawn", "Däy"]
    video = info.best_video()
    assert (video.index, video.size, video.displayed_size) == (0, (48, 64), (48, 64))
    assert (video.average_rate, video.constant_rate, video.frames_claimed) == (25, True, 50)
    assert (video.pix_fmt, video.bits, video.interlaced, video.hdr) == ("yuv420p", 8, False, None)
    assert info.streams[5].attached_picture
    assert (info.streams[1].sample_rate, info.streams[1].channels) == (48000, 2)


def test_the_description_is_json_with_colours_by_name_or_untagged(tmp_path: Path) -> None:
    path = streams.plain(tmp_path / "a.mkv")
    description = json.loads(json.dumps(describe(probe(path, count_frames=True))))

    video = description["streams"][0]
    assert (video["frames"], video["frames_are"]) == (25, "counted")
    assert video["colour"] == dict.fromkeys(
        ("matrix", "primaries", "transfer", "range"), "untagged"
    )
    assert (video["size"], video["rate"], video["constant_rate"]) == ("64x48", "25/1", True)
    assert description["streams"][1]["codec"] == "aac"


def test_frames_are_claimed_by_the_index_or_unknown_until_they_are_counted(tmp_path: Path) -> None:
    mp4, mkv = streams.plain(tmp_path / "a.mp4"), streams.plain(tmp_path / "a.mkv")
    assert describe(probe(mp4))["streams"][0]["frames_are"] == "claimed"
    assert describe(probe(mkv))["streams"][0]["frames_are"] == "unknown"
    assert probe(mkv, count_frames=True).best_video().frames_counted == 25


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_a_constant_rate_is_found_in_every_container(tmp_path: Path, name: str) -> None:
    codec, sound = ("mpeg4", "libmp3lame") if name == "a.avi" else ("libx264", "aac")
    info = probe(streams.plain(tmp_path / name, codec=codec, audio=sound))
    assert info.best_video().constant_rate is True


@pytest.mark.parametrize("count_frames", [False, True])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_variable_rate_is_found(tmp_path: Path, name: str, count_frames: bool) -> None:
    info = probe(streams.variable_rate(tmp_path / name), count_frames=count_frames)
    assert info.best_video().constant_rate is False


@pytest.mark.parametrize(("degrees", "mirrored"), ORIENTATIONS)
def test_all_eight_orientations_are_read_as_ffmpeg_turns_them(
    tmp_path: Path, degrees: int, mirrored: bool
) -> None:
    # To mirror and then turn is the same as to turn the other way and then mirror.
    rotation = -degrees if mirrored else degrees
    path = streams.plain(
        tmp_path / "a.mp4", frames=1, audio=None, rotation=(rotation, mirrored, False)
    )
    video = probe(path).best_video()

    assert (video.rotation, video.mirrored) == (degrees, mirrored)
    assert video.displayed_size == ((64, 48) if degrees % 180 else (48, 64))
    with open_container(path) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    ours = np.rot90(np.fliplr(stored) if mirrored else stored, degrees // 90)
    assert np.abs(ours.astype(int) - _turned_by_ffmpeg(path, ours.shape[:2])).mean() < 3


def _turned_by_ffmpeg(path: Path, size: tuple[int, int]) -> np.ndarray:
    need("ffmpeg")
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        check=True,
        capture_output=True,
    ).stdout
    return np.frombuffer(raw, np.uint8).reshape(*size, 3).astype(int)


def test_interlacing_and_sample_aspect_are_reported(tmp_path: Path) -> None:
    fields = probe(streams.plain(tmp_path / "i.mkv", interlaced=True))
    assert fields.best_video().interlaced is True
    wide = probe(streams.plain(tmp_path / "w.mp4", sample_aspect_ratio=Fraction(4, 3)))
    assert wide.best_video().sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG"), (1, None)])
def test_high_dynamic_range_is_recognised_by_its_transfer(
    tmp_path: Path, transfer: int, name: str | None
) -> None:
    path = tmp_path / "hdr.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        stream.codec_context.color_trc = transfer
        stream.codec_context.color_primaries = stream.codec_context.colorspace = 9
        stream.codec_context.color_range = 1
        frame = av.VideoFrame(64, 48, "yuv420p10le")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        output.mux([*stream.encode(frame), *stream.encode(None)])
    video = probe(path).best_video()
    assert (video.hdr, video.bits) == (name, 10)
    assert colour_names(video.colour)["matrix"] == "bt2020nc"
    assert colour_names(video.colour)["range"] == "limited"


@pytest.mark.behaviour(5)
@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_closed_captions_inside_the_video_are_reported(tmp_path: Path, name: str) -> None:
    assert probe(streams.captioned(tmp_path / name)).best_video().closed_captions
    assert not probe(streams.plain(tmp_path / f"b{name}")).best_video().closed_captions


@pytest.mark.behaviour(4)
def test_the_best_video_is_the_largest_and_a_named_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    _remux(
        path, [streams.plain(tmp_path / "s.mp4", size=(32, 32)), streams.plain(tmp_path / "l.mp4")]
    )
    info = probe(path)
    assert info.best_video().size == (48, 64)
    assert info.best_video(0).size == (32, 32)
    with pytest.raises(InputError, match=r"stream 1 is no video; found 0 \(video h264.*: 0, 2"):
        info.best_video(1)
    with pytest.raises(InputError, match="stream 9 is no video"):
        info.best_video(9)


def _remux(path: Path, sources: list[Path]) -> None:
    with av.open(str(path), "w") as output:
        containers = [av.open(str(source)) for source in sources]
        pairs = [
            (container, stream, output.add_stream_from_template(stream, opaque=True))
            for container in containers
            for stream in container.streams
        ]
        for container, stream, copy in pairs:
            container.seek(0)
            for packet in container.demux(stream):
                if packet.size:
                    packet.stream = copy
                    output.mux(packet)
        for container in containers:
            container.close()


@pytest.mark.behaviour(17)
@pytest.mark.parametrize(
    "name",
    [b"with space.mp4", b"\xff\xfe\x80.mp4", b"100%d [a] 'q'.mp4", "🦓.mp4".encode(), b"-y.mp4",
     b"x" * 246 + b".mp4", b"http:__x|y.mp4"],
)  # fmt: skip
def test_files_of_every_name_can_be_opened(tmp_path: Path, name: bytes) -> None:
    path = streams.plain(tmp_path / "a.mp4", frames=3).rename(tmp_path / os.fsdecode(name))
    info = probe(path)
    assert info.best_video().frames_claimed == 3
    assert describe(info)["file"].encode()


def test_tags_that_are_not_utf8_do_not_stop_the_reading(tmp_path: Path) -> None:
    path = streams.mkv(tmp_path / "a.mkv", frames=3)
    path.write_bytes(path.read_bytes().replace(b"A title", b"A \xff\xfetle"))
    info = probe(path)
    assert info.metadata["title"].encode(errors="surrogateescape") == b"A \xff\xfetle"
    assert json.dumps(describe(info)).encode()


def test_a_stream_that_appears_while_reading_raises_nothing_at_the_end() -> None:
    class Late:
        """Raise what PyAV 18.1 raises at the end of an MPEG-TS in which a stream appeared."""

        def demux(self, streams: list[Any]) -> Iterator[Any]:
            yield from streams
            raise IndexError("list index out of range")

    both: list[Any] = [SimpleNamespace(index=n, codec_context=None) for n in range(2)]
    assert list(demux(Late(), both)) == both  # type: ignore[arg-type]


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.mp4", None, r"missing\.mp4 does not exist; check the spelling"),
        ("folder", "folder", "is a folder where a media file was expected"),
        ("empty.mp4", b"", r"is empty \(0 bytes\); copy or record it again"),
        (
            "text.mp4",
            b"Once upon a time\n" * 50,
            "is no media format that is read here.*give a video",
        ),
        ("noise.mkv", bytes(range(256)) * 40, "is no media format that is read here"),
    ],
)
def test_what_is_no_media_file_errors(
    tmp_path: Path, name: str, content: bytes | str | None, words: str
) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        probe(path)


def test_a_pipe_in_the_place_of_a_file_errors(tmp_path: Path) -> None:
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    with pytest.raises(InputError, match="is no regular file"):
        probe(path)


@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.wav", "a.m4a"])
def test_sound_alone_has_no_video_to_translate_errors(tmp_path: Path, name: str) -> None:
    info = probe(streams.audio_only(tmp_path / name))
    with pytest.raises(InputError, match=r"no video stream; found 0 \(audio .*give a file"):
        info.best_video()


def test_an_attached_picture_is_no_video_errors(tmp_path: Path) -> None:
    info = probe(streams.picture_and_sound(tmp_path / "a.mp4"))
    with pytest.raises(InputError, match="only an attached picture, no video"):
        info.best_video()


TRAPS: dict[str, Callable[[Path], str]] = {
    "hls": lambda v: f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{v}\n#EXT-X-ENDLIST\n",
    "concat": lambda v: f"ffconcat version 1.0\nfile '{v}'\n",
    "sdp": lambda v: (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
    ),
    "dash": lambda v: (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet><Representation '
        f'id="1" bandwidth="1"><BaseURL>{v}</BaseURL></Representation></AdaptationSet></Period>'
        "</MPD>"
    ),
    "url": lambda v: f"http://127.0.0.1:9/{v.name}\n",
}


@pytest.mark.behaviour(45)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".m3u8"])
@pytest.mark.parametrize("trap", TRAPS)
def test_a_playlist_or_script_reads_no_other_file_errors(
    tmp_path: Path, trap: str, suffix: str
) -> None:
    secret = streams.plain(tmp_path / "secret.ts", frames=3)
    path = tmp_path / f"trap{suffix}"
    path.write_text(TRAPS[trap](secret))

    openings = Openings(secret)
    with pytest.raises(InputError, match="is no media format that is read here"):
        probe(path)
    assert openings.count() == 0


@pytest.mark.behaviour(45)
@pytest.mark.parametrize("trap", ["hls", "concat"])
def test_the_traps_are_real(tmp_path: Path, trap: str) -> None:
    # Without the lists of allowed formats FFmpeg reads the other file, so the test above can fail.
    secret = streams.plain(tmp_path / "secret.ts", frames=3)
    path = tmp_path / ("trap.m3u8" if trap == "hls" else "trap.mp4")
    path.write_text(TRAPS[trap](secret))
    openings = Openings(secret)
    options = {"protocol_whitelist": "file", **({"safe": "0"} if trap == "concat" else {})}
    with av.open(f"file:{path}", container_options=options) as container:
        assert container.streams.video
    assert openings.count() > 0


# Patterns


def test_a_pattern_of_images_is_read_from_its_lowest_number(tmp_path: Path) -> None:
    folder = tmp_path / "50%d off"
    folder.mkdir()
    for number in (7, 8, 9):
        (folder / f"f_{number:03d}.png").write_bytes(streams.cover_picture())
    info = probe(folder / "f_%03d.png", image_pattern_rate=Fraction(30000, 1001), count_frames=True)
    video = info.best_video()
    assert video.frames_counted == 3
    assert video.average_rate == Fraction(30000, 1001)
    assert video.size == (16, 16)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("g_%03d.png", "no file matches .*g_%03d"),
        ("f_7.png", "is no pattern of numbered images: write exactly one number"),
    ],
)
def test_a_pattern_that_matches_nothing_errors(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "f_007.png").write_bytes(streams.cover_picture())
    with pytest.raises(InputError, match=words):
        probe(tmp_path / name, image_pattern_rate=Fraction(25))


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_pattern_of_images_is_turned_by_their_exif(
    tmp_path: Path, suffix: str, turn: int
) -> None:
    upright = pictures.photo()
    stored = pictures.turned(upright, turn)
    format_ = {"jpg": "JPEG", "png": "PNG"}[suffix]
    data = pictures.pillow(stored, format_, "RGB", exif=pictures.exif(turn, artist="A"))
    (tmp_path / f"f_1.{suffix}").write_bytes(data)
    video = probe(tmp_path / f"f_%d.{suffix}", image_pattern_rate=Fraction(25)).best_video()
    assert video.displayed_size == (48, 64)
    turned = np.rot90(np.fliplr(stored) if video.mirrored else stored, video.rotation // 90)
    assert np.array_equal(turned, upright)
