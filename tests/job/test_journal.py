"""The journal: what is done is written down at once, in lines that are read as data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import plan_translation
from cyclegan_batch.job.journal import Journal
from cyclegan_batch.job.pipeline import run
from cyclegan_batch.job.plan import JobPlan
from tests.synthesis import generators, streams


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images and a video."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(folder / name)
    streams.plain(folder / "clip.mp4", frames=5, size=(48, 64))
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Noted:
    """Units that a journal is told of as they are handed out."""

    def __init__(self, plan: JobPlan, journal: Journal) -> None:
        self.plan, self.journal = plan, journal

    def __iter__(self) -> Iterator[Any]:
        for unit in self.plan.units:
            self.journal.began(unit)
            yield unit


def journalled(plan: JobPlan) -> list[dict[str, Any]]:
    """Run a plan with a journal and return the lines of the journal."""
    journal = Journal(plan)
    with contextlib.closing(plan.open_backend()) as backend:
        run(
            Noted(plan, journal),
            backend,
            plan.schedule,
            geometry=plan.geometry,
            skip_errors=True,
            observer=journal,
        )
    assert plan.folder is not None
    (path,) = plan.folder.glob("*.jsonl")
    written = lines(path)
    journal.close()
    return written


@pytest.mark.behaviour(20)
def test_each_output_is_written_down_before_it_begins_and_when_it_is_whole(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    plan = plan_translation(folder, tmp_path / "out", model=model)
    written = journalled(plan)
    assert [line["line"] for line in written[:3]] == ["run", "job", "job"]
    begun = {name for line in written if line["line"] == "begun" for name in line["outputs"]}
    whole = {row[0]: row for line in written if line["line"] == "whole" for row in line["outputs"]}
    assert begun == set(whole) == {"a.png", "b.png", "clip.mp4"}
    for name, (_, identity, source_size, size, bytes_, _) in whole.items():
        status = (folder / name).stat()
        assert identity == [status.st_size, status.st_mtime_ns, None]
        assert source_size == size == ([48, 64] if name == "clip.mp4" else [24, 32])
        assert bytes_ == (tmp_path / "out" / name).stat().st_size
