"""Outputs in a store: the same files, journal and messages as in a folder, and few requests."""

from __future__ import annotations

import errno
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cyclegan_batch import remote
from cyclegan_batch.api import prepare_translation, run_plan, translate
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.files import scratch_folder
from cyclegan_batch.job.inputs import find_inputs
from cyclegan_batch.job.job_folder import FOLDER
from cyclegan_batch.job.journal import Journal
from cyclegan_batch.job.manifest import write_manifest
from cyclegan_batch.job.preview import write_preview
from cyclegan_batch.job.report import check_result_path, write_report
from cyclegan_batch.job.status import JobStatus, job_status
from cyclegan_batch.media.images.shards import plan_images
from cyclegan_batch.media.images.sinks import ObjectSink
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.remote import RemotePath, as_path
from tests.job.test_standing import done, picture, planned
from tests.needs import need
from tests.synthesis import generators, streams

need("fsspec", "s3fs")

COUNT = 10
"""Images of the job, in three shards."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest) -> RemotePath:
    """Return a bucket of each store."""
    found = request.getfixturevalue({"memory": "memory_store", "s3": "s3"}[request.param])
    assert isinstance(found, RemotePath)
    return found


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, which make three shards, one of them in a folder of its own."""
    monkeypatch.setattr("cyclegan_batch.media.images.shards.SHARD", 4)
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for number in range(COUNT):
        picture(folder / ("sub" if number == 3 else "") / f"{number}.png", 20 * number)
    return folder


def content(root: RemotePath) -> dict[str, bytes]:
    """Return all outputs by their names; nothing else is there but the job folder."""
    remote.forget()
    return {
        str(name): (root / name).read_bytes() for name in root.beneath() if FOLDER not in name.parts
    }


def local_content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


def again(*arguments: Any, **options: Any) -> Any:
    """Translate as another process would, which knows no listing."""
    remote.forget()
    return translate(*arguments, **options)


def status_of(output: RemotePath) -> JobStatus:
    remote.forget()
    found = job_status(output)
    assert found is not None
    return found


@pytest.mark.behaviour(20, 23)
def test_outputs_are_those_of_a_folder_and_the_journal_is_one_object(
    bucket: RemotePath, model: Path, source: Path, tmp_path: Path
) -> None:
    root = bucket / "real" / "x"
    report = translate(source, f"{root}/", model=model)
    assert (report.exit_code, len(report.outputs)) == (0, COUNT)
    translate(source, tmp_path / "out", model=model)
    assert content(root) == local_content(tmp_path / "out")
    (journal,) = (name for name in root.beneath() if FOLDER in name.parts)
    assert journal.parent == Path(FOLDER) / "journal.jsonl"
    lines = [json.loads(line) for line in (root / journal).read_bytes().splitlines()]
    (local,) = (tmp_path / "out" / FOLDER).glob("*.jsonl")
    expected = [json.loads(line) for line in local.read_text().splitlines()]
    assert [line["line"] for line in lines] == [line["line"] for line in expected]
    assert not list(scratch_folder().glob(".*"))


@pytest.mark.behaviour(20)
def test_what_is_up_to_date_costs_no_request_of_its_own(
    s3: RemotePath, model: Path, source: Path, requests: Counter[str]
) -> None:
    root = s3 / "x"
    translate(source, str(root), model=model)
    units = 3
    # Each output is put once, the object of each unit twice, and those of the begin and the end.
    assert requests["PutObject"] == COUNT + 2 * units + 2
    requests.clear()
    remote.forget()
    plan, backend = prepare_translation(source, str(root), model=model)
    assert (backend, len(plan.finished)) == (None, COUNT)
    assert run_plan(plan).exit_code == 0
    assert requests == {"ListObjectsV2": 3, "GetObject": 1}
    requests.clear()
    assert status_of(root).is_whole
    assert sum(requests.values()) <= 7


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("units", [0, 1, 2])
def test_a_run_that_was_cut_off_goes_on_without_y(
    bucket: RemotePath, model: Path, source: Path, units: int
) -> None:
    root = bucket / "x"
    plan = planned(source, str(root), model=model)
    done(plan, units, close=False)
    # The next unit was begun, and one of its objects put.
    journal = Journal(plan)
    journal.began(plan.units[units])
    picture_of = plan.units[units].shard.entries[0].output  # type: ignore[attr-defined]
    picture_of.write_bytes(b"half")
    remote.forget()
    status = status_of(root)
    assert (status.done, status.at_work, status.is_whole) == (min(4 * units, COUNT), None, False)
    assert "has not ended" in "\n".join(status.lines())
    report = again(source, str(root), model=model)
    assert (report.exit_code, len(report.outputs)) == (0, COUNT - 4 * units)
    assert len(content(root)) == COUNT
    assert content(root)[str(picture_of.relative_to(root))] != b"half"
    assert status_of(root).is_whole
    assert len([name for name in root.beneath() if FOLDER in name.parts]) == 1


@pytest.mark.behaviour(21, 23)
def test_what_has_changed_is_refused_and_made_again_with_y(
    bucket: RemotePath, model: Path, source: Path
) -> None:
    root = bucket / "x"
    translate(source, str(root), model=model)
    before = content(root)
    with pytest.raises(OutputError, match=rf"{root}/0\.png and 9 more: were made without --size"):
        again(source, str(root), model=model, size=(8, 8), keep_size=True)
    assert (
        again(
            source, str(root), model=model, size=(8, 8), keep_size=True, skip_existing=True
        ).skipped
        == COUNT
    )
    assert content(root) == before
    report = again(source, str(root), model=model, size=(8, 8), keep_size=True, overwrite=True)
    assert len(report.outputs) == COUNT
    assert content(root) != before
    picture(source / "5.png", 255)
    with pytest.raises(OutputError, match=rf"{root}/5\.png: was made from another state of"):
        again(source, str(root), model=model, size=(8, 8), keep_size=True)


@pytest.mark.behaviour(23)
def test_an_object_of_somebody_else_is_not_replaced_unasked(
    bucket: RemotePath, model: Path, source: Path
) -> None:
    root = bucket / "x"
    (root / "2.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match=rf"{root}/2\.png: exists already; -y overwrites"):
        again(source, str(root), model=model)
    report = again(source, str(root), model=model, skip_existing=True)
    assert (report.skipped, len(report.outputs)) == (1, COUNT - 1)
    assert content(root)["2.png"] == b"mine"
    assert again(source, str(root), model=model, overwrite=True).exit_code == 0
    assert content(root)["2.png"] != b"mine"


@pytest.mark.behaviour(23)
@pytest.mark.parametrize("skip", [False, True])
def test_an_object_that_appears_meanwhile_is_not_replaced(
    s3: RemotePath, model: Path, source: Path, skip: bool
) -> None:
    """The store itself decides, at the moment of the PUT."""
    root = s3 / "x"
    plan = planned(source, str(root), model=model, skip_existing=skip)
    import boto3

    boto3.client("s3").put_object(Bucket=s3.name, Key="x/2.png", Body=b"mine")
    report = run_plan(plan)
    assert content(root)["2.png"] == b"mine"
    assert len(report.outputs) == COUNT - 1
    if skip:
        assert (report.exit_code, report.skipped) == (0, 1)
    else:
        assert report.exit_code == 3
        assert f"{root}/2.png: it exists already" in report.failures[0].cause
    with pytest.raises(OutputError, match=rf"{root}/2\.png: exists already; -y overwrites"):
        again(source, str(root), model=model)
    assert content(root)["2.png"] == b"mine"


@pytest.mark.behaviour(23)
def test_two_parts_are_one_job(bucket: RemotePath, model: Path, source: Path) -> None:
    root = bucket / "x"
    assert len(translate(source, str(root), model=model, shard="1/2").outputs) == COUNT // 2
    status = status_of(root)
    assert (status.done, status.parts, status.is_whole) == (COUNT // 2, (1, 2), False)
    assert len(again(source, str(root), model=model, shard="2/2").outputs) == COUNT // 2
    status = status_of(root)
    assert (status.outputs, status.done, status.parts) == (COUNT, COUNT, (2, 2))
    assert status.is_whole
    # Each part has put its own objects together.
    folders = Counter(name.parts[1] for name in root.beneath() if FOLDER in name.parts)
    assert folders == {"journal-1of2.jsonl": 1, "journal-2of2.jsonl": 1}
    assert again(source, str(root), model=model).up_to_date


def test_a_part_that_finds_nothing_to_do_has_begun(
    memory_store: RemotePath, model: Path, source: Path
) -> None:
    root = memory_store / "x"
    translate(source, str(root), model=model)
    for part in ("1/2", "2/2", "2/2"):
        assert again(source, str(root), model=model, shard=part).exit_code == 0
    status = status_of(root)
    assert (status.parts, status.done, status.is_whole) == ((2, 2), COUNT, True)
    assert len([name for name in root.beneath() if FOLDER in name.parts]) == 3


@pytest.mark.behaviour(25)
@pytest.mark.parametrize("output", ["s3://no-such-bucket/x/", "s3://no-such-bucket/x.png"])
def test_a_bucket_that_is_not_there_is_told_before_the_first_frame(
    s3: RemotePath, model: Path, source: Path, output: str
) -> None:
    inputs = source / "0.png" if output.endswith(".png") else source
    with pytest.raises(OutputError, match="the store has no bucket of this name; check the URL"):
        prepare_translation(inputs, output, model=model)
    with pytest.raises(InputError, match="the store has no bucket of this name; check the URL"):
        job_status(as_path(output))


@pytest.mark.behaviour(29)
def test_a_run_at_work_is_told_by_its_last_line(
    bucket: RemotePath, model: Path, source: Path
) -> None:
    root = bucket / "x"
    journal = Journal(planned(source, str(root), model=model))
    status = status_of(root)
    assert (status.done, status.left, status.at_work) == (0, COUNT, None)
    assert status.silent is not None
    assert status.silent < 60
    assert status.description()["silent_seconds"] == status.silent
    assert re.search(r"it wrote 0:00:\d\d ago; no lock tells", "\n".join(status.lines()))
    journal.close()
    assert "ended early" in "\n".join(status_of(root).lines())


@pytest.mark.behaviour(23)
def test_two_runs_at_once_with_n_write_each_output_once(
    s3: RemotePath, model: Path, source: Path
) -> None:
    root = s3 / "x"
    plans = [planned(source, str(root), model=model, skip_existing=True) for _ in range(2)]
    first = run_plan(plans[0])
    written = content(root)
    second = run_plan(plans[1])
    assert (len(first.outputs), len(second.outputs), second.skipped) == (COUNT, 0, COUNT)
    assert second.exit_code == 0
    assert content(root) == written
    assert status_of(root).is_whole


def test_a_note_tells_once_that_a_store_has_no_locks(
    memory_store: RemotePath, model: Path, source: Path
) -> None:
    report = translate(source, f"{memory_store}/x", model=model)
    (note,) = (note for note in report.notes if "locks" in note.text)
    assert str(note.subject) == "memory://bucket/x"
    assert not any(
        "locks" in note.text for note in again(source, f"{memory_store}/x", model=model).notes
    )


def test_a_single_output_has_a_journal_of_its_own(
    bucket: RemotePath, model: Path, source: Path
) -> None:
    output = bucket / "x" / "out.png"
    (bucket / "x" / "other.png").write_bytes(b"other")
    assert translate(source / "0.png", str(output), model=model).exit_code == 0
    assert again(source / "0.png", str(output), model=model).up_to_date == (output,)
    assert status_of(output).is_whole
    assert job_status(bucket / "x" / "none.png") is None
    assert set(content(bucket / "x")) == {"out.png", "other.png"}


@pytest.mark.behaviour(22)
def test_an_input_that_cannot_be_read_is_listed_and_tried_again(
    bucket: RemotePath, model: Path, source: Path
) -> None:
    root = bucket / "x"
    whole = (source / "3.png").read_bytes() if (source / "3.png").exists() else None
    assert whole is None
    broken = source / "sub" / "3.png"
    kept = broken.read_bytes()
    broken.write_text("no picture")
    assert translate(source, str(root), model=model).exit_code == 3
    status = status_of(root)
    assert (status.done, status.failed, status.left) == (COUNT - 1, 1, 0)
    ((name, reason),) = status.failures
    assert (name, "3.png" in reason) == ("sub/3.png", True)
    broken.write_bytes(kept)
    assert len(again(source, str(root), model=model).outputs) == 1
    assert status_of(root).is_whole


def test_report_manifest_and_preview_go_to_a_store(
    bucket: RemotePath, model: Path, source: Path
) -> None:
    root = bucket / "x"
    plan, backend = prepare_translation(source, str(root), model=model)
    assert backend is not None
    assert write_preview(plan, backend, 2) == bucket / "x.preview.png"
    assert (bucket / "x.preview.png").read_bytes().startswith(b"\x89PNG")
    report = run_plan(plan)
    for path in (bucket / "report.json", bucket / "rows.jsonl", bucket / "rows.parquet"):
        check_result_path(path, plan, model, what="report")
    write_report(report, bucket / "report.json")
    assert json.loads((bucket / "report.json").read_bytes())["status"] == "whole"
    write_manifest(plan, report, bucket / "rows.jsonl")
    rows = [json.loads(line) for line in (bucket / "rows.jsonl").read_bytes().splitlines()]
    assert len(rows) == COUNT
    assert {row["status"] for row in rows} == {"done"}
    assert rows[0]["output"] == f"{root}/0.png"
    write_manifest(plan, report, bucket / "rows.parquet")
    assert (bucket / "rows.parquet").read_bytes().startswith(b"PAR1")
    with pytest.raises(OutputError, match="it is a file of the job itself"):
        check_result_path(root / "0.png", plan, model, what="report")


@pytest.mark.behaviour(20, 23)
def test_other_files_are_copied_once(
    bucket: RemotePath, model: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bucket / "x"
    for number in range(5):
        (source / f"{number}.txt").write_text(f"label {number}")
    report = translate(source, str(root), model=model, copy_others=True)
    assert len(report.outputs) == COUNT + 5
    assert content(root)["3.txt"] == b"label 3"
    monkeypatch.setattr(RemotePath, "put", None)
    report = again(source, str(root), model=model, copy_others=True)
    assert len(report.up_to_date) == COUNT + 5


# Videos


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A video that is cut into three stretches of ten frames."""
    monkeypatch.setattr("cyclegan_batch.media.video.plan._KEY_FRAMES", 10)
    monkeypatch.setattr("cyclegan_batch.media.video.plan._MOST_GROUPS", 1)
    return streams.plain(tmp_path / "film.mp4", frames=27, size=(48, 64))


@pytest.mark.behaviour(19)
def test_the_stretches_of_a_video_wait_in_the_store(
    bucket: RemotePath, model: Path, film: Path, tmp_path: Path
) -> None:
    from tests.job.test_journal import stretches_done

    output = bucket / "x" / "film.mp4"
    stretches_done(planned(film, str(output), model=model), [0, 2])
    assert status_of(output).videos == (("film.mp4", 2, 3),)
    with pytest.raises(OutputError, match=r"2 of 3 stretches were made without --crf 40"):
        planned(film, str(output), model=model, crf=40.0)
    plan = planned(film, str(output), model=model)
    assert [each.number for each in plan.done[output]] == [0, 2]
    assert plan.frames == 10
    assert run_plan(plan).exit_code == 0
    local = tmp_path / "local.mp4"
    translate(film, local, model=model)
    assert content(bucket / "x") == {"film.mp4": local.read_bytes()}
    names = [name for name in (bucket / "x").beneath() if FOLDER in name.parts]
    assert len(names) == 1  # the journal
    assert again(film, str(output), model=model).up_to_date == (output,)


@pytest.mark.behaviour(19)
def test_a_stretch_that_another_process_has_put_is_known_to_the_next_run(
    s3: RemotePath, model: Path, film: Path
) -> None:
    """The listing of the process that writes the journal tells nothing of it."""
    from tests.job.test_journal import stretches_done

    output = s3 / "film.mp4"
    plan = planned(film, str(output), model=model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "remember", lambda url, size: None)
        stretches_done(plan, [0])
    remote.forget()
    assert [each.number for each in planned(film, str(output), model=model).done[output]] == [0]


def test_scratch_for_a_video_of_a_store_is_counted_and_told_where_there_is_too_little(
    memory_store: RemotePath, model: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cyclegan_batch.job import space
    from cyclegan_batch.job.plan_text import plan_description, plan_lines
    from tests.job.test_space import Usage

    url = f"{memory_store}/film.mp4"
    plan = planned(film, url, model=model)
    assert plan.scratch == 2 * film.stat().st_size
    (line,) = (line for line in plan_lines(plan) if line.startswith("scratch"))
    assert str(scratch_folder()) in line
    assert "TMPDIR" in line
    assert plan_description(plan)["scratch_bytes"] == plan.scratch
    assert not any(note.subject == scratch_folder() for note in plan.notes)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: Usage(10**12, 0, 10))
    (note,) = (n for n in planned(film, url, model=model).notes if n.subject == scratch_folder())
    assert "TMPDIR names another folder" in note.text
    assert planned(film, film.with_name("out.mp4"), model=model).scratch == 0


# The sink


def sink_of(root: RemotePath, source: Path, count: int) -> tuple[ObjectSink, list[Any]]:
    """Return a sink, and images that are encoded for it."""
    from cyclegan_batch.media.images.shards import ImageSource

    options = TranslateOptions()
    entries = find_inputs([source], str(root)).entries[:count]
    (shard,) = plan_images(entries, options, pixel_type="uint8")
    sink, images = ObjectSink(shard), ImageSource(shard)
    decode, encode = images.converter(), sink.converter()
    return sink, [encode(decode(each)) for each in images.read()]  # type: ignore[arg-type]


def test_an_image_that_cannot_be_put_is_lost_alone(
    memory_store: RemotePath, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RemotePath.put

    def refuse(path: RemotePath, data: bytes, *, overwrite: bool) -> None:
        if path.name == "1.png":
            raise OSError(5, "the store answers: no", str(path))
        real(path, data, overwrite=overwrite)

    monkeypatch.setattr(RemotePath, "put", refuse)
    sink, images = sink_of(memory_store / "x", source, 4)
    lost = [each for image in images if (each := sink.write(image)) is not None]
    (only,) = (*lost, *sink.finish())
    assert only.name == f"{memory_store}/x/1.png"
    assert "the store answers: no" in str(only.error)
    assert len(sink.written) == 3
    assert sorted(content(memory_store / "x")) == ["0.png", "2.png", "4.png"]


def test_a_sink_that_is_given_up_reports_what_is_whole_and_leaves_nothing_else(
    memory_store: RemotePath, source: Path
) -> None:
    sink, images = sink_of(memory_store / "x", source, 4)
    for image in images[:2]:
        sink.write(image)
    sink.discard()
    sink.discard()
    assert sorted(each.path.name for each in sink.written) == ["0.png", "1.png"]
    assert sorted(content(memory_store / "x")) == ["0.png", "1.png"]
    assert not list(scratch_folder().glob(".*"))


@pytest.mark.behaviour(25)
def test_a_store_that_goes_away_after_the_plan_is_told_errors(
    memory_store: RemotePath, model: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a single output the store is asked again, and of the manifest's rows."""
    url = f"{memory_store}/0.png"
    plan = planned(source / "0.png", url, model=model)
    report = run_plan(plan)

    def refuse(*which: object, **options: object) -> NoReturn:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    for name in ("info", "find", "cat_file", "pipe_file"):
        monkeypatch.setattr(memory_store._store, name, refuse)
    remote.forget()
    with pytest.raises(InputError, match=r"batch: cannot be read: the store does not answer: "):
        write_manifest(plan, report, source / "rows.jsonl")
    for begin in (lambda: run_plan(plan), lambda: planned(source / "0.png", url, model=model)):
        with pytest.raises(OutputError, match=r"cannot write memory:.*the store does not answer"):
            begin()
