"""Sound that is encoded anew: what its channels are, and what an encoder takes of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error

from .demuxing import demux, open_container

_GUESSED = {
    1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1",
    16: "hexadecagonal", 24: "22.2",
}  # fmt: skip
"""The layout of so many channels, as ffmpeg guesses it (`av_channel_layout_default`)."""

_TWINS = {
    "5.1": "5.1(side)", "5.0": "5.0(side)", "quad": "quad(side)", "6.1": "6.1(back)",
    "7.1(wide)": "7.1(wide-side)",
}  # fmt: skip
"""The same channels, where one standard puts two of them at the side and another at the back."""
_TWIN = _TWINS | {other: one for one, other in _TWINS.items()}

_FEWER = (
    "7.1", "6.1", "6.1(back)", "5.1", "5.1(side)", "5.0", "5.0(side)", "quad", "4.0", "3.0",
    "stereo", "mono",
)  # fmt: skip
"""What sound is mixed down to, best first."""

_BIT_RATE = 80_000
"""Per channel. FFmpeg's own default is 128 kb/s for any number; this is near it for stereo."""


@dataclass(frozen=True)
class SoundPlan:
    """An audio encoder that was opened with these very settings."""

    encoder: str
    layout: str
    rate: int
    """Samples per second."""
    mixed_down: bool
    """It takes fewer channels than there are."""


def state_layout(decoder: Any) -> None:
    """Give a decoder that is not open yet the layout which its container does not state.

    AVI, WMV and FLV hold a number of channels only.
    """
    guess = _GUESSED.get(decoder.channels)
    stated = not re.fullmatch(r"\d+ channels?", decoder.layout.name)
    if guess is not None and not stated and not decoder.is_open:
        decoder.layout = guess


def plan_sound(encoder: str, decoder: Any) -> SoundPlan:
    """Choose rate and layout for ``encoder`` by opening it; ``decoder`` is the source's.

    The channels stay as they are, or change their names, or are mixed down to the most that the
    encoder takes. Raises ValueError where none opens.
    """
    codec = av.Codec(encoder, "w")
    if codec.type != "audio":
        raise ValueError(f"{encoder} encodes {codec.type}")
    state_layout(decoder)
    rate = decoder.sample_rate
    rates = codec.audio_rates
    if rates and rate not in rates:
        # The next higher one loses nothing; where there is none, the highest.
        rate = min((r for r in rates if r > rate), default=max(rates))
    refused: Exception | None = None
    for layout in _layouts(decoder.layout, encoder):
        plan = SoundPlan(encoder, layout.name, rate, layout.nb_channels < decoder.channels)
        context: Any = av.CodecContext.create(encoder, "w")
        try:
            set_up_sound(context, plan)
            context.open()
        except (av.error.FFmpegError, ValueError) as error:
            refused = refused or error
        else:
            return plan
    raise ValueError(f"{encoder} does not open for {decoder.layout.name}: {refused}") from refused


def set_up_sound(context: Any, plan: SoundPlan) -> None:
    """Bring an encoder's context into the state that was planned."""
    context.layout = plan.layout
    context.sample_rate = plan.rate
    context.bit_rate = _BIT_RATE * context.layout.nb_channels
    if context.format is None:
        formats = context.codec.audio_formats
        context.format = formats[0] if formats else "s16"


def _layouts(source: av.AudioLayout, encoder: str) -> Iterator[av.AudioLayout]:
    """Yield the layouts that an encoder may take for ``source``, best first."""
    alike = [source.name]
    if source.name in _TWIN:
        alike.append(_TWIN[source.name])
    if encoder == "aac" and source.name.endswith("(side)"):
        # AAC has a number for those at the back only; of others a decoder finds just the count.
        alike.reverse()
    for name in alike:
        yield av.AudioLayout(name)
    for name in _FEWER:
        layout = av.AudioLayout(name)
        if layout.nb_channels < source.nb_channels:
            yield layout


def first_sound(path: Path, index: int, count: int = 4) -> list[Any]:
    """Return the first ``count`` frames of sound of a stream, none where nothing can be decoded."""
    frames: list[Any] = []
    with open_container(path) as container:
        stream: Any = container.streams[index]
        state_layout(stream.codec_context)
        with contextlib.suppress(av.error.FFmpegError):
            for packet in demux(container, [stream]):
                with contextlib.suppress(av.error.FFmpegError):
                    frames += packet.decode()
                if len(frames) >= count:
                    break
    return frames[:count]


class Resampler:
    """Bring sound into an encoder's form, also where its own form changes on the way."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._takes: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None

    def resample(self, frame: Any) -> list[Any]:
        """Return what is ready; None flushes."""
        if frame is None:
            return self._rest()
        form = frame.format.name, frame.layout.name, frame.sample_rate
        ready = [] if form == self._takes else self._rest()
        if self._resampler is None:
            encoder = self._encoder
            self._takes = form
            self._resampler = av.AudioResampler(encoder.format, encoder.layout, encoder.sample_rate)
        return ready + self._resampler.resample(frame)

    def _rest(self) -> list[Any]:
        resampler, self._resampler = self._resampler, None
        if resampler is None:
            return []
        # One that had nothing to do gives back what it got, also this None.
        return [each for each in resampler.resample(None) if each is not None]
