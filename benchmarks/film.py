"""Measure how much a translated film flickers, and what the filter against it changes.

    python benchmarks/film.py MODEL CLIP... [--strips FOLDER]   the table of film.md
    python benchmarks/film.py drive                             the same of a drawn drive, by night
    python benchmarks/film.py speed                             CPU time of the filter, a frame

The first frames of each clip are scaled to 256 lines and translated one by one; ``filtered`` is
what the filter makes of them, ``blurred`` the per-frame result blurred until it is as sharp as the
filtered one, and ``drawn`` the drive as the demo draws it by night. ``--strips`` writes pictures to
look at: one row of pixels over time, and details of some frames, each of the source, the per-frame
and the filtered result.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY)]

from cyclegan_batch.demo.landscapes import DAY, NIGHT, Landscape, Light  # noqa: E402
from cyclegan_batch.frames import Pixels  # noqa: E402
from cyclegan_batch.generator import Generator, open_generator  # noqa: E402
from cyclegan_batch.options import DEFAULT_STRENGTH  # noqa: E402
from cyclegan_batch.temporal.consistency import (  # noqa: E402
    Flicker,
    FlickerMeter,
    blurred,
    control_sigma,
    psnr,
)
from cyclegan_batch.temporal.flow_filter import FlowFilter  # noqa: E402

HEIGHT = 256
DEMO = REPOSITORY / "cyclegan_batch" / "demo"


def read(clip: Path, count: int) -> list[Pixels]:
    """Return the first frames of a clip at 256 lines, the width a multiple of 4."""
    import av

    frames: list[Pixels] = []
    with av.open(str(clip)) as container:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")
            height, width = pixels.shape[:2]
            size = round(width * HEIGHT / height / 4) * 4, HEIGHT
            kind = cv2.INTER_AREA if height > HEIGHT else cv2.INTER_CUBIC
            frames.append(cv2.resize(pixels, size, interpolation=kind))
            if len(frames) == count:
                break
    return frames


def drive(count: int, light: Light = DAY) -> list[Pixels]:
    """Return frames of the landscape that the demo draws, in which the camera drifts."""
    valley = Landscape((HEIGHT, 456), seed=7)
    return [valley.at(frame / 25, light) for frame in range(count)]


def measure(
    sources: list[Pixels], translated: list[Pixels], strength: float
) -> tuple[dict[str, Flicker], list[Pixels], float]:
    """Return the measures by name, the filtered frames, and their PSNR to the translated ones."""
    filtering = FlowFilter(strength)
    filtered = [filtering(*pair) for pair in zip(sources, translated, strict=True)]
    sharp = FlickerMeter(2)
    for source, *frames in zip(sources, translated, filtered, strict=True):
        sharp.add(source, frames)
    plain, ours = sharp.results()
    sigma = control_sigma(translated[::6], ours.sharpness / plain.sharpness)
    meter = FlickerMeter(2)
    for source, frame in zip(sources, translated, strict=True):
        meter.add(source, [source, blurred(frame, sigma)])
    names = ("source", "blurred")
    measures = dict(zip(names, meter.results(), strict=True))
    return {"per-frame": plain, "filtered": ours, **measures}, filtered, psnr(translated, filtered)


def row(name: str, one: Flicker, plain: Flicker) -> str:
    """Return a line of the table: each measure, and its ratio to that of the per-frame result."""
    return (
        f"  {name:10} E {one.error * 1e3:6.3f} ({one.error / plain.error:.2f})"
        f"  E_low {one.coarse_error * 1e3:6.3f} ({one.coarse_error / plain.coarse_error:.3f})"
        f"  pump {one.pump:5.2f} ({one.pump / plain.pump:.2f})"
        f"  gradient {one.sharpness / plain.sharpness:.3f}"
    )


def film(
    name: str, sources: list[Pixels], generator: Generator, strength: float, strips: Path | None
) -> None:
    """Print the table of a clip."""
    translated = [generator(frame[np.newaxis])[0] for frame in sources]
    measures, filtered, similarity = measure(sources, translated, strength)
    height, width = sources[0].shape[:2]
    print(f"{name}: {len(sources)} frames of {width}×{height}, λ = {strength}")
    if name == "drive":
        meter = FlickerMeter(1)
        for source, night in zip(sources, drive(len(sources), NIGHT), strict=True):
            meter.add(source, [night])
        measures["drawn"] = meter.results()[0]
    for kind, one in measures.items():
        print(row(kind, one, measures["per-frame"]))
    print(f"  PSNR of filtered to per-frame {similarity:.1f} dB", flush=True)
    if strips is not None:
        draw(strips, name, sources, translated, filtered)


def draw(
    folder: Path,
    name: str,
    sources: list[Pixels],
    translated: list[Pixels],
    filtered: list[Pixels],
) -> None:
    """Write pictures of a clip: a row of pixels over time, and details of frames in a row."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = (sources, translated, filtered)
    middle = HEIGHT // 2
    over_time = [np.stack([frame[middle] for frame in frames]) for frames in kinds]
    over_time = [cv2.resize(each, None, fx=2, fy=5, interpolation=0) for each in over_time]
    left = sources[0].shape[1] // 2 - 80
    chosen = range(len(sources) // 2, min(len(sources) // 2 + 5, len(sources)))
    details = [
        np.hstack([frames[index][48:208, left : left + 160] for index in chosen])
        for frames in kinds
    ]
    details = [cv2.resize(each, None, fx=2, fy=2, interpolation=0) for each in details]
    for what, pictures in (("time", over_time), ("frames", details)):
        cv2.imwrite(str(folder / f"{name}.{what}.png"), np.vstack(pictures)[:, :, ::-1])


def speed(rounds: int = 5) -> None:
    """Print the CPU time of the filter for a frame, by one thread; the median of the rounds."""
    random = np.random.default_rng(0)
    for height, width in ((256, 256), (256, 456), (720, 1280), (1080, 1920)):
        coarse = random.integers(0, 256, (height // 8 + 40, width // 8 + 40, 3), np.uint8)
        wide = cv2.resize(coarse, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
        frames = [
            np.ascontiguousarray(wide[3 * t : 3 * t + height, 2 * t : 2 * t + width])
            for t in range(10)
        ]
        times = []
        for _ in range(rounds):
            filtering = FlowFilter()
            for frame in frames[:2]:
                filtering(frame, 255 - frame)
            begin = time.process_time()
            for frame in frames[2:]:
                filtering(frame, 255 - frame)
            times.append((time.process_time() - begin) / len(frames[2:]))
        median = float(np.median(times))
        print(f"{width}×{height}: {median * 1e3:.1f} ms of CPU a frame, {1 / median:.0f} frames/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="the generator; or 'drive', or 'speed'")
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--strength", type=float, default=DEFAULT_STRENGTH)
    parser.add_argument("--strips", type=Path, default=None)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if arguments.model == "speed":
        speed()
        return
    clips: dict[str, Callable[[int], list[Pixels]]]
    clips = {clip.stem: partial(read, clip) for clip in arguments.clips}
    model = Path(arguments.model)
    if arguments.model == "drive":
        clips, model = {"drive": drive}, DEMO / "day2night.onnx"
    with open_generator(model) as generator:
        for name, frames in clips.items():
            sources = frames(arguments.frames)
            film(name, sources, generator, arguments.strength, arguments.strips)


if __name__ == "__main__":
    main()
