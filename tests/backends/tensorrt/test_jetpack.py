"""The versions of TensorRT for Jetsons stand in one place, and all that names them agrees."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cyclegan_batch import machine
from cyclegan_batch.backends.tensorrt import jetpack
from cyclegan_batch.backends.tensorrt.library import import_tensorrt
from cyclegan_batch.errors import BackendUnavailableError
from tests.needs import REPOSITORY


def test_the_page_has_the_table() -> None:
    page = (REPOSITORY / "export" / "README.md").read_text()
    head = "| JetPack | Jetson Linux | TensorRT | CUDA | Python | the extra `tensorrt` |"
    body = page.partition(f"{head}\n|---|---|---|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [
        f"| {each.version} | {'.'.join(map(str, each.linux))} | {each.tensorrt} | {each.cuda} "
        f"| {each.python} | "
        f"{f'with `{each.requirement}`' if each.requirement else 'does not run'} |"
        for each in jetpack.JETPACKS
    ]
    assert body.splitlines() == rows
    low, high = (".".join(map(str, each)) for each in jetpack.NOT_FOR_JETPACK)
    assert f"TensorRT {low} up to, but not including, {high} supports no JetPack" in page


def requirement(machine: str) -> Requirement:
    """Return the requirement of the extra for TensorRT on this kind of machine."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found = [Requirement(each) for each in project["optional-dependencies"]["tensorrt"]]
    (only,) = (
        each
        for each in found
        if each.name == "tensorrt-cu13"
        and (each.marker is None or each.marker.evaluate({"platform_machine": machine}))
    )
    return only


def test_the_extra_takes_what_a_jetson_can_have_and_nothing_else() -> None:
    extra = requirement("aarch64").specifier
    for each in jetpack.JETPACKS:
        assert extra.contains(each.tensorrt) == (each.requirement is not None)
        if each.requirement is not None:
            assert Requirement(each.requirement).specifier.contains(each.tensorrt)
    low, high = jetpack.NOT_FOR_JETPACK
    versions = [(11, minor, patch) for minor in range(9) for patch in range(4)]
    for version in versions:
        fits = not low <= version < high
        assert extra.contains(".".join(map(str, version))) == fits
        assert requirement("x86_64").specifier.contains(".".join(map(str, version)))


def test_each_jetpack_holds_up_to_the_next() -> None:
    assert [jetpack.jetpack_of(each.linux) for each in jetpack.JETPACKS] == [*jetpack.JETPACKS]
    assert jetpack.jetpack_of((35, 6, 4)) is None
    assert jetpack.jetpack_of((36, 5)) is jetpack.JETPACKS[0]
    assert jetpack.version_of("10.16.1.11") == (10, 16, 1, 11)
    assert jetpack.version_of("of another form") == ()


def test_a_jetson_that_cannot_have_it_is_told_so_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(machine, "_TEGRA_RELEASE", tmp_path / "nv_tegra_release")
    with pytest.raises(BackendUnavailableError, match=re.escape('"cyclegan-batch[tensorrt]"')):
        import_tensorrt()
    (tmp_path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1\n")
    with pytest.raises(
        BackendUnavailableError, match=r"has CUDA 12: it cannot run here; .*edge\.py"
    ):
        import_tensorrt()
