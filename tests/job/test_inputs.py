"""From INPUT… and OUTPUT to the list of files and their outputs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cyclegan_batch.errors import ContradictionError, InputError, OutputError
from cyclegan_batch.job.inputs import copy_file, find_inputs, why_unread
from cyclegan_batch.media.formats import Entry, natural_key
from cyclegan_batch.wording import grouped

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
JPEG = b"\xff\xd8\xff\xe0" + bytes(12)

NAMES = [
    b"with space.png",
    b'it\'s "quoted".png',
    b"100%.png",
    b"%06d.png",
    b"[a].png",
    b"[bold red]x[-].png",
    b"-y.png",
    "🦓 zèbre.png".encode(),
    b"\xff\xfe\x80.png",
    b"n" * 246 + b".png",
    b"new\nline.png",
]
"""Names of behaviour 17, each of which is the name of an image."""


def touch(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def pairs(inputs: list[Path | str], output: Path | str, **options: object) -> dict[str, str]:
    """Return kind and source → output of every entry, in order, as text."""
    tree = find_inputs(inputs, output, **options)  # type: ignore[arg-type]
    return {f"{entry.kind} {entry.source}": str(entry.output) for entry in tree.entries}


# One file


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png", "a.webp", "a.bmp", "a.tif", "a.tiff"])
def test_one_picture_becomes_the_file_that_output_names(tmp_path: Path, name: str) -> None:
    source = touch(tmp_path / name)
    tree = find_inputs([source], tmp_path / "out.png")
    assert tree.entries == (Entry("image", source, tmp_path / "out.png"),)
    assert tree.root is None


@pytest.mark.parametrize("name", ["a.mp4", "a.MKV", "a.webm", "a.ts", "a.m2ts", "a.y4m"])
def test_one_video_becomes_the_file_that_output_names(tmp_path: Path, name: str) -> None:
    source = touch(tmp_path / name)
    assert find_inputs([source], tmp_path / "o.mkv").entries == (
        Entry("video", source, tmp_path / "o.mkv"),
    )


@pytest.mark.parametrize("output", ["o.mp4", "o.MKV", "-"])
def test_a_gif_plays_where_the_output_is_a_video(tmp_path: Path, output: str) -> None:
    source = touch(tmp_path / "a.gif", b"GIF89a" + bytes(10))
    assert find_inputs([source], output).entries[0].kind == "video"


@pytest.mark.parametrize("written", ["existing", "new", "new/", "new.d/"])
def test_one_file_keeps_its_name_in_a_folder(tmp_path: Path, written: str) -> None:
    (tmp_path / "existing").mkdir()
    source = touch(tmp_path / "a.png")
    tree = find_inputs([source], f"{tmp_path}/{written}")
    assert [entry.output for entry in tree.entries] == [tmp_path / written / "a.png"]
    assert tree.root == tmp_path / written


@pytest.mark.parametrize(
    ("content", "kind", "name"),
    [(PNG, "image", "photo.png"), (JPEG, "image", "photo.jpg"), (b"text", "video", "photo.mkv")],
)
def test_a_named_file_without_a_known_extension_is_known_by_its_first_bytes(
    tmp_path: Path, content: bytes, kind: str, name: str
) -> None:
    source = touch(tmp_path / "photo", content)
    (tmp_path / "out").mkdir()
    entry = find_inputs([source], tmp_path / "out").entries[0]
    assert (entry.kind, entry.output.name) == (kind, name)


@pytest.mark.parametrize(
    ("source", "wanted", "expected"),
    [
        ("a.png", "jpg", "a.jpg"),
        ("a.jpeg", "jpg", "a.jpeg"),
        ("a.b.TIFF", "webp", "a.b.webp"),
        ("a.PNG", "png", "a.PNG"),
        ("a.mp4", "png", "a.mp4"),
    ],
)
def test_format_changes_the_extension_of_pictures_only(
    tmp_path: Path, source: str, wanted: str, expected: str
) -> None:
    touch(tmp_path / source)
    (tmp_path / "out").mkdir()
    tree = find_inputs([tmp_path / source], tmp_path / "out", format=wanted)
    assert tree.entries[0].output.name == expected


@pytest.mark.parametrize(
    ("source", "container", "expected"),
    [
        ("a.MTS", "same", "a.MTS"),
        ("a.y4m", "same", "a.y4m"),
        ("a.wmv", "same", "a.mkv"),
        ("a.b.VOB", "same", "a.b.mkv"),
        ("a.wmv", "mp4", "a.mp4"),
        ("a.M4V", "mp4", "a.M4V"),
        ("a.mkv", "mp4", "a.mp4"),
        ("a.mp4", "webm", "a.webm"),
        ("a.mov", "mov", "a.mov"),
        ("a.y4m", "mov", "a.mov"),
        ("talk.2024", "same", "talk.2024.mkv"),
        ("talk", "mov", "talk.mov"),
        ("a.png", "mp4", "a.png"),
    ],
)
@pytest.mark.behaviour(13)
def test_container_changes_the_extension_of_videos_only(
    tmp_path: Path, source: str, container: str, expected: str
) -> None:
    touch(tmp_path / source, b"text")
    tree = find_inputs([tmp_path / source], f"{tmp_path}/out/", container=container)
    assert [entry.output for entry in tree.entries] == [tmp_path / "out" / expected]


@pytest.mark.parametrize("name", ["out.mkv", "out.wmv", "-"])
def test_a_file_that_is_named_says_its_container_itself(tmp_path: Path, name: str) -> None:
    source = touch(tmp_path / "a.mp4")
    output = Path(name) if name == "-" else tmp_path / name
    assert find_inputs([source], output).entries[0].output == output
    with pytest.raises(
        ContradictionError, match=r"--container webm and the name ask for different containers"
    ):
        find_inputs([source], output, container="webm")
    assert find_inputs([source], tmp_path / "out.m4v", container="mp4").root is None


def test_a_pattern_and_a_pipe_into_another_container_error(tmp_path: Path) -> None:
    touch(tmp_path / "f_1.png")
    for source in (tmp_path / "f_%d.png", Path("-")):
        with pytest.raises(ContradictionError, match=r"out\.mp4: --container mkv and the name ask"):
            find_inputs([source], tmp_path / "out.mp4", container="mkv")


@pytest.mark.parametrize(
    ("output", "wanted", "message"),
    [
        ("out.gif", "same", r"out\.gif: cannot write an image as \.gif; choose one of jpg, "),
        ("out.mp4", "same", r"cannot write an image as \.mp4"),
        ("out.jpg", "png", r"--format png and the name ask for different formats"),
    ],
)
def test_a_picture_of_a_format_that_cannot_be_written_errors(
    tmp_path: Path, output: str, wanted: str, message: str
) -> None:
    source = touch(tmp_path / "a.png")
    with pytest.raises(OutputError, match=message):
        find_inputs([source], tmp_path / output, format=wanted)


def test_an_output_that_is_the_input_errors(tmp_path: Path) -> None:
    source = touch(tmp_path / "a.png")
    for output in (source, tmp_path, tmp_path / "sub" / ".." / "a.png"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match=r"would replace the input .*a\.png"):
            find_inputs([source], output)


def test_an_output_that_a_link_among_the_inputs_leads_to_errors(tmp_path: Path) -> None:
    real = touch(tmp_path / "out" / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(real)
    with pytest.raises(OutputError, match="would replace the input"):
        find_inputs([tmp_path / "in"], tmp_path / "out")


def test_a_missing_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png: no such file or folder"):
        find_inputs([tmp_path / "gone.png"], tmp_path / "out.png")


def test_no_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no input"):
        find_inputs([], tmp_path / "out")


def test_a_queue_as_input_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "queue.png")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        find_inputs([tmp_path / "queue.png"], tmp_path / "out.png")


# Folders


@pytest.mark.behaviour(13)
def test_a_folder_is_mirrored_with_its_tree_names_and_formats(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ["f10.png", "f2.jpg", "sub/deep/b.webp", "sub/clip.mp4", "labels.json", "a.txt"]:
        touch(root / name)
    tree = find_inputs([root], tmp_path / "out")
    assert [(e.kind, str(e.output.relative_to(tmp_path / "out"))) for e in tree.entries] == [
        ("image", "f2.jpg"),
        ("image", "f10.png"),
        ("video", "sub/clip.mp4"),
        ("image", "sub/deep/b.webp"),
    ]
    assert all(
        e.source.relative_to(root) == e.output.relative_to(tmp_path / "out") for e in tree.entries
    )
    assert tree.root == tmp_path / "out"
    assert len(grouped(tree.notes)) == 1
    assert re.search(
        r"in: left out, .*: 2 of its files \(\.json, \.txt\); --copy", grouped(tree.notes)[0]
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.behaviour(14)
@pytest.mark.parametrize("name", ["a.psd", "a.SVG", "a.exr", "a.dng", "a.jxl", "a.pgm", "a.tga"])
def test_a_picture_of_a_kind_that_is_not_read_is_no_other_file(tmp_path: Path, name: str) -> None:
    strange = touch(tmp_path / "in" / name, b"something")
    touch(tmp_path / "in" / "b.png")
    tree = find_inputs([tmp_path / "in"], tmp_path / "out")
    assert [(entry.kind, entry.source.name) for entry in tree.entries] == [
        ("unread", name),
        ("image", "b.png"),
    ]
    assert tree.notes == ()
    assert why_unread(tree.entries[0]).startswith(f"{strange}: images of the kind .")
    # As the only input it is unread too, unless its content is an image.
    assert find_inputs([strange], tmp_path / "o.png").entries[0].kind == "unread"
    strange.write_bytes(PNG)
    assert find_inputs([strange], tmp_path / "o.png").entries[0].kind == "image"


@pytest.mark.behaviour(14, 18)
def test_depth_maps_are_copied_on_request_and_it_is_said(tmp_path: Path) -> None:
    for name in ("a.png", "a.exr", "b.exr", "c.psd"):
        touch(tmp_path / "in" / name)
    tree = find_inputs([tmp_path / "in"], tmp_path / "out", copy_others=True)
    assert [entry.kind for entry in tree.entries] == ["other", "image", "other", "other"]
    (note,) = grouped(tree.notes)
    assert note.endswith(
        "copied as they are, since images of these kinds are not read here: .exr 2, .psd 1"
    )


@pytest.mark.behaviour(13)
def test_several_inputs_keep_their_own_names_in_the_output_folder(tmp_path: Path) -> None:
    touch(tmp_path / "trainA" / "1.png")
    touch(tmp_path / "trainB" / "1.png")
    touch(tmp_path / "one.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "trainA")
    inputs = [tmp_path / name for name in ("trainB", "trainA", "one.mp4", "link")]
    tree = find_inputs(inputs, tmp_path / "out")
    assert [str(e.output.relative_to(tmp_path / "out")) for e in tree.entries] == [
        "trainB/1.png",
        "trainA/1.png",
        "one.mp4",
        "link/1.png",
    ]


@pytest.mark.behaviour(13)
def test_dots_in_an_input_never_lead_out_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "data" / "x" / "1.png")
    touch(tmp_path / "other" / "2.png")
    (tmp_path / "data" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "data" / "here")
    assert pairs(["../x", "../../other/../other", "../../other/2.png"], "out") == {
        "image ../x/1.png": "out/x/1.png",
        "image ../../other/../other/2.png": "out/other/2.png",
        "image ../../other/2.png": "out/2.png",
    }
    (tmp_path / "data" / "here" / "here.png").touch()
    assert list(pairs([".", "../x"], "../out").values()) == [
        "../out/here/here.png",
        "../out/x/1.png",
    ]


@pytest.mark.behaviour(13)
def test_a_link_in_the_output_that_leads_out_of_it_errors(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"out/sub: leads out of the output folder .*elsewhere"):
        find_inputs([tmp_path / "in"], tmp_path / "out")


@pytest.mark.behaviour(13)
def test_the_output_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    assert len(find_inputs([tmp_path / "in"], tmp_path / "out").entries) == 1


@pytest.mark.behaviour(13)
def test_links_to_files_are_read_and_links_to_folders_are_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    touch(tmp_path / "real" / "r.png")
    touch(root / "a.png")
    (root / "b.png").symlink_to(tmp_path / "real" / "r.png")
    (root / "loop").symlink_to(root)
    (root / "broken.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "queue.png")
    tree = find_inputs([root], tmp_path / "out")
    assert [entry.source.name for entry in tree.entries] == ["a.png", "b.png", "broken.png"]
    assert len(grouped(tree.notes)) == 1
    assert "in/loop: a link to a folder is not followed" in grouped(tree.notes)[0]


def test_hidden_files_and_what_is_under_way_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ["a.png", ".hidden.png", ".cache/b.png", ".0123456789abcdef.partial"]:
        touch(root / name)
    tree = find_inputs([root], tmp_path / "out", copy_others=True)
    assert [entry.source.name for entry in tree.entries] == ["a.png"]


def test_the_order_is_natural_and_does_not_depend_on_the_folder_listing() -> None:
    names = ["f10", "f9", "f1/b", "f2", "F1", "f01", "f1", "a\udcff", "²", "10", "9"]
    paths = [Path(name) for name in names]
    expected = ["9", "10", "F1", "a\udcff", "f01", "f1", "f1/b", "f2", "f9", "f10", "²"]
    for shuffled in (paths, paths[::-1], sorted(paths)):
        assert [str(path) for path in sorted(shuffled, key=natural_key)] == expected


def test_a_folder_with_nothing_to_translate_says_what_it_saw_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: nothing to translate .* it holds no files"):
        find_inputs([tmp_path / "empty"], tmp_path / "out")
    touch(tmp_path / "texts" / "a.txt")
    touch(tmp_path / "texts" / "b.txt")
    touch(tmp_path / "texts" / ".hidden.png")
    with pytest.raises(InputError, match=r"it holds 2 \.txt, 1 hidden; images are apng, avif"):
        find_inputs([tmp_path / "texts"], tmp_path / "out")


@pytest.mark.parametrize("output", ["in", "in/out", "in/sub/../out", "link/out"])
def test_an_output_inside_an_input_folder_errors(tmp_path: Path, output: str) -> None:
    touch(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(OutputError, match=r"is the input folder|inside the input folder"):
        find_inputs([tmp_path / "in"], tmp_path / output)


def test_a_tree_that_would_fall_into_its_own_input_errors(tmp_path: Path) -> None:
    touch(tmp_path / "out" / "in" / "in" / "a.png")
    with pytest.raises(OutputError, match="inside the input folder"):
        find_inputs([tmp_path / "out" / "in"], tmp_path / "out")


def test_a_file_where_a_folder_is_needed_errors(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.png")
    touch(tmp_path / "b.png")
    taken = touch(tmp_path / "out.png")
    with pytest.raises(OutputError, match=r"out\.png: is a file, and a folder needs a folder"):
        find_inputs([tmp_path / "in"], taken)
    with pytest.raises(OutputError, match=r"is a file, and several inputs need a folder"):
        find_inputs([tmp_path / "in", tmp_path / "b.png"], taken)
    with pytest.raises(OutputError, match=r"is a file and was named as a folder"):
        find_inputs([tmp_path / "b.png"], f"{taken}/")


SAME_STEM = ["a.flv", "a.wmv", "b.mkv", "b.MPG", "c.vob", "sub/a.wmv", "d.mp4"]


@pytest.mark.behaviour(13)
def test_videos_whose_container_is_not_written_become_mkv_and_two_keep_their_full_names(
    tmp_path: Path,
) -> None:
    for name in SAME_STEM:
        touch(tmp_path / "in" / name)

    def found(**options: str) -> list[str]:
        tree = find_inputs([tmp_path / "in"], tmp_path / "out", **options)  # type: ignore[arg-type]
        return [str(entry.output.relative_to(tmp_path / "out")) for entry in tree.entries]

    names = ["a.flv.mkv", "a.wmv.mkv", "b.MPG.mkv", "b.mkv", "c.mkv", "d.mp4", "sub/a.mkv"]
    assert found() == names
    # Existing files do not matter: a later run must find what this one wrote.
    for name in names:
        touch(tmp_path / "out" / name)
    assert found() == names
    assert found(container="mov") == [
        "a.flv.mov", "a.wmv.mov", "b.MPG.mov", "b.mkv.mov", "c.mov", "d.mov", "sub/a.mov"
    ]  # fmt: skip
    notes = grouped(find_inputs([tmp_path / "in"], tmp_path / "out").notes)
    assert notes == (
        "5 videos become MKV, since their containers are read and not written here (.wmv 2, "
        ".flv 1, .mpg 1, .vob 1); --container chooses another",
        "3 files keep their full names, since two outputs would share a shorter one: "
        f"{tmp_path}/in/a.flv becomes {tmp_path}/out/a.flv.mkv",
    )


@pytest.mark.behaviour(13)
def test_pictures_of_one_name_keep_their_full_names_in_another_format(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "b.bmp"):
        touch(tmp_path / "in" / name)
    tree = find_inputs([tmp_path / "in"], tmp_path / "out", format="png")
    assert [entry.output.name for entry in tree.entries] == ["a.bmp.png", "a.png", "b.png"]
    assert len(grouped(tree.notes)) == 1
    assert grouped(tree.notes)[0].startswith(
        "1 file keeps its full name, since two outputs would share a shorter one"
    )


@pytest.mark.behaviour(13)
def test_every_container_that_is_read_is_a_video_of_a_folder(tmp_path: Path) -> None:
    read = {".264", ".3g2", ".asf", ".divx", ".dv", ".f4v", ".h264", ".insv", ".m2v", ".mod"}
    read |= {".hevc", ".m2p", ".ogm", ".rm", ".tod", ".vob", ".wtv", ".MPE", ".Mts", ".M2T"}
    for suffix in read:
        touch(tmp_path / "in" / f"clip{suffix}")
    entries = find_inputs([tmp_path / "in"], tmp_path / "out").entries
    assert {entry.source.suffix for entry in entries if entry.kind == "video"} == read


@pytest.mark.behaviour(13)
def test_two_inputs_that_would_become_one_output_errors(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.wmv")
    touch(tmp_path / "in" / "a.flv")
    touch(tmp_path / "in" / "a.wmv.mkv")
    with pytest.raises(
        InputError, match=r"a\.wmv and .*a\.wmv\.mkv would both become .*out/a\.wmv"
    ):
        find_inputs([tmp_path / "in"], tmp_path / "out")
    touch(tmp_path / "x" / "train" / "1.png")
    touch(tmp_path / "y" / "train" / "1.png")
    with pytest.raises(InputError, match=r"x/train/1\.png and .*y/train/1\.png would both become"):
        find_inputs([tmp_path / "x" / "train", tmp_path / "y" / "train"], tmp_path / "out")
    again = tmp_path / "x" / ".." / "x" / "train" / "1.png"
    with pytest.raises(InputError, match=r"1\.png: is given twice, .*out/1\.png .*; name it once"):
        find_inputs([tmp_path / "x" / "train" / "1.png", again], tmp_path / "out")


# Names


@pytest.mark.behaviour(17)
@pytest.mark.parametrize("name", NAMES)
def test_every_name_works_alone_in_a_folder_and_in_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    touch(Path("in") / path, PNG)
    touch(path, PNG)
    for source in (path, Path("in"), Path("in") / path):
        entry = find_inputs([source], Path("out")).entries[0]
        assert entry.kind == "image"
        assert os.fsencode(entry.output) == b"out/" + name
    with pytest.raises(OutputError, match="would replace the input") as caught:
        find_inputs([path], path)
    str(caught.value).encode("utf-8")


# Patterns and pipes


def test_a_pattern_stands_for_its_numbered_files(tmp_path: Path) -> None:
    for number in range(3):
        touch(tmp_path / f"100%f_{number:06d}.png")
    pattern = tmp_path / "100%%f_%06d.png"
    tree = find_inputs([pattern], tmp_path / "out.mp4")
    assert tree.entries == (Entry("pattern", pattern, tmp_path / "out.mp4"),)


def test_a_pattern_without_files_errors(tmp_path: Path) -> None:
    touch(tmp_path / "f_1.png")
    with pytest.raises(InputError, match=r"f_%06d\.png: no file of this name, and none that match"):
        find_inputs([tmp_path / "f_%06d.png"], tmp_path / "out.mp4")


@pytest.mark.parametrize(
    ("pattern", "names", "gap"),
    [
        ("f_%04d.png", "0001 0002 0003 0005 0006 0009", r"f_0004\.png is missing, and 2 more like"),
        ("f_%d.png", "8 9 11", r"f_10\.png is missing, between the numbers 8 and 11; number"),
        ("f_%3d.png", "099 100 1000 1001", r"f_101\.png is missing, and 898 more"),
        ("100%%_%02d.png", "07 09", r"100%_08\.png is missing, between"),
    ],
)
def test_a_gap_in_numbered_pictures_has_one_message_that_names_it_errors(
    tmp_path: Path, pattern: str, names: str, gap: str
) -> None:
    for number in names.split():
        name = re.sub("%[0-9]*d", number, pattern.replace("%%", "\0")).replace("\0", "%")
        touch(tmp_path / name)
    with pytest.raises(InputError, match=gap):
        find_inputs([tmp_path / pattern], tmp_path / "out.mp4")


@pytest.mark.parametrize(
    ("pattern", "names", "plays"),
    [
        ("f_%d.png", ["f_1.png", "f_01.png", "f_2.png", "f_002.png"], True),
        ("f_%d.png", ["f_001.png", "f_002.png"], False),
        ("f_%6d.png", ["f_000001.png", "f_000002.png"], True),
    ],
)
def test_a_pattern_means_the_names_that_ffmpeg_would_read(
    tmp_path: Path, pattern: str, names: list[str], plays: bool
) -> None:
    for name in names:
        touch(tmp_path / name)
    if plays:
        assert find_inputs([tmp_path / pattern], tmp_path / "out.mp4").entries[0].kind == "pattern"
    else:
        with pytest.raises(InputError, match="none that matches it as a pattern"):
            find_inputs([tmp_path / pattern], tmp_path / "out.mp4")


def test_a_pattern_into_a_folder_or_over_its_own_files_errors(tmp_path: Path) -> None:
    touch(tmp_path / "f_1.png")
    with pytest.raises(OutputError, match="a pattern is played as one video"):
        find_inputs([tmp_path / "f_%d.png"], tmp_path)
    with pytest.raises(OutputError, match=r"f_1\.png: is one of the inputs"):
        find_inputs([tmp_path / "f_%d.png"], tmp_path / "f_1.png")


@pytest.mark.parametrize("source", ["a.mp4", "a.gif", "f_%d.png", "-"])
def test_a_video_is_split_into_numbered_images(tmp_path: Path, source: str) -> None:
    for name in ("a.mp4", "a.gif", "f_1.png"):
        touch(tmp_path / name)
    given, output = Path(source) if source == "-" else tmp_path / source, tmp_path / "o" / "%d.png"
    (entry,) = find_inputs([given], output).entries
    assert (entry.is_numbered, entry.output) == (True, output)


def test_an_image_or_a_video_may_have_a_number_sign_in_its_name(tmp_path: Path) -> None:
    for source, output in (("a.png", "b_%d.png"), ("a.mp4", "b_%d.mp4")):
        (entry,) = find_inputs([touch(tmp_path / source)], tmp_path / output).entries
        assert (entry.is_numbered, entry.output) == (False, tmp_path / output)


@pytest.mark.parametrize(
    ("output", "how", "message"),
    [
        ("o_%d.jp2", {}, r"o_%d\.jp2: cannot write an image as \.jp2; choose one of jpg, "),
        ("o_%d.png", {"format": "jpg"}, "--format jpg and the name ask for different formats"),
        ("o_%d.png", {"container": "mkv"}, "--container mkv and the name ask for different cont"),
        ("s3://bucket/o_%d.png", {}, "numbered images are written into a local folder only"),
        ("f_%01d.png", {}, r"f_1\.png: is one of the inputs"),
    ],
)
def test_numbered_images_that_cannot_be_written_error(
    tmp_path: Path, output: str, how: dict[str, str], message: str
) -> None:
    touch(tmp_path / "f_1.png")
    target = output if "://" in output else tmp_path / output
    with pytest.raises(OutputError, match=message):
        find_inputs([tmp_path / "f_%d.png"], target, **how)


def test_a_percent_sign_without_a_number_is_no_pattern_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"100%\.png: no such file"):
        find_inputs([tmp_path / "100%.png"], tmp_path / "out.png")


def test_a_dash_is_standard_input_and_output(tmp_path: Path) -> None:
    clip = touch(tmp_path / "a.mp4")
    assert pairs(["-"], "-") == {"pipe -": "-"}
    assert pairs(["-"], tmp_path / "o.mp4") == {"pipe -": str(tmp_path / "o.mp4")}
    assert pairs([clip], "-") == {f"video {clip}": "-"}


def test_a_dash_that_cannot_be_meant_errors(tmp_path: Path) -> None:
    picture = touch(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"standard input.* cannot be mixed"):
        find_inputs([picture, "-"], tmp_path / "out")
    for inputs in ([picture], [tmp_path], [picture, picture]):
        with pytest.raises(OutputError, match=r"standard output.* holds one video, as y4m"):
            find_inputs(inputs, "-")
    with pytest.raises(OutputError, match="standard input has no name to keep"):
        find_inputs(["-"], tmp_path)


# What is copied along


@pytest.mark.behaviour(18)
def test_labels_are_copied_byte_for_byte_and_keep_names_and_times(tmp_path: Path) -> None:
    root = tmp_path / "in"
    touch(root / "a.png")
    labels = touch(root / "labels" / "a.json", b'{"\x00\xff": 1}')
    os.utime(labels, ns=(1_600_000_000_123_456_789, 1_500_000_000_123_456_789))
    tree = find_inputs([root], tmp_path / "out", copy_others=True, format="jpg")
    assert [(entry.kind, entry.output.name) for entry in tree.entries] == [
        ("image", "a.jpg"),
        ("other", "a.json"),
    ]
    assert tree.notes == ()
    copy_file(tree.entries[1], overwrite=False)
    copied = tmp_path / "out" / "labels" / "a.json"
    assert copied.read_bytes() == labels.read_bytes()
    assert copied.stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert [path.name for path in copied.parent.iterdir()] == ["a.json"]


@pytest.mark.behaviour(18)
def test_labels_that_are_named_beside_pictures_are_copied_on_request(tmp_path: Path) -> None:
    inputs = [touch(tmp_path / "a.png"), touch(tmp_path / "a.json", b"{}")]
    tree = find_inputs(inputs, tmp_path / "out", copy_others=True)
    assert [entry.kind for entry in tree.entries] == ["image", "other"]
    # Without --copy-others they are to be translated, and fail when they are opened as a video.
    tree = find_inputs(inputs, tmp_path / "out")
    assert [entry.kind for entry in tree.entries] == ["image", "video"]


@pytest.mark.behaviour(18)
def test_a_folder_of_labels_alone_can_be_copied(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.txt")
    tree = find_inputs([tmp_path / "in"], tmp_path / "out", copy_others=True)
    assert [entry.kind for entry in tree.entries] == ["other"]


@pytest.mark.behaviour(18, 23)
def test_a_copy_over_an_existing_file_errors(tmp_path: Path) -> None:
    entry = Entry("other", touch(tmp_path / "a.txt", b"new"), touch(tmp_path / "b.txt", b"old"))
    with pytest.raises(OutputError, match=r"b\.txt: it exists already"):
        copy_file(entry, overwrite=False)
    assert entry.output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]
    copy_file(entry, overwrite=True)
    assert entry.output.read_bytes() == b"new"


@pytest.mark.behaviour(18)
def test_a_copy_of_what_cannot_be_read_or_written_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.txt: no such file"):
        copy_file(Entry("other", tmp_path / "gone.txt", tmp_path / "b.txt"), overwrite=False)
    taken = touch(tmp_path / "taken")
    with pytest.raises(OutputError, match=r"taken/b\.txt"):
        copy_file(Entry("other", touch(tmp_path / "a.txt"), taken / "b.txt"), overwrite=False)


def test_looking_for_inputs_loads_nothing_heavy() -> None:
    code = (
        "import sys, cyclegan_batch.job.inputs; "
        "print(*sorted({'cv2', 'PIL', 'av', 'numpy', 'onnx', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
