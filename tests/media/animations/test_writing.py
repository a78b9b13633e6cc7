"""GIF, animated WebP and APNG as outputs, read again by Pillow and by FFmpeg."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from cyclegan_batch.errors import OutputError
from cyclegan_batch.files import temporary_path
from cyclegan_batch.media.animations.reading import describe_animation
from cyclegan_batch.media.animations.writing import Schedule
from cyclegan_batch.media.video.animated_encoding import AnimationEncoding
from cyclegan_batch.media.video.plan import VideoPlan
from cyclegan_batch.media.video.sink import VideoSink
from cyclegan_batch.options import MAX_PIXELS, TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.identity import leftovers, plan, run, seen
from tests.synthesis import animations, streams
from tests.synthesis.animations import Part

SUFFIXES = (".gif", ".webp", ".apng")
ALL = pytest.mark.parametrize("suffix", SUFFIXES)


def shown(path: Path) -> tuple[list[Any], list[int], int | None]:
    """Return the frames as RGBA, how long each is shown in ms, and the loops, by Pillow."""
    frames, durations = [], []
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGBA")))
            durations.append(round(image.info.get("duration", 0)))
        return frames, durations, image.info.get("loop")


def noise(count: int, size: tuple[int, int] = (24, 32)) -> list[Part]:
    """Return soft random frames, as PNG and GIF hold them."""
    random = np.random.default_rng(4)
    coarse = random.integers(0, 256, (count, 3, 4, 3), np.uint8)
    frames = []
    for each in coarse:
        image = Image.fromarray(each).resize(size[::-1], Image.Resampling.BICUBIC)
        frames.append(Part(np.dstack([np.asarray(image), np.full(size, 255, np.uint8)])))
    return frames


def clip(path: Path, *, rate: Fraction = Fraction(25), frames: int = 3, pix_fmt: str) -> Path:
    """Write a video of 16 × 16 at a constant rate."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width = stream.height = 16
        stream.pix_fmt = pix_fmt
        for number in range(frames):
            pixels = np.full((16, 16, 3), 3 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def without_guess(planned: VideoPlan) -> list[str]:
    """Return the notes but that on the colours of an untagged clip."""
    return [note for note in grouped(planned.notes) if "no tag of its" not in note]


def psnr(one: Any, other: Any) -> float:
    error = np.mean((one[..., :3].astype(float) - other[..., :3]) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.behaviour(1)
@pytest.mark.behaviour(9)
@ALL
@pytest.mark.parametrize("size", [(24, 32), (23, 31), (1, 1), (1, 40)])
def test_every_frame_of_a_video_is_written_at_its_size(tmp_path, suffix, size):
    frames = noise(7, size)
    source = animations.apng(tmp_path / "in.png", frames)
    _, sink = run(plan(source, tmp_path / f"out{suffix}"))
    (written,) = sink.written
    found, _, _ = shown(written.path)
    assert len(found) == 7
    for one, other in zip(found, frames, strict=True):
        assert one.shape == (*size, 4)
        if suffix == ".apng":
            assert np.array_equal(one, other.pixels)
        elif min(size) > 8:
            assert psnr(one, other.pixels) > 31
    if suffix != ".webp":  # this FFmpeg reads no animated WebP
        with av.open(str(written.path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 7


@pytest.mark.behaviour(2)
@ALL
def test_variable_times_and_the_last_frame_s_are_kept(tmp_path, suffix):
    times = (40, 30, 120, 20, 1000, 700)
    frames = [replace(part, time=time) for part, time in zip(noise(6), times, strict=True)]
    source = animations.webp(tmp_path / "in.webp", frames)
    run(plan(source, tmp_path / f"out{suffix}"))
    _, durations, _ = shown(tmp_path / f"out{suffix}")
    assert durations == list(times)


@pytest.mark.behaviour(2)
@ALL
@pytest.mark.parametrize("rate", [Fraction(30), Fraction(24000, 1001)])
def test_times_are_rounded_one_by_one_without_a_drift(tmp_path, suffix, rate):
    source = clip(tmp_path / "in.mp4", frames=75, rate=rate, pix_fmt="yuv420p")
    run(plan(source, tmp_path / f"out{suffix}"))
    _, durations, _ = shown(tmp_path / f"out{suffix}")
    tick = 10 if suffix == ".gif" else 1
    for number in range(1, 76):
        assert abs(sum(durations[:number]) - 1000 * number / rate) <= tick / 2 + 1e-6


@pytest.mark.parametrize("seconds", [[0, 0.004, 0.008, 0.012, 1]])
def test_more_frames_than_ticks_keep_their_number_and_come_late(seconds):
    schedule = Schedule(100)
    durations = [schedule.next(Fraction(each)) for each in seconds]
    assert durations[1:] == [1, 1, 1, 97]
    assert schedule.begin == 100


@ALL
@pytest.mark.parametrize("plays", [0, 1, 5])
def test_the_number_of_times_that_it_is_shown_is_kept(tmp_path, suffix, plays):
    source = animations.apng(tmp_path / "in.png", noise(2), plays=plays)
    run(plan(source, tmp_path / f"out{suffix}"))
    assert describe_animation(tmp_path / f"out{suffix}", max_pixels=MAX_PIXELS).plays == plays
    _, _, loop = shown(tmp_path / f"out{suffix}")
    # In a GIF a number is how often it is repeated, and no number is once.
    expected = {0: 0, 1: None, 5: 4}[plays] if suffix == ".gif" else plays
    assert loop == expected


@ALL
def test_a_video_is_shown_for_ever(tmp_path, suffix):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    run(plan(source, tmp_path / f"out{suffix}"))
    assert describe_animation(tmp_path / f"out{suffix}", max_pixels=MAX_PIXELS).plays == 0


@pytest.mark.behaviour(7)
@ALL
def test_transparency_is_kept_and_nothing_shows_through(tmp_path, suffix):
    frames = noise(3)
    for number, part in enumerate(frames):
        part.pixels[: 8 * number + 4, :16, 3] = 0
        part.blended = False
    source = animations.apng(tmp_path / "in.png", frames)
    run(plan(source, tmp_path / f"out{suffix}"))
    found, _, _ = shown(tmp_path / f"out{suffix}")
    for one, other in zip(found, frames, strict=True):
        assert np.array_equal(one[..., 3], other.pixels[..., 3])


@pytest.mark.behaviour(7)
def test_half_transparency_is_kept_but_for_gif_which_says_so(tmp_path):
    frames = noise(2)
    for part in frames:
        part.pixels[..., 3] = np.linspace(0, 255, 32).astype(np.uint8)
        part.blended = False
    source = animations.apng(tmp_path / "in.png", frames)
    for suffix in SUFFIXES:
        planned = plan(source, tmp_path / f"out{suffix}")
        run(planned)
        alpha = shown(tmp_path / f"out{suffix}")[0][0][..., 3]
        says = any("becomes one bit" in note for note in grouped(planned.notes))
        assert says == (suffix == ".gif")
        stored = frames[0].pixels[..., 3]
        assert np.array_equal(alpha, np.where(stored < 128, 0, 255) if says else stored)


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("source_suffix", [".webp", ".png"])
def test_a_colour_profile_is_carried_or_said_to_be_left_out(tmp_path, source_suffix):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + b"\0"
    first, second = (Image.fromarray(part.pixels[..., :3]) for part in noise(2))
    source = tmp_path / f"in{source_suffix}"
    first.save(source, save_all=True, append_images=[second], icc_profile=profile)
    for suffix, is_kept in ((".webp", True), (".apng", True), (".gif", False), (".mp4", False)):
        planned = plan(source, tmp_path / f"out{suffix}")
        notes = grouped(planned.notes)
        assert any("its colour profile is left out" in note for note in notes) is not is_kept
        run(planned)
        if is_kept:
            with Image.open(tmp_path / f"out{suffix}") as image:
                assert image.n_frames == 2
                assert image.info["icc_profile"] == profile


@pytest.mark.behaviour(25)
def test_the_room_that_an_animation_needs_is_estimated(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=50, audio=None)
    planned = plan(source, tmp_path / "out.gif")
    height, width = planned.output_size
    assert planned.likely_bytes == round(50 * height * width * 0.9)
    assert planned.y4m_bytes is None
    assert plan(source, tmp_path / "out.mp4").likely_bytes is None


@pytest.mark.behaviour(28)
@ALL
def test_the_same_bytes_come_out_twice(tmp_path, suffix):
    source = animations.apng(tmp_path / "in.png", noise(4))
    written = []
    for name in ("a", "b"):
        run(plan(source, tmp_path / f"{name}{suffix}"))
        written.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert written[0] == written[1]


def test_webp_is_lossless_at_100_and_smaller_at_a_lower_quality(tmp_path):
    frames = noise(3)
    source = animations.apng(tmp_path / "in.png", frames)
    sizes = {}
    for quality in (None, 50, 100):
        output = tmp_path / f"{quality}.webp"
        run(plan(source, output, TranslateOptions(quality=quality)))
        sizes[quality] = output.stat().st_size
    assert sizes[50] < sizes[None] < sizes[100]
    for one, other in zip(shown(tmp_path / "100.webp")[0], frames, strict=True):
        assert np.array_equal(one, other.pixels)


@pytest.mark.behaviour(5)
@ALL
def test_sound_that_it_cannot_hold_is_told_once_and_refused_with_strict(tmp_path, suffix):
    source = streams.plain(tmp_path / "in.mp4", frames=3)
    label = {".gif": "GIF", ".webp": "WebP", ".apng": "APNG"}[suffix]
    planned = plan(source, tmp_path / f"out{suffix}")
    text = [str(note) for note in planned.notes]
    assert sum(f"{label} cannot hold it" in each for each in text) == 1
    with pytest.raises(OutputError, match="leave out --strict"):
        plan(source, tmp_path / f"out{suffix}", TranslateOptions(strict=True))
    silent = TranslateOptions(strict=True, audio="none")
    assert not without_guess(plan(source, tmp_path / f"out{suffix}", silent))


@pytest.mark.parametrize(
    ("suffix", "rate", "says"),
    [
        (".gif", 50, None),
        (".gif", 60, "for 0.1 s"),
        (".gif", 120, "is shown more slowly"),
        (".webp", 120, None),
        (".apng", 120, None),
    ],
)
def test_a_rate_that_browsers_do_not_show_is_told(tmp_path, suffix, rate, says):
    source = clip(tmp_path / "in.mp4", rate=Fraction(rate), pix_fmt="yuv420p")
    notes = grouped(plan(source, tmp_path / f"out{suffix}").notes)
    assert any((says or "slowly") in note for note in notes) == (says is not None)


def test_options_of_video_encoders_are_said_to_have_no_effect(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    options = TranslateOptions(codec="libx264", crf=20, pix_fmt="yuv444p")
    (note,) = without_guess(plan(source, tmp_path / "out.gif", options))
    assert "no effect of --codec, --crf, --pix-fmt" in note
    options = TranslateOptions(quality=50, png_level=3)
    for suffix, useless in (
        (".gif", "--quality, --png-level"),
        (".webp", "--png-level"),
        (".apng", "--quality"),
    ):
        (note,) = without_guess(plan(source, tmp_path / f"out{suffix}", options))
        assert f"no effect of {useless}, as " in note


@pytest.mark.behaviour(9)
def test_a_side_that_webp_cannot_have_is_refused_before_the_first_frame(tmp_path):
    source = animations.apng(tmp_path / "in.png", noise(2, (2, 16384)))
    with pytest.raises(OutputError, match=r"16384×2 is more than WebP can hold \(16383 pixels"):
        plan(source, tmp_path / "out.webp")
    run(plan(source, tmp_path / "out.apng"))


def test_a_video_is_not_written_under_the_name_of_an_image(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    with pytest.raises(OutputError, match=r"name an animated PNG out\.apng"):
        plan(source, tmp_path / "out.png")
    with pytest.raises(OutputError, match=r"one image for each frame 5%%_%06d\.png"):
        plan(source, tmp_path / "5%.png")


@pytest.mark.behaviour(19)
@ALL
def test_a_run_that_ends_early_leaves_nothing(tmp_path, suffix):
    source = streams.plain(tmp_path / "in.mp4", frames=6, audio=None)
    planned = plan(source, tmp_path / f"out{suffix}")
    sink = VideoSink(planned)
    convert = sink.converter()
    for frame in seen(planned)[:4]:
        sink.write(convert(frame))
    assert leftovers(tmp_path)
    sink.discard()
    sink.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.behaviour(25)
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    source = streams.plain(tmp_path / "in.mp4", frames=6, audio=None)

    class Full:
        ticks, longest = 100, 65535

        def __init__(self, *how: Any) -> None: ...

        def add(self, *how: Any) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("cyclegan_batch.media.video.animated_encoding.WRITERS", {"gif": Full})
    planned = plan(source, tmp_path / "out.gif")
    sink = VideoSink(planned)
    convert = sink.converter()
    first, second, *_ = seen(planned)
    sink.write(convert(first))
    with pytest.raises(OutputError, match="the disk is full"):
        sink.write(convert(second))
    sink.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.behaviour(22)
def test_a_file_that_lost_frames_on_its_way_gets_no_name(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=4, audio=None)
    planned = plan(source, tmp_path / "out.gif")
    encoding = AnimationEncoding(planned, temporary_path(planned.output))
    convert = encoding.converter()
    for frame in seen(planned):
        encoding.write(*convert(frame))
    encoding._frames += 1
    with pytest.raises(OutputError, match="it holds 4 of 5 frames"):
        encoding.finish()
    encoding.discard()


def test_a_frame_that_is_shown_for_longer_than_a_gif_can_say_is_told(tmp_path):
    frames = [replace(part, time=time) for part, time in zip(noise(2), (700_000, 40), strict=True)]
    source = animations.webp(tmp_path / "in.webp", frames)
    _, sink = run(plan(source, tmp_path / "out.gif"))
    (note,) = grouped(sink.notes)
    assert "a frame is shown for 700 s, and in a GIF that ends after 655.35 s" in note
    assert shown(tmp_path / "out.gif")[1] == [655_350, 40]
    _, sink = run(plan(source, tmp_path / "out.apng"))
    assert sink.notes == ()
    assert shown(tmp_path / "out.apng")[1] == [700_000, 40]


def test_ten_bits_become_eight_and_it_is_said_once(tmp_path):
    source = clip(tmp_path / "in.mkv", pix_fmt="yuv420p10le")
    notes = without_guess(plan(source, tmp_path / "out.webp"))
    (note,) = [note for note in notes if "its 10 bits" in note]
    assert "its 10 bits become 8, as WebP holds no more" in note
