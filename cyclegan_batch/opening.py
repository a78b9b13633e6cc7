"""Open the model of a translation: a checkpoint by way of its export, every other file as it is.

A model of a store is fetched first.

The command line, `translate` and `open_generator` all open models here. The exporter is a package
of its own, `cyclegan_export`; this module imports it, and only where a checkpoint is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ModelError
from .models.checkpoints.files import Selection, is_checkpoint
from .options import TranslateOptions
from .remote import RemotePath
from .wording import Note, printable

if TYPE_CHECKING:
    from .models.model import Model


def open_for_translation(
    path: Path, options: TranslateOptions, *, say: Callable[[str], None] = lambda sentence: None
) -> Model:
    """Open the model at ``path``, or the ONNX exported from it (a checkpoint, the folder of a run).

    A model of a store is fetched into ``options.cache_dir`` once (`models.fetched`).

    A checkpoint is exported once and the file kept in ``options.cache_dir``; ``say`` receives a
    sentence before and after the export. The checkpoint itself is opened with ``backend="torch"``,
    and, with a note on the card, where the exporter is not installed or a GPU is named that only
    torch can use. Raises ModelError, BackendUnavailableError, OutputError.
    """
    if isinstance(path, RemotePath):
        return _open_of_store(path, options, say)
    if is_checkpoint(path):
        from cyclegan_export.cache import open_exported

        return open_exported(path, options, say=say)
    from .models.model import open_model

    return open_model(path, model_io=options.model_io, selection=Selection.of(options))


def _open_of_store(url: RemotePath, options: TranslateOptions, say: Callable[[str], None]) -> Model:
    from .models.fetched import fetched_model

    path, digest = fetched_model(url, options.cache_dir, say=say)
    try:
        model = open_for_translation(path, options, say=say)
    except ModelError as error:
        # The user knows it by its URL.
        raise ModelError(str(error).replace(printable(path), printable(url))) from error
    card = model.card
    if card.path == path:
        return replace(model, card=replace(card, path=url))
    # Its export has a name and a digest of its own.
    note = Note(url, f"its SHA-256 is {digest}")
    return replace(model, card=replace(card, notes=(note, *card.notes)))
