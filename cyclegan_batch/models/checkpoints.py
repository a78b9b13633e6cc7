"""A PyTorch checkpoint becomes a generator, by the names and shapes of its weights alone.

`load_generator` is the door. A checkpoint says nowhere which network it is for; hidden here is how
that is found out: which family, how many blocks, how wide, which norm, dropout, one channel or
three; what wrappers put before the names, and what old versions of torch left among the weights.

Nothing is ever unpickled beyond tensors: ``weights_only=True``, and no way around it. What is not
a generator's weights is refused with what it is.

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
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..wording import Note, printable
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
"""What DataParallel and torch.compile put before every name."""

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
"""The statistics that a norm keeps; before torch 0.4, InstanceNorm did."""

_EXPORT = "export it to ONNX where it was trained, and give that file"
_AGAIN = "save the weights again: torch.save(netG.state_dict(), path)"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator from a file, and what is known of it."""

    path: Path
    digest: str
    """SHA-256 of the file, hexadecimal."""
    network: nn.Module
    """In float32 on the CPU, in eval mode: ``(N, C, H, W)`` in [-1, 1], both ways."""
    config: GeneratorConfig
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What a safetensors file says of itself."""

    @property
    def trained_size(self) -> int | None:
        """The side of the squares it was trained on, where the file says it."""
        said = self.metadata.get("trained_size", "")
        return int(said) if re.fullmatch(r"[1-9][0-9]{0,5}", said) else None

    @property
    def notes(self) -> tuple[Note, ...]:
        """What the user should be told once: where other tools would draw another picture."""
        what = []
        if self.config.norm == "batch":
            what.append("BatchNorm takes the statistics of its training")
        if self.config.dropout:
            what.append("dropout is off")
        if not what:
            return ()
        text = (
            f"{' and '.join(what)}; the reference implementation's test script does so only when "
            "it is told to evaluate"
        )
        return (Note(Path(self.path.name), text),)


def load_generator(path: Path) -> LoadedGenerator:
    """Read the generator's weights at ``path``: ``.pth`` of any age, or safetensors.

    The network is found by the weights' names and shapes. What they do not show is left at its
    default: the dropout of a U-Net, and whether BatchNorm was synchronised, neither of which a
    translation notices. Raises ModelError.
    """
    state, metadata = load_state(path)
    config, state = _adopt(path, state)
    with torch.device("meta"):
        network = generator_from_config(config)
    _compare(path, config, state, network.state_dict())
    network.load_state_dict(state, strict=True, assign=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LoadedGenerator(path, digest, network.eval(), config, metadata)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the named tensors at ``path``, on the CPU, and what a safetensors file says beside them.

    The names are without the wrappers' prefixes. Raises ModelError where the file cannot be read,
    holds anything but named tensors, or would have to run code to be read.
    """
    try:
        with path.open("rb") as file:
            start, size = file.read(16), file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ModelError(
            f"cannot read {printable(path)}: {error.strerror or error}; check the name"
        ) from error
    found: object
    metadata: dict[str, str] = {}
    # Safetensors begin with the length of a header, and the header with a brace.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        found, metadata = _read_safetensors(path)
    elif start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        found = _read_pickle(path)
    else:
        _refuse(path, _what_else(start), "give the .pth or .safetensors file of a generator")
    return _without_wrappers(_named_tensors(path, found)), metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        _refuse(path, f"is no whole safetensors file ({_first_line(error)})",
                "copy or download it again", error)  # fmt: skip


def _read_pickle(path: Path) -> object:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                packed = [entry for entry in archive.infolist() if entry.compress_type]
            if packed:
                # Torch never does; a small file that unpacks to all the memory there is would.
                what = f"holds {packed[0].filename!r} compressed, where torch stores plainly"
                _refuse(path, what, _AGAIN)
        # It warns of pickles that were not written by torch; those are refused just below.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = named[1] if named else "something else"
        _refuse(
            path,
            f"is a pickle that holds {what} where only named tensors are opened, since anything "
            "else could run code",
            f"where it comes from, {_AGAIN}",
            error,
        )
    except ModelError:
        raise
    # What torch raises at a damaged file is of many kinds: RuntimeError from its zip reader,
    # EOFError and struct.error from the old format, AttributeError from a foreign zip.
    except Exception as error:
        _refuse(path, f"is no whole PyTorch checkpoint ({_first_line(error)})",
                f"copy or download it again, or {_AGAIN}", error)  # fmt: skip


def _named_tensors(path: Path, found: object) -> dict[str, Tensor]:
    """Return ``found`` if it is a state dict, and refuse it with what it is otherwise."""
    if not isinstance(found, Mapping) or not found:
        _refuse(path, f"holds {type(found).__name__} where named tensors are expected", _AGAIN)
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(name, str) for name in found):
        names = ", ".join(repr(name) for name in others[:4]) or "names that are no text"
        _refuse(path, f"holds more than a generator's weights: {names}",
                "save the weights of one generator alone")  # fmt: skip
    return dict(found)


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while True:
        prefix = next((p for p in _WRAPPERS if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): value for name, value in state.items()}


def _adopt(path: Path, state: dict[str, Tensor]) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Return the network that ``state`` is for, and ``state`` as that network names it today."""
    state = dict(state)
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if not value.is_floating_point() or value.layout != torch.strided:
            what = f"{value.dtype} ({value.layout})"
            _refuse(path, f"its {name!r} is {what} where weights are dense floating point", _AGAIN)
        if value.nbytes > value.untyped_storage().nbytes():
            what = f"its {name!r} says to be larger ({tuple(value.shape)}) than what it holds"
            _refuse(path, what, _AGAIN)
        state[name] = value.float()
        if not state[name].isfinite().all():
            _refuse(path, f"its {name!r} holds NaN or infinity where weights are finite",
                    "take a checkpoint from before the training broke")  # fmt: skip
    legacy: str | None = None
    weighted = {name.removesuffix(".weight") for name in state if name.endswith(".weight")}
    for name in list(state):
        module, _, last = name.rpartition(".")
        if last in _RUNNING and module not in weighted:
            # InstanceNorm kept statistics before torch 0.4, and the reference drops them too.
            del state[name]
            legacy = name
        elif last == "running_mean":
            # BatchNorm has counted its batches since torch 0.4.1 only.
            state.setdefault(f"{module}.num_batches_tracked", torch.tensor(0))
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    family = next((read for known, read in _FAMILIES if known(shapes)), None)
    if family is None:
        _refuse(path, f"is no generator of a CycleGAN: {_what_network(shapes)}",
                "give the generator's weights, e.g. latest_net_G_A.pth")  # fmt: skip
    try:
        config = family(path, shapes)
    except ValueError as error:
        _refuse(path, f"is none of ours: {_first_line(error)}", _EXPORT, error)
    if legacy is not None and config.norm == "none":
        _refuse(path, f"its {legacy!r} is of a norm that has running statistics and no weights, "
                "behind convolutions without a bias", _EXPORT)  # fmt: skip
    return config, state


def _resnet(path: Path, shapes: Mapping[str, Shape]) -> GeneratorConfig:
    numbers = {int(m[1]) for n in shapes if (m := re.match(r"model\.(\d{1,4})\.conv_block\.", n))}
    n_blocks = len(numbers)
    if numbers != set(range(10, 10 + n_blocks)) or n_blocks > 999:
        _refuse(path, "its residual blocks are not numbered from 10 on",
                _EXPORT)  # fmt: skip
    up, last = f"model.{10 + n_blocks}", f"model.{17 + n_blocks}.weight"
    if n_blocks and not any(n.startswith("model.10.conv_block.1.") for n in shapes):
        _refuse(path, "its blocks do not reflect at their edges (their convolutions are not "
                "numbered as behind a ReflectionPad2d)", _EXPORT)  # fmt: skip
    mobile = "model.10.conv_block.1.conv.0.weight" in shapes
    resize = f"{up}.2.weight" in shapes
    ngf, input_nc = shapes["model.1.weight"][:2]
    config: dict[str, Any] = {
        "input_nc": input_nc,
        "output_nc": _axis(shapes, last, 0, 3),
        "ngf": ngf,
        "norm": _norm(path, shapes, "model.1", "model.2"),
        "upsample": "resize" if resize else "deconv",
    }
    if not mobile:
        dropout = len(shapes.get("model.10.conv_block.6.weight", ())) == 4
        return GeneratorConfig(f"resnet_{n_blocks}blocks", dropout=dropout, **config)
    plain = GeneratorConfig(f"mobile_resnet_{n_blocks}blocks", **config)
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
    return GeneratorConfig(plain.netG, widths=widths, **config)


def _unet(path: Path, shapes: Mapping[str, Shape]) -> GeneratorConfig:
    # The outermost level's next one is its second module, and every other level's is its fourth.
    num_downs, inside = 1, "model.model.1.model."
    while f"{inside}1.weight" in shapes:
        num_downs += 1
        inside += "3.model."
    if not 5 <= num_downs <= 16:
        _refuse(path, f"is a U-Net of {num_downs} levels where one has 5 to 16",
                _EXPORT)  # fmt: skip
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


def _norm(path: Path, shapes: Mapping[str, Shape], convolution: str, norm: str) -> Norm:
    """Return the norm, by what one of them keeps and by the bias of the first convolution."""
    if f"{norm}.running_mean" in shapes:
        return "batch"
    if f"{norm}.weight" in shapes:
        _refuse(path, f"its norm {norm!r} has weights and no running statistics (an InstanceNorm "
                "with affine), where an InstanceNorm has neither",
                _EXPORT)  # fmt: skip
    return "instance" if f"{convolution}.bias" in shapes else "none"


_FAMILIES = (
    (lambda shapes: len(shapes.get("model.model.0.weight", ())) == 4, _unet),
    (lambda shapes: shapes.get("model.1.weight", ())[2:] == (7, 7), _resnet),
)
"""What tells a family by its first convolution, and what reads the rest."""


def _axis(shapes: Mapping[str, Shape], name: str, axis: int, default: int) -> int:
    """Return the length of an axis; ``default`` where it is not there, which is refused later."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) == 4 and shape[axis] > 0 else default


def _compare(
    path: Path, config: GeneratorConfig, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Refuse a ``state`` that differs from what the network has, by the first difference."""
    kind = f"a {config.netG} of ngf {config.ngf} and {config.norm} norm"
    for name, tensor in wanted.items():
        if name not in state:
            what = f"is not whole, or none of ours: it lacks {name!r}, which {kind} has"
            _refuse(path, what, _AGAIN)
        if state[name].shape != tensor.shape:
            found, expected = tuple(state[name].shape), tuple(tensor.shape)
            _refuse(path, f"is none of ours: its {name!r} is {found} where {kind} has {expected}",
                    _EXPORT)  # fmt: skip
    for name in state:
        if name not in wanted:
            _refuse(path, f"is none of ours: it has {name!r}, which {kind} has not",
                    _EXPORT)  # fmt: skip


def _what_network(shapes: Mapping[str, Shape]) -> str:
    """Return in words what the weights are, where they are no generator's."""
    if shapes.get("model.0.weight", ())[2:] == (4, 4):
        return "it is a discriminator (PatchGAN)"
    if shapes.get("net.0.weight", ())[2:] == (1, 1):
        return "it is a discriminator (pixel)"
    name, shape = next(iter(shapes.items()))
    return f"its {len(shapes)} weights begin with {name!r} {shape}"


def _what_else(start: bytes) -> str:
    """Return in words what a file is by its first bytes."""
    if not start:
        return "is empty where a checkpoint is expected"
    if b"\x00" not in start and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return "is text where a checkpoint is expected"
    return "is no PyTorch checkpoint and no safetensors file"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _refuse(path: Path, what: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    raise ModelError(f"{printable(path)}: {what}; {remedy}") from cause
