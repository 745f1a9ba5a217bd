"""A model without the weight of its weights: its skeleton, its hash, and pieces small enough to
run one after another.

The memory of a whole-graph check is then that of the largest piece, and no message comes near
protobuf's limit of 2 GB.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx.inliner
import onnx_ir as ir

from repzoo import protobuf_stream as wire
from repzoo.errors import InputError
from repzoo.onnx_file import model_inputs

# Bytes of constants. A piece is larger only where a single stretch that cannot be cut is larger.
PIECE_BYTES = 2**25
# Nodes of a graph whose functions are inlined.
MOST_INLINED = 10**5
# Elements. Up to here a constant may be a shape or an axis, which shape inference reads.
SMALL = 1024


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose large initializers have a type and a shape, but no values.

    Large means more than SMALL elements. Metadata is left out.
    """
    copy = _empty_like(model)
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(copy.graph, name).extend(getattr(model.graph, name))
    copy.graph.initializer.extend(strip_data(item) for item in model.graph.initializer)
    return copy


def to_ir(model: onnx.ModelProto) -> ir.Model:
    """`model` to work on, without a copy of its weights: they are read from `model`.

    `model` stays as it is.

    Raises:
        InputError: the graph holds something that ONNX does not define.
    """
    shell = wire.without(model, "graph")
    shell.graph.CopyFrom(wire.without(model.graph, "initializer"))
    shell.graph.initializer.extend(map(strip_data, model.graph.initializer))
    converted = from_proto(shell)
    for item in model.graph.initializer:
        if strip_data(item) is not item:
            converted.graph.initializers[item.name].const_value = _lazy(item)
    return converted


def from_proto(model: onnx.ModelProto) -> ir.Model:
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
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"the graph holds something that ONNX does not define ({reason}); export it again"
        ) from None
    return converted


def initializer_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers.

    The message's own ByteSize would write it out, which takes twice the memory.
    """
    return sum(map(_size, model.graph.initializer))


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its own functions inlined; itself where it has none.

    Raises:
        InputError: ONNX cannot put a body there.
    """
    if not model.functions:
        return model
    _require_bounded_calls(model)
    try:
        inlined = onnx.inliner.inline_local_functions(without_weights(model))
    # ONNX's C++ raises what it likes.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"a function of the model cannot be put in the place of its call ({reason}); export "
            "without functions"
        ) from None
    pairs = zip(inlined.graph.initializer, model.graph.initializer, strict=True)
    for item, full in pairs:
        item.CopyFrom(full)
    inlined.metadata_props.extend(model.metadata_props)
    inlined.producer_name = model.producer_name
    inlined.producer_version = model.producer_version
    return inlined


def _require_bounded_calls(model: onnx.ModelProto) -> None:
    """Refuse functions whose calls multiply.

    A function that calls another twice, and so on thirty times, stands for 10^9 nodes.

    Raises:
        InputError: without functions the graph has too many nodes, or a function calls itself.
    """
    bodies = {(item.domain, item.name): item.node for item in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    # Each function after those that it calls: a function of which all are known is known next.
    while len(sizes) < len(bodies):
        known = len(sizes)
        for key, nodes in bodies.items():
            calls = {(node.domain, node.op_type) for node in _with_subgraphs(nodes)}
            if key not in sizes and all(
                call in sizes for call in calls & bodies.keys()
            ):
                sizes[key] = _inlined_size(nodes, sizes)
        if len(sizes) == known:
            raise InputError(
                "functions of the model call themselves; export without functions"
            )
    count = _inlined_size(model.graph.node, sizes)
    if count > MOST_INLINED:
        raise InputError(
            f"with its functions in the place of their calls the graph has {count:.3g} nodes, more "
            f"than {MOST_INLINED:,}; export without functions"
        )


def _inlined_size(
    nodes: Iterable[onnx.NodeProto], sizes: Mapping[tuple[str, str], int]
) -> int:
    total = 0
    for node in _with_subgraphs(nodes):
        total += sizes.get((node.domain, node.op_type), 1)
    return total


def _with_subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """`nodes`, and those of the graphs in their attributes."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        for item in node.attribute:
            for graph in (item.g, *item.graphs):
                stack += graph.node


def _lazy(item: onnx.TensorProto) -> ir.LazyTensor:
    """A tensor that reads `item` and has a name of its own: passes write names into tensors."""
    dtype, shape = ir.DataType(item.data_type), ir.Shape(item.dims)
    return ir.LazyTensor(
        lambda: ir.serde.TensorProtoTensor(item), dtype, shape, name=item.name
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
    return tensor.size > SMALL and tensor.dtype != ir.DataType.STRING


def sha256_of_graph(model: onnx.ModelProto) -> str:
    """Hex SHA-256 of the graph and its weights.

    Metadata does not enter: a file that is given a history keeps its hash.
    """
    shell = without_weights(model).SerializeToString(deterministic=True)
    digest = hashlib.sha256(shell)
    for item in model.graph.initializer:
        digest.update(item.SerializeToString(deterministic=True))
    return digest.hexdigest()


Change = Callable[[onnx.TensorProto], onnx.TensorProto]


def split_model(
    model: onnx.ModelProto, limit: int = PIECE_BYTES, change: Change = lambda item: item
) -> Pieces:
    """New models that compute what `model` computes, each fed the output of the one before.

    limit   bytes of constants in one piece, where cuts allow
    change  the initializer to write in the place of each one; it must be a new message, because a
            message frees its old values only when it is freed itself

    A cut needs a float32 tensor that is all that later nodes read. Constants go where they are
    read.
    """
    parts = _Parts.of(model)
    stretches = list(parts.stretches(limit)) if parts.bytes() > limit else []
    return Pieces(parts, stretches if len(stretches) > 1 else [], change)


@dataclass(frozen=True)
class Pieces:
    """The pieces of a model, each made when the iteration comes to it."""

    _parts: _Parts
    _stretches: Sequence[Sequence[onnx.NodeProto]]
    _change: Change

    def __len__(self) -> int:
        return max(1, len(self._stretches))

    def __iter__(self) -> Iterator[onnx.ModelProto]:
        source = model_inputs(self._parts.model)[0].name if self._stretches else ""
        for stretch in self._stretches:
            yield self._parts.piece(source, stretch, self._change)
            source = stretch[-1].output[0]
        if not self._stretches:
            yield self._parts.whole(self._change)


@dataclass(frozen=True)
class _Parts:
    """A model taken apart.

    stored  its initializers by name
    makers  the nodes that compute from constants alone, by the names of their outputs
    nodes   the other nodes that an output needs
    """

    model: onnx.ModelProto
    stored: dict[str, onnx.TensorProto]
    makers: dict[str, onnx.NodeProto]
    nodes: tuple[onnx.NodeProto, ...]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Parts:
        """The parts of `model`."""
        stored = {item.name: item for item in model.graph.initializer}
        makers: dict[str, onnx.NodeProto] = {}
        nodes = []
        for node in model.graph.node:
            names = [name for name in node.input if name]
            is_constant = all(name in stored or name in makers for name in names)
            if is_constant and not _is_random(node):
                makers.update(dict.fromkeys(node.output, node))
            else:
                nodes.append(node)
        return cls(model, stored, makers, tuple(_read(nodes, model.graph.output)))

    def bytes(self) -> int:
        """Bytes of all constants."""
        stored = sum(map(_size, self.stored.values()))
        return stored + sum(map(_held, self.makers.values()))

    def whole(self, change: Change) -> onnx.ModelProto:
        """The model in one piece."""
        copy = wire.without(self.model, "graph")
        copy.graph.CopyFrom(wire.without(self.model.graph, "initializer"))
        for item in self.model.graph.initializer:
            copy.graph.initializer.append(change(item))
        return copy

    def stretches(self, limit: int) -> Iterator[list[onnx.NodeProto]]:
        """The computing nodes in stretches of at most `limit` bytes, where cuts allow."""
        stretch: list[onnx.NodeProto] = []
        total = 0
        for run in self._uncuttable_runs():
            size = sum(self._weight(name) for node in run for name in node.input)
            if stretch and total + size > limit:
                yield stretch
                stretch = []
                total = 0
            stretch = [*stretch, *run]
            total += size
        yield stretch

    def piece(
        self, source: str, nodes: Sequence[onnx.NodeProto], change: Change
    ) -> onnx.ModelProto:
        """A model of `nodes` whose input, under the name of the model's, is the tensor `source`."""
        image = model_inputs(self.model)[0]
        piece = _empty_like(self.model)
        stored, makers = self._behind([name for node in nodes for name in node.input])
        for name in stored:
            piece.graph.initializer.append(change(self.stored[name]))
        piece.graph.node.extend([*makers, *nodes])
        for node in piece.graph.node:
            for index, name in enumerate(node.input):
                if name == source:
                    node.input[index] = image.name
        is_first = source == image.name
        piece.graph.input.append(image if is_first else _untyped(image.name))
        output = self.model.graph.output[0]
        target = nodes[-1].output[0]
        is_last = target == output.name
        piece.graph.output.append(output if is_last else _untyped(target))
        return piece

    def _uncuttable_runs(self) -> Iterator[list[onnx.NodeProto]]:
        """Runs of nodes between two places where a cut is possible."""
        floats: Collection[str] = set()
        # A subgraph may read any tensor by name, so nothing is cut.
        if not any(map(_has_graph, self.nodes)):
            floats = _floats(self.model)
        last_reader = self._last_readers()
        live = {item.name for item in self.model.graph.input} - set(self.stored)
        run: list[onnx.NodeProto] = []
        for place, node in enumerate(self.nodes):
            run.append(node)
            live.update(node.output)
            live = {name for name in live if last_reader.get(name, -1) > place}
            if live == {node.output[0]} and node.output[0] in floats:
                yield run
                run = []
        if run:
            yield run

    def _last_readers(self) -> dict[str, int]:
        """The place of the last node that reads a tensor; an output is read behind all nodes."""
        last: dict[str, int] = {}
        for place, node in enumerate(self.nodes):
            last.update(dict.fromkeys(node.input, place))
        for item in self.model.graph.output:
            last[item.name] = len(self.nodes)
        return last

    def _behind(self, names: Sequence[str]) -> tuple[list[str], list[onnx.NodeProto]]:
        """(initializers, nodes in order) that the constants among `names` need."""
        needed: set[str] = set()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name in needed or not (name in self.stored or name in self.makers):
                continue
            needed.add(name)
            if name in self.makers:
                stack += self.makers[name].input
        # By identity, because a node may have several outputs.
        makers: dict[int, onnx.NodeProto] = {}
        for name, node in self.makers.items():
            if name in needed:
                makers[id(node)] = node
        return [name for name in self.stored if name in needed], list(makers.values())

    def _weight(self, name: str) -> int:
        """Bytes of the constants behind the tensor `name`."""
        stored, makers = self._behind([name])
        size = sum(_size(self.stored[item]) for item in stored)
        return size + sum(map(_held, makers))


def trim_heap() -> None:
    """Hand freed memory back to the system.

    glibc keeps it between blocks that live on: measured, a third of a large model after some
    pieces.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)


def _read(
    nodes: Sequence[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto]
) -> list[onnx.NodeProto]:
    """The nodes that some output needs."""
    needed = {item.name for item in outputs}
    kept = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed |= set(node.input)
            kept.append(node)
    return kept[::-1]


def _empty_like(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.name = model.graph.name
    return copy


def strip_data(item: onnx.TensorProto) -> onnx.TensorProto:
    """`item` without its values if it has more than SMALL elements; else itself."""
    if math.prod(item.dims) <= SMALL or item.data_type == onnx.TensorProto.STRING:
        return item
    return onnx.TensorProto(dims=item.dims, data_type=item.data_type, name=item.name)


def _size(item: onnx.TensorProto) -> int:
    """Bytes, or a little more where values are packed."""
    if item.data_type == onnx.TensorProto.STRING:
        width = 8
    else:
        width = onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize
    return math.prod(item.dims) * width


def _held(node: onnx.NodeProto) -> int:
    return sum(
        _size(item.t)
        for item in node.attribute
        if item.type == onnx.AttributeProto.TENSOR
    )


def _has_graph(node: onnx.NodeProto) -> bool:
    """Whether a graph in an attribute may read any tensor by name."""
    return any(
        item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        for item in node.attribute
    )


def _is_random(node: onnx.NodeProto) -> bool:
    if _has_graph(node) or node.op_type.startswith("Random"):
        return True
    return node.op_type in ("Bernoulli", "Multinomial")


def _floats(model: onnx.ModelProto) -> Collection[str]:
    """Names of the tensors that are known to be float32."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    known = (*inferred.value_info, *inferred.output)
    return {
        item.name
        for item in known
        if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }


def _untyped(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
