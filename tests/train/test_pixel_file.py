"""Images that do not fit into memory: a file of them, from which a crop reads its part."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cyclegan_train import image_files, pixel_file  # noqa: E402
from cyclegan_train.batches import Feed, Sampler  # noqa: E402
from cyclegan_train.data import Domain, load_domains  # noqa: E402
from cyclegan_train.pixel_file import Disk, PixelFile, stored_bytes  # noqa: E402
from cyclegan_train.settings import DataConfig  # noqa: E402
from torchvision.transforms.v2 import functional as tv  # noqa: E402

from cyclegan_batch.errors import InputError  # noqa: E402 (after the check for torch)
from cyclegan_batch.frames import SizeRequirements  # noqa: E402

SIZES = SizeRequirements(4, 8)
MODES = (
    "resize_and_crop",
    "crop",
    "scale_width",
    "scale_width_and_crop",
    "scale_shortside",
    "scale_shortside_and_crop",
    "none",
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def noise(number: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, numbers in (("trainA", range(5)), ("trainB", range(10, 13))):
        (tmp_path / name).mkdir()
        for number in numbers:
            picture = noise(number, 40 + 9 * number, 75 - 2 * number)
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    (tmp_path / "disk").mkdir()
    return tmp_path


def domains(data: Path, disk: bool, memory_gb: float = 0.0, **changes) -> tuple[Domain, Domain]:
    config = DataConfig(load_size=70, crop_size=64, memory_gb=memory_gb, workers=2)
    return load_domains(
        (data / "trainA", data / "trainB"),
        dataclasses.replace(config, **changes),
        channels=(3, 1),
        sizes=SIZES,
        disk=Disk(data / "disk") if disk else None,
    )


def batches(a: Domain, b: Domain, count: int = 12) -> list[torch.Tensor]:
    feed = Feed(a, b, Sampler(len(a), len(b), seed=7), workers=2)
    try:
        return [image for _ in range(count) for image in feed.next()]
    finally:
        feed.close()


@pytest.mark.parametrize("preprocess", MODES)
def test_wherever_images_are_kept_the_batches_are_the_same(data, preprocess):
    a, b = domains(data, disk=True, preprocess=preprocess)
    assert (a.cached, b.cached) == (None, None)
    assert (len(a.stored), len(b.stored)) == (5, 3)
    assert a.where.startswith("in a temporary file of ")
    in_memory = domains(data, disk=True, memory_gb=4.0, preprocess=preprocess)
    assert len(in_memory[0].cached) == 5
    decoded = domains(data, disk=False, preprocess=preprocess)
    assert (decoded[0].cached, decoded[0].stored) == (None, None)
    for others in (in_memory, decoded):
        assert others[0].digest == a.digest
        assert others[0].bytes == a.bytes
        assert others[0].shapes == a.shapes
        for one, other in zip(batches(a, b), batches(*others), strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()
        for number in range(5):
            assert torch.equal(a.middle(number), others[0].middle(number))
            assert torch.equal(a.prepared(number), others[0].prepared(number))
    a.close()
    b.close()


def test_the_middle_is_that_of_torchvision_and_keeps_no_whole_picture(data):
    for disk, memory_gb in ((True, 0.0), (True, 4.0), (False, 0.0)):
        a, _ = domains(data, disk=disk, memory_gb=memory_gb, preprocess="crop")
        for number in range(5):
            middle = a.middle(number)
            assert torch.equal(middle, tv.center_crop(a.prepared(number), [64]))
            assert middle.untyped_storage().nbytes() == middle.nbytes


@pytest.mark.parametrize("channels", [1, 3])
def test_every_part_of_every_size_is_read_back(tmp_path, channels):
    file = PixelFile(tmp_path)
    sizes = [(1, 1), (31, 33), (32, 64), (100, 65), (64, 3)]
    pictures = [noise(i, *size, channels) for i, size in enumerate(sizes)]
    with ThreadPoolExecutor(4) as pool:
        stored = list(pool.map(file.put, pictures))
    assert file.bytes == sum(stored_bytes(*size, channels) for size in sizes)
    draw = random.Random(1)
    for picture, image in zip(pictures, stored, strict=True):
        rows, columns = picture.shape[:2]
        assert image.shape == (channels, rows, columns)
        for _ in range(60):
            top, left = draw.randrange(rows), draw.randrange(columns)
            height, width = draw.randint(1, rows - top), draw.randint(1, columns - left)
            part = image.window(top, left, height, width)
            assert part.is_contiguous()
            wanted = picture[top : top + height, left : left + width].transpose(2, 0, 1)
            np.testing.assert_array_equal(part.numpy(), wanted)


def test_a_crop_reads_its_own_part_only(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(1, 1000, 1100)).save(tmp_path / "in" / "a.png", compress_level=1)
    config = DataConfig(preprocess="crop", crop_size=256)
    domain = Domain(tmp_path / "in", config, channels=3, sizes=SIZES, disk=Disk(tmp_path))
    reads: list[int] = []
    real = os.preadv

    def preadv(*arguments):
        reads.append(real(*arguments))
        return reads[-1]

    monkeypatch.setattr(os, "preadv", preadv)
    domain.augmented(0, random.Random(1))  # what is imported or allocated once
    tracemalloc.start()
    for seed in range(10):
        reads.clear()
        domain.augmented(0, random.Random(seed))
        assert len(reads) <= 9
        assert sum(reads) <= 288 * 288 * 3
    assert tracemalloc.get_traced_memory()[1] < 2**20  # of an image of 3.3 MB
    tracemalloc.stop()
    domain.close()


def test_no_name_is_on_the_disk_at_any_time_and_the_space_comes_back(tmp_path):
    def deleted() -> list[str]:
        links = Path("/proc/self/fd").iterdir()
        targets = [str(link.readlink()) for link in links if link.is_symlink()]
        return [target for target in targets if str(tmp_path) in target]

    file = PixelFile(tmp_path)
    image = file.put(noise(1, 50, 50))
    assert not list(tmp_path.iterdir())
    assert len(deleted()) == 1
    file.close()
    assert not deleted()
    file = PixelFile(tmp_path)
    image = file.put(noise(1, 50, 50))
    del file, image
    assert not deleted()


def test_ctrl_c_while_images_are_read_leaves_nothing(data):
    def stop(domain: str, read: int, count: int) -> None:
        if (domain, read) == ("B", 2):
            raise KeyboardInterrupt

    config = DataConfig(preprocess="crop", crop_size=64, memory_gb=0.0)
    folders = data / "trainA", data / "trainB"
    disk = Disk(data / "disk")
    with pytest.raises(KeyboardInterrupt):
        load_domains(folders, config, channels=(3, 3), sizes=SIZES, disk=disk, watch=stop)
    assert not list((data / "disk").iterdir())


def usage_of(free: int):
    return lambda folder: shutil._ntuple_diskusage(2 * free, free, free)


def test_a_disk_gives_half_of_what_is_free(data, monkeypatch):
    a = sum(stored_bytes(40 + 9 * number, 75 - 2 * number, 3) for number in range(5))
    monkeypatch.setattr(shutil, "disk_usage", usage_of(2 * a))
    found = domains(data, disk=True, preprocess="crop", crop_size=32)
    assert [len(domain.stored) for domain in found] == [5, 3]
    monkeypatch.setattr(shutil, "disk_usage", usage_of(2 * a - 1))
    found = domains(data, disk=True, preprocess="crop", crop_size=32)
    assert found[0].stored is None
    assert len(found[1].stored) == 3
    assert "decoded as they are needed: a file of them would take 0.1 MiB in " in found[0].where
    # Several processes of one machine share it.
    assert Disk(data, 4).free() == (2 * a - 1) // 2 // 4
    monkeypatch.undo()
    assert Disk(data / "nowhere").free() == 0


@pytest.mark.parametrize("fails", ["pwrite", "fsync", "open"])
def test_a_disk_that_fails_costs_the_file_only(data, monkeypatch, fails):
    wanted = batches(*domains(data, disk=False))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    calls: list[int] = []
    real = os.pwrite

    def fail(*arguments, **named):
        calls.append(1)
        if fails == "pwrite" and len(calls) < 8:
            return real(*arguments)
        raise full

    if fails == "open":
        monkeypatch.setattr(pixel_file.tempfile, "TemporaryFile", fail)
    else:
        monkeypatch.setattr(os, fails, fail)
    a, b = domains(data, disk=True)
    assert calls
    assert (a.stored, b.stored) == (None, None)
    assert a.where.endswith("could not be written: No space left on device")
    for one, other in zip(batches(a, b), wanted, strict=True):
        assert torch.equal(one, other)


def test_a_file_that_cannot_be_read_errors(data, monkeypatch):
    a, _ = domains(data, disk=True)

    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(InputError, match="temporary file of its images cannot be read: Input/out"):
        a.augmented(0, random.Random(1))
    monkeypatch.setattr(os, "preadv", lambda *arguments: 0)
    with pytest.raises(InputError, match="it ends early"):
        a.augmented(0, random.Random(1))


def test_images_that_are_held_out_are_found_in_the_file(data):
    kept, _ = domains(data, disk=True)
    wanted = [kept.prepared(number) for number in range(5)]
    held_out = kept.split_off([1, 3])
    for domain, numbers in ((held_out, (1, 3)), (kept, (0, 2, 4))):
        assert len(domain) == len(numbers)
        for place, number in enumerate(numbers):
            assert torch.equal(domain.prepared(place), wanted[number])


def test_large_images_are_decoded_one_after_the_other(data, monkeypatch):
    room = image_files._Room(64 * 75)
    monkeypatch.setattr(image_files, "_room", room)
    most, now, lock = 0, 0, threading.Lock()
    real = image_files.decode_picture

    def decode(*arguments, header, **named):
        nonlocal most, now
        pixels = header.size[0] * header.size[1]
        with lock:
            now += min(pixels, 64 * 75)
            most = max(most, now)
        picture = real(*arguments, header=header, **named)
        with lock:
            now -= min(pixels, 64 * 75)
        return picture

    monkeypatch.setattr(image_files, "decode_picture", decode)
    a, _ = domains(data, disk=False, workers=8)
    assert len(a) == 5
    assert 0 < most <= 64 * 75


def test_an_image_of_too_many_pixels_is_skipped_and_told_what_to_do(data, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 64 * 75 + 1)
    config = DataConfig(preprocess="crop", crop_size=32)
    domain = Domain(data / "trainA", config, channels=3, sizes=SIZES, disk=Disk(data / "disk"))
    (skipped,) = domain.skipped
    assert skipped.reason.endswith(
        "67×76 is more than the 4801 pixels that an image may have; cut it into several images"
    )
    assert "--max-pixels" not in skipped.reason
