"""Every remark that a card can have is translated, with its figures."""

from __future__ import annotations

import ast
import json
import pickle
import re
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image
from tests.quant.search.test_verdict import labels, paired_accuracy

import repzoo
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.measure import system_noise
from repzoo.measure.host import describe
from repzoo.measure.results import LatencyRatio, Setting
from repzoo.quant.search import default_sessions, messages
from repzoo.quant.search.verdict import Budget, Verdict
from repzoo.remark import Remark
from repzoo.report.translation import translate

CHINESE = re.compile(r"[\u4e00-\u9fff]")
SLOWER = LatencyRatio(
    setting=Setting(), ratio=1.2, ratio_low=1.1, ratio_high=1.3, faster=None, rounds=9
)


def gate_remarks() -> list[str]:
    few = paired_accuracy(changed=30, lost=10)
    refused = replace(paired_accuracy(changed=30, lost=30), drop_low=5.0)
    cases = [
        few,
        refused,
        replace(few, multi_label=labels(99.0, -1.0)),
        replace(few, multi_label=labels(80.0, -1.0)),
        replace(few, unjudged="the only output has no Sigmoid", logits_snr_db=20.0),
    ]
    remarks = []
    for paired in cases:
        verdict = Budget().judge(paired)
        remarks += messages.warnings(SLOWER, paired, verdict, 0.3)
    assert {Budget().judge(paired) for paired in cases} >= {Verdict.REFUSED}
    return remarks


def host_remarks() -> list[str]:
    remarks = [default_sessions.sentence(3, 64)]
    disturbed = {
        "used_by_others": 0.5,
        "stolen": 0.5,
        "mhz_before": 1000.0,
        "mhz_after": 2000.0,
    }
    return [remark for remark in remarks if remark] + system_noise.sentences(disturbed)


def image_remarks() -> list[str]:
    report = ReadReport(unreadable=["a.png is broken"], oriented=2)
    report.converted["L"] = 3
    photos = Dataset("photos", ("a",), (), (), Image.open, training=True)
    return report.sentences() + photos.remarks()


def host_facts() -> list[str]:
    facts = {"cpu": "Some CPU", "cores": 4, "affinity": 2}
    loads = {"load_before": 1.0, "load_after": 2.0}
    processor, load = describe({**facts, **loads}).values()
    busy = describe({**loads, "used_by_others": 0.5})["load"]
    return [processor, load, busy, describe({**facts, "affinity": 4})["processor"]]


@pytest.mark.parametrize(
    "make", [gate_remarks, host_remarks, image_remarks, host_facts]
)
def test_remarks_are_translated_with_their_figures(make) -> None:  # type: ignore[no-untyped-def]
    remarks = make()
    assert len(remarks) >= 2
    for remark in remarks:
        chinese = translate(remark, "zh")
        assert CHINESE.search(chinese), remark
        numbers = re.findall(r"\d+(?:\.\d+)?", chinese)
        assert set(numbers) <= set(re.findall(r"\d+(?:\.\d+)?", remark))
        assert translate(remark, "en") == remark


def test_a_text_without_translation_stays_as_it_is() -> None:
    assert translate("something new {x}", "zh") == "something new {x}"
    assert translate(Remark("something {x}", x="new"), "zh") == "something new"


def test_a_remark_is_plain_text_in_json_and_in_copies() -> None:
    remark = Remark("left out: {why}", why="{braces}")
    assert json.dumps([remark]) == '["left out: {braces}"]'
    assert remark == "left out: {braces}"
    again = pickle.loads(pickle.dumps(remark))
    assert again == remark
    assert translate(again, "zh") == translate(remark, "zh") == "已略过：{braces}"


def sentences_in_code() -> set[str]:
    """The first argument of every `Remark(...)` in the package."""
    sentences = set()
    for path in (Path(repzoo.__file__).parent).rglob("*.py"):
        text = path.read_text("utf-8")
        if "Remark(" not in text:
            continue  # parsing all of them takes seconds
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Remark":
                sentences.add(ast.literal_eval(node.args[0]))
    return sentences


def test_every_remark_has_one_translation_with_the_same_fields() -> None:
    text = (files("repzoo.report") / "remarks_zh.toml").read_text("utf-8")
    rows = tomllib.loads(text)["remark"]
    sentences = [row["en"] for row in rows]
    assert set(sentences) == sentences_in_code()
    assert len(set(sentences)) == len(sentences)
    for row in rows:
        fields = [sorted(re.findall("{(.+?)}", row[key])) for key in ("en", "zh")]
        assert fields[0] == fields[1], row["en"]
