"""A model file becomes one described object: contract ONNX, its card, and foreign ONNX adopted.

The contract, version 1: one input ``frames`` and one output ``translated``, both RGB
``(N, H, W, 3)`` and both uint8 or both float16 in [0, 1]. Whatever the network wants besides (its
range, its layout, its channel order, its own number type) happens inside the graph, in nodes that
`contract_from_generator` puts around it: here for the files of others, and for the exporter too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, compose, external_data_helper, helper, numpy_helper

from .errors import ModelError
from .files import output_error, printable, publish, temporary_path
from .frames import Pixels, PixelType, Size, SizeRequirements, as_pixel_type

CONTRACT_VERSION = 1
INPUT, OUTPUT = "frames", "translated"
VALUES = "contract/values"
"""What `graph_with_values` gives besides: the pixels before they are clamped and rounded."""

_PREFIX = "cyclegan_batch."
"""What the keys of the card begin with in ``metadata_props``."""

_ELEMENTS: dict[PixelType, int] = {"uint8": TensorProto.UINT8, "float16": TensorProto.FLOAT16}

_ADOPTABLE = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT8: "uint8",
}

_OLDEST_OPSET = 7
"""The nodes around a generator broadcast as numpy does, which ONNX does since opset 7."""

_CONVERTED_OPSET = 13
"""What an older file is converted to."""

_BT601 = (0.299, 0.587, 0.114)
"""Luma from gamma-coded RGB, ITU-R BT.601-7, 2.5.1."""

Layout = Literal["nchw", "nhwc"]
Order = Literal["rgb", "bgr"]
Range = tuple[float, float]

_RANGES: dict[str, Range] = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}

MODEL_IO_GRAMMAR = "[nchw|nhwc] [rgb|bgr] [0..255|0..1|-1..1] [-> 0..255|0..1|-1..1]"
"""What ``--model-io`` takes: any subset, in this order or another, the part after ``->`` last."""


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself (``metadata_props``), completed by what its graph shows."""

    path: Path
    digest: str
    """SHA-256 of the file and of the weights that lie beside it, hexadecimal."""
    contract_version: int
    """0 for a foreign file that was adopted."""
    architecture: str
    pixel_type: PixelType
    sizes: SizeRequirements
    batch: int | None
    """The only batch size the file takes, or None."""
    trained_size: int | None
    direction: str | None
    """``AtoB`` or ``BtoA``."""
    precision: str
    """``fp32``, ``fp16`` or ``int8``: the type of the file's weights."""
    source_digest: str | None
    """SHA-256 of the checkpoint it was exported from."""
    tool_version: str | None
    parity: str | None
    """Measured parity, in words."""
    adopted: str | None = None
    """How a foreign file was understood (``nchw rgb 0..255``), or None."""
    notes: tuple[str, ...] = ()
    """What the user should be told once."""


@dataclass(frozen=True)
class Model:
    """A card, and the contract graph that it describes (adopted already where it was foreign)."""

    card: ModelCard
    graph: bytes
    """The serialised ONNX, inside the contract."""


@dataclass(frozen=True)
class GeneratorIO:
    """How a generator sees pictures: what the contract's nodes bring it to and back from."""

    layout: Layout = "nchw"
    order: Order = "rgb"
    takes: Range = (-1.0, 1.0)
    """The values of black and white that it is fed."""
    gives: Range = (-1.0, 1.0)
    """The values that become black and white."""
    gives_layout: Layout | None = None
    """None: the layout that it takes."""

    def __str__(self) -> str:
        """Return it in the grammar of ``--model-io``."""
        words = [self.layout, self.order, _range_name(self.takes)]
        if self.gives != self.takes:
            words += ["->", _range_name(self.gives)]
        return " ".join(words)


def open_model(path: Path, *, model_io: str | None = None) -> Model:
    """Read, check and where needed adopt the ONNX at ``path``.

    ``model_io`` says how a foreign file is to be understood (`MODEL_IO_GRAMMAR`); what it
    leaves out is read from the graph. Raises ModelError.
    """
    said = _parse_model_io(model_io)
    content, proto, digest = _read(path)
    _check_weights(path, proto)
    card = _metadata(proto)
    if "contract_version" in card:
        if model_io is not None:
            raise ModelError(
                f"{path}: --model-io was given, but this file says itself what it takes; "
                "leave the option out"
            )
        described = _card_of_contract(path, proto, card, digest)
        return Model(described, content)
    adopted, described = _adopt(path, proto, said, digest)
    return Model(described, adopted.SerializeToString())


def describe(card: ModelCard) -> dict[str, Any]:
    """Return the card as plain values that JSON takes, in the order in which they are shown."""
    fields = asdict(card)
    sizes = fields.pop("sizes")
    shown = {
        "path": printable(card.path),
        "kind": "foreign ONNX, adopted" if card.adopted else "contract ONNX",
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


# The contract around a generator


def contract_from_generator(
    generator: onnx.ModelProto, io: GeneratorIO, *, pixel_type: PixelType = "uint8"
) -> onnx.ModelProto:
    """Put the contract's nodes around a generator of one input and one output.

    The generator takes and gives ``(N, C, H, W)`` or ``(N, H, W, C)``, C = 1 or 3, of one float
    type or uint8. Its weights and nodes are kept as they are, under the prefix ``generator/``; the
    nodes around them work in float32. The first node is the Cast from the pixel type and the last
    the Cast to it, since TensorRT takes uint8 nowhere else. Rounding is half up (floor of
    x + 0.5): ONNX's own Round goes to even. Where the generator has one channel it is fed BT.601
    luma, and its output is repeated. ``generator`` itself is not changed. Raises ModelError.
    """
    if _opset(generator) < _OLDEST_OPSET:
        generator = onnx.version_converter.convert_version(generator, _CONVERTED_OPSET)
    inner = compose.add_prefix(generator, "generator/")
    graph = inner.graph
    weights = {weight.name for weight in graph.initializer}
    (entry,) = (value for value in graph.input if value.name not in weights)
    (leave,) = graph.output
    batch, height, width = _picture_axes(entry, io.layout)
    nodes = _Nodes(_opset(inner))

    x = nodes.add("Cast", [INPUT], to=TensorProto.FLOAT)
    top = 255.0 if pixel_type == "uint8" else 1.0
    low, high = io.takes
    x = nodes.affine(x, (high - low) / top, low)
    if _channels(entry, io.layout) == 1:
        # The order does not matter to luma once the picture is RGB: it is taken from RGB.
        x = nodes.add("MatMul", [x, nodes.constant(np.array(_BT601)[:, np.newaxis])])
    elif io.order == "bgr":
        x = nodes.add("Gather", [x, nodes.constant([2, 1, 0], np.int64)], axis=3)
    if io.layout == "nchw":
        x = nodes.add("Transpose", [x], perm=[0, 3, 1, 2])
    x = nodes.cast(x, entry.type.tensor_type.elem_type)
    before = nodes.take()
    # The generator reads its input from the last node before it.
    before[-1].output[0] = entry.name

    gives_layout = io.gives_layout or io.layout
    x = nodes.cast(leave.name, TensorProto.FLOAT, source=leave.type.tensor_type.elem_type)
    if gives_layout == "nchw":
        x = nodes.add("Transpose", [x], perm=[0, 2, 3, 1])
    if _channels(leave, gives_layout) == 1:
        x = nodes.add("Concat", [x, x, x], axis=3)
    elif io.order == "bgr":
        x = nodes.add("Gather", [x, nodes.constant([2, 1, 0], np.int64)], axis=3)
    low, high = io.gives
    gain = top / (high - low)
    if pixel_type == "uint8":
        x = nodes.affine(x, gain, 0.5 - low * gain)
        x = nodes.add("Floor", [x])
    else:
        x = nodes.affine(x, gain, -low * gain)
    x = nodes.clip(x, 0.0, top)
    nodes.add("Cast", [x], out=OUTPUT, to=_ELEMENTS[pixel_type])
    after = nodes.take()

    shape = [batch or "N", height or "H", width or "W", 3]
    kind = _ELEMENTS[pixel_type]
    contract = onnx.ModelProto()
    contract.CopyFrom(inner)
    # Below IR 4 every weight must be an input too, and no runtime may then fold it.
    contract.ir_version = max(inner.ir_version, 4)
    del contract.graph.input[:], contract.graph.output[:], contract.graph.node[:]
    # What was inferred for the old shapes is not needed, and may be wrong.
    del contract.graph.value_info[:]
    contract.graph.input.append(helper.make_tensor_value_info(INPUT, kind, shape))
    contract.graph.output.append(helper.make_tensor_value_info(OUTPUT, kind, shape))
    contract.graph.node.extend([*before, *graph.node, *after])
    contract.graph.initializer.extend(nodes.weights)
    return contract


def write_model(
    path: Path,
    contract: onnx.ModelProto,
    *,
    architecture: str,
    sizes: SizeRequirements,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    trained_size: int | None = None,
    direction: Literal["AtoB", "BtoA"] | None = None,
    source_digest: str | None = None,
    parity: str | None = None,
) -> ModelCard:
    """Write a contract graph with its card to ``path``, replacing what is there; return the card.

    Raises ModelError where what is written is no contract file, OutputError.
    """
    from . import __version__

    fields = {
        "contract_version": CONTRACT_VERSION,
        "architecture": architecture,
        "multiple_of": sizes.multiple_of,
        "minimum": sizes.minimum,
        "trained_size": trained_size,
        "direction": direction,
        "precision": precision,
        "source_digest": source_digest,
        "tool_version": __version__,
        "parity": parity,
    }
    kept = {prop.key: prop.value for prop in contract.metadata_props}
    said = {f"{_PREFIX}{key}": str(value) for key, value in fields.items() if value is not None}
    helper.set_model_props(contract, kept | said)
    content = contract.SerializeToString()
    card = _card_of_contract(
        path, contract, _metadata(contract), hashlib.sha256(content).hexdigest()
    )
    partial = temporary_path(path)
    try:
        partial.write_bytes(content)
        publish(partial, path, overwrite=True)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return card


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


def writes_out_its_norm(model: Model) -> bool:
    """Tell whether the normalisation is written out in means instead of one operator."""
    proto = onnx.ModelProto.FromString(model.graph)
    kinds = {node.op_type for node in proto.graph.node}
    return "ReduceMean" in kinds and "InstanceNormalization" not in kinds


class _Nodes:
    """The contract's nodes as they are made; every name begins with ``contract/``."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.weights: list[TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0

    def add(self, kind: str, inputs: list[str], out: str | None = None, **attributes: Any) -> str:
        self._count += 1
        name = f"contract/{self._count}_{kind}"
        out = out or name
        self._nodes.append(helper.make_node(kind, inputs, [out], name, **attributes))
        return out

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"contract/constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def affine(self, x: str, gain: float, offset: float) -> str:
        """Append ``gain·x + offset``, or what of it does anything: each is one more pass."""
        if gain != 1.0:
            x = self.add("Mul", [x, self.constant(gain)])
        if offset != 0.0:
            x = self.add("Add", [x, self.constant(offset)])
        return x

    def clip(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.add("Clip", [x], min=low, max=high)
        return self.add("Clip", [x, self.constant(low), self.constant(high)])

    def cast(self, x: str, to: int, source: int = TensorProto.FLOAT) -> str:
        return x if to == source else self.add("Cast", [x], to=to)

    def take(self) -> list[onnx.NodeProto]:
        nodes, self._nodes = self._nodes, []
        return nodes


# Reading


def _read(path: Path) -> tuple[bytes, onnx.ModelProto, str]:
    """Return the ONNX at ``path`` as bytes and parsed, all weights inside, and its digest."""
    name = printable(path)
    try:
        content = path.read_bytes()
    except IsADirectoryError as error:
        raise ModelError(
            f"{name}: is a folder; this version translates with an ONNX file, so name one"
        ) from error
    except FileNotFoundError as error:
        raise ModelError(f"{name}: no such model file; check the path") from error
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror}; check the file") from error
    _refuse_other_kinds(name, path, content)
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
            content = proto.SerializeToString()
        onnx.checker.check_model(proto)
    except FileNotFoundError as error:
        missing = printable(Path(error.filename or ""))
        raise ModelError(
            f"{name}: its weights file {missing} is missing; keep the two side by side"
        ) from error
    # protobuf says "too large" with a ValueError, the checker with its own error.
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise ModelError(
            f"{name}: is not valid ONNX: {_first_line(error)}; export it again"
        ) from error
    return content, proto, digest.hexdigest()


def _refuse_other_kinds(name: str, path: Path, content: bytes) -> None:
    suffix = path.suffix.lower()
    kind = None
    if not content:
        raise ModelError(f"{name}: the file is empty; download or export it again")
    if suffix == ".safetensors":
        kind = "a safetensors checkpoint"
    elif content[:2] == b"PK" or content[:1] == b"\x80" or suffix in (".pth", ".pt", ".ckpt"):
        kind = "a PyTorch checkpoint"
    elif suffix in (".engine", ".plan", ".trt"):
        kind = "a TensorRT engine"
    if kind:
        raise ModelError(
            f"{name}: is {kind}; this version translates with ONNX files only, so export the "
            "generator to ONNX first (torch.onnx.export)"
        )


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
                    "expected: its training diverged, or the file is damaged; take another "
                    "checkpoint"
                )


def _metadata(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the card's own keys without their prefix."""
    return {
        prop.key.removeprefix(_PREFIX): prop.value
        for prop in proto.metadata_props
        if prop.key.startswith(_PREFIX)
    }


def _ends(path: Path, proto: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """Return the one picture input and the one picture output. Raises ModelError."""
    weights = {weight.name for weight in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    outputs = list(proto.graph.output)
    for values, word in ((inputs, "inputs"), (outputs, "outputs")):
        if len(values) != 1:
            names = ", ".join(f"{value.name!r}" for value in values)
            _refuse(path, f"has {len(values)} {word} ({names}) where a generator has one")
    for value, word in ((inputs[0], "input"), (outputs[0], "output")):
        if not value.type.HasField("tensor_type"):
            _refuse(path, f"its {word} {value.name!r} is no tensor")
    return inputs[0], outputs[0]


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
                "expected; export it again"
            )
        return int(said[key])

    version = number("contract_version", None)
    assert version is not None
    if version > CONTRACT_VERSION:
        raise ModelError(
            f"{name}: was written for version {version} of the contract, this tool knows up to "
            f"{CONTRACT_VERSION}; install a newer cyclegan-batch"
        )
    entry, leave = _ends(path, proto)
    pixel_type: PixelType | None = None
    for kind, element in _ELEMENTS.items():
        if entry.type.tensor_type.elem_type == element:
            pixel_type = kind
    expected = [(entry, INPUT), (leave, OUTPUT)]
    if pixel_type is None or any(
        value.name != word
        or value.type.tensor_type.elem_type != _ELEMENTS[pixel_type]
        or len(_dimensions(value) or ()) != 4
        or _dimensions(value)[3] != 3  # type: ignore[index]
        for value, word in expected
    ):
        raise ModelError(
            f"{name}: its card names the contract, but the graph takes {_say(entry)} and gives "
            f"{_say(leave)} where 'frames' and 'translated', (N, H, W, 3) of uint8 or float16, "
            "are expected; export it again"
        )
    precision = _weight_precision(proto)
    if said.get("precision", precision) != precision:
        raise ModelError(
            f"{name}: its card says {said['precision']}, but its weights are {precision}; "
            "export it again"
        )
    batch, height, width = _picture_axes(entry, "nhwc")
    sizes = SizeRequirements(
        multiple_of=number("multiple_of", 1) or 1,
        minimum=number("minimum", 1) or 1,
        fixed=_fixed_size(path, height, width),
    )
    _check_output_size(path, _Shapes(proto), sizes.smallest_fit((64, 64)))
    if said.get("direction") not in (None, "AtoB", "BtoA"):
        raise ModelError(
            f"{name}: its card says direction = {said['direction']!r} where AtoB or BtoA is "
            "expected; export it again"
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


# Adopting


@dataclass(frozen=True)
class _Said:
    """What ``--model-io`` said; None is to be found out."""

    layout: Layout | None = None
    order: Order | None = None
    takes: Range | None = None
    gives: Range | None = None


def _parse_model_io(text: str | None) -> _Said:
    """Return what ``--model-io`` says. Raises ModelError with the grammar."""

    def refuse(what: str) -> NoReturn:
        raise ModelError(f"--model-io {text!r}: {what}; it is {MODEL_IO_GRAMMAR}")

    if text is None:
        return _Said()
    before, arrow, after = text.lower().partition("->")
    found: dict[str, str] = {}
    for word in before.replace(",", " ").split():
        kind = (
            "layout" if word in ("nchw", "nhwc")
            else "order" if word in ("rgb", "bgr")
            else "takes" if word in _RANGES
            else refuse(f"{word!r} is not known")
        )  # fmt: skip
        if kind in found:
            refuse(f"{found[kind]!r} and {word!r} exclude each other")
        found[kind] = word
    if arrow:
        found["gives"] = after.strip()
        if found["gives"] not in _RANGES:
            refuse(f"{found['gives']!r} is no range")
    if not found:
        refuse("nothing is said")
    return _Said(
        layout=cast("Layout | None", found.get("layout")),
        order=cast("Order | None", found.get("order")),
        takes=_RANGES.get(found.get("takes", "")),
        gives=_RANGES.get(found.get("gives", "")),
    )


def _adopt(
    path: Path, proto: onnx.ModelProto, said: _Said, digest: str
) -> tuple[onnx.ModelProto, ModelCard]:
    """Return a foreign float generator inside the contract, and its card. Raises ModelError."""
    name = printable(path)
    entry, leave = _ends(path, proto)
    if _dimensions(leave) is None:
        # Some exporters leave the output's shape to whoever reads the file.
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        leave.CopyFrom(inferred.graph.output[0])
    for value, word in ((entry, "input"), (leave, "output")):
        dimensions = _dimensions(value)
        if dimensions is None or len(dimensions) != 4:
            _refuse(path, f"its {word} is {_say(value)} where a batch of pictures has four axes")
        if value.type.tensor_type.elem_type not in _ADOPTABLE:
            _refuse(path, f"its {word} is {_say(value)} where float or uint8 is expected")
    flow = _Flow(proto)
    layout = _layout(path, entry, said.layout, flow.layout_of_input(entry.name))
    gives_layout = _layout(path, leave, None, layout)
    gives = said.gives or flow.range_of_output(leave.name)
    takes = said.takes or flow.range_of_input(entry.name) or gives
    gives = gives or takes
    if entry.type.tensor_type.elem_type == TensorProto.UINT8:
        takes = takes or _RANGES["0..255"]
    if leave.type.tensor_type.elem_type == TensorProto.UINT8:
        gives = gives or _RANGES["0..255"]
    takes = takes or gives
    gives = gives or takes
    anything = _RANGES["-1..1"]
    order = said.order or "rgb"

    def contract_of(io: GeneratorIO) -> onnx.ModelProto:
        try:
            contract = contract_from_generator(proto, io)
            onnx.checker.check_model(contract)
        except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{name}: cannot be brought into the contract: {_first_line(error)}; export it "
                f"with opset {_CONVERTED_OPSET} or later"
            ) from error
        return contract

    # Sizes first: whoever brings an upscaler is not to be asked for its range.
    io = GeneratorIO(layout, order, takes or anything, gives or anything, gives_layout)
    contract = contract_of(io)
    batch, height, width = _picture_axes(entry, layout)
    fixed = _fixed_size(path, height, width)
    shapes = _Shapes(contract)
    if fixed is None:
        sizes = _size_requirements(path, shapes)
    else:
        sizes = SizeRequirements(fixed=fixed)
        _check_output_size(path, shapes, fixed)
    if takes is None:
        last = flow.made.get(leave.name)
        raise ModelError(
            f"{name}: nothing in it says which values black and white have (it ends in "
            f"{last.op_type if last else 'its input'} where Tanh, Sigmoid or Clip would say); "
            "pass --model-io 0..255, --model-io 0..1 or --model-io=-1..1"
        )
    note = f"{printable(Path(path.name))} is a foreign model, adopted as {io}"
    if said.takes is None:
        note += "; the range is read from its graph, --model-io says otherwise"
    card = ModelCard(
        path=path,
        digest=digest,
        contract_version=0,
        architecture=proto.producer_name or "unknown",
        pixel_type="uint8",
        sizes=sizes,
        batch=batch,
        trained_size=fixed[0] if fixed and fixed[0] == fixed[1] else None,
        direction=None,
        precision=_weight_precision(proto),
        source_digest=None,
        tool_version=None,
        parity=None,
        adopted=str(io),
        notes=(note,),
    )
    return contract, card


def _layout(
    path: Path, value: onnx.ValueInfoProto, said: Layout | None, otherwise: Layout | None
) -> Layout:
    """Tell where the channels are: as said, where the 3 or the 1 is, or else as the graph shows."""
    dimensions = _dimensions(value) or []
    fits: list[Layout] = []
    if dimensions[1] in (1, 3, None):
        fits.append("nchw")
    if dimensions[3] in (1, 3, None):
        fits.append("nhwc")
    certain: list[Layout] = [
        layout for layout in fits if dimensions[_channel_axis(layout)] is not None
    ]
    axes = [dimensions[1], dimensions[3]]
    if not fits or (not certain and said is None and otherwise not in fits and any(axes)):
        # (N, 5, H, W): with nothing else to go by, the axis that is known is the channels'.
        _refuse(path, f"has {_say(value)} where 1 or 3 channels are expected")
    if said is not None:
        if said not in fits:
            _refuse(path, f"has {_say(value)}, which is not {said} with 1 or 3 channels")
        layout = said
    elif len(certain) == 1:
        layout = certain[0]
    elif otherwise is not None and otherwise in fits:
        layout = otherwise
    else:
        raise ModelError(
            f"{printable(path)}: has {_say(value)}, which does not show where the channels are; "
            "pass --model-io nchw or --model-io nhwc"
        )
    axis = value.type.tensor_type.shape.dim[_channel_axis(layout)]
    if not axis.dim_value:
        # Every generator that does not say has three.
        axis.dim_value = 3
    return layout


class _Flow:
    """Walk along a graph's values, from its input on or from its output back."""

    _PASSES = frozenset({"Identity", "Cast", "Transpose", "Pad", "Floor", "Round", "Squeeze",
                         "Unsqueeze", "Reshape", "Dropout"})  # fmt: skip
    """Operators that leave the values in their range."""

    _TARGETS = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (-127.0, 127.0), (-2.1, 2.5))
    """What networks normalise to; the last is ImageNet's mean and deviation."""

    _NEAR = 0.25
    """How far two ranges may be apart, in parts of their width, to mean the same."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.made = {out: node for node in proto.graph.node for out in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.weights = {weight.name: weight for weight in proto.graph.initializer}

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return the value of a weight or of a Constant node, or None."""
        if name in self.weights:
            return numpy_helper.to_array(self.weights[name])
        node = self.made.get(name)
        if node is None or node.op_type != "Constant":
            return None
        for attribute in node.attribute:
            if attribute.name == "value":
                return numpy_helper.to_array(attribute.t)
            if attribute.name in ("value_float", "value_int"):
                return np.asarray(helper.get_attribute_value(attribute))
        return None

    def layout_of_input(self, name: str) -> Layout | None:
        """Tell the layout by what reads the input: convolutions are NCHW."""
        for _ in range(8):
            nodes = self.readers.get(name, [])
            if len(nodes) != 1:
                return None
            node = nodes[0]
            if node.op_type == "Transpose":
                perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
                return "nhwc" if perm == [0, 3, 1, 2] else None
            if node.op_type == "Conv":
                return "nchw"
            if node.op_type not in self._PASSES and self._affine(node, name) is None:
                return None
            name = node.output[0]
        return None

    def range_of_output(self, name: str) -> Range | None:
        """Return the range that the last activation and what follows it give, or None."""
        maps: list[tuple[float, float]] = []
        for _ in range(16):
            node = self.made.get(name)
            if node is None:
                return None
            bounds = self._bounds(node)
            if bounds is not None:
                low, high = bounds
                for gain, offset in reversed(maps):
                    low, high = gain * low + offset, gain * high + offset
                return _nearest((low, high), _RANGES.values(), self._NEAR)
            for candidate in node.input:
                step = self._affine(node, candidate)
                if step is not None:
                    maps.append(step)
                    name = candidate
                    break
            else:
                if node.op_type not in self._PASSES:
                    return None
                name = node.input[0]
        return None

    def range_of_input(self, name: str) -> Range | None:
        """Return the range that the arithmetic before the first layer brings to a usual one."""
        gain, offset, steps = 1.0, 0.0, 0
        for _ in range(16):
            nodes = self.readers.get(name, [])
            if len(nodes) != 1:
                break
            step = self._affine(nodes[0], name)
            if step is not None:
                gain, offset = step[0] * gain, step[0] * offset + step[1]
                steps += 1
            elif nodes[0].op_type not in self._PASSES:
                break
            name = nodes[0].output[0]
        if not steps:
            return None
        distances = {
            _distance((gain * low + offset, gain * high + offset), target): (low, high)
            for low, high in _RANGES.values()
            for target in self._TARGETS
        }
        best = min(distances)
        return distances[best] if best <= self._NEAR else None

    def _affine(self, node: onnx.NodeProto, name: str) -> tuple[float, float] | None:
        """Return (gain, offset) if ``node`` maps ``name`` so; means where the channels differ."""
        if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
            return None
        first = node.input[0] == name
        if not first and node.input[1] != name:
            return None
        constant = self.constant(node.input[1 if first else 0])
        if constant is None or constant.size not in (1, 3):
            return None
        value = float(np.mean(constant))
        match node.op_type:
            case "Add":
                return 1.0, value
            case "Sub":
                return (1.0, -value) if first else (-1.0, value)
            case "Mul":
                return value, 0.0
            case _:
                return (1.0 / value, 0.0) if first and value else None

    def _bounds(self, node: onnx.NodeProto) -> Range | None:
        if node.op_type == "Tanh":
            return -1.0, 1.0
        if node.op_type in ("Sigmoid", "HardSigmoid"):
            return 0.0, 1.0
        if node.op_type != "Clip":
            return None
        named = {a.name: a.f for a in node.attribute}
        for word, value in zip(("min", "max"), node.input[1:], strict=False):
            constant = self.constant(value)
            if constant is not None:
                named[word] = float(constant)
        return (named["min"], named["max"]) if {"min", "max"} <= named.keys() else None


def _distance(one: Range, other: Range) -> float:
    return (abs(one[0] - other[0]) + abs(one[1] - other[1])) / (other[1] - other[0])


def _nearest(found: Range, ranges: Iterable[Range], near: float) -> Range | None:
    best = min(ranges, key=lambda known: _distance(found, known))
    return best if _distance(found, best) <= near else None


# Sizes


class _Shapes:
    """What shape inference says of a contract graph at a given size; the weights stay behind."""

    _LARGE = 256
    """Weights of more elements cannot be shapes: they are left out, which makes inference quick."""

    def __init__(self, contract: onnx.ModelProto) -> None:
        graph = onnx.GraphProto()
        graph.name = contract.graph.name
        graph.node.extend(contract.graph.node)
        graph.input.extend(contract.graph.input)
        graph.output.extend(contract.graph.output)
        known = {value.name for value in graph.input}
        for weight in contract.graph.initializer:
            if int(np.prod(weight.dims)) <= self._LARGE:
                graph.initializer.append(weight)
            elif weight.name not in known:
                graph.input.append(
                    helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
                )
        self._proto = onnx.ModelProto()
        self._proto.ir_version = max(contract.ir_version, 4)
        self._proto.opset_import.extend(contract.opset_import)
        self._proto.functions.extend(contract.functions)
        self._proto.graph.CopyFrom(graph)
        flow = _Flow(self._proto)
        self._reflections = [
            (node.input[0], pads)
            for node in graph.node
            if node.op_type == "Pad" and (pads := _reflection(node, flow)) is not None
        ]

    def output_size(self, size: Size) -> Size | Literal["unknown", "invalid"]:
        """Return the size of ``translated`` for ``frames`` of ``size``."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        frames = next(value for value in proto.graph.input if value.name == INPUT)
        axes = frames.type.tensor_type.shape.dim
        for axis, length in zip(axes, (axes[0].dim_value or 1, *size, 3), strict=True):
            axis.dim_value = length
        # Whatever the file declares of its output is not to be believed here.
        del proto.graph.output[0].type.tensor_type.shape.dim[1:3]
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError:
            return "invalid"
        values = {value.name: _dimensions(value) for value in inferred.graph.value_info}
        values[INPUT] = [*(axes[i].dim_value for i in range(4))]
        for dimensions in values.values():
            if dimensions and any(length is not None and length < 1 for length in dimensions):
                return "invalid"
        for name, pads in self._reflections:
            shape = values.get(name)
            for side, pad in zip(shape or [], pads, strict=False):
                if side is not None and pad >= side:
                    return "invalid"
        found = _dimensions(inferred.graph.output[0])
        if found is None or len(found) != 4 or found[1] is None or found[2] is None:
            return "unknown"
        return found[1], found[2]

    def multiple_by_strides(self) -> int:
        """Return the largest reduction that any path through the graph reaches."""
        scale: dict[str, float] = {}
        most = 1.0
        for node in self._proto.graph.node:
            strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [1])
            own = max((scale.get(name, 1.0) for name in node.input), default=1.0)
            if node.op_type in ("Conv", "MaxPool", "AveragePool", "LpPool"):
                own *= max(strides)
            elif node.op_type == "ConvTranspose":
                own /= max(strides)
            elif node.op_type in ("Resize", "Upsample", "DepthToSpace"):
                own = max(1.0, own / 2)
            for name in node.output:
                scale[name] = own
            most = max(most, own)
        return round(most)


def _reflection(node: onnx.NodeProto, flow: _Flow) -> list[int] | None:
    """Return the widest reflection on each axis of a Pad, or None if it does not reflect."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("mode", b"constant") != b"reflect":
        return None
    pads = attributes.get("pads")
    if pads is None:
        constant = flow.constant(node.input[1])
        if constant is None:
            return None
        pads = constant.tolist()
    half = len(pads) // 2
    return [max(begin, end) for begin, end in zip(pads[:half], pads[half:], strict=True)]


def _check_output_size(path: Path, shapes: _Shapes, size: Size) -> None:
    """Refuse a model that is known to change the size. Raises ModelError."""
    found = shapes.output_size(size)
    if isinstance(found, tuple) and found != size:
        _refuse(
            path,
            f"gives {found[0]}×{found[1]} for {size[0]}×{size[1]} (height × width) where a "
            "generator keeps the size",
        )


def _size_requirements(path: Path, shapes: _Shapes) -> SizeRequirements:
    """Find the multiple and the minimum of a foreign file of free size by inferring its shapes.

    The multiple is the least power of two, up to 256, of which odd multiples keep their size; the
    minimum is the least multiple at which every reflection finds enough pixels and nothing is
    empty.
    Where inference cannot follow the graph, the strides say the multiple, and a backend finds the
    rest out when it runs. Raises ModelError.
    """
    for multiple in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        # Odd multiples only: even ones would also be right for a larger multiple.
        odd = 128 // multiple | 1
        size = odd * multiple, (odd + 2) * multiple
        found = shapes.output_size(size)
        if found == size:
            break
    else:
        if isinstance(found, tuple):
            _check_output_size(path, shapes, size)
        multiple = shapes.multiple_by_strides()
        return SizeRequirements(multiple_of=multiple, minimum=multiple)
    too_small, enough = 0, odd
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        side = middle * multiple
        if shapes.output_size((side, side)) == (side, side):
            enough = middle
        else:
            too_small = middle
    return SizeRequirements(multiple_of=multiple, minimum=enough * multiple)


def _fixed_size(path: Path, height: int | None, width: int | None) -> Size | None:
    if height is not None and width is not None:
        return height, width
    if height is not None or width is not None:
        _refuse(
            path,
            f"fixes its height to {height or 'any'} and its width to {width or 'any'} where both "
            "or neither are fixed",
        )
    return None


# Small things about values


def _opset(proto: onnx.ModelProto) -> int:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def _dimensions(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """Return the length of every axis, None for a free one; None where the rank is not known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]


def _picture_axes(
    value: onnx.ValueInfoProto, layout: Layout
) -> tuple[int | None, int | None, int | None]:
    """Return batch, height and width, each None where it is free."""
    batch, *rest = _dimensions(value) or []
    height, width = rest[1:] if layout == "nchw" else rest[:2]
    # Some exporters write a free axis as 0 or −1.
    return tuple(n if n is not None and n > 0 else None for n in (batch, height, width))  # type: ignore[return-value]


def _channel_axis(layout: Layout) -> int:
    return 1 if layout == "nchw" else 3


def _channels(value: onnx.ValueInfoProto, layout: Layout) -> int | None:
    dimensions = _dimensions(value)
    return dimensions[_channel_axis(layout)] if dimensions else None


def _range_name(found: Range) -> str:
    return next(name for name, known in _RANGES.items() if known == found)


def _say(value: onnx.ValueInfoProto) -> str:
    """Return a value in words: ``'image' (1, 3, H, W) float32``."""
    tensor = value.type.tensor_type
    kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else "?"
    if not tensor.HasField("shape"):
        return f"{value.name!r} of {kind} and unknown shape"
    axes = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?"
            for d in tensor.shape.dim)  # fmt: skip
    return f"{value.name!r} ({', '.join(axes)}) {kind}"


def _refuse(path: Path, found: str) -> NoReturn:
    raise ModelError(
        f"{printable(path)}: {found}; it is no generator that this tool can translate with: one "
        "picture in, one of the same size out, 1 or 3 channels"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
