"""The time that a measurement may take, and how it is watched and stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_WATCH = 0.1
"""Seconds between two looks at a measurement that runs."""

_PATIENCE = 4.0
"""Seconds that a stopped measurement gets to end, so that Ctrl-C takes at most five in all."""

_Result = TypeVar("_Result")


class Budget:
    """The seconds that are left, and what is done with them at the moment."""

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        watch: Callable[[str, float], None] = lambda step, left: None,
    ) -> None:
        """``watch`` gets the step and the seconds left, about ten times a second."""
        self.seconds, self.clock = seconds, clock
        self._watch = watch
        self._begin = clock()
        self._excluded = 0.0
        self.step = ""
        """What is being done, in words."""

    @property
    def used(self) -> float:
        """Seconds since the beginning, without those that do not count."""
        return self.clock() - self._begin - self._excluded

    @property
    def left(self) -> float:
        """Seconds until the end; negative behind it."""
        return self.seconds - self.used

    @property
    def excluded(self) -> float:
        """Seconds that did not count."""
        return self._excluded

    def exclude(self, seconds: float) -> None:
        """Do not count ``seconds`` that have passed."""
        self._excluded += seconds

    def until(self, share: float) -> float:
        """Return the seconds until this share of the whole is used; negative behind it."""
        return share * self.seconds - self.used

    def look(self) -> None:
        """Show the state; raises KeyboardInterrupt where the user asked to stop."""
        self._watch(self.step, max(0.0, self.left))

    def attend(
        self, work: Callable[[], _Result], *, cancel: Callable[[], None] = lambda: None
    ) -> _Result:
        """Run ``work`` in a thread, and return its result or raise its error.

        The calling thread stays out of native code, so that Ctrl-C reaches it at once. It then
        calls ``cancel`` and waits a few seconds for ``work`` to end. A runtime that does not end
        until then goes on in its thread; see `has_left_threads`.
        """
        results: list[_Result] = []
        errors: list[BaseException] = []
        ended = threading.Event()

        def guarded() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=guarded, name=_THREAD, daemon=True)
        thread.start()
        try:
            while not ended.wait(_WATCH):
                self.look()
        except BaseException:
            cancel()
            ended.wait(_PATIENCE)
            raise
        if errors:
            raise errors[0]
        return results[0]


_THREAD = "bench"


def has_left_threads() -> bool:
    """Return whether a stopped measurement still runs in this process."""
    return any(thread.name == _THREAD for thread in threading.enumerate())
