"""The part of a card that is about a board: every figure with its source, in both languages."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import pytest
import rich.console
from tests.report.test_card import identity, records, shapes, tables
from tests.sample_results import paired_accuracy

from repzoo.console.board_card import board_table
from repzoo.errors import InputError
from repzoo.measure.board import (
    BoardAccuracy,
    BoardLatency,
    BoardSimilarity,
    NodeSimilarity,
)
from repzoo.measure.record import Record
from repzoo.measure.results import Accuracy, PairedAccuracy
from repzoo.report import card, card_facts
from repzoo.report.board import BoardFacts, board_facts, select_board
from repzoo.report.card import CardContext

ENGINE = {"name": "rdk-x5", "version": "1.24.3"}
LOG = {"log": "a|b.log", "sha256": "ab" * 32}
ESTIMATE = BoardLatency(
    target="rdk-x5",
    source="compiler estimate",
    latency_ms=0.611,
    fps=1637.0,
    ddr_bytes=3_210_000,
    accelerator_nodes=119,
    cpu_nodes=7,
)
SINGLE = BoardLatency(
    target="rdk-x5",
    source="board log",
    threads=1,
    latency_ms=1.58,
    min_ms=1.42,
    max_ms=2.17,
    fps=628.0,
)
MANY = dataclasses.replace(SINGLE, threads=4, latency_ms=4.08, fps=965.0)
PREDICTED = Record(identity("deploy"), paired_accuracy(0.31, top1=72.34))


def of_board(values: Any, name: str = "net.digits") -> Record[Any]:
    tool = {"name": "hb_mapper", "version": "1.24.3"}
    return Record(identity("deploy", name), values, tool, LOG)


def measured(name: str = "net.digits") -> list[Record[Any]]:
    accuracy = Accuracy(
        n=640,
        top1=72.11,
        top1_low=68.52,
        top1_high=75.43,
        top5=91.0,
        top5_low=90.0,
        top5_high=92.0,
    )
    pair = {"first": identity("deploy"), "second": identity("deploy", name)}
    paired = paired_accuracy(0.52, drop_low=-0.14, drop_high=1.26)
    return [
        Record(identity("deploy", name), accuracy, ENGINE),
        Record(pair, paired, ENGINE),
    ]


ALL = [
    *measured(),
    of_board(SINGLE),
    of_board(MANY),
    of_board(ESTIMATE),
    of_board(
        BoardSimilarity(
            target="rdk-x5", outputs=(NodeSimilarity(name="o", cosine=0.998877),)
        )
    ),
]


def page(facts: BoardFacts, language: str = "card.md") -> str:
    return card.render(records(), [], CardContext(board=facts))[language]


def row(facts: BoardFacts) -> list[str]:
    """The cells of the board's table."""
    return next(
        table[1] for table in tables(page(facts)) if "Quantized Top-1 (%)" in table[0]
    )


def test_measurements_come_before_a_prediction_and_an_estimate() -> None:
    assert row(board_facts(ALL, "rdk-x5", PREDICTED)) == [
        "net.digits",
        "37x37",
        "13",
        "200.00",
        "70.00",
        "72.11 (68.52 to 75.43)",
        "1.58",
        "4.08",
        "965",
    ]


def test_without_them_a_prediction_and_an_estimate_are_called_so() -> None:
    facts = board_facts([of_board(ESTIMATE)], "rdk-x5", PREDICTED)
    assert row(facts)[5:] == [
        "72.34 (prediction)",
        "0.611 (estimate)",
        "–",
        "1640 (estimate)",
    ]
    text = page(facts)
    assert "for which nothing ran" in text
    assert "It was not measured with the maker's tools." in text
    assert row(BoardFacts("rdk-x5"))[5:] == ["–"] * 4


def test_prediction_and_vendor_are_compared_where_both_are_known() -> None:
    facts = board_facts(ALL, "rdk-x5", PREDICTED)
    assert facts.difference == pytest.approx(-0.21)
    assert "Predicted drop minus this drop: −0.21 points." in page(facts)
    assert board_facts(ALL[2:], "rdk-x5", PREDICTED).difference is None
    # Without a comparison image by image.
    accuracy_only = board_facts(ALL[:1], "rdk-x5", PREDICTED)
    assert "Predicted Top-1 minus the maker's: +0.23 points" in page(accuracy_only)


def test_the_last_figure_counts_and_most_threads_are_shown() -> None:
    newer = dataclasses.replace(MANY, fps=999.0)
    fewer = dataclasses.replace(MANY, threads=2, fps=700.0)
    facts = board_facts([*ALL, of_board(newer), of_board(fewer)], "rdk-x5")
    assert facts.many == newer
    assert facts.on_accelerator == (119, 7)
    assert facts.output_cosine == 0.998877


@pytest.mark.parametrize("target", ["rdk-x5", "vastai"])
def test_both_languages_have_the_same_numbers_and_tables(target: str) -> None:
    rates = BoardAccuracy(
        target=target, source="board log", precision="fp16", top1=70.63, top5=89.74
    )
    facts = board_facts([*ALL, of_board(rates)], "rdk-x5", PREDICTED)
    facts = dataclasses.replace(facts, target=target)
    english, chinese = (page(facts, name) for name in card.LANGUAGES.values())
    found = []
    for text in (english, chinese):
        # Words with digits, which one language writes oftener than the other.
        plain = re.sub(r"Top-[15]|INT8|float32|1 thread\b|p50", "", text)
        found.append(sorted(re.findall(r"\d+(?:\.\d+)?", plain)))
    assert found[0] == found[1]
    assert shapes(english) == shapes(chinese)


def test_vastais_rows_are_those_of_its_cards() -> None:
    rates = [
        BoardAccuracy(
            target="vastai", source="board log", precision=name, top1=top1, top5=top5
        )
        for name, top1, top5 in (("fp16", 70.63, 89.74), ("int8", 0.6, 2.45))
    ]
    facts = dataclasses.replace(
        board_facts([of_board(rate) for rate in rates], "vastai", PREDICTED)
    )
    table = next(item for item in tables(page(facts)) if item[0][1] == "Precision")
    assert [cells[1:4] + cells[-1:] for cells in table[1:]] == [
        ["float32", "70.00", "74.11", "this host"],
        ["int8", "72.34", "–", "prediction"],
        ["fp16", "70.63", "89.74", "the board's log"],
        ["int8", "0.60", "2.45", "the board's log"],
    ]
    assert {tuple(cells[4:7]) for cells in table[1:]} == {("0.40", "200.00", "37x37")}


def test_a_cards_other_parts_stay_as_they_are() -> None:
    alone = card.render(records(), [])
    with_board = page(board_facts(ALL, "rdk-x5", PREDICTED))
    begin = with_board.index("## On rdk-x5")
    end = with_board.index("## Graph size")
    assert with_board[:begin] + with_board[end:] == alone["card.md"]
    assert '"board"' not in alone["card.json"]


def test_the_log_is_named_with_its_hash() -> None:
    text = page(board_facts(ALL, "rdk-x5"))
    assert f"From hb_mapper 1.24.3: `a|b.log`, SHA-256 `{'ab' * 32}`" in text


def test_the_terminals_table_fits_and_says_its_sources() -> None:
    stream = io.StringIO()
    console = rich.console.Console(file=stream, width=80)
    console.print(
        board_table(
            card_facts.summary(records()), board_facts(ALL, "rdk-x5", PREDICTED)
        )
    )
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "the maker's quantizer" in text
    assert "board log, no interval" in text


# Which Records are of the model


def test_records_of_the_models_own_name_are_taken() -> None:
    rows = [of_board(ESTIMATE), of_board(SINGLE, "other")]
    taken, remarks = select_board(rows, "rdk-x5", identity("train"))
    assert taken == rows[:1]
    assert not remarks
    taken, remarks = select_board(rows[1:], "rdk-x5", identity("train"))
    assert taken == rows[1:]
    assert "are of other" in remarks[0]


@pytest.mark.parametrize(
    ("rows", "target", "message"),
    [
        ([], "rdk-x5", "there are no Records of rdk-x5"),
        (ALL, "vastai", "there are no Records of vastai"),
        ([of_board(ESTIMATE, "a"), of_board(SINGLE, "b")], "rdk-x5", "several models"),
        (
            [Record({**identity("deploy", "a"), "classes": 1000}, ESTIMATE)],
            "rdk-x5",
            "a has classes 1000, net.digits 13",
        ),
        (
            [Record({**identity("deploy", "a"), "size": [8, 9]}, ESTIMATE)],
            "rdk-x5",
            "an input of size",
        ),
    ],
)
def test_records_of_other_models_are_refused(
    rows: list[Record[Any]], target: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        select_board(rows, target, identity("train"))


def test_a_comparison_is_of_its_second_model() -> None:
    (paired,) = [
        row for row in measured("board") if isinstance(row.values, PairedAccuracy)
    ]
    taken, remarks = select_board([paired], "rdk-x5", identity("train"))
    assert taken == [paired]
    assert "are of board" in remarks[0]
