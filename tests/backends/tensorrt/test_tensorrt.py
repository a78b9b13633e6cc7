"""The real TensorRT parses contract files, builds engines of them, and runs these on a GPU.

Tests marked ``needs_tensorrt`` require no GPU, but bindings and a library that NVIDIA does not
combine (export/README.md names them). They show that the network parses, and that a builder of
TensorRT's family takes its types and shapes; they show no image and no speed. Tests marked
``needs_cuda`` require a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cyclegan_batch.backends import tensorrt as backend
from cyclegan_batch.backends.tensorrt import build as building
from cyclegan_batch.backends.tensorrt import library
from cyclegan_batch.errors import BackendError
from cyclegan_batch.models import seal
from cyclegan_batch.models.engine_card import Build, Profile, profile_for
from cyclegan_batch.models.model import Model, open_model, write_model
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from tests.backends.tensorrt.conftest import SMALL
from tests.needs import need, package
from tests.synthesis import generators


def half(path: Path) -> Path:
    """Write a contract file of half precision."""
    model = open_model(generators.foreign_resnet(path.with_name("foreign.onnx"), half=True))
    contract = onnx.ModelProto.FromString(model.graph)
    write_model(path, contract, architecture="r", sizes=model.card.sizes, precision="fp16")
    return path


VARIANTS: dict[str, Callable[[Path], Path]] = {
    "fp32": generators.tiny_resnet,
    "fp32 io float16": lambda path: generators.tiny_resnet(path, io="float16"),
    "fp32 fixed": lambda path: generators.tiny_resnet(path, fixed=(64, 48), batch=2),
    "one channel": generators.one_channel,
    "fp16": half,
}


@pytest.mark.needs_tensorrt
@pytest.mark.parametrize("variant", VARIANTS)
def test_tensorrt_parses_and_builds_every_variant(tmp_path: Path, variant: str) -> None:
    need("tensorrt")
    model = open_model(VARIANTS[variant](tmp_path / "model.onnx"))
    shapes = (None, None, None) if "fixed" in variant else ((1, 32, 32), (2, 64, 64), (4, 96, 64))
    profile = profile_for(model.card, *shapes)
    content = backend.engine_from_graph(model.graph, Build(profile), name="model.onnx")
    assert len(content) > 10_000


EXPORTED: dict[str, tuple[GeneratorConfig, dict[str, Any]]] = {
    "resnet fp32": (GeneratorConfig("resnet_2blocks", ngf=8), {}),
    "resnet fp16": (GeneratorConfig("resnet_2blocks", ngf=8), {"precision": "fp16"}),
    "resnet fp16 io float16": (
        GeneratorConfig("resnet_2blocks", ngf=8), {"precision": "fp16", "io": "float16"},
    ),
    "resnet fixed": (GeneratorConfig("resnet_2blocks", ngf=8), {"shape": (2, 64, 48)}),
    "resnet batch norm": (GeneratorConfig("resnet_2blocks", ngf=8, norm="batch"), {}),
    "unet fp32": (GeneratorConfig("unet_32", ngf=8), {}),
    "unet fp16": (GeneratorConfig("unet_32", ngf=8, norm="batch"), {"precision": "fp16"}),
    "mobile grey fp16": (
        GeneratorConfig("mobile_resnet_1blocks", 1, 3, 8, upsample="resize"),
        {"precision": "fp16"},
    ),
}  # fmt: skip


def exported(folder: Path, name: str) -> Model:
    """Return a variant that was exported from a checkpoint."""
    need("onnxscript")
    torch = package("torch")
    from cyclegan_export import export_onnx

    config, options = EXPORTED[name]
    torch.save(generator_from_config(config).state_dict(), folder / "g.pth")
    return open_model(
        export_onnx(folder / "g.pth", folder / "g.onnx", verify=False, **options).path
    )


@pytest.mark.needs_tensorrt
@pytest.mark.parametrize("name", EXPORTED)
def test_tensorrt_parses_and_builds_every_exported_variant(tmp_path: Path, name: str) -> None:
    need("tensorrt")
    model = exported(tmp_path, name)
    shapes = (None, None, None) if "fixed" in name else ((1, 32, 32), (2, 64, 64), (4, 96, 64))
    profile = profile_for(model.card, *shapes)
    assert backend.engine_from_graph(model.graph, Build(profile), name="g.onnx")


@pytest.mark.needs_tensorrt
def test_tensorrt_convolves_an_fp16_export_in_half_and_normalises_it_in_float(
    tmp_path: Path,
) -> None:
    trt = package("tensorrt")
    graph = exported(tmp_path, "resnet fp16").graph
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    assert trt.OnnxParser(network, logger).parse(graph)
    layers = [network.get_layer(index) for index in range(network.num_layers)]

    def types(*kinds: Any) -> list[Any]:
        return [layer.get_output(0).dtype for layer in layers if layer.type in kinds]

    # Two blocks of two convolutions, one at each end, two down, two up; the last one has no norm.
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    assert types(*kinds) == [trt.DataType.HALF] * 10
    assert types(trt.LayerType.NORMALIZATION) == [trt.DataType.FLOAT] * 9


@pytest.mark.needs_tensorrt
def test_tensorrt_says_why_it_refuses_errors(tmp_path: Path) -> None:
    need("tensorrt")
    model = open_model(generators.invert(tmp_path / "invert.onnx"))
    with pytest.raises(BackendError, match=r"does not read x\.onnx: .*[Ff]ailed to parse"):
        backend.engine_from_graph(b"no ONNX" * 9, Build(SMALL), name="x.onnx")
    backwards = Build(Profile((4, 8, 8), (2, 8, 8), (1, 8, 8)))
    with pytest.raises(BackendError, match=r"does not take the shapes .*MIN<=OPT<=MAX"):
        backend.engine_from_graph(model.graph, backwards, name="x.onnx")


@pytest.mark.needs_tensorrt
def test_tensorrt_reports_to_the_recorder_of_what_failed_and_not_to_the_logger() -> None:
    """The test uses a runtime as the failing object, since a context requires a GPU."""
    trt = package("tensorrt")
    log, recorder = library.logger(trt), library.error_recorder(trt)
    log.clear()
    runtime = trt.Runtime(log)
    assert runtime.deserialize_cuda_engine(b"no engine" * 9) is None
    assert "magicTag" in log.words()
    log.clear()
    runtime.error_recorder = recorder
    assert runtime.deserialize_cuda_engine(b"no engine" * 9) is None
    assert "magicTag" in recorder.words()
    assert recorder.num_errors() >= 1
    assert not recorder.out_of_memory()
    assert log.words() == ""
    recorder.report_error(trt.ErrorCodeTRT.FAILED_ALLOCATION, "")
    assert recorder.out_of_memory()
    del runtime  # before the recorder, to which it has a pointer


@pytest.mark.needs_tensorrt
def test_tensorrt_tells_how_far_it_is_and_keeps_its_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("tensorrt")
    monkeypatch.setattr(building, "_REPORT_INTERVAL", 0.2)
    model = open_model(generators.tiny_resnet(tmp_path / "resnet.onnx"))
    sentences: list[str] = []
    for _ in range(2):
        backend.engine_from_graph(
            model.graph, Build(SMALL), name="r", timing_cache=tmp_path / "t", say=sentences.append
        )
    assert seal.unsealed((tmp_path / "t").read_bytes())
    assert any("step" in sentence for sentence in sentences)


# On a GPU


@pytest.mark.needs_cuda
@pytest.mark.needs_tensorrt
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_engine_on_a_gpu_draws_what_its_file_says(tmp_path: Path, variant: str) -> None:
    """This test has never run: no machine of the project has had a GPU."""
    need("tensorrt")
    model = open_model(VARIANTS[variant](tmp_path / "model.onnx"))
    first = backend.open_tensorrt(model, shapes=[(2, 64, 48)], cache_dir=tmp_path)
    second = backend.open_tensorrt(model, shapes=[(2, 64, 48)], cache_dir=tmp_path)
    assert len(list(tmp_path.glob("engines/*.engine"))) == 1
    sent = generators.natural((64, 48), 2)
    if model.card.pixel_type == "float16":
        sent = (sent / 255).astype(np.float16)
    np.testing.assert_array_equal(first.infer(sent), second.fork().infer(sent))
