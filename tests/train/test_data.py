"""Two folders become batches: what is read, what is refused, and how it is drawn."""

from __future__ import annotations

import dataclasses
import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cyclegan_train.batches import Feed, Sampler  # noqa: E402
from cyclegan_train.data import Domain, find_folders, load_domains  # noqa: E402
from cyclegan_train.settings import DataConfig  # noqa: E402

from cyclegan_batch.errors import InputError  # noqa: E402 (after the check for torch)
from cyclegan_batch.frames import SizeRequirements  # noqa: E402
from tests.synthesis import pictures  # noqa: E402

SIZES = SizeRequirements(4, 8)
TINY = DataConfig(load_size=36, crop_size=32)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def photo(number: int, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def folder_of(path: Path, numbers: range, **sizes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(photo(number, **sizes)).save(path / f"{number}.png")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder_of(tmp_path / "trainA", range(5))
    folder_of(tmp_path / "trainB", range(10, 13))
    return tmp_path


def domains(data: Path, config: DataConfig = TINY, **changes) -> tuple[Domain, Domain]:
    config = dataclasses.replace(config, **changes)
    return load_domains((data / "trainA", data / "trainB"), config, channels=(3, 3), sizes=SIZES)


def domain(folder: Path, channels: int = 3, **changes) -> Domain:
    return Domain(
        folder, dataclasses.replace(TINY, **changes), channels=channels, sizes=SIZES, budget=10**8
    )


def levels(picture: torch.Tensor) -> np.ndarray:
    """Return a picture in [-1, 1] as uint8 ``(H, W, C)``."""
    return ((picture.numpy().transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)


def test_every_level_becomes_the_value_that_torchvision_gives_it(tmp_path):
    from torchvision.transforms.v2 import functional as tv

    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.dstack([ramp, ramp.T, 255 - ramp])).save(tmp_path / "a.png")
    found = domain(tmp_path, preprocess="none")
    scaled = tv.to_dtype(found.prepared(0), torch.float32, scale=True)
    wanted = tv.normalize(scaled, [0.5] * 3, [0.5] * 3)
    assert torch.equal(found.centred(0), wanted)
    feed = Feed(found, found, Sampler(1, 1), workers=1)
    real_A, real_B = feed.next()
    for real in (real_A[0], real_B[0]):
        assert torch.equal(real, wanted) or torch.equal(real, wanted.flip(-1))


def batches(data: Path, count: int, start: dict | None = None, **changes) -> list[torch.Tensor]:
    a, b = domains(data, **changes)
    size = changes.get("batch_size", 1)
    sampler = Sampler(len(a), len(b), seed=7, batch_size=size)
    if start:
        sampler.load_state_dict(start)
    feed = Feed(a, b, sampler, workers=2)
    try:
        return [torch.cat(feed.next()) for _ in range(count)]
    finally:
        feed.close()


def test_batches_that_a_shorter_epoch_no_longer_has_are_not_kept(data):
    a, b = domains(data, memory_gb=0.0)
    sampler = Sampler(len(a), len(b), seed=7)
    feed = Feed(a, b, sampler, workers=2)
    try:
        feed.next()
        for batches in (3, 5, 4):
            sampler.batches = batches
            feed.next()
            coming = [sampler.after(steps) for steps in range(3)]
            assert sorted(feed._coming) == coming
        place = sampler.epoch, sampler.position
        assert torch.equal(feed.next()[0], Feed(a, b, sampler, workers=1)._make(*place)[0])
    finally:
        feed.close()


# Finding


def test_folders_are_found_by_name_with_those_for_testing(data):
    assert find_folders(data, None, None) == (data / "trainA", data / "trainB", None, None)
    folder_of(data / "testB", range(1))
    assert find_folders(data, None, None)[2:] == (None, data / "testB")
    a, b = data / "trainA", data / "trainB"
    assert find_folders(None, a, b) == (a, b, None, None)


def test_folders_for_testing_can_be_named(data):
    a, b, c = data / "trainA", data / "trainB", folder_of(data / "more", range(20, 22))
    folder_of(data / "testB", range(1))
    assert find_folders(None, a, b, c, None) == (a, b, c, None)
    assert find_folders(data, None, None, c, None) == (a, b, c, data / "testB")
    assert find_folders(data, None, None, None, c) == (a, b, None, c)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_folders(data, None, None, None, data / "nowhere")


def test_the_shorter_side_is_scaled_and_the_shape_kept(tmp_path):
    folder_of(tmp_path, range(1), size=(100, 50))
    found = domain(tmp_path, preprocess="scale_shortside_and_crop")
    assert tuple(found.prepared(0).shape[1:]) == (72, 36)


def test_the_first_images_by_name_can_be_all(data):
    a, b = domains(data, max_dataset_size=4)
    assert [path.name for path in a.paths] == ["0.png", "1.png", "2.png", "3.png"]
    assert len(b) == 3
    assert f"{data / 'trainA'}: the first 4 of its 5 images are used (max_dataset_size)" in a.notes
    assert not b.notes
    assert a.digest != domains(data)[0].digest


def test_images_in_the_order_of_their_names():
    sampler = Sampler(5, 3, seed=1, serial=True)
    for epoch in (1, 2):
        draws = [sampler.batch(epoch, place)[0] for place in range(5)]
        assert [(draw.a, draw.b) for draw in draws] == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)]
    # Their cuts are drawn all the same.
    assert sampler.batch(1, 0)[0].seed != sampler.batch(2, 0)[0].seed


def test_batches_before_the_first_epoch():
    sampler = Sampler(5, 3, seed=1)
    assert sampler.before_first == 0
    sampler.begin_before(12)
    left = []
    while sampler.before_first:
        left.append(sampler.before_first)
        sampler.advance()
    assert left == list(range(12, 0, -1))
    assert (sampler.epoch, sampler.position) == (1, 0)


def test_a_folder_without_the_two_errors(tmp_path):
    folder_of(tmp_path / "horses", range(1))
    with pytest.raises(InputError, match=r"holds no trainA \(it holds horses\); name its folders"):
        find_folders(tmp_path, None, None)


def test_missing_folders_error(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_folders(tmp_path / "nowhere", None, None)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_folders(None, tmp_path, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"give one folder .* or both --data-a and"):
        find_folders(None, tmp_path, None)


def test_one_folder_for_both_errors(data):
    a = data / "trainA"
    (data / "link").symlink_to(a)
    with pytest.raises(InputError, match="is both A and B"):
        find_folders(None, a, data / "link")
    with pytest.raises(InputError, match="one is inside the other"):
        find_folders(None, a, data)


def test_two_folders_of_the_same_pictures_error(tmp_path):
    folder_of(tmp_path / "trainA", range(3))
    folder_of(tmp_path / "trainB", range(3))
    with pytest.raises(InputError, match="hold the same images; give two folders of different"):
        domains(tmp_path)


def test_pictures_that_are_in_both_folders_are_counted_and_said(tmp_path):
    folder_of(tmp_path / "trainA", range(5))
    folder_of(tmp_path / "trainB", range(1, 7))
    a, b = domains(tmp_path)
    assert a.notes == [
        "4 of the 5 images of A are in B as well: images in both teach no difference between the "
        "domains"
    ]
    assert not b.notes


def test_an_empty_folder_errors(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"no images in it \(1 other file: \.txt 1\)"):
        domain(tmp_path)


def test_what_is_not_trained_on_is_named_and_counted(tmp_path):
    folder_of(tmp_path / "in", range(2))
    for name in ("a.psd", "b.PSD", "c.svg", ".hidden.psd", "labels.json", "sub/readme"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    found = domain(tmp_path / "in")
    assert len(found) == 2
    assert found.left_out == {".psd": 2, ".svg": 1, ".json": 1, "": 1}
    pictures_note, others_note = found.notes
    assert pictures_note.endswith(
        "in: left out, as images of formats that are not read here: 3 (.psd 2, .svg 1); "
        "convert them to PNG, TIFF or JPEG"
    )
    assert others_note.endswith("in: left out, as no images: 2 (.json 1, without extension 1)")


def test_a_folder_of_damaged_pictures_errors(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"none of its 1 images can be read, .*a\.png"):
        domain(tmp_path)


def test_pictures_are_found_beneath_and_in_the_order_of_their_numbers(tmp_path):
    folder_of(tmp_path / "day" / "two", range(9, 12))
    folder_of(tmp_path / ".hidden", range(1))
    names = [str(path.relative_to(tmp_path)) for path in domain(tmp_path).paths]
    assert names == ["day/two/9.png", "day/two/10.png", "day/two/11.png"]


def test_one_corrupt_picture_is_named_and_left_out(data):
    whole = (data / "trainA" / "2.png").read_bytes()
    (data / "trainA" / "2.png").write_bytes(whole[: len(whole) // 2])
    a, _ = domains(data)
    assert len(a) == 4
    (skipped,) = a.skipped
    assert skipped.path.name == "2.png"
    assert "2.png" in skipped.reason


def test_a_flat_picture_has_a_row_of_pixels_after_scale_width(tmp_path):
    Image.fromarray(photo(1, (1, 400))).save(tmp_path / "a.png")
    for preprocess in ("scale_width", "scale_width_and_crop"):
        found = domain(tmp_path, preprocess=preprocess, load_size=32, crop_size=32)
        assert found.centred(0).shape == (3, 8 if preprocess == "scale_width" else 32, 32)


@pytest.mark.parametrize("preprocess", ["scale_shortside", "scale_width", "crop"])
def test_a_narrow_picture_that_becomes_too_large_is_left_out(tmp_path, preprocess, monkeypatch):
    monkeypatch.setattr("cyclegan_train.data.MAX_PIXELS", 32 * 32 * 50)
    Image.fromarray(photo(1, (51, 1))).save(tmp_path / "1.png")
    Image.fromarray(photo(2, (50, 1))).save(tmp_path / "2.png")
    for memory in (10**8, 0):
        config = dataclasses.replace(TINY, preprocess=preprocess, load_size=32)
        found = Domain(tmp_path, config, channels=3, sizes=SIZES, budget=memory)
        assert [path.name for path in found.paths] == ["2.png"]
        (skipped,) = found.skipped
        assert f"1.png: 1×51 becomes 32×{32 * 51} by preprocess = {preprocess}" in skipped.reason


# Reading


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "tiff", "avif", "jp2"])
def test_every_format_is_read(tmp_path, suffix):
    picture = pictures.photo(40, 48)
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", quality=95)
    read = levels(domain(tmp_path, preprocess="none").centred(0))
    assert read.shape == (40, 48, 3)
    assert np.abs(read.astype(int) - picture).mean() < 8


def test_exif_turns_a_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(photo(1)).save(tmp_path / "a.png", exif=exif)
    read = levels(domain(tmp_path, preprocess="none").centred(0))
    np.testing.assert_array_equal(read, np.rot90(photo(1), -1))


def test_sixteen_bits_become_eight_by_rounding(tmp_path):
    samples = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(samples).save(tmp_path / "a.png")
    read = levels(domain(tmp_path, preprocess="none").centred(0))
    expected = np.rint(samples / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(read, np.repeat(expected[..., None], 3, 2))


def test_twelve_bits_in_sixteen_are_said_and_white_mends_them(tmp_path):
    samples = (np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 4).clip(0, 4095)
    for name in ("a.png", "b.png"):
        Image.fromarray(samples).save(tmp_path / name)
    found = domain(tmp_path, preprocess="none")
    assert any(
        ", 2 of its images: its 16 bits hold no level above 4095" in note for note in found.notes
    )
    found = domain(tmp_path, preprocess="none", white=4095)
    assert not any("no level above" in note for note in found.notes)
    expected = np.rint(samples / 4095 * 255).astype(np.uint8)
    np.testing.assert_array_equal(levels(found.centred(0))[..., 0], expected)


def test_transparency_is_laid_on_white_and_said(tmp_path):
    pixels = np.dstack([photo(1, (32, 32)), np.full((32, 32), 255, np.uint8)])
    pixels[:16, :, 3] = 0
    pixels[16:20, :, 3] = 51
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = domain(tmp_path, preprocess="none")
    read = levels(found.centred(0))
    assert (read[:16] == 255).all()
    np.testing.assert_array_equal(read[20:], pixels[20:, :, :3])
    mixed = np.rint(pixels[16:20, :, :3] * 0.2 + 255 * 0.8)
    assert np.abs(read[16:20] - mixed).max() <= 1
    assert "1 images with transparency are laid on white" in found.notes[0]


def test_one_channel_is_luma(tmp_path):
    folder_of(tmp_path, range(1))
    read = levels(domain(tmp_path, channels=1, preprocess="none").centred(0))
    luma = photo(0) @ np.array([0.299, 0.587, 0.114])
    assert read.shape == (40, 48, 1)
    assert np.abs(read[..., 0] - luma).max() <= 1


# Cutting


def test_the_resize_is_the_reference_implementations(tmp_path):
    side = 60
    smooth = np.asarray(Image.fromarray(photo(3, (6, 6))).resize((side, side), Image.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / "a.png")
    prepared = domain(tmp_path).prepared(0).numpy().transpose(1, 2, 0)
    expected = np.asarray(Image.fromarray(smooth).resize((36, 36), Image.BICUBIC))
    assert np.abs(prepared.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("preprocess", "size", "batch"),
    [
        ("resize_and_crop", (40, 48), (32, 32)),
        ("crop", (40, 48), (32, 32)),
        ("crop", (16, 48), (32, 32)),
        ("scale_width", (50, 100), (16, 36)),
        ("scale_width_and_crop", (50, 100), (32, 32)),
        ("scale_shortside", (50, 100), (36, 72)),
        ("scale_shortside", (100, 50), (72, 36)),
        ("scale_shortside_and_crop", (200, 100), (32, 32)),
        ("none", (41, 47), (40, 48)),
        ("none", (3, 9), (8, 8)),
    ],
)
def test_every_preprocess_gives_the_size_it_promises(tmp_path, preprocess, size, batch):
    folder_of(tmp_path, range(1), size=size)
    found = domain(tmp_path, preprocess=preprocess)
    assert tuple(found.augmented(0, random.Random(1)).shape[1:]) == batch
    assert tuple(found.centred(0).shape[1:]) == batch


def test_a_cut_is_a_part_of_the_picture_mirrored_every_other_time(tmp_path):
    folder_of(tmp_path, range(1))
    found = domain(tmp_path, preprocess="crop")
    whole, corners, mirrored = photo(0), set(), 0
    for seed in range(200):
        cut = found.augmented(0, random.Random(seed)).numpy().transpose(1, 2, 0)
        for flipped, candidate in ((False, cut), (True, cut[:, ::-1])):
            for top in range(9):
                for left in range(17):
                    if (whole[top : top + 32, left : left + 32] == candidate).all():
                        corners.add((top, left))
                        mirrored += flipped
    assert {top for top, _ in corners} == set(range(9))
    assert {left for _, left in corners} == set(range(17))
    assert 70 < mirrored < 130


def test_without_flip_the_cut_is_the_same(tmp_path):
    folder_of(tmp_path, range(1))
    plain = domain(tmp_path, flip=False)
    flipped = domain(tmp_path)
    for seed in range(10):
        one = plain.augmented(0, random.Random(seed))
        other = flipped.augmented(0, random.Random(seed))
        assert torch.equal(one, other) or torch.equal(one, other.flip(-1))


def test_pictures_of_two_sizes_in_a_batch_error(data):
    folder_of(data / "trainA", range(1), size=(48, 48))
    # Before a step is made, though four of its five pictures have one size.
    with pytest.raises(
        InputError, match=r"1\.png: 48×40 does not go into one batch with 48×48; use batch_size 1"
    ):
        domains(data, preprocess="none", batch_size=2)
    assert len(domains(data, preprocess="none")[0]) == 5


def test_a_cut_that_the_generator_cannot_take_errors(data):
    with pytest.raises(InputError, match="crop_size = 30: the generator takes sides in multiples"):
        domains(data, crop_size=30)


# Drawing


def test_an_epoch_shows_every_picture_of_the_larger_folder_once():
    sampler = Sampler(5, 3, seed=1)
    for epoch in (1, 2, 3):
        draws = [sampler.batch(epoch, place)[0] for place in range(sampler.batches)]
        assert sorted(draw.a for draw in draws) == list(range(5))
    orders = {tuple(sampler.batch(e, p)[0].a for p in range(5)) for e in range(1, 9)}
    assert len(orders) > 4


def test_the_smaller_folder_comes_again_within_an_epoch():
    sampler = Sampler(2, 6, seed=1)
    shown = [sampler.batch(1, place)[0].a for place in range(6)]
    assert sorted(shown) == [0, 0, 0, 1, 1, 1]


def test_the_partner_is_drawn_at_random():
    sampler = Sampler(50, 50, seed=1)
    pairs = [sampler.batch(epoch, p)[0] for epoch in range(1, 41) for p in range(50)]
    counts = np.bincount([draw.b for draw in pairs], minlength=50)
    assert counts.min() > 15
    assert counts.max() < 75
    assert len({draw.b for draw in pairs if draw.a == 7}) > 20


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_going_on_in_the_middle_of_an_epoch_gives_the_same_batches(data, memory_gb, batch_size):
    changes = {"memory_gb": memory_gb, "batch_size": batch_size}
    per_epoch = 5 // batch_size
    whole = batches(data, 3 * per_epoch, **changes)
    sampler = Sampler(5, 3, seed=7, batch_size=batch_size)
    for _ in range(per_epoch + 1):
        sampler.advance()
    rest = batches(data, 2 * per_epoch - 1, start=sampler.state_dict(), **changes)
    for one, other in zip(whole[per_epoch + 1 :], rest, strict=True):
        assert torch.equal(one, other)


def test_what_is_kept_and_what_is_decoded_when_needed_are_the_same(data):
    a, b = domains(data, memory_gb=0.0)
    assert a.cached is None
    assert b.cached is None
    a, b = domains(data)
    assert len(a.cached) == 5
    assert a.cached[0].dtype == torch.uint8
    for one, other in zip(batches(data, 12), batches(data, 12, memory_gb=0.0), strict=True):
        assert torch.equal(one, other)


def test_a_and_b_are_cut_by_themselves(tmp_path):
    column = np.repeat(np.arange(48, dtype=np.uint8)[None], 40, 0)
    for name, base in (("trainA", 0), ("trainB", 100)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.dstack([column + base] * 3)).save(tmp_path / name / "a.png")
    shown = batches(tmp_path, 30, preprocess="crop", flip=False)
    lefts = [(levels(both[0])[0, 0, 0], levels(both[1])[0, 0, 0]) for both in shown]
    assert len({int(other) - int(one) for one, other in lefts}) > 5


def test_the_digest_follows_names_and_contents(data):
    before = domains(data)[0].digest
    assert domains(data)[0].digest == before
    (data / "trainA" / "4.png").rename(data / "trainA" / "5.png")
    renamed = domains(data)[0].digest
    buffer = io.BytesIO()
    Image.fromarray(photo(99)).save(buffer, "png")
    (data / "trainA" / "5.png").write_bytes(buffer.getvalue())
    assert len({before, renamed, domains(data)[0].digest}) == 3


def test_a_picture_that_vanishes_is_named_errors(data):
    a, _ = domains(data, memory_gb=0.0)
    a.paths[0].unlink()
    with pytest.raises(InputError, match=r"0\.png: cannot be read.*it could be read when the run"):
        a.prepared(0)


def test_of_many_pictures_some_are_spread_over_all(tmp_path):
    folder_of(tmp_path, range(9))
    found = Domain(tmp_path, TINY, channels=3, sizes=SIZES, budget=10**8, most=3)
    assert [path.stem for path in found.paths] == ["0", "3", "6"]
