"""Runs hb_mapper's quantized model; in the environment of the tool chain rdk-x5 alone.

    python rdk_x5_worker.py QUANTIZED.onnx IMAGES.npy LOGITS.npy

IMAGES are uint8 [n, 3, H, W] in the channel order of training.
"""

import sys

import numpy as np
from horizon_tc_ui import HB_ONNXRuntime


def main() -> None:
    """Write the logits [n, classes] of all images."""
    model, images, output = sys.argv[1:]
    session = HB_ONNXRuntime(model_file=model)
    (name,) = session.input_names
    rows = []
    for pixels in np.load(images):
        # The tool moves pixels by 128 into int8.
        answer = session.run(
            session.output_names, {name: pixels[None]}, input_offset=128
        )
        rows.append(np.asarray(answer[0]).reshape(1, -1))
    np.save(output, np.concatenate(rows))


main()
