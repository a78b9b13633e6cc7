"""Validation: images that are not trained on, the scores, and what they decide."""

from __future__ import annotations

import contextlib
import html.parser
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cyclegan_train import evaluation, run_folder  # noqa: E402 (after the check for torch)
from cyclegan_train.batches import Feed  # noqa: E402
from cyclegan_train.evaluation.features import (  # noqa: E402
    RandomFeatures,
    energy_distance,
    frechet_distance,
    kernel_distance,
)
from cyclegan_train.settings import settings_from  # noqa: E402
from cyclegan_train.validation import Best, Validation, levels  # noqa: E402
from cyclegan_train.validation_images import Images  # noqa: E402
from torchvision.transforms import v2  # noqa: E402 (after the check for torch)
from torchvision.transforms.v2 import functional as tv  # noqa: E402

from cyclegan_batch.errors import InputError  # noqa: E402
from cyclegan_batch.models.checkpoints.files import find_checkpoint  # noqa: E402
from cyclegan_batch.models.checkpoints.loading import load_generator  # noqa: E402
from tests.train.test_evaluation import random_inception  # noqa: E402
from tests.train.test_run import (  # noqa: E402
    TINY,
    assert_same,
    fill,
    log_of,
    state_of,
    train,
)

A, B = 34, 32
"""Images of the two domains of `data`: enough to hold out 16 of each at a fraction of a half."""
HELD_OUT = {"val_fraction": 0.5, "n_epochs": 1, "n_epochs_decay": 0, "samples": 0}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fill(folder / "trainA", range(A))
    fill(folder / "trainB", range(100, 100 + B))
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Return two domains of three images, of which none can be held out."""
    folder = tmp_path_factory.mktemp("few")
    fill(folder / "trainA", range(3))
    fill(folder / "trainB", range(10, 13))
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """Return the folder of a run with held-out images that was never stopped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(data, folder, ema=0.9, **HELD_OUT).finished
    return folder


def with_val(data: Path, folder: Path, count: int = 4, *, paired: bool = True) -> Path:
    """Copy ``data`` with valA and valB, whose images of one name are negatives of each other."""
    shutil.copytree(data, folder)
    fill(folder / "valA", range(200, 200 + count))
    (folder / "valB").mkdir()
    for path in (folder / "valA").iterdir():
        name = path.name if paired else f"b{path.name}"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(folder / "valB" / name)
    return folder


def scored(folder: Path) -> list[dict]:
    return [event for event in log_of(folder) if event["event"] == "validation"]


# The images


@pytest.mark.behaviour(53)
def test_images_that_are_held_out_are_never_trained_on(data, tmp_path, monkeypatch):
    seen: list[set[str]] = []
    real = Feed.__init__

    def feed(self, a, b, sampler, **options):
        seen.extend({path.name for path in each.paths} for each in (a, b))
        assert sampler.batches == max(len(a), len(b))
        real(self, a, b, sampler, **options)

    monkeypatch.setattr(Feed, "__init__", feed)
    held_out = []
    for seed in (0, 0, 1):
        folder = tmp_path / str(len(seen))
        train(data, folder, steps=0, seed=seed, **HELD_OUT)
        described = json.loads((folder / "run.json").read_text())
        for letter, count, trained in zip("AB", (A, B), seen[-2:], strict=True):
            own = described["validation"][letter]
            assert (own["from"], own["held_out"]) == (f"held out of train{letter}", 16)
            assert len(own["images"]) == 16 == count - len(trained)
            assert not trained & set(own["images"])
            assert described["data"][letter]["pictures"] == count - 16
        held_out.append(described["validation"]["A"]["images"])
    assert held_out[0] == held_out[1] != held_out[2]


def test_where_too_few_could_be_held_out_training_images_are_used_and_that_is_said(data, tmp_path):
    said: list[str] = []
    train(data, tmp_path / "run", steps=0, say=said.append)
    assert "A: validation on 16 images of the training (trainA), of which none are held out" in said
    assert state_of(tmp_path / "run")["validation"]["held_out"] == [0, 0]


def test_val_folders_are_taken_before_any_image_is_held_out(data, tmp_path):
    said: list[str] = []
    train(with_val(data, tmp_path / "d"), tmp_path / "run", steps=0, say=said.append, **HELD_OUT)
    assert "B: validation on 4 images of valB" in said
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["data"]["A"]["pictures"] == A
    assert described["validation"]["A"]["images"] == [f"{n}.png" for n in range(200, 204)]


# The scores


def test_random_features_are_the_same_everywhere_and_draw_nothing():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ramp = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).remainder(251).to(torch.uint8)
    features = RandomFeatures()(ramp)
    assert torch.equal(before, torch.get_rng_state())
    assert features.shape[0] == 2
    torch.manual_seed(6)
    assert torch.equal(RandomFeatures()(ramp), features)
    # Of 1 and 3 channels, of any size.
    assert RandomFeatures()(ramp[:, :, :16, :20]).shape == features.shape


def test_the_distances_are_those_of_the_definitions():
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(9, 5)), draws.normal(0.5, 2, size=(12, 5))

    def k(a, b):
        return (a @ b.T / 5 + 1) ** 3

    within = [(k(z, z).sum() - np.trace(k(z, z))) / (len(z) * (len(z) - 1)) for z in (x, y)]
    one, other = torch.from_numpy(x), torch.from_numpy(y)
    apart = [np.linalg.norm(a[:, None] - b, axis=2) for a, b in ((x, y), (x, x), (y, y))]
    energy = 2 * apart[0].mean() - apart[1].sum() / (9 * 8) - apart[2].sum() / (12 * 11)
    assert energy_distance(one, other) == pytest.approx(energy, rel=1e-9)
    assert kernel_distance(one, other) == pytest.approx(sum(within) - 2 * k(x, y).mean(), rel=1e-9)
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = np.sqrt(np.linalg.eigvals(s @ t).real.clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    # Of fewer images than features, too.
    assert frechet_distance(one[:3], one[:3]) == pytest.approx(0, abs=1e-9)


class Fixed(torch.nn.Module):
    """A generator that returns what a function makes of its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self._function = function

    def forward(self, image):
        return self._function(image)


def images_of(folder: Path, count: int, begin: int, tint: tuple[float, float, float]) -> Images:
    """Return images of noise in a tint, which are also written to ``folder``."""
    folder.mkdir()
    names, pixels = [], []
    for number in range(count):
        noise = np.random.default_rng(begin + number).integers(0, 256, (6, 6, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(noise).resize((32, 32), Image.BICUBIC))
        tinted = (smooth * np.array(tint)).astype(np.uint8)
        Image.fromarray(tinted).save(folder / f"{number}.png")
        names.append(Path(f"{number}.png"))
        pixels.append(torch.from_numpy(tinted).permute(2, 0, 1))
    return Images(folder.name, 0, tuple(names), tuple(pixels))


WARM, COLD = (1.0, 0.6, 0.3), (0.3, 0.6, 1.0)


def swapped(image):
    """Turn warm colours into cold ones, and back: what the generators should learn."""
    return image.flip(1)


def model_of(forward, back):
    return SimpleNamespace(
        netG_A=Fixed(forward),
        netG_B=Fixed(back),
        ema_A=Fixed(swapped),
        ema_B=Fixed(swapped),
        computing=contextlib.nullcontext,
    )


def test_a_generator_that_ignores_its_input_scores_no_better_than_one_that_does_nothing(tmp_path):
    images = (
        images_of(tmp_path / "A", 16, 0, WARM),
        images_of(tmp_path / "B", 16, 100, COLD),
    )
    validation = Validation(images, settings_from({}), torch.device("cpu"), samples=320)
    grey = validation.scores(model_of(lambda x: x * 0, lambda x: x * 0))
    right = validation.scores(model_of(swapped, swapped))
    assert grey["AtoB"]["unpaired"] > 0.9
    assert right["AtoB"]["unpaired"] < 0.2


@pytest.mark.behaviour(53)
def test_a_generator_that_does_nothing_is_not_the_best(tmp_path):
    images = (
        images_of(tmp_path / "A", 16, 0, WARM),
        images_of(tmp_path / "B", 16, 100, COLD),
    )
    validation = Validation(images, settings_from({}), torch.device("cpu"), samples=320)
    best = Best(validation)
    # Doing nothing reconstructs best of all.
    nothing, right = model_of(lambda x: x, lambda x: x), model_of(swapped, swapped)
    first, second = validation.scores(nothing), validation.scores(right)
    assert first["AtoB"] == pytest.approx(validation.inputs["AtoB"])
    assert first["AtoB"]["unpaired"] == pytest.approx(1)
    assert second["AtoB"]["random_kid"] == first["AtoB_ema"]["random_kid"]
    assert list(first) == ["AtoB", "AtoB_ema", "BtoA", "BtoA_ema"]
    assert best.better(first, 1) == list(first)
    assert best.better(second, 2) == ["AtoB", "BtoA"]
    assert second["AtoB"]["unpaired"] < 0.2
    assert second["AtoB"]["random_kid"] < 0.01 * first["AtoB"]["random_kid"]
    assert best.epochs_without_better == 1  # of the moving average
    assert not best.better(first, 3)
    assert "AtoB epoch 2 (unpaired score" in best.sentence()
    other = Best(validation)
    assert other.load_state_dict(json.loads(json.dumps(best.state_dict())))
    assert other.state_dict() == best.state_dict()
    # Scores on other images cannot be compared.
    others = (images[0], images_of(tmp_path / "C", 16, 200, COLD))
    elsewhere = Best(Validation(others, settings_from({}), torch.device("cpu"), samples=320))
    assert not elsewhere.load_state_dict(best.state_dict())
    assert elsewhere.epochs_without_better == 0


def scores_of(**values: float) -> dict[str, dict[str, float]]:
    return {generator: {"unpaired": value} for generator, value in values.items()}


@pytest.mark.behaviour(53)
@pytest.mark.parametrize(
    ("epochs", "without"),
    [
        # The average has become better than the weights ever were.
        ([(0.4, 0.6), (0.5, 0.3), (0.6, 0.5)], 1),
        # The weights are better than the average: these are what best gives.
        ([(0.6, 0.4), (0.3, 0.5), (0.4, 0.5)], 1),
        # What becomes better and stays behind the other is not.
        ([(0.6, 0.4), (0.5, 0.5), (0.45, 0.5)], 2),
        ([(0.4, 0.6), (0.4, 0.5), (0.4, 0.45)], 2),
        ([(math.nan, math.nan), (0.4, math.nan), (math.nan, math.nan)], 1),
        ([(math.nan, math.nan)], 1),
    ],
)
def test_a_better_score_is_one_of_the_weights_that_best_gives(epochs, without):
    kind = {"AtoB": "unpaired", "BtoA": "unpaired"}
    best = Best(SimpleNamespace(kind=kind))
    for number, (weights, average) in enumerate(epochs):
        best.better(scores_of(BtoA=weights, BtoA_ema=average), number + 1)
    assert best.epochs_without_better == without


def test_with_a_truth_the_scores_are_those_of_evaluate(tmp_path):
    pytest.importorskip("torchmetrics")
    a, b = images_of(tmp_path / "A", 4, 0, WARM), images_of(tmp_path / "B", 4, 0, COLD)
    settings = settings_from({"val_truth": "pictures"})
    validation = Validation((a, b), settings, torch.device("cpu"), samples=80)
    scores = validation.scores(model_of(lambda x: x, swapped))
    expected = evaluation.evaluate_pictures(tmp_path / "A", tmp_path / "B").rows["results"]
    assert scores["AtoB"]["psnr"] == pytest.approx(expected.psnr, rel=1e-9)
    assert scores["AtoB"]["ssim"] == pytest.approx(expected.ssim, rel=1e-6)
    assert scores["AtoB_ema"]["psnr"] > expected.psnr
    assert Best(validation).validation.kind["AtoB"] == "psnr"


def test_label_maps_are_scored_by_their_iou_whichever_domain_holds_them(tmp_path):
    palette = tmp_path / "palette.toml"
    palette.write_text("warm = [230, 140, 70]\ncold = [70, 140, 230]\n")
    photos = images_of(tmp_path / "photos", 4, 0, WARM)
    maps = []
    for image in photos.pixels:
        bright = image.float().mean(0) > image.float().mean()
        warm, cold = (torch.tensor(c, dtype=torch.uint8) for c in ((230, 140, 70), (70, 140, 230)))
        maps.append(torch.where(bright[None], warm[:, None, None], cold[:, None, None]))
    labels = Images("valA", 0, photos.names, tuple(maps))
    settings = settings_from({"val_truth": str(palette)})
    for number, images in enumerate(((photos, labels), (labels, photos))):
        validation = Validation(images, settings, torch.device("cpu"), samples=80)
        to_labels, to_photos = ("AtoB", "BtoA")[:: 1 - 2 * number]
        assert validation.kind[to_labels] == "iou"
        assert validation.kind[to_photos] == "unpaired"
        assert 0 < validation.inputs[to_labels]["iou"] < 0.6


def test_a_truth_without_pairs_errors(data, tmp_path):
    with pytest.raises(
        InputError, match="val_truth: the truth of an image of valA is the image of"
    ):
        train(data, tmp_path / "run", val_truth="pictures")
    unpaired = with_val(data, tmp_path / "unpaired", paired=False)
    with pytest.raises(InputError, match="none of the 4 images in valA has a partner"):
        train(unpaired, tmp_path / "run", val_truth="pictures")
    uneven = with_val(data, tmp_path / "uneven")
    Image.new("RGB", (48, 40)).save(uneven / "valB" / "201.png")
    with pytest.raises(InputError, match="val_truth: 201 is 40×40 in valA and 48×40 in valB"):
        train(uneven, tmp_path / "run", val_truth="pictures", preprocess="none")
    (uneven / "valB" / "201.jpg").write_bytes((uneven / "valB" / "201.png").read_bytes())
    with pytest.raises(InputError, match=r"val_truth: 201\.png and 201\.jpg of valB differ in"):
        train(uneven, tmp_path / "run", val_truth="pictures")


# What it decides


@pytest.mark.behaviour(53)
def test_best_holds_every_generator_of_its_best_epoch(whole):
    events = scored(whole)
    assert [event["epoch"] for event in events] == [1]  # 16 for 18 samples: the last epoch only
    card = json.loads((whole / "checkpoints" / "best" / "checkpoint.json").read_text())
    for file, generator in (("netG_A", "AtoB"), ("netG_B_ema", "BtoA_ema")):
        own = card[f"{file}.safetensors"]
        assert own["validation"] == events[0]["scores"][generator]
        assert own["epoch"] == 1
    for direction in ("AtoB", "BtoA"):
        weights, average = (
            events[0]["scores"][f"{direction}{ending}"]["unpaired"] for ending in ("", "_ema")
        )
        found = find_checkpoint(whole / "checkpoints" / "best", direction)
        assert found.path.name.endswith("_ema.safetensors") == (average <= weights)
        assert f"{weights:.4g} in epoch 1" in found.notes[0].text


@pytest.mark.slow
@pytest.mark.behaviour(53)
def test_kid_decides_where_the_weights_of_inception_are_given(few, tmp_path, monkeypatch):
    """In the loop, with random weights in the layout of the published file."""
    random_inception(tmp_path / "inception.pth", monkeypatch)
    folder, said = tmp_path / "run", []
    values = HELD_OUT | {"val_images": 2, "inception": str(tmp_path / "inception.pth")}
    assert train(few, folder, say=said.append, **values).finished
    assert "best is chosen by KID, every 13 epochs" in said
    (event,) = scored(folder)
    assert event["by"]["AtoB"] == event["by"]["BtoA"] == "kid"
    described = json.loads((folder / "run.json").read_text())["validation"]
    features = evaluation.inception_features(tmp_path / "inception.pth")
    network = load_generator(folder / "checkpoints" / "best" / "netG_A.safetensors").network
    sources, real = (
        torch.stack([cut_of(few / f"train{each}" / name) for name in described[each]["images"]])
        for each in "AB"
    )
    with torch.no_grad():
        fakes = levels(network(sources.float() / 127.5 - 1))
        found = features(fakes), features(real)
    scores = event["scores"]["AtoB"]
    assert scores["kid"] == pytest.approx(kernel_distance(*found), rel=1e-3)
    assert scores["fid"] == pytest.approx(frechet_distance(*found), rel=1e-3)
    assert min(scores["fid"], abs(scores["kid"])) > 1e-3


def cut_of(path: Path) -> torch.Tensor:
    """Return the middle of an image as a validation sees it, uint8 (3, 32, 32)."""
    image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
    resized = tv.resize(image, [36, 36], v2.InterpolationMode.BICUBIC, antialias=True)
    return resized[:, 2:34, 2:34]


@pytest.mark.behaviour(40)
@pytest.mark.parametrize("steps", [1, 17])
def test_a_validated_run_stopped_and_resumed_equals_one_never_stopped(data, whole, tmp_path, steps):
    train(data, tmp_path / "run", steps=steps, ema=0.9, **HELD_OUT)
    assert train(data, tmp_path / "run", resume=True).finished
    assert_same(state_of(tmp_path / "run"), state_of(whole))
    assert log_of(tmp_path / "run") == log_of(whole)
    for name in ("index.html", "validation.png", "checkpoints/best/netG_A_ema.safetensors"):
        assert (tmp_path / "run" / name).read_bytes().replace(b"run", b"") == (
            whole / name
        ).read_bytes().replace(b"whole", b"")


@pytest.mark.behaviour(40)
def test_validation_changes_nothing_of_the_training(few, tmp_path):
    folder = with_val(few, tmp_path / "data")
    options = {"n_epochs": 1, "n_epochs_decay": 0, "samples": 0, "dropout": True}
    train(folder, tmp_path / "with", **options)
    train(folder, tmp_path / "without", val_images=0, **options)
    one, other = state_of(tmp_path / "with"), state_of(tmp_path / "without")
    for key in ("model", "sampler", "torch_random", "random"):
        assert_same(one[key], other[key])
    assert scored(tmp_path / "with")
    assert not scored(tmp_path / "without")
    assert not (tmp_path / "without" / "checkpoints" / "best").exists()


@pytest.mark.behaviour(40)
def test_a_run_from_before_there_was_validation_goes_on_on_the_same_images(few, tmp_path):
    folder, said = tmp_path / "run", []
    options = {"n_epochs": 1, "n_epochs_decay": 0, "samples": 0}
    train(few, folder, steps=2, val_fraction=0.0, val_images=0, **options)
    state = state_of(folder)
    del state["validation"]
    new = ("val_fraction", "val_images", "val_truth", "inception", "early_stop")
    state["settings"] = {k: v for k, v in state["settings"].items() if k not in new}
    torch.save(state | {"best": 0.5}, folder / "checkpoints" / "state.pt")
    config = folder / "config.toml"
    config.write_text(
        "\n".join(x for x in config.read_text().splitlines() if not x.startswith(new))
    )
    assert train(few, folder, resume=True, say=said.append).finished
    assert any("unpaired score decides" in sentence for sentence in said)
    train(few, tmp_path / "whole", val_fraction=0.0, **options)
    assert_same(state_of(folder)["model"], state_of(tmp_path / "whole")["model"])
    assert state_of(folder)["validation"]["held_out"] == [0, 0]
    assert scored(folder) == scored(tmp_path / "whole")


@pytest.mark.behaviour(53)
def test_early_stop_ends_a_run_whose_scores_stay_and_it_stays_ended(few, tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "due", lambda self, epoch, epochs: True)
    monkeypatch.setattr(
        Validation, "scores", lambda self, model: {"AtoB": {"unpaired": abs(model.epoch - 2)}}
    )
    folder, said = tmp_path / "run", []
    options = {"n_epochs": 9, "samples": 0, "early_stop": 2}
    outcome = train(few, folder, say=said.append, **options)
    assert (outcome.finished, outcome.epoch, outcome.step) == (True, 4, 12)
    assert "early_stop = 2: no better score by validation for 2 epochs" in said
    assert (folder / "checkpoints" / "epoch_0004").is_dir()
    assert state_of(folder)["model"]["steps"] == 12
    stops = [event for event in log_of(folder) if event["event"] == "early_stop"]
    assert stops == [{"event": "early_stop", "epoch": 4, "step": 12}]
    assert train(few, folder, resume=True).step == 12
    assert train(few, folder, resume=True, early_stop=3).step == 15


@pytest.mark.behaviour(53)
@pytest.mark.parametrize("at", ["state", "best"])
def test_a_run_killed_between_best_and_its_state_goes_on_bit_for_bit(
    few, tmp_path, monkeypatch, at
):
    monkeypatch.setattr(Validation, "due", lambda self, epoch, epochs: True)
    options = {"n_epochs": 2, "n_epochs_decay": 0, "samples": 0, "ema": 0.9}
    train(few, tmp_path / "whole", **options)
    write, write_state, written = run_folder._write, run_folder.RunFolder.write_state, []

    def killed(path: Path, data: bytes) -> None:
        written.append(path.parent.name)
        if at == "best" and written.count("best") == 7:
            raise SystemExit  # when one of the second epoch's five files is there
        write(path, data)

    def killed_later(self, state):
        if at == "state" and state["model"]["steps"] == 6:
            raise SystemExit
        write_state(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "_write", killed)
        patch.setattr(run_folder.RunFolder, "write_state", killed_later)
        with pytest.raises(SystemExit):
            train(few, tmp_path / "run", **options)
    assert state_of(tmp_path / "run")["model"]["steps"] == 3
    assert train(few, tmp_path / "run", resume=True).finished
    assert_same(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))
    for file in (tmp_path / "whole" / "checkpoints" / "best").iterdir():
        assert (tmp_path / "run/checkpoints/best" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.behaviour(53)
def test_a_part_of_a_run_that_is_not_validated_forgets_no_best(few, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Validation, "scores", lambda self, model: {"AtoB": {"unpaired": float(model.epoch)}}
    )
    folder, said = tmp_path / "run", []
    train(few, folder, n_epochs=1, n_epochs_decay=0, samples=0)
    train(few, folder, resume=True, n_epochs=2, val_images=0)
    train(few, folder, resume=True, n_epochs=3, val_images=100, say=said.append)
    assert state_of(folder)["validation"]["best"]["epochs"] == {"AtoB": 1}
    card = json.loads((folder / "checkpoints" / "best" / "checkpoint.json").read_text())
    assert card["netG_A.safetensors"]["epoch"] == 1
    assert any("best by validation: AtoB epoch 1" in sentence for sentence in said)
    # Other images: no score of before can be compared.
    train(few, folder, resume=True, n_epochs=4, val_images=2, say=said.append)
    assert any("and replaces what is in best" in sentence for sentence in said)
    assert state_of(folder)["validation"]["best"]["epochs"] == {"AtoB": 4}


@pytest.mark.behaviour(53)
def test_scores_that_are_no_numbers_are_never_best(few, tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "due", lambda self, epoch, epochs: True)
    monkeypatch.setattr(
        Validation, "scores",
        lambda self, model: {"AtoB": {"unpaired": 0.5 if model.epoch == 2 else math.nan}},
    )  # fmt: skip
    folder = tmp_path / "run"
    assert train(few, folder, n_epochs=9, samples=0, early_stop=2).epoch == 4
    card = json.loads((folder / "checkpoints" / "best" / "checkpoint.json").read_text())
    assert card["netG_A.safetensors"]["epoch"] == 2
    assert (folder / "validation.png").is_file()
    monkeypatch.setattr(Validation, "scores", lambda self, model: {"AtoB": {"unpaired": math.nan}})
    assert train(few, tmp_path / "never", n_epochs=9, samples=0, early_stop=2).epoch == 2
    assert not (tmp_path / "never" / "checkpoints" / "best").exists()


def test_images_that_are_too_few_to_validate_on_are_told(few, tmp_path):
    folder, said = with_val(few, tmp_path / "data", count=1), []
    (folder / "valB").rename(folder / "another")
    train(folder, tmp_path / "run", steps=0, say=said.append)
    sentence = "A has 1 image to validate on, and 2 are needed"
    assert f"nothing is validated, and there will be no best: {sentence}" in said
    with pytest.raises(InputError, match=f"^early_stop compares .* none gets one: {sentence}; lea"):
        train(folder, tmp_path / "other", early_stop=3)
    assert not (tmp_path / "other").exists()
    said.clear()
    train(folder, tmp_path / "none", steps=0, val_images=0, say=said.append)
    assert not any("validat" in each for each in said)


# What shows it


class Page(html.parser.HTMLParser):
    """What a page refers to, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.sources, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, words):
        self.words.append(words)


@pytest.mark.behaviour(42)
def test_one_page_shows_all_sheets_with_file_names_and_scores(few, tmp_path):
    data = shutil.copytree(few, tmp_path / "data")
    (data / "trainA" / "0.png").rename(data / "trainA" / "<b> & 'ü'.png")
    folder = tmp_path / "a run #1"
    train(data, folder, n_epochs=2, n_epochs_decay=0, samples=3)
    page = Page((folder / "index.html").read_text("utf-8"))
    assert not {"script", "link", "b"} & set(page.tags)
    for name in (
        "losses.png",
        "validation.png",
        "samples/epoch_0001.png",
        "samples/epoch_0002.png",
    ):
        assert name in page.sources
        assert (folder / name).is_file()
    assert all(source.startswith("#") or (folder / source).is_file() for source in page.sources)
    assert "trainA/<b> & 'ü'.png" in page.words
    (event,) = scored(folder)
    assert f"{event['scores']['AtoB']['unpaired']:.4g}" in page.words


def test_tensorboard_gets_the_scores_and_the_sheets(few, tmp_path):
    pytest.importorskip("tensorboard")
    options = {"n_epochs": 1, "n_epochs_decay": 0, "samples": 1, "tensorboard": True}
    train(few, tmp_path / "run", **options)
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"validation/unpaired/AtoB" in content
    assert b"samples" in content
    assert b"\x89PNG" in content


def test_tiny_keys_are_checked():
    for key, value in (("val_fraction", 0.6), ("val_images", -1), ("early_stop", -1)):
        with pytest.raises(ValueError, match=f"{key} = {value} must be"):
            settings_from(TINY | {key: value})
    with pytest.raises(ValueError, match="early_stop compares the scores of epochs"):
        settings_from({"early_stop": 3, "val_images": 0})
