"""A real generator of others in torch, against an image that its authors' code translated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import BackendUnavailableError
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import parity
from tests.needs import need

pytestmark = pytest.mark.corpus


@pytest.mark.behaviour(31, 33, 34)
def test_a_real_checkpoint_runs_as_it_is(corpus: Path) -> None:
    need("torch")
    folder = corpus / "models" / "horse2zebra_gan_compression"
    # A folder of the reference implementation's test model.
    model = open_model(folder)
    assert model.card.path == folder / "latest_net_G.pth"
    frames = np.array(Image.open(folder / "horse_input.png").convert("RGB"))[np.newaxis]
    theirs = np.array(Image.open(folder / "their_output_compressed.png").convert("RGB"))
    exact = open_backend(model, threads=1).infer(frames)
    # Their code truncates where ours rounds.
    assert parity(exact, theirs[np.newaxis]).max <= 1
    try:
        reduced = open_backend(model, precision="bf16", threads=1)
    except BackendUnavailableError:
        return
    assert parity(reduced.infer(frames), exact).reaches("near")
