"""CUT, FastCUT and DCLGAN: the reference's ResNet, antialiased.

Park et al., "Contrastive Learning for Unpaired Image-to-Image Translation", ECCV 2020; Han et al.,
"Dual Contrastive Learning for Unsupervised Image-to-Image Translation", CVPR workshops 2021. Each
stride of 2 down is a convolution, norm and ReLU of stride 1, then a binomial filter [1, 2, 1] of
stride 2 with a reflected border; each one up is a replicated border, a transposed filter
[1, 3, 3, 1], then a convolution. The file holds the filters as ``model.7.filt``. Training may leave
out either kind (its ``no_antialias`` and ``no_antialias_up``); without both it is the reference's
network.
"""

from __future__ import annotations

from .family import Family, Reading, Shapes
from .sequence import config_in_sequence, reading_in_sequence


def _read(shapes: Shapes) -> Reading | None:
    if not any(name.endswith(".filt") for name in shapes):
        return None
    config = config_in_sequence("cut", shapes)
    return None if config is None else reading_in_sequence(config)


CUT = Family("cut", "CUT, FastCUT, DCLGAN", _read)
