"""Charts as Vega-Lite specifications, and their rendering to SVG and PNG.

A specification is plain data: a page draws it in the browser, and `svg` draws the same one here.
`python -m repzoo.report.charts docs/figures` renders those of the README from results/.
Source: the Vega-Lite 5 documentation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repzoo.errors import MissingExtra
from repzoo.measure import record
from repzoo.measure.record import Record
from repzoo.report import tables
from repzoo.report.card import CardFacts
from repzoo.report.quantizer_comparison import newest_rows
from repzoo.storage import write_atomically

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
VERSION = "5.20"  # of Vega-Lite, as vl-convert names it
# Distinct for readers who are color-blind, and on white and dark paper (Okabe and Ito).
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#888888"
OWN = "repzoo"
# Rows of a comparison that the README's figure shows, and what it calls them.
SHOWN_QUANTIZERS = {
    "repzoo": "repzoo",
    "ort-static": "ONNX Runtime",
    "ort-static-per-tensor": "ONNX Runtime, per tensor",
    "nncf-default": "NNCF",
}
FIRST_ENGINE = "onnxruntime"


def quantizers(
    records: Sequence[Record[Any]],
    models: Sequence[str] = (),
    engine: str = FIRST_ENGINE,
) -> Spec:
    """Top-1 of each quantizer's INT8 model as a bar with its interval; a line is the float model.

    Args:
        records: those of benchmarks/int8.py.
        models: names to show, in order; empty: all.
        engine: whose figures are shown.
    """
    rows: list[dict[str, Any]] = []
    for row in newest_rows(records):
        name = str(row.artifact["name"])
        measured = row.values.engines.get(engine)
        label = SHOWN_QUANTIZERS.get(row.values.recipe)
        if measured is None or label is None or (models and name not in models):
            continue
        rows.append(
            {
                "model": name,
                "quantizer": label,
                "float": measured.float_top1,
                "int8": measured.float_top1 - measured.drop,
                "low": measured.float_top1 - measured.drop_high,
                "high": measured.float_top1 - measured.drop_low,
                "own": row.values.recipe == OWN,
            }
        )
    order = list(SHOWN_QUANTIZERS.values())
    x: Spec = {"field": "quantizer", "type": "nominal", "sort": order, "title": None}
    x["axis"] = {"labelAngle": -30}
    scale = {"domain": [0, 100]}
    y = {"type": "quantitative", "title": "Top-1 (%)", "scale": scale}
    color = {
        "condition": {"test": "datum.own", "value": BLUE},
        "value": ORANGE,
    }
    layers = [
        {
            "mark": {"type": "bar", "width": {"band": 0.7}},
            "encoding": {"x": x, "y": {**y, "field": "int8"}, "color": color},
        },
        {
            "mark": "rule",
            "encoding": {
                "x": x,
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
            },
        },
        {
            "mark": {"type": "rule", "strokeDash": [4, 3], "color": GRAY},
            "encoding": {"y": {**y, "field": "float", "aggregate": "max"}},
        },
        {
            "mark": {"type": "text", "dy": -8, "fontSize": 11},
            "encoding": {
                "x": x,
                "y": {**y, "field": "high"},
                "text": {"field": "int8", "format": ".1f"},
            },
        },
    ]
    return {
        "$schema": SCHEMA,
        "data": {"values": rows},
        "facet": {
            "column": {
                "field": "model",
                "sort": list(models) or None,
                "title": "INT8 (bars) and float (dashed)",
            }
        },
        "spec": {"width": 220, "height": 200, "layer": layers},
    }


def latency_and_accuracy(jobs: Sequence[CardFacts]) -> Spec:
    """Float and INT8 of each model: median latency of one image against Top-1."""
    points: list[dict[str, Any]] = []
    for facts in jobs:
        for form, label in (("deploy", "float"), ("int8", "INT8")):
            if form not in facts.single or form not in facts.accuracy:
                continue
            points.append(
                {
                    "model": facts.name.partition(".")[0],
                    "form": label,
                    "ms": facts.single[form].p50_ms,
                    "top1": facts.accuracy[form].top1,
                }
            )
    x = {
        "field": "ms",
        "type": "quantitative",
        "title": "latency of one image, one thread (ms)",
        "scale": {"zero": True},
    }
    y = {
        "field": "top1",
        "type": "quantitative",
        "title": "Top-1 (%)",
        "scale": {"zero": False, "padding": 16},
    }
    forms = {"domain": ["float", "INT8"], "range": [ORANGE, BLUE]}
    return {
        "$schema": SCHEMA,
        "width": 480,
        "height": 260,
        "data": {"values": points},
        "layer": [
            {
                "mark": {"type": "line", "color": GRAY, "strokeDash": [2, 2]},
                "encoding": {"x": x, "y": y, "detail": {"field": "model"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": {"field": "form", "title": None, "scale": forms},
                    "shape": {
                        "field": "form",
                        "title": None,
                        "scale": {"domain": forms["domain"]},
                    },
                    "tooltip": [
                        {"field": name} for name in ("model", "form", "ms", "top1")
                    ],
                },
            },
            {
                "transform": [{"filter": "datum.form == 'INT8'"}],
                "mark": {"type": "text", "dy": 16, "fontSize": 11},
                "encoding": {"x": x, "y": y, "text": {"field": "model"}},
            },
        ],
    }


def svg(spec: Spec) -> str:
    """`spec` drawn as SVG.

    Raises:
        MissingExtra: vl-convert is not installed.
    """
    drawn: str = _converter().vegalite_to_svg(json.dumps(spec), vl_version=VERSION)
    return drawn


def png(spec: Spec, scale: float = 2.0) -> bytes:
    """`spec` drawn as PNG, `scale` pixels for each unit.

    Raises:
        MissingExtra: vl-convert is not installed.
    """
    drawn: bytes = _converter().vegalite_to_png(
        json.dumps(spec), vl_version=VERSION, scale=scale
    )
    return drawn


def _converter() -> Any:
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise MissingExtra("drawing charts", "page") from error
    return vl_convert


def readme_charts(results: Path) -> dict[str, Spec]:
    """The figures of the README by file name, without suffix."""
    models = ("repvgg_a0.clothing", "efficientnet_lite0")
    jobs = tables.newest_jobs(record.read(results / "clothing.jsonl"))
    return {
        "int8-accuracy": quantizers(record.read(results / "int8.jsonl"), models),
        "latency-accuracy": latency_and_accuracy(jobs),
    }


def main() -> None:
    """Draw the README's figures into a folder."""
    parser = argparse.ArgumentParser(description="Draw the README's figures as SVG.")
    parser.add_argument("folder", type=Path, help="where the .svg files are written")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    for name, spec in readme_charts(options.results).items():
        write_atomically(options.folder / f"{name}.svg", svg(spec))


if __name__ == "__main__":
    main()
