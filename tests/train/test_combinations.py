"""Options of a step together: each was made by itself, and a run may have them all."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest

from tests.needs import package

torch = package("torch")

from cyclegan_train import CycleGAN  # noqa: E402 (after the check for torch)
from cyclegan_train.cyclegan import NETWORKS  # noqa: E402

from tests.train.test_cyclegan import assert_same_bits, pictures, tiny  # noqa: E402

QUALITY: dict[str, Any] = {
    "lambda_geometry": 2.0,
    "lambda_temporal": 1.0,
    "diffaugment": "color,translation,cutout",
}
THRIFTY: dict[str, Any] = {"accumulate": 2, "checkpoint_activations": True}
RECORDED: dict[str, Any] = {
    "lambda_temporal": 1.0,
    "diffaugment": "color,translation,cutout",
    "accumulate": 2,
    "cuda_graphs": True,
}

TOGETHER: list[dict[str, Any]] = [
    QUALITY | THRIFTY | {"netG": "unet_32", "ngf": 2, "dropout": True, "lr_policy": "plateau"},
    QUALITY | THRIFTY | {"netG": "mobile_resnet_1blocks", "netD": "pixel", "precision": "fp16"},
    QUALITY
    | THRIFTY
    | {"norm": "none", "lambda_identity": 0.0, "input_nc": 1, "channels_last": True},
    QUALITY | THRIFTY | {"upsample": "resize", "gan_mode": "wgangp", "joint_identity": True},
    RECORDED | {"norm": "batch", "gan_mode": "wgangp"},
    RECORDED | {"precision": "bf16", "fused_adam": True, "pool_size": 0, "ema": 0.9},
]


def small(**changes: Any) -> CycleGAN:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    return CycleGAN(tiny(**{"netD": "n_layers", "n_layers_D": 1, "pool_size": 3} | changes))


def steps(model: CycleGAN, numbers: range) -> list[dict[str, float]]:
    found = []
    for number in numbers:
        A, B = pictures(number, 2, side=32 if model.config.netG == "unet_32" else 16)
        found.append(model.optimize_parameters(A[:, : model.config.input_nc], B))
    return found


@pytest.mark.behaviour(40)
@pytest.mark.parametrize("changes", TOGETHER, ids=str)
def test_a_step_with_many_options_trains_and_goes_on_bit_for_bit(changes):
    model = small(**changes)
    losses = steps(model, range(2))
    model.update_learning_rate(1.0)
    state = copy.deepcopy(model.state_dict())
    draws = random.getstate(), torch.get_rng_state()
    wanted = steps(model, range(2, 4))
    assert all(math.isfinite(loss) for each in losses + wanted for loss in each.values())
    resumed = small(**changes)
    resumed.load_state_dict(state)
    random.setstate(draws[0])
    torch.set_rng_state(draws[1])
    assert steps(resumed, range(2, 4)) == wanted
    assert_same_bits(resumed.state_dict(), model.state_dict())


@pytest.mark.behaviour(41)
@pytest.mark.parametrize(
    "faster",
    [{"accumulate": 2}, {"joint_identity": True}, {"channels_last": True}, {"fused_adam": True}],
    ids=str,
)
def test_what_saves_time_or_memory_changes_only_the_rounding_of_all_losses(faster):
    found = []
    for more in ({}, faster):
        model = small(**QUALITY, **more)
        for net in NETWORKS:
            getattr(model, net).double()
        random.seed(1)
        torch.manual_seed(1)
        found.append(steps(model, range(2)))
    for wanted, losses in zip(*found, strict=True):
        assert losses == pytest.approx(wanted, rel=1e-8)
