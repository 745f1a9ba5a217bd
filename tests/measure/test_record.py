"""Records as JSON lines: what is written is read back, damage is named, every line is JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sample_results import (
    engine_comparison,
    latency,
    latency_ratio,
    paired_accuracy,
)

from repzoo.errors import InputError
from repzoo.graph.tools.cost_result import Cost
from repzoo.measure import record
from repzoo.measure.board import (
    BoardAccuracy,
    BoardLatency,
    BoardSimilarity,
    NodeSimilarity,
)
from repzoo.measure.comparison_results import QuantizerComparison
from repzoo.measure.peer_latency import PeerLatency
from repzoo.measure.record import Record, read_result, to_json
from repzoo.measure.results import (
    Accuracy,
    CandidateSummary,
    EarlyStopping,
    ExpectedDrop,
    FoldSummary,
    GraphSummary,
    Latency,
    LatencyRatio,
    OperatorTime,
    PairedAccuracy,
    PlacementTrial,
    QuantizeSummary,
    Setting,
)

RESULTS = Path(__file__).parents[2] / "results"
COST = Cost(
    parameters=1, macs=2, bytes=3, nodes=4, operators={"Conv": 1}, uncounted={"Relu": 1}
)
EXPECTED = ExpectedDrop(changed=1.5, changed_error=0.25, drop=0.5, drop_error=0.125)
GRAPH = GraphSummary(
    sha256="aa", parameters=1, macs=2, bytes=3, nodes=4, operators={"Conv": 1}
)
RATIO = latency_ratio(0.5)
CANDIDATE = CandidateSummary(
    recipe="rounding",
    placement="dense",
    passes=True,
    within=True,
    holds=False,
    seconds=1.5,
    culprits=({"layer": "conv", "channels": [1, 2]},),
    paired=paired_accuracy(0.5, expected=EXPECTED, logits_snr_db=30.0),
    ratio=RATIO,
)

EXAMPLES: list[Any] = [
    COST,
    Accuracy(
        n=4,
        top1=25.0,
        top1_low=5.0,
        top1_high=70.0,
        top5=50.0,
        top5_low=15.0,
        top5_high=85.0,
    ),
    paired_accuracy(0.5),
    paired_accuracy(0.5, expected=EXPECTED, mismatch="R and B swapped", top1=80.0),
    latency(2.0, p90_low_ms=2.0, p90_high_ms=3.0, p99_low_ms=3.0, p99_high_ms=4.0),
    latency(
        2.0,
        setting=Setting("single-stream", 1, 1, 1),
        early_stopping=EarlyStopping(percentile=0.9, ms=None),
        **{f"p{rank}_{end}_ms": 2.0 for rank in (90, 99) for end in ("low", "high")},
    ),
    replace(latency_ratio(0.5), fps_ratio=2.0, fps_ratio_low=1.5, fps_ratio_high=2.5),
    PeerLatency(
        setting=Setting("closed-loop", 1, 1, 1),
        contender="NNCF",
        own=False,
        exact=False,
        macs=1_000_000,
        latency=latency(2.0),
        peak_share=0.25,
        ratio=RATIO,
    ),
    FoldSummary(
        equal=None,
        max_abs_error=0.5,
        max_rel_error=0.25,
        bound=1.0,
        top1_agreement=1.0,
        inputs=24,
        proven=7,
        proof_ratio=0.5,
        folds=8,
        refusals=1,
        before=GRAPH,
        after=GRAPH,
        adversarial_cases=3,
    ),
    QuantizeSummary(
        drop=0.5,
        drop_low=-0.5,
        drop_high=1.5,
        p_value=0.5,
        same_prediction=99.0,
        expected=EXPECTED,
        logits_snr_db=30.0,
        labeled=True,
        latency_ratio=0.5,
        latency_ratio_low=0.4,
        latency_ratio_high=0.6,
        recipe="rounding",
        placement="dense",
        rungs=(
            replace(
                CANDIDATE,
                ratio=replace(
                    RATIO,
                    fps_ratio=2.0,
                    fps_ratio_low=1.5,
                    fps_ratio_high=2.5,
                ),
            ),
        ),
        seconds=12.5,
        culprits=(),
        layers=({"layer": "conv"},),
        max_drop=0.3,
        placement_trials=(PlacementTrial("Conv 7x7", 3, True, 0.9, 0.85, 0.95, True),),
        stages={"calibrate": 1.5},
        operators=(OperatorTime("int8", "Reorder jit_uni_I8", 12.5, 0.05, True),),
    ),
    BoardLatency(
        target="rdk-x5",
        source="board log",
        threads=4,
        latency_ms=4.5,
        min_ms=1.0,
        max_ms=5.0,
        percentiles_ms={"p99": 4.75},
        fps=880.0,
        frames=200,
        ddr_bytes=1024,
        memory_bytes=4096,
        accelerator_nodes=119,
        cpu_nodes=1,
    ),
    BoardLatency(target="rdk-x5", source="compiler estimate", fps=880.0),
    BoardAccuracy(
        target="vastai", source="board log", precision="int8", top1=70.5, top5=90.0
    ),
    BoardSimilarity(
        target="rdk-x5",
        calibration="max",
        outputs=(NodeSimilarity(name="output", cosine=0.99, l1=0.5),),
        nodes=(NodeSimilarity(name="conv", device="CPU", threshold=1.5),),
    ),
    QuantizerComparison(
        recipe="nncf-default",
        seconds=3.0,
        reason="",
        engines={"onnxruntime": engine_comparison(0.5, expected_drop=0.25)},
        bytes=10,
        float_bytes=40,
    ),
]


def parse_strictly(text: str) -> Any:
    """Parsed as RFC 8259 has it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("values", EXAMPLES, ids=lambda values: type(values).__name__)
def test_every_result_is_read_back_as_it_was_written(
    values: Any, tmp_path: Path
) -> None:
    written = [
        Record({"name": "a\u2028b\x85c"}, values, data={"name": "digits"}, job="j")
    ]
    record.append(tmp_path / "r.jsonl", written)
    assert record.read(tmp_path / "r.jsonl") == written


def test_every_kind_of_result_has_an_example() -> None:
    assert {type(values) for values in EXAMPLES} == set(record.RESULT_KINDS)


@given(name=st.text(), reason=st.text())
def test_any_text_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, reason: str
) -> None:
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    written = [Record({"name": name}, replace(EXAMPLES[-1], reason=reason))]
    record.append(path, written)
    assert record.read(path) == written


def test_nested_results_are_flat_in_json() -> None:
    document = to_json(CANDIDATE)
    names = (
        "recipe",
        "drop",
        "expected_drop",
        "expected_changed_error",
        "ratio",
        "threads",
    )
    assert set(names) <= document.keys()
    assert not {"paired", "expected", "setting"} & document.keys()
    assert document["expected_drop"] == 0.5
    document = to_json(latency(early_stopping=EarlyStopping(percentile=0.9, ms=None)))
    assert document["early_stopping_percentile"] == 0.9
    assert document["early_stopping_ms"] is None


def test_an_optional_field_that_is_none_is_left_out_and_an_undecided_one_is_null() -> (
    None
):
    assert "early_stopping_ms" not in to_json(latency())
    assert "mismatch" not in to_json(paired_accuracy())
    assert to_json(latency_ratio(1.0))["faster"] is None


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.name
)
def test_the_records_of_this_repository_are_read_and_written_without_loss(
    path: Path,
) -> None:
    """Rows of older versions lack some fields; what they have stays."""
    renamed = {"specimens": "adversarial_cases"}
    dropped = {
        "load"
    }  # of the latency rows of the first version, which no reader asks for
    lines = path.read_text("utf-8").splitlines()
    for row, text in zip(record.read(path), lines, strict=True):
        before, after = json.loads(text), parse_strictly(record.line(row))
        for name, value in before.pop("values").items():
            if name not in dropped:
                assert contains(after["values"][renamed.get(name, name)], value), name
        after.pop("values")
        assert after == before


def contains(new: Any, old: Any) -> bool:
    """Whether `new` has all of `old`, in the same order."""
    if isinstance(old, dict):
        return all(contains(new[key], value) for key, value in old.items())
    if isinstance(old, list):
        return len(new) == len(old) and all(map(contains, new, old))
    return bool(new == old)


def test_a_row_of_the_first_version_is_read_with_none_for_what_it_lacks() -> None:
    old = {
        "n": 100,
        "drop": 1,
        "drop_low": 0,
        "drop_high": 2,
        "p_value": 0.5,
        "same_prediction": 98,
    }
    paired = read_result(PairedAccuracy, old)
    assert paired.drop == 1
    assert paired.expected is None
    assert paired.lost is None
    with pytest.raises(ValueError, match="does not record"):
        _ = paired.discordant


def test_appending_keeps_earlier_lines(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.jsonl"
    for number in range(3):
        record.append(path, [Record({}, replace(COST, nodes=number))])
    assert [row.values.nodes for row in record.read(path)] == [0, 1, 2]
    assert path.read_bytes().endswith(b"\n")


def test_numbers_that_are_not_finite_become_null_and_are_read_as_nan(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.jsonl"
    record.append(path, [Record({}, latency(p99_ms=math.nan, p99_high_ms=math.inf))])
    values = parse_strictly(path.read_text())["values"]
    assert values["p99_ms"] is None
    assert values["p99_high_ms"] is None
    assert math.isnan(record.read(path)[0].values.p99_high_ms)


def test_select_returns_the_records_of_one_kind_in_order() -> None:
    rows: list[Record[Any]] = [
        Record({}, latency(1.0)),
        Record({}, latency_ratio(0.5)),
        Record({}, latency(2.0)),
    ]
    assert [row.values.p50_ms for row in record.select(rows, Latency)] == [1.0, 2.0]
    assert [row.kind for row in record.select(rows, LatencyRatio)] == ["ratio"]


GOOD = record.line(Record({}, COST))


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ("{", "it is not JSON"),
        (GOOD[: len(GOOD) // 2], "it is not JSON"),
        (GOOD + GOOD, "it is not JSON"),
        ("", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "it is not an object with kind"),
        ("null", "it is not an object with kind"),
        ("{}", "it is not an object with kind"),
        (
            GOOD.replace('"cost"', '"guess"'),
            "its kind is 'guess'; expected one of cost, fold",
        ),
        (GOOD.replace('"macs": 2', '"macs": "many"'), "its 'macs' is \"many\""),
        (GOOD.replace('"macs": 2', '"macs": true'), "its 'macs' is true"),
        (GOOD.replace('"macs": 2', '"max": 2'), "it has no 'macs'"),
        (GOOD.replace('"artifact": {}', '"artifact": 3'), "its 'artifact' is 3"),
        (
            GOOD.replace('"artifact": {}', '"artifact": {}, "more": 1'),
            "an unknown field 'more'",
        ),
    ],
)
def test_a_damaged_line_is_named_with_the_reason(
    tmp_path: Path, damaged: str, reason: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"{GOOD}\n{damaged}\n{GOOD}\n")
    with pytest.raises(
        InputError, match=r"r\.jsonl line 2 is not a Record: "
    ) as caught:
        record.read(path)
    assert reason in str(caught.value)


def test_bytes_that_are_not_utf8_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(
        GOOD.replace('"job": ""', '"job": "X"').encode().replace(b"X", b"\xff") + b"\n"
    )
    with pytest.raises(InputError, match="line 1"):
        record.read(path)


def test_a_missing_file_is_an_input_error_and_an_empty_one_has_no_records(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="does not exist"):
        record.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    assert record.read(tmp_path / "empty.jsonl") == []
