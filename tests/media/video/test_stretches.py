"""A video in stretches: the frames, findings and output of one uninterrupted run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.job.units import JoinUnit, StretchUnit
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.mux.joined_video import Stretch
from cyclegan_batch.media.video.plan import VideoPlan
from cyclegan_batch.media.video.source import VideoSource
from cyclegan_batch.wording import Note
from tests.media.identity import leftovers, plan
from tests.media.witness import needs_ffprobe, pictures, times
from tests.synthesis.videos import moving


def in_stretches(planned: VideoPlan, frames: int) -> VideoPlan:
    return replace(planned, stretch_frames=frames)


def read(source: VideoSource) -> tuple[list[Any], list[Note]]:
    """Return frames and dropped ones in their places, and the notes."""
    convert = source.converter()
    items = [each if isinstance(each, Dropped) else convert(each) for each in source.read()]
    return items, list(source.notes)


def read_in_stretches(planned: VideoPlan, numbers: Sequence[int]) -> dict[int, Any]:
    """Read the stretches in this order in one process, as the pipeline does."""
    found = {}
    previous: VideoSource | None = None
    for number in numbers:
        source = StretchUnit(planned, number, Path("unused")).open_source(previous)
        if previous is not None:
            previous.close()
        found[number] = read(source)
        previous = source
    if previous is not None:
        previous.close()
    return found


def described(items: Sequence[Any]) -> list[Any]:
    """Return what two readings must have in common."""
    return [
        (each.name, str(each.error), each.place)
        if isinstance(each, Dropped)
        else (each.index, each.tag, each.tag.interlaced, each.pixels.tobytes())
        for each in items
    ]


def assert_reads_alike(planned: VideoPlan) -> None:
    source = VideoSource(planned)
    whole, notes = read(source)
    source.close()
    in_order = range(planned.stretches)
    for numbers in (in_order, in_order[::-1], in_order[1::2]):
        found = read_in_stretches(planned, numbers)
        for number, (items, _) in found.items():
            last = number == planned.stretches - 1
            assert all(
                number == (min(each.index // planned.stretch_frames, planned.stretches - 1))
                for each in items
                if not isinstance(each, Dropped)
            )
            assert last or all(each.place for each in items if isinstance(each, Dropped))
        if len(found) == planned.stretches:
            parts = [found[number] for number in in_order]
            assert described([each for items, _ in parts for each in items]) == described(whole)
            assert [note for _, each in parts for note in each] == notes


def encode_stretch(planned: VideoPlan, number: int, folder: Path) -> list[Stretch]:
    unit = StretchUnit(planned, number, folder)
    source, sink = unit.open_source(), unit.open_sink()
    from_raw, to_encoded = source.converter(), sink.converter()
    for item in source.read():
        frame = item if isinstance(item, Dropped) else from_raw(item)
        if not isinstance(frame, Dropped):
            sink.write(to_encoded(frame))
    source.close()
    sink.finish()
    return sink.written


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_stretches_read_alike(tmp_path, suffix):
    source = moving(tmp_path / f"in{suffix}", frames=65, options={"g": "12", "bf": "2"})
    assert_reads_alike(in_stretches(plan(source, tmp_path / "out.mkv"), 20))


@needs_ffprobe
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_joined_stretches_are_the_whole_video(tmp_path, suffix):
    source = moving(tmp_path / f"in{suffix}", frames=50, options={"g": "12", "bf": "2"})
    output = tmp_path / f"out{suffix}"
    planned = in_stretches(plan(source, output), 20)
    folder = tmp_path / "made" / "here"
    stretches = [each for n in range(3) for each in encode_stretch(planned, n, folder)]
    assert sorted(path.name for path in folder.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]
    join = JoinUnit(planned, tuple(stretches)).open_sink()
    assert join.finish() == ()
    join.discard()
    assert [each.path for each in join.written] == [output]
    assert leftovers(tmp_path) == []
    assert times(output) == times(source)
    assert np.abs(pictures(output).astype(int) - pictures(source)).mean() < 4
