"""Tars through a whole job: equal to a folder, resumed, recorded, shared among workers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import plan_translation, prepare_translation, translate
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.job.dispatch import Dispatcher
from cyclegan_batch.job.inputs import find_inputs
from cyclegan_batch.job.journal_lines import as_whole_output, written_failure, written_failures
from cyclegan_batch.job.manifest import write_manifest
from cyclegan_batch.job.plan_text import plan_lines
from cyclegan_batch.job.preview import write_preview
from cyclegan_batch.job.status import job_status
from cyclegan_batch.job.units import Failure, TarUnit
from cyclegan_batch.listings import forget
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.remote import RemotePath
from cyclegan_batch.wording import grouped
from tests.synthesis import generators, pictures
from tests.synthesis.tars import Item, jpeg, members, packed, png, write_tar


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.tiny_resnet(tmp_path_factory.mktemp("model") / "tiny.onnx")


def labelled(count: int, first: int = 0) -> list[Item]:
    """Return samples of an image, of two sizes in turn, and a label."""
    items: list[Item] = []
    for number in range(first, first + count):
        items.append((f"{number:04}.jpg", jpeg(number, (24, 32 + number % 2 * 8))))
        items.append((f"{number:04}.json", json.dumps({"label": number}).encode()))
    return items


def varied() -> list[Item]:
    """Return images with all that the codec has to keep: EXIF, a profile, alpha, 16 bits."""
    photo = pictures.photo(20, 30)
    deep = (np.arange(600, dtype=np.uint16) * 109).reshape(20, 30)
    metadata = {"exif": pictures.exif(6), "icc_profile": pictures.srgb_profile()}
    return [
        ("exif.jpg", pictures.pillow(photo, "JPEG", **metadata)),
        ("alpha.png", pictures.png(np.dstack([photo, pictures.alpha(20, 30)]))),
        ("deep.png", pictures.png(deep)),
    ]


def unpack(items: Sequence[Item], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in (item for item in items if isinstance(item, tuple)):
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.behaviour(15, 16, 28)
def test_the_images_of_a_tar_are_the_bytes_that_those_of_a_folder_are(
    model: Path, tmp_path: Path
) -> None:
    items = [*labelled(9), *varied()]
    write_tar(tmp_path / "in.tar", items)
    translate(unpack(items, tmp_path / "in"), tmp_path / "folder", model=model, copy_others=True)
    report = translate(tmp_path / "in.tar", tmp_path / "out.tar", model=model)
    assert report.status == "whole"
    assert report.frames == 12
    found = members(tmp_path / "out.tar")
    assert [name for name, _ in found] == [item[0] for item in items if isinstance(item, tuple)]
    for name, content in found:
        assert content == (tmp_path / "folder" / name).read_bytes(), name


@pytest.mark.behaviour(28, 37)
def test_the_bytes_are_the_same_for_any_number_of_workers_and_any_batch(
    model: Path, tmp_path: Path
) -> None:
    for number in range(3):
        write_tar(tmp_path / "in" / f"{number}.tar", labelled(20, 20 * number))
    outputs = [tmp_path / "one", tmp_path / "two", tmp_path / "batch"]
    for output, options in zip(outputs, [{}, {"workers": 2}, {"batch_size": 8}], strict=True):
        report = translate(tmp_path / "in", output, model=model, backend="onnxruntime", **options)
        assert (report.status, report.frames, len(report.outputs)) == ("whole", 60, 3)
    for number in range(3):
        assert len({(output / f"{number}.tar").read_bytes() for output in outputs}) == 1


@pytest.mark.behaviour(13)
def test_tars_stand_beside_images_and_videos_in_a_folder_and_keep_their_names(
    tmp_path: Path,
) -> None:
    for name in ("b/x.tar", "b/y.TAR", "a.png", "c.mp4", "d.txt", "e.tar.gz"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    out = tmp_path / "out"
    tree = find_inputs([tmp_path / "in"], out)
    found = [(each.kind, str(each.output.relative_to(out))) for each in tree.entries]
    expected = [("image", "a.png"), ("tar", "b/x.tar"), ("tar", "b/y.TAR"), ("video", "c.mp4")]
    assert found == expected
    assert "2 of its files (.gz, .txt)" in grouped(tree.notes)[0]
    # --format changes the images in a tar, --copy-others copies no tar.
    tree = find_inputs([tmp_path / "in"], out, format="png", copy_others=True)
    assert [each.output.name for each in tree.entries if each.kind == "tar"] == ["x.tar", "y.TAR"]
    (globbed,) = find_inputs([tmp_path / "in" / "**" / "*.tar"], out).entries
    assert (globbed.kind, globbed.output) == ("tar", out / "b" / "x.tar")
    parts = [find_inputs([tmp_path / "in"], out, part=(n, 2)).entries for n in (1, 2)]
    assert [[each.output.name for each in part if each.kind == "tar"] for part in parts] == [
        ["x.tar"],
        ["y.TAR"],
    ]


@pytest.mark.behaviour(13)
def test_a_tar_that_is_named_becomes_a_tar(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", [])
    (entry,) = find_inputs([source], tmp_path / "y.tar").entries
    assert (entry.kind, entry.output) == ("tar", tmp_path / "y.tar")
    (entry,) = find_inputs([source], f"{tmp_path}/out/").entries
    assert entry.output == tmp_path / "out" / "x.tar"
    with pytest.raises(OutputError, match=r"out\.mp4: a tar becomes a tar; name it \.tar"):
        find_inputs([source], tmp_path / "out.mp4")
    with pytest.raises(OutputError, match="standard output"):
        find_inputs([source], "-")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "X.TAR.ZST"])
def test_a_compressed_tar_that_is_named_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"{name}: is a compressed tar, and plain \.tar files"):
        find_inputs([tmp_path / name], tmp_path / "out")


@pytest.mark.behaviour(20, 21)
def test_a_tar_that_is_done_is_up_to_date_and_made_again_where_something_changes(
    model: Path, tmp_path: Path
) -> None:
    source = write_tar(tmp_path / "in" / "x.tar", labelled(3))
    out = tmp_path / "out"
    translate(tmp_path / "in", out, model=model)
    assert translate(tmp_path / "in", out, model=model).up_to_date == (out / "x.tar",)
    with pytest.raises(OutputError, match="was made without --format png"):
        translate(tmp_path / "in", out, model=model, format="png")
    with pytest.raises(OutputError, match="was made without --quality 50"):
        translate(tmp_path / "in", out, model=model, quality=50)
    again = translate(tmp_path / "in", out, model=model, format="png", overwrite=True)
    assert again.outputs == (out / "x.tar",)
    assert [name for name, _ in members(out / "x.tar")][:2] == ["0000.png", "0000.json"]
    write_tar(source, labelled(4))
    with pytest.raises(OutputError, match="from another state of"):
        translate(tmp_path / "in", out, model=model, format="png")
    report = translate(tmp_path / "in", out, model=model, format="png", overwrite=True)
    assert report.frames == 4


@pytest.mark.behaviour(21)
def test_with_hashes_a_tar_of_the_same_content_is_not_made_again(
    model: Path, tmp_path: Path
) -> None:
    source = write_tar(tmp_path / "x.tar", labelled(2))
    options: dict[str, Any] = {"model": model, "hash_inputs": True}
    translate(source, tmp_path / "out.tar", **options)
    source.touch()
    assert translate(source, tmp_path / "out.tar", **options).up_to_date


@pytest.mark.behaviour(14, 22)
def test_what_is_left_out_of_a_tar_is_told_by_report_manifest_and_status(
    model: Path, tmp_path: Path
) -> None:
    items = [*labelled(3), ("0003.jpg", b"no picture"), ("0003.json", b""), *labelled(2, 4)]
    write_tar(tmp_path / "in" / "x.tar", items)
    write_tar(tmp_path / "in" / "y.tar", labelled(2))
    (tmp_path / "in" / "z.tar").write_bytes(packed(labelled(2))[:3000])
    out = tmp_path / "out"
    plan, backend = prepare_translation(tmp_path / "in", out, model=model)
    assert backend is not None
    backend.close()
    report = translate(tmp_path / "in", out, model=model)
    assert (report.status, report.exit_code) == ("partial", 3)
    assert sorted(each.name for each in report.outputs) == ["x.tar", "y.tar"]
    causes = [failure.cause for failure in report.failures]
    assert "x.tar/0003.jpg: not an image of a known format" in causes[0]
    assert "(its sample 0003 is left out)" in causes[0]
    assert "z.tar: is cut off: it ends after 3000 bytes" in causes[1]
    assert len(causes) == 2
    assert not (out / "z.tar").exists()
    write_manifest(plan, report, tmp_path / "manifest.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    keys = ("status", "frames", "damaged", "input_size")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("done", 5, 1, None),
        ("done", 2, 0, None),
        ("failed", None, None, None),
    ]
    assert rows[0]["reason"] == rows[0]["failures"][0] == causes[0]
    status = job_status(out)
    assert status is not None
    assert (status.done, status.damaged, status.failed) == (2, 1, 1)
    # What is damaged in a whole tar is told by each later run; what failed is tried again.
    write_tar(tmp_path / "in" / "z.tar", labelled(2))
    report = translate(tmp_path / "in", out, model=model)
    assert (report.exit_code, len(report.up_to_date), len(report.outputs)) == (3, 2, 1)
    assert [failure.cause for failure in report.failures] == causes[:1]


@pytest.mark.behaviour(22)
def test_on_error_fail_ends_the_job_and_leaves_no_tar(model: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [*labelled(3), ("9.jpg", b"no picture")])
    with pytest.raises(InputError, match=r"x\.tar/9\.jpg: not an image"):
        translate(tmp_path / "x.tar", tmp_path / "out.tar", model=model, on_error="fail")
    assert not (tmp_path / "out.tar").exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_the_plan_tells_sizes_and_not_how_many_images_there_are(
    model: Path, tmp_path: Path
) -> None:
    write_tar(tmp_path / "in" / "x.tar", labelled(3))
    (tmp_path / "in" / "y.tar").write_bytes(b"no tar" * 200)
    plan = plan_translation(tmp_path / "in", tmp_path / "out", model=model)
    assert set(plan.sizes) == {(24, 32), (24, 40)}
    assert plan.frames is None
    lines = plan_lines(plan)
    x = f"{tmp_path}/in/x.tar → {tmp_path}/out/x.tar (a tar, its images one by one)"
    assert x in lines
    assert lines[-1] == "would write 2 files, an unknown number of frames"
    assert not (tmp_path / "out").exists()


def test_options_of_images_have_an_effect_on_tars_and_those_of_videos_do_not(
    model: Path, tmp_path: Path
) -> None:
    source = write_tar(tmp_path / "x.tar", labelled(2))
    plan = plan_translation(source, tmp_path / "out.tar", model=model, quality=60, crf=3)
    notes = grouped(plan.notes)
    assert any("--crf: no effect, as no video is among the inputs" in note for note in notes)
    assert not any("--quality" in note for note in notes)


def masked(count: int) -> list[Item]:
    """Return samples of an image and a mask."""
    return [
        item
        for number in range(count)
        for item in ((f"{number}.jpg", jpeg(number)), (f"{number}.seg.png", png(number + 50)))
    ]


@pytest.mark.behaviour(21)
def test_masks_are_carried_on_and_other_extensions_make_a_tar_outdated(
    model: Path, tmp_path: Path
) -> None:
    items = masked(3)
    source = write_tar(tmp_path / "x.tar", items)
    options: dict[str, Any] = {"model": model, "tar_images": "jpg"}
    plan = plan_translation(source, tmp_path / "out.tar", **options)
    assert not [note for note in grouped(plan.notes) if "image" in note]
    assert any(line.endswith("(a tar, its images one by one: jpg)") for line in plan_lines(plan))
    report = translate(source, tmp_path / "out.tar", **options)
    assert report.frames == 3
    write_manifest(plan, report, tmp_path / "manifest.jsonl")
    assert json.loads((tmp_path / "manifest.jsonl").read_text())["frames"] == 3
    for item, (name, content) in zip(items, members(tmp_path / "out.tar"), strict=True):
        assert (item == (name, content)) == name.endswith(".seg.png")
    again = {**options, "tar_images": "JPG,jpg"}
    assert translate(source, tmp_path / "out.tar", **again).up_to_date
    with pytest.raises(OutputError, match=r"made with --tar-images jpg \(now jpg,seg\.png\)"):
        translate(source, tmp_path / "out.tar", model=model, tar_images="seg.png,jpg")
    with pytest.raises(OutputError, match=r"made with --tar-images jpg \(now without it\)"):
        translate(source, tmp_path / "out.tar", model=model)


@pytest.mark.parametrize(
    "value", ["", ".jpg", "jpg,", ",jpg", "jpg, png", "*.png", "a/b", "a..b", "jpg.", ["jpg"]]
)
def test_what_is_no_list_of_extensions_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^tar_images must be extensions between commas, without"):
        TranslateOptions(tar_images=value)


def test_a_preview_of_a_tar_shows_its_first_image(model: Path, tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", [("0.txt", b"x"), *labelled(2)])
    sheet = write_preview(*prepared(source, tmp_path / "out.tar", model), 1)
    with Image.open(sheet) as image:
        assert image.size == (32, 24 * 2 + 8)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.tar.preview.png", "x.tar"]
    empty = write_tar(tmp_path / "empty.tar", [("0.txt", b"x")])
    with pytest.raises(InputError, match="no frame was found"):
        write_preview(*prepared(empty, tmp_path / "other.tar", model), 1)


def prepared(source: Path, output: Path, model: Path) -> Any:
    return prepare_translation(source, output, model=model, preview=1)


@pytest.mark.behaviour(47)
def test_a_tar_whose_worker_dies_is_tried_once_more_and_may_replace_what_that_one_wrote(
    model: Path, tmp_path: Path
) -> None:
    source = write_tar(tmp_path / "x.tar", [("1.png", png(1))])
    plan = plan_translation(source, tmp_path / "out.tar", model=model)
    dispatcher = Dispatcher(plan)
    first = next(dispatcher.units(0))
    assert isinstance(first, TarUnit)
    assert dispatcher.died(0, "killed by SIGSEGV") == []
    again = next(dispatcher.units(0))
    assert isinstance(again, TarUnit)
    assert again.plan.overwrite
    assert not first.plan.overwrite
    (outcome,) = dispatcher.died(0, "killed by SIGSEGV")
    assert "x.tar: the worker process that translated it was killed by SIGSEGV" in str(
        outcome.error
    )
    dispatcher.close()


@pytest.mark.behaviour(20, 28)
def test_tars_go_from_store_to_store_and_are_resumed(
    model: Path, memory_store: RemotePath, tmp_path: Path
) -> None:
    for number in range(2):
        content = packed(labelled(5, 5 * number))
        (memory_store / "in" / f"{number}.tar").write_bytes(content)
        write_tar(tmp_path / "in" / f"{number}.tar", labelled(5, 5 * number))
    translate(tmp_path / "in", tmp_path / "out", model=model)
    report = translate("memory://bucket/in", "memory://bucket/out", model=model)
    assert (report.status, report.frames) == ("whole", 10)
    for number in range(2):
        expected = (tmp_path / "out" / f"{number}.tar").read_bytes()
        assert (memory_store / "out" / f"{number}.tar").read_bytes() == expected
    # Of another size, since the time of an object counts in whole seconds.
    (memory_store / "in" / "0.tar").write_bytes(packed(labelled(30)))
    forget()
    again = translate("memory://bucket/in", "memory://bucket/out", model=model, overwrite=True)
    assert (len(again.up_to_date), again.frames) == (1, 30)


def test_the_failures_of_one_tar_that_a_journal_keeps_are_bounded() -> None:
    failures = [
        Failure(f"x.tar/{n}.jpg", InputError(f"x.tar/{n}.jpg: broken")) for n in range(5000)
    ]
    rows = written_failures(failures)
    assert rows[:2000] == [written_failure(each) for each in failures[:2000]]
    whole = as_whole_output("job", ["x.tar", [1, 1, None], None, None, 1, ""], {"failures": rows})
    assert whole is not None
    assert sum(each.count for each in whole.failures) == 5000
    assert whole.failures[-1].cause == (
        "x.tar/2000.jpg and others, 3,000 in all: are missing or damaged as well"
    )
    assert len(json.dumps(rows)) < 1 << 20
