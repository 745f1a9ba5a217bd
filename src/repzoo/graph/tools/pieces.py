"""A model in pieces that are small enough to run one after another.

The memory of a whole-graph check is then that of the largest piece, and no message comes near
protobuf's limit of 2 GB.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from repzoo.graph.tools.onnx_edit import redirect_readers, subgraphs
from repzoo.graph.tools.skeleton import empty_like, tensor_bytes, without_weights
from repzoo.onnx_file import model_inputs
from repzoo.protobuf_stream import without

# Bytes of constants. A piece is larger only where a single run that cannot be cut is larger.
PIECE_BYTES = 2**25
RANDOM = ("Bernoulli", "Multinomial")  # besides those named Random...

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
    if parts.constant_bytes() <= limit:
        return Pieces(parts, [], change)
    stretches = list(parts.stretches(limit))
    return Pieces(parts, stretches if len(stretches) > 1 else [], change)


@dataclass(frozen=True)
class Pieces:
    """The pieces of a model, each made when the iteration comes to it.

    _stretches  the nodes of each piece; empty if the model is not cut
    """

    _parts: _Parts
    _stretches: Sequence[Sequence[onnx.NodeProto]]
    _change: Change

    def __len__(self) -> int:
        return max(1, len(self._stretches))

    def __iter__(self) -> Iterator[onnx.ModelProto]:
        parts = self._parts
        if not self._stretches:
            yield parts.whole_model(self._change)
            return
        source = model_inputs(parts.model)[0].name
        for stretch in self._stretches:
            yield parts.piece(source, stretch, self._change)
            source = stretch[-1].output[0]


@dataclass(frozen=True)
class _Parts:
    """A model taken apart.

    initializers    by name
    constant_nodes  the nodes that compute from constants alone, by the names of their outputs
    nodes           the other nodes that an output needs
    """

    model: onnx.ModelProto
    initializers: Mapping[str, onnx.TensorProto]
    constant_nodes: Mapping[str, onnx.NodeProto]
    nodes: tuple[onnx.NodeProto, ...]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Parts:
        """The parts of `model`."""
        initializers = {item.name: item for item in model.graph.initializer}
        constant_nodes: dict[str, onnx.NodeProto] = {}
        nodes = []
        # An input that is left out has an empty name.
        constants = {"", *initializers}
        for node in model.graph.node:
            if constants.issuperset(node.input) and not _is_random(node):
                constants.update(node.output)
                constant_nodes.update(dict.fromkeys(node.output, node))
            else:
                nodes.append(node)
        needed = _needed_nodes(nodes, model.graph.output)
        return cls(model, initializers, constant_nodes, tuple(needed))

    def constant_bytes(self) -> int:
        """Bytes of all constants."""
        stored = sum(map(tensor_bytes, self.initializers.values()))
        return stored + sum(map(_attribute_bytes, self.constant_nodes.values()))

    def whole_model(self, change: Change) -> onnx.ModelProto:
        """The model in one piece."""
        copy = without(self.model, "graph")
        copy.graph.CopyFrom(without(self.model.graph, "initializer"))
        for item in self.model.graph.initializer:
            copy.graph.initializer.append(change(item))
        return copy

    def stretches(self, limit: int) -> Iterator[list[onnx.NodeProto]]:
        """The computing nodes in stretches of at most `limit` bytes, where cuts allow."""
        stretch: list[onnx.NodeProto] = []
        total = 0
        for run in self._uncuttable_runs():
            size = self._run_bytes(run)
            if stretch and total + size > limit:
                yield stretch
                stretch = []
                total = 0
            stretch += run
            total += size
        yield stretch

    def piece(
        self, source: str, nodes: Sequence[onnx.NodeProto], change: Change
    ) -> onnx.ModelProto:
        """A model of `nodes` whose input, under the name of the model's, is the tensor `source`."""
        image = model_inputs(self.model)[0]
        output = self.model.graph.output[0]
        target = nodes[-1].output[0]
        piece = empty_like(self.model)
        names, constant_nodes = self._constants_behind(_input_names(nodes))
        for name in names:
            piece.graph.initializer.append(change(self.initializers[name]))
        piece.graph.node.extend([*constant_nodes, *nodes])
        redirect_readers(piece.graph.node, source, image.name)
        is_first = source == image.name
        piece.graph.input.append(image if is_first else _float_of_any_shape(image.name))
        is_last = target == output.name
        piece.graph.output.append(output if is_last else _float_of_any_shape(target))
        return piece

    def _uncuttable_runs(self) -> Iterator[list[onnx.NodeProto]]:
        """Runs of nodes between two places where a cut is possible."""
        floats = self._cuttable_tensors()
        last_reader = self._last_readers()
        inputs = {item.name for item in self.model.graph.input}
        live = inputs - self.initializers.keys()
        run: list[onnx.NodeProto] = []
        for position, node in enumerate(self.nodes):
            run.append(node)
            live.update(node.output)
            live = {name for name in live if last_reader.get(name, -1) > position}
            output = node.output[0]
            if live == {output} and output in floats:
                yield run
                run = []
        if run:
            yield run

    def _cuttable_tensors(self) -> Collection[str]:
        """The tensors that one piece can hand to the next: float32, as the input of a model."""
        # A subgraph may read any tensor by name, so nothing is cut.
        if any(map(_has_subgraph, self.nodes)):
            return set()
        return _float32_tensors(self.model)

    def _last_readers(self) -> dict[str, int]:
        """The position of the last node that reads a tensor; outputs are read behind all nodes."""
        last: dict[str, int] = {}
        for position, node in enumerate(self.nodes):
            last.update(dict.fromkeys(node.input, position))
        for item in self.model.graph.output:
            last[item.name] = len(self.nodes)
        return last

    def _constants_behind(
        self, names: Iterable[str]
    ) -> tuple[list[str], list[onnx.NodeProto]]:
        """(initializers, nodes in order) that the constants among `names` need."""
        needed = self._constant_names_behind(names)
        # By identity, because a node may have several outputs.
        nodes: dict[int, onnx.NodeProto] = {}
        for name, node in self.constant_nodes.items():
            if name in needed:
                nodes[id(node)] = node
        initializers = [name for name in self.initializers if name in needed]
        return initializers, list(nodes.values())

    def _constant_names_behind(self, names: Iterable[str]) -> set[str]:
        """The constants among `names`, and those that they are computed from."""
        needed: set[str] = set()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name in needed:
                continue
            node = self.constant_nodes.get(name)
            if node is not None:
                needed.add(name)
                stack += node.input
            elif name in self.initializers:
                needed.add(name)
        return needed

    def _run_bytes(self, nodes: Sequence[onnx.NodeProto]) -> int:
        """Bytes of the constants that `nodes` read; one that is read twice counts twice."""
        total = 0
        for name in _input_names(nodes):
            initializers, constant_nodes = self._constants_behind([name])
            for item in initializers:
                total += tensor_bytes(self.initializers[item])
            total += sum(map(_attribute_bytes, constant_nodes))
        return total


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


def _needed_nodes(
    nodes: Sequence[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto]
) -> list[onnx.NodeProto]:
    """The nodes that some output needs."""
    needed = {item.name for item in outputs}
    kept = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _input_names(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """The tensors that `nodes` read, each as often as it is read."""
    names: list[str] = []
    for node in nodes:
        names += node.input
    return names


def _attribute_bytes(node: onnx.NodeProto) -> int:
    """Bytes of the tensors in the attributes of a node."""
    total = 0
    for item in node.attribute:
        if item.type == onnx.AttributeProto.TENSOR:
            total += tensor_bytes(item.t)
    return total


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(True for _ in subgraphs(node))


def _is_random(node: onnx.NodeProto) -> bool:
    """Whether the result may differ each time, as far as is known."""
    is_random = node.op_type.startswith("Random") or node.op_type in RANDOM
    return is_random or _has_subgraph(node)


def _float32_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that are known to be float32."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    names = set()
    for item in (*inferred.value_info, *inferred.output):
        if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            names.add(item.name)
    return names


def _float_of_any_shape(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
