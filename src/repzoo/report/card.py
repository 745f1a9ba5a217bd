"""Model cards: Markdown in English and Chinese, and JSON. Every number comes from Records."""

from __future__ import annotations

import functools
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

import jinja2

from repzoo.artifact import Preprocess
from repzoo.errors import RepzooError
from repzoo.graph.tools.cost import Cost
from repzoo.graph.tools.int8_share import Int8Share
from repzoo.measure.host import describe
from repzoo.measure.record import RESULT_KINDS, Record, select, share_of, to_json
from repzoo.measure.results import (
    Accuracy,
    FoldSummary,
    Latency,
    LatencyRatio,
    PairedAccuracy,
    QuantizeSummary,
)
from repzoo.storage import json_text

LANGUAGES = {"en": "card.md", "zh": "card_cn.md"}
BOTH = ("deploy", "int8")  # the forms that a card compares

# Characters that Markdown would not print as they stand.
ACTIVE = re.compile(r"[\\|*`\[\]<~]|(?<!\w)_|_(?!\w)")

TO = {"en": "to", "zh": "至"}  # between the ends of an interval
SHARE = {
    "en": "{int8} of {layers} layers, {macs} of MACs",
    "zh": "{int8}/{layers} 层，{macs} 乘加",
}
MINUS = "\N{MINUS SIGN}"

Show = Callable[[float], str]
T = TypeVar("T")


@dataclass(frozen=True)
class OtherEngine:
    """An engine that also ran the two files, which were quantized for another one.

    engine  name and version
    single  latency with one client by form; a form that the engine cannot run is missing
    ratio   INT8 over float; None where it did not run both
    """

    engine: Mapping[str, Any]
    single: Mapping[str, Latency]
    ratio: LatencyRatio | None


@dataclass(frozen=True)
class CardFacts:
    """All that a card says, picked from the Records of one job.

    A form is `train`, `deploy` or `int8`.

    int8          how much of it runs in INT8; None in Records that do not say
    preprocess    fields of Preprocess, and `to`: the side in pixels before the crop
    flips         predictions that differ between float and INT8
    single, many  latency by form, with one client and with as many as the job timed (one where it
                  timed no more)
    latency_rows  (form, latency) in the order in which they were timed
    rounds        interleaved rounds of the timing
    ratios        latency ratio by the form that is compared: `int8` over deploy, `deploy` over
                  train
    beside        the other engines
    """

    name: str
    size: int
    classes: int
    int8: Int8Share | None
    preprocess: Mapping[str, Any]
    cost: Mapping[str, Cost]
    accuracy: Mapping[str, Accuracy]
    paired: PairedAccuracy
    flips: int
    data_name: str
    single: Mapping[str, Latency]
    many: Mapping[str, Latency]
    latency_rows: Sequence[tuple[str, Latency]]
    rounds: int
    ratios: Mapping[str, LatencyRatio]
    beside: Sequence[OtherEngine]
    fold: FoldSummary
    quantize: QuantizeSummary
    calibration_images: int
    engine: Mapping[str, Any]
    host: Mapping[str, Any]

    @property
    def client_threads(self) -> int:
        """How many clients `many` was timed with."""
        return self.many["int8"].setting.streams

    def to_json(self) -> dict[str, Any]:
        """A JSON object, numbers unrounded."""
        document: dict[str, Any] = to_json(self)
        document["many"]["threads"] = self.client_threads
        return document


def render(records: Sequence[Record[Any]], remarks: Sequence[str]) -> dict[str, str]:
    """The card in each language, and card.json with the same values unrounded, by file name."""
    facts = summary(records)
    template = _environment().get_template("card.md.j2")
    rendered = {}
    for language, file in LANGUAGES.items():
        words = _words()[language]
        rendered[file] = template.render(
            language=language,
            t=words,
            remarks=remarks,
            client_threads=facts.client_threads,
            host_facts=describe(facts.host),
            **vars(facts),
        )
    document = {**facts.to_json(), "remarks": list(remarks)}
    text = json_text(document, ensure_ascii=False, indent=1, sort_keys=True)
    rendered["card.json"] = text + "\n"
    return rendered


def summary(records: Sequence[Record[Any]]) -> CardFacts:
    """What a card says, picked from the Records of one job.

    Raises:
        RepzooError: a Record that the card needs is not among them.
    """
    # Exactly one of each: with the Records of two jobs a card would mix their figures.
    paired = _only(records, PairedAccuracy)
    fold = _only(records, FoldSummary)
    quantize = _only(records, QuantizeSummary)
    engine_name = quantize.engine["name"]
    timed = _on_engine(select(records, Latency), engine_name)
    single = _by_form([row for row in timed if row.values.setting.streams == 1])
    many = _by_form([row for row in timed if row.values.setting.streams > 1])
    others = [name for name in _timed_engines(records) if name != engine_name]
    facts = CardFacts(
        name=quantize.artifact["name"],
        size=quantize.artifact["size"],
        classes=quantize.artifact["classes"],
        int8=share_of(quantize.artifact),
        preprocess=_shown_preprocess(quantize.artifact["preprocess"]),
        cost=_by_form(select(records, Cost)),
        accuracy=_by_form(select(records, Accuracy)),
        paired=paired.values,
        flips=len(paired.samples["flips"]),
        data_name=paired.data["name"],
        single=single,
        many=many or single,
        latency_rows=[(str(row.artifact["form"]), row.values) for row in timed],
        rounds=len(timed[0].samples["latency_us"]) if timed else 0,
        ratios=_ratios(records, engine_name),
        beside=[_other_engine(records, name) for name in others],
        fold=fold.values,
        quantize=quantize.values,
        calibration_images=quantize.data["images"],
        engine=quantize.engine,
        # The load while the model was timed explains its latency; that of the whole job does not.
        host=timed[0].host if timed else quantize.host,
    )
    _require(facts.cost, Cost, BOTH)
    _require(facts.accuracy, Accuracy, BOTH)
    _require(facts.single, Latency, BOTH)
    _require(facts.ratios, LatencyRatio, ("int8",))
    return facts


def _only(records: Sequence[Record[Any]], result_type: type[T]) -> Record[T]:
    found = select(records, result_type)
    if len(found) != 1:
        kind = RESULT_KINDS[result_type]
        raise RepzooError(f"a card needs one Record of kind {kind!r}; got {len(found)}")
    return found[0]


def _require(
    by_form: Mapping[str, object], result_type: type, forms: Sequence[str]
) -> None:
    for form in forms:
        if form not in by_form:
            kind = RESULT_KINDS[result_type]
            raise RepzooError(
                f"a card needs a Record of kind {kind!r} for the {form} form; there is none"
            )


def _by_form(records: Sequence[Record[T]]) -> dict[str, T]:
    return {str(row.artifact["form"]): row.values for row in records}


def _on_engine(records: Sequence[Record[T]], engine: str) -> list[Record[T]]:
    return [row for row in records if row.engine["name"] == engine]


def _timed_engines(records: Sequence[Record[Any]]) -> list[str]:
    return list(
        dict.fromkeys(str(row.engine["name"]) for row in select(records, Latency))
    )


def _ratios(records: Sequence[Record[Any]], engine: str) -> dict[str, LatencyRatio]:
    """Latency ratios on `engine` by the form that is compared with another."""
    rows = _on_engine(select(records, LatencyRatio), engine)
    return {str(row.artifact["first"]["form"]): row.values for row in rows}


def _other_engine(records: Sequence[Record[Any]], engine: str) -> OtherEngine:
    timed = _on_engine(select(records, Latency), engine)
    return OtherEngine(
        timed[0].engine, _by_form(timed), _ratios(records, engine).get("int8")
    )


def _shown_preprocess(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing with the side before the crop, which the card prints."""
    shown = {}
    for key, value in preprocess.items():
        shown[key] = list(value) if isinstance(value, list | tuple) else value
    return {**shown, "to": Preprocess.from_mapping(preprocess).resize_to}


@functools.cache
def _words() -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("repzoo.report") / "words.toml").read_text("utf-8"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("repzoo.report"),
        undefined=jinja2.StrictUndefined,  # a name that is missing is an error, not a gap
        autoescape=False,  # the output is Markdown; `plain` and `code` escape it
        trim_blocks=False,
    )
    environment.filters.update(plain=escape_markdown, code=code)
    environment.globals.update(
        millions=millions,
        percent=percent,
        points=points,
        ms=ms,
        rate=rate,
        ratio_of=ratio_of,
        span=span,
    )
    return environment


def escape_markdown(value: object) -> str:
    """`value` as Markdown text of one line that prints as it stands, in a table too."""
    return ACTIVE.sub(r"\\\g<0>", " ".join(str(value).split()))


def code(value: object) -> str:
    """`value` as a code span, whatever backticks it holds (CommonMark 6.1)."""
    text = " ".join(str(value).split())
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (1 + longest)
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def millions(count: float) -> str:
    """A count in millions, two decimals as the vendors' cards print it."""
    return f"{count / 1e6:.2f}"


def percent(value: float) -> str:
    """A percentage with the digits that a few hundred to a few thousand images carry."""
    return f"{value:.2f}"


def points(value: float) -> str:
    """A signed difference in percentage points, with a minus sign; never "−0.00"."""
    return f"{value:+.2f}".replace("-", MINUS) if abs(value) >= 0.005 else "0.00"


def ms(value: float) -> str:
    """Milliseconds with three significant digits."""
    return _significant(value, 3)


def rate(value: float) -> str:
    """Images a second with three significant digits, without a thousands separator."""
    return _significant(value, 3)


def ratio_of(value: float) -> str:
    """A ratio with two decimals."""
    return f"{value:.2f}"


def interval(show: Show, value: float, low: float, high: float, to: str = "to") -> str:
    """`value (low to high)`, each printed by `show`, a function of this module."""
    return f"{show(value)} ({span(show, low, high, to)})"


def span(show: Show, low: float, high: float, to: str = "to") -> str:
    """`low to high`, each printed by `show`; `to` is that word in the language of the text."""
    return f"{show(low)} {to} {show(high)}"


def int8_share(share: Int8Share | None, language: str) -> str:
    """How much runs in INT8, for a cell of a table; a dash where that is unknown."""
    if share is None:
        return "–"
    return SHARE[language].format(
        int8=share.int8_layers,
        layers=share.layers,
        macs=f"{100 * share.macs:.0f} %" if math.isfinite(share.macs) else "?",
    )


def _significant(value: float, digits: int) -> str:
    if value == 0 or not math.isfinite(value):
        return str(value)
    rounded = float(
        f"{value:.{digits - 1}e}"
    )  # before counting digits: 0.9999 is 1.00, not 1.000
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(0, decimals)}f}"
