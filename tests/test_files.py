"""A file gets its final name only when it is whole."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cyclegan_batch import files
from cyclegan_batch.errors import OutputError, OutputExistsError, OutputInUseError
from cyclegan_batch.files import (
    OutputLock,
    output_error,
    publish,
    publish_all,
    temporary_path,
)
from cyclegan_batch.wording import printable


@pytest.mark.behaviour(17)
@pytest.mark.parametrize(
    "name", [b"a" * 250 + b".mp4"[:4], b"\xff\xfe [a] %d.png", "x🦓.mkv".encode(), b"-y"]
)
def test_every_name_has_a_short_hidden_temporary_one_that_can_be_written(
    tmp_path: Path, name: bytes
) -> None:
    final = tmp_path / os.fsdecode(name)
    partial = temporary_path(final)

    assert partial.parent == final.parent
    assert partial.name.startswith(".")
    assert len(os.fsencode(partial.name)) <= 64
    partial.write_bytes(b"whole")
    publish(partial, final, overwrite=False)
    assert final.read_bytes() == b"whole"
    assert [entry.name for entry in tmp_path.iterdir()] == [final.name]


def test_two_names_have_two_temporary_ones_and_one_name_always_the_same() -> None:
    assert temporary_path(Path("a.png")) == temporary_path(Path("a.png"))
    assert temporary_path(Path("a.png")) != temporary_path(Path("a.jpg"))


@pytest.mark.behaviour(23)
def test_two_processes_have_two_temporary_names_and_the_first_to_finish_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "a.png"
    ours = temporary_path(final)
    monkeypatch.setattr(os, "getpid", os.getppid)
    theirs = temporary_path(final)
    assert ours != theirs
    ours.write_bytes(b"ours")
    theirs.write_bytes(b"theirs")
    publish(theirs, final, overwrite=False)
    with pytest.raises(OutputExistsError, match=r"a\.png: it exists already; pass -y"):
        publish(ours, final, overwrite=False)
    assert final.read_bytes() == b"theirs"


# The files that a dead process left


def dead() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.behaviour(19)
@pytest.mark.needs("linux")
def test_a_process_that_was_killed_and_not_yet_waited_for_has_died(tmp_path: Path) -> None:
    """Its parent may run the same command again at once: it is a zombie then, still in /proc."""
    with subprocess.Popen(["sleep", "60"]) as process:
        theirs = files._process(process.pid)
        left = tmp_path / f".0123456789abcdef-{files._machine()}-{theirs}.partial"
        left.touch()
        files._CLEANED.discard(str(tmp_path))
        temporary_path(tmp_path / "a.png")
        assert left.exists(), "it lives"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        files._CLEANED.discard(str(tmp_path))
        temporary_path(tmp_path / "a.png")
        assert not left.exists()


@pytest.mark.behaviour(19)
def test_what_a_process_that_died_left_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, digest = files._machine(), "0123456789abcdef"
    ours = files._process(os.getpid())
    number, started = ours.split("-")
    if started == "0":
        pytest.skip("the system does not say when a process started")
    stays = [
        f".{digest}-{machine}-{ours}.partial",
        f".{digest}-{machine}-{ours}-0.partial",
        f".{digest}-{machine}-{files._process(os.getppid())}.partial",
        f".{digest}-00000000-1-1.partial",  # of another machine, and new
        ".mine.partial",
        "a.partial",
        "a.png",
    ]
    goes = [
        f".{digest}-{machine}-{dead()}-17.partial",
        f".{digest}-{machine}-{dead()}-17-0.partial",
        f".{digest}-{machine}-{number}-{int(started) - 1}.partial",  # its number is used again
        f".{digest}-11111111-1-1.partial",  # of another machine, and old
        f".{digest}-lock.partial",
    ]
    for name in (*stays, *goes):
        (tmp_path / name).write_bytes(b"half")
    folder = tmp_path / f".{digest}-{machine}-{dead()}-18.partial"
    folder.mkdir()
    (folder / "model.onnx").touch()
    long_ago = time.time() - 2 * 86400
    os.utime(tmp_path / goes[3], (long_ago, long_ago))
    lock = OutputLock(tmp_path / "held.mp4")

    temporary_path(tmp_path / "b.png")
    held = f".{files._digest(Path('held.mp4'))}-lock.partial"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stays, held])
    lock.release()
    assert not (tmp_path / held).exists()


def test_a_folder_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or scandir(path))
    for number in range(3):
        temporary_path(tmp_path / f"{number}.png")
        temporary_path(tmp_path / "not there yet" / f"{number}.png")
    assert looked.count(tmp_path) == 1


# One output, two processes

_HOLDER = """
import sys, time
from pathlib import Path
from cyclegan_batch.files import OutputLock
lock = OutputLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.behaviour(23)
def test_the_second_process_says_who_writes_an_output_and_a_dead_one_holds_nothing_errors(
    tmp_path: Path,
) -> None:
    final = tmp_path / os.fsdecode(b"\xff clip.mp4")
    with subprocess.Popen([sys.executable, "-c", _HOLDER, final], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        words = rf"clip\.mp4: process {holder.pid} on {socket.gethostname()} is writing it; wait"
        with pytest.raises(OutputInUseError, match=words) as caught:
            OutputLock(final)
        assert caught.value.output == final
        other = OutputLock(tmp_path / "other.mp4")
        other.release()
        holder.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 1  # what is left over
    lock = OutputLock(final)
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.behaviour(25)
def test_a_disk_without_room_for_the_holder_keeps_no_lock_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        OutputLock(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_still_gets_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    first, second = OutputLock(tmp_path / "a.mp4"), OutputLock(tmp_path / "a.mp4")
    first.release()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_errors(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.mp4: its folder does not exist; create"):
        OutputLock(tmp_path / "gone" / "a.mp4")


def test_a_file_in_the_place_of_a_folder_is_no_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "sub").touch()
    with pytest.raises(FileExistsError) as caught:
        (tmp_path / "sub").mkdir()
    error = output_error(tmp_path / "sub" / "a.png", caught.value)
    assert not isinstance(error, OutputExistsError)
    assert "its folder is a file; choose another output folder" in str(error)


@pytest.mark.behaviour(23)
@pytest.mark.parametrize("hard_links", [True, False])
def test_an_existing_file_is_not_replaced_unasked_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", _no_hard_links)
    final, partial = tmp_path / "out.png", tmp_path / ".p"
    final.write_bytes(b"old")
    partial.write_bytes(b"new")

    with pytest.raises(OutputError, match=r"out\.png: it exists already; pass -y"):
        publish(partial, final, overwrite=False)
    assert final.read_bytes() == b"old"
    publish(partial, final, overwrite=True)
    assert final.read_bytes() == b"new"
    assert not partial.exists()


def test_a_file_system_without_hard_links_still_gets_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", _no_hard_links)
    final, partial = tmp_path / "out.png", tmp_path / ".p"
    partial.write_bytes(b"new")
    publish(partial, final, overwrite=False)
    assert final.read_bytes() == b"new"


def test_a_file_system_without_a_rename_over_a_file_still_gets_its_file_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if target.exists():
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "rename", replace)
    final, partial = tmp_path / "out.png", tmp_path / ".p"
    final.write_bytes(b"old")
    partial.write_bytes(b"new")
    publish(partial, final, overwrite=True)
    assert final.read_bytes() == b"new"
    assert not partial.exists()


@pytest.mark.behaviour(13, 22, 23)
@pytest.mark.parametrize("hard_links", [True, False])
def test_files_published_together_fail_one_by_one_and_are_flushed_before_any_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", _no_hard_links)
    finals = [tmp_path / folder / f"{number}.png" for folder in "ab" for number in range(20)]
    pairs = [(temporary_path(final), final) for final in finals]
    for folder in "ab":
        (tmp_path / folder).mkdir()
    for number, (partial, _) in enumerate(pairs):
        partial.write_bytes(str(number).encode())
    finals[3].write_bytes(b"of another process")
    pairs[7][0].unlink()
    broken, flushed = pairs[30][0].stat().st_ino, []

    def flush(descriptor: int) -> None:
        status = os.fstat(descriptor)
        whole = sum(final.exists() for final in finals)
        flushed.append((stat.S_ISDIR(status.st_mode), whole))
        if status.st_ino == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", flush)
    errors = publish_all(pairs, overwrite=False)
    assert flushed == 39 * [(False, 1)] + (2 * [(True, 38)] if os.name == "posix" else [])
    assert [number for number, error in enumerate(errors) if error is not None] == [3, 7, 30]
    assert isinstance(errors[3], OutputExistsError)
    assert "3.png: it exists already; pass -y" in str(errors[3])
    assert "7.png: its folder does not exist" in str(errors[7])
    assert "10.png: Input/output error; check" in str(errors[30])
    cause = errors[30].__cause__ if errors[30] else None
    assert isinstance(cause, OSError)
    assert cause.errno == errno.EIO
    contents = {final: final.read_bytes() for final in finals if final.exists()}
    expected = {final: str(number).encode() for number, final in enumerate(finals)}
    del expected[finals[7]], expected[finals[30]]
    assert contents == expected | {finals[3]: b"of another process"}
    assert set(tmp_path.glob("*/.*")) == {pairs[3][0], pairs[30][0]}
    assert publish_all([], overwrite=False) == ()


@pytest.mark.behaviour(25)
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EROFS, "read-only; choose another"),
        (errno.EACCES, "permission denied; choose a folder"),
        (errno.EIO, "Input/output error; check the output folder"),
    ],
)
def test_what_the_system_says_becomes_a_sentence_with_a_remedy(number: int, words: str) -> None:
    error = output_error(Path("out/a.mp4"), OSError(number, os.strerror(number)))
    assert str(error).startswith("cannot write out/a.mp4: ")
    assert words in str(error)


def test_a_folder_in_the_place_of_the_output_errors(tmp_path: Path) -> None:
    final, partial = tmp_path / "out.png", tmp_path / ".p"
    final.mkdir()
    partial.write_bytes(b"new")
    with pytest.raises(OutputError, match="a folder has this name"):
        publish(partial, final, overwrite=True)


def _no_hard_links(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "not supported")


@pytest.mark.behaviour(17)
def test_a_name_with_control_characters_stays_on_its_line() -> None:
    assert printable(Path("new\nline\x1b[31m\u2028.png")) == r"new\nline\x1b[31m\u2028.png"
    assert printable(Path("été 🐎 [a] 100%.png")) == "été 🐎 [a] 100%.png"
