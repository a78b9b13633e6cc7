"""Write a generator as a folder from which an edge device makes its own engine, and proves it.

An engine fits the GPU and the TensorRT that built it, and none crosses from x86-64 to a Jetson: so
none is in a bundle. There are the ONNX, golden frames with what torch makes of them, and `edge`, a
script that needs nothing but trtexec and Python's standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import onnx

from cyclegan_batch import __version__
from cyclegan_batch.backends.onnxruntime import open_onnxruntime
from cyclegan_batch.errors import ModelError, OutputError
from cyclegan_batch.files import output_error, temporary_path
from cyclegan_batch.frames import Pixels
from cyclegan_batch.machine import cpu_threads
from cyclegan_batch.models.checkpoint_files import find_checkpoint, is_checkpoint
from cyclegan_batch.models.checkpoints import load_generator
from cyclegan_batch.models.engine_card import Profile, Shape, profile_for
from cyclegan_batch.models.model import Model, ModelCard, describe, open_model
from cyclegan_batch.models.parity import LIMITS, parity
from cyclegan_batch.options import Direction, FilePrecision
from cyclegan_batch.wording import printable

from . import edge
from .engine_export import check_precision, contract_file
from .gate import translated_by_torch
from .onnx_export import export_onnx
from .options import Target
from .samples import samples_for

BUNDLE_VERSION = 1

_USUAL_SIZE = 256

_HALF = {"psnr": 50.0, "within2": 0.999}
"""The class *half* (`cyclegan_batch.models.parity`), for FP16 and FP32 alike, since TensorRT may
compute FP32 as TF32."""


@dataclass(frozen=True)
class _Device:
    """What a target implies."""

    name: str
    expects: str
    opset: int | None
    """The newest opset that its TensorRT reads, where that is known."""


DEVICES: dict[str, _Device] = {
    "jetson-orin": _Device("a Jetson Orin", "JetPack 6 (TensorRT 10.3) or later", 20),
    "jetson-thor": _Device("a Jetson Thor", "JetPack 7 (TensorRT 10.13) or later", None),
    "generic": _Device("a machine with an NVIDIA GPU", "TensorRT 10.3 or later", 20),
}


def export_bundle(
    source: Path,
    folder: Path,
    *,
    target: Target,
    min_shape: Shape | None = None,
    opt_shape: Shape | None = None,
    max_shape: Shape | None = None,
    precision: FilePrecision | None = None,
    direction: Direction | None = None,
    samples: Path | None = None,
    verify: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
    **onnx_options: Any,
) -> Path:
    """Write the generator at ``source`` to ``folder`` as a bundle for ``target``; return it.

    ``source`` is what `export_onnx` takes, or an ONNX that is inside the contract already, which is
    taken as it is (``precision`` None: that file's, else fp16). The shapes (N, H, W) are the frames
    that the engine will take; the size it was trained at where none is given. The rest is as for
    `export_onnx`. Raises ModelError, BackendError, InputError, OutputError; nothing is left in
    ``folder`` then.
    """
    _check_folder(folder, overwrite=overwrite)
    if precision == "int8":
        _refuse_int8(source, "--precision int8 was asked for")
    _check_pixels(source, onnx_options.get("io", "uint8"))
    work = temporary_path(folder)
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        model = contract_file(source)
        if model is None:
            export_onnx(
                source,
                work / "model.onnx",
                direction=direction,
                precision=precision or "fp16",
                samples=samples,
                verify=verify,
                say=lambda sentence: say(sentence.replace(printable(work), printable(folder))),
                **onnx_options,
            )
        else:
            check_precision(model, precision)
            if model.card.precision == "int8":
                _refuse_int8(source, "is in int8")
            (work / "model.onnx").write_bytes(model.graph)
        _fill(work, source, target, (min_shape, opt_shape, max_shape), direction, samples, say)
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(work)
    say(f"{printable(folder)}: a bundle for {DEVICES[target].name}; README.txt says how to use it")
    return folder


def _fill(
    work: Path,
    source: Path,
    target: Target,
    shapes: tuple[Shape | None, Shape | None, Shape | None],
    direction: Direction | None,
    samples: Path | None,
    say: Callable[[str], None],
) -> None:
    """Write what lies beside ``model.onnx`` in ``work``."""
    model = open_model(work / "model.onnx")
    card, device = model.card, DEVICES[target]
    proto = onnx.ModelProto.FromString(model.graph)
    opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    if device.opset is not None and opset > device.opset:
        raise ModelError(
            f"{printable(source)}: is of ONNX opset {opset}, and {device.expects} reads up to "
            f"{device.opset}; export the checkpoint with this version"
        )
    profile = _profile(card, shapes, say)
    golden = _golden(source, model, profile, direction, samples)
    said = describe(card) | {"path": "model.onnx"}
    fixed = card.sizes.fixed is not None and card.batch is not None
    # trtexec takes no shapes for a file that has one.
    bounds = {"min": profile.min, "opt": profile.opt, "max": profile.max}
    described = {
        "bundle_version": BUNDLE_VERSION,
        "tool_version": __version__,
        "target": target,
        "expects": device.expects,
        "onnx_sha256": model.graph_sha256,
        "shapes": None if fixed else {key: [*shape, 3] for key, shape in bounds.items()},
        "golden": {
            "input": "golden_input.bin",
            "output": "golden_output.bin",
            "shape": list(golden.frames.shape),
            "dtype": "uint8",
            "input_sha256": hashlib.sha256(golden.frames.tobytes()).hexdigest(),
            "output_sha256": hashlib.sha256(golden.expected.tobytes()).hexdigest(),
            "frames": golden.said,
            "computed_by": golden.by,
        },
        "rule": _HALF,
        "model": said,
    }
    (work / "golden_input.bin").write_bytes(golden.frames.tobytes())
    (work / "golden_output.bin").write_bytes(golden.expected.tobytes())
    (work / "card.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(edge.__file__, work / "edge.py")
    (work / "README.txt").write_text(_readme(device, card, profile, golden), encoding="utf-8")


@dataclass(frozen=True)
class _Golden:
    """Frames, and what an engine must make of them."""

    frames: Pixels
    """``(N, H, W, 3)`` uint8."""
    expected: Pixels
    said: str
    """What the frames are, in words."""
    by: str
    """What computed the expected ones, in words."""


def _golden(
    source: Path, model: Model, profile: Profile, direction: Direction | None, samples: Path | None
) -> _Golden:
    """Compute the golden frames, and hold the file to them. Raises ModelError."""
    card = model.card
    _check_pixels(source, card.pixel_type)
    side = card.trained_size or _USUAL_SIZE
    height, width = (
        min(max(side, low), high)
        for low, high in zip(profile.min[1:], profile.max[1:], strict=True)
    )
    size = card.sizes.smallest_fit((height, width))
    checkpoint = find_checkpoint(source, direction).path if is_checkpoint(source) else None
    shown = samples_for(samples, checkpoint or source, size, profile.min[0])
    opened = open_onnxruntime(
        model, device="cpu", precision="auto", threads=cpu_threads(), contexts=1
    )
    drawn = opened.infer(shown.frames)
    opened.close()
    if checkpoint is None:
        return _Golden(shown.frames, drawn, shown.said, "onnxruntime's CPU from this model.onnx")
    loaded = load_generator(checkpoint)
    channels = loaded.config.input_nc
    expected = translated_by_torch(loaded.network, shown.frames, channels=channels)
    found = parity(drawn, expected)
    if not found.reaches("half"):
        raise ModelError(
            f"{printable(source)}: on the golden frames its ONNX is {found} against torch in fp32, "
            f"where half is expected ({LIMITS['half']}); choose other --samples"
        )
    return _Golden(shown.frames, expected, shown.said, "torch in fp32 from the checkpoint")


def _profile(
    card: ModelCard,
    shapes: tuple[Shape | None, Shape | None, Shape | None],
    say: Callable[[str], None],
) -> Profile:
    fixed = card.sizes.fixed is not None and card.batch is not None
    if any(shapes) or fixed:
        return profile_for(card, *shapes)
    side = card.trained_size or _USUAL_SIZE
    only = (card.batch or 1, *card.sizes.smallest_fit((side, side)))
    say(
        f"its engine will take frames of {','.join(map(str, only))} (N,H,W); --opt-shape for others"
    )
    return Profile(only, only, only)


def _check_pixels(source: Path, pixel_type: str) -> None:
    if pixel_type != "uint8":
        raise ModelError(
            f"{printable(source)}: a bundle takes uint8 pixels, and {pixel_type} was found; export "
            "it with --io uint8"
        )


def _refuse_int8(source: Path, found: str) -> NoReturn:
    raise ModelError(
        f"{printable(source)}: {found}, and a bundle is fp32 or fp16: a device chooses its own "
        "int8 kernels, whose pictures were never measured; export it in fp16"
    )


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be meant, before the work. Raises OutputError."""
    name = printable(folder)
    if not folder.absolute().parent.is_dir():
        raise OutputError(
            f"cannot write {name}: the folder it is to lie in does not exist; create it first"
        )
    if not folder.exists():
        return
    if not overwrite:
        raise OutputError(f"cannot write {name}: it exists already; pass -y to overwrite it")
    try:
        ours = "bundle_version" in json.loads((folder / "card.json").read_bytes())
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise OutputError(
            f"cannot write {name}: it exists and is no bundle, so it is not overwritten; choose "
            "another folder"
        )


def _readme(device: _Device, card: ModelCard, profile: Profile, golden: _Golden) -> str:
    return f"""A CycleGAN generator for {device.name}: {device.expects}.

1. Copy this folder to the device:       scp -r . device:generator
2. Build the engine there, once:         python3 edge.py build
3. Prove it before you use it:           python3 edge.py verify

An engine fits the GPU and the TensorRT that built it. None is shipped: it is made on the device,
and made again after an update of JetPack or TensorRT.

model.onnx         {card.architecture}, {card.precision}; takes frames of {profile} (N,H,W)
                   input 'frames', output 'translated': RGB, (N, H, W, 3), uint8
card.json          what it is, and what edge.py does
golden_input.bin   {golden.said}, {"x".join(map(str, golden.frames.shape))}, raw
golden_output.bin  what the engine must make of them: {golden.by}
edge.py            needs trtexec and Python 3.8 or newer, nothing else

The engine passes if it comes as close as half precision should: {LIMITS["half"]}.
Other frame sizes: export the bundle with --min-shape, --opt-shape and --max-shape.
A DLA is not used: it takes fixed shapes only and has no layer for this network's normalisation, so
that the GPU would have to take over after every convolution. (A Jetson Thor has none.)
"""
