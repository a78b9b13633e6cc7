"""Tars are read as data of unknown origin: what they hold, and what is refused of them."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cyclegan_batch.errors import InputError
from cyclegan_batch.media.tars.reading import TarReader
from cyclegan_batch.media.tars.writing import TarWriter
from tests.synthesis.tars import entry, packed

PLAIN = [("a.txt", b"a" * 700), ("b.json", b"{}"), ("c.empty", b"")]


def read(data: bytes) -> list[tuple[str, bytes, str | None]]:
    """Return name, content and refusal of each member."""
    reader = TarReader(io.BytesIO(data), "x.tar")
    return [(each.info.name, reader.read(), each.refusal) for each in reader.members()]


def refused(data: bytes) -> dict[str, str]:
    """Return why members are refused; those between them are read."""
    return {name: refusal for name, _, refusal in read(data) if refusal}


def error_of(data: bytes) -> str:
    with pytest.raises(InputError, match=r"^x\.tar: ") as caught:
        read(data)
    return str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_are_read_in_their_order(kind: int) -> None:
    assert read(packed(PLAIN, kind=kind)) == [(*each, None) for each in PLAIN]


@pytest.mark.behaviour(17)
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_bytes_and_length_are_read_and_written_again(kind: int) -> None:
    names = ["ä/ö.png", "%s [a] 'b' \"c\" 😀.jpg", "n\udce4me.png", "d/" * 150 + "x" * 200 + ".png"]
    data = packed([(name, b"x") for name in names], kind=kind)
    reader, file = TarReader(io.BytesIO(data), "x.tar"), io.BytesIO()
    writer = TarWriter(file, gnu=kind == tarfile.GNU_FORMAT)
    for member in reader.members():
        content = reader.read()
        writer.add(member.info, lambda write, content=content: write(content))
    writer.finish()
    assert [name for name, _, _ in read(file.getvalue())] == names
    assert reader.is_gnu == (kind == tarfile.GNU_FORMAT)
    if kind == tarfile.GNU_FORMAT:
        assert file.getvalue() == data  # what another writer makes of the same members


def test_times_and_owners_of_pax_headers_are_kept() -> None:
    values = {"mtime": 1.25, "uid": 5_000_000, "gid": 3, "uname": "ü" * 40, "gname": "g"}
    reader = TarReader(io.BytesIO(packed([entry("a.txt", **values)])), "x.tar")
    (member,) = reader.members()
    assert {key: getattr(member.info, key) for key in values} == values


@pytest.mark.behaviour(13, 45)
def test_what_leads_out_of_a_folder_or_is_no_file_is_refused_and_the_rest_is_read() -> None:
    kinds = {
        "hard": (tarfile.LNKTYPE, "is a hard link"),
        "soft": (tarfile.SYMTYPE, "is a symbolic link"),
        "char": (tarfile.CHRTYPE, "is a device"),
        "block": (tarfile.BLKTYPE, "is a device"),
        "queue": (tarfile.FIFOTYPE, "is a named pipe"),
        "odd": (b"Z", "is of the unknown type b'Z'"),
    }
    names = {
        "/etc/passwd": "absolute",
        "../out.png": "leads out of its folder",
        "a/../../out.png": "leads out of its folder",
        "a\\..\\..\\out.png": "leads out of its folder",
        "C:\\out.png": "absolute",
        "\\\\host\\out.png": "absolute",
    }
    items = [entry(name, type=kind, linkname="/etc/passwd") for name, (kind, _) in kinds.items()]
    data = packed([*items, *((name, b"x" * 600) for name in names), ("last.txt", b"whole")])
    found = refused(data)
    expected = {name: why for name, (_, why) in kinds.items()} | names
    assert found.keys() == expected.keys()
    for name, why in expected.items():
        assert why in found[name], name
        assert "pack the tar again" in found[name]
    assert read(data)[-1] == ("last.txt", b"whole", None)


def test_a_link_has_no_content_whatever_size_its_header_states() -> None:
    data = packed([entry("soft", type=tarfile.SYMTYPE, linkname="x", size=10**9), ("a", b"x")])
    assert [name for name, _, _ in read(data)] == ["soft", "a"]


def sparse_tars(folder: Path) -> Iterator[bytes]:
    """Yield tars of a file with 40 holes, in each of the formats of GNU tar."""
    with (folder / "holes.jpg").open("wb") as file:
        for number in range(40):
            file.seek(number * 65536)
            file.write(b"x" * 4096)
    (folder / "whole.txt").write_text("whole")
    for flags in (["--format=gnu"], *(["--format=pax", f"--sparse-version={v}"] for v in "01")):
        command = ["tar", "cf", "-", "--sparse", *flags, "holes.jpg", "whole.txt"]
        yield subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout


@pytest.mark.needs("tar")
def test_sparse_files_of_gnu_tar_are_refused_by_their_own_name(tmp_path: Path) -> None:
    for data in sparse_tars(tmp_path):
        assert "sparse" in refused(data)["holes.jpg"]
        assert read(data)[-1] == ("whole.txt", b"whole", None)


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("cut", [1, 100, 512, 600, 1024, 1100, 1535, 1700, 2048, 2500])
def test_a_tar_that_is_cut_off_is_told_with_the_place(cut: int) -> None:
    data = packed(PLAIN)  # headers at 0, 1536 and 2560, and the end mark behind
    assert f"is cut off: it ends after {cut} bytes" in error_of(data[:cut])


def test_a_tar_without_an_end_mark_is_read_with_a_note() -> None:
    reader = TarReader(io.BytesIO(packed(PLAIN)[:3072]), "x.tar")
    assert [each.info.name for each in reader.members()] == ["a.txt", "b.json", "c.empty"]
    assert reader.note is not None
    assert "has no end mark" in reader.note


def test_what_lies_behind_the_end_mark_is_told_and_zeros_are_not() -> None:
    whole = packed(PLAIN)
    for more, noted in ((b"", False), (bytes(99_999), False), (whole, True)):
        reader = TarReader(io.BytesIO(whole + more), "x.tar", hashed=True)
        assert len(list(reader.members())) == 3
        assert (reader.note is not None and "more behind its end mark" in reader.note) == noted


def test_one_empty_block_is_no_end_mark_where_more_follows() -> None:
    whole = packed(PLAIN)
    for lost in (0, 1536):  # headers of files with content
        hole = whole[:lost] + bytes(512) + whole[lost + 512 :]
        assert f"damaged before byte {lost + 1024}: an empty block" in error_of(hole)
    # Some writers end with one block only, and a tar may hold nothing.
    assert len(read(whole[:3072] + bytes(512))) == 3
    assert read(bytes(10240)) == read(bytes(512)) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"\x1f\x8b" + bytes(600), "is compressed by gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed by zstd"),
        (b"some text " * 60, "is no tar"),
    ],
)
def test_a_file_that_is_no_tar_is_told(data: bytes, words: str) -> None:
    assert words in error_of(data)


@pytest.mark.behaviour(46)
def test_a_size_beyond_the_end_of_the_file_reserves_no_memory() -> None:
    data = bytearray(packed(PLAIN))
    data[124:136] = b"%011o\0" % (5 << 30)
    fix_checksum(data)

    class Watched(io.BytesIO):
        largest = 0

        def read(self, count: int | None = -1) -> bytes:
            assert count is not None
            self.largest = max(self.largest, count)
            return super().read(count)

    for length in (len(data), None):
        file = Watched(data)
        reader = TarReader(file, "x.tar", length=length)
        next(reader.members())
        with pytest.raises(InputError, match=rf"it ends after {len(data)} bytes, within a\.txt"):
            reader.read()
        assert file.largest <= 1 << 20


def test_a_header_that_lies_about_its_size_is_told() -> None:
    data = bytearray(packed(PLAIN))
    for size, words in ((100, "no header of a member"), (5 << 30, "within a.txt")):
        data[124:136] = b"%011o\0" % size
        fix_checksum(data)
        assert words in error_of(bytes(data))
    data[124:136] = b"\xff" * 12  # -1 in base 256
    fix_checksum(data)
    assert "a size below 0" in error_of(bytes(data))


def fix_checksum(data: bytearray, at: int = 0) -> None:
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def pax(content: bytes, *, kind: bytes = b"x", size: int | None = None) -> bytes:
    """Return an extended header with this content, in front of a file."""
    info = entry("PaxHeaders/x", type=kind, size=len(content) if size is None else size)
    padded = content + bytes(-len(content) % 512)
    return info.tobuf(tarfile.USTAR_FORMAT) + padded + packed([("a.txt", b"x")])


def record(key: bytes, value: bytes) -> bytes:
    text = b" " + key + b"=" + value + b"\n"
    length = len(text)
    while len(b"%d" % length) + len(text) != length:
        length = len(b"%d" % length) + len(text)
    return b"%d" % length + text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"30 path=short\n", "malformed"),
        (b"path=x\n", "malformed"),
        (b"999999999 path=x\n", "malformed"),
        (b"-5 path=x\n", "malformed"),
        (record(b"size", b"many"), "holds no number"),
        (record(b"size", b"-1"), "below 0"),
        (record(b"uid", b"9" * 40), "far too large"),
        (record(b"size", b"9" * 18), "within a.txt"),
        (record(b"path", b"a\0b"), "zero byte"),
    ],
)
def test_pax_headers_that_lie_are_told(content: bytes, words: str) -> None:
    assert words in error_of(pax(content))


def test_a_pax_header_may_give_a_file_a_harmful_name() -> None:
    assert "leads out" in refused(pax(record(b"path", b"../x")))["../x"]
    assert "renames or resizes all" in error_of(pax(record(b"path", b"x"), kind=b"g"))
    assert read(pax(record(b"comment", b"x"), kind=b"g")) == [("a.txt", b"x", None)]


@pytest.mark.parametrize("time", [b"nan", b"inf", b"-1e300"])
def test_a_time_that_is_none_becomes_1970(time: bytes) -> None:
    reader = TarReader(io.BytesIO(pax(record(b"mtime", time))), "x.tar")
    (member,) = reader.members()
    assert member.info.mtime == 0


@pytest.mark.behaviour(46)
@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_extended_headers_of_gigabytes_take_no_memory(kind: bytes) -> None:
    class Zeros(io.RawIOBase):
        """A file of 3 GiB that holds the letter x behind its head."""

        def __init__(self) -> None:
            self.head = pax(b"", kind=kind, size=3 << 30)[:512]
            self.at = 0

        def read(self, count: int = -1) -> bytes:
            data = (self.head + b"x" * count)[:count] if not self.at else b"x" * count
            self.at += count
            return data if self.at < 3 << 30 else b""

    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="which no writer makes"):
            list(TarReader(Zeros(), "x.tar").members())
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_many_extended_headers_in_a_row_end_in_one_member() -> None:
    extended = pax(record(b"comment", b"x" * 300))
    data = extended[: 512 + 512] * 3000 + packed([("a.txt", b"x")])
    assert read(data) == [("a.txt", b"x", None)]
    assert "behind an extended header" in error_of(extended[:1024])


def test_a_volume_label_names_no_file_and_old_headers_are_read() -> None:
    label = entry("volume", type=b"V").tobuf(tarfile.GNU_FORMAT)
    old = bytearray(entry("old.txt", size=1).tobuf(tarfile.USTAR_FORMAT))
    old[156:157], old[257:512] = b"\0", bytes(255)
    fix_checksum(old)
    data = label + bytes(old) + b"x" + bytes(511) + packed([("a.txt", b"x")])
    assert [name for name, _, _ in read(data)] == ["old.txt", "a.txt"]


def test_random_damage_is_an_input_error_or_harmless() -> None:
    random = Random(5)
    whole = packed([("a.txt", random.randbytes(700)), ("ü" * 80, b"x"), ("b/", b"")])
    for number in range(1500):
        data = bytearray(whole)
        data[random.randrange(3600)] = random.randrange(256)
        if number % 2:
            fix_checksum(data)
        try:
            read(bytes(data))
        except InputError:
            continue
