"""A generator's file is found by its folder, its name and its metadata."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.checkpoint_files import (
    find_checkpoint,
    is_checkpoint,
    safetensors_metadata,
)
from cyclegan_batch.wording import grouped
from tests.conftest import REPOSITORY


def said(path: Path, **metadata: str) -> Path:
    """Write a safetensors file with these metadata and no weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def touched(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a training run, with the files that `cyclegan_train` writes."""
    run = touched(tmp_path / "run", "config.toml", "run.json", "log.jsonl")
    for name in ("latest", "best", "epoch_0005"):
        for letter, direction in (("A", "AtoB"), ("B", "BtoA")):
            said(run / "checkpoints" / name / f"netG_{letter}.safetensors", direction=direction)
    touched(run / "checkpoints", "state.pt", "latest_net_G_A.pth", "latest_net_G_B.pth")
    return run


@pytest.mark.parametrize("inner", ["", "checkpoints", "checkpoints/latest"])
def test_a_run_gives_its_latest_generators(run: Path, inner: str) -> None:
    latest = run / "checkpoints" / "latest"
    found = find_checkpoint(run / inner)
    assert (found.path, found.direction) == (latest / "netG_A.safetensors", "AtoB")
    (note,) = grouped(found.notes)
    assert note.endswith("holds two generators: AtoB is used; --direction BtoA for the other")
    found = find_checkpoint(run / inner, "BtoA")
    assert (found.path, found.direction) == (latest / "netG_B.safetensors", "BtoA")
    assert found.notes == ()


@pytest.mark.parametrize("name", ["best", "epoch_0005"])
def test_a_folder_of_one_checkpoint_gives_its_own(run: Path, name: str) -> None:
    place = run / "checkpoints" / name
    assert find_checkpoint(place, "AtoB").path == place / "netG_A.safetensors"


def test_the_moving_average_is_taken_where_there_is_one_and_that_is_said(run: Path) -> None:
    latest = run / "checkpoints" / "latest"
    for letter, direction in (("A", "AtoB"), ("B", "BtoA")):
        said(latest / f"netG_{letter}_ema.safetensors", direction=direction)
    found = find_checkpoint(run, "BtoA")
    assert found.path == latest / "netG_B_ema.safetensors"
    (note,) = grouped(found.notes)
    assert "(EMA), netG_B_ema.safetensors, is used; name netG_B.safetensors" in note
    assert len(grouped(find_checkpoint(run).notes)) == 2


def test_the_reference_implementations_folder_gives_its_latest(tmp_path: Path) -> None:
    names = ["latest_net_G_A.pth", "latest_net_G_B.pth", "200_net_G_A.pth", "latest_net_D_A.pth"]
    folder = touched(tmp_path / "horse2zebra", *names, "latest_net_G.pth")
    found = find_checkpoint(folder, "BtoA")
    assert (found.path, found.direction) == (folder / "latest_net_G_B.pth", "BtoA")
    assert find_checkpoint(folder).path == folder / "latest_net_G_A.pth"


def test_a_folder_of_one_generator_gives_it(tmp_path: Path) -> None:
    only_b = touched(tmp_path / "b", "latest_net_G_B.pth")
    found = find_checkpoint(only_b)
    assert (found.path.name, found.direction, found.notes) == ("latest_net_G_B.pth", "BtoA", ())
    # The one generator of a test model has no direction of its own; the caller may name it.
    either = touched(tmp_path / "pretrained", "latest_net_G.pth")
    assert find_checkpoint(either).direction is None
    assert find_checkpoint(either, "BtoA").direction == "BtoA"
    assert find_checkpoint(touched(tmp_path / "z", "netG_B2A.pth")).direction == "BtoA"


def test_a_file_is_itself_and_its_direction_is_what_it_says(tmp_path: Path) -> None:
    plain = touched(tmp_path, "g.pth", "200_net_G_B.pth")
    assert find_checkpoint(plain / "g.pth").direction is None
    assert find_checkpoint(plain / "g.pth", "BtoA").direction == "BtoA"
    assert find_checkpoint(plain / "200_net_G_B.pth").direction == "BtoA"
    renamed = said(tmp_path / "netG_A.safetensors", direction="BtoA")
    assert find_checkpoint(renamed).direction == "BtoA"
    assert safetensors_metadata(renamed) == {"direction": "BtoA"}


def test_the_other_direction_errors(tmp_path: Path, run: Path) -> None:
    path = said(tmp_path / "mine.safetensors", direction="BtoA")
    with pytest.raises(
        ModelError, match=r"mine\.safetensors: translates BtoA, as the file itself says"
    ):
        find_checkpoint(path, "AtoB")
    touched(tmp_path, "latest_net_G_A.pth")
    with pytest.raises(
        ModelError, match="translates AtoB, as its name says, and BtoA was asked for"
    ):
        find_checkpoint(tmp_path / "latest_net_G_A.pth", "BtoA")
    (run / "checkpoints" / "latest" / "netG_B.safetensors").unlink()
    with pytest.raises(
        ModelError,
        match=r"run: holds no generator BtoA \(netG_B\.safetensors or latest_net_G_B\.pth is "
        r"expected\), only AtoB \(netG_A\.safetensors\); leave --direction out",
    ):
        find_checkpoint(run, "BtoA")


def test_a_folder_without_a_generator_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere: no such file or folder; check the path"):
        find_checkpoint(tmp_path / "nowhere")
    early = touched(tmp_path / "run", "config.toml", "run.json")
    touched(early / "checkpoints", "state.pt")
    with pytest.raises(ModelError, match=r"run: is a run that has no checkpoint yet .* let it fin"):
        find_checkpoint(early)
    with pytest.raises(ModelError, match="is expected\\), it holds nothing; give the file"):
        find_checkpoint(touched(tmp_path / "empty"))
    old = touched(tmp_path / "old", *(f"{n}_net_G_A.pth" for n in range(5, 35, 5)), "opt.txt")
    with pytest.raises(ModelError, match=r"it holds 10_net_G_A\.pth, .* …; give the file of a gen"):
        find_checkpoint(old)


def test_what_looks_like_a_checkpoint_is_told_from_an_onnx(tmp_path: Path) -> None:
    looks = {"a.pth": b"text", "b": b"PK\3\4", "c": b"\x80\2}", "d": b"\x02\0\0\0\0\0\0\0{}"}
    for name, content in looks.items():
        (tmp_path / name).write_bytes(content)
        assert is_checkpoint(tmp_path / name)
    (tmp_path / "a.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    assert not is_checkpoint(tmp_path / "a.onnx")
    assert not is_checkpoint(tmp_path / "nowhere.onnx")
    assert is_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 9,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x05\0\0\0\0\0\0\0{not}",
        b"\x12\0\0\0\0\0\0\0" + b'{"__metadata__":1}',
    ],
    ids=repr,
)
def test_a_damaged_header_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.safetensors"
    path.write_bytes(content)
    assert safetensors_metadata(path) == {}
    assert find_checkpoint(path).direction is None


def test_looking_for_a_checkpoint_loads_no_torch() -> None:
    code = (
        "import sys, cyclegan_batch.models.checkpoint_files\n"
        "assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
