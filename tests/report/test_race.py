"""The race of engines and forms in cards: every entry in both languages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.report.test_card import records, tables

from repzoo.measure.race_result import RaceEntry, RaceSummary
from repzoo.measure.record import Record
from repzoo.measure.results import QuantizeSummary
from repzoo.quant.search.messages import float_wins, int8_wins, smallest_wins
from repzoo.remark import Remark
from repzoo.report import card
from repzoo.report.translation import translate

FLOAT = RaceEntry(
    engine="openvino",
    version="2025",
    form="deploy",
    bytes=4000,
    p50_ms=6.25,
    fps=160.0,
    ratio=1.0,
    ratio_low=1.0,
    ratio_high=1.0,
)
INT8 = replace(
    FLOAT,
    engine="onnxruntime",
    form="int8",
    bytes=1000,
    p50_ms=7.5,
    ratio=1.2,
    ratio_low=1.1,
    ratio_high=1.3,
    drop=0.25,
    verdict="holds",
    placement="dense",
)
REFUSED = RaceEntry(
    engine="openvino",
    version="2025",
    form="int8",
    drop=9.0,
    verdict="refused",
    problem="refused by the gate",
)


SLOWER = replace(INT8, engine="mnn", drop=None, verdict=None)


def with_race(race: RaceSummary) -> list[Record[Any]]:
    """The Records of one job whose quantization held a race."""
    rows = []
    for row in records():
        if isinstance(row.values, QuantizeSummary):
            row = replace(row, values=replace(row.values, race=race))
        rows.append(row)
    return rows


def test_a_card_shows_every_entry_and_the_winner() -> None:
    race = RaceSummary(
        objective="latency",
        clients=1,
        entries=(FLOAT, INT8, REFUSED, SLOWER),
        winner=0,
        reason=float_wins(FLOAT, INT8),
    )
    for language, name in card.LANGUAGES.items():
        text = card.render(with_race(race), [])[name]
        rows = next(rows for rows in tables(text) if rows[1][0] == "openvino")
        words = card._words()[language]
        assert rows[1][2:6] == [words["forms"]["deploy"], "6.25", "160", "1.00"]
        assert rows[1][-1] == words["race_winner"]
        assert rows[2][:3] == ["onnxruntime", "2025", "INT8"]
        assert rows[2][5:8] == ["1.20", rows[2][6], "+0.25"]
        assert "1.10" in rows[2][6]
        assert rows[3][3:7] == ["–", "–", "–", "–"]
        assert rows[3][-1] == card._words()[language]["race_problem"]
        assert rows[4][5:8] == [*rows[2][5:7], "–"]
        assert rows[4][-1] == card._words()[language]["race_slower"]
        assert translate(race.reason, language).split(";")[0] in text


def test_reasons_are_translated() -> None:
    faster = replace(INT8, ratio=0.8, ratio_low=0.7, ratio_high=0.9)
    reasons = [
        int8_wins(faster, FLOAT),
        int8_wins(INT8, FLOAT),
        float_wins(FLOAT, INT8),
        smallest_wins(INT8),
    ]
    assert len(set(reasons)) == 4
    for reason in reasons:
        assert isinstance(reason, Remark)
        assert INT8.engine in reason
        assert translate(reason, "zh") != reason
