"""Tars that are read from a store and put into one, as streams."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cyclegan_batch.errors import InputError, OutputExistsError
from cyclegan_batch.file_identity import identity_of
from cyclegan_batch.remote import RemotePath
from tests.media.tars.test_tars import SAMPLES, plan, translate
from tests.synthesis.tars import jpeg, packed, write_tar


@pytest.fixture
def expected(tmp_path: Path) -> bytes:
    """Return the tar that a local run writes."""
    source = write_tar(tmp_path / "local" / "x.tar", SAMPLES)
    translate(plan(source, tmp_path / "local" / "out.tar"))
    return (tmp_path / "local" / "out.tar").read_bytes()


def test_a_tar_goes_from_store_to_store_as_from_disk_to_disk(
    memory_store: RemotePath,
    expected: bytes,
) -> None:
    source, output = memory_store / "in" / "x.tar", memory_store / "out" / "x.tar"
    source.write_bytes(packed(SAMPLES))
    dropped, sink = translate(plan(source, output))
    assert dropped == []
    assert output.read_bytes() == expected
    assert sink.written[0].bytes == len(expected)
    with pytest.raises(OutputExistsError):
        translate(plan(source, output))
    translate(plan(source, output, overwrite=True))


def test_an_object_that_changes_after_it_was_listed_fails(memory_store: RemotePath) -> None:
    source, output = memory_store / "in" / "x.tar", memory_store / "out" / "x.tar"
    source.write_bytes(packed(SAMPLES))
    (memory_store / "in").beneath()
    planned = replace(plan(source, output), status=identity_of([source], hashed=False))
    translate(planned)
    output.unlink()

    def changed(items: list[Any]) -> list[Any]:
        source._store.pipe_file(source._key, packed(SAMPLES[:3]))
        return items

    with pytest.raises(InputError, match=r"x\.tar: was changed while it was translated"):
        translate(planned, changed)
    assert not output.exists()


@pytest.mark.behaviour(19)
def test_a_tar_that_fails_leaves_no_object(memory_store: RemotePath) -> None:
    source, output = memory_store / "in" / "x.tar", memory_store / "out" / "x.tar"
    source.write_bytes(packed([(f"{n}.jpg", jpeg(n)) for n in range(20)])[:-20_000])
    with pytest.raises(InputError, match=r"memory://bucket/in/x\.tar: is cut off"):
        translate(plan(source, output))
    assert not output.exists()


def test_a_tar_without_images_is_put_as_it_is(memory_store: RemotePath) -> None:
    source, output = memory_store / "in" / "x.tar", memory_store / "out" / "x.tar"
    source.write_bytes(packed([("a.txt", b"a")]) + b"more")
    translate(plan(source, output))
    assert output.read_bytes() == source.read_bytes()


def test_a_tar_on_s3_takes_few_requests_and_replaces_nothing(
    s3: RemotePath,
    expected: bytes,
    requests: Counter[str],
) -> None:
    source, output = s3 / "in" / "x.tar", s3 / "out" / "x.tar"
    source.write_bytes(packed(SAMPLES))
    requests.clear()
    translate(plan(source, output, overwrite=True))
    assert output.read_bytes() == expected
    # The whole file is less than a block; `requests` sees no upload.
    assert requests == {"HeadObject": 3, "GetObject": 2}

    def written(items: list[Any]) -> list[Any]:
        output.write_bytes(b"mine")
        return items

    output.unlink()
    with pytest.raises(OutputExistsError):
        translate(plan(source, output), written)
    assert output.read_bytes() == b"mine"
