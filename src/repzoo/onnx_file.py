"""Parse and check ONNX files from anyone, and read JSON documents from their metadata."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError, EncodeError

from repzoo.errors import InputError, first_line
from repzoo.external_data import all_tensors, external_tensors, load_external
from repzoo.native_output import STDERR, STDOUT, discarded
from repzoo.protobuf_stream import clone

STANDARD_DOMAINS = ("", "ai.onnx")  # two names of ONNX's own operator set
IMAGE_RANK = 4  # axes of a batch of images
MAX_DEPTH = 64  # nesting of a metadata document
MAX_INPUT_ELEMENTS = 2**29  # of one input, 2 GB in float32
_KNOWN_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {0}
# Types that are stored in fewer bits than a byte, or as text.
_PACKED_TYPES = frozenset(
    value
    for name, value in onnx.TensorProto.DataType.items()
    if name in ("UNDEFINED", "STRING")
    or name.endswith(("INT4", "INT2", "E2M1", "E2M3", "E3M2"))
)


@dataclass(frozen=True)
class ParsedFile:
    """A model, and the files beside it that held weights, by name."""

    model: onnx.ModelProto
    data_files: tuple[Path, ...] = ()


def parse(data: bytes, where: str, path: Path | None = None) -> ParsedFile:
    """The model in `data`, with its nodes in order and its open sides unset.

    where  names it in errors
    path   of the file; external weights are read from its folder

    Raises:
        InputError: truncated, not ONNX, external weights that cannot be read, names that are not
            UTF-8, or rejected by the ONNX checker.
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
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise InputError(
            f"{where} holds a name that is not UTF-8 text, so it is damaged; export it again"
        )
    _require_storable(model, where)
    files = _load_external_data(model, where, path)
    # The checker refuses both, though every runtime takes them.
    if sort_nodes(model.graph) or files:
        problem = _problem_of_changed(model, path if files else None)
    if problem:
        raise InputError(f"{where} is not valid ONNX: {problem}")
    unset_open_sides(model)
    _require_feasible_inputs(model, where)
    return ParsedFile(model, files)


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Sort the nodes in place, so that each follows those it reads. Returns whether any moved.

    Converters to float16 append their Casts at the end of the list. The order stays as it is where
    it is right, and where there is none: a cycle is left to the checker. Kahn's algorithm.
    """
    producers = {
        name: index for index, node in enumerate(graph.node) for name in node.output
    }
    producers.pop("", None)
    waiting: list[int] = []
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.node):
        sources = {producers[name] for name in names_read(node) if name in producers}
        waiting.append(len(sources))
        for source in sources:
            readers.setdefault(source, []).append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        # The smallest first, which keeps the file's order wherever the graph leaves a choice.
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(graph.node) or order == sorted(order):
        return False
    nodes = [clone(graph.node[index]) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those of its subgraphs included."""
    yield from node.input
    for item in node.attribute:
        for graph in ([item.g] if item.HasField("g") else []) + list(item.graphs):
            # A branch may hand out a tensor of the outer graph unchanged.
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from names_read(inner)


def unset_open_sides(model: onnx.ModelProto) -> None:
    """Unset, in place, the sides that exporters write as 0 or below to say that they are open.

    Paddle writes an open batch as -1, others as 0; runtimes take both as open.
    """
    inputs = model_inputs(model)
    graph = model.graph
    for value in (*inputs, *graph.output):
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.ClearField("dim_value")
                # Of several inputs, the first sides need not be one number.
                if axis == 0 and len(inputs) == 1:
                    dim.dim_param = "N"
    for value in graph.value_info:
        # An intermediate tensor may be empty, so 0 is a size there.
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def classifier_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The image input of a classifier.

    Raises:
        InputError: not exactly one input of rank 4 and one output [N, classes], or the same with
            axes of one element, such as [N, classes, 1, 1].
    """
    inputs = model_inputs(model)
    outputs = list(model.graph.output)
    ranks = [_rank(item) for item in (*inputs, *outputs)]
    has_one_each = len(inputs) == 1 and len(outputs) == 1
    # A rank of None is unknown.
    if (
        has_one_each
        and ranks[0] in (IMAGE_RANK, None)
        and _is_row_per_image(outputs[0])
    ):
        return inputs[0]
    names = [item.name for item in (*inputs, *outputs)]
    pairs = zip(names, ranks, strict=True)
    shapes = ", ".join(f"{name} of rank {rank}" for name, rank in pairs)
    raise InputError(
        "not a classifier: expected one input [N, 3, H, W] and one output [N, classes]; got "
        f"{shapes or 'neither'}"
    )


def model_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller feeds: those that are no initializers."""
    weights = {item.name for item in model.graph.initializer}
    return [item for item in model.graph.input if item.name not in weights]


def fixed_batch(model: onnx.ModelProto) -> int:
    """The batch size that the graph fixes for the image it takes; 0 where it is open.

    The first side of other inputs need not be a batch, so it is not looked at.
    """
    inputs = model_inputs(model)
    if len(inputs) != 1:
        return 0
    dims = inputs[0].type.tensor_type.shape.dim
    return int(dims[0].dim_value) if len(dims) == IMAGE_RANK else 0


def has_open_sides(model: onnx.ModelProto) -> bool:
    """Whether an input of rank 4 leaves more open than the number of images."""
    for value in model_inputs(model):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == IMAGE_RANK and not all(dim.dim_value > 0 for dim in dims[1:]):
            return True
    return False


def foreign_operators(model: onnx.ModelProto) -> set[str]:
    """Operators that neither ONNX nor a function of the model defines, such as FusedConv."""
    own = {(function.domain, function.name) for function in model.functions}
    return {
        node.op_type
        for node in model.graph.node
        if node.domain not in STANDARD_DOMAINS
        and (node.domain, node.op_type) not in own
    }


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default ONNX operator set; 0 where the model does not import it."""
    for item in model.opset_import:
        if item.domain in STANDARD_DOMAINS:
            return int(item.version)
    return 0


# Operators whose weights say in which precision a network computes.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_HALF: Mapping[int, Literal["fp16", "bf16"]] = {
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}


def half_precision(model: onnx.ModelProto) -> Literal["", "fp16", "bf16"]:
    """The half-precision type in which layers of `model` compute; "" where they do not.

    Weights that a Cast turns into float32 are only stored in half precision.
    """
    types = {item.name: item.data_type for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            for name in node.input:
                if types.get(name) in _HALF:
                    return _HALF[types[name]]
    return ""


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
    values: dict[str, Any] = {}
    for item in model.metadata_props:
        if not item.key.startswith(prefix):
            continue
        try:
            values[item.key.removeprefix(prefix)] = _load_json(item.value)
        # ValueError is the base of JSON's and of UTF-8's errors.
        except (ValueError, RecursionError):
            raise InputError(f"{where} has damaged metadata; export it again") from None
    return values


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


def _checker_problem(data: bytes | str) -> str:
    """The first line of the ONNX checker's error on bytes or a path; "" for a valid model."""
    try:
        # It warns of experimental operators by printing.
        with discarded(STDOUT, STDERR):
            onnx.checker.check_model(data)
    except (
        onnx.checker.ValidationError,
        UnicodeDecodeError,
        ValueError,
        RuntimeError,
    ) as error:
        return first_line(error)
    return ""


def _load_external_data(
    model: onnx.ModelProto, where: str, path: Path | None
) -> tuple[Path, ...]:
    """Read the weights that are in other files, in place. Returns those files."""
    if not external_tensors(model):
        return ()
    if path is None:
        raise InputError(
            f"{where} keeps its weights in another file; give the path of the model, or load it "
            "with its external data"
        )
    return tuple(load_external(model, path.parent, where))


def _problem_of_changed(model: onnx.ModelProto, path: Path | None) -> str:
    """The checker's problem with a model that is not its file's bytes any more.

    path  of the file, whose weights are beside it: over 2 GB the model is no message
    """
    try:
        data = model.SerializeToString()
    except (ValueError, EncodeError):
        return _checker_problem(str(path))
    return _checker_problem(data)


def _require_storable(model: onnx.ModelProto, where: str) -> None:
    """Refuse weights of negative sides or of unknown types, which the checker lets pass."""
    for item in all_tensors(model):
        if any(side < 0 for side in item.dims):
            raise InputError(
                f"{where} holds the weight {item.name!r} of the shape {list(item.dims)}; "
                "export it again"
            )
        if item.data_type not in _KNOWN_TYPES:
            raise InputError(
                f"{where} holds the weight {item.name!r} of the unknown type {item.data_type}; "
                "it is damaged, or of a newer version of ONNX"
            )
        _require_whole(item, where)


def _require_whole(item: onnx.TensorProto, where: str) -> None:
    """Refuse raw data of another length than the shape says; the checker does not look."""
    if not item.HasField("raw_data") or item.data_type in _PACKED_TYPES:
        return
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize
    expected = math.prod(item.dims) * itemsize
    if len(item.raw_data) != expected:
        raise InputError(
            f"{where} is damaged: the weight {item.name!r} has {len(item.raw_data)} bytes where "
            f"its shape {list(item.dims)} takes {expected}; export it again"
        )


def _require_feasible_inputs(model: onnx.ModelProto, where: str) -> None:
    """Refuse inputs for which no memory could be had."""
    for item in model_inputs(model):
        sides = [max(1, dim.dim_value) for dim in item.type.tensor_type.shape.dim]
        if math.prod(sides) > MAX_INPUT_ELEMENTS:
            raise InputError(
                f"{where} takes {sides} as {item.name!r}, more than {MAX_INPUT_ELEMENTS:,} "
                "numbers; export it with a smaller input"
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
    """The JSON value of `text`.

    Raises:
        ValueError: nested deeper than MAX_DEPTH, or with half of a surrogate pair: neither could
            be written again.
    """
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False).encode()
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
