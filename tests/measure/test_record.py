"""Records as JSON lines: what goes in comes out, damage is named, and every line is JSON that any reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repzoo.errors import InputError
from repzoo.measure import record
from repzoo.measure.record import Record

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
tables = st.dictionaries(
    st.text(),
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=5),
    max_size=3,
)


def strictly(text: str) -> Any:
    """Parsed as RFC 8259 has it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@given(values=tables, data=tables)
def test_a_line_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], data: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    written = [
        Record("accuracy", {"name": "a\u2028b\x85c"}, values, data=data),
        Record("cost", {}, {}, job="j"),
    ]
    record.append(path, written)
    assert record.read(path) == written


def test_appending_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.jsonl"
    for number in range(3):
        record.append(path, [Record("cost", {}, {"number": number})])
    assert [one.values["number"] for one in record.read(path)] == [0, 1, 2]
    assert path.read_bytes().endswith(b"\n")


def test_numbers_without_json_become_null(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record.append(
        path,
        [Record("ratio", {}, {"nan": math.nan, "inf": [math.inf, (-math.inf, 1.5)], "one": 1})],
    )
    assert strictly(path.read_text())["values"] == {
        "nan": None,
        "inf": [None, [None, 1.5]],
        "one": 1,
    }


GOOD = record.line(Record("cost", {}, {}))


@pytest.mark.parametrize(
    "damaged",
    [
        "{",
        GOOD[: len(GOOD) // 2],
        GOOD + GOOD,
        "",
        "[]",
        "null",
        "{}",
        GOOD.replace('"cost"', '"guess"'),
        GOOD.replace('"values": {}', '"values": 3'),
        GOOD.replace('"values": {}', '"values": {}, "more": 1'),
        "[" * 100_000,
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"{GOOD}\n{damaged}\n{GOOD}\n")
    with pytest.raises(InputError, match=r"r\.jsonl line 2 is not a Record"):
        record.read(path)


def test_bytes_that_are_not_utf8_are_damage_not_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(
        GOOD.replace('"job": ""', '"job": "X"').encode().replace(b"X", b"\xff") + b"\n"
    )
    with pytest.raises(InputError, match="line 1"):
        record.read(path)


def test_no_file_is_an_input_error_and_an_empty_one_has_no_records(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        record.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    assert record.read(tmp_path / "empty.jsonl") == []
