"""The graph for CPUs computes what the file's own graph computes, and leaves alone what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from cyclegan_batch.backends import open_backend
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.models.graphs.cpu_graph import cpu_graph, in_cells
from cyclegan_batch.models.model import Model, graph_with_values, on_cpu, open_model
from cyclegan_batch.models.parity import parity
from tests.needs import need
from tests.synthesis import generators
from tests.synthesis.doubles import in_doubles
from tests.synthesis.generators import natural

EVEN = SizeRequirements(2, 4)


def kinds(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.ModelProto.FromString(graph).graph.node)


def floats(model: Model, frames: Any) -> Any:
    """Return the values before they are clamped, in float64, sorted: their order is free."""
    evaluator = ReferenceEvaluator(in_doubles(graph_with_values(model)))
    values = [evaluator.run(None, {"frames": frame[np.newaxis]})[1] for frame in frames]
    return np.sort(np.concatenate(values), axis=None)


RESNETS: dict[str, Callable[[Path], Model]] = {
    "contract": lambda path: open_model(generators.tiny_resnet(path)),
    "float16 pixels": lambda path: open_model(generators.tiny_resnet(path, io="float16")),
    "luma": lambda path: open_model(generators.one_channel(path)),
    "fixed": lambda path: open_model(generators.tiny_resnet(path, fixed=(16, 24), batch=1)),
    "adopted": lambda path: open_model(generators.foreign_resnet(path, fixed=(16, 24))),
    "adopted bgr": lambda path: open_model(
        generators.foreign_resnet(path, fixed=(16, 24)), model_io="bgr"
    ),
}


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("name", RESNETS)
def test_a_generator_computes_the_same_in_float64(tmp_path: Path, name: str) -> None:
    model = RESNETS[name](tmp_path / "a.onnx")
    frames = natural((16, 24), 2)
    if model.card.pixel_type == "float16":
        frames = (frames / 255).astype(np.float16)
    faster = on_cpu(model)
    # What is left is the rounding of the first weights to float32, in units of the pixel type.
    white = 255 if model.card.pixel_type == "uint8" else 1
    assert np.abs(floats(faster, frames) - floats(model, frames)).max() < 1e-5 * white
    assert ("SpaceToDepth" in kinds(faster.graph)) == (name not in ("luma", "adopted bgr"))


@pytest.mark.behaviour(31, 33)
@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_generator_gives_the_same_pixels(tmp_path: Path, name: str, backend: str) -> None:
    need(backend)
    model = RESNETS[name](tmp_path / "a.onnx")
    frames = natural((16, 24), 3)
    if model.card.pixel_type == "float16":
        frames = (frames / 255).astype(np.float16)
    evaluator = ReferenceEvaluator(onnx.ModelProto.FromString(model.graph))
    expected = [evaluator.run(None, {"frames": frame[np.newaxis]})[0] for frame in frames]
    out = open_backend(model, backend=backend, device="cpu").infer(frames)
    measured = parity(out, np.concatenate(expected))
    assert measured.cls == "exact", str(measured)


def test_the_ends_of_a_resnet_are_without_passes_over_the_pixels(tmp_path: Path) -> None:
    model = on_cpu(open_model(generators.tiny_resnet(tmp_path / "a.onnx")))
    nodes = [node.op_type for node in onnx.ModelProto.FromString(model.graph).graph.node]
    assert nodes[:5] == ["Transpose", "Cast", "Sub", "Pad", "Conv"]
    assert nodes[-4:] == ["Clip", "Cast", "DepthToSpace", "Transpose"]
    assert "Floor" not in nodes
    onnx.checker.check_model(onnx.ModelProto.FromString(model.graph), full_check=True)


@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
def test_a_convolution_between_cells_is_the_one_between_pixels(kernel: int) -> None:
    random = np.random.default_rng(kernel)
    weights = random.normal(size=(3, 2, kernel, kernel))
    x = random.normal(size=(1, 2, 10 + kernel - 1, 14 + kernel - 1))

    def convolved(weights: Any, x: Any) -> Any:
        windows = np.lib.stride_tricks.sliding_window_view(x, weights.shape[2:], (2, 3))
        return np.einsum("ncyxij,ocij->noyx", windows, weights)

    def cells(x: Any) -> Any:
        n, c, h, w = x.shape
        split = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 3, 5, 1, 2, 4)
        return split.reshape(n, 4 * c, h // 2, w // 2)

    expected = cells(convolved(weights, x))
    np.testing.assert_allclose(
        convolved(in_cells(weights), cells(x)), expected, rtol=1e-12, atol=1e-12
    )


def test_frames_of_odd_size_are_not_divided_into_cells(tmp_path: Path) -> None:
    model = open_model(generators.tiny_resnet(tmp_path / "a.onnx"))
    for sizes in (SizeRequirements(1, 4), SizeRequirements(fixed=(16, 25))):
        assert "SpaceToDepth" not in kinds(cpu_graph(model.graph, sizes, in_float32=True))
    assert "SpaceToDepth" in kinds(
        cpu_graph(model.graph, SizeRequirements(fixed=(16, 24)), in_float32=True)
    )


@pytest.mark.parametrize("name", ["foreign", "upscaler", "five_channels"])
def test_a_graph_without_anything_to_gain_stays_as_it_is(tmp_path: Path, name: str) -> None:
    path = getattr(generators, name)(tmp_path / "a.onnx")
    content = path.read_bytes()
    assert cpu_graph(content, EVEN, in_float32=True) is content


# Graphs of other makers


def adopted(g: generators.Graph, path: Path, size: tuple[int, int] = (16, 24)) -> Model:
    """Return a foreign graph of ``image`` with a Tanh as its last node."""
    g.nodes[-1].output[0] = "picture"
    shape = (1, 3, *size)
    values = [[(name, TensorProto.FLOAT, shape)] for name in ("image", "picture")]
    return open_model(g.save(path, *values))


def layer(g: generators.Graph, x: str, into: int, out: int, kernel: int = 7) -> str:
    random = np.random.default_rng([into, out])
    shape = (out, into, kernel, kernel)
    weights = random.normal(0, (into * kernel * kernel) ** -0.5, shape)
    return g.op("Conv", g.reflect(x, kernel // 2), g.constant(weights))


def other_graph(kind: str, path: Path) -> Model:
    """Return a generator of a form that the passes do not expect."""
    g = generators.Graph()
    features = g.op("Relu", layer(g, "image", 3, 8))
    y = layer(g, features, 8, 3)
    if kind == "conv + image":
        g.op("Tanh", g.op("Add", y, "image"))
    elif kind == "image + conv":
        g.op("Tanh", g.op("Add", "image", y))
    elif kind == "mask · conv":
        g.op("Tanh", g.op("Mul", g.op("Sigmoid", layer(g, features, 8, 1)), y))
    elif kind == "conv · mask":
        g.op("Tanh", g.op("Mul", y, g.op("Sigmoid", layer(g, features, 8, 3, 3))))
    elif kind == "norm of one factor":
        d = g.op("Sub", y, g.op("ReduceMean", y, axes=[2, 3], keepdims=1))
        variance = g.op("ReduceMean", g.op("Mul", d, d), axes=[2, 3], keepdims=1)
        y = g.op("Div", d, g.op("Sqrt", g.op("Add", variance, g.constant(1e-5))))
        g.op("Tanh", g.op("Mul", y, g.constant(np.full((1, 1, 1, 1), 0.5))))
    elif kind == "1 - conv":
        g.op("Tanh", g.op("Sub", g.constant(1.0), y))
    return adopted(g, path)


@pytest.mark.behaviour(31, 33)
@pytest.mark.parametrize(
    "kind",
    [
        "conv + image", "image + conv", "mask · conv", "conv · mask", "norm of one factor",
        "1 - conv",
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_of_another_form_gives_the_same_pixels(
    tmp_path: Path, kind: str, backend: str
) -> None:
    need(backend)
    model = other_graph(kind, tmp_path / "a.onnx")
    frames = natural((16, 24))
    out = open_backend(model, backend=backend, device="cpu", threads=1).infer(frames)
    assert parity(out, generators.run(model.graph, frames)).cls == "exact"


def contract_of(g: generators.Graph, x: str, path: Path) -> bytes:
    """Return a contract graph that ends in a convolution of eight channels ``x``."""
    x = g.op("Transpose", g.op("Tanh", layer(g, x, 8, 3)), perm=[0, 2, 3, 1])
    x = g.op("Floor", g.op("Mul", x, g.constant(255.0)))
    g.op("Cast", g.clip(x, 0.0, 255.0), out="translated", to=TensorProto.UINT8)
    fields = generators.card(multiple_of="2", minimum="8")
    return g.save(path, *generators.frames_io("uint8"), card=fields).read_bytes()


def test_a_graph_whose_branches_read_its_weights_stays_as_it_is(tmp_path: Path) -> None:
    g = generators.Graph()
    factor = g.constant(0.5)
    x = g.op("Transpose", g.op("Cast", "frames", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = layer(g, x, 3, 8)
    branches = {}
    for name, node in (
        ("then_branch", helper.make_node("Mul", [x, factor], ["out"])),
        ("else_branch", helper.make_node("Neg", [x], ["out"])),
    ):
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [out])
    condition = g.op("Cast", g.constant(1, np.int64), to=TensorProto.BOOL)
    graph = contract_of(g, g.op("If", condition, **branches), tmp_path / "a.onnx")
    assert cpu_graph(graph, EVEN, in_float32=True) is graph


def test_frames_divided_by_zero_stay_as_they_are(tmp_path: Path) -> None:
    g = generators.Graph()
    x = g.op("Div", g.op("Cast", "frames", to=TensorProto.FLOAT), g.constant(0.0))
    x = layer(g, g.op("Transpose", x, perm=[0, 3, 1, 2]), 3, 8)
    assert kinds(cpu_graph(contract_of(g, x, tmp_path / "a.onnx"), EVEN, in_float32=True))["Div"]


# Norms that are spelled out

SQUARES = ("d·d", "d·(d + c)", "d**2")
MEANS = ("axes", "reshape")
AFFINES = ("none", "weights", "reshaped weights")


def written_out(
    square: str = "d·d",
    mean: str = "axes",
    affine: str = "weights",
    axes: tuple[int, ...] = (2, 3),
    epsilon: float = 1e-5,
    leak: bool = False,
    half: bool = False,
) -> bytes:
    """Return a graph of a norm of ``(1, 6, H, W)`` in small operators."""
    g, random = generators.Graph(17), np.random.default_rng(0)
    dtype = np.float16 if half else np.float32

    def mean_of(x: str) -> str:
        if mean == "reshape":
            rows = g.op("Reshape", x, g.constant([1, 6, 1, -1], np.int64))
            return g.op("ReduceMean", rows, axes=[3], keepdims=1)
        return g.op("ReduceMean", x, axes=list(axes), keepdims=1)

    def weight() -> str:
        values = random.normal(1, 0.3, 1 if affine == "one factor" else 6).astype(dtype)
        if affine == "reshaped weights":
            return g.op("Reshape", g.constant(values), g.constant([-1, 6, 1, 1], np.int64))
        return g.constant(values.reshape(-1, 1, 1), dtype)

    d = g.op("Sub", "x", mean_of("x"))
    if square == "d**2":
        squared = g.op("Pow", d, g.constant(2.0))
    else:
        squared = g.op("Mul", d, d if square == "d·d" else g.op("Add", d, g.constant(1e-9)))
    root = g.op("Sqrt", g.op("Add", mean_of(squared), g.constant(epsilon, dtype)))
    y = g.op("Div", d, root)
    if affine != "none":
        y = g.op("Add", g.op("Mul", y, weight()), weight())
    if leak:
        y = g.op("Add", y, d)
    g.op("Identity", y, out="y")
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    value = [helper.make_tensor_value_info(n, kind, [1, 6, "H", "W"]) for n in "xy"]
    graph = helper.make_graph(g.nodes, "norm", value[:1], value[1:], g.weights)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def normed(graph: bytes) -> Any:
    x = np.random.default_rng(1).normal(3, 2, (1, 6, 9, 11))
    return ReferenceEvaluator(in_doubles(graph)).run(None, {"x": x})[0]


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("square", SQUARES)
def test_a_norm_in_small_operators_becomes_one(square: str, mean: str, affine: str) -> None:
    graph = written_out(square, mean, affine)
    fused = cpu_graph(graph, EVEN, in_float32=True)
    if (mean, affine) == ("axes", "none"):
        # Nothing tells the number of channels.
        assert fused == graph
        return
    left = kinds(fused)
    assert left["InstanceNormalization"] == 1
    assert not {"ReduceMean", "Sqrt", "Div", "Sub"} & set(left)
    np.testing.assert_allclose(normed(fused), normed(graph), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "different",
    [
        {"axes": (1, 2, 3)}, {"axes": (1,)}, {"epsilon": 0.0}, {"leak": True}, {"half": True},
        {"affine": "one factor"},
    ],
)  # fmt: skip
def test_what_only_looks_like_a_norm_stays_as_it_is(different: dict[str, Any]) -> None:
    graph = written_out(**different)
    assert cpu_graph(graph, EVEN, in_float32=True) == graph
