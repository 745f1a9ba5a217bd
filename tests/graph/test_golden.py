"""The fold of each catalog model as it was recorded: operators, folds, refusals by reason.

To change the record on purpose, write it anew and read the diff:

    pytest tests/graph/test_golden.py --remake-golden --all-variants
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

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


@pytest.mark.parametrize("name", SIZES)
def test_the_fold_is_as_recorded(name: str, request: pytest.FixtureRequest) -> None:
    is_large = SIZES[name] >= LARGE and name != SMALLEST_REPVGG
    if is_large and not request.config.getoption("--all-variants"):
        pytest.skip("large; run with --all-variants")
    preprocess = replace(catalog.spec(name).preprocess, size=32)
    actual = summary(
        fold(
            export(
                families.seeded(name, 10, 0), name, preprocess, (), Step("build", "0")
            ).model
        )
    )
    path = GOLDEN / f"{name}.json"
    if request.config.getoption("--remake-golden"):
        path.write_text(json.dumps(actual, indent=1) + "\n")
    assert actual == json.loads(path.read_text()), (
        "run with --remake-golden if this is meant, and read the diff"
    )


def test_every_model_has_a_small_record() -> None:
    files = sorted(GOLDEN.glob("*.json"))
    assert [path.stem for path in files] == sorted(SIZES)
    assert max(path.stat().st_size for path in files) < 8 * 1024
