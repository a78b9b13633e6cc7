"""Find damage in the last frames of a video, of which several decoding threads do not tell.

FFmpeg's frame threads copy the properties of a frame that is due when its turn comes, even where
another thread still decodes it. Whether a concealed frame among the last ones is marked as corrupt
is then a matter of chance. One thread always marks it.
"""

from __future__ import annotations

from collections import deque

import av
import av.error
from av.codec.codec import Capabilities
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ..demux.demuxing import Packet

_LEAST_PACKETS = 16
"""FFmpeg has at most 16 threads, so earlier packets have been decoded when the last one comes."""
_MARKED_BEFORE = ("hevc", "vvc")
"""Codecs whose decoder marks a frame before it decodes it (missing references), or raises an error.

What is wrong inside a frame it does not mark at all, with however many threads."""
_MOST_PACKETS = 1024
_MOST_BYTES = 2**26
"""Where a group of pictures has more, its first packets are decoded before the end is known: one
that begins in the middle of a group lacks its references, and tells nothing."""


class Ending:
    """The last packets that a decoder received, from a key frame on: one group of pictures or two.

    They are decoded again, by one thread, once it is known that they are the last.
    """

    def __init__(self, stream: VideoStream) -> None:
        """``stream``: the one that is decoded, with its flags."""
        self._stream = stream
        codec = stream.codec_context.codec
        # Without reordering a frame is returned by the thread that decoded it.
        self._is_needed = (
            codec.reorder
            and bool(codec.capabilities & Capabilities.frame_threads)
            and codec.canonical_name not in _MARKED_BEFORE
        )
        self._groups: deque[deque[Packet]] = deque([deque()])
        """Each but the first of the video begins with a key frame."""
        self._packets = self._bytes = 0
        """Of all groups."""
        self._check: _Check | None = None
        """What has decoded the first packets of the first group."""

    def take(self, packet: Packet) -> None:
        """Take the next packet of the video, which the decoder receives as well."""
        if not self._is_needed or not packet.size:
            return
        if packet.is_keyframe:
            self._groups.append(deque())
        self._groups[-1].append(packet)
        self._packets += 1
        self._bytes += packet.size
        while self._packets - len(self._groups[0]) >= _LEAST_PACKETS:
            for old in self._groups.popleft():
                self._forget(old)
            self._check = None
        while self._packets > _MOST_PACKETS or self._bytes > _MOST_BYTES:
            self._decode_first()

    def is_damaged(self) -> bool:
        """Return whether the frames since the last key frame but a few are damaged; once."""
        while self._packets:
            self._decode_first()
        return self._check is not None and self._check.ends_damaged()

    def _decode_first(self) -> None:
        group = next(each for each in self._groups if each)
        packet = group.popleft()
        self._forget(packet)
        if self._check is None:
            self._check = _Check(self._stream)
        self._check.take(packet, is_among_last=self._packets < _LEAST_PACKETS)

    def _forget(self, packet: Packet) -> None:
        self._packets -= 1
        self._bytes -= packet.size


class _Check:
    """One thread that decodes from a key frame on, and finds what is damaged."""

    def __init__(self, stream: VideoStream) -> None:
        """``stream``: its parameters and flags are those of the new decoder."""
        given = stream.codec_context
        context = av.CodecContext.create(given.codec.name, "r")
        assert isinstance(context, VideoCodecContext)
        context.extradata, context.codec_tag = given.extradata, given.codec_tag
        context.width, context.height = given.width, given.height
        context.flags, context.thread_count = given.flags, 1
        self._context = context
        self._key_pts: int | None = None
        """Of the first key frame."""
        self._has_begun = False
        """An intact frame came out; those before it may lack only what precedes the key frame."""
        self._is_damaged = False

    def take(self, packet: Packet | None, *, is_among_last: bool) -> None:
        """Decode the next packet; None: the last one has come.

        Of those before the last ones only the frames to which others refer are decoded.
        """
        self._context.skip_frame = "DEFAULT" if is_among_last else "NONREF"
        if packet is not None and packet.is_keyframe and self._key_pts is None:
            self._key_pts = packet.pts
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError:
            self._is_damaged = self._is_damaged or self._has_begun
            return
        for frame in frames:
            if not frame.is_corrupt:
                self._has_begun = True
            elif self._has_begun and not self._is_leading(frame):
                self._is_damaged = True

    def _is_leading(self, frame: av.VideoFrame) -> bool:
        """Return whether a frame is shown before the key frame that is decoded before it."""
        if frame.pts is None or self._key_pts is None:
            return False
        return frame.pts < self._key_pts

    def ends_damaged(self) -> bool:
        """Return whether any frame is damaged; the last call."""
        self.take(None, is_among_last=True)
        return self._is_damaged
