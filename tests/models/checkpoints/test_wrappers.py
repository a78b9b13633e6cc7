"""A generator is found wherever training programs put its weights, and the one that is meant."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.checkpoints.files import Selection
from cyclegan_batch.models.checkpoints.loading import LoadedGenerator, load_generator
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from cyclegan_batch.options import Direction
from tests.models.checkpoints.families.test_copies import COPIES

CONFIG = GeneratorConfig("resnet_1blocks", ngf=2)
State = dict[str, Tensor]


def generator(seed: int = 0, config: GeneratorConfig = CONFIG) -> State:
    """Return the weights of a small generator, other ones for each seed."""
    torch.manual_seed(seed)
    return dict(generator_from_config(config).state_dict())


def discriminator() -> State:
    """Return the weights of a PatchGAN."""
    layers = [nn.Conv2d(3, 4, 4), nn.Identity(), nn.Conv2d(4, 8, 4), nn.Conv2d(8, 1, 4)]
    return {f"model.{name}": value for name, value in nn.Sequential(*layers).state_dict().items()}


def vgg() -> State:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)]
    state = nn.Sequential(*layers).state_dict()
    return {f"features.{name}": value for name, value in state.items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: value for name, value in state.items()}


def bare(state: State) -> State:
    """Return the names that a network's sequence of layers has by itself."""
    return {name.removeprefix("model."): value for name, value in state.items()}


def optimizer() -> dict[str, object]:
    """Return the state of an optimizer that has taken a step."""
    network = nn.Linear(3, 3)
    adam = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3)).sum().backward()
    adam.step()
    return adam.state_dict()


def load(tmp_path: Path, content: object, **selection: str) -> LoadedGenerator:
    path = tmp_path / "g.pth"
    torch.save(content, path)
    return load_generator(path, Selection(**selection))


def is_of(loaded: LoadedGenerator, seed: int) -> bool:
    own, expected = loaded.network.state_dict(), generator(seed)
    return list(own) == list(expected) and all(torch.equal(own[n], expected[n]) for n in own)


ONE = {
    "state_dict": {"state_dict": generator(), "epoch": 3, "optimizer": optimizer()},
    "params_ema": {"params_ema": generator()},
    "model": {"model": generator(), "loss": 0.5, "name": "horse2zebra", "best": None},
    "generator": {"generator": generator(), "discriminator": discriminator()},
    "netG_A": {"netG_A": generator(), "netD_A": discriminator(), "lr": [1e-4, 2e-4]},
    "G_A2B": {"G_A2B": generator(), "D_A": discriminator(), "D_B": discriminator()},
    "nested": {"checkpoint": {"networks": {"G": generator()}}, "step": torch.tensor(9)},
    "nested, prefixed": {"checkpoint": {"state_dict": under("module.netG.", generator())}},
    "a prefix": under("netG_A.", generator()),
    "generator.": under("generator.", generator()),
    "wrappers in front": under("module._orig_mod.netG.module.", generator()),
    "wrappers inside": {n.replace("model.", "model.module."): v for n, v in generator().items()},
    "compiled inside": {
        n.replace("model.", "netG.model._orig_mod."): v for n, v in generator().items()
    },
    "bare": bare(generator()),
    "bare, in a dict": {"G": bare(generator()), "epoch": 1},
    "bare, as model": {"model": bare(generator()), "opt": optimizer()},
    "bare, prefixed": under("netG.", bare(generator())) | under("netD.", discriminator()),
    "an average": under("module.", generator()) | {"n_averaged": torch.tensor(8)},
    "an average, in a dict": {
        "g_ema": under("module.", generator()) | {"n_averaged": torch.tensor(8)}
    },
    "in a list": [generator(), discriminator()],
    "in a tuple": (3, generator()),
    "ordered": OrderedDict(state_dict=OrderedDict(generator()), scheduler={"_step_count": 4}),
    "Lightning": {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {
            **under("generator.", generator()),
            **under("discriminator.", discriminator()),
            **under("loss.vgg.", vgg()),
            "loss.mean": torch.rand(1, 3, 1, 1),
        },
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_k_models": {}, "kth_value": None}},
        "optimizer_states": [optimizer(), optimizer()],
        "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 1}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"ngf": 2, "lr": 1e-4, "domains": ["A", "B"]},
    },
    "Lightning, named model": {
        "state_dict": under("model.", generator()) | under("vgg.", vgg()),
        "optimizer_states": [optimizer()],
    },
    "losses of NumPy": {
        "state_dict": generator(),
        "best": np.float64(3.5),
        "step": np.int64(7),
        "history": np.arange(5.0),
    },
    "options, paths and times": {
        "opt": Namespace(ngf=2, results=Path("runs", "zebra"), more=SimpleNamespace(lr=2e-4)),
        "opened": PureWindowsPath("C:/runs"),
        "saved": datetime(2024, 5, 1, tzinfo=UTC),
        "took": timedelta(hours=3),
        "state_dict": generator(),
    },
}


@pytest.mark.behaviour(34, 49)
@pytest.mark.parametrize("kind", ONE)
def test_one_generator_is_found_in_what_surrounds_it(tmp_path, kind):
    assert is_of(load(tmp_path, ONE[kind]), 0)


@pytest.mark.behaviour(34, 49)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_bare_unet_is_found(tmp_path, norm):
    config = GeneratorConfig("unet_32", ngf=2, norm=norm)
    state = bare(generator(0, config))
    assert "0.weight" not in state
    assert "model.0.weight" in state
    for each in (state, {"netG": state}):
        assert load(tmp_path, each).config == config


def test_a_safetensors_file_with_a_prefix_is_read(tmp_path):
    path = tmp_path / "g.safetensors"
    content = under("netG_B.", generator(1)) | under("netD_B.", discriminator())
    safetensors.torch.save_file(content, path, {"trained_size": "128"})
    loaded = load_generator(path)
    assert is_of(loaded, 1)
    assert (loaded.prefix, loaded.direction, loaded.trained_size) == ("netG_B", "BtoA", 128)
    assert loaded.others == {"netD_B": "a discriminator (PatchGAN)"}


def two(a: str, b: str) -> dict[str, State]:
    return {a: generator(1), b: generator(2)}


DIRECTIONS: dict[str, tuple[str, Direction | None]] = {
    "netG_A": ("netG_A", "AtoB"),
    "netG_B": ("netG_B", "BtoA"),
    "G_A": ("G_A", "AtoB"),
    "module.netG_B": ("module.netG_B", "BtoA"),
    "state_dict.G_B": ("state_dict.G_B", "BtoA"),
    "netG_A_ema": ("netG_A_ema", "AtoB"),
    "G_A2B": ("G_A2B", "AtoB"),
    "netG_B2A": ("netG_B2A", "BtoA"),
    "genA2B": ("genA2B", "AtoB"),
    "genB2A": ("genB2A", "BtoA"),
    "G_AB": ("G_AB", "AtoB"),
    "netG_BA": ("netG_BA", "BtoA"),
    "gen_AB": ("gen_AB", "AtoB"),
    "G_AtoB": ("G_AtoB", "AtoB"),
    "generator_b_to_a": ("generator_b_to_a", "BtoA"),
    "G_XtoY": ("G_XtoY", "AtoB"),
    "G_YtoX": ("G_YtoX", "BtoA"),
    "Gab": ("Gab", "AtoB"),
    "generator": ("generator", None),
    "G": ("G", None),
    # What is drawn, not what is read.
    "gen_H": ("gen_H", None),
    "gen_A": ("gen_A", None),
    "generators.zebra": ("generators.zebra", None),
}


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_the_direction_is_told_by_names_that_mean_the_same_everywhere(tmp_path, kind):
    prefix, direction = DIRECTIONS[kind]
    loaded = load(tmp_path, under(f"{prefix}.", generator()))
    assert loaded.direction == direction
    if direction is None:
        assert load(tmp_path, under(f"{prefix}.", generator()), direction="BtoA").direction is None
        return
    assert load(tmp_path, {prefix: generator()}, direction=direction).direction == direction
    other = "BtoA" if direction == "AtoB" else "AtoB"
    message = rf"translates {direction}, as the name '.*' in it says, and {other} was asked for"
    with pytest.raises(ModelError, match=message):
        load(tmp_path, {prefix: generator()}, direction=other)


def test_two_programs_name_their_generators_the_other_way_round(tmp_path):
    # UPIT: bare sequences of layers, and G_A makes A of B.
    upit = under("G_A.", bare(generator(1))) | under("G_B.", bare(generator(2)))
    assert is_of(load(tmp_path, upit, direction="BtoA"), 1)
    assert is_of(load(tmp_path, upit, direction="AtoB"), 2)
    # arnab39: Gab makes A of B.
    copy = COPIES["arnab39"].state_dict()
    arnab = {"epoch": 3, "Gab": under("module.", copy), "Gba": under("module.", copy),
             "Da": under("module.", discriminator()), "d_optimizer": optimizer()}  # fmt: skip
    assert load(tmp_path, arnab, direction="BtoA").prefix == "Gab"
    assert load(tmp_path, arnab, direction="AtoB").prefix == "Gba"
    (note,) = load(tmp_path, upit, weights="G_A").how_chosen
    assert note.text == (
        "G_A is taken to translate BtoA, as UPIT calls its networks, which are bare sequences of "
        "layers, too; in other programs this name means the other direction"
    )


@pytest.mark.parametrize(
    "content",
    [
        two("netG_A", "netG_B"),
        {"state_dict": under("G_AB.", generator(1)) | under("G_BA.", generator(2))},
        {**two("genA2B", "genB2A"), "disA": discriminator(), "disB": discriminator()},
        {"module": under("netG_A.module.", generator(1)) | under("netG_B.module.", generator(2))},
    ],
    ids=["dicts", "prefixes", "with discriminators", "wrapped"],
)
def test_a_direction_chooses_between_two_generators(tmp_path, content):
    for direction, seed in (("AtoB", 1), ("BtoA", 2)):
        loaded = load(tmp_path, content, direction=direction)
        assert is_of(loaded, seed)
        assert loaded.direction == direction
    with pytest.raises(
        ModelError,
        match=r"g\.pth: holds 2 generators: .* \(resnet_1blocks, AtoB\), .* \(resnet_1blocks, BtoA"
        r"\); choose one with --direction or --weights",
    ):
        load(tmp_path, content)


def test_weights_are_named_by_the_end_or_the_start_of_their_names(tmp_path):
    content = {"state_dict": under("module.gen_H.", generator(1)) | under("gen_Z.", generator(2))}
    for name, seed in (("gen_H", 1), ("state_dict.gen_H", 1), ("state_dict.gen_Z", 2),
                       ("gen_Z.", 2), ("state_dict.module.gen_H", 1)):  # fmt: skip
        loaded = load(tmp_path, content, weights=name)
        assert is_of(loaded, seed)
        assert loaded.prefix == f"state_dict.{'gen_H' if seed == 1 else 'gen_Z'}"
    with pytest.raises(ModelError, match=r"has no weights of the name 'gen_X'; it holds state_dic"):
        load(tmp_path, content, weights="gen_X")
    with pytest.raises(ModelError, match=r"holds 2 generators: .*; choose one with --weights"):
        load(tmp_path, content, weights="state_dict")
    with pytest.raises(ModelError, match=r"its name, as in --weights state_dict\.gen_Z$"):
        load(tmp_path, content)
    message = r"holds 2 generators, and none is named as one that translates AtoB: state_dict\.gen"
    with pytest.raises(ModelError, match=message):
        load(tmp_path, content, direction="AtoB")


def test_weights_that_are_no_generator_are_refused_with_what_they_are(tmp_path):
    content = {"netG": generator(), "netD": discriminator()}
    message = r"its netD is a discriminator \(PatchGAN\) where a generator is asked for; it holds n"
    with pytest.raises(ModelError, match=message):
        load(tmp_path, content, weights="netD")
    with pytest.raises(
        ModelError, match=r"of the name 'netG': it holds one generator alone; leave"
    ):
        load(tmp_path, generator(), weights="netG")
    assert is_of(load(tmp_path, content, weights="netG"), 0)


@pytest.mark.parametrize(
    "names",
    [
        ("params", "params_ema"),
        ("g", "g_ema"),
        ("model", "model_ema"),
        ("state_dict", "state_dict_ema"),
        ("netG", "ema"),
        ("networks.netG", "ema.netG"),
    ],
    ids="-".join,
)
def test_an_average_of_the_weights_is_taken_before_the_last_ones(tmp_path, names):
    content: dict[str, object] = dict(zip(names, (generator(1), generator(2)), strict=True))
    content["epoch"] = 3
    loaded = load(tmp_path, content)
    assert is_of(loaded, 2)
    (note,) = loaded.notes
    assert str(note) == (
        f"g.pth: the moving average of the weights (EMA), {names[1]}, is used; "
        f"--weights {names[0]} for the last ones"
    )
    last = load(tmp_path, content, weights=names[0])
    assert is_of(last, 1)
    assert last.notes == ()


def test_two_generators_and_their_averages_are_two_generators(tmp_path):
    content = {"ema": two("netG_A", "netG_B"), **{
        name: generator(seed) for name, seed in (("netG_A", 3), ("netG_B", 4))}}  # fmt: skip
    assert is_of(load(tmp_path, content, direction="BtoA"), 2)
    assert is_of(load(tmp_path, content, weights="netG_A"), 3)
    with pytest.raises(ModelError, match="holds 2 generators: ema"):
        load(tmp_path, content)


def test_lornatangs_files_are_read_as_their_program_reads_them(tmp_path):
    content = {
        "epoch": 200,
        "state_dict": generator(1),
        "ema_state_dict": under("module.", generator(2)) | {"n_averaged": torch.tensor(7)},
        "optimizer": optimizer(),
        "scheduler": {},
    }
    loaded = load(tmp_path, content)
    assert is_of(loaded, 1)
    (note,) = loaded.notes
    assert "the last weights, state_dict, are used, as by the program that saves such" in str(note)
    assert is_of(load(tmp_path, content, weights="ema_state_dict"), 2)


def test_what_may_be_a_part_of_a_larger_network_is_refused_unless_it_is_named(tmp_path):
    attention = {"attention.weight": torch.rand(4, 4), "attention.bias": torch.rand(4)}
    content = under("net.", generator()) | attention
    message = (
        r"its net is resnet_1blocks, and beside it are attention \(2 tensors\), which may belong "
        r"to the same network; where they do not, name the generator: --weights net"
    )
    with pytest.raises(ModelError, match=message):
        load(tmp_path, content)
    assert is_of(load(tmp_path, content, weights="net"), 0)
    with pytest.raises(ModelError, match="which may belong to the same network"):
        load(tmp_path, generator() | {"scale": torch.rand(3)})


def test_what_else_there_is_is_told(tmp_path):
    loaded = load(tmp_path, ONE["Lightning"])
    assert loaded.prefix == "state_dict.generator"
    assert loaded.others == {
        "state_dict.discriminator": "a discriminator (PatchGAN)",
        "state_dict.loss": "7 tensors",
    }


def test_a_name_in_the_file_tells_the_direction_before_that_of_the_file(tmp_path):
    path = tmp_path / "latest_net_G_A.pth"
    torch.save(two("netG_A", "netG_B"), path)
    for weights, direction, said in (("netG_A", "AtoB", 0), ("netG_B", "BtoA", 1)):
        card = open_model(path, selection=Selection(weights=weights)).card
        assert card.direction == direction
        assert [note.text for note in card.notes] == [
            "translates BtoA, as the name 'netG_B' in it says; its own name says AtoB"
        ] * said


def test_a_name_in_the_file_that_does_not_print_is_escaped(tmp_path):
    with pytest.raises(ModelError, match=r"2 generators: ü\\n\\x1b\[31mG \(") as caught:
        load(tmp_path, two("ü\n\x1b[31mG", "b"))
    assert str(caught.value).isprintable()


def test_the_direction_that_a_name_in_the_file_tells_is_on_the_card(tmp_path):
    torch.save(two("netG_A", "netG_B"), tmp_path / "g.pth")
    for selection, direction in (
        (Selection(weights="netG_B"), "BtoA"),
        (Selection(direction="AtoB"), "AtoB"),
    ):
        assert open_model(tmp_path / "g.pth", selection=selection).card.direction == direction
