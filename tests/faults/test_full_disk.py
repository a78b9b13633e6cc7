"""A disk that is full at any kind of write: one clear error, and the same command goes on later."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.faults import jobs
from tests.faults.disks import SmallDisk
from tests.faults.jobs import Fault, Start, left_over, translate, tree, whole
from tests.synthesis import generators

pytestmark = pytest.mark.behaviour(25)

PICTURES = 24
FRAMES = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video of three stretches, images, and labels."""
    folder = jobs.pictures(tmp_path_factory.mktemp("source") / "in", PICTURES)
    jobs.clip(folder / "clip.mp4", frames=FRAMES)
    (folder / "a" / "labels.txt").write_text("0 zebra\n" * 100)
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("expected")
    run = whole(*words(source, folder, model))
    assert run.frames == PICTURES + FRAMES
    assert left_over(folder / "out") == []
    return folder


def words(source: Path, folder: Path, model: Path) -> list[str | Path]:
    """Return a command that writes every kind of file there is, all under ``folder``."""
    results = [f"--report={folder / 'report.json'}", f"--manifest={folder / 'manifest.jsonl'}"]
    more = ["--copy-others", *results]
    return [source, folder / "out", "-m", model, *more]


def temporary(name: str) -> str:
    """Return a pattern of the temporary names of a file called ``name``."""
    return rf"/\.{hashlib.sha256(name.encode()).hexdigest()[:16]}-[^/]*\.partial$"


WRITES: dict[str, tuple[list[Fault], str]] = {
    "a stretch is flushed": ([{"call": "fsync", "path": "/.cyclegan-batch/[0-9a-f]{16}/"}], "clip"),
    "a stretch gets its name": (
        [
            {"call": call, "path": r"/.cyclegan-batch/[0-9a-f]{16}/1\."}
            for call in ("rename", "link")
        ],
        "clip",
    ),
    "the joined video": ([{"call": "fsync", "path": temporary("clip.mp4")}], "clip.mp4"),
    "the name of the video": (
        [{"call": call, "path": r"/clip\.mp4$"} for call in ("rename", "link")],
        "clip.mp4",
    ),
    "an image": ([{"call": "open", "path": temporary("00005.png")}], "00005.png"),
    "the name of an image": (
        [{"call": call, "path": r"/00005\.png$"} for call in ("rename", "link")],
        "00005.png",
    ),
    "the journal": ([{"call": "write", "path": r"/journal\.jsonl$", "after": 3}], ".jsonl"),
    "the report": ([{"call": "open", "path": temporary("report.json")}], "report.json"),
    "the manifest": ([{"call": "open", "path": temporary("manifest.jsonl")}], "manifest.jsonl"),
    "a copy": ([{"call": "open", "path": temporary("labels.txt")}], "labels.txt"),
}
"""Every kind of write: what fails at it, and what the error names."""


def assert_nothing_half(output: Path, expected: Path) -> None:
    """Every file under a final name is as the undisturbed run's."""
    everything = tree(expected)
    for name, digest in tree(output).items():
        if not name.endswith(".partial"):
            assert digest == everything[name], name


@pytest.mark.needs("linux")
@pytest.mark.parametrize(
    ("kind", "workers"),
    [*((kind, 1) for kind in WRITES), ("an image", 2), ("a stretch gets its name", 2)],
)
def test_a_full_disk_is_a_clear_error_and_the_same_command_goes_on(
    kind: str, workers: int, source: Path, expected: Path, model: Path, tmp_path: Path
) -> None:
    faults, named = WRITES[kind]
    command = [*words(source, tmp_path, model), f"--workers={workers}"]
    run = translate(*command, faults=faults)
    assert "the disk is full; free some space and run the same command again" in run.error
    assert named in run.error
    assert_nothing_half(tmp_path / "out", expected / "out")
    assert not [name for name in left_over(tmp_path / "out") if name.endswith(".partial")]

    again = whole(*command)
    assert tree(tmp_path / "out") == tree(expected / "out")
    assert left_over(tmp_path / "out") == []
    if kind != "a stretch is flushed" and workers == 1:
        assert again.frames < PICTURES + FRAMES


@pytest.mark.needs("linux")
@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
def test_a_full_disk_when_all_is_whole_leaves_the_journal_as_it_is_which_is_enough(
    call: str, source: Path, expected: Path, model: Path, tmp_path: Path
) -> None:
    command = words(source, tmp_path, model)
    path = r"/journal\.jsonl$" if call == "rename" else temporary("journal.jsonl")
    whole(*command, faults=[{"call": call, "path": path}])
    assert tree(tmp_path / "out") == tree(expected / "out")
    assert left_over(tmp_path / "out") == []
    assert whole(*command).frames == 0


@pytest.mark.needs("small-disk")
@pytest.mark.parametrize("share", [0.1, 0.4, 0.75, 0.97])
def test_a_disk_that_fills_up_is_a_clear_error_and_the_same_command_goes_on(
    share: float, source: Path, expected: Path, model: Path, tmp_path: Path, start: Start
) -> None:
    disk = SmallDisk(start, tmp_path / "disk", size=64 << 20)
    disk.fill(leave=int(share * sum(p.stat().st_size for p in expected.rglob("*") if p.is_file())))
    command = words(source, disk.path, model)
    run = disk.translate(*command)
    assert "the disk is full; free some space and run the same command again" in run.error
    assert_nothing_half(disk.seen / "out", expected / "out")

    disk.free()
    again = disk.translate(*command)
    assert again.code == 0, again.stderr
    assert tree(disk.seen / "out") == tree(expected / "out")
    assert left_over(disk.seen / "out") == []
