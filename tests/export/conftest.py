"""A bundle, and a device without the package: its trtexec is a stand-in.

What the stand-in writes for ``--exportOutput`` and at the end of a measurement is written as
NVIDIA's source does (samples/common/sampleReporting.cpp and sampleUtils.cpp of TensorRT 10.3 and
11.1), since before 10.16 the former is not the JSON that it looks like.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.synthesis import generators

TRTEXEC = """
import json, os, sys
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
mode = os.environ.get("FAKE", "")
print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{os.environ.get('VERSION', 100300)}] # trtexec")
if mode in ("fails", "old"):
    sys.exit(print("[W] nothing\\n[E] Error[4]: IBuilder: out of luck") or 3)
json.dump(sys.argv[1:], open(options.get("saveEngine", "model.engine") + ".options", "a"))
if "saveEngine" in options:
    open(options["saveEngine"], "wb").write(open(options["onnx"], "rb").read())
elif "useCudaGraph" in options:
    print("[I] Created execution context with device memory size: 132.25 MiB")
    print("[I] === Performance summary ===")
    if mode != "short":
        print("[I] Throughput: 40.5 qps")
    print("[I] Latency: min = 13 ms, max = 15 ms, mean = 14 ms, median = 14 ms, "
          "percentile(99%) = 9 ms")
    print("[I] GPU Compute Time: min = 12.0 ms, max = 15 ms, mean = 12.4 ms, median = 12.3436 ms, "
          "percentile(99%) = 12.9 ms")
else:
    name, path = options["loadInputs"].split(":")
    values = [255 - value for value in open(path, "rb").read()]
    if mode == "wrong":
        values = [min(255, value + 1) for value in values]
    if mode == "nearly":
        values[:3] = [value ^ 2 for value in values[:3]]
    spell = bytes if mode == "10.3" else lambda one: str(one[0]).encode()
    with open(options["exportOutput"], "wb") as out:
        out.write(b'[\\n  { "name" : "translated"\\n  , "dimensions" : "1x16x24x3"\\n')
        out.write(b'  , "values" : [ ' + b", ".join(spell([each]) for each in values))
        out.write(b" ]\\n  }\\n]\\n" if mode != "short" else b", 7 ]\\n  }\\n]\\n")
print("&&&& PASSED")
"""


class _Content(pickle.Pickler):
    """Pickles a network by what it computes: its tensors by their values, not by their storage."""

    def persistent_id(self, value: Any) -> Any:
        import torch

        if not isinstance(value, torch.Tensor):
            return None
        return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()


@pytest.fixture(autouse=True, scope="session")
def _each_network_once() -> Iterator[None]:
    """Let torch export each network once for all tests; it takes two seconds.

    `cyclegan_export.graph.graph_from_network` itself stays as it is.
    """
    try:
        from cyclegan_export import onnx_export
    except ImportError:  # the tests that need it are skipped
        yield
        return
    real, kept = onnx_export.graph_from_network, dict[bytes, Any]()

    def exported(network: Any, *given: Any, **options: Any) -> Any:
        content = io.BytesIO()
        try:
            _Content(content).dump((network, given, sorted(options.items())))
        except (AttributeError, TypeError, pickle.PicklingError):
            return real(network, *given, **options)
        key = content.getvalue()
        if key not in kept:
            kept[key] = real(network, *given, **options)
        copied = type(kept[key])()
        copied.CopyFrom(kept[key])
        return copied

    onnx_export.graph_from_network = exported
    yield
    onnx_export.graph_from_network = real


@pytest.fixture
def device(tmp_path: Path) -> Any:
    """Return a function that runs the bundle's script with a stand-in trtexec."""
    place = tmp_path / "bin" / "trtexec"
    place.parent.mkdir()
    place.write_text(f"#!{sys.executable}\n{TRTEXEC}")
    place.chmod(0o755)

    def run(
        bundle: Path, *words: str, python: str = sys.executable, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        environment.setdefault("PATH", f"{place.parent}:{os.environ['PATH']}")
        # -I and -S hide the packages that are installed here.
        command = [python, "-I", "-S", str(bundle / "edge.py"), *words]
        return subprocess.run(
            command, env=environment, cwd="/", capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a bundle of a generator that inverts."""
    pytest.importorskip("torch")
    from cyclegan_export import export_bundle

    model = generators.invert(tmp_path / "invert.onnx", trained_size="16")
    shapes: Any = {"min_shape": (1, 16, 24), "opt_shape": (2, 16, 24), "max_shape": (4, 32, 48)}
    return export_bundle(model, tmp_path / "for orin", target="jetson-orin", **shapes)
