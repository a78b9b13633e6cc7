"""What a command takes outside of decoding, inference and encoding, and that its parts are told."""

from __future__ import annotations

import math

import pytest

from benchmarks import startup
from tests.needs import REPOSITORY
from tests.synthesis.videos import moving

MODEL = REPOSITORY / "cyclegan_batch" / "demo" / "day2night.onnx"


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> list[startup.Spent]:
    """Return three runs of the command on a clip of one second."""
    folder = tmp_path_factory.mktemp("startup")
    clip = moving(folder / "clip.mp4", frames=25)
    line = startup.command_line(clip, folder / "out.mp4", MODEL)
    with startup.compiled_modules() as environment:
        environment["XDG_CACHE_HOME"] = str(folder)
        return [startup.spent(line, folder, environment) for _ in range(3)]


def test_a_clip_of_a_second_costs_less_than_the_budget_outside_of_its_frames(rounds):
    """By CPU time, and by the best of the runs behind the one that compiles modules."""
    assert min(each.outside for each in rounds[1:]) < startup.BUDGET


def test_the_parts_are_all_of_the_time(rounds):
    for each in rounds:
        assert set(each.cpu) == set(each.wall)
        assert {"imports", startup.FRAMES, "opening the runtime", "planning"} <= set(each.cpu)
        assert min(each.cpu[startup.FRAMES], each.wall[startup.FRAMES]) > 0
        # A package that was imported by another one is counted once.
        assert math.isclose(sum(each.imports.values()), each.cpu["imports"], rel_tol=1e-6)
        assert each.imports["numpy"] > 0


def test_a_table_names_parts_and_packages(rounds):
    text = startup.table("demo", startup.median(rounds))
    assert text.startswith("demo: ")
    assert "opening the runtime" in text
    assert "numpy" in text
