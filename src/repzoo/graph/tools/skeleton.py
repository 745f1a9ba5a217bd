"""A model without the bulk of its weights: its skeleton, its size and its hash.

What only looks at the graph works on the skeleton, so that no copy of all weights is made and no
message comes near protobuf's limit of 2 GB.
"""

from __future__ import annotations

import hashlib
import math

import onnx

# Elements. Up to here a constant may be a shape or an axis, which shape inference reads.
SMALL = 1024


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose large initializers have a type and a shape, but no values.

    Large means more than SMALL elements. Metadata is left out.
    """
    copy = empty_like(model)
    copy.graph.node.extend(model.graph.node)
    copy.graph.input.extend(model.graph.input)
    copy.graph.output.extend(model.graph.output)
    copy.graph.value_info.extend(model.graph.value_info)
    copy.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    copy.graph.initializer.extend(map(strip_data, model.graph.initializer))
    return copy


def empty_like(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of the same versions and functions whose graph is empty."""
    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.name = model.graph.name
    return copy


def strip_data(item: onnx.TensorProto) -> onnx.TensorProto:
    """`item` without its values if it has more than SMALL elements; else itself."""
    is_text = item.data_type == onnx.TensorProto.STRING
    if is_text or math.prod(item.dims) <= SMALL:
        return item
    return onnx.TensorProto(dims=item.dims, data_type=item.data_type, name=item.name)


def initializer_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers.

    The message's own ByteSize would write it out, which takes twice the memory.
    """
    return sum(map(tensor_bytes, model.graph.initializer))


def tensor_bytes(item: onnx.TensorProto) -> int:
    """Bytes of the values, or a little more where they are packed."""
    if item.data_type == onnx.TensorProto.STRING:
        width = 8
    else:
        width = onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize
    return math.prod(item.dims) * width


def sha256_of_graph(model: onnx.ModelProto) -> str:
    """Hex SHA-256 of the graph and its weights.

    Metadata does not enter: a file that is given a history keeps its hash.
    """
    shell = without_weights(model).SerializeToString(deterministic=True)
    digest = hashlib.sha256(shell)
    for item in model.graph.initializer:
        digest.update(item.SerializeToString(deterministic=True))
    return digest.hexdigest()


def sha256_of_structure(model: onnx.ModelProto) -> str:
    """Hex SHA-256 of the graph without the values of its floating-point weights.

    The names of tensors count, those of nodes and what they are documented with do not.
    """
    graph = model.graph
    digest = hashlib.sha256()
    for node in graph.node:
        plain = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        plain.input.extend(node.input)
        plain.output.extend(node.output)
        plain.attribute.extend(sorted(node.attribute, key=lambda item: item.name))
        digest.update(plain.SerializeToString(deterministic=True))
    for item in graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(item.data_type)
        plain_item = item
        if dtype.kind not in "iub":  # shapes and axes are integers
            plain_item = onnx.TensorProto(
                dims=item.dims, data_type=item.data_type, name=item.name
            )
        digest.update(plain_item.SerializeToString(deterministic=True))
    for value in (*graph.input, *graph.output):
        digest.update(value.SerializeToString(deterministic=True))
    for opset in model.opset_import:
        digest.update(opset.SerializeToString(deterministic=True))
    return digest.hexdigest()


def sha256_of_wiring(model: onnx.ModelProto) -> str:
    """Hex SHA-256 of which operators read what of one another, by the names of tensors.

    It is the same for the widths and input sizes of one architecture that one exporter wrote:
    neither shapes nor attributes count.
    """
    digest = hashlib.sha256()
    for node in model.graph.node:
        plain = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        plain.input.extend(node.input)
        plain.output.extend(node.output)
        digest.update(plain.SerializeToString(deterministic=True))
    return digest.hexdigest()
