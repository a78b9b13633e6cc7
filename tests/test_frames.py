"""What goes in at 1279×717 comes out at 1279×717, without a trace of the padding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cyclegan_batch.frames import (
    Geometry,
    Pixels,
    PixelType,
    SizeRequirements,
    as_pixel_type,
    geometry,
    same_pixels,
    stack,
    to_uint8,
)
from tests.synthesis.generators import natural

SIZES = [(1, 1), (1, 7), (3, 2), (5, 64), (17, 13), (64, 64), (71, 128), (127, 131)]
REQUIREMENTS = [
    SizeRequirements(),
    SizeRequirements(multiple_of=4, minimum=8),
    SizeRequirements(multiple_of=32),
    SizeRequirements(multiple_of=256, minimum=256),
    SizeRequirements(multiple_of=4, minimum=10),
]


def picture(size: tuple[int, int], seed: int = 0) -> Pixels:
    pixels: Pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return pixels


@pytest.mark.behaviour(9)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("requirements", REQUIREMENTS)
def test_at_native_size_every_pixel_comes_back_untouched(
    size: tuple[int, int], requirements: SizeRequirements
) -> None:
    real_A = picture(size)
    shape = geometry(size, requirements)

    inside = shape.into_network(real_A)
    assert inside.shape == (*shape.network, 3)
    assert np.array_equal(shape.out_of_network(inside), real_A)
    assert np.array_equal(shape.out_of_network(inside, keep_size=True), real_A)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("requirements", REQUIREMENTS)
def test_padding_is_the_least_that_the_network_accepts(
    size: tuple[int, int], requirements: SizeRequirements
) -> None:
    def accepted(side: int) -> bool:
        return side >= requirements.minimum and side % requirements.multiple_of == 0

    network = geometry(size, requirements).network
    for side, padded in zip(size, network, strict=True):
        assert padded == next(n for n in itertools.count(side) if accepted(n))


def reflected(length: int, padded: int) -> list[int]:
    """The source of each of ``padded`` positions: 0 1 2 3 2 1 0 1 … for a length of 4."""
    there_and_back = [*range(length), *range(length - 2, 0, -1)]
    return list(itertools.islice(itertools.cycle(there_and_back), padded))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixel_type", ["uint8", "float16"])
@pytest.mark.parametrize("layout", ["whole", "a view"])
def test_padding_is_a_reflection_as_often_as_it_takes(
    size: tuple[int, int], pixel_type: PixelType, layout: str
) -> None:
    real_A = as_pixel_type(picture(size), pixel_type)
    if layout == "a view":
        real_A = real_A[::-1, ::-1]
    for network in ((256, 384), (size[0], size[1] + 1), (size[0] + 1, size[1])):
        padded = Geometry(size, size, network).into_network(real_A)
        rows, columns = (reflected(*sides) for sides in zip(size, network, strict=True))
        expected = real_A[rows][:, columns]
        assert padded.dtype == expected.dtype
        assert padded.tobytes() == expected.tobytes()
        assert padded.flags.c_contiguous


@pytest.mark.parametrize("size", [(64, 64), (717, 1279), (1279, 717), (33, 1000)])
@pytest.mark.parametrize("asked", [48, 256, 257, (100, 200), (200, 100)])
@pytest.mark.parametrize("fit", ["pad", "stretch", None])
@pytest.mark.parametrize("requirements", [*REQUIREMENTS[:2], SizeRequirements(fixed=(128, 96))])
def test_whatever_size_the_network_sees_the_output_has_the_inputs(
    size: tuple[int, int], asked: int | tuple[int, int], fit: str | None,
    requirements: SizeRequirements,
) -> None:  # fmt: skip
    shape = geometry(size, requirements, size=asked, fit=fit)  # type: ignore[arg-type]

    assert shape.source == size
    assert requirements.smallest_fit(shape.network) == shape.network
    assert all(inner <= outer for inner, outer in zip(shape.content, shape.network, strict=True))
    inside = shape.into_network(np.full((*size, 3), 200, np.uint8))
    assert inside.shape == (*shape.network, 3)
    outside = shape.out_of_network(inside)
    assert outside.shape == (*size, 3)
    assert np.array_equal(outside, np.full((*size, 3), 200, np.uint8))
    assert shape.out_of_network(inside, keep_size=True).shape == (*shape.content, 3)


def test_a_number_is_the_shorter_sides_length_and_the_shape_is_kept() -> None:
    shape = geometry((720, 1280), SizeRequirements(multiple_of=4), size=256)
    assert shape.content == (256, 455)
    assert shape.network == (256, 456)
    assert geometry((1280, 720), SizeRequirements(), size=256).content == (455, 256)


def test_a_box_holds_the_whole_picture_unless_it_is_stretched() -> None:
    requirements = SizeRequirements(multiple_of=4)
    padded = geometry((720, 1280), requirements, size=(256, 256))
    stretched = geometry((720, 1280), requirements, size=(256, 256), fit="stretch")
    assert (padded.content, padded.network) == ((144, 256), (256, 256))
    assert (stretched.content, stretched.network) == ((256, 256), (256, 256))


def test_a_model_of_fixed_size_is_stretched_to_unless_asked_to_pad() -> None:
    fixed = SizeRequirements(fixed=(256, 256))
    assert geometry((720, 1280), fixed).content == (256, 256)
    assert geometry((720, 1280), fixed, fit="pad").content == (144, 256)
    assert geometry((720, 1280), fixed, size=512).network == (256, 256)


@pytest.mark.parametrize("pixel_type", ["uint8", "float16"])
def test_a_way_through_a_smaller_network_keeps_the_brightness(pixel_type: str) -> None:
    real_A = as_pixel_type(natural((120, 180))[0], pixel_type)  # type: ignore[arg-type]
    shape = geometry((120, 180), SizeRequirements(multiple_of=4), size=48)

    out = shape.out_of_network(shape.into_network(real_A))
    assert out.dtype == real_A.dtype
    assert out.min() >= 0
    assert out.max() <= (255 if pixel_type == "uint8" else 1)
    off = to_uint8(out).astype(float).mean() - to_uint8(real_A).astype(float).mean()
    assert abs(off) < 0.5


def test_every_8_bit_level_survives_float16_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    assert np.array_equal(to_uint8(as_pixel_type(levels, "float16")), levels)
    assert as_pixel_type(levels, "uint8") is levels


def test_float16_is_rounded_half_up_and_clamped() -> None:
    # float16 cannot hold 0.5 and 1.5 grey levels; these are the nearest values around them.
    half = np.nextafter(np.float16(0.5 / 255), np.float16(1))
    below = np.nextafter(np.float16(0.5 / 255), np.float16(0))
    values = np.array([-0.5, below, half, 0.5, 1.0, 2.0], np.float16)
    assert to_uint8(values).tolist() == [0, 0, 1, 128, 255, 255]


def test_every_float16_becomes_what_arithmetic_gives() -> None:
    values = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(2, 64, 512)
    wide = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = np.floor(np.clip(wide, 0, 1) * 255 + 0.5)
    expected[np.isnan(wide)] = 0
    out = to_uint8(values)
    assert out.shape == values.shape
    assert np.array_equal(out, expected)
    assert np.array_equal(to_uint8(values[:, ::-1, ::2]), expected[:, ::-1, ::2])


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3, 5, 3), (7, 11, 3)])
def test_8_bits_in_float16_are_the_nearest_to_their_share_of_255(shape: tuple[int, ...]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    out = as_pixel_type(levels, "float16")
    assert out.dtype == np.float16
    assert np.array_equal(out, (levels / np.float64(255)).astype(np.float16))
    view = as_pixel_type(levels[..., ::-1], "float16")
    assert np.array_equal(view, out[..., ::-1])


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 3), (2, 3), (3, 3), (3, 4)])
def test_a_batch_is_filled_up_with_its_last_frame(count: int, batch_size: int) -> None:
    frames = [picture((4, 5), seed) for seed in range(count)]
    batch = stack(frames, batch_size)

    assert batch.shape == (batch_size, 4, 5, 3)
    assert batch.flags.c_contiguous
    for row in range(batch_size):
        assert np.array_equal(batch[row], frames[min(row, count - 1)])


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 7), (64, 64), (479, 641), (720, 1280)])
@pytest.mark.parametrize("pixel_type", [np.uint8, np.float16])
def test_frames_are_the_same_where_every_byte_is(size: tuple[int, int], pixel_type: type) -> None:
    one = picture(size).astype(pixel_type)
    assert same_pixels(one, one.copy())
    dice = np.random.default_rng(1)
    places = [0, one.size - 1, *dice.integers(0, one.size, 20)]
    for place in places:
        other = one.copy()
        other.reshape(-1)[place] += 1
        assert not same_pixels(one, other)
        assert not same_pixels(other, one)


def test_frames_are_the_same_whatever_their_memory_looks_like() -> None:
    wide = picture((40, 60))
    part = wide[::2, 5:50]
    assert same_pixels(part, part.copy())
    assert not same_pixels(part, part[::-1])
    assert not same_pixels(part, wide[::2, 6:51])


def test_frames_of_other_shapes_types_or_bits_are_not_the_same() -> None:
    grey = np.zeros((4, 6, 3), np.float16)
    assert not same_pixels(grey, grey.reshape(6, 4, 3))
    assert not same_pixels(grey, grey.view(np.int16))
    assert not same_pixels(grey, -grey)  # zeros of either sign
    nan = np.full_like(grey, np.nan)
    assert same_pixels(nan, nan.copy())
