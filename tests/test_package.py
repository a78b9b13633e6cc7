"""The package as a whole: what importing it costs, what its wheel holds, what its papers say."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import cyclegan_batch
from cyclegan_batch.backends import verdicts
from cyclegan_batch.job import report
from tests.conftest import REPOSITORY

HEAVY = {"PIL", "av", "cv2", "numpy", "onnx", "onnxruntime", "openvino", "ray", "tensorrt", "torch"}


def _loaded_by(code: str) -> set[str]:
    """Return the heavy packages that a fresh interpreter has loaded after ``code``."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    assert _loaded_by("import cyclegan_batch") == set()


def test_errors_and_options_load_nothing_heavy():
    assert _loaded_by("from cyclegan_batch import InputError, TranslateOptions") == set()


@pytest.mark.parametrize("name", cyclegan_batch.__all__)
def test_every_public_name_is_there(name):
    assert getattr(cyclegan_batch, name) is not None
    assert name in dir(cyclegan_batch)


def test_an_unknown_public_name_errors():
    with pytest.raises(AttributeError, match="has no attribute 'tranlsate'"):
        cyclegan_batch.tranlsate  # noqa: B018


def test_help_loads_nothing_heavy():
    run_help = (
        "from cyclegan_batch.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code, end.code"
    )
    assert _loaded_by(run_help) == set()


def test_help_takes_under_300_milliseconds_of_a_core():
    """Of a core, not by the clock: that would measure what else the machine does."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "cyclegan_batch", "--help"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert "translate" in done.stdout
    assert min(seconds) < 0.3, seconds


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from a copy of the sources (a build writes beside them)."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, sources)
    clutter = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("cyclegan_batch", "train", "export"):
        shutil.copytree(REPOSITORY / name, sources / name, ignore=clutter)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-index", "--wheel-dir", str(folder), str(sources)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_three_packages_and_their_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packages = {"cyclegan_batch", "cyclegan_train", "cyclegan_export"}
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == packages
    assert {f"{package}/py.typed" for package in packages} <= set(names)
    modules = {path.relative_to(REPOSITORY).as_posix() for path in _modules("cyclegan_batch")}
    assert modules <= set(names)
    data = {"cyclegan_batch/demo/day2night.onnx", "cyclegan_train/recipes/demo.toml"}
    assert data <= set(names), "the demo's generator and the recipes travel along"


def test_the_wheel_names_its_command_its_licence_and_its_version(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"cyclegan_batch-{cyclegan_batch.__version__}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert f"{info}/licenses/LICENSE" in archive.namelist()
    commands = archive.read(f"{info}/entry_points.txt").decode()
    assert "cyclegan-batch = cyclegan_batch.cli:main" in commands


def test_the_wheel_imports_without_the_sources(wheel, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r})\n"
        "import cyclegan_batch, cyclegan_export, cyclegan_train\n"
        "print(cyclegan_batch.__file__, cyclegan_batch.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        f"{wheel}/cyclegan_batch/__init__.py",
        cyclegan_batch.__version__,
    ]


def test_the_constraints_are_pins_that_every_light_dependency_has():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins), pins
    pinned = {_canonical(pin.split("==")[0]) for pin in pins}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["openvino"], *extras["dev"]]
    names = {_canonical(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in wanted}
    assert names - {"cyclegan-batch"} <= pinned


def test_a_report_records_every_distribution_that_pixels_may_depend_on(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # The rest of the extras trains, scores and tests.
    runtimes = ("cpu", "heic", "openvino", "gpu", "tensorrt", "torch", "export")
    wanted = [*project["dependencies"], *(each for name in runtimes for each in extras[name])]
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0] for line in wanted} - {"click", "rich"}
    assert names | set(verdicts._VERSIONS) <= set(report.versions())


def _modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
