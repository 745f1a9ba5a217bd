"""The YAML before a card, by which Hugging Face reads it as a model card.

Its keys are those of the model card specification of huggingface/hub-docs (modelcard.md); the
results stand in `model-index`, from which `huggingface_hub.ModelCard` reads them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:  # the card imports this module
    from repzoo.report.card_facts import CardFacts

UNKNOWN_LICENSE = "unknown"  # an identifier of Hugging Face's list
FORM_NAMES = {"deploy": "float", "int8": "INT8", "fp16": "FP16", "bf16": "BF16"}


def front_matter(facts: CardFacts, license_id: str = "") -> str:
    """The YAML block of a card, with its fences.

    license_id  as Hugging Face's list has it, such as apache-2.0; "" where it is not known
    """
    metadata = {
        "library_name": "repzoo",
        "pipeline_tag": "image-classification",
        "license": license_id or UNKNOWN_LICENSE,
        "tags": _tags(facts),
        "metrics": ["accuracy"],
        "model-index": [{"name": facts.name, "results": [_result(facts)]}],
    }
    # Aliases would be read as such, but no other card has them.
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---\n"


def _tags(facts: CardFacts) -> list[str]:
    tags = ["onnx", "image-classification", "re-parameterization", "quantization"]
    forms = [form for form in facts.accuracy_forms if form != "deploy"]
    return [*tags, *forms]


def _result(facts: CardFacts) -> dict[str, Any]:
    """All metrics on the evaluated images."""
    # The type is an identifier, the name is for people.
    identifier = re.sub(r"[^\w.-]+", "-", facts.data_name, flags=re.ASCII).strip("-")
    return {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": identifier or "images", "name": facts.data_name},
        "metrics": _metrics(facts),
    }


def _metrics(facts: CardFacts) -> list[dict[str, Any]]:
    metrics = []
    for form in facts.accuracy_forms:
        values = facts.accuracy[form]
        figures = {"Top-1": values.top1}
        if facts.has_top5:
            figures["Top-5"] = values.top5
        for name, value in figures.items():
            metrics.append(
                {
                    "type": "accuracy",
                    "name": f"{name}, {FORM_NAMES[form]} (%)",
                    "value": round(float(value), 2),
                }
            )
    return metrics
