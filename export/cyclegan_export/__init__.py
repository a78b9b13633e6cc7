"""Make generators that can be shipped: checkpoint → ONNX → engine → edge bundle.

Nothing of it is written yet (see export/README.md). It may import `cyclegan_batch`, never
`cyclegan_train`, and is loaded only by the commands that need it.
"""
