"""A journal on a store: an object for each unit, in an order that no clock decides."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cyclegan_batch.errors import InputError
from cyclegan_batch.job import journal_storage
from cyclegan_batch.job.journal_storage import (
    journal_files,
    journal_of,
    lines_of,
    open_storage,
)
from cyclegan_batch.job.record import Record
from cyclegan_batch.remote import RemotePath
from tests.needs import need

need("fsspec")


@pytest.fixture
def folder(memory_store: RemotePath) -> RemotePath:
    """Return the job folder of outputs in a store."""
    return memory_store / "real" / ".cyclegan-batch"


def line(text: str) -> bytes:
    return json.dumps({"line": text}).encode() + b"\n"


def told(folder: Path) -> list[Any]:
    """Return what the lines of all journals tell, in their order."""
    return [values["line"] for _, values in lines_of(journal_files(folder))]


def test_each_unit_has_an_object_that_grows_and_the_run_one_at_each_end(
    folder: RemotePath,
) -> None:
    journal = folder / "journal.jsonl"
    assert not journal.exists()
    storage = open_storage(journal)
    first, second = object(), object()
    storage.append(line("run"), None, flush=False)
    assert journal.is_dir()
    storage.append(line("begun 1"), first, flush=True)
    storage.append(line("begun 2"), second, flush=True)
    storage.append(line("whole 2"), second, flush=False)
    storage.append(line("whole 1"), first, flush=False)
    assert told(folder) == ["run", "begun 1", "begun 2"]
    storage.settle(second)
    assert told(folder) == ["run", "begun 1", "begun 2", "whole 2"]
    storage.append(line("end"), None, flush=False)
    storage.close()
    assert told(folder) == ["run", "begun 1", "whole 1", "begun 2", "whole 2", "end"]
    files = sorted(journal_files(folder))
    assert len(files) == 4
    assert {journal_of(file) for file in files} == {journal}
    assert all(file.name.startswith(storage.run) for file in files)


def test_what_a_unit_has_done_is_put_after_a_while_though_it_has_not_ended(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(folder / "journal.jsonl")
    storage.append(line("some"), unit := object(), flush=False)
    assert told(folder) == []
    monkeypatch.setattr(journal_storage, "_PUT_AFTER", 0.0)
    storage.append(line("more"), unit, flush=False)
    assert told(folder) == ["some", "more"]


def test_an_object_does_not_grow_beyond_a_size(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the files that are copied would be put as a whole for every few of a million."""
    monkeypatch.setattr(journal_storage, "_FULL", 100)
    storage = open_storage(folder / "journal.jsonl")
    copies = object()
    for number in range(20):
        storage.append(line(str(number)), copies, flush=False)
    storage.settle()
    assert told(folder) == [str(number) for number in range(20)]
    files = journal_files(folder)
    assert len(files) > 2
    assert all(file.stat().st_size < 100 + len(line("19")) for file in files)


def test_a_run_comes_behind_the_one_before_it_whatever_its_clock_tells(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(folder / "journal-1of2.jsonl").append(line("first"), None, flush=False)
    monkeypatch.setattr(time, "time_ns", lambda: 10**15)
    open_storage(folder / "journal-2of2.jsonl").append(line("second"), None, flush=False)
    open_storage(folder / "journal.jsonl").append(line("third"), None, flush=False)
    assert told(folder) == ["first", "second", "third"]


def test_a_rewritten_journal_is_one_object_and_holds_of_others_what_was_not_read(
    folder: RemotePath,
) -> None:
    earlier, other = open_storage(folder / "journal.jsonl"), open_storage(folder / "x.jsonl")
    for storage in (earlier, other):
        storage.append(line("old"), object(), flush=True)
    storage = open_storage(folder / "journal.jsonl")
    storage.append(line("new"), None, flush=False)
    assert [each["line"] for _, each in storage.read()] == ["old", "new"]
    earlier.append(line("late"), object(), flush=True)
    storage.rewrite([line("all")])
    assert sorted(told(folder)) == ["all", "late", "old"]
    assert len(journal_files(folder)) == 3


def test_a_rewritten_journal_whose_old_objects_stay_tells_the_same(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the last put and the first removal."""
    row = ["a.png", [10, 20, None], [24, 32], [24, 32], 99, "cd" * 32]
    begun = {"line": "begun", "job": "j", "outputs": ["a.png"]}
    whole = {"line": "whole", "job": "j", "outputs": [row]}
    storage = open_storage(folder / "journal.jsonl")
    for each in (begun, whole, begun, whole):
        storage.append(json.dumps(each).encode() + b"\n", object(), flush=True)
    list(storage.read())
    monkeypatch.setattr(RemotePath, "unlink", lambda path, missing_ok=False: None)
    storage.rewrite([json.dumps(whole).encode() + b"\n"])
    assert len(journal_files(folder)) == 5
    record = Record.of_folder(folder)
    assert record.whole("a.png") is not None
    assert not record.begun()


@pytest.mark.parametrize("small", [0, 4 << 20])
def test_many_objects_are_read_in_the_order_of_their_names(
    folder: RemotePath, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_storage, "_SMALL", small)
    storage = open_storage(folder / "journal.jsonl")
    for number in range(100):
        storage.append(line(str(number)) + line("and"), object(), flush=True)
    assert told(folder)[::2] == [str(number) for number in range(100)]


@pytest.mark.parametrize(
    "name",
    [
        "journal.jsonl/a.jsonl",
        "journal.jsonl",
        "journal.jsonl/0/1700000000000aaaaaaaa-00000000.jsonl",
        "0123456789abcdef/1700000000000aaaaaaaa-00000000.jsonl",
        "lock",
    ],
)
def test_objects_of_other_names_are_none_of_a_journal(folder: RemotePath, name: str) -> None:
    (folder / name).write_bytes(line("x"))
    assert told(folder) == []


def test_objects_that_are_put_together_while_they_are_read_are_read_again(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ["a.png", None, None, None, 99, "cd" * 32]
    whole = json.dumps({"line": "whole", "job": "j", "outputs": [row]}).encode() + b"\n"
    storage = open_storage(folder / "journal.jsonl")
    storage.append(whole, object(), flush=True)
    list(storage.read())
    real, times = RemotePath.read_bytes, []

    def rewritten_before(path: RemotePath) -> bytes:
        if not times:
            times.append(1)
            storage.rewrite([whole])
        return real(path)

    monkeypatch.setattr(RemotePath, "read_bytes", rewritten_before)
    assert list(Record.of_folder(folder).names()) == ["a.png"]


@pytest.mark.parametrize("small", [0, 4 << 20])
def test_an_object_that_cannot_be_read_is_told_and_not_passed_over(
    folder: RemotePath, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs would be somebody else's, and the advice to overwrite them with -y."""
    open_storage(folder / "journal.jsonl").append(line("x"), object(), flush=True)

    def refuse(path: RemotePath, *mode: str) -> NoReturn:
        raise OSError(5, "the store answers: no", str(path))

    monkeypatch.setattr(RemotePath, "open" if small == 0 else "read_bytes", refuse)
    monkeypatch.setattr(journal_storage, "_SMALL", small)
    with pytest.raises(InputError, match=r"-00000000\.jsonl: cannot be read: the store answers"):
        Record.of_folder(folder)
