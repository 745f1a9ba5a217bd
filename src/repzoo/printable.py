"""Text of others, such as labels, paths and model names, made safe to print; and signed numbers."""

from __future__ import annotations

import unicodedata

# Control and format characters, unpaired surrogates, and separators of lines and paragraphs. Among
# them are ANSI's escape, which moves a terminal's cursor, and marks that reverse the order of text.
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
MINUS = "\N{MINUS SIGN}"
# Format characters that scripts and emoji are written with.
JOINERS = "\u200c\u200d"


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


def signed(value: float) -> str:
    """`value` with a sign and two decimals; 0.00 has none."""
    return f"{value:+.2f}".replace("-", MINUS) if abs(value) >= 0.005 else "0.00"


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
