"""What journals tell is read as data of unknown origin."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.file_identity import FileIdentity
from cyclegan_batch.job.journal_lines import (
    read_times,
    written_dropped,
    written_failure,
    written_times,
)
from cyclegan_batch.job.journal_storage import journal_files
from cyclegan_batch.job.record import Record
from cyclegan_batch.job.units import Counters
from cyclegan_batch.media import Dropped, Place, dropped_at

VALUES = {
    "version": "0.1.0",
    "model": "ab" * 32,
    "backend": "openvino",
    "device": "cpu",
    "precision": "fp32",
    "batch_size": 1,
}
JOB = {"line": "job", "kind": "image", "values": VALUES, "contexts": 2}
ROW = ["a.png", [10, 20, None], [24, 32], [24, 32], 99, "cd" * 32]


def whole(*rows: Any, job: str = "j", **more: Any) -> dict[str, Any]:
    return {"line": "whole", "job": job, "outputs": list(rows), **more}


def journal(path: Path, *lines: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    data = b"".join(
        each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in lines
    )
    path.write_bytes(data)
    return path


def test_the_later_line_counts(tmp_path: Path) -> None:
    newer = [*ROW[:4], 100, ROW[5]]
    record = Record.read([journal(tmp_path / "journal.jsonl", whole(ROW), whole(newer, job="k"))])
    found = record.whole("a.png")
    assert found is not None
    assert (found.job, found.bytes, found.identity) == ("k", 100, FileIdentity(10, 20))
    begun = {"line": "begun", "job": "k", "outputs": ["a.png"]}
    record = Record.read([journal(tmp_path / "journal.jsonl", whole(ROW), begun)])
    assert record.whole("a.png") is None
    assert record.begun() == {"a.png": "k"}
    record = Record.read([journal(tmp_path / "journal.jsonl", begun, whole(ROW))])
    assert record.whole("a.png") is not None
    assert not record.begun()


@pytest.mark.parametrize("before", [(), (whole(ROW),)])
def test_an_output_that_appeared_is_what_it_was_before_it_was_begun(
    tmp_path: Path, before: tuple[Any, ...]
) -> None:
    begun = {"line": "begun", "job": "k", "outputs": ["a.png"]}
    appeared = {"line": "appeared", "outputs": ["a.png", "b.png"]}
    record = Record.read([journal(tmp_path / "journal.jsonl", *before, begun, appeared)])
    assert (record.whole("a.png") is not None) == bool(before)
    assert not record.begun()


@pytest.mark.behaviour(19)
@pytest.mark.parametrize(
    "damage",
    [
        b'{"line": "whole", "outputs": [["b.png", [1',
        b"\x00\xff\xfe garbage\n",
        b"[" * 100_000 + b"\n",
        b"1" * 10_000 + b"\n",
        b"NaN\n",
        b"\n",
        b'{"a": ' * 5_000 + b"\n",
        b'"' + b"x" * (9 << 20) + b'"\n',
    ],
)
def test_a_damaged_line_costs_itself_alone(tmp_path: Path, damage: bytes) -> None:
    path = journal(tmp_path / "journal.jsonl", damage.removesuffix(b"\n") + b"\n", whole(ROW))
    assert list(Record.read([path]).names()) == ["a.png"]
    path = journal(tmp_path / "journal.jsonl", whole(ROW), damage)
    assert list(Record.read([path]).names()) == ["a.png"]


HOSTILE: list[Any] = [
    None,
    True,
    -1,
    1e999,
    float("nan"),
    2**80,
    "x",
    "\ud800",
    "../../a",
    [],
    [[]],
    {},
    {"a": [1]},
    [["a.png"]],
    [["a.png", 1, 2, 3, 4, 5]],
    [[1, 2, 3, 4, 5, 6]],
    [1, [1, 10**12]],
    [0, [0, 5]],
]


@pytest.mark.parametrize(
    "line",
    [
        {"line": "run", "host": "h", "process": 1, "outputs": 3, "frames": 4, "command": {}},
        JOB,
        {"line": "begun", "job": "j", "outputs": ["a.png"], "kept": [0]},
        whole(ROW, failures=[["a", ["InputError", "b"], 1, [[1, 1, 0.1, 0.1]], None]], frames=3),
        {"line": "failed", "failures": [["a.png", "cause"]]},
        {"line": "end", "status": "whole", "outputs": 1, "frames": 2},
        {
            "line": "stretch",
            "job": "j",
            "output": "a.png",
            "number": 0,
            "frames_each": 9,
            "identity": [1, 2, None],
            "bytes": 3,
            "time_base": [1, 25],
            "times": [0, [1, 8]],
            "last_duration": 1,
            "dropped": [["a", ["InputError", "b"], None]],
            "notes": [["a", True, "b"]],
            "frames": 9,
        },
    ],
)
def test_no_value_in_a_line_is_trusted(tmp_path: Path, line: dict[str, Any]) -> None:
    base = {"run": "r", "at": 1.0}
    for key in (*line, "run", "at"):
        for value in HOSTILE:
            lines = [HEAD, line | base | {key: value}]
            record = Record.read([journal(tmp_path / "journal.jsonl", *lines)])
            for name in [*record.names(), "a.png"]:
                record.whole(name)
                record.stretches(name)
    for key, value in line.items():
        for position in range(len(value) if isinstance(value, list) else 0):
            for hostile in HOSTILE:
                changed = [*value[:position], hostile, *value[position + 1 :]]
                lines = [HEAD, line | base | {key: changed}]
                record = Record.read([journal(tmp_path / "journal.jsonl", *lines)])
                for name in [*record.names(), "a.png"]:
                    record.whole(name)
                    record.stretches(name)


HEAD = {
    **{"line": "run", "run": "r", "at": 0, "host": "h", "process": 1, "outputs": 3},
    **{"frames": 4, "command": {}},
}


def test_a_job_is_known_by_what_it_holds_and_not_by_its_name(tmp_path: Path) -> None:
    record = Record.read([journal(tmp_path / "journal.jsonl", JOB | {"job": "0" * 16})])
    (job,) = record.jobs.values()
    assert job.id != "0" * 16
    assert (dict(job.values), job.contexts) == (VALUES, 2)


@pytest.mark.parametrize(
    "values",
    [
        {"backend": "os.system"},
        {"backend": "auto"},
        {"device": "cuda:0"},
        {"precision": 3},
        {"batch_size": 10**9},
        {"batch_size": True},
    ],
)
def test_a_job_that_no_run_can_have_is_left_out(tmp_path: Path, values: dict[str, Any]) -> None:
    line = JOB | {"values": VALUES | values}
    assert not Record.read([journal(tmp_path / "journal.jsonl", line)]).jobs


def test_times_are_written_short_and_read_again() -> None:
    times = (5, 10, 15, 16, 17, 1000)
    assert written_times(times) == [5, [5, 2], [1, 2], [983, 1]]
    assert written_times(()) == []
    assert written_times((7,)) == [7]
    random = Random(7)
    for _ in range(200):
        largest = random.choice((1, 2, 3, 90_000, 2**40))
        gaps = (random.randint(1, largest) for _ in range(random.randint(1, 300)))
        times = tuple(accumulate(gaps, initial=random.randint(-(2**50), 2**50)))
        assert read_times(json.loads(json.dumps(written_times(times)))) == times


def test_a_stretch_is_read_as_it_was_written(tmp_path: Path) -> None:
    place = Place(subject="clip.ts", kind="frame", number=3, seconds=0.12, trouble="is broken")
    dropped = (dropped_at(place), Dropped("clip.ts", OutputError("no room")))
    line = {
        **{"line": "stretch", "job": "j", "output": "clip.ts", "number": 2, "frames_each": 4},
        **{"identity": [1, 2, "ef" * 32], "bytes": 77, "time_base": [1, 12800]},
        **{"times": written_times((512, 1024, 2000)), "last_duration": 512},
        **{"dropped": [written_dropped(each) for each in dropped], "notes": [], "frames": 3},
    }
    (stretch,) = Record.read([journal(tmp_path / "j.jsonl", line)]).stretches("clip.ts")
    assert (stretch.number, stretch.frames_each, stretch.bytes, stretch.frames) == (2, 4, 77, 3)
    assert stretch.times == (512, 1024, 2000)
    assert stretch.time_base == Fraction(1, 12800)
    assert stretch.identity == FileIdentity(1, 2, "ef" * 32)
    assert [(each.name, str(each.error), each.place) for each in stretch.dropped] == [
        (each.name, str(each.error), each.place) for each in dropped
    ]
    assert [type(each.error) for each in stretch.dropped] == [InputError, OutputError]


def test_a_failure_with_places_is_read_as_it_was_written(tmp_path: Path) -> None:
    counters = Counters()
    for number in (3, 4, 9):
        place = Place(subject="a.ts", kind="frame", number=number, seconds=None, trouble="broken")
        dropped = dropped_at(place)
        counters.record(dropped.name, dropped.error, dropped.place)
    line = whole(ROW, frames=5, failures=[written_failure(each) for each in counters.failures])
    found = Record.read([journal(tmp_path / "j.jsonl", line)]).whole("a.png")
    assert found is not None
    (failure,) = found.failures
    assert failure.cause == counters.failures[0].cause
    assert (failure.count, failure.spans) == (3, counters.failures[0].spans)


@pytest.mark.behaviour(17)
def test_names_of_any_bytes_are_read_again(tmp_path: Path) -> None:
    names = ['a "b"\\\n.png', "\udcff[a].png", "🐴.png", "%41"]
    path = journal(tmp_path / "j.jsonl", *(whole([name, *ROW[1:]]) for name in names))
    assert list(Record.read([path]).names()) == names


def test_what_is_no_journal_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    journal(folder / "journal.jsonl", whole(ROW))
    (folder / "folder.jsonl").mkdir()
    (folder / "link.jsonl").symlink_to(journal(tmp_path / "elsewhere.jsonl", whole(ROW)))
    assert journal_files(folder) == [folder / "journal.jsonl"]
    assert journal_files(tmp_path / "none") == []
    assert journal_files(tmp_path / "elsewhere.jsonl") == []


@pytest.mark.behaviour(20)
def test_many_records_are_read_within_seconds(tmp_path: Path) -> None:
    rows = [[f"folder/{number:06}.png", *ROW[1:]] for number in range(200_000)]
    lines = [whole(*rows[start : start + 256]) for start in range(0, len(rows), 256)]
    path = journal(tmp_path / "journal.jsonl", JOB, *lines)
    begin = time.process_time()
    record = Record.read([path])
    assert sum(record.whole(name) is not None for name in record.names()) == 200_000
    assert time.process_time() - begin < 5.0
