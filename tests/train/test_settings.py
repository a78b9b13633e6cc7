"""The keys of a training: one language for recipes, ``--set`` and options."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cyclegan_train import settings
from cyclegan_train.config import TrainConfig

from cyclegan_batch.errors import InputError
from tests.conftest import REPOSITORY

RECIPES = sorted(settings.RECIPES.glob("*.toml"))


def test_every_key_is_in_one_group_only():
    groups = (TrainConfig, settings.DataConfig, settings.RunConfig)
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    assert len(names) == len(set(names)) == len(settings.keys())


def test_the_defaults_are_the_reference_implementations():
    assert settings.Settings().flat().items() >= {
        "netG": "resnet_9blocks", "netD": "basic", "ngf": 64, "ndf": 64, "norm": "instance",
        "gan_mode": "lsgan", "lambda_A": 10.0, "lambda_B": 10.0, "lambda_identity": 0.5,
        "pool_size": 50, "lr": 2e-4, "beta1": 0.5, "lr_policy": "linear", "n_epochs": 100,
        "n_epochs_decay": 100, "preprocess": "resize_and_crop", "load_size": 286,
        "crop_size": 256, "batch_size": 1, "flip": True,
    }.items()  # fmt: skip


def test_settings_survive_being_written(tmp_path):
    changed = settings.settings_from(
        {"netG": "unet_128", "lr": 1e-05, "flip": False, "device": 'c"p\\u', "lambda_A": 3}
        | {"sample_video": "a\nb\r\t\x01\x7fé😀.mp4"}
    )
    path = tmp_path / "config.toml"
    path.write_text(settings.toml_from(changed), "utf-8", newline="")
    assert settings.settings_from(settings.values_from_toml(path)) == changed
    for key in settings.keys().values():
        assert f"\n{key.name} = " in path.read_text()
        assert key.help, key.name
    assert "#  " not in path.read_text()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ngf", "32", 32),
        ("lr", "1e-4", 1e-4),
        ("lambda_A", "5", 5.0),
        ("flip", "false", False),
        ("flip", "yes", True),
        ("netG", "unet_256", "unet_256"),
    ],
)
def test_text_becomes_the_kind_of_its_key(name, text, value):
    found = settings.value_from_text(name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lamda_A": 1}, "'lamda_A' is no key of a training; do you mean lambda_A?"),
        ({"ngf": 3.5}, "ngf = 3.5 must be a whole number"),
        ({"ngf": True}, "ngf = True must be a whole number"),
        ({"flip": 1}, "flip = 1 must be true or false"),
        ({"netD": "large"}, "netD = 'large' is none of basic, n_layers, pixel"),
        ({"load_size": 200}, "load_size = 200 is less than crop_size = 256"),
        ({"batch_size": 0}, "batch_size = 0 must be 1 or more"),
        (
            {"cuda_graphs": True, "preprocess": "none"},
            "cuda_graphs replays one shape, and preprocess = 'none' leaves images of many",
        ),
        ({"max_dataset_size": -1}, "max_dataset_size = -1 must be 0 or more"),
        (
            {"accumulate": 2, "batch_size": 3},
            "accumulate = 2: batch_size = 3 has no such number of equal parts; use a batch_size",
        ),
        ({"memory_gb": float("nan")}, "memory_gb = nan must be 0 or more"),
        ({"save_latest_every": -1}, "save_latest_every = -1.0 must be 0 or more"),
    ],
)
def test_a_wrong_key_errors(values, message):
    with pytest.raises(ValueError) as found:  # noqa: PT011 (the message is compared whole)
        settings.settings_from(values)
    assert str(found.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ngf", "many", "ngf = 'many' must be a whole number"),
        ("ngf", "2.5", "ngf = 2.5 must be a whole number"),
        ("lr", "fast", "lr = 'fast' must be a number"),
        ("flip", "maybe", "flip = 'maybe' must be true or false"),
    ],
)
def test_wrong_text_errors(name, text, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        settings.value_from_text(name, text)


def test_a_file_that_cannot_be_read_errors(tmp_path):
    with pytest.raises(InputError, match=r"run: cannot be read: Is a directory; check the perm"):
        settings.values_from_toml((tmp_path / "run").mkdir() or tmp_path / "run")


def test_a_name_that_is_no_unicode_errors_before_a_run_begins():
    with pytest.raises(ValueError, match=r"^sample_video = .*xff\.mp4: is no Unicode text"):
        settings.settings_from({"sample_video": os.fsdecode(b"\xff.mp4")})


def test_what_is_no_toml_errors(tmp_path):
    (tmp_path / "a.toml").write_text("ngf: 64")
    with pytest.raises(ValueError, match=r"a\.toml: is no TOML"):
        settings.values_from_toml(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("[network]\nngf = 64")
    with pytest.raises(ValueError, match=r"a\.toml: 'network' is no key of a training"):
        settings.values_from_toml(tmp_path / "a.toml")


# The recipes


def test_the_recipes_are_there():
    assert {path.stem for path in RECIPES} >= {"paper", "monet", "cpu"}
    assert (REPOSITORY / "train" / "recipes" / "paper.toml").samefile(settings.recipe("paper"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_what_it_is_for(path):
    assert settings.recipe(path.stem) == path
    settings.settings_from(settings.values_from_toml(path))
    assert path.read_text().startswith("# ")


def test_the_papers_recipe_is_the_defaults_on_all_images():
    chosen = settings.settings_from(settings.values_from_toml(settings.recipe("paper")))
    assert chosen == settings.settings_from({"val_fraction": 0.0})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_but_the_papers_averages_the_weights(path):
    assert (settings.values_from_toml(path).get("ema", 0.0) > 0) == (path.stem != "paper")


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16"), (False, "fp32")])
def test_the_recipe_of_the_cpu_computes_in_what_it_has(monkeypatch, tmp_path, has, expected):
    monkeypatch.setattr("cyclegan_train.config.cpu_has_bf16", lambda: has)
    values = settings.values_from_toml(settings.recipe("cpu"))
    assert settings.settings_from(values).train.precision == expected
    assert TrainConfig(precision="auto", device="cuda").precision == "fp32"
    # A run keeps what it began with, wherever it goes on.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "state.pt").write_bytes(b"")
    began = dict(values, precision="bf16")
    (tmp_path / "config.toml").write_text(settings.toml_from(settings.settings_from(began)))
    resumed = settings.settings_for(tmp_path, {}, resume=True, recipe=values)
    assert resumed.train.precision == "bf16"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx512f\nbugs : avx512_bf16\n", False),
        ("Features : fp asimd\n", False),
        (None, False),
    ],
)
def test_whether_a_cpu_has_bf16_is_among_its_flags(monkeypatch, tmp_path, text, expected):
    from cyclegan_batch import machine

    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / "cpuinfo")
    assert machine.cpu_has_bf16() == expected


def test_a_recipe_may_be_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text("ngf = 8")
    assert settings.recipe(str(tmp_path / "mine.toml")) == tmp_path / "mine.toml"


def test_an_unknown_recipe_errors():
    with pytest.raises(ValueError, match="'horses' is neither a file nor one of the recipes city"):
        settings.recipe("horses")


def test_recipes_go_into_the_wheel():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "recipes/*.toml" in project["tool"]["setuptools"]["package-data"]["cyclegan_train"]


def test_settings_load_no_torch():
    code = (
        f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / 'train')!r}]\n"
        "from cyclegan_train import settings; settings.keys(); settings.recipe('cpu')\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert Path(settings.__file__).is_file()
