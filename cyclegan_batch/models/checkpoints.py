"""Load a generator from a PyTorch checkpoint, by the names and shapes of its weights alone.

A checkpoint does not state which network it is for. `load_generator` derives the family, the number
of blocks, the widths, the norm, dropout and the channels from the weights, after it has removed the
prefixes of wrappers and the statistics that old versions of torch stored beside them.

Nothing but tensors is ever unpickled: ``weights_only=True``, without exception. Anything that is
not the weights of one generator is refused, and the message names what it is.

This module imports torch; a translation by another runtime does not import it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..wording import Note, first_line, printable
from .checkpoint_files import FoundCheckpoint, find_checkpoint
from .networks import GeneratorConfig, Norm, generator_from_config

__all__ = [
    "FoundCheckpoint",
    "LoadedGenerator",
    "find_checkpoint",
    "load_generator",
    "load_state",
]

_WRAPPERS = ("module.", "_orig_mod.")
"""The prefixes that DataParallel and torch.compile put before every name."""

_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What BatchNorm keeps beside its weights; InstanceNorm kept it too before torch 0.4."""

_EXPORT_ELSEWHERE = "export it to ONNX where it was trained, and give that file"
_SAVE_AGAIN = "save the weights again: torch.save(netG.state_dict(), path)"

_WeightShape = tuple[int, ...]


@dataclass(frozen=True)
class LoadedGenerator:
    """The generator in a checkpoint."""

    path: Path
    digest: str
    """SHA-256 of the file, hexadecimal."""
    network: nn.Module
    """In float32 on the CPU, in eval mode: ``(N, C, H, W)`` in [-1, 1], both ways."""
    config: GeneratorConfig
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The metadata of a safetensors file."""

    @property
    def trained_size(self) -> int | None:
        """The side of the squares that it was trained on, where the metadata state it."""
        side = self.metadata.get("trained_size", "")
        return int(side) if re.fullmatch(r"[1-9][0-9]{0,5}", side) else None

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes for the user on where other programs would compute another image."""
        differences = []
        if self.config.norm == "batch":
            differences.append("BatchNorm uses the statistics of its training")
        if self.config.dropout:
            differences.append("dropout is off")
        if not differences:
            return ()
        text = (
            f"{' and '.join(differences)}; the reference implementation's test script does so only "
            "with --eval"
        )
        return (Note(Path(self.path.name), text),)


def load_generator(path: Path) -> LoadedGenerator:
    """Read the generator's weights at ``path``: ``.pth`` of any age, or safetensors.

    The network is derived from the names and shapes of the weights. Two settings that they do not
    show are left at their defaults, since neither changes a translation: the dropout of a U-Net,
    and whether BatchNorm was synchronised. Raises ModelError.
    """
    state, metadata = load_state(path)
    config, state = _config_and_weights(path, state)
    with torch.device("meta"):
        network = generator_from_config(config)
    _check_weights(path, config, state, network.state_dict())
    network.load_state_dict(state, strict=True, assign=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LoadedGenerator(path, digest, network.eval(), config, metadata)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the named tensors at ``path``, on the CPU, and the metadata of a safetensors file.

    The names are without the prefixes of wrappers. Raises ModelError where the file cannot be read,
    holds anything but named tensors, or can be read only by running code.
    """
    try:
        with path.open("rb") as file:
            start, size = file.read(16), file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ModelError(
            f"cannot read {printable(path)}: {error.strerror or error}; check the name"
        ) from error
    content: object
    metadata: dict[str, str] = {}
    # Safetensors begin with the length of a JSON header.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        content, metadata = _read_safetensors(path)
    elif start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        content = _read_pickle(path)
    else:
        _refuse(path, _file_in_words(start), "give the .pth or .safetensors file of a generator")
    return _without_wrappers(_named_tensors(path, content)), metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        _refuse(path, f"is no whole safetensors file ({first_line(error)})",
                "copy or download it again", error)  # fmt: skip


def _read_pickle(path: Path) -> object:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                compressed = [entry for entry in archive.infolist() if entry.compress_type]
            if compressed:
                # torch never compresses; a small file could unpack to more than the memory.
                name = compressed[0].filename
                finding = f"holds {name!r} compressed, where torch does not compress"
                _refuse(path, finding, _SAVE_AGAIN)
        # torch warns of pickles that it did not write; `_named_tensors` refuses those.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch names the class in its message only.
        class_name = re.search(r"GLOBAL (\S+)", str(error))
        _refuse(
            path,
            f"is a pickle that holds {class_name[1] if class_name else 'something else'} where "
            "only named tensors are opened, since anything else could run code",
            f"where it comes from, {_SAVE_AGAIN}",
            error,
        )
    except ModelError:
        raise
    # torch raises many kinds of error for a damaged file: RuntimeError from its zip reader,
    # EOFError and struct.error from the old format, AttributeError from a foreign zip.
    except Exception as error:
        _refuse(path, f"is no whole PyTorch checkpoint ({first_line(error)})",
                f"copy or download it again, or {_SAVE_AGAIN}", error)  # fmt: skip


def _named_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Return ``content`` if it is a state dict. Raises ModelError with what it is otherwise."""
    if not isinstance(content, Mapping) or not content:
        kind = type(content).__name__
        _refuse(path, f"holds {kind} where named tensors are expected", _SAVE_AGAIN)
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(name, str) for name in content):
        names = ", ".join(repr(name) for name in others[:4]) or "names that are no text"
        _refuse(path, f"holds more than a generator's weights: {names}",
                "save the weights of one generator alone")  # fmt: skip
    return dict(content)


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while True:
        prefix = next((p for p in _WRAPPERS if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): value for name, value in state.items()}


def _config_and_weights(
    path: Path, state: dict[str, Tensor]
) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Return the network that ``state`` is for, and its weights in float32 under today's names.

    Raises ModelError.
    """
    state = {name: _checked_weight(path, name, value) for name, value in state.items()}
    legacy_statistics: str | None = None
    with_weight = {name.removesuffix(".weight") for name in state if name.endswith(".weight")}
    for name in list(state):
        module, _, last = name.rpartition(".")
        if last in _RUNNING_STATISTICS and module not in with_weight:
            # The reference implementation drops these as well.
            del state[name]
            legacy_statistics = name
        elif last == "running_mean":
            # BatchNorm has counted its batches since torch 0.4.1 only.
            state.setdefault(f"{module}.num_batches_tracked", torch.tensor(0))
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    config_of = next((config_of for matches, config_of in _FAMILIES if matches(shapes)), None)
    if config_of is None:
        _refuse(path, f"is no generator of a CycleGAN: {_network_in_words(shapes)}",
                "give the generator's weights, e.g. latest_net_G_A.pth")  # fmt: skip
    try:
        config = config_of(path, shapes)
    except ValueError as error:
        _refuse(path, f"is no supported network: {first_line(error)}", _EXPORT_ELSEWHERE, error)
    if legacy_statistics is not None and config.norm == "none":
        _refuse(path, f"its {legacy_statistics!r} is of a norm that has running statistics and no "
                "weights, behind convolutions without a bias", _EXPORT_ELSEWHERE)  # fmt: skip
    return config, state


def _checked_weight(path: Path, name: str, value: Tensor) -> Tensor:
    """Return ``value`` in float32, a count of batches as it is. Raises ModelError."""
    if name.endswith("num_batches_tracked"):
        return value
    if not value.is_floating_point() or value.layout != torch.strided:
        kind = f"{value.dtype} ({value.layout})"
        _refuse(path, f"its {name!r} is {kind} where weights are dense floating point", _SAVE_AGAIN)
    if value.nbytes > value.untyped_storage().nbytes():
        finding = f"its {name!r} declares a shape ({tuple(value.shape)}) larger than its content"
        _refuse(path, finding, _SAVE_AGAIN)
    weight = value.float()
    if not weight.isfinite().all():
        _refuse(path, f"its {name!r} holds NaN or infinity where weights are finite",
                "take a checkpoint from before the training broke")  # fmt: skip
    return weight


def _resnet_config(path: Path, shapes: Mapping[str, _WeightShape]) -> GeneratorConfig:
    numbers = {int(m[1]) for n in shapes if (m := re.match(r"model\.(\d{1,4})\.conv_block\.", n))}
    n_blocks = len(numbers)
    if numbers != set(range(10, 10 + n_blocks)) or n_blocks > 999:
        _refuse(path, "its residual blocks are not numbered from 10 on",
                _EXPORT_ELSEWHERE)  # fmt: skip
    up, last = f"model.{10 + n_blocks}", f"model.{17 + n_blocks}.weight"
    if n_blocks and not any(n.startswith("model.10.conv_block.1.") for n in shapes):
        _refuse(path, "its blocks do not reflect at their edges (their convolutions are not "
                "numbered as behind a ReflectionPad2d)", _EXPORT_ELSEWHERE)  # fmt: skip
    mobile = "model.10.conv_block.1.conv.0.weight" in shapes
    resize = f"{up}.2.weight" in shapes
    ngf, input_nc = shapes["model.1.weight"][:2]
    config = partial(
        GeneratorConfig,
        input_nc=input_nc,
        output_nc=_axis(shapes, last, 0, 3),
        ngf=ngf,
        norm=_norm(path, shapes, "model.1", "model.2"),
        upsample="resize" if resize else "deconv",
    )
    if not mobile:
        dropout = len(shapes.get("model.10.conv_block.6.weight", ())) == 4
        return config(f"resnet_{n_blocks}blocks", dropout=dropout)
    plain = config(f"mobile_resnet_{n_blocks}blocks")
    outs = [f"model.{10 + n_blocks + 3 * k}" for k in range(2)]
    widths = (
        ngf,
        _axis(shapes, "model.4.weight", 0, 2 * ngf),
        _axis(shapes, "model.7.weight", 0, 4 * ngf),
        *(_axis(shapes, f"model.{k}.conv_block.1.conv.2.weight", 0, 4 * ngf)
          for k in range(10, 10 + n_blocks)),
        *(_axis(shapes, f"{out}.2.weight", 0, 1) if resize else
          _axis(shapes, f"{out}.weight", 1, 1) for out in outs),
    )  # fmt: skip
    if widths == plain.all_widths:
        return plain
    return config(plain.netG, widths=widths)


def _unet_config(path: Path, shapes: Mapping[str, _WeightShape]) -> GeneratorConfig:
    # The next level is the second module of the outermost level, and the fourth of every other.
    num_downs, inside = 1, "model.model.1.model."
    while f"{inside}1.weight" in shapes:
        num_downs += 1
        inside += "3.model."
    if not 5 <= num_downs <= 16:
        _refuse(path, f"is a U-Net of {num_downs} levels where 5 to 16 are supported",
                _EXPORT_ELSEWHERE)  # fmt: skip
    ngf, input_nc = shapes["model.model.0.weight"][:2]
    resize = "model.model.3.2.weight" in shapes
    name, axis = ("model.model.3.2.weight", 0) if resize else ("model.model.3.weight", 1)
    return GeneratorConfig(
        f"unet_{2**num_downs}",
        input_nc=input_nc,
        output_nc=_axis(shapes, name, axis, 3),
        ngf=ngf,
        norm=_norm(path, shapes, "model.model.0", "model.model.1.model.2"),
        upsample="resize" if resize else "deconv",
    )


def _norm(path: Path, shapes: Mapping[str, _WeightShape], convolution: str, norm: str) -> Norm:
    """Return the kind of norm, by the statistics of one and by the first convolution's bias."""
    if f"{norm}.running_mean" in shapes:
        return "batch"
    if f"{norm}.weight" in shapes:
        _refuse(path, f"its norm {norm!r} has weights and no running statistics (an InstanceNorm "
                "with affine), where an InstanceNorm has neither",
                _EXPORT_ELSEWHERE)  # fmt: skip
    return "instance" if f"{convolution}.bias" in shapes else "none"


_FAMILIES = (
    (lambda shapes: len(shapes.get("model.model.0.weight", ())) == 4, _unet_config),
    (lambda shapes: shapes.get("model.1.weight", ())[2:] == (7, 7), _resnet_config),
)
"""A test for each family by its first convolution, and the function that derives its config."""


def _axis(shapes: Mapping[str, _WeightShape], name: str, axis: int, default: int) -> int:
    """Return the length of an axis; ``default`` where it is absent, which is refused later."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) == 4 and shape[axis] > 0 else default


def _check_weights(
    path: Path, config: GeneratorConfig, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raise ModelError with the first difference of ``state`` from the ``expected`` weights."""
    kind = f"a {config.netG} of ngf {config.ngf} and {config.norm} norm"
    for name, tensor in expected.items():
        if name not in state:
            finding = f"is not whole, or no supported network: it lacks {name!r}, which {kind} has"
            _refuse(path, finding, _SAVE_AGAIN)
        if state[name].shape != tensor.shape:
            own, shape = tuple(state[name].shape), tuple(tensor.shape)
            finding = f"is no supported network: its {name!r} is {own} where {kind} has {shape}"
            _refuse(path, finding, _EXPORT_ELSEWHERE)
    for name in state:
        if name not in expected:
            finding = f"is no supported network: it has {name!r}, which {kind} has not"
            _refuse(path, finding, _EXPORT_ELSEWHERE)


def _network_in_words(shapes: Mapping[str, _WeightShape]) -> str:
    """Return in words whose weights these are, where they are no generator's."""
    if shapes.get("model.0.weight", ())[2:] == (4, 4):
        return "it is a discriminator (PatchGAN)"
    if shapes.get("net.0.weight", ())[2:] == (1, 1):
        return "it is a discriminator (pixel)"
    name, shape = next(iter(shapes.items()))
    return f"its {len(shapes)} weights begin with {name!r} {shape}"


def _file_in_words(start: bytes) -> str:
    """Return in words what a file is that begins with ``start`` and is no checkpoint."""
    if not start:
        return "is empty where a checkpoint is expected"
    if b"\x00" not in start and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return "is text where a checkpoint is expected"
    return "is no PyTorch checkpoint and no safetensors file"


def _refuse(path: Path, finding: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    raise ModelError(f"{printable(path)}: {finding}; {remedy}") from cause
