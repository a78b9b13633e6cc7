"""What skips a test also fails the run where it was required."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests import needs
from tests.needs import REPOSITORY


def _run(tmp_path, *, require):
    """Run three tests with needs in a process of their own, and return what pytest printed."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "from tests.needs import need\n"
        "@pytest.mark.needs('sys', 'no_such_package')\n"
        "def test_marked(): assert False\n"
        "@pytest.mark.needs('sys')\n"
        "def test_there(): pass\n"
        "def test_called(): need('no_such_package')\n"
    )
    settings = ["-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(tmp_path)]
    plugins = ["-p", "no:cacheprovider", "-p", "tests.conftest"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *settings, *plugins, str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | {"REQUIRE": require},
        capture_output=True,
        text=True,
    )


def test_an_absent_need_skips_by_name(tmp_path):
    done = _run(tmp_path, require="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 2 skipped" in done.stdout
    assert re.search(r"SKIPPED \[2\] tests/needs.py:\d+: needs no_such_package", done.stdout)


def test_a_required_need_that_is_absent_stops_the_run(tmp_path):
    done = _run(tmp_path, require="sys,no_such_package")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "REQUIRE lists what this machine lacks: no_such_package" in done.stderr


def test_a_required_need_that_is_there_changes_nothing(tmp_path):
    assert _run(tmp_path, require="sys").returncode == 0


def test_a_need_is_a_name_of_the_table_or_a_package(monkeypatch):
    monkeypatch.setitem(needs.NEEDS, "a lion", lambda: False)
    assert not needs.has("a lion")
    assert needs.has("json")
    assert not needs.has("no_such_package")
    with pytest.raises(pytest.skip.Exception, match="needs a lion"):
        needs.need("json", "a lion")
