"""ONNX graphs: how a file is read, brought inside the contract, and rewritten for a CPU.

`onnx_file` reads a file and the weights beside it (`external_weights`). `contract` says what every
generator's graph looks like, and `adoption` brings a foreign one inside it, by what the graph shows
(`outputs`, `shapes`) and what the user states (`model_io`). `cpu_graph` rewrites it with operators
that CPUs compute faster, among them those of `winograd`; both use `rewriting`.
"""
