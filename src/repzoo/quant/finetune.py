"""Fine-tuning with fake quantisation: the last thing to try when no correction in closed form is enough. Needs torch: import it on use.

The INT8 model is computed as it will be, weights and activations rounded to their steps, and taught to answer as the float model
does: what falls is T^2 KL(softmax(float / T) || softmax(INT8 / T)) on images without labels. Rounding passes its gradient straight
through, clipping stops it (Bengio et al., arXiv:1308.3432; Jacob et al., arXiv:1712.05877, section 3). Trained are weights, biases and
the scale of each activation (as in LSQ, Esser et al., arXiv:1902.08153); zero points and weight scales stay. Nothing is drawn at random
but the order of the images and mirroring, by a seed: the same machine, versions and threads give the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx
from torch.nn.functional import kl_div, log_softmax

from repzoo.engines.pytorch import traced
from repzoo.errors import InputError
from repzoo.progress import Progress, silent
from repzoo.quant import layers as layering
from repzoo.quant.layers import Layer
from repzoo.quant.plan import Plan, with_biases
from repzoo.quant.ranges import PEAK_16, Affine, Symmetric
from repzoo.quant.scheme import QuantScheme

Images = npt.NDArray[np.float32]
TEMPERATURE = 2.0
REACH = math.log(2)  # how far an activation's scale may move either way: a bias in int32 has that much room (qdq.INT32_ROOM)


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
    rate     of Adam at its start, relative to the root mean square of each tensor; it falls to zero along a cosine
    mirror   every other image is mirrored, by chance
    seed     of the images' order and mirroring
    """

    epochs: int = 5
    batch: int = 16
    rate: float = 5e-3
    mirror: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what trains nothing."""
        if self.epochs < 1 or self.batch < 1 or not 0 < self.rate < 1:
            raise InputError(f"fine-tuning needs epochs >= 1, batch >= 1 and 0 < rate < 1; got {self}")


def finetuned(
    model: onnx.ModelProto,
    made: Plan,
    scheme: QuantScheme,
    lessons: Lessons,
    options: FinetuneOptions | None = None,
    progress: Progress = silent,
) -> Plan:
    """`made`, with numbers that answer more as the float `model` does; `plan.write` takes it as any other.

    model  the float model that is to be matched, as `qdq.prepared`

    Raises:
        InputError: an operator that the pytorch engine does not know, or a loss that is not a number.
    """
    options = options or FinetuneOptions()
    teacher, _ = traced(model)
    student = _Student(made, scheme)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        _train(student, teacher, lessons, options, progress)
    return student.plan()


def _train(student: _Student, teacher: fx.GraphModule, lessons: Lessons, options: FinetuneOptions, progress: Progress) -> None:
    optimizer = torch.optim.Adam(student.groups(options.rate), betas=(0.9, 0.99))
    starts = [group["lr"] for group in optimizer.param_groups]
    done, total = 0, options.epochs * lessons.count
    for given in (one for epoch in range(options.epochs) for one in lessons.epoch(epoch)):
        for inputs in (torch.from_numpy(given[at : at + options.batch]) for at in range(0, len(given), options.batch)):
            for group, start in zip(optimizer.param_groups, starts, strict=True):
                group["lr"] = start * (1 + math.cos(math.pi * min(1.0, done / total))) / 2
            chance = torch.rand(len(inputs), 1, 1, 1) < 0.5
            _step(student, teacher, torch.where(chance, inputs.flip(3), inputs) if options.mirror else inputs, optimizer)
            done += len(inputs)
            progress("fine-tune (images)", done, total)


def _step(student: _Student, teacher: fx.GraphModule, inputs: Tensor, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        wanted = log_softmax(teacher(inputs)[0] / TEMPERATURE, 1)
    loss = TEMPERATURE**2 * kl_div(log_softmax(student(inputs) / TEMPERATURE, 1), wanted, log_target=True, reduction="batchmean")
    if not bool(torch.isfinite(loss.detach())):
        raise InputError("the loss of fine-tuning is not a number; the float model's answers on these images are not finite")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    student.limit()


class _Student:
    """The fx graph of the float model with rounding put in: behind each activation of the plan, and in place of each weight."""

    def __init__(self, made: Plan, scheme: QuantScheme) -> None:
        self.made = made
        self.module, nodes = traced(made.model)
        values, found = layering.constants(made.model), layering.layers(made.model)
        self.layers = {name: found[name] for name in made.rounded}
        self.scales = {name: _Activation(one) for name, one in made.activations.items()}
        self.weights: dict[str, _Weight] = {}
        self.biases: dict[str, _Bias] = {}
        for number, (name, one) in enumerate(self.layers.items()):
            self.weights[name] = _Weight(values[one.weight], made.rounded[name], one, scheme.weight_peak)
            self.biases[name] = _Bias(layering.biases(one, values), made.rounded[name], self.scales[one.source])
            self._replace(nodes[name], 1, f"weight{number}", self.weights[name])
            self._replace(nodes[name], 2, f"bias{number}", self.biases[name])
        for number, (name, activation) in enumerate(self.scales.items()):
            self._follow(nodes[name], f"activation{number}", activation)
        self.module.recompile()

    def __call__(self, inputs: Tensor) -> Tensor:
        """float32 [N, 3, H, W] -> logits [N, classes]."""
        return cast(Tensor, cast(Any, self.module)(inputs)[0])

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Adam's parameter groups: its steps are as long as its rate, so that this follows each tensor's size."""
        weights, biases = self.weights.values(), self.biases.values()
        values = [*(one.values for one in weights), *(one.values for one in biases)]
        sized = [{"params": [one], "lr": rate * max(float(one.detach().square().mean().sqrt()), 1e-8)} for one in values]
        return [*sized, {"params": [one.moved for one in self.scales.values()], "lr": rate}]

    def limit(self) -> None:
        """Keep scales near where they began."""
        for one in self.scales.values():
            one.moved.data.clamp_(-REACH, REACH)

    def plan(self) -> Plan:
        """The plan with the trained numbers."""
        before = self.made
        rounded = {name: replace(before.rounded[name], values=one.integers()) for name, one in self.weights.items()}
        factors = {name: math.exp(float(one.moved.detach())) for name, one in self.scales.items()}
        activations = {
            name: replace(one, scale=float(np.float32(one.scale * factors[name]))) for name, one in before.activations.items()
        }
        spans = {name: (low * factors[name], high * factors[name]) for name, (low, high) in before.ranges.items()}
        biases = {name: one.values.detach().numpy().astype(np.float64) for name, one in self.biases.items()}
        model = _with_weights(before.model, {self.layers[name].weight: one.restored() for name, one in self.weights.items()})
        model = with_biases(model, self.layers, biases)
        methods = dict.fromkeys(before.methods, "fine-tuned")
        return replace(before, model=model, activations=activations, rounded=rounded, ranges=spans, methods=methods)

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
    """A layer's weights, of the initializer's shape, as INT8 restores them.

    They start where float has them, but within half a step of what the plan rounded them to (which need not be the nearest).
    """

    def __init__(self, values: npt.NDArray[Any], rounded: Symmetric, one: Layer, peak: int) -> None:
        super().__init__()
        scale = torch.from_numpy(rounded.scale.astype(np.float32))
        self.scale = scale if scale.numel() == 1 or one.turned else scale.reshape(-1, *[1] * (len(one.shape) - 1))
        self.peak = peak
        stored = torch.from_numpy(rounded.values.astype(np.float32))
        steps = torch.from_numpy(np.array(values, np.float32)) / self.scale
        self.values = torch.nn.Parameter((stored + (steps - stored).clamp(-0.49, 0.49)) * self.scale)

    def forward(self) -> Tensor:
        """float32, the initializer's shape."""
        return _straight(self.values / self.scale).clamp(-self.peak, self.peak) * self.scale

    def integers(self) -> npt.NDArray[np.int8]:
        """What is stored."""
        found: npt.NDArray[np.int8] = (self.forward().detach() / self.scale).round().numpy().astype(np.int8)
        return found

    def restored(self) -> npt.NDArray[np.float32]:
        """The trained weights before rounding."""
        found: npt.NDArray[np.float32] = self.values.detach().numpy()
        return found


class _Activation(torch.nn.Module):
    """An activation as INT8 (or int16) restores it; `moved` is the logarithm of its scale over the plan's."""

    def __init__(self, affine: Affine) -> None:
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

    def __init__(self, values: npt.NDArray[np.float64], rounded: Symmetric, source: _Activation) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.from_numpy(values.astype(np.float32)))
        self.weight_scale, self.source = torch.from_numpy(rounded.scale.astype(np.float32)), source

    def forward(self) -> Tensor:
        """float32 [O]."""
        step = self.source.scale.detach() * self.weight_scale
        return _straight(self.values / step) * step


def _straight(x: Tensor) -> Tensor:
    """`x` rounded, ties to even, with the gradient of `x`."""
    return x + (x.round() - x).detach()


def _with_weights(model: onnx.ModelProto, values: Mapping[str, npt.NDArray[np.float32]]) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for item in made.graph.initializer:
        if item.name in values:
            item.CopyFrom(numpy_helper.from_array(values[item.name], item.name))
    return made
