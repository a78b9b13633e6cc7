"""Several processes train one model: two of them, over gloo, against one with both pictures.

torchrun starts both processes once (ranks.py); they do one piece of work after the other, and each
leaves what the tests read in a file.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cyclegan_train import distributed  # noqa: E402 (after the check for torch)
from cyclegan_train.batches import Sampler  # noqa: E402
from cyclegan_train.cyclegan import CycleGAN  # noqa: E402
from cyclegan_train.distributed import ALONE, Ranks, joined_ranks  # noqa: E402

from cyclegan_batch.errors import BackendError, InputError  # noqa: E402
from tests.conftest import ENVIRONMENT, REPOSITORY  # noqa: E402
from tests.train.ranks import MODES, RUNS, gradients_of, model_of, train  # noqa: E402
from tests.train.test_cyclegan import NETS, pictures, tiny, weights_of, without_effect  # noqa: E402
from tests.train.test_run import assert_same, fill, log_of, state_of  # noqa: E402

STEPS = 3
"""Of an epoch of the runs: seven pictures by two processes."""


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, and that no connection of another program takes meanwhile.

    The system gives its connections ports from 32768 on; a port below is taken by name only.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20000, 32000), 100 * count):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            break
    return ports


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return the folder of two processes that torchrun has started, and how they ended."""
    folder = tmp_path_factory.mktemp("ranks")
    fill(folder / "data" / "trainA", range(7))
    fill(folder / "data" / "trainB", range(10, 14))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "tests.train.ranks", folder]
    paths = os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(REPOSITORY)])
    done = subprocess.run(
        [*map(str, command), *map(str, free_ports(1 + len(RUNS)))],
        capture_output=True,
        text=True,
        timeout=240,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )
    return folder, done


@pytest.fixture(scope="module")
def folder(processes) -> Path:
    folder, done = processes
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


# One step


@pytest.mark.behaviour(41)
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_have_the_gradients_of_one_with_both_pictures(found, mode):
    model = model_of(mode, double=False)
    model.step(*pictures(0, batch=2))
    wanted = gradients_of(model)
    for mine in found:
        for net, named in mine[f"{mode} gradients"].items():
            for name, gradient in named.items():
                if not without_effect(net, name):
                    scale = wanted[net][name].abs().max().item()
                    assert scale > 1e-6
                    torch.testing.assert_close(
                        gradient, wanted[net][name], rtol=0, atol=1e-4 * scale
                    )


@pytest.mark.behaviour(41)
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_end_at_the_weights_of_one_with_both_pictures(found, mode):
    model = model_of(mode, double=True)
    for number in range(5):
        model.step(*(both.double() for both in pictures(number, batch=2)))
    for mine in found:
        for net, named in weights_of(model).items():
            for name, weight in named.items():
                if not without_effect(net, name):
                    other = mine[f"{mode} weights"][net][name]
                    assert (weight - other).abs().max() <= 1e-10, (net, name)


@pytest.mark.parametrize("mode", MODES)
def test_both_processes_have_the_same_bits(found, mode):
    one, other = (mine[f"{mode} weights"] for mine in found)
    assert_same(one, other)


def test_what_one_process_finds_all_know(found):
    assert [mine["any"] for mine in found] == [[True, False]] * 2


class Told(Ranks):
    """One of two processes that have the same gradients."""

    def mean_later(self, values):
        SENT.append((len(ARRIVED), values.numel()))
        return lambda: values


ARRIVED: list[torch.Tensor] = []
SENT: list[tuple[int, int]] = []
"""How many gradients had been added up when a piece was sent, and its size."""


def gradients_of_optimizer(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [weight.grad for weight in weights if weight.grad is not None]


@pytest.mark.behaviour(41)
@pytest.mark.parametrize(
    "changes",
    [
        {"joint_identity": True},
        {"accumulate": 2, "checkpoint_activations": True},
        {"gan_mode": "wgangp", "norm": "batch"},
    ],
    ids=str,
)
def test_each_gradient_is_exchanged_once_and_whole_while_others_are_computed(changes, monkeypatch):
    monkeypatch.setattr(distributed, "_PIECE", 2000)
    models = CycleGAN(tiny(**changes)), CycleGAN(tiny(**changes), Told(0, 2))
    models[1].load_state_dict(models[0].state_dict())
    for optimizer in (models[1].optimizer_G, models[1].optimizer_D):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for weight in weights:
            weight.register_post_accumulate_grad_hook(ARRIVED.append)

        def sent(optimizer, *_):
            sizes = [gradient.numel() for gradient in gradients_of_optimizer(optimizer)]
            assert sum(size for _, size in SENT) == sum(sizes)
            at = [count for count, _ in SENT]
            assert len(at) > 2
            early.append(at[0] / len(ARRIVED))
            ARRIVED.clear()
            SENT.clear()

        optimizer.register_step_pre_hook(sent)
    found = []
    for model in models:
        # With the fused operator biases before a norm have no gradient.
        model.netD_A.get_parameter("model.0.bias").requires_grad_(False)
        early: list[float] = []
        ARRIVED.clear()
        random.seed(1)
        torch.manual_seed(1)
        real_A, real_B = pictures(0, 2)
        losses = [model.step(real_A, real_B) for _ in range(2)]
        losses += [model.warm_up([name], real_A, real_B) for name in ("netD_B", "netG_A")]
        found.append([{name: loss.item() for name, loss in each.items()} for each in losses])
    assert found[0] == found[1]
    assert_same(models[0].state_dict(), models[1].state_dict())
    # Those of a step; in a warm-up of one of two networks the first piece may wait for the last.
    assert max(early[:4]) < 0.8


# The pictures


@pytest.mark.parametrize("batch_size", [1, 2])
def test_processes_share_the_pictures_of_an_epoch(batch_size):
    together = Sampler(24, 7, batch_size=3 * batch_size, seed=5)
    parts = [Sampler(24, 7, batch_size=batch_size, seed=5, rank=r, size=3) for r in range(3)]
    for epoch in (1, 2):
        seen = []
        for position in range(together.batches):
            drawn = [draw for part in parts for draw in part.batch(epoch, position)]
            assert drawn == together.batch(epoch, position)
            seen += [draw.a for draw in drawn]
        assert sorted(seen) == list(range(24))
    assert {part.batches for part in parts} == {together.batches}


# A run


@pytest.mark.behaviour(40)
def test_a_run_of_two_processes_that_one_stopped_goes_on_bit_for_bit(folder, found):
    for mine in found:
        outcome, _ = mine["stopped_run"]
        assert (outcome.finished, outcome.epoch, outcome.step) == (False, 2, 4)
        assert mine["resumed_run"][0].finished
    assert_same(state_of(folder / "stopped"), state_of(folder / "whole"))
    assert log_of(folder / "stopped") == log_of(folder / "whole")
    ((own, pools),) = state_of(folder / "whole")["others"]
    assert own["random"] != state_of(folder / "whole")["random"]
    assert [len(pool) for pool in pools.values()] == [3, 3]


@pytest.mark.behaviour(42)
def test_only_the_first_process_writes_and_speaks(folder, found):
    assert [mine["whole_run"][0].first for mine in found] == [True, False]
    assert [mine["whole_run"][0].step for mine in found] == [3 * STEPS] * 2
    assert found[0]["whole_run"][1]
    assert not found[1]["whole_run"][1]
    events = log_of(folder / "whole")
    assert [e["step"] for e in events if e["event"] == "losses"] == [2, 3, 5, 6, 8, 9]


def test_processes_ask_each_other_now_and_then_and_stop_together(folder, found):
    """The second one's wish after four steps is heard at the next question, and saved at once."""
    (one, asked), (other, asked_too) = (mine["late_run"] for mine in found)
    assert (one.finished, other.finished) == (False, False)
    assert one.step == other.step == state_of(folder / "late")["model"]["steps"]
    assert asked == asked_too
    assert 4 <= one.step <= 6
    # At the first steps there is no rate to go by; then at every second one.
    assert asked <= 2 + one.step // 2 + 1


@pytest.mark.behaviour(53)
def test_early_stop_ends_all_processes_together_and_they_go_on_together(folder, found):
    """Only the first process validates; two epochs after the best one, then three."""
    for mine in found:
        for name, epochs in (("early_run", 4), ("ended_run", 4), ("longer_run", 5)):
            outcome, _ = mine[name]
            assert (outcome.finished, outcome.epoch) == (True, epochs), name
            assert outcome.step == epochs * STEPS
    first, other = (mine["early_run"][1] for mine in found)
    assert "early_stop = 2: no better score by validation for 2 epochs" in first
    assert not other
    validated = [e["epoch"] for e in log_of(folder / "early") if e["event"] == "validation"]
    assert validated == [1, 2, 3, 4, 5]


def test_all_processes_follow_the_clock_of_the_first(folder, found):
    (one, _), (other, _) = (mine["minutes_run"] for mine in found)
    assert one.finished
    assert other.finished
    assert (one.epoch, one.step) == (other.epoch, other.step)
    assert [event for event in log_of(folder / "minutes") if event["event"] == "schedule"]
    assert state_of(folder / "minutes")["clock"]["schedule"]


def test_a_loss_that_is_no_number_in_one_process_stops_both_errors(folder, found):
    for mine in found:
        assert mine["broken_run"].startswith("DivergedError: the training broke at step 2: cycle_A")
    assert state_of(folder / "broken")["model"]["steps"] == 0


def test_a_process_that_fails_leaves_no_other_waiting_errors(found):
    assert found[1]["failed_run"] == "InputError: 3.png: could be read when the run began"
    assert "BackendError: process 0 of 2 cannot go on: another one has" in found[0]["failed_run"]
    assert found[0]["failed_run seconds"] < 60


def test_another_number_of_processes_errors(folder, found):
    with pytest.raises(InputError, match=r"is of 2 processes, .* and 1 would resume it; start 2"):
        train(folder, "whole", resume=True)


def test_torchrun_trains_by_the_command_line(processes, folder, found):
    _, done = processes
    assert [mine["command line"] for mine in found] == [0, 0]
    assert done.stderr.count("trained for 3 steps") == 1
    assert len(state_of(folder / "command")["others"]) == 1


# What cannot be


def test_processes_that_do_not_come_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(BackendError, match=r"cannot join 2 processes, .* start them with torchrun"),
        joined_ranks("cpu"),
    ):
        pass


def test_one_gpu_for_several_processes_errors():
    with pytest.raises(ValueError, match="device = 'cuda:1' is one GPU for 2 processes; use cuda"):
        CycleGAN(tiny(device="cuda:1"), Ranks(0, 2))


def test_syncbatch_over_processes_on_the_cpu_errors():
    with pytest.raises(ValueError, match="'syncbatch' is for several GPUs"):
        CycleGAN(tiny(norm="syncbatch"), Ranks(0, 2))


def sync_steps(device: str, ranks: Ranks) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    norm = "syncbatch" if ranks.size > 1 else "batch"
    model = CycleGAN(tiny(norm=norm, pool_size=0, device=device), ranks)
    for net in NETS:
        getattr(model, net).double()
    for number in range(3):
        A, B = (both.double() for both in pictures(number, batch=2))
        own = slice(ranks.rank, ranks.rank + 1) if ranks.size > 1 else slice(2)
        model.step(A[own], B[own])
    return {n: {k: w.cpu() for k, w in named.items()} for n, named in weights_of(model).items()}


def sync_work(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined_ranks("cuda") as ranks:
        torch.save(sync_steps("cuda", ranks), folder / f"{rank}.pt")


@pytest.mark.needs_cuda
@pytest.mark.needs("two-gpus")
def test_syncbatch_on_two_gpus_is_batchnorm_over_both_pictures(tmp_path):
    (port,) = free_ports(1)
    torch.multiprocessing.spawn(sync_work, (tmp_path, port), nprocs=2)
    wanted = sync_steps("cuda:0", ALONE)
    for rank in (0, 1):
        for net, named in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            for name, weight in named.items():
                assert (weight - wanted[net][name]).abs().max() <= 1e-9, (net, name)
