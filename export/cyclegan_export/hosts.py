"""The other programs that run an exported generator, and the files that each of them reads.

A bundle for a host holds the ONNX in the form that the host takes, its own configuration, golden
frames and the script `verify`. What a host accepts was read in its source or its documentation,
which each writer of files names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import FileIO, Size
from cyclegan_batch.models.card import ModelCard
from cyclegan_batch.models.graphs.contract import INPUT, OUTPUT
from cyclegan_batch.wording import printable

_TRITON_BATCH = 8
"""The most frames that Triton's server puts into one call, where the file leaves that free."""


@dataclass(frozen=True)
class Host:
    """A program that a bundle is for."""

    name: str
    expects: str
    """What must be installed, in words."""
    io: FileIO
    """What its file takes and returns."""
    files: Callable[[ModelCard, Size], Mapping[str, str]]
    """Returns its own files for a model and the size of the golden frames: text by path."""
    use: str
    """How it is used, in one line."""
    run: str
    """What has run such a bundle, in words."""
    onnx: str = "model.onnx"
    """The place of the ONNX in the bundle."""
    one_frame: bool = True
    """Whether it gives the network one frame a call."""
    has_size: bool = False
    """Whether its files name the only size of frames, to which it scales others."""


def check_host(host: Host, card: ModelCard) -> None:
    """Refuse a model that ``host`` does not take. Raises ModelError."""
    found = card.planar or card.pixel_type
    name = printable(card.path)
    if found != host.io:
        raise ModelError(
            f"{name}: takes {found}, and {host.name} takes {host.io}; give the checkpoint that it "
            "was exported from"
        )
    if host.one_frame and card.batch not in (None, 1):
        raise ModelError(
            f"{name}: takes {card.batch} frames at a time, and {host.name} gives it one; export it "
            "with a --shape of one frame, or without"
        )


def _ffmpeg(card: ModelCard, size: Size) -> dict[str, str]:
    """Return FFmpeg's filters.

    dnn_processing pads nothing and refuses frames of another size than the file's
    (libavfilter/vf_dnn_processing.c and dnn/dnn_backend_onnx.c at 1ae4048, 2026): rank 4, float32,
    N free or 1, the pixels of rgb24 divided by 255 as planes R, G and B.
    """
    if card.sizes.fixed is not None:
        height, width = card.sizes.fixed
        fit = f"scale={width}:{height}:flags=bicubic,"
    elif card.sizes.multiple_of > 1:
        step = card.sizes.multiple_of
        fit = f"crop=trunc(iw/{step})*{step}:trunc(ih/{step})*{step},"
    else:
        fit = ""
    filters = (
        f"{fit}format=rgb24,"
        f"dnn_processing=dnn_backend=onnx:model=model.onnx:input={INPUT}:output={OUTPUT}"
    )
    return {"filter.txt": filters + "\n"}


def _vapoursynth(card: ModelCard, size: Size) -> dict[str, str]:
    """Return VapourSynth's script.

    vs-mlrt's vsort takes a clip of RGBS, whose planes are the channels of a file of float32
    (vsort/vs_onnxruntime.cpp).
    """
    return {
        "translate.vpy": _SCRIPT.replace("@MULTIPLE@", str(card.sizes.multiple_of))
        .replace("@MINIMUM@", str(card.sizes.minimum))
        .replace("@FIXED@", str(card.sizes.fixed))
    }


_SCRIPT = '''"""Translate a clip with model.onnx, by vs-mlrt's plug-in for ONNX Runtime.

    vspipe -c y4m -a source=IN.mkv translate.vpy - | ffmpeg -i - OUT.mkv

``source`` is read by BestSource. A script of your own may call ``translated`` with any clip:

    translated = runpy.run_path("translate.vpy")["translated"]
"""

import pathlib

import vapoursynth as vs

core = vs.core

MODEL = pathlib.Path(__file__).with_name("model.onnx")
FIXED_SIZE = @FIXED@  # height and width, or None for any
STEP = @MULTIPLE@  # both sides are padded to a multiple of this, at least to LEAST
LEAST = @MINIMUM@
PROVIDER = "CPU"  # or "CUDA"


def translated(clip):
    """Return a clip of one size and one format translated, in RGB of 8 bits."""
    width, height = clip.width, clip.height
    clip = as_rgb(clip)
    if FIXED_SIZE is not None:
        clip = clip.resize.Bicubic(width=FIXED_SIZE[1], height=FIXED_SIZE[0])
    else:
        clip = padded(clip)
    clip = core.ort.Model(clip, network_path=str(MODEL), provider=PROVIDER)
    if FIXED_SIZE is not None:
        clip = clip.resize.Bicubic(width=width, height=height)
    else:
        clip = clip.std.CropAbs(width=width, height=height)
    return clip.resize.Point(format=vs.RGB24, dither_type="none")


def as_rgb(clip):
    """Return a clip in RGB of floats in 0 to 1, by BT.709 or BT.601 where it names no matrix."""
    if clip.format.color_family == vs.RGB:
        return clip.resize.Point(format=vs.RGBS)
    unnamed = clip.get_frame(0).props.get("_Matrix", 2) == 2
    matrix = {"matrix_in_s": "709" if clip.height >= 720 else "170m"} if unnamed else {}
    return clip.resize.Bicubic(format=vs.RGBS, **matrix)


def padded(clip):
    """Return a clip with its right and lower edges reflected up to sizes that the network takes."""
    width, height = (-(-max(side, LEAST) // STEP) * STEP for side in (clip.width, clip.height))
    while clip.width < width:
        more = min(width - clip.width, clip.width - 1)
        edge = clip.std.FlipHorizontal().std.CropAbs(more, clip.height, left=1)
        clip = core.std.StackHorizontal([clip, edge])
    while clip.height < height:
        more = min(height - clip.height, clip.height - 1)
        edge = clip.std.FlipVertical().std.CropAbs(clip.width, more, top=1)
        clip = core.std.StackVertical([clip, edge])
    return clip


if "source" in globals():
    result = translated(core.bs.VideoSource(source))  # noqa: F821 (vspipe -a source=...)
    result.resize.Bicubic(format=vs.YUV444P8, matrix_s="709").set_output()
'''


def _triton(card: ModelCard, size: Size) -> dict[str, str]:
    """Return the configuration of a model in Triton's repository (its protobuf ModelConfig)."""
    sides = [-1, -1] if card.sizes.fixed is None else list(card.sizes.fixed)
    frame = list(size)
    most = _TRITON_BATCH
    if card.batch is not None:
        # Triton's own batches are of any size.
        most, sides, frame = 0, [card.batch, *sides], [card.batch, *frame]
    kind = "TYPE_UINT8" if card.pixel_type == "uint8" else "TYPE_FP16"
    lines = ['name: "generator"', 'platform: "onnxruntime_onnx"', f"max_batch_size: {most}"]
    for which, name in (("input", INPUT), ("output", OUTPUT)):
        lines += [f'{which} [ {{ name: "{name}" data_type: {kind} dims: {[*sides, 3]} }} ]']
    if most:
        lines += ["dynamic_batching { }"]
    lines += [
        "# The first call of a size is slow: name the sizes of your frames here.",
        "model_warmup [ {",
        f'  name: "{size[1]}x{size[0]}"',
        "  batch_size: 1",
        f'  inputs {{ key: "{INPUT}" value {{',
        f"    data_type: {kind} dims: {[*frame, 3]} random_data: true",
        "  } }",
        "} ]",
    ]
    return {"models/generator/config.pbtxt": "\n".join(lines) + "\n"}


def _deepstream(card: ModelCard, size: Size) -> dict[str, str]:
    """Return the configuration of nvinfer.

    Its keys: "Gst-nvinfer File Configuration Specifications" in NVIDIA's DeepStream guide, and
    gstnvinfer_property_parser.h. It computes ``net-scale-factor * (x - offsets)`` and passes
    planes; of a network of type 100 it interprets nothing and attaches the output as metadata.
    """
    height, width = size
    return {
        "config_infer.txt": f"""[property]
gpu-id=0
gie-unique-id=1
process-mode=1
onnx-file=model.onnx
model-engine-file=model.onnx_b1_gpu0_fp32.engine
batch-size=1
# 0: fp32, 2: fp16. In fp16 TensorRT may compute the norms in fp16, too: verify it again.
network-mode=0
network-type=100
output-tensor-meta=1
output-blob-names={OUTPUT}
infer-dims=3;{height};{width}
network-input-order=0
# RGB
model-color-format=0
net-scale-factor=0.00392156862745098
offsets=0;0;0
maintain-aspect-ratio=0
"""
    }


HOSTS: dict[str, Host] = {
    "ffmpeg": Host(
        "FFmpeg",
        "FFmpeg 9.0 or later, configured with ONNX Runtime",
        "nchw-float32",
        _ffmpeg,
        "ffmpeg -i IN.mp4 -/filter:v filter.txt -c:a copy OUT.mp4   (in this folder)",
        "FFmpeg has not run this bundle: a stand-in with the rules of its source has",
    ),
    "vapoursynth": Host(
        "VapourSynth",
        "pip install vapoursynth vapoursynth-mlrt-ort vapoursynth-bestsource, "
        "then vapoursynth config",
        "nchw-float32",
        _vapoursynth,
        "vspipe -c y4m -a source=IN.mkv translate.vpy - | ffmpeg -i - OUT.mkv",
        "VapourSynth R81 with vapoursynth-mlrt-ort 17.1.1 has run such a bundle, on a CPU",
    ),
    "triton": Host(
        "Triton",
        "NVIDIA's Triton Inference Server with its backend for ONNX Runtime",
        "uint8",
        _triton,
        "tritonserver --model-repository=models   (in this folder; verify.py asks this server)",
        "Triton has not run this bundle: only its client's library has read the configuration",
        onnx="models/generator/1/model.onnx",
        one_frame=False,
    ),
    "deepstream": Host(
        "DeepStream",
        "NVIDIA's DeepStream 7.1 or later (TensorRT 10.3)",
        "nchw-float32",
        _deepstream,
        "nvinfer config-file-path=config_infer.txt   (the picture is the tensor in the metadata)",
        "DeepStream has not run this bundle: the keys in its file are those of NVIDIA's list",
        has_size=True,
    ),
}
"""By the value of ``--bundle``."""
