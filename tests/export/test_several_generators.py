"""One file with two generators, or for two families: each is drawn, exported and resumed."""

from __future__ import annotations

import hashlib
import json
import pickle
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch import open_generator, translate
from cyclegan_batch.api import plan_translation, run_plan
from cyclegan_batch.errors import ModelError, OutputError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.inspection import inspect_file
from cyclegan_batch.job.units import Counters
from cyclegan_batch.models.checkpoints.files import Selection
from cyclegan_batch.models.model import open_model
from tests.needs import package
from tests.synthesis.generators import natural

torch = package("torch")
package("onnxscript")
package("onnxruntime")

from cyclegan_export import export_bundle, export_onnx, onnx_export  # noqa: E402
from cyclegan_export.graph import graph_from_network  # noqa: E402

from cyclegan_batch.models.checkpoints import families  # noqa: E402
from cyclegan_batch.models.checkpoints.families import Family, Reading, Shapes  # noqa: E402
from cyclegan_batch.models.checkpoints.families.reference import REFERENCE_RESNET  # noqa: E402
from cyclegan_batch.models.networks import (  # noqa: E402
    GeneratorConfig,
    generator_from_config,
    init_weights,
)
from tests.export.test_cache import command  # noqa: E402

A_TO_B, B_TO_A = Selection("AtoB"), Selection("BtoA")


def state(seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    network = generator_from_config(GeneratorConfig("resnet_1blocks", ngf=4))
    init_weights(network, init_gain=0.3)
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with both generators, a discriminator and a counter."""
    path = tmp_path_factory.mktemp("both") / "both.pth"
    discriminator = {
        f"model.{number}.{kind}": torch.rand(shape)
        for number, widths in ((0, (8, 3)), (2, (16, 8)), (5, (1, 16)))
        for kind, shape in (("weight", (*widths, 4, 4)), ("bias", widths[:1]))
    }
    content = {"epoch": 3, "netG_A": state(1), "netG_B": state(2), "netD_A": discriminator}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(natural((24, 32), count)):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def drawn(path: Path) -> Pixels:
    return np.asarray(Image.open(path))


@pytest.mark.behaviour(31, 49)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_each_is_chosen_by_direction_and_by_weights(
    tmp_path: Path, both: Path, cache: Path, backend: str
) -> None:
    source = pictures(tmp_path / "in", 1)
    options: dict[str, Any] = {"model": both, "backend": backend, "threads": 1, "cache_dir": cache}
    found = {}
    for direction, weights in (("AtoB", "netG_A"), ("BtoA", "netG_B")):
        output = tmp_path / direction
        translate(source, output, direction=direction, **options)
        found[weights] = drawn(output / "00.png")
    translate(source, tmp_path / "weights", weights="netG_B", **options)
    assert np.array_equal(drawn(tmp_path / "weights" / "00.png"), found["netG_B"])
    with open_generator(weights="netG_B", **options) as generator:
        assert generator.card.direction == "BtoA"
        assert generator.card.recognised is not None
        assert generator.card.recognised.weights == "netG_B"
        out = generator(drawn(source / "00.png")[np.newaxis])
    assert np.array_equal(out[0], found["netG_B"])
    assert not np.array_equal(found["netG_A"], found["netG_B"])
    # A plan goes to another process with its generator.
    plan = plan_translation(source, tmp_path / "plan", weights="netG_A", **options)
    assert run_plan(pickle.loads(pickle.dumps(plan))).status == "whole"
    assert np.array_equal(drawn(tmp_path / "plan" / "00.png"), found["netG_A"])
    with pytest.raises(ModelError, match=r"netG_A \(.*\), netG_B \(.*\); choose one with --direct"):
        translate(source, tmp_path / "none", **options)
    if backend == "auto":
        # What was exported for one of them is never taken for the other.
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in cache.rglob("*.onnx")}
        assert len(digests) == 2


@pytest.mark.behaviour(36, 49)
def test_each_is_exported_and_its_export_says_which_it_is(
    tmp_path: Path, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = {}
    for selection, weights in ((A_TO_B, "netG_A"), (B_TO_A, "netG_B")):
        path = tmp_path / f"{weights}.onnx"
        card = export_onnx(both, path, weights=weights, verify=False).card
        assert card.direction == selection.direction
        described = inspect_file(path)
        assert (described["weights"], described["family"]) == (weights, "resnet")
        assert (described["direction"], described["assumed"]) == (selection.direction, [])
        assert described["source_digest"] == open_model(both, selection=selection).card.digest
        graphs[weights] = path.read_bytes()
    assert graphs["netG_A"] != graphs["netG_B"]
    by_direction = tmp_path / "again.onnx"
    with monkeypatch.context() as patch:
        # Torch exports it again, and the graph that the tests keep is not taken.
        patch.setattr(onnx_export, "graph_from_network", graph_from_network)
        export_onnx(both, by_direction, direction="BtoA", verify=False)
    assert by_direction.read_bytes() == graphs["netG_B"]
    bundle = tmp_path / "bundle"
    export_bundle(both, bundle, target="generic", weights="netG_B", verify=False)
    assert json.loads((bundle / "card.json").read_text())["model"]["weights"] == "netG_B"
    with pytest.raises(ModelError, match=r"--weights chooses among the generators of a checkpoint"):
        export_bundle(by_direction, tmp_path / "other", target="generic", weights="netG_B")


@pytest.mark.behaviour(36)
def test_inspect_says_which_it_is_and_what_else_the_file_holds(
    both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(capsys, "inspect", both, "--weights", "netG_B", "--json")
    described = json.loads(out)
    assert (code, described["weights"], described["direction"]) == (0, "netG_B", "BtoA")
    assert described["also_holds"] == {
        "netG_A": "resnet_1blocks, AtoB",
        "netD_A": "a discriminator (PatchGAN)",
    }
    assert described["certainty"].startswith("certain")
    code, out, _ = command(capsys, "inspect", both, "--direction", "AtoB", "--family", "resnet")
    lines = out.splitlines()
    assert {"family: resnet", "weights: netG_A", "direction: AtoB"} <= set(lines)
    assert lines[lines.index("also_holds:") + 1] == "  netG_B: resnet_1blocks, BtoA"
    code, out, _ = command(capsys, "inspect", both)
    assert (code, "\n  netG_A: resnet_1blocks, AtoB\n  netG_B: resnet_1blocks, BtoA\n" in out) == (
        0,
        True,
    )
    code, _, err = command(capsys, "inspect", both, "--family", "nothing")
    assert (code, "'nothing' is not one of 'resnet', 'unet'" in err) == (2, True)


@pytest.mark.behaviour(21, 49)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_run_that_was_interrupted_goes_on_with_its_own_generator_only(
    tmp_path: Path, both: Path, cache: Path, backend: str
) -> None:
    source, out = pictures(tmp_path / "in", 12), tmp_path / "out"
    options = {"model": both, "backend": backend, "threads": 1, "cache_dir": cache, "batch_size": 1}
    translate(source, tmp_path / "whole", weights="netG_A", **options)
    plan = plan_translation(source, out, weights="netG_A", **options)
    opened = plan.open_backend()
    infer, calls, stopped = opened.infer, iter(range(100)), threading.Event()

    def infer_slowly(frames: Pixels) -> Pixels:
        # The images of a shard appear after a second; the last ones wait until the run is stopped.
        stopped.wait(0.3 if next(calls) < 6 else 60)
        return infer(frames)

    def stop(counters: Counters) -> None:
        if counters.written:
            stopped.set()
            raise KeyboardInterrupt

    opened.infer = infer_slowly  # type: ignore[method-assign]
    first = run_plan(plan, opened, watch=stop)
    assert first.status == "interrupted"
    assert 0 < len(first.outputs) < 12
    with pytest.raises(OutputError, match=r"made .*with --weights netG_A \(now netG_B\); -y"):
        translate(source, out, weights="netG_B", **options)
    # --direction chooses the same generator: it is the same job.
    again = translate(source, out, direction="AtoB", **options)
    assert again.frames == 12 - len(first.outputs)
    for path in (tmp_path / "whole").glob("*.png"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert translate(source, out, weights="netG_A", **options).frames == 0
    assert translate(source, out, weights="netG_B", overwrite=True, **options).frames == 12


class OtherConfig(GeneratorConfig):
    """A network with the weights of the reference's ResNet, and another end."""


def read_as_another(shapes: Shapes) -> Reading | None:
    """Stand for a family whose networks have the weights of the reference's."""
    reading = REFERENCE_RESNET.read(shapes)
    if reading is None:
        return None

    def build() -> torch.nn.Module:
        network = reading.build()
        network.model[-1] = torch.nn.Hardtanh()
        return network

    config = OtherConfig(**asdict(reading.config))
    return Reading(config, build, assumed=("it ends in a hard tanh",))


@pytest.mark.behaviour(21, 49)
def test_of_two_families_that_fit_one_is_named(
    tmp_path: Path, both: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Family("copies", "a stand-in", read_as_another)
    monkeypatch.setattr(families, "FAMILIES", (REFERENCE_RESNET, other))
    source, out = pictures(tmp_path / "in", 2), tmp_path / "out"
    options: dict[str, Any] = {"model": both, "weights": "netG_A", "backend": "torch", "threads": 1}
    listed = (
        r"2 families have such weights: resnet \(the reference CycleGAN's ResNet\), copies \(a "
        r"stand-in\); name one with --family"
    )
    with pytest.raises(ModelError, match=listed):
        translate(source, out, **options)
    translate(source, out, family="resnet", **options)
    with pytest.raises(
        OutputError, match=r"made with --family resnet \(now copies\); -y makes the"
    ):
        translate(source, out, family="copies", **options)
    report = translate(source, tmp_path / "other", family="copies", **options)
    assert [str(note) for note in report.notes].count(
        "both.pth: it is taken that it ends in a hard tanh"
    ) == 1
    assert not np.array_equal(drawn(out / "00.png"), drawn(tmp_path / "other" / "00.png"))
    assert translate(source, out, family="resnet", **options).frames == 0
    described = inspect_file(both, selection=Selection("AtoB", family="copies"))
    assert described["certainty"] == (
        "named by --family, and in part assumed (resnet fits these weights, too)"
    )
    assert described["notes"] == []  # what was assumed is told once
    asked = ["translate", source, tmp_path / "third", "-m", both, "--weights", "netG_A"]
    code, out_text, _ = command(
        capsys, *asked, "--family", "copies", "--backend", "torch", "--dry-run"
    )
    assert (code, "(resnet_1blocks, netG_A, copies, sha256" in out_text) == (0, True)
