"""Scores of pictures, label maps and sets, each against the formula written out once more."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch import cli
from cyclegan_batch.errors import BackendUnavailableError, InputError, ModelError

torch = pytest.importorskip("torch")
evaluation = pytest.importorskip("cyclegan_train.evaluation")

RGB = {"wood": (10, 20, 30), "lake": (200, 40, 40), "road": (40, 200, 40), "roof": (90, 90, 90)}
VOID = (0, 0, 0)
PALETTE = evaluation.Palette(RGB, void=VOID)


def noise(seed: int, size=(20, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def painted(classes: np.ndarray) -> np.ndarray:
    return np.array([*RGB.values(), VOID], np.uint8)[classes]


@pytest.fixture
def torchmetrics():
    return pytest.importorskip("torchmetrics")


# Pictures against their truth


def plain_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, equations 3 to 13, for every channel and at every pixel."""
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for channel in range(3):
        a, b = (np.pad(p[..., channel].astype(float), 5, "reflect") for p in (x, y))
        for row in range(x.shape[0]):
            for column in range(x.shape[1]):
                p, q = (each[row : row + 11, column : column + 11] for each in (a, b))
                mu_p, mu_q = (window * p).sum(), (window * q).sum()
                var_p, var_q = (window * (p - mu_p) ** 2).sum(), (window * (q - mu_q) ** 2).sum()
                both = (window * (p - mu_p) * (q - mu_q)).sum()
                found.append(
                    (2 * mu_p * mu_q + c1)
                    * (2 * both + c2)
                    / ((mu_p**2 + mu_q**2 + c1) * (var_p + var_q + c2))
                )
    return float(np.mean(found))


def test_pictures_are_scored_by_the_formulas(tmp_path, torchmetrics):
    results, truths = {}, {}
    for number in range(3):
        truths[number] = noise(number, (16, 12 + number))
        shift = np.random.default_rng(9).integers(-30, 31, truths[number].shape)
        results[number] = (truths[number] + shift // (number + 1)).clip(0, 255).astype(np.uint8)
        save(tmp_path / "results" / f"{number}.png", results[number])
        save(tmp_path / "truth" / f"{number}.png", truths[number])
    found = evaluation.evaluate_pictures(tmp_path / "results", tmp_path / "truth")
    differences = [results[n].astype(float) - truths[n] for n in range(3)]
    score = found.rows[evaluation.RESULTS]
    assert found.pictures == 3
    assert score.l1 == pytest.approx(np.mean([abs(d).mean() for d in differences]), rel=1e-12)
    psnr = [10 * np.log10(255**2 / (d**2).mean()) for d in differences]
    assert score.psnr == pytest.approx(np.mean(psnr), rel=1e-12)
    ssim = [plain_ssim(results[n], truths[n]) for n in range(3)]
    assert score.ssim == pytest.approx(np.mean(ssim), abs=1e-6)


def test_the_input_and_what_knows_nothing_stand_beside_the_results(tmp_path, torchmetrics):
    flat = np.full((16, 16, 3), 100, np.uint8)
    for number, level in enumerate((0, 20)):
        save(tmp_path / "truth" / f"{number}.png", flat + level)
        save(tmp_path / "results" / f"{number}.png", flat + level + 2)
        save(tmp_path / "source" / f"{number}.png", flat + level + 20)
    found = evaluation.evaluate_pictures(
        tmp_path / "results", tmp_path / "truth", source=tmp_path / "source"
    )
    l1 = {name: score.l1 for name, score in found.rows.items()}
    assert l1 == {
        evaluation.RESULTS: 2,
        evaluation.INPUT: 20,
        evaluation.OTHER_TRUTH: 20,
        evaluation.MEAN_COLOUR: 10,
    }
    assert found.notes == ("20.0 dB nearer to the truth than the input",)


def test_what_equals_its_truth_is_infinitely_near_and_still_json(tmp_path, torchmetrics):
    one = save(tmp_path / "one.png", noise(0))
    found = evaluation.evaluate_pictures(one, one)
    score = found.rows[evaluation.RESULTS]
    assert (score.psnr, score.l1) == (np.inf, 0)
    assert score.ssim == pytest.approx(1, abs=1e-6)
    plain = json.loads(json.dumps(evaluation.as_json(found), allow_nan=False))
    assert plain["rows"][evaluation.RESULTS]["psnr"] is None


def test_partners_have_the_same_path_and_the_rest_is_counted(tmp_path, torchmetrics):
    for name in ("a/1.png", "a/2.png", "1.png", "extra.png"):
        save(tmp_path / "results" / name, noise(1))
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg"):
        save(tmp_path / "truth" / name, noise(2))
    found = evaluation.evaluate_pictures(tmp_path / "results", tmp_path / "truth")
    assert found.pictures == 2
    assert found.notes == (
        f"{tmp_path}/results: 2 of its 4 images have no partner and are left out",
        f"{tmp_path}/truth: 1 of its 3 images have no partner and are left out",
    )
    one = evaluation.evaluate_pictures(tmp_path / "results" / "a" / "2.png", tmp_path / "truth/a")
    assert (one.pictures, one.notes) == (1, ())


@pytest.mark.parametrize("way", ["pairs", "labels", "sets"])
def test_what_is_no_picture_that_is_read_is_told(tmp_path, torchmetrics, way):
    folders = tmp_path / "results", tmp_path / "truth"
    for folder in folders:
        for number in range(2):
            pixels = painted(np.full((12, 12), number)) if way == "labels" else noise(number)
            save(folder / f"{number}.png", pixels)
    (folders[0] / "2.psd").touch()
    (folders[0] / "3.EXR").touch()
    (folders[1] / "notes.txt").touch()
    if way == "pairs":
        found = evaluation.evaluate_pictures(*folders)
    elif way == "labels":
        found = evaluation.evaluate_labels(*folders, PALETTE)
    else:
        found = evaluation.evaluate_sets(*folders, means_and_roughness)
    assert found.notes[:2] == (
        f"{folders[0]}: left out, as images of formats that are not read here: 2 (.psd 1, .exr 1); "
        "convert them to PNG, TIFF or JPEG",
        f"{folders[1]}: left out, as no images: 1 (.txt 1)",
    )


def test_folders_without_partners_errors(tmp_path, torchmetrics):
    save(tmp_path / "results" / "one.png", noise(1))
    save(tmp_path / "truth" / "other.png", noise(2))
    (tmp_path / "empty").mkdir()
    for truth, message in (
        ("truth", r"none of its 1 images has a partner.*results/one.png and not the name of"),
        ("nowhere", "nowhere: no such file or folder"),
        ("empty", "empty: no images in it"),
    ):
        with pytest.raises(InputError, match=message):
            evaluation.evaluate_pictures(tmp_path / "results", tmp_path / truth)
    save(tmp_path / "results" / "one.bmp", noise(1))
    with pytest.raises(InputError, match=r"one.png and .*one.bmp: differ in their extensions only"):
        evaluation.evaluate_pictures(tmp_path / "results", tmp_path / "truth")


def test_another_size_errors_unless_it_is_to_be_resized(tmp_path, torchmetrics):
    small, large = np.full((12, 16, 3), 50, np.uint8), np.full((24, 32, 3), 53, np.uint8)
    result, truth = save(tmp_path / "small.png", small), save(tmp_path / "large.png", large)
    with pytest.raises(InputError, match=r"small.png: is 16×12, and its truth is 32×24; --resize"):
        evaluation.evaluate_pictures(result, truth)
    found = evaluation.evaluate_pictures(result, truth, resize=True)
    assert found.rows[evaluation.RESULTS].l1 == 3
    assert found.notes == ("1 images of 16×12 are resized to their truth's 32×24",)


def test_a_picture_smaller_than_the_window_of_ssim_errors(tmp_path, torchmetrics):
    tiny = save(tmp_path / "tiny.png", noise(0, (10, 30)))
    with pytest.raises(InputError, match="30×10 is too small for SSIM"):
        evaluation.evaluate_pictures(tiny, tiny)


def test_a_damaged_picture_errors(tmp_path, torchmetrics):
    save(tmp_path / "results" / "1.png", noise(1))
    whole = save(tmp_path / "truth" / "1.png", noise(1)).read_bytes()
    (tmp_path / "truth" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"truth/1.png"):
        evaluation.evaluate_pictures(tmp_path / "results", tmp_path / "truth")


# Label maps


def test_a_pixel_is_of_the_class_of_the_nearest_colour():
    pixels = noise(3, (40, 50))
    found = evaluation.CITYSCAPES.classes(pixels)
    colours = np.array([*evaluation.CITYSCAPES.colours.values(), (0, 0, 0)], int)
    assert len(colours) == 20
    for row, column in np.ndindex(40, 50):
        distances = [int(((pixels[row, column] - colour) ** 2).sum()) for colour in colours]
        assert found[row, column] == distances.index(min(distances))


def test_label_scores_are_those_of_the_definition(tmp_path):
    random = np.random.default_rng(4)
    true = [random.integers(0, 5, (9, 7)) for _ in range(3)]
    # The last class is nowhere in the truth, and in the results only where the truth is void.
    true = [np.where(each == 3, 4, each) for each in true]
    found = [
        np.where(random.random(t.shape) < 0.6, t, random.integers(0, 3, t.shape)) for t in true
    ]
    found = [np.where(t == 4, 3, f) for f, t in zip(found, true, strict=True)]
    for number in range(3):
        save(tmp_path / "truth" / f"{number}.png", painted(true[number]))
        # Colours that are only near.
        save(tmp_path / "results" / f"{number}.png", painted(found[number]) + np.uint8(7))
    score = evaluation.evaluate_labels(tmp_path / "results", tmp_path / "truth", PALETTE).rows[
        evaluation.RESULTS
    ]
    pixels = [
        (int(t), int(f))
        for ts, fs in zip(true, found, strict=True)
        for t, f in zip(ts.flat, fs.flat, strict=True)
        if t != 4
    ]
    accuracies, ious = [], []
    for k in range(3):
        of_class = [f for t, f in pixels if t == k]
        right = sum(f == k for f in of_class)
        accuracies.append(right / len(of_class))
        ious.append(right / sum(k in pair for pair in pixels))
    assert score.pixel_accuracy == pytest.approx(sum(t == f for t, f in pixels) / len(pixels))
    assert score.class_accuracy == pytest.approx(np.mean(accuracies))
    assert score.class_iou == pytest.approx(np.mean(ious))
    assert list(score.ious) == list(RGB)
    assert score.ious["roof"] is None


def test_a_class_that_only_the_results_have_counts_against_them(tmp_path):
    true = save(tmp_path / "true.png", painted(np.array([[0, 0], [1, 1]])))
    found = save(tmp_path / "found.png", painted(np.array([[0, 0], [1, 2]])))
    score = evaluation.evaluate_labels(found, true, PALETTE).rows[evaluation.RESULTS]
    assert score.pixel_accuracy == 0.75
    assert score.class_accuracy == 0.75
    assert score.class_iou == pytest.approx((1 + 0.5 + 0) / 3)
    # Void is wrong where the truth is a class, and no class of its own.
    nothing = save(tmp_path / "nothing.png", painted(np.array([[0, 0], [1, 4]])))
    score = evaluation.evaluate_labels(nothing, true, PALETTE).rows[evaluation.RESULTS]
    assert score.class_iou == pytest.approx((1 + 0.5) / 2)


def test_what_never_sees_the_input_is_made_of_the_training_labels(tmp_path):
    training = [[[0, 1], [4, 2]], [[0, 1], [4, 3]], [[1, 1], [4, 3]], [[1, 2], [2, 3]]]
    for number, classes in enumerate(training):
        save(tmp_path / "train" / f"{number}.png", painted(np.array(classes)))
    save(tmp_path / "truth" / "a.png", painted(np.array([[0, 1], [2, 3]])))
    save(tmp_path / "truth" / "b.png", painted(np.array([[1, 0], [2, 3]])))
    for name in "ab":
        save(tmp_path / "results" / f"{name}.png", painted(np.array([[1, 1], [1, 1]])))
    found = evaluation.evaluate_labels(
        tmp_path / "results", tmp_path / "truth", PALETTE, train_truth=tmp_path / "train"
    )
    # The commonest: [[0, 1], [2, 3]]; a tie is the first, void is never said.
    assert found.rows[evaluation.MODE].pixel_accuracy == 6 / 8
    # Scene a gets the first, scene b the third of the training.
    assert found.rows[evaluation.OTHER_LABELS].pixel_accuracy == (2 + 2) / 8
    assert found.ignores_input
    assert "ignores its input, or does no better: a class IoU of 0.062" in found.notes[0]
    assert f"and {evaluation.MODE} has" in found.notes[0]


def test_results_under_the_known_bar_of_cityscapes_ignore_their_input(tmp_path):
    colours = list(evaluation.CITYSCAPES.colours.values())
    truth = np.zeros((20, 20, 3), np.uint8)
    for number in range(19):
        truth[number] = colours[number]
    good, bad = truth.copy(), np.full_like(truth, 0)
    good[3:] = colours[0]
    bad[:] = colours[0]
    true = save(tmp_path / "true.png", truth)
    said = evaluation.evaluate_labels(save(tmp_path / "bad.png", bad), true, evaluation.CITYSCAPES)
    assert said.ignores_input
    assert "predictors that never see it come close to 0.12" in said.notes[-1]
    # Two classes of 19 are under the bar, three over it.
    rows = evaluation.evaluate_labels(
        save(tmp_path / "good.png", good), true, evaluation.CITYSCAPES
    )
    assert rows.rows[evaluation.RESULTS].class_iou == pytest.approx((2 + 1 / 17) / 19)
    assert rows.ignores_input
    good[3] = colours[3]
    rows = evaluation.evaluate_labels(
        save(tmp_path / "more.png", good), true, evaluation.CITYSCAPES
    )
    assert rows.rows[evaluation.RESULTS].class_iou > 0.12
    assert not rows.ignores_input
    assert rows.notes == ()


def test_smaller_label_maps_are_enlarged_by_whole_pixels(tmp_path):
    classes = np.random.default_rng(0).integers(0, 4, (5, 6))
    small = save(tmp_path / "small.png", painted(classes))
    large = save(tmp_path / "large.png", painted(classes.repeat(2, 0).repeat(2, 1)))
    with pytest.raises(InputError, match="--resize"):
        evaluation.evaluate_labels(small, large, PALETTE)
    found = evaluation.evaluate_labels(small, large, PALETTE, resize=True)
    assert found.rows[evaluation.RESULTS].class_iou == 1


def test_a_truth_of_nothing_but_void_errors(tmp_path):
    black = save(tmp_path / "black.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="no pixel of the truth has a class of the palette"):
        evaluation.evaluate_labels(black, black, PALETTE)


def test_palettes_are_read_from_json_and_toml(tmp_path):
    colours = {name: list(colour) for name, colour in RGB.items()} | {"void": [0, 0, 0]}
    (tmp_path / "p.json").write_text(json.dumps(colours))
    (tmp_path / "p.toml").write_text("\n".join(f"{k} = {v}" for k, v in colours.items()))
    for name in ("p.json", "p.toml"):
        assert evaluation.palette_from(str(tmp_path / name)) == PALETTE
    assert evaluation.palette_from("cityscapes") is evaluation.CITYSCAPES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is neither JSON nor TOML"),
        ("[1]", "holds 0 colours for 0 names"),
        ('{"a": [1, 2]}', r"a = \[1, 2\] must be \[red, green, blue\], each of 0..255"),
        ('{"a": [1, 2, 256], "b": [1, 2, 3]}', "a = "),
        ('{"a": [1, 2, 3], "void": [0, 0, 0]}', "holds 2 colours for 2 names; give 2 to 255"),
        ('{"a": [1, 2, 3], "b": [1, 2, 3]}', "holds 1 colours for 2 names"),
    ],
)
def test_a_wrong_palette_errors(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=message):
        evaluation.palette_from(str(tmp_path / "p.json"))


def test_a_palette_that_is_not_there_errors(tmp_path):
    with pytest.raises(InputError, match=r"no palette: No such file.*give cityscapes, or a JSON"):
        evaluation.palette_from(str(tmp_path / "ade20k"))


# Sets against sets


def means_and_roughness(pictures):
    """Stand for InceptionV3: six features of a picture."""
    x = pictures.double() / 255
    rough = (x[..., 1:] - x[..., :-1]).abs()
    return torch.cat([x.mean((2, 3)), rough.mean((2, 3))], 1)


@pytest.fixture
def two_sets(tmp_path) -> tuple[Path, Path, list[np.ndarray]]:
    places, features = [], []
    for place, count, scale in (("fake", 9, 0.8), ("real", 12, 1.0)):
        pictures = []
        for number in range(count):
            # Two sizes: they cannot share a batch.
            size = (12, 14) if number % 4 else (10, 10)
            pixels = (noise(100 * count + number, size) * scale).astype(np.uint8)
            pixels[..., 0] //= number % 3 + 1
            save(tmp_path / place / f"{number:02}.png", pixels)
            x = pixels.astype(float) / 255
            rough = np.abs(np.diff(x, axis=1))
            pictures.append(np.concatenate([x.mean((0, 1)), rough.mean((0, 1))]))
        places.append(tmp_path / place)
        features.append(np.array(pictures))
    return places[0], places[1], features


def test_fid_is_the_distance_of_two_gaussians(two_sets, torchmetrics):
    fake, real, (x, y) = two_sets
    found = evaluation.evaluate_sets(fake, real, means_and_roughness)
    assert (found.pictures, found.real) == (9, 12)
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # tr (S T)^½ by the square root of the symmetric S^½ T S^½.
    values, vectors = np.linalg.eigh(s)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ t @ root).clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross
    assert found.fid == pytest.approx(expected, rel=1e-5)
    assert found.notes == ()


def test_kid_is_the_unbiased_mmd_of_a_cubic_kernel(two_sets, torchmetrics):
    fake, real, (x, y) = two_sets
    # All nine fakes in every subset, and nine of the first nine real ones.
    for number in range(9, 12):
        (real / f"{number:02}.png").unlink()
    found = evaluation.evaluate_sets(fake, real, means_and_roughness, subsets=3)
    y = y[:9]

    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = 9
    within = [(k(z, z).sum() - np.trace(k(z, z))) / (n * (n - 1)) for z in (x, y)]
    expected = within[0] + within[1] - 2 * k(x, y).mean()
    assert (found.kid_subset_size, found.kid_subsets) == (9, 3)
    assert found.kid == pytest.approx(expected, rel=1e-9)
    assert found.kid_std == pytest.approx(0, abs=1e-12)


def test_sets_are_drawn_alike_every_time_and_the_draws_are_told(two_sets, torchmetrics):
    fake, real, _ = two_sets
    before = torch.get_rng_state()
    found = [
        evaluation.evaluate_sets(fake, real, means_and_roughness, subset_size=4) for _ in range(2)
    ]
    assert found[0] == found[1]
    assert found[0].kid_std > 0
    assert torch.equal(before, torch.get_rng_state())
    assert found[0].lines()[0] == "9 images against 12 real ones"
    assert "(100 subsets of 4)" in found[0].lines()[2]


def test_fid_of_fewer_pictures_than_features_is_warned_of(two_sets, torchmetrics):
    fake, real, _ = two_sets
    found = evaluation.evaluate_sets(
        fake, real, lambda pictures: means_and_roughness(pictures).repeat(1, 2)
    )
    assert "FID of 9 images is too high" in found.notes[0]
    assert "12 features" in found.notes[0]


def test_one_picture_is_no_set_errors(tmp_path, two_sets, torchmetrics):
    save(tmp_path / "lone" / "1.png", noise(0))
    with pytest.raises(InputError, match="one image is no set"):
        evaluation.evaluate_sets(tmp_path / "lone", two_sets[1], means_and_roughness)


def test_without_the_weights_of_inception_one_line_says_what_to_get_errors(tmp_path):
    where = "get weights-inception-2015-12-05-6726825d.pth"
    with pytest.raises(ModelError, match=f"FID and KID need --inception WEIGHTS; {where}"):
        evaluation.inception_features(None)
    with pytest.raises(ModelError, match=f"gone.pth: no such file; {where}"):
        evaluation.inception_features(tmp_path / "gone.pth")


@pytest.mark.behaviour(43)
def test_weights_that_are_code_or_of_another_network_errors(tmp_path):
    pytest.importorskip("torch_fidelity")

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "trapped",)

    (tmp_path / "code.pth").write_bytes(pickle.dumps({"a": Trap()}))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("code.pth", "other.pth"):
        with pytest.raises(ModelError, match=f"{name}: holds no weights of InceptionV3; get"):
            evaluation.inception_features(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def random_inception(path: Path, monkeypatch) -> torch.nn.Module:
    """Write weights in the layout of the published file, drawn at random; return their network."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class AskedError(Exception):
        pass

    def ask(*_args, **_options):
        raise AskedError

    monkeypatch.setattr(module, "load_state_dict_from_url", ask)
    network = module.FeatureExtractorInceptionV3.__new__(module.FeatureExtractorInceptionV3)
    # Without a file it would download; the layers are there by then.
    with pytest.raises(AskedError):
        network.__init__("inception-v3-compat", ["2048"])
    for weight in network.parameters():
        if weight.dim() == 4:
            # Features of torch's own draws would be almost the same for all images.
            torch.nn.init.kaiming_normal_(weight)
    torch.save(network.state_dict(), path)
    return network.eval()


def test_inception_takes_its_weights_from_a_file_and_downloads_nothing(tmp_path, monkeypatch):
    network = random_inception(tmp_path / "weights.pth", monkeypatch)
    features = evaluation.inception_features(tmp_path / "weights.pth")
    pictures = torch.from_numpy(noise(0, (40, 30))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        found = features(pictures)
        expected = network(pictures)[0]
    assert found.shape == (1, 2048)
    assert torch.equal(found, expected)


# The command


def evaluate(*arguments: str | Path) -> None:
    cli.main(["evaluate", *map(str, arguments)], standalone_mode=False)


def test_the_command_prints_numbers_to_stdout_and_the_rest_to_stderr(tmp_path, capsys):
    classes = np.random.default_rng(0).integers(0, 4, (6, 8))
    save(tmp_path / "results" / "1.png", painted(classes))
    save(tmp_path / "truth" / "1.png", painted(classes))
    save(tmp_path / "truth" / "2.png", painted(classes))
    (tmp_path / "p.json").write_text(json.dumps(RGB))
    evaluate(tmp_path / "results", "--truth", tmp_path / "truth", "--palette", tmp_path / "p.json")
    said = capsys.readouterr()
    head, results = said.out.splitlines()
    assert " ".join(head.split()) == "1 label maps pixel accuracy class accuracy class IoU"
    assert results.split() == ["results", "1.000", "1.000", "1.000"]
    assert "1 of its 2 images have no partner" in said.err


def test_the_command_prints_json(tmp_path, capsys, torchmetrics):
    for name in ("results", "truth", "source"):
        save(tmp_path / name / "1.png", noise(len(name)))
    folders = ["--truth", tmp_path / "truth", "--source", tmp_path / "source"]
    evaluate(tmp_path / "results", *folders, "--json", "-q")
    said = capsys.readouterr()
    found = json.loads(said.out)["pictures"]
    assert found["pictures"] == 1
    assert set(found["rows"]) == {"results", "the input", "the truth's mean colour"}
    assert set(found["rows"]["results"]) == {"psnr", "ssim", "l1"}
    assert said.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "give --truth FOLDER, --real FOLDER, or both"),
        (["x", "--real", "y", "--resize"], "need --truth"),
        (["x", "--truth", "y", "--train-truth", "z"], "give their --palette, too"),
        (["x", "--truth", "y", "--inception", "z"], "give --real FOLDER, too"),
    ],
)
def test_a_wrong_command_errors(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", *arguments])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("torchmetrics", ["--truth"]),
        ("torch_fidelity", ["--inception=1.png", "--real"]),
        ("cyclegan_train", ["--truth"]),
    ],
)
def test_without_a_package_one_line_says_what_to_install_errors(
    tmp_path, monkeypatch, package, options
):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "1.png", noise(0))
    for name in [package, *sys.modules]:
        if name.split(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
    said = (
        f'^cannot evaluate: {package}\\S* is not installed; pip install "cyclegan-batch\\[train\\]'
    )
    with pytest.raises(BackendUnavailableError, match=said):
        cli.evaluate.command.main(["1.png", *options, "1.png"], standalone_mode=False)
