"""What the pages and the messages name is there: commands, options, extras, files."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import shutil
import tomllib
from fractions import Fraction
from pathlib import Path

import av
import click
import numpy as np
import pytest
from PIL import Image

import cyclegan_batch
from cyclegan_batch import cli
from cyclegan_batch.demo import MODEL
from cyclegan_batch.remote import as_path, forget
from tests.needs import REPOSITORY
from tests.stores import put_tree
from tests.synthesis import tars

PAGES = sorted(
    [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    + [REPOSITORY / wing / "README.md" for wing in ("train", "export")]
    + [*(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "benchmarks").glob("*.md")]
)
"""Every page for people."""


def _name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def _readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def _flags(command: click.Command) -> set[str]:
    return {flag for each in _options(command) for flag in (*each.opts, *each.secondary_opts)}


def _options(command: click.Command) -> list[click.Option]:
    """Return the options of a command, those of its table too, without --help."""
    params = command.get_params(click.Context(command))
    return [each for each in params if isinstance(each, click.Option) and "--help" not in each.opts]


def _commands(page: Path) -> list[str]:
    """Return the commands of the console blocks of ``page``, without comments."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [re.split(r"\s+#", line)[0].partition("$ ")[2] for line in lines if "$ " in line]
    # The shell's own words: a pipe is several commands.
    return [part.strip() for line in commands for part in re.split(r"\s(?:\||&&)\s", line)]


COMMANDS = [(page, command) for page in PAGES for command in _commands(page)]


def _words(command: str) -> list[str]:
    """Return the words of ``command``, without settings of the environment before it."""
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words.pop(0)
    return words


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{_name(page)}: {command}" for page, command in COMMANDS]
)
def test_every_command_of_every_page_is_one(page, command):
    """Its words are those of the command line, of the Makefile, or files that are there."""
    program, *arguments = _words(command)
    program = program.removeprefix(".venv/bin/")
    if program == "cyclegan-batch":
        cli.main.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M)
        assert {word for word in arguments if "=" not in word} <= set(targets)
    elif program in ("python", "python3") and arguments[0] != "-m":
        scripts = [REPOSITORY / arguments[0], *REPOSITORY.rglob(f"*/{Path(arguments[0]).name}")]
        assert any(script.is_file() for script in scripts)
    elif program == "pip":
        extras = set(re.findall(r"\[([a-z0-9,]+)\]", command.partition("#")[0]))
        assert {name for each in extras for name in each.split(",")} <= _extras()
    else:
        assert program in OTHERS, f"{_name(page)}: {command}"


OTHERS = {"cyclegan-batch", "ffmpeg", "ffplay", "ls", "pre-commit", "python", "scp", "xdg-open"}
OTHERS |= {"torchrun", "curl", "docker", "find", "tar", "tensorboard", "vspipe"}
"""Programs of other people."""

SANDBOX_MODELS = ("day2night.onnx", "sim2real.onnx")
LAKE = "s3://lake/"
"""The bucket of the pages."""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A folder with the files that the pages name, all tiny."""
    folder = tmp_path_factory.mktemp("pages")
    for name in SANDBOX_MODELS:
        shutil.copy(MODEL, folder / name)
    (folder / "clips").mkdir()
    for name in ("clip.mp4", "clip.mov", "a.mp4", "b.mkv", "clips/1.mp4"):
        _two_minutes(folder / name)
    moving = [Image.new("RGB", (40, 32), (level, 9, 9)) for level in (0, 99)]
    moving[0].save(folder / "party.gif", save_all=True, append_images=moving[1:])
    for name in ("photo.jpg", "photos/1.jpg", "photos/2.png", "sim/a/1.png", "frames/f_000001.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "sim/a/1.txt").write_text("label")
    (folder / "names.txt").write_text("sim/a/1.png\n")
    for name in ("tars/1.tar", "sim-0001.tar"):
        tars.write_tar(folder / name, [("1.png", tars.png()), ("1.txt", b"label")])
    return folder


@pytest.fixture(scope="module")
def lake(sandbox, request):
    """The bucket of the pages, with the files of the sandbox; what a process needs to reach it."""
    for package in ("s3fs", "moto"):
        pytest.importorskip(package)
    server = request.getfixturevalue("s3_server")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(Bucket="lake")
        put_tree(sandbox, as_path(LAKE))
    yield server.environment
    forget()


def _two_minutes(path: Path) -> None:
    """Write frames that last two minutes, so that the times of the pages lie in them."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=Fraction(1, 10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((72, 64), 20 * index, np.uint8), "yuv420p")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


RUN = sorted(
    {
        (_name(page), command)
        for page, command in COMMANDS
        if _words(command)[:2] in (["cyclegan-batch", "translate"], ["cyclegan-batch", "inspect"])
        and {word.removeprefix(LAKE) for word in _words(command)} & {*SANDBOX_MODELS, "clip.mp4"}
        and not set(_words(command)) & {"-", "@-", "--gpus", "--runner", "tensorrt", "run"}
        and not re.search(r"cuda|webgpu|data/|\.pth|\.engine|-fp16", command)
    }
)
"""The commands that a CPU runs in a moment with the generator of the demo."""


@pytest.mark.parametrize("command", sorted({command for _, command in RUN}))
def test_the_commands_of_the_pages_run(command, sandbox, tmp_path, monkeypatch, capfd, request):
    if LAKE in command:
        for name, value in request.getfixturevalue("lake").items():
            monkeypatch.setenv(name, value)
    shutil.copytree(sandbox, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(_words(command)[1:])
    assert ended.value.code in (0, None), capfd.readouterr().err


def test_the_pages_have_commands_that_run():
    assert len(RUN) >= 12
    assert {"README.md", "docs/video.md", "docs/datasets.md"} <= {page for page, _ in RUN}


def test_every_flag_is_a_field_of_the_options_by_the_same_word():
    command = cli.main.commands["translate"]
    params = {param.name for param in command.params}
    params |= {option.name for option in _options(command)}
    fields = {field.name for field in dataclasses.fields(cyclegan_batch.TranslateOptions)}
    # What the command line has besides: what is translated by what, and how that is told.
    told = {"inputs", "output", "model", "progress", "quiet", "verbose", "dry_run"}
    told |= {"report", "manifest"}
    assert fields == params - told


def test_every_command_and_option_has_help():
    for name, command in cli.main.commands.items():
        assert command.help, name
        for option in _options(command):
            assert option.help, f"{name} {option.opts}"


def test_the_pages_name_every_command():
    for name in cli.main.commands:
        assert re.search(rf"(?:cyclegan-batch|make) {name}\b", _readme()), name
        assert f"## {name}" in (REPOSITORY / "docs" / "options.md").read_text(), name


def test_the_readme_is_short_and_shows_a_small_picture_first():
    readme = _readme()
    assert len(readme.splitlines()) <= 170
    still, moving, *_ = re.finditer(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert still.start() < moving.start() < readme.index("make demo") < readme.index("make test")
    assert (REPOSITORY / still[1]).stat().st_size < 300_000
    assert (REPOSITORY / moving[1]).stat().st_size < 1_500_000


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_file_and_heading_that_a_page_links_is_there(page):
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
        linked = (page.parent / target) if target else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            assert heading in {_anchor(title) for title in titles}, f"{target}#{heading}"


def _anchor(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _extras() -> set[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def test_the_readme_names_every_extra_and_no_other():
    section = _readme().split("| extra |")[1].split("\n\n")[0]
    named = re.findall(r"`([a-z0-9]+)`", " ".join(re.findall(r"^\| (`.*?) \|", section, re.M)))
    assert set(named) == _extras()


def test_every_command_and_option_that_a_message_names_is_there():
    # Of nvidia-smi, torchrun, the reference implementation's test.py, ray start, tar,
    # the configure script of FFmpeg, and tritonserver.
    options = {"--help", "--query-gpu", "--nproc-per-node", "--eval", "--head"}
    options |= {"--sparse", "--dereference", "--hard-dereference"}
    options |= {"--enable-libonnxruntime", "--model-repository"}
    for command in cli.main.commands.values():
        options |= _flags(command)
    named = 0
    for path in _modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                commands = set(re.findall(r"\bcyclegan-batch ([a-z]+)\b(?! \d)", node.value))
                said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", node.value))
                assert commands <= set(cli.main.commands), f"{path}:{node.lineno}"
                assert said <= options, f"{path}:{node.lineno}"
                named += len(commands) + len(said)
    assert named > 50


def test_every_page_that_the_code_names_is_there():
    """A page is named by its path; "the README" names none of the three."""
    named = set()
    for path in _modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"\bdocs/[\w.-]+\.md\b", node.value))
                assert "the README" not in node.value, f"{path}:{node.lineno}"
    assert "docs/gpu.md" in named
    assert not [name for name in named if not (REPOSITORY / name).is_file()]


def _modules() -> list[Path]:
    """Return the modules whose messages name our options; those of edge.py are trtexec's."""
    roots = [REPOSITORY / name for name in ("cyclegan_batch", "train", "export")]
    paths = [path for root in roots for path in root.rglob("*.py")]
    return sorted(path for path in paths if path.name != "edge.py")


def _section(page: str, title: str) -> str:
    return re.split(rf"^##+ {title}\n", (REPOSITORY / page).read_text(), flags=re.M)[1].split(
        "\n#"
    )[0]


def _rows(section: str) -> dict[str, list[str]]:
    """Return the cells of every row of the tables of a section by the first of them."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return {first: others for first, *others in cells}


def test_the_estimate_for_a_billion_images_follows_from_what_was_measured():
    """Its numbers are those of RESULTS.md, and what is derived of them is that."""
    page = _section("docs/datasets.md", "A billion images")
    table = _rows(page)
    image = _rows(_section("benchmarks/RESULTS.md", "Bytes and CPU time of an image"))
    store = _rows(_section("benchmarks/RESULTS.md", "From and to an object store"))
    codec = {}
    for name in ("256², JPEG", "256², PNG", "512², JPEG", "512², PNG"):
        size, *times = image[f"photographs, {name}"]
        codec[name] = sum(map(float, times))
        bytes_ = int(size.replace(",", ""))
        assert table[name] == [size, f"{bytes_ / 1000:.0f}", f"{bytes_ * 0.02:,.0f}"]
    assert table["b"][1] == image["photographs, 256², JPEG"][0]
    bytes_ = int(table["b"][1].replace(",", ""))
    for name, measured in {
        "horse→zebra": "horse→zebra (2.7 G multiply-adds), without options",
        "the same, `--precision bf16`": "the same, `--precision bf16`",
        "ResNet-9 of 64 channels, 56.8 G multiply-adds": (
            "ResNet-9 of 64 channels (56.8 G), seeded weights, without options"
        ),
    }.items():
        cost = image[measured][0]
        hours = float(cost) * 1e9 / 3.6e6
        derived = [f"{hours:,.0f}", f"{hours / 1000:.1f}", f"{hours * float(table['p'][1]):,.0f}"]
        assert table[name] == [cost, *derived, f"{1000 * bytes_ / hours / 3.6:,.0f}"]
    assert f"{codec['256², JPEG']:.2f} ms to decode and encode" in page
    assert f"a PNG {codec['256², PNG']:.2f}:" in page
    objects, tars = store["objects"][1], store["tars as objects"][1]
    assert f"took {objects} ms of CPU time as an object and {tars} in a tar" in page
    assert f"{float(objects) - float(tars):.1f} ms more" in page
    memory, time = (float(cell.replace(",", "")) / 1000 for cell in store["an object"])
    assert f"{memory:.1f} kB of memory and {time:.2f} ms for each object" in page
    road = [image[f"road scenes, 256², {name}"][0] for name in ("JPEG", "PNG")]
    assert "had {} bytes as JPEG and {} as PNG".format(*road) in page
