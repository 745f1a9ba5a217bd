"""The chart of a quantization: how noisy each layer was in every stage that was tried."""

from __future__ import annotations

from typing import Any

from repzoo.printable import one_line
from repzoo.quant.search.gate import QuantReport
from repzoo.report.charts import BLUE, GRAY, ORANGE, SCHEMA, Spec

MAX_LAYERS = 20  # with the lowest ratio in any stage: more names would not be legible
COLORS = (ORANGE, BLUE, "#009E73", "#CC79A7", "#B38600", GRAY)


def stages(report: QuantReport) -> Spec:
    """A row for each of the noisiest layers, a point for each stage: its SQNR, the worse side."""
    points = _points(report)
    names = list(dict.fromkeys(point["stage"] for point in points))
    worst: dict[str, float] = {}
    for point in points:
        layer = point["layer"]
        worst[layer] = min(point["db"], worst.get(layer, point["db"]))
    shown = sorted(worst, key=lambda layer: worst[layer])[:MAX_LAYERS]
    x: Spec = {"field": "db", "type": "quantitative"}
    x["title"] = "signal-to-noise ratio (dB); further left is worse"
    y: Spec = {"field": "layer", "type": "nominal", "sort": shown, "title": None}
    y["axis"] = {"grid": True, "labelLimit": 260}
    scale = {"domain": names, "range": list(COLORS[: len(names)])}
    color = {"field": "stage", "title": "stage", "scale": scale}
    shape = {"field": "stage", "title": "stage", "scale": {"domain": names}}
    return {
        "$schema": SCHEMA,
        "width": 420,
        "height": {"step": 18},
        "background": "white",
        "data": {"values": [point for point in points if point["layer"] in shown]},
        "mark": {"type": "point", "filled": True, "size": 70},
        "encoding": {"x": x, "y": y, "color": color, "shape": shape},
    }


def _points(report: QuantReport) -> list[dict[str, Any]]:
    points = []
    for candidate in report.candidates:
        for layer in candidate.layers:
            db = round(min(layer.weight_db, layer.activation_db), 1)
            name = one_line(layer.layer)
            points.append({"stage": candidate.stage, "layer": name, "db": db})
    return points
