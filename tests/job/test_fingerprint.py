"""Which options an output depends on, and what makes two runs the same job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cyclegan_batch.job.fingerprint import (
    IN_THE_NAME,
    NOT_PIXELS,
    Choices,
    job_of,
    pixel_options,
    resolved,
)
from cyclegan_batch.models.card import ModelCard, Recognition
from cyclegan_batch.models.model import open_model
from cyclegan_batch.option_table import options_of
from cyclegan_batch.options import TranslateOptions
from tests.synthesis import generators

CHOICES = Choices(backend="openvino", device="cpu", precision="fp32", batch_size=1, contexts=2)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return open_model(generators.identity(tmp_path_factory.mktemp("m") / "identity.onnx")).card


OF_THE_NETWORK = {
    *("direction", "weights", "family", "model_io"),
    *("backend", "device", "precision", "batch_size"),
}
COUNTED = {
    "image": {
        *OF_THE_NETWORK,
        *("size", "fit", "keep_size", "white", "quality", "png_level"),
    },
    "video": {
        *OF_THE_NETWORK,
        *("size", "fit", "keep_size", "ss", "to", "frames", "stream", "color"),
        *("deinterlace", "deinterlace_rate", "codec", "crf", "preset", "pix_fmt"),
        *("encoder_opt", "audio", "temporal"),
    },
}
"""The options that an output depends on, by its kind."""
COUNTED["pattern"] = {*COUNTED["video"], "fps"}
COUNTED["tar"] = {*COUNTED["image"], "format", "tar_images"}


@pytest.mark.behaviour(21)
def test_every_option_is_classified() -> None:
    everything = {option.name for option in options_of(TranslateOptions)}
    counted = set().union(*COUNTED.values())
    assert everything == counted | NOT_PIXELS | IN_THE_NAME
    # The name of a tar does not tell the format of the images in it.
    assert counted & (NOT_PIXELS | IN_THE_NAME) == {"format"}
    for kind, names in COUNTED.items():
        assert {option.name for option in pixel_options(kind)} == names  # type: ignore[arg-type]


@pytest.mark.behaviour(21)
@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"crf": 20.0}, {"video"}),
        ({"quality": 80}, {"image", "tar"}),
        ({"tar_images": "jpg"}, {"tar"}),
        ({"temporal": "flow:0.3"}, {"video"}),
        ({"size": 64}, {"image", "video", "tar"}),
        ({"device": "cuda"}, {"image", "video", "tar"}),
        ({"gpus": "0,1"}, {"image", "video", "tar"}),
        ({"device": "cpu", "backend": "openvino", "batch_size": 1, "precision": "fp32"}, set()),
        ({"on_error": "fail", "threads": 1, "overwrite": True, "format": "same"}, set()),
    ],
)
def test_an_option_makes_another_job_of_the_outputs_that_it_changes(
    options: dict[str, Any], kinds: set[str], card: ModelCard
) -> None:
    changed = {
        kind
        for kind in ("image", "video", "tar")
        if job_of(kind, card, TranslateOptions(**options), CHOICES).id  # type: ignore[arg-type]
        != job_of(kind, card, TranslateOptions(), CHOICES).id  # type: ignore[arg-type]
    }
    assert changed == kinds


@pytest.mark.behaviour(21, 37)
def test_a_filter_is_known_by_its_strength_and_its_absence_by_nothing(card: ModelCard) -> None:
    ids = [
        job_of("video", card, TranslateOptions(temporal=temporal), CHOICES).id
        for temporal in ("flow", "flow:0.5", "flow:.50", "flow:0.51", "off")
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids)) == 3
    off = job_of("video", card, TranslateOptions(), CHOICES)
    assert ids[4] == off.id
    assert "temporal" not in off.values  # as in journals from before there was the option


def test_the_numbers_of_the_gpus_make_no_other_job(card: ModelCard) -> None:
    choices = replace(CHOICES, device="cuda")
    jobs = {
        job_of("video", card, TranslateOptions(**options), choices).id  # type: ignore[arg-type]
        for options in ({}, {"device": "cuda:3"}, {"gpus": "0"}, {"gpus": "1,2"})
    }
    assert len(jobs) == 1


@pytest.mark.behaviour(21)
def test_another_model_makes_another_job(card: ModelCard) -> None:
    other = replace(card, digest="0" * 64)
    first, second = (job_of("image", each, TranslateOptions(), CHOICES) for each in (card, other))
    assert first.id != second.id
    assert job_of("image", replace(card, path=Path("b.onnx")), TranslateOptions(), CHOICES) == first


@pytest.mark.behaviour(21)
def test_another_generator_of_one_checkpoint_makes_another_job(card: ModelCard) -> None:
    a = replace(card, recognised=Recognition("cut", "CUT", weights="netG_A"))
    b = replace(card, recognised=Recognition("cut", "CUT", weights="netG_B"))
    jobs = [job_of("image", each, TranslateOptions(), CHOICES) for each in (card, a, b)]
    assert len({job.id for job in jobs}) == 3
    assert jobs[1].values["weights"] == "netG_A"
    # By whichever option it was chosen, it is the same job.
    for options in (TranslateOptions(weights="netG_A"), TranslateOptions(family="cut")):
        assert job_of("image", a, options, CHOICES) == jobs[1]
    # Of two families that fit, the named one counts.
    named = [
        job_of(
            "image",
            replace(card, recognised=Recognition(family, family, also_fits=("other",))),
            TranslateOptions(),
            CHOICES,
        )
        for family in ("cut", "unet")
    ]
    assert [job.values["family"] for job in named] == ["cut", "unet"]
    assert named[0].id != named[1].id


def test_auto_is_what_it_became(card: ModelCard) -> None:
    recorded = job_of("image", card, TranslateOptions(), CHOICES)
    asked = job_of("image", card, TranslateOptions(backend="openvino"), None)
    assert asked.id != recorded.id
    assert resolved(asked, recorded.values).id == recorded.id
    other = job_of("image", card, TranslateOptions(backend="onnxruntime"), None)
    assert resolved(other, recorded.values).id != recorded.id
