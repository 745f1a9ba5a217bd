"""Compares quantized forms of one float model with it, image by image, on the same images.

What is compared depends on what the head means (graph/tools/head.py). Of classes that exclude each
other, the best one. Of sigmoids, each label on its own. Of a head that is no classifier's, nothing
but the error of the outputs, and the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine
from repzoo.graph.tools.head import THRESHOLD, HeadKind, find_head
from repzoo.measure import accuracy, stats
from repzoo.measure.class_mapping import with_output_classes
from repzoo.measure.expected_drop import (
    Margins,
    expected_drop,
    output_snr_db,
    snr_db,
)
from repzoo.measure.multi_label import compare_labels
from repzoo.measure.record import Record
from repzoo.measure.results import PairedAccuracy
from repzoo.progress import Progress, silent

# Logits of one model on all images that are held in memory: 32 MB as float32.
MAX_LOGITS = 2**23
# Assumed for a model that does not say how many classes it has.
DEFAULT_CLASSES = 2**14


class FloatComparison:
    """Compares quantized models with their float model on `images`. The float model runs once.

    Where the logits of all images fit MAX_LOGITS, a comparison also estimates the expected drop
    (measure/expected_drop.py).
    """

    def __init__(
        self,
        artifact: Artifact,
        images: Dataset,
        engine: Engine,
        progress: Progress = silent,
        batch: int = accuracy.BATCH,
        float_engine: Engine | None = None,
    ) -> None:
        """See FloatComparison.

        batch         images in a call of the engine, at most `accuracy.BATCH`
        float_engine  runs the float model; None: `engine`, which runs the others
        """
        self.artifact = artifact
        self.images = images
        self.batch = batch
        if not images.labeled:
            self.images = with_output_classes(images, artifact)
        self.engine = engine
        self.float_engine = float_engine or engine
        self.progress = progress
        self.report = ReadReport()  # images that could not be read
        self.head = find_head(artifact.model)
        classes = artifact.num_classes or DEFAULT_CLASSES
        has_classes = (
            not self.head.is_multi_label and self.head.kind is not HeadKind.OTHER
        )
        # Of any other head the best output alone says nothing.
        self._keeps_logits = not has_classes or len(images) * classes <= MAX_LOGITS
        self._more_margins: list[tuple[Margins, npt.NDArray[np.int64]]] = []
        self._float: accuracy.ModelPredictions | None = None

    def on(self, images: Dataset) -> FloatComparison:
        """The same on other images."""
        return FloatComparison(
            self.artifact,
            images,
            self.engine,
            self.progress,
            self.batch,
            self.float_engine,
        )

    def compare(self, quantized: Artifact) -> Record[PairedAccuracy]:
        """`quantized` against the float model, image by image, by what the head means."""
        return self.pair(self.predict([quantized])[0])

    def pair(self, second: accuracy.ModelPredictions) -> Record[PairedAccuracy]:
        """As `compare`, of what `predict` returned."""
        first = self._float
        assert first is not None
        if not self.images.labeled:
            # The float model's predictions take the place of labels.
            targets = first.top[:, 0]
            first = replace(first, targets=targets)
            second = replace(second, targets=targets)
        record = accuracy.compare(first, second)
        values = replace(record.values, labeled=self.images.labeled)
        if not self.images.labeled:
            values = replace(values, top1=None, first_top1=None)
        if self.head.kind is HeadKind.OTHER:
            values = _without_verdict(values, self.head.reason, first, second)
        elif self._keeps_logits:
            values = self._add_expected_drop(values, first, second)
        if self.head.is_multi_label:
            values = self._compare_labels(values, first, second)
        return replace(record, values=values)

    def add_margins(self, images: Dataset, margins: Margins) -> None:
        """Use the float model's `margins` on other `images` of the same kind as well.

        More margins make the expected drop more certain; they need no quantized logits.
        """
        if self.images.labeled:
            indices = accuracy.class_indices(self.images, self.artifact)
            targets = np.array([indices[target] for target in images.targets])
        else:
            targets = margins.classes[:, 0]
        self._more_margins.append((margins, targets))

    def predict(self, models: Sequence[Artifact]) -> list[accuracy.ModelPredictions]:
        """What each of `models` predicts; every image is read once for all of them.

        The float model runs along where it has not run yet.
        """
        cases = [(model, self.engine) for model in models]
        if not self._float:
            cases.insert(0, (self.artifact, self.float_engine))
        if not cases:
            return []
        runs: list[accuracy.EvaluationRun] = []
        for artifact, engine in cases:
            runs.append(accuracy.open_run(artifact, engine, batch=self.batch))
        # What cannot be read is reported once, not for every model.
        report = ReadReport() if self._float else self.report
        predictions = accuracy.evaluate(
            runs, self.images, report, self.progress, logits=self._keeps_logits
        )
        if self._float is None:
            self._float = predictions[0]
        return predictions[len(predictions) - len(models) :]

    @property
    def float_predictions(self) -> accuracy.ModelPredictions | None:
        """What the float model predicts on the images; None where it has not run yet."""
        return self._float

    def learn_from(self, other: FloatComparison) -> None:
        """Take what the float model predicts on the same images from `other`, where it knows."""
        if other.float_predictions is not None:
            self.know_float(other.float_predictions)
        if self._float is not None:
            self.report = other.report

    def know_float(self, predictions: accuracy.ModelPredictions) -> None:
        """Take the float model's `predictions` from before, if they are of all of these images."""
        has_logits = predictions.logits is not None or not self._keeps_logits
        if has_logits and set(self.images.keys) <= set(predictions.keys):
            indices = np.array(accuracy.class_indices(self.images, self.artifact))
            targets = indices[list(self.images.targets)]
            self._float = predictions.of_images(self.images, targets)

    def _add_expected_drop(
        self,
        paired: PairedAccuracy,
        first: accuracy.ModelPredictions,
        second: accuracy.ModelPredictions,
    ) -> PairedAccuracy:
        """`paired` with what the logits of the float and the quantized model say."""
        assert first.logits is not None
        assert second.logits is not None
        # Not of probabilities: their errors are large where margins are narrow and hardly there
        # where they are wide, and the expected drop pairs every margin with every error.
        head = self.head.refine(first.logits)
        first_logits = head.logits(first.logits)
        second_logits = head.logits(second.logits)
        margins = [Margins.from_logits(first_logits)]
        targets = [first.targets]
        for more_margins, more_targets in self._more_margins:
            margins.append(more_margins)
            targets.append(more_targets)
        expected = expected_drop(
            Margins.concatenate(margins),
            np.concatenate(targets),
            first_logits,
            second_logits,
        )
        snr = snr_db(first_logits, second_logits)
        return replace(paired, expected=expected, logits_snr_db=snr)

    def _compare_labels(
        self,
        paired: PairedAccuracy,
        first: accuracy.ModelPredictions,
        second: accuracy.ModelPredictions,
    ) -> PairedAccuracy:
        """`paired` with the labels that both models give.

        Without known labels the best output is no prediction, and what changed of the labels takes
        the place of what changed of the predictions.
        """
        assert first.logits is not None
        assert second.logits is not None
        targets = first.targets if self.images.labeled else None
        labels = compare_labels(first.logits, second.logits, THRESHOLD, targets)
        if not labels.is_known:
            reason = f"no output is above {THRESHOLD} on these images, in either model"
            return _without_verdict(
                replace(paired, multi_label=labels), reason, first, second
            )
        if self.images.labeled:
            return replace(paired, multi_label=labels)
        return replace(
            paired,
            multi_label=labels,
            drop=100 - labels.agreement,
            drop_low=100 - labels.agreement_high,
            drop_high=100 - labels.agreement_low,
            p_value=stats.mcnemar(labels.lost, labels.gained),
            same_prediction=labels.agreement,
            lost=labels.lost,
            gained=labels.gained,
            needed=None,
            needed_drop=None,
            visible=None,
            power=None,
            expected=None,
        )


def _without_verdict(
    paired: PairedAccuracy,
    reason: str,
    first: accuracy.ModelPredictions,
    second: accuracy.ModelPredictions,
) -> PairedAccuracy:
    """`paired` of outputs that are neither classes nor labels: only their error is known."""
    assert first.logits is not None
    assert second.logits is not None
    return replace(
        paired,
        unjudged=reason,
        expected=None,
        logits_snr_db=output_snr_db(first.logits, second.logits),
    )
