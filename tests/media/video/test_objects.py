"""Videos from and to a store: the outputs are those of local files, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch import remote
from cyclegan_batch.errors import InputError, OutputError, OutputExistsError
from cyclegan_batch.files import scratch_folder
from cyclegan_batch.job.inputs import find_inputs
from cyclegan_batch.job.units import JoinUnit, StretchUnit, VideoUnit
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.mux.joined_video import Stretch
from cyclegan_batch.media.video.plan import VideoPlan
from cyclegan_batch.media.video.sink import VideoSink
from cyclegan_batch.media.video.source import VideoSource
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.remote import RemotePath
from tests.media.identity import plan, run
from tests.needs import need
from tests.synthesis import animations, streams, videos

need("fsspec")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a scratch folder of its own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return scratch_folder()


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest) -> RemotePath:
    path = request.getfixturevalue({"memory": "memory_store", "s3": "s3"}[request.param])
    assert isinstance(path, RemotePath)
    return path


def stored(local: Path, bucket: RemotePath) -> RemotePath:
    path = bucket / "raw" / local.name
    path.write_bytes(local.read_bytes())
    return path


def encode(planned: VideoPlan, folder: Path, numbers: Sequence[int]) -> list[Stretch]:
    """Do stretches by the identity, as the pipeline does."""
    found: list[Stretch] = []
    for number in numbers:
        unit = StretchUnit(planned, number, folder)
        source = unit.open_source()
        sink = unit.open_sink(source)
        from_raw, to_encoded = source.converter(), sink.converter()
        for item in source.read():
            assert not isinstance(item, Dropped)
            frame = from_raw(item)
            assert not isinstance(frame, Dropped)
            sink.write(to_encoded(frame))
        source.close()
        assert not sink.finish()
        sink.discard()
        found += sink.written
    return found


def join(planned: VideoPlan, stretches: Sequence[Stretch]) -> VideoPlan:
    unit = JoinUnit(planned, tuple(stretches))
    sink = unit.open_sink(unit.open_source())
    try:
        assert not sink.finish()
    finally:
        sink.discard()
    return planned


def both(local: Path, bucket: RemotePath) -> list[tuple[Path, Path]]:
    """Return the pairs of folders between which a video is translated."""
    far = stored(local, bucket)
    near = local.parent / "near"
    return [(far, near), (local, bucket / "real"), (far, bucket / "again")]


@pytest.mark.parametrize(
    ("name", "make"),
    [("a.mkv", streams.mkv), ("a.mp4", streams.mp4), ("a.ts", streams.plain)],
)
def test_a_video_in_one_piece_is_that_of_local_files(
    tmp_path: Path, bucket: RemotePath, scratch: Path, name: str, make: Callable[[Path], Path]
) -> None:
    local = make(tmp_path / name)
    expected = tmp_path / "expected" / name
    run(plan(local, expected))
    for source, folder in both(local, bucket):
        dropped, sink = run(plan(source, folder / name))
        assert dropped == []
        (written,) = sink.written
        assert (folder / name).read_bytes() == expected.read_bytes()
        assert written.bytes == expected.stat().st_size == (folder / name).stat().st_size
        assert written.path == folder / name
        assert list(scratch.iterdir()) == []


def test_a_y4m_video_is_put_into_a_store(
    tmp_path: Path, memory_store: RemotePath, scratch: Path
) -> None:
    local = streams.plain(tmp_path / "a.mkv", frames=5, audio=None)
    run(plan(local, tmp_path / "expected.y4m"))
    run(plan(local, memory_store / "a.y4m"))
    assert (memory_store / "a.y4m").read_bytes() == (tmp_path / "expected.y4m").read_bytes()
    run(plan(tmp_path / "expected.y4m", tmp_path / "near.mkv"))
    run(plan(memory_store / "a.y4m", tmp_path / "far.mkv"))
    assert (tmp_path / "far.mkv").read_bytes() == (tmp_path / "near.mkv").read_bytes()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_an_animated_image_is_that_of_local_files(
    tmp_path: Path, memory_store: RemotePath, scratch: Path, suffix: str
) -> None:
    parts = animations.parts(np.random.default_rng(0), (24, 32), 4, disposals=2, alpha="bit")
    local = animations.apng(tmp_path / "a.apng", parts)
    name = f"a{suffix}"
    run(plan(local, tmp_path / "expected" / name))
    for source, folder in both(local, memory_store):
        dropped, _ = run(plan(source, folder / name))
        assert dropped == []
        assert (folder / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
        assert list(scratch.iterdir()) == []
    assert find_inputs([memory_store / "real" / name], "o.gif").entries[0].kind == "video"


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_video_in_stretches_is_that_of_local_files(
    tmp_path: Path, bucket: RemotePath, scratch: Path, suffix: str
) -> None:
    local = (streams.mkv if suffix == "mkv" else streams.mp4)(tmp_path / f"a.{suffix}")
    expected = tmp_path / "expected" / local.name
    planned = replace(plan(local, expected), stretch_frames=20)
    parts = encode(planned, tmp_path / "parts", range(planned.stretches))
    expected.parent.mkdir()
    join(planned, parts)
    for source, folder in both(local, bucket):
        job = folder / ".cyclegan-batch" / "0123456789abcdef"
        planned = replace(plan(source, folder / local.name), stretch_frames=20)
        # Whoever made them, and in whichever order: the store has them.
        late, early = encode(planned, job, [2]), encode(planned, job, [0, 1])
        assert [each.path.parent for each in early + late] == [job] * 3
        assert [each.path.read_bytes() for each in early + late] == [
            each.path.read_bytes() for each in parts
        ]
        assert list(scratch.iterdir()) == []
        remote.forget()
        join(planned, early + late)
        assert (folder / local.name).read_bytes() == expected.read_bytes()
        assert all(each.path.exists() for each in early + late)
        assert list(scratch.iterdir()) == []


def test_each_stretch_is_got_twice_by_the_join_and_never_kept_here(
    tmp_path: Path, s3: RemotePath, scratch: Path, requests: Any
) -> None:
    """Once for the order of the frames, once for the frames, unless the blocks are still kept."""
    local = videos.moving(tmp_path / "a.mkv", frames=60)
    planned = replace(plan(local, s3 / "a.mkv"), stretch_frames=20)
    parts = encode(planned, s3 / "parts", range(3))
    requests.clear()
    join(planned, parts)
    assert requests["GetObject"] == 3
    assert [*scratch.iterdir()] == []


def test_an_output_that_exists_stays_and_is_found_before_the_first_frame_errors(
    tmp_path: Path, bucket: RemotePath, scratch: Path
) -> None:
    planned = plan(streams.plain(tmp_path / "a.mkv", frames=5), bucket / "a.mkv")
    (bucket / "a.mkv").write_bytes(b"before")
    with pytest.raises(OutputExistsError, match=r"a\.mkv: it exists already; pass -y"):
        VideoSink(planned)
    assert list(scratch.iterdir()) == []
    run(replace(planned, options=replace(planned.options, overwrite=True)))
    assert (bucket / "a.mkv").stat().st_size > 1000


def test_an_output_that_another_has_written_meanwhile_stays_errors(
    tmp_path: Path, bucket: RemotePath, scratch: Path
) -> None:
    planned = replace(
        plan(videos.moving(tmp_path / "a.mkv", frames=40), bucket / "a.mkv"), stretch_frames=20
    )
    parts = encode(planned, bucket / "parts", range(2))
    (bucket / "a.mkv").write_bytes(b"of another run")
    with pytest.raises(OutputExistsError):
        join(planned, parts)
    assert (bucket / "a.mkv").read_bytes() == b"of another run"
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("what", ["stretch", "join", "whole"])
def test_a_store_that_takes_nothing_errors_and_leaves_nothing(
    tmp_path: Path,
    memory_store: RemotePath,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    local = videos.moving(tmp_path / "a.mkv", frames=40)
    planned = replace(plan(local, memory_store / "a.mkv"), stretch_frames=20)
    parts = encode(planned, memory_store / "parts", range(2)) if what == "join" else []
    before = len(memory_store.beneath())

    def full(*values: object, **options: object) -> None:
        raise OSError(121, "the store answers: SlowDown")

    monkeypatch.setattr("cyclegan_batch.files.copy_out", full)
    doing: dict[str, Callable[[], object]] = {
        "stretch": lambda: do(planned, memory_store / "parts"),
        "join": lambda: join(planned, parts),
        "whole": lambda: do(planned, None),
    }
    with pytest.raises(OutputError, match=r"a\.mkv: the store answers: SlowDown"):
        doing[what]()
    assert list(scratch.iterdir()) == []
    assert len(memory_store.beneath()) == before


def do(planned: VideoPlan, folder: Path | None) -> None:
    """Do the video in one piece, or its first stretch, in a folder; when it fails, discard it."""
    unit = VideoUnit(planned) if folder is None else StretchUnit(planned, 0, folder)
    source = unit.open_source()
    sink = unit.open_sink(source)
    from_raw, to_encoded = source.converter(), sink.converter()
    try:
        for item in source.read():
            sink.write(to_encoded(from_raw(item)))  # type: ignore[arg-type]
        sink.finish()
    finally:
        source.close()
        sink.discard()


@pytest.mark.behaviour(1, 22)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "flv", "wmv", "y4m", "nut"])
@pytest.mark.parametrize("trouble", ["whole", "short", "damaged"])
def test_what_is_missing_or_damaged_is_told_as_of_a_file(
    tmp_path: Path, memory_store: RemotePath, suffix: str, trouble: str
) -> None:
    local = tmp_path / f"in.{suffix}"
    if suffix == "y4m":
        run(plan(videos.moving(tmp_path / "a.mkv", frames=40), local))
    else:
        codec = {"flv": "flv1", "wmv": "wmv2", "avi": "mpeg4"}.get(suffix, "libx264")
        pictures = [streams.picture(number) for number in range(40)]
        frames = [av.VideoFrame.from_ndarray(each, "rgb24") for each in pictures]
        videos.encode(local, [each.reformat(format="yuv420p") for each in frames], codec)
    content = bytearray(local.read_bytes())
    if trouble == "short":
        del content[len(content) * 3 // 4 :]
    elif trouble == "damaged":
        content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    local.write_bytes(content)
    near, far = told(local), told(stored(local, memory_store))
    assert near == far
    assert near[0] > 0 or trouble != "whole"


def told(source: Path) -> tuple[int, list[str]]:
    """Return how many frames come, and what is said of the others, or of the file."""
    try:
        reader = VideoSource(plan(source, Path("out.mkv")))
        items = [*reader.read()]
        reader.close()
    except InputError as error:
        return 0, [str(error).replace(str(source), "NAME").replace("the store", "the disk")]
    wrong = [str(each.error) for each in items if isinstance(each, Dropped)]
    texts = [*wrong, *(note.text for note in reader.notes)]
    return len(items) - len(wrong), [text.replace(str(source), "NAME") for text in texts]


@pytest.mark.behaviour(22)
def test_a_source_that_was_replaced_is_told_although_it_was_listed(
    tmp_path: Path, memory_store: RemotePath
) -> None:
    source = stored(streams.plain(tmp_path / "a.mkv", frames=5), memory_store)
    memory_store.beneath()
    planned = plan(source, tmp_path / "out.mkv")
    assert planned.why_changed() is None
    memory_store._store.pipe_file(source._key, source.read_bytes() + b"more")
    assert "was changed while it was translated" in str(planned.why_changed())


def test_a_store_that_fails_in_the_middle_fails_the_unit_and_is_no_damage_errors(
    tmp_path: Path, memory_store: RemotePath, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    source = stored(videos.moving(tmp_path / "a.mkv", frames=60), memory_store)
    planned = plan(source, memory_store / "real.mkv")
    real = remote._Get._fetch

    def failing(self: Any, number: int) -> bytes:
        if number > 2:
            raise OSError(121, "the store answers: SlowDown")
        return real(self, number)

    monkeypatch.setattr(remote, "_BLOCK", 1 << 14)
    monkeypatch.setattr(remote._Get, "_fetch", failing)
    with pytest.raises(InputError, match="the store answers: SlowDown"):
        do(planned, None)
    assert not (memory_store / "real.mkv").exists()
    assert list(scratch.iterdir()) == []


def test_a_pattern_of_images_is_not_played_from_a_store_errors(memory_store: RemotePath) -> None:
    (memory_store / "f_001.png").write_bytes(streams.cover_picture())
    with pytest.raises(InputError, match="is played from a folder only; copy the images into one"):
        plan(memory_store / "f_%03d.png", Path("out.mkv"), TranslateOptions(fps="25"))


KILLED = """
import os, signal, sys
from pathlib import Path
from cyclegan_batch.job.units import StretchUnit
from cyclegan_batch.remote import as_path
from dataclasses import replace
from tests.media.identity import plan

planned = replace(plan(Path(sys.argv[1]), as_path(sys.argv[2])), stretch_frames=20)
unit = StretchUnit(planned, 0, as_path(sys.argv[3]))
source = unit.open_source()
sink = unit.open_sink(source)
from_raw, to_encoded = source.converter(), sink.converter()
for item in source.read():
    sink.write(to_encoded(from_raw(item)))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.needs("linux")
@pytest.mark.behaviour(19)
def test_what_a_killed_process_leaves_here_is_removed_by_the_next(
    tmp_path: Path, s3: RemotePath, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = videos.moving(tmp_path / "a.mkv", frames=40)
    monkeypatch.setenv("TMPDIR", str(scratch.parent))
    words = [str(local), str(s3 / "a.mkv"), str(s3 / "parts")]
    subprocess.run([sys.executable, "-c", KILLED, *words], check=False)
    assert len(list(scratch.iterdir())) == 1
    assert s3.beneath() == {}
    remote.forget()
    planned = replace(plan(local, s3 / "a.mkv"), stretch_frames=20)
    join(planned, encode(planned, s3 / "parts", range(2)))
    assert list(scratch.iterdir()) == []
    with av.open(str(local)) as before, (s3 / "a.mkv").open("rb") as file, av.open(file) as after:
        assert len([*after.decode(video=0)]) == len([*before.decode(video=0)]) == 40
