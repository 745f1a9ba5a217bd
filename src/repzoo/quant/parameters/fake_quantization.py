"""Fake quantization: the INT8 model of a plan, simulated in PyTorch so that it can be trained.

Weights, activations and biases are rounded to their steps in float32. Rounding passes its gradient
straight through, and clipping stops it (Y. Bengio et al., arXiv:1308.3432; B. Jacob et al.,
arXiv:1712.05877, section 3). Trained are weights, biases and activation scales (the latter as in
LSQ, S. Esser et al., arXiv:1902.08153); zero points and weight scales are not.

This module needs torch: import it only when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from repzoo.quant.network.layers import (
    Layer,
    bias_vector,
    find_layers,
    initializer_arrays,
)
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters.compute import QuantizationPlan, replace_biases
from repzoo.quant.parameters.ranges import ChosenRange
from repzoo.quant.parameters.scales import (
    INT16_MAX,
    UINT8_STEPS,
    ActivationParameters,
    QuantizedWeight,
)
from repzoo.torch.from_onnx import build_module

# A bias moves by so many of its own steps while a weight moves by one: of the 255 steps of an
# input, about 32 are usual.
BIAS_RATE = 32
# Of the logarithm of an activation's scale, relative to the weights' rate.
SCALE_RATE = 0.01
# How far the logarithm of a scale may move: a bias has that much room in int32 (MAX_BIAS_CODE).
MAX_LOG_SCALE_CHANGE = math.log(2)


class FakeQuantizedModel:
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
        self._activations: dict[str, FakeQuantizedActivation] = {}
        for name, parameters in plan.activations.items():
            if name not in plan.moved:
                self._activations[name] = FakeQuantizedActivation(parameters)
        self._weights: dict[str, FakeQuantizedWeight] = {}
        self._biases: dict[str, FakeQuantizedBias] = {}
        for name, layer in self._layers.items():
            quantized = plan.weights[name]
            bias = bias_vector(layer, values)
            source = self._activations[plan.moved.get(layer.source, layer.source)]
            self._weights[name] = FakeQuantizedWeight(
                quantized, layer, scheme.weight_max
            )
            self._biases[name] = FakeQuantizedBias(bias, quantized, source)
        self._edit_graph(nodes)

    def _edit_graph(self, nodes: Mapping[str, fx.Node]) -> None:
        """Put the rounding modules into the fx graph, whose `nodes` have ONNX tensor names."""
        for index, name in enumerate(self._layers):
            node = nodes[name]
            self._replace_argument(node, 1, f"weight{index}", self._weights[name])
            self._replace_argument(node, 2, f"bias{index}", self._biases[name])
        for index, (name, activation) in enumerate(self._activations.items()):
            self._insert_after(nodes[name], f"activation{index}", activation)
        self._module.recompile()  # fx generates the code of a graph only on request

    def __call__(self, inputs: Tensor) -> Tensor:
        """float32 [N, 3, H, W] -> logits [N, classes]."""
        module = cast(Any, self._module)
        outputs = module(inputs)
        return cast(Tensor, outputs[0])

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Adam's parameter groups. An Adam step is about as long as its rate."""
        groups: list[dict[str, Any]] = []
        weights = [weight.codes for weight in self._weights.values()]
        groups.append({"params": weights, "lr": rate})
        for bias in self._biases.values():
            step = float(bias.step().mean())
            bias_rate = rate * BIAS_RATE * step
            groups.append({"params": [bias.values], "lr": bias_rate})
        scales = [activation.log_change for activation in self._activations.values()]
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
        """All trained parameters, in the same order each time."""
        parameters: list[torch.nn.Parameter] = []
        parameters.extend(weight.codes for weight in self._weights.values())
        parameters.extend(bias.values for bias in self._biases.values())
        for activation in self._activations.values():
            parameters.append(activation.log_change)
        return parameters

    def limit_scales(self) -> None:
        """Keep activation scales within a factor of 2 of the plan's."""
        for activation in self._activations.values():
            activation.log_change.data.clamp_(
                -MAX_LOG_SCALE_CHANGE, MAX_LOG_SCALE_CHANGE
            )

    def plan(self) -> QuantizationPlan:
        """The plan with the trained weights, biases and scales."""
        before = self._plan
        weights: dict[str, QuantizedWeight] = {}
        biases: dict[str, npt.NDArray[np.float64]] = {}
        for name in self._layers:
            integers = self._weights[name].integers()
            weights[name] = replace(before.weights[name], values=integers)
            bias = self._biases[name].values.detach().numpy()
            biases[name] = bias.astype(np.float64)
        activations: dict[str, ActivationParameters] = {}
        ranges: dict[str, ChosenRange] = {}
        for name, activation in self._activations.items():
            activations[name] = activation.parameters_after()
            low, high = before.ranges[name].bounds
            factor = activation.factor()
            bounds = (low * factor, high * factor)
            ranges[name] = ChosenRange("fine-tuned", bounds)
        for name, source_name in before.moved.items():
            activations[name] = activations[source_name]
            ranges[name] = ranges[source_name]
        return replace(
            before,
            model=replace_biases(before.model, self._layers, biases),
            activations=activations,
            weights=weights,
            ranges=ranges,
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
        before, after = node.args[:index], node.args[index + 1 :]
        node.args = (*before, call, *after)

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


class FakeQuantizedWeight(torch.nn.Module):
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
            other_axes = [1] * (len(layer.shape) - 1)
            scale = scale.reshape(-1, *other_axes)
        self.scale = scale
        self.limit = limit
        integers = torch.from_numpy(quantized.values.astype(np.float32))
        self.codes = torch.nn.Parameter(integers)

    def forward(self) -> Tensor:
        """float32, of the initializer's shape."""
        codes = _round(self.codes).clamp(-self.limit, self.limit)
        return codes * self.scale

    def integers(self) -> npt.NDArray[np.int8]:
        """The integers to store, of the initializer's shape."""
        rounded = self.codes.detach().round().clamp(-self.limit, self.limit)
        integers: npt.NDArray[np.int8] = rounded.numpy().astype(np.int8)
        return integers


class FakeQuantizedActivation(torch.nn.Module):
    """Rounds an activation to INT8 or int16. `log_change` is log(scale / scale of the plan)."""

    def __init__(self, parameters: ActivationParameters) -> None:
        super().__init__()
        self.parameters_before = parameters
        self.log_change = torch.nn.Parameter(torch.zeros(()))
        self.limits = (0, UINT8_STEPS)
        if parameters.bits == 16:
            self.limits = (-INT16_MAX, INT16_MAX)

    @property
    def scale(self) -> Tensor:
        """The current scale, a scalar."""
        return self.parameters_before.scale * self.log_change.exp()

    def factor(self) -> float:
        """The current scale over that of the plan."""
        return math.exp(float(self.log_change.detach()))

    def parameters_after(self) -> ActivationParameters:
        """The parameters with the current scale."""
        # float32, since that is what the file stores
        scale = np.float32(self.parameters_before.scale * self.factor())
        return replace(self.parameters_before, scale=float(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        scale = self.scale
        zero_point = self.parameters_before.zero_point
        codes = _round(x / scale) + zero_point
        return (codes.clamp(*self.limits) - zero_point) * scale


class FakeQuantizedBias(torch.nn.Module):
    """A layer's bias as int32 represents it, with the product of the two scales as its step."""

    def __init__(
        self,
        values: npt.NDArray[np.float64],
        quantized: QuantizedWeight,
        source: FakeQuantizedActivation,
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
