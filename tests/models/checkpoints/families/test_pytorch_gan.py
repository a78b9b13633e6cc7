"""PyTorch-GAN's CycleGAN: its files draw what the published network draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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


class ResidualBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(features, features, 3),
            nn.InstanceNorm2d(features),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(features, features, 3),
            nn.InstanceNorm2d(features),
        )

    def forward(self, x):
        return x + self.block(x)


class Published(nn.Module):
    """The generator for ``channels``, with a first width of ``features`` instead of 64."""

    def __init__(
        self, features: int = 4, blocks: int = 3, channels: int = 3, pad: int | None = None
    ) -> None:
        super().__init__()
        pad = channels if pad is None else pad
        out = features
        model: list[nn.Module] = [
            nn.ReflectionPad2d(pad),
            nn.Conv2d(channels, out, 7),
            nn.InstanceNorm2d(out),
            nn.ReLU(inplace=True),
        ]
        for _ in range(2):
            model += [
                nn.Conv2d(out, 2 * out, 3, stride=2, padding=1),
                nn.InstanceNorm2d(2 * out),
                nn.ReLU(inplace=True),
            ]
            out *= 2
        model += [ResidualBlock(out) for _ in range(blocks)]
        for _ in range(2):
            model += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(out, out // 2, 3, stride=1, padding=1),
                nn.InstanceNorm2d(out // 2),
                nn.ReLU(inplace=True),
            ]
            out //= 2
        model += [nn.ReflectionPad2d(pad), nn.Conv2d(out, channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*model)

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize(("features", "blocks"), [(4, 3), (2, 9), (7, 1)])
def test_a_file_draws_what_the_published_network_draws(tmp_path, features, blocks):
    module = varied(Published(features, blocks))
    generator = loads_and_draws(saved(tmp_path, module), module, (8, 8), (12, 20), (64, 64))
    assert generator.family.name == "pytorch_gan"
    assert generator.config.architecture == f"pytorch_gan_resnet_{blocks}blocks"
    assert generator.config.sizes == SizeRequirements(4, 8)
    assert not any("3 pixels" in clause for clause in generator.assumed)
    assert any("bilinear would have the same names" in clause for clause in generator.published)


def test_what_is_exported_and_translated_is_the_same_picture(tmp_path):
    module = varied(Published(blocks=1), gain=0.4)
    path = saved(tmp_path, module)
    exports_and_draws(tmp_path, module, module.state_dict(), (64, 64), (40, 24))
    runs_in_torch(path, module, (64, 48))
    translates(path, module, tmp_path, (45, 71), (48, 72))


def test_a_network_of_one_channel_is_read_as_a_copy_that_can_be_trained(tmp_path):
    x = torch.zeros(1, 1, 64, 64)
    assert varied(Published(channels=1))(x).shape == (1, 1, 56, 56)  # so its cycle loss fails
    module = varied(Published(channels=1, pad=3))
    generator = loads_and_draws(saved(tmp_path, module), module, (64, 64))
    assert any("pad by 3 pixels" in clause for clause in generator.assumed)


def test_what_differs_is_told(tmp_path):
    state = dict(varied(Published()).state_dict())
    del state["model.11.block.5.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=r"PyTorch-GAN.* lacks 'model\.11\.block\.5\.bias'"):
        load_generator(tmp_path / "net.pth")
