"""Chooses an engine and a form: the fastest of {engines} x {float, INT8} that passes the gate.

1. The float model is calibrated once, for the schemes of all engines (shared_calibration.py).
2. Each engine that computes INT8 has a ladder of its own (contenders.py). Engines whose INT8 could
   not win are not judged. The others are, by what the first engine computes for the float model:
   the default engine, unless another is named.
3. Float and INT8 of all engines are timed in one interleaved race, once more where its intervals
   are so wide that they tell nothing.
4. The best INT8 file that passes the gate wins, unless the fastest float is faster beyond noise:
   the whole interval of the ratio is above 1. Then float wins. Within noise the smaller INT8 does.

The objective says what is best: the latency of a call, images a second with all of the machine's
threads as clients, or the size of the file.

Engines that compute INT8 in float arithmetic race in float alone. An engine that cannot run the
model is left out with the reason. An engine that crashes cannot be caught in this process, so each
one but the default runs the float model in a child process first, and then one in INT8.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from repzoo import __version__, engines
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import map_in_order
from repzoo.data.dataset import QuantizationSplit
from repzoo.engines import DEFAULT_ENGINE, Engine, arithmetic
from repzoo.engines.executed import ExecutedOperator
from repzoo.engines.probe import probe
from repzoo.errors import InputError
from repzoo.measure import latency
from repzoo.measure import system_noise as noise
from repzoo.measure.race_result import Objective, RaceEntry, RaceSummary
from repzoo.measure.record import Record
from repzoo.measure.results import Latency, LatencyRatio, PairedAccuracy
from repzoo.progress import Progress, silent
from repzoo.quant.network.scheme import schemes
from repzoo.quant.search import gate as gating
from repzoo.quant.search.contenders import Contender, Contenders, Contest
from repzoo.quant.search.evaluator import Keep
from repzoo.quant.search.gate import QuantReport, Refusal
from repzoo.quant.search.messages import (
    could_not_win,
    float_wins,
    int8_wins,
    smallest_wins,
)
from repzoo.quant.search.operator_times import operator_times
from repzoo.quant.search.verdict import Budget, Verdict
from repzoo.remark import Remark

AUTO = "auto"  # the engine's name that asks for a race


@dataclass(frozen=True)
class RaceResult:
    """The winner of a race.

    chosen   the model to write
    int8     the best INT8 model, which `report` describes
    report   with the race in its Record
    timings  the Record of each entry that was timed, by its index
    """

    chosen: Artifact
    int8: Artifact
    report: QuantReport
    timings: dict[int, Record[Latency]]

    @property
    def summary(self) -> RaceSummary:
        """The race."""
        race = self.report.record.values.race
        assert race is not None
        return race


@dataclass(frozen=True)
class _Entrant:
    """A form of the model on an engine, before it is timed. Its fields are those of RaceEntry.

    artifact  None where the engine has none. INT8 without a report is for timing alone
    """

    engine: Engine
    form: Literal["deploy", "int8"]
    artifact: Artifact | None = None
    placement: str | None = None
    report: QuantReport | None = None
    refusal: Refusal | None = None
    problem: str = ""

    @property
    def is_float(self) -> bool:
        """Whether it is the float model."""
        return self.form == "deploy"

    @property
    def paired(self) -> PairedAccuracy | None:
        """Against float on the gate images; None for float, and for what could not be made."""
        if self.refusal is not None:
            return self.refusal.paired
        return None if self.report is None else self.report.paired.values

    def entry(self) -> RaceEntry:
        """What is known of it before the race."""
        entry = RaceEntry(
            engine=self.engine.name,
            version=self.engine.version(),
            form=self.form,
            placement=self.placement,
            problem=self.problem,
        )
        # A model for timing alone is no file.
        if self.artifact is not None and (self.is_float or self.report is not None):
            size = sum(len(chunk) for chunk in self.artifact.chunks())
            entry = replace(entry, bytes=size)
        if self.paired is not None:
            verdict = Verdict.REFUSED if self.report is None else self.report.verdict
            entry = replace(entry, drop=self.paired.drop, verdict=verdict.name.lower())
        return entry


def installed_engines() -> list[Engine]:
    """The engines that have a scheme of their own and can be used here, the default first.

    Engines without one are never the fastest in float either: PyTorch, and the reference.
    """
    names = dict.fromkeys(scheme.engine for scheme in schemes().values())
    installed = []
    for name in names:
        if name:
            with contextlib.suppress(InputError):
                installed.append(engines.engine(name))
    return installed


def computes_int8(runner: Engine) -> bool:
    """Whether the latency of an INT8 model on `runner` says anything."""
    return not getattr(runner, "simulates_int8", False)


def usable_engines(
    artifact: Artifact, runners: Sequence[Engine]
) -> tuple[list[Engine], list[str]]:
    """(those of `runners` that run the float `artifact`, remarks on the others)."""
    inputs = latency.inputs_for(artifact)

    def problem(runner: Engine) -> InputError | None:
        # The default is what everything else rests on; if it fails, so does the whole job.
        if runner.name != DEFAULT_ENGINE:
            try:
                probe(runner.name, artifact.model, inputs)
            except InputError as error:
                return error
        return None

    usable = []
    remarks: list[str] = []
    for runner, error in zip(runners, map_in_order(problem, runners), strict=True):
        if error is None:
            usable.append(runner)
        else:
            remarks.append(_left_out(runner.name, error))
    return usable, remarks


def _left_out(engine_name: str, error: InputError) -> Remark:
    return Remark(
        "{engine} is not in the race of engines: {why}",
        engine=engine_name,
        why=str(error),
    )


def quantize(
    artifact: Artifact,
    split: QuantizationSplit,
    contest: Contest,
    budget: Budget,
    progress: Progress = silent,
    keep: Callable[[Engine], Keep] | None = None,
) -> RaceResult:
    """The winner of the race for the folded float `artifact`.

    keep  gives, for an engine, what is called with each candidate made for it

    Raises:
        InputError: see `Ladder`; or no engine runs the model.
        GateError: the drop of INT8 is proven above the budget on every engine.
    """
    started = time.perf_counter()
    runners = [target.engine for target in contest.targets]
    runners += contest.float_only
    floats = [_Entrant(runner, "deploy", artifact) for runner in runners]
    contenders = Contenders(artifact, split, contest, budget, progress, keep)
    contenders.climb()
    while True:
        entrants = [*floats, *map(_int8_entrant, contenders.all)]
        _require_any(contenders.all)
        timed = _steady_race(entrants, contest, progress)
        if not contenders.climb_missed(timed.entries[len(floats) :]):
            break
    contenders.let_go()
    _require_int8(timed.entries)
    winner, reason = choose(timed.entries, contest.objective, contest.hands_out_float)
    race = RaceSummary(
        objective=contest.objective,
        threads=contest.load.threads,
        clients=contest.load.clients,
        entries=tuple(timed.entries),
        winner=winner,
        reason=reason,
        busy=timed.busy,
    )
    profiles = {item.engine.name: item.profile for item in contenders.all}
    chosen, int8, report = _conclude(
        artifact, contest, entrants, race, profiles, started
    )
    remarks = (*_remarks(race), *arithmetic.remarks(runners), *report.warnings)
    report = replace(report, warnings=tuple(dict.fromkeys(remarks)))
    return RaceResult(chosen, int8, report, timed.timings)


def _remarks(race: RaceSummary) -> list[str]:
    """What a user must know of the race."""
    remarks: list[str] = []
    if race.chosen.form == "deploy":
        remarks.append(race.reason)
    for entry in race.entries:
        if entry.could_not_win:
            remarks.append(could_not_win(entry))
    if race.busy:
        # No interval shows it: an engine with threads of its own is held up in all rounds alike.
        remarks.append(
            Remark(
                "other processes used this machine during the race of engines, which slows "
                "engines down unequally; race again when the machine is idle"
            )
        )
    elif _spread(race.entries) > noise.UNSTEADY:
        remarks.append(
            Remark(
                "the race of engines was run twice, and both times the latencies changed by more "
                "than a factor of {factor:g} between rounds, so its winner may be chance; "
                "something slows this machine down: race again when it is quiet",
                factor=noise.UNSTEADY,
            )
        )
    return remarks


def _int8_entrant(contender: Contender) -> _Entrant:
    return _Entrant(
        contender.engine,
        "int8",
        contender.artifact,
        contender.placement,
        contender.report,
        contender.refusal,
        contender.problem,
    )


def _require_any(contenders: Sequence[Contender]) -> None:
    """Raise what the first engine complained of, where no engine has an INT8 model."""
    if any(item.report for item in contenders):
        return
    for item in contenders:
        if item.refusal is not None:
            raise item.refusal
    raise InputError(contenders[0].problem)


def _require_int8(entries: Sequence[RaceEntry]) -> None:
    """Raise where no engine could time its INT8 model."""
    int8 = [entry for entry in entries if entry.form == "int8"]
    if not any(entry.is_timed and entry.is_judged for entry in int8):
        problems = [entry.problem for entry in int8 if entry.problem]
        raise InputError(f"no engine could time its INT8 model: {problems[0]}")


@dataclass(frozen=True)
class _Timed:
    """What a race measured.

    entries  of each entrant
    timings  the Record of each that was timed, by its index
    busy     whether other processes used the machine
    """

    entries: list[RaceEntry]
    timings: dict[int, Record[Latency]]
    busy: bool


def _spread(entries: Sequence[RaceEntry]) -> float:
    """The end of the widest interval of a ratio, over its beginning."""
    spreads = [1.0]
    for entry in entries:
        if entry.ratio_low and entry.ratio_high:
            spreads.append(entry.ratio_high / entry.ratio_low)
    return max(spreads)


def _steady_race(
    entrants: Sequence[_Entrant], contest: Contest, progress: Progress
) -> _Timed:
    """The race; where it told nothing, the steadier of two."""
    first = _race(entrants, contest, progress)
    if _spread(first.entries) <= noise.UNSTEADY:
        return first
    second = _race(entrants, contest, progress)
    return min(first, second, key=lambda timed: _spread(timed.entries))


def _race(entrants: Sequence[_Entrant], contest: Contest, progress: Progress) -> _Timed:
    """Time all of `entrants` in the same rounds."""
    entries = [entrant.entry() for entrant in entrants]
    cases: dict[int, latency.Case] = {}

    def leave_out(index: int, error: InputError) -> None:
        """An engine that cannot run a file is out of the race with it."""
        entries[index] = replace(entries[index], problem=str(error))
        cases.pop(index, None)

    for index, entrant in enumerate(entrants):
        if entrant.artifact is None:
            continue
        try:
            cases[index] = latency.case(
                entrant.artifact,
                entrant.engine,
                contest.load.clients,
                contest.load.threads,
            )
        except InputError as error:
            leave_out(index, error)
    by_case = {id(case): index for index, case in cases.items()}
    latency.run(
        list(cases.values()),
        gating.BENCH_SECONDS,
        progress=progress,
        openings=0,
        on_error=lambda case, error: leave_out(by_case[id(case)], error),
    )
    timings = {index: case.record() for index, case in cases.items()}
    floats = [index for index in timings if entrants[index].is_float]
    if not floats:
        raise InputError(f"no engine could time the float model: {entries[0].problem}")
    fastest = min(floats, key=lambda index: _cost(timings[index], contest.objective))
    busy = False
    for index, case in cases.items():
        ratio = latency.ratio(case, cases[fastest]).values
        busy = busy or ratio.busy
        entries[index] = _timed(
            entries[index], timings[index].values, ratio, contest.objective
        )
    return _Timed(entries, timings, busy)


def _cost(timing: Record[Latency], objective: Objective) -> float:
    """What is to be small."""
    values = timing.values
    return -values.fps if objective == "throughput" else values.p50_ms


def _timed(
    entry: RaceEntry, values: Latency, ratio: LatencyRatio, objective: Objective
) -> RaceEntry:
    """`entry` with its figures; `ratio` is over the fastest float."""
    time_ratio = (ratio.ratio, ratio.ratio_low, ratio.ratio_high)
    if objective == "throughput":
        # Time for an image: the more images a second, the less.
        time_ratio = (
            1 / ratio.fps_ratio,
            1 / ratio.fps_ratio_high,
            1 / ratio.fps_ratio_low,
        )
    value, low, high = time_ratio
    return replace(
        entry,
        p50_ms=values.p50_ms,
        fps=values.fps,
        ratio=value,
        ratio_low=low,
        ratio_high=high,
    )


def choose(
    entries: Sequence[RaceEntry], objective: Objective, hands_out_float: bool
) -> tuple[int, Remark]:
    """(index of the winner, why it wins). At least one float and one INT8 entry were timed."""
    timed = [index for index, entry in enumerate(entries) if entry.is_timed]
    best_int8 = best_int8_of(entries, objective)
    floats = [index for index in timed if entries[index].form == "deploy"]
    best_float = min(floats, key=lambda index: _rank(entries[index], objective))
    first, second = entries[best_int8], entries[best_float]
    if objective == "size":
        if hands_out_float and _rank(second, objective) < _rank(first, objective):
            return best_float, smallest_wins(second)
        return best_int8, smallest_wins(first)
    assert first.ratio_low is not None
    if hands_out_float and first.ratio_low > 1:
        return best_float, float_wins(second, first)
    return best_int8, int8_wins(first, second)


def best_int8_of(entries: Sequence[RaceEntry], objective: Objective) -> int:
    """The index of the best INT8 entry that was timed.

    One that the gate refused comes last: it is there only where the user forces it.
    """
    int8: list[int] = []
    for index, entry in enumerate(entries):
        if entry.is_timed and entry.is_judged:
            int8.append(index)

    def rank(index: int) -> tuple[bool, tuple[float, float]]:
        entry = entries[index]
        return entry.verdict == "refused", _rank(entry, objective)

    return min(int8, key=rank)


def _rank(entry: RaceEntry, objective: Objective) -> tuple[float, float]:
    """A key that is smaller for the better entry."""
    assert entry.ratio is not None
    assert entry.bytes is not None
    if objective == "size":
        return entry.bytes, entry.ratio
    return entry.ratio, entry.bytes


def _conclude(
    artifact: Artifact,
    contest: Contest,
    entrants: Sequence[_Entrant],
    race: RaceSummary,
    profiles: Mapping[str, Sequence[ExecutedOperator] | None],
    started: float,
) -> tuple[Artifact, Artifact, QuantReport]:
    """(the winner's model, the best INT8 model, its report with the race)."""
    best = entrants[best_int8_of(race.entries, contest.objective)]
    assert best.artifact is not None
    assert best.report is not None
    report = best.report.with_values(
        race=race,
        operators=operator_times(
            best.engine,
            artifact,
            best.artifact,
            contest.load.threads,
            profiles.get(best.engine.name),
        ),
        seconds=round(time.perf_counter() - started, 1),
    )
    if race.chosen.form == "int8":
        return best.artifact, best.artifact, report
    settings = {
        "engine": race.chosen.engine,
        "objective": race.objective,
        "threads": race.threads,
        "clients": race.clients,
    }
    chosen = artifact.then(artifact.model, Step("choose", __version__, settings))
    report = replace(
        report, int8=best.artifact, warnings=(), int8_warnings=report.warnings
    )
    return chosen, best.artifact, report
