"""Remarks: sentences for a person, which cards also show in other languages."""

from __future__ import annotations

from typing import Self


class Remark(str):
    """A sentence in English that knows how it was made.

    `Remark("{n} images are left", n=3)` is the string "3 images are left", in JSON as anywhere
    else. The sentence with its fields in braces is the key of its translation, as in gettext
    (report/remarks_zh.toml). A field may itself be a Remark.

    sentence  as given, with fields in braces
    fields    their values; none for a text that is not translated
    """

    sentence: str
    fields: dict[str, object]

    def __new__(cls, sentence: str, **fields: object) -> Self:
        """The sentence with its fields filled in."""
        # Without fields a brace is a brace: the text may be a copy of a finished remark.
        text = sentence.format(**fields) if fields else sentence
        remark = super().__new__(cls, text)
        remark.sentence = sentence
        remark.fields = fields
        return remark
