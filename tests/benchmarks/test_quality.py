"""What the arms of benchmarks/quality.py train, and the sums of its tables."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("torch")


@pytest.mark.parametrize("steps", [1600, 4000])
def test_every_arm_learns_from_as_many_images(steps: int) -> None:
    from cyclegan_train.settings import settings_from

    from benchmarks import quality

    for arm in quality.ARMS:
        settings = settings_from(quality.keys_of(arm, steps, 0))
        images = settings.data.max_dataset_size or quality.IMAGES
        warm_up = settings.run.warm_up if settings.run.init_from else 0
        assert settings.epochs * images + warm_up == steps, arm
        assert settings.train.n_epochs_decay * images * 2 == steps, arm


def test_all_arms_have_the_same_generator() -> None:
    from benchmarks import quality

    shapes = {
        tuple(quality.keys_of(arm, 1600, 0)[key] for key in ("netG", "ngf", "upsample"))
        for arm in quality.ARMS
    }
    assert len(shapes) == 1


def test_a_gain_has_the_standard_error_of_its_seeds() -> None:
    from benchmarks import quality

    assert quality.with_error([1.0, 2.0, 3.0]) == "+2.00 ± 0.58"


def test_best_is_compared_with_the_last_epoch() -> None:
    from benchmarks import quality

    scores = {
        f"{checkpoint}/netG_{letter}{kind}": {"psnr": 10.0 + (checkpoint == "best") * gain}
        for checkpoint in ("latest", "best")
        for (letter, kind), gain in {
            ("A", ""): 1.0, ("B", ""): -2.0, ("A", "_ema"): 0.0, ("B", "_ema"): 0.5,
        }.items()
    }  # fmt: skip
    assert "better 2, worse 1, the same 1; -0.12 ±" in quality.choice([scores])
