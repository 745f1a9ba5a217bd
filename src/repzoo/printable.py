"""Text of others, such as labels, paths and model names, made safe to print; numbers."""

from __future__ import annotations

import math
import re
import unicodedata

# Control and format characters, unpaired surrogates, and separators of lines and paragraphs. Among
# them are ANSI's escape, which moves a terminal's cursor, and marks that reverse the order of text.
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
MINUS = "\N{MINUS SIGN}"
# Format characters that scripts and emoji are written with.
JOINERS = "\u200c\u200d"
# Characters that Markdown, or the HTML in it, would not print as they stand.
ACTIVE = re.compile(r"[\\|*`\[\]<>~&$]|(?<!\w)_|_(?!\w)|#+$")
# What makes a heading, a list or a quotation of a line that begins with it.
FIRST = re.compile(r"^(?:[#+=-]|\d+(?=[.)](?:\s|$)))")


def printable(text: str, keep: str = "") -> str:
    """`text` with each unsafe character as its escape, such as "\\x1b"; `keep` stays as it is."""
    safe = JOINERS + keep
    return "".join(
        _escape(character)
        if character not in safe and unicodedata.category(character) in UNSAFE
        else character
        for character in text
    )


def one_line(value: object) -> str:
    """`value` as printable text in which every run of white space is one space."""
    return printable(" ".join(str(value).split()))


def escape_markdown(value: object) -> str:
    """`value` as Markdown text of one line that prints as it stands, in a table too."""
    escaped = ACTIVE.sub(r"\\\g<0>", one_line(value))
    # The dot after a number is escaped, since a digit cannot be.
    starts_with_digit = escaped[:1].isdigit()
    return FIRST.sub(r"\g<0>\\" if starts_with_digit else r"\\\g<0>", escaped)


def code_span(value: object) -> str:
    """`value` as a code span, whatever backticks it holds (CommonMark 6.1)."""
    text = one_line(value)
    runs = re.findall("`+", text)
    longest = max(map(len, runs), default=0)
    if not longest:
        return f"`{text}`"
    fence = "`" * (1 + longest)
    # CommonMark strips one space at each end, which keeps the fence off a backtick of the text.
    return f"{fence} {text} {fence}"


def signed(value: float) -> str:
    """`value` with a sign and two decimals; 0.00 has none."""
    return f"{value:+.2f}".replace("-", MINUS) if abs(value) >= 0.005 else "0.00"


def significant(value: float, digits: int) -> str:
    """`value` with so many significant digits, and never an exponent."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    # Rounded before the digits are counted: 0.9999 is 1.00, not 1.000.
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    decimals = max(0, digits - 1 - exponent)
    return f"{rounded:.{decimals}f}"


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
