"""A video from end to end, and its parts: the limits of encoder, decoder and pipeline.

If the encoder's frames per second are below those of the section `host`, the encoder is the limit,
and the report must name it. `each alone` is one single-threaded encoder for every core, all at the
same time: if it is far above `16 threads`, translating several videos at a time, or several
stretches of one, is worth writing. If the CPU's decoder is the limit and `NVDEC` is faster,
hardware decoding is worth writing.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.pipeline import write_identity
from cyclegan_batch.api import translate

from .images import described, of_network
from .measuring import Bench, Job, NotRunError, pictures, required


def jobs(bench: Bench) -> Iterator[Job]:
    required("av")
    sizes = ((256, 256), (720, 1280)) if bench.cuda else ((48, 64),)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # This job comes first: FFmpeg creates its own kind of CUDA context, and requires that the
        # process has none.
        yield "NVDEC, H.264", partial(hardware_decoder, bench, *sizes[-1])
        models = {"torch backend": bench.checkpoint_in(folder)}
        models["identity"] = write_identity(folder / "identity.onnx")
        for height, width in sizes:
            for network, model in models.items():
                job = partial(end_to_end, bench, folder, model, height, width)
                yield f"{network}, {width}×{height}", job
        for height, width in (*sizes, (1080, 1920)) if bench.cuda else sizes:
            for preset in bench.some(("veryfast", "medium")):
                job = partial(encoder, bench, height, width, preset)
                yield f"libx264 {preset}, {width}×{height}", job


def end_to_end(bench: Bench, folder: Path, model: Path, height: int, width: int) -> dict[str, Any]:
    identity = model.suffix == ".onnx"
    if identity:
        required("onnxruntime")
    count = min(3000, 1500 * 256**2 // (height * width) * 2) if bench.cuda else 4
    source = folder / f"{width}.mp4"
    if not source.exists():
        _, memory = encoded(height, width, "veryfast", 0, frames=count)
        source.write_bytes(memory.getvalue())
    options: dict[str, Any] = {"device": "cpu"} if identity else of_network(bench)
    output = folder / "out.mp4"
    return described(
        translate(source, output, model=model, preset="veryfast", overwrite=True, **options)
    )


def encoder(bench: Bench, height: int, width: int, preset: str) -> dict[str, Any]:
    cores, rates, seconds = os.cpu_count() or 1, {}, 1.2 if bench.cuda else 0.0
    for threads in bench.some((16, 1, 4)):
        rate, memory = encoded(height, width, preset, threads, seconds=seconds)
        rates[f"{threads} threads"] = rate
        if threads != 4:
            rates[f"decoder, {threads}"] = decoded(memory, threads)
    cores = cores if bench.cuda else 2
    gate = threading.Barrier(cores)

    def alone(_: int) -> float:
        gate.wait()
        return encoded(height, width, preset, 1, seconds=seconds)[0]

    with ThreadPoolExecutor(cores) as pool:
        rates["each alone"] = sum(pool.map(alone, range(cores)))
    return rates


@cache
def panned(height: int, width: int) -> list[Any]:
    """Return 16 frames of a slow pan over one scene, in the encoder's pixel format."""
    import av
    import numpy as np

    scene = pictures(height + 64, width + 64, 1)[0]
    cuts = [
        np.ascontiguousarray(scene[3 * i : 3 * i + height, 2 * i : 2 * i + width])
        for i in range(16)
    ]
    return [
        av.VideoFrame.from_ndarray(cut, format="rgb24").reformat(format="yuv420p") for cut in cuts
    ]


def encoded(
    height: int, width: int, preset: str, threads: int, *, seconds: float = 0.0, frames: int = 8
) -> tuple[float, io.BytesIO]:
    """Encode for ``seconds`` and at least ``frames`` frames; return the rate, and the file."""
    import av

    source, memory, count = panned(height, width), io.BytesIO(), 0
    begin = time.perf_counter()
    with av.open(memory, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=30, options={"preset": preset})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = threads
        while count < frames or time.perf_counter() - begin < seconds:
            # Parallel encoders share these frames, but each one needs timestamps of its own.
            planes = source[count % 16].to_ndarray()
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = count
            file.mux(stream.encode(frame))
            count += 1
        file.mux(stream.encode())
    return count / (time.perf_counter() - begin), memory


def decoded(memory: io.BytesIO, threads: int, **options: Any) -> float:
    import av

    memory.seek(0)
    with av.open(memory, **options) as file:
        context = file.streams.video[0].codec_context
        if not options:
            context.thread_count, context.thread_type = threads, "AUTO"
        begin = time.perf_counter()
        return sum(1 for _ in file.decode(video=0)) / (time.perf_counter() - begin)


def hardware_decoder(bench: Bench, height: int, width: int) -> dict[str, Any]:
    """Decode with NVDEC through PyAV, which copies the frames to the host."""
    if not bench.cuda:
        raise NotRunError("NVDEC is a part of a GPU")
    from av.codec.hwaccel import HWAccel

    _, memory = encoded(height, width, "veryfast", 0, frames=600)
    accelerated = HWAccel("cuda", allow_software_fallback=False)
    return {
        "size": f"{width}×{height}",
        "CPU, 16 threads": decoded(memory, 16),
        "NVDEC": decoded(memory, 1, hwaccel=accelerated),
    }
