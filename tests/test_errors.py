"""Errors as values: they reach another process as they were raised."""

from __future__ import annotations

import errno
import inspect
import pickle
from pathlib import Path

import av.error
import pytest

from cyclegan_batch import errors
from cyclegan_batch.errors import CycleganBatchError, InputError, OutputError, OutputInUseError
from cyclegan_batch.files import output_error
from cyclegan_batch.job.units import is_hopeless

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, CycleganBatchError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_pickled_with_its_class_and_its_text(kind: type[CycleganBatchError]) -> None:
    there = pickle.loads(pickle.dumps(kind("what failed; what to do")))
    assert type(there) is kind
    assert str(there) == "what failed; what to do"
    assert there.__cause__ is None


def test_the_output_that_is_in_use_is_pickled_too() -> None:
    error = pickle.loads(pickle.dumps(OutputInUseError("in use", Path("out.mp4"))))
    assert error.output == Path("out.mp4")


@pytest.mark.behaviour(25)
@pytest.mark.parametrize("kind", [OSError, av.error.OSError])
def test_an_error_of_a_full_disk_ends_the_run_also_when_another_process_met_it(
    kind: type[OSError],
) -> None:
    cause = kind(errno.ENOSPC, "No space left on device")
    error = output_error(Path("out.png"), cause)
    error.__cause__ = cause
    outer = OutputError("gave up")
    outer.__cause__ = error
    there = pickle.loads(pickle.dumps(outer))
    assert is_hopeless(there.__cause__)
    assert isinstance(there.__cause__.__cause__, OSError)
    assert there.__cause__.__cause__.errno == errno.ENOSPC


def test_a_foreign_cause_stays_behind() -> None:
    error = InputError("bad")
    error.__cause__ = ValueError(lambda: None)
    assert pickle.loads(pickle.dumps(error)).__cause__ is None
