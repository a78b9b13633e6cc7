"""Open a model file: `open_model` returns its card and a graph inside the contract.

It accepts an ONNX of the contract, a planar one, a foreign one, which is adopted (all in graphs/),
an engine (engine_card.py), and a checkpoint (checkpoints/). An ONNX is read whole and its card is
checked against its graph (card_metadata.py). This module also computes what the runtimes need to
know of a graph.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import ModelError, missing_extra
from ..files import writing
from ..frames import Pixels, as_pixel_type
from ..wording import first_line, printable
from .card import ModelCard, describe
from .card_metadata import (
    CardFields,
    card_of_adopted,
    card_of_contract,
    card_properties,
    contract_of_planar,
    planar_of,
    set_card_properties,
)
from .checkpoints.files import ANY_GENERATOR, Selection, find_checkpoint, is_checkpoint
from .graphs import winograd
from .graphs.adoption import adopt
from .graphs.contract import (
    CONTRACT_VERSION,
    INPUT,
    OUTPUT,
    Constants,
    GeneratorIO,
    contract_from_generator,
)
from .graphs.cpu_graph import cpu_graph
from .graphs.model_io import MODEL_IO_GRAMMAR, parse_model_io
from .graphs.onnx_file import check_weights, read_onnx
from .graphs.rewriting import Graph

if TYPE_CHECKING:
    from .checkpoints.loading import LoadedGenerator
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
    "has_wide_convolutions",
    "may_make_some_nan",
    "model_from_contract",
    "on_cpu",
    "open_model",
    "sample_frames",
    "widest_tensor",
    "write_model",
]

ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
"""The endings of TensorRT engines; one that this program built has its card beside it."""

VALUES = "contract/values"
"""The second output of `graph_with_values`: the pixels before they are clamped and rounded."""


@dataclass(frozen=True)
class Model:
    """A card and the contract graph that it describes; or an engine, or a checkpoint."""

    card: ModelCard
    graph: bytes
    """The serialised ONNX, inside the contract; empty for an engine and for a checkpoint."""
    io: GeneratorIO | None = None
    """The form of a foreign file's images before it was adopted; None for any other file."""
    read: tuple[str, ...] = ()
    """What the graph of a foreign file showed of this form, in words."""
    assumed: tuple[str, ...] = ()
    """What nothing showed, in words."""
    engine: EngineCard | None = None
    """The card of an engine."""
    checkpoint: LoadedGenerator | None = None
    """The network of a checkpoint, which only torch runs."""
    planar: bytes = b""
    """The serialised ONNX of a planar file, which ``graph`` has the contract's nodes around."""

    @property
    def content(self) -> bytes:
        """The serialised ONNX as it is written: ``graph``, but for a planar file."""
        return self.planar or self.graph

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
    path: Path, *, model_io: str | None = None, selection: Selection = ANY_GENERATOR
) -> Model:
    """Read and check the model at ``path``, and adopt it where it is a foreign ONNX.

    ``path``: an ONNX; a TensorRT engine, of which only the card is read here; a checkpoint or the
    folder of a run (`find_checkpoint`), which are opened with torch. ``model_io`` states the form
    of a foreign ONNX's images (`MODEL_IO_GRAMMAR`); what it leaves out is read from the graph.
    ``selection`` chooses among the generators of a run or of a checkpoint; a file of the other
    direction is refused, and so are ``weights`` and ``family`` where the file is no checkpoint.

    Raises ModelError, and BackendUnavailableError where a checkpoint needs torch and it is missing.
    """
    if path.suffix.lower() in ENGINE_SUFFIXES:
        from .engine_card import read_card

        engine = read_card(path)
        card = engine.as_model_card()
        _check_options(card, model_io, selection)
        return Model(card, b"", engine=engine)
    io_options = parse_model_io(model_io)
    if is_checkpoint(path):
        if model_io is not None:
            raise ModelError(
                f"{printable(path)}: --model-io describes a foreign ONNX, and this is a "
                "checkpoint; leave the option out"
            )
        return _model_of_checkpoint(path, selection)
    try:
        content, proto, digest = read_onnx(path)
        check_weights(path, proto)
        properties = card_properties(proto)
        if "contract_version" in properties:
            model = _model_with_card(path, proto, content, digest)
            _check_options(model.card, model_io, selection)
            return model
        _check_for_checkpoints(path, "an ONNX", selection)
        adoption = adopt(path, proto, io_options)
        card = card_of_adopted(path, proto, adoption, digest)
    except ValueError as error:
        # The checker accepts names that are no text and weights of another size than declared.
        raise ModelError(
            f"{printable(path)}: is not valid ONNX: {first_line(error)}; download it or export it "
            "again"
        ) from error
    return Model(
        card,
        adoption.contract.SerializeToString(),
        adoption.io,
        read=adoption.read,
        assumed=adoption.assumed,
    )


def _model_with_card(path: Path, proto: onnx.ModelProto, content: bytes, digest: str) -> Model:
    """Return the model of a file that has a card. Raises ModelError."""
    properties = card_properties(proto)
    planar = planar_of(path, properties)
    if planar is None:
        return Model(card_of_contract(path, proto, properties, digest), content)
    contract = contract_of_planar(path, proto, planar)
    card = card_of_contract(path, contract, properties, digest)
    return Model(card, contract.SerializeToString(), planar=content)


def _check_options(card: ModelCard, model_io: str | None, selection: Selection) -> None:
    """Refuse options that contradict the card of a file. Raises ModelError."""
    name, direction = printable(card.path), selection.direction
    is_engine = card.path.suffix.lower() in ENGINE_SUFFIXES
    _check_for_checkpoints(card.path, "a TensorRT engine" if is_engine else "an ONNX", selection)
    if model_io is not None:
        raise ModelError(
            f"{name}: --model-io was given, but this file's own card describes it; leave the "
            "option out"
        )
    if direction is not None and card.direction not in (None, direction):
        raise ModelError(
            f"{name}: translates {card.direction}, as its card says, and {direction} was asked "
            "for; give the file of the other generator, or leave --direction out"
        )


def _check_for_checkpoints(path: Path, kind: str, selection: Selection) -> None:
    """Refuse options that only a checkpoint takes; ``kind`` is what the file is, in words."""
    for flag, value, what in (
        ("--weights", selection.weights, "chooses among the generators of a checkpoint"),
        ("--family", selection.family, "says which network the weights of a checkpoint are for"),
    ):
        if value is not None:
            raise ModelError(
                f"{printable(path)}: {flag} {what}, and this is {kind}; leave the option out"
            )


def _model_of_checkpoint(path: Path, selection: Selection) -> Model:
    """Open a checkpoint, or that of a run. Raises ModelError, BackendUnavailableError."""
    checkpoint = find_checkpoint(path, selection.direction)
    try:
        from .checkpoints.loading import load_generator
    except ImportError as error:
        doing = f"read the checkpoint {printable(checkpoint.path)}"
        raise missing_extra("export", error, doing=doing) from error
    generator = load_generator(checkpoint.path, selection)
    config = generator.config
    direction, notes = generator.directed(checkpoint)
    for word, channels in (("input", config.input_nc), ("output", config.output_nc)):
        if channels not in (1, 3):
            raise ModelError(
                f"{printable(checkpoint.path)}: its {word} has {channels} channels where an image "
                "has 3, or 1; it cannot translate images"
            )
    card = ModelCard(
        path=checkpoint.path,
        digest=generator.digest,
        contract_version=0,
        architecture=config.architecture,
        pixel_type="uint8",
        sizes=config.sizes,
        batch=None,
        trained_size=generator.trained_size,
        direction=direction,
        precision="fp32",
        source_digest=generator.digest,
        tool_version=generator.metadata.get("tool_version"),
        parity=None,
        generator=asdict(config),
        recognised=generator.recognised,
        notes=(*notes, *generator.notes),
    )
    return Model(card, b"", checkpoint=generator)


def model_from_contract(path: Path, contract: onnx.ModelProto, **card: Unpack[CardFields]) -> Model:
    """Write a card to a contract graph, in place, and return what `open_model` would at ``path``.

    With ``planar`` on the card the graph is that of a planar file. Raises ModelError where the
    result is no such file.
    """
    set_card_properties(contract, card)
    content = contract.SerializeToString()
    try:
        onnx.checker.check_model(contract, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"{printable(path)}: what would be written is not valid ONNX: {first_line(error)}; "
            "give another file of the same network"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    return _model_with_card(path, contract, content, digest)


def write_model(
    path: Path,
    contract: onnx.ModelProto,
    *,
    overwrite: bool = True,
    **card: Unpack[CardFields],
) -> ModelCard:
    """Write a contract graph with its card to ``path``; return the card.

    Raises ModelError where the result is no contract file, OutputError also where ``path`` exists
    and ``overwrite`` is false.
    """
    model = model_from_contract(path, contract, **card)
    with writing(path, overwrite=overwrite) as partial:
        partial.write_bytes(model.content)
    return model.card


def on_cpu(model: Model, *, in_float32: bool = True) -> Model:
    """Return an ONNX model with its graph in operators that CPUs compute faster (`cpu_graph`)."""
    return replace(model, graph=cpu_graph(model.graph, model.card.sizes, in_float32=in_float32))


def has_wide_convolutions(model: Model) -> bool:
    """Return whether `on_cpu` replaces wide convolutions where float32 is computed as such."""
    return winograd.has_wide_convolutions(Graph(onnx.ModelProto.FromString(model.graph)))


def graph_with_values(model: Model) -> bytes:
    """Return the contract graph with a second output, `VALUES`: floats, which can be NaN.

    They are the values of the pixels in any layout, before they are clamped, which hides NaN in
    some runtimes; in a planar file that is done twice.
    """
    proto = onnx.ModelProto.FromString(model.graph)
    producers = {out: node for node in proto.graph.node for out in node.output}
    constants = Constants(proto)
    moves = ("Cast", "Floor", "Transpose", "DepthToSpace")
    name = OUTPUT
    while name in producers and producers[name].op_type in (*moves, "Clip"):
        name = producers[name].input[0]
    earlier = name
    while earlier in producers and producers[earlier].op_type in (*moves, "Clip", "Mul", "Add"):
        node = producers[earlier]
        computed = [each for each in node.input if constants.value(each) is None]
        if len(computed) != 1:
            break
        earlier = computed[0]
        if node.op_type == "Clip":
            name = earlier
    proto.graph.node.append(helper.make_node("Cast", [name], [VALUES], to=TensorProto.FLOAT))
    proto.graph.output.append(helper.make_tensor_value_info(VALUES, TensorProto.FLOAT, None))
    return proto.SerializeToString()


_NAN_OF_NUMBERS = frozenset({"Sqrt", "Log", "Pow", "Div", "Reciprocal", "Mod", "Asin", "Acos",
                             "Acosh", "Atanh", "If", "Loop", "Scan"})  # fmt: skip
"""Operators that may return NaN, or an infinity, for single numbers of a tensor."""

_LARGE_WEIGHT = 1e6
"""Products of such weights over a few layers exceed float32."""


def may_make_some_nan(model: Model) -> bool:
    """Return whether an ONNX may compute NaN for some pixels of a frame and numbers for others.

    Convolutions, norms and activations with weights of an ordinary size do not: where one of their
    values is NaN, so are all of its channel.
    """
    proto = onnx.ModelProto.FromString(model.graph)
    graph, constants = proto.graph, Constants(proto)
    for node in graph.node:
        divides = node.op_type == "Div" and constants.value(node.input[1]) is not None
        if (node.op_type in _NAN_OF_NUMBERS and not divides) or node.domain not in ("", "ai.onnx"):
            return True
    return any(
        float(np.abs(numpy_helper.to_array(weight)).max(initial=0.0)) > _LARGE_WEIGHT
        for weight in graph.initializer
        if weight.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    )


def sample_frames(card: ModelCard) -> Pixels:
    """Return small frames in the card's pixel type: one of noise, the others black.

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
    """Return the number of elements of the graph's largest tensor per pixel of a frame.

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
