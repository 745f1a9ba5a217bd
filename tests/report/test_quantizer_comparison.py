"""The table of quantizers: newest rows of what may be compared, and no others."""

from __future__ import annotations

from typing import Any

import pytest
from tests.report.test_card import cost
from tests.sample_results import engine_comparison

from repzoo.errors import InputError
from repzoo.measure.comparison_results import QuantizerComparison
from repzoo.measure.record import Record
from repzoo.report.quantizer_comparison import table

HOST = {"cpu": "some", "cores": 2, "int8": ["avx2"], "load": 0.1}


def row(
    recipe: str, drop: float, gate: str = "photos", **host: Any
) -> Record[QuantizerComparison]:
    values = QuantizerComparison(
        recipe=recipe,
        seconds=3.0,
        reason="",
        engines={"onnxruntime": engine_comparison(drop)},
        bytes=10**6,
        float_bytes=4 * 10**6,
    )
    return Record({"name": "net"}, values, data={"gate": gate}, host={**HOST, **host})


def table_rows(*records: Record[Any]) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table(records, "en")[2:]]


def test_the_newest_row_of_each_quantizer_is_shown() -> None:
    rows = table_rows(
        row("repzoo", 9.0), row("other", 5.0), row("repzoo", 0.25, load=3.0)
    )
    assert [(cells[1], cells[2]) for cells in rows] == [
        ("repzoo", "+0.25 (−0.75 to +1.25), n = 100"),
        ("other", "+5.00 (+4.00 to +6.00), n = 100"),
    ]


@pytest.mark.parametrize(
    "newer",
    [row("repzoo", 1.0, gate="others"), row("repzoo", 1.0, int8=["avx512_vnni"])],
)
def test_rows_of_other_images_or_another_kind_of_host_are_left_out(
    newer: Record[QuantizerComparison],
) -> None:
    assert [cells[1] for cells in table_rows(row("other", 5.0), newer)] == ["repzoo"]


def test_records_of_something_else_make_no_table() -> None:
    with pytest.raises(InputError, match="no Records"):
        table([cost("deploy", 1)], "en")
