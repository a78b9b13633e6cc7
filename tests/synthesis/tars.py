"""Tars made on the spot by Python's own writer, whole and broken."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2

from tests.synthesis import pictures

Item = tuple[str, bytes] | tarfile.TarInfo


def write_tar(path: Path, items: Iterable[Item], *, kind: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar of files, each with its content, and of headers; ``kind`` is its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(items, kind=kind))
    return path


def packed(items: Iterable[Item], *, kind: int = tarfile.PAX_FORMAT) -> bytes:
    """Return such a tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for number, item in enumerate(items):
            if isinstance(item, tarfile.TarInfo):
                tar.addfile(item)
                continue
            name, content = item
            tar.addfile(
                entry(name, size=len(content), mtime=1_700_000_000 + number, mode=0o640),
                io.BytesIO(content),
            )
    return file.getvalue()


def entry(name: str, **values: Any) -> tarfile.TarInfo:
    """Return a header with these values."""
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def jpeg(seed: int = 0, size: tuple[int, int] = (24, 32)) -> bytes:
    """Return a JPEG of ``size`` (height, width)."""
    return encoded(".jpg", seed, size)


def png(seed: int = 0, size: tuple[int, int] = (24, 32)) -> bytes:
    """Return a PNG of ``size`` (height, width)."""
    return encoded(".png", seed, size)


def encoded(suffix: str, seed: int, size: tuple[int, int]) -> bytes:
    """Return a picture as a file of this extension."""
    done, data = cv2.imencode(suffix, pictures.photo(*size, seed=seed)[..., ::-1])
    assert done
    return data.tobytes()


def members(path: Path) -> list[tuple[str, bytes]]:
    """Return the files of a tar, in order, as Python's own reader finds them."""
    with tarfile.open(path) as tar:
        found = []
        for info in tar:
            file = tar.extractfile(info)
            found.append((info.name, b"" if file is None else file.read()))
        return found


def headers(path: Path) -> list[Mapping[str, object]]:
    """Return name, mode, time and owner of each member, in order."""
    with tarfile.open(path) as tar:
        keys = ("name", "mode", "mtime", "uid", "gid", "uname", "gname", "type")
        return [{key: getattr(info, key) for key in keys} for info in tar]
