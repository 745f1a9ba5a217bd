"""Remarks and facts of the host in Chinese. What reports them writes English.

A text is translated by the sentence that it was made from (remarks_zh.toml), whose {fields} take
whatever stands there. A text that no sentence matches stays as it is.
"""

from __future__ import annotations

import functools
import re
import tomllib
from importlib.resources import files

FIELD = re.compile(r"{(\w+)}")


def translate(text: str, language: str) -> str:
    """The English `text` in `language`: "en" or "zh"."""
    if language == "en":
        return text
    for pattern, translation in _sentences():
        match = pattern.fullmatch(text)
        if match:
            return translation.format(**match.groupdict())
    return text


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
