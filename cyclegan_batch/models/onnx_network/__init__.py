"""A contract graph in torch: the file that all other runtimes run, so that a user needs only one.

`OnnxNetwork` (`network`) has a module for each node. `as_resnet` (`resnet`) recognises the
reference's ResNet in a graph, for kernels that were written for that network. `nodes` reads nodes,
and `sizes` has those that change a size or compute with one.

This package imports torch; a translation by another runtime does not import it.
"""

from .network import OnnxNetwork
from .resnet import as_resnet

__all__ = ["OnnxNetwork", "as_resnet"]
