"""The catalog's counts, recomputed from the exported graph of every variant and from its fold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

from repzoo.artifact import Step
from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold.engine import fold
from repzoo.graph.tools.cost import count
from repzoo.graph.tools.export import export
from repzoo.zoo import catalog, families

LARGE = 5_000_000  # parameters of the deploy form
SMALLEST_REPVGG = "repvgg_a0"  # tested although it is large


@pytest.mark.parametrize("name", [row.name for row in catalog.models()])
def test_parameters_and_macs_of_both_forms_match_the_catalog(
    name: str, aged: Any, request: pytest.FixtureRequest
) -> None:
    row = catalog.spec(name)
    is_large = row.parameters_deploy >= LARGE and name != SMALLEST_REPVGG
    if is_large and not request.config.getoption("--all-variants"):
        pytest.skip("large; run with --all-variants")
    exported = export(
        aged(families.seeded(name, row.num_classes, 0)),
        name,
        row.preprocess,
        (),
        Step("build", "0"),
    )
    result = fold(exported.model)
    before, after = count(exported), count(replace(exported, model=result.model))
    assert (before.parameters, before.macs) == (row.parameters_train, row.macs_train)
    assert (after.parameters, after.macs) == (row.parameters_deploy, row.macs)
    assert "BatchNormalization" not in after.operators
    assert len(prove(exported.model, result.model, result.outputs)) == len(result.folds)


def test_repvgg_a0_becomes_a_stack_of_convolutions(aged: Any) -> None:
    row = catalog.spec("repvgg_a0")
    exported = export(
        aged(families.seeded("repvgg_a0", 10, 0)),
        "a0",
        replace(row.preprocess, size=32),
        (),
        Step("build", "0"),
    )
    kinds = Counter(node.op_type for node in fold(exported.model).model.graph.node)
    assert kinds == {
        "Conv": 22,
        "Relu": 22,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }


def test_an_untrained_variant_has_the_same_counts() -> None:
    """Fresh BatchNorms shift nothing, yet their layers keep the biases that training will need."""
    for name in ("repghostnet_050", "repvit_m0_6", "fasternet_t0"):
        row = catalog.spec(name)
        exported = export(
            families.seeded(name, row.num_classes, 0),
            name,
            replace(row.preprocess, size=32),
            (),
            Step("build", "0"),
        )
        folded = replace(exported, model=fold(exported.model).model)
        assert (count(exported).parameters, count(folded).parameters) == (
            row.parameters_train,
            row.parameters_deploy,
        )
