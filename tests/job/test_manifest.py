"""The manifest: a row for each input, also of a run that did only a part of the job."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import tarfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cyclegan_batch.api import report_run
from cyclegan_batch.cli import main
from cyclegan_batch.errors import BackendUnavailableError, InputError, OutputError
from cyclegan_batch.job import manifest
from cyclegan_batch.job.journal import Journal
from cyclegan_batch.job.manifest import write_manifest
from cyclegan_batch.job.plan import JobPlan
from cyclegan_batch.job.report import Report, check_result_path
from cyclegan_batch.job.units import Counters
from cyclegan_batch.media import Dropped
from cyclegan_batch.remote import RemotePath
from tests.job.test_standing import done, names, picture, planned
from tests.needs import has, package
from tests.synthesis import generators, streams


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png", "d.png", "\udcff.png"):
        picture(folder / name)
    return folder


def rows(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {Path(line["input"]).name: line for line in lines}


@pytest.mark.behaviour(17, 22)
def test_each_input_has_a_line_with_what_became_of_it(
    model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hidden = [(source / name).rename(tmp_path / name) for name in ("b.png", "c.png", "d.png")]
    done(planned(source, out, model=model))
    for path in hidden:
        path.rename(source / path.name)
    picture(out / "d.png", 3)
    plan = planned(source, out, model=model, skip_existing=True)
    assert (names(plan.entries), names(plan.left)) == (["b.png", "c.png"], ["d.png"])
    done(plan, units=1)
    counters = Counters(interrupted=True)
    counters.written.append(out / "b.png")
    (out / "c.png").unlink()
    write_manifest(plan, report_run(plan, counters), tmp_path / "manifest.jsonl")
    found = rows(tmp_path / "manifest.jsonl")
    assert list(found) == ["a.png", "b.png", "c.png", "d.png", "\udcff.png"]
    assert {name: row["status"] for name, row in found.items()} == {
        "a.png": "up to date",
        "b.png": "done",
        "c.png": "left",
        "d.png": "skipped",
        "\udcff.png": "up to date",
    }
    for name in ("a.png", "b.png", "\udcff.png"):
        content = (out / name).read_bytes()
        row = found[name]
        assert (row["bytes"], row["reason"]) == (len(content), None)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert row["input_size"] == row["output_size"] == [24, 32]
        assert (row["frames"], row["damaged"], row["failures"]) == (1, 0, [])
        assert os.fsencode(row["output"]) == os.fsencode(out / name)
    assert (found["d.png"]["reason"], found["d.png"]["sha256"]) == ("exists already", None)
    assert (found["d.png"]["frames"], found["d.png"]["damaged"]) == (None, None)


@pytest.mark.behaviour(22)
def test_what_failed_has_its_reason(model: Path, source: Path, tmp_path: Path) -> None:
    plan = planned(source, tmp_path / "out", model=model)
    counters = Counters()
    counters.record(str(source / "a.png"), InputError("a.png: is broken"))
    write_manifest(plan, report_run(plan, counters), tmp_path / "manifest.jsonl")
    found = rows(tmp_path / "manifest.jsonl")
    assert (found["a.png"]["status"], found["a.png"]["reason"]) == ("failed", "a.png: is broken")
    assert found["a.png"]["failures"] == ["a.png: is broken"]
    assert (found["b.png"]["status"], found["b.png"]["failures"]) == ("left", [])


def test_a_file_of_the_job_is_never_replaced(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model))
    plan = planned(source, out, model=model)
    for path in (source / "a.png", out / "b.png", model):
        with pytest.raises(OutputError, match=r"cannot write the manifest .* of the job itself"):
            check_result_path(path, plan, model, what="manifest")
    check_result_path(tmp_path / "manifest.jsonl", plan, model, what="manifest")


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("stretches", [False, True])
def test_what_a_video_lost_is_in_its_row_in_every_later_run(
    stretches: bool,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The journal is rewritten at the end of the first run, which must keep the number."""
    if stretches:
        monkeypatch.setattr("cyclegan_batch.media.video.plan._KEY_FRAMES", 10)
        monkeypatch.setattr("cyclegan_batch.media.video.plan._MOST_GROUPS", 1)
    source = tmp_path / "in"
    source.mkdir()
    streams.plain(source / "clip.mp4", frames=27, size=(48, 64))
    ended = Journal.ended

    def damaged(self: Journal, outcome: Any) -> None:
        lost = (Dropped("clip.mp4", InputError("a")), Dropped("clip.mp4", InputError("b")))
        ended(self, replace(outcome, dropped=lost) if outcome.frames in (27, 10) else outcome)

    monkeypatch.setattr(Journal, "ended", damaged)
    for status in ("done", "up to date"):
        words = ["translate", source, tmp_path / "out", "-m", model, "--manifest"]
        with pytest.raises(SystemExit):
            main([str(word) for word in (*words, tmp_path / "m.jsonl")])
        row = rows(tmp_path / "m.jsonl")["clip.mp4"]
        assert (row["status"], row["frames"]) == (status, 27), capfd.readouterr()
        assert (row["damaged"], row["reason"]) == (2 * (1 + stretches), "a")
        assert row["failures"] == ["a", "b"] * (1 + stretches)


@pytest.mark.behaviour(22)
def test_what_a_tar_lost_is_in_its_row(model: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as archive:
        for name in ("1", "2", "3"):
            archive.add(tmp_path / "a.png", f"{name}.png")
        broken = tarfile.TarInfo("4.png")
        broken.size = 9
        archive.addfile(broken, io.BytesIO(b"\x89PNG\r\n\x1a\n "))
    plan = planned(tmp_path / "in", tmp_path / "out", model=model)
    done(plan)
    for suffix in ("jsonl", "parquet") if has("pyarrow") else ("jsonl",):
        path = tmp_path / f"m.{suffix}"
        plan = planned(tmp_path / "in", tmp_path / "out", model=model)
        write_manifest(plan, report_run(plan, Counters()), path)
        read = rows(path).values() if suffix == "jsonl" else parquet(path).read().to_pylist()
        (row,) = read
        assert (row["status"], row["frames"], row["damaged"]) == ("up to date", 3, 1)
        assert "a.tar/4.png" in row["failures"][0]
        assert row["reason"] == row["failures"][0]


# Parquet


@pytest.fixture
def whole(model: Path, source: Path, tmp_path: Path) -> tuple[JobPlan, Report]:
    """A finished job, one input of which is missing again, and its report."""
    done(planned(source, tmp_path / "out", model=model))
    (tmp_path / "out" / "c.png").unlink()
    plan = planned(source, tmp_path / "out", model=model)
    return plan, report_run(plan, Counters())


def parquet(path: Any) -> Any:
    return package("pyarrow.parquet").ParquetFile(path)


COLUMNS = {
    **{"input": "string", "input_bytes": "binary", "output": "string", "output_bytes": "binary"},
    **{"input_size": "list<element: int32>", "output_size": "list<element: int32>"},
    **{"bytes": "int64", "sha256": "string", "frames": "int64", "damaged": "int64"},
    **{"status": "string", "reason": "string", "failures": "list<element: string>"},
}


def columns(file: Any) -> Mapping[str, str]:
    return {field.name: str(field.type) for field in file.schema_arrow}


@pytest.mark.behaviour(17, 22)
@pytest.mark.needs("pyarrow")
def test_parquet_has_the_rows_of_the_lines(
    whole: tuple[JobPlan, Report], source: Path, tmp_path: Path
) -> None:
    write_manifest(*whole, tmp_path / "m.jsonl")
    write_manifest(*whole, tmp_path / "m.PARQUET")
    expected = list(rows(tmp_path / "m.jsonl").values())
    file = parquet(tmp_path / "m.PARQUET")
    assert columns(file) == COLUMNS
    found = file.read().to_pylist()
    paths = [[row.pop(f"{name}_bytes") for name in ("input", "output")] for row in found]
    odd = source / "\udcff.png"
    assert paths == [*[[None, None]] * 4, [os.fsencode(odd), os.fsencode(expected[4]["output"])]]
    # JSON's own escape of the byte is the text here.
    assert found[4]["input"] == str(odd).replace("\udcff", "\\udcff")
    for row, line in zip(found, expected, strict=True):
        if row is found[4]:
            row |= {name: line[name] for name in ("input", "output")}
        assert row == line
    assert [row["status"] for row in found] == ["up to date"] * 2 + ["left"] + ["up to date"] * 2
    column = file.metadata.row_group(0).column(0)
    assert (column.compression, file.metadata.num_row_groups) == ("ZSTD", 1)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


@pytest.mark.needs("pyarrow")
def test_parquet_is_written_in_row_groups_and_has_its_columns_without_rows(
    whole: tuple[JobPlan, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, report = whole
    monkeypatch.setattr(manifest, "_GROUP", 2)
    monkeypatch.setattr(manifest, "_SLICE", 1)
    write_manifest(plan, report, tmp_path / "m.parquet")
    content = parquet(tmp_path / "m.parquet").metadata
    assert [content.row_group(number).num_rows for number in range(3)] == [2, 2, 1]
    write_manifest(replace(plan, everything=()), report, tmp_path / "none.parquet")
    file = parquet(tmp_path / "none.parquet")
    assert (columns(file), file.metadata.num_rows) == (COLUMNS, 0)


@pytest.mark.needs("pyarrow", "linux")
def test_parquet_can_go_through_a_pipe(whole: tuple[JobPlan, Report], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.parquet")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "m.parquet").read_bytes()))
    reader.start()
    write_manifest(*whole, tmp_path / "m.parquet")
    reader.join()
    assert parquet(io.BytesIO(read[0])).metadata.num_rows == 5


@pytest.mark.behaviour(22)
@pytest.mark.needs("pyarrow")
def test_the_manifest_of_a_job_in_a_store_is_put_there(
    model: Path, source: Path, memory_store: RemotePath
) -> None:
    (memory_store / "in" / "a.png").write_bytes((source / "a.png").read_bytes())
    (memory_store / "in" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n ")
    words = ["translate", f"{memory_store}/in/", f"{memory_store}/out/", "-m", str(model)]
    for status in ("done", "up to date"):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--manifest", f"{memory_store}/m.parquet"])
        assert ended.value.code == 3
        content = (memory_store / "m.parquet").read_bytes()
        first, second = parquet(io.BytesIO(content)).read().to_pylist()
        assert (first["input"], first["status"]) == (f"{memory_store}/in/a.png", status)
        written = memory_store / "out" / "a.png"
        assert first["output"] == str(written)
        assert first["sha256"] == hashlib.sha256(written.read_bytes()).hexdigest()
        assert (second["status"], second["failures"]) == ("failed", [second["reason"]])


@pytest.mark.behaviour(25)
@pytest.mark.needs("pyarrow", "full-device")
def test_a_full_disk_is_a_clear_error(
    whole: tuple[JobPlan, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def writing(final: Path, *, overwrite: bool) -> Any:
        yield Path("/dev/full")

    monkeypatch.setattr(manifest, "writing", writing)
    with pytest.raises(OSError, match="No space left on device"):
        write_manifest(*whole, tmp_path / "m.parquet")


def test_without_pyarrow_parquet_is_refused_first_and_lines_are_written(
    model: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=r"cannot write m\.parquet: pyarrow is not"):
        manifest.check_format(Path("m.parquet"))
    out, words = tmp_path / "out", ["translate", str(source), str(tmp_path / "out"), "-m"]
    with pytest.raises(SystemExit) as ended:
        main([*words, str(model), "--manifest", str(tmp_path / "m.parquet")])
    assert ended.value.code == 1
    assert 'pip install "cyclegan-batch[parquet]" brings it' in capfd.readouterr().err
    assert not out.exists()
    with pytest.raises(SystemExit) as ended:
        main([*words, str(model), "--manifest", str(tmp_path / "m.jsonl")])
    assert ended.value.code == 0
    assert len(rows(tmp_path / "m.jsonl")) == 5
