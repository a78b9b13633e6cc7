"""Read a written file packet by packet, before it gets its name."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import av.stream

from ..errors import OutputError
from ..wording import printable
from .containers import container_for
from .demuxing import demux, open_container
from .joined_video import JoinedVideo
from .muxing import as_output_error
from .streams import StreamPlan


def verify(plan: StreamPlan, joined: JoinedVideo, sent: Counter[int], partial: Path) -> Fraction:
    """Read the written file packet by packet. Raises OutputError unless all arrived, on time.

    Returns by how many seconds everything is later because the container cannot start below zero.
    """
    times: list[int] = []
    found: Counter[int] = Counter()
    with open_container(partial) as container, as_output_error(plan.output):
        position = next(i for i, choice in enumerate(plan.carried) if choice.way == "video")
        stream = container.streams[position]
        tick = stream.time_base or Fraction(1, av.time_base)
        timed = plan.format != "avi"
        for packet in demux(container, list(container.streams)):
            if not packet.size:
                continue
            found[packet.stream_index] += 1
            if packet.stream_index != stream.index:
                continue
            if packet.is_discard:
                raise _not_whole(plan, "one of its frames is marked to be left out")
            stamp = packet.pts if packet.pts is not None else packet.dts
            times.append(stamp or 0)
        kinds = {s.index: s.type for s in container.streams}
    if len(times) != len(joined.times):
        raise _not_whole(plan, f"it holds {len(times)} frames, {len(joined.times)} were sent")
    for index, count in sent.items():
        if kinds.get(index) == "audio" and found[index] != count:
            raise _not_whole(
                plan, f"stream {index} holds {found[index]} audio packets, {count} were sent"
            )
    if not timed:
        return Fraction(0)
    times.sort()
    moved = times[0] * tick - joined.times[0] * joined.time_base
    if abs(moved) <= tick or container_for(plan.output).negative_start:
        moved = Fraction(0)
    # In whole numbers of a common unit: there may be a million frames.
    unit = Fraction(1, math.lcm(*(x.denominator for x in (tick, joined.time_base, moved))))
    ours, theirs, later = int(tick / unit), int(joined.time_base / unit), int(moved / unit)
    for number, (time, sent_time) in enumerate(zip(times, joined.times, strict=True)):
        wanted = sent_time * theirs + later
        if abs(time * ours - wanted) > ours:
            there, due = float(time * tick), float(wanted * unit)
            raise _not_whole(plan, f"frame {number} is at {there:.6f} s, not {due:.6f} s")
    return moved


def _not_whole(plan: StreamPlan, found: str) -> OutputError:
    return OutputError(
        f"{printable(plan.output)} was written but did not come out whole: {found}; "
        "choose another --codec or container, such as .mkv"
    )
