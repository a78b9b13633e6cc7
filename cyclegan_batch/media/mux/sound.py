"""Audio that is encoded anew: its channel layout, and which layout and rate an encoder takes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.codec.context import CodecContext

from ..demux.demuxing import demux, open_container

_DEFAULT_LAYOUTS = {
    1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1",
    16: "hexadecagonal", 24: "22.2",
}  # fmt: skip
"""The layout of a number of channels, as ffmpeg guesses it (`av_channel_layout_default`)."""

_SIDE_TWINS = {
    "5.1": "5.1(side)", "5.0": "5.0(side)", "quad": "quad(side)", "6.1": "6.1(back)",
    "7.1(wide)": "7.1(wide-side)",
}  # fmt: skip
"""Layouts of the same channels, two of which one standard puts at the side, another at the back."""
_TWINS = _SIDE_TWINS | {twin: layout for layout, twin in _SIDE_TWINS.items()}

_DOWNMIX_LAYOUTS = (
    "7.1", "6.1", "6.1(back)", "5.1", "5.1(side)", "5.0", "5.0(side)", "quad", "4.0", "3.0",
    "stereo", "mono",
)  # fmt: skip
"""Layouts to which audio is mixed down, best first."""

_BIT_RATE = 80_000
"""Bits per second and channel. FFmpeg's own default is 128 kb/s in all, which is near for
stereo."""


@dataclass(frozen=True)
class SoundPlan:
    """An audio encoder that was opened with exactly these settings."""

    encoder: str
    layout: str
    rate: int
    """Samples per second."""
    mixed_down: bool
    """The encoder takes fewer channels than the source has."""


def state_layout(decoder: CodecContext) -> None:
    """Give a decoder that is not open yet the usual layout, where its container states none.

    AVI, WMV and FLV hold only a number of channels.
    """
    assert isinstance(decoder, AudioCodecContext)
    default = _DEFAULT_LAYOUTS.get(decoder.channels)
    is_stated = not re.fullmatch(r"\d+ channels?", decoder.layout.name)
    if default is not None and not is_stated and not decoder.is_open:
        decoder.layout = default


def plan_sound(encoder: str, decoder: CodecContext) -> SoundPlan:
    """Choose rate and layout for ``encoder`` by opening it; ``decoder`` is the source's.

    The channels stay as they are, get the names of a twin layout (`_TWINS`), or are mixed down to
    as many as the encoder takes. Raises ValueError where it opens with no layout.
    """
    codec = av.Codec(encoder, "w")
    if codec.type != "audio":
        raise ValueError(f"{encoder} encodes {codec.type}")
    assert isinstance(decoder, AudioCodecContext)
    state_layout(decoder)
    rate = decoder.sample_rate
    rates = codec.audio_rates
    if rates and rate not in rates:
        # The next higher rate loses nothing; where there is none, the highest is taken.
        rate = min((r for r in rates if r > rate), default=max(rates))
    refusal: Exception | None = None
    for layout in _layouts(decoder.layout, encoder):
        plan = SoundPlan(encoder, layout.name, rate, layout.nb_channels < decoder.channels)
        context = av.CodecContext.create(encoder, "w")
        try:
            set_up_sound(context, plan)
            context.open()
        except (av.error.FFmpegError, ValueError) as error:
            refusal = refusal or error
        else:
            return plan
    raise ValueError(f"{encoder} does not open for {decoder.layout.name}: {refusal}") from refusal


def set_up_sound(context: CodecContext, plan: SoundPlan) -> None:
    """Give an encoder's context the settings of ``plan``."""
    assert isinstance(context, AudioCodecContext)
    context.layout = plan.layout
    context.sample_rate = plan.rate
    context.bit_rate = _BIT_RATE * context.layout.nb_channels
    if context.format is None:
        formats = context.codec.audio_formats
        context.format = formats[0] if formats else "s16"


def _layouts(source: av.AudioLayout, encoder: str) -> Iterator[av.AudioLayout]:
    """Yield the layouts that an encoder may take for ``source``, best first."""
    names = [source.name]
    if source.name in _TWINS:
        names.append(_TWINS[source.name])
    if encoder == "aac" and source.name.endswith("(side)"):
        # AAC has numbers only for layouts with channels at the back; of any other a decoder reads
        # only how many there are.
        names.reverse()
    for name in names:
        yield av.AudioLayout(name)
    for name in _DOWNMIX_LAYOUTS:
        layout = av.AudioLayout(name)
        if layout.nb_channels < source.nb_channels:
            yield layout


def first_sound(path: Path, index: int, count: int = 4) -> list[AudioFrame]:
    """Return the first ``count`` frames of an audio stream; none where none can be decoded."""
    frames: list[AudioFrame] = []
    with open_container(path) as container:
        stream = container.streams[index]
        if stream.codec_context is None:
            # FFmpeg has no decoder for it.
            return []
        state_layout(stream.codec_context)
        with contextlib.suppress(av.error.FFmpegError):
            for packet in demux(container, [stream]):
                with contextlib.suppress(av.error.FFmpegError):
                    frames += (each for each in packet.decode() if isinstance(each, AudioFrame))
                if len(frames) >= count:
                    break
    return frames[:count]


class Resampler:
    """Convert audio to an encoder's format, also where the format of the source changes."""

    def __init__(self, encoder: AudioCodecContext) -> None:
        self._encoder = encoder
        self._source_format: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None

    def resample(self, frame: AudioFrame | None) -> list[AudioFrame]:
        """Return the frames that are complete; None flushes."""
        if frame is None:
            return self._rest()
        source_format = frame.format.name, frame.layout.name, frame.sample_rate
        complete = [] if source_format == self._source_format else self._rest()
        if self._resampler is None:
            encoder = self._encoder
            self._source_format = source_format
            self._resampler = av.AudioResampler(encoder.format, encoder.layout, encoder.sample_rate)
        return complete + self._resampler.resample(frame)

    def _rest(self) -> list[AudioFrame]:
        resampler, self._resampler = self._resampler, None
        if resampler is None:
            return []
        # A resampler that has nothing to convert returns its input, here None.
        return [each for each in resampler.resample(None) if each is not None]
