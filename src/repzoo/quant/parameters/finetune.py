"""Quantization-aware distillation: the last resort when corrections in closed form are not enough.

The INT8 model is simulated in PyTorch (fake_quantization.py) and trained to match the float model
on unlabeled images. The loss is

    T^2 KL(softmax(float logits / T) || softmax(INT8 logits / T))

Only the order of images and mirroring are random, by a seed: the same machine, versions and number
of threads give the same model.

Weights start at the integers of the plan. Started at their float values, weights that GPTQ rounded
to the farther integer begin at the edge of their step, and training first undoes GPTQ. The best
learning rate depends on how much accuracy is lost, by a factor of 100, so a few rates are tried on
the first images. If training does not lower the loss, the plan stays as it was.

This module needs torch: import it only when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, fx
from torch.nn.functional import kl_div, log_softmax

from repzoo.errors import InputError
from repzoo.progress import Progress, silent
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters.compute import QuantizationPlan
from repzoo.quant.parameters.fake_quantization import FakeQuantizedModel
from repzoo.settings import above, at_least, setting, validate
from repzoo.torch.from_onnx import build_module

Images = npt.NDArray[np.float32]

TEMPERATURE = 2.0
RATE_FACTORS = (1.0, 1 / 4, 1 / 16, 1 / 64)  # of the learning rate, that are tried
TRIAL_BATCHES = 4  # for training and judging each of them
WARMUP_STEPS = 8  # Adam's first steps are as long for noise as for signal


@dataclass(frozen=True)
class DistillationImages:
    """The training images.

    Attributes:
        count: images in an epoch.
        epoch: batches of the epoch with this index, float32 [n, 3, H, W] each, in any order.
    """

    count: int
    epoch: Callable[[int], Iterator[Images]]


@dataclass(frozen=True)
class FinetuneOptions:
    """How long and how fast to train.

    `rate` and smaller rates (RATE_FACTORS) are tried. It is in steps of each weight.
    """

    epochs: int = setting(5, help="Passes over the images.", range=at_least(1))
    batch: int = setting(16, help="Images in a step.", range=at_least(1))
    rate: float = setting(
        0.3,
        help="Adam's peak learning rate, which falls along a cosine.",
        range=above(0, 1),
    )
    mirror: bool = setting(
        True, help="Flip each image horizontally with a probability of 1/2."
    )
    seed: int = setting(0, help="Seed of the mirroring.", range=at_least(0))

    def __post_init__(self) -> None:
        """Refuse settings that train nothing."""
        validate(self, "fine-tuning")


def distill(
    model: onnx.ModelProto,
    plan: QuantizationPlan,
    scheme: QuantScheme,
    images: DistillationImages,
    options: FinetuneOptions | None = None,
    progress: Progress = silent,
) -> QuantizationPlan:
    """Train the numbers of `plan` so that the INT8 model matches the float `model`.

    Args:
        model: the float model, as `prepare_for_qdq` returns it.
        plan: where training starts.
        scheme: number formats of the target.
        images: to train on.
        options: how to train.
        progress: called after each batch.

    Returns:
        The trained plan, or `plan` itself if training did not lower the loss on the first batches.

    Raises:
        InputError: an operator that the PyTorch engine does not support, or a loss that is not
            finite.
    """
    options = options or FinetuneOptions()
    teacher, _ = build_module(model)
    student = FakeQuantizedModel(plan, scheme)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        improved = _train(student, teacher, images, options, progress)
    return student.plan() if improved else plan


def _train(
    student: FakeQuantizedModel,
    teacher: fx.GraphModule,
    images: DistillationImages,
    options: FinetuneOptions,
    progress: Progress,
) -> bool:
    """Train `student` with the best of a few learning rates. True if its loss fell."""
    trial_batches = list(islice(_batches(images, options, 1), TRIAL_BATCHES))
    trial_steps = len(RATE_FACTORS) * len(trial_batches)
    steps = math.ceil(options.epochs * images.count / options.batch)
    initial_loss = _mean_loss(student, teacher, trial_batches)
    trainer = _Trainer(student, teacher, trial_batches, trial_steps + steps, progress)

    rates = [options.rate * factor for factor in RATE_FACTORS]
    losses: list[float] = []
    for rate in rates:
        losses.append(trainer.train(rate, 2 * len(trial_batches), trial_batches))
    best_rate = rates[int(np.argmin(losses))]
    batches = _batches(images, options, options.epochs)
    return trainer.train(best_rate, trainer.steps_left, batches) < initial_loss


class _Trainer:
    """Trains a student from the same start with different learning rates.

    Args:
        student: the model; its present state is the start.
        teacher: the float model.
        trial_batches: on which each training is judged.
        total: expected steps of all trainings together.
        progress: called after each step.
    """

    def __init__(
        self,
        student: FakeQuantizedModel,
        teacher: fx.GraphModule,
        trial_batches: Sequence[Tensor],
        total: int,
        progress: Progress,
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._trial_batches = trial_batches
        self._total = total
        self._progress = progress
        self._start = student.state()
        self._done = 0

    @property
    def steps_left(self) -> int:
        """Expected steps that have not been done."""
        return self._total - self._done

    def train(
        self,
        rate: float,
        steps: int,
        batches: Iterable[Tensor],
    ) -> float:
        """Train from the start, and return the loss on the trial batches.

        The rate falls from `rate` to 0 over `steps` steps.
        """
        self._student.restore(self._start)
        optimizer = _Optimizer(self._student, self._teacher, rate, steps)
        for inputs in batches:
            optimizer.step(inputs)
            self._done += 1
            done = min(self._done, self._total)
            self._progress("fine-tune (batches)", done, self._total)
        return _mean_loss(self._student, self._teacher, self._trial_batches)


def _batches(
    images: DistillationImages,
    options: FinetuneOptions,
    epochs: int,
) -> Iterator[Tensor]:
    """Batches of `options.batch` images, mirrored at random."""
    for epoch in range(epochs):
        for loaded in images.epoch(epoch):
            for start in range(0, len(loaded), options.batch):
                end = start + options.batch
                inputs = torch.from_numpy(loaded[start:end])
                # drawn even if unused, so that the seed gives the same sequence with both settings
                flip = torch.rand(len(inputs), 1, 1, 1) < 0.5
                if options.mirror:
                    inputs = torch.where(flip, inputs.flip(3), inputs)
                yield inputs


def _mean_loss(
    student: FakeQuantizedModel,
    teacher: fx.GraphModule,
    batches: Sequence[Tensor],
) -> float:
    """The mean loss over `batches`."""
    with torch.no_grad():
        losses = [float(_loss(student, teacher, inputs)) for inputs in batches]
    return float(np.mean(losses))


def _loss(
    student: FakeQuantizedModel,
    teacher: fx.GraphModule,
    inputs: Tensor,
) -> Tensor:
    """The distillation loss of a batch: a scalar."""
    with torch.no_grad():
        float_logits = teacher(inputs)[0]
        target = log_softmax(float_logits / TEMPERATURE, 1)
    output = log_softmax(student(inputs) / TEMPERATURE, 1)
    divergence = kl_div(output, target, log_target=True, reduction="batchmean")
    return TEMPERATURE**2 * divergence


class _Optimizer:
    """Adam with a short warmup and a cosine decay to zero after `steps` steps."""

    def __init__(
        self,
        student: FakeQuantizedModel,
        teacher: fx.GraphModule,
        rate: float,
        steps: int,
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._steps = steps
        self._done = 0
        self._adam = torch.optim.Adam(student.parameter_groups(rate), betas=(0.9, 0.99))
        self._rates = [group["lr"] for group in self._adam.param_groups]

    def step(self, inputs: Tensor) -> None:
        """Train on a batch, float32 [N, 3, H, W]."""
        progress = min(1.0, self._done / self._steps)
        decay = (1 + math.cos(math.pi * progress)) / 2
        self._done += 1
        warmup = min(1.0, self._done / WARMUP_STEPS)
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * decay * warmup
        loss = _loss(self._student, self._teacher, inputs)
        if not bool(torch.isfinite(loss.detach())):
            raise InputError(
                "the loss of fine-tuning is not a number: the float model's logits on these images "
                "are not finite; check the model with `repzoo evaluate`"
            )
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        self._student.limit_scales()
