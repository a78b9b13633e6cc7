"""Which way is the fastest, and the command for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cyclegan_batch.bench.advice import (
    choose,
    command,
    expected_rate,
    is_faster,
    quoted,
    way_of_each,
)
from cyclegan_batch.bench.race import Lap
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
    rates: Sequence[float] = (),
) -> Row:
    """``rates``: those of the rounds; without them all five have the same."""
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
        laps=tuple(Lap(10, 10 / each, 10 * cpu) for each in rates or [rate] * 5),
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


def is_taken(row: Row) -> bool:
    return (row.batch_size, row.contexts) == (1, 2)


def test_of_each_runtime_and_precision_the_faster_way_is_taken():
    rows = [row(rate=10), row(rate=14, contexts=1), row("openvino", rate=5), row(rate=12, batch=2)]
    assert way_of_each(rows, is_taken, COSTS, 8, is_calm=True) == {
        ("onnxruntime", "cpu", "fp32"): rows[1],
        ("openvino", "cpu", "fp32"): rows[2],
    }


def test_a_busy_machine_changes_nothing():
    rows = [row(rate=17.5), row(rate=28.4, batch=2)]
    assert way_of_each(rows, is_taken, COSTS, 8, is_calm=False)[KEY] is rows[0]
    assert way_of_each(rows, is_taken, COSTS, 8, is_calm=True)[KEY] is rows[1]


KEY = ("onnxruntime", "cpu", "fp32")


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([22, 22, 22, 22, 22], True),
        ([26, 26, 26, 26, 19], False),  # it lost one of five
        ([26, 26, 26, 26, 26, 26, 19], True),  # and one of seven
        ([20.4] * 7, False),  # by 2 %
        ([28, 28], False),  # too few rounds
        ([20.4, 20.4, 40.0], False),
    ],
)
def test_what_is_taken_must_be_faster_beyond_the_noise(rates, expected):
    now, other = row(rates=[20.0] * 9), row(rates=rates, batch=4, rate=40.0)
    found = way_of_each([now, other], is_taken, COSTS, 8, is_calm=True)
    assert (found[KEY] is other) is expected


def test_a_way_is_left_out_where_the_one_of_now_was_not_measured():
    assert way_of_each([row(batch=4)], is_taken, COSTS, 8, is_calm=True) == {}


def test_in_few_rounds_a_way_must_be_faster_by_a_fifth():
    default = row(rates=[20.0])
    assert not is_faster(row("openvino", rates=[23.0]), default, COSTS, 8)
    assert is_faster(row("openvino", rates=[25.0]), default, COSTS, 8)


def test_what_costs_less_of_the_cpu_is_faster_where_the_threads_are_the_limit():
    default = row(rate=40.0, cpu=0.095)
    assert is_faster(row(rate=40.0, cpu=0.08), default, COSTS, 2)
    assert not is_faster(row(rate=40.0, cpu=0.08), default, COSTS, 16)


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
