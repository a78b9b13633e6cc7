"""Write a card to the metadata of an ONNX file, and read it back, checked against the graph.

Each field is one entry of ``metadata_props``. A foreign file has none: its card is made from its
graph. A planar file is brought inside the contract here, as its card says.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Required, TypedDict, cast, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper

from .._version import __version__
from ..errors import ModelError
from ..frames import PlanarType, SizeRequirements
from ..options import Direction, FilePrecision
from ..wording import printable
from .card import ModelCard, Recognition, planar_in_words, recognition_from_json
from .graphs.adoption import Adoption
from .graphs.contract import (
    CONTRACT_VERSION,
    PLANAR_IO,
    contract_from_generator,
    fixed_size,
    has_ends,
    image_axes,
    input_and_output,
    pixel_type_of,
    value_in_words,
)
from .graphs.shapes import Shapes, check_output_size

_PREFIX = "cyclegan_batch."
"""The beginning of the card's keys in ``metadata_props``."""

_REMEDY = (
    "export the checkpoint again (cyclegan-batch export), or take the ONNX that it was made from"
)
"""What to do about a wrong card."""


class CardFields(TypedDict, total=False):
    """The fields of a `ModelCard` that a contract graph does not show itself."""

    architecture: Required[str]
    sizes: Required[SizeRequirements]
    precision: FilePrecision
    trained_size: int | None
    direction: Direction | None
    source_digest: str | None
    parity: str | None
    generator: dict[str, object] | None
    recognised: Recognition | None
    planar: PlanarType | None


def set_card_properties(contract: onnx.ModelProto, card: CardFields) -> None:
    """Write the card to the metadata of ``contract``, in place of an earlier card."""
    sizes, generator, recognised = card["sizes"], card.get("generator"), card.get("recognised")
    planar = card.get("planar")
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
        "recognised": None if recognised is None else json.dumps(asdict(recognised)),
        "planar": None if planar is None else planar_in_words(planar),
    }
    other_properties = {
        prop.key: prop.value for prop in contract.metadata_props if not prop.key.startswith(_PREFIX)
    }
    own_properties = {
        f"{_PREFIX}{key}": str(value) for key, value in fields.items() if value is not None
    }
    helper.set_model_props(contract, other_properties | own_properties)


def card_properties(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the card's entries in the metadata, without the prefix of their keys."""
    return {
        prop.key.removeprefix(_PREFIX): prop.value
        for prop in proto.metadata_props
        if prop.key.startswith(_PREFIX)
    }


def planar_of(path: Path, properties: dict[str, str]) -> PlanarType | None:
    """Return what a planar file takes and returns, None for any other. Raises ModelError."""
    if "planar" not in properties:
        return None
    names: dict[str, PlanarType] = {planar_in_words(each): each for each in get_args(PlanarType)}
    if properties["planar"] not in names:
        raise _wrong_field(path, properties, "planar", " or ".join(names))
    return names[properties["planar"]]


def contract_of_planar(path: Path, proto: onnx.ModelProto, planar: PlanarType) -> onnx.ModelProto:
    """Return a planar file inside the contract, in uint8. Raises ModelError."""
    graph_input, graph_output = input_and_output(path, proto)
    if not has_ends(graph_input, graph_output, planar):
        raise ModelError(
            f"{printable(path)}: its card says {planar}, but its graph has the input "
            f"{value_in_words(graph_input)} and the output {value_in_words(graph_output)}; "
            f"{_REMEDY}"
        )
    contract = contract_from_generator(proto, PLANAR_IO)
    for place, prop in enumerate(contract.metadata_props):
        if prop.key == f"{_PREFIX}planar":
            del contract.metadata_props[place]
            break
    return contract


def card_of_contract(
    path: Path, proto: onnx.ModelProto, properties: dict[str, str], digest: str
) -> ModelCard:
    """Return the card of a contract graph, checked against it. Raises ModelError.

    ``properties`` are what `card_properties` returns, with a ``contract_version`` among them. Of a
    planar file ``proto`` is what `contract_of_planar` returns.
    """
    version = _number(path, properties, "contract_version")
    assert version is not None
    if version > CONTRACT_VERSION:
        raise ModelError(
            f"{printable(path)}: was written for version {version} of the contract, and this tool "
            f"reads versions up to {CONTRACT_VERSION}; install a newer cyclegan-batch"
        )
    graph_input, graph_output = input_and_output(path, proto)
    pixel_type = pixel_type_of(graph_input, graph_output)
    if pixel_type is None:
        raise ModelError(
            f"{printable(path)}: its card names the contract, but its graph has the input "
            f"{value_in_words(graph_input)} and the output {value_in_words(graph_output)} where "
            "'frames' and 'translated', (N, H, W, 3) of uint8 or float16, are expected; "
            f"{_REMEDY}"
        )
    precision = _weight_precision(proto)
    if properties.get("precision", precision) != precision:
        raise ModelError(
            f"{printable(path)}: its card says {properties['precision']}, but its weights are "
            f"{precision}; {_REMEDY}"
        )
    batch, height, width = image_axes(graph_input, "nhwc")
    sizes = SizeRequirements(
        multiple_of=_number(path, properties, "multiple_of") or 1,
        minimum=_number(path, properties, "minimum") or 1,
        fixed=fixed_size(path, height, width),
    )
    check_output_size(path, Shapes(proto), sizes.smallest_fit((64, 64)))
    if properties.get("direction") not in (None, "AtoB", "BtoA"):
        raise _wrong_field(path, properties, "direction", "AtoB or BtoA")
    return ModelCard(
        path=path,
        digest=digest,
        contract_version=version,
        architecture=properties.get("architecture", "unknown"),
        pixel_type=pixel_type,
        sizes=sizes,
        batch=batch,
        trained_size=_number(path, properties, "trained_size"),
        direction=cast("Direction | None", properties.get("direction")),
        precision=precision,
        source_digest=properties.get("source_digest"),
        tool_version=properties.get("tool_version"),
        parity=properties.get("parity"),
        generator=_generator(path, properties),
        recognised=_recognised(path, properties),
        planar=planar_of(path, properties),
    )


def _number(path: Path, properties: dict[str, str], key: str) -> int | None:
    """Return a field that holds a positive number, None where it is absent. Raises ModelError."""
    if key not in properties:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,5}", properties[key]):
        raise _wrong_field(path, properties, key, "a number of at least 1")
    return int(properties[key])


def _generator(path: Path, properties: dict[str, str]) -> dict[str, object] | None:
    """Return the configuration of the network, None where it is absent. Raises ModelError."""
    return _object(path, properties, "generator")


def _recognised(path: Path, properties: dict[str, str]) -> Recognition | None:
    """Return what the weights were recognised as, None where it is absent. Raises ModelError."""
    fields = _object(path, properties, "recognised")
    if fields is None:
        return None
    try:
        return recognition_from_json(fields)
    except ValueError as error:
        raise _wrong_field(path, properties, "recognised", str(error)) from error


def _object(path: Path, properties: dict[str, str], key: str) -> dict[str, object] | None:
    """Return a field that holds a JSON object, None where it is absent. Raises ModelError."""
    if key not in properties:
        return None
    try:
        value = json.loads(properties[key])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _wrong_field(path, properties, key, "a JSON object")
    return value


def _wrong_field(path: Path, properties: dict[str, str], key: str, expected: str) -> ModelError:
    return ModelError(
        f"{printable(path)}: its card says {key} = {properties[key][:80]!r} where {expected} is "
        f"expected; {_REMEDY}"
    )


def card_of_adopted(
    path: Path, proto: onnx.ModelProto, adoption: Adoption, digest: str
) -> ModelCard:
    """Return the card of an adopted foreign file; what its graph does not show is None."""
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
        adopted=str(adoption.spec),
        notes=(adoption.note,),
    )


def _weight_precision(proto: onnx.ModelProto) -> FilePrecision:
    """Return the number type of most weights, and int8 where anything is quantised."""
    kinds = {node.op_type for node in proto.graph.node}
    if kinds & {"QuantizeLinear", "DequantizeLinear", "ConvInteger", "QLinearConv"}:
        return "int8"
    count: dict[int, int] = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for tensor in proto.graph.initializer:
        if tensor.data_type in count:
            count[tensor.data_type] += int(np.prod(tensor.dims))
    return "fp16" if count[TensorProto.FLOAT16] > count[TensorProto.FLOAT] else "fp32"
