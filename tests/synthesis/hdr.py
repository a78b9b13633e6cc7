"""HDR videos, and their pixels as SDR by the formulas of BT.2100 and BT.2390 in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tests.synthesis import colours
from tests.synthesis.videos import encode

BT2020_TO_BT709 = (
    (1.660491, -0.587641, -0.072850),
    (-0.124550, 1.132900, -0.008349),
    (-0.018151, -0.100579, 1.118730),
)
"""BT.2087-0, the inverse of its equation for linear light, to six digits."""


def pq_to_nits(signal: float) -> float:
    power = signal ** (32 / 2523)
    ratio = max(power - 0.8359375, 0.0) / (18.8515625 - 18.6875 * power)
    return float(10000.0 * ratio ** (16384 / 2610))


def nits_to_pq(nits: float) -> float:
    power = (nits / 10000.0) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


def hlg_to_scene(signal: float) -> float:
    if signal <= 0.5:
        return signal * signal / 3
    return (math.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12


def eetf(nits: float, peak: float, target: float, black: float = 0.0, lift: float = 0.0) -> float:
    """BT.2390-11, 5.4.1: from [``black``, ``peak``] to [``lift``, ``target``], all cd/m²."""
    if peak <= target:
        return nits
    low, high = nits_to_pq(black), nits_to_pq(peak)
    e1, min_lum, max_lum = (
        (nits_to_pq(value) - low) / (high - low) for value in (nits, lift or black, target)
    )
    ks = 1.5 * max_lum - 0.5
    if e1 < ks:
        e2 = e1
    else:
        t = (e1 - ks) / (1 - ks)
        e2 = (
            (2 * t**3 - 3 * t**2 + 1) * ks
            + (t**3 - 2 * t**2 + t) * (1 - ks)
            + (-2 * t**3 + 3 * t**2) * max_lum
        )
    if lift:
        # BT.2390 adds the lift at every height; libplacebo scales the result to end at the target.
        power = min(1 / min_lum, 4)
        scale = 1 / (1 + min_lum / max_lum * (1 - max_lum) ** power)
        e2 = scale * (e2 + min_lum * (1 - e2) ** power - min_lum) + min_lum
    return pq_to_nits(e2 * (high - low) + low)


def in_bt709(
    curve: str, rgb: tuple[float, float, float], peak: float, black: float = 0.0, lift: float = 0.0
) -> list[float]:
    """Return the mapped light of one pixel, of which 1 is 203 cd/m²; the gamut is not mapped."""
    if curve == "PQ":
        light = [min(pq_to_nits(value), peak) for value in rgb]
    else:
        peak = 1000.0
        beta = math.sqrt(3 * (black / peak) ** (1 / 1.2))
        scene = [hlg_to_scene((1 - beta) * value + beta) for value in rgb]
        luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]
        light = [peak * luminance**0.2 * value for value in scene]
    top = max(light)
    scale = eetf(top, peak, 203.0, black, lift) / top / 203.0 if top else 0.0
    return [sum(row[i] * light[i] for i in range(3)) * scale for row in BT2020_TO_BT709]


def expected(
    curve: str, rgb: tuple[float, float, float], peak: float, display: str = "bt1886"
) -> list[float]:
    """Return the SDR samples in [0, 1] of one pixel."""
    out = [max(value, 0.0) for value in in_bt709(curve, rgb, peak)]
    most = max(*out, 1.0)
    shown = [value / most for value in out]
    if display == "srgb":
        return [v * 12.92 if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in shown]
    return [value ** (1 / 2.4) for value in shown]


def video(
    path: Path, transfer: int, *, display: int | None = 600, max_cll: int = 400, frames: int = 3
) -> Path:
    """Write `colours.patches` in BT.2020 by x265 with 10 bits, without loss.

    ``display`` is the peak of the mastering display and ``max_cll`` the content light level, cd/m².
    Of fewer than three ``frames`` x265 4.2 returns uninitialised decoding times, with which FFmpeg
    now and then refuses to open the file.
    """
    parameters = ["lossless=1", "log-level=none", "pools=1", "frame-threads=1"]
    if display is not None:
        primaries = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)"
        parameters.append(f"master-display={primaries}L({display}0000,50)")
    if max_cll:
        parameters.append(f"max-cll={max_cll},100")

    def tag(target: Any) -> None:
        target.colorspace, target.color_primaries, target.color_trc = 9, 9, transfer
        target.color_range = 1
        if hasattr(target, "options"):
            target.options = {"preset": "ultrafast", "x265-params": ":".join(parameters)}

    codes = colours.codes_from_rgb(colours.patches(), "bt2020", full=False, bits=10)
    sent = []
    for _ in range(frames):
        frame = colours.frame_from_codes(codes, "yuv420p10le")
        tag(frame)
        sent.append(frame)
    return encode(path, sent, "libx265", set_up=tag)
