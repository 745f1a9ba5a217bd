"""Which nodes of a folded graph do what the training form does, with the same values."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from repzoo.graph.certificate.attributes import integer
from repzoo.graph.certificate.folded_node import weight_of
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.operators import reshape_shape
from repzoo.graph.certificate.training_form import TrainingForm
from repzoo.protobuf_stream import clone


def changed_nodes(
    after: onnx.ModelProto,
    origin: TrainingForm,
    new: TensorIndex,
) -> Iterator[onnx.NodeProto]:
    """The nodes of `after` (with index `new`) that the training form does not have.

    A MatMul and the Add of its bias come as one MatMul with three inputs. The product between the
    two is no tensor of the training form, so whatever else reads it counts as changed.
    """
    outputs = {item.name for item in after.graph.output}
    for node in after.graph.node:
        if node.op_type == "Constant":
            continue
        name = node.output[0]
        is_new = name not in outputs and name not in origin.index.producers
        if node.op_type == "MatMul" and is_new:
            continue  # it comes with its Add
        if not is_unchanged(node, origin, new):
            yield _with_product(node, new)


def _with_product(node: onnx.NodeProto, new: TensorIndex) -> onnx.NodeProto:
    """An Add of a bias to the product of a MatMul, as one MatMul; another node as it is."""
    if node.op_type != "Add":
        return node
    product = new.producers.get(node.input[0])
    if product is None or product.op_type != "MatMul":
        return node
    if weight_of(product, new) is None:
        return node
    inputs = [*product.input, node.input[1]]
    return onnx.helper.make_node("MatMul", inputs, node.output, node.name)


def is_unchanged(node: onnx.NodeProto, origin: TrainingForm, new: TensorIndex) -> bool:
    """Whether `node` of the folded graph does what the training form does, with equal values."""
    old = origin.index
    if node.op_type == "Identity":
        source = old.resolve(node.input[0])
        if old.resolve(node.output[0]) == source:
            return True
    original = _counterpart(node, old)
    if original is None:
        return False
    if _attributes(original, old, old) != _attributes(node, new, old):
        return False
    pairs = itertools.zip_longest(_inputs(original), _inputs(node), fillvalue="")
    if all(_is_same_tensor(was, now, old, new) for was, now in pairs):
        return True
    return node.op_type == "Reshape" and _is_same_reshape(original, node, origin, new)


def _counterpart(node: onnx.NodeProto, old: TensorIndex) -> onnx.NodeProto | None:
    """The node of the training form with the same operator that computes the same tensor."""
    for name in (node.output[0], old.resolve(node.output[0])):
        candidate = old.producers.get(name)
        if candidate is not None and _operator(candidate) == _operator(node):
            return candidate
    return None


def _operator(node: onnx.NodeProto) -> tuple[str, str]:
    return node.op_type, node.domain


def _inputs(node: onnx.NodeProto) -> list[str]:
    """The inputs of `node` without the omitted ones at the end."""
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names


def _is_same_tensor(was: str, now: str, old: TensorIndex, new: TensorIndex) -> bool:
    """Whether `was` (training form) and `now` (folded graph) are one tensor or equal constants."""
    source = old.resolve(was)
    before = old.constants.get(source)
    after = new.constants.get(new.resolve(now))
    if after is None:
        # It is computed, by a node that is proven as well: what is known of its name holds for it.
        if source == old.resolve(now):
            return True
        after = old.constants.get(old.resolve(now))
    if before is None or after is None:
        return False
    values = numpy_helper.to_array(before)
    others = numpy_helper.to_array(after)
    return values.dtype == others.dtype and np.array_equal(values, others)


def _is_same_reshape(
    original: onnx.NodeProto,
    node: onnx.NodeProto,
    origin: TrainingForm,
    new: TensorIndex,
) -> bool:
    """Whether two Reshapes of one tensor give it the same shape at all sizes that were sampled.

    The training form may compute its target from the batch size where the folded graph has a
    constant with a -1 in it.
    """
    if integer(node, "allowzero", 0):
        return False
    if not _is_same_tensor(original.input[0], node.input[0], origin.index, new):
        return False
    target = new.values(node.input[1])
    if target is None:
        return False
    sides = [int(side) for side in target]
    for sample in origin.known.samples:
        before = sample.shapes.get(original.input[0])
        after = sample.shapes.get(original.output[0])
        if before is None or after is None:
            return False
        if reshape_shape(before, sides) != after:
            return False
    return True


# --- attributes -----------------------------------------------------------------------------------


def _attributes(
    node: onnx.NodeProto,
    index: TensorIndex,
    old: TensorIndex,
) -> dict[str, bytes]:
    """The attributes of `node` in a form that can be compared across graphs.

    index  of the graph that has the node
    old    of the training form
    """
    copy = clone(node)
    attributes = {}
    for item in copy.attribute:
        for graph in _subgraphs(item):
            _normalize(graph, {}, index, old)
        # training_mode=0 is the default, which onnx-ir leaves out.
        if item.name != "training_mode" or item.i:
            attributes[item.name] = item.SerializeToString(deterministic=True)
    return attributes


def _subgraphs(item: onnx.AttributeProto) -> list[onnx.GraphProto]:
    graphs = list(item.graphs)
    if item.HasField("g"):
        graphs.append(item.g)
    return graphs


def _normalize(
    graph: onnx.GraphProto,
    outer: Mapping[str, str],
    index: TensorIndex,
    old: TensorIndex,
) -> None:
    """Leave only the arithmetic in a subgraph, in place.

    Tensors of the graph around it are named by where they come from, or by their values.

    outer  tensors of the subgraphs around `graph`, which keep their names
    """
    local = dict(outer)
    names = [value.name for value in graph.input]
    names += [tensor.name for tensor in graph.initializer]
    local.update(zip(names, names, strict=True))
    for node in graph.node:
        local.update(zip(node.output, node.output, strict=True))
    for declared in (*graph.input, *graph.output):
        declared.ClearField("type")
    graph.ClearField("value_info")
    for node in graph.node:
        node.ClearField("doc_string")
        if not node.domain:
            node.ClearField("domain")
        for position, name in enumerate(node.input):
            node.input[position] = local.get(name) or _identity(name, index, old)
        for attribute in node.attribute:
            for inner in _subgraphs(attribute):
                _normalize(inner, local, index, old)


def _identity(name: str, index: TensorIndex, old: TensorIndex) -> str:
    """What identifies an outer tensor: its resolved name or, where it is constant, its values."""
    resolved = index.resolve(name)
    source = old.resolve(resolved)
    tensor = index.constants.get(resolved) or old.constants.get(source)
    if tensor is None:
        return source
    values = numpy_helper.to_array(tensor)
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    return f"{values.dtype} {values.shape} {digest}"
