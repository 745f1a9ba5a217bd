"""Logits that the authors' own code computed from checkpoints filled by rule, per variant and
form: official_logits.json.

Numbers only. Each checkpoint is rebuilt under the authors' names from ours, so that a wrong
name, order, shape or fold changes the logits. The large variants: pytest
tests/zoo/test_official_logits.py --all-variants
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")

import torch
from tests.zoo import official

from repzoo.zoo import catalog
from repzoo.zoo.checkpoints import Shapes, load, module_of, shapes
from repzoo.zoo.containers import Contents
from repzoo.zoo.naming import to_catalog_names

KNOWN: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "official_logits.json").read_text(encoding="utf-8")
)
LARGE = 10_000_000  # parameters of the deploy form


def naming(tag: str, own: Shapes) -> Callable[[str], str]:
    if tag.startswith("repvit"):
        return official.repvit_name(own)
    names = {
        "repvggplus": official.repvggplus_name,
        "repvgg": official.repvgg_name,
        "fasternet": official.fasternet_name,
    }
    return names.get(tag.partition("_")[0], str)


@pytest.mark.parametrize("tag", KNOWN)
def test_the_authors_code_computed_the_same_logits(
    tmp_path: Path, tag: str, request: pytest.FixtureRequest
) -> None:
    known = KNOWN[tag]
    if catalog.spec(
        known["model"]
    ).parameters_deploy >= LARGE and not request.config.getoption("--all-variants"):
        pytest.skip("large; run with --all-variants")
    form = (
        "deploy"
        if tag.endswith((".deploy", ".fused")) and "norep" not in tag
        else "train"
    )
    own = shapes(known["model"], form, 1000, not tag.endswith(".one_head"))
    rename = naming(tag, own)
    state = official.fill(
        {rename(name): shape for name, shape in own.items()}, known["gain"]
    )
    path = tmp_path / "w.pth"
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)
    loaded = load(path, known["model"])
    assert loaded.form == form
    with torch.no_grad():
        logits = (
            module_of(loaded)(
                torch.from_numpy(official.inputs((2, 3, known["size"], known["size"])))
            )
            .double()
            .numpy()
        )
    assert (
        float(np.abs(logits[0, :8] - known["first"]).max()) <= 1e-4 * known["largest"]
    )
    assert float(np.abs(logits.sum(1) - known["sum"]).max()) <= 1e-3 * known["largest"]


@pytest.mark.parametrize("source", ["paddle", "mmpretrain", "official"])
def test_the_se_blocks_of_d2se_keep_their_place_in_every_source(source: str) -> None:
    """By names and shapes alone, without memory for its 130 million weights."""
    own = shapes("repvgg_d2se", "train", 7, False)
    rename = (
        official.mmpretrain_name if source == "mmpretrain" else official.repvgg_name
    )
    table = {
        rename(name): np.broadcast_to(np.float32(0), shape)
        for name, shape in own.items()
    }
    if source == "paddle":
        kept = {
            key: value
            for key, value in table.items()
            if not key.endswith("num_batches_tracked")
        }
        table = {
            key.replace("running_mean", "_mean").replace(
                "running_var", "_variance"
            ): value
            for key, value in kept.items()
        }
        table["linear.weight"] = table["linear.weight"].T
    renamed = to_catalog_names(Contents("pickle", {"": table}), "repvgg")
    expected = {
        name: shape
        for name, shape in own.items()
        if source != "paddle" or not name.endswith("num_batches_tracked")
    }
    assert (
        renamed.scheme.source,
        {name: value.shape for name, value in renamed.table.items()},
    ) == (
        source,
        expected,
    )
    assert sum(".attn.fc" in name for name in renamed.table) > 50


def test_mmpretrains_swapped_figures_of_b0_are_marked_and_not_used() -> None:
    """Its metafile gives the parameters as FLOPs; loading compares shapes, and the catalog
    keeps its own counts.
    """
    row = catalog.spec("repvgg_b0")
    (figure,) = [figure for figure in row.figures if figure.source == "mmpretrain"]
    assert set(figure.wrong) == {"parameters", "flops"}
    learned = [
        shape
        for name, shape in shapes("repvgg_b0", "train", 1000, False).items()
        if "running" not in name and shape
    ]
    assert (
        sum(int(np.prod(shape)) for shape in learned)
        == row.parameters_train
        == 15_817_960
    )
