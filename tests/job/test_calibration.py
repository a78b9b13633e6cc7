"""What bench measured is kept for one model, size and state of the machine, and read as data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.job import calibration as module
from cyclegan_batch.job.calibration import Calibration, keep, kept
from cyclegan_batch.models.card import ModelCard
from cyclegan_batch.models.model import open_model
from tests.synthesis import generators

FOUND = Calibration(
    backend="onnxruntime",
    device="cpu",
    precision="fp32",
    batch_size=2,
    contexts=3,
    workers=4,
    rate=12.5,
)
ON_GPU = replace(FOUND, backend="torch", device="cuda:1", precision="tf32")
SIZE = (256, 448)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    folder = tmp_path_factory.mktemp("model")
    return open_model(generators.identity(folder / "identity.onnx")).card


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "nvidia_gpus", lambda: ("NVIDIA H100", "NVIDIA L4"))
    monkeypatch.setattr(module, "nvidia_driver", lambda: "570.1")


def found(
    card: ModelCard, cache: Path, size: tuple[int, int] = SIZE, like: Calibration = FOUND
) -> Calibration | None:
    return kept(
        card, size, cache, backend=like.backend, device=like.device, precision=like.precision
    )


@pytest.mark.parametrize("calibration", [FOUND, ON_GPU], ids=["cpu", "gpu"])
def test_what_was_kept_is_found(
    calibration: Calibration, card: ModelCard, tmp_path: Path, gpus: None
) -> None:
    assert found(card, tmp_path, like=calibration) is None
    path = keep(calibration, card, SIZE, tmp_path)
    assert path.parent == tmp_path / "bench"
    assert found(card, tmp_path, like=calibration) == calibration
    # A later measurement replaces it, and leaves nothing else in the folder.
    better = replace(calibration, batch_size=8, rate=14.0)
    assert keep(better, card, SIZE, tmp_path) == path
    assert found(card, tmp_path, like=calibration) == better
    assert [*path.parent.iterdir()] == [path]


def test_the_usual_place_is_the_users_cache(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = keep(FOUND, card, SIZE, None)
    assert path.parent == tmp_path / "cyclegan-batch" / "bench"
    again = kept(card, SIZE, None, backend="onnxruntime", device="cpu", precision="fp32")
    assert again == FOUND


def test_another_question_has_another_answer(card: ModelCard, tmp_path: Path, gpus: None) -> None:
    keep(FOUND, card, SIZE, tmp_path)
    keep(ON_GPU, card, SIZE, tmp_path)
    assert found(card, tmp_path, size=(448, 256)) is None
    assert found(replace(card, digest="0" * 64), tmp_path) is None
    assert found(replace(card, adopted="nchw rgb 0..1"), tmp_path) is None
    for change in ({"backend": "openvino"}, {"precision": "bf16"}):
        assert found(card, tmp_path, like=replace(FOUND, **change)) is None
    # The other GPU of this machine is another model, and there is no third.
    assert found(card, tmp_path, like=replace(ON_GPU, device="cuda:0")) is None
    assert found(card, tmp_path, like=replace(ON_GPU, device="cuda:7")) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_name", lambda: "another CPU"),
        ("cpu_threads", lambda: 1024),
        ("nvidia_driver", lambda: "580.2"),
        ("nvidia_gpus", lambda: ("NVIDIA L4", "NVIDIA H100")),
        ("__version__", "99"),
    ],
)
def test_a_change_of_the_machine_voids_it(
    name: str,
    value: object,
    card: ModelCard,
    tmp_path: Path,
    gpus: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep(ON_GPU, card, SIZE, tmp_path)
    assert found(card, tmp_path, like=ON_GPU) == ON_GPU
    monkeypatch.setattr(module, name, value)
    assert found(card, tmp_path, like=ON_GPU) is None


@pytest.mark.parametrize(
    ("calibration", "package", "counts"),
    [
        (FOUND, "onnxruntime", True),
        (FOUND, "torch", False),
        (FOUND, "nvidia-cudnn-cu13", False),
        (ON_GPU, "torch", True),
        (ON_GPU, "nvidia-cudnn-cu13", True),
        (replace(FOUND, backend="openvino"), "openvino", True),
        (replace(ON_GPU, backend="tensorrt"), "tensorrt-cu13", True),
    ],
)
def test_an_upgrade_of_the_runtime_voids_it(
    calibration: Calibration,
    package: str,
    counts: bool,
    card: ModelCard,
    tmp_path: Path,
    gpus: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed: dict[str, str] = {}
    monkeypatch.setattr(metadata, "version", lambda name: installed.get(name, "1.26"))
    keep(calibration, card, SIZE, tmp_path)
    assert found(card, tmp_path, like=calibration) == calibration
    installed[package] = "1.27"
    assert (found(card, tmp_path, like=calibration) is None) == counts


def changed(**values: object) -> Callable[[bytes], bytes]:
    """Return a function that changes what was found in the content of a file."""

    def change(content: bytes) -> bytes:
        value = json.loads(content)
        value["found"] |= values
        return json.dumps(value).encode()

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"\xff\xfe",
        lambda content: b"[" * 10_000,
        lambda content: b"[]",
        lambda content: b"null",
        lambda content: content.replace(b'"found"', b'"lost"'),
        lambda content: content.replace(b'"fp32"', b'"fp16"'),
        lambda content: content.replace(b"{", b"{" + b" " * 100_000, 1),
        lambda content: content.replace(b"{\n", b'{"found": [3],', 1).replace(b'"found"', b'"x"'),
        changed(batch_size=0),
        changed(batch_size=4097),
        changed(batch_size=10**30),
        changed(batch_size=True),
        changed(batch_size=2.0),
        changed(batch_size="2"),
        changed(batch_size=[2]),
        changed(batch_size=None),
        changed(contexts=17),
        changed(contexts=-1),
        changed(workers=65),
        changed(workers={}),
        changed(rate=0.0),
        changed(rate=-1.0),
        changed(rate=float("nan")),
        changed(rate=float("inf")),
        changed(rate="fast"),
    ],
)
def test_a_file_of_another_form_counts_as_absent(
    damage: Callable[[bytes], bytes], card: ModelCard, tmp_path: Path
) -> None:
    path = keep(FOUND, card, SIZE, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert found(card, tmp_path) is None
    keep(FOUND, card, SIZE, tmp_path)
    assert found(card, tmp_path) == FOUND


def test_the_largest_values_are_found(card: ModelCard, tmp_path: Path) -> None:
    most = replace(FOUND, batch_size=4096, contexts=16, workers=64)
    keep(most, card, SIZE, tmp_path)
    assert found(card, tmp_path) == most


def test_a_file_of_another_key_under_this_name_counts_as_absent(
    card: ModelCard, tmp_path: Path
) -> None:
    path = keep(FOUND, card, SIZE, tmp_path)
    other = keep(FOUND, card, (8, 8), tmp_path)
    path.write_bytes(other.read_bytes())
    assert found(card, tmp_path) is None


@pytest.mark.skipif(os.name != "posix", reason="files have no owners")
def test_what_others_may_write_is_neither_read_nor_added_to(
    card: ModelCard, tmp_path: Path
) -> None:
    path = keep(FOUND, card, SIZE, tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o620)
    assert found(card, tmp_path) is None
    path.chmod(0o600)
    assert found(card, tmp_path) == FOUND
    path.parent.chmod(0o777)
    assert found(card, tmp_path) is None
    with pytest.raises(OutputError, match=r"cannot be kept: .*bench may be written by other users"):
        keep(FOUND, card, SIZE, tmp_path)


@pytest.mark.needs("root")
def test_what_belongs_to_another_user_counts_as_absent(card: ModelCard, tmp_path: Path) -> None:
    path = keep(FOUND, card, SIZE, tmp_path)
    os.chown(path, 12345, -1)
    assert found(card, tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_in_its_place_is_not_waited_for(card: ModelCard, tmp_path: Path) -> None:
    path = keep(FOUND, card, SIZE, tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert found(card, tmp_path) is None


def test_a_cache_that_cannot_be_written_errors(card: ModelCard, tmp_path: Path) -> None:
    (tmp_path / "bench").write_text("in the way")
    with pytest.raises(OutputError, match="bench"):
        keep(FOUND, card, SIZE, tmp_path)
    assert found(card, tmp_path) is None


def test_a_write_that_fails_leaves_the_earlier_one(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep(FOUND, card, SIZE, tmp_path)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(OutputError, match="the disk is full"):
            keep(replace(FOUND, batch_size=9), card, SIZE, tmp_path)
    assert found(card, tmp_path) == FOUND
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"contexts": 17}, {"workers": 2.0}, {"rate": 0.0}, {"rate": 3}]
)
def test_a_calibration_out_of_range_errors(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} must be"):
        replace(FOUND, **wrong)
