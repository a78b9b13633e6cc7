"""Read the file of a checkpoint into what was saved in it: nested containers of tensors.

Nothing but tensors, numbers, text and plain containers is ever unpickled: ``weights_only=True``,
without exception. This module imports torch.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import ModelError
from ..wording import first_line, printable

SAVE_AGAIN = "save the weights again: torch.save(netG.state_dict(), path)"
"""What to do about a file whose weights cannot be read."""


def read_content(path: Path) -> tuple[object, dict[str, str]]:
    """Return what was saved at ``path``, on the CPU, and the metadata of a safetensors file.

    ``path``: ``.pth`` of any age, or safetensors. Raises ModelError where the file cannot be read,
    or can be read only by running code.
    """
    try:
        with path.open("rb") as file:
            start, size = file.read(16), file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ModelError(
            f"cannot read {printable(path)}: {error.strerror or error}; check the name"
        ) from error
    # Safetensors begin with the length of a JSON header.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        return _read_safetensors(path)
    if not start.startswith(b"PK\x03\x04") and start[:1] != b"\x80":
        refuse(path, _file_in_words(start), "give the .pth or .safetensors file of a generator")
    return _read_pickle(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        refuse(path, f"is no whole safetensors file ({first_line(error)})",
                "copy or download it again", error)  # fmt: skip


def _read_pickle(path: Path) -> object:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                compressed = [entry for entry in archive.infolist() if entry.compress_type]
            if compressed:
                # torch never compresses; a small file could unpack to more than the memory.
                name = compressed[0].filename
                finding = f"holds {name!r} compressed, where torch does not compress"
                refuse(path, finding, SAVE_AGAIN)
        # torch warns of pickles that it did not write; `_named_tensors` refuses those.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch names the class in its message only.
        class_name = re.search(r"GLOBAL (\S+)", str(error))
        refuse(
            path,
            f"is a pickle that holds {class_name[1] if class_name else 'something else'} where "
            "only named tensors are opened, since anything else could run code",
            f"where it comes from, {SAVE_AGAIN}",
            error,
        )
    except ModelError:
        raise
    # torch raises many kinds of error for a damaged file: RuntimeError from its zip reader,
    # EOFError and struct.error from the old format, AttributeError from a foreign zip.
    except Exception as error:
        refuse(path, f"is no whole PyTorch checkpoint ({first_line(error)})",
                f"copy or download it again, or {SAVE_AGAIN}", error)  # fmt: skip


def _file_in_words(start: bytes) -> str:
    """Return in words what a file is that begins with ``start`` and is no checkpoint."""
    if not start:
        return "is empty where a checkpoint is expected"
    if b"\x00" not in start and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return "is text where a checkpoint is expected"
    return "is no PyTorch checkpoint and no safetensors file"


def refuse(path: Path, finding: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    """Raise ModelError for the checkpoint at ``path``: what is found, and what to do."""
    raise ModelError(f"{printable(path)}: {finding}; {remedy}") from cause
