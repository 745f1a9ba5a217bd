"""A sweep: every file on every engine in every setting.

The settings run one after the other; within one, all cases are interleaved. What fails is left
out.

Where there are several cases to lose, each file first runs once on each engine at each batch in
a child process (engines/probe.py, about a second each). An engine that crashes there is left
out and does not take this process with it.

Records are handed over as each setting ends, so that an interrupt, a full disk or a crash loses
no finished setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from repzoo.artifact import Artifact
from repzoo.engines import Engine, arithmetic, engine
from repzoo.engines.probe import probe
from repzoo.errors import InputError, MissingExtra
from repzoo.measure import latency, stats
from repzoo.measure import system_noise as noise
from repzoo.measure.latency import Case
from repzoo.measure.record import Record, full_identity_of
from repzoo.measure.results import Latency, LatencyRatio, Scenario, Setting
from repzoo.measure.sentences import sentence
from repzoo.printable import significant
from repzoo.progress import Progress, silent
from repzoo.remark import Remark
from repzoo.summary import Summarized, Summary, Table

# Spread of the per-round medians above which the machine, not the model, makes the difference.
SPREAD = 0.05
# Images in each call where no batch is named; 1 for other scenarios.
USUAL_BATCH = {"multi-stream": latency.QUERY}
# Seconds are advised with a margin, since the rate of calls varies.
MARGIN = 1.1

Pair = tuple[Engine, Artifact]
OnRecords = Callable[[Sequence[Record[Any]]], None]


@dataclass(frozen=True)
class LeftOut:
    """A file that was not timed on an engine in some settings, and why.

    file  empty where the engine itself is not installed
    """

    file: str
    engine: str
    reason: str
    settings: tuple[Setting, ...] = ()

    def __str__(self) -> str:
        """One sentence."""
        case = f"{self.file} on {self.engine}"
        if not self.file:
            case = f"the engine {self.engine}"
        where = ""
        if self.settings:
            where = f" ({'; '.join(map(str, self.settings))})"
        return f"left out: {case}{where}, because {self.reason}"


@dataclass
class SweepResult(Summarized):
    """What a sweep measured.

    ratios   of each file and engine over the first of the same setting
    remarks  reasons to doubt the figures
    """

    records: list[Record[Latency]] = field(default_factory=list)
    ratios: list[Record[LatencyRatio]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    interrupted: bool = False

    def leave_out(self, file: str, engine: str, reason: str, setting: Setting) -> None:
        """Note a case that failed, together with the same failure in other settings."""
        new = LeftOut(file, engine, reason, (setting,))
        for index, known in enumerate(self.left_out):
            if replace(known, settings=new.settings) == new:
                settings = (*known.settings, setting)
                self.left_out[index] = replace(known, settings=settings)
                return
        self.left_out.append(new)

    def _summary(self) -> Summary:
        """A row for each case, a sentence for each comparison, and the remarks."""
        rows = []
        for record in self.records:
            values = record.values
            figures = (values.p50_ms, values.p90_ms, values.p99_ms, values.fps)
            model = [*record.names, str(record.artifact.get("form", ""))]
            cells = [*model, str(record.engine["name"]), str(values.setting)]
            rows.append([*cells, *[significant(figure, 3) for figure in figures]])
        case = ["model", "form", "engine", "setting"]
        headings = [*case, ">p50 ms", ">p90", ">p99", ">FPS"]
        sentences = [sentence(record.values, *record.names) for record in self.ratios]
        notes = [f"note: {remark}" for remark in [*self.left_out, *self.remarks]]
        return Summary([Table(headings, rows)], [*sentences, *notes])


class _Probes:
    """What child processes found out: which files run on which engines at which batch."""

    def __init__(self) -> None:
        self._problems: dict[tuple[str, int, int], str] = {}

    def problem(self, runner: Engine, artifact: Artifact, batch: int) -> str:
        """Why `runner` cannot run `artifact`; "" if it can. Each case is tried once."""
        # The name of an artifact is not its own: two folders may have a file of that name.
        key = (runner.name, id(artifact), batch)
        if key not in self._problems:
            self._problems[key] = ""
            try:
                inputs = latency.inputs_for(artifact, batch)
                probe(runner.name, artifact.model, inputs)
            except InputError as error:
                self._problems[key] = str(error)
        return self._problems[key]


def settings(
    scenarios: Sequence[Scenario],
    threads: Sequence[int],
    streams: Sequence[int],
    batches: Sequence[int],
) -> list[Setting]:
    """Every combination, each once. Single-stream always has one stream and a batch of 1.

    batches  empty: the scenario's usual one, QUERY for multi-stream, else 1
    """
    combinations: dict[Setting, None] = {}
    for scenario, thread_count in product(scenarios, threads):
        usual = USUAL_BATCH.get(scenario, 1)
        for stream_count, batch in product(streams, batches or [usual]):
            if scenario == "single-stream":
                stream_count = batch = 1
            setting = Setting(scenario, thread_count, stream_count, batch)
            combinations[setting] = None
    return list(combinations)


def run(
    artifacts: Sequence[Artifact],
    engines: Sequence[str],
    wanted: Sequence[Setting],
    seconds: float,
    progress: Progress = silent,
    on_records: OnRecords = lambda _: None,
) -> SweepResult:
    """Time every file on every engine in each wanted setting.

    seconds     of measuring for each case
    on_records  called with the Records of each setting as it ends

    Raises:
        InputError: nothing could be measured, an engine's name is unknown, or `on_records`
            raises it.
    """
    result = SweepResult()
    runners = _open_engines(engines, result)
    result.remarks += arithmetic.remarks(runners)
    pairs = list(product(runners, artifacts))
    may_lose_others = len(pairs) * len(wanted) > 1
    probes = _Probes()
    try:
        for index, setting in enumerate(wanted if pairs else ()):
            able = pairs
            if may_lose_others:
                able = _able_pairs(result, pairs, setting, probes)
            stage = _with_stage(progress, f"bench {index + 1} of {len(wanted)}")
            records, ratios = _time_setting(result, able, setting, seconds, stage)
            # Before they are kept here: the caller may fail to write them.
            on_records([*records, *ratios])
            result.records += records
            result.ratios += ratios
    except KeyboardInterrupt:
        if not result.records:
            raise
        result.interrupted = True
        result.remarks.append("interrupted: the settings that were finished are shown")
    if not result.records:
        raise InputError("; ".join(map(str, result.left_out)))
    result.remarks += _simulation_remarks(pairs, result.records)
    result.remarks += remarks(result.records, seconds)
    return result


def remarks(records: Sequence[Record[Latency]], seconds: float) -> list[str]:
    """Reasons to doubt latency Records, each once: `doubts`, and too few calls for p99.

    seconds  of measuring for each case, to advise more
    """
    needed = stats.queries_needed(latency.PERCENTILES["p99"])
    few = [record for record in records if record.values.samples < needed]
    if not few:
        return doubts(records)
    fewest = min(record.values.samples for record in few)
    advised = math.ceil(MARGIN * seconds * needed / fewest)
    too_few = (
        f"p99 rests on {fewest} calls or queries, {needed} are needed: give --seconds "
        f"{advised}; too few in {_first_of(few)}"
    )
    return [too_few, *doubts(records)]


def doubts(records: Sequence[Record[Latency]]) -> list[str]:
    """Reasons to doubt latency Records that come from the machine: trend, spread, other work."""
    sentences = []
    # None: too few rounds to tell.
    unsteady = [record for record in records if record.values.steady is False]
    if unsteady:
        sentences.append(
            Remark(
                "no steady state (a trend of more than {limit:.0%} over the rounds) in {cases}",
                limit=latency.DRIFT,
                cases=_first_of(unsteady),
            )
        )
    wide = [record for record in records if record.values.spread > SPREAD]
    if wide:
        widest = max(record.values.spread for record in wide)
        sentences.append(
            Remark(
                "the interquartile range of the per-round medians is up to {widest:.0%} (more than "
                "{limit:.0%} is noise) in {cases}",
                widest=widest,
                limit=SPREAD,
                cases=_first_of(wide),
            )
        )
    disturbance = noise.worst([record.host for record in records])
    return [*sentences, *noise.sentences(disturbance)]


def _open_engines(names: Sequence[str], result: SweepResult) -> list[Engine]:
    """The engines that are installed; the others are noted."""
    runners = []
    for name in names:
        try:
            runners.append(engine(name))
        except MissingExtra as error:
            result.left_out.append(LeftOut("", name, str(error)))
    return runners


def _able_pairs(
    result: SweepResult, pairs: Sequence[Pair], setting: Setting, probes: _Probes
) -> list[Pair]:
    """The pairs that a child process can run; the others are noted."""
    able = []
    for runner, artifact in pairs:
        problem = probes.problem(runner, artifact, setting.batch)
        if problem:
            result.leave_out(artifact.name, runner.name, problem, setting)
        else:
            able.append((runner, artifact))
    return able


def _with_stage(progress: Progress, stage: str) -> Progress:
    """`progress`, with a stage of ours instead of the name that the timing gives."""
    return lambda _, done, total: progress(stage, done, total)


def _time_setting(
    result: SweepResult,
    pairs: Sequence[Pair],
    setting: Setting,
    seconds: float,
    progress: Progress,
) -> tuple[list[Record[Latency]], list[Record[LatencyRatio]]]:
    """Latencies, and ratios to the first case; what fails is noted in `result`."""
    failed: list[Case] = []

    def leave_out(case: Case, error: InputError) -> None:
        """Note a case that failed while it was timed."""
        failed.append(case)
        result.leave_out(case.artifact.name, case.engine.name, str(error), setting)

    cases = _open_cases(result, pairs, setting)
    records = latency.run(
        cases,
        seconds,
        progress=progress,
        # A single case is compared with nothing, so its sessions need not vary.
        openings=0 if len(cases) > 1 else 1,
        on_error=leave_out,
    )
    # By identity: two cases of equal settings are not the same case.
    failed_ids = set(map(id, failed))
    timed = [case for case in cases if id(case) not in failed_ids]
    ratios = [latency.ratio(case, timed[0]) for case in timed[1:]]
    return list(map(_with_full_identity, records, timed)), ratios


def _with_full_identity(record: Record[Latency], case: Case) -> Record[Latency]:
    """`record` of `case`; of an INT8 model it then says how much of it runs in INT8."""
    return replace(record, artifact=full_identity_of(case.artifact))


def _open_cases(
    result: SweepResult, pairs: Sequence[Pair], setting: Setting
) -> list[Case]:
    """The cases that compile; the others are noted."""
    cases = []
    for runner, artifact in pairs:
        try:
            case = latency.case(
                artifact,
                runner,
                setting.streams,
                setting.threads,
                setting.batch,
                scenario=setting.scenario,
            )
            cases.append(case)
        except InputError as error:
            result.leave_out(artifact.name, runner.name, str(error), setting)
    return cases


def _simulation_remarks(
    pairs: Sequence[Pair], records: Sequence[Record[Latency]]
) -> list[str]:
    """A remark that names INT8 files on engines that compute them in float arithmetic."""
    timed = {(record.engine["name"], record.artifact["name"]) for record in records}
    names = []
    for runner, artifact in pairs:
        is_float_engine = getattr(runner, "simulates_int8", False)
        is_timed = (runner.name, artifact.name) in timed
        if artifact.form == "int8" and is_float_engine and is_timed:
            names.append(f"{artifact.name} on {runner.name}")
    if not names:
        return []
    return [f"computed in float arithmetic, so no latency of INT8: {', '.join(names)}"]


def _first_of(records: Iterable[Record[Latency]]) -> str:
    """The first case by file, engine and setting, and how many more there are."""
    first, *others = records
    name = first.artifact["name"]
    case = f"{name} on {first.engine['name']} ({first.values.setting})"
    return f"{case} and {len(others)} more" if others else case
