"""A file gets its name when it is whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.files import output_error, printable, publish, temporary_path


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
