"""A foreign generator is adopted by its graph alone, or with ``--model-io``, or is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import Pixels, SizeRequirements
from cyclegan_batch.models.graphs.shapes import _fold_constants
from cyclegan_batch.models.model import open_model
from cyclegan_batch.wording import grouped
from tests.synthesis import generators
from tests.synthesis.generators import Graph, natural, run

# Layout, range and order


def inverted(frames: Pixels, order: str = "rgb") -> Pixels:
    """Return the output of `generators.foreign` for uint8 ``frames``, computed by numpy."""
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
    assert len(grouped(model.card.notes)) == 1
    frames = natural((12, 10), 2)
    off = np.abs(run(model.graph, frames) - inverted(frames))
    # float16 has 2,048 steps in −1..1, and steps of 1/8 below 255.
    assert off.max() <= (1 if half else 0)


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("said", ["bgr", "BGR 0..255", "nhwc bgr 0..255 -> 0..255", "0..255, bgr"])
def test_a_word_about_the_channel_order_is_enough(tmp_path: Path, said: str) -> None:
    path = generators.foreign(tmp_path / "a.onnx", layout="nhwc", range="0..255")
    model = open_model(path, model_io=said)
    frames = natural((12, 10))
    assert model.card.adopted == "nhwc bgr 0..255"
    assert np.array_equal(run(model.graph, frames), inverted(frames, "bgr"))


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
    assert np.array_equal(run(model.graph, frames), frames)


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
    card = open_model(tmp_path / "a.onnx").card
    assert card.adopted == f"nchw rgb {expected}"
    (note,) = grouped(card.notes)
    assert note.endswith(
        "; its graph shows the range of its output, and its input is taken to have the same, and "
        "--model-io overrides it"
    )


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
    assert np.array_equal(run(open_model(path, model_io="0..1").graph, frames), inverted(frames))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("nchw rgb 0-255", "'0-255' is not known; it is "),
        ("nchw nhwc", "'nchw' and 'nhwc' exclude each other"),
        ("0..1 -> 5", "'5' is not known after ->"),
        ("0..1 ->", "nothing is stated after ->"),
        ("", "it is empty"),
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
    out = run(open_model(path).graph, frames)
    assert np.array_equal(out[..., 0], out[..., 1])
    assert np.array_equal(out[..., 0], out[..., 2])
    # A float32 sum of three products occasionally rounds to the other side of a half.
    assert np.abs(out - expected).max() <= 1
    assert np.mean(out != expected) < 0.01


# What the file does not declare


def undeclared(path: Path, *, input_too: bool = False, no_type: bool = False) -> Path:
    """Write an NHWC generator as TensorFlow's exporter does at an unknown rank."""
    proto = onnx.load(generators.foreign(path, layout="nhwc", end="tanh"))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    if no_type:
        proto.graph.output[0].ClearField("type")
    if input_too:
        proto.graph.input[0].type.tensor_type.ClearField("shape")
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("changes", [{}, {"input_too": True}, {"no_type": True}])
def test_shapes_that_a_file_does_not_declare_are_inferred(
    tmp_path: Path, changes: dict[str, bool]
) -> None:
    path = undeclared(tmp_path / "tf.onnx", **changes)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    model = open_model(path)

    assert model.card.adopted == "nhwc rgb -1..1"
    assert model.card.sizes == SizeRequirements()
    assert model.card.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    frames = natural((12, 10), 2)
    (there,) = session.run(None, {"image": frames.astype(np.float32) / 127.5 - 1})
    expected = np.floor((there.astype(np.float64) + 1) * 127.5 + 0.5)
    assert np.abs(run(model.graph, frames) - expected).max() <= 1


def test_a_shape_that_cannot_be_inferred_is_left_to_the_backend(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    proto = onnx.load(generators.foreign(path, end="tanh"))
    proto.graph.node[-1].domain = "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    path.write_bytes(proto.SerializeToString())
    card = open_model(path, model_io="nchw -1..1").card
    assert (card.adopted, card.batch, card.sizes.fixed) == ("nchw rgb -1..1", None, None)


# Files that are uint8 already


def of_bytes(
    path: Path,
    names: tuple[str, str] = ("frames", "translated"),
    layout: str = "nhwc",
    fixed: tuple[int, int] | None = None,
) -> Path:
    """Write a uint8 generator without a card, which inverts each channel in another way."""
    g = Graph()
    x = g.op("Cast", names[0], to=TensorProto.FLOAT)
    gains = np.array([0.4, 1.0, 0.7]).reshape((3, 1, 1) if layout == "nchw" else (3,))
    x = g.op("Mul", g.op("Sub", g.constant(255.0), x), g.constant(gains))
    x = g.clip(g.op("Floor", g.op("Add", x, g.constant(0.5))), 0.0, 255.0)
    g.op("Cast", x, out=names[1], to=TensorProto.UINT8)
    height, width = fixed or ("H", "W")
    shape = ("N", height, width, 3) if layout == "nhwc" else ("N", 3, height, width)
    return g.save(
        path,
        [(names[0], TensorProto.UINT8, shape)], [(names[1], TensorProto.UINT8, shape)],
    )  # fmt: skip


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("said", [None, "nhwc rgb 0..255"])
@pytest.mark.parametrize("fixed", [None, (12, 10)])
def test_a_foreign_file_that_is_inside_the_contract_is_run_as_it_is(
    tmp_path: Path, said: str | None, fixed: tuple[int, int] | None
) -> None:
    path = of_bytes(tmp_path / "a.onnx", fixed=fixed)
    model = open_model(path, model_io=said)

    assert onnx.ModelProto.FromString(model.graph) == onnx.load(path)
    assert model.card.adopted == "nhwc rgb 0..255"
    assert grouped(model.card.notes) == (
        "a.onnx is a foreign model, adopted as nhwc rgb 0..255, and run as it is",
    )
    assert (model.card.pixel_type, model.card.precision) == ("uint8", "fp32")
    assert (model.card.sizes.fixed, model.card.contract_version) == (fixed, 0)


@pytest.mark.behaviour(35)
@pytest.mark.parametrize(
    ("names", "layout", "said", "added"),
    [
        (("image", "picture"), "nhwc", None, ["Identity", "Identity"]),
        (("frames", "translated"), "nchw", None, ["Transpose", "Transpose"]),
        (("frames", "translated"), "nhwc", "bgr", ["Gather", "Gather"]),
        (("image", "picture"), "nchw", "bgr", ["Gather", "Transpose", "Transpose", "Gather"]),
    ],
)
def test_pixels_of_a_foreign_file_in_uint8_pass_no_arithmetic(
    tmp_path: Path, names: tuple[str, str], layout: str, said: str | None, added: list[str]
) -> None:
    path = of_bytes(tmp_path / "a.onnx", names, layout)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    model = open_model(path, model_io=said)
    nodes = onnx.ModelProto.FromString(model.graph).graph.node
    assert [node.op_type for node in nodes if node.name.startswith("contract/")] == added

    frames = natural((12, 10), 2)
    there = frames[..., ::-1] if said else frames
    there = there.transpose(0, 3, 1, 2) if layout == "nchw" else there
    (there,) = session.run(None, {names[0]: np.ascontiguousarray(there)})
    there = there.transpose(0, 2, 3, 1) if layout == "nchw" else there
    expected = there[..., ::-1] if said else there
    assert np.array_equal(run(model.graph, frames), expected)


# Sizes


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


@pytest.mark.parametrize("opset", [11, 12, 13, 16, 17, 18])
def test_sizes_that_the_graph_computes_from_its_input_are_followed(
    tmp_path: Path, opset: int
) -> None:
    """The graph is the one that torch exports for ``interpolate(x, size=y.shape[2:])``."""
    g = Graph(opset)
    kernel = g.constant(np.full((3, 3, 4, 4), 0.1))
    x = "image"
    for _ in range(2):
        x = g.op("Conv", x, kernel, strides=[2, 2], pads=[1, 1, 1, 1])
    shape_of_x = g.op("Shape", x)
    start, middle, end = (g.constant([n], np.int64) for n in (0, 2, 4))
    sides = g.op("Mul", g.op("Slice", shape_of_x, middle, end), g.constant([4, 4], np.int64))
    sizes = g.op("Concat", g.op("Slice", shape_of_x, start, middle), sides, axis=0)
    nothing = g.constant(np.zeros(0)) if opset < 13 else ""
    g.op("Tanh", g.op("Resize", x, nothing, nothing, sizes), out="picture")
    shape = ("N", 3, "H", "W")
    g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    model = open_model(tmp_path / "a.onnx")
    assert model.card.sizes == SizeRequirements(multiple_of=4, minimum=4)
    assert model.read[-1] == (
        "its sizes are multiples of 4 from 4 on, as the shapes inside it show"
    )


@pytest.mark.parametrize("opset", [12, 13])
def test_axes_that_moved_in_opset_13_are_read_where_they_are(tmp_path: Path, opset: int) -> None:
    """A picture out of a Split by stated lengths, which by halves would have two channels."""
    g = Graph(opset)
    wide = g.op("Conv", "image", g.constant(np.full((4, 3, 1, 1), 0.1)))
    if opset == 12:
        split = onnx.helper.make_node("Split", [wide], ["x", "rest"], axis=1, split=[3, 1])
    else:
        lengths = g.constant([3, 1], np.int64)
        split = onnx.helper.make_node("Split", [wide, lengths], ["x", "rest"], axis=1)
    g.nodes.append(split)
    g.op("Tanh", "x", out="picture")
    g.op("Tanh", "rest", out="mask")
    free = (None,) * 4
    path = g.save(
        tmp_path / "a.onnx", [("image", TensorProto.FLOAT, ("N", 3, "H", "W"))],
        [("picture", TensorProto.FLOAT, free), ("mask", TensorProto.FLOAT, free)],
    )  # fmt: skip
    with pytest.raises(ModelError, match="2 of them may be the picture"):
        open_model(path)
    card = open_model(path, model_io="out=picture").card
    assert (card.sizes, card.adopted) == (SizeRequirements(), "nchw rgb -1..1 out=picture")


def test_where_shapes_cannot_be_inferred_the_strides_say_the_multiple(tmp_path: Path) -> None:
    g = Graph()
    kernel = g.constant(np.full((3, 3, 4, 4), 0.1))
    x = "image"
    for _ in range(3):
        x = g.op("Conv", x, kernel, strides=[2, 2], pads=[1, 1, 1, 1])
    # The size depends on values, so shape inference cannot follow it.
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
        (
            generators.two_inputs,
            r"takes 2 inputs \('image' \(N, 3, H, W\) float32, 'style' \(N, 3, H, W\) float32\) "
            "where a generator takes one image; export it with the others set to constants",
        ),
        (
            generators.two_outputs,
            r"has 2 outputs, and 2 of them may be the picture: 'picture' \(N, 3, H, W\) float32, "
            r"'mask' \(N, 3, H, W\) float32; name the one to take: --model-io out=NAME",
        ),
        (generators.classifier, r"'scores' \(N, 10\) float32 where a batch of images has four"),
        (generators.five_channels, r"\(N, 5, H, W\) float32 where 1 or 3 channels"),
        (generators.upscaler, r"returns \d+×\d+ for \d+×\d+ \(height × width\)"),
        (lambda path: generators.upscaler(path, fixed=(8, 12)), r"returns 16×24 for 8×12"),
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


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("opset", [11, 13, 17])
def test_borders_that_are_arithmetic_on_constants_are_followed(tmp_path: Path, opset: int) -> None:
    """As torch's older exporter writes a reflection by 3 of height and width."""
    g = Graph(opset)

    def ints(*values: int) -> str:
        tensor = onnx.numpy_helper.from_array(np.array(values, np.int64))
        return g.op("Constant", value=tensor)

    zero = onnx.numpy_helper.from_array(np.array([0], np.int64))
    rest = g.op("ConstantOfShape", ints(4), value=zero)
    pairs = g.op("Reshape", g.op("Concat", ints(3, 3, 3, 3), rest, axis=0), ints(-1, 2))
    last_first = g.op("Slice", pairs, ints(-1), ints(-(2**63)), ints(0), ints(-1))
    flat = g.op("Reshape", g.op("Transpose", last_first, perm=[1, 0]), ints(-1))
    x = g.op("Pad", "image", g.op("Cast", flat, to=TensorProto.INT64), mode="reflect")
    x = g.op("Conv", x, g.constant(np.full((3, 3, 7, 7), 0.01)))
    region = g.op("Constant", value=onnx.numpy_helper.from_array(np.zeros(0, np.float32)))
    x = g.op("Resize", x, region, g.constant([1.0, 1.0, 1.0, 1.0]), mode="nearest")
    g.op("Tanh", x, out="picture")
    shape = ("N", 3, "H", "W")
    path = g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    model = open_model(path)
    assert model.card.sizes == SizeRequirements(multiple_of=1, minimum=4)
    assert not any("sizes" in each for each in model.assumed)


def test_a_constant_that_would_be_large_is_not_computed() -> None:
    """Eight terabytes of zeros stay a node, and the one that they come from does not."""
    g = Graph()
    huge = g.op("ConstantOfShape", g.op("Identity", g.constant([10**12], np.int64)))
    g.op("Add", "image", huge, out="picture")
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(g.nodes, "g", [], [], initializer=g.weights),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    _fold_constants(proto)
    assert [node.op_type for node in proto.graph.node] == ["ConstantOfShape", "Add"]
