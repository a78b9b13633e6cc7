"""fast-neural-style: the files of PyTorch's examples draw what the published network draws."""

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


class Conv(nn.Module):
    def __init__(self, into: int, out: int, kernel: int, stride: int = 1, upsample: int = 0):
        super().__init__()
        self.before = nn.Sequential(
            nn.Upsample(scale_factor=upsample) if upsample else nn.Identity(),
            nn.ReflectionPad2d(kernel // 2),
        )
        self.conv2d = nn.Conv2d(into, out, kernel, stride)

    def forward(self, x):
        return self.conv2d(self.before(x))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 3)
        self.in1 = nn.InstanceNorm2d(channels, affine=True)
        self.conv2 = Conv(channels, channels, 3)
        self.in2 = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x):
        return self.in2(self.conv2(torch.relu(self.in1(self.conv1(x))))) + x


class TransformerNet(nn.Module):
    """The published network: images of 0..255 both ways."""

    def __init__(self, widths=(4, 6, 8, 5, 7), blocks: int = 5, into: int = 3, out: int = 3):
        super().__init__()
        steps = [into, *widths]
        layers = [(9, 1, 0), (3, 2, 0), (3, 2, 0), (3, 1, 2), (3, 1, 2)]
        names = ["conv1", "conv2", "conv3", "deconv1", "deconv2"]
        for number, (name, how) in enumerate(zip(names, layers, strict=True)):
            setattr(self, name, Conv(steps[number], steps[number + 1], *how))
            setattr(self, f"in{number + 1}", nn.InstanceNorm2d(steps[number + 1], affine=True))
        for number in range(blocks):
            setattr(self, f"res{number + 1}", Block(widths[2]))
        self.deconv3 = Conv(widths[4], out, 9)
        self.blocks = blocks

    def forward(self, x):
        for layer in range(1, 4):
            x = torch.relu(getattr(self, f"in{layer}")(getattr(self, f"conv{layer}")(x)))
        for number in range(self.blocks):
            x = getattr(self, f"res{number + 1}")(x)
        for layer in range(1, 3):
            x = torch.relu(getattr(self, f"in{layer + 3}")(getattr(self, f"deconv{layer}")(x)))
        return self.deconv3(x)


class Signed(nn.Module):
    """A network of images of 0..255, for images in [-1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x + 1) * 127.5) / 127.5 - 1


def published(**settings) -> nn.Module:
    """Return the published network with weights that draw most values within 0..255."""
    module = varied(TransformerNet(**settings))
    with torch.no_grad():
        module.deconv3.conv2d.weight *= 40
        module.deconv3.conv2d.bias += 110
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"widths": (8, 16, 32, 16, 8), "blocks": 1},
        {"widths": (2, 3, 4, 3, 2), "blocks": 0, "into": 1, "out": 1},
    ],
    ids=str,
)
def test_a_file_draws_what_the_published_network_draws(tmp_path, settings):
    module = published(**settings)
    path = saved(tmp_path, module)
    generator = loads_and_draws(path, Signed(module), (8, 8), (12, 20), (64, 64))
    assert generator.config.sizes == SizeRequirements(4, 8)
    blocks = settings.get("blocks", 5)
    assert generator.config.architecture == f"fast_neural_style_{blocks}blocks"


def test_fewer_than_eight_pixels_are_too_few_for_the_published_network():
    with pytest.raises(RuntimeError, match=r"[Pp]adding size"):
        published()(torch.zeros(1, 3, 4, 8))


@pytest.mark.parametrize("counted", [False, True])
def test_running_statistics_of_old_files_have_no_effect(tmp_path, counted):
    module = published()
    state = dict(module.state_dict())
    for name in [name for name in state if name.split(".")[-2].startswith("in")]:
        norm, channels = name.rpartition(".")[0], len(state[name])
        state[f"{norm}.running_mean"] = torch.full((channels,), 3.0)
        state[f"{norm}.running_var"] = torch.full((channels,), 9.0)
        if counted:
            state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    torch.save(state, tmp_path / "mosaic.pth")
    generator = loads_and_draws(tmp_path / "mosaic.pth", Signed(module), (16, 24))
    # The published program drops the statistics of files from before torch counted batches.
    assert any("statistics of each frame" in clause for clause in generator.assumed) == counted


def test_the_exported_file_draws_it_within_one_level(tmp_path):
    module = published(blocks=1)
    exports_and_draws(tmp_path, Signed(module), module.state_dict(), (64, 64), (52, 36))
    runs_in_torch(saved(tmp_path, module), Signed(module), (64, 48))


def test_translate_pads_a_frame_of_odd_size(tmp_path):
    module = published(blocks=1)
    translates(saved(tmp_path, module), Signed(module), tmp_path, (45, 71), (48, 72))


def test_the_published_size_is_read_as_published(tmp_path):
    module = TransformerNet(widths=(32, 64, 128, 64, 32))
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes["res5.conv2.conv2d.weight"] == (128, 128, 3, 3)
    assert shapes["deconv3.conv2d.weight"] == (3, 32, 9, 9)
    config = load_generator(saved(tmp_path, module)).config
    assert config == type(config)()


def test_what_differs_is_told(tmp_path):
    state = dict(published().state_dict())
    del state["res2.in2.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=r"lacks 'res2\.in2\.bias'"):
        load_generator(tmp_path / "net.pth")
