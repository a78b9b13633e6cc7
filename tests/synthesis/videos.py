"""Videos made by PyAV: moving, damaged, of patches of known colours, without a container."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from tests.synthesis import colours, streams


def encode(
    path: Path,
    pictures: Sequence[av.VideoFrame],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    set_up: Callable[[Any], None] = lambda context: None,
) -> Path:
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = pictures[0].width, pictures[0].height
        stream.pix_fmt = pictures[0].format.name
        set_up(stream.codec_context)
        for number, picture in enumerate(pictures):
            picture.pts, picture.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def moving(
    path: Path,
    *,
    frames: int,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    codec: str = "libx264",
) -> Path:
    """A noisy wall that moves to the left, so that the loss of one frame shows in the next."""
    wall = np.random.default_rng(0).integers(0, 255, (12, 96, 3), dtype=np.uint8)
    wall = cv2.resize(wall, (64 * 12, 96), interpolation=cv2.INTER_CUBIC)
    cut = [np.ascontiguousarray(wall[:, i : i + 128]) for i in range(frames)]
    return encode(
        path,
        [av.VideoFrame.from_ndarray(each, "rgb24").reformat(format=pix_fmt) for each in cut],
        codec,
        {"preset": "ultrafast", "bf": "2", "crf": "10", **(options or {})},
    )


def elementary_stream(path: Path, *, frames: int, size: tuple[int, int] = (48, 64)) -> Path:
    """H.264 without a container, and therefore without timestamps."""
    context: Any = av.CodecContext.create("libx264", "w")
    context.height, context.width = size
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, 25), 25
    context.options = {"bf": "0", "g": "5", "preset": "ultrafast"}
    with path.open("wb") as out:
        for number in range(frames):
            picture = streams.picture(number, size)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for packet in context.encode(frame):
                out.write(bytes(packet))
        for packet in context.encode(None):
            out.write(bytes(packet))
    return path


def patches(
    path: Path,
    matrix: str,
    *,
    full: bool,
    pix_fmt: str = "yuv420p",
    codec: str = "ffv1",
    transfer: int | None = None,
) -> tuple[Path, av.VideoFrame]:
    bits = av.VideoFormat(pix_fmt).components[0].bits
    codes = colours.codes_from_rgb(colours.patches(), matrix, full=full, bits=bits)
    frame = colours.frame_from_codes(codes, pix_fmt)
    tags = colours.TAGS[matrix]

    def tag(target: Any) -> None:
        target.colorspace, target.color_primaries, target.color_trc = tags
        if transfer is not None:
            target.color_trc = transfer
        target.color_range = 2 if full else 1

    tag(frame)
    return encode(path, [frame], codec, set_up=tag), frame


def gradient(path: Path) -> Path:
    ramp = np.broadcast_to(np.linspace(0, 1, 1024)[None, :, None], (16, 1024, 3)).copy()
    codes = colours.codes_from_rgb(ramp, "bt709", full=False, bits=10)
    return encode(path, [colours.frame_from_codes(codes, "yuv420p10le")], "ffv1")


def damaged(path: Path, whole: Path, broken: Sequence[int], *, half: bool = False) -> Path:
    """Zero the packets of these numbers, or overwrite the second half of each."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
        number = 0
        for packet in source.demux(video=0):
            if not packet.size:
                continue
            content = bytearray(bytes(packet))
            if number in broken:
                start = len(content) // 2 if half else 0
                content[start:] = bytes([0x55 if half else 0]) * (len(content) - start)
            copy = av.Packet(bytes(content))
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.time_base, copy.is_keyframe, copy.stream = (
                packet.time_base,
                packet.is_keyframe,
                stream,
            )
            output.mux(copy)
            number += 1
    return path


def pes_starts(content: bytes) -> list[int]:
    """Return the offsets of the TS packets in which a video frame begins (ISO/IEC 13818-1, 2.4)."""
    starts = []
    for offset in range(0, len(content), 188):
        packet = content[offset : offset + 188]
        payload = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
        if packet[1] & 0x40 and packet[payload : payload + 4] == b"\x00\x00\x01\xe0":
            starts.append(offset)
    return starts
