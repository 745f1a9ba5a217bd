"""Accuracy: every model on the same images in one pass, then Top-1, Top-5 and paired differences with intervals."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact, Preprocess, classifier_input
from repzoo.data.batches import ReadReport, available_cores, batch_of, map_in_order, read_image
from repzoo.data.dataset import GONE, Dataset, Stamp
from repzoo.engines import Engine, Session
from repzoo.errors import InputError
from repzoo.measure import stats
from repzoo.measure.distributed import ALONE, Group
from repzoo.measure.journal import (
    CHUNK,
    TOP,
    ImagePrediction,
    Journal,
    PredictionTable,
    chunk_numbers,
    chunk_range,
)
from repzoo.measure.record import Record, identity_of
from repzoo.progress import Progress, silent
from repzoo.storage import sha256_of

BATCH = CHUNK  # images a call of the engine
VISIBLE_DROP = 0.3  # points of Top-1; the quantizer's default budget
Kept = dict[tuple[int, int], npt.NDArray[np.float32]]  # (which run, which image) -> its logits
SYNSET = re.compile(r"^n\d{8}\b")  # a WordNet id, as ImageNet names its folders


@dataclass(frozen=True)
class Predictions:
    """What one run said of each image that could be read.

    identity  of what answered, as in a Record
    labels    of its outputs; empty when unknown
    keys      of the images, in order
    targets   int [n]: the output index that is right
    top       int [n, min(5, classes)]: output indices, best first
    """

    identity: Mapping[str, Any]
    labels: tuple[str, ...]
    engine: Mapping[str, Any]
    data: Mapping[str, Any]
    keys: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    top: npt.NDArray[np.int64]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether Top-1 is right, bool [n]."""
        return np.asarray(self.top[:, 0] == self.targets)

    def record(self) -> Record:
        """Top-1 and Top-5 in percent with Wilson intervals; samples: the same counts for each class."""
        values: dict[str, Any] = {"n": len(self.keys)}
        for name, hits in (
            ("top1", self.right),
            ("top5", (self.top == self.targets[:, None]).any(1)),
        ):
            interval = stats.wilson(int(hits.sum()), len(hits))
            values |= {
                name: 100 * interval.value,
                f"{name}_low": 100 * interval.low,
                f"{name}_high": 100 * interval.high,
            }
        return Record(
            "accuracy", self.identity, values, self.engine, self.data, {"classes": self.by_class()}
        )

    def by_class(self) -> list[dict[str, Any]]:
        """Of each class that has images, worst first: its index and label, n, Top-1 with interval, and what it is most taken for."""
        right, first = self.right, self.top[:, 0]
        found = []
        for target in np.unique(self.targets):
            of = self.targets == target
            interval = stats.wilson(int(right[of].sum()), int(of.sum()))
            wrong = np.bincount(first[of & ~right])
            figures = {
                "n": int(of.sum()),
                "top1": 100 * interval.value,
                "top1_low": 100 * interval.low,
            }
            taken = self.label(int(wrong.argmax())) if len(wrong) else None
            found.append(
                {
                    "index": int(target),
                    "class": self.label(int(target)),
                    **figures,
                    "top1_high": 100 * interval.high,
                    "taken_for": taken,
                }
            )
        return sorted(found, key=lambda one: (one["top1_high"], one["index"]))

    def label(self, index: int) -> str:
        """The label of an output, or its number."""
        return self.labels[index] if index < len(self.labels) else str(index)


@dataclass(frozen=True)
class ModelPredictions(Predictions):
    """The answers of one model on one engine. logits: float32 [n, classes], where they were asked for."""

    artifact: Artifact
    logits: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class EvaluationRun:
    """One model to evaluate: `session` runs `artifact`."""

    artifact: Artifact
    engine: Engine
    session: Session


def open_run(artifact: Artifact, engine: Engine, threads: int = 1) -> EvaluationRun:
    """Compile `artifact` on `engine`. One thread is right here: `evaluate` calls the session from one thread a core."""
    return EvaluationRun(
        artifact, engine, engine.open(artifact.model, threads, streams=available_cores())
    )


def evaluate(
    runs: Sequence[EvaluationRun],
    dataset: Dataset,
    report: ReadReport,
    progress: Progress = silent,
    journal: Path | None = None,
    group: Group = ALONE,
    logits: bool = False,
) -> list[ModelPredictions]:
    """Predictions of every run on the same images in one pass; all runs must agree on the preprocessing.

    Each worker thread takes a chunk of images through the whole way, from the file to the classes, so that no core waits.

    journal  file in which the answers are kept as they come; what it holds already is not done again
    group    the processes among which the images are shared; each returns the predictions on all of them
    logits   whether to keep them too, in memory; not with a journal or a group, which carry classes alone

    Raises:
        InputError: classes or a size of input that do not match, preprocessing that differs, too many unreadable images,
            logits that are not finite, images that change meanwhile, a journal that is another's or cannot be written.
    """
    if logits and (journal or group.size > 1):
        raise ValueError("logits are kept only by one process without a journal")
    preprocess = _common_preprocess(runs)
    indices = [class_indices(dataset, run.artifact) for run in runs]
    sheet = PredictionTable(len(runs), len(dataset))
    worker = _Worker(
        runs,
        dataset,
        preprocess,
        _stamps(dataset),
        [max(mapping) for mapping in indices],
        {} if logits else None,
    )
    header = _header(runs, dataset, preprocess)
    group.agree(header)
    with (
        Journal(journal, header, dataset, group.rank)
        if journal
        else contextlib.nullcontext() as kept
    ):
        if kept:
            kept.restore(sheet)
        mine, own = _share(sheet, len(dataset), group)
        done = int(sheet.known.sum())
        for answers in map_in_order(worker, mine, group.threads(available_cores())):
            if kept:
                kept.append(answers)
            sheet.add(answers)
            done += len(answers) * group.size
            progress("evaluate", min(done, len(dataset)), len(dataset))
            group.check()
        for packed in group.gather(sheet.packed(own)) if group.size > 1 else ():
            sheet.unpack(packed)
    sheet.fill_report(report)
    report.check(dataset.name, len(dataset))
    return _predictions(runs, dataset, sheet, indices, worker.kept)


def _share(sheet: PredictionTable, images: int, group: Group) -> tuple[list[int], list[int]]:
    """(chunks to do here, chunks to tell the others of): each of what is left goes to one process, in turns."""
    seen = [
        set(json.loads(one)) for one in group.gather(json.dumps(sorted(sheet.chunks())).encode())
    ]
    left = sorted(set(chunk_numbers(images)).difference(*seen))
    mine = left[group.rank :: group.size]
    earlier: set[int] = set().union(*seen[: group.rank])
    return mine, sorted(seen[group.rank] - earlier) + mine


def _predictions(
    runs: Sequence[EvaluationRun],
    dataset: Dataset,
    sheet: PredictionTable,
    indices: Sequence[Sequence[int]],
    kept: Kept | None,
) -> list[ModelPredictions]:
    read = sheet.read()
    keys = tuple(dataset.keys[index] for index in read)
    targets = np.array([dataset.targets[index] for index in read])
    data = {
        "name": dataset.name,
        "n": len(keys),
        "sha256": sha256_of("\n".join(keys).encode()),
        "unreadable": len(dataset) - len(read),
    }
    found = []
    for place, (run, mapping, top) in enumerate(
        zip(runs, indices, sheet.top[:, read], strict=True)
    ):
        width = int((top[:1] >= 0).sum())
        engine = {"name": run.engine.name, "version": run.engine.version()}
        best = top[:, :width].astype(np.int64)
        logits = np.stack([kept[place, index] for index in read]) if kept else None
        right = np.array(mapping)[targets]
        found.append(
            ModelPredictions(
                identity_of(run.artifact),
                run.artifact.labels,
                engine,
                data,
                keys,
                right,
                best,
                run.artifact,
                logits,
            )
        )
    return found


def _common_preprocess(runs: Sequence[EvaluationRun]) -> Preprocess:
    preprocess = runs[0].artifact.require_preprocess()
    if not all(run.artifact.require_preprocess().sees_as(preprocess) for run in runs):
        raise InputError(
            "the files prepare their images differently, so a paired comparison would mix two things; evaluate them apart"
        )
    return preprocess


def _header(
    runs: Sequence[EvaluationRun], dataset: Dataset, preprocess: Preprocess
) -> dict[str, Any]:
    """All that the answers depend on: what a journal must agree on with the run that goes on with it."""
    rows = [
        {
            "file": run.artifact.name,
            "sha256": run.artifact.sha256 or sha256_of(run.artifact.to_bytes()),
            "engine": run.engine.name,
            "version": run.engine.version(),
        }
        for run in runs
    ]
    images = zip(dataset.keys, dataset.targets, strict=True)
    digest = sha256_of(
        "\n".join(f"{key}\t{dataset.classes[target]}" for key, target in images).encode()
    )
    return {
        "data": {"name": dataset.name, "images": len(dataset), "sha256": digest},
        "preprocess": asdict(preprocess),
        "runs": rows,
    }


def _stamps(dataset: Dataset) -> npt.NDArray[np.int64] | None:
    """int64 [n, 2]: the state of each image's file when the evaluation begins."""
    return (
        np.array([dataset.stamp(key) for key in dataset.keys], np.int64) if dataset.stamp else None
    )


@dataclass(frozen=True)
class _Worker:
    """Takes one chunk from its images to the best classes of every run. kept: where logits are put, if they are to be kept."""

    runs: Sequence[EvaluationRun]
    dataset: Dataset
    preprocess: Preprocess
    stamps: npt.NDArray[np.int64] | None
    largest: Sequence[int]
    kept: Kept | None = None

    def __call__(self, number: int) -> list[ImagePrediction]:
        chunk = chunk_range(number, len(self.dataset))
        read = [
            (index, read_image(self.dataset, self.dataset.keys[index], self.preprocess))
            for index in chunk
        ]
        stamps = [self._stamp(index) for index in chunk]
        wanted = [run.artifact.require_preprocess() for run in self.runs]
        made = {
            one: batch_of(read, one) for one in dict.fromkeys(wanted)
        }  # a float model and one that takes bytes, of one image
        batch = made[wanted[0]]
        given = [one.inputs for one in map(made.get, wanted) if one]
        logits = [self._logits(place, inputs) for place, inputs in enumerate(given)]
        if self.kept is not None and batch:
            self.kept.update(
                {
                    (place, index): row
                    for place, rows in enumerate(logits)
                    for index, row in zip(batch.indices, rows, strict=True)
                }
            )
        tops = [best_classes(one, TOP).tolist() for one in logits]
        best = dict(zip(batch.indices, zip(*tops, strict=True), strict=True)) if batch else {}
        return [
            ImagePrediction(index, tuple(map(tuple, best.get(index, ()))), one.mode, one.why, stamp)
            for (index, one), stamp in zip(read, stamps, strict=True)
        ]

    def _stamp(self, index: int) -> Stamp | None:
        """The state of the file, which must be that of the beginning. Looked at after the image was read, not before."""
        if self.stamps is None or self.dataset.stamp is None:
            return None
        key, before = self.dataset.keys[index], self.stamps[index]
        now = self.dataset.stamp(key)
        if now != tuple(before):
            how = "vanished" if now == GONE else "was changed"
            raise InputError(
                f"the image {key} {how} while the evaluation went on; leave the images alone, and start again"
            )
        return now

    def _logits(self, place: int, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        run = self.runs[place]
        logits = logits_of(run, inputs)
        if (
            logits.shape[0] != len(inputs)
            or logits.ndim != 2
            or logits.shape[1] <= self.largest[place]
        ):
            raise InputError(
                f"{run.artifact.name} gives outputs of shape {logits.shape} for {len(inputs)} images, but the data's labels reach "
                f"to output {self.largest[place]}; the labels in the file are not those of its outputs: export it again"
            )
        if not np.isfinite(logits).all():
            raise InputError(
                f"{run.artifact.name} gives outputs that are not finite (NaN or overflow) on {run.engine.name}, so it has no "
                "accuracy; check its weights and its preprocessing"
            )
        return logits


def logits_of(run: EvaluationRun, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The logits of `inputs`, in calls of one and the same batch: the model's own where it is fixed, else BATCH.

    What is missing is filled up with zeros. Runtimes choose kernels by the shape: so an image has the same logits whatever else
    is asked of the session, and nothing is compiled twice.
    """
    dims = classifier_input(run.artifact.model).type.tensor_type.shape.dim
    size = (dims[0].dim_value if dims else 0) or BATCH
    parts = []
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        short = size - len(part)
        parts.append(
            run.session.run(
                np.concatenate([part, np.zeros((short, *part.shape[1:]), part.dtype)])
                if short
                else part
            )
        )
    return np.concatenate(parts)[: len(inputs)]


def best_classes(logits: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest logits of each row, largest first; ties go to the lower index."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]


def class_indices(dataset: Dataset, artifact: Artifact) -> list[int]:
    """The model's output index for each of the data set's classes: by name, else by position when the counts agree.

    A label that begins with a WordNet id ("n01440764 tench, Tinca tinca") is also known by that id, which names ImageNet's folders.

    Raises:
        InputError: names and counts both fail; or a label that stands twice in the model is needed.
    """
    labels, classes = artifact.labels, dataset.classes
    outputs = artifact.num_classes or len(labels)
    known = _indices_by_name(labels)
    if labels and set(classes) <= set(known):
        if twice := [name for name in classes if len(known[name]) > 1]:
            raise InputError(
                f"{artifact.name} has two classes called {twice[0]!r}; name the folders by unique labels"
            )
        return [known[name][0] for name in classes]
    if outputs == len(classes) and (not labels or dataset.ordered):
        return list(range(outputs))
    strange = next((name for name in classes if name not in known), "")
    raise InputError(
        f"the classes of {dataset.name} ({len(classes)}, such as {strange!r}) are not those of {artifact.name} "
        f"({outputs}, such as {labels[0] if labels else 'unnamed'!r}); give folders named by the model's labels, or a "
        f"classes.tsv that lists its {outputs} classes in order"
    )


def _indices_by_name(labels: Sequence[str]) -> dict[str, list[int]]:
    """Output indices of each label, and of the WordNet id that an ImageNet label such as "n01440764 tench" begins with."""
    known: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        for name in {label, *SYNSET.findall(label)}:
            known.setdefault(name, []).append(index)
    return known


def compare(first: Predictions, second: Predictions, *, drop: float = VISIBLE_DROP) -> Record:
    """Top-1 of `first` minus `second` on the same images, in percentage points: `drop` when first is float and second INT8.

    drop  in points: `needed` is how many images would show it, `visible` what drop these images would show

    Source of the interval: stats.paired_difference; of the p-value: stats.mcnemar; of `needed`: stats.pairs_needed.
    """
    if first.keys != second.keys:
        raise InputError("the two runs saw different images; evaluate them together")
    if not np.array_equal(first.targets, second.targets):
        raise InputError(
            "the two models have their classes in different orders, so their outputs cannot be compared one to one"
        )
    a, b = first.right, second.right
    counts = [int(np.sum(one & two)) for one, two in ((a, b), (a, ~b), (~a, b), (~a, ~b))]
    interval = stats.paired_difference(*counts)
    discordant = (counts[1] + counts[2]) / len(first.keys)
    flips = _flips(first, second)
    values = {
        "n": len(first.keys),
        "drop": 100 * interval.value,
        "drop_low": 100 * interval.low,
        "drop_high": 100 * interval.high,
        "p_value": stats.mcnemar(counts[1], counts[2]),
        "same_prediction": 100 * (1 - len(flips) / len(first.keys)),
        "lost": counts[1],
        "gained": counts[2],
        "needed": stats.pairs_needed(discordant, drop / 100),
        "needed_drop": drop,
        "visible": 100 * stats.visible_difference(discordant, len(first.keys)),
        "power": stats.POWER,
    }
    artifact = {"first": first.identity, "second": second.identity}
    return Record("paired", artifact, values, second.engine, first.data, {"flips": flips})


def _flips(first: Predictions, second: Predictions) -> list[dict[str, Any]]:
    """The images of which the two say different things, with what each says."""
    flips = []
    for place in np.flatnonzero(first.top[:, 0] != second.top[:, 0]):
        target, one, other = (
            int(first.targets[place]),
            int(first.top[place, 0]),
            int(second.top[place, 0]),
        )
        labels = {
            "target_label": first.label(target),
            "first_label": first.label(one),
            "second_label": second.label(other),
        }
        flips.append(
            {"key": first.keys[place], "target": target, "first": one, "second": other, **labels}
        )
    return flips
