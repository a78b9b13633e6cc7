"""A checkpoint becomes a file with the same output on every backend, or no file at all."""

from __future__ import annotations

import fractions
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

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

from cyclegan_export import Exported, export_onnx
from cyclegan_export import onnx_export as exporting
from cyclegan_export.gate import checked_half_arithmetic, translated_by_torch
from cyclegan_export.graph import deployable
from cyclegan_export.samples import frames_from_files, samples_for

from cyclegan_batch import cli
from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import BackendUnavailableError, InputError, ModelError, OutputError
from cyclegan_batch.frames import Pixels, SizeRequirements
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.networks import GeneratorConfig, InstanceNorm, generator_from_config
from cyclegan_batch.models.parity import natural_frames, parity
from cyclegan_batch.wording import grouped
from tests.conftest import REPOSITORY
from tests.synthesis import generators, streams

RESNET = GeneratorConfig("resnet_1blocks", ngf=4)
UNET = GeneratorConfig("unet_32", ngf=4, norm="batch")
MOBILE = GeneratorConfig("mobile_resnet_1blocks", 1, 3, 8, upsample="resize")

NODES = {"Pad", "Conv", "InstanceNormalization", "Relu", "LeakyRelu", "Add", "Concat",
         "ConvTranspose", "Tanh", "Resize"}  # fmt: skip
CONTRACTS = {"Cast", "Mul", "Add", "Transpose", "Floor", "Clip", "MatMul"}


def network_of(config: GeneratorConfig) -> nn.Module:
    """Return a network whose every weight has an effect and whose output has contrast."""
    torch.manual_seed(0)
    network = generator_from_config(config)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name.endswith(("bias", "running_mean")):
                value.uniform_(-0.2, 0.2)
        last = [each for each in network.modules() if isinstance(each, nn.Conv2d)][-1]
        if config.family != "unet":
            last.weight *= 4
    return network.eval()


def drawn(config: GeneratorConfig, frames: Pixels, top: float = 255.0) -> Pixels:
    """Return the contract's translation of ``frames``, by torch in double, before rounding."""
    x = torch.from_numpy(frames).double() / top * 2 - 1
    if config.input_nc == 1:
        x = (x * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
    with torch.inference_mode():
        y = network_of(config).double()(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return ((y + 1) / 2 * top).expand(-1, -1, -1, 3).numpy()


def rounded(values: Pixels) -> Pixels:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Return a function that exports a network, each once for all tests."""
    folder = tmp_path_factory.mktemp("made")

    @cache
    def export(config: GeneratorConfig, **options: Any) -> Exported:
        checkpoint = folder / "latest_net_G_A.pth"
        torch.save(network_of(config).state_dict(), checkpoint)
        return export_onnx(checkpoint, folder / f"{len(list(folder.iterdir()))}.onnx", **options)

    return export


KINDS = [
    pytest.param(RESNET, {}, id="resnet"),
    pytest.param(RESNET, {"precision": "fp16"}, id="resnet-fp16"),
    pytest.param(RESNET, {"precision": "fp16", "half_norm": True}, id="resnet-fp16-half-norm"),
    pytest.param(UNET, {}, id="unet-batch"),
    pytest.param(UNET, {"precision": "fp16"}, id="unet-batch-fp16"),
    pytest.param(MOBILE, {"precision": "fp16"}, id="mobile-grey-resize-fp16"),
]


@pytest.mark.behaviour(33, 34)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("config", "options"), KINDS)
def test_every_backend_draws_the_networks_picture_at_any_size(made, config, options, backend):
    opened = open_backend(open_model(made(config, **options).path), backend=backend, device="cpu")
    needed = "half" if options.get("precision") == "fp16" else "exact"
    step, least = config.sizes.multiple_of, config.sizes.minimum
    for count, height, width in ((1, least, least), (3, 2 * least + step, least), (2, 64, 96)):
        frames = natural_frames((height, width), count)
        found = parity(opened.infer(frames), rounded(drawn(config, frames)))
        assert found.reaches(needed), (count, height, width, str(found))
        assert np.ptp(opened.infer(frames)) > 20
    opened.close()


@pytest.mark.parametrize(("config", "options"), KINDS)
def test_the_graph_holds_the_nodes_that_every_runtime_knows(made, config, options):
    proto = onnx.load(made(config, **options).path)
    inner = Counter(n.op_type for n in proto.graph.node if n.name.startswith("generator/"))
    outer = {n.op_type for n in proto.graph.node if n.name.startswith("contract/")}
    half = options.get("precision") == "fp16" and not options.get("half_norm")
    assert set(inner) <= NODES | ({"Cast"} if half else set())
    assert outer <= CONTRACTS
    norms = sum(isinstance(m, nn.InstanceNorm2d) for m in network_of(config).modules())
    assert inner["InstanceNormalization"] == norms
    assert inner["Cast"] == (2 * norms if half else 0)
    assert [opset.version for opset in proto.opset_import if not opset.domain] == [18]
    assert not proto.functions
    pads = [n for n in proto.graph.node if n.op_type == "Pad"]
    assert all(helper.get_node_attr_value(n, "mode") == b"reflect" for n in pads)
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("half_norm", [False, True])
def test_half_precision_keeps_the_norm_in_fp32_unless_asked_with_one_type_for_all_it_reads(
    made, half_norm
):
    proto = onnx.load(made(RESNET, precision="fp16", half_norm=half_norm).path)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    kinds |= {w.name: w.data_type for w in proto.graph.initializer}
    for node in proto.graph.node:
        types = {kinds[name] for name in node.input[:3]} if node.op_type != "Cast" else set()
        if node.op_type == "InstanceNormalization":
            assert types == {TensorProto.FLOAT16 if half_norm else TensorProto.FLOAT}
        elif node.op_type in ("Conv", "ConvTranspose"):
            assert types == {TensorProto.FLOAT16}


def test_convolutions_before_an_instance_norm_have_no_bias(made):
    proto = onnx.load(made(RESNET).path)
    readers = {name: node.op_type for node in proto.graph.node for name in node.input}
    convolutions = [n for n in proto.graph.node if n.op_type in ("Conv", "ConvTranspose")]
    assert len(convolutions) == 8
    for node in convolutions:
        before_norm = readers[node.output[0]] == "InstanceNormalization"
        assert len(node.input) == (2 if before_norm else 3)


@pytest.mark.parametrize(
    "config",
    [
        RESNET,
        UNET,
        MOBILE,
        GeneratorConfig("resnet_1blocks", ngf=4, dropout=True, norm="batch", upsample="resize"),
        GeneratorConfig("resnet_1blocks", ngf=4, norm="none"),
        GeneratorConfig("mobile_resnet_1blocks", ngf=4, norm="batch"),
        GeneratorConfig("unet_64", ngf=2, dropout=True),
        GeneratorConfig("unet_32", 1, 1, 2, norm="none", upsample="resize"),
    ],
    ids=str,
)
def test_what_is_exported_computes_what_was_trained(config):
    network = network_of(config).double()
    x = torch.rand(2, config.input_nc, 64, 64, dtype=torch.double) * 2 - 1
    before = {name: value.clone() for name, value in network.state_dict().items()}
    changed = deployable(network)
    with torch.inference_mode():
        torch.testing.assert_close(changed(x), network(x), rtol=0, atol=1e-9)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in changed.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_nothing_of_the_machine_is_in_the_file(made):
    path = made(RESNET).path
    proto = onnx.load(path)
    content = path.read_bytes()
    for word in (
        str(REPOSITORY),
        str(path.parent),
        str(Path.home()),
        sys.prefix,
        ".py",
        "site-packages",
    ):
        assert word.encode() not in content, word
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert not proto.graph.doc_string + proto.doc_string
    assert {prop.key.partition(".")[0] for prop in proto.metadata_props} == {"cyclegan_batch"}
    assert proto.producer_name == "cyclegan-batch"


def test_the_card_says_what_the_file_is(made):
    exported = made(RESNET)
    card = open_model(exported.path).card
    assert card == exported.card
    assert (card.architecture, card.precision) == ("resnet_1blocks", "fp32")
    assert card.sizes == SizeRequirements(multiple_of=4, minimum=8)
    assert card.direction == "AtoB"  # by the checkpoint's name
    assert GeneratorConfig(**card.generator) == RESNET
    assert card.batch is card.trained_size is None
    assert re.fullmatch(r"[0-9a-f]{64}", card.source_digest)
    assert card.parity.startswith("exact: ")
    assert card.parity.endswith("against torch in fp32 on 4 computed frames at 256×256")
    assert card.digest == hashlib.sha256(exported.path.read_bytes()).hexdigest()


def test_a_fixed_shape_is_the_only_one(made):
    exported = made(RESNET, shape=(2, 24, 32), io="float16")
    card = exported.card
    assert (card.batch, card.sizes.fixed, card.pixel_type) == (2, (24, 32), "float16")
    frames = (natural_frames((24, 32), 3) / np.float32(255)).astype(np.float16)
    opened = open_backend(open_model(exported.path), backend="onnxruntime", device="cpu")
    expected = np.clip(drawn(RESNET, frames, 1.0), 0, 1).astype(np.float16)
    assert parity(opened.infer(frames), expected).reaches("exact")
    axes = onnx.load(exported.path).graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_value for axis in axes] == [2, 24, 32, 3]


@pytest.mark.parametrize("shape", [(1, 30, 32), (1, 4, 32)])
def test_a_shape_that_the_network_does_not_take_errors(checkpoint, tmp_path, shape):
    with pytest.raises(ModelError, match="H and W are multiples of 4 from 8 on"):
        export_onnx(checkpoint, tmp_path / "a.onnx", shape=shape)


def test_what_runs_otherwise_than_in_the_references_test_script_is_said(made):
    (note,) = grouped(made(UNET).notes)
    assert "BatchNorm" in note
    assert "reference" in note


# The gate


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(network_of(RESNET).state_dict(), tmp_path / "g.pth")
    return tmp_path / "g.pth"


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the exporter write another network than the checkpoint's."""
    another = onnx.load(generators.foreign(tmp_path / "another.onnx"))
    monkeypatch.setattr(exporting, "graph_from_network", lambda *given, **options: another)


@pytest.mark.behaviour(33)
def test_a_file_that_draws_another_picture_is_not_written_errors(checkpoint, tmp_path, wrong):
    output = tmp_path / "a.onnx"
    output.write_bytes(b"what was there")
    with pytest.raises(
        ModelError,
        match=r"a\.onnx: not written.*where exact is expected.*--no-verify to cyclegan-batch exp",
    ):
        export_onnx(checkpoint, output, overwrite=True)
    assert output.read_bytes() == b"what was there"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.onnx", "g.pth", "another.onnx"}


def test_without_the_gate_the_card_says_unverified(checkpoint, tmp_path, wrong):
    exported = export_onnx(checkpoint, tmp_path / "a.onnx", verify=False)
    assert (exported.card.parity, exported.parity) == ("unverified", None)


@pytest.mark.behaviour(33)
def test_activations_beyond_half_precision_are_refused_by_their_layer_errors():
    network = network_of(RESNET)
    with torch.no_grad():
        network.model[4].weight *= 1e5
    frames = natural_frames((64, 64), 1)
    with pytest.raises(ModelError, match=r"'model\.4' reaches .*e\+0\d where half .* at 65504"):
        checked_half_arithmetic(Path("a.onnx"), frames, network=deployable(network), channels=3)


@pytest.mark.behaviour(33)
def test_a_norm_in_half_precision_is_measured_with_each_of_its_steps_rounded():
    network, frames = deployable(network_of(RESNET)), natural_frames((64, 64), 2)
    plain = checked_half_arithmetic(Path("a.onnx"), frames, network=network, channels=3)
    rough = checked_half_arithmetic(
        Path("a.onnx"), frames, network=network, channels=3, half_norm=True
    )
    assert (plain.norms, rough.norms) == ("", ", and each step within the norms")
    assert rough.parity.reaches("half")
    assert rough.parity.psnr < plain.parity.psnr


@pytest.mark.behaviour(33)
def test_a_variance_beyond_half_precision_is_refused_where_the_norm_is_in_it_errors():
    network, frames = network_of(RESNET), natural_frames((64, 64), 1)
    with torch.no_grad():
        network.model[4].weight *= 1000
    options = {"network": deployable(network), "channels": 3}
    assert checked_half_arithmetic(Path("a.onnx"), frames, **options).largest < 65504
    with pytest.raises(ModelError, match=r"'model\.5\.variance' reaches .*e\+0\d where half"):
        checked_half_arithmetic(Path("a.onnx"), frames, half_norm=True, **options)


@pytest.mark.parametrize("affine", [False, True])
def test_the_norm_of_the_gate_is_instance_norm_in_numpys_half_precision(affine):
    from cyclegan_export.gate import _NormInHalf

    x = (np.random.default_rng(0).normal(3, 2, (2, 3, 20, 30))).astype(np.float16)
    wide, kind = x.astype(np.float64), np.float16
    mean = wide.mean((2, 3), keepdims=True).astype(kind)
    variance = wide.var((2, 3), ddof=1, keepdims=True).astype(kind)
    deviation = np.sqrt(variance * kind(599 / 600) + kind(1e-5))
    largest = []
    norm, wanted = InstanceNorm(3, affine=affine).requires_grad_(False), (x - mean) / deviation
    if affine:
        norm.weight.copy_(torch.tensor([0.5, 1.7, -3.0]).half())
        norm.bias.copy_(torch.tensor([0.1, -2.0, 7.0]).half())
        wanted = wanted * norm.weight.numpy().astype(kind)[:, None, None]
        wanted = wanted + norm.bias.numpy().astype(kind)[:, None, None]
    found = _NormInHalf(norm, largest.append)(torch.from_numpy(x).float())
    np.testing.assert_array_equal(found.numpy(), wanted.astype(np.float32))
    assert largest[0] == pytest.approx(wide.var((2, 3), ddof=1).max())


def test_weights_beyond_half_precision_are_refused_errors():
    network = network_of(RESNET)
    with torch.no_grad():
        network.model[-2].weight[0, 0, 0, 0] = 1e5
    frames = natural_frames((8, 8), 1)
    with pytest.raises(ModelError, match=r"'model\.18\.weight' reaches 1e\+05"):
        checked_half_arithmetic(Path("a.onnx"), frames, network=deployable(network), channels=3)


def test_onnxruntimes_cpu_computes_half_precision_in_fp32():
    """The gate's message states this; where it no longer holds, the gate can measure more."""
    import onnxruntime

    weights = [
        numpy_helper.from_array(np.full((1, 1, 1, 1), value, np.float16), name)
        for name, value in (("up", 1000), ("down", 0.001))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "up"], ["large"]),
        helper.make_node("Conv", ["large", "down"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, (1, 1, 4, 4))] for name in "xy"
    ]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (out,) = session.run(None, {"x": np.full((1, 1, 4, 4), 100, np.float16)})
    assert np.abs(out - 100).max() < 1  # through 100,000, which half precision cannot hold


def test_a_diverged_generator_is_named_errors():
    network = network_of(RESNET)
    with torch.no_grad():
        network.model[-2].bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN or infinity in float32"):
        translated_by_torch(network, natural_frames((8, 8), 1), channels=3)


@pytest.mark.parametrize(("direction", "letter"), [("BtoA", "B"), ("AtoB", "A"), (None, "A")])
def test_a_run_gives_the_generator_of_the_direction(tmp_path, wrong, direction, letter):
    place = tmp_path / "run" / "checkpoints" / "latest"
    place.mkdir(parents=True)
    for each, said in (("A", "AtoB"), ("B", "BtoA")):
        torch.manual_seed(ord(each))
        state = generator_from_config(RESNET).state_dict()
        safetensors.torch.save_file(state, place / f"netG_{each}.safetensors", {"direction": said})
    card = export_onnx(
        tmp_path / "run", tmp_path / "a.onnx", direction=direction, verify=False
    ).card
    content = (place / f"netG_{letter}.safetensors").read_bytes()
    assert card.source_digest == hashlib.sha256(content).hexdigest()
    assert card.direction == {"A": "AtoB", "B": "BtoA"}[letter]


# Samples


def test_samples_are_cut_about_the_middle_and_resized(tmp_path):
    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, 40:80] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    frames = frames_from_files(tmp_path, (20, 20), 2)
    assert frames.shape == (2, 20, 20, 3)
    assert (frames == 200).all()


def test_samples_of_a_video_are_spread_over_it(tmp_path):
    clip = streams.plain(tmp_path / "clip.mkv", frames=30)
    frames = frames_from_files(clip, (32, 32), 3)
    assert frames.shape == (3, 32, 32, 3)
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])


def test_a_run_is_measured_on_its_own_pictures(tmp_path):
    pictures = tmp_path / "trainB"
    pictures.mkdir()
    Image.fromarray(np.full((64, 64, 3), 77, np.uint8)).save(pictures / "a.png")
    place = tmp_path / "run" / "checkpoints" / "latest"
    place.mkdir(parents=True)
    described = {"data": {"A": {"folder": "gone"}, "B": {"folder": str(pictures)}}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(described))
    found = samples_for(None, place / "netG_B.safetensors", "BtoA", (32, 32), 2)
    assert (found.frames == 77).all()
    assert found.description == "2 frames of its run"
    computed = samples_for(None, place / "netG_A.safetensors", "AtoB", (32, 32), 2)
    assert computed.description == "2 computed frames"


@pytest.mark.parametrize(
    ("name", "match"),
    [("empty", "no image and no video in it"), ("gone.png", r"gone\.png: cannot be read")],
)
def test_samples_that_are_none_errors(tmp_path, name, match):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=match):
        frames_from_files(tmp_path / name, (32, 32), 2)


# Foreign files


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("values", "said"), [("-1..1", None), ("0..255", "bgr 0..255")])
def test_a_foreign_file_is_written_in_the_contract(tmp_path, layout, values, said):
    source = generators.foreign(tmp_path / "f.onnx", layout=layout, range=values, end="clip")
    exported = export_onnx(source, tmp_path / "a.onnx", model_io=said, direction="AtoB")
    model = open_model(exported.path)
    assert model.card.adopted is None
    assert (model.card.contract_version, model.card.direction) == (1, "AtoB")
    assert exported.parity.cls == "exact"
    assert "against the file that was given" in model.card.parity
    frames = natural_frames((16, 20), 2)
    expected = generators.run(open_model(source, model_io=said).graph, frames)
    assert np.array_equal(generators.run(model.graph, frames), expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "fp16"}, "foreign ONNX in fp32.*--precision fp16 was asked for"),
        ({"half_norm": True}, "--half-norm is for fp16, and fp32 was asked for"),
        ({"shape": (1, 32, 32)}, "--shape was asked for"),
    ],
)
def test_a_foreign_file_stays_as_it_is_errors(tmp_path, options, match):
    source = generators.foreign(tmp_path / "f.onnx")
    with pytest.raises(ModelError, match=match):
        export_onnx(source, tmp_path / "a.onnx", **options)


def test_a_foreign_file_in_half_precision_stays_so(tmp_path):
    exported = export_onnx(generators.foreign(tmp_path / "f.onnx", half=True), tmp_path / "a.onnx")
    assert exported.card.precision == "fp16"
    assert any("stays so" in note for note in grouped(exported.notes))


def test_weights_beside_a_foreign_file_come_inside(tmp_path):
    whole = generators.foreign(tmp_path / "f.onnx")
    frames = natural_frames((16, 16), 1)
    expected = generators.run(open_model(whole).graph, frames)
    source = _data_at(tmp_path, "f.data")
    exported = export_onnx(source, tmp_path / "a.onnx")
    source.with_name("f.data").unlink()
    assert np.array_equal(generators.run(open_model(exported.path).graph, frames), expected)


def test_a_file_inside_the_contract_errors(tmp_path):
    source = generators.invert(tmp_path / "c.onnx")
    with pytest.raises(ModelError, match=r"c\.onnx: is inside the contract already; copy it"):
        export_onnx(source, tmp_path / "a.onnx")


# Refusals


def _truncated(folder: Path) -> Path:
    path = folder / "g.pth"
    torch.save(network_of(RESNET).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def _payload(folder: Path) -> Path:
    torch.save({"rate": fractions.Fraction(1, 3)}, folder / "g.pth")
    return folder / "g.pth"


def _discriminator(folder: Path) -> Path:
    layers = nn.Sequential(nn.Conv2d(3, 4, 4), nn.LeakyReLU(), nn.Conv2d(4, 1, 4))
    state = {f"model.{name}": value for name, value in layers.state_dict().items()}
    torch.save(state, folder / "latest_net_D_A.pth")
    return folder / "latest_net_D_A.pth"


def _text(folder: Path) -> Path:
    (folder / "g.pth").write_text("weights, honestly")
    return folder / "g.pth"


def _data_at(folder: Path, location: str) -> Path:
    """Write a foreign file whose first weight lies at ``location``."""
    (folder / "inside").mkdir()
    path = generators.foreign(folder / "inside" / "f.onnx")
    proto = onnx.load(path)
    weight = proto.graph.initializer[0]
    (path.parent / location).write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.behaviour(43, 44)
@pytest.mark.parametrize(
    ("source", "match"),
    [
        (_text, "is text where a checkpoint is expected"),
        (_truncated, r"g\.pth: "),
        (_payload, r"g\.pth: .*fractions\.Fraction"),
        (_discriminator, "it is a discriminator"),
        (
            lambda folder: _data_at(folder, "../secret"),
            r"names weights in '\.\./secret', outside its own folder",
        ),
        (lambda folder: folder / "gone.pth", r"gone\.pth: no such file"),
        (lambda folder: folder / "gone.onnx", r"gone\.onnx: no such"),
    ],
)
def test_what_is_no_generator_errors(tmp_path, source, match):
    given = source(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match=match) as caught:
        export_onnx(given, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("output", "options", "match"),
    [
        ("a.pt", {}, r"a\.pt: a file that ends in \.onnx is expected"),
        ("there.onnx", {}, r"there\.onnx: it exists already; pass -y"),
        ("folder.onnx", {"overwrite": True}, "a folder has this name"),
        ("gone/a.onnx", {}, "its folder does not exist"),
    ],
)
def test_an_output_that_cannot_be_meant_errors(tmp_path, checkpoint, output, options, match):
    (tmp_path / "there.onnx").write_bytes(b"x")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match=match):
        export_onnx(checkpoint, tmp_path / output, **options)
    assert (tmp_path / "there.onnx").read_bytes() == b"x"


def test_an_export_onto_itself_errors(tmp_path):
    source = generators.foreign(tmp_path / "f.onnx")
    with pytest.raises(OutputError, match="it is the file to export"):
        export_onnx(source, source, overwrite=True)


def test_model_io_is_for_foreign_files_errors(checkpoint, tmp_path):
    with pytest.raises(ModelError, match=r"--model-io.*this is a checkpoint"):
        export_onnx(checkpoint, tmp_path / "a.onnx", model_io="nchw")


def test_without_onnxscript_the_extra_is_named_errors(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"onnxscript.*cyclegan-batch\[export\]"):
        export_onnx(checkpoint, tmp_path / "a.onnx")


# The command


@pytest.mark.behaviour(33)
def test_the_command_writes_a_file_and_says_what_was_measured(made, tmp_path):
    state = network_of(RESNET).state_dict()
    given, output = tmp_path / "netG_B.safetensors", tmp_path / "a.onnx"
    safetensors.torch.save_file(state, given, {"direction": "BtoA", "trained_size": "64"})
    command = ["export", str(given), str(output), "--precision", "fp16"]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert re.search(r"a\.onnx: fp16, 0\.\d MB, (exact|half): \d+\.\d dB, .* within 2", last)
    assert "4 computed frames at 64×64" in last
    assert "onnxruntime's CPU computes an fp16 file in fp32" in done.stderr
    card = open_model(output).card
    assert (card.direction, card.trained_size, card.precision) == ("BtoA", 64, "fp16")
    assert last.endswith(card.parity)
    graphs = [onnx.load(path).graph for path in (output, made(RESNET, precision="fp16").path)]
    assert graphs[0].SerializeToString() == graphs[1].SerializeToString()  # the same weights
    again = CliRunner().invoke(cli.main, [*command, "-y", "--direction", "AtoB"])
    assert again.exit_code == 1
    assert "translates BtoA" in again.stderr


def test_the_command_fails_with_one_line(tmp_path):
    (tmp_path / "g.pth").write_text("no weights")
    command = ["export", str(tmp_path / "g.pth"), str(tmp_path / "a.onnx")]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 1
    begun, failed = done.stderr.splitlines()
    assert begun.startswith("exporting ")
    assert failed.startswith("Error: ")


@pytest.mark.parametrize("shape", ["1,2", "1,2,x", "0,8,8", "1,8,8,3"])
def test_a_shape_that_is_none_is_a_usage_error(shape):
    done = CliRunner().invoke(cli.main, ["export", "g.pth", "a.onnx", "--shape", shape])
    assert done.exit_code == 2
    assert "is not N,H,W" in done.stderr


def test_without_torch_the_command_names_the_extra_errors(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from cyclegan_batch.cli import main; main(['export', 'g.pth', 'a.onnx'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search(r"cannot export: torch is not .*cyclegan-batch\[export\]", done.stderr)


def test_the_config_on_the_card_is_the_networks_own(made):
    assert open_model(made(MOBILE, precision="fp16").path).card.generator == asdict(MOBILE)
