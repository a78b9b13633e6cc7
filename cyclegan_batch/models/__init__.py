"""Generator files: how each kind is read, checked and described.

`model.open_model` opens any of them: an ONNX of the contract or a foreign one (`onnx_file`,
`external_weights`, `contract`, `shapes`, `card_metadata`; for a foreign one `model_io`, `outputs`
and `adoption`), a checkpoint or the folder of a run (`checkpoint_files`, `checkpoints`,
`networks`), or an engine (`engine_card`, `seal`). `card` is the description that all kinds share,
and `parity` compares two translations of the same frames.
"""
