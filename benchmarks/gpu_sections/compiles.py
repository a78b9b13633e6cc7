"""Compile, in the background, what `compiled` and `training` measure; they find it in the cache.

The rows hold the seconds that a user would wait before a translation or a training. If they are
more than half a minute, compiling stays an option for long runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from . import compiled, training
from .measuring import Bench, Job


def jobs(bench: Bench) -> Iterator[Job]:
    first, *others = bench.some(compiled.MODES)
    yield "generator, default, batch 8", partial(generator, bench, *first)
    for option in bench.some(("compile", "fused_norm")):
        yield f"training step, {option}", partial(step, bench, option)
    for mode, batch in others:
        yield f"generator, {mode}, batch {batch}", partial(generator, bench, mode, batch)


def generator(bench: Bench, mode: str, batch: int) -> dict[str, Any]:
    begin, count = time.monotonic(), batch if bench.cuda else 1
    compiled.generator(bench, mode)(bench.frames(count, bench.side, bench.side))
    bench.settle()
    return {"seconds": time.monotonic() - begin}


def step(bench: Bench, option: str) -> dict[str, Any]:
    begin = time.monotonic()
    model = training.seeded_model(bench, **training.FAST | {option: True})
    model.step(*training.pairs(bench, 1)[0])
    bench.settle()
    return {"seconds": time.monotonic() - begin}
