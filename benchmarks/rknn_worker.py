"""Quantizes a model with rknn-toolkit2 and runs its simulator; in that tool chain's environment alone.

    python rknn_worker.py FOLDER channel|layer MEAN STD IMAGES.npy LOGITS.npy

FOLDER holds model.onnx and calibration.npy. Images are uint8 [n, 3, H, W], mean and std of pixels.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from rknn.api import RKNN


def write_calibration(folder: Path) -> Path:
    """A list of image files, as the tool reads it."""
    names = []
    for number, pixels in enumerate(np.load(folder / "calibration.npy")):
        path = folder / f"{number:04d}.png"
        cv2.imwrite(str(path), pixels[::-1].transpose(1, 2, 0))  # it writes BGR
        names.append(str(path))
    listing = folder / "dataset.txt"
    listing.write_text("\n".join(names) + "\n")
    return listing


def main() -> None:
    """Write the logits [n, classes] of all images."""
    folder = Path(sys.argv[1])
    method, mean, std, images, output = sys.argv[2:]
    tool = RKNN(verbose=False)
    tool.config(
        mean_values=[[float(value) for value in mean.split()]],
        std_values=[[float(value) for value in std.split()]],
        target_platform="rk3588",
        quantized_algorithm="normal",
        quantized_method=method,
    )
    listing = write_calibration(folder)
    steps = (
        lambda: tool.load_onnx(model=str(folder / "model.onnx")),
        lambda: tool.build(do_quantization=True, dataset=str(listing)),
        tool.init_runtime,
    )
    for step in steps:
        if step() != 0:
            sys.exit(1)
    rows = []
    for pixels in np.load(images):
        inputs = [pixels.transpose(1, 2, 0)[None]]
        answer = tool.inference(inputs=inputs, data_format=["nhwc"])
        rows.append(np.asarray(answer[0]).reshape(1, -1))
    np.save(output, np.concatenate(rows))


main()
