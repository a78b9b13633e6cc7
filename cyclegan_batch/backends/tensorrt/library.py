"""The bindings of TensorRT: their import, and the objects that TensorRT reports to."""

from __future__ import annotations

import functools
import importlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ...errors import BackendError, BackendUnavailableError, OutOfMemoryError
from ..common import says_out_of_memory

_KEPT_MESSAGES = 16
"""Errors of one call that are kept; the first say why."""


def import_tensorrt() -> Any:
    """Return the module ``tensorrt``. Raises BackendUnavailableError."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendUnavailableError(
            f'tensorrt cannot be loaded ({error}); pip install "cyclegan-batch[tensorrt]", see the '
            "README for where its library comes from"
        ) from error


def created(make: Callable[[], Any], failed: str, log: Any) -> Any:
    """Return what ``make`` makes; None, or a failed constructor, becomes an error that says why."""
    try:
        made = make()
        cause: Exception | None = None
    # pybind11 says a constructor's null pointer so.
    except (TypeError, RuntimeError) as error:
        made, cause = None, error
    if made is not None:
        return made
    words = log.words() or str(cause or "no reason given")
    if says_out_of_memory(RuntimeError(words)):
        raise OutOfMemoryError(f"{failed}: no memory ({words}); close other programs") from cause
    raise BackendError(
        f"{failed}: {words}; see cyclegan-batch doctor, or pass --backend onnxruntime"
    ) from cause


@functools.cache
def logger(trt: Any) -> Any:
    """Return the logger of this process: TensorRT keeps the first that it is given.

    It keeps the errors of each thread that has called `clear` apart: nobody clears those of
    another. TensorRT's own threads, which only building has, call it too.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._of_this_thread = threading.local()
            self._of_tensorrts_threads: deque[str] = deque(maxlen=_KEPT_MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                getattr(self._of_this_thread, "errors", self._of_tensorrts_threads).append(message)

        def clear(self, *, of_tensorrts_threads: bool = False) -> None:
            self._of_this_thread.errors = deque(maxlen=_KEPT_MESSAGES)
            self._of_this_thread.takes_all = of_tensorrts_threads
            if of_tensorrts_threads:
                self._of_tensorrts_threads.clear()

        def words(self) -> str:
            """Return the errors since `clear`."""
            errors = list(self._of_this_thread.errors)
            if self._of_this_thread.takes_all:
                errors += self._of_tensorrts_threads
            return _in_one_line(errors)

    return Log()


def error_recorder(trt: Any) -> Any:
    """Return what an execution context reports its errors to: to it instead of the logger."""
    return _recorder_class(trt)()


@functools.cache
def _recorder_class(trt: Any) -> Any:
    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self._errors: list[tuple[Any, str]] = []

        # What TensorRT calls; an exception in it would end the process.
        def report_error(self, code: Any, description: str) -> bool:
            if len(self._errors) < _KEPT_MESSAGES:
                self._errors.append((code, description))
            return False

        def num_errors(self) -> int:
            return len(self._errors)

        def get_error_code(self, index: int) -> Any:
            return self._errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self._errors[index][1]

        def has_overflowed(self) -> bool:
            return len(self._errors) == _KEPT_MESSAGES

        def clear(self) -> None:
            self._errors.clear()

        def words(self) -> str:
            """Return the errors since `clear`."""
            return _in_one_line(description for _, description in self._errors)

        def out_of_memory(self) -> bool:
            """Tell whether one of them is that."""
            return any(
                code == trt.ErrorCodeTRT.FAILED_ALLOCATION
                or says_out_of_memory(RuntimeError(description))
                for code, description in self._errors
            )

    return Recorder


def _in_one_line(errors: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(map(one_line, errors)))


def one_line(text: str) -> str:
    """Return a message of TensorRT in one line, without the places in its source."""
    text = re.sub(r"\[\S+::\S+\] |\(?[Ii]n \S+ at \S+ ?", "", text)
    return " ".join(text.split())[:300]


def progress_monitor(trt: Any) -> Any:
    """Return what TensorRT tells how far it is, and asks whether to go on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stop = False
            self.phase = "it begins"

        # Called from TensorRT's threads, where an exception would end the process: nothing here
        # can fail.
        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phase = name

        def step_complete(self, name: str, step: int) -> bool:
            self.phase = f"{name}, step {step + 1}"
            return not self.stop

        def phase_finish(self, name: str) -> None:
            pass  # its parent goes on and says so

    return Monitor()
