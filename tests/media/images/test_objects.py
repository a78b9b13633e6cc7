"""Images of a store: how they are read, and by how many requests."""

from __future__ import annotations

import errno
import io
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.errors import InputError
from cyclegan_batch.file_identity import FileIdentity, identity_of
from cyclegan_batch.frames import Frame
from cyclegan_batch.job.inputs import find_inputs
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.formats import Entry
from cyclegan_batch.media.images import shards
from cyclegan_batch.media.images.headers import read_header
from cyclegan_batch.media.images.objects import displayed_sizes, open_image
from cyclegan_batch.media.images.shards import ImageSource, PictureTag, plan_images
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.remote import RemotePath, forget
from tests.media.images.test_shards import WHOLE
from tests.media.test_ahead import reading_threads
from tests.needs import need
from tests.synthesis import pictures

need("fsspec", "s3fs")


def source_of(entries: tuple[Entry, ...], **options: object) -> ImageSource:
    options = {"overwrite": True} | options
    (shard,) = plan_images(entries, TranslateOptions(**options), pixel_type="uint8")  # type: ignore[arg-type]
    return ImageSource(shard)


def read(source: ImageSource) -> list[Frame | Dropped]:
    decode = source.converter()
    return [item if isinstance(item, Dropped) else decode(item) for item in source.read()]


def described(frame: Frame | Dropped) -> tuple[str, bytes | str]:
    """Return the name of an image, and its pixels or what is wrong with it."""
    if isinstance(frame, Dropped):
        name = frame.name.rpartition("/")[2]
        return name, str(frame.error).replace(frame.name, name)
    assert isinstance(frame.tag, PictureTag)
    return frame.tag.entry.source.name, frame.pixels.tobytes()


MIXED = {
    "1.png": pictures.png(pictures.photo(16, 8)),
    "2.png": pictures.png(pictures.photo(8, 16)),
    "3.png": b"broken",
    "4.jpg": pictures.pillow(pictures.photo(8, 16), "JPEG", exif=pictures.exif(6)),
    "5.png": pictures.png(pictures.photo(8, 16)),
    "6.png": b"",
    "7.webp": WHOLE["webp"],
    "8.png": pictures.png(pictures.photo(16, 8)),
}


def put_mixed(memory_store: RemotePath, folder: Path) -> tuple[ImageSource, ImageSource]:
    """Return the sources of the same images of a store and of a folder."""
    folder.mkdir()
    for name, data in MIXED.items():
        (memory_store / "in" / name).write_bytes(data)
        (folder / name).write_bytes(data)
    remote = source_of(find_inputs([memory_store / "in"], "out").entries)
    return remote, source_of(find_inputs([folder], "out").entries)


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize("kept", [0, 100, 1 << 20])
def test_images_of_a_store_come_in_the_order_of_those_of_a_folder(
    memory_store: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, kept: int
) -> None:
    monkeypatch.setattr(shards, "_SMALL_OBJECT", small)
    monkeypatch.setattr(shards, "_KEPT", kept)
    remote, local = put_mixed(memory_store, tmp_path / "in")
    expected = list(map(described, read(local)))
    assert [name for name, _ in expected] == [
        "1.png", "4.jpg", "8.png", "2.png", "5.png", "3.png", "6.png", "7.webp",
    ]  # fmt: skip
    assert list(map(described, read(remote))) == expected
    assert remote.notes == local.notes


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_one_shard_holds_images_of_a_store_and_files(
    memory_store: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(shards, "_SMALL_OBJECT", small)
    monkeypatch.setattr(shards, "_SMALL", small)
    remote, local = put_mixed(memory_store, tmp_path / "in")
    names = [entry.source for entry in (*remote.shard.entries[::2], *local.shard.entries[1::2])]
    mixed = source_of(find_inputs(sorted(names, key=lambda path: path.name), "out").entries)
    assert list(map(described, read(mixed))) == list(map(described, read(local)))


def test_an_image_that_was_replaced_by_a_larger_one_since_it_was_listed_is_read(
    memory_store: RemotePath,
) -> None:
    old, new = (pictures.png(pictures.photo(side, side)) for side in (8, 32))
    (memory_store / "in/1.png").write_bytes(old)
    (entry,) = find_inputs([memory_store / "in"], "out").entries
    memory_store._store.pipe_file("bucket/in/1.png", new)
    (frame,) = read(source_of((entry,)))
    assert isinstance(frame, Frame)
    assert isinstance(frame.tag, PictureTag)
    assert (frame.pixels.shape, frame.tag.identity.size) == ((32, 32, 3), len(new))


def test_an_image_of_a_store_is_read_by_one_request(s3: RemotePath, requests: Counter[str]) -> None:
    for number in range(12):
        side = 16 if number % 3 else 24
        (s3 / f"in/{number}.png").write_bytes(pictures.png(pictures.photo(side, side)))
    entries = find_inputs([s3 / "in"], "out").entries
    requests.clear()
    assert len(read(source_of(entries))) == 12
    assert requests == {"GetObject": 12}


def test_an_output_in_a_store_needs_no_request_before_it_is_put(
    s3: RemotePath, requests: Counter[str], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.png").write_bytes(MIXED["1.png"])
    (s3 / "in/1.png").write_bytes(MIXED["1.png"])
    for source in (tmp_path / "in", s3 / "in"):
        entries = find_inputs([source], f"{s3}/out").entries
        forget()  # as in a worker process
        requests.clear()
        (frame,) = read(source_of(entries, overwrite=False))
        assert isinstance(frame, Frame)
        assert requests["HeadObject"] + requests["ListObjectsV2"] == 0


def test_a_large_image_of_a_store_is_read_after_its_header(
    s3: RemotePath, requests: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SMALL_OBJECT", 1000)
    for number in range(3):
        (s3 / f"in/{number}.jpg").write_bytes(pictures.pillow(pictures.photo(400, 400), "JPEG"))
    entries = find_inputs([s3 / "in"], "out").entries
    requests.clear()
    assert len(read(source_of(entries))) == 3
    assert requests == {"GetObject": 6}


@pytest.mark.behaviour(46)
def test_an_object_too_large_to_be_an_image_is_not_read_errors(
    s3: RemotePath, requests: Counter[str]
) -> None:
    (s3 / "a.png").write_bytes(MIXED["1.png"])
    status = FileIdentity(1 << 33, 1)
    entry = Entry("image", s3 / "a.png", Path("b.png"), status=status)
    requests.clear()
    (dropped,) = read(source_of((entry,)))
    assert isinstance(dropped, Dropped)
    with pytest.raises(InputError, match="8589934592 bytes are too many for an image"):
        raise dropped.error
    assert not requests


@pytest.mark.behaviour(21)
@pytest.mark.parametrize("hashed", [False, True])
def test_the_identity_of_an_image_of_a_store_is_that_of_the_listing(
    memory_store: RemotePath, hashed: bool
) -> None:
    (memory_store / "in/a.png").write_bytes(MIXED["1.png"])
    entries = find_inputs([memory_store / "in"], "out").entries
    (frame,) = read(source_of(entries, hash_inputs=hashed))
    assert isinstance(frame, Frame)
    assert isinstance(frame.tag, PictureTag)
    assert frame.tag.identity == identity_of([memory_store / "in/a.png"], hashed=hashed)
    # What was replaced between the listing and the reading is another state.
    (memory_store / "in/a.png").write_bytes(MIXED["2.png"] + b"more")
    (frame,) = read(source_of(entries))
    assert isinstance(frame, Frame)
    assert isinstance(frame.tag, PictureTag)
    forget()
    assert frame.pixels.shape == (8, 16, 3)
    assert entries[0].status is not None
    assert not frame.tag.identity.matches(entries[0].status)


def test_an_image_that_the_store_does_not_give_is_lost_alone(
    memory_store: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, _ = put_mixed(memory_store, tmp_path / "in")
    real = RemotePath.read_range

    def refuse_one(path: RemotePath, start: int, end: int) -> bytes:
        if path.name == "2.png":
            raise OSError(errno.EREMOTEIO, "the store answers: SlowDown")
        return real(path, start, end)

    monkeypatch.setattr(RemotePath, "read_range", refuse_one)
    found = dict(map(described, read(remote)))
    assert found["2.png"] == "2.png: cannot be read: the store answers: SlowDown"
    assert sum(isinstance(each, bytes) for each in found.values()) == 5


def test_reading_that_is_stopped_leaves_no_thread(
    memory_store: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(64):
        (memory_store / f"in/{number:02}.png").write_bytes(MIXED["1.png"])
    source = source_of(find_inputs([memory_store / "in"], "out").entries)
    frames = source.read()
    next(frames)
    assert reading_threads()
    frames.close()  # type: ignore[attr-defined]
    source.close()
    deadline = time.monotonic() + 120
    while reading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reading_threads()


# Headers


@pytest.mark.parametrize("name", WHOLE)
def test_a_header_is_read_in_ranges_as_of_a_file(memory_store: RemotePath, name: str) -> None:
    url = memory_store / name
    url.write_bytes(WHOLE[name])
    entry = Entry("image", url, Path("out"), status=identity_of([url], hashed=False))
    with open_image(entry) as file:
        found = read_header(file, name, max_pixels=1 << 20)
    assert found == read_header(io.BytesIO(WHOLE[name]), name, max_pixels=1 << 20)


def test_a_walk_over_a_large_file_takes_few_requests(
    s3: RemotePath, requests: Counter[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG", compress_level=0)  # chunks of 64 KiB
    (s3 / "a.png").write_bytes(file.getvalue())
    entry = Entry("image", s3 / "a.png", Path("o"), status=FileIdentity(len(file.getvalue()), 1))
    requests.clear()
    assert displayed_sizes([entry], max_pixels=1 << 24) == [(1200, 1200)]
    assert requests["GetObject"] <= 7  # 4.1 MiB: 64 KiB, 128 KiB, …


def test_headers_that_cannot_be_read_are_left_out(memory_store: RemotePath, tmp_path: Path) -> None:
    put_mixed(memory_store, tmp_path / "in")
    remote = find_inputs([memory_store / "in"], "out").entries
    local = find_inputs([tmp_path / "in"], "out").entries
    sizes = displayed_sizes(remote, max_pixels=1 << 20)
    assert sizes == displayed_sizes(local, max_pixels=1 << 20)
    assert len(sizes) == 6
    assert displayed_sizes([*local[:1], *remote[:1]], max_pixels=1 << 20) == [(16, 8)] * 2
