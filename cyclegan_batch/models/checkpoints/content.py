"""Read the file of a checkpoint into what was saved in it: nested containers of tensors.

Nothing but tensors, numbers, text and plain containers is ever unpickled: ``weights_only=True``,
without exception. What training programs save beside the weights, numbers and arrays of NumPy as
losses, options, paths and times, becomes `Inert`, which holds none of its content: no code of those
classes runs. This module imports torch.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...errors import ModelError
from ...wording import first_line, printable
from .files import HDF5, begins_safetensors

SAVE_AGAIN = "save the weights again: torch.save(netG.state_dict(), path)"
"""What to do about a file whose weights cannot be read."""


_MOST_PICKLED = 2**23
"""Bytes of the pickle in a checkpoint, or of the header of safetensors.

10,000 tensors take about a megabyte."""

_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
"""The number with which torch.save began a file before version 1.6."""


_MOST_SEARCHED = 2**22
"""Bytes of a pickle that are searched for the name of what is not opened."""


class Inert:
    """What takes the place of an object in a pickle that is no tensor and no plain container."""

    def __init__(self, *values: object) -> None:
        """Take what the class or function of the object takes, and keep nothing of it."""

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


class NumPy(Inert):
    """What takes the place of a number, an array or a type of NumPy."""


_INERT: list[tuple[type[Inert], str]] = [
    # By versions 1 and 2.
    *(
        (NumPy, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    (NumPy, "numpy.dtype"),
    (NumPy, "numpy.ndarray"),
    (Inert, "argparse.Namespace"),
    (Inert, "types.SimpleNamespace"),
    # By Python 3.12 and before, and by Python 3.13.
    *(
        (Inert, f"{module}.{kind}Path")
        for module in ("pathlib", "pathlib._local")
        for kind in ("Posix", "PurePosix", "Windows", "PureWindows")
    ),
    *((Inert, f"datetime.{name}") for name in ("datetime", "date", "timedelta", "timezone")),
]
"""What a pickle may name, and what takes its place."""


def read_content(path: Path) -> tuple[object, dict[str, str]]:
    """Return what was saved at ``path``, on the CPU, and the metadata of a safetensors file.

    ``path``: ``.pth`` of any age, or safetensors. The tensors of a file that is no older than torch
    1.6 are not read until they are used: they lie in the file, which must stay as it is until then.
    Raises ModelError where the file cannot be read, or can be read only by running code.
    """
    try:
        with path.open("rb") as file:
            start, size = file.read(512), file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ModelError(
            f"cannot read {printable(path)}: {error.strerror or error}; check the name"
        ) from error
    if begins_safetensors(start, size):
        if int.from_bytes(start[:8], "little") > _MOST_PICKLED:
            refuse(path, f"has a header of more than {_MOST_PICKLED >> 20} MiB", SAVE_AGAIN)
        return _read_safetensors(path)
    if not start.startswith(b"PK\x03\x04") and start[:1] != b"\x80":
        refuse(path, _file_in_words(start),
               "give the .pth or .safetensors file of a generator, or an ONNX")  # fmt: skip
    return _read_pickle(path, start), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        refuse(path, f"is no whole safetensors file ({first_line(error)})",
                "copy or download it again", error)  # fmt: skip


def _read_pickle(path: Path, start: bytes) -> object:
    zipped = start.startswith(b"PK")
    try:
        if zipped:
            _check_archive(path)
        else:
            _check_length(path)
        # torch warns of pickles that it did not write.
        with warnings.catch_warnings(action="ignore"):
            return _load(path, mapped=zipped)
    except pickle.UnpicklingError as error:
        name = _foreign_name(path, error)
        if name is not None:
            refuse(
                path,
                f"is a pickle that holds {name} where only named tensors are opened, since "
                "anything else could run code",
                f"where it comes from, {SAVE_AGAIN}",
                error,
            )
        _refuse_damaged(path, start, "its pickle cannot be read", error)
    except ModelError:
        raise
    # torch raises many kinds of error for a damaged file: RuntimeError from its zip reader,
    # EOFError and struct.error from the old format, AttributeError from a foreign zip.
    except Exception as error:
        _refuse_damaged(path, start, first_line(error), error)


def _refuse_damaged(path: Path, start: bytes, why: str, error: Exception) -> NoReturn:
    if not start.startswith(b"PK") and _MAGIC not in start:
        refuse(path, "is a pickle that torch.save did not write",
               f"where it comes from, {SAVE_AGAIN}", error)  # fmt: skip
    refuse(path, f"is no whole PyTorch checkpoint ({why})",
           f"copy or download it again, or {SAVE_AGAIN}", error)  # fmt: skip


def _load(path: Path, *, mapped: bool) -> object:
    with torch.serialization.safe_globals(list(_INERT)):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except RuntimeError:
            if not mapped:
                raise
            # Some file systems map no files.
            return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: Path) -> None:
    """Raise ModelError where a zip is not what torch.save writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        refuse(path, f"is no whole PyTorch checkpoint ({first_line(error)})",
               f"copy or download it again, or {SAVE_AGAIN}", error)  # fmt: skip
    names = [entry.filename for entry in entries]
    pickled = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        refuse(path, "is a TorchScript archive, which holds the network as code",
               "save its weights alone: torch.save(torch.jit.load(path).state_dict(), "
               "'weights.pth')")  # fmt: skip
    if any(name.endswith(".weights.h5") for name in names):
        refuse(path, "is a model of Keras, no PyTorch checkpoint",
               "convert it to ONNX with tf2onnx, and give that file")  # fmt: skip
    if not pickled:
        refuse(path, f"is a zip archive of {_archive_in_words(names)}, no PyTorch checkpoint",
               "give the .pth or .safetensors file of a generator")  # fmt: skip
    compressed = next((entry for entry in entries if entry.compress_type), None)
    if compressed is not None:
        # torch never compresses; a small file could unpack to more than the memory.
        finding = f"holds {compressed.filename!r} compressed, where torch does not compress"
        refuse(path, finding, SAVE_AGAIN)
    if max(entry.file_size for entry in pickled) > _MOST_PICKLED:
        finding = f"holds more than {_MOST_PICKLED >> 20} MiB besides its tensors"
        refuse(path, finding, SAVE_AGAIN)


def _check_length(path: Path) -> None:
    """Raise ModelError where the pickles before the tensors of an old file are too long.

    A few bytes of a pickle can take the memory of an object each.
    """
    with path.open("rb") as file:
        try:
            # Before the content stand a magic number, a version and a description of the machine.
            for _ in range(4):
                for _, _, position in pickletools.genops(file):
                    if (position or 0) > _MOST_PICKLED:
                        finding = f"holds more than {_MOST_PICKLED >> 20} MiB besides its tensors"
                        refuse(path, finding, SAVE_AGAIN)
        except ModelError:
            raise
        # What is no pickle is refused by torch's own reader.
        except Exception:
            return


def _archive_in_words(names: Iterable[str]) -> str:
    """Return in words what a zip holds that torch did not write."""
    names = list(names)
    if any(name.endswith(".npy") for name in names):
        return "arrays of NumPy"
    return f"other files ({names[0][:60]!r})" if names else "nothing"


_PROGRAMS = {
    "dnnlib": "a network of StyleGAN, with its code",
    "torch_utils": "a network of StyleGAN, with its code",
    "fastai": "a learner of fastai",
    "paddle": "a network of PaddlePaddle",
    "jittor": "a network of Jittor",
    "tensorflow": "a network of TensorFlow",
    "keras": "a network of Keras",
}
"""What a pickle holds, by the package of the first class that it names."""


_OPENED = ("collections.", "numpy.", "torch.", "_codecs.", "builtins.")
"""The packages whose names the pickle of a checkpoint may hold."""


def _foreign_name(path: Path, error: pickle.UnpicklingError) -> str | None:
    """Return in words what in a pickle is not opened, None for nothing. None of it is run."""
    # torch names the class in its message only, and in a pickle of protocol 4 not at all.
    named = re.search(r"GLOBAL (\S+)", str(error))
    name = named[1] if named else next(
        (each for each in _names_in_pickle(path) if not each.startswith(_OPENED)), None
    )  # fmt: skip
    if name is None:
        return None
    words = _PROGRAMS.get(name.partition(".")[0])
    return f"{name[:100]} ({words})" if words else name[:100]


def _names_in_pickle(path: Path) -> Iterable[str]:
    """Yield the names of the classes and functions in the first pickles of a file."""
    texts = [""]
    try:
        content = _first_pickle(path)
        stream = io.BytesIO(content)
        while stream.tell() < len(content):
            for operation, value, _ in pickletools.genops(stream):
                if operation.name == "GLOBAL":
                    yield str(value).replace(" ", ".")
                elif operation.name == "STACK_GLOBAL":
                    yield ".".join(texts[-2:])
                elif isinstance(value, str):
                    texts = [texts[-1], value]
    # It only looks for words, and the content may be anything.
    except Exception:
        return


def _first_pickle(path: Path) -> bytes:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            return file.read(_MOST_SEARCHED)
    with zipfile.ZipFile(path) as archive:
        name = next(each for each in archive.namelist() if each.endswith("data.pkl"))
        with archive.open(name) as pickled:
            return pickled.read(_MOST_SEARCHED)


_SIGNS = (
    (HDF5, "an HDF5 file, as Keras saves its models,"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"GGUF", "a GGUF file, of a language model,"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
)
"""The first bytes of files of other programs."""


def _file_in_words(start: bytes) -> str:
    """Return in words what a file is that begins with ``start`` and is no checkpoint."""
    if not start:
        return "is empty where a checkpoint is expected"
    if b"\x00" not in start and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return "is text where a checkpoint is expected"
    for sign, words in _SIGNS:
        if start.startswith(sign):
            return f"is {words} where a PyTorch checkpoint is expected"
    if start[257:262] == b"ustar":
        return "is a tar archive where the checkpoint in it is expected"
    return "is no PyTorch checkpoint and no safetensors file"


def refuse(path: Path, finding: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    """Raise ModelError for the checkpoint at ``path``: what is found, and what to do."""
    raise ModelError(f"{printable(path)}: {printable(finding)}; {printable(remedy)}") from cause
