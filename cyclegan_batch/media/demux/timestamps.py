"""One timeline for all packets of a file whose timestamps begin anew, jump, or start anywhere.

MPEG-TS, MPEG-PS and FLV carry the clock of a broadcast. It starts at any value, begins anew where
recordings were joined, and jumps where a part was cut out: FFmpeg calls these places timestamp
discontinuities. `Timeline` shifts the packets behind each of them, so that timestamps ascend from
the beginning of the file to its end. The shifts depend on nothing but the packets and their order:
all readers of a file (the probe, the decoder, the copying of sound) get the same times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from av.stream import Disposition

from .demuxing import Packet

LONGEST_GAP = 10
"""Seconds. In a container of `BROADCAST_FORMATS` a longer gap is a discontinuity; FFmpeg's
``dts_delta_threshold`` is the same."""
BROADCAST_FORMATS = ("mpegts", "mpeg", "flv")
"""Containers with the clock of a broadcast, by FFmpeg's names."""

_BACKWARDS = Fraction(1, 10)
"""Seconds by which a decoding timestamp (DTS) may go back without a discontinuity: ffmpeg's own."""
_SETTLED = 1
"""Seconds on a new clock after which its start is known, if every stream has arrived on it."""
_BEHIND = Fraction(1, 2)
"""Seconds that a new stream may begin behind all others without a discontinuity."""
_LAST_ON_OLD_CLOCK = 2
"""Packets on the old clock that may follow the first on the new one: MPEG-TS completes a packet
only where the next one of its stream begins."""
_LONGEST_WAIT = 3
"""Seconds on a new clock in which the other streams may arrive: muxers interleave within 1 s."""
_MOST_BYTES = 2**26
_MOST_PACKETS = 10_000
_WRAP = {"mpegts": Fraction(2**33, 90_000), "mpeg": Fraction(2**33, 90_000)}
"""Seconds after which a clock of 33 bits is back at 0. FFmpeg adds them to timestamps before the
first of the file, so that a restart can look like a jump ahead."""


@dataclass(frozen=True)
class Discontinuity:
    """A place where the timestamps of a file do not go on."""

    kind: Literal["restart", "jump"]
    """The clock went back, or ahead."""
    at: Fraction
    """When what follows begins, in seconds on the timeline."""


def discontinuity_notes(discontinuities: Sequence[Discontinuity], first: Fraction) -> list[str]:
    """Return the texts of the notes on ``discontinuities``, one for each kind.

    They count from ``first``, the time of the first frame in seconds.
    """
    notes = []
    for kind, event, repair in (
        ("restart", "begins anew", "the parts are joined without a gap"),
        ("jump", "jumps ahead", "the gap is closed"),
    ):
        places = [each.at for each in discontinuities if each.kind == kind]
        if places:
            times = f" {len(places)} times, first" if len(places) > 1 else ""
            at = float(max(Fraction(0), places[0] - first))
            notes.append(f"the clock {event}{times} at {at:.3f} s; {repair}")
    return notes


def start_note(start: Fraction) -> str | None:
    """Return the text of a note on a file that begins at ``start`` seconds; None near 0."""
    if start < 0:
        return f"the clock begins {float(-start):.3f} s below zero, and the output at 0"
    if start > LONGEST_GAP:
        minutes, seconds = divmod(float(start), 60)
        hours, minutes = divmod(int(minutes), 60)
        at = f"{hours}:{minutes:02}:{seconds:06.3f}"
        return f"the clock begins at {at}, and the output at 0"
    return None


@dataclass(eq=False)
class _Track:
    """How far one stream of sound or video has come, in ticks of the file's own clock."""

    base: Fraction
    """Its time base."""
    first_dts: int
    last_dts: int
    start: int
    """The lowest PTS so far."""
    end: int
    """Where the last frame in presentation order ends."""
    begins_with_key: bool = False
    """The first packet needs no earlier one."""
    step: int = 0
    """Ticks from one packet to the next."""
    offset: int = 0
    """Ticks that are added to the timestamps."""
    group: int = 0
    """Streams of one group share a clock."""

    @classmethod
    def of(cls, packet: Packet) -> _Track:
        """Return the track that begins with ``packet``, which has a DTS."""
        dts = _dts(packet)
        track = cls(packet.time_base, dts, dts, _pts(packet), dts, packet.is_keyframe)
        track.take(packet)
        return track

    def take(self, packet: Packet) -> None:
        """Go on with ``packet``, which has a DTS."""
        dts, pts = _dts(packet), _pts(packet)
        self.step = packet.duration or max(0, dts - self.last_dts)
        self.last_dts = dts
        self.start = min(self.start, pts)
        self.end = max(self.end, pts + self.step)

    def ticks_until(self, new: _Track) -> int:
        """Return by how many ticks ``new`` has to be shifted to begin where this track ends."""
        if new.begins_with_key:
            return self.end - new.start
        # The clock jumped inside a group of pictures: only the DTS keep their order across it.
        return self.last_dts + self.step - new.first_dts

    @property
    def position(self) -> Fraction:
        """The last DTS on the timeline, in seconds."""
        return (self.last_dts + self.offset) * self.base

    @property
    def elapsed(self) -> Fraction:
        """Seconds from the first DTS to the last."""
        return (self.last_dts - self.first_dts) * self.base


@dataclass
class _Window:
    """Packets that are held back until the shift of a new clock is known."""

    packets: list[tuple[Packet, bool]] = field(default_factory=list)
    """Each with whether it is on the new clock."""
    arrived: dict[int, _Track] = field(default_factory=dict)
    """The streams that are on the new clock, by index."""
    dts_before: dict[int, int] = field(default_factory=dict)
    """The last DTS of each stream before the window, by index."""
    on_old_clock: int = 0
    """Packets in the window of streams that have not arrived."""
    size: int = 0
    """Bytes of all packets."""


class Timeline:
    """Shift the packets of one file onto one timeline, for one reading from its beginning."""

    def __init__(self, format_name: str) -> None:
        """``format_name`` is FFmpeg's name of the container."""
        self._is_broadcast = format_name in BROADCAST_FORMATS
        self._wrap = _WRAP.get(format_name)
        self._tracks: dict[int, _Track] = {}
        self._groups = 1
        self._window: _Window | None = None
        self._watched: dict[int, bool] = {}
        self.discontinuities: list[Discontinuity] = []
        """All that were closed so far, in the order of the file."""
        self.paused: dict[int, Fraction] = {}
        """Seconds at the discontinuities during which a stream shows nothing, by its index."""

    def forget(self) -> None:
        """Forget how far the streams have come, so that after a seek no packet is out of place."""
        self._tracks.clear()

    def place(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        """Yield ``packets`` (of all streams) in their order, shifted in place onto the timeline.

        At a discontinuity some seconds of them are held back.
        """
        try:
            for packet in packets:
                yield from self._take(packet)
        except Exception:
            # The packets before the error are intact.
            yield from self._close_window()
            raise
        yield from self._close_window()

    def _take(self, packet: Packet) -> Iterator[Packet]:
        if not packet.size:
            # A flushing packet, at the end of the file.
            yield from self._close_window()
            yield packet
            return
        if self._is_broadcast and packet.dts is not None and packet.pts is not None:
            distance = abs(packet.pts - packet.dts) * packet.time_base
            # Reordering never delays a frame for that long, so the PTS is damaged.
            packet.pts = packet.pts if distance <= LONGEST_GAP else None
        index, window = packet.stream_index, self._window
        track = self._tracks.get(index)
        if packet.dts is None or not self._is_watched(packet):
            if window is not None:
                self._hold(packet, new=self._is_new(packet))
            else:
                yield self._shifted(packet, self._tracks)
        elif window is None and track is None:
            if self._begins_behind(packet):
                self._open_window(packet)
            else:
                self._begin(packet)
                yield self._shifted(packet, self._tracks)
        elif window is None:
            assert track is not None
            direction = self._direction(track, packet)
            if direction and not self._follow_others(track, packet, direction):
                self._open_window(packet)
            else:
                track.take(packet)
                yield self._shifted(packet, self._tracks)
        elif track is None and index not in window.arrived:
            if self._is_new(packet):
                self._arrive(packet)
            else:
                self._begin(packet)
                self._hold(packet, new=False)
        else:
            arrived = window.arrived.get(index)
            direction = self._direction(arrived or self._tracks[index], packet)
            near = _nearest(window.arrived.values(), packet)
            if direction and (arrived or near is None):
                # Another discontinuity follows before the first one is placed on the timeline.
                yield from self._close_window()
                yield from self._take(packet)
                return
            if direction:
                self._arrive(packet)
            else:
                (arrived or self._tracks[index]).take(packet)
                self._hold(packet, new=arrived is not None)
                window.on_old_clock += arrived is None
        if self._window is not None and self._is_decided(self._window):
            yield from self._close_window()

    def _is_watched(self, packet: Packet) -> bool:
        """Return whether a packet is of sound or video; subtitles and data follow those."""
        index = packet.stream_index
        if index not in self._watched:
            cover = packet.stream.disposition & Disposition.attached_pic
            self._watched[index] = packet.stream.type in ("video", "audio") and not cover
        return self._watched[index]

    def _direction(self, track: _Track, packet: Packet) -> int:
        """Return -1 where the clock went back, 1 where it went far ahead, 0 where it goes on.

        A gap that is content does not count as going ahead.
        """
        ticks = _dts(packet) - track.last_dts
        if ticks < -_BACKWARDS / track.base:
            # Other containers store no DTS, and FFmpeg derives them: only a key frame restarts.
            return -1 if self._is_broadcast or packet.is_keyframe else 0
        return int(self._is_broadcast and ticks - track.step > LONGEST_GAP / track.base)

    def _follow_others(self, track: _Track, packet: Packet, direction: int) -> bool:
        """Return whether ``packet`` jumped to where other streams are already: no discontinuity.

        Its track is put on their clock where it had another one.
        """
        near = _nearest((other for other in self._live() if other is not track), packet)
        if near is None or (direction < 0 and near.group == track.group):
            return False
        if near.group == track.group:
            # This stream alone has a gap.
            return True
        offset = _ticks(near.offset * near.base, track.base)
        if (_dts(packet) + offset) * track.base < track.position - _BACKWARDS:
            return False
        track.offset, track.group = offset, near.group
        track.last_dts = track.end = _dts(packet)
        return True

    def _live(self) -> list[_Track]:
        """Return the streams that have not ended long ago."""
        latest = max((track.position for track in self._tracks.values()), default=Fraction(0))
        return [track for track in self._tracks.values() if latest - track.position <= LONGEST_GAP]

    def _shifted(self, packet: Packet, tracks: Mapping[int, _Track]) -> Packet:
        """Shift a packet like the track of its stream, or else like the nearest of ``tracks``."""
        track = tracks.get(packet.stream_index)
        if track is None:
            track = _nearest(tracks.values(), packet, within=None)
        if track is not None and track.offset:
            ticks = _ticks(track.offset * track.base, packet.time_base)
            if packet.pts is not None:
                packet.pts += ticks
            if packet.dts is not None:
                packet.dts += ticks
        return packet

    def _begin(self, packet: Packet) -> None:
        """Begin a track on the clock of the nearest stream."""
        track = _Track.of(packet)
        self._align(track, self._live())
        self._tracks[packet.stream_index] = track

    def _align(self, track: _Track, live: Sequence[_Track]) -> None:
        """Give a new track the clock of one of ``live``, or let it begin where they are now."""
        near = _nearest(live, track)
        if near is not None:
            track.group = near.group
            track.offset = _ticks(near.offset * near.base, track.base)
        elif live and self._is_broadcast:
            track.group, self._groups = self._groups, self._groups + 1
            now = max(other.position for other in live)
            track.offset = _ticks(now, track.base) - track.first_dts

    def _begins_behind(self, packet: Packet) -> bool:
        """Return whether a new stream begins so far behind all others that they may go back too."""
        time = _dts(packet) * packet.time_base
        live = [track.last_dts * track.base for track in self._live()]
        return bool(live) and time < min(live) - _BEHIND

    # A discontinuity

    def _open_window(self, packet: Packet) -> None:
        """Hold packets back from ``packet`` on, which is the first on a new clock."""
        self._window = _Window()
        self._window.dts_before = {index: track.last_dts for index, track in self._tracks.items()}
        self._arrive(packet)

    def _hold(self, packet: Packet, *, new: bool) -> None:
        assert self._window is not None
        self._window.packets.append((packet, new))
        self._window.size += packet.size

    def _arrive(self, packet: Packet) -> None:
        """Begin the track of a stream on the new clock."""
        assert self._window is not None
        self._window.arrived[packet.stream_index] = _Track.of(packet)
        self._hold(packet, new=True)

    def _is_new(self, packet: Packet) -> bool:
        """Return whether a packet on which no decision depends belongs to the new clock.

        It has no DTS, or its stream is new or not watched.
        """
        assert self._window is not None
        arrived = self._window.arrived
        if packet.stream_index in self._tracks:
            return packet.stream_index in arrived
        nearest = _nearest([*self._tracks.values(), *arrived.values()], packet, within=None)
        return any(nearest is track for track in arrived.values())

    def _is_decided(self, window: _Window) -> bool:
        """Return whether the new clock has run for long enough to place it on the timeline."""
        if (
            window.on_old_clock > _LAST_ON_OLD_CLOCK
            and not self._tracks.keys() & window.arrived.keys()
        ):
            # Only new streams have arrived on it, and the others go on with the old clock.
            return True
        is_missing = any(
            index not in window.arrived and track in self._live()
            for index, track in self._tracks.items()
        )
        elapsed = max(track.elapsed for track in window.arrived.values())
        is_full = window.size > _MOST_BYTES or len(window.packets) > _MOST_PACKETS
        return is_full or elapsed >= (_LONGEST_WAIT if is_missing else _SETTLED)

    def _close_window(self) -> Iterator[Packet]:
        """Place the new clock on the timeline, and yield the packets that were held back."""
        window, self._window = self._window, None
        if window is None:
            return
        old = dict(self._tracks)
        arrived = window.arrived
        pairs = [(old[index], track) for index, track in arrived.items() if index in old]
        steps = ((new.first_dts - before.last_dts) * before.base for before, new in pairs)
        largest_step = max(steps, key=abs, default=None)
        others_go_on = any(
            (old[index].last_dts - dts) * old[index].base > _SETTLED
            for index, dts in window.dts_before.items()
            if index not in arrived
        )
        if largest_step is None:
            # There is no discontinuity: all of these streams are new and begin behind the others.
            for track in arrived.values():
                self._align(track, self._live())
        elif others_go_on and abs(largest_step) <= LONGEST_GAP:
            # The timestamps of these streams jitter, but their clock is still that of the others.
            for before, new in pairs:
                new.offset, new.group = before.offset, before.group
        else:
            self._append(old, arrived, largest_step)
        self._tracks |= arrived
        for packet, is_new in window.packets:
            yield self._shifted(packet, self._tracks if is_new else old)

    def _append(
        self, old: Mapping[int, _Track], arrived: Mapping[int, _Track], largest_step: Fraction
    ) -> None:
        """Let the ``arrived`` tracks begin where the last ``old`` one ends, without overlap."""
        offset = max(
            (old[index].ticks_until(new) + old[index].offset) * old[index].base
            for index, new in arrived.items()
            if index in old
        )
        for index, new in arrived.items():
            new.offset, new.group = _ticks(offset, new.base), self._groups
            if (before := old.get(index)) is not None:
                pause = (new.offset - before.offset - before.ticks_until(new)) * new.base
                self.paused[index] = self.paused.get(index, Fraction(0)) + pause
        self._groups += 1
        went_back = largest_step < 0 or (self._wrap is not None and largest_step > self._wrap / 2)
        start = min(new.start * new.base for new in arrived.values())
        kind: Literal["restart", "jump"] = "restart" if went_back else "jump"
        self.discontinuities.append(Discontinuity(kind, offset + start))


def _dts(packet: Packet) -> int:
    assert packet.dts is not None
    return packet.dts


def _pts(packet: Packet) -> int:
    return _dts(packet) if packet.pts is None else packet.pts


def _ticks(seconds: Fraction, base: Fraction) -> int:
    return round(seconds / base)


def _nearest(
    tracks: Iterable[_Track], to: Packet | _Track, *, within: int | None = LONGEST_GAP
) -> _Track | None:
    """Return the track whose clock is nearest to the time of ``to``, at most ``within`` seconds."""
    if isinstance(to, _Track):
        time = to.first_dts * to.base
    elif (ticks := to.pts if to.dts is None else to.dts) is not None:
        time = ticks * to.time_base
    else:
        return None
    distances = [
        (abs(track.last_dts * track.base - time), number, track)
        for number, track in enumerate(tracks)
    ]
    if not distances:
        return None
    distance, _, nearest = min(distances)
    return nearest if within is None or distance <= within else None
