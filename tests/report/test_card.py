"""Cards say what the Records say: every number, in both languages, in tables that Markdown reads as tables."""

from __future__ import annotations

import copy
import dataclasses
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
from repzoo.measure.record import Kind, Record
from repzoo.report import card

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


def timed(form: str, streams: int, start: float, engine: Mapping[str, str] = ORT) -> Record:
    names = (
        "p50_ms",
        "p50_low_ms",
        "p50_high_ms",
        "p90_ms",
        "p99_ms",
        "fps",
        "fps_low",
        "fps_high",
        "samples",
        "load",
    )
    values = {**numbers(start, *names), "threads": 1, "streams": streams, "batch": 1}
    return Record(
        "latency", identity(form), values, engine, samples={"latency_us": [[1]] * 12}, host=HOST
    )


def beside(name: str = "open_vino", forms: Sequence[str] = ("deploy", "int8")) -> list[Record]:
    """The same files on another engine, which may have refused one of them."""
    engine = {"name": name, "version": "7.8"}
    ratio = Record(
        "ratio",
        {"first": identity("int8")},
        numbers(0.81, "ratio", "ratio_low", "ratio_high"),
        engine,
    )
    times = [
        timed(form, 1, start, engine)
        for form, start in (("deploy", 211), ("int8", 231))
        if form in forms
    ]
    return [*times, ratio] if len(times) == 2 else times


def records(name: str = "net.digits", placement: str = "dense") -> list[Record]:
    rungs = [
        {
            "placement": other,
            **numbers(30 + 9 * index, "drop", "drop_low", "drop_high", "same_prediction", "ratio"),
        }
        for index, other in enumerate((placement, "everything"))
    ]
    quantize = {"recipe": "ort-cpu", "placement": placement, "rungs": rungs}
    paired = {
        "n": 720,
        "p_value": 0.123,
        **numbers(3, "drop", "drop_low", "drop_high", "same_prediction"),
    }
    fold = {
        "equal": True,
        "max_abs_error": 3e-6,
        "bound": 1e-4,
        "top1_agreement": 0.98,
        "inputs": 24,
        "folds": 80,
        "refusals": 23,
    }
    fold["proven"] = 77
    hashes = {"before": {"sha256": "aa11"}, "after": {"sha256": "bb22"}}
    return [
        *(Record("cost", identity(form), {**numbers(start * 1e6, "parameters"), **numbers(start * 2e6, "macs", "bytes"), "nodes": start})
          for form, start in (("train", 400), ("deploy", 200), ("int8", 300))),
        Record("fold", identity("deploy"), {**fold, **hashes}, host=HOST),
        Record("quantize", identity("int8", name), quantize, ORT, {"images": 256}, host=HOST),
        *(Record("accuracy", identity(form), {"n": 720, **numbers(start, "top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high")})
          for form, start in (("deploy", 70), ("int8", 60))),
        Record("paired", {}, paired, data={"name": "digits"}, samples={"flips": [{}] * 17}),
        timed("train", 1, 11), timed("deploy", 1, 31), timed("int8", 1, 51), timed("deploy", 2, 71), timed("int8", 2, 91),
        Record("ratio", {"first": identity("int8")}, numbers(0.51, "ratio", "ratio_low", "ratio_high"), ORT),
        Record("ratio", {"first": identity("deploy")}, numbers(0.61, "ratio", "ratio_low", "ratio_high"), ORT),
    ]  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path


# What a Record holds and a card leaves out, by kind and name; every other value must change the text.
UNTOLD = {
    ("accuracy", "n"), ("latency", "batch"), ("latency", "threads"), ("latency", "fps_low"), ("latency", "fps_high"),
    ("latency", "samples"), ("latency", "load"),
}  # fmt: skip


@pytest.mark.parametrize("language", card.LANGUAGES.values())
def test_every_value_is_in_the_text(language: str) -> None:
    before = card.render(records(), [])[language]
    for index, one in enumerate(records()):
        for path in leaves(one.values):
            changed = records()
            target: Any = copy.deepcopy(dict(one.values))
            inner = target
            for key in path[:-1]:
                inner = inner[key]
            old = inner[path[-1]]
            inner[path[-1]] = (
                (not old)
                if isinstance(old, bool)
                else old + "x"
                if isinstance(old, str)
                else old * 1.5 + 2
            )
            changed[index] = dataclasses.replace(one, values=target)
            told = (one.kind, path[-1]) not in UNTOLD
            if (one.kind, path[-1]) == ("latency", "streams") or path == ("batch",):
                continue  # decides which row it is; the batch is told once
            assert (card.render(changed, [])[language] != before) == told, (
                one.kind,
                one.artifact,
                path,
            )


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
    assert [line.split(" ")[0] for line in english.splitlines() if line.startswith("#")] == [
        line.split(" ")[0] for line in chinese.splitlines() if line.startswith("#")
    ]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of each table, as a CommonMark reader with GitHub's tables sees them."""
    found: list[list[list[str]]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for index, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            children = tokens[index + 1].children or []
            found[-1][-1].append("".join(child.content for child in children))
    return found


def shapes(text: str) -> list[list[int]]:
    return [[len(row) for row in table] for table in tables(text)]


def test_every_table_reads_as_one() -> None:
    text = card.render(records(), [])["card.md"]
    assert shapes(text) == [[9] * 2, [5] * 3, [5] * 2, [7] * 6, [3] * 3, [5] * 4, [6] * 3]
    assert (
        sum(line.startswith("|") for line in text.splitlines()) == sum(map(len, tables(text))) + 7
    )
    found = tables(text)
    assert found[0][1] == [
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
    assert found[3][1:] == [
        [form, streams, *(card.ms(start + 1.37 * step) for step in (0,)), f"{card.ms(start + 1.37)} – {card.ms(start + 2.74)}",
         card.ms(start + 4.11), card.ms(start + 5.48), card.rate(start + 6.85)]
        for form, streams, start in (
            ("training form", "1", 11), ("folded (float)", "1", 31), ("INT8", "1", 51), ("folded (float)", "2", 71), ("INT8", "2", 91))
    ]  # fmt: skip
    assert [row[-1] for row in found[6]] == ["", "shipped", ""]


def test_other_engines_have_a_table_of_their_own_and_leave_the_rest_as_it_is() -> None:
    alone = tables(card.render(records(), [])["card.md"])
    made = card.render([*records(), *beside(), *beside("slow", ["deploy"])], [])
    found = tables(made["card.md"])
    assert found[:5] + found[6:] == alone
    assert found[5][1:] == [
        ["open_vino", "7.8", "211", "231", "0.81", "2.18 – 3.55"],
        ["slow", "7.8", "211", "–", "–", "–"],
    ]
    assert shapes(made["card.md"]) == shapes(made["card_cn.md"])


NASTY = "a|b*c*_d_`e`[f](g)<h>~~i~~\\j"


def test_names_cannot_break_the_card() -> None:
    made = records(NASTY, NASTY)
    paired = next(index for index, one in enumerate(made) if one.kind == "paired")
    made[paired] = dataclasses.replace(made[paired], data={"name": NASTY})
    text = card.render(made, [NASTY, "two\nlines"])["card.md"]
    assert shapes(text) == shapes(card.render(records(), [])["card.md"])
    assert tables(text)[0][1][0] == NASTY
    assert tables(text)[6][1][0] == NASTY
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    heading = next(index for index, token in enumerate(tokens) if token.type == "heading_open")
    assert "".join(child.content for child in tokens[heading + 1].children or []) == NASTY
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
        card.escape_markdown("repghostnet_050.digits (v1) #2") == "repghostnet_050.digits (v1) #2"
    )
    assert card.code("digits[test]") == "`digits[test]`"


@pytest.mark.parametrize("index", range(len(records())))
def test_a_missing_record_is_an_error_and_not_a_gap(index: int) -> None:
    one = records()[index]
    rest = [other for position, other in enumerate(records()) if position != index]
    optional = one.artifact.get("form") == "train" or (
        one.kind == "ratio" and one.artifact["first"]["form"] == "deploy"
    )
    if optional or (one.kind == "latency" and one.values["streams"] == 2):
        return  # a job may start from the folded form, and have one client only
    with pytest.raises(RepzooError, match=one.kind):
        card.render(rest, [])


@pytest.mark.parametrize("kind", ["paired", "fold", "quantize"])
def test_two_jobs_records_are_refused(kind: Kind) -> None:
    twice = [*records(), *(one for one in records() if one.kind == kind)]
    with pytest.raises(RepzooError, match=f"one Record of kind '{kind}'; got 2"):
        card.render(twice, [])


def test_a_job_from_the_folded_form_with_one_client_has_a_card() -> None:
    some = [
        one
        for one in records()
        if one.artifact.get("form") != "train" and one.values.get("streams") != 2
    ]
    some = [one for one in some if one.kind != "ratio" or one.artifact["first"]["form"] == "int8"]
    found = tables(card.render(some, [])["card.md"])
    assert [len(table) for table in found] == [2, 3, 2, 3, 2, 3, 3]


def test_card_json_has_the_same_values_unrounded_and_is_json() -> None:
    made = records()
    made[-1] = dataclasses.replace(
        made[-1], values={"ratio": math.nan, "ratio_low": 1 / 3, "ratio_high": 1}
    )

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    facts = json.loads(card.render(made, ["r"])["card.json"], parse_constant=refuse)
    assert facts["ratios"]["deploy"] == {"ratio": None, "ratio_low": 1 / 3, "ratio_high": 1}
    assert facts["accuracy"]["int8"]["top1"] == 60
    assert facts["remarks"] == ["r"]


def test_both_languages_have_the_words_that_the_template_uses_and_no_others() -> None:
    words = card._words()
    template = (files("repzoo.report") / "templates" / "card.md.j2").read_text("utf-8")
    used = set(re.findall(r"\bt\.(\w+)", template))
    assert set(words["en"]) == set(words["zh"]) == used
    for key in used - {"forms"}:
        places = [sorted(re.findall(r"{(\w+)}", words[language][key])) for language in words]
        assert places[0] == places[1], key
    assert set(words["en"]["forms"]) == set(words["zh"]["forms"]) == {"train", "deploy", "int8"}


@given(st.floats(-100, 100))
def test_points_are_signed_and_never_minus_zero(value: float) -> None:
    text = card.points(value)
    assert float(text) == pytest.approx(value, abs=0.00501)
    assert text == "0.00" or (text[0] == ("-" if value < 0 else "+") and float(text) != 0)


@given(st.floats(1e-6, 1e7))
def test_three_significant_digits(value: float) -> None:
    assert float(card.ms(value)) == pytest.approx(value, rel=0.00501)
    assert "e" not in card.ms(value)
    assert len(re.sub(r"^0\.?0*|\.", "", card.ms(value)).strip()) <= 3 or value >= 999.5


def test_the_card_says_how_the_input_is_made() -> None:
    for text in (card.render(records(), [])[file] for file in card.LANGUAGES.values()):
        for said in (
            "squash",
            "bicubic",
            "BGR",
            "74",
            "[0.1, 0.2, 0.3]",
            "[0.4, 0.6, 0.7]",
        ):  # 74 = 37 / 0.5, before the crop
            assert said in text
