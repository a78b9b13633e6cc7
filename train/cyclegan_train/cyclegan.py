"""The CycleGAN: four networks, two optimisers, and one optimisation step.

The mathematics is that of Zhu et al. 2017, with the operations in the reference implementation's
order; tests compare losses and weights with a transcription of the formulas. A and B are two
domains of images; G_A translates A to B and G_B translates B to A. A discriminator is named after
the generator that it judges: D_A tells real images of B from those of G_A, D_B does so for A.

CUDA runs the same lines and is experimental: the tests run on the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.checkpoint import checkpoint

from cyclegan_batch.errors import BackendUnavailableError
from cyclegan_batch.models.networks import (
    GeneratorConfig,
    generator_from_config,
    init_weights,
)

from .augmentation import Augmentation
from .config import TrainConfig
from .consistency import Consistency, Drawn
from .devices import both_of, device_named, float32_as, in_turn, pinned
from .distributed import ALONE, GradientMeans, Ranks
from .graphs import CudaRecorder, DevicePool, GraphedStep
from .losses import GANLoss, gradient_penalty, l1, weighted_l1
from .networks import discriminator_from_config
from .pool import ImagePool

State: TypeAlias = dict[str, Any]
"""Tensors and plain values by name, as the ``state_dict`` of a torch object returns them."""

NETWORKS = ("netG_A", "netG_B", "netD_A", "netD_B")
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

_DOMAINS = {"A": ("A", "B"), "B": ("B", "A")}
"""The domain that a generator reads, and the one that its discriminator judges."""

LOSSES = ("D_A", "G_A", "cycle_A", "idt_A", "D_B", "G_B", "cycle_B", "idt_B")
"""The losses that every step reports, each multiplied by its weight."""


class CycleGAN:
    """The four networks of both directions, their optimisers, and their training step.

    The initial weights are drawn from torch's global random state, network by network in the
    reference's order, and the pools draw from Python's (`random`). Seed both for a run that can be
    repeated, with the same seeds in all processes (``ranks``), whose gradients are averaged. Raises
    ValueError for a config that cannot be built, BackendUnavailableError for a missing device.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks = ALONE) -> None:
        self.config = config
        self.device = device_named(config.device, ranks)
        self._on_cuda = self.device.type == "cuda"
        if config.norm == "syncbatch" and ranks.size > 1 and self.device.type == "cpu":
            raise ValueError(
                "norm = 'syncbatch' is for several GPUs, and these processes run on the CPU; use "
                "batch or instance"
            )
        if config.cuda_graphs and ranks.size > 1:
            raise ValueError(
                f"cuda_graphs records the step of one process, and this is one of {ranks.size}; "
                "leave it out"
            )
        self.netG_A = self._place(self._generator("AtoB"))
        self.netG_B = self._place(self._generator("BtoA"))
        self.netD_A = self._place(discriminator_from_config(config, config.output_nc))
        self.netD_B = self._place(discriminator_from_config(config, config.input_nc))
        self.optimizer_G = self._adam(self.netG_A, self.netG_B)
        self.optimizer_D = self._adam(self.netD_A, self.netD_B)
        self._means = {
            optimizer: GradientMeans(ranks, optimizer, config.accumulate)
            for optimizer in (self.optimizer_G, self.optimizer_D)
        }
        self._consistency = Consistency(config)
        self.losses = LOSSES + self._consistency.names
        """The names of the losses that a step reports."""
        self.criterion_gan = GANLoss(config.gan_mode)
        self._augmentation = Augmentation(config.diffaugment)
        self.fake_A_pool: ImagePool | DevicePool
        self.fake_B_pool: ImagePool | DevicePool
        self._graphed: GraphedStep | None = None
        self.both = both_of(config, self.device)
        """Runs the work of both directions: in turn, or on two CUDA streams."""
        if config.cuda_graphs:
            pools = (
                DevicePool(config.pool_size, self.device),
                DevicePool(config.pool_size, self.device),
            )
            self.fake_B_pool, self.fake_A_pool = pools
            recorder = functools.partial(CudaRecorder, self.device)
            self._graphed = GraphedStep(
                self._compute, pools, self._adam_steps, recorder if self._on_cuda else None
            )
        else:
            self.fake_A_pool = ImagePool(config.pool_size)
            self.fake_B_pool = ImagePool(config.pool_size)
        self.epoch = 1
        """The epoch in progress, counted from 1."""
        self.steps = 0
        if config.lr_policy != "plateau":
            self._follow_schedule()
        self.ema_A = _average_of(self.netG_A) if config.ema else None
        """The moving average of ``netG_A``, in eval mode; None without ``ema``."""
        self.ema_B = _average_of(self.netG_B) if config.ema else None
        # Gradients underflow in fp16 only; for other precisions the scaler does nothing.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._plateaus = (
            [
                ReduceLROnPlateau(optimizer, factor=0.2, threshold=0.01, patience=5)
                for optimizer in (self.optimizer_G, self.optimizer_D)
            ]
            if config.lr_policy == "plateau"
            else []
        )
        # Not with BatchNorm, which would mix the statistics of the two domains.
        self._joint = (
            config.joint_identity
            and config.lambda_identity > 0
            and config.norm in ("instance", "none")
            and not config.dropout
        )

    # The step

    def optimize_parameters(self, real_A: Tensor, real_B: Tensor) -> dict[str, float]:
        """Do one optimisation step and return its `losses`, each with its weight.

        ``real_A`` and ``real_B`` are ``(N, C, H, W)`` in [-1, 1] on any device.
        """
        losses = self.step(real_A, real_B)
        # One copy to the host: copying each loss would wait for the device eight times.
        return dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))

    def step(self, real_A: Tensor, real_B: Tensor) -> dict[str, Tensor]:
        """Do one step as `optimize_parameters` does; the losses stay on the device, as scalars.

        So a loop that reads only some of the losses does not wait for the device at every step,
        except with fp16, whose scaler inspects all gradients. Raises ValueError for images that the
        networks cannot process.
        """
        with self.computing():
            real_A, real_B = self._to_device(real_A), self._to_device(real_B)
            compute = self._compute if self._graphed is None else self._graphed
            losses = compute(real_A, real_B)
            self.steps += 1
            self._update_averages()
        return losses

    def begin_with(self, name: str, weights: State) -> None:
        """Put weights into a new model's network of that name, and into its average."""
        getattr(self, name).load_state_dict(weights)
        average: nn.Module | None = getattr(self, name.replace("netG", "ema"), None)
        if name.startswith("netG") and average is not None:
            average.load_state_dict(weights)

    def warm_up(self, names: Sequence[str], real_A: Tensor, real_B: Tensor) -> dict[str, Tensor]:
        """Do a step in which only the networks ``names`` learn; return their losses.

        Discriminators learn to tell real images from those of the generators as they are (no pool:
        the fakes of one generator), or generators to return their input (``cycle_A``, ``cycle_B``).
        ``steps`` does not count it.
        """
        losses: dict[str, Tensor] = {}
        reals = {"A": real_A, "B": real_B}
        with self.computing():
            reals = {letter: self._to_device(images) for letter, images in reals.items()}
            optimizer = self.optimizer_D if names[0].startswith("netD") else self.optimizer_G
            self._begin_gradients(optimizer)
            for name in names:
                network, (own, other) = getattr(self, name), _DOMAINS[name[-1]]
                if optimizer is self.optimizer_D:
                    with torch.no_grad(), self._autocast():
                        fake = getattr(self, f"netG_{own}")(reals[own])
                    loss = self._backward_discriminator(network, reals[other], fake)
                    losses[f"D_{own}"] = loss.detach()
                    continue
                parts = []
                for real in self._parts(reals[own]):
                    with self._autocast():
                        output = self._generated(network, real)
                    loss = l1(output, real)
                    torch.autograd.backward(self._scaler.scale(loss / self.config.accumulate))
                    parts.append(loss.detach())
                losses[f"cycle_{own}"] = torch.stack(parts).mean()
            self._step(optimizer)
            self._scaler.update()
        return losses

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Make this model's device current, and set the config's float32 mode, in the block."""
        if not self._on_cuda:
            yield
            return
        with torch.cuda.device(self.device), float32_as(self.float32):
            yield

    @property
    def float32(self) -> str:
        """How float32 is multiplied: ``tf32`` on CUDA where the config sets it, else ``ieee``."""
        return "tf32" if self._on_cuda and self.config.precision == "tf32" else "ieee"

    def _compute(self, real_A: Tensor, real_B: Tensor) -> dict[str, Tensor]:
        """Run the part of a step that a CUDA graph can capture."""
        losses, fake_A, fake_B = self._step_generators(real_A, real_B)
        # One optimiser for both discriminators: accumulate both gradients, then one step.
        self._begin_gradients(self.optimizer_D)
        fakes_B, fakes_A = self.fake_B_pool.query(fake_B), self.fake_A_pool.query(fake_A)
        losses["D_A"], losses["D_B"] = self.both(
            lambda: self._backward_discriminator(self.netD_A, real_B, fakes_B),
            lambda: self._backward_discriminator(self.netD_B, real_A, fakes_A),
        )
        self._step(self.optimizer_D)
        self._scaler.update()
        return {name: losses[name].detach() for name in self.losses}

    def _begin_gradients(self, optimizer: torch.optim.Adam) -> None:
        """Drop an optimiser's gradients: those of the next backward passes add up from zero."""
        optimizer.zero_grad()
        self._means[optimizer].begin()

    def _step(self, optimizer: torch.optim.Adam) -> None:
        """Step an optimiser by the means of the gradients over all processes."""
        self._means[optimizer].finish()
        self._scaler.step(optimizer)

    def _step_generators(
        self, real_A: Tensor, real_B: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Step both generators; return their losses, and the fakes from before the step."""
        self._begin_gradients(self.optimizer_G)
        # Gradients flow through the discriminators; those of their weights are not needed here.
        self.netD_A.requires_grad_(False)
        self.netD_B.requires_grad_(False)
        # Draw for the whole batch: its parts then change as they do in one piece.
        draws = [self._augmentation.draw(len(real), self.device) for real in (real_A, real_B)]
        drawn = self._consistency.draw(real_A, real_B).parts(self.config.accumulate)
        tensors = map(self._parts, (real_A, real_B, *draws))
        parts = [self._backward_generators(*each) for each in zip(*tensors, drawn, strict=True)]
        self._step(self.optimizer_G)
        self.netD_A.requires_grad_(True)
        self.netD_B.requires_grad_(True)
        losses, fakes_A, fakes_B = zip(*parts, strict=True)
        if len(parts) == 1:
            return losses[0], fakes_A[0], fakes_B[0]
        means = {name: torch.stack([each[name] for each in losses]).mean() for name in losses[0]}
        return means, torch.cat(fakes_A), torch.cat(fakes_B)

    def _parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the parts of a batch that are computed one after the other."""
        count = self.config.accumulate
        if len(images) % count:
            raise ValueError(f"a batch of {len(images)} images has no {count} equal parts")
        return images.chunk(count)

    def _backward_generators(
        self,
        real_A: Tensor,
        real_B: Tensor,
        draws_B: Tensor,
        draws_A: Tensor,
        drawn: Drawn,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Add the generators' gradients of a part of a batch; return its losses and fakes.

        The draws are how the discriminators see fake_B and fake_A.
        """
        # In turn, the directions share the weights that autocast has converted.
        with self._autocast() if self.both is in_turn else contextlib.nullcontext():
            (losses, fake_B), (losses_B, fake_A) = self.both(
                lambda: self._direction("A", real_A, real_B, draws_B),
                lambda: self._direction("B", real_B, real_A, draws_A),
            )
        losses |= losses_B
        reals, fakes = (real_A, real_B), (fake_B, fake_A)
        losses |= self._consistency.losses(self._translated, reals, fakes, drawn)
        total = torch.stack(list(losses.values())).sum()
        torch.autograd.backward(self._scaler.scale(total / self.config.accumulate))
        losses = {name: loss.detach() for name, loss in losses.items()}
        return losses, fake_A.detach(), fake_B.detach()

    def _direction(
        self, own: str, real: Tensor, target: Tensor, draws: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of the cycle that begins in ``real``, of the domain ``own``; its fake.

        ``target`` are images of the other domain, and ``draws`` how the discriminator sees fakes.
        """
        _, other = _DOMAINS[own]
        weights = {"A": self.config.lambda_A, "B": self.config.lambda_B}
        with self._autocast():
            fake, identity = self._fake_and_identity(getattr(self, f"netG_{own}"), real, target)
            rec = self._generated(getattr(self, f"netG_{other}"), fake)
            score = getattr(self, f"netD_{own}")(self._augmentation(fake, draws))
        weight = weights[other] * self.config.lambda_identity
        losses = {
            f"G_{own}": self.criterion_gan(score, True),
            f"cycle_{own}": weights[own] * l1(rec, real),
            # G_A should return images of B unchanged: weighted as the cycle of B.
            f"idt_{own}": weighted_l1(weight, identity, target),
        }
        return losses, fake

    def _generated(self, netG: nn.Module, source: Tensor) -> Tensor:
        """Return netG(source), which ``checkpoint_activations`` computes again for its gradient."""
        if self.config.checkpoint_activations:
            # The second pass of a dropout must draw what the first one drew.
            draws = self.config.dropout
            out: Tensor = checkpoint(netG, source, use_reentrant=False, preserve_rng_state=draws)
        else:
            out = netG(source)
        return out

    def _translated(self, letter: str, images: Tensor) -> Tensor:
        with self._autocast():
            return self._generated(getattr(self, f"netG_{letter}"), images)

    def _fake_and_identity(
        self, netG: nn.Module, source: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return netG(source) and the identity netG(target); None where it has no weight."""
        if self._joint and source.shape[1:] == target.shape[1:]:
            both = self._generated(netG, torch.cat([source, target]))
            return both[: len(source)], both[len(source) :]
        fake = self._generated(netG, source)
        return fake, self._generated(netG, target) if self.config.lambda_identity > 0 else None

    def _backward_discriminator(self, netD: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Accumulate the gradients of one discriminator, and return its loss."""
        losses = []
        draws = self._augmentation.draw(max(len(real), len(fake)), self.device)
        for one_real, one_fake, drawn in zip(*map(self._parts, (real, fake, draws)), strict=True):
            # A real image and a fake one change alike: their difference is not the change.
            one_real, one_fake = (self._augmentation(x, drawn) for x in (one_real, one_fake))
            with self._autocast():
                score_real, score_fake = netD(one_real), netD(one_fake)
            of_real = self.criterion_gan(score_real, True)
            loss = (of_real + self.criterion_gan(score_fake, False)) * 0.5
            if self.config.gan_mode == "wgangp":
                loss = loss + gradient_penalty(netD, one_real, one_fake, self.config.lambda_gp)
            torch.autograd.backward(self._scaler.scale(loss / self.config.accumulate))
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _adam_steps(self) -> float:
        """Return how many steps Adam itself has counted, in the optimiser that steps last."""
        (weight, *_) = self.optimizer_D.param_groups[0]["params"]
        return float(self.optimizer_D.state[weight]["step"])

    def _update_averages(self) -> None:
        """Move the averages towards the weights by 1 − decay, but at least by 9/(9 + n) in step n.

        TensorFlow's ExponentialMovingAverage has the same bound. Without it the average of a short
        run would still consist of its random initial weights.
        """
        decay = min(self.config.ema, self.steps / (9 + self.steps))
        for average, network in ((self.ema_A, self.netG_A), (self.ema_B, self.netG_B)):
            if average is None:
                continue
            with torch.no_grad():
                means: list[Tensor] = list(average.parameters())
                weights: list[Tensor] = list(network.parameters())
                torch._foreach_lerp_(means, weights, 1 - decay)
                for copied, buffer in zip(average.buffers(), network.buffers(), strict=True):
                    copied.copy_(buffer)

    # The schedule

    def update_learning_rate(self, metric: float | None = None) -> float:
        """End an epoch: set and return the learning rate of the next one, for both optimisers.

        ``plateau`` requires ``metric``, which is better when smaller, and raises ValueError
        without it.
        """
        self.epoch += 1
        if self.config.lr_policy == "plateau":
            if metric is None:
                raise ValueError("lr_policy = 'plateau' requires a metric, and none was given")
            for plateau in self._plateaus:
                plateau.step(metric)
        else:
            self._follow_schedule()
        return self.learning_rate

    @property
    def learning_rate(self) -> float:
        """The rate of the epoch in progress, the same for both optimisers."""
        return float(self.optimizer_G.param_groups[0]["lr"])

    def set_epochs(self, n_epochs: int, n_epochs_decay: int) -> None:
        """Make the run as long as that; the learning rate becomes that of its present epoch."""
        self.config = dataclasses.replace(
            self.config, n_epochs=n_epochs, n_epochs_decay=n_epochs_decay
        )
        if self.config.lr_policy != "plateau":
            self._follow_schedule()

    def _follow_schedule(self) -> None:
        """Set the learning rate of both optimisers to the schedule's for this epoch."""
        lr = self.config.lr * learning_rate_factor(self.config, self.epoch)
        for optimizer in (self.optimizer_G, self.optimizer_D):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # a recorded step reads this tensor
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr

    # The state

    def state_dict(self) -> State:
        """Return all that the next step depends on, except torch's and Python's random states.

        It holds tensors and plain values only, so that ``torch.load(weights_only=True)`` reads it.
        """
        return {
            "epoch": self.epoch,
            "steps": self.steps,
            "networks": {name: getattr(self, name).state_dict() for name in self._stateful()},
            "optimizer_G": self.optimizer_G.state_dict(),
            "optimizer_D": self.optimizer_D.state_dict(),
            "plateaus": [plateau.state_dict() for plateau in self._plateaus],
            "scaler": self._scaler.state_dict(),
            "fake_A_pool": self.fake_A_pool.state_dict(),
            "fake_B_pool": self.fake_B_pool.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go back to where `state_dict` was called. Raises where the state is of another config.

        The learning rate becomes what the schedule gives for that epoch, which may differ where the
        config has more epochs; with ``plateau`` it is the one in the state.
        """
        self.epoch, self.steps = state["epoch"], state["steps"]
        for name in self._stateful():
            getattr(self, name).load_state_dict(state["networks"][name])
        _load_adam(self.optimizer_G, state["optimizer_G"])
        _load_adam(self.optimizer_D, state["optimizer_D"])
        for plateau, saved in zip(self._plateaus, state["plateaus"], strict=True):
            plateau.load_state_dict(saved)
        if self.config.lr_policy != "plateau":
            self._follow_schedule()
        self._scaler.load_state_dict(state["scaler"])
        self.fake_A_pool.load_state_dict(state["fake_A_pool"], self.device)
        self.fake_B_pool.load_state_dict(state["fake_B_pool"], self.device)
        if self._graphed is not None:
            self._graphed.reset()

    def _stateful(self) -> tuple[str, ...]:
        return (*NETWORKS, "ema_A", "ema_B") if self.config.ema else NETWORKS

    # The machine

    def _generator(self, direction: str) -> nn.Module:
        config = generator_config(self.config, direction)
        if self.config.fused_norm:
            return _fused_generator(config, self.device)
        return generator_from_config(config)

    def _place(self, network: nn.Module) -> nn.Module:
        """Initialise a network on the CPU, so that a seed gives the same weights on any device."""
        init_weights(network, self.config.init_type, self.config.init_gain)
        if self.config.channels_last or self.config.fused_norm:
            network = network.to(memory_format=torch.channels_last)
        network = network.to(self.device)
        if self.config.compile:
            # One graph per shape; there are two at most: batch 1, and 2 with joint_identity.
            network.compile(dynamic=False)
        return network

    def _to_device(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        dtype = next(self.netG_A.parameters()).dtype
        images = pinned(images, self.device)
        return images.to(self.device, dtype, non_blocking=True, memory_format=layout)

    def _adam(self, *networks: nn.Module) -> torch.optim.Adam:
        weights = itertools.chain.from_iterable(network.parameters() for network in networks)
        betas = (self.config.beta1, self.config.beta2)
        fused = self.config.fused_adam or None
        recorded = self.config.cuda_graphs and self._on_cuda
        lr = torch.tensor(self.config.lr, device=self.device) if recorded else self.config.lr
        return torch.optim.Adam(weights, lr=lr, betas=betas, fused=fused, capturable=recorded)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        half = _HALF.get(self.config.precision)
        return contextlib.nullcontext() if half is None else torch.autocast(self.device.type, half)


def generator_config(config: TrainConfig, direction: str) -> GeneratorConfig:
    """Return the config of the generator ``AtoB`` or ``BtoA``."""
    channels = (config.input_nc, config.output_nc)
    input_nc, output_nc = channels if direction == "AtoB" else channels[::-1]
    return GeneratorConfig(
        config.netG,
        input_nc,
        output_nc,
        config.ngf,
        norm=config.norm,
        dropout=config.dropout,
        upsample=config.upsample,
    )


def _fused_generator(config: GeneratorConfig, device: torch.device) -> nn.Module:
    """Return the generator with the fused operator, or raise for what it does not support."""
    try:
        from cyclegan_batch.models import fused
    except ImportError as error:
        raise BackendUnavailableError(
            f"fused_norm needs Triton: {error}; install triton, or leave fused_norm out"
        ) from error
    if not fused.runs_on(device):
        raise ValueError(
            f"fused_norm runs on CUDA, and this is a training on {device.type}; leave it out"
        )
    why_not = fused.why_not_fused(config, training=True)
    if why_not is not None:
        raise ValueError(f"fused_norm does not support the generator: {why_not}; leave it out")
    return fused.FusedResnet(config)


def learning_rate_factor(config: TrainConfig, epoch: int) -> float:
    """Return the factor of the learning rate in an epoch, counted from 1.

    ``linear``: 1 for ``n_epochs``, then down in ``n_epochs_decay`` + 1 equal steps, the last of
    which, to 0, is never reached. ``step``: a tenth after every ``lr_decay_iters``. ``cosine``:
    half a wave over the whole run (the reference's half wave ends after ``n_epochs`` and rises
    again in the epochs after them). Raises ValueError for ``plateau``, which depends on the losses.
    """
    if config.lr_policy == "linear":
        return 1.0 - max(0, epoch - config.n_epochs) / (config.n_epochs_decay + 1)
    if config.lr_policy == "step":
        return float(0.1 ** ((epoch - 1) // config.lr_decay_iters))
    if config.lr_policy == "cosine":
        whole = max(1, config.n_epochs + config.n_epochs_decay)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (epoch - 1) / whole)))
    raise ValueError("the learning rate of lr_policy = 'plateau' depends on the losses")


def _load_adam(optimizer: torch.optim.Adam, state: State) -> None:
    """Restore an optimiser, but keep this machine's choice of kernels (fused, foreach, …)."""
    # Copy: load_state_dict keeps the tensors that it is given, and later steps write into them.
    own_copy = copy.deepcopy(dict(state))
    for group, own in zip(own_copy["param_groups"], optimizer.param_groups, strict=True):
        group |= {name: own[name] for name in ("fused", "foreach", "capturable")}
        lr = float(group["lr"])
        group["lr"] = torch.full_like(own["lr"], lr) if isinstance(own["lr"], Tensor) else lr
    optimizer.load_state_dict(own_copy)


def _average_of(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).eval().requires_grad_(False)
