"""Translate the images of a folder one by one with torch, and write each as PNG.

    python torch_loop.py FOLDER CHECKPOINT.pth OUTPUT

This is the manner of test.py of the authors' pytorch-CycleGAN-and-pix2pix: batch size 1, no worker
process, eager float32, and the translated image saved by Pillow as PNG.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cyclegan_batch.models.checkpoints.loading import load_generator


def main(folder: str, checkpoint: str, output: str) -> None:
    network = load_generator(Path(checkpoint)).network.eval()
    Path(output).mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(folder).iterdir()):
        pixels = np.array(Image.open(path).convert("RGB"))
        real = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)[None]
        with torch.no_grad():
            fake = network(real)
        image = (fake[0].float().numpy().transpose(1, 2, 0) + 1) / 2.0 * 255.0
        Image.fromarray(image.round().astype(np.uint8)).save(Path(output) / f"{path.stem}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
