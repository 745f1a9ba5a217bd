"""What no board's tool takes: refused before the work, for all targets alike."""

from __future__ import annotations

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.onnx_file import classifier_input
from repzoo.quant.network.scheme import load_scheme

# Compilers for boards lay memory out in advance. They cannot compile what decides at run time which
# nodes run, or how large a tensor is.
AT_RUN_TIME = frozenset(
    {"If", "Loop", "Scan", "NonZero", "Unique", "Compress", "NonMaxSuppression"}
)
STANDARD = ("", "ai.onnx")


def require_packable(artifact: Artifact) -> None:
    """Refuse a model that no target takes.

    Raises:
        InputError: an input that is not float, a size that is open, or an operator that boards
            lack. It names it, and what removes it.
    """
    _require_float_input(artifact)
    _require_fixed_size(artifact)
    _require_operators(artifact)


def require_opset(artifact: Artifact, target: str, scheme: str) -> None:
    """Refuse a model of a newer opset than the tool takes.

    Raises:
        InputError: it says which is taken, and how to get there.
    """
    newest = load_scheme(scheme).opset
    if newest and artifact.opset > newest:
        raise InputError(
            f"{artifact.name} has opset {artifact.opset}, and {target} takes at most {newest}: use "
            f"repzoo harden --target {scheme} first"
        )


def require_channels_first(artifact: Artifact, reason: str) -> None:
    """Refuse a model whose input is [N, height, width, channels].

    Args:
        artifact: the model.
        reason: what the tool does with such an input.

    Raises:
        InputError: with the reason, and what to do.
    """
    if artifact.require_preprocess().layout == "NHWC":
        raise InputError(
            f"{artifact.name} takes images with channels last (NHWC), and {reason}; export it with "
            "an input [N, channels, height, width]"
        )


def _require_float_input(artifact: Artifact) -> None:
    preprocess = artifact.require_preprocess()
    if preprocess.input != "float":
        raise InputError(
            f"{artifact.name} takes {preprocess.input} images; the tools of boards put the camera "
            "format in front by themselves: give the model from before repzoo embed-input"
        )


def _require_fixed_size(artifact: Artifact) -> None:
    """Refuse open sides; the number of images may be open, since the packs state it."""
    value = classifier_input(artifact.model)
    sides = value.type.tensor_type.shape.dim
    open_sides = [side.dim_param or "?" for side in sides[1:] if not side.dim_value]
    if open_sides:
        shape = ",".join(map(str, (1, *artifact.require_preprocess().input_shape)))
        raise InputError(
            f"{artifact.name} leaves the size of its input open ({', '.join(open_sides)}), and "
            "boards need it fixed: python -m onnxruntime.tools.make_dynamic_shape_fixed "
            f"--input_name {value.name} --input_shape {shape} IN.onnx OUT.onnx"
        )


def _require_operators(artifact: Artifact) -> None:
    for node in artifact.model.graph.node:
        name = node.name or node.output[0]
        if node.op_type in AT_RUN_TIME:
            raise InputError(
                f"{artifact.name} has the operator {node.op_type} ({name}), which decides at run "
                "time what is computed, and no board does that; export the model again with all "
                "sizes fixed (repzoo export --no-dynamic-batch)"
            )
        if node.domain not in STANDARD:
            raise InputError(
                f"{artifact.name} has the operator {node.op_type} ({name}) of {node.domain}, which "
                "boards do not know; export the model again in standard ONNX (repzoo export "
                "--opset 11)"
            )
