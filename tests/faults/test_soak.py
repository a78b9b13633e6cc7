"""Large jobs that are killed again and again (make soak)."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from cyclegan_batch import demo
from tests.faults import jobs
from tests.faults.jobs import (
    Start,
    assert_same,
    ended,
    launch,
    left_over,
    seed,
    whole,
)
from tests.synthesis import generators

GENERATOR = Path(demo.__file__).with_name("day2night.onnx")
"""The small generator that comes with the package."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.needs("linux"),
    pytest.mark.behaviour(19, 20),
]


def killed_and_finished(
    start: Start, words: list[str | Path], expected: Path, *, kills: int, unit: int
) -> None:
    """Kill a job ``kills`` times, each time after a share of the work; finish and compare it.

    Prints the seconds, and how many frames or images were seen to be done and done again.
    """
    random = seed()
    reference = whole(words[0], expected, *words[2:])
    output = Path(words[1])
    unit_seconds = reference.report["seconds"] * unit / reference.frames
    seconds, lost, before = 0.0, [], 0
    for number in range(kills):
        process = launch(start, *words)
        begin = time.monotonic()
        target = reference.frames * (number + 1) // (kills + 1)
        while jobs.recorded(output, reference.frames) < target and process.poll() is None:
            time.sleep(0.05)
        time.sleep(random.uniform(0, unit_seconds))
        jobs.kill_group(process)
        run = ended(process, begin)
        assert run.code == -signal.SIGKILL, (number, run.stderr)
        seconds += run.seconds
        done = jobs.recorded(output, reference.frames)
        shown = [event["frames"] for event in run.events if event["event"] == "progress"]
        lost.append(max(0, (shown[-1] if shown else 0) - (done - before)))
        assert lost[-1] <= unit, lost
        before = done
    last = whole(*words)
    assert last.frames == reference.frames - before
    assert_same(output, expected)
    assert left_over(output.parent) == []
    reruns = [whole(*words) for _ in range(3)]
    assert [again.frames for again in reruns] == [0, 0, 0]
    again = min(reruns, key=lambda run: run.seconds)
    print(
        f"undisturbed {reference.seconds:.1f} s; killed {kills} times "
        f"{seconds + last.seconds:.1f} s; {sum(lost)} of {reference.frames} done twice "
        f"({max(lost)} after one kill); a rerun {again.seconds:.2f} s"
    )
    assert again.seconds <= 3.0


def test_ten_thousand_images_that_are_killed_five_times_end_as_undisturbed(
    tmp_path: Path, start: Start
) -> None:
    source = jobs.pictures(tmp_path / "in", 10_000, side=64)
    words: list[str | Path] = [source, tmp_path / "out", "-m", GENERATOR]
    killed_and_finished(start, words, tmp_path / "expected", kills=5, unit=256)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_clip_of_two_minutes_that_is_killed_ten_times_ends_as_undisturbed(
    workers: int, tmp_path: Path, start: Start
) -> None:
    source = jobs.clip(tmp_path / "clip.mp4", frames=3000, rate=25, size=(360, 640))
    model = generators.identity(tmp_path / "identity.onnx")
    (tmp_path / "out").mkdir()
    words = [source, tmp_path / "out" / "out.mp4", "-m", model, f"--workers={workers}"]
    expected = tmp_path / "expected" / "out.mp4"
    killed_and_finished(start, words, expected, kills=10, unit=250 * workers)
