"""What a graph costs: parameters, multiply-accumulates, bytes, and what was not counted.

MACs count convolutions and linear layers only, as the RepGhost counter does (a modified thop:
"It only counts infos of convolutional and full-connected layers, without BN"). Every other
operator is named in `uncounted`. Parameters are learnable values: weights, biases, BatchNorm
scale and shift. Running statistics are not.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.graph.tools.constant_folding import LARGE, fold_constants
from repzoo.graph.tools.cost_result import COUNTED, Cost
from repzoo.graph.tools.functions import inline_functions
from repzoo.graph.tools.ir_facts import is_standard
from repzoo.graph.tools.ir_model import to_ir

# Inputs of each operator that hold learnable values.
# Source: ONNX operators; DynamicQuantizeLSTM, QGemm and the fused ones are ONNX Runtime's.
_LEARNABLE: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvInteger": (1,),
    "ConvTranspose": (1, 2),
    "DynamicQuantizeLSTM": (1, 2, 3),
    "FusedConv": (1, 2),
    "FusedGemm": (1, 2),
    "GRU": (1, 2, 3),
    "Gemm": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "PRelu": (1,),
    "QGemm": (3, 6),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "RNN": (1, 2, 3),
}
# Operators that compute shapes, or nothing in inference.
_WITHOUT_ARITHMETIC = frozenset(
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
# Operators that may stand between a stored weight and its layer.
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


def count(artifact: Artifact, size: int | None = None) -> Cost:
    """Count a graph for one image of its own size, or of `size` pixels where that is open.

    Any graph is accepted. What other inputs leave open is taken as 1 on their first axis.
    """
    model = _with_sizes(artifact, size)
    # Counted before sizes are inferred, for that may fold constants.
    nodes = _without_constants(model.graph)
    operators = Counter(node.op_type for node in nodes)
    parameters = _parameters(model.graph)
    stored = sum(tensor.nbytes for tensor in _stored_tensors(model.graph))
    _infer_sizes(model)
    macs = 0
    uncounted: Counter[str] = Counter()
    for node in _without_constants(model.graph):
        node_macs = _macs(node)
        if node_macs is not None:
            macs += node_macs
        elif node.op_type not in _WITHOUT_ARITHMETIC:
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
    model = _with_sizes(artifact, size)
    _infer_sizes(model)
    batch = _batch(model)
    macs: dict[str, int] = {}
    for node in model.graph:
        value = _macs(node)
        if value is not None:
            macs[str(node.outputs[0].name)] = value // batch
    return macs


def _without_constants(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type != "Constant"]


def _with_sizes(artifact: Artifact, size: int | None) -> ir.Model:
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
    for node in model.graph:
        if node.op_type in COUNTED and _macs(node) is None:
            # An export with dynamic padding computes sizes by nodes, which inference does not
            # follow.
            with contextlib.suppress(InputError):
                fold_constants(model, LARGE)
            return


def _batch(model: ir.Model) -> int:
    """Images that the graph takes at once; its costs are for all of them."""
    inputs = []
    for value in model.graph.inputs:
        if value.name not in model.graph.initializers:
            inputs.append(value)
    if len(inputs) != 1:
        return 1
    shape = inputs[0].shape
    if shape is None or len(shape) != 4:
        return 1
    batch = shape[0]
    return batch if isinstance(batch, int) and batch > 0 else 1


def _stored_tensors(graph: ir.Graph) -> list[ir.TensorProtocol]:
    """Every stored constant, of an initializer or a Constant node, those of subgraphs included."""
    values = list(graph.initializers.values())
    for subgraph in graph.subgraphs():
        values += subgraph.initializers.values()
    for node in graph.all_nodes():
        if node.op_type == "Constant":
            values.append(node.outputs[0])
    tensors = []
    for value in values:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            tensors.append(tensor)
    return tensors


def _parameters(graph: ir.Graph) -> int:
    """Learnable values, those of subgraphs included, each stored tensor once."""
    # By identity: two branches may each have a tensor of the same name.
    sizes: dict[ir.Value, int] = {}
    for node in graph.all_nodes():
        for index in _LEARNABLE.get(node.op_type, ()):
            if index >= len(node.inputs):
                continue
            origin = _origin(node.inputs[index])
            tensor = None if origin is None else ir.convenience.get_const_tensor(origin)
            if origin is not None and tensor is not None:
                sizes[origin] = tensor.size
    return sum(sizes.values())


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The constant behind casts, other shapes and dequantization."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in _VIEWS:
            break
        value = node.inputs[0]
    return value


def _macs(node: ir.Node) -> int | None:
    """MACs for all images; None for an operator not counted, or of unknown sizes."""
    if node.op_type not in COUNTED or not is_standard(node):
        return None
    output = _static_sides(node.outputs[0])
    weight = _static_sides(node.inputs[COUNTED[node.op_type]])
    if output is None or weight is None or min(output, default=1) < 0:
        return None
    return math.prod(output) * _products(node, weight)


def _static_sides(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a tensor; None if it is not known."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return value.shape.numpy()


def _products(node: ir.Node, weight: tuple[int, ...]) -> int:
    """Products that are summed for one element of the output.

    weight  the shape of the weight of `node`
    """
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return math.prod(weight[1:])
    if node.op_type == "Gemm":
        is_transposed = node.attributes.get_int("transB", 0)
        return weight[1] if is_transposed else weight[0]
    return weight[-2] if len(weight) > 1 else weight[0]
