"""The YAML before a card, read by huggingface_hub's own model card, without a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from tests.report.test_card import NASTY, half_records, records

from repzoo.report import card, card_facts
from repzoo.report.card import CardContext

hub = pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")


def parsed(text: str) -> Any:
    """The card as huggingface_hub reads it; an invalid model-index is an error there."""
    return hub.ModelCard(text, ignore_metadata_errors=False)


@pytest.mark.parametrize("file", card.LANGUAGES.values())
def test_both_cards_are_model_cards_with_the_accuracy_of_each_form(file: str) -> None:
    context = CardContext(license="apache-2.0")
    text = card.render([*records(), *half_records()], [], context)[file]
    read = parsed(text)
    data = read.data
    assert isinstance(data, hub.ModelCardData)
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "repzoo",
        "image-classification",
        "apache-2.0",
    )
    assert {"onnx", "int8", "fp16"} <= set(data.tags)
    assert data.model_name == "net.digits"
    assert all(isinstance(item, hub.EvalResult) for item in data.eval_results)
    values = {item.metric_name: item.metric_value for item in data.eval_results}
    facts = card_facts.summary(records())
    assert values["Top-1, float (%)"] == round(facts.accuracy["deploy"].top1, 2)
    assert values["Top-1, INT8 (%)"] == round(facts.accuracy["int8"].top1, 2)
    assert values["Top-5, INT8 (%)"] == round(facts.accuracy["int8"].top5, 2)
    assert values["Top-1, FP16 (%)"] == 310
    (identifier,) = {item.dataset_type for item in data.eval_results}
    assert facts.data_name in {item.dataset_name for item in data.eval_results}
    assert identifier.replace("-", "").isalnum()
    # What a person reads is not part of it.
    assert read.text.lstrip().splitlines()[0].startswith(("English |", "[English]"))


def test_a_license_that_nobody_states_is_unknown() -> None:
    assert parsed(card.render(records(), [])["card.md"]).data.license == "unknown"


@pytest.mark.parametrize("license_id", ["MIT", "a: b", "mit\nx: y", "-"])
def test_what_is_no_identifier_of_a_license_is_refused(
    run: Callable[..., Any], license_id: str
) -> None:
    ran = run("card", "--license", license_id)
    assert (ran.code, ran.out) == (2, "")
    assert "apache-2.0" in ran.err


@pytest.mark.parametrize(
    "name", [NASTY, "---\nlicense: mit", "a: [b", "'", "\u202e", "", "!!python/x"]
)
def test_names_cannot_add_to_the_metadata(name: str) -> None:
    rows = records(name or "m", name or "m")
    for index, row in enumerate(rows):
        if row.kind in ("paired", "accuracy"):
            rows[index] = dataclasses.replace(row, data={**row.data, "name": name})
    text = card.render(rows, [])["card.md"]
    block = text.removeprefix("---\n").partition("\n---\n")[0]
    assert set(yaml.safe_load(block)) == {
        "library_name",
        "pipeline_tag",
        "license",
        "tags",
        "metrics",
        "model-index",
    }
    data = parsed(text).data
    assert data.license == "unknown"
    assert {item.dataset_name for item in data.eval_results} == {name}
