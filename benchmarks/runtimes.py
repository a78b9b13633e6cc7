"""Measure the runtimes of the CPU side by side, against plain onnxruntime in fp32.

    python benchmarks/runtimes.py MODEL… [--resnet9] [--int8 ONNX] [--size 256] [--pairs 5]

The baseline, 1, is onnxruntime as its own documentation opens a file, on the ONNX that `export`
writes: a session of its own, fp32, with as many threads and contexts as every other row. The rows
named *plain* are OpenVINO used in the same way, without this package; *ours* are `open_backend`,
which rewrites the graph for the runtime as it opens the file. A checkpoint is exported first.
``--resnet9`` adds the full ResNet-9 (64 channels) with seeded weights. ``--int8`` names an INT8
file of the network before it; its parity is against that network in fp32.

Every row takes turns with the baseline: what counts is the ratio within a pair, of frames per
second and of frames per CPU second, which depends less on what else the machine does. RESULTS.md
holds the tables.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "export")]

from cyclegan_batch.backends import Backend, default_contexts, open_backend  # noqa: E402
from cyclegan_batch.backends.openvino import import_openvino  # noqa: E402
from cyclegan_batch.bench.subject import instruction_sets  # noqa: E402
from cyclegan_batch.errors import CycleganBatchError  # noqa: E402
from cyclegan_batch.frames import Pixels, as_pixel_type  # noqa: E402
from cyclegan_batch.machine import cpu_name, cpu_threads  # noqa: E402
from cyclegan_batch.models.checkpoints.files import is_checkpoint  # noqa: E402
from cyclegan_batch.models.model import INPUT, OUTPUT, Model, open_model  # noqa: E402
from cyclegan_batch.models.parity import Parity, natural_frames, parity  # noqa: E402

Run = Callable[[Pixels], Pixels]


@dataclass
class Way:
    """One way to run a network: a function for each context, and what was measured of it."""

    name: str
    contexts: list[Run]
    parity: Parity | None = None
    over_seconds: list[float] = field(default_factory=list)
    """Frames per second over the baseline's, pair by pair."""
    over_cpu_seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """Frames per second."""


def cpu() -> str:
    """Return the CPU's name and the instructions of it that decide which kernels run."""
    return f"{cpu_name()} ({', '.join(instruction_sets()) or 'none that tell'})"


def plain_onnxruntime(model: Model, threads: int, contexts: int) -> list[Run]:
    """Return contexts of one onnxruntime session, with its defaults but for the threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads - contexts + 1)
    session = onnxruntime.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])

    def run(frames: Pixels) -> Pixels:
        out: Pixels = session.run([OUTPUT], {INPUT: frames})[0]
        return out

    return [run] * contexts


def plain_openvino(model: Model, threads: int, contexts: int, precision: str) -> list[Run]:
    """Return contexts of one compiled model, as OpenVINO's documentation tells for throughput."""
    core = import_openvino().Core()
    settings = {
        "NUM_STREAMS": contexts,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = core.compile_model(core.read_model(model.graph, b""), "CPU", settings)

    def context() -> Run:
        request = compiled.create_infer_request()

        def run(frames: Pixels) -> Pixels:
            request.infer({INPUT: frames}, share_inputs=True)
            out: Pixels = request.get_tensor(OUTPUT).data.copy()
            return out

        return run

    return [context() for _ in range(contexts)]


def ours(model: Model, threads: int, contexts: int, **options: str) -> tuple[str, list[Run]]:
    """Return what a translation on this CPU runs, and its backend and precision in words."""
    first: Backend = open_backend(
        model, device="cpu", threads=threads, contexts=contexts, **options
    )
    opened = [first, *(first.fork() for _ in range(contexts - 1))]
    return f"{first.name}, {first.precision}", [each.infer for each in opened]


def ways(model: Model, int8: Model | None, threads: int, contexts: int) -> Iterator[Way]:
    """Yield every way in which this machine runs ``model``, the baseline first."""
    yield Way("onnxruntime fp32, plain", plain_onnxruntime(model, threads, contexts))
    tries: list[tuple[str, Callable[[], tuple[str, list[Run]]]]] = []

    def plain(name: str, of: Model, precision: str) -> None:
        tries.append(
            (f"{name}, plain", lambda: ("", plain_openvino(of, threads, contexts, precision)))
        )

    def own(name: str, of: Model, **options: str) -> None:
        tries.append((f"ours, {name}", lambda: ours(of, threads, contexts, **options)))

    plain("openvino fp32", model, "f32")
    plain("openvino bf16", model, "bf16")
    if int8 is not None:
        plain("openvino int8", int8, "f32")
    own("default", model)
    own("--backend onnxruntime", model, backend="onnxruntime")
    own("--precision bf16", model, precision="bf16")
    if int8 is not None:
        own("int8 file", int8)
    for name, start in tries:
        try:
            how, runs = start()
        except (CycleganBatchError, ImportError, RuntimeError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        yield Way(f"{name} ({how})" if how else name, runs)


def rate(runs: Sequence[Run], frames: Pixels, seconds: float) -> tuple[float, float]:
    """Return frames per second and per CPU second of contexts that run side by side."""
    counts = [0] * len(runs)
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            at = (number + counts[number]) % len(frames)
            runs[number](frames[at : at + 1])
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(runs))]
    begun, cpu_begun = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(counts)
    return total / (time.perf_counter() - begun), total / (time.process_time() - cpu_begun)


def measure(
    model: Model, int8: Model | None, *, size: int, pairs: int, seconds: float, threads: int
) -> list[Way]:
    """Measure every way in alternating pairs with the first."""
    contexts = default_contexts("cpu", threads)
    shape = model.card.sizes.smallest_fit((size, size))
    frames = as_pixel_type(natural_frames(shape, 4), model.card.pixel_type)
    measured = list(ways(model, int8, threads, contexts))
    expected: Pixels | None = None
    for way in measured:
        rows = [way.contexts[n % contexts](frames[n : n + 1]) for n in range(len(frames))]
        out = np.concatenate(rows)
        expected = out if expected is None else expected
        way.parity = parity(out, expected)
    for _ in range(pairs):
        for way in measured:
            base = rate(measured[0].contexts, frames, seconds)
            found = rate(way.contexts, frames, seconds) if way is not measured[0] else base
            way.rates.append(found[0])
            way.over_seconds.append(found[0] / base[0])
            way.over_cpu_seconds.append(found[1] / base[1])
    return measured


def table(measured: Sequence[Way]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| | frames/s over the first row's | the same per CPU second | frames/s | parity |",
        "|---|---|---|---|---|",
    ]
    for way in measured:
        assert way.parity is not None
        over, per_cpu = way.over_seconds, way.over_cpu_seconds
        lines.append(
            f"| {way.name} "
            f"| **{statistics.median(over):.2f}** ({min(over):.2f} to {max(over):.2f}) "
            f"| {statistics.median(per_cpu):.2f} | {statistics.median(way.rates):.1f} "
            f"| {way.parity.cls}, {way.parity.psnr:.1f} dB |"
        )
    return "\n".join(lines)


def seeded_resnet9(path: Path) -> Path:
    """Write a checkpoint of the full ResNet-9 with seeded weights."""
    import torch

    from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config, init_weights

    torch.manual_seed(0)
    network = generator_from_config(GeneratorConfig())
    init_weights(network)
    torch.save(network.state_dict(), path)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", metavar="CHECKPOINT|ONNX")
    parser.add_argument("--resnet9", action="store_true")
    parser.add_argument("--int8", type=Path, metavar="ONNX")
    parser.add_argument("--model-io")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side of a pair")
    parser.add_argument("--threads", type=int, default=cpu_threads())
    given = parser.parse_args(arguments)
    contexts = default_contexts("cpu", given.threads)
    print(f"{cpu()}, {given.threads} threads, {contexts} contexts, {time.strftime('%d %B %Y')}\n")
    with tempfile.TemporaryDirectory() as folder:
        paths = list(given.models)
        if given.resnet9:
            paths.append(seeded_resnet9(Path(folder) / "resnet9.pth"))
        for path in paths:
            file = path
            if is_checkpoint(path):
                from cyclegan_export import export_onnx

                file = Path(folder) / f"{path.stem}.onnx"
                export_onnx(path, file, verify=False, overwrite=True)
            int8 = open_model(given.int8) if given.int8 and path == paths[-1] else None
            measured = measure(
                open_model(file, model_io=given.model_io),
                int8,
                size=given.size,
                pairs=given.pairs,
                seconds=given.seconds,
                threads=given.threads,
            )
            print(f"{path.name} at {given.size}²\n\n{table(measured)}\n", flush=True)


if __name__ == "__main__":
    main()
