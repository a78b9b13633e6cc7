"""``--help`` and docs/options.md: both are made from the tables of options."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from cyclegan_batch import cli
from cyclegan_batch.cli import reference
from cyclegan_batch.cli.options import GroupedCommand, GroupedOption
from cyclegan_batch.option_table import options_of
from cyclegan_batch.options import TranslateOptions
from tests.needs import REPOSITORY

PAGE = REPOSITORY / "docs" / "options.md"


def options(name: str) -> list[click.Option]:
    command = cli.main.commands[name]
    params = command.get_params(click.Context(command))
    return [each for each in params if isinstance(each, click.Option) and "--help" not in each.opts]


def test_the_page_of_options_is_current() -> None:
    assert PAGE.read_text() == reference.page(), (
        "write it anew: python -m cyclegan_batch.cli.reference > docs/options.md"
    )


def test_the_module_prints_the_page() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cyclegan_batch.cli.reference"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert done.stdout == reference.page()


@pytest.mark.parametrize("name", list(cli.main.commands))
def test_the_page_has_every_option_of_a_command_and_no_other(name: str) -> None:
    section = PAGE.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    first_column = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"(?<![\w-])--?[A-Za-z][A-Za-z0-9-]*", " ".join(first_column)))
    flags = {flag for each in options(name) for flag in (*each.opts, *each.secondary_opts)}
    # The spelling of the reference implementation is said once, above.
    assert named == {flag for flag in flags if "_" not in flag}


def test_help_shows_the_options_of_translate_in_groups() -> None:
    done = CliRunner().invoke(cli.main, ["translate", "--help"], terminal_width=80)
    headings = re.findall(r"^(\S[^:]*):$", done.stdout, re.M)
    assert headings == [
        "Model",
        "Network",
        "Frames and size",
        "Video output",
        "Image output",
        "Errors",
        "Run",
    ]


@pytest.mark.parametrize("name", list(cli.main.commands))
def test_help_fits_a_terminal_of_80_columns(name: str) -> None:
    done = CliRunner().invoke(cli.main, [name, "--help"], terminal_width=80)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "``" not in done.stdout


def test_help_shows_a_flag_of_train_in_one_spelling() -> None:
    done = CliRunner().invoke(cli.main, ["train", "--help"], terminal_width=80)
    assert "--reference-names / --no-reference-names" in done.stdout
    assert "--reference_names" not in done.stdout


def test_the_list_of_commands_cuts_no_sentence() -> None:
    done = CliRunner().invoke(cli.main, ["--help"], terminal_width=80)
    assert "..." not in done.stdout.partition("Commands:")[2]


@pytest.mark.parametrize("name", list(cli.main.commands))
def test_every_option_is_shown_with_a_whole_sentence(name: str) -> None:
    command = cli.main.commands[name]
    assert isinstance(command, GroupedCommand)
    for each in options(name):
        assert isinstance(each, GroupedOption)
        assert each.help
        assert each.help.endswith("."), f"{name} --{each.name}"


def test_a_command_without_options_has_the_defaults_and_choices_of_the_table() -> None:
    command = cli.main.commands["translate"]
    parsed = command.make_context("translate", ["in.png", "out.png", "-m", "model.onnx"]).params
    shown = {each.name: each for each in options("translate")}
    for each in options_of(TranslateOptions):
        assert parsed[each.name] == getattr(TranslateOptions(), each.name), each.name
        if each.choices:
            assert tuple(shown[each.name].type.choices) == each.choices  # type: ignore[attr-defined]
