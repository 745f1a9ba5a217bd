"""Scales and zero points of activations in a file's history, for tools that take them.

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

KEY = "activations"


def as_settings(
    activations: Mapping[str, ActivationParameters],
) -> dict[str, dict[str, list[float]]]:
    """The setting of a step: name -> [scale, zero point of uint8]; 8-bit activations only."""
    stored: dict[str, list[float]] = {}
    for name, item in activations.items():
        if item.bits == 8:
            stored[name] = [item.scale, item.zero_point]
    return {KEY: stored}


def read_activations(artifact: Artifact) -> dict[str, ActivationParameters]:
    """What the last step of `artifact` stored; empty where it stored none.

    Raises:
        InputError: values that are no scales and zero points. Files are not trusted.
    """
    stored = artifact.steps[-1].settings.get(KEY, {}) if artifact.steps else {}
    if not isinstance(stored, Mapping):
        raise _damaged(artifact)
    return {name: _parameters(artifact, values) for name, values in stored.items()}


def _parameters(artifact: Artifact, values: Any) -> ActivationParameters:
    is_pair = isinstance(values, list | tuple) and len(values) == 2
    if not is_pair or not all(isinstance(value, int | float) for value in values):
        raise _damaged(artifact)
    scale, zero_point = float(values[0]), values[1]
    in_range = math.isfinite(scale) and scale > 0 and 0 <= zero_point <= UINT8_STEPS
    if not in_range or zero_point != int(zero_point):
        raise _damaged(artifact)
    return ActivationParameters(scale, int(zero_point))


def _damaged(artifact: Artifact) -> InputError:
    return InputError(
        f"{artifact.name} has scales of activations in its history that are damaged; run "
        "repzoo harden again"
    )
