"""docs/models.md tells of the families what they are, and the program what the page says."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner

from cyclegan_batch import cli
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.models.checkpoints.families import FAMILIES, recognise
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from tests.models.checkpoints.families import test_cut, test_pix2pixhd
from tests.models.checkpoints.families.checks import saved
from tests.models.checkpoints.families.test_layouts import LOADED, of
from tests.needs import REPOSITORY

PAGE = (REPOSITORY / "docs" / "models.md").read_text()
TABLE = PAGE.split("### Families\n")[1].split("\n**")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()
        if line.startswith("| `") and not line.startswith("| `--family`")]  # fmt: skip

LAYOUTS = [*LOADED.values(), ("pix2pixhd", of(test_pix2pixhd.Local()))]


def test_every_family_has_its_row():
    assert [row[:2] for row in ROWS] == [[f"`{each.name}`", each.title] for each in FAMILIES]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_names_and_sizes_of_a_row_are_those_of_the_family(row):
    family, _, names, sizes, _ = row
    layouts = [shapes for each, shapes in LAYOUTS if f"`{each}`" == family]
    known = {name for shapes in layouts for name in shapes}
    named = re.findall(r"`([\w.]+\.(?:weight|filt|rho))`", names)
    assert named
    assert not set(named) - known
    stated = re.search(r"multiples of (\d+)(?:, from (\d+))?(?![\w ])", sizes)
    if stated:
        multiple = int(stated[1])
        expected = SizeRequirements(multiple, int(stated[2] or multiple))
        found = {fit.reading.config.sizes for shapes in layouts for fit in recognise(shapes).fits}
        assert expected in found


def test_the_page_shows_what_inspect_prints(tmp_path, monkeypatch):
    saved(tmp_path, test_cut.published()).rename(tmp_path / "latest_net_G.pth")
    monkeypatch.chdir(tmp_path)
    shown = re.search(r"latest_net_G.pth\n```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
    printed = CliRunner().invoke(cli.main, ["inspect", "latest_net_G.pth"]).output
    assert shown[1] in printed


def test_the_page_shows_the_error_of_a_file_with_two_generators(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        shapes = generator_from_config(GeneratorConfig("resnet_9blocks", ngf=2)).state_dict()
    state = {name: torch.ones(value.shape) for name, value in shapes.items()}
    torch.save({"netG_A": state, "netG_B": state}, "both.pth")
    command = ["export", "both.pth", "night.onnx"]
    assert (
        CliRunner()
        .invoke(cli.main, command)
        .output.strip()
        .splitlines()[-1]
        .removeprefix("Error: ")
        in PAGE
    )
    listed = CliRunner().invoke(cli.main, ["inspect", "both.pth"])
    assert (listed.exit_code, listed.output.splitlines()[1:]) == (
        0,
        [
            "path: both.pth",
            "generators:",
            "  netG_A: resnet_9blocks, AtoB",
            "  netG_B: resnet_9blocks, BtoA",
            "remedy: choose one with --direction or --weights",
        ],
    )
