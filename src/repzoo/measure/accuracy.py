"""Accuracy: every model on the same images in one pass, then Top-1, Top-5 and paired differences with intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
SYNSET = re.compile(r"^n\d{8}\b")  # a WordNet id, as ImageNet names its folders


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


@dataclass(frozen=True)
class Run:
    """One model to evaluate: `session` runs `artifact`."""

    artifact: Artifact
    engine: Engine
    session: Session


def open_run(artifact: Artifact, engine: Engine, threads: int) -> Run:
    """Compile `artifact` on `engine`."""
    return Run(artifact, engine, engine.open(artifact.model, threads))


def evaluate(runs: Sequence[Run], dataset: Dataset, report: ReadReport, progress: Progress = silent) -> list[Predictions]:
    """Predictions of every run on the same images; all runs must agree on the preprocessing.

    Raises:
        InputError: classes that do not match, preprocessing that differs, too many unreadable images, or logits that are not
            finite.
    """
    preprocess = runs[0].artifact.needing_preprocess()
    if any(run.artifact.needing_preprocess() != preprocess for run in runs):
        raise InputError(
            "the files prepare their images differently, so a paired comparison would mix two things; evaluate them apart"
        )
    indices = [class_indices(dataset, run.artifact) for run in runs]
    seen: list[int] = []
    tops: list[list[npt.NDArray[np.int64]]] = [[] for _ in runs]
    for batch in batches(dataset, preprocess, BATCH, report):
        for run, top in zip(runs, tops, strict=True):
            top.append(best_classes(_finite_logits(run, batch.inputs), TOP))
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
            np.concatenate(top),
        )
        for run, mapping, top in zip(runs, indices, tops, strict=True)
    ]


def _finite_logits(run: Run, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    logits = run.session.run(inputs)
    if not np.isfinite(logits).all():
        raise InputError(
            f"{run.artifact.name} gives outputs that are not finite (NaN or overflow) on {run.engine.name}, so it has no accuracy; "
            "check its weights and its preprocessing"
        )
    return logits


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
            raise InputError(f"{artifact.name} has two classes called {twice[0]!r}; name the folders by unique labels")
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


def compare(first: Predictions, second: Predictions) -> Record:
    """Top-1 of `first` minus `second` on the same images, in percentage points: `drop` when first is float and second INT8.

    Source of the interval: stats.paired_difference; of the p-value: stats.mcnemar.
    """
    if first.keys != second.keys:
        raise InputError("the two runs saw different images; evaluate them together")
    if not np.array_equal(first.targets, second.targets):
        raise InputError("the two models have their classes in different orders, so their outputs cannot be compared one to one")
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
