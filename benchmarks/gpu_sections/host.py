"""Frames per second from host memory to host memory: how much of the bare rate is left.

`torch backend` is the product: several contexts, each in a thread of its own, as in the pipeline.
The fewest contexts within 5 % of the best become the default. ``auto`` may choose a precision that
has a row here and one within its class in `parity` (`MEASURED_ON_GPU`). `prototype` is the fused
generator with two pinned slots for each of its streams; `share` is the % of its own bare rate, and
the fewest streams with 95 % would be the default. `copies` also copies from and to pageable memory:
if it costs more than 5 %, decoders should write into pinned memory.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cyclegan_batch.backends import open_backend
from cyclegan_batch.models.model import Model, open_model

from .bare import Fused
from .measuring import Bench, Job, on_bytes, pictures


def jobs(bench: Bench) -> Iterator[Job]:
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(bench.checkpoint_in(Path(folder)))
        for precision, batch, contexts in bench.some(
            (("fp16", 8, 2), ("tf32", 8, 2), ("fp16", 8, 1), ("fp16", 4, 2), ("fp16", 8, 3),
             ("fp16", 16, 2), ("fp16", 1, 2), ("bf16", 8, 2), ("fp32", 8, 2))
        ):  # fmt: skip
            how = (precision, batch, contexts) if bench.cuda else ("fp32", 1, contexts)
            name = f"torch backend, {precision}, {contexts} contexts, batch {batch}"
            yield name, partial(of_product, bench, model, *how)
        for batch, streams, copies in bench.some(
            ((8, 2, False), (8, 1, False), (8, 3, False), (8, 2, True), (16, 2, False))
        ):
            name = f"prototype, {streams} streams, batch {batch}{', copies' if copies else ''}"
            yield name, partial(of_prototype, bench, batch if bench.cuda else 1, streams, copies)


def of_product(
    bench: Bench, model: Model, precision: str, batch: int, contexts: int
) -> dict[str, Any]:
    seconds = 1.5 if bench.cuda else 0.01
    first = open_backend(model, device=bench.device, precision=precision, contexts=contexts)
    backends = [first, *(first.fork() for _ in range(contexts - 1))]
    frames = pictures(bench.side, bench.side, batch)
    for backend in backends:
        backend.infer(frames)
    counts = [0] * contexts
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while counts[number] == 0 or time.perf_counter() < end:
            backends[number].infer(frames)
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(contexts)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fps = sum(counts) * batch / (time.perf_counter() - begin)
    for backend in backends:
        backend.close()
    return {"fps": fps}


class _Lane:
    """A stream of the prototype: its recorded network and two pinned slots."""

    def __init__(self, bench: Bench, batch: int) -> None:
        self.stream = torch.cuda.Stream() if bench.cuda else None
        self.input = bench.frames(batch, bench.side, bench.side)
        # Triton's interpreter takes seconds for a batch; a dry run only tries the lanes.
        body = (
            Fused(bench).with_cells()
            if bench.cuda
            else on_bytes(bench.network(), "cpu", torch.float32, channels_last=False)
        )
        self.run = bench.recorded(partial(body, self.input), self.stream)
        shape, pin = (2, *self.input.shape), bench.cuda
        slots = (torch.empty(shape, dtype=torch.uint8, pin_memory=pin).fill_(7) for _ in range(2))
        self.slots = [
            (sent, back, torch.cuda.Event() if bench.cuda else None) for sent, back in slots
        ]

    def go(self, number: int, ordinary: torch.Tensor | None) -> None:
        """Send one batch through slot ``number``, once the slot's previous batch has come back."""
        sent, back, done = self.slots[number]
        if done is not None:
            done.synchronize()
        if ordinary is not None:
            ordinary[1].copy_(back)
            sent.copy_(ordinary[0])
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            self.input.copy_(sent, non_blocking=True)
            back.copy_(self.run(), non_blocking=True)
            if done is not None:
                done.record(self.stream)


def of_prototype(bench: Bench, batch: int, streams: int, copies: bool) -> dict[str, Any]:
    lanes = [_Lane(bench, batch) for _ in range(streams)]
    ordinary = torch.zeros(2, *lanes[0].input.shape, dtype=torch.uint8) if copies else None

    def sweep(seconds: float) -> float:
        begin, count = time.perf_counter(), 0
        while count < 2 * streams or time.perf_counter() - begin < seconds:
            lanes[count % streams].go(count // streams % 2, ordinary)
            count += 1
        if bench.cuda:
            torch.cuda.synchronize()
        return batch * count / (time.perf_counter() - begin)

    if bench.cuda:
        sweep(0.3)
    fps, bare = sweep(1.5 if bench.cuda else 0.0), 1e3 * batch / bench.timed(lanes[0].run)[0]
    return {"fps": fps, "bare": bare, "share_%": 100 * fps / bare}
