"""Linear layers on rows, [N, length, C] and more axes: with what scales or normalizes their
channels they are a MatMul and an Add.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo.errors import CertificateError
from repzoo.graph.certificate.adversarial import adversarial_cases
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.proof import prove
from repzoo.graph.certificate.training_form import TrainingForm
from repzoo.graph.certificate.unchanged import changed_nodes
from repzoo.graph.fold import write as writing
from repzoo.graph.fold.engine import fold

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


def normal(output: str, source: str) -> str:
    return f"{output} = BatchNormalization({source}, gamma, beta, mean, var)\n"


BN = dict.fromkeys(("gamma", "beta", "mean", "var"), (8,))
HELD: dict[str, Any] = {"w": (5, 8), "v": (5, 8), "z": (8, 3), "b": (8,), "c": (1, 1, 8), "g": (8,), "k": [0.25], "long": (6, 8), "six": (6, 1),
                        "back": integers(-1, 6, 8), "other": integers(-1, 3, 8), "rows": integers(-1, 8), "four": (1, 8, 1, 1)} | BN  # fmt: skip
LEVIT = (
    "t = MatMul(data, w)\nf = Flatten<axis = 2>(t)\n"
    + normal("u", "f")
    + "output = Reshape(u, back)"
)

# name: (body, input, operators that are left)
CASES: dict[str, tuple[str, str, list[str]]] = {
    "levit's linear layer and norm": (LEVIT, "N, 6, 5", ["MatMul", "Add"]),
    "the same, to rows by a Reshape": (LEVIT.replace("Flatten<axis = 2>(t)", "Reshape(t, rows)"), "N, 6, 5", ["MatMul", "Add"]),
    "a layer scale": ("t = MatMul(data, w)\nu = Add(b, t)\noutput = Mul(u, g)", "N, 6, 5", ["MatMul", "Add"]),
    "a layer scale of an image with channels last": ("t = MatMul(data, w)\nu = Add(t, b)\noutput = Mul(g, u)", "N, 6, 7, 5", ["MatMul", "Add"]),
    "a scale alone": ("t = MatMul(data, w)\noutput = Mul(t, k)", "N, 6, 5", ["MatMul"]),
    "a scale, a bias, a length that is open": ("t = MatMul(data, w)\nu = Div(t, g)\noutput = Sub(u, c)", "N, L, 5", ["MatMul", "Add"]),
    "two layers that narrow": ("t = MatMul(data, w)\nu = Add(t, b)\noutput = MatMul(u, z)", "N, 6, 5", ["MatMul", "Add"]),
    "two branches": ("t = MatMul(data, w)\nu = Add(t, b)\ns = MatMul(data, v)\noutput = Add(u, s)", "N, 6, 5", ["MatMul", "Add"]),
    "a layer and its bias": ("t = MatMul(data, w)\noutput = Add(t, b)", "N, 6, 5", ["MatMul", "Add"]),
    "a bias for each row": ("t = MatMul(data, w)\nu = Add(t, long)\noutput = Mul(u, g)", "N, 6, 5", ["MatMul", "Add", "Mul"]),
    "a scale for each row": ("t = MatMul(data, w)\nu = Add(t, b)\noutput = Mul(u, six)", "N, 6, 5", ["MatMul", "Add", "Mul"]),
    "a scale along the other axis of an image": (
        "t = MatMul(data, w)\nu = Add(t, b)\noutput = Mul(u, four)", "N, 8, 8, 5", ["MatMul", "Add", "Mul"]),
    "back to another shape": (LEVIT.replace("back", "other"), "N, 6, 5", ["MatMul", "Flatten", "BatchNormalization", "Reshape"]),
    "a product that two read": ("t = MatMul(data, w)\nu = Mul(t, g)\noutput = Add(u, t)", "N, 6, 5", ["MatMul", "Mul", "Add"]),
}  # fmt: skip


def build(graph: Graph, body: str, data: str = "N, 6, 5") -> onnx.ModelProto:
    read = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = graph(
        body,
        {name: what for name, what in HELD.items() if name in read},
        data,
        "A, B, C" if data.count(",") == 2 else "A, B, C, D",
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("name", CASES)
def test_what_is_left(name: str, graph: Graph, execute: Execute) -> None:
    body, data, left = CASES[name]
    model = build(graph, body, data)
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == left
    onnx.checker.check_model(result.model, full_check=True)
    assert len(prove(model, result.model, result.outputs)) == len(result.folds)
    again = fold(result.model).model
    assert again.SerializeToString(
        deterministic=True
    ) == result.model.SerializeToString(deterministic=True)
    sides = [int(side) if side.isdigit() else 4 for side in data.split(", ")[1:]]
    images = np.random.default_rng(0).standard_normal((2, *sides)).astype(np.float32)
    (expected,), (got,) = execute(model, images), execute(result.model, images)
    assert np.abs(expected - got).max() <= 1e-5 * np.abs(expected).max()


def test_the_values_are_those_of_the_formula(graph: Graph) -> None:
    """W diag(s) and (b - mean) s + beta, with s = gamma / sqrt(var + epsilon), in float64 and
    cast once.
    """
    model = build(
        graph,
        LEVIT.replace("f = Flatten", "e = Add(t, b)\nf = Flatten").replace(
            "(t)\n", "(e)\n"
        ),
    )
    held = {
        item.name: onnx.numpy_helper.to_array(item).astype(np.float64)
        for item in model.graph.initializer
    }
    weight, bias = (
        onnx.numpy_helper.to_array(item) for item in fold(model).model.graph.initializer
    )
    scale = held["gamma"] / np.sqrt(held["var"] + 1e-5)
    np.testing.assert_allclose(weight, held["w"] * scale, rtol=2**-23)
    np.testing.assert_allclose(
        bias, (held["b"] - held["mean"]) * scale + held["beta"], rtol=2**-22, atol=1e-7
    )


def test_adversarial_cases_cover_batchnorms_between_rows(graph: Graph) -> None:
    model = build(graph, LEVIT)
    drilled = list(adversarial_cases(model, fold(model).model, TrainingForm.of(model)))
    assert drilled
    for _, specimen in drilled:
        result = fold(specimen)
        assert prove(specimen, result.model, result.outputs)


@pytest.mark.parametrize("wrong", ["weight", "bias", "bias left out"])
def test_a_wrong_layer_is_caught(
    wrong: str, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, right = build(graph, LEVIT), writing._linear_nodes

    def mutant(inputs: Any, *rest: Any) -> Any:
        source, weight, bias = inputs
        if wrong == "bias left out":
            return right([source, weight], *rest)
        spoiled = weight if wrong == "weight" else bias
        values = spoiled.const_value.numpy() * np.float32(1 + 1e-5)
        spoiled.const_value = writing._initializer(spoiled.name, values).const_value
        return right(inputs, *rest)

    monkeypatch.setattr(writing, "_linear_nodes", mutant)
    made_wrong = fold(model)
    assert made_wrong.folds
    with pytest.raises(CertificateError):
        prove(model, made_wrong.model, made_wrong.outputs)


def test_a_second_reader_of_a_product_is_noticed(graph: Graph) -> None:
    """Between a new MatMul and its Add lies a tensor that the training form lacks; a node that
    also reads it is no known node.
    """
    model = build(graph, LEVIT)
    wrong = fold(model).model
    inner = wrong.graph.node[0].output[0]
    wrong.graph.node[-1].output[0] = "sum"
    wrong.graph.node.append(onnx.helper.make_node("Add", ["sum", inner], ["output"]))
    with pytest.raises(CertificateError):
        prove(model, wrong, ["output"])


def test_the_probe_has_the_length_of_the_rows(graph: Graph) -> None:
    model = build(graph, LEVIT)
    origin, after = TrainingForm.of(model), fold(model).model
    new = TensorIndex.of(after.graph)
    (layer,) = changed_nodes(after, origin, new)
    assert (layer.op_type, len(layer.input), origin.probe_shape(layer, new)) == (
        "MatMul",
        3,
        (1, 6, 5),
    )
