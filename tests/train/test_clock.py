"""A run that is given minutes: how long it becomes, and that a stop on the way changes nothing."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cyclegan_train import clock, progress, run, run_folder  # noqa: E402 (after the check for torch)
from cyclegan_train.clock import Rate, Schedule, fitted  # noqa: E402
from cyclegan_train.cyclegan import LOSSES, CycleGAN  # noqa: E402
from cyclegan_train.settings import settings_for, values_from_toml  # noqa: E402

from tests.train.test_run import STEPS, TINY, assert_same, fill, log_of, state_of  # noqa: E402
from tests.train.test_run import data as data  # noqa: E402 (a fixture)

step = CycleGAN.step


class Time:
    """A clock that only steps move on."""

    def __init__(self) -> None:
        self.now, self.step = 100.0, 1.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch) -> Time:
    """Return the clock of a run whose steps take time and compute nothing."""
    own = Time()

    def step(model: CycleGAN, *images: Any) -> Any:
        own.now += own.step
        model.steps += 1
        return dict.fromkeys(LOSSES, torch.ones(()))

    monkeypatch.setattr(CycleGAN, "step", step)
    monkeypatch.setattr(run_folder, "losses_chart", lambda _: b"")
    for module in (run, clock):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=own.monotonic))
    torch.set_num_threads(1)
    return own


def train(
    data: Path, folder: Path, *, steps: int | None = None, resume: bool = False, **changes: Any
) -> tuple[run.Outcome, list[str]]:
    """Train in ``folder``; stop after ``steps`` of this call. Return what was said, too."""
    told: list[str] = []
    asked = iter(range(10**6))
    settings = settings_for(folder, changes if resume else TINY | changes, resume=resume)

    def stop() -> bool:
        return steps is not None and bool(told) and next(asked) >= steps

    return run.train(data, folder, settings, stop=stop, say=told.append), told


@pytest.mark.parametrize(
    ("place", "left", "expected"),
    [
        # As many passes as fit, rounded.
        ({"epoch": 1, "position": 5, "batches": 10}, 195, Schedule(10, 10, 10)),
        ({"epoch": 1, "position": 5, "batches": 10}, 192, Schedule(10, 10, 10)),
        # Ten epochs where not ten passes fit, of which this one ends.
        ({"epoch": 1, "position": 5, "batches": 1000}, 195, Schedule(5, 5, 20)),
        ({"epoch": 1, "position": 30, "batches": 1000}, 170, Schedule(3, 3, 31)),
        # Only in the first epoch.
        ({"epoch": 2, "position": 0, "batches": 20}, 60, Schedule(2, 2, 20)),
        ({"epoch": 9, "position": 0, "batches": 20}, 0, Schedule(8, 0, 20)),
        ({"epoch": 9, "position": 3, "batches": 20}, -5, Schedule(8, 1, 20)),
    ],
)
def test_a_schedule_is_as_long_as_the_steps_that_are_left(place, left, expected):
    first = place["epoch"] == 1
    assert fitted(**place, left=left, share=0.5, may_shorten=first) == expected


def test_the_share_at_the_full_rate_is_kept():
    place = {"epoch": 1, "position": 0, "batches": 5, "left": 100}
    assert fitted(**place, share=1.0) == Schedule(20, 0, 5)
    assert fitted(**place, share=0.0) == Schedule(0, 20, 5)
    assert fitted(**place, share=0.25) == Schedule(5, 15, 5)


def test_a_rate_is_known_after_its_first_steps(monkeypatch):
    time = Time()
    monkeypatch.setattr(clock, "time", time)
    rate = Rate(100.0)
    for seconds in (9.0, 9.0, 9.0, 0.5, 0.5, 0.5, 0.5, 1.0):
        assert rate.known() == 0.0
        time.now += seconds
        rate.step()
    # Five steps in three seconds; the first three, which were slow, do not count.
    assert rate.known() == 0.0
    time.now += 1.0
    assert rate.known() == pytest.approx(5 / 4)
    slow = Rate(100.0)
    for _ in range(4):
        time.now += 26.0
        slow.step()
    assert slow.known() == pytest.approx(1 / 26)


@pytest.mark.parametrize("seconds", [0.5, 1.0])
def test_a_run_takes_the_minutes_that_it_is_given(data, tmp_path, time, seconds):
    time.step = seconds
    began = time.now
    values = {"minutes": 2.0, "samples": 0, "n_epochs": 3, "n_epochs_decay": 1}
    outcome, told = train(data, tmp_path / "run", **values)
    assert outcome.finished
    assert time.now - began == pytest.approx(120, abs=STEPS * seconds)
    epochs = round(120 / seconds / STEPS)
    assert f"{epochs} epochs of 5 steps fit into 2 min" in told
    assert "best is chosen by unpaired score" in told  # how often is not known yet
    rates = {e["epoch"]: e["lr"] for e in log_of(tmp_path / "run") if e["event"] == "losses"}
    full = round(epochs * 0.75)
    assert rates[full] == 2e-4
    assert rates[epochs] == pytest.approx(2e-4 / (epochs - full + 1))
    # A recipe made of it has what was given.
    config = values_from_toml(tmp_path / "run" / "config.toml")
    assert (config["minutes"], config["n_epochs"], config["n_epochs_decay"]) == (2.0, 3, 1)


def test_a_run_that_becomes_slower_is_made_shorter(data, tmp_path, time):
    began, quick = time.now, CycleGAN.step

    def slower(model: CycleGAN, *images: Any) -> Any:
        time.step = 2.0 if model.steps >= 40 else 1.0
        return quick(model, *images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CycleGAN, "step", slower)
        train(data, tmp_path / "run", minutes=3.0, samples=0, n_epochs=1, n_epochs_decay=0)
    assert time.now - began == pytest.approx(180, abs=2 * STEPS)


@pytest.mark.parametrize(
    ("place", "left", "batches"),
    [
        # Three epochs are left, with the one in progress.
        ({"epoch": 8, "position": 0}, 30, 10),
        ({"epoch": 8, "position": 6}, 15, 7),
        ({"epoch": 10, "position": 6}, 2, 8),
        # At least the step in progress, and at most a pass.
        ({"epoch": 10, "position": 6}, -9, 7),
        ({"epoch": 8, "position": 0}, -9, 1),
        ({"epoch": 9, "position": 0}, 90, 20),
    ],
)
def test_where_the_rate_goes_down_epochs_change_in_length_and_not_in_number(place, left, batches):
    schedule = Schedule(5, 5, 12)
    assert clock.refitted(schedule, **place, left=left, whole=20) == Schedule(5, 5, batches)


def speeds(seconds: dict[int, float], time: Time) -> Any:
    """Return a step that takes other ``seconds`` from some steps on."""
    quick = CycleGAN.step

    def step(model: CycleGAN, *images: Any) -> Any:
        time.step = seconds[max(begin for begin in seconds if begin <= model.steps)]
        return quick(model, *images)

    return step


@pytest.mark.behaviour(53)
@pytest.mark.parametrize(
    ("seconds", "slower"),
    [
        ({0: 1.0, 150: 2.0}, True),
        # Back to whole passes, and no longer ones, when it is fast again.
        ({0: 1.0, 130: 3.0, 160: 0.5}, True),
        ({0: 1.0, 130: 0.99}, False),
    ],
)
def test_a_run_that_becomes_slower_while_its_rate_goes_down_ends_in_time(
    data, tmp_path, time, monkeypatch, seconds, slower
):
    began = time.now
    monkeypatch.setattr(CycleGAN, "step", speeds(seconds, time))
    values = {"minutes": 4.0, "n_epochs": 1, "n_epochs_decay": 1, "log_every": 1}
    values |= {"samples": 0, "val_images": 0}
    outcome, said = train(data, tmp_path / "run", **values)
    # With as many steps in the second half as in the first one it would be 330 seconds.
    taken = time.now - began
    assert taken == pytest.approx(240, abs=6) or (len(seconds) == 3 and 200 < taken < 240)
    assert (outcome.finished, outcome.epoch) == (True, 48)
    losses = [event for event in log_of(tmp_path / "run") if event["event"] == "losses"]
    rates = {event["epoch"]: event["lr"] for event in losses}
    for epoch in range(1, 49):
        assert rates[epoch] == pytest.approx(2e-4 * min(1, 1 - (epoch - 24) / 25)), epoch
    steps = [sum(event["epoch"] == epoch for event in losses) for epoch in range(1, 49)]
    assert max(steps) == STEPS
    assert (min(steps) < STEPS) == slower
    assert any(each.startswith("slower than before: the epochs") for each in said) == slower
    if len(seconds) == 3:
        assert steps[-1] == STEPS


def test_more_minutes_after_epochs_that_became_shorter_are_of_whole_passes(
    data, tmp_path, time, monkeypatch
):
    monkeypatch.setattr(CycleGAN, "step", speeds({0: 1.0, 45: 5.0}, time))
    values = {"minutes": 1.0, "n_epochs": 1, "n_epochs_decay": 1, "samples": 0, "val_images": 0}
    outcome, _ = train(data, tmp_path / "run", **values)
    short = state_of(tmp_path / "run")["clock"]
    assert (short["batches"], outcome.epoch) == (STEPS, 12)
    assert short["schedule"]["batches"] < STEPS
    train(data, tmp_path / "run", resume=True, minutes=3.0, steps=1)
    longer = state_of(tmp_path / "run")["clock"]["schedule"]
    assert longer["batches"] == STEPS
    assert longer["n_epochs"] + longer["n_epochs_decay"] > 12


def test_a_long_epoch_at_a_falling_rate_is_corrected_on_its_way(data, tmp_path, time, monkeypatch):
    fill(tmp_path / "data" / "trainA", range(60))
    fill(tmp_path / "data" / "trainB", range(100, 102))
    began = time.now
    monkeypatch.setattr(CycleGAN, "step", speeds({0: 1.0, 65: 3.0}, time))
    values = {"minutes": 2.0, "samples": 0, "n_epochs": 1, "n_epochs_decay": 9, "val_images": 0}
    outcome, _ = train(tmp_path / "data", tmp_path / "run", **values)
    assert outcome.epoch == 10
    assert time.now - began == pytest.approx(120, abs=6)


def test_the_rate_is_that_of_late(monkeypatch):
    time = Time()
    monkeypatch.setattr(clock, "time", time)
    rate = Rate(100.0)
    for number in range(60):
        time.now += 1.0 if number < 40 else 2.0
        rate.step()
        known = rate.known()
        if number == 39:
            assert known == pytest.approx(1.0)
    # Over the last tenth of the time and a little more.
    assert known == pytest.approx(0.5)


def test_an_epoch_becomes_shorter_than_a_pass_where_few_passes_fit(data, tmp_path, time):
    time.step = 4.0
    outcome, told = train(data, tmp_path / "run", minutes=1.5, samples=0)
    assert "4 epochs of 5 steps fit into 1.5 min" in told
    assert outcome.finished


@pytest.mark.behaviour(40)
@pytest.mark.parametrize("stops", [(10, 2), (13, 1)])
def test_a_run_of_minutes_goes_on_bit_for_bit(data, tmp_path, time, monkeypatch, stops):
    def slow(model: CycleGAN, *images: Any) -> Any:
        time.now += 4.0
        return step(model, *images)

    monkeypatch.setattr(CycleGAN, "step", slow)
    values = {"minutes": 1.0, "samples": 0, "n_epochs": 1, "n_epochs_decay": 1}
    # Its schedule is known after the tenth step.
    train(data, tmp_path / "whole", **values)
    for number, steps in enumerate(stops):
        outcome, told = train(
            data, tmp_path / "run", steps=steps, resume=number > 0, **({} if number else values)
        )
        assert not outcome.finished
        time.now += 1000.0  # in which the run does not run
        if number:
            assert f"{4 * sum(stops[:number]) / 60:.1f} of 1 min are over" in told
    assert train(data, tmp_path / "run", resume=True)[0].finished
    ours, theirs = state_of(tmp_path / "run"), state_of(tmp_path / "whole")
    assert_same(ours, theirs)
    assert ours["clock"] == theirs["clock"]


def test_a_run_is_given_more_minutes(data, tmp_path, time):
    folder, values = tmp_path / "run", {"samples": 0, "n_epochs": 1, "n_epochs_decay": 1}
    assert train(data, folder, minutes=1.0, **values)[0].step == 60
    outcome, told = train(data, folder, resume=True, minutes=2.0)
    assert outcome.step == 120
    assert "1.0 of 2 min are over" in told
    assert "at 1 steps per second, as until now, 24 epochs fit into 2 min" in told
    # Minutes that are over end it at once, and none at all leave it as it is.
    assert train(data, folder, resume=True, minutes=1.5)[0].step == 120
    assert train(data, folder, resume=True, minutes=0.0)[0].step == 120


def test_a_run_of_epochs_is_given_minutes(data, tmp_path, time):
    folder = tmp_path / "run"
    values = {"samples": 0, "n_epochs": 1, "n_epochs_decay": 1}
    assert not train(data, folder, steps=7, **values)[0].finished
    assert train(data, folder, resume=True, minutes=1.0)[0].step == 60


def test_until_the_rate_is_known_the_time_says_how_far_a_run_is(data, tmp_path, time):
    seen: list[run.Progress] = []
    settings = settings_for(tmp_path / "run", TINY | {"minutes": 1.0, "samples": 0}, resume=False)
    run.train(data, tmp_path / "run", settings, watch=seen.append)
    assert (seen[1].step, seen[1].steps, seen[1].epochs) == (2, 60, 1)
    assert (seen[-1].step, seen[-1].steps, seen[-1].epochs) == (60, 60, 12)
    assert progress.state(seen[-1])["seconds_left"] in (None, 0.0)


def test_sheets_after_some_minutes_and_at_a_stop(data, tmp_path, time):
    time.step = 20.0
    folder = tmp_path / "run"
    sheets = folder / "samples"
    values = {"n_epochs": 20, "n_epochs_decay": 0, "log_every": 50}
    _, told = train(data, folder, steps=4, **values)
    assert sorted(path.name for path in sheets.iterdir()) == ["minute_1.png", "stopped.png"]
    assert f"samples: {sheets / 'minute_1.png'}" in told
    assert told[-1] == f"samples: {sheets / 'stopped.png'}"
    page = (folder / "index.html").read_text()
    assert "samples/minute_1.png" in page
    assert "samples/stopped.png" in page
    before = (sheets / "minute_1.png").read_bytes()
    train(data, folder, resume=True, n_epochs=2)
    names = ["epoch_0001.png", "epoch_0002.png", "minute_1.png", "minute_2.png"]
    assert sorted(path.name for path in sheets.iterdir()) == names
    assert (sheets / "minute_1.png").read_bytes() == before
    page = (folder / "index.html").read_text()
    assert all(f"samples/{name}" in page for name in names)
    assert "stopped" not in page
