"""The float-on-grid model: a float file that a closed tool rounds to the integers chosen here.

Vendors' tools take a float model, round its weights by their largest magnitude and calibrate
activations by themselves. They cannot be told which integers to use. But weights that lie on the
tool's own grid already, and reach its ends, are rounded to themselves: equalization, GPTQ and bias
correction then survive a tool that has none of them.

1. The weights of each stage are rounded onto the target's grid (on_grid.py), and the result is
   measured in the target's arithmetic with the ranges that the tool would choose (tool_search.py).
   Rounding to nearest, which is what the tool does to the file as it was, is the first candidate.
2. Where the best is not accurate enough, or one layer adds half of the noise, layers are named that
   the target should keep in what it offers beside INT8.
3. Proof: the file's weights are rounded once more as the target does it, and the integers compared
   (grid_proof.py).
4. The gate images say what the file costs in float, and what to expect of it in INT8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.dataset import QuantizationSplit
from repzoo.errors import GateError
from repzoo.graph.tools.older_opset import limit_version
from repzoo.measure.predictions import ModelPredictions
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import PairedAccuracy
from repzoo.progress import Progress, silent
from repzoo.protobuf_stream import clone
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters.stored_activations import KEY, as_document
from repzoo.quant.search import gate as gating
from repzoo.quant.search import ladder, messages
from repzoo.quant.search.candidate import Candidate
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.evaluator import free_memory
from repzoo.quant.search.gate import Gate
from repzoo.quant.search.grid_proof import (
    GridProof,
    KeptLayer,
    kept_layers,
    require_proof,
)
from repzoo.quant.search.on_grid import HardenedLayer
from repzoo.quant.search.tool_judge import ToolComparison, ToolJudge, ToolTrial
from repzoo.quant.search.tool_search import (
    SIMULATED_BATCH,
    FallbackLayer,
    ToolChoice,
    ToolSearch,
)
from repzoo.quant.search.verdict import Budget, Verdict


@dataclass(frozen=True)
class HardenReport:
    """What was chosen, what changed, and what it costs.

    Attributes:
        target: the scheme.
        stage: the stage that the weights come from.
        ranges: how the tool is expected to choose activation ranges.
        candidates: all that were measured in the target's arithmetic, in order.
        layers: those on the grid, in graph order.
        kept: layers with weights that are not.
        fallback: layers that the target should keep out of INT8, most gain first; often none.
        proof: the comparison of integers.
        in_float: the written file against the model that it was made from, both in float.
        predicted: the same, with the file in the target's arithmetic and `fallback` out of INT8: a
            prediction.
        verdict: of the budget, on `predicted`.
        simulated: the model of `predicted`, which any engine runs.
        predictions: of the written file in float, on the gate images.
        first_image: key of the calibration image that a tool should see first, since some compare
            methods on that one alone; "" where the target's has one method.
        trials: the stages in the target's own tool, where it chose among them.
        warnings: sentences for the user.
    """

    target: QuantScheme
    stage: str
    ranges: str
    candidates: tuple[Candidate, ...]
    layers: tuple[HardenedLayer, ...]
    kept: tuple[KeptLayer, ...]
    fallback: tuple[FallbackLayer, ...]
    proof: GridProof
    in_float: Record[PairedAccuracy]
    predicted: Record[PairedAccuracy]
    verdict: Verdict
    simulated: Artifact
    predictions: ModelPredictions
    first_image: str = ""
    trials: tuple[ToolTrial, ...] = ()
    warnings: tuple[str, ...] = ()


def harden(
    artifact: Artifact,
    split: QuantizationSplit,
    target: ladder.Target,
    budget: Budget,
    progress: Progress = silent,
    judge: ToolJudge | None = None,
) -> tuple[Artifact, HardenReport]:
    """The float-on-grid form of the folded float `artifact`, with the report.

    judge  the target's own tool, which then chooses among the stages; None: a simulation of it does

    Raises:
        InputError: not a folded float model, images that cannot be used, or an operator that the
            target's opset lacks.
        GateError: the drop in the target's arithmetic is proven above the budget.
    """
    gating.require_folded(artifact)
    scheme = target.scheme
    # Before the work: it may refuse an operator.
    limit_version(artifact.model, scheme.opset, scheme.ir_version)
    comparison = FloatComparison(
        artifact, split.gate, target.engine, progress, SIMULATED_BATCH
    )
    gate = Gate(comparison, budget)
    evaluator, remarks = ladder.calibrate(gate, split, target)
    search = ToolSearch(evaluator, split.calibration)
    write = partial(_written, artifact, scheme)
    in_tool = ToolComparison(judge, write, progress) if judge else None
    best = search.choose(in_tool.pick if in_tool else None)
    free_memory()
    unfinished = write(best)
    model = unfinished.model
    fallback = with_node_names(model, best.fallback)
    # Together, so that every image is read once.
    simulated, written = gate.comparison.predict([best.built.artifact, unfinished])
    predicted = gate.comparison.pair(simulated)
    verdict = budget.judge(predicted.values)
    if verdict is Verdict.REFUSED and not budget.force:
        layers = evaluator.diagnose(best.built, split.gate)
        raise GateError(
            messages.refusal(artifact.name, layers, predicted.values, budget.max_drop)
        )
    remarks += gate.comparison.report.sentences()
    layers_on_grid = () if best.as_it_is else best.on_grid.layers
    images = evaluator.builder.cache.original.statistics.images
    step = _step(best, fallback, scheme, images, predicted.values)
    result = artifact.then(model, step, **{KEY: unfinished.extras[KEY]})
    written = replace(written, artifact=result, identity=identity_of(result))
    report = HardenReport(
        target=scheme,
        stage=best.stage_name,
        ranges=best.method,
        candidates=tuple(search.candidates),
        layers=layers_on_grid,
        kept=() if best.as_it_is else kept_layers(model, layers_on_grid, scheme),
        fallback=fallback,
        proof=require_proof(result.name, model, layers_on_grid, scheme),
        in_float=gate.comparison.pair(written),
        predicted=predicted,
        verdict=verdict,
        simulated=best.built.artifact,
        predictions=written,
        first_image=best.first_image,
        trials=tuple(in_tool.trials) if in_tool else (),
        warnings=tuple(dict.fromkeys(remarks)),
    )
    return result, report


def _written(artifact: Artifact, scheme: QuantScheme, choice: ToolChoice) -> Artifact:
    """The file of a choice, with our scales of activations; `artifact` is the folded model."""
    source = artifact.model if choice.as_it_is else choice.on_grid.model
    scales = {KEY: as_document(choice.own_scales(scheme))}
    model = as_target_takes_it(source, scheme)
    return artifact.then(model, Step("harden", __version__), **scales)


def _step(
    best: ToolChoice,
    fallback: Sequence[FallbackLayer],
    scheme: QuantScheme,
    images: int,
    predicted: PairedAccuracy,
) -> Step:
    """What the file's history says of how it was hardened, and of what to expect."""
    settings = {
        "target": scheme.name,
        "weight_rule": scheme.weight_rule,
        "per_channel": scheme.per_channel,
        "stage": best.stage_name,
        "ranges": best.method,
        "fallback": [layer.node for layer in fallback],
        "calibration_images": images,
        "predicted": {
            "images": predicted.n,
            "float_top1": predicted.first_top1,
            "top1": predicted.top1,
            "same_prediction": predicted.same_prediction,
        },
    }
    return Step("harden", __version__, settings)


def as_target_takes_it(model: onnx.ModelProto, scheme: QuantScheme) -> onnx.ModelProto:
    """A copy of `model` in the target's opset, for its number of images, every node with a name.

    Tools name nodes in their logs and in their configuration.

    Raises:
        InputError: an operator that the opset lacks.
    """
    result = clone(limit_version(model, scheme.opset, scheme.ir_version))
    names = {node.name for node in result.graph.node}
    for node in result.graph.node:
        if not node.name:
            node.name = _unused(node.output[0], names)
            names.add(node.name)
    if scheme.batch:
        _fix_batch(result, scheme.batch)
    return result


def _unused(name: str, names: set[str]) -> str:
    while name in names:
        name = f"{name}_"
    return name


def _fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Make `model` one for a fixed number of images, as boards' tools want it."""
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim
        if len(sides):
            sides[0].Clear()
            sides[0].dim_value = batch
    del model.graph.value_info[:]  # they may state another batch


def with_node_names(
    model: onnx.ModelProto, fallback: Sequence[FallbackLayer]
) -> tuple[FallbackLayer, ...]:
    """`fallback` with the names that its nodes have in `model`."""
    names = {node.output[0]: node.name for node in model.graph.node}
    return tuple(layer.with_node(names[layer.layer]) for layer in fallback)
