"""The images that `quantize` and `harden` work with, and what to know of them beforehand."""

from __future__ import annotations

from repzoo.artifact import Artifact
from repzoo.data.dataset import DataSource, QuantizationSplit
from repzoo.measure.class_mapping import (
    binary_remarks,
    class_indices,
    lacks_classes,
    order_remarks,
    with_folder_names,
)
from repzoo.remark import Remark


def split_images(
    source: DataSource, artifact: Artifact, count: int, seed: int
) -> tuple[QuantizationSplit, list[str]]:
    """The parts of `source` for the float model `artifact`, and remarks on them.

    The parts have no labels where nothing says which output is which class: agreement with float
    can still be counted.

    count  calibration images

    Raises:
        InputError: too few images, or classes that the model does not have.
    """
    split = source.split_for_quantization(count, seed)
    remarks = _remarks(split, artifact, count)
    if lacks_classes(split.gate, artifact):
        split = split.without_labels()
    if split.gate.labeled:
        class_indices(split.gate, artifact)
    return split, remarks


def _remarks(split: QuantizationSplit, artifact: Artifact, count: int) -> list[str]:
    """What to know about the images before the gate's judgment is believed."""
    remarks = split.gate.remarks()
    if lacks_classes(split.gate, artifact):
        remarks.append(
            Remark(
                "{data} has {classes} classes and {model} {outputs} outputs without labels, so "
                "nothing says which output is which class: the images serve for calibration, and "
                "the gate compares INT8 with float; give --labels to also count the accuracy",
                data=split.gate.name,
                classes=len(split.gate.classes),
                model=artifact.name,
                outputs=artifact.num_classes,
            )
        )
    elif split.gate.labeled:
        remarks += order_remarks(split.gate, artifact)
    remarks += binary_remarks(with_folder_names(artifact, split.gate))
    if len(split.calibration) < count:
        remarks.append(
            Remark(
                "{requested} calibration images were requested, {available} are available",
                requested=count,
                available=len(split.calibration),
            )
        )
    return remarks
