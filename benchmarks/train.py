"""What repzoo's training loop adds to a bare one: images a second of both on the same model,
images and settings, in turns.

    python -m benchmarks.train IMAGES [MODEL] [--images 1024] [--rounds 9] [--workers 1]
    [--recipe photos]

IMAGES is a folder of class folders (its `train` below, where there is one). Each round trains
MODEL (default: repghostnet_050) anew for one epoch with repzoo, state saved at its end, and so
does a loop as one would write it on PyTorch and timm: the same augmentation, batches, mixing,
optimizer, schedule and EMA, and nothing else: no seeds, no state, no log, no progress, no check
of the loss. Every other round goes backwards. Printed is repzoo's images a second over the
loop's, wanted: 0.95; and its processor seconds, workers included, over the loop's, which other
work on the machine disturbs less: wanted at most 1.05.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.data
import timm.optim
import timm.scheduler
import timm.utils
import torch
from torch.utils.data import DataLoader

from repzoo.data.batches import available_cores
from repzoo.data.dataset import Dataset
from repzoo.data.source import open_source
from repzoo.errors import RepzooError
from repzoo.measure import stats
from repzoo.training import models
from repzoo.training.loop import Trainer
from repzoo.training.models import Student
from repzoo.training.options import Running, TrainOptions
from repzoo.training.recipe import Recipe, recipe
from repzoo.training.training_images import TrainingImages


@dataclass(frozen=True)
class Setting:
    """What both loops train, and how."""

    model: str
    data: Dataset
    recipe: Recipe
    workers: int

    def student(self) -> Student:
        """The network, with the same random weights every time."""
        return models.student(
            self.model, len(self.data.classes), self.recipe, TrainOptions()
        )


def ours(setting: Setting) -> Callable[[], object]:
    """One epoch by repzoo, to be timed."""
    student = setting.student()
    folder = tempfile.TemporaryDirectory()
    running = Running(output=Path(folder.name), workers=setting.workers)
    trainer = Trainer(
        student.module,
        TrainingImages(setting.data, student.preprocess),
        setting.recipe,
        running,
    )
    return lambda: (trainer.run(None), folder.cleanup())


def bare(setting: Setting) -> Callable[[], object]:
    """The same by hand."""
    student, chosen = setting.student(), setting.recipe
    module, steps = student.module, len(setting.data) // chosen.batch
    optimizer = timm.optim.create_optimizer_v2(
        module, opt=chosen.optimizer, lr=chosen.lr, weight_decay=chosen.weight_decay
    )
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=chosen.epochs,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    average = timm.utils.ModelEmaV3(module, decay=chosen.ema_decay, use_warmup=True)
    mix = timm.data.Mixup(
        chosen.mixup,
        chosen.cutmix,
        label_smoothing=chosen.label_smoothing,
        num_classes=len(setting.data.classes),
    )
    loader = _loader(setting, student)

    def run() -> None:
        module.train()
        for step, (inputs, targets) in enumerate(loader):
            inputs, shares = mix(inputs, targets)
            loss = torch.nn.functional.cross_entropy(module(inputs), shares)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step_update(step)
            average.update(module, step=step)

    return run


def _loader(setting: Setting, student: Student) -> Any:
    chosen, preprocess, data = setting.recipe, student.preprocess, setting.data
    transform = timm.data.create_transform(
        (3, preprocess.size, preprocess.size), is_training=True, scale=chosen.scale, hflip=chosen.hflip,
        auto_augment=chosen.auto_augment or None, re_prob=chosen.erase, re_mode="pixel", color_jitter=None,
        interpolation=preprocess.interpolation, mean=preprocess.mean, std=preprocess.std,
    )  # fmt: skip

    class Images(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return transform(data.load(data.keys[index]).convert("RGB")), data.targets[
                index
            ]

    return DataLoader(
        Images(),
        chosen.batch,
        shuffle=True,
        num_workers=setting.workers,
        drop_last=True,
    )


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, and of all processors, ended child processes included."""

    seconds: float
    processor: float


def cost_of(work: Callable[[], object]) -> Cost:
    """What `work` takes."""
    began, used = time.perf_counter(), sum(os.times()[:4])
    work()
    return Cost(time.perf_counter() - began, sum(os.times()[:4]) - used)


def said(title: str, values: list[float]) -> None:
    """The median with its interval."""
    found = stats.median_interval(values)
    print(
        f"{title}: {found.value:.3f} (95 % interval {found.low:.3f} .. {found.high:.3f}, "
        f"{len(values)} rounds)",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images_folder", metavar="IMAGES", type=Path)
    parser.add_argument("model", nargs="?", default="repghostnet_050")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--recipe", default="photos")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or available_cores()))
    source = open_source(options.images_folder)
    whole = source.join("train" if "train" in source.parts else "all")
    every = max(1, len(whole) // options.images)
    data = whole.subset(range(0, every * min(options.images, len(whole)), every))
    chosen = (
        recipe(options.recipe)
        .for_model(options.model)
        .changed(epochs=1, warmup_epochs=0, mix_off_epochs=0, distill="")
    )
    if not (chosen.mixup or chosen.cutmix) or chosen.clip or chosen.repeats > 1:
        raise RepzooError(
            "the hand-written loop mixes, and neither clips nor repeats; give such a --recipe"
        )
    setting = Setting(options.model, data, chosen, options.workers)
    found: dict[str, list[Cost]] = {"repzoo": [], "bare": []}
    for turn in range(options.rounds + 1):
        for name, made in sorted(
            {"repzoo": ours, "bare": bare}.items(), reverse=bool(turn % 2)
        ):
            cost = cost_of(made(setting))
            if turn:
                found[name].append(cost)
    images = len(data) // chosen.batch * chosen.batch
    for name, costs in found.items():
        said(
            f"{setting.model} {name}, images/s", [images / one.seconds for one in costs]
        )
    pairs = list(zip(found["repzoo"], found["bare"], strict=True))
    said(
        "repzoo over bare, images/s",
        [other.seconds / own.seconds for own, other in pairs],
    )
    said(
        "repzoo over bare, processor seconds",
        [own.processor / other.processor for own, other in pairs],
    )


if __name__ == "__main__":
    try:
        main()
    except RepzooError as error:
        sys.exit(str(error))
