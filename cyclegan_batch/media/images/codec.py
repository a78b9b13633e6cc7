"""The codec of image files: decode one for the network, and encode the result.

OpenCV decodes and encodes JPEG, PNG and WebP, from and to bytes only (its own file access crashes
on names that are not UTF-8). It releases the interpreter lock while it works, which Pillow does
not. Pillow decodes BMP and JPEG of CMYK, and encodes TIFF and AVIF. `tiff` decodes TIFF, and
`stills` AVIF, GIF, HEIC and JPEG 2000. `png_writer` encodes PNG unless a level of compression is
given.

The rules:

- HDR (PQ, HLG) becomes SDR, by `tone_mapping`, without the profile and the colour chunks of the
  source.
- EXIF orientation is applied once; the output is upright and has no orientation. Title, camera,
  dates, GPS and other descriptive EXIF are carried into JPEG, PNG, WebP, AVIF and TIFF. The
  thumbnail (it shows the source), maker notes, XMP and IPTC are not.
- Grey, palette and 1-bit images become RGB, and are written as RGB. CMYK becomes sRGB by its
  profile. An RGB profile is carried along and the samples stay as they are; a grey image with a
  grey profile becomes sRGB. PNG's own colour chunks are carried into PNG.
- 16 bits become 8 by rounding, ``(v * 255 + 32767) // 65535``; ``--white`` sets the level that
  becomes 255. Only a model that takes float16 receives more (float16 has 11 bits), and then a PNG
  is written with 16 bits.
- The network does not see transparency. It is kept bit for bit in PNG, WebP and TIFF, and with
  loss in AVIF (with ``--keep-size`` it is resized with the image; 16 bits are rounded like the
  colours). JPEG and BMP are written without it where it is opaque everywhere, and refused
  otherwise.
- JPEG is written without chroma subsampling. JPEG, WebP and AVIF have quality 95 by default; WebP
  is lossless at 100. BMP cannot hold a profile or EXIF and is written without them.
- JPEG, PNG and TIFF keep the resolution. TIFF keeps its GeoTIFF tags where the image keeps its
  size and is not turned.
- Animations and files of several pages are refused: one image in, one image out. The animations
  are videos to `job.inputs` where they can be.

A JPEG whose data are damaged in the middle decodes, as in every program built on libjpeg; one that
is cut off does not.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import BmpImagePlugin, Image, ImageCms, JpegImagePlugin, TiffImagePlugin

from ...errors import InputError, OutputError
from ...frames import PixelType, Size, as_pixel_type, to_uint8
from ...options import MAX_PIXELS, HdrChoice
from ..formats import ImageFormat
from ..tone_mapping import ASSUMED_PEAK, CURVES, ToneMapping
from .headers import read_header
from .image_header import FORMAT_NAMES, Header, damaged, portable_exif
from .png import quiet_png
from .png_writer import chunk, encode_png
from .tiff import Samples, decode_tiff

# OpenCV also logs to the terminal what it reports by a result or an exception. The level of its log
# is a setting of the whole process.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

DEFAULT_QUALITY = 95
"""Of JPEG, WebP and AVIF. Above it, files grow much faster than they get better."""

_LARGEST_SIDE: dict[ImageFormat, int] = {"jpg": 65535, "webp": 16383, "avif": 65536}
"""Pixels a side, where the header limits them (ITU-T T.81, RFC 9649, AV1 5.5.1)."""

_WITHOUT_ALPHA = frozenset({"jpg", "bmp"})

_EIGHT_BITS = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
"""The rounded 8-bit sample for every 16-bit one."""


@dataclass(frozen=True)
class Extras:
    """The data of an image that are written with its pixels."""

    alpha: Samples | None = None
    """``(H, W)``, uint8, or uint16 where ``bits`` is 16."""
    undeclared: bool = False
    """``alpha`` is a band that its TIFF does not declare to be alpha."""
    bits: int = 8
    """16 where the pixels are float16 and hold more than 256 levels."""
    icc: bytes | None = None
    """An RGB profile."""
    exif: bytes | None = None
    """A TIFF structure without orientation and thumbnail."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, across and down."""
    geo: tuple[tuple[int, object], ...] = ()
    """GeoTIFF tags and their values, which hold for an image of ``geo_size`` only."""
    geo_size: Size | None = None
    colour_chunks: tuple[tuple[bytes, bytes], ...] = ()
    """PNG's cICP, sRGB, gAMA and cHRM: type and content."""


@dataclass(frozen=True)
class Picture:
    """A decoded image, upright."""

    pixels: Samples
    """RGB ``(H, W, 3)``: uint8, or float16 in [0, 1]."""
    extras: Extras
    notes: tuple[str, ...] = ()
    """What was changed or left out; each is a sentence whose subject, the file, is added later."""


# Reading


def refuse_lost_alpha(extras: Extras, name: str, format_: ImageFormat) -> None:
    """Raise InputError where alpha is not opaque everywhere and ``format_`` cannot hold it."""
    alpha = extras.alpha
    if alpha is None or format_ not in _WITHOUT_ALPHA:
        return
    if int(alpha.min()) < np.iinfo(alpha.dtype).max:
        if extras.undeclared:
            problem = "has a band beside its colours that is not declared to be alpha"
            remedy = "--format tiff (or png, where it becomes alpha)"
        else:
            problem, remedy = "has transparency", "--format png (or webp)"
        raise InputError(
            f"{name}: {problem}, and {FORMAT_NAMES[format_]} cannot hold it; write it with {remedy}"
        )


def decode_picture(
    data: bytes,
    name: str,
    *,
    header: Header | None = None,
    pixel_type: PixelType = "uint8",
    max_pixels: int = MAX_PIXELS,
    white: int | None = None,
    hdr: HdrChoice = "tonemap",
) -> Picture:
    """Return the image in ``data``, upright, as RGB of ``pixel_type``; ``name`` is for messages.

    ``header`` is that of ``data``, if `read_header` has returned it already. ``white`` is the level
    of an image of more than 8 bits that becomes white, None its largest. ``hdr``: what becomes of
    PQ and HLG; what is mapped to SDR is sRGB, without a profile.

    Safe to call from several threads. Raises InputError where ``data`` is no whole image of a known
    format, has more than ``max_pixels``, or is HDR that is refused.
    """
    if header is None:
        header = read_header(io.BytesIO(data), name, max_pixels=max_pixels)
    if header.pages > 1:
        raise InputError(f"{name}: {_SEVERAL.get(header.format, _ANIMATION)}")
    mapping = _tone_mapping(header)
    if mapping is not None and hdr == "refuse":
        raise InputError(
            f"{name}: the image is HDR ({mapping.curve}), which --hdr refuse refuses; "
            "leave that out to have it mapped to SDR"
        )
    notes: list[str] = []
    try:
        samples, alpha, undeclared = _stored(data, header, notes)
        if samples.dtype == np.uint16:
            samples = _whitened(samples, header.levels, white, notes)
        elif white is not None:
            notes.append(f"--white {white} has no effect on an image of 8 bits")
        samples, icc = _rgb(samples, header, notes)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    # OpenCV and Pillow raise exceptions of many types on a damaged or hostile file.
    except Exception as error:
        if _lacks_memory(error):
            height, width = header.size
            raise InputError(
                f"{name}: there is no memory to decode its {width}×{height} pixels; end other "
                "programs, or cut it into several images"
            ) from error
        raise damaged(name, header.format, _reason(error, "decoder")) from error
    if samples.shape[:2] != header.size:
        raise damaged(name, header.format, "its sizes contradict each other")
    samples = _upright(samples, header.orientation)
    alpha = None if alpha is None else _upright(alpha, header.orientation)
    if header.geo and header.orientation != 1:
        notes.append("it is turned upright, and its GeoTIFF tags were left out")
    exif = portable_exif(header.exif) if header.exif else None
    if exif and len(exif) > 65500:
        notes.append("its EXIF data are more than a JPEG can hold (64 KiB), and were left out")
        exif = None
    deep = samples.dtype == np.uint16
    if deep and pixel_type == "uint8":
        notes.append("16 bits become 8 by rounding: the model takes 8")
        alpha = None if alpha is None else _as_eight_bits(alpha)
        deep = False
    if mapping is not None:
        notes.append(
            f"is HDR ({mapping.name}): it is mapped to SDR; --hdr refuse makes that an error"
        )
        icc = None
    return Picture(
        pixels=_pixels(samples, mapping, pixel_type),
        extras=Extras(
            alpha=alpha,
            undeclared=undeclared,
            bits=16 if deep else 8,
            icc=icc,
            exif=exif,
            dpi=header.dpi[::-1] if header.dpi and header.orientation > 4 else header.dpi,
            # The tags hold the place of each pixel of the stored, unturned image.
            geo=header.geo if header.orientation == 1 else (),
            geo_size=header.size if header.geo else None,
            colour_chunks=header.png.colour_chunks
            if header.png and not header.icc and mapping is None
            else (),
        ),
        notes=tuple(notes),
    )


def _tone_mapping(header: Header) -> ToneMapping | None:
    """Return how an HDR image becomes SDR. sRGB is how an image without tags is shown."""
    curve = CURVES.get(header.transfer)
    if curve is None:
        return None
    return ToneMapping(curve, header.peak or ASSUMED_PEAK, header.primaries, "srgb")


def _pixels(samples: Samples, mapping: ToneMapping | None, pixel_type: PixelType) -> Samples:
    """Return uint8 or uint16 ``samples`` as the model takes them."""
    if mapping is not None:
        deep = samples if samples.dtype == np.uint16 else samples.astype(np.uint16) * 257
        return mapping([np.ascontiguousarray(deep[..., i]) for i in range(3)], 65535, pixel_type)
    pixels = np.ascontiguousarray(samples)
    if pixels.dtype == np.uint16 and pixel_type == "float16":
        return (pixels / np.float32(65535)).astype(np.float16)
    return as_pixel_type(_as_eight_bits(pixels), pixel_type)


_ANIMATION = "is an animation; make a video of it and translate that"
_MOVING = (
    "is an animation; name it by itself with an output that moves, such as out.gif, out.webp, "
    "out.apng or out.mp4, and all of its frames are translated"
)
_SEVERAL: dict[ImageFormat, str] = {
    "tiff": "holds several pages and not one image; split it into single images first",
    "heic": "holds several images; save the one to translate by itself",
    "gif": _MOVING,
    "png": _MOVING,
    "webp": _MOVING,
}


def _reason(error: Exception, codec: str) -> str:
    if isinstance(error, cv2.error):
        return f"the {codec} gave up"
    return str(error) or type(error).__name__


def _lacks_memory(error: Exception) -> bool:
    is_opencvs = isinstance(error, cv2.error) and error.code == cv2.Error.STS_NO_MEM
    return is_opencvs or isinstance(error, MemoryError)


def _as_eight_bits(samples: Samples) -> Samples:
    return _EIGHT_BITS[samples] if samples.dtype == np.uint16 else samples


def _stored(data: bytes, header: Header, notes: list[str]) -> tuple[Samples, Samples | None, bool]:
    """Return the stored samples, the alpha beside them, and whether that is an undeclared band.

    The samples are ``(H, W)`` for grey, else RGB or inks ``(H, W, channels)``, uint8 or uint16.
    """
    if header.format == "tiff":
        tiff = decode_tiff(data)
        if tiff.undeclared:
            notes.append("its last band is not declared to be alpha; it is carried as alpha is")
        if tiff.more_bands:
            notes.append(f"{tiff.more_bands} more bands than a colour and its alpha were left out")
        return tiff.colours, tiff.alpha, tiff.undeclared
    if header.format in ("avif", "gif", "heic", "jp2"):
        # Imported with the first such image.
        from .stills import decode_still

        return *decode_still(data, header), False
    return *_samples(data, header), False


def _rgb(samples: Samples, header: Header, notes: list[str]) -> tuple[Samples, bytes | None]:
    """Return RGB ``(H, W, 3)`` from the stored samples, and the profile to carry."""
    space = _profile_space(header.icc)
    if header.mode == "CMYK":
        return _rgb_from_cmyk(samples, header.icc, space, notes), None
    if space in (None, b"RGB "):
        return _three_channels(samples), header.icc
    if space == b"GRAY" and samples.ndim == 2:
        return _rgb_from_profiled_grey(samples, header.icc or b""), None
    notes.append("its colour profile is broken or for other colours than its own; it was left out")
    return _three_channels(samples), None


def _whitened(samples: Samples, levels: int, white: int | None, notes: list[str]) -> Samples:
    """Return uint16 ``samples`` with the level ``white`` of the file's ``levels`` as 65535.

    Without ``white`` the samples stay as they are. A note is added where they use so little of the
    range that they are probably the unscaled samples of a camera of 10 or 12 bits.
    """
    if white is not None:
        brightest = min(white, levels - 1) * 65535 / (levels - 1)
        table = np.minimum(np.rint(np.arange(65536) * (65535 / brightest)), 65535).astype(np.uint16)
        whitened: Samples = table[samples]
        return whitened
    largest = int(samples.max())
    if 0 < largest <= _FEW_LEVELS:
        level = max(2 ** largest.bit_length() - 1, 255)
        notes.append(
            f"its 16 bits hold no level above {level}, so it is nearly black; "
            f"--white {level} makes that level white"
        )
    return samples


_FEW_LEVELS = 65535 // 16
"""The largest level of 12 bits."""


def _profile_space(icc: bytes | None) -> bytes | None:
    """Return the colour space of a profile (ICC.1:2022, 7.2), ``?`` if broken, None without one."""
    if icc is None:
        return None
    return icc[16:20] if len(icc) >= 128 and icc[36:40] == b"acsp" else b"?"


def _samples(data: bytes, header: Header) -> tuple[Samples, Samples | None]:
    """Return the samples of a JPEG, PNG, WebP or BMP, and the alpha beside them."""
    if header.format == "jpg" and header.mode != "CMYK":
        # OpenCV converts both grey and YCbCr to RGB while it decodes, without another copy.
        return _opencv(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION), None
    if header.format in ("png", "webp"):
        raw = _opencv(quiet_png(data) if header.format == "png" else data, cv2.IMREAD_UNCHANGED)
        samples, alpha = _split(raw)
        if header.png is not None and header.png.transparent_grey is not None:
            # OpenCV applies the transparent colour of an RGB image, but not of a grey one.
            opaque = np.iinfo(samples.dtype).max
            alpha = np.where(samples == header.png.transparent_grey, 0, opaque)
            alpha = alpha.astype(samples.dtype)
        return samples, alpha
    return _pillow(data, header)


def _opencv(data: bytes, flags: int) -> Samples:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    # OpenCV returns None for a damaged file, although its type stub does not allow that.
    if decoded is None:
        raise ValueError("the decoder gave up")
    return decoded


def _split(raw: Samples) -> tuple[Samples, Samples | None]:
    """Split OpenCV's grey, BGR or BGRA into grey or RGB, and alpha."""
    if raw.ndim == 2:
        return raw, None
    if raw.shape[2] == 3:
        return cv2.cvtColor(raw, cv2.COLOR_BGR2RGB), None
    return cv2.cvtColor(raw, cv2.COLOR_BGRA2RGB), np.ascontiguousarray(raw[..., 3])


def _pillow(data: bytes, header: Header) -> tuple[Samples, Samples | None]:
    """Return the samples of a BMP or a JPEG of inks, and the alpha beside them."""
    image = _PILLOW[header.format](io.BytesIO(data))
    image.load()
    if image.mode == "CMYK":
        return np.asarray(image), None
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L")), None
    if image.mode in ("P", "RGB", "RGBX"):
        return np.asarray(image.convert("RGB")), None
    if image.mode == "RGBA":
        rgba = np.asarray(image)
        return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
    raise InputError(f"colour mode {image.mode} is not supported; convert it to RGB")


_PILLOW: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "jpg": JpegImagePlugin.JpegImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}


def _rgb_from_cmyk(
    inks: Samples, icc: bytes | None, space: bytes | None, notes: list[str]
) -> Samples:
    height, width = inks.shape[:2]
    image = Image.frombytes("CMYK", (width, height), _as_eight_bits(inks).tobytes())
    if space == b"CMYK":
        converted = _to_srgb(image, icc or b"")
        if converted is not None:
            return converted
    notes.append("CMYK without a usable profile became RGB by plain arithmetic: colours may be off")
    return np.asarray(image.convert("RGB"))


def _rgb_from_profiled_grey(samples: Samples, icc: bytes) -> Samples:
    """Return sRGB from grey of 8 or 16 bits by its profile, a curve, sampled at 256 points."""
    ramp = _to_srgb(
        Image.fromarray(np.arange(256, dtype=np.uint8)[np.newaxis]),
        icc,
        # Without this flag littleCMS samples the curve at fewer points and is 10 levels off in the
        # dark.
        ImageCms.Flags.NOOPTIMIZE,
    )
    if ramp is None:
        return _three_channels(samples)
    curve: Samples = ramp[0]
    if samples.dtype == np.uint16:
        position = np.arange(65536) / 257.0
        deep = [np.interp(position, np.arange(256), channel) * 257.0 for channel in curve.T]
        curve = np.rint(np.stack(deep, axis=-1)).astype(np.uint16)
    coloured: Samples = curve[samples]
    return coloured


def _to_srgb(
    image: Image.Image, icc: bytes, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> Samples | None:
    """Return ``image`` as sRGB by its profile, or None where the profile cannot be used.

    Safe to call from several threads: every call opens its own profiles, and littleCMS shares
    nothing between them.
    """
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            # As image editors convert: white stays white, and black is not crushed.
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=flags | ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if converted is None else np.asarray(converted)


def _three_channels(samples: Samples) -> Samples:
    return cv2.cvtColor(samples, cv2.COLOR_GRAY2RGB) if samples.ndim == 2 else samples


def _upright(samples: Samples, orientation: int) -> Samples:
    """Return ``samples`` upright by their EXIF orientation (EXIF 2.32, 4.6.4)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)


# Writing


def encode_picture(
    pixels: Samples,
    format: ImageFormat,  # noqa: A002 - the option's own name
    *,
    quality: int | None = None,
    png_level: int | None = None,
    extras: Extras = Extras(),
) -> bytes:
    """Return RGB ``pixels`` ``(H, W, 3)`` of either pixel type as a file of ``format``.

    ``quality`` is that of jpg, webp and avif, 95 by default; webp is lossless at 100.
    ``png_level`` is zlib's level of a png, from 0 to 9; None writes it by `png_writer`. ``extras``
    are written where the format can hold them. Alpha is resized where the pixels have another size,
    and ``bits`` 16 makes a PNG of 16 bits from float16 pixels. Safe to call from several threads.

    Raises OutputError, whose message names no file.
    """
    height, width = pixels.shape[:2]
    if max(height, width) > _LARGEST_SIDE.get(format, 2**31 - 1):
        raise OutputError(
            f"{width}×{height} is more than {FORMAT_NAMES[format]} can hold "
            f"({_LARGEST_SIDE[format]} pixels a side); choose --format png"
        )
    deep = extras.bits == 16 and format == "png" and pixels.dtype == np.float16
    colours = _sixteen_bits(pixels) if deep else to_uint8(pixels)
    if extras.alpha is not None:
        holds_alpha = format not in _WITHOUT_ALPHA
        alpha = _matching_alpha(extras.alpha, (height, width), deep) if holds_alpha else None
        extras = replace(extras, alpha=alpha)
    try:
        if format == "png":
            return _encode_png(colours, png_level, extras)
        return _ENCODERS[format](colours, DEFAULT_QUALITY if quality is None else quality, extras)
    except (cv2.error, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise OutputError(f"{FORMAT_NAMES[format]} encoder: {_reason(error, 'encoder')}") from error


def _sixteen_bits(pixels: Samples) -> Samples:
    scaled: Samples = np.clip(pixels.astype(np.float32) * 65535.0, 0.0, 65535.0)
    return np.floor(scaled + 0.5).astype(np.uint16)


def _matching_alpha(alpha: Samples, size: tuple[int, int], deep: bool) -> Samples:
    if deep and alpha.dtype == np.uint8:
        alpha = alpha.astype(np.uint16) * 257
    elif not deep:
        alpha = _as_eight_bits(alpha)
    if alpha.shape != size:
        shrinks = size[0] * size[1] < alpha.size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        alpha = cv2.resize(alpha, size[::-1], interpolation=method)
    return alpha


def _bgr(colours: Samples, alpha: Samples | None) -> Samples:
    """Return the channels in OpenCV's order."""
    if alpha is None:
        return cv2.cvtColor(colours, cv2.COLOR_RGB2BGR)
    blue_green_red_alpha = cv2.cvtColor(colours, cv2.COLOR_RGB2BGRA)
    blue_green_red_alpha[..., 3] = alpha
    return blue_green_red_alpha


def _imencode(suffix: str, samples: Samples, parameters: Sequence[int] = ()) -> bytes:
    done, encoded = cv2.imencode(suffix, samples, list(parameters))
    if not done:
        raise ValueError("the encoder gave up")
    return encoded.tobytes()


def _encode_jpg(colours: Samples, quality: int, extras: Extras) -> bytes:
    plain = _imencode(
        ".jpg",
        _bgr(colours, None),
        (
            *(cv2.IMWRITE_JPEG_QUALITY, quality),
            *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        ),
    )
    # The metadata are inserted here, since OpenCV fails on a profile of more than 64 KiB. They
    # follow the start marker and the JFIF segment, which must come first. A profile is cut into
    # numbered pieces (ICC.1:2022, B.4).
    segments = b""
    if extras.exif:
        segments += _jpeg_segment(0xE1, b"Exif\0\0" + extras.exif)
    if extras.icc:
        pieces = [extras.icc[start : start + 65519] for start in range(0, len(extras.icc), 65519)]
        for number, piece in enumerate(pieces, 1):
            head = b"ICC_PROFILE\0" + bytes([number, len(pieces)])
            segments += _jpeg_segment(0xE2, head + piece)
    start = 2
    if plain[2:4] == b"\xff\xe0":
        start = 4 + int.from_bytes(plain[4:6])
        if extras.dpi:
            # JFIF 1.02: the unit (1: inch) and the density across and down.
            density = (min(max(round(value), 1), 65535) for value in extras.dpi)
            plain = plain[:13] + struct.pack(">BHH", 1, *density) + plain[18:]
    return plain[:start] + segments + plain[start:]


def _jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _encode_png(colours: Samples, level: int | None, extras: Extras) -> bytes:
    chunks = list(extras.colour_chunks)
    if extras.dpi:
        per_metre = (round(value / 0.0254) for value in extras.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if extras.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(extras.icc)))
    if extras.exif:
        chunks.append((b"eXIf", extras.exif))
    if level is None:
        samples = colours
        if extras.alpha is not None:
            samples = cv2.cvtColor(colours, cv2.COLOR_RGB2RGBA)
            samples[..., 3] = extras.alpha
        return encode_png(samples, chunks)
    parameters = (cv2.IMWRITE_PNG_COMPRESSION, level)
    plain = _imencode(".png", _bgr(colours, extras.alpha), parameters)
    # The metadata are inserted here, since libpng refuses slightly invalid profiles and prints that
    # to the terminal. They follow IHDR, whose 25 bytes follow the signature.
    return plain[:33] + b"".join(chunk(*each) for each in chunks) + plain[33:]


def _encode_webp(colours: Samples, quality: int, extras: Extras) -> bytes:
    parameters = [cv2.IMWRITE_WEBP_QUALITY, quality]
    if quality >= 100:
        parameters = [cv2.IMWRITE_WEBP_LOSSLESS_MODE, cv2.IMWRITE_WEBP_LOSSLESS_PRESERVE_COLOR]
    samples = _bgr(colours, extras.alpha)
    blocks = [(cv2.IMAGE_METADATA_ICCP, extras.icc), (cv2.IMAGE_METADATA_EXIF, extras.exif)]
    metadata = [(kind, np.frombuffer(block, np.uint8)) for kind, block in blocks if block]
    if not metadata:
        return _imencode(".webp", samples, parameters)
    kinds, contents = zip(*metadata, strict=True)
    done, encoded = cv2.imencodeWithMetadata(".webp", samples, kinds, contents, parameters)
    if not done:
        raise ValueError("the encoder gave up")
    return encoded.tobytes()


def _encode_bmp(colours: Samples, quality: int, extras: Extras) -> bytes:
    return _imencode(".bmp", _bgr(colours, None))


def _encode_tiff(colours: Samples, quality: int, extras: Extras) -> bytes:
    samples = colours if extras.alpha is None else np.dstack([colours, extras.alpha])
    options: dict[str, object] = {}
    if extras.icc:
        options["icc_profile"] = extras.icc
    if extras.dpi:
        options["dpi"] = extras.dpi
    geo = dict(extras.geo) if extras.geo_size == colours.shape[:2] else {}
    if extras.exif:
        exif = Image.Exif()
        exif.load(extras.exif)
        for tag, value in geo.items():
            exif[tag] = value
        options["exif"] = exif
    else:
        # Compressed only without EXIF: Pillow cannot write EXIF directories into a compressed TIFF.
        options["compression"] = "tiff_adobe_deflate"
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in geo.items():
            tags[tag] = value
        options["tiffinfo"] = tags
    image = Image.fromarray(samples)
    if extras.undeclared and extras.alpha is not None:
        # Pillow's mode for a fourth band without a meaning.
        image = Image.frombytes("RGBX", image.size, image.tobytes())
    file = io.BytesIO()
    image.save(file, "TIFF", **options)
    return file.getvalue()


def _encode_avif(colours: Samples, quality: int, extras: Extras) -> bytes:
    samples = colours if extras.alpha is None else np.dstack([colours, extras.alpha])
    options: dict[str, object] = {"quality": quality, "subsampling": "4:4:4", "max_threads": 1}
    if extras.icc:
        options["icc_profile"] = extras.icc
    if extras.exif:
        options["exif"] = extras.exif
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "AVIF", **options)
    return file.getvalue()


_ENCODERS: dict[ImageFormat, Callable[[Samples, int, Extras], bytes]] = {
    "jpg": _encode_jpg,
    "webp": _encode_webp,
    "avif": _encode_avif,
    "bmp": _encode_bmp,
    "tiff": _encode_tiff,
}
