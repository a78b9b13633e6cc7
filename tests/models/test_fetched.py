"""Models of a store: fetched once, known by their digests."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cyclegan_batch.errors import ModelError, OutputError
from cyclegan_batch.inspection import inspect_file
from cyclegan_batch.models.fetched import fetched_model
from cyclegan_batch.opening import open_for_translation
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.remote import RemotePath
from tests.models.test_model import weights_beside
from tests.needs import need
from tests.synthesis import generators

need("fsspec", "s3fs")


def put(url: RemotePath, content: bytes) -> RemotePath:
    url.write_bytes(content)
    return url


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return generators.identity(tmp_path / "made.onnx").read_bytes()


def test_a_model_is_fetched_once_and_named_by_its_digest(
    s3: RemotePath, requests: Counter[str], tmp_path: Path, content: bytes
) -> None:
    url = put(s3 / "models/m.onnx", content)
    digest = hashlib.sha256(content).hexdigest()
    said: list[str] = []
    requests.clear()
    path, found = fetched_model(url, tmp_path / "cache", say=said.append)
    assert (path, found) == (tmp_path / "cache/models" / digest / "m.onnx", digest)
    assert path.read_bytes() == content
    assert requests == {"HeadObject": 1, "GetObject": 1}
    assert said == [f"fetching {url} (0.0 MiB) into {tmp_path}/cache/models"]
    for folder in (path.parent, path.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    requests.clear()
    assert fetched_model(url, tmp_path / "cache", say=said.append) == (path, digest)
    assert requests == {"HeadObject": 1}
    assert len(said) == 1
    assert sorted(each.name for each in path.parent.parent.iterdir()) == sorted([digest, "urls"])


@pytest.mark.parametrize("damage", ["content", "entry", "gone"])
def test_what_is_no_longer_what_was_fetched_is_fetched_again(
    memory_store: RemotePath, tmp_path: Path, content: bytes, damage: str
) -> None:
    url = put(memory_store / "m.onnx", content)
    path, digest = fetched_model(url, tmp_path)
    if damage == "content":
        path.write_bytes(b"other")
    elif damage == "gone":
        path.unlink()
    else:
        (entry,) = (tmp_path / "models/urls").iterdir()
        line = json.loads(entry.read_bytes())
        entry.write_text(json.dumps([*line[:3], "../" * 3 + "x" * 55]))
    assert fetched_model(url, tmp_path) == (path, digest)
    assert path.read_bytes() == content


def test_another_content_of_a_url_is_another_model(
    memory_store: RemotePath, tmp_path: Path, content: bytes
) -> None:
    url = put(memory_store / "m.onnx", content)
    first, _ = fetched_model(url, tmp_path)
    put(url, generators.invert(tmp_path / "n.onnx").read_bytes())
    second, digest = fetched_model(url, tmp_path)
    assert first != second
    assert hashlib.sha256(second.read_bytes()).hexdigest() == digest


def test_a_model_of_a_store_is_called_by_its_url(
    memory_store: RemotePath, tmp_path: Path, content: bytes
) -> None:
    url = put(memory_store / "m.onnx", content)
    options = TranslateOptions(cache_dir=tmp_path / "cache")
    card = open_for_translation(url, options).card
    assert card.path == url
    assert card.digest == hashlib.sha256(content).hexdigest()
    put(url, b"no model")
    with pytest.raises(ModelError, match=r"^memory://bucket/m\.onnx: is no ONNX file"):
        open_for_translation(url, options)


def test_a_checkpoint_of_a_store_is_exported(memory_store: RemotePath, tmp_path: Path) -> None:
    need("torch", "onnxscript")
    from tests.backends.test_torch import checkpoint

    path = checkpoint(tmp_path / "latest_net_G_A.pth")
    url = put(memory_store / path.name, path.read_bytes())
    options = TranslateOptions(cache_dir=tmp_path / "cache")
    card = open_for_translation(url, options).card
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"{url}: its SHA-256 is {digest}" in map(str, card.notes)
    assert card.source_digest == digest


def test_a_generator_of_a_checkpoint_of_a_store_is_chosen(
    memory_store: RemotePath, tmp_path: Path
) -> None:
    need("torch")
    import torch

    from tests.backends.test_torch import checkpoint

    state = torch.load(checkpoint(tmp_path / "g.pth"))
    torch.save({"netG_A": state, "netG_B": state}, tmp_path / "both.pth.tar")
    url = put(memory_store / "both.pth.tar", (tmp_path / "both.pth.tar").read_bytes())
    options = TranslateOptions(cache_dir=tmp_path / "cache", backend="torch")
    card = open_for_translation(url, replace(options, weights="netG_B")).card
    assert card.recognised is not None
    assert (card.path, card.recognised.weights, card.direction) == (url, "netG_B", "BtoA")
    with pytest.raises(ModelError, match=rf"^{url}: holds 2 generators: netG_A .*, netG_B "):
        open_for_translation(url, options)


@pytest.mark.behaviour(44)
def test_a_model_with_weights_in_other_files_errors(
    memory_store: RemotePath, tmp_path: Path
) -> None:
    for location in ("m.data", "../../etc/passwd"):
        model = weights_beside(tmp_path / "m.onnx", location)
        put(memory_store / "m.data", bytes(1 << 20))
        with pytest.raises(ModelError, match="keeps its weights in other files, and of a store"):
            fetched_model(put(memory_store / "m.onnx", model.read_bytes()), tmp_path / "cache")
        assert [each.name for each in (tmp_path / "cache/models").iterdir()] == ["urls"]


def test_what_is_no_model_of_a_store_errors(memory_store: RemotePath, tmp_path: Path) -> None:
    put(memory_store / "run/checkpoints/latest/netG_A.safetensors", b"1")
    for name, message in (
        ("none.onnx", "no such object, and none beneath it"),
        ("run", "is a prefix, and a model is one object"),
        ("m.engine", "an engine is read from a disk only"),
    ):
        with pytest.raises(ModelError, match=rf"^memory://bucket/{name}: {message}"):
            fetched_model(memory_store / name, tmp_path)


def test_a_cache_folder_that_cannot_be_written_errors(
    memory_store: RemotePath, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="--cache-dir names another place"):
        fetched_model(put(memory_store / "m.onnx", content), tmp_path / "file")


@pytest.mark.behaviour(36)
def test_a_model_of_a_store_is_described(
    memory_store: RemotePath, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = put(memory_store / "m.onnx", content)
    local = inspect_file(tmp_path / "made.onnx")
    assert inspect_file(url) == local | {"path": str(url)}
