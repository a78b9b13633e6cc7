"""Open the model of a translation: a checkpoint by way of its export, every other file as it is.

The command line, `translate` and `open_generator` all open models here. The exporter is a package
of its own, `cyclegan_export`; this module imports it, and only where a checkpoint is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .models.checkpoint_files import is_checkpoint
from .options import TranslateOptions

if TYPE_CHECKING:
    from .models.model import Model


def open_for_translation(
    path: Path, options: TranslateOptions, *, say: Callable[[str], None] = lambda sentence: None
) -> Model:
    """Open the model at ``path``, or the ONNX exported from it (a checkpoint, the folder of a run).

    A checkpoint is exported once and the file kept in ``options.cache_dir``; ``say`` receives a
    sentence before and after the export. The checkpoint itself is opened with ``backend="torch"``,
    and, with a note on the card, where the exporter is not installed or a GPU is named that only
    torch can use. Raises ModelError, BackendUnavailableError, OutputError.
    """
    if is_checkpoint(path):
        from cyclegan_export.cache import open_exported

        return open_exported(path, options, say=say)
    from .models.model import open_model

    return open_model(path, model_io=options.model_io, direction=options.direction)
