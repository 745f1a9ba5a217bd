"""Cards: Markdown in English and Chinese and JSON, every number taken from Records and from nothing else."""

from __future__ import annotations

import functools
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

from repzoo.artifact import Preprocess
from repzoo.errors import RepzooError
from repzoo.measure.record import Kind, Record, finite

LANGUAGES = {"en": "card.md", "zh": "card_cn.md"}
BOTH = ("deploy", "int8")  # the forms that a card compares
ACTIVE = re.compile(r"[\\|*`\[\]<~]|(?<!\w)_|_(?!\w)")  # what Markdown would not print as it stands


def render(records: Sequence[Record], remarks: Sequence[str]) -> dict[str, str]:
    """File name -> text: the card in each language, and card.json with the same values unrounded."""
    facts = {**summary(records), "remarks": list(remarks)}
    template = _environment().get_template("card.md.j2")
    cards = {
        file: template.render(language=key, t=_words()[key], **facts)
        for key, file in LANGUAGES.items()
    }
    return {
        **cards,
        "card.json": json.dumps(
            finite(facts), ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False
        )
        + "\n",
    }


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """What a card says, picked from the Records of one job.

    Raises:
        RepzooError: a Record that the card needs is not among them.
    """
    paired, fold, quantize = (
        _one(records, "paired"),
        _one(records, "fold"),
        _one(records, "quantize"),
    )
    own = quantize.engine["name"]
    timed = [one for one in records if one.kind == "latency" and one.engine["name"] == own]
    cost, accuracy = _by_form(records, "cost"), _by_form(records, "accuracy")
    ratios = _ratios(records, own)
    single = {str(one.artifact["form"]): one.values for one in timed if one.values["streams"] == 1}
    for kind, found, forms in (
        ("cost", cost, BOTH),
        ("accuracy", accuracy, BOTH),
        ("latency", single, BOTH),
        ("ratio", ratios, BOTH[1:]),
    ):
        if lacking := [form for form in forms if form not in found]:
            raise RepzooError(
                f"a card needs a Record of kind {kind!r} for the {lacking[0]} form; there is none"
            )
    many = {
        str(one.artifact["form"]): one.values for one in timed if one.values["streams"] > 1
    } or single
    return {
        "name": quantize.artifact["name"],
        "size": quantize.artifact["size"],
        "classes": quantize.artifact["classes"],
        "preprocess": _shown(quantize.artifact["preprocess"]),
        "cost": cost,
        "accuracy": accuracy,
        "paired": paired.values,
        "flips": len(paired.samples["flips"]),
        "data_name": paired.data["name"],
        "single": single,
        "many": {**many, "threads": many["int8"]["streams"]},
        "latency_rows": [(one.artifact["form"], one.values) for one in timed],
        "rounds": len(timed[0].samples["latency_us"]),
        "ratios": ratios,
        "beside": [_beside(records, name) for name in _engines(records) if name != own],
        "fold": fold.values,
        "quantize": quantize.values,
        "calibration_images": quantize.data["images"],
        "engine": quantize.engine,
        "host": quantize.host,
    }


def _engines(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(one.engine["name"]) for one in records if one.kind == "latency"))


def _ratios(records: Sequence[Record], engine: str) -> dict[str, Mapping[str, Any]]:
    """Latency ratios on `engine` by the form that is compared with another."""
    own = (one for one in records if one.kind == "ratio" and one.engine["name"] == engine)
    return {str(one.artifact["first"]["form"]): one.values for one in own}


def _beside(records: Sequence[Record], engine: str) -> dict[str, Any]:
    """What an engine made of the files that were quantized for another; `single` by form, a form that it cannot run left out."""
    timed = [one for one in records if one.kind == "latency" and one.engine["name"] == engine]
    single = {str(one.artifact["form"]): one.values for one in timed}
    return {
        "engine": timed[0].engine,
        "single": single,
        "ratio": _ratios(records, engine).get("int8"),
    }


def _shown(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing with the side before the crop, which the card prints."""
    listed = {
        key: list(value) if isinstance(value, list | tuple) else value
        for key, value in preprocess.items()
    }
    return {**listed, "to": Preprocess.from_mapping(preprocess).resize_to}


def _one(records: Sequence[Record], kind: Kind) -> Record:
    found = [one for one in records if one.kind == kind]
    if len(found) != 1:
        raise RepzooError(f"a card needs one Record of kind {kind!r}; got {len(found)}")
    return found[0]


def _by_form(records: Sequence[Record], kind: Kind) -> dict[str, Mapping[str, Any]]:
    return {str(one.artifact["form"]): one.values for one in records if one.kind == kind}


@functools.cache
def _words() -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("repzoo.report") / "words.toml").read_text("utf-8"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("repzoo.report"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=False,
    )
    environment.filters.update(plain=escape_markdown, code=code)
    environment.globals.update(
        millions=millions, percent=percent, points=points, ms=ms, rate=rate, ratio_of=ratio_of
    )
    return environment


def escape_markdown(value: object) -> str:
    """`value` as Markdown text of one line that prints as it stands, in a table too."""
    return ACTIVE.sub(r"\\\g<0>", " ".join(str(value).split()))


def code(value: object) -> str:
    """`value` as a code span, whatever backticks it holds (CommonMark 6.1)."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def millions(count: float) -> str:
    """A count in millions, two decimals as the vendors' cards print it."""
    return f"{count / 1e6:.2f}"


def percent(value: float) -> str:
    """A percentage with the digits that a few hundred to a few thousand images carry."""
    return f"{value:.2f}"


def points(value: float) -> str:
    """A signed difference in percentage points; never "-0.00"."""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"


def ms(value: float) -> str:
    """Milliseconds with three significant digits."""
    return _significant(value, 3)


def rate(value: float) -> str:
    """Images a second with three significant digits, thousands unbroken."""
    return _significant(value, 3)


def ratio_of(value: float) -> str:
    """A ratio with two decimals."""
    return f"{value:.2f}"


def _significant(value: float, digits: int) -> str:
    if value == 0 or not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.{digits - 1}e}")  # first, for 0.9999 is 1.00 and not 1.000
    return f"{rounded:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"
