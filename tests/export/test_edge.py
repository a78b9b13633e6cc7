"""The script of a bundle measures its engine and translates images with it, on a device.

trtexec is the stand-in of conftest.py. TensorRT's Python module and CUDA's runtime library are
stand-ins as well, on memory of this process: they demand the types by which ctypes passes whole
addresses. Their engine inverts.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from cyclegan_batch.frames import SizeRequirements, geometry

pytest.importorskip("torch")

from cyclegan_export import edge


def test_the_rate_is_measured_as_the_frames_that_it_is_tuned_for(
    bundle: Path, device: Any, tmp_path: Path
) -> None:
    assert "no model.engine yet" in device(bundle, "bench").stderr
    device(bundle, "build")
    tool = tmp_path / "bin" / "nvpmodel"
    tool.write_text(f"#!{sys.executable}\nimport sys\nprint('NV Power Mode: MAXN_SUPER\\n2')\n")
    tool.chmod(0o755)
    done = device(bundle, "bench", "--avgRuns=5", VERSION="110100")
    assert done.stderr == ""
    assert done.stdout == (
        "measuring frames of 2x16x24x3 for ten seconds\n"
        "median 12.34 ms, 99 % within 12.90 ms, 81.0 frames/s, 132 MiB for activations\n"
        "power mode: MAXN_SUPER; TensorRT 11.1\n"
    )
    last = (bundle / "model.engine.options").read_text().rpartition("[")[2]
    assert json.loads("[" + last) == [
        "--loadEngine=model.engine",
        "--useCudaGraph",
        "--noDataTransfers",
        "--useSpinWait",
        "--percentile=99",
        "--warmUp=1000",
        "--duration=10",
        "--shapes=frames:2x16x24x3",
        "--avgRuns=5",
    ]
    assert "Throughput: 40.5 qps" in (bundle / "bench.log").read_text()
    device(bundle, "build")
    assert "power mode: MAXN_SUPER" in (bundle / "build.log").read_text()
    tool.write_text(f"#!{sys.executable}\nprint('of another form')\n")
    assert "power mode: not told by nvpmodel" in device(bundle, "bench").stdout
    tool.unlink()
    assert "power mode: not told (no nvpmodel); TensorRT 8.5" in (
        device(bundle, "bench", VERSION="8502").stdout
    )
    done = device(bundle, "bench", FAKE="short")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: bench.log cannot be read: no throughput and GPU compute time in it; keep it for a "
        "report\n",
    )


def test_an_older_trtexec_than_the_bundle_needs_is_said_to_be_the_cause_errors(
    bundle: Path, device: Any
) -> None:
    done = device(bundle, "build", FAKE="old", VERSION="8602")
    assert done.returncode == 1
    assert (
        "Error: trtexec is of TensorRT 8.6, and this bundle needs JetPack 6 (TensorRT 10.3) or "
        "later; update the device" in done.stderr
    )
    for version in ("100300", "110401", "of another form"):
        done = device(bundle, "build", FAKE="old", VERSION=version)
        assert "trtexec failed (exit code 3)" in done.stderr


class FakeCudart:
    """CUDA's runtime library, whose memory is this process's."""

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.most = 1 << 30
        self.cudaGetErrorString = Words()

    def cudaMalloc(self, address: Any, size: Any) -> int:  # noqa: N802
        assert isinstance(address._obj, ctypes.c_void_p)
        assert isinstance(size, ctypes.c_size_t)
        if size.value > self.most:
            return 2
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        self.live[ctypes.addressof(memory)] = memory
        return 0

    def cudaFree(self, address: Any) -> int:  # noqa: N802
        assert isinstance(address, ctypes.c_void_p)
        if address.value is not None:
            del self.live[address.value]
        return 0

    def cudaMemcpy(self, to: Any, of: Any, size: Any, kind: int) -> int:  # noqa: N802
        assert isinstance(to, ctypes.c_void_p)
        assert isinstance(of, ctypes.c_void_p)
        on_gpu = to if kind == 1 else of
        assert len(self.live[on_gpu.value]) >= size.value  # type: ignore[index]
        ctypes.memmove(to, of, size.value)
        return 0


class Words:
    """``cudaGetErrorString``, which returns an int unless it is told otherwise."""

    restype: Any = None

    def __call__(self, code: int) -> bytes:
        assert self.restype is ctypes.c_char_p
        return b"out of memory"


class FakeContext:
    """An execution context that inverts."""

    def __init__(self, shapes: tuple[Any, Any]) -> None:
        self.shapes, self.at = shapes, {}  # type: ignore[var-annotated]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "frames"
        self.shape = tuple(shape)
        low, high = self.shapes
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert type(address) is int
        self.at[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        values = ctypes.string_at(self.at["frames"], int(np.prod(self.shape)))
        ctypes.memmove(self.at["translated"], bytes(255 - v for v in values), len(values))
        return True


@pytest.fixture
def use(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs ``edge.py run`` on a device; it returns what is wrong."""
    card = json.loads((bundle / "card.json").read_text())
    (bundle / "model.engine").write_bytes(b"engine")
    cudart = FakeCudart()
    opens = [FakeContext((card["shapes"]["min"], card["shapes"]["max"]))]
    engine = SimpleNamespace(create_execution_context=lambda: next(iter(opens), None))
    runtime = SimpleNamespace(
        deserialize_cuda_engine=lambda content: engine if content == b"engine" else None
    )
    trt = SimpleNamespace(
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None}),
        Runtime=lambda logger: runtime,
    )
    monkeypatch.setitem(sys.modules, "tensorrt", trt)  # type: ignore[arg-type]
    monkeypatch.setattr(edge.ctypes, "CDLL", lambda name: cudart)

    def call(source: Path, output: Path, **changes: Any) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in changes.items():
                patch.setattr(cudart, name, value)
            try:
                edge.run(bundle, card, source, output)
            except SystemExit as error:
                return str(error)
        return ""

    call.cudart, call.contexts = cudart, opens  # type: ignore[attr-defined]
    return call


def picture(size: tuple[int, int], seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_a_folder_of_images_is_translated(
    tmp_path: Path, use: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out" / "deep"
    source.mkdir()
    sizes = {"a.png": (16, 24), "b.PNG": (31, 45), "c.ppm": (20, 30), "small.png": (9, 5)}
    for number, (name, size) in enumerate(sizes.items()):
        if name.endswith(".ppm"):
            head = b"P6\n# a comment\n%d %d\n255\n" % (size[1], size[0])
            (source / name).write_bytes(head + picture(size, number).tobytes())
        else:
            assert cv2.imwrite(str(source / name), picture(size, number)[:, :, ::-1])
    (source / "notes.txt").write_text("no image")
    assert use(source, output) == ""
    assert {each.name for each in output.iterdir()} == set(sizes)
    for number, (name, size) in enumerate(sizes.items()):
        found = cv2.imread(str(output / name))
        assert found is not None
        np.testing.assert_array_equal(found[:, :, ::-1], 255 - picture(size, number))
    assert capsys.readouterr().out.startswith("4 of 4 images translated: ")
    assert len(use.cudart.live) == 2, "the buffers grow, and the old ones are freed"  # type: ignore[attr-defined]
    assert "a.png exists already; remove it" in use(source, output)


def test_one_image_keeps_its_pixels_in_the_format_of_the_output(
    tmp_path: Path, use: Callable[..., Any]
) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 24 16 255\n" + picture((16, 24)).tobytes())
    assert use(tmp_path / "a.ppm", tmp_path / "b.png") == ""
    found = cv2.imread(str(tmp_path / "b.png"))
    assert found is not None
    np.testing.assert_array_equal(found[:, :, ::-1], 255 - picture((16, 24)))
    (tmp_path / "folder").mkdir()
    assert use(tmp_path / "b.png", tmp_path / "folder") == ""
    found = cv2.imread(str(tmp_path / "folder" / "b.png"))
    assert found is not None
    np.testing.assert_array_equal(found[:, :, ::-1], picture((16, 24)))


def test_a_frame_is_padded_as_a_translation_pads_it() -> None:
    card = {
        "shapes": {"min": [2, 16, 16, 3], "max": [2, 64, 64, 3]},
        "golden": {"shape": [2, 16, 16, 3]},
        "model": {"multiple_of": 4, "minimum": 8},
    }
    for size in ((17, 33), (2, 3), (1, 1), (64, 64)):
        frames, inside = edge._framed(picture(size), card, np)
        wanted = geometry(size, SizeRequirements(4, 16)).into_network(picture(size))
        assert frames.shape[0] == 2
        np.testing.assert_array_equal(frames[0], wanted)
        np.testing.assert_array_equal(frames[1][inside], picture(size))
    with pytest.raises(ValueError, match="is of 33x65 pixels, and the engine takes up to 64x64"):
        edge._framed(picture((65, 33)), card, np)


def test_what_cannot_be_translated_is_one_clear_line_errors(
    tmp_path: Path,
    bundle: Path,
    use: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    assert "in: no image in it (.png" in use(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.ppm").write_bytes(b"P6 24 16 255\n" + picture((16, 24)).tobytes()[:-1])
    (tmp_path / "in" / "b.png").write_bytes(b"")
    (tmp_path / "in" / "c.ppm").write_bytes(b"P3 1 1 255\n0 0 0")
    (tmp_path / "in" / "d.ppm").write_bytes(b"P6 24 40 255\n" + picture((40, 24)).tobytes())
    (tmp_path / "in" / "e.ppm").write_bytes(b"P6 24 16 255\n" + picture((16, 24)).tobytes())
    (tmp_path / "in" / "f.png").mkdir()
    assert use(tmp_path / "in", tmp_path / "out") == "Error: 5 of 6 images were not translated"
    said = capsys.readouterr()
    assert "a.ppm: is cut off" in said.err
    assert "b.png: is no image that OpenCV reads" in said.err
    assert "c.ppm: is no binary PPM of 8 bits (P6)" in said.err
    assert "d.ppm: is of 24x40 pixels, and the engine takes up to 48x32; export" in said.err
    assert "f.png: cannot be read (Is a directory)" in said.err
    assert "1 of 6 images translated" in said.out
    image = tmp_path / "in" / "e.ppm"
    for source, output, words in (
        (tmp_path / "none.png", tmp_path / "x.png", "none.png does not exist"),
        (tmp_path / "in", image, "e.ppm is a file, and"),
        (image, image, "e.ppm exists already"),
        (image, tmp_path / "none" / "x.png", "none does not exist; create it first"),
        (image, tmp_path / "x.xyz", "OpenCV writes no such format; let the name end in .png"),
    ):
        assert words in use(source, output)
    new = tmp_path / "new.ppm"
    assert "cudaMalloc fails: out of memory (2)" in use(image, new, most=10)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cv2", None)
        assert "module cv2 cannot be loaded" in use(image, tmp_path / "x.png")
        assert "or use PPM images" in use(tmp_path / "in" / "b.png", tmp_path / "x.png")
        assert use(image, tmp_path / "without.ppm") == ""
    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "execute_async_v3", lambda self, stream: False)
        assert "TensorRT fails on frames of 1x16x24x3" in use(image, new)
    with monkeypatch.context() as patch:
        patch.setattr(edge.ctypes, "CDLL", lambda name: ctypes.PyDLL("none"))
        assert "libcudart.so is not found" in use(image, new)
    use.contexts.clear()  # type: ignore[attr-defined]
    assert "creates no context" in use(image, new)
    (bundle / "model.engine").write_bytes(b"of another GPU")
    assert "does not load model.engine, which fits only the GPU" in use(image, new)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "sudo apt install python3-libnvinfer" in use(image, new)
    (bundle / "model.engine").unlink()
    assert "no model.engine yet" in use(image, new)
    assert not new.exists()


def test_the_command_line_takes_an_input_and_an_output_errors(bundle: Path, device: Any) -> None:
    for words in (["run"], ["run", "a"], ["run", "a", "b", "c"]):
        assert "Error: run takes an input and an output" in device(bundle, *words).stderr
    assert "Error: biuld is none of the commands\n" in device(bundle, "biuld").stderr
    for words in (["--help"], ["build", "-h"]):
        done = device(bundle, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert "python3 edge.py run IN OUT" in done.stdout
    (bundle / "model.engine").write_bytes(b"engine")
    assert "Error: a does not exist" in device(bundle, "run", "a", "b").stderr


@pytest.mark.parametrize("content", ["[]", "{}", '{"golden": {}}'])
def test_a_damaged_card_is_one_clear_line_errors(bundle: Path, device: Any, content: str) -> None:
    (bundle / "card.json").write_text(content)
    for command in ("build", "verify", "bench"):
        done = device(bundle, command)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert "card.json is not that of a bundle; copy the whole bundle again" in done.stderr


def test_a_log_that_cannot_be_written_is_one_clear_line_errors(bundle: Path, device: Any) -> None:
    """A folder in its place, which stops the superuser, too."""
    (bundle / "build.log").mkdir()
    done = device(bundle, "build")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "build.log cannot be written" in done.stderr
    assert "copy the bundle to a folder of your own" in done.stderr
