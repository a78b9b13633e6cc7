"""Show a translation from end to end on any machine: everything it needs is made here.

A clip with moving detail and sound and a folder of pictures are synthesised, a small fixed
generator is built, both are translated by the call that a user would make, and one contact sheet
shows each source above its result. The generator is a filter with hand-set weights, no trained
network: it shows what the tool does with a model, not what a model can do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import onnx
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFont

from .frames import Pixels, SizeRequirements
from .model import GeneratorIO, contract_from_generator, write_model

NOTICE = (
    "The demo's generator is a fixed filter (soft tone steps in dusk colours, ink lines along the "
    "edges), not a trained network."
)
"""Said once, so that nobody takes the filter for a CycleGAN."""

_RATE = 25
"""Frames per second of the clip."""
_SECONDS = 4
_CLIP_SIZE = (360, 640)
_SAMPLE_RATE = 48_000

_PICTURES: tuple[tuple[str, tuple[int, int], int], ...] = (
    ("lake.jpg", (400, 600), 3),
    ("portrait.png", (501, 333), 11),
    ("square with alpha.png", (384, 384), 5),
    ("wide/panorama.jpg", (243, 729), 21),
    ("wide/odd.png", (359, 479), 8),
    ("wide/small.jpg", (193, 257), 14),
)
"""Name, (height, width) and seed of every picture: odd sizes, two formats, alpha, a sub-folder."""

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    model: Path
    clip: Path
    translated_clip: Path
    pictures: Path
    translated_pictures: Path
    sheet: Path
    """Source above, result below."""


def run_demo(folder: Path, *, say: Callable[[str], None] = lambda sentence: None) -> Demo:
    """Make the demo in ``folder`` (created; what an earlier demo made there is replaced).

    ``say`` is told what happens, one sentence at a time. Raises OutputError and what `translate`
    raises.
    """
    from .api import translate

    folder.mkdir(parents=True, exist_ok=True)
    demo = Demo(
        model=folder / "dusk.onnx",
        clip=folder / "clip.mp4",
        translated_clip=folder / "clip-dusk.mp4",
        pictures=folder / "pictures",
        translated_pictures=folder / "pictures-dusk",
        sheet=folder / "sheet.png",
    )
    say(NOTICE)
    write_generator(demo.model)
    write_clip(demo.clip)
    write_pictures(demo.pictures)
    for source, result in (
        (demo.clip, demo.translated_clip),
        (demo.pictures, demo.translated_pictures),
    ):
        say(f"cyclegan-batch translate {source} {result} -m {demo.model}")
        translate(source, result, model=demo.model, overwrite=True)
    write_contact_sheet(demo)
    say(f"The clip: {demo.translated_clip}")
    say(f"The pictures: {demo.translated_pictures}")
    say(f"Look first at the contact sheet, source above and result below: {demo.sheet}")
    return demo


# The generator


def write_generator(path: Path) -> None:
    """Write the demo's generator: `dusk_network` inside the contract. Raises OutputError."""
    write_model(
        path,
        contract_from_generator(dusk_network(), GeneratorIO()),
        architecture="demo filter: fixed weights, not trained",
        sizes=SizeRequirements(minimum=4),  # a border of 3 is reflected
    )


def dusk_network() -> onnx.ModelProto:
    """Return a fixed float network from ``image`` (N, 3, H, W) in [-1, 1] to ``dusk``, alike.

    Its blocks are those of a ResNet generator (reflection padding, convolution, InstanceNorm, ReLU,
    Tanh), its weights are set by hand: the local mean of the luma, normalised over the frame, goes
    into soft steps, each step adds its colour of the evening, and edges are drawn as ink.
    """
    weights = {
        "look.weight": _look_weights(),
        "norm.scale": np.array([1.0, 1.0, 1.0], np.float32),
        "norm.shift": np.zeros(3, np.float32),
        "tones.weight": _pointwise([[2.6, 0, 0]] * 4),
        "tones.bias": np.array([3.1, 0.9, -1.2, -3.4], np.float32),
        "edges.weight": _pointwise([[0, 0.5, 0], [0, -0.5, 0], [0, 0, 0.5], [0, 0, -0.5]]),
        "edges.bias": np.full(4, -0.6, np.float32),
        "mix.weight": _mix_weights(),
        "mix.bias": _evening_colours()[[0, -1]].mean(axis=0).astype(np.float32),
        "pads": np.array([0, 0, 3, 3, 0, 0, 3, 3], np.int64),
    }
    nodes = [
        helper.make_node("Pad", ["image", "pads"], ["padded"], mode="reflect"),
        helper.make_node("Conv", ["padded", "look.weight"], ["seen"], kernel_shape=[7, 7]),
        helper.make_node(
            "InstanceNormalization", ["seen", "norm.scale", "norm.shift"], ["normed"], epsilon=1e-5
        ),
        helper.make_node("Conv", ["normed", "tones.weight", "tones.bias"], ["stepped"]),
        helper.make_node("Tanh", ["stepped"], ["tones"]),
        helper.make_node("Conv", ["normed", "edges.weight", "edges.bias"], ["edged"]),
        helper.make_node("Relu", ["edged"], ["edges"]),
        helper.make_node("Concat", ["tones", "edges", "image"], ["mixed"], axis=1),
        helper.make_node("Conv", ["mixed", "mix.weight", "mix.bias"], ["graded"]),
        helper.make_node("Tanh", ["graded"], ["dusk"]),
    ]
    shape: list[str | int | None] = ["N", 3, "H", "W"]
    graph = helper.make_graph(
        nodes,
        "dusk",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("dusk", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        doc_string=NOTICE,
    )
    return helper.make_model(
        graph,
        producer_name="cyclegan-batch demo",
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,  # opset 17's own; the newest that onnx writes is newer than runtimes read
    )


def _look_weights() -> npt.NDArray[np.float32]:
    """Return (3, 3, 7, 7): the local mean of the luma, and how it changes along x and along y."""
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    bell = cv2.getGaussianKernel(7, 1.1).astype(np.float32)
    slope = np.gradient(bell[:, 0])[:, np.newaxis].astype(np.float32)
    kernels = [bell @ bell.T, bell @ slope.T, slope @ bell.T]
    return np.stack([luma[:, None, None] * kernel for kernel in kernels]).astype(np.float32)


def _mix_weights() -> npt.NDArray[np.float32]:
    """Return (3, 11, 1, 1): what each tone, edge and source channel adds to red, green and blue."""
    # Each step is -1 or 1, so half the way from one colour to the next.
    tones = np.diff(_evening_colours(), axis=0) / 2
    edges = np.full((4, 3), -0.5)
    # A little of the source's own colour differences, so that red and green stay apart.
    keep = 0.45 * (np.eye(3) - np.array([[0.299, 0.587, 0.114]] * 3).T)
    return _pointwise(np.concatenate([tones, edges, keep]).T)


def _evening_colours() -> npt.NDArray[np.float64]:
    """Return (5, 3): night blue, plum, coral, amber and peach, as the last Tanh takes them."""
    colours = [(26, 24, 62), (88, 44, 104), (196, 92, 96), (244, 164, 104), (254, 226, 184)]
    return np.asarray(np.arctanh(np.clip(np.array(colours) / 127.5 - 1, -0.97, 0.97)))


def _pointwise(rows: Any) -> npt.NDArray[np.float32]:
    """Return a matrix as the weights of a 1×1 convolution."""
    return np.ascontiguousarray(np.asarray(rows, np.float32)[:, :, np.newaxis, np.newaxis])


# The sources


def write_clip(path: Path) -> None:
    """Write four seconds of a moving landscape, H.264 and AAC."""
    landscape = Landscape(_CLIP_SIZE, seed=7)
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
    """Write the pictures, with their sub-folder, into ``folder``."""
    for name, size, seed in _PICTURES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(Landscape(size, seed=seed).at(seed * 0.7))
        if "alpha" in name:
            picture.putalpha(Image.fromarray(_round_mask(size)))
        picture.save(path, quality=93)


def _round_mask(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    height, width = size
    y, x = np.ogrid[:height, :width]
    away = np.hypot((y - height / 2 + 0.5) / (height / 2), (x - width / 2 + 0.5) / (width / 2))
    return (_smooth(away, 1.0, 0.96) * 255).astype(np.uint8)


def _sound() -> npt.NDArray[np.float32]:
    """Return (2, samples) in [-1, 1]: a slow broken chord from left to right over a rising tone."""
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


class Landscape:
    """A painted valley through which the camera drifts: clouds, ridges, firs, a lake, a balloon."""

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        self.height, self.width = size
        self.unit = min(self.height, self.width * 0.7) / 360
        random = np.random.default_rng(seed)
        self.horizon = round(self.height * random.uniform(0.52, 0.58))
        self.shore = round(self.height * random.uniform(0.80, 0.86))
        span = 3 * self.width
        self.clouds = _fractal(random, (self.horizon, span), self.height / 3.2)
        self.ground = _fractal(random, (self.height, span), 26 * self.unit)
        self.blades = _fractal(random, (self.height, span), 7 * self.unit)
        self.ridges = [
            _fractal(random, (1, span), self.width / spread)[0] for spread in (2.2, 3.2, 5.0)
        ]
        self.firs = np.sort(random.uniform(0, span, span // max(1, round(22 * self.unit))))
        self.fir_sizes = random.uniform(0.55, 1.25, self.firs.size)
        self.flowers = random.uniform(0, 1, (span // 5, 3))
        self.flight = random.uniform(0, 1, 3)

    def at(self, seconds: float) -> Pixels:
        """Return the view after ``seconds``: ``(H, W, 3)`` RGB, uint8."""
        picture = np.empty((self.height, self.width, 3), np.float32)
        self._sky(picture, seconds)
        self._mountains(picture, seconds)
        self._forest(picture, seconds)
        self._balloon(picture, seconds)
        self._birds(picture, seconds)
        self._lake(picture, seconds)
        self._meadow(picture, seconds)
        return np.asarray(np.clip(picture + 0.5, 0, 255), np.uint8)

    def _view(self, texture: FloatImage, pixels: float) -> FloatImage:
        """Return the part of a wide texture that is seen after a drift of ``pixels``."""
        start = pixels % (texture.shape[1] - self.width - 1)
        whole, part = int(start), start - int(start)
        one = texture[:, whole : whole + self.width]
        two = texture[:, whole + 1 : whole + 1 + self.width]
        return one * np.float32(1 - part) + two * np.float32(part)

    def _sky(self, picture: FloatImage, seconds: float) -> None:
        down = np.linspace(0, 1, self.horizon, dtype=np.float32)[:, None, None]
        sky = _rgb(58, 122, 196) * (1 - down) + _rgb(206, 228, 240) * down
        y, x = np.ogrid[: self.horizon, : self.width]
        away = np.hypot(y - 0.2 * self.height, x - 0.76 * self.width) / (0.26 * self.height)
        glow = np.exp(-3 * away)[..., None].astype(np.float32)
        disc = _smooth(away, 0.22, 0.19)[..., None]
        sky = sky + (_rgb(255, 247, 214) - sky) * np.maximum(0.75 * glow, disc)
        cloud = self._view(self.clouds, 14 * self.unit * seconds)
        cover = (_smooth(cloud, 0.48, 0.72) * (1 - 0.65 * down[..., 0]))[..., None]
        shade = _smooth(np.roll(cloud, -max(2, round(5 * self.unit)), axis=0), 0.35, 0.8)[..., None]
        white = _rgb(255, 253, 248) * (1 - 0.22 * shade) + _rgb(150, 165, 190) * (0.22 * shade)
        picture[: self.horizon] = sky + (white - sky) * cover
        picture[self.horizon :] = _rgb(206, 228, 240)

    def _mountains(self, picture: FloatImage, seconds: float) -> None:
        y = np.arange(self.horizon, dtype=np.float32)[:, None]
        layers = (
            ((128, 148, 176), 0.44, 0.30, 7.0, True),
            ((92, 122, 128), 0.26, 0.20, 13.0, False),
            ((70, 108, 82), 0.10, 0.13, 22.0, False),
        )
        for ridge, (colour, base, rise, speed, snowy) in zip(self.ridges, layers, strict=True):
            drift = speed * self.unit * seconds
            profile = self._view(ridge[np.newaxis], drift)[0]
            top = self.horizon * (1 - base - rise * (2 * profile - 1))
            rock = self._view(self.ground, drift)[: self.horizon]
            slope = np.gradient(rock, axis=1) * 6 * self.unit + np.gradient(top)[None, :] * 0.3
            light = 1 + np.clip(-slope, -0.2, 0.2) + 0.14 * (rock - 0.5)
            body = _rgb(*colour) * light[..., None]
            if snowy:
                line = 0.34 * self.horizon + (rock - 0.5) * 0.30 * self.horizon
                snow = _smooth(y, line + 3, line - 3)[..., None]
                body = body + (_rgb(244, 247, 252) * light[..., None] - body) * snow
            cover = np.clip(y - top + 0.5, 0, 1)[..., None]
            part = picture[: self.horizon]
            part += (body - part) * cover

    def _forest(self, picture: FloatImage, seconds: float) -> None:
        drift = 30 * self.unit * seconds % (2 * self.width - 1)
        margin = 30 * self.unit
        visible = (self.firs > drift - margin) & (self.firs < drift + self.width + margin)
        for x, size in zip(self.firs[visible] - drift, self.fir_sizes[visible], strict=True):
            foot = self.horizon + 1
            tall, wide = 46 * self.unit * size, 13 * self.unit * size
            green = tuple(float(c) * (0.75 + 0.3 * size) for c in (30, 66, 46))
            for storey in range(4):
                base = foot - tall * storey * 0.21
                half = wide * (1 - storey * 0.22)
                points = [(x - half, base), (x + half, base), (x, base - tall * 0.40)]
                lit = tuple(c * (1 + 0.12 * storey) for c in green)
                cv2.fillPoly(picture, [_fixed(points)], lit, cv2.LINE_AA, 4)

    def _balloon(self, picture: FloatImage, seconds: float) -> None:
        start, lift, colour = self.flight
        x = self.width * (0.16 + 0.30 * start + 0.075 * seconds % 0.7)
        y = self.height * (0.21 + 0.08 * lift + 0.02 * np.sin(1.4 * seconds + 6 * lift))
        radius = 40 * self.unit
        stripes = (
            ((216, 54, 44), (250, 206, 70)) if colour < 0.6 else ((46, 98, 190), (244, 238, 224))
        )
        skirt = [(x - radius * 0.72, y + radius * 0.68), (x + radius * 0.72, y + radius * 0.68)]
        mouth = [(x + radius * 0.2, y + radius * 1.42), (x - radius * 0.2, y + radius * 1.42)]
        for side in (-0.17, 0.17):
            ends = [(x + side * radius, y + radius * 1.4), (x + side * radius, y + radius * 1.75)]
            cv2.polylines(picture, [_fixed(ends)], False, (70.0, 52.0, 40.0), 1, cv2.LINE_AA, 4)
        cv2.fillPoly(picture, [_fixed([*skirt, *mouth])], _plain(stripes[0], 0.82), cv2.LINE_AA, 4)
        # From the full width inwards: every stripe covers the middle of the one before.
        for number, share in enumerate((1.0, 0.86, 0.62, 0.36, 0.12)):
            tone = _plain(stripes[number % 2], 0.84 + 0.05 * number)
            _ellipse(picture, (x, y), (radius * share, radius), tone)
            if number:
                low = [(x - radius * share * 0.74, y + radius * 0.66)]
                low += [(x + radius * share * 0.74, y + radius * 0.66)]
                low += [(x + radius * share * 0.2, y + radius * 1.42)]
                low += [(x - radius * share * 0.2, y + radius * 1.42)]
                cv2.fillPoly(picture, [_fixed(low)], tone, cv2.LINE_AA, 4)
        basket = [
            (x - radius * 0.2, y + radius * 1.72),
            (x + radius * 0.2, y + radius * 1.72),
            (x + radius * 0.16, y + radius * 2.02),
            (x - radius * 0.16, y + radius * 2.02),
        ]
        cv2.fillPoly(picture, [_fixed(basket)], (122.0, 84.0, 50.0), cv2.LINE_AA, 4)

    def _birds(self, picture: FloatImage, seconds: float) -> None:
        for number in range(5):
            place = self.width * (0.95 - 0.05 * seconds) + (number - 2) * 17 * self.unit
            x = place % (1.1 * self.width)
            y = self.height * 0.30 + abs(number - 2) * 8 * self.unit
            flap = 3.2 * self.unit * np.sin(9 * seconds + number)
            span = 7 * self.unit
            wings = [(x - span, y - flap), (x - span / 3, y - 1.5), (x, y), (x + span / 3, y - 1.5)]
            points = _fixed([*wings, (x + span, y - flap)])
            cv2.polylines(picture, [points], False, (40.0, 44.0, 56.0), 1, cv2.LINE_AA, 4)

    def _lake(self, picture: FloatImage, seconds: float) -> None:
        rows = self.height - self.horizon
        down = np.arange(rows, dtype=np.float32)[:, None]
        across = np.arange(self.width, dtype=np.float32)[None, :]
        wave = np.sin(down * 9 / (3 + down / (9 * self.unit)) - 5 * seconds + 0.02 * across)
        wave += 0.6 * np.sin(0.045 * across / self.unit + 0.35 * down / self.unit + 3.1 * seconds)
        swell = (0.4 + 2.6 * down / rows) * self.unit
        source_x = across + wave * swell
        source_y = self.horizon - 1 - down * (self.horizon - 2) / rows + 0.8 * wave * swell
        mirror = cv2.remap(
            picture[: self.horizon],
            source_x.astype(np.float32),
            np.clip(source_y, 0, self.horizon - 1).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        depth = (down / rows)[..., None]
        water = mirror * (0.80 - 0.25 * depth) + _rgb(26, 78, 96) * (0.16 + 0.24 * depth)
        sparkle = self._view(self.blades, 30 * self.unit * seconds)[self.horizon :]
        glint = _smooth(wave + 2.2 * sparkle, 2.5, 3.2)[..., None] * 0.4 * (1 - 0.6 * depth)
        picture[self.horizon :] = water + (_rgb(235, 245, 250) - water) * glint

    def _meadow(self, picture: FloatImage, seconds: float) -> None:
        drift = 64 * self.unit * seconds
        rows = slice(self.shore - round(24 * self.unit), self.height)
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
        tuft = self._view(self.blades, drift)[rows]
        mound = self._view(self.ridges[2][np.newaxis], drift)[0][None, :]
        # The tips of the blades sway more than their feet.
        sway = 2.2 * np.sin(2.3 * seconds + np.arange(self.width) / (38 * self.unit))
        edge = (
            self.shore - 12 * self.unit * (mound - 0.5) - self.unit * (14 * (tuft[:1] - 0.3) + sway)
        )
        near = np.clip((y - self.shore) / max(1, self.height - self.shore), 0, 1)
        grain = self._view(self.ground, drift)[rows]
        light = (0.62 + 0.45 * tuft + 0.35 * (grain - 0.5))[..., None]
        grass = (
            _rgb(116, 158, 60) * (1 - near)[..., None] + _rgb(62, 112, 40) * near[..., None]
        ) * light
        part = picture[rows]
        part += (grass - part) * np.clip(y - edge + 0.5, 0, 1)[..., None]
        colours = ((232, 70, 62), (250, 214, 72), (246, 244, 250), (176, 108, 214))
        span = 3 * self.width
        for number, (along, deep, size) in enumerate(self.flowers):
            x = (along * span - drift) % span
            if x < self.width:
                top = self.shore + 6 * self.unit
                centre = (x, top + deep * (self.height - top))
                radius = (0.9 + 1.6 * size * (0.4 + deep)) * self.unit
                _ellipse(picture, centre, (radius, radius), _plain(colours[number % 4], 1.0))


def _fractal(random: np.random.Generator, size: tuple[int, int], coarsest: float) -> FloatImage:
    """Return smooth noise in [0, 1] whose largest features measure ``coarsest`` pixels."""
    height, width = size
    total = np.zeros(size, np.float32)
    feature, weight = coarsest, 1.0
    while feature >= 1.5 and weight > 0.02:
        grid = (int(height / feature) + 2, int(width / feature) + 2)
        coarse = random.random(grid, dtype=np.float32)
        total += np.float32(weight) * cv2.resize(
            coarse, (width, height), interpolation=cv2.INTER_CUBIC
        )
        feature, weight = feature / 2, weight * 0.52
    low, high = np.percentile(total, (1, 99))
    return np.asarray(np.clip((total - low) / max(high - low, 1e-6), 0, 1), np.float32)


def _smooth(value: Any, low: Any, high: Any) -> FloatImage:
    """Return 0 at ``low``, 1 at ``high``, smoothly between, in either direction."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _rgb(*colour: float) -> FloatImage:
    return np.array(colour, np.float32)


def _plain(colour: Sequence[float], light: float) -> tuple[float, ...]:
    """Return a colour as OpenCV's drawing takes it."""
    return tuple(float(c) * light for c in colour)


def _fixed(points: Sequence[tuple[float, float]]) -> npt.NDArray[np.int32]:
    """Return points in sixteenths of a pixel, as OpenCV's ``shift=4`` reads them."""
    return np.round(np.array(points) * 16).astype(np.int32)


def _ellipse(
    picture: FloatImage,
    centre: tuple[float, float],
    radii: tuple[float, float],
    colour: tuple[float, ...],
) -> None:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = centre[0] + radii[0] * np.cos(angle)
    y = centre[1] + radii[1] * np.sin(angle)
    cv2.fillPoly(picture, [_fixed(list(zip(x, y, strict=True)))], colour, cv2.LINE_AA, 4)


# The contact sheet

_SHEET_WIDTH = 1280
_MARGIN = 28
_GAP = 8
_PAPER, _INK, _PALE_INK = (250, 249, 246), (34, 34, 40), (120, 120, 128)


def write_contact_sheet(demo: Demo) -> None:
    """Write one PNG: moments of the clip, and the pictures, each above its translation."""
    count = _RATE * _SECONDS
    moments = [round(count * share) for share in (0.04, 0.34, 0.64, 0.94)]
    pictures = [name for name, _, _ in _PICTURES]
    blocks = (
        (
            f"{demo.clip.name} above, {demo.translated_clip.name} below",
            [f"{moment / _RATE:.1f} s" for moment in moments],
            _frames_of(demo.clip, moments),
            _frames_of(demo.translated_clip, moments),
        ),
        (
            f"{demo.pictures.name}/ above, {demo.translated_pictures.name}/ below",
            pictures,
            [_on_checks(demo.pictures / name) for name in pictures],
            [_on_checks(demo.translated_pictures / name) for name in pictures],
        ),
    )
    parts = [_block(*block) for block in blocks]
    sheet = Image.new("RGB", (_SHEET_WIDTH, sum(part.height for part in parts) + 36), _PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    ImageDraw.Draw(sheet).text((_MARGIN, top), NOTICE, _PALE_INK, _font(13))
    sheet.save(demo.sheet)


def _block(
    title: str,
    labels: Sequence[str],
    sources: Sequence[Image.Image],
    results: Sequence[Image.Image],
) -> Image.Image:
    """Return a row of sources above a row of results, all of one height that fills the width."""
    room = _SHEET_WIDTH - 2 * _MARGIN - _GAP * (len(sources) - 1)
    height = room / sum(source.width / source.height for source in sources)
    rows = round(height)
    block = Image.new("RGB", (_SHEET_WIDTH, 44 + 2 * rows + _GAP + 36), _PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((_MARGIN, 14), title, _INK, _font(17))
    left = float(_MARGIN)
    for label, source, result in zip(labels, sources, results, strict=True):
        width = height * source.width / source.height
        box = (round(width), rows)
        top = 44
        block.paste(source.resize(box, Image.Resampling.LANCZOS), (round(left), top))
        top += rows + _GAP
        block.paste(result.resize(box, Image.Resampling.LANCZOS), (round(left), top))
        draw.text((round(left), top + rows + 4), label, _PALE_INK, _font(13))
        left += width + _GAP
    return block


def _frames_of(path: Path, wanted: Sequence[int]) -> list[Image.Image]:
    """Return the frames of these positions."""
    with av.open(str(path)) as container:
        frames = enumerate(container.decode(video=0))
        arrays = [frame.to_ndarray(format="rgb24") for index, frame in frames if index in wanted]
    return [Image.fromarray(array) for array in arrays]


def _on_checks(path: Path) -> Image.Image:
    """Return the picture, over a checkerboard where it is transparent."""
    with Image.open(path) as picture:
        if picture.mode != "RGBA":
            return picture.convert("RGB")
        y, x = np.indices((picture.height, picture.width)) // 12
        checks = np.where((x + y) % 2, 255, 228).astype(np.uint8)
        board = Image.fromarray(checks).convert("RGBA")
        return Image.alpha_composite(board, picture).convert("RGB")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
