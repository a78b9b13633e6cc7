"""How near each precision on the GPU comes to float32 on the CPU, in the classes of DESIGN.

A full ResNet-9 with random weights (and ``--checkpoint``, if one is given), natural frames, through
the product's torch backend. `reached` below `needed` means that the precision stays experimental,
or is not what it is called: fp32 that is not *exact* was computed in TF32. InstanceNorm in halves
in class *half* means that export may leave out its casts to float32. `rows differ` above 0: pixels
depend on the batch, which the plan has to fix.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cyclegan_batch.backends import PRECISIONS, open_backend
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.model import Model, open_model
from cyclegan_batch.models.parity import REQUIRED_CLASS, Parity, ParityClass, parity

from .measuring import Bench, HalfNorm, Job, on_bytes, pictures, with_norm

NEEDED: dict[str, ParityClass] = REQUIRED_CLASS


def jobs(bench: Bench) -> Iterator[Job]:
    precisions = [p for p in PRECISIONS if p != "int8"] if bench.cuda else ["fp32"]
    sizes = ((256, 256), (720, 1280)) if bench.cuda else ((16, 24),)
    with tempfile.TemporaryDirectory() as folder:
        given = {"random weights": open_model(bench.checkpoint_in(Path(folder)))}
        if bench.checkpoint is not None:
            given[bench.checkpoint.name] = open_model(bench.checkpoint)
        for height, width in sizes:
            for name, model in given.items():
                where = f"{name}, {width}×{height}"
                for precision in precisions:
                    job = partial(of_backend, bench, model, precision, height, width)
                    yield f"{precision}, {where}", job
                job = partial(of_half_norm, bench, model, height, width)
                yield f"fp16, InstanceNorm in halves, {where}", job
            for precision in precisions:
                job = partial(rows_and_batch, bench, given["random weights"], precision, height)
                yield f"rows of 8 against one by one, {precision}, {height}×{height}", job


def of_backend(
    bench: Bench, model: Model, precision: str, height: int, width: int
) -> dict[str, Any]:
    backend = open_backend(model, device=bench.device, precision=precision)
    found = backend.infer(pictures(height, width, 2))
    backend.close()
    return described(parity(found, reference(model, height, width)), NEEDED[precision])


def of_half_norm(bench: Bench, model: Model, height: int, width: int) -> dict[str, Any]:
    # The CPU has no half-precision kernels worth the name: there, the lines are tried in bf16.
    dtype = torch.float16 if bench.cuda else torch.bfloat16
    assert model.checkpoint is not None
    network = with_norm(_copied(model), HalfNorm)
    pixels = torch.from_numpy(pictures(height, width, 2)).to(bench.device)
    with torch.inference_mode():
        found = on_bytes(network, bench.device, dtype, channels_last=False)(pixels).cpu().numpy()
    return described(parity(found, reference(model, height, width)), "half")


def rows_and_batch(bench: Bench, model: Model, precision: str, side: int) -> dict[str, Any]:
    """Compare a batch of eight (in a dry run: two) with its frames one by one."""
    many = pictures(side, side, 8 if bench.cuda else 2)
    backend = open_backend(model, device=bench.device, precision=precision)
    together = backend.infer(many)
    alone = np.concatenate([backend.infer(frame[np.newaxis]) for frame in many])
    backend.close()
    differ = np.abs(together.astype(int) - alone)
    return {"rows differ": int((differ.max((1, 2, 3)) > 0).sum()), "largest": int(differ.max())}


def described(found: Parity, needed: ParityClass) -> dict[str, Any]:
    """Return a parity as the values of a row."""
    return {
        "dB": found.psnr,
        "within_2_%": 100 * found.within2,
        "99.9_%_within": found.p999,
        "largest": found.max,
        "reached": found.cls,
        "needed": needed,
    }


_references: dict[tuple[Path, int, int], Pixels] = {}


def reference(model: Model, height: int, width: int) -> Pixels:
    """Return what torch makes of the frames on the CPU in float32, computed once."""
    key = (model.card.path, height, width)
    if key not in _references:
        backend = open_backend(model, device="cpu", precision="fp32", backend="torch")
        _references[key] = backend.infer(pictures(height, width, 2))
        backend.close()
    return _references[key]


def _copied(model: Model) -> torch.nn.Module:
    """Return the network of ``model``, to change."""
    assert model.checkpoint is not None
    return copy.deepcopy(model.checkpoint.network)
