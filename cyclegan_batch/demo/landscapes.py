"""Drawn landscapes: a valley by day, and the same valley by night.

The demo's clip and images are drawn here, and two domains for training: any number of images,
unpaired, and a true result for each image of the test set. No colour curve turns day into night:
snow and clouds are both white by day, and at night snow is pale and a cloud dark, while the dark
windows of the houses and the balloon shine. The translation depends on the kind of object, which
its texture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..files import output_error
from ..frames import Pixels

Colour: TypeAlias = tuple[int, int, int]
"""RGB, 0 to 255."""
FloatImage: TypeAlias = npt.NDArray[np.float32]

_FULL_HEIGHT = 360
"""The height of a view, in pixels, at which one unit is one pixel."""


@dataclass(frozen=True)
class Light:
    """The colours of each kind of object at a time of day."""

    sky: tuple[Colour, Colour]
    """At the top, and at the horizon."""
    disc: Colour
    """The sun, or the moon."""
    glow: tuple[Colour, float]
    """Around the disc, and its strength."""
    cloud: tuple[Colour, Colour]
    """Lit from above, and in its own shadow."""
    mountains: tuple[Colour, Colour, Colour]
    """From the farthest to the nearest ridge."""
    snow: Colour
    relief: float
    """Strength of light and shadow on the slopes."""
    fir: Colour
    wall: Colour
    roof: Colour
    window: Colour
    balloons: tuple[tuple[Colour, Colour], tuple[Colour, Colour]]
    """The stripes of either balloon."""
    basket: Colour
    bird: Colour
    water: Colour
    mirror: float
    """Strength of the reflection in the water."""
    glint: tuple[Colour, float]
    grass: tuple[Colour, Colour]
    """Far, and near."""
    flowers: tuple[Colour, Colour, Colour, Colour]


DAY = Light(
    sky=((58, 122, 196), (206, 228, 240)),
    disc=(255, 247, 214),
    glow=((255, 247, 214), 0.75),
    cloud=((255, 253, 248), (150, 165, 190)),
    mountains=((128, 148, 176), (92, 122, 128), (70, 108, 82)),
    snow=(244, 247, 252),
    relief=1.0,
    fir=(30, 66, 46),
    wall=(236, 236, 238),
    roof=(196, 58, 46),
    window=(82, 108, 112),
    balloons=(((206, 58, 46), (250, 206, 70)), ((84, 142, 208), (246, 246, 246))),
    basket=(122, 84, 50),
    bird=(40, 44, 56),
    water=(26, 78, 96),
    mirror=1.0,
    glint=((235, 245, 250), 0.4),
    grass=((116, 158, 60), (62, 112, 40)),
    flowers=((232, 70, 62), (250, 214, 72), (246, 244, 250), (176, 108, 214)),
)

NIGHT = Light(
    sky=((8, 12, 36), (46, 54, 100)),
    disc=(238, 240, 232),
    glow=((120, 132, 186), 0.5),
    cloud=((58, 62, 96), (30, 34, 62)),
    mountains=((40, 46, 82), (26, 34, 58), (16, 26, 40)),
    snow=(136, 150, 198),
    relief=1.2,
    fir=(7, 15, 20),
    wall=(58, 56, 74),
    roof=(34, 24, 38),
    window=(255, 204, 104),
    balloons=(((255, 120, 56), (255, 216, 120)), ((92, 120, 232), (255, 226, 176))),
    basket=(64, 44, 34),
    bird=(14, 16, 30),
    water=(10, 22, 46),
    mirror=0.9,
    glint=((150, 166, 214), 0.35),
    grass=((28, 54, 52), (14, 32, 32)),
    flowers=((84, 36, 58), (104, 92, 66), (112, 116, 150), (70, 48, 108)),
)


def write_domains(folder: Path, count: int, *, side: int = 128, held_out: int = 64) -> None:
    """Write two domains to train on: day in trainA, night in trainB, ``count`` images of each.

    trainA and trainB share no valley. testA and testB hold ``held_out`` further valleys by day and
    by night under the same names, so testB is the true result for testA. All images are ``side``
    pixels wide and high. Raises OutputError.
    """
    try:
        for number in range(2 * count + held_out):
            part, seed = ("test", number - 2 * count) if number >= 2 * count else ("train", number)
            for domain, light in (("A", DAY), ("B", NIGHT)):
                if part == "train" and domain != "AB"[number % 2]:
                    continue
                place = folder / f"{part}{domain}" / f"{seed:05d}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(window(number, light, side=side)).save(place)
    except OSError as error:
        raise output_error(folder, error) from error


def window(seed: int, light: Light, *, side: int = 128) -> Pixels:
    """Return ``(side, side, 3)`` RGB uint8: a whole small valley, or a part of a larger one.

    So a network that is trained on small images sees objects of the sizes they have in large ones.
    """
    random = np.random.default_rng([seed, side])
    height = round(side * (1 + 1.8 * random.uniform() ** 2))
    width = round(1.2 * height)
    valley = Landscape((height, width), seed, unit=height / _FULL_HEIGHT)
    top, left = random.integers(0, (height - side + 1, width - side + 1))
    view = valley.at(100 * random.uniform(), light)
    return np.ascontiguousarray(view[top : top + side, left : left + side])


class Landscape:
    """A painted valley through which the camera drifts: clouds, ridges, firs, houses, a lake.

    ``size`` is (height, width). ``unit`` is the scale of the objects in pixels; None means in
    proportion to the size, 1 at 360 pixels of height. A seed gives the same valley in every light.
    """

    def __init__(self, size: tuple[int, int], seed: int, *, unit: float | None = None) -> None:
        self.height, self.width = size
        self.unit = unit or min(self.height, self.width * 0.7) / _FULL_HEIGHT
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
        self.firs = np.sort(random.uniform(0, span, round(span / max(1, 22 * self.unit))))
        self.fir_sizes = random.uniform(0.55, 1.25, self.firs.size)
        self.flowers = random.uniform(0, 1, (span // 5, 3))
        self.flight = random.uniform(0, 1, 3)
        self.disc = (random.uniform(0.6, 0.92), random.uniform(0.12, 0.3))
        # Far houses stand on the other shore, near ones on the meadow.
        self.far_houses = _spaced(random, span, 70 * self.unit)
        self.near_houses = _spaced(random, span, 420 * self.unit)

    def at(self, seconds: float = 0.0, light: Light = DAY) -> Pixels:
        """Return the view after ``seconds`` of drift: ``(H, W, 3)`` RGB, uint8."""
        canvas = np.empty((self.height, self.width, 3), np.float32)
        self._sky(canvas, seconds, light)
        self._mountains(canvas, seconds, light)
        self._forest(canvas, seconds, light)
        self._village(canvas, seconds, light)
        self._balloon(canvas, seconds, light)
        self._birds(canvas, seconds, light)
        self._lake(canvas, seconds, light)
        self._meadow(canvas, seconds, light)
        return np.asarray(np.clip(canvas + 0.5, 0, 255), np.uint8)

    def _view(self, texture: FloatImage, pixels: float) -> FloatImage:
        """Return the visible part of a wide texture after a drift of ``pixels``."""
        start = pixels % (texture.shape[1] - self.width - 1)
        whole, part = int(start), start - int(start)
        one = texture[:, whole : whole + self.width]
        two = texture[:, whole + 1 : whole + 1 + self.width]
        return one * np.float32(1 - part) + two * np.float32(part)

    def _sky(self, canvas: FloatImage, seconds: float, light: Light) -> None:
        down = np.linspace(0, 1, self.horizon, dtype=np.float32)[:, None, None]
        sky = _rgb(light.sky[0]) * (1 - down) + _rgb(light.sky[1]) * down
        y, x = np.ogrid[: self.horizon, : self.width]
        across, high = self.disc
        away = np.hypot(y - high * self.height, x - across * self.width) / (0.26 * self.height)
        glow = light.glow[1] * np.exp(-3 * away)[..., None].astype(np.float32)
        sky = sky + (_rgb(light.glow[0]) - sky) * glow
        sky = sky + (_rgb(light.disc) - sky) * _smooth(away, 0.22, 0.19)[..., None]
        cloud = self._view(self.clouds, 14 * self.unit * seconds)
        cover = (_smooth(cloud, 0.48, 0.72) * (1 - 0.65 * down[..., 0]))[..., None]
        shade = _smooth(np.roll(cloud, -max(2, round(5 * self.unit)), axis=0), 0.35, 0.8)[..., None]
        bright, dark = (_rgb(colour) for colour in light.cloud)
        vapour = bright + (dark - bright) * (0.22 * shade)
        canvas[: self.horizon] = sky + (vapour - sky) * cover
        canvas[self.horizon :] = _rgb(light.sky[1])

    def _mountains(self, canvas: FloatImage, seconds: float, light: Light) -> None:
        y = np.arange(self.horizon, dtype=np.float32)[:, None]
        layers = ((0.44, 0.30, 7.0), (0.26, 0.20, 13.0), (0.10, 0.13, 22.0))
        for number, (base, rise, speed) in enumerate(layers):
            drift = speed * self.unit * seconds
            profile = self._view(self.ridges[number][np.newaxis], drift)[0]
            top = self.horizon * (1 - base - rise * (2 * profile - 1))
            rock = self._view(self.ground, drift)[: self.horizon]
            slope = np.gradient(rock, axis=1) * 6 * self.unit + np.gradient(top)[None, :] * 0.3
            relief = 1 + light.relief * (np.clip(-slope, -0.2, 0.2) + 0.14 * (rock - 0.5))
            body = _rgb(light.mountains[number]) * relief[..., None]
            if number == 0:
                line = 0.34 * self.horizon + (rock - 0.5) * 0.30 * self.horizon
                snow = _smooth(y, line + 3 * self.unit, line - 3 * self.unit)[..., None]
                body = body + (_rgb(light.snow) * relief[..., None] - body) * snow
            part = canvas[: self.horizon]
            part += (body - part) * np.clip(y - top + 0.5, 0, 1)[..., None]

    def _forest(self, canvas: FloatImage, seconds: float, light: Light) -> None:
        visible, places = self._in_view(self.firs, 30 * seconds, 30)
        for x, size in zip(places, self.fir_sizes[visible], strict=True):
            foot = self.horizon + 1
            tall, wide = 46 * self.unit * size, 13 * self.unit * size
            for storey in range(4):
                base = foot - tall * storey * 0.21
                half = wide * (1 - storey * 0.22)
                tone = _plain(light.fir, (0.75 + 0.3 * size) * (1 + 0.12 * storey))
                _polygon(canvas, [(x - half, base), (x + half, base), (x, base - tall * 0.4)], tone)

    def _village(self, canvas: FloatImage, seconds: float, light: Light) -> None:
        _, places = self._in_view(self.far_houses, 30 * seconds, 40)
        for x in places:
            self._house(canvas, (x, self.horizon + 1), 0.42, light)

    def _house(
        self, canvas: FloatImage, foot: tuple[float, float], size: float, light: Light
    ) -> None:
        """Draw a house, 60 units wide at ``size`` 1, with the middle of its wall above ``foot``."""
        x, ground = foot
        one = self.unit * size
        half, tall = 30 * one, 30 * one
        eaves = ground - tall
        _box(canvas, (x - half, eaves), (x + half, ground), _plain(light.wall))
        roof = [(x - half - 5 * one, eaves), (x + half + 5 * one, eaves)]
        roof += [(x + half - 10 * one, eaves - 22 * one), (x - half + 10 * one, eaves - 22 * one)]
        _polygon(canvas, roof, _plain(light.roof))
        for place in (-18, 0, 18):
            left, top = x + (place - 5) * one, eaves + 8 * one
            _box(canvas, (left, top), (left + 10 * one, top + 12 * one), _plain(light.window))

    def _balloon(self, canvas: FloatImage, seconds: float, light: Light) -> None:
        start, lift, kind = self.flight
        x = self.width * (0.16 + 0.30 * start + 0.075 * seconds % 0.7)
        y = self.height * (0.21 + 0.08 * lift + 0.02 * np.sin(1.4 * seconds + 6 * lift))
        radius = 40 * self.unit
        stripes = light.balloons[0 if kind < 0.6 else 1]
        mouth = [(x + radius * 0.2, y + radius * 1.42), (x - radius * 0.2, y + radius * 1.42)]
        for side in (-0.17, 0.17):
            ends = [(x + side * radius, y + radius * 1.4), (x + side * radius, y + radius * 1.75)]
            rope = _plain(light.basket, 0.6)
            cv2.polylines(canvas, [_fixed(ends)], False, rope, 1, cv2.LINE_AA, 4)
        # From the full width inwards: each stripe covers the middle of the previous one.
        for number, share in enumerate((1.0, 0.86, 0.62, 0.36, 0.12)):
            tone = _plain(stripes[number % 2], 0.84 + 0.05 * number)
            _ellipse(canvas, (x, y), (radius * share, radius), tone)
            skirt = [(x - radius * share * 0.72, y + radius * 0.68)]
            skirt += [(x + radius * share * 0.72, y + radius * 0.68)]
            _polygon(canvas, [*skirt, *mouth], tone)
        low, high = y + radius * 2.02, y + radius * 1.72
        basket = [(x - radius * 0.2, high), (x + radius * 0.2, high)]
        basket += [(x + radius * 0.16, low), (x - radius * 0.16, low)]
        _polygon(canvas, basket, _plain(light.basket))

    def _birds(self, canvas: FloatImage, seconds: float, light: Light) -> None:
        for number in range(5):
            place = self.width * (0.95 - 0.05 * seconds) + (number - 2) * 17 * self.unit
            x = place % (1.1 * self.width)
            y = self.height * 0.30 + abs(number - 2) * 8 * self.unit
            flap = 3.2 * self.unit * np.sin(9 * seconds + number)
            span = 7 * self.unit
            wings = [(x - span, y - flap), (x - span / 3, y - 1.5), (x, y), (x + span / 3, y - 1.5)]
            points = _fixed([*wings, (x + span, y - flap)])
            cv2.polylines(canvas, [points], False, _plain(light.bird), 1, cv2.LINE_AA, 4)

    def _lake(self, canvas: FloatImage, seconds: float, light: Light) -> None:
        rows = self.height - self.horizon
        down = np.arange(rows, dtype=np.float32)[:, None]
        across = np.arange(self.width, dtype=np.float32)[None, :]
        wave = np.sin(down * 9 / (3 + down / (9 * self.unit)) - 5 * seconds + 0.02 * across)
        wave += 0.6 * np.sin(0.045 * across / self.unit + 0.35 * down / self.unit + 3.1 * seconds)
        swell = (0.4 + 2.6 * down / rows) * self.unit
        source_x = across + wave * swell
        source_y = self.horizon - 1 - down * (self.horizon - 2) / rows + 0.8 * wave * swell
        mirror = cv2.remap(
            canvas[: self.horizon],
            source_x.astype(np.float32),
            np.clip(source_y, 0, self.horizon - 1).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        depth = (down / rows)[..., None]
        water = mirror * light.mirror * (0.80 - 0.25 * depth)
        water += _rgb(light.water) * (0.16 + 0.24 * depth)
        sparkle = self._view(self.blades, 30 * self.unit * seconds)[self.horizon :]
        glint = _smooth(wave + 2.2 * sparkle, 2.5, 3.2)[..., None] * (1 - 0.6 * depth)
        canvas[self.horizon :] = water + (_rgb(light.glint[0]) - water) * glint * light.glint[1]

    def _meadow(self, canvas: FloatImage, seconds: float, light: Light) -> None:
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
        _, houses = self._in_view(self.near_houses, 64 * seconds, 60)
        for x in houses:
            self._house(canvas, (x, self.shore + 12 * self.unit), 1.25, light)
        near = np.clip((y - self.shore) / max(1, self.height - self.shore), 0, 1)
        grain = self._view(self.ground, drift)[rows]
        shine = (0.62 + 0.45 * tuft + 0.35 * (grain - 0.5))[..., None]
        far_green, near_green = (_rgb(colour) for colour in light.grass)
        grass = (far_green * (1 - near)[..., None] + near_green * near[..., None]) * shine
        part = canvas[rows]
        part += (grass - part) * np.clip(y - edge + 0.5, 0, 1)[..., None]
        span = 3 * self.width
        for number, (along, deep, size) in enumerate(self.flowers):
            x = (along * span - drift) % span
            if x < self.width:
                top = self.shore + 6 * self.unit
                centre = (x, top + deep * (self.height - top))
                radius = (0.9 + 1.6 * size * (0.4 + deep)) * self.unit
                _ellipse(canvas, centre, (radius, radius), _plain(light.flowers[number % 4]))

    def _in_view(
        self, places: npt.NDArray[np.float64], drift: float, margin: float
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
        """Return which objects are visible after a drift, and their positions in pixels.

        ``drift`` and ``margin`` are in units.
        """
        start = drift * self.unit % (2 * self.width - 1)
        beyond = margin * self.unit
        visible = (places > start - beyond) & (places < start + self.width + beyond)
        return visible, places[visible] - start


def _spaced(random: np.random.Generator, span: int, spacing: float) -> npt.NDArray[np.float64]:
    """Return positions along ``span``: one in most intervals of ``spacing``, never two close by."""
    starts = np.arange(0, span, spacing)
    places = starts + spacing * random.uniform(0.1, 0.5, starts.size)
    return np.asarray(places[random.random(starts.size) < 0.7])


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


def _smooth(
    value: FloatImage | npt.NDArray[np.float64],
    low: float | FloatImage,
    high: float | FloatImage,
) -> FloatImage:
    """Return 0 at ``low``, 1 at ``high``, smoothly between, in either direction."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _rgb(colour: Colour) -> FloatImage:
    return np.array(colour, np.float32)


def _plain(colour: Colour, light: float = 1.0) -> tuple[float, ...]:
    """Return a colour in the type of OpenCV's drawing functions."""
    return tuple(float(c) * light for c in colour)


def _fixed(points: Sequence[tuple[float, float]]) -> npt.NDArray[np.int32]:
    """Return points in sixteenths of a pixel, the unit of OpenCV's ``shift=4``."""
    return np.round(np.array(points) * 16).astype(np.int32)


def _polygon(
    canvas: FloatImage, points: Sequence[tuple[float, float]], colour: tuple[float, ...]
) -> None:
    cv2.fillPoly(canvas, [_fixed(points)], colour, cv2.LINE_AA, 4)


def _box(
    canvas: FloatImage,
    low: tuple[float, float],
    high: tuple[float, float],
    colour: tuple[float, ...],
) -> None:
    corners = [low, (high[0], low[1]), high, (low[0], high[1])]
    _polygon(canvas, corners, colour)


def _ellipse(
    canvas: FloatImage,
    centre: tuple[float, float],
    radii: tuple[float, float],
    colour: tuple[float, ...],
) -> None:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = centre[0] + radii[0] * np.cos(angle)
    y = centre[1] + radii[1] * np.sin(angle)
    _polygon(canvas, list(zip(x, y, strict=True)), colour)
