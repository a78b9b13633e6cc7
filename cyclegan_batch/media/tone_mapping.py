"""Map HDR pictures (PQ and HLG of ITU-R BT.2100) to SDR ones (BT.709), as generators expect them.

The steps, for each pixel:

- the electro-optical transfer gives linear light: PQ's is absolute; HLG's inverse OETF is followed
  by the OOTF of a display of 1,000 cd/m² (gamma 1.2; BT.2100-2, tables 4 and 5);
- the largest of R, G and B is compressed from the peak of the source to 203 cd/m², reference white
  (BT.2408-7), by the EETF of BT.2390-11 (5.4.1, black at 0), and the others in proportion, so that
  the hue stays;
- the primaries become those of BT.709. In a colour outside of them negative components become 0;
  then it is darkened until none is above 1, so that bright saturated areas keep their detail;
- the inverse of what shows the result gives the samples: for videos BT.1886 with black at 0 (gamma
  2.4), for images sRGB.

All of it is arithmetic on single pixels, in float32 and by tables of 65,536 values. It is done in
strips of rows that stay in the cache of a core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..frames import Pixels, PixelType, look_up

Curve = Literal["PQ", "HLG"]

CURVES: dict[int, Curve] = {16: "PQ", 18: "HLG"}
"""The transfer characteristics of ITU-T H.273 that mean high dynamic range."""

ASSUMED_PEAK = 1000.0
"""cd/m² of a PQ source that states no peak, and of every HLG source: the display that BT.2100
names."""

SDR_WHITE = 203.0
"""cd/m² that become the white of the output (BT.2408-7, table 1)."""

_Floats: TypeAlias = npt.NDArray[np.floating[Any]]
_Plane: TypeAlias = npt.NDArray[np.float32]
_Samples: TypeAlias = npt.NDArray[np.uint16]

_CHROMATICITIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""Of R, G and B, by the number of the primaries (ITU-T H.273, table 2): BT.709, BT.2020, P3-D65."""

_D65 = (0.3127, 0.3290)

_PEAKS = 16
"""Tables that are kept, 256 KiB each: those of a folder of images may all have another peak."""

_STRIP = 1 << 15
"""Pixels of a strip: 128 KiB a plane in float32."""


@dataclass(frozen=True)
class ToneMapping:
    """How the pictures of one source become SDR."""

    curve: Curve
    peak: float = ASSUMED_PEAK
    """cd/m² of the brightest pixel; what is brighter is taken as that. Below 203 nothing is
    compressed. Not used for HLG."""
    primaries: int = 9
    """As of ITU-T H.273; any that is not known here is taken as BT.2020."""
    display: Literal["bt1886", "srgb"] = "bt1886"
    """What shows the result: BT.1886 with black at 0 (gamma 2.4), or sRGB (IEC 61966-2-1)."""

    @property
    def name(self) -> str:
        """The curve, and the peak where it counts, for a note."""
        return self.curve if self.curve == "HLG" else f"PQ, peak {self.peak:,.0f} cd/m²"

    def __call__(self, planes: Sequence[_Samples], white: int, pixel_type: PixelType) -> Pixels:
        """Return SDR, ``(H, W, 3)`` RGB: uint8, or float16 in [0, 1].

        ``planes`` are R, G and B, ``(H, W)`` each; ``white`` is the sample that means 1, and what
        is above it counts as 1.
        """
        height, width = planes[0].shape
        mapped: Pixels = np.empty((height, width, 3), pixel_type)
        rows = max(1, _STRIP // max(1, width))
        for top in range(0, height, rows):
            strip = [plane[top : top + rows] for plane in planes]
            for channel, samples in enumerate(self._strip(strip, white, pixel_type)):
                mapped[top : top + rows, :, channel] = samples
        return mapped

    def _strip(
        self, planes: Sequence[_Samples], white: int, pixel_type: PixelType
    ) -> Iterator[Pixels]:
        light = [look_up(plane, _light_table(self.curve, self._top, white)) for plane in planes]
        if self.curve == "HLG":
            luminance = _weighted(light, _luminance(self.primaries))
            ootf = look_up(_index_of_root(luminance), _ootf_of_root())
            light = [plane * ootf for plane in light]
        largest = np.maximum(np.maximum(light[0], light[1]), light[2])
        gain = look_up(_index_of_root(largest), _gain_of_root(self._top))
        for plane in light:
            plane *= gain
        light = [_weighted(light, weights) for weights in _matrix_to_bt709(self.primaries)]
        _into_gamut(light)
        table = _samples_of_root(pixel_type, self.display)
        return (look_up(_index_of_root(plane), table) for plane in light)

    @property
    def _top(self) -> float:
        """The brightest light, cd/m²."""
        return ASSUMED_PEAK if self.curve == "HLG" else min(max(self.peak, SDR_WHITE), 10000.0)


def _weighted(planes: Sequence[_Plane], weights: _Plane) -> _Plane:
    # NumPy rounds each product and each sum, on every CPU and at every place of a row; OpenCV's
    # transform does not.
    weighted: _Plane = planes[0] * weights[0]
    weighted += planes[1] * weights[1]
    weighted += planes[2] * weights[2]
    return weighted


def _index_of_root(light: _Plane) -> _Samples:
    """Return the square root of ``light``, of which 65535 is 1: steps near black stay apart."""
    root = np.clip(light, 0, 1)
    np.sqrt(root, out=root)
    root *= np.float32(65535)
    root += np.float32(0.5)
    index: _Samples = root.astype(np.uint16)
    return index


def _into_gamut(planes: Sequence[_Plane]) -> None:
    """Bring linear BT.709 ``planes`` into [0, 1] in place."""
    for plane in planes:
        np.maximum(plane, 0, out=plane)
    largest = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    above = np.flatnonzero(largest > 1)
    if above.size:
        for plane in planes:
            plane.ravel()[above] /= largest.ravel()[above]


# PQ: SMPTE ST 2084, as in BT.2100-2, table 4.
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
# HLG: BT.2100-2, table 5.
_A = 0.17883277
_B = 1 - 4 * _A
_C = 0.5 - _A * np.log(4 * _A)
_HLG_GAMMA = 1.2


def _from_pq(signal: _Floats) -> _Floats:
    """Return cd/m² of a PQ signal in [0, 1]."""
    root = signal ** (1 / _M2)
    light: _Floats = 10000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)
    return light


def _to_pq(light: _Floats) -> _Floats:
    root = (light / 10000) ** _M1
    signal: _Floats = ((_C1 + _C2 * root) / (1 + _C3 * root)) ** _M2
    return signal


def _from_hlg(signal: _Floats) -> _Floats:
    """Return the light of the scene in [0, 1] of an HLG signal in [0, 1]."""
    light: _Floats = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - _C) / _A) + _B) / 12)
    return light


def _compressed(light: _Floats, peak: float) -> _Floats:
    """Return the light in [0, 203] for one in [0, ``peak``], by the EETF of BT.2390."""
    if peak <= SDR_WHITE:
        return light
    top = _to_pq(np.asarray(peak))
    most = _to_pq(np.asarray(SDR_WHITE)) / top
    signal = _to_pq(light) / top
    knee = 1.5 * most - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * most
    )
    return _from_pq(np.where(signal < knee, signal, spline) * top)


_ROOTS = np.arange(65536) / 65535
"""What the indices of `_index_of_root` mean."""


@lru_cache(_PEAKS)
def _light_table(curve: Curve, top: float, white: int) -> _Plane:
    """Return the light of each 16-bit sample, as a part of ``top``; of the scene for HLG."""
    signal = np.minimum(np.arange(65536) / white, 1.0)
    light = _from_hlg(signal) if curve == "HLG" else np.minimum(_from_pq(signal) / top, 1.0)
    return light.astype(np.float32)


@lru_cache(_PEAKS)
def _gain_of_root(top: float) -> _Plane:
    """Return what brings light, a part of ``top``, to that of the output, by its root."""
    light = np.maximum(_ROOTS**2, 1e-12)
    gain: _Plane = (_compressed(light * top, top) / light / SDR_WHITE).astype(np.float32)
    return gain


@cache
def _ootf_of_root() -> _Plane:
    """Return HLG's OOTF for the luminance of the scene, by its root."""
    table: _Plane = (_ROOTS ** (2 * (_HLG_GAMMA - 1))).astype(np.float32)
    return table


@cache
def _samples_of_root(pixel_type: PixelType, display: str) -> Pixels:
    """Return the sample of the output for the square root of its light, of which 65535 is 1."""
    value = _ROOTS ** (2 / 2.4)
    if display == "srgb":
        light = _ROOTS**2
        value = np.where(light <= 0.0031308, 12.92 * light, 1.055 * value - 0.055)
    if pixel_type == "float16":
        return value.astype(np.float16)
    return np.floor(value * 255 + 0.5).astype(np.uint8)


@cache
def _to_xyz(primaries: int) -> npt.NDArray[np.float64]:
    """Return the matrix from linear RGB to XYZ (SMPTE RP 177)."""
    chromaticities = _CHROMATICITIES.get(primaries, _CHROMATICITIES[9])
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in chromaticities]).T
    x, y = _D65
    shares = np.linalg.solve(columns, np.array([x / y, 1, (1 - x - y) / y]))
    matrix: npt.NDArray[np.float64] = columns * shares
    return matrix


@cache
def _matrix_to_bt709(primaries: int) -> _Plane:
    matrix: _Plane = np.linalg.solve(_to_xyz(1), _to_xyz(primaries)).astype(np.float32)
    return matrix


@cache
def _luminance(primaries: int) -> _Plane:
    """Return the luminance of R, G and B."""
    row: _Plane = _to_xyz(primaries)[1].astype(np.float32)
    return row
