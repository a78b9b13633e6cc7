"""Measure a job from and to an object store beside the same job on the local disk.

    python benchmarks/store.py PHOTOGRAPHS                  all four ways, and the store alone
    python benchmarks/store.py PHOTOGRAPHS --latency 20     each request waits 20 ms first
    python benchmarks/store.py PHOTOGRAPHS --plan           what an input costs a plan

PHOTOGRAPHS, a folder, is cut into images of 256², no two of them alike. They go through an identity
generator as single files and in tars, from and to the local disk and a store: moto's S3 server at
the loopback address, in a process of its own, which also counts the requests. In each round all
ways take turns; the ratios are those within a round. RESULTS.md holds the table.

The server is written in Python, slow, and has the cores together with what is measured. So in each
round bare loops copy the same objects as well, one and 32 at once. The best of them is the ceiling,
of which the share that the command reaches is printed. With an identity generator a CPU has nothing
to do but to read and write the images, so what a store costs weighs as much as it can.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY)]

BUCKET = "bench"
AT_ONCE = 32
"""Requests under way in the faster of the bare loops."""
COUNTS = "/counts-of-this-benchmark"
"""The path under which the server tells its counts."""


# The server


def serve(latency: float) -> None:
    """Serve S3 until standard input ends; print the port. The first thing is to be imported."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    inner = DomainDispatcherApplication(create_backend_app)
    counts: Counter[str] = Counter()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == COUNTS:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps({"requests": counts, "cpu": time.process_time()}).encode()]
        counts[kind_of(environ)] += 1
        time.sleep(latency)
        return inner(environ, start_response)

    server = make_server("127.0.0.1", 0, application, True, request_handler=MotoRequestHandler)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for each request
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


def kind_of(environ: dict[str, Any]) -> str:
    """Return the kind of a request of S3: its method, ``LIST``, or one of a multipart upload."""
    method, path, query = (environ[key] for key in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
    if method == "GET" and not path.strip("/").partition("/")[2]:
        return "LIST"
    return "multipart" if "upload" in query else method


@contextmanager
def server(latency: float) -> Iterator[str]:
    """Run the server in a process of its own; yield its URL, which botocore gets as well."""
    command = [sys.executable, __file__, "--serve", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            os.environ |= {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            yield url
        finally:
            process.stdin.close()


@dataclass(frozen=True)
class Load:
    """What something took."""

    wall: float
    cpu: float
    """CPU seconds of this process, without the server's."""
    server_cpu: float
    requests: Counter[str]


@contextmanager
def measured(url: str, loads: list[Load]) -> Iterator[None]:
    """Append what the block takes to ``loads``."""
    requests, server_cpu = counts(url)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    requests_after, server_cpu_after = counts(url)
    loads.append(Load(wall, cpu, server_cpu_after - server_cpu, requests_after - requests))


def counts(url: str) -> tuple[Counter[str], float]:
    """Return the requests of each kind that the server got, and its CPU seconds."""
    with urllib.request.urlopen(url + COUNTS) as answer:
        told = json.load(answer)
    return Counter(told["requests"]), told["cpu"]


# The images


def write_inputs(photographs: Path, folder: Path, tars: Path, count: int, per_tar: int) -> None:
    """Write ``count`` JPEGs of 256² into ``folder``, and the same in tars into ``tars``."""
    import cv2

    from benchmarks.images import crops

    images = crops(photographs)
    folder.mkdir()
    tars.mkdir()
    whole = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    parameters = (cv2.IMWRITE_JPEG_QUALITY, 95, *whole)
    for first in range(0, count, per_tar):
        with tarfile.open(tars / f"{first // per_tar:05}.tar", "w") as archive:
            for number in range(first, min(first + per_tar, count)):
                image = images[number % len(images)][:, :, ::-1].copy()
                image[0, 0] = number % 256, number // 256 % 256, 0
                content = cv2.imencode(".jpg", image, parameters)[1].tobytes()
                member = tarfile.TarInfo(f"{number:06}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                (folder / member.name).write_bytes(content)


def boto() -> Any:
    """Return a client of S3 for `AT_ONCE` threads."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(max_pool_connections=AT_ONCE))


def upload(folder: Path, prefix: str) -> list[str]:
    """Put the files of ``folder`` under ``prefix``; return their keys."""
    client = boto()

    def put(path: Path) -> str:
        key = f"{prefix}/{path.name}"
        client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        return key

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(put, sorted(folder.iterdir())))


# The store alone


def by_boto(keys: Sequence[str], at_once: int, target: str) -> None:
    """Copy objects through this process by boto3, ``at_once`` threads side by side."""
    client = boto()

    def copy(key: str) -> None:
        content = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        client.put_object(Bucket=BUCKET, Key=f"{target}/{key}", Body=content)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(copy, keys))


def by_fsspec(keys: Sequence[str], at_once: int, target: str) -> None:
    """Copy objects through this process by s3fs, ``at_once`` tasks side by side."""
    import fsspec
    from fsspec.asyn import sync

    store = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)

    async def copy_all() -> None:
        turn = asyncio.Semaphore(at_once)

        async def copy(key: str) -> None:
            async with turn:
                # With more than one, s3fs asks for the size of the object first.
                content = await store._cat_file(f"{BUCKET}/{key}", max_concurrency=1)
                await store._pipe_file(f"{BUCKET}/{target}/{key}", content)

        await asyncio.gather(*map(copy, keys))

    sync(store.loop, copy_all)


BARE: dict[str, Callable[[Sequence[str], int, str], None]] = {
    "boto3": by_boto,
    "fsspec": by_fsspec,
}


def requests_alone(
    keys: Sequence[str], at_once: int, bodies: Sequence[bytes]
) -> tuple[float, float]:
    """Return GETs and PUTs a second by boto3, the one after the other."""
    client = boto()
    rates = []
    with ThreadPoolExecutor(at_once) as pool:
        for one in (
            lambda key, body: client.get_object(Bucket=BUCKET, Key=key)["Body"].read(),
            lambda key, body: client.put_object(Bucket=BUCKET, Key=f"again/{key}", Body=body),
        ):
            begin = time.perf_counter()
            list(pool.map(one, keys, bodies))
            rates.append(len(keys) / (time.perf_counter() - begin))
    return rates[0], rates[1]


# The comparison

LOCAL, LOCAL_TARS = "local folder", "local tars"
IMAGES, TARS = "images of the store", "tars of the store"
WAYS = (LOCAL, LOCAL_TARS, IMAGES, TARS)


def translated(source: str, output: str, model: Path) -> None:
    """Translate ``source`` in this process."""
    from cyclegan_batch import translate

    report = translate(source, output, model=model, backend="onnxruntime")
    assert report.status == "whole", report.summary


def run(arguments: argparse.Namespace, url: str, work: Path) -> None:
    """Measure all ways in rounds, and print the ratios."""
    from benchmarks.pipeline import write_identity

    model = write_identity(work / "identity.onnx")
    count = arguments.count
    write_inputs(arguments.photographs, work / "in", work / "tars", count, arguments.per_tar)
    boto().create_bucket(Bucket=BUCKET)
    images, tars = upload(work / "in", "in"), upload(work / "tars", "tars")
    bodies = [path.read_bytes() for path in sorted((work / "in").iterdir())]
    sources = {
        LOCAL: str(work / "in"),
        LOCAL_TARS: str(work / "tars"),
        IMAGES: f"s3://{BUCKET}/in/",
        TARS: f"s3://{BUCKET}/tars/",
    }
    size = sum(map(len, bodies)) / count
    print(f"{count} JPEG of 256², {size:.0f} bytes each, {len(tars)} tars", flush=True)
    for at_once in (1, AT_ONCE):
        some = slice(None, count if at_once > 1 else count // 5)
        gets, puts = requests_alone(images[some], at_once, bodies[some])
        print(f"  boto3, {at_once} at once: {gets:.0f} GET/s, {puts:.0f} PUT/s", flush=True)
    loads: dict[str, list[Load]] = {}
    rates: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        ways: dict[str, Callable[[], None]] = {}
        for way in arguments.ways:
            base = f"s3://{BUCKET}/" if sources[way].startswith("s3:") else f"{work}/"
            output = f"{base}out{number}-{WAYS.index(way)}/"
            ways[way] = lambda way=way, output=output: translated(sources[way], output, model)
        for name, copy in BARE.items():
            for at_once in (1, AT_ONCE):
                some = images if at_once > 1 else images[: count // 5]
                ways[f"bare copy of images by {name}, {at_once} at once"] = (
                    lambda copy=copy, some=some, at_once=at_once, number=number: copy(
                        some, at_once, f"copy{number}"
                    )
                )
        ways["bare copy of tars by boto3, 1 at once"] = lambda number=number: by_boto(
            tars, 1, f"copy{number}"
        )
        for way, do in ways.items():
            took: list[Load] = []
            with measured(url, took):
                do()
            if number:  # the first round imports what is needed, and warms the caches
                done = count // 5 if "of images" in way and way.endswith(", 1 at once") else count
                loads.setdefault(way, []).append(took[0])
                rates.setdefault(way, []).append(done / took[0].wall)
                print(f"  round {number}, {way}: {done / took[0].wall:.0f} images/s", flush=True)
    report(loads, rates, count)


def plan_cost(photographs: Path, url: str, work: Path, count: int) -> None:
    """Print the memory and the CPU time that an input takes in a plan, of a folder and of a store.

    It is the difference of a plan of ``count`` images and of one of a quarter.
    """
    from benchmarks.pipeline import write_identity
    from cyclegan_batch.api import plan_translation

    model = write_identity(work / "identity.onnx")
    boto().create_bucket(Bucket=BUCKET)
    for part, number in (("first", 50), ("quarter", count // 4), ("all", count)):
        write_inputs(photographs, work / part, work / f"{part}-tars", number, number)
        upload(work / part, part)
    for where, base in (("a folder", f"{work}/"), ("a store", f"s3://{BUCKET}/")):
        took = {}
        for part in ("first", "quarter", "all"):
            resident, begin = _resident(), time.process_time()
            plan = plan_translation(f"{base}{part}/", f"{base}to/{part}/", model=model)
            took[part] = (_resident() - resident, time.process_time() - begin)
            assert len(plan.entries) == len(list((work / part).iterdir()))
            kept.append(plan)
        size, seconds = (
            (whole - quarter) / (count - count // 4)
            for whole, quarter in zip(took["all"], took["quarter"], strict=True)
        )
        print(f"{where}: {size:,.0f} bytes and {1e6 * seconds:,.0f} CPU µs an input")


kept: list[object] = []
"""Plans, so that the memory of one is not used by the next."""


def _resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(loads: dict[str, list[Load]], rates: dict[str, list[float]], count: int) -> None:
    """Print a row for each way: medians, and least and most of the ratios within a round."""
    bare = [way for way in rates if way.endswith(f"{AT_ONCE} at once")]
    ceilings = {
        IMAGES: [max(each) for each in zip(*(rates[way] for way in bare), strict=True)],
        TARS: rates["bare copy of tars by boto3, 1 at once"],
    }
    print(
        "| way | images/s | over the local folder's | CPU ms an image | over the local folder's |",
        end="",
    )
    print(" the server's CPU ms | requests | of the bare copies |")
    print("|---|---|---|---|---|---|---|---|")
    for way, each in loads.items():
        images = [load.wall * rate for load, rate in zip(each, rates[way], strict=True)]
        cpu = [1000 * load.cpu / n for load, n in zip(each, images, strict=True)]
        server_cpu = [1000 * load.server_cpu / n for load, n in zip(each, images, strict=True)]
        cells = [way, f"{statistics.median(rates[way]):.0f}"]
        cells.append(ratio(rates[way], rates[LOCAL]) if LOCAL in rates else "")
        cells.append(f"{statistics.median(cpu):.2f}")
        local = [1000 * load.cpu / count for load in loads.get(LOCAL, ())]
        cells.append(ratio(cpu, local) if local else "")
        cells.append(f"{statistics.median(server_cpu):.2f}")
        kinds = sorted(each[-1].requests.items())
        cells.append(", ".join(f"{number} {kind}" for kind, number in kinds) or "none")
        cells.append(ratio(rates[way], ceilings[way]) if way in ceilings else "")
        print("| " + " | ".join(cells) + " |")


def ratio(one: Sequence[float], other: Sequence[float]) -> str:
    """Return the median of the ratios within a round, with least and most."""
    each = [a / b for a, b in zip(one, other, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(float(sys.argv[2]) / 1000)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000, help="images")
    parser.add_argument("--per-tar", type=int, default=250, help="images of a tar")
    parser.add_argument("--latency", type=float, default=0, help="ms that a request waits")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--plan", action="store_true", help="measure the plans alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, server(arguments.latency) as url:
        if arguments.plan:
            plan_cost(arguments.photographs, url, Path(name), arguments.count)
        else:
            run(arguments, url, Path(name))


if __name__ == "__main__":
    main()
