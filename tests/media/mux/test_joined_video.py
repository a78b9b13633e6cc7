"""Frame times survive a journal, and many stretches are joined one at a time."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cyclegan_batch.media.demux.probe import probe
from cyclegan_batch.media.mux import joined_video
from cyclegan_batch.media.mux.joined_video import (
    JoinedVideo,
    Stretch,
    numbers_from_times,
    times_from_numbers,
)
from cyclegan_batch.media.mux.streams import plan_streams
from cyclegan_batch.options import TranslateOptions
from tests.media.mux.assembling import H264, encode
from tests.synthesis import streams

_RANDOM = random.Random(7)


def _random_times() -> tuple[int, ...]:
    """Return up to 300 ascending times; small choices of gaps make runs of equal ones."""
    largest = _RANDOM.choice((1, 2, 3, 90_000, 2**70))
    time, times = _RANDOM.randint(-(2**64), 2**64), []
    for _ in range(_RANDOM.randint(0, 300)):
        times.append(time)
        time += _RANDOM.randint(1, largest)
    return tuple(times)


@pytest.mark.behaviour(2)
def test_any_ascending_times_survive_as_json():
    for _ in range(300):
        times = _random_times()
        text = json.dumps(numbers_from_times(times))
        assert times_from_numbers(json.loads(text)) == times


def test_times_of_a_constant_rate_are_a_few_numbers():
    assert numbers_from_times(range(900, 900 + 250 * 512, 512)) == [900, 512, 249]
    assert numbers_from_times((5,)) == [5]
    assert numbers_from_times(()) == []
    assert numbers_from_times((0, 33, 66, 100)) == [0, 33, 2, 34, 1]


@pytest.mark.parametrize(
    "numbers", [[0, 40], [0, 0, 3], [0, -40, 3], [0, 40, 0], [0, 40, -1], [0.0], [True], ["0"]]
)
def test_numbers_that_are_no_ascending_times_errors(numbers):
    with pytest.raises(ValueError, match="frame times"):
        times_from_numbers(numbers)


def test_a_stretch_is_opened_twice_and_closed_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film has a thousand stretches, and a process may open about as many files."""
    source = streams.plain(tmp_path / "a.mp4", frames=6, audio=None)
    info = probe(source)
    video = info.streams[0]
    plan = plan_streams(info, video, tmp_path / "out.mp4", TranslateOptions(), H264)
    (stretch,) = encode(info, video, tmp_path)
    gap = stretch.times[1] - stretch.times[0]
    stretches: list[Stretch] = [
        replace(stretch, times=tuple(range(6 * number * gap, 6 * (number + 1) * gap, gap)))
        for number in range(30)
    ]
    opened = now = most = 0
    really_open: Any = joined_video.open_container

    @contextlib.contextmanager
    def counted(path: Path) -> Iterator[Any]:
        nonlocal opened, now, most
        opened, now = opened + 1, now + 1
        most = max(most, now)
        with really_open(path) as container:
            yield container
        now -= 1

    monkeypatch.setattr(joined_video, "open_container", counted)
    joined = JoinedVideo(stretches, plan)
    stamps = [(packet.pts, packet.dts) for packet in joined.packets()]
    assert sorted(pts for pts, _ in stamps) == list(range(0, 180 * gap, gap))
    assert [dts for _, dts in stamps] == sorted(dts for _, dts in stamps)
    assert (opened, now, most) == (60, 0, 1)
