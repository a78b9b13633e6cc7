"""A training whose generators run with the fused operator, in Triton's interpreter."""

from __future__ import annotations

import copy
import random
import sys

import pytest

from tests.conftest import INTERPRETED
from tests.needs import package

torch = package("torch")
package("triton")

from cyclegan_train import CycleGAN, TrainConfig  # noqa: E402

from cyclegan_batch import models  # noqa: E402
from cyclegan_batch.errors import BackendUnavailableError  # noqa: E402
from cyclegan_batch.models import fused  # noqa: E402

interpreted = pytest.mark.skipif(not INTERPRETED, reason="Triton compiles here")


def tiny(**changes) -> TrainConfig:
    defaults = {
        "netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "netD": "n_layers", "n_layers_D": 1,
        "device": "cpu",
    }  # fmt: skip
    return TrainConfig(**(defaults | changes))


def seeded(**changes) -> CycleGAN:
    torch.manual_seed(0)
    random.seed(0)
    return CycleGAN(tiny(**changes))


def pictures(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(step)
    A, B = torch.rand(2, 1, 3, 16, 16, generator=draws) * 2 - 1
    return A, B * 0.5


def weights_of(model: CycleGAN) -> list[torch.Tensor]:
    """Return the generators' weights without biases: most of them have no effect."""
    both = (*model.netG_A.parameters(), *model.netG_B.parameters())
    return [weight for weight in both if weight.dim() > 1]


@interpreted
def test_a_step_with_the_fused_operator_is_the_plain_one_but_for_rounding():
    plain, trained = (
        seeded(joint_identity=True, fused_norm=fuses, ema=0.9) for fuses in (False, True)
    )
    assert isinstance(trained.netG_A, fused.FusedResnet)
    assert all(map(torch.equal, weights_of(trained), weights_of(plain)))
    wanted = plain.optimize_parameters(*pictures(0))
    assert trained.optimize_parameters(*pictures(0)) == pytest.approx(wanted, rel=1e-4)
    for found, weight in zip(weights_of(trained), weights_of(plain), strict=True):
        assert (found.grad - weight.grad).norm() < 1e-3 * weight.grad.norm()


@interpreted
def test_a_state_goes_from_the_plain_networks_to_the_fused_ones_and_back():
    state = None
    for number, fuses in enumerate((False, True, False)):
        model = seeded(fused_norm=fuses, lambda_identity=0.0)
        if state is not None:
            model.load_state_dict(state)
            found = model.state_dict()["networks"]
            for net, weights in state["networks"].items():
                assert list(found[net]) == list(weights)
                assert all(torch.equal(found[net][name], weights[name]) for name in weights)
        model.optimize_parameters(*pictures(number))
        state = copy.deepcopy(model.state_dict())
        assert state["steps"] == number + 1


def test_without_cuda_it_errors(monkeypatch):
    monkeypatch.setattr(fused, "runs_on", lambda device: False)
    with pytest.raises(ValueError, match="fused_norm runs on CUDA, and this is a training on cpu"):
        CycleGAN(tiny(fused_norm=True))


def test_without_triton_it_errors(monkeypatch):
    monkeypatch.setitem(sys.modules, "cyclegan_batch.models.fused", None)
    monkeypatch.delattr(models, "fused")
    with pytest.raises(BackendUnavailableError, match=r"fused_norm needs Triton: .*; install tri"):
        CycleGAN(tiny(fused_norm=True))


@interpreted
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dropout": True}, "it has dropout, which comes between a norm and its border"),
        ({"netG": "unet_32"}, "unet_32 is no plain ResNet"),
        ({"norm": "batch"}, "its norm is 'batch'"),
        ({"upsample": "resize"}, "it upsamples by 'resize'"),
    ],
    ids=str,
)
def test_generators_that_cannot_be_fused_error(changes, reason):
    with pytest.raises(ValueError, match=f"fused_norm does not support the generator: {reason}"):
        CycleGAN(tiny(fused_norm=True, **changes))
