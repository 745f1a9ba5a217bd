"""What a graph costs: parameters, multiply-accumulates, bytes, and what was not counted.

MACs count convolutions and linear layers only, as the RepGhost counter does (a modified thop:
"It only counts infos of convolutional and full-connected layers, without BN"); every other
operator is named in `uncounted`. Parameters are learnable values: weights, biases, BatchNorm
scale and shift; running statistics are not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from repzoo.artifact import Artifact
from repzoo.graph.tools.pieces import inline_functions, without_weights
from repzoo.onnx_file import classifier_input

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
    """Count `artifact` for one image of its own size, or of `size` pixels where the graph
    leaves it open.
    """
    proto = _sized(artifact, size)
    batch = _batch(proto)
    model = ir.from_proto(proto)
    passes.ShapeInferencePass()(model)
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    operators = Counter(node.op_type for node in nodes)
    macs = {id(node): _macs(node) for node in nodes}
    uncounted = Counter(
        node.op_type
        for node in nodes
        if macs[id(node)] is None and node.op_type not in _SHAPES
    )
    return Cost(
        parameters=_parameters(nodes),
        macs=sum(value for value in macs.values() if value is not None) // batch,
        bytes=sum(tensor.nbytes for tensor in _tensors(model.graph)),
        nodes=len(nodes),
        operators=dict(sorted(operators.items())),
        uncounted=dict(sorted(uncounted.items())),
    )


def macs_by_node(artifact: Artifact, size: int | None = None) -> dict[str, int]:
    """MACs for one image of each node that is counted, by the node's first output.

    size  as for `count`
    """
    proto = _sized(artifact, size)
    batch = _batch(proto)
    model = ir.from_proto(proto)
    passes.ShapeInferencePass()(model)
    macs: dict[str, int] = {}
    for node in model.graph:
        value = _macs(node)
        if value is not None:
            macs[str(node.outputs[0].name)] = value // batch
    return macs


def _sized(artifact: Artifact, size: int | None) -> onnx.ModelProto:
    model = inline_functions(without_weights(artifact.model))
    side = size or (artifact.preprocess.size if artifact.preprocess else 0)
    for axis, dim in enumerate(classifier_input(model).type.tensor_type.shape.dim):
        if not dim.dim_value and (axis == 0 or (axis > 1 and side)):
            dim.dim_value = 1 if axis == 0 else side
    for value in (*model.graph.output, *model.graph.value_info):
        value.type.tensor_type.ClearField(
            "shape"
        )  # inferred anew, with the batch known
    return model


def _batch(model: onnx.ModelProto) -> int:
    """Images that the graph takes at once; its costs are for all of them."""
    return max(
        [
            1,
            *(
                dim.dim_value
                for dim in classifier_input(model).type.tensor_type.shape.dim[:1]
            ),
        ]
    )


def _tensors(graph: ir.Graph) -> list[ir.TensorProtocol]:
    """Every stored constant, whether an initializer or a Constant node holds it."""
    held = [
        ir.convenience.get_const_tensor(node.outputs[0])
        for node in graph
        if node.op_type == "Constant"
    ]
    stored = [value.const_value for value in graph.initializers.values()]
    return [tensor for tensor in (*stored, *held) if tensor is not None]


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
    while (
        value is not None
        and (node := value.producer()) is not None
        and node.op_type in _VIEWS
    ):
        value = node.inputs[0]
    return value


def _macs(node: ir.Node) -> int | None:
    """MACs for one image; None for an operator that is not counted, or whose sizes are unknown."""
    output = node.outputs[0].shape
    if (
        node.op_type not in ("Conv", "Gemm", "MatMul")
        or output is None
        or not output.is_static()
    ):
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
