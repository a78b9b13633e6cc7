"""The manifest: a line for each input, also of a run that did only a part of the job."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cyclegan_batch.api import report_run
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.job.manifest import write_manifest
from cyclegan_batch.job.report import check_result_path
from cyclegan_batch.job.units import Counters
from tests.job.test_standing import done, names, picture, planned
from tests.synthesis import generators


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png", "d.png", "\udcff.png"):
        picture(folder / name)
    return folder


def rows(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {Path(line["input"]).name: line for line in lines}


@pytest.mark.behaviour(17, 22)
def test_each_input_has_a_line_with_what_became_of_it(
    model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hidden = [(source / name).rename(tmp_path / name) for name in ("b.png", "c.png", "d.png")]
    done(planned(source, out, model=model))
    for path in hidden:
        path.rename(source / path.name)
    picture(out / "d.png", 3)
    plan = planned(source, out, model=model, skip_existing=True)
    assert (names(plan.entries), names(plan.left)) == (["b.png", "c.png"], ["d.png"])
    done(plan, units=1)
    counters = Counters(interrupted=True)
    counters.written.append(out / "b.png")
    (out / "c.png").unlink()
    write_manifest(plan, report_run(plan, counters), tmp_path / "manifest.jsonl")
    found = rows(tmp_path / "manifest.jsonl")
    assert list(found) == ["a.png", "b.png", "c.png", "d.png", "\udcff.png"]
    assert {name: row["status"] for name, row in found.items()} == {
        "a.png": "up to date",
        "b.png": "done",
        "c.png": "left",
        "d.png": "skipped",
        "\udcff.png": "up to date",
    }
    for name in ("a.png", "b.png", "\udcff.png"):
        content = (out / name).read_bytes()
        row = found[name]
        assert (row["bytes"], row["reason"]) == (len(content), None)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert row["input_size"] == row["output_size"] == [24, 32]
        assert os.fsencode(row["output"]) == os.fsencode(out / name)
    assert (found["d.png"]["reason"], found["d.png"]["sha256"]) == ("exists already", None)


@pytest.mark.behaviour(22)
def test_what_failed_has_its_reason(model: Path, source: Path, tmp_path: Path) -> None:
    plan = planned(source, tmp_path / "out", model=model)
    counters = Counters()
    counters.record(str(source / "a.png"), InputError("a.png: is broken"))
    write_manifest(plan, report_run(plan, counters), tmp_path / "manifest.jsonl")
    found = rows(tmp_path / "manifest.jsonl")
    assert (found["a.png"]["status"], found["a.png"]["reason"]) == ("failed", "a.png: is broken")
    assert found["b.png"]["status"] == "left"


def test_a_file_of_the_job_is_never_replaced(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model))
    plan = planned(source, out, model=model)
    for path in (source / "a.png", out / "b.png", model):
        with pytest.raises(OutputError, match=r"cannot write the manifest .* of the job itself"):
            check_result_path(path, plan, model, what="manifest")
    check_result_path(tmp_path / "manifest.jsonl", plan, model, what="manifest")
