"""Videos that are objects of a store: what is read of them, and what they cannot reach."""

from __future__ import annotations

import contextlib
import functools
import gc
import http.server
import socketserver
import struct
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from cyclegan_batch import remote
from cyclegan_batch.errors import InputError
from cyclegan_batch.media.demux import demuxing
from cyclegan_batch.media.demux.demuxing import demux, open_container
from cyclegan_batch.media.demux.description import describe
from cyclegan_batch.media.demux.probe import probe
from cyclegan_batch.remote import RemotePath
from tests.media.demux.openings import Openings
from tests.needs import need
from tests.synthesis import streams, videos

need("fsspec")


def stored(local: Path, bucket: RemotePath, name: str = "") -> RemotePath:
    path = bucket / (name or local.name)
    path.write_bytes(local.read_bytes())
    return path


def packets(path: Path) -> list[tuple[int, int | None, bytes]]:
    with open_container(path) as container:
        found = demux(container, list(container.streams))
        return [(each.stream_index, each.pts, bytes(each)) for each in found if each.size]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "ts", "nut", "flv", "wmv"])
def test_an_object_is_described_and_read_like_the_file(
    tmp_path: Path, memory_store: RemotePath, suffix: str
) -> None:
    local = (streams.mp4 if suffix == "mp4" else streams.plain)(tmp_path / f"a.{suffix}")
    path = stored(local, memory_store)
    described = describe(probe(path, count_frames=True))
    assert described == describe(probe(local, count_frames=True)) | {"file": str(path)}
    assert packets(path) == packets(local)


@pytest.mark.parametrize("name", ["h264", "x.dv", "concat:a|b.mp4", "50%d.mp4", "a b#?.mp4"])
def test_the_name_of_an_object_is_only_a_name(
    tmp_path: Path, memory_store: RemotePath, name: str
) -> None:
    local = streams.plain(tmp_path / "a.mp4", frames=3)
    assert packets(stored(local, memory_store, name)) == packets(local)


def test_a_stream_without_a_container_is_known_by_the_end_of_its_name(
    tmp_path: Path, memory_store: RemotePath
) -> None:
    local = videos.elementary_stream(tmp_path / "a.h264", frames=5)
    assert probe(stored(local, memory_store)).format == probe(local).format == "h264"


def test_joined_flv_files_are_read_to_their_end(tmp_path: Path, memory_store: RemotePath) -> None:
    first = streams.plain(tmp_path / "a.flv", frames=5, audio=None)
    local = tmp_path / "b.flv"
    local.write_bytes(2 * first.read_bytes())
    path = stored(local, memory_store)
    assert len(packets(path)) == 10
    assert packets(path) == packets(local)


# What an object may refer to


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the folder; return its URL, and what is asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def alias(path: str) -> bytes:
    """Return a Macintosh alias record with an absolute path, as FFmpeg's mov demuxer reads it."""
    name = path.encode()
    name += bytes(len(name) % 2)
    record = bytes(10) + bytes([0]) + bytes(27) + bytes(12) + bytes([0]) + bytes(63) + bytes(16)
    record += struct.pack(">HH", 0, 0) + bytes(16) + struct.pack(">HH", 2, len(name)) + name
    return record + b"\xff\xff\0\0"


def with_external_data(path: Path, target: str) -> Path:
    """Write an MP4 whose only track lies in another file, by its data reference (14496-12, 8.7)."""
    content = bytearray(streams.plain(path, frames=3).read_bytes())
    at = content.index(b"url \0\0\0\1") - 4
    entry = b"alis" + bytes(4) + alias(target)
    entry = struct.pack(">I", len(entry) + 4) + entry
    content[at : at + 12] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        start = content.index(box) - 4
        (size,) = struct.unpack_from(">I", content, start)
        struct.pack_into(">I", content, start, size + len(entry) - 12)
    path.write_bytes(content)
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


TRAPS: dict[str, Callable[[Path, str], Path]] = {
    "hls": lambda path, url: text(
        path, f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{url}\n#EXT-X-ENDLIST\n"
    ),
    "concat": lambda path, url: text(path, f"ffconcat version 1.0\nfile '{url}'\n"),
    "mov": with_external_data,
}
REFERENCES = [
    ("hls", "file"),
    ("hls", "web"),
    ("concat", "file"),
    ("concat", "web"),
    ("mov", "file"),
]
"""An alias record cannot name a URL."""
FOLLOWED = {"safe": "0", "enable_drefs": "1", "use_absolute_path": "1"}
"""Options with which FFmpeg follows references."""


@pytest.mark.behaviour(45)
@pytest.mark.parametrize("lists", ["all", "protocols"])
@pytest.mark.parametrize(("trap", "target"), REFERENCES)
def test_nothing_in_an_object_reads_a_file_or_opens_a_connection(
    tmp_path: Path,
    memory_store: RemotePath,
    web: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    trap: str,
    target: str,
    lists: str,
) -> None:
    secret = streams.plain(tmp_path / "secret.ts", frames=3)
    named = str(secret) if target == "file" else f"{web[0]}/secret.ts"
    local = TRAPS[trap](tmp_path / ("trap.m3u8" if trap == "hls" else "trap.mp4"), named)
    path = stored(local, memory_store)
    if lists == "protocols":
        # Where every format is opened and every reference followed, no protocol is left.
        real = av.open

        def unsafe(file: object, *others: object, **options: Any) -> object:
            options["container_options"] = {
                name: value
                for name, value in options["container_options"].items()
                if name != "format_whitelist"
            } | FOLLOWED
            return real(file, *others, **options)

        monkeypatch.setattr(demuxing.av, "open", unsafe)
    openings = Openings(secret)
    with contextlib.suppress(InputError, av.error.FFmpegError):
        packets(path)
        assert trap == "mov"  # which is read without what it refers to
    assert openings.count() == 0
    assert web[1] == []


@pytest.mark.behaviour(45)
@pytest.mark.parametrize(("trap", "target"), REFERENCES)
def test_the_references_are_real(
    tmp_path: Path, web: tuple[str, list[str]], trap: str, target: str
) -> None:
    # With the protocols allowed FFmpeg follows each of them, so the test above can fail.
    secret = streams.plain(tmp_path / "secret.ts", frames=3)
    url, asked = web
    named = str(secret) if target == "file" else f"{url}/secret.ts"
    path = TRAPS[trap](tmp_path / ("trap.m3u8" if trap == "hls" else "trap.mp4"), named)
    openings = Openings(secret)
    options = {"protocol_whitelist": "file,http,tcp", "extension_picky": "0", **FOLLOWED}
    with path.open("rb") as file, av.open(file, container_options=options) as container:
        list(container.demux())
    assert (openings.count() if target == "file" else len(asked)) > 0


# How it is read


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_every_byte_of_a_video_is_got_once(
    tmp_path: Path,
    s3: RemotePath,
    requests: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    """Although it is opened to be described, and again to be read, and its index may lie behind."""
    local = videos.moving(tmp_path / f"a.{suffix}", frames=40)
    path = stored(local, s3)
    size = local.stat().st_size
    monkeypatch.setattr(remote, "_BLOCK", size // 7)
    assert probe(path).best_video().size == (96, 128)
    assert packets(path) == packets(local)
    assert requests["GetObject"] == 8


def test_the_blocks_that_are_kept_are_bounded(
    tmp_path: Path, s3: RemotePath, requests: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = s3 / "a"
    path.write_bytes(bytes(range(256)) * 4)
    monkeypatch.setattr(remote, "_BLOCK", 256)
    monkeypatch.setattr(remote, "_BLOCKS", remote._Blocks(3))
    for _ in range(2):
        with path.open("rb") as file:
            assert file.read() == bytes(range(256)) * 4
    assert len(remote._BLOCKS._kept) == 3
    assert requests["GetObject"] == 8
    with path.open("rb") as file:
        file.seek(-1, 2)
        assert file.read() == b"\xff"
    assert requests["GetObject"] == 8


def test_an_object_of_which_the_store_tells_nothing_is_got_anew(memory_store: RemotePath) -> None:
    path = memory_store / "a"
    for number in range(50):
        path.write_bytes(bytes([number]))
        with path.open("rb") as file:
            assert file.read() == bytes([number])


def test_an_object_that_is_replaced_while_it_is_read_errors(
    s3: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = s3 / "a"
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(remote, "_BLOCK", 500)
    with path.open("rb") as file:
        assert file.read(500) == bytes(500)
        path.write_bytes(bytes(1000)[::-1] + b"x")
        with pytest.raises(OSError, match="was replaced while it was read"):
            file.read(500)
    with path.open("rb") as file:
        assert len(file.read()) == 1001


def test_two_hundred_objects_leave_no_file_open(
    tmp_path: Path, memory_store: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: weakref.WeakSet[Any] = weakref.WeakSet()
    real = demuxing._Object

    def noted(*values: Any) -> Any:
        file = real(*values)
        files.add(file)
        return file

    monkeypatch.setattr(demuxing, "_Object", noted)
    path = stored(streams.plain(tmp_path / "a.mp4", frames=3), memory_store)
    broken = memory_store / "broken.mp4"
    broken.write_bytes(b"no media")
    gc.disable()
    try:
        for _ in range(100):
            packets(path)
            with contextlib.suppress(InputError):
                open_container(broken)
        assert len(files) == 0
    finally:
        gc.enable()


def test_a_store_that_fails_is_no_damage_of_the_video_errors(
    tmp_path: Path, memory_store: RemotePath, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    path = stored(videos.moving(tmp_path / "a.mp4", frames=50), memory_store)
    monkeypatch.setattr(remote, "_BLOCK", 1 << 14)
    real, asked = remote._Get._fetch, Counter[str]()

    def failing(self: Any, number: int) -> bytes:
        asked["blocks"] += 1
        if asked["blocks"] > 3:
            raise OSError(5, "the store answers: SlowDown")
        return real(self, number)

    monkeypatch.setattr(remote._Get, "_fetch", failing)
    with pytest.raises(
        InputError, match=r"a\.mp4: the store answers: SlowDown; check .* the store"
    ):
        packets(path)
    assert capfd.readouterr().err == ""


def test_ctrl_c_while_an_object_is_read_is_none_of_the_store(
    tmp_path: Path, memory_store: RemotePath, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    path = stored(videos.moving(tmp_path / "a.mp4", frames=200), memory_store)
    asked = []

    def interrupted(self: object, size: int) -> bytes:
        asked.append(size)
        raise KeyboardInterrupt

    with open_container(path) as container:
        monkeypatch.setattr(demuxing.SplicedFile, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(demux(container, list(container.streams)))
    with pytest.raises(KeyboardInterrupt):
        open_container(path)
    assert len(asked) == 2
    assert capfd.readouterr().err == ""
