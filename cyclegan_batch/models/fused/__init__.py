"""ResNet generators on CUDA with everything between two convolutions as one operation, in Triton.

`norm_act_pad` (`operator`) is that operation, `FusedGenerator` (`generator`) a generator around it,
and `kernels` the programs that run on the GPU. Importing this package needs torch and Triton.

Experimental: tried in Triton's interpreter only, never on a GPU.
"""

from .generator import FusedGenerator
from .operator import Tiling, in_cells, norm_act_pad

__all__ = ["FusedGenerator", "Tiling", "in_cells", "norm_act_pad"]
