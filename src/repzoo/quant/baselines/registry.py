"""The table of quantizers: `repzoo` is the ladder (search/ladder.py); others are to compare with.

Another quantizer is a function from a `QuantizerTask` to a quantized model. Its model is measured,
judged by the gate and reported like one of the ladder. Third parties add theirs through the entry
point group `repzoo.recipes`; its name is what `--recipe` takes.
"""

from __future__ import annotations

import math
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
from repzoo.measure.race_result import ALONE, Load
from repzoo.plugins import Plugin, PluginTable, unknown
from repzoo.progress import Progress, silent
from repzoo.protobuf_stream import clone
from repzoo.quant.parameters import qdq_writer
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.gate import Gate, QuantReport, ReportContext, require_folded
from repzoo.quant.search.verdict import Budget

OWN = "repzoo"
# Of prepared images that a quantizer may hold to check accuracy on.
MAX_LABELED_BYTES = 2**29
PREPARED_AT_ONCE = 16  # images


@dataclass(frozen=True)
class QuantizerTask:
    """What a quantizer is given.

    model     float and folded, as qdq_writer.prepare_for_qdq makes it, with one input
              [N, 3, S, S] and one output [N, classes]; the quantizer may change it in place
    images    prepared calibration images, float32 [1, 3, S, S] each
    labeled   at each call, reads prepared images anew and yields each with the index of its right
              class in the model's output; as many as fit MAX_LABELED_BYTES. Raises InputError
              where the images have no labels.
    max_drop  points of Top-1 that may be lost
    """

    model: onnx.ModelProto
    images: Sequence[Array]
    labeled: Callable[[], Iterator[tuple[Array, int]]]
    max_drop: float

    @property
    def input_name(self) -> str:
        """The name of the model's image input."""
        return str(self.model.graph.input[0].name)


Quantizer = Callable[[QuantizerTask], onnx.ModelProto]

QUANTIZERS = PluginTable(
    "recipe",
    "repzoo.recipes",
    {
        "ort-static": Plugin("repzoo.quant.baselines.onnxruntime:ort_static"),
        "ort-static-per-tensor": Plugin(
            "repzoo.quant.baselines.onnxruntime:ort_static_per_tensor"
        ),
        "nncf-default": Plugin("repzoo.quant.baselines.nncf:default", "baselines"),
        "nncf-accuracy-control": Plugin(
            "repzoo.quant.baselines.nncf:accuracy_control", "baselines"
        ),
    },
)


def names() -> list[str]:
    """Every name that --recipe takes, repzoo's own first."""
    return [OWN, *QUANTIZERS.names()]


def load_quantizer(name: str) -> Quantizer:
    """The quantizer called `name`, other than repzoo's own.

    Raises:
        InputError: no quantizer has this name; the nearest names are offered.
        MissingExtra: it needs a package that is not installed.
    """
    if name not in names():
        raise InputError(unknown("recipe", name, names()))
    quantizer: Quantizer = QUANTIZERS.load(name)
    return quantizer


def make_task(
    artifact: Artifact,
    calibration: Dataset,
    check: Dataset,
    max_drop: float,
    report: ReadReport,
    progress: Progress = silent,
) -> QuantizerTask:
    """The task of quantizing `artifact` (folded, float).

    check   labeled images on which a quantizer may measure accuracy
    report  takes note of calibration images that cannot be read

    Raises:
        InputError: no calibration image can be read, or classes that do not fit.
    """
    preprocess = artifact.require_preprocess()
    images: list[Array] = []
    for batch in batches(calibration, preprocess, PREPARED_AT_ONCE, report):
        images.extend(image[None] for image in batch.inputs)
        progress("calibrate", len(images), len(calibration))
    if not images:
        raise InputError(
            "no calibration image could be read; give --data with images of the kind the model "
            "will see"
        )
    model = clone(qdq_writer.prepare_for_qdq(artifact.model))
    return QuantizerTask(model, images, _labeled_reader(artifact, check), max_drop)


def _labeled_reader(
    artifact: Artifact, check: Dataset
) -> Callable[[], Iterator[tuple[Array, int]]]:
    """`QuantizerTask.labeled` over evenly spaced images of `check`."""
    preprocess = artifact.require_preprocess()
    indices = accuracy.class_indices(check, artifact) if check.labeled else []
    image_bytes = 4 * math.prod(preprocess.input_shape)
    limit = max(1, MAX_LABELED_BYTES // image_bytes)
    stride = -(-len(check) // limit)
    sample = check.subset(range(0, len(check), stride))

    def labeled() -> Iterator[tuple[Array, int]]:
        if not check.labeled:
            raise InputError(
                "this quantizer checks accuracy while it works, which needs labeled images: give "
                "--data with one folder per class"
            )
        # Read anew at each call: a quantizer that checks accuracy may hold them or not.
        for batch in batches(sample, preprocess, PREPARED_AT_ONCE, ReadReport()):
            for row, index in zip(batch.inputs, batch.indices, strict=True):
                yield row[None], indices[sample.targets[index]]

    return labeled


def quantize(
    artifact: Artifact,
    split: QuantizationSplit,
    engine: Engine,
    name: str,
    budget: Budget,
    progress: Progress = silent,
    load: Load = ALONE,
) -> tuple[Artifact, QuantReport]:
    """As `ladder.quantize`, by the quantizer called `name`.

    It makes one model, so nothing is selected: the gate images judge that one as they judge the
    ladder's choice.

    Raises:
        InputError: an unknown name, or a model or images that the quantizer cannot use.
        MissingExtra: the quantizer needs a package that is not installed.
        GateError: the drop is proven above the budget.
    """
    require_folded(artifact)
    quantizer = load_quantizer(name)
    started = time.perf_counter()
    report = ReadReport()
    task = make_task(
        artifact, split.calibration, split.gate, budget.max_drop, report, progress
    )
    model = quantizer(task)
    report.check(split.calibration.name, len(split.calibration))
    comparison = FloatComparison(artifact, split.gate, engine, progress)
    gate = Gate(comparison, budget, load=load)
    quantized = artifact.then(model, Step("quantize", __version__))
    measured, paired = gate.measure(name, quantized)
    settings = {"calibration_images": len(split.calibration), **asdict(budget)}
    data = {
        "calibration": split.calibration.name,
        "images": len(split.calibration),
        "selection_images": 0,
    }
    context = ReportContext(settings, data, budget, report.sentences(), started)
    return gate.conclude(measured, [measured.candidate], paired, context)
