"""The transparency of a video: taken from a decoded frame, put into one for the encoder.

The network receives RGB only. Alpha bypasses it, turned and resized like its frame and otherwise
unchanged. It has full range in every pixel format. The colours are neither multiplied by it nor
divided.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ..frames import Size
from .demux.demuxing import Packet

AlphaSamples: TypeAlias = npt.NDArray[Any]
"""``(H, W)``, uint8 or uint16; 0 is transparent, ``2**bits - 1`` opaque."""

_PACKED = re.compile(r"(argb|abgr|ayuv)|(rgba|bgra|vuya|uyva)|(ya)")
"""Packed formats with alpha as the first of four samples, the last of four, and the last of two."""

_FALLBACK_FORMAT = "rgba64le"
"""The format to which those are converted that `_samples` does not read, such as half floats."""

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that return alpha where FFmpeg's own decoder of that codec leaves it out."""


@dataclass(frozen=True)
class Alpha:
    """The alpha of one frame."""

    values: AlphaSamples
    bits: int


def has_alpha(pix_fmt: str) -> bool:
    """Return whether an FFmpeg pixel format holds alpha; that of a palette does not count."""
    return any(component.is_alpha for component in av.VideoFormat(pix_fmt).components)


def decoder(stream: VideoStream, *, alpha: bool) -> Callable[[Packet], list[av.VideoFrame]]:
    """Return the function that decodes the packets of ``stream``, with ``alpha`` theirs, too."""
    name = ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name) if alpha else None
    if name is None:
        return stream.decode
    context = av.CodecContext.create(name, "r")
    assert isinstance(context, VideoCodecContext)
    context.extradata = stream.codec_context.extradata
    context.thread_count = stream.codec_context.thread_count
    context.flags = stream.codec_context.flags
    return context.decode


def alpha_of(frame: av.VideoFrame) -> Alpha | None:
    """Return the alpha of a decoded frame as a copy, or None where its format has none."""
    if not has_alpha(frame.format.name):
        return None
    samples = _samples(frame)
    if samples is None:
        samples = _samples(VideoReformatter().reformat(frame, format=_FALLBACK_FORMAT, threads=1))
        assert samples is not None
    values, bits = samples
    return Alpha(values.astype(values.dtype.newbyteorder("="), copy=True), bits)


def put_alpha(frame: av.VideoFrame, alpha: Alpha) -> None:
    """Write ``alpha``, at the frame's size and bit depth, into a frame whose format holds it."""
    samples = _samples(frame)
    assert samples is not None
    target, bits = samples
    target[:] = alpha_samples(alpha, (frame.height, frame.width), bits)


def alpha_samples(alpha: Alpha, size: Size, bits: int) -> AlphaSamples:
    """Return the samples of ``alpha`` at ``size`` (height, width) and another number of bits."""
    values = _resized(alpha, size)
    if bits == alpha.bits:
        return values
    steps = np.arange(2**alpha.bits) * ((2**bits - 1) / (2**alpha.bits - 1))
    scaled: AlphaSamples = np.rint(steps).astype(np.uint8 if bits <= 8 else np.uint16)[values]
    return scaled


def _resized(alpha: Alpha, size: Size) -> AlphaSamples:
    """Return the samples at ``size``, with the filters by which frames are resized."""
    values = alpha.values
    if values.shape == size:
        return values
    shrinks = size[0] * size[1] < values.size
    filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(values.astype(np.float32), size[::-1], interpolation=filter_)
    return np.rint(np.clip(resized, 0, 2**alpha.bits - 1)).astype(values.dtype)


def _samples(frame: av.VideoFrame) -> tuple[AlphaSamples, int] | None:
    """Return a view of the alpha samples and their bits, or None where they are floats."""
    name = frame.format.name
    bits = next(each.bits for each in frame.format.components if each.is_alpha)
    if re.search(r"f(16|32)[bl]e$", name):
        return None
    dtype = np.dtype(np.uint8 if bits == 8 else ">u2" if name.endswith("be") else "<u2")
    if len(frame.planes) == 4:
        return _rows(frame.planes[3], dtype)[:, : frame.width], bits
    packed = _PACKED.match(name)
    if packed is None or len(frame.planes) != 1:
        return None
    first, last, _ = packed.groups()
    step, offset = (4, 0) if first else (4, 3) if last else (2, 1)
    return _rows(frame.planes[0], dtype)[:, offset : frame.width * step : step], bits


def _rows(plane: VideoPlane, dtype: np.dtype[Any]) -> AlphaSamples:
    rows = np.frombuffer(memoryview(plane), dtype)
    return rows.reshape(plane.height, plane.line_size // dtype.itemsize)
