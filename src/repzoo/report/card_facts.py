"""What a model card says, picked from the Records of one job."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from repzoo.artifact import Preprocess, Size, size_text
from repzoo.errors import RepzooError
from repzoo.graph.tools.cost_result import Cost
from repzoo.graph.tools.int8_share import Int8Share
from repzoo.measure.record import RESULT_KINDS, Record, select, share_of, to_json
from repzoo.measure.results import (
    Accuracy,
    FoldSummary,
    HalfSummary,
    Latency,
    LatencyRatio,
    PairedAccuracy,
    QuantizeSummary,
)

BOTH = ("deploy", "int8")  # the forms that a card compares
HALF = ("fp16", "bf16")  # forms that it shows beside them where they were asked for
# Latency over float from which on the float model serves as well.
GAIN_LIMIT = 0.95
WORST_CLASSES = 5
MIN_TOP5_CLASSES = 6  # of fewer classes, the right one is always among the best five

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
class WorstClass:
    """A class that the INT8 model finds hard.

    n                      its images
    float_top1, int8_top1  percent of them that each model gets right
    low, high              interval of `int8_top1`
    taken_for              the class that they are most often mistaken for; "" if they never are
    """

    label: str
    n: int
    float_top1: float
    int8_top1: float
    low: float
    high: float
    taken_for: str


@dataclass(frozen=True)
class HalfFacts:
    """The model in half precision, for which a card shows one more row.

    form     fp16 or bf16
    summary  what computes in it, and what does not
    paired   against float on the images of the card
    """

    form: str
    summary: HalfSummary
    paired: PairedAccuracy

    @property
    def type_name(self) -> str:
        """The number type, as NumPy calls it."""
        return {"fp16": "float16", "bf16": "bfloat16"}[self.form]


@dataclass(frozen=True)
class CardFacts:
    """All that a card says, picked from the Records of one job.

    A form is `train`, `deploy`, `int8`, `fp16` or `bf16`.

    int8          how much of it runs in INT8; None in Records that do not say
    preprocess    fields of Preprocess, and `to`: the side in pixels before the crop
    flips         predictions that differ between float and INT8
    worst_classes those with the lowest Top-1 in INT8, worst first
    single, many  latency by form, with one client and with as many as the job timed (one where it
                  timed no more); without `int8` where only a board runs it
    latency_rows  (form, latency) in the order in which they were timed
    rounds        interleaved rounds of the timing
    ratios        latency ratio by the form that is compared: `int8` over deploy, `deploy` over
                  train; without `int8` where only a board runs it
    beside        the other engines
    half          the model in half precision; None where it was not asked for
    """

    name: str
    size: Size
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
    worst_classes: Sequence[WorstClass]
    date: str
    half: HalfFacts | None = None

    @property
    def has_top5(self) -> bool:
        """Whether Top-5 says anything."""
        return self.classes >= MIN_TOP5_CLASSES

    @property
    def accuracy_forms(self) -> tuple[str, ...]:
        """The forms whose accuracy is compared."""
        return BOTH if self.half is None else (*BOTH, self.half.form)

    @property
    def float_serves(self) -> bool:
        """Whether INT8 gains so little latency that the float model serves as well."""
        return "int8" in self.ratios and self.ratios["int8"].ratio > GAIN_LIMIT

    @property
    def is_for_board(self) -> bool:
        """Whether only a board runs the INT8 model: it has no latency on this host."""
        return self.quantize.latency_ratio is None

    @property
    def client_threads(self) -> int:
        """How many clients `many` was timed with."""
        return self.many["deploy"].setting.streams

    def to_json(self) -> dict[str, Any]:
        """A JSON object, numbers unrounded."""
        document: dict[str, Any] = to_json(self)
        document["many"]["threads"] = self.client_threads
        return document


def summary(records: Sequence[Record[Any]]) -> CardFacts:
    """What a card says, picked from the Records of one job.

    Raises:
        RepzooError: a Record that the card needs is not among them.
    """
    half, others = _split_half(records)
    # Exactly one of each: with the Records of two jobs a card would mix their figures.
    paired = _only(others, PairedAccuracy)
    fold = _only(others, FoldSummary)
    quantize = _only(others, QuantizeSummary)
    engine_name = quantize.engine["name"]
    timed = _on_engine(select(records, Latency), engine_name)
    single = _by_form([row for row in timed if row.values.setting.streams == 1])
    many = _by_form([row for row in timed if row.values.setting.streams > 1])
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
        # On one core a job times one client only.
        many=many or single,
        latency_rows=[(str(row.artifact["form"]), row.values) for row in timed],
        rounds=len(timed[0].samples["latency_us"]) if timed else 0,
        ratios=_ratios(records, engine_name),
        beside=_other_engines(records, engine_name),
        fold=fold.values,
        quantize=quantize.values,
        calibration_images=quantize.data["images"],
        engine=quantize.engine,
        # The load while the model was timed explains its latency; that of the whole job does not.
        host=timed[0].host if timed else quantize.host,
        worst_classes=_worst_classes(records),
        date=quantize.time[: len("2000-01-01")],
        half=_half_facts(half) if half else None,
    )
    _require_all(facts)
    return facts


def _split_half(
    records: Sequence[Record[Any]],
) -> tuple[list[Record[Any]], list[Record[Any]]]:
    """(Records of the model in half precision, all others)."""
    half: list[Record[Any]] = []
    others: list[Record[Any]] = []
    for record in records:
        models = [record.artifact, *record.artifact.values()]
        forms = [item.get("form") for item in models if isinstance(item, Mapping)]
        group = half if any(form in HALF for form in forms) else others
        group.append(record)
    return half, others


def _half_facts(records: Sequence[Record[Any]]) -> HalfFacts:
    """What a card says of the model in half precision, from its Records."""
    quantize = _only(records, QuantizeSummary)
    form = str(quantize.artifact["form"])
    _require(_by_form(select(records, Cost)), Cost, (form,))
    _require(_by_form(select(records, Accuracy)), Accuracy, (form,))
    _require(_by_form(select(records, Latency)), Latency, (form,))
    if quantize.values.half is None:
        raise RepzooError(f"a card needs to know what computes in {form}")
    return HalfFacts(
        form=form,
        summary=quantize.values.half,
        paired=_only(records, PairedAccuracy).values,
    )


def _require_all(facts: CardFacts) -> None:
    """Refuse Records that lack a figure of the card."""
    _require(facts.cost, Cost, BOTH)
    _require(facts.accuracy, Accuracy, BOTH)
    _require(facts.single, Latency, ("deploy",))
    if not facts.is_for_board:
        _require(facts.single, Latency, ("int8",))
        _require(facts.ratios, LatencyRatio, ("int8",))


def _worst_classes(records: Sequence[Record[Any]]) -> list[WorstClass]:
    """The classes with the lowest Top-1 of the INT8 model; none where it makes no mistake."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for record in select(records, Accuracy):
        rows[record.artifact["form"]] = list(record.samples.get("classes", ()))
    float_top1 = {row["index"]: row["top1"] for row in rows.get("deploy", ())}
    worst: list[WorstClass] = []
    for row in rows.get("int8", ()):
        if row["top1"] == 100 or len(worst) == WORST_CLASSES:
            continue
        worst.append(
            WorstClass(
                label=row["class"],
                n=row["n"],
                float_top1=float_top1.get(row["index"], math.nan),
                int8_top1=row["top1"],
                low=row["top1_low"],
                high=row["top1_high"],
                taken_for=row["taken_for"] or "",
            )
        )
    return worst


def _only(records: Sequence[Record[Any]], result_type: type[T]) -> Record[T]:
    matching = select(records, result_type)
    if len(matching) != 1:
        kind = RESULT_KINDS[result_type]
        raise RepzooError(
            f"a card needs one Record of kind {kind!r}; got {len(matching)}"
        )
    return matching[0]


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
    names = [str(row.engine["name"]) for row in select(records, Latency)]
    return list(dict.fromkeys(names))


def _ratios(records: Sequence[Record[Any]], engine: str) -> dict[str, LatencyRatio]:
    """Latency ratios on `engine` by the form that is compared with another."""
    rows = _on_engine(select(records, LatencyRatio), engine)
    return {str(row.artifact["first"]["form"]): row.values for row in rows}


def _other_engines(records: Sequence[Record[Any]], own: str) -> list[OtherEngine]:
    """What was timed on other engines than `own`."""
    others = []
    for name in _timed_engines(records):
        if name == own:
            continue
        timed = _on_engine(select(records, Latency), name)
        ratio = _ratios(records, name).get("int8")
        others.append(OtherEngine(timed[0].engine, _by_form(timed), ratio))
    return others


def _shown_preprocess(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing with the side before the crop, which the card prints."""
    shown = {}
    for key, value in preprocess.items():
        shown[key] = list(value) if isinstance(value, list | tuple) else value
    known = Preprocess.from_mapping(preprocess)
    words = {
        "to": _side_or_size(known.resize_to),
        "crop": _side_or_size(known.size),
        "shape": ", ".join(map(str, known.input_shape)),
    }
    return {**shown, **words}


def _side_or_size(size: Size) -> str:
    """The side of a square, or height x width."""
    return str(size) if isinstance(size, int) else size_text(size)
