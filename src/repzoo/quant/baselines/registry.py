"""Recipes: who turns the float model into INT8. `repzoo` is the ladder (ladder.py); the others are what people use elsewhere.

A recipe is a function from a Task to a quantized model. The ladder measures, gates and reports every recipe's model alike, so
that a side-by-side compares like with like. Third parties add theirs through the entry point group `repzoo.recipes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, QuantizationSplit
from repzoo.engines import Array, Engine
from repzoo.errors import InputError
from repzoo.measure import accuracy
from repzoo.plugins import Plugin, PluginTable, unknown
from repzoo.progress import Progress, silent
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.search import gate

OWN = "repzoo"
LABELED_BYTES = 2**29  # of prepared images that a recipe may hold to check accuracy on


@dataclass(frozen=True)
class QuantizerTask:
    """What a recipe is given.

    model     float, folded, as qdq.prepared makes it; one input [N, 3, S, S], one output [N, classes]
    images    prepared calibration images, float32 [1, 3, S, S] each
    labeled  prepared images with the model's output index that is right: pairs, read anew at each call, as many as
              LABELED_BYTES hold
    max_drop  points of Top-1 that may be lost
    """

    model: onnx.ModelProto
    images: Sequence[Array]
    labeled: Callable[[], Iterator[tuple[Array, int]]]
    max_drop: float

    @property
    def input_name(self) -> str:
        """Of the model's image input."""
        return str(self.model.graph.input[0].name)


Quantizer = Callable[[QuantizerTask], onnx.ModelProto]

QUANTIZERS = PluginTable(
    "recipe",
    "repzoo.recipes",
    {
        "ort-static": Plugin("repzoo.quant.baselines.onnxruntime:ort_static"),
        "ort-static-per-tensor": Plugin("repzoo.quant.baselines.onnxruntime:ort_static_per_tensor"),
        "nncf-default": Plugin("repzoo.quant.baselines.nncf:default", "baselines"),
        "nncf-accuracy-control": Plugin(
            "repzoo.quant.baselines.nncf:accuracy_control", "baselines"
        ),
    },
)


def names() -> list[str]:
    """Every recipe that --recipe takes, our own first."""
    return [OWN, *QUANTIZERS.names()]


def load_quantizer(name: str) -> Quantizer:
    """The recipe called `name`, other than our own.

    Raises:
        InputError: unknown (the nearest are offered); MissingExtra: it needs a package that is not installed.
    """
    if name not in names():
        raise InputError(unknown("recipe", name, names()))
    found: Quantizer = QUANTIZERS.load(name)
    return found


def make_task(
    artifact: Artifact,
    calibration: Dataset,
    gate: Dataset,
    max_drop: float,
    report: ReadReport,
    progress: Progress = silent,
) -> QuantizerTask:
    """The Task of quantizing `artifact` (folded, float) by `calibration`, checked on `gate`.

    Raises:
        InputError: no calibration image can be read, or classes that do not fit.
    """
    preprocess = artifact.require_preprocess()
    images: list[Array] = []
    for batch in batches(calibration, preprocess, 16, report):
        images.extend(batch.inputs[index : index + 1] for index in range(len(batch.inputs)))
        progress("calibrate", len(images), len(calibration))
    if not images:
        raise InputError(
            "no calibration image could be read; give --data with images of the kind the model will see"
        )
    indices = accuracy.class_indices(gate, artifact) if gate.labeled else []
    fits = max(1, LABELED_BYTES // (3 * 4 * preprocess.size**2))
    some = gate.subset(range(0, len(gate), -(-len(gate) // fits)))

    def labeled() -> Iterator[tuple[Array, int]]:
        if not gate.labeled:
            raise InputError(
                "the recipe checks accuracy by itself, which takes labeled images: one folder a class"
            )
        for batch in batches(some, preprocess, 16, ReadReport()):
            for row, index in zip(batch.inputs, batch.indices, strict=True):
                yield row[None], indices[some.targets[index]]

    model = onnx.ModelProto()
    model.CopyFrom(
        qdq.prepare_for_qdq(artifact.model)
    )  # other people's quantizers may work in place
    return QuantizerTask(model, images, labeled, max_drop)


def quantize(
    artifact: Artifact,
    split: QuantizationSplit,
    engine: Engine,
    name: str,
    budget: gate.Budget,
    progress: Progress = silent,
) -> tuple[Artifact, gate.QuantReport]:
    """As `ladder.quantize`, by the recipe called `name`: one attempt, so that there is nothing to choose by the selection images;
    measured on the gate's, gated and reported as the ladder's are.

    Raises:
        InputError: unknown recipe, a model or images that it cannot use; MissingExtra; GateError: see ladder.quantize.
    """
    gate.require_folded(artifact)
    made_by, started, report = load_quantizer(name), time.perf_counter(), ReadReport()
    model = made_by(
        make_task(artifact, split.calibration, split.gate, budget.max_drop, report, progress)
    )
    report.check(split.calibration.name, len(split.calibration))
    judge = gate.Gate(artifact, split.gate, engine, budget, progress)
    attempt = judge.attempt(name, artifact.then(model, Step("quantize", __version__)))
    settings = {"calibration_images": len(split.calibration), **asdict(budget)}
    data = {
        "calibration": split.calibration.name,
        "images": len(split.calibration),
        "selection_images": 0,
    }
    context = gate.ReportContext(settings, data, budget, report.sentences(), started)
    return judge.concluded(attempt, [attempt.rung], attempt.rung.paired, context)
