"""``--family`` offers every family, and is checked without torch."""

from __future__ import annotations

import pickle
from typing import get_args

import pytest

from cyclegan_batch.options import FamilyName
from tests.needs import package

package("torch")

from cyclegan_batch.models.checkpoints.families import FAMILIES, Family  # noqa: E402


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_goes_to_another_process(family: Family) -> None:
    """A plan that runs a checkpoint in torch holds it."""
    assert pickle.loads(pickle.dumps(family)) == family


def test_the_option_offers_every_family() -> None:
    assert get_args(FamilyName) == tuple(family.name for family in FAMILIES)
