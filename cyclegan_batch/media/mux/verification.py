"""Read a written file packet by packet, before it gets its name."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av

from ...errors import OutputError
from ...wording import printable
from ..demux.demuxing import demux, open_container
from .containers import container_for
from .joined_video import JoinedVideo
from .muxing import as_output_error
from .streams import StreamPlan


def verify(plan: StreamPlan, joined: JoinedVideo, sent: Counter[int], partial: Path) -> Fraction:
    """Read the written file. Raises OutputError unless every packet arrived, on time.

    ``sent`` counts the packets that were written to each stream. Returns by how many seconds
    everything is later because the container cannot start below zero.
    """
    stamps: list[int] = []
    received: Counter[int] = Counter()
    with open_container(partial) as container, as_output_error(plan.output):
        position = next(n for n, planned in enumerate(plan.streams) if planned.action == "video")
        stream = container.streams[position]
        tick = stream.time_base or Fraction(1, av.time_base)
        for packet in demux(container, list(container.streams)):
            if not packet.size:
                continue
            received[packet.stream_index] += 1
            if packet.stream_index != stream.index:
                continue
            if packet.is_discard:
                raise _error(plan, "one of its frames is marked to be left out")
            stamp = packet.pts if packet.pts is not None else packet.dts
            stamps.append(stamp or 0)
        kinds = {each.index: each.type for each in container.streams}
    if len(stamps) != len(joined.times):
        raise _error(plan, f"it holds {len(stamps)} frames, {len(joined.times)} were sent")
    for index, count in sent.items():
        if kinds.get(index) == "audio" and received[index] != count:
            raise _error(
                plan, f"stream {index} holds {received[index]} audio packets, {count} were sent"
            )
    if plan.format == "avi":
        # AVI stores no time stamps.
        return Fraction(0)
    return _verify_times(plan, joined, sorted(stamps), tick)


def _verify_times(
    plan: StreamPlan, joined: JoinedVideo, stamps: list[int], tick: Fraction
) -> Fraction:
    """Return by how many seconds all frames are late; raise OutputError where they differ in that.

    ``stamps`` are the times read, ascending, in units of ``tick`` (seconds).
    """
    delay = stamps[0] * tick - joined.times[0] * joined.time_base
    if abs(delay) <= tick or container_for(plan.output).negative_start:
        delay = Fraction(0)
    # In whole numbers of a common unit: there may be a million frames.
    unit = Fraction(1, math.lcm(*(x.denominator for x in (tick, joined.time_base, delay))))
    tick_units, base_units, delay_units = (int(x / unit) for x in (tick, joined.time_base, delay))
    for number, (stamp, time) in enumerate(zip(stamps, joined.times, strict=True)):
        due = time * base_units + delay_units
        if abs(stamp * tick_units - due) > tick_units:
            actual, expected = float(stamp * tick), float(due * unit)
            raise _error(plan, f"frame {number} is at {actual:.6f} s, not {expected:.6f} s")
    return delay


def _error(plan: StreamPlan, difference: str) -> OutputError:
    return OutputError(
        f"{printable(plan.output)} was written, but not as planned: {difference}; "
        "choose another --codec or container, such as .mkv"
    )
