"""Objects of a store as paths."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import re
from pathlib import Path

import pytest

from cyclegan_batch import remote
from cyclegan_batch.errors import InputError, OutputExistsError
from cyclegan_batch.files import (
    exists,
    publish,
    publishing_error,
    scratch_folder,
    temporary_path,
    writing,
)
from cyclegan_batch.job.units import is_hopeless
from cyclegan_batch.remote import RemotePath, as_path, copy_in, copy_out, is_remote
from tests.needs import need

need("fsspec", "s3fs")


@pytest.fixture(params=["memory", "s3"])
def bucket(request) -> RemotePath:
    """Return a bucket of each store."""
    return request.getfixturevalue({"memory": "memory_store", "s3": "s3"}[request.param])


def test_a_url_becomes_a_path_with_the_parts_of_its_key():
    path = as_path("s3://bucket/a b/c.tar.png")
    assert isinstance(path, RemotePath)
    assert str(path) == "s3://bucket/a b/c.tar.png"
    assert (path.name, path.suffix, path.stem) == ("c.tar.png", ".png", "c.tar")
    assert str(path.parent / "d") == "s3://bucket/a b/d"
    assert str(path.with_name("e")) == "s3://bucket/a b/e"
    assert path == as_path("s3://bucket/a b/c.tar.png")
    assert hash(path) == hash(as_path("s3://bucket/a b/c.tar.png"))
    assert as_path("s3://bucket/a/") == as_path("s3://bucket/a")
    assert path.absolute() == path.resolve() == path


def test_a_url_that_a_path_has_shortened_errors():
    with pytest.raises(InputError, match="s3:/bucket/a: a Path has lost a slash of this URL"):
        as_path(Path("s3://bucket/a"))
    assert as_path(Path("a/s3:/b")) == Path("a/s3:/b")


def test_a_path_can_be_pickled():
    path = as_path("s3://bucket/a/b")
    again = pickle.loads(pickle.dumps(path))
    assert again == path
    assert str(again) == str(path)


def test_the_rest_of_a_path_is_a_local_one():
    rest = as_path("s3://bucket/a/b/c").relative_to(as_path("s3://bucket/a"))
    assert rest == Path("b/c")
    assert not is_remote(rest)
    assert str(as_path("s3://bucket/a") / rest) == "s3://bucket/a/b/c"


@pytest.mark.parametrize(
    "ask", [os.fspath, os.stat, os.path.lexists, os.path.realpath, os.scandir, Path.open]
)
def test_the_operating_system_gets_no_object_errors(ask):
    with pytest.raises((TypeError, ValueError), match=r"is an object of a store|opened as rb"):
        ask(as_path("s3://bucket/a"))


@pytest.mark.parametrize("name", ["a.png", "./a", "s3:/a", "x:y", "a/s3://b", "./http://b"])
def test_other_names_are_files(name):
    assert as_path(name) == Path(name)
    assert not is_remote(as_path(name))


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///a", "s3://b//a", "s3://b/../a", "s3://b/./a", "s3://b/a//"]
)
def test_a_url_without_a_relative_key_errors(url):
    with pytest.raises(InputError, match="is no URL of an object"):
        as_path(url)


def test_a_url_of_another_protocol_errors():
    with pytest.raises(InputError, match="http:// is not read here"):
        as_path("http://example.com/a.png")


def test_a_store_whose_package_is_missing_errors(monkeypatch):
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'cyclegan-batch\[az\]'"):
        as_path("abfs://b/a")


def test_an_object_is_put_and_read(bucket):
    path = bucket / "a" / "b.bin"
    assert not path.exists()
    assert not path.is_dir()
    path.put(b"content", overwrite=False)
    assert path.is_file()
    assert path.parent.is_dir()
    assert not path.is_dir()
    assert path.stat().st_size == 7
    assert path.stat().st_mtime_ns > 1.7e18
    assert path.read_bytes() == b"content"
    assert path.read_range(2, 5) == b"nte"
    with path.open("rb") as file:
        assert file.seek(3) == 3
        assert file.read() == b"tent"
        assert file.seek(-2, 2) == 5
        assert file.read(1) == b"n"
    path.unlink()
    assert not path.exists()
    path.unlink(missing_ok=True)


def test_an_object_that_exists_is_not_replaced_errors(bucket, tmp_path):
    path, local = bucket / "a", tmp_path / "a"
    local.write_bytes(b"second")
    path.put(b"first", overwrite=False)
    with pytest.raises(FileExistsError):
        path.put(b"second", overwrite=False)
    with pytest.raises(FileExistsError):
        copy_out(local, path, overwrite=False)
    with pytest.raises(FileExistsError), path.open("xb") as file:
        file.write(b"second")
    assert path.read_bytes() == b"first"
    path.put(b"third", overwrite=True)
    copy_in(path, local)
    assert local.read_bytes() == b"third"


def test_a_streamed_object_appears_when_it_is_closed(bucket):
    path = bucket / "big"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(bytes(1 << 20))
        assert not path.exists()
    assert path.stat().st_size == 40 << 20


def test_a_streamed_object_that_was_not_finished_does_not_appear(bucket):
    path = bucket / "a"

    def fail() -> None:
        with path.open("wb") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    file = path.open("wb")
    file.write(bytes(20 << 20))
    file.discard()
    file.discard()
    del file
    assert not path.exists()


def test_what_was_listed_is_known_without_a_request(s3, requests):
    for name in ("x/a", "x/b/c", "y"):
        (s3 / name).put(b"1", overwrite=True)
    root = s3 / "x"
    requests.clear()
    listed = root.beneath()
    assert listed.keys() == {Path("a"), Path("b/c")}
    assert {status.st_size for status in listed.values()} == {1}
    assert requests["ListObjectsV2"] + requests["ListObjects"] <= 1
    requests.clear()
    assert (root / "a").is_file()
    assert (root / "b").is_dir()
    assert (root / "b" / "c").stat().st_size == 1
    assert root.is_dir()
    assert not any((root / f"{number}").exists() for number in range(1000))
    assert not requests
    (root / "d" / "e").put(b"22", overwrite=False)
    assert (root / "d").is_dir()
    assert (root / "d" / "e").stat().st_size == 2
    (root / "d" / "e").unlink()
    assert not (root / "d").exists()
    assert requests == {"PutObject": 1, "DeleteObject": 1}
    (s3 / "y").stat()
    assert requests["HeadObject"] == 1


def test_a_listing_has_the_same_names_in_all_stores(bucket):
    for name in ("x/a", "x/b/c", "xy"):
        (bucket / name).put(b"1", overwrite=True)
    assert (bucket / "x").beneath().keys() == {Path("a"), Path("b/c")}


def test_an_object_is_read_by_one_request(s3, requests):
    (s3 / "a").put(b"123456", overwrite=True)
    requests.clear()
    assert (s3 / "a").read_bytes() == b"123456"
    assert (s3 / "a").read_range(2, 4) == b"34"
    assert (s3 / "a").read_range(4, 64) == b"56"
    assert (s3 / "a").read_range(6, 64) == b""
    assert requests == {"GetObject": 4}


def test_keys_that_are_no_paths_are_left_out_of_a_listing(s3):
    import boto3

    client = boto3.client("s3")
    for key in ("x/a", "x//b", "x/../c", "x/folder/", "x/./d"):
        client.put_object(Bucket=s3.name, Key=key, Body=b"1")
    root = s3 / "x"
    assert root.beneath().keys() == {Path("a")}
    assert sorted(each.rpartition("/x/")[2] for each in root.unnamable) == ["../c", "./d", "/b"]


def test_a_bucket_that_is_not_there_errors(s3):
    nowhere = as_path("s3://no-such-bucket/a")
    assert not nowhere.exists()
    for action in (nowhere.read_bytes, lambda: nowhere.put(b"", overwrite=True), nowhere.unlink):
        with pytest.raises(FileNotFoundError):
            action()


def test_a_store_that_does_not_answer_errors(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # or botocore waits for seconds between its tries
    monkeypatch.setattr(remote, "_file_system", remote._file_system.__wrapped__)
    with pytest.raises(OSError, match="the store does not answer: Could not"):
        (s3 / "a").read_bytes()


def test_a_failure_that_no_request_waits_for_is_not_printed(s3, caplog):
    """As of the task in which aiohttp sends the body of a request whose connection breaks."""
    import asyncio

    from fsspec.asyn import get_loop

    async def break_down():
        raise ConnectionResetError("Cannot write to closing transport")

    async def leave_behind():
        await asyncio.wait([asyncio.ensure_future(break_down())])

    loop = s3._store.loop
    assert loop is not get_loop(), "fsspec's own belongs to the calling program"
    with caplog.at_level(logging.DEBUG, "asyncio"):
        asyncio.run_coroutine_threadsafe(leave_behind(), loop).result(60)
        gc.collect()  # the loop learns of it when the task is collected
    told = [each for each in caplog.records if "never retrieved" in each.getMessage()]
    assert [each.levelname for each in told] == ["DEBUG"]
    assert "closing transport" in str(told[0].exc_info)


@pytest.mark.parametrize("library", ["s3fs", "fsspec.asyn", "aiobotocore.tokens", "gcsfs"])
def test_a_warning_of_a_library_is_not_printed(s3, library):
    """Python prints one that no handler takes."""
    assert s3._store
    logger = logging.getLogger(library)
    while logger.parent is not logging.root:
        logger = logger.parent
    assert logger.handlers


def refused(code: str, message: str) -> Exception:
    """Return what botocore raises for an answer with this code."""
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": code, "Message": message}}, "PutObject")


@pytest.mark.behaviour(25)
@pytest.mark.parametrize(
    ("code", "reason", "remedy", "hopeless"),
    [
        ("NoSuchBucket", "has no bucket of this name", "check the URL, or create", True),
        ("AccessDenied", r"denies it \(no luck\)", "use credentials that may write there", True),
        ("QuotaExceeded", r"is full \(.*no luck.*\)", "free some space and run the same", True),
        ("EntityTooLarge", "answers: .*no luck", "check the URL, and run the same command", False),
    ],
)
def test_a_store_that_refuses_is_told_with_a_remedy_errors(
    bucket, monkeypatch, code, reason, remedy, hopeless
):
    from s3fs.errors import translate_boto_error

    def refuse(*others, **options):
        raise translate_boto_error(refused(code, "no luck"))

    monkeypatch.setattr(bucket._store, "pipe_file", refuse)
    final = bucket / "a" / "b.txt"
    with pytest.raises(OSError, match=reason.partition(" ")[2]) as raised:
        final.write_bytes(b"x")
    error = publishing_error(final, raised.value)
    assert re.search(f"cannot write {final}: the store {reason}; {remedy}", str(error))
    assert is_hopeless(error) == hopeless


def test_a_store_of_its_kind_that_has_no_conditions_is_looked_into(s3, monkeypatch):
    from s3fs.errors import translate_boto_error

    real = s3._store.pipe_file

    def unconditional(path, data, mode="overwrite", **options):
        if mode == "create":
            raise translate_boto_error(refused("NotImplemented", "If-None-Match"))
        real(path, data)

    monkeypatch.setattr(s3._store, "pipe_file", unconditional)
    (s3 / "a").put(b"first", overwrite=False)
    with pytest.raises(FileExistsError):
        (s3 / "a").put(b"second", overwrite=False)
    assert (s3 / "a").read_bytes() == b"first"


def test_a_file_is_published_into_a_store(bucket):
    final = bucket / "a" / "b.txt"
    partial = temporary_path(final)
    assert partial.parent == scratch_folder()
    assert temporary_path(bucket / "c" / "b.txt") != partial
    partial.write_text("x")
    publish(partial, final, overwrite=False)
    assert final.read_bytes() == b"x"
    assert not exists(partial)
    with (
        pytest.raises(OutputExistsError, match="exists already"),
        writing(final, overwrite=False) as partial,
    ):
        partial.write_text("y")
    assert not exists(partial)
    assert exists(final)
    assert not exists(bucket / "none")


def test_a_long_file_is_put_in_parts_of_bounded_size(s3, requests, monkeypatch, tmp_path):
    local, path = tmp_path / "a", s3 / "a"
    local.write_bytes(os.urandom(11 << 20))
    monkeypatch.setattr(remote, "_PART", 5 << 20)
    copy_out(local, path, overwrite=False)
    assert requests["UploadPart"] == 3
    assert path.read_bytes() == local.read_bytes()
    with pytest.raises(FileExistsError):
        copy_out(local, path, overwrite=False)
    assert requests["AbortMultipartUpload"] == 1


@pytest.mark.parametrize("long", [False, True])
def test_an_object_whose_answer_was_lost_is_put(s3, monkeypatch, tmp_path, long):
    """The client sends the request again then, and the store refuses it."""
    import s3fs

    real = s3fs.S3FileSystem._call_s3
    ends = {"put_object", "complete_multipart_upload"}

    async def lost(self, method, *others, **values):
        answer = await real(self, method, *others, **values)
        if method not in ends:
            return answer
        return await real(self, method, *others, **values)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", lost)
    monkeypatch.setattr(remote, "_PART", 5 << 20)
    content, local = os.urandom((6 << 20) if long else 6), tmp_path / "a"
    local.write_bytes(content)
    (s3 / "a").put(content, overwrite=False)
    copy_out(local, s3 / "b", overwrite=False)
    with (s3 / "c").open("xb") as file:
        file.write(content[:3])
        file.write(content[3:])
    for name in "abc":
        assert (s3 / name).read_bytes() == content
    with pytest.raises(FileExistsError):  # of another put, be it the same
        (s3 / "a").put(content, overwrite=False)
