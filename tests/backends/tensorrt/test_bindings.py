"""Every name of TensorRT and CUDA that the backend uses exists in the real bindings."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cyclegan_batch.backends import cuda
from cyclegan_batch.backends import tensorrt as backend
from tests.needs import BINDINGS, need

VERSIONS = ("10.16.1.11", "11.4.0.106")

OBJECTS = {
    "_build": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "each": "ParserError",
        "timing": "ITimingCache",
    },
    "_configuration": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
    },
    "load": {"runtime": "Runtime"},
    "_count_half_layers": {"engine.engine": "ICudaEngine", "inspector": "EngineInspector"},
    "__init__": {"engine.engine": "ICudaEngine", "self._context": "IExecutionContext"},
    "_prepare": {"context": "IExecutionContext"},
    "_enqueue": {"self._context": "IExecutionContext"},
}
"""The names of TensorRT's objects in each function of the backend, and their classes."""


def source_of_the_backend() -> str:
    """Return the source of all modules of the package."""
    folder = Path(backend.__file__).parent
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.py")))


def names_used() -> set[str]:
    """Return every name of TensorRT that the backend uses, as ``Class.name``."""
    tree = ast.parse(source_of_the_backend())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = ast.unparse(node).removeprefix("self._")
            if re.fullmatch(r"trt(\.\w+)+", chain):
                names.add(chain.removeprefix("trt."))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            classes = OBJECTS.get(function.name, {})
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) in classes:
                    names.add(f"{classes[ast.unparse(node.value)]}.{node.attr}")
    return names


def test_the_names_used_are_found() -> None:
    assert {
        "Builder",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "IBuilderConfig.progress_monitor",
        "IExecutionContext.execute_async_v3",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "ICudaEngine.create_engine_inspector",
    } <= names_used()
    gone = {"EXPLICIT_BATCH", "FP16", "INT8", "int8_calibrator", "max_workspace_size"}
    assert not gone & {name.rpartition(".")[2] for name in names_used()}


_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
"""The functions of TensorRT's libraries that the bindings require at their import."""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_in_the_bindings(tmp_path: Path, version: str) -> None:
    """The bindings are imported with empty libraries, which is enough to look up names."""
    need("bindings", "gcc")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    (wheel,) = BINDINGS.glob(f"tensorrt_cu13_bindings-{version}-{tag}-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    source = tmp_path / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS))
    for each in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        name = f"lib{each}.so.{version.partition('.')[0]}"
        command = ["gcc", "-shared", "-fPIC", "-o", tmp_path / "tensorrt_bindings" / name, source]
        subprocess.run(command, check=True)
    script = (
        "import functools, json, sys, tensorrt_bindings as trt\n"
        "def there(name):\n"
        "    try: functools.reduce(getattr, name.split('.'), trt)\n"
        "    except AttributeError: return False\n"
        "    return True\n"
        "print(json.dumps([trt.__version__, [n for n in sys.argv[1:] if not there(n)]]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, *names_used()],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [version, []]


def test_every_name_of_cuda_exists_in_its_bindings() -> None:
    need("cuda-bindings")
    runtime = importlib.import_module("cuda.bindings.runtime")
    source = source_of_the_backend() + Path(cuda.__file__).read_text()
    used = set(re.findall(r"\bcuda[A-Z]\w+", source)) - {"cudaErrorMemoryAllocation"}
    assert {"cudaMallocHost", "cudaMemcpyAsync", "cudaStreamSynchronize"} <= used
    there = {*dir(runtime), *dir(runtime.cudaMemcpyKind), *dir(runtime.cudaStreamCaptureMode)}
    assert not used - there
