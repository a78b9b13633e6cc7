"""Four real foreign generators: fixed size, float NCHW, 0..255, outputs beyond the range."""

from __future__ import annotations

from pathlib import Path

import pytest

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.model import open_model

pytestmark = pytest.mark.corpus

STYLES = ("candy", "mosaic", "rain-princess", "udnie")


def style(corpus: Path, name: str) -> Path:
    folder = corpus / "models" / "fast_neural_style_onnx"
    return folder / f"{name}_nc16_256x256_onnxjs013.onnx"


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("name", STYLES)
def test_real_foreign_generators_are_adopted_with_one_option(corpus: Path, name: str) -> None:
    card = open_model(style(corpus, name), model_io="0..255").card
    assert card.adopted == "nchw rgb 0..255"
    assert card.sizes.fixed == (256, 256)
    assert (card.batch, card.precision, card.pixel_type) == (1, "fp32", "uint8")
    assert card.architecture == "pytorch"


def test_without_it_the_option_is_named_errors(corpus: Path) -> None:
    with pytest.raises(ModelError, match=r"ends in Conv.*--model-io 0\.\.255"):
        open_model(style(corpus, "candy"))
