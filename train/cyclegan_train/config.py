"""The options of a training step: one list for the Python API, recipes and the command line.

Names and defaults are those of the reference implementation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args, get_type_hints

from cyclegan_batch.machine import cpu_has_bf16
from cyclegan_batch.option_table import option

GanMode: TypeAlias = Literal["lsgan", "vanilla", "wgangp"]
TrainPrecision: TypeAlias = Literal["fp32", "tf32", "bf16", "fp16", "auto"]
LrPolicy: TypeAlias = Literal["linear", "step", "plateau", "cosine"]

_AUGMENTATIONS = ("color", "translation", "cutout")


def augmentations(text: str) -> tuple[str, ...]:
    """Return the kinds in a ``diffaugment``, e.g. ``color,cutout``. Raises ValueError."""
    kinds = tuple(kind.strip() for kind in text.split(",")) if text.strip() else ()
    for kind in kinds:
        if kind not in _AUGMENTATIONS:
            raise ValueError(f"diffaugment: {kind!r} is none of {', '.join(_AUGMENTATIONS)}")
    return kinds


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a training step. Raises ValueError for options that cannot be trained.

    A is the domain of the first folder and B that of the second; ``netG_A`` goes from A to B.
    """

    # The networks
    netG: str = "resnet_9blocks"  # noqa: N815 (the reference's name, as those below)
    """Generator: ``resnet_<n>blocks``, ``mobile_resnet_<n>blocks`` or ``unet_<side>``."""
    netD: Literal["basic", "n_layers", "pixel"] = "basic"  # noqa: N815
    """Discriminator: ``basic`` is the 70×70 PatchGAN, the same as ``n_layers`` with ``n_layers_D``
    = 3; ``pixel`` judges every pixel by its colour alone."""
    n_layers_D: int = 3  # noqa: N815
    """Convolutions with stride 2 in the discriminator, 1 to 5, where ``netD`` is ``n_layers``."""
    ngf: int = 64
    """Channels of a generator's first convolution; those of the others are multiples of it."""
    ndf: int = 64
    """Channels of a discriminator's first convolution; those of the others are multiples of it."""
    input_nc: int = 3
    """Channels of the images of A, 1 or 3."""
    output_nc: int = 3
    """Channels of the images of B, 1 or 3."""
    norm: Literal["instance", "batch", "syncbatch", "none"] = "instance"
    """Normalisation after the convolutions of all networks; ``syncbatch`` is ``batch`` with the
    statistics of all GPUs."""
    dropout: bool = False
    """Set a random half of the values inside the generators' blocks to zero during training."""
    upsample: Literal["deconv", "resize"] = "deconv"
    """How a ResNet upsamples: by transposed convolutions (``deconv``), as the reference does, or by
    repeating pixels before a convolution (``resize``), which causes no checkerboard pattern."""
    init_type: Literal["normal", "xavier", "kaiming", "orthogonal"] = "normal"
    """Distribution of the initial weights."""
    init_gain: float = 0.02
    """Standard deviation of initial weights drawn by ``normal``; gain of ``xavier`` and
    ``orthogonal``."""
    # The losses
    gan_mode: GanMode = "lsgan"
    """Adversarial loss: least squares (``lsgan``), cross-entropy (``vanilla``), or Wasserstein with
    a gradient penalty (``wgangp``)."""
    lambda_A: float = 10.0  # noqa: N815
    """Weight of the cycle loss A → B → A."""
    lambda_B: float = 10.0  # noqa: N815
    """Weight of the cycle loss B → A → B."""
    lambda_identity: float = 0.5
    """Weight of the identity loss, as a share of the cycle loss's; 0 skips its forward passes."""
    lambda_geometry: float = 0.0
    """Weight of the geometry consistency of both generators: an image that is turned by 90° or
    mirrored should become the translation turned alike. One more forward pass each; 0: none."""
    lambda_temporal: float = 0.0
    """Weight of the temporal consistency of both generators, for videos: an image whose pixels move
    along a random flow should become the translation moved alike, and become the moved image again.
    Two more forward passes each; 0: none."""
    lambda_gp: float = 10.0
    """Weight of the gradient penalty of ``wgangp``."""
    pool_size: int = 50
    """Earlier fakes stored per domain for the discriminators; with 0 they see only new ones."""
    diffaugment: str = field(default="", metadata=option("The step", metavar="KIND,…"))
    """Change the images that the discriminators see at random, real and fake ones alike
    (DiffAugment, for few images), in any of these ways: ``color,translation,cutout``. Unset: none.
    """
    # The optimisers
    lr: float = 2e-4
    """Initial learning rate of Adam, for generators and discriminators."""
    beta1: float = 0.5
    """Adam's decay rate of the mean gradient (β1)."""
    beta2: float = 0.999
    """Adam's decay rate of the mean square of the gradient (β2)."""
    accumulate: int = 1
    """Parts of a batch that are computed one after the other; their gradients add up to those of
    the whole batch, in the memory that a part needs. ``batch_size`` must be a multiple of it.
    BatchNorm computes its statistics for each part."""
    lr_policy: LrPolicy = "linear"
    """Schedule by which the learning rate goes down from epoch to epoch. The next three keys name
    in parentheses the schedule that they shape; with any, ``n_epochs`` + ``n_epochs_decay`` is the
    length of the run."""
    n_epochs: int = 100
    """Epochs at the full learning rate (``linear``)."""
    n_epochs_decay: int = 100
    """Epochs after these in which the learning rate goes down towards zero (``linear``)."""
    lr_decay_iters: int = 50
    """Epochs after which the learning rate becomes a tenth (``step``)."""
    ema: float = 0.0
    """Decay per step of a moving average (EMA) of the generators' weights, e.g. 0.999 (less in the
    first steps); 0 computes no average."""
    # The machine
    device: str = "auto"
    """Device to train on: ``auto`` (CUDA where available), ``cpu`` or ``cuda[:N]``. CUDA is
    experimental."""
    precision: TrainPrecision = "fp32"
    """Arithmetic: ``fp32`` is IEEE float32; ``tf32`` multiplies with a mantissa of 10 bits on CUDA,
    as torch and the reference do there by default, and is fp32 elsewhere; ``bf16`` and ``fp16`` use
    autocast. Statistics and losses are float32 in all of them. With ``device`` = cpu
    ``auto`` becomes bf16 on a CPU that has it in hardware, and fp32 in all other cases."""
    channels_last: bool = False
    """Store images and weights with the channels innermost. Slower on the CPU, where InstanceNorm
    and the padding convert every image back; not measured on CUDA yet."""
    fused_adam: bool = False
    """Update all weights of an optimiser in one kernel."""
    joint_identity: bool = False
    """Compute a generator's fake and identity as one batch, which saves a forward pass. Has an
    effect only where the norm treats every image by itself (instance, none), without dropout."""
    checkpoint_activations: bool = False
    """Compute a generator's forward pass again when its gradient is computed, instead of keeping
    all that the pass has computed: slower, and in much less memory. The gradients are the same. Not
    with BatchNorm, which would count every image twice."""
    compile: bool = False
    """Compile the networks with torch.compile, which takes minutes before the first step and
    requires a C++ compiler."""
    fused_norm: bool = False
    """Compute what stands between two convolutions of a generator (InstanceNorm, ReLU or residual,
    reflected border) as one operation in Triton, with the channels innermost: a ``resnet`` without
    dropout, on CUDA. Experimental: never run on a GPU."""
    cuda_graphs: bool = False
    """Record a whole step as a CUDA graph and replay it, the two directions on two streams.
    Experimental: never run on a GPU. On other devices the same is computed without a recording."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if choices and value not in choices:
                raise ValueError(f"{name} = {value!r} is none of {', '.join(choices)}")
        if self.precision == "auto":
            # What a run computes in is in its config.toml, and stays so on another machine.
            chosen = "bf16" if self.device == "cpu" and cpu_has_bf16() else "fp32"
            object.__setattr__(self, "precision", chosen)
        at_least: dict[str, float] = {
            "ngf": 1, "ndf": 1, "input_nc": 1, "output_nc": 1, "n_layers_D": 1, "lambda_A": 0,
            "lambda_B": 0, "lambda_identity": 0, "lambda_gp": 0, "pool_size": 0, "lr": 0,
            "lambda_geometry": 0, "lambda_temporal": 0,
            "n_epochs": 0, "n_epochs_decay": 0, "lr_decay_iters": 1, "init_gain": 0,
            "accumulate": 1,
        }  # fmt: skip
        for name, least in at_least.items():
            # Not ``value < least``, which is false for NaN.
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} = {getattr(self, name)} must be {least} or more")
        for name in ("beta1", "beta2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be from 0 to below 1")
        augmentations(self.diffaugment)
        if self.cuda_graphs and self.precision == "fp16":
            raise ValueError(
                "cuda_graphs cannot record fp16, which skips steps depending on the gradients; use "
                "bf16"
            )
        if self.checkpoint_activations and self.norm in ("batch", "syncbatch"):
            raise ValueError(
                f"checkpoint_activations computes every forward pass twice, and norm = "
                f"{self.norm!r} would count the statistics of every image twice; use instance"
            )
        if self.checkpoint_activations and self.cuda_graphs:
            raise ValueError(
                "cuda_graphs cannot record the second forward pass of checkpoint_activations; "
                "leave one of them out"
            )
        if self.lambda_geometry and self.cuda_graphs:
            raise ValueError(
                "cuda_graphs would repeat the one turn of lambda_geometry that it has recorded; "
                "leave one of them out"
            )
        if self.fused_norm and self.compile:
            raise ValueError(
                "fused_norm and compile are two ways to the same, and do not work together; leave "
                "one of them out"
            )
        if self.n_layers_D > 5:
            raise ValueError(f"n_layers_D = {self.n_layers_D} must be from 1 to 5")
        if self.lambda_identity and self.input_nc != self.output_nc:
            raise ValueError(
                f"lambda_identity = {self.lambda_identity} compares G_A(B) with B, and A "
                f"has {self.input_nc} channels where B has {self.output_nc}; set it to 0"
            )
