"""All errors that a user can act on.

The command line prints a `CycleganBatchError` as one message without a traceback and exits with 1.
It prints a `ContradictionError` with the usage of the command, and exits with 2. Any other
exception is a bug of this package and keeps its traceback. The module that calls a foreign library
(av, cv2, PIL, onnxruntime, OpenVINO, TensorRT, CUDA) raises one of these errors ``from`` the
library's.

A message has three parts: what failed, what was found instead of what was expected, what to do.

    CycleganBatchError
    ├─ InputError
    ├─ ModelError
    │  └─ SeveralGeneratorsError
    ├─ BackendError
    │  ├─ BackendUnavailableError
    │  └─ OutOfMemoryError
    └─ OutputError
       ├─ ContradictionError
       ├─ OutputExistsError
       └─ OutputInUseError
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar


class CycleganBatchError(Exception):
    """An error that the user can act on.

    It can be pickled, which keeps its cause where that is another of these or an OSError.
    """

    def __reduce__(self) -> tuple[object, ...]:
        cause = self.__cause__
        if isinstance(cause, OSError):
            # Those of FFmpeg cannot be pickled themselves.
            cause = OSError(cause.errno, cause.strerror)
        elif not isinstance(cause, CycleganBatchError):
            cause = None
        return _restored, (type(self), self.args, dict(self.__dict__), cause)


_Error = TypeVar("_Error", bound=CycleganBatchError)


def _restored(
    kind: type[_Error],
    arguments: tuple[str, ...],
    attributes: dict[str, object],
    cause: BaseException | None,
) -> _Error:
    error = kind(*arguments)
    error.__dict__.update(attributes)
    error.__cause__ = cause
    return error


class InputError(CycleganBatchError):
    """An input that is unreadable, empty, unsupported, truncated or hostile."""


class ModelError(CycleganBatchError):
    """A file that is no known generator, breaks the contract, or misses its parity class."""


class SeveralGeneratorsError(ModelError):
    """A file of several generators where one is expected, and none was chosen."""

    generators: Mapping[str, str] = MappingProxyType({})
    """Their names in the file, and what each is in words."""
    remedy = ""
    """How to choose one."""


class BackendError(CycleganBatchError):
    """A runtime that cannot run the model as requested."""


class BackendUnavailableError(BackendError):
    """A missing package, driver, provider or device; the message names the extra to install."""


def missing_extra(
    extra: str, error: ImportError, *, doing: str, package: str | None = None
) -> BackendUnavailableError:
    """Return the error for a package that is not installed, with the extra that installs it.

    ``doing`` is what the message says cannot be done (``export``, ``train``); ``package`` replaces
    the name of the package in ``error``.
    """
    missing = package or (error.name or str(error)).partition(".")[0]
    return BackendUnavailableError(
        f"cannot {doing}: {missing} is not installed; "
        f'pip install "cyclegan-batch[{extra}]" brings it'
    )


class OutOfMemoryError(BackendError):
    """A device without memory for this batch; the pipeline halves the batch and goes on."""


class OutputError(CycleganBatchError):
    """An output that cannot be encoded or written; its partial file is removed."""


class ContradictionError(OutputError):
    """The name of the output and an option that contradict each other."""


class OutputExistsError(OutputError):
    """An output that exists, perhaps only since the run began, and is not to be overwritten."""


class OutputInUseError(OutputError):
    """An output that another process is writing; the message names the process."""

    def __init__(self, message: str, output: Path | None = None) -> None:
        super().__init__(message)
        self.output = output
        """The file that both processes write."""
