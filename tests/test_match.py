"""`repzoo match`: which models fit a budget, what figures rest on, and what is nearest."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import repzoo
from repzoo.console import screen
from repzoo.errors import InputError
from repzoo.measure import record as records_file
from repzoo.measure.board import BoardLatency
from repzoo.measure.host import host
from repzoo.measure.matching import (
    Evidence,
    Limits,
    MatchCandidate,
    choose,
)
from repzoo.measure.predictions import describe_images
from repzoo.measure.record import Record
from repzoo.measure.results import Accuracy, Latency, Setting
from repzoo.measure.sweep import SweepResult
from repzoo.verbs import match_models
from repzoo.zoo import catalog

Run = Callable[..., Any]
ELSEWHERE = {"cpu": "Cortex-A76", "machine": "aarch64", "cores": 4, "int8": ["asimddp"]}


def latency(
    name: str,
    milliseconds: float,
    *,
    form: str = "deploy",
    facts: dict[str, Any] | None = None,
    **changes: Any,
) -> Record[Latency]:
    values = Latency(
        setting=Setting(**changes),
        p50_ms=milliseconds,
        p50_low_ms=milliseconds,
        p50_high_ms=milliseconds,
        p90_ms=milliseconds,
        p99_ms=milliseconds,
        fps=1000 / milliseconds if milliseconds else 0.0,
        fps_low=1.0,
        fps_high=1.0,
        samples=100,
        steady=True,
    )
    artifact = {"name": name, "form": form, "classes": 1000, "size": 224}
    engine = {"name": "onnxruntime", "version": "1"}
    return Record(artifact, values, engine, host=dict(facts or host()))


def written(path: Path, *records: Record[Any]) -> Path:
    records_file.append(path, records)
    return path


def candidate(
    name: str, top1: float, milliseconds: float, host_name: str = "this"
) -> Any:
    return MatchCandidate(
        name,
        "int8",
        host_name,
        "224x224",
        Evidence(top1, "published"),
        Evidence(milliseconds, "measured here"),
    )


# The choice


def test_highest_top1_comes_first_then_lowest_latency() -> None:
    rows = [
        candidate("slow", 75, 4),
        candidate("best", 76, 5),
        candidate("fast", 75, 2),
        candidate("late", 80, 6),
    ]
    result = choose(rows, Limits(max_ms=5, min_top1=75))
    assert [row.model for row in result.fits] == ["best", "fast", "slow"]
    assert [near.candidate.model for near in result.misses] == ["late"]


def test_a_limit_is_kept_by_its_own_value_and_missed_by_more() -> None:
    result = choose([candidate("a", 74, 5)], Limits(max_ms=5, min_top1=74))
    assert result.best is not None
    (near,) = choose([candidate("a", 74, 5)], Limits(max_ms=4, min_top1=75)).misses
    found = {miss.figure: (miss.by, miss.relative) for miss in near.misses}
    # 1 point of the 25 that may be wrong.
    assert found == {"latency_ms": (1, 0.25), "top1": (1, 0.04)}
    assert near.distance == pytest.approx(0.29)


def test_what_lacks_a_figure_neither_fits_nor_is_nearest() -> None:
    untimed = dataclasses.replace(candidate("untimed", 90, 1), latency_ms=None)
    poor = dataclasses.replace(candidate("poor", 69.9, 1), latency_ms=None)
    rows = [untimed, poor, candidate("timed", 60, 9)]
    result = choose(rows, Limits(max_ms=5, min_top1=70))
    assert (result.fits, result.unknown) == ((), (untimed,))
    # `poor` misses by less, but nothing says how slow it is.
    assert [near.candidate.model for near in result.misses] == ["timed", "poor"]
    assert [near.candidate.model for near in result.nearest] == ["timed"]


def test_latencies_of_different_hosts_are_said_not_to_be_comparable() -> None:
    rows = [candidate("a", 75, 2, "this"), candidate("b", 75, 1, "rdk-x5")]
    result = choose(rows, Limits(max_ms=5))
    assert any("not comparable: rdk-x5, this" in text for text in result.remarks)
    assert not choose(rows[:1], Limits(max_ms=5)).remarks


# Published figures


def test_the_boards_published_figures_are_found_at_both_thread_counts() -> None:
    result = repzoo.match(max_ms=2, min_top1=74, max_mb=8, host="rdk-x5")
    assert [row.model for row in result.fits] == ["repvit_m1_0", "repvit_m0_9"]
    best = result.best
    assert best is not None
    assert best.precision == "int8"
    assert best.latency_ms is not None
    assert best.latency_ms.value == 1.97
    assert best.top1 is not None
    assert best.top1.value == 76.5
    assert best.top1.basis == best.latency_ms.basis == "published for the board"
    assert best.weights_mb is not None
    assert best.weights_mb.value == pytest.approx(6.810312)
    saturated = repzoo.match(max_ms=2, host="rdk-x5", threads=4)
    assert not saturated.fits
    (nearest, *_) = saturated.misses
    assert nearest.candidate.latency_ms == Evidence(
        3.48, "published for the board", "D-Robotics RDK model zoo, FasterNet on RDK X5"
    )


def test_figures_that_the_catalog_refutes_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = catalog.spec("repvit_m1_0")
    refuted = tuple(
        dataclasses.replace(figure, wrong=("int8_top1", "latency_1thread_ms"))
        for figure in spec.figures
    )
    wrong = dataclasses.replace(spec, figures=refuted)
    monkeypatch.setattr(catalog, "models", lambda: [wrong])
    result = repzoo.match(max_ms=9, host="rdk-x5")
    assert (result.fits, result.unknown, result.misses) == ((), (), ())


def test_on_this_machine_int8_borrows_the_accuracy_of_float_and_says_so() -> None:
    result = repzoo.match(min_top1=78, max_mb=6, family="repvit")
    best = result.best
    assert best is not None
    assert (best.model, best.precision) == ("repvit_m0_9", "int8")
    assert best.top1 is not None
    assert best.top1.basis == "published for the float model"
    assert any("--max-drop" in text for text in result.remarks)


def test_macs_at_another_size_are_scaled_and_published_accuracies_do_not_count() -> (
    None
):
    result = repzoo.match(max_macs=100e6, size=112, family=("repghost",))
    row = next(item for item in result.fits if item.model == "repghostnet_100")
    assert row.macs is not None
    assert row.macs.basis == "scaled"
    assert row.macs.value == pytest.approx(142394128 / 4)
    assert row.top1 is None


# Records


def test_records_of_this_machine_count_and_the_last_one_wins(tmp_path: Path) -> None:
    older = dataclasses.replace(latency("repvit_m0_9", 1.0), time="2020-01-01T00:00:00")
    path = written(
        tmp_path / "r.jsonl",
        latency("repvit_m0_9", 7.0),
        older,
        latency("repvit_m1_0.dist_450e_in1k", 4.0, form="int8"),
        latency("repvit_m1_1", 0.1, facts=ELSEWHERE),
        latency("repvit_m1_5", 0.1, threads=2),
        latency("repvit_m2_3", 0.1, batch=8),
        dataclasses.replace(
            latency("repvit_m0_6", 0.1),
            artifact={
                "name": "repvit_m0_6.mine",
                "form": "deploy",
                "classes": 10,
                "size": 224,
            },
        ),
    )
    result = repzoo.match(path, max_ms=8, min_top1=74)
    rows = [(row.model, row.precision, row.latency_ms) for row in result.fits]
    assert rows == [
        ("repvit_m1_0", "int8", Evidence(4.0, "measured here", "this")),
        ("repvit_m0_9", "float32", Evidence(7.0, "measured here", "this")),
    ]
    assert "1 of 7 Records are of models with other classes" in result.remarks[0]


def test_a_host_of_records_is_named_by_a_part_of_its_name(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", latency("repvit_m0_9", 3.0, facts=ELSEWHERE))
    result = repzoo.match(path, max_ms=8, host="cortex")
    best = result.best
    assert best is not None
    assert best.latency_ms is not None
    assert best.latency_ms.basis == "measured elsewhere"
    assert best.latency_ms.source == "Cortex-A76, 4 CPUs (asimddp)"
    other = repzoo.match(path, max_ms=8, host="cortex", engine="mnn")
    assert "on mnn with 1 thread is known; those of another engine" in other.remarks[0]


def test_a_board_log_replaces_the_published_figure_and_an_estimate_does_not(
    tmp_path: Path,
) -> None:
    artifact = {"name": "repvit_m0_9", "form": "deploy", "classes": 1000, "size": 224}
    estimate = BoardLatency(target="rdk-x5", source="compiler estimate", latency_ms=0.1)
    new = BoardLatency(target="new-board", source="compiler estimate", latency_ms=0.1)
    log = BoardLatency(target="rdk-x5", source="board log", threads=1, latency_ms=1.7)
    facts = {"kind": "board"}
    estimated = [Record(artifact, item, host=facts) for item in (estimate, new)]
    path = written(tmp_path / "r.jsonl", *estimated)
    for target, basis, value in (
        ("rdk-x5", "published for the board", 1.65),
        ("new-board", "vendor's estimate", 0.1),
    ):
        rows = repzoo.match(path, max_ms=50, host=target).fits
        (row,) = [item for item in rows if item.model == "repvit_m0_9"]
        assert row.latency_ms is not None
        assert (row.latency_ms.basis, row.latency_ms.value) == (basis, value)
    written(path, Record(artifact, log, host=facts), *estimated)
    rows = repzoo.match(path, max_ms=50, host="rdk-x5").fits
    (row,) = [item for item in rows if item.model == "repvit_m0_9"]
    assert row.latency_ms == Evidence(1.7, "board log", "rdk-x5")


def test_with_data_the_choice_is_among_models_measured_on_it(tmp_path: Path) -> None:
    source = repzoo.open_source("digits")
    images = describe_images("digits", source.held_out().keys)
    values = Accuracy(
        n=720,
        top1=98.0,
        top1_low=97.0,
        top1_high=99.0,
        top5=100.0,
        top5_low=99.0,
        top5_high=100.0,
    )
    artifact = {"name": "mine", "form": "int8", "classes": 10, "size": 64}
    mine = Record(artifact, values, data=images)
    elsewhere = dataclasses.replace(mine, host=ELSEWHERE)
    assert repzoo.match(
        written(tmp_path / "e.jsonl", elsewhere), "digits", min_top1=97
    ).fits[0].top1 == Evidence(98.0, "measured elsewhere", "digits, 720 images")
    other = dataclasses.replace(
        mine, artifact={**artifact, "name": "other"}, data={"sha256": "0"}
    )
    path = written(tmp_path / "r.jsonl", mine, other)
    result = repzoo.match(path, "digits", min_top1=97)
    (row,) = result.fits
    assert (row.model, row.precision) == ("mine", "int8")
    assert row.top1 == Evidence(98.0, "measured here", "digits, 720 images")
    assert row.weights_mb is None


def test_what_is_not_a_number_of_its_kind_is_passed_over(tmp_path: Path) -> None:
    path = written(
        tmp_path / "r.jsonl",
        latency("repvit_m0_9", math.nan),
        latency("repvit_m1_0", -1.0),
        latency("repvit_m1_1", 0.0),
    )
    result = repzoo.match(path, max_ms=8)
    assert not result.fits
    assert any("3 of 3 Records" in text for text in result.remarks)


# Measuring


def test_measure_times_only_what_a_latency_alone_keeps_from_being_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, Sequence[str]]] = []

    def forms(name: str, precisions: Sequence[str], _wanted: object) -> Any:
        asked.append((name, precisions))
        if name == "repghostnet_130":
            raise InputError("too large")
        return name

    def benchmark(name: str, **_: object) -> SweepResult:
        # Two placements in INT8: the faster one counts.
        timed = [("deploy", 5.0), ("int8", 4.0), ("int8", 3.0)]
        return SweepResult([latency(name, ms, form=form) for form, ms in timed])

    monkeypatch.setattr(match_models, "_forms", forms)
    monkeypatch.setattr(match_models, "benchmark", benchmark)
    kept: list[Record[Any]] = []
    result = repzoo.match(
        max_ms=4,
        min_top1=75,
        max_mb=23,
        family="repghost",
        measure=True,
        on_records=kept.extend,
    )
    # The others have no published accuracy that is enough, or too many weights.
    assert asked == [
        ("repghostnet_111", ["float32", "int8"]),
        ("repghostnet_130", ["float32", "int8"]),
        ("repghostnet_150", ["int8"]),
        ("repghostnet_200", ["int8"]),
    ]
    best = result.best
    assert best is not None
    assert (best.model, best.precision) == (
        "repghostnet_200",
        "int8",
    )
    assert best.latency_ms == Evidence(3.0, "measured here", "this")
    assert [record.values.p50_ms for record in kept] == [5.0, 3.0] * 3
    assert any(
        "repghostnet_130 could not be timed: too large" in text
        for text in result.remarks
    )


# The command


def test_the_table_fits_eighty_columns_and_names_what_figures_rest_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = run("match", "--host", "rdk-x5", "--max-ms", "2", "--min-top1", "74")
    assert ran.code == 0
    assert ran.err.startswith("note: Top-1 that is published for a board")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "published for the board, D-Robotics RDK model zoo" in ran.out
    if importlib.util.find_spec("timm"):
        assert ran.err.splitlines()[-1].startswith("next: repzoo export repvit_m1_0 ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "any", "--max-ms", "50", "--min-top1", "60"],
        ["--max-ms", "1", "--min-top1", "80"],
        ["--host", "rdk-x5", "--max-ms", "0.1", "--min-top1", "90"],
        ["--min-top1", "70", "--max-mb", "30"],
    ],
)
def test_an_answer_takes_at_most_a_screen(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = run("match", *arguments)
    aside = ran.err.splitlines()
    assert len(ran.out.splitlines()) + screen.line_count(aside) <= screen.LINES
    # What is left out is counted.
    fits = run("match", *arguments, "--json").document["fits"]
    rows = [line for line in ran.out.splitlines() if re.match(r" \w+_\w+ +\w", line)]
    if len(fits) > len(rows):
        assert f"and {len(fits) - len(rows)} more" in ran.out


def test_where_nothing_fits_the_nearest_is_shown_and_the_code_is_4(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    limits = ("--max-ms", "1", "--min-top1", "74", "--max-macs", "0.2G")
    ran = run("match", "--host", "rdk-x5", *limits)
    assert ran.code == 4
    assert "nothing fits; the nearest:" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "nothing fits: the nearest, repghostnet_" in ran.err
    ran = run("match", "--host", "rdk-x5", *limits, "--json")
    assert ran.code == 4
    assert ran.document["fits"] == []
    assert ran.document["limits"]["max_macs"] == 2e8
    assert ran.document["misses"][0]["misses"][0]["by"] > 0


def test_where_no_latency_is_known_measuring_is_offered(run: Run) -> None:
    ran = run("match", "--max-ms", "5", "--min-top1", "74", "--max-mb", "8", "--json")
    assert ran.code == 4
    assert "lack a figure" in ran.err
    assert "--measure" in ran.err
    assert ran.document["unknown"][0]["lacks"] == ["latency_ms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no limit is set"),
        (["--max-ms", "nan"], "not a finite number"),
        (["--max-mb", "0"], "x>0"),
        (["--min-top1", "101"], "0<=x<=100"),
        (["--max-macs", "many"], "not a count such as 300M"),
        (["--max-ms", "5", "--engine", "onxruntime"], "did you mean onnxruntime"),
        (["--max-ms", "5", "--family", "repvg"], "did you mean repvgg"),
        (["--max-ms", "5", "--host", "rdk-x55"], "did you mean rdk-x5"),
        (["--max-ms", "5", "--host", "rdk-x5", "--measure"], "on this machine"),
        (
            ["--max-ms", "5", "--host", "rdk-x5", "--engine", "mnn"],
            "of its own runtime",
        ),
        (["--max-ms", "5", "--data", "digits"], "--append wrote (--records)"),
        (["--max-ms", "5", "--append", "r.jsonl"], "give both"),
        (["--max-ms", "5", "--records", "none.jsonl"], "none.jsonl"),
    ],
)
def test_limits_and_names_that_make_no_sense_are_refused(
    run: Run, arguments: list[str], message: str
) -> None:
    ran = run("match", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in " ".join(ran.err.replace("│", " ").split())


def test_half_written_records_and_hosts_that_a_name_does_not_tell_apart_are_refused(
    run: Run, tmp_path: Path
) -> None:
    other = {**ELSEWHERE, "int8": ["asimddp", "i8mm"]}
    path = written(
        tmp_path / "r.jsonl",
        latency("repvit_m0_9", 3.0, facts=ELSEWHERE),
        latency("repvit_m0_9", 1.0, facts=other),
    )
    ran = run("match", "--max-ms", "5", "--host", "Cortex", "--records", path)
    assert ran.code == 2
    assert "the Records are of 2 hosts that 'Cortex' names" in ran.err
    exact = "Cortex-A76, 4 CPUs (asimddp, i8mm)"
    ran = run("match", "--max-ms", "2", "--host", exact, "--records", path, "--json")
    assert [row["model"] for row in ran.document["fits"]] == ["repvit_m0_9"]
    text = path.read_text()
    path.write_text(text[: len(text) - 40])
    ran = run("match", "--max-ms", "5", "--records", path)
    assert ran.code == 2
    assert "line 2 is not a Record" in ran.err


def test_odd_hosts_in_records_end_in_no_traceback(run: Run, tmp_path: Path) -> None:
    row = json.loads(records_file.line(latency("repvit_m0_9", 3.0)))
    odd: list[Any] = [
        {},
        {"cpu": None},
        {"cpu": "x", "affinity": "two", "int8": [1, None]},
        {"cpu": "\u202ex\x1b[31m", "int8": "avx2"},
    ]
    lines = [json.dumps({**row, "host": facts}) for facts in odd]
    lines.append(json.dumps({**row, "artifact": {"name": 1, "form": [], "size": {}}}))
    lines.append(json.dumps({**row, "artifact": {**row["artifact"], "size": ["a", 2]}}))
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(lines) + "\n")
    ran = run("match", "--max-ms", "5", "--host", "any", "--records", path)
    assert ran.code in (0, 4)
    assert "Traceback" not in ran.err
    assert "\x1b" not in ran.out + ran.err
