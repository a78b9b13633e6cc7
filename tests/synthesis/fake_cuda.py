"""A stand-in for torch.cuda on the CPU: it notes calls, and its graphs replay what they recorded.

A capture notes the operators that torch dispatches; a replay calls them again with the same tensors
and writes each result to where it was. So, as on a GPU, a replay reads and writes fixed addresses
and runs no Python of the network.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Notes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.overloadpacket.__name__ in ("lift_fresh", "_local_scalar_dense"):
            # A tensor made of the host's numbers, or a number read back, makes the host wait.
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        out = op(*args, **(kwargs or {}))
        self.calls.append((op, args, kwargs or {}, out))
        return out


class FakeCuda:
    """The names of torch.cuda that the torch backend calls; ``calls`` has them in their order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, list[Exception]] = {}
        """What the next calls of a name raise."""
        self.graphs: list[FakeCuda.CUDAGraph] = []
        self.modes: list[str] = []
        self.streams = self.pools = 0
        self.current: Any = None
        self.capturing = threading.Event()
        fake = self

        class Stream:
            def __init__(self, device: Any) -> None:
                fake.streams += 1
                self.number = fake.streams

            def synchronize(self) -> None:
                fake.calls.append("settle")

            def wait_stream(self, other: Any) -> None:
                fake.calls.append(f"{self.number} waits for {other}")

        class Event:
            def __init__(self, *, blocking: bool) -> None:
                assert blocking, "a thread that waits would take a core"

            def record(self, stream: Any) -> None:
                fake.note(f"record on {stream.number}")

            def synchronize(self) -> None:
                fake.note("wait")

        class CUDAGraph:
            def __init__(self) -> None:
                self.recorded: list[tuple[Any, Any, Any, Any]] = []
                self.pool_id: Any = None
                self.was_reset = False
                fake.graphs.append(self)

            def pool(self) -> Any:
                return self.pool_id

            def replay(self) -> None:
                assert not self.was_reset
                fake.note(f"replay on {fake.current.number}")
                for op, args, kwargs, out in self.recorded:
                    again = op(*args, **kwargs)
                    for old, new in zip(_tensors(out), _tensors(again), strict=True):
                        if old.data_ptr() != new.data_ptr():
                            old.copy_(new)

            def reset(self) -> None:
                self.was_reset = True
                fake.note("reset")

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, CUDAGraph

    def note(self, call: str) -> None:
        self.calls.append(call)
        for error in self.fails.get(call.partition(" ")[0], [])[:1]:
            self.fails[call.partition(" ")[0]].pop(0)
            raise error

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def current_stream(self, device: Any) -> Any:
        return self.current or "the default stream"

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    @contextlib.contextmanager
    def graph(
        self, graph: Any, *, pool: Any, stream: Any, capture_error_mode: str
    ) -> Iterator[None]:
        assert stream is self.current, "recorded on another stream than it was warmed up on"
        assert not self.capturing.is_set(), "torch allows one capture at a time"
        self.modes.append(capture_error_mode)
        self.note("capture")
        graph.pool_id = pool
        self.capturing.set()
        try:
            with _Notes() as notes:
                yield
        finally:
            self.capturing.clear()
        graph.recorded = notes.calls

    def empty_cache(self) -> None:
        assert not self.capturing.is_set()
        self.note("empty_cache")

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1


def _tensors(out: Any) -> list[torch.Tensor]:
    each = out if isinstance(out, tuple | list) else (out,)
    return [tensor for tensor in each if isinstance(tensor, torch.Tensor)]


def installed(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put a stand-in in torch's place; ``cuda:0`` is the CPU, and its memory pinned."""
    from cyclegan_batch.backends import torch as package
    from cyclegan_batch.backends.torch import recording

    fake = FakeCuda()
    names = "Stream Event CUDAGraph device stream current_stream graph graph_pool_handle"
    for name in (*names.split(), "empty_cache", "is_available", "device_count"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(
        recording, "_pinned_memory", lambda shape, dtype: torch.empty(shape, dtype=dtype)
    )
    tensor_to, module_to = torch.Tensor.to, torch.nn.Module.to

    def tensor_moved(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args[:1] == ("cuda:0",):
            return tensor_to(self, *args[1:], **kwargs).clone()  # never the host's own memory
        return tensor_to(self, *args, **kwargs)

    def module_moved(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        return self if args == ("cuda:0",) else module_to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", tensor_moved)
    monkeypatch.setattr(torch.nn.Module, "to", module_moved)
    assert package.sees_cuda()
    return fake
