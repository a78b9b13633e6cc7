"""``--family`` offers every family, and is checked without torch."""

from __future__ import annotations

from typing import get_args

from cyclegan_batch.options import FamilyName
from tests.needs import package

package("torch")

from cyclegan_batch.models.families import FAMILIES  # noqa: E402


def test_the_option_offers_every_family() -> None:
    assert get_args(FamilyName) == tuple(family.name for family in FAMILIES)
