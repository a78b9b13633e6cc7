"""Export a checkpoint once: the file is kept, and found again by what it was made from.

`cyclegan_batch.opening` calls `open_exported` for every checkpoint. An entry is a folder,
named by the checkpoint's digest, the direction, the precision, the opset and this tool's version;
in it the ONNX, and a line of JSON that is written after it and holds its digest. What does not
agree with that line is made anew, so a damaged entry costs time and nothing else, and so does a
deleted one.

Nothing heavy is imported before something must be exported.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclegan_batch import __version__
from cyclegan_batch.errors import (
    BackendUnavailableError,
    ModelError,
    OutputError,
    missing_extra,
)
from cyclegan_batch.files import output_error, publish
from cyclegan_batch.machine import default_cache_dir, nvidia_gpus
from cyclegan_batch.models.checkpoint_files import (
    FoundCheckpoint,
    find_checkpoint,
    is_checkpoint,
)
from cyclegan_batch.options import Direction, TranslateOptions
from cyclegan_batch.wording import Note, printable

from . import OPSET

if TYPE_CHECKING:
    from cyclegan_batch.models.model import Model


def open_exported(
    path: Path, options: TranslateOptions, *, say: Callable[[str], None] = lambda sentence: None
) -> Model:
    """Open the model at ``path`` for a translation, a checkpoint by way of its export.

    Where the exporter is not installed, and where a GPU is named that torch alone can use here, a
    checkpoint is opened as it is, for torch to run; a note on the card says so. ``say`` receives
    what happens during an export. Raises what `open_model` and `export_onnx` raise.
    """
    from cyclegan_batch.models.model import open_model

    reasons: tuple[Note, ...] = ()
    as_it_is = options.backend == "torch" or options.model_io is not None
    if is_checkpoint(path) and not as_it_is:
        if options.precision == "int8":
            raise ModelError(
                f"{printable(path)}: is a checkpoint, and int8 needs pictures to calibrate on; "
                "make a file with cyclegan-batch export --precision int8 --calibrate FOLDER, or "
                "leave --precision out"
            )
        if options.backend == "auto" and _on_gpu(options) and _only_torch_sees_the_gpu():
            text = "onnxruntime here has no CUDA, so torch runs the checkpoint, on the GPU"
            reasons = (Note(None, text),)
        else:
            try:
                exported, notes = cached_export(
                    path,
                    direction=options.direction,
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
                return _with_notes(open_model(exported), notes)
    opened = open_model(path, model_io=options.model_io, direction=options.direction)
    return _with_notes(opened, reasons)


def _with_notes(model: Model, notes: tuple[Note, ...]) -> Model:
    return replace(model, card=replace(model.card, notes=notes + model.card.notes))


def cached_export(
    source: Path,
    *,
    direction: Direction | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    cache_dir: Path | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[Path, tuple[Note, ...]]:
    """Return the ONNX of the checkpoint at ``source``, and what the user should be told once.

    ``source``, ``direction`` and ``precision`` as for `export_onnx`. ``cache_dir``: where it is
    kept, None for the usual place. Raises what `export_onnx` raises.
    """
    found = find_checkpoint(source, direction)
    folder = (cache_dir or default_cache_dir()) / "onnx" / _key(found, precision)
    # Named as the checkpoint is: this name is what the user reads.
    final, entry = folder / f"{found.path.stem}.onnx", folder / "entry.json"
    kept = _read(entry)
    if kept is not None and _digest(final) == kept["sha256"]:
        return final, tuple(Note(*note) for note in kept["notes"])
    try:
        from .onnx_export import check_exporter, export_onnx
    except ImportError as error:
        raise missing_extra("export", error, doing="export") from error
    check_exporter()
    say(f"exporting {printable(found.path)} to ONNX, once; it is kept in {printable(folder)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder of its own: two runs may export the same at once.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
            partial, line = Path(name) / final.name, Path(name) / entry.name
            exported = export_onnx(source, partial, direction=direction, precision=precision)
            publish(partial, final, overwrite=True)
            notes = [(note.subject and str(note.subject), note.text) for note in exported.notes]
            line.write_text(json.dumps({"sha256": exported.card.digest, "notes": notes}))
            publish(line, entry, overwrite=True)
    except (OSError, OutputError) as error:
        reason = output_error(folder, error) if isinstance(error, OSError) else error
        raise OutputError(f"{reason}; --cache-dir names another place for what is kept") from error
    say(f"exported: {exported.card.parity}")
    return final, exported.notes


def _key(found: FoundCheckpoint, precision: str) -> str:
    """Return the name of the entry: all that the file's bytes follow from. Raises ModelError."""
    digest = _digest(found.path)
    if digest is None:
        raise ModelError(f"cannot read {printable(found.path)}; check its permissions")
    parts = (digest, found.direction, precision, OPSET, __version__)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(entry: Path) -> dict[str, Any] | None:
    """Return what an entry says, None where there is none or it is damaged."""
    try:
        said = json.loads(entry.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or not {"sha256", "notes"} <= said.keys():
        return None
    # Earlier versions kept sentences.
    return said if all(isinstance(note, list) for note in said["notes"]) else None


def _on_gpu(options: TranslateOptions) -> bool:
    """Tell whether a GPU is named, by itself or by an arithmetic that only GPUs have."""
    return options.device.startswith("cuda") or (options.device, options.precision) == (
        "auto",
        "tf32",
    )


def _only_torch_sees_the_gpu() -> bool:
    if not nvidia_gpus():
        return False
    from cyclegan_batch.backends import onnxruntime

    if onnxruntime.sees_cuda():
        return False
    try:
        from cyclegan_batch.backends import torch
    except ImportError:
        return False
    return torch.sees_cuda()


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
