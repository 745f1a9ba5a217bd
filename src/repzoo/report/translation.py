"""Remarks in Chinese. What reports them writes English; a card in Chinese is read by others.

A remark is translated by the sentence that it was made from (remarks_zh.toml), whose {fields} take
whatever stands there. A remark that no sentence matches stays as it is.
"""

from __future__ import annotations

import functools
import re
import tomllib
from importlib.resources import files

FIELD = re.compile(r"{(\w+)}")


def translate(remark: str, language: str) -> str:
    """`remark`, an English sentence, in `language`: "en" or "zh"."""
    if language == "en":
        return remark
    for pattern, translation in _sentences():
        match = pattern.fullmatch(remark)
        if match:
            return translation.format(**match.groupdict())
    return remark


@functools.cache
def _sentences() -> list[tuple[re.Pattern[str], str]]:
    """(pattern of the English sentence, the Chinese one), in the order of the file."""
    path = files("repzoo.report") / "remarks_zh.toml"
    table = tomllib.loads(path.read_text("utf-8"))
    return [(_pattern(row["en"]), row["zh"]) for row in table["remark"]]


def _pattern(sentence: str) -> re.Pattern[str]:
    parts = FIELD.split(sentence)  # text and names of fields in turns
    pattern = ""
    for index, part in enumerate(parts):
        pattern += f"(?P<{part}>.+?)" if index % 2 else re.escape(part)
    return re.compile(pattern, re.DOTALL)
