"""What each stage of the pipeline costs alone, and the limit that follows.

Two terms limit a run. The threads of this machine share the CPU time of all stages, so there are at
most threads ÷ the sum of their CPU seconds per frame. And no run is faster than its slowest stage
with all its workers. On a CPU the first one is the limit, on a GPU the second: there the network
computes beside the CPU.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from ..backends import Backend
from ..frames import Frame, Geometry, Pixels, stack
from ..job.plan import JobPlan
from ..job.schedule import Schedule
from ..machine import opencv_without_threads
from ..media import Dropped, Encoded, Raw, Sink, Source

_CHUNK_BYTES = 32 << 20
"""Bytes of the frames that one stage processes before the next one gets them."""

_MOST_IN_CHUNK = 32

_LONG_CHUNK = 0.5
"""Seconds. A chunk that took longer is followed by none with more frames, so that a time limit is
kept where a frame takes seconds."""

_IDLE, _SETTLED, _PATIENCE = 0.004, 0.0005, 0.25
"""A process counts as idle when it used less than the second number of CPU seconds within the first
number of seconds. After the third it is measured as it is."""


@dataclass(frozen=True)
class StageCost:
    """What one frame costs a stage that works alone."""

    cpu: float
    """CPU seconds, of all threads that work for the stage."""
    wall: float
    """Seconds that one worker of the stage takes."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The rate that no run exceeds, in frames per second."""

    rate: float
    """The one of the two terms that holds on this device."""
    threads: int
    """CPU threads that this process may use."""
    cpu_seconds: float
    """The sum of the CPU seconds of all stages per frame."""
    by_cpu: float
    """``threads`` ÷ ``cpu_seconds``."""
    by_slowest: float
    """The rate of the slowest stage alone, with all its workers."""
    slowest: str
    """That stage."""


def limit_of(
    costs: Mapping[str, StageCost], schedule: Schedule, *, threads: int, on_cpu: bool
) -> Limit:
    """Return the limit of a run with this schedule on ``threads`` CPU threads."""
    total = sum(cost.cpu for cost in costs.values())
    workers = schedule.stages
    rates = {name: workers[name] / max(cost.wall, 1e-9) for name, cost in costs.items()}
    slowest = min(rates, key=lambda name: rates[name])
    by_cpu = threads / max(total, 1e-9)
    return Limit(
        rate=by_cpu if on_cpu else min(by_cpu, rates[slowest]),
        threads=threads,
        cpu_seconds=total,
        by_cpu=by_cpu,
        by_slowest=rates[slowest],
        slowest=slowest,
    )


def stages_alone(
    plan: JobPlan, backend: Backend, *, enough: Callable[[int], bool] = lambda frames: False
) -> dict[str, StageCost]:
    """Run the stages of ``plan`` one after the other, and return what each costs, by its name.

    The outputs of the plan are written. ``backend`` is the one that `prepare_translation` opened
    for it; it stays open. Its first call, in which a runtime sets itself up, is not measured. After
    ``enough`` frames no others are read. Opening and ending a file count into its stage.

    Some frames at a time go through one stage, and the next stage begins when the threads of a
    decoder, a runtime or an encoder have become idle: what they do after a call has returned counts
    into their own stage.

    Raises what the plan's own run would raise, and InputError where nothing can be read.
    """
    meter = _Meter(plan.schedule.stages)
    done = 0
    with opencv_without_threads():
        for unit in plan.units:
            with meter.measuring("read"):
                source = unit.open_source()
            with contextlib.closing(source):
                with meter.measuring("write"):
                    sink = unit.open_sink(source)
                try:
                    for count in _frames_of(plan, backend, source, sink, meter):
                        done += count
                        if enough(done):
                            break
                    with meter.measuring("write"):
                        sink.finish()
                except BaseException:
                    sink.discard()
                    raise
            if enough(done):
                break
    return meter.costs(max(1, done))


_Fitted: TypeAlias = tuple[Frame, Geometry, Pixels]
"""A frame, its way through the network, and its pixels as the network gets them."""


def _frames_of(
    plan: JobPlan, backend: Backend, source: Source[Raw], sink: Sink[Encoded], meter: _Meter
) -> Iterator[int]:
    """Take the frames of a source through all stages, and yield how many went to the sink."""
    into, out = source.converter(), sink.converter()
    keep_size, size = plan.options.keep_size, plan.schedule.batch_size
    items = source.read()
    count, warm = size, False
    while True:
        begin = time.perf_counter()
        with meter.measuring("read"):
            chunk = list(itertools.islice(items, count))
        if not chunk:
            return
        with meter.measuring("to rgb"):
            parts = list(_parts(_fitted(plan, map(into, _whole(chunk))), size))
            batches = [stack([pixels for _, _, pixels in part], size) for part in parts]
        if batches and not warm:
            backend.infer(batches[0])
            warm = True
        with meter.measuring("network"):
            translated = [backend.infer(batch) for batch in batches]
        with meter.measuring("from rgb"):
            encoded = [
                out(replace(frame, pixels=shape.out_of_network(row, keep_size=keep_size)))
                for part, rows in zip(parts, translated, strict=True)
                # The last rows of a batch may only fill it up.
                for (frame, shape, _), row in zip(part, rows, strict=False)
            ]
        with meter.measuring("write"):
            for each in encoded:
                sink.write(each)
        yield len(encoded)
        if encoded and time.perf_counter() - begin < _LONG_CHUNK:
            most = min(_MOST_IN_CHUNK, _CHUNK_BYTES // parts[0][0][0].pixels.nbytes)
            count = max(size, min(2 * count, most // size * size))


_Item = TypeVar("_Item")


def _whole(items: Iterable[_Item | Dropped]) -> Iterator[_Item]:
    return (item for item in items if not isinstance(item, Dropped))


def _fitted(plan: JobPlan, frames: Iterable[Frame | Dropped]) -> Iterator[_Fitted]:
    for frame in _whole(frames):
        height, width = frame.pixels.shape[:2]
        shape = plan.geometry((height, width))
        yield frame, shape, shape.into_network(frame.pixels)


def _parts(frames: Iterable[_Fitted], size: int) -> Iterator[list[_Fitted]]:
    """Yield the frames in lists of at most ``size`` with one size in the network."""
    for _, alike in itertools.groupby(frames, key=lambda each: each[2].shape):
        while part := list(itertools.islice(alike, size)):
            yield part


class _Meter:
    """Adds up the CPU seconds and the seconds of each stage."""

    def __init__(self, stages: Iterable[str]) -> None:
        self._cpu = dict.fromkeys(stages, 0.0)
        self._wall = dict.fromkeys(stages, 0.0)

    @contextlib.contextmanager
    def measuring(self, stage: str) -> Iterator[None]:
        """Add the time within to a stage, and the CPU time that its threads use afterwards."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self._wall[stage] += time.perf_counter() - wall
        _wait_until_idle()
        self._cpu[stage] += time.process_time() - cpu

    def costs(self, frames: int) -> dict[str, StageCost]:
        """Return the costs of each stage per frame."""
        return {
            name: StageCost(cpu=self._cpu[name] / frames, wall=self._wall[name] / frames)
            for name in self._cpu
        }


def _wait_until_idle() -> None:
    """Wait until the threads of this process do nothing any more."""
    end = time.perf_counter() + _PATIENCE
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(_IDLE)
        if time.process_time() - before < _SETTLED:
            return
