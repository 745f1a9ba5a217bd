"""The training loop: one process, timm's optimisers, schedule, mixing and EMA; resumes exactly at an epoch's end."""

from __future__ import annotations

import csv
import dataclasses
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import timm.data
import timm.optim
import timm.scheduler
import timm.utils
import torch
from torch.utils.data import DataLoader

from repzoo.artifact import Preprocess
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.errors import InputError
from repzoo.progress import Progress, silent
from repzoo.storage import make_folder, sha256_of, write_atomically, written_aside
from repzoo.train.recipe import Recipe

STATE, LOG, WEIGHTS = "state.pt", "log.csv", "weights.safetensors"


@dataclass(frozen=True)
class Epoch:
    """One line of the log. Accuracy is Top-1 % of the EMA weights on the validation images (nan when not taken)."""

    epoch: int
    lr: float
    loss: float
    validation_top1: float
    images_per_second: float
    seconds: float


class Trainer:
    """One training run in the folder `output`; `run` goes on from the state it finds there.

    Raises (all methods):
        InputError: the folder holds the state of another run, or cannot be written.
    """

    def __init__(
        self, module: torch.nn.Module, train: Dataset, preprocess: Preprocess, recipe: Recipe, output: Path, seed: int
    ) -> None:
        if len(train) < recipe.batch:
            raise InputError(
                f"{train.name} has {len(train)} images, fewer than one batch of {recipe.batch}; give a smaller --batch"
            )
        self.module, self.recipe, self.preprocess, self.output, self.seed = module, recipe, preprocess, make_folder(output), seed
        self.ema = timm.utils.ModelEmaV3(module, decay=recipe.ema_decay, use_warmup=True)
        self.optimizer = timm.optim.create_optimizer_v2(
            module, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        self.train = train
        self.steps = len(train) // recipe.batch
        self.scheduler, _ = timm.scheduler.create_scheduler_v2(
            self.optimizer, "cosine", num_epochs=recipe.epochs, warmup_epochs=recipe.warmup_epochs, warmup_lr=recipe.lr * 0.01,
            min_lr=recipe.lr * 0.01, step_on_epochs=False, updates_per_epoch=self.steps, warmup_prefix=False,
        )  # fmt: skip
        self.mix = _mixing(recipe, len(train.classes))
        self.log: list[Epoch] = []

    def run(self, validation: Dataset | None, progress: Progress = silent, every: int = 5) -> torch.nn.Module:
        """Train what is left and return the EMA module in eval mode; `validation` is scored every `every` epochs and last."""
        self._resume()
        for epoch in range(len(self.log), self.recipe.epochs):
            started = time.perf_counter()
            loss = self._epoch(epoch, progress)
            trained = time.perf_counter() - started
            due = validation is not None and ((epoch + 1) % every == 0 or epoch + 1 == self.recipe.epochs)
            score = top1(self.ema.module, validation, self.preprocess) if due and validation else math.nan
            rate = self.steps * self.recipe.batch / trained
            lr = float(self.optimizer.param_groups[0]["lr"])
            self.log.append(Epoch(epoch, lr, loss, score, rate, time.perf_counter() - started))
            self._save()
        self._save_weights()
        averaged: torch.nn.Module = self.ema.module
        return averaged.eval()

    def _epoch(self, epoch: int, progress: Progress) -> float:
        seed = self.seed * 100_003 + epoch
        _seed_everything(seed)
        mixing = self.mix if epoch < self.recipe.epochs - self.recipe.mix_off_epochs else None
        self.module.train()
        total = 0.0
        stage = f"epoch {epoch + 1}/{self.recipe.epochs}"
        for step, (inputs, targets) in enumerate(self._loader(seed)):
            total += self._step(epoch * self.steps + step, inputs, targets, mixing)
            progress(stage, step + 1, self.steps)
        return total / self.steps

    def _step(self, update: int, inputs: torch.Tensor, targets: torch.Tensor, mixing: Any) -> float:
        self.scheduler.step_update(update)
        if mixing is not None:
            inputs, targets = mixing(inputs, targets)
        smoothing = 0.0 if mixing is not None else self.recipe.label_smoothing
        loss = torch.nn.functional.cross_entropy(self.module(inputs), targets, label_smoothing=smoothing)
        if not math.isfinite(loss.item()):
            kept = f"epoch {len(self.log)} is kept in {self.output / STATE}" if self.log else "nothing was kept"
            raise InputError(f"the loss became {loss.item()} at step {update}; {kept}; give a lower --lr and another -o")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.ema.update(self.module, step=update)
        return loss.item()

    def _loader(self, seed: int) -> DataLoader[Any]:
        images = _TorchImages(self.train, _augmentation(self.recipe, self.preprocess))
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(images, self.recipe.batch, shuffle=True, drop_last=True, num_workers=2, generator=generator)

    def _fingerprint(self) -> str:
        settings = [
            {key: tuple(value.shape) for key, value in self.module.state_dict().items()},
            dataclasses.asdict(self.recipe),
            dataclasses.asdict(self.preprocess),
            self.seed,
            self.train.keys,
            self.train.classes,
        ]
        return sha256_of(repr(settings).encode())

    def _save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "log": [dataclasses.astuple(line) for line in self.log],
            "fingerprint": self._fingerprint(),
        }
        with written_aside(self.output / STATE) as aside:
            torch.save(state, aside)
        with written_aside(self.output / LOG) as aside, aside.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(field.name for field in dataclasses.fields(Epoch))
            writer.writerows(dataclasses.astuple(line) for line in self.log)

    def _save_weights(self) -> None:
        from safetensors.torch import save

        write_atomically(self.output / WEIGHTS, save(self.ema.module.state_dict()))

    def _resume(self) -> None:
        path = self.output / STATE
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            fingerprint = state["fingerprint"]
        except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError):
            raise InputError(f"{path} is damaged; remove it to start again, or give another -o") from None
        if fingerprint != self._fingerprint():
            raise InputError(f"{path} belongs to a run with other settings or data; give another -o, or remove it to start again")
        self.module.load_state_dict(state["module"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log = [Epoch(*line) for line in state["log"]]


def top1(module: torch.nn.Module, dataset: Dataset, preprocess: Preprocess) -> float:
    """Top-1 % of `module` on `dataset`, whose targets are the module's output indices."""
    module.eval()
    report, right, seen = ReadReport(), 0, 0
    with torch.inference_mode():
        for batch in batches(dataset, preprocess, 64, report):
            predicted = module(torch.from_numpy(batch.inputs)).argmax(1).tolist()
            right += sum(guess == dataset.targets[index] for guess, index in zip(predicted, batch.indices, strict=True))
            seen += len(batch.indices)
    report.check(dataset.name, len(dataset))
    return 100 * right / seen


class _TorchImages(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, dataset: Dataset, transform: Any) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.dataset.load(self.dataset.keys[index]).convert("RGB")), self.dataset.targets[index]


def _augmentation(recipe: Recipe, preprocess: Preprocess) -> Any:
    return timm.data.create_transform(
        (3, preprocess.size, preprocess.size), is_training=True, scale=recipe.scale, hflip=recipe.hflip,
        auto_augment=recipe.auto_augment or None, re_prob=recipe.erase, re_mode="pixel", color_jitter=None,
        interpolation=preprocess.interpolation, mean=preprocess.mean, std=preprocess.std,
    )  # fmt: skip


def _mixing(recipe: Recipe, classes: int) -> Any:
    if not (recipe.mixup or recipe.cutmix):
        return None
    return timm.data.Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
