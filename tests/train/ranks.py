"""One of two processes that torchrun starts: it trains by the command line, then as a library.

    torchrun --standalone --nproc-per-node=2 -m tests.train.ranks FOLDER PORT ...

Each process writes its results into FOLDER, where test_distributed.py reads them. One torchrun
serves all tests, since every further process costs an import of torch.
"""

from __future__ import annotations

import os
import random
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cyclegan_train import run
from cyclegan_train.config import TrainConfig
from cyclegan_train.cyclegan import CycleGAN
from cyclegan_train.distributed import ALONE, Ranks, joined_ranks
from cyclegan_train.settings import settings_for
from cyclegan_train.validation import Validation

from cyclegan_batch.errors import CycleganBatchError, InputError
from tests.conftest import SMALL
from tests.train.test_cyclegan import NETS, pictures, tiny, weights_of
from tests.train.test_run import TINY

MODES = ("lsgan", "vanilla")


def model_of(gan_mode: str, ranks: Ranks = ALONE, *, double: bool) -> CycleGAN:
    torch.manual_seed(0)
    config: TrainConfig = tiny(gan_mode=gan_mode, pool_size=0)
    model = CycleGAN(config, ranks)
    for net in NETS:
        getattr(model, net).to(torch.float64 if double else torch.float32)
    return model


def gradients_of(model: CycleGAN) -> dict[str, dict[str, torch.Tensor]]:
    return {n: {k: w.grad for k, w in named.items()} for n, named in weights_of(model).items()}


def take_steps(ranks: Ranks) -> dict[str, Any]:
    """Return the gradients of the first step, and the weights after five in float64."""
    found: dict[str, Any] = {}
    for mode in MODES:
        model = model_of(mode, ranks, double=False)
        model.step(*(both[ranks.rank : ranks.rank + 1] for both in pictures(0, batch=2)))
        found[f"{mode} gradients"] = gradients_of(model)
        model = model_of(mode, ranks, double=True)
        for number in range(5):
            A, B = (both[ranks.rank : ranks.rank + 1] for both in pictures(number, batch=2))
            model.step(A.double(), B.double())
        found[f"{mode} weights"] = weights_of(model)
    return found


def train(folder: Path, name: str, *, stop=lambda: False, resume=False, **changes):
    values = changes if resume else TINY | changes
    settings = settings_for(folder / name, values, resume=resume)
    told: list[str] = []
    outcome = run.train(folder / "data", folder / name, settings, stop=stop, say=told.append)
    return outcome, told


def after(steps: int):
    asked = iter(range(10**6))
    return lambda: next(asked) >= steps


def whole_run(folder: Path, rank: int) -> Any:
    return train(folder, "whole", dropout=True)


def stopped_run(folder: Path, rank: int) -> Any:
    # ``stop`` is also called for each of the 7 + 4 images that are read.
    stop = after(11 + 4) if rank == 1 else (lambda: False)
    run._POLL_STEPS = 1
    try:
        return train(folder, "stopped", dropout=True, stop=stop)
    finally:
        run._POLL_STEPS = 20


def late_run(folder: Path, rank: int) -> Any:
    """Poll every second step; both must poll equally often, or one would wait for ever."""
    asked = []
    real = Ranks.greatest

    def greatest(self, values):
        asked.append(values)
        return real(self, values)

    Ranks.greatest = greatest  # type: ignore[method-assign]
    run._POLL_SECONDS = 1e9
    run._POLL_STEPS = 2
    try:
        stop = after(11 + 4) if rank == 1 else (lambda: False)
        outcome, _ = train(folder, "late", stop=stop, samples=0, save_latest_every=1e-3 + rank)
        return outcome, sum(len(values) == 3 for values in asked)
    finally:
        Ranks.greatest = real  # type: ignore[method-assign]
        run._POLL_STEPS, run._POLL_SECONDS = 20, 1.0


def resumed_run(folder: Path, rank: int) -> Any:
    return train(folder, "stopped", resume=True)


def broken_run(folder: Path, rank: int) -> str:
    real = CycleGAN.step

    def step(self, *pictures):
        losses = real(self, *pictures)
        if rank == 1 and self.steps == 2:
            losses["cycle_A"] = losses["cycle_A"] * float("nan")
        return losses

    CycleGAN.step = step  # type: ignore[method-assign]
    try:
        train(folder, "broken", samples=0)
    except CycleganBatchError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        CycleGAN.step = real  # type: ignore[method-assign]
    return ""


def failed_run(folder: Path, rank: int) -> str:
    real = run.Feed.next

    def next_(self):
        if rank == 1 and self.sampler.position == 1:
            raise InputError("3.png: could be read when the run began")
        return real(self)

    run.Feed.next = next_  # type: ignore[method-assign]
    try:
        train(folder, "failed", samples=0)
    except CycleganBatchError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        run.Feed.next = real  # type: ignore[method-assign]
    return ""


def early_run(folder: Path, rank: int, *, resume: bool = False, patience: int = 2) -> Any:
    """Train with scores that are best in the second epoch, which the first process alone has."""
    due, scores = Validation.due, Validation.scores
    Validation.due = lambda self, epoch, epochs: True  # type: ignore[method-assign]
    Validation.scores = (  # type: ignore[method-assign]
        lambda self, model: {"AtoB": {"unpaired": abs(model.epoch - 2)}}
    )
    try:
        return train(folder, "early", resume=resume, n_epochs=9, samples=0, early_stop=patience)
    finally:
        Validation.due, Validation.scores = due, scores  # type: ignore[method-assign]


def ended_run(folder: Path, rank: int) -> Any:
    return early_run(folder, rank, resume=True)


def longer_run(folder: Path, rank: int) -> Any:
    return early_run(folder, rank, resume=True, patience=3)


def minutes_run(folder: Path, rank: int) -> Any:
    """Train for 1.2 seconds, most of them at a falling rate; each process has its own clock."""
    values = {"minutes": 0.02, "n_epochs": 1, "n_epochs_decay": 3, "samples": 0, "val_images": 0}
    return train(folder, "minutes", **values)


# The one in which a process fails comes last: the other one waits until that process has ended.
RUNS = (
    *(whole_run, stopped_run, resumed_run, late_run, broken_run),
    *(early_run, ended_run, longer_run, minutes_run, failed_run),
)


def command_line(folder: Path) -> int | str | None:
    """Run ``cyclegan-batch train`` as torchrun's ``-m cyclegan_batch`` does; return its code."""
    before = sys.argv
    sys.argv = ["", "train", str(folder / "data"), str(folder / "command"), *SMALL]
    sys.argv += ["--n-epochs=1", "--samples=0"]
    try:
        runpy.run_module("cyclegan_batch", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    return 0


def main(folder: Path, ports: list[str]) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {"command line": command_line(folder)}
    # The later runs need a store of their own each: torchrun's serves only the first.
    del os.environ["TORCHELASTIC_USE_AGENT_STORE"]

    def meet() -> None:
        os.environ["MASTER_PORT"] = ports.pop()

    meet()
    with joined_ranks("cpu") as ranks:
        found |= take_steps(ranks)
        found["any"] = [ranks.any(rank == 1), ranks.any(False)]
    for each in RUNS:
        meet()
        begin = time.monotonic()
        found[each.__name__] = each(folder, rank)
        found[f"{each.__name__} seconds"] = time.monotonic() - begin
        random.seed(rank + 99)
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
