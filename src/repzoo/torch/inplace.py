"""Make operations of an fx graph that change a tensor in place return a new one.

The fold moves calls. It is exact only where a node of the graph stands for one value, whoever reads
it and whenever.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from repzoo.errors import InputError
from repzoo.torch.layers import PASS_THROUGH

OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
# Operations whose result shares memory with their input.
# fmt: off
VIEWS = frozenset((
    "alias", "chunk", "contiguous", "detach", "dropout", "expand", "flatten", "float",
    "getitem", "movedim", "narrow", "permute", "reshape", "select", "slice", "split",
    "squeeze", "swapaxes", "t", "to", "transpose", "unbind", "unflatten", "unsqueeze",
    "view", "view_as",
))
# fmt: on
VIEW_LAYERS = (*PASS_THROUGH, nn.Flatten, nn.Unflatten)
# Their results share no memory with each other.
SPLITS = frozenset(("chunk", "split", "unbind", "tensor_split"))


def remove_inplace(traced: fx.GraphModule) -> None:
    """Replace every operation in place whose input is read elsewhere too.

    Later readers of the input get the result, which is what they saw before.

    Raises:
        InputError: it changes a part of a tensor that is read as a whole later, or has no form
            that returns a new tensor.
    """
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        changed = _changed_input(traced, node)
        if changed is None or _is_unread(traced, changed):
            continue
        _require_whole(traced, node, changed, order)
        _use_new_tensor(traced, node)
        for reader in list(changed.users):
            if order[reader] > order[node]:
                reader.replace_input_with(changed, node)
    traced.recompile()


def _changed_input(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The node whose tensor `node` changes in place."""
    is_inplace = node.kwargs.get("inplace") is True
    if node.op == "call_module":
        is_inplace = getattr(_layer(traced, node), "inplace", False) is True
    elif node.op == "call_method":
        is_inplace = _ends_in_place(str(node.target))
    elif node.op == "call_function":
        is_inplace |= node.target in OPERATORS or _ends_in_place(_name(node))
    if not is_inplace or not node.all_input_nodes:
        return None
    return node.all_input_nodes[0]


def _ends_in_place(name: str) -> bool:
    # torch's names of operations in place end in "_", Python's own methods in "__".
    return name.endswith("_") and not name.endswith("__")


def _is_unread(traced: fx.GraphModule, changed: fx.Node) -> bool:
    """Whether nothing but one operation reads `changed`, and no other node shares its memory."""
    if changed.op == "placeholder" or _is_view(traced, changed):
        return False
    return len(changed.users) == 1


def _is_view(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the result of `node` may share memory with its input."""
    if node.op == "call_module":
        return type(_layer(traced, node)) in VIEW_LAYERS
    is_call = node.op in ("call_method", "call_function")
    return is_call and _name(node) in VIEWS


def _name(node: fx.Node) -> str:
    """The name of the operation that `node` calls, without its namespace."""
    if isinstance(node.target, torch._ops.OpOverload):
        _, _, name = str(node.target._schema.name).partition("::")
        return name
    return getattr(node.target, "__name__", str(node.target))


def _require_whole(
    traced: fx.GraphModule, node: fx.Node, changed: fx.Node, order: dict[fx.Node, int]
) -> None:
    """Refuse to change a view in place while its tensor is read later."""
    view = changed
    while _is_view(traced, view) and view.all_input_nodes:
        base = view.all_input_nodes[0]
        others = [reader for reader in base.users if reader is not view]
        is_read_later = any(order[reader] > order[node] for reader in others)
        if is_read_later and _name(base) not in SPLITS:
            raise InputError(
                f"{node.name} changes a part or a view of {base.name} in place, which is read "
                "again later, so the order of the operations matters; write it without the "
                "change in place"
            )
        view = base


def _use_new_tensor(traced: fx.GraphModule, node: fx.Node) -> None:
    """Let `node` return a new tensor."""
    if node.op == "call_module":
        layer: Any = _layer(traced, node)
        layer.inplace = False
    elif node.kwargs.get("inplace") is True:
        node.update_kwarg("inplace", False)
    elif node.target in OPERATORS:
        node.target = OPERATORS[node.target]
    else:
        node.target = _out_of_place(node)


def _out_of_place(node: fx.Node) -> Any:
    """The operation of the same name without the "_" at its end."""
    target: Any = node.target
    name = _name(node).removesuffix("_")
    if isinstance(target, torch._ops.OpOverload):
        namespace = getattr(torch.ops, target.namespace)
        packet = getattr(namespace, name, None)
        substitute = getattr(packet, target._overloadname, None)
    elif node.op == "call_method":
        substitute = name if hasattr(torch.Tensor, name) else None
    else:
        substitute = getattr(torch, name, None) or getattr(nn.functional, name, None)
    if substitute is None:
        raise InputError(
            f"{node.name} changes a tensor in place that is read elsewhere too, and torch has no "
            "such operation that returns a new one; write it without the change in place"
        )
    return substitute


def _layer(traced: fx.GraphModule, node: fx.Node) -> nn.Module:
    return traced.get_submodule(str(node.target))
