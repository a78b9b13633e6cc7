"""A recipe learns: a short beginning of the demo's, against the truth that its drawings have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from cyclegan_train import run, settings

from cyclegan_batch.demo.landscapes import DAY, NIGHT, window, write_domains
from cyclegan_batch.models.checkpoints.files import find_checkpoint
from cyclegan_batch.models.checkpoints.loading import load_generator


def _psnr(found: np.ndarray, truth: np.ndarray) -> float:
    error = (found.astype(float) - truth).reshape(len(truth), -1)
    return float((10 * np.log10(255**2 / (error**2).mean(axis=1))).mean())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_beginning_of_the_demo_recipe_leads_towards_a_truth_it_never_saw(tmp_path: Path):
    write_domains(tmp_path / "data", 400, held_out=1)
    chosen = settings.settings_from(settings.values_from_toml(settings.recipe("demo")))
    short = dataclasses.replace(chosen.train, n_epochs=3, n_epochs_decay=0)
    run.train(tmp_path / "data", tmp_path / "run", dataclasses.replace(chosen, train=short))
    network = load_generator(find_checkpoint(tmp_path / "run", "AtoB").path).network
    day, night = (
        np.stack([window(seed, light) for seed in range(9_000, 9_016)]) for light in (DAY, NIGHT)
    )
    with torch.inference_mode():
        made = network(torch.from_numpy(day).permute(0, 3, 1, 2) / 127.5 - 1)
    made = ((made.permute(0, 2, 3, 1) + 1) * 127.5).numpy()
    # No constant picture comes so near: the mean colour of the night of these very pictures.
    constant = np.broadcast_to(night.mean(axis=(0, 1, 2)), night.shape)
    assert _psnr(made, night) > _psnr(constant, night)
    assert _psnr(made, night) > _psnr(day, night) + 7
