"""From URLs of a store to the list of objects and their outputs."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cyclegan_batch import remote
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.file_identity import identity_of, identity_of_status
from cyclegan_batch.job.inputs import copy_file, find_inputs
from cyclegan_batch.job.inputs.globs import matching, search
from cyclegan_batch.media.formats import Entry
from cyclegan_batch.remote import RemotePath, forget
from cyclegan_batch.wording import grouped
from tests.job.test_inputs import JPEG, NAMES, PNG, pairs, touch
from tests.needs import need

need("fsspec", "s3fs")

TREE = ("a/1.png", "a/2.jpg", "a/b/3.png", "a/b/clip.mp4", "a/b/label.json", "c/4.png", "5.png")


def put(prefix: RemotePath, *names: str, content: bytes = PNG) -> None:
    for name in names:
        (prefix / name).write_bytes(content)


def matched(names: tuple[str, ...], glob: str) -> list[str]:
    """Return which of the objects ``names`` a glob matches."""
    return [str(path) for path in dict.fromkeys(matching(map(Path, names), Path(glob).parts))]


@pytest.mark.parametrize(
    "glob",
    [
        "*",
        "**",
        "*.png",
        "**/*.png",
        "a/*",
        "a/**",
        "a/**/*.png",
        "**/b",
        "**/b/*",
        "?/*.png",
        "a/b/[3-5].png",
        "**/**/3.png",
        ".h/*",
        "*/.h/*",
        "**/.h.png",
        "[!a]/*",
        "a",
        "5.png",
    ],
)
def test_a_glob_matches_in_a_store_what_it_matches_in_a_folder(tmp_path: Path, glob: str) -> None:
    names = (*TREE, ".h/6.png", ".h/b/7.png", "a/.h/8.png", "a/.h.png", ".h.png", "b/b/9.png")
    for name in names:
        touch(tmp_path / name)
    found = sorted({str(path) for path, _ in search(tmp_path, Path(glob).parts)})
    assert sorted(matched(names, glob)) == found


@pytest.mark.behaviour(13)
def test_a_prefix_is_mirrored_like_a_folder(memory_store: RemotePath, tmp_path: Path) -> None:
    put(memory_store / "raw", *TREE, ".hidden/x.png", "a/.part.png")
    for name in (*TREE, ".hidden/x.png", "a/.part.png"):
        touch(tmp_path / "raw" / name, PNG)
    several: list[dict[str, Any]]
    several = [{}, {"copy_others": True}, {"format": "jpg"}, {"part": (2, 3)}]
    for options in several:
        tree = find_inputs([memory_store / "raw"], tmp_path / "out", **options)
        local = find_inputs([tmp_path / "raw"], tmp_path / "out", **options)
        assert [(each.kind, each.output) for each in tree.entries] == [
            (each.kind, each.output) for each in local.entries
        ]
        assert [str(each.source) for each in tree.entries] == [
            str(each.source).replace(str(tmp_path), "memory://bucket") for each in local.entries
        ]
        assert [str(note).replace("memory://bucket", str(tmp_path)) for note in tree.notes] == [
            *map(str, local.notes)
        ]
        for entry in tree.entries:
            assert entry.status == identity_of([entry.source], hashed=False)


def test_the_output_of_a_prefix_may_be_a_prefix(memory_store: RemotePath) -> None:
    put(memory_store / "raw", "a/1.png", "2.wmv")
    expected = {
        "image memory://bucket/raw/a/1.png": "memory://bucket/out.d/x/a/1.png",
        "video memory://bucket/raw/2.wmv": "memory://bucket/out.d/x/2.mkv",
    }
    for output in ("memory://bucket/out.d/x", "memory://bucket/out.d/x/"):
        assert dict(sorted(pairs([str(memory_store / "raw/")], output).items())) == dict(
            sorted(expected.items())
        )


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("memory://bucket/out.png", "memory://bucket/out.png"),
        ("memory://bucket/out", "memory://bucket/out/1.png"),
        ("memory://bucket/v1.0/", "memory://bucket/v1.0/1.png"),
        ("memory://bucket.d", "memory://bucket.d/1.png"),
        ("local.png", "local.png"),
        ("local/", "local/1.png"),
    ],
)
def test_one_object_becomes_a_file_or_keeps_its_name_in_a_folder(
    memory_store: RemotePath, output: str, expected: str
) -> None:
    put(memory_store, "raw/1.png")
    assert pairs(["memory://bucket/raw/1.png"], output) == {
        "image memory://bucket/raw/1.png": expected
    }


def test_objects_prefixes_globs_and_files_mix(memory_store: RemotePath, tmp_path: Path) -> None:
    put(memory_store, "one.png", "two/a.png", "two/b/c.png", "three/x.png", "three/y.jpg")
    local = touch(tmp_path / "local.png")
    found = pairs(
        [memory_store / "one.png", memory_store / "two", "memory://bucket/three/*.jpg", local],
        tmp_path / "out",
    )
    assert {
        key: str(Path(value).relative_to(tmp_path / "out")) for key, value in found.items()
    } == {
        "image memory://bucket/one.png": "one.png",
        "image memory://bucket/two/a.png": "two/a.png",
        "image memory://bucket/two/b/c.png": "two/b/c.png",
        "image memory://bucket/three/y.jpg": "three/y.jpg",
        f"image {local}": "local.png",
    }


def test_an_object_whose_name_looks_like_a_glob_is_an_object(memory_store: RemotePath) -> None:
    put(memory_store, "a[1].png", "a1.png")
    assert list(pairs([memory_store / "a[1].png"], "out/")) == ["image memory://bucket/a[1].png"]
    put(memory_store, "f_%03d.png")
    assert list(pairs([memory_store / "f_%03d.png"], "o.png")) == [
        "image memory://bucket/f_%03d.png"
    ]


@pytest.mark.behaviour(17)
def test_names_of_all_kinds_are_found_in_a_store(memory_store: RemotePath) -> None:
    names = [os.fsdecode(name) for name in NAMES]
    put(memory_store / "raw", *names)
    found = find_inputs([memory_store / "raw"], "out").entries
    assert {entry.source.name for entry in found} == set(names)
    assert {str(entry.output) for entry in found} == {f"out/{name}" for name in names}


@pytest.mark.parametrize(("content", "kind"), [(PNG, "image"), (JPEG, "image"), (b"", "video")])
def test_an_object_without_an_extension_is_known_by_its_first_bytes(
    memory_store: RemotePath, content: bytes, kind: str
) -> None:
    put(memory_store, "photo", content=content)
    (entry,) = find_inputs([memory_store / "photo"], "out/").entries
    assert entry.kind == kind


def test_keys_that_are_no_paths_are_told_and_left_out(memory_store: RemotePath) -> None:
    put(memory_store / "raw", "1.png")
    for key in ("raw//2.png", "raw/x/../../3.png"):
        memory_store._store.store[f"/bucket/{key}"] = memory_store._store.store["/bucket/raw/1.png"]
    tree = find_inputs([memory_store / "raw"], "out")
    assert [entry.source.name for entry in tree.entries] == ["1.png"]
    (note,) = grouped(tree.notes)
    assert note.startswith(
        "memory://bucket/raw: 2 objects were left out, since their keys are no relative path: "
    )


# Refusals


@pytest.mark.parametrize("name", ["none.png", "none", "none/"])
def test_an_object_that_is_not_there_errors(memory_store: RemotePath, name: str) -> None:
    put(memory_store, "1.png")
    with pytest.raises(InputError, match="no such object, and none beneath it; check the bucket"):
        find_inputs([f"{memory_store}/{name}"], "out")


def test_a_glob_that_matches_nothing_errors(memory_store: RemotePath) -> None:
    put(memory_store, "raw/1.png")
    with pytest.raises(InputError, match=r"raw/\*.jpg: no file of this name, and none that match"):
        find_inputs(["memory://bucket/raw/*.jpg"], "out")


def test_a_prefix_with_nothing_to_translate_errors(memory_store: RemotePath) -> None:
    put(memory_store, "raw/1.txt")
    with pytest.raises(InputError, match=r"bucket/raw: nothing to translate in this.* 1 \.txt"):
        find_inputs([memory_store / "raw"], "out")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("memory://bucket/raw", "is the input folder"),
        ("memory://bucket/raw/out", "lies inside the input folder"),
        ("memory://bucket/raw/a/b/c/", "lies inside the input folder"),
    ],
)
@pytest.mark.behaviour(13)
def test_an_output_inside_an_input_prefix_errors(
    memory_store: RemotePath, output: str, message: str
) -> None:
    put(memory_store, "raw/1.png")
    with pytest.raises(OutputError, match=message):
        find_inputs([memory_store / "raw"], output)


def test_an_output_that_is_an_input_errors(memory_store: RemotePath) -> None:
    put(memory_store, "raw/1.png", "raw/2.png")
    with pytest.raises(OutputError, match=r"would replace the input memory://bucket/raw/1\.png"):
        find_inputs([memory_store / "raw/1.png"], "memory://bucket/raw/1.png")
    with pytest.raises(OutputError, match="is the input folder"):
        find_inputs(["memory://bucket/raw/*.png"], "memory://bucket/raw")


def test_an_object_that_is_given_twice_errors(memory_store: RemotePath) -> None:
    put(memory_store, "raw/1.png")
    with pytest.raises(InputError, match="is given twice"):
        find_inputs([memory_store / "raw/1.png"] * 2, "out")


def test_numbered_images_of_a_store_errors(memory_store: RemotePath) -> None:
    put(memory_store, "f_000001.png")
    with pytest.raises(InputError, match="numbered images are played from a local folder only"):
        find_inputs(["memory://bucket/f_%06d.png"], "out.mp4")


def test_a_list_in_a_store_errors(memory_store: RemotePath) -> None:
    put(memory_store, "names.txt")
    with pytest.raises(InputError, match=r"^@memory:/bucket/names\.txt: a list is a local file"):
        find_inputs(["@memory://bucket/names.txt"], "out")


@pytest.mark.parametrize("url", ["s3://b*/a", "s3://*", "s3://b[12]/*.png"])
def test_a_glob_of_buckets_errors(url: str) -> None:
    with pytest.raises(InputError, match="names no bucket; "):
        find_inputs([url], "out")


def test_a_url_in_a_list_is_the_name_of_a_file(memory_store: RemotePath, tmp_path: Path) -> None:
    put(memory_store, "1.png")
    names = touch(tmp_path / "names.txt", b"memory://bucket/1.png\n")
    (entry,) = find_inputs([f"@{names}"], tmp_path / "out").entries
    assert entry.kind == "unread"
    assert not isinstance(entry.source, RemotePath)


# Copies


@pytest.mark.behaviour(18)
def test_a_copy_of_an_object_has_its_bytes_and_its_time(
    memory_store: RemotePath, tmp_path: Path
) -> None:
    put(memory_store, "raw/a/label.json", content=b"{}")
    status = identity_of([memory_store / "raw/a/label.json"], hashed=False)
    entry = Entry("other", memory_store / "raw/a/label.json", tmp_path / "a/l.json", status=status)
    copy_file(entry, overwrite=False)
    assert entry.output.read_bytes() == b"{}"
    assert entry.output.stat().st_mtime_ns == status.mtime_ns
    with pytest.raises(OutputError, match="it exists already"):
        copy_file(entry, overwrite=False)
    again = Entry("other", entry.source, memory_store / "copy.json", status=status)
    copy_file(again, overwrite=False)
    assert (memory_store / "copy.json").read_bytes() == b"{}"
    gone = Entry("other", memory_store / "gone", tmp_path / "gone", status=status)
    with pytest.raises(InputError, match="gone: no such object"):
        copy_file(gone, overwrite=False)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


# S3


def test_s3_is_asked_once_for_a_thousand_objects(s3: RemotePath, requests: Counter[str]) -> None:
    put(s3 / "raw", "a.png", "1.png", "2.png", "x/3.png")
    requests.clear()
    tree = find_inputs([s3 / "raw"], "out")
    # Whether it is an object or a prefix takes two requests, and the listing one.
    assert (len(tree.entries), dict(requests)) == (4, {"HeadObject": 1, "ListObjectsV2": 2})
    forget()
    requests.clear()
    assert len(find_inputs([f"{s3}/raw/[12].png"], "out").entries) == 2
    # Whether an object has the name of the glob takes two requests, too.
    assert dict(requests) == {"HeadObject": 1, "ListObjectsV2": 2}
    forget()
    requests.clear()
    (entry,) = find_inputs([s3 / "raw/1.png"], "out/").entries
    assert dict(requests) == {"HeadObject": 1}
    assert entry.status == identity_of_status((s3 / "raw").beneath()[Path("1.png")])


def test_s3_lists_only_what_begins_like_the_glob(
    s3: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, "train-1.png", "train-2.jpg", "train-3/a.png", "test-1.png", "t.png", "x/train-1.png")
    put(s3, "x/train-x/b.png", "x/y.png")
    listed: dict[str, int] = {}
    real = RemotePath.beneath

    def recorded(prefix: RemotePath, starting: str = "") -> dict[Path, os.stat_result]:
        found = real(prefix, starting)
        listed[starting] = len(found)
        return found

    monkeypatch.setattr(RemotePath, "beneath", recorded)
    for glob, count in (("train-*.png", 1), ("train-*", 3), ("x/train-*", 2), ("*/train-1.png", 1)):
        assert len(find_inputs([f"{s3}/{glob}"], "out").entries) == count, glob
    assert listed == {"train-": 2, "": 8}


@pytest.mark.parametrize("key", ["/raw", "", "/raw/*.png"])
def test_a_bucket_that_is_not_there_errors(s3: RemotePath, key: str) -> None:
    with pytest.raises(InputError, match=r"no such object, and none beneath|none that matches"):
        find_inputs([f"{s3}-none{key}"], "out")


def test_a_store_without_credentials_errors(
    s3: RemotePath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote, "_file_system", remote._file_system.__wrapped__)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"the store needs credentials \(Unable to locate.*check"):
        find_inputs([s3 / "raw"], "out")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied; check the creden"),
        (OSError(errno.EREMOTEIO, "the store answers: SlowDown"), "cannot be read: the store answ"),
    ],
)
@pytest.mark.parametrize("name", ["raw", "raw/*.png", "f_%02d.png"])
def test_what_a_store_refuses_errors(
    memory_store: RemotePath,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    message: str,
    name: str,
) -> None:
    def refuse(*which: object) -> NoReturn:
        raise error

    monkeypatch.setattr(memory_store._store, "info", refuse)
    with pytest.raises(InputError, match=f"^memory://bucket/{re.escape(name)}: {message}"):
        find_inputs([f"{memory_store}/{name}"], "out")
