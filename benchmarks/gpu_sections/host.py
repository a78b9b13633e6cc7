"""Frames per second from host memory to host memory: the torch backend as the product runs it.

Several contexts, each in a thread of its own, as in the pipeline. `bare` is the rate of the same
body alone on the device, replayed as a graph, and `share` the % of it that is left: 90 and more is
the goal. The fewest contexts within 5 % of the best become the default. `how` and the rows of each
body of `BODIES` decide the order in that table, a line for each precision: `fused` comes first if
it is 1.3 times as fast as `compiled`, which needs no kernels of our own. With `search` cuDNN tried
its kernels out: `SEARCHES` becomes true if that is 5 % faster. An ONNX must be as fast as the
checkpoint that it was made from. ``auto`` may choose a precision that has a row here and one within
its class in `parity` (`MEASURED_ON_GPU`). `graphs`: why a batch was launched kernel by kernel.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cyclegan_batch.backends import Backend, open_backend
from cyclegan_batch.backends.torch import TorchBackend, bodies
from cyclegan_batch.models.model import Model, open_model

from .measuring import Bench, Job, pictures, required

FUSED, LAST, FIRST, COMPILED = "fused", "channels last", "channels first", "compiled"

PRODUCT = (
    ("fp16", 8, 2), ("fp16", 8, 1), ("fp16", 8, 3), ("fp16", 16, 2), ("fp16", 4, 2),
    ("tf32", 8, 2), ("bf16", 8, 2), ("fp32", 8, 2), ("fp16", 1, 2),
)  # fmt: skip
"""Precision, batch and contexts of the rows with the body that the product chooses."""


def jobs(bench: Bench) -> Iterator[Job]:
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(bench.checkpoint_in(Path(folder)))
        first = ("fp16", 8, 2) if bench.cuda else ("fp32", 1, 2)
        yield row(bench, "checkpoint", model, *first)
        if bench.cuda:
            for how in (LAST, FIRST):
                yield row(bench, "checkpoint", model, *first, how=how)
            yield row(bench, "checkpoint", model, *first, search=True)
        yield "onnx", partial(of_onnx, bench, model, Path(folder), *first)
        if bench.cuda:
            for how_many in PRODUCT[1:]:
                yield row(bench, "checkpoint", model, *how_many)
            for how in (FUSED, FIRST):
                yield row(bench, "checkpoint", model, "tf32", 8, 2, how=how)
            yield row(bench, "checkpoint", model, *first, how=COMPILED)


def row(
    bench: Bench, kind: str, model: Model, precision: str, batch: int, contexts: int,
    how: str | None = None, search: bool = False,
) -> Job:  # fmt: skip
    """Return the job of one row, and its name."""
    name = f"{kind}, {precision}, {contexts} contexts, batch {batch}"
    name += f"{f', {how}' if how else ''}{', search' if search else ''}"
    job = partial(of_product, bench, model, precision, batch, contexts, how, search)
    return name, job


def of_onnx(
    bench: Bench, model: Model, folder: Path, precision: str, batch: int, contexts: int
) -> dict[str, Any]:
    """Measure the ONNX of the same network."""
    required("onnxscript")
    from cyclegan_export.graph import deployable, graph_from_network

    from cyclegan_batch.models.graphs.contract import GeneratorIO, contract_from_generator
    from cyclegan_batch.models.model import model_from_contract

    sizes = model.card.sizes
    graph = graph_from_network(deployable(bench.network()), sizes, channels=3)
    contract = contract_from_generator(graph, GeneratorIO())
    exported = model_from_contract(
        folder / "g.onnx", contract, architecture="resnet", sizes=sizes, precision="fp32"
    )
    return of_product(bench, exported, precision, batch, contexts)


def of_product(
    bench: Bench, model: Model, precision: str, batch: int, contexts: int,
    how: str | None = None, search: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measure contexts of the torch backend; ``how`` takes the place of the precision's bodies."""
    with chosen(precision, how, search):
        first = open_backend(
            model, backend="torch", device=bench.device, precision=precision, contexts=contexts
        )
        backends = [first, *(first.fork() for _ in range(contexts - 1))]
        try:
            return rates(bench, backends, batch)
        finally:
            for backend in backends:
                backend.close()


@contextlib.contextmanager
def chosen(precision: str, how: str | None, search: bool) -> Iterator[None]:
    """Let the product choose the body ``how`` for ``precision``, and cuDNN its kernels."""
    before = bodies.BODIES[precision], bodies.SEARCHES
    bodies.BODIES[precision] = (how,) if how else before[0]
    bodies.SEARCHES = search
    try:
        yield
    finally:
        bodies.BODIES[precision], bodies.SEARCHES = before


def rates(bench: Bench, backends: list[Backend], batch: int) -> dict[str, Any]:
    """Return the rate of several contexts, and that of what they compute alone on the device."""
    frames = pictures(bench.side, bench.side, batch)
    for backend in backends:
        for _ in range(3):  # launched, recorded, replayed
            backend.infer(frames)
    counts = [0] * len(backends)
    end = time.perf_counter() + (1.5 if bench.cuda else 0.01)

    def work(number: int) -> None:
        while counts[number] == 0 or time.perf_counter() < end:
            backends[number].infer(frames)
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fps = sum(counts) * batch / (time.perf_counter() - begin)
    first = backends[0]
    assert isinstance(first, TorchBackend)
    pixels = torch.from_numpy(frames.copy()).to(bench.device)
    bare = 1e3 * batch / bench.timed(bench.recorded(partial(first.compute, pixels)))[0]
    return {
        "fps": fps, "bare": bare, "share_%": 100 * fps / bare,
        "how": first.how or "as on a CPU", "graphs": first.not_recorded or "yes",
    }  # fmt: skip
