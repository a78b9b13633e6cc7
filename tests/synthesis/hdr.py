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


def eetf(nits: float, peak: float, target: float) -> float:
    """BT.2390-11, 5.4.1, with Lb = Lmin = 0."""
    if peak <= target:
        return nits
    e1 = nits_to_pq(nits) / nits_to_pq(peak)
    max_lum = nits_to_pq(target) / nits_to_pq(peak)
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
    return pq_to_nits(e2 * nits_to_pq(peak))


def expected(curve: str, rgb: tuple[float, float, float], peak: float) -> list[float]:
    """Return the SDR samples in [0, 1] of one pixel."""
    if curve == "PQ":
        light = [min(pq_to_nits(value), peak) for value in rgb]
    else:
        peak = 1000.0
        scene = [hlg_to_scene(value) for value in rgb]
        luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]
        light = [peak * luminance**0.2 * value for value in scene]
    top = max(light)
    scale = eetf(top, peak, 203.0) / top / 203.0 if top else 0.0
    out = [sum(row[i] * light[i] for i in range(3)) * scale for row in BT2020_TO_BT709]
    least = min(out)
    if least < 0:
        grey = 0.2126 * out[0] + 0.7152 * out[1] + 0.0722 * out[2]
        out = [grey + (value - grey) * grey / (grey - least) for value in out]
    most = max(*out, 1.0)
    return [max(value / most, 0.0) ** (1 / 2.4) for value in out]


def video(
    path: Path, transfer: int, *, display: int | None = 600, max_cll: int = 400, frames: int = 2
) -> Path:
    """Write `colours.patches` in BT.2020 by x265 with 10 bits, without loss.

    ``display`` is the peak of the mastering display and ``max_cll`` the content light level, cd/m².
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
