"""A generator's file is found by its folder, its name and its metadata."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.checkpoints.files import (
    find_checkpoint,
    is_checkpoint,
    safetensors_metadata,
)
from cyclegan_batch.options import Direction
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


@pytest.mark.behaviour(53)
@pytest.mark.parametrize(
    ("raw", "average", "taken"),
    [
        ({"unpaired": 0.4, "random_kid": 3.0}, {"unpaired": 0.5, "random_kid": 2.0}, "raw"),
        ({"unpaired": 0.5, "random_kid": 2.0}, {"unpaired": 0.4, "random_kid": 3.0}, "average"),
        ({"psnr": 20.5, "unpaired": 0.9}, {"psnr": 20.0, "unpaired": 0.1}, "raw"),
        ({"iou": 0.2, "unpaired": 0.1}, {"iou": 0.3, "unpaired": 0.9}, "average"),
        ({"kid": 0.5}, {"kid": 0.5}, "average"),
        # NaN is worse than any score.
        ({"kid": 0.5}, {"kid": float("nan")}, "raw"),
        ({"kid": float("nan")}, {"kid": 0.5}, "average"),
        # Scores that cannot be compared decide nothing.
        ({"kid": 0.1}, {"unpaired": 0.5}, "average"),
        ({"unpaired": 0.1}, None, "average"),
        ({"unpaired": "good"}, {"unpaired": 0.5}, "average"),
        ({"other": 0.1}, {"other": 0.5}, "average"),
        ([1], [2], "average"),
    ],
)
def test_of_weights_and_their_average_the_one_that_validation_scored_better_is_taken(
    run: Path, raw: object, average: object, taken: str
) -> None:
    best = run / "checkpoints" / "best"
    for ending, scores, epoch in (("", raw, 7), ("_ema", average, 9)):
        metadata = {"direction": "BtoA", "epoch": str(epoch)}
        if scores is not None:
            metadata["validation"] = json.dumps(scores)
        said(best / f"netG_B{ending}.safetensors", **metadata)
    found = find_checkpoint(best, "BtoA")
    assert found.path == best / f"netG_B{'_ema' if taken == 'average' else ''}.safetensors"
    (note,) = grouped(found.notes)
    assert f"netG_B{'' if taken == 'average' else '_ema'}.safetensors in the same folder" in note


def test_which_weights_validation_chose_is_said_with_their_scores(run: Path) -> None:
    best = run / "checkpoints" / "best"
    for ending, score, epoch in (("", 0.41234, "7"), ("_ema", 0.5, "9")):
        said(
            best / f"netG_A{ending}.safetensors",
            direction="AtoB",
            epoch=epoch,
            validation=json.dumps({"unpaired": score}),
        )
    (note,) = grouped(find_checkpoint(best, "AtoB").notes)
    assert note.endswith(
        "best: the weights themselves, netG_A.safetensors, are used, which validation scored "
        "better: 0.4123 in epoch 7, and 0.5 in epoch 9 (unpaired score); name "
        "netG_A_ema.safetensors in the same folder for their moving average (EMA)"
    )
    said(
        best / "netG_A_ema.safetensors",
        direction="AtoB",
        epoch="9",
        validation=json.dumps({"unpaired": 0.3}),
    )
    (note,) = grouped(find_checkpoint(best, "AtoB").notes)
    assert note.endswith(
        "best: the moving average of the weights (EMA), netG_A_ema.safetensors, is used, which "
        "validation scored better: 0.3 in epoch 9, and 0.4123 in epoch 7 (unpaired score); name "
        "netG_A.safetensors in the same folder for the weights themselves"
    )


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


@pytest.mark.parametrize(
    ("names", "a", "b"),
    [
        (("netG_A2B.pth", "netG_B2A.pth"), "netG_A2B.pth", "netG_B2A.pth"),
        (("G_AB_9.pth", "G_AB_10.pth", "G_BA_9.pth", "D_A_10.pth"), "G_AB_10.pth", "G_BA_9.pth"),
        (("5_net_G_A.pth", "200_net_G_A.pth", "5_net_G_B.pth"), "200_net_G_A.pth", "5_net_G_B.pth"),
        (("5_net_G_A.pth", "latest_net_G_A.pth", "latest_net_G_B.pth"),
         "latest_net_G_A.pth", "latest_net_G_B.pth"),
        (("g_A_best.pth.tar", "g_A_last.pth.tar", "g_A_epoch_3.pth.tar", "g_B_epoch_20.pth.tar",
          "g_B_epoch_3.pth.tar", "d_A_last.pth.tar"), "g_A_last.pth.tar", "g_B_epoch_20.pth.tar"),
        (("Generator_A2B_Epoch5-Loss0.9.pth", "Generator_A2B_Epoch10-Loss1.2.pth",
          "Generator_B2A_last_epoch_weights.pth"), "Generator_A2B_Epoch10-Loss1.2.pth",
         "Generator_B2A_last_epoch_weights.pth"),
        (("G_XtoY.pkl", "G_YtoX.pkl", "D_X.pkl"), "G_XtoY.pkl", "G_YtoX.pkl"),
        (("g12-500.pkl", "g12-40000.pkl", "g21-500.pkl"), "g12-40000.pkl", "g21-500.pkl"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_the_folder_of_another_project_gives_its_last_generators(
    tmp_path: Path, names: tuple[str, ...], a: str, b: str
) -> None:
    folder = touched(tmp_path / "saved", *names)
    for direction, expected in (("AtoB", a), ("BtoA", b)):
        found = find_checkpoint(folder, direction)  # type: ignore[arg-type]
        assert (found.path.name, found.direction) == (expected, direction)
    assert find_checkpoint(folder).path.name == a


def test_of_many_epochs_the_last_is_taken_and_that_is_said(tmp_path: Path) -> None:
    numbered = touched(tmp_path / "a", *(f"G_AB_{n}.pth" for n in (0, 5, 95, 100)), "G_BA_100.pth")
    found = find_checkpoint(numbered, "AtoB")
    (note,) = grouped(found.notes)
    assert "a: holds 4 epochs of a generator: the last one, G_AB_100.pth, is used; name" in note
    assert find_checkpoint(numbered, "BtoA").notes == ()
    # CUT's one generator is of any direction.
    cut = touched(
        tmp_path / "cut", "40_net_G.pth", "200_net_G.pth", "200_net_F.pth", "200_net_D.pth"
    )
    for direction in (None, "AtoB", "BtoA"):
        found = find_checkpoint(cut, direction)  # type: ignore[arg-type]
        assert (found.path.name, found.direction) == ("200_net_G.pth", direction)
        assert "holds 2 epochs" in grouped(found.notes)[-1]
    touched(cut, "latest_net_G.pth")
    assert find_checkpoint(cut).path.name == "latest_net_G.pth"
    assert find_checkpoint(cut).notes == ()


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("netG_A2B.pth", "AtoB"),
        ("netG_B2A_epoch_20.ckpt", "BtoA"),
        ("summer2winter_net_G_B.pth", "BtoA"),
        ("G_BA_3.pt", "BtoA"),
        ("genA2B.safetensors", "AtoB"),
        ("g12-40000.pkl", "AtoB"),
        ("gen12.pth", None),
        ("latest_net_G.pth", None),
        ("G_best.pth", None),
        ("netD_A.pth", None),
        ("genh.pth.tar", None),
        ("netG_A2B.pth.txt", None),
        ("clip_A2B.mp4", None),
    ],
)
def test_the_direction_is_read_from_a_name(
    tmp_path: Path, name: str, direction: Direction | None
) -> None:
    assert find_checkpoint(touched(tmp_path, name) / name).direction == direction


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
    with pytest.raises(ModelError, match=r"run: is a run that has no checkpoint yet .* resume the"):
        find_checkpoint(early)
    for onnx in ("model.onnx", "models/generator/1/model.onnx"):
        bundle = touched(tmp_path / f"for{len(onnx)}", "card.json", "golden_input.bin")
        touched((bundle / onnx).parent, "model.onnx")
        with pytest.raises(ModelError, match=rf": is a bundle .*; give {onnx} in it"):
            find_checkpoint(bundle)
    with pytest.raises(ModelError, match="is expected\\), it holds nothing; give the file"):
        find_checkpoint(touched(tmp_path / "empty"))
    others = touched(tmp_path / "others", *(f"{n}_net_D_A.pth" for n in range(5, 35, 5)), "opt.txt")
    with pytest.raises(ModelError, match=r"it holds 10_net_D_A\.pth, .* …; give the file of a gen"):
        find_checkpoint(others)
    saved_model = touched(tmp_path / "tf", "saved_model.pb", "keras_metadata.pb")
    with pytest.raises(
        ModelError, match=r"tf: is a SavedModel of TensorFlow .*; convert it to ONNX with tf"
    ):
        find_checkpoint(saved_model)
    # A letter alone may be the domain that is read or the one that is made.
    letters = touched(tmp_path / "letters", "genh.pth.tar", "genz.pth.tar")
    with pytest.raises(ModelError, match=r"it holds genh\.pth\.tar, genz\.pth\.tar; give the file"):
        find_checkpoint(letters)


def test_what_looks_like_a_checkpoint_is_told_from_an_onnx(tmp_path: Path) -> None:
    for name in ("h.pth.tar", "h.PKL", "h.bin", "h.ckpt", "h.pt"):
        (tmp_path / name).touch()
        assert is_checkpoint(tmp_path / name)
    (tmp_path / "images.tar").write_bytes(b"0.png" + bytes(507))
    assert not is_checkpoint(tmp_path / "images.tar")
    looks = {"a.pth": b"text", "b": b"PK\3\4", "c": b"\x80\2}", "d": b"\x02\0\0\0\0\0\0\0{}",
             "e.h5": b"\x89HDF\r\n\x1a\n"}  # fmt: skip
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
        "import sys, cyclegan_batch.models.checkpoints.files\n"
        "assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
