"""The bindings of TensorRT: their import, and the objects that TensorRT reports to."""

from __future__ import annotations

import functools
import importlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Protocol, TypeVar

from ...errors import BackendError, BackendUnavailableError, OutOfMemoryError
from ...machine import jetson_linux
from ..common import is_out_of_memory
from .jetpack import fault_of, jetpack_of

_T = TypeVar("_T")

_MOST_MESSAGES = 16
"""How many errors of one call are kept: the first ones show the cause."""


class Logger(Protocol):
    """The logger of this process, an ``ILogger``; see `logger`."""

    def clear(self, *, include_tensorrts_threads: bool = False) -> None:
        """Forget the errors of the calling thread, and from now on keep them for `words`.

        ``include_tensorrts_threads``: treat the errors of TensorRT's own threads as this thread's.
        """

    def words(self) -> str:
        """Return the errors since `clear` in one line."""


class ErrorRecorder(Protocol):
    """What an object of TensorRT reports its errors to, an ``IErrorRecorder``."""

    def num_errors(self) -> int:
        """Return how many errors were reported since `clear`."""

    def clear(self) -> None:
        """Forget the errors."""

    def words(self) -> str:
        """Return the errors since `clear` in one line."""

    def out_of_memory(self) -> bool:
        """Tell whether one of the errors is a failed allocation."""


class ProgressMonitor(Protocol):
    """What a build reports its progress to, an ``IProgressMonitor``."""

    phase: str
    """The phase of the build, and its step, in words."""
    stop: bool
    """Set to True, it ends the build."""


def import_tensorrt() -> ModuleType:
    """Return the module ``tensorrt``. Raises BackendUnavailableError."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        linux = jetson_linux()
        fault = None if linux is None else fault_of(jetpack_of(linux), None)
        if fault is not None:
            raise BackendUnavailableError(f"tensorrt cannot be loaded: {fault}") from error
        raise BackendUnavailableError(
            f'tensorrt cannot be loaded ({error}); pip install "cyclegan-batch[tensorrt]"; '
            "docs/gpu.md tells where its library comes from"
        ) from error


def created(create: Callable[[], _T | None], failure: str, log: Logger) -> _T:
    """Return the object that ``create`` returns, which is one of TensorRT's.

    TensorRT returns None where it fails, and writes the reason to its logger. Raises
    OutOfMemoryError or BackendError: ``failure``, and the reason from ``log``.
    """
    cause: Exception | None = None
    try:
        result = create()
    # pybind11 raises TypeError when a constructor returns nullptr.
    except (TypeError, RuntimeError) as error:
        result, cause = None, error
    if result is not None:
        return result
    reason = log.words() or str(cause or "no reason given")
    if is_out_of_memory(RuntimeError(reason)):
        raise OutOfMemoryError(f"{failure}: no memory ({reason}); close other programs") from cause
    raise BackendError(
        f"{failure}: {reason}; see cyclegan-batch doctor, or pass --backend onnxruntime"
    ) from cause


@functools.cache
def logger(trt: ModuleType) -> Logger:
    """Return the logger of this process: TensorRT keeps using the first one that it is given.

    Each thread that has called `clear` has its own list of errors, which no other thread reads or
    clears. While it builds, TensorRT also logs from threads of its own; these share one list.
    """

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._this_thread = threading.local()
            self._tensorrts_threads: deque[str] = deque(maxlen=_MOST_MESSAGES)

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                getattr(self._this_thread, "errors", self._tensorrts_threads).append(message)

        def clear(self, *, include_tensorrts_threads: bool = False) -> None:
            self._this_thread.errors = deque(maxlen=_MOST_MESSAGES)
            self._this_thread.include_tensorrts_threads = include_tensorrts_threads
            if include_tensorrts_threads:
                self._tensorrts_threads.clear()

        def words(self) -> str:
            errors = list(self._this_thread.errors)
            if self._this_thread.include_tensorrts_threads:
                errors += self._tensorrts_threads
            return _joined(errors)

    return Log()


def error_recorder(trt: ModuleType) -> ErrorRecorder:
    """Return a new error recorder: an object that has one reports to it and not to the logger."""
    return _recorder_class(trt)()


@functools.cache
def _recorder_class(trt: ModuleType) -> Callable[[], ErrorRecorder]:
    class Recorder(trt.IErrorRecorder):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self._errors: list[tuple[object, str]] = []

        # TensorRT calls all but the last two methods. An exception in them would end the process.
        def report_error(self, code: object, description: str) -> bool:
            if len(self._errors) < _MOST_MESSAGES:
                self._errors.append((code, description))
            return False

        def num_errors(self) -> int:
            return len(self._errors)

        def get_error_code(self, index: int) -> object:
            return self._errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self._errors[index][1]

        def has_overflowed(self) -> bool:
            return len(self._errors) == _MOST_MESSAGES

        def clear(self) -> None:
            self._errors.clear()

        def words(self) -> str:
            return _joined(description for _, description in self._errors)

        def out_of_memory(self) -> bool:
            return any(
                code == trt.ErrorCodeTRT.FAILED_ALLOCATION
                or is_out_of_memory(RuntimeError(description))
                for code, description in self._errors
            )

    return Recorder


def _joined(errors: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(map(one_line, errors)))


def one_line(message: str) -> str:
    """Return a message of TensorRT in one line, without the places in its source code."""
    message = re.sub(r"\[\S+::\S+\] |\(?[Ii]n \S+ at \S+ ?", "", message)
    return " ".join(message.split())[:300]


def progress_monitor(trt: ModuleType) -> ProgressMonitor:
    """Return a new monitor, for one build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stop = False
            self.phase = "it begins"

        # TensorRT calls these methods from its own threads, where an exception would end the
        # process. None of them can raise.
        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phase = name

        def step_complete(self, name: str, step: int) -> bool:
            self.phase = f"{name}, step {step + 1}"
            return not self.stop

        def phase_finish(self, name: str) -> None:
            pass  # the parent phase goes on and reports its own steps

    return Monitor()
