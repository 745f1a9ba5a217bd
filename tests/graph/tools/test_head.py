"""What the outputs of a graph mean, for the endings that exporters write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from repzoo.errors import InputError
from repzoo.graph.tools.head import Head, HeadKind, find_head

Graph = Callable[..., onnx.ModelProto]

BODY = """
p = GlobalAveragePool(data)
f = Flatten(p)
z = MatMul(f, w)
"""
WEIGHTS: dict[str, Any] = {"w": (4, 5)}


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("output = Identity(z)", HeadKind.LOGITS),
        ("output = LogSoftmax(z)", HeadKind.LOGITS),
        ("output = Softmax<axis = -1>(z)", HeadKind.SOFTMAX),
        ("s = Softmax<axis = 1>(z)\noutput = Identity(s)", HeadKind.SOFTMAX),
        ("output = Sigmoid(z)", HeadKind.SIGMOID),
        (
            "s = Sigmoid(z)\nt = Cast<to = 10>(s)\noutput = Cast<to = 1>(t)",
            HeadKind.SIGMOID,
        ),
        ("s = Sigmoid(z)\noutput = Mul(s, z)", HeadKind.LOGITS),
    ],
)
def test_the_last_operator_tells(graph: Graph, ending: str, expected: HeadKind) -> None:
    head = find_head(graph(BODY + ending, WEIGHTS, output="N, 5"))
    assert head == Head(expected, 5)


def test_labels_of_several_sigmoids_are_one_head(graph: Graph) -> None:
    body = BODY + "s = Sigmoid(z)\nt = Sigmoid(f)\noutput = Concat<axis = 1>(s, t)"
    assert find_head(graph(body, WEIGHTS, output="N, 9")) == Head(HeadKind.SIGMOID, 9)


def test_axes_of_one_element_do_not_matter(graph: Graph) -> None:
    body = "p = GlobalAveragePool(data)\noutput = Softmax<axis = 1>(p)"
    model = graph(body, {}, output="N, 4, 1, 1")
    assert find_head(model) == Head(HeadKind.SOFTMAX, 4)


@pytest.mark.parametrize(
    ("body", "output", "word"),
    [
        (BODY + "s = Softmax(z)\nt = Softmax(f)\noutput = Concat<axis = 1>(s, t)", "N, 9", "side by side"),
        ("p = GlobalAveragePool(data)\ns = Softmax<axis = -1>(p)\noutput = Flatten(s)", "N, 4", "groups"),
        ("output = Relu(data)", "N, 4, 9, 10", "[?, 4, 9, 10]"),
    ],
)  # fmt: skip
def test_what_is_no_head_of_classes_has_a_reason(
    graph: Graph, body: str, output: str, word: str
) -> None:
    head = find_head(graph(body, WEIGHTS, output=output))
    assert head.kind is HeadKind.OTHER
    assert word in head.reason


def test_a_chosen_class_is_no_head_of_classes(graph: Graph) -> None:
    model = graph(BODY + "output = Identity(z)", WEIGHTS, output="N, 5")
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    head = find_head(model)
    assert head.kind is HeadKind.OTHER
    with pytest.raises(InputError, match="no classes"):
        head.probabilities(np.zeros((1, 5), np.float32))


def test_one_output_needs_a_sigmoid(graph: Graph) -> None:
    weights = {"w": (4, 1)}
    sigmoid = graph(BODY + "output = Sigmoid(z)", weights, output="N, 1")
    logit = graph(BODY + "output = Identity(z)", weights, output="N, 1")
    assert find_head(sigmoid) == Head(HeadKind.BINARY, 2)
    assert "may be a logit" in find_head(logit).reason


def test_two_outputs_are_named(graph: Graph) -> None:
    model = graph(BODY + "output = Softmax(z)", WEIGHTS, output="N, 5")
    model.graph.output.append(onnx.ValueInfoProto(name="f"))
    assert find_head(model).reason == "the graph has 2 outputs (output, f)"


def test_softmax_is_applied_to_logits_only() -> None:
    logits = np.array([[0, np.log(3), -100]], np.float32)
    expected = [[0.25, 0.75, 0]]
    softmax = np.array(expected, np.float32)
    assert Head(HeadKind.LOGITS, 3).probabilities(logits) == pytest.approx(
        np.array(expected)
    )
    # A softmax that was written out, or an average of several, has no Softmax at its end.
    for kind in (HeadKind.LOGITS, HeadKind.SOFTMAX, HeadKind.SIGMOID):
        assert Head(kind, 3).probabilities(softmax) == pytest.approx(softmax)


def test_logits_are_the_same_with_and_without_a_softmax() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (20, 7)).astype(np.float32)
    plain = Head(HeadKind.LOGITS, 7)
    softmax = Head(HeadKind.SOFTMAX, 7)
    assert plain.logits(logits) is logits
    probabilities = plain.probabilities(logits).astype(np.float32)
    # The second: a softmax that was written out.
    for head in (softmax, plain.refine(probabilities)):
        again = head.logits(probabilities)
        np.testing.assert_allclose(
            again - again[:, :1], logits - logits[:, :1], atol=1e-4
        )


def test_float_outputs_tell_a_softmax_that_was_written_out() -> None:
    """Rounded to 8 bits, the same probabilities no longer sum to 1."""
    probabilities = np.full((2, 3), 1 / 3, np.float32)
    head = Head(HeadKind.LOGITS, 3)
    assert head.refine(probabilities).kind is HeadKind.SOFTMAX
    assert head.refine(np.round(probabilities * 255) / 256).kind is HeadKind.LOGITS
    assert head.refine(np.ones((2, 3))).kind is HeadKind.LOGITS


def test_logits_of_sigmoids_are_their_log_odds() -> None:
    logits = np.array([[-3.0, 0.0, 4.0]], np.float32)
    labels = (1 / (1 + np.exp(-logits))).astype(np.float32)
    head = Head(HeadKind.SIGMOID, 3)
    np.testing.assert_allclose(head.logits(labels), logits, atol=1e-4)
    assert np.isfinite(head.logits(np.array([[0.0, 1.0]], np.float32))).all()
