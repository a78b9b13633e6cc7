"""The first frame of a source, as the preview and the export's samples take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from cyclegan_batch.errors import InputError
from cyclegan_batch.frames import Frame
from cyclegan_batch.media import Dropped, first_frame

FRAME = Frame(3, np.full((2, 2, 3), 7, np.uint8))
DAMAGED = Dropped("a.ts, frame 2", InputError("a.ts, frame 2: cannot be decoded"))


class Items:
    """A source of these items."""

    notes = ()

    def __init__(self, *items: Frame | Dropped) -> None:
        self.items = items
        self.closed = 0

    def read(self) -> Iterator[Frame | Dropped]:
        yield from self.items

    def converter(self) -> Callable[[Frame | Dropped], Frame | Dropped]:
        return lambda item: item

    def close(self) -> None:
        self.closed += 1


def test_a_damaged_frame_is_passed_over() -> None:
    source = Items(DAMAGED, FRAME, Dropped("b", InputError("never read")))
    assert (first_frame(source, "a.ts") == 7).all()
    assert source.closed == 1


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ((), r"^a\.ts: no frame was found at this place; check the file$"),
        ((DAMAGED, Dropped("b", InputError("later"))), r"^a\.ts, frame 2: cannot be decoded$"),
    ],
)
def test_without_a_frame_the_first_error_is_raised_errors(
    items: tuple[Dropped, ...], message: str
) -> None:
    source = Items(*items)
    with pytest.raises(InputError, match=message):
        first_frame(source, "a.ts")
    assert source.closed == 1
