"""Findings about the ONNX file itself: what a tool cannot take, and what it takes at a cost."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files

import numpy as np
import onnx
from onnx import numpy_helper

from repzoo.packs.lint.facts import ModelFacts, sides_text
from repzoo.packs.lint.finding import Finding, some_of

LINEAR = {"Conv", "BatchNormalization", "Gemm"}
SUMS = {"Add", "Sum"}


@dataclass(frozen=True)
class Limits:
    """What a tool takes.

    Attributes:
        tool: its name in messages.
        opsets: accepted versions of the operator set; empty: any.
        ir_version: newest accepted version of the file format; 0: any.
        outputs: most outputs; 0: any number.
        command: what makes a file that it takes.
        fixed_batch: whether an open batch is refused too.
    """

    tool: str
    opsets: tuple[int, ...] = ()
    ir_version: int = 0
    outputs: int = 0
    command: str = ""
    fixed_batch: bool = False


def check(
    model: ModelFacts, limits: Limits, *, states_shape: bool = False
) -> Iterator[Finding]:
    """All findings that need the model only; `states_shape`: the configuration closes its sides."""
    yield from _versions(model, limits)
    if not states_shape:
        yield from _shapes(model, limits)
    yield from _outputs(model, limits)
    yield from unmerged_branches(model)


def _finding(model: ModelFacts, code: str, message: str, fix: str = "") -> Finding:
    return Finding(code, message, fix=fix, file=model.shown)


def _versions(model: ModelFacts, limits: Limits) -> Iterator[Finding]:
    if limits.opsets and model.opset not in limits.opsets:
        accepted = " or ".join(map(str, limits.opsets))
        yield _finding(
            model,
            "opset",
            f"the model has opset {model.opset}; {limits.tool} takes {accepted}",
            limits.command,
        )
    ir_version = model.artifact.model.ir_version
    if limits.ir_version and ir_version > limits.ir_version:
        yield _finding(
            model,
            "ir-version",
            f"the file has ir_version {ir_version}; {limits.tool} reads up to "
            f"{limits.ir_version}",
            limits.command,
        )


def _shapes(model: ModelFacts, limits: Limits) -> Iterator[Finding]:
    for name, shape in model.inputs.items():
        if 0 in (shape if limits.fixed_batch else shape[1:]):
            yield _finding(
                model,
                "dynamic-shape",
                f"input {name} leaves sides open ({sides_text(shape)}); {limits.tool} compiles for "
                "fixed sides",
                "input_shape: '1x3x224x224' or the like, or export the model with fixed sides"
                if limits.fixed_batch
                else "export the model with fixed sides",
            )
        elif shape and shape[0] > 1:
            yield _finding(
                model,
                "batch",
                f"input {name} has a batch of {shape[0]}; expected 1, the tool makes batches by "
                "itself",
                "export the model with a batch of 1",
            )


def _outputs(model: ModelFacts, limits: Limits) -> Iterator[Finding]:
    outputs = len(model.graph.output)
    if limits.outputs and outputs > limits.outputs:
        yield _finding(
            model,
            "outputs",
            f"the model has {outputs} outputs; {limits.tool} takes at most {limits.outputs}",
        )
    labels = len(model.artifact.labels)
    if labels and model.classes and labels != model.classes:
        yield _finding(
            model,
            "labels",
            f"the model has {model.classes} outputs and {labels} labels",
        )


def unmerged_branches(model: ModelFacts) -> Iterator[Finding]:
    """BatchNormalization and parallel branches that the fold would merge.

    What looks like a branch is first found by its shape, since folding a large model takes
    seconds. The fold then says what is exact and worthwhile, so a residual connection is none.
    """
    if not _looks_unmerged(model):
        return
    result = model.folded
    if result is None:
        return
    merged = {name for item in result.folds for name in item.nodes}
    before, after = len(model.graph.node), len(result.model.graph.node)
    sums: list[str] = []
    normalizations: list[str] = []
    for node in model.graph.node:
        # As the fold names nodes that have no name.
        name = node.name or f"{node.op_type}({node.output[0]})"
        if name in merged and node.op_type in SUMS:
            sums.append(name)
        if name in merged and node.op_type == "BatchNormalization":
            normalizations.append(name)
    if after >= before or not sums + normalizations:
        return
    left = sum(node.op_type == "Conv" for node in result.model.graph.node)
    yield Finding(
        "unmerged-branches",
        f"{len(sums)} sums of parallel branches and {len(normalizations)} BatchNormalizations "
        f"are left, such as {some_of([*sums[:2], *normalizations])}; a fold merges them, and the "
        "tool quantizes each by itself",
        fix=f"repzoo fold {model.shown} -o folded.onnx",
        file=model.shown,
        cost=f"{before} nodes, {after} after the fold; {model.operators['Conv']} convolutions, "
        f"{left} after it",
    )


def _looks_unmerged(model: ModelFacts) -> bool:
    if model.operators["BatchNormalization"]:
        return True
    for node in model.graph.node:
        if node.op_type not in SUMS or len(node.input) < 2:
            continue
        sources = [_source(model, name) for name in node.input]
        if len(set(sources)) < len(sources):
            return True
    return False


def _source(model: ModelFacts, tensor: str) -> str:
    """The tensor that a chain of linear nodes ends at, seen from below."""
    for _ in range(len(LINEAR) + 1):
        node = model.makers.get(tensor)
        if node is None or node.op_type not in LINEAR:
            break
        tensor = node.input[0]
    return tensor


@functools.cache
def _cpu_operators() -> dict[str, list[str]]:
    text = (package_files("repzoo.packs.lint") / "operators.toml").read_text("utf-8")
    lists: dict[str, list[str]] = tomllib.loads(text)
    return lists


def cpu_operators(model: ModelFacts, on_bpu: set[str]) -> Iterator[Finding]:
    """Operators that the X5 computes on its CPU. `on_bpu` holds names that are put on the BPU."""
    for operator in _cpu_operators()["always"]:
        nodes = _inner_nodes(model, operator)
        if nodes:
            yield _cpu_finding(
                model, operator, nodes, "no fix on the X5; replace it in the model"
            )
    for operator in _cpu_operators()["by_default"]:
        nodes = [name for name in _inner_nodes(model, operator) if name not in on_bpu]
        if nodes:
            fix = f"run_on_bpu: '{nodes[0]}', if it takes four dimensions"
            yield _cpu_finding(model, operator, nodes, fix)


def _inner_nodes(model: ModelFacts, operator: str) -> list[str]:
    """Names of the operator's nodes; one that only makes an output cuts nothing."""
    outputs = {item.name for item in model.graph.output}
    names: list[str] = []
    for node in model.graph.node:
        if node.op_type == operator and not outputs & set(node.output):
            names.append(node.name or node.output[0])
    return names


def _cpu_finding(
    model: ModelFacts, operator: str, nodes: list[str], fix: str
) -> Finding:
    return Finding(
        "cpu-operator",
        f"{operator} runs on the CPU: {some_of(nodes)}",
        fix=fix,
        file=model.shown,
        cost=f"the network is cut {len(nodes)} times, with a copy to the CPU and back each",
    )


@dataclass(frozen=True)
class InGraph:
    """What a graph does to its input before the first layer.

    Attributes:
        nodes: operators and names, for messages; "" for nothing.
        subtracts: whether a mean is subtracted.
        factor: by which values are multiplied, the largest of the channels.
    """

    nodes: str = ""
    subtracts: bool = False
    factor: float = 1.0


def normalization_in_graph(model: ModelFacts) -> InGraph:
    """Sub, Add, Mul and Div with one constant for each channel, right behind the input."""
    names: list[str] = []
    subtracts, factor = False, 1.0
    tensor = next(iter(model.inputs), "")
    while tensor:
        readers = list(model.readers(tensor))
        if len(readers) != 1:
            break
        node = readers[0]
        value = _constant_of(model, node)
        if node.op_type not in {"Cast", "Transpose", "Identity"}:
            if value is None:
                break
            names.append(f"{node.op_type} {node.name or node.output[0]}")
        if value is not None and node.op_type in {"Mul", "Div"}:
            factor *= value if node.op_type == "Mul" else 1 / value
        subtracts = subtracts or (value is not None and node.op_type in {"Sub", "Add"})
        tensor = node.output[0]
    return InGraph(", ".join(names), subtracts, factor)


def _constant_of(model: ModelFacts, node: onnx.NodeProto) -> float | None:
    """The largest magnitude in the one constant for all or each of three channels."""
    if node.op_type not in {"Sub", "Add", "Mul", "Div"}:
        return None
    constants = [model.weights[name] for name in node.input if name in model.weights]
    if len(constants) != 1:
        return None
    values = np.abs(np.asarray(numpy_helper.to_array(constants[0]), np.float64))
    if values.size not in (1, 3) or not values.max() > 0:
        return None
    return float(values.max())
