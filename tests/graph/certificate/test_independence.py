"""The certificate catches mistakes in the helpers with which the fold reads a graph.

Each test breaks one helper of the fold, folds a graph in which it matters, and expects the proof to
fail. When both sides used the same helpers, the proof passed the cases that say so: it made the
same mistake.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from repzoo.errors import CertificateError
from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold import border_constants, eliminate, prepare
from repzoo.graph.fold import engine as folding
from repzoo.graph.fold.rules import per_channel
from repzoo.graph.tools import constant_folding, symbolic_sizes

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]

NORMS = dict.fromkeys(("gamma", "beta", "mean", "var"), (4,))


def prove_fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold `model`, prove the fold, and return the folded graph."""
    result = folding.fold(model)
    prove(model, result.model, result.outputs)
    return result.model


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def patch_everywhere(monkeypatch: pytest.MonkeyPatch, name: str, mutant: Any) -> None:
    """Replace a helper in every module that has imported it by name."""
    modules = (
        border_constants,
        constant_folding,
        eliminate,
        folding,
        per_channel,
        prepare,
        symbolic_sizes,
    )
    patched = [module for module in modules if hasattr(module, name)]
    assert patched
    for module in patched:
        monkeypatch.setattr(module, name, mutant)


def test_a_reshape_that_changes_the_shape_must_not_disappear(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed when both sides asked shape_preserving_input."""
    body = (
        "c = Conv(data, w)\nr = Reshape(c, shape)\n"
        "d = Conv<pads = [1, 1, 1, 1]>(r, v)\noutput = Relu(d)"
    )
    weights = {"w": (4, 4, 1, 1), "v": (4, 4, 3, 3), "shape": np.array([-1, 4, 9, 4])}
    model = graph(body, weights, data="N, 4, 6, 6")
    assert operators(prove_fold(model)) == ["Conv", "Reshape", "Conv", "Relu"]

    def any_reshape(node: ir.Node) -> ir.Value | None:
        return node.inputs[0] if node.op_type == "Reshape" else None

    patch_everywhere(monkeypatch, "shape_preserving_input", any_reshape)
    assert "Reshape" not in operators(folding.fold(model).model)
    with pytest.raises(CertificateError):
        prove_fold(model)


def test_a_transpose_that_moves_channels_must_not_disappear(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed when both sides asked shape_preserving_input."""
    body = (
        "c = Conv(data, w)\nt = Transpose<perm = [0, 1, 3, 2]>(c)\n"
        "d = Conv<pads = [1, 1, 1, 1]>(t, v)\noutput = Relu(d)"
    )
    model = graph(body, {"w": (4, 4, 1, 1), "v": (4, 4, 3, 3)}, data="N, 4, 6, 6")
    assert "Transpose" in operators(prove_fold(model))

    def any_transpose(node: ir.Node) -> ir.Value | None:
        return node.inputs[0] if node.op_type == "Transpose" else None

    patch_everywhere(monkeypatch, "shape_preserving_input", any_transpose)
    assert "Transpose" not in operators(folding.fold(model).model)
    with pytest.raises(CertificateError):
        prove_fold(model)


COMPUTED_SCALE = (
    "doubled = Add(scale, scale)\nm = Mul(data, doubled)\n"
    "c = Conv(m, w)\nt = BatchNormalization(c, gamma, beta, mean, var)\noutput = Relu(t)"
)


def test_a_wrong_constant_is_caught(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed when the proof took the constants that the fold had computed."""
    model = graph(COMPUTED_SCALE, {"scale": (1, 4, 1, 1), "w": (4, 4, 3, 3), **NORMS})
    assert operators(prove_fold(model)) == ["Conv", "Relu"]
    original: Any = constant_folding._compute

    def off_by_one(*arguments: Any) -> Any:
        return {value: result + 1 for value, result in original(*arguments).items()}

    monkeypatch.setattr(constant_folding, "_compute", off_by_one)
    assert operators(folding.fold(model).model) == ["Conv", "Relu"]
    with pytest.raises(CertificateError):
        prove_fold(model)


def test_a_wrong_size_is_caught(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed when both sides asked the same function which sizes a graph computes."""
    body = (
        "s = Shape(data)\nk = Gather(s, one)\nf = Cast<to = 1>(k)\n"
        "m = Div(data, f)\nc = Conv(m, w)\noutput = Relu(c)"
    )
    model = graph(body, {"one": np.array(1), "w": (4, 4, 3, 3)})
    assert operators(prove_fold(model)) == ["Conv", "Relu"]
    original: Any = symbolic_sizes._RULES["Gather"]

    def halve(node: ir.Node, known: Any) -> Any:
        return [size // 2 for size in original(node, known)]

    monkeypatch.setitem(symbolic_sizes._RULES, "Gather", halve)
    assert operators(folding.fold(model).model) == ["Conv", "Relu"]
    with pytest.raises(CertificateError):
        prove_fold(model)


def test_a_reshape_to_another_target_is_caught(graph: Graph) -> None:
    """The training form computes its target; the proof compares the shapes at sampled sizes."""
    body = (
        "s = Shape(data)\nn = Gather(s, first)\nbatch = Unsqueeze(n, zero)\n"
        "target = Concat<axis = 0>(batch, rest)\n"
        "c = Conv(data, w)\nr = Reshape(c, target)\noutput = Relu(r)"
    )
    sizes = {"first": np.array(0), "zero": np.array([0]), "rest": np.array([4, -1])}
    model = graph(
        body, {"w": (4, 4, 1, 1), **sizes}, data="N, 4, 6, 6", output="N, C, K"
    )
    result = folding.fold(model)
    assert operators(prove_fold(model)) == ["Conv", "Reshape", "Relu"]
    target = next(
        item for item in result.model.graph.initializer if item.name == "target"
    )
    for wrong in ([0, 2, -1], [-1, 4, 18], [2, 4, 36], [0, -1, 4]):
        target.CopyFrom(onnx.numpy_helper.from_array(np.array(wrong), "target"))
        with pytest.raises(CertificateError):
            prove(model, result.model, result.outputs)
    target.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 4, 36]), "target"))
    prove(model, result.model, result.outputs)


BORDERED = (
    "c = Conv(data, w)\nt = BatchNormalization(c, gamma, beta, mean, var)\np = Pad(t, pads)\n"
    "a = ScatterND(p, top, number)\noutput = Conv(a, v)"
)


def border_model(graph: Graph) -> onnx.ModelProto:
    """A frame of zeros on one side, filled with what the BatchNormalization makes of zeros."""
    norms = {
        "gamma": [1.0, -0.5, 2.0, 1.5],
        "beta": [0.5, 0.25, -1.0, 2.0],
        "mean": [0.1, -0.2, 0.3, 0.4],
        "var": [1.0, 0.5, 2.0, 1.5],
    }
    gamma, beta, mean, variance = (
        np.array(values, np.float32) for values in norms.values()
    )
    fill = beta - gamma * mean / np.sqrt(variance + np.float32(1e-5))
    index = [(0, channel, 0, column) for channel in range(4) for column in range(6)]
    weights: dict[str, Any] = {
        **norms,
        "w": (4, 4, 1, 1),
        "v": (3, 4, 3, 3),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 0]),
        "top": np.array(index),
        "number": np.repeat(fill, 6).astype(np.float32).tolist(),
    }
    return graph(BORDERED, weights, data="1, 4, 6, 6", output="1, 3, H, W")


def change_border(model: onnx.ModelProto, change: Callable[[Array], Array]) -> None:
    """Change the numbers that `model` writes around its BatchNormalization, in place."""
    tensor = next(item for item in model.graph.initializer if item.name == "number")
    values = change(onnx.numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "number"))


def test_a_wrong_border_constant_is_caught(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = border_model(graph)
    assert operators(prove_fold(model)) == ["Conv"]
    change_border(model, lambda values: values + np.float32(1e-3))
    assert "ScatterND" in operators(prove_fold(model))
    original: Any = border_constants._fill

    def slightly_off(*arguments: Any) -> Any:
        return original(*arguments) - 1e-3

    monkeypatch.setattr(border_constants, "_fill", slightly_off)
    assert operators(folding.fold(model).model) == ["Conv"]
    with pytest.raises(CertificateError):
        prove_fold(model)


def test_a_border_of_unequal_constants_is_caught(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pixel of the border has another number: no convolution does that."""
    model = border_model(graph)

    def one_pixel(values: Array) -> Array:
        values[0] += 0.5
        return values

    change_border(model, one_pixel)
    assert "ScatterND" in operators(prove_fold(model))
    original: Any = border_constants._write

    def one_number_for_each_channel(*arguments: Any) -> Any:
        index, numbers = original(*arguments)
        return index, np.repeat(numbers.reshape(4, 6)[:, 1], 6)

    monkeypatch.setattr(border_constants, "_write", one_number_for_each_channel)
    assert operators(folding.fold(model).model) == ["Conv"]
    with pytest.raises(CertificateError):
        prove_fold(model)


def test_an_added_zero_that_widens_its_operand_must_not_disappear(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed when the proof did not look at the shape of what is added."""
    body = "z = GlobalAveragePool(data)\na = Add(z, zeros)\noutput = Conv(a, w)"
    weights = {"zeros": np.zeros((1, 4, 9, 10), np.float32).tolist(), "w": (4, 4, 3, 3)}
    model = graph(body, weights)
    assert "Add" in operators(prove_fold(model))

    def left_operand(node: ir.Node) -> ir.Value | None:
        return node.inputs[0]

    monkeypatch.setattr(eliminate, "_unchanged_operand", left_operand)
    assert "Add" not in operators(folding.fold(model).model)
    with pytest.raises(CertificateError):
        prove_fold(model)


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("repzoo.graph.certificate.certify", "repzoo.graph.fold"),
        ("repzoo.graph.fold.engine", "repzoo.graph.certificate"),
    ],
)
def test_neither_side_loads_the_other(imported: str, absent: str) -> None:
    code = (
        f"import sys, {imported}\n"
        f"assert not [name for name in sys.modules if name.startswith({absent!r})]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
