"""What a training is told: one list behind the Python API, the recipes and the command line.

The words are the reference's, and so are the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, get_type_hints

GanMode: TypeAlias = Literal["lsgan", "vanilla", "wgangp"]
TrainPrecision: TypeAlias = Literal["fp32", "tf32", "bf16", "fp16"]
LrPolicy: TypeAlias = Literal["linear", "step", "plateau", "cosine"]


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a training step. Raises ValueError for what cannot be trained.

    A is the domain of the first folder and B that of the second; ``netG_A`` goes from A to B.
    """

    # The networks
    netG: str = "resnet_9blocks"  # noqa: N815 (the reference's word, as those below)
    """``resnet_<n>blocks``, ``mobile_resnet_<n>blocks`` or ``unet_<side>``."""
    netD: Literal["basic", "n_layers", "pixel"] = "basic"  # noqa: N815
    """``basic``: the 70×70 PatchGAN, which is ``n_layers`` with 3."""
    n_layers_D: int = 3  # noqa: N815
    """Strides of 2 in the discriminator, 1 to 5, where ``netD`` is ``n_layers``."""
    ngf: int = 64
    """Channels of a generator's first convolution; the others are multiples of it."""
    ndf: int = 64
    """Channels of a discriminator's first convolution; the others are multiples of it."""
    input_nc: int = 3
    """Channels of A."""
    output_nc: int = 3
    """Channels of B."""
    norm: Literal["instance", "batch", "syncbatch", "none"] = "instance"
    """What follows the convolutions of all networks; ``syncbatch`` is ``batch`` over all GPUs."""
    dropout: bool = False
    """Drop half of the values within the generators' blocks while they learn."""
    upsample: Literal["deconv", "resize"] = "deconv"
    """How a ResNet grows again: transposed convolutions as in the reference, or enlarging by the
    nearest pixel and a convolution, which leaves no checkerboard."""
    init_type: Literal["normal", "xavier", "kaiming", "orthogonal"] = "normal"
    """How the weights are drawn at the beginning."""
    init_gain: float = 0.02
    """Standard deviation of those drawn by ``normal``, gain of ``xavier`` and ``orthogonal``."""
    # The losses
    gan_mode: GanMode = "lsgan"
    """Adversarial loss: least squares, cross-entropy, or Wasserstein with a gradient penalty."""
    lambda_A: float = 10.0  # noqa: N815
    """Weight of the cycle A → B → A."""
    lambda_B: float = 10.0  # noqa: N815
    """Weight of the cycle B → A → B."""
    lambda_identity: float = 0.5
    """Weight of the identity loss, as a share of the cycle's; 0 leaves its forwards out."""
    lambda_gp: float = 10.0
    """Weight of the gradient penalty of ``wgangp``."""
    pool_size: int = 50
    """Fakes kept per domain; 0 shows every discriminator the newest ones only."""
    # The optimisers
    lr: float = 2e-4
    """Learning rate of Adam, for generators and discriminators, at the beginning."""
    beta1: float = 0.5
    """Adam's decay of the mean gradient."""
    lr_policy: LrPolicy = "linear"
    """How the learning rate goes down from epoch to epoch."""
    n_epochs: int = 100
    """Epochs at the full learning rate (``linear``)."""
    n_epochs_decay: int = 100
    """Epochs on the way down (``linear``)."""
    lr_decay_iters: int = 50
    """Epochs between two steps down to a tenth (``step``)."""
    ema: float = 0.0
    """Decay of the generators' moving average per step, e.g. 0.999 (less in the first steps); 0
    keeps none."""
    # The machine
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu`` or ``cuda[:N]``. CUDA is experimental."""
    precision: TrainPrecision = "fp32"
    """``fp32`` is float32 as IEEE has it; ``tf32`` multiplies with 10 bits of mantissa on CUDA, as
    torch and the reference do there unasked, and is fp32 elsewhere; ``bf16`` and ``fp16`` by
    autocast. Statistics and losses are float32 in all of them."""
    channels_last: bool = False
    """Keep pictures and weights with the channels innermost. Slower on the CPU, since InstanceNorm
    and the padding turn every picture around; on CUDA not measured yet."""
    fused_adam: bool = False
    """Update all weights in one kernel."""
    joint_identity: bool = False
    """Run what a generator does with both domains (fake, identity) as one batch, where the norm
    treats every picture by itself (instance, none) and there is no dropout: one forward less."""
    compile: bool = False
    """Compile the networks with torch.compile: minutes before the first step, and a C++ compiler
    has to be there."""
    cuda_graphs: bool = False
    """Record a whole step as a CUDA graph and replay it. Experimental: never run on a GPU. Other
    devices compute the same without recording."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, known = getattr(self, name), get_args(kind)
            if known and value not in known:
                raise ValueError(f"{name} = {value!r} is none of {', '.join(known)}")
        at_least: dict[str, float] = {
            "ngf": 1, "ndf": 1, "input_nc": 1, "output_nc": 1, "n_layers_D": 1, "lambda_A": 0,
            "lambda_B": 0, "lambda_identity": 0, "lambda_gp": 0, "pool_size": 0, "lr": 0,
            "n_epochs": 0, "n_epochs_decay": 0, "lr_decay_iters": 1, "init_gain": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            # Written so that NaN is refused.
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} = {getattr(self, name)} is to be {least} or more")
        for name in ("beta1", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} is to be from 0 to below 1")
        if self.cuda_graphs and self.precision == "fp16":
            raise ValueError(
                "cuda_graphs cannot record fp16, which leaves out steps as its gradients are; use "
                "bf16"
            )
        if self.n_layers_D > 5:
            raise ValueError(f"n_layers_D = {self.n_layers_D} is to be from 1 to 5")
        if self.lambda_identity and self.input_nc != self.output_nc:
            raise ValueError(
                f"lambda_identity = {self.lambda_identity} compares what G_A makes of B with B, "
                f"and A has {self.input_nc} channels where B has {self.output_nc}; set it to 0"
            )
