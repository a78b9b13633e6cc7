"""A real foreign checkpoint, compared with the output of its authors' code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclegan_batch.models.checkpoints.loading import load_generator
from cyclegan_batch.models.networks import GeneratorConfig

pytestmark = pytest.mark.corpus


@pytest.fixture(scope="module")
def horse2zebra(corpus: Path) -> Path:
    return corpus / "models" / "horse2zebra_gan_compression"


@pytest.mark.behaviour(34)
def test_a_real_checkpoint_gives_its_authors_picture(horse2zebra: Path) -> None:
    loaded = load_generator(horse2zebra / "latest_net_G.pth")
    widths = (16, 32, 128, 64, 64, 64, 128, 128, 128, 128, 128, 128, 32, 16)
    assert loaded.config == GeneratorConfig("mobile_resnet_9blocks", ngf=16, widths=widths)
    assert sum(weight.numel() for weight in loaded.network.parameters()) == 356_867
    pixels = np.array(Image.open(horse2zebra / "horse_input.png").convert("RGB"))
    theirs = np.array(Image.open(horse2zebra / "their_output_compressed.png").convert("RGB"))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        y = (loaded.network(x)[0].permute(1, 2, 0).numpy() + 1) * 127.5
    # The authors' code truncates where the contract rounds.
    difference = np.abs(np.floor(y) - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001
    assert np.abs(np.floor(y + 0.5) - theirs).max() <= 1
