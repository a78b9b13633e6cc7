"""The training step against a straight-line transcription of its formulas, and all around it."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from cyclegan_train import CycleGAN, TrainConfig
from cyclegan_train.batches import Feed, Sampler
from cyclegan_train.config import GanMode
from cyclegan_train.cyclegan import generator_config, learning_rate_factor
from cyclegan_train.data import Domain
from cyclegan_train.devices import float32_as
from cyclegan_train.distributed import Means, Ranks
from cyclegan_train.graphs import DevicePool
from cyclegan_train.losses import GANLoss, gradient_penalty
from cyclegan_train.networks import (
    NLayerDiscriminator,
    PixelDiscriminator,
    discriminator_from_config,
    least_side,
)
from cyclegan_train.pool import ImagePool
from cyclegan_train.settings import DataConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cyclegan_batch.errors import BackendError, BackendUnavailableError
from cyclegan_batch.models.networks import generator_from_config
from tests.conftest import REPOSITORY
from tests.synthesis import formulas

TRAIN = REPOSITORY / "train"
NETS = ("netG_A", "netG_B", "netD_A", "netD_B")
LOSSES = ["D_A", "G_A", "cycle_A", "idt_A", "D_B", "G_B", "cycle_B", "idt_B"]


@pytest.fixture(autouse=True)
def _seeded():
    # Tiny networks: a second thread would mostly wait for the first.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)


def tiny(**changes) -> TrainConfig:
    defaults = {"netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "device": "cpu"}
    return TrainConfig(**(defaults | changes))


def pictures(step: int, batch: int = 1, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(step)
    A, B = torch.rand(2, batch, 3, side, side, generator=draws) * 2 - 1
    return A, B * 0.5


def weights_of(model: CycleGAN) -> dict[str, dict[str, torch.Tensor]]:
    return {net: dict(getattr(model, net).named_parameters()) for net in NETS}


def without_effect(net: str, name: str) -> bool:
    """Return whether a weight is a bias before an InstanceNorm.

    The norm takes it away again: its gradient is 0 on paper and rounding noise in practice, which
    Adam blows up to full steps.
    """
    last = {"netG": "model.18.bias", "netD": "model.11.bias"}[net[:4]]
    first = {"netG": "", "netD": "model.0.bias"}[net[:4]]
    return name.endswith("bias") and name not in (first, last)


def assert_same_weights(model: CycleGAN, wanted, atol: float) -> None:
    for net, named in weights_of(model).items():
        for name, weight in named.items():
            if not without_effect(net, name):
                assert (weight - wanted[net][name]).abs().max() <= atol, (net, name)


def assert_same_bits(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, others in zip(one, other, strict=True):
            assert_same_bits(mine, others)
    else:
        assert one == other


def transcription(model: CycleGAN, seed: int = 0, **changes) -> formulas.Step:
    return formulas.Step(weights_of(model), n_blocks=1, draws=random.Random(seed), **changes)


def test_importing_the_package_loads_no_torch():
    code = "import cyclegan_train, sys; assert cyclegan_train.TrainConfig().ngf == 64; "
    code += "assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TRAIN, TRAIN.parent)))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


# The step


@pytest.mark.behaviour(41)
@pytest.mark.parametrize("gan_mode", ["lsgan", "vanilla", "wgangp"])
def test_one_step_has_the_losses_gradients_and_weights_of_the_formulas(gan_mode):
    model = CycleGAN(tiny(gan_mode=gan_mode, lambda_A=8.0, lambda_B=12.0))
    step = transcription(model, gan_mode=gan_mode, lambda_A=8.0, lambda_B=12.0)
    A, B = pictures(0)
    torch.manual_seed(5)
    wanted = step(A, B)
    torch.manual_seed(5)
    losses = model.optimize_parameters(A, B)
    assert list(losses) == LOSSES
    assert losses == pytest.approx(wanted, rel=1e-5)
    gradients = iter([*step.gradients_G, *step.gradients_D])
    for net, named in weights_of(model).items():
        for name, weight in named.items():
            gradient = next(gradients)
            if not without_effect(net, name):
                scale = gradient.abs().max().item()
                # Wasserstein scores count by their difference: what D adds to both is free.
                assert scale > 1e-6 or (gan_mode, name) == ("wgangp", "model.11.bias"), (net, name)
                torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-4 * scale)
    # A rounding that flips a tiny gradient's sign moves that weight by 2 × lr, and no further.
    assert_same_weights(model, step.w, atol=2e-6)


@pytest.mark.behaviour(41)
@pytest.mark.parametrize(
    "changes",
    [{}, {"pool_size": 2}, {"gan_mode": "vanilla", "pool_size": 3}, {"gan_mode": "wgangp"}],
    ids=str,
)
def test_twenty_steps_end_at_the_weights_of_the_formulas(changes):
    """In float64, where no rounding is so large that it turns a step of Adam around."""
    model = CycleGAN(tiny(**changes))
    for net in NETS:
        getattr(model, net).double()
    step = transcription(model, **changes)
    begin = {net: {n: w.clone() for n, w in named.items()} for net, named in step.w.items()}
    for number in range(20):
        A, B = (picture.double() for picture in pictures(number))
        torch.manual_seed(number)
        wanted = step(A, B)
        torch.manual_seed(number)
        assert model.optimize_parameters(A, B) == pytest.approx(wanted, rel=1e-8)
    assert_same_weights(model, step.w, atol=1e-10)
    for net, named in weights_of(model).items():
        for name, weight in named.items():
            if name.endswith("weight"):
                # Five full steps of Adam, which is ten million times more.
                assert (weight - begin[net][name]).abs().max() > 1e-3, (net, name)


@pytest.mark.behaviour(41)
def test_the_pool_for_the_first_discriminator_is_asked_first():
    model = CycleGAN(tiny(pool_size=1))
    asked = []
    for name in ("fake_A_pool", "fake_B_pool"):
        pool = getattr(model, name)
        query = pool.query
        pool.query = lambda x, name=name, query=query: asked.append(name) or query(x)
    for number in range(3):
        model.optimize_parameters(*pictures(number))
    assert asked == ["fake_B_pool", "fake_A_pool"] * 3


@pytest.mark.behaviour(41)
@pytest.mark.parametrize("netD", ["basic", "pixel"])
def test_both_discriminators_move(netD):
    model = CycleGAN(tiny(netD=netD))
    before = {
        net: [weight.clone() for weight in named.values()]
        for net, named in weights_of(model).items()
    }
    model.optimize_parameters(*pictures(0))
    for net, named in weights_of(model).items():
        for (name, weight), old in zip(named.items(), before[net], strict=True):
            if name.endswith("weight"):
                assert not torch.equal(weight, old), (net, name)


@pytest.mark.behaviour(41)
def test_the_generators_step_leaves_no_gradient_in_the_discriminators():
    model = CycleGAN(tiny())
    seen = []
    model.optimizer_G.register_step_pre_hook(
        lambda *_: seen.append([w.grad for net in ("netD_A", "netD_B")
                                for w in getattr(model, net).parameters()])
    )  # fmt: skip
    model.optimize_parameters(*pictures(0))
    assert seen[0]
    assert all(gradient is None for gradient in seen[0])
    assert all(w.requires_grad for w in model.netD_A.parameters())


@pytest.mark.parametrize("lambda_identity", [0.0, 0.5])
def test_without_identity_loss_its_forwards_are_left_out(lambda_identity):
    model = CycleGAN(tiny(lambda_identity=lambda_identity))
    calls = Counter()
    for net in ("netG_A", "netG_B"):
        getattr(model, net).register_forward_hook(lambda *_, net=net: calls.update([net]))
    losses = model.optimize_parameters(*pictures(0))
    assert calls == Counter(netG_A=3 if lambda_identity else 2, netG_B=3 if lambda_identity else 2)
    assert (losses["idt_A"] == 0) == (lambda_identity == 0)
    assert (losses["idt_B"] == 0) == (lambda_identity == 0)


@pytest.mark.behaviour(41)
@pytest.mark.parametrize(
    "changes",
    [{"joint_identity": True}, {"channels_last": True}, {"fused_adam": True}],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_what_makes_it_faster_changes_nothing_but_rounding(changes, batch):
    plain, fast = CycleGAN(tiny()), CycleGAN(tiny(**changes))
    for net in NETS:
        getattr(fast, net).load_state_dict(getattr(plain, net).state_dict())
    for number in range(3):
        A, B = pictures(number, batch)
        wanted = plain.optimize_parameters(A, B)
        assert fast.optimize_parameters(A, B) == pytest.approx(wanted, rel=1e-4)
    assert_same_weights(fast, weights_of(plain), atol=5e-6)


@pytest.mark.behaviour(41)
@pytest.mark.parametrize(
    "changes",
    [{}, {"joint_identity": True}, {"cuda_graphs": True}],
    ids=str,
)
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_computed_in_parts_changes_nothing_but_rounding(changes, parts):
    small = {"pool_size": 6, **changes}
    whole, accumulating = CycleGAN(tiny(**small)), CycleGAN(tiny(accumulate=parts, **small))
    for net in NETS:
        # In float64, where a wrong gradient stands out from the rounding.
        getattr(whole, net).double()
        getattr(accumulating, net).double()
    accumulating.load_state_dict(whole.state_dict())
    sizes: list[int] = []
    accumulating.netG_A.register_forward_hook(
        lambda net, inputs, out: sizes.append(len(out) * torch.is_grad_enabled())
    )
    found = []
    for model in (whole, accumulating):
        random.seed(1)
        found.append([model.optimize_parameters(*pictures(n, 4)) for n in range(3)])
        for nets in (NETS[:2], NETS[2:]):
            warm = model.warm_up(nets, *pictures(3, 4))
            found[-1].append({name: float(loss) for name, loss in warm.items()})
    for ours, wanted in zip(*found, strict=True):
        assert ours == pytest.approx(wanted, rel=1e-9)
    assert_same_weights(accumulating, weights_of(whole), atol=1e-9)
    # The pools have drawn the same images in the same order.
    for one, other in zip(
        whole.state_dict()["fake_A_pool"], accumulating.state_dict()["fake_A_pool"], strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert max(sizes) == 4 // parts * (2 if changes.get("joint_identity") else 1)


def test_a_batch_without_equal_parts_errors():
    model = CycleGAN(tiny(accumulate=2))
    with pytest.raises(ValueError, match="a batch of 3 images has no 2 equal parts"):
        model.optimize_parameters(*pictures(0, 3))


@pytest.mark.behaviour(41)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": True},
        {"netG": "unet_32", "dropout": True},
        {"netG": "mobile_resnet_1blocks", "joint_identity": True},
        {"precision": "bf16", "gan_mode": "wgangp", "accumulate": 2},
    ],
    ids=str,
)
def test_a_second_forward_pass_in_place_of_memory_changes_no_bit(changes):
    plain, thrifty = (
        CycleGAN(tiny(**changes)),
        CycleGAN(tiny(checkpoint_activations=True, **changes)),
    )
    thrifty.load_state_dict(plain.state_dict())
    calls: Counter[bool] = Counter()
    # Not after a pass: the second one ends where the last tensor that is needed has been computed.
    thrifty.netG_A.register_forward_pre_hook(lambda *_: calls.update([torch.is_grad_enabled()]))
    found = []
    for model in (plain, thrifty):
        random.seed(1)
        torch.manual_seed(1)
        found.append([model.optimize_parameters(*pictures(n, 2)) for n in range(3)])
    assert found[0] == found[1]
    assert_same_bits(plain.state_dict(), thrifty.state_dict())
    passes = 2 if changes.get("joint_identity") else 3
    assert calls[True] == 2 * passes * 3 * changes.get("accumulate", 1)


def test_the_second_moment_follows_its_key():
    model = CycleGAN(tiny(beta2=0.9))
    assert model.optimizer_G.defaults["betas"] == model.optimizer_D.defaults["betas"] == (0.5, 0.9)
    assert CycleGAN(tiny()).optimizer_G.defaults["betas"] == (0.5, 0.999)


def test_the_joint_forward_is_one_call():
    model = CycleGAN(tiny(joint_identity=True))
    calls = []
    model.netG_A.register_forward_hook(lambda net, inputs, out: calls.append(len(out)))
    model.optimize_parameters(*pictures(0))
    assert calls == [2, 1]


@pytest.mark.parametrize("changes", [{"norm": "batch"}, {"dropout": True}], ids=str)
def test_the_joint_forward_is_left_out_where_it_would_change_the_result(changes):
    model = CycleGAN(tiny(joint_identity=True, **changes))
    calls = []
    model.netG_A.register_forward_hook(lambda net, inputs, out: calls.append(len(out)))
    model.optimize_parameters(*pictures(0))
    assert calls == [1, 1, 1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near(precision):
    exact, half = (CycleGAN(tiny(precision=p)) for p in ("fp32", precision))
    for net in NETS:
        getattr(half, net).load_state_dict(getattr(exact, net).state_dict())
    dtypes = set()
    half.netG_A.model[1].register_forward_hook(lambda net, inputs, out: dtypes.add(out.dtype))
    wanted = exact.optimize_parameters(*pictures(0))
    found = half.optimize_parameters(*pictures(0))
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert found == pytest.approx(wanted, rel=0.02, abs=0.01)
    assert found != wanted
    assert all(weight.dtype == torch.float32 for weight in half.netG_A.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"netG": "unet_32", "ngf": 2},
        {"netG": "mobile_resnet_2blocks"},
        {"upsample": "resize"},
        {"norm": "batch"},
        {"norm": "none", "netD": "n_layers", "n_layers_D": 1},
        {"dropout": True},
        {"init_type": "orthogonal"},
        {"input_nc": 1, "output_nc": 2, "lambda_identity": 0.0},
    ],
    ids=str,
)
def test_every_kind_of_network_learns(changes):
    """That the cycles close better after ten steps on one pair is the least."""
    model = CycleGAN(tiny(**changes))
    A, B = pictures(0)
    A, B = A[:, : model.config.input_nc], B[:, : model.config.output_nc]
    cycles = []
    for _ in range(10):
        losses = model.optimize_parameters(A, B)
        assert all(math.isfinite(loss) for loss in losses.values())
        cycles.append(losses["cycle_A"] + losses["cycle_B"])
    assert cycles[-1] < cycles[0]


# Discriminators


def test_the_70_pixel_discriminator_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = NLayerDiscriminator(3)
    assert sum(weight.numel() for weight in network.parameters()) == 2_764_737
    names = [f"model.{n}.{kind}" for n in (0, 2, 5, 8, 11) for kind in ("weight", "bias")]
    assert list(network.state_dict()) == names


@pytest.mark.parametrize(("n_layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142), (5, 286)])
def test_a_score_sees_a_patch_of_the_published_size(n_layers, field):
    # Without a norm, which sees the whole picture.
    network = NLayerDiscriminator(1, 2, n_layers, norm="none")
    side = field + 3 * 2**n_layers
    side += -side % 2**n_layers
    x = torch.rand(1, 1, side, side, requires_grad=True)
    scores = network(x)
    middle = scores.shape[2] // 2
    scores[0, 0, middle, middle].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == field


def test_a_patchgan_computes_the_published_formula():
    for n_layers in (1, 3, 4):
        network = NLayerDiscriminator(3, 4, n_layers)
        x = torch.rand(2, 3, 64, 64)
        wanted = formulas.patchgan(dict(network.named_parameters()), x, n_layers)
        torch.testing.assert_close(network(x), wanted, rtol=0, atol=1e-6)


def test_a_pixel_discriminator_sees_one_pixel():
    network = PixelDiscriminator(1, 4, norm="none")
    x = torch.rand(1, 1, 8, 8, requires_grad=True)
    network(x)[0, 0, 3, 5].backward()
    assert x.grad[0, 0].nonzero().tolist() == [[3, 5]]
    assert list(PixelDiscriminator(3).state_dict()) == [
        f"net.{n}.{kind}" for n in (0, 2, 5) for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize(
    "netD",
    [{"netD": "pixel"}, *({"netD": "n_layers", "n_layers_D": n} for n in (1, 3, 5))],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_least_side_is_the_smallest_that_a_discriminator_judges_while_it_learns(
    norm, netD, batch
):
    network = discriminator_from_config(tiny(norm=norm, ndf=1, **netD), 1)
    least = least_side(network, batch)
    assert network(torch.rand(batch, 1, least, least)).numel() >= batch
    if least > 1:
        with pytest.raises((RuntimeError, ValueError)):
            network(torch.rand(batch, 1, least - 1, least - 1))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_without_instance_norm_only_first_and_last_convolution_have_a_bias(norm):
    network = NLayerDiscriminator(3, 4, 3, norm)
    biases = [n for n, m in enumerate(network.model)
              if isinstance(m, nn.Conv2d) and m.bias is not None]  # fmt: skip
    assert biases == [0, 11]


# Losses


@pytest.mark.parametrize("gan_mode", ["lsgan", "vanilla", "wgangp"])
@pytest.mark.parametrize("real", [True, False])
def test_adversarial_losses_follow_their_formulas(gan_mode: GanMode, real):
    scores = torch.randn(2, 1, 5, 7)
    wanted = formulas.adversarial(scores.double(), real, gan_mode)
    found = GANLoss(gan_mode)(scores, real)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert GANLoss(gan_mode)(scores.bfloat16(), real).dtype == torch.float32


def test_the_gradient_penalty_of_a_plane_is_that_of_its_slope():
    class Plane(nn.Module):
        def forward(self, x):
            return (x * 0.5).sum((1, 2, 3))

    # The gradient is ½ everywhere: its length over 3 × 4 × 4 values is ½ √48.
    wanted = 10 * (0.5 * math.sqrt(48) - 1) ** 2
    found = gradient_penalty(Plane(), torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), 10.0)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_the_gradient_penalty_is_float32_in_every_precision():
    network, (A, B) = NLayerDiscriminator(3, 4), pictures(0)
    torch.manual_seed(5)
    wanted = gradient_penalty(network, A, B, 10.0)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient_penalty(network, A, B, 10.0)
    assert found.dtype == torch.float32
    assert found.item() == wanted.item()


def test_a_penalty_between_two_sizes_errors():
    with pytest.raises(ValueError, match=r"one size, and they are .*; crop to one size"):
        gradient_penalty(nn.Identity(), torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 8), 10.0)


# The pool


def number_of(picture: torch.Tensor) -> int:
    return int(picture.flatten()[0])


def numbered(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def test_a_pool_fills_and_then_returns_an_old_picture_every_other_time():
    pool = ImagePool(50)
    for number in range(50):
        assert number_of(pool.query(numbered(number))) == number
    old, stored, draws = 0, set(range(50)), 4000
    ages = Counter()
    for number in range(50, 50 + draws):
        found = number_of(pool.query(numbered(number)))
        if found != number:
            old += 1
            assert found in stored
            stored = stored - {found} | {number}
            ages[found < 50] += 1
        assert {number_of(image) for image in pool.images} == stored
    # Four standard deviations of 4000 coins.
    assert abs(old - draws / 2) < 4 * math.sqrt(draws) / 2
    assert len(pool.images) == 50


def test_a_pool_chooses_every_place_alike():
    pool = ImagePool(4)
    pool.query(numbered(0, 1, 2, 3))
    places = Counter()
    for number in range(4, 4004):
        before = [number_of(image) for image in pool.images]
        found = number_of(pool.query(numbered(number)))
        if found != number:
            places[before.index(found)] += 1
    mean = sum(places.values()) / 4
    assert all(abs(times - mean) < 4 * math.sqrt(mean) for times in places.values())


def test_the_pictures_of_a_batch_are_drawn_one_by_one():
    pool = ImagePool(2)
    assert [number_of(x) for x in pool.query(numbered(1, 2, 3, 4)).split(1)][:2] == [1, 2]
    assert len(pool.images) == 2


def test_a_pool_of_none_gives_back_what_came_without_a_graph():
    x = torch.rand(1, 3, 2, 2, requires_grad=True)
    found = ImagePool(0).query(x)
    assert torch.equal(found, x)
    assert not found.requires_grad


def test_a_pool_keeps_its_own_copy():
    pool = ImagePool(1)
    x = torch.zeros(1, 3, 2, 2)
    pool.query(x)
    x.fill_(9)
    assert not pool.images[0].any()


def test_too_many_stored_pictures_errors():
    with pytest.raises(ValueError, match="3 stored images for a pool of 2"):
        ImagePool(2).load_state_dict([numbered(0)] * 3, torch.device("cpu"))


# The step without the host


def six_steps(model: CycleGAN, batch: int = 1) -> list[dict[str, float]]:
    return [model.optimize_parameters(*pictures(number, batch)) for number in range(6)]


@pytest.mark.behaviour(41)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "bf16", "ema": 0.9}, {"gan_mode": "wgangp"}, {"pool_size": 0}],
    ids=str,
)
def test_a_step_that_could_be_recorded_has_the_bits_of_the_plain_one(changes, batch):
    plain = CycleGAN(tiny(**{"pool_size": 2} | changes))
    ready = CycleGAN(tiny(cuda_graphs=True, **{"pool_size": 2} | changes))
    ready.load_state_dict(plain.state_dict())
    found = []
    for model in (plain, ready):
        random.seed(1)
        torch.manual_seed(1)
        found.append((six_steps(model, batch), random.getstate()))
    assert found[0] == found[1]
    assert_same_bits(plain.state_dict(), ready.state_dict())


def test_a_state_goes_from_one_kind_of_step_to_the_other():
    kinds = [CycleGAN(tiny(pool_size=2, cuda_graphs=graphs)) for graphs in (False, True)]
    six_steps(kinds[0])
    for source, target in (kinds, kinds[::-1]):
        target.load_state_dict(source.state_dict())
        found = []
        for model in (source, target):
            random.seed(2)
            found.append(six_steps(model))
        assert found[0] == found[1]


def test_a_pool_on_the_device_is_the_pool():
    """Also where a picture takes the place of one that came in the same batch."""
    plain, device = ImagePool(3), DevicePool(3, torch.device("cpu"))
    found: list[list[int]] = [[], []]
    for pool, numbers in zip((plain, device), found, strict=True):
        random.seed(3)
        for first in range(0, 400, 4):
            if isinstance(pool, DevicePool):
                pool.draw(4)
            answer = pool.query(numbered(*range(first, first + 4)))
            numbers += [number_of(image) for image in answer]
    assert found[0] == found[1]
    assert [*map(number_of, plain.images)] == [*map(number_of, device.state_dict())]
    with pytest.raises(ValueError, match="4 stored images for a pool of 3"):
        device.load_state_dict([numbered(0)] * 4, torch.device("cpu"))


def test_a_learning_rate_that_a_recording_reads_is_set_where_it_is():
    model = CycleGAN(tiny(n_epochs=1, n_epochs_decay=1))
    lr = torch.tensor(2e-4)
    model.optimizer_G.param_groups[0]["lr"] = lr
    assert model.update_learning_rate() == pytest.approx(1e-4)
    assert lr.item() == pytest.approx(1e-4)
    assert model.optimizer_D.param_groups[0]["lr"] == 1e-4
    # A state of the one kind, in an optimiser of the other.
    model.load_state_dict(CycleGAN(tiny()).state_dict())
    loaded = model.optimizer_G.param_groups[0]["lr"]
    assert isinstance(loaded, torch.Tensor)
    assert loaded.item() == pytest.approx(2e-4)


class Tape:
    """Records on the CPU: keeps the step, and runs it at every replay."""

    def __init__(self, *, empty: bool = False) -> None:
        self.empty, self.calls = empty, Counter()

    def rehearse(self, body):
        self.calls["rehearse"] += 1
        return body()

    def record(self, body):
        self.calls["record"] += 1
        self.body = body
        self.losses = {name: torch.full((), math.nan) for name in LOSSES}
        return self.losses

    def replay(self):
        self.calls["replay"] += 1
        if not self.empty:
            for name, loss in self.body().items():
                self.losses[name].copy_(loss)


def taped(tape: Tape, **changes) -> CycleGAN:
    model = CycleGAN(tiny(cuda_graphs=True, **changes))
    assert model._graphed is not None
    model._graphed._new_recorder = lambda: tape
    model._graphed.reset()
    return model


@pytest.mark.behaviour(41)
def test_a_step_is_rehearsed_recorded_once_and_replayed_with_the_bits_of_the_plain_one():
    tape, changes = Tape(), {"pool_size": 2, "ema": 0.9, "n_epochs": 1, "n_epochs_decay": 1}
    plain, recorded = CycleGAN(tiny(**changes)), taped(tape, **changes)
    recorded.load_state_dict(plain.state_dict())
    found = []
    for model in (plain, recorded):
        random.seed(1)
        found.append([model.optimize_parameters(*pictures(number)) for number in range(6)])
        model.update_learning_rate()
        found[-1] += [model.optimize_parameters(*pictures(number)) for number in range(2)]
    assert found[0] == found[1]
    assert_same_bits(plain.state_dict(), recorded.state_dict())
    assert tape.calls == {"rehearse": 3, "record": 1, "replay": 5}
    recorded.load_state_dict(plain.state_dict())
    recorded.step(*pictures(0))
    assert tape.calls["rehearse"] == 4


def test_a_recording_that_trains_nothing_errors():
    model = taped(Tape(empty=True))
    for number in range(3):
        model.step(*pictures(number))
    with pytest.raises(BackendError, match="trains nothing when it is replayed; leave cuda_graphs"):
        model.step(*pictures(3))


class Waits(TorchDispatchMode):
    """Collects what a device would have to be waited for: values read, and blocking copies to it.

    The pictures are fake, so the arithmetic is left out; what is sent to a device and asked of it
    is the real program's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().split("::")[1]
        if name == "_local_scalar_dense":
            if args[0].device.type == "cuda":
                self.found.append(name)
            return 1.0  # Adam's count of its steps, which is the host's
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            target, source = (args[0], args[1]) if name == "copy_" else (out, args[0])
            if {target.device.type, source.device.type} == {"cpu", "cuda"}:
                self.copies += 1
                waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
                if waits or target.device.type == "cpu" or id(source) not in PINNED:
                    self.found.append(f"{name} {tuple(source.shape)}")
        return out


PINNED: set[int] = set()


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA device whose tensors are fake: all runs but the device's own work."""
    entered = []

    class Entered:
        def __init__(self, device):
            entered.append(device)

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    kept = []

    def pin(values):
        PINNED.add(id(values))
        kept.append(values)  # so that no other gets its id
        return values

    def to(network, device=None, memory_format=None):
        # torch would swap the tensors, which fake ones do not let happen.
        for module in network.modules() if device is not None else ():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = nn.Parameter(torch.empty_like(weight, device=device))
        return network

    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", Entered)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    with FakeTensorMode():
        yield entered
    PINNED.clear()


@pytest.mark.parametrize(
    "changes",
    [
        {"fused_adam": True, "ema": 0.9, "joint_identity": True},
        {"gan_mode": "wgangp", "channels_last": True},
        {"pool_size": 0, "precision": "tf32"},
        {"diffaugment": "color,translation,cutout", "lambda_temporal": 1.0},
    ],
    ids=str,
)
def test_no_step_waits_for_its_device(cuda, changes, monkeypatch):
    seen = set()
    config = tiny(device="cuda:1", **{"pool_size": 2} | changes)

    def average_of(network):
        # A copy would be of the mode that makes tensors fake, too.
        copied = generator_from_config(generator_config(config, "AtoB"))
        return copied.to(device="cuda:1").requires_grad_(False)

    monkeypatch.setattr("cyclegan_train.cyclegan._average_of", average_of)
    model = CycleGAN(config)
    assert model.netG_A.model[1].weight.device == torch.device("cuda:1")
    model.netG_A.register_forward_hook(
        lambda *_: seen.add((torch.backends.cudnn.conv.fp32_precision,
                             torch.backends.cuda.matmul.fp32_precision))
    )  # fmt: skip
    before = torch.backends.cudnn.conv.fp32_precision
    A, B = torch.zeros(2, 1, 3, 32, 32)

    def backward(loss):
        # torch's own looks for the device itself.
        for net in NETS:
            for weight in getattr(model, net).parameters():
                weight.grad = torch.zeros_like(weight) if weight.requires_grad else None

    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda out, x, **_: (torch.zeros_like(x),))
    with Waits() as waits:
        for _ in range(4):
            model.step(A, B)
    assert waits.found == []
    assert waits.copies == 8  # two pictures a step, from pinned memory
    assert cuda == [torch.device("cuda:1")] * 4
    wanted = "tf32" if changes.get("precision") == "tf32" else "ieee"
    assert seen == {(wanted, wanted)}
    assert model.float32 == wanted
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_no_draw_of_a_pool_on_a_device_waits_for_it(cuda):
    pool = DevicePool(2, torch.device("cuda:1"))
    images = torch.zeros(3, 3, 8, 8, device="cuda:1")
    with Waits() as waits:
        for _ in range(3):
            pool.draw(3)
            assert pool.query(images).shape == images.shape
    assert waits.found == []
    assert waits.copies == 6


def test_no_batch_of_pictures_on_a_device_waits_for_it_nor_does_the_mean_of_its_losses(cuda):
    class OnDevice(Domain):
        def __init__(self):
            self._config = DataConfig(load_size=36, crop_size=32)
            self.cached = [torch.zeros(3, 36, 36, dtype=torch.uint8, device="cuda:1")] * 4

    mean = Means(torch.device("cuda:1"), LOSSES)
    feed = Feed(OnDevice(), OnDevice(), Sampler(4, 4, batch_size=2), workers=1)
    with Waits() as waits:
        for _ in range(4):
            A, _ = feed.next()
            mean.add(torch.stack([A.mean()] * len(LOSSES)).double())
    assert (A.shape, A.device) == ((2, 3, 32, 32), torch.device("cuda:1"))
    assert (waits.found, waits.copies) == ([], 0)
    with Waits() as waits:
        waits_for = A.sum().item()
    assert (waits_for, waits.found) == (1.0, ["_local_scalar_dense"])


@pytest.mark.parametrize("how", ["ieee", "tf32"])
@pytest.mark.parametrize("older", [None, True, False])
def test_how_float32_is_multiplied_is_set_for_as_long(how, older):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def seen() -> list:
        newer = [cudnn.conv.fp32_precision, matmul.fp32_precision]
        return [*newer, cudnn.allow_tf32, matmul.allow_tf32]

    untouched = seen()
    try:
        if older is not None:
            cudnn.allow_tf32 = matmul.allow_tf32 = older
        before = seen()
        with float32_as(how):
            assert seen() == [how, how, how == "tf32", how == "tf32"]
        assert seen() == before
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = True, False
        matmul.fp32_precision = untouched[1]
    assert seen() == untouched


def test_tf32_is_fp32_on_the_cpu():
    found = []
    for precision in ("fp32", "tf32"):
        torch.manual_seed(3)
        model = CycleGAN(tiny(precision=precision))
        assert model.float32 == "ieee"
        found.append(six_steps(model))
    assert found[0] == found[1]


@pytest.mark.needs_cuda
def test_a_recorded_step_is_the_plain_one_but_for_rounding():
    """Never run: it needs a GPU. Two epochs, so that the rate changes after the recording."""
    found = []
    plain = CycleGAN(tiny(device="cuda", pool_size=3, n_epochs=1, n_epochs_decay=1))
    graph = CycleGAN(
        tiny(device="cuda", pool_size=3, n_epochs=1, n_epochs_decay=1, cuda_graphs=True)
    )
    graph.load_state_dict(plain.state_dict())
    for model in (plain, graph):
        random.seed(1)
        losses = []
        for _ in range(2):
            losses += [model.optimize_parameters(*pictures(n)) for n in range(8)]
            model.update_learning_rate()
        found.append(losses)
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-2)
    assert_same_weights(graph, weights_of(plain), atol=1e-3)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("changes", [{}, {"cuda_graphs": True}, {"gan_mode": "wgangp"}], ids=str)
@pytest.mark.parametrize("device", range(max(1, torch.cuda.device_count())))
def test_no_step_on_a_gpu_waits_for_it(changes, device):
    """Never run: it needs a GPU, and several to see that the first is not taken for another."""
    model = CycleGAN(tiny(device=f"cuda:{device}", pool_size=2, ema=0.9, **changes))
    for number in range(6):
        model.step(*pictures(number))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(6):
            losses = model.step(*pictures(number))
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(math.isfinite(loss) for loss in losses.values())


def test_pictures_of_another_shape_than_the_recorded_ones_error():
    model = CycleGAN(tiny(cuda_graphs=True))
    model.step(*pictures(0))
    with pytest.raises(ValueError, match=r"replays one shape, \(1, 3, 32, 32\), and was given"):
        model.step(*pictures(0, side=64))


def test_a_recorded_step_of_several_processes_errors():
    with pytest.raises(ValueError, match="cuda_graphs records the step of one process"):
        CycleGAN(tiny(cuda_graphs=True), Ranks(0, 2))


@pytest.mark.behaviour(41)
# torch's own look at a tensor while it compiles; it means to hide what that warns of.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_networks_change_nothing_but_rounding(monkeypatch):
    """Without the C++ compiler's part, which is torch's own and takes minutes."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **given: compile_(self, **given, backend="aot_eager")
    )
    plain, fast = CycleGAN(tiny()), CycleGAN(tiny(compile=True, joint_identity=True, ema=0.5))
    for net in NETS:
        getattr(fast, net).load_state_dict(getattr(plain, net).state_dict())
    for number in range(2):
        wanted = plain.optimize_parameters(*pictures(number))
        assert fast.optimize_parameters(*pictures(number)) == pytest.approx(wanted, rel=1e-4)
    assert_same_weights(fast, weights_of(plain), atol=5e-6)
    assert list(fast.netG_A.state_dict()) == list(plain.netG_A.state_dict())


# The schedules


def rates(config: TrainConfig, epochs: int) -> list[float]:
    """Return the learning rate in each epoch, as the optimisers have it."""
    model = CycleGAN(config)
    found = [model.optimizer_G.param_groups[0]["lr"]]
    for _ in range(epochs - 1):
        found.append(model.update_learning_rate())
        for optimizer in (model.optimizer_G, model.optimizer_D):
            assert [group["lr"] for group in optimizer.param_groups] == [found[-1]]
    return found


def test_the_linear_schedule_factor_by_factor():
    found = rates(tiny(), 200)
    for k, rate in enumerate(found, 1):
        assert rate == pytest.approx(2e-4 * (1 - max(0, k - 100) / 101), rel=1e-12)
    assert found[99] == 2e-4
    assert found[100] == pytest.approx(2e-4 * 100 / 101)
    assert found[199] == pytest.approx(2e-4 / 101)


def test_a_schedule_without_epochs_at_the_full_rate_begins_on_the_way_down():
    assert rates(tiny(n_epochs=0, n_epochs_decay=3), 3) == pytest.approx([1.5e-4, 1e-4, 5e-5])


@pytest.mark.behaviour(53)
@pytest.mark.parametrize("lr_policy", ["linear", "step", "cosine"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_state_in_a_longer_schedule_goes_on_at_the_rate_of_that_one(lr_policy, recorded):
    short, long = (
        tiny(lr_policy=lr_policy, n_epochs=n, n_epochs_decay=1, lr_decay_iters=2) for n in (1, 3)
    )
    wanted = rates(long, 4)
    for ended in (0, 1, 2):
        begun = CycleGAN(short)
        for _ in range(ended):
            begun.update_learning_rate()
        model = CycleGAN(long)
        if recorded:
            for optimizer in (model.optimizer_G, model.optimizer_D):
                optimizer.param_groups[0]["lr"] = torch.tensor(9.0)
        model.load_state_dict(begun.state_dict())
        for optimizer in (model.optimizer_G, model.optimizer_D):
            assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(wanted[ended])
        assert model.learning_rate == pytest.approx(wanted[ended])


def test_a_plateau_keeps_the_rate_of_its_state():
    begun = CycleGAN(tiny(lr_policy="plateau", lr=1.0))
    for _ in range(7):
        begun.update_learning_rate(1.0)
    model = CycleGAN(tiny(lr_policy="plateau", lr=1.0, n_epochs=500))
    model.load_state_dict(begun.state_dict())
    assert model.learning_rate == pytest.approx(0.2)


def test_the_step_schedule_factor_by_factor():
    found = rates(tiny(lr_policy="step", lr_decay_iters=3, lr=1.0), 8)
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_the_cosine_schedule_factor_by_factor():
    config = tiny(lr_policy="cosine", n_epochs=3, n_epochs_decay=1, lr=1.0)
    root = math.sqrt(0.5)
    assert rates(config, 6) == pytest.approx(
        [1, (1 + root) / 2, 0.5, (1 - root) / 2, 0, 0], abs=1e-12
    )


def test_the_plateau_schedule_waits_for_five_epochs_without_gain():
    model = CycleGAN(tiny(lr_policy="plateau", lr=1.0))
    found = [model.update_learning_rate(metric) for metric in (2.0, 1.0, *[1.0] * 12)]
    # The best is the second; five more may pass, the sixth is one too many.
    assert found == pytest.approx([*[1.0] * 7, *[0.2] * 6, 0.04])
    assert model.optimizer_D.param_groups[0]["lr"] == found[-1]


def test_a_plateau_without_a_metric_errors():
    config = tiny(lr_policy="plateau")
    with pytest.raises(ValueError, match="requires a metric, and none was given"):
        CycleGAN(config).update_learning_rate()
    with pytest.raises(ValueError, match="depends on the losses"):
        learning_rate_factor(config, 1)


# The moving average, the state, the config


def test_the_average_follows_the_weights():
    model = CycleGAN(tiny(ema=0.5))
    name = "model.18.weight"
    average = model.netG_A.get_parameter(name).detach().clone()
    for n in range(1, 15):
        model.optimize_parameters(*pictures(n))
        decay = min(0.5, n / (9 + n))
        average = decay * average + (1 - decay) * model.netG_A.get_parameter(name).detach()
        torch.testing.assert_close(model.ema_A.get_parameter(name), average, rtol=0, atol=1e-7)
    assert not model.ema_A.training
    assert not any(weight.requires_grad for weight in model.ema_A.parameters())
    assert CycleGAN(tiny()).ema_A is None


@pytest.mark.parametrize(
    "changes",
    [{"ema": 0.9}, {"lr_policy": "plateau"}, {"norm": "batch", "dropout": True}],
    ids=str,
)
def test_a_step_after_a_restored_state_equals_one_without_it_bit_for_bit(tmp_path, changes):
    config = tiny(pool_size=2, **changes)

    def go_on(model: CycleGAN, numbers: range) -> list[dict[str, float]]:
        found = []
        for number in numbers:
            found.append(model.optimize_parameters(*pictures(number)))
            model.update_learning_rate(float(number % 3))
        return found

    model = CycleGAN(config)
    go_on(model, range(5))
    path = tmp_path / "state.pth"
    torch.save({"model": model.state_dict(), "torch": torch.get_rng_state()}, path)
    python = random.getstate()
    wanted = go_on(model, range(5, 12))

    torch.manual_seed(99)
    other = CycleGAN(config)
    saved = torch.load(path, weights_only=True)
    other.load_state_dict(saved["model"])
    torch.set_rng_state(saved["torch"])
    random.setstate(python)
    assert go_on(other, range(5, 12)) == wanted
    one, two = model.state_dict(), other.state_dict()
    for net, weights in one["networks"].items():
        for name, weight in weights.items():
            assert torch.equal(weight, two["networks"][net][name]), (net, name)
    assert all(map(torch.equal, one["fake_A_pool"], two["fake_A_pool"]))
    assert (one["epoch"], one["steps"]) == (two["epoch"], two["steps"]) == (13, 12)


def test_the_same_seed_gives_the_same_networks():
    torch.manual_seed(3)
    one = CycleGAN(tiny())
    torch.manual_seed(3)
    two = CycleGAN(tiny())
    assert_same_weights(one, weights_of(two), atol=0)


def test_the_networks_have_the_channels_of_their_domains():
    model = CycleGAN(tiny(input_nc=1, output_nc=2, lambda_identity=0.0))
    assert model.netG_A.model[1].in_channels == model.netD_B.model[0].in_channels == 1
    assert model.netG_B.model[1].in_channels == model.netD_A.model[0].in_channels == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gan_mode": "hinge"}, "gan_mode = 'hinge' is none of lsgan, vanilla, wgangp"),
        ({"norm": "layer"}, "norm = 'layer' is none of"),
        ({"precision": "int8"}, "precision = 'int8' is none of fp32, tf32, bf16, fp16"),
        ({"n_layers_D": 6}, "^n_layers_D = 6 must be from 1 to 5"),
        ({"n_layers_D": 0}, "n_layers_D = 0 must be 1 or more"),
        ({"lr": math.nan}, "lr = nan must be 0 or more"),
        ({"ema": 1.0}, "ema = 1.0 must be from 0 to below 1"),
        ({"pool_size": -1}, "pool_size = -1 must be 0 or more"),
        (
            {"input_nc": 1},
            "^lambda_identity = 0.5 compares .* has 1 channels where B has 3; set it to 0",
        ),
        ({"beta2": 1.0}, "beta2 = 1.0 must be from 0 to below 1"),
        ({"accumulate": 0}, "accumulate = 0 must be 1 or more"),
        (
            {"checkpoint_activations": True, "norm": "batch"},
            "norm = 'batch' would count the statistics of every image twice; use instance",
        ),
        (
            {"checkpoint_activations": True, "cuda_graphs": True},
            "cuda_graphs cannot record the second forward pass",
        ),
        ({"cuda_graphs": True, "precision": "fp16"}, "cuda_graphs cannot record fp16"),
        ({"lambda_geometry": -1.0}, "lambda_geometry = -1.0 must be 0 or more"),
        ({"lambda_temporal": math.nan}, "lambda_temporal = nan must be 0 or more"),
        (
            {"lambda_geometry": 1.0, "cuda_graphs": True},
            "cuda_graphs would repeat the one turn of lambda_geometry",
        ),
        ({"fused_norm": True, "compile": True}, "fused_norm and compile are two ways to the same"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_an_unknown_generator_errors():
    with pytest.raises(
        ValueError, match=r"^netG = 'resnet' is no generator: it is resnet_<n>blocks"
    ):
        CycleGAN(tiny(netG="resnet"))


def test_an_unknown_device_errors():
    for name in ("gpu", "meta"):
        with pytest.raises(ValueError, match=f"device = '{name}' is none of auto, cpu, cuda"):
            CycleGAN(tiny(device=name))


def test_a_device_that_is_not_there_errors():
    with pytest.raises(BackendUnavailableError, match="cannot train on 'cuda:99': torch sees"):
        CycleGAN(tiny(device="cuda:99"))
