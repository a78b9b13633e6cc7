"""``translate -m CHECKPOINT``: exported once and kept, or run by torch."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cyclegan_export import cache
from cyclegan_export.cache import cached_export, open_exported
from PIL import Image

from cyclegan_batch import cli, open_generator, translate
from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import BackendUnavailableError, ModelError, OutputError
from cyclegan_batch.models.checkpoints.files import Selection, find_checkpoint
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import parity
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import Note, grouped
from tests.cli.test_cli import left_in
from tests.synthesis import generators

torch = pytest.importorskip("torch")

from tests.backends.test_torch import checkpoint  # noqa: E402

OPTIONS = TranslateOptions


class Exporter:
    """Stands for `build_onnx`: counts, and returns a generator that changes nothing."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fails: Exception | None = None

    def __call__(self, source: Path, output: Path, **asked: Any) -> SimpleNamespace:
        self.asked.append({"source": source, **asked})
        if self.fails is not None:
            raise self.fails
        with tempfile.TemporaryDirectory() as folder:
            model = open_model(generators.identity(Path(folder) / output.name))
        direction = asked["selection"].direction
        found = find_checkpoint(source, direction).notes if source.is_dir() else ()
        return SimpleNamespace(model=model, notes=(*found, Note("g.pth", "a note")))


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    def check() -> None:
        if isinstance(exporter.fails, BackendUnavailableError):
            raise exporter.fails

    exporter = Exporter()
    monkeypatch.setattr("cyclegan_export.onnx_export.check_exporter", check)
    monkeypatch.setattr("cyclegan_export.onnx_export.build_onnx", exporter)
    return exporter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "g.pth")


def test_an_export_is_made_once_and_found_again(
    tmp_path: Path, path: Path, exporter: Exporter
) -> None:
    said: list[str] = []
    first = cached_export(path, cache_dir=tmp_path / "cache", say=said.append)
    assert first == (first[0], (Note("g.pth", "a note"),))
    assert open_model(first[0]).card.architecture == "hand-made"
    assert first[0].name == "g.onnx"
    assert len(said) == 2
    assert cached_export(path, cache_dir=tmp_path / "cache", say=said.append) == first
    assert (len(exporter.asked), len(said)) == (1, 2)
    # The same weights under another name become another file in the same entry.
    shutil.copy(path, tmp_path / "h.pth")
    again = cached_export(tmp_path / "h.pth", cache_dir=tmp_path / "cache")
    assert again[0] == first[0].with_name("h.onnx")


def test_other_weights_generator_precision_opset_or_version_are_another_file(
    tmp_path: Path, path: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    found = {cached_export(path, cache_dir=folder)[0]}
    found.add(cached_export(path, cache_dir=folder, precision="fp16")[0])
    for chosen in (Selection("BtoA"), Selection(weights="netG_A"), Selection(family="resnet")):
        found.add(cached_export(path, cache_dir=folder, selection=chosen)[0])
    for name, other in (("__version__", "0.0.0"), ("OPSET", 17)):
        monkeypatch.setattr(cache, name, other)
        found.add(cached_export(path, cache_dir=folder)[0])
    monkeypatch.undo()
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr("cyclegan_export.onnx_export.build_onnx", exporter)
    found.add(cached_export(path, cache_dir=folder)[0])
    assert len(found) == len(exporter.asked) == 8


@pytest.mark.parametrize("damage", ["cut", "gone", "changed", "entry", "no entry"])
def test_a_damaged_entry_is_made_anew(
    tmp_path: Path, path: Path, exporter: Exporter, damage: str
) -> None:
    onnx, _ = cached_export(path, cache_dir=tmp_path / "cache")
    whole = onnx.read_bytes()
    if damage == "cut":
        onnx.write_bytes(whole[:-9])
    elif damage == "changed":
        onnx.write_bytes(whole[:-1] + b"\xff")
    elif damage == "gone":
        onnx.unlink()
    elif damage == "entry":
        (onnx.parent / "entry.json").write_text('{"sha256": 3')
    else:
        (onnx.parent / "entry.json").unlink()
    assert cached_export(path, cache_dir=tmp_path / "cache")[0].read_bytes() == whole
    assert len(exporter.asked) == 2


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, path: Path, exporter: Exporter
) -> None:
    exporter.fails = ModelError("outside its class")
    with pytest.raises(ModelError, match="outside its class"):
        cached_export(path, cache_dir=tmp_path / "cache")
    assert left_in(tmp_path / "cache") == set()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"is a file.*; --cache-dir names another place"):
        cached_export(path, cache_dir=tmp_path / "file")


def test_the_usual_place_is_the_users_cache(
    tmp_path: Path, path: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    onnx, _ = cached_export(path)
    assert onnx.is_relative_to(tmp_path / "xdg" / "cyclegan-batch" / "onnx")


@pytest.mark.parametrize("folder_first", [True, False])
def test_how_the_file_was_found_is_told_of_this_run_alone(
    tmp_path: Path, exporter: Exporter, folder_first: bool
) -> None:
    for name, content in (("netG_A2B.pth", b"PK a"), ("netG_B2A.pth", b"PK b")):
        (tmp_path / name).write_bytes(content)
    of_the_folder = "holds two generators: AtoB is used"
    for source in (tmp_path, tmp_path / "netG_A2B.pth")[:: 1 if folder_first else -1]:
        _, notes = cached_export(source, cache_dir=tmp_path / "cache")
        told = list(map(str, notes))
        assert any(of_the_folder in each for each in told) == source.is_dir()
        assert sum("a note" in each for each in told) == 1
    assert len(exporter.asked) == 1


def test_a_checkpoint_is_opened_by_way_of_its_export(
    tmp_path: Path, path: Path, exporter: Exporter
) -> None:
    options = OPTIONS(
        cache_dir=tmp_path / "cache", precision="fp16", direction="BtoA", weights="a", family="unet"
    )
    chosen = Selection("BtoA", "a", "unet")
    model = open_exported(path, options)
    assert (model.checkpoint, grouped(model.card.notes)) == (None, ("g.pth: a note",))
    (asked,) = exporter.asked
    assert (asked["source"], asked["precision"], asked["selection"]) == (path, "fp16", chosen)
    onnx = generators.identity(tmp_path / "a.onnx")
    assert open_exported(onnx, OPTIONS()).card.path == onnx
    with pytest.raises(ModelError, match=r"make a file with .*--calibrate"):
        open_exported(path, OPTIONS(precision="int8"))
    assert len(exporter.asked) == 1


def test_torch_runs_the_checkpoint_where_it_is_named_or_nothing_exports(
    tmp_path: Path, path: Path, exporter: Exporter
) -> None:
    model = open_exported(path, OPTIONS(backend="torch"))
    assert model.checkpoint is not None
    assert (exporter.asked, model.card.notes) == ([], ())
    exporter.fails = BackendUnavailableError("cannot export: onnxscript is not installed; pip it")
    model = open_exported(path, OPTIONS(cache_dir=tmp_path / "cache"))
    assert model.checkpoint is not None
    (only,) = map(str, model.card.notes)
    assert only.startswith("cannot export: onnxscript is not installed; pip it; without it torch")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(BackendUnavailableError, match="cannot export"):
        open_exported(path, OPTIONS(cache_dir=tmp_path / "cache", backend="onnxruntime"))


def test_torch_runs_it_on_a_gpu_that_only_torch_can_use(
    tmp_path: Path, path: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "nvidia_gpus", lambda: ("H200",))
    monkeypatch.setattr("cyclegan_batch.backends.onnxruntime_cuda.sees_cuda", lambda: False)
    told: list[str] = []
    options = OPTIONS(cache_dir=tmp_path / "cache", device="cuda")
    for torch_sees, exported in ((True, 0), (False, 1)):
        sees = bool(torch_sees)
        monkeypatch.setattr("cyclegan_batch.backends.torch.sees_cuda", lambda sees=sees: sees)
        model = open_exported(path, options)
        assert (model.checkpoint is None, len(exporter.asked)) == (bool(exported), exported)
        told += map(str, model.card.notes)
    assert "torch runs the checkpoint, on the GPU" in told[0]
    monkeypatch.setattr("cyclegan_batch.backends.torch.sees_cuda", lambda: True)
    for device in ("cpu", "auto"):
        model = open_exported(path, OPTIONS(cache_dir=tmp_path / "cache", device=device))
        assert (model.checkpoint, len(exporter.asked)) == (None, 1)
    options = OPTIONS(cache_dir=tmp_path / "cache", precision="tf32")
    assert open_exported(path, options).checkpoint is not None


@pytest.mark.behaviour(31, 33)
def test_torch_and_onnxruntime_draw_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    import safetensors.torch

    state = torch.load(checkpoint(tmp_path / "g.pth"))
    path = tmp_path / "netG_A.safetensors"
    safetensors.torch.save_file(state, path, {"trained_size": "32"})
    exported = open_exported(path, OPTIONS(cache_dir=tmp_path / "cache"))
    as_it_is = open_exported(path, OPTIONS(backend="torch"))
    assert exported.card.source_digest == as_it_is.card.digest
    assert exported.card.generator == as_it_is.card.generator
    frames = generators.natural((64, 92), 2)
    drawn = open_backend(exported, backend="onnxruntime", threads=1).infer(frames)
    assert parity(open_backend(as_it_is, threads=1).infer(frames), drawn).cls == "exact"


# From Python, and from the command line


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(generators.natural((30, 50))[0]).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def test_python_runs_a_checkpoint_in_torch_when_asked(
    tmp_path: Path, path: Path, picture: Path
) -> None:
    pixels = np.asarray(Image.open(picture))[np.newaxis]
    with open_generator(path, backend="torch", threads=1) as generator:
        expected = generator(pixels)[0]
    assert np.ptp(expected) > 40
    report = translate(picture, tmp_path / "out.png", model=path, backend="torch", threads=1)
    assert report.record["backend"] == "torch"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)


@pytest.mark.behaviour(31)
def test_python_and_the_command_line_draw_the_same_pixels_of_a_checkpoint(
    tmp_path: Path, path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    cache_dir, by_command = tmp_path / "cache", tmp_path / "command.png"
    options = ["--cache-dir", cache_dir, "--threads", "1"]
    code, _, err = command(capsys, "translate", picture, by_command, "-m", path, *options)
    assert (code, "to ONNX, once" in err) == (0, True), err
    report = translate(picture, tmp_path / "python.png", model=path, cache_dir=cache_dir, threads=1)
    assert report.record["backend"] in ("openvino", "onnxruntime")
    assert by_command.read_bytes() == (tmp_path / "python.png").read_bytes()
    with open_generator(path, cache_dir=cache_dir, threads=1) as generator:
        drawn = generator(np.asarray(Image.open(picture))[np.newaxis])[0]
    assert np.array_equal(np.asarray(Image.open(by_command)), drawn)
    assert len(list(cache_dir.rglob("*.onnx"))) == 1


def test_without_the_exporter_python_and_the_command_line_give_the_same_note(
    tmp_path: Path,
    path: Path,
    picture: Path,
    exporter: Exporter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exporter.fails = BackendUnavailableError("cannot export: onnxscript is not installed; pip it")
    note = f"{exporter.fails}; without it torch runs the checkpoint as it is, which is slower"
    report = translate(picture, tmp_path / "a.png", model=path, threads=1)
    assert report.record["backend"] == "torch"
    assert note in map(str, report.notes)
    code, _, err = command(
        capsys, "translate", picture, tmp_path / "b.png", "-m", path, "--threads", "1"
    )
    assert (code, note in err.splitlines()) == (0, True), err
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command in this process, where torch is loaded; return exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_the_command_runs_a_checkpoint_in_torch_when_asked(
    tmp_path: Path, path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["translate", picture, tmp_path / "a.png", "-m", path, "--backend", "torch"]
    asked += ["--threads", "1", "--cache-dir", tmp_path / "cache"]
    code, out, _ = command(capsys, *asked, "--dry-run")
    assert code == 0
    assert f"model    {path} (resnet_2blocks, sha256" in out
    assert "runs on  torch, cpu, fp32" in out
    assert not (tmp_path / "cache").exists()
    before = path.read_bytes()
    code, _, err = command(capsys, *asked, "--report", path)
    assert code == 1
    assert "it is a file of the job itself; choose another name" in " ".join(err.split())
    assert path.read_bytes() == before


@pytest.mark.behaviour(36)
def test_inspect_describes_a_checkpoint_and_a_folder_of_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    for letter in "AB":
        checkpoint(folder / f"latest_net_G_{letter}.pth")
    code, out, _ = command(capsys, "inspect", folder, "--direction", "BtoA", "--json")
    assert code == 0
    described = json.loads(out)
    assert described["kind"] == "checkpoint"
    assert described["path"] == str(folder / "latest_net_G_B.pth")
    assert (described["direction"], described["architecture"]) == ("BtoA", "resnet_2blocks")
    assert described["generator"]["ngf"] == 4
    weights = torch.load(folder / "latest_net_G_B.pth").values()
    assert described["parameters"] == sum(weight.numel() for weight in weights)
    assert len(described["digest"]) == 64
    _, out, _ = command(capsys, "inspect", folder)
    assert "latest_net_G_A.pth" in out
    assert "holds two generators: AtoB is used" in out


@pytest.mark.behaviour(43)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no checkpoint, a text", "is text where a checkpoint is expected"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as Keras saves its models"),
        ("discriminator", "it is a discriminator (PatchGAN); give the generator's weights"),
        ("cut", "is no whole PyTorch checkpoint"),
        (b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x05mkdir\x94\x93\x94\x8c\x01x\x94"
         b"\x85\x94R\x94.", "is a pickle that holds"),
        ("nowhere", "no such file or folder; check the path"),
    ],
    ids=["text", "keras", "discriminator", "cut", "payload", "nowhere"],
)  # fmt: skip
def test_what_is_no_generator_is_one_clear_line_errors(
    tmp_path: Path, path: Path, picture: Path, content: bytes | str, words: str
) -> None:
    wrong = tmp_path / "wrong.pth"
    if isinstance(content, bytes):
        wrong.write_bytes(content)
    elif content == "cut":
        wrong.write_bytes(path.read_bytes()[:-200])
    elif content == "discriminator":
        torch.save({"model.0.weight": torch.rand(4, 3, 4, 4)}, wrong)
    options = OPTIONS(backend="torch")
    with pytest.raises(ModelError) as refused:
        open_exported(wrong, options)
    with pytest.raises(ModelError) as also:
        open_exported(wrong, OPTIONS(cache_dir=tmp_path / "cache"))
    assert str(refused.value) == str(also.value)
    assert "wrong.pth: " in str(refused.value)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
