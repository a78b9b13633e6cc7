"""How many workers a run has, and how many frames may be between them."""

from __future__ import annotations

from dataclasses import dataclass

LOT_BYTES = 3 << 18
"""Bytes of pixels that the workers of the pipeline take and hand on together, at most, unless a
single frame is larger."""

_MOST_IN_LOT = 4


def lot_of(frame_bytes: int) -> int:
    """Return how many frames, each of at most ``frame_bytes``, a worker may take at once."""
    return max(1, min(_MOST_IN_LOT, LOT_BYTES // frame_bytes))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many workers a run has, and how many frames may wait between them."""

    batch_size: int
    """Frames per call of the network."""
    contexts: int
    """Backends that work side by side."""
    converters: int
    """Workers of each of the two conversions."""
    lot: int = 1
    """Frames, or batches, that a worker may take at once and hand on together."""
    encodes_video: bool = True
    """The threads of an encoder run beside the workers, which give way to them."""
    workers: int = 1
    """Processes, each of which runs a pipeline; with one, the process that was started does it. The
    other numbers are for all of them together on a CPU, and for each of them on a GPU."""
    filters: bool = False
    """There is a filter against flicker behind the network."""
    kept: int = 0
    """Decoded frames that are kept, since they may be in front of the next stretch."""

    @property
    def stages(self) -> dict[str, int]:
        """The workers of each stage, in the order of the flow, by the names that reports use."""
        before = {"read": 1, "to rgb": self.converters, "network": self.contexts}
        behind = {"from rgb": self.converters, "write": 1}
        return before | ({"temporal": 1} if self.filters else {}) | behind

    @property
    def converter_queue(self) -> int:
        """Frames that may wait in front of or behind a conversion: two for each worker."""
        return 2 * self.converters

    @property
    def network_queue(self) -> int:
        """Frames that may wait in front of or behind the network: one batch more than contexts."""
        return self.batch_size * (self.contexts + 1)

    @property
    def frames_in_flight(self) -> int:
        """The most frames that exist at once between reader and writer, in queues and workers."""
        in_queues = 2 * self.converter_queue + 2 * self.network_queue
        at_workers = 2 * self.converters + (2 * self.contexts + 1) * self.batch_size
        # The frame with which the next one is compared, and the batch with its result.
        kept = 1 + self.batch_size + self.kept
        if self.filters:
            # From the network to the filter each frame has its source; a queue and a worker more.
            in_queues += self.network_queue + self.converter_queue
            at_workers += (self.contexts + 1) * self.batch_size + 1
            kept += self.batch_size
        return self.lot * (in_queues + at_workers) + kept
