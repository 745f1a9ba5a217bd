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

PIECE_BYTES = (
    2**25
)  # of constants; a piece is larger only where a single uncuttable stretch is
MOST_INLINED = 10**5  # nodes of a graph whose functions are inlined
SMALL = 1024  # elements; up to here a constant may be a shape or an axis that shape inference reads


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which initializers of more than SMALL elements have a type and a
    shape but no values.

    Metadata is left out.
    """
    copy = _empty_like(model)
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(copy.graph, name).extend(getattr(model.graph, name))
    copy.graph.initializer.extend(strip_data(item) for item in model.graph.initializer)
    return copy


def to_ir(model: onnx.ModelProto) -> ir.Model:
    """`model` to work on, without a copy of its weights: they are read from `model`, which
    stays as it was.

    Raises:
        InputError: the graph holds something that ONNX does not define.
    """
    shell = wire.without(model, "graph")
    shell.graph.CopyFrom(wire.without(model.graph, "initializer"))
    large = {
        item.name: item
        for item in model.graph.initializer
        if strip_data(item) is not item
    }
    shell.graph.initializer.extend(map(strip_data, model.graph.initializer))
    made = from_proto(shell)
    for name, item in large.items():
        made.graph.initializers[name].const_value = _lent(item)
    return made


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
    """Of its initializers. The message's own ByteSize would write it out, which takes twice as
    much.
    """
    return sum(map(_size, model.graph.initializer))


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the bodies of its own functions in the place of their calls; itself where it
    has none.

    Raises:
        InputError: ONNX cannot put a body there.
    """
    if not model.functions:
        return model
    _require_bounded_calls(model)
    try:
        made = onnx.inliner.inline_local_functions(without_weights(model))
    except Exception as error:  # whatever ONNX's C++ raises
        reason = " ".join(str(error).split())
        raise InputError(
            f"a function of the model cannot be put in the place of its call ({reason}); export "
            "without functions"
        ) from None
    for item, full in zip(made.graph.initializer, model.graph.initializer, strict=True):
        item.CopyFrom(full)
    made.metadata_props.extend(model.metadata_props)
    made.producer_name, made.producer_version = (
        model.producer_name,
        model.producer_version,
    )
    return made


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


def _lent(item: onnx.TensorProto) -> ir.LazyTensor:
    """A tensor that reads `item` and has a name of its own: passes write names into tensors."""
    dtype, shape = ir.DataType(item.data_type), ir.Shape(item.dims)
    return ir.LazyTensor(
        lambda: ir.serde.TensorProtoTensor(item), dtype, shape, name=item.name
    )


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """`model` as a message; each weight leaves it on the way, so that there is never a second
    copy of them all.
    """
    values = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
    ]
    held = [value.const_value for value in values][::-1]
    for value in values:
        tensor = value.const_value
        if (
            tensor is not None
            and tensor.size > SMALL
            and tensor.dtype != ir.DataType.STRING
        ):
            hollow = onnx.TensorProto(
                dims=tensor.shape.numpy(), data_type=tensor.dtype.value, name=value.name
            )
            value.const_value = ir.serde.TensorProtoTensor(hollow)
    made = ir.to_proto(model)
    for item in made.graph.initializer:
        tensor = held.pop()
        if (
            tensor is not None
            and tensor.size > SMALL
            and tensor.dtype != ir.DataType.STRING
        ):
            item.raw_data = tensor.tobytes()
    return made


def sha256_of_graph(model: onnx.ModelProto) -> str:
    """Hex SHA-256 of the graph and its weights; metadata does not enter, so a file that has
    taken on its history keeps it.
    """
    digest = hashlib.sha256(
        without_weights(model).SerializeToString(deterministic=True)
    )
    for item in model.graph.initializer:
        digest.update(item.SerializeToString(deterministic=True))
    return digest.hexdigest()


Change = Callable[[onnx.TensorProto], onnx.TensorProto]


def split_model(
    model: onnx.ModelProto, limit: int = PIECE_BYTES, change: Change = lambda item: item
) -> Pieces:
    """Models, all new, that give what `model` gives when each is fed the output of the one
    before, as its input of that name.

    A cut needs a tensor that is float32 and all that later nodes read. Constants go where they
    are read. `change` gives what stands in the place of each initializer (a copy: memory of a
    message's old values is only free when the message is).
    """
    parts = _Parts.of(model)
    stretches = list(parts.stretches(limit)) if parts.bytes() > limit else []
    return Pieces(parts, stretches if len(stretches) > 1 else [], change)


@dataclass(frozen=True)
class Pieces:
    """So many models, each made when it is asked for."""

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
    """A model taken apart: its constants by name, the nodes that make more of them, and the
    nodes that compute.
    """

    model: onnx.ModelProto
    stored: dict[str, onnx.TensorProto]
    makers: dict[str, onnx.NodeProto]
    nodes: tuple[onnx.NodeProto, ...]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Parts:
        stored = {item.name: item for item in model.graph.initializer}
        makers: dict[str, onnx.NodeProto] = {}
        nodes = []
        for node in model.graph.node:
            if all(
                not name or name in stored or name in makers for name in node.input
            ) and not _is_random(node):
                makers.update(dict.fromkeys(node.output, node))
            else:
                nodes.append(node)
        return cls(model, stored, makers, tuple(_read(nodes, model.graph.output)))

    def bytes(self) -> int:
        return sum(_size(item) for item in self.stored.values()) + sum(
            map(_held, self.makers.values())
        )

    def whole(self, change: Change) -> onnx.ModelProto:
        copy = wire.without(self.model, "graph")
        copy.graph.CopyFrom(wire.without(self.model.graph, "initializer"))
        for item in self.model.graph.initializer:
            copy.graph.initializer.append(change(item))
        return copy

    def stretches(self, limit: int) -> Iterator[list[onnx.NodeProto]]:
        """The computing nodes in runs of at most `limit` bytes of constants, wherever cuts
        allow.
        """
        taken: list[onnx.NodeProto] = []
        total = 0
        for run in self._uncuttable():
            size = sum(self._weight(name) for node in run for name in node.input)
            if taken and total + size > limit:
                yield taken
                taken, total = [], 0
            taken, total = [*taken, *run], total + size
        yield taken

    def piece(
        self, source: str, nodes: Sequence[onnx.NodeProto], change: Change
    ) -> onnx.ModelProto:
        given, target = model_inputs(self.model)[0], nodes[-1].output[0]
        made = _empty_like(self.model)
        stored, makers = self._behind([name for node in nodes for name in node.input])
        for name in stored:
            made.graph.initializer.append(change(self.stored[name]))
        made.graph.node.extend([*makers, *nodes])
        for node in made.graph.node:
            node.input[:] = [
                given.name if name == source else name for name in node.input
            ]
        last = self.model.graph.output[0]
        made.graph.input.append(given if source == given.name else _untyped(given.name))
        made.graph.output.append(last if target == last.name else _untyped(target))
        return made

    def _uncuttable(self) -> Iterator[list[onnx.NodeProto]]:
        """Runs of nodes between two places where a cut is possible."""
        floats = _floats(self.model) if not any(map(_has_graph, self.nodes)) else set()
        last = {
            name: place for place, node in enumerate(self.nodes) for name in node.input
        }
        last |= {item.name: len(self.nodes) for item in self.model.graph.output}
        live = {item.name for item in self.model.graph.input} - set(self.stored)
        run: list[onnx.NodeProto] = []
        for place, node in enumerate(self.nodes):
            run.append(node)
            live = {
                name for name in (*live, *node.output) if last.get(name, -1) > place
            }
            if live == {node.output[0]} and node.output[0] in floats:
                yield run
                run = []
        if run:
            yield run

    def _behind(self, names: Sequence[str]) -> tuple[list[str], list[onnx.NodeProto]]:
        """(initializers, nodes in order) that the constants among `names` need."""
        wanted, stack = set(), list(names)
        while stack:
            name = stack.pop()
            if name not in wanted and (name in self.stored or name in self.makers):
                wanted.add(name)
                stack += self.makers[name].input if name in self.makers else ()
        makers = {
            id(self.makers[name]): self.makers[name]
            for name in self.makers
            if name in wanted
        }
        return [name for name in self.stored if name in wanted], list(makers.values())

    def _weight(self, name: str) -> int:
        stored, makers = self._behind([name])
        return sum(_size(self.stored[item]) for item in stored) + sum(
            map(_held, makers)
        )


def trim_heap() -> None:
    """Hand memory that was freed back to the system: glibc keeps it between what lives on, a
    third of a large model after some pieces.
    """
    trim = (
        getattr(ctypes.CDLL(None), "malloc_trim", None)
        if sys.platform == "linux"
        else None
    )
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
    """`item` without its values where it has more than SMALL elements; type and shape stay."""
    if math.prod(item.dims) <= SMALL or item.data_type == onnx.TensorProto.STRING:
        return item
    return onnx.TensorProto(dims=item.dims, data_type=item.data_type, name=item.name)


def _size(item: onnx.TensorProto) -> int:
    """Bytes, or a little more where values are packed."""
    width = (
        8
        if item.data_type == onnx.TensorProto.STRING
        else onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize
    )
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
    return (
        _has_graph(node)
        or node.op_type.startswith("Random")
        or node.op_type in ("Bernoulli", "Multinomial")
    )


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
