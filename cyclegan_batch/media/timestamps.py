"""One clock for everything in a file whose own begins anew, jumps, or was never one.

The clock of MPEG-TS, MPEG-PS and FLV is that of a broadcast: it begins anywhere, begins anew where
recordings were joined, and jumps where a part was cut out. `Timeline` moves the packets of such a
file onto one clock that ascends. Whoever reads the file (the probe, the decoder, the copying of
sound) gets the same times, since they depend on nothing but the packets and their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from av.stream import Disposition

from .demuxing import Packet

LONGEST_GAP = 10
"""Seconds. In a container of `BROADCAST_FORMATS` a longer gap is no content; the same as FFmpeg's
``dts_delta_threshold``."""
BROADCAST_FORMATS = ("mpegts", "mpeg", "flv")
"""Containers, by FFmpeg's names, in which a gap of more than `LONGEST_GAP` s is no content."""

_BACKWARDS = Fraction(1, 10)
"""Seconds by which a decoding time may lie before the last and mean nothing, as in ffmpeg."""
_ENOUGH = 1
"""Seconds of a new clock after which its beginning is known, once every stream has arrived."""
_BEHIND = Fraction(1, 2)
"""Seconds by which a stream that is new may be behind all others without any doubt."""
_LAST_ONES = 2
"""Packets on the old clock that may come when another stream has begun on the new one: MPEG-TS ends
a packet where the next one begins."""
_AT_MOST = 3
"""Seconds of it that are waited for the other streams: multiplexers interleave within one."""
_MOST_BYTES = 2**26
_MOST_PACKETS = 10_000
_WRAP = {"mpegts": Fraction(2**33, 90_000), "mpeg": Fraction(2**33, 90_000)}
"""Seconds after which a clock of 33 bits is back at 0; FFmpeg adds them to what lies before."""


@dataclass(frozen=True)
class Discontinuity:
    """A place where the clock of a file does not go on."""

    kind: Literal["restart", "jump"]
    """The clock went back, or ahead."""
    at: Fraction
    """When what follows begins, in seconds on the one clock."""


def discontinuity_notes(seams: Sequence[Discontinuity], first: Fraction) -> list[str]:
    """Return what the user is told of ``seams``, one sentence for each kind.

    ``first`` is the time of the first frame in seconds, from which people count.
    """
    notes = []
    for kind, what, done in (
        ("restart", "begins anew", "what follows is joined to what was"),
        ("jump", "jumps ahead", "the gap is closed"),
    ):
        found = [each for each in seams if each.kind == kind]
        if found:
            times = f" {len(found)} times, first" if len(found) > 1 else ""
            at = float(max(Fraction(0), found[0].at - first))
            notes.append(f"the clock {what}{times} at {at:.3f} s; {done}")
    return notes


def start_note(start: Fraction) -> str | None:
    """Return what the user is told where ``start``, in seconds, is no common beginning."""
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
    """Where one stream of sound or pictures stands, in ticks of the file's own clock."""

    base: Fraction
    first: int
    """The first decoding time on this clock."""
    last: int
    """The last one."""
    shown: int
    """When the first of its pictures or sounds is shown."""
    end: int
    """When the last of them ends."""
    whole: bool = False
    """It begins with a picture or a sound that needs no earlier one."""
    step: int = 0
    """Ticks from one packet to the next."""
    offset: int = 0
    """Ticks that are added to its times."""
    group: int = 0
    """Streams of one group have one clock."""

    @classmethod
    def of(cls, packet: Packet) -> _Track:
        """Return the track that begins with ``packet``, which has a decoding time."""
        dts = _decoded(packet)
        track = cls(packet.time_base, dts, dts, _shown(packet), dts, packet.is_keyframe)
        track.take(packet)
        return track

    def take(self, packet: Packet) -> None:
        """Go on with ``packet``, which has a decoding time."""
        dts, shown = _decoded(packet), _shown(packet)
        self.step = packet.duration or max(0, dts - self.last)
        self.last = dts
        self.shown = min(self.shown, shown)
        self.end = max(self.end, shown + self.step)

    def until(self, new: _Track) -> int:
        """Return the ticks from the beginning of ``new`` to where this one ends."""
        if new.whole:
            return self.end - new.shown
        # The clock jumped within a group of pictures, whose order only decoding times tell.
        return self.last + self.step - new.first

    @property
    def moved(self) -> Fraction:
        """The last decoding time on the one clock, in seconds."""
        return (self.last + self.offset) * self.base

    @property
    def taken(self) -> Fraction:
        """How many seconds of decoding time it has gone through."""
        return (self.last - self.first) * self.base


@dataclass
class _Window:
    """Packets that wait until it is known what a jump of the clock means."""

    held: list[tuple[Packet, bool]] = field(default_factory=list)
    """Each with whether it is on the new clock."""
    arrived: dict[int, _Track] = field(default_factory=dict)
    """Where the streams stand that are on the new clock, by index."""
    stood: dict[int, int] = field(default_factory=dict)
    """Where the others stood when it opened, in ticks."""
    went_on: int = 0
    """Packets of the streams that have not arrived there."""
    size: int = 0


class Timeline:
    """Move the packets of one file onto one clock, for one reading of it from its beginning."""

    def __init__(self, format_name: str) -> None:
        """``format_name`` is FFmpeg's name of the container."""
        self._broadcast = format_name in BROADCAST_FORMATS
        self._wrap = _WRAP.get(format_name)
        self._tracks: dict[int, _Track] = {}
        self._groups = 1
        self._window: _Window | None = None
        self._watched: dict[int, bool] = {}
        self.discontinuities: list[Discontinuity] = []
        """All that were found so far, as they came."""
        self.paused: dict[int, Fraction] = {}
        """Seconds at the seams in which a stream shows nothing, by its index."""

    def forget(self) -> None:
        """Expect nothing of the packets that come next: somebody sought in the file."""
        self._tracks.clear()

    def steady(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        """Yield ``packets`` (of all streams) in their order, moved onto the one clock in place.

        Around a jump some seconds of them are held back.
        """
        try:
            for packet in packets:
                yield from self._take(packet)
        except Exception:
            # What was read before is good.
            yield from self._resolved()
            raise
        yield from self._resolved()

    def _take(self, packet: Packet) -> Iterator[Packet]:
        if not packet.size:
            # The flushing ones, at the end.
            yield from self._resolved()
            yield packet
            return
        if self._broadcast and packet.dts is not None and packet.pts is not None:
            apart = abs(packet.pts - packet.dts) * packet.time_base
            # No frame waits that long for its turn: a damaged time is no time.
            packet.pts = packet.pts if apart <= LONGEST_GAP else None
        index, window = packet.stream_index, self._window
        track = self._tracks.get(index)
        if packet.dts is None or not self._is_watched(packet):
            if window is not None:
                self._hold(packet, new=self._is_new(packet))
            else:
                yield self._moved(packet, self._tracks)
        elif window is None and track is None:
            if self._is_behind(packet):
                self._open_window(packet)
            else:
                self._begin(packet)
                yield self._moved(packet, self._tracks)
        elif window is None:
            assert track is not None
            way = self._way(track, packet)
            if way and not self._joins(track, packet, way):
                self._open_window(packet)
            else:
                track.take(packet)
                yield self._moved(packet, self._tracks)
        elif track is None and index not in window.arrived:
            if self._is_new(packet):
                self._arrive(packet)
            else:
                self._begin(packet)
                self._hold(packet, new=False)
        else:
            arrived = window.arrived.get(index)
            way = self._way(arrived or self._tracks[index], packet)
            near = _nearest(window.arrived.values(), packet)
            if way and (arrived or near is None):
                # The next jump already.
                yield from self._resolved()
                yield from self._take(packet)
                return
            if way:
                self._arrive(packet)
            else:
                (arrived or self._tracks[index]).take(packet)
                self._hold(packet, new=arrived is not None)
                window.went_on += arrived is None
        if self._window is not None and self._is_known(self._window):
            yield from self._resolved()

    def _is_watched(self, packet: Packet) -> bool:
        """Say whether a packet is of sound or pictures: subtitles and data follow those."""
        index = packet.stream_index
        if index not in self._watched:
            cover = packet.stream.disposition & Disposition.attached_pic
            self._watched[index] = packet.stream.type in ("video", "audio") and not cover
        return self._watched[index]

    def _way(self, track: _Track, packet: Packet) -> int:
        """Return -1 where the clock went back, 1 where it went far ahead, 0 where it goes on.

        It goes on over a gap that is content.
        """
        ticks = _decoded(packet) - track.last
        if ticks < -_BACKWARDS / track.base:
            # Elsewhere decoding times are FFmpeg's guess; a stream begins anew with a key frame.
            return -1 if self._broadcast or packet.is_keyframe else 0
        return int(self._broadcast and ticks - track.step > LONGEST_GAP / track.base)

    def _joins(self, track: _Track, packet: Packet, way: int) -> bool:
        """Say whether ``packet`` is where others are already, and take it as that if so."""
        near = _nearest((other for other in self._live() if other is not track), packet)
        if near is None or (way < 0 and near.group == track.group):
            return False
        if near.group == track.group:
            # What is missing is missing from this stream alone.
            return True
        offset = _ticks(near.offset * near.base, track.base)
        if (_decoded(packet) + offset) * track.base < track.moved - _BACKWARDS:
            return False
        track.offset, track.group = offset, near.group
        track.last = track.end = _decoded(packet)
        return True

    def _live(self) -> list[_Track]:
        """Return the streams that did not end long ago."""
        latest = max((track.moved for track in self._tracks.values()), default=Fraction(0))
        return [track for track in self._tracks.values() if latest - track.moved <= LONGEST_GAP]

    def _moved(self, packet: Packet, tracks: Mapping[int, _Track]) -> Packet:
        """Move a packet as the track of its stream says, else as the nearest of ``tracks``."""
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
        """Take up a stream, on the clock of those that are near."""
        track = _Track.of(packet)
        self._place(track, self._live())
        self._tracks[packet.stream_index] = track

    def _place(self, track: _Track, live: Sequence[_Track]) -> None:
        """Give a stream that is new the clock of one of ``live``, or one that goes on with them."""
        near = _nearest(live, track)
        if near is not None:
            track.group = near.group
            track.offset = _ticks(near.offset * near.base, track.base)
        elif live and self._broadcast:
            track.group, self._groups = self._groups, self._groups + 1
            now = max(other.moved for other in live)
            track.offset = _ticks(now, track.base) - track.first

    def _is_behind(self, packet: Packet) -> bool:
        """Say whether a stream begins so far behind all others that they may follow it back."""
        time = _decoded(packet) * packet.time_base
        live = [track.last * track.base for track in self._live()]
        return bool(live) and time < min(live) - _BEHIND

    # A jump

    def _open_window(self, packet: Packet) -> None:
        """Hold back what comes from ``packet`` on, which is the first on another clock."""
        self._window = _Window()
        self._window.stood = {index: track.last for index, track in self._tracks.items()}
        self._arrive(packet)

    def _hold(self, packet: Packet, *, new: bool) -> None:
        assert self._window is not None
        self._window.held.append((packet, new))
        self._window.size += packet.size

    def _arrive(self, packet: Packet) -> None:
        assert self._window is not None
        self._window.arrived[packet.stream_index] = _Track.of(packet)
        self._hold(packet, new=True)

    def _is_new(self, packet: Packet) -> bool:
        """Say whether a packet that tells nothing of the clock is on the new one."""
        assert self._window is not None
        arrived = self._window.arrived
        if packet.stream_index in self._tracks:
            return packet.stream_index in arrived
        nearest = _nearest([*self._tracks.values(), *arrived.values()], packet, within=None)
        return any(nearest is track for track in arrived.values())

    def _is_known(self, window: _Window) -> bool:
        """Say whether the new clock has gone on for long enough to place it."""
        if window.went_on > _LAST_ONES and not self._tracks.keys() & window.arrived.keys():
            # A stream that is new, and nothing follows it back.
            return True
        missing = any(
            index not in window.arrived and track in self._live()
            for index, track in self._tracks.items()
        )
        taken = max(track.taken for track in window.arrived.values())
        too_much = window.size > _MOST_BYTES or len(window.held) > _MOST_PACKETS
        return too_much or taken >= (_AT_MOST if missing else _ENOUGH)

    def _resolved(self) -> Iterator[Packet]:
        """Place the new clock on the one clock, and yield what was held back."""
        window, self._window = self._window, None
        if window is None:
            return
        old = dict(self._tracks)
        arrived = window.arrived
        pairs = [(old[index], track) for index, track in arrived.items() if index in old]
        by = max(((new.first - was.last) * was.base for was, new in pairs), key=abs, default=None)
        others_go_on = any(
            (old[index].last - stood) * old[index].base > _ENOUGH
            for index, stood in window.stood.items()
            if index not in arrived
        )
        if by is None:
            # Only a stream that is new, somewhat behind the others.
            for track in arrived.values():
                self._place(track, self._live())
        elif others_go_on and abs(by) <= LONGEST_GAP:
            # The times of one stream tremble, its clock is still that of the others.
            for was, new in pairs:
                new.offset, new.group = was.offset, was.group
        else:
            # What ends last of what was, decides: so nothing comes to lie over anything.
            place = max((was.until(new) + was.offset) * was.base for was, new in pairs)
            for index, new in arrived.items():
                new.offset, new.group = _ticks(place, new.base), self._groups
                if (before := old.get(index)) is not None:
                    pause = (new.offset - before.offset - before.until(new)) * new.base
                    self.paused[index] = self.paused.get(index, Fraction(0)) + pause
            self._groups += 1
            went_back = by < 0 or (self._wrap is not None and by > self._wrap / 2)
            begins = min(new.shown * new.base for new in arrived.values())
            self.discontinuities.append(
                Discontinuity("restart" if went_back else "jump", place + begins)
            )
        self._tracks |= arrived
        for packet, is_new in window.held:
            yield self._moved(packet, self._tracks if is_new else old)


def _decoded(packet: Packet) -> int:
    assert packet.dts is not None
    return packet.dts


def _shown(packet: Packet) -> int:
    return _decoded(packet) if packet.pts is None else packet.pts


def _ticks(seconds: Fraction, base: Fraction) -> int:
    return round(seconds / base)


def _nearest(
    tracks: Iterable[_Track], to: Packet | _Track, *, within: int | None = LONGEST_GAP
) -> _Track | None:
    """Return the track whose clock shows nearly the time of ``to`` (``within``: seconds)."""
    if isinstance(to, _Track):
        time = to.first * to.base
    elif (ticks := to.pts if to.dts is None else to.dts) is not None:
        time = ticks * to.time_base
    else:
        return None
    found = [
        (abs(track.last * track.base - time), number, track) for number, track in enumerate(tracks)
    ]
    if not found:
        return None
    distance, _, nearest = min(found)
    return nearest if within is None or distance <= within else None
