"""`repzoo train`: from a catalogue model and a data set to a trained training-form artifact."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from repzoo import __version__
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.batches import ReadReport, readable
from repzoo.data.dataset import Source
from repzoo.graph.export import export
from repzoo.progress import Progress, silent
from repzoo.train.loop import Epoch, Trainer
from repzoo.train.recipe import Recipe
from repzoo.zoo import catalog, families


def train(
    model: str, source: Source, recipe: Recipe, output: Path, seed: int = 0, progress: Progress = silent
) -> tuple[Artifact, list[Epoch], list[str]]:
    """Train `model` on the training part of `source`, or go on with the run in `output`.

    Writes log.csv, state.pt, weights.safetensors and MODEL.SOURCE.onnx to `output`; images held out are scored, never trained on.
    Returns the artifact, the log and remarks on images that were left out.

    Raises:
        InputError: unknown model, no training part, broken images, another run's folder.
    """
    spec = catalog.spec(model)
    report = ReadReport()
    images = source.join("train" if "train" in source.parts else "all")
    images = images.subset(readable(images, report, progress))
    report.check(images.name, len(images) + len(report.unreadable))
    held_out = source.held_out() if "train" in source.parts and len(source.parts) > 1 else None
    preprocess = Preprocess.from_mapping({**asdict(spec.preprocess), **recipe.preprocess})
    module = families.seeded(model, len(source.classes), seed, drop_rate=recipe.drop_rate)
    trainer = Trainer(module, images, preprocess, recipe, output, seed)
    best = trainer.run(held_out, progress)
    settings = {"model": model, "data": images.name, "images": len(images), "seed": seed, "recipe": asdict(recipe)}
    name = f"{model}.{source.name}"
    artifact = export(best, name, preprocess, source.classes, Step("train", __version__, settings))
    return replace(artifact.write(output / f"{name}.onnx"), name=name), trainer.log, report.sentences()
