"""The fused operator and the generators around it, against torch's own functions in float64.

Without a GPU the kernels run in Triton's interpreter, on tiny images; on a GPU one test compiles
and runs all cases, and larger ones.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.conftest import INTERPRETED, REPOSITORY
from tests.needs import package

torch = package("torch")
package("triton")

from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from cyclegan_batch.models import fused  # noqa: E402
from cyclegan_batch.models.fused import operator  # noqa: E402
from cyclegan_batch.models.networks import (  # noqa: E402
    GeneratorConfig,
    generator_from_config,
    init_weights,
)

interpreted = pytest.mark.skipif(not INTERPRETED, reason="Triton compiles here")

ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}
"""The largest error of a rounded result, relative to it. Triton's interpreter rounds to bfloat16
towards 0, a GPU to the nearest."""


SMALL = fused.Tiling(32, 2)


@dataclass(frozen=True)
class Case:
    """Arguments of `norm_act_pad`; ``shape`` is ``(N, H, W, C)``, in pixels."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    relu: bool = False
    pad: int = 0
    residual_pad: int | None = None
    tiling: fused.Tiling | None = SMALL

    def tensors(self, device: str = "cpu") -> tuple[Tensor, Tensor | None, Tensor]:
        """Return x with a mean far from 0, the residual, and the gradient of the result."""
        draws = torch.Generator().manual_seed(0)
        n, h, w, c = self.shape

        def drawn(border: int) -> Tensor:
            values = torch.randn(n, h + 2 * border, w + 2 * border, c, generator=draws)
            return values.to(device, self.dtype)

        x = (drawn(0) * 0.5 + 8).requires_grad_()
        residual = self.residual_pad
        return x, None if residual is None else drawn(residual).requires_grad_(), drawn(self.pad)

    def run(self, x: Tensor, residual: Tensor | None, **how: Any) -> Tensor:
        return fused.norm_act_pad(
            x, self.shape[3], relu=self.relu, pad=self.pad, residual=residual,
            residual_pad=self.residual_pad or 0, **{"tiling": self.tiling} | how,
        )  # fmt: skip

    def by_torch(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return the same in torch's functions."""
        y = F.instance_norm(x.permute(0, 3, 1, 2), eps=1e-5)
        y = F.relu(y) if self.relu else y
        if residual is not None:
            border = self.residual_pad or 0
            inside = slice(border, -border or None)
            y = y + residual[:, inside, inside].permute(0, 3, 1, 2)
        return F.pad(y, (self.pad,) * 4, mode="reflect").permute(0, 2, 3, 1)


CASES = [
    # Sides that are no multiples of a tile, and channels that are no power of 2.
    Case((2, 6, 9, 12), torch.float16, relu=True, pad=1),
    # Nearly as wide a border as there can be: some pixels are in it on both sides.
    Case((1, 5, 7, 3), relu=True, pad=3),
    Case((2, 4, 4, 5), pad=3, residual_pad=0),
    # More channels than a program takes.
    Case((1, 9, 6, 70), torch.bfloat16, pad=1, residual_pad=1),
    Case((1, 6, 6, 4), torch.float16, relu=True, residual_pad=1),
    Case((2, 2, 65, 1), residual_pad=2, pad=1, tiling=fused.Tiling(64, 2)),
    Case((1, 16, 16, 8), torch.bfloat16, relu=True, pad=1, tiling=None),
    # Statistics and sums of eight parts.
    Case((1, 16, 18, 4), relu=True, residual_pad=1, pad=1, tiling=fused.Tiling(16, 16)),
]


def near(found: Tensor | None, wanted: Tensor | None, dtype: torch.dtype, share: float = 1) -> None:
    """Assert that ``found`` is ``wanted`` but for a rounding to ``dtype``, and float32's errors."""
    assert found is not None
    assert wanted is not None
    assert found.dtype == dtype
    scale = float(wanted.detach().abs().max())
    torch.testing.assert_close(
        found.double(), wanted, rtol=share * ROUNDING[dtype], atol=4e-6 * scale
    )


def compare(case: Case, device: str) -> None:
    """Assert that result and gradients are torch's."""
    x, residual, gradient = case.tensors(device)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, residual)]
    wanted = case.by_torch(*exact)
    found = case.run(x, residual)
    near(found, wanted, case.dtype)
    found.backward(gradient)
    wanted.backward(gradient.double())
    near(x.grad, exact[0].grad, case.dtype)
    if residual is not None:
        near(residual.grad, exact[1].grad, case.dtype)
    with torch.no_grad():
        assert torch.equal(case.run(x, residual), found)


@interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients_are_those_of_torchs_functions_in_a_row(case):
    compare(case, "cpu")


@pytest.mark.needs_cuda
def test_on_a_gpu_results_and_gradients_are_those_of_torchs_functions():
    for case in (
        *CASES,
        Case((2, 64, 64, 256), torch.float16, relu=True, pad=1, tiling=None),
        Case((1, 33, 47, 256), torch.bfloat16, pad=1, residual_pad=1, tiling=None),
        Case((1, 256, 256, 64), relu=True, pad=3, tiling=None),
    ):
        compare(case, "cuda")
        x, residual, gradient = case.tensors("cuda")
        bits = [torch.autograd.grad(case.run(x, residual), x, gradient)[0] for _ in range(3)]
        assert torch.equal(bits[0], bits[1])
        assert torch.equal(bits[0], bits[2])


@pytest.mark.needs_cuda
def test_on_a_gpu_an_image_of_more_than_2_31_values():
    x = torch.randn(1, 4096, 8200, 64, device="cuda", dtype=torch.float16).requires_grad_()
    out = fused.norm_act_pad(x, 64, relu=False, pad=1)
    values = x.detach()[:, -4:].float()
    variance, mean = torch.var_mean(x.detach().float(), (1, 2), correction=0)
    wanted = (values - mean) / variance.sqrt()
    torch.testing.assert_close(out[:, -5:-1, 1:-1].float(), wanted, atol=2e-3, rtol=2e-3)
    out.backward(torch.ones_like(out))
    assert x.grad is not None
    assert torch.isfinite(x.grad[:, -4:]).all()


@interpreted
@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
def test_long_indices_give_the_same_bits(case, monkeypatch):
    x, residual, gradient = case.tensors()
    bits = []
    for least in (2**31, 1):
        monkeypatch.setattr(operator, "_LONG", least)
        out = case.run(x, residual)
        wanted = [t for t in (x, residual) if t is not None]
        bits.append([out, *torch.autograd.grad(out, wanted, gradient)])
    assert all(torch.equal(*pair) for pair in zip(*bits, strict=True))


@pytest.mark.parametrize(
    ("side", "pad", "long"), [(5793, 0, True), (5700, 0, False), (5788, 3, True)]
)
def test_indices_are_long_from_2_31_values_on(side, pad, long):
    job = operator._Job(64, True, pad, 0, False, False, 1e-5, fused.Tiling())
    assert job._long(side, side) == long


@interpreted
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_stays_so_in_its_image_and_channel():
    """ReLU by a maximum would turn NaN into 0, and hide it from whoever looks for it."""
    case = Case((2, 4, 6, 3), relu=True, pad=1)
    x, _, gradient = case.tensors()
    with torch.no_grad():
        x[0, 2, 3, 1] = float("inf")
    out = case.run(x, None)
    out.backward(gradient)
    broken = torch.zeros(2, 1, 1, 3, dtype=torch.bool)
    broken[0, 0, 0, 1] = True
    for values in (out, x.grad):
        assert torch.equal(values.isfinite().all((1, 2)), ~broken[:, 0, 0])
        assert values[0, ..., 1].isnan().all()


@interpreted
@pytest.mark.parametrize("layout", ["sliced", "transposed"])
def test_tensors_that_are_not_contiguous_are_taken(layout):
    case = Case((1, 6, 6, 4), pad=1, residual_pad=1)
    x, residual, _ = case.tensors()

    def laid(t: Tensor) -> Tensor:
        if layout == "sliced":
            return F.pad(t, (1, 2))[..., 1:-2]
        return t.transpose(1, 2).contiguous().transpose(1, 2)

    with torch.no_grad():
        found = case.run(laid(x), laid(residual))
        assert torch.equal(found, case.run(x, residual))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 5}, r"x is \(1, 6, 6, 4\); norm_act_pad takes \(N, H, W, 5\)"),
        ({"x": torch.zeros(1, 6, 6, 4, dtype=torch.float64)}, "x is torch.float64; norm_act_pad"),
        ({"pad": 6}, "a reflected border of 6 needs more pixels than 6×6"),
        ({"residual": torch.zeros(1, 6, 6, 4), "residual_pad": 1},
         r"the residual is \(1, 6, 6, 4\), not \(1, 8, 8, 4\)"),
        ({"x": torch.zeros(1, 5, 6, 4), "cells_out": True}, "5×6 pixels are no whole number"),
        ({"x": torch.zeros(1, 6, 6, 4, requires_grad=True), "cells_out": True},
         "computes no gradients through cells"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_errors(changes, message):
    arguments = {"x": torch.zeros(1, 6, 6, 4), "channels": 4, "relu": True} | changes
    with pytest.raises(ValueError, match=message):
        fused.norm_act_pad(arguments.pop("x"), arguments.pop("channels"), **arguments)


# Cells


def cells(x: Tensor) -> Tensor:
    """Lay 2×2 pixels of ``(N, H, W, C)`` into the channels of one."""
    n, h, w, c = x.shape
    return (
        x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, -1)
    )


@interpreted
@pytest.mark.parametrize(("pad", "inwards"), [(0, True), (3, False)])
@pytest.mark.parametrize("least", [2**31, 1])
def test_tensors_may_be_in_cells(pad, inwards, least, monkeypatch):
    monkeypatch.setattr(operator, "_LONG", least)
    case = Case((2, 6, 10, 12), torch.float16, relu=True, pad=pad)
    x = case.tensors()[0].detach()
    laid = cells(x) if inwards else x
    found = case.run(laid, None, cells_in=inwards, cells_out=not inwards)
    wanted = case.by_torch(x.double(), None)
    near(found, wanted if inwards else cells(wanted), torch.float16)


def test_a_7x7_convolution_is_a_4x4_one_between_cells():
    torch.manual_seed(0)
    x = torch.randn(2, 14, 18, 3, dtype=torch.float64)
    weight = torch.randn(5, 3, 7, 7, dtype=torch.float64)
    wanted = F.conv2d(x.permute(0, 3, 1, 2), weight).permute(0, 2, 3, 1)
    laid = cells(x).permute(0, 3, 1, 2)
    found = F.conv2d(laid, fused.in_cells(weight)).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, cells(wanted), atol=1e-12, rtol=0)


# Generators

TINY = GeneratorConfig("resnet_2blocks", ngf=4)


def network_of(config: GeneratorConfig) -> torch.nn.Module:
    """Return a generator in eval mode, whose output is neither flat nor saturated."""
    torch.manual_seed(0)
    network = generator_from_config(config)
    init_weights(network, init_gain=0.3)
    for name, value in network.state_dict().items():
        if name.endswith("bias"):
            value.normal_(0, 0.3)
    return network.eval()


def by_network(network: torch.nn.Module, config: GeneratorConfig, frames: Tensor) -> Tensor:
    """Return tanh of ``network`` in float64 ``(N, H, W, 3)``, by the contract's arithmetic."""
    exact = copy.deepcopy(network).double()
    for module in exact.modules():
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda x: F.instance_norm(x)
    x = frames.double() / (255 if frames.dtype == torch.uint8 else 1) * 2 - 1
    if config.input_nc == 1:
        x = x @ x.new_tensor([[0.299], [0.587], [0.114]])
    with torch.no_grad():
        return exact(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).expand(*x.shape[:3], 3)


def frames_of(height: int, width: int, count: int = 2) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, height, width, 3), generator=draws, dtype=torch.uint8)


@interpreted
@pytest.mark.parametrize(
    ("config", "cells", "size"),
    [
        (TINY, True, (12, 8)),
        (replace(TINY, input_nc=1, ngf=6), True, (8, 8)),
        (replace(TINY, output_nc=1, netG="resnet_0blocks"), False, (16, 8)),
        (replace(TINY, input_nc=1, output_nc=1, dropout=True), True, (8, 8)),
    ],
    ids=str,
)
def test_a_fused_generator_translates_as_its_network_does(config, cells, size):
    assert fused.why_not_fused(config) is None
    network, frames = network_of(config), frames_of(*size)
    wanted = by_network(network, config, frames)
    assert float(wanted.std()) > 0.1
    generator = fused.FusedGenerator(network, "cpu", cells=cells, dtype=torch.float32)
    out, values = generator.with_values(frames)
    assert generator.flips == 0
    # In grey levels; over four pixels of a trunk, the norm makes rounding errors ten times larger.
    torch.testing.assert_close(values.double(), wanted * 127.5 + 128, atol=0.03, rtol=0)
    assert torch.equal(out, values.floor().to(torch.uint8))
    assert torch.equal(generator(frames), out)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_fused_generator_in_half_precision_is_as_good_as_its_network(dtype):
    network, frames = network_of(TINY), (frames_of(12, 16).half() / 255)
    wanted = by_network(network, TINY, frames) / 2 + 0.5
    out = fused.FusedGenerator(network, "cpu", cells=True, dtype=dtype)(frames)
    assert out.dtype == torch.float16
    with torch.no_grad():
        plain = network.to(dtype)((frames * 2 - 1).permute(0, 3, 1, 2).to(dtype))
    apart = plain.double().permute(0, 2, 3, 1) / 2 + 0.5 - wanted
    # Triton's interpreter rounds to bfloat16 towards 0.
    assert (out.double() - wanted).std() < 3 * apart.std()


@pytest.mark.parametrize("size", [(10, 8), (8, 4)])
def test_a_fused_generator_refuses_sizes_that_its_network_would_change(size):
    generator = fused.FusedGenerator(network_of(TINY), "cpu", cells=False)
    with pytest.raises(ValueError, match=f"{size[0]}×{size[1]} pixels are not multiples of 4 from"):
        generator(frames_of(*size))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GeneratorConfig("resnet_9blocks"), None),
        (GeneratorConfig("resnet_6blocks", 1, 3, 32, dropout=True), None),
        (GeneratorConfig("unet_256"), "unet_256 is no plain ResNet"),
        (GeneratorConfig("mobile_resnet_9blocks"), "mobile_resnet_9blocks is no plain ResNet"),
        (GeneratorConfig(norm="batch"), "its norm is 'batch', not 'instance'"),
        (GeneratorConfig(upsample="resize"), "it upsamples by 'resize', not 'deconv'"),
        (GeneratorConfig(output_nc=2), "it maps 3 channels to 2, not 1 or 3 to 1 or 3"),
    ],
    ids=str,
)
def test_what_can_be_fused_is_told(config, reason):
    assert fused.why_not_fused(config) == reason


# Training


def gradients_of(
    network: torch.nn.Module, half: torch.dtype | None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a translation of two images of 16², and the gradients of the network and of them."""
    draws = torch.Generator().manual_seed(2)
    x = (torch.rand(2, 3, 16, 16, generator=draws) * 2 - 1).to(dtype).requires_grad_()
    weights = torch.randn(2, 3, 16, 16, generator=draws)
    with torch.autocast("cpu", half, enabled=half is not None):
        y = network(x)
    (y.to(dtype) * weights).sum().backward()
    assert x.grad is not None
    found = {
        name: weight.grad
        for name, weight in network.named_parameters()
        # Other biases stand before a norm: their gradient is a rounding error, or absent.
        if weight.dim() > 1 or name == "model.19.bias"
    }
    return y.detach(), found | {"x": x.grad}


def relative(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == wanted.keys()
    return {name: float((found[name] - each).norm() / each.norm()) for name, each in wanted.items()}


def pair_of(config: GeneratorConfig) -> tuple[torch.nn.Module, fused.FusedResnet]:
    network = network_of(config).train()
    trained = fused.FusedResnet(config)
    trained.load_state_dict(network.state_dict())
    return network, trained


@interpreted
def test_a_fused_resnet_has_the_gradients_of_the_plain_one():
    network, trained = pair_of(TINY)
    wanted, exact = gradients_of(copy.deepcopy(network).double(), None, torch.float64)
    plain, plain_gradients = gradients_of(network, None)
    found, gradients = gradients_of(trained, None)
    # Tried: 2.1 and 2.8 times as far from float64 as the plain network in float32 is.
    assert (found - wanted).std() < 5 * (plain - wanted).std()
    assert len(exact) == 12
    apart = max(relative(plain_gradients, exact).values())
    assert max(relative(gradients, exact).values()) < 5 * apart
    absent = [name for name, weight in trained.named_parameters() if weight.grad is None]
    assert len(absent) == 9
    assert all(name.endswith("bias") for name in absent)


@interpreted
def test_in_bfloat16_its_gradients_are_as_good_as_the_plain_ones():
    half = torch.bfloat16
    network, trained = pair_of(TINY)
    _, exact = gradients_of(copy.deepcopy(network), None)
    plain, plain_gradients = gradients_of(network, half)
    found, gradients = gradients_of(trained, half)
    assert found.dtype == plain.dtype
    apart = relative(plain_gradients, exact)
    # In either network a rounding may switch a ReLU on or off. With six pairs of images that moved
    # a weight's gradient by at most a sixth more than in the other network.
    for name, by in relative(gradients, exact).items():
        assert by < 2 * apart[name] + 0.1, name


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (replace(TINY, dropout=True), "it has dropout, which comes between"),
        (replace(TINY, norm="batch"), "its norm"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_fused_errors(config, reason):
    with pytest.raises(ValueError, match=f"cannot run with the fused operator: {reason}"):
        fused.FusedResnet(config)


# Compilation

HOPPER = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cyclegan_batch.models.fused import kernels
FLOATS, BYTES = "*fp32", "*u8"
TILES = dict(BP=64, BC=64, TILES=2)

def compiled(kernel, pointers, **constants):
    names = kernel.arg_names
    kinds = dict(eps="fp32", factor="fp32", shift="fp32")
    types = {
        n: pointers.get(n, "constexpr" if n in constants else kinds.get(n, "i32")) for n in names
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature=types, constexprs=values)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(kernel.__name__, len(made.asm["cubin"]))

for pixels, long in (("*fp16", False), ("*bf16", True)):
    sums = dict(parts=FLOATS, statistics=FLOATS, sums=FLOATS)
    images = dict.fromkeys(("x", "residual", "out", "gradient", "of_x", "of_residual"), pixels)
    both = sums | images
    compiled(kernels.statistics_of_parts, both, C=256, LONG=long, BP=64, BC=64)
    compiled(kernels.statistics_of_images, sums, C=256, S=16 if long else 1, BC=16)
    compiled(kernels.normalized, both, C=64, RELU=False, PAD=1, ADDS=True, RESIDUAL_PAD=1,
             CELLS_IN=True, CELLS_OUT=True, LONG=long, **TILES)
    compiled(kernels.gradient_sums_of_parts, both, C=64, RELU=True, PAD=3, LONG=long, BP=64, BC=64)
    compiled(kernels.gradients, both, C=256, RELU=True, PAD=1, ADDS=True, RESIDUAL_PAD=1,
             LONG=long, **TILES)
    compiled(kernels.first_input, dict(frames=BYTES, out=pixels), CHANNELS=3, CELL=2, CP=16, BP=64)
    compiled(kernels.last_output, dict(y=pixels, bias=FLOATS, frames=BYTES), CHANNELS=3, CELL=2,
             CP=16, ROUNDS=True, B=1024)
"""


@pytest.mark.slow
def test_the_kernels_are_compiled_for_hopper_without_a_gpu(tmp_path):
    """Triton's interpreter takes more than its compiler does."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", HOPPER],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    sizes = [int(line.split()[1]) for line in run.stdout.splitlines()]
    assert len(sizes) == 14
    assert min(sizes) > 1000
