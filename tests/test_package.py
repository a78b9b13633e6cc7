"""The package as a whole: what importing it costs, what its wheel holds, what its papers say."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import click
import pytest

import cyclegan_batch
from cyclegan_batch import cli
from tests import behaviours
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


# The papers say what the program does.


def _readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def _flags(command: click.Command) -> set[str]:
    options = [param for param in command.params if isinstance(param, click.Option)]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


def test_the_readme_has_every_option_of_translate_and_no_other():
    section = _readme().split("## Options of `translate`")[1].split("\n## ")[0]
    first_column = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(first_column)))
    assert named == _flags(cli.main.commands["translate"])


def test_every_flag_is_a_field_of_the_options_by_the_same_word():
    params = {param.name for param in cli.main.commands["translate"].params}
    fields = {field.name for field in dataclasses.fields(cyclegan_batch.TranslateOptions)}
    # What the command line has besides: what is translated by what, and how that is told.
    told = {"inputs", "output", "model", "progress", "quiet", "verbose", "dry_run", "report"}
    assert fields == params - told


def test_every_command_and_option_has_help():
    for name, command in cli.main.commands.items():
        assert command.help, name
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, f"{name} {param.opts}"


def test_the_readme_names_every_command():
    for name in cli.main.commands:
        assert re.search(rf"(?:cyclegan-batch|make) {name}\b", _readme()), name


def _examples() -> list[str]:
    lines = re.findall(r"cyclegan-batch (?:translate|inspect|doctor)\b[^\n|`]*", _readme())
    return [line.split("  #")[0].strip() for line in lines]


@pytest.mark.parametrize("example", _examples())
def test_every_example_of_the_readme_parses(example):
    _, name, *arguments = shlex.split(example, comments=True)
    cli.main.commands[name].make_context(name, arguments)


def test_the_readme_shows_examples_and_a_small_picture_first():
    assert len(_examples()) >= 10
    readme = _readme()
    picture = re.search(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert picture.start() < readme.index("make demo") < readme.index("make test")
    assert (REPOSITORY / picture[1]).stat().st_size < 300_000


def test_every_file_that_the_readme_links_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", _readme()):
        assert (REPOSITORY / target).is_file(), target


def test_the_readme_names_every_extra_and_no_other():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    section = _readme().split("| extra |")[1].split("\n\n")[0]
    named = re.findall(r"`([a-z]+)`", " ".join(re.findall(r"^\| (`.*?) \|", section, re.M)))
    assert set(named) == set(extras["optional-dependencies"])


def test_every_command_and_option_that_a_message_names_is_there():
    options = {"--help", "--query-gpu"}  # the second is nvidia-smi's
    for command in cli.main.commands.values():
        options |= {name for option in command.params for name in option.opts}
        options |= {name for option in command.params for name in option.secondary_opts}
    named = 0
    for path in _modules("cyclegan_batch"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                commands = set(re.findall(r"\bcyclegan-batch ([a-z]+)", node.value))
                said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", node.value))
                assert commands <= set(cli.main.commands), f"{path}:{node.lineno}"
                assert said <= options, f"{path}:{node.lineno}"
                named += len(commands) + len(said)
    assert named > 50


def test_the_core_never_imports_its_wings():
    for path in _modules("cyclegan_batch"):
        wings = re.findall(r"^(?:from|import) cyclegan_(?:train|export)", path.read_text(), re.M)
        assert not wings, path


def _modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# The behaviour list: the check itself must be able to fail.


class _Item:
    """What the behaviour list looks at in a collected test."""

    def __init__(self, *marks: pytest.Mark) -> None:
        self.marks = marks

    def iter_markers(self, name):
        return (mark for mark in self.marks if mark.name == name)

    def get_closest_marker(self, name):
        return next(self.iter_markers(name), None)


def _test_of(*numbers, needs=None):
    marks = [pytest.mark.behaviour(*numbers).mark]
    if needs:
        marks.append(getattr(pytest.mark, needs).mark)
    return _Item(*marks)


def test_a_claimed_behaviour_without_a_test_is_a_problem():
    every = [_test_of(*sorted(behaviours.CLAIMED))]
    assert list(behaviours.problems(behaviours.evidence(every))) == []
    most = [_test_of(*sorted(behaviours.CLAIMED - {7}))]
    (problem,) = behaviours.problems(behaviours.evidence(most))
    assert "behaviour 7, and no test" in problem


def test_a_claim_that_only_a_gpu_could_show_is_a_problem():
    items = [
        _test_of(*sorted(behaviours.CLAIMED - {12})),
        _test_of(12, needs="needs_cuda"),
    ]
    (problem,) = behaviours.problems(behaviours.evidence(items))
    assert "behaviour 12" in problem


def test_a_mark_with_an_unknown_number_is_a_problem():
    items = [_test_of(*sorted(behaviours.CLAIMED)), _test_of(100), _test_of("7")]
    unknown, text = behaviours.problems(behaviours.evidence(items))
    assert "behaviour(100)" in unknown
    assert "behaviour('7')" in text


def test_the_list_tells_tested_from_logic_only_in_part_and_untested():
    items = [_test_of(1), _test_of(37), _test_of(37, needs="needs_cuda"), _test_of(1)]
    items += [_test_of(1, needs="corpus"), _test_of(20)]
    lines = list(behaviours.report(behaviours.evidence(items)))
    assert len(lines) == len(behaviours.BEHAVIOURS) == 54
    assert re.match(r"  1  tested .*\[2 anywhere, 1 on real data\]", lines[0])
    assert re.match(r"  2  no test ", lines[1])
    assert re.match(r" 19  later ", lines[18])
    assert re.match(r" 20  in part ", lines[19])
    assert re.match(r" 37  logic only .*\[1 anywhere, 1 on a GPU, needs two GPUs\]", lines[36])
