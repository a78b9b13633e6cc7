"""The card of a TensorRT engine: what it was built from, which machine it fits, who built it.

An engine is a program for one kind of GPU and one version of TensorRT, and it runs with the rights
of the user who loads it. Beside ``X.engine`` lies its card ``X.engine.json``, with a seal (seal.py)
that shows that this user built the engine. This module needs no TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..frames import BatchShape, SizeRequirements
from ..wording import Note, grouped, printable
from .card import ModelCard, recognition_from_json
from .seal import is_seal_of, seal_of, write_new_file

CARD_VERSION = 1

RECIPE = 1
"""The version of the builder's settings, raised by one whenever they change the engines, so that
engines in caches are built anew."""

_AMPERE = (8, 0)
"""The lowest compute capability on which a hardware-compatible engine runs."""


@dataclass(frozen=True)
class Profile:
    """The shapes of frames that an engine accepts."""

    min: BatchShape
    opt: BatchShape
    """The shape that the engine is tuned for."""
    max: BatchShape

    def covers(self, shape: BatchShape) -> bool:
        """Return whether ``shape`` lies between the smallest and the largest."""
        sides = zip(self.min, shape, self.max, strict=True)
        return all(low <= side <= high for low, side, high in sides)

    def __str__(self) -> str:
        """Return the shapes in the form of ``--min-shape``."""
        low, opt, high = (",".join(map(str, shape)) for shape in (self.min, self.opt, self.max))
        return opt if low == high else f"{low} to {high}, tuned for {opt}"


@dataclass(frozen=True)
class Build:
    """The settings of the builder that change the engine."""

    profile: Profile
    builder_level: int = 3
    """0 to 5: how long TensorRT searches for faster kernels; its own default is 3."""
    workspace: int | None = None
    """MiB of GPU memory that kernels may use while they run; None: no limit."""
    hardware_compatible: bool = False
    """The engine runs on every GPU from Ampere on, and somewhat slower."""
    version_compatible: bool = False
    """The engine runs with later versions of TensorRT of the same major number."""
    tf32: bool = False
    """FP32 convolutions may round their inputs to TF32; the class to reach is then half."""
    recipe: int = RECIPE


@dataclass(frozen=True)
class Machine:
    """The GPU and the version of TensorRT that an engine is bound to."""

    gpu: str
    compute_capability: tuple[int, int]
    tensorrt: str
    multiprocessors: int = 0
    """Can differ between GPUs of one name, and between the parts of one (MIG); 0: unknown."""
    memory_gib: int = 0
    """The GPU's memory, rounded; 0: unknown."""


@dataclass(frozen=True)
class EngineCard:
    """The content of ``X.engine.json``."""

    path: Path
    """The engine."""
    model: ModelCard
    """The card of the ONNX, with the path and digest of the ONNX."""
    engine_sha256: str
    onnx_sha256: str
    """SHA-256 of the contract graph: the ONNX file's own digest, unless it was adopted."""
    machine: Machine
    build: Build
    tool_version: str
    parity: str | None = None
    """The engine against its ONNX on the CPU, in words; None where it was not measured."""
    layers: str | None = None
    """The number of layers that compute in half precision, from TensorRT's inspector."""
    seal: str | None = None

    def misfits(self, here: Machine) -> list[str]:
        """Return, in words, why the engine cannot be loaded on ``here``; empty where it can."""
        reasons = []
        there, build = self.machine, self.build
        portable = build.hardware_compatible and min(
            there.compute_capability, here.compute_capability
        ) >= _AMPERE  # fmt: skip
        same = replace(there, tensorrt="") == replace(here, tensorrt="")
        if not same and not portable:
            reasons.append(f"built for {_gpu_in_words(there)}, this is {_gpu_in_words(here)}")
        if there.tensorrt != here.tensorrt and not (
            build.version_compatible and _is_later(here.tensorrt, there.tensorrt)
        ):
            reasons.append(f"built with TensorRT {there.tensorrt}, this is {here.tensorrt}")
        return reasons

    def as_model_card(self) -> ModelCard:
        """Return the ONNX's card with the path, digest, sizes and batch of the engine."""
        low, high = self.build.profile.min, self.build.profile.max
        sizes = self.model.sizes
        if low[1:] == high[1:]:
            sizes = replace(sizes, fixed=low[1:])
        else:
            sizes = replace(sizes, minimum=max(sizes.minimum, min(low[1:])))
        return replace(
            self.model,
            path=self.path,
            digest=self.engine_sha256,
            sizes=sizes,
            batch=low[0] if low[0] == high[0] else None,
            planar=None,
            notes=(),
        )


def card_path(engine: Path) -> Path:
    """Return the path of the card of ``engine``."""
    return engine.with_name(engine.name + ".json")


def read_card(engine: Path) -> EngineCard:
    """Return the card beside ``engine``. Raises ModelError where there is none or it is damaged."""
    path, name = card_path(engine), printable(engine)
    if not engine.is_file():
        raise ModelError(f"{name}: no such model file; check the path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{name}: has no card beside it ({printable(Path(path.name))}: {error.strerror}), "
            "which describes what the engine accepts; keep the two side by side, or translate with "
            "the ONNX that it was built from"
        ) from error
    try:
        return _card_from_json(engine, json.loads(content))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{name}: its card {printable(Path(path.name))} cannot be read ({error!r}); build the "
            "engine again with cyclegan-batch export"
        ) from error


def describe_engine(card: EngineCard) -> dict[str, object]:
    """Return what ``inspect`` shows of an engine in addition to its model's card."""
    machine, build = card.machine, card.build
    return {
        "kind": "TensorRT engine",
        "gpu": _gpu_in_words(machine),
        "tensorrt": machine.tensorrt,
        "shapes": str(build.profile),
        "built_with": {
            key: value for key, value in asdict(build).items() if key != "profile" and value
        },
        "engine_parity": card.parity,
        "layers": card.layers,
        "onnx_sha256": card.onnx_sha256,
    }


def write_engine_file(card: EngineCard, content: bytes) -> EngineCard:
    """Write an engine and its card, over earlier ones; return the card, sealed.

    The card has no seal where this user has no key (`seal.key_error` returns the reason). The
    engine is written first: a process that is stopped in between leaves a card whose digest does
    not match. Raises OutputError.
    """
    card = replace(card, seal=seal_of(_sealed_content(card)))
    text = json.dumps(_json_of(card), indent=2) + "\n"
    write_new_file(card.path, content)
    write_new_file(card_path(card.path), text.encode())
    return card


def is_ours(card: EngineCard, content: bytes) -> bool:
    """Return whether ``content`` is the engine of this card, and this user built it."""
    if card.seal is None or hashlib.sha256(content).hexdigest() != card.engine_sha256:
        return False
    return is_seal_of(card.seal, _sealed_content(card))


def check_trust(card: EngineCard, content: bytes, *, trusted: bool) -> None:
    """Refuse an engine that this user did not build, unless ``trusted``. Raises ModelError."""
    name = printable(card.path)
    if hashlib.sha256(content).hexdigest() != card.engine_sha256:
        raise ModelError(
            f"{name}: is not the engine that its card describes (the SHA-256 differs); it is "
            "damaged or was exchanged: build it again with cyclegan-batch export"
        )
    if not trusted and not is_ours(card, content):
        raise ModelError(
            f"{name}: was not built here, and an engine is a program that runs with your rights; "
            "pass --trust-engine if you know who built it, or translate with the ONNX that it was "
            "built from"
        )


def profile_for(
    card: ModelCard,
    smallest: BatchShape | None,
    tuned: BatchShape | None,
    largest: BatchShape | None,
) -> Profile:
    """Return the profile of ``--min-shape``, ``--opt-shape`` and ``--max-shape``.

    A shape that is None follows from the others, or from a file of fixed shape. Raises ModelError
    where all are None and the file's shape is free, or where the network does not accept one.
    """
    name = printable(card.path)
    if card.sizes.fixed is not None and card.batch is not None:
        only = (card.batch, *card.sizes.fixed)
        for shape in (smallest, tuned, largest):
            if shape not in (None, only):
                raise ModelError(
                    f"{name}: is of fixed shape {_text(only)} and {_text(shape)} was asked for; "
                    "leave the shape out, or export another ONNX"
                )
        return Profile(only, only, only)
    opt = tuned or largest or smallest
    if opt is None:
        raise ModelError(
            f"{name}: accepts frames of many shapes, and an engine is built for some; pass "
            "--opt-shape N,H,W (and --min-shape, --max-shape for a range)"
        )
    profile = Profile(smallest or opt, opt, largest or opt)
    for option, shape in (("opt", profile.opt), ("min", profile.min), ("max", profile.max)):
        _check_shape(card, f"--{option}-shape", shape)
        if not profile.covers(shape):
            raise ModelError(
                f"--{option}-shape {_text(shape)} does not lie between --min-shape "
                f"{_text(profile.min)} and --max-shape {_text(profile.max)}; put them in order"
            )
    return profile


def _check_shape(card: ModelCard, option: str, shape: BatchShape) -> None:
    fits = card.sizes.smallest_fit(shape[1:])
    if fits != shape[1:] or card.batch not in (None, shape[0]):
        batch = "" if card.batch is None else f", N = {card.batch}"
        raise ModelError(
            f"{option} {_text(shape)}: {printable(card.path)} does not accept it; the next size is "
            f"{fits[0]},{fits[1]} (H,W){batch}"
        )


def _text(shape: BatchShape | None) -> str:
    return ",".join(map(str, shape or ()))


def _gpu_in_words(machine: Machine) -> str:
    major, minor = machine.compute_capability
    size = f", {machine.multiprocessors} multiprocessors" if machine.multiprocessors else ""
    size += f", {machine.memory_gib} GiB" if machine.memory_gib else ""
    return f"{machine.gpu} (compute capability {major}.{minor}{size})"


def _is_later(here: str, built: str) -> bool:
    """Return whether ``here`` is the same version as ``built``, or a later minor one."""
    numbers = [[int(part) for part in re.findall(r"\d+", text)] for text in (here, built)]
    return numbers[0][:1] == numbers[1][:1] and numbers[0] >= numbers[1]


# The card as JSON


def _json_of(card: EngineCard) -> dict[str, object]:
    fields = asdict(card)
    del fields["path"]
    fields["model"]["path"] = printable(Path(card.model.path.name))
    fields["model"]["notes"] = grouped(card.model.notes)
    for later in ("recognised", "planar"):
        if fields["model"][later] is None:
            # Cards of earlier versions lack it, and their seals do not cover it.
            del fields["model"][later]
    return {"version": CARD_VERSION, **fields}


def _card_from_json(engine: Path, fields: Mapping[str, Any]) -> EngineCard:
    """Return the card of parsed JSON.

    Raises Python's own KeyError, TypeError and the like where a field is missing or of another
    type.
    """
    if fields["version"] != CARD_VERSION:
        raise ValueError(f"version {fields['version']!r} where {CARD_VERSION} is expected")
    model = dict(fields["model"])
    fixed = model["sizes"]["fixed"]
    model["sizes"] = SizeRequirements(
        multiple_of=int(model["sizes"]["multiple_of"]),
        minimum=int(model["sizes"]["minimum"]),
        fixed=None if fixed is None else (int(fixed[0]), int(fixed[1])),
    )
    model["path"] = engine.with_name(Path(str(model["path"])).name)
    model["notes"] = tuple(Note(None, str(sentence)) for sentence in model.get("notes", ()))
    if model.get("recognised") is not None:
        model["recognised"] = recognition_from_json(model["recognised"])
    if model["pixel_type"] not in ("uint8", "float16"):
        raise ValueError(f"pixel_type {model['pixel_type']!r}")
    machine, build = dict(fields["machine"]), dict(fields["build"])
    major, minor = machine.pop("compute_capability")
    shapes = {key: _shape(build["profile"][key]) for key in ("min", "opt", "max")}
    build["profile"] = Profile(**shapes)
    build.setdefault("recipe", 0)
    build.pop("refit", None)  # a field of earlier cards that no engine used
    return EngineCard(
        path=engine,
        model=ModelCard(**model),
        engine_sha256=str(fields["engine_sha256"]),
        onnx_sha256=str(fields["onnx_sha256"]),
        machine=Machine(compute_capability=(int(major), int(minor)), **machine),
        build=Build(**build),
        tool_version=str(fields["tool_version"]),
        parity=fields["parity"],
        layers=fields["layers"],
        seal=None if fields["seal"] is None else str(fields["seal"]),
    )


def _shape(sides: Any) -> BatchShape:
    count, height, width = (int(side) for side in sides)
    if min(count, height, width) < 1:
        raise ValueError(f"shape {sides!r}")
    return count, height, width


def _sealed_content(card: EngineCard) -> bytes:
    """Return what the seal of a card covers: every field but the seal."""
    fields = _json_of(card)
    del fields["seal"]
    # Through JSON and back, which turns tuples into lists as in the card that is read.
    return json.dumps(json.loads(json.dumps(fields)), sort_keys=True).encode()
