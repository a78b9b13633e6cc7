"""Which way is the fastest, and the command for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cyclegan_batch.bench.advice import best_of_each, choose, command, expected_rate, quoted
from cyclegan_batch.bench.runtimes import Row
from cyclegan_batch.bench.stages import StageCost
from cyclegan_batch.models.parity import Parity, ParityClass
from cyclegan_batch.options import TranslateOptions

COSTS = {
    "read": StageCost(cpu=0.001, wall=0.001),
    "network": StageCost(cpu=0.08, wall=0.08),
    "write": StageCost(cpu=0.004, wall=0.004),
}


def row(
    backend: str = "onnxruntime",
    precision: str = "fp32",
    cls: ParityClass | None = None,
    *,
    rate: float = 20.0,
    cpu: float = 0.095,
    batch: int = 1,
    contexts: int = 2,
) -> Row:
    parity = None
    if cls is not None:
        parity = Parity(psnr=50.0, max=2.0, p999=1.0, within2=1.0, cls=cls)
    return Row(
        backend=backend,
        device="cpu",
        precision=precision,
        batch_size=batch,
        contexts=contexts,
        rate=rate,
        cpu_seconds=cpu,
        rounds=5,
        parity=parity,
    )


def test_a_pipeline_is_no_faster_than_its_network_nor_than_its_threads_allow():
    assert expected_rate(row(rate=15.0), COSTS, 2) == 15.0
    # 2 threads ÷ (1 + 4 + 95) ms
    assert expected_rate(row(rate=30.0), COSTS, 2) == pytest.approx(20.0)
    # A way of the network that is fast alone since it has all threads costs more in the pipeline.
    assert expected_rate(row(rate=30.0, cpu=0.195), COSTS, 2) == pytest.approx(10.0)


@pytest.mark.behaviour(52)
def test_the_fastest_way_of_an_exact_or_half_class_is_chosen():
    default, half = row(), row("openvino", "bf16", "half", rate=40, cpu=0.045)
    near = row("torch", "bf16", "near", rate=60, cpu=0.02)
    choice = choose([default, half, near], default, COSTS, 2)
    assert choice is not None
    assert choice.best is half
    assert choice.reduced is near
    assert choice.gain == pytest.approx(60 / 40)
    choice = choose([default, near], default, COSTS, 2)
    assert choice is not None
    assert (choice.best, choice.reduced) == (default, near)


def test_what_is_hardly_faster_changes_nothing():
    default = row(rate=20.0, cpu=0.05)
    other = row("openvino", cls="exact", rate=20.4, cpu=0.05)
    near = row("openvino", "bf16", "near", rate=20.8, cpu=0.05)
    choice = choose([other, near, default], default, COSTS, 2)
    assert choice is not None
    assert (choice.best, choice.reduced, choice.gain) == (default, None, None)


def test_a_precision_that_misses_every_class_is_never_offered():
    default, none = row(), row("openvino", "bf16", "none", rate=90, cpu=0.01)
    choice = choose([default, none], default, COSTS, 2)
    assert choice is not None
    assert choice.reduced is None
    assert choose([none], None, COSTS, 2) is None
    assert choose([], None, COSTS, 2) is None


def test_of_each_runtime_and_precision_the_best_way_is_kept():
    rows = [row(rate=10), row(rate=14, contexts=1), row("openvino", rate=5), row(rate=12, batch=2)]
    best = best_of_each(rows, COSTS, 8)
    assert best == {
        ("onnxruntime", "cpu", "fp32"): rows[1],
        ("openvino", "cpu", "fp32"): rows[2],
    }


@pytest.mark.behaviour(52)
def test_the_command_has_the_options_that_were_given_and_what_is_faster():
    words = command(Path("a model.onnx"), "INPUT", "OUTPUT", TranslateOptions())
    assert quoted(words) == "cyclegan-batch translate INPUT OUTPUT -m 'a model.onnx'"
    words = command(Path("m.onnx"), "-clip.mp4", "OUTPUT.mp4", TranslateOptions())
    assert words[2] == "./-clip.mp4"
    options = TranslateOptions(
        model_io="nchw rgb 0..255",
        size=(480, 640),
        trust_engine=True,
        threads=2,
        cache_dir=Path("/tmp/c d"),
        backend="openvino",
        precision="bf16",
        batch_size=4,
        workers=2,
    )
    words = command(Path("m.onnx"), "it's.mp4", "OUTPUT.mp4", options)
    assert quoted(words) == (
        "cyclegan-batch translate 'it'\"'\"'s.mp4' OUTPUT.mp4 -m m.onnx --model-io "
        "'nchw rgb 0..255' --trust-engine --backend openvino --precision bf16 --batch-size 4 "
        "--threads 2 --size 640x480 --workers 2 --cache-dir '/tmp/c d'"
    )
