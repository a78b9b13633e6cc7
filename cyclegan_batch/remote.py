"""Objects of a store (S3 and the like) as paths, read and written through fsspec.

A `RemotePath` is a `pathlib.Path`, so what reads and writes files by Path's own methods does the
same with objects. What hands a path to the operating system instead raises TypeError, so that no
local file named ``s3:`` is ever read or written by mistake.

A store has no folders, no renames and no locks. An object appears as a whole, when it has been put.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import importlib.util
import io
import itertools
import os
import secrets
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path, PosixPath
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeAlias

from .errors import InputError
from .listings import forget as forget
from .listings import keep, known, made_status, remember, unnamable
from .wording import printable

if TYPE_CHECKING:
    import asyncio

    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer
    from fsspec import AbstractFileSystem

PROTOCOLS: dict[str, tuple[str, str]] = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "az": ("adlfs", "az"),
    "abfs": ("adlfs", "az"),
    "hf": ("huggingface_hub", "hf"),
}
"""The stores, by the protocol of their URLs: the package that fsspec needs, and our extra."""

_Options: TypeAlias = "dict[str, dict[str, str]]"

_BLOCK = 4 << 20
"""Bytes of an object that one request gets, where it is read as a file."""


class RemotePath(PosixPath):
    """An object of a store, or a prefix of objects; its text is its URL.

    Every failure of the store is an OSError: FileNotFoundError, PermissionError, FileExistsError,
    else one with the store's own words.
    """

    def __str__(self) -> str:
        text = super().__str__()
        protocol, separator, rest = text.partition(":/")
        return f"{protocol}://{rest}" if separator else text

    def __fspath__(self) -> NoReturn:
        """Refuse: the operating system knows no such path."""
        raise TypeError(f"{self} is an object of a store and no file")

    def __bytes__(self) -> bytes:
        return str(self).encode()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self),)

    @property
    def protocol(self) -> str:
        """The store's, such as ``s3``."""
        return str(self).partition("://")[0]

    @property
    def _key(self) -> str:
        """Bucket and key."""
        return str(self).partition("://")[2]

    @property
    def _store(self) -> AbstractFileSystem:
        return _file_system(self.protocol, os.getpid())

    # What a path is

    def absolute(self) -> RemotePath:
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        """Return the path itself: a store has no links."""
        return self

    def relative_to(self, *other: str | os.PathLike[str], walk_up: bool = False) -> Path:  # type: ignore[override]
        """Return the rest of the path behind ``other`` as a local path. Raises ValueError."""
        return Path(*super().relative_to(*other).parts)

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    # What the store knows

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return size, time of modification, and whether it is an object or a prefix of some.

        Raises OSError.
        """
        return known(str(self)) or self.ask()

    lstat = stat

    def ask(self) -> os.stat_result:
        """Return the same from the store, also of what was listed. Raises OSError."""
        with _as_os_errors(self):
            return _status(self._store.info(self._key))

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there is an object of this name, or one beneath it. Raises OSError."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether this is an object. Raises OSError."""
        return self.exists() and stat.S_ISREG(self.stat().st_mode)

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether objects lie beneath this prefix. Raises OSError."""
        return self.exists() and stat.S_ISDIR(self.stat().st_mode)

    def beneath(self, starting: str = "") -> dict[Path, os.stat_result]:
        """List every object beneath this prefix, by its relative path. Raises OSError.

        ``starting``: S3 is only asked for names that begin so; other stores may return all.

        A listing of everything is remembered in this process: from then on `stat` and its like
        answer from it for all that lies beneath, and from what this process itself puts and removes
        there.

        Keys that are no relative paths, such as those with an empty part or a ``..``, are left out
        and kept by `unnamable`.
        """
        options = {"prefix": starting} if starting and self.protocol == "s3" else {}
        with _as_os_errors(self):
            found = self._store.find(self._key, detail=True, **options)
        listed: dict[str, os.stat_result] = {}
        odd: list[str] = []
        prefix = self._key + "/"
        for found_key, info in found.items():
            key = found_key.lstrip("/")  # one kind of store has it
            name = key.removeprefix(prefix)
            if key == name or name.endswith("/") or info["type"] != "file":
                continue  # what stands for an empty folder in some tools
            if _is_relative(name):
                listed[name] = _status(info)
            else:
                odd.append(f"{self.protocol}://{key}")
        if not options:
            keep(str(self), listed, odd)
        return {Path(name): status for name, status in listed.items()}

    @property
    def unnamable(self) -> list[str]:
        """The URLs that the last `beneath` left out."""
        return unnamable(str(self))

    # Content

    def open(self, mode: str = "r", *others: Any, **options: Any) -> Any:
        """Open the object: ``rb``, a seekable file that reads ahead; ``wb`` or ``xb``, a `_Put`.

        Raises OSError; for ``xb`` FileExistsError where the object exists, perhaps at its end only.
        """
        if mode == "rb":
            with _as_os_errors(self):
                file = self._store.open(self._key, "rb", block_size=_BLOCK, cache_type="none")
                return io.BufferedReader(_Get(self, file), 1 << 16)
        if mode not in ("wb", "xb"):
            raise ValueError(f"an object is opened as rb, wb or xb, not as {mode}")
        with _as_os_errors(self):
            if mode == "xb" and self.protocol not in _CONDITIONAL and self._store.exists(self._key):
                raise FileExistsError(errno.EEXIST, "exists already", str(self))
            mode = mode if self.protocol in _CONDITIONAL else "wb"
            marked = _mark(self.protocol)
            file = self._store.open(self._key, mode, block_size=_PART, **marked)
            return _Put(self, file, marked)

    def read_bytes(self) -> bytes:
        """Return the content, by one request. Raises OSError."""
        with _as_os_errors(self):
            return bytes(self._store.cat_file(self._key, **_WHOLE.get(self.protocol, {})))

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` up to ``end``, by one request. Raises OSError.

        There are fewer where the object ends before ``end``.
        """
        try:
            with _as_os_errors(self):
                return bytes(self._store.cat_file(self._key, start=start, end=end))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return b""  # S3 refuses a range that begins behind the end
            raise

    def write_bytes(self, data: Buffer) -> int:
        """Put an object with this content. Raises OSError."""
        content = bytes(data)
        self.put(content, overwrite=True)
        return len(content)

    def put(self, data: bytes, *, overwrite: bool) -> None:
        """Put an object. Raises OSError; FileExistsError where one exists that is to stay."""
        marked = {} if overwrite else _mark(self.protocol)
        with _put_or_there(self, marked), _as_os_errors(self):
            put = functools.partial(self._store.pipe_file, self._key, data, **marked)
            if overwrite:
                put()
            else:
                self._create(put)
        remember(str(self), len(data))

    def _create(self, put: functools.partial[object]) -> None:
        """Call ``put`` so that it fails where the object exists."""
        if self.protocol in _CONDITIONAL:
            try:
                put(mode="create")
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
            else:
                return
            # A store of S3's kind that has no conditions, as other ones.
        if self._store.exists(self._key):
            raise FileExistsError(errno.EEXIST, "exists already", str(self))
        put()

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object. Raises OSError."""
        try:
            with _as_os_errors(self):
                self._store.rm_file(self._key)
        except FileNotFoundError:
            if not missing_ok:
                raise
        remember(str(self), None)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a prefix exists with its first object."""


_CONDITIONAL = frozenset({"s3"})
"""Stores in which an object can be put on the condition that none has its name: since 2024 in S3
(If-None-Match). In others this process looks for it just before."""

_WHOLE = {"s3": {"max_concurrency": 1}}
"""Arguments with which a store reads an object by one request: s3fs asks for its size first else,
since it may read parts of it side by side."""

_PART = 16 << 20
"""Bytes of a part of an upload. S3 takes 10,000 of them, so an object of 156 GiB."""


class _Get(io.RawIOBase):
    """An object that is read in blocks; the errors of the store are OSErrors.

    An object that is replaced meanwhile is an error where the store can tell (S3 can).
    """

    def __init__(self, path: RemotePath, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._length = file.seek(0, io.SEEK_END)
        self._position = 0
        # What the store told as it was opened: a digest or a version, or at least size and time.
        self._state = str(getattr(file, "details", next(_OPENED)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        number, offset = divmod(self._position, _BLOCK)
        if self._position >= self._length:
            return 0
        key = str(self._path), self._state, number
        block = _BLOCKS.get(key, functools.partial(self._fetch, number))
        data = memoryview(block)[offset : offset + len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetch(self, number: int) -> bytes:
        start = number * _BLOCK
        expected = min(_BLOCK, self._length - start)
        with _as_os_errors(self._path):
            self._file.seek(start)
            data = self._file.read(expected)
        if len(data) != expected:
            raise OSError(errno.EREMOTEIO, "the store sent too few bytes", str(self._path))
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(self._path))
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


_OPENED = itertools.count()
"""Numbers of files of which the store tells nothing; unlike an `id`, none is used twice."""


class _Blocks:
    """The blocks of objects that were read last, by whatever file.

    A video is opened several times, to be described, translated and joined, and its index may lie
    behind its frames. So a short one is got once, and of a long one each block once a reading.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()

    def get(self, key: tuple[str, str, int], fetch: Callable[[], bytes]) -> bytes:
        """Return a block: one of an object (its URL), in one state, and its number."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        block = fetch()
        with self._lock:
            self._kept[key] = block
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return block


_BLOCKS = _Blocks(16)
"""64 MiB at most."""


class _Put(io.RawIOBase):
    """An object that is written in parts; it appears, as a whole, when it is closed.

    Left by an exception, or by `discard`, it does not appear.
    """

    def __init__(self, path: RemotePath, file: Any, marked: _Options) -> None:
        self._path, self._file, self._marked = path, file, marked
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        with _as_os_errors(self._path):
            self._file.write(data)
        size = memoryview(data).nbytes
        self._size += size
        return size

    def tell(self) -> int:
        return self._size

    def discard(self) -> None:
        """Close without an object."""
        if not self.closed:
            with contextlib.suppress(Exception):
                self._file.discard()
                # Else its own end would close it, and put what there is.
                self._file.closed = True
            super().close()

    def close(self) -> None:
        if not self.closed:
            try:
                with _put_or_there(self._path, self._marked), _as_os_errors(self._path):
                    self._file.close()
            except OSError:
                self.discard()
                raise
            super().close()
            remember(str(self._path), self._size)

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.discard()
        else:
            self.close()

    def __del__(self) -> None:
        self.discard()  # a file that nobody closed is not whole


# The paths that a user writes


def is_remote(path: object) -> bool:
    """Return whether a path is an object of a store."""
    return isinstance(path, RemotePath)


def is_bucket(path: Path) -> bool:
    """Return whether a path is a bucket as a whole."""
    return isinstance(path, RemotePath) and "/" not in path._key


def as_path(text: str | os.PathLike[str]) -> Path:
    """Return a path as the user wrote it: a `RemotePath` for a URL of a store, a Path else.

    Raises InputError for a URL of another kind, one without a bucket, one whose key is no relative
    path, and one whose store needs a package that is not installed.
    """
    if isinstance(text, RemotePath):
        return text
    if not isinstance(text, str):
        path = Path(text)
        if path.parts and path.parts[0] in {f"{each}:" for each in PROTOCOLS}:
            raise InputError(
                f"{printable(path)}: a Path has lost a slash of this URL; give the URL as text"
            )
        return path
    protocol, separator, rest = text.partition("://")
    if not separator or not protocol.isalnum() or not protocol.isascii():
        return Path(text)
    if protocol not in PROTOCOLS:
        known = ", ".join(f"{each}://" for each in PROTOCOLS)
        raise InputError(
            f"{printable(text)}: {protocol}:// is not read here; give a file, or a URL of {known} "
            f"(a file of this name is ./{printable(text)})"
        )
    bucket, _, key = rest.partition("/")
    key = key.removesuffix("/")
    if set(bucket) & set("*?["):
        raise InputError(
            f"{printable(text)}: names no bucket; *, ? and [ stand for the names of objects only"
        )
    if not bucket or (key and not _is_relative(key)):
        raise InputError(
            f"{printable(text)}: is no URL of an object; it has the form {protocol}://BUCKET/KEY, "
            "and no part of the key is empty, . or .."
        )
    package, extra = PROTOCOLS[protocol]
    for needed in ("fsspec", package):
        if importlib.util.find_spec(needed) is None:
            raise InputError(
                f"{printable(text)}: is read by {needed}, which is not installed: "
                f"pip install 'cyclegan-batch[{extra}]'"
            )
    return RemotePath(text.removesuffix("/"))


def _is_relative(key: str) -> bool:
    return not {"", ".", ".."} & set(key.split("/")) and "\0" not in key


# Files and objects


def copy_in(path: Path, local: Path) -> None:
    """Copy an object into a local file. Raises OSError."""
    assert isinstance(path, RemotePath)
    with _as_os_errors(path):
        path._store.get_file(path._key, os.fspath(local))


def copy_out(local: Path, path: Path, *, overwrite: bool) -> None:
    """Put a local file as an object. Raises OSError, FileExistsError as `RemotePath.put` does."""
    assert isinstance(path, RemotePath)
    # s3fs holds as many parts in the memory as it sends at once: by default ten of 50 MiB, twice.
    parts = {"chunksize": _part_bytes(local), "max_concurrency": 4}
    options = parts if path.protocol == "s3" else {}
    marked = _mark(path.protocol)
    with _put_or_there(path, marked), _as_os_errors(path):
        put = functools.partial(
            path._store.put_file, os.fspath(local), path._key, **options, **marked
        )
        if overwrite:
            put()
        else:
            path._create(put)
    remember(str(path), local.stat().st_size)


def _part_bytes(local: Path) -> int:
    """Return the bytes of each part of a file, of which S3 takes 10,000. Raises OSError."""
    return max(_PART, -(-local.stat().st_size // 10_000))


# The store


@functools.cache
def _file_system(protocol: str, process: int) -> AbstractFileSystem:
    """Return fsspec's file system for a protocol; one for each process, as it has a thread."""
    import logging

    import fsspec

    options: dict[str, object] = {}
    if protocol == "s3":
        # botocore's own number of connections is 10.
        options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS}
    if fsspec.get_filesystem_class(protocol).async_impl:
        options["loop"] = _event_loop(process)
    for library in _LIBRARIES:
        logging.getLogger(library).addHandler(logging.NullHandler())
    # fsspec drops a listing with the first write beside it; `beneath` keeps its own.
    return fsspec.filesystem(
        protocol, use_listings_cache=False, skip_instance_cache=True, **options
    )


@functools.cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop of this process's requests to stores, which runs in a daemon thread.

    It stands in for fsspec's own, which belongs to whoever else uses fsspec in this process. A
    failure that reaches a loop itself is one that no request waits for: aiohttp sends the body of a
    request in a task of its own, and where the connection breaks, both that task and the request
    fail, but only the request's error is raised. By default the loop would print the other one's
    traceback on standard error. This one logs it at the level DEBUG.
    """
    import asyncio
    import logging

    def log(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        logging.getLogger("asyncio").debug("of a store: %s", context["message"], exc_info=error)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(log)
    threading.Thread(target=loop.run_forever, name="stores", daemon=True).start()
    return loop


_LIBRARIES = ("fsspec", "aiobotocore", "s3fs", "gcsfs", "google", "adlfs", "azure")
"""Loggers of the libraries of stores. They warn of requests that are sent again or that fail, some
with a traceback. What fails is raised as well, and told in a sentence of ours. Python prints the
warnings of a logger without a handler on standard error; with a `logging.NullHandler` only the
handlers that the program itself has set get them."""


_CONNECTIONS = 64
"""Requests to S3 that are under way at once, at most: objects are read and put side by side."""


@contextlib.contextmanager
def _put_or_there(path: RemotePath, marked: _Options) -> Iterator[None]:
    """Let the put of an object count whose answer was lost.

    The client sends such a request again, and the store refuses it, since the object exists by now
    or its upload has ended. Then the object has the mark of this put.
    """
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        found: object = None
        with contextlib.suppress(Exception):
            found = path._store.metadata(path._key, refresh=True) if marked else None
        if not marked or found != marked["Metadata"]:
            raise


def _mark(protocol: str) -> _Options:
    """Return options that mark an object, where the store can, so that its put is known again."""
    return {"Metadata": {_MARK: secrets.token_hex(8)}} if protocol in _CONDITIONAL else {}


_MARK = "cyclegan-batch"
"""The name of the mark in an object's metadata."""


@contextlib.contextmanager
def _as_os_errors(path: Path) -> Iterator[None]:
    """Turn whatever the libraries of a store raise into an OSError that names the object."""
    try:
        yield
    except OSError as error:
        named = error.errno is not None and error.filename is not None
        if named and not (isinstance(error, FileExistsError) or _is_replaced(error)):
            raise
        raise _os_error(error, path) from error
    except Exception as error:
        raise _os_error(error, path) from error


def _os_error(error: Exception, path: Path) -> OSError:
    name = type(error).__name__
    words = " ".join(str(error).split()) or name
    code = _code(error)
    if _is_replaced(error):
        return OSError(errno.ESTALE, "it was replaced while it was read", str(path))
    if code == "NoSuchBucket":
        text = "the store has no bucket of this name"
        return FileNotFoundError(errno.ENODEV, text, str(path))
    if code in _FULL:
        return OSError(errno.ENOSPC, f"the store is full ({words})", str(path))
    if name in _GONE:
        return OSError(errno.EHOSTUNREACH, f"the store does not answer: {words}", str(path))
    if isinstance(error, PermissionError):
        text = f"the store denies it ({words})" if error.strerror is None else error.strerror
        return PermissionError(errno.EACCES, text, str(path))
    for kind, number in (
        (FileNotFoundError, errno.ENOENT),
        (FileExistsError, errno.EEXIST),
        (IsADirectoryError, errno.EISDIR),
    ):
        if isinstance(error, kind):
            return kind(number, os.strerror(number), str(path))
    if code in _NOT_NEW:
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return PermissionError(errno.EACCES, f"the store needs credentials ({words})", str(path))
    if isinstance(error, OSError) and error.errno is not None:
        # Without a code it is the system's own, of a file here.
        found = error.strerror if code is None else f"the store answers: {error.strerror}"
        return OSError(error.errno, found, str(path))
    return OSError(errno.EREMOTEIO, f"the store answers: {words}", str(path))


_NOT_NEW = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
"""Codes for an object that is to be new, and exists, or is being put by somebody else."""

_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})
"""Codes of a store that has no room: of Ceph and MinIO. S3 itself is never full."""

_GONE = frozenset(
    {
        *("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError"),
        *("ConnectionClosedError", "HTTPClientError", "ClientConnectorError"),
        *("ConnectionRefusedError", "ConnectionResetError", "ServerDisconnectedError"),
    }
)
"""Errors of botocore, aiohttp and the system where nothing answers, after all their retries."""


def _code(error: BaseException | None) -> str | None:
    """Return the code with which a store of S3's kind refused a request."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        error = error.__cause__
    return None


def _is_replaced(error: Exception) -> bool:
    return type(error).__name__ == "FileExpired"  # of s3fs


def _status(info: Mapping[str, object]) -> os.stat_result:
    size, seconds = info.get("size"), 0.0
    when = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    if isinstance(when, datetime):
        seconds = when.timestamp()
    elif isinstance(when, (int, float)):
        seconds = float(when)
    length = size if isinstance(size, int) else 0
    # Some servers tell milliseconds in a listing, and whole seconds of a single object.
    return made_status(info["type"] == "file", length, int(seconds) * 10**9)


_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
"""The names under which file systems of fsspec give the time of modification."""
