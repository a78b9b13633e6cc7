"""Frame times survive a journal, and many stretches are joined one at a time."""

from __future__ import annotations

import contextlib
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
)
from cyclegan_batch.media.mux.streams import plan_streams
from cyclegan_batch.options import TranslateOptions
from tests.media.mux.assembling import H264, encode
from tests.synthesis import streams


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
