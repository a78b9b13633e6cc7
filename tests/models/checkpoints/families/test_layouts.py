"""Layouts of published generators: each is recognised as its family, or refused in a true sentence.

The names were written down from the code of the projects (layouts.py), so this is also the list of
what was looked at.
"""

from __future__ import annotations

import random
import re

import pytest
import torch
from torch import Tensor

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.checkpoints.families import recognise
from cyclegan_batch.models.checkpoints.files import Selection
from cyclegan_batch.models.checkpoints.loading import load_generator
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from tests.models.checkpoints.families import (
    test_aladdinpersson,
    test_animegan,
    test_copies,
    test_course,
    test_cut,
    test_fast_style,
    test_mmgeneration,
    test_pix2pixhd,
    test_pytorch_gan,
    test_ugatit,
)
from tests.models.checkpoints.families.layouts import (
    Shapes,
    batch_norm,
    conv,
    linear,
    norm,
    numbered,
    renamed,
    resnet,
    transposed,
    unet,
)

pytestmark = pytest.mark.behaviour(34, 49)

REFERENCE = resnet(numbered("model", "conv_block"))
PYTORCH_GAN = test_pytorch_gan.Published
COPIES = test_copies.COPIES


def of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def network(**settings) -> Shapes:
    return of(generator_from_config(GeneratorConfig(**settings)))


def blocks(template: str, n: int = 2) -> str:
    return " ".join(template.format(k=k) for k in range(n))


LOADED = {
    "junyanz, resnet_9blocks": ("resnet", network(ngf=2)),
    "junyanz, resnet_6blocks with dropout": (
        "resnet", network(netG="resnet_6blocks", ngf=2, dropout=True)),
    "junyanz, BatchNorm": ("resnet", network(netG="resnet_6blocks", ngf=2, norm="batch")),
    "junyanz, of 2017 with running statistics": (
        "resnet", resnet(numbered("model", "conv_block"), norms="tracked")),
    "junyanz, unet_256": ("unet", network(netG="unet_256", ngf=2, norm="batch")),
    "junyanz, unet_128": ("unet", network(netG="unet_128", ngf=2)),
    "aitorzip/PyTorch-CycleGAN": ("resnet", REFERENCE),
    "leftthomas/CycleGAN": ("resnet", REFERENCE),
    "PyTorch-GAN until March 2019": ("resnet", REFERENCE),
    "TeeyoHuang/CycleGAN-pytorch": ("resnet", REFERENCE),
    "UPIT": ("resnet", renamed(REFERENCE, ("model.", ""))),
    "UPIT with dropout": (
        "resnet",
        renamed(network(netG="resnet_2blocks", ngf=2, dropout=True), ("model.", ""))),
    "UPIT, all of its CycleGAN": (
        "resnet",
        renamed(REFERENCE, ("model.", "G_A."))
        | renamed(REFERENCE, ("model.", "G_B."))
        | {f"D_{domain}.{name}": shape
           for domain in "AB" for name, shape in conv("0", 2, 3, 4).items()}),
    "GAN compression": ("resnet", network(netG="mobile_resnet_9blocks", ngf=2)),
    "CUT": ("cut", of(test_cut.Published())),
    "pix2pixHD": ("pix2pixhd", of(test_pix2pixhd.Published())),
    "AnimeGANv2": ("animegan", of(test_animegan.Published())),
    "fast-neural-style": ("fast_style", of(test_fast_style.TransformerNet())),
    "U-GAT-IT": ("ugatit", of(test_ugatit.published())),
    "PyTorch-GAN": ("pytorch_gan", of(PYTORCH_GAN())),
    "huggan": ("pytorch_gan", of(PYTORCH_GAN(2, 9))),
    "kaejong2/CycleGAN-pytorch, one channel": ("pytorch_gan", of(PYTORCH_GAN(channels=1))),
    "aladdinpersson": ("aladdinpersson", of(test_aladdinpersson.Published())),
    "OpenMMLab since 2021": ("mmgeneration", of(test_mmgeneration.Published())),
    "OpenMMLab of 2020": ("mmediting", of(test_mmgeneration.Published())),
    "Udacity": ("udacity", of(test_course.Udacity())),
    "CSC321": ("toronto", of(test_course.Csc321())),
    "CSC413": ("toronto", of(test_course.Csc413())),
    "mnist-svhn-transfer, G12": ("mnist_svhn", of(test_course.MnistSvhn())),
    "mnist-svhn-transfer, G21": ("mnist_svhn", of(test_course.MnistSvhn(4, 3, 1))),
    **{f"copy: {name}": ("copies", of(module)) for name, module in COPIES.items()},
}  # fmt: skip

NAMED = {"mmgeneration", "mmediting"}
"""The families whose names are those of another one, so that ``--family`` says which is meant."""

NORMLESS = "model.1/model.2 | model.4 model.6 | {} | model.13 model.16 | model.19"

REFUSED: dict[str, tuple[str, Shapes]] = {
    "wonbeomjang/cyclegan-pytorch: blocks without norms, times 0.2": (
        "", resnet(NORMLESS.format(" ".join(
            f"model.{k}.block.{at}" for k in (8, 9, 10, 11) for at in (1, 4))), ups="conv")
        | batch_norm("model.2", 2)),
    "togheppi/CycleGAN: blocks without the identity": (
        "", resnet("conv1.conv | conv2.conv conv3.conv | "
                   + blocks("resnet_blocks.{k}.resnet_block.1 resnet_blocks.{k}.resnet_block.5")
                   + " | deconv1.deconv deconv2.deconv | deconv3.conv")),
    "IvoryCandy/CycleGAN: blocks without the identity and ReLU": (
        "", resnet("conv1.conv | conv2.conv conv3.conv | "
                   + blocks("resnet_blocks.{k}.resnet_block.1 resnet_blocks.{k}.resnet_block.4")
                   + " | deconv1.deconv deconv2.deconv | deconv3.conv")),
    "jzsherlock4869/cyclegan-pytorch: a norm before the tanh": (
        "", resnet("enc1.conv | enc2.conv enc3.conv | "
                   + blocks("trans.{k}.conv1 trans.{k}.conv2")
                   + " | dec1.deconv dec2.deconv | last_layer.conv")),
    "narumiruna/cyclegan-pytorch": (
        "", resnet("1 | 4.0 5.0 | 6.features.1 6.features.5 7.features.1 7.features.5 | 8.0 9.0"
                   " | 11")),
    "CharlesJWC/CycleGAN-pytorch: one block, several times": (
        "", resnet("conv1 | conv2 conv3 | " + blocks("resblocks.{k}.conv1 resblocks.{k}.conv2")
                   + " | deconv4 deconv5 | conv6")),
    "rrmina/CycleGAN-Pytorch": (
        "", resnet("ConvBlock.0.conv_layer/ConvBlock.0.norm_layer"
                   " | ConvBlock.2.conv_layer/ConvBlock.2.norm_layer"
                   " ConvBlock.4.conv_layer/ConvBlock.4.norm_layer | "
                   + blocks(" ".join(f"ResidualBlock.{{k}}.conv{at}.conv_layer"
                                     f"/ResidualBlock.{{k}}.conv{at}.norm_layer" for at in (1, 2)))
                   + " | DeconvBlock.0.conv_transpose/DeconvBlock.0.norm_layer"
                   " DeconvBlock.2.conv_transpose/DeconvBlock.2.norm_layer"
                   " | DeconvBlock.4.conv_layer", norms="affine", bias=False, head_bias=False)),
    "luwanglin/CycleGAN-pytorch-clean-implementation-": (
        "", resnet("initial_layers.0.conv2d/initial_layers.1"
                   " | initial_layers.3.conv2d/initial_layers.4"
                   " initial_layers.6.conv2d/initial_layers.7 | "
                   + blocks("res_layers.{k}.conv1.conv2d/res_layers.{k}.in1"
                            " res_layers.{k}.conv2.conv2d/res_layers.{k}.in2", 9)
                   + " | upsample_layers.0.conv2d/upsample_layers.1"
                   " upsample_layers.3.conv2d/upsample_layers.4 | upsample_layers.6.conv2d",
                   norms="affine", ups="conv")),
    "byrkbrk/cycle-gan: GELU": (
        "", resnet("model.0.0 | model.1.model.0 model.2.model.0 | model.3.model.0 model.3.model.3"
                   " model.4.model.0 model.4.model.3 | model.5.model.0 model.6.model.0"
                   " | model.7.0")),
    "theopfr/cycle-gan-pytorch: ReLU behind the sum": (
        "", resnet("encoder.0.layers.0 | encoder.1.layers.0 encoder.2.layers.0 | "
                   + blocks("residual_blocks.{k}.layers.0.layers.0"
                            " residual_blocks.{k}.layers.1.layers.0")
                   + " | decoder.0.layers.0 decoder.1.layers.0 | decoder.2.layers.0")),
    "Lornatang/CycleGAN-PyTorch of April 2020": (
        "", resnet("head.1 | downsample.0 downsample.3 | " + blocks("res.{k}.res.1 res.{k}.res.5")
                   + " | upsample.0 upsample.3 | tail.1")),
    "hanyoseob/pytorch-CycleGAN, ResNet": (
        "", resnet("enc1.cbr.0.conv | enc2.cbr.0.conv enc3.cbr.0.conv | "
                   + blocks("res.{k}.resblk.1.cbr.0.conv res.{k}.resblk.3.cbr.0.conv")
                   + " | dec3.decbr.0.deconv dec2.decbr.0.deconv | dec1.cbr.0.conv",
                   down_side=4)),
    "hanyoseob/pytorch-CycleGAN, U-Net": (
        "", unet("enc{k}.cbr.0.conv", "dec{k}.decbr.0.deconv", 8)),
    "taras-sereda/CycleGAN-pytorch": (
        "", resnet("enc_conv1 | enc_conv2 enc_conv3 | "
                   + blocks("res_blocks.{k}.conv1 res_blocks.{k}.conv2")
                   + " | dec_conv1 dec_conv2 | dec_conv3", bias=False, head_bias=False)),
    "AttentionGAN": (
        "AttentionGAN", resnet("conv1 | conv2 conv3 | "
                   + blocks("resnet_blocks.{k}.conv1 resnet_blocks.{k}.conv2")
                   + " | deconv1_content deconv2_content | deconv3_content")
        | transposed("deconv1_attention", 8, 4, 3) | transposed("deconv2_attention", 4, 2, 3)
        | conv("deconv3_attention", 10, 2, 1)),
    "CMU 16-726: a block used once or more often": (
        "CSC321", conv("conv1.0", 4, 3, 4, bias=False) | conv("conv2.0", 8, 4, 4, bias=False)
        | conv("resnet_block.conv_layer.0", 8, 8, 3, bias=False)
        | conv("up_conv1.1", 4, 8, 5, bias=False) | conv("up_conv2.1", 3, 4, 5, bias=False)),
    "CSC321, InstanceNorm": (
        "",
        {name: shape for name, shape in of(test_course.Csc321()).items() if ".0." in name}),
    "Udacity, another solution": (
        "", {name.replace("deconv", "dec_conv").replace("res_blocks", "resBlock"): shape
             for name, shape in of(test_course.Udacity()).items()}),
    "StarGAN: the domain is an input": (
        "", resnet("main.0/main.1 | main.3/main.4 main.6/main.7 | "
                   + blocks("main.9.main.0/main.9.main.1 main.9.main.3/main.9.main.4", 1)
                   + " | main.10/main.11 main.13/main.14 | main.16", norms="affine", bias=False,
                   head_bias=False, down_side=4, channels=8)),
    "PyTorch-GAN, pix2pix": (
        "pix2pix", unet("down{k}.model.0", "up{k}.model.0", 8) | conv("final.2", 3, 4, 4)),
    "PyTorch-GAN, UNIT: a generator without its encoder": (
        "", {name: shape for k in (0, 1, 2) for at in (1, 5)
             for name, shape in conv(f"model_blocks.{k}.conv_block.{at}", 8, 8, 3).items()}
        | transposed("model_blocks.3", 8, 4, 4) | transposed("model_blocks.6", 4, 2, 4)
        | conv("model_blocks.10", 3, 2, 7)),
    "PyTorch-GAN, MUNIT: a decoder, whose style is an input": (
        "", {name: shape for k in (0, 1) for at in (1, 5)
             for name, shape in conv(f"model.{k}.block.{at}", 8, 8, 3).items()}
        | conv("model.3", 4, 8, 5) | norm("model.4", 4) | conv("model.7", 2, 4, 5)
        | norm("model.8", 2) | conv("model.11", 3, 2, 7)
        | linear("mlp.model.0", 8, 4) | linear("mlp.model.2", 32, 8)),
    "UPIT, GANILLA": (
        "", conv("conv1", 2, 3, 7) | conv("conv2", 3, 2, 7)
        | conv("layer1.0.conv1", 2, 2, 3, bias=False) | conv("fpn.P5_1", 4, 8, 1)),
    "junyanz, discriminator": (
        "discriminator", conv("model.0", 2, 3, 4) | conv("model.2", 4, 2, 4)
        | conv("model.5", 8, 4, 4) | conv("model.8", 16, 8, 4) | conv("model.11", 1, 16, 4)),
    "PyTorch-GAN, discriminator": (
        "discriminator", conv("model.0", 2, 3, 4) | conv("model.2", 4, 2, 4)
        | conv("model.5", 8, 4, 4) | conv("model.8", 16, 8, 4) | conv("model.12", 1, 16, 4)),
    "aladdinpersson, discriminator": (
        "discriminator", conv("initial.0", 2, 3, 4) | conv("model.0.conv.0", 4, 2, 4)
        | conv("model.1.conv.0", 8, 4, 4) | conv("model.2.conv.0", 16, 8, 4)
        | conv("model.3", 1, 16, 4)),
    "Udacity, discriminator": (
        "discriminator", conv("conv1.0", 2, 3, 4, bias=False) | conv("conv2.0", 4, 2, 4, bias=False)
        | batch_norm("conv2.1", 4) | conv("conv3.0", 8, 4, 4, bias=False) | batch_norm("conv3.1", 8)
        | conv("conv4.0", 16, 8, 4, bias=False) | batch_norm("conv4.1", 16)
        | conv("conv5.0", 1, 16, 4, bias=False)),
    "mnist-svhn-transfer, discriminator of labels": (
        "", conv("conv1.0", 2, 3, 4, bias=False) | conv("conv2.0", 4, 2, 4, bias=False)
        | batch_norm("conv2.1", 4) | conv("conv3.0", 8, 4, 4, bias=False) | batch_norm("conv3.1", 8)
        | conv("fc.0", 11, 8, 4, bias=False)),
}  # fmt: skip
"""A word of the sentence where it tells what the file is or looks most like."""


def state_of(shapes: Shapes) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        name: torch.tensor(1) if name.endswith("num_batches_tracked") else torch.rand(shape) + 0.1
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("layout", LOADED)
def test_a_layout_is_recognised(tmp_path, layout):
    family, shapes = LOADED[layout]
    torch.save(state_of(shapes), tmp_path / "net.pth")
    direction = "AtoB" if any(name.startswith("G_B.") for name in shapes) else None
    named = family if family in NAMED else None
    loaded = load_generator(tmp_path / "net.pth", Selection(direction, family=named))
    assert loaded.family.name == family


@pytest.mark.parametrize("layout", REFUSED)
def test_a_layout_is_refused_with_one_true_sentence(tmp_path, layout):
    word, shapes = REFUSED[layout]
    torch.save(state_of(shapes), tmp_path / "net.pth")
    with pytest.raises(ModelError) as caught:
        load_generator(tmp_path / "net.pth")
    sentence = str(caught.value).removeprefix(str(tmp_path))
    assert "\n" not in sentence
    assert re.search(word, sentence)
    if not word:
        assert "is no network that is known: its" in sentence
        assert "if it is a generator, export it to ONNX where it was trained" in sentence


def test_so_many_layouts_were_looked_at():
    assert len(LOADED) + len(REFUSED) >= 60
    assert len(LOADED) >= 38


def changed(shapes: Shapes, chance: random.Random) -> Shapes:
    """Return a layout with up to three weights absent, renumbered, or of another shape."""
    shapes = dict(shapes)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(list(shapes))
        shape = shapes.pop(name)
        match chance.randrange(4):
            case 0:
                shapes[re.sub(r"\d+", "9999", name, count=1)] = shape
            case 1:
                sides = chance.randrange(6)
                shapes[name] = tuple(chance.choice([0, 1, 2, 3, 7, 10**9]) for _ in range(sides))
            case 2:
                shapes[name] = tuple(10**6 if chance.random() < 0.5 else side for side in shape)
    return shapes


@pytest.mark.parametrize("layout", [*LOADED, *REFUSED])
def test_a_changed_layout_is_read_or_told(layout):
    _, shapes = {**LOADED, **REFUSED}[layout]
    chance = random.Random(layout)
    for _ in range(5):
        strange = changed(shapes, chance)
        found, likeness = recognise(strange).fits, recognise(strange).closest
        assert not found or all(strange.get(name) == shape for name, shape in shapes.items())
        assert likeness is None or likeness.finding
