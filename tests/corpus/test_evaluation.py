"""Label maps of Cityscapes as the CycleGAN data set holds them: as JPEG, no colour exact."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
evaluation = pytest.importorskip("cyclegan_train.evaluation")

pytestmark = pytest.mark.corpus


@pytest.fixture(scope="module")
def cityscapes(corpus: Path) -> Path:
    return corpus / "datasets" / "cityscapes256"


def test_a_truth_is_its_own_best_result_and_what_is_blind_is_told_so(
    cityscapes: Path, tmp_path: Path
) -> None:
    for number in range(1, 2976, 50):
        (tmp_path / f"{number}.jpg").symlink_to(cityscapes / "trainA" / f"{number}.jpg")
    found = evaluation.evaluate_labels(
        cityscapes / "testA",
        cityscapes / "testA",
        evaluation.CITYSCAPES,
        source=cityscapes / "testB",
        train_truth=tmp_path,
    )
    best = found.rows[evaluation.RESULTS]
    assert found.pictures == 99
    assert (best.pixel_accuracy, best.class_accuracy, best.class_iou) == (1, 1, 1)
    assert set(best.ious.values()) == {1.0}  # every one of the 19 classes is there
    assert found.notes == (
        f"{cityscapes}/testB: 1 of its 100 images have no partner and are left out",
    )
    # What never sees the photograph has most of a published pixel accuracy (0.58), and is under
    # the bar that Cityscapes is judged by; so are photographs taken for label maps.
    mode = found.rows[evaluation.MODE]
    assert 0.55 < mode.pixel_accuracy < 0.60
    for name in (evaluation.MODE, evaluation.OTHER_LABELS, evaluation.INPUT):
        assert found.rows[name].class_iou < evaluation.CITYSCAPES.blind_iou
