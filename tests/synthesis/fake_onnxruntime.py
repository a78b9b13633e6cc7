"""A stand-in for an onnxruntime that was built for CUDA, for tests without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from cyclegan_batch.frames import Pixels


class FakeSession:
    """A session of onnxruntime: it reports the providers that started, and computes identity."""

    first = "CUDAExecutionProvider"
    sessions: list[SimpleNamespace] = []  # noqa: RUF012
    fails: Exception | None = None
    off_by: int = 0
    """How many grey levels the GPU adds to each pixel."""
    on_cpu: tuple[str, ...] = ()
    """The kinds of those nodes, of forty, for which CUDA has no kernel."""

    def __init__(
        self, graph: bytes, options: Any, providers: list[Any], enable_fallback: int
    ) -> None:
        FakeSession.sessions.append(SimpleNamespace(options=options, providers=providers))
        assert enable_fallback == 0, "otherwise onnxruntime falls back to the CPU by itself"
        # onnxruntime 1.31 raises these errors (tried on a CPU).
        if options.entries.get("session.disable_cpu_ep_fallback") == "1":
            if "CPUExecutionProvider" in providers:
                raise RuntimeError("Conflicting session configuration: explicitly added the CPU EP")
            if self.on_cpu or self.first == "CPUExecutionProvider":
                raise RuntimeError("This session contains graph nodes that are assigned to the CPU")
        self.providers = providers
        self.recorded = options.entries.get("session.record_ep_graph_assignment_info") == "1"

    def get_providers(self) -> list[str]:
        return [self.first, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        if not self.recorded:
            raise RuntimeError("Session configuration entry is not enabled")
        kinds = {"CPUExecutionProvider": self.on_cpu, "CUDAExecutionProvider": ("Conv",) * 40}
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda k=kind: [SimpleNamespace(op_type=k)])
            for name in kinds
            for kind in kinds[name][len(self.on_cpu) if name.startswith("CUDA") else 0 :]
        ]

    def run(self, names: list[str], feed: dict[str, Pixels], options: Any = None) -> list[Pixels]:
        if options is not None and self.fails is not None:
            raise self.fails
        on_gpu = self.providers != ["CPUExecutionProvider"]
        return [feed["frames"] + np.uint8(self.off_by if on_gpu else 0)] * len(names)


class FakeOptions(SimpleNamespace):
    """The options of a session, whose entries the tests look at."""

    def __init__(self) -> None:
        super().__init__(entries={})

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value
