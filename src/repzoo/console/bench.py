"""The view of `repzoo bench`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from repzoo.console.output import View, columned
from repzoo.measure.record import Record, to_json
from repzoo.measure.results import Latency, LatencyRatio
from repzoo.measure.sweep import SweepResult
from repzoo.report import card as cards

NUMBERS = ("threads", "streams", "batch")


def bench(swept: SweepResult) -> View:
    """What all cases share, a row for each, a sentence for each comparison; what was left out and what is to be doubted as remarks."""
    runs, ratios = swept.records, swept.ratios
    rows = [
        {
            "file": one.artifact["name"],
            "engine": one.engine["name"],
            **dataclasses.asdict(one.values.setting),
        }
        for one in runs
    ]
    kept = [key for key in rows[0] if len({row[key] for row in rows}) > 1]
    same = ", ".join(f"{key} {value}" for key, value in rows[0].items() if key not in kept)
    table = columned(
        *(f">{key}" if key in NUMBERS else key for key in kept), ">p50 ms", ">p90", ">p99", ">FPS"
    )
    for one, row in zip(runs, rows, strict=True):
        values = one.values
        times = (cards.ms(value) for value in (values.p50_ms, values.p90_ms, values.p99_ms))
        table.add_row(*(str(row[key]) for key in kept), *times, cards.rate(values.fps))
    left = [str(one) for one in swept.left_out]
    lines = [*_mlperf(runs), *(_compared(one, _differing(ratios)) for one in ratios)]
    return View(_document(swept), same, table, *lines, remarks=[*left, *swept.remarks])


def _document(swept: SweepResult) -> dict[str, Any]:
    runs = [
        {
            "file": one.artifact["name"],
            "engine": one.engine["name"],
            "version": one.engine["version"],
            **to_json(one.values),
            **one.samples,
        }
        | {"host": one.host}
        for one in swept.records
    ]
    ratios = [{**_sides(one), **to_json(one.values)} for one in swept.ratios]
    left = [dataclasses.asdict(one) for one in swept.left_out]
    return {
        "runs": runs,
        "ratios": ratios,
        "left_out": left,
        "remarks": swept.remarks,
        "interrupted": swept.interrupted,
    }


def _mlperf(runs: Sequence[Record[Latency]]) -> list[str]:
    """MLPerf's figure of each single-stream and multi-stream run, where the queries suffice for it."""
    lines = []
    for one in runs:
        stopping = one.values.early_stopping
        if stopping is None:
            continue
        figure = f"needs more than {one.values.samples} queries"
        if stopping.ms:
            figure = f"{cards.ms(stopping.ms)} ms"
        rank = f"p{100 * stopping.percentile:.0f} by MLPerf's early stopping"
        name = f"{one.artifact['name']} on {one.engine['name']}"
        lines.append(f"{name}, {one.values.setting.scenario}: {rank} {figure}")
    return lines


def _sides(one: Record[LatencyRatio]) -> dict[str, str]:
    first, second = (one.artifact[side]["name"] for side in ("first", "second"))
    engines = {"first_engine": one.engine["name"], "second_engine": one.engine["second"]["name"]}
    return {"first": first, "second": second, **engines}


def _differing(ratios: Sequence[Record[LatencyRatio]]) -> tuple[bool, bool]:
    """Whether sentences must name engines, and settings, to be told apart."""
    engines = {
        name for one in ratios for key, name in _sides(one).items() if key.endswith("engine")
    }
    return len(engines) > 1, len({one.values.setting for one in ratios}) > 1


def _compared(one: Record[LatencyRatio], differing: tuple[bool, bool]) -> str:
    """Times as long, or for offline times the images a second; a winner only where the interval excludes 1."""
    sides, values = _sides(one), one.values
    first, second = (
        sides[side] + (f" on {sides[side + '_engine']}" if differing[0] else "")
        for side in ("first", "second")
    )
    offline = values.setting.scenario == "offline"
    ratio, low, high = values.ratio, values.ratio_low, values.ratio_high
    verb, unit = "takes", "times as long as"
    if offline:
        ratio, low, high = values.fps_ratio, values.fps_ratio_low, values.fps_ratio_high
        verb, unit = "does", "times the images a second of"
    undecided = (
        "the machine was too busy to say which engine is faster"
        if values.busy
        else "which is faster is not decided"
    )
    verdict = {"first": "faster", "second": "slower", None: undecided}[values.faster]
    where = f"{values.setting}: " if differing[1] else ""
    interval = f"95 % interval {low:.3f} .. {high:.3f}"
    return f"{where}{first} {verb} {ratio:.3f} {unit} {second} ({interval}): {verdict}"
