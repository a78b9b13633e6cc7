"""What a generator file is: the contract of its graph, its card, and how each kind is read.

`model.open_model` opens any of them. `contract` builds the graph that every backend runs, and
`adoption` builds it around a foreign ONNX file. `card` and `engine_card` hold what is known of a
file, `networks` and `checkpoints` give the generators of training, and `parity` compares two
translations of the same frames.
"""
