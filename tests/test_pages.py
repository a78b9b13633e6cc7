"""What the pages and the messages name is there: commands, options, extras, files."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

import cyclegan_batch
from cyclegan_batch import cli
from tests.needs import REPOSITORY


def _readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def _flags(command: click.Command) -> set[str]:
    return {flag for each in _options(command) for flag in (*each.opts, *each.secondary_opts)}


def _options(command: click.Command) -> list[click.Option]:
    """Return the options of a command, those of its table too, without --help."""
    params = command.get_params(click.Context(command))
    return [each for each in params if isinstance(each, click.Option) and "--help" not in each.opts]


def test_the_readme_has_every_option_of_translate_and_no_other():
    section = _readme().split("## Options of `translate`")[1].split("\n## ")[0]
    first_column = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(first_column)))
    assert named == _flags(cli.main.commands["translate"])


def test_every_flag_is_a_field_of_the_options_by_the_same_word():
    command = cli.main.commands["translate"]
    params = {param.name for param in command.params}
    params |= {option.name for option in _options(command)}
    fields = {field.name for field in dataclasses.fields(cyclegan_batch.TranslateOptions)}
    # What the command line has besides: what is translated by what, and how that is told.
    told = {"inputs", "output", "model", "progress", "quiet", "verbose", "dry_run", "report"}
    assert fields == params - told


def test_every_command_and_option_has_help():
    for name, command in cli.main.commands.items():
        assert command.help, name
        for option in _options(command):
            assert option.help, f"{name} {option.opts}"


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
    # Of nvidia-smi, and of the reference implementation's test.py.
    options = {"--help", "--query-gpu", "--eval"}
    for command in cli.main.commands.values():
        options |= _flags(command)
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


def _modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))
