"""Use a generator as a function on arrays, here on one image file read by OpenCV.

python examples/arrays.py photo.jpg night.png day2night.onnx
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

from cyclegan_batch import open_generator


def main(source: str, output: str, model: str) -> None:
    """Translate one image, as it is and mirrored, in one batch; write the first result."""
    real_A = cv2.cvtColor(cv2.imread(source), cv2.COLOR_BGR2RGB)
    with open_generator(model) as generator:
        print(f"{generator.card.architecture}, trained at {generator.card.trained_size}")
        fake_B = generator(np.stack([real_A, real_A[:, ::-1]]))  # (2, H, W, 3), uint8
    cv2.imwrite(output, cv2.cvtColor(fake_B[0], cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main(*sys.argv[1:])
