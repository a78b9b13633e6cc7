"""File systems that lack what a local one has: what is promised there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import jobs
from tests.faults.jobs import Fault, Start, assert_same, ended, launch, left_over, translate, whole
from tests.synthesis import generators

pytestmark = pytest.mark.needs("linux")

LACKS: dict[str, list[Fault]] = {
    "locks": [{"call": "flock", "path": ".", "error": "ENOLCK"}],
    "hard links": [{"call": "link", "path": ".", "error": "EPERM"}],
    "a rename over a file": [
        {"call": "rename", "path": "/out", "error": "EEXIST", "only_over": True}
    ],
}
LACKS["all of them"] = [*LACKS["locks"], *LACKS["hard links"]]
LACKS["all of them"] += LACKS["a rename over a file"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = jobs.pictures(tmp_path_factory.mktemp("source") / "in", 300)
    jobs.clip(folder / "clip.mp4", frames=400)
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected") / "out"
    whole(source, folder, "-m", model)
    return folder


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("lack", LACKS)
def test_a_killed_job_is_finished_by_the_same_command_on_a_file_system_without(
    lack: str, source: Path, expected: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    faults = LACKS[lack]
    # The journal has a few lines by then, the video two stretches.
    killed = {"call": "write", "path": r"\.jsonl$", "after": 4, "kill": True}
    assert translate(source, out, "-m", model, faults=[*faults, killed]).code == -9
    second = whole(source, out, "-m", model, faults=faults)
    assert 0 < second.frames < 530
    assert_same(out, expected)
    assert left_over(out) == []
    assert whole(source, out, "-m", model, faults=faults).frames == 0


@pytest.mark.behaviour(23)
def test_without_locks_two_runs_do_the_same_twice_and_each_output_is_whole(
    source: Path, expected: Path, model: Path, tmp_path: Path, start: Start
) -> None:
    out = tmp_path / "out"
    processes = [
        launch(start, source, out, "-m", model, "-n", faults=LACKS["locks"]) for _ in range(2)
    ]
    for run in [ended(process, 0.0) for process in processes]:
        # Whoever is the first to finish a video removes its stretches, which the other may want.
        assert {Path(each["name"]).name for each in run.report["failures"]} <= {"clip.mp4"}
    assert_same(out, expected)
    # The run that ends first rewrites the journal, and what the other writes down later is lost.
    # A stretch that the other writes after the video is finished stays until the next run.
    whole(source, out, "-m", model, "-n")
    assert_same(out, expected)
    assert left_over(out) == []
    assert whole(source, out, "-m", model, "-n").frames == 0


@pytest.mark.behaviour(23)
def test_without_a_rename_over_a_file_an_output_is_replaced_on_request_only(
    source: Path, model: Path, tmp_path: Path
) -> None:
    out, faults = tmp_path / "out", LACKS["a rename over a file"]
    whole(source / "a", out, "-m", model, faults=faults)
    before = jobs.tree(out)
    (out / "00000.png").write_bytes(b"mine")
    refused = translate(source / "a", out, "-m", model, faults=faults)
    assert "00000.png: exists already" in refused.error
    assert (out / "00000.png").read_bytes() == b"mine"
    assert whole(source / "a", out, "-m", model, "-y", faults=faults).frames == 1
    assert jobs.tree(out) == before
    assert whole(source / "a", out, "-m", model, faults=faults).frames == 0
