"""Parse and check ONNX files from anyone, and read JSON documents from their metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from repzoo.errors import InputError

MAX_DEPTH = 64  # nesting of a metadata document


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """The classifier in `data`. `where` names it in errors.

    Raises:
        InputError: truncated, not ONNX, external weights, names that are not UTF-8, rejected by
            the ONNX checker, or not a classifier.
    """
    # The checker runs before parsing, so that its own copy of the weights is freed again.
    problem = _checker_problem(data)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InputError(
            f"{where} is not a readable ONNX file (truncated, or another format); export it again"
        ) from None
    if not model.graph.node:
        raise InputError(
            f"{where} holds no ONNX graph; give a file made by an ONNX exporter"
        )
    _refuse_external_data(model, where)
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise InputError(
            f"{where} holds a name that is not UTF-8 text, so it is damaged; export it again"
        )
    if problem:
        raise InputError(f"{where} is not valid ONNX: {problem}")
    try:
        classifier_input(model)
    except InputError as error:
        raise InputError(f"{where} is {error}") from None
    return model


def classifier_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The image input of a classifier.

    Raises:
        InputError: not exactly one input of rank 4 and one output [N, classes], or the same with
            axes of one element, such as [N, classes, 1, 1].
    """
    weights = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in weights]
    outputs = list(model.graph.output)
    ranks = [_rank(item) for item in (*inputs, *outputs)]
    has_one_each = len(inputs) == 1 and len(outputs) == 1
    # A rank of None is unknown.
    if has_one_each and ranks[0] in (4, None) and _is_row_per_image(outputs[0]):
        return inputs[0]
    names = [item.name for item in (*inputs, *outputs)]
    pairs = zip(names, ranks, strict=True)
    shapes = ", ".join(f"{name} of rank {rank}" for name, rank in pairs)
    raise InputError(
        "not a classifier: expected one input [N, 3, H, W] and one output [N, classes]; got "
        f"{shapes}"
    )


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default ONNX operator set; 0 where the model does not import it."""
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx"):
            return int(item.version)
    return 0


def class_count(model: onnx.ModelProto) -> int:
    """Number of classes of the output [N, classes] or [N, classes, 1, 1]; 0 if not stated."""
    outputs = model.graph.output
    if len(outputs) != 1 or not _is_row_per_image(outputs[0]):
        return 0
    sides = [dim.dim_value for dim in outputs[0].type.tensor_type.shape.dim]
    return max(0, math.prod(sides[1:])) if len(sides) > 1 else 0


def documents(model: onnx.ModelProto, prefix: str, where: str) -> dict[str, Any]:
    """The JSON documents in the metadata whose keys begin with `prefix`, by the rest of the key.

    Raises:
        InputError: not JSON, not UTF-8, or nested deeper than MAX_DEPTH.
    """
    found: dict[str, Any] = {}
    for item in model.metadata_props:
        if not item.key.startswith(prefix):
            continue
        try:
            found[item.key.removeprefix(prefix)] = _load_json(item.value)
        # ValueError is the base of JSON's and of UTF-8's errors.
        except (ValueError, RecursionError):
            raise InputError(f"{where} has damaged metadata; export it again") from None
    return found


def _is_row_per_image(output: onnx.ValueInfoProto) -> bool:
    """Whether an output is [N, C], [N, C] with axes of one element, or of unknown rank."""
    rank = _rank(output)
    if rank in (2, None):
        return True
    sides = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    return len(sides) > 2 and sum(side != 1 for side in sides[1:]) == 1


def _rank(value: onnx.ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    return len(tensor.shape.dim) if tensor.HasField("shape") else None


def _checker_problem(data: bytes) -> str:
    """The first line of the ONNX checker's error; "" for a valid model."""
    try:
        onnx.checker.check_model(data)
    except (
        onnx.checker.ValidationError,
        UnicodeDecodeError,
        ValueError,
        RuntimeError,
    ) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _refuse_external_data(model: onnx.ModelProto, where: str) -> None:
    external = onnx.TensorProto.EXTERNAL
    if any(item.data_location == external for item in model.graph.initializer):
        raise InputError(
            f"{where} keeps its weights in another file; save it as one file (onnx.save without "
            "external data)"
        )


def _texts(model: onnx.ModelProto) -> Iterator[Any]:
    """Every name in the model. protobuf returns text that is not UTF-8 as bytes, silently."""
    graph = model.graph
    yield from (
        model.producer_name,
        model.producer_version,
        model.domain,
        model.doc_string,
    )
    yield from (graph.name, graph.doc_string)
    for values in (graph.input, graph.output, graph.initializer, graph.value_info):
        for value in values:
            yield value.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)


def _load_json(text: str) -> Any:
    """The JSON value of `text`. Deeper values than repzoo's own could not be written again."""
    value = json.loads(text)
    layer = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return value
        layer = inner
    raise ValueError("nested too deeply")
