"""Every error a user can act on, on one page.

The command line prints a `CycleganBatchError` as one message without a traceback and exits 1 (2
for a `ContradictionError`, with how the command is used); any
other exception is our bug and keeps its traceback. Foreign exceptions (av, cv2, PIL, onnxruntime,
OpenVINO, TensorRT, CUDA) are translated in the module that calls them, always with ``from``.

A message has three beats: what failed, what was found against what was expected, what to do.

    CycleganBatchError
    ├─ InputError
    ├─ ModelError
    ├─ BackendError
    │  ├─ BackendUnavailableError
    │  └─ OutOfMemoryError
    └─ OutputError
       ├─ ContradictionError
       ├─ OutputExistsError
       └─ OutputInUseError
"""

from __future__ import annotations

from pathlib import Path


class CycleganBatchError(Exception):
    """Something the user can act on."""


class InputError(CycleganBatchError):
    """A medium that is unreadable, empty, unsupported, truncated or hostile."""


class ModelError(CycleganBatchError):
    """A file that is not a generator we know, breaks the contract, or misses its parity."""


class BackendError(CycleganBatchError):
    """A runtime that cannot run the model as asked."""


class BackendUnavailableError(BackendError):
    """A missing package, driver, provider or device; the message names the extra to install."""


def missing_extra(
    extra: str, error: ImportError, *, doing: str, package: str | None = None
) -> BackendUnavailableError:
    """Return the error for a package that is not installed, with the extra that brings it.

    ``doing`` completes "cannot", as in ``export`` or ``train``; ``package`` replaces the name that
    ``error`` carries.
    """
    missing = package or (error.name or str(error)).partition(".")[0]
    return BackendUnavailableError(
        f"cannot {doing}: {missing} is not installed; "
        f'pip install "cyclegan-batch[{extra}]" brings it'
    )


class OutOfMemoryError(BackendError):
    """The device has no room for this batch; the pipeline halves the batch and goes on."""


class OutputError(CycleganBatchError):
    """Something cannot be encoded or written; the partial file is removed."""


class ContradictionError(OutputError):
    """The name of the output and an option ask for two different formats."""


class OutputExistsError(OutputError):
    """The output exists, perhaps only now, and nothing is overwritten unasked."""


class OutputInUseError(OutputError):
    """Another process is writing this very output; the message names it."""

    def __init__(self, message: str, output: Path | None = None) -> None:
        super().__init__(message)
        self.output = output
        """The file that both are to write."""
