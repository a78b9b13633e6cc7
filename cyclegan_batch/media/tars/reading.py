"""Read a tar from its beginning to its end, as data of unknown origin.

The standard library parses the headers (`tarfile.TarInfo.frombuf`). Its `TarFile` is not used: it
reads a pax header into memory whatever size that states, takes a header that is cut off for the end
of the archive, and remembers every member.

The formats are ustar, pax (IEEE Std 1003.1-2017, pax) and that of GNU tar.
"""

from __future__ import annotations

import hashlib
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from ...errors import InputError
from ...wording import printable

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a header; the content of a member is padded to a multiple of it."""

CHUNK = 1 << 20
"""Bytes that are read at a time."""

_MOST_PAX, _MOST_NAME = 1 << 20, 1 << 16
"""Bytes of a pax header and of a long name beyond which a tar is hostile."""
_MOST_SECONDS = 1 << 40
"""A time beyond these seconds before or after 1970 is taken as 1970."""

_ENCODING = "utf-8"
_NAMES = {"path", "uname", "gname"}
_NUMBERS = {"uid", "gid", "size", "mtime"}


@dataclass(frozen=True)
class Member:
    """A member of a tar; its content is read before the next member is asked for."""

    info: tarfile.TarInfo
    """Name, size in bytes, mode, time and owner, and nothing else: it can be written again. The
    name of a folder has no separator at its end."""
    refusal: str | None
    """Why it is not carried on, as a sentence whose subject is its name, with the remedy."""


class TarReader:
    """The members of a tar, in their order."""

    def __init__(
        self, file: BinaryIO, name: str, *, length: int | None = None, hashed: bool = False
    ) -> None:
        """``name`` is for messages, and ``length`` is that of ``file`` in bytes, where it is known.

        ``hashed``: compute the SHA-256 of all bytes that are read.
        """
        self._file, self._name, self._length = file, name, length
        self._digest = hashlib.sha256() if hashed else None
        self._at = 0
        self._left = self._padding = 0
        """Bytes of the current member's content, and of the padding behind it, not read yet."""
        self._inside = ""
        """The member whose content is read, for messages."""
        self.is_gnu = False
        """Whether the first header is in the format of GNU tar."""
        self.note: str | None = None
        """What is unusual about the end, a sentence whose subject is the tar; known at the end."""

    @property
    def position(self) -> int:
        """Bytes read so far; once all members are read, those of the whole file."""
        return self._at

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the bytes read so far, where it was asked for."""
        return None if self._digest is None else self._digest.hexdigest()

    def members(self) -> Iterator[Member]:
        """Yield each member. Raises InputError where the tar cannot be read to its end."""
        pax: Mapping[str, str] = {}
        long_name: str | None = None
        while (info := self._header()) is not None:
            sparse = info.type == tarfile.GNUTYPE_SPARSE or any(
                key.startswith("GNU.sparse") for key in pax
            )
            if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                pax = self._pax(info)
                continue
            if info.type == tarfile.XGLTYPE:
                if _NAMES.union(_NUMBERS) & self._pax(info).keys():
                    raise self._damaged("a global header renames or resizes all members")
                continue
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                content = self._extension(info, _MOST_NAME)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = _text(content.partition(b"\0")[0])
                continue
            if sparse and info.type == tarfile.GNUTYPE_SPARSE:
                self._skip_sparse_headers(info)
            if info.type != b"V":  # a volume label of GNU tar has no content and names no file
                yield self._member(info, pax, long_name, sparse)
            pax, long_name = {}, None
        if pax or long_name is not None:
            raise self._cut_off("behind an extended header")
        self._check_end()

    def read(self, count: int = -1) -> bytes:
        """Return at most ``count`` bytes of the current member's content; -1 for all that is left.

        Raises InputError where the tar is cut off.
        """
        wanted = self._left if count < 0 else min(count, self._left)
        pieces = []
        # The size that a header states may be a lie: nobody shall reserve memory for it.
        most = CHUNK
        if self._length is not None:
            most = wanted if self._at + self._left <= self._length else 0
        while wanted:
            piece = self._take(min(wanted, most))
            if not piece:
                raise self._cut_off(f"within {printable(self._inside)}")
            self._left -= len(piece)
            wanted -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # Headers

    def _header(self) -> tarfile.TarInfo | None:
        """Return the next header; None at the end of the archive."""
        self._skip()
        at = self._at
        block = self._exactly(BLOCK)
        if not block and at:
            self.note = (
                "has no end mark (two empty blocks), and its last member is whole; "
                "check that the tar is not cut off there"
            )
            return None
        if not at and (what := _why_no_tar(block)):
            raise InputError(f"{self._name}: {what}")
        if len(block) < BLOCK:
            raise self._cut_off("within a header")
        try:
            info = tarfile.TarInfo.frombuf(block, _ENCODING, "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            # The end mark is two empty blocks, of which some writers leave out the second one.
            if any(self._exactly(BLOCK)):
                raise self._damaged("an empty block with more behind it") from None
            return None
        except tarfile.HeaderError as error:
            if not at:
                raise InputError(f"{self._name}: is no tar: {error}; check the file") from error
            raise self._damaged(f"no header of a member: {error}") from error
        if not at:
            self.is_gnu = block[257:265] == tarfile.GNU_MAGIC
        if info.size < 0:
            raise self._damaged("a header states a size below 0")
        self._inside = info.name
        self._expect(info.size if _has_content(info.type) else 0)
        if info.type == tarfile.GNUTYPE_SPARSE:
            # Frombuf has parsed it; what matters is whether more of the map follows.
            info.pax_headers = {"isextended": "1"} if block[482] else {}
        return info

    def _member(
        self, info: tarfile.TarInfo, pax: Mapping[str, str], long_name: str | None, sparse: bool
    ) -> Member:
        """Return a member with what the headers before its own state."""
        own = tarfile.TarInfo(info.name if long_name is None else long_name.rstrip("/"))
        own.size, own.mode, own.mtime = info.size, info.mode & 0o7777, info.mtime
        own.uid, own.gid, own.uname, own.gname = info.uid, info.gid, info.uname, info.gname
        own.type = tarfile.DIRTYPE if info.isdir() else tarfile.REGTYPE
        try:
            own.name = pax.get("GNU.sparse.name", pax.get("path", own.name)).rstrip("/") or own.name
            own.uname, own.gname = pax.get("uname", own.uname), pax.get("gname", own.gname)
            own.uid, own.gid = int(pax.get("uid", own.uid)), int(pax.get("gid", own.gid))
            own.size = int(pax.get("size", own.size))
            mtime = float(pax.get("mtime", own.mtime))
        except ValueError as error:
            raise self._damaged(f"an extended header holds no number: {error}") from error
        if own.size < 0 or not 0 <= own.uid < 1 << 48 or not 0 <= own.gid < 1 << 48:
            raise self._damaged("a header states a number below 0 or far too large")
        if not math.isfinite(mtime) or abs(mtime) > _MOST_SECONDS:
            mtime = 0.0
        own.mtime = int(mtime) if mtime == int(mtime) else mtime
        if not _has_content(info.type):
            own.size = 0
        elif own.size != info.size:
            self._expect(own.size)
        self._inside = own.name
        return Member(own, _why_refused(own.name, info.type, sparse))

    def _extension(self, info: tarfile.TarInfo, most: int) -> bytes:
        """Return the content of a header that extends the next one."""
        if info.size > most:
            raise self._damaged(f"an extended header of {info.size} bytes, which no writer makes")
        return self.read()

    def _pax(self, info: tarfile.TarInfo) -> dict[str, str]:
        """Return the records of a pax header: ``length key=value`` and a line end, each."""
        content = self._extension(info, _MOST_PAX)
        records, at = {}, 0
        while at < len(content) and content[at]:
            number = re.compile(rb"([0-9]{1,9}) ").match(content, at)
            end = at + int(number[1]) if number else at
            record = content[number.end() : end - 1] if number else b""
            key, equals, value = record.partition(b"=")
            if not equals or content[end - 1 : end] != b"\n":
                raise self._damaged("a pax header whose records are malformed")
            if b"\0" in value and key in (b"path", b"uname", b"gname"):
                raise self._damaged("a pax header with a name that holds a zero byte")
            records[_text(key)] = _text(value)
            at = end
        return records

    def _skip_sparse_headers(self, info: tarfile.TarInfo) -> None:
        """Skip the blocks with the rest of a sparse file's map, which precede its content."""
        more = bool(info.pax_headers)
        while more:
            block = self._exactly(BLOCK)
            if len(block) < BLOCK:
                raise self._cut_off("within a header")
            more = bool(block[504])

    # Bytes

    def _expect(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _skip(self) -> None:
        """Read what is left of the current member, and its padding."""
        while self._left:
            self.read(CHUNK)
        padding, self._padding = self._padding, 0
        if len(self._exactly(padding)) < padding:
            raise self._cut_off(f"behind {printable(self._inside)}")

    def _exactly(self, count: int) -> bytes:
        """Return ``count`` bytes, fewer at the end of the file."""
        data = b""
        while len(data) < count and (piece := self._take(count - len(data))):
            data += piece
        return data

    def _take(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except OSError as error:
            raise InputError(f"{self._name}: cannot be read: {error.strerror or error}") from error
        self._at += len(data)
        if self._digest is not None:
            self._digest.update(data)
        return data

    def _check_end(self) -> None:
        """Read what follows the end mark, and note what is not zero there."""
        while piece := self._take(CHUNK):
            if piece.count(0) != len(piece):
                self.note = (
                    "holds more behind its end mark, which is left out, as other readers leave it"
                )

    def _cut_off(self, where: str) -> InputError:
        return InputError(
            f"{self._name}: is cut off: it ends after {self._length or self._at} bytes, {where}; "
            "replace it with a whole copy"
        )

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"{self._name}: is damaged before byte {self._at}: {what}; replace it with a whole copy"
        )


def _text(data: bytes) -> str:
    return data.decode(_ENCODING, "surrogateescape")


def _has_content(kind: bytes) -> bool:
    """Return whether a size in a header of this type means bytes that follow."""
    without = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
    return kind not in (*without, tarfile.DIRTYPE, tarfile.FIFOTYPE)


_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def _why_no_tar(block: bytes) -> str | None:
    """Return what a file is by its first bytes, where that is no tar."""
    if not block:
        return "the file is empty; replace it with a whole copy"
    for magic, name in _PACKED.items():
        if block.startswith(magic):
            return f"is compressed by {name}, and plain tars are read; decompress it first"
    return None


_KINDS = {
    tarfile.LNKTYPE: "is a hard link",
    tarfile.SYMTYPE: "is a symbolic link",
    tarfile.CHRTYPE: "is a device",
    tarfile.BLKTYPE: "is a device",
    tarfile.FIFOTYPE: "is a named pipe",
}
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE)


def _why_refused(name: str, kind: bytes, sparse: bool) -> str | None:
    if kind in _KINDS:
        return (
            f"{_KINDS[kind]}, and only files and folders are carried on; "
            "pack the tar again with --dereference --hard-dereference"
        )
    if sparse:
        return "is stored as a sparse file; pack the tar again without --sparse"
    if kind not in _FILES:
        return f"is of the unknown type {kind!r}; pack the tar again as ustar or pax"
    # A name that is harmless here may lead out of a folder on Windows.
    if not name or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "has an absolute name or none; pack the tar again with relative names"
    if ".." in re.split(r"[/\\]", name):
        return "has a name that leads out of its folder; pack the tar again without .. in names"
    return None
