"""Remarks and facts of the host in Chinese. What reports them writes English (repzoo/remark.py)."""

from __future__ import annotations

import functools
import tomllib
from importlib.resources import files

from repzoo.remark import Remark


def translate(text: str, language: str) -> str:
    """`text` in `language`: "en" or "zh".

    A text that is no Remark, or whose sentence has no translation, stays as it is.
    """
    if language == "en" or not isinstance(text, Remark):
        return text
    sentence = _chinese().get(text.sentence)
    if sentence is None:
        return text
    fields = {}
    for name, value in text.fields.items():
        fields[name] = translate(value, language) if isinstance(value, str) else value
    return sentence.format(**fields)


@functools.cache
def _chinese() -> dict[str, str]:
    """The Chinese sentence of each English one."""
    path = files("repzoo.report") / "remarks_zh.toml"
    table = tomllib.loads(path.read_text("utf-8"))
    return {row["en"]: row["zh"] for row in table["remark"]}
