"""Every remark that a card can have is translated, with its figures."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from importlib.resources import files

import pytest
from PIL import Image
from tests.quant.search.test_verdict import labels, paired_accuracy

from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.measure import system_noise
from repzoo.measure.host import describe
from repzoo.measure.results import LatencyRatio, Setting
from repzoo.quant.search import default_sessions, messages
from repzoo.quant.search.verdict import Budget, Verdict
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


def test_a_remark_of_unknown_form_stays_as_it_is() -> None:
    assert translate("something new {x}", "zh") == "something new {x}"


def test_translations_have_the_fields_of_their_sentences() -> None:
    text = (files("repzoo.report") / "remarks_zh.toml").read_text("utf-8")
    for row in tomllib.loads(text)["remark"]:
        fields = [sorted(re.findall(r"{(\w+)}", row[key])) for key in ("en", "zh")]
        assert fields[0] == fields[1], row["en"]
