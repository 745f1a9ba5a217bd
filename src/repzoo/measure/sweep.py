"""A sweep: files x engines in every setting. One setting after the other, all its cases
interleaved; what fails is left out.

Where there is more than one case to lose, each file is first run once on each engine at each
batch in a child process (engines/probe.py, about a second each): an engine that crashes there
is left out, and does not take this process with it.

Records are handed over as each setting ends, so that an interrupt, a full disk or a crash costs
the setting at work and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from repzoo.artifact import Artifact
from repzoo.engines import Engine, engine
from repzoo.engines.probe import probe
from repzoo.errors import InputError, MissingExtra
from repzoo.measure import latency, stats
from repzoo.measure import system_noise as noise
from repzoo.measure.latency import Case
from repzoo.measure.record import Record
from repzoo.measure.results import Latency, LatencyRatio, Scenario, Setting
from repzoo.progress import Progress, silent

SPREAD = 0.05  # of the round medians: above it the machine, not the model, makes the difference
USUAL_BATCH = {"multi-stream": latency.QUERY}


@dataclass(frozen=True)
class LeftOut:
    """A file that was not timed on an engine in some settings, and why; the engine is empty
    where none could be had.
    """

    file: str
    engine: str
    reason: str
    settings: tuple[Setting, ...] = ()

    def __str__(self) -> str:
        """One sentence."""
        what = (
            f"{self.file} on {self.engine}"
            if self.file
            else f"the engine {self.engine}"
        )
        where = f" ({'; '.join(map(str, self.settings))})" if self.settings else ""
        return f"left out: {what}{where}, because {self.reason}"


@dataclass
class SweepResult:
    """What a sweep measured.

    ratios: of each file and engine over the first of the same setting; remarks: what to know of
    it.
    """

    records: list[Record[Latency]] = field(default_factory=list)
    ratios: list[Record[LatencyRatio]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    interrupted: bool = False

    def leave_out(self, file: str, engine: str, reason: str, setting: Setting) -> None:
        """Note it, together with the same reason in other settings."""
        for index, known in enumerate(self.left_out):
            if (known.file, known.engine, known.reason) == (file, engine, reason):
                self.left_out[index] = LeftOut(
                    file, engine, reason, (*known.settings, setting)
                )
                return
        self.left_out.append(LeftOut(file, engine, reason, (setting,)))


def settings(
    scenarios: Sequence[Scenario],
    threads: Sequence[int],
    streams: Sequence[int],
    batches: Sequence[int],
) -> list[Setting]:
    """Every combination, each once; single-stream always has one stream and a batch of 1.

    batches  empty: the scenario's usual one, QUERY for multi-stream, else 1
    """
    found: dict[Setting, None] = {}
    for scenario, one in product(scenarios, threads):
        for many, batch in product(streams, batches or [USUAL_BATCH.get(scenario, 1)]):
            single = scenario == "single-stream"
            found[
                Setting(scenario, one, 1 if single else many, 1 if single else batch)
            ] = None
    return list(found)


def run(
    artifacts: Sequence[Artifact],
    engines: Sequence[str],
    wanted: Sequence[Setting],
    seconds: float,
    progress: Progress = silent,
    keep: Callable[[Sequence[Record[Any]]], None] = lambda _: None,
) -> SweepResult:
    """Time every file on every engine in each wanted setting for `seconds` a case.

    keep  is given the Records of each setting as it ends

    Raises:
        InputError: nothing at all could be measured, or an engine's name is unknown, or `keep`
        cannot.
    """
    swept = SweepResult()
    pairs = list(product(_runners(engines, swept), artifacts))
    try:
        tried: dict[tuple[int, int], str] = {}
        for index, setting in enumerate(wanted if pairs else ()):
            shown = _staged(progress, f"bench {index + 1} of {len(wanted)}")
            able = (
                _able(swept, pairs, setting, tried)
                if len(pairs) * len(wanted) > 1
                else pairs
            )
            _group(swept, able, setting, seconds, shown, keep)
    except KeyboardInterrupt:
        if not swept.records:
            raise
        swept.interrupted = True
        swept.remarks.append("interrupted: the settings that were finished are shown")
    if not swept.records:
        raise InputError("; ".join(map(str, swept.left_out)))
    swept.remarks += [
        *_simulated(pairs, swept.records),
        *remarks(swept.records, seconds),
    ]
    return swept


def _simulated(
    pairs: Sequence[tuple[Engine, Artifact]], records: Sequence[Record[Latency]]
) -> list[str]:
    """INT8 files on engines that compute them in float: figures that must not be taken for
    INT8's.
    """
    timed = {(one.engine["name"], one.artifact["name"]) for one in records}
    named = [
        f"{artifact.name} on {runner.name}"
        for runner, artifact in pairs
        if artifact.form == "int8"
        and getattr(runner, "simulates_int8", False)
        and (runner.name, artifact.name) in timed
    ]
    return (
        [f"computed in float arithmetic, so no latency of INT8: {', '.join(named)}"]
        if named
        else []
    )


def _staged(progress: Progress, stage: str) -> Progress:
    return lambda _, done, total: progress(stage, done, total)


def _runners(names: Sequence[str], swept: SweepResult) -> list[Engine]:
    """The engines that are installed."""
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(engine(name))
        except MissingExtra as error:
            swept.left_out.append(LeftOut("", name, str(error)))
    return found


def _able(
    swept: SweepResult,
    pairs: Sequence[tuple[Engine, Artifact]],
    setting: Setting,
    tried: dict[tuple[int, int], str],
) -> list[tuple[Engine, Artifact]]:
    """The pairs that a child process can run; the others are noted. tried: why not, or "", by
    the pair's place and the batch.
    """
    able = []
    for place, (runner, artifact) in enumerate(pairs):
        known = (place, setting.batch)
        if known not in tried:
            tried[known] = _why_not(runner, artifact, setting.batch)
        if tried[known]:
            swept.leave_out(artifact.name, runner.name, tried[known], setting)
        else:
            able.append((runner, artifact))
    return able


def _why_not(runner: Engine, artifact: Artifact, batch: int) -> str:
    try:
        probe(runner.name, artifact.model, latency.inputs_for(artifact, batch))
    except InputError as error:
        return str(error)
    return ""


def _group(
    swept: SweepResult,
    pairs: Sequence[tuple[Engine, Artifact]],
    setting: Setting,
    seconds: float,
    progress: Progress,
    keep: Callable[[Sequence[Record[Any]]], None],
) -> None:
    failed: list[Case] = []

    def leave_out(one: Case, error: InputError) -> None:
        failed.append(one)
        swept.leave_out(one.artifact.name, one.engine.name, str(error), setting)

    cases = _opened(swept, pairs, setting)
    records = latency.run(
        cases,
        seconds,
        progress=progress,
        openings=0 if len(cases) > 1 else 1,
        on_error=leave_out,
    )
    timed = [one for one in cases if not any(one is other for other in failed)]
    ratios = [latency.ratio(one, timed[0]) for one in timed[1:]]
    keep([*records, *ratios])
    swept.records += records
    swept.ratios += ratios


def _opened(
    swept: SweepResult, pairs: Sequence[tuple[Engine, Artifact]], setting: Setting
) -> list[Case]:
    """The cases that compile."""
    cases = []
    for runner, artifact in pairs:
        try:
            cases.append(
                latency.case(
                    artifact,
                    runner,
                    setting.streams,
                    setting.threads,
                    setting.batch,
                    scenario=setting.scenario,
                )
            )
        except InputError as error:
            swept.leave_out(artifact.name, runner.name, str(error), setting)
    return cases


def remarks(records: Sequence[Record[Latency]], seconds: float) -> list[str]:
    """What of latency Records is not as it should be, each matter once: trend, spread, few
    samples, and what disturbed.
    """
    said = []
    if unsteady := [one for one in records if one.values.steady is False]:
        said.append(
            f"no steady state (a trend of more than {latency.DRIFT:.0%} over the rounds) in "
            f"{_listed(unsteady)}"
        )
    if wide := [one for one in records if one.values.spread > SPREAD]:
        most = max(one.values.spread for one in wide)
        said.append(
            f"the interquartile range of the per-round medians is up to {most:.0%} (more than "
            f"{SPREAD:.0%} is noise) in {_listed(wide)}"
        )
    few = [
        one
        for one in records
        if one.values.samples < stats.queries_needed(latency.PERCENTILES["p99"])
    ]
    if few:
        least, needed = (
            min(one.values.samples for one in few),
            stats.queries_needed(latency.PERCENTILES["p99"]),
        )
        enough = f"--seconds {_rounded_up(1.1 * seconds * needed / least)}"
        said.append(
            f"p99 rests on {least} calls or queries, {needed} are needed: give {enough}; too "
            f"few in {_listed(few)}"
        )
    return [*said, *noise.sentences(noise.worst([one.host for one in records]))]


def _rounded_up(value: float) -> int:
    return math.ceil(value)


def _listed(records: Iterable[Record[Latency]]) -> str:
    """The first case by file, engine and setting, and how many more."""
    names = [_named(one) for one in records]
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _named(one: Record[Latency]) -> str:
    return f"{one.artifact['name']} on {one.engine['name']} ({one.values.setting})"
