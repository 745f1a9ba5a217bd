"""The functions of a model in the place of their calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx.inliner

from repzoo.errors import InputError
from repzoo.graph.tools.onnx_edit import subgraphs
from repzoo.graph.tools.skeleton import without_weights
from repzoo.printable import one_line

# Nodes of a graph whose functions are inlined.
MOST_INLINED = 10**5

FunctionKey = tuple[str, str]  # domain and name


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
        raise InputError(
            "a function of the model cannot be put in the place of its call "
            f"({one_line(error)}); export without functions"
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
    count = _inlined_size(model.graph.node, _function_sizes(model))
    if count > MOST_INLINED:
        raise InputError(
            f"with its functions in the place of their calls the graph has {count:.3g} nodes, more "
            f"than {MOST_INLINED:,}; export without functions"
        )


def _function_sizes(model: onnx.ModelProto) -> dict[FunctionKey, int]:
    """The nodes of each function, with those that it calls inlined.

    Raises:
        InputError: a function calls itself.
    """
    bodies = {(item.domain, item.name): item.node for item in model.functions}
    sizes: dict[FunctionKey, int] = {}
    # Each function after those that it calls: a function of which all are known is known next.
    while len(sizes) < len(bodies):
        known = len(sizes)
        for key, nodes in bodies.items():
            operators = {(node.domain, node.op_type) for node in _with_subgraphs(nodes)}
            calls = operators & bodies.keys()
            if key not in sizes and all(call in sizes for call in calls):
                sizes[key] = _inlined_size(nodes, sizes)
        if len(sizes) == known:
            raise InputError(
                "functions of the model call themselves; export without functions"
            )
    return sizes


def _inlined_size(
    nodes: Iterable[onnx.NodeProto], sizes: Mapping[FunctionKey, int]
) -> int:
    """The number of nodes once calls of functions of known `sizes` are inlined."""
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
        for graph in subgraphs(node):
            stack += graph.node
