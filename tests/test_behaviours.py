"""The behaviour list: the check itself must be able to fail."""

from __future__ import annotations

import re

import pytest

from tests import behaviours

MARKS = {"corpus", "needs_cuda", "needs_tensorrt"}


class _Item:
    """What the behaviour list looks at in a collected test."""

    def __init__(self, *marks: pytest.Mark) -> None:
        self.marks = marks

    def iter_markers(self, name):
        return (mark for mark in self.marks if mark.name == name)


def _test_of(*numbers, needs=None):
    marks = [pytest.mark.behaviour(*numbers).mark]
    if needs:
        by_name = getattr(pytest.mark, needs) if needs in MARKS else pytest.mark.needs(needs)
        marks.append(by_name.mark)
    return _Item(*marks)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with everything but ffprobe."""
    monkeypatch.setattr(behaviours, "has", lambda name: name != "ffprobe")


def test_a_claimed_behaviour_without_a_test_is_a_problem():
    every = [_test_of(*sorted(behaviours.CLAIMED))]
    assert list(behaviours.problems(behaviours.evidence(every))) == []
    most = [_test_of(*sorted(behaviours.CLAIMED - {7}))]
    (problem,) = behaviours.problems(behaviours.evidence(most))
    assert "behaviour 7, and no test" in problem


def test_a_test_that_this_machine_skips_is_no_evidence():
    items = [
        _test_of(*sorted(behaviours.CLAIMED - {4})),
        _test_of(4, needs="ffprobe"),
        _test_of(4, needs="ffprobe"),
    ]
    (problem,) = behaviours.problems(behaviours.evidence(items))
    assert "behaviour 4, and no test that runs holds it; this machine skips 2" in problem
    line = list(behaviours.report(behaviours.evidence(items)))[3]
    assert re.match(r"  4  no test .*\[2 skipped here\]", line)


def test_a_claim_that_only_a_gpu_could_show_is_a_problem():
    items = [
        _test_of(*sorted(behaviours.CLAIMED - {12})),
        _test_of(12, needs="needs_cuda"),
    ]
    (problem,) = behaviours.problems(behaviours.evidence(items))
    assert "behaviour 12" in problem


def test_a_mark_with_an_unknown_number_is_a_problem():
    items = [_test_of(*sorted(behaviours.CLAIMED)), _test_of(100), _test_of("7")]
    unknown, text = behaviours.problems(behaviours.evidence(items))
    assert "behaviour(100)" in unknown
    assert "behaviour('7')" in text


def test_the_list_tells_tested_from_logic_only_in_part_and_untested():
    items = [_test_of(1), _test_of(37), _test_of(37, needs="needs_cuda"), _test_of(1)]
    items += [_test_of(1, needs="corpus"), _test_of(53)]
    lines = list(behaviours.report(behaviours.evidence(items)))
    assert len(lines) == len(behaviours.BEHAVIOURS) == 54
    assert re.match(r"  1  tested .*\[2 anywhere, 1 on real data\]", lines[0])
    assert re.match(r"  2  no test ", lines[1])
    assert re.match(r" 48  later ", lines[47])
    assert re.match(r" 53  in part ", lines[52])
    assert re.match(r" 37  logic only .*\[1 anywhere, 1 on a GPU, needs two GPUs\]", lines[36])
