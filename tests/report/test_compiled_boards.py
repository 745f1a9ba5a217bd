"""The table of compiled models: figures side by side, correlations, variants, missing models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repzoo.errors import InputError
from repzoo.graph.tools.cost_result import Cost
from repzoo.measure import record
from repzoo.measure.board import BoardLatency
from repzoo.measure.record import Record
from repzoo.report import compiled_boards, tables
from repzoo.report.compiled_boards import FOLDED, TRAINING

PAGE = "before\n<!-- table: boards -->\nold\n<!-- end -->\nafter\n"


def compiled(
    model: str, latency: float, variant: str = FOLDED, cpu: int = 0
) -> list[Record[Any]]:
    """The Records of one model."""
    estimate = BoardLatency(
        target="rdk-x5",
        source="compiler estimate",
        latency_ms=latency,
        fps=1000 / latency,
        accelerator_nodes=100,
        cpu_nodes=cpu,
    )
    cost = Cost(4_050_000, 142, 1, 1, {}, {})
    data = {"optimize_level": "O3"}
    identity = {"name": model, "variant": variant}
    samples = {"cpu_operators": ["Reshape"] * cpu}
    return [
        Record(identity, estimate, data=data, samples=samples),
        Record(identity, cost, data=data),
    ]


def test_the_table_shows_estimates_beside_published_figures(tmp_path: Path) -> None:
    rows = [
        *compiled("repvgg_a0", 1.0),
        *compiled("repghostnet_100", 9.0),
        *compiled("repghostnet_100", 0.62, cpu=2),  # the newest counts
        *compiled("fasternet_t0", 0.5),
        *compiled("repghostnet_100", 0.8, "another"),
        *compiled("repghostnet_100", 0.7, TRAINING),
    ]
    record.append(tmp_path / "boards.jsonl", rows)
    document = tables.render(PAGE, tmp_path, "en")
    assert (
        "| repghostnet_100 | 4.05 | 100 | 2 (Reshape) | 0.620 | 1610 | 1.55 | 965 | 0.93 |"
        in document
    )
    # Published: 1.41 < 1.55 < 1.85 ms, in the order of the estimates; and 1135 > 965 > 758 FPS.
    assert "latency of 3 models: Pearson 0.9" in document
    assert document.count("of ranks 1.000") == 2
    assert "Not compiled yet: repvit_m0_9, " in document
    variants = document[document.index("| Model | Variant |") :].splitlines()[2:5]
    assert [line.split(" | ")[:2] for line in variants] == [
        ["| repghostnet_100", TRAINING],
        ["| repghostnet_100", FOLDED],
        ["| repghostnet_100", "another"],
    ]
    assert tables.render(document, tmp_path, "en") == document


def test_correlations_have_known_values() -> None:
    assert compiled_boards.ranks([3.0, 1.0, 3.0, 9.0]) == [2.5, 1.0, 2.5, 4.0]
    pairs = [(1.0, 1.0), (2.0, 8.0), (3.0, 27.0)]
    pearson, ranked = compiled_boards.correlation(pairs)
    # Sums of products of the differences from the means 2 and 12.
    assert pearson == pytest.approx(26 / math.sqrt(2 * 362))
    assert ranked == pytest.approx(1.0)
    assert compiled_boards.correlation([(1.0, 1.0), (1.0, 2.0)]) == (0.0, 0.0)


def test_incomplete_and_other_records_are_no_table() -> None:
    rows = compiled("repvgg_a0", 1.0)
    with pytest.raises(InputError, match="no model is compiled yet"):
        compiled_boards.table(rows[:1])
    assert not compiled_boards.is_compilation([])
    other = replace(rows[0], artifact={"name": "repvgg_a0"})
    assert not compiled_boards.is_compilation([*rows, other])
