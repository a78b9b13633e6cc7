"""What happens when memory runs out, whether it stays flat, and whether pixels repeat.

`out of memory`: with 4 GiB and a batch of 64 at 1920×1080 the batch must be halved until it fits,
every image must be written, and `notes` must report it (behaviour 26); `largest` is the difference
from a run with batch 1. `flat`: memory after 5,000 frames is within 5 % of that after 500 (27).
`twice`: the same frames give the same bytes again, in the same context and in a new one (28).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cyclegan_batch.api import translate
from cyclegan_batch.backends import open_backend
from cyclegan_batch.models.model import Model, open_model

from .measuring import Bench, Job, pictures


def jobs(bench: Bench) -> Iterator[Job]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = bench.checkpoint_in(folder)
        yield "twice", partial(twice, bench, open_model(checkpoint))
        yield "out of memory", partial(ladder, bench, checkpoint, folder)
        yield "flat", partial(flat, bench, open_model(checkpoint))


def ladder(bench: Bench, checkpoint: Path, folder: Path) -> dict[str, Any]:
    count, side = (32, (1080, 1920)) if bench.cuda else (3, (16, 24))
    source = folder / "pictures"
    source.mkdir()
    for number, frame in enumerate(pictures(*side, count)):
        cv2.imwrite(str(source / f"{number:03}.png"), frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    options: dict[str, Any] = {"model": checkpoint, "backend": "torch", "device": bench.device}
    total = torch.cuda.get_device_properties(0).total_memory if bench.cuda else 0
    if bench.cuda:
        torch.cuda.set_per_process_memory_fraction(min(1.0, 4 * 2**30 / total))
    try:
        report = translate(source, folder / "64", batch_size=64, **options)
    finally:
        if bench.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
    translate(source, folder / "1", batch_size=1, **options)
    written = sorted((folder / "64").glob("[!.]*"))
    largest = max(
        int(
            np.abs(
                cv2.imread(str(path)).astype(int) - cv2.imread(str(folder / "1" / path.name))
            ).max()
        )
        for path in written
    )
    return {
        "sent": count,
        "written": len(written),
        "status": report.status,
        "halved": sum("out of memory" in note.text for note in report.notes),
        "largest": largest,
        "notes": [str(note) for note in report.notes if "memory" in note.text],
    }


def flat(bench: Bench, model: Model) -> dict[str, Any]:
    """Compare resident and device memory after 500 and after 5,000 frames."""
    backend = open_backend(model, device=bench.device, precision="fp16" if bench.cuda else "fp32")
    batch = 20 if bench.cuda else 1
    frames, used = pictures(bench.side, bench.side, batch), []
    for number in range(5000 // batch if bench.cuda else 10):
        backend.infer(frames)
        if (number + 1) * batch in ((500, 5000) if bench.cuda else (1, 10)):
            device = torch.cuda.memory_reserved() / 2**20 if bench.cuda else 0.0
            used.append((device, _resident_mib()))
    backend.close()
    (device, resident), (device_then, resident_then) = used
    return {
        "device_mib": device,
        "device_mib_then": device_then,
        "resident_mib": resident,
        "resident_mib_then": resident_then,
    }


def twice(bench: Bench, model: Model) -> dict[str, Any]:
    frames = pictures(bench.side, bench.side, bench.batches[0])
    precision, results = "fp16" if bench.cuda else "fp32", []
    for _ in range(2):
        backend = open_backend(model, device=bench.device, precision=precision)
        results += [backend.infer(frames) for _ in range(2)]
        backend.close()
    first, again, *new = results
    return {
        "same context": bool((first == again).all()),
        "new context": all(bool((first == each).all()) for each in new),
    }


def _resident_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
