"""Workers that are actors of a Ray cluster. Ray is imported only here, and only when asked for.

Ray carries the messages, and tells when an actor has died. Which unit is tried again, and where, is
the dispatcher's business: Ray restarts and repeats nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import re
import secrets
import socket
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..._version import __version__
from ...errors import BackendError, BackendUnavailableError
from ...files import output_error, temporary_path
from ...machine import cpu_threads
from ...remote import is_remote
from ...wording import Note, counted, first_line, printable
from ..backend_choice import MOST_CONVERTERS
from ..report import versions
from . import Share, import_path, plan_of_worker
from .messages import Crashed, Done, FromWorker, Progress, Raised, ToWorker
from .ray_actor import RayWorker, Surroundings
from .transport import Link

if TYPE_CHECKING:
    from ..plan import JobPlan

_OfRay: TypeAlias = Any
"""What Ray takes and returns, whose types depend on what it is made of."""

_TAKE = 1.0
"""Seconds that an actor waits for something to tell before it answers nevertheless."""

_CPUS = 4
"""The most CPUs that a worker asks for where neither ``--threads`` nor ``--workers`` says it. A
choice: a worker of few CPUs finds room beside other jobs, and one of several shares a model."""

_METHODS = 3
"""Methods of an actor that may run at once, one call of each. Nothing depends on their order: a
message follows the answer to the one before it."""

_REACHED = 10.0
"""Seconds for a connection to the cluster. Ray itself tries for minutes where nobody answers."""

_LOOKS = 5.0
"""Seconds between two looks whether the cluster has a machine left."""

_NO_MACHINE = (
    "the Ray cluster is lost: Ray has ended on this machine, or on the last one that there was; "
    "start it again, unless this command had started it"
)

_MOST_OF_REASON = 120
"""Characters of Ray's own reason that a message shows."""

_MOST_OF_ERROR = 300
"""Characters of Ray's error that a message shows where the cluster cannot be used."""

_WAITED = 15.0
"""Seconds without a worker after which the user is told what is waited for."""


class Actors:
    """A `Transport`: actors of a Ray cluster."""

    def __init__(self, plan: JobPlan) -> None:
        self._plan = plan
        self.count = 0
        self._is_ours = False
        """Whether this object has connected to Ray, and ends that."""
        self._is_lost = False
        """Ray has ended on this machine: its core ends this process where it is asked for more."""
        self._token: Path | None = None
        self._options: Mapping[str, _OfRay] = {}
        """What Ray is asked for with each actor."""
        self._surroundings: Surroundings
        self._stored_plan: _OfRay
        """The pickled plan in Ray's store, which brings it to each machine once."""
        self._waits_since: float | None = None
        """When the actors were asked for, as long as none has started."""
        self._looks_at = 0.0
        """When it is looked next whether the cluster has a machine."""

    def open(self) -> Iterable[Note]:
        """Connect to the cluster, or start one, and decide on the workers. Raises BackendError."""
        ray = _loaded()
        is_local = False
        if not ray.is_initialized():
            self._is_ours = True
            address = self._plan.options.ray_address or os.environ.get("RAY_ADDRESS") or None
            if address in (None, "auto"):
                address = _on_this_machine(address)
            elif address != "local":
                _check(address)
            is_local = _connect(address)
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = [node["Resources"] for node in alive]
        share, asked = self._decide(nodes)
        self._options = asked
        plan = plan_of_worker(self._plan, share)
        self._stored_plan = ray.put(pickle.dumps(plan))
        self._surroundings = self._surroundings_here()
        self._waits_since = time.monotonic()
        what = "a Ray cluster was started for this command" if is_local else "on the Ray cluster"
        return [Note(None, f"{what}: {counted(self.count, 'worker')} of {self._each}")]

    @property
    def _each(self) -> str:
        """What an actor asks for, in words."""
        words = counted(self._options["num_cpus"], "CPU")
        if "num_gpus" in self._options:
            words += f" and {self._options['num_gpus']:g} GPU"
        return words

    def _decide(self, nodes: Sequence[Mapping[str, float]]) -> tuple[Share, Mapping[str, _OfRay]]:
        """Decide how many workers there are; return the share of each, and what Ray is asked for.

        ``nodes``: the resources of the machines that the cluster has now.
        """
        from ...backends import default_contexts

        options, schedule = self._plan.options, self._plan.schedule
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        most, total = max(cpus, default=0), sum(cpus)
        units, videos = self._plan.units, self._plan.videos
        pieces = len(units) + sum(video.stretches - 1 for video in videos)
        asked: dict[str, _OfRay] = {}
        device, threads = "cpu", options.threads
        if self._plan.backend.device != "cpu":
            # Ray lets an actor see its own GPUs only, so it is the first.
            device, gpus = "cuda:0", options.ray_gpus or 1.0
            asked["num_gpus"] = gpus
            held = sum(int(node.get("GPU", 0) / gpus) for node in nodes)
            self.count = options.workers or max(1, min(held, pieces))
        elif options.workers is not None:
            self.count = options.workers
        else:
            threads = threads or max(1, min(_CPUS, most))
            self.count = max(1, min(sum(each // threads for each in cpus), pieces))
        threads = threads or max(1, min(total // self.count, most))
        share = Share(
            device=device,
            threads=threads,
            contexts=default_contexts("cpu", threads) if device == "cpu" else schedule.contexts,
            converters=min(threads, MOST_CONVERTERS),
        )
        return share, asked | {"num_cpus": threads}

    def _surroundings_here(self) -> Surroundings:
        """Return what the actors' machines must share with this one, and write the token."""
        plan, content = self._plan, secrets.token_bytes(16)
        sources = [entry.source for entry in plan.entries if not is_remote(entry.source)]
        inputs = next((source for source in sources if source.exists()), None)
        if plan.folder is not None and not is_remote(plan.folder):
            token = temporary_path(plan.folder / "token")
            try:
                token.write_bytes(content)
            except OSError as error:
                raise output_error(token, error) from error
            self._token = token
        is_local = self._token is not None or inputs is not None
        engine = plan.model.card.path if plan.model.engine is not None else None
        return Surroundings(
            host=socket.gethostname(),
            versions=versions(),
            folder=Path.cwd() if is_local else None,
            token=self._token,
            content=content,
            inputs=inputs,
            engine=engine,
        )

    def start(self, number: int) -> _Actor:
        """Ask for the actor of this number. It starts when the cluster has room for it."""
        import ray

        remote: _OfRay = ray.remote
        made = remote(
            **self._options,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=_METHODS,
        )
        return _Actor(made(RayWorker).remote(), self._surroundings, self._stored_plan)

    def hear(self, links: Sequence[Link], seconds: float) -> Iterator[tuple[Link, FromWorker]]:
        """Yield the messages that arrive within some time, or have arrived."""
        import ray

        actors = [link for link in links if isinstance(link, _Actor)]
        waited = {actor.answer: actor for actor in actors if actor.answer is not None}
        if waited:
            at_once = any(actor.inbox for actor in actors)
            ray.wait(list(waited), timeout=0 if at_once else seconds)
            arrived, _ = ray.wait(list(waited), num_returns=len(waited), timeout=0)
            for answer in arrived:
                waited[answer].receive()
            self._is_lost = self._is_lost or any(actor.is_lost for actor in actors)
            self._tell_of_waiting(actors[0], started=bool(arrived))
        if any(not actor.has_started for actor in actors):
            self._check_machines()
        for actor in actors:
            while actor.inbox:
                yield actor, actor.inbox.popleft()

    def _tell_of_waiting(self, actor: _Actor, *, started: bool) -> None:
        """Tell once, in the name of ``actor``, where the cluster has no room for any worker."""
        if started:
            self._waits_since = None
        elif self._waits_since is not None and time.monotonic() > self._waits_since + _WAITED:
            self._waits_since = None
            text = (
                f"the Ray cluster has no room for a worker of {self._each} yet, and is waited for; "
                "`ray status` tells what it has, and with fewer --threads a worker needs less"
            )
            actor.inbox.append(Progress(0, 0, "", {}, (Note(None, text),)))

    def _check_machines(self) -> None:
        """Look now and then whether a machine is left, while actors wait. Raises BackendError."""
        import ray

        if time.monotonic() < self._looks_at:
            return
        self._looks_at = time.monotonic() + _LOOKS
        nodes: list[Mapping[str, object]] = ray.nodes()  # type: ignore[no-untyped-call]
        if not any(node["Alive"] for node in nodes):
            self._is_lost = True
            raise BackendError(_NO_MACHINE)

    def close(self) -> None:
        """Remove the token, and disconnect; a cluster that was started here ends with that."""
        if self._token is not None:
            self._token.unlink(missing_ok=True)
        if self._is_ours and not self._is_lost:
            import ray

            self._is_ours = False
            ray.shutdown()


class _Actor:
    """An actor as its supervisor sees it, a `Link`."""

    def __init__(self, actor: _OfRay, surroundings: Surroundings, plan: _OfRay) -> None:
        self._actor = actor
        self._how: str | None = None
        """How it ended, once it has."""
        self.has_started = False
        self.is_lost = False
        """Ray has ended on the machine of this command, and all actors with it."""
        self.inbox: deque[FromWorker] = deque()
        """Messages that have arrived and are not taken."""
        # An error of this call is one of the next, too.
        self._begun = actor.begin.remote(surroundings, plan)
        self.answer: _OfRay = self._actor.take.remote(_TAKE)
        """The reference to the next messages; None once it has ended."""

    def receive(self) -> None:
        """Take the messages that have arrived, or that it has died."""
        import ray

        try:
            ray.get(self._begun)
            messages: list[FromWorker] = ray.get(self.answer)
        except Exception as error:
            fatal = _lacks_this_package(error)
            if "owner has died" in str(error):
                self.is_lost = True
                fatal = BackendError(_NO_MACHINE)
            if fatal is not None:
                self.inbox.append(Raised(fatal))
            self._end(_how(error))
            return
        self.has_started = True
        self.inbox.extend(messages)
        if messages and isinstance(messages[-1], Done | Raised | Crashed):
            self._end("ended")
        else:
            self.answer = self._actor.take.remote(_TAKE)

    def _end(self, how: str) -> None:
        self._how = self._how or how
        self.answer = None

    def send(self, message: ToWorker) -> None:
        """Send a message; one that has died is found by `has_ended`."""
        if self._how is None:
            self._actor.give.remote(message)

    def rest(self) -> Iterator[FromWorker]:
        """Yield what has arrived and nobody has taken."""
        while self.inbox:
            yield self.inbox.popleft()

    def has_ended(self) -> bool:
        """Return whether the worker has ended."""
        return self._how is not None

    def kill(self) -> None:
        """End the actor, whether it has started or waits for that."""
        import ray

        with contextlib.suppress(Exception):
            ray.kill(self._actor)
        self._end("ended")

    def close(self) -> str:
        """End the actor, whose worker has ended, and return how that was."""
        how = self._how or "ended"
        self.kill()
        return how

    def last_words(self) -> str:
        """Return where its output is."""
        return "what it printed is in Ray's logs"


def _loaded() -> _OfRay:
    """Return Ray. Raises BackendUnavailableError where it cannot be loaded."""
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailableError(
            f"cannot work on a Ray cluster: the installed Ray cannot be loaded: "
            f"{first_line(error)}; pip uninstall ray, then pip install 'cyclegan-batch[ray]'"
        ) from error
    return ray


def _connect(address: str | None) -> bool:
    """Connect to a cluster, or start one; return whether one was started. Raises BackendError."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints nothing over the progress: neither its own, nor what actors print, nor deaths.
    quiet: _OfRay = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "include_dashboard": False,
    }
    is_local = address in (None, "local")
    with warnings.catch_warnings(), _modules_in_the_environment():
        warnings.simplefilter("ignore")
        try:
            if is_local:
                ray.init("local", num_cpus=cpu_threads(), **quiet)
            else:
                ray.init(address, **quiet)
        except Exception as error:
            ray.shutdown()
            # Which versions differ stands in the later lines.
            why = (" ".join(str(error).split())[:_MOST_OF_ERROR] or type(error).__name__).rstrip(
                "."
            )
            if is_local:
                raise BackendError(
                    f"cannot start a local Ray cluster: {why}; RAY_TMPDIR=/tmp names another "
                    "folder for its sockets and logs, whose path must be short"
                ) from error
            raise BackendError(
                f"cannot work with the Ray cluster {address}: {why}; `ray status` on its head node "
                "tells whether it runs, HOST:6379 and ray://HOST:10001 are the usual ports, one "
                "that asks for a token needs RAY_AUTH_MODE=token here and that token, in "
                "RAY_AUTH_TOKEN or ~/.ray/auth_token, and --ray-address local starts one for this "
                "command"
            ) from error
        finally:
            with contextlib.suppress(AttributeError):
                ray._private.worker._worker_logs_enabled = False
    return is_local


def _on_this_machine(asked: str | None) -> str | None:
    """Return the address of a cluster that runs here; None where ``asked`` is, and none does.

    Ray itself would try for many minutes where its note of the address is an old one. Raises
    BackendError where none runs and ``asked`` is ``auto``.
    """
    noted, running = _noted()
    for found in [noted] if asked is None else [noted, *running]:
        if found:
            with contextlib.suppress(BackendError):
                _check(found)
                return found
    if asked is None:
        return None
    raise BackendError(
        "no Ray cluster runs on this machine, where --ray-address auto looks for one; start one "
        "(ray start --head), give its address, or let --ray-address local start one for this "
        "command"
    )


def _noted() -> tuple[str | None, Iterable[str]]:
    """Return the address that ``ray start`` left here, and those of clusters that run here."""
    services: _OfRay = importlib.import_module("ray._private.services")
    return services.find_bootstrap_address(None), sorted(services.find_gcs_addresses())


def _check(address: str) -> None:
    """Refuse an address that is none, and one where no Ray answers. Raises BackendError."""
    match = re.fullmatch(r"(?:ray://)?\[?([^/@\s]+?)\]?:([0-9]{1,5})", address)
    if match is None:
        raise BackendError(
            f"{printable(address)} is no address of a Ray cluster; it is HOST:PORT, "
            "ray://HOST:PORT, auto or local"
        )
    try:
        with socket.create_connection((match[1], int(match[2])), _REACHED) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(connection):
                raise BackendError(
                    f"what answers at {printable(address)} is no Ray cluster; the usual ports are "
                    "HOST:6379 and ray://HOST:10001, and 8265 is that of Ray's dashboard only"
                )
    except (OSError, OverflowError) as error:
        raise BackendError(
            f"nobody answers at {printable(address)}, the address of the Ray cluster: "
            f"{getattr(error, 'strerror', None) or error}; start the cluster (ray start --head), "
            "or check the address and what is open between here and there"
        ) from error


def _speaks_http2(connection: socket.socket) -> bool:
    """Return whether the other end answers as a server of gRPC does, which Ray's are.

    Both ends begin with a frame of settings, whose kind is 4 (RFC 9113, sections 3.4 and 4.1).
    """
    answer = b""
    with contextlib.suppress(OSError):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        while len(answer) < 4 and (more := connection.recv(4 - len(answer))):
            answer += more
    return answer[3:] == b"\4"


@contextlib.contextmanager
def _modules_in_the_environment() -> Iterator[None]:
    """Within the block, what is started finds the same modules as this process."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = import_path()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _how(error: Exception) -> str:
    """Return in words how an actor has died. Only Ray's message tells it."""
    lines = str(error).strip().splitlines() or [""]
    text, reason = "\n".join(lines), lines[-1]
    if "running low on memory" in text:
        how, reason = "ended by Ray for want of memory", lines[0]
    elif "node has died" in text:
        how = "lost with its machine"
    else:
        how = "lost"
        if detail := re.search(r"Worker exit detail: (.*)", text):
            reason = detail[1]
    place = re.search(r"\bip: ([^\s,]+)", text, re.IGNORECASE)
    where = f" on {place[1]}" if place else ""
    return f"{how}{where} (Ray: {reason.strip().partition('. ')[0][:_MOST_OF_REASON]})"


def _lacks_this_package(error: Exception) -> BackendError | None:
    """Return the error for machines that lack this package, or have another version of it."""
    text = str(error)
    if not re.search(r"(ModuleNotFound|Import|Attribute)Error: .*(cyclegan_batch|RayWorker)", text):
        return None
    return BackendError(
        f"the machines of the Ray cluster lack cyclegan-batch {__version__}, which this machine "
        "has; install it there, in the image or the environment from which Ray was started"
    )
