"""Quantization-aware distillation: the last resort when corrections in closed form are not enough.

The INT8 model is simulated in PyTorch, with weights and activations rounded to their steps, and is
trained to match the float model on unlabeled images. The loss is

    T^2 KL(softmax(float logits / T) || softmax(INT8 logits / T))

Rounding passes its gradient straight through, and clipping stops it (Y. Bengio et al.,
arXiv:1308.3432; B. Jacob et al., arXiv:1712.05877, section 3). Weights, biases and activation
scales are trained (the latter as in LSQ, S. Esser et al., arXiv:1902.08153); zero points and weight
scales are not. Only the order of images and mirroring are random, by a seed: the same machine,
versions and number of threads give the same model.

Weights start at the integers of the plan. Started at their float values, weights that GPTQ rounded
to the farther integer begin at the edge of their step, and training first undoes GPTQ. The best
learning rate depends on how much accuracy is lost, by a factor of 100, so a few rates are tried on
the first images. If training does not lower the loss, the plan stays as it was.

This module needs torch: import it only when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, fx
from torch.nn.functional import kl_div, log_softmax

from repzoo.errors import InputError
from repzoo.progress import Progress, silent
from repzoo.quant.network.layers import (
    Layer,
    bias_vector,
    find_layers,
    initializer_arrays,
)
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters.compute import QuantizationPlan, replace_biases
from repzoo.quant.parameters.scales import (
    INT16_MAX,
    ActivationParameters,
    QuantizedWeight,
)
from repzoo.settings import above, at_least, setting, validate
from repzoo.torch.from_onnx import build_module

Images = npt.NDArray[np.float32]

TEMPERATURE = 2.0
RATE_FACTORS = (1.0, 1 / 4, 1 / 16, 1 / 64)  # of the learning rate, that are tried
TRIAL_BATCHES = 4  # for training and judging each of them
WARMUP_STEPS = 8  # Adam's first steps are as long for noise as for signal
# A bias moves by so many of its own steps while a weight moves by one: of the 255 steps of an
# input, about 32 are usual.
BIAS_RATE = 32
SCALE_RATE = (
    0.01  # of the logarithm of an activation's scale, relative to the weights' rate
)
# How far the logarithm of a scale may move: a bias has that much room in int32 (MAX_BIAS_CODE).
MAX_LOG_SCALE_CHANGE = math.log(2)


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
    student = _Student(plan, scheme)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        improved = _train(student, teacher, images, options, progress)
    return student.plan() if improved else plan


def _train(
    student: _Student,
    teacher: fx.GraphModule,
    images: DistillationImages,
    options: FinetuneOptions,
    progress: Progress,
) -> bool:
    """Train `student` with the best of a few learning rates. True if its loss fell."""
    trial_batches = list(islice(_batches(images, options, 1), TRIAL_BATCHES))
    initial_state = student.state()
    initial_loss = _mean_loss(student, teacher, trial_batches)
    trial_steps = len(RATE_FACTORS) * len(trial_batches)
    total = trial_steps + math.ceil(options.epochs * images.count / options.batch)
    done = 0

    def train(
        rate: float,
        steps: int,
        batches: Iterable[Tensor],
    ) -> float:
        """Train from the start, and return the loss on the trial batches."""
        nonlocal done
        student.restore(initial_state)
        optimizer = _Optimizer(student, teacher, rate, steps)
        for inputs in batches:
            optimizer.step(inputs)
            done += 1
            progress("fine-tune (batches)", min(done, total), total)
        return _mean_loss(student, teacher, trial_batches)

    rates = [options.rate * factor for factor in RATE_FACTORS]
    losses = [train(rate, 2 * len(trial_batches), trial_batches) for rate in rates]
    best_rate = rates[int(np.argmin(losses))]
    batches = _batches(images, options, options.epochs)
    return train(best_rate, total - done, batches) < initial_loss


def _batches(
    images: DistillationImages,
    options: FinetuneOptions,
    epochs: int,
) -> Iterator[Tensor]:
    """Batches of `options.batch` images, mirrored at random."""
    for epoch in range(epochs):
        for loaded in images.epoch(epoch):
            for start in range(0, len(loaded), options.batch):
                inputs = torch.from_numpy(loaded[start : start + options.batch])
                # drawn even if unused, so that the seed gives the same sequence with both settings
                flip = torch.rand(len(inputs), 1, 1, 1) < 0.5
                if options.mirror:
                    inputs = torch.where(flip, inputs.flip(3), inputs)
                yield inputs


def _mean_loss(
    student: _Student,
    teacher: fx.GraphModule,
    batches: Sequence[Tensor],
) -> float:
    """The mean loss over `batches`."""
    with torch.no_grad():
        losses = [float(_loss(student, teacher, inputs)) for inputs in batches]
    return float(np.mean(losses))


def _loss(
    student: _Student,
    teacher: fx.GraphModule,
    inputs: Tensor,
) -> Tensor:
    """The distillation loss of a batch: a scalar."""
    with torch.no_grad():
        target = log_softmax(teacher(inputs)[0] / TEMPERATURE, 1)
    output = log_softmax(student(inputs) / TEMPERATURE, 1)
    divergence = kl_div(output, target, log_target=True, reduction="batchmean")
    return TEMPERATURE**2 * divergence


class _Optimizer:
    """Adam with a short warmup and a cosine decay to zero after `steps` steps."""

    def __init__(
        self,
        student: _Student,
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
        decay = (1 + math.cos(math.pi * min(1.0, self._done / self._steps))) / 2
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


class _Student:
    """The float model's fx graph with simulated quantization.

    Each weight and bias of the plan is replaced by a trained, rounded one, and a rounding module
    follows each of its activations.
    """

    def __init__(self, plan: QuantizationPlan, scheme: QuantScheme) -> None:
        self._plan = plan
        self._module, nodes = build_module(plan.model)
        values = initializer_arrays(plan.model)
        layers = find_layers(plan.model)
        self._layers = {name: layers[name] for name in plan.weights}
        self._activations: dict[str, _Activation] = {}
        for name, parameters in plan.activations.items():
            self._activations[name] = _Activation(parameters)
        self._weights: dict[str, _Weight] = {}
        self._biases: dict[str, _Bias] = {}
        for index, (name, layer) in enumerate(self._layers.items()):
            quantized = plan.weights[name]
            weight = _Weight(quantized, layer, scheme.weight_max)
            bias = _Bias(
                bias_vector(layer, values), quantized, self._activations[layer.source]
            )
            self._weights[name] = weight
            self._biases[name] = bias
            self._replace_argument(nodes[name], 1, f"weight{index}", weight)
            self._replace_argument(nodes[name], 2, f"bias{index}", bias)
        for index, (name, activation) in enumerate(self._activations.items()):
            self._insert_after(nodes[name], f"activation{index}", activation)
        self._module.recompile()  # fx generates the code of a graph only on request

    def __call__(self, inputs: Tensor) -> Tensor:
        """float32 [N, 3, H, W] -> logits [N, classes]."""
        return cast(Tensor, cast(Any, self._module)(inputs)[0])

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Adam's parameter groups. An Adam step is about as long as its rate."""
        weights = [weight.codes for weight in self._weights.values()]
        scales = [activation.log_change for activation in self._activations.values()]
        groups: list[dict[str, Any]] = [{"params": weights, "lr": rate}]
        for bias in self._biases.values():
            step = float(bias.step().mean())
            groups.append({"params": [bias.values], "lr": rate * BIAS_RATE * step})
        groups.append({"params": scales, "lr": SCALE_RATE * rate})
        return groups

    def state(self) -> list[Tensor]:
        """A copy of all trained parameters."""
        return [parameter.detach().clone() for parameter in self._parameters()]

    def restore(self, state: list[Tensor]) -> None:
        """Set all trained parameters to `state`."""
        for parameter, value in zip(self._parameters(), state, strict=True):
            parameter.data.copy_(value)

    def _parameters(self) -> list[torch.nn.Parameter]:
        modules = [
            *self._weights.values(),
            *self._biases.values(),
            *self._activations.values(),
        ]
        # not recursive: a bias has its input's activation as a submodule
        return [item for module in modules for item in module.parameters(recurse=False)]

    def limit_scales(self) -> None:
        """Keep activation scales within a factor of 2 of the plan's."""
        for activation in self._activations.values():
            activation.log_change.data.clamp_(
                -MAX_LOG_SCALE_CHANGE, MAX_LOG_SCALE_CHANGE
            )

    def plan(self) -> QuantizationPlan:
        """The plan with the trained weights, biases and scales."""
        before = self._plan
        weights = {}
        biases = {}
        for name in self._layers:
            integers = self._weights[name].integers()
            weights[name] = replace(before.weights[name], values=integers)
            biases[name] = self._biases[name].values.detach().numpy().astype(np.float64)
        activations = {}
        ranges = {}
        for name, activation in self._activations.items():
            parameters = before.activations[name]
            factor = math.exp(float(activation.log_change.detach()))
            scale = float(np.float32(parameters.scale * factor))
            activations[name] = replace(parameters, scale=scale)
            low, high = before.ranges[name]
            ranges[name] = (low * factor, high * factor)
        return replace(
            before,
            model=replace_biases(before.model, self._layers, biases),
            activations=activations,
            weights=weights,
            ranges=ranges,
            methods=dict.fromkeys(before.methods, "fine-tuned"),
        )

    def _replace_argument(
        self,
        node: fx.Node,
        index: int,
        name: str,
        module: torch.nn.Module,
    ) -> None:
        """Make argument number `index` of `node` the output of `module`."""
        self._module.add_submodule(name, module)
        with self._module.graph.inserting_before(node):
            call = self._module.graph.call_module(name)
        node.args = (*node.args[:index], call, *node.args[index + 1 :])

    def _insert_after(
        self,
        node: fx.Node,
        name: str,
        module: torch.nn.Module,
    ) -> None:
        """Make all consumers of `node` read the output of `module` on it."""
        self._module.add_submodule(name, module)
        consumers = list(node.users)  # taken before the call, which is a consumer too
        with self._module.graph.inserting_after(node):
            call = self._module.graph.call_module(name, (node,))
        for consumer in consumers:
            consumer.replace_input_with(node, call)


class _Weight(torch.nn.Module):
    """A layer's weight as INT8 represents it. `codes` are its integers before rounding."""

    def __init__(
        self,
        quantized: QuantizedWeight,
        layer: Layer,
        limit: int,
    ) -> None:
        super().__init__()
        scale = torch.from_numpy(quantized.scale.astype(np.float32))
        if scale.numel() > 1 and not layer.transposed:
            scale = scale.reshape(-1, *[1] * (len(layer.shape) - 1))
        self.scale = scale
        self.limit = limit
        self.codes = torch.nn.Parameter(
            torch.from_numpy(quantized.values.astype(np.float32))
        )

    def forward(self) -> Tensor:
        """float32, of the initializer's shape."""
        return _round(self.codes).clamp(-self.limit, self.limit) * self.scale

    def integers(self) -> npt.NDArray[np.int8]:
        """The integers to store, of the initializer's shape."""
        rounded = self.codes.detach().round().clamp(-self.limit, self.limit)
        integers: npt.NDArray[np.int8] = rounded.numpy().astype(np.int8)
        return integers


class _Activation(torch.nn.Module):
    """Rounds an activation to INT8 or int16. `log_change` is log(scale / scale of the plan)."""

    def __init__(self, parameters: ActivationParameters) -> None:
        super().__init__()
        self.parameters_before = parameters
        self.log_change = torch.nn.Parameter(torch.zeros(()))
        self.limits = (0, 255) if parameters.bits == 8 else (-INT16_MAX, INT16_MAX)

    @property
    def scale(self) -> Tensor:
        """The current scale, a scalar."""
        return self.parameters_before.scale * self.log_change.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        scale = self.scale
        zero_point = self.parameters_before.zero_point
        codes = (_round(x / scale) + zero_point).clamp(*self.limits)
        return (codes - zero_point) * scale


class _Bias(torch.nn.Module):
    """A layer's bias as int32 represents it, with the product of the two scales as its step."""

    def __init__(
        self,
        values: npt.NDArray[np.float64],
        quantized: QuantizedWeight,
        source: _Activation,
    ) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.from_numpy(values.astype(np.float32)))
        self.weight_scale = torch.from_numpy(quantized.scale.astype(np.float32))
        self.source = source

    def step(self) -> Tensor:
        """The step of the bias, float32 [O] or [1]."""
        return self.source.scale.detach() * self.weight_scale

    def forward(self) -> Tensor:
        """float32 [O]."""
        step = self.step()
        return _round(self.values / step) * step


def _round(x: Tensor) -> Tensor:
    """`x` rounded, ties to even, with the gradient of `x`."""
    # the straight-through estimator: the difference is a constant to autograd
    return x + (x.round() - x).detach()
