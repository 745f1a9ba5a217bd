"""Models between ONNX messages and onnx-ir, without a second copy of all weights in memory."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from repzoo.errors import InputError
from repzoo.graph.tools.skeleton import SMALL, strip_data
from repzoo.printable import one_line
from repzoo.protobuf_stream import without


def to_ir(model: onnx.ModelProto) -> ir.Model:
    """`model` to work on, without a copy of its weights: they are read from `model`.

    `model` stays as it is.

    Raises:
        InputError: the graph holds something that ONNX does not define.
    """
    shell = without(model, "graph")
    shell.graph.CopyFrom(without(model.graph, "initializer"))
    shell.graph.initializer.extend(map(strip_data, model.graph.initializer))
    converted = _from_proto(shell)
    for item in model.graph.initializer:
        if strip_data(item) is not item:
            converted.graph.initializers[item.name].const_value = _lazy_tensor(item)
    return converted


def _from_proto(model: onnx.ModelProto) -> ir.Model:
    """`model` in the intermediate representation of onnx-ir.

    Raises:
        InputError: the graph holds something that ONNX does not define.
    """
    try:
        converted = ir.from_proto(model)
        for node in converted.graph.all_nodes():
            # onnx-ir reads the attribute only when it is asked for the value.
            if node.op_type == "Constant" and len(node.attributes) != 1:
                raise ValueError(f"the Constant {node.name!r} has no single value")
    except (ir.serde.SerdeError, ValueError) as error:
        reason = one_line(error.__cause__ or error)
        raise InputError(
            f"the graph holds something that ONNX does not define ({reason}); export it again"
        ) from None
    return converted


def _lazy_tensor(item: onnx.TensorProto) -> ir.LazyTensor:
    """A tensor that reads `item` and has a name of its own: passes write names into tensors."""
    return ir.LazyTensor(
        lambda: ir.serde.TensorProtoTensor(item),
        ir.DataType(item.data_type),
        ir.Shape(item.dims),
        name=item.name,
    )


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """`model` as a message, which takes its weights one by one.

    Each weight leaves `model` on the way, so that there is never a second copy of them all.
    """
    tensors: list[ir.TensorProtocol] = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        tensors.append(tensor)
        if _is_large(tensor):
            empty = onnx.TensorProto(
                dims=tensor.shape.numpy(), data_type=tensor.dtype.value, name=value.name
            )
            value.const_value = ir.serde.TensorProtoTensor(empty)
    converted = ir.to_proto(model)
    tensors.reverse()
    for item in converted.graph.initializer:
        # Taken from the list, so that the tensor is freed once its bytes are copied.
        tensor = tensors.pop()
        if _is_large(tensor):
            item.raw_data = tensor.tobytes()
    return converted


def _is_large(tensor: ir.TensorProtocol) -> bool:
    """Whether `strip_data` would drop the values."""
    return tensor.size > SMALL and tensor.dtype != ir.DataType.STRING
