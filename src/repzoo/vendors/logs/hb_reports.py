"""Reports that hb_mapper makertbin writes beside the .bin: PREFIX_quant_info.json, SUBGRAPH.json
and SUBGRAPH.html.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repzoo.errors import InputError
from repzoo.vendors.logs.hb_mapper import Estimate
from repzoo.vendors.logs.text import ABSENT, MAX_NAME

MAX_NODES = 100_000
HTML_OBJECT = b"jsonObject:"
SUMMARY_KEYS = ("FPS", "DDR bytes per frame")


@dataclass(frozen=True)
class NodeQuantization:
    """How a node of the ONNX model was quantized.

    Attributes:
        name: of the node, in full.
        op_type: of the node in the calibrated model.
        thresholds: of each input, one value or one for each channel; empty for inputs in float.
        cosine: similarity of its output with the float model's; None where it was not measured.
    """

    name: str
    op_type: str
    thresholds: tuple[tuple[float, ...], ...]
    cosine: float | None


@dataclass(frozen=True)
class QuantInfo:
    """quant_info.json: every node of the model, in its order."""

    nodes: tuple[NodeQuantization, ...]


@dataclass(frozen=True)
class SubgraphReport:
    """The compiler's summary of one subgraph.

    Attributes:
        estimate: of its speed.
        name: of the subgraph.
        march: architecture as hbdk names it; "B25E" is RDK X5's.
        version: of hbdk.
        operations: multiplications and additions of one frame.
    """

    estimate: Estimate
    name: str
    march: str
    version: str
    operations: int | None


def is_quant_info(document: Any) -> bool:
    """Whether a JSON document has the form of quant_info.json."""
    if not isinstance(document, dict) or not document:
        return False
    first = next(iter(document.values()))
    return (
        isinstance(first, dict) and {"thresholds", "cosine_similarity"} <= first.keys()
    )


def is_subgraph(document: Any) -> bool:
    """Whether a JSON document has the form of a subgraph's report."""
    return isinstance(document, dict) and all(
        key in _summary(document) for key in SUMMARY_KEYS
    )


def json_of(data: bytes) -> Any:
    """The JSON document in a file, or in the page SUBGRAPH.html; None where there is none."""
    start = data.find(HTML_OBJECT)
    text = data[start + len(HTML_OBJECT) :] if start >= 0 else data
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return None
    try:
        document, _ = json.JSONDecoder().raw_decode(text.decode("utf-8-sig").lstrip())
    except (ValueError, RecursionError):
        return None
    return document


def parse_quant_info(document: Any, name: str) -> QuantInfo:
    """quant_info.json as a dataclass; `name` is of the file.

    Raises:
        InputError: a node without the fields, or with values of another type.
    """
    if len(document) > MAX_NODES:
        raise InputError(f"{name} has more than {MAX_NODES:,} nodes; no model has that")
    nodes = []
    for node, fields in document.items():
        try:
            nodes.append(_node(str(node), fields))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{name} says of {str(node)[:80]!r} what hb_mapper does not write; expected type, "
                "thresholds and cosine_similarity: give the file as the tool wrote it"
            ) from None
    return QuantInfo(tuple(nodes))


def parse_subgraph(document: Any, name: str) -> SubgraphReport:
    """A subgraph's report as a dataclass; `name` is of the file.

    Raises:
        InputError: figures that are no positive numbers.
    """
    summary = _summary(document)
    try:
        fps = _positive(summary["FPS"])
        latency_ms = _latency_ms(summary)
        ddr_bytes = int(_positive(summary["DDR bytes per frame"]))
        operations = summary.get("BPU OPs per frame (effective)")
        count = int(_positive(operations)) if operations is not None else None
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{name} is not as hbdk writes it; expected FPS, latency (us) and DDR bytes per frame "
            "as numbers"
        ) from None
    return SubgraphReport(
        estimate=Estimate(fps, latency_ms, ddr_bytes),
        name=str(summary.get("model name", ""))[:MAX_NAME],
        march=str(summary.get("BPU march", ""))[:MAX_NAME],
        version=str(summary.get("HBDK version", ""))[:MAX_NAME],
        operations=count,
    )


def _summary(document: Mapping[str, Any]) -> Mapping[str, Any]:
    # The .json has a level more than the .html.
    summary = document.get("summary", document)
    return summary if isinstance(summary, dict) else {}


def _latency_ms(summary: Mapping[str, Any]) -> float:
    # In milliseconds hbdk keeps two decimals only.
    if "latency (us)" in summary:
        return round(_positive(summary["latency (us)"]) / 1000, 9)
    return _positive(summary["latency (ms)"])


def _node(name: str, fields: Mapping[str, Any]) -> NodeQuantization:
    thresholds = []
    for values in fields["thresholds"]:
        thresholds.append(tuple(_finite(value) for value in values))
    text = str(fields["cosine_similarity"]).strip()
    cosine = None if text.casefold() in ABSENT else _finite(text)
    if cosine is not None and abs(cosine) > 1.001:
        raise ValueError("not a cosine")
    return NodeQuantization(
        name[:MAX_NAME], str(fields["type"])[:MAX_NAME], tuple(thresholds), cosine
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _positive(value: Any) -> float:
    number = _finite(value)
    if number <= 0 or isinstance(value, bool):
        raise ValueError("not positive")
    return number
