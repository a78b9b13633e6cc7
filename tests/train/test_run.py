"""A training run in its folder: what it leaves, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

import safetensors.torch  # noqa: E402 (after the check for torch)
from cyclegan_train import (  # noqa: E402
    charts,
    curves,
    health,
    progress,
    reports,
    run,
    run_folder,
    run_images,
)
from cyclegan_train.cyclegan import LOSSES, CycleGAN  # noqa: E402
from cyclegan_train.run_folder import RunFolder  # noqa: E402
from cyclegan_train.settings import settings_for, settings_from, values_from_toml  # noqa: E402

from cyclegan_batch import files  # noqa: E402
from cyclegan_batch.errors import BackendError, InputError, ModelError, OutputError  # noqa: E402
from cyclegan_batch.models.checkpoints.loading import load_generator  # noqa: E402

TINY: dict[str, Any] = {
    "netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "n_layers_D": 1, "netD": "n_layers",
    "n_epochs": 2, "n_epochs_decay": 1, "pool_size": 3, "load_size": 36, "crop_size": 32,
    "log_every": 2, "samples": 2, "tensorboard": False, "device": "cpu", "threads": 1,
    "save_latest_every": 0.0,
}  # fmt: skip
STEPS = 5
"""Of an epoch of `data`."""


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def fill(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True)
    for number in numbers:
        noise = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(noise).resize((40, 40), Image.BICUBIC).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fill(folder / "trainA", range(STEPS))
    fill(folder / "trainB", range(10, 13))
    fill(folder / "testB", range(20, 23))
    return folder


def train(data: Path, folder: Path, *, steps: int | None = None, resume=False, say=None, **changes):
    """Train in ``folder``; stop after ``steps`` of this call."""
    values = changes if resume else TINY | changes
    settings = settings_for(folder, values, resume=resume)
    told: list[str] = []
    asked = iter(range(10**6))

    def tell(sentence: str) -> None:
        told.append(sentence)
        (say or told.append)(sentence)

    def stop() -> bool:
        # The first sentences come when the pictures are read.
        return steps is not None and bool(told) and next(asked) >= steps

    return run.train(data, folder, settings, stop=stop, say=tell)


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "state.pt", weights_only=True)


def log_of(folder: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in event.items() if k != "seconds"} for event in events]


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    """Compare two states, bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
        assert one.dtype == other.dtype, where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            if key not in ("seconds", "log_bytes"):
                assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (mine, others) in enumerate(zip(one, other, strict=True)):
            assert_same(mine, others, f"{where}[{number}]")
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """Return the folder of a run that was never stopped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    outcome = train(data, folder, ema=0.9, save_every_epochs=1, keep_last=2, reference_names=True)
    assert outcome.finished
    assert (outcome.epoch, outcome.step) == (3, 3 * STEPS)
    return folder


# Going on


@pytest.mark.behaviour(40)
@pytest.mark.parametrize(
    "stops",
    [
        (0,),
        (5,),
        (7, 1, 3),
        *(pytest.param(n, marks=pytest.mark.slow) for n in [(1,), (4,), (14,)]),
    ],
)
def test_a_run_stopped_anywhere_and_resumed_equals_one_never_stopped(data, whole, tmp_path, stops):
    folder = tmp_path / "run"
    options = {"ema": 0.9, "save_every_epochs": 1, "keep_last": 2, "reference_names": True}
    for number, steps in enumerate(stops):
        outcome = train(data, folder, steps=steps, resume=number > 0, **({} if number else options))
        assert not outcome.finished
        # What another program drew in between is not the run's.
        random.seed(number)
        torch.manual_seed(number)
    assert outcome.step == sum(stops)
    assert train(data, folder, resume=True).finished
    assert_same(state_of(folder), state_of(whole))
    assert log_of(folder) == log_of(whole)
    for name in ("config.toml", "samples/epoch_0003.png", "losses.png"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (
        {p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (folder, whole)
    )
    assert ours == theirs


@pytest.mark.behaviour(40)
@pytest.mark.parametrize(
    "changes",
    [
        {"lr_policy": "plateau"},
        {"netG": "unet_32", "dropout": True, "norm": "batch", "crop_size": 32},
        {"batch_size": 2, "memory_gb": 0.0, "gan_mode": "wgangp", "precision": "bf16"},
        {"diffaugment": "color,translation,cutout", "lambda_geometry": 2.0, "lambda_temporal": 2.0},
    ],
)
def test_every_kind_of_run_goes_on_bit_for_bit(data, tmp_path, changes):
    changes |= {"samples": 0, "n_epochs_decay": 0}
    train(data, tmp_path / "whole", **changes)
    train(data, tmp_path / "run", steps=1, **changes)
    train(data, tmp_path / "run", resume=True)
    assert_same(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


@pytest.mark.behaviour(40)
def test_a_run_that_is_resumed_as_one_that_could_be_recorded_goes_on_bit_for_bit(
    data, whole, tmp_path
):
    options = {"ema": 0.9, "save_every_epochs": 1, "keep_last": 2, "reference_names": True}
    train(data, tmp_path / "run", steps=7, **options)
    assert train(data, tmp_path / "run", resume=True, cuda_graphs=True).finished
    state = state_of(tmp_path / "run")
    assert state["settings"]["cuda_graphs"]
    assert_same(state | {"settings": state["settings"] | {"cuda_graphs": False}}, state_of(whole))
    assert log_of(tmp_path / "run") == log_of(whole)


@pytest.mark.behaviour(40)
def test_a_killed_run_goes_on_from_its_last_state(data, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    real = run.CycleGAN.step

    def killed(self, *pictures):
        if self.steps == 8:
            raise SystemExit
        return real(self, *pictures)

    monkeypatch.setattr(run.CycleGAN, "step", killed)
    options = {"ema": 0.9, "save_every_epochs": 1, "keep_last": 2, "reference_names": True}
    with pytest.raises(SystemExit):
        train(data, folder, **options)
    assert log_of(folder)[-1]["step"] == 7  # after the last state, which is that of step 5
    assert state_of(folder)["model"]["steps"] == 5
    monkeypatch.undo()
    assert train(data, folder, resume=True).finished
    assert_same(state_of(folder), state_of(whole))
    assert log_of(folder) == log_of(whole)


def test_a_state_is_saved_within_an_epoch_too(data, tmp_path, monkeypatch):
    real = CycleGAN.step

    def killed(self, *pictures):
        if self.steps == 4:
            raise SystemExit
        return real(self, *pictures)

    monkeypatch.setattr(CycleGAN, "step", killed)
    with pytest.raises(SystemExit):
        train(data, tmp_path / "run", save_every_steps=3, samples=0)
    assert state_of(tmp_path / "run")["model"]["steps"] == 3


class Clock:
    """A clock that every step moves by a second."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        real = CycleGAN.step

        def step(model, *pictures):
            self.now += 1
            return real(model, *pictures)

        monkeypatch.setattr(CycleGAN, "step", step)
        monkeypatch.setattr(run.time, "monotonic", lambda: self.now)


def saves_of(monkeypatch) -> list[int]:
    """Return the steps after which states are saved, as they come."""
    saves, real = [], run._Run._save

    def save(self):
        saves.append(self.model.steps)
        real(self)

    monkeypatch.setattr(run._Run, "_save", save)
    return saves


@pytest.mark.behaviour(40)
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, [0, 5, 10, 15]),  # every epoch
        pytest.param(3.0, [0, 3, 6, 9, 12, 15], marks=pytest.mark.slow),
        (7.0, [0, 7, 14, 15]),  # epochs of 5 s are not worth a state each
        (60.0, [0, 15]),
    ],
)
def test_a_state_is_saved_when_so_much_time_has_passed(
    data, whole, tmp_path, monkeypatch, seconds, expected
):
    Clock(monkeypatch)
    saves = saves_of(monkeypatch)
    options = {"ema": 0.9, "save_every_epochs": 1, "keep_last": 2, "reference_names": True}
    train(data, tmp_path / "run", save_latest_every=seconds, **options)
    assert saves == expected
    # What is saved less often is the same in the end.
    for file in (whole / "checkpoints").rglob("*.safetensors"):
        mine = tmp_path / "run" / file.relative_to(whole)
        assert mine.read_bytes() == file.read_bytes(), file.name


def test_by_default_a_kill_costs_a_minute_and_best_is_there_with_the_state(
    data, tmp_path, monkeypatch
):
    clock, saves = Clock(monkeypatch), saves_of(monkeypatch)
    real = CycleGAN.step

    def step(model, *pictures):
        if model.steps == 14:
            raise SystemExit
        clock.now += 9
        return real(model, *pictures)

    monkeypatch.setattr(CycleGAN, "step", step)
    monkeypatch.setattr(run.Validation, "due", lambda self, epoch, epochs: True)
    default = {"save_latest_every": settings_from({}).run.save_latest_every}
    with pytest.raises(SystemExit):
        train(data, tmp_path / "run", samples=0, **default)
    assert saves == [0, 6, 12]
    card = json.loads((tmp_path / "run/checkpoints/best/checkpoint.json").read_text())
    best = state_of(tmp_path / "run")["validation"]["best"]["epochs"]
    assert card["netG_A.safetensors"]["epoch"] == best["AtoB"]


def test_a_run_stopped_while_its_pictures_are_read_has_written_nothing(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run.train(data, tmp_path / "run", settings_from(TINY), stop=lambda: True)
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_made_longer(data, tmp_path):
    folder = tmp_path / "run"
    train(data, folder, n_epochs=1, n_epochs_decay=0, samples=0)
    assert train(data, folder, resume=True, n_epochs=2).step == 2 * STEPS
    assert values_from_toml(folder / "config.toml")["n_epochs"] == 2


def rates_of(folder: Path) -> dict[int, float]:
    return {e["epoch"]: e["lr"] for e in log_of(folder) if e["event"] == "losses"}


@pytest.mark.behaviour(53)
def test_more_epochs_go_on_at_the_rates_of_a_run_that_was_never_shorter(data, tmp_path):
    folder, said = tmp_path / "run", []
    train(data, folder, n_epochs=1, n_epochs_decay=1, samples=0)
    before = state_of(folder)["model"]["networks"]
    # Within the third epoch, all of which would be lost at a rate of 0.
    train(data, folder, resume=True, n_epochs=3, steps=2, say=said.append)
    after = state_of(folder)["model"]["networks"]
    for net, name in (("netG_A", "model.1.weight"), ("netD_B", "model.0.weight")):
        assert (after[net][name] - before[net][name]).abs().max() > 1e-4, net
    assert train(data, folder, resume=True).finished
    train(data, tmp_path / "whole", n_epochs=3, n_epochs_decay=1, samples=0)
    found, wanted = rates_of(folder), rates_of(tmp_path / "whole")
    assert found.pop(2) == pytest.approx(wanted.pop(2) / 2)  # where the shorter one went down
    assert found == wanted == {1: 2e-4, 3: 2e-4, 4: 1e-4}
    assert [sentence for sentence in said if "learning rate" in sentence] == [
        "the learning rate goes up from 0 to 0.0002: with n_epochs = 3 and n_epochs_decay = 1 it "
        "is that of epoch 3"
    ]


def test_a_run_that_has_ended_stays_as_it_is(data, whole):
    before = (whole / "log.jsonl").read_bytes()
    assert train(data, whole, resume=True).finished
    assert (whole / "log.jsonl").read_bytes() == before


def test_another_network_on_the_way_errors(data, whole):
    with pytest.raises(ValueError, match=r"ngf = 8: the run in .* began with 4, and keeps it"):
        train(data, whole, resume=True, ngf=8)


@pytest.fixture(scope="module")
def two_epochs(data, tmp_path_factory) -> tuple[Path, Path]:
    """Return the folders of a run of two epochs, stopped in the second and never stopped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("two epochs")
    options = {"n_epochs": 1, "n_epochs_decay": 1, "samples": 0, "save_every_steps": 1}
    train(data, folder / "run", steps=STEPS + 2, **options)
    train(data, folder / "whole", **options)
    return folder / "run", folder / "whole"


@pytest.mark.parametrize("kept", [0, 30, 0.5])
def test_a_log_that_was_lost_or_cut_ends_no_run_and_is_said(data, two_epochs, tmp_path, kept):
    stopped, undisturbed = two_epochs
    folder, said = tmp_path / "run", []
    shutil.copytree(stopped, folder)
    log = folder / "log.jsonl"
    whole = log.read_bytes()
    begin = whole[: kept if isinstance(kept, int) else int(len(whole) * kept)]
    log.write_bytes(begin) if begin else log.unlink()
    assert train(data, folder, resume=True, say=said.append).finished
    lines = begin.splitlines(keepends=True)[:-1]
    lost = len(whole) - len(b"".join(lines))
    (told,) = [sentence for sentence in said if "log.jsonl" in sentence]
    assert f"lacks {lost} bytes of what it held when the state was saved; the run goes on" in told
    assert log.read_bytes().startswith(b"".join(lines))
    assert log_of(folder)[-1]["step"] == 2 * STEPS
    one, other = state_of(folder), state_of(undisturbed)
    assert_same(one["model"], other["model"])
    rest = log_of(folder)[len(lines) :]
    assert rest == log_of(undisturbed)[-len(rest) :]


def test_lines_that_somebody_wrote_into_the_log_end_no_run(data, tmp_path):
    train(data, tmp_path / "run", steps=STEPS, n_epochs=1, n_epochs_decay=1, samples=0)
    log = tmp_path / "run" / "log.jsonl"
    # Of the same length, so that nothing seems to lack: words, and an event without its number.
    content = log.read_bytes().replace(b'{"event": "losses"', b"# my own words   ", 1)
    log.write_bytes(content.replace(b'"event": "epoch", "epoch"', b'"event": "epoch", "which"'))
    assert content != log.read_bytes()
    assert train(data, tmp_path / "run", resume=True).finished


def test_a_run_whose_description_is_gone_goes_on_and_writes_it_anew(data, whole, tmp_path):
    folder = tmp_path / "run"
    options = {"ema": 0.9, "save_every_epochs": 1, "keep_last": 2, "reference_names": True}
    train(data, folder, steps=7, **options)
    config = (folder / "config.toml").read_bytes()
    for number, (name, damage) in enumerate(
        {"run.json": None, "config.toml": None, "run.json ": b"{", "run.json  ": b"[]"}.items()
    ):
        path, said = folder / name.strip(), []
        path.unlink() if damage is None else path.write_bytes(damage)
        train(data, folder, resume=True, steps=1, say=said.append)
        sentence = "run.json: does not describe how the run began"
        assert any(sentence in s for s in said) == (number != 1)
        assert (folder / "config.toml").read_bytes() == config
        assert json.loads((folder / "run.json").read_text())["steps_per_epoch"] == STEPS
    assert train(data, folder, resume=True).finished
    assert_same(state_of(folder), state_of(whole))


def test_neither_a_config_nor_a_state_that_holds_one_errors(data, tmp_path):
    folder = tmp_path / "run"
    train(data, folder, steps=0)
    state = state_of(folder)
    (folder / "config.toml").unlink()
    for damaged in ({k: v for k, v in state.items() if k != "settings"}, {}):
        torch.save(damaged, folder / "checkpoints" / "state.pt")
        with pytest.raises(InputError, match=r"config\.toml: no such file, and state\.pt does not"):
            train(data, folder, resume=True)


def test_a_config_that_was_edited_on_the_way_errors(data, tmp_path):
    folder = tmp_path / "run"
    train(data, folder, steps=1)
    config = folder / "config.toml"
    text = config.read_text()
    edited = text.replace("lambda_A = 10.0", "lambda_A = 5.0").replace("ngf = 4", "ngf = 8")
    config.write_text(edited.replace("n_epochs = 2", "n_epochs = 4"))
    with pytest.raises(
        InputError,
        match=r"config\.toml: holds other keys than the run began with \(lambda_A = 5.0 instead "
        r"of 10.0, ngf = 8 instead of 4\); restore them, or begin another run",
    ):
        train(data, folder, resume=True, steps=0)
    # What an option may give anew may be edited, too; so may a state of before settings were kept.
    config.write_text(text.replace("n_epochs = 2", "n_epochs = 4"))
    state = state_of(folder)
    del state["settings"]
    torch.save(state, folder / "checkpoints" / "state.pt")
    train(data, folder, resume=True, steps=0)
    assert state_of(folder)["settings"]["n_epochs"] == 4


def test_generators_without_the_state_they_came_from_error(data, tmp_path):
    train(data, tmp_path / "run", steps=1)
    (tmp_path / "run" / "checkpoints" / "state.pt").unlink()
    for resume in (True, False):
        with pytest.raises(OutputError, match=r"not its checkpoints/state\.pt, without which it"):
            train(data, tmp_path / "run", resume=resume)


def test_a_run_in_the_way_errors(data, whole):
    with pytest.raises(OutputError, match="holds a run already; --resume goes on with it"):
        train(data, whole)


def test_a_folder_of_other_things_errors(data, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="holds other things than a run"):
        train(data, tmp_path)


def test_other_pictures_on_the_way_error(data, tmp_path):
    fill(tmp_path / "data" / "trainA", range(2))
    fill(tmp_path / "data" / "trainB", range(10, 12))
    train(tmp_path / "data", tmp_path / "run", steps=1)
    (tmp_path / "data" / "trainB" / "11.png").unlink()
    with pytest.raises(InputError, match="trainB: holds other images than when the run in"):
        train(tmp_path / "data", tmp_path / "run", resume=True)


@pytest.mark.behaviour(43)
def test_a_state_that_would_run_code_errors(data, tmp_path):
    train(data, tmp_path / "run", steps=0)

    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"version": 1, "model": Code()}, tmp_path / "run" / "checkpoints" / "state.pt")
    with pytest.raises(InputError, match=r"state\.pt: is no whole state of a run"):
        train(data, tmp_path / "run", resume=True)
    assert not (tmp_path / "ran").exists()


# What a run leaves


@pytest.mark.behaviour(42)
def test_the_folder_says_what_it_is(data, whole):
    names = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()}
    nets = {f"{net}{ema}.safetensors" for net in ("netG_A", "netG_B") for ema in ("", "_ema")}
    assert names == {
        "config.toml", "run.json", "log.jsonl", "losses.png", "validation.png", "index.html",
        "checkpoints/state.pt",
        *(f"samples/epoch_000{epoch}.png" for epoch in (1, 2, 3)),
        *(f"checkpoints/{name}/{file}"
          for name in ("latest", "best", "epoch_0002", "epoch_0003")
          for file in (*nets, "checkpoint.json")),
        *(f"checkpoints/latest_net_{net}.pth" for net in ("G_A", "G_B", "D_A", "D_B")),
    }  # fmt: skip
    kept = values_from_toml(whole / "config.toml")
    assert kept == settings_from(TINY | {"ema": 0.9}).flat() | {
        "save_every_epochs": 1, "keep_last": 2, "reference_names": True,
    }  # fmt: skip
    described = json.loads((whole / "run.json").read_text())
    assert described["versions"]["torch"] == torch.__version__
    assert described["data"]["A"]["pictures"] == STEPS
    assert len(described["data"]["A"]["digest"]) == 64
    assert described["arithmetic"] == {
        "precision": "fp32", "float32": "ieee", "cudnn_benchmark": False,
    }  # fmt: skip
    assert described["steps_per_epoch"] == STEPS


@pytest.mark.behaviour(42)
def test_the_log_has_every_loss_as_its_mean(data, tmp_path, monkeypatch):
    seen = []
    real = CycleGAN.step

    def step(self, *pictures):
        seen.append(real(self, *pictures))
        return seen[-1]

    monkeypatch.setattr(CycleGAN, "step", step)
    train(data, tmp_path / "run", samples=0)
    events = [event for event in log_of(tmp_path / "run") if event["event"] == "losses"]
    assert [event["step"] for event in events] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    starts = [0, *[event["step"] for event in events]]
    for start, event in zip(starts, events, strict=False):
        for name in LOSSES:
            values = [float(losses[name]) for losses in seen[start : event["step"]]]
            assert event[name] == pytest.approx(np.mean(values), rel=1e-6)
    epochs = [event for event in log_of(tmp_path / "run") if event["event"] == "epoch"]
    assert epochs[1]["cycle_A"] == pytest.approx(
        np.mean([float(losses["cycle_A"]) for losses in seen[5:10]]), rel=1e-6
    )
    assert [event["lr"] for event in events] == [2e-4] * 6 + [1e-4] * 3


@pytest.mark.behaviour(42)
def test_a_checkpoint_loads_and_says_what_it_is(whole):
    state = state_of(whole)["model"]["networks"]
    for file, key in (("netG_A", "netG_A"), ("netG_B_ema", "ema_B")):
        loaded = load_generator(whole / "checkpoints" / "latest" / f"{file}.safetensors")
        for name, weight in loaded.network.state_dict().items():
            assert torch.equal(weight, state[key][name])
        assert json.loads(loaded.metadata["generator"]) == dataclasses.asdict(loaded.config)
        assert loaded.metadata["direction"] == ("AtoB" if "_A" in file else "BtoA")
        assert loaded.metadata["weights"] == ("ema" if "ema" in file else "raw")
        assert loaded.metadata["trained_size"] == "32"
        assert loaded.metadata["step"] == "15"
    with safetensors.safe_open(
        whole / "checkpoints" / "epoch_0002" / "netG_A.safetensors", framework="pt"
    ) as early:
        assert early.metadata()["epoch"] == "2"
        assert not torch.equal(
            early.get_tensor("model.1.weight"), state["netG_A"]["model.1.weight"]
        )


def test_the_reference_names_hold_the_same_weights(whole):
    state = state_of(whole)["model"]["networks"]
    for net in ("G_A", "G_B", "D_A", "D_B"):
        path = whole / "checkpoints" / f"latest_net_{net}.pth"
        weights = torch.load(path, weights_only=True)
        assert_same(dict(weights), dict(state[f"net{net}"]))
    load_generator(whole / "checkpoints" / "latest_net_G_B.pth")


def test_the_sheet_shows_what_the_generators_make_of_the_pictures(data, whole):
    sheet = np.asarray(Image.open(whole / "samples" / "epoch_0003.png"))
    generators = [
        load_generator(whole / "checkpoints" / "latest" / f"netG_{x}_ema.safetensors").network
        for x in "AB"
    ]
    real = np.asarray(Image.open(data / "testB" / "20.png").resize((36, 36), Image.BICUBIC))
    real = torch.from_numpy(real[2:34, 2:34].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        fake = generators[1](real)
        row = [real, fake, generators[0](fake), generators[0](real)]
    # Two pictures of A first; every 32-pixel picture is shown four times as large. Lines of text:
    # the title, the names of the columns, twice, and the file above each row.
    top = 18 + 18 + 2 * (18 + 128 + 4) + 18 + 18
    for number, picture in enumerate(row):
        shown = sheet[top : top + 128 : 4, 4 + 132 * number : 132 * (number + 1) : 4]
        levels = ((picture[0] + 1) * 127.5).permute(1, 2, 0).numpy()
        assert np.abs(shown - levels).max() < 3


def test_a_sheet_tells_its_epoch_its_weights_and_its_files(data, tmp_path, monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(run_folder, "sheet_png", lambda rows, *text: told.append(text) or b"")
    train(data, tmp_path / "average", steps=STEPS + 2, ema=0.9)
    train(data, tmp_path / "raw", n_epochs=1, n_epochs_decay=0)
    files = ["trainA/0.png", "trainA/2.png", "testB/20.png", "testB/21.png"]
    assert told == [
        ("epoch 1, step 5, moving average of the weights (EMA)", files),
        ("epoch 2, step 7, moving average of the weights (EMA)", files),
        ("epoch 1, step 5, raw weights", files),
    ]


def test_the_words_of_a_sheet_move_its_images_and_change_none():
    rows = [[("real_A", np.full((128, 128, 3), level, np.uint8))] * 2 for level in (40, 80)]
    plain, worded = (
        np.asarray(Image.open(io.BytesIO(charts.sheet_png(rows, *text))))
        for text in ((), ("epoch 1", ["a.png", "b.png"]))
    )
    assert worded.shape[0] == plain.shape[0] + 3 * 18
    for level, at, moved in ((40, 18, 36), (80, 18 + 132, 54)):
        assert (plain[at : at + 128, 4:132] == level).all()
        assert (worded[at + moved : at + moved + 128, 4:132] == level).all()
    # Both captions are there, and the title.
    assert all((worded[top : top + 18] < 128).any() for top in (0, 36, 36 + 150))


def test_old_epochs_are_removed_by_their_number_and_a_copy_of_one_stays(tmp_path):
    names = ("epoch_9995", "epoch_9999", "epoch_10000", "epoch_10005", "epoch_9995_good")
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    RunFolder(tmp_path, settings_from({"keep_last": 2}), print).remove_old_epochs()
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == set(names[2:])


def test_what_is_skipped_is_said_and_recorded(tmp_path):
    fill(tmp_path / "data" / "trainA", range(2))
    fill(tmp_path / "data" / "trainB", range(10, 12))
    (tmp_path / "data" / "trainA" / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    said: list[str] = []
    for name in ("valA", "testB"):
        fill(tmp_path / "data" / name, range(20, 22))
        (tmp_path / "data" / name / "damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    train(tmp_path / "data", tmp_path / "run", steps=0, samples=3, say=said.append)
    assert any("bad.jpg" in sentence for sentence in said)
    for name in ("A", "valA", "testB"):
        assert f"{name}: 1 image skipped" in said
    assert sum("damaged.jpg" in sentence for sentence in said) == 2
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "bad.jpg" in described["data"]["A"]["skipped"][0]


def test_equal_weights_are_equal_files(whole):
    for file in (whole / "checkpoints" / "latest").glob("*.safetensors"):
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert list(header["__metadata__"]) == sorted(header["__metadata__"])
        with safetensors.safe_open(file, framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() | {"tool_version": "ü"}
        again = [run_folder._safetensors(weights, dict(order)) for order in
                 (metadata.items(), reversed(metadata.items()))]  # fmt: skip
        assert again[0] == again[1]
        loaded = safetensors.torch.load(again[0])
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("preprocess", ["crop", "none"])
def test_kernels_are_searched_where_every_picture_has_one_size(
    data, tmp_path, monkeypatch, preprocess
):
    seen, before = [], torch.backends.cudnn.benchmark
    real = CycleGAN.step

    def step(self, *pictures):
        seen.append(torch.backends.cudnn.benchmark)
        return real(self, *pictures)

    monkeypatch.setattr(CycleGAN, "step", step)
    train(data, tmp_path / "run", steps=1, samples=0, preprocess=preprocess)
    assert seen == [preprocess == "crop"]
    assert torch.backends.cudnn.benchmark == before


def test_the_other_direction_exchanges_the_folders(data, tmp_path):
    values = {"n_epochs": 0, "n_epochs_decay": 0, "direction": "BtoA", "serial_batches": True}
    train(data, tmp_path / "run", **values)
    described = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert [described[letter]["folder"] for letter in "AB"] == [
        str(data / "trainB"), str(data / "trainA")
    ]  # fmt: skip
    assert [described[letter]["pictures"] for letter in "AB"] == [3, STEPS]


def test_a_batch_of_more_pictures_than_there_are_is_said(data, tmp_path):
    said: list[str] = []
    train(data, tmp_path / "run", steps=0, say=said.append, batch_size=6)
    assert any("takes 6 images of each domain, which is more than either has" in s for s in said)
    said.clear()
    train(data, tmp_path / "fitting", steps=0, say=said.append, batch_size=5)
    assert not any("more than either has" in s for s in said)


def test_how_far_the_pictures_are_read_is_told(data, tmp_path):
    told: list[progress.Reading] = []
    run.train(
        data, tmp_path / "run", settings_from(TINY | {"n_epochs": 0, "n_epochs_decay": 0}),
        watch_reading=told.append,
    )  # fmt: skip
    assert [(r.domain, r.read, r.count) for r in told] == [
        *(("A", read, 5) for read in range(1, 6)), *(("B", read, 3) for read in range(1, 4)),
    ]  # fmt: skip
    assert progress.sentence(progress.Reading("A", 1200, 5000)) == "A: read 1,200 of 5,000 images"
    assert progress.line(progress.Reading("B", 1, 2), 80).startswith(
        "━" * 12 + "─" * 12 + " B: read 1"
    )
    assert progress.state(progress.Reading("B", 1, 2)) == {"domain": "B", "read": 1, "pictures": 2}


def test_pictures_are_decoded_on_every_core_but_for_those_of_other_processes(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "cpu_threads", lambda: 6)
    used = []
    monkeypatch.setattr(
        run_images,
        "load_domains",
        lambda folders, config, **_: used.append(config.workers) or 1 / 0,
    )
    for ranks, options in ((run.Ranks(), {}), (run.Ranks(0, 4), {}), (run.Ranks(), {"workers": 5})):
        monkeypatch.setattr(run, "joined_ranks", lambda _, r=ranks: contextlib.nullcontext(r))
        monkeypatch.setattr(run.Ranks, "any", lambda self, found: found)
        with pytest.raises(ZeroDivisionError):
            train(data, tmp_path / "run", **options)
    assert used == [6, 1, 5]


def test_tensorboard_gets_the_losses(data, tmp_path):
    pytest.importorskip("tensorboard")
    train(data, tmp_path / "run", steps=2, samples=0, tensorboard=True)
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"loss/cycle_A" in events.read_bytes()


# What stops a run


@pytest.mark.parametrize("in_loss", [True, False])
def test_a_loss_that_is_no_number_stops_with_the_last_good_state_errors(
    data, tmp_path, monkeypatch, in_loss
):
    real = CycleGAN.step

    def step(self, *pictures):
        losses = real(self, *pictures)
        if self.steps == 8:
            if in_loss:
                losses["cycle_A"] = losses["cycle_A"] * float("nan")
            else:
                next(self.netD_B.parameters()).data.fill_(float("inf"))
        return losses

    monkeypatch.setattr(CycleGAN, "step", step)
    # With one log line per epoch, the weights are the first to tell.
    with pytest.raises(run.DivergedError, match="the last good state and checkpoints stay in"):
        train(data, tmp_path / "run", log_every=2 if in_loss else 100, samples=0)
    state = state_of(tmp_path / "run")
    assert state["model"]["steps"] == 5
    for weights in state["model"]["networks"].values():
        assert all(weight.isfinite().all() for weight in weights.values())
    assert log_of(tmp_path / "run")[-1]["event"] == "diverged"
    monkeypatch.undo()
    assert train(data, tmp_path / "run", resume=True).finished
    assert {event["event"] for event in log_of(tmp_path / "run")} <= {
        "losses", "epoch", "health", "validation",
    }  # fmt: skip


@pytest.mark.behaviour(25)
def test_a_disk_that_cannot_hold_the_checkpoints_errors(data, tmp_path, monkeypatch):
    free = 10**9
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage._replace(free=free))
    options = {"samples": 0, "ema": 0.9, "reference_names": True, "save_every_epochs": 1}
    folder = tmp_path / "new" / "run"
    train(data, folder, **options)
    files = [file for file in folder.rglob("*") if file.is_file()]
    whole = sum(file.stat().st_size for file in files if "checkpoints" in file.parts)
    # As many bytes as it takes: all files, and a second state; their headers make up little.
    state = (folder / "checkpoints" / "state.pt").stat().st_size
    free = int(0.75 * (whole + state))
    with pytest.raises(
        OutputError, match=r"cannot train in .*: its checkpoints take up to .* are f"
    ):
        train(data, tmp_path / "other" / "run", **options)
    assert not (tmp_path / "other").exists()
    # What is there already is not needed again.
    free = state
    assert train(data, folder, resume=True, n_epochs=3).finished
    free = int(0.5 * state)
    with pytest.raises(OutputError, match=r"free some space, use a smaller keep_last, or name"):
        train(data, folder, resume=True)


@pytest.mark.behaviour(25)
@pytest.mark.needs("full-device")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk_is_called_one_and_the_state_stays_errors(data, tmp_path, monkeypatch, suffix):
    folder = tmp_path / "run"
    train(data, folder, steps=2, samples=0)
    before = state_of(folder)
    real = files.temporary_path
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    monkeypatch.setattr(
        files, "temporary_path", lambda path: full if path.suffix == suffix else real(path)
    )
    with pytest.raises(OutputError, match=r"cannot write .*: the disk is full; free some space"):
        train(data, folder, resume=True)
    monkeypatch.undo()
    assert_same(state_of(folder), before)
    assert train(data, folder, resume=True).finished


def test_a_picture_that_goes_bad_on_the_way_costs_no_step(data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    bad = tmp_path / "data" / "trainA" / "3.png"
    whole = bad.read_bytes()
    real = CycleGAN.step

    def step(self, *pictures):
        if self.steps == 7:
            bad.write_bytes(whole[:50])
        return real(self, *pictures)

    monkeypatch.setattr(CycleGAN, "step", step)
    folder, options = tmp_path / "run", {"memory_gb": 0.0, "samples": 0, "save_latest_every": 1e9}
    monkeypatch.setattr(run_folder.Disk, "free", lambda disk: 0)  # so that images are decoded again
    with pytest.raises(InputError, match=r"3\.png: .* it could be read when the run began"):
        train(tmp_path / "data", folder, **options)
    assert state_of(folder)["model"]["steps"] >= 8
    bad.write_bytes(whole)
    assert train(tmp_path / "data", folder, resume=True).finished
    monkeypatch.undo()
    train(tmp_path / "data", tmp_path / "whole", **options)
    assert_same(state_of(folder), state_of(tmp_path / "whole"))


def test_networks_that_cannot_be_built_error(data, tmp_path):
    with pytest.raises(ModelError, match=r"cannot build the networks: .*resnet_many"):
        train(data, tmp_path / "run", netG="resnet_many")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "netD", [{"netD": "basic"}, {"n_layers_D": 5, "load_size": 68, "crop_size": 64}]
)
def test_a_cut_that_is_too_small_for_the_discriminator_errors(data, tmp_path, netD):
    changes = {"load_size": 20, "crop_size": 16} | netD
    with pytest.raises(InputError, match=r"crop_size = \d+: the discriminator .* needs images of"):
        train(data, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preprocess", ["none", "scale_width"])
def test_a_picture_that_is_too_small_for_the_discriminator_is_enlarged(data, tmp_path, preprocess):
    fill(tmp_path / "trainA", range(2))
    fill(tmp_path / "trainB", range(10, 12))
    Image.new("RGB", (10, 10)).save(tmp_path / "trainA" / "small.png")
    options = {"preprocess": preprocess, "load_size": 10, "netD": "basic", "samples": 1}
    outcome = train(tmp_path, tmp_path / "run", n_epochs=1, n_epochs_decay=0, **options)
    assert outcome.finished


def test_pictures_of_two_sizes_for_a_penalty_between_them_error(data, tmp_path):
    fill(tmp_path / "trainA", range(2))
    fill(tmp_path / "trainB", range(10, 12))
    Image.new("RGB", (48, 32)).save(tmp_path / "trainB" / "wide.png")
    options = {"preprocess": "none", "gan_mode": "wgangp", "samples": 0}
    with pytest.raises(InputError, match=r"wgangp mixes .* there are 40×40 and 48×32; use a prepr"):
        train(tmp_path, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_what_a_step_refuses_is_told_with_its_pictures_errors(data, tmp_path, monkeypatch):
    def step(self, *pictures):
        raise ValueError("Expected more than 1 spatial element")

    monkeypatch.setattr(CycleGAN, "step", step)
    with pytest.raises(
        ModelError, match=r"after step 0, with images of 32×32 and 32×32, .*spatial"
    ):
        train(data, tmp_path / "run", samples=0)


def test_a_failing_compiler_errors(data, tmp_path, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def step(self, *pictures):
        raise InvalidCxxCompiler

    monkeypatch.setattr(CycleGAN, "step", step)
    with pytest.raises(BackendError, match=r"compile failed .* C\+\+ compiler is installed, or"):
        train(data, tmp_path / "run", samples=0)


# Health


def noise(seed: int, side: int = 16) -> torch.Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def signs(sources: list, fakes: list) -> str:
    return "; ".join(health.signs_in_samples("G_A", sources, fakes))


def test_a_generator_that_returns_its_input_is_named():
    assert "returns its input" in signs([noise(1)], [noise(1) + 0.01])
    assert not signs([noise(1), noise(2)], [noise(3), noise(4)])


def test_a_generator_that_inverts_light_and_dark_is_named():
    found = signs([noise(1)], [-noise(1) * 0.8])
    assert "G_A inverts light and dark" in found
    assert "-1.00" in found


def test_a_generator_that_ignores_its_input_is_named():
    assert "ignores its input" in signs([noise(1), noise(2)], [noise(3), noise(3)])


def test_a_discriminator_that_has_won_is_named():
    fine = dict.fromkeys(LOSSES, 0.25)
    assert not list(health.signs_in_losses(fine, "lsgan"))
    (sign,) = health.signs_in_losses(fine | {"D_B": 0.004}, "lsgan")
    assert sign.startswith("D_B is near zero (0.0040)")
    assert not list(health.signs_in_losses(fine | {"D_B": -3.0}, "wgangp"))


@pytest.mark.behaviour(42)
def test_signs_of_bad_health_are_said_and_logged(data, tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "signs_in_losses", lambda losses, mode: iter(["D_A is near zero"]))
    said: list[str] = []
    train(data, tmp_path / "run", n_epochs=1, n_epochs_decay=0, say=said.append)
    assert "epoch 1: D_A is near zero" in said
    (event,) = [
        e for e in log_of(tmp_path / "run") if e["event"] == "health" and "D_A" in e["sign"]
    ]
    assert (event["epoch"], event["step"]) == (1, 5)


# The chart


def test_the_chart_draws_every_loss_in_its_colour():
    steps = list(range(50, 5001, 50))
    losses = {name: [1 + number * 0.3] * len(steps) for number, name in enumerate(LOSSES)}
    picture = np.asarray(Image.open(io.BytesIO(charts.losses_png(steps, losses))))
    for name in LOSSES:
        assert (np.abs(picture - np.array(charts._COLOURS[name])).max(2) < 8).sum() > 300, name


def test_a_chart_marks_what_happened_and_encircles_the_best():
    steps, curves = [-50, 0, 50, 100], {"AtoB": [float("nan"), 2.0, 1.0, 2.0]}
    panels = [("scores", ["AtoB"])]
    plain, marked = (
        np.asarray(Image.open(io.BytesIO(charts.curves_png(steps, curves, panels, *more)))).astype(
            int
        )
        for more in ((), ([charts.Mark(0, "warm-up ends")], {"AtoB": (50, 1.0)}))
    )
    differs = np.abs(plain - marked).max(2) > 40
    # The axis reaches from 45 to 508, for the steps from -50 to 100.
    zero, best = round(45 + 463 / 3), round(45 + 463 * 2 / 3)
    assert differs[50:330, zero - 1 : zero + 2].any(1).sum() > 120
    assert differs[46:62, zero + 2 : zero + 90].any()
    assert differs[:, best - 8 : best + 8].any()
    assert not differs[:, best + 8 :].any()


def test_only_schedules_that_differ_by_a_tenth_are_marked():
    epochs = (20, 21, 22, 23, 21, 20, 18)
    events = [
        {"event": "schedule", "step": step, "n_epochs": number, "n_epochs_decay": 0, "batches": 1}
        for step, number in enumerate(epochs)
    ]
    marks = [(mark.step, mark.words) for mark in curves._marks(events, 100)]
    assert marks == [(0, "20 epochs fit"), (2, "22 epochs fit"), (6, "18 epochs fit")]


def test_marks_that_are_too_close_for_their_words_keep_their_lines():
    curves, panels = {"AtoB": [1.0, 1.0]}, [("scores", ["AtoB"])]
    marks = [charts.Mark(step, "some epochs fit") for step in range(10, 90, 10)]
    chart = np.asarray(Image.open(io.BytesIO(charts.curves_png([0, 100], curves, panels, marks))))
    for mark in marks:
        across = round(45 + 463 * mark.step / 100)
        assert (chart[120:320, across - 1 : across + 2].min((1, 2)) < 200).sum() > 80, mark


def test_the_charts_tell_warm_up_schedules_and_an_early_stop(monkeypatch):
    drawn: list[Any] = []
    monkeypatch.setattr(curves, "losses_png", lambda *what: drawn.append(what) or b"")
    monkeypatch.setattr(curves, "curves_png", lambda *what: drawn.append(what) or b"")
    whole = dict.fromkeys(LOSSES, 1.0)
    by = {"AtoB": "unpaired", "BtoA": "psnr"}

    def scores(*values: float) -> dict[str, Any]:
        kinds = ("unpaired", "unpaired", "psnr")
        names = ("AtoB", "AtoB_ema", "BtoA")
        each = zip(names, kinds, values, strict=True)
        return {name: {kind: value, "fid": 9.0} for name, kind, value in each}

    events: list[dict[str, Any]] = [
        {"event": "warm_up", "left": 3, "D_A": 0.5, "D_B": 0.25},
        {"event": "warm_up", "left": 0, "D_A": 0.4, "D_B": 0.2},
        {"event": "schedule", "step": 2, "n_epochs": 2, "n_epochs_decay": 2, "batches": 4},
        {"event": "losses", "step": 4, **whole, "geometry_A": 7.0},
        {"event": "schedule", "step": 4, "n_epochs": 2, "n_epochs_decay": 2, "batches": 4},
        {"event": "validation", "epoch": 1, "step": 4, "by": by, "scores": scores(3, 2, 8),
         "better": ["AtoB", "AtoB_ema", "BtoA"]},
        {"event": "losses", "step": 8, **whole, "geometry_A": 7.0},
        {"event": "epoch", "epoch": 1, "step": 4},
        {"event": "schedule", "step": 6, "n_epochs": 2, "n_epochs_decay": 1, "batches": 4},
        {"event": "validation", "epoch": 2, "step": 8, "by": by, "scores": scores(1, 2, 9),
         "better": ["AtoB", "BtoA"]},
        {"event": "epoch", "epoch": 2, "step": 8},
        {"event": "early_stop", "epoch": 2, "step": 8},
        {"event": "schedule", "step": 8, "n_epochs": 2, "n_epochs_decay": 1, "batches": 9},
    ]  # fmt: skip
    curves.losses_chart(events)
    curves.scores_chart(events)
    (steps, losses, marks), (at, shown, panels, same, rings) = drawn
    assert steps == [-3, 0, 4, 8]
    assert losses["D_A"] == [0.5, 0.4, 1.0, 1.0]
    assert np.isnan(losses["G_A"][:2]).all()
    assert losses["geometry_A"][2:] == [7.0, 7.0]
    assert "temporal_A" not in losses
    told = [(mark.step, mark.words) for mark in marks]
    assert told == [
        (0, "warm-up ends"), (2, "4 epochs fit"), (6, "3 epochs fit"), (8, "rate goes down"),
        (8, "early stop"),
    ]  # fmt: skip
    assert same == marks
    assert at == [4, 8]
    names = ["AtoB, best: epoch 2", "AtoB (EMA), best: epoch 1", "BtoA, best: epoch 2"]
    assert shown == dict(zip(names, ([3, 1], [2, 2], [8, 9]), strict=True))
    assert rings == dict(zip(names, ((8, 1), (4, 2), (8, 9)), strict=True))
    assert [list(each[1]) for each in panels] == [names[:2], names[2:]]


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [-3.0, 2.0], [1.0, float("nan")]])
def test_a_chart_of_little_is_drawn(values):
    charts.losses_png(list(range(1, len(values) + 1)), dict.fromkeys(LOSSES, values))
    charts.losses_png([], {name: [] for name in LOSSES}, [charts.Mark(0, "warm-up ends")])
