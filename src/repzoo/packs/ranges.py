"""Activation ranges that `harden` chose, for tools that take them."""

from __future__ import annotations

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.quant.parameters.scales import ActivationParameters
from repzoo.quant.parameters.stored_activations import read_activations


def activation_ranges(artifact: Artifact) -> dict[str, ActivationParameters]:
    """Scale and zero point of each activation that the file states, in graph order.

    Empty for a file that `harden` did not write.

    Raises:
        InputError: they are damaged, or of tensors that the graph does not have.
    """
    stored = read_activations(artifact)
    names = [artifact.input_name]
    for node in artifact.model.graph.node:
        names.extend(node.output)
    strange = set(stored) - set(names)
    if strange:
        raise InputError(
            f"{artifact.name} states an activation range for {min(strange)!r}, and its graph has "
            "no such tensor; run repzoo harden again"
        )
    return {name: stored[name] for name in names if name in stored}
