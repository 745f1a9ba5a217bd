"""The fold of each catalog model as it was recorded: operators, folds, refusals by reason.

To change the record on purpose, write it anew and read the diff:

    pytest tests/graph/test_golden.py --remake-golden --all-variants
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

from tests.executed_graphs import by_onnxruntime, by_openvino

from repzoo.artifact import Step
from repzoo.graph.fold.engine import fold
from repzoo.graph.tools.export import export
from repzoo.graph.tools.fold_result import FoldResult
from repzoo.zoo import catalog, families

GOLDEN = Path(__file__).parent / "golden"
LARGE = 5_000_000  # parameters of the deploy form
SMALLEST_REPVGG = "repvgg_a0"  # tested although it is large
SIZES = {row.name: row.parameters_deploy for row in catalog.models()}


def summary(result: FoldResult) -> dict[str, Any]:
    """Counts of operators, of similar folds, and of refusals by reason (without its numbers)."""
    alike: dict[str, list[str]] = {}
    for replacement in result.folds:
        line = f"{replacement.kind}: {len(replacement.nodes)} nodes, {replacement.macs_before:.10g} -> {replacement.macs_after:.10g}"
        alike.setdefault(line, []).append(replacement.output)
    return {
        "operators": dict(
            sorted(Counter(node.op_type for node in result.model.graph.node).items())
        ),
        "folds": [
            f"{line}, {len(outputs)} times, first {outputs[0]}"
            for line, outputs in alike.items()
        ],
        "refusals": dict(
            sorted(
                Counter(
                    re.sub(r"\d[\d,.x]*", "#", item.reason) for item in result.refusals
                ).items()
            )
        ),
    }


@functools.cache
def folded(name: str) -> FoldResult:
    preprocess = replace(catalog.spec(name).preprocess, size=32)
    module = families.seeded(name, 10, 0)
    return fold(export(module, name, preprocess, (), Step("build", "0")).model)


@pytest.mark.parametrize("name", SIZES)
def test_the_fold_is_as_recorded(name: str, request: pytest.FixtureRequest) -> None:
    is_large = SIZES[name] >= LARGE and name != SMALLEST_REPVGG
    if is_large and not request.config.getoption("--all-variants"):
        pytest.skip("large; run with --all-variants")
    actual = summary(folded(name))
    path = GOLDEN / f"{name}.json"
    if request.config.getoption("--remake-golden"):
        path.write_text(json.dumps(actual, indent=1) + "\n")
    assert actual == json.loads(path.read_text()), (
        "run with --remake-golden if this is meant, and read the diff"
    )


# The smallest of each family: how many GELUs it has, and the kernels that may stand beside
# convolutions in ONNX Runtime and OpenVINO.
ONNXRUNTIME = {"Conv", "Gelu", "Gemm", "GlobalAveragePool", "ReorderInput"}
ONNXRUNTIME |= {"ReorderOutput", "Flatten", "ReduceMean"}
OPENVINO = {"Convolution", "FullyConnected", "Input", "Output", "Reduce"}
OPENVINO |= {"Reorder", "Reshape", "Const"}
EXECUTED: dict[str, tuple[int, set[str], set[str]]] = {
    "repvgg_a0": (0, set(), set()),
    "repghostnet_050": (0, {"Mul"}, {"Math", "Eltwise", "Subgraph"}),
    "repvit_m0_6": (18, {"Add", "Mul"}, {"Eltwise", "Subgraph"}),
    "fasternet_t0": (14, {"Concat", "Split"}, {"Concatenation", "Split"}),
}


@pytest.mark.parametrize("name", EXECUTED)
def test_engines_fuse_every_function_of_a_family(name: str, tmp_path: Path) -> None:
    gelus, more_kernels, more_kinds = EXECUTED[name]
    model = folded(name).model
    kernels = by_onnxruntime(model, tmp_path)
    assert kernels["Gelu"] == gelus
    assert set(kernels) <= ONNXRUNTIME | more_kernels
    assert set(by_openvino(model)) <= OPENVINO | more_kinds


def test_every_model_has_a_small_record() -> None:
    files = sorted(GOLDEN.glob("*.json"))
    assert [path.stem for path in files] == sorted(SIZES)
    assert max(path.stat().st_size for path in files) < 8 * 1024
