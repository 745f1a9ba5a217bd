"""Cards show what the Records hold, in both languages, in tables that Markdown reads as tables."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from repzoo.errors import RepzooError
from repzoo.graph.tools.cost_result import Cost
from repzoo.measure.record import Kind, Record, read_result, to_json
from repzoo.measure.results import (
    Accuracy,
    CandidateSummary,
    FoldSummary,
    GraphSummary,
    HalfSummary,
    Latency,
    LatencyRatio,
    PairedAccuracy,
    QuantizeSummary,
    Setting,
)
from repzoo.printable import MINUS, code_span, escape_markdown
from repzoo.remark import Remark
from repzoo.report import card, card_facts, figures
from repzoo.report import tables as result_tables

HOST = {"cpu": "Some CPU", "int8": ["avx2", "avx512_vnni"], "cores": 2}


def identity(form: str, name: str = "net.digits") -> dict[str, Any]:
    preprocess = {
        "size": 37,
        "resize": "squash",
        "crop_fraction": 0.5,
        "interpolation": "bicubic",
        "mean": [0.1, 0.2, 0.3],
    }
    preprocess |= {"std": [0.4, 0.6, 0.7], "color": "BGR"}
    return {
        "name": name,
        "form": form,
        "sha256": form * 4,
        "size": 37,
        "classes": 13,
        "preprocess": preprocess,
    }


def numbers(start: float, *names: str) -> dict[str, float]:
    """Distinct numbers, so that each can be told from the others in the text."""
    return {name: start + 1.37 * index for index, name in enumerate(names)}


ORT = {"name": "onnxruntime", "version": "1.2"}
RATIO = ("ratio", "ratio_low", "ratio_high")
DROP = ("drop", "drop_low", "drop_high", "same_prediction")
LATENCY = (
    "p50_ms",
    "p50_low_ms",
    "p50_high_ms",
    "p90_ms",
    "p99_ms",
    "fps",
    "fps_low",
    "fps_high",
)


def latency_record(
    form: str, streams: int, start: float, engine: Mapping[str, str] = ORT
) -> Record[Latency]:
    values = Latency(
        setting=Setting(streams=streams),
        samples=300,
        steady=True,
        **numbers(start, *LATENCY),  # type: ignore[arg-type]
    )
    samples = {"latency_us": [[1]] * 12}
    return Record(identity(form), values, engine, samples=samples, host=HOST)


def ratio_record(
    form: str, start: float, engine: Mapping[str, str] = ORT
) -> Record[LatencyRatio]:
    return Record({"first": identity(form)}, ratio(start), engine)


def ratio(start: float) -> LatencyRatio:
    return LatencyRatio(
        setting=Setting(),
        faster=None,
        rounds=12,
        **numbers(start, *RATIO),  # type: ignore[arg-type]
    )


def other_engine_records(
    name: str = "open_vino", forms: Sequence[str] = ("deploy", "int8")
) -> list[Record[Any]]:
    """The same files on another engine, which may have refused one of them."""
    engine = {"name": name, "version": "7.8"}
    starts = {"deploy": 211.0, "int8": 231.0}
    times = [latency_record(form, 1, starts[form], engine) for form in forms]
    return [*times, ratio_record("int8", 0.81, engine)] if len(times) == 2 else [*times]


def cost(form: str, start: int) -> Record[Cost]:
    values = Cost(
        parameters=start * 10**6,
        macs=2 * start * 10**6,
        bytes=2 * start * 10**6 + 1_370_000,
        nodes=start,
        operators={},
        uncounted={},
    )
    return Record(identity(form), values)


def accuracy(form: str, start: float) -> Record[Accuracy]:
    names = ("top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high")
    return Record(identity(form), Accuracy(n=720, **numbers(start, *names)))


def candidate(placement: str, start: float) -> CandidateSummary:
    paired = PairedAccuracy(n=240, p_value=1.0, **numbers(start, *DROP))  # type: ignore[arg-type]
    return CandidateSummary(
        recipe="ort-cpu",
        placement=placement,
        passes=True,
        paired=paired,
        ratio=ratio(start + 6),
    )


def quantize_summary(placement: str) -> QuantizeSummary:
    return QuantizeSummary(
        **numbers(130, *DROP),  # type: ignore[arg-type]
        p_value=0.5,
        latency_ratio=0.5,
        latency_ratio_low=0.4,
        latency_ratio_high=0.6,
        recipe="ort-cpu",
        placement=placement,
        rungs=(candidate(placement, 30), candidate("everything", 39)),
        seconds=3.0,
        culprits=(),
    )


def graph(sha256: str) -> GraphSummary:
    return GraphSummary(
        sha256=sha256, parameters=1, macs=2, bytes=3, nodes=4, operators={}
    )


def records(name: str = "net.digits", placement: str = "dense") -> list[Record[Any]]:
    """The Records of one job from the training form."""
    paired = PairedAccuracy(n=720, p_value=0.123, **numbers(3, *DROP))  # type: ignore[arg-type]
    fold = FoldSummary(
        equal=True,
        max_abs_error=3e-6,
        max_rel_error=1e-6,
        bound=1e-4,
        top1_agreement=0.98,
        inputs=24,
        proven=77,
        proof_ratio=0.9,
        folds=80,
        refusals=23,
        before=graph("aa11"),
        after=graph("bb22"),
    )
    quantize_data = {"images": 256}
    return [
        cost("train", 400),
        cost("deploy", 200),
        cost("int8", 300),
        Record(identity("deploy"), fold, host=HOST),
        Record(
            identity("int8", name),
            quantize_summary(placement),
            ORT,
            quantize_data,
            host=HOST,
        ),
        accuracy("deploy", 70),
        accuracy("int8", 60),
        Record({}, paired, data={"name": "digits"}, samples={"flips": [{}] * 17}),
        latency_record("train", 1, 11),
        latency_record("deploy", 1, 31),
        latency_record("int8", 1, 51),
        latency_record("deploy", 2, 71),
        latency_record("int8", 2, 91),
        ratio_record("int8", 0.51),
        ratio_record("deploy", 0.61),
    ]


def half_records() -> list[Record[Any]]:
    """What the job adds where half precision was asked for too."""
    paired = PairedAccuracy(n=720, p_value=0.456, **numbers(303, *DROP))  # type: ignore[arg-type]
    reason = Remark(
        "its output reaches {largest:.3g}; float16 ends at 65504", largest=7e4
    )
    half = HalfSummary(
        precision="fp16",
        operators=41,
        kept=(
            {"node": "odd|name", "op": "Conv", "cause": "overflow", "reason": reason},
        ),
        weights=9,
        subnormal=2,
        zeroed=1,
        in_arithmetic=paired,
        on_engine=paired,
    )
    summary = dataclasses.replace(quantize_summary("41 of 42"), half=half)
    models = {"first": identity("deploy"), "second": identity("fp16")}
    return [
        cost("fp16", 500),
        Record(identity("fp16"), summary, ORT, {"images": 256}, host=HOST),
        accuracy("fp16", 310),
        Record(models, paired, data={"name": "digits"}, samples={"flips": []}),
        latency_record("fp16", 1, 331),
        latency_record("fp16", 2, 351),
        ratio_record("fp16", 0.37),
    ]


def all_rows(text: str) -> list[list[str]]:
    return [row for table in tables(text) for row in table]


def test_a_model_in_half_precision_is_one_more_row() -> None:
    rows = [*records(), *half_records()]
    english, chinese = (card.render(rows, [])[name] for name in card.LANGUAGES.values())
    assert shapes(english) == shapes(chinese)
    for text in (english, chinese):
        assert "| FP16 | 310.00 |" in text
        assert "## FP16" in text
        assert ["odd|name", "Conv"] in [row[:2] for row in all_rows(text)]
        assert "303.00" in text
    assert "FP16 / float | 0.37" in english
    assert "its output reaches 7e+04; float16 ends at 65504" in english
    assert "其输出达到 7e+04" in chinese
    facts = card_facts.summary(rows)
    assert facts.half is not None
    assert (facts.half.form, facts.quantize.placement) == ("fp16", "dense")
    # Of its Records each is needed.
    with pytest.raises(RepzooError, match="a card needs"):
        card_facts.summary(rows[:-6])


def leaf_values(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaf_values(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaf_values(item, (*path, index))
    else:
        yield path


# Values that a card shows, by kind of Record and path in its JSON; all others are left out.
SHOWN = {
    "cost": {"parameters", "macs", "bytes", "nodes"},
    "fold": {
        "equal",
        "max_abs_error",
        "bound",
        "top1_agreement",
        "inputs",
        "proven",
        "folds",
        "refusals",
    },
    "quantize": {
        "recipe",
        "placement",
        *(f"rungs.0.{name}" for name in ("recipe", "placement", *DROP, *RATIO[:1])),
    },
    "accuracy": {"top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high"},
    "paired": {"n", "p_value", *DROP},
    "latency": set(LATENCY) - {"fps_low", "fps_high"},
    "ratio": set(RATIO),
}


def change(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    return value * 2 + 2


@pytest.mark.parametrize("language", card.LANGUAGES.values())
def test_a_card_shows_every_value_that_it_should_and_no_other(language: str) -> None:
    before = card.render(records(), [])[language]
    for index, row in enumerate(records()):
        for path in leaf_values(to_json(row.values)):
            name = ".".join(map(str, path))
            if (
                path[-1] in ("streams", "threads", "batch", "scenario", "faster")
                or ".1." in name
            ):
                continue  # the setting decides which row it is; one candidate is enough
            document = to_json(row.values)
            inner = document
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = change(inner[path[-1]])
            rows = records()
            rows[index] = dataclasses.replace(
                row, values=read_result(type(row.values), document)
            )
            is_shown = card.render(rows, [])[language] != before
            assert is_shown == (name in SHOWN[row.kind]), (row.kind, row.artifact, name)


def test_both_languages_have_the_same_numbers_and_tables() -> None:
    english, chinese = (
        card.render(records(), ["a remark"])[name] for name in card.LANGUAGES.values()
    )
    figures = [
        re.findall(
            r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?",
            re.sub(r"Top-[15]|INT8|float32|1 thread\b|p50", "", text),
        )
        for text in (english, chinese)
    ]
    assert sorted(figures[0]) == sorted(figures[1])
    assert shapes(english) == shapes(chinese)
    assert [
        line.split(" ")[0] for line in english.splitlines() if line.startswith("#")
    ] == [line.split(" ")[0] for line in chinese.splitlines() if line.startswith("#")]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of each table, as a CommonMark reader with GitHub's tables sees them."""
    parsed: list[list[list[str]]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for index, token in enumerate(tokens):
        if token.type == "table_open":
            parsed.append([])
        elif token.type == "tr_open":
            parsed[-1].append([])
        elif token.type in ("th_open", "td_open"):
            children = tokens[index + 1].children or []
            parsed[-1][-1].append("".join(child.content for child in children))
    return parsed


def shapes(text: str) -> list[list[int]]:
    return [[len(row) for row in table] for table in tables(text)]


def test_every_table_reads_as_one() -> None:
    text = card.render(records(), [])["card.md"]
    assert shapes(text) == [
        [9] * 2,
        [5] * 3,
        [5] * 2,
        [7] * 6,
        [3] * 3,
        [5] * 4,
        [6] * 3,
    ]
    assert (
        sum(line.startswith("|") for line in text.splitlines())
        == sum(map(len, tables(text))) + 7
    )
    parsed = tables(text)
    assert parsed[0][1] == [
        "net.digits",
        "37x37",
        "13",
        "200.00",
        "70.00",
        "60.00",
        "51.0",
        "91.0",
        "97.8",
    ]
    timings = (
        ("training form", "1", 11),
        ("folded (float)", "1", 31),
        ("INT8", "1", 51),
        ("folded (float)", "2", 71),
        ("INT8", "2", 91),
    )
    for cells, (form, streams, start) in zip(parsed[3][1:], timings, strict=True):
        p50, low, high, p90, p99 = (
            figures.ms(start + 1.37 * step) for step in range(5)
        )
        fps = figures.rate(start + 1.37 * 5)
        assert cells == [form, streams, p50, f"{low} to {high}", p90, p99, fps]
    assert [row[-1] for row in parsed[6]] == ["", "shipped", ""]


def test_only_the_chosen_candidate_is_marked_among_those_of_one_placement() -> None:
    rows = records()
    position = next(index for index, row in enumerate(rows) if row.kind == "quantize")
    values = rows[position].values
    other = dataclasses.replace(candidate("dense", 39), recipe="second-order")
    values = dataclasses.replace(values, rungs=(*values.rungs, other))
    rows[position] = dataclasses.replace(rows[position], values=values)
    parsed = tables(card.render(rows, [])["card.md"])
    assert [cells[-1] for cells in parsed[6]] == ["", "shipped", "", ""]


def test_other_engines_have_a_table_of_their_own_and_leave_the_rest_as_it_is() -> None:
    alone = tables(card.render(records(), [])["card.md"])
    rows = card.render(
        [
            *records(),
            *other_engine_records(),
            *other_engine_records("slow", ["deploy"]),
        ],
        [],
    )
    parsed = tables(rows["card.md"])
    assert parsed[:5] + parsed[6:] == alone
    assert parsed[5][1:] == [
        ["open_vino", "7.8", "211", "231", "0.81", "2.18 to 3.55"],
        ["slow", "7.8", "211", "–", "–", "–"],
    ]
    assert shapes(rows["card.md"]) == shapes(rows["card_cn.md"])


NASTY = "a|b*c*_d_`e`[f](g)<h>~~i~~\\j&lt;$k$#"


def test_names_cannot_break_the_card() -> None:
    rows = records(NASTY, NASTY)
    paired = next(index for index, row in enumerate(rows) if row.kind == "paired")
    rows[paired] = dataclasses.replace(rows[paired], data={"name": NASTY})
    text = card.render(rows, [NASTY, "two\nlines"])["card.md"]
    assert shapes(text) == shapes(card.render(records(), [])["card.md"])
    assert tables(text)[0][1][0] == NASTY
    assert tables(text)[6][1][0] == NASTY
    # Without the YAML before it, which is no Markdown.
    body = text.partition("\n---\n")[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    heading = next(
        index for index, token in enumerate(tokens) if token.type == "heading_open"
    )
    assert (
        "".join(child.content for child in tokens[heading + 1].children or []) == NASTY
    )
    inlines = [
        "".join(child.content for child in token.children or [])
        for token in tokens
        if token.type == "inline"
    ]
    assert any(
        NASTY in inline and "720 images" in inline for inline in inlines
    )  # the data's name, in code
    assert NASTY in inlines
    assert "two lines" in inlines


def test_an_ordinary_name_is_left_as_it_is() -> None:
    assert (
        escape_markdown("repghostnet_050.digits (v1) #2")
        == "repghostnet_050.digits (v1) #2"
    )
    assert code_span("digits[test]") == "`digits[test]`"


@pytest.mark.parametrize("index", range(len(records())))
def test_a_missing_record_is_an_error_and_not_a_gap(index: int) -> None:
    row = records()[index]
    rest = [other for position, other in enumerate(records()) if position != index]
    optional = row.artifact.get("form") == "train" or (
        row.kind == "ratio" and row.artifact["first"]["form"] == "deploy"
    )
    if optional or (row.kind == "latency" and row.values.setting.streams == 2):
        return  # a job may start from the folded form, and have one client only
    with pytest.raises(RepzooError, match=row.kind):
        card.render(rest, [])


@pytest.mark.parametrize("kind", ["paired", "fold", "quantize"])
def test_two_jobs_records_are_refused(kind: Kind) -> None:
    twice = [*records(), *(row for row in records() if row.kind == kind)]
    with pytest.raises(RepzooError, match=f"one Record of kind '{kind}'; got 2"):
        card.render(twice, [])


def test_a_job_from_the_folded_form_with_one_client_has_a_card() -> None:
    rows = [
        row
        for row in records()
        if row.artifact.get("form") != "train"
        and (row.kind != "latency" or row.values.setting.streams != 2)
    ]
    rows = [
        row
        for row in rows
        if row.kind != "ratio" or row.artifact["first"]["form"] == "int8"
    ]
    parsed = tables(card.render(rows, [])["card.md"])
    assert [len(table) for table in parsed] == [2, 3, 2, 3, 2, 3, 3]


@pytest.mark.parametrize(
    ("clients", "heading"),
    [(1, "Latency, 3 threads (ms)"), (2, "Latency, 2 clients of 3 threads (ms)")],
)
def test_a_card_says_how_many_threads_a_session_had(clients: int, heading: str) -> None:
    rows = []
    for row in [*records(), *other_engine_records()]:
        if isinstance(row.values, Latency):
            setting = dataclasses.replace(row.values.setting, threads=3)
            if setting.streams > clients:
                continue
            values = dataclasses.replace(row.values, setting=setting)
            row = dataclasses.replace(row, values=values)
        rows.append(row)
    text = card.render(rows, [])["card.md"]
    headings = tables(text)[0][0]
    assert headings[-3:-1] == ["Latency, 3 threads (ms)", heading]
    assert "threads of a session: 3" in text
    assert "threads: 3" in next(
        line for line in text.splitlines() if "same two" in line
    )
    in_a_job = [dataclasses.replace(row, job="1") for row in rows]
    table = "\n".join(result_tables._job_table(in_a_job, "en"))
    assert "(3 threads)" in table


def test_card_json_has_the_same_values_unrounded_and_is_json() -> None:
    rows = records()
    values = dataclasses.replace(rows[-1].values, ratio=math.nan, ratio_low=1 / 3)
    rows[-1] = dataclasses.replace(rows[-1], values=values)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    facts = json.loads(card.render(rows, ["r"])["card.json"], parse_constant=refuse)
    assert facts["ratios"]["deploy"]["ratio"] is None
    assert facts["ratios"]["deploy"]["ratio_low"] == 1 / 3
    assert facts["many"]["threads"] == 2
    assert facts["accuracy"]["int8"]["top1"] == 60
    assert facts["remarks"] == ["r"]


def test_both_languages_have_the_words_that_the_template_uses_and_no_others() -> None:
    words = card._words()
    folder = files("repzoo.report") / "templates"
    pages = ("card.md.j2", "board.md.j2")
    template = "".join((folder / page).read_text("utf-8") for page in pages)
    used = set(re.findall(r"\bt\.(\w+)", template))
    heading = inspect.getsource(card.latency_heading)
    used |= set(re.findall(r'"(latency\w+)"', heading))
    assert set(words["en"]) == set(words["zh"]) == used
    for key in used - {"forms", "host_topics"}:
        fields = [
            sorted(re.findall(r"{(\w+)}", words[language][key])) for language in words
        ]
        assert fields[0] == fields[1], key
    assert (
        set(words["en"]["forms"])
        == set(words["zh"]["forms"])
        == {"train", *card_facts.BOTH, *card_facts.HALF}
    )


@given(st.floats(-100, 100))
def test_points_are_signed_and_never_minus_zero(value: float) -> None:
    text = figures.points(value)
    number = float(text.replace(MINUS, "-"))
    assert number == pytest.approx(value, abs=0.00501)
    sign = MINUS if value < 0 else "+"
    assert text == "0.00" or (text[0] == sign and number != 0)


@given(st.floats(1e-6, 1e7))
def test_three_significant_digits(value: float) -> None:
    assert float(figures.ms(value)) == pytest.approx(value, rel=0.00501)
    assert "e" not in figures.ms(value)
    assert (
        len(re.sub(r"^0\.?0*|\.", "", figures.ms(value)).strip()) <= 3 or value >= 999.5
    )


def test_the_card_says_how_the_input_is_made() -> None:
    for text in (card.render(records(), [])[file] for file in card.LANGUAGES.values()):
        for detail in (
            "squash",
            "bicubic",
            "BGR",
            "74",
            "[0.1, 0.2, 0.3]",
            "[0.4, 0.6, 0.7]",
        ):  # 74 = 37 / 0.5, before the crop
            assert detail in text


def with_classes(rows: list[Record[Any]]) -> list[Record[Any]]:
    """`rows` with classes in which the INT8 model makes mistakes."""

    def row(label: str, index: int, top1: float) -> dict[str, Any]:
        bounds = {"top1_low": top1 - 10, "top1_high": top1 + 10}
        names = {"index": index, "class": label, "taken_for": "dog"}
        return {**names, **bounds, "n": 40, "top1": top1}

    classes = {
        "deploy": [row("cat", 3, 80.0), row(NASTY, 4, 90.0)],
        "int8": [row(NASTY, 4, 50.0), row("cat", 3, 70.0), row("cow", 5, 100.0)],
    }
    changed_rows = []
    for item in rows:
        form = str(item.artifact.get("form"))
        if item.kind == "accuracy":
            samples = {"classes": classes[form]}
            item = dataclasses.replace(item, samples=samples)
        changed_rows.append(item)
    return changed_rows


def test_the_worst_classes_are_shown_with_both_accuracies() -> None:
    parsed = tables(card.render(with_classes(records()), [])["card.md"])
    assert parsed[3][1:] == [
        [NASTY, "40", "90.00", "50.00", "40.00 to 60.00", "dog"],
        ["cat", "40", "80.00", "70.00", "60.00 to 80.00", "dog"],
    ]


def test_five_classes_have_no_top5() -> None:
    rows = []
    for item in records():
        if item.kind == "quantize":
            artifact = {**item.artifact, "classes": 5}
            item = dataclasses.replace(item, artifact=artifact)
        rows.append(item)
    page = card.render(rows, [])["card.md"]
    assert [len(row) for row in tables(page)[1]] == [3, 3, 3]
    assert "| Top-5" not in page


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (card.Training(), "Its file does not say which images"),
        (card.Training("named", ("a[train]",)), "the model was trained on `a[train]`."),
        (card.Training("these", ("a",)), "**According to its history"),
    ],
)
def test_the_first_lines_say_what_is_known_of_training_images(
    training: card.Training, sentence: str
) -> None:
    pages = card.render(records(), [], card.CardContext(training=training))
    head, _, _ = pages["card.md"].partition("## Performance")
    assert sentence in head
    assert json.loads(pages["card.json"])["training"]["kind"] == training.kind


@pytest.mark.parametrize("ratio_start", [0.94, 0.96])
def test_the_first_lines_say_where_float_serves_as_well(ratio_start: float) -> None:
    rows = [*records()]
    position = next(
        index
        for index, item in enumerate(rows)
        if item.kind == "ratio" and item.artifact["first"]["form"] == "int8"
    )
    rows[position] = ratio_record("int8", ratio_start)
    head, _, _ = card.render(rows, [])["card.md"].partition("## Performance")
    assert ("the float model serves as well" in head) == (ratio_start > 0.95)


def test_the_first_lines_say_how_much_runs_in_int8() -> None:
    rows = []
    for item in records():
        if item.kind == "quantize":
            share = {"layers": 96, "int8_layers": 1, "macs": 0.15, "bytes": 0.46}
            artifact = {**item.artifact, "int8": share}
            item = dataclasses.replace(item, artifact=artifact)
        rows.append(item)
    head, _, _ = card.render(rows, [])["card.md"].partition("## Performance")
    assert "INT8: 1 of 96 layers, 15 % of MACs, 46 % of bytes" in head


def test_labels_files_and_command_are_shown_and_cannot_break_the_card() -> None:
    context = card.CardContext(
        labels=(NASTY, "<script>", "\x1b[31mred", "two\nlines"),
        command="repzoo card 'a\nb' ```",
        files=(card.CardFile("m`.onnx\n# x", "ab" * 32),),
    )
    page = card.render(records(), [], context)["card.md"]
    assert shapes(page) == shapes(card.render(records(), [])["card.md"])
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    fences = [token.content for token in tokens if token.type == "fence"]
    assert fences == [
        f"{'ab' * 32}  m`.onnx # x\n",
        "repzoo card 'a b' ```\n",
    ]
    inlines = ["".join(c.content for c in t.children or []) for t in tokens]
    output = next(text for text in inlines if text.startswith("Output: 4 classes"))
    for label in (NASTY, "<script>", "\\x1b[31mred", "two lines"):
        assert label in output


def test_a_card_for_a_board_claims_no_latency_of_int8() -> None:
    """Not in the Records either: only a board runs the model."""
    rows = []
    for row in records():
        is_int8 = row.artifact.get("form", "") == "int8"
        is_ratio = row.kind == "ratio" and row.artifact["first"]["form"] == "int8"
        if is_ratio or (row.kind == "latency" and is_int8):
            continue
        if isinstance(row.values, QuantizeSummary):
            values = dataclasses.replace(
                row.values,
                latency_ratio=None,
                latency_ratio_low=None,
                latency_ratio_high=None,
                rungs=(dataclasses.replace(candidate("dense", 30), ratio=None),),
            )
            row = dataclasses.replace(row, values=values)
        rows.append(row)
    cards = card.render(rows, [])
    summary = tables(cards["card.md"])[0]
    assert summary[1][-3:] == ["–", "–", "–"]
    assert "INT8 / float" not in cards["card.md"]
    assert "未在本机上计时" in cards["card_cn.md"]
    assert "int8" not in json.loads(cards["card.json"])["ratios"]
