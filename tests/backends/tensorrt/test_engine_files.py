"""An engine as a file: its card, trust, the machine it is bound to, its shapes; with stand-ins."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.backends import tensorrt as backend
from cyclegan_batch.errors import BackendError, ModelError
from cyclegan_batch.inspection import inspect_file
from cyclegan_batch.models import engine_card
from cyclegan_batch.models.card import Recognition
from cyclegan_batch.models.checkpoints.files import Selection
from cyclegan_batch.models.engine_card import (
    Build,
    Machine,
    Profile,
    card_path,
    profile_for,
    read_card,
)
from cyclegan_batch.models.model import Model, open_model
from cyclegan_batch.wording import grouped
from tests.backends.tensorrt.conftest import OTHERS, SMALL, damage, exchange, frames, open_on
from tests.needs import need
from tests.synthesis import fake_tensorrt, generators
from tests.synthesis.fake_tensorrt import Gpu


def test_an_engine_says_what_it_is(engine: Path) -> None:
    described = inspect_file(engine)
    assert described["kind"] == "TensorRT engine"
    assert described["gpu"] == ("NVIDIA Fake 1 (compute capability 8.6, 84 multiprocessors, 1 GiB)")
    assert described["tensorrt"] == "11.4.0.106"
    assert described["shapes"] == "1,8,8 to 4,16,16, tuned for 2,8,8"
    assert described["built_with"] == {"builder_level": 3, "recipe": engine_card.RECIPE}
    assert described["engine_parity"].startswith("exact")
    assert described["pixel_type"] == "uint8"
    json.dumps(described)


def test_an_engine_translates_as_it_is(tmp_path: Path, gpu: Gpu, engine: Path) -> None:
    gpu.builds.clear()
    (tmp_path / "invert.onnx").unlink()
    opened = open_on(gpu, open_model(engine), tmp_path / "cache")
    for count in (1, 4, 9):
        sent = frames(count, 16, 12)
        np.testing.assert_array_equal(opened.infer(sent), 255 - sent)
    assert not gpu.builds
    with pytest.raises(BackendError, match=r"takes frames of 1,8,8 to 4,16,16.*was given 1,32,32"):
        opened.infer(frames(1, 32, 32))


def test_fp32_and_tf32_are_told_apart_errors(
    tmp_path: Path, gpu: Gpu, model: Model, engine: Path
) -> None:
    arithmetic = {"auto": "tf32", "tf32": "tf32", "fp32": "fp32"}
    for word, expected in arithmetic.items():
        assert open_on(gpu, model, tmp_path / word, precision=word).precision == expected
    assert (
        open_on(gpu, open_model(engine), tmp_path / "cache", precision="fp32").precision == "fp32"
    )
    with pytest.raises(BackendError, match="was built to compute in fp32 and tf32 was asked for"):
        open_on(gpu, open_model(engine), tmp_path / "cache", precision="tf32")
    half = replace(model, card=replace(model.card, precision="fp16"))
    assert open_on(gpu, half, tmp_path / "half").precision == "fp16"


@pytest.mark.behaviour(44)
def test_an_engine_that_we_did_not_build_needs_trust_errors(
    tmp_path: Path, gpu: Gpu, engine: Path, key: Path
) -> None:
    gpu.opened.clear()
    sent_along = key.read_bytes()
    key.unlink()
    with pytest.raises(ModelError, match=r"was not built here.*--trust-engine"):
        open_on(gpu, open_model(engine), tmp_path / "cache")
    key.write_bytes(sent_along)
    exchange(engine)
    with pytest.raises(ModelError, match=r"was not built here.*--trust-engine"):
        open_on(gpu, open_model(engine), tmp_path / "cache")
    assert not gpu.opened, "no byte of it reached TensorRT"


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("seal", ["é", "\ud800", 7, "", "0" * 64])
def test_a_forged_seal_is_refused_whatever_it_is_errors(
    tmp_path: Path, gpu: Gpu, engine: Path, seal: object
) -> None:
    card = json.loads(card_path(engine).read_text())
    card_path(engine).write_text(json.dumps(card | {"seal": seal}))
    gpu.opened.clear()
    with pytest.raises(ModelError, match=r"was not built here.*--trust-engine"):
        open_on(gpu, open_model(engine), tmp_path / "cache")
    assert not gpu.opened


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("named", [True, False], ids=["--cache-dir", "the usual cache"])
def test_a_key_that_came_along_with_an_engine_is_no_key_errors(
    tmp_path: Path,
    gpu: Gpu,
    model: Model,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: bool,
) -> None:
    """The sender of a folder can put a key into it; the users of a shared cache can read one."""
    cache = tmp_path / "sent" if named else tmp_path / "caches" / "cyclegan-batch"
    with monkeypatch.context() as there:
        there.setenv("XDG_STATE_HOME", str(tmp_path / "of the sender"))
        open_on(gpu, model, cache)
        backend.write_engine(model, cache / "x.engine", Build(SMALL))
    model.card.path.rename(cache / model.card.path.name)
    senders = tmp_path / "of the sender" / "cyclegan-batch" / "engine.key"
    for folder in (cache, cache / "engines"):
        shutil.copy(senders, folder)
    gpu.opened.clear()
    with pytest.raises(ModelError, match=r"was not built here.*--trust-engine"):
        open_on(gpu, open_model(cache / "x.engine"), cache)
    assert not gpu.opened
    # The sender's engine in the cache is not trusted either, and is replaced.
    open_on(gpu, open_model(cache / model.card.path.name), cache)
    assert len(gpu.builds) == 3
    assert gpu.builds[-1].timings == b"", "timings of another user are not passed to TensorRT"
    assert senders.read_bytes() != key.read_bytes()


def _group_writable(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def _readable(path: Path) -> None:
    path.chmod(0o644)


def _of_another_user(path: Path) -> None:
    need("root")  # who alone can give files to another user
    os.chown(path, 12345, -1)


@pytest.mark.behaviour(44)
@pytest.mark.parametrize(
    ("which", "spoil", "match"),
    [
        ("file", _group_writable, "may be written by other users.*chmod go-w"),
        ("file", _readable, "is no key"),
        ("file", _of_another_user, "belongs to another user"),
        ("folder", _group_writable, "may be written by other users.*chmod go-w"),
        ("folder", _of_another_user, "belongs to another user"),
        ("file", lambda path: path.write_bytes(b"short"), "is no key"),
    ],
)
def test_a_key_that_others_may_know_or_change_is_no_key_errors(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path, which: str, spoil: Any, match: str
) -> None:
    path = tmp_path / "x.engine"
    backend.write_engine(model, path, Build(SMALL))
    open_on(gpu, model, tmp_path / "cache")
    spoil(key if which == "file" else key.parent)
    with pytest.raises(ModelError, match="was not built here"):
        open_on(gpu, open_model(path), tmp_path / "cache")
    gpu.builds.clear()
    (note,) = grouped(open_on(gpu, model, tmp_path / "cache").notes)
    assert len(gpu.builds) == 1
    assert re.search(f"the next run builds it again: .*{match}", note)
    _, (note,) = backend.write_engine(model, path, Build(SMALL))
    assert re.search(f"loading it will take --trust-engine: .*{match}", note.text)


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("spoil", [_group_writable, _of_another_user])
def test_a_cache_folder_of_others_is_neither_read_nor_written(
    tmp_path: Path, gpu: Gpu, model: Model, spoil: Any
) -> None:
    open_on(gpu, model, tmp_path)
    spoil(tmp_path / "engines")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "engines").iterdir()}
    gpu.opened.clear()
    opened = open_on(gpu, model, tmp_path)
    assert (len(gpu.builds), len(gpu.opened)) == (2, 1)
    assert gpu.builds[1].timings == b""
    assert "the next run builds it again" in grouped(opened.notes)[0]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "engines").iterdir()}


def test_an_engine_built_here_is_ours_whatever_cache_folder_is_named(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path
) -> None:
    path = tmp_path / "x.engine"
    backend.write_engine(model, path, Build(SMALL))
    assert key.stat().st_mode & 0o077 == 0, "nobody else reads it"
    assert key.parent.stat().st_mode & 0o022 == 0, "nobody else writes there"
    assert not list(tmp_path.glob("caches/**/*.key")), "the key lies in no cache"
    opened = open_on(gpu, open_model(path), tmp_path / "another folder")
    assert opened.infer(frames(1, 8, 8)).shape == (1, 8, 8, 3)
    key.write_bytes(bytes(32))
    with pytest.raises(ModelError, match="was not built here"):
        open_on(gpu, open_model(path), tmp_path / "another folder")


@pytest.mark.behaviour(44)
def test_a_trusted_engine_is_loaded_if_it_is_the_one_of_its_card_errors(
    tmp_path: Path, gpu: Gpu, engine: Path, key: Path
) -> None:
    key.unlink()
    elsewhere = tmp_path / "elsewhere"
    opened = open_on(gpu, open_model(engine), elsewhere, trust_engine=True)
    np.testing.assert_array_equal(opened.infer(frames(1, 8, 8)), 255 - frames(1, 8, 8))
    damage(engine)
    with pytest.raises(ModelError, match="is not the engine that its card describes"):
        open_on(gpu, open_model(engine), elsewhere, trust_engine=True)


@pytest.mark.behaviour(33)
def test_a_trusted_engine_is_measured_against_the_onnx_beside_it_errors(
    tmp_path: Path, gpu: Gpu, engine: Path, key: Path
) -> None:
    key.unlink()
    elsewhere = tmp_path / "elsewhere"
    assert not grouped(open_on(gpu, open_model(engine), elsewhere, trust_engine=True).notes)
    gpu.add = 9
    with pytest.raises(ModelError, match="where exact is expected"):
        open_on(gpu, open_model(engine), elsewhere, trust_engine=True)
    (tmp_path / "invert.onnx").unlink()
    (note,) = grouped(open_on(gpu, open_model(engine), elsewhere, trust_engine=True).notes)
    assert "without a comparison of its images; put invert.onnx beside it" in note


@pytest.mark.behaviour(32)
@pytest.mark.parametrize("other", OTHERS)
def test_an_engine_of_another_machine_is_rebuilt_from_the_onnx_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Path, other: str
) -> None:
    changed = Gpu()
    OTHERS[other](changed)
    fake_tensorrt.install(monkeypatch, changed)
    opened = open_on(changed, open_model(engine), tmp_path / "cache")
    np.testing.assert_array_equal(opened.infer(frames(1, 16, 16)), 255 - frames(1, 16, 16))
    assert [build.profile[2] for build in changed.builds] == [(4, 16, 16, 3)]
    assert any("built" in note and "from invert.onnx" in note for note in grouped(opened.notes))
    open_on(changed, open_model(engine), tmp_path / "cache")
    assert len(changed.builds) == 1


def test_an_engine_of_another_machine_without_its_onnx_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Path
) -> None:
    changed = fake_tensorrt.install(monkeypatch, Gpu(name=b"NVIDIA Fake 2"))
    beside = tmp_path / "invert.onnx"
    generators.identity(beside)
    with pytest.raises(ModelError, match=r"put the ONNX that it was built from beside it"):
        open_on(changed, open_model(engine), tmp_path / "cache")
    beside.unlink()
    with pytest.raises(ModelError, match=r"built for NVIDIA Fake 1.*this is NVIDIA Fake 2.*beside"):
        open_on(changed, open_model(engine), tmp_path / "cache")
    assert not changed.opened


@pytest.mark.parametrize(
    ("build", "there", "fits"),
    [
        ({}, Machine("A", (8, 6), "11.4.0"), True),
        ({}, Machine("B", (8, 6), "11.4.0"), False),
        ({"hardware_compatible": True}, Machine("B", (12, 0), "11.4.0"), True),
        ({"hardware_compatible": True}, Machine("B", (7, 5), "11.4.0"), False),
        ({"hardware_compatible": True}, Machine("B", (9, 0), "11.5.0"), False),
        ({"version_compatible": True}, Machine("A", (8, 6), "11.10.0"), True),
        ({"version_compatible": True}, Machine("A", (8, 6), "11.3.9"), False),
        ({"version_compatible": True}, Machine("A", (8, 6), "12.0.0"), False),
        ({"version_compatible": True}, Machine("B", (8, 6), "11.4.0"), False),
    ],
)
def test_what_an_engine_is_bound_to_depends_on_how_it_was_built(
    engine: Path, build: dict[str, bool], there: Machine, fits: bool
) -> None:
    card = replace(
        read_card(engine),
        machine=Machine("A", (8, 6), "11.4.0"),
        build=Build(SMALL, **build),  # type: ignore[arg-type]
    )
    assert (not card.misfits(there)) == fits


def test_an_engine_without_a_card_or_with_a_broken_one_errors(engine: Path) -> None:
    card_path(engine).write_text("{}")
    with pytest.raises(ModelError, match=r"night\.engine\.json cannot be read.*export"):
        open_model(engine)
    card_path(engine).unlink()
    with pytest.raises(ModelError, match="has no card beside it"):
        open_model(engine)
    with pytest.raises(ModelError, match="no such model file"):
        open_model(engine.with_name("none.engine"))
    engine_card.write_engine_file(_card_of(engine, Build(SMALL)), b"")
    with pytest.raises(ModelError, match="leave the option out"):
        open_model(engine, model_io="nchw rgb")
    with pytest.raises(
        ModelError, match=r"--weights chooses among .* this is a TensorRT engine; l"
    ):
        open_model(engine, selection=Selection(weights="netG_A"))


def _card_of(engine: Path, build: Build) -> engine_card.EngineCard:
    model = open_model(engine.with_name("invert.onnx"))
    return engine_card.EngineCard(
        path=engine, model=model.card, engine_sha256="", onnx_sha256="", build=build,
        machine=Machine("A", (8, 6), "11"), tool_version="0",
    )  # fmt: skip


def test_the_card_of_an_engine_says_what_the_weights_were_recognised_as(
    engine: Path, key: Path
) -> None:
    recognised = Recognition(
        "cut", "CUT", ("it reflects",), weights="netG_A", also_fits=("resnet",)
    )
    card = _card_of(engine, Build(SMALL))
    model = replace(card.model, recognised=recognised)
    digest = hashlib.sha256(b"engine").hexdigest()
    engine_card.write_engine_file(replace(card, model=model, engine_sha256=digest), b"engine")
    found = read_card(engine)
    assert found.model.recognised == recognised
    assert engine_card.is_ours(found, b"engine")
    assert inspect_file(engine)["assumed"] == ["it reflects"]
    # A card without it is as earlier versions wrote it, so that their seals hold.
    engine_card.write_engine_file(replace(card, engine_sha256=digest), b"engine")
    assert "recognised" not in json.loads(card_path(engine).read_text())["model"]
    assert engine_card.is_ours(read_card(engine), b"engine")


def test_an_engine_of_one_size_has_a_card_of_fixed_size(tmp_path: Path, engine: Path) -> None:
    only = (2, 16, 8)
    card = _card_of(engine, Build(Profile(only, only, only)))
    engine_card.write_engine_file(card, b"")
    card = open_model(engine).card
    assert card.sizes.fixed == (16, 8)
    assert card.batch == 2


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ((None, (2, 8, 8), None), Profile((2, 8, 8), (2, 8, 8), (2, 8, 8))),
        (((1, 4, 4), None, (4, 8, 8)), Profile((1, 4, 4), (4, 8, 8), (4, 8, 8))),
        (((1, 4, 4), (2, 6, 6), None), Profile((1, 4, 4), (2, 6, 6), (2, 6, 6))),
    ],
)
def test_shapes_that_are_left_out_follow_from_the_others(
    model: Model, shapes: Any, expected: Profile
) -> None:
    assert profile_for(model.card, *shapes) == expected


def test_shapes_that_a_network_cannot_take_errors(tmp_path: Path, model: Model) -> None:
    with pytest.raises(ModelError, match="pass --opt-shape N,H,W"):
        profile_for(model.card, None, None, None)
    with pytest.raises(ModelError, match="--opt-shape 1,8,8 does not lie between"):
        profile_for(model.card, (1, 16, 16), (1, 8, 8), (1, 32, 32))
    resnet = open_model(generators.tiny_resnet(tmp_path / "resnet.onnx")).card
    with pytest.raises(ModelError, match=r"--opt-shape 1,33,64: .* the next size is 34,64"):
        profile_for(resnet, None, (1, 33, 64), None)
    path = generators.invert(tmp_path / "fixed.onnx", fixed=(16, 8), batch=2)
    fixed = open_model(path).card
    assert profile_for(fixed, None, None, None).max == (2, 16, 8)
    with pytest.raises(ModelError, match="is of fixed shape 2,16,8 and 1,16,8 was asked for"):
        profile_for(fixed, None, (1, 16, 8), None)
