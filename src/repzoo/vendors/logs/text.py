"""Lines and numbers of logs, whatever terminal, system or locale they come from."""

from __future__ import annotations

import codecs
import math
import re
from pathlib import PurePosixPath

from repzoo.errors import InputError

MAX_FILE_BYTES = 64 * 2**20  # hbdk's .html of a large model
MAX_LOG_BYTES = 16 * 2**20
# Tools print arrays in lines of any length; what is read here stands in short ones. Patterns take
# time that may grow with the square of it.
MAX_LINE = 1000
# Sequences of ECMA-48 (colors, cursor movements) and of terminals (titles).
ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])"
)
# Full-width forms of ASCII, and the spaces that Chinese text, Word and web pages hold.
PLAIN: dict[int, int | None] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
PLAIN.update(dict.fromkeys((0x3000, 0xA0, 0x202F, 0x2009), 0x20))
PLAIN.update(dict.fromkeys((0xFEFF, 0x200B)))  # nothing in their place
# A number as any locale writes it: with a decimal point or comma, perhaps with separators.
NUMBER = r"[-+]?\d(?:[\d.,]*\d)?(?:[eE][-+]?\d+)?"
PROGRESS = re.compile(r"\d{1,3}\s?%")
# "inf" is what tools print for a ratio to zero: no figure either.
ABSENT = {"", "-", "--", "nan", "none", "null", "n/a", "inf", "-inf"}
MAX_NAME = 300
MILLISECONDS = {"us": 0.001, "μs": 0.001, "µs": 0.001, "ms": 1.0, "s": 1000.0}


def lines_of(data: bytes) -> list[str]:
    """The lines of a log without colors, full-width forms and white space at their ends.

    What a progress bar overwrites (it returns the carriage) is a line of its own. Of lines longer
    than `MAX_LINE` only the start is kept.
    """
    text = _decode(data)
    if "\x1b" in text:
        text = ANSI.sub("", text)
    # Not splitlines: names may hold separators such as U+2028.
    pieces = re.split(r"\r\n|\n|\r", text)
    return [piece[:MAX_LINE].translate(PLAIN).rstrip() for piece in pieces]


def _decode(data: bytes) -> str:
    # PowerShell's `>` writes UTF-16 with a byte order mark.
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # Chinese Windows writes GB 18030. All that is read of a log is ASCII in it.
        return data.decode("gb18030", errors="replace")


def number_of(text: str) -> float | None:
    """The number that `text` is; None where it says that there is none, such as "--" or "nan".

    The last of point and comma is the decimal separator. A separator that occurs several times
    separates thousands.

    Raises:
        ValueError: `text` is no number, or not finite.
    """
    plain = text.strip()
    if plain.casefold() in ABSENT:
        return None
    value = float(_with_point(plain))
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite")
    return value


def milliseconds_of(text: str, unit: str) -> float:
    """A time in milliseconds; `unit` is a key of MILLISECONDS.

    Raises:
        ValueError: `text` is no number, or it is negative.
    """
    value = number_of(text)
    if value is None or value < 0:
        raise ValueError(f"{text!r} is not a time")
    # Rounded, since 307.6 us are not 0.30760000000000004 ms.
    return round(value * MILLISECONDS[unit], 9)


def count_of(text: str) -> int:
    """The whole number that `text` is; every point and comma in it separates thousands.

    Raises:
        ValueError: `text` is no whole number.
    """
    return int(re.sub("[.,]", "", text.strip()))


def _with_point(text: str) -> str:
    last = max(text.rfind("."), text.rfind(","))
    if last < 0:
        return text
    separator = text[last]
    if text.count(separator) > 1:
        return text.replace(separator, "").replace(",", ".")
    whole = re.sub("[.,]", "", text[:last])
    return f"{whole}.{text[last + 1 :]}"


def last_part(path: str) -> str:
    """The last part of a path as Linux or Windows writes it: folders are the log writer's own."""
    return PurePosixPath(path.strip().replace("\\", "/")).name[:MAX_NAME]


def unreadable(name: str, number: int, line: str, expected: str) -> InputError:
    """The error for a line that is not as the tool writes it.

    Args:
        name: of the log.
        number: of the line, from 1.
        expected: what should stand there.
    """
    shown = " ".join(line.split())[:80]
    return InputError(
        f"{name} line {number} is {shown!r}; expected {expected}: give the log as the tool wrote it"
    )
