"""Fold: every linear piece between two nonlinearities that can become one cheaper node, does.

The expression that ends in a tensor is read as a tree of affine maps (rules.py) and sums; where the whole tree is one map of
one source tensor (algebra.py), and that map costs no more, one Conv or Gemm takes its place. Larger expressions are tried
first; the passes repeat until nothing changes, so a folded graph folds to itself.
"""

from __future__ import annotations

import functools
import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from repzoo.errors import InputError
from repzoo.graph.fold import algebra
from repzoo.graph.fold.algebra import AffineMap, Geometry, Inexact
from repzoo.graph.fold.border_constants import mark_borders
from repzoo.graph.fold.cse import eliminate_common_subexpressions
from repzoo.graph.fold.eliminate import eliminate_identities
from repzoo.graph.fold.rules import (
    AffineNode,
    as_affine,
    channels_of,
    concatenated_inputs,
    node_name,
    rank_of,
)
from repzoo.graph.fold.timing import Stopwatch, Timer
from repzoo.graph.tools.constant_folding import fold_constants
from repzoo.graph.tools.fold_result import Fold, FoldResult, Refusal
from repzoo.graph.tools.pieces import inline_functions, to_ir, to_proto

QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
)
UNSHIFTED = frozenset({"MatMul", "Mul", "Div"})  # what adds nothing
OWN_PAGES = 2**16  # bytes from which an array is worth them
OLDEST_OPSET = (
    7  # before it BatchNormalization trains unless told otherwise, and broadcasting is an attribute
)


@dataclass(frozen=True)
class _Form:
    """The tensor at hand as one map of `source`: which nodes that takes, and what they cost for each source pixel."""

    source: ir.Value
    geometry: Geometry
    nodes: tuple[ir.Node, ...]
    macs: float
    parameters: int
    build: Callable[[], AffineMap]
    flat: bool

    @property
    def cost(self) -> float:
        return _macs(self.geometry)


def fold(model: onnx.ModelProto, timer: Timer | None = None) -> FoldResult:
    """Fold `model` (left as it was) to a fixed point.

    timer  times what is not obviously faster; without it the fold is the same on every machine

    Raises:
        InputError: the graph is quantized already, older than opset 7, or at odds with itself.
    """
    graph_model = _prepared(inline_functions(model))
    folds, refusals = fold_graph(graph_model.graph, timer, eliminate_common_subexpressions)
    passes.RemoveUnusedNodesPass()(graph_model)
    graph_model.graph.sort()
    _order_constants(graph_model.graph)
    folded = to_proto(graph_model)
    folded.metadata_props.clear()
    folded.metadata_props.extend(model.metadata_props)
    return FoldResult(folded, folds, refusals)


def fold_graph(
    graph: ir.Graph, timer: Timer | None = None, tidy: Callable[[ir.Graph], bool] = lambda _: False
) -> tuple[tuple[Fold, ...], tuple[Refusal, ...]]:
    """Fold `graph` in place to a fixed point; tensors need their shapes. Replaced initializers stay, unread.

    tidy  what else makes nodes fewer, and says whether it did; it follows the fold, for what two read no fold takes in
    """
    state = _State(graph, None if timer is None else Stopwatch(timer))
    with np.errstate(
        all="ignore"
    ):  # weights that are not finite are for the certificate to refuse, in words
        while state.sweep() or tidy(graph):
            pass
    return tuple(state.folds), tuple(state.refusals.values())


def _prepared(model: onnx.ModelProto) -> ir.Model:
    kinds = {node.op_type for node in model.graph.node}
    if found := sorted(kind for kind in kinds if kind in QUANTIZED or kind.startswith("QLinear")):
        raise InputError(
            f"the graph is quantized already (it holds {found[0]}); fold the float model, then quantize"
        )
    opset = next(
        (item.version for item in model.opset_import if item.domain in ("", "ai.onnx")),
        OLDEST_OPSET,
    )
    if opset < OLDEST_OPSET:
        raise InputError(
            f"the graph is of opset {opset}; convert it to {OLDEST_OPSET} or later (onnx.version_converter)"
        )
    try:
        graph_model = to_ir(model)
    except ir.serde.SerdeError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"the graph holds something that ONNX does not define ({reason}); export it again"
        ) from None
    fold_constants(graph_model)
    eliminate_identities(graph_model.graph)
    if not any(
        _holds_graph(node) for node in graph_model.graph
    ):  # the pass would change the subgraphs too
        passes.IdentityEliminationPass()(graph_model)
    passes.RemoveUnusedNodesPass()(graph_model)  # what nobody reads counts as a reader
    mark_borders(graph_model.graph, model)  # last, for it notes nodes
    return graph_model


def _holds_graph(node: ir.Node) -> bool:
    return any(
        item.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for item in node.attributes.values()
    )


def _order_constants(graph: ir.Graph) -> None:
    """Initializers in the order of their first readers: shape inference moves the large ones to the end."""
    read = (value for node in graph for value in node.inputs if value is not None)
    for value in list(dict.fromkeys(value for value in read if value.is_initializer())):
        del graph.initializers[str(value.name)]
        graph.register_initializer(value)


@dataclass
class _State:
    """One fold in progress."""

    graph: ir.Graph
    stopwatch: Stopwatch | None = None
    folds: list[Fold] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)

    def sweep(self) -> bool:
        """One pass from the outputs to the input; True when something was folded."""
        self.refusals = {}
        before = len(self.folds)
        for node in reversed(list(self.graph)):
            if node.graph is self.graph:
                self._try(node)
        return len(self.folds) > before

    def _try(self, root: ir.Node) -> None:
        candidates = [
            form
            for form in self._forms(root.outputs[0])
            if _worth_writing(form, root)
            and not _belongs_below(form)
            and not _belongs_above(form, root)
            and _is_closed(form, root)
        ]
        for form in sorted(candidates, key=lambda form: (form.cost - form.macs, -len(form.nodes))):
            if form.flat and form.geometry.groups > 1:
                self._refuse(
                    root,
                    "a scale and shift of [N, C] has no cheaper operator than the one that it is",
                )
                continue
            if form.cost > form.macs or form.geometry.macs > form.parameters:
                if len(form.nodes) > 1:
                    self._refuse(root, _too_dear(form))
                continue
            try:
                made = _writable(form.build())
                if slower := self._slower(form, made, root.outputs[0]):
                    self._refuse(root, slower)
                    continue
                self._write(root, form, made)
                return
            except Inexact as reason:
                self._refuse(root, str(reason))

    def _slower(self, form: _Form, made: AffineMap, output: ir.Value) -> str:
        """The sentence that refuses a fold that is proven slower."""
        if self.stopwatch is None or form.flat:
            return ""
        nodes = [node for node in self.graph if node in form.nodes]
        stand_in = replace(
            form, source=ir.Value(name=form.source.name)
        )  # the source must not count one more reader
        new = _node_for(stand_in, made, output, ("folded", "folded.weight", "folded.bias"))
        new.outputs[0].name = output.name
        return self.stopwatch.refusal(form.source, nodes, new, made.geometry)

    def _refuse(self, node: ir.Node, reason: str) -> None:
        self.refusals.setdefault(node_name(node), Refusal(node_name(node), reason))

    def _forms(self, value: ir.Value) -> list[_Form]:
        node = value.producer()
        if node is None or node.graph is not self.graph:
            return []
        seen = as_affine(node, value.index() or 0)
        if isinstance(seen, Refusal):
            self.refusals.setdefault(seen.node, seen)
            return []
        if isinstance(seen, AffineNode):
            return list(self._chain(seen))
        if parts := concatenated_inputs(node):
            return list(self._join(node, parts))
        return (
            list(self._sum(node))
            if node.op_type in ("Add", "Sub") and len(node.inputs) == 2
            else []
        )

    def _chain(self, link: AffineNode) -> Iterator[_Form]:
        shape = link.geometry
        macs, parameters = (0.0, 0) if link.moves else (_macs(shape), shape.macs)
        yield _Form(link.source, shape, link.nodes, macs, parameters, link.build, link.flat)
        if len(link.node.outputs) == 1 and _absorbable(link.source, link.nodes):
            for inner in (inner for inner in self._forms(link.source) if inner.flat == link.flat):
                try:
                    yield _composed(link, inner)
                except Inexact as reason:
                    self._refuse(link.node, str(reason))

    def _sum(self, node: ir.Node) -> Iterator[_Form]:
        if node.inputs[0] is node.inputs[1]:
            return  # both terms are the same nodes, which a form would count and remove twice
        left, right = (self._operand(value, node) for value in node.inputs)
        for one in left:
            for two in right:
                if one.source is two.source and (one.nodes or two.nodes) and _alike(one, two):
                    try:
                        yield _added(node, one, two)
                    except Inexact as reason:
                        self._refuse(node, str(reason))

    def _join(self, node: ir.Node, parts: list[ir.Value]) -> Iterator[_Form]:
        """For each tensor that all parts can be read from, the largest expression of each part."""
        if len(set(parts)) < len(parts):
            return
        flat = rank_of(node.outputs[0]) == 2
        reach = [
            {
                form.source: form
                for form in self._operand(part, node)
                if not form.nodes or form.flat == flat
            }
            for part in parts
        ]
        for source in (source for source in reach[0] if all(source in forms for forms in reach)):
            forms = [
                _whole(forms[source], part, flat) for forms, part in zip(reach, parts, strict=True)
            ]
            try:
                yield _joined(node, forms)
            except Inexact as reason:
                self._refuse(node, str(reason))

    def _operand(self, value: ir.Value | None, reader: ir.Node) -> list[_Form]:
        if value is None:
            return []
        nothing = _Form(value, Geometry(0, 0), (), 0.0, 0, lambda: algebra.identity(0), flat=False)
        return [nothing, *(self._forms(value) if _absorbable(value, (reader,)) else [])]

    def _write(self, root: ir.Node, form: _Form, made: AffineMap) -> None:
        new = _node_for(form, made, root.outputs[0], self._names(form))
        old = root.outputs[0]
        new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = (
            old.name,
            old.shape,
            old.type,
        )
        written = _with_product(new)
        for value in (value for node in written for value in node.inputs[1:]):
            if value is not None:
                self.graph.initializers.pop(str(value.name), None)
                self.graph.register_initializer(value)
        ir.convenience.replace_nodes_and_values(
            self.graph, root, list(form.nodes[::-1]), written, [old], [new.outputs[0]]
        )
        kind = "+".join(dict.fromkeys(node.op_type for node in form.nodes))
        self.folds.append(
            Fold(str(old.name), tuple(map(node_name, form.nodes)), kind, form.macs, form.cost)
        )

    def _names(self, form: _Form) -> tuple[str, str, str]:
        """(node, weight, bias) names, none taken, after the costliest convolution or linear layer that is replaced."""
        heaviest = max(form.nodes, key=_weights)
        old = heaviest.inputs[1] if _weights(heaviest) else None
        weight = str(old.name) if old is not None else self._free(f"{node_name(heaviest)}.weight")
        return (
            node_name(heaviest),
            weight,
            self._free(weight.removesuffix(".weight") + ".folded_bias"),
        )

    def _free(self, name: str) -> str:
        """`name`, or with a number behind it where it is taken."""
        taken = {
            *self.graph.initializers,
            *(str(out.name) for node in self.graph for out in node.outputs),
        }
        taken |= {str(value.name) for value in self.graph.inputs}
        return (
            name
            if name not in taken
            else next(f"{name}.{i}" for i in range(2, len(taken) + 3) if f"{name}.{i}" not in taken)
        )


def _writable(made: AffineMap) -> AffineMap:
    if made.fill is not None:
        raise Inexact(
            "its border holds constants that are not zero, which no convolution pads with"
        )
    return made


def _weights(node: ir.Node) -> int:
    shape = (
        node.inputs[1].shape
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.inputs[1] is not None
        else None
    )
    return math.prod(shape.numpy()) if shape is not None else 0


def _macs(shape: Geometry) -> float:
    return shape.macs / (shape.strides[0] * shape.strides[1])


def _absorbable(value: ir.Value, readers: tuple[ir.Node, ...]) -> bool:
    return not value.is_graph_output() and all(use.node in readers for use in value.uses())


def _is_closed(form: _Form, root: ir.Node) -> bool:
    """Nothing outside the expression reads what it computes on the way; a Split has several outputs."""
    inside = [value for node in form.nodes if node is not root for value in node.outputs]
    return all(_absorbable(value, form.nodes) for value in inside)


def _worth_writing(form: _Form, root: ir.Node) -> bool:
    """More nodes than are written, or a BatchNormalization alone (a scale and shift that a depthwise 1x1 convolution does)."""
    shifts = any(node.op_type not in UNSHIFTED for node in form.nodes)
    writes = 2 if form.flat and rank_of(root.outputs[0]) != 2 and shifts else 1
    return len(form.nodes) > writes or form.nodes[0].op_type == "BatchNormalization"


def _alike(one: _Form, two: _Form) -> bool:
    """Whether both read channels along the same axis, as a tensor itself does along any."""
    return one.flat == two.flat or not one.nodes or not two.nodes


def _belongs_below(form: _Form) -> bool:
    """Whether the expression begins with a scale that the layer before can take.

    There it scales output channels, which quantizing per channel absorbs; in the layer after, input channels, which it cannot.
    """
    first, below = as_affine(form.nodes[-1]), form.source.producer()
    scale = (
        isinstance(first, AffineNode)
        and first.source is form.source
        and first.geometry.is_pointwise
        and first.geometry.is_diagonal
    )
    if (
        not scale
        or form.nodes[-1].op_type == "Conv"
        or below is None
        or below.op_type not in ("Conv", "Gemm", "MatMul")
    ):
        return False
    return isinstance(as_affine(below), AffineNode) and _absorbable(form.source, (form.nodes[-1],))


def _belongs_above(form: _Form, root: ir.Node) -> bool:
    """Whether the expression is a shift and then a scale that only a padded convolution reads: that can take the scale, but not
    the shift, and once they are one node it could take neither."""
    shift, above = (
        form.nodes[-1].op_type in ("Add", "Sub"),
        [as_affine(use.node) for use in root.outputs[0].uses()],
    )
    pads = len(above) == 1 and isinstance(above[0], AffineNode) and any(above[0].geometry.pads)
    return (
        pads
        and shift
        and len(form.nodes) > 1
        and form.geometry.is_pointwise
        and not _has_bias(root)
    )


def _has_bias(node: ir.Node) -> bool:
    return node.op_type == "BatchNormalization" or (
        node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2
    )


def _too_dear(form: _Form) -> str:
    return (
        f"one {form.geometry.kernel[0]}x{form.geometry.kernel[1]} convolution in place of {len(form.nodes)} nodes would take "
        f"{form.cost:,.0f} MACs for each input pixel and {form.geometry.macs:,} weights; they take {form.macs:,.0f} and {form.parameters:,}"
    )


def _composed(link: AffineNode, inner: _Form) -> _Form:
    shape = algebra.compose_geometry(link.geometry, inner.geometry)
    area = inner.geometry.strides[0] * inner.geometry.strides[1]
    return _Form(
        inner.source,
        shape,
        (*link.nodes, *inner.nodes),
        inner.macs + (0 if link.moves else _macs(link.geometry) / area),
        inner.parameters + (0 if link.moves else link.geometry.macs),
        lambda: algebra.compose(link.build(), inner.build()),
        link.flat or inner.flat,
    )


def _added(node: ir.Node, one: _Form, two: _Form) -> _Form:
    channels = (one if one.nodes else two).geometry.outputs
    one, two = (_identity_form(form, channels) if not form.nodes else form for form in (one, two))
    shape = algebra.add_geometry(one.geometry, two.geometry)
    sign = -1.0 if node.op_type == "Sub" else 1.0
    return _Form(
        one.source,
        shape,
        tuple(dict.fromkeys((node, *one.nodes, *two.nodes))),  # two outputs of one Split
        one.macs + two.macs + channels / (shape.strides[0] * shape.strides[1]),
        one.parameters + two.parameters,
        lambda: algebra.add(one.build(), algebra.scaled(two.build(), sign)),
        one.flat or two.flat,
    )


def _whole(form: _Form, part: ir.Value, flat: bool) -> _Form:
    """`form`, or the identity where `part` is the source itself."""
    return replace(form if form.nodes else _identity_form(form, channels_of(part)), flat=flat)


def _joined(node: ir.Node, forms: list[_Form]) -> _Form:
    return _Form(
        forms[0].source,
        functools.reduce(algebra.join_geometry, (form.geometry for form in forms)),
        tuple(dict.fromkeys((node, *(inner for form in forms for inner in form.nodes)))),
        sum(form.macs for form in forms),
        sum(form.parameters for form in forms),
        lambda: functools.reduce(algebra.join, (form.build() for form in forms)),
        forms[0].flat,
    )


def _identity_form(form: _Form, channels: int) -> _Form:
    shape = Geometry(channels, channels, groups=channels)
    return _Form(form.source, shape, (), 0.0, 0, lambda: algebra.identity(channels), form.flat)


def _node_for(form: _Form, made: AffineMap, like: ir.Value, names: tuple[str, str, str]) -> ir.Node:
    dtype = like.dtype.numpy() if like.dtype is not None else np.dtype(np.float32)
    kernel = made.kernel[:, :, 0, 0] if form.flat else made.kernel
    inputs = [form.source, _initializer(names[1], kernel.astype(dtype))]
    if np.any(made.bias != 0) or any(map(_has_bias, form.nodes)):
        inputs.append(_initializer(names[2], made.bias.astype(dtype)))
    shape = made.geometry
    if form.flat:
        return _linear(inputs, like, names)
    window: dict[str, int | tuple[int, ...]] = {
        "kernel_shape": shape.kernel,
        "strides": shape.strides,
        "pads": shape.pads,
        "dilations": shape.dilations,
        "group": shape.groups,
    }
    return ir.node("Conv", inputs, attributes=window, name=names[0])


def _linear(inputs: list[ir.Value], like: ir.Value, names: tuple[str, str, str]) -> ir.Node:
    """The linear layer of [source, weight [O, I], bias]: a Gemm, or an Add on a MatMul where rows have more than one axis."""
    if rank_of(like) == 2:
        return ir.node("Gemm", inputs, attributes={"transB": 1}, name=names[0])
    source, weight, *bias = inputs
    turned = _initializer(names[1], weight.const_value.numpy().T)  # type: ignore[union-attr]
    product = ir.node("MatMul", [source, turned], name=names[0])
    if not bias:
        return product
    product.outputs[0].name, product.outputs[0].shape, product.outputs[0].type = (
        f"{names[2]}.product",
        like.shape,
        like.type,
    )
    return ir.node("Add", [product.outputs[0], *bias], name=f"{names[0]}.shift")


def _with_product(new: ir.Node) -> list[ir.Node]:
    """The nodes to write for `new`, in order: it may be the Add of a bias to a MatMul."""
    below = new.inputs[0].producer() if new.op_type == "Add" and new.inputs[0] is not None else None
    return [new] if below is None else [below, new]


def _initializer(name: str, values: npt.NDArray[Any]) -> ir.Value:
    tensor = ir.Tensor(_in_own_pages(values), name=name)
    return ir.Value(
        name=name,
        shape=ir.Shape(values.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )


def _in_own_pages(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A contiguous copy whose memory goes back to the system when it is freed; a heap keeps it between what lives longer."""
    if values.nbytes < OWN_PAGES:
        return np.ascontiguousarray(values)
    made = np.frombuffer(mmap.mmap(-1, values.nbytes), values.dtype).reshape(values.shape)
    made[...] = values
    return made
