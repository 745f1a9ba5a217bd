"""Activation ranges in a file's metadata, for tools that take them.

`harden` chooses them for its prediction; the file itself is float and has no place for them. A pack
writes them in the words of its target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.quant.parameters.scales import UINT8_STEPS, ActivationParameters

KEY = "activations"  # of Artifact.extras


def as_document(
    activations: Mapping[str, ActivationParameters],
) -> dict[str, list[float]]:
    """The document under KEY: name -> [lowest, highest number]; 8-bit activations only."""
    stored: dict[str, list[float]] = {}
    for name, item in activations.items():
        if item.bits == 8:
            stored[name] = list(item.bounds)
    return stored


def read_activations(artifact: Artifact) -> dict[str, ActivationParameters]:
    """What `harden` stored in the file; empty where it stored nothing.

    Raises:
        InputError: values that are no ranges. Files are not trusted.
    """
    stored = artifact.extras.get(KEY, {})
    if not isinstance(stored, Mapping):
        raise _damaged(artifact)
    return {name: _parameters(artifact, values) for name, values in stored.items()}


def _parameters(artifact: Artifact, values: Any) -> ActivationParameters:
    is_pair = isinstance(values, list | tuple) and len(values) == 2
    if not is_pair or not all(isinstance(value, int | float) for value in values):
        raise _damaged(artifact)
    low, high = map(float, values)
    scale = (high - low) / UINT8_STEPS  # exact: a scale has 24 bits, and a bound 8 more
    if not (low <= 0 <= high and math.isfinite(scale) and scale > 0):
        raise _damaged(artifact)
    return ActivationParameters(scale, round(-low / scale))


def _damaged(artifact: Artifact) -> InputError:
    return InputError(
        f"{artifact.name} has activation ranges in its metadata that are damaged; run "
        "repzoo harden again"
    )
