"""Weights beside an ONNX: what a model says of them may be anything, and nothing else is read."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.graphs.external_weights import tensors_of
from cyclegan_batch.models.graphs.onnx_file import read_onnx
from cyclegan_batch.models.model import open_model
from tests.needs import need
from tests.synthesis import generators
from tests.synthesis.generators import natural, run

SECRET = bytes(range(36))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a model, with a secret beside it that no model may read."""
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def beside(
    folder: Path, weights: dict[int, tuple[str | bytes, int | str | None, int | str | None]]
) -> Path:
    """Write a model whose weights of these numbers lie at (location, offset, length).

    Weight 0 has 36 bytes, 1 has 12 bytes. None: not stated.
    """
    path = generators.foreign(folder / "a.onnx")
    proto = onnx.load(path)
    for number, place in weights.items():
        tensor = proto.graph.initializer[number]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in zip(("location", "offset", "length"), place, strict=True):
            if value is not None:
                # A stand-in of the same length is written for what is no UTF-8.
                text = "X" * len(value) if isinstance(value, bytes) else str(value)
                tensor.external_data.add(key=key, value=text)
    content = proto.SerializeToString()
    for location, _, _ in weights.values():
        if isinstance(location, bytes):
            content = content.replace(b"X" * len(location), location)
    path.write_bytes(content)
    return path


def own_weights(folder: Path) -> bytes:
    """Return the bytes of the two first weights of the model, one behind the other."""
    proto = onnx.load(generators.foreign(folder / "whole.onnx"))
    return b"".join(numpy_helper.to_array(t).tobytes() for t in proto.graph.initializer[:2])


def test_weights_in_two_files_and_in_one_that_both_read(folder: Path) -> None:
    content = own_weights(folder)
    (folder / "one").write_bytes(b"-" * 5 + content[:36])
    (folder / "sub").mkdir()
    (folder / "sub" / "two").write_bytes(content[36:])
    whole = open_model(folder / "whole.onnx")
    for places in (
        {0: ("one", 5, 36), 1: ("sub/two", None, None)},
        {0: ("one", 5, None), 1: ("sub/../sub/two", 0, 12)},
    ):
        split = open_model(beside(folder, places))
        frames = natural((8, 8))
        assert np.array_equal(run(split.graph, frames), run(whole.graph, frames))
    (folder / "both").write_bytes(content)
    before = open_model(beside(folder, {0: ("both", 0, 36), 1: ("both", 36, 12)})).card.digest
    (folder / "both").write_bytes(content[:-1] + b"\x01")
    assert open_model(folder / "a.onnx").card.digest != before


def linked(to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "w").symlink_to(to)


OUTSIDE: dict[str, tuple[str | bytes, Callable[[Path], None] | None]] = {
    "above": ("../secret", None),
    "above, by a folder": ("sub/../../secret", None),
    "absolute": ("/etc/passwd", None),
    "a link": ("w", linked("../secret")),
    "a link to an absolute path": ("w", linked("/etc/hostname")),
    "a link to a folder above": ("w/secret", linked("..")),
    "a link to itself": ("w", linked("w")),
    "none": ("", None),
    "the folder": (".", None),
    "a zero byte": ("w\x00", None),
    "no UTF-8": (b"w\xff\xfe", None),
}


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("attack", OUTSIDE)
def test_weights_outside_the_folder_are_not_read_errors(folder: Path, attack: str) -> None:
    location, prepare = OUTSIDE[attack]
    if prepare is not None:
        prepare(folder)
    path = beside(folder, {0: (location, 0, 36)})
    with pytest.raises(ModelError, match=r"a\.onnx: names weights in .*, outside its own folder; "):
        open_model(path)


@pytest.mark.behaviour(44)
@pytest.mark.parametrize(
    ("offset", "length", "match"),
    [
        (1, 36, "its weight 'c0' ends at byte 37 of w, which has 36; download or export the model"),
        (40, None, "ends at byte 76 of w, which has 36"),
        (10**17, 36, "ends at byte 100000000000000036 of w"),
        (0, 35, r"has 35 bytes in w where its shape \(3, 3, 1, 1\) needs 36"),
        (0, 10**17, r"has 100000000000000000 bytes in w where its shape \(3, 3, 1, 1\) needs 36"),
        (0, 10**30, "states '1000000000000000000000000000000' as the length of its weight 'c0'"),
        (-1, 36, "states '-1' as the offset of its weight 'c0' where a number of bytes"),
        ("0x4", 36, "states '0x4' as the offset"),
        (0, "", "states '' as the length"),
        (" 0", 36, "states ' 0' as the offset"),
        ("٣", 36, "states '٣' as the offset"),
    ],
)
def test_offsets_and_lengths_that_the_file_does_not_have_errors(
    folder: Path, offset: int | str, length: int | str | None, match: str
) -> None:
    (folder / "w").write_bytes(bytes(36))
    with pytest.raises(ModelError, match=match):
        open_model(beside(folder, {0: ("w", offset, length)}))


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("key", ["location", "offset", "length"])
def test_a_place_that_is_stated_twice_errors(folder: Path, key: str) -> None:
    """One reader takes the first of two locations, another the last."""
    (folder / "w").write_bytes(bytes(36))
    path = beside(folder, {0: ("w", 0, 36)})
    proto = onnx.ModelProto.FromString(path.read_bytes())
    again = {"location": "../secret", "offset": "4", "length": "32"}[key]
    proto.graph.initializer[0].external_data.add(key=key, value=again)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=f"states the {key} of its weight 'c0' twice; download"):
        open_model(path)


def test_a_shape_that_is_none_errors(folder: Path) -> None:
    (folder / "w").write_bytes(bytes(36))
    path = beside(folder, {0: ("w", 0, 36)})
    proto = onnx.ModelProto.FromString(path.read_bytes())
    proto.graph.initializer[0].dims[:] = [-3, -3, 1, 1]
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"'c0' has the shape \(-3, -3, 1, 1\), below zero"):
        open_model(path)
    proto.graph.initializer[0].data_type = TensorProto.STRING
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="'c0' in another file, and it is of no number type"):
        open_model(path)


@pytest.mark.behaviour(44)
def test_a_pipe_and_a_folder_are_no_weights_errors(folder: Path) -> None:
    """A pipe would be waited for without an end."""
    (folder / "folder").mkdir()
    places = ["folder"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
        places.append("pipe")
    for place in places:
        with pytest.raises(ModelError, match=f"its weights file {place} is no regular file"):
            open_model(beside(folder, {0: (place, 0, 36)}))
    # The second is onnxruntime's word for an address in its memory.
    for place in ("gone", "*/_ORT_MEM_ADDR_/*"):
        with pytest.raises(ModelError, match=r"its weights file \S+ is missing; keep the two"):
            open_model(beside(folder, {0: (place, 0, 36)}))
    with pytest.raises(ModelError, match=r"its weights file w{100} cannot be read: File name too"):
        open_model(beside(folder, {0: ("w" * 5000, 0, 36)}))


# More than two gigabytes, which no test writes: the files are empty


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def memory() -> int:
    """Return the largest memory of this process so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.needs("linux")
def test_a_file_of_more_than_two_gigabytes_errors(folder: Path) -> None:
    sparse(folder / "large.onnx", 2**31)
    before = memory()
    with pytest.raises(
        ModelError,
        match=r"large\.onnx: is 2\.0 GiB, and an ONNX of more than 2 GiB is not opened; export it",
    ):
        open_model(folder / "large.onnx")
    assert memory() - before < 2**18


@pytest.mark.needs("linux")
@pytest.mark.parametrize("parts", [1, 600])
def test_weights_of_more_than_two_gigabytes_errors(folder: Path, parts: int) -> None:
    """One large weight, or the same few megabytes again and again."""
    path = beside(folder, {0: ("w", 0, None)})
    proto = onnx.ModelProto.FromString(path.read_bytes())
    each = 2**31 // parts // 4 + 1
    proto.graph.initializer[0].dims[:] = [each]
    for number in range(1, parts):
        proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
        proto.graph.initializer[-1].name = f"again{number}"
    path.write_bytes(proto.SerializeToString())
    sparse(folder / "w", 4 * each)
    before = memory()
    with pytest.raises(ModelError, match=r"its weights are 2\.0 GiB together, and an ONNX of more"):
        open_model(path)
    assert memory() - before < 2**18


@pytest.mark.needs("linux")
def test_a_file_of_weights_that_is_mostly_something_else_errors(folder: Path) -> None:
    sparse(folder / "w", 2**40)
    with pytest.raises(ModelError, match=r"its weights file w is 1024\.0 GiB, and an ONNX of more"):
        open_model(beside(folder, {0: ("w", 0, 36)}))


# Every place in a graph that can hold a tensor


def everywhere() -> onnx.ModelProto:
    """Return a model with one tensor in each place, each of another name."""

    def tensor(name: str) -> TensorProto:
        return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[9])

    def sparse_tensor(name: str) -> onnx.SparseTensorProto:
        return onnx.SparseTensorProto(values=tensor(name), indices=tensor(name + " indices"))

    proto = onnx.ModelProto()
    inner = onnx.GraphProto(initializer=[tensor("inner weight")])
    inner.node.add().attribute.add(t=tensor("inner attribute"))
    attributes = [
        onnx.AttributeProto(t=tensor("attribute")),
        onnx.AttributeProto(tensors=[tensor("attribute of several")]),
        onnx.AttributeProto(sparse_tensor=sparse_tensor("sparse attribute")),
        onnx.AttributeProto(sparse_tensors=[sparse_tensor("sparse attribute of several")]),
        onnx.AttributeProto(g=inner),
        onnx.AttributeProto(graphs=[onnx.GraphProto(initializer=[tensor("graph of several")])]),
    ]
    proto.graph.node.add().attribute.extend(attributes)
    proto.graph.initializer.append(tensor("weight"))
    proto.graph.sparse_initializer.append(sparse_tensor("sparse weight"))
    function = proto.functions.add()
    function.attribute_proto.add(t=tensor("default of a function"))
    function.node.add().attribute.add(t=tensor("attribute in a function"))
    training = proto.training_info.add()
    training.initialization.initializer.append(tensor("beginning of a training"))
    training.algorithm.initializer.append(tensor("algorithm of a training"))
    return proto


@pytest.mark.behaviour(44)
def test_no_place_in_a_model_is_forgotten() -> None:
    """The names of all tensors are found, which is as many as the message holds."""
    proto = everywhere()
    found = [tensor.name for tensor in tensors_of(proto) if tensor.name]
    held = str(proto).count("data_type: 1")
    assert len(found) == len(set(found)) == held == 16


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("place", ["sparse attribute", "attribute in a function"])
def test_a_secret_in_a_far_place_is_not_read_errors(folder: Path, place: str) -> None:
    need("linux")
    path = generators.foreign(folder / "a.onnx")
    proto = onnx.load(path)
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[9])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    if place == "sparse attribute":
        indices = numpy_helper.from_array(np.arange(9, dtype=np.int64))
        value = onnx.SparseTensorProto(values=tensor, indices=indices, dims=[9])
        proto.graph.node.append(helper.make_node("Constant", [], ["far"], sparse_value=value))
    else:
        node = helper.make_node("Constant", [], ["far"], value=tensor)
        opset = [helper.make_opsetid("", 17)]
        proto.functions.append(helper.make_function("own", "F", [], ["far"], [node], opset))
        proto.opset_import.append(helper.make_opsetid("own", 1))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"names weights in '\.\./secret', outside its own folder"):
        read_onnx(path)
