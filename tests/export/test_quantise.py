"""A generator in INT8 fits TensorRT and OpenVINO, and is written only where it is faster."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

pytest.importorskip("onnxscript")

from cyclegan_export import Exported, export_bundle, export_onnx, quantise
from cyclegan_export import onnx_export as exporting
from cyclegan_export.gate import translated_by_torch

from cyclegan_batch import cli
from cyclegan_batch.backends import BACKENDS, open_backend
from cyclegan_batch.backends.tensorrt import engine_from_graph
from cyclegan_batch.errors import InputError, ModelError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.engine_card import Build, profile_for
from cyclegan_batch.models.model import Model, model_from_contract, open_model
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from cyclegan_batch.models.parity import natural_frames, parity
from cyclegan_batch.wording import grouped
from tests.needs import need
from tests.synthesis import generators

SIDE = 64

RESNET = GeneratorConfig("resnet_1blocks", ngf=8)
MOBILE = GeneratorConfig("mobile_resnet_1blocks", ngf=8, upsample="resize")
PLAIN = GeneratorConfig("resnet_1blocks", ngf=8, norm="none", upsample="resize")


def network_of(config: GeneratorConfig) -> nn.Module:
    torch.manual_seed(0)
    network = generator_from_config(config)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("bias"):
                value.uniform_(-0.2, 0.2)
            elif config.norm == "none":  # or the picture would be flat
                nn.init.kaiming_normal_(value)
    return network.eval()


def saved(network: nn.Module, folder: Path) -> Path:
    """Write a checkpoint whose metadata state that it was trained at `SIDE`."""
    path = folder / "netG_A.safetensors"
    safetensors.torch.save_file(network.state_dict(), path, {"trained_size": str(SIDE)})
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images other than those that the gate measures on."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, frame in enumerate(natural_frames((SIDE, SIDE), 7)[4:]):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "CALIBRATION_FRAMES", 3)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that fixes the measured rate of every INT8 file, and not its parity."""

    def fix(rate: float) -> None:
        def measured(models: list[Model], frames: Pixels, reference: Pixels) -> quantise.Measured:
            return quantise.Measured("a runtime", [1.0] + [rate] * (len(models) - 1), None)

        monkeypatch.setattr(quantise, "_measure_rates", measured)

    return fix


@pytest.fixture(scope="module")
def everywhere(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path
) -> Callable[[GeneratorConfig], Exported]:
    """Return a function that exports a network with every convolution in INT8, once per network."""
    folder = tmp_path_factory.mktemp("everywhere")

    @cache
    def export(config: GeneratorConfig) -> Exported:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporting, "CALIBRATION_FRAMES", 3)
            return export_onnx(
                saved(network_of(config), folder),
                folder / f"{config.family}.onnx",
                precision="int8",
                calibrate=pictures,
                verify=False,
            )

    return export


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Return a small foreign ResNet, which needs no export by torch."""
    return generators.foreign_resnet(tmp_path / "f.onnx", fixed=(SIDE, SIDE))


def unquantised(path: Path) -> list[str]:
    """Return the weights of the convolutions that stayed float."""
    graph = onnx.load(path).graph
    made = {out: node.op_type for node in graph.node for out in node.output}
    return [
        node.input[1]
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose")
        and made.get(node.input[0]) != "DequantizeLinear"
    ]


# The graph


@pytest.mark.parametrize("config", [RESNET, MOBILE], ids=["resnet", "mobile"])
def test_convolutions_are_quantised_signed_symmetric_and_per_channel(config, everywhere):
    exported = everywhere(config)
    assert (exported.card.precision, exported.card.parity) == ("int8", "unverified")
    proto = onnx.load(exported.path)
    onnx.checker.check_model(proto, full_check=True)
    assert [opset.version for opset in proto.opset_import] == [18]
    graph = proto.graph
    made = {out: node for node in graph.node for out in node.output}
    readers = {name: node.op_type for node in graph.node for name in node.input}
    values = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    convolutions = [n for n in graph.node if n.op_type in ("Conv", "ConvTranspose")]
    modules = [
        m for m in network_of(config).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert len(convolutions) == len(modules)
    for node in convolutions:
        leave, weight = made[node.input[0]], made[node.input[1]]
        enter = made[leave.input[0]]
        assert (enter.op_type, leave.op_type) == ("QuantizeLinear", "DequantizeLinear")
        assert weight.op_type == "DequantizeLinear"
        for each in (enter, leave):
            zero = values[each.input[2]]
            assert (zero.dtype, zero.shape, zero.item()) == (np.int8, (), 0)
            assert values[each.input[1]].shape == ()
        stored, scale, zero = (values[name] for name in weight.input)
        axis = 0 if node.op_type == "Conv" else 1
        assert helper.get_node_attr_value(weight, "axis") == axis
        assert stored.dtype == zero.dtype == np.int8
        assert scale.shape == zero.shape == (stored.shape[axis],)
        assert not zero.any()
        assert stored.min() >= -127
        if len(node.input) == 3:
            assert values[node.input[2]].dtype == np.float32
        assert readers[node.output[0]] != "QuantizeLinear"
    norms = [node for node in graph.node if node.op_type == "InstanceNormalization"]
    assert len(norms) == sum(isinstance(m, nn.InstanceNorm2d) for m in network_of(config).modules())
    for node in norms:
        assert made[node.input[0]].op_type in ("Conv", "ConvTranspose")
        assert all(values[name].dtype == np.float32 for name in node.input[1:])
    # The float weights are removed, so nothing is stored twice.
    stored_floats = sum(v.size for v in values.values() if v.dtype == np.float32)
    assert stored_floats < sum(value.size for value in values.values()) / 4


def test_the_contract_around_it_stays_and_nothing_of_the_tool_is_left(everywhere):
    proto = onnx.load(everywhere(RESNET).path)
    first, last = proto.graph.node[0], proto.graph.node[-1]
    assert (first.op_type, first.input[0]) == ("Cast", "frames")
    assert (last.op_type, last.output[0]) == ("Cast", "translated")
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.UINT8
        assert [axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim] == [
            False,
            False,
            False,
            True,
        ]
    assert {prop.key.partition(".")[0] for prop in proto.metadata_props} == {"cyclegan_batch"}
    assert proto.producer_name == "cyclegan-batch"
    assert not proto.graph.value_info


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_backend_draws_it_at_any_size(everywhere, backend):
    opened = open_backend(open_model(everywhere(RESNET).path), backend=backend, device="cpu")
    # Where the CPU's integers overflow, OpenVINO computes in floats and a note says so.
    assert opened.precision == ("fp32" if grouped(opened.notes) else "int8")
    for count, height, width in ((1, SIDE, SIDE), (3, 48, 80)):
        frames = natural_frames((height, width), count)
        exact = translated_by_torch(network_of(RESNET), frames, channels=3)
        found = parity(opened.infer(frames), exact)
        assert found.reaches("coarse"), str(found)
        assert found.cls != "exact"
    opened.close()


@pytest.mark.behaviour(33, 54)
@pytest.mark.parametrize("overflows", [True, False])
def test_openvino_computes_in_floats_where_its_integers_overflow(
    everywhere, monkeypatch, overflows
):
    """Holds on every CPU: both the overflow of a CPU without VNNI and its absence are simulated."""
    module = pytest.importorskip("cyclegan_batch.backends.openvino")
    pytest.importorskip("openvino")
    compiled, settings_seen = module._compiled, []
    spoilt = generators.identity(everywhere(RESNET).path.with_name("spoilt.onnx"))

    def compile_as_on_another_cpu(core, card, graph, settings):
        settings_seen.append(settings)
        in_integers = "LP_TRANSFORMS_MODE" not in settings
        if in_integers and overflows:
            return compiled(core, card, spoilt.read_bytes(), settings)
        return compiled(core, card, graph, {**settings, "LP_TRANSFORMS_MODE": "NO"})

    monkeypatch.setattr(module, "_compiled", compile_as_on_another_cpu)
    monkeypatch.setattr(module, "verify", lambda card, run: None)
    opened = open_backend(open_model(everywhere(RESNET).path), backend="openvino", device="cpu")
    frames = natural_frames((SIDE, SIDE), 2)
    exact = open_backend(open_model(everywhere(RESNET).path), backend="onnxruntime", device="cpu")
    assert parity(opened.infer(frames), exact.infer(frames)).reaches("near")
    assert opened.precision == ("fp32" if overflows else "int8")
    assert ["overflows in openvino" in note.text for note in opened.notes] == [True] * overflows
    assert len(settings_seen) == 2
    opened.close()
    exact.close()


def test_the_same_pictures_give_the_same_bytes(foreign, tmp_path, pictures):
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        export_onnx(foreign, file, precision="int8", calibrate=pictures, verify=False)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_fixed_batch_of_float16_pixels_is_calibrated(tmp_path, pictures):
    exported = export_onnx(
        saved(network_of(RESNET), tmp_path),
        tmp_path / "a.onnx",
        precision="int8",
        calibrate=pictures,
        shape=(2, SIDE, SIDE),
        io="float16",
        verify=False,
    )
    assert (exported.card.batch, exported.card.pixel_type) == (2, "float16")
    assert unquantised(exported.path) == []


# What stays float


@pytest.mark.behaviour(33)
def test_a_network_that_bears_it_is_quantised_everywhere(tmp_path, pictures, rates):
    rates(2.0)
    said: list[str] = []
    exported = export_onnx(
        saved(network_of(RESNET), tmp_path),
        tmp_path / "a.onnx",
        precision="int8",
        calibrate=pictures,
        say=said.append,
    )
    assert exported.parity is not None
    assert exported.parity.reaches("coarse")
    assert re.match(
        r"(coarse|near|half): \d\d\.\d dB.* against torch in fp32", exported.card.parity
    )
    assert unquantised(exported.path) == []
    table = [line for line in said if " | " in line]
    assert table[0].endswith("| rate on a runtime's CPU against fp32")
    assert re.fullmatch(r"0 of 8 \| \d\d\.\d dB \| (coarse|near|half) \| 2\.00", table[1])
    assert len(table) == 2


def with_an_outlier(network: nn.Module) -> nn.Module:
    """Make one channel between two convolutions a thousand times as large, without any effect."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        convolutions[0].weight[0] *= 1000  # a ReLU lets a factor through
        convolutions[1].weight[:, 0] /= 1000
    return network


@pytest.mark.behaviour(33)
def test_only_the_convolution_that_int8_spoils_stays_float(tmp_path, pictures, rates):
    rates(1.5)
    said: list[str] = []
    exported = export_onnx(
        saved(with_an_outlier(network_of(PLAIN)), tmp_path),
        tmp_path / "a.onnx",
        precision="int8",
        calibrate=pictures,
        say=said.append,
    )
    assert unquantised(exported.path) == ["generator/model.4.weight"]
    assert exported.parity.reaches("coarse")
    table = [line for line in said if " | " in line][1:]
    assert re.match(r"0 of 8 \| \d+\.\d dB \| none \|", table[0])
    assert re.match(r"1 of 8 \(model\.4\) \| \d\d\.\d dB \| (coarse|near|half) \|", table[1])


@pytest.mark.behaviour(33)
def test_without_a_gain_nothing_is_written_errors(foreign, tmp_path, pictures, rates):
    rates(1.04)
    said: list[str] = []
    with pytest.raises(ModelError, match=r"int8 reaches coarse with 0 of 6 .* 1\.04 times as fast"):
        export_onnx(
            foreign,
            tmp_path / "a.onnx",
            precision="int8",
            calibrate=pictures,
            say=said.append,
        )
    assert not (tmp_path / "a.onnx").exists()
    assert any(line.endswith("| 1.04") for line in said)


@pytest.mark.behaviour(33)
def test_where_nothing_is_close_enough_nothing_is_written_errors(tmp_path, pictures, rates):
    rates(2.0)
    g = generators.Graph()
    weight = 60 * np.eye(3)[:, :, np.newaxis, np.newaxis]
    g.op("Sin", g.op("Conv", "image", g.constant(weight)), out="picture")
    shape = ("N", 3, "H", "W")
    source = g.save(
        tmp_path / "f.onnx",
        [("image", TensorProto.FLOAT, shape)],
        [("picture", TensorProto.FLOAT, shape)],
    )
    # The sine amplifies how a CPU rounds: 19 dB on one CPU, 2x dB on another.
    refusal = r"0 of 1 .* int8 is still (\d+\.\d) dB where coarse"
    with pytest.raises(ModelError, match=refusal) as refused:
        export_onnx(
            source,
            tmp_path / "a.onnx",
            precision="int8",
            calibrate=pictures,
            model_io="nchw rgb -1..1",
        )
    measured = re.search(refusal, str(refused.value))
    assert measured is not None
    assert 10 < float(measured[1]) < 35
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 19])
def test_the_fewest_that_are_enough_are_found(needed):
    tried: list[int] = []

    def enough(count: int) -> bool:
        tried.append(count)
        return count >= needed

    assert quantise._fewest(20, enough) == needed
    assert len(tried) == len(set(tried)) <= 9


@pytest.mark.parametrize("total", [1, 2, 8, 9])
def test_none_is_found_where_all_but_one_are_not_enough(total):
    tried: list[int] = []
    assert quantise._fewest(total, lambda count: tried.append(count) is not None) is None
    assert max(tried, default=0) == total - 1


def test_rates_are_measured_on_a_runtime_of_this_machine(foreign, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(quantise, "GAIN", 0.0)  # whatever this machine does
    said: list[str] = []
    export_onnx(foreign, tmp_path / "a.onnx", precision="int8", calibrate=pictures, say=said.append)
    head, row, *_ = (line for line in said if " | " in line)
    runtime = re.search(r"rate on (\w+)'s CPU", head)
    assert runtime is not None
    assert runtime[1] in BACKENDS
    assert 0.05 < float(row.rpartition(" ")[2]) < 20


# Foreign files


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("opset", [11, 17])
def test_a_foreign_file_is_quantised(tmp_path, pictures, rates, opset):
    rates(2.0)
    source = generators.foreign(tmp_path / "f.onnx", opset=opset)
    exported = export_onnx(source, tmp_path / "a.onnx", precision="int8", calibrate=pictures)
    assert exported.card.precision == "int8"
    assert exported.parity.reaches("coarse")
    assert "against the file that was given" in exported.card.parity
    assert unquantised(exported.path) == []


def test_a_foreign_file_in_half_precision_errors(tmp_path, pictures):
    source = generators.foreign(tmp_path / "f.onnx", half=True)
    with pytest.raises(ModelError, match=r"foreign ONNX in fp16.*--precision int8 was asked for"):
        export_onnx(source, tmp_path / "a.onnx", precision="int8", calibrate=pictures)


# What it is calibrated with


def test_int8_without_pictures_names_the_option_errors(tmp_path):
    given = saved(network_of(RESNET), tmp_path)
    with pytest.raises(ModelError, match=r"netG_A\.safetensors: .*pass --calibrate FOLDER"):
        export_onnx(given, tmp_path / "a.onnx", precision="int8")


def test_pictures_without_int8_errors(tmp_path, pictures):
    given = saved(network_of(RESNET), tmp_path)
    with pytest.raises(ModelError, match=r"--calibrate is for int8, and fp16 was asked for"):
        export_onnx(given, tmp_path / "a.onnx", precision="fp16", calibrate=pictures)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("empty", "empty: no image and no video in it"),
        ("gone", "gone: cannot be read: No such file"),
        ("broken", r"broken/a\.png"),
    ],
)
def test_calibration_that_cannot_be_read_errors(foreign, tmp_path, name, match):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no picture")
    with pytest.raises(InputError, match=match):
        export_onnx(foreign, tmp_path / "a.onnx", precision="int8", calibrate=tmp_path / name)
    assert not (tmp_path / "a.onnx").exists()


# For TensorRT


@pytest.fixture
def no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every measurement of a rate fail, and every other runtime than the gate's."""

    def measured(*_: object) -> quantise.Measured:
        raise AssertionError("measured a rate")

    monkeypatch.setattr(quantise, "_measure_rates", measured)
    monkeypatch.setattr(quantise, "_worst_parity", measured)


def int8_for_tensorrt(model, output, pictures, said):
    return export_onnx(
        model, output, precision="int8", for_="tensorrt", calibrate=pictures, say=said.append
    )


@pytest.mark.behaviour(33)
def test_for_tensorrt_both_inputs_of_a_residual_add_are_int8_and_the_picture_decides(
    foreign, tmp_path, pictures, no_rates
):
    said: list[str] = []
    exported = int8_for_tensorrt(foreign, tmp_path / "a.onnx", pictures, said)
    assert exported.parity is not None
    assert exported.parity.reaches("coarse")
    assert exported.card.parity is not None
    assert exported.card.parity.endswith("; for TensorRT, its rate unknown")
    (row,) = (line for line in said if line.startswith("0 of 7 | "))
    assert row.endswith(" dB | coarse") or row.endswith(" dB | near")
    assert "the picture alone decides for TensorRT: its rate is unknown" in "\n".join(said)
    proto = onnx.load(exported.path)
    onnx.checker.check_model(proto, full_check=True)
    made = {out: node for node in proto.graph.node for out in node.output}
    values = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}

    def leaves(name: str) -> bool:
        return name in made and made[name].op_type == "DequantizeLinear"

    adds = [node for node in proto.graph.node if node.op_type == "Add"]
    (residual,) = (node for node in adds if all(map(leaves, node.input)))
    assert not any(leaves(name) for node in adds if node is not residual for name in node.input)
    for name in residual.input:
        enter = made[made[name].input[0]]
        assert enter.op_type == "QuantizeLinear"
        zero = values[enter.input[2]]
        assert (zero.dtype, zero.item()) == (np.int8, 0)
        assert values[enter.input[1]].shape == ()
    assert not any(leaves(name) for name in proto.graph.node[-1].input)
    assert unquantised(exported.path) == []


@pytest.mark.behaviour(33)
def test_for_tensorrt_what_is_not_int8_is_half_precision(tmp_path):
    given = open_model(
        generators.foreign_resnet(tmp_path / "half.onnx", half=True, fixed=(SIDE, SIDE))
    )
    calibrated = quantise.Calibrated(
        tmp_path / "a.onnx",
        onnx.ModelProto.FromString(given.graph),
        natural_frames((SIDE, SIDE), 3),
        runtime="tensorrt",
    )
    assert len(calibrated.layers) == 7
    proto = calibrated.quantised()
    onnx.checker.check_model(proto, full_check=True)
    assert [opset.version for opset in proto.opset_import] == [19]
    values = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    quantised = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantised) == 6 + 2
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[node.input[1]].dtype == np.float16
            assert (values[node.input[1]] > 0).all()
    model = model_from_contract(
        tmp_path / "a.onnx",
        proto,
        architecture=given.card.architecture,
        sizes=given.card.sizes,
        precision="int8",
    )
    frames = natural_frames((SIDE, SIDE), 2)
    exact = open_backend(given, backend="onnxruntime", device="cpu").infer(frames)
    for backend in ("onnxruntime", "openvino"):
        need(backend)
        opened = open_backend(model, backend=backend, device="cpu")
        assert parity(opened.infer(frames), exact).reaches("coarse")
        opened.close()


@pytest.mark.parametrize(
    ("options", "floats"),
    [({"precision": "int8", "for_": "tensorrt"}, "fp16"), ({"precision": "int8"}, "int8")],
)
def test_a_checkpoint_is_made_half_for_tensorrt_alone(
    tmp_path, pictures, monkeypatch, options, floats
):
    class MadeError(Exception):
        pass

    def made(source, model_io, selection, precision, *_: object):
        raise MadeError(precision)

    monkeypatch.setattr(exporting, "_from_checkpoint", made)
    with pytest.raises(MadeError, match=f"^{floats}$"):
        export_onnx(
            saved(network_of(RESNET), tmp_path), tmp_path / "a.onnx", calibrate=pictures, **options
        )


def test_for_tensorrt_a_layer_that_int8_spoils_stays_float(foreign, tmp_path, pictures, no_rates):
    """The harm of each layer is pretended: the picture of a small network does not suffer."""
    harm = {"spoils": 20.0}

    def measured(model: Model, frames: Pixels, reference: Pixels, runtime: str = "onnxruntime"):
        assert runtime == "onnxruntime"
        graph = onnx.ModelProto.FromString(model.graph).graph
        made = {out: node.op_type for node in graph.node for out in node.output}
        (add,) = (
            node
            for node in graph.node
            if node.op_type == "Add" and all(made.get(n) in SOURCES for n in node.input)
        )
        spoilt = made[add.input[0]] == "DequantizeLinear"
        real = quantise.parity(reference, reference)
        return dataclasses.replace(
            real, psnr=harm["spoils"] if spoilt else 40.0, cls="none" if spoilt else "coarse"
        )

    SOURCES = ("DequantizeLinear", "InstanceNormalization", "Relu", "LeakyRelu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantise, "_parity", measured)
        said: list[str] = []
        int8_for_tensorrt(foreign, tmp_path / "a.onnx", pictures, said)
    assert "int8 everywhere is 20.0 dB" in "\n".join(said)
    assert "which of 7 layers must stay fp32" in "\n".join(said)
    assert any(re.fullmatch(r"1 of 7 \(\d+_Add\) \| 40.0 dB \| coarse", line) for line in said)


def test_what_int8_is_for_is_said_without_int8_errors(tmp_path):
    given = saved(network_of(RESNET), tmp_path)
    with pytest.raises(ModelError, match=r"--for is for int8, and fp32 was asked for"):
        export_onnx(given, tmp_path / "a.onnx", for_="tensorrt")
    for words, told in (
        (
            ("generic", "--for", "cpu"),
            "--for cpu: an engine and the bundle of a device run",
        ),
        (
            ("ffmpeg", "--for", "cpu"),
            "--for cpu: it is for int8, and the bundle of another program",
        ),
    ):
        done = CliRunner().invoke(
            cli.main, ["export", str(given), str(tmp_path / "b"), "--bundle", *words]
        )
        assert (done.exit_code, told in done.stderr) == (2, True)


@pytest.mark.behaviour(33)
def test_a_bundle_in_int8_demands_its_class_and_says_that_its_rate_is_unknown(
    foreign, tmp_path, pictures, no_rates, device
):
    folder = tmp_path / "b"
    export_bundle(
        foreign,
        folder,
        target="jetson-orin",
        precision="int8",
        calibrate=pictures,
    )
    card = json.loads((folder / "card.json").read_text())
    assert card["model"]["precision"] == "int8"
    assert card["rule"] == {"psnr": 35.0, "within2": 0.0}
    said = (folder / "README.txt").read_text()
    assert "as close as int8 should: 35 dB" in said
    assert "Whether int8 is faster than half precision on this device is not known: run" in said
    golden = np.fromfile(folder / "golden_output.bin", np.uint8).astype(int)
    inverted = 255 - np.fromfile(folder / "golden_input.bin", np.uint8).astype(int)
    assert device(folder, "build").returncode == 0
    assert "int8 is worth its loss only where it is faster" in device(folder, "bench").stdout
    done = device(folder, "verify")
    assert "where 35 dB are expected; do not use it" in done.stderr, "the stand-in inverts"
    coarse = np.clip(inverted + 4, 0, 255).astype(np.uint8)
    assert np.abs(golden - inverted).max() > 4
    (folder / "golden_output.bin").write_bytes(coarse.tobytes())
    card["golden"]["output_sha256"] = hashlib.sha256(coarse.tobytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))
    assert "the engine's output matches the golden frames: 36." in device(folder, "verify").stdout


def test_an_int8_file_of_the_contract_becomes_a_bundle(everywhere, tmp_path):
    export_bundle(everywhere(RESNET).path, tmp_path / "b", target="generic")
    card = json.loads((tmp_path / "b" / "card.json").read_text())
    assert card["rule"]["psnr"] == 35.0


# The command


def test_the_command_prints_the_table_and_nothing_of_the_quantiser(
    foreign, tmp_path, pictures, rates
):
    rates(1.0)
    command = ["export", str(foreign), str(tmp_path / "a.onnx"), "--precision", "int8"]
    done = CliRunner().invoke(cli.main, [*command, "--calibrate", str(pictures)])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "Collecting" not in done.stderr
    assert "0 of 6 | " in done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.search(r"Error: .*a\.onnx: not written: int8 reaches coarse", last)


# TensorRT


@pytest.mark.needs_tensorrt
@pytest.mark.parametrize("config", [RESNET, MOBILE], ids=["resnet", "mobile"])
def test_tensorrt_parses_and_builds_it(config, everywhere):
    pytest.importorskip("tensorrt")
    model = open_model(everywhere(config).path)
    profile = profile_for(model.card, (1, 32, 32), (2, 64, 64), (4, 96, 64))
    assert engine_from_graph(model.graph, Build(profile), name="a.onnx")


@pytest.mark.needs_tensorrt
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_tensorrt_parses_and_builds_one_that_is_made_for_it(foreign, tmp_path, pictures, half):
    pytest.importorskip("tensorrt")
    source = saved(network_of(RESNET), tmp_path) if half else foreign
    exported = export_onnx(
        source, tmp_path / "a.onnx", precision="int8", for_="tensorrt", calibrate=pictures
    )
    model = open_model(exported.path)
    only = (1, SIDE, SIDE)
    profile = profile_for(model.card, only, only, only)
    assert engine_from_graph(model.graph, Build(profile), name="a.onnx")
