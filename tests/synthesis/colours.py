"""Flat patches of known colour, made from the published formulas and by no converter under test.

ITU-R BT.601-7 §2.5, BT.709-6 §3 and §4, BT.2020-2 tables 4 and 5: Y = kr·R + (1-kr-kb)·G + kb·B,
the two differences scaled to ±1/2, quantised to 219 and 224 steps per 8 bits (limited) or to all
codes (full).
"""

from __future__ import annotations

import itertools
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""kr and kb of each matrix."""

TAGS = {"bt601": (6, 6, 6), "bt709": (1, 1, 1), "bt2020": (9, 9, 14)}
"""Matrix, primaries and transfer of each standard, as ITU-T H.273 numbers them."""

PATCH = 16
"""Pixels along a side of a patch."""


def patches() -> Floats:
    """Return 8×8 patches of in-gamut colours, ``(128, 128, 3)`` RGB in [0, 1]."""
    colours = np.array(list(itertools.product([0.0, 0.35, 0.7, 1.0], repeat=3)))
    return np.repeat(np.repeat(colours.reshape(8, 8, 3), PATCH, axis=0), PATCH, axis=1)


def centres(picture: npt.NDArray[Any], patch: int = PATCH) -> npt.NDArray[Any]:
    """Return the middle pixel of every patch."""
    return picture[patch // 2 :: patch, patch // 2 :: patch]


def codes_from_rgb(rgb: Floats, matrix: str, *, full: bool, bits: int) -> Floats:
    """Return unrounded code values Y, Cb, Cr of ``rgb`` in [0, 1]."""
    kr, kb = WEIGHTS[matrix]
    red, green, blue = np.moveaxis(rgb, -1, 0)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - y) / (2 * (1 - kb)), (red - y) / (2 * (1 - kr))
    step = 2.0 ** (bits - 8)
    if full:
        top = 2.0**bits - 1
        return np.stack([y * top, cb * top + 128 * step, cr * top + 128 * step], axis=-1)
    return np.stack([219 * y + 16, 224 * cb + 128, 224 * cr + 128], axis=-1) * step


def frame_from_codes(codes: Floats, pix_fmt: str) -> av.VideoFrame:
    """Return ``codes`` rounded into a planar YUV frame, every second one of chroma in 4:2:0."""
    frame = av.VideoFrame(codes.shape[1], codes.shape[0], pix_fmt)
    for index, view in enumerate(plane_views(frame)):
        down = -(-codes.shape[0] // view.shape[0]), -(-codes.shape[1] // view.shape[1])
        top = 2 ** av.VideoFormat(pix_fmt).components[0].bits - 1
        view[:] = np.clip(np.rint(codes[:: down[0], :: down[1], index]), 0, top)
    return frame


def plane_views(frame: av.VideoFrame) -> list[npt.NDArray[Any]]:
    """Return writable views of the planes of ``frame`` without their padding."""
    deep = frame.format.components[0].bits > 8
    dtype = np.dtype(np.uint16 if deep else np.uint8)
    return [
        np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width]
        for plane in frame.planes
    ]
