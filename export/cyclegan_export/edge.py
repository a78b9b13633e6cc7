#!/usr/bin/env python3
"""Build the engine of a bundle on its device, verify the engine's output, measure it and use it.

    python3 edge.py build         trtexec builds model.engine from model.onnx, which takes minutes
    python3 edge.py verify        trtexec runs it on the golden frames, and the output is compared
    python3 edge.py bench         trtexec measures its rate, its latency and its memory
    python3 edge.py run IN OUT    translate an image, or the images in a folder

This script needs trtexec, which comes with TensorRT, and Python 3.8 or newer; run needs
TensorRT's Python module and NumPy as well, and OpenCV for images other than PPM. It imports nothing
of the package that wrote the bundle, since a device's Python may be too old for that. Its settings
are in card.json. Options after build, verify and bench are passed on to trtexec.

``verify`` compares by itself. trtexec 11.1 has a comparison of its own (--loadRefOutputs), but it
skips outputs of uint8 with a warning, and passes (validateAccuracy in TensorRT's
samples/common/sampleInference.cpp).
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Python 3.8 has no dict[...]
    Card = dict[str, Any]
    """What card.json holds."""
    Array = Any
    """An array of NumPy, which may be missing."""

_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec")
"""The places where JetPack installs it, which are not in PATH."""

_CUDA_RUNTIMES = (
    *("libcudart.so", "libcudart.so.13", "libcudart.so.12"),
    "/usr/local/cuda/lib64/libcudart.so",
)
"""The names of CUDA's runtime library."""

_SETTINGS = {"onnx_sha256", "shapes", "golden", "rule", "model", "least_tensorrt", "expects"}
"""What card.json must hold."""

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
"""The endings of the files that `run` takes from a folder."""


def main(words: list[str]) -> None:
    """Run a command line; ends the process with 1 and a message where it fails."""
    folder = Path(__file__).resolve().parent
    usage = (__doc__ or "").partition("\n\n")[2].rpartition("\n\n")[0]
    if "-h" in words or "--help" in words:
        print(usage)
        return
    if not words or words[0] not in ("build", "verify", "bench", "run"):
        wrong = f"Error: {words[0]} is none of the commands\n\n" if words else ""
        sys.exit(wrong + usage)
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"Error: card.json cannot be read ({error}); copy the whole bundle again")
    if not isinstance(card, dict) or not card.keys() >= _SETTINGS:
        sys.exit("Error: card.json is not that of a bundle; copy the whole bundle again")
    if words[0] == "build":
        build(folder, card, words[1:])
    elif words[0] == "verify":
        verify(folder, card, words[1:])
    elif words[0] == "bench":
        bench(folder, card, words[1:])
    elif len(words) == 3:
        run(folder, card, Path(words[1]), Path(words[2]))
    else:
        sys.exit("Error: run takes an input and an output: python3 edge.py run IN OUT")


def build(folder: Path, card: Card, more: list[str]) -> None:
    """Build the engine."""
    _check_digest(folder / "model.onnx", card["onnx_sha256"])
    command = ["--onnx=model.onnx", "--saveEngine=model.engine", "--stronglyTyped"]
    command += ["--skipInference", "--timingCacheFile=timing.cache"]
    if card["shapes"] is not None:
        for which in ("min", "opt", "max"):
            command.append(f"--{which}Shapes=frames:{_spec(card['shapes'][which])}")
    print("building model.engine, which takes minutes; build.log shows the progress", flush=True)
    _run(folder, card, command + more, "build.log")
    with (folder / "build.log").open("a", encoding="utf-8") as file:
        file.write(f"power mode: {_power_mode()}\n")  # TensorRT chose the kernels that it favours
    if not (folder / "model.engine").is_file():
        sys.exit("Error: trtexec wrote no model.engine; build.log says more")
    print("model.engine is built for this device; now: python3 edge.py verify")


def bench(folder: Path, card: Card, more: list[str]) -> None:
    """Measure the engine with frames of the size that it is tuned for, copies left out."""
    _check_engine(folder)
    shape = card["golden"]["shape"] if card["shapes"] is None else card["shapes"]["opt"]
    command = ["--loadEngine=model.engine", "--useCudaGraph", "--noDataTransfers"]
    command += ["--useSpinWait", "--percentile=99", "--warmUp=1000", "--duration=10"]
    if card["shapes"] is not None:
        command.append("--shapes=frames:" + _spec(shape))
    print(f"measuring frames of {_spec(shape)} for ten seconds", flush=True)
    _run(folder, card, command + more, "bench.log")
    text = (folder / "bench.log").read_text(encoding="utf-8", errors="replace")
    try:
        print(measured_words(text, shape[0]))
    except ValueError as error:
        sys.exit(f"Error: bench.log cannot be read: {error}; keep it for a report")
    print(f"power mode: {_power_mode()}; TensorRT {_spell(_version(text))}")
    if card["model"]["precision"] == "int8":
        print("int8 is worth its loss only where it is faster: bench a bundle in fp16 as well")


def measured_words(log: str, batch: int) -> str:
    """Return what trtexec measured, in words. Raises ValueError.

    ``log``: its output (printEpilog in TensorRT's samples/common/sampleReporting.cpp). ``batch``:
    the frames of a query.
    """
    rate = re.search(r"Throughput: ([0-9.eE+-]+) qps", log)
    times = re.search(
        r"GPU Compute Time: .*median = ([0-9.eE+-]+) ms, percentile\(99%\) = ([0-9.eE+-]+) ms", log
    )
    if rate is None or times is None:
        raise ValueError("no throughput and GPU compute time in it")
    # What the network itself takes: from TensorRT 8.6 on trtexec tells it.
    memory = re.search(r"device memory size: ([0-9.eE+-]+) MiB", log)
    return (
        f"median {float(times[1]):.2f} ms, 99 % within {float(times[2]):.2f} ms, "
        f"{float(rate[1]) * batch:.1f} frames/s, "
        + (f"{float(memory[1]):.0f} MiB for activations" if memory else "memory not told")
    )


def verify(folder: Path, card: Card, more: list[str]) -> None:
    """Run the engine on the golden frames and compare."""
    golden = card["golden"]
    for which in ("input", "output"):
        _check_digest(folder / golden[which], golden[which + "_sha256"])
    _check_engine(folder)
    output_file = folder / "verify.json"
    if output_file.exists():
        output_file.unlink()
    # File names without a folder, since trtexec splits its options at colons and commas.
    command = ["--loadEngine=model.engine", "--loadInputs=frames:" + golden["input"]]
    command += ["--exportOutput=verify.json", "--iterations=1", "--warmUp=0", "--duration=0"]
    if card["shapes"] is not None:
        command.append("--shapes=frames:" + _spec(golden["shape"]))
    _run(folder, card, command + more, "verify.log")
    if not output_file.is_file():
        sys.exit("Error: trtexec wrote no verify.json; verify.log says more")
    expected = (folder / golden["output"]).read_bytes()
    try:
        values = output_values(output_file.read_bytes(), len(expected))
    except ValueError as error:
        sys.exit(f"Error: verify.json cannot be read: {error}; keep it for a report")
    psnr, within2, largest = difference(values, expected)
    measured = f"{psnr:.1f} dB, {within2:.2%} within 2 levels, largest {largest}"
    rule = card["rule"]
    if psnr < rule["psnr"] or within2 < rule["within2"]:
        within = f" and {rule['within2']:.1%}" if rule["within2"] else ""
        sys.exit(
            f"Error: this engine's output differs from the golden frames: {measured}, where "
            f"{rule['psnr']:.0f} dB{within} are expected; do not use it"
        )
    print("the engine's output matches the golden frames: " + measured)


def output_values(content: bytes, count: int) -> list[int]:
    """Return the ``count`` pixels in what ``trtexec --exportOutput`` wrote. Raises ValueError.

    From TensorRT 10.16 on that is JSON. Earlier versions write a uint8 as that one byte instead of
    a number (print in TensorRT's samples/common/sampleUtils.cpp).
    """
    head = re.search(rb'"name" *: *"translated".*?"values" *: *\[ ', content, re.DOTALL)
    if head is None:
        raise ValueError("no output 'translated' in it")
    begin, end = head.end(), head.end() + 3 * count - 2
    body = content[begin:end]
    single = body[::3]
    separated = body[1::3] == b"," * (count - 1) and body[2::3] == b" " * (count - 1)
    if separated and content[end : end + 2] == b" ]" and not single.isdigit():
        return list(single)
    text = content[begin:].partition(b"]")[0]
    values = [int(value) for value in text.split(b",")]
    if len(values) != count:
        raise ValueError(f"{len(values)} values where {count} are expected")
    return values


def difference(values: list[int], expected: bytes) -> tuple[float, float, int]:
    """Return PSNR in dB, the share within two grey levels, and the largest difference."""
    apart = [abs(a - b) for a, b in zip(values, expected)]  # noqa: B905 - Python 3.8 has no strict
    mean_square = sum(each * each for each in apart) / len(apart)
    psnr = 10 * math.log10(255.0**2 / mean_square) if mean_square else math.inf
    return psnr, sum(each <= 2 for each in apart) / len(apart), max(apart)


def run(folder: Path, card: Card, source: Path, output: Path) -> None:
    """Translate the image ``source``, or each image in that folder, to ``output``.

    The names stay, and with them the formats. What exists is not overwritten. An image that cannot
    be read, or is larger than the engine's largest frames, is reported and left out.
    """
    _check_engine(folder)
    pairs = _pairs(source, output)
    numpy = _module("numpy", "sudo apt install python3-numpy")
    engine = _Engine(folder / "model.engine", numpy)
    begun, in_network, failed = time.monotonic(), 0.0, 0
    for path, result in pairs:
        try:
            pixels = _read_image(path, numpy)
            frames, inside = _framed(pixels, card, numpy)
        except ValueError as error:
            print(f"Error: {path}: {error}", file=sys.stderr)
            failed += 1
            continue
        before = time.monotonic()
        translated = engine.infer(frames)
        in_network += time.monotonic() - before
        _write_image(result, translated[0][inside], numpy)
    done, seconds = len(pairs) - failed, time.monotonic() - begun
    if done:
        print(
            f"{done} of {len(pairs)} images translated: {1000 * seconds / done:.1f} ms each, of "
            f"which {1000 * in_network / done:.1f} ms the engine with its copies"
        )
    if failed:
        sys.exit(f"Error: {failed} of {len(pairs)} images were not translated")


class _Engine:
    """The engine on this device's GPU, by TensorRT's Python module and CUDA's runtime library."""

    def __init__(self, path: Path, numpy: ModuleType) -> None:
        trt = _module("tensorrt", "on a Jetson: sudo apt install python3-libnvinfer")
        self._numpy, self._cuda = numpy, _cuda_runtime()
        self._buffers: dict[str, tuple[ctypes.c_void_p, int]] = {}
        self._logger = trt.Logger(trt.Logger.ERROR)  # TensorRT writes its errors to the terminal
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            sys.exit(
                "Error: TensorRT does not load model.engine, which fits only the GPU and the "
                "TensorRT that built it; build it again: python3 edge.py build"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            sys.exit("Error: TensorRT creates no context of model.engine; close other programs")

    def infer(self, frames: Array) -> Array:
        """Translate ``frames``, (N, H, W, 3) uint8, which the engine takes."""
        out = self._numpy.empty_like(frames)
        there = self._buffer("frames", frames.nbytes)
        back = self._buffer("translated", out.nbytes)
        self._call("cudaMemcpy", there, _pointer(frames), ctypes.c_size_t(frames.nbytes), 1)
        context = self._context
        fine = context.set_input_shape("frames", frames.shape)
        fine = fine and context.set_tensor_address("frames", there.value)
        fine = fine and context.set_tensor_address("translated", back.value)
        if not (fine and context.execute_async_v3(0)):
            sys.exit(f"Error: TensorRT fails on frames of {_spec(frames.shape)}; see its message")
        # On the same stream as the network, so it waits for that.
        self._call("cudaMemcpy", _pointer(out), back, ctypes.c_size_t(out.nbytes), 2)
        return out

    def _buffer(self, name: str, size: int) -> ctypes.c_void_p:
        """Return memory on the GPU; a later call for the same name may return the same."""
        address, held = self._buffers.get(name, (ctypes.c_void_p(), 0))
        if held < size:
            self._call("cudaFree", address)  # an empty address is ignored
            self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
            self._buffers[name] = address, size
        return address

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            words = self._cuda.cudaGetErrorString
            words.restype = ctypes.c_char_p
            sys.exit(f"Error: {name} fails: {words(code).decode()} ({code}); close other programs")


def _cuda_runtime() -> ctypes.CDLL:
    """Return CUDA's runtime library."""
    for name in _CUDA_RUNTIMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            pass
    sys.exit("Error: libcudart.so is not found; on a Jetson: sudo apt install nvidia-jetpack")


def _pointer(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _pairs(source: Path, output: Path) -> list[tuple[Path, Path]]:
    """Return each image and the file that it becomes."""
    if source.is_dir():
        if output.exists() and not output.is_dir():
            sys.exit(f"Error: {output} is a file, and {source} is a folder; name a folder")
        names = sorted(each.name for each in source.iterdir() if each.suffix.lower() in _IMAGES)
        pairs = [(source / name, output / name) for name in names]
    else:
        pairs = [(source, output / source.name if output.is_dir() else output)]
        if not source.is_file():
            sys.exit(f"Error: {source} does not exist; check the name")
    if not pairs:
        sys.exit(f"Error: {source}: no image in it ({' '.join(_IMAGES)})")
    existing = [str(result) for _, result in pairs if result.exists()]
    if existing:
        sys.exit(f"Error: {existing[0]} exists already; remove it, or choose another output")
    if source.is_dir():
        output.mkdir(parents=True, exist_ok=True)
    elif not pairs[0][1].parent.is_dir():
        sys.exit(f"Error: {pairs[0][1].parent} does not exist; create it first")
    return pairs


def _framed(pixels: Array, card: Card, numpy: ModuleType) -> tuple[Array, tuple[slice, slice]]:
    """Return a batch of ``pixels`` (H, W, 3) that the engine takes, and where they are in it.

    They are padded at the right and at the bottom by reflection. Raises ValueError.
    """
    golden = card["golden"]["shape"]
    shapes = card["shapes"] or {"min": golden, "max": golden}
    model, size = card["model"], pixels.shape[:2]
    multiple, least = model["multiple_of"], shapes["min"]
    wanted = [
        max(-(-side // multiple) * multiple, model["minimum"], low)
        for side, low in zip(size, least[1:3])  # noqa: B905 - Python 3.8 has no strict
    ]
    most = shapes["max"][1:3]
    if wanted[0] > most[0] or wanted[1] > most[1]:
        raise ValueError(
            f"is of {size[1]}x{size[0]} pixels, and the engine takes up to {most[1]}x{most[0]}; "
            "export the bundle with a larger --max-shape"
        )
    padding = ((0, wanted[0] - size[0]), (0, wanted[1] - size[1]), (0, 0))
    padded = numpy.pad(pixels, padding, mode="reflect")
    frames = numpy.repeat(padded[None], least[0], axis=0)
    return numpy.ascontiguousarray(frames), (slice(0, size[0]), slice(0, size[1]))


def _read_image(path: Path, numpy: ModuleType) -> Array:
    """Return the RGB pixels of an image, (H, W, 3) uint8. Raises ValueError."""
    if path.suffix.lower() == ".ppm":
        return _read_ppm(path, numpy)
    opencv = _module("cv2", "sudo apt install python3-opencv, or use PPM images")
    # Read by Python, since OpenCV only warns where a file cannot be opened.
    content = numpy.frombuffer(_content(path), numpy.uint8)
    pixels = opencv.imdecode(content, opencv.IMREAD_COLOR) if content.size else None
    if pixels is None:
        raise ValueError("is no image that OpenCV reads")
    return numpy.ascontiguousarray(pixels[:, :, ::-1])


def _read_ppm(path: Path, numpy: ModuleType) -> Array:
    """Return the pixels of a binary PPM of 8 bits. Raises ValueError."""
    content = _content(path)
    space = rb"(?:\s|#[^\n]*\n)+"
    head = re.match(rb"P6" + space + rb"(\d+)" + space + rb"(\d+)" + space + rb"255\s", content)
    if head is None:
        raise ValueError("is no binary PPM of 8 bits (P6)")
    width, height = int(head[1]), int(head[2])
    values = numpy.frombuffer(content, numpy.uint8, offset=head.end())
    if not width or not height or values.size < height * width * 3:
        raise ValueError("is cut off")
    return values[: height * width * 3].reshape(height, width, 3)


def _content(path: Path) -> bytes:
    """Return a file's bytes. Raises ValueError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error


def _write_image(path: Path, pixels: Array, numpy: ModuleType) -> None:
    """Write RGB pixels, (H, W, 3) uint8, in the format that the name ends in."""
    if path.suffix.lower() == ".ppm":
        content = b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
    else:
        opencv = _module("cv2", "sudo apt install python3-opencv, or use PPM images")
        try:
            encoded, array = opencv.imencode(path.suffix, pixels[:, :, ::-1])
        except opencv.error:
            encoded = False
        if not encoded:
            sys.exit(f"Error: {path}: OpenCV writes no such format; let the name end in .png")
        content = array.tobytes()
    partial = path.with_name("." + path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        sys.exit(f"Error: {path} cannot be written ({error.strerror})")


def _module(name: str, remedy: str) -> ModuleType:
    """Return a module that the device must have."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"Error: Python's module {name} cannot be loaded ({error}); {remedy}")


def _power_mode() -> str:
    """Return the power mode of a Jetson, on which its rate depends."""
    try:
        process = subprocess.run(
            ["nvpmodel", "-q"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=10,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "not told (no nvpmodel)"
    found = re.search(rb"Power Mode: *(\S.*)", process.stdout)
    return found[1].decode(errors="replace").strip() if found else "not told by nvpmodel"


def _version(log: str) -> tuple[int, int] | None:
    """Return the TensorRT of trtexec by its first line; None where that tells none."""
    found = re.search(r"\[TensorRT v(\d+)\]", log)
    if found is None:
        return None
    number = int(found[1])  # 100300 is 10.3.0, and before TensorRT 10 8502 was 8.5.2
    return (number // 10000, number // 100 % 100) if number >= 100000 else (
        number // 1000, number // 100 % 10
    )  # fmt: skip


def _spell(version: tuple[int, int] | None) -> str:
    return "of an unknown version" if version is None else f"{version[0]}.{version[1]}"


def _check_engine(folder: Path) -> None:
    if not (folder / "model.engine").is_file():
        sys.exit("Error: there is no model.engine yet; first: python3 edge.py build")


def _spec(shape: list[int]) -> str:
    return "x".join(str(side) for side in shape)


def _check_digest(path: Path, expected: str) -> None:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        sys.exit(f"Error: {path.name} cannot be read ({error}); copy the whole bundle again")
    if digest != expected:
        sys.exit(f"Error: {path.name} is not the file of this bundle; copy it again")


def _run(folder: Path, card: Card, options: list[str], log: str) -> None:
    """Run trtexec in ``folder`` with its output in ``log``; end the process where it fails."""
    command = [_trtexec(card), *options]
    try:
        file = (folder / log).open("wb")
    except OSError as error:
        sys.exit(
            f"Error: {log} cannot be written ({error.strerror}); copy the bundle to a folder of "
            "your own"
        )
    with file:
        try:
            process = subprocess.run(command, cwd=folder, stdout=file, stderr=file, check=False)
        except OSError as error:
            sys.exit(f"Error: {command[0]} does not start: {error}")
    if process.returncode:
        text = (folder / log).read_text(encoding="utf-8", errors="replace")
        version, least = _version(text), tuple(card["least_tensorrt"])
        lines = text.splitlines()
        errors = [line for line in lines if "[E]" in line] or lines
        for line in errors[-5:]:
            print(line, file=sys.stderr)
        if version is not None and version < least:
            sys.exit(
                f"Error: trtexec is of TensorRT {_spell(version)}, and this bundle needs "
                f"{card['expects']}; update the device"
            )
        sys.exit(f"Error: trtexec failed (exit code {process.returncode}); {log} says more")


def _trtexec(card: Card) -> str:
    from_environment = os.environ.get("TRTEXEC")
    path = (
        from_environment or shutil.which("trtexec") or next(filter(os.path.exists, _PLACES), None)
    )
    if path is None or shutil.which(path) is None:
        where = from_environment or f"not in PATH, not in {_PLACES[0]}"
        sys.exit(
            f"Error: trtexec is not found ({where}); it comes with {card['expects']} (on a Jetson: "
            "sudo apt install nvidia-jetpack); where it is elsewhere, set TRTEXEC=/path/to/trtexec"
        )
    return path


if __name__ == "__main__":
    main(sys.argv[1:])
