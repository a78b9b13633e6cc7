"""The card of an ONNX file: how it stands in ``metadata_props``, and whether it is true.

A file of the contract carries its card. What the card of a foreign file can say is read from its
graph.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import numpy as np
import onnx
from onnx import TensorProto, helper

from .._version import __version__
from ..errors import ModelError
from ..frames import SizeRequirements
from ..wording import printable
from .adoption import Adoption
from .card import ModelCard
from .contract import (
    CONTRACT_VERSION,
    Shapes,
    check_output_size,
    ends,
    fixed_size,
    picture_axes,
    pixel_type_of,
    say,
)

_PREFIX = "cyclegan_batch."
"""What the keys of the card begin with in ``metadata_props``."""

_WITHOUT_CARD = (
    "export the checkpoint again (cyclegan-batch export), or take the ONNX that it was made from"
)
"""What to do with a wrong card."""


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


def set_card_properties(contract: onnx.ModelProto, card: CardFields) -> None:
    """Write the card into the metadata of ``contract``, in place of the one that is there."""
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


def card_properties(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the card's own keys without their prefix."""
    return {
        prop.key.removeprefix(_PREFIX): prop.value
        for prop in proto.metadata_props
        if prop.key.startswith(_PREFIX)
    }


def card_of_contract(
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


def card_of_adopted(
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
