"""What repzoo's training loop adds to a bare one, in images per second and processor time.

    python -m benchmarks.train IMAGES [MODEL] [--images 1024] [--rounds 9] [--workers 1]
    [--recipe photos]

IMAGES is a folder of class folders (its `train` below, where there is one). Each round trains
MODEL (default: repghostnet_050) anew for one epoch with repzoo, whose state is saved at the end.
So does a loop as one would write it on PyTorch and timm: the same augmentation, batches, mixing,
optimizer, schedule and EMA, and nothing else (no seeds, state, log, progress or check of the
loss). Every other round runs in reverse order.

Printed are repzoo's images per second over the loop's (wanted: 0.95), and its processor seconds,
workers included, over the loop's (wanted: at most 1.05). Other work on the machine disturbs the
second less.
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

from benchmarks.medians import print_median
from repzoo.data.batches import available_cores
from repzoo.data.dataset import Dataset
from repzoo.data.source import open_source
from repzoo.errors import RepzooError
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
    student = setting.student()
    chosen = setting.recipe
    module = student.module
    steps = len(setting.data) // chosen.batch
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
        """One epoch."""
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
    chosen = setting.recipe
    preprocess = student.preprocess
    data = setting.data
    transform = timm.data.create_transform(
        (3, preprocess.size, preprocess.size),
        is_training=True,
        scale=chosen.scale,
        hflip=chosen.hflip,
        auto_augment=chosen.auto_augment or None,
        re_prob=chosen.erase,
        re_mode="pixel",
        color_jitter=None,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
    )

    class Images(torch.utils.data.Dataset[Any]):
        """The training images, transformed."""

        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            image = data.load(data.keys[index]).convert("RGB")
            return transform(image), data.targets[index]

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
    """The cost of one call."""
    began = time.perf_counter()
    used = processor_seconds()
    work()
    used = processor_seconds() - used
    return Cost(time.perf_counter() - began, used)


def processor_seconds() -> float:
    """What this process and its ended children have used so far."""
    times = os.times()
    own = times.user + times.system
    return own + times.children_user + times.children_system


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images_folder", metavar="IMAGES", type=Path)
    parser.add_argument("model", nargs="?", default="repghostnet_050")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--recipe", default="photos")
    return parser.parse_args()


def make_setting(options: argparse.Namespace) -> Setting:
    """What both loops train, from the command line.

    Raises:
        RepzooError: a recipe that the hand-written loop cannot follow.
    """
    source = open_source(options.images_folder)
    whole = source.join("train" if "train" in source.parts else "all")
    step = max(1, len(whole) // options.images)
    end = step * min(options.images, len(whole))
    usual = recipe(options.recipe).for_model(options.model)
    chosen = usual.changed(epochs=1, warmup_epochs=0, mix_off_epochs=0, distill="")
    if not (chosen.mixup or chosen.cutmix) or chosen.clip or chosen.repeats > 1:
        raise RepzooError(
            "the hand-written loop mixes, and neither clips nor repeats; give such a --recipe"
        )
    data = whole.subset(range(0, end, step))
    return Setting(options.model, data, chosen, options.workers)


def main() -> None:
    """Measure both loops in turns and print the ratios."""
    options = parse_arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or available_cores()))
    setting = make_setting(options)
    loops = {"repzoo": ours, "bare": bare}
    costs: dict[str, list[Cost]] = {name: [] for name in loops}
    for turn in range(options.rounds + 1):
        for name in sorted(loops, reverse=bool(turn % 2)):
            cost = cost_of(loops[name](setting))
            if turn:  # the first round warms up
                costs[name].append(cost)
    print_costs(setting, costs)


def print_costs(setting: Setting, costs: dict[str, list[Cost]]) -> None:
    """Print the rate of each loop, and the two ratios."""
    # Both loops drop the last, incomplete batch.
    steps = len(setting.data) // setting.recipe.batch
    images = steps * setting.recipe.batch
    for name, rows in costs.items():
        rates = [images / cost.seconds for cost in rows]
        print_median(f"{setting.model} {name}, images/s", rates)
    pairs = list(zip(costs["repzoo"], costs["bare"], strict=True))
    speeds = [other.seconds / own.seconds for own, other in pairs]
    print_median("repzoo over bare, images/s", speeds)
    times = [own.processor / other.processor for own, other in pairs]
    print_median("repzoo over bare, processor seconds", times)


if __name__ == "__main__":
    try:
        main()
    except RepzooError as error:
        sys.exit(str(error))
