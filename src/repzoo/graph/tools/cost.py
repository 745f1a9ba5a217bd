"""What a graph costs: parameters, multiply-accumulates, bytes, and what was not counted.

MACs count convolutions and linear layers only, as the RepGhost counter does (a modified thop:
"It only counts infos of convolutional and full-connected layers, without BN"); every other
operator is named in `uncounted`. Parameters are learnable values: weights, biases, BatchNorm
scale and shift; running statistics are not.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.graph.tools.constant_folding import LARGE, fold_constants
from repzoo.graph.tools.functions import inline_functions
from repzoo.graph.tools.ir_model import to_ir

# Inputs of each operator that hold learnable values.
_LEARNABLE: dict[str, tuple[int, ...]] = dict.fromkeys(
    ("Conv", "ConvTranspose", "Gemm", "BatchNormalization", "LayerNormalization"),
    (1, 2),
)
_LEARNABLE |= {"MatMul": (0, 1), "PRelu": (1,)}
_SHAPES = frozenset(
    {
        "Constant",
        "Shape",
        "Reshape",
        "Flatten",
        "Identity",
        "Unsqueeze",
        "Squeeze",
        "Cast",
        "Gather",
        "Dropout",
    }
)
_COUNTED = frozenset({"Conv", "Gemm", "MatMul"})
_VIEWS = frozenset(
    {
        "Identity",
        "Cast",
        "Reshape",
        "Transpose",
        "Unsqueeze",
        "DequantizeLinear",
        "QuantizeLinear",
    }
)


@dataclass(frozen=True)
class Cost:
    """Costs for one image.

    parameters  learnable values
    macs        multiply-accumulates of convolutions and linear layers
    bytes       size of all constants as stored
    nodes       operators that compute (constants excluded)
    operators   how often each occurs
    uncounted   operators whose arithmetic is not in `macs`
    """

    parameters: int
    macs: int
    bytes: int
    nodes: int
    operators: Mapping[str, int]
    uncounted: Mapping[str, int]


def count(artifact: Artifact, size: int | None = None) -> Cost:
    """Count a graph for one image of its own size, or of `size` pixels where that is open.

    Any graph is accepted. What other inputs leave open is taken as 1 on their first axis.
    """
    model = _sized(artifact, size)
    nodes = _computing(model)
    operators = Counter(node.op_type for node in nodes)
    parameters = _parameters(nodes)
    stored = sum(tensor.nbytes for tensor in _tensors(model.graph))
    _infer_sizes(model)
    macs = 0
    uncounted: Counter[str] = Counter()
    for node in _computing(model):
        node_macs = _macs(node)
        if node_macs is not None:
            macs += node_macs
        elif node.op_type not in _SHAPES:
            uncounted[node.op_type] += 1
    return Cost(
        parameters=parameters,
        macs=macs // _batch(model),
        bytes=stored,
        nodes=len(nodes),
        operators=dict(sorted(operators.items())),
        uncounted=dict(sorted(uncounted.items())),
    )


def macs_by_node(artifact: Artifact, size: int | None = None) -> dict[str, int]:
    """MACs for one image of each node that is counted, by the node's first output.

    size  as for `count`
    """
    model = _sized(artifact, size)
    _infer_sizes(model)
    batch = _batch(model)
    macs: dict[str, int] = {}
    for node in model.graph:
        value = _macs(node)
        if value is not None:
            macs[str(node.outputs[0].name)] = value // batch
    return macs


def _computing(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type != "Constant"]


def _sized(artifact: Artifact, size: int | None) -> ir.Model:
    """The graph with the sizes of its inputs for one image; those of other tensors are unset."""
    model = to_ir(inline_functions(artifact.model))
    image: Sequence[int] = (3, size or 0, size or 0)
    if artifact.preprocess is not None and size is None:
        image = artifact.preprocess.input_shape
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape(_one_image(value.shape, image))
    # Inferred anew, with the batch known.
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    return model


def _one_image(shape: ir.Shape, image: Sequence[int]) -> list[int | ir.SymbolicDim]:
    """The sides of an input, where they are open those of one image [C, H, W]."""
    usual = (1, *image) if len(shape) == 4 else (1,)
    sides = list(shape)
    for axis, side in enumerate(usual):
        if not isinstance(sides[axis], int) and side:
            sides[axis] = side
    return sides


def _infer_sizes(model: ir.Model) -> None:
    """Infer the shapes of all tensors, in place; behind computed sizes only where it is needed."""
    passes.ShapeInferencePass()(model)
    layers = [node for node in model.graph if node.op_type in _COUNTED]
    if any(_macs(node) is None for node in layers):
        # An export with dynamic padding computes sizes by nodes, which inference does not follow.
        with contextlib.suppress(InputError):
            fold_constants(model, LARGE)


def _batch(model: ir.Model) -> int:
    """Images that the graph takes at once; its costs are for all of them."""
    weights = model.graph.initializers
    inputs = [item for item in model.graph.inputs if item.name not in weights]
    if len(inputs) != 1 or inputs[0].shape is None or len(inputs[0].shape) != 4:
        return 1
    batch = inputs[0].shape[0]
    return batch if isinstance(batch, int) and batch > 0 else 1


def _tensors(graph: ir.Graph) -> list[ir.TensorProtocol]:
    """Every stored constant, whether an initializer or a Constant node holds it."""
    tensors = [value.const_value for value in graph.initializers.values()]
    for node in graph:
        if node.op_type == "Constant":
            tensors.append(ir.convenience.get_const_tensor(node.outputs[0]))
    return [tensor for tensor in tensors if tensor is not None]


def _parameters(nodes: list[ir.Node]) -> int:
    seen: dict[str, int] = {}
    for node in nodes:
        for index in _LEARNABLE.get(node.op_type, ()):
            value = _origin(node.inputs[index]) if index < len(node.inputs) else None
            tensor = None if value is None else ir.convenience.get_const_tensor(value)
            if value is not None and tensor is not None:
                seen[str(value.name)] = math.prod(tensor.shape.numpy())
    return sum(seen.values())


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The constant behind casts, other shapes and dequantization."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in _VIEWS:
            break
        value = node.inputs[0]
    return value


def _macs(node: ir.Node) -> int | None:
    """MACs for one image; None for an operator that is not counted, or whose sizes are unknown."""
    if node.op_type not in _COUNTED or node.domain not in ("", "ai.onnx"):
        return None
    output = node.outputs[0].shape
    if output is None or not output.is_static() or min(output.numpy(), default=1) < 0:
        return None
    elements = math.prod(output.numpy())
    index = (
        1 if node.op_type != "Gemm" or not node.attributes.get_int("transA", 0) else 0
    )
    weight = node.inputs[index]
    if weight is None or weight.shape is None or not weight.shape.is_static():
        return None
    sides = weight.shape.numpy()
    if node.op_type == "Conv":
        return elements * math.prod(sides[1:])
    if node.op_type == "Gemm":
        return elements * (
            sides[1] if node.attributes.get_int("transB", 0) else sides[0]
        )
    return elements * (sides[-2] if len(sides) > 1 else sides[0])
