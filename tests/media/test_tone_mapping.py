"""Tone mapping against the formulas of BT.2100 and BT.2390, transcribed again in float64."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cyclegan_batch.media.tone_mapping import ToneMapping
from tests.synthesis.hdr import expected, in_bt709, nits_to_pq

pytestmark = pytest.mark.behaviour(8)


def cube(side: int = 12) -> np.ndarray:
    """Return 16-bit RGB on a grid of colours, and a fine ramp of grey."""
    axis = np.linspace(0, 65535, side)
    colours = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    grey = np.repeat(np.linspace(0, 65535, side * 24)[:, None], 3, 1)
    return np.rint(np.concatenate([colours, grey])).astype(np.uint16).reshape(-1, side, 3)


def mapped_of(mapping, samples, pixel_type="uint8", white=65535):
    return mapping(list(np.moveaxis(samples, 2, 0).copy()), white, pixel_type)


CASES = [("PQ", 1000.0), ("PQ", 4000.0), ("PQ", 10000.0), ("PQ", 150.0), ("HLG", 1000.0)]


@pytest.mark.parametrize(("curve", "peak"), CASES)
def test_pixels_equal_the_formulas_within_a_level(curve, peak):
    samples = cube()
    mapped = mapped_of(ToneMapping(curve, peak), samples)
    want = [
        expected(curve, (red / 65535, green / 65535, blue / 65535), max(peak, 203.0))
        for red, green, blue in samples.reshape(-1, 3).tolist()
    ]
    difference = mapped.reshape(-1, 3).astype(float) - np.array(want) * 255
    assert np.abs(difference).max() <= 1.0


@pytest.mark.parametrize("curve", ["PQ", "HLG"])
def test_float16_holds_more_levels_and_the_same_colours(curve):
    samples = cube()
    mapping = ToneMapping(curve)
    fine = mapped_of(mapping, samples, "float16").astype(float)
    assert np.abs(fine * 255 - mapped_of(mapping, samples)).max() <= 0.75
    ramp = np.repeat(np.arange(0, 65536, 64, dtype=np.uint16)[None, :, None], 3, 2)
    assert len(np.unique(mapped_of(mapping, ramp, "float16"))) > 500


def test_what_sdr_shows_stays_and_the_peak_becomes_white():
    mapping = ToneMapping("PQ", 1000.0)
    nits = [0.0, 50.0, 1000.0, 4000.0]
    samples = np.array([[[round(nits_to_pq(each) * 65535)] * 3 for each in nits]], np.uint16)
    row = mapped_of(mapping, samples, "float16")[0, :, 1].astype(float)
    assert row == pytest.approx([0.0, (50 / 203) ** (1 / 2.4), 1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize("curve", ["PQ", "HLG"])
def test_grey_stays_grey_and_brighter_stays_brighter(curve):
    ramp = np.repeat(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)[..., None], 3, 2)
    mapped = mapped_of(ToneMapping(curve), ramp, "float16").reshape(-1, 3).astype(float)
    assert np.ptp(mapped, axis=1).max() <= 2**-10
    assert np.diff(mapped[:, 1]).min() >= 0


def test_samples_above_white_are_white():
    samples = np.full((2, 2, 3), 65535, np.uint16)
    assert (mapped_of(ToneMapping("HLG"), samples, white=60000) == 255).all()


def test_threads_and_the_height_of_a_picture_change_nothing():
    samples = np.random.default_rng(5).integers(0, 65536, (301, 640, 3)).astype(np.uint16)
    mapping = ToneMapping("PQ", 2000.0)
    whole = mapped_of(mapping, samples, "float16", 65283)
    with ThreadPoolExecutor(4) as pool:
        rows = [samples[row : row + 7] for row in range(0, 301, 7)]
        parts = list(pool.map(lambda part: mapped_of(mapping, part, "float16", 65283), rows))
    assert np.array_equal(whole, np.concatenate(parts))


def test_primaries_of_bt709_are_kept_and_unknown_ones_are_those_of_bt2020():
    red = np.array([[[40000, 0, 0]]], np.uint16)
    kept = mapped_of(ToneMapping("PQ", primaries=1), red)[0, 0]
    assert kept[0] > 100
    assert list(kept[1:]) == [0, 0]
    of_bt2020 = mapped_of(ToneMapping("PQ"), red)
    assert np.array_equal(mapped_of(ToneMapping("PQ", primaries=2), red), of_bt2020)


@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize(
    ("curve", "transfer", "peak"), [("PQ", "smpte2084", 10000.0), ("HLG", "arib-std-b67", 1000.0)]
)
def test_the_formulas_are_those_of_libplacebo_for_its_displays(curve, transfer, peak):
    """libplacebo assumes a black of 0.005 cd/m² for HDR, and of a thousandth of white for SDR.

    What PQ shows darker than that, below 0.085, it makes darker than the formulas do.
    """
    samples = cube()
    height, width = samples.shape[:2]
    opaque = np.full((height, width, 1), 65535, np.uint16)
    chain = (
        f"setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=gbr:range=pc,hwupload,"
        "libplacebo=color_primaries=bt709:color_trc=bt709:colorspace=gbr:range=pc:peak_detect=0:"
        "tonemapping=bt.2390:tonemapping_param=0.5:tonemapping_mode=max:tonemapping_crosstalk=0:"
        "tonemapping_lut_size=1024:gamut_mode=clip:dithering=none:format=rgba64le,"
        "hwdownload,format=rgba64le"
    )
    raw = "-f rawvideo -pix_fmt rgba64le"
    done = subprocess.run(
        f"ffmpeg -v error -init_hw_device vulkan {raw} -s {width}x{height} -i - "
        f"-vf {chain} {raw} -".split(),
        input=np.concatenate([samples, opaque], 2).tobytes(),
        capture_output=True,
        timeout=60,
    )
    if done.returncode:
        pytest.skip("this ffmpeg has no libplacebo of this age, or no Vulkan driver")
    shown = np.frombuffer(done.stdout, "<u2").reshape(-1, 4)[:, :3] / 257
    white, black = 203.0 ** (1 / 2.4), 0.203 ** (1 / 2.4)
    compared = 0
    for seen, (red, green, blue) in zip(shown, samples.reshape(-1, 3) / 65535, strict=True):
        light = in_bt709(curve, (red, green, blue), peak, 0.005, 0.203)
        want = [
            (max(value * 203, 0.0) ** (1 / 2.4) - black) / (white - black) * 255 for value in light
        ]
        if min(want) >= 0 and max(want) <= 255 and max(red, green, blue) > 0.085:
            assert np.abs(seen - want).max() <= 0.5
            compared += 1
    assert compared > 200
