"""ResNet generators on CUDA with everything between two convolutions as one operation, in Triton.

`norm_act_pad` (`operator`) is that operation with its gradient. `FusedGenerator` translates frames
with it and `FusedResnet` trains (`generator`). `kernels` are the programs that run on the GPU.
Importing this package needs torch and Triton.

Experimental: tried in Triton's interpreter only, never on a GPU.
"""

from .generator import FusedGenerator, FusedResnet, runs_on, why_not_fused
from .operator import Tiling, in_cells, norm_act_pad

__all__ = [
    "FusedGenerator",
    "FusedResnet",
    "Tiling",
    "in_cells",
    "norm_act_pad",
    "runs_on",
    "why_not_fused",
]
