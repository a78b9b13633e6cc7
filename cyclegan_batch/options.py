"""What a translation can be told: one list behind the command line, the Python API and the plan.

A flag, its field here and its word in the README are the same word; a test holds them together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, get_args, get_type_hints

MAX_PIXELS = 2**28
"""An image of more pixels is refused by its header, unless ``--max-pixels`` is another limit."""

_LEAST = {
    **dict.fromkeys(("batch_size", "threads", "frames", "preview", "max_pixels"), 1),
    **dict.fromkeys(("stream", "ss", "to", "max_failures"), 0),
}
"""The least value of the options that are numbers; images check their own."""


@dataclass(frozen=True)
class TranslateOptions:
    """Every option of ``translate``; None means that the tool decides."""

    # The network
    direction: Literal["AtoB", "BtoA"] | None = None
    """Which generator of a run; None: AtoB where there are two. A file that goes the other way is
    refused."""
    model_io: str | None = None
    """How a foreign ONNX is to be understood, e.g. ``nchw rgb 0..255``."""
    backend: Literal["auto", "onnxruntime", "openvino", "tensorrt", "torch"] = "auto"
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda[:N]``."""
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16", "int8"] = "auto"
    """``tf32`` is how an NVIDIA GPU may run an FP32 file, ``bf16`` how OpenVINO and torch may."""
    batch_size: int | None = None
    threads: int | None = None
    """CPU threads for the network."""
    trust_engine: bool = False
    """Load a TensorRT engine that was not built here: it is a program that runs with our rights."""
    # The size
    size: Literal["native"] | int | tuple[int, int] = "native"
    """The size the network sees: native, the shorter side, or (height, width)."""
    fit: Literal["pad", "stretch"] | None = None
    keep_size: bool = False
    """Write the network's size instead of the source's."""
    # Video
    container: Literal["same", "mp4", "mkv", "mov", "webm"] = "same"
    """Of videos whose name comes from their source; same: the source's, and MKV where that is not
    written. A file that is named as OUTPUT says its container itself."""
    codec: str | None = None
    """The encoder, by FFmpeg's name; None: libx264, and libvpx-vp9 in WebM (it holds no H.264)."""
    crf: float | None = None
    """None: 18 for libx264, and its like for other encoders."""
    preset: str | None = None
    pix_fmt: str | None = None
    encoder_opt: dict[str, str] = field(default_factory=dict)
    audio: str = "copy"
    """``copy``, ``none`` or the name of an audio encoder."""
    stream: int | None = None
    """Index of the video stream in its container; None: the best one."""
    color: str | None = None
    """``MATRIX[:RANGE]`` for untagged sources, e.g. ``bt709:limited``."""
    deinterlace: bool = False
    deinterlace_rate: Literal["frame", "field"] | None = None
    """One frame of two fields (None too), or one of each field; either of them deinterlaces."""
    ss: float | None = None
    """Start, in seconds from the first frame."""
    to: float | None = None
    """End, in seconds on the same clock as ``ss`` (exclusive)."""
    frames: int | None = None
    """At most this many frames of a video."""
    fps: str | None = None
    """Frames per second of a pattern of images, e.g. ``25`` or ``30000/1001``."""
    preview: int | None = None
    # Images
    format: Literal["same", "png", "jpg", "webp", "avif"] = "same"
    quality: int | None = None
    """1..100 for jpg, webp and avif; None: 95."""
    white: int | None = None
    """Level of a picture of more than 8 bits that becomes white (255), such as 4095 for 12 bits in
    16; None: the largest there is."""
    # The run
    overwrite: bool = False
    skip_existing: bool = False
    on_error: Literal["skip", "fail"] = "skip"
    """``skip`` goes on without the frame, packet or file that is lost, and lists it; ``fail`` ends
    the job at the first."""
    max_failures: int | None = None
    strict: bool = False
    """What a container cannot hold is an error instead of a warning."""
    max_pixels: int = MAX_PIXELS
    """A picture of more pixels is refused by its header."""
    copy_others: bool = False
    cache_dir: Path | None = None
    """Where exported checkpoints and built engines are kept; None: the usual place."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value that no option has: it would be taken for another one."""
        for name, kind in get_type_hints(type(self)).items():
            value, words = getattr(self, name), _words(kind)
            if words and name != "size" and value is not None and value not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}")
        if self.size != "native":
            sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
            if len(sides) != 2 or not all(isinstance(n, Integral) and n >= 1 for n in sides):
                raise ValueError(
                    f"size must be 'native', the shorter side or (height, width), got {self.size!r}"
                )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Real) or not least <= float(value) < math.inf:
                raise ValueError(f"{name} must be a number from {least}, got {value!r}")
        if self.overwrite and self.skip_existing:
            raise ValueError("overwrite and skip_existing contradict each other; choose one")

    @property
    def deinterlaces(self) -> bool:
        """Whole frames are made of the fields, at either rate."""
        return self.deinterlace or self.deinterlace_rate is not None


def _words(kind: object) -> tuple[str, ...]:
    """Return the words that a type names: of a Literal, also as one kind among others."""
    parts = get_args(kind)
    return tuple(
        word for part in parts for word in ((part,) if isinstance(part, str) else _words(part))
    )
