"""Runs of fewer or more images than the batch that a file fixes (`onnx_file.fixed_batch`).

The last of many images seldom fill such a batch, so it is padded with zeros.
"""

from __future__ import annotations

import numpy as np

from repzoo.engines import Array, Session


def pad_batch(inputs: Array, batch: int) -> Array:
    """`inputs` [n, ...] with zeros behind them, [batch, ...]; as they are where n >= batch."""
    missing = batch - len(inputs)
    if missing <= 0:
        return inputs
    padding = np.zeros((missing, *inputs.shape[1:]), inputs.dtype)
    return np.concatenate([inputs, padding])


def run_padded(session: Session, inputs: Array, batch: int) -> list[Array]:
    """All outputs of `session` for `inputs`, computed in a batch of `batch` images; 0: any size."""
    padded = pad_batch(inputs, batch)
    outputs = session.run_all(padded)
    if len(padded) == len(inputs):
        return outputs
    # A Reshape may join the images with other axes, [batch * rows, ...].
    return [output[: len(output) * len(inputs) // batch] for output in outputs]


def run_in_batches(session: Session, inputs: Array, batch: int) -> list[Array]:
    """All outputs of `session` for `inputs`, `batch` images at a time; 0: all of them at once."""
    if not batch or len(inputs) <= batch:
        return run_padded(session, inputs, batch)
    parts: list[list[Array]] = []
    for start in range(0, len(inputs), batch):
        parts.append(run_padded(session, inputs[start : start + batch], batch))
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
