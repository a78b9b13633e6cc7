"""The transparency of a video: taken from a decoded picture, put into one for the encoder.

Networks see RGB alone, so alpha passes beside them: turned and resized as its picture is, otherwise
sample for sample. It has full range in every pixel format and is neither multiplied nor divided.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from ..frames import Size

_PACKED = re.compile(r"(argb|abgr|ayuv)|(rgba|bgra|vuya|uyva)|(ya)")
"""Packed formats with alpha as first of four samples, last of four, and last of two."""

_ANY = "rgba64le"
"""What formats without a rule of their own (half floats and the like) are converted to."""


@dataclass(frozen=True)
class Alpha:
    """The alpha of one picture."""

    values: npt.NDArray[Any]
    """``(H, W)``, uint8 or uint16; 0 is transparent, ``2**bits - 1`` opaque."""
    bits: int


def has_alpha(pix_fmt: str) -> bool:
    """Say whether an FFmpeg pixel format holds alpha; a palette's is not looked at."""
    return any(component.is_alpha for component in av.VideoFormat(pix_fmt).components)


def alpha_of(frame: av.VideoFrame) -> Alpha | None:
    """Return the alpha of a decoded picture as a copy, or None where its format has none."""
    if not has_alpha(frame.format.name):
        return None
    samples = _samples(frame)
    if samples is None:
        samples = _samples(VideoReformatter().reformat(frame, format=_ANY, threads=1))
        assert samples is not None
    values, bits = samples
    return Alpha(values.astype(values.dtype.newbyteorder("="), copy=True), bits)


def put_alpha(frame: av.VideoFrame, alpha: Alpha) -> None:
    """Write ``alpha``, at the frame's size and depth, into a picture whose format holds it."""
    samples = _samples(frame)
    assert samples is not None
    target, bits = samples
    values = _resized(alpha, (frame.height, frame.width))
    if bits != alpha.bits:
        steps = np.arange(2**alpha.bits) * ((2**bits - 1) / (2**alpha.bits - 1))
        values = np.rint(steps).astype(target.dtype)[values]
    target[:] = values


def _resized(alpha: Alpha, size: Size) -> npt.NDArray[Any]:
    """Return the samples at ``size``, in the manner in which frames are resized."""
    values = alpha.values
    if values.shape == size:
        return values
    shrinks = size[0] * size[1] < values.size
    way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(values.astype(np.float32), size[::-1], interpolation=way)
    rounded: npt.NDArray[Any] = np.rint(np.clip(resized, 0, 2**alpha.bits - 1)).astype(values.dtype)
    return rounded


def _samples(frame: av.VideoFrame) -> tuple[npt.NDArray[Any], int] | None:
    """Return a view of the alpha samples ``(H, W)`` and their bits, None where they are floats."""
    name = frame.format.name
    bits = next(each.bits for each in frame.format.components if each.is_alpha)
    if re.search(r"f(16|32)[bl]e$", name):
        return None
    dtype = np.dtype(np.uint8 if bits == 8 else ">u2" if name.endswith("be") else "<u2")
    if len(frame.planes) == 4:
        return _rows(frame.planes[3], dtype)[:, : frame.width], bits
    found = _PACKED.match(name)
    if found is None or len(frame.planes) != 1:
        return None
    first, last, _ = found.groups()
    step, offset = (4, 0) if first else (4, 3) if last else (2, 1)
    return _rows(frame.planes[0], dtype)[:, offset : frame.width * step : step], bits


def _rows(plane: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    rows = np.frombuffer(cast(Any, plane), dtype)
    return rows.reshape(plane.height, plane.line_size // dtype.itemsize)


ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read alpha where FFmpeg's own of that codec leaves it out."""


def decoder(stream: Any, *, alpha: bool) -> Callable[[av.Packet[Any]], list[av.VideoFrame]]:
    """Return what decodes the packets of ``stream``: itself, or a decoder that reads alpha."""
    reader = ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name) if alpha else None
    if reader is None:
        return lambda packet: packet.decode()
    context: Any = av.CodecContext.create(reader, "r")
    context.extradata = stream.codec_context.extradata
    context.thread_count = stream.codec_context.thread_count
    context.flags = stream.codec_context.flags
    decode: Callable[[av.Packet[Any]], list[av.VideoFrame]] = context.decode
    return decode


__all__ = ["ALPHA_DECODERS", "Alpha", "alpha_of", "decoder", "has_alpha", "put_alpha"]
