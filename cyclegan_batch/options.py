"""The options of a translation: the one table behind the command line, Python and the plan.

A flag, its field here and its keyword in Python are the same word. The docstring of a field is its
help: ``--help`` and docs/options.md are made from this table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Literal, TypeAlias

from .option_table import check_values, option

Direction: TypeAlias = Literal["AtoB", "BtoA"]
"""Which of the two generators of a CycleGAN."""

FamilyName: TypeAlias = Literal[
    "resnet",
    "unet",
    "cut",
    "pix2pixhd",
    "animegan",
    "fast_style",
    "ugatit",
    "copies",
    "pytorch_gan",
    "aladdinpersson",
    "mmgeneration",
    "mmediting",
    "udacity",
    "toronto",
    "mnist_svhn",
]
"""The families that a checkpoint is recognised as: the names of `models.families.FAMILIES`."""

BackendName: TypeAlias = Literal["auto", "onnxruntime", "openvino", "tensorrt", "torch"]

TranslatePrecision: TypeAlias = Literal["auto", "fp32", "tf32", "fp16", "bf16", "int8"]
"""The arithmetic in which a backend may run a network."""

FilePrecision: TypeAlias = Literal["fp32", "fp16", "int8"]
"""The number type of a file's weights; a runtime may compute in another one."""

FrameSize: TypeAlias = Literal["native"] | int | tuple[int, int]
"""The source's own size, the length of the shorter side, or (height, width)."""

HdrChoice: TypeAlias = Literal["tonemap", "refuse"]
"""What becomes of an HDR source."""

ComparisonLayout: TypeAlias = Literal["split", "side", "stack"]
"""How a comparison shows a source and its result (media/compared_frames.py)."""

MAX_PIXELS = 2**28
"""An image of more pixels is refused by its header, unless ``--max-pixels`` is another limit."""

DEFAULT_STRENGTH = 0.5
"""Of the filter against flicker (`temporal.flow_filter`)."""
MOST_STRENGTH = 0.9
"""At 0.9 a tenth of a frame is still seen 22 frames later."""

MODEL = "Model"
NETWORK = "Network"
FRAMES = "Frames and size"
VIDEO = "Video output"
IMAGES = "Image output"
ERRORS = "Errors"
RUN = "Run"
"""The groups of options, in the order in which ``--help`` shows them."""


@dataclass(frozen=True)
class TranslateOptions:
    """Every option of ``translate``; None stands for a default that depends on the job."""

    direction: Direction | None = field(default=None, metadata=option(MODEL))
    """Which of the two generators in a run folder or in one file translates. AtoB unless given,
    where a folder holds both; a file of the other direction is refused."""
    weights: str | None = field(default=None, metadata=option(MODEL, metavar="PREFIX"))
    """Which of several generators in one checkpoint translates: the beginning of the names of its
    weights, such as ``netG_A``; ``inspect`` lists what a checkpoint holds."""
    family: FamilyName | None = field(default=None, metadata=option(MODEL, metavar="FAMILY"))
    """Which network the weights of a checkpoint are for, where the names and shapes of two fit; it
    is recognised by them unless given."""
    model_io: str | None = field(default=None, metadata=option(MODEL, metavar="SPEC"))
    """Images of a foreign ONNX, e.g. ``"nchw rgb 0..255"`` or ``"bgr mean=0.5 std=0.5 -> 0..1"``:
    layout, channel order, range, mean and deviation, behind ``->`` those of what it returns, and
    ``out=NAME`` for one of several outputs. What is left out is read from its graph where
    possible."""
    trust_engine: bool = field(default=False, metadata=option(MODEL))
    """Load a TensorRT engine that was not built here. An engine is a program that runs with your
    rights."""

    backend: BackendName = field(default="auto", metadata=option(NETWORK))
    """Runtime of the network. auto chooses by what is installed and by the file; tensorrt runs an
    ONNX only when named, as torch does, which also runs a checkpoint without exporting it."""
    device: str = field(
        default="auto", metadata=option(NETWORK, metavar="auto|cpu|cuda[:N]|webgpu")
    )
    """Device of the network. auto is the CPU for now; the output of a GPU is compared with the
    CPU's once. webgpu (experimental) is onnxruntime's way to the GPUs of any maker."""
    precision: TranslatePrecision = field(default="auto", metadata=option(NETWORK))
    """Arithmetic of the network. auto is the file's own, and on a GPU tf32 for an fp32 file. tf32
    is for NVIDIA GPUs, bf16 for OpenVINO and torch; fp16 exports a checkpoint in half
    precision."""
    batch_size: int | None = field(
        default=None, metadata=option(NETWORK, metavar="auto|N", least=1)
    )
    """Frames per call of the network. auto is the model's own where that is fixed, else what
    ``bench`` measured, else 1 on a CPU, and on a GPU as many as have two million pixels together,
    32 at most."""
    threads: int | None = field(default=None, metadata=option(NETWORK, metavar="N", least=1))
    """CPU threads for the network; every core unless given."""
    reuse: bool = field(default=True, metadata=option(NETWORK))
    """Give a frame or an image with the same pixels as the one before it the same result, instead
    of computing it again. The report counts such frames."""

    size: FrameSize = field(default="native", metadata=option(FRAMES, metavar="native|N|WxH"))
    """Size at which the network sees a frame: the source's own (native), N pixels on the shorter
    side, or W pixels by H."""
    fit: Literal["pad", "stretch"] | None = field(default=None, metadata=option(FRAMES))
    """How a frame is brought to that size: pad keeps its proportions and reflects its edges,
    stretch does not keep them. Unless given, stretch where the model takes one size only, else
    pad."""
    keep_size: bool = field(default=False, metadata=option(FRAMES))
    """Write frames at the network's size instead of the source's."""
    ss: float | None = field(
        default=None, metadata=option(FRAMES, metavar="TIME", least=0, applies_to=("video",))
    )
    """Start at this time of the source, counted from its first frame."""
    to: float | None = field(
        default=None, metadata=option(FRAMES, metavar="TIME", least=0, applies_to=("video",))
    )
    """End before this time of the source, counted from its first frame."""
    frames: int | None = field(
        default=None, metadata=option(FRAMES, metavar="N", least=1, applies_to=("video",))
    )
    """Translate at most this many frames of a video."""
    fps: str | None = field(
        default=None, metadata=option(FRAMES, metavar="RATE", applies_to=("pattern",))
    )
    """Frame rate of numbered images (``f_%06d.png``) that become a video, e.g. ``25`` or
    ``30000/1001``."""
    stream: int | None = field(
        default=None, metadata=option(FRAMES, metavar="N", least=0, applies_to=("video",))
    )
    """Index of the video stream in its container; the best one unless given."""
    color: str | None = field(
        default=None, metadata=option(FRAMES, metavar="MATRIX[:RANGE]", applies_to=("video",))
    )
    """Colour matrix and range of an untagged video, e.g. ``bt601:full``."""
    hdr: HdrChoice = field(default="tonemap", metadata=option(FRAMES))
    """What becomes of an HDR video or image (PQ, HLG): tonemap makes it SDR (BT.709) before the
    network, refuse is an error."""
    deinterlace: bool = field(default=False, metadata=option(FRAMES, applies_to=("video",)))
    """Deinterlace (bwdif) before the network, into one frame for two fields."""
    deinterlace_rate: Literal["frame", "field"] | None = field(
        default=None, metadata=option(FRAMES, applies_to=("video",))
    )
    """Deinterlace into one frame for two fields (frame) or a frame for each field (field)."""
    temporal: str = field(
        default="off",
        metadata=option(FRAMES, metavar="off|flow[:STRENGTH]", applies_to=("video",)),
    )
    """Reduce the flicker of a translated video: flow blends each frame with the one before it,
    moved along the optical flow of the source. STRENGTH is above 0 and at most 0.9, and 0.5 unless
    given; more of it leaves less flicker and less detail."""
    white: int | None = field(
        default=None,
        metadata=option(FRAMES, metavar="LEVEL", least=1, most=65535, applies_to=("image",)),
    )
    """Level of an image of more than 8 bits that becomes white, e.g. 4095 for 12 bits in 16; the
    largest of its type unless given."""

    container: Literal["same", "mp4", "mkv", "mov", "webm", "gif", "webp", "apng"] = field(
        default="same", metadata=option(VIDEO, applies_to=("video",))
    )
    """Container of videos and animated images that are written into a folder. same is the source's
    own, or mkv where that one cannot be written (.wmv, .mpg, .vob and others)."""
    codec: str | None = field(
        default=None, metadata=option(VIDEO, short="c", metavar="NAME", applies_to=("video",))
    )
    """Video encoder, by FFmpeg's name, or prores or dnxhr for editing; libx264 unless given, and
    libvpx-vp9 in WebM."""
    crf: float | None = field(
        default=None, metadata=option(VIDEO, metavar="N", applies_to=("video",))
    )
    """Quality of the video, lower is better; 18 for libx264 unless given, and the equivalent for
    other encoders."""
    preset: str | None = field(
        default=None, metadata=option(VIDEO, metavar="NAME", applies_to=("video",))
    )
    """Preset of the encoder, e.g. ``slow``."""
    pix_fmt: str | None = field(
        default=None, metadata=option(VIDEO, metavar="NAME", applies_to=("video",))
    )
    """Pixel format of the video; the nearest to the source's unless given."""
    encoder_opt: dict[str, str] = field(
        default_factory=dict, metadata=option(VIDEO, metavar="K=V", applies_to=("video",))
    )
    """Option of the encoder, e.g. ``bframes=2``; may be repeated."""
    audio: str = field(
        default="copy", metadata=option(VIDEO, metavar="copy|CODEC|none", applies_to=("video",))
    )
    """What becomes of the sound: copied as it is, encoded anew by an FFmpeg encoder such as aac,
    or left out."""

    format: Literal["same", "png", "jpg", "webp", "avif"] = field(
        default="same", metadata=option(IMAGES, applies_to=("image",))
    )
    """Format of images that are written into a folder or a tar. same is the source's own, or png
    where that one cannot be written."""
    quality: int | None = field(
        default=None,
        metadata=option(IMAGES, metavar="N", least=1, most=100, applies_to=("image", "animation")),
    )
    """Quality of jpg, webp and avif, 1 to 100; 95 unless given, and 80 for animated webp. webp is
    lossless at 100."""
    png_level: int | None = field(
        default=None,
        metadata=option(IMAGES, metavar="N", least=0, most=9, applies_to=("image", "animation")),
    )
    """Compression of png by zlib, from 0 (none) to 9 (smallest, slowest); a faster writer unless
    given."""
    tar_images: str | None = field(
        default=None, metadata=option(IMAGES, metavar="EXT[,EXT...]", applies_to=("tar",))
    )
    """In tars, translate only the members with these extensions, as WebDataset counts them: what
    follows the first dot, such as ``jpg`` or ``left.png``. Other images are carried on as they are.
    Every image that is read unless given."""

    on_error: Literal["skip", "fail"] = field(default="skip", metadata=option(ERRORS))
    """At a damaged frame, packet or file: go on without it and list it (skip), or end the job
    (fail)."""
    max_failures: int | None = field(default=None, metadata=option(ERRORS, metavar="N", least=0))
    """End the job after more than N failures."""
    strict: bool = field(default=False, metadata=option(ERRORS))
    """Fail where the container of the output cannot hold all of the source as it is, instead of
    leaving something out with a note."""
    max_pixels: int = field(
        default=MAX_PIXELS,
        metadata=option(ERRORS, metavar="N", least=1, applies_to=("image", "animation")),
    )
    """Refuse an image, still or animated, whose header declares more than N pixels."""

    overwrite: bool = field(default=False, metadata=option(RUN, short="y"))
    """Overwrite outputs that exist. Of earlier runs only those that are outdated, by other options,
    another model or a changed input, are made again."""
    skip_existing: bool = field(default=False, metadata=option(RUN, short="n"))
    """Leave outputs that exist, outdated ones too, and write the rest; so several processes can
    share an output folder."""
    resume: bool = field(default=True, metadata=option(RUN))
    """Go on with what an earlier run of the same job has done, by its journal in the hidden folder
    ``.cyclegan-batch`` beside the outputs. Without it everything is done anew, and what exists
    needs -y or -n."""
    workers: int | None = field(default=None, metadata=option(RUN, metavar="auto|N", least=1))
    """Processes that translate side by side and share the CPU. auto is what ``bench`` measured, but
    no more than the job has pieces, and one without a measurement or with ``--threads``."""
    gpus: str | None = field(default=None, metadata=option(RUN, metavar="LIST"))
    """GPUs by number, each with a process of its own: ``0,1``, or ``0,0`` for two on one GPU."""
    runner: Literal["local", "ray"] = field(default="local", metadata=option(RUN))
    """Where the work is done: on this machine (local), or by actors of a Ray cluster (ray). There
    ``--workers`` is the number of actors, as many as the cluster holds unless given, and
    ``--threads`` are the CPUs of each."""
    ray_address: str | None = field(default=None, metadata=option(RUN, metavar="ADDRESS"))
    """The Ray cluster: HOST:PORT, ray://HOST:PORT, auto for one that runs on this machine, or local
    for one that this command starts and ends. Unless given, that of ``RAY_ADDRESS``, else one that
    runs here, else local."""
    ray_gpus: float | None = field(default=None, metadata=option(RUN, metavar="N", least=0.01))
    """GPUs of each actor where the device is one, 1 unless given; with 0.5 two actors share a
    GPU."""
    hash_inputs: bool = field(default=False, metadata=option(RUN))
    """Recognise an input that has changed since an earlier run by its content, which is read for
    that, instead of by its size and time."""
    copy_others: bool = field(default=False, metadata=option(RUN))
    """Copy labels and other files of an input folder along."""
    shard: str | None = field(default=None, metadata=option(RUN, metavar="I/N"))
    """Translate only part I of N parts of the inputs, ``1/4`` to ``4/4``, so that N machines share
    a job."""
    cache_dir: Path | None = field(default=None, metadata=option(RUN, metavar="FOLDER"))
    """Where exported checkpoints, TensorRT engines and what ``bench`` measured are kept;
    ``cyclegan-batch doctor`` prints the usual place."""
    compare: ComparisonLayout | None = field(
        default=None, metadata=option(RUN, applies_to=("video", "image"))
    )
    """Also write source and result of each video or image as one picture, OUTPUT.compare.EXT: left
    and right of a line, which moves in a video (split), next to each other (side), or one above the
    other (stack)."""
    preview: int | None = field(default=None, metadata=option(RUN, metavar="N", least=1))
    """Only write a sheet of N frames, each source above its result, as OUTPUT.preview.png."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value that its option cannot have."""
        check_values(self)
        if self.size != "native":
            sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
            if len(sides) != 2 or not all(isinstance(n, Integral) and n >= 1 for n in sides):
                raise ValueError(
                    f"size must be 'native', the shorter side or (height, width), got {self.size!r}"
                )
        if self.gpus is not None:
            count = len(gpu_numbers(self.gpus))
            if self.workers not in (None, count) or self.device in ("cpu", "webgpu"):
                raise ValueError(
                    f"gpus {self.gpus} stand for {count} processes on GPUs, which workers and "
                    "device contradict; leave these out"
                )
        if self.runner == "local":
            for name in ("ray_address", "ray_gpus"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for runner ray, and the runner is local")
        elif self.device == "webgpu":
            raise ValueError("runner ray takes CPUs or NVIDIA GPUs; leave device webgpu out")
        elif self.gpus is not None:
            raise ValueError(
                "gpus names those of this machine, and runner ray takes those of a cluster; use "
                "device cuda, workers and ray_gpus"
            )
        if self.overwrite and self.skip_existing:
            raise ValueError("overwrite and skip_existing contradict each other; choose one")
        _ = self.part, self.tar_extensions, self.temporal_strength

    @property
    def part(self) -> tuple[int, int]:
        """Which part of the inputs is translated, from 1, and of how many; (1, 1) is all.

        Raises ValueError where ``shard`` is no such part.
        """
        if self.shard is None:
            return 1, 1
        numbers = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", str(self.shard))
        number, parts = map(int, numbers.groups()) if numbers else (0, 0)
        if not 1 <= number <= parts:
            raise ValueError(
                f"shard must be I/N, a part from 1 and the number of parts, got {self.shard!r}"
            )
        return number, parts

    @property
    def tar_extensions(self) -> tuple[str, ...]:
        """The extensions of ``tar_images`` in lower case, sorted; empty for every image.

        Raises ValueError where ``tar_images`` is no list of extensions.
        """
        if self.tar_images is None:
            return ()
        extensions = str(self.tar_images).lower().split(",")
        part = r"""[^\s./,*?'"()\[\]{}]+"""
        if not all(re.fullmatch(rf"{part}(\.{part})*", each) for each in extensions):
            raise ValueError(
                "tar_images must be extensions between commas, without a first dot, such as "
                f"jpg,left.png, got {self.tar_images!r}"
            )
        return tuple(sorted(set(extensions)))

    @property
    def temporal_strength(self) -> float:
        """The strength of the filter against flicker; 0.0 where it is off.

        Raises ValueError where ``temporal`` is neither off nor a filter with a strength.
        """
        if self.temporal == "off":
            return 0.0
        number = re.fullmatch(r"flow(?::([0-9]*\.?[0-9]+))?", str(self.temporal))
        strength = float(number[1] or DEFAULT_STRENGTH) if number else 0.0
        if not 0.0 < strength <= MOST_STRENGTH:
            raise ValueError(
                f"temporal must be off, flow or flow:STRENGTH with a strength above 0 and at most "
                f"{MOST_STRENGTH:g}, got {self.temporal!r}"
            )
        return strength

    @property
    def replacing(self) -> TranslateOptions:
        """These options for outputs that this job may replace, whatever they say of others."""
        return replace(self, overwrite=True, skip_existing=False)

    @property
    def deinterlaces(self) -> bool:
        """Whether frames are made of the fields, at either rate."""
        return self.deinterlace or self.deinterlace_rate is not None


def gpu_numbers(gpus: str) -> tuple[int, ...]:
    """Return the numbers in a list of GPUs, ``0,1``. Raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3})*", gpus):
        raise ValueError(f"gpus must be numbers between commas, such as 0,1, got {gpus!r}")
    return tuple(map(int, gpus.split(",")))
