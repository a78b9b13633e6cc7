"""OpenVINO: its import, the life of its requests, bf16, and a soak test beside torch."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import BackendUnavailableError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.model import Model, open_model
from cyclegan_batch.models.parity import parity
from cyclegan_batch.wording import grouped
from tests.backends.conftest import reference
from tests.conftest import ENVIRONMENT, REPOSITORY
from tests.needs import need, package
from tests.synthesis import generators
from tests.synthesis.generators import natural

_IMPORTED = """
import multiprocessing, sys
from pathlib import Path
from cyclegan_batch.backends import open_backend
from cyclegan_batch.doctor import examine
from cyclegan_batch.models.model import open_model

multiprocessing.Process.start = lambda process: print("started", process)
if sys.argv[1] == "doctor":
    print(examine()["runtimes"]["openvino"]["error"])
else:
    print(open_backend(open_model(Path(sys.argv[2])), backend="openvino").notes)
"""


@pytest.mark.parametrize("caller", ["translate", "doctor"])
def test_openvino_tells_nobody_that_it_was_imported(tmp_path: Path, caller: str) -> None:
    """Otherwise it starts a copy of this process that reports it, and leaves a folder in HOME."""
    need("openvino")
    home = tmp_path / "home"
    home.mkdir()
    file = generators.invert(tmp_path / "a.onnx")
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED, caller, file],
        env=ENVIRONMENT | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("()" if caller == "translate" else "None", "")
    assert not (home / "intel").exists()


def test_openvino_frees_a_request_when_its_context_is_closed(resnet: Model) -> None:
    need("openvino")
    opened: Any = open_backend(resnet, backend="openvino")
    request = weakref.ref(opened._request)
    opened.close()
    assert request() is None
    opened.cancel()


@pytest.mark.behaviour(24)
def test_an_interrupt_frees_nothing_that_openvino_still_reads_errors() -> None:
    """OpenVINO reads the frames in place: freed before it has stopped, they are freed memory."""
    from cyclegan_batch.backends import openvino

    class Request:
        running = False

        def start_async(self, inputs: dict[str, Pixels], share_inputs: bool) -> None:
            self.running = True
            raise KeyboardInterrupt  # Ctrl-C between the start and the wait

        def cancel(self) -> None:
            self.cancelled = True

        def wait(self) -> None:
            self.running = False
            if self.cancelled:
                raise RuntimeError("Infer Request was canceled")

    request = Request()
    with pytest.raises(KeyboardInterrupt):
        openvino._run(request, natural((8, 8)), "translated")
    assert not request.running


_SOAK = """
import faulthandler, random, sys, threading, time
from pathlib import Path
faulthandler.enable()
import torch
from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import BackendError
from cyclegan_batch.models.model import open_model
from tests.synthesis import generators

model = open_model(generators.tiny_resnet(Path(sys.argv[1]) / "a.onnx"))
frames = [generators.natural((side, side + 8), n) for side, n in ((32, 1), (64, 2), (96, 3))]
draw, rounds, end = random.Random(0), 0, time.monotonic() + float(sys.argv[2])
strange = []

def work(own, go):
    try:
        while not go.is_set():
            own.infer(draw.choice(frames))
    except BackendError as error:
        if "cancelled" not in str(error) and "closed" not in str(error):
            strange.append(error)

while time.monotonic() < end:
    contexts = [
        open_backend(model, backend="openvino", threads=draw.randint(1, 4), contexts=2),
        open_backend(model, backend="onnxruntime", threads=1, device="cpu"),
    ]
    contexts += [contexts[0].fork() for _ in range(draw.randint(0, 2))]
    go = threading.Event()
    threads = [threading.Thread(target=work, args=(own, go)) for own in contexts]
    for thread in threads:
        thread.start()
    torch.nn.functional.conv2d(torch.rand(1, 8, 64, 64), torch.rand(8, 8, 3, 3))
    time.sleep(draw.uniform(0, 0.1))
    how = draw.choice(("cancel", "close", "cancel, close", "compile anew", "end"))
    for own in contexts:
        if "cancel" in how:
            own.cancel()
        if "close" in how:
            own.close()
        if how == "compile anew" and own.name == "openvino":
            own._network.give_up(own._compiled)
    time.sleep(draw.uniform(0, 0.05))
    go.set()
    for thread in threads:
        thread.join()
    for own in contexts:
        own.close()
    del own, contexts, threads
    rounds += 1
assert not strange, strange
print(rounds)
"""


@pytest.mark.slow
@pytest.mark.behaviour(24)
def test_contexts_that_end_in_any_way_beside_torch_crash_nothing(tmp_path: Path) -> None:
    """A crash in OpenVINO, in a test process with torch, was seen once and never explained."""
    need("openvino", "onnxruntime", "torch")
    run = subprocess.run(
        [sys.executable, "-c", _SOAK, tmp_path, "120"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 20


def test_openvino_on_cuda_errors(resnet: Model) -> None:
    need("openvino")
    with pytest.raises(BackendUnavailableError, match="asked for cuda:1 and runs on the CPU"):
        open_backend(resnet, backend="openvino", device="cuda:1")


@pytest.mark.behaviour(33)
def test_bf16_runs_in_openvino_and_is_in_its_class(tmp_path: Path) -> None:
    openvino = package("openvino")
    model = open_model(generators.tiny_resnet(tmp_path / "a.onnx"))
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(BackendUnavailableError, match="this CPU has none"):
            open_backend(model, precision="bf16")
        return
    opened = open_backend(model, precision="bf16")
    frames = natural((96, 96), 2)
    measured = parity(opened.infer(frames), reference(model, frames))
    assert (opened.name, opened.precision) == ("openvino", "bf16")
    assert measured.reaches("near")
    assert measured.cls != "exact"
    (note,) = grouped(opened.notes)
    assert "in bf16 against fp32 is" in note
