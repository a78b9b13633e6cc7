"""What ``inspect`` says of a model: how it was understood, and how sure that is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cyclegan_batch import cli
from cyclegan_batch.inspection import inspect_file
from cyclegan_batch.models import model as models
from cyclegan_batch.models.card import Recognition
from tests.synthesis import generators


@pytest.mark.behaviour(35, 36)
def test_an_adopted_onnx_tells_what_it_shows_and_what_was_assumed(tmp_path: Path) -> None:
    path = generators.foreign_resnet(tmp_path / "a.onnx")
    described = inspect_file(path)
    assert described["certainty"] == "in part assumed (its graph does not show all)"
    assumed = described["assumed"]
    assert isinstance(assumed, list)
    assert "its channels are R, G and B in this order, which no graph shows" in assumed
    described = inspect_file(path, model_io="nchw rgb -1..1")
    assert described["certainty"] == "certain (its graph and --model-io tell all)"
    assert described["assumed"] == []
    lines = CliRunner().invoke(cli.main, ["inspect", str(path)]).output.splitlines()
    assert lines[lines.index("assumed:") + 1] == f"  {assumed[0]}"


@pytest.mark.behaviour(36, 49)
def test_a_list_is_printed_a_line_each_and_nothing_empty_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = generators.identity(tmp_path / "a.onnx")
    recognised = Recognition("cut", "CUT", ("it reflects", "it is instance-normed"))
    opened = models.open_model(path)
    found = replace(opened, card=replace(opened.card, recognised=recognised, generator={}))
    monkeypatch.setattr(models, "open_model", lambda path, **options: found)
    lines = CliRunner().invoke(cli.main, ["inspect", str(path)]).output.splitlines()
    first = lines.index("assumed:")
    assert lines[first + 1 : first + 3] == ["  it reflects", "  it is instance-normed"]
    assert lines[first - 3 : first] == [
        "family: cut",
        "family_title: CUT",
        "certainty: in part assumed (names and shapes are this network's, and do not show all)",
    ]
    assert not [line for line in lines if line.endswith(":") and line != "assumed:"]
    assert not [line for line in lines if line.startswith(("weights", "also_fits", "direction"))]
