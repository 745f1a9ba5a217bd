"""Rules for the nodes that hb_mapper's configuration names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from repzoo.packs.lint.document import Document
from repzoo.packs.lint.facts import ModelFacts, Workspace
from repzoo.packs.lint.finding import Finding
from repzoo.packs.lint.rdk_x5_values import CALIBRATION, MODEL, parts

NODE_KEYS = re.compile(r"ON|OutputType|InputType\d*")


def on_bpu(document: Document) -> set[str]:
    """Names of nodes that the configuration puts on the BPU."""
    names = set(parts(document.text(CALIBRATION, "run_on_bpu")))
    nodes = document.get(MODEL, "node_info")
    if isinstance(nodes, dict):
        for name, value in nodes.items():
            if isinstance(value, dict) and value.get("ON") == "BPU":
                names.add(name)
    return names


def node_rules(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """node_info, and every other key that names nodes."""
    nodes = document.get(MODEL, "node_info")
    if isinstance(nodes, dict):
        for name, value in nodes.items():
            yield from _node(document, name, value)
            yield from _known_node(document, workspace, name, MODEL, "node_info", name)
    elif isinstance(nodes, str):
        yield from _int16_text(document, nodes)
    for group, key in (
        (CALIBRATION, "run_on_cpu"),
        (CALIBRATION, "run_on_bpu"),
        (MODEL, "remove_node_name"),
        (MODEL, "output_nodes"),
    ):
        for name in parts(document.text(group, key)):
            yield from _known_node(document, workspace, name, group, key)


def _node(document: Document, name: str, value: Any) -> Iterator[Finding]:
    keys = (MODEL, "node_info", name)
    if not isinstance(value, dict):
        yield document.finding(
            "node-info",
            f"node_info of {name} is {value!r}; expected keys such as 'OutputType'",
            *keys,
            fix="{'ON': 'BPU', 'InputType': 'int16', 'OutputType': 'int16'}",
        )
        return
    for key, item in value.items():
        accepted = ("BPU", "CPU") if key == "ON" else ("int8", "int16")
        if not NODE_KEYS.fullmatch(str(key)):
            message = (
                f"{key} of {name} is not a key; expected ON, InputType0 or OutputType"
            )
        elif item not in accepted:
            message = f"{key} of {name} is {item!r}; expected {' or '.join(accepted)}"
        else:
            continue
        yield document.finding("node-info", message, *keys, str(key))


def _int16_text(document: Document, text: str) -> Iterator[Finding]:
    for part in parts(text):
        name, _, kind = part.rpartition(":")
        if not name or kind.strip() not in ("int8", "int16"):
            yield document.finding(
                "node-info",
                f"node_info has {part!r}; expected NODE:int16, with ; between nodes",
                MODEL,
                "node_info",
            )


def _known_node(
    document: Document, workspace: Workspace, name: str, *keys: str
) -> Iterator[Finding]:
    model = workspace.model
    if model is None or name in model.node_names:
        return
    # The tool splits and renames some nodes, such as Gemm to a convolution and its reshapes.
    if any(node and name.startswith(f"{node}_") for node in model.node_names):
        return
    near = _nearest(name, model)
    yield document.finding(
        "unknown-node",
        f"{keys[1]} names the node {name}, which the model does not have"
        + (f"; did you mean {near}?" if near else ""),
        *keys,
        fix=near,
    )


def _nearest(name: str, model: ModelFacts) -> str:
    near = difflib.get_close_matches(name, sorted(model.node_names), n=1, cutoff=0.7)
    return near[0] if near else ""


def removed_nodes(document: Document, _: Workspace) -> Iterator[Finding]:
    """remove_node_type, which works from the ends inwards."""
    kinds = parts(document.text(MODEL, "remove_node_type"))
    keys = (MODEL, "remove_node_type")
    if len(set(kinds)) < len(kinds):
        yield document.finding(
            "remove-order", "remove_node_type names a type twice", *keys
        )
    inner = [
        kind for kind in ("Transpose", "Cast", "Reshape", "Softmax") if kind in kinds
    ]
    if "Dequantize" in kinds and inner:
        first = min(kinds.index(kind) for kind in inner)
        if kinds.index("Dequantize") > first:
            yield document.finding(
                "remove-order",
                f"types are removed in the order given, at the ends only: {kinds[first]} comes "
                "before Dequantize, and stays where a Dequantize lies outside of it",
                *keys,
                fix=f"remove_node_type: '{';'.join(_ordered(kinds))}'",
            )


def _ordered(kinds: list[str]) -> list[str]:
    order = ["Quantize", "Dequantize", "Transpose", "Cast", "Reshape", "Softmax"]
    ranked = {kind: place for place, kind in enumerate(order)}
    return sorted(dict.fromkeys(kinds), key=lambda kind: ranked.get(kind, len(order)))
