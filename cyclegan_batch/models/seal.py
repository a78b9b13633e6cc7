"""Seal content with a key that only this user has, and tell such a seal from any other.

The key lies in a folder of this user's own, and nowhere else: somebody who hands over a file, or
writes into a cache folder, cannot forge a seal. A key that other users can read or change is not
used.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from ..errors import OutputError
from ..files import writing
from ..machine import default_state_dir
from ..wording import printable

_KEY_NAME = "engine.key"

_KEY_BYTES = 32

_SEAL_BYTES = 32
"""The length of an HMAC with SHA-256."""


def seal_of(content: bytes) -> str | None:
    """Return this user's seal of ``content``, hexadecimal; None where there is no key.

    The key is created on first use; `key_error` returns why there is none.
    """
    key = _key_or_new_one()
    return None if key is None else _seal(key, content)


def is_seal_of(seal: str, content: bytes) -> bool:
    """Return whether ``seal`` is this user's seal of ``content``."""
    key = _key()
    if key is None:
        return False
    # As bytes: compare_digest raises TypeError for text that is not ASCII.
    return hmac.compare_digest(seal.encode(errors="replace"), _seal(key, content).encode())


def key_error() -> str | None:
    """Return, in words, why this user has no key to seal with; None where there is one.

    A missing key is created first.
    """
    folder = default_state_dir()
    if _key_or_new_one() is not None:
        return None
    path = folder / _KEY_NAME
    reason = None if not folder.exists() else not_private(folder) or not_private(path)
    return reason or f"{printable(path)} cannot be written or is no key"


def not_private(path: Path) -> str | None:
    """Return, in words, why other users may have written ``path``; None where they cannot have.

    A path that does not exist counts as private, and so does any path where files have no owners.
    """
    if not hasattr(os, "geteuid"):
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    name = printable(path)
    if status.st_uid != os.geteuid():
        return f"{name} belongs to another user; use a folder of your own"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{name} may be written by other users; take that right away (chmod go-w)"
    return None


def sealed(content: bytes) -> bytes | None:
    """Return ``content`` with a seal of this user before it; None where there is no key."""
    key = _key_or_new_one()
    return None if key is None else hmac.digest(key, content, "sha256") + content


def unsealed(content: bytes) -> bytes | None:
    """Return the content behind a seal, None where it is damaged or not sealed by this user."""
    key, seal, inside = _key(), content[:_SEAL_BYTES], content[_SEAL_BYTES:]
    if key is None or not hmac.compare_digest(seal, hmac.digest(key, inside, "sha256")):
        return None
    return inside


def _seal(key: bytes, content: bytes) -> str:
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """Return this user's key; None where there is none, or other users may read or change it."""
    path = default_state_dir() / _KEY_NAME
    if not_private(path.parent) is not None or not_private(path) is not None:
        return None
    try:
        readable_by_others = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
        key = path.read_bytes()
    except OSError:
        return None
    if readable_by_others and os.name == "posix":
        return None
    return key if len(key) == _KEY_BYTES else None


def _key_or_new_one() -> bytes | None:
    """Return this user's key, created on first use; None where that fails."""
    path = default_state_dir() / _KEY_NAME
    # Of several processes that create it at once, the first to finish sets the key for all.
    with contextlib.suppress(OSError, OutputError):
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_new_file(path, secrets.token_bytes(_KEY_BYTES), mode=0o600, overwrite=False)
    return _key()


def write_new_file(
    path: Path, content: bytes, *, mode: int = 0o666, overwrite: bool = True
) -> None:
    """Write a file, never into one that another user has put in place of its temporary file.

    Raises OutputError, OutputExistsError as `writing` does.
    """
    with writing(path, overwrite=overwrite) as partial:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
