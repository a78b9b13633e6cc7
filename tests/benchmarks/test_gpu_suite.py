"""The suite that waits for a GPU: its order, its limits, and a dry run of its lines.

What it measures needs a GPU. That a section which crashes, hangs or prints garbage costs only
itself, and that rows survive a kill, does not.
"""

from __future__ import annotations

import ast
import json
import math
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_sections import rows
from tests.conftest import INTERPRETED, REPOSITORY

torch = pytest.importorskip("torch")

A, B, C = (gpu.Section(name, 1.0, 0.2) for name in "abc")


@pytest.fixture
def notebook(tmp_path: Path) -> rows.Notebook:
    return rows.Notebook(tmp_path / "gpu.jsonl", "now", "NVIDIA H100")


# The plan


def test_what_no_card_has_a_row_of_comes_first_then_what_this_card_lacks():
    held = {("a", "NVIDIA H100"), ("b", "NVIDIA H200")}
    order = gpu.in_order([A, B, C], held, "NVIDIA H100", compiling=False)
    assert order == [C, B, A]
    assert gpu.in_order([A, B, C], set(), "NVIDIA H100", compiling=False) == [A, B, C]


def test_while_something_compiles_what_is_not_timed_goes_first():
    untimed = gpu.Section("untimed", 1.0, 0.2, timed=False)
    held = {("untimed", "NVIDIA H100")}
    assert gpu.in_order([A, untimed], held, "NVIDIA H100", compiling=True) == [untimed, A]
    assert gpu.in_order([A, untimed], held, "NVIDIA H100", compiling=False) == [A, untimed]


def test_the_limits_never_exceed_the_time_and_none_is_below_its_least():
    draws = random.Random(0)
    for _ in range(200):
        sections = [
            gpu.Section(str(n), draws.uniform(1, 90), draws.uniform(0.1, 1)) for n in range(12)
        ]
        seconds = draws.uniform(0, 900)
        found = gpu.limits(sections, seconds)
        assert sum(found.values()) <= seconds + 1e-6
        assert all(found.get(s.name, math.inf) >= s.least for s in sections)
        # Where there is time for all, all have it, and nothing is left over.
        if sum(s.seconds for s in sections) <= seconds:
            assert all(found[s.name] >= s.seconds - 1e-6 for s in sections)
            assert sum(found.values()) == pytest.approx(seconds)
    assert gpu.limits([A, B], 0.1) == {}
    assert gpu.limits([A, B], 1.1) == {"a": 1.0}


def test_nine_minutes_hold_every_section():
    found = gpu.limits(gpu.SECTIONS, 9 * 60 - gpu.RESERVE)
    assert [section.name for section in gpu.SECTIONS] == list(found)
    assert all(found[section.name] >= section.seconds for section in gpu.SECTIONS)


def test_every_section_has_its_file_which_says_what_its_numbers_decide():
    folder = REPOSITORY / "benchmarks" / "gpu_sections"
    for section in (*gpu.SECTIONS, gpu.COMPILES):
        assert len((folder / f"{section.name}.py").read_text().split('"""')[1]) > 200


# The processes

WRITES = """
import json, os, sys, time
def write(**values):
    with open({file!r}, "a") as file:
        file.write(json.dumps({{"run": "now", "card": "NVIDIA H100", **values}}) + "\\n")
sys.stdin.readline()
"""


def acting(notebook: rows.Notebook, code: str) -> gpu.Process:
    """Return a process that waits for its word and then runs ``code``; no torch is imported."""
    ready = notebook.file.with_name(secrets.token_hex(8))
    started = f"import json, os, sys, time\nopen({str(ready)!r}, 'w').close()\n"
    written = started + WRITES.format(file=str(notebook.file)) + code
    process = gpu.Process([sys.executable, "-S", "-c", written])
    end = time.monotonic() + 60
    while not ready.exists():  # the start of Python is none of the section's seconds
        assert time.monotonic() < end
        time.sleep(0.002)
    return process


def test_a_section_that_crashes_hangs_or_prints_garbage_costs_only_itself(notebook):
    acts = {
        "crash": "write(section='crash', name='before', x=1); print('CUDA lost'); os.abort()",
        "hang": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "write(section='hang', name='before', x=2); time.sleep(60)",
        "garbage": "os.write(1, bytes(range(256)) * 9999)\n"
        f"open({str(notebook.file)!r}, 'ab').write(b'\\xff{{half a row\\n[]\\n7\\n')\n"
        "write(section='garbage', name='after', x=3); sys.exit(5)",
        "good": "write(section='good', name='all', x=4)",
    }
    sections = [gpu.Section(name, 1.2 if name == "hang" else 20.0, 0.5) for name in acts]
    begin, said = time.monotonic(), []
    gpu.measure(
        sections,
        62.0,
        spawn=lambda section: acting(notebook, acts[section.name]),
        notebook=notebook,
        say=said.append,
    )
    assert time.monotonic() - begin < 20
    found = {(row["section"], row["name"]): row for row in notebook.rows()}
    assert [found[name, kind]["x"] for name, kind in (
        ("crash", "before"), ("hang", "before"), ("garbage", "after"), ("good", "all")
    )] == [1, 2, 3, 4]  # fmt: skip
    assert found["crash", "the section"]["error"] == "ended with SIGABRT: CUDA lost"
    assert found["hang", "the section"]["error"].startswith("stopped after its ")
    assert found["garbage", "the section"]["error"].startswith("ended with code 5")
    assert ("good", "the section") not in found
    assert [line.partition(":")[0] for line in said] == list(acts)
    # And the table is made of it all.
    table = rows.markdown(notebook.rows())
    assert "the section: error: ended with SIGABRT: CUDA lost" in table
    assert rows.committed(table) == {(name, "NVIDIA H100") for name in acts}


def test_the_whole_ends_in_its_time_and_what_had_none_says_so(notebook):
    sections = [gpu.Section(name, 1.0, 0.6) for name in "abc"]
    begin = time.monotonic()
    gpu.measure(
        sections,
        1.5,
        spawn=lambda section: acting(notebook, "time.sleep(60)"),
        notebook=notebook,
        say=lambda line: None,
    )
    assert time.monotonic() - begin < 15  # the end of a process may take a moment
    errors = {row["section"]: row.get("error", row.get("not_run")) for row in notebook.rows()}
    assert errors["a"] == "stopped after its 1 s"
    assert errors["c"] == "no time was left"


def test_what_is_timed_waits_for_the_background_and_what_is_not_does_not(notebook):
    moments = "write(section={0!r}, name='begin', at=time.monotonic()); {1}\n" \
        "write(section={0!r}, name='end', at=time.monotonic())"  # fmt: skip
    # The background ends when what is not timed has begun.
    until = f"while 'untimed' not in open({str(notebook.file)!r}).read(): time.sleep(0.01)"
    acts = {"compiles": f"\n{until}", "untimed": "pass", "timed": "pass"}
    sections = [gpu.Section("untimed", 20, 0.2, timed=False), gpu.Section("timed", 20, 0.2)]
    gpu.measure(
        sections,
        60.0,
        spawn=lambda s: acting(notebook, moments.format(s.name, acts[s.name])),
        notebook=notebook,
        compiles=gpu.Section("compiles", 20, 0.2),
        say=lambda line: None,
    )
    at = {(row["section"], row["name"]): row["at"] for row in notebook.rows()}
    assert at["untimed", "begin"] < at["compiles", "end"] <= at["timed", "begin"]


def test_rows_survive_a_kill_and_no_process_stays(notebook):
    """The command is killed in the middle of a section, and its section ends as well."""
    act = (
        "import threading\nfrom benchmarks.gpu_sections.__main__ import end_with_parent\n"
        "threading.Thread(target=end_with_parent, daemon=True).start()\n"
        "write(section='a', name='before', pid=os.getpid()); time.sleep(60)"
    )
    code = f"""
import sys
from benchmarks import gpu
from benchmarks.gpu_sections.rows import Notebook
from pathlib import Path
notebook = Notebook(Path({str(notebook.file)!r}), "now", "NVIDIA H100")
section = gpu.Section("a", 60, 1)
spawn = lambda section: gpu.Process([sys.executable, "-S", "-c", {WRITES!r}.format(
    file=str(notebook.file)) + {act!r}])
gpu.measure([section], 60, spawn=spawn, notebook=notebook)
"""
    end = time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) as run:
        while not notebook.rows():
            assert time.monotonic() < end
            time.sleep(0.02)
        run.kill()
    (row,) = notebook.rows()
    while _runs(row["pid"]):
        assert time.monotonic() < end
        time.sleep(0.02)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_a_gpu_the_command_says_what_to_do_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "nvidia_gpus", tuple)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "shows no NVIDIA GPU; --device cpu makes a dry run" in capsys.readouterr().err


def test_an_unknown_section_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--sections", "bare,x"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "no section x" in capsys.readouterr().err


# The rows


def test_a_row_that_fails_costs_itself_and_time_ends_the_rest(notebook):
    now = [0.0]

    def takes(seconds, **values):
        def job():
            now[0] += seconds
            if not values:
                raise RuntimeError("cuDNN has none")
            return values

        return job

    def absent():
        raise rows.NotRunError("PyAV is not installed")

    jobs = [("bad", takes(1)), ("good", takes(6, fps=1234.5678)), ("absent", absent),
            ("late", takes(6, fps=1)), ("no time", takes(1, fps=1))]  # fmt: skip
    rows.write_rows(notebook, "bare", jobs, clock=lambda: now[0], end=10.0)
    found = {row["name"]: row for row in notebook.rows()}
    assert found["bad"]["error"] == "RuntimeError: cuDNN has none"
    assert found["good"]["fps"] == 1235.0
    assert found["absent"]["not_run"] == "PyAV is not installed"
    assert found["late"]["fps"] == 1
    assert found["no time"]["not_run"] == "no time was left"


def test_a_section_counts_as_committed_by_a_measured_row_only(notebook):
    notebook.write("bare", "fused", fps=12.3, mib=5, kernels=["one", "two"])
    notebook.write("bare", "eager", fps=7.5, mib=5)
    notebook.write("video", "the section", not_run="PyAV is not installed")
    notebook.write("host", "pinned", error="RuntimeError: x")
    table = rows.markdown(notebook.rows())
    assert table.startswith(
        "### bare, NVIDIA H100\n\n"
        "|  | fps | mib |\n| --- | --- | --- |\n| fused | 12.3 | 5 |\n| eager | 7.5 | 5 |\n\n"
        "fused, kernels:\n\n    one\n    two\n\n"
    )
    text = f"# Measured\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n{table}\n## Not measured\n"
    assert rows.committed(text) == {("bare", "NVIDIA H100")}
    assert rows.committed("## x, y\n|a|\n|-|\n|1|\n### bare, H\n|a|\n|-|\n") == set()


def test_this_repositorys_results_have_no_row_of_a_dry_run():
    text = (REPOSITORY / "benchmarks" / "RESULTS.md").read_text()
    known = {section.name for section in (*gpu.SECTIONS, gpu.COMPILES)}
    found = rows.committed(text)
    assert {section for section, _ in found} <= known
    assert gpu.DRY_RUN not in {card for _, card in found}


def test_failures_words_of_a_test_report_are_kept():
    from benchmarks.gpu_sections.tests import of_report

    found = of_report(
        '<testsuites><testsuite><testcase name="t1"/>'
        '<testcase name="t2"><failure message="m">assert 1\nE  is 2</failure></testcase>'
        '<testcase name="t3"><skipped message="no two GPUs"/></testcase>'
        '<testcase name="t4"><error message="cannot be collected"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert found == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["t2:", "assert 1", "E  is 2", "t4:", "cannot be collected"],
        "why_skipped": ["no two GPUs"],
    }


def test_marked_tests_are_run_and_counted(tmp_path):
    from benchmarks.gpu_sections.tests import of_file

    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.needs_cuda\ndef test_a(): pass\n"
        "@pytest.mark.needs_cuda\ndef test_b(): assert 1 == 2\n"
        "def test_c(): assert False\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = needs_cuda: x")
    found = of_file(tmp_path / "test_it.py")
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 0)
    assert any("assert 1 == 2" in line for line in found["failures"])


# A dry run of every section's lines


@pytest.fixture
def dry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute as the process of a dry run does, without a process: torch is imported already."""
    if not INTERPRETED:
        pytest.skip("Triton compiles here, where a dry run interprets")
    monkeypatch.setattr(torch, "compile", lambda body, **how: body)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("dry")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(s.name, marks=pytest.mark.slow if s.name == "runtimes" else [])
        for s in (*gpu.SECTIONS, gpu.COMPILES)
        if s.name != "tests"
    ],
)
def test_a_dry_run_of_a_section_has_only_measured_rows(name, notebook):
    import importlib

    from benchmarks.gpu_sections.measuring import bench_on

    section = importlib.import_module(f"benchmarks.gpu_sections.{name}")
    rows.write_rows(
        notebook, name, section.jobs(bench_on("cpu")), clock=time.monotonic, end=math.inf
    )
    found = notebook.rows()
    assert found
    for row in found:
        assert "error" not in row, row
        if "not_run" in row:
            assert row["not_run"] == "NVDEC is a part of a GPU"
            continue
        numbers = {key: value for key, value in row.items() if isinstance(value, float)}
        assert not any(math.isnan(value) for value in numbers.values()), row
        assert all(numbers.get(key, 1.0) > 0 for key in ("fps", "ms", "tflops", "gb_per_s")), row
        assert row.get("status", "whole") == "whole"
        assert row.get("reached", row.get("needed")) == row.get("needed") or "halves" in row["name"]


@pytest.mark.parametrize("broken", [False, True])
def test_each_row_of_training_tells_its_rate_over_that_of_the_eager_step_in_tf32(
    broken, notebook, monkeypatch
):
    from benchmarks.gpu_sections import training
    from benchmarks.gpu_sections.measuring import Bench

    def rate(bench, *, word="tf32", batch=1, **options):
        if broken and (word, options) == ("tf32", {}):
            raise RuntimeError("no kernel image")
        return {"pictures_per_s": batch * (30.0 if "precision" in options else 10.0)}

    monkeypatch.setattr(training, "rate", rate)
    for measured in ("recorded", "other_gradients", "loop"):
        monkeypatch.setattr(training, measured, lambda *given, **options: {})
    jobs = training.jobs(Bench("cuda"))
    rows.write_rows(notebook, "training", jobs, clock=time.monotonic, end=math.inf)
    found = [(row["name"], row.get("times_tf32")) for row in notebook.rows()]
    assert ("bf16", None if broken else 3.0) in found
    assert ("fp32, ieee", None if broken else 1.0) in found
    assert ("+ graphs", None if broken else 24.0) in found  # at batch 8
    assert [name for name, _ in found].count("+ graphs, fused norm, one stream") == 1


@pytest.mark.usefixtures("dry")
def test_a_file_that_draws_another_picture_is_seen_on_onnxruntime(notebook, monkeypatch):
    """The exporter takes seconds; what a file does is measured whatever wrote it."""
    from benchmarks.gpu_sections import runtimes
    from benchmarks.gpu_sections.measuring import bench_on
    from benchmarks.pipeline import write_identity

    pytest.importorskip("onnxruntime")

    def export(checkpoint, path, precision):
        return {"size": write_identity(path).stat().st_size}

    monkeypatch.setattr(runtimes, "export", export)
    jobs = runtimes.jobs(bench_on("cpu"))
    rows.write_rows(notebook, "runtimes", jobs, clock=time.monotonic, end=math.inf)
    exported, row = notebook.rows()
    assert exported["size"] > 0
    assert row["fps"] > 0
    assert (row["reached"], row["needed"]) == ("none", "exact")


class Counting:
    """A context that counts its calls and may fail at one of them."""

    def __init__(self, fails_at=0):
        self.calls, self.fails_at = 0, fails_at

    def infer(self, frames):
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("no kernel image")
        time.sleep(0.005)
        return frames


def test_the_rate_of_several_contexts_counts_what_follows_the_warm_up():
    from benchmarks.gpu_sections.measuring import frames_per_second

    contexts = [Counting(), Counting()]
    begin = time.perf_counter()
    rate = frames_per_second(contexts, [None] * 4, 0.1)
    took = time.perf_counter() - begin
    timed = sum(each.calls - 3 for each in contexts)
    assert 4 * timed / took < rate <= 4 * timed / 0.1
    with pytest.raises(RuntimeError, match="no kernel image"):
        frames_per_second([Counting(), Counting(fails_at=2)], [None], 0.1)


def test_every_way_of_onnxruntime_has_a_row_and_opens(notebook, monkeypatch, tmp_path):
    """It opens on a stand-in."""
    from benchmarks.gpu_sections import runtimes
    from benchmarks.gpu_sections.measuring import Bench
    from tests.backends.conftest import put_cuda_in_place
    from tests.synthesis import generators

    sessions = put_cuda_in_place(monkeypatch)
    model = generators.tiny_resnet(tmp_path / "resnet.onnx")
    monkeypatch.setattr(runtimes, "required", lambda *modules: None)
    monkeypatch.setattr(runtimes, "export", lambda *given, **options: {"mb": 1.0})
    monkeypatch.setattr(Bench, "checkpoint_in", lambda self, folder: model)
    opened = []

    def of_file(bench, checkpoint, opens, precision, contexts):
        if opens.func is runtimes.on_onnxruntime:
            backend = opens.func(bench, model, *opens.args[2:])
            opened.append(backend.precision)
            backend.close()
        return {"fps": 1.0}

    monkeypatch.setattr(runtimes, "of_file", of_file)
    rows.write_rows(
        notebook, "runtimes", runtimes.jobs(Bench("cuda")), clock=time.monotonic, end=math.inf
    )
    found = {row["name"]: row for row in notebook.rows()}
    assert not [row for row in found.values() if "error" in row]
    assert len(found) == 3 + len(runtimes.ROWS) + 4
    assert {
        "onnxruntime, fp16, plain, 2 contexts",
        "onnxruntime, fp16, graph, 1 contexts",
        "onnxruntime, fp16, half norm, graph, NHWC, 2 contexts",
        "tensorrt, half norm, graph, 2 contexts",
    } <= found.keys()
    assert len(opened) == len(runtimes.ROWS)
    ((_, options),) = sessions.sessions[-1].providers
    assert (options["enable_cuda_graph"], options["prefer_nhwc"]) == ("1", "1")


# A bare checkout


NO_AV = """
import sys
sys.modules.update(dict.fromkeys(("av", "openvino", "imageio_ffmpeg")))
"""


def test_the_command_works_in_a_checkout_without_pyav(tmp_path):
    """A machine lent for its GPU has torch and OpenCV; PyAV is there only if it was carried."""
    (tmp_path / "sitecustomize.py").write_text(NO_AV)
    run = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--minutes", "3",
         "--sections", "images,video", "--out", str(tmp_path / "out")],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert f"### images, {gpu.DRY_RUN}\n\n|  | fps | frames | status |" in run.stdout
    assert f"### video, {gpu.DRY_RUN}\n\nthe section: not run: av is not installed" in run.stdout
    found = [json.loads(line) for line in (tmp_path / "out/gpu.jsonl").read_text().splitlines()]
    assert [row.get("status") for row in found] == ["whole", "whole", None]


def test_the_tests_for_a_gpu_are_imported_without_pyav():
    from benchmarks.gpu_sections.tests import marked_files

    for file in marked_files():
        assert "av" not in loaded_by(file, set()), file


def loaded_by(file: Path, seen: set[Path]) -> set[str]:
    """Return the foreign modules that importing ``file``, and what it imports of ours, loads."""
    found: set[str] = set()
    seen.add(file)
    for node in ast.parse(file.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(file.relative_to(REPOSITORY).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            places = [
                REPOSITORY / root / name.replace(".", "/") for root in (".", "train", "export")
            ]
            ours = [
                path
                for place in places
                for path in (place.with_suffix(".py"), place / "__init__.py")
                if path.is_file()
            ]
            if ours:
                found |= loaded_by(ours[0], seen) if ours[0] not in seen else set()
            else:
                found.add(name.partition(".")[0])
    return found
