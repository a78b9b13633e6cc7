"""What a TensorRT engine is, without TensorRT: the card beside it, what it fits, who built it.

An engine is a program for one kind of GPU and one version of TensorRT, and it runs with the rights
of whoever loads it. Beside ``X.engine`` lies its card ``X.engine.json``: what it was built from and
for, and a seal. The seal is made with a key that lies in a folder of this user's own and nowhere
else: whoever can hand over an engine, or write into a cache folder, cannot say that we built it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ModelError, OutputError
from ..files import output_error, publish, temporary_path
from ..frames import BatchShape, SizeRequirements
from ..machine import default_state_dir
from ..wording import Note, grouped, printable
from .card import ModelCard

CARD_VERSION = 1

Shape = BatchShape  # Until the backends use the name in frames.py.

RECIPE = 1
"""How the builder of this version sets TensorRT up; one more whenever that changes what comes out,
so that engines in caches are built anew."""

_KEY = "engine.key"

_SEAL_BYTES = 32

_AMPERE = (8, 0)
"""Compute capability from which on a hardware-compatible engine runs."""


@dataclass(frozen=True)
class Profile:
    """The frames that an engine takes."""

    min: Shape
    opt: Shape
    """What it is tuned for."""
    max: Shape

    def covers(self, shape: Shape) -> bool:
        """Tell whether frames of ``shape`` lie between the smallest and the largest."""
        sides = zip(self.min, shape, self.max, strict=True)
        return all(low <= side <= high for low, side, high in sides)

    def __str__(self) -> str:
        """Return it in the words of ``--min-shape`` and its like."""
        low, opt, high = (",".join(map(str, shape)) for shape in (self.min, self.opt, self.max))
        return opt if low == high else f"{low} to {high}, tuned for {opt}"


@dataclass(frozen=True)
class Build:
    """How an engine is built: everything that changes what comes out."""

    profile: Profile
    builder_level: int = 3
    """0 to 5: how long TensorRT looks for faster kernels; 3 is its own default."""
    workspace: int | None = None
    """MiB of GPU memory that kernels may use while they run; None: all there is."""
    hardware_compatible: bool = False
    """One engine for every GPU from Ampere on, somewhat slower."""
    version_compatible: bool = False
    """One engine for later versions of TensorRT of the same major number."""
    tf32: bool = False
    """FP32 convolutions may round their inputs to TF32: class half instead of exact."""
    recipe: int = RECIPE


@dataclass(frozen=True)
class Machine:
    """What an engine is bound to."""

    gpu: str
    compute_capability: tuple[int, int]
    tensorrt: str
    multiprocessors: int = 0
    """Cards of one name differ in it, and so do parts of one (MIG); 0: not known."""
    memory_gib: int = 0
    """Of the card, rounded; 0: not known."""


@dataclass(frozen=True)
class EngineCard:
    """What stands in ``X.engine.json``."""

    path: Path
    """The engine."""
    model: ModelCard
    """The card of the ONNX; its path and digest are the ONNX's."""
    engine_sha256: str
    onnx_sha256: str
    """Of the contract graph that was parsed: the file's own digest, unless it was adopted."""
    machine: Machine
    build: Build
    tool_version: str
    parity: str | None = None
    """The engine against its ONNX on the CPU, in words; None where it was not measured."""
    layers: str | None = None
    """How many layers compute in half precision, as TensorRT's inspector says."""
    seal: str | None = None

    def misfits(self, here: Machine) -> list[str]:
        """Return, in words, why it cannot be loaded on ``here``; empty where it can."""
        found = []
        built, build = self.machine, self.build
        portable = build.hardware_compatible and min(
            built.compute_capability, here.compute_capability
        ) >= _AMPERE  # fmt: skip
        same = replace(built, tensorrt="") == replace(here, tensorrt="")
        if not same and not portable:
            found.append(f"built for {_gpu_words(built)}, this is {_gpu_words(here)}")
        if built.tensorrt != here.tensorrt and not (
            build.version_compatible and _is_later(here.tensorrt, built.tensorrt)
        ):
            found.append(f"built with TensorRT {built.tensorrt}, this is {here.tensorrt}")
        return found

    def described(self) -> ModelCard:
        """Return the engine's own card as a model: its sizes are those that its profile leaves."""
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
            notes=(),
        )


def card_path(engine: Path) -> Path:
    """Return where the card of ``engine`` lies."""
    return engine.with_name(engine.name + ".json")


def read_card(engine: Path) -> EngineCard:
    """Read the card beside ``engine``. Raises ModelError where there is none that can be read."""
    path, name = card_path(engine), printable(engine)
    if not engine.is_file():
        raise ModelError(f"{name}: no such model file; check the path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{name}: has no card beside it ({printable(Path(path.name))}: {error.strerror}), and "
            "without one nothing says what the engine takes; keep the two side by side, or "
            "translate with the ONNX that it was built from"
        ) from error
    try:
        return _card_from_json(engine, json.loads(content))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{name}: its card {printable(Path(path.name))} cannot be read ({error!r}); build the "
            "engine again with cyclegan-batch export"
        ) from error


def describe_engine(card: EngineCard) -> dict[str, Any]:
    """Return what ``inspect`` shows of an engine beyond its model's card."""
    machine, build = card.machine, card.build
    return {
        "kind": "TensorRT engine",
        "gpu": _gpu_words(machine),
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
    """Write an engine and its sealed card, replacing what is there. Raises OutputError.

    The card has no seal where this user has no key (`key_error` returns why). The engine comes
    first: whoever is stopped in between leaves a card that does not fit it.
    """
    key = _made_key()
    sealed = replace(card, seal=None if key is None else _seal(card, key))
    text = json.dumps(_json_of(sealed), indent=2) + "\n"
    _write(card.path, content)
    _write(card_path(card.path), text.encode())
    return sealed


def is_ours(card: EngineCard, content: bytes) -> bool:
    """Tell whether ``content`` is the engine that this user built with this card."""
    key = _key()
    if key is None or card.seal is None:
        return False
    if hashlib.sha256(content).hexdigest() != card.engine_sha256:
        return False
    return hmac.compare_digest(card.seal, _seal(card, key))


def check_trust(card: EngineCard, content: bytes, *, trusted: bool) -> None:
    """Refuse an engine that we did not build, unless the user trusts it. Raises ModelError."""
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
    card: ModelCard, smallest: Shape | None, tuned: Shape | None, largest: Shape | None
) -> Profile:
    """Return the profile of ``--min-shape``, ``--opt-shape`` and ``--max-shape``.

    What is left out follows from the others, all of it from a file of fixed shape. Raises
    ModelError where nothing says the shape, or the network cannot take it.
    """
    name = printable(card.path)
    if card.sizes.fixed is not None and card.batch is not None:
        only = (card.batch, *card.sizes.fixed)
        for shape in (smallest, tuned, largest):
            if shape not in (None, only):
                raise ModelError(
                    f"{name}: is of fixed shape {_words(only)} and {_words(shape)} was asked for; "
                    "leave the shape out, or export another ONNX"
                )
        return Profile(only, only, only)
    given = tuned or largest or smallest
    if given is None:
        raise ModelError(
            f"{name}: takes frames of many shapes, and an engine is built for some; pass "
            "--opt-shape N,H,W (and --min-shape, --max-shape for a range)"
        )
    profile = Profile(smallest or given, given, largest or given)
    for option, shape in (("opt", profile.opt), ("min", profile.min), ("max", profile.max)):
        _check_shape(card, f"--{option}-shape", shape)
        if not profile.covers(shape):
            raise ModelError(
                f"--{option}-shape {_words(shape)} does not lie between --min-shape "
                f"{_words(profile.min)} and --max-shape {_words(profile.max)}; put them in order"
            )
    return profile


def _check_shape(card: ModelCard, option: str, shape: Shape) -> None:
    fits = card.sizes.smallest_fit(shape[1:])
    if fits != shape[1:] or card.batch not in (None, shape[0]):
        batch = "" if card.batch is None else f", N = {card.batch}"
        raise ModelError(
            f"{option} {_words(shape)}: {printable(card.path)} does not take it; the next size is "
            f"{fits[0]},{fits[1]} (H,W){batch}"
        )


def _words(shape: Shape | None) -> str:
    return ",".join(map(str, shape or ()))


def _gpu_words(machine: Machine) -> str:
    major, minor = machine.compute_capability
    size = f", {machine.multiprocessors} multiprocessors" if machine.multiprocessors else ""
    size += f", {machine.memory_gib} GiB" if machine.memory_gib else ""
    return f"{machine.gpu} (compute capability {major}.{minor}{size})"


def _is_later(here: str, built: str) -> bool:
    """Tell whether ``here`` is a later version of the same major number."""
    numbers = [[int(part) for part in re.findall(r"\d+", text)] for text in (here, built)]
    return numbers[0][:1] == numbers[1][:1] and numbers[0] >= numbers[1]


# The card as JSON


def _json_of(card: EngineCard) -> dict[str, Any]:
    fields = asdict(card)
    del fields["path"]
    fields["model"]["path"] = printable(Path(card.model.path.name))
    fields["model"]["notes"] = grouped(card.model.notes)
    return {"version": CARD_VERSION, **fields}


def _card_from_json(engine: Path, said: Mapping[str, Any]) -> EngineCard:
    """Return the card; raises what Python raises where something is missing or of another kind."""
    if said["version"] != CARD_VERSION:
        raise ValueError(f"version {said['version']!r} where {CARD_VERSION} is expected")
    model = dict(said["model"])
    fixed = model["sizes"]["fixed"]
    model["sizes"] = SizeRequirements(
        multiple_of=int(model["sizes"]["multiple_of"]),
        minimum=int(model["sizes"]["minimum"]),
        fixed=None if fixed is None else (int(fixed[0]), int(fixed[1])),
    )
    model["path"] = engine.with_name(Path(str(model["path"])).name)
    model["notes"] = tuple(Note(None, str(sentence)) for sentence in model.get("notes", ()))
    if model["pixel_type"] not in ("uint8", "float16"):
        raise ValueError(f"pixel_type {model['pixel_type']!r}")
    machine, build = dict(said["machine"]), dict(said["build"])
    major, minor = machine.pop("compute_capability")
    shapes = {key: _shape(build["profile"][key]) for key in ("min", "opt", "max")}
    build["profile"] = Profile(**shapes)
    build.setdefault("recipe", 0)
    build.pop("refit", None)  # an option of the first cards, which nothing used
    return EngineCard(
        path=engine,
        model=ModelCard(**model),
        engine_sha256=str(said["engine_sha256"]),
        onnx_sha256=str(said["onnx_sha256"]),
        machine=Machine(compute_capability=(int(major), int(minor)), **machine),
        build=Build(**build),
        tool_version=str(said["tool_version"]),
        parity=said["parity"],
        layers=said["layers"],
        seal=said["seal"],
    )


def _shape(said: Any) -> Shape:
    count, height, width = (int(side) for side in said)
    if min(count, height, width) < 1:
        raise ValueError(f"shape {said!r}")
    return count, height, width


# The seal


def _seal(card: EngineCard, key: bytes) -> str:
    said = _json_of(card)
    del said["seal"]
    # As it will be read again: JSON knows no tuples.
    text = json.dumps(json.loads(json.dumps(said)), sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def key_error() -> str | None:
    """Return why this user has no key to seal with, in words; None where there is one.

    The key is made where there is none yet.
    """
    folder = default_state_dir()
    if _made_key() is not None:
        return None
    reason = None if not folder.exists() else not_private(folder) or not_private(folder / _KEY)
    return reason or f"{printable(folder / _KEY)} cannot be written or is no key"


def not_private(path: Path) -> str | None:
    """Return why others than this user may have written ``path``, in words; None where none may.

    What does not exist is private; where files have no owners, everything is.
    """
    if not hasattr(os, "geteuid"):
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    name = printable(path)
    if found.st_uid != os.geteuid():
        return f"{name} belongs to another user; use a folder of your own"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{name} may be written by other users; take that right away (chmod go-w)"
    return None


def sealed(content: bytes) -> bytes | None:
    """Return ``content`` behind a seal of this user; None where there is no key."""
    key = _made_key()
    return None if key is None else hmac.digest(key, content, "sha256") + content


def unsealed(content: bytes) -> bytes | None:
    """Return what `sealed` was given, None where that was not by this user, or is damaged."""
    key, seal, inside = _key(), content[:_SEAL_BYTES], content[_SEAL_BYTES:]
    if key is None or not hmac.compare_digest(seal, hmac.digest(key, inside, "sha256")):
        return None
    return inside


def _key() -> bytes | None:
    """Return this user's key; None where there is none, or another user may know or change it."""
    path = default_state_dir() / _KEY
    if not_private(path.parent) is not None or not_private(path) is not None:
        return None
    try:
        readable_by_others = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
        key = path.read_bytes()
    except OSError:
        return None
    if readable_by_others and os.name == "posix":
        return None
    return key if len(key) == 32 else None


def _made_key() -> bytes | None:
    """Return this user's key, made on first use; None where that cannot be."""
    path = default_state_dir() / _KEY
    # Another process may make it at the same time: whichever comes first is the key.
    with contextlib.suppress(OSError, OutputError):
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, secrets.token_bytes(32), mode=0o600, overwrite=False)
    return _key()


def _write(path: Path, content: bytes, *, mode: int = 0o666, overwrite: bool = True) -> None:
    partial = temporary_path(path)
    try:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        publish(partial, path, overwrite=overwrite)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
