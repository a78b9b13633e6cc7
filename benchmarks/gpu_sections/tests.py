"""The project's own tests on a GPU, ``pytest -m needs_cuda``.

Only a feature whose tests pass here may lose the word *experimental*. The row of a failure holds
its message. Repair it before you trust any of the following sections.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .measuring import Bench, Job

REPOSITORY = Path(__file__).resolve().parent.parent.parent

MOST = 1500
"""How many characters of a failure are kept, from its end, which shows the failed assertion."""


def jobs(bench: Bench) -> Iterator[Job]:
    # A dry run takes one file, whose tests are skipped there. This one does not load torch.
    lightest = [REPOSITORY / "tests" / "backends" / "tensorrt" / "test_tensorrt.py"]
    for file in marked_files() if bench.cuda else lightest:
        yield file.name, partial(of_file, file)


def marked_files() -> list[Path]:
    """Return the files with GPU tests: collecting all files takes longer than running those."""
    marked = re.compile(r"^@pytest\.mark\.needs_cuda", re.MULTILINE)
    files = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    return [file for file in files if marked.search(file.read_text())]


def of_file(file: Path) -> dict[str, Any]:
    """Run the marked tests of ``file`` in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "needs_cuda", str(file)]
        # Other versions of packages issue other warnings, which are no failures here.
        command += ["-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
        run = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, errors="replace", check=False
        )
        if not report.exists():
            raise RuntimeError(f"pytest ended with {run.returncode}: {run.stdout[-MOST:]}")
        return of_report(report.read_text())


def of_report(xml: str) -> dict[str, Any]:
    """Return the counts of a JUnit report, its failures, and the reasons of its skips."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    failures, skipped = [], set()
    for case in ElementTree.fromstring(xml).iter("testcase"):
        broken = [each for kind in ("failure", "error") for each in case.findall(kind)]
        left_out = case.find("skipped")
        counts["failed" if broken else "passed" if left_out is None else "skipped"] += 1
        for each in broken:
            message = (each.text or each.get("message") or "")[-MOST:]
            failures += [f"{case.get('name')}:", *message.splitlines()]
        if left_out is not None:
            skipped.add(left_out.get("message") or "")
    lists = {"failures": failures, "why_skipped": sorted(skipped)}
    return counts | {name: lines for name, lines in lists.items() if lines}
