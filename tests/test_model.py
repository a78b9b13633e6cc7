"""A model file is one described object, or a sentence that says what was found."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import Pixels, SizeRequirements
from cyclegan_batch.model import (
    GeneratorIO,
    Model,
    contract_from_generator,
    describe,
    graph_with_values,
    open_model,
    sample_frames,
    write_model,
)
from tests.synthesis import generators
from tests.synthesis.generators import Graph, card, natural


def run(model: Model, frames: Pixels) -> Pixels:
    """Run the contract graph with numpy alone."""
    out: Pixels = ReferenceEvaluator(onnx.ModelProto.FromString(model.graph)).run(
        None, {"frames": frames}
    )[0]
    return out


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


def test_the_contract_begins_and_ends_with_the_cast_of_the_pixels(tmp_path: Path) -> None:
    generator = onnx.load(generators.foreign_resnet(tmp_path / "g.onnx", half=True))
    graph = contract_from_generator(generator, GeneratorIO()).graph
    first, last = graph.node[0], graph.node[-1]
    assert (first.op_type, list(first.input)) == ("Cast", ["frames"])
    assert (last.op_type, list(last.output)) == ("Cast", ["translated"])
    between = [list(node.input) + list(node.output) for node in list(graph.node)[1:-1]]
    assert not {"frames", "translated"} & {name for names in between for name in names}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"contract_version": "2"}, "version 2 of the contract.*newer cyclegan-batch"),
        ({"contract_version": "one"}, "contract_version = 'one'.*number"),
        ({"multiple_of": "0"}, "multiple_of = '0'"),
        ({"minimum": "-4"}, "minimum = '-4'"),
        ({"precision": "fp16"}, "says fp16, but its weights are fp32"),
        ({"direction": "CtoD"}, "direction = 'CtoD'.*AtoB or BtoA"),
    ],
)
def test_a_card_that_is_wrong_errors(tmp_path: Path, changes: dict[str, str], match: str) -> None:
    path = generators.identity(tmp_path / "a.onnx", **changes)
    with pytest.raises(ModelError, match=match) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def test_a_card_on_a_graph_outside_the_contract_errors(tmp_path: Path) -> None:
    proto = onnx.load(generators.foreign_resnet(tmp_path / "a.onnx"))
    helper.set_model_props(proto, {f"cyclegan_batch.{k}": v for k, v in card().items()})
    onnx.save(proto, tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=r"names the contract, but the graph takes 'image'"):
        open_model(tmp_path / "a.onnx")


def test_model_io_for_a_file_that_says_it_itself_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="says itself what it takes; leave the option out"):
        open_model(generators.identity(tmp_path / "a.onnx"), model_io="nchw")


# Foreign files


def inverted(frames: Pixels, order: str = "rgb") -> Pixels:
    """Return what `generators.foreign` makes of uint8 ``frames``, in numpy alone."""
    x = 255.0 - frames
    x[..., 0 if order == "rgb" else 2] *= 0.4
    return np.floor(x + 0.5)


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("values", ["-1..1", "0..1", "0..255"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("opset", [8, 9, 17])
def test_a_foreign_generator_is_adopted_without_any_option(
    tmp_path: Path, layout: str, values: str, half: bool, opset: int
) -> None:
    path = generators.foreign(
        tmp_path / "a.onnx", layout=layout, range=values, half=half, opset=opset  # type: ignore[arg-type]
    )  # fmt: skip
    model = open_model(path)

    assert model.card.adopted == f"{layout} rgb {values}"
    assert model.card.contract_version == 0
    assert model.card.precision == ("fp16" if half else "fp32")
    assert model.card.sizes == SizeRequirements()
    assert len(model.card.notes) == 1
    frames = natural((12, 10), 2)
    off = np.abs(run(model, frames) - inverted(frames))
    # A half generator knows 2,048 steps of −1..1, and 0..255 in steps of 1/8.
    assert off.max() <= (1 if half else 0)


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("said", ["bgr", "BGR 0..255", "nhwc bgr 0..255 -> 0..255", "0..255, bgr"])
def test_a_word_about_the_channel_order_is_enough(tmp_path: Path, said: str) -> None:
    path = generators.foreign(tmp_path / "a.onnx", layout="nhwc", range="0..255")
    model = open_model(path, model_io=said)
    frames = natural((12, 10))
    assert model.card.adopted == "nhwc bgr 0..255"
    assert np.array_equal(run(model, frames), inverted(frames, "bgr"))


@pytest.mark.behaviour(35)
def test_what_goes_in_and_what_comes_out_may_differ_in_range(tmp_path: Path) -> None:
    g = Graph()
    g.op("Mul", "image", g.constant(0.5), out="x")
    g.op("Add", "x", g.constant(0.5), out="picture")
    shape = (1, 3, "H", "W")
    path = g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    frames = natural((12, 10))
    model = open_model(path, model_io="-1..1 -> 0..1")
    assert model.card.adopted == "nchw rgb -1..1 -> 0..1"
    assert np.array_equal(run(model, frames), frames)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ([("Tanh",)], "-1..1"),
        ([("Sigmoid",)], "0..1"),
        ([("Tanh",), ("Mul", 150.0), ("Add", 127.5)], "0..255"),
        ([("Tanh",), ("Add", 1.0), ("Div", 2.0)], "0..1"),
        ([("Sigmoid",), ("Mul", 255.0)], "0..255"),
    ],
)
def test_the_range_is_read_from_the_last_activation_and_what_follows(
    tmp_path: Path, tail: list[tuple[str, float] | tuple[str]], expected: str
) -> None:
    g = Graph()
    x = "image"
    for kind, *values in tail:
        x = g.op(kind, x, *(g.constant(value) for value in values))
    g.nodes[-1].output[0] = "picture"
    shape = (1, 3, "H", "W")
    g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    assert open_model(tmp_path / "a.onnx").card.adopted == f"nchw rgb {expected}"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ([("Div", 255.0)], "0..255 -> -1..1"),
        ([("Div", 127.5), ("Sub", 1.0)], "0..255 -> -1..1"),
        ([("Mul", 2.0), ("Sub", 1.0)], "0..1 -> -1..1"),
        ([("Sub", 0.45), ("Div", 0.226)], "0..1 -> -1..1"),
        ([("Sub", 116.0), ("Div", 57.6)], "0..255 -> -1..1"),
        ([], "-1..1"),
    ],
)
def test_the_range_that_goes_in_is_read_from_the_first_arithmetic(
    tmp_path: Path, head: list[tuple[str, float]], expected: str
) -> None:
    g = Graph()
    x = "image"
    for kind, value in head:
        x = g.op(kind, x, g.constant(value))
    g.op("Tanh", g.op("Conv", x, g.constant(np.ones((3, 3, 1, 1)))), out="picture")
    shape = (1, 3, "H", "W")
    g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    assert open_model(tmp_path / "a.onnx").card.adopted == f"nchw rgb {expected}"


@pytest.mark.behaviour(35)
def test_a_generator_that_shows_no_range_needs_one_word_and_says_which_errors(
    tmp_path: Path,
) -> None:
    path = generators.foreign(tmp_path / "a.onnx", end="conv", range="0..1")
    with pytest.raises(ModelError, match=r"ends in Conv.*pass --model-io 0\.\.255"):
        open_model(path)
    frames = natural((12, 10))
    assert np.array_equal(run(open_model(path, model_io="0..1"), frames), inverted(frames))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("nchw rgb 0-255", "'0-255' is not known; it is "),
        ("nchw nhwc", "'nchw' and 'nhwc' exclude each other"),
        ("0..1 -> 5", "'5' is no range"),
        ("0..1 ->", "'' is no range"),
        ("", "nothing is said"),
    ],
)
def test_model_io_that_is_not_in_the_grammar_errors(tmp_path: Path, said: str, match: str) -> None:
    path = generators.foreign(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=match) as caught:
        open_model(path, model_io=said)
    assert "[nchw|nhwc] [rgb|bgr]" in str(caught.value)


def test_a_layout_against_the_shape_errors(tmp_path: Path) -> None:
    path = generators.foreign(tmp_path / "a.onnx", layout="nhwc", fixed=(8, 8))
    with pytest.raises(ModelError, match="is not nchw with 1 or 3 channels"):
        open_model(path, model_io="nchw")


def test_one_channel_is_fed_luma_and_repeated(tmp_path: Path) -> None:
    path = generators.foreign(tmp_path / "a.onnx", channels=1, range="0..255")
    frames = natural((12, 10))
    luma = frames @ np.array([0.299, 0.587, 0.114])
    expected = np.floor((255 - luma) * 0.4 + 0.5)[..., np.newaxis].repeat(3, axis=-1)
    out = run(open_model(path), frames)
    assert np.array_equal(out[..., 0], out[..., 1])
    assert np.array_equal(out[..., 0], out[..., 2])
    # float32 sums of three products fall on the other side of a half now and then.
    assert np.abs(out - expected).max() <= 1
    assert np.mean(out != expected) < 0.01


def test_rounding_is_half_up_and_values_beyond_the_range_are_clamped(tmp_path: Path) -> None:
    g = Graph()
    g.op("Mul", "image", g.constant(0.5), out="x")
    g.op("Sub", "x", g.constant(20.0), out="y")
    g.op("Mul", "y", g.constant(3.0), out="picture")
    shape = (1, 3, "H", "W")
    path = g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    exact = (frames.astype(np.float64) / 2 - 20) * 3
    expected = np.clip(np.floor(exact + 0.5), 0, 255)
    assert np.array_equal(run(open_model(path, model_io="0..255"), frames), expected)


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


# Sizes of foreign files


def test_the_multiple_and_the_minimum_are_found_from_the_graph(tmp_path: Path) -> None:
    found = open_model(generators.foreign_resnet(tmp_path / "a.onnx")).card.sizes
    assert found == SizeRequirements(multiple_of=2, minimum=4)


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_a_u_net_needs_the_multiple_of_its_depth(tmp_path: Path, levels: int) -> None:
    g = Graph()
    kernel = g.constant(np.full((3, 3, 4, 4), 0.1))
    passed, x = [], "image"
    for _ in range(levels):
        passed.append(x)
        x = g.op("Conv", x, kernel, strides=[2, 2], pads=[1, 1, 1, 1])
    for skipped in reversed(passed):
        x = g.op("ConvTranspose", x, kernel, strides=[2, 2], pads=[1, 1, 1, 1])
        x = g.op("Add", x, skipped)
    g.op("Tanh", x, out="picture")
    shape = ("N", 3, "H", "W")
    g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    multiple = 2**levels
    found = open_model(tmp_path / "a.onnx").card.sizes
    assert found == SizeRequirements(multiple_of=multiple, minimum=multiple)


def test_sizes_that_the_graph_computes_from_its_input_are_followed(tmp_path: Path) -> None:
    """As torch writes ``interpolate(x, size=y.shape[2:])``."""
    g = Graph()
    kernel = g.constant(np.full((3, 3, 4, 4), 0.1))
    x = "image"
    for _ in range(2):
        x = g.op("Conv", x, kernel, strides=[2, 2], pads=[1, 1, 1, 1])
    shape_of_x = g.op("Shape", x)
    start, middle, end = (g.constant([n], np.int64) for n in (0, 2, 4))
    sides = g.op("Mul", g.op("Slice", shape_of_x, middle, end), g.constant([4, 4], np.int64))
    sizes = g.op("Concat", g.op("Slice", shape_of_x, start, middle), sides, axis=0)
    g.op("Tanh", g.op("Resize", x, "", "", sizes), out="picture")
    shape = ("N", 3, "H", "W")
    g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    found = open_model(tmp_path / "a.onnx").card.sizes
    assert found == SizeRequirements(multiple_of=4, minimum=4)


def test_where_shapes_cannot_be_inferred_the_strides_say_the_multiple(tmp_path: Path) -> None:
    g = Graph()
    kernel = g.constant(np.full((3, 3, 4, 4), 0.1))
    x = "image"
    for _ in range(3):
        x = g.op("Conv", x, kernel, strides=[2, 2], pads=[1, 1, 1, 1])
    # A size that only the values say: no inference can follow it.
    nothing = g.op("Mul", g.op("ReduceMax", x, keepdims=0), g.constant(0.0))
    scales = g.op("Add", nothing, g.constant([1.0, 1.0, 8.0, 8.0]))
    g.op("Tanh", g.op("Resize", x, "", scales), out="picture")
    shape = ("N", 3, "H", "W")
    g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    found = open_model(tmp_path / "a.onnx").card.sizes
    assert found == SizeRequirements(multiple_of=8, minimum=8)


@pytest.mark.behaviour(35)
def test_fixed_sizes_and_batches_of_foreign_files_are_honoured(tmp_path: Path) -> None:
    path = generators.foreign(tmp_path / "a.onnx", fixed=(48, 64), batch=1)
    found = open_model(path).card
    assert (found.sizes.fixed, found.batch) == ((48, 64), 1)


# What is no generator


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (generators.two_inputs, r"has 2 inputs \('image', 'style'\) where a generator has one"),
        (generators.two_outputs, r"has 2 outputs \('picture', 'mask'\)"),
        (generators.classifier, r"'scores' \(N, 10\) float32 where a batch of pictures has four"),
        (generators.five_channels, r"\(N, 5, H, W\) float32 where 1 or 3 channels"),
        (generators.upscaler, r"gives \d+×\d+ for \d+×\d+ \(height × width\)"),
        (lambda path: generators.upscaler(path, fixed=(8, 12)), r"gives 16×24 for 8×12"),
    ],
)
def test_a_model_that_is_no_generator_errors(tmp_path: Path, make, match: str) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path / "some model.onnx")
    with pytest.raises(ModelError, match=match) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def test_a_model_of_integers_errors(tmp_path: Path) -> None:
    g = Graph()
    g.op("Identity", "image", out="picture")
    shape = ("N", 3, "H", "W")
    path = g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.INT32, shape)], [("picture", TensorProto.INT32, shape)],
    )  # fmt: skip
    with pytest.raises(ModelError, match="int32 where float or uint8 is expected"):
        open_model(path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.onnx", b"", "is empty"),
        ("a.onnx", b"this is a text file\n" * 20, "is no ONNX file"),
        ("a.onnx", b"\x08\x08", "holds no ONNX graph"),
        ("a.onnx", b"PK\x03\x04" + b"\0" * 40, "is a PyTorch checkpoint.*export the generator"),
        ("latest_net_G.pth", b"\x80\x02}q\x00.", "is a PyTorch checkpoint.*torch.onnx.export"),
        ("g.safetensors", b"\x10\0\0\0\0\0\0\0{}", "is a safetensors checkpoint"),
        ("g.engine", b"ftrt" * 10, "is a TensorRT engine"),
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
    with pytest.raises(ModelError, match="is a folder"):
        open_model(tmp_path)


def test_a_name_that_is_not_utf_8_can_be_opened_and_said(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe %d [a].onnx")
    assert open_model(generators.identity(tmp_path / name)).card.pixel_type == "uint8"
    with pytest.raises(ModelError, match="xff") as caught:
        open_model(generators.classifier(tmp_path / name))
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


def test_no_checkpoint_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "G.pth"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError, match="PyTorch checkpoint"):
        open_model(path)
    assert not (tmp_path / "sprung").exists()


# Weights beside the file


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("place", ["w.bin", "sub/w.bin"])
def test_weights_in_the_models_own_folder_are_loaded_in(tmp_path: Path, place: str) -> None:
    whole = open_model(generators.foreign_resnet(tmp_path / "whole.onnx"))
    split = open_model(weights_beside(tmp_path / "split.onnx", place, place))
    frames = natural((16, 16))
    assert np.array_equal(run(split, frames), run(whole, frames))

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
    with pytest.raises(ModelError, match="not valid ONNX"):
        open_model(path)
