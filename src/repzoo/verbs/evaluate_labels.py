"""What `evaluate` adds for multi-label models: label by label, and mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from repzoo.graph.tools.head import THRESHOLD
from repzoo.measure.accuracy import EvaluationRun
from repzoo.measure.multi_label import compare_labels, mean_average_precision
from repzoo.measure.predictions import ModelPredictions, Predictions
from repzoo.measure.record import Record
from repzoo.measure.results import PairedAccuracy
from repzoo.remark import Remark

# Outputs of all models on all images that are held in memory: 256 MB as float32.
MAX_OUTPUTS = 2**26


def needs_outputs(runs: Sequence[EvaluationRun], images: int) -> bool:
    """Whether all outputs are to be kept: all models are multi-label, and memory allows it."""
    outputs = sum(run.artifact.num_classes for run in runs) * images
    return outputs <= MAX_OUTPUTS and all(run.head.is_multi_label for run in runs)


def add_labels(
    record: Record[PairedAccuracy], pair: tuple[Predictions, Predictions], labeled: bool
) -> Record[PairedAccuracy]:
    """`record` with the comparison of the `pair` label by label, where outputs were kept.

    labeled  whether the targets are known labels, and not what the first model predicts
    """
    first, second = pair
    if not isinstance(first, ModelPredictions) or first.logits is None:
        return record
    if not isinstance(second, ModelPredictions) or second.logits is None:
        return record
    targets = first.targets if labeled else None
    labels = compare_labels(first.logits, second.logits, THRESHOLD, targets)
    return replace(record, values=replace(record.values, multi_label=labels))


def precision_remarks(predictions: Sequence[Predictions]) -> list[Remark]:
    """The mean average precision of each model whose outputs were kept, on labeled images."""
    remarks = []
    for item in predictions:
        # Results of other tools hold the best classes, not the outputs of all labels.
        if not isinstance(item, ModelPredictions) or item.logits is None:
            continue
        truth = np.zeros(item.logits.shape, np.bool_)
        truth[np.arange(len(truth)), item.targets] = True
        remarks.append(
            Remark(
                "{model} on {engine}: mean average precision {precision:.2f} %, where each image "
                "has the label of its folder",
                model=item.artifact.name,
                engine=item.engine["name"],
                precision=100 * mean_average_precision(item.logits, truth),
            )
        )
    return remarks


def top1_only_remarks(
    runs: Sequence[EvaluationRun], predictions: Sequence[Predictions]
) -> list[Remark]:
    """The multi-label models that only Top-1 is known of, since their outputs were not kept."""
    remarks = []
    for run, item in zip(runs, predictions, strict=True):
        is_kept = isinstance(item, ModelPredictions) and item.logits is not None
        if run.head.is_multi_label and not is_kept:
            remarks.append(
                Remark(
                    "{model} was not compared label by label; that takes one process without "
                    "--resume, only multi-label models, and outputs of at most 256 MB",
                    model=run.artifact.name,
                )
            )
    return remarks
