"""What a run begins from: generators and discriminators that exist, or a warm-up without them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cyclegan_train import CycleGAN, TrainConfig, progress, run, start  # noqa: E402 (after the check for torch)
from cyclegan_train.cyclegan import generator_config  # noqa: E402
from cyclegan_train.settings import settings_for, settings_from  # noqa: E402
from cyclegan_train.start import begin_from, with_channels  # noqa: E402

from cyclegan_batch.errors import ModelError  # noqa: E402
from cyclegan_batch.models.networks import generator_from_config  # noqa: E402
from tests.train.test_run import TINY, assert_same, log_of, state_of, train  # noqa: E402
from tests.train.test_run import data as data  # noqa: E402 (a fixture)

NETWORKS = {"netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "netD": "n_layers", "n_layers_D": 1}
OTHERS = {name: value for name, value in TINY.items() if name not in NETWORKS}
"""The keys of a small run that are not those of its networks."""


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)


def model_of(**changes: Any) -> CycleGAN:
    return CycleGAN(TrainConfig(**({**NETWORKS, "device": "cpu"} | changes)))


def begun(init_from: Path, tmp_path: Path, **given: Any) -> tuple[CycleGAN, dict, list[str]]:
    """Return a model that begins from ``init_from``, how it has, and what was said."""
    values = {"device": "cpu", "init_from": str(init_from), **given}
    settings = settings_for(tmp_path / "no run", values, resume=False)
    model, told = CycleGAN(settings.train), []
    beginning = begin_from(model, settings, told.append)
    return model, beginning.described | {"warming": beginning.warm_up}, told


def reference_folder(folder: Path, networks: str = "G_A G_B D_A D_B", **changes: Any) -> CycleGAN:
    """Write networks under the reference implementation's names; return their model."""
    model = model_of(**changes)
    folder.mkdir(parents=True)
    for name in networks.split():
        torch.save(getattr(model, f"net{name}").state_dict(), folder / f"latest_net_{name}.pth")
    return model


def assert_equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert_same(dict(one.state_dict()), dict(other.state_dict()))


FAMILIES = [
    {},
    {"netG": "mobile_resnet_1blocks"},
    {"netG": "unet_32"},
    {"norm": "batch", "netD": "pixel"},
    {"upsample": "resize", "dropout": True, "netD": "basic"},
]


@pytest.mark.behaviour(53)
@pytest.mark.parametrize("changes", FAMILIES)
def test_all_four_networks_of_the_reference_are_taken_over(tmp_path, changes):
    theirs = reference_folder(tmp_path / "released", **changes)
    model, described, told = begun(tmp_path / "released", tmp_path, ema=0.9)
    for name in ("netG_A", "netG_B", "netD_A", "netD_B"):
        assert_equal_weights(getattr(model, name), getattr(theirs, name))
        file = tmp_path / "released" / f"latest_{name[:3]}_{name[3:]}.pth"
        assert f"{name} begins from {file}, all weights" in told
        assert described["networks"][name]["file"] == str(file)
        assert len(described["networks"][name]["sha256"]) == 64
    assert_equal_weights(model.ema_A, theirs.netG_A)
    assert_equal_weights(model.ema_B, theirs.netG_B)
    assert described["warming"] == ()


@pytest.mark.behaviour(53)
def test_a_file_of_one_generator_begins_one_direction(tmp_path):
    theirs = reference_folder(tmp_path / "released", "G_B")
    model, described, told = begun(tmp_path / "released" / "latest_net_G_B.pth", tmp_path)
    assert_equal_weights(model.netG_B, theirs.netG_B)
    assert described["networks"]["netG_A"] == "random"
    assert sum("begins with random weights" in sentence for sentence in told) == 3
    # The discriminator of the other generator learns with it, from the first epoch on.
    assert described["warming"] == ("netD_B",)
    assert told[-1] == "for 500 steps before the first epoch only netD_B learns"


def test_a_generator_that_tells_no_direction_is_that_of_a_unless_it_is_asked_for(tmp_path):
    theirs = reference_folder(tmp_path / "released", "G_A")
    (tmp_path / "released" / "latest_net_G_A.pth").rename(tmp_path / "released" / "net.pth")
    for direction, name in (("both", "netG_A"), ("AtoB", "netG_A"), ("BtoA", "netG_B")):
        model, described, _ = begun(
            tmp_path / "released" / "net.pth", tmp_path, init_direction=direction
        )
        assert_equal_weights(getattr(model, name), theirs.netG_A)
        assert list(described["networks"].values()).count("random") == 3


def test_of_two_generators_one_direction_can_be_asked_for(tmp_path):
    theirs = reference_folder(tmp_path / "released", "G_A G_B D_A D_B")
    model, described, _ = begun(tmp_path / "released", tmp_path, init_direction="BtoA")
    assert_equal_weights(model.netG_B, theirs.netG_B)
    assert_equal_weights(model.netD_B, theirs.netD_B)
    assert described["networks"]["netG_A"] == described["networks"]["netD_A"] == "random"
    with pytest.raises(ModelError, match=r"G_A\.pth: translates AtoB, as its name says, and init_"):
        begun(tmp_path / "released" / "latest_net_G_A.pth", tmp_path, init_direction="BtoA")


def test_a_file_of_both_generators_begins_both(tmp_path):
    theirs = model_of()
    both = {"netG_A": theirs.netG_A.state_dict(), "netG_B": theirs.netG_B.state_dict()}
    torch.save(both, tmp_path / "both.pth")
    model, _, _ = begun(tmp_path / "both.pth", tmp_path)
    assert_equal_weights(model.netG_A, theirs.netG_A)
    assert_equal_weights(model.netG_B, theirs.netG_B)


def file_of_two(folder: Path, one: str = "horses", other: str = "zebras") -> CycleGAN:
    """Write both generators of a model into ``both.pth`` under these names."""
    theirs = model_of()
    both = {one: theirs.netG_A.state_dict(), other: theirs.netG_B.state_dict()}
    folder.mkdir(exist_ok=True)
    torch.save(both | {"netD": theirs.netD_A.state_dict()}, folder / "both.pth")
    return theirs


@pytest.mark.behaviour(53)
def test_of_generators_whose_names_tell_no_direction_names_choose(tmp_path):
    theirs = file_of_two(tmp_path)
    path = tmp_path / "both.pth"
    with pytest.raises(
        ModelError,
        match=r"holds 2 generators \(horses \(resnet_1blocks\), zebras \(resnet_1blocks\)\), and "
        r"their names do not tell which is meant; name one with --init-weights, or both, that of "
        r"AtoB first: --init-weights horses,zebras$",
    ):
        begun(path, tmp_path)
    model, _, _ = begun(path, tmp_path, init_weights="horses,zebras")
    assert_equal_weights(model.netG_A, theirs.netG_A)
    assert_equal_weights(model.netG_B, theirs.netG_B)
    model, _, _ = begun(path, tmp_path, init_weights="zebras, horses")
    assert_equal_weights(model.netG_A, theirs.netG_B)
    for direction, name in (("both", "netG_A"), ("AtoB", "netG_A"), ("BtoA", "netG_B")):
        given = {"init_weights": "zebras", "init_direction": direction}
        model, described, _ = begun(path, tmp_path, **given)
        assert_equal_weights(getattr(model, name), theirs.netG_B)
        assert list(described["networks"].values()).count("random") == 3


def test_a_name_that_tells_a_direction_is_taken_by_it(tmp_path):
    theirs = file_of_two(tmp_path, "netG_A", "netG_B")
    path = tmp_path / "both.pth"
    model, described, _ = begun(path, tmp_path, init_weights="netG_B")
    assert_equal_weights(model.netG_B, theirs.netG_B)
    assert described["networks"]["netG_A"] == "random"
    for given in ({"init_weights": "netG_B,netG_A"},
                  {"init_weights": "netG_B", "init_direction": "AtoB"}):  # fmt: skip
        with pytest.raises(
            ModelError, match=r"both\.pth: its netG_B translates BtoA, as its name says, and it is "
            r"given for AtoB \(init_weights = "
        ):  # fmt: skip
            begun(path, tmp_path, **given)
    # In a folder, of the file that it gives.
    (tmp_path / "both.pth").rename(tmp_path / "latest_net_G.pth")
    model, _, _ = begun(tmp_path, tmp_path, init_weights="netG_A,netG_B")
    assert_equal_weights(model.netG_B, theirs.netG_B)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init_weights": "a,b,c"}, "init_weights = 'a,b,c' must be one name or two"),
        ({"init_weights": "a,"}, "init_weights = 'a,' must be one name or two"),
        ({"init_weights": "a"}, "init_weights = 'a' is of a file, and init_from names none"),
        ({"init_weights": "a", "init_from": "identity"}, "and init_from names none"),
        (
            {"init_weights": "a,b", "init_from": "x", "init_direction": "AtoB"},
            "init_weights = 'a,b' names both generators, and init_direction = AtoB is one",
        ),
    ],
)
def test_names_that_choose_no_generator_error(given, message):
    with pytest.raises(ValueError, match=message):
        settings_from(given)


def test_a_name_that_is_not_in_the_file_errors(tmp_path):
    file_of_two(tmp_path)
    with pytest.raises(ModelError, match=r"has no weights of the name 'foals'; it holds horses "):
        begun(tmp_path / "both.pth", tmp_path, init_weights="horses,foals")
    with pytest.raises(ModelError, match=r"its netD is a discriminator"):
        begun(tmp_path / "both.pth", tmp_path, init_weights="netD")


def test_what_a_run_begins_from_is_read_once(tmp_path, monkeypatch):
    reference_folder(tmp_path / "released")
    read: list[str] = []
    for name in ("load_generator", "load_state"):
        real = getattr(start, name)

        def load(path, *rest, real=real):
            read.append(path.name)
            return real(path, *rest)

        monkeypatch.setattr(start, name, load)
    files = [f"latest_net_{name}.pth" for name in ("D_A", "D_B", "G_A", "G_B")]
    for _ in range(2):
        # A second run reads it anew: the files may be others by then.
        begun(tmp_path / "released", tmp_path)
        assert sorted(read) == files
        read.clear()
    values = {"device": "cpu", "init_from": str(tmp_path / "released")}
    for _ in range(2):
        settings_for(tmp_path / "no run", values, resume=False)
        assert sorted(read) == files
        read.clear()


@pytest.mark.behaviour(53)
def test_a_run_goes_on_from_another_run_and_says_so(data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train(data, first, ema=0.9, n_epochs=1, n_epochs_decay=0)
    told: list[str] = []
    values = {**OTHERS, "init_from": str(first), "n_epochs": 0, "n_epochs_decay": 0}
    run.train(data, second, settings_for(second, values, resume=False), say=told.append)
    before, after = (state_of(folder)["model"]["networks"] for folder in (first, second))
    # The moving average is what a translation takes.
    assert_same(after["netG_A"], before["ema_A"])
    assert_same(after["netD_B"], before["netD_B"])
    latest = first / "checkpoints" / "latest"
    assert f"netG_A begins from {latest / 'netG_A_ema.safetensors'}, all weights" in told
    assert f"netD_A begins from {first / 'checkpoints' / 'state.pt'}, all weights" in told
    start = json.loads((second / "run.json").read_text())["start"]
    assert start["from"] == str(first)
    assert start["networks"]["netG_B"]["file"] == str(latest / "netG_B_ema.safetensors")
    assert start["warm_up"] == {"steps": 0, "networks": []}


@pytest.mark.parametrize("recipe", [{}, {"netG": "unet_32", "ngf": 9, "ndf": 9}])
def test_the_keys_of_the_networks_are_those_of_the_file_whatever_the_recipe(tmp_path, recipe):
    reference_folder(tmp_path / "released", netG="resnet_2blocks", norm="none", upsample="resize")
    values = {"init_from": str(tmp_path / "released"), "lr": 0.5}
    for given, expected in (({}, 4), ({"ndf": 6}, 6)):
        found = settings_for(tmp_path / "run", values | given, resume=False, recipe=recipe).train
        assert (found.netG, found.ngf, found.norm, found.upsample, found.lr) == (
            "resnet_2blocks", 4, "none", "resize", 0.5
        )  # fmt: skip
        assert (found.netD, found.n_layers_D, found.ndf) == ("n_layers", 1, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"netG": "unet_32"}, "netG = 'unet_32': {}/latest_net_G_A.pth has 'resnet_1blocks'; le"),
        ({"ngf": 5}, "ngf = 5: {}/latest_net_G_A.pth has 4; leave ngf out, or init_from"),
        ({"norm": "none"}, "norm = 'none': {}/latest_net_G_A.pth has 'instance'; leave norm out"),
    ],
)
def test_a_key_that_contradicts_the_file_errors(tmp_path, given, message):
    folder = tmp_path / "released"
    reference_folder(folder)
    with pytest.raises(ValueError) as found:  # noqa: PT011 (the message is compared)
        settings_for(tmp_path / "run", {"init_from": str(folder), **given}, resume=False)
    assert str(found.value).startswith(message.format(folder))


def test_settings_that_do_not_fit_the_file_error(tmp_path):
    reference_folder(tmp_path / "released")
    settings = settings_from(TINY | {"ngf": 5, "init_from": str(tmp_path / "released")})
    with pytest.raises(ModelError, match=r"G_A\.pth: does not fit netG_A of this run \(model\.1\."):
        begin_from(CycleGAN(settings.train), settings, print)


def test_synchronised_statistics_begin_from_plain_ones(tmp_path):
    reference_folder(tmp_path / "released", norm="batch")
    values = {"init_from": str(tmp_path / "released"), "norm": "syncbatch"}
    assert settings_for(tmp_path / "run", values, resume=False).train.norm == "syncbatch"


@pytest.mark.behaviour(53)
def test_layers_that_do_not_fit_are_named_one_by_one(tmp_path):
    theirs = reference_folder(tmp_path / "released", dropout=True)
    given = {"upsample": "resize", "dropout": False, "ndf": 6, "warm_up": 7}
    model, described, told = begun(tmp_path / "released", tmp_path, **given)
    weights, were = model.netG_A.state_dict(), theirs.netG_A.state_dict()
    assert torch.equal(
        weights["model.10.conv_block.5.weight"], were["model.10.conv_block.6.weight"]
    )
    assert torch.equal(weights["model.18.weight"], were["model.18.weight"])
    changes = described["networks"]["netG_A"]["changed_layers"]
    assert changes == [
        "model.11.2.weight random, (8, 16, 3, 3) in place of (16, 8, 3, 3)",
        "model.14.2.weight random, (4, 8, 3, 3) in place of (8, 4, 3, 3)",
    ]
    assert told[0].endswith(f"G_A.pth, all weights but: {'; '.join(changes)}")
    assert "netD_A begins with random weights" in told[2]
    assert (
        "another kind of discriminator (model.0.weight is (4, 3, 4, 4) in place of (6, 3" in told[2]
    )
    assert described["warming"] == ("netD_A", "netD_B")


@pytest.mark.parametrize("netG", ["resnet_1blocks", "unet_32"])
def test_other_channels_are_averaged_and_repeated(tmp_path, netG):
    theirs = reference_folder(tmp_path / "released", netG=netG)
    grey = torch.rand(1, 1, 32, 32) * 2 - 1
    given = {"input_nc": 1, "output_nc": 1, "netG": netG}
    model, described, _ = begun(tmp_path / "released", tmp_path, **given)
    # The colours that the colour generator draws, averaged before the tanh.
    drawn = theirs.netG_A.eval()(grey.expand(1, 3, 32, 32)).atanh().mean(1, keepdim=True).tanh()
    torch.testing.assert_close(model.netG_A.eval()(grey), drawn, atol=1e-4, rtol=1e-4)
    (first, *last) = described["networks"]["netG_A"]["changed_layers"]
    assert first.endswith(".weight of 3 channels made one of 1")
    assert [layer.rpartition(" of 3 ")[2] for layer in last] == ["channels made one of 1"] * 2
    assert described["warming"] == ()
    score = theirs.netD_A(grey.expand(1, 3, 32, 32))
    torch.testing.assert_close(model.netD_A(grey), score, atol=1e-5, rtol=1e-4)


def test_a_grey_generator_becomes_one_of_colours():
    weight = torch.rand(4, 1, 7, 7)
    made = with_channels(weight, 1, 3, reads=True)
    assert made.shape == (4, 3, 7, 7)
    torch.testing.assert_close(made.sum(1, keepdim=True), weight)
    assert torch.equal(with_channels(torch.ones(1), 0, 3, reads=False), torch.ones(3))


def test_generators_of_other_families_are_refused_by_name_errors(tmp_path):
    from tests.models.checkpoints.families.test_cut import Published

    torch.save(Published(blocks=1).state_dict(), tmp_path / "latest_net_G.pth")
    with pytest.raises(ModelError, match=r"net_G\.pth: is .*CUT.*, which is not trained here; a r"):
        begun(tmp_path / "latest_net_G.pth", tmp_path)


def test_a_compressed_generator_is_refused_errors(tmp_path):
    import dataclasses

    config = dataclasses.replace(
        generator_config(TrainConfig(netG="mobile_resnet_1blocks", ngf=4), "AtoB"),
        widths=(4, 8, 12, 16, 8, 4),
    )
    torch.save(generator_from_config(config).state_dict(), tmp_path / "small.pth")
    with pytest.raises(
        ModelError, match=r"is a compressed mobile_resnet_1blocks whose layers have"
    ):
        begun(tmp_path / "small.pth", tmp_path)


def test_two_generators_that_differ_are_refused_errors(tmp_path):
    reference_folder(tmp_path / "released", "G_A")
    torch.save(model_of(ngf=5).netG_B.state_dict(), tmp_path / "released" / "latest_net_G_B.pth")
    with pytest.raises(ModelError, match=r"differ \(resnet_1blocks, ngf 4.*--init-direction AtoB"):
        begun(tmp_path / "released", tmp_path)


def test_what_is_not_there_errors(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere: no such file or folder"):
        begun(tmp_path / "nowhere", tmp_path)


# The warm-up


def stopped(data: Path, folder: Path, settings: Any, steps: int | None) -> run.Outcome:
    """Train; stop after ``steps`` of this call, those of a warm-up too."""
    told: list[str] = []
    asked = iter(range(10**6))

    def stop() -> bool:
        # The first sentences come when the images are read.
        return steps is not None and bool(told) and next(asked) >= steps

    return run.train(data, folder, settings, stop=stop, say=told.append)


@pytest.mark.behaviour(53)
def test_in_the_warm_up_only_discriminators_without_weights_learn(data, tmp_path):
    theirs = reference_folder(tmp_path / "released", "G_A D_A G_B")
    values = {**OTHERS, "init_from": str(tmp_path / "released"), "warm_up": 7, "log_every": 3}
    folder = tmp_path / "run"
    settings = settings_for(folder, values, resume=False)
    # When the seven steps have been made, none of an epoch has been.
    outcome = stopped(data, folder, settings, steps=7)
    assert (outcome.finished, outcome.epoch, outcome.step) == (False, 1, 0)
    state = state_of(folder)
    networks = state["model"]["networks"]
    for name in ("netG_A", "netG_B", "netD_A"):
        assert_same(dict(networks[name]), dict(getattr(theirs, name).state_dict()))
    events = [event for event in log_of(folder) if event["event"] == "warm_up"]
    assert [event["left"] for event in events] == [4, 1, 0]
    assert all(set(event) == {"event", "left", "D_B"} for event in events)
    assert events[-1]["D_B"] < events[0]["D_B"]
    assert state["sampler"] == {"epoch": 1, "position": 0}
    assert train(data, folder, resume=True).finished
    assert log_of(folder)[3]["step"] == 3


@pytest.mark.behaviour(40)
@pytest.mark.parametrize("init_from", ["released", "identity"])
@pytest.mark.parametrize("stops", [(0, 3, 4, 1)])
def test_a_run_stopped_in_or_after_its_warm_up_goes_on_bit_for_bit(
    data, tmp_path, init_from, stops
):
    if init_from == "released":
        reference_folder(tmp_path / "released", "G_A G_B", dropout=True)
        init_from = str(tmp_path / "released")
    values = {
        **OTHERS, "init_from": init_from, "warm_up": 7, "log_every": 3, "n_epochs": 1, "ema": 0.9,
        "n_epochs_decay": 0, "samples": 0,
    }  # fmt: skip

    def train_once(folder: Path, steps: int | None, *, resume: bool) -> bool:
        settings = settings_for(folder, values, resume=resume, recipe=NETWORKS)
        return stopped(data, folder, settings, steps).finished

    assert train_once(tmp_path / "whole", None, resume=False)
    for number, steps in enumerate(stops):
        assert not train_once(tmp_path / "run", steps, resume=number > 0)
        random.seed(number)
        torch.manual_seed(number)
    assert train_once(tmp_path / "run", None, resume=True)
    assert_same(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


def test_identity_teaches_the_generators_to_return_their_input(data, tmp_path):
    values = TINY | {"init_from": "identity", "warm_up": 40, "log_every": 10, "lr": 0.01}
    told: list[str] = []
    settings = settings_for(tmp_path / "run", values | {"n_epochs": 0}, resume=False)
    watched: list[progress.Progress] = []
    run.train(data, tmp_path / "run", settings, say=told.append, watch=watched.append)
    assert [each.before_first for each in watched[:40]] == list(range(39, -1, -1))
    assert progress.sentence(watched[0]) == "warm-up: 39 steps before the first epoch"
    assert progress.state(watched[0])["warm_up_left"] == 39
    assert "for 40 steps before the first epoch the generators learn to return their input" in (
        " ".join(told)
    )
    events = [event for event in log_of(tmp_path / "run") if event["event"] == "warm_up"]
    assert [event["left"] for event in events] == [30, 20, 10, 0]
    for name in ("cycle_A", "cycle_B"):
        assert events[-1][name] < 0.8 * events[0][name]
    start = json.loads((tmp_path / "run" / "run.json").read_text())["start"]
    assert start["from"] == "identity"
    assert start["warm_up"] == {"steps": 40, "networks": ["netG_A", "netG_B"]}


def test_an_identity_between_other_channels_errors():
    values = {"init_from": "identity", "input_nc": 1, "lambda_identity": 0.0}
    with pytest.raises(ValueError, match=r"^init_from = 'identity': A has 1 channels and B 3, so"):
        settings_from(values)
