"""OpenMMLab's CycleGAN: its files draw what the network draws, in RGB or BGR, as is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.models.checkpoints.loading import Selection, load_generator
from tests.models.checkpoints.families.checks import (
    exports_and_draws,
    loads_and_draws,
    runs_in_torch,
    saved,
    translates,
    varied,
)

pytestmark = pytest.mark.behaviour(34, 49)


class ConvModule(nn.Module):
    def __init__(self, conv: nn.Module, out: int, *, batch: bool, act: nn.Module | None) -> None:
        super().__init__()
        self.conv = conv
        if batch:
            self.bn = nn.BatchNorm2d(out)
        else:
            self.instance = nn.InstanceNorm2d(out)
        self.act = act

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class Padded(nn.Conv2d):
    """A convolution behind a ReflectionPad2d, which has no name of its own in the file."""

    def __init__(self, into: int, out: int, side: int, bias: bool = True) -> None:
        super().__init__(into, out, side, bias=bias)
        self.pad = nn.ReflectionPad2d(side // 2)

    def forward(self, x):
        return super().forward(self.pad(x))


class Block(nn.Module):
    def __init__(self, dim: int, batch: bool, dropout: bool) -> None:
        super().__init__()
        halves = [
            ConvModule(Padded(dim, dim, 3, not batch), dim, batch=batch, act=act)
            for act in (nn.ReLU(), None)
        ]
        between = [nn.Dropout(0.5)] if dropout else []
        self.block = nn.Sequential(halves[0], *between, halves[1])

    def forward(self, x):
        return x + self.block(x)


class Published(nn.Module):
    """Takes and returns RGB; the network of ``bgr`` gets and gives the other order."""

    def __init__(
        self,
        dim: int = 4,
        blocks: int = 2,
        *,
        batch: bool = False,
        dropout: bool = False,
        bgr: bool = True,
    ) -> None:
        super().__init__()
        self.bgr = bgr
        down = {"stride": 2, "padding": 1, "bias": not batch}
        up = {**down, "output_padding": 1}

        def module(conv: nn.Module, out: int) -> ConvModule:
            return ConvModule(conv, out, batch=batch, act=nn.ReLU())

        head = nn.Module()
        self.model = nn.Sequential(
            module(Padded(3, dim, 7, not batch), dim),
            module(nn.Conv2d(dim, 2 * dim, 3, **down), 2 * dim),
            module(nn.Conv2d(2 * dim, 4 * dim, 3, **down), 4 * dim),
            *(Block(4 * dim, batch, dropout) for _ in range(blocks)),
            module(nn.ConvTranspose2d(4 * dim, 2 * dim, 3, **up), 2 * dim),
            module(nn.ConvTranspose2d(2 * dim, dim, 3, **up), dim),
            head,
        )
        head.conv = Padded(dim, 3, 7)
        head.forward = lambda x: torch.tanh(head.conv(x))

    def forward(self, x):
        return self.model(x[:, [2, 1, 0]])[:, [2, 1, 0]] if self.bgr else self.model(x)


@pytest.mark.parametrize(
    "settings",
    [{}, {"blocks": 9, "dim": 2}, {"batch": True}, {"dropout": True}],
    ids=["plain", "nine", "batch", "dropout"],
)
@pytest.mark.parametrize(("family", "order"), [("mmgeneration", "BGR"), ("mmediting", "RGB")])
def test_a_file_draws_what_the_published_network_draws(tmp_path, settings, family, order):
    module = varied(Published(**settings, bgr=order == "BGR"))
    sizes = (8, 8), (12, 20), (64, 64)
    generator = loads_and_draws(saved(tmp_path, module), module, *sizes, family=family)
    assert generator.config.sizes == SizeRequirements(4, 8)
    assert any(f"in {order}" in clause for clause in generator.assumed)


@pytest.mark.parametrize("family", ["mmgeneration", "mmediting"])
def test_what_is_exported_and_translated_is_the_same_picture(tmp_path, family):
    module = varied(Published(blocks=1, bgr=family == "mmgeneration"), gain=0.4)
    path, sizes = saved(tmp_path, module), [(64, 64), (40, 24)]
    exports_and_draws(tmp_path, module, module.state_dict(), *sizes, half=module.bgr, family=family)
    runs_in_torch(path, module, (64, 48), family=family)
    translates(path, module, tmp_path, (45, 71), (48, 72), family=family)


def test_of_the_two_orders_of_channels_one_is_to_be_named(tmp_path):
    path = saved(tmp_path, varied(Published()))
    with pytest.raises(ModelError, match=r"mmgeneration \(.*BGR\), mmediting \(.*RGB\).*--family"):
        load_generator(path)


def test_a_generator_is_named_by_the_domain_that_it_draws(tmp_path):
    module = varied(Published())
    both = {f"generators.{domain}": module.state_dict() for domain in ("horse", "zebra")}
    state = {f"{name}.{key}": value for name, own in both.items() for key, value in own.items()}
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=r"generators\.horse.*generators\.zebra") as told:
        load_generator(tmp_path / "net.pth")
    assert str(told.value).endswith(
        "choose one with --weights and its name, as in --weights state_dict.generators.horse, and "
        "its family with --family mmgeneration or mmediting"
    )
    with pytest.raises(ModelError, match=r"--weights state_dict\.generators\.horse$"):
        load_generator(tmp_path / "net.pth", Selection(family="mmediting"))
    zebra = Selection(weights="zebra", family="mmgeneration")
    assert load_generator(tmp_path / "net.pth", zebra).prefix.endswith("generators.zebra")


def test_what_differs_is_told(tmp_path):
    state = dict(varied(Published()).state_dict())
    del state["model.4.block.1.conv.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=r"OpenMMLab.* lacks 'model\.4\.block\.1\.conv\.bias'"):
        load_generator(tmp_path / "net.pth")


def test_images_of_one_channel_have_no_order(tmp_path):
    state = dict(varied(Published()).state_dict())
    stem, head = "model.0.conv.weight", "model.7.conv"
    state |= {stem: state[stem][:, :1]}
    state |= {f"{head}.{each}": state[f"{head}.{each}"][:1] for each in ("weight", "bias")}
    torch.save(state, tmp_path / "net.pth")
    assert not any("BGR" in clause for clause in load_generator(tmp_path / "net.pth").assumed)
