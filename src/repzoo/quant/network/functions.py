"""Activations as NumPy functions: what each makes of a number, float64 of any shape. Others are taken for straight lines.

Sources: ONNX operators of these names, HardSigmoid with the slope 1/6 that PyTorch exports; GELU (by its tanh) and swish as
D. Hendrycks and K. Gimpel, arXiv:1606.08415, have them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Function = Callable[[Float], Float]


def identity(x: Float) -> Float:
    """x itself."""
    return x


def sigmoid(x: Float) -> Float:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray((1 + np.tanh(x / 2)) / 2)


def gelu(x: Float) -> Float:
    """x Phi(x), by its tanh approximation."""
    bounded = np.clip(x, -10, 10)  # of which the cube does not overflow
    return np.asarray(x * (1 + np.tanh(np.sqrt(2 / np.pi) * (bounded + 0.044715 * bounded**3))) / 2)


FUNCTIONS: dict[str, Function] = {
    "Relu": lambda x: np.maximum(x, 0.0),
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "HardSigmoid": lambda x: np.clip(x / 6 + 0.5, 0.0, 1.0),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0),
    "Swish": lambda x: x * sigmoid(x),
    "Gelu": gelu,
}
