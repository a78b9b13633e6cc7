"""Free space, compared with what a plan writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cyclegan_batch.api import plan_translation, translate
from cyclegan_batch.errors import OutputError
from cyclegan_batch.job import space
from cyclegan_batch.wording import grouped
from tests.job.test_plan import picture
from tests.synthesis import generators, streams

SetFree = Callable[[int], None]


class Usage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return streams.plain(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=5, size=(48, 64))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the folders whose file systems were looked at."""
    folders: list[Path] = []
    usual = shutil.disk_usage

    def counted(folder: Path) -> object:
        folders.append(folder)
        return usual(folder)

    monkeypatch.setattr(space.shutil, "disk_usage", counted)
    return folders


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> SetFree:
    """Return the function that sets how many bytes every disk has free."""

    def set_to(count: int) -> None:
        monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: Usage(10**12, 0, count))

    return set_to


@pytest.mark.behaviour(25)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le", "gray"])
def test_the_size_of_a_y4m_file_is_known_before_the_first_frame(
    model: Path, clip: Path, tmp_path: Path, pix_fmt: str
) -> None:
    odd = streams.plain(tmp_path / "odd.mkv", frames=3, size=(47, 63), codec="ffv1", audio=None)
    for source in (clip, odd):
        output = tmp_path / f"{source.stem}.y4m"
        plan = plan_translation(source, output, model=model, pix_fmt=pix_fmt)
        translate(source, output, model=model, pix_fmt=pix_fmt)
        (video,) = plan.videos
        assert video.y4m_bytes is not None
        assert 0 < output.stat().st_size - video.y4m_bytes < 200


@pytest.mark.behaviour(25)
def test_y4m_for_which_the_disk_is_too_small_errors_before_a_file_is_written(
    model: Path, clip: Path, tmp_path: Path, set_free: SetFree
) -> None:
    frame = 48 * 64 * 3 // 2 + 6
    set_free(5 * frame)
    plan = plan_translation(clip, tmp_path / "new" / "a.y4m", model=model)
    assert not any("free" in note for note in grouped(plan.notes))
    set_free(5 * frame - 1)
    with pytest.raises(
        OutputError,
        match=rf"^{tmp_path}: has 0\.0 MiB free, and the y4m files to be written there need 0\.0 ",
    ):
        plan_translation(clip, tmp_path / "new" / "a.y4m", model=model)
    assert not (tmp_path / "new").exists()
    # Neither a shorter stretch, a pipe, a preview nor another container needs that much.
    plan_translation(clip, tmp_path / "a.y4m", model=model, frames=4)
    plan_translation(clip, "-", model=model)
    plan_translation(clip, tmp_path / "a.y4m", model=model, preview=1)
    # The outputs of one job need their space together.
    set_free(9 * frame)
    source = tmp_path / "in" / "one.y4m"
    source.parent.mkdir()
    translate(clip, source, model=model, overwrite=True)
    source.with_name("two.y4m").write_bytes(source.read_bytes())
    with pytest.raises(OutputError, match="the y4m files to be written there need"):
        plan_translation(source.parent, tmp_path / "out", model=model)
    plan_translation(source.parent, tmp_path / "out", model=model, shard="2/2")


@pytest.mark.behaviour(25)
def test_y4m_of_a_video_that_states_no_number_of_frames_is_not_refused(
    model: Path, tmp_path: Path, set_free: SetFree
) -> None:
    # Its sound is longer, and Matroska states but one duration for both.
    clip = streams.plain(tmp_path / "clip.mkv", frames=3, size=(48, 64))
    set_free(3 * (48 * 64 * 3 // 2 + 6))
    plan = plan_translation(clip, tmp_path / "a.y4m", model=model)
    assert plan.frames == 4
    assert any("by its inputs the job needs" in note for note in grouped(plan.notes))


@pytest.mark.behaviour(23, 25)
def test_what_is_overwritten_makes_room_for_what_replaces_it(
    model: Path, clip: Path, tmp_path: Path, set_free: SetFree
) -> None:
    translate(clip, tmp_path / "a.y4m", model=model)
    set_free(1)
    plan_translation(clip, tmp_path / "a.y4m", model=model, overwrite=True)
    with pytest.raises(OutputError, match=r"has 0\.0 MiB free"):
        plan_translation(clip, tmp_path / "b.y4m", model=model, overwrite=True)


@pytest.mark.behaviour(25)
def test_what_may_not_find_room_by_the_size_of_its_inputs_is_said_once(
    model: Path, clip: Path, tmp_path: Path, set_free: SetFree
) -> None:
    for number in range(7):
        picture(tmp_path / "in" / f"{number}.png")
    shutil.copy(clip, tmp_path / "in" / "clip.mp4")
    (tmp_path / "in" / "labels.json").write_bytes(bytes(1000))
    needed = sum(each.stat().st_size for each in (tmp_path / "in").iterdir())

    def notes(**options: object) -> list[str]:
        plan = plan_translation(tmp_path / "in", tmp_path / "out" / "x", model=model, **options)
        return [note for note in grouped(plan.notes) if "free" in note]

    set_free(needed - 1)
    (note,) = notes(copy_others=True)
    assert note == (f"{tmp_path}: has 0.0 MiB free, and by its inputs the job needs 0.0 MiB")
    assert notes() == []
    set_free(needed)
    assert notes(copy_others=True) == []
    # Nothing is known of images that change their format, nor of a part of a video.
    set_free(0)
    assert notes(format="jpg", frames=2) == []


@pytest.mark.behaviour(25)
def test_of_many_images_some_are_looked_at_and_each_disk_once(
    model: Path,
    tmp_path: Path,
    set_free: SetFree,
    looked_at: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(9):
        picture(tmp_path / "in" / f"{number}.png")
    plan_translation(tmp_path / "in", tmp_path / "out", model=model)
    assert looked_at == [tmp_path]
    monkeypatch.setattr(space, "_SAMPLED", 3)
    sizes: list[Path] = []
    usual = space._file_bytes
    monkeypatch.setattr(space, "_file_bytes", lambda path: sizes.append(path) or usual(path))
    set_free(9 * (tmp_path / "in" / "0.png").stat().st_size - 1)
    plan = plan_translation(tmp_path / "in", tmp_path / "out", model=model)
    assert [path.name for path in sizes[::2]] == ["0.png", "3.png", "6.png"]
    assert any("by its inputs the job needs" in note for note in grouped(plan.notes))


@pytest.mark.behaviour(25)
def test_a_disk_that_does_not_tell_its_space_is_no_reason_to_refuse(
    model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path) -> Usage:
        raise OSError(38, "Function not implemented")

    for usage in (fails, lambda folder: Usage(0, 0, 0)):
        monkeypatch.setattr(space.shutil, "disk_usage", usage)
        plan_translation(clip, tmp_path / "a.y4m", model=model)
