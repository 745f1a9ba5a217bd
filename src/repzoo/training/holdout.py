"""Which images a training holds out, and whether the trained network tells classes apart."""

from __future__ import annotations

import math

import numpy as np
import torch

from repzoo.artifact import Preprocess
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, DataSource
from repzoo.errors import InputError
from repzoo.training.options import TrainOptions

# With fewer optimizer steps any network predicts one class. Such a run only tries the set-up.
FEWEST_STEPS = 20
SAMPLE = 256


def hold_out(
    source: DataSource, images: Dataset, options: TrainOptions
) -> tuple[Dataset, Dataset | None, list[str]]:
    """The images to train on, those to score (None without any), and remarks for a person.

    images  those of the training part, or of a whole folder without parts

    Raises:
        InputError: `split` for a data set that holds images out already, or too few images.
    """
    if source.separates_training:
        if options.split:
            parts = ", ".join(source.held_out_parts())
            raise InputError(
                f"{source.name} holds images out already ({parts}); leave --split out"
            )
        return images, source.held_out(), []
    if not options.split:
        remark = (
            f"all {len(images)} images are trained on and none is held out, so nothing shows how "
            "well the model does on others; --split 0.1 would hold out a tenth"
        )
        return images, None, [remark]
    validation = _stratified(images, options.split, options.seed)
    chosen = set(validation)
    rest = [index for index in range(len(images)) if index not in chosen]
    held_out = images.subset(validation, f"{images.name} held out")
    remark = f"{len(validation)} of {len(images)} images are held out (--split {options.split:g})"
    return images.subset(rest), held_out, [remark]


def _stratified(images: Dataset, share: float, seed: int) -> list[int]:
    """Sorted indices of `share` of each class, one at least; the same seed gives the same."""
    random = np.random.default_rng(seed)
    targets = np.asarray(images.targets)
    chosen: list[int] = []
    for target in sorted(set(images.targets)):
        members = np.flatnonzero(targets == target)
        count = max(1, math.floor(share * len(members)))
        if count >= len(members):
            raise InputError(
                f"the class {images.classes[target]!r} has {len(members)} image(s), too few to "
                "hold one out and train on the rest; add images, or leave --split out"
            )
        chosen += random.permutation(members)[:count].tolist()
    return sorted(chosen)


def require_classes(
    module: torch.nn.Module, images: Dataset, preprocess: Preprocess, steps: int
) -> list[str]:
    """Refuse a network that predicts one class for all; a remark after very few steps.

    module  in eval mode, on the CPU
    images  of several classes; up to SAMPLE of them are looked at
    steps   of the optimizer that were made

    Raises:
        InputError: one class for all images.
    """
    # Folders are read class by class, so the first images may all be of one.
    sample = images.subset(images.balanced_sample(SAMPLE, seed=0))
    guesses: set[int] = set()
    with torch.inference_mode():
        for batch in batches(sample, preprocess, 64, ReadReport()):
            logits = module(torch.from_numpy(batch.inputs))
            guesses.update(logits.argmax(1).tolist())
    # Where all images are of one class, predicting it for all is right.
    if len(guesses) != 1 or len(set(sample.targets)) < 2:
        return []
    sentence = (
        f"the model predicts the class {images.classes[guesses.pop()]!r} for all of "
        f"{len(sample)} images"
    )
    if steps < FEWEST_STEPS:
        return [f"{sentence}: {steps} steps are too few to learn from"]
    raise InputError(
        f"{sentence}, so it has learned nothing and no model file was written; train for more "
        "epochs, give a lower --lr, or start from weights (--recipe finetune --checkpoint FILE)"
    )
