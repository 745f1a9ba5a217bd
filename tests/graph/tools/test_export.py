"""Export from torch: every BatchNorm kept, the contract's names, the history, and the same
values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")

import torch
from torch import nn

from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.errors import InputError, RepzooError
from repzoo.graph.certificate.certify import certify
from repzoo.graph.fold.engine import fold
from repzoo.graph.tools import export as exporting
from repzoo.graph.tools.export import export

Array = npt.NDArray[Any]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]

PREPROCESS = Preprocess(
    size=16,
    resize="squash",
    crop_fraction=1.0,
    mean=(0.1, 0.2, 0.3),
    std=(0.5, 0.25, 1.0),
    color="BGR",
)
STEP = Step("build", "1.2", {"model": "small"})


class Small(nn.Module):
    """Two parallel branches with BatchNorm, a residual, and a head with one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = (
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.side, self.side_bn = (
            nn.Conv2d(3, 8, 1, 2, bias=False),
            nn.BatchNorm2d(8, eps=1e-3),
        )
        self.identity_bn, self.dropout = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.head_bn, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.stem_bn(self.stem(x)) + self.side_bn(self.side(x)))
        x = nn.functional.gelu(x + self.identity_bn(x)).mean((2, 3))
        result: torch.Tensor = self.head(self.dropout(self.head_bn(x)))
        return result


@pytest.fixture
def small_module(aged: Any) -> nn.Module:
    """`Small` after some training."""
    torch.manual_seed(0)
    module: nn.Module = aged(Small())
    return module


@pytest.mark.parametrize("dynamic_batch", [True, False])
@pytest.mark.parametrize("opset", exporting.OPSETS)
def test_every_opset_keeps_every_batchnorm_and_the_values(
    opset: int, dynamic_batch: bool, small_module: nn.Module, execute: Execute
) -> None:
    exported = export(
        small_module,
        "small",
        PREPROCESS,
        ("a", "b", "c"),
        STEP,
        opset=opset,
        dynamic_batch=dynamic_batch,
    )
    onnx.checker.check_model(exported.model, full_check=True)
    assert (
        sum(node.op_type == "BatchNormalization" for node in exported.model.graph.node)
        == 4
    )
    assert exported.opset == opset
    assert [item.name for item in exported.model.graph.input] == ["data"]
    assert [item.name for item in exported.model.graph.output] == ["output"]
    first = [
        item.type.tensor_type.shape.dim[0]
        for item in (exported.model.graph.input[0], exported.model.graph.output[0])
    ]
    assert [(dim.dim_param, dim.dim_value) for dim in first] == [
        ("N", 0) if dynamic_batch else ("", 1)
    ] * 2
    assert (
        len({item.name for item in exported.model.graph.initializer}) == 3 + 1 + 4 * 4
    )
    data = (
        np.random.default_rng(0)
        .standard_normal((3 if dynamic_batch else 1, 3, 16, 16))
        .astype(np.float32)
    )
    with torch.no_grad():
        expected = small_module(torch.from_numpy(data)).numpy()
    assert (
        np.abs(execute(exported.model, data)[0] - expected).max()
        <= 1e-5 * np.abs(expected).max()
    )


def test_the_file_holds_all_metadata(small_module: nn.Module, tmp_path: Path) -> None:
    exported = export(small_module, "small", PREPROCESS, ("a", "b", "c"), STEP)
    exported.save(tmp_path / "small.onnx")
    read = Artifact.read(tmp_path / "small.onnx")
    assert read.preprocess == PREPROCESS
    assert read.labels == ("a", "b", "c")
    assert read.form == "train"
    assert read.num_classes == 3
    assert [step.verb for step in read.steps] == ["build", "export"]
    assert read.steps[0] == STEP
    assert read.steps[1].settings["opset"] == 17
    assert read.steps[1].settings["size"] == 16


def test_export_is_deterministic_and_leaves_the_module_alone(
    small_module: nn.Module,
) -> None:
    state = {name: value.clone() for name, value in small_module.state_dict().items()}
    small_module.train()
    first = export(small_module, "small", PREPROCESS, (), STEP)
    assert small_module.training
    assert all(
        torch.equal(value, state[name])
        for name, value in small_module.state_dict().items()
    )
    assert (
        first.to_bytes()
        == export(small_module.eval(), "small", PREPROCESS, (), STEP).to_bytes()
    )
    assert not small_module.training


def test_layers_of_equal_values_keep_their_own_weights() -> None:
    """torch's exporter would give two fresh BatchNorms one scale, and two equal convolutions
    one weight.
    """
    module = nn.Sequential(
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3),
        nn.Flatten(),
    )
    module[3].load_state_dict(module[0].state_dict())
    exported = export(module.eval(), "twins", Preprocess(size=4), (), STEP)
    assert {item.name for item in exported.model.graph.initializer} == {
        name for name in module.state_dict() if not name.endswith("num_batches_tracked")
    }


def test_a_lost_batchnorm_is_noticed(
    small_module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.onnx.export

    def export_fused(*arguments: Any, **options: Any) -> Any:
        return whole(
            *arguments,
            **{
                **options,
                "training": torch.onnx.TrainingMode.EVAL,
                "do_constant_folding": True,
                "keep_initializers_as_inputs": False,
            },
        )

    monkeypatch.setattr(torch.onnx, "export", export_fused)
    with pytest.raises(
        RepzooError, match=r"wrote \d BatchNormalizations where the module has 4"
    ):
        export(small_module, "small", PREPROCESS, (), STEP)


class Standardized(nn.Conv2d):
    """A convolution whose weights are standardized on the way, as in NFNets (arXiv 2102.06171),
    by F.batch_norm.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.reshape(1, len(self.weight), -1)
        scale = 1.7 * torch.linspace(-1, 1, len(self.weight))
        even = nn.functional.batch_norm(
            flat, None, None, weight=scale, training=True, momentum=0.0, eps=1e-6
        )
        return nn.functional.conv2d(
            x, even.reshape_as(self.weight), self.bias, self.stride, self.padding
        )


@pytest.fixture
def standardized_module(aged: Any) -> nn.Module:
    torch.manual_seed(0)
    layers = (
        Standardized(3, 8, 3, padding=1),
        nn.ReLU(),
        Standardized(8, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
    )
    module: nn.Module = aged(nn.Sequential(*layers))
    return module


@pytest.mark.parametrize("opset", [11, 14, 17, 18])
def test_standardized_weights_are_computed_and_folded_into(
    opset: int, standardized_module: nn.Module, execute: Execute
) -> None:
    exported = export(
        standardized_module, "nf", Preprocess(size=8), (), STEP, opset=opset
    )
    assert (
        sum(node.op_type == "BatchNormalization" for node in exported.model.graph.node)
        == 3
    )
    result = fold(exported.model)
    assert [node.op_type for node in result.model.graph.node] == [
        "Conv",
        "Relu",
        "Conv",
        "Flatten",
    ]
    certificate = certify(
        exported, result, fold, lambda model, data: execute(model, data)[0]
    )
    # In opset 11 the BatchNormalization of a weight has five outputs. The certificate does not
    # compute it as a constant there, so it proves the first Conv on probes too.
    assert certificate.proven == (2 if opset == 11 else 1)
    data = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = standardized_module(torch.from_numpy(data)).numpy()
    assert (
        np.abs(execute(result.model, data)[0] - expected).max()
        <= 1e-5 * np.abs(expected).max()
    )


def test_a_batchnorm_lost_among_those_of_weights_is_noticed(
    standardized_module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exporting._torch_export

    def lose_batchnorm(*arguments: Any) -> onnx.ModelProto:
        model = whole(*arguments)
        model.graph.node.remove(
            next(node for node in model.graph.node if "/2/Conv_output_0" in node.input)
        )
        return model

    monkeypatch.setattr(exporting, "_torch_export", lose_batchnorm)
    with pytest.raises(
        RepzooError, match="wrote 0 BatchNormalizations where the module has 1"
    ):
        export(standardized_module, "nf", Preprocess(size=8), (), STEP)


@pytest.mark.parametrize("opset", [10, 21])
def test_other_opsets_are_input_errors(opset: int, small_module: nn.Module) -> None:
    with pytest.raises(InputError, match=rf"opset must lie in 11\.\.20; got {opset}"):
        export(small_module, "small", PREPROCESS, (), STEP, opset=opset)


def test_labels_must_be_one_for_each_output(small_module: nn.Module) -> None:
    with pytest.raises(
        InputError, match="2 labels were given for a model with 3 outputs"
    ):
        export(small_module, "small", PREPROCESS, ("a", "b"), STEP)


def test_more_weights_than_one_file_holds_are_refused_in_a_sentence() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(2**15, 2**14))
    with pytest.raises(
        InputError,
        match=r"huge has 2,147,549,184 bytes of weights; one ONNX file holds at most 2,147,483,647",
    ):
        export(module, "huge", PREPROCESS, (), STEP)
