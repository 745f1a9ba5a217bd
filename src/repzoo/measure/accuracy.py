"""Evaluation: all models predict the same images in one pass, from files to classes.

The figures are made in `predictions.py` (Top-1, Top-5, paired differences) from what `evaluate`
returns.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact, Preprocess
from repzoo.data.batches import (
    Batch,
    ReadImage,
    ReadReport,
    batch_of,
    map_in_order,
    read_image,
)
from repzoo.data.dataset import GONE, Dataset, Stamp
from repzoo.engines import Engine, Session, arithmetic
from repzoo.engines.batches import pad_batch
from repzoo.errors import InputError, NotFinite
from repzoo.graph.tools.head import Head, find_head
from repzoo.measure.class_mapping import class_indices, output_labels
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
from repzoo.measure.predictions import (
    VISIBLE_DROP,
    ModelPredictions,
    Predictions,
    best_classes,
    compare,
    describe_images,
)
from repzoo.measure.record import identity_of
from repzoo.onnx_file import fixed_batch
from repzoo.processor import available_cores
from repzoo.progress import Progress, silent
from repzoo.storage import sha256_of

__all__ = [
    "BATCH",
    "VISIBLE_DROP",
    "EvaluationRun",
    "ModelPredictions",
    "Predictions",
    "best_classes",
    "class_indices",
    "compare",
    "evaluate",
    "logits_of",
    "open_run",
]

BATCH = CHUNK  # images in a call of the engine

# (run, image) -> logits [classes]
LogitsByImage = dict[tuple[int, int], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class PackIdentity:
    """The files that a vendor's tool chain compiled from the artifact that is evaluated.

    simulated_sha256  what the vendor's simulator runs
    binary_sha256     what the board runs
    """

    simulated_sha256: str
    binary_sha256: str


@dataclass(frozen=True)
class EvaluationRun:
    """One model to evaluate: `session` runs `artifact`.

    compiled  of a pack that a vendor's tool chain compiled; None: the engine runs `artifact` itself
    batch     images in a call of the engine, at most CHUNK
    """

    artifact: Artifact
    engine: Engine
    session: Session
    compiled: PackIdentity | None = None
    batch: int = BATCH

    def engine_facts(self) -> dict[str, str]:
        """What ran the model, for Records and journals."""
        return {**arithmetic.facts(self.engine), **self.pack_facts()}

    def pack_facts(self) -> dict[str, str]:
        """The hashes of `compiled`, by name; none where it is None."""
        return asdict(self.compiled) if self.compiled else {}

    @functools.cached_property
    def head(self) -> Head:
        """What the outputs mean; found once, as it takes a pass over the graph."""
        return find_head(self.artifact.model)


def open_run(
    artifact: Artifact, engine: Engine, threads: int = 1, batch: int = BATCH
) -> EvaluationRun:
    """Compile `artifact` on `engine`; `batch` as in EvaluationRun.

    One thread is right here: `evaluate` calls the session from one thread for each core.
    """
    session = engine.open(artifact.model, threads, streams=available_cores())
    return EvaluationRun(artifact, engine, session, batch=batch)


def evaluate(
    runs: Sequence[EvaluationRun],
    dataset: Dataset,
    report: ReadReport,
    progress: Progress = silent,
    journal: Path | None = None,
    group: Group = ALONE,
    logits: bool = False,
) -> list[ModelPredictions]:
    """Predictions of every run on the same images; all runs must agree on the preprocessing.

    Each worker thread takes a chunk of images all the way, from the files to the classes, so that
    no core waits.

    report   is filled with what was out of the ordinary about the images
    journal  file to which predictions are written as they come; images that it holds already are
             not evaluated again
    group    the processes that share the images; each returns the predictions on all of them
    logits   whether to keep the logits in memory; not with a journal or a group, which carry
             classes alone

    Raises:
        InputError: classes or an input size that do not match, preprocessing that differs, too many
            unreadable images, logits that are not finite, images that change meanwhile, a journal
            of another evaluation, or one that cannot be written.
    """
    if logits and (journal or group.size > 1):
        raise ValueError("logits are kept only by one process without a journal")
    preprocess = _common_preprocess(runs)
    indices = [class_indices(dataset, run.artifact) for run in runs]
    table = PredictionTable(len(runs), len(dataset))
    worker = _Worker(
        runs=runs,
        dataset=dataset,
        preprocess=preprocess,
        stamps=_stamps(dataset),
        largest_indices=[max(mapping) for mapping in indices],
        kept_logits={} if logits else None,
    )
    header = _header(runs, dataset, preprocess)
    # Before any work: processes with other files would exchange nonsense.
    group.agree(header)
    with contextlib.ExitStack() as stack:
        opened = None
        if journal:
            opened = stack.enter_context(Journal(journal, header, dataset, group.rank))
            opened.restore(table)
        _fill(table, worker, opened, group, progress)
    table.fill_report(report)
    report.check(dataset.name, len(dataset))
    return _predictions(runs, dataset, table, indices, worker.kept_logits)


def _fill(
    table: PredictionTable,
    worker: _Worker,
    journal: Journal | None,
    group: Group,
    progress: Progress,
) -> None:
    """Evaluate what `table` does not hold yet, together with the other processes of `group`."""
    images = len(worker.dataset)
    own_chunks, chunks_to_send = _share(table, images, group)
    done = int(table.known.sum())
    if done < images:
        # The first chunk may take long.
        progress("evaluate", done, images)
    for chunk in map_in_order(worker, own_chunks, group.threads(available_cores())):
        if journal:
            journal.append(chunk)
        table.add(chunk)
        done += len(chunk) * group.size  # the others are about as fast
        progress("evaluate", min(done, images), images)
        group.check()
    if group.size > 1:
        for packed in group.gather(table.pack(chunks_to_send)):
            table.unpack(packed)


def _share(
    table: PredictionTable, images: int, group: Group
) -> tuple[list[int], list[int]]:
    """(chunks to evaluate here, chunks to send to the others).

    What no process knows is dealt out in turns. What several know is sent by the first of them
    only.
    """
    messages = group.gather(json.dumps(sorted(table.chunks())).encode())
    known = [set(json.loads(message)) for message in messages]
    unknown = sorted(set(chunk_numbers(images)).difference(*known))
    # In turns, so that a slow part of the data is shared.
    own = unknown[group.rank :: group.size]
    sent_by_earlier_ranks: set[int] = set().union(*known[: group.rank])
    return own, sorted(known[group.rank] - sent_by_earlier_ranks) + own


def _predictions(
    runs: Sequence[EvaluationRun],
    dataset: Dataset,
    table: PredictionTable,
    indices: Sequence[Sequence[int]],
    kept_logits: LogitsByImage | None,
) -> list[ModelPredictions]:
    readable = table.readable()
    keys = tuple(dataset.keys[index] for index in readable)
    targets = np.array([dataset.targets[index] for index in readable])
    data = describe_images(dataset.name, keys, len(dataset) - len(keys))
    predictions = []
    for number, run in enumerate(runs):
        top = table.top[number, readable]
        width = int((top[:1] >= 0).sum())  # a model of three classes has a Top-3
        logits = None
        if kept_logits:
            logits = np.stack([kept_logits[number, index] for index in readable])
        predictions.append(
            ModelPredictions(
                identity=identity_of(run.artifact),
                labels=output_labels(dataset, run.artifact),
                engine=run.engine_facts(),
                data=data,
                keys=keys,
                targets=np.array(indices[number])[targets],
                top=top[:, :width].astype(np.int64),
                artifact=run.artifact,
                logits=logits,
            )
        )
    return predictions


def _common_preprocess(runs: Sequence[EvaluationRun]) -> Preprocess:
    preprocess = runs[0].artifact.require_preprocess()
    for run in runs:
        if not run.artifact.require_preprocess().sees_as(preprocess):
            raise InputError(
                "the files prepare their images differently, so a paired comparison would mix two "
                "effects; evaluate them separately"
            )
    return preprocess


def _header(
    runs: Sequence[EvaluationRun], dataset: Dataset, preprocess: Preprocess
) -> dict[str, Any]:
    """All that the predictions depend on; the journal of a resumed run must agree with it."""
    rows = []
    for run in runs:
        row = {
            "file": run.artifact.name,
            "sha256": run.artifact.sha256 or sha256_of(run.artifact.to_bytes()),
            "engine": run.engine.name,
            "version": run.engine.version(),
            **run.pack_facts(),
        }
        rows.append(row)
    images = zip(dataset.keys, dataset.targets, strict=True)
    lines = [f"{key}\t{dataset.classes[target]}" for key, target in images]
    digest = sha256_of("\n".join(lines).encode())
    return {
        "data": {"name": dataset.name, "images": len(dataset), "sha256": digest},
        "preprocess": asdict(preprocess),
        "runs": rows,
    }


def _stamps(dataset: Dataset) -> npt.NDArray[np.int64] | None:
    """The state of each file as the evaluation begins, int64 [n, 2]; None if there are no files."""
    if dataset.stamp is None:
        return None
    return np.array([dataset.stamp(key) for key in dataset.keys], np.int64)


@dataclass(frozen=True)
class _Worker:
    """Takes one chunk from its files to the best classes of every run.

    preprocess       of all runs, up to the arithmetic that a model may do itself
    stamps           see `_stamps`
    largest_indices  of each run: the largest output index that the data's classes need
    kept_logits      is filled with the logits, where they are wanted
    """

    runs: Sequence[EvaluationRun]
    dataset: Dataset
    preprocess: Preprocess
    stamps: npt.NDArray[np.int64] | None
    largest_indices: Sequence[int]
    kept_logits: LogitsByImage | None = None

    def __call__(self, number: int) -> list[ImagePrediction]:
        """Predictions for the images of chunk `number`, in order."""
        images = []
        for index in chunk_range(number, len(self.dataset)):
            key = self.dataset.keys[index]
            images.append((index, read_image(self.dataset, key, self.preprocess)))
        # After reading, see `_stamp`.
        stamps = [self._stamp(index) for index, _ in images]
        top = self._best_classes(images)
        predictions = []
        for (index, image), stamp in zip(images, stamps, strict=True):
            best = tuple(top.get(index, ()))
            predictions.append(
                ImagePrediction(index, best, image.mode, image.why, stamp)
            )
        return predictions

    def _best_classes(
        self, images: Sequence[tuple[int, ReadImage]]
    ) -> dict[int, list[tuple[int, ...]]]:
        """The best classes that each run predicts for each image that could be read, by index."""
        # A float model and one that takes bytes get the same decoded pixels.
        batches: dict[Preprocess, Batch | None] = {}
        top: dict[int, list[tuple[int, ...]]] = {}
        for position, run in enumerate(self.runs):
            preprocess = run.artifact.require_preprocess()
            if preprocess not in batches:
                batches[preprocess] = batch_of(images, preprocess)
            batch = batches[preprocess]
            if batch is None:  # no image of the chunk could be read
                continue
            logits = self._logits(position, batch.inputs)
            if self.kept_logits is not None:
                for index, row in zip(batch.indices, logits, strict=True):
                    self.kept_logits[position, index] = row
            best = best_classes(logits, TOP).tolist()
            for index, classes in zip(batch.indices, best, strict=True):
                top.setdefault(index, []).append(tuple(classes))
        return top

    def _stamp(self, index: int) -> Stamp | None:
        """The state of an image's file, compared after the image was read.

        A change during reading is then noticed, too.

        Raises:
            InputError: it is not that of the beginning.
        """
        if self.stamps is None or self.dataset.stamp is None:
            return None
        key = self.dataset.keys[index]
        stamp = self.dataset.stamp(key)
        if stamp != tuple(self.stamps[index]):
            what = "vanished" if stamp == GONE else "was changed"
            raise InputError(
                f"the image {key} {what} during the evaluation; leave the images alone, "
                "and start again"
            )
        return stamp

    def _logits(
        self, position: int, inputs: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        run, largest = self.runs[position], self.largest_indices[position]
        logits = logits_of(run, inputs, run.batch)
        rows = len(inputs)
        if logits.ndim != 2 or logits.shape[0] != rows or logits.shape[1] <= largest:
            raise InputError(
                f"{run.artifact.name} gives outputs of shape {logits.shape} for {rows} images, "
                f"but the data's labels reach to output {largest}; the labels in the file are not "
                "those of its outputs: export it again"
            )
        if not np.isfinite(logits).all():
            raise NotFinite(
                f"{run.artifact.name} gives outputs that are not finite (NaN or overflow) on "
                f"{run.engine.name}, so it has no accuracy; check its weights and its preprocessing"
            )
        return logits


def logits_of(
    run: EvaluationRun, inputs: npt.NDArray[Any], batch: int = BATCH
) -> npt.NDArray[np.float32]:
    """Logits of `inputs`, float32 [n, classes], computed in batches of one fixed size.

    The size is the model's own where it is fixed, else `batch`. Outputs [n, classes, 1, 1] lose
    their axes of one element, and the single probability of two classes becomes those of both.

    The last batch is padded with zeros. Runtimes choose kernels by shape; with one shape only, the
    logits of an image do not depend on what else is asked of the session, and nothing is compiled
    twice.
    """
    size = fixed_batch(run.artifact.model) or batch
    parts = []
    for start in range(0, len(inputs), size):
        images = pad_batch(inputs[start : start + size], size)
        # A graph may compute a scalar; the caller names the shape in its refusal.
        parts.append(np.atleast_1d(run.session.run(images)))
    outputs = np.concatenate(parts)[: len(inputs)]
    sides = outputs.shape[1:]
    is_row = len(sides) > 1 and max(sides) == math.prod(sides)
    if is_row:
        outputs = outputs.reshape(len(outputs), -1)
    return run.head.by_class(outputs) if outputs.shape[1:] == (1,) else outputs
