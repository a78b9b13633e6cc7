"""Object stores for tests: an S3 server at the loopback address, and one in the memory."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from cyclegan_batch import remote
from cyclegan_batch.remote import RemotePath, as_path

_BUCKETS = itertools.count()


class Server:
    """An S3 server of this process, in threads of its own."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.gate: Gate | None = None
        """What holds requests."""
        self._application = self._server._server.app
        self._server._server.app = self._answer

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it, as botocore reads it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            # A proxy is never asked for the loopback address.
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def stop(self) -> None:
        self._server.stop()

    def _answer(self, environ: dict[str, Any], respond: Any) -> Any:
        gate = self.gate
        if gate is None or not gate.concerns(environ):
            return self._application(environ, respond)
        with gate.passed() as may_pass:
            if may_pass:
                return self._application(environ, respond)
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError


class Gate:
    """Lets ``after`` puts of objects through whose key ``key`` matches, and holds the others.

    So a test disturbs a run while exactly so many objects are there, however fast the machine is.
    """

    def __init__(self, key: str, after: int) -> None:
        self._key, self._after = re.compile(key), after
        self._changed = threading.Condition()
        self._begun = self._done = 0
        self._verdict: Literal["held", "open", "refused"] = "held"

    def concerns(self, environ: Mapping[str, Any]) -> bool:
        """Return whether the gate lets this request through, or holds it."""
        put = environ["REQUEST_METHOD"] == "PUT"
        return put and self._key.search(environ["PATH_INFO"]) is not None

    @contextlib.contextmanager
    def passed(self) -> Iterator[bool]:
        """Wait for the verdict, and return whether the put may pass."""
        with self._changed:
            self._begun += 1
            self._changed.notify_all()
            may_pass = self._begun <= self._after
            if not may_pass:
                self._changed.wait_for(lambda: self._verdict != "held")
                may_pass = self._verdict == "open"
        try:
            yield may_pass
        finally:
            with self._changed:
                self._done += 1
                self._changed.notify_all()

    def wait(self, process: subprocess.Popen[Any]) -> None:
        """Wait until one put is held and all before it are answered; fail where the run ends."""

        def reached() -> bool:
            return self._begun > self._after == self._done

        with self._changed:
            while not self._changed.wait_for(reached, 0.1):
                assert process.poll() is None, "the run has ended before"

    def open(self) -> None:
        """Let all puts through."""
        self._decide("open")

    def refuse(self) -> None:
        """Close the connections of the puts that are held, and of all later ones."""
        self._decide("refused")

    def _decide(self, verdict: Literal["open", "refused"]) -> None:
        with self._changed:
            self._verdict = verdict
            self._changed.notify_all()


@pytest.fixture
def gate(s3_server: Server) -> Iterator[Callable[[str, int], Gate]]:
    """Return a function that puts a `Gate` before the S3 server, for the rest of the test."""
    gates = []

    def put_up(key: str, after: int) -> Gate:
        s3_server.gate = Gate(key, after)
        gates.append(s3_server.gate)
        return s3_server.gate

    yield put_up
    s3_server.gate = None
    for each in gates:
        each.refuse()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """Return the S3 server of this test process."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemotePath]:
    """Return a fresh bucket, ``s3://bucket-…``; child processes reach it by the environment."""
    import boto3

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{next(_BUCKETS)}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    yield _path(f"s3://{bucket}")
    remote.forget()


@pytest.fixture
def memory_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemotePath]:
    """Return a bucket of fsspec's store in this process, ``memory://bucket``. It is quick."""
    pytest.importorskip("fsspec")
    store = _memory()
    monkeypatch.setitem(remote.PROTOCOLS, "memory", ("fsspec", "s3"))
    real = remote._file_system
    monkeypatch.setattr(
        remote, "_file_system", lambda *which: store if which[0] == "memory" else real(*which)
    )
    yield _path("memory://bucket")
    remote.forget()


def _memory() -> object:
    """Return fsspec's store in the memory, in which a file appears when it is closed."""
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    class Upload(io.BytesIO):
        def __init__(self, store: MemoryFileSystem, path: str) -> None:
            super().__init__()
            self._store, self._path = store, path

        def discard(self) -> None:
            self._path = ""

        def close(self) -> None:
            if self._path and not self.closed:
                self._store.pipe_file(self._path, self.getvalue())
            super().close()

    class Store(MemoryFileSystem):
        store: dict[str, MemoryFile] = {}  # noqa: RUF012 - of all its instances, as its parent's
        cachable = False

        def pipe_file(self, path: str, value: bytes, **options: object) -> None:
            path = self._strip_protocol(path)
            self.store[path] = MemoryFile(self, path, value)

        def find(self, path: str, **options: object) -> dict[str, object]:
            found = super().find(path, **options)
            return {name.removeprefix("/"): info for name, info in found.items()}

        def _open(self, path: str, mode: str = "rb", **options: object) -> io.BytesIO:
            path = self._strip_protocol(path)
            if mode == "rb":
                if path not in self.store:
                    raise FileNotFoundError(path)
                return io.BytesIO(self.store[path].getvalue())
            return Upload(self, path)

    Store.store = {}
    Store.pseudo_dirs = [""]
    return Store()


def _path(url: str) -> RemotePath:
    path = as_path(url)
    assert isinstance(path, RemotePath)
    return path


def put_tree(local: Path, prefix: RemotePath) -> None:
    """Put all files beneath a local folder beneath a prefix."""
    for file in sorted(local.rglob("*")):
        if file.is_file():
            prefix.joinpath(file.relative_to(local)).write_bytes(file.read_bytes())


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the requests that this process sends to S3, by operation (``GetObject``)."""
    import s3fs

    counts: Counter[str] = Counter()
    real = s3fs.S3FileSystem._call_s3

    async def counted(self: object, method: str, *others: object, **values: object) -> object:
        counts["".join(word.capitalize() for word in method.split("_"))] += 1
        return await real(self, method, *others, **values)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return counts
