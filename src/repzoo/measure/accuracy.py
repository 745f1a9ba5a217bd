"""Accuracy: every model on the same images in one pass, then Top-1, Top-5 and paired differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine, Session
from repzoo.errors import InputError
from repzoo.measure import stats
from repzoo.measure.record import Record, identity_of
from repzoo.progress import Progress, silent
from repzoo.storage import sha256_of

BATCH = 32
TOP = 5


@dataclass(frozen=True)
class Predictions:
    """What one model on one engine said of each image that could be read.

    keys     of the images, in order
    targets  int [n]: the model's output index that is right
    top      int [n, min(5, classes)]: output indices, best first
    """

    artifact: Artifact
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
        """Top-1 and Top-5 in percent with Wilson intervals."""
        values: dict[str, Any] = {"n": len(self.keys)}
        for name, hits in (("top1", self.right), ("top5", (self.top == self.targets[:, None]).any(1))):
            interval = stats.wilson(int(hits.sum()), len(hits))
            values |= {name: 100 * interval.value, f"{name}_low": 100 * interval.low, f"{name}_high": 100 * interval.high}
        return Record("accuracy", identity_of(self.artifact), values, self.engine, self.data)


@dataclass
class Run:
    """One model to evaluate: `session` runs `artifact`; logits are reduced to the best classes as they come."""

    artifact: Artifact
    engine: Engine
    session: Session
    top: list[npt.NDArray[np.int64]] = field(default_factory=list)


def open_run(artifact: Artifact, engine: Engine, threads: int) -> Run:
    """Compile `artifact` on `engine`."""
    return Run(artifact, engine, engine.open(artifact.model, threads))


def evaluate(runs: Sequence[Run], dataset: Dataset, report: ReadReport, progress: Progress = silent) -> list[Predictions]:
    """Predictions of every run on the same images; all runs must agree on the preprocessing.

    Raises:
        InputError: classes that do not match, preprocessing that differs, or too many unreadable images.
    """
    preprocess = runs[0].artifact.needing_preprocess()
    if any(run.artifact.needing_preprocess() != preprocess for run in runs):
        raise InputError(
            "the files prepare their images differently, so a paired comparison would mix two things; evaluate them apart"
        )
    indices = [class_indices(dataset, run.artifact) for run in runs]
    seen: list[int] = []
    for batch in batches(dataset, preprocess, BATCH, report):
        for run in runs:
            run.top.append(best_classes(run.session.run(batch.inputs), TOP))
        seen.extend(batch.indices)
        progress("evaluate", len(seen), len(dataset))
    report.check(dataset.name, len(dataset))
    keys = tuple(dataset.keys[index] for index in seen)
    data = {
        "name": dataset.name,
        "n": len(keys),
        "sha256": sha256_of("\n".join(keys).encode()),
        "unreadable": len(report.unreadable),
    }
    return [
        Predictions(
            run.artifact,
            {"name": run.engine.name, "version": run.engine.version()},
            data,
            keys,
            np.array([mapping[dataset.targets[index]] for index in seen]),
            np.concatenate(run.top),
        )
        for run, mapping in zip(runs, indices, strict=True)
    ]


def best_classes(logits: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest logits of each row, largest first; ties go to the lower index."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]


def class_indices(dataset: Dataset, artifact: Artifact) -> list[int]:
    """The model's output index for each of the data set's classes: by name, else by position when the counts agree.

    Raises:
        InputError: names and counts both fail; or a label that stands twice in the model is needed.
    """
    labels, classes = list(artifact.labels), dataset.classes
    outputs = artifact.num_classes or len(labels)
    if labels and set(classes) <= set(labels):
        if twice := [name for name in classes if labels.count(name) > 1]:
            raise InputError(f"{artifact.name} has two classes called {twice[0]!r}; name the folders by unique labels")
        return [labels.index(name) for name in classes]
    if outputs == len(classes) and (not labels or dataset.ordered):
        return list(range(outputs))
    strange = next((name for name in classes if name not in labels), "")
    raise InputError(
        f"the classes of {dataset.name} ({len(classes)}, such as {strange!r}) are not those of {artifact.name} "
        f"({outputs}, such as {labels[0] if labels else 'unnamed'!r}); give folders named by the model's labels, or a "
        f"classes.tsv that lists its {outputs} classes in order"
    )


def compare(first: Predictions, second: Predictions) -> Record:
    """Top-1 of `first` minus `second` on the same images, in percentage points: `drop` when first is float and second INT8.

    Source of the interval: stats.paired_difference; of the p-value: stats.mcnemar.
    """
    if first.keys != second.keys:
        raise InputError("the two runs saw different images; evaluate them together")
    a, b = first.right, second.right
    counts = [int(np.sum(one & two)) for one, two in ((a, b), (a, ~b), (~a, b), (~a, ~b))]
    interval = stats.paired_difference(*counts)
    changed = np.flatnonzero(first.top[:, 0] != second.top[:, 0])
    flips = [
        {"key": first.keys[i], "target": int(first.targets[i]), "first": int(first.top[i, 0]), "second": int(second.top[i, 0])}
        for i in changed
    ]
    values = {
        "n": len(first.keys),
        "drop": 100 * interval.value,
        "drop_low": 100 * interval.low,
        "drop_high": 100 * interval.high,
        "p_value": stats.mcnemar(counts[1], counts[2]),
        "same_prediction": 100 * (1 - len(changed) / len(first.keys)),
    }
    artifact = {"first": identity_of(first.artifact), "second": identity_of(second.artifact)}
    return Record("paired", artifact, values, second.engine, first.data, {"flips": flips})
