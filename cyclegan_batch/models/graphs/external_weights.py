"""Weights of an ONNX that lie in files beside it: found, checked, and read into the graph.

What a model says of them is not trusted. A location can be any path of this machine, offsets and
lengths any numbers, and a file anything with a name. Nothing is read or allocated before the file
is known to lie in the model's own folder, to be a regular file, and to hold what is read of it.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto, helper

from ...errors import ModelError
from ...wording import byte_size, printable

MOST_BYTES = 2**31 - 1
"""The size of the largest message of protobuf, and so of the largest graph that is opened."""

_PACKED_BITS = {
    number: bits
    for name, bits in (("UINT4", 4), ("INT4", 4), ("FLOAT4E2M1", 4), ("UINT2", 2), ("INT2", 2))
    if (number := dict(TensorProto.DataType.items()).get(name)) is not None
}
"""The number types of which several values share a byte."""


@dataclass(frozen=True)
class _Place:
    """Where a weight lies."""

    file: Path
    offset: int
    length: int
    """In bytes, by the shape and the number type of the weight."""


def load_external(path: Path, proto: onnx.ModelProto) -> list[Path]:
    """Read the weights beside the model at ``path`` into ``proto``; return their files, each once.

    Only files in the model's own folder are read, after symbolic links are resolved. Raises
    ModelError.
    """
    folder = path.parent.resolve()
    by_file: dict[Path, list[tuple[TensorProto, _Place]]] = {}
    total = 0
    for tensor in tensors_of(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            place = _place(path, folder, tensor)
            by_file.setdefault(place.file, []).append((tensor, place))
            total += place.length
    if total + proto.ByteSize() > MOST_BYTES and by_file:
        raise too_large(path, f"its weights are {byte_size(total)} together")
    for file, weights in by_file.items():
        with _opened(path, file) as content:
            size = os.fstat(content.fileno()).st_size
            if size > MOST_BYTES:
                raise too_large(path, f"its weights file {file.name[:100]} is {byte_size(size)}")
            for tensor, place in weights:
                if place.offset + place.length > size:
                    raise _damaged(
                        path,
                        f"its weight {tensor.name!r} ends at byte {place.offset + place.length} of "
                        f"{file.name}, which has {size}",
                    )
                content.seek(place.offset)
                tensor.raw_data = content.read(place.length)
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
    return list(by_file)


def too_large(path: Path, finding: str) -> ModelError:
    """Return the error for a model that exceeds `MOST_BYTES`."""
    return ModelError(
        f"{printable(path)}: {printable(finding)}, and an ONNX of more than 2 GiB is not opened; "
        "export it in half precision, or a smaller network"
    )


def tensors_of(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that may hold data: in weights, attributes, subgraphs and functions."""

    def of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[TensorProto]:
        for attribute in attributes:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from of_graph(graph)

    def of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            yield from of_attributes(node.attribute)

    yield from of_graph(proto.graph)
    for function in proto.functions:
        yield from of_attributes(function.attribute_proto)
        for node in function.node:
            yield from of_attributes(node.attribute)
    for training in proto.training_info:
        yield from of_graph(training.initialization)
        yield from of_graph(training.algorithm)


def _place(path: Path, folder: Path, tensor: TensorProto) -> _Place:
    """Return where a weight lies, as the model says and as its shape tells. Raises ModelError."""
    said: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in said:
            # Readers differ in which of two they take.
            raise _damaged(path, f"states the {entry.key} of its weight {tensor.name!r} twice")
        said[entry.key] = entry.value
    location = said.get("location", "")
    try:
        target = (folder / location).resolve()
        is_inside = bool(location) and target.is_relative_to(folder) and target != folder
    # A name that is not UTF-8 is bytes here; others hold a zero byte, are too long, or links that
    # lead back to themselves.
    except (OSError, RuntimeError, TypeError, ValueError):
        is_inside = False
    if not is_inside:
        raise ModelError(
            f"{printable(path)}: names weights in {location[:200]!r}, outside its own folder; "
            "they are not read: keep the model and its weights in one folder"
        )
    numbers = {key: said[key] for key in ("offset", "length") if key in said}
    for key, number in numbers.items():
        if not re.fullmatch(r"[0-9]{1,18}", str(number), re.ASCII):
            raise _damaged(
                path,
                f"states {str(number)[:40]!r} as the {key} of its weight {tensor.name!r} where a "
                "number of bytes is expected",
            )
    length = _byte_count(path, tensor)
    declared = int(numbers.get("length", length))
    if declared != length:
        raise _damaged(
            path,
            f"its weight {tensor.name!r} has {declared} bytes in {target.name} where its shape "
            f"{tuple(tensor.dims)} needs {length}",
        )
    return _Place(target, int(numbers.get("offset", 0)), length)


def _byte_count(path: Path, tensor: TensorProto) -> int:
    """Return the number of bytes that a weight's shape and type need. Raises ModelError."""
    types = helper.get_all_tensor_dtypes()
    if tensor.data_type not in types or tensor.data_type == TensorProto.STRING:
        raise _damaged(
            path, f"keeps its weight {tensor.name!r} in another file, and it is of no number type"
        )
    if any(side < 0 for side in tensor.dims):
        raise _damaged(
            path, f"its weight {tensor.name!r} has the shape {tuple(tensor.dims)}, below zero"
        )
    itemsize = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    bits = _PACKED_BITS.get(tensor.data_type, 8 * itemsize)
    return -(-math.prod(tensor.dims) * bits // 8)


def _opened(path: Path, file: Path) -> BinaryIO:
    """Open a regular file for reading, and nothing else. Raises ModelError."""
    name = f"{printable(path)}: its weights file {printable(file.name[:100])}"
    # A pipe would block, and a link may have taken the place of the file since it was resolved.
    flags = os.O_RDONLY | sum(getattr(os, n, 0) for n in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"))
    try:
        number = os.open(file, flags)
    except FileNotFoundError as error:
        raise ModelError(f"{name} is missing; keep the two side by side") from error
    except OSError as error:
        raise ModelError(f"{name} cannot be read: {error.strerror}; check the file") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ModelError(f"{name} is no regular file; keep the weights themselves beside the model")
    return os.fdopen(number, "rb")


def _damaged(path: Path, finding: str) -> ModelError:
    """Return the error for a model and files that do not belong together, or are damaged."""
    return ModelError(
        f"{printable(path)}: {printable(finding)}; download or export the model and its weights "
        "again"
    )
