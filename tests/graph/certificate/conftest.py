"""A small network with its weights, and the certificate of its fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.artifact import Artifact, Preprocess
from repzoo.graph.certificate import certify
from repzoo.graph.certificate.certify import Certificate
from repzoo.graph.fold import algebra
from repzoo.graph.fold import engine as fold

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]
Certify = Callable[..., Certificate]

BODY = """
a = Conv<pads = [1, 1, 1, 1]>(data, wa)
ab = BatchNormalization(a, gammaa, betaa, meana, vara)
b = Conv(data, wb)
bb = BatchNormalization(b, gammab, betab, meanb, varb)
cb = BatchNormalization(data, gammac, betac, meanc, varc)
s = Add(ab, bb)
t = Add(s, cb)
u = Relu(t)
d = Conv<strides = [2, 2], pads = [0, 1, 2, 3], group = 2, dilations = [1, 2]>(u, wd, bd)
db = BatchNormalization(d, gammad, betad, meand, vard)
v = Relu(db)
x = Conv<strides = [2, 2]>(v, wx)
xb = BatchNormalization(x, gammax, betax, meanx, varx)
y = HardSigmoid(xb)
z = GlobalAveragePool(y)
f = Flatten(z)
h = BatchNormalization(f, gammah, betah, meanh, varh)
output = Gemm<transB = 1>(h, wh, bh)
"""


def statistics(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{part}{name}": (channels,) for part in ("gamma", "beta", "mean", "var")}


WEIGHTS: dict[str, Any] = (
    {
        "wa": (4, 4, 3, 3),
        "wb": (4, 4, 1, 1),
        "wd": (6, 2, 3, 2),
        "bd": (6,),
        "wx": (8, 6, 1, 1),
        "wh": (5, 8),
        "bh": (5,),
    }
    | statistics("a", 4)
    | statistics("b", 4)
    | statistics("c", 4)
    | statistics("d", 6)
    | statistics("x", 8)
    | statistics("h", 8)
)


@pytest.fixture
def before(graph: Graph) -> Artifact:
    """Branches, a grouped and dilated convolution with uneven pads, and a head with BatchNorm."""
    return Artifact(
        graph(BODY, WEIGHTS, "N, 4, 16, 17", "N, 5"), "subject", Preprocess(size=16)
    )


@pytest.fixture
def certify_fold(execute: Execute) -> Certify:
    """`certify_fold(before, folded model or None, images=..., seed=...)`: the certificate."""

    def run(
        before: Artifact, model: onnx.ModelProto | None = None, **more: Any
    ) -> Certificate:
        result = fold.fold(before.model)
        result = result if model is None else replace(result, model=model)
        return certify.certify(
            before,
            result,
            fold.fold,
            lambda model, data: execute(model, data)[0],
            **more,
        )

    return run


@pytest.fixture
def break_algebra(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`break_algebra()`: from here on, the fold ignores the mean of a BatchNorm."""
    original: Any = algebra.from_batchnorm

    def ignore_mean(
        gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float
    ) -> Any:
        return original(gamma, beta, 0 * mean, variance, epsilon)

    return lambda: monkeypatch.setattr(algebra, "from_batchnorm", ignore_mean)


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def change(model: onnx.ModelProto, name: str, by: Callable[[Array], Array]) -> None:
    item = next(item for item in model.graph.initializer if item.name == name)
    values = by(numpy_helper.to_array(item).copy()).astype(np.float32)
    item.CopyFrom(numpy_helper.from_array(values, name))
