"""The race of engines and forms: who wins, what is written, and what is left out.

Its timings are made up: which engine is fastest depends on the machine.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.conftest import Run
from tests.small_model import sets, small

from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.engines import engine
from repzoo.engines.onnxruntime import OnnxRuntime
from repzoo.errors import GateError, InputError
from repzoo.measure import accuracy, latency, record, system_noise
from repzoo.measure.host import host
from repzoo.measure.race_result import Load, RaceEntry
from repzoo.measure.results import LatencyRatio, PairedAccuracy, QuantizeSummary
from repzoo.measure.stats import Interval
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search import engine_race, ladder, shared_calibration
from repzoo.quant.search.contenders import Contest
from repzoo.quant.search.engine_race import choose
from repzoo.quant.search.gate import Refusal
from repzoo.quant.search.ladder import Ladder, Target
from repzoo.quant.search.verdict import Budget
from repzoo.verbs import QuantizeOptions, quantize_model, quantize_targets

Ratios = dict[tuple[str, str], float]


def entry(
    name: str, form: Any, ratio: float | None, size: int = 100, **fields: Any
) -> RaceEntry:
    """An entry whose interval reaches 5 % to either side."""
    timed: dict[str, Any] = {}
    if ratio is not None:
        timed = {
            "ratio": ratio,
            "ratio_low": ratio * 0.95,
            "ratio_high": ratio * 1.05,
        }
    return RaceEntry(engine=name, version="1", form=form, bytes=size, **timed, **fields)


FLOATS = [entry("ort", "deploy", 1.0, 400), entry("ov", "deploy", 1.3, 400)]


@pytest.mark.parametrize(
    ("int8", "objective", "expected"),
    [
        # The fastest INT8, on whatever engine.
        ([("ort", 0.9, 100), ("ov", 0.7, 90)], "latency", ("ov", "int8")),
        # Slower than float within noise: INT8, being smaller.
        ([("ort", 1.04, 100), ("ov", 1.2, 90)], "latency", ("ort", "int8")),
        # Faster than its own engine's float, and yet slower than the other one's.
        ([("ov", 1.2, 90)], "latency", ("ort", "deploy")),
        ([("ort", 1.2, 100)], "throughput", ("ort", "deploy")),
        ([("ort", 0.7, 100), ("ov", 1.2, 90)], "size", ("ov", "int8")),
        # Of equally small files the faster.
        ([("ort", 1.4, 90), ("ov", 1.2, 90)], "size", ("ov", "int8")),
        # Nothing is gained where INT8 is no smaller either.
        ([("ort", 0.9, 500)], "size", ("ort", "deploy")),
    ],
)
def test_the_winner(int8: Any, objective: Any, expected: tuple[str, str]) -> None:
    entries = [*FLOATS]
    for name, ratio, size in int8:
        entries.append(entry(name, "int8", ratio, size, verdict="holds"))
    winner, reason = choose(entries, objective, hands_out_float=True)
    chosen = entries[winner]
    assert (chosen.engine, chosen.form) == expected
    assert chosen.engine in reason
    # Where an engine was named, INT8 is what was asked for.
    winner, _ = choose(entries, objective, hands_out_float=False)
    assert entries[winner].form == "int8"


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [
        (0.9, "takes 0.90 of the time of the fastest float, which is on ort"),
        (1.0, "are as fast as far as can be told: INT8 takes 1.00 of the time"),
        (1.2, "was asked for; it takes 1.20 times as long"),
    ],
)
def test_why_int8_wins_is_no_more_than_the_interval_says(
    ratio: float, sentence: str
) -> None:
    entries = [FLOATS[0], entry("ov", "int8", ratio, verdict="holds")]
    _, reason = choose(entries, "latency", hands_out_float=False)
    assert sentence in reason


def test_what_the_gate_refuses_does_not_win_unless_nothing_else_is_left() -> None:
    refused = entry("ov", "int8", 0.5, verdict="refused")
    passing = entry("ort", "int8", 0.9, verdict="within")
    winner, _ = choose([*FLOATS, refused, passing], "latency", hands_out_float=True)
    assert winner == 3
    untimed = entry("ov", "int8", None, problem="refused by the gate")
    winner, _ = choose([*FLOATS, untimed, passing], "latency", hands_out_float=True)
    assert winner == 3
    winner, _ = choose([*FLOATS, refused], "latency", hands_out_float=True)
    assert winner == 2


class Other(OnnxRuntime):
    """A second engine, for which no package is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "other"


@pytest.fixture(autouse=True)
def _no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """No child process, which knows no engine called "other" and takes a second."""
    monkeypatch.setattr(ladder, "probe_int8", lambda _: None)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Ratios:
    """Time over that of float on onnxruntime, by engine and form."""
    ratios: Ratios = {
        ("onnxruntime", "deploy"): 1.0,
        ("onnxruntime", "int8"): 0.9,
        ("other", "deploy"): 1.2,
        ("other", "int8"): 0.6,
    }

    def ratio(first: latency.Case, second: latency.Case) -> Any:
        key = (first.engine.name, first.artifact.form)
        value = ratios[key] / ratios[second.engine.name, second.artifact.form]
        real = measured(first, second)
        values = replace(real.values, ratio=value, ratio_low=value, ratio_high=value)
        return replace(real, values=values)

    measured = latency.ratio
    monkeypatch.setattr(latency, "ratio", ratio)

    def race_ratio(second: latency.Case, first: latency.Case) -> Interval:
        value = ratios[second.engine.name, "int8"] / ratios[first.engine.name, "int8"]
        return Interval(value, value * 0.98, value * 1.02)

    monkeypatch.setattr(latency, "race_ratio", race_ratio)

    def cost(timing: record.Record[Any], _: object) -> float:
        return ratios[timing.engine["name"], "deploy"]

    monkeypatch.setattr(engine_race, "_cost", cost)
    return ratios


def contest(*names: str, **changes: Any) -> Contest:
    """Engines called `names`, with all in INT8."""
    runners = {"onnxruntime": engine("onnxruntime"), "other": Other()}
    scheme = load_scheme("ort-cpu")
    targets = []
    for name in names:
        targets.append(Target(runners[name], scheme, placement="everything"))
    return replace(Contest(tuple(targets)), **changes)


@pytest.mark.usefixtures("made_up")
def test_the_fastest_engine_gets_the_file_which_says_so() -> None:
    result = engine_race.quantize(
        small(), sets(), contest("onnxruntime", "other"), Budget(5)
    )
    race = result.summary
    rows = [(row.engine, row.form, row.ratio) for row in race.entries]
    assert rows == [
        ("onnxruntime", "deploy", 1.0),
        ("other", "deploy", 1.2),
        ("onnxruntime", "int8", 0.9),
        ("other", "int8", 0.6),
    ]
    assert race.chosen is race.entries[3]
    assert result.chosen is result.int8
    assert result.chosen.form == "int8"
    assert result.chosen.steps[-1].settings["engine"] == "other"
    assert result.report.record.engine["name"] == "other"
    assert result.report.int8 is None
    for row in race.entries:
        # The slower INT8 could not win, so that nobody looked at its accuracy.
        assert (row.drop is not None) == (row is race.chosen)
        assert (row.verdict is not None) == (row is race.chosen)
        assert row.could_not_win == (row is race.entries[2])
        # What is for timing alone is no file.
        assert bool(row.bytes) != row.could_not_win
        assert row.p50_ms
    (remark,) = [line for line in result.report.warnings if "looked at" in line]
    assert "--engine onnxruntime makes it" in remark
    # As a Record is read again.
    document = json.loads(json.dumps(record.to_json(result.report.record.values)))
    assert record.read_result(QuantizeSummary, document).race == race


def test_float_is_handed_out_where_int8_cannot_win(made_up: Ratios) -> None:
    made_up["onnxruntime", "int8"] = 1.5
    float_only = contest("onnxruntime", float_only=(Other(),))
    made_up["other", "deploy"] = 0.8
    result = engine_race.quantize(small(), sets(), float_only, Budget(5))
    assert result.chosen.form == "deploy"
    assert result.chosen.model == small().model
    last = result.chosen.steps[-1]
    assert (last.verb, last.settings["engine"]) == ("choose", "other")
    assert result.report.int8 is result.int8
    assert result.int8.form == "int8"
    assert (
        "INT8 cannot win here: its fastest, on onnxruntime" in result.report.warnings[0]
    )
    # What is said of the INT8 model is not said of the file.
    said = " ".join(result.report.warnings)
    assert "as long as float on this engine" not in said
    assert set(result.report.int8_warnings).isdisjoint(result.report.warnings)


place = Ladder.place
PAIRED = PairedAccuracy(
    n=100, drop=9.0, drop_low=7.0, drop_high=11.0, p_value=0.0, same_prediction=90.0
)


def failing_place(self: Ladder, probe_first: bool = False) -> None:
    if self.target.engine.name == "other":
        raise InputError("crashed")
    place(self, probe_first)


def climbed_engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines whose ladders are climbed from now on, in their order."""
    names: list[str] = []
    original = Ladder.climb

    def climb(self: Ladder) -> Any:
        names.append(self.target.engine.name)
        return original(self)

    monkeypatch.setattr(Ladder, "climb", climb)
    return names


@pytest.mark.parametrize(
    ("int8", "budget", "changes", "climbed"),
    [
        # Much slower than INT8 that passes.
        (0.9, Budget(5), {}, ["other"]),
        # Slower within what sessions of one file differ by.
        (0.63, Budget(5), {}, ["other", "onnxruntime"]),
        # Of size a race says nothing.
        (0.9, Budget(5), {"objective": "size"}, ["onnxruntime", "other"]),
        # What only force lets pass keeps nobody out.
        (0.9, Budget(-200, force=True), {}, ["other", "onnxruntime"]),
    ],
)
def test_accuracy_is_looked_at_where_it_could_matter_the_fastest_engine_first(
    int8: float,
    budget: Budget,
    changes: dict[str, Any],
    climbed: list[str],
    made_up: Ratios,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up["onnxruntime", "int8"] = int8
    names = climbed_engines(monkeypatch)
    both = contest("onnxruntime", "other", **changes)
    engine_race.quantize(small(), sets(), both, budget)
    assert names == climbed


@pytest.mark.usefixtures("made_up")
def test_an_engine_that_lost_speed_to_accuracy_is_no_longer_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ladder of the faster one ends with fewer layers in INT8, slower than the other's."""
    names = climbed_engines(monkeypatch)
    climb = Ladder.climb

    def slower(self: Ladder) -> Any:
        model, report = climb(self)
        ratio = report.chosen.ratio
        assert ratio is not None
        now = replace(ratio, ratio=2 * self.search.best.relative_latency)
        return model, replace(report, chosen=replace(report.chosen, ratio=now))

    monkeypatch.setattr(Ladder, "climb", slower)
    both = contest("onnxruntime", "other")
    engine_race.quantize(small(), sets(), both, Budget(5))
    assert names == ["other", "onnxruntime"]


def test_every_engine_is_judged_by_the_first_engines_float_model(
    made_up: Ratios, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up["onnxruntime", "int8"] = 0.61  # both are looked at
    runs: list[tuple[str, str]] = []
    open_run = accuracy.open_run

    def opened(artifact: Artifact, runner: Any, *rest: Any, **options: Any) -> Any:
        runs.append((runner.name, artifact.form))
        return open_run(artifact, runner, *rest, **options)

    monkeypatch.setattr(accuracy, "open_run", opened)
    both = contest("onnxruntime", "other")
    engine_race.quantize(small(), sets(), both, Budget(5))
    assert {name for name, form in runs if form == "int8"} == {"onnxruntime", "other"}
    assert {name for name, form in runs if form == "deploy"} == {"onnxruntime"}
    # On the selection and on the gate images.
    assert [form for _, form in runs].count("deploy") == 2


def failing_race(*_: Any, **__: Any) -> None:
    raise InputError("no session")


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("trouble", ["busy", "fails"])
def test_no_engine_is_left_out_where_the_short_race_says_nothing(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = climbed_engines(monkeypatch)
    if trouble == "fails":
        monkeypatch.setattr(latency, "race", failing_race)
    else:
        monkeypatch.setattr(system_noise, "OTHERS", -1.0)
    engine_race.quantize(small(), sets(), contest("onnxruntime", "other"), Budget(5))
    assert sorted(names) == ["onnxruntime", "other"]


@pytest.mark.parametrize(
    ("highest", "races", "is_said"),
    [([1.9], 1, False), ([5.0, 1.1], 2, False), ([5.0, 4.0], 2, True)],
)
def test_a_race_that_tells_nothing_is_run_again(
    highest: list[float],
    races: int,
    is_said: bool,
    made_up: Ratios,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """highest: the end of INT8's interval in each race; its beginning is INT8's ratio."""
    monkeypatch.setattr(system_noise, "UNSTEADY", 2.0)
    made_up["onnxruntime", "int8"] = 1.0
    ran = 0
    run, ratio = latency.run, latency.ratio

    def counted_run(*arguments: Any, **named: Any) -> Any:
        nonlocal ran
        is_race = named.get("on_error") is not None
        ran += is_race
        return run(*arguments, **named)

    def wide(first: latency.Case, second: latency.Case) -> Any:
        found = ratio(first, second)
        if first.artifact.form != "int8" or not ran:
            return found
        return replace(found, values=replace(found.values, ratio_high=highest[ran - 1]))

    monkeypatch.setattr(latency, "run", counted_run)
    monkeypatch.setattr(latency, "ratio", wide)
    result = engine_race.quantize(small(), sets(), contest("onnxruntime"), Budget(5))
    assert ran == races
    assert result.summary.chosen.ratio_high == min(highest)
    said = [
        remark
        for remark in result.report.warnings
        if "its winner may be chance" in remark
    ]
    assert bool(said) == is_said


def test_an_engine_that_was_left_out_and_wins_the_race_is_looked_at_after_all(
    made_up: Ratios, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short race found it slower; the other way round, the race of all."""
    names = climbed_engines(monkeypatch)
    slow = Interval(2.0, 1.9, 2.1)
    monkeypatch.setattr(
        latency,
        "race_ratio",
        lambda case, _: (
            slow if case.engine.name == "other" else Interval(1.0, 1.0, 1.0)
        ),
    )
    result = engine_race.quantize(
        small(), sets(), contest("onnxruntime", "other"), Budget(5)
    )
    assert made_up["other", "int8"] < made_up["onnxruntime", "int8"]
    assert names == ["onnxruntime", "other"]
    assert result.summary.chosen is result.summary.entries[3]
    assert not any(row.could_not_win for row in result.summary.entries)


@pytest.mark.usefixtures("made_up")
def test_a_refused_ladder_is_let_go_before_the_next_one_is_climbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Ladder.climb
    alive: list[bool] = []
    ladders: list[weakref.ref[Ladder]] = []

    def climb(self: Ladder) -> Any:
        alive.append(any(ladder() is not None for ladder in ladders))
        ladders.append(weakref.ref(self))
        if len(ladders) == 1:
            raise Refusal("too much", PAIRED)
        return original(self)

    monkeypatch.setattr(Ladder, "climb", climb)
    engine_race.quantize(small(), sets(), contest("onnxruntime", "other"), Budget(5))
    assert alive == [False, False]


@pytest.mark.usefixtures("made_up")
def test_an_engine_whose_int8_is_refused_or_fails_is_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Ladder.climb

    def failing(error: Exception) -> Callable[..., Any]:
        def climb(self: Ladder) -> Any:
            if self.target.engine.name == "other":
                raise error
            return original(self)

        return climb

    both = contest("onnxruntime", "other")
    monkeypatch.setattr(Ladder, "climb", failing(Refusal("too much", PAIRED)))
    race = engine_race.quantize(small(), sets(), both, Budget(5)).summary
    # The slower engine is tried after all.
    assert race.chosen is race.entries[2]
    refused = race.entries[3]
    assert (refused.verdict, refused.drop, refused.ratio) == ("refused", 9.0, None)
    assert refused.problem == "refused by the gate"
    alone = contest("other")
    with pytest.raises(GateError, match="too much"):
        engine_race.quantize(small(), sets(), alone, Budget(5))
    monkeypatch.setattr(Ladder, "climb", failing(InputError("cannot run it")))
    with pytest.raises(InputError, match="cannot run it"):
        engine_race.quantize(small(), sets(), alone, Budget(5))
    monkeypatch.setattr(Ladder, "climb", original)
    monkeypatch.setattr(Ladder, "place", failing_place)
    race = engine_race.quantize(small(), sets(), both, Budget(5)).summary
    assert race.chosen is race.entries[2]
    assert race.entries[3].problem == "crashed"


def test_engines_that_cannot_run_the_model_do_not_race(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crash(*_: object) -> None:
        raise InputError("the engine other crashed (signal SIGSEGV)")

    monkeypatch.setattr(engine_race, "probe", crash)
    runners = [engine("onnxruntime"), Other()]
    usable, remarks = engine_race.usable_engines(small(), runners)
    assert [runner.name for runner in usable] == ["onnxruntime"]
    assert remarks == [
        "other is not in the race of engines: the engine other crashed (signal SIGSEGV)"
    ]


def test_installed_engines_are_those_with_a_scheme_the_default_first() -> None:
    names = [runner.name for runner in engine_race.installed_engines()]
    assert names[0] == "onnxruntime"
    assert set(names) <= {"onnxruntime", "openvino", "mnn"}
    assert engine_race.computes_int8(engine("onnxruntime"))
    assert not engine_race.computes_int8(engine("reference"))


def test_a_shared_calibration_gives_each_scheme_what_its_own_would() -> None:
    images = sets().calibration.subset(range(16))
    runner = engine("onnxruntime")
    schemes = [load_scheme("ort-cpu"), load_scheme("openvino-cpu")]
    shared = shared_calibration.share_calibration(small(), images, schemes, runner)
    for scheme in schemes:
        own = shared_calibration.share_calibration(small(), images, [scheme], runner)
        form = shared_calibration.form_for(own.model, scheme)
        starts = shared_calibration.starting_placements(
            small(), PlacementSpace(form, scheme)
        )
        first = shared.for_placements(form, starts).statistics
        second = own.calibration.statistics
        assert first.histograms.keys() == second.histograms.keys()
        assert first.moments.keys() == second.moments.keys()


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo tests/conftest.py, which turns races off."""
    monkeypatch.setattr(quantize_model, "is_race", quantize_targets.is_race)
    monkeypatch.setattr(
        engine_race, "installed_engines", lambda: [engine("onnxruntime")]
    )


QUICK = ("--data", "digits", "--images", 32, "--max-drop", 5, "--search", 0)


@pytest.mark.usefixtures("races")
def test_auto_writes_the_float_model_and_says_so(
    run: Run, small_file: Path, tmp_path: Path, made_up: Ratios
) -> None:
    made_up["onnxruntime", "int8"] = 1.5
    output = tmp_path / "out.onnx"
    frontier = tmp_path / "frontier"
    ran = run("quantize", small_file, "-o", output, *QUICK, "--pareto", frontier)
    assert ran.code == 0, ran.err
    shown = " ".join(ran.out.split())
    assert "written: the float model. The figures before the race are of INT8" in shown
    assert "--engine onnxruntime or --objective size writes that" in shown
    assert "INT8 cannot win here" in ran.err
    written = Artifact.read(output)
    assert written.form == "deploy"
    assert written.steps[-1].settings["engine"] == "onnxruntime"
    table = (frontier / "pareto.md").read_text("utf-8")
    rows = record.read(frontier / "records.jsonl")
    files = {path.name for path in frontier.glob("*.onnx")}
    assert {"latency", "paired"} <= {row.kind for row in rows}
    assert files
    for name in files:
        assert f"`{name}`" in table
        Artifact.read(frontier / name)


def test_the_output_replaces_neither_the_input_nor_a_file_of_the_frontier(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    before = small_file.read_bytes()
    for command in (("quantize", "--data", "digits"), ("fold",)):
        ran = run(*command, small_file, "-o", small_file)
        assert ran.code == 2
        assert "is the input, which would be lost" in ran.err
    assert small_file.read_bytes() == before
    folder = tmp_path / "frontier"
    options = (*QUICK, "--pareto", folder)
    ran = run("quantize", small_file, "-o", folder / "float.onnx", *options)
    assert ran.code == 2
    assert "is in the folder of --pareto" in " ".join(ran.err.split())
    assert not folder.exists()


@pytest.mark.usefixtures("races")
def test_no_frontier_of_an_engine_whose_int8_is_float_arithmetic(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    options = ("--engine", "reference", "--pareto", tmp_path / "frontier")
    ran = run("quantize", small_file, "-o", tmp_path / "out.onnx", *QUICK, *options)
    assert ran.code == 2
    assert "leave out pareto (--pareto), or name another" in " ".join(ran.err.split())
    assert not list(tmp_path.glob("*ont*"))


@pytest.mark.parametrize(
    "settings",
    [
        {"search": 0.0},
        {"search": 0.0, "engine": "onnxruntime"},
        {"precision": "fp16"},
        {"recipe": "ort-static"},
    ],
)
@pytest.mark.usefixtures("races")
def test_sessions_that_are_timed_have_as_many_threads_as_asked_for(
    settings: dict[str, Any], small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_model, "host", lambda: {**host(), "affinity": 2})
    loads: list[tuple[int, int]] = []

    def opened(*arguments: Any, **options: Any) -> latency.Case:
        case = original(*arguments, **options)
        loads.append((case.threads, case.streams))
        return case

    original = latency.case
    monkeypatch.setattr(latency, "case", opened)
    options = {"images": 32, "threads": 2, "force": True, **settings}
    made = verbs.quantize(small_file, "digits", **options)
    assert loads
    assert set(loads) == {(2, 1)}
    assert made.report is not None
    race = made.report.record.values.race
    assert (race is not None) == ("engine" not in settings and "search" in settings)
    if race is not None:
        assert race.load == Load(threads=2)
    ratio = made.report.chosen.ratio
    assert ratio is not None
    assert ratio.setting.threads == 2


@pytest.mark.parametrize(
    ("cores", "threads", "clients"), [(1, 1, 1), (4, 1, 4), (4, 2, 2), (6, 4, 1)]
)
def test_clients_keep_all_cores_busy_where_throughput_counts(
    cores: int, threads: int, clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_targets, "host", lambda: {"affinity": cores})
    options = QuantizeOptions(objective="throughput", threads=threads)
    assert quantize_targets.load_for(options) == Load(threads, clients)
    options = QuantizeOptions(threads=threads)
    assert quantize_targets.load_for(options) == Load(threads, 1)


@pytest.mark.usefixtures("races")
def test_an_engine_that_is_named_gets_int8_by_any_objective(
    made_up: Ratios, small_file: Path
) -> None:
    made_up["onnxruntime", "int8"] = 1.5
    options: dict[str, Any] = {
        "images": 32,
        "max_drop": 5.0,
        "search": 0.0,
        "engine": "onnxruntime",
    }
    for objective in ("throughput", "size"):
        int8 = verbs.quantize(small_file, "digits", objective=objective, **options)
        assert int8.form == "int8"
        assert int8.report is not None
        assert int8.report.record.values.race is None
        ratio = int8.report.chosen.ratio
        assert isinstance(ratio, LatencyRatio)
        if objective == "size":
            assert int8.report.chosen.placement == "everything"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--objective", "speed"), "objective"),
        (("--engine", "autoo"), "did you mean auto?"),
        (("--pareto", "p", "--scheme", "rdk-x5"), "leave out pareto (--pareto)"),
        (
            ("--objective", "throughput", "--scheme", "rdk-x5"),
            "leave out objective (--objective)",
        ),
        (("--threads", "2", "--scheme", "rdk-x5"), "leave out threads (--threads)"),
        (("--threads", "4096"), "give at most"),
        (("--threads", "0"), "--threads"),
        (("--pareto", "p", "--precision", "fp16"), "pareto (--pareto) is a setting"),
        (("--objective", "size", "--recipe", "ort-static"), "leave out pareto and"),
        (("--pareto", "full"), "is not empty"),
        (("--pareto", "file"), "is a file"),
    ],
)
def test_bad_input_is_refused_before_the_work(
    run: Run,
    small_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.onnx").touch()
    (tmp_path / "file").touch()
    ran = run("quantize", small_file, "-o", "o.onnx", "--data", "digits", *options)
    assert ran.code == 2
    assert message in " ".join(ran.err.split())
    assert not (tmp_path / "o.onnx").exists()
    assert not (tmp_path / "p").exists()
