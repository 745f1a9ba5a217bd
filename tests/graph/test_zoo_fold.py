"""The catalog's counts, recomputed from the exported graph of a variant of each structure and from its fold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

from repzoo.artifact import Step
from repzoo.graph.certificate.proof import prove
from repzoo.graph.certificate.respelled import apply_respellings
from repzoo.graph.fold.engine import fold
from repzoo.graph.tools.cost import count
from repzoo.graph.tools.export import export
from repzoo.zoo import catalog, families

# One of each structure; the others differ in widths, depths and shortcuts. `--all-variants` tests
# them too.
STRUCTURES = {"fasternet_t0", "repghostnet_050", "repvgg_a0", "repvit_m0_6"}


@pytest.mark.parametrize("name", [row.name for row in catalog.models()])
def test_parameters_and_macs_of_both_forms_match_the_catalog(
    name: str, aged: Any, request: pytest.FixtureRequest
) -> None:
    row = catalog.spec(name)
    if name not in STRUCTURES and not request.config.getoption("--all-variants"):
        pytest.skip("another width, depth or shortcut; run with --all-variants")
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
    respelled = apply_respellings(exported.model, result.respellings)
    assert len(prove(respelled, result.model, result.outputs)) == len(result.folds)


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
