"""The generator networks: the published facts and formulas, sizes, norms, first weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cyclegan_batch.models.networks import (
    GeneratorConfig,
    InstanceNorm,
    generator_from_config,
    init_weights,
)
from tests.synthesis import formulas

MOBILE = (8, 12, 20, 6, 10, 12, 8)
"""Arbitrary widths of a mobile ResNet with two blocks."""

SMALL = [
    GeneratorConfig("resnet_2blocks", ngf=4),
    GeneratorConfig("resnet_2blocks", ngf=4, upsample="resize"),
    GeneratorConfig("mobile_resnet_2blocks", ngf=8, widths=MOBILE),
    GeneratorConfig("mobile_resnet_2blocks", ngf=4, upsample="resize"),
    GeneratorConfig("unet_32", ngf=2),
    GeneratorConfig("unet_64", ngf=2, upsample="resize"),
]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def on_paper(config: GeneratorConfig) -> nn.Module:
    """Return a network on the meta device, which allocates no weights."""
    with torch.device("meta"):
        return generator_from_config(config)


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (GeneratorConfig("resnet_9blocks"), 11_378_179),
        (GeneratorConfig("resnet_6blocks"), 7_837_699),
        (GeneratorConfig("unet_256"), 54_409_603),
        (GeneratorConfig("unet_128"), 41_825_667),
        (
            GeneratorConfig(
                "mobile_resnet_9blocks",
                ngf=16,
                widths=(16, 32, 128, 64, 64, 64, 128, 128, 128, 128, 128, 128, 32, 16),
            ),
            356_867,
        ),
    ],
    ids=lambda value: getattr(value, "netG", value),
)
def test_the_published_numbers_of_parameters(config, parameters):
    assert count(on_paper(config)) == parameters


def test_a_resnet_has_the_published_names_in_their_order():
    convolutions = ["model.1", "model.4", "model.7"]
    for block in range(10, 16):
        convolutions += [f"model.{block}.conv_block.1", f"model.{block}.conv_block.5"]
    convolutions += ["model.16", "model.19", "model.23"]
    names = [f"{name}.{kind}" for name in convolutions for kind in ("weight", "bias")]
    assert list(on_paper(GeneratorConfig("resnet_6blocks")).state_dict()) == names


def test_dropout_moves_the_second_convolution_of_a_block_by_one():
    names = on_paper(GeneratorConfig("resnet_1blocks", dropout=True)).state_dict()
    assert "model.10.conv_block.6.weight" in names
    assert "model.10.conv_block.5.weight" not in names


@pytest.mark.parametrize("netG", ["resnet_3blocks", "unet_32", "mobile_resnet_3blocks"])
@pytest.mark.parametrize("norm", ["instance", "batch", "syncbatch", "none"])
def test_convolutions_before_a_norm_have_a_bias_with_instance_only(netG, norm):
    network = on_paper(GeneratorConfig(netG, ngf=8, norm=norm))
    has = {
        name: module.bias is not None
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }
    *_, last = has
    if netG == "unet_32":
        last = "model.model.3"
    # The norm inside a separable convolution is always an InstanceNorm.
    always = {name for name in has if ".conv." in name} | {last}
    for name, bias in has.items():
        assert bias == (norm == "instance" or name in always), name


def test_norms_are_what_they_are_called():
    norms = {"batch": nn.BatchNorm2d, "syncbatch": nn.SyncBatchNorm, "instance": InstanceNorm}
    for norm, kind in norms.items():
        network = on_paper(GeneratorConfig("resnet_1blocks", norm=norm))
        found = [module for module in network.modules() if isinstance(module, kind)]
        assert len(found) == 7
    assert not any("running" in name for name in network.state_dict())


# The formulas


def test_a_resnet_computes_the_published_formula():
    config = GeneratorConfig("resnet_2blocks", ngf=4)
    network = generator_from_config(config).eval()
    x = torch.rand(2, 3, 24, 16) * 2 - 1
    wanted = formulas.resnet(dict(network.named_parameters()), x, 2)
    torch.testing.assert_close(network(x), wanted, rtol=0, atol=1e-6)


def test_a_unet_computes_the_published_formula():
    network = generator_from_config(GeneratorConfig("unet_64", ngf=3)).eval()
    x = torch.rand(2, 3, 64, 128) * 2 - 1
    wanted = formulas.unet(dict(network.named_parameters()), x, 6)
    torch.testing.assert_close(network(x), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", SMALL, ids=str)
def test_a_generator_gives_back_the_size_it_takes(config):
    network = generator_from_config(config).eval()
    sizes = config.sizes
    for height, width in (
        (sizes.minimum, sizes.minimum),
        (sizes.minimum + sizes.multiple_of, sizes.minimum),
    ):
        x = torch.rand(1, 3, height, width) * 2 - 1
        y = network(x)
        assert y.shape == x.shape
        assert y.abs().max() <= 1
        assert y.isfinite().all()


@pytest.mark.parametrize("config", SMALL, ids=str)
def test_no_smaller_size_is_left_out(config):
    network = generator_from_config(config).eval()
    sizes = config.sizes
    with pytest.raises((RuntimeError, ValueError)):
        network(torch.rand(1, 3, sizes.minimum - sizes.multiple_of, sizes.minimum))
    if sizes.multiple_of < sizes.minimum:
        side = sizes.minimum + sizes.multiple_of // 2
        assert network(torch.rand(1, 3, side, side)).shape[2] != side


def test_one_channel_in_and_another_number_out():
    network = generator_from_config(GeneratorConfig("resnet_1blocks", 1, 2, 4)).eval()
    assert network(torch.rand(1, 1, 8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize("netG", ["resnet_2blocks", "mobile_resnet_2blocks", "unet_32"])
def test_resize_draws_no_checkerboard(netG):
    """Upsampling keeps a flat image flat, which a transposed convolution does not."""
    up = generator_from_config(GeneratorConfig(netG, ngf=4, upsample="resize"))
    plain = generator_from_config(GeneratorConfig(netG, ngf=4))
    assert not any(isinstance(module, nn.ConvTranspose2d) for module in up.modules())
    assert any(isinstance(module, nn.ConvTranspose2d) for module in plain.modules())
    name = "model.model.3" if netG == "unet_32" else "model.12"
    flat = torch.ones(1, 8 if netG == "unet_32" else 16, 4, 4)
    assert up.get_submodule(name)(flat).std((2, 3)).max() < 1e-6
    inner = plain.get_submodule(name)(flat)[:, :, 2:-2, 2:-2]
    assert inner.std((2, 3)).min() > 1e-3


@pytest.mark.parametrize("netG", ["resnet_2blocks", "mobile_resnet_2blocks", "unet_64"])
def test_dropout_is_for_training_only(netG):
    network = generator_from_config(GeneratorConfig(netG, ngf=4, dropout=True))
    x = torch.rand(1, 3, 64, 64)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


# InstanceNorm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gradients", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 2])
def test_instance_norm_and_its_gradient_follow_the_formula_in_every_layout(
    layout, gradients, batch
):
    shape = (batch, 6, 8, 12)
    x = (torch.randn(shape) * 3 + 1).contiguous(memory_format=layout).requires_grad_()
    slope = torch.randn(shape).contiguous(memory_format=gradients)
    y = InstanceNorm(6)(x)
    y.backward(slope)
    exact = x.detach().double().requires_grad_()
    var, mean = torch.var_mean(exact, (2, 3), correction=0, keepdim=True)
    wanted = (exact - mean) / (var + 1e-5).sqrt()
    wanted.backward(slope.double())
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_instance_norm_of_halves_has_statistics_in_float32(half):
    # Far from zero, where float16 has no digits left for the variance.
    x = (torch.randn(1, 3, 64, 64) + 30).to(half)
    y = InstanceNorm(3)(x)
    assert y.dtype == half
    exact = x.double()
    var, mean = torch.var_mean(exact, (2, 3), correction=0, keepdim=True)
    wanted = (exact - mean) / (var + 1e-5).sqrt()
    # Only the result is rounded.
    torch.testing.assert_close(y, wanted.to(half), rtol=torch.finfo(half).eps, atol=0)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_the_affine_of_instance_norm_is_computed_in_float32_as_well(half):
    x = (torch.randn(1, 3, 64, 64) + 30).to(half)
    norm = InstanceNorm(3, affine=True).requires_grad_(False)
    norm.weight.copy_(torch.tensor([1.0, -0.3, 40.0]))
    norm.bias.copy_(torch.tensor([0.2, 5.0, -70.0]))
    exact = x.double()
    var, mean = torch.var_mean(exact, (2, 3), correction=0, keepdim=True)
    for weights in (torch.float32, half):
        weight, bias = (each.double()[:, None, None] for each in norm.to(weights).parameters())
        wanted = (exact - mean) / (var + 1e-5).sqrt() * weight + bias
        y = norm(x)
        assert y.dtype == half
        torch.testing.assert_close(y, wanted.to(half), rtol=torch.finfo(half).eps, atol=1e-5)


# The first weights


def first_weights(init_type: str, netG: str = "resnet_1blocks", **changes) -> nn.Module:
    network = generator_from_config(GeneratorConfig(netG, ngf=16, **changes))
    init_weights(network, init_type, 0.02)
    return network


def test_normal_weights_have_the_gain_as_deviation_and_biases_are_zero():
    network = first_weights("normal")
    weight = network.get_parameter("model.10.conv_block.1.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert weight.mean().item() == pytest.approx(0.0, abs=0.0005)
    assert all(not bias.any() for name, bias in network.named_parameters() if "bias" in name)


def test_xavier_and_kaiming_weights_have_the_deviation_of_their_papers():
    name, fan = "model.10.conv_block.1.weight", 64 * 9
    xavier = first_weights("xavier").get_parameter(name)
    assert xavier.std().item() == pytest.approx(0.02 * math.sqrt(2 / (fan + fan)), rel=0.02)
    kaiming = first_weights("kaiming").get_parameter(name)
    assert kaiming.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.02)


def test_orthogonal_weights_are_orthogonal():
    rows = first_weights("orthogonal").get_parameter("model.10.conv_block.1.weight").flatten(1)
    torch.testing.assert_close(rows @ rows.T, 0.02**2 * torch.eye(64), rtol=0, atol=1e-8)


def test_batch_norm_begins_around_one():
    network = first_weights("normal", norm="batch")
    scale = torch.cat([m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert scale.mean().item() == pytest.approx(1.0, abs=0.01)
    assert scale.std().item() == pytest.approx(0.02, rel=0.2)


def test_the_draws_come_in_the_order_of_the_names():
    torch.manual_seed(7)
    network = first_weights("normal", "resnet_2blocks")
    torch.manual_seed(7)
    generator_from_config(GeneratorConfig("resnet_2blocks", ngf=16))  # torch's own draws come first
    for name, weight in network.named_parameters():
        if name.endswith("weight"):
            assert torch.equal(weight, torch.empty_like(weight).normal_(0.0, 0.02)), name


def test_an_unknown_way_to_begin_errors():
    with pytest.raises(ValueError, match="init_type = 'uniform' is none of normal, xavier"):
        first_weights("uniform")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"netG": "resnet"}, "is no generator: it is resnet_<n>blocks"),
        ({"netG": "unet_100"}, "a power of 2 from 32"),
        ({"netG": "unet_16"}, "a power of 2 from 32"),
        ({"ngf": 0}, "ngf = 0 must be 1 or more"),
        ({"norm": "layer"}, "norm = 'layer' is none of instance, batch, syncbatch, none"),
        ({"upsample": "shuffle"}, "upsample = 'shuffle' is none of deconv, resize"),
        ({"widths": (1, 2, 3)}, "are for a mobile ResNet"),
        ({"netG": "mobile_resnet_2blocks", "widths": (1, 2, 3)}, "has 7 widths of 1 or more"),
        ({"netG": "mobile_resnet_2blocks", "ngf": 4, "widths": MOBILE}, "begin with the stem's"),
    ],
    ids=lambda value: str(value),
)
def test_what_cannot_be_built_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**changes)
