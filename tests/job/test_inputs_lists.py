"""Lists of inputs: what a name in one stands for, and where its output is put."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import pytest

from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.job.inputs import InputTree, find_inputs, why_unread
from cyclegan_batch.wording import grouped
from tests.job.test_inputs import NAMES, PNG, touch


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder of each test; what lies beside it is outside."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def listed(content: bytes | str, output: Path | str = "out", **options: object) -> InputTree:
    """Return the job of a list with this content."""
    data = content if isinstance(content, bytes) else content.encode()
    touch(Path("../names.txt"), data)
    return find_inputs(["@../names.txt"], output, **options)  # type: ignore[arg-type]


def outputs(tree: InputTree) -> dict[str, str]:
    """Return source → output of every entry, in order, as text."""
    return {str(entry.source): str(entry.output) for entry in tree.entries}


# How a list is written


@pytest.mark.behaviour(13)
@pytest.mark.parametrize(
    "content",
    [
        b"b/2.png\na/1.png\n",
        b"b/2.png\na/1.png",
        b"\n\nb/2.png\n\n\na/1.png\n\n",
        b"\xef\xbb\xbfb/2.png\r\n\r\na/1.png\r\n",
        b"b/2.png\0a/1.png\0",
        b"\xef\xbb\xbfb/2.png\0\0a/1.png",
    ],
)
def test_a_list_has_one_name_a_line_or_before_each_nul(content: bytes) -> None:
    for name in ("a/1.png", "b/2.png"):
        touch(Path(name))
    tree = listed(content)
    assert outputs(tree) == {"b/2.png": "out/b/2.png", "a/1.png": "out/a/1.png"}
    assert tree.root == Path("out")
    assert tree.notes == ()


def test_a_list_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    touch(Path("a/1.png"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a/1.png\0./a/1.png\0")))
    assert outputs(find_inputs(["@-"], "out")) == {"a/1.png": "out/a/1.png"}


def test_a_list_that_a_pipe_holds_is_read() -> None:
    touch(Path("a.png"))
    reading, writing = os.pipe()
    os.write(writing, b"a.png\n")
    os.close(writing)
    try:
        assert outputs(find_inputs([f"@/dev/fd/{reading}"], "out")) == {"a.png": "out/a.png"}
    finally:
        os.close(reading)


def test_a_file_whose_name_begins_with_the_mark_of_a_list_is_that_file() -> None:
    touch(Path("@a.png"), PNG)
    touch(Path("a.png"), b"no list")
    assert outputs(find_inputs(["@a.png"], "out")) == {"@a.png": "out/@a.png"}


@pytest.mark.behaviour(17)
def test_every_name_works_in_a_list() -> None:
    paths = [os.fsencode("sub/") + name for name in NAMES] + [b"@list", b"* ?.png", b" ", b"#a.png"]
    for path in paths:
        touch(Path(os.fsdecode(path)), PNG)
    tree = listed(b"".join(path + b"\0" for path in paths))
    assert [os.fsencode(entry.source) for entry in tree.entries] == paths
    assert {entry.kind for entry in tree.entries} == {"image"}
    assert [os.fsencode(e.output.parent / e.source.name) for e in tree.entries] == [
        b"out/" + path for path in paths
    ]
    one_a_line = [path for path in paths if b"\n" not in path]
    tree = listed(b"\n".join(one_a_line))
    assert [os.fsencode(entry.source) for entry in tree.entries] == one_a_line


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\0\0", b"\xef\xbb\xbf"])
def test_a_list_without_a_name_errors(content: bytes) -> None:
    with pytest.raises(InputError, match=r"names\.txt: the list holds no name; one path a line"):
        listed(content)


def test_a_list_that_cannot_be_read_errors() -> None:
    with pytest.raises(
        InputError, match=r"^@gone\.txt: no such file, and no list gone\.txt; check"
    ):
        find_inputs(["@gone.txt"], "out")
    with pytest.raises(InputError, match=r"^@\.\.: the list cannot be read: Is a directory"):
        find_inputs(["@.."], "out")


# Where the outputs are put


@pytest.mark.behaviour(13)
def test_an_absolute_name_and_one_that_leads_up_keep_their_path_below_the_folder_they_share(
    tmp_path: Path,
) -> None:
    for name in ("here/a/1.png", "data/x/2.png", "data/y/deep/3.png"):
        touch(tmp_path / name)
    tree = listed(f"./a//1.png\n{tmp_path}/data/x/2.png\n../data/y/deep/3.png\na/../a/4.png\n")
    assert list(outputs(tree).values()) == [
        "out/a/1.png",
        "out/x/2.png",
        "out/y/deep/3.png",
        "out/a/4.png",
    ]
    assert list(outputs(listed(f"{tmp_path}/data/x/2.png")).values()) == ["out/2.png"]


@pytest.mark.behaviour(13)
@pytest.mark.parametrize(
    "name",
    ["../a.png", "x/../../a.png", "../../../../../../../../../../etc/a.png", "//etc/a.png",
     "/a.png", "/../a.png", "link/../a.png", "./../here/../a.png", "link/a.png"],
)  # fmt: skip
def test_no_name_leads_out_of_the_output(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    Path("x").mkdir()
    Path("link").symlink_to(tmp_path / "elsewhere" / "sub")
    for each in listed(f"{name}\nx/b.png\n/usr/c.png").entries:
        assert each.output.parts[0] == "out"
        assert ".." not in each.output.parts


@pytest.mark.behaviour(13)
def test_dots_behind_a_link_mean_what_the_system_means(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "x" / "a.png")
    (tmp_path / "elsewhere" / "sub").mkdir()
    Path("link").symlink_to(tmp_path / "elsewhere" / "sub")
    touch(Path("x/a.png"))
    # Two files, and not one named twice.
    tree = listed(f"link/../x/a.png\nx/a.png\n{tmp_path}/b.png")
    assert list(outputs(tree).values()) == ["out/elsewhere/x/a.png", "out/x/a.png", "out/b.png"]


@pytest.mark.behaviour(13)
def test_a_link_in_the_output_that_leads_out_of_it_errors_for_a_list_too(tmp_path: Path) -> None:
    touch(Path("sub/a.png"))
    Path("out").mkdir()
    Path("out/sub").symlink_to(tmp_path)
    with pytest.raises(OutputError, match=r"out/sub: leads out of the output folder"):
        listed("sub/a.png")


@pytest.mark.behaviour(13)
def test_a_folder_in_a_list_is_mirrored() -> None:
    for name in ("a/b/1.png", "a/b/c/2.mp4", "a/b/notes.txt", "a/3.png", "d/4.png"):
        touch(Path(name))
    tree = listed("a/b/\nd\na/b/c/2.mp4\na/3.png")
    assert list(outputs(tree).values()) == [
        "out/a/b/1.png",
        "out/a/b/c/2.mp4",
        "out/d/4.png",
        "out/a/3.png",
    ]
    assert grouped(tree.notes) == (
        "a/b: left out, as neither images nor videos: 1 of its files (.txt); --copy-others "
        "copies them",
        "@../names.txt: 1 repetition of a file: each file is translated once",
    )
    assert list(outputs(listed("d\n.", "../out")).values()) == [
        "../out/d/4.png",
        "../out/a/3.png",
        "../out/a/b/1.png",
        "../out/a/b/c/2.mp4",
    ]


@pytest.mark.behaviour(13)
def test_a_folder_in_a_list_with_the_output_in_it_or_nothing_to_translate_errors() -> None:
    touch(Path("a/1.png"))
    Path("empty").mkdir()
    for content, output in (("a", "a/out"), (".", "out"), ("a\n..", "out")):
        with pytest.raises(OutputError, match="inside the input folder"):
            listed(content, output)
    with pytest.raises(InputError, match=r"names\.txt, line 3: empty: nothing to translate in"):
        listed("a\n\nempty\n")


def test_an_output_that_would_replace_a_file_of_the_list_errors() -> None:
    touch(Path("a.png"))
    with pytest.raises(OutputError, match=r"a\.png: the output would replace the input a\.png"):
        listed("a.png", ".")


def test_a_list_needs_a_folder_as_output_errors() -> None:
    touch(Path("a.mp4"))
    touch(Path("taken.mp4"))
    with pytest.raises(OutputError, match=r"taken\.mp4: is a file, and a list needs a folder"):
        listed("a.mp4", "taken.mp4")
    with pytest.raises(OutputError, match="holds one video, as y4m"):
        listed("a.mp4", "-")
    # A name that does not exist is a folder, even where it looks like a file.
    assert outputs(listed("a.mp4", "new.mp4")) == {"a.mp4": "new.mp4/a.mp4"}


def test_a_file_that_is_listed_more_than_once_is_translated_once(here: Path) -> None:
    touch(Path("a/1.png"))
    (here.parent / "more.txt").write_text("../here/a/1.png\n")
    content = f"a/1.png\n./a/1.png\n{here}/a/1.png\na/../a/1.png\ngone.png\ngone.png\n"
    tree = listed(content)
    assert outputs(tree) == {"a/1.png": "out/a/1.png", "gone.png": "out/gone.png"}
    assert grouped(tree.notes) == (
        "@../names.txt: 4 repetitions of a file: each file is translated once",
    )
    tree = find_inputs(["@../names.txt", "@../more.txt"], "out")
    assert len(tree.entries) == 2
    assert len(tree.notes) == 2


def test_a_list_beside_other_inputs() -> None:
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        touch(Path(name))
    Path("names.txt").write_text("a/1.png\n")
    tree = find_inputs(["b", "@names.txt", "c/3.png"], "out")
    assert list(outputs(tree).values()) == ["out/b/2.png", "out/a/1.png", "out/3.png"]


def test_formats_and_containers_hold_for_a_list_too() -> None:
    for name in ("a.jpg", "b.wmv"):
        touch(Path(name))
    tree = listed("a.jpg\nb.wmv", format="png")
    assert list(outputs(tree).values()) == ["out/a.png", "out/b.mkv"]
    tree = listed("a.jpg\ngone.jpg", format="png")
    assert list(outputs(tree).values()) == ["out/a.png", "out/gone.png"]


@pytest.mark.behaviour(18)
def test_labels_in_a_list_are_copied_on_request() -> None:
    touch(Path("a/1.png"))
    touch(Path("a/1.json"), b"{}")
    tree = listed("a/1.png\na/1.json", copy_others=True)
    assert [entry.kind for entry in tree.entries] == ["image", "other"]


# What cannot be read


@pytest.mark.behaviour(14, 45)
@pytest.mark.parametrize(
    "name",
    ["gone.png", "concat:a.mp4|b.mp4", "http://example.org/a.mp4", "pipe:", "pipe:0", "f_%d.png",
     "file:a.png", "-", "@names.txt", "*.png", "fd:", "data:image/png;base64,AAAA",
     "n" * 300 + ".png"],
)  # fmt: skip
def test_what_is_no_file_is_missing_and_costs_itself_only(name: str) -> None:
    touch(Path("a.png"))
    touch(Path("f_1.png"))
    tree = listed(f"a.png\n\n{name}\n")
    assert [entry.kind for entry in tree.entries] == ["image", "unread"]
    reason = why_unread(tree.entries[1])
    assert reason.startswith(f"@../names.txt, line 3: {Path(name)}: ")
    assert "no such file or folder" in reason or "File name too long" in reason


@pytest.mark.behaviour(45)
def test_a_dash_in_a_list_is_the_name_of_a_file(here: Path) -> None:
    touch(Path("-"), b"no image")
    (entry,) = listed("-").entries
    # `Path("-")` would be standard input.
    assert (entry.kind, entry.source, entry.output) == ("video", here / "-", Path("out/-.mkv"))


@pytest.mark.behaviour(14)
def test_a_queue_and_a_file_without_permission_cost_themselves_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    os.mkfifo("queue.png")
    touch(Path("a.png"))
    touch(Path("secret"))
    usual_open = Path.open

    def guarded(path: Path, *arguments: str, **keywords: str) -> object:
        if path.name == "secret":
            raise PermissionError(13, "Permission denied")
        return usual_open(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", guarded)
    tree = listed(b"queue.png\0secret\0a.png\0")
    assert [entry.kind for entry in tree.entries] == ["unread", "unread", "image"]
    assert why_unread(tree.entries[0]).startswith("@../names.txt, name 1: queue.png: is neither a")
    assert "name 2: secret: permission denied" in why_unread(tree.entries[1])


def test_a_name_in_a_list_that_is_no_folder_and_has_no_place_errors() -> None:
    with pytest.raises(InputError, match=r"line 1: gone/\.\.: no such file or folder"):
        listed("gone/..")


def test_a_long_list_takes_time_in_proportion_to_its_length() -> None:
    def seconds(count: int) -> float:
        names = [f"d{number % 50}/{number}.png" for number in range(count)]
        started = time.process_time()
        assert len(listed("\n".join(names)).entries) == count
        return time.process_time() - started

    seconds(100)
    # Sixteen times the names: going through the list for each of them would take 256 times as long.
    assert seconds(32_000) < 3 * 16 * seconds(2_000)
