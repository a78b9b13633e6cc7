"""Of several outputs the picture is taken, or the user names it; nothing else is left of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.model import open_model
from tests.needs import need
from tests.synthesis import generators
from tests.synthesis.generators import Graph, natural, run

Sizes = tuple[int | str | None, int | str | None]


def with_attention(
    path: Path,
    *,
    size: Sizes = ("H", "W"),
    layout: str = "nchw",
    mask: bool = False,
    declared: bool = True,
    order: Sequence[str] = ("picture", "logits", "heatmap"),
) -> Path:
    """Write a generator with the three outputs of U-GAT-IT: picture, logits, heatmap.

    The picture is the negative; the heatmap has one channel and a quarter of the size. ``mask``: a
    fourth output of the input's size and one channel. ``declared``: whether shapes are declared.
    """
    g = Graph()
    x = g.op("Transpose", "image", perm=[0, 3, 1, 2]) if layout == "nhwc" else "image"
    down = x
    for _ in range(2):
        down = g.op(
            "Conv", down, g.constant(np.full((3, 3, 3, 3), 0.1)), strides=[2, 2], pads=[1] * 4
        )
    pooled = g.op("Flatten", g.op("GlobalAveragePool", down))
    g.op("MatMul", pooled, g.constant(np.ones((3, 1))), out="logits")
    g.op("ReduceMean", down, out="heatmap", axes=[1])
    g.op("ReduceMean", x, out="mask", axes=[1])
    y = g.clip(g.op("Neg", x), -1.0, 1.0)
    if layout == "nhwc":
        y = g.op("Transpose", y, perm=[0, 2, 3, 1])
    g.op("Identity", y, out="picture")
    height, width = size
    sides = ("N", 3, height, width) if layout == "nchw" else ("N", height, width, 3)
    small: Sizes = ("h", "w")
    if isinstance(height, int) and isinstance(width, int) and height > 0:
        small = (height // 4, width // 4)
    shapes = {
        "picture": sides,
        "logits": ("N", 1),
        "heatmap": ("N", 1, *small),
        "mask": ("N", 1, height, width),
    }
    names = [*order, *(["mask"] if mask else [])]
    if not declared:
        shapes = {name: (None,) * len(shapes[name]) for name in names}
    outputs = [(name, TensorProto.FLOAT, shapes[name]) for name in names]
    return g.save(path, [("image", TensorProto.FLOAT, sides)], outputs)


def kinds(graph: bytes) -> list[str]:
    nodes = onnx.ModelProto.FromString(graph).graph.node
    return [node.op_type for node in nodes if not node.name.startswith("contract/")]


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("size", [("H", "W"), (64, 64), (None, None), (-1, -1)])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("order", [("picture", "logits", "heatmap"), ("heatmap", "picture")])
def test_the_one_image_of_the_size_of_the_input_is_taken(
    tmp_path: Path, size: Sizes, layout: str, declared: bool, order: Sequence[str]
) -> None:
    path = with_attention(
        tmp_path / "selfie.onnx", size=size, layout=layout, declared=declared, order=order
    )
    model = open_model(path)
    assert model.card.adopted == f"{layout} rgb -1..1 out=picture"
    assert model.read[0] == (
        f"its picture is 'picture', the only one of its {len(order)} outputs that is an image of "
        "the input's size"
    )
    turns = ["Transpose"] if layout == "nhwc" else []
    assert kinds(model.graph) == [*turns, "Neg", "Clip", *turns, "Identity"]
    weights = onnx.ModelProto.FromString(model.graph).graph.initializer
    assert len([each for each in weights if not each.name.startswith("contract/")]) == 2
    frames = natural((64, 64), 2)
    assert np.array_equal(run(model.graph, frames), 255 - frames)


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(36, 52), (33, 47)])
def test_the_picture_is_drawn_by_each_runtime(
    tmp_path: Path, runtime: str, size: tuple[int, int]
) -> None:
    need(runtime)
    model = open_model(with_attention(tmp_path / "a.onnx", mask=True), model_io="out=picture")
    frames = natural(size, 2)
    backend = open_backend(model, backend=runtime, device="cpu")  # type: ignore[arg-type]
    try:
        assert np.array_equal(backend.infer(frames), 255 - frames)
    finally:
        backend.close()


def test_where_two_outputs_may_be_the_picture_one_is_to_be_named_errors(tmp_path: Path) -> None:
    path = with_attention(tmp_path / "a.onnx", mask=True)
    with pytest.raises(
        ModelError,
        match=r"has 4 outputs, and 2 of them may be the picture: 'picture' \(N, 3, H, W\) float32, "
        r"'mask' \(N, 1, H, W\) float32; name the one to take: --model-io out=NAME",
    ):
        open_model(path)
    with pytest.raises(ModelError, match=r"as in --model-io 'rgb out=mask -1\.\.1'$"):
        open_model(path, model_io="rgb out=mask")
    named = open_model(path, model_io="out=mask -1..1")
    assert named.card.adopted == "nchw rgb -1..1 out=mask"
    assert kinds(named.graph) == ["ReduceMean"]
    frames = natural((8, 12))
    grey = np.floor(frames.mean(axis=3, keepdims=True) + 0.5)
    assert np.abs(run(named.graph, frames) - grey).max() <= 1
    # What the card says finds the same graph again.
    again = open_model(path, model_io=named.card.adopted)
    assert onnx.ModelProto.FromString(again.graph) == onnx.ModelProto.FromString(named.graph)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("out=Picture", "has no output 'Picture'; pass --model-io out=NAME with one of these: "
         r"'picture' \(N, 3, H, W\) float32, 'logits' \(N, 1\) float32, 'heatmap'"),
        ("out=logits", r"its output is 'logits' \(N, 1\) float32 where a batch of images has four"),
        ("out=heatmap -1..1", r"returns \d+×\d+ for \d+×\d+"),
    ],
)  # fmt: skip
def test_an_output_that_is_no_picture_errors(tmp_path: Path, said: str, match: str) -> None:
    path = with_attention(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=match):
        open_model(path, model_io=said)


def test_outputs_of_which_none_is_a_picture_errors(tmp_path: Path) -> None:
    path = with_attention(tmp_path / "a.onnx", order=("logits", "heatmap"))
    with pytest.raises(
        ModelError, match="has 2 outputs, and none of them is an image of the input"
    ):
        open_model(path)


def test_a_graph_without_an_output_errors(tmp_path: Path) -> None:
    path = both_directions(tmp_path / "a.onnx")
    proto = onnx.load(path)
    del proto.graph.output[:]
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"takes 2 inputs|has 0 outputs|not valid ONNX"):
        open_model(path)
    del proto.graph.input[1], proto.graph.node[2]
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"has 0 outputs \(\) where a generator has one"):
        open_model(path)


def test_the_only_output_may_be_named(tmp_path: Path) -> None:
    path = generators.foreign(tmp_path / "a.onnx")
    assert open_model(path, model_io="out=picture").card.adopted == "nchw rgb -1..1"
    with pytest.raises(ModelError, match="has no output 'image'"):
        open_model(path, model_io="out=image")


def test_an_output_that_shapes_do_not_show_is_not_taken_for_none_errors(tmp_path: Path) -> None:
    """A picture of an operator that is not known here, beside a mask that fits."""
    path = with_attention(tmp_path / "a.onnx", mask=True, order=("picture",))
    proto = onnx.load(path)
    last = next(node for node in proto.graph.node if "picture" in node.output)
    last.domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"2 of them may be the picture: 'picture'.*'mask'"):
        open_model(path)


def both_directions(path: Path) -> Path:
    """Write both generators of a CycleGAN as one graph: two inputs, two outputs."""
    g = Graph()
    g.op("Tanh", g.op("Neg", "real_A"), out="fake_B")
    g.op("Tanh", "real_B", out="fake_A")
    ends = [
        [
            (name, TensorProto.FLOAT, (1, 3, size, size))
            for name, size in zip(names, (64, 32), strict=True)
        ]
        for names in (("real_A", "real_B"), ("fake_B", "fake_A"))
    ]
    return g.save(path, *ends)


@pytest.mark.behaviour(35)
def test_inputs_that_the_picture_does_not_need_go_with_the_other_outputs(tmp_path: Path) -> None:
    path = both_directions(tmp_path / "both.onnx")
    with pytest.raises(ModelError, match=r"has 2 outputs, and 2 of them may be.*fake_B.*fake_A"):
        open_model(path)
    model = open_model(path, model_io="out=fake_B")
    assert kinds(model.graph) == ["Neg", "Tanh"]
    assert model.card.sizes.fixed == (64, 64)
    assert model.io is not None
    assert model.io.input == "real_A"


def test_a_weight_with_a_default_is_no_input(tmp_path: Path) -> None:
    path = generators.foreign(tmp_path / "a.onnx")
    proto = onnx.load(path)
    for weight in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        )
    path.write_bytes(proto.SerializeToString())
    assert open_model(path).card.adopted == "nchw rgb -1..1"


def test_what_the_branches_of_an_if_read_stays(tmp_path: Path) -> None:
    """The picture is ``gain * image`` in one branch; the gain is read there only."""
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["image", "gain"], [out])],
            out, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        )
        for kind, out in (("Mul", "then"), ("Div", "else"))
    ]  # fmt: skip
    g = Graph()
    g.weights.append(onnx.numpy_helper.from_array(np.array(True), "always"))
    g.weights.append(onnx.numpy_helper.from_array(np.array(-1.0, np.float32), "gain"))
    g.op("If", "always", out="chosen", then_branch=branches[0], else_branch=branches[1])
    g.op("Tanh", g.op("Mul", "chosen", g.constant(0.1)), out="picture")
    g.op("Flatten", "image", out="flat")
    shape = (1, 3, 8, 8)
    path = g.save(
        tmp_path / "a.onnx", [("image", TensorProto.FLOAT, shape)],
        [("picture", TensorProto.FLOAT, shape), ("flat", TensorProto.FLOAT, (1, 192))],
    )  # fmt: skip
    model = open_model(path)
    assert kinds(model.graph) == ["If", "Mul", "Tanh"]
    frames = natural((8, 8))
    expected = np.floor((np.tanh(-0.1 * (frames / 127.5 - 1)) + 1) * 127.5 + 0.5)
    assert np.abs(run(model.graph, frames) - expected).max() <= 1
