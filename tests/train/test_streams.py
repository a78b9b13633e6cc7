"""Two streams in a recorded step: without a GPU, on stand-ins that see what no stream waits for."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import Counter
from typing import Any

import pytest

from tests.needs import package

torch = package("torch")

from cyclegan_train import CycleGAN  # noqa: E402 (after the check for torch)
from cyclegan_train.devices import TwoStreams, both_of, in_turn  # noqa: E402
from cyclegan_train.graphs import CudaRecorder  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from tests.train.test_cyclegan import assert_same_bits, pictures, tiny  # noqa: E402

STREAMS_DIFFER = (
    "The AccumulateGrad node's stream does not match the stream of the node that produced the "
    "incoming gradient."
)
"""How torch begins a warning at the first gradient that comes from another stream."""


class Stream:
    """A stream that knows up to which operation of every stream it has waited."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.known = Counter[str]()

    def wait_stream(self, other: Stream) -> None:
        self.known |= other.known


class Streams(TorchDispatchMode):
    """Stands in for the streams of a device, and finds what one reads or writes too early.

    An operation belongs to the stream that is current. It must come after the last one that wrote
    what it reads, and after all that wrote or read what it writes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.current = Stream("first")
        self.races: list[str] = []
        self.done = Counter[tuple[str, str]]()
        self._written: dict[int, Counter[str]] = {}
        self._used: dict[int, Counter[str]] = {}
        self._alive: list[Any] = []  # so that no other tensor gets its memory
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("second"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self._entered)

    @contextlib.contextmanager
    def _entered(self, stream: Stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name, here = func.name().split("::")[1].partition(".")[0], self.current
        here.known[here.name] += 1
        now = Counter({here.name: here.known[here.name]})
        self.done[here.name, name] += 1
        given = [self._place(each) for each in tree_leaves((args, kwargs))]
        written = {
            self._place(value)
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        written |= {self._place(each) for each in tree_leaves(out)} - {*given}
        for place in {*given} | written:
            before = (self._used if place in written else self._written).get(place, Counter())
            if place is not None and not before <= here.known:
                self.races.append(f"{name} on the {here.name} stream")
            self._used[place] = self._used.get(place, Counter()) | now
            if place in written:
                self._written[place] = now
        self._alive.append((args, out))
        return out

    @staticmethod
    def _place(value: Any) -> int | None:
        # An empty tensor has no place.
        is_tensor = isinstance(value, torch.Tensor)
        return value.untyped_storage().data_ptr() or None if is_tensor else None


def seeded(**changes: Any) -> CycleGAN:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    return CycleGAN(tiny(cuda_graphs=True, **{"pool_size": 2} | changes))


def on_two_streams(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Streams:
    """Do two steps on two streams, and assert that they have the bits of steps on one.

    Those enter autocast for each direction, too: in bf16 it matters which gradients of a weight are
    added before they become float32.
    """
    plain, forked = seeded(**changes), seeded(**changes)
    found = []
    for model in (plain, forked):
        random.seed(1)
        torch.manual_seed(1)
        with contextlib.ExitStack() as stack:
            model.both = lambda one, other: (one(), other())
            if model is forked:
                streams = stack.enter_context(Streams(monkeypatch))
                model.both = TwoStreams(torch.device("cuda"))
            found.append([model.optimize_parameters(*pictures(n, 2)) for n in range(2)])
    assert found[0] == found[1]
    assert_same_bits(plain.state_dict(), forked.state_dict())
    return streams


@pytest.mark.behaviour(41)
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "ema": 0.9},
        {"gan_mode": "wgangp", "joint_identity": True},
        {"lambda_temporal": 1.0, "diffaugment": "color,cutout", "accumulate": 2},
        {"dropout": True, "pool_size": 0},
    ],
    ids=str,
)
def test_two_streams_wait_for_each_other_and_change_no_bit(changes, monkeypatch):
    streams = on_two_streams(monkeypatch, **changes)
    assert Counter(streams.races) == {}
    forward = [streams.done[name, "convolution"] for name in ("first", "second")]
    assert forward[1] > 0
    assert (forward[0] == forward[1]) == ("lambda_temporal" not in changes)


@pytest.mark.parametrize("missing", ["fork", "join"])
def test_a_stream_that_does_not_wait_is_found(missing, monkeypatch):
    with Streams(monkeypatch) as streams:
        two = TwoStreams(torch.device("cuda"))
        waits = two._stream if missing == "fork" else streams.current
        waits.wait_stream = lambda other: None
        x = torch.rand(3)
        one, other = two(lambda: x + 1, lambda: x * 2)
        one + other
    assert streams.races == [
        {"fork": "mul on the second", "join": "add on the first"}[missing] + " stream"
    ]


@pytest.mark.parametrize("around", [True, False])
def test_what_both_pieces_read_must_not_be_computed_by_one(around, monkeypatch):
    """As autocast would, were it entered around both: it converts each weight once."""
    weight, x = torch.rand(2, 3, 1, 1, requires_grad=True), torch.rand(1, 3, 4, 4)

    def converting(here: bool):
        return torch.autocast("cpu", torch.bfloat16) if here else contextlib.nullcontext()

    def piece():
        with converting(not around):
            return torch.conv2d(x, weight)

    with Streams(monkeypatch) as streams:
        two = TwoStreams(torch.device("cuda"))
        with converting(around):
            two(piece, piece)
    assert bool(streams.races) == around


def test_two_streams_would_both_write_the_running_statistics_of_batchnorm(monkeypatch):
    assert {*on_two_streams(monkeypatch, norm="batch").races} == {"add_ on the second stream"}


def test_a_step_has_two_streams_where_it_is_recorded_and_has_no_running_statistics(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    device, cpu = torch.device("cuda"), torch.device("cpu")
    assert isinstance(both_of(tiny(cuda_graphs=True), device), TwoStreams)
    assert both_of(tiny(cuda_graphs=True, norm="batch"), device) is in_turn
    assert both_of(tiny(), device) is in_turn
    assert both_of(tiny(cuda_graphs=True), cpu) is seeded().both is in_turn


def test_a_recording_is_rehearsed_and_made_on_a_stream_of_its_own_device(monkeypatch):
    made, recorded = [], []

    @contextlib.contextmanager
    def graph(graph, stream):
        recorded.append((graph, stream))
        yield

    with Streams(monkeypatch) as streams:
        monkeypatch.setattr(
            torch.cuda, "Stream", lambda device: made.append(device) or Stream("recording")
        )
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "the graph")
        monkeypatch.setattr(torch.cuda, "graph", graph)
        recorder = CudaRecorder(torch.device("cuda:1"))
        x = torch.rand(3)

        def body():
            for told in ("This instance was constructed with capturable=True, but", STREAMS_DIFFER):
                warnings.warn(told, stacklevel=2)
            return {"loss": (x * 2).sum()}

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss = recorder.rehearse(body)["loss"]
        assert loss + 1 > 1
        recorder.record(lambda: {})
    assert streams.races == []
    assert streams.done["recording", "mul"] == 1
    assert made == [torch.device("cuda:1")]
    assert recorded == [("the graph", recorder._stream)]
