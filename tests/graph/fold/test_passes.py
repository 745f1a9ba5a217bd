"""Folds that need several passes: one that a later fold takes in is proven with it, its cast
allowed for and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from repzoo.errors import CertificateError
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold import write as writing
from repzoo.graph.fold.engine import fold

Graph = Callable[..., onnx.ModelProto]

TWO_PASSES = "t = Conv(data, wa)\na = Conv(t, wb)\nb = Conv(t, wc)\noutput = Add(a, b)"


def test_the_proof_of_a_later_fold_covers_the_folds_that_it_includes(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = graph(
        TWO_PASSES, {"wa": (4, 4, 1, 1), "wb": (4, 4, 1, 1), "wc": (4, 4, 1, 1)}
    )
    result = fold(model)
    inner, outer = (item.output for item in result.folds)
    (proof,) = prove(model, result.model, [inner, outer])
    assert proof.output == outer
    retraced = TensorIndex.of(model.graph).between("data", proof.output)
    assert {name for node in retraced for name in node.output} >= {inner, outer}
    right, written = writing.nodes_for, iter(range(9))

    def wrong_at_first(form: Any, affine: Any, *rest: Any) -> Any:
        return right(
            form,
            replace(affine, kernel=affine.kernel * (1 + 1e-4 * (next(written) == 0))),
            *rest,
        )

    monkeypatch.setattr(writing, "nodes_for", wrong_at_first)
    mutant = fold(model)
    assert mutant.outputs == [inner, outer]
    with pytest.raises(CertificateError):
        prove(model, mutant.model, [inner, outer])


def test_a_weight_cast_between_two_passes_is_allowed_for(graph: Graph) -> None:
    """The sum of two branches is cast in the first pass, then meets a layer whose rows nearly
    cancel in it.
    """
    random = np.random.default_rng(0)
    row, large, small = (
        random.standard_normal(4),
        random.standard_normal((4, 1)),
        random.standard_normal((4, 4)) / 64,
    )
    weights = {
        "wa": np.outer([1, 1.0001, 1, 1.0001], row).reshape(4, 4, 1, 1),
        "wb": (large * [1, -1, 1, -1]).reshape(4, 4, 1, 1),
        "wc": (small - small.mean(1, keepdims=True) * [1, 1, 1, 1]).reshape(4, 4, 1, 1),
    }
    model = graph(TWO_PASSES, weights)
    result = fold(model)
    assert len(result.folds) == 2
    assert prove(model, result.model, result.outputs)[0].ratio <= 1
    with pytest.raises(CertificateError):
        prove(model, result.model, ["output"])


def test_a_cast_to_the_type_that_is_there_is_dropped_and_no_other(graph: Graph) -> None:
    body = "t = Conv(data, wa)\nu = Cast<to = {to}>(t)\nv = Cast<to = 1>(u)\na = Conv(v, wb)\noutput = Relu(a)"
    sizes = {"wa": (4, 4, 1, 1), "wb": (4, 4, 1, 1)}
    model = graph(body.format(to=1), sizes)
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Relu"]
    assert prove(model, result.model, result.outputs)[0].ratio <= 1
    rounding = graph(body.format(to=10), sizes)  # through float16
    assert [node.op_type for node in fold(rounding).model.graph.node] == [
        "Conv",
        "Cast",
        "Cast",
        "Conv",
        "Relu",
    ]
    with pytest.raises(CertificateError):
        prove(rounding, result.model, result.outputs)
