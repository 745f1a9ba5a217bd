"""Training images: their order and augmentation.

Both follow from a seed and the image's position in the epoch alone. The number of workers, the
number of processes and interruptions change nothing.
"""

from __future__ import annotations

import multiprocessing
import pickle
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm.data
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader

from repzoo.artifact import Preprocess
from repzoo.data.dataset import Dataset
from repzoo.data.preprocess import oriented
from repzoo.errors import InputError
from repzoo.training.recipe import Recipe

# (position in the epoch, index into the data set).
Placed = tuple[int, int]


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process computes.

    rank, size  this process among all
    accumulate  gradient-accumulation steps: parts of the batch computed one after another
    """

    rank: int = 0
    size: int = 1
    accumulate: int = 1


@dataclass(frozen=True)
class TrainingImages:
    """The images of a training, and the preprocessing of the trained model."""

    dataset: Dataset
    preprocess: Preprocess

    def steps(self, recipe: Recipe) -> int:
        """Whole batches in an epoch."""
        return len(self.dataset) // recipe.batch

    def parts(
        self, recipe: Recipe, seed: int, share: Share, first: int = 0
    ) -> list[list[Placed]]:
        """The images of `share`, `accumulate` lists per step, from the step `first` on."""
        order = list(enumerate(_order(len(self.dataset), recipe.repeats, seed)))
        each = recipe.batch // share.accumulate
        starts = range(first * recipe.batch, self.steps(recipe) * recipe.batch, each)
        return [
            # In turns, so that copies that `repeats` puts side by side go to different processes.
            order[start : start + each][share.rank :: share.size]
            for start in starts
        ]

    def loader(
        self,
        recipe: Recipe,
        size: int,
        seed: int,
        parts: list[list[Placed]],
        workers: int,
    ) -> DataLoader[Any]:
        """Batches of (float32 [n, 3, size, size], int64 [n]), one for each of `parts`."""
        transform = _augmentation(recipe, self.preprocess, size)
        images = _Augmented(self.dataset, self.preprocess, transform, seed)
        context = _context(self.dataset) if workers else None
        return DataLoader(
            images,
            batch_sampler=parts,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=context,
        )


def _context(dataset: Dataset) -> multiprocessing.context.BaseContext:
    """How image workers are started: by a server process without threads ("forkserver").

    A worker forked from this process would inherit locks that threads of ONNX Runtime, OpenVINO or
    OpenMP hold, and could wait for them forever.

    Raises:
        InputError: `dataset.load` cannot be sent to another process.
    """
    try:
        pickle.dumps(dataset.load)
    # Pickling runs code of whatever `load` holds, which may raise anything.
    except Exception as error:
        raise InputError(
            f"the images of {dataset.name} are read by a function that cannot be sent to worker "
            f"processes ({error}); make Dataset.load a function of a module, or train with 0 "
            "workers"
        ) from None
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _order(count: int, repeats: int, seed: int) -> list[int]:
    if repeats == 1:
        return torch.randperm(
            count, generator=torch.Generator().manual_seed(seed)
        ).tolist()
    # timm would round the length of an epoch down to a multiple of 256 images.
    sampler = RepeatAugSampler(
        range(count), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0
    )
    sampler.set_epoch(seed)
    return list(sampler)


class _Augmented(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, transform: Any, seed: int
    ) -> None:
        self.dataset = dataset
        self.preprocess = preprocess
        self.transform = transform
        self.seed = seed

    def __getitem__(self, placed: Placed) -> tuple[torch.Tensor, int]:
        position, index = placed
        # More than the images of any epoch, so that no two epochs draw the same numbers.
        seed_everything(self.seed * 2**24 + position)
        image = oriented(self.dataset.load(self.dataset.keys[index]), self.preprocess)
        return self.transform(image.convert("RGB")), self.dataset.targets[index]


def _augmentation(recipe: Recipe, preprocess: Preprocess, size: int) -> Any:
    return timm.data.create_transform(
        (3, size, size),
        is_training=True,
        scale=recipe.scale,
        hflip=recipe.hflip,
        auto_augment=recipe.auto_augment or None,
        re_prob=recipe.erase,
        re_mode="pixel",
        # timm jitters colors by default; no recipe asks for it.
        color_jitter=None,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
    )


def mixing(recipe: Recipe, classes: int) -> Any:
    """timm's Mixup, which pairs the images of one part; None if the recipe has none."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    return timm.data.Mixup(
        recipe.mixup,
        recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )


def seed_everything(seed: int) -> None:
    """Seed the three generators that torch, timm and torchvision draw from."""
    random.seed(seed)
    # NumPy's seeds have 32 bits.
    np.random.seed(seed % 2**32)
    # torch.manual_seed would format a stack trace while CUDA is not initialized, which took a fifth
    # of an image's time in workers.
    torch.default_generator.manual_seed(seed % 2**63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed % 2**63)
