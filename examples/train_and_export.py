"""Train from two folders of unpaired images, and export the generator as one ONNX file.

    python examples/train_and_export.py data/ run/ day2night.onnx 200

``data`` holds trainA and trainB. This trains a small network for few epochs, to show the calls; the
command ``cyclegan-batch train data run --recipe paper`` is what gives a good one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cyclegan_export import export_onnx
from cyclegan_train.run import train
from cyclegan_train.settings import settings_from


def main(data: str, run: str, output: str, epochs: str = "2") -> None:
    """Train for ``epochs`` and export the generator from A to B."""
    settings = settings_from(
        {"netG": "resnet_2blocks", "ngf": 8, "ndf": 8, "load_size": 68, "crop_size": 64}
        | {"n_epochs": int(epochs), "n_epochs_decay": 0, "device": "cpu", "tensorboard": False}
    )
    outcome = train(Path(data), Path(run), settings, say=print)
    print(f"trained for {outcome.epoch} epochs, {outcome.step} steps")
    exported = export_onnx(Path(run), Path(output), direction="AtoB", overwrite=True)
    print(f"{output}: {exported.parity}")


if __name__ == "__main__":
    main(*sys.argv[1:])
