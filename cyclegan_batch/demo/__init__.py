"""The demo: a translation from end to end on any machine, without a download.

A clip with moving detail and sound and a folder of images are drawn, all by day. The generator in
the package, a small CycleGAN that was trained on such drawings, unpaired, turns them into night by
the call that a user would make. The same valleys can be drawn by night, which is the truth: a
contact sheet shows each source, its result and the truth, and the PSNR to the truth is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont

from ..files import output_error
from ..frames import Pixels
from ..models.parity import parity
from .landscapes import NIGHT, Landscape

MODEL = Path(__file__).with_name("day2night.onnx")
"""The generator of the demo: the exported result of ``train --recipe demo``.

It was trained on valleys that `landscapes.write_domains` drew; the demo's own were not among them.
"""

NOTICE = (
    "The demo's generator is a small CycleGAN that was trained on drawn valleys by day and by "
    "night, unpaired; it works on such drawings only."
)
"""Printed so that nobody takes it for a generator of photographs."""

_RATE = 25
"""Frames per second of the clip."""
_SECONDS = 4
_CLIP_SIZE = (360, 640)
_CLIP_SEED = 1_000_007
"""Far from the seeds of the valleys for training, as are those of the images."""
_MOMENTS = tuple(round(_RATE * _SECONDS * share) for share in (0.04, 0.34, 0.64, 0.94))
"""The frames of the clip that the sheet shows."""
_SAMPLE_RATE = 48_000

_PICTURES: tuple[tuple[str, tuple[int, int], int], ...] = (
    ("lake.jpg", (400, 600), 1_000_003),
    ("portrait.png", (501, 333), 1_000_011),
    ("square with alpha.png", (384, 384), 1_000_005),
    ("wide/panorama.jpg", (243, 729), 1_000_021),
    ("wide/odd.png", (359, 479), 1_000_008),
    ("wide/small.jpg", (193, 257), 1_000_014),
)
"""Name, (height, width) and seed of each image: odd sizes, two formats, alpha, a sub-folder."""


@dataclass(frozen=True)
class Demo:
    """The files that the demo wrote."""

    model: Path
    clip: Path
    translated_clip: Path
    comparison: Path
    """The clip and its translation in one frame (``--compare split``)."""
    pictures: Path
    translated_pictures: Path
    sheet: Path
    """Source above, result in the middle, truth below."""


def run_demo(folder: Path, *, say: Callable[[str], None] = lambda sentence: None) -> Demo:
    """Write the demo into ``folder``, which is created; files of an earlier demo are replaced.

    ``say`` is called with one sentence for each step. Raises OutputError and what `translate`
    raises.
    """
    from ..api import translate

    demo = Demo(
        model=folder / MODEL.name,
        clip=folder / "clip.mp4",
        translated_clip=folder / "clip-night.mp4",
        comparison=folder / "clip-night.compare.mp4",
        pictures=folder / "pictures",
        translated_pictures=folder / "pictures-night",
        sheet=folder / "sheet.png",
    )
    say(NOTICE)
    model = MODEL.read_bytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        demo.model.write_bytes(model)
    except OSError as error:
        raise output_error(folder, error) from error
    write_clip(demo.clip)
    write_pictures(demo.pictures)
    words = f"{demo.clip} {demo.translated_clip} -m {demo.model} --compare split"
    say(f"cyclegan-batch translate {words}")
    translate(demo.clip, demo.translated_clip, model=demo.model, compare="split", overwrite=True)
    say(f"cyclegan-batch translate {demo.pictures} {demo.translated_pictures} -m {demo.model}")
    translate(demo.pictures, demo.translated_pictures, model=demo.model, overwrite=True)
    write_contact_sheet(demo)
    before, after = distances(demo)
    say(
        f"PSNR to the truth: {before:.1f} dB for the clip by day, {after:.1f} dB for its "
        "translation."
    )
    say(f"The clip: {demo.translated_clip}")
    say(f"The clip beside its source: {demo.comparison}")
    say(f"The images: {demo.translated_pictures}")
    say(f"The contact sheet, with source, result and truth: {demo.sheet}")
    return demo


def distances(demo: Demo) -> tuple[float, float]:
    """Return the PSNR to the truth, in dB, of a few frames of the clip and of its translation."""
    truth = np.stack(_true_frames())
    source, result = (
        parity(np.stack(_frames_of(path, _MOMENTS)), truth).psnr
        for path in (demo.clip, demo.translated_clip)
    )
    return source, result


def _true_frames() -> list[Pixels]:
    landscape = Landscape(_CLIP_SIZE, _CLIP_SEED)
    return [landscape.at(moment / _RATE, NIGHT) for moment in _MOMENTS]


# The sources


def write_clip(path: Path) -> None:
    """Write four seconds of a moving landscape, H.264 and AAC."""
    landscape = Landscape(_CLIP_SIZE, _CLIP_SEED)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        quality = {"crf": "15", "preset": "veryfast"}
        video = container.add_stream("libx264", rate=_RATE, options=quality)
        video.height, video.width = _CLIP_SIZE
        video.pix_fmt = "yuv420p"
        video.codec_context.colorspace = Colorspace.ITU709
        video.codec_context.color_primaries = 1  # BT.709, as H.273 numbers it
        video.codec_context.color_trc = 1
        video.codec_context.color_range = ColorRange.MPEG
        audio = container.add_stream("aac", rate=_SAMPLE_RATE, layout="stereo")
        for index in range(_RATE * _SECONDS):
            frame = VideoFrame.from_ndarray(landscape.at(index / _RATE), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts, frame.time_base = index, Fraction(1, _RATE)
            container.mux(video.encode(frame))
        sound = AudioFrame.from_ndarray(_sound(), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts = _SAMPLE_RATE, 0
        container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def write_pictures(folder: Path) -> None:
    """Write the images, with their sub-folder, into ``folder``."""
    for name, size, seed in _PICTURES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(Landscape(size, seed).at())
        if "alpha" in name:
            image.putalpha(Image.fromarray(_round_mask(size)))
        image.save(path, quality=93)


def _round_mask(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    height, width = size
    y, x = np.ogrid[:height, :width]
    away = np.hypot((y - height / 2 + 0.5) / (height / 2), (x - width / 2 + 0.5) / (width / 2))
    return (np.clip((1.0 - away) / 0.04, 0, 1) * 255).astype(np.uint8)


def _sound() -> npt.NDArray[np.float32]:
    """Return (2, samples) in [-1, 1]: a slow arpeggio from left to right over a rising tone."""
    t = np.arange(_SECONDS * _SAMPLE_RATE) / _SAMPLE_RATE
    sound = np.zeros((2, t.size))
    notes = (261.63, 329.63, 392.00, 493.88, 587.33, 493.88, 392.00, 329.63)
    for number, pitch in enumerate(notes):
        since = np.maximum(t - number * 0.45, 0.0)
        pluck = np.where(since > 0, np.exp(-2.2 * since) * np.minimum(since / 0.01, 1.0), 0.0)
        note = pluck * sum(np.sin(2 * np.pi * pitch * k * since) / k**2 for k in (1, 2, 3))
        side = number / (len(notes) - 1)
        sound += np.stack([np.sqrt(1 - side) * note, np.sqrt(side) * note])
    sweep = np.sin(2 * np.pi * (110 * t + 110 * t**2 / (2 * _SECONDS)))
    sound = 0.25 * sound + 0.06 * sweep
    sound *= np.clip(np.minimum(t / 0.05, (_SECONDS - t) / 0.4), 0, 1)
    return np.clip(sound, -1, 1).astype(np.float32)


# The contact sheet

_SHEET_WIDTH = 1280
_MARGIN = 28
_GAP = 8
_PAPER, _INK, _PALE_INK = (250, 249, 246), (34, 34, 40), (120, 120, 128)


def write_contact_sheet(demo: Demo) -> None:
    """Write one PNG: frames of the clip, and the images, each with its result and the truth."""
    clip = zip(
        [f"{moment / _RATE:.1f} s" for moment in _MOMENTS],
        map(Image.fromarray, _frames_of(demo.clip, _MOMENTS)),
        map(Image.fromarray, _frames_of(demo.translated_clip, _MOMENTS)),
        map(Image.fromarray, _true_frames()),
        strict=True,
    )
    pictures = (
        (
            name,
            _on_checks(demo.pictures / name),
            _on_checks(demo.translated_pictures / name),
            Image.fromarray(Landscape(size, seed).at(0, NIGHT)),
        )
        for name, size, seed in _PICTURES
    )
    rows = "above, its translation in the middle, the truth below"
    parts = [
        _block(f"{demo.clip.name} {rows}", list(clip)),
        _block(f"{demo.pictures.name}/ {rows}", list(pictures)),
    ]
    sheet = Image.new("RGB", (_SHEET_WIDTH, sum(part.height for part in parts) + 36), _PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    ImageDraw.Draw(sheet).text((_MARGIN, top), NOTICE, _PALE_INK, _font(13))
    sheet.save(demo.sheet)


def _block(
    title: str, columns: Sequence[tuple[str, Image.Image, Image.Image, Image.Image]]
) -> Image.Image:
    """Return columns of a label and three images of one size, side by side at one height."""
    room = _SHEET_WIDTH - 2 * _MARGIN - _GAP * (len(columns) - 1)
    height = room / sum(source.width / source.height for _, source, _, _ in columns)
    rows = round(height)
    block = Image.new("RGB", (_SHEET_WIDTH, 44 + 3 * (rows + _GAP) + 28), _PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((_MARGIN, 14), title, _INK, _font(17))
    left = float(_MARGIN)
    for label, *images in columns:
        width = height * images[0].width / images[0].height
        for number, image in enumerate(images):
            resized = image.resize((round(width), rows), Image.Resampling.LANCZOS)
            block.paste(resized, (round(left), 44 + number * (rows + _GAP)))
        draw.text((round(left), 44 + 3 * (rows + _GAP) - 4), label, _PALE_INK, _font(13))
        left += width + _GAP
    return block


def _frames_of(path: Path, numbers: Sequence[int]) -> list[Pixels]:
    """Return the frames of these numbers, ``(H, W, 3)`` RGB uint8."""
    with av.open(str(path)) as container:
        frames = enumerate(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for index, frame in frames if index in numbers]


def _on_checks(path: Path) -> Image.Image:
    """Return the image, over a checkerboard where it is transparent."""
    with Image.open(path) as image:
        if image.mode != "RGBA":
            return image.convert("RGB")
        y, x = np.indices((image.height, image.width)) // 12
        checks = np.where((x + y) % 2, 255, 228).astype(np.uint8)
        board = Image.fromarray(checks).convert("RGBA")
        return Image.alpha_composite(board, image).convert("RGB")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
