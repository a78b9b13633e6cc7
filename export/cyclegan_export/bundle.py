"""Write a bundle: a folder from which an edge device or another program runs a generator.

It holds the ONNX, golden frames with their translation by torch, and a script that needs only
Python's standard library and its host, and verifies there that the same pictures come out.

A bundle for an edge device has the script `edge`, which builds its engine by trtexec: an engine
fits only the GPU and the TensorRT that built it, and none can be moved from x86-64 to a Jetson. One
for another program (`hosts`) has its configuration file, and the script `verify`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import onnx

from cyclegan_batch._version import __version__
from cyclegan_batch.backends.onnxruntime import open_onnxruntime
from cyclegan_batch.backends.tensorrt.jetpack import JETPACKS, version_of
from cyclegan_batch.errors import ContradictionError, ModelError, OutputError
from cyclegan_batch.files import output_error, temporary_path
from cyclegan_batch.frames import BatchShape, FileIO, Pixels, Size
from cyclegan_batch.machine import cpu_threads
from cyclegan_batch.models.card import ModelCard, describe
from cyclegan_batch.models.checkpoints.files import Selection, find_checkpoint, is_checkpoint
from cyclegan_batch.models.checkpoints.loading import load_generator
from cyclegan_batch.models.engine_card import Profile, profile_for
from cyclegan_batch.models.model import Model
from cyclegan_batch.models.parity import LIMITS, ParityClass, parity
from cyclegan_batch.options import Direction, FilePrecision
from cyclegan_batch.wording import printable

from . import edge
from . import verify as verify_script
from .engine_export import check_unchanged, contract_file
from .gate import translated_by_torch
from .hosts import HOSTS, Host, check_host
from .onnx_export import USUAL_SIZE, build_onnx, summary
from .options import Target
from .samples import samples_for

BUNDLE_VERSION = 1

_VERIFY_RULES: dict[ParityClass, dict[str, float]] = {
    "half": {"psnr": 50.0, "within2": 0.999},
    "coarse": {"psnr": 35.0, "within2": 0.0},
}
"""The least PSNR in dB, and the least share within two levels, of a class."""


@dataclass(frozen=True)
class _Device:
    """The devices of a target."""

    name: str
    expects: str
    """The software that the device must have."""
    tensorrt: str
    """The oldest TensorRT that it may have."""
    opset: int | None
    """The newest opset that its TensorRT reads, where that is known."""


_ORIN, _THOR = JETPACKS[:2]

DEVICES: dict[str, _Device] = {
    "jetson-orin": _Device("a Jetson Orin", f"{_ORIN.words} or later", _ORIN.tensorrt, 20),
    "jetson-thor": _Device("a Jetson Thor", f"{_THOR.words} or later", _THOR.tensorrt, None),
    "generic": _Device(
        "a machine with an NVIDIA GPU", f"TensorRT {_ORIN.tensorrt} or later", _ORIN.tensorrt, 20
    ),
}


def export_bundle(
    source: Path,
    folder: Path,
    *,
    target: Target,
    min_shape: BatchShape | None = None,
    opt_shape: BatchShape | None = None,
    max_shape: BatchShape | None = None,
    precision: FilePrecision | None = None,
    io: FileIO | None = None,
    direction: Direction | None = None,
    weights: str | None = None,
    family: str | None = None,
    samples: Path | None = None,
    verify: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
    **onnx_options: Any,
) -> Path:
    """Write the generator at ``source`` to ``folder`` as a bundle for ``target``; return that.

    ``source`` is as for `export_onnx`, or an ONNX of the contract or a planar one, which is copied
    unchanged (``precision`` None: that of the file, else fp16 for a device and fp32 for another
    program). ``io`` is what the target takes, and may be None. The shapes (N, H, W) are those of
    the frames that the engine of a device will accept, by default the size that the generator was
    trained at; DeepStream takes ``opt_shape``, and the other programs take frames of any size. The
    other options are as for `export_onnx`. Raises ContradictionError, ModelError, BackendError,
    InputError, OutputError; nothing is written to ``folder`` then.
    """
    _check_folder(folder, overwrite=overwrite)
    host = HOSTS.get(target)
    takes: FileIO = host.io if host else "uint8"
    if io not in (None, takes):
        raise ContradictionError(
            f"--bundle {target} sets --io {takes}, and --io {io} was given; leave --io out"
        )
    if host and precision == "int8":
        _refuse_int8(source, host)
    selection = Selection(direction, weights, family)
    model = contract_file(source, selection)
    if model is None:
        output = folder / "model.onnx"
        onnx_options["for_"] = "tensorrt" if precision == "int8" else onnx_options.get("for_")
        model = build_onnx(
            source,
            output,
            selection=selection,
            precision=precision or ("fp32" if host else "fp16"),
            io=takes,
            samples=samples,
            verify=verify,
            say=say,
            **onnx_options,
        ).model
        say(summary(output, model))
    else:
        check_unchanged(model, {"precision": precision, **onnx_options})
    shapes = (min_shape, opt_shape, max_shape)
    card = model.card
    if host:
        if card.precision == "int8":
            _refuse_int8(source, host)
        check_host(host, card)
        size = _size_for(host, card, target, shapes)
        golden = _golden(source, model, card.batch or 1, size, selection, samples)
        with _writing_folder(folder) as work:
            _fill_for_host(work, model, target, host, golden)
    else:
        _check_pixels(source, card.planar or card.pixel_type)
        _check_opset(source, model, DEVICES[target])
        if card.precision == "fp32" and precision is None:
            say(
                f"{printable(source)}: is taken as it is, so the engine will compute in fp32; give "
                "the checkpoint for one in fp16"
            )
        profile = _profile(card, shapes, say)
        size = _trained_size(card, profile)
        golden = _golden(source, model, profile.min[0], size, selection, samples)
        with _writing_folder(folder) as work:
            _fill(work, model, target, profile, golden)
    name = host.name if host else DEVICES[target].name
    say(f"{printable(folder)}: a bundle for {name}; README.txt says how to use it")
    return folder


@contextlib.contextmanager
def _writing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which replaces ``folder`` when the block ends without an error.

    Raises OutputError, also for an OSError of the block.
    """
    work = temporary_path(folder)  # not files.writing, which publishes a file
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(work)


def _check_opset(source: Path, model: Model, device: _Device) -> None:
    """Refuse an opset that is too new for ``device``. Raises ModelError."""
    proto = onnx.ModelProto.FromString(model.graph)
    opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    if device.opset is not None and opset > device.opset:
        raise ModelError(
            f"{printable(source)}: is of ONNX opset {opset}, and {device.expects} reads up to "
            f"{device.opset}; export the checkpoint with this version"
        )


def _fill(work: Path, model: Model, target: Target, profile: Profile, golden: _Golden) -> None:
    """Write the files of a bundle to the folder ``work``."""
    card, device = model.card, DEVICES[target]
    # trtexec rejects shapes for a file of fixed shape.
    fixed = card.sizes.fixed is not None and card.batch is not None
    bounds = {"min": profile.min, "opt": profile.opt, "max": profile.max}
    description = {
        "bundle_version": BUNDLE_VERSION,
        "tool_version": __version__,
        "target": target,
        "expects": device.expects,
        "least_tensorrt": list(version_of(device.tensorrt)),
        "onnx_sha256": model.graph_sha256,
        "shapes": None if fixed else {key: [*shape, 3] for key, shape in bounds.items()},
        "golden": golden.fields,
        "rule": _VERIFY_RULES[_class(card)],
        "model": describe(replace(card, path=Path("model.onnx"), digest=model.graph_sha256)),
    }
    (work / "model.onnx").write_bytes(model.graph)
    golden.write(work)
    (work / "card.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(edge.__file__, work / "edge.py")
    (work / "README.txt").write_text(_readme(device, card, profile, golden), encoding="utf-8")


def _fill_for_host(work: Path, model: Model, target: Target, host: Host, golden: _Golden) -> None:
    """Write the files of a bundle for another program to the folder ``work``."""
    digest = hashlib.sha256(model.content).hexdigest()
    description = {
        "bundle_version": BUNDLE_VERSION,
        "tool_version": __version__,
        "target": target,
        "expects": host.expects,
        "onnx": host.onnx,
        "onnx_sha256": digest,
        "golden": golden.fields,
        "rule": _VERIFY_RULES[_class(model.card)],
        "model": describe(replace(model.card, path=Path(host.onnx), digest=digest)),
    }
    (work / host.onnx).parent.mkdir(parents=True, exist_ok=True)
    (work / host.onnx).write_bytes(model.content)
    size: Size = golden.frames.shape[1:3]
    for name, text in host.files(model.card, size).items():
        (work / name).write_text(text, encoding="utf-8")
    golden.write(work)
    (work / "card.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(verify_script.__file__, work / "verify.py")
    (work / "README.txt").write_text(
        f"A CycleGAN generator for {host.name}: {host.expects}.\n"
        f"Verify it there first: python3 verify.py   ({host.run}.)\n"
        f"Use it: {host.use}\n",
        encoding="utf-8",
    )


@dataclass(frozen=True)
class _Golden:
    """Frames and their expected translation."""

    frames: Pixels
    """``(N, H, W, 3)`` uint8."""
    expected: Pixels
    description: str
    """The frames in words."""
    computed_by: str
    """The origin of the expected translation, in words."""

    @property
    def fields(self) -> dict[str, object]:
        """What card.json says of them."""
        return {
            "input": "golden_input.bin",
            "output": "golden_output.bin",
            "shape": list(self.frames.shape),
            "dtype": "uint8",
            "input_sha256": hashlib.sha256(self.frames.tobytes()).hexdigest(),
            "output_sha256": hashlib.sha256(self.expected.tobytes()).hexdigest(),
            "frames": self.description,
            "computed_by": self.computed_by,
        }

    def write(self, folder: Path) -> None:
        """Write both files."""
        (folder / "golden_input.bin").write_bytes(self.frames.tobytes())
        (folder / "golden_output.bin").write_bytes(self.expected.tobytes())


def _trained_size(card: ModelCard, profile: Profile) -> Size:
    """Return the size that the generator was trained at, as far as the engine accepts it."""
    side = card.trained_size or USUAL_SIZE
    height, width = (
        min(max(side, low), high)
        for low, high in zip(profile.min[1:], profile.max[1:], strict=True)
    )
    return card.sizes.smallest_fit((height, width))


def _size_for(
    host: Host,
    card: ModelCard,
    target: Target,
    shapes: tuple[BatchShape | None, BatchShape | None, BatchShape | None],
) -> Size:
    """Return the size of the golden frames for ``host``. Raises ContradictionError, ModelError."""
    smallest, tuned, largest = shapes
    if host.has_size and tuned and not smallest and not largest:
        if tuned[0] != 1:
            raise ContradictionError(
                f"--opt-shape {','.join(map(str, tuned))}: {host.name} gives the network one frame "
                "a call; let N be 1"
            )
        return profile_for(card, None, tuned, None).opt[1:]
    if any(shapes):
        only = "one size, which --opt-shape names" if host.has_size else "frames of any size"
        raise ContradictionError(
            f"--bundle {target}: {host.name} takes {only}; leave "
            f"{'--min-shape and --max-shape' if host.has_size else 'the shapes'} out"
        )
    side = card.trained_size or USUAL_SIZE
    return card.sizes.smallest_fit((side, side))


def _golden(
    source: Path,
    model: Model,
    count: int,
    size: Size,
    selection: Selection,
    samples: Path | None,
) -> _Golden:
    """Return ``count`` golden frames. Raises ModelError where the model misses its class on them.

    They are of uint8, and so is what is expected, also where the host takes planes.
    """
    card = model.card
    direction, checkpoint = selection.direction or card.direction, None
    if is_checkpoint(source):
        checkpoint = find_checkpoint(source, selection.direction).path
    golden_samples = samples_for(samples, checkpoint or source, direction, size, count)
    frames, description = golden_samples.frames, golden_samples.description
    backend = open_onnxruntime(model, threads=cpu_threads(), contexts=1)
    translated = backend.infer(frames)
    backend.close()
    if checkpoint is None:
        return _Golden(frames, translated, description, "onnxruntime's CPU from this model.onnx")
    generator = load_generator(checkpoint, selection)
    expected = translated_by_torch(generator.network, frames, channels=generator.config.input_nc)
    measured, required = parity(translated, expected), _class(card)
    if not measured.reaches(required):
        raise ModelError(
            f"{printable(source)}: on the golden frames its ONNX is {measured} against torch in "
            f"fp32, where {required} is expected ({LIMITS[required]}); choose other --samples"
        )
    return _Golden(frames, expected, description, "torch in fp32 from the checkpoint")


def _profile(
    card: ModelCard,
    shapes: tuple[BatchShape | None, BatchShape | None, BatchShape | None],
    say: Callable[[str], None],
) -> Profile:
    """Return the profile of the given shapes, else that of the trained size. Raises ModelError."""
    fixed = card.sizes.fixed is not None and card.batch is not None
    if any(shapes) or fixed:
        return profile_for(card, *shapes)
    side = card.trained_size or USUAL_SIZE
    only = (card.batch or 1, *card.sizes.smallest_fit((side, side)))
    profile = Profile(only, only, only)
    say(f"its engine will take frames of {profile} (N,H,W); --opt-shape for others")
    return profile


def _check_pixels(source: Path, found: str) -> None:
    if found != "uint8":
        raise ModelError(
            f"{printable(source)}: the bundle of a device takes uint8 pixels, and {found} was "
            "found; export it with --io uint8"
        )


def _class(card: ModelCard) -> ParityClass:
    """Return the class that the engine must reach: FP32 may be computed as TF32 there."""
    return "coarse" if card.precision == "int8" else "half"


def _refuse_int8(source: Path, host: Host) -> NoReturn:
    raise ModelError(
        f"{printable(source)}: int8 is measured for this machine's CPU and for TensorRT, not in "
        f"{host.name}, whose bundle is fp32 or fp16; export it in one of these"
    )


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, before the work. Raises OutputError."""
    name = printable(folder)
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"cannot write {name}: its parent folder does not exist; create it first")
    if not folder.exists():
        return
    if not overwrite:
        raise OutputError(f"cannot write {name}: it exists already; pass -y to overwrite it")
    try:
        is_bundle = "bundle_version" in json.loads((folder / "card.json").read_bytes())
    except (OSError, ValueError, TypeError):
        is_bundle = False
    if not is_bundle:
        raise OutputError(
            f"cannot write {name}: it exists and is no bundle, so it is not overwritten; choose "
            "another folder"
        )


_RATE_OF_INT8 = """\
Whether int8 is faster than half precision on this device is not known: run bench here and in a
bundle of the same generator in fp16, and keep this one only where it is.
"""


def _readme(device: _Device, card: ModelCard, profile: Profile, golden: _Golden) -> str:
    int8, required = card.precision == "int8", _class(card)
    as_precise = "int8" if int8 else "half precision"
    return f"""A CycleGAN generator for {device.name}: {device.expects}.

1. Copy this folder to the device:       scp -r . device:generator
2. Build the engine there, once:         python3 edge.py build
3. Verify it before you use it:          python3 edge.py verify
4. Measure its rate there:               python3 edge.py bench
5. Translate images:                     python3 edge.py run IN OUT

An engine fits only the GPU and the TensorRT that built it. So it is built on the device, and built
again after an update of JetPack or TensorRT.

model.onnx         {card.architecture}, {card.precision}; takes frames of {profile} (N,H,W)
                   input 'frames', output 'translated': RGB, (N, H, W, 3), uint8
card.json          the description of the model, and the settings of edge.py
golden_input.bin   {golden.description}, {"x".join(map(str, golden.frames.shape))}, raw
golden_output.bin  their expected translation: {golden.computed_by}
edge.py            needs trtexec and Python 3.8 or newer; run needs TensorRT's Python module, NumPy
                   and OpenCV as well

The engine passes if it comes as close as {as_precise} should: {LIMITS[required]}.
{_RATE_OF_INT8 if int8 else ""}\
Other frame sizes: export the bundle with --min-shape, --opt-shape and --max-shape.
A DLA is not used: it takes fixed shapes only and has no layer for this network's normalisation, so
that the GPU would have to take over after every convolution. (A Jetson Thor has none.)
"""
