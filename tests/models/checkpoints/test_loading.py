"""Checkpoints are read by names and shapes alone, and no code in them is ever run."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.checkpoints.loading import Selection, load_generator
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from cyclegan_batch.wording import grouped
from tests.synthesis import formulas

MOBILE = (8, 12, 20, 6, 10, 12, 8)

KINDS = [
    GeneratorConfig("resnet_9blocks", ngf=2),
    GeneratorConfig("resnet_6blocks", ngf=5),
    GeneratorConfig("resnet_0blocks", ngf=4),
    GeneratorConfig("resnet_6blocks", ngf=4, dropout=True),
    GeneratorConfig("resnet_2blocks", 1, 3, 4),
    GeneratorConfig("resnet_2blocks", 3, 1, 4, upsample="resize"),
    GeneratorConfig("resnet_9blocks", ngf=2, norm="batch"),
    GeneratorConfig("resnet_2blocks", ngf=4, norm="batch", dropout=True),
    GeneratorConfig("resnet_2blocks", ngf=4, norm="none"),
    GeneratorConfig("unet_256", ngf=2),
    GeneratorConfig("unet_128", ngf=3, norm="batch"),
    GeneratorConfig("unet_32", 1, 1, 2, norm="none", upsample="resize"),
    GeneratorConfig("mobile_resnet_9blocks", ngf=4),
    GeneratorConfig("mobile_resnet_2blocks", ngf=8, widths=MOBILE),
    GeneratorConfig("mobile_resnet_2blocks", ngf=8, widths=MOBILE, upsample="resize"),
    GeneratorConfig("mobile_resnet_2blocks", ngf=4, norm="batch"),
]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network_of(config: GeneratorConfig) -> nn.Module:
    """Return a network whose weights are neither zero nor equal to each other."""
    network = generator_from_config(config)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) * 0.2 + 0.1)
    return network.eval()


def small(**changes) -> dict[str, torch.Tensor]:
    return dict(network_of(GeneratorConfig("resnet_2blocks", ngf=4, **changes)).state_dict())


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.behaviour(34)
@pytest.mark.parametrize("config", KINDS, ids=str)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_generator_is_found_by_its_shapes(tmp_path, config, kind):
    network = network_of(config)
    path = tmp_path / f"latest_net_G_A.{kind}"
    if kind == "pth":
        torch.save(network.state_dict(), path)
    else:
        safetensors.torch.save_file(network.state_dict(), path, {"netG": config.netG})
    loaded = load_generator(path)
    assert loaded.config == config
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.metadata == ({} if kind == "pth" else {"netG": config.netG})
    assert not loaded.network.training
    x = torch.rand(1, config.input_nc, config.sizes.minimum, config.sizes.minimum) * 2 - 1
    torch.testing.assert_close(loaded.network(x), network(x), rtol=0, atol=0)


@pytest.mark.behaviour(34)
def test_what_is_loaded_computes_the_published_formula(tmp_path):
    state = {
        name: torch.randn_like(value) * 0.1
        for name, value in network_of(GeneratorConfig("resnet_6blocks", ngf=4)).state_dict().items()
    }
    network = load_generator(saved(tmp_path / "g.pth", state)).network
    x = torch.rand(1, 3, 16, 20) * 2 - 1
    torch.testing.assert_close(network(x), formulas.resnet(state, x, 6), rtol=0, atol=1e-6)


@pytest.mark.behaviour(34)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_wrappers_before_the_names_are_dropped(tmp_path, prefix):
    state = small()
    wrapped = OrderedDict((prefix + name, value) for name, value in state.items())
    found = load_generator(saved(tmp_path / "g.pth", wrapped)).network.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.behaviour(34)
@pytest.mark.parametrize("netG", ["resnet_2blocks", "unet_32"])
@pytest.mark.parametrize("counts", [False, True])
def test_the_statistics_that_old_instance_norms_kept_are_dropped(tmp_path, netG, counts):
    config = GeneratorConfig(netG, ngf=4)
    network = network_of(config)
    state = dict(network.state_dict())
    for name, module in network.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            state[f"{name}.running_mean"] = torch.rand(module.num_features)
            state[f"{name}.running_var"] = torch.rand(module.num_features)
            if counts:
                state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    assert len(state) > len(network.state_dict())
    loaded = load_generator(saved(tmp_path / "g.pth", state))
    assert loaded.config == config
    # inspect tells it; a run does not, since the reference implementation drops them as well.
    assert counts == any("statistics of each frame" in clause for clause in loaded.published)
    assert loaded.notes == ()
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.network(x), network(x))


@pytest.mark.behaviour(34)
@pytest.mark.parametrize("netG", ["resnet_2blocks", "unet_32"])
def test_a_network_without_a_trace_of_norms_is_told_to_have_none(tmp_path, netG):
    """InstanceNorm behind convolutions without a bias leaves no trace either."""
    for norm, told in (("none", True), ("instance", False), ("batch", False)):
        state = network_of(GeneratorConfig(netG, ngf=4, norm=norm)).state_dict()
        assumed = load_generator(saved(tmp_path / "g.pth", state)).assumed
        assert any("it has no norms" in clause for clause in assumed) == told


@pytest.mark.behaviour(34)
def test_batch_norms_from_before_batches_were_counted_are_read(tmp_path):
    network = network_of(GeneratorConfig("resnet_2blocks", ngf=4, norm="batch"))
    state = {n: v for n, v in network.state_dict().items() if "num_batches" not in n}
    x = torch.rand(1, 3, 16, 16)
    loaded = load_generator(saved(tmp_path / "g.pth", state)).network
    assert torch.equal(loaded(x), network(x))


def test_what_a_file_says_of_its_training_is_read(tmp_path):
    path = tmp_path / "g.safetensors"
    for said, size in (("256", 256), ("null", None), ("", None)):
        safetensors.torch.save_file(small(), path, {"trained_size": said})
        assert load_generator(path).trained_size == size


@pytest.mark.parametrize("config", [KINDS[4], KINDS[8], KINDS[9]], ids=str)
def test_what_a_training_has_written_about_its_network_leaves_nothing_to_assume(tmp_path, config):
    path, state = tmp_path / "g.safetensors", dict(network_of(config).state_dict())
    own = {"format": "cyclegan-batch generator 1", "generator": json.dumps(asdict(config))}
    foreign = own | {"format": "pt"}
    other = own | {"generator": json.dumps(asdict(replace(config, ngf=9)))}
    broken = [own | {"generator": text} for text in ("{", "[" * 10**6)]
    for metadata in (own, foreign, other, *broken, {}):
        safetensors.torch.save_file(state, path, metadata)
        recognised = load_generator(path).recognised
        certain = recognised.certainty.startswith("certain (")
        assert certain == (metadata is own or config.family == "unet")


def test_where_the_reference_would_draw_another_picture_is_said(tmp_path):
    assert load_generator(saved(tmp_path / "g.pth", small())).notes == ()
    state = small(norm="batch", dropout=True)
    (note,) = grouped(load_generator(saved(tmp_path / "g.pth", state)).notes)
    assert note.startswith("g.pth: BatchNorm uses the statistics of its training and dropout is o")


@pytest.mark.parametrize("zipped", [False, True])
def test_both_formats_of_torch_are_read(tmp_path, zipped):
    path = tmp_path / "g.pth"
    torch.save(small(), path, _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(path) == zipped
    assert load_generator(path).config == GeneratorConfig("resnet_2blocks", ngf=4)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(tmp_path, half):
    state = {name: value.to(half) for name, value in small().items()}
    found = load_generator(saved(tmp_path / "g.pth", state)).network.state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in state.items())


# What is no generator


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.behaviour(43)
@pytest.mark.parametrize("how", ["pickle", "torch", "torch, old", "among the weights"])
def test_a_pickle_with_a_payload_is_not_run_errors(tmp_path, how):
    path, witness = tmp_path / "g.pth", tmp_path / "witness"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(witness)))
    elif how == "among the weights":
        torch.save({**small(), "extra": Payload(witness)}, path)
    else:
        torch.save(Payload(witness), path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(
        ModelError, match=r"g\.pth: is a pickle .* since anything else could run code; where"
    ):
        load_generator(path)
    assert not witness.exists()


@pytest.mark.behaviour(43)
def test_a_whole_pickled_network_is_named_errors(tmp_path):
    path = saved(tmp_path / "g.pth", network_of(GeneratorConfig("resnet_2blocks", ngf=4)))
    message = r"holds cyclegan_batch\.models\.networks\.ResnetGenerator .* save the weights again"
    with pytest.raises(ModelError, match=message):
        load_generator(path)


@pytest.mark.behaviour(43)
def test_options_in_a_pickle_are_named_errors(tmp_path):
    path = tmp_path / "opt.pkl"
    path.write_bytes(pickle.dumps(argparse.Namespace(netG="resnet_9blocks"), protocol=2))
    with pytest.raises(ModelError, match=r"opt\.pkl: is a pickle that torch\.save did not write"):
        load_generator(path)


def test_a_discriminator_is_named_errors(tmp_path):
    patchgan = {"model.0.weight": torch.rand(4, 3, 4, 4), "model.0.bias": torch.rand(4)}
    pixel = {"net.0.weight": torch.rand(4, 3, 1, 1), "net.0.bias": torch.rand(4)}
    for state, kind in ((patchgan, "PatchGAN"), (pixel, "pixel")):
        message = rf"is no generator of a CycleGAN: it is a discriminator \({kind}\); give the gen"
        with pytest.raises(ModelError, match=message):
            load_generator(saved(tmp_path / "latest_net_D_A.pth", state))


def test_another_network_is_named_errors(tmp_path):
    path = saved(tmp_path / "vgg.pth", {"features.0.weight": torch.rand(4, 3, 3, 3)})
    with pytest.raises(
        ModelError, match=r"known: its 1 weights begin with 'features\.0\.weight' \(4, 3"
    ):
        load_generator(path)


@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_truncated_file_errors(tmp_path, kept, kind):
    path = tmp_path / "g.pth"
    if kind == "safetensors":
        safetensors.torch.save_file(small(), path)
    else:
        torch.save(small(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ModelError, match=r"g\.pth: is (no whole|a pickle)"):
        load_generator(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty where a checkpoint is expected"),
        (b"<!DOCTYPE html>\n<html>not found</html>", "is text where a checkpoint is expected"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image where a PyTorch checkpoint is expected"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", "is no PyTorch checkpoint and no safetensors file"),
        (b"PK\x03\x04 and no zip", "is no whole PyTorch checkpoint"),
        (b"\x80\x02 and no pickle", "g.pth: is "),
        (b"\x10\0\0\0\0\0\0\0{'not': json}    ", "is no whole safetensors file"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_no_checkpoint_at_all_errors(tmp_path, content, message):
    path = tmp_path / "g.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_generator(path)


def test_a_missing_file_and_a_folder_errors(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read .*g\.pth: No such file .*; check the name"):
        load_generator(tmp_path / "g.pth")
    with pytest.raises(ModelError, match=r"cannot read .*: Is a directory"):
        load_generator(tmp_path)


def test_a_zip_of_something_else_errors(tmp_path):
    path = tmp_path / "g.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    message = r"is a zip archive of other files \('readme\.txt'\), no PyTorch checkpoint; give the"
    with pytest.raises(ModelError, match=message):
        load_generator(path)


def test_a_compressed_archive_errors(tmp_path):
    torch.save(small(), tmp_path / "plain.pth")
    path = tmp_path / "g.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(
        ModelError, match=r"data\.pkl' compressed, where torch does not compress; save"
    ):
        load_generator(path)


def test_a_weight_that_repeats_what_it_holds_errors(tmp_path):
    state = small() | {"model.4.bias": torch.zeros(1).expand(8)}
    with pytest.raises(
        ModelError, match=r"'model\.4\.bias' declares a shape \(\(8,\)\) larger than its content"
    ):
        load_generator(saved(tmp_path / "g.pth", state))
    state = small() | {"model.4.bias": torch.zeros(1).expand(2**40)}
    with pytest.raises(ModelError, match=r"'model\.4\.bias' is \(1099511627776,\) where a resnet"):
        load_generator(saved(tmp_path / "g.pth", state))


@pytest.mark.behaviour(43)
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_whatever_bytes_change_it_is_a_generator_or_a_clear_refusal(tmp_path, kind):
    path = tmp_path / "g.pth"
    state = generator_from_config(GeneratorConfig("resnet_0blocks", ngf=1)).state_dict()
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content, draws = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        changed = bytearray(content)
        # The structure of the formats is in the head and the tail.
        for _ in range(draws.randint(1, 4)):
            where = draws.choice((min(2000, len(content)), len(content)))
            changed[draws.randrange(where)] = draws.randrange(256)
        path.write_bytes(changed)
        try:
            load_generator(path)
        except ModelError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1.0, 2.0], "holds list where named tensors are expected"),
        ({}, "holds dict where named tensors are expected"),
        ({"netG_A": {"w": 1}, "epoch": 3}, r"holds no named tensors, only 'netG_A', 'epoch'; save"),
        ({1: torch.ones(2)}, "holds no named tensors; save the weights of one"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_other_contents_errors(tmp_path, state, message):
    with pytest.raises(ModelError, match=message):
        load_generator(saved(tmp_path / "g.pth", state))


def _renumber(state, old, new):
    return {name.replace(f"model.{old}.", f"model.{new}."): value for name, value in state.items()}


def _without(state, name):
    return {key: value for key, value in state.items() if key != name}


BLOCK = "model.11.conv_block"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: _without(s, "model.15.bias"), r"lacks 'model\.15\.bias', which a resnet_2blo"),
        (lambda s: s | {"model.9.weight": torch.rand(2)}, r"it has 'model\.9\.weight', which"),
        (
            lambda s: s | {f"{BLOCK}.5.weight": torch.rand(16, 16, 5, 5)},
            r"'model\.11\.conv_block\.5\.weight' is \(16, 16, 5, 5\) where .* has \(16, 16, 3, 3\)",
        ),
        (lambda s: _renumber(s, 11, 12), r"lacks 'model\.11\.conv_block\.1\.weight', which a resn"),
        (lambda s: s | {"model.4.bias": torch.full((8,), torch.nan)}, "holds NaN or infinity"),
        (lambda s: s | {"model.4.bias": torch.ones(8, dtype=torch.int8)}, "is torch.int8"),
        (lambda s: s | {"model.1.weight": torch.rand(0, 3, 7, 7)}, "ngf = 0 must be 1 or more"),
        (lambda s: s | {"model.1.weight": torch.rand(7, 7)}, "is no network that is known"),
        (lambda s: s | {"model.19.weight": torch.rand(7, 7)}, r"'model\.19\.weight' is \(7, 7\)"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_network_that_is_almost_ours_errors(tmp_path, change, message):
    path = saved(tmp_path / "g.pth", change(small()))
    with pytest.raises(ModelError, match=message) as refused:
        load_generator(path)
    assert str(refused.value).count("; ") >= 1


def test_a_batch_norm_without_weights_errors(tmp_path):
    state = small(norm="none") | {"model.2.running_mean": torch.rand(4)}
    with pytest.raises(ModelError, match="a norm that has running statistics and no weights"):
        load_generator(saved(tmp_path / "g.pth", state))


def test_a_unet_of_other_levels_errors(tmp_path):
    state = {"model.model.0.weight": torch.rand(4, 3, 4, 4)}
    with pytest.raises(ModelError, match="is a U-Net of 1 levels where 5 to 16 are supported"):
        load_generator(saved(tmp_path / "g.pth", state))


def test_a_named_family_is_the_only_one_that_is_tried(tmp_path):
    path = saved(tmp_path / "g.pth", small())
    assert load_generator(path, Selection(family="resnet")).family.name == "resnet"
    with pytest.raises(ModelError, match=r"no family 'vgg': it is one of resnet, unet"):
        load_generator(path, Selection(family="vgg"))
    message = r"does not fit the family unet \(.*\): its names have no sign of it; it fits resnet"
    with pytest.raises(ModelError, match=message):
        load_generator(path, Selection(family="unet"))
    path = saved(tmp_path / "g.pth", small() | {"model.9.weight": torch.rand(2)})
    with pytest.raises(ModelError, match=r"does not fit the family resnet .*: it has 'model\.9\."):
        load_generator(path, Selection(family="resnet"))
