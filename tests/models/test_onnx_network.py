"""A contract graph in torch draws what onnxruntime draws, for every network that is exported."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import Pixels, PixelType, as_pixel_type
from cyclegan_batch.models.graphs.contract import GeneratorIO, contract_from_generator
from cyclegan_batch.models.model import graph_with_values, open_model
from cyclegan_batch.models.parity import parity
from tests.needs import DATA, package
from tests.synthesis import generators
from tests.synthesis.generators import Graph, frames_io, natural

torch = package("torch")

from torch import nn  # noqa: E402

from cyclegan_batch.models.networks import (  # noqa: E402
    GeneratorConfig,
    generator_from_config,
    init_weights,
)
from cyclegan_batch.models.onnx_network import OnnxNetwork, as_resnet  # noqa: E402
from cyclegan_batch.models.onnx_network.network import name_of_values  # noqa: E402

RESNET = GeneratorConfig("resnet_1blocks", ngf=4)
RESIZE = GeneratorConfig("resnet_1blocks", ngf=4, upsample="resize")
LUMA = GeneratorConfig("resnet_1blocks", 1, 1, 4, norm="batch")
MOBILE = GeneratorConfig("mobile_resnet_1blocks", ngf=4)
UNET = GeneratorConfig("unet_32", ngf=4, norm="batch")

DEEP = [
    GeneratorConfig("resnet_6blocks", ngf=4),
    GeneratorConfig("resnet_9blocks", ngf=4),
    GeneratorConfig("mobile_resnet_9blocks", ngf=4),
    GeneratorConfig("unet_128", ngf=4, norm="batch"),
    GeneratorConfig("unet_256", ngf=2, norm="batch"),
    GeneratorConfig("unet_32", ngf=4, upsample="resize"),
]


def exported(
    config: GeneratorConfig, *, half: bool = False, pixel_type: PixelType = "uint8"
) -> onnx.ModelProto:
    """Return the contract graph of a network whose output is neither flat nor saturated."""
    graph = onnx.ModelProto.FromString(_exported(config, half))
    return contract_from_generator(graph, GeneratorIO(), pixel_type=pixel_type)


@functools.cache
def _exported(config: GeneratorConfig, half: bool) -> bytes:
    """Export a network once for all tests; it takes a second."""
    package("onnxscript")
    from cyclegan_export.graph import deployable, graph_from_network

    network = deployable(network_of(config))
    graph = graph_from_network(network, config.sizes, channels=config.input_nc, half=half)
    return graph.SerializeToString()


def network_of(config: GeneratorConfig) -> nn.Module:
    torch.manual_seed(0)
    network = generator_from_config(config)
    init_weights(network, init_gain=0.1)
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


def by_onnxruntime(proto: onnx.ModelProto, frames: Pixels) -> list[np.ndarray[Any, Any]]:
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[np.ndarray[Any, Any]] = session.run(None, {"frames": frames})
    return outputs


def by_torch(
    proto: onnx.ModelProto, frames: Pixels, dtype: torch.dtype = torch.float32
) -> list[np.ndarray[Any, Any]]:
    network = OnnxNetwork(Path("g.onnx"), proto, dtype).eval()
    with torch.inference_mode():
        return [each.numpy() for each in network.with_values(torch.from_numpy(frames))]


def with_values(path: Path) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(graph_with_values(open_model(path)))


@pytest.mark.behaviour(31, 33)
@pytest.mark.parametrize(
    "config",
    [RESNET, RESIZE, LUMA, MOBILE, UNET, *(pytest.param(c, marks=pytest.mark.slow) for c in DEEP)],
    ids=lambda config: f"{config.netG}-{config.norm}-{config.upsample}",
)
def test_it_draws_what_onnxruntime_draws(config: GeneratorConfig) -> None:
    proto = exported(config)
    side = max(config.sizes.minimum, 64)
    frames = natural((side, 2 * side), 2)
    (theirs,) = by_onnxruntime(proto, frames)
    ours, values = by_torch(proto, frames)
    assert parity(ours, theirs).cls == "exact"
    assert np.ptp(ours) > 40
    # Where the float lies a hair from the middle of two levels, either is right.
    apart = np.abs(values - np.round(values))[ours != theirs]
    assert (apart < 0.02).all()


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("pixel_type", ["uint8", "float16"])
def test_a_half_file_runs_in_float32_and_its_casts_have_no_effect(pixel_type: PixelType) -> None:
    """onnxruntime computes such a file in float32 on a CPU, and rounds at every Cast."""
    proto = exported(RESNET, half=True, pixel_type=pixel_type)
    frames = np.ascontiguousarray(as_pixel_type(natural((64, 92), 2), pixel_type))
    (theirs,) = by_onnxruntime(proto, frames)
    (ours, _) = by_torch(proto, frames)
    assert (ours.dtype, ours.shape) == (frames.dtype, frames.shape)
    assert parity(ours, theirs).reaches("half")
    (plain,) = by_onnxruntime(exported(RESNET, pixel_type=pixel_type), frames)
    # Only the weights are rounded to halves, so it is nearer to the float32 file.
    assert parity(ours, plain).psnr > parity(theirs, plain).psnr


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float32_file_runs_in_half_precision(dtype: torch.dtype) -> None:
    """Whatever the class, it is this network; its floats before rounding are float32."""
    proto = exported(RESNET)
    frames = natural((64, 92), 1)
    exact, _ = by_torch(proto, frames)
    reduced, values = by_torch(proto, frames, dtype)
    assert values.dtype == np.float32
    assert parity(reduced, exact).psnr > 35
    assert not np.array_equal(reduced, exact)


HAND_MADE = {
    "identity": generators.identity,
    "invert": generators.invert,
    "resnet": generators.tiny_resnet,
    "one channel": generators.one_channel,
    "adopted": lambda path: generators.foreign_resnet(path),
    "adopted, half": lambda path: generators.foreign_resnet(path, half=True),
    "adopted, NHWC": lambda path: generators.foreign(path, layout="nhwc"),
    "adopted, old": lambda path: generators.foreign(path, opset=9, range="0..255"),
    "adopted, sigmoid": lambda path: generators.foreign(path, range="0..1", end="sigmoid"),
}


OWN_CLAMP = {"adopted, NHWC": (127.5, 127.5), "adopted, old": (1.0, 0.0)}
"""Files that clamp their values themselves, with scale and offset from their values to levels."""


@pytest.mark.behaviour(31, 34)
@pytest.mark.parametrize("name", HAND_MADE)
def test_files_of_others_are_the_same(name: str, tmp_path: Path) -> None:
    model = open_model(HAND_MADE[name](tmp_path / "g.onnx"))
    proto = onnx.ModelProto.FromString(graph_with_values(model))
    frames = natural((32, 48), 2)
    theirs = by_onnxruntime(proto, frames)
    ours = by_torch(proto, frames)
    assert parity(ours[0], theirs[0]).reaches("half" if "half" in name else "exact")
    close = {"atol": 0.3 if "half" in name else 0.01}
    values = theirs[1]
    if name in OWN_CLAMP:
        # onnxruntime gives them before that clamp, as planes; torch as levels to be rounded down.
        scale, offset = OWN_CLAMP[name]
        values = np.clip(values.transpose(0, 2, 3, 1) * scale + offset, 0, 255) + 0.5
    np.testing.assert_allclose(ours[1], values, rtol=0, **close)


def with_nodes(path: Path, *kinds: str) -> Path:
    """Write a contract file with one node of each kind between its first and last ones."""
    g = Graph(17)
    x = g.op("Cast", "frames", to=TensorProto.FLOAT)
    x = g.op("Transpose", x, perm=[0, 3, 1, 2])
    random = np.random.default_rng(0)
    for kind in kinds:
        match kind:
            case "Pad":
                pads = g.constant([0, 0, 2, 1, 0, 0, 0, 1], np.int64)
                x = g.op("Pad", x, pads, mode="edge")
                pads = g.constant([0, 0, 1, 0, 0, 0, 1, 0], np.int64)
                x = g.op("Pad", x, pads, g.constant(99.0), mode="constant")
                x = g.op("Conv", x, g.constant(random.normal(0, 0.3, (3, 3, 5, 3))))
            case "Conv":
                weight = g.constant(random.normal(0, 0.3, (3, 1, 2, 2)))
                x = g.op("Conv", x, weight, pads=[1, 0, 0, 1], group=3)
            case "BatchNormalization":
                parts = [g.constant(random.uniform(0.5, 1.5, 3)) for _ in range(4)]
                x = g.op("BatchNormalization", x, *parts)
            case "InstanceNormalization":
                parts = [g.constant(random.uniform(20, 40, 3)) for _ in range(2)]
                x = g.op("InstanceNormalization", x, *parts, epsilon=1e-3)
            case "Resize":
                scales = g.constant([1, 1, 2, 2])
                x = g.op("Resize", x, "", scales, mode="nearest")
                x = g.op("Conv", x, g.constant(np.eye(3)[:, :, None, None]), strides=[2, 2])
            case "AveragePool":
                for border in (0, 1):
                    x = g.op(kind, x, kernel_shape=[3, 3], strides=[2, 1], pads=[1] * 4,
                             count_include_pad=border)  # fmt: skip
                x = g.op("Resize", x, "", g.constant([1, 1, 4, 1]), mode="nearest")
            case "Gather":
                x = g.op("Gather", x, g.constant([2, 0, 1], np.int64), axis=1)
            case "ReduceMean":
                x = g.op("Sub", x, g.op("ReduceMean", x, axes=[2, 3]))
                x = g.op("Add", g.constant(90.0), x)
            case "Reshape":
                shape = g.op(
                    "Concat", g.constant([0, 3], np.int64), g.constant([-1], np.int64), axis=0
                )
                x = g.op("Reshape", x, shape)
                x = g.op("Reshape", x, g.constant([0, 3, 32, 48], np.int64))
            case "Concat":
                row = g.constant(random.uniform(0, 99, (2, 1, 32, 48)))
                x = g.op("Concat", x, row, axis=1)
                x = g.op("Concat", row, x, axis=1)
                x = g.op("Conv", x, g.constant(random.normal(0, 0.4, (3, 5, 1, 1))))
            case "Flatten":
                rows = g.op("Flatten", g.op("GlobalMaxPool", x))
                weight, bias = g.constant(random.normal(0, 1, (3, 3))), g.constant([1, 2, 3])
                rows = g.op("Gemm", rows, weight, bias, alpha=0.5, beta=2.0)
                rows = g.op("Gemm", rows, weight, transB=1)
                axes = g.constant([2, 3], np.int64)
                x = g.op("Add", x, g.op("Mul", g.op("Unsqueeze", rows, axes), g.constant(0.1)))
            case "Pow":
                x = g.op("Exp", g.op("Neg", g.op("Div", g.op("Abs", x), g.constant(90.0))))
                x = g.op("Mul", g.op("Pow", x, g.constant(2.0)), g.constant(200.0))
            case "ReduceMax":
                x = g.op("Sub", g.op("ReduceMax", x, axes=[1, 2]), x)
                x = g.op("Sub", x, g.op("ReduceMin", x, axes=[2, 3], keepdims=1))
                x = g.op("Add", x, g.op("ReduceMean", x))
            case "Expand":
                sums = g.op("ReduceSum", x, g.constant([2, 3], np.int64))
                sums = g.op("Expand", sums, g.constant([1, 1, 32, 1], np.int64))
                shape = g.op("Shape", x)
                count = g.op("Cast", g.op("ReduceProd", shape), to=TensorProto.FLOAT)
                sums = g.op("Div", g.op("Expand", sums, shape), count)
                flat = g.op("Reshape", x, g.op("Concat", g.op(
                    "Slice", shape, g.constant([0], np.int64), g.constant([2], np.int64)
                ), g.constant([-1], np.int64), axis=0))  # fmt: skip
                x = g.op("Add", g.op("Reshape", flat, shape), g.op("Mul", sums, g.constant(9.0)))
            case "Constant":
                gain = onnx.numpy_helper.from_array(np.float32(4.0))
                x = g.op("Mul", x, g.op("Sqrt", g.op("Constant", value=gain)))
                x = g.op("Div", g.op("Identity", g.op("Dropout", x)), g.constant(3.0))
            case "LeakyRelu":
                x = g.op("LeakyRelu", g.op("Sub", x, g.constant(100.0)), alpha=0.3)
            case "Cast":
                x = g.op("Clip", x, g.constant(0.0), g.constant(255.0))
                x = g.op("Cast", g.op("Cast", x, to=TensorProto.UINT8), to=TensorProto.FLOAT)
            case _:
                x = g.op(kind, x)
    x = g.op("Floor", g.op("Transpose", x, perm=[0, 2, 3, 1]))
    x = g.op("Clip", x, g.constant(0.0), g.constant(255.0))
    g.op("Cast", x, out="translated", to=TensorProto.UINT8)
    return g.save(path, *frames_io("uint8"), card=generators.card())


@pytest.mark.parametrize(
    "kind",
    ["Pad", "Conv", "BatchNormalization", "InstanceNormalization", "Resize", "Gather",
     "ReduceMean", "Reshape", "Constant", "LeakyRelu", "Cast", "AveragePool",
     "Concat", "Flatten", "Pow", "ReduceMax", "Expand"],
)  # fmt: skip
def test_each_kind_of_node_is_what_onnx_says(kind: str, tmp_path: Path) -> None:
    proto = onnx.load(with_nodes(tmp_path / "g.onnx", kind))
    proto.graph.output.append(onnx.ValueInfoProto(name=name_of_values(proto)))
    frames = natural((32, 48), 2)
    theirs, ours = by_onnxruntime(proto, frames), by_torch(proto, frames)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-3)
    assert np.ptp(ours[1]) > 1


@pytest.mark.parametrize("kind", ["Erf", "CumSum"])
def test_a_node_that_is_not_known_is_named_errors(kind: str, tmp_path: Path) -> None:
    g = Graph()
    x = g.op("Cast", "frames", to=TensorProto.FLOAT)
    x = g.op("Erf", x, out="seen") if kind == "Erf" else g.op("Mul", x, g.op(
        "Cast", g.op("CumSum", g.op("Shape", x), g.constant(0, np.int64), out="seen"),
        to=TensorProto.FLOAT,
    ))  # fmt: skip
    generators._leave(g, x, "uint8")
    path = g.save(tmp_path / "g.onnx", *frames_io("uint8"), card=generators.card())
    with pytest.raises(ModelError, match=rf"g\.onnx: its node seen is {kind}, which torch does no"):
        by_torch(with_values(path), natural((8, 8)))


def test_values_are_freed_after_their_last_reader() -> None:
    network = OnnxNetwork(Path("g.onnx"), exported(RESNET), torch.float32)
    alive: list[Any] = []
    most = 0

    def note(module: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        nonlocal most
        import weakref

        alive.append(weakref.ref(out))
        most = max(most, sum(each() is not None for each in alive))

    for step in network._steps:
        step.register_forward_hook(note)
    with torch.inference_mode():
        network(torch.from_numpy(natural((32, 32))))
    # The input of a residual block, what a step reads, what it writes.
    assert most <= 3


# The reference's ResNet in a graph


@pytest.mark.parametrize("half", [False, True])
def test_a_resnet_is_recognised_with_its_weights(half: bool) -> None:
    network = as_resnet(exported(RESNET, half=half))
    assert network is not None
    wanted = network_of(RESNET)
    x = torch.randn(1, 3, 32, 32)
    tolerance = {"atol": 2e-2 if half else 1e-5, "rtol": 0.0}
    torch.testing.assert_close(network(x), wanted(x), **tolerance)
    assert sum(1 for module in network.modules() if isinstance(module, nn.Conv2d)) == 6


@pytest.mark.parametrize(
    "config",
    [RESIZE, LUMA, MOBILE, UNET],
    ids=lambda config: f"{config.netG}-{config.upsample}",
)
def test_another_network_is_no_resnet(config: GeneratorConfig) -> None:
    assert as_resnet(exported(config)) is None


def test_a_resnet_with_one_number_changed_is_another_network() -> None:
    """Every attribute and constant that the fused kernels take for granted is looked at."""
    proto = exported(RESNET)
    assert as_resnet(proto) is not None

    def kinds(kind: str) -> list[onnx.NodeProto]:
        return [node for node in proto.graph.node if node.op_type == kind]

    weights = {w.name: w for w in proto.graph.initializer}

    def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
        return next(a for a in node.attribute if a.name == name)

    def constant(name: str, value: Any) -> None:
        like = onnx.numpy_helper.to_array(weights[name])
        changed = np.broadcast_to(value, like.shape).astype(like.dtype)
        weights[name].CopyFrom(onnx.numpy_helper.from_array(changed, name))

    norm, pad = kinds("InstanceNormalization")[1], kinds("Pad")[1]
    changes: dict[str, Callable[[], object]] = {
        "eps": lambda: setattr(attribute(norm, "epsilon"), "f", 1e-3),
        "scale": lambda: constant(norm.input[1], 2.0),
        "offset": lambda: constant(norm.input[2], 0.5),
        "mode": lambda: setattr(attribute(pad, "mode"), "s", b"edge"),
        "border": lambda: constant(pad.input[1], [0, 0, 2, 2, 0, 0, 2, 2]),
        "stride": lambda: attribute(kinds("Conv")[1], "strides").ints.__setitem__(0, 1),
        "dilation": lambda: attribute(kinds("Conv")[3], "dilations").ints.__setitem__(0, 2),
        "extra": lambda: attribute(kinds("ConvTranspose")[0], "output_padding").ints.__setitem__(
            slice(None), [0, 0]
        ),
        "gain": lambda: constant(kinds("Mul")[0].input[1], 2 / 254),
        "activation": lambda: setattr(kinds("Relu")[2], "op_type", "Sigmoid"),
        "white": lambda: constant(kinds("Clip")[0].input[2], 254.0),
        "bytes": lambda: (
            proto.graph.node.insert(
                8, onnx.helper.make_node("Cast", [kinds("Conv")[1].output[0]], ["cut"], to=2)
            )
            or kinds("InstanceNormalization")[1].input.__setitem__(0, "cut")
        ),
        "skip": lambda: kinds("Add")[1].input.__setitem__(0, kinds("Add")[1].input[1]),
    }
    before = proto.SerializeToString()
    for name, change in changes.items():
        proto.ParseFromString(before)
        weights = {w.name: w for w in proto.graph.initializer}
        norm, pad = kinds("InstanceNormalization")[1], kinds("Pad")[1]
        change()
        assert proto.SerializeToString() != before, name
        assert as_resnet(proto) is None, name


@pytest.mark.corpus
@pytest.mark.behaviour(34)
@pytest.mark.parametrize("name", ["candy", "mosaic"])
def test_a_real_file_of_others_is_the_same(name: str) -> None:
    (path,) = (DATA / "models" / "fast_neural_style_onnx").glob(f"{name}_*.onnx")
    model = open_model(path, model_io="0..255")
    proto = onnx.ModelProto.FromString(graph_with_values(model))
    frames = natural((256, 256), 1)
    theirs, ours = by_onnxruntime(proto, frames), by_torch(proto, frames)
    assert parity(ours[0], theirs[0]).cls == "exact"
