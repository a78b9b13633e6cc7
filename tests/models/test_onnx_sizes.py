"""In torch, nodes that change a size or compute with sizes give what onnxruntime gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from cyclegan_batch.errors import ModelError
from tests.needs import package
from tests.synthesis import generators
from tests.synthesis.generators import Graph, frames_io, natural

torch = package("torch")

from cyclegan_batch.models.onnx_network import OnnxNetwork  # noqa: E402
from cyclegan_batch.models.onnx_network.network import name_of_values  # noqa: E402


def begun(opset: int = 18) -> tuple[Graph, str]:
    """Return a graph from the frames on, and the name of its (N, 3, H, W) values in float32."""
    g = Graph(opset)
    return g, g.op("Transpose", g.op("Cast", "frames", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])


def ended(g: Graph, x: str, path: Path) -> onnx.ModelProto:
    generators._leave(g, g.op("Transpose", x, perm=[0, 2, 3, 1]), "uint8")
    return onnx.load(g.save(path, *frames_io("uint8"), card=generators.card()))


def check(g: Graph, x: str, path: Path, size: tuple[int, int] = (24, 36)) -> None:
    """Compare the picture that ends in ``x``; nothing in it is flat."""
    proto = ended(g, x, path)
    proto.graph.output.append(onnx.ValueInfoProto(name=name_of_values(proto)))
    frames = natural(size, 2)
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    # Its optimizer moves a Transpose over a Pad of some axes wrongly (1.31).
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    _, theirs = session.run(None, {"frames": frames})
    network = OnnxNetwork(path, proto, torch.float32).eval()
    with torch.inference_mode():
        ours = network.with_values(torch.from_numpy(frames))[1].numpy()
    assert ours.shape == theirs.shape
    assert theirs.std() > 5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.01)


def resized(g: Graph, x: str, factors: tuple[float, float], **attributes: str) -> str:
    return g.op("Resize", x, "", g.constant([1, 1, *factors]), **attributes)


COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("factors", [(2.0, 3.0), (0.5, 0.25), (1.75, 0.625)])
def test_bilinear_enlargement_by_every_kind_of_coordinates(
    tmp_path: Path, coordinates: str, factors: tuple[float, float]
) -> None:
    g, x = begun()
    x = resized(g, x, factors, mode="linear", coordinate_transformation_mode=coordinates)
    check(g, x, tmp_path / "a.onnx")


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("factors", [(2.0, 3.0), (0.5, 0.25), (1.75, 0.625)])
def test_the_nearest_pixel_by_every_rounding(
    tmp_path: Path, coordinates: str, rounding: str, factors: tuple[float, float]
) -> None:
    g, x = begun()
    x = resized(g, x, factors, coordinate_transformation_mode=coordinates, nearest_mode=rounding)
    check(g, x, tmp_path / "a.onnx")


@pytest.mark.parametrize("opset", [9, 10])
def test_the_oldest_enlargement_is_bilinear_from_the_corner(tmp_path: Path, opset: int) -> None:
    g, x = begun(opset)
    kind = "Upsample" if opset == 9 else "Resize"
    check(g, g.op(kind, x, g.constant([1.0, 1.0, 2.0, 3.0]), mode="linear"), tmp_path / "a.onnx")


@pytest.mark.parametrize("side", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (3, 4)])
@pytest.mark.parametrize("size", [(24, 36), (25, 35)])
def test_a_border_that_follows_from_the_size(
    tmp_path: Path, side: str, stride: int, kernel: int, size: tuple[int, int]
) -> None:
    g, x = begun()
    weight = np.random.default_rng(0).uniform(0, 2 / (3 * kernel * kernel), (3, 3, kernel, kernel))
    x = g.op("Conv", x, g.constant(weight), auto_pad=side, strides=[stride] * 2)
    check(g, x, tmp_path / "a.onnx", size)


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
@pytest.mark.parametrize("axes", [(1, 2), (2, 3), (2,), (-1,)])
def test_a_border_of_some_axes(tmp_path: Path, mode: str, axes: tuple[int, ...]) -> None:
    """Of NHWC, whose axes 1 and 2 are the sides, and of NCHW."""
    nhwc = axes == (1, 2)
    g = Graph(18)
    x = g.op("Cast", "frames", to=TensorProto.FLOAT)
    x = x if nhwc else g.op("Transpose", x, perm=[0, 3, 1, 2])
    sides = [1, 2, 3, 4][: 2 * len(axes)]
    x = g.op("Pad", x, g.constant(sides, np.int64), "", g.constant(axes, np.int64), mode=mode)
    x = g.op("Transpose", x, perm=[0, 3, 1, 2]) if nhwc else x
    check(g, x, tmp_path / "a.onnx")


def test_arithmetic_with_the_lengths_of_axes(tmp_path: Path) -> None:
    """Shape, Gather of one length, Mul, Div, Cast, Unsqueeze, Squeeze, Slice and Concat."""
    g, x = begun(13)
    shape = g.op("Shape", x)
    height = g.op("Gather", shape, g.constant(2, np.int64), axis=0)
    width = g.op("Squeeze", g.op("Slice", shape, *ints(g, [3], [4], [0])), ints(g, [0])[0])
    width = g.op("Cast", g.op("Mul", width, g.constant(7, np.int64)), to=TensorProto.FLOAT)
    width = g.op("Floor", g.op("Div", width, g.constant(3.0)))
    width = g.op("Cast", width, to=TensorProto.INT64)
    height = g.op("Div", g.op("Mul", height, g.constant(5, np.int64)), g.constant(3, np.int64))
    sides = [g.op("Unsqueeze", each, ints(g, [0])[0]) for each in (height, width)]
    sizes = g.op("Concat", g.op("Slice", shape, *ints(g, [0], [2])), *sides, axis=0)
    x = g.op("Resize", x, "", "", sizes, mode="linear")
    # Without its first rows and its last column, each second row.
    x = g.op("Slice", x, *ints(g, [4, 0], [1000, -1], [2, 3], [2, 1]))
    check(g, x, tmp_path / "a.onnx", (23, 35))


def ints(g: Graph, *values: list[int]) -> list[str]:
    return [g.constant(each, np.int64) for each in values]


@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        ({"mode": "cubic"}, "Resize with mode = cubic"),
        ({"antialias": 1, "mode": "linear"}, "Resize with axes or antialias"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize"),
    ],
)
def test_an_enlargement_that_is_not_known_is_named_errors(
    tmp_path: Path, attributes: dict[str, object], match: str
) -> None:
    g, x = begun()
    x = g.op("Resize", x, "", g.constant([1.0, 1.0, 2.0, 2.0]), **attributes)
    proto = ended(g, x, tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=f"{match}, which torch does not run here; leave"):
        OnnxNetwork(tmp_path / "a.onnx", proto, torch.float32)
