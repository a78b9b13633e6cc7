"""Draw a harbour town in summer and in winter: other pairs of domains, which tune nothing.

    python benchmarks/harbour.py FOLDER [--images 300] [--side 128] [--coast home] [--look SHEET]

Writes trainA and trainB (summer and winter, no town in both), and testA and testB, whose images of
equal names are the same town. ``--coast elsewhere`` draws other towns in other colours, on which
somebody else has trained, and ``repainted`` a third set of towns, in those colours moved at random.
``--look`` writes a sheet of pairs, the summer above the winter.

At home what is equal by summer differs by winter, and the kind of object decides: of what is
white, sails get rust-red covers, foam and clouds go grey, and walls and the lighthouse stay; of
what is red, roofs get snow, and bricks and hulls stay; of what is green, meadows get snow, trees
lose their leaves, and shutters stay.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Season:
    """The RGB colours of each kind of object, 0 to 255."""

    sky: tuple[Colour, Colour]
    """At the top, and at the horizon."""
    cloud: Colour
    hill: tuple[Colour, Colour]
    """Far and near."""
    walls: tuple[Colour, Colour, Colour, Colour]
    """White, brick, ochre, blue."""
    roof: Colour
    shutter: Colour
    pane: Colour
    crown: tuple[Colour, Colour]
    """The two tones of the crown of a tree."""
    trunk: Colour
    quay: tuple[Colour, Colour]
    """Its top, and its stones."""
    tower: tuple[Colour, Colour]
    """The stripes of the lighthouse."""
    lamp: Colour
    sea: tuple[Colour, Colour]
    """Far and near."""
    patch: Colour
    """Weed under the water, where ice floats in winter."""
    crest: Colour
    hulls: tuple[Colour, Colour, Colour]
    sail: Colour
    mast: Colour


_WHITE: Colour = (244, 243, 238)
_RED: Colour = (194, 74, 54)
_GREEN: Colour = (58, 118, 66)
SUMMER = Season(
    sky=((84, 158, 222), (196, 226, 240)),
    cloud=_WHITE,
    hill=((120, 164, 110), _GREEN),
    walls=(_WHITE, _RED, (226, 178, 96), (120, 164, 204)),
    roof=_RED,
    shutter=_GREEN,
    pane=(52, 66, 84),
    crown=(_GREEN, (40, 88, 40)),
    trunk=(108, 76, 52),
    quay=((206, 190, 156), (140, 126, 106)),
    tower=(_WHITE, _RED),
    lamp=(86, 92, 96),
    sea=((62, 150, 178), (20, 96, 128)),
    patch=_GREEN,
    crest=_WHITE,
    hulls=(_RED, (36, 84, 152), _WHITE),
    sail=_WHITE,
    mast=(108, 76, 52),
)
WINTER = Season(
    sky=((150, 158, 182), (214, 206, 204)),
    cloud=(122, 128, 148),
    hill=((206, 212, 228), (234, 238, 246)),
    walls=((206, 204, 210), (146, 66, 56), (186, 146, 88), (96, 130, 166)),
    roof=(240, 243, 250),
    shutter=(34, 84, 62),
    pane=(250, 206, 120),
    crown=((112, 98, 100), (78, 66, 70)),
    trunk=(60, 46, 42),
    quay=((226, 230, 240), (108, 104, 110)),
    tower=((216, 214, 216), (164, 40, 42)),
    lamp=(255, 226, 140),
    sea=((92, 104, 124), (44, 54, 74)),
    patch=(208, 222, 232),
    crest=(88, 98, 116),
    hulls=((162, 44, 42), (30, 66, 122), (196, 196, 200)),
    sail=(150, 74, 46),
    mast=(84, 62, 50),
)


ELSEWHERE_SUMMER = Season(
    sky=((64, 126, 206), (222, 228, 226)),
    cloud=(250, 246, 236),
    hill=((178, 166, 116), (134, 128, 66)),
    walls=((250, 236, 208), (206, 152, 96), (222, 164, 152), (166, 196, 172)),
    roof=(112, 78, 66),
    shutter=(52, 92, 150),
    pane=(44, 50, 60),
    crown=((104, 122, 58), (72, 92, 48)),
    trunk=(92, 72, 60),
    quay=((222, 208, 178), (170, 150, 120)),
    tower=((250, 236, 208), (40, 62, 110)),
    lamp=(110, 110, 100),
    sea=((70, 178, 190), (16, 84, 150)),
    patch=(66, 108, 60),
    crest=(240, 246, 248),
    hulls=((222, 176, 60), (40, 112, 92), (250, 246, 236)),
    sail=(250, 240, 220),
    mast=(124, 92, 60),
)
ELSEWHERE_WINTER = Season(
    sky=((124, 138, 170), (226, 222, 224)),
    cloud=(142, 144, 158),
    hill=((222, 222, 228), (244, 244, 248)),
    walls=((212, 202, 184), (162, 122, 84), (176, 132, 126), (132, 156, 142)),
    roof=(250, 248, 248),
    shutter=(38, 66, 110),
    pane=(255, 224, 150),
    crown=((124, 104, 92), (92, 74, 64)),
    trunk=(54, 44, 40),
    quay=((240, 240, 244), (128, 118, 108)),
    tower=((216, 204, 184), (34, 50, 88)),
    lamp=(255, 236, 170),
    sea=((104, 122, 138), (38, 56, 90)),
    patch=(224, 234, 240),
    crest=(108, 118, 136),
    hulls=((180, 140, 54), (34, 84, 72), (206, 202, 196)),
    sail=(172, 96, 52),
    mast=(96, 72, 52),
)


def repainted(seasons: tuple[Season, Season], seed: int) -> tuple[Season, Season]:
    """Return a coast whose things have other colours: each is moved by up to 40 of 255 a channel.

    What a thing has in summer and in winter moves alike, so it looks painted otherwise.
    """
    random = np.random.default_rng(seed)
    moves = {each.name: random.integers(-40, 41, (4, 3)) for each in fields(Season)}

    def moved(season: Season) -> Season:
        values: dict[str, Any] = {}
        for name, move in moves.items():
            colours = np.array(getattr(season, name))
            change = move[: len(colours)] if colours.ndim == 2 else move[0]
            values[name] = tuple(np.clip(colours + change, 0, 255).tolist())
        return Season(**values)

    return moved(seasons[0]), moved(seasons[1])


COASTS = {"home": (SUMMER, WINTER), "elsewhere": (ELSEWHERE_SUMMER, ELSEWHERE_WINTER)}
COASTS["repainted"] = repainted(COASTS["elsewhere"], seed=5)

FIRST_TOWN = {"home": 0, "elsewhere": 1_000_000, "repainted": 2_000_000}
"""The seed of the first town of a coast, so that no town stands on two."""


class Harbour:
    """A town around a bay, of the size (height, width); a seed gives the same town in any season.

    ``unit`` is the size of the objects: 1 at 100 pixels of height.
    """

    def __init__(self, size: tuple[int, int], seed: int, unit: float) -> None:
        self.height, self.width = size
        self.unit = unit
        random = np.random.default_rng([seed, 7])
        self.light = random.uniform(0.80, 1.04)
        """How bright the view is."""
        self.horizon = round(self.height * random.uniform(0.30, 0.40))
        self.shore = round(self.height * random.uniform(0.56, 0.64))
        self.clouds = noise(random, size, 30 * unit, stretch=2.5)
        self.grain = noise(random, size, 9 * unit)
        self.waves = noise(random, size, 7 * unit, stretch=4)
        self.floes = noise(random, size, 16 * unit, stretch=2)
        self.ridge = noise(random, (1, self.width), 60 * unit)[0]
        self.tower = random.uniform(0, 1, 3)
        self.houses = random.uniform(0, 1, (2, 1 + int(self.width / (9 * unit)), 5))
        self.trees = random.uniform(0, 1, (round(self.width / (26 * unit)), 3))
        self.boats = random.uniform(0, 1, (round(self.width / (24 * unit)), 5))

    def at(self, season: Season) -> NDArray[np.uint8]:
        """Return the town: ``(H, W, 3)`` RGB."""
        canvas = np.empty((self.height, self.width, 3), np.float32)
        self._sky(canvas, season)
        self._sea(canvas, season)
        self._hills(canvas, season)
        self._town(canvas, season)
        self._boats(canvas, season)
        canvas *= self.light * (0.93 + 0.14 * self.grain[..., None])
        return np.asarray(np.clip(canvas + 0.5, 0, 255), np.uint8)

    def _sky(self, canvas: Floats, season: Season) -> None:
        down = np.linspace(0, 1.6, self.height, dtype=np.float32).clip(0, 1)[:, None, None]
        canvas[:] = rgb(season.sky[0]) * (1 - down) + rgb(season.sky[1]) * down
        cover = ((self.clouds - 0.55) * 5).clip(0, 0.95)[..., None]
        canvas += (rgb(season.cloud) - canvas) * cover

    def _hills(self, canvas: Floats, season: Season) -> None:
        y = np.arange(self.height, dtype=np.float32)[:, None]
        tops = (
            self.horizon - self.unit * (16 * self.ridge[None] - 4),
            self.horizon + self.unit * (8 - 12 * np.roll(self.ridge, self.width // 3)[None]),
        )
        for top, colour in zip(tops, season.hill, strict=True):
            land = rgb(colour) * (0.86 + 0.28 * self.grain)[..., None]
            shown = (y - top + 0.5).clip(0, 1) * (self.shore - 6 * self.unit - y + 0.5).clip(0, 1)
            canvas += (land - canvas) * shown[..., None]

    def _town(self, canvas: Floats, season: Season) -> None:
        one = self.unit
        for row, houses in enumerate(self.houses):
            foot = self.shore - (13 - 9 * row) * one
            x = -4 * one
            for kind, wide, tall, gap, steep in houses:
                half = (4 + 2.5 * wide) * one
                x += half
                if gap < 0.75:
                    self._house(canvas, season, (x, foot), (half, tall, steep), int(4 * kind))
                x += half + (gap * 2 + 4 * (gap >= 0.75)) * one
            if row == 0:
                for along, tall, tone in self.trees:
                    self._tree(canvas, season, along * self.width, foot + 3 * one, tall, tone)
        if self.tower[0] < 0.6:
            self._lighthouse(canvas, season)
        top, bottom = self.shore - 4 * one, self.shore + 3 * one
        box(canvas, (0, top), (self.width, top + 2.2 * one), season.quay[0])
        box(canvas, (0, top + 2.2 * one), (self.width, bottom), season.quay[1])

    def _house(
        self,
        canvas: Floats,
        season: Season,
        foot: tuple[float, float],
        shape: tuple[float, float, float],
        kind: int,
    ) -> None:
        (x, ground), (half, tall, steep), one = foot, shape, self.unit
        eaves = ground - (9 + 7 * tall) * one
        box(canvas, (x - half, eaves), (x + half, ground), season.walls[kind])
        gable = eaves - (4 + 4 * steep) * one
        over = 0.8 * one
        roof = [(x - half - over, eaves), (x + half + over, eaves)]
        if steep > 0.5:
            polygon(canvas, [*roof, (x, gable)], season.roof)
        else:
            ridge = [(x + half - 1.5 * one, gable), (x - half + 1.5 * one, gable)]
            polygon(canvas, [*roof, *ridge], season.roof)
        for storey in range(2 if tall > 0.4 else 1):
            for side in (-0.5, 0.5):
                left, top = x + side * half - 0.9 * one, eaves + (2 + 6 * storey) * one
                box(canvas, (left, top), (left + 1.8 * one, top + 3 * one), season.pane)
                for edge in (left - 1.1 * one, left + 1.8 * one):
                    box(canvas, (edge, top), (edge + 1.1 * one, top + 3 * one), season.shutter)

    def _tree(
        self, canvas: Floats, season: Season, x: float, ground: float, tall: float, tone: float
    ) -> None:
        one, radius = self.unit, (3.5 + 2.5 * tall) * self.unit
        middle = ground - radius - 5 * one
        box(canvas, (x - 0.7 * one, middle), (x + 0.7 * one, ground), season.trunk)
        random = np.random.default_rng(int(1e6 * tone))
        for number in range(14):
            away, angle = radius * 0.75 * np.sqrt(random.random()), 2 * np.pi * random.random()
            centre = (x + away * np.cos(angle), middle + away * np.sin(angle))
            disc(canvas, centre, radius * 0.38, season.crown[number % 2])

    def _lighthouse(self, canvas: Floats, season: Season) -> None:
        one = self.unit
        x, ground = (0.1 + 0.8 * self.tower[1]) * self.width, self.shore - 3 * one
        tall = (30 + 12 * self.tower[2]) * one
        for stripe in range(5):
            low, high = (ground - tall * part / 5 for part in (stripe, stripe + 1))
            wide, narrow = ((4 - 0.35 * part) * one for part in (stripe, stripe + 1))
            corners = [(x - wide, low), (x + wide, low), (x + narrow, high), (x - narrow, high)]
            polygon(canvas, corners, season.tower[stripe % 2])
        top = ground - tall
        box(canvas, (x - 1.6 * one, top - 4 * one), (x + 1.6 * one, top), season.lamp)
        polygon(
            canvas,
            [(x - 2.4 * one, top - 4 * one), (x + 2.4 * one, top - 4 * one), (x, top - 7 * one)],
            season.tower[1],
        )

    def _sea(self, canvas: Floats, season: Season) -> None:
        rows = slice(self.shore, self.height)
        down = np.linspace(0, 1, self.height - self.shore, dtype=np.float32)[:, None, None]
        water = rgb(season.sea[0]) * (1 - down) + rgb(season.sea[1]) * down
        water = water * (0.85 + 0.3 * self.waves[rows, :, None])
        shown = ((self.floes[rows] - 0.62) * 12).clip(0, 1)[..., None]
        water += (rgb(season.patch) * (0.9 + 0.2 * self.grain[rows, :, None]) - water) * shown
        foam = ((self.waves[rows] - 0.80) * 9).clip(0, 1)[..., None] * (1 - shown)
        canvas[rows] = water + (rgb(season.crest) - water) * foam

    def _boats(self, canvas: Floats, season: Season) -> None:
        one = self.unit
        for along, deep, kind, tall, rig in sorted(self.boats.tolist(), key=lambda boat: boat[1]):
            room = self.height - self.shore - 8 * one
            size = (0.7 + 0.6 * deep) * one
            x, y = along * self.width, self.shore + 8 * one + deep * max(0.0, room)
            half, mast = 8 * size, (16 + 8 * tall) * size
            hull = [(x - half, y - 3 * size), (x + half, y - 3 * size)]
            hull += [(x + 0.7 * half, y), (x - 0.8 * half, y)]
            polygon(canvas, hull, season.hulls[int(3 * kind)])
            deck = y - 3 * size
            box(canvas, (x - 0.5 * size, deck - mast), (x + 0.5 * size, deck), season.mast)
            if rig < 0.75:
                foot = deck - 1.5 * size
                polygon(
                    canvas,
                    [(x + size, foot), (x + 0.9 * half, foot), (x + size, deck - 0.95 * mast)],
                    season.sail,
                )


def window(seed: int, season: Season, side: int) -> NDArray[np.uint8]:
    """Return ``(side, side, 3)`` RGB: a part of a town, near or far."""
    random = np.random.default_rng([seed, side, 1])
    height = round(side * random.uniform(1.0, 1.9))
    width = round(1.3 * height)
    view = Harbour((height, width), seed, height / 100).at(season)
    top, left = random.integers(0, (height - side + 1, width - side + 1))
    return np.ascontiguousarray(view[top : top + side, left : left + side])


def write_harbours(
    folder: Path, count: int, side: int, held_out: int = 64, coast: str = "home"
) -> None:
    """Write trainA and trainB with ``count`` images each, testA and testB with the pairs."""
    first = FIRST_TOWN[coast]
    for number in range(2 * count + held_out):
        for letter, season in zip("AB", COASTS[coast], strict=True):
            if number < 2 * count and letter != "AB"[number % 2]:
                continue
            part = "train" if number < 2 * count else "test"
            place = folder / f"{part}{letter}" / f"{number:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(window(first + number, season, side)).save(place)


def noise(
    random: np.random.Generator, size: tuple[int, int], coarsest: float, stretch: float = 1.0
) -> Floats:
    """Return smooth noise in [0, 1], with features up to ``coarsest`` pixels high."""
    total = np.zeros(size, np.float32)
    feature, weight = max(coarsest, 1.6), 1.0
    while feature >= 1.5:
        grid = (int(size[0] / feature) + 2, int(size[1] / (stretch * feature)) + 2)
        coarse = random.random(grid, dtype=np.float32)
        total += weight * cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        feature, weight = feature / 2, weight * 0.55
    low, high = np.percentile(total, (1, 99))
    return np.asarray(np.clip((total - low) / max(high - low, 1e-6), 0, 1), np.float32)


def rgb(colour: Colour) -> Floats:
    return np.array(colour, np.float32)


def polygon(canvas: Floats, points: list[tuple[float, float]], colour: Colour) -> None:
    fixed: Any = np.round(np.array(points) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], [float(value) for value in colour], cv2.LINE_AA, 4)


def box(
    canvas: Floats, low: tuple[float, float], high: tuple[float, float], colour: Colour
) -> None:
    polygon(canvas, [low, (high[0], low[1]), high, (low[0], high[1])], colour)


def disc(canvas: Floats, centre: tuple[float, float], radius: float, colour: Colour) -> None:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    polygon(
        canvas,
        [(centre[0] + radius * np.cos(each), centre[1] + radius * np.sin(each)) for each in angles],
        colour,
    )


def sheet(coast: str, side: int, count: int = 8) -> NDArray[np.uint8]:
    """Return pairs in a row, the summer above the winter."""
    rows = [
        np.hstack([window(FIRST_TOWN[coast] + number, each, side) for number in range(count)])
        for each in COASTS[coast]
    ]
    return np.vstack(rows)


def main() -> None:
    """Draw the domains."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--coast", choices=COASTS, default="home")
    parser.add_argument("--look", type=Path, default=None, help="also write a sheet of pairs")
    arguments = parser.parse_args()
    write_harbours(arguments.folder, arguments.images, arguments.side, coast=arguments.coast)
    if arguments.look is not None:
        Image.fromarray(sheet(arguments.coast, arguments.side)).save(arguments.look)


if __name__ == "__main__":
    main()
