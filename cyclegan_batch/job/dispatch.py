"""Which worker does what next: stretches of videos, joins, shards of images, second tries.

Workers pull. The dispatcher knows what is handed out, holds the locks of what several units or
several runs share, and tells the journal. It starts nothing and reads no frame.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import CycleganBatchError, InputError, OutputError, OutputInUseError
from ..files import OutputLock, remove_leftovers
from ..media import Dropped, Whole, Written
from ..wording import printable
from .job_folder import digest_of, name_of
from .journal import Journal
from .units import (
    ImageUnit,
    JoinUnit,
    Outcome,
    StretchUnit,
    TarUnit,
    Unit,
    VideoUnit,
    output_exists,
)

if TYPE_CHECKING:
    from ..media.formats import Entry
    from ..media.images.shards import ImageShard
    from ..media.mux.joined_video import Stretch
    from ..media.video.plan import VideoPlan
    from ..media.video.sink import OutputHold
    from .plan import JobPlan


@dataclass(frozen=True)
class RefusedUnit:
    """A unit that cannot begin: it fails with ``error`` where it is opened."""

    name: str
    error: CycleganBatchError
    frames: int | None = None
    temporal: float = 0.0

    def open_source(self, previous: object = None) -> NoReturn:
        """Raise the error."""
        raise self.error

    def open_sink(self, source: object) -> NoReturn:
        """Raise the error."""
        raise self.error


@dataclass(eq=False)
class _Hold:
    """A lock that is released when the last unit that needs it has ended."""

    lock: OutputLock | OutputHold | None
    needed_by: int = 1

    def let_go(self) -> None:
        self.needed_by -= 1
        if not self.needed_by:
            self.release()

    def release(self) -> None:
        lock, self.lock = self.lock, None
        if lock is not None:
            lock.release()


_KNOWN = 3
"""Stretches whose times let the next one be decoded without all that precedes them."""


@dataclass(eq=False)
class _Film:
    """A video that is done in stretches."""

    plan: VideoPlan
    folder: Path
    waiting: list[int]
    """The stretches that nobody has begun, ascending."""
    done: dict[int, Stretch | None]
    """What each stretch that has ended became; None where the video ends before it."""
    damaged: bool = False
    """Something is missing from a stretch that has ended, or damaged in it."""
    running: int = 0
    """How many of its units are begun and have not ended."""
    hold: _Hold | None = None
    joining: bool = False
    given_up: bool = False

    def next_number(self, last: int) -> int:
        """Take the first stretch behind ``last``, as decoding goes on from there, or the first."""
        position = next((i for i, number in enumerate(self.waiting) if number > last), 0)
        return self.waiting.pop(position)

    def directly_before(self, number: int) -> tuple[Stretch, ...]:
        """Return the last stretches before this one, as `StretchUnit.before` takes them."""
        if self.damaged or not self.done.keys() >= set(range(number)):
            return ()
        last = (self.done[each] for each in range(max(0, number - _KNOWN), number))
        return tuple(stretch for stretch in last if stretch is not None)


@dataclass(eq=False)
class _Task:
    """A unit with what its end means."""

    unit: Unit
    film: _Film | None = None
    number: int = 0
    """Which of the film's stretches."""
    hold: _Hold | None = None
    deaths: int = 0
    """How many workers died with it."""
    existed: frozenset[Path] = frozenset()
    """Those of its outputs that existed when it was first begun."""
    published: set[Path] = field(default_factory=set)
    stretch: Stretch | None = None

    @property
    def outputs(self) -> list[Path]:
        """The files that it writes under their final names."""
        if isinstance(self.unit, ImageUnit):
            return [entry.output for entry in self.unit.shard.entries]
        if isinstance(self.unit, (VideoUnit, JoinUnit, TarUnit)):
            return [self.unit.plan.output]
        return []


class Dispatcher:
    """The work of a plan, for any number of workers; an `Observer` of all of them.

    Every method may be called from any thread.
    """

    def __init__(self, plan: JobPlan, journal: Journal | None = None) -> None:
        self._plan, self._journal = plan, journal
        self._lock = threading.RLock()
        self._videos: deque[_Film | _Task] = deque()
        """Videos and tars that nobody has begun."""
        self._films: list[_Film] = []
        """Videos in stretches that are begun, neither whole nor given up."""
        for video in plan.videos:
            film = self._film(video)
            self._videos.append(_Task(VideoUnit(video)) if film is None else film)
        self._videos.extend(_Task(TarUnit(tar)) for tar in plan.tars)
        self._shards: deque[_Film | _Task] = deque(_Task(ImageUnit(shard)) for shard in plan.shards)
        self._later: deque[_Film | _Task] = deque()
        """What another run was working on; it is tried again when nothing else is left."""
        self._next_look = 0.0
        """When that is, by `time.monotonic`."""
        self._refused: deque[RefusedUnit] = deque()
        self._suspects: dict[int, deque[_Task]] = defaultdict(deque)
        """What a worker died with; its successor does it, each alone."""
        self._out: dict[int, list[_Task]] = defaultdict(list)
        """What each worker has, in the order in which it got it."""
        self._place: dict[int, tuple[_Film, int]] = {}
        """The video that each worker has open, and the last stretch that it got of it."""
        self.anything_done = False
        """Whether anything became whole."""
        self.killers = 0
        """Units that were given up as they killed their workers."""

    # Handing out

    def units(self, worker: int = 0) -> Iterator[Unit | None]:
        """Yield what ``worker`` is to do, in order.

        None: there is nothing now, but something may come up, a join or a second try. The iterator
        ends when the work of all workers has ended.
        """
        while True:
            with self._lock:
                task = self._next(worker)
                if task is not None:
                    self._hand_out(task, worker)
                elif self.is_finished:
                    return
            yield None if task is None else task.unit

    @property
    def is_finished(self) -> bool:
        """Whether every unit has ended."""
        with self._lock:
            begun = any(self._out.values()) or any(self._suspects.values())
            waiting = self._videos or self._films or self._shards or self._later or self._refused
            return not begun and not waiting

    def _next(self, worker: int) -> _Task | None:
        """Return the best unit for a worker, None where it has to wait."""
        out = self._out[worker]
        if any(task.deaths for task in out):
            return None  # it is alone with this one
        if self._suspects[worker]:
            return None if out else self._suspects[worker].popleft()
        for film in self._films:
            if not (film.waiting or film.running or film.joining or film.given_up):
                film.joining = True
                film.running += 1
                whole = [film.done[number] for number in sorted(film.done)]
                stretches = tuple(stretch for stretch in whole if stretch is not None)
                return _Task(JoinUnit(film.plan, stretches), film)
        place = self._place.get(worker)
        if place is not None and place[0].waiting:
            return self._stretch(place[0], worker)
        return (
            self._begun(self._videos, worker)
            or self._from_longest_film(worker)
            or self._begun(self._shards, worker)
            or self._begun_again(worker)
            or (_Task(self._refused.popleft()) if self._refused else None)
            or (None if out else self._suspect_of_another())
        )

    def _begun(self, queue: deque[_Film | _Task], worker: int) -> _Task | None:
        """Begin the first item of ``queue`` that no other run has.

        What another run has is tried again when nothing else is left. Then a video fails: it may be
        in work for hours. A shard is waited for: should the other run die, the rest is done here.
        """
        again = queue is self._later
        for _ in range(len(queue)):
            item = queue.popleft()
            name = item.plan.name if isinstance(item, _Film) else item.unit.name
            try:
                self._lock_output(item)
            except OutputInUseError as error:
                if again and isinstance(item, _Film):
                    self._refused.append(RefusedUnit(name, error))
                else:
                    self._later.append(item)
            except OutputError as error:
                self._refused.append(RefusedUnit(name, error))
            else:
                if isinstance(item, _Task):
                    if again:
                        # The other run may have died, after this one has looked for leftovers.
                        for folder in {output.parent for output in item.outputs}:
                            remove_leftovers(folder)
                    return item
                self._films.append(item)
                return self._stretch(item, worker) if item.waiting else self._next(worker)
        return None

    def _begun_again(self, worker: int) -> _Task | None:
        """Try, once a second, what another run had."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + 1
        return self._begun(self._later, worker)

    def _lock_output(self, item: _Film | _Task) -> None:
        """Take the lock of a video in stretches or of a shard. Raises OutputError.

        A shard has one where its job has a folder. The sink of a tar, or of a video in one piece,
        locks its output.
        """
        folder = self._plan.folder
        if isinstance(item, _Film):
            item.hold = _Hold(_locked(item.plan))
        elif folder is not None and isinstance(item.unit, ImageUnit):
            item.hold = _Hold(OutputLock(folder / item.unit.shard.key, name=item.unit.name))

    def _from_longest_film(self, worker: int) -> _Task | None:
        film = max(self._films, key=lambda film: len(film.waiting), default=None)
        return self._stretch(film, worker) if film is not None and film.waiting else None

    def _suspect_of_another(self) -> _Task | None:
        """Take what another worker died with: its successor may wait long for a place to start."""
        return next((tasks.popleft() for tasks in self._suspects.values() if tasks), None)

    def _stretch(self, film: _Film, worker: int) -> _Task:
        place = self._place.get(worker)
        number = film.next_number(place[1] if place is not None and place[0] is film else -1)
        self._place[worker] = film, number
        film.running += 1
        before = film.directly_before(number)
        return _Task(StretchUnit(film.plan, number, film.folder, before), film, number)

    def _hand_out(self, task: _Task, worker: int) -> None:
        if not task.deaths:
            task.existed = frozenset(
                path for path in task.outputs if output_exists(task.unit, path)
            )
        self._out[worker].append(task)
        if self._journal is not None and not isinstance(task.unit, RefusedUnit):
            self._journal.began(task.unit)

    def _film(self, plan: VideoPlan) -> _Film | None:
        """Return a video in stretches; None for one that is done in one piece."""
        root, folder = self._plan.root, self._plan.folder
        if root is None or folder is None or plan.stretches < 2:
            return None
        digest = digest_of(name_of(plan.output, root))
        known = self._plan.done.get(plan.output, ())
        done = {each.number: each.stretch for each in known}
        waiting = [number for number in range(plan.stretches) if number not in done]
        damaged = any(each.dropped for each in known)
        return _Film(plan, folder / digest, waiting, done, damaged)

    # What the workers report

    def dropped(self, unit: Unit, dropped: Dropped) -> None:
        """Do nothing: `ended` has everything."""

    def published(self, unit: Unit, items: Sequence[Whole]) -> None:
        """Remember what is whole, and tell the journal. Raises OutputError."""
        with self._lock:
            _, task = self._found(unit)
            self.anything_done = True
            for item in items:
                if isinstance(item, Written):
                    task.published.add(item.path)
                else:
                    task.stretch = item
        if self._journal is not None:
            self._journal.published(unit, items)

    def ended(self, outcome: Outcome) -> None:
        """Take the end of a unit: what needed it may begin. Raises OutputError by the journal."""
        # First the journal: what it removes of a whole video is still under the video's lock.
        if self._journal is not None and not isinstance(outcome.unit, RefusedUnit):
            self._journal.ended(outcome)
        with self._lock:
            worker, task = self._found(outcome.unit)
            self._out[worker].remove(task)
            self.anything_done = self.anything_done or outcome.error is None
            if task.hold is not None:
                task.hold.let_go()
            film = task.film
            if film is None:
                return
            film.running -= 1
            film.damaged = film.damaged or bool(outcome.dropped)
            if outcome.error is not None:
                film.given_up = True
                film.waiting.clear()
            elif not film.joining:
                film.done[task.number] = task.stretch
            if not film.running and (film.given_up or film.joining):
                self._films.remove(film)
                assert film.hold is not None
                film.hold.let_go()

    def _found(self, unit: Unit) -> tuple[int, _Task]:
        for worker, tasks in self._out.items():
            for task in tasks:
                if task.unit is unit:
                    return worker, task
        raise LookupError(f"{unit.name} is not handed out")

    def close(self) -> None:
        """Release every lock. What was not finished is left to the next run."""
        with self._lock:
            for film in self._films:
                if film.hold is not None:
                    film.hold.release()
            for tasks in (*self._out.values(), *self._suspects.values()):
                for task in tasks:
                    if task.hold is not None:
                        task.hold.release()

    # Second tries

    def folders(self, worker: int) -> set[Path]:
        """Return the folders in which ``worker`` may be writing."""
        with self._lock:
            tasks = self._out[worker]
            folders = {path.parent for task in tasks for path in task.outputs}
            for task in tasks:
                if task.film is not None:
                    folders.add(task.film.folder)
                    # A stretch of numbered images writes them beside each other at once.
                    if task.film.plan.is_numbered:
                        folders.add(task.film.plan.output.parent)
            return folders

    def died(self, worker: int, how: str) -> list[Outcome]:
        """Take back what ``worker`` had when it died, ``how`` in words (``killed by SIGSEGV``).

        Each unit is tried once more, alone, without the images that are whole: by its successor,
        or by a worker that has nothing else to do. A shard that kills again is halved, and its
        halves are halved, until the image is found. Returns how the units ended that are not tried
        again; the caller tells `ended`.
        """
        outcomes = []
        with self._lock:
            self._place.pop(worker, None)
            for task in list(self._out[worker]):
                if isinstance(task.unit, RefusedUnit):
                    self._out[worker].remove(task)
                    self._refused.append(task.unit)
                    continue
                task.deaths += 1
                rest = _rest(task)
                if rest is None:
                    outcomes.append(Outcome(task.unit, None))
                    continue
                parts = [rest] if task.deaths == 1 else _halves(rest)
                if not parts:
                    task.unit = rest.unit
                    self.killers += 1
                    outcomes.append(Outcome(rest.unit, _killed(rest.unit.name, how)))
                    continue
                self._out[worker].remove(task)
                if task.hold is not None:
                    task.hold.needed_by += len(parts) - 1
                self._suspects[worker].extend(parts)
        return outcomes


def _rest(task: _Task) -> _Task | None:
    """Return what is left to do of a unit whose worker died; None where that is nothing.

    The worker may have published outputs without a report. What did not exist when it began may
    therefore be replaced.
    """
    unit = task.unit
    if isinstance(unit, (VideoUnit, JoinUnit)):
        if unit.plan.output in task.existed:
            return task
        options = unit.plan.options.replacing
        return replace(task, unit=replace(unit, plan=replace(unit.plan, options=options)))
    if isinstance(unit, TarUnit):
        if unit.plan.output in task.existed:
            return task
        return replace(task, unit=TarUnit(replace(unit.plan, overwrite=True)))
    if not isinstance(unit, ImageUnit):
        return task
    shard = unit.shard
    left = tuple(entry for entry in shard.entries if entry.output not in task.published)
    new = {entry.output for entry in left} - task.existed
    return _part(task, replace(shard, replaced=shard.replaced | new), left) if left else None


def _halves(task: _Task) -> list[_Task]:
    """Return the two halves of a shard; nothing where it is one image, or no shard."""
    unit = task.unit
    if not isinstance(unit, ImageUnit) or len(unit.shard.entries) == 1:
        return []
    entries = unit.shard.entries
    middle = len(entries) // 2
    return [_part(task, unit.shard, entries[:middle]), _part(task, unit.shard, entries[middle:])]


def _part(task: _Task, shard: ImageShard, entries: tuple[Entry, ...]) -> _Task:
    """Return a task with some images of a shard that has killed a worker."""
    name = printable(entries[0].source) if len(entries) == 1 else shard.name
    unit = ImageUnit(replace(shard, entries=entries, name=name))
    return replace(task, unit=unit, deaths=1, published=set())


def _killed(name: str, how: str) -> InputError:
    advice = "convert it with another program, or leave it out"
    if "SIGKILL" in how or "memory" in how:
        advice = "the system may have been out of memory: use fewer workers or a smaller --size"
    return InputError(f"{name}: the worker process that translated it was {how}; twice; {advice}")


def _locked(plan: VideoPlan) -> OutputHold:
    """Lock the output of a video, as its sink does for one in one piece. Raises OutputError."""
    from ..media.video.sink import OutputHold

    hold = OutputHold(plan)
    hold.begin()
    return hold
