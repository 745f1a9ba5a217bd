"""The training loop, on timm's optimizers, schedule, mixing, distillation and EMA, in one process or several.

Every step seeds the generators anew and every image is augmented by its own seed, so that a run which is killed goes on, from any
step that it was saved at, to the very same weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any, Literal

import timm.optim
import timm.scheduler
import timm.utils
import torch

from repzoo.artifact import Preprocess
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.errors import InputError
from repzoo.measure.distributed import ALONE, Group
from repzoo.progress import Progress, silent
from repzoo.storage import make_folder, sha256_of
from repzoo.training import state
from repzoo.training.distill import Objective
from repzoo.training.distributed import Crew, unsynced
from repzoo.training.models import head_of
from repzoo.training.options import Running
from repzoo.training.recipe import Recipe
from repzoo.training.state import Epoch
from repzoo.training.training_images import Share, TrainingImages, mixing, seed_everything

SHARE_LIMIT = 10_007  # processes; their seeds differ


class Trainer:
    """One training run in a folder; `run` goes on from the state it finds there.

    Raises (all methods):
        InputError: the folder holds the state of another run, or cannot be written; batches that do not divide; no such device.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        images: TrainingImages,
        recipe: Recipe,
        running: Running,
        group: Group = ALONE,
        teacher: torch.nn.Module | None = None,
    ) -> None:
        _require_whole_batches(images, recipe, running, group)
        self.images, self.recipe, self.running = images, recipe, running
        self.output = make_folder(running.output) if not group.rank else running.output
        self.crew = Crew(group, running.device)
        self.share = Share(group.rank, group.size, running.accumulate)
        if running.channels_last and self.crew.device.type == "cpu":
            _require_sound_channels_last(module)
        self.memory_format = (
            torch.channels_last if running.channels_last else torch.contiguous_format
        )
        self.module = module.to(self.crew.device).to(memory_format=self.memory_format)
        self.heads = head_of(module) if recipe.trainable == "head" else []
        if self.heads:
            module.requires_grad_(False)
            for head in self.heads:
                head.requires_grad_(True)
        self.ema = timm.utils.ModelEmaV3(module, decay=recipe.ema_decay, use_warmup=True)
        self.joined = self.crew.joined(module)
        teacher = teacher.to(self.crew.device) if teacher is not None else None
        self.objective = Objective(self.joined, recipe, images.preprocess, teacher)
        self.steps = images.steps(recipe)
        self.optimizer, self.scheduler = _optimizer(module, recipe, self.steps)
        self.precision = _precision(recipe, self.crew.device)
        self.scaler = torch.amp.GradScaler(
            self.crew.device.type, enabled=self.precision is torch.float16
        )
        self.mix = mixing(recipe, len(images.dataset.classes))
        self.log: list[Epoch] = []
        self.step, self.total = 0, 0.0  # done of the epoch underway, and their losses
        self.saved = time.monotonic()

    def facts(self) -> list[str]:
        """What a person should know of how it runs, a sentence each."""
        lr = f"lr {self.recipe.peak_lr:g} at the peak"
        if self.recipe.lr_per:
            lr = f"{lr}: {self.recipe.lr:g} per {self.recipe.lr_per} images, {self.recipe.batch} a step"
        kind = {
            None: "float32",
            torch.bfloat16: "bfloat16 autocast",
            torch.float16: "float16 autocast with loss scaling",
        }
        where = f"{self.share.size} process{'es' if self.share.size > 1 else ''} on {self.crew.device.type}"
        return [lr, f"{kind[self.precision]}, {where}, {self.running.accumulate} part(s) a batch"]

    def run(self, validation: Dataset | None, progress: Progress = silent) -> torch.nn.Module:
        """Train what is left and return the EMA module in eval mode; `validation` is scored at times and last."""
        with self.crew.watched():
            self._resume()
            board = (
                state.Board(self.output, len(self.log))
                if self.running.tensorboard and not self.share.rank
                else None
            )
            for epoch in range(len(self.log), self.recipe.epochs):
                self._epoch(epoch, validation, progress)
                if board:
                    board.add(self.log[-1])
            if board:
                board.close()
            self._by_one(lambda: state.save_weights(self.output, self.ema.module))
        averaged: torch.nn.Module = self.ema.module
        return averaged.eval()

    def _epoch(self, epoch: int, validation: Dataset | None, progress: Progress) -> None:
        started, first = time.perf_counter(), self.step
        self._steps(epoch, progress)
        trained = time.perf_counter() - started
        last = epoch + 1 == self.recipe.epochs
        score = math.nan
        if validation is not None and (last or (epoch + 1) % self.running.validate_every == 0):
            score = top1(self.ema.module, validation, self.images.preprocess, self.crew)
        rate = (self.steps - first) * self.recipe.batch / trained
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.log.append(
            Epoch(epoch, lr, self.total / self.steps, score, rate, time.perf_counter() - started)
        )
        self.step, self.total = 0, 0.0
        self._by_one(self._save)

    def _steps(self, epoch: int, progress: Progress) -> None:
        seed = self.running.seed * 100_003 + epoch
        size = self.recipe.size_at(epoch, self.images.preprocess.size)
        parts = self.images.parts(self.recipe, seed, self.share, self.step)
        loader = iter(self.images.loader(self.recipe, size, seed, parts, self.running.workers))
        self._training_mode()
        batch, in_all = self.recipe.batch, self.recipe.epochs * self.steps
        for step in range(self.step, self.steps):
            self.total += self._update(epoch, step, seed, loader)
            self.step = step + 1
            done = epoch * self.steps + self.step
            progress(
                f"epoch {epoch + 1}/{self.recipe.epochs} (images)",
                self.step * batch,
                self.steps * batch,
            )
            progress("training (images)", done * batch, in_all * batch)
            if (
                0 < self.running.save_minutes * 60 < time.monotonic() - self.saved
                and self.step < self.steps
                and not self.share.rank
            ):
                self._save()

    def _training_mode(self) -> None:
        self.joined.train(not self.heads)
        for head in self.heads:
            head.train()

    def _update(self, epoch: int, step: int, seed: int, loader: Iterator[Any]) -> float:
        update, device = epoch * self.steps + step, self.crew.device
        self.scheduler.step_update(update)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for part in range(self.running.accumulate):
            inputs, targets = (one.to(device, non_blocking=True) for one in next(loader))
            seed_everything(
                ((seed * 2**24 + step) * self.running.accumulate + part) * SHARE_LIMIT
                + self.share.rank
            )
            with unsynced(self.joined, part + 1 == self.running.accumulate):
                loss = (
                    self._loss(epoch, inputs.to(memory_format=self.memory_format), targets)
                    / self.running.accumulate
                )
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        value = self.crew.mean(total)
        if not math.isfinite(value):
            raise InputError(
                f"the loss became {value} at step {update}; {self._kept()}; give a lower --lr and another -o"
            )
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            timm.utils.dispatch_clip_grad(self._clipped(), self.recipe.clip, self.recipe.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.module, step=update)
        return value

    def _loss(self, epoch: int, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.mix is not None and epoch < self.recipe.epochs - self.recipe.mix_off_epochs:
            inputs, targets = self.mix(inputs, targets)
        precise = self.precision is None
        with (
            contextlib.nullcontext()
            if precise
            else torch.autocast(self.crew.device.type, dtype=self.precision)
        ):
            return self.objective(inputs, targets)

    def _clipped(self) -> list[torch.nn.Parameter]:
        """Adaptive clipping leaves the last layer alone (arXiv:2102.06171, section 4.1)."""
        heads = head_of(self.module) if self.recipe.clip_mode == "agc" else []
        left = {id(one) for head in heads for one in head.parameters()}
        return [
            one for one in self.module.parameters() if one.grad is not None and id(one) not in left
        ]

    def _kept(self) -> str:
        path = self.output / state.STATE
        return f"epoch {len(self.log)} is kept in {path}" if self.log else "nothing was kept"

    def _fingerprint(self) -> str:
        settings = [
            {key: tuple(value.shape) for key, value in self.module.state_dict().items()},
            dataclasses.asdict(
                dataclasses.replace(self.recipe, about="", source="")
            ),  # words change no weight
            dataclasses.asdict(self.images.preprocess),
            (self.running.seed, self.running.accumulate),
            self.images.dataset.keys,
            self.images.dataset.classes,
        ]
        return sha256_of(repr(settings).encode())

    def _by_one(self, write: Any) -> None:
        """Process 0 writes; the others wait, and end with its sentence when it cannot."""
        if not self.share.rank:
            write()
        self.crew.group.gather(b"")

    def _save(self) -> None:
        kept = {
            "module": self.module.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "log": [dataclasses.astuple(line) for line in self.log],
            "step": self.step,
            "total": self.total,
            "fingerprint": self._fingerprint(),
        }
        state.save(self.output, kept)
        state.save_log(self.output, self.log)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        data = self.crew.spread(state.read(self.output) if not self.share.rank else b"")
        self.crew.group.agree({"settings or data": self._fingerprint()})
        if not data:
            return
        kept = state.decoded(self.output, data, self._fingerprint())
        self.module.load_state_dict(kept["module"])
        self.ema.module.load_state_dict(kept["ema"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.scaler.load_state_dict(kept["scaler"])
        self.log, self.step, self.total = (
            [Epoch(*line) for line in kept["log"]],
            kept["step"],
            kept["total"],
        )


def top1(
    module: torch.nn.Module, dataset: Dataset, preprocess: Preprocess, crew: Crew | None = None
) -> float:
    """Top-1 % of `module` on `dataset`, whose targets are the module's output indices; processes share the images."""
    crew = crew or Crew(ALONE, "cpu")
    mine = dataset.subset(range(crew.group.rank, len(dataset), crew.group.size))
    module.eval()
    report, right, seen = ReadReport(), 0, 0
    with torch.inference_mode():
        for batch in batches(mine, preprocess, 64, report):
            predicted = module(torch.from_numpy(batch.inputs).to(crew.device)).argmax(1).tolist()
            right += sum(
                guess == mine.targets[index]
                for guess, index in zip(predicted, batch.indices, strict=True)
            )
            seen += len(batch.indices)
    report.check(dataset.name, len(dataset))
    right, seen = crew.sums(right, seen)
    return 100 * right / seen


def _require_whole_batches(
    images: TrainingImages, recipe: Recipe, running: Running, group: Group
) -> None:
    count = len(images.dataset)
    if count < recipe.batch:
        raise InputError(
            f"{images.dataset.name} has {count} images, fewer than one batch of {recipe.batch}; give a smaller --batch"
        )
    shares = group.size * running.accumulate
    if recipe.batch % (2 * shares):
        raise InputError(
            f"a batch of {recipe.batch} images cannot be shared by {group.size} process(es) in {running.accumulate} part(s) of "
            f"an even number each; give a --batch that is a multiple of {2 * shares}"
        )


def _require_sound_channels_last(module: torch.nn.Module) -> None:
    """oneDNN's gradient of the weights of such layers writes beyond its memory (seen with torch 2.14 on AVX2): RepVGG's first."""
    for name, layer in module.named_modules():
        if (
            isinstance(layer, torch.nn.Conv2d)
            and layer.kernel_size == (1, 1)
            and max(layer.stride) > 1
            and layer.in_channels < 8
        ):
            raise InputError(
                f"{name} is a 1x1 convolution of {layer.in_channels} channels with a stride, on whose gradient PyTorch may crash "
                "with --channels-last on a CPU; leave --channels-last out"
            )


def _optimizer(
    module: torch.nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    lr = recipe.peak_lr
    optimizer = timm.optim.create_optimizer_v2(
        module, opt=recipe.optimizer, lr=lr, weight_decay=recipe.weight_decay
    )
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer, "cosine", num_epochs=recipe.epochs, warmup_epochs=recipe.warmup_epochs,
        warmup_lr=lr * 0.01 if recipe.warmup_lr is None else recipe.warmup_lr,
        min_lr=lr * 0.01 if recipe.min_lr is None else recipe.min_lr,
        step_on_epochs=False, updates_per_epoch=steps, warmup_prefix=False,
    )  # fmt: skip
    return optimizer, scheduler


def _precision(recipe: Recipe, device: torch.device) -> Literal[None] | torch.dtype:
    if recipe.amp == "off":
        return None
    if recipe.amp == "fp16" and device.type == "cpu":
        raise InputError("float16 trains on CUDA only; give --amp bf16, or off")
    return (
        torch.float16
        if recipe.amp == "fp16" or (recipe.amp == "on" and device.type == "cuda")
        else torch.bfloat16
    )
