"""What tells one state of a file from another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cyclegan_batch.file_identity import identity_of, identity_of_data, sha256_of


def write(path: Path, data: bytes, mtime_ns: int) -> Path:
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


@pytest.mark.behaviour(21)
def test_size_and_time_tell_two_states_apart(tmp_path: Path) -> None:
    first = identity_of([write(tmp_path / "a", b"one", 10)], hashed=False)
    assert identity_of([write(tmp_path / "a", b"two", 10)], hashed=False).matches(first)
    assert not identity_of([write(tmp_path / "a", b"one", 9)], hashed=False).matches(first)
    assert not identity_of([write(tmp_path / "a", b"three", 10)], hashed=False).matches(first)


@pytest.mark.behaviour(21)
def test_with_digests_only_the_content_counts(tmp_path: Path) -> None:
    first = identity_of([write(tmp_path / "a", b"one", 10)], hashed=True)
    assert identity_of([write(tmp_path / "a", b"one", 99)], hashed=True).matches(first)
    assert not identity_of([write(tmp_path / "a", b"two", 10)], hashed=True).matches(first)
    # The digest of one side alone cannot be compared.
    assert not identity_of([write(tmp_path / "a", b"one", 99)], hashed=False).matches(first)


def test_a_file_from_before_1970_is_the_same_however_it_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"old", -10)
    found = identity_of([path], hashed=False)
    assert found.mtime_ns == -10
    assert found == identity_of_data(b"old", path.stat().st_mtime_ns, hashed=False)


def test_several_files_are_one_input(tmp_path: Path) -> None:
    files = [write(tmp_path / str(n), b"x" * n, 10 + n) for n in range(3)]
    whole = identity_of(files, hashed=True)
    assert (whole.size, whole.mtime_ns) == (3, 12)
    write(files[1], b"y", 11)
    assert not identity_of(files, hashed=True).matches(whole)


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"content", 10)
    expected = hashlib.sha256(b"content").hexdigest()
    assert sha256_of(path) == expected
    assert identity_of([path], hashed=True).sha256 == expected
    assert identity_of_data(b"content", path.stat().st_mtime_ns, hashed=True) == identity_of(
        [path], hashed=True
    )
