"""Graphs from ONNX text with random weights, exact execution, modules with random BatchNorms."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--remake-golden",
        action="store_true",
        help="write tests/graph/golden/*.json anew from what the fold does now",
    )
    parser.addoption(
        "--random-graphs",
        type=int,
        default=300,
        help="how many random linear graphs to fold (default 300)",
    )
    parser.addoption(
        "--random-graphs-seed",
        default=None,
        help="a number draws other graphs, `random` draws new ones in each run; "
        "by default the graphs are the same in each run",
    )


def make_constant(name: str, what: tuple[int, ...] | list[float] | Array) -> Array:
    """A constant: `what` itself, or random numbers of that shape, seeded by its name.

    A name that begins with `var` gets variances, one that begins with `gamma` gets scales of either
    sign.
    """
    if isinstance(what, np.ndarray) and what.dtype == np.int64:
        return what
    if not isinstance(what, tuple):
        return np.asarray(what, np.float32)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.startswith("var"):
        return random.uniform(0.2, 2, what).astype(np.float32)
    if name.startswith("gamma"):
        return np.asarray(
            random.uniform(0.5, 1.5, what) * random.choice([-1, 1], what), np.float32
        )
    return np.asarray(random.standard_normal(what), np.float32)


@pytest.fixture(scope="session")
def graph() -> Graph:
    """A function that makes a checked model.

    `graph(body, {name: shape or values}, data="N, 4, 9, 10", output="N, 8, H, W", opset=17)`
    """

    def make(
        body: str,
        weights: Mapping[str, Any],
        data: str = "N, 4, 9, 10",
        output: str = "N, C, H, W",
        **more: Any,
    ) -> Any:
        extra = "".join(f", {item}" for item in more.get("inputs", ()))
        model = parser.parse_model(
            f'<ir_version: 8, opset_import: ["": {more.get("opset", 17)}]>\n'
            f"main (float[{data}] data{extra}) "
            f"=> (float[{output}] output{more.get('outputs', '')}) {{\n"
            f"{body}\n"
            f"}}"
        )
        for name, what in weights.items():
            model.graph.initializer.append(
                numpy_helper.from_array(make_constant(name, what), name)
            )
        for index, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}_{index}"
        model.metadata_props.add(key="author", value="nobody")
        onnx.checker.check_model(model, full_check=True)
        return model

    return make


@pytest.fixture(scope="session")
def execute() -> Execute:
    """`execute(model, data)`: every output by ONNX Runtime without optimizations."""

    def run(model: onnx.ModelProto, data: Array) -> list[Array]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [np.asarray(output) for output in session.run(None, {"data": data})]

    return run


@pytest.fixture(scope="session")
def aged() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """`aged(module)`: the module with random BatchNorm parameters; scales have either sign."""
    pytest.importorskip("torch", reason="the torch extra is not installed")
    import torch

    def changed(module: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for item in module.modules():
                if isinstance(item, torch.nn.modules.batchnorm._BatchNorm):
                    assert item.running_mean is not None
                    assert item.running_var is not None
                    item.weight.uniform_(0.5, 1.5, generator=generator)
                    item.weight.mul_(
                        torch.where(
                            torch.rand(item.weight.shape, generator=generator) < 0.2,
                            -1.0,
                            1.0,
                        )
                    )
                    item.bias.normal_(0, 0.2, generator=generator)
                    item.running_mean.normal_(0, 0.2, generator=generator)
                    item.running_var.uniform_(0.3, 1.5, generator=generator)
        return module.eval()

    return changed
