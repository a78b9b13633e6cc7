"""`doctor` reports what works by trying it, and nothing else reaches the terminal."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cyclegan_batch import doctor, machine
from tests.backends.conftest import put_cuda_in_place
from tests.synthesis import fake_tensorrt


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make exactly these distributions installed; ``_`` stands for ``-``."""
    names = {name.replace("_", "-"): version for name, version in versions.items()}

    def version(name: str) -> str:
        if name not in names:
            raise metadata.PackageNotFoundError(name)
        return names[name]

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.behaviour(36)
def test_the_report_holds_every_part_and_is_plain_values(tmp_path: Path) -> None:
    report = json.loads(json.dumps(doctor.examine(tmp_path)))

    assert set(report) == {
        "version", "system", "gpus", "jetson", "packages", "runtimes", "ffmpeg", "encoders",
        "cache", "warnings",
    }  # fmt: skip
    assert report["system"]["threads"] >= 1
    assert report["packages"]["av"] == metadata.version("av")
    assert report["ffmpeg"]["libraries"]["libavcodec"].count(".") == 2
    assert set(report["encoders"]) == set(doctor.ENCODERS)
    assert report["cache"] == {"path": str(tmp_path), "bytes": 0}


@pytest.mark.behaviour(36)
def test_the_optional_packages_that_are_installed_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of stores, manifests and clusters; none is imported, as Ray takes seconds."""
    optional = {"s3fs": "2026.1", "pyarrow": "23.0", "ray": "2.60.0"}
    installed(monkeypatch, **optional)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert doctor.examine(tmp_path)["packages"] == optional


@pytest.mark.behaviour(36)
def test_every_part_has_its_line(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path)
    said = "\n".join(doctor.lines(report))

    assert f"cyclegan-batch {report['version']}" in said
    assert f"Python {report['system']['python']}" in said
    assert f"av {metadata.version('av')}" in said
    for name, error in report["encoders"].items():
        assert (f"{name}: opens" if error is None else f"{name}: no ({error})") in said
    assert f"{tmp_path}, 0.0 MiB" in said


@pytest.mark.behaviour(36)
def test_without_pyav_the_rest_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine where PyAV is missing because only images are translated."""
    monkeypatch.setitem(sys.modules, "av", None)
    report = json.loads(json.dumps(doctor.examine(tmp_path)))
    said = doctor.lines(report)
    assert report["ffmpeg"] == {"version": None, "libraries": {}}
    assert "FFmpeg     none: pip install av" in said
    assert "Encoder    libx264: no (PyAV cannot be loaded)" in said
    assert any(line.startswith("Runtime ") for line in said)


@pytest.mark.behaviour(12, 36)
def test_an_encoder_opens_only_if_it_encodes_a_picture() -> None:
    assert doctor.encoder_error("libx264") is None
    assert doctor.encoder_error("libx265") is None
    assert doctor.encoder_error("mpeg4") is None
    assert doctor.encoder_error("no_such_encoder") is not None
    # NVENC is compiled into PyAV's FFmpeg and opens only with NVIDIA's driver.
    error = doctor.encoder_error("h264_nvenc")
    assert (error is None) == bool(machine.nvidia_gpus()), error


@pytest.mark.behaviour(36)
@pytest.mark.parametrize("level", ["", "2"], ids=["unset", "set"])
def test_trying_the_encoders_writes_nothing_and_leaves_the_environment(level: str) -> None:
    # In a process of its own, since SVT-AV1 reads its environment only once.
    code = (
        "import os\n"
        "from cyclegan_batch import doctor\n"
        "before = dict(os.environ)\n"
        "for name in doctor.ENCODERS:\n"
        "    doctor.encoder_error(name)\n"
        "assert dict(os.environ) == before\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "SVT_LOG"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | ({"SVT_LOG": level} if level else {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    assert bool(level) or ran.stderr == ""


def test_a_runtime_that_does_not_load_is_reported_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, onnxruntime="1.0", openvino="2.0")
    really = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        if name == "onnxruntime":
            return SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
        if name == "openvino":
            raise ImportError("libtbb.so.12: cannot open shared object file\nmore")
        return really(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    report = doctor.examine()
    assert report["runtimes"] == {
        "onnxruntime": {"version": "1.0", "offers": ["CPUExecutionProvider"], "error": None},
        "openvino": {
            "version": "2.0",
            "offers": None,
            "error": "libtbb.so.12: cannot open shared object file",
        },
    }
    said = "\n".join(doctor.lines(report))
    assert "onnxruntime 1.0: CPUExecutionProvider" in said
    assert "openvino 2.0: cannot be loaded, libtbb.so.12" in said


@pytest.mark.behaviour(36)
def test_a_listed_cuda_is_tried_with_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime_gpu="1.25")

    def said() -> str:
        return "\n".join(doctor.lines(doctor.examine()))

    fake = put_cuda_in_place(monkeypatch)
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ())
    assert "CUDAExecutionProvider (no GPU), CPUExecutionProvider" in said()
    assert fake.nodes == 0
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ("Orin",))
    assert "CUDAExecutionProvider (computes), CPUExecutionProvider" in said()
    fake = put_cuda_in_place(monkeypatch)
    monkeypatch.setattr(fake, "other_chips", True)
    assert (
        "CUDAExecutionProvider (does not run: it cannot compute a single node there (CUDA error "
        "cudaErrorNoKernelImageForDevice:no kernel image" in said()
    )


def test_no_runtime_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    said = "\n".join(doctor.lines(doctor.examine()))
    assert 'none: pip install "cyclegan-batch[cpu]"' in said


@pytest.mark.parametrize(
    ("pair", "match"),
    [
        (("onnxruntime", "onnxruntime_gpu"), "onnxruntime and onnxruntime-gpu are both"),
        (("opencv_python", "opencv_python_headless"), "opencv-python and opencv-python-headless"),
    ],
)
def test_two_wheels_that_overwrite_each_other_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str], match: str
) -> None:
    for one in pair:
        installed(monkeypatch, **{one: "1.0"})
        assert doctor.examine()["warnings"] == []
    installed(monkeypatch, **dict.fromkeys(pair, "1.0"))
    (warning,) = doctor.examine()["warnings"]
    assert match in warning
    assert "uninstall both" in warning


@pytest.mark.parametrize(
    ("variable", "found", "otherwise"),
    [
        ("XDG_CACHE_HOME", machine.default_cache_dir, ".cache"),
        ("XDG_STATE_HOME", machine.default_state_dir, ".local/state"),
    ],
)
def test_cache_and_state_lie_where_xdg_says(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    found: Callable[[], Path],
    otherwise: str,
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    assert found() == tmp_path / "cyclegan-batch"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for said in ("", "relative/folder"):
        monkeypatch.setenv(variable, said)
        assert found() == tmp_path / "home" / otherwise / "cyclegan-batch"


def test_the_caches_size_is_that_of_its_files(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert doctor.examine(cache)["cache"]["bytes"] is None
    (cache / "deep").mkdir(parents=True)
    (cache / "one").write_bytes(b"x" * 1000)
    (cache / "deep" / "two").write_bytes(b"x" * 500)
    (cache / "loop").symlink_to(cache)
    assert doctor.examine(cache)["cache"]["bytes"] == 1500


def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make CUDA's driver library missing."""

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(machine.ctypes, "CDLL", missing)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.behaviour(36)
def test_gpus_come_from_the_driver_or_from_its_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cuda(monkeypatch)
    said = SimpleNamespace(stdout="NVIDIA H200, GPU-1a\nNVIDIA L4, GPU-2b\n")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    assert machine.nvidia_gpus() == ("NVIDIA H200", "NVIDIA L4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.nvidia_gpus() == ("NVIDIA L4",)

    def fails(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(subprocess, "run", fails)
    assert machine.nvidia_gpus() == ()
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert machine.nvidia_gpus() == ()


@pytest.mark.behaviour(36)
def test_the_version_of_the_driver_comes_from_the_kernel_or_from_its_tool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Tue Jan 14 2025\n"
    monkeypatch.setattr(Path, "read_text", lambda _: line)
    assert machine.nvidia_driver() == "570.86.15"
    monkeypatch.setattr(Path, "read_text", lambda _: "of another form")
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert machine.nvidia_driver() is None
    said = SimpleNamespace(stdout="571.2\n571.2\n")
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    assert machine.nvidia_driver() == "571.2"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (None, ("A", "B", "C")),
        ("2,0", ("C", "A")),
        ("1", ("B",)),
        ("", ()),
        ("-1", ()),
        ("0,7,1", ("A",)),
        ("GPU-bbb,GPU-ccc-3", ("B", "C")),
        ("GPU-x", ()),
        (" 1 , 2 ", ("B", "C")),
    ],
)
def test_gpus_that_cuda_may_not_see_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, found: tuple[str, ...]
) -> None:
    no_cuda(monkeypatch)
    files = []
    for name, uuid in (("A", "GPU-aaa-1"), ("B", "GPU-bbb-2"), ("C", "GPU-ccc-3")):
        files.append(tmp_path / f"{name} information")
        text = f"Model: \t\t {name}\nIRQ:   \t\t 16\nGPU UUID: \t {uuid}\nVideo BIOS: \t 9\n"
        files[-1].write_text(text)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(files))
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert machine.nvidia_gpus() == found


class FakeCuda:
    """CUDA's driver library, which returns this code and has devices of these names."""

    def __init__(self, code: int, *names: str) -> None:
        self.code, self.names = code, names

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.code

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, text: Any, size: int, device: Any) -> int:  # noqa: N802
        text.value = self.names[device.value].encode()
        return 0


def test_cuda_itself_is_asked_first_as_a_jetson_has_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_gpus_by_driver", lambda: [("shown by the driver", "GPU-1")])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    asked: list[str] = []

    def library(cuda: FakeCuda) -> None:
        monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: asked.append(name) or cuda)

    library(FakeCuda(0, "Orin", "second"))
    assert machine.nvidia_gpus() == ("Orin", "second")
    assert asked == ["libcuda.so.1"]
    library(FakeCuda(100))  # no device is visible
    assert machine.nvidia_gpus() == ()
    library(FakeCuda(803))  # the driver is older than the library
    assert machine.nvidia_gpus() == ("shown by the driver",)


def test_tensorrt_is_reported_with_what_it_needs_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, tensorrt_cu13="11.4", cuda_bindings="13.5")
    fake_tensorrt.install(monkeypatch)
    assert "tensorrt-cu13 11.4: experimental, with cuda-bindings 13.5" in "\n".join(
        doctor.lines(doctor.examine())
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert "tensorrt-cu13 11.4: cannot be loaded" in "\n".join(doctor.lines(doctor.examine()))


@pytest.mark.behaviour(36)
@pytest.mark.parametrize(
    ("release", "tensorrt", "words", "warning"),
    [
        ("R35 (release), REVISION: 4.1", None, "35.4.1, JetPack 5 or older", "older than 6 has no"),
        (
            "R36 (release), REVISION: 4.3",
            "10.16.1.11",
            "36.4.3, JetPack 6 (TensorRT 10.3)",
            "is for CUDA 13, and JetPack 6 (TensorRT 10.3) has CUDA 12: it cannot run here; use a",
        ),
        (
            "R38 (release), REVISION: 4.0",
            None,
            "38.4.0, JetPack 7.0 (TensorRT 10.13)",
            "or later, and JetPack 7.0 (TensorRT 10.13) is older; update to JetPack 7.2, or use a",
        ),
        ("R39 (release), REVISION: 2.0", None, "39.2.0, JetPack 7.2 (TensorRT 10.16.2)", None),
        ("R39 (release), REVISION: 2.0", "10.16.1.11", "39.2.0, JetPack 7.2", None),
        (
            "R39 (release), REVISION: 2.1",
            "11.3.0",
            "39.2.1, JetPack 7.2 (TensorRT 10.16.2)",
            'pip install "cyclegan-batch[tensorrt]" "tensorrt-cu13==10.16.*"',
        ),
        (
            "R39 (release), REVISION: 2.2",
            "11.4.1.2",
            "39.2.2, JetPack 7.2.2 (TensorRT 11.4.1",
            None,
        ),
        (
            "R39 (release), REVISION: 2.2",
            "11.4.0.106",
            "39.2.2, JetPack 7.2.2 (TensorRT 11.4.1)",
            "tensorrt-cu13 11.4.0.106 does not support JetPack 7.2.2 (TensorRT 11.4.1); pip",
        ),
        ("R40 (release), REVISION: 1", "12.0", "40.1, JetPack 7.2.2 (TensorRT 11.4.1)", None),
    ],
)
def test_a_jetson_is_told_which_tensorrt_it_can_have(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    tensorrt: str | None,
    words: str,
    warning: str | None,
) -> None:
    file = tmp_path / "nv_tegra_release"
    file.write_text(f"# {release}, GCID: 38968081, BOARD: generic, EABI: aarch64\n# KERNEL: oot\n")
    monkeypatch.setattr(machine, "_TEGRA_RELEASE", file)
    monkeypatch.setattr(doctor, "_runtimes", dict)
    installed(monkeypatch, **({"tensorrt_cu13": tensorrt} if tensorrt else {}))
    report = json.loads(json.dumps(doctor.examine()))
    assert f"Jetson     Jetson Linux {words}" in "\n".join(doctor.lines(report))
    assert len(report["warnings"]) == (warning is not None)
    assert (warning or "") in "".join(report["warnings"])


def test_what_is_no_jetson_says_nothing_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nv_tegra_release"
    monkeypatch.setattr(machine, "_TEGRA_RELEASE", file)
    assert machine.jetson_linux() is None
    file.write_text("of another form\n")
    assert machine.jetson_linux() is None
    assert doctor.examine()["jetson"] is None
