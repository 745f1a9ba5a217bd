"""The verb `evaluate`: every file on every engine, and what other tools wrote, on the same images in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.engines import DEFAULT_ENGINE, engine
from repzoo.errors import InputError
from repzoo.measure import accuracy
from repzoo.measure import external_results as outputs
from repzoo.measure.accuracy import Predictions
from repzoo.measure.distributed import ALONE, Group
from repzoo.measure.record import Record
from repzoo.measure.results import Accuracy, PairedAccuracy
from repzoo.progress import Progress, silent


@dataclass(frozen=True)
class EvaluateOptions:
    """Settings of `evaluate`.

    engine    names; every file runs on each of them
    drop      in points of Top-1: the paired rows say how many images would show it
    result    files or folders that other tools wrote of these images: see `measure.outputs`
    datalist  the text that names the image of each file of such a folder
    resume    file, or folder, in which the answers are kept as they come; what is there already is not done again
    """

    engine: tuple[str, ...] = (DEFAULT_ENGINE,)
    drop: float = accuracy.VISIBLE_DROP
    result: tuple[Path, ...] = ()
    datalist: Path | None = None
    resume: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a drop that no number of images would show, and engines that are none or named twice."""
        if not (math.isfinite(self.drop) and 0 < abs(self.drop) <= 100):
            raise InputError(f"drop must lie in 0..100 points and not be 0; got {self.drop}")
        if len(set(self.engines)) < max(1, len(self.engines)):
            raise InputError(
                f"each engine is to be named once; got {', '.join(self.engine) or 'none'}"
            )

    @property
    def engines(self) -> tuple[str, ...]:
        """The names, whether they came one by one or with commas between them."""
        return tuple(name.strip() for one in self.engine for name in one.split(",") if name.strip())


@dataclass(frozen=True)
class Evaluation:
    """Records of `evaluate`: one accuracy row a file and engine; paired rows of each against the float one, or where none is
    given against the first; remarks on the images."""

    runs: tuple[Record[Accuracy], ...]
    paired: tuple[Record[PairedAccuracy], ...]
    remarks: tuple[str, ...]


def evaluate(
    artifacts: Sequence[Artifact],
    data: Dataset,
    options: EvaluateOptions | None = None,
    against: Artifact | None = None,
    progress: Progress = silent,
    group: Group = ALONE,
) -> Evaluation:
    """Top-1 and Top-5 of every artifact on the same images, and the paired drop of each against `against` on the same engine.

    group  the processes among which the images are shared: each gets the whole Evaluation

    Raises:
        InputError: classes or preprocessing that do not fit, more than 1 % unreadable images, images that change meanwhile,
            results that are damaged or of other images, a journal that is another's or cannot be written.
    """
    options, report = options or EvaluateOptions(), ReadReport()
    if not artifacts and not options.result:
        raise InputError(
            "nothing to evaluate: give the files of models, or --result with what another tool wrote"
        )
    model = next(iter([*artifacts, *([against] if against else [])]), None)
    read = [outputs.read(path, data, options.datalist, model, progress) for path in options.result]
    if any(one != other for (_, one), (_, other) in pairwise(read)):
        raise InputError(
            "the results are of different images, so they cannot be compared; evaluate them apart"
        )
    remarks = list(outputs.coverage_remarks(data, read[0][1])) if read else []
    if remarks:
        data = data.subset(read[0][1])
    runs, places = _runs(artifacts, against, options.engines)
    predictions = (
        accuracy.evaluate(runs, data, report, progress, options.resume, group) if runs else []
    )
    found = [predictions[place] for place in places]
    own, references = (
        found[: len(artifacts) * len(options.engines)],
        found[len(artifacts) * len(options.engines) :],
    )
    keys = found[0].keys if found else read[0][0].keys
    others = [one if one.keys == keys else outputs.select_images(one, keys) for one, _ in read]
    paired = tuple(
        accuracy.compare(first, second, drop=options.drop)
        for first, second in _pairs(own, others, references)
    )
    return Evaluation(
        tuple(one.record() for one in [*own, *others]), paired, (*remarks, *report.sentences())
    )


def _runs(
    artifacts: Sequence[Artifact], against: Artifact | None, engines: Sequence[str]
) -> tuple[list[accuracy.EvaluationRun], list[int]]:
    """(runs, place among them of each file on each engine, `against` last): what is named twice runs once."""
    opened = [engine(name) for name in engines]
    runs: list[accuracy.EvaluationRun] = []
    places: list[int] = []
    for one in [*artifacts, *([against] if against is not None else [])]:
        for runner in opened:
            same = (
                place
                for place, run in enumerate(runs)
                if run.engine is runner and _same(run.artifact, one)
            )
            place = next(same, len(runs))
            if place == len(runs):
                runs.append(accuracy.open_run(one, runner))
            places.append(place)
    return runs, places


def _same(one: Artifact, other: Artifact) -> bool:
    """Whether the two are the same model, said to be prepared in the same way."""
    known = one is other or (one.sha256 == other.sha256 != "")
    return known and (one.name, one.preprocess, one.labels) == (
        other.name,
        other.preprocess,
        other.labels,
    )


def _pairs(
    own: Sequence[Predictions], others: Sequence[Predictions], references: Sequence[Predictions]
) -> list[tuple[Predictions, Predictions]]:
    """(first, second) of each comparison: against the float model on the same engine, or else against the first of all."""
    if references:
        return [
            *((references[place % len(references)], one) for place, one in enumerate(own)),
            *((references[0], one) for one in others),
        ]
    first, *rest = [*own, *others]
    return [(first, one) for one in rest]
