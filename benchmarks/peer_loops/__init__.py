"""Two loops that people write around a generator, each a program of its own; peers.py times them.

They use nothing of cyclegan-batch but the class of the network, for which a checkpoint holds the
weights only.
"""
