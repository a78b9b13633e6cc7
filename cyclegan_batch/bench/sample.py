"""The frames that are measured with: the first ones of an input, or a clip that is computed."""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from ..errors import InputError
from ..frames import Pixels, Size
from ..job.inputs import find_inputs, why_unread
from ..media.demux.demuxing import Packet
from ..media.formats import PIPE
from ..media.pattern import parse_pattern
from ..models.card import ModelCard
from ..models.parity import natural_frames
from ..options import FrameSize
from ..wording import counted, printable

DEFAULT_SIDE = 256
"""Height and width of the computed clip, where the model tells no size."""

MOST_IMAGES = 256
"""The first images of a folder that are measured with; each is used again where more are needed."""

_RATE, _PERIOD, _SWING = 25, 50, 32
"""Frames per second of the computed clip, frames until it repeats, and the pixels that it moves."""


class Sample(Protocol):
    """Frames to measure with."""

    @property
    def kind(self) -> Literal["video", "images", "computed"]:
        """What it is."""

    @property
    def words(self) -> str:
        """What it is, for people."""

    def inputs(self, frames: int, folder: Path) -> tuple[Path, int | None]:
        """Return the INPUT of a translation of ``frames`` frames, and its ``--frames``.

        A video may have fewer; None where the input has just so many. ``folder`` is an empty or
        missing one for files that this needs.
        """


@dataclass(frozen=True)
class VideoSample:
    """A video that exists."""

    path: Path
    words: str
    kind: Literal["video", "images", "computed"] = "video"

    def inputs(self, frames: int, folder: Path) -> tuple[Path, int | None]:
        """Return the video itself."""
        return self.path, frames


@dataclass(frozen=True)
class ImageSample:
    """Images that exist."""

    paths: tuple[Path, ...]
    words: str
    kind: Literal["video", "images", "computed"] = "images"

    def inputs(self, frames: int, folder: Path) -> tuple[Path, int | None]:
        """Return a folder of links to the images, each as often as it is needed."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(itertools.islice(itertools.cycle(self.paths), frames)):
            link = folder / f"{number:06}{path.suffix}"
            try:
                link.symlink_to(path.resolve())
            except OSError:  # Windows asks for a right, some file systems have no links
                shutil.copyfile(path, link)
        return folder, None


class ComputedSample:
    """A clip of computed natural frames, H.264 in MP4; a window moves in a circle over a picture.

    It is encoded once, and repeated by copies of its packets.
    """

    kind: Literal["video", "images", "computed"] = "computed"

    def __init__(self, size: Size) -> None:
        """``size``: height and width, at least 2 each; H.264 with 4:2:0 has even ones."""
        self.size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self.words = f"computed clip, {self.size[1]}×{self.size[0]}, H.264"

    def inputs(self, frames: int, folder: Path) -> tuple[Path, int | None]:
        """Return the clip, written into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "computed.mp4"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=_RATE, options=_QUALITY)
            video.height, video.width = self.size
            video.pix_fmt = "yuv420p"
            video.codec_context.time_base = Fraction(1, _RATE)
            video.codec_context.colorspace = Colorspace.ITU709
            video.codec_context.color_range = ColorRange.MPEG
            packets: list[Packet] = []
            for number, pixels in enumerate(moving_window(self.size)):
                frame = VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
                frame.pts, frame.time_base = number, Fraction(1, _RATE)
                packets += video.encode(frame)
            packets += video.encode(None)
            for turn in range(math.ceil(frames / _PERIOD)):
                for packet in packets:
                    again = av.Packet(bytes(packet))
                    again.stream, again.time_base = video, packet.time_base
                    shift = round(turn * _PERIOD / _RATE / packet.time_base)
                    assert packet.pts is not None
                    assert packet.dts is not None
                    again.pts, again.dts = packet.pts + shift, packet.dts + shift
                    again.is_keyframe = packet.is_keyframe
                    container.mux(again)
        return path, frames


_QUALITY = {"crf": "18", "preset": "veryfast", "g": str(_PERIOD)}


def moving_window(size: Size) -> Iterator[Pixels]:
    """Yield the frames of one turn, ``(H, W, 3)`` uint8 each."""
    height, width = size
    (picture,) = natural_frames((height + _SWING, width + _SWING), 1)
    for number in range(_PERIOD):
        angle = 2 * math.pi * number / _PERIOD
        top = round(_SWING / 2 * (1 + math.sin(angle)))
        left = round(_SWING / 2 * (1 - math.cos(angle)))
        yield np.ascontiguousarray(picture[top : top + height, left : left + width])


def sample_of(path: Path | None, card: ModelCard, size: FrameSize, folder: Path) -> Sample:
    """Return the sample for the INPUT of the command; None is the computed clip.

    The clip has the size that the model was trained at, or that of ``size`` (``--size``). Of
    several inputs those of the first one's kind are taken. ``folder`` is where nothing is written:
    the names of outputs are checked against it. Raises InputError.
    """
    if path is None:
        return ComputedSample(_computed_size(card, size))
    if path == PIPE or parse_pattern(path.name):
        raise InputError(
            f"{printable(path)}: bench reads videos, images and folders of images; give one, or "
            "leave INPUT out to measure with a computed clip"
        )
    entries = find_inputs([path], f"{folder}{os.sep}").entries
    known = [entry for entry in entries if entry.kind in ("video", "image")]
    if not known:
        what = next((entry for entry in entries if entry.kind == "unread"), None)
        reason = why_unread(what) if what else "is neither a video, an image nor a folder of them"
        if any(entry.kind == "tar" for entry in entries):
            reason = "is a tar or holds only tars; unpack some of its images into a folder"
        raise InputError(
            f"{printable(path)}: {reason}; give one, or leave INPUT out to measure with a "
            "computed clip"
        )
    if known[0].kind == "video":
        return VideoSample(known[0].source, printable(known[0].source))
    images = tuple(entry.source for entry in known if entry.kind == "image")[:MOST_IMAGES]
    words = f"{printable(path)}, {counted(len(images), 'image')}"
    return ImageSample(images, words if len(images) > 1 else printable(images[0]))


def _computed_size(card: ModelCard, size: FrameSize) -> Size:
    if card.sizes.fixed is not None:
        return card.sizes.fixed
    if isinstance(size, tuple):
        return card.sizes.smallest_fit(size)
    side = card.trained_size or DEFAULT_SIDE if size == "native" else size
    return card.sizes.smallest_fit((side, side))
