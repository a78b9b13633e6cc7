"""Decode an image for the format in which its translation is going to be written."""

from __future__ import annotations

from dataclasses import replace

from ...frames import PixelType
from ...options import HdrChoice
from ..formats import ImageFormat
from .codec import Picture, decode_picture, refuse_lost_alpha
from .image_header import Header


def decode_for(
    target: ImageFormat,
    data: bytes,
    name: str,
    *,
    header: Header | None,
    pixel_type: PixelType,
    max_pixels: int,
    white: int | None,
    hdr: HdrChoice,
) -> Picture:
    """Return the image in ``data`` as `codec.decode_picture` does, with notes on ``target``.

    Raises InputError where it cannot be read, or has transparency that ``target`` cannot hold: the
    network shall spend no time on it.
    """
    picture = decode_picture(
        data,
        name,
        header=header,
        pixel_type=pixel_type,
        max_pixels=max_pixels,
        white=white,
        hdr=hdr,
    )
    refuse_lost_alpha(picture.extras, name, target)
    notes = list(picture.notes)
    if picture.extras.bits == 16 and target != "png":
        notes.append("is written with 8 bits; --format png keeps 16")
    if picture.extras.geo and target != "tiff":
        notes.append("its GeoTIFF tags were left out, since only TIFF holds them")
    return replace(picture, notes=tuple(notes))
