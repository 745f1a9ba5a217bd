"""The quantiser's decisions: calibrate once, try each placement, keep the fastest that the gate lets through.

The gate is statistical: a model is refused when its paired drop is *proven* above the budget, that is when the whole 95 %
interval lies above it. A point estimate above the budget whose interval reaches below is let through with a warning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine
from repzoo.errors import GateError, InputError
from repzoo.measure import accuracy, latency
from repzoo.measure.host import host
from repzoo.measure.record import Record, identity_of
from repzoo.progress import Progress, silent
from repzoo.quant import place, qdq, ranges
from repzoo.quant.observe import Histogram, observe
from repzoo.quant.scheme import QuantScheme

BENCH_SECONDS = 1.0


@dataclass(frozen=True)
class Budget:
    """What the result must keep: at most `max_drop` points of Top-1; `force` writes it even so, marked."""

    max_drop: float = 0.3
    force: bool = False


@dataclass(frozen=True)
class Rung:
    """One attempt: its placement, paired drop (points), latency over float (ratio) and whether the gate lets it through."""

    placement: str
    paired: Record
    ratio: Record
    passes: bool

    def to_json(self) -> dict[str, Any]:
        """Without samples."""
        return {"placement": self.placement, "passes": self.passes, **self.paired.values, **self.ratio.values}


@dataclass(frozen=True)
class QuantReport:
    """What was tried and what was chosen; `record` goes to the results, `warnings` to the person."""

    chosen: Rung
    rungs: tuple[Rung, ...]
    record: Record
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """A quantised model to be measured: the name of what made it."""

    name: str
    artifact: Artifact


@dataclass(frozen=True)
class Context:
    """What a report says besides measurements: the recipe, its settings, the data, the budget, and when the work began.

    report   remarks on the calibration images
    started  time.perf_counter()
    """

    recipe: str
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    budget: Budget
    report: ReadReport
    started: float


def quantize(
    artifact: Artifact,
    calibration: Dataset,
    gate: Dataset,
    engine: Engine,
    scheme: QuantScheme,
    budget: Budget,
    progress: Progress = silent,
) -> tuple[Artifact, QuantReport]:
    """The INT8 artifact of the folded, float `artifact`, with the report.

    calibration  images whose activations set the ranges (labels unused)
    gate         labelled images, disjoint from `calibration`, on which the drop is measured

    Raises:
        InputError: not a folded float model, or images that cannot be used.
        GateError: the drop is proven above the budget, whatever the placement.
    """
    require_deploy(artifact)
    started = time.perf_counter()
    report = ReadReport()
    model = qdq.prepared(artifact.model)
    attempts = list(_attempts(artifact, model, _histograms(model, artifact, calibration, engine, report, progress), scheme))
    report.check(calibration.name, len(calibration))
    settings = {"scheme": asdict(scheme), "calibration_images": len(calibration), **asdict(budget)}
    data = {"calibration": calibration.name, "images": len(calibration)}
    return concluded(artifact, attempts, gate, engine, Context(scheme.name, settings, data, budget, report, started), progress)


def require_deploy(artifact: Artifact) -> None:
    """Refuse what is not a folded float model."""
    if artifact.form != "deploy":
        raise InputError(f"{artifact.name} is in {artifact.form} form; quantising starts from the folded float model (repzoo fold)")


def concluded(
    artifact: Artifact, attempts: Sequence[Attempt], gate: Dataset, engine: Engine, context: Context, progress: Progress = silent
) -> tuple[Artifact, QuantReport]:
    """Measure every attempt against the float `artifact` on `gate`; the fastest that passes, with the report.

    Raises:
        GateError: the drop is proven above the budget, whatever the attempt.
    """
    budget, gate_report = context.budget, ReadReport()
    runs = [accuracy.open_run(one, engine) for one in (artifact, *(attempt.artifact for attempt in attempts))]
    rungs = _measured(attempts, accuracy.evaluate(runs, gate, gate_report, progress), engine, budget, progress)
    passing = [index for index, rung in enumerate(rungs) if rung.passes]
    if not passing and not budget.force:
        raise GateError(_refusal(artifact, rungs, budget))
    best = min(passing or range(len(rungs)), key=lambda index: rungs[index].ratio.values["ratio"])
    step = Step("quantize", __version__, {**context.settings, "placement": rungs[best].placement})
    made = artifact.then(attempts[best].artifact.model, step)
    values = _values(rungs, best, context.recipe, time.perf_counter() - context.started)
    data = {**context.data, "gate": gate.name, "gate_images": len(gate)}
    record = Record("quantize", identity_of(made), values, {"name": engine.name, "version": engine.version()}, data)
    remarks = (*context.report.sentences(), *gate_report.sentences(), *_warnings(rungs[best], budget))
    return made, QuantReport(rungs[best], tuple(rungs), record, remarks)


def _histograms(
    model: onnx.ModelProto, artifact: Artifact, calibration: Dataset, engine: Engine, report: ReadReport, progress: Progress
) -> Mapping[str, Histogram]:
    tensors = dict.fromkeys(name for one in place.candidates(model) for name in one.tensors)
    if not tensors:
        raise InputError(
            f"{artifact.name} has no convolution or linear layer with constant weights, so there is nothing to quantise"
        )

    def inputs() -> Iterator[npt.NDArray[np.float32]]:
        done = 0
        for batch in batches(calibration, artifact.needing_preprocess(), 16, report):
            yield batch.inputs
            done += len(batch.indices)
            progress("calibrate", done, len(calibration))

    return observe(model, list(tensors), inputs(), engine, host()["affinity"])


def _attempts(artifact: Artifact, model: onnx.ModelProto, seen: Mapping[str, Histogram], scheme: QuantScheme) -> Iterator[Attempt]:
    for one in place.candidates(model):
        parameters = {name: ranges.activation(seen[name], scheme.ranges) for name in one.tensors}
        made = artifact.then(qdq.write(model, one, parameters, scheme.per_channel), Step("quantize", __version__))
        yield Attempt(one.name, made)


def _measured(
    attempts: Sequence[Attempt], predictions: Sequence[accuracy.Predictions], engine: Engine, budget: Budget, progress: Progress
) -> list[Rung]:
    """A rung for each attempt; `predictions` begin with those of the float model."""
    reference, *predicted = predictions
    floating, *cases = (latency.case(one, engine) for one in (reference.artifact, *(attempt.artifact for attempt in attempts)))
    latency.run([floating, *cases], BENCH_SECONDS, progress=progress)
    rungs = []
    for attempt, case, quantised in zip(attempts, cases, predicted, strict=True):
        paired = accuracy.compare(reference, quantised)
        passes = paired.values["drop_low"] <= budget.max_drop
        rungs.append(Rung(attempt.name, paired, latency.ratio(case, floating), passes))
    return rungs


def _refusal(artifact: Artifact, rungs: Sequence[Rung], budget: Budget) -> str:
    best = min((rung.paired.values for rung in rungs), key=lambda values: values["drop"])
    return (
        f"{artifact.name}: INT8 loses {best['drop']:.2f} points of Top-1 (95 % interval {best['drop_low']:.2f} to {best['drop_high']:.2f}, "
        f"{best['n']} images), above the budget of {budget.max_drop}; nothing was written. Raise --max-drop, or write it with --force"
    )


def _warnings(rung: Rung, budget: Budget) -> list[str]:
    paired, ratio, said = rung.paired.values, rung.ratio.values, []
    if not rung.passes:
        said.append(f"forced: the drop of {paired['drop']:.2f} points is above the budget of {budget.max_drop}")
    elif paired["drop_high"] > budget.max_drop:
        said.append(
            f"{paired['n']} images cannot exclude a drop of up to {paired['drop_high']:.2f} points (budget {budget.max_drop})"
        )
    if ratio["ratio_low"] > 1:
        said.append(f"INT8 takes {ratio['ratio']:.2f} times as long as float on this engine and host")
    return said


def _values(rungs: Sequence[Rung], best: int, recipe: str, seconds: float) -> dict[str, Any]:
    chosen = rungs[best]
    paired = {key: chosen.paired.values[key] for key in ("drop", "drop_low", "drop_high", "p_value", "same_prediction")}
    ratio = {f"latency_{key}": chosen.ratio.values[key] for key in ("ratio", "ratio_low", "ratio_high")}
    return {
        **paired,
        **ratio,
        "recipe": recipe,
        "placement": chosen.placement,
        "rungs": [rung.to_json() for rung in rungs],
        "seconds": round(seconds, 1),
        "culprits": [],
    }
