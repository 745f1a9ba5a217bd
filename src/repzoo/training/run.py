"""`repzoo train`: from a catalog model and a data set to a trained training-form artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import ReadReport, readable_indices
from repzoo.data.dataset import Dataset, DataSource
from repzoo.errors import InputError
from repzoo.graph.tools.export import export
from repzoo.measure.distributed import ALONE, Group
from repzoo.progress import Progress, silent
from repzoo.training import models, state
from repzoo.training.holdout import hold_out, require_classes
from repzoo.training.loop import Trainer
from repzoo.training.options import Running
from repzoo.training.recipe import Recipe
from repzoo.training.state import Epoch
from repzoo.training.training_images import TrainingImages

HOW = (
    "seed",
    "accumulate",
    "device",
    "channels_last",
    "split",
    "checkpoint",
    "pretrained",
    "teacher",
)


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    remarks  for a person: images left out, how it ran, where the weights came from
    """

    artifact: Artifact
    log: Sequence[Epoch]
    remarks: Sequence[str]


def train(
    model: str,
    source: DataSource,
    recipe: Recipe,
    running: Running,
    group: Group = ALONE,
    progress: Progress = silent,
) -> TrainResult:
    """Train `model` on the training part of `source`, or continue the run in `running.output`.

    Writes run.json, log.csv, state.pt, weights.safetensors and MODEL.SOURCE.onnx there.
    Held-out images are scored and never trained on. Of several processes (`group`) only the
    first writes.

    Raises:
        InputError: an unknown model, no training part, a class without images, broken images,
            another run's folder, weights or a teacher that do not fit, a loss that is not finite,
            or a trained model that predicts one class for all images.
    """
    recipe = recipe.for_model(model)
    report = ReadReport()
    images = _training_images(source, report, progress if not group.rank else silent)
    images, held_out, held_out_remarks = hold_out(source, images, running)
    student = models.student(model, len(source.classes), recipe, running)
    teacher = models.teacher(running.teacher, source.classes, recipe)
    training_images = TrainingImages(images, student.preprocess)
    trainer = Trainer(student.module, training_images, recipe, running, group, teacher)
    remarks = [*held_out_remarks, *trainer.facts(), *student.remarks]
    settings: dict[str, Any] = {
        "model": model,
        "data": images.name,
        "images": len(images),
        "seed": running.seed,
        "recipe": asdict(recipe),
        "processes": group.size,
        **student.facts,
    }
    for key in HOW:
        if getattr(running, key):
            settings[key] = getattr(running, key)
    if not group.rank:
        state.save_settings(running.output, {"remarks": remarks, **settings})
    best = trainer.run(held_out, progress).cpu()
    if trainer.threads and trainer.threads < torch.get_num_threads():
        remarks.append(
            f"{trainer.threads} of {torch.get_num_threads()} threads: faster in a trial, for other "
            "programs use the cores (--threads sets the number)"
        )
    if not group.rank:
        steps = trainer.steps * recipe.epochs
        # Even the images that it was trained on show a network that has learned nothing.
        judged = images if held_out is None else held_out
        remarks += require_classes(best, judged, student.preprocess, steps)
    name = f"{model}.{source.name}"
    # In every process, since each returns the whole result.
    artifact = export(
        best,
        name,
        student.preprocess,
        source.classes,
        Step("train", __version__, settings),
    )
    if not group.rank:
        artifact = artifact.save(running.output / f"{name}.onnx")
    return TrainResult(
        replace(artifact, name=name), trainer.log, [*remarks, *report.sentences()]
    )


def _training_images(
    source: DataSource, report: ReadReport, progress: Progress
) -> Dataset:
    parts = source.training_parts()
    if not parts:
        raise InputError(
            f"{source.name} has no part for training; it has {', '.join(source.parts)}: name the "
            "folder of the training images 'train'"
        )
    whole = source.join(*parts)
    images = whole.subset(readable_indices(whole, report, progress))
    report.check(whole.name, len(whole))
    present = set(images.targets)
    missing = list(source.empty)
    missing += [
        label for index, label in enumerate(source.classes) if index not in present
    ]
    if missing:
        names = ", ".join(repr(label) for label in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{whole.name} has no image of the class {names}{more}, so it cannot be learned; "
            "add images, or remove the class's folder from every part"
        )
    return images
