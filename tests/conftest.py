"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Return the folder of real models, clips and images; skip where it is absent."""
    folder = Path(os.environ.get("CYCLEGAN_BATCH_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set CYCLEGAN_BATCH_DATA")
    return folder
