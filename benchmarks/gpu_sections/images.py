"""A folder of images from end to end, with a network that costs nothing and with the real one.

`identity` is the most that the pipeline reaches in one process. If it is below the rate of `host`,
the pipeline is the limit, and several processes for one GPU are worth writing. If the rate in
memory (/dev/shm) is far above that on disk, the disk, or flushing files to it, is the limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from benchmarks.pipeline import write_identity
from cyclegan_batch.api import translate
from cyclegan_batch.job.report import Report

from .measuring import Bench, Job, pictures, required


def jobs(bench: Bench) -> Iterator[Job]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "identity": write_identity(folder / "identity.onnx"),
            "torch backend": bench.checkpoint_in(folder),
        }
        for kind, side, network, where in bench.some(
            (
                ("jpg", 256, "torch backend", None),
                ("jpg", 256, "identity", None),
                ("jpg", 256, "identity", "/dev/shm"),
                ("png", 256, "torch backend", None),
                ("jpg", 1024, "torch backend", None),
            ),
            2,
        ):
            job = partial(rate, bench, folder, models[network], kind, side, where)
            yield f"{kind} {side}², {network}{', in memory' if where else ''}", job


def rate(
    bench: Bench, folder: Path, model: Path, kind: str, side: int, where: str | None
) -> dict[str, Any]:
    identity = model.suffix == ".onnx"
    if identity:
        required("onnxruntime")
    count, side = (1500 * 256**2 // side**2, side) if bench.cuda else (3, 16)
    with tempfile.TemporaryDirectory(dir=where or folder) as place:
        source = Path(place) / "in"
        source.mkdir()
        frames = [cv2.imencode(f".{kind}", frame)[1] for frame in pictures(side, side, 16)]
        for number in range(count):
            (source / f"{number:05}.{kind}").write_bytes(frames[number % 16])
        options: dict[str, Any] = {"device": "cpu"} if identity else of_network(bench)
        return described(translate(source, Path(place) / "out", model=model, **options))


def of_network(bench: Bench) -> dict[str, Any]:
    """Return the options with which the real network runs."""
    half = {"precision": "fp16"} if bench.cuda else {}
    return {"device": bench.device, "backend": "torch"} | half


def described(report: Report) -> dict[str, Any]:
    """Return the rate of a translation and how busy its stages were, as the values of a row."""
    busy = {
        f"{name}_%": 100 * stage.busy_seconds / report.seconds
        for name, stage in report.stages.items()
    }
    return {
        "fps": report.rate,
        "frames": report.frames,
        "status": report.status,
        "limit": report.limiting_stage,
    } | busy
