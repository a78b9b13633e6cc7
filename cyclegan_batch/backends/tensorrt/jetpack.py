"""Which TensorRT runs on which JetPack: the one place where these versions are written down.

`cyclegan_batch doctor` reads it on a Jetson, bundles tell it to their devices, and tests hold
README's table and the requirement of the extra ``tensorrt`` against it.

Sources: NVIDIA's release notes of JetPack 6 and 7, and for TensorRT 11 the pages "Migrating
TensorRT from 10.x to 11.x on Jetson/JetPack" of 11.2.1, 11.3.0, 11.4.0 and 11.4.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, ...]

NOT_FOR_JETPACK: tuple[Version, Version] = ((11, 2), (11, 4, 1))
"""The versions of TensorRT that support no JetPack: from the first of these on, up to the second,
which is not among them."""


@dataclass(frozen=True)
class JetPack:
    """A release of JetPack, up to the next one in `JETPACKS`."""

    version: str
    linux: Version
    """The first release of Jetson Linux (``/etc/nv_tegra_release``) that belongs to it."""
    tensorrt: str
    """The TensorRT that belongs to it."""
    cuda: int
    """The major version of its CUDA."""
    python: str
    """The Python of its Ubuntu."""
    requirement: str | None
    """What to give ``pip install`` beside the extra ``tensorrt``; None where that does not run,
    since it is for CUDA 13 and TensorRT 10.16.1 or later."""

    @property
    def words(self) -> str:
        """Return the release and its TensorRT: ``JetPack 6 (TensorRT 10.3)``."""
        return f"JetPack {self.version} (TensorRT {self.tensorrt})"


JETPACKS = (
    JetPack("6", (36,), "10.3", 12, "3.10", None),
    JetPack("7.0", (38,), "10.13", 13, "3.12", None),
    JetPack("7.2", (39, 2), "10.16.2", 13, "3.12", "tensorrt-cu13==10.16.*"),
    JetPack("7.2.2", (39, 2, 2), "11.4.1", 13, "3.12", "tensorrt-cu13>=11.4.1,<12"),
)
"""The oldest first. JetPack 7.0 and 7.1 are for Thor alone, 7.2 and later for Orin and Thor. 7.2 is
Jetson Linux 39.2.0 and 7.2.1 is 39.2.1; that 7.2.2 is 39.2.2 is concluded from these."""


def jetpack_of(linux: Version) -> JetPack | None:
    """Return the JetPack of a release of Jetson Linux; None for one older than JetPack 6."""
    return next((each for each in reversed(JETPACKS) if each.linux <= linux), None)


def fault_of(jetpack: JetPack | None, tensorrt: str | None) -> str | None:
    """Return what is wrong with the extra ``tensorrt`` on a Jetson, and the remedy; else None.

    ``jetpack``: None for one older than 6. ``tensorrt``: the version of ``tensorrt-cu13`` that is
    installed, None where it is not.
    """
    bundle = "use a bundle, whose edge.py needs only trtexec (cyclegan-batch export --bundle)"
    if jetpack is None:
        return f"a JetPack older than 6 has no TensorRT that reads these files; {bundle}"
    if jetpack.cuda < 13:
        return (
            f"the extra tensorrt is for CUDA 13, and {jetpack.words} has CUDA {jetpack.cuda}: it "
            f"cannot run here; {bundle}"
        )
    if jetpack.requirement is None:
        return (
            f"the extra tensorrt is for TensorRT 10.16.1 or later, and {jetpack.words} is older; "
            f"update to JetPack 7.2, or {bundle}"
        )
    if tensorrt is None or _fits(jetpack, version_of(tensorrt)):
        return None
    return (
        f"tensorrt-cu13 {tensorrt} does not support {jetpack.words}; "
        f'pip install "cyclegan-batch[tensorrt]" "{jetpack.requirement}"'
    )


def version_of(text: str) -> Version:
    """Return the numbers that a version begins with: ``10.16.1.11`` is (10, 16, 1, 11)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _fits(jetpack: JetPack, tensorrt: Version) -> bool:
    """Return whether this TensorRT meets the requirement of ``jetpack``."""
    own = version_of(jetpack.tensorrt)
    return tensorrt[:2] == own[:2] if own < (11,) else tensorrt >= own
