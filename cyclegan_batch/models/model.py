"""A model file becomes one described object: a graph inside the contract, and its card.

This is the door for whoever has a model file. `open_model` promises a graph that is inside the
contract (contract.py), checked and whole, whether the file was written so or had to be adopted
(adoption.py), and a `ModelCard` that is true of that graph. Hidden here: the bytes on the disk,
weights that lie beside the file, what is no ONNX, and the card's form in ``metadata_props``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict, Unpack

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from ..errors import BackendUnavailableError, ModelError
from ..files import output_error, publish, temporary_path
from ..frames import Pixels, SizeRequirements, as_pixel_type
from ..wording import first_line, printable
from .adoption import MODEL_IO_GRAMMAR, Adoption, adopt, declare_ends, parse_model_io
from .card import ModelCard
from .checkpoint_files import Direction, find_checkpoint, is_checkpoint
from .contract import (
    CONTRACT_VERSION,
    INPUT,
    OUTPUT,
    GeneratorIO,
    Shapes,
    check_output_size,
    contract_from_generator,
    ends,
    fixed_size,
    picture_axes,
    pixel_type_of,
    say,
)

if TYPE_CHECKING:
    from .checkpoints import LoadedGenerator
    from .engine_card import EngineCard

__all__ = [
    "CONTRACT_VERSION",
    "INPUT",
    "MODEL_IO_GRAMMAR",
    "OUTPUT",
    "VALUES",
    "CardFields",
    "GeneratorIO",
    "Model",
    "ModelCard",
    "contract_from_generator",
    "describe",
    "graph_with_values",
    "model_from_contract",
    "open_model",
    "sample_frames",
    "widest_tensor",
    "write_model",
    "writes_out_its_norm",
]

ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
"""How TensorRT's engines are named; one of ours has its card beside it (engine_card.py)."""

VALUES = "contract/values"
"""What `graph_with_values` gives besides: the pixels before they are clamped and rounded."""

_PREFIX = "cyclegan_batch."
"""What the keys of the card begin with in ``metadata_props``."""

_WITHOUT_CARD = (
    "export the checkpoint again (cyclegan-batch export), or take the ONNX that it was made from"
)
"""What to do with a wrong card."""


@dataclass(frozen=True)
class Model:
    """A card, and the contract graph that it describes (adopted already where it was foreign)."""

    card: ModelCard
    graph: bytes
    """The serialised ONNX, inside the contract; empty for an engine and for a checkpoint."""
    io: GeneratorIO | None = None
    """How the pictures of a foreign file are fed to it; None for a file of the contract."""
    engine: EngineCard | None = None
    """What an engine says of itself besides."""
    checkpoint: LoadedGenerator | None = None
    """The network of a checkpoint, which torch runs as it is."""

    @cached_property
    def graph_sha256(self) -> str:
        """SHA-256 of the contract graph, hexadecimal.

        It differs from the digest on the card where the file was adopted or has external weights.
        """
        return hashlib.sha256(self.graph).hexdigest()

    @cached_property
    def norm_written_out(self) -> bool:
        """Whether the graph computes its normalisation from means instead of by one operator."""
        proto = onnx.ModelProto.FromString(self.graph)
        kinds = {node.op_type for node in proto.graph.node}
        return "ReduceMean" in kinds and "InstanceNormalization" not in kinds


def open_model(
    path: Path, *, model_io: str | None = None, direction: Direction | None = None
) -> Model:
    """Read, check and where needed adopt the model at ``path``.

    ``path``: an ONNX; a TensorRT engine, of which the card is read and nothing else yet; a
    checkpoint, or the folder of a run (`find_checkpoint`), which are opened with torch.
    ``model_io`` says how a foreign ONNX is to be understood (`MODEL_IO_GRAMMAR`); what it leaves
    out is read from the graph. ``direction`` is the way it must go, where the file says which, and
    chooses between the two generators of a run.

    Raises ModelError, BackendUnavailableError where a checkpoint needs torch and it is missing.
    """
    if path.suffix.lower() in ENGINE_SUFFIXES:
        from .engine_card import read_card

        engine = read_card(path)
        described = engine.described()
        _check_said_by_itself(described, model_io, direction)
        return Model(described, b"", engine=engine)
    said = parse_model_io(model_io)
    if is_checkpoint(path):
        if model_io is not None:
            raise ModelError(
                f"{printable(path)}: --model-io says how a foreign ONNX is fed, and this is a "
                "checkpoint; leave the option out"
            )
        return _model_of_checkpoint(path, direction)
    try:
        content, proto, digest = _read(path)
        _check_weights(path, proto)
        card = _metadata(proto)
        if "contract_version" in card:
            described = _card_of_contract(path, proto, card, digest)
            _check_said_by_itself(described, model_io, direction)
            return Model(described, content)
        adoption = adopt(path, proto, said)
        described = _card_of_adopted(path, proto, adoption, digest)
    except ValueError as error:
        # What the checker does not look at: a name that is no text, a weight of another size.
        raise ModelError(
            f"{printable(path)}: is not valid ONNX: {first_line(error)}; download it or export it "
            "again"
        ) from error
    return Model(described, adoption.contract.SerializeToString(), adoption.io)


def _check_said_by_itself(card: ModelCard, model_io: str | None, direction: str | None) -> None:
    """Refuse to be told what a file with a card says otherwise. Raises ModelError."""
    name = printable(card.path)
    if model_io is not None:
        raise ModelError(
            f"{name}: --model-io was given, but this file says itself what it takes; leave the "
            "option out"
        )
    if direction is not None and card.direction not in (None, direction):
        raise ModelError(
            f"{name}: goes {card.direction}, as its card says, and {direction} was asked for; give "
            "the file of the other generator, or leave --direction out"
        )


def _model_of_checkpoint(path: Path, direction: Direction | None) -> Model:
    """Open a checkpoint, or a run's. Raises ModelError, BackendUnavailableError."""
    found = find_checkpoint(path, direction)
    try:
        from .checkpoints import load_generator
    except ImportError as error:
        raise BackendUnavailableError(
            f"{printable(path)}: is a checkpoint, and {error.name or error} is not installed to "
            'read it; pip install "cyclegan-batch[export]"'
        ) from error
    loaded = load_generator(found.path)
    config = loaded.config
    for word, channels in (("takes", config.input_nc), ("gives", config.output_nc)):
        if channels not in (1, 3):
            raise ModelError(
                f"{printable(found.path)}: {word} {channels} channels where a picture has 3, or 1; "
                "it cannot translate pictures"
            )
    card = ModelCard(
        path=found.path,
        digest=loaded.digest,
        contract_version=0,
        architecture=config.netG,
        pixel_type="uint8",
        sizes=config.sizes,
        batch=None,
        trained_size=loaded.trained_size,
        direction=found.direction,
        precision="fp32",
        source_digest=loaded.digest,
        tool_version=loaded.metadata.get("tool_version"),
        parity=None,
        generator=asdict(config),
        notes=(*found.notes, *loaded.notes),
    )
    return Model(card, b"", checkpoint=loaded)


def describe(card: ModelCard) -> dict[str, Any]:
    """Return the card as plain values that JSON takes, in the order in which they are shown."""
    fields = asdict(card)
    sizes = fields.pop("sizes")
    kind = "contract ONNX" if card.contract_version else "checkpoint"
    if card.adopted:
        kind = "foreign ONNX, adopted"
    shown = {
        "path": printable(card.path),
        "kind": kind,
        "contract_version": fields.pop("contract_version") or None,
    }
    del fields["path"]
    shown |= {key: list(value) if isinstance(value, tuple) else value for key, value in
              fields.items() if key not in ("digest", "notes")}  # fmt: skip
    shown |= {
        "multiple_of": sizes["multiple_of"],
        "minimum": sizes["minimum"],
        "fixed_size": None if sizes["fixed"] is None else list(sizes["fixed"]),
        "digest": card.digest,
        "notes": list(card.notes),
    }
    return shown


class CardFields(TypedDict, total=False):
    """What `model_from_contract` is told of a graph; the rest of a `ModelCard` it finds itself."""

    architecture: Required[str]
    sizes: Required[SizeRequirements]
    precision: str
    trained_size: int | None
    direction: Literal["AtoB", "BtoA"] | None
    source_digest: str | None
    parity: str | None
    generator: dict[str, Any] | None


def model_from_contract(path: Path, contract: onnx.ModelProto, **card: Unpack[CardFields]) -> Model:
    """Give a contract graph its card, in place, and return both as they will be read at ``path``.

    Raises ModelError where that is no contract file.
    """
    from .._version import __version__

    sizes, generator = card["sizes"], card.get("generator")
    fields = {
        "contract_version": CONTRACT_VERSION,
        "architecture": card["architecture"],
        "multiple_of": sizes.multiple_of,
        "minimum": sizes.minimum,
        "trained_size": card.get("trained_size"),
        "direction": card.get("direction"),
        "precision": card.get("precision", "fp32"),
        "source_digest": card.get("source_digest"),
        "tool_version": __version__,
        "parity": card.get("parity"),
        "generator": None if generator is None else json.dumps(generator),
    }
    kept = {
        prop.key: prop.value for prop in contract.metadata_props if not prop.key.startswith(_PREFIX)
    }
    said = {f"{_PREFIX}{key}": str(value) for key, value in fields.items() if value is not None}
    helper.set_model_props(contract, kept | said)
    content = contract.SerializeToString()
    try:
        onnx.checker.check_model(contract, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"{printable(path)}: what would be written is not valid ONNX: {first_line(error)}; "
            "give another file of the same network"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    return Model(_card_of_contract(path, contract, _metadata(contract), digest), content)


def write_model(
    path: Path,
    contract: onnx.ModelProto,
    *,
    overwrite: bool = True,
    **card: Unpack[CardFields],
) -> ModelCard:
    """Write a contract graph with its card to ``path``; return the card.

    Raises ModelError where what is written is no
    contract file, OutputError also where ``path`` exists and ``overwrite`` is false.
    """
    model = model_from_contract(path, contract, **card)
    partial = temporary_path(path)
    try:
        partial.write_bytes(model.graph)
        publish(partial, path, overwrite=overwrite)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return model.card


def graph_with_values(model: Model) -> bytes:
    """Return the contract graph with a second output, `VALUES`: floats that still show NaN."""
    proto = onnx.ModelProto.FromString(model.graph)
    made = {out: node for node in proto.graph.node for out in node.output}
    name = OUTPUT
    while name in made and made[name].op_type in ("Cast", "Clip", "Floor"):
        name = made[name].input[0]
    proto.graph.node.append(helper.make_node("Cast", [name], [VALUES], to=TensorProto.FLOAT))
    proto.graph.output.append(helper.make_tensor_value_info(VALUES, TensorProto.FLOAT, None))
    return proto.SerializeToString()


def sample_frames(card: ModelCard) -> Pixels:
    """Return small frames in the card's pixel type to try a model with: noise, and a black frame.

    ``(2, H, W, 3)``, or as many as the file's batch; H and W are the smallest that hold 64.
    """
    height, width = card.sizes.smallest_fit((64, 64))
    count = card.batch or 2
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, -(-height // 8), -(-width // 8), 3))
    frames = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width].astype(np.uint8)
    frames[1:] = 0
    return np.ascontiguousarray(as_pixel_type(frames, card.pixel_type))


def widest_tensor(model: Model) -> float:
    """Return how many elements the widest tensor of the graph has for each pixel of a frame.

    0 where the shapes of the graph cannot be inferred.
    """
    proto = onnx.ModelProto.FromString(model.graph)
    height, width = model.card.sizes.smallest_fit((256, 256))
    sides = proto.graph.input[0].type.tensor_type.shape.dim
    for side, length in zip(sides, (1, height, width, 3), strict=True):
        side.dim_value = side.dim_value or length
    del proto.graph.value_info[:]
    try:
        proto = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, ValueError):
        return 0.0
    counts = [
        math.prod(side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in proto.graph.value_info
    ]
    frames = math.prod(side.dim_value for side in sides[:3])
    return max(counts, default=0) / frames


def writes_out_its_norm(model: Model) -> bool:
    """Return `Model.norm_written_out`, until the backends read it themselves."""
    return model.norm_written_out


# Reading a file


def _read(path: Path) -> tuple[bytes, onnx.ModelProto, str]:
    """Return the ONNX at ``path`` as bytes and parsed, all weights inside, and its digest."""
    name = printable(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{name}: no such model file; check the path") from error
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror}; check the file") from error
    if not content:
        raise ModelError(f"{name}: the file is empty; download or export it again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(
            f"{name}: is no ONNX file, or one that is cut short ({len(content)} bytes cannot be "
            "parsed); download or export it again"
        ) from error
    if not proto.ir_version or not proto.graph.node:
        raise ModelError(f"{name}: holds no ONNX graph; a generator exported to ONNX is needed")
    digest = hashlib.sha256(content)
    beside = _external_files(path, proto)
    try:
        for file in beside:
            with file.open("rb") as weights:
                digest.update(hashlib.file_digest(weights, "sha256").digest())
        if beside:
            external_data_helper.load_external_data_for_model(proto, str(path.parent))
        texts = [text for node in proto.graph.node for text in (*node.input, *node.output)]
        texts += [text for prop in proto.metadata_props for text in (prop.key, prop.value)]
        for end in (*proto.graph.input, *proto.graph.output):
            texts += [end.name, *(axis.dim_param for axis in end.type.tensor_type.shape.dim)]
        for text in texts:
            if isinstance(text, bytes):
                text.decode()  # protobuf gives what is no text as it is
        if declare_ends(proto) or beside:
            content = proto.SerializeToString()
        onnx.checker.check_model(proto)
    except FileNotFoundError as error:
        missing = printable(Path(error.filename or ""))
        raise ModelError(
            f"{name}: its weights file {missing} is missing; keep the two side by side"
        ) from error
    # protobuf says "too large" with a ValueError, the checker with its own error.
    except (
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, OSError,
    ) as error:  # fmt: skip
        raise ModelError(
            f"{name}: is not valid ONNX: {first_line(error)}; export it again"
        ) from error
    return content, proto, digest.hexdigest()


def _external_files(path: Path, proto: onnx.ModelProto) -> list[Path]:
    """Return the files that hold weights beside ``path``, each once. Raises ModelError.

    A location may lead anywhere: only what lies in the model's own folder is read, symbolic links
    followed.
    """
    folder = path.parent.resolve()
    found: dict[Path, None] = {}
    for tensor in _tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        target = (folder / location).resolve()
        if not location or not target.is_relative_to(folder):
            raise ModelError(
                f"{printable(path)}: wants weights from {location!r}, outside its own folder; "
                "they are not read: keep the model and its weights in one folder"
            )
        found[target] = None
    return list(found)


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that may hold data: weights, attributes, subgraphs and functions."""

    def of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    yield from of_graph(attribute.g)
                for graph in attribute.graphs:
                    yield from of_graph(graph)

    def of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from of_nodes(graph.node)

    yield from of_graph(proto.graph)
    for function in proto.functions:
        yield from of_nodes(function.node)


def _check_weights(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse weights that are no numbers: they would blacken every frame. Raises ModelError."""
    for tensor in proto.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            values = numpy_helper.to_array(tensor)
            if np.isnan(values).any():
                raise ModelError(
                    f"{printable(path)}: the weight {tensor.name!r} holds NaN where numbers are "
                    "expected: its training diverged, or the file is damaged; use a file of "
                    "another checkpoint"
                )


# Cards


def _metadata(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the card's own keys without their prefix."""
    return {
        prop.key.removeprefix(_PREFIX): prop.value
        for prop in proto.metadata_props
        if prop.key.startswith(_PREFIX)
    }


def _card_of_contract(
    path: Path, proto: onnx.ModelProto, said: dict[str, str], digest: str
) -> ModelCard:
    """Return the card of a contract file, checked against the graph. Raises ModelError."""
    name = printable(path)

    def number(key: str, default: int | None) -> int | None:
        if key not in said:
            return default
        if not re.fullmatch(r"[1-9][0-9]{0,5}", said[key]):
            raise ModelError(
                f"{name}: its card says {key} = {said[key]!r} where a number of at least 1 is "
                f"expected; {_WITHOUT_CARD}"
            )
        return int(said[key])

    version = number("contract_version", None)
    assert version is not None
    if version > CONTRACT_VERSION:
        raise ModelError(
            f"{name}: was written for version {version} of the contract, this tool knows up to "
            f"{CONTRACT_VERSION}; install a newer cyclegan-batch"
        )
    entry, leave = ends(path, proto)
    pixel_type = pixel_type_of(entry, leave)
    if pixel_type is None:
        raise ModelError(
            f"{name}: its card names the contract, but the graph takes {say(entry)} and gives "
            f"{say(leave)} where 'frames' and 'translated', (N, H, W, 3) of uint8 or float16, "
            f"are expected; {_WITHOUT_CARD}"
        )
    precision = _weight_precision(proto)
    if said.get("precision", precision) != precision:
        raise ModelError(
            f"{name}: its card says {said['precision']}, but its weights are {precision}; "
            f"{_WITHOUT_CARD}"
        )
    batch, height, width = picture_axes(entry, "nhwc")
    sizes = SizeRequirements(
        multiple_of=number("multiple_of", 1) or 1,
        minimum=number("minimum", 1) or 1,
        fixed=fixed_size(path, height, width),
    )
    check_output_size(path, Shapes(proto), sizes.smallest_fit((64, 64)))
    if said.get("direction") not in (None, "AtoB", "BtoA"):
        raise ModelError(
            f"{name}: its card says direction = {said['direction']!r} where AtoB or BtoA is "
            f"expected; {_WITHOUT_CARD}"
        )
    return ModelCard(
        path=path,
        digest=digest,
        contract_version=version,
        architecture=said.get("architecture", "unknown"),
        pixel_type=pixel_type,
        sizes=sizes,
        batch=batch,
        trained_size=number("trained_size", None),
        direction=said.get("direction"),
        precision=precision,
        source_digest=said.get("source_digest"),
        tool_version=said.get("tool_version"),
        parity=said.get("parity"),
        generator=_generator(name, said),
    )


def _generator(name: str, said: dict[str, str]) -> dict[str, Any] | None:
    if "generator" not in said:
        return None
    try:
        found = json.loads(said["generator"])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(
            f"{name}: its card says generator = {said['generator'][:80]!r} where a JSON object is "
            f"expected; {_WITHOUT_CARD}"
        )
    return found


def _card_of_adopted(
    path: Path, proto: onnx.ModelProto, adoption: Adoption, digest: str
) -> ModelCard:
    """Return the card of a foreign file: what it does not say of itself is None."""
    fixed = adoption.sizes.fixed
    return ModelCard(
        path=path,
        digest=digest,
        contract_version=0,
        architecture=proto.producer_name or "unknown",
        pixel_type="uint8",
        sizes=adoption.sizes,
        batch=adoption.batch,
        trained_size=fixed[0] if fixed and fixed[0] == fixed[1] else None,
        direction=None,
        precision=_weight_precision(proto),
        source_digest=None,
        tool_version=None,
        parity=None,
        adopted=str(adoption.io),
        notes=(adoption.note,),
    )


def _weight_precision(proto: onnx.ModelProto) -> Literal["fp32", "fp16", "int8"]:
    """Return the number type that most weights have."""
    kinds = {node.op_type for node in proto.graph.node}
    if kinds & {"QuantizeLinear", "DequantizeLinear", "ConvInteger", "QLinearConv"}:
        return "int8"
    count: dict[int, int] = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for tensor in proto.graph.initializer:
        if tensor.data_type in count:
            count[tensor.data_type] += int(np.prod(tensor.dims))
    return "fp16" if count[TensorProto.FLOAT16] > count[TensorProto.FLOAT] else "fp32"
