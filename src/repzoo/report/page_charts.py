"""Charts of the page as Vega-Lite specifications. They hold no data: the page adds its rows.

Source: the Vega-Lite 6 documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repzoo.report.charts import GRAY, ORANGE, SCHEMA, Spec

# Distinct for readers who are color-blind, on white and on dark paper (after Okabe and Ito).
COLORS = (ORANGE, "#0090D8", "#009E73", "#CC79A7", "#B38600", GRAY)
TOOLTIP = (
    "model",
    "precision",
    "quantizer",
    "engine",
    "host",
    "threads",
    "ms",
    "top1",
    "mb",
)


def trade_off(
    measure: str, titles: Mapping[str, str], precisions: Sequence[str]
) -> Spec:
    """Accuracy against `measure`, a point for each row.

    Fields of a row are those of `page_rows.Row`, and `front`: the rows among which it is on the
    Pareto front; null where it is not on it.

    Args:
        measure: a field such as "ms".
        titles: of fields, in the language of the page.
        precisions: that occur, in the order of the legend.
    """
    x: Spec = {"field": measure, "type": "quantitative", "title": titles[measure]}
    x["axis"] = {"tickCount": 8}
    y: Spec = {"field": "top1", "type": "quantitative", "title": titles["top1"]}
    y["scale"] = {"zero": False, "padding": 12}
    color = _color("precision", precisions)
    rule = {"type": "rule", "opacity": 0.35}
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.front != null"}],
            "mark": {"type": "line", "color": GRAY, "strokeDash": [4, 3]},
            "encoding": {"x": x, "y": y, "detail": {"field": "front"}},
        },
        {
            "transform": [{"filter": "datum.top1_low != null"}],
            "mark": rule,
            "encoding": {
                "x": x,
                "y": {**y, "field": "top1_low"},
                "y2": {"field": "top1_high"},
                "color": color,
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "cursor": "pointer"},
            "encoding": {
                "x": x,
                "y": y,
                "color": color,
                "shape": {"field": "engine", "type": "nominal", "title": None},
                "tooltip": [_tooltip(name, titles) for name in TOOLTIP],
            },
        },
    ]
    if measure == "ms":
        # Only a latency has an interval: sizes and counts are exact.
        layers.insert(2, _latency_interval(x, y, color, rule))
    return {**_frame(320), "layer": layers}


def _frame(height: int) -> Spec:
    """As wide as the page."""
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        # As strong as the points: those of an interval's mark would be pale. On top, since
        # beside the plot a long name would be cut.
        # A wider font than the one that the chart was laid out with must not reach the title.
        "config": {
            "legend": {"symbolOpacity": 1, "orient": "top"},
            "axisY": {"titlePadding": 12},
        },
    }


def _latency_interval(x: Spec, y: Spec, color: Spec, rule: Spec) -> Spec:
    return {
        "transform": [{"filter": "datum.ms_low != null"}],
        "mark": rule,
        "encoding": {
            "x": {**x, "field": "ms_low"},
            "x2": {"field": "ms_high"},
            "y": y,
            "color": color,
        },
    }


def _tooltip(name: str, titles: Mapping[str, str]) -> Spec:
    tip: Spec = {"field": name, "title": titles[name]}
    # Formatted in the chart only: the rows keep all digits.
    return {**tip, "format": ".4~g"} if name in ("ms", "top1", "mb") else tip


def _color(field: str, values: Sequence[str]) -> Spec:
    # A value keeps its color, whatever is filtered out.
    scale = {"domain": list(values), "range": list(COLORS[: len(values)])}
    return {"field": field, "type": "nominal", "title": None, "scale": scale}


def layer_noise(title: str, layer_title: str) -> Spec:
    """Signal-to-noise ratio of every layer, weights and activations apart.

    A row has `index` (place in the file's order of layers), `layer`, `side` and `db`.

    Args:
        title: of the axis of the ratio, in dB.
        layer_title: of the axis of the layers.
    """
    return {
        **_frame(200),
        "mark": {"type": "point", "filled": True, "size": 45},
        "encoding": {
            "x": {"field": "index", "type": "quantitative", "title": layer_title},
            "y": {"field": "db", "type": "quantitative", "title": title},
            "color": {"field": "side", "type": "nominal", "title": None},
            "shape": {"field": "side", "type": "nominal", "title": None},
            "tooltip": [{"field": name} for name in ("layer", "side", "db")],
        },
    }
