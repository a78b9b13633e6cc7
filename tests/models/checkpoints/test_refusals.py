"""What is no generator is refused with what it is, in one true sentence, in bounded time."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
import time
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.checkpoints.loading import load_generator
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from tests.models.checkpoints.test_wrappers import discriminator, generator, optimizer, under, vgg

ONE = torch.zeros(1)


def kernel(out: int, into: int, side: int) -> Tensor:
    return torch.zeros(out, into, side, side)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        load_generator(path)
    return str(refused.value).removeprefix(f"{path}: ")


def refused(tmp_path: Path, content: object) -> str:
    torch.save(content, tmp_path / "g.pth")
    return refusal(tmp_path / "g.pth")


OTHERS = {
    "a LoRA": {"lora_unet_down_blocks_0.lora_up.weight": kernel(4, 4, 1), "x.alpha": ONE},
    "CycleGAN-Turbo": {"sd_encoder": {"a.weight": kernel(4, 4, 1)}, "rank_vae": 4},
    "the U-Net of a diffusion network": {
        "model.diffusion_model.time_embed.0.weight": torch.zeros(4, 4),
        "model.diffusion_model.input_blocks.0.0.weight": kernel(4, 4, 3),
    },
    "ESRGAN": {"params_ema": {"conv_first.weight": kernel(4, 3, 3),
                              "body.0.rdb1.conv1.weight": kernel(4, 4, 3)}},
    "SPADE": {"fc.weight": kernel(4, 3, 3), "head_0.norm_0.mlp_shared.0.weight": kernel(4, 3, 3)},
    "StarGAN v2": {"generator": {"decode.0.norm1.fc.weight": torch.zeros(4, 4)}},
    "MUNIT": {"a": {"enc_content.model.0.conv.weight": kernel(4, 3, 7)}},
    "AttentionGAN": {"deconv1_attention.weight": kernel(4, 4, 3)},
    "StyleGAN2": {"g_ema": {"style.1.weight": torch.zeros(4, 4), "to_rgb1.bias": ONE}},
    "the U-Net of PyTorch-GAN's pix2pix": {
        "down1.model.0.weight": kernel(4, 3, 4), "up1.model.0.weight": kernel(4, 4, 4)
    },
    "a U-Net of segmentation": {
        "inc.double_conv.0.weight": kernel(4, 3, 3), "outc.conv.weight": kernel(1, 4, 1)
    },
    "a generator of joliGEN": {
        "encoder.model.1.weight": kernel(4, 3, 7), "decoder.model.0.weight": kernel(4, 4, 3)
    },
    "a ResNet that classifies": {
        "layer1.0.conv1.weight": kernel(4, 4, 3), "layer4.0.conv1.weight": kernel(4, 4, 3)
    },
    "VGG": vgg() | {"classifier.0.weight": torch.zeros(4, 4)},
    "a discriminator (PatchGAN)": {"state_dict": discriminator()},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_another_network_is_named(tmp_path, kind):
    sentence = refused(tmp_path, OTHERS[kind])
    assert sentence.startswith(f"is no generator of a CycleGAN: it is {kind}")
    assert sentence.endswith("; give the generator's weights, e.g. latest_net_G_A.pth")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"netD_A": discriminator(), "netD_B": discriminator(), "epoch": 3},
            "holds no generator that is known, only netD_A (a discriminator (PatchGAN)), netD_B (a "
            "discriminator (PatchGAN)); give the generator's weights, e.g. latest_net_G_A.pth",
        ),
        (
            optimizer(),
            "is the state of an optimizer, not of a network; save the weights of one generator "
            "alone: torch.save(netG.state_dict(), path)",
        ),
        (
            {"generator": {"conv.weight": np.zeros((4, 4), np.float32)}},
            "holds arrays of NumPy where tensors of torch are expected; give a PyTorch checkpoint "
            "of the generator, or an ONNX",
        ),
        (
            {"netG_A": {n: v for n, v in generator().items() if n != "model.14.bias"}},
            "its netG_A is no network that is known; it looks most like the reference CycleGAN's "
            "ResNet, but it lacks 'model.14.bias', which a resnet_1blocks has; save the weights "
            "again: torch.save(netG.state_dict(), path), or export it to ONNX where it was "
            "trained, and give that file",
        ),
        (
            {"netG": generator() | {"model.4.bias": torch.full((4,), torch.nan)}},
            "its 'netG.model.4.bias' holds NaN or infinity where weights are finite; take a "
            "checkpoint from before the training broke",
        ),
    ],
    ids=["discriminators", "an optimizer", "NumPy", "one weight short", "broken"],
)
def test_what_a_file_holds_instead_is_said(tmp_path, content, sentence):
    assert refused(tmp_path, content) == sentence


def test_a_broken_network_beside_the_one_that_is_meant_does_no_harm(tmp_path):
    broken = {name: torch.full_like(value, torch.nan) for name, value in discriminator().items()}
    torch.save({"netG": generator(), "netD": broken}, tmp_path / "g.pth")
    assert load_generator(tmp_path / "g.pth").prefix == "netG"


# Files of other programs


class Foreign:
    """An object whose pickle names a class of another program."""

    def __init__(self, name: str) -> None:
        self.module, _, self.name = name.rpartition(".")

    def pickled(self, protocol: int) -> bytes:
        if protocol < 4:
            return b"\x80\x02c%s\n%s\n)\x81." % (self.module.encode(), self.name.encode())
        texts = [b"\x8c%c%s" % (len(t), t.encode()) for t in (self.module, self.name)]
        return b"\x80\x04" + b"".join(texts) + b"\x93)\x81."


@pytest.mark.behaviour(43)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dnnlib.tflib.network.Network", " (a network of StyleGAN, with its code)"),
        ("fastai.learner.Learner", " (a learner of fastai)"),
        ("lightning.fabric.utilities.data.AttributeDict", ""),
        ("models.networks.ResnetGenerator", ""),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_another_program_is_named(tmp_path, name, words, protocol):
    path = tmp_path / "g.pkl"
    path.write_bytes(Foreign(name).pickled(protocol))
    assert refusal(path).startswith(f"is a pickle that holds {name}{words} where only named tensor")


@pytest.mark.behaviour(43)
def test_nothing_of_numpy_runs(tmp_path, monkeypatch):
    """A type of NumPy in a pickle is no type of NumPy any more."""
    called = []
    monkeypatch.setattr(np, "dtype", lambda *args: called.append(args))
    path = tmp_path / "g.pth"
    reduced = b"\x80\x02}X\x01\x00\x00\x00acnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87Rs."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("g/data.pkl", reduced)
        archive.writestr("g/version", "3\n")
    assert refusal(path).startswith("holds arrays of NumPy where tensors of torch are expected")
    assert called == []


@pytest.mark.behaviour(43)
def test_nothing_of_the_options_beside_the_weights_runs(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(Namespace, "__init__", lambda *args, **values: called.append(values))
    path = tmp_path / "g.pth"
    reduced = b"\x80\x02cargparse\nNamespace\nX\x01\x00\x00\x00a\x85R}X\x01\x00\x00\x00bK\x01sb."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("g/data.pkl", reduced)
        archive.writestr("g/version", "3\n")
    assert refusal(path).startswith("holds options, a path or a time where named tensors are expec")
    assert called == []


def test_a_torchscript_archive_is_named(tmp_path):
    path = tmp_path / "g.pt"
    path.write_bytes(zipped("g/data.pkl", "g/code/__torch__.py", "g/constants.pkl", "g/version"))
    assert refusal(path) == (
        "is a TorchScript archive, which holds the network as code; save its weights alone: "
        "torch.save(torch.jit.load(path).state_dict(), 'weights.pth')"
    )


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("netG.pth"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file, as Keras saves its models, where a PyTorch "
         "checkpoint is expected; give the .pth or .safetensors file of a generator, or an ONNX"),
        (zipped("config.json", "model.weights.h5"), "is a model of Keras, no PyTorch checkpoint; "
         "convert it to ONNX with tf2onnx, and give that file"),
        (zipped("a.npy"), "is a zip archive of arrays of NumPy, no PyTorch checkpoint; give the "
         ".pth or .safetensors file of a generator"),
        (tarred(), "is a tar archive where the checkpoint in it is expected; give the .pth or "
         ".safetensors file of a generator, or an ONNX"),
        (pickle.dumps({"a": 1}, 2), "is a pickle that torch.save did not write; where it comes "
         "from, save the weights again: torch.save(netG.state_dict(), path)"),
    ],
    ids=["h5", "keras", "npz", "tar", "pickle"],
)  # fmt: skip
def test_a_file_of_another_program_is_named(tmp_path, content, sentence):
    path = tmp_path / "g.pth"
    path.write_bytes(content)
    assert refusal(path) == sentence


# Hostile content


def nested(depth: int, copies: int) -> dict[str, object]:
    content: dict[str, object] = {"w": torch.ones(2)}
    for _ in range(depth):
        content = {f"a{index}": content for index in range(copies)}
    return content


def endless() -> dict[str, object]:
    content: dict[str, object] = {"w": torch.ones(2)}
    content["itself"] = content
    return content


def overlapping() -> dict[str, Tensor]:
    """Return weights of a large network that lie in the same few numbers."""
    config = GeneratorConfig("resnet_99blocks", ngf=8)
    with torch.device("meta"):
        state = generator_from_config(config).state_dict()
    numbers = torch.zeros(max(value.numel() for value in state.values()) + len(state))
    return {
        name: numbers[start : start + value.numel()].view(value.shape)
        for start, (name, value) in enumerate(state.items())
    }


HOSTILE = {
    "deep": (lambda: nested(300, 1), "nests its content more than 24 deep; save"),
    "endless": (endless, "nests its content more than 24 deep; save"),
    "many in few": (lambda: nested(20, 2), "holds more than 200,000 lists and dicts; save"),
    "many tensors": (
        lambda: {f"a{index}": ONE for index in range(50_001)}, "holds more than 50,000 tensors; sa"
    ),
    "a long name": (lambda: {"a" * 10**6: ONE}, "has a name of more than 400 characters ('aaaa"),
    "twice": (
        lambda: {"a": {"b.c": ONE}, "a.b": {"c": ONE}}, "has two tensors of the name 'a.b.c'; save"
    ),
    "dots": (lambda: {"." * 300: ONE, "": ONE}, "is no network that is known: its 2 weights begin"),
    "overlapping": (overlapping, "declares more weights than it holds; save the weights again"),
    "no values": (
        lambda: generator() | {"model.4.bias": torch.zeros(4, device="meta")},
        "its 'model.4.bias' has a shape and no values; save the weights again",
    ),
    "sparse": (
        lambda: generator() | {"model.4.bias": torch.zeros(4).to_sparse()},
        "its 'model.4.bias' is torch.float32 (torch.sparse_coo) where weights are dense floating",
    ),
    "many blocks in few weights": (
        lambda: {
            f"g{index}.model.{name}.weight": kernel(2, into, side)
            for index in range(8)
            for name, into, side in (
                ("1", 3, 7), ("10.conv_block.1", 2, 3), ("999.conv_block.1", 2, 3), ("4", 2, 3),
                ("7", 2, 3),
            )
        },
        "",
    ),
}  # fmt: skip


@pytest.mark.behaviour(43)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_content_is_refused_in_bounded_time(tmp_path, kind):
    build, sentence = HOSTILE[kind]
    torch.save(build(), tmp_path / "g.pth")
    began = time.process_time()
    assert refusal(tmp_path / "g.pth").startswith(sentence)
    assert time.process_time() - began < 40


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_many_small_objects_is_not_read(tmp_path, zipped, monkeypatch):
    monkeypatch.setattr("cyclegan_batch.models.checkpoints.content._MOST_PICKLED", 2**20)
    path, lists = tmp_path / "g.pth", b"\x80\x02" + b"]" * (2**20 + 9) + b"."
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("g/data.pkl", lists)
    else:
        before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(each, 2) for each in before) + lists)
    assert refusal(path).startswith("holds more than 1 MiB besides its tensors; save the weights")


def test_weights_that_are_tied_are_read_once(tmp_path):
    state = generator()
    state["model.10.conv_block.5.weight"] = state["model.10.conv_block.1.weight"]
    torch.save(state, tmp_path / "g.pth")
    found = load_generator(tmp_path / "g.pth").network.state_dict()
    first, second = (found[f"model.10.conv_block.{index}.weight"] for index in (1, 5))
    assert torch.equal(first, state["model.10.conv_block.1.weight"])
    assert first.data_ptr() == second.data_ptr()


def test_what_is_loaded_does_not_change_with_the_file(tmp_path):
    path = tmp_path / "g.pth"
    torch.save(generator(1), path)
    network = load_generator(path).network
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    own, expected = network.state_dict(), generator(1)
    assert all(torch.equal(own[name], expected[name]) for name in own)


_CHANGED = 4_000


@pytest.mark.slow
@pytest.mark.behaviour(43)
def test_thousands_of_changed_files_are_generators_or_clear_refusals(tmp_path):
    """Structure is changed, too: names, shapes, kinds, what lies in what."""
    draws = random.Random(0)
    path = tmp_path / "g.pth"
    whole = {
        "state_dict": under("module.netG_A.", generator()) | under("netD_A.", discriminator()),
        "params_ema": generator(1),
        "optimizer": optimizer(),
    }
    loaded = 0
    for index in range(_CHANGED):
        torch.save(_changed(whole, draws), path)
        if index % 2:
            content = bytearray(path.read_bytes())
            for _ in range(draws.randint(1, 4)):
                content[draws.randrange(len(content))] = draws.randrange(256)
            path.write_bytes(content)
        try:
            load_generator(path)
            loaded += 1
        except ModelError:
            pass
    assert 0 < loaded < _CHANGED


def _changed(content: object, draws: random.Random) -> object:
    """Return a copy of nested dicts of tensors with a few changes."""
    if isinstance(content, Tensor):
        if draws.random() > 0.005:
            return content
        return draws.choice((
            content.flatten(), content[:0] if content.ndim else content, content.double(),
            content.to(torch.int32), torch.zeros(1).expand(2**draws.randrange(40)), None, 7, [],
            torch.zeros(2, 3, 7, 7), torch.zeros(4, 4, 3, 3), content.to_sparse(),
        ))  # fmt: skip
    if not isinstance(content, dict):
        return content
    changed: dict[object, object] = {}
    for key, value in content.items():
        fate = draws.random()
        if fate < 0.003:
            continue
        if fate < 0.006:
            key = draws.choice(("", ".", "model.1.weight", "module", "0.weight", 5, "a.b.c",
                                "model.99.conv_block.1.weight", f"{key}.x", f".{key}"))  # fmt: skip
        changed[key] = _changed(value, draws)
    return changed
