"""Fine-tuning with fake quantization: the last thing to try when no correction in closed form is enough. Needs torch: import it on use.

The INT8 model is computed as it will be, weights and activations rounded to their steps, and taught to answer as the float model
does: what falls is T^2 KL(softmax(float / T) || softmax(INT8 / T)) on images without labels. Rounding passes its gradient straight
through, clipping stops it (Bengio et al., arXiv:1308.3432; Jacob et al., arXiv:1712.05877, section 3). Trained are weights, biases and
the scale of each activation (as in LSQ, Esser et al., arXiv:1902.08153); zero points and weight scales stay. Nothing is drawn at random
but the order of the images and mirroring, by a seed: the same machine, versions and threads give the same model.

Weights start where the plan rounded them to, in the middle of a step: where float has them, a weight that second-order rounding took
to the farther step lies at the edge of it, and the first thing to be unlearned was that rounding. How fast to learn depends on how much
is broken, by a factor of 100: a few rates are tried on the first images. Where nothing was learned, the plan is given back as it was.
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
from repzoo.quant.network import layers as layering
from repzoo.quant.network.layers import Layer
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters.compute import QuantizationPlan, replace_biases
from repzoo.quant.parameters.ranges import PEAK_16, ActivationParameters, QuantizedWeight
from repzoo.torch.from_onnx import build_module

Images = npt.NDArray[np.float32]
TEMPERATURE = 2.0
SLOWER = (1.0, 1 / 4, 1 / 16, 1 / 64)  # of the rate, that are tried
TRIED = 4  # batches that each of them learns from, and is judged by
WARM = 8  # steps, in which the rate rises: Adam's first steps go as far for noise as for signal
INPUT_STEPS = (
    32  # of an input's 255 that are usual: so much a bias moves by when a weight moves by one
)
SCALES = 0.01  # how fast the logarithm of an activation's scale learns, of the rate
REACH = math.log(
    2
)  # how far an activation's scale may move either way: a bias in int32 has that much room (qdq.INT32_ROOM)


@dataclass(frozen=True)
class Lessons:
    """Images to learn from: `count` an epoch. `epoch` gives those of one (from 0), float32 [n, 3, H, W] each, in whatever order."""

    count: int
    epoch: Callable[[int], Iterator[Images]]


@dataclass(frozen=True)
class FinetuneOptions:
    """How long and how fast.

    epochs   passes over the images
    batch    images a step
    rate     of Adam at its highest, in steps of each weight; it falls to zero along a cosine. This and SLOWER ones are tried
    mirror   every other image is mirrored, by chance
    seed     of the images' order and mirroring
    """

    epochs: int = 5
    batch: int = 16
    rate: float = 0.3
    mirror: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what trains nothing."""
        if self.epochs < 1 or self.batch < 1 or not 0 < self.rate < 1:
            raise InputError(
                f"fine-tuning needs epochs >= 1, batch >= 1 and 0 < rate < 1; got {self}"
            )


def finetuned(
    model: onnx.ModelProto,
    made: QuantizationPlan,
    scheme: QuantScheme,
    lessons: Lessons,
    options: FinetuneOptions | None = None,
    progress: Progress = silent,
) -> QuantizationPlan:
    """`made`, with numbers that answer more as the float `model` does; `plan.write` takes it as any other. `made` itself, where
    nothing was learned on the images that are looked at first.

    model  the float model that is to be matched, as `qdq.prepared`

    Raises:
        InputError: an operator that the pytorch engine does not know, or a loss that is not a number.
    """
    options = options or FinetuneOptions()
    teacher, _ = build_module(model)
    student = _Student(made, scheme)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return student.plan() if _train(student, teacher, lessons, options, progress) else made


def _train(
    student: _Student,
    teacher: fx.GraphModule,
    lessons: Lessons,
    options: FinetuneOptions,
    progress: Progress,
) -> bool:
    """Teach `student` at the best of a few rates; whether it answers better for it."""
    first = list(islice(_batches(lessons, options, 1), TRIED))
    start, before = student.state(), _loss(student, teacher, first)
    done, total = (
        0,
        len(SLOWER) * len(first) + math.ceil(options.epochs * lessons.count / options.batch),
    )

    def learn(rate: float, steps: int, batches: Iterable[Tensor]) -> float:
        nonlocal done
        student.restore(start)
        course = _Course(student, teacher, rate, steps)
        for inputs in batches:
            course.step(inputs)
            done += 1
            progress("fine-tune (batches)", min(done, total), total)
        return _loss(student, teacher, first)

    rates = [options.rate * slower for slower in SLOWER]
    tried = [learn(rate, 2 * len(first), first) for rate in rates]
    rate = rates[int(np.argmin(tried))]
    return learn(rate, total - done, _batches(lessons, options, options.epochs)) < before


def _batches(lessons: Lessons, options: FinetuneOptions, epochs: int) -> Iterator[Tensor]:
    for given in (one for epoch in range(epochs) for one in lessons.epoch(epoch)):
        for inputs in (
            torch.from_numpy(given[at : at + options.batch])
            for at in range(0, len(given), options.batch)
        ):
            chance = torch.rand(len(inputs), 1, 1, 1) < 0.5
            yield torch.where(chance, inputs.flip(3), inputs) if options.mirror else inputs


def _loss(student: _Student, teacher: fx.GraphModule, batches: Sequence[Tensor]) -> float:
    """Of `batches` on average."""
    with torch.no_grad():
        return float(np.mean([float(_difference(student, teacher, one)) for one in batches]))


def _difference(student: _Student, teacher: fx.GraphModule, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = log_softmax(teacher(inputs)[0] / TEMPERATURE, 1)
    return TEMPERATURE**2 * kl_div(
        log_softmax(student(inputs) / TEMPERATURE, 1),
        wanted,
        log_target=True,
        reduction="batchmean",
    )


class _Course:
    """Adam's steps at a rate that rises at once and falls to zero after `steps` of them."""

    def __init__(self, student: _Student, teacher: fx.GraphModule, rate: float, steps: int) -> None:
        self.student, self.teacher, self.steps, self.done = student, teacher, steps, 0
        self.optimizer = torch.optim.Adam(student.groups(rate), betas=(0.9, 0.99))
        self.starts = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, inputs: Tensor) -> None:
        """Learn from float32 [N, 3, H, W]."""
        falling = (1 + math.cos(math.pi * min(1.0, self.done / self.steps))) / 2
        self.done += 1
        for group, start in zip(self.optimizer.param_groups, self.starts, strict=True):
            group["lr"] = start * falling * min(1.0, self.done / WARM)
        loss = _difference(self.student, self.teacher, inputs)
        if not bool(torch.isfinite(loss.detach())):
            raise InputError(
                "the loss of fine-tuning is not a number; the float model's answers on these images are not finite"
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.student.limit()


class _Student:
    """The fx graph of the float model with rounding put in: behind each activation of the plan, and in place of each weight."""

    def __init__(self, made: QuantizationPlan, scheme: QuantScheme) -> None:
        self.made = made
        self.module, nodes = build_module(made.model)
        values, found = layering.initializer_arrays(made.model), layering.find_layers(made.model)
        self.layers = {name: found[name] for name in made.weights}
        self.scales = {name: _Activation(one) for name, one in made.activations.items()}
        self.weights: dict[str, _Weight] = {}
        self.biases: dict[str, _Bias] = {}
        for number, (name, one) in enumerate(self.layers.items()):
            self.weights[name] = _Weight(made.weights[name], one, scheme.weight_max)
            self.biases[name] = _Bias(
                layering.bias_vector(one, values), made.weights[name], self.scales[one.source]
            )
            self._replace(nodes[name], 1, f"weight{number}", self.weights[name])
            self._replace(nodes[name], 2, f"bias{number}", self.biases[name])
        for number, (name, activation) in enumerate(self.scales.items()):
            self._follow(nodes[name], f"activation{number}", activation)
        self.module.recompile()

    def __call__(self, inputs: Tensor) -> Tensor:
        """float32 [N, 3, H, W] -> logits [N, classes]."""
        return cast(Tensor, cast(Any, self.module)(inputs)[0])

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Adam's parameter groups: its steps are as long as its rate, so that this follows each tensor's steps."""
        biases = [
            {"params": [one.values], "lr": rate * INPUT_STEPS * float(one.step().mean())}
            for one in self.biases.values()
        ]
        weights = {"params": [one.steps for one in self.weights.values()], "lr": rate}
        return [
            weights,
            *biases,
            {"params": [one.moved for one in self.scales.values()], "lr": SCALES * rate},
        ]

    def state(self) -> list[Tensor]:
        """A copy of all that is trained."""
        return [one.detach().clone() for one in self._trained()]

    def restore(self, state: list[Tensor]) -> None:
        """Be as in `state`."""
        for one, value in zip(self._trained(), state, strict=True):
            one.data.copy_(value)

    def _trained(self) -> list[torch.nn.Parameter]:
        own = (self.weights, self.biases, self.scales)
        return [
            value
            for part in own
            for one in part.values()
            for value in one.parameters(recurse=False)
        ]

    def limit(self) -> None:
        """Keep scales near where they began."""
        for one in self.scales.values():
            one.moved.data.clamp_(-REACH, REACH)

    def plan(self) -> QuantizationPlan:
        """The plan with the trained numbers."""
        before = self.made
        rounded = {
            name: replace(before.weights[name], values=one.integers())
            for name, one in self.weights.items()
        }
        factors = {name: math.exp(float(one.moved.detach())) for name, one in self.scales.items()}
        activations = {
            name: replace(one, scale=float(np.float32(one.scale * factors[name])))
            for name, one in before.activations.items()
        }
        spans = {
            name: (low * factors[name], high * factors[name])
            for name, (low, high) in before.ranges.items()
        }
        biases = {
            name: one.values.detach().numpy().astype(np.float64)
            for name, one in self.biases.items()
        }
        model = replace_biases(before.model, self.layers, biases)
        methods = dict.fromkeys(before.methods, "fine-tuned")
        return replace(
            before,
            model=model,
            activations=activations,
            weights=rounded,
            ranges=spans,
            methods=methods,
        )

    def _replace(self, node: fx.Node, place: int, name: str, source: torch.nn.Module) -> None:
        """Argument `place` of `node` becomes what `source` gives."""
        self.module.add_submodule(name, source)
        with self.module.graph.inserting_before(node):
            made = self.module.graph.call_module(name)
        node.args = (*node.args[:place], made, *node.args[place + 1 :])

    def _follow(self, node: fx.Node, name: str, follower: torch.nn.Module) -> None:
        """All that reads `node` reads `follower` of it."""
        self.module.add_submodule(name, follower)
        readers = list(node.users)
        with self.module.graph.inserting_after(node):
            made = self.module.graph.call_module(name, (node,))
        for reader in readers:
            reader.replace_input_with(node, made)


class _Weight(torch.nn.Module):
    """A layer's weights, of the initializer's shape, as INT8 restores them; they are trained in steps."""

    def __init__(self, rounded: QuantizedWeight, one: Layer, peak: int) -> None:
        super().__init__()
        scale = torch.from_numpy(rounded.scale.astype(np.float32))
        self.scale = (
            scale
            if scale.numel() == 1 or one.transposed
            else scale.reshape(-1, *[1] * (len(one.shape) - 1))
        )
        self.peak = peak
        self.steps = torch.nn.Parameter(torch.from_numpy(rounded.values.astype(np.float32)))

    def forward(self) -> Tensor:
        """float32, the initializer's shape."""
        return _straight(self.steps).clamp(-self.peak, self.peak) * self.scale

    def integers(self) -> npt.NDArray[np.int8]:
        """What is stored."""
        found: npt.NDArray[np.int8] = (
            self.steps.detach().round().clamp(-self.peak, self.peak).numpy().astype(np.int8)
        )
        return found


class _Activation(torch.nn.Module):
    """An activation as INT8 (or int16) restores it; `moved` is the logarithm of its scale over the plan's."""

    def __init__(self, affine: ActivationParameters) -> None:
        super().__init__()
        self.affine, self.moved = affine, torch.nn.Parameter(torch.zeros(()))
        self.limits = (0, 255) if affine.bits == 8 else (-PEAK_16, PEAK_16)

    @property
    def scale(self) -> Tensor:
        """A scalar."""
        return self.affine.scale * self.moved.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        scale, zero = self.scale, self.affine.zero_point
        return ((_straight(x / scale) + zero).clamp(*self.limits) - zero) * scale


class _Bias(torch.nn.Module):
    """float32 [O], in steps of the products of the layer's input and weight steps: coarse where both are."""

    def __init__(
        self, values: npt.NDArray[np.float64], rounded: QuantizedWeight, source: _Activation
    ) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.from_numpy(values.astype(np.float32)))
        self.weight_scale, self.source = torch.from_numpy(rounded.scale.astype(np.float32)), source

    def step(self) -> Tensor:
        """float32 [O] or [1]: that of the products."""
        return self.source.scale.detach() * self.weight_scale

    def forward(self) -> Tensor:
        """float32 [O]."""
        step = self.step()
        return _straight(self.values / step) * step


def _straight(x: Tensor) -> Tensor:
    """`x` rounded, ties to even, with the gradient of `x`."""
    return x + (x.round() - x).detach()
