"""Wide convolutions by Winograd compute what the convolutions do, at every size, in every place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cyclegan_batch.backends import open_backend
from cyclegan_batch.models.graphs.rewriting import Graph
from cyclegan_batch.models.graphs.winograd import wide_convolutions_by_winograd
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import parity
from tests.needs import need
from tests.synthesis import generators
from tests.synthesis.doubles import in_doubles

WIDE = 96


def norm(g: generators.Graph, x: str, channels: int = WIDE) -> str:
    random = np.random.default_rng(channels)
    scale, offset = (g.constant(random.normal(n, 0.1, channels)) for n in (1, 0))
    return g.op("InstanceNormalization", x, scale, offset, epsilon=1e-5)


def convolved(
    g: generators.Graph, x: str, into: int, out: int, *, bias: bool = True, **attributes: Any
) -> str:
    random = np.random.default_rng([into, out])
    kernel = attributes.pop("kernel", 3)
    weights = random.normal(0, (into * kernel * kernel) ** -0.5, (out, into, kernel, kernel))
    biases = [g.constant(random.normal(0, 0.1, out))] if bias else []
    return g.op("Conv", x, g.constant(weights), *biases, **attributes)


def block(g: generators.Graph, x: str, *, bias: bool = True) -> str:
    """Append a residual block, and return its output."""
    y = g.op("Relu", norm(g, convolved(g, g.reflect(x, 1), WIDE, WIDE, bias=bias)))
    return g.op("Add", x, norm(g, convolved(g, g.reflect(y, 1), WIDE, WIDE, bias=bias)))


def graph_of(g: generators.Graph, y: str, channels: int = WIDE) -> bytes:
    g.op("Identity", y, out="y")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n, "H", "W"])
        for name, n in (("x", channels), ("y", None))
    ]
    graph = helper.make_graph(g.nodes, "wide", ends[:1], ends[1:], g.weights)
    opset = [helper.make_opsetid("", g.opset)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def by_winograd(graph: bytes) -> tuple[bytes, Counter[str]]:
    rewritten = Graph(onnx.ModelProto.FromString(graph))
    wide_convolutions_by_winograd(rewritten)
    content = rewritten.content()
    onnx.checker.check_model(onnx.ModelProto.FromString(content), full_check=True)
    return content, Counter(node.op_type for node in rewritten.nodes)


def same(graph: bytes, rewritten: bytes, size: tuple[int, int], channels: int = WIDE) -> None:
    x = np.random.default_rng(size).normal(size=(2, channels, *size))
    expected, out = (
        ReferenceEvaluator(in_doubles(each)).run(None, {"x": x})[0] for each in (graph, rewritten)
    )
    assert out.shape == expected.shape
    # What is left is the rounding of the transformed weights to float32.
    assert np.abs(out - expected).max() < 1e-5


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 7), (2, 3), (6, 9)])
@pytest.mark.parametrize("opset", [13, 18])
def test_residual_blocks_compute_the_same_in_float64(size: tuple[int, int], opset: int) -> None:
    g = generators.Graph(opset)
    graph = graph_of(g, block(g, block(g, g.op("Relu", "x"), bias=False)))
    rewritten, kinds = by_winograd(graph)
    assert kinds["Conv"] == kinds["Pad"] == kinds["InstanceNormalization"] == 0
    # The layout changes once before all blocks and once behind them; the indices are shared.
    assert (kinds["Transpose"], kinds["Shape"]) == (2, 1)
    same(graph, rewritten, size)


def test_what_others_read_is_there_for_them() -> None:
    g = generators.Graph()
    x = g.op("Relu", "x")
    border = g.reflect(x, 1)
    first = convolved(g, border, WIDE, WIDE)
    small = convolved(g, border, WIDE, 8)  # too narrow, reads the same border
    second = norm(g, first)
    both = g.op("Concat", first, second, g.op("Sigmoid", second), small, axis=1)
    graph = graph_of(g, both)
    rewritten, kinds = by_winograd(graph)
    assert kinds["Conv"] == kinds["Pad"] == 1
    same(graph, rewritten, (5, 6))


def test_layers_of_other_sizes_have_indices_of_their_own() -> None:
    g = generators.Graph()
    x = convolved(g, g.reflect("x", 1), WIDE, WIDE)
    x = convolved(g, x, WIDE, 128, strides=[2, 2], pads=[1, 1, 1, 1])
    graph = graph_of(g, norm(g, convolved(g, g.reflect(x, 1), 128, WIDE)))
    rewritten, kinds = by_winograd(graph)
    assert (kinds["Conv"], kinds["Shape"]) == (1, 2)
    same(graph, rewritten, (7, 10))


@pytest.mark.parametrize("case", ["opset", "narrow", "zeros", "stride", "kernel", "groups"])
def test_other_convolutions_stay(case: str) -> None:
    g = generators.Graph(12 if case == "opset" else 17)
    channels = 64 if case == "narrow" else WIDE
    if case == "zeros":
        y = convolved(g, "x", channels, channels, pads=[1, 1, 1, 1])
    elif case == "groups":
        y = convolved(g, g.reflect("x", 1), 1, channels, group=channels)
    else:
        strides = [2, 2] if case == "stride" else [1, 1]
        kernel = 1 if case == "kernel" else 3
        y = convolved(g, g.reflect("x", 1), channels, channels, strides=strides, kernel=kernel)
    graph = graph_of(g, y, channels)
    assert by_winograd(graph)[1] == Counter(n.op_type for n in g.nodes)


@pytest.fixture(scope="module")
def wide_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a contract file with two wide residual blocks."""
    g = generators.Graph(18)
    x = g.op("Cast", "frames", to=TensorProto.FLOAT)
    x = g.op("Sub", g.op("Mul", x, g.constant(1 / 127.5)), g.constant(1.0))
    x = g.op("Transpose", x, perm=[0, 3, 1, 2])
    x = g.op("Relu", norm(g, convolved(g, g.reflect(x, 1), 3, WIDE)))
    x = block(g, block(g, x))
    x = g.op("Tanh", convolved(g, g.reflect(x, 1), WIDE, 3))
    x = g.op("Mul", g.op("Transpose", x, perm=[0, 2, 3, 1]), g.constant(127.5))
    x = g.clip(g.op("Floor", g.op("Add", x, g.constant(128.0))), 0.0, 255.0)
    g.op("Cast", x, out="translated", to=TensorProto.UINT8)
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    card = generators.card(multiple_of="2", minimum="4", trained_size="16")
    return g.save(path, *generators.frames_io("uint8"), card=card)


@pytest.mark.behaviour(28, 31, 33)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_wide_generator_is_exact_and_the_same_twice(wide_generator: Path, backend: str) -> None:
    need(backend)
    model = open_model(wide_generator)
    out = []
    for threads in (1, 2):
        opened = open_backend(model, backend=backend, device="cpu", threads=threads)
        for size in ((16, 20), (18, 14), (16, 20)):
            frames = generators.natural(size, 2)
            out.append(opened.infer(frames))
            alone = [opened.infer(frame[np.newaxis]) for frame in frames]
            # Products of another batch size may be added in another order.
            assert parity(np.concatenate(alone), out[-1]).cls == "exact"
    assert np.array_equal(out[0], out[2])
    assert all(np.array_equal(a, b) for a, b in zip(out[:3], out[3:], strict=True))
    expected = [
        generators.run(model.graph, frame[np.newaxis]) for frame in generators.natural((16, 20), 2)
    ]
    measured = parity(out[0], np.concatenate(expected))
    assert measured.cls == "exact", str(measured)


def scaled(weights: Any, how: str) -> Any:
    """Return the weights of a convolution in another scale."""
    powers = 10 ** np.random.default_rng(0).uniform(-3, 3, weights.shape)
    factors = {
        "tiny": 1e-3,
        "huge": 1e6,
        "outputs": powers[:, :1, :1, :1],
        "inputs": powers[:1, :, :1, :1],
        "taps": powers,
    }
    return weights * factors[how]


@pytest.mark.behaviour(31, 33)
@pytest.mark.parametrize("how", ["tiny", "huge", "outputs", "inputs", "taps"])
def test_weights_of_any_scale_are_exact(wide_generator: Path, tmp_path: Path, how: str) -> None:
    need("openvino")
    proto = onnx.load(wide_generator)
    for weight in proto.graph.initializer:
        if list(weight.dims) == [WIDE, WIDE, 3, 3]:
            values = scaled(numpy_helper.to_array(weight), how).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    path = tmp_path / "scaled.onnx"
    onnx.save(proto, path)
    frames = generators.natural((16, 20))
    frames[:, 4:12] //= 32  # dark, beside single bright pixels
    frames[:, 5:12:3, ::7] = 255
    expected = generators.run(in_doubles(path.read_bytes()), frames)
    out = open_backend(open_model(path), backend="openvino", device="cpu", threads=1).infer(frames)
    measured = parity(out, expected)
    assert measured.cls == "exact", str(measured)
    assert measured.psnr > 60, str(measured)


@pytest.mark.parametrize("opset", [13, 18])
def test_the_graph_grows_by_no_transformed_weights(opset: int) -> None:
    g = generators.Graph(opset)
    graph = graph_of(g, block(g, block(g, g.op("Relu", "x"))))
    assert len(by_winograd(graph)[0]) < 1.1 * len(graph)


@pytest.mark.behaviour(28)
def test_large_frames_take_the_network_without_windows(
    wide_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino")
    from cyclegan_batch.backends import openvino

    monkeypatch.setattr(openvino, "_LARGEST_IN_WINDOWS", 16 * 20)
    model = open_model(wide_generator)
    opened: Any = open_backend(model, backend="openvino", device="cpu", threads=1)
    networks = []
    for size in ((16, 20), (16, 22), (16, 20), (18, 24)):
        frames = generators.natural(size)
        out = opened.infer(frames)
        assert parity(out, generators.run(model.graph, frames)).cls == "exact"
        networks.append(opened._compiled)
    small, large = networks[:2]
    assert small is not large
    assert networks == [small, large, small, large]
