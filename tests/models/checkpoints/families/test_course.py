"""The small CycleGANs of courses: their files draw what the courses' networks draw."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.models.checkpoints.loading import load_generator
from tests.models.checkpoints.families.checks import (
    exports_and_draws,
    loads_and_draws,
    runs_in_torch,
    saved,
    translates,
    varied,
)

pytestmark = pytest.mark.behaviour(34, 49)


def conv(into: int, out: int, side: int, stride: int = 2, norm: bool = True) -> nn.Sequential:
    pad = {3: 1, 4: 1, 5: 2}[side]
    layers: list[nn.Module] = [nn.Conv2d(into, out, side, stride, pad, bias=False)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(out)] if norm else []))


def deconv(into: int, out: int, norm: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.ConvTranspose2d(into, out, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(out)] if norm else []))


def upconv(into: int, out: int, side: int, norm: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), *conv(into, out, side, 1, norm))


class UdacityBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_layer1 = conv(dim, dim, 3, 1)
        self.conv_layer2 = conv(dim, dim, 3, 1)

    def forward(self, x):
        return x + self.conv_layer2(F.relu(self.conv_layer1(x)))


class Udacity(nn.Module):
    def __init__(self, dim: int = 4, blocks: int = 3) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, dim, 4), conv(dim, 2 * dim, 4)
        self.conv3 = conv(2 * dim, 4 * dim, 4)
        self.res_blocks = nn.Sequential(*(UdacityBlock(4 * dim) for _ in range(blocks)))
        self.deconv1, self.deconv2 = deconv(4 * dim, 2 * dim), deconv(2 * dim, dim)
        self.deconv3 = deconv(dim, 3, norm=False)

    def forward(self, x):
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        x = self.res_blocks(x)
        return torch.tanh(self.deconv3(F.relu(self.deconv2(F.relu(self.deconv1(x))))))


class TorontoBlock(nn.Module):
    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.conv_layer = conv(dim, dim, side, 1)

    def forward(self, x):
        return x + self.conv_layer(x)


class Csc321(nn.Module):
    """The assignment of 2018."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, dim, 4), conv(dim, 2 * dim, 4)
        self.resnet_block = TorontoBlock(2 * dim, 3)
        self.deconv1, self.deconv2 = deconv(2 * dim, dim), deconv(dim, 3, norm=False)

    def forward(self, x):
        x = F.relu(self.resnet_block(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return torch.tanh(self.deconv2(F.relu(self.deconv1(x))))


class Csc413(nn.Module):
    """The assignment from 2019 on."""

    def __init__(self, dim: int = 5, block: int = 5) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, dim, 5), conv(dim, 2 * dim, 5)
        self.resnet_block = TorontoBlock(2 * dim, block)
        self.upconv1, self.upconv2 = upconv(2 * dim, dim, 5), upconv(dim, 3, 5, norm=False)

    def forward(self, x):
        x = F.relu(self.resnet_block(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return torch.tanh(self.upconv2(F.relu(self.upconv1(x))))


class MnistSvhn(nn.Module):
    """``G12`` takes one channel, ``G21`` returns one."""

    def __init__(self, dim: int = 4, into: int = 1, out: int = 3) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(into, dim, 4), conv(dim, 2 * dim, 4)
        self.conv3, self.conv4 = conv(2 * dim, 2 * dim, 3, 1), conv(2 * dim, 2 * dim, 3, 1)
        self.deconv1, self.deconv2 = deconv(2 * dim, dim), deconv(dim, out, norm=False)

    def forward(self, x):
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4, self.deconv1):
            x = F.leaky_relu(layer(x), 0.05)
        return torch.tanh(self.deconv2(x))


NETWORKS = [
    (Udacity(), "udacity_resnet_3blocks", 8),
    (Udacity(2, 6), "udacity_resnet_6blocks", 8),
    (Csc321(), "toronto_resnet", 4),
    (Csc413(), "toronto_resnet_upsampled", 4),
    (Csc413(8, 3), "toronto_resnet_upsampled", 4),
    (MnistSvhn(), "mnist_svhn_transfer", 4),
    (MnistSvhn(8, 3, 1), "mnist_svhn_transfer", 4),
]


@pytest.mark.parametrize(
    ("network", "architecture", "side"), NETWORKS, ids=[type(each[0]).__name__ for each in NETWORKS]
)
def test_a_file_draws_what_the_network_of_the_course_draws(tmp_path, network, architecture, side):
    module = varied(network)
    generator = loads_and_draws(
        saved(tmp_path, module), module, (side, side), (2 * side, 5 * side), (64, 64)
    )
    assert generator.config.architecture == architecture
    assert generator.config.sizes == SizeRequirements(side, side)
    assert generator.family.name == architecture.removesuffix("_transfer").partition("_resnet")[0]
    assert any("statistics of its training" in str(note) for note in generator.notes)


@pytest.mark.parametrize(
    ("network", "odd", "padded"),
    [
        (Udacity(), (45, 71), (48, 72)),
        (Csc413(), (33, 50), (36, 52)),
        (MnistSvhn(8, 3, 3), (31, 43), (32, 44)),
    ],
    ids=["udacity", "toronto", "mnist_svhn"],
)
def test_what_is_exported_and_translated_is_the_same_picture(tmp_path, network, odd, padded):
    module = varied(network)
    path = saved(tmp_path, module)
    exports_and_draws(tmp_path, module, module.state_dict(), (64, 64), padded)
    runs_in_torch(path, module, (64, 48))
    translates(path, module, tmp_path, odd, padded)


@pytest.mark.parametrize(
    ("network", "name", "shape", "sentence"),
    [
        (Udacity(), "deconv2.0.weight", (8, 4, 3, 3), r"'deconv2\.0\.weight'.*\(8, 4, 4, 4\)"),
        (Udacity(), "deconv3.0.weight", (4, 3, 3, 3), "transposed kernel of 3×3"),
        (Csc413(), "upconv2.1.weight", (3, 5, 4, 4), "kernel of 4×4 .* changes the size"),
        (Csc321(), "conv1.0.weight", (6, 3, 4), "square kernel"),
    ],
    ids=["shape", "transposed", "even", "square"],
)
def test_what_differs_is_told(tmp_path, network, name, shape, sentence):
    state = dict(varied(network).state_dict()) | {name: torch.ones(shape)}
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=f"looks most like .*{sentence}"):
        load_generator(tmp_path / "net.pth")


def test_a_number_of_blocks_that_nothing_holds_is_refused_at_once(tmp_path):
    state = dict(varied(Udacity()).state_dict())
    state["res_blocks.9999.conv_layer1.0.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="10000 blocks where 64 are supported"):
        load_generator(tmp_path / "net.pth")
