"""Classify an image on a PC with hb_mapper's quantized model: what the board will compute.

    python3 infer.py --model model_output/NAME_quantized_model.onnx --image cat.jpg

It runs in the Python environment of hb_mapper.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
library: Any = importlib.import_module("classifier")

Bytes = npt.NDArray[np.uint8]
# hb_mapper's model computes with signed pixels.
OFFSET = 128


def quantized_input(tensor: Bytes, gray: bool) -> Bytes:
    """The board's input as the quantized model takes it: NV12 as YUV 4:4:4 [1, H, W, 3]."""
    if gray:
        return tensor
    rows = tensor.shape[1] * 2 // 3
    luma = tensor[:, :rows]
    chroma = tensor[:, rows:, :, 0].reshape(1, rows // 2, -1, 2)
    return np.concatenate([luma, chroma.repeat(2, 1).repeat(2, 2)], -1)


def main() -> None:
    """Print the best classes of one image."""
    parser = argparse.ArgumentParser(description="Classify an image on a PC.")
    parser.add_argument("--model", required=True, help="The quantized model.")
    parser.add_argument("--image", default=str(HERE / "sample.png"), help="Image.")
    parser.add_argument("--topk", type=int, default=5, help="Number of classes.")
    options = parser.parse_args()
    config = library.Config.read(HERE / "model.json", HERE / "labels.txt")
    image = library.read_image(options.image, config.orientation)
    tensor = quantized_input(library.model_input(image, config), config.gray)
    session = importlib.import_module("horizon_tc_ui").HB_ONNXRuntime(
        model_file=options.model
    )
    outputs = session.run(
        session.output_names, {session.input_names[0]: tensor}, input_offset=OFFSET
    )
    values = np.asarray(outputs[0], np.float64).reshape(-1)
    best = library.best_classes(values, config, options.topk)
    for rank, (index, probability) in enumerate(best, 1):
        print(f"{rank}. {config.name(index)} ({index}): {probability:.4f}")


if __name__ == "__main__":
    main()
