"""The training loop, in one process or several, with timm's optimizers, schedule, mixing and EMA.

Random generators are seeded at every step and for every image. A run that is interrupted and
continued from any saved step therefore ends with the same weights.
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
from repzoo.training.threads import fastest, num_threads
from repzoo.training.training_images import (
    Share,
    TrainingImages,
    mixing,
    seed_everything,
)

# More than any number of processes: a step's seed is multiplied by it before the rank is added.
SHARE_LIMIT = 10_007


class Trainer:
    """One training run in a folder. `run` continues from the state it finds there.

    All methods raise InputError if the folder holds the state of another run or cannot be written,
    if a batch cannot be divided among processes, or if there is no such device.
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
        self.images = images
        self.recipe = recipe
        self.running = running
        self.output = make_folder(running.output) if not group.rank else running.output
        self.crew = Crew(group, running.device)
        self.share = Share(group.rank, group.size, running.accumulate)
        if running.channels_last and self.crew.device.type == "cpu":
            _require_sound_channels_last(module)
        self.memory_format = torch.contiguous_format
        if running.channels_last:
            self.memory_format = torch.channels_last
        self.module = module.to(self.crew.device).to(memory_format=self.memory_format)
        # The only trainable layers of a linear probe; empty if everything is trained.
        self.heads = head_of(module) if recipe.trainable == "head" else []
        if self.heads:
            _freeze_all_but(module, self.heads)
        # A copy, made before `joined` changes BatchNorms in place. The decay is warmed up, or the
        # random weights of the beginning would stay in the average for thousands of steps.
        self.ema = timm.utils.ModelEmaV3(
            module, decay=recipe.ema_decay, use_warmup=True
        )
        self.joined = self.crew.joined(module)
        if teacher is not None:
            teacher = teacher.to(self.crew.device)
        self.objective = Objective(self.joined, recipe, images.preprocess, teacher)
        self.steps = images.steps(recipe)
        self.optimizer, self.scheduler = _optimizer(module, recipe, self.steps)
        self.precision = _precision(recipe, self.crew.device)
        needs_scaling = self.precision is torch.float16
        self.scaler = torch.amp.GradScaler(self.crew.device.type, enabled=needs_scaling)
        self.mix = mixing(recipe, len(images.dataset.classes))
        self.log: list[Epoch] = []
        # Steps of the current epoch that are done, and the sum of their losses.
        self.step = 0
        self.total = 0.0
        self.saved = time.monotonic()
        # 0: not chosen yet. A resumed run keeps its number, for the same last bits.
        self.threads = 0

    def facts(self) -> list[str]:
        """How the run is carried out, one sentence each."""
        lr = f"lr {self.recipe.peak_lr:g} at the peak"
        if self.recipe.lr_per:
            per = f"{self.recipe.lr:g} per {self.recipe.lr_per} images"
            lr = f"{lr}: {per}, {self.recipe.batch} a step"
        precision = {
            None: "float32",
            torch.bfloat16: "bfloat16 autocast",
            torch.float16: "float16 autocast with loss scaling",
        }[self.precision]
        plural = "es" if self.share.size > 1 else ""
        processes = f"{self.share.size} process{plural} on {self.crew.device.type}"
        return [
            lr,
            f"{precision}, {processes}, {self.running.accumulate} part(s) a batch",
        ]

    def run(
        self, validation: Dataset | None, progress: Progress = silent
    ) -> torch.nn.Module:
        """Train the remaining epochs. Returns the EMA module in evaluation mode.

        validation  scored every `validate_every` epochs and at the end
        """
        with self.crew.watched(), contextlib.ExitStack() as stack:
            self._resume()
            # Of several processes each has its number from `Crew`.
            if self.share.size == 1:
                self.threads = self.threads or self._choose_threads()
                stack.enter_context(num_threads(self.threads))
            board = None
            if self.running.tensorboard and self.share.rank == 0:
                board = state.Board(self.output, len(self.log))
            for epoch in range(len(self.log), self.recipe.epochs):
                self._epoch(epoch, validation, progress)
                if board:
                    board.add(self.log[-1])
            if board:
                board.close()
            self._by_one(lambda: state.save_weights(self.output, self.ema.module))
        averaged: torch.nn.Module = self.ema.module
        return averaged.eval()

    def _choose_threads(self) -> int:
        most = torch.get_num_threads()
        if self.running.threads or self.crew.device.type != "cpu":
            return self.running.threads or most
        return fastest(self.module, self.images.preprocess.input_shape, most)

    def _epoch(
        self, epoch: int, validation: Dataset | None, progress: Progress
    ) -> None:
        started = time.perf_counter()
        first_step = self.step
        self._steps(epoch, progress)
        training_seconds = time.perf_counter() - started
        is_last = epoch + 1 == self.recipe.epochs
        is_due = is_last or (epoch + 1) % self.running.validate_every == 0
        score = math.nan
        if validation is not None and is_due:
            score = top1(self.ema.module, validation, self.images.preprocess, self.crew)
        line = Epoch(
            epoch=epoch,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            loss=self.total / self.steps,
            validation_top1=score,
            # A resumed epoch begins at a later step.
            images_per_second=(self.steps - first_step)
            * self.recipe.batch
            / training_seconds,
            seconds=time.perf_counter() - started,
        )
        self.log.append(line)
        self.step = 0
        self.total = 0.0
        self._by_one(self._save)
        images = self.steps * self.recipe.batch
        progress(_summary(line, self.recipe.epochs), images, images)

    def _steps(self, epoch: int, progress: Progress) -> None:
        # More than any number of epochs, so that runs of different seeds share none.
        seed = self.running.seed * 100_003 + epoch
        size = self.recipe.size_at(epoch, self.images.preprocess.height)
        parts = self.images.parts(self.recipe, seed, self.share, self.step)
        loader = iter(
            self.images.loader(self.recipe, size, seed, parts, self.running.workers)
        )
        self._training_mode()
        for step in range(self.step, self.steps):
            self.total += self._update(epoch, step, seed, loader)
            self.step = step + 1
            done = (epoch * self.steps + self.step) * self.recipe.batch
            progress("training (images)", done, self._all_images())
            # After the last step `_epoch` saves, with its line in the log.
            if self.step < self.steps and self._is_save_due():
                self._save()

    def _all_images(self) -> int:
        """Images that the steps of all epochs take."""
        return self.recipe.epochs * self.steps * self.recipe.batch

    def _is_save_due(self) -> bool:
        """Whether process 0 should save within the epoch."""
        interval = self.running.save_minutes * 60
        return self.share.rank == 0 and 0 < interval < time.monotonic() - self.saved

    def _training_mode(self) -> None:
        # A linear probe also leaves the statistics of BatchNorms as they are.
        self.joined.train(not self.heads)
        for head in self.heads:
            head.train()

    def _update(self, epoch: int, step: int, seed: int, loader: Iterator[Any]) -> float:
        """One optimizer step. Returns the mean loss over all processes."""
        update = epoch * self.steps + step
        self.scheduler.step_update(update)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.crew.device)
        parts = self.running.accumulate
        for part in range(parts):
            images, labels = next(loader)
            inputs = images.to(self.crew.device, non_blocking=True)
            targets = labels.to(self.crew.device, non_blocking=True)
            # Dropout and mixing draw the same numbers whenever this part is computed.
            part_number = (seed * 2**24 + step) * parts + part
            seed_everything(part_number * SHARE_LIMIT + self.share.rank)
            with unsynced(self.joined, part + 1 == parts):
                inputs = inputs.to(memory_format=self.memory_format)
                loss = self._loss(epoch, inputs, targets) / parts
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        value = self.crew.mean(total)
        if not math.isfinite(value):
            raise InputError(
                f"the loss became {value} at step {update}; {self._saved_sentence()}; give a "
                "lower --lr and another -o"
            )
        if self.recipe.clip:
            # The limit is one of gradients, not of gradients times the scale of float16.
            self.scaler.unscale_(self.optimizer)
            parameters = self._clipped_parameters()
            timm.utils.dispatch_clip_grad(
                parameters, self.recipe.clip, self.recipe.clip_mode
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.module, step=update)
        return value

    def _loss(
        self, epoch: int, inputs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        if (
            self.mix is not None
            and epoch < self.recipe.epochs - self.recipe.mix_off_epochs
        ):
            inputs, targets = self.mix(inputs, targets)
        if self.precision is None:
            return self.objective(inputs, targets)
        with torch.autocast(self.crew.device.type, dtype=self.precision):
            return self.objective(inputs, targets)

    def _clipped_parameters(self) -> list[torch.nn.Parameter]:
        """Adaptive clipping leaves out the last layer (arXiv:2102.06171, section 4.1)."""
        heads = head_of(self.module) if self.recipe.clip_mode == "agc" else []
        excluded: set[int] = set()
        for head in heads:
            excluded |= {id(parameter) for parameter in head.parameters()}
        trained = [item for item in self.module.parameters() if item.grad is not None]
        return [parameter for parameter in trained if id(parameter) not in excluded]

    def _saved_sentence(self) -> str:
        if not self.log:
            return "nothing was saved"
        return f"epoch {len(self.log)} is saved in {self.output / state.STATE}"

    def _fingerprint(self) -> str:
        """A hash of everything that the weights depend on."""
        # Descriptions of a recipe may be reworded between two runs.
        recipe = dataclasses.replace(self.recipe, about="", source="")
        settings = [
            {
                key: tuple(value.shape)
                for key, value in self.module.state_dict().items()
            },
            dataclasses.asdict(recipe),
            dataclasses.asdict(self.images.preprocess),
            (self.running.seed, self.running.accumulate),
            self.images.dataset.keys,
            self.images.dataset.classes,
        ]
        return sha256_of(repr(settings).encode())

    def _by_one(self, write: Any) -> None:
        """Process 0 writes. The others wait, and end with its error if it fails."""
        if self.share.rank == 0:
            write()
        self.crew.group.gather(b"")

    def _save(self) -> None:
        current = {
            "module": self.module.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "log": [dataclasses.astuple(line) for line in self.log],
            "step": self.step,
            "total": self.total,
            "threads": self.threads,
            "fingerprint": self._fingerprint(),
        }
        state.save(self.output, current)
        state.save_log(self.output, self.log)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        # Other processes may run on hosts without this folder.
        own = state.read(self.output) if self.share.rank == 0 else b""
        data = self.crew.spread(own)
        self.crew.group.agree({"settings or data": self._fingerprint()})
        if not data:
            return
        saved = state.decoded(self.output, data, self._fingerprint())
        self.module.load_state_dict(saved["module"])
        self.ema.module.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.log = [Epoch(*line) for line in saved["log"]]
        self.step = saved["step"]
        self.total = saved["total"]
        # Earlier versions did not save it.
        self.threads = saved.get("threads", 0)


def top1(
    module: torch.nn.Module,
    dataset: Dataset,
    preprocess: Preprocess,
    crew: Crew | None = None,
) -> float:
    """Top-1 in percent of `module` on `dataset`, whose targets are the module's output indices.

    The processes of `crew` share the images.
    """
    crew = crew or Crew(ALONE, "cpu")
    own_share = dataset.subset(range(crew.group.rank, len(dataset), crew.group.size))
    module.eval()
    report = ReadReport()
    correct = 0
    count = 0
    with torch.inference_mode():
        for batch in batches(own_share, preprocess, 64, report):
            logits = module(torch.from_numpy(batch.inputs).to(crew.device))
            for guess, index in zip(
                logits.argmax(1).tolist(), batch.indices, strict=True
            ):
                correct += guess == own_share.targets[index]
            count += len(batch.indices)
    report.check(dataset.name, len(dataset))
    correct, count = crew.sums(correct, count)
    return 100 * correct / count


def _summary(line: Epoch, epochs: int) -> str:
    """What an epoch reached, in a line."""
    facts = [f"loss {line.loss:.4f}"]
    if not math.isnan(line.validation_top1):
        facts.append(f"held-out Top-1 {line.validation_top1:.2f} %")
    facts.append(f"{line.images_per_second:.0f} images/s")
    return f"epoch {line.epoch + 1}/{epochs}: {', '.join(facts)}"


def _freeze_all_but(module: torch.nn.Module, heads: list[torch.nn.Module]) -> None:
    module.requires_grad_(False)
    for head in heads:
        head.requires_grad_(True)


def _require_whole_batches(
    images: TrainingImages, recipe: Recipe, running: Running, group: Group
) -> None:
    count = len(images.dataset)
    if count < recipe.batch:
        raise InputError(
            f"{images.dataset.name} has {count} images, fewer than one batch of {recipe.batch}; "
            "give a smaller --batch"
        )
    shares = group.size * running.accumulate
    # timm's Mixup pairs the images of a part, so their number must be even.
    if recipe.batch % (2 * shares):
        raise InputError(
            f"a batch of {recipe.batch} images cannot be shared by {group.size} process(es) in "
            f"{running.accumulate} part(s) of an even number each; give a --batch that is a "
            f"multiple of {2 * shares}"
        )


def _require_sound_channels_last(module: torch.nn.Module) -> None:
    """Refuse layers on whose weight gradient oneDNN writes out of bounds, such as RepVGG's first.

    Seen with torch 2.14 on AVX2.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, torch.nn.Conv2d):
            continue
        is_strided_pointwise = layer.kernel_size == (1, 1) and max(layer.stride) > 1
        if is_strided_pointwise and layer.in_channels < 8:
            raise InputError(
                f"{name} is a 1x1 convolution of {layer.in_channels} channels with a stride, on "
                "whose gradient PyTorch may crash with --channels-last on a CPU; leave "
                "--channels-last out"
            )


def _optimizer(
    module: torch.nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    lr = recipe.peak_lr
    optimizer = timm.optim.create_optimizer_v2(
        module, opt=recipe.optimizer, lr=lr, weight_decay=recipe.weight_decay
    )
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=lr * 0.01 if recipe.warmup_lr is None else recipe.warmup_lr,
        min_lr=lr * 0.01 if recipe.min_lr is None else recipe.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps,
        warmup_prefix=False,
    )
    return optimizer, scheduler


def _precision(recipe: Recipe, device: torch.device) -> Literal[None] | torch.dtype:
    """The autocast type of mixed precision; None for float32."""
    if recipe.amp == "off":
        return None
    if recipe.amp == "fp16" and device.type == "cpu":
        raise InputError("float16 trains on CUDA only; give --amp bf16, or off")
    if recipe.amp == "fp16" or (recipe.amp == "on" and device.type == "cuda"):
        return torch.float16
    return torch.bfloat16
