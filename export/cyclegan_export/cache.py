"""Export a checkpoint once, and keep the file in a cache folder.

`open_exported` opens the model of a translation; it exports a checkpoint first. An entry of the
cache is a folder named by a digest of the checkpoint, of the generator that is chosen in it, the
precision, the opset and the version of this program. It holds the ONNX, and a line of JSON
with the digest of the ONNX that is written last. Where the two do not agree or one is missing, the
checkpoint is exported again.

Nothing heavy is imported unless a checkpoint must be exported.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from cyclegan_batch._version import __version__
from cyclegan_batch.errors import (
    BackendUnavailableError,
    ModelError,
    OutputError,
    missing_extra,
)
from cyclegan_batch.file_identity import sha256_of
from cyclegan_batch.files import output_error, publish
from cyclegan_batch.machine import default_cache_dir, nvidia_gpus
from cyclegan_batch.models.checkpoints.files import (
    ANY_GENERATOR,
    FoundCheckpoint,
    Selection,
    find_checkpoint,
    is_checkpoint,
)
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import Note, printable

from . import OPSET

if TYPE_CHECKING:
    from cyclegan_batch.models.model import Model


def open_exported(
    path: Path, options: TranslateOptions, *, say: Callable[[str], None] = lambda sentence: None
) -> Model:
    """Open the model at ``path`` for a translation; a checkpoint is exported first.

    Where the exporter is not installed, or where a GPU is named that only torch can use here, the
    checkpoint itself is opened, for torch to run, and a note on the card says so. ``say`` receives
    a sentence for each step of an export. Raises what `open_model` and `export_onnx` raise.
    """
    from cyclegan_batch.models.model import open_model

    selection = Selection.of(options)
    reasons: tuple[Note, ...] = ()
    export = options.backend != "torch" and options.model_io is None
    if is_checkpoint(path) and export:
        if options.precision == "int8":
            raise ModelError(
                f"{printable(path)}: is a checkpoint, and int8 needs images to calibrate on; "
                "make a file with cyclegan-batch export --precision int8 --calibrate FOLDER, or "
                "leave --precision out"
            )
        if options.backend == "auto" and _on_gpu(options) and _only_torch_sees_the_gpu():
            text = "onnxruntime here has no CUDA, so torch runs the checkpoint, on the GPU"
            reasons = (Note(None, text),)
        else:
            try:
                onnx_path, notes = cached_export(
                    path,
                    selection=selection,
                    precision="fp16" if options.precision == "fp16" else "fp32",
                    cache_dir=options.cache_dir,
                    say=say,
                )
            except BackendUnavailableError as error:
                if options.backend != "auto":
                    raise
                text = f"{error}; without it torch runs the checkpoint as it is, which is slower"
                reasons = (Note(None, text),)
            else:
                return _with_notes(open_model(onnx_path), notes)
    model = open_model(path, model_io=options.model_io, selection=selection)
    return _with_notes(model, reasons)


def _with_notes(model: Model, notes: tuple[Note, ...]) -> Model:
    return replace(model, card=replace(model.card, notes=notes + model.card.notes))


def cached_export(
    source: Path,
    *,
    selection: Selection = ANY_GENERATOR,
    precision: Literal["fp32", "fp16"] = "fp32",
    cache_dir: Path | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[Path, tuple[Note, ...]]:
    """Return the ONNX of the checkpoint at ``source``, and notes for the user.

    ``source`` and ``precision`` are as for `export_onnx`. ``cache_dir`` None is the
    default cache folder. Raises what `export_onnx` raises.
    """
    checkpoint = find_checkpoint(source, selection.direction)
    folder = (cache_dir or default_cache_dir()) / "onnx" / _key(checkpoint, selection, precision)
    # Messages name the model, so the file has the checkpoint's name.
    final, entry_path = folder / f"{checkpoint.path.stem}.onnx", folder / "entry.json"
    entry = _read(entry_path)
    if entry is not None and _digest(final) == entry.sha256:
        return final, (*checkpoint.notes, *entry.notes)
    try:
        from .onnx_export import build_onnx, check_exporter
    except ImportError as error:
        raise missing_extra("export", error, doing="export") from error
    check_exporter()
    say(f"exporting {printable(checkpoint.path)} to ONNX, once; it is kept in {printable(folder)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        built = build_onnx(source, final, selection=selection, precision=precision)
        # How the file was found is of this run alone: a folder may lead to it, or its own name.
        kept = [note for note in built.notes if note not in checkpoint.notes]
        notes = [(note.subject and str(note.subject), note.text) for note in kept]
        line = json.dumps({"sha256": built.model.graph_sha256, "notes": notes})
        # Not files.writing, whose temporary name is the same for all threads of a process: two
        # threads may export the same checkpoint at once.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
            for path, content in ((final, built.model.graph), (entry_path, line.encode())):
                partial = Path(temporary) / path.name
                partial.write_bytes(content)
                publish(partial, path, overwrite=True)
    except (OSError, OutputError) as error:
        reason = output_error(folder, error) if isinstance(error, OSError) else error
        raise OutputError(f"{reason}; --cache-dir names another place for what is kept") from error
    say(f"exported: {built.model.card.parity}")
    return final, built.notes


def _key(checkpoint: FoundCheckpoint, selection: Selection, precision: str) -> str:
    """Return the entry's name, from all that determines the file's bytes. Raises ModelError."""
    digest = _digest(checkpoint.path)
    if digest is None:
        raise ModelError(f"cannot read {printable(checkpoint.path)}; check its permissions")
    chosen = (checkpoint.direction, selection.weights, selection.family)
    parts = (digest, *chosen, precision, OPSET, __version__)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class _Entry(NamedTuple):
    """What the line of JSON of an entry holds."""

    sha256: str
    notes: tuple[Note, ...]


def _read(path: Path) -> _Entry | None:
    """Return the content of an entry's JSON, None where it is missing or damaged."""
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or not {"sha256", "notes"} <= entry.keys():
        return None
    # In entries of earlier versions a note is a sentence.
    if not all(isinstance(note, list) for note in entry["notes"]):
        return None
    return _Entry(entry["sha256"], tuple(Note(*note) for note in entry["notes"]))


def _on_gpu(options: TranslateOptions) -> bool:
    """Return whether a GPU is named, or tf32, which only GPUs compute in."""
    return options.device.startswith("cuda") or (options.device, options.precision) == (
        "auto",
        "tf32",
    )


def _only_torch_sees_the_gpu() -> bool:
    if not nvidia_gpus():
        return False
    from cyclegan_batch.backends import onnxruntime_cuda

    if onnxruntime_cuda.sees_cuda():
        return False
    try:
        from cyclegan_batch.backends import torch
    except ImportError:
        return False
    return torch.sees_cuda()


def _digest(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None
