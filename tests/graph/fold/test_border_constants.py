"""Borders that slice assignments leave (Pad, then ScatterND): folded where they are what zero
padding would give, else refused.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo.artifact import Artifact, Preprocess
from repzoo.errors import CertificateError
from repzoo.graph.certificate.certify import certify
from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold import algebra
from repzoo.graph.fold import border_constants as borders
from repzoo.graph.fold.engine import fold
from repzoo.graph.fold.geometry import Inexact
from repzoo.graph.tools.fold_result import FoldResult

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]

BODY = """
n = BatchNormalization(data, gamma, beta, mean, var)
p = Pad(n, frame)
s = ScatterND(p, rows, top)
t = ScatterND(s, columns, sides)
output = Conv(t, w)
"""
PARTS = ("gamma", "beta", "mean", "var")


def index(rows: range | list[int], columns: range | list[int]) -> Array:
    """[1, 4, rows, columns, 4]: where these are in an image of one batch and four channels."""
    return np.stack(
        np.meshgrid([0], range(4), list(rows), list(columns), indexing="ij"), -1
    ).astype(np.int64)


@pytest.fixture
def make_framed(graph: Graph) -> Callable[..., onnx.ModelProto]:
    """`framed(change)`: a 1 x 4 x 9 x 10 image in a frame of one pixel, the constants as
    `change(constants)` leaves them.
    """

    def make(
        change: Callable[[dict[str, Array]], object] = lambda _: None,
    ) -> onnx.ModelProto:
        random = np.random.default_rng(0)
        held: dict[str, Array] = {
            name: random.uniform(0.5, 1.5, 4).astype(np.float32) for name in PARTS
        }
        value = held["beta"] - held["mean"] * held["gamma"] / np.sqrt(
            held["var"] + np.float32(1e-5)
        )
        held |= {
            "rows": index([0, 10], range(12)),
            "columns": index(range(11), [0, 11]),
        }
        held |= {name: value[None, :, None, None] * np.ones(held[at].shape[:-1], np.float32)
                 for name, at in (("top", "rows"), ("sides", "columns"))}  # fmt: skip
        held |= {
            "w": random.standard_normal((6, 4, 3, 3)).astype(np.float32),
            "frame": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        }
        change(held)
        return graph(BODY, held, "1, 4, 9, 10", "1, 6, 9, 10")

    return make


def fold_and_prove(model: onnx.ModelProto) -> FoldResult:
    result = fold(model)
    prove(model, result.model, result.outputs)
    return result


def kinds(result: FoldResult) -> list[str]:
    return [node.op_type for node in result.model.graph.node]


def test_a_border_of_normalized_zeros_is_zero_padding(
    make_framed: Any, execute: Execute
) -> None:
    model = make_framed()
    result = fold_and_prove(model)
    assert kinds(result) == ["Conv"]
    data = np.random.default_rng(1).standard_normal((1, 4, 9, 10)).astype(np.float32)
    (expected,), (got,) = execute(model, data), execute(result.model, data)
    assert np.abs(expected - got).max() <= 1e-5 * np.abs(expected).max()


def overwrite(
    name: str, place: tuple[Any, ...], by: float
) -> Callable[[dict[str, Array]], None]:
    def change(held: dict[str, Array]) -> None:
        held[name][place] += held[name].dtype.type(by)

    return change


def change_border(
    change: Callable[[Array], Array],
) -> Callable[[dict[str, Array]], None]:
    return lambda held: held.update(
        {name: change(held[name]) for name in ("top", "sides")}
    )


CHANGES: dict[str, tuple[Callable[[dict[str, Array]], None], str]] = {
    "one pixel has another number": (overwrite("sides", (0, 1, 4, 1), 0.1), "something other than one number a channel"),
    "one pixel is written inside": (overwrite("rows", (0, 2, 1, 3, 2), -1), "something other than one number a channel"),
    "one pixel is left zero": (overwrite("rows", (0, 2, 1, 3, 2), -10), "something other than one number a channel"),
    "it writes beyond the image": (overwrite("rows", (0, 2, 1, 3, 2), 9), "something other than one number a channel"),
    "all numbers are others": (change_border(lambda was: was + np.float32(1e-3)), "constants that the map before it does not give"),
    "the channels are swapped": (change_border(lambda was: was[:, ::-1].copy()), "constants that the map before it does not give"),
    "the frame is of ones": (lambda held: held.update(frame=np.array([0, 0, 2, 1, 0, 0, 0, 1])), "something other than one number"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_another_border_is_refused_with_a_sentence(name: str, make_framed: Any) -> None:
    change, sentence = CHANGES[name]
    model = make_framed(change)
    result = fold(model)
    assert "ScatterND" in kinds(result)
    assert any(sentence in refusal.reason for refusal in result.refusals)
    if "beyond" not in name:
        prove(model, result.model, result.outputs)


@pytest.mark.parametrize(
    "name", [name for name in CHANGES if "constants that" in CHANGES[name][1]]
)
def test_the_certificate_catches_a_wrong_border(
    name: str, make_framed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(algebra, "_require_padding", lambda *_: None)
    model = make_framed(CHANGES[name][0])
    result = fold(model)
    assert kinds(result) == ["Conv"]
    with pytest.raises(CertificateError):
        prove(model, result.model, result.outputs)


def test_the_certificate_catches_a_guard_that_overlooks_a_pixel(
    make_framed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right: list[Any] = []
    original = borders._fill

    def remember(*arguments: Any) -> Any:
        right.append(original(*arguments))
        return right[-1]

    monkeypatch.setattr(borders, "_fill", remember)
    fold(make_framed())
    monkeypatch.setattr(borders, "_fill", lambda *_: right[-1])
    for change in (
        "one pixel has another number",
        "one pixel is written inside",
        "one pixel is left zero",
    ):
        model = make_framed(CHANGES[change][0])
        result = fold(model)
        assert kinds(result) == ["Conv"]
        with pytest.raises(CertificateError):
            prove(model, result.model, result.outputs)


def test_a_map_with_a_border_composes_only_with_the_map_of_its_constants() -> None:
    random = np.random.default_rng(3)
    inner = algebra.from_kernel(
        random.standard_normal((5, 4, 1, 1)), random.standard_normal(5)
    )
    outer = algebra.from_kernel(random.standard_normal((3, 5, 3, 3)))
    right = algebra.compose(
        algebra.constant_pad(inner.bias, (1, 1, 1, 1), 2.0**-21), inner
    )
    whole = algebra.compose(outer, right)
    assert whole.geometry.pads == (1, 1, 1, 1)
    assert whole.fill is None
    np.testing.assert_allclose(whole.bias, outer.kernel.sum((2, 3)) @ inner.bias)
    wrong = algebra.constant_pad(inner.bias + 1e-4, (1, 1, 1, 1), 2.0**-21)
    with pytest.raises(Inexact, match="does not give for zeros"):
        algebra.compose(wrong, inner)
    with pytest.raises(Inexact, match="constants that are not zero"):
        algebra.add(algebra.compose(outer, wrong), outer)
    with pytest.raises(Inexact, match="constants that are not zero"):
        algebra.join(outer, algebra.compose(outer, wrong))


# --- as PyTorch code says it ------------------------------------------------------------------


@pytest.fixture
def branches(aged: Any) -> Any:
    """Diverse Branch Block's branches; one frames a BatchNorm's output by slice assignment,
    before a convolution or a pool.
    """
    pytest.importorskip("torch", reason="the torch extra is not installed")
    import torch
    from torch import nn

    class Framed(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(channels)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            norm = self.norm
            assert norm.running_mean is not None
            assert norm.running_var is not None
            source = (
                norm.bias.detach()
                - norm.running_mean
                * norm.weight.detach()
                / torch.sqrt(norm.running_var + norm.eps)
            )
            wide = nn.functional.pad(norm(x), [1, 1, 1, 1])
            edge = source.view(1, -1, 1, 1)
            wide[:, :, :1, :] = edge
            wide[:, :, -1:, :] = edge
            wide[:, :, :, :1] = edge
            wide[:, :, :, -1:] = edge
            return wide

    class Branches(nn.Module):
        def __init__(self, stride: int, pooled: bool) -> None:
            super().__init__()

            def conv(size: int, stride: int = 1, padding: int = 0) -> nn.Module:
                return nn.Conv2d(4, 4, size, stride, padding, bias=False)

            def norm() -> nn.Module:
                return nn.BatchNorm2d(4)

            self.whole = nn.Sequential(conv(3, stride=stride, padding=1), norm())
            self.point = nn.Sequential(conv(1, stride=stride), norm())
            last = nn.AvgPool2d(3, stride) if pooled else conv(3, stride)
            self.framed = nn.Sequential(conv(1), Framed(4), last, norm())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = self.whole(x) + self.point(x) + self.framed(x)
            return nn.functional.relu(total).mean((2, 3))

    torch.manual_seed(0)
    return lambda stride, pooled: aged(Branches(stride, pooled))


def export_module(module: Any, side: int, **axes: dict[int, str]) -> onnx.ModelProto:
    import torch

    file: Any = io.BytesIO()
    torch.onnx.export(
        module, (torch.zeros(1, 4, side, side),), file, dynamo=False, opset_version=17, input_names=["data"],
        training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes=axes,
    )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize(
    ("axes", "stride", "pooled"), [({}, 2, True), ({0: "N"}, 1, False)]
)
def test_the_authors_branches_become_one_convolution(
    axes: dict[int, str], stride: int, pooled: bool, branches: Any, execute: Execute
) -> None:
    import torch

    module = branches(stride, pooled)
    before = Artifact(
        export_module(module, 8, **({"data": axes} if axes else {})),
        "branches",
        Preprocess(size=8),
    )
    result = fold(before.model)
    assert kinds(result) == ["Conv", "Relu", "ReduceMean"]
    certificate = certify(
        before, result, fold, lambda model, data: execute(model, data)[0]
    )
    assert certificate.proven == certificate.adversarial_cases == 1
    data = torch.randn(1, 4, 8, 8)
    (got,) = execute(result.model, data.numpy())
    assert np.abs(module(data).detach().numpy() - got).max() <= 1e-5


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_a_border_around_an_image_of_open_size_is_refused(branches: Any) -> None:
    model = export_module(branches(1, False), 8, data={0: "N", 2: "H", 3: "W"})
    result = fold_and_prove(model)
    assert "ScatterND" in kinds(result)
    assert any(
        "export it with a fixed size" in refusal.reason for refusal in result.refusals
    )
