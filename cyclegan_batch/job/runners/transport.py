"""What the supervision of workers needs of them, whether they are processes or actors of a cluster.

A worker may end at any moment. So no call here fails where one has ended: `Link.has_ended` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from ...wording import Note
from .messages import FromWorker, ToWorker


class Link(Protocol):
    """The connection to one worker that was started."""

    def send(self, message: ToWorker) -> None:
        """Send a message, where the worker has not ended."""

    def rest(self) -> Iterator[FromWorker]:
        """Yield what a worker that has ended has sent and nobody has taken."""

    def has_ended(self) -> bool:
        """Return whether the worker has ended, by itself or not."""

    def kill(self) -> None:
        """End the worker at once, where it has not ended."""

    def close(self) -> str:
        """Release what belongs to a worker that has ended; return in words how it ended.

        As in ``killed by SIGSEGV``, what stands behind "the worker process was".
        """

    def last_words(self) -> str:
        """Return what a worker that has ended printed last, as a sentence without its end."""


class Transport(Protocol):
    """How workers of one kind are started and heard. One thread calls all methods."""

    @property
    def count(self) -> int:
        """How many workers there are to be; known once the transport is open."""

    def open(self) -> Iterable[Note]:
        """Prepare to start workers; return what the user should know. Raises BackendError."""

    def start(self, number: int) -> Link:
        """Start the worker of this number, from 0. Raises BackendError."""

    def hear(self, links: Sequence[Link], seconds: float) -> Iterator[tuple[Link, FromWorker]]:
        """Yield the messages of workers that have arrived, or arrive within some time.

        What is not taken from the iterator is kept.
        """

    def close(self) -> None:
        """Release everything. No worker is left that has not ended, or it ends with this."""
