"""The ways to run a network: which there are, what is left out, and what runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.bench import runtimes
from cyclegan_batch.bench.runtimes import Bench, groups_of, short_reason
from cyclegan_batch.errors import BackendError
from cyclegan_batch.models.model import Model, open_model
from cyclegan_batch.options import TranslateOptions
from tests.synthesis import generators


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return open_model(generators.tiny_resnet(tmp_path / "m.onnx"))


@pytest.fixture
def _all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        runtimes.importlib.util, "find_spec", lambda name: None if name == "tensorrt" else name
    )


class FakeBackend:
    """A backend that copies its frames, a little off in bf16."""

    def __init__(self, model: Model, **request: Any) -> None:
        self.card, self.name, self.device = model.card, request["backend"], request["device"]
        self.precision = "fp32" if request["precision"] == "auto" else request["precision"]
        self.notes = ()
        self.closed = self.cancelled = False

    def infer(self, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return frames ^ 1 if self.precision == "bf16" else frames.copy()

    def fork(self) -> FakeBackend:
        return self

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def _one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_round(contestants: Any, left: Any, announce: Any) -> None:
        for each in contestants:
            announce(1, each)
            each.laps.append(each.runner.run(1))

    monkeypatch.setattr(runtimes, "race", one_round)


def fake(model: Model, **request: Any) -> FakeBackend:
    return FakeBackend(model, **request)


def names(options: TranslateOptions, model: Model, checkpoint: Model | None = None) -> list[str]:
    return [
        f"{g.backend} {g.precision} {g.device}" for g in groups_of(model, checkpoint, options)[0]
    ]


@pytest.mark.usefixtures("_all_installed")
def test_every_runtime_and_precision_that_a_file_allows_is_measured(model):
    both = ["onnxruntime auto cpu", "openvino auto cpu", "openvino bf16 cpu"]
    assert names(TranslateOptions(), model) == both
    torch = ["torch auto cpu", "torch bf16 cpu"]
    assert names(TranslateOptions(), model, checkpoint=model) == both + torch
    assert names(TranslateOptions(backend="openvino"), model) == both[1:]
    assert names(TranslateOptions(precision="fp32"), model) == [
        "onnxruntime fp32 cpu",
        "openvino fp32 cpu",
    ]
    assert names(TranslateOptions(device="cuda:1", precision="fp32"), model) == [
        "onnxruntime fp32 cuda:1",
        "torch fp32 cuda:1",
    ]


@pytest.mark.usefixtures("_all_installed")
def test_what_cannot_run_is_listed_with_its_reason(model):
    left_out = {each.what: each.why for each in groups_of(model, None, TranslateOptions())[1]}
    assert left_out["tensorrt"] == "not installed"
    assert left_out["torch"] == "for checkpoints, or with --backend torch"
    assert "int8" in left_out
    on_gpu = groups_of(model, None, TranslateOptions(device="cuda"))[1]
    assert ("openvino", "runs on the CPU only") in [(each.what, each.why) for each in on_gpu]


@pytest.mark.usefixtures("_all_installed", "_one_round")
@pytest.mark.behaviour(52)
def test_batches_and_contexts_of_every_group_are_measured_with_their_parity(model):
    network = Bench(TranslateOptions(), 4, lambda: 100.0, opener=fake).measure(
        model, None, (32, 32), 0.5
    )
    ways = {(row.name, row.batch_size, row.contexts) for row in network.rows}
    assert ways == {
        (name, batch, contexts)
        for name in ("onnxruntime fp32", "openvino fp32", "openvino bf16")
        for batch, contexts in ((1, 4), (2, 4), (4, 4), (1, 1), (1, 2))
    }
    assert not network.not_measured
    by_name = {row.name: row for row in network.rows}
    assert by_name["onnxruntime fp32"].parity is None  # the others are compared with it
    exact = by_name["openvino fp32"].parity
    assert exact is not None
    assert (exact.cls, exact.psnr) == ("exact", math.inf)
    assert by_name["openvino bf16"].parity_class == "exact"  # 1 level off
    assert all(row.gflops == pytest.approx(0.5 * row.rate) for row in network.rows)
    assert set(network.products) == {"fp32", "bf16"}
    for row in network.rows:
        assert row.gflops is not None
        assert row.share == pytest.approx(row.gflops / network.products[row.precision])


@pytest.mark.usefixtures("_all_installed")
def test_where_time_is_short_the_first_way_is_measured_and_the_others_are_named(model):
    network = Bench(
        TranslateOptions(), 2, iter([10.0, *[0.1] * 10_000]).__next__, opener=fake
    ).measure(model, None, (32, 32), None)
    assert [(row.name, row.contexts) for row in network.rows] == [("onnxruntime fp32", 2)]
    assert network.rows[0].gflops is None
    assert {each.why for each in network.not_measured} == {"no time was left"}
    named = " ".join(each.what for each in network.not_measured)
    assert "openvino fp32" in named
    assert "openvino bf16" in named


@pytest.mark.usefixtures("_all_installed", "_one_round")
def test_what_would_not_fit_into_memory_is_named(model, monkeypatch):
    monkeypatch.setattr(runtimes, "_free_memory", lambda: 1000.0)
    network = Bench(TranslateOptions(), 2, lambda: 1.0, opener=fake).measure(
        model, None, (32, 32), None
    )
    assert len(network.rows) == 1
    assert "memory is short" in {each.why for each in network.not_measured}


@pytest.mark.usefixtures("_all_installed", "_one_round")
def test_a_runtime_that_does_not_open_the_file_is_listed_and_the_rest_is_measured(model):
    opened: list[FakeBackend] = []

    def opener(model: Model, **request: Any) -> FakeBackend:
        if request["precision"] == "bf16":
            raise BackendError("openvino was asked for bf16 and this CPU has none; leave it out")
        opened.append(FakeBackend(model, **request))
        return opened[-1]

    network = Bench(TranslateOptions(), 2, lambda: 1.0, opener=opener).measure(
        model, None, (32, 32), None
    )
    assert {row.precision for row in network.rows} == {"fp32"}
    reasons = {each.what: each.why for each in network.cannot_run}
    assert reasons["openvino bf16"] == "openvino was asked for bf16 and this CPU has none"
    assert all(backend.closed for backend in opened)


@pytest.mark.usefixtures("_all_installed", "_one_round")
def test_another_precision_than_the_files_is_compared_with_fp32_all_the_same(model):
    network = Bench(
        TranslateOptions(precision="bf16"), 2, lambda: 1.0, opener=fake_or_auto
    ).measure(model, None, (32, 32), None)
    assert {row.precision for row in network.rows} == {"bf16"}
    assert network.rows[0].parity is not None
    assert network.rows[0].parity.max == 1.0


def fake_or_auto(model: Model, **request: Any) -> FakeBackend:
    if request.get("backend") == "onnxruntime":
        raise BackendError("onnxruntime cannot compute in bf16")
    return FakeBackend(model, **{"backend": "openvino", **request})


def test_a_reason_is_short_and_without_the_name_of_the_model(model):
    error = BackendError(f"{model.card.path}: in bf16 it is coarse; leave --precision out")
    assert short_reason(error, model) == "in bf16 it is coarse"
    assert len(short_reason(BackendError("long " * 50), model)) == 90
