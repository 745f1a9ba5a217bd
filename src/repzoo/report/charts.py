"""Charts as Vega-Lite specifications, and their rendering to SVG and PNG.

A specification is plain data: a page draws it in the browser, and `svg` draws the same one here.
`python -m repzoo.report.charts docs/figures` renders those of the README from results/.
Source: the Vega-Lite 6 documentation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repzoo.errors import MissingExtra
from repzoo.measure import record
from repzoo.measure.record import Record, select
from repzoo.measure.results import PairedAccuracy
from repzoo.report import tables
from repzoo.report.card_facts import CardFacts
from repzoo.report.quantizer_comparison import newest_rows
from repzoo.storage import cached_file, write_atomically

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
VERSION = "6.4"  # of Vega-Lite, as vl-convert names it
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
# Variants of vendor_proof that it shows, of one vendor's quantizer.
VENDOR_TOOL = "rdk-x5"
SHOWN_VARIANTS = {
    "folded": "RDK X5's tool",
    "on grid": "RDK X5's tool, after harden",
}
FIRST_ENGINE = "onnxruntime"
FORMS = {"deploy": "float", "int8": "INT8"}


def quantizers(
    records: Sequence[Record[Any]],
    models: Sequence[str] = (),
    vendor: Sequence[Record[Any]] = (),
    engine: str = FIRST_ENGINE,
) -> Spec:
    """Top-1 of each quantizer's INT8 model as a bar with its interval; a line is the float model.

    Args:
        records: those of benchmarks/int8.py.
        models: names to show, in order; empty: all.
        vendor: those of benchmarks/vendor_proof.py, of which the RDK X5's tool is shown.
        engine: whose figures of `records` are shown.
    """
    rows = list(_quantizer_rows(records, engine))
    # Only what was judged on the same images may stand beside it.
    floats = {(row["model"], round(row["float"], 2)) for row in rows}
    for row in _vendor_rows(vendor):
        if (row["model"], round(row["float"], 2)) in floats:
            rows.append(row)
    if models:
        rows = [row for row in rows if row["model"] in models]
    facet = {
        "field": "model",
        "sort": list(models) or None,
        "title": "Top-1 in INT8 (bars) and in float (dashed)",
    }
    return {
        "$schema": SCHEMA,
        "data": {"values": rows},
        "facet": {"column": facet},
        "spec": {"width": {"step": 44}, "height": 200, "layer": _bar_layers()},
        "resolve": {"scale": {"x": "independent"}},  # not every tool ran every model
    }


def _quantizer_rows(
    records: Sequence[Record[Any]], engine: str
) -> Iterator[dict[str, Any]]:
    for row in newest_rows(records):
        measured = row.values.engines.get(engine)
        label = SHOWN_QUANTIZERS.get(row.values.recipe)
        if measured is None or label is None:
            continue
        yield {
            "model": str(row.artifact["name"]),
            "quantizer": label,
            "float": measured.float_top1,
            "int8": measured.float_top1 - measured.drop,
            "low": measured.float_top1 - measured.drop_high,
            "high": measured.float_top1 - measured.drop_low,
            "own": row.values.recipe == OWN,
        }


def _vendor_rows(records: Sequence[Record[Any]]) -> Iterator[dict[str, Any]]:
    for row in select(records, PairedAccuracy):
        second = row.artifact["second"]
        label = SHOWN_VARIANTS.get(second.get("variant", ""))
        values = row.values
        is_shown = row.engine["second"]["name"] == VENDOR_TOOL and label is not None
        if not is_shown or values.first_top1 is None:
            continue
        yield {
            "model": second["name"],
            "quantizer": label,
            "float": values.first_top1,
            "int8": values.first_top1 - values.drop,
            "low": values.first_top1 - values.drop_high,
            "high": values.first_top1 - values.drop_low,
            "own": second["variant"] == "on grid",
        }


def _bar_layers() -> list[Spec]:
    """Bars, their intervals, the float model's line, and figures above the bars."""
    order = [*SHOWN_QUANTIZERS.values(), *SHOWN_VARIANTS.values()]
    x: Spec = {"field": "quantizer", "type": "nominal", "sort": order, "title": None}
    x["axis"] = {"labelAngle": -30}
    y: Spec = {"type": "quantitative", "title": "Top-1 (%)"}
    y["scale"] = {"domain": [0, 100]}
    color = {"condition": {"test": "datum.own", "value": BLUE}, "value": ORANGE}
    bars = {"x": x, "y": {**y, "field": "int8"}, "color": color}
    intervals = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
    line = {"y": {**y, "field": "float", "aggregate": "max"}}
    text = {"field": "int8", "format": ".1f"}
    dashed = {"type": "rule", "strokeDash": [4, 3], "color": GRAY}
    figure = {"type": "text", "dy": -8, "fontSize": 11}
    return [
        {"mark": {"type": "bar", "width": {"band": 0.7}}, "encoding": bars},
        {"mark": "rule", "encoding": intervals},
        {"mark": dashed, "encoding": line},
        {
            "mark": figure,
            "encoding": {"x": x, "y": {**y, "field": "high"}, "text": text},
        },
    ]


def latency_and_accuracy(jobs: Sequence[CardFacts]) -> Spec:
    """Float and INT8 of each model: median latency of one image against Top-1."""
    points: list[dict[str, Any]] = []
    for facts in jobs:
        points.extend(_points(facts))
    x: Spec = {"field": "ms", "type": "quantitative", "scale": {"zero": True}}
    x["title"] = "latency of one image, one thread (ms)"
    y: Spec = {"field": "top1", "type": "quantitative", "title": "Top-1 (%)"}
    y["scale"] = {"zero": False, "padding": 16}
    pair = {"type": "line", "color": GRAY, "strokeDash": [2, 2]}
    name = {"type": "text", "dy": 16, "fontSize": 11}
    return {
        "$schema": SCHEMA,
        "width": 480,
        "height": 260,
        "data": {"values": points},
        "layer": [
            {
                "mark": pair,
                "encoding": {"x": x, "y": y, "detail": {"field": "model"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {"x": x, "y": y, **_form_encoding()},
            },
            {
                "transform": [{"filter": "datum.form == 'INT8'"}],
                "mark": name,
                "encoding": {"x": x, "y": y, "text": {"field": "model"}},
            },
        ],
    }


def _points(facts: CardFacts) -> Iterator[dict[str, Any]]:
    for form, label in FORMS.items():
        if form in facts.single and form in facts.accuracy:
            yield {
                "model": facts.name.partition(".")[0],
                "form": label,
                "ms": facts.single[form].p50_ms,
                "top1": facts.accuracy[form].top1,
            }


def _form_encoding() -> Spec:
    """Color and shape of float and INT8, in one legend, and what a page shows of a point."""
    labels = list(FORMS.values())
    scale = {"domain": labels, "range": [ORANGE, BLUE]}
    shown = ("model", "form", "ms", "top1")
    return {
        "color": {"field": "form", "title": None, "scale": scale},
        "shape": {"field": "form", "title": None, "scale": {"domain": labels}},
        "tooltip": [{"field": name} for name in shown],
    }


def browser_bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one JavaScript, which sets `window.vegaEmbed`.

    It is made once and kept in the cache, since that takes seconds.

    Raises:
        MissingExtra: vl-convert is not installed.
    """
    converter = _converter()

    def make(path: Path) -> None:
        """Write the bundle."""
        bundle: str = converter.javascript_bundle(vl_version=VERSION)
        path.write_text(bundle, "utf-8")

    name = f"vega-lite-{VERSION}-{converter.__version__}.js"
    return cached_file("charts", name, make).read_text("utf-8")


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


@dataclass(frozen=True)
class Chart:
    """A chart. Jupyter draws it where the extra `page` is installed.

    spec  in Vega-Lite, for other tools
    """

    spec: Spec

    def svg(self) -> str:
        """The chart as SVG.

        Raises:
            MissingExtra: vl-convert is not installed.
        """
        return svg(self.spec)

    def png(self, scale: float = 1.5) -> bytes:
        """The chart as PNG, `scale` pixels for each unit.

        Raises:
            MissingExtra: vl-convert is not installed.
        """
        return png(self.spec, scale)

    def __repr__(self) -> str:
        """What to do with it; the specification would fill the screen."""
        return "<Chart: .svg() and .png() draw it>"

    def _repr_png_(self) -> bytes | None:
        """The chart as Jupyter shows it; without vl-convert its `repr` is shown."""
        try:
            return self.png()
        except MissingExtra:
            return None


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
        "int8-accuracy": quantizers(
            record.read(results / "int8.jsonl"),
            models,
            record.read(results / "vendor_proof.jsonl"),
        ),
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
