"""A foreign ONNX becomes a contract file that draws what the file itself draws, or no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from cyclegan_export import export_onnx
from cyclegan_export.gate import translated_by_file

from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.graphs import contract
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import natural_frames
from tests.needs import need
from tests.synthesis import generators


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    "said",
    [
        "mean=0.485,0.456,0.406 std=0.229,0.224,0.225 -> -1..1",
        "bgr 0..255 mean=103.939,116.779,123.68 std=60,61,70 -> 0..1 mean=0.6,0.5,0.4 std=2,3,4",
        "-1..1 std=0.5 -> 0..255 mean=127.5 std=127.5",
    ],
)
def test_a_mean_and_a_deviation_are_measured_apart_from_the_contract(tmp_path, layout, said):
    """The file that was given runs with numpy's arithmetic, and the contract must draw the same."""
    source = generators.foreign(tmp_path / "f.onnx", layout=layout, range="-1..1", end="tanh")
    exported = export_onnx(source, tmp_path / "a.onnx", model_io=said)
    assert exported.parity.cls == "exact"
    frames = natural_frames((16, 20), 2)
    out = generators.run(open_model(exported.path).graph, frames)
    assert out.std() > 20
    by_file = translated_by_file(source, open_model(source, model_io=said).io, frames)
    assert np.abs(by_file - out.astype(int)).max() <= 1
    # Another mean is seen.
    other = said.replace("0.485", "0.385").replace("103.939,", "110,").replace("std=0.5", "std=0.6")
    io = open_model(source, model_io=other).io
    assert np.abs(translated_by_file(source, io, frames) - out.astype(int)).max() > 2


def test_the_gate_sees_another_order_of_three_means(tmp_path, monkeypatch):
    """A contract that gives the means to the channels in reverse is not written."""
    source = generators.foreign(tmp_path / "f.onnx", end="tanh")
    right = contract.Values.line
    wrong = {"rgb": "bgr", "bgr": "rgb"}
    monkeypatch.setattr(contract.Values, "line", lambda self, order: right(self, wrong[order]))
    with pytest.raises(ModelError, match="not written: against the file that was given"):
        export_onnx(source, tmp_path / "a.onnx", model_io="mean=0.3,0.5,0.7 std=1,2,3 -> -1..1")


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("said", [None, "out=fake_A -1..1"])
def test_one_of_several_outputs_is_written(tmp_path, said):
    """The gate runs the whole file, its second input and outputs of other shapes included."""
    g = generators.Graph()
    g.op("Tanh", g.op("Neg", "real_A"), out="fake_B")
    g.op("ReduceMean", "real_A", out="brightness", axes=[1, 2, 3], keepdims=0)
    inputs = [("real_A", onnx.TensorProto.FLOAT, (1, 3, 32, 32))]
    outputs = [("brightness", onnx.TensorProto.FLOAT, (1,)), ("fake_B", *inputs[0][1:])]
    if said is not None:
        g.op("Tanh", "real_B", out="fake_A")
        inputs.append(("real_B", *inputs[0][1:2], (1, 3, 48, 48)))
        outputs.append(("fake_A", *inputs[-1][1:]))
    source = g.save(tmp_path / "f.onnx", inputs, outputs)
    exported = export_onnx(source, tmp_path / "a.onnx", model_io=said)
    assert exported.parity.cls == "exact"
    assert exported.card.sizes.fixed == ((32, 32) if said is None else (48, 48))
    written = onnx.load(exported.path).graph
    assert {"generator/" + out[0] for out in outputs}.intersection(
        out for node in written.node for out in node.output
    ) == {"generator/fake_B" if said is None else "generator/fake_A"}


# A generator with attention, as torch's two exporters write it


class Attentive(nn.Module):
    """A small generator in the manner of U-GAT-IT (arXiv 1907.10830), light.

    Attention by the weights of two classifiers of pooled features, a norm between instance and
    layer whose scale is computed from the picture, and three outputs: picture, logits, heatmap.
    """

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, width, 3, 2), nn.InstanceNorm2d(width), nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, 2), nn.ReLU(),
        )  # fmt: skip
        self.classify = nn.ModuleList([nn.Linear(width, 1, bias=False) for _ in range(2)])
        self.merge, self.body = nn.Conv2d(2 * width, width, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.scales = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.rho = nn.Parameter(torch.linspace(0.2, 0.9, width).view(1, -1, 1, 1))
        self.up = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")
        self.head = nn.Conv2d(width, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.down(x)
        pools = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        logits, weighted = [], []
        for pooled, linear in zip(pools, self.classify, strict=True):
            logits.append(linear(pooled.view(x.shape[0], -1)))
            weighted.append(x * linear.weight.unsqueeze(2).unsqueeze(3))
        x = torch.relu(self.merge(torch.cat(weighted, 1)))
        heatmap = x.sum(1, keepdim=True)
        rows = F.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1)
        scale, offset = (linear(rows)[:, :, None, None] for linear in self.scales)
        x = torch.relu(self._norm(self.body(x)) * scale + offset)
        for _ in range(2):
            x = torch.relu(self.up(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return torch.tanh(self.head(x)), torch.cat(logits, 1), heatmap

    def _norm(self, x: Tensor) -> Tensor:
        parts = []
        for axes in ((2, 3), (1, 2, 3)):
            mean, variance = x.mean(axes, keepdim=True), x.var(axes, keepdim=True)
            parts.append((x - mean) / torch.sqrt(variance + 1e-5))
        return self.rho * parts[0] + (1 - self.rho) * parts[1]


@pytest.fixture(scope="module")
def attentive() -> Attentive:
    torch.manual_seed(0)
    network = Attentive().eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim == 4 and parameter.shape[0] > 1:
            nn.init.normal_(parameter, 0, 1.6 / parameter[0].numel() ** 0.5)
    return network


@pytest.fixture(scope="module", params=["dynamo", "opset 17", "opset 11"])
def attentive_file(
    request: pytest.FixtureRequest, attentive: Attentive, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Write the network by the exporter of today, or by the one that wrote most published files."""
    path = tmp_path_factory.mktemp("attentive") / "selfie.onnx"
    names = {"input_names": ["x"], "output_names": ["image", "logits", "heatmap"]}
    example = (torch.zeros(2, 3, 64, 96),)
    if request.param == "dynamo":
        height, width = (4 * torch.export.Dim(side, min=4) for side in ("h", "w"))
        axes = {"x": {0: torch.export.Dim("n"), 2: height, 3: width}}
        torch.onnx.export(
            attentive, example, path, dynamo=True, dynamic_shapes=axes, verbose=False, **names
        )
        return path
    axes = {name: {0: "n", 2: "h", 3: "w"} for name in ("x", "image", "heatmap")}
    torch.onnx.export(
        attentive, example, path, dynamo=False, dynamic_axes=axes,
        opset_version=int(request.param.split()[1]), **names,
    )  # fmt: skip
    return path


@pytest.mark.behaviour(35)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_a_generator_with_three_outputs_draws_what_its_network_draws(
    attentive: Attentive, attentive_file: Path, runtime: str
) -> None:
    need(runtime)
    model = open_model(attentive_file)
    assert model.card.adopted == "nchw rgb -1..1 out=image"
    assert (model.card.sizes.multiple_of, model.card.sizes.fixed) == (4, None)
    assert not any("sizes" in each for each in model.assumed)
    frames = natural_frames((36, 52), 2)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    exact = (attentive(x)[0].permute(0, 2, 3, 1).numpy() + 1) * 127.5
    assert exact.std() > 10
    backend = open_backend(model, backend=runtime, device="cpu")
    try:
        out = backend.infer(frames)
    finally:
        backend.close()
    assert np.abs(out - np.floor(exact + 0.5)).max() <= 1
