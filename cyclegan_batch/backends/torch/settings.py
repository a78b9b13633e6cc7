"""What torch has as settings of the whole process and a context needs for itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch


class CudaSetting:
    """How CUDA multiplies float32, and whether cuDNN tries its kernels out before it chooses.

    torch's default is TF32 in convolutions (torch 2.15), and no trials. Contexts that need the same
    setting may compute at the same time; a context that needs another one waits for them. After the
    last of them the setting from before the first is restored. Replaying a graph needs no setting.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._how = ("", False)
        self._before: tuple[list[str], bool] = [], False

    @contextlib.contextmanager
    def set_to(self, how: str, *, search: bool = False) -> Iterator[None]:
        """Let CUDA multiply as ``ieee`` or as ``tf32`` within the block.

        ``search``: let cuDNN try its kernels for each new shape, and keep the fastest.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._users or self._how == (how, search))
            if not self._users:
                self._how = how, search
                cudnn = torch.backends.cudnn
                before = [switch.fp32_precision for switch in self._switches()]
                self._before = before, cudnn.benchmark
                self._set([how] * len(before), search)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if not self._users:
                    self._set(*self._before)
                    self._changed.notify_all()

    def _set(self, precisions: list[str], search: bool) -> None:
        for switch, precision in zip(self._switches(), precisions, strict=True):
            switch.fp32_precision = precision
        torch.backends.cudnn.benchmark = search

    @staticmethod
    def _switches() -> tuple[Any, ...]:
        backends: Any = torch.backends  # torch's type stubs lack these attributes
        # Not the older `allow_tf32`: torch raises on reading it while cuDNN's two settings differ.
        return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul


CUDA_SETTING = CudaSetting()
"""The one of this process."""


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads within the block."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
