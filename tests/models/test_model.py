"""A model file is opened with a true card, or refused with what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.models.card import Recognition
from cyclegan_batch.models.checkpoints.files import Selection
from cyclegan_batch.models.model import (
    GeneratorIO,
    contract_from_generator,
    describe,
    graph_with_values,
    open_model,
    sample_frames,
    widest_tensor,
    write_model,
)
from tests.synthesis import generators
from tests.synthesis.generators import Graph, card, natural, run


def weights_beside(path: Path, location: str, weights: str | None = None) -> Path:
    """Move the weights of an adopted file out of it, and write them to ``weights`` beside it."""
    proto = onnx.load(generators.foreign_resnet(path))
    blob = b""
    for tensor in proto.graph.initializer:
        raw = numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", len(blob)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        blob += raw
    path.write_bytes(proto.SerializeToString())
    if weights is not None:
        (path.parent / weights).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / weights).write_bytes(blob)
    return path


# Contract files


@pytest.mark.parametrize("io", ["uint8", "float16"])
def test_a_contract_file_is_described_by_its_card_and_its_graph(
    tmp_path: Path, io: generators.PixelType
) -> None:
    path = generators.identity(
        tmp_path / "a.onnx", io, architecture="resnet-9", multiple_of="4", minimum="8",
        trained_size="256", direction="AtoB", source_digest="ab" * 32, tool_version="0.1.0",
        parity="exact: 88.0 dB",
    )  # fmt: skip
    model = open_model(path)

    found = model.card
    assert found.path == path
    assert found.contract_version == 1
    assert found.pixel_type == io
    assert found.sizes == SizeRequirements(multiple_of=4, minimum=8)
    assert (found.batch, found.trained_size, found.direction) == (None, 256, "AtoB")
    assert (found.architecture, found.precision) == ("resnet-9", "fp32")
    assert (found.source_digest, found.tool_version) == ("ab" * 32, "0.1.0")
    assert (found.parity, found.adopted, found.notes) == ("exact: 88.0 dB", None, ())
    assert model.graph == path.read_bytes()


def test_fixed_sizes_and_a_fixed_batch_are_read_from_the_graph(tmp_path: Path) -> None:
    path = generators.invert(tmp_path / "a.onnx", fixed=(48, 64), batch=1)
    assert open_model(path).card.sizes.fixed == (48, 64)
    assert open_model(path).card.batch == 1


def test_a_card_is_plain_values_for_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"day\xff [a].onnx")
    path = generators.foreign(tmp_path / name, fixed=(8, 16))
    said = json.loads(json.dumps(describe(open_model(path).card)))

    assert said["path"].endswith("day\\xff [a].onnx")
    assert said["kind"] == "foreign ONNX, adopted"
    assert said["adopted"] == "nchw rgb -1..1"
    assert said["fixed_size"] == [8, 16]
    assert said["precision"] == "fp32"
    assert said["contract_version"] is None


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    generator = onnx.load(generators.foreign_resnet(tmp_path / "g.onnx"))
    contract = contract_from_generator(generator, GeneratorIO(), pixel_type="float16")
    written = write_model(
        tmp_path / "c.onnx", contract, architecture="resnet", trained_size=256,
        sizes=SizeRequirements(multiple_of=2, minimum=4), direction="BtoA", parity="exact",
    )  # fmt: skip

    assert open_model(tmp_path / "c.onnx").card == written
    assert written.sizes == SizeRequirements(multiple_of=2, minimum=4)
    assert (written.pixel_type, written.direction) == ("float16", "BtoA")
    assert written.tool_version
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.onnx", "g.onnx"]


def test_what_the_weights_were_recognised_as_is_read_again_and_described(tmp_path: Path) -> None:
    generator = onnx.load(generators.foreign_resnet(tmp_path / "g.onnx"))
    contract = contract_from_generator(generator, GeneratorIO(), pixel_type="uint8")
    recognised = Recognition(
        "cut", "CUT", ("it reflects", "it is \u201cours\u201d"), ("it pads",), weights="netG_A"
    )
    write_model(
        tmp_path / "c.onnx", contract, architecture="cut_resnet_9blocks",
        sizes=SizeRequirements(multiple_of=2, minimum=4), recognised=recognised,
    )  # fmt: skip
    card = open_model(tmp_path / "c.onnx").card
    assert card.recognised == recognised
    assert card.which is None  # an ONNX holds one generator
    described = describe(card)
    assert (described["family"], described["family_title"]) == ("cut", "CUT")
    assert described["assumed"] == ["it reflects", "it is \u201cours\u201d"]
    assert described["as_published"] == ["it pads"]
    assert described["weights"] == "netG_A"
    assert str(described["certainty"]).startswith("in part assumed")
    without = describe(open_model(generators.identity(tmp_path / "old.onnx")).card)
    assert not {"family", "assumed", "weights", "certainty"} & set(without)


@pytest.mark.parametrize(
    ("assumed", "also_fits", "words"),
    [
        (
            (),
            (),
            "certain (names and shapes are this network's, and show every option of its program)",
        ),
        (("a",), (), "in part assumed (names and shapes are this network's, and do not show all)"),
        ((), ("b", "c"), "named by --family (b and c fit these weights, too)"),
        (("a",), ("b",), "named by --family, and in part assumed (b fits these weights, too)"),
    ],
)
def test_a_recognition_says_how_sure_it_is(
    assumed: tuple[str, ...], also_fits: tuple[str, ...], words: str
) -> None:
    recognised = Recognition("x", "X", assumed, also_fits=also_fits)
    assert recognised.certainty.startswith(words)


def test_what_is_taken_as_published_is_no_doubt() -> None:
    recognised = Recognition("x", "X", published=("it reflects",))
    assert recognised.certainty.startswith("certain but for what is taken as published")
    assert replace(recognised, assumed=("a",)).certainty.startswith("in part assumed")


def test_a_checkpoint_of_several_generators_is_told_from_the_others(tmp_path: Path) -> None:
    card = replace(open_model(generators.identity(tmp_path / "a.onnx")).card, contract_version=0)
    one = Recognition("toronto", "a course", weights="netG_A")
    assert card.which is None
    assert replace(card, recognised=one).which == "netG_A"
    named = replace(one, also_fits=("udacity",))
    assert replace(card, recognised=named).which == "netG_A, toronto"
    assert replace(card, recognised=replace(named, weights=None)).which == "toronto"
    assert replace(card, recognised=replace(one, weights=None)).which is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"contract_version": "2"}, "version 2 of the contract.*newer cyclegan-batch"),
        ({"contract_version": "one"}, "contract_version = 'one'.*number"),
        ({"multiple_of": "0"}, "multiple_of = '0'"),
        ({"minimum": "-4"}, "minimum = '-4'"),
        ({"precision": "fp16"}, "says fp16, but its weights are fp32"),
        ({"direction": "CtoD"}, "direction = 'CtoD'.*AtoB or BtoA"),
        ({"recognised": "cut"}, "recognised = 'cut' where a JSON object is expected"),
        ({"recognised": "{}"}, "recognised = '{}' where a family and its title is expected"),
        ({"recognised": '{"family": "a", "title": "A", "assumed": "b"}'}, "assumed as a list"),
        ({"recognised": '{"family": "a", "title": "A", "weights": 3}'}, "weights as text is exp"),
    ],
)
def test_a_card_that_is_wrong_errors(tmp_path: Path, changes: dict[str, str], match: str) -> None:
    path = generators.identity(tmp_path / "a.onnx", **changes)
    with pytest.raises(ModelError, match=match) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def test_a_direction_is_accepted_where_the_card_says_it_or_nothing(tmp_path: Path) -> None:
    path = generators.identity(tmp_path / "m.onnx", direction="BtoA")
    assert open_model(path, selection=Selection("BtoA")).card.direction == "BtoA"
    open_model(generators.identity(tmp_path / "n.onnx"), selection=Selection("AtoB"))
    with pytest.raises(
        ModelError, match=r"m\.onnx: translates BtoA, as its card says, and AtoB was as"
    ):
        open_model(path, selection=Selection("AtoB"))


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(weights="netG_A"), "--weights chooses among the generators of a checkpoint"),
        (Selection(family="unet"), "--family says which network the weights of a checkpoint are f"),
    ],
    ids=["weights", "family"],
)
def test_an_option_for_checkpoints_is_refused_for_any_other_file_errors(
    tmp_path: Path, selection: Selection, words: str
) -> None:
    for path in (
        generators.identity(tmp_path / "contract.onnx"),
        generators.foreign_resnet(tmp_path / "foreign.onnx"),
    ):
        with pytest.raises(ModelError) as caught:
            open_model(path, selection=selection)
        assert str(caught.value).startswith(f"{path}: {words}")
        assert str(caught.value).endswith(", and this is an ONNX; leave the option out")


def test_a_card_on_a_graph_outside_the_contract_errors(tmp_path: Path) -> None:
    proto = onnx.load(generators.foreign_resnet(tmp_path / "a.onnx"))
    helper.set_model_props(proto, {f"cyclegan_batch.{k}": v for k, v in card().items()})
    onnx.save(proto, tmp_path / "a.onnx")
    with pytest.raises(
        ModelError, match=r"names the contract, but its graph has the input 'image'"
    ):
        open_model(tmp_path / "a.onnx")


def test_model_io_for_a_file_that_says_it_itself_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="this file's own card describes it; leave the option out"):
        open_model(generators.identity(tmp_path / "a.onnx"), model_io="nchw")


def test_a_card_that_is_wrong_is_answered_with_what_can_be_done_now_errors(tmp_path: Path) -> None:
    path = generators.identity(tmp_path / "a.onnx", minimum="-4")
    with pytest.raises(ModelError, match="take the ONNX that it was made from"):
        open_model(path)


# Facts of a graph


def test_the_facts_of_a_graph_are_computed_once(tmp_path: Path) -> None:
    model = open_model(generators.tiny_resnet(tmp_path / "a.onnx"))
    assert model.graph_sha256 == hashlib.sha256(model.graph).hexdigest() == model.card.digest
    assert not model.norm_written_out
    assert {"graph_sha256", "norm_written_out"} <= vars(model).keys()
    g = Graph()
    mean = g.op("ReduceMean", "image", axes=[2, 3])
    g.op("Tanh", g.op("Sub", "image", mean), out="picture")
    shape = ("N", 3, "H", "W")
    path = g.save(
        tmp_path / "b.onnx",
        [("image", TensorProto.FLOAT, shape)],
        [("picture", TensorProto.FLOAT, shape)],
    )
    foreign = open_model(path)
    assert foreign.norm_written_out
    assert foreign.graph_sha256 != foreign.card.digest, "the graph is adopted, the file is not"


# Trying a model


@pytest.mark.parametrize("io", ["uint8", "float16"])
def test_nan_is_visible_before_it_is_rounded(tmp_path: Path, io: generators.PixelType) -> None:
    model = open_model(generators.not_a_number(tmp_path / "a.onnx", io))
    out = ReferenceEvaluator(onnx.ModelProto.FromString(graph_with_values(model)))
    with np.errstate(invalid="ignore"):
        values = out.run(["contract/values"], {"frames": sample_frames(model.card)})[0]
    assert np.isnan(values).all()


def test_the_sample_is_small_and_has_a_black_frame(tmp_path: Path) -> None:
    model = open_model(generators.tiny_resnet(tmp_path / "a.onnx"))
    frames = sample_frames(model.card)
    assert frames.shape == (2, 64, 64, 3)
    assert frames[0].std() > 30
    assert not frames[1].any()


# What is no model file


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.onnx", b"", "is empty"),
        ("a.onnx", b"this is a text file\n" * 20, "is no ONNX file"),
        ("a.onnx", b"\x08\x08", "holds no ONNX graph"),
        ("g.engine", b"ftrt" * 10, "has no card beside it"),
    ],
)
def test_a_file_that_is_no_onnx_errors(
    tmp_path: Path, name: str, content: bytes, match: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=match) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def test_a_truncated_file_errors(tmp_path: Path) -> None:
    path = generators.tiny_resnet(tmp_path / "a.onnx")
    whole = path.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"a\.onnx"):
            open_model(path)


def test_a_missing_file_and_a_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        open_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="holds no generator under a usual name"):
        open_model(tmp_path)


def test_a_name_that_is_not_utf_8_can_be_opened_and_said(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe %d [a].onnx")
    assert open_model(generators.identity(tmp_path / name)).card.pixel_type == "uint8"
    with pytest.raises(ModelError, match="xff") as caught:
        open_model(generators.classifier(tmp_path / name))
    str(caught.value).encode()
    with pytest.raises(ModelError, match="xff") as caught:
        open_model(generators.identity(tmp_path / name), model_io="nchw")
    str(caught.value).encode()


@pytest.mark.behaviour(33)
def test_weights_that_are_no_numbers_errors(tmp_path: Path) -> None:
    path = generators.tiny_resnet(tmp_path / "a.onnx")
    proto = onnx.load(path)
    weights = proto.graph.initializer[3]
    values = numpy_helper.to_array(weights).copy()
    values.flat[0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(proto, path)
    with pytest.raises(ModelError, match=f"weight '{weights.name}' holds NaN"):
        open_model(path)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"generator", b"gener\xfftor", "'utf-8' codec can't decode byte 0xff"),
        (b"picture", b"pictur\xe9", "'utf-8' codec can't decode byte 0xe9"),
        (b"t0", b"t\xff", "'utf-8' codec can't decode byte 0xff"),
        (b"\x08\x03\x08\x03", b"\x08\x03\x08\x02", "cannot reshape array"),
    ],
)
def test_damage_that_the_checker_of_onnx_overlooks_errors(
    tmp_path: Path, old: bytes, new: bytes, match: str
) -> None:
    path = generators.foreign(tmp_path / "a.onnx")
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(ModelError, match=f"is not valid ONNX: {match}.*; "):
        open_model(path)


def test_a_number_type_that_onnx_does_not_know_errors(tmp_path: Path) -> None:
    path = generators.foreign(tmp_path / "a.onnx")
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.elem_type = 67
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"'image' \(batch, 3, height, width\) \? where float"):
        open_model(path)


def test_no_checkpoint_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    pytest.importorskip("torch")
    for name in ("G.pth", "G", "G.onnx"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(
            ModelError, match=r"is a pickle that holds posix\.mkdir where only named te"
        ):
            open_model(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


# Weights beside the file


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("place", ["w.bin", "sub/w.bin"])
def test_weights_in_the_models_own_folder_are_loaded_in(tmp_path: Path, place: str) -> None:
    whole = open_model(generators.foreign_resnet(tmp_path / "whole.onnx"))
    split = open_model(weights_beside(tmp_path / "split.onnx", place, place))
    frames = natural((16, 16))
    assert np.array_equal(run(split.graph, frames), run(whole.graph, frames))

    digest = split.card.digest
    weights = tmp_path / place
    weights.write_bytes(b"\0\0\0\1" + weights.read_bytes()[4:])
    assert open_model(tmp_path / "split.onnx").card.digest != digest


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("place", ["../w.bin", "sub/../../w.bin", "/etc/hostname", "link.bin", ""])
def test_weights_outside_the_models_own_folder_errors(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = weights_beside(folder / "a.onnx", place, "../w.bin")
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match="outside its own folder"):
        open_model(path)


def test_missing_weights_beside_the_file_errors(tmp_path: Path) -> None:
    path = weights_beside(tmp_path / "a.onnx", "w.bin")
    with pytest.raises(ModelError, match=r"weights file .*w\.bin is missing"):
        open_model(path)


def test_cut_short_weights_beside_the_file_errors(tmp_path: Path) -> None:
    path = weights_beside(tmp_path / "a.onnx", "w.bin", "w.bin")
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:100])
    with pytest.raises(ModelError, match=r"ends at byte 2416 of w\.bin, which has 100; download"):
        open_model(path)


def test_the_widest_tensor_is_counted_for_each_pixel(tmp_path: Path) -> None:
    # The first layer has this many channels, at the image's size with a border of 3.
    for width in (4, 16):
        model = open_model(generators.tiny_resnet(tmp_path / f"{width}.onnx", width=width))
        assert width <= widest_tensor(model) < width * 1.1
    fixed = open_model(generators.tiny_resnet(tmp_path / "a.onnx", fixed=(64, 48), batch=2))
    assert widest_tensor(fixed) >= 4
    assert widest_tensor(open_model(generators.identity(tmp_path / "b.onnx"))) == 3


@pytest.mark.parametrize("text", [b"contract_version", b"frames"])
def test_metadata_and_names_that_are_no_text_errors(tmp_path: Path, text: bytes) -> None:
    path = generators.invert(tmp_path / "a.onnx")
    path.write_bytes(path.read_bytes().replace(text, b"\xff" + text[1:]))
    with pytest.raises(ModelError, match="is not valid ONNX"):
        open_model(path)


def test_a_symbolic_axis_that_is_no_text_errors(tmp_path: Path) -> None:
    path = generators.invert(tmp_path / "a.onnx")
    proto = onnx.load(path)
    axis = proto.graph.input[0].type.tensor_type.shape.dim[1]
    axis.dim_param = "rows_of_it"
    onnx.save(proto, path)
    path.write_bytes(path.read_bytes().replace(b"rows_of_it", b"\xffows_of_it"))
    with pytest.raises(ModelError, match="is not valid ONNX"):
        open_model(path)
