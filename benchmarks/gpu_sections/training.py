"""Milliseconds of a training step by its options, and whether the faster steps learn the same.

The baseline is this project's own eager step in tf32 with cuDNN's search, at batch 1 (`fp32, tf32`;
256², ngf 64): `times_tf32` is the rate of a row over that of the baseline. The aim is 3, with the
fastest row that is `finite`, which becomes the recipe. `fp32, ieee` is reported beside it.

Each option has the row before it to be compared with. `+ graphs` computes the two directions on two
streams: not faster than `+ graphs, one stream`, and `devices.both_of` returns `in_turn`. `+ graphs,
fused norm` is taken before `+ graphs, compiled` up to 5 % below it, since compiling takes minutes;
slower than `+ graphs`, its backward needs work. `host_ms` is what launching the steps takes: near
`ms`, the GPU waits for the host.

`recorded against eager`: the largest relative difference of a loss, at six steps. Losses of
recorded steps must stay as close to eager ones as a second eager run does; otherwise CUDA graphs
are not used, or not two streams where only `recorded` is apart and `recorded on one stream` is not.
`compiled gradients` or `fused gradients` above a few per cent: that option is not used. `loop with
feed` above the step alone: the feed is the limit, and each line of `waits` is one to remove. The
exchange of gradients during the backward pass needs two GPUs and has no row.
"""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import cv2
import torch
from cyclegan_train.config import TrainConfig, TrainPrecision
from cyclegan_train.cyclegan import CycleGAN
from cyclegan_train.devices import in_turn
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cyclegan_batch.frames import SizeRequirements

from .measuring import Bench, Job, arithmetic, pictures, required

FAST: dict[str, Any] = {"precision": "bf16", "joint_identity": True, "fused_adam": True}

BASELINE = "fp32, tf32"


def jobs(bench: Bench) -> Iterator[Job]:
    baseline: list[float] = []

    def row(name: str, options: dict[str, Any]) -> dict[str, Any]:
        values = rate(bench, **options)
        if name == BASELINE:
            baseline.append(values["pictures_per_s"])
        if baseline:
            values["times_tf32"] = values["pictures_per_s"] / baseline[0]
        return values

    yield "recorded against eager", partial(recorded, bench)
    graphs, compiled, last, fused, one_stream = (
        {name: True}
        for name in ("cuda_graphs", "compile", "channels_last", "fused_norm", "one_stream")
    )
    bf16 = {"precision": "bf16"}
    rows: list[tuple[str, dict[str, Any]]] = [
        (BASELINE, {"word": "tf32"}),
        ("fp32, ieee", {"word": "ieee"}),
        ("bf16", bf16),
        ("bf16, joint", bf16 | {"joint_identity": True}),
        ("bf16, joint, fused Adam", FAST),
        ("+ graphs, one stream", FAST | graphs | one_stream),
        ("+ graphs", FAST | graphs),
        ("+ graphs, fused norm", FAST | graphs | fused),
        ("+ graphs, compiled", FAST | graphs | compiled),
        ("+ compiled", FAST | compiled),
        ("+ graphs, channels last", FAST | graphs | last),
        ("fp32, tf32, graphs", {"word": "tf32"} | graphs),
    ]
    if bench.cuda:  # in a dry run Triton's interpreter takes seconds
        rows.insert(8, ("+ graphs, fused norm, one stream", FAST | graphs | fused | one_stream))
    for name, options in rows:
        yield name, partial(row, name, options)
    yield "compiled gradients", partial(other_gradients, bench, compile=True)
    yield "fused gradients", partial(other_gradients, bench, fused_norm=True)
    yield "loop with feed, + graphs", partial(loop, bench)
    for batch in bench.some((4, 8), 0):
        yield "+ graphs", partial(row, "+ graphs", FAST | graphs | {"batch": batch})
    # The recipe for small images.
    small = FAST | graphs | {"lambda_identity": 0.0}
    if bench.cuda:
        small["netG"] = "resnet_6blocks"
    for batch in bench.some((1, 8, 16)):
        job = partial(rate, bench, batch=batch, half_size=True, **small)
        yield "ResNet-6 at 128², + graphs", job
    # This row is last because the section ``compiles`` has not compiled it.
    everything = FAST | graphs | compiled | last
    name = "+ graphs, compiled, channels last"
    yield name, partial(row, name, everything)


def seeded_model(bench: Bench, *, one_stream: bool = False, **options: Any) -> CycleGAN:
    """Return a model with seeded weights; in a dry run a tiny one.

    With ``one_stream`` a recorded step does not use two.
    """
    torch.manual_seed(0)
    random.seed(0)
    tiny = {"netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "netD": "n_layers", "n_layers_D": 1}
    if options.get("fused_norm"):
        required("triton")
    if not bench.cuda:
        # bf16 is slow on a CPU without it, and a dry run need not try it.
        options = tiny | options | {"precision": "fp32"}
    model = CycleGAN(TrainConfig(device=bench.device, **options))
    if one_stream:
        model.both = in_turn
    return model


def pairs(bench: Bench, batch: int, side: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Return eight pairs of smooth images on the device, in [-1, 1]."""
    draws = torch.Generator().manual_seed(1)
    side, count = side or bench.side * (1 if bench.cuda else 2), 8 if bench.cuda else 2
    coarse = torch.rand(2 * count * batch, 3, 8, 8, generator=draws) * 2 - 1
    fine = F.interpolate(coarse, size=side, mode="bicubic").clamp(-1, 1).to(bench.device)
    halves = fine.view(count, 2, batch, 3, side, side)
    return [(pair[0], pair[1]) for pair in halves]


def rate(
    bench: Bench, *, batch: int = 1, half_size: bool = False, word: str = "tf32", **options: Any
) -> dict[str, Any]:
    """Measure a step; ``word`` is the arithmetic of its float32 operations."""
    if "precision" not in options and word in get_args(TrainPrecision):
        options["precision"] = word
    if options.get("compile"):
        bench.forget_compiled()
    steps, warm = (40 if batch == 1 else 20, 8) if bench.cuda else (1, 0)
    begin = time.monotonic()
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    with arithmetic(word):
        model = seeded_model(bench, **options)
        data = pairs(bench, batch, bench.side // 2 if half_size and bench.cuda else None)
        for number in range(warm):
            model.step(*data[number % len(data)])
        bench.settle()
        first, start = time.monotonic() - begin, time.perf_counter()
        for number in range(steps):
            losses = model.step(*data[number % len(data)])
        launched = time.perf_counter() - start
        if bench.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return {
        "batch": batch,
        "ms": 1e3 * seconds / steps,
        "host_ms": 1e3 * launched / steps,
        "pictures_per_s": batch * steps / seconds,
        "first_s": first,
        "finite": all(bool(torch.isfinite(loss)) for loss in losses.values()),
        "cycle_A": float(losses["cycle_A"]),
        "gib": torch.cuda.max_memory_allocated() / 2**30 if bench.cuda else 0.0,
    }


def recorded(bench: Bench) -> dict[str, Any]:
    """Compare the losses of 24 steps in float32: two eager runs, and two recorded ones."""
    steps, data = 24 if bench.cuda else 2, pairs(bench, 1)

    def losses(**options: Any) -> Tensor:
        # With a pool of four, old images are drawn early.
        model = seeded_model(bench, pool_size=4, **options)
        rows = [list(model.step(*data[n % len(data)]).values()) for n in range(steps)]
        return torch.tensor([[float(loss) for loss in row] for row in rows])

    with arithmetic("ieee"):
        eager, again, graph = losses(), losses(), losses(cuda_graphs=True)
        one_stream = losses(cuda_graphs=True, one_stream=True)

    def apart(other: Tensor) -> str:
        difference = ((other - eager).abs() / eager.abs().clamp(min=1e-3)).amax(1)
        reported = sorted({0, 3, 4, 7, 15, steps - 1} & set(range(steps)))
        return " ".join(f"{float(difference[step]):.1e}" for step in reported)

    return {
        "eager again": apart(again),
        "recorded": apart(graph),
        "recorded on one stream": apart(one_stream),
    }


def other_gradients(bench: Bench, **options: Any) -> dict[str, Any]:
    """Compare the gradients of one generator, with ``options`` and without, in channels last."""
    gradients = []
    for more in ({}, options):
        bench.forget_compiled()
        with arithmetic("ieee"):
            model = seeded_model(bench, channels_last=True, **more)
            x = pairs(bench, 1)[0][0].contiguous(memory_format=torch.channels_last)
            (model.netG_A(x) * x).sum().backward()
        # Biases are left out: before a norm their gradients are rounding errors.
        gradients.append([w.grad for w in model.netG_A.parameters() if w.dim() > 1])
    apart = [
        float((one - other).norm() / one.norm())
        for one, other in zip(*gradients, strict=True)
        if one is not None and other is not None
    ]
    return {"largest, relative": max(apart), "weights": len(apart)}


def loop(bench: Bench) -> dict[str, Any]:
    """Measure steps whose images come from a folder through the project's own feed."""
    from cyclegan_train.batches import Feed, Sampler
    from cyclegan_train.data import Domain
    from cyclegan_train.settings import DataConfig

    side = bench.side * (1 if bench.cuda else 2)
    config = DataConfig(load_size=side * 9 // 8, crop_size=side)
    count, steps = (16, 60) if bench.cuda else (2, 2)
    with tempfile.TemporaryDirectory() as folder:
        domains = []
        for letter in "AB":
            (Path(folder) / letter).mkdir()
            for number, frame in enumerate(pictures(side, side, count)):
                cv2.imwrite(f"{folder}/{letter}/{number}.png", frame)
            sizes = SizeRequirements(4, 8)
            domain = Domain(Path(folder) / letter, config, channels=3, sizes=sizes, budget=2**30)
            domain.to(torch.device(bench.device))
            domains.append(domain)
        feed = Feed(*domains, Sampler(count, count), workers=2)
        model = seeded_model(bench, **FAST, cuda_graphs=True)
        for _ in range(6 if bench.cuda else 0):
            model.step(*feed.next())
        bench.settle()
        begin = time.perf_counter()
        for _ in range(steps):
            model.step(*feed.next())
        bench.settle()
        ms = 1e3 * (time.perf_counter() - begin) / steps
        waits = _waits(lambda: model.step(*feed.next())) if bench.cuda else []
        feed.close()
    return {"ms": ms, "waits": waits}


def _waits(step: Any) -> list[str]:
    """Return the source lines at which ten steps wait for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(10):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in seen)
    return [f"{line}: {count} in 10 steps" for line, count in lines.most_common(12)]
