"""Text of others cannot steer a terminal or break a line."""

from __future__ import annotations

import pytest

from repzoo.printable import one_line, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb", "a\\x0ab"),
        ("abc\u202egnp", "abc\\u202egnp"),
        ("half \ud800", "half \\ud800"),
        ("猫 👩\u200d🔬 −1 é", "猫 👩\u200d🔬 −1 é"),
    ],
)
def test_unsafe_characters_become_escapes(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_kept_characters_stay() -> None:
    assert printable("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"


def test_one_line_is_one_line() -> None:
    assert one_line(" a\r\n\tb\u2028c\x1b ") == "a b c\\x1b"
