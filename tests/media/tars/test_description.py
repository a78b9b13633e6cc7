"""What `inspect` tells of a tar."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from cyclegan_batch.bench.sample import sample_of
from cyclegan_batch.errors import InputError
from cyclegan_batch.inspection import inspect_file
from cyclegan_batch.models.model import open_model
from tests.synthesis import generators
from tests.synthesis.tars import entry, packed, png, write_tar


@pytest.mark.behaviour(36)
def test_inspect_counts_samples_images_and_what_is_refused(tmp_path: Path) -> None:
    link = entry("3.png", type=tarfile.SYMTYPE, linkname="1.png")
    items = [("README", b""), ("1.png", png(1)), ("1.seg.png", png(2)), ("2.png", png(3)), link]
    path = write_tar(tmp_path / "x.tar", items)
    told = inspect_file(path)
    assert told.pop("refused_members") == [
        "3.png: is a symbolic link, and only files and folders are carried on; "
        "pack the tar again with --dereference --hard-dereference"
    ]
    assert told == {
        "kind": "tar",
        "path": str(path),
        "samples": 3,
        "images": 3,
        "extensions": {"png": 2, "seg.png": 1, "": 1},
        "refused": 1,
        "end": "whole",
    }


def test_a_tar_that_cannot_be_read_to_its_end_errors(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(packed([("1.png", png(1))])[:600])
    with pytest.raises(InputError, match=r"x\.tar: is cut off"):
        inspect_file(tmp_path / "x.tar")


def test_bench_reads_no_tar_and_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("1.png", png(1))])
    card = open_model(generators.identity(tmp_path / "identity.onnx")).card
    with pytest.raises(InputError, match=r"x\.tar: is a tar .* unpack some of its images into a"):
        sample_of(path, card, "native", tmp_path / "out")
