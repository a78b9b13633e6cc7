"""Read a video with OpenCV, translate each frame with onnxruntime, and write it with OpenCV.

    python opencv_loop.py CLIP GENERATOR.onnx OUTPUT.mp4

GENERATOR.onnx is what ``torch.onnx.export`` makes of a generator: float32, NCHW, -1 to 1. The
session has onnxruntime's own settings, which use every core.
"""

import sys

import cv2
import numpy as np
import onnxruntime


def main(clip: str, generator: str, output: str) -> None:
    session = onnxruntime.InferenceSession(generator, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    capture = cv2.VideoCapture(clip)
    rate = capture.get(cv2.CAP_PROP_FPS)
    size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    writer = cv2.VideoWriter(output, cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    while True:
        there, frame = capture.read()
        if not there:
            break
        rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.float32) / 127.5 - 1.0
        (out,) = session.run(None, {name: rgb.transpose(2, 0, 1)[np.newaxis]})
        pixels = ((out[0].transpose(1, 2, 0) + 1.0) * 127.5).round().clip(0, 255).astype(np.uint8)
        writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    capture.release()
    writer.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
