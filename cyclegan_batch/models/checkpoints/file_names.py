"""What the name of a file tells of its generator: the direction, and how far the training was.

The names are those under which the projects themselves save:
``latest_net_G_A.pth`` (the reference implementation, CUT), ``netG_A2B.pth`` (aitorzip, leftthomas),
``G_AB_199.pth`` (PyTorch-GAN), ``g_A_last.pth.tar`` (Lornatang), ``Generator_A2B_Epoch100-….pth``
(bubbliiiing), ``G_XtoY.pkl`` (the courses), ``g12-40000.pkl`` (mnist-svhn-transfer).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ...options import Direction

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pth.tar", ".pkl", ".bin")
"""The endings of checkpoints."""

_DIRECTIONS: dict[Direction | None, str] = {
    "AtoB": r"_AB?|_?(?:A2B|AtoB|X2Y|XtoY)|(?<=\Ag)12",
    "BtoA": r"_BA?|_?(?:B2A|BtoA|Y2X|YtoX)|(?<=\Ag)21",
    None: "",
}
"""How a name says the direction, if at all. A letter that stands alone is the domain that is
read."""

_GENERATOR = r"(?:net_?)?g(?:en(?:erator)?)?(?:_model)?"

_STATE = r"latest|last|final|best|ema|(?:epoch|ep|iter|step)?[_-]?\d{1,9}"
"""How a name says how far the training was."""

_ENDING = "|".join(re.escape(suffix) for suffix in SUFFIXES)

_WHOLE_NETWORK = ("pytorch_model.bin", "model.safetensors")
"""The names of the Hugging Face hub, which say nothing of a network."""


class NamedGenerator(NamedTuple):
    """The file of a generator, by its name alone."""

    rank: tuple[int, int]
    """The file of the highest rank is the one to take: the last weights, then later epochs."""
    name: str

    @property
    def is_of_an_epoch(self) -> bool:
        """Whether its name says an epoch, and not that it is the last one."""
        return self.rank[0] == _OF_AN_EPOCH


_LAST, _OF_AN_EPOCH, _OTHER = 2, 1, 0


def has_checkpoint_name(name: str) -> bool:
    """Return whether a file of this name is a checkpoint."""
    return name.lower().endswith(SUFFIXES)


def direction_by_name(name: str) -> Direction | None:
    """Return the direction that the name of a file tells, None where it tells none."""
    for direction, words in _DIRECTIONS.items():
        if direction is None:
            continue
        # The reference implementation's names may have any text before them.
        reference = rf".*_net_G_{direction[0]}(?:{_ENDING})"
        if _rank(name, words) is not None or re.fullmatch(reference, name):
            return direction
    return None


def generators_by_name(
    names: Iterable[str],
) -> dict[Direction | None, tuple[NamedGenerator, ...]]:
    """Return the generators among the files of a folder by direction, the best one first.

    None is the direction of a generator whose name does not tell it.
    """
    found: dict[Direction | None, list[NamedGenerator]] = {}
    for name in sorted(names):
        for direction, words in _DIRECTIONS.items():
            rank = _rank(name, words)
            if rank is not None:
                found.setdefault(direction, []).append(NamedGenerator(rank, name))
                break
    return {
        direction: tuple(sorted(files, key=lambda file: file.rank, reverse=True))
        for direction, files in found.items()
    }


def _rank(name: str, direction: str) -> tuple[int, int] | None:
    """Return the rank of a file, None for one that is no generator of this direction."""
    if not direction and name in _WHOLE_NETWORK:
        return _OTHER, 0
    match = re.fullmatch(
        rf"(?:(?P<before>{_STATE})_)?{_GENERATOR}(?:{direction})"
        rf"(?:[_-](?P<after>{_STATE})(?:[_-].*)?)?(?:{_ENDING})",
        name,
        re.IGNORECASE,
    )
    if match is None:
        return None
    state = (match["before"] or match["after"] or "last").lower()
    if number := re.search(r"\d+", state):
        return _OF_AN_EPOCH, int(number[0])
    return (_LAST if state in ("latest", "last", "final") else _OTHER), 0
