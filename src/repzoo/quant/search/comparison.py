"""Compares quantized forms of one float model with it, image by image, on the same images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine
from repzoo.measure import accuracy
from repzoo.measure.expected_drop import Margins, expected_drop, snr_db
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
    ) -> None:
        self.artifact = artifact
        self.images = with_model_classes(images, artifact)
        self.engine = engine
        self.progress = progress
        self.report = ReadReport()  # images that could not be read
        classes = artifact.num_classes or DEFAULT_CLASSES
        self._keeps_logits = len(images) * classes <= MAX_LOGITS
        self._more_margins: list[tuple[Margins, npt.NDArray[np.int64]]] = []
        self._float: accuracy.ModelPredictions | None = None

    def compare(self, quantized: Artifact) -> Record[PairedAccuracy]:
        """Top-1 of `quantized` against the float model, image by image."""
        first, second = self._predict(quantized)
        if not self.images.labeled:
            # The float model's predictions take the place of labels.
            targets = first.top[:, 0]
            first = replace(first, targets=targets)
            second = replace(second, targets=targets)
        record = accuracy.compare(first, second)
        values = replace(record.values, labeled=self.images.labeled)
        if self._keeps_logits:
            values = self._add_expected_drop(values, first, second)
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

    def _predict(
        self, quantized: Artifact
    ) -> tuple[accuracy.ModelPredictions, accuracy.ModelPredictions]:
        """(predictions of the float model, predictions of `quantized`) on all images."""
        artifacts = [quantized] if self._float else [self.artifact, quantized]
        runs = [accuracy.open_run(artifact, self.engine) for artifact in artifacts]
        # What cannot be read is reported once, not for every model.
        report = ReadReport() if self._float else self.report
        predictions = accuracy.evaluate(
            runs, self.images, report, self.progress, logits=self._keeps_logits
        )
        if self._float is None:
            self._float = predictions[0]
        return self._float, predictions[-1]

    def _add_expected_drop(
        self,
        paired: PairedAccuracy,
        first: accuracy.ModelPredictions,
        second: accuracy.ModelPredictions,
    ) -> PairedAccuracy:
        """`paired` with what the logits of the float and the quantized model say."""
        assert first.logits is not None
        assert second.logits is not None
        margins = [Margins.from_logits(first.logits)]
        targets = [first.targets]
        for more_margins, more_targets in self._more_margins:
            margins.append(more_margins)
            targets.append(more_targets)
        expected = expected_drop(
            Margins.concatenate(margins),
            np.concatenate(targets),
            first.logits,
            second.logits,
        )
        snr = snr_db(first.logits, second.logits)
        return replace(paired, expected=expected, logits_snr_db=snr)


def with_model_classes(images: Dataset, artifact: Artifact) -> Dataset:
    """`images`; without labels, with the model's classes, which evaluation asks for.

    The targets of images without labels are not looked at.
    """
    if images.labeled:
        return images
    count = artifact.num_classes or len(artifact.labels)
    return replace(
        images, classes=tuple(str(index) for index in range(count)), ordered=True
    )
