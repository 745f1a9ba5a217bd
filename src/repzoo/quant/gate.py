"""The gate: what an INT8 model must keep, how that is measured, and what is said about it. Every recipe goes through it.

A model *holds* when its paired drop is at most the budget and enough predictions are the float model's own: a few hundred labelled
images cannot tell a drop of 0.3 points from none, but every flipped prediction shows. It is *refused* when its paired drop is
proven above the budget, that is when the whole 95 % interval lies above it. What lies between is let through with a warning.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine
from repzoo.errors import GateError, InputError
from repzoo.measure import accuracy, latency
from repzoo.measure.record import Record, identity_of
from repzoo.progress import Progress, silent
from repzoo.quant import diagnose
from repzoo.quant.diagnose import LayerNoise

BENCH_SECONDS = 1.0
UNCHANGED = 98.0  # % of predictions that must be the float model's own for a rung to hold
ENOUGH = 95.0  # % from which on no layer is taken out of INT8 for the sake of more: that would cost latency
BLAMED = 3  # layers that a refusal names


@dataclass(frozen=True)
class Budget:
    """What the result must keep: at most `max_drop` points of Top-1; `force` writes it even so, marked."""

    max_drop: float = 0.3
    force: bool = False


@dataclass(frozen=True)
class Rung:
    """One attempt and what it gave.

    paired   against the float model on the gate's images; ratio: latency over float
    passes   the gate lets it through; within: the drop as measured is within the budget; holds: no further rung is needed
    seconds  what making and checking it cost
    layers   its noise, worst first; empty where the recipe does not say
    """

    recipe: str
    placement: str
    paired: Record
    ratio: Record
    passes: bool
    within: bool
    holds: bool
    seconds: float = 0.0
    layers: tuple[LayerNoise, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether it passes and nothing that costs latency need be tried."""
        return self.holds or (self.within and self.paired.values["same_prediction"] >= ENOUGH)

    def to_json(self) -> dict[str, Any]:
        """Without samples and layers."""
        own = {name: getattr(self, name) for name in ("recipe", "placement", "passes", "within", "holds", "seconds")}
        return {**own, **self.paired.values, **self.ratio.values}


@dataclass(frozen=True)
class QuantReport:
    """What was tried and what was chosen; `record` goes to the results, `warnings` to the person."""

    chosen: Rung
    rungs: tuple[Rung, ...]
    record: Record
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """A quantised model with the rung that measured it."""

    artifact: Artifact
    rung: Rung

    @property
    def merit(self) -> tuple[bool, bool, bool, float, float]:
        """What makes it the better: it holds, it is enough, it passes, fewer predictions changed, smaller drop."""
        rung, values = self.rung, self.rung.paired.values
        return rung.holds, rung.enough, rung.passes, values["same_prediction"], -values["drop"]


@dataclass(frozen=True)
class Context:
    """What a report says besides measurements.

    settings  of the step that is written into the model; data: names and counts of the images
    remarks   on the calibration images
    started   time.perf_counter() when the work began
    """

    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    budget: Budget
    remarks: Sequence[str]
    started: float


class Gate:
    """The images and the engine that decide about INT8 forms of one float model."""

    def __init__(self, artifact: Artifact, images: Dataset, engine: Engine, budget: Budget, progress: Progress = silent) -> None:
        self.artifact, self.images, self.engine, self.budget, self.progress = artifact, images, engine, budget, progress
        self.report = ReadReport()
        self._float: accuracy.Predictions | None = None

    def paired(self, made: Artifact) -> Record:
        """`made` against the float model, image by image."""
        runs = [accuracy.open_run(one, self.engine) for one in ([made] if self._float else [self.artifact, made])]
        found = accuracy.evaluate(runs, self.images, self.report if not self._float else ReadReport(), self.progress)
        self._float = self._float or found[0]
        return accuracy.compare(self._float, found[-1])

    def judged(self, paired: Record) -> tuple[bool, bool, bool]:
        """(passes, within, holds)."""
        values, most = paired.values, self.budget.max_drop
        within = values["drop"] <= most
        return values["drop_low"] <= most, within, within and values["same_prediction"] >= UNCHANGED

    def timed(self, models: Sequence[Artifact], seconds: float | None = None) -> list[Record]:
        """Latency of each model over the float one's, interleaved."""
        cases = [latency.case(one, self.engine) for one in (self.artifact, *models)]
        latency.run(cases, BENCH_SECONDS if seconds is None else seconds, progress=self.progress)
        return [latency.ratio(one, cases[0]) for one in cases[1:]]

    def attempt(self, recipe: str, made: Artifact) -> Attempt:
        """A whole rung for a model that another recipe made, whose placement and noise are not known."""
        started = time.perf_counter()
        paired = self.paired(made)
        ratio = self.timed([made])[0]
        return Attempt(made, Rung(recipe, recipe, paired, ratio, *self.judged(paired), time.perf_counter() - started))

    def concluded(self, attempts: Sequence[Attempt], context: Context) -> tuple[Artifact, QuantReport]:
        """The best of `attempts`, with its history and report.

        Raises:
            GateError: the drop is proven above the budget, whatever the attempt.
        """
        best = max(attempts, key=lambda one: one.merit)
        rung = best.rung
        if not rung.passes and not self.budget.force:
            raise GateError(self._refusal(rung))
        settings = {"recipe": rung.recipe, "placement": rung.placement, **context.settings}
        if not rung.passes:
            settings["gate"] = self._refusal(rung)
        made = self.artifact.then(best.artifact.model, Step("quantize", __version__, settings))
        rungs = tuple(one.rung for one in attempts)
        values = _values(rungs, rung, context, time.perf_counter() - context.started)
        data = {**context.data, "gate": self.images.name, "gate_images": len(self.images)}
        engine = {"name": self.engine.name, "version": self.engine.version()}
        record = Record("quantize", identity_of(made), values, engine, data)
        remarks = (*context.remarks, *self.report.sentences(), *_warnings(rung, self.budget))
        return made, QuantReport(rung, rungs, record, tuple(dict.fromkeys(remarks)))

    def _refusal(self, rung: Rung) -> str:
        values = rung.paired.values
        blamed = [one.sentence() for one in diagnose.culprits(rung.layers, BLAMED)]
        where = f"Most noise comes from {'; '.join(blamed)}. " if blamed else ""
        return (
            f"{self.artifact.name}: INT8 loses {values['drop']:.2f} points of Top-1 (95 % interval {values['drop_low']:.2f} to "
            f"{values['drop_high']:.2f}, {values['n']} images), above the budget of {self.budget.max_drop}; nothing was written. "
            f"{where}Raise --max-drop, calibrate on images like those that it was checked on, or write it with --force"
        )


def require_deploy(artifact: Artifact) -> None:
    """Refuse what is not a folded float model."""
    if artifact.form != "deploy":
        raise InputError(f"{artifact.name} is in {artifact.form} form; quantising starts from the folded float model (repzoo fold)")


def _warnings(rung: Rung, budget: Budget) -> list[str]:
    paired, ratio, said = rung.paired.values, rung.ratio.values, []
    if not rung.passes:
        said.append(f"forced: the drop of {paired['drop']:.2f} points is above the budget of {budget.max_drop}")
    elif paired["drop_high"] > budget.max_drop:
        said.append(
            f"{paired['n']} images cannot exclude a drop of up to {paired['drop_high']:.2f} points (budget {budget.max_drop})"
        )
    if paired["same_prediction"] < UNCHANGED:
        said.append(f"{100 - paired['same_prediction']:.1f} % of the predictions differ from the float model's")
    if ratio["ratio_low"] > 1:
        said.append(f"INT8 takes {ratio['ratio']:.2f} times as long as float on this engine and host")
    return said


def _values(rungs: Sequence[Rung], chosen: Rung, context: Context, seconds: float) -> dict[str, Any]:
    paired = {key: chosen.paired.values[key] for key in ("drop", "drop_low", "drop_high", "p_value", "same_prediction")}
    ratio = {f"latency_{key}": chosen.ratio.values[key] for key in ("ratio", "ratio_low", "ratio_high")}
    blamed = () if chosen.holds else diagnose.culprits(chosen.layers)
    return {
        **paired,
        **ratio,
        "recipe": chosen.recipe,
        "placement": chosen.placement,
        "rungs": [rung.to_json() for rung in rungs],
        "seconds": round(seconds, 1),
        "culprits": [one.to_json() for one in blamed],
        "layers": [one.to_json() for one in chosen.layers],
        "max_drop": context.budget.max_drop,
    }
