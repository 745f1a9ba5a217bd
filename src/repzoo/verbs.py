"""The verbs: what the command line and `import repzoo` offer. Each wires the layers below; none holds an algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, Source
from repzoo.data.folder import load_image
from repzoo.data.preprocess import prepare
from repzoo.data.source import open_source
from repzoo.engines import Engine, engine
from repzoo.errors import InputError, MissingExtra
from repzoo.measure import accuracy, latency
from repzoo.measure.host import host
from repzoo.measure.record import Record
from repzoo.plugins import unknown
from repzoo.progress import Progress, silent
from repzoo.quant import ladder
from repzoo.quant.scheme import scheme as scheme_called
from repzoo.zoo import catalog, embedded

if TYPE_CHECKING:  # onnx-ir takes a quarter of a second to import: only the verbs that rewrite graphs pay for it
    from repzoo.graph.certify import Certificate

DEFAULT_ENGINE = "onnxruntime"
CERTIFIED_IMAGES = 16


def load(model: str | Path, **preprocess: Any) -> Artifact:
    """An artifact from a file or from the package (`repghostnet_050.digits`).

    preprocess  fields of Preprocess that replace, or for a foreign file supply, what the file says

    Raises:
        InputError: no such file or model; the nearest names are offered.
    """
    path = Path(model)
    if path.suffix == ".onnx" or path.exists():
        found = Artifact.read(path)
    elif str(model) in embedded.names():
        found = embedded.read(str(model))
    elif str(model) in {row.name for row in catalog.models()}:
        raise InputError(
            f"{model} has no embedded weights; write it first: repzoo export {model} -o {model}.onnx --checkpoint FILE"
        )
    else:
        raise InputError(unknown("model", str(model), [*embedded.names(), *(row.name for row in catalog.models())]))
    given = {key: value for key, value in preprocess.items() if value is not None}
    if not given:
        return found
    base = asdict(found.preprocess) if found.preprocess else {}
    return replace(found, preprocess=Preprocess.from_mapping({**base, **given}))


def embedded_for(classes: Sequence[str]) -> str:
    """Name of the embedded checkpoint that knows all of `classes`.

    Raises:
        InputError: none does; says what to do.
    """
    for name in embedded.names():
        if set(classes) <= set(embedded.read(name).labels):
            return name
    raise InputError(
        f"no embedded model knows the classes {', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''}; give a MODEL.onnx, "
        "or train one: repzoo train repghostnet_050 --data DIR"
    )


def trainer() -> Callable[..., Any]:
    """The `train` verb, imported on use: it needs torch.

    Raises:
        MissingExtra: torch or timm is not installed.
    """
    try:
        from repzoo.train.run import train
    except ModuleNotFoundError as error:
        raise MissingExtra("training", "torch") from error
    return train


@dataclass(frozen=True)
class ExportOptions:
    """Settings of `export`. checkpoint: a .safetensors or weights-only .pth file in the model's own (timm) naming."""

    checkpoint: Path | None = None
    pretrained: bool = False
    num_classes: int | None = None
    opset: int = 17
    dynamic_batch: bool = True
    form: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse, before anything is built, what no export could make."""
        if self.form not in ("train", "deploy"):
            raise InputError(f"form must be train or deploy; got {self.form!r}")
        if not 11 <= self.opset <= 20:
            raise InputError(f"opset must lie in 11..20; got {self.opset}")
        if self.num_classes is not None and self.num_classes < 1:
            raise InputError(f"num_classes must be at least 1; got {self.num_classes}")


def export(model: str, options: ExportOptions | None = None, labels: Sequence[str] = (), **preprocess: Any) -> Artifact:
    """The training form (or with form="deploy" the folded form) of a catalogue model as an Artifact.

    Without a checkpoint or `pretrained` the weights are random (seeded): right for counting and timing, not for accuracy.

    Raises:
        InputError: unknown model, checkpoint that does not fit, opset outside 11..20.
        MissingExtra: torch or timm is not installed.
    """
    options = options or ExportOptions()
    row = catalog.spec(model)
    given = {key: value for key, value in preprocess.items() if value is not None}
    prepared = Preprocess.from_mapping({**asdict(row.preprocess), **given})
    classes = options.num_classes or len(labels) or row.num_classes
    module = _built(model, classes, options)
    weights = str(options.checkpoint.name) if options.checkpoint else ("pretrained" if options.pretrained else "random")
    step = Step("build", __version__, {"model": model, "weights": weights, "num_classes": classes, "seed": options.seed})
    from repzoo.graph import export as exporting
    from repzoo.zoo import families

    names = tuple(labels) or (families.imagenet_labels() if classes == families.IMAGENET_CLASSES else ())
    made = exporting.export(module, model, prepared, names, step, opset=options.opset, dynamic_batch=options.dynamic_batch)
    return fold(made)[0] if options.form == "deploy" else made


def _built(model: str, classes: int, options: ExportOptions) -> Any:
    from repzoo.zoo import families

    module = families.seeded(model, classes, options.seed, options.pretrained)
    if options.checkpoint:
        from repzoo.zoo import checkpoints

        checkpoints.load_into(module, options.checkpoint)
    return module


def fold(
    artifact: Artifact, images: npt.NDArray[np.float32] | None = None, engine_name: str = DEFAULT_ENGINE
) -> tuple[Artifact, Certificate]:
    """The deploy form with its certificate, which also goes into the artifact's metadata.

    images  real inputs, float32 [n, 3, size, size], to certify on besides random ones

    Raises:
        InputError: the graph is quantised, or not a classifier.
        CertificateError: the result is not proven equal.
    """
    artifact.input_name  # noqa: B018  refuses what is not a classifier
    from repzoo.graph import certify as certifying
    from repzoo.graph import fold as folding

    result = folding.fold(artifact.model)
    runner = engine(engine_name)

    def run(model: onnx.ModelProto, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return runner.open(model, host()["affinity"], exact=True).run(inputs)

    certificate = certifying.certify(artifact, result, run, images)
    settings = {"folds": len(result.folds), "refusals": len(result.refusals)}
    return artifact.then(result.model, Step("fold", __version__, settings), certificate=certificate.to_json()), certificate


@dataclass(frozen=True)
class QuantizeOptions:
    """Settings of `quantize`."""

    engine: str = DEFAULT_ENGINE
    scheme: str = "ort-cpu"
    max_drop: float = 0.3
    images: int = 256
    force: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a budget or a count that means nothing."""
        if not math.isfinite(self.max_drop):
            raise InputError(f"max_drop must be a finite number of points; got {self.max_drop}")
        if self.images < 1:
            raise InputError(f"images must be at least 1; got {self.images}")


def quantize(
    artifact: Artifact, data: str | Path | Source, options: QuantizeOptions | None = None, progress: Progress = silent
) -> tuple[Artifact, ladder.QuantReport]:
    """The INT8 form of `artifact` (folded first when it is not), with the report of what was tried.

    Calibrates on `data`'s training part (or a quarter of a flat folder) and gates on the rest.

    Raises:
        InputError: bad images or model; CertificateError: see `fold`; GateError: the drop is proven above the budget.
    """
    options = options or QuantizeOptions()
    source = data if isinstance(data, Source) else open_source(data)
    if artifact.form == "train":
        artifact, _ = fold(artifact)
    calibration, gate = source.calibration_split(options.images, options.seed)
    accuracy.class_indices(gate, artifact)  # refuses strange classes before the work, not after it
    budget = ladder.Budget(options.max_drop, options.force)
    return ladder.quantize(artifact, calibration, gate, engine(options.engine), scheme_called(options.scheme), budget, progress)


@dataclass(frozen=True)
class Evaluation:
    """Records of `evaluate`: one accuracy row a file; paired rows of each file against the float one; remarks on the images."""

    runs: tuple[Record, ...]
    paired: tuple[Record, ...]
    remarks: tuple[str, ...]


def evaluate(
    artifacts: Sequence[Artifact],
    data: Dataset,
    engine_name: str = DEFAULT_ENGINE,
    against: Artifact | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Top-1 and Top-5 of every artifact on the same images, and the paired drop of each against `against`.

    Raises:
        InputError: classes or preprocessing that do not fit, or more than 1 % unreadable images.
    """
    report, runner = ReadReport(), engine(engine_name)
    every = [*artifacts, *([against] if against is not None else [])]
    runs = [accuracy.open_run(one, runner, host()["affinity"]) for one in every]
    predictions = accuracy.evaluate(runs, data, report, progress)
    own = predictions[: len(artifacts)]
    paired = [accuracy.compare(predictions[-1], one) for one in own] if against is not None else []
    return Evaluation(tuple(one.record() for one in own), tuple(paired), tuple(report.sentences()))


@dataclass(frozen=True)
class BenchOptions:
    """Settings of `benchmark`: every combination of `threads` (client threads) and `batch` is timed for `seconds` in all."""

    engines: tuple[str, ...] = (DEFAULT_ENGINE,)
    threads: tuple[int, ...] = (1,)
    batch: tuple[int, ...] = (1,)
    seconds: float = 2.0


def benchmark(
    artifacts: Sequence[Artifact], options: BenchOptions | None = None, progress: Progress = silent
) -> tuple[list[Record], list[Record]]:
    """(latency Records, ratio Records): every file on every engine, interleaved; ratios against the first case of each setting.

    Raises:
        InputError: a model that an engine cannot run, or settings below 1.
    """
    options = options or BenchOptions()
    runners: list[Engine] = [engine(name) for name in options.engines]
    settings = [(streams, batch) for streams in options.threads for batch in options.batch]
    groups = [
        [latency.case(one, runner, streams, batch=batch) for runner in runners for one in artifacts] for streams, batch in settings
    ]
    cases = [one for group in groups for one in group]
    records = latency.run(cases, options.seconds, progress=progress)
    return records, [latency.ratio(one, group[0]) for group in groups for one in group[1:]]


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image: (class name, probability 0..1), best first."""

    image: str
    best: tuple[tuple[str, float], ...]


def predict(artifact: Artifact, images: Sequence[Path], top: int = 5, engine_name: str = DEFAULT_ENGINE) -> list[Prediction]:
    """Softmax probabilities of the `top` classes of each image file.

    Raises:
        InputError: a missing or broken image, or a model without preprocessing.
    """
    preprocess = artifact.needing_preprocess()
    session = engine(engine_name).open(artifact.model, host()["affinity"])
    found = []
    for path in images:
        if not path.is_file():
            raise InputError(f"the image {path} does not exist; check the path")
        logits = session.run(prepare(load_image(path), preprocess)[None])[0]
        shares = _softmax(logits)
        order = accuracy.best_classes(logits[None], top)[0]
        found.append(Prediction(str(path), tuple((_label(artifact, int(index)), float(shares[index])) for index in order)))
    return found


def first_images(data: Dataset, preprocess: Preprocess, count: int = CERTIFIED_IMAGES) -> npt.NDArray[np.float32]:
    """Up to `count` prepared images of `data`, float32 [n, 3, size, size], for a certificate."""
    some = data.subset(range(min(count, len(data))))
    read = [batch.inputs for batch in batches(some, preprocess, count, ReadReport())]
    return np.concatenate(read) if read else np.empty((0, 3, preprocess.size, preprocess.size), np.float32)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(shifted / shifted.sum())


def _label(artifact: Artifact, index: int) -> str:
    return artifact.labels[index] if index < len(artifact.labels) else str(index)
