"""What is known of the prefixes of stores that were listed, so that no object is asked for again.

Listings are remembered by their URL for the whole process. They tell what was there then, and what
this process itself has put and removed since; `RemotePath.ask` asks the store.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence


class _Listing:
    """The objects beneath a prefix, by their relative names, and the folders that they form."""

    def __init__(self, objects: Mapping[str, os.stat_result]) -> None:
        self._objects = dict(objects)
        self._folders: Counter[str] = Counter()
        for name in self._objects:
            self._folders.update(_folders(name))

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of an object or a folder; None where there is none."""
        found = self._objects.get(name)
        if found is None and self._folders[name] > 0:
            return made_status(False, 0, 0)
        return found

    def change(self, name: str, status: os.stat_result | None) -> None:
        """Add an object, or take it away."""
        before = name in self._objects
        if status is None:
            self._objects.pop(name, None)
        else:
            self._objects[name] = status
        change = (status is not None) - before
        for folder in _folders(name) if change else ():
            self._folders[folder] += change


def _folders(name: str) -> Iterator[str]:
    """Yield the folders that an object lies in; the prefix itself is the empty text."""
    while name:
        name = name.rpartition("/")[0]
        yield name


_LOCK = threading.Lock()
_LISTED: dict[str, _Listing] = {}
"""What lies beneath each listed prefix."""
_UNNAMABLE: dict[str, list[str]] = {}


def keep(prefix: str, objects: Mapping[str, os.stat_result], odd: Sequence[str]) -> None:
    """Remember what was listed beneath a prefix (its URL), by relative names.

    ``odd`` are the URLs of what has no name as a relative path.
    """
    with _LOCK:
        _LISTED[prefix] = _Listing(objects)
        _UNNAMABLE[prefix] = list(odd)


def unnamable(prefix: str) -> list[str]:
    """Return the URLs that have no name beneath a listed prefix."""
    return list(_UNNAMABLE.get(prefix, ()))


def forget() -> None:
    """Forget all listings: `RemotePath.stat` asks the store again."""
    with _LOCK:
        _LISTED.clear()
        _UNNAMABLE.clear()


def _listings(url: str) -> Iterator[tuple[_Listing, str]]:
    """Yield the listings that an object lies in, with its relative name; `_LOCK` is held.

    The one of the longest prefix comes first: it may be newer than one of all that lies above.
    """
    end = len(url)
    while end > 0:
        listing = _LISTED.get(url[:end])
        if listing is not None:
            yield listing, url[end + 1 :]
        end = url.rfind("/", 0, end)


def known(url: str) -> os.stat_result | None:
    """Return the status of what lies beneath a listed prefix; None where none of them is listed.

    Raises FileNotFoundError for what is not there.
    """
    with _LOCK:
        for listing, name in _listings(url):
            found = listing.status(name)
            if found is not None:
                return found
            if name:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    return None


def remember(url: str, size: int | None) -> None:
    """Add what this process has put to the listings, or take away what it has removed (None)."""
    with _LOCK:
        for listing, name in _listings(url):
            if name:
                listing.change(name, None if size is None else made_status(True, size, 0))


def made_status(is_object: bool, size: int, mtime_ns: int) -> os.stat_result:
    """Return the status of an object, or of a prefix of some."""
    mode = stat.S_IFREG | 0o644 if is_object else stat.S_IFDIR | 0o755
    seconds = mtime_ns // 10**9
    return os.stat_result(
        (mode, 0, 0, 1, 0, 0, size, seconds, seconds, seconds),
        {"st_mtime_ns": mtime_ns, "st_mtime": mtime_ns / 1e9},
    )
