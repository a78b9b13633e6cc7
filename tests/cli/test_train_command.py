"""``cyclegan-batch train`` from outside: two folders become a run, and a stop is not an end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch import cli
from tests.cli.test_cli import assert_one_clear_line, cyclegan_batch
from tests.conftest import ENVIRONMENT, PATHS, REPOSITORY, SMALL


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "cyclegan_batch", "train", *map(str, arguments)]


def train(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves the import of torch."""
    import torch

    threads = torch.get_num_threads()
    try:
        return cyclegan_batch("train", *arguments)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, first in (("trainA", 0), ("trainB", 10)):
        (folder / name).mkdir()
        for number in range(first, first + 4):
            noise = np.random.default_rng(number).integers(0, 256, (36, 36, 3), np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number}.png")
    return folder


def events(run: Path, kind: str) -> list[dict]:
    lines = (run / "log.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in e.items() if k != "seconds"} for e in found if e["event"] == kind]


@pytest.mark.behaviour(42)
def test_two_folders_become_a_run(data, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "mine.toml").write_text("n_epochs = 9\nlr = 1e-3\nngf = 9\n")
    done = train(
        data, tmp_path / "run", "--recipe", tmp_path / "mine.toml", "--set", "ngf=7", *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "A: 4 images of" in done.stderr
    assert "trained for 8 steps" in done.stderr
    assert f"sheets and curves: {tmp_path / 'run' / 'index.html'}\n" in done.stderr
    assert (tmp_path / "run" / "index.html").exists()
    assert f"next: cyclegan-batch translate INPUT OUTPUT -m {tmp_path / 'run'}\n" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "latest" / "netG_A.safetensors").exists()
    config = (tmp_path / "run" / "config.toml").read_text()
    # Recipe, --set, option: each over the one before.
    for line in ("lr = 0.001", "n_epochs = 2", "ngf = 4", "load_size = 36", "tensorboard = false"):
        assert f"\n{line}\n" in config
    again = train(data, tmp_path / "run", *SMALL)
    assert_one_clear_line(again, "holds a run already; --resume goes on with it")


@pytest.mark.behaviour(40)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_resumes(data, tmp_path, number, start):
    pytest.importorskip("torch")
    folders = ["--data-a", data / "trainA", "--data-b", data / "trainB"]
    options = [*folders, tmp_path / "run", *SMALL, "--n-epochs=20000", "--samples=0", "--resume"]
    running = start(command(*options), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    log = tmp_path / "run" / "log.jsonl"
    end = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size > 500):
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    running.send_signal(number)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130, said
    assert "the same command with --resume goes on" in said
    assert "Traceback" not in said
    steps = int(said.split(" after ")[1].split(" steps")[0])
    epochs = steps // 4 + 1
    options[-3] = f"--n-epochs={epochs}"
    done = train(*options)
    assert done.returncode == 0, done.stderr
    assert f"trained for {4 * epochs} steps" in done.stderr
    assert [event["epoch"] for event in events(tmp_path / "run", "epoch")] == [
        *range(1, epochs + 1)
    ]


def test_progress_as_json_has_rate_and_time_left(data, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("cyclegan_batch.cli.progress._JSON_INTERVAL", 0.0)
    done = train(data, tmp_path / "run", *SMALL, "--samples=0", "--progress=json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    progress = [line for line in lines if line["event"] == "progress" and "step" in line]
    assert progress
    assert progress[0]["steps"] == 8
    assert progress[-1]["rate"] > 0
    assert progress[-1]["seconds_left"] >= 0
    assert progress[-1]["losses"]["cycle_A"] > 0


def test_a_folder_that_is_not_there_is_one_clear_line_errors(tmp_path):
    pytest.importorskip("torch")
    done = train(tmp_path / "nowhere", tmp_path / "run", *SMALL)
    assert_one_clear_line(done, "nowhere: no such folder")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data"], "no images named"),
        ([], "give DATA and RUN"),
        (["a", "b", "c"], "give DATA and RUN"),
        (["data", "run", "--set", "nfg=3"], "'nfg' is no key of a training; do you mean ngf?"),
        (["data", "run", "--set", "input_nc=1"], "Error: lambda_identity = 0.5 compares G_A(B)"),
        (["data", "run", "--set", "ngf"], "'ngf' is not KEY=VALUE"),
        (["data", "run", "--ngf", "few"], "'few' is not a valid integer"),
        (["data", "run", "--netD", "big"], "'big' is not one of 'basic'"),
        (["data", "run", "--recipe", "horses"], "'horses' is neither a file nor one of the"),
        (["data", "run", "--load_size", "100"], "load_size = 100 is less than crop_size = 256"),
    ],
)
def test_a_wrong_command_errors(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if arguments == ["data"]:
        pytest.importorskip("torch")
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *arguments])
    # Where pictures are is no question of spelling.
    assert end.value.code == (1 if arguments == ["data"] else 2)
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "?." not in said


def test_how_far_the_pictures_are_read_is_shown(data, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("cyclegan_batch.cli.progress._PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr("cyclegan_batch.cli.progress._JSON_INTERVAL", 0.0)
    none = [*SMALL, "--n-epochs=0"]
    done = train(data, tmp_path / "plain", *none, "--progress=plain")
    assert done.returncode == 0, done.stderr
    for sentence in ("A: read 1 of 4 images", "B: read 4 of 4 images"):
        assert f"{sentence}\n" in done.stderr
    done = train(data, tmp_path / "json", *none, "--progress=json")
    first = json.loads(done.stderr.splitlines()[0])
    assert first == {"event": "progress", "domain": "A", "read": 1, "pictures": 4}


def test_every_key_is_an_option_in_both_spellings():
    from cyclegan_train.settings import keys

    context = click.Context(cli.main.commands["train"])
    options = {option.name: option for option in context.command.get_params(context)}
    for key in keys().values():
        option = options[key.name]
        assert {f"--{key.name}", f"--{key.name.replace('_', '-')}"} <= set(option.opts)
        assert option.help
        if key.kind is bool:
            no = {f"--no_{key.name}", f"--no-{key.name.replace('_', '-')}"}
            assert no <= set(option.secondary_opts)


def test_its_help_loads_no_torch():
    code = (
        "import sys\nfrom cyclegan_batch.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'cv2', 'av', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert "--lambda-A X" in done.stdout


def test_without_torch_it_says_what_to_install_errors(data, tmp_path):
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        "from cyclegan_batch.cli import main\n"
        f"main(['train', {str(data)!r}, {str(tmp_path / 'run')!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert_one_clear_line(done, 'torch is not installed; pip install "cyclegan-batch[train]"')


@pytest.mark.behaviour(31, 32)
def test_from_two_folders_to_a_translated_video(data, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from tests.cli.test_cli import write_clip

    run, cache = tmp_path / "run", tmp_path / "cache"
    assert train(data, run, *SMALL).returncode == 0
    assert (run / "samples" / "epoch_0002.png").is_file()
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    paths = os.pathsep.join([PATHS, str(REPOSITORY / "export")])

    def command(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "cyclegan_batch", *map(str, arguments)],
            capture_output=True, text=True, timeout=200, env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    asked = ["-m", run, "--direction", "BtoA", "--cache-dir", cache, "--threads", "1"]
    done = cyclegan_batch("translate", clip, tmp_path / "fake_A.mp4", *asked)
    assert done.returncode == 0, done.stderr
    said = done.stderr
    assert "netG_B.safetensors to ONNX, once; it is kept in" in said
    assert "exported: exact: " in said
    assert "netG_B.onnx: trained at 32, its input is 64×48" in said
    assert "Done: 3 frames" in said
    (kept,) = cache.rglob("*.onnx")
    written = kept.stat().st_mtime_ns
    said = command("translate", clip, tmp_path / "again.mp4", *asked)
    assert "Done: 3 frames" in said
    assert "exporting" not in said
    assert "| torch\n" not in said  # nor is torch imported
    assert kept.stat().st_mtime_ns == written
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "fake_A.mp4").read_bytes()
