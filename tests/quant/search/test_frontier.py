"""The frontier of latency, drop and size: known answers, and what its folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repzoo.errors import InputError
from repzoo.measure.race_result import RaceEntry, RaceSummary
from repzoo.quant.search.frontier import Point, mark_frontier
from repzoo.report.frontier import chart, table, write_frontier
from repzoo.storage import new_folder, require_empty_folder


def point(name: str, ms: float, drop: float, size: int, **changes: Any) -> Point:
    values: dict[str, Any] = {
        "engine": "onnxruntime",
        "form": "int8",
        "stage": "gptq",
        "placement": "a | b",
        "ms_low": ms * 0.9,
        "ms_high": ms * 1.1,
        "verdict": "holds",
        **changes,
    }
    return Point(name, ms=ms, drop=drop, bytes=size, **values)


POINTS = [
    point("float", 10.0, 0.0, 4000, form="deploy"),
    point("small", 9.0, 0.5, 1000),
    point("fast", 5.0, 0.2, 2000),
    point("beaten", 6.0, 0.2, 2000),
    point("twin", 5.0, 0.2, 2000),
]
RACE = RaceSummary(
    objective="throughput",
    clients=4,
    entries=(RaceEntry(engine="onnxruntime", version="1", form="deploy"),),
    winner=0,
    reason="a reason",
)


def test_a_point_is_on_the_frontier_unless_another_is_as_good_and_better() -> None:
    marked = mark_frontier(POINTS)
    on_frontier = {point.file for point in marked if point.on_frontier}
    # Equal points do not beat each other.
    assert on_frontier == {"float", "small", "fast", "twin"}
    assert [point.ms for point in marked] == sorted(point.ms for point in POINTS)
    assert [point.file for point in marked if not point.on_frontier] == [""]


def test_the_table_and_the_chart_show_all_points() -> None:
    marked = mark_frontier(POINTS)
    text = table(marked, RACE)
    frontier, others = text.split("Not on the frontier:")
    assert "with 4 clients" in frontier
    for name in ("float", "small", "fast", "twin"):
        assert f"| `{name}` |" in frontier
    assert "6.00" in others
    assert "a \\| b" in text  # a placement's name cannot break the table
    rows = chart(marked)["data"]["values"]
    assert [row["ms"] for row in rows] == [point.ms for point in marked]
    assert sum(row["frontier"] for row in rows) == 4


def test_the_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with new_folder(folder, "--pareto") as aside:
        write_frontier(aside, mark_frontier(POINTS), RACE)
    names = {path.name for path in folder.iterdir()}
    assert names == {"pareto.md", "records.jsonl", "pareto.vl.json"}
    with pytest.raises(InputError, match=r"is not empty.*--pareto"):
        require_empty_folder(folder, "--pareto")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(tmp_path / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def _interrupted(folder: Path) -> None:
    with new_folder(folder, "--pareto") as aside:
        (aside / "half.onnx").touch()
        raise KeyboardInterrupt
