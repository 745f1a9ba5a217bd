"""The folder of `repzoo quantize --pareto`: a table, Records and a chart beside the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repzoo.measure import record
from repzoo.measure.race_result import RaceSummary
from repzoo.printable import code_span, escape_markdown
from repzoo.quant.search.frontier import Point
from repzoo.report import figures
from repzoo.report.charts import BLUE, FORMS, GRAY, ORANGE, SCHEMA, Spec
from repzoo.storage import json_text, write_together

TABLE = "pareto.md"
RECORDS = "records.jsonl"
CHART = "pareto.vl.json"
HEADINGS = (
    "File",
    "Engine",
    "Form",
    "Made by",
    "Latency (ms)",
    "95 % interval",
    "Drop (points)",
    "Size (kB)",
    "Verdict",
)
TEXT = """# Latency, drop and size

Less of each is better. Files on the frontier: nothing that was measured is as good in all three and
better in one. The drop is on the images that candidates were chosen by, as expected on new images
where the logits are known. Latencies are those of the race of engines{load}. What was not in it
has its ratio to float on the same engine, times float's time there.
"""


def write_frontier(
    folder: Path, points: Sequence[Point], race: RaceSummary
) -> list[Path]:
    """Write the table, the Records and the chart specification (Vega-Lite) into `folder`."""
    lines: list[str] = []
    for point in points:
        lines.extend(record.line(item) + "\n" for item in point.records)
    contents = [
        (folder / TABLE, table(points, race)),
        (folder / RECORDS, "".join(lines)),
        (folder / CHART, json_text(chart(points), indent=1) + "\n"),
    ]
    write_together(contents)
    return [path for path, _ in contents]


def table(points: Sequence[Point], race: RaceSummary) -> str:
    """The points on the frontier, then all others, as Markdown."""
    load = str(race.load)
    on_frontier = [_cells(point) for point in points if point.on_frontier]
    others = [_cells(point) for point in points if not point.on_frontier]
    lines = [
        TEXT.format(load=f", with {load}" if load else ""),
        *figures.markdown_table(HEADINGS, on_frontier),
    ]
    if others:
        lines += ["", "Not on the frontier:", ""]
        lines += figures.markdown_table(HEADINGS, others, omitted="File")
    return "\n".join(lines) + "\n"


def _cells(point: Point) -> list[str]:
    made_by = ", ".join(filter(None, (point.stage, point.placement)))
    return [
        code_span(point.file),
        escape_markdown(point.engine),
        FORMS[point.form],
        escape_markdown(made_by) or figures.ABSENT,
        figures.ms(point.ms),
        figures.span(figures.ms, point.ms_low, point.ms_high),
        figures.points(point.drop),
        f"{point.bytes / 1000:.0f}",
        point.verdict or figures.ABSENT,
    ]


def chart(points: Sequence[Point]) -> Spec:
    """Latency against drop; the area of a point is the size of its file."""
    rows: list[dict[str, Any]] = []
    for point in points:
        rows.append(
            {
                "file": point.file,
                "engine": point.engine,
                "form": FORMS[point.form],
                "ms": point.ms,
                "drop": point.drop,
                "kB": point.bytes / 1000,
                "frontier": point.on_frontier,
            }
        )
    x: Spec = {"field": "ms", "type": "quantitative", "title": "latency (ms)"}
    y: Spec = {"field": "drop", "type": "quantitative", "title": "drop (points)"}
    y["scale"] = {"padding": 16}
    scale = {"domain": list(FORMS.values()), "range": [ORANGE, BLUE]}
    line = {"type": "line", "interpolate": "step-after", "color": GRAY}
    shown = ("file", "engine", "form", "ms", "drop", "kB")
    encoding = {
        "x": x,
        "y": y,
        "size": {"field": "kB", "type": "quantitative", "title": "size (kB)"},
        "color": {"field": "form", "title": None, "scale": scale},
        "shape": {"field": "engine", "title": None},
        "opacity": {"condition": {"test": "datum.frontier", "value": 1}, "value": 0.3},
        "tooltip": [{"field": name} for name in shown],
    }
    return {
        "$schema": SCHEMA,
        "width": 480,
        "height": 260,
        "data": {"values": rows},
        "layer": [
            {
                "transform": [{"filter": "datum.frontier"}],
                "mark": line,
                "encoding": {"x": x, "y": y},
            },
            {"mark": {"type": "point", "filled": True}, "encoding": encoding},
        ],
    }
