"""Real pictures: orientation, every kind of PNG, and the corrupt ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.job.inputs import find_inputs
from tests.media.images.test_shards import translate

pytestmark = pytest.mark.corpus


@pytest.mark.behaviour(16)
def test_all_18_orientations_come_out_upright(corpus: Path, tmp_path: Path) -> None:
    folder = corpus / "images" / "exif_orientation"
    written, dropped, _ = translate(find_inputs([folder], tmp_path / "out").entries)
    assert dropped == []
    assert len(written) == 18
    shown = {}
    for path in written:
        image = Image.open(path)
        assert image.getexif().get(0x0112, 1) == 1
        shown[path.stem] = np.asarray(image.reduce(2)).astype(np.int16)
    for scene in ("Landscape", "Portrait"):
        upright = shown[f"{scene}_1"]
        for orientation in range(9):
            difference = np.abs(shown[f"{scene}_{orientation}"] - upright)
            assert difference.mean() <= 4, (scene, orientation)


@pytest.mark.behaviour(14, 15)
def test_every_valid_png_translates_and_every_corrupt_one_is_listed(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = corpus / "images" / "pngsuite"
    entries = find_inputs([folder], tmp_path / "out").entries
    assert len(entries) == 175
    written, dropped, _ = translate(entries)
    corrupt = sorted(path.name for path in folder.glob("x*.png"))
    assert len(corrupt) == 14
    assert sorted(Path(loss.name).name for loss in dropped) == corrupt
    for loss in dropped:
        assert len(str(loss.error).splitlines()) == 1
        assert str(loss.error).startswith(loss.name)
    assert len(written) == 161
    for path in written:
        colours, alpha = _as_pillow_sees_it(folder / path.name)
        result = np.asarray(Image.open(path))
        np.testing.assert_array_equal(result[..., :3], colours, err_msg=path.name)
        assert (result.shape[2] == 4) == (alpha is not None), path.name
        if alpha is not None:
            np.testing.assert_array_equal(result[..., 3], alpha, err_msg=path.name)
    # libpng has nothing to say on the terminal.
    assert capfd.readouterr() == ("", "")


def _as_pillow_sees_it(path: Path) -> tuple[Any, Any]:
    """Return RGB and alpha as Pillow, an independent witness, decodes them where it keeps 8 bits.

    Pillow cuts 16-bit colours to their high byte. Where it does, the high bytes of an independent
    reading of the samples (`_sixteen_bit_samples`) must equal what Pillow says, and those samples,
    rounded, are what is expected.
    """
    data = path.read_bytes()
    image = Image.open(io.BytesIO(data))
    transparent = image.info.get("transparency")
    depth, colour = data[24], data[25]
    if depth == 16:
        samples = _sixteen_bit_samples(data)
        rounded = np.rint(samples / 257.0).astype(np.uint8)
        if image.mode in ("RGB", "RGBA"):
            high = (samples >> 8).astype(np.uint8)
            pillow = np.asarray(image.convert("RGBA" if colour in (4, 6) else "RGB"))
            if colour == 4:
                high = high[..., [0, 0, 0, 1]]
            np.testing.assert_array_equal(pillow, high, err_msg=path.name)
        elif colour == 0:
            np.testing.assert_array_equal(np.asarray(image), samples[..., 0], err_msg=path.name)
        alpha = rounded[..., -1] if colour in (4, 6) else None
        if transparent is not None:
            alpha = np.where((samples == transparent).all(axis=-1), 0, 255)
        colours = rounded[..., :1].repeat(3, axis=-1) if colour in (0, 4) else rounded[..., :3]
        return colours, alpha
    has_alpha = transparent is not None or "A" in image.mode
    if transparent is not None and image.mode in ("1", "L"):
        # Pillow compares the unscaled level with scaled samples; ours is the PNG standard's.
        grey = np.asarray(image.convert("L"))
        scaled = transparent * 255 // (2**depth - 1)
        return np.stack([grey] * 3, axis=-1), np.where(grey == scaled, 0, 255)
    rgba = np.asarray(image.convert("RGBA"))
    return rgba[..., :3], rgba[..., 3] if has_alpha else None


def _sixteen_bit_samples(data: bytes) -> Any:
    """Return the samples of a 16-bit PNG, ``(H, W, channels)``, by way of FFmpeg's decoder."""
    import av

    codec = av.CodecContext.create("png", "r")
    packet = av.Packet(_without_transparency(data))
    (frame,) = codec.decode(packet)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[data[25]]
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
    used = np.ascontiguousarray(rows[:, : frame.width * channels * 2])
    assert frame.format.name.endswith(("be", "16be"))
    samples = used.view(">u2").astype(np.uint16)
    return samples.reshape(frame.height, frame.width, channels)


def _without_transparency(data: bytes) -> bytes:
    """Return a PNG without its tRNS chunk, which makes FFmpeg add a channel."""
    at = data.find(b"tRNS")
    if at < 0:
        return data
    length = int.from_bytes(data[at - 4 : at])
    return data[: at - 4] + data[at + 8 + length :]


def test_photographs_pass_nearly_unchanged_with_profile_and_camera(
    corpus: Path, tmp_path: Path
) -> None:
    folder = corpus / "images" / "darknet_photos"
    written, dropped, notes = translate(find_inputs([folder], tmp_path / "out").entries)
    assert (dropped, notes) == ([], ())
    assert len(written) == 7
    for path in written:
        old, new = Image.open(folder / path.name), Image.open(path)
        assert new.info.get("icc_profile") == old.info.get("icc_profile")
        assert new.getexif().get(0x010F) == old.getexif().get(0x010F)
        difference = np.asarray(new).astype(int) - np.asarray(old)
        assert 10 * np.log10(255**2 / (difference**2).mean()) > 38
