"""What a training may add to the reference's step for a better generator at the same cost later."""

from __future__ import annotations

import io
import random

import pytest
import torch
from cyclegan_train import CycleGAN, charts, consistency
from cyclegan_train.augmentation import Augmentation
from cyclegan_train.cyclegan import LOSSES, NETWORKS
from PIL import Image

from tests.synthesis import formulas
from tests.train.test_cyclegan import (
    Tape,
    assert_same_bits,
    assert_same_weights,
    pictures,
    taped,
    tiny,
    transcription,
    weights_of,
    without_effect,
)

ALL = "color,translation,cutout"


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)


def steps_of(model: CycleGAN, count: int, batch: int = 1) -> list[dict[str, float]]:
    """Return the losses of steps that draw the same in every model."""
    random.seed(1)
    torch.manual_seed(1)
    return [model.optimize_parameters(*pictures(number, batch)) for number in range(count)]


def double(model: CycleGAN) -> CycleGAN:
    for net in NETWORKS:
        getattr(model, net).double()
    return model


def both_paths(changes: dict[str, object], **more: object) -> tuple[CycleGAN, CycleGAN]:
    """Return two models of equal weights, the second with more options."""
    plain, other = CycleGAN(tiny(**changes)), CycleGAN(tiny(**changes, **more))
    other.load_state_dict(plain.state_dict())
    return plain, other


def assert_the_steps_of_the_formulas(changes: dict[str, object], count: int = 5) -> None:
    model = double(CycleGAN(tiny(pool_size=2, **changes)))
    step = transcription(model, pool_size=2, **changes)
    for number in range(count):
        A, B = (picture.double() for picture in pictures(number))
        torch.manual_seed(number)
        wanted = step(A, B)
        torch.manual_seed(number)
        found = model.optimize_parameters(A, B)
        assert found == pytest.approx(wanted, rel=1e-8)
    assert_same_weights(model, step.w, atol=1e-10)
    # Adam's first step is as long for a gradient of half the size.
    gradients = iter([*step.gradients_G, *step.gradients_D])
    for net, named in weights_of(model).items():
        for name, weight in named.items():
            gradient = next(gradients)
            if not without_effect(net, name):
                scale = gradient.abs().max().item()
                torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-8 * scale)


# --diffaugment


@pytest.mark.parametrize("gan_mode", ["lsgan", "vanilla"])
def test_steps_whose_discriminators_see_changed_pictures_are_those_of_the_formulas(gan_mode):
    assert_the_steps_of_the_formulas({"diffaugment": ALL, "gan_mode": gan_mode})


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (3, 1, 17, 30), (2, 3, 8, 5)], ids=str)
def test_the_changes_of_pictures_and_their_gradients_are_the_formulas(shape):
    augmentation = Augmentation(ALL)
    holes = set()
    for _ in range(40):
        images = torch.rand(shape, dtype=torch.float64).requires_grad_()
        weights = torch.rand(shape, dtype=torch.float64)
        draws = augmentation.draw(len(images), torch.device("cpu"))
        changed = augmentation(images, draws)
        wanted = torch.cat(
            [formulas.augmented(images[n : n + 1], row) for n, row in enumerate(draws.tolist())]
        )
        torch.testing.assert_close(changed, wanted, rtol=0, atol=1e-12)
        slopes = [
            torch.autograd.grad((out * weights).sum(), images)[0] for out in (changed, wanted)
        ]
        torch.testing.assert_close(*slopes, rtol=0, atol=1e-12)
        holes |= {int((image == 0).all(0).sum()) for image in changed}
    # Holes that end at the border, and some that do not.
    assert len(holes) > 3


def test_every_kind_changes_pictures_in_its_own_way_and_by_the_same_draws():
    images = torch.rand(2, 3, 16, 16) + 1
    draws = torch.rand(2, 7)
    found = {kind: Augmentation(kind)(images, draws) for kind in ("color", "translation", "cutout")}
    assert (found["color"] != images).all()
    assert ((found["cutout"] == images) | (found["cutout"] == 0)).all()
    assert not torch.equal(found["cutout"], images)
    moved = {*found["translation"].flatten().tolist()} - {0.0}
    assert moved < {*images.flatten().tolist()}
    in_turn = images
    for kind in found:
        in_turn = Augmentation(kind)(in_turn, draws)
    # In which order they are named does not count.
    assert torch.equal(Augmentation("cutout, translation,color")(images, draws), in_turn)


def test_draws_at_both_ends_stay_in_the_picture():
    images = torch.ones(2, 1, 8, 8)
    draws = torch.tensor([[0.0] * 7, [1 - 2**-24] * 7])
    shifted = Augmentation("translation")(images, draws)
    assert [int(image.sum()) for image in shifted] == [49, 49]
    holed = Augmentation("cutout")(images, draws)
    assert [int((image == 0).sum()) for image in holed] == [4, 4]


@pytest.mark.behaviour(41)
def test_without_kinds_nothing_is_drawn_and_nothing_computed():
    augmentation, images = Augmentation(""), torch.rand(2, 3, 8, 8)
    assert augmentation(images, augmentation.draw(2, images.device)) is images
    for kinds, drawn in (("", False), (ALL, True)):
        model = CycleGAN(tiny(diffaugment=kinds))
        before = torch.get_rng_state()
        model.step(*pictures(0))
        assert torch.equal(torch.get_rng_state(), before) != drawn


def test_real_and_fake_pictures_change_alike_and_the_pool_stores_them_unchanged():
    model = CycleGAN(tiny(diffaugment=ALL, pool_size=2))
    seen: list[torch.Tensor] = []
    model._backward_discriminator(model.netD_A, *[pictures(0)[0]] * 2)
    model.netD_A.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].detach()))
    model._backward_discriminator(model.netD_A, *[pictures(0)[0]] * 2)
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], pictures(0)[0])
    fakes: list[torch.Tensor] = []
    model.netG_A.register_forward_hook(lambda net, inputs, out: fakes.append(out.detach()))
    model.step(*pictures(1))
    assert torch.equal(model.fake_B_pool.state_dict()[0], fakes[0])


def test_a_batch_in_parts_changes_as_in_one_piece():
    changes = {"diffaugment": ALL, "pool_size": 6}
    whole, parted = (double(model) for model in both_paths(changes, accumulate=2))
    for ours, wanted in zip(steps_of(parted, 3, 4), steps_of(whole, 3, 4), strict=True):
        assert ours == pytest.approx(wanted, rel=1e-9)
    assert_same_weights(parted, weights_of(whole), atol=1e-9)


def test_the_changes_are_computed_in_float32_where_the_networks_are_not():
    exact, half = both_paths({"diffaugment": ALL}, precision="bf16")
    seen = set()
    half.netD_A.register_forward_pre_hook(lambda net, inputs: seen.add(inputs[0].dtype))
    wanted, found = steps_of(exact, 1)[0], steps_of(half, 1)[0]
    assert seen == {torch.float32}
    assert found == pytest.approx(wanted, rel=0.02, abs=0.01)


@pytest.mark.behaviour(41)
@pytest.mark.parametrize("changes", [{}, {"gan_mode": "wgangp", "precision": "bf16"}], ids=str)
def test_changes_in_a_step_that_could_be_recorded_have_the_bits_of_the_plain_one(changes):
    plain = CycleGAN(tiny(pool_size=2, diffaugment=ALL, **changes))
    recorded = taped(Tape(), pool_size=2, diffaugment=ALL, **changes)
    recorded.load_state_dict(plain.state_dict())
    assert steps_of(recorded, 6, 2) == steps_of(plain, 6, 2)
    assert_same_bits(plain.state_dict(), recorded.state_dict())


def test_a_second_forward_pass_draws_no_other_changes():
    plain, thrifty = both_paths({"diffaugment": ALL}, checkpoint_activations=True)
    assert steps_of(plain, 2) == steps_of(thrifty, 2)


@pytest.mark.parametrize("text", ["colour", "color,", "color;cutout"])
def test_an_unknown_kind_of_change_errors(text):
    with pytest.raises(ValueError, match=r"diffaugment: '.*' is none of color, translation, cutou"):
        tiny(diffaugment=text)


# --lambda-geometry


def test_steps_with_geometry_consistency_are_those_of_the_formulas():
    assert_the_steps_of_the_formulas({"lambda_geometry": 3.0}, count=8)


def test_steps_with_all_of_it_are_those_of_the_formulas():
    assert_the_steps_of_the_formulas(
        {"lambda_geometry": 3.0, "lambda_temporal": 2.0, "diffaugment": ALL}, count=3
    )


def test_the_four_turns():
    one = torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = [consistency.turned(one.view(1, 1, 2, 3), turn)[0, 0].tolist() for turn in range(4)]
    assert found[0] == [[3, 6], [2, 5], [1, 4]]
    assert found[1] == [[4, 1], [5, 2], [6, 3]]
    assert found[2] == [[3, 2, 1], [6, 5, 4]]
    assert found[3] == [[4, 5, 6], [1, 2, 3]]
    assert {consistency.draw_turn() for _ in range(100)} == {0, 1, 2, 3}


def test_a_generator_that_treats_all_places_and_directions_alike_is_consistent():
    model = CycleGAN(tiny(lambda_geometry=2.0))
    for net in (model.netG_A, model.netG_B):
        net.forward = torch.tanh
    A, B = pictures(0)
    losses, _, _ = model._backward_generators(
        A.requires_grad_(),
        B.requires_grad_(),
        *[torch.empty(1, 0)] * 2,
        consistency.Drawn((0, 3), ()),
    )
    assert losses["geometry_A"] == losses["geometry_B"] == 0
    # One that darkens one side is not.
    model.netG_A.forward = lambda x: torch.tanh(x - torch.linspace(0, 1, 32))
    losses, _, _ = model._backward_generators(
        A, B, *[torch.empty(1, 0)] * 2, consistency.Drawn((2, 2), ())
    )
    assert losses["geometry_A"] > 0.1
    assert losses["geometry_B"] == 0


@pytest.mark.parametrize("weight", ["lambda_geometry", "lambda_temporal"])
def test_consistency_of_a_batch_in_parts_is_that_of_the_batch(weight):
    whole, parted = map(double, both_paths({weight: 2.0, "pool_size": 6}, accumulate=2))
    for ours, wanted in zip(steps_of(parted, 3, 4), steps_of(whole, 3, 4), strict=True):
        assert ours == pytest.approx(wanted, rel=1e-9)
    assert_same_weights(parted, weights_of(whole), atol=1e-9)


@pytest.mark.parametrize(
    "more", [{"checkpoint_activations": True}, {"joint_identity": True}, {"precision": "bf16"}]
)
def test_consistency_goes_with_what_saves_time_or_memory(more):
    plain, other = both_paths({"lambda_geometry": 2.0, "lambda_temporal": 1.0}, **more)
    A, B = (torch.cat([picture, picture], 3) for picture in pictures(0))  # wide
    found = []
    for model in (plain, other):
        random.seed(3)
        torch.manual_seed(3)
        found.append(model.optimize_parameters(A, B))
    assert found[1] == pytest.approx(found[0], rel=0.02, abs=0.01)
    assert found[0]["geometry_A"] > 0.01


@pytest.mark.behaviour(41)
def test_without_its_weight_no_turn_is_drawn_and_no_loss_reported():
    for weight, drawn in ((0.0, False), (1.0, True)):
        model = CycleGAN(tiny(lambda_geometry=weight))
        before = random.getstate()
        losses = model.optimize_parameters(*pictures(0))
        assert (random.getstate() != before) == drawn
        assert tuple(losses) == model.losses
        assert ("geometry_A" in losses) == drawn


def test_a_run_has_a_panel_for_its_consistency_losses():
    curves = {name: [1.0, 2.0] for name in LOSSES}
    more = curves | {name: [0.5, 0.25] for name in consistency.CONSISTENCY_LOSSES[:2]}
    widths = [
        Image.open(io.BytesIO(charts.losses_png([1, 2], each))).width for each in (curves, more)
    ]
    assert widths[1] == widths[0] * 3 // 2


# --lambda-temporal


def test_steps_with_temporal_consistency_are_those_of_the_formulas():
    assert_the_steps_of_the_formulas({"lambda_temporal": 3.0}, count=4)


def test_a_flow_is_smooth_and_moves_pictures_as_far_as_it_says():
    images = torch.zeros(64, 3, 128, 256)
    flow, noise, other = consistency.draw_motion(images, 1)
    assert flow.shape == (64, 2, 128, 256)
    assert (noise.shape[1], other.shape[1]) == (3, 1)
    # 128 / 32 pixels at the corners, and a shift of up to 5 pixels, whose variance is 10.
    assert flow[:, :, 0, 0].std() == pytest.approx((4**2 + 10) ** 0.5, rel=0.25)
    assert flow.diff(dim=3).abs().max() < 0.5
    assert noise.std() == pytest.approx(0.001, rel=0.02)
    assert flow.flatten(2).std(dim=2).min() > 0.1


def test_pictures_move_by_whole_pixels_and_are_mirrored_at_the_border():
    row = torch.tensor([0.0, 1, 2, 3, 4]).expand(1, 1, 4, 5)
    flow = torch.tensor([2.0, 0]).view(1, 2, 1, 1).expand(1, 2, 4, 5)
    wanted = torch.tensor([2.0, 3, 4, 3, 2]).expand(1, 1, 4, 5)
    torch.testing.assert_close(consistency.warped(row, flow), wanted, rtol=0, atol=1e-5)
    assert consistency.warped(row.bfloat16(), flow).dtype == torch.float32
    column = row.transpose(2, 3)
    turned = consistency.warped(column, flow.flip(1).transpose(2, 3))
    torch.testing.assert_close(turned, wanted.transpose(2, 3), rtol=0, atol=1e-5)


@pytest.mark.behaviour(41)
def test_temporal_consistency_in_a_step_that_could_be_recorded_has_the_bits_of_the_plain_one():
    plain = CycleGAN(tiny(pool_size=2, lambda_temporal=2.0))
    ready = CycleGAN(tiny(pool_size=2, lambda_temporal=2.0, cuda_graphs=True))
    ready.load_state_dict(plain.state_dict())
    assert steps_of(ready, 4) == steps_of(plain, 4)
    assert_same_bits(plain.state_dict(), ready.state_dict())


@pytest.mark.behaviour(41)
def test_without_its_weight_no_motion_is_drawn():
    for weight, drawn in ((0.0, False), (1.0, True)):
        model = CycleGAN(tiny(lambda_temporal=weight))
        before = torch.get_rng_state()
        losses = model.optimize_parameters(*pictures(0))
        assert torch.equal(torch.get_rng_state(), before) != drawn
        assert ("temporal_B" in losses) == drawn
