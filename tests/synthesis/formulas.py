"""The networks and the losses of a CycleGAN as formulas: plain torch operations on named weights.

Written from the paper and the published architecture, in straight lines, with nothing of the
product: what the product's modules, step and checkpoints are held to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Weights = Mapping[str, Tensor]


def instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x, eps=1e-5)


def resnet(w: Weights, x: Tensor, n_blocks: int) -> Tensor:
    """Return what a ResNet generator with InstanceNorm and no dropout makes of ``x``."""

    def conv(x: Tensor, name: str, pad: int = 0, stride: int = 1) -> Tensor:
        if pad:
            x = F.pad(x, (pad, pad, pad, pad), mode="reflect")
        same = 1 if stride == 2 else 0
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=same)

    def up(x: Tensor, name: str) -> Tensor:
        return F.conv_transpose2d(
            x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1, output_padding=1
        )

    x = F.relu(instance_norm(conv(x, "model.1", pad=3)))
    x = F.relu(instance_norm(conv(x, "model.4", stride=2)))
    x = F.relu(instance_norm(conv(x, "model.7", stride=2)))
    for number in range(10, 10 + n_blocks):
        block = F.relu(instance_norm(conv(x, f"model.{number}.conv_block.1", pad=1)))
        x = x + instance_norm(conv(block, f"model.{number}.conv_block.5", pad=1))
    x = F.relu(instance_norm(up(x, f"model.{10 + n_blocks}")))
    x = F.relu(instance_norm(up(x, f"model.{13 + n_blocks}")))
    return torch.tanh(conv(x, f"model.{17 + n_blocks}", pad=3))


def unet(w: Weights, x: Tensor, num_downs: int) -> Tensor:
    """Return what a U-Net with InstanceNorm and no dropout makes of ``x``."""

    def level(x: Tensor, depth: int, prefix: str) -> Tensor:
        outermost, innermost = depth == 1, depth == num_downs
        first = 0 if outermost else 1
        y = x if outermost else F.leaky_relu(x, 0.2)
        down, up = f"{prefix}.{first}", f"{prefix}.{3 if outermost or innermost else 5}"
        y = F.conv2d(y, w[f"{down}.weight"], w[f"{down}.bias"], stride=2, padding=1)
        if not innermost:
            if not outermost:
                y = instance_norm(y)
            y = level(y, depth + 1, f"{prefix}.{1 if outermost else 3}.model")
        y = F.conv_transpose2d(F.relu(y), w[f"{up}.weight"], w[f"{up}.bias"], stride=2, padding=1)
        return torch.tanh(y) if outermost else torch.cat([x, instance_norm(y)], 1)

    return level(x, 1, "model.model")


def patchgan(w: Weights, x: Tensor, n_layers: int = 3) -> Tensor:
    """Return the scores of a PatchGAN with InstanceNorm."""
    x = F.leaky_relu(F.conv2d(x, w["model.0.weight"], w["model.0.bias"], 2, 1), 0.2)
    for n in range(1, n_layers + 1):
        name, stride = f"model.{3 * n - 1}", 2 if n < n_layers else 1
        x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, 1)
        x = F.leaky_relu(instance_norm(x), 0.2)
    name = f"model.{3 * n_layers + 2}"
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], 1, 1)


def adversarial(scores: Tensor, real: bool, gan_mode: str) -> Tensor:
    if gan_mode == "lsgan":
        return ((scores - (1.0 if real else 0.0)) ** 2).mean()
    if gan_mode == "vanilla":
        # −log σ(x), and −log (1 − σ(x)) = x − log σ(x).
        return (-F.logsigmoid(scores) if real else scores - F.logsigmoid(scores)).mean()
    return -scores.mean() if real else scores.mean()


def augmented(x: Tensor, u: list[float]) -> Tensor:
    """Return what DiffAugment (color, translation, cutout) makes of one picture, by seven draws."""
    rows, columns = x.shape[2:]
    x = x + u[0] - 0.5
    grey = x.mean(1, keepdim=True)
    x = grey + 2 * u[1] * (x - grey)
    x = x.mean() + (u[2] + 0.5) * (x - x.mean())
    far = (int(rows / 8 + 0.5), int(columns / 8 + 0.5))
    down, right = (int(u[3 + n] * (2 * far[n] + 1)) for n in (0, 1))
    x = F.pad(x, (far[1], far[1], far[0], far[0]))
    x = x[:, :, down : down + rows, right : right + columns]
    hole = (int(rows / 2 + 0.5), int(columns / 2 + 0.5))
    top, left = (
        int(u[5 + n] * (side + 1 - hole[n] % 2)) - hole[n] // 2
        for n, side in enumerate((rows, columns))
    )
    kept = torch.ones_like(x)
    kept[:, :, max(0, top) : top + hole[0], max(0, left) : left + hole[1]] = 0
    return x * kept


def motion(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the flow of a square picture of less than 300 pixels, and noise for two pictures."""
    side = x.shape[2]
    flow = torch.randn(1, 2, 2, 2) * side / 32
    far = int(side * 10 / 256 + 0.5)
    shift = [int(u * (2 * far + 1)) - far for u in torch.rand(2).tolist()]
    flow = F.interpolate(flow, (side, side), mode="bicubic", align_corners=True)
    flow = flow + torch.tensor(shift).view(1, 2, 1, 1)
    one, other = (torch.randn(1, 3, side, side) * 0.001 for _ in range(2))
    return flow.to(x.dtype), one.to(x.dtype), other.to(x.dtype)


def warped(x: Tensor, flow: Tensor) -> Tensor:
    """Take every pixel from where the flow leads, between four others; the border is a mirror."""
    side = x.shape[2]
    places = torch.arange(side, dtype=x.dtype)
    right, down = places + flow[0, 0], places[:, None] + flow[0, 1]

    def mirrored(place: Tensor) -> Tensor:
        place = place.abs() % (2 * (side - 1))
        return torch.where(place > side - 1, 2 * (side - 1) - place, place)

    right, down = mirrored(right), mirrored(down)
    left, top = right.floor().long(), down.floor().long()
    most = side - 1
    a, b = right - left, down - top
    upper = (1 - a) * x[..., top, left] + a * x[..., top, (left + 1).clamp(max=most)]
    below = (top + 1).clamp(max=most)
    lower = (1 - a) * x[..., below, left] + a * x[..., below, (left + 1).clamp(max=most)]
    return (1 - b) * upper + b * lower


class Adam:
    """Kingma and Ba 2015, algorithm 1."""

    def __init__(self, weights: list[Tensor], lr: float, beta1: float) -> None:
        self.weights, self.lr, self.betas, self.t = weights, lr, (beta1, 0.999), 0
        self.m = [torch.zeros_like(w) for w in weights]
        self.v = [torch.zeros_like(w) for w in weights]

    def step(self, gradients: tuple[Tensor, ...]) -> None:
        self.t += 1
        one, two = self.betas
        with torch.no_grad():
            for w, g, m, v in zip(self.weights, gradients, self.m, self.v, strict=True):
                m.mul_(one).add_(g, alpha=1 - one)
                v.mul_(two).add_(g * g, alpha=1 - two)
                size = self.lr / (1 - one**self.t)
                root = v.sqrt() / math.sqrt(1 - two**self.t) + 1e-8
                w.sub_(size * m / root)


class Pool:
    """Fill, then a coin for each picture: it comes back, or a random stored one in its place."""

    def __init__(self, size: int, draws: random.Random) -> None:
        self.size, self.draws, self.stored = size, draws, []

    def __call__(self, picture: Tensor) -> Tensor:
        if len(self.stored) < self.size:
            self.stored.append(picture)
            return picture
        if self.size == 0 or self.draws.uniform(0, 1) <= 0.5:
            return picture
        place = self.draws.randint(0, self.size - 1)
        picture, self.stored[place] = self.stored[place], picture
        return picture


class Step:
    """One CycleGAN step after the other on batches of one, on four dicts of weights."""

    def __init__(
        self,
        weights: Mapping[str, Weights],
        *,
        n_blocks: int,
        draws: random.Random,
        gan_mode: str = "lsgan",
        lambda_A: float = 10.0,
        lambda_B: float = 10.0,
        lambda_identity: float = 0.5,
        pool_size: int = 50,
        lr: float = 2e-4,
        diffaugment: str = "",
        lambda_geometry: float = 0.0,
        lambda_temporal: float = 0.0,
    ) -> None:
        self.lambda_temporal = lambda_temporal
        self.draws, self.lambda_geometry = draws, lambda_geometry
        self.diffaugment = diffaugment
        self.w = {
            net: {name: value.detach().clone().requires_grad_() for name, value in named.items()}
            for net, named in weights.items()
        }
        self.n_blocks, self.gan_mode = n_blocks, gan_mode
        self.lambda_A, self.lambda_B, self.lambda_identity = lambda_A, lambda_B, lambda_identity
        self.pool_A, self.pool_B = Pool(pool_size, draws), Pool(pool_size, draws)
        self.of_G = [*self.w["netG_A"].values(), *self.w["netG_B"].values()]
        self.of_D = [*self.w["netD_A"].values(), *self.w["netD_B"].values()]
        self.adam_G, self.adam_D = Adam(self.of_G, lr, 0.5), Adam(self.of_D, lr, 0.5)
        self.gradients_G: tuple[Tensor, ...] = ()
        self.gradients_D: tuple[Tensor, ...] = ()

    def __call__(self, A: Tensor, B: Tensor) -> dict[str, float]:
        def G_A(x: Tensor) -> Tensor:  # noqa: N802
            return resnet(self.w["netG_A"], x, self.n_blocks)

        def G_B(x: Tensor) -> Tensor:  # noqa: N802
            return resnet(self.w["netG_B"], x, self.n_blocks)

        def D_A(x: Tensor) -> Tensor:  # noqa: N802
            return patchgan(self.w["netD_A"], x)

        def D_B(x: Tensor) -> Tensor:  # noqa: N802
            return patchgan(self.w["netD_B"], x)

        def gan(scores: Tensor, real: bool) -> Tensor:
            return adversarial(scores, real, self.gan_mode)

        def change() -> Callable[[Tensor], Tensor]:
            if not self.diffaugment:
                return lambda x: x
            (u,) = torch.rand(1, 7).tolist()
            return lambda x: augmented(x, u)

        seen_B, seen_A = change(), change()
        fake_B, fake_A = G_A(A), G_B(B)
        loss = {
            "G_A": gan(D_A(seen_B(fake_B)), True),
            "G_B": gan(D_B(seen_A(fake_A)), True),
            "cycle_A": self.lambda_A * (G_B(fake_B) - A).abs().mean(),
            "cycle_B": self.lambda_B * (G_A(fake_A) - B).abs().mean(),
            "idt_A": self.lambda_B * self.lambda_identity * (G_A(B) - B).abs().mean(),
            "idt_B": self.lambda_A * self.lambda_identity * (G_B(A) - A).abs().mean(),
        }
        if self.lambda_geometry:
            turns = [
                lambda x: x.transpose(2, 3).flip(2),
                lambda x: x.transpose(2, 3).flip(3),
                lambda x: x.flip(3),
                lambda x: x.flip(2),
            ]
            T_A, T_B = (turns[self.draws.randrange(4)] for _ in "AB")
            error = (G_A(T_A(A)) - T_A(fake_B)).abs().mean()
            loss["geometry_A"] = self.lambda_geometry * error
            error = (G_B(T_B(B)) - T_B(fake_A)).abs().mean()
            loss["geometry_B"] = self.lambda_geometry * error
        if self.lambda_temporal:
            flow_A, m_A, n_A = motion(A)
            flow_B, m_B, n_B = motion(B)
            W_A, W_B = (lambda x, f=flow: warped(x, f) for flow in (flow_A, flow_B))
            spatial = (G_A(W_A(A) + m_A) - W_A(fake_B)).abs().mean()
            recycled = (G_B(W_A(fake_B) + n_A) - W_A(A)).abs().mean()
            loss["temporal_A"] = self.lambda_temporal * (spatial + recycled)
            spatial = (G_B(W_B(B) + m_B) - W_B(fake_A)).abs().mean()
            recycled = (G_A(W_B(fake_A) + n_B) - W_B(B)).abs().mean()
            loss["temporal_B"] = self.lambda_temporal * (spatial + recycled)
        self.gradients_G = torch.autograd.grad(sum(loss.values()), self.of_G)
        self.adam_G.step(self.gradients_G)

        old_B, old_A = self.pool_B(fake_B.detach()), self.pool_A(fake_A.detach())
        seen_B, seen_A = change(), change()
        loss["D_A"] = (gan(D_A(seen_B(B)), True) + gan(D_A(seen_B(old_B)), False)) / 2
        loss["D_B"] = (gan(D_B(seen_A(A)), True) + gan(D_B(seen_A(old_A)), False)) / 2
        if self.gan_mode == "wgangp":
            loss["D_A"] = loss["D_A"] + self.penalty(D_A, B, old_B)
            loss["D_B"] = loss["D_B"] + self.penalty(D_B, A, old_A)
        self.gradients_D = torch.autograd.grad(loss["D_A"] + loss["D_B"], self.of_D)
        self.adam_D.step(self.gradients_D)
        return {name: value.item() for name, value in loss.items()}

    @staticmethod
    def penalty(D, real: Tensor, fake: Tensor) -> Tensor:
        alpha = torch.rand(1, 1, 1, 1).to(real.dtype)
        x = (alpha * real + (1 - alpha) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
        return 10.0 * ((slope**2).sum().sqrt() - 1) ** 2
