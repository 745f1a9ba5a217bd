"""The verb `evaluate`: accuracy of models, and of results from other tools, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from repzoo import engines
from repzoo.artifact import Artifact as StoredArtifact
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.engines import DEFAULT_ENGINE, Engine, arithmetic
from repzoo.errors import InputError
from repzoo.measure import accuracy, external_results
from repzoo.measure.accuracy import EvaluationRun, PackIdentity, Predictions
from repzoo.measure.class_mapping import (
    head_remarks,
    lacks_classes,
    order_remarks,
    require_classes,
    with_folder_names,
    with_output_classes,
)
from repzoo.measure.distributed import ALONE, Group
from repzoo.measure.record import Record
from repzoo.measure.results import Accuracy, PairedAccuracy
from repzoo.measure.sentences import sentence
from repzoo.packs.compile import read_compiled
from repzoo.processor import available_cores
from repzoo.progress import Progress, silent
from repzoo.report import figures
from repzoo.settings import above, merge_keywords, setting, validate
from repzoo.summary import Summarized, Summary, Table
from repzoo.verbs.assumed_preprocess import for_images
from repzoo.verbs.evaluate_labels import (
    add_labels,
    needs_outputs,
    precision_remarks,
    top1_only_remarks,
)
from repzoo.verbs.image_data import DataLike, open_dataset
from repzoo.verbs.model_files import ModelLike, open_model, open_models

Result = TypeVar("Result")
SHOWN_FLIPS = 5  # images of a printed evaluation; the Record has all


@dataclass(frozen=True)
class EvaluateOptions:
    """Settings of `evaluate`. For the format of `result` see `measure.external_results`."""

    engine: tuple[str, ...] = setting(
        (DEFAULT_ENGINE,),
        help="Engines that run every model: a,b or repeat the option.",
    )
    drop: float = setting(
        accuracy.VISIBLE_DROP,
        help="Report how many images it takes to detect a drop of this many Top-1 points.",
        range=above(0, 100),
    )
    result: tuple[Path, ...] = setting(
        (),
        help="Results of another tool (repeat the option): a CSV with path,class or "
        "path,class,score, a class being a name or the index of an output; the text that "
        "VastModelZOO writes (PATH: Relay top-K id: ID, prob: P, class name: NAME); or a folder "
        "with one .npz an image that holds the logits as output_0.",
    )
    datalist: Path | None = setting(
        None, help="Text file that names the image of each .npz, one a line."
    )
    resume: Path | None = setting(
        None,
        help="Journal of the predictions; run the same command again to go on with it.",
    )

    def __post_init__(self) -> None:
        """Refuse values outside the accepted ranges, and an empty list of engines."""
        validate(self)
        if not self.engine:
            raise InputError(
                "engine is empty; name at least one engine, such as onnxruntime"
            )


@dataclass(frozen=True)
class Evaluation(Summarized):
    """Accuracy of every model, and its paired comparisons.

    runs     one accuracy Record for each model and engine, then one for each external result
    paired   one Record for each comparison: of every model with `against` on the same engine,
             or without `against` of every other model with the first
    remarks  sentences about the images: of which kind they are, which were left out or converted
    against  one accuracy Record of `against` for each engine; empty without it
    """

    runs: tuple[Record[Accuracy], ...]
    paired: tuple[Record[PairedAccuracy], ...]
    remarks: tuple[str, ...]
    against: tuple[Record[Accuracy], ...] = ()

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent, of the only run.

        Raises:
            InputError: there are several runs.
        """
        return _only(self.runs, "run", "runs[i].values.top1").top1

    @property
    def drop(self) -> float:
        """Top-1 of the first model minus Top-1 of the second, in points, of the only comparison.

        Raises:
            InputError: there is no comparison, or there are several.
        """
        return _only(self.paired, "comparison", "paired[i].values.drop").drop

    def _summary(self) -> Summary:
        """A row for each model, a sentence for each comparison, and the remarks."""
        rows = []
        for record in (*self.against, *self.runs):
            values = record.values
            interval = figures.span(figures.percent, values.top1_low, values.top1_high)
            top1, top5 = figures.percent(values.top1), figures.percent(values.top5)
            model = [*record.names, str(record.artifact.get("form", ""))]
            cells = [str(record.engine["name"]), str(values.n), top1, interval, top5]
            rows.append([*model, *cells])
        measures = [">n", ">Top-1 %", ">95 % interval", ">Top-5 %"]
        headings = ["model", "form", "engine", *measures]
        sentences = [sentence(record.values, *record.names) for record in self.paired]
        notes = [f"note: {remark}" for remark in self.remarks]
        flips = [_flips(record) for record in self.paired if record.samples["flips"]]
        return Summary([Table(headings, rows), *flips], [*sentences, *notes])


def _flips(record: Record[PairedAccuracy]) -> Table:
    """The first images that the two models of a comparison answer differently."""
    rows = []
    for flip in record.samples["flips"][:SHOWN_FLIPS]:
        labels = (flip["target_label"], flip["first_label"], flip["second_label"])
        rows.append([str(flip["key"]), *map(str, labels)])
    first, second = record.names
    return Table(["image", "is", f"{first} says", f"{second} says"], rows)


def _only(records: Sequence[Record[Result]], noun: str, path: str) -> Result:
    """The result of the only record; `path` tells where to find one of several."""
    if not records:
        raise InputError("nothing was compared; call evaluate with against=FLOAT_MODEL")
    if len(records) > 1:
        raise InputError(
            f"this evaluation has {len(records)} {noun}s; read evaluation.{path}"
        )
    return records[0].values


def _require_work(models: Sequence[object], options: EvaluateOptions) -> None:
    """Refuse a call without anything to evaluate, and a datalist without results."""
    if options.datalist and not options.result:
        raise InputError(
            "a datalist names the images of results; give these with --result, or leave "
            "--datalist out"
        )
    if not models and not options.result:
        raise InputError(
            "nothing to evaluate: give model files, or --result with the results of another tool"
        )


def evaluate(
    models: ModelLike | Sequence[ModelLike],
    data: DataLike,
    *,
    against: ModelLike | None = None,
    part: str | Sequence[str] = (),
    options: EvaluateOptions | None = None,
    progress: Progress = silent,
    group: Group = ALONE,
    **settings: Any,
) -> Evaluation:
    """Measure Top-1 and Top-5 of one or several models, and compare them image by image.

    data      labeled images: a folder, a name such as `digits`, or a data set
    against   the float model that every other is compared with. Where the images have no labels,
              or fewer classes than it has outputs, its predictions take their place
    part      the parts of the data to use; default: all that are held out from training
    group     the processes that share the images; each returns the whole Evaluation
    settings  fields of EvaluateOptions, such as `engine=("onnxruntime", "openvino")`

    Raises:
        InputError: classes or preprocessing that do not fit, more than 1 % unreadable images,
            images that change meanwhile, external results that are damaged or of other images,
            a journal of another evaluation or one that cannot be written.
    """
    options = merge_keywords(EvaluateOptions, options, settings)
    artifacts = [for_images(model) for model in open_models(models)]
    references = [] if against is None else [for_images(open_model(against))]
    _require_work(artifacts, options)
    known = [*artifacts, *references]
    for artifact in known:
        require_classes(artifact)

    images = open_dataset(data, part, unlabeled=bool(references))
    remarks = images.remarks()
    by_reference = bool(references) and not _says_classes(images, references[0])
    if by_reference:
        remarks.append(_agreement_remark(images, references[0]))
        images = _labeled_by(images, references[0])
        for artifact in artifacts:
            _require_same_order(artifact, references[0])
    external = _read_external(options, images, known[0] if known else None, progress)
    # A board may have run a part only, and comparisons need the same images.
    if external.results and len(external.indices) < len(images):
        remarks += external_results.coverage_remarks(images, external.indices)
        images = images.subset(external.indices)
    if known:
        remarks += [
            *order_remarks(images, known[0]),
            *head_remarks(with_folder_names(known[0], images)),
        ]

    runs = _Runs()
    own_indices = runs.indices_of(artifacts, options.engine)
    reference_indices = runs.indices_of(references, _float_engines(options.engine))
    report = ReadReport()
    predictions = _predict(runs.runs, images, options.resume, report, progress, group)
    results = external.in_order_of(predictions)
    if by_reference:
        # Without labels, the float model's predictions take their place: for all rows those on
        # the first engine, so that all are counted alike.
        targets = predictions[reference_indices[0]].top[:, 0]
        predictions = _with_targets(predictions, targets)
        results = _with_targets(results, targets)
    else:
        remarks += precision_remarks(predictions)
    progress("compare", 0, 0)
    own = [predictions[index] for index in own_indices]
    reference = [predictions[index] for index in reference_indices]
    return Evaluation(
        tuple(item.record() for item in (*own, *results)),
        _compare_all(_pairs(own, results, reference), options.drop, not by_reference),
        (*remarks, *runs.remarks(predictions), *report.sentences()),
        tuple(item.record() for item in reference),
    )


def _predict(
    runs: Sequence[EvaluationRun],
    images: Dataset,
    journal: Path | None,
    report: ReadReport,
    progress: Progress,
    group: Group,
) -> Sequence[Predictions]:
    """The predictions of each run for all images; none without a run."""
    if not runs:
        return ()
    # A journal and other processes carry classes alone.
    is_alone = not journal and group.size == 1
    return accuracy.evaluate(
        runs,
        images,
        report,
        progress,
        journal,
        group,
        logits=is_alone and needs_outputs(runs, len(images)),
    )


def _compare_all(
    pairs: Sequence[tuple[Predictions, Predictions]], drop: float, labeled: bool
) -> tuple[Record[PairedAccuracy], ...]:
    records = []
    for pair in pairs:
        record = accuracy.compare(*pair, drop=drop)
        records.append(add_labels(record, pair, labeled))
    return tuple(records)


def _says_classes(images: Dataset, reference: StoredArtifact) -> bool:
    """Whether the folders of the images say which output of `reference` is right."""
    return images.labeled and not lacks_classes(images, reference)


def _agreement_remark(images: Dataset, reference: StoredArtifact) -> str:
    return (
        f"{images.name} does not say which output of {reference.name} is right, so Top-1 is the "
        f"share of images for which a model predicts the same as {reference.name}"
    )


def _labeled_by(images: Dataset, reference: StoredArtifact) -> Dataset:
    """The images with the classes of `reference`, whose predictions become their labels."""
    name = f"{images.name}, labeled by {reference.name}"
    return replace(with_output_classes(images, reference), name=name)


def _require_same_order(artifact: StoredArtifact, reference: StoredArtifact) -> None:
    """Refuse a model that has the same labels as `reference` in another order."""
    own = artifact.labels
    if own != reference.labels and sorted(own) == sorted(reference.labels):
        raise InputError(
            f"{artifact.name} and {reference.name} have the same labels in different orders, and "
            "without labels of the images outputs are compared by number; export one of them again "
            "in the order of the other, or give labeled images"
        )


def _with_targets(
    predictions: Sequence[Predictions], targets: npt.NDArray[np.int64]
) -> list[Predictions]:
    return [replace(item, targets=targets) for item in predictions]


@dataclass
class _Runs:
    """The runs of one pass over the images. A model that is named twice runs once."""

    runs: list[EvaluationRun] = field(default_factory=list)

    def indices_of(
        self, artifacts: Sequence[StoredArtifact], engine_names: Sequence[str]
    ) -> list[int]:
        """The indices in `runs` of every artifact on every engine, model by model."""
        runners = [engines.engine(name) for name in engine_names]
        return [
            self._index_of(model, runner) for model in artifacts for runner in runners
        ]

    def remarks(self, predictions: Sequence[Predictions]) -> list[str]:
        """What to know of the engines, and of what their models return."""
        engines_of_runs = [run.engine for run in self.runs]
        return [
            *arithmetic.remarks(engines_of_runs),
            *top1_only_remarks(self.runs, predictions),
        ]

    def _index_of(self, artifact: StoredArtifact, engine: Engine) -> int:
        """The index in `runs` of `artifact` on `engine`, which is added where it is new."""
        for index, run in enumerate(self.runs):
            if run.engine is engine and _is_same_model(run.artifact, artifact):
                return index
        self.runs.append(_open_run(artifact, engine))
        return len(self.runs) - 1


def _float_engines(names: Sequence[str]) -> list[str]:
    """Where the float model runs: in float where an engine runs compiled packs alone."""
    return [DEFAULT_ENGINE if _runs_packs(name) else name for name in names]


def _runs_packs(engine_name: str) -> bool:
    base, _, _ = engine_name.partition(":")
    return hasattr(engines.ENGINES.load(base), "open_pack")


def _open_run(artifact: StoredArtifact, engine: Engine) -> EvaluationRun:
    """The run of a model, or of the vendor's own quantized model in a pack."""
    folder = getattr(artifact, "pack", None)
    if folder is None or not engines.runs_packs(engine):
        return accuracy.open_run(artifact, engine)
    pack = read_compiled(folder)
    if pack.target.partition(":")[0] != engine.name:
        raise InputError(
            f"{folder} is a pack for {pack.target}, which the engine {engine.name} cannot run"
        )
    path = folder / pack.products.simulated
    session = engine.open_pack(
        path, artifact.require_preprocess(), streams=available_cores()
    )
    compiled = PackIdentity(pack.sha256, pack.binary_sha256)
    return EvaluationRun(artifact, engine, session, compiled)


def _is_same_model(first: StoredArtifact, second: StoredArtifact) -> bool:
    """Whether both are the same file, with the same name, preprocessing and labels."""
    if first is second:
        return True
    # Models that never were files have no hash.
    if first.sha256 != second.sha256 or not first.sha256:
        return False
    described = []
    for model in (first, second):
        # Of one float model, two packs may hold what different settings made.
        pack = getattr(model, "pack", None)
        described.append((model.name, model.preprocess, model.labels, pack))
    return described[0] == described[1]


@dataclass(frozen=True)
class _External:
    """Predictions that other tools wrote, and the indices of their images in the data."""

    results: tuple[Predictions, ...]
    indices: Sequence[int]

    def in_order_of(self, predictions: Sequence[Predictions]) -> list[Predictions]:
        """The results, their images in the order of `predictions`, where there are any."""
        keys = predictions[0].keys if predictions else self.results[0].keys
        return [
            result
            if result.keys == keys
            else external_results.select_images(result, keys)
            for result in self.results
        ]


def _read_external(
    options: EvaluateOptions,
    images: Dataset,
    model: StoredArtifact | None,
    progress: Progress,
) -> _External:
    """The results of other tools.

    Raises:
        InputError: damaged, or of different images.
    """
    read = [
        external_results.read(path, images, options.datalist, model, progress)
        for path in options.result
    ]
    if any(first[1] != second[1] for first, second in pairwise(read)):
        raise InputError(
            "the results are of different images, so they cannot be compared; "
            "evaluate each in a command of its own"
        )
    return _External(tuple(result for result, _ in read), read[0][1] if read else ())


def _pairs(
    own: Sequence[Predictions],
    external: Sequence[Predictions],
    references: Sequence[Predictions],
) -> list[tuple[Predictions, Predictions]]:
    """(first, second) of each comparison.

    own         model by model, each on all engines in the same order
    references  the float model on each engine; without it the first of all is the reference
    """
    if not references:
        first, *others = [*own, *external]
        return [(first, second) for second in others]
    pairs = [
        # The engines repeat for each model.
        (references[index % len(references)], second)
        for index, second in enumerate(own)
    ]
    # The result of another tool belongs to none of the engines.
    pairs.extend((references[0], second) for second in external)
    return pairs
