"""Read an ONNX file as one whole, checked graph.

The weights may lie in files beside it. The file is not trusted: it may be damaged or no ONNX at
all, and it may name any file of this machine as its weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from ...errors import ModelError
from ...wording import byte_size, first_line, printable
from .contract import dimensions_of
from .external_weights import MOST_BYTES, load_external, tensors_of, too_large


def read_onnx(path: Path) -> tuple[bytes, onnx.ModelProto, str]:
    """Return the ONNX at ``path`` as bytes and parsed, all weights inside, and its digest.

    The digest covers the file and the weights beside it. Raises ModelError.
    """
    name = printable(path)
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise too_large(path, f"is {byte_size(size)}")
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
    external_files = load_external(path, proto)
    try:
        for file in external_files:
            with file.open("rb") as weights:
                digest.update(hashlib.file_digest(weights, "sha256").digest())
        texts = [text for node in proto.graph.node for text in (*node.input, *node.output)]
        texts += [text for prop in proto.metadata_props for text in (prop.key, prop.value)]
        for end in (*proto.graph.input, *proto.graph.output):
            texts += [end.name, *(axis.dim_param for axis in end.type.tensor_type.shape.dim)]
        for text in texts:
            if isinstance(text, bytes):
                text.decode()  # protobuf returns a string that is not UTF-8 as bytes
        if _declare_shapes(proto) or external_files:
            content = proto.SerializeToString()
        onnx.checker.check_model(proto)
    # For a model that is too large protobuf raises ValueError, and the checker its own error.
    except (
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, OSError,
    ) as error:  # fmt: skip
        raise ModelError(
            f"{name}: is not valid ONNX: {first_line(error)}; export it again"
        ) from error
    return content, proto, digest.hexdigest()


def names_other_files(path: Path) -> bool:
    """Return whether the file at ``path`` is an ONNX that keeps weights in other files.

    Raises OSError.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        return False  # `read_onnx` tells it
    return any(each.data_location == TensorProto.EXTERNAL for each in tensors_of(proto))


def _declare_shapes(proto: onnx.ModelProto) -> bool:
    """Fill in, in place, the shapes that a graph's input and output do not declare.

    Some exporters (TensorFlow's, at an unknown rank) leave them out, and runtimes infer them. An
    input of unknown rank is given four free axes, and so is an output that inference cannot follow;
    where that is wrong, the graph is refused later, or by the backend. Returns whether a shape was
    missing.
    """
    weights = {weight.name for weight in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    missing = [v for v in (*inputs, *proto.graph.output) if dimensions_of(v) is None]
    if not missing:
        return False

    def add_free_axes(value: onnx.ValueInfoProto) -> None:
        tensor = value.type.tensor_type
        if dimensions_of(value) is None and tensor.elem_type:
            for _ in range(4):
                tensor.shape.dim.add()

    for value in inputs:
        add_free_axes(value)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for value, inferred_value in zip(proto.graph.output, inferred.graph.output, strict=True):
        if dimensions_of(value) is None:
            value.CopyFrom(inferred_value)
            add_free_axes(value)
    return True


def check_weights(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse weights that hold NaN, which would blacken every frame. Raises ModelError."""
    for tensor in proto.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            values = numpy_helper.to_array(tensor)
            if np.isnan(values).any():
                raise ModelError(
                    f"{printable(path)}: the weight {tensor.name!r} holds NaN where numbers are "
                    "expected: its training diverged, or the file is damaged; use a file of "
                    "another checkpoint"
                )
