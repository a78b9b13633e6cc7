"""Fetch a model from a store into the cache folder, and know it there by its digest.

    CACHE/models/SHA-256/NAME            the file
    CACHE/models/urls/….json             of one URL: size and time of the object, and the digest

The object is fetched again where its size or its time has changed, and where the file is no longer
what its folder's name says.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR

from ..errors import ModelError, OutputError
from ..file_identity import FileIdentity, identity_of_status, sha256_of
from ..files import output_error, publish
from ..machine import default_cache_dir
from ..remote import RemotePath, copy_in
from ..wording import byte_size, printable, why_store_failed
from .checkpoints.file_names import has_checkpoint_name


def fetched_model(
    url: RemotePath,
    cache_dir: Path | None = None,
    *,
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[Path, str]:
    """Return the copy of a model of a store in the cache folder, and its SHA-256 (hexadecimal).

    ``cache_dir`` None is the default cache folder. ``say`` receives a sentence before the object is
    fetched. Raises ModelError for what cannot be read, for a prefix, an engine and an ONNX that
    keeps its weights in other files; OutputError where the cache folder cannot be written.
    """
    from .model import ENGINE_SUFFIXES

    name = printable(url)
    if url.suffix.lower() in ENGINE_SUFFIXES:
        raise ModelError(
            f"{name}: an engine is read from a disk only, as it belongs to one machine; give the "
            "ONNX that it was built from, or copy engine and card here"
        )
    try:
        status = url.stat()
    except OSError as error:
        raise ModelError(f"{name}: {why_store_failed(error)}") from error
    if S_ISDIR(status.st_mode):
        raise ModelError(
            f"{name}: is a prefix, and a model is one object; give that of a generator, such as "
            "checkpoints/latest/netG_A.safetensors of a run"
        )
    identity = identity_of_status(status)
    models = (cache_dir or default_cache_dir()) / "models"
    entry = models / "urls" / f"{hashlib.sha256(str(url).encode()).hexdigest()[:32]}.json"
    digest = _recorded(entry, url, identity)
    if digest is not None and _digest(models / digest / url.name) == digest:
        return models / digest / url.name, digest
    say(f"fetching {name} ({byte_size(identity.size)}) into {printable(models)}")
    try:
        for folder in (models, entry.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models, prefix=".") as temporary:
            partial = Path(temporary) / "model"
            _fetch(url, partial)
            _refuse_other_files(url, partial)
            digest = sha256_of(partial)
            final = models / digest / url.name
            final.parent.mkdir(mode=0o700, exist_ok=True)
            publish(partial, final, overwrite=True)
            line = [str(url), identity.size, identity.mtime_ns, digest]
            (Path(temporary) / "entry").write_text(json.dumps(line))
            publish(Path(temporary) / "entry", entry, overwrite=True)
    except (OSError, OutputError) as error:
        reason = output_error(models, error) if isinstance(error, OSError) else error
        raise OutputError(f"{reason}; --cache-dir names another place for what is kept") from error
    return final, digest


def _fetch(url: RemotePath, partial: Path) -> None:
    """Copy an object into a file. Raises ModelError; OSError where the file cannot be written."""
    partial.touch()
    try:
        copy_in(url, partial)
    except OSError as error:
        raise ModelError(f"{printable(url)}: {why_store_failed(error)}") from error


def _refuse_other_files(url: RemotePath, partial: Path) -> None:
    """Raise ModelError for an ONNX whose weights lie in files beside it."""
    if has_checkpoint_name(url.name):
        return
    from .graphs.onnx_file import names_other_files

    if names_other_files(partial):
        raise ModelError(
            f"{printable(url)}: keeps its weights in other files, and of a store one object is "
            "read; save it with the weights inside, or copy all of its files here"
        )


def _recorded(entry: Path, url: RemotePath, identity: FileIdentity) -> str | None:
    """Return the recorded digest of an object in this state, None where there is none."""
    try:
        found = json.loads(entry.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, list) or found[:3] != [str(url), identity.size, identity.mtime_ns]:
        return None
    (digest,) = found[3:] if len(found) == 4 else (None,)
    # It becomes a part of a path.
    is_digest = isinstance(digest, str) and len(digest) == 64 and digest.isalnum()
    return digest if is_digest else None


def _digest(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None
