"""ProRes and DNxHR, the codecs of editing programs: their names, profiles, and what they hold.

Both are intra-only. A profile states the quality, so neither has a ``--crf``, and it belongs to
pixel formats: FFmpeg's encoders accept others, too, and then write files that state one profile and
hold another. Of colours both hold less than a container states (FFmpeg 8.1):

- ProRes has no full range: decoders take every frame as limited.
- `dnxhd` writes the matrix of BT.709 into every frame of DNxHR, and decoders believe that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import av

from ...errors import OutputError
from ...frames import Size
from ...options import TranslateOptions
from ...wording import Note
from .colour import ColourPlan
from .pixel_formats import is_odd_for

PRORES, DNXHR = "prores_ks", "dnxhd"
_ALL_PRORES = (PRORES, "prores_aw")

_NAMES = {"prores": PRORES, "dnxhr": DNXHR}
"""What people call these codecs. FFmpeg's own ``prores`` has no profile with alpha."""

_PROFILES = {
    PRORES: ("proxy", "lt", "standard", "hq", "4444", "4444xq"),
    DNXHR: ("dnxhd", "dnxhr_lb", "dnxhr_sq", "dnxhr_hq", "dnxhr_hqx", "dnxhr_444"),
}
"""The profiles by FFmpeg's numbers, from 0."""

_DNXHD = "dnxhd"
"""The older profile for a few sizes and bit rates, which are FFmpeg's to check."""

_FULL_CHROMA = ("yuv444p10le", "yuva444p10le", "gbrp10le")
_FORMATS = {
    **dict.fromkeys(("4444", "4444xq", "dnxhr_444"), _FULL_CHROMA),
    **dict.fromkeys(("proxy", "lt", "standard", "hq", "dnxhr_hqx"), ("yuv422p10le",)),
    **dict.fromkeys(("dnxhr_lb", "dnxhr_sq", "dnxhr_hq"), ("yuv422p",)),
}
"""The pixel formats of each profile."""

_DEFAULTS = {
    (PRORES, "yuv422p10le"): "hq",
    **{(PRORES, each): "4444" for each in _FULL_CHROMA},
    (DNXHR, "yuv422p"): "dnxhr_hq",
    (DNXHR, "yuv422p10le"): "dnxhr_hqx",
    **{(DNXHR, each): "dnxhr_444" for each in _FULL_CHROMA},
}


def encoder_name(codec: str) -> str:
    """Return FFmpeg's encoder for what people type after ``--codec``."""
    return _NAMES.get(codec, codec)


def is_for_editing(name: str) -> bool:
    """Return whether an encoder is one of the two."""
    return name in _PROFILES


def fitting_formats(
    name: str, formats: Sequence[str], size: Size, options: TranslateOptions
) -> list[str]:
    """Return those of an encoder's ``formats`` that its profile and the size leave.

    Raises OutputError for options that the encoder does not have, for a profile that there is not,
    and where profile, pixel format and size exclude each other.
    """
    if not is_for_editing(name):
        return list(formats)
    for flag, value in (("--crf", options.crf), ("--preset", options.preset)):
        if value is not None:
            raise OutputError(
                f"{name} has no {flag}: its profile sets the quality, and --encoder-opt profile=… "
                f"chooses one of {', '.join(_PROFILES[name])}"
            )
    height, width = size
    profile, pix_fmt = _given_profile(name, options.encoder_opt), options.pix_fmt
    if profile == _DNXHD:
        return list(formats)
    fitting = [each for each in formats if profile is None or each in _FORMATS[profile]]
    if pix_fmt is not None and pix_fmt not in fitting:
        raise OutputError(
            f"{name}'s profile {profile} does not hold --pix-fmt {pix_fmt}; leave one of them out, "
            f"or choose {' or '.join(fitting)}"
        )
    # Both encoders take an odd width with halved chroma, and damage what is beside the last column.
    whole = [each for each in fitting if not is_odd_for(each, size)]
    if not whole or (pix_fmt is not None and is_odd_for(pix_fmt, size)):
        asked = f"profile {profile}" if profile is not None else f"--pix-fmt {pix_fmt}"
        full = next(each for each in _PROFILES[name] if _FORMATS.get(each) == _FULL_CHROMA)
        raise OutputError(
            f"{name} damages the last columns of {width}×{height} in {asked}, which halves the "
            f"colours of an odd width; leave it out, or choose profile={full}"
        )
    return whole


def source_format(name: str, pix_fmt: str) -> str:
    """Return the pixel format that stands for a source's: RGB keeps its chroma for editing."""
    parsed = av.VideoFormat(pix_fmt)
    if not is_for_editing(name) or not parsed.is_rgb or len(parsed.components) < 3:
        return pix_fmt
    deep = max(component.bits for component in parsed.components) > 8
    return "yuv444p10le" if deep else "yuv444p"


def profile_options(name: str, pix_fmt: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the option that sets the profile: the user's, else the best one of a pixel format.

    Empty for other encoders, and for DNxHD, which its bit rate chooses.
    """
    profile = _given_profile(name, given) or _DEFAULTS.get((name, pix_fmt))
    return {} if profile is None or profile == _DNXHD else {"profile": profile}


def _given_profile(name: str, given: Mapping[str, str]) -> str | None:
    """Return the profile in the options ``given`` by its full name, None where there is none."""
    profiles = _PROFILES.get(name, ())
    asked = given.get("profile")
    if not profiles or asked in ("auto", "-1"):
        return None
    if asked is None:
        return _DNXHD if name == DNXHR and "b" in given else None
    by_number = dict(zip(map(str, range(len(profiles))), profiles, strict=True))
    for each in (asked, f"dnxhr_{asked}"):
        if each in profiles:
            return each
    if asked not in by_number:
        raise OutputError(
            f"{name} has no profile {asked}; choose one of {', '.join(profiles)} (--encoder-opt "
            "profile=…)"
        )
    return by_number[asked]


def held_colours(
    name: str, colour: ColourPlan, subject: str, pix_fmt: str | None = None
) -> ColourPlan:
    """Return how the frames are encoded that an encoder can state; a note tells what changes.

    ``subject`` is the input, for the note, and ``pix_fmt`` what the user chose: RGB has no matrix.
    """
    text = None
    if name in _ALL_PRORES and colour.output_full_range:
        colour = replace(colour, output_full_range=False, tags=replace(colour.tags, range=1))
        text = "ProRes has limited range only, so the full range of the video becomes that"
    if name == DNXHR and colour.output_matrix != "bt709" and pix_fmt != "gbrp10le":
        text = (
            f"FFmpeg's DNxHR has the colour matrix of BT.709 only, so the video's "
            f"({colour.output_matrix}) becomes that"
        )
        colour = replace(colour, output_matrix="bt709", tags=replace(colour.tags, matrix=1))
    return colour if text is None else replace(colour, notes=(*colour.notes, Note(subject, text)))
