"""Fixtures and helpers that the tests of several backends share."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from cyclegan_batch.backends import ONNX_BACKENDS, onnxruntime_cuda
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.model import Model, open_model
from tests.needs import need
from tests.synthesis import fake_tensorrt, generators
from tests.synthesis.fake_onnxruntime import FakeOptions, FakeRunOptions, FakeSession


@pytest.fixture(params=(*ONNX_BACKENDS, "torch"))
def backend(request: pytest.FixtureRequest) -> str:
    """Return the name of each backend that runs an ONNX; skip those that are not installed."""
    name: str = request.param
    need(name)
    if name == "tensorrt":
        need("cuda")
    return name


def reference(model: Model, frames: Pixels) -> Pixels:
    """Run the contract graph with ONNX's reference evaluator, a frame at a time."""
    evaluator = ReferenceEvaluator(onnx.ModelProto.FromString(model.graph))
    rows = [evaluator.run(None, {"frames": frame[np.newaxis]})[0] for frame in frames]
    out: Pixels = np.concatenate(rows)
    return out


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Make the import of the named packages fail."""
    really = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return really(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.fixture
def resnet(tmp_path: Path) -> Model:
    return open_model(generators.tiny_resnet(tmp_path / "resnet.onnx"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    """Replace the installed onnxruntime by a stand-in with CUDA, on a machine with a GPU."""
    return put_cuda_in_place(monkeypatch)


def put_cuda_in_place(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    """Do what the fixture `cuda` does, for tests of other folders."""
    fake = SimpleNamespace(
        __version__="1.0",
        InferenceSession=FakeSession,
        SessionOptions=FakeOptions,
        RunOptions=FakeRunOptions,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: print("a missing library"),
    )
    really = importlib.import_module
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name, package=None: fake if name == "onnxruntime" else really(name, package),
    )
    for module in ("", ".onnxruntime_cuda", ".verdicts"):
        monkeypatch.setattr(f"cyclegan_batch.backends{module}.nvidia_gpus", lambda: ("H200",))
    gpu = fake_tensorrt.install_cuda(monkeypatch)
    monkeypatch.setattr(FakeSession, "gpu", gpu, raising=False)
    monkeypatch.setattr(FakeSession, "computed", [])
    monkeypatch.setattr(FakeSession, "recording", staticmethod(lambda: None))
    monkeypatch.setattr(FakeSession, "off_by", 0)
    monkeypatch.setattr(FakeSession, "sessions", [])
    monkeypatch.setattr(FakeSession, "fails", None)
    monkeypatch.setattr(FakeSession, "first", "CUDAExecutionProvider")
    monkeypatch.setattr(FakeSession, "on_cpu", ())
    monkeypatch.setattr(FakeSession, "other_chips", False)
    monkeypatch.setattr(FakeSession, "nodes", 0)
    # What it keeps is of one process, and so here of one test.
    fresh = functools.cache(onnxruntime_cuda.cuda_fault.__wrapped__)
    monkeypatch.setattr(onnxruntime_cuda, "cuda_fault", fresh)
    return FakeSession


def measured(monkeypatch: pytest.MonkeyPatch, *paths: tuple[str, str]) -> None:
    """Pretend that these backends and precisions were measured on a GPU."""
    monkeypatch.setattr("cyclegan_batch.backends.MEASURED_ON_GPU", frozenset(paths))


TF32 = ("onnxruntime", "tf32")
