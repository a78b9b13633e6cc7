"""Parity of each precision on the GPU with float32 on the CPU, in the classes of models/parity.py.

Measured with a full ResNet-9 of random weights (and ``--checkpoint``, if given) on natural frames,
through the product's torch backend. `reached` below `needed` means that the precision stays
experimental, or is not what its name says: fp32 that is not *exact* was computed in TF32. If
InstanceNorm in halves reaches *half*, export may omit its casts to float32. `rows differ` above 0:
pixels depend on the batch, so the plan must fix the batch size.
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
        models = {"random weights": open_model(bench.checkpoint_in(Path(folder)))}
        if bench.checkpoint is not None:
            models[bench.checkpoint.name] = open_model(bench.checkpoint)
        for height, width in sizes:
            for name, model in models.items():
                where = f"{name}, {width}×{height}"
                for precision in precisions:
                    job = partial(of_backend, bench, model, precision, height, width)
                    yield f"{precision}, {where}", job
                job = partial(of_half_norm, bench, model, height, width)
                yield f"fp16, InstanceNorm in halves, {where}", job
            for precision in precisions:
                job = partial(rows_and_batch, bench, models["random weights"], precision, height)
                yield f"rows of 8 against one by one, {precision}, {height}×{height}", job


def of_backend(
    bench: Bench, model: Model, precision: str, height: int, width: int
) -> dict[str, Any]:
    backend = open_backend(model, device=bench.device, precision=precision)
    out = backend.infer(pictures(height, width, 2))
    backend.close()
    return described(parity(out, reference(model, height, width)), NEEDED[precision])


def of_half_norm(bench: Bench, model: Model, height: int, width: int) -> dict[str, Any]:
    # torch's float16 kernels for CPUs are slow, so a dry run uses bf16.
    dtype = torch.float16 if bench.cuda else torch.bfloat16
    assert model.checkpoint is not None
    network = with_norm(_copied(model), HalfNorm)
    pixels = torch.from_numpy(pictures(height, width, 2)).to(bench.device)
    with torch.inference_mode():
        out = on_bytes(network, bench.device, dtype, channels_last=False)(pixels).cpu().numpy()
    return described(parity(out, reference(model, height, width)), "half")


def rows_and_batch(bench: Bench, model: Model, precision: str, side: int) -> dict[str, Any]:
    """Compare a batch of eight (in a dry run: two) with its frames one by one."""
    many = pictures(side, side, 8 if bench.cuda else 2)
    backend = open_backend(model, device=bench.device, precision=precision)
    together = backend.infer(many)
    alone = np.concatenate([backend.infer(frame[np.newaxis]) for frame in many])
    backend.close()
    differ = np.abs(together.astype(int) - alone)
    return {"rows differ": int((differ.max((1, 2, 3)) > 0).sum()), "largest": int(differ.max())}


def described(measured: Parity, needed: ParityClass) -> dict[str, Any]:
    """Return a parity as the values of a row."""
    return {
        "dB": measured.psnr,
        "within_2_%": 100 * measured.within2,
        "99.9_%_within": measured.p999,
        "largest": measured.max,
        "reached": measured.cls,
        "needed": needed,
    }


_references: dict[tuple[Path, int, int], Pixels] = {}


def reference(model: Model, height: int, width: int) -> Pixels:
    """Return the frames, translated by torch on the CPU in float32; they are computed once."""
    key = (model.card.path, height, width)
    if key not in _references:
        backend = open_backend(model, device="cpu", precision="fp32", backend="torch")
        _references[key] = backend.infer(pictures(height, width, 2))
        backend.close()
    return _references[key]


def _copied(model: Model) -> torch.nn.Module:
    """Return a copy of the network of ``model``, for the caller to change."""
    assert model.checkpoint is not None
    return copy.deepcopy(model.checkpoint.network)
